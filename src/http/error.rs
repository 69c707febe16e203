//! What went wrong with one exchange: whose fault it is, what the client is told, and whether to try again.

use std::{borrow::Cow, error::Error, fmt, time::Duration};

use http::{HeaderValue, StatusCode};

/// An exchange that did not end as it should.
///
/// `message` says what failed with which object, in the operator's words, and is logged; the
/// client sees a page made from `status` and, where it helps, [`Self::hint`].
#[derive(Debug)]
pub struct GatewayError {
    pub status: StatusCode,
    pub side: Side,
    pub retry: Retry,
    pub message: Cow<'static, str>,
    /// What the client can be told beyond the status: a limit and its key, never an internal name.
    pub hint: Option<Cow<'static, str>>,
    /// Sent as `Retry-After`, rounded up to whole seconds.
    pub retry_after: Option<Duration>,
    /// Sent as `WWW-Authenticate`.
    pub challenge: Option<Box<HeaderValue>>,
    /// There are too many requests, which is told once a minute and not of each.
    pub is_crowded: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Whose doing an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client, or what stands between it and us.
    Downstream,
    /// Vestibule: a limit, a fault of ours, the disk.
    Gateway,
    /// The endpoint.
    Upstream,
}

/// Whether the same request may be sent to an endpoint again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing of it was sent: always.
    Unsent,
    /// It may have been acted on: only if its method is idempotent (RFC 9110, 9.2.2).
    IfIdempotent,
    /// Likewise, and not where it may still be at work.
    Elsewhere,
    Never,
}

impl GatewayError {
    fn new(status: StatusCode, side: Side, message: Cow<'static, str>) -> Self {
        Self {
            status,
            side,
            retry: Retry::Never,
            message,
            hint: None,
            retry_after: None,
            challenge: None,
            is_crowded: false,
            source: None,
        }
    }

    /// The client's doing.
    pub fn downstream(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, Side::Downstream, message.into())
    }

    /// Our own doing, limits included.
    pub fn gateway(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, Side::Gateway, message.into())
    }

    /// There is no room for one more: 503.
    pub fn crowded(message: impl Into<Cow<'static, str>>) -> Self {
        Self { is_crowded: true, ..Self::gateway(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The endpoint's doing.
    pub fn upstream(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, Side::Upstream, message.into())
    }

    /// A fault of ours that showed itself in a panic, which has been told where it happened.
    pub fn panicked() -> Self {
        Self::gateway(StatusCode::INTERNAL_SERVER_ERROR, "a fault of vestibule's own").source(Panicked)
    }

    pub fn is_panic(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.is::<Panicked>())
    }

    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    #[must_use]
    pub fn challenge(mut self, challenge: HeaderValue) -> Self {
        self.challenge = Some(Box::new(challenge));
        self
    }

    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a panic, which the event log tells of")]
struct Panicked;

impl fmt::Display for GatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for GatewayError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// The client closed the connection before it had its answer; nginx's number, known to every log reader.
pub const CLIENT_CLOSED_REQUEST: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => panic!("499 is three digits"),
};
