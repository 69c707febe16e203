//! The client's side of the wire: what has been read, and the body of the request being served.

use std::{
    cell::RefCell,
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, timeout};

use crate::{
    h1::{self, BodyDecoder, BodyLength, Decoded, RequestHead, encode},
    http::{CLIENT_CLOSED_REQUEST, GatewayError, Relay},
    listener::Downstream,
    splice::Pipe,
};

/// A connection while it is served; the request body and the response both use it, in turn.
pub(in crate::listener) struct ClientWire<Io> {
    pub(super) io: Io,
    /// Read and not yet taken.
    pub(super) read: BytesMut,
    body: BodyDecoder,
    /// What is left to be written of `100 (Continue)`; `None` when the client does not wait for it.
    proceed: Option<&'static [u8]>,
    /// The body of a request has not been asked for by anyone, so the client may not even send it.
    withheld: bool,
}

impl<Io: Downstream> ClientWire<Io> {
    pub(super) fn new(io: Io) -> Self {
        let body = BodyDecoder::new(BodyLength::Fixed(0));
        Self { io, read: BytesMut::new(), body, proceed: None, withheld: false }
    }

    pub(super) fn into_parts(self) -> (Io, BytesMut) {
        (self.io, self.read)
    }

    pub(super) fn begin(&mut self, head: &RequestHead) {
        self.body = BodyDecoder::new(head.body);
        let waits = head.expect_continue && !self.body.is_done();
        self.proceed = waits.then_some(encode::CONTINUE);
        self.withheld = waits;
    }

    pub(super) fn body_is_read(&self) -> bool {
        self.body.is_done()
    }

    /// Nothing of a head has arrived, empty lines aside.
    pub(super) fn is_blank(&self) -> bool {
        self.read.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let left = self.body.remaining().unwrap_or_default();
        let expected = usize::try_from(left).unwrap_or(usize::MAX).min(LARGE_READ);
        h1::poll_read(Pin::new(&mut self.io), cx, &mut self.read, READ_AT_LEAST, expected)
    }

    /// Whether the client has closed its side, as far as can be seen while a request is served.
    ///
    /// What arrives instead is the next request, kept up to [`PIPELINED`] bytes.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.body.is_done() && self.read.len() < PIPELINED {
            match ready!(self.poll_read(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// The answer has begun: an interim response would come in its middle.
    pub(super) fn answering(&mut self) {
        self.proceed = None;
    }

    /// Reads over what has already arrived of a body that nobody wanted; answers whether that was all of it.
    pub(super) fn skip_body(&mut self) -> bool {
        while !self.withheld && !self.body.is_done() {
            match self.body.decode(&mut self.read) {
                Ok(Decoded::Data(_)) => {}
                Ok(Decoded::End) => return true,
                Ok(Decoded::NeedMore) | Err(_) => return false,
            }
        }
        self.body.is_done()
    }

    fn poll_proceed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left) = self.proceed {
            if left.is_empty() {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                self.proceed = None;
                self.withheld = false;
            } else {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, left))?;
                self.proceed = Some(&left[written..]);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, GatewayError>>> {
        loop {
            match self.body.decode(&mut self.read) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::NeedMore) => {}
                Err(error) => {
                    let refused = GatewayError::downstream(StatusCode::BAD_REQUEST, "the request body is malformed");
                    return Poll::Ready(Some(Err(refused.source(error))));
                }
            }
            if let Err(error) = ready!(self.poll_proceed(cx)) {
                return Poll::Ready(Some(Err(gone().source(error))));
            }
            match ready!(self.poll_read(cx)) {
                Ok(1..) => {}
                Ok(0) => return Poll::Ready(Some(Err(gone()))),
                Err(error) => return Poll::Ready(Some(Err(gone().source(error)))),
            }
        }
    }
}

