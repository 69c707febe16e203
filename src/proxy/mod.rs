//! One exchange with an endpoint: connect, send, read the head; again where that is safe.
//!
//! Protocols only encode: [`uwsgi`] writes a packet, HTTP a head, and both are answered by an HTTP response,
//! which [`crate::h1`] reads. What to ask of which upstream, and what becomes of the answer, is
//! [`crate::service`]'s business.

mod buffered;
mod collect;
mod incoming;
mod left;
mod pieces;
mod probe;
pub mod uwsgi;
mod websocket;
mod wire;

use std::{
    error::Error as _,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode, response};
use tokio::time::{sleep, timeout};

pub use self::{
    collect::{Bounds, Collected, collect, too_large},
    incoming::Incoming,
    probe::{Look, look, probe},
    websocket::{Tunnel, TunnelCause, TunnelEnd},
};
use self::{
    left::Unanswered,
    uwsgi::Environment,
    wire::{EndpointWire, WireError},
};
use crate::{
    config::EndpointAddress,
    drain::Tasks,
    h1::encode,
    http::{Body, GatewayError, Retry, Side},
    metrics::{Outcome, UpstreamMetrics},
    spool::Spool,
    upstream::{Affinity, Endpoint, Failure, InFlight, Lease, Place, Pool, Upstream, UpstreamStream},
};

/// A request as an endpoint is to be told it.
#[derive(Debug)]
pub struct Outbound<'a> {
    pub method: &'a Method,
    pub head: Head<'a>,
    pub payload: Payload,
    /// What it has to say in where it goes.
    pub affinity: Affinity,
    /// A websocket handshake: `Connection: upgrade` is sent and `101` understood.
    pub upgrade: bool,
    /// The longest wait for one connection.
    pub connect_timeout: Duration,
    /// The longest pause while the request is sent or the response read.
    pub progress: Duration,
    /// From the request being sent to the response head.
    pub timeout: Duration,
}

impl Outbound<'_> {
    /// After `endpoint` has failed it.
    fn can_go_again(&self, retry: Retry, upstream: &Upstream, endpoint: &Endpoint) -> bool {
        let safe = match retry {
            Retry::Unsent => true,
            Retry::IfIdempotent => self.method.is_idempotent(),
            Retry::Elsewhere => self.method.is_idempotent() && upstream.has_another(endpoint),
            Retry::Never => false,
        };
        safe && self.payload.is_there()
    }
}

/// The head, for the protocol that is spoken.
#[derive(Debug)]
pub enum Head<'a> {
    Http { target: &'a str, headers: &'a HeaderMap },
    Uwsgi(Environment<'a>),
}

/// The request body.
#[derive(Debug)]
pub enum Payload {
    Collected(Collected),
    /// Passed on as it comes; `None` once it has been handed out, as it cannot be sent again.
    Streaming {
        body: Option<Body>,
        length: Option<u64>,
    },
}

/// The answer of an endpoint.
pub struct Reply {
    pub parts: response::Parts,
    pub body: Incoming,
    pub endpoint: Arc<Endpoint>,
}

/// What there is to log of an exchange, however it ends.
#[derive(Debug, Default)]
pub struct Trace {
    pub endpoint: Option<Arc<Endpoint>>,
    /// From the wish to connect to a connection.
    pub connect: Option<Duration>,
    /// From the first byte sent to the response head.
    pub head: Option<Duration>,
}

