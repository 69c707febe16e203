//! A front door to look at.

/// Runs until it is told to stop.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    Err("the demonstration is not part of this build".into())
}