impl<Io: Downstream> ClientWire<Io> {
    /// Takes what has arrived of a body of known length, if that has to pass nothing but us.
    fn poll_relay(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Option<Result<usize, GatewayError>>> {
        let Some(left @ 1..) = self.body.remaining() else { return Poll::Ready(None) };
        if !Io::IS_PLAIN || !self.read.is_empty() || self.proceed.is_some() {
            return Poll::Ready(None);
        }
        match ready!(self.io.poll_fill(cx, pipe, left)) {
            Ok(0) => Poll::Ready(Some(Err(gone()))),
            Ok(count) => {
                self.body.skip(count as u64);
                Poll::Ready(Some(Ok(count)))
            }
            // What it is, reading tells.
            Err(_) => Poll::Ready(None),
        }
    }
}

fn gone() -> GatewayError {
    GatewayError::downstream(CLIENT_CLOSED_REQUEST, "the client closed the connection in the middle of its request")
}

/// The body of the request that is being served.
pub(super) struct RequestBody<Io> {
    wire: Rc<RefCell<ClientWire<Io>>>,
    length: Option<u64>,
}

impl<Io> RequestBody<Io> {
    pub(super) fn new(wire: Rc<RefCell<ClientWire<Io>>>, head: &RequestHead) -> Self {
        let length = match head.body {
            BodyLength::Fixed(length) => Some(length),
            BodyLength::Chunked | BodyLength::UntilClose => None,
        };
        Self { wire, length }
    }
}

impl<Io: Downstream> http_body::Body for RequestBody<Io> {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = self.get_mut();
        let data = ready!(this.wire.borrow_mut().poll_body(cx));
        if let (Some(length), Some(Ok(data))) = (&mut this.length, &data) {
            *length -= data.len() as u64;
        }
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl<Io: Downstream> Relay for RequestBody<Io> {
    fn poll_relay(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Option<Result<usize, GatewayError>>> {
        let this = self.get_mut();
        let relayed = ready!(this.wire.borrow_mut().poll_relay(cx, pipe));
        if let (Some(length), Some(Ok(count))) = (&mut this.length, &relayed) {
            *length -= *count as u64;
        }
        Poll::Ready(relayed)
    }
}

/// Closes a connection on which everything has been read.
pub(super) async fn close<Io: Downstream>(wire: &RefCell<ClientWire<Io>>) {
    // A peer that does not take our goodbye, or not in time, is gone all the same.
    let goodbye = poll_fn(|cx| Pin::new(&mut wire.borrow_mut().io).poll_shutdown(cx));
    drop(timeout(LINGER_PAUSE, goodbye).await);
}

/// Closes our side and reads over what the client still sends, so that it gets to read the answer: a socket that is
/// closed with bytes unread resets the connection, and the answer with it.
pub(super) async fn linger<Io: Downstream>(wire: &RefCell<ClientWire<Io>>, mut timer: Pin<&mut Sleep>) {
    let end = Instant::now() + LINGER;
    timer.as_mut().reset(Instant::now() + LINGER_PAUSE);
    close(wire).await;
    poll_fn(|cx| {
        let mut wire = wire.borrow_mut();
        for _ in 0..ROUNDS {
            let unread = wire.read.len();
            wire.read.advance(unread);
            match wire.poll_read(cx) {
                Poll::Ready(Ok(1..)) if Instant::now() < end => {
                    timer.as_mut().reset(end.min(Instant::now() + LINGER_PAUSE));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return timer.as_mut().poll(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Bytes of room a read is given at least, and the most for a long body.
const READ_AT_LEAST: usize = 1024;
const LARGE_READ: usize = 128 * 1024;
/// Bytes kept of requests that are sent before the answer to the one before.
const PIPELINED: usize = 64 * 1024;
/// How long we go on reading after an answer that came before the end of its request, in all and without a byte.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_PAUSE: Duration = Duration::from_secs(5);
/// Reads before the thread is given up.
const ROUNDS: usize = 16;
