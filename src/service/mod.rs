//! The path of a request, every step in order.
//!
//! [`serve`] is one plain function: the order of its steps is a promise, and where a step must stand where it stands, a
//! comment says why. Each step's doing is elsewhere.

mod access;
mod answer;
mod connection;
mod hops;
mod log;
mod log_server;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::FutureExt;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request, response,
};
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::{
    answer::Answer,
    connection::{Connection, TrafficThread},
    hops::{Hop, Hops, Mismatch, Seen},
    log::LogGuard,
};
use crate::{
    config::{EndpointAddress, HostName, LimitsPlan, Protocol, Slash, Stick, UpstreamPlan},
    files::{self, Target},
    h1::{Glimpse, HeadError},
    http::{
        Body, GatewayError, Retry,
        authority::Authority,
        client_certificate, compress,
        forwarded::{Origin, Scheme},
        headers,
        location::Mapping,
        pace::Paced,
        page::{Accept, is_api},
        path::Path,
    },
    limits::Requests,
    proxy::{
        self, Bounds, Collected, Delivery, Head, Outbound, Payload, Reply, Trace, Tunnel, TunnelCause,
        uwsgi::Environment,
    },
    route::Match,
    runtime::{Route, Runtime},
    turns,
    upstream::{Affinity, Class, Client, Place, Refused, Who},
};

/// Answers `request`, whatever happens; one line is logged when the answer is dropped.
///
/// Cancelled when the client goes: then the request leaves the queue, or its connection to the endpoint is closed, of which
/// the application may not hear (`proxy::left`).
pub async fn serve(request: Request<Body>, connection: &Rc<Connection>) -> Answer {
    let (mut head, body) = request.into_parts();
    let mut log = LogGuard::begin(connection, &head);
    // A panic ends this request and nothing else: what it had in hand, a place and a connection, is dropped with it, and
    // what it shares with others is whole whenever it is let go of.
    let responding = AssertUnwindSafe(respond(&mut head, body, connection, &mut log)).catch_unwind();
    let reached = responding.await.unwrap_or_else(|_| Err(GatewayError::panicked()));
    // It may have had a place.
    turns::cost(turns::ONE);
    match reached {
        Ok(Reached::Response(response)) => Answer::new(response, log),
        Ok(Reached::Tunnel(response, tunnel)) => Answer::switching(response, tunnel, log),
        Err(error) => Answer::failed(&error, answer::form(&head), log),
    }
}

enum Reached {
    Response(Response<Body>),
    Tunnel(response::Parts, Tunnel),
}

