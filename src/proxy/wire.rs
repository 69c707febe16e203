//! One connection to an endpoint during one exchange: what is still to be sent, what has been read.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use http_body::Body as _;
use tokio::{io::AsyncWrite, time::timeout};

use super::collect::too_slow;
use crate::{
    h1::{self, HeadError, HeadLimits, ResponseHead},
    http::{Body, GatewayError},
    splice::{self, Pipe},
    upstream::{Lease, Pool, UpstreamStream},
};

/// A connection with a request on its way out and a response on its way in.
///
/// Both are moved whenever either is waited for: an endpoint may answer before it has read the request, and may stop
/// reading until its answer is read.
#[derive(Debug)]
pub(super) struct EndpointWire {
    pub(super) lease: Lease,
    /// What has been read and not yet been taken.
    pub(super) incoming: BytesMut,
    /// Room that a read is given, as far as is known how much will come.
    expected: usize,
    outgoing: Outgoing,
    /// A byte of the response has been seen.
    answered: bool,
    /// A byte of the request has been handed to the kernel.
    begun: bool,
}

/// What is still to be sent.
#[derive(Debug)]
struct Outgoing {
    buffer: BytesMut,
    data: Bytes,
    body: Body,
    chunked: bool,
    /// What is sent without being read; comes after `data`.
    unread: Unread,
    /// The body is one that can be.
    passes: bool,
    state: Sending,
}

/// A part of the body that goes from where it is to the endpoint within the kernel.
#[derive(Debug)]
enum Unread {
    Nothing,
    /// So much of the file that the body is.
    File(u64),
    /// What has come from the client's socket.
    Pipe(Pipe),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Body,
    /// Everything has been taken from the body; what is in the buffers is the rest.
    Rest,
    Done,
    /// The endpoint reads no more; it may have answered all the same.
    Broken,
}