/// Sends `outbound` to an endpoint of `upstream` and reads the head of its answer.
///
/// An endpoint that cannot be connected to is tried again, or another one, for `hold`. A request of which nothing has gone is
/// sent again, and one that may have been acted on if its method is idempotent: at most twice, only if its body is still
/// there, and within the upstream's budget.
/// `place` is given back with the end of the response body, or with the error.
///
/// # Errors
///
/// 503 when no connection could be made or nothing is answered there, 504 when a timer ended, 502 when the endpoint broke off or did not speak
/// HTTP, 431 when the head does not fit into a uwsgi packet.
pub async fn send(
    outbound: &mut Outbound<'_>,
    upstream: &Upstream,
    place: Place,
    pool: &Rc<Pool>,
    trace: &mut Trace,
) -> Result<Reply, GatewayError> {
    let mut place = Some(place);
    let mut counted = Counted { metrics: &upstream.metrics, outcome: Outcome::Canceled };
    let mut again = REPEATS;
    upstream.count_request();
    let _trial =
        upstream.admit().map_err(|_| silent(&upstream.name)).inspect_err(|_| counted.outcome = Outcome::Refused)?;
    loop {
        let began = Instant::now();
        let can_repeat = again > 0 && outbound.method.is_idempotent();
        let connected = connect(upstream, pool, &outbound.affinity, outbound.connect_timeout, can_repeat).await;
        let (endpoint, lease) = connected.inspect_err(|_| counted.outcome = Outcome::ErrorConnect)?;
        let is_connected = Instant::now();
        trace.connect = Some(is_connected - began);
        trace.endpoint = Some(Arc::clone(&endpoint));
        let in_flight = upstream.enter(&endpoint);
        if upstream.is_halted() {
            // Since a moment ago; nothing has gone yet.
            continue;
        }
        let exchange = Exchange { endpoint: &endpoint, pool, in_flight, began: is_connected };
        let outcome = exchange.run(outbound, lease, &mut place, upstream).await;
        trace.head = Some(is_connected.elapsed());
        match outcome {
            Err(error)
                if again > 0 && outbound.can_go_again(error.retry, upstream, &endpoint) && upstream.may_retry() =>
            {
                outbound.affinity.avoid = Some(endpoint.id());
                // Who has waited for a whole timeout waits for one more, and no longer.
                again = if error.retry == Retry::Elsewhere { 0 } else { again - 1 };
                tracing::debug!(endpoint = %endpoint.label, error = &error as &dyn std::error::Error, "sending again");
            }
            outcome => {
                counted.outcome = match &outcome {
                    Ok(_) => Outcome::Ok,
                    Err(error) if error.side == Side::Downstream => Outcome::Canceled,
                    Err(error) if error.status == StatusCode::GATEWAY_TIMEOUT => Outcome::ErrorTimeout,
                    Err(_) => Outcome::ErrorProtocol,
                };
                return outcome;
            }
        }
    }
}

fn silent(upstream: &str) -> GatewayError {
    let message =
        format!("upstream {upstream} takes requests and answers none of them (upstreams.{upstream}.eject.failures)");
    // Told once, when it began.
    unavailable(message)
}

/// Counts an exchange when it is over; dropped before that, its client has gone.
struct Counted<'a> {
    metrics: &'a UpstreamMetrics,
    outcome: Outcome,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.finished(self.outcome);
    }
}

