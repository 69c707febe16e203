//! Who may use a route: what is looked at before anything else is done for a request.

use std::time::Duration;

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request};
use tokio::time::timeout;

use super::{Connection, LogGuard, TrafficThread, class};
use crate::{
    access::Verdict,
    config::{BasicAuthPlan, ForwardAuthPlan, Protocol, RoutePlan},
    files,
    http::{
        Body, GatewayError,
        forwarded::{Origin, Scheme},
        headers,
        path::Path,
    },
    proxy::{self, Collected, Delivery, Head, Outbound, Payload, Trace, uwsgi::Environment},
    runtime::{Route, Runtime},
    turns,
    upstream::{Affinity, Client, Upstream, Who},
};

/// By the address that the application is told of.
pub(super) fn admit(plan: &RoutePlan, origin: &Origin) -> Result<(), GatewayError> {
    let Some(key) = plan.access.refuses(origin.client) else { return Ok(()) };
    let message = format!("the client's address is not let in (routes[].{key})");
    Err(GatewayError::downstream(StatusCode::FORBIDDEN, message))
}

/// Whether this is a browser's question what pages of another site may ask here, which never has a password
/// (Fetch, 3.2.2), and which the route knows the answer to.
pub(super) fn is_preflight(route: &Route, request: &request::Parts) -> bool {
    let asked = request.headers.get(header::ORIGIN).zip(route.allow_origin.as_ref());
    request.method == Method::OPTIONS
        && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && asked.is_some_and(|(origin, allowed)| allowed.allows(origin))
}

/// Makes `headers` say who the user is, and nothing but that, where the route has users.
pub(super) async fn demand_password(
    route: &Route,
    runtime: &Runtime,
    headers: &mut HeaderMap,
    origin: &Origin,
    log: &mut LogGuard,
) -> Result<(), GatewayError> {
    let (Some(plan), Some(users)) = (&route.plan.access.basic_auth, &route.users) else { return Ok(()) };
    let credentials = credentials(headers);
    // Whoever says so: nobody has looked at a password but us.
    for name in [&REMOTE_USER, &X_REMOTE_USER] {
        headers.remove(name);
    }
    let Some((name, password)) = credentials.as_ref().and_then(Credentials::parts) else {
        return Err(wants_password(plan, "no user and password were sent"));
    };
    let verdict = runtime.verifier.verify(users, Client::of(origin.client), name, password).await;
    match verdict {
        Verdict::Right => {}
        Verdict::Wrong => return Err(wants_password(plan, "the user or the password is wrong")),
        Verdict::Busy => {
            let message = "too many passwords wait to be looked at (routes[].basic_auth)";
            return Err(GatewayError::crowded(message).retry_after(super::answer::QUEUE_RETRY));
        }
    }
    let user = HeaderValue::from_bytes(name.as_bytes()).expect("the name of a user has no control characters");
    log.user(&user);
    headers.insert(&X_REMOTE_USER, user);
    Ok(())
}

/// Takes off what only we were to read, once everybody who looks at it has.
pub(super) fn keep_password(route: &Route, headers: &mut HeaderMap) {
    if route.plan.access.basic_auth.as_ref().is_some_and(|plan| !plan.pass) {
        headers.remove(header::AUTHORIZATION);
    }
}

/// The user whose password was right.
pub(super) fn user<'h>(route: &Route, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    route.plan.access.basic_auth.as_ref().and_then(|_| headers.get(&X_REMOTE_USER))
}

fn wants_password(plan: &BasicAuthPlan, why: &'static str) -> GatewayError {
    let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", plan.realm);
    let challenge = HeaderValue::try_from(challenge).expect("a realm is visible ASCII");
    GatewayError::downstream(StatusCode::UNAUTHORIZED, why).challenge(challenge)
}

/// A user and a password, as they came.
struct Credentials(zeroize::Zeroizing<Vec<u8>>);

impl Credentials {
    /// The name has no colon (RFC 7617, 2).
    fn parts(&self) -> Option<(&str, &[u8])> {
        let colon = self.0.iter().position(|byte| *byte == b':')?;
        Some((str::from_utf8(&self.0[..colon]).ok()?, &self.0[colon + 1..]))
    }
}

fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    BASE64.decode(headers::credentials(headers, SCHEME)?).ok().map(|bytes| Credentials(bytes.into()))
}