/// Why no response head was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the request could not be sent")]
    Send(#[source] io::Error),
    #[error("the endpoint took nothing of the request for {0:?}")]
    SendTimeout(Duration),
    /// The client's side of a body that is passed on as it comes.
    #[error("the request body broke off")]
    RequestBody(#[source] GatewayError),
    #[error("the response could not be read")]
    Receive(#[source] io::Error),
    #[error("the endpoint closed the connection without a response")]
    Closed,
    #[error("the endpoint closed the connection in the middle of the response head")]
    Truncated,
    #[error("no response head within {0:?}")]
    HeadTimeout(Duration),
    #[error("the response head is not HTTP")]
    Head(#[source] HeadError),
    #[error("more than {MAX_INTERIM} interim responses")]
    TooManyInterim,
    #[error("the endpoint switched protocols without being asked")]
    Unasked,
}

impl EndpointWire {
    /// `head` is sent first, then `body`, in chunks where `chunked`.
    pub(super) fn new(lease: Lease, head: BytesMut, body: Body, chunked: bool) -> Self {
        let passes = !chunked && body.length().is_some_and(|length| length >= splice::WORTH_IT);
        let (data, unread, state) = (Bytes::new(), Unread::Nothing, Sending::Body);
        let mut outgoing = Outgoing { buffer: head, data, body, chunked, unread, passes, state };
        // A small body leaves in one piece with its head.
        if let Body::Full(bytes) = &mut outgoing.body
            && bytes.len() <= JOINED
            && !chunked
        {
            outgoing.buffer.extend_from_slice(bytes);
            outgoing.body = Body::Empty;
        }
        if outgoing.body.is_end_stream() && !chunked {
            outgoing.state = Sending::Rest;
        }
        Self { lease, incoming: BytesMut::new(), expected: 0, outgoing, answered: false, begun: false }
    }

    /// The whole request has been handed to the kernel.
    pub(super) fn is_sent(&self) -> bool {
        self.outgoing.state == Sending::Done
    }

    /// Something of the request may have arrived.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    /// The endpoint has said something, so it has acted.
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Sends the request and reads the head of the response, interim ones aside.
    ///
    /// `progress` bounds each pause while sending; `head` the time from there to the head. `upgrade` says whether
    /// `101 (Switching Protocols)` was asked for.
    pub(super) async fn head(
        &mut self,
        method: &Method,
        progress: Duration,
        head: Duration,
        upgrade: bool,
        pool: &Pool,
    ) -> Result<ResponseHead, WireError> {
        let mut broken = None;
        while !self.is_sent() {
            // Ends when some of the request has gone, or when the endpoint has begun to answer.
            match timeout(progress, poll_fn(|cx| self.poll_send_step(cx, &mut broken))).await {
                Ok(Ok(Step::Sent)) => {}
                Ok(Ok(Step::Answering)) => break,
                Ok(Err(error)) => return Err(error),
                Err(_) if self.outgoing.waits_for_body() => return Err(WireError::RequestBody(too_slow(progress))),
                Err(_) => return Err(WireError::SendTimeout(progress)),
            }
        }
        let deadline = Instant::now() + head;
        let mut timer = None;
        let mut reading = pin!(self.read_head(method, upgrade));
        let read = poll_fn(|cx| {
            if let Poll::Ready(read) = reading.as_mut().poll(cx) {
                return Poll::Ready(read);
            }
            ready!(timer.get_or_insert_with(|| pool.timer(deadline)).as_mut().poll(cx));
            Poll::Ready(Err(WireError::HeadTimeout(head)))
        })
        .await;
        if let Some(timer) = timer {
            pool.put_timer(timer);
        }
        read
    }

    async fn read_head(&mut self, method: &Method, upgrade: bool) -> Result<ResponseHead, WireError> {
        for _ in 0..=MAX_INTERIM {
            let head = loop {
                match h1::decode_response(&mut self.incoming, RESPONSE_LIMITS, method).map_err(WireError::Head)? {
                    Some(head) => break head,
                    None => self.read_more().await?,
                }
            };
            if head.parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
                return if upgrade { Ok(head) } else { Err(WireError::Unasked) };
            }
            if !head.parts.status.is_informational() {
                return Ok(head);
            }
        }
        Err(WireError::TooManyInterim)
    }

    async fn read_more(&mut self) -> Result<(), WireError> {
        match poll_fn(|cx| self.poll_read(cx)).await {
            Ok(0) if self.incoming.is_empty() => Err(WireError::Closed),
            Ok(0) => Err(WireError::Truncated),
            Ok(_) => Ok(()),
            Err(error) if self.incoming.is_empty() && is_disconnect(&error) => Err(WireError::Closed),
            Err(error) => Err(WireError::Receive(error)),
        }
    }

    /// Reads what has arrived, and goes on sending meanwhile. 0 is the end of the stream.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // An endpoint that has stopped reading may answer all the same: its answer decides.
        drop(self.poll_send(cx));
        self.poll_receive(cx)
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (stream, least) = (Pin::new(&mut self.lease.stream), READ_AT_LEAST.max(self.expected / 2));
        let read = ready!(h1::poll_read(stream, cx, &mut self.incoming, least, self.expected));
        self.answered |= matches!(read, Ok(1..));
        Poll::Ready(read)
    }

    /// Reads a body of which `bytes` are still to come in pieces that are worth a system call.
    pub(super) fn expect(&mut self, bytes: u64) {
        self.expected = usize::try_from(bytes).unwrap_or(usize::MAX).min(LARGE_READ);
    }

    /// One step of sending, or the beginning of an answer. `broken` keeps why nothing more can be sent.
    fn poll_send_step(
        &mut self,
        cx: &mut Context<'_>,
        broken: &mut Option<WireError>,
    ) -> Poll<Result<Step, WireError>> {
        match self.poll_send(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(Step::Sent)),
            Poll::Ready(Err(error)) => *broken = Some(error),
            Poll::Pending => {}
        }
        // What made it stop reading may be an answer: it is waited for, as the write can fail before the runtime has
        // seen what there is to read.
        match self.poll_receive(cx) {
            Poll::Ready(Ok(1..)) => Poll::Ready(Ok(Step::Answering)),
            Poll::Ready(Ok(0)) => Poll::Ready(Err(broken.take().unwrap_or(WireError::Closed))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken.take().unwrap_or(WireError::Receive(error)))),
            Poll::Pending => match broken.take_if(|error| matches!(error, WireError::RequestBody(_))) {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            },
        }
    }

    /// Sends one piece of what there is.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.begun
            && !self.lease.is_reused()
            && let Ok(count @ 1..) = self.lease.stream.try_write_first(&self.outgoing.buffer)
        {
            self.outgoing.buffer.advance(count);
            return Poll::Ready(Ok(()));
        }
        self.outgoing.poll_write(cx, &mut self.lease.stream)
    }

    /// Sends until all is sent; `Ready` after each piece that made progress.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        let mut progress = false;
        loop {
            match self.outgoing.state {
                Sending::Done => return Poll::Ready(Ok(())),
                Sending::Broken => return Poll::Pending,
                Sending::Body if self.outgoing.is_flushed() => match self.outgoing.poll_fill(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        self.outgoing.state = Sending::Broken;
                        return Poll::Ready(Err(WireError::RequestBody(error)));
                    }
                    Poll::Pending if progress => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                },
                Sending::Rest if self.outgoing.is_flushed() => self.outgoing.state = Sending::Done,
                Sending::Body | Sending::Rest => match self.poll_write(cx) {
                    Poll::Ready(Ok(())) => {
                        self.begun = true;
                        progress = true;
                    }
                    Poll::Ready(Err(error)) => {
                        self.outgoing.state = Sending::Broken;
                        return Poll::Ready(Err(WireError::Send(error)));
                    }
                    Poll::Pending if progress => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

enum Step {
    Sent,
    Answering,
}

impl Outgoing {
    fn is_flushed(&self) -> bool {
        self.buffer.is_empty() && self.data.is_empty() && matches!(self.unread, Unread::Nothing)
    }

    /// The endpoint has had all there was, and the client has not sent more.
    fn waits_for_body(&self) -> bool {
        self.state == Sending::Body && self.is_flushed()
    }

    /// Sends one piece of what there is.
    fn poll_write(&mut self, cx: &mut Context<'_>, stream: &mut UpstreamStream) -> Poll<io::Result<()>> {
        let written = if !self.data.is_empty() {
            let pieces = [io::IoSlice::new(&self.buffer), io::IoSlice::new(&self.data)];
            Pin::new(stream).poll_write_vectored(cx, &pieces)
        } else if !self.buffer.is_empty() {
            Pin::new(stream).poll_write(cx, &self.buffer)
        } else {
            return self.poll_pass(cx, stream);
        };
        match ready!(written)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => {
                let head = count.min(self.buffer.len());
                self.buffer.advance(head);
                self.data.advance(count - head);
                if self.data.is_empty() {
                    // Whoever reads the next piece has the buffer of this one again.
                    self.data = Bytes::new();
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Sends some of what is not read.
    fn poll_pass(&mut self, cx: &mut Context<'_>, stream: &UpstreamStream) -> Poll<io::Result<()>> {
        match (&mut self.unread, &mut self.body) {
            (Unread::Pipe(pipe), _) => {
                ready!(stream.poll_pour(cx, pipe))?;
                if pipe.held() == 0 {
                    self.unread = Unread::Nothing;
                }
            }
            (Unread::File(piece), Body::File(file)) => {
                match ready!(stream.poll_send_file(cx, file.file(), file.offset(), *piece)) {
                    Err(error) if splice::is_of_the_connection(&error) => return Poll::Ready(Err(error)),
                    Ok(sent @ 1..) => {
                        file.advance(sent);
                        *piece -= sent;
                        if *piece == 0 {
                            self.unread = Unread::Nothing;
                        }
                    }
                    // It has become shorter, or cannot be sent so; reading names the one and does the other.
                    Ok(0) | Err(_) => (self.unread, self.passes) = (Unread::Nothing, false),
                }
            }
            (Unread::Nothing | Unread::File(_), _) => self.unread = Unread::Nothing,
        }
        Poll::Ready(Ok(()))
    }

    /// Takes a piece of the body that need not be read; answers whether there was one.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, GatewayError>> {
        if let Body::File(file) = &self.body {
            let Some(piece) = splice::sendable(file.file(), file.offset(), file.remaining()) else {
                return Poll::Ready(Ok(false));
            };
            self.unread = Unread::File(piece);
        } else {
            let Some(mut pipe) = Pipe::take() else { return Poll::Ready(Ok(false)) };
            if ready!(self.body.poll_relay(cx, &mut pipe)).transpose()?.is_none() {
                return Poll::Ready(Ok(false));
            }
            self.unread = Unread::Pipe(pipe);
        }
        Poll::Ready(Ok(true))
    }

    /// Takes the next piece from the body.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        if self.passes && ready!(self.poll_take(cx))? {
            return Poll::Ready(Ok(()));
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()? else {
            if self.chunked {
                self.buffer.extend_from_slice(h1::encode::LAST_CHUNK);
            }
            self.state = Sending::Rest;
            return Poll::Ready(Ok(()));
        };
        // Trailers are dropped (RFC 9110, 6.5.1).
        if let Ok(data) = frame.into_data() {
            if self.chunked && !data.is_empty() {
                h1::encode::chunk_size(&mut self.buffer, data.len());
                self.buffer.extend_from_slice(&data);
                self.buffer.extend_from_slice(h1::encode::CHUNK_END);
            } else {
                self.data = data;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The peer has gone, as opposed to a fault of the road.
pub(super) fn is_disconnect(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// A body up to this size is copied behind its head, which is cheaper than a second piece.
const JOINED: usize = 16 * 1024;
/// Bytes of room a read is given at least.
const READ_AT_LEAST: usize = 2 * 1024;
/// The most one read is given for a long body.
const LARGE_READ: usize = 128 * 1024;
/// Responses before the one that counts (RFC 9110, 15.2).
const MAX_INTERIM: usize = 8;
/// What an application may answer with.
pub(super) const RESPONSE_LIMITS: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 256, target: 0 };
