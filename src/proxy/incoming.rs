//! The body of a response, as it comes from the endpoint.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::wire::{EndpointWire, is_disconnect};
use crate::{
    h1::{BodyDecoder, BodyLength, Decoded},
    http::{GatewayError, Relay},
    splice::Pipe,
    upstream::{Endpoint, InFlight, Place, Pool},
};

/// A response body on the wire.
///
/// When its end has been read, the connection goes back to the pool if it may, and the place in the upstream is free
/// again. Dropped before that, it closes the connection.
pub struct Incoming {
    source: Option<Source>,
    decoder: BodyDecoder,
    progress: Duration,
    /// When the wait for the endpoint ends; in force while `waiting`, so that a slow client is not held against it.
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

/// What is held until the body has been read.
struct Source {
    wire: EndpointWire,
    pool: Rc<Pool>,
    endpoint: Arc<Endpoint>,
    /// The connection may carry another exchange after this one.
    keep_alive: bool,
    in_flight: InFlight,
    place: Option<Place>,
}

impl Incoming {
    #[expect(clippy::too_many_arguments, reason = "these are the parts of one exchange, put together in one place")]
    pub(super) fn new(
        wire: EndpointWire,
        length: BodyLength,
        keep_alive: bool,
        endpoint: Arc<Endpoint>,
        in_flight: InFlight,
        place: Option<Place>,
        pool: Rc<Pool>,
        progress: Duration,
    ) -> Self {
        let decoder = BodyDecoder::new(length);
        let source = Source { wire, pool, endpoint, keep_alive, in_flight, place };
        let mut incoming = Self { source: Some(source), decoder, progress, deadline: None, waiting: false };
        match incoming.decoder.remaining() {
            Some(0) => incoming.finish(),
            Some(left) => {
                if let Some(source) = &mut incoming.source
                    && left > source.wire.incoming.len() as u64
                {
                    source.wire.expect(left - source.wire.incoming.len() as u64);
                }
            }
            None => {}
        }
        incoming
    }

    /// Whether somebody waits for the place that it has.
    pub(super) fn is_wanted(&self) -> bool {
        self.source.as_ref().and_then(|source| source.place.as_ref()).is_some_and(Place::is_wanted)
    }

    /// The whole body, if all of it has been read from the wire already.
    pub fn take_if_whole(&mut self) -> Option<Bytes> {
        let left = self.decoder.remaining()?;
        let Some(source) = &mut self.source else { return Some(Bytes::new()) };
        if (source.wire.incoming.len() as u64) < left {
            return None;
        }
        match self.decoder.decode(&mut source.wire.incoming) {
            Ok(Decoded::Data(data)) => {
                self.finish();
                Some(data)
            }
            _ => None,
        }
    }

    /// The socket and what has been read beyond the head: for a tunnel.
    pub(super) fn into_wire(self) -> Option<(EndpointWire, InFlight)> {
        self.source.map(|source| (source.wire, source.in_flight))
    }

    /// The end of the body has been read: gives everything back.
    fn finish(&mut self) {
        let Some(source) = self.source.take() else { return };
        // More than the body, or a request not all read: whatever comes next would not be ours.
        if source.keep_alive && source.wire.incoming.is_empty() && source.wire.is_sent() {
            source.pool.put(&source.endpoint, source.wire.lease);
        }
    }

    fn fail<T>(&mut self, error: GatewayError) -> Poll<Option<Result<T, GatewayError>>> {
        self.source = None;
        Poll::Ready(Some(Err(error)))
    }

    /// The endpoint has been waited for for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<GatewayError> {
        let progress = self.progress;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(progress)));
        if !self.waiting {
            self.waiting = true;
            deadline.as_mut().reset(Instant::now() + progress);
        }
        ready!(deadline.as_mut().poll(cx));
        let label = self.source.as_ref().map_or("", |source| &source.endpoint.label);
        let stalled = format!("is too slow: it sent nothing of its response for {progress:?}");
        let mut error = broken(label, &stalled).source(io::Error::from(io::ErrorKind::TimedOut));
        error.status = StatusCode::GATEWAY_TIMEOUT;
        Poll::Ready(error)
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = self.get_mut();
        loop {
            let Some(source) = &mut this.source else { return Poll::Ready(None) };
            let label = &source.endpoint.label;
            match this.decoder.decode(&mut source.wire.incoming) {
                Ok(Decoded::Data(data)) => {
                    if this.decoder.is_done() {
                        this.finish();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::End) => {
                    this.finish();
                    return Poll::Ready(None);
                }
                Err(error) => {
                    let error = broken(label, "sent a body that is not HTTP").source(error);
                    return this.fail(error);
                }
                Ok(Decoded::NeedMore) => {}
            }
            match source.wire.poll_read(cx) {
                Poll::Ready(Ok(0)) => {
                    if let Err(error) = this.decoder.end_of_stream() {
                        let error = broken(label, CUT).source(error);
                        return this.fail(error);
                    }
                    this.finish();
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(_)) => this.waiting = false,
                Poll::Ready(Err(error)) => {
                    let error = unread(label, error);
                    return this.fail(error);
                }
                Poll::Pending => {
                    let stalled = ready!(this.poll_stalled(cx));
                    return this.fail(stalled);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.decoder.remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Relay for Incoming {
    fn poll_relay(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Option<Result<usize, GatewayError>>> {
        let this = self.get_mut();
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        let Some(left @ 1..) = this.decoder.remaining() else { return Poll::Ready(None) };
        // While there is still something of the request to be sent, reading does that, too.
        if !source.wire.incoming.is_empty() || !source.wire.is_sent() {
            return Poll::Ready(None);
        }
        let label = &source.endpoint.label;
        match source.wire.lease.stream.poll_fill(cx, pipe, left) {
            Poll::Ready(Ok(0)) => {
                let error = broken(label, CUT).source(io::Error::from(io::ErrorKind::UnexpectedEof));
                this.fail(error)
            }
            Poll::Ready(Ok(count)) => {
                this.waiting = false;
                this.decoder.skip(count as u64);
                if this.decoder.is_done() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(count)))
            }
            // A kind of socket that cannot; or a fault of it, which reading will meet again and name.
            Poll::Ready(Err(error)) if !is_disconnect(&error) => Poll::Ready(None),
            Poll::Ready(Err(error)) => {
                let error = unread(label, error);
                this.fail(error)
            }
            Poll::Pending => {
                let stalled = ready!(this.poll_stalled(cx));
                this.fail(stalled)
            }
        }
    }
}

fn unread(endpoint: &str, error: io::Error) -> GatewayError {
    // A reset is no end: what was read may be half of it.
    let what = if is_disconnect(&error) { "reset the connection" } else { "cannot be read from" };
    broken(endpoint, what).source(error)
}

fn broken(endpoint: &str, what: &str) -> GatewayError {
    GatewayError::upstream(StatusCode::BAD_GATEWAY, format!("endpoint {endpoint} {what}"))
}

/// What an endpoint has done whose response is not whole.
const CUT: &str = "closed the connection before the end of its response";