async fn respond(
    request: &mut request::Parts,
    body: Body,
    connection: &Rc<Connection>,
    log: &mut LogGuard,
) -> Result<Reached, GatewayError> {
    let thread = &connection.thread;
    // What this request sees, to its end, whatever is reloaded meanwhile.
    let runtime = Rc::clone(log.runtime());

    // Before any redirect and any limit: whether a name is ours is asked here.
    if let Some(token) = answer::challenge_token(request)
        && let Some(page) = answer::challenge(&thread.certificates, token).await
    {
        return Ok(Reached::Response(page));
    }
    // Before any route: what comes in on this listener is on its way elsewhere.
    if let Some(target) = &connection.listener.redirect {
        return Ok(Reached::Response(answer::redirect_to_https(target, &request.uri)));
    }

    // Before anything is made for a client that is to come again; it is not told of each in the error log.
    if connection.turned_away || connection.is_to_refuse() {
        log.close();
        let busy = GatewayError::downstream(
            StatusCode::SERVICE_UNAVAILABLE,
            "no memory for one more client (`limits.memory`)",
        );
        return Err(busy.hint("Too many are here at the moment. Try again soon.").retry_after(MEMORY_RETRY));
    }
    // For HTTP/2 as for HTTP/1.1, where they were kept while reading.
    check_limits(request, &runtime.plan.limits)?;
    // One reading of where the request is going, for everything below.
    headers::check_framing(&request.headers)?;
    if let Some(server) = &connection.listener.log_server {
        return log_server::answer(server, request, connection, log).await.map(Reached::Response);
    }
    let authority = Authority::read(&request.headers, &request.uri, request.version)?;
    if request.method == Method::OPTIONS && request.uri.path() == "*" {
        return Ok(Reached::Response(answer::about_the_server()));
    }
    let uri = request.uri.clone();
    let target = origin_form(&request.method, &uri)?;
    let path = Path::read(uri.path())?;
    let mut origin = Origin::of(
        &connection.peer,
        connection.tls.is_some(),
        connection.local_port,
        &authority,
        &request.headers,
        &runtime.plan.trusted_proxies,
    );
    // A balancer that does not set X-Forwarded-Host passes on whatever its client sent.
    if origin.trusted && runtime.plan.host.is_some() && !is_known(&runtime, connection, origin.host.host()) {
        origin.take_host(&authority);
    }
    log.client(origin.client);
    if thread.next_look.is_due(log.began()) {
        thread.hops.note(&connection.peer, &origin, &request.headers);
    }
    let upgrade = wants_websocket(request);
    // Whoever looks whether the application is well is not to be told that others ask too much.
    let looks = matches!(request.method, Method::GET | Method::HEAD) && runtime.is_health_path(path.raw());
    let counts = !looks;
    if counts {
        limit_requests(&runtime.requests, &runtime, &origin, request, thread)?;
    }
    refuse_misdirected(&runtime, connection, &origin, request.version, upgrade)?;
    if let Some(host) = redirected_host(&runtime, connection, &origin, &path, upgrade) {
        return Ok(Reached::Response(answer::redirect_to_host(host, origin.port, target)));
    }
    // Before the application is asked, which is well: a load balancer that looks here is to look elsewhere.
    if thread.drain.is_closing() && runtime.is_health_path(path.raw()) {
        return Err(GatewayError::crowded("draining: about to stop"));
    }
    let Some(found) = runtime.routes.find(origin.host.host(), &path) else {
        return Err(GatewayError::downstream(StatusCode::NOT_FOUND, "no route for this path"));
    };
    let route: &Route = found.value;
    log.route(route, origin.scheme, &request.headers);
    // Where the application may read another path than we do, who is kept out or counted there is so here.
    let others =
        if runtime.is_guarded { runtime.routes.find_as_others(origin.host.host(), &path) } else { [None, None] };
    let others = others.map(|other| other.filter(|other| !Arc::ptr_eq(other, found.value)).map(|other| &**other));
    let guards = || [Some(route), others[0], others[1]].into_iter().flatten();
    // Before the route answers anything.
    for guard in guards() {
        if counts {
            limit_requests(&guard.requests, &runtime, &origin, request, thread)?;
        }
        access::admit(&guard.plan, &origin)?;
        if guard.plan.client_certificate {
            demand_certificate(connection)?;
        }
    }

    headers::strip_hop_by_hop(&mut request.headers);
    headers::sanitize_request(&mut request.headers);
    origin.apply(&mut request.headers);
    if connection.listener.client_ca.is_some() {
        client_certificate::tell(connection.client_certificate(), &mut request.headers);
    }
    authority.set_host(&mut request.headers);
    if authority.is_empty() {
        // A client of HTTP/1.0 need not name a host, but what goes on is HTTP/1.1 (RFC 9112, 3.2).
        request.headers.insert(header::HOST, host_for_nobody(&runtime));
    }

    let asks = guards().any(|guard| guard.plan.access.asks());
    if asks && access::is_preflight(route, request) {
        return Ok(Reached::Response(answer::about_the_server()));
    }
    // Here and below: what could wait is moved to its place with all its room, so it is not begun where there is nothing to wait for.
    for guard in guards().filter(|_| asks) {
        access::demand_password(guard, &runtime, &mut request.headers, &origin, log).await?;
    }
    // Not the health path: whoever asks there asks for just this. And before another server is asked, which may be a page of
    // the application that is starting.
    if route.upstream.is_starting() && !runtime.is_health_path(path.raw()) {
        return Err(not_ready(&route.upstream.name));
    }
    // Before another server is asked, which need not know it either and may set another one.
    for guard in guards() {
        access::keep_password(guard, &mut request.headers);
    }
    // With headers that are true, so that it can believe what it is told.
    for guard in guards().filter(|_| asks) {
        if let Some(answer) = access::ask(guard, request, target, &origin, connection, log).await? {
            return Ok(Reached::Response(answer));
        }
    }
    if found.bare && route.plan.slash == Slash::Redirect {
        return Ok(Reached::Response(answer::redirect_to_slash(&path, uri.query())));
    }

    // Before the body: a client that is told no need not send it.
    let limit = route.plan.body_limit;
    if let (Some(length), Some(limit)) = (body.length(), limit)
        && length > limit
    {
        return Err(proxy::too_large(limit));
    }

    // To an application behind uwsgi it is a request as any other.
    let upgrade = upgrade && route.upstream.plan.protocol == Protocol::Http;
    if upgrade {
        request.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    // Before the queue: a place is worth more than our memory, and an application thread more than both.
    let progress = log.patience().progress;
    let payload = match body.length() {
        Some(0) => Payload::Collected(Collected::EMPTY),
        length => receive(body, length, route, log).await?,
    };
    // A handshake has to wait as any request, or it would be a way past the queue; what comes of it holds no place.
    let place = match route.upstream.queue.enter_at_once() {
        Some(place) => {
            log.waited_for_nobody();
            place
        }
        None => wait_for_place(route, &path, request, &origin, log).await?,
    };

    let affinity = affinity(route, &origin, &request.headers);
    let stuck = affinity.endpoint.as_ref().map(|endpoint| endpoint.id());
    let view = View { request, path: &path, origin: &origin, found: &found, target, progress };
    let mut reply = exchange(&view, payload, affinity, place, upgrade, thread, &mut log.trace).await?;

    headers::strip_response(&mut reply.parts.headers);
    if let Some(cookies) = &route.cookies
        && stuck != Some(reply.endpoint.id())
    {
        let cookie = cookies.naming(&reply.endpoint, origin.scheme == Scheme::Https);
        reply.parts.headers.append(header::SET_COOKIE, cookie);
    }
    if reply.parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, tunnel) = reply.into_tunnel(route.plan.tunnel_idle);
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let closed =
            || GatewayError::upstream(StatusCode::BAD_GATEWAY, "the endpoint closed its new websocket at once");
        return Ok(Reached::Tunnel(parts, tunnel.ok_or_else(closed)?));
    }
    rewrite_location(&mut reply, &origin, route);

    // Before the body is looked at: with an offload comes the length of the file, and no body.
    let offload = files::take_offload(&mut reply.parts.headers, &route.plan.accel_prefix);
    let (mut parts, body) = match offload.target {
        Some(target) if !route.files.is_empty() => offloaded(route, &target, request, reply).await?.into_parts(),
        Some(_) => return Err(files_not_allowed(route)),
        None => {
            let delivery = delivery(route, &reply.parts.headers, offload.buffering);
            reply.into_body(delivery, &runtime.spool, &connection.tasks)
        }
    };
    #[cfg(test)]
    let body = tests::faulty(path.raw(), body);
    let body =
        if route.plan.compress { compress::apply(&request.headers, &request.method, &mut parts, body) } else { body };
    Ok(Reached::Response(Response::from_parts(parts, body)))
}

