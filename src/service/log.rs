//! The line that is written of every request, whatever becomes of it.

use std::{
    borrow::Cow,
    cell::Cell,
    error::Error as _,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, request};
use http_body::{Frame, SizeHint};

use super::{Connection, connection::Pinned};
use crate::{
    drain::Drain,
    h1::Glimpse,
    http::{
        Body, CLIENT_CLOSED_REQUEST, GatewayError, Relay, Retry, Side,
        cross_origin::{self, AllowedOrigins},
        forwarded::{Peer, Scheme},
        pace::Patience,
        security_headers::SecurityHeaders,
    },
    limits::Notice,
    metrics::{Held, RouteMetrics},
    proxy::{Trace, too_large},
    runtime::{Route, Runtime},
    splice::Pipe,
    telemetry::access_log::{Record, RequestId, Started, Tls},
};

/// Collects what there is to say of one request, and says it when dropped.
///
/// Dropped before [`Self::complete`], as when the client goes and takes its request with it, it says 499.
pub struct LogGuard {
    record: Box<Record>,
    /// What there is to say of the exchange, so far.
    pub(super) trace: Trace,
    /// Since when the request has been waiting for a place.
    queued: Option<Instant>,
    connection: Rc<Connection>,
    /// What was in force when it began, and is for it to its end.
    runtime: Pinned,
    _exchange: Held,
    route: Option<RouteMetrics>,
    /// For the answer, whoever makes it.
    allow_origin: Option<Box<cross_origin::Told>>,
    /// Likewise, with the scheme that the client sees.
    security_headers: Option<(Arc<SecurityHeaders>, Scheme)>,
    /// Likewise: whether it says how long it took.
    server_timing: bool,
    /// Bytes of a body that is passed on as it comes.
    passed: Option<Rc<Cell<u64>>>,
    /// How slow the client may be, on this route.
    patience: Patience,
    closes: bool,
    done: bool,
}

impl LogGuard {
    /// For a request whose head has been read.
    pub(super) fn begin(connection: &Rc<Connection>, request: &request::Parts) -> Self {
        let mut guard = Self::new(connection);
        let record = &mut *guard.record;
        record.method = Some(request.method.clone());
        record.target = Some(request.uri.clone());
        record.version = Some(request.version);
        record.host = request.headers.get(header::HOST).cloned();
        record.referer = request.headers.get(header::REFERER).cloned();
        record.user_agent = request.headers.get(header::USER_AGENT).cloned();
        guard
    }

    /// For what was refused before there was a request.
    pub(super) fn unread(connection: &Rc<Connection>, glimpse: Glimpse) -> Self {
        let mut guard = Self::new(connection);
        guard.record.method = glimpse.method;
        guard.record.target = glimpse.target;
        guard.record.version = glimpse.version;
        guard
    }

    fn new(connection: &Rc<Connection>) -> Self {
        let peer = match connection.peer {
            Peer::Tcp(address) => Some(address.ip().to_canonical()),
            Peer::Unix => None,
        };
        let mut record = Box::new(Record::new(Started::now(), peer));
        record.status = CLIENT_CLOSED_REQUEST.as_u16();
        record.tls = connection.tls.as_ref().map(|tls| Tls { version: tls.version, cipher: tls.cipher });
        let connection = Rc::clone(connection);
        let runtime = connection.thread.current();
        let limits = &runtime.plan.limits;
        let patience = Patience { progress: limits.progress_timeout, rate: limits.minimum_rate };
        Self {
            record,
            patience,
            trace: Trace::default(),
            queued: None,
            connection,
            _exchange: runtime.exchanges.hold(),
            runtime,
            route: None,
            allow_origin: None,
            security_headers: None,
            server_timing: false,
            passed: None,
            closes: false,
            done: false,
        }
    }

    /// Keeps only what the line says, and nothing of the buffer that the request was read into: what is logged when a
    /// websocket ends is kept for as long as it lasts.
    pub(super) fn detach(&mut self) {
        let record = &mut *self.record;
        for value in [&mut record.host, &mut record.referer, &mut record.user_agent] {
            *value = value.take().and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
        }
        record.target = record.target.take().and_then(|target| target.to_string().parse().ok());
    }

    pub(super) fn request_id(&self) -> RequestId {
        self.record.request_id
    }

    pub(super) fn runtime(&self) -> &Pinned {
        &self.runtime
    }

    pub(super) fn client(&mut self, client: Option<IpAddr>) {
        self.record.client = client;
    }

    pub(super) fn began(&self) -> Instant {
        self.record.started.clock
    }

