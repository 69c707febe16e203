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

/// A message body.
///
/// Not `Send`: a body lives and dies on the traffic thread that began it. The common shapes cost no allocation.
pub enum Body {
    Empty,
    /// The whole body, in one piece.
    Full(Bytes),
    /// A range of an open file.
    File(FileBody),
    /// Whatever else yields bytes: a body still arriving, a compressor, several ranges.
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = GatewayError>>>),
}

impl Body {
    /// Boxes `body`; use [`Body::Full`] or [`Body::Empty`] where they fit.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = GatewayError> + 'static) -> Self {
        Self::Stream(Box::pin(body))
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
            Self::Stream(stream) => {
                // A panic ends the body as any error does, so that a part is not taken for the whole.
                catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_frame(cx))).unwrap_or_else(|_| {
                    *this = Self::Empty;
                    Poll::Ready(Some(Err(GatewayError::panicked())))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) => false,
            Self::File(file) => file.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::File(file) => file.size_hint(),
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
            Self::Stream(_) => "Stream",
        })
    }
}