/// Asks the other server whether `request` may pass; where it may not, this is the answer.
///
/// # Errors
///
/// 503 where that server does not say.
pub(super) async fn ask(
    route: &Route,
    request: &mut request::Parts,
    target: &str,
    origin: &Origin,
    connection: &Connection,
    log: &LogGuard,
) -> Result<Option<Response<Body>>, GatewayError> {
    let (Some(plan), Some(upstream)) = (&route.plan.access.forward_auth, &route.forward) else { return Ok(None) };
    let headers = question(request, target)?;
    let silent = |why: String| {
        let message = format!("{why}: whether the request may pass was not said (routes[].forward_auth)");
        GatewayError::gateway(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(super::answer::QUEUE_RETRY)
    };
    let progress = log.patience().progress;
    let asked = timeout(plan.timeout, send(plan, upstream, &headers, origin, &connection.thread, progress)).await;
    // Its place is none in the application.
    turns::cost(turns::ONE);
    let mut reply = match asked {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => return Err(silent(error.message.to_string()).source(error)),
        Err(_) => return Err(silent(format!("upstream {} took longer than {:?}", plan.upstream, plan.timeout))),
    };
    let passes = reply.parts.status.is_success();
    if passes {
        for name in &plan.response_headers {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
            request.headers.remove(&name);
            for value in reply.parts.headers.get_all(&name) {
                request.headers.append(&name, value.clone());
            }
        }
        // Then the connection can be used again.
        drop(reply.body.take_if_whole());
        return Ok(None);
    }
    headers::strip_response(&mut reply.parts.headers);
    // It names no files of ours.
    files::take_offload(&mut reply.parts.headers, &route.plan.accel_prefix);
    let (parts, body) = reply.into_body(Delivery::Buffered, &log.runtime().spool, &connection.tasks);
    Ok(Some(Response::from_parts(parts, if request.method == Method::HEAD { Body::Empty } else { body })))
}

async fn send(
    plan: &ForwardAuthPlan,
    upstream: &Upstream,
    headers: &HeaderMap,
    origin: &Origin,
    thread: &TrafficThread,
    progress: Duration,
) -> Result<proxy::Reply, GatewayError> {
    let who = || Who { class: class(&upstream.plan, &plan.path, headers), client: Client::of(origin.client) };
    let place = upstream.queue.enter(who).await;
    let place = place.map_err(|_| GatewayError::crowded(format!("no place in upstream {}", upstream.name)))?;
    let path_info;
    let head = match upstream.plan.protocol {
        Protocol::Http => Head::Http { target: &plan.path, headers },
        Protocol::Uwsgi => {
            let path = plan.path.split_once('?').map_or(&*plan.path, |(path, _)| path);
            path_info = Path::read(path)?.decoded_merged().into_owned();
            Head::Uwsgi(Environment {
                https: origin.scheme == Scheme::Https,
                client: origin.client,
                server_port: origin.port,
                ..Environment::question(&plan.path, &path_info, origin.host.host(), headers)
            })
        }
    };
    let mut outbound = Outbound {
        method: &Method::GET,
        head,
        payload: Payload::Collected(Collected::EMPTY),
        affinity: Affinity { client: origin.client, endpoint: None, by_client: false, avoid: None },
        upgrade: false,
        connect_timeout: upstream.plan.connect_timeout,
        progress,
        timeout: plan.timeout,
    };
    proxy::send(&mut outbound, upstream, place, &thread.pool, &mut Trace::default()).await
}

/// The headers of the question: those of the request that are not about its body or the form of the answer, and what was asked for.
fn question(request: &request::Parts, target: &str) -> Result<HeaderMap, GatewayError> {
    let mut headers = request.headers.clone();
    for name in &NOT_ASKED {
        headers.remove(name);
    }
    let unfit = |_| GatewayError::downstream(StatusCode::BAD_REQUEST, "the request target is not fit for a header");
    headers.insert(&X_FORWARDED_URI, HeaderValue::from_bytes(target.as_bytes()).map_err(unfit)?);
    let method = HeaderValue::from_str(request.method.as_str()).expect("a method is a token");
    headers.insert(&X_FORWARDED_METHOD, method);
    Ok(headers)
}

const SCHEME: &[u8] = b"basic ";
static REMOTE_USER: HeaderName = HeaderName::from_static("remote-user");
static X_REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
static X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
static X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");

static NOT_ASKED: [HeaderName; 14] = [
    header::ACCEPT_ENCODING,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_KEY,
    header::UPGRADE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_one_line_of_the_basic_scheme() {
        let read = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(line).unwrap());
            }
            credentials(&headers)
                .and_then(|found| found.parts().map(|(name, password)| (name.to_owned(), password.to_vec())))
        };
        let alice = Some(("alice".to_owned(), b"se:cret".to_vec()));
        assert_eq!(read(&["Basic YWxpY2U6c2U6Y3JldA=="]), alice);
        assert_eq!(read(&["bAsIc   YWxpY2U6c2U6Y3JldA== "]), alice);
        for lines in [
            &["Basic YWxpY2U6c2U6Y3JldA==", "Basic YWxpY2U6c2U6Y3JldA=="][..],
            &[],
            &["Basic"],
            &["Basic "],
            &["Basic YWxpY2U"],
            // No colon.
            &["Basic YWxpY2U="],
            &["Basic ===="],
            &["Bearer YWxpY2U6c2U6Y3JldA=="],
            // Not UTF-8.
            &["Basic /zpz"],
        ] {
            assert_eq!(read(lines), None, "{lines:?}");
        }
    }
}
