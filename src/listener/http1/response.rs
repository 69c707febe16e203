//! Writing an answer.

use std::{
    cell::RefCell,
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, header};
use http_body::Body as _;
use tokio::time::{Instant, Sleep};

use super::{Asked, request::ClientWire};
use crate::{
    h1::encode::{self, Framing, Persistence},
    http::{Body, GatewayError, pace::Pace},
    listener::Downstream,
    proxy::Tunnel,
    service::{Answer, LogGuard},
    splice::{self, Pipe},
    turns,
};

/// What becomes of the connection after an answer.
pub(super) enum Next {
    Request,
    /// Closed, by whomever.
    Gone,
    /// To be closed.
    Close,
    /// To be closed, with bytes of the client's that are not read yet.
    Linger,
    Tunnel(Box<Tunnel>, Box<LogGuard>),
}

/// Writes `answer` whole, or closes the connection so that a part is not taken for the whole.
///
/// The client may be as slow as its route allows, counted while it is waited for.
pub(super) async fn send<Io: Downstream>(
    wire: &Rc<RefCell<ClientWire<Io>>>,
    answer: Answer,
    asked: &Asked,
    mut timer: Pin<&mut Sleep>,
) -> Next {
    let Answer { response, tunnel, mut log } = answer;
    let (parts, body) = response.into_parts();
    let framing = framing(asked, parts.status, &parts.headers, &body);
    // A body that somebody else holds is on its way to the endpoint, which has begun to answer before its end.
    let held = Rc::strong_count(wire) > 1;
    let read = if held { wire.borrow().body_is_read() } else { wire.borrow_mut().skip_body() };
    wire.borrow_mut().answering();
    let stays = asked.keep_alive && read && !log.closes() && ends(framing, asked, parts.status);
    let persistence = match (&tunnel, stays) {
        (Some(_), _) => Persistence::Upgrade,
        (None, false) => Persistence::Close,
        (None, true) if asked.version < http::Version::HTTP_11 => Persistence::KeepAlive,
        (None, true) => Persistence::Stays,
    };
    let mut out = BytesMut::with_capacity(HEAD);
    encode::response_head(&mut out, parts.status, &parts.headers, framing, persistence);
    let body = if has_body(asked, parts.status) { body } else { Body::Empty };
    let mut writer = Writer::new(out, body, framing, Io::IS_PLAIN);

    let patience = log.patience();
    let mut pace = Pace::new(patience);
    let mut waiting = false;
    let written = poll_fn(|cx| {
        let before = writer.written;
        if let Poll::Ready(written) = writer.poll_write(cx, wire) {
            return Poll::Ready(written);
        }
        let moved = writer.written - before;
        if moved > 0
            && let Err(slow) = pace.moved(moved)
        {
            return Poll::Ready(Err(Cut::Client(io::Error::new(io::ErrorKind::TimedOut, slow))));
        }
        match writer.waits {
            Waits::Body => {
                waiting = false;
                pace.rest();
                // Whoever is not there to read need not be waited for.
                ready!(wire.borrow_mut().poll_gone(cx));
                Poll::Ready(Err(Cut::Client(io::ErrorKind::ConnectionReset.into())))
            }
            Waits::Turn => {
                // Whoever is waited for next is so from then on.
                waiting = false;
                Poll::Pending
            }
            Waits::Client => {
                pace.wait();
                if !waiting || moved > 0 {
                    waiting = true;
                    timer.as_mut().reset(Instant::now() + patience.progress);
                }
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Err(Cut::Client(io::ErrorKind::TimedOut.into())))
            }
        }
    })
    .await;
    log.sent(writer.sent());
    let failed = writer.failed.take();
    drop(writer);
    match written {
        Ok(()) => log.complete(),
        Err(Cut::Client(error)) => {
            // What broke off on the other side is told, even where the client has not come to see it.
            match failed {
                Some(failed) => log.failed(&failed),
                None => log.cut_by_client(&error),
            }
            return Next::Gone;
        }
        Err(Cut::Body(error)) => {
            if framing == Framing::Unsaid {
                // The end of the connection would be the end of the body.
                wire.borrow().io.reset_on_close();
            }
            log.failed(&error);
            return Next::Gone;
        }
    }
    match tunnel {
        Some(tunnel) => Next::Tunnel(tunnel, Box::new(log)),
        None if stays => Next::Request,
        None if read && wire.borrow().read.is_empty() => Next::Close,
        None => Next::Linger,
    }
}

