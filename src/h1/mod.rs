//! HTTP/1.1 on the wire (RFC 9112): bytes in, messages out, and back.
//!
//! Sans-io, one way of reading aside: nothing here owns a socket or a clock. The server side is driven by
//! [`crate::listener`], the client side by [`crate::proxy`]; both read by the same rules, so that no
//! message has an end that could be read in two ways. What is forwarded is always written anew by
//! [`encode`] from what was parsed.
//!
//! The server side is ours and not hyper's because hyper resolves `Transfer-Encoding` beside
//! `Content-Length` silently where we must refuse it, answers a malformed head by itself where we owe
//! the client a page and the operator a log line, and keeps the socket where a tunnel or
//! `sendfile` needs it. The syntax of heads is httparse's.

mod body;
pub mod encode;
mod glimpse;
mod head;
mod read;

pub use body::{BodyDecoder, BodyError, BodyLength, Decoded};
pub use glimpse::Glimpse;
pub use head::{HeadError, HeadLimits, RequestHead, ResponseHead, decode_request, decode_response};
pub use read::poll_read;

#[cfg(test)]
mod tests;