/// Answers what was refused before there was a request, of which `glimpse` could be made out.
pub fn refuse(connection: &Rc<Connection>, error: &GatewayError, glimpse: Glimpse) -> Answer {
    let form = Accept::read(&glimpse.headers, glimpse.target.as_ref().is_some_and(|target| is_api(target.path())));
    let mut log = LogGuard::unread(connection, glimpse);
    log.close();
    Answer::failed(error, form, log)
}

/// Carries a websocket to its end and logs it.
pub async fn tunnel<Io: AsyncRead + AsyncWrite + Unpin>(
    tunnel: Box<Tunnel>,
    client: &mut Io,
    early: BytesMut,
    mut log: Box<LogGuard>,
    connection: &Rc<Connection>,
) {
    log.detach();
    let counted = connection.thread.metrics.tunnels.hold();
    let end = tunnel.run(client, early, &connection.thread.drain).await;
    drop(counted);
    log.sent(end.sent);
    log.received(end.received);
    match end.cause {
        TunnelCause::Closed => {}
        TunnelCause::Idle => log.note("nothing moved for the route's `tunnel_idle`"),
        TunnelCause::Drained => log.note("closed by a stop"),
        TunnelCause::Failed(error) => log.note(error.to_string()),
    }
    log.complete();
}

fn check_limits(request: &request::Parts, limits: &LimitsPlan) -> Result<(), GatewayError> {
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > limits.uri_bytes {
        return Err(HeadError::TargetTooLong(limits.uri_bytes).into());
    }
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + FIELD_OVERHEAD;
    if request.version == Version::HTTP_2 && request.headers.iter().map(field).sum::<usize>() > limits.header_bytes {
        return Err(HeadError::TooLarge(limits.header_bytes).into());
    }
    if request.headers.len() > limits.header_count {
        return Err(HeadError::TooManyFields(limits.header_count).into());
    }
    Ok(())
}

