//! What the operator can read afterwards: one access log line a request, and the event log.
//!
//! Numbers over time are [`crate::metrics`]. Which files are written to is the keeper's business: nothing here opens
//! a path.

pub mod access_log;
pub mod events;
