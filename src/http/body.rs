//! The body of a request or a response, in whatever way it comes.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::{FileBody, GatewayError};
use crate::splice::Pipe;

/// A message body.
///
/// Not `Send`: a body lives and dies on the traffic thread that began it. The common shapes cost no allocation.
pub enum Body {
    Empty,
    /// The whole body, in one piece.
    Full(Bytes),
    /// A range of an open file.
    File(FileBody),
    /// A body still arriving, from a socket.
    Relay(Pin<Box<dyn Relay>>),
    /// Whatever else yields bytes: a compressor, several ranges.
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = GatewayError>>>),
}

/// A body that comes from a socket, and can pass to another one without being read.
pub trait Relay: http_body::Body<Data = Bytes, Error = GatewayError> {
    /// Moves what has arrived into `pipe`, which is empty, and answers how much that is.
    ///
    /// `None`: what comes next has to be read, as a part of it has been, or it is encrypted, or framed, or the end.
    fn poll_relay(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Option<Result<usize, GatewayError>>>;
}

impl Body {
    /// Boxes `body`; use [`Body::Full`] or [`Body::Empty`] where they fit.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = GatewayError> + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }

    /// Boxes `body`, of which a socket may be given more than what is read.
    pub fn relay(body: impl Relay + 'static) -> Self {
        Self::Relay(Box::pin(body))
    }

    /// [`Relay::poll_relay`], for any body.
    pub fn poll_relay(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<Result<usize, GatewayError>>> {
        let Self::Relay(relay) = self else { return Poll::Ready(None) };
        let polled = catch_unwind(AssertUnwindSafe(|| relay.as_mut().poll_relay(cx, pipe)));
        polled.unwrap_or_else(|_| self.panicked())
    }

    /// A panic ends the body as any error does, so that a part is not taken for the whole.
    fn panicked<T>(&mut self) -> Poll<Option<Result<T, GatewayError>>> {
        *self = Self::Empty;
        Poll::Ready(Some(Err(GatewayError::panicked())))
    }

    /// The length in bytes, when it is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.size_hint().exact()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::File(file) => Pin::new(file).poll_frame(cx),
            Self::Relay(relay) => {
                let polled = catch_unwind(AssertUnwindSafe(|| relay.as_mut().poll_frame(cx)));
                polled.unwrap_or_else(|_| this.panicked())
            }
            Self::Stream(stream) => {
                let polled = catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_frame(cx)));
                polled.unwrap_or_else(|_| this.panicked())
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) => false,
            Self::File(file) => file.is_end_stream(),
            Self::Relay(relay) => relay.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::File(file) => file.size_hint(),
            Self::Relay(relay) => relay.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

/// Says which shape it has; the bytes are nobody's to print.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::File(_) => "File",
            Self::Relay(_) => "Relay",
            Self::Stream(_) => "Stream",
        })
    }
}