/// Counts the request, unless there were too many.
fn limit_requests(
    limits: &Requests,
    runtime: &Runtime,
    origin: &Origin,
    request: &request::Parts,
    thread: &TrafficThread,
) -> Result<(), GatewayError> {
    let plan = &runtime.plan;
    let counted = limits.count(origin.client, &request.headers, &plan.limits, &plan.trusted_proxies);
    counted.inspect_err(|_| thread.metrics.requests_limited.inc())
}

/// The request target as it is forwarded: the path and the query, as they came (RFC 9112, 3.2.1).
pub(crate) fn origin_form<'a>(method: &Method, uri: &'a Uri) -> Result<&'a str, GatewayError> {
    if *method == Method::CONNECT {
        return Err(GatewayError::downstream(StatusCode::NOT_IMPLEMENTED, "CONNECT is for forward proxies"));
    }
    let target = uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    target
        .filter(|target| target.starts_with('/'))
        .ok_or_else(|| GatewayError::downstream(StatusCode::BAD_REQUEST, "the request target has no path"))
}

/// By the header, whatever the query says; nothing but websockets is switched to (RFC 6455, 4.1).
fn wants_websocket(request: &request::Parts) -> bool {
    request.version == Version::HTTP_11
        && request.method == Method::GET
        && headers::has_token(&request.headers, &header::UPGRADE, "websocket")
        && headers::has_token(&request.headers, &header::CONNECTION, "upgrade")
}

/// What counts is the handshake of this very connection: no header, and no proxy.
fn demand_certificate(connection: &Connection) -> Result<(), GatewayError> {
    if connection.client_certificate().is_some() {
        return Ok(());
    }
    let (message, hint) = if connection.listener.client_ca.is_some() {
        (
            "the client has shown no certificate",
            "It takes a certificate, and the browser has shown none. If you have one, install it in the browser, close all \
             windows of it and come again.",
        )
    } else {
        (
            "no certificate is asked for on this listener",
            "It takes a certificate, which is asked for at another address of this site.",
        )
    };
    let message = format!("{message} (routes[].client_certificate)");
    Err(GatewayError::downstream(StatusCode::FORBIDDEN, message).hint(hint))
}

/// A host whose certificate is another one than this connection was opened with: the client reuses a connection it
/// should not (RFC 9110, 7.4).
fn refuse_misdirected(
    runtime: &Runtime,
    connection: &Connection,
    origin: &Origin,
    version: Version,
    upgrade: bool,
) -> Result<(), GatewayError> {
    let Some(name) = connection.tls.as_ref().and_then(|tls| tls.server_name.as_deref()) else { return Ok(()) };
    let host = origin.host.host();
    if origin.trusted || upgrade || host.eq_ignore_ascii_case(name) || version < Version::HTTP_2 {
        return Ok(());
    }
    let certificates = &connection.thread.certificates;
    let (opened, wanted) = (certificates.certificate_for(name), certificates.certificate_for(host));
    if runtime.knows(host) && wanted.is_some() && opened != wanted {
        return Err(GatewayError::downstream(
            StatusCode::MISDIRECTED_REQUEST,
            format!("{host} was asked for on a connection to {name}, which has another certificate"),
        ));
    }
    Ok(())
}

