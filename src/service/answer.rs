//! What goes back to the client: an endpoint's answer, or one of our own.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Uri, header, request, response};

use super::LogGuard;
use crate::{
    backends::ProgramState,
    config::HttpsRedirect,
    http::{
        Body, GatewayError, Side,
        page::{Accept, Missing, Page, Stage, Waiting, is_api},
        path::Path,
    },
    proxy::Tunnel,
    runtime::Runtime,
    tls::CertificateStore,
    upstream::{Phase, Upstream},
};

/// A response, or the start of a tunnel, with the line that will be logged of it.
pub struct Answer {
    pub response: Response<Body>,
    /// With a `101`: what the connection becomes.
    pub tunnel: Option<Box<Tunnel>>,
    pub log: LogGuard,
}

impl Answer {
    pub(super) fn new(mut response: Response<Body>, mut log: LogGuard) -> Self {
        log.allow_origin(response.headers_mut());
        log.security_headers(response.headers_mut());
        log.server_timing(response.headers_mut());
        log.status(response.status());
        Self { response, tunnel: None, log }
    }

    pub(super) fn switching(parts: response::Parts, tunnel: Tunnel, mut log: LogGuard) -> Self {
        log.status(parts.status);
        Self { response: Response::from_parts(parts, Body::Empty), tunnel: Some(Box::new(tunnel)), log }
    }

    /// The page for `error`; this is where an error ends, and is told.
    pub(super) fn failed(error: &GatewayError, form: Accept, mut log: LogGuard) -> Self {
        log.refused(error);
        // A request that was refused for its form may have an end we do not see. What a panic leaves of one, too.
        // Browsers come again at once: after 404 with another path, after 401 with a password, after 429 later.
        let is_well_formed =
            matches!(error.status, StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS);
        if error.side == Side::Downstream && !is_well_formed || error.is_panic() {
            log.close();
        }
        let id = log.request_id().to_string();
        let runtime = Rc::clone(log.runtime());
        let shown = error.status == StatusCode::SERVICE_UNAVAILABLE;
        let missing: Vec<_> =
            runtime.upstreams.values().filter(|_| shown).filter_map(|upstream| upstream.missing()).collect();
        let mut page = Page::of(error, &id);
        page.administrator = runtime.plan.administrator.as_deref();
        page.waiting = waiting(error, &runtime, &log, &missing);
        let mut response = page.response(form);
        if let Some(challenge) = &error.challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::clone(challenge));
        }
        Self::new(response, log)
    }
}

/// What the page for `error` says of the application, where that is what the client waits for.
fn waiting<'a>(
    error: &GatewayError,
    runtime: &'a Runtime,
    log: &LogGuard,
    missing: &'a [Missing],
) -> Option<Waiting<'a>> {
    let upstream = log.upstream().and_then(|name| runtime.upstreams.get(name));
    let ready = |upstream: &'a Arc<Upstream>| upstream.plan.ready_path.as_deref();
    let program = upstream.and_then(|upstream| upstream.program.as_ref()).filter(|program| program.is_down());
    let down = program.and_then(|program| program.seen().down());
    let stage = match error.side {
        _ if error.status != StatusCode::SERVICE_UNAVAILABLE => return None,
        Side::Gateway if log.is_stopping() => Stage::Stopping,
        Side::Upstream if down == Some(ProgramState::Stopped) => Stage::Stopped,
        Side::Upstream if down.is_some() => Stage::Failed,
        Side::Upstream if upstream.is_some_and(|upstream| upstream.is_silent()) => Stage::Gone,
        Side::Upstream => match upstream.and_then(|upstream| upstream.readiness.as_ref()).map(|known| known.phase()) {
            Some(Phase::Gone) => Stage::Gone,
            Some(Phase::Stopping) => Stage::Stopping,
            _ => Stage::Starting,
        },
        Side::Gateway | Side::Downstream => return None,
    };
    // Of this one alone: another may be ready all the time.
    let poll = upstream.and_then(ready);
    Some(Waiting { stage, missing, poll })
}

/// In which form this client wants to be told what went wrong.
pub(super) fn form(request: &request::Parts) -> Accept {
    Accept::read(&request.headers, is_api(request.uri.path()))
}

/// `redirect: https` of a listener: the same URL, as it came, on the canonical host.
pub(super) fn redirect_to_https(target: &HttpsRedirect, uri: &Uri) -> Response<Body> {
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let path = if path.starts_with('/') { path } else { "/" };
    redirect(StatusCode::MOVED_PERMANENTLY, &url(target.host.as_str(), target.port, path))
}

/// What is asked for where a CA looks to see that a name is ours (RFC 8555, 8.3).
pub(super) fn challenge_token(request: &request::Parts) -> Option<&str> {
    let token = request.uri.path().strip_prefix("/.well-known/acme-challenge/")?;
    matches!(request.method, Method::GET | Method::HEAD).then_some(token)
}

/// What a CA is to find there, while an order waits for it; whose path it is otherwise is for the routes to say.
pub(super) async fn challenge(certificates: &CertificateStore, token: &str) -> Option<Response<Body>> {
    let page = certificates.challenges().page(token).await?;
    let mut response = Response::new(Body::from(Bytes::copy_from_slice(page.as_bytes())));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

/// The same URL on the canonical host.
pub(super) fn redirect_to_host(host: &str, port: u16, target: &str) -> Response<Body> {
    redirect(StatusCode::MOVED_PERMANENTLY, &url(host, port, target))
}

/// The answer to `OPTIONS *`, which asks whether anybody is there (RFC 9110, 9.3.7).
pub(super) fn about_the_server() -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The bare form of a prefix, with its slash; 308 keeps the method and the body.
pub(super) fn redirect_to_slash(path: &Path<'_>, query: Option<&str>) -> Response<Body> {
    let raw = path.raw();
    // Two slashes at the start would name a host.
    let raw = format!("/{}", raw.trim_start_matches('/'));
    let target = match query {
        Some(query) => format!("{raw}/?{query}"),
        None => format!("{raw}/"),
    };
    redirect(StatusCode::PERMANENT_REDIRECT, &target)
}

fn url(host: &str, port: u16, target: &str) -> String {
    if port == 443 { format!("https://{host}{target}") } else { format!("https://{host}:{port}{target}") }
}

fn redirect(status: StatusCode, location: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    // What was read as a URI is a header value; a target that is not would be a fault in the reading.
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// What a client is told to wait when an upstream has no place.
pub(super) const QUEUE_RETRY: Duration = Duration::from_secs(5);