/// A connection to the endpoint that should have the next request, from the pool or new.
///
/// One that cannot be connected to is followed by the next one at once; with none that could be, all are tried again after a
/// pause. None is connected to while its program is about to be restarted by us.
async fn connect(
    upstream: &Upstream,
    pool: &Pool,
    affinity: &Affinity,
    connect_timeout: Duration,
    can_repeat: bool,
) -> Result<(Arc<Endpoint>, Lease), GatewayError> {
    let came = Instant::now();
    let mut held = came;
    let mut pause = FIRST_PAUSE;
    let mut refusals = 0;
    loop {
        while upstream.is_halted() {
            if came.elapsed() >= upstream.plan.hold {
                return Err(unavailable(format!("the program of {} is being restarted", upstream.name)));
            }
            sleep(FIRST_PAUSE).await;
            // It has all of `hold` to come back.
            held = Instant::now();
        }
        let refused = match upstream.select(affinity) {
            Some(endpoint) => match connect_to(&endpoint, upstream, pool, connect_timeout, can_repeat).await {
                Ok(lease) => return Ok((endpoint, lease)),
                Err(error) => unavailable(format!("endpoint {} cannot be connected to", endpoint.label)).source(error),
            },
            None => unavailable(format!("no endpoint of {} is there", upstream.name)),
        };
        let within = upstream.plan.hold.max(connect_timeout * 2);
        refusals += 1;
        if refusals < upstream.endpoints().len() && held.elapsed() < within && upstream.is_reachable() {
            continue;
        }
        refusals = 0;
        upstream.cannot_be_reached();
        let left = upstream.plan.hold.saturating_sub(held.elapsed());
        if upstream.lets_go() || left.is_zero() {
            return Err(refused);
        }
        sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One connection to `endpoint`, which is told in the log when that begins to fail and when it succeeds again.
async fn connect_to(
    endpoint: &Endpoint,
    upstream: &Upstream,
    pool: &Pool,
    connect_timeout: Duration,
    can_repeat: bool,
) -> Result<Lease, io::Error> {
    if can_repeat && let Some(lease) = pool.take(endpoint) {
        return Ok(lease);
    }
    // One that could not be connected to is tried by one request, for which the others do not wait.
    if endpoint.unreachable_for().is_some() {
        endpoint.pass_over(connect_timeout);
    }
    let connected = match &endpoint.address {
        EndpointAddress::Unix(path) => UpstreamStream::connect_unix(path),
        // On the heap by itself: a request that has its connection from the pool is not as large as one that connects.
        address @ EndpointAddress::Tcp { .. } => {
            match Box::pin(timeout(connect_timeout, UpstreamStream::connect(address))).await {
                Ok(connected) => connected,
                Err(elapsed) => Err(elapsed.into()),
            }
        }
    };
    let error = match connected {
        Ok(stream) => {
            upstream.connected(endpoint);
            return Ok(Lease::new(stream));
        }
        Err(error) => error,
    };
    endpoint.count_failure();
    upstream.refused(endpoint, &error);
    Err(error)
}

fn unavailable(message: String) -> GatewayError {
    GatewayError::upstream(StatusCode::SERVICE_UNAVAILABLE, message).retry(Retry::Unsent).retry_after(RETRY_AFTER)
}

/// One attempt on one connection.
struct Exchange<'a> {
    endpoint: &'a Arc<Endpoint>,
    pool: &'a Rc<Pool>,
    in_flight: InFlight,
    began: Instant,
}

impl Exchange<'_> {
    async fn run(
        self,
        outbound: &mut Outbound<'_>,
        lease: Lease,
        place: &mut Option<Place>,
        upstream: &Upstream,
    ) -> Result<Reply, GatewayError> {
        let reused = lease.is_reused();
        let (mut head, mut chunked) = (BytesMut::new(), false);
        match &outbound.head {
            Head::Uwsgi(environment) => uwsgi::encode(&mut head, environment).map_err(|error| {
                GatewayError::downstream(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, error.to_string())
                    .hint("The address and the cookies of this request are too long together.")
            })?,
            Head::Http { target, headers } => {
                let framing = outbound.payload.framing(outbound.method);
                chunked = framing == encode::Framing::Chunked;
                let connection = outbound.upgrade.then_some("upgrade");
                encode::request_head(&mut head, outbound.method, target, headers, framing, connection);
            }
        }
        let one_exchange = matches!(outbound.head, Head::Uwsgi(_));
        let wire = EndpointWire::new(lease, head, outbound.payload.take(), chunked);
        let mut unanswered = Unanswered::new(wire, self.in_flight, place, outbound.timeout);
        let wire = unanswered.wire();
        let read = wire.head(outbound.method, outbound.progress, outbound.timeout, outbound.upgrade, self.pool).await;
        let (wire, in_flight) = unanswered.over();
        match read {
            Ok(head) => {
                self.endpoint.answered();
                upstream.answered(self.endpoint, head.parts.status);
                let keep_alive = head.keep_alive && !one_exchange;
                let place = place.take();
                let body = Incoming::new(
                    wire,
                    head.body,
                    keep_alive,
                    Arc::clone(self.endpoint),
                    in_flight,
                    place,
                    Rc::clone(self.pool),
                    outbound.progress,
                );
                Ok(Reply { parts: head.parts, body, endpoint: Arc::clone(self.endpoint) })
            }
            Err(error) => {
                let answered = wire.is_answered();
                match &error {
                    // It has begun to answer, with 103 for example: this request is slow, and it is not silent.
                    WireError::SendTimeout(_) | WireError::HeadTimeout(_) if answered => {}
                    WireError::RequestBody(_) => {}
                    WireError::SendTimeout(waited) | WireError::HeadTimeout(waited) => {
                        upstream.failed(self.endpoint, Failure::silent(*waited, self.began.elapsed()));
                    }
                    _ if reused && !answered => {
                        tracing::debug!(endpoint = %self.endpoint.label, "an idle connection was closed under a request");
                    }
                    _ => upstream.failed(self.endpoint, Failure::Unanswered),
                }
                Err(refusal(error, self.endpoint, answered, wire.is_begun()))
            }
        }
    }
}