    /// We are about to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.connection.thread.drain.is_closing()
    }

    /// The name of the upstream that the request was for.
    pub(super) fn upstream(&self) -> Option<&str> {
        self.record.upstream.as_deref()
    }

    /// The route that was taken, by a client that sees `scheme` and sent `headers`.
    pub(super) fn route(&mut self, route: &Route, scheme: Scheme, headers: &HeaderMap) {
        self.record.route = Some(route.name.clone());
        self.record.upstream = Some(route.upstream.name.clone());
        self.route = Some(route.metrics.clone());
        self.patience.progress = route.plan.progress_timeout.unwrap_or(self.patience.progress);
        self.patience.rate = route.plan.minimum_rate.unwrap_or(self.patience.rate);
        let told = |allowed: &AllowedOrigins| Box::new(allowed.told_to(headers.get(header::ORIGIN)));
        self.allow_origin = route.allow_origin.as_ref().map(told);
        self.security_headers = route.security_headers.clone().map(|headers| (headers, scheme));
        self.server_timing = route.plan.server_timing;
    }

    /// Whose password was right.
    pub(super) fn user(&mut self, user: &HeaderValue) {
        self.record.user = Some(user.clone());
    }

    /// Tells browsers what the route says they are to be careful about.
    pub(super) fn security_headers(&mut self, headers: &mut HeaderMap) {
        if let Some((security, scheme)) = self.security_headers.take() {
            security.apply(scheme, headers);
        }
    }

    /// Lets pages of other sites read the answer, where its route says so and the application has not said anything.
    pub(super) fn allow_origin(&mut self, headers: &mut HeaderMap) {
        if let Some(told) = self.allow_origin.take() {
            told.apply(headers);
        }
    }

    /// Says how long the queue and the application took, where the route says so, beside what the application says of itself.
    pub(super) fn server_timing(&self, headers: &mut HeaderMap) {
        if self.server_timing {
            let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
            let metrics = [("queue", self.record.queue), ("app", self.trace.head)];
            let known = metrics.into_iter().filter_map(|(name, time)| Some((name, milliseconds(time?))));
            for (name, time) in known {
                if let Ok(value) = HeaderValue::try_from(format!("{name};dur={time:.1}")) {
                    headers.append("server-timing", value);
                }
            }
        }
    }

    /// There was a place at once.
    pub(super) fn waited_for_nobody(&mut self) {
        self.record.queue = Some(Duration::ZERO);
    }

    pub(super) fn queue_begins(&mut self) {
        self.queued = Some(Instant::now());
    }

    pub(super) fn queue_ends(&mut self) {
        self.record.queue = self.queued.take().map(|since| since.elapsed());
    }

    pub(super) fn status(&mut self, status: StatusCode) {
        self.record.status = status.as_u16();
    }

    pub(super) fn note(&mut self, note: impl Into<Cow<'static, str>>) {
        self.record.note = Some(note.into());
    }

    /// Bytes of request body that have come.
    pub(super) fn received(&mut self, bytes: u64) {
        self.record.bytes_received = bytes;
    }

    /// Counts `body` while it is passed on, and ends it beyond `limit` bytes.
    pub(super) fn counted(&mut self, body: Body, limit: Option<u64>) -> Body {
        let passed = Rc::new(Cell::new(0));
        self.passed = Some(Rc::clone(&passed));
        Body::relay(Counted { body, passed, limit })
    }

    /// The connection is not to be used again after this answer.
    pub(super) fn close(&mut self) {
        self.closes = true;
    }

    /// How slow the client may be.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    pub fn closes(&self) -> bool {
        self.closes
    }

    /// Bytes of response body that have gone.
    pub fn sent(&mut self, bytes: u64) {
        self.record.bytes_sent = bytes;
    }

    pub fn add_sent(&mut self, bytes: u64) {
        self.record.bytes_sent += bytes;
    }

    /// The response has gone out whole.
    pub fn complete(&mut self) {
        self.done = true;
    }

    /// The client went, or read nothing for too long.
    pub fn cut_by_client(&mut self, error: &std::io::Error) {
        self.status(CLIENT_CLOSED_REQUEST);
        self.note(format!("the response was not taken: {error}"));
        self.done = true;
    }

    /// The response broke off on our side or the endpoint's; its status has gone out already.
    pub fn failed(&mut self, error: &GatewayError) {
        self.refused(error);
        self.done = true;
    }

    /// Keeps what `error` says for the line, and reports it where an operator should look.
    pub(super) fn refused(&mut self, error: &GatewayError) {
        report(error, &self.record, &self.runtime);
        self.note(describe(error));
    }
}

