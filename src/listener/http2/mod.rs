//! One HTTP/2 connection. Framing, flow control and HPACK are hyper's; requests go the same way as any other.

mod streams;
mod watched;

use std::{
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::yield_now,
};

use self::{
    streams::{Progress, Streams},
    watched::{Resets, Watched},
};
use super::Connection;
use crate::{
    http::{Body, CLIENT_CLOSED_REQUEST, GatewayError},
    limits::ClientStreams,
    service::{self, Answer, LogGuard},
};

/// Serves streams until the client goes, nothing has been asked for long enough, or a drain begins: then a GOAWAY
/// lets what has begun come to its end (RFC 9113, 6.8).
pub(super) async fn serve<Io>(io: Io, connection: Rc<Connection>, counted: ClientStreams) -> End
where
    Io: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = connection.thread.current().plan.limits.clone();
    let resets = Resets::default();
    let streams = Streams::new(connection.tasks.clone(), counted, resets.clone());
    let (io, exhausted) = Watched::new(io, resets.clone());
    let service = service_fn({
        let (connection, streams) = (Rc::clone(&connection), streams.clone());
        move |request: Request<Incoming>| {
            let (connection, streams) = (Rc::clone(&connection), streams.clone());
            // On the heap by itself: the library moves the future of a stream about, with all it holds.
            let request = Box::new(request);
            let may_be_reset = resets.are_by_client();
            async move {
                if may_be_reset {
                    // hyper looks for a reset only where this is pending, so it is once, before anything begins.
                    yield_now().await;
                }
                answer(request, &connection, &streams).await
            }
        }
    });
    let mut served = pin!(
        hyper::server::conn::http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            // Twice, since whatever is beyond it hyper refuses by itself, without a page and without a line.
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX).saturating_mul(2))
            .header_table_size(HEADER_TABLE)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .max_frame_size(FRAME)
            .max_pending_accept_reset_streams(RESET_UNSEEN)
            .max_local_error_reset_streams(RESET_BY_FAULT)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .serve_connection(TokioIo::new(io), service)
    );
    let gone = connection.leaving.clone();
    // Who is turned away gets the answers to what it sends before it hears of it.
    let mut leaving = connection.turned_away;
    if leaving {
        served.as_mut().graceful_shutdown();
    }
    let ended = loop {
        tokio::select! {
            ended = served.as_mut() => break ended,
            () = gone.started(), if !leaving => {}
            () = streams.refused(), if !leaving => {}
            () = streams.watch(limits.progress_timeout, limits.keep_alive) => {
                if leaving {
                    // What is left is not taken, in spite of the GOAWAY.
                    return End::Over;
                }
            }
        }
        leaving = true;
        served.as_mut().graceful_shutdown();
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "an h2 connection ended");
    }
    if exhausted.get() { End::Flood } else { End::Over }
}

/// How a connection ended.
pub(super) enum End {
    Over,
    /// Its client sent too much that asks for nothing.
    Flood,
}

/// Without memory for one more the stream is refused, which takes none, and its client told to come by another connection: on
/// one there may be many streams, and all of an answer that its client does not take stays here. One that is beyond those of its
/// client is refused, too.
async fn answer(
    request: Box<Request<Incoming>>,
    connection: &Rc<Connection>,
    streams: &Streams,
) -> Result<Response<Logged>, h2::Error> {
    if connection.is_to_refuse() {
        streams.refuse();
        return Err(Reason::REFUSED_STREAM.into());
    }
    if streams.are_too_many(connection) {
        return Err(Reason::REFUSED_STREAM.into());
    }
    let is_head = request.method() == http::Method::HEAD;
    let answer = serving(*request, connection).await;
    Ok(respond(answer, is_head, streams))
}

/// On the heap by itself: a stream whose answer waits for its client is then not as large as one that is being served.
fn serving(request: Request<Incoming>, connection: &Rc<Connection>) -> Pin<Box<impl Future<Output = Answer>>> {
    let request = request.map(|body| if body.is_end_stream() { Body::Empty } else { Body::stream(RequestBody(body)) });
    Box::pin(service::serve(request, connection))
}

