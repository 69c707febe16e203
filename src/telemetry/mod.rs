//! What the operator can read afterwards: one access log line a request, and the event log.
//!
//! Numbers over time are [`crate::metrics`]. Which files are written to is the keeper's business: nothing here opens
//! a path.

pub mod access_log;
pub mod error_log;
pub mod events;

use std::error::Error;

/// The error and what caused it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