/// The canonical host, when this request is for a host that is not the site's.
///
/// On TLS listeners only, and never for a websocket handshake, which cannot follow, for the exact health path, which
/// is asked for by address, and behind a proxy, which has decided already.
fn redirected_host<'a>(
    runtime: &'a Runtime,
    connection: &Connection,
    origin: &Origin,
    path: &Path<'_>,
    upgrade: bool,
) -> Option<&'a str> {
    let canonical = runtime.plan.host.as_ref()?.as_str();
    if connection.tls.is_none() || origin.trusted || upgrade {
        return None;
    }
    let host = origin.host.host();
    (!is_known(runtime, connection, host) && !runtime.is_health_path(path.raw())).then_some(canonical)
}

fn host_for_nobody(runtime: &Runtime) -> HeaderValue {
    let host = runtime.plan.host.as_ref().map(HostName::as_str);
    host.and_then(|host| HeaderValue::from_str(host).ok()).unwrap_or(HeaderValue::from_static("localhost"))
}

fn is_known(runtime: &Runtime, connection: &Connection, host: &str) -> bool {
    runtime.knows(host) || connection.thread.certificates.is_configured_for(host)
}

/// The request body: whole, or as it comes where the route says so and the endpoint can be told its length.
async fn receive(body: Body, length: Option<u64>, route: &Route, log: &mut LogGuard) -> Result<Payload, GatewayError> {
    let patience = log.patience();
    let body = Paced::body(body, patience);
    let says_length = length.is_some() || route.upstream.plan.protocol == Protocol::Http;
    if !route.plan.buffer_request && says_length {
        log.received(length.unwrap_or(0));
        let body = log.counted(body, route.plan.body_limit);
        return Ok(Payload::Streaming { body: Some(body), length });
    }
    let bounds = Bounds { limit: route.plan.body_limit, progress: patience.progress };
    let spool = Arc::clone(&log.runtime().spool);
    let collected = proxy::collect(body, bounds, &spool).await?;
    log.received(collected.length());
    Ok(Payload::Collected(collected))
}

async fn wait_for_place(
    route: &Route,
    path: &Path<'_>,
    request: &request::Parts,
    origin: &Origin,
    log: &mut LogGuard,
) -> Result<Place, GatewayError> {
    let upstream = &route.upstream;
    let who = || Who { class: class(&upstream.plan, path.raw(), &request.headers), client: Client::of(origin.client) };
    log.queue_begins();
    let entered = upstream.queue.enter(who).await;
    log.queue_ends();
    entered.map_err(|refused| {
        let name = &upstream.name;
        let message = match refused {
            Refused::Full => format!("the queue of upstream {name} is full (upstreams.{name}.queue.limit)"),
            Refused::TimedOut => format!("no place in upstream {name} in time (upstreams.{name}.queue.timeout)"),
        };
        GatewayError::crowded(message).retry_after(answer::QUEUE_RETRY)
    })
}

/// How soon a request is let in. A session cannot be verified here: whoever makes one up goes before those who have none,
/// and not before others of its kind.
fn class(plan: &UpstreamPlan, path: &str, headers: &HeaderMap) -> Class {
    let pages = [&plan.health_path, &plan.ready_path].into_iter().flatten();
    if pages.filter_map(|page| page.split('?').next()).any(|page| page == path) {
        return Class::Health;
    }
    let is_session = |name: &[u8]| plan.queue.sessions.iter().any(|session| session.as_bytes() == name);
    let cookies =
        headers.get_all(header::COOKIE).into_iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let names = cookies.map(|cookie| cookie.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii());
    if names.into_iter().any(is_session) { Class::Session } else { Class::Other }
}

/// A request, and what has been read out of it.
struct View<'a> {
    request: &'a request::Parts,
    path: &'a Path<'a>,
    origin: &'a Origin,
    found: &'a Match<'a, Arc<Route>>,
    /// Path and query as they came.
    target: &'a str,
    progress: Duration,
}

/// What keeps this client at one endpoint, if anything does.
fn affinity(route: &Route, origin: &Origin, headers: &HeaderMap) -> Affinity {
    let endpoint = route.cookies.as_ref().and_then(|cookies| cookies.read(headers, &route.upstream));
    Affinity { client: origin.client, endpoint, by_client: route.plan.stick == Some(Stick::Sid), avoid: None }
}

