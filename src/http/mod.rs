//! The vocabulary of one exchange: bodies, errors, header rules, the pages we make ourselves.
//!
//! Knows nothing of routes, upstreams or sockets.

pub mod authority;
mod body;
pub mod client_certificate;
pub mod compress;
pub mod cross_origin;
mod error;
mod file;
pub mod forwarded;
pub mod headers;
pub mod location;
pub mod pace;
pub mod page;
pub mod path;
pub mod security_headers;
mod weight;

pub use body::{Body, Relay};
pub use error::{CLIENT_CLOSED_REQUEST, GatewayError, Retry, Side};
pub use file::{FileBody, Sequence};