/// Whether a response of this status to this method has a body (RFC 9110, 6.4.1).
fn has_body(asked: &Asked, status: StatusCode) -> bool {
    asked.method != Method::HEAD
        && !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn framing(asked: &Asked, status: StatusCode, headers: &http::HeaderMap, body: &Body) -> Framing {
    if !has_body(asked, status) {
        // What a GET would have been told (RFC 9110, 8.6); never with 1xx and 204.
        let said = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        return match said {
            Some(length) if asked.method == Method::HEAD || status == StatusCode::NOT_MODIFIED => {
                Framing::Length(length)
            }
            _ => Framing::Unsaid,
        };
    }
    match body.length() {
        Some(length) => Framing::Length(length),
        None if encode::can_chunk(asked.version) => Framing::Chunked,
        None => Framing::Unsaid,
    }
}

/// The client can tell where this response ends without the connection being closed.
fn ends(framing: Framing, asked: &Asked, status: StatusCode) -> bool {
    framing != Framing::Unsaid || !has_body(asked, status)
}

/// What is left to be written.
#[expect(clippy::struct_excessive_bools, reason = "what is known of the body and of the socket, each by itself")]
struct Writer {
    /// The head, framing and short pieces; comes before `data`.
    out: BytesMut,
    data: Bytes,
    body: Body,
    chunked: bool,
    /// A file can be sent without being read.
    sends_files: bool,
    /// How much of the file in `body` is to be sent next.
    piece: Option<u64>,
    /// A body from a socket can be sent without being read.
    relays: bool,
    /// What has been taken from that socket; comes after `data`.
    pipe: Option<Pipe>,
    /// `data` is a chunk, whose end is to follow it.
    in_chunk: bool,
    /// Everything has been taken from the body, or it has failed.
    ended: bool,
    /// Why it ends before its end.
    failed: Option<GatewayError>,
    waits: Waits,
    /// Bytes taken from the body.
    taken: u64,
    /// Bytes that the socket has taken.
    written: u64,
}

/// Who is waited for when nothing can be written.
#[derive(Clone, Copy)]
enum Waits {
    Body,
    Client,
    /// Nobody: others have their turn.
    Turn,
}

/// Why an answer was not written whole.
enum Cut {
    Client(io::Error),
    Body(GatewayError),
}

impl Writer {
    fn new(out: BytesMut, body: Body, framing: Framing, is_plain: bool) -> Self {
        let chunked = framing == Framing::Chunked;
        let sends_files = is_plain && !chunked;
        let relays = sends_files && body.length().is_some_and(|length| length >= splice::WORTH_IT);
        let data = Bytes::new();
        Self {
            out,
            data,
            body,
            chunked,
            sends_files,
            piece: None,
            relays,
            pipe: None,
            in_chunk: false,
            ended: false,
            failed: None,
            waits: Waits::Client,
            taken: 0,
            written: 0,
        }
    }

    /// Bytes of the body that have gone out, but for what may lie behind a head not yet written.
    fn sent(&self) -> u64 {
        self.taken - self.data.len() as u64 - self.piped() as u64
    }

    /// Bytes in the pipe.
    fn piped(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::held)
    }

    fn poll_write<Io: Downstream>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &RefCell<ClientWire<Io>>,
    ) -> Poll<Result<(), Cut>> {
        let mut work = 0;
        loop {
            if work >= turns::BYTES {
                self.waits = Waits::Turn;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Before the wire is taken: behind the body there may be the rest of the request, which reads from it.
            let body = if self.data.is_empty() && self.piped() == 0 { self.poll_fill(cx) } else { Poll::Ready(Ok(())) };
            let pending = body.is_pending();
            if let Poll::Ready(Err(error)) = body {
                // What there is goes out first. A client that has had no byte of an answer takes the connection for one that
                // was closed before its request came, and may send it again.
                (self.failed, self.ended) = (Some(error), true);
            }
            let io = &mut wire.borrow_mut().io;
            self.waits = Waits::Client;
            if !self.out.is_empty() || !self.data.is_empty() {
                let written = ready!(self.poll_pieces(cx, io)).map_err(Cut::Client)?;
                self.written += written as u64;
                work += written;
                let head = written.min(self.out.len());
                self.out.advance(head);
                self.data.advance(written - head);
                if self.data.is_empty() {
                    // Whoever reads the next piece has the buffer of this one again.
                    self.data = Bytes::new();
                }
            } else if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
                let poured = ready!(io.poll_pour(cx, pipe)).map_err(Cut::Client)?;
                self.written += poured as u64;
                work += poured / UNREAD;
            } else if self.ended {
                ready!(Pin::new(io).poll_flush(cx)).map_err(Cut::Client)?;
                return Poll::Ready(self.failed.take().map_or(Ok(()), |error| Err(Cut::Body(error))));
            } else if let Some(piece) = self.piece.take() {
                let before = self.written;
                let sent = self.poll_send_file(cx, io, piece)?;
                if sent.is_pending() {
                    self.piece = Some(piece);
                    return Poll::Pending;
                }
                work += usize::try_from(self.written - before).unwrap_or(usize::MAX) / UNREAD;
            } else if pending {
                // Nothing that was written may lie in a buffer while the body is waited for.
                if let Poll::Ready(Err(error)) = Pin::new(io).poll_flush(cx) {
                    return Poll::Ready(Err(Cut::Client(error)));
                }
                // Nor a pipe that others may need.
                self.pipe = None;
                self.waits = Waits::Body;
                return Poll::Pending;
            }
        }
    }

    /// Takes pieces from the body until there is enough for one system call.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        while !self.ended && self.data.is_empty() && self.out.len() < JOINED && self.piece.is_none() {
            self.piece = self.file_piece();
            if self.piece.is_some() {
                break;
            }
            if ready!(self.poll_relay(cx))? {
                break;
            }
            if std::mem::take(&mut self.in_chunk) {
                self.out.extend_from_slice(encode::CHUNK_END);
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()? else {
                self.ended = true;
                if self.chunked {
                    self.out.extend_from_slice(encode::LAST_CHUNK);
                }
                break;
            };
            let Ok(data) = frame.into_data() else { continue };
            if data.is_empty() {
                continue;
            }
            self.taken += data.len() as u64;
            if self.chunked {
                encode::chunk_size(&mut self.out, data.len());
                self.in_chunk = true;
            }
            // A short piece is cheaper to copy than to name in a second one.
            if data.len() <= JOINED { self.out.extend_from_slice(&data) } else { self.data = data }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what has arrived of a long body into a pipe; answers whether there was something, and it can be.
    fn poll_relay(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, GatewayError>> {
        if !self.relays {
            return Poll::Ready(Ok(false));
        }
        let Some(mut pipe) = self.pipe.take().or_else(Pipe::take) else {
            self.relays = false;
            return Poll::Ready(Ok(false));
        };
        let relayed = self.body.poll_relay(cx, &mut pipe);
        if !matches!(relayed, Poll::Ready(None)) {
            self.pipe = Some(pipe);
        }
        let Some(count) = ready!(relayed).transpose()? else { return Poll::Ready(Ok(false)) };
        self.taken += count as u64;
        Poll::Ready(Ok(true))
    }

    /// How much of a file the socket is to send by itself next: of a long one, on a plain connection.
    fn file_piece(&self) -> Option<u64> {
        let Body::File(file) = &self.body else { return None };
        let left = file.remaining();
        let worth_it = self.sends_files && (self.taken > 0 || left >= splice::WORTH_IT);
        if worth_it { splice::sendable(file.file(), file.offset(), left) } else { None }
    }

    fn poll_send_file<Io: Downstream>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io,
        piece: u64,
    ) -> Poll<Result<(), Cut>> {
        let Body::File(file) = &mut self.body else { return Poll::Ready(Ok(())) };
        match ready!(io.poll_send_file(cx, file.file(), file.offset(), piece)) {
            Ok(0) => Poll::Ready(Err(Cut::Body(shorter()))),
            Ok(sent) => {
                file.advance(sent);
                self.taken += sent;
                self.written += sent;
                Poll::Ready(Ok(()))
            }
            Err(error) if splice::is_of_the_connection(&error) => Poll::Ready(Err(Cut::Client(error))),
            // A file system without it, or a fault of the disk, which reading will meet again and name.
            Err(_) => {
                self.sends_files = false;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_pieces<Io: Downstream>(&mut self, cx: &mut Context<'_>, io: &mut Io) -> Poll<io::Result<usize>> {
        let io = Pin::new(io);
        let written = if self.data.is_empty() {
            ready!(io.poll_write(cx, &self.out))
        } else {
            let data = &self.data[..self.data.len().min(turns::BYTES)];
            ready!(io.poll_write_vectored(cx, &[io::IoSlice::new(&self.out), io::IoSlice::new(data)]))
        };
        match written {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => Poll::Ready(written),
        }
    }
}

fn shorter() -> GatewayError {
    GatewayError::gateway(StatusCode::INTERNAL_SERVER_ERROR, "a file has become shorter while it was sent")
}

/// What is sent without being read takes that part of the work.
const UNREAD: usize = 8;
/// Room for a head.
const HEAD: usize = 1024;
/// A piece up to this size is copied to its neighbours.
const JOINED: usize = 16 * 1024;