/// What is sent of `answer`.
fn respond(answer: Answer, is_head: bool, streams: &Streams) -> Response<Logged> {
    let Answer { response, log, .. } = answer;
    let (mut parts, body) = response.into_parts();
    // Values are slices of the buffer they were read into; the compressor's table would keep all of it.
    for value in parts.headers.values_mut() {
        if let Ok(copy) = http::HeaderValue::from_bytes(value.as_bytes()) {
            *value = copy;
        }
    }
    // hyper sends what it is given, to a HEAD as well.
    let body = if is_head { Body::Empty } else { body };
    let progress = streams.progress(log.patience());
    Response::from_parts(parts, Logged { body, rest: Bytes::new(), after: Poll::Pending, log, progress })
}

/// A request body as hyper reads it.
struct RequestBody(Incoming);

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(|error| {
            let status = if error.is_body_write_aborted() || error.is_incomplete_message() {
                CLIENT_CLOSED_REQUEST
            } else {
                StatusCode::BAD_REQUEST
            };
            GatewayError::downstream(status, "the request body broke off").source(error)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// A response body that is logged at its end.
struct Logged {
    body: Body,
    /// Of its last piece, what has not been given: the library keeps all it is given, and of the last piece nothing is
    /// known any more.
    rest: Bytes,
    /// What comes after that and is no data, where it is known already: an error, or the end.
    after: Poll<Option<Result<Frame<Bytes>, GatewayError>>>,
    log: LogGuard,
    progress: Rc<Progress>,
}

impl Logged {
    /// The next of the body, small pieces that are there together: a client takes many frames with little in them for an
    /// attack, and ends its connection.
    fn poll_joined(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        if let known @ Poll::Ready(_) = std::mem::replace(&mut self.after, Poll::Pending) {
            return known;
        }
        let mut joined = BytesMut::new();
        while joined.len() < PIECE {
            let data = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => frame.into_data().unwrap_or_default(),
                Poll::Pending if joined.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                next @ Poll::Ready(_) if joined.is_empty() => return next,
                next @ Poll::Ready(_) => {
                    self.after = next;
                    break;
                }
            };
            if joined.is_empty() && (data.len() >= SMALL || self.body.is_end_stream()) {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            joined.extend_from_slice(&data);
        }
        Poll::Ready(Some(Ok(Frame::data(joined.freeze()))))
    }
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = &mut *self;
        this.progress.asked();
        if this.rest.is_empty() {
            match ready!(this.poll_joined(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => {
                    // The stream is reset, so that a part is not taken for the whole.
                    this.log.failed(&error);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.log.complete();
                    return Poll::Ready(None);
                }
            }
        }
        let length = this.rest.len().min(PIECE);
        let piece = this.rest.split_to(length);
        if this.rest.is_empty() {
            this.rest = Bytes::new();
        }
        this.log.add_sent(length as u64);
        this.progress.offered(length as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let is_end = match &self.after {
            Poll::Ready(after) => after.is_none(),
            Poll::Pending => self.body.is_end_stream(),
        };
        self.rest.is_empty() && is_end
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What state the body is in, nobody knows; the line is written all the same.
        } else if let Poll::Ready(Some(Err(error))) = &self.after {
            self.log.failed(error);
        } else if self.progress.has_stalled() {
            self.log.cut_by_client(&self.progress.why());
        } else if self.is_end_stream() {
            // hyper does not ask for more than there is.
            self.log.complete();
        }
    }
}

/// Bytes of a body that the library is given at once: as much as a frame has.
const PIECE: usize = 16 * 1024;
/// A piece below this is joined with its neighbours.
const SMALL: usize = 4 * 1024;
/// A peer that answers no PING for this long, this long after it was last heard of, is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Bytes of headers that are remembered to be named again; what we remember of ours is no more, whatever the client allows.
const HEADER_TABLE: u32 = 4096;
/// Bytes that are received ahead, on a stream and on all of them.
const WINDOW: u32 = 1024 * 1024;
/// The longest frame that is received.
const FRAME: u32 = 16 * 1024;
/// Streams that a client may open and reset before they have become requests, and those that it may have the library reset by
/// breaking the protocol; [`watched`] counts all resets, over time, and those that come later.
const RESET_UNSEEN: usize = 20;
const RESET_BY_FAULT: usize = 1024;
/// Bytes of one stream that hyper holds ready beyond what the client has room for.
const SEND_BUFFER: usize = 64 * 1024;