async fn exchange(
    view: &View<'_>,
    payload: Payload,
    affinity: Affinity,
    place: Place,
    upgrade: bool,
    thread: &TrafficThread,
    trace: &mut Trace,
) -> Result<Reply, GatewayError> {
    let route: &Route = view.found.value;
    let strip = route.plan.strip_prefix;
    let target: Cow<'_, str> = if strip { view.found.strip(view.target) } else { Cow::Borrowed(view.target) };
    let path_info;
    let head = match route.upstream.plan.protocol {
        Protocol::Http => Head::Http { target: &target, headers: &view.request.headers },
        Protocol::Uwsgi => {
            path_info = path_info_of(view, &target)?;
            let content_length = match &payload {
                Payload::Collected(collected) if collected.length() == 0 => None,
                Payload::Collected(collected) => Some(collected.length()),
                Payload::Streaming { length, .. } => *length,
            };
            Head::Uwsgi(Environment {
                method: &view.request.method,
                version: view.request.version,
                target: view.target,
                query: view.request.uri.query().unwrap_or_default(),
                path_info: &path_info,
                script_name: if strip { route.plan.prefix.as_str() } else { "" },
                https: view.origin.scheme == Scheme::Https,
                client: view.origin.client,
                user: access::user(route, &view.request.headers),
                server_name: view.origin.host.host(),
                server_port: view.origin.port,
                content_length,
                headers: &view.request.headers,
            })
        }
    };
    let mut outbound = Outbound {
        method: &view.request.method,
        head,
        payload,
        affinity,
        upgrade,
        connect_timeout: route.plan.connect_timeout.unwrap_or(route.upstream.plan.connect_timeout),
        progress: view.progress,
        timeout: route.plan.timeout,
    };
    proxy::send(&mut outbound, &route.upstream, place, &thread.pool, trace).await
}

/// Decoded, slashes merged; the bare form of a prefix is its root, as behind nginx and Apache.
fn path_info_of(view: &View<'_>, target: &str) -> Result<Vec<u8>, GatewayError> {
    let stripped = view.found.value.plan.strip_prefix;
    let mut path_info = if stripped {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Path::read(path)?.decoded_merged().into_owned()
    } else {
        view.path.decoded_merged().into_owned()
    };
    if view.found.bare && !path_info.ends_with(b"/") {
        path_info.push(b'/');
    }
    Ok(path_info)
}

fn rewrite_location(reply: &mut Reply, origin: &Origin, route: &Route) {
    let endpoint = match &reply.endpoint.address {
        // By the name it is known by: it has not been told its address either.
        EndpointAddress::Tcp { host, port } => Some((reply.endpoint.host().unwrap_or(host), *port)),
        EndpointAddress::Unix(_) => None,
    };
    let stripped = if route.plan.strip_prefix { route.plan.prefix.as_str() } else { "" };
    Mapping { scheme: origin.scheme, host: origin.host.text(), stripped, endpoint }.apply(&mut reply.parts.headers);
}

async fn offloaded(
    route: &Route,
    target: &Target,
    request: &request::Parts,
    reply: Reply,
) -> Result<Response<Body>, GatewayError> {
    // The application is done: its place goes to the next one while the file is sent.
    let Reply { parts, body, .. } = reply;
    drop(body);
    files::send(&route.files, target, &request.method, &request.headers, parts).await
}

fn not_ready(upstream: &str) -> GatewayError {
    let message = format!("upstream {upstream} is not ready yet (upstreams.{upstream}.health.ready)");
    GatewayError::upstream(StatusCode::SERVICE_UNAVAILABLE, message).retry(Retry::Unsent)
}

fn files_not_allowed(route: &Route) -> GatewayError {
    GatewayError::gateway(
        StatusCode::NOT_FOUND,
        format!("the application names a file to send; list its folder in `files` of the route {}", route.name),
    )
}

fn delivery(route: &Route, headers: &HeaderMap, asked: Option<bool>) -> Delivery {
    let streamed = || {
        let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        value.is_some_and(|value| value.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream")))
    };
    if !route.plan.buffer_response || asked == Some(false) || streamed() {
        Delivery::AsItComes
    } else {
        Delivery::Buffered
    }
}

/// When a client is told to come again for which there was no memory.
const MEMORY_RETRY: Duration = Duration::from_secs(10);
/// What a field of HTTP/1.1 has beside its name and value: `: ` and the line end.
const FIELD_OVERHEAD: usize = 4;