/// What the client is told when no head came, and whether the request may be sent again.
fn refusal(error: WireError, endpoint: &Endpoint, answered: bool, begun: bool) -> GatewayError {
    let error = match error {
        WireError::RequestBody(error) => return error,
        error => error,
    };
    let (status, retry) = match &error {
        WireError::SendTimeout(_) | WireError::HeadTimeout(_) => {
            (StatusCode::GATEWAY_TIMEOUT, if answered { Retry::Never } else { Retry::Elsewhere })
        }
        WireError::Send(_) | WireError::Receive(_) | WireError::Closed if !answered => {
            (StatusCode::BAD_GATEWAY, if begun { Retry::IfIdempotent } else { Retry::Unsent })
        }
        _ => (StatusCode::BAD_GATEWAY, Retry::Never),
    };
    let message = match error.source() {
        Some(source) => format!("endpoint {}: {error}: {source}", endpoint.label),
        None => format!("endpoint {}: {error}", endpoint.label),
    };
    GatewayError::upstream(status, message).retry(retry).source(error)
}

impl Payload {
    /// The body, for sending; a collected one can be had again.
    fn take(&mut self) -> Body {
        match self {
            Self::Collected(collected) => collected.body(),
            Self::Streaming { body, .. } => body.take().unwrap_or(Body::Empty),
        }
    }

    fn is_there(&self) -> bool {
        !matches!(self, Self::Streaming { body: None, .. })
    }

    fn framing(&self, method: &Method) -> encode::Framing {
        let length = match self {
            Self::Collected(collected) => Some(collected.length()),
            Self::Streaming { length, .. } => *length,
        };
        match length {
            // Without a body there is nothing to frame, except where one is expected (RFC 9110, 8.6).
            Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => encode::Framing::Unsaid,
            Some(length) => encode::Framing::Length(length),
            None => encode::Framing::Chunked,
        }
    }
}

impl Reply {
    /// The body for the client: as it comes, or drained off the endpoint.
    pub fn into_body(mut self, delivery: Delivery, spool: &Arc<Spool>, tasks: &Tasks) -> (response::Parts, Body) {
        let body = match self.body.take_if_whole() {
            Some(whole) => Body::from(whole),
            None if delivery == Delivery::AsItComes => Body::relay(self.body),
            None => buffered::drain(self.body, Arc::clone(spool), tasks),
        };
        (self.parts, body)
    }

    /// The connection, after `101 (Switching Protocols)`; `None` if the endpoint has closed it meanwhile.
    pub fn into_tunnel(self, idle: Duration) -> (response::Parts, Option<Tunnel>) {
        let tunnel = self.body.into_wire().map(|(wire, in_flight)| Tunnel::new(wire, in_flight, self.endpoint, idle));
        (self.parts, tunnel)
    }
}

/// How a response body travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The endpoint is drained at its own speed.
    Buffered,
    /// Each piece at once, the endpoint slowed by a slow client.
    AsItComes,
}

/// How often a request whose connection was closed unanswered is sent again. A process that is being stopped takes two:
/// the one it was serving, and the one that waited at its socket, which closes last. A request that ends three
/// connections ends no more.
const REPEATS: u8 = 2;
/// Between two attempts to connect: from this, doubled, up to that.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// What a client is told to wait when no endpoint could be connected to.
const RETRY_AFTER: Duration = Duration::from_secs(10);