/// Says of a request that a stop has cut it off, so that it does not pass for one whose client went.
fn cut_off(record: &mut Record, drain: &Drain) {
    let tunnel = record.status == StatusCode::SWITCHING_PROTOCOLS.as_u16();
    if record.status == CLIENT_CLOSED_REQUEST.as_u16() {
        record.status = StatusCode::SERVICE_UNAVAILABLE.as_u16();
    }
    record.note = Some(Cow::Borrowed("cut off by the stop: it had not ended by the deadline (`drain`)"));
    if drain.count_cut(tunnel) < CUT_TOLD {
        let method = record.method.as_ref().map(tracing::field::display);
        let target = record.target.as_ref().map(|target| tracing::field::display(target.path().to_owned()));
        let client = record.client.map(tracing::field::display);
        tracing::warn!(method, target, client, lasted = ?record.started.elapsed(), id = %record.request_id, tunnel, "cut off");
    }
}

/// One event for what an operator can act on: endpoints and our own limits, not what clients send.
fn report(error: &GatewayError, record: &Record, runtime: &Runtime) {
    let cause = error as &dyn std::error::Error;
    let (status, upstream) = (error.status.as_u16(), record.upstream.as_deref());
    match error.side {
        // Of an endpoint that cannot be connected to there has been an event already, with the first request it refused.
        Side::Upstream if error.retry == Retry::Unsent => {
            tracing::debug!(error = cause, status, upstream, id = %record.request_id, "not sent");
        }
        Side::Upstream => tracing::warn!(error = cause, status, upstream, id = %record.request_id, "upstream failed"),
        // The panic hook has told it, and where it happened.
        Side::Gateway if error.is_panic() => {
            tracing::debug!(error = cause, status, upstream, id = %record.request_id, "ended by a panic");
        }
        // As often as clients like.
        Side::Gateway if error.is_crowded => {
            let told = upstream.and_then(|name| Some(&runtime.upstreams.get(name)?.refusals)).unwrap_or(&REFUSALS);
            if let Some(times) = told.happened() {
                tracing::warn!(error = cause, status, upstream, times, id = %record.request_id, "requests are refused");
            }
        }
        Side::Gateway => tracing::warn!(error = cause, status, upstream, id = %record.request_id, "request refused"),
        Side::Downstream => tracing::debug!(error = cause, status, id = %record.request_id, "request refused"),
    }
}

fn describe(error: &GatewayError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        // A message that quotes its cause has said it.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = source.source();
    }
    text
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let record = &mut *self.record;
        if !self.done {
            let drain = &self.connection.thread.drain;
            if std::thread::panicking() {
                if record.status == CLIENT_CLOSED_REQUEST.as_u16() {
                    record.status = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
                }
                record.note = Some(Cow::Borrowed("cut off by a panic, which the event log tells of"));
            } else if drain.is_cutting() {
                cut_off(record, drain);
            } else {
                record.status = CLIENT_CLOSED_REQUEST.as_u16();
            }
        }
        if let Some(passed) = &self.passed {
            record.bytes_received = passed.get();
        }
        if let Some(since) = self.queued {
            record.queue = Some(since.elapsed());
        }
        record.endpoint = self.trace.endpoint.as_ref().map(|endpoint| endpoint.label.clone());
        record.connect = self.trace.connect;
        record.head = self.trace.head;
        let total = record.started.elapsed();
        record.total = Some(total);
        let thread = &self.connection.thread;
        match &self.route {
            Some(metrics) => metrics.finished(record.status, total, record.bytes_received, record.bytes_sent),
            None => thread.metrics.unrouted.finished(record.status, total, record.bytes_received, record.bytes_sent),
        }
        thread.log(record);
    }
}

/// Requests that were refused for want of room, of no upstream.
static REFUSALS: Notice = Notice::new();
/// How many requests that a stop cuts off get an event of their own, and as many tunnels; all are in the access log.
const CUT_TOLD: u64 = 10;

/// A request body on its way through.
struct Counted {
    body: Body,
    passed: Rc<Cell<u64>>,
    limit: Option<u64>,
}

impl Counted {
    fn count(&self, bytes: usize) -> Result<(), GatewayError> {
        let passed = self.passed.get() + bytes as u64;
        self.passed.set(passed);
        match self.limit {
            Some(limit) if passed > limit => Err(too_large(limit)),
            _ => Ok(()),
        }
    }
}

impl Relay for Counted {
    fn poll_relay(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Option<Result<usize, GatewayError>>> {
        let relayed = ready!(self.body.poll_relay(cx, pipe));
        if let Some(Ok(count)) = relayed
            && let Err(error) = self.count(count)
        {
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(relayed)
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref())
            && let Err(error) = self.count(data.len())
        {
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
