//! The log server: a folder of logs for other machines of the same site.
//!
//! docassemble's page of logs asks for `/`, a name a line, and then for `/name`. Who may ask is decided by the address that
//! connects (or that a PROXY header names, where the listener requires one), whatever other headers say. The index is made by the application where it has one for that; otherwise here, after
//! supervisord has had the logs collected.

use std::{
    fs, io,
    path::Path as FilePath,
    rc::Rc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request, response};
use tokio::time::{sleep, timeout};

use super::{Connection, LogGuard};
use crate::{
    backends::{ALREADY_STARTED, Supervisord, SupervisordError},
    config::{LogServerPlan, Protocol, SupervisorPlan},
    disk::off_thread,
    files::{self, Target},
    http::{Body, GatewayError, Retry, forwarded::Peer, headers, path::Path},
    proxy::{self, Collected, Delivery, Head, Outbound, Payload, uwsgi::Environment},
    runtime::Runtime,
    upstream::{Affinity, Class, Client, Upstream, Who},
};

/// Answers a request on a listener with a log server.
pub(super) async fn answer(
    server: &LogServerPlan,
    request: &request::Parts,
    connection: &Rc<Connection>,
    log: &mut LogGuard,
) -> Result<Response<Body>, GatewayError> {
    let refuse = |status, message: &'static str| Err(GatewayError::downstream(status, message));
    if !is_allowed(server, &connection.peer) {
        return refuse(StatusCode::FORBIDDEN, "this address is not in `log_server.allow` of the listener");
    }
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "a log server is only read");
    }
    let path = Path::read(request.uri.path())?;
    let runtime = Rc::clone(log.runtime());
    let index = server.index.as_ref().and_then(|name| runtime.upstreams.get(name));
    match (path.decoded_merged().as_ref(), index) {
        (b"/", index) => {
            if let Some(upstream) = index {
                match ask(upstream, "/listlog", &runtime, connection, log).await {
                    // Nobody is there to make it.
                    Err(error) if error.retry == Retry::Unsent => {}
                    answered => return answered,
                }
            }
            if let Some(supervisor) = &server.supervisor {
                collect(supervisor, &runtime).await;
            }
            list(&server.folder).await
        }
        (named, Some(upstream)) if named == b"/listlog" || named.starts_with(b"/listlog/") => {
            let target = request.uri.path_and_query().map_or("/listlog", |target| target.as_str());
            ask(upstream, target, &runtime, connection, log).await
        }
        (named, _) => send(server, &runtime, named, request).await,
    }
}

fn is_allowed(server: &LogServerPlan, peer: &Peer) -> bool {
    match peer {
        Peer::Tcp(address) => server.allow.contains(address.ip()),
        Peer::Unix => server.allow.unix,
    }
}

/// The file that a path names: one in the folder itself, and none that is hidden.
async fn send(
    server: &LogServerPlan,
    runtime: &Runtime,
    path: &[u8],
    request: &request::Parts,
) -> Result<Response<Body>, GatewayError> {
    let none = || GatewayError::downstream(StatusCode::NOT_FOUND, "no log has this name");
    let name = path.strip_prefix(b"/").filter(|name| is_plain(name)).ok_or_else(none)?;
    let roots = runtime.logs.as_ref().ok_or_else(none)?;
    let mut target = server.folder.as_os_str().as_encoded_bytes().to_vec();
    target.push(b'/');
    target.extend_from_slice(name);
    let packed = name.ends_with(b".gz") || name.ends_with(b".xz");
    let mut head = Response::new(()).into_parts().0;
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(if packed { PACKED } else { TEXT }));
    head.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    files::send(roots, &Target::File(target), &request.method, &request.headers, head).await
}

fn is_plain(name: &[u8]) -> bool {
    !name.is_empty() && !name.starts_with(b".") && !name.iter().any(|byte| *byte == b'/' || byte.is_ascii_control())
}

/// Asks `upstream`, which makes the index, for `target`.
async fn ask(
    upstream: &Upstream,
    target: &str,
    runtime: &Runtime,
    connection: &Rc<Connection>,
    log: &mut LogGuard,
) -> Result<Response<Body>, GatewayError> {
    let who = || Who { class: Class::Other, client: Client::of(None) };
    let place = upstream.queue.enter(who).await;
    let place = place.map_err(|_| GatewayError::crowded("no place in the upstream that makes the index of logs"))?;
    let mut sent = HeaderMap::new();
    sent.insert(header::HOST, HeaderValue::from_static("localhost"));
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let path_info = Path::read(path)?.decoded_merged().into_owned();
    let head = match upstream.plan.protocol {
        Protocol::Http => Head::Http { target, headers: &sent },
        Protocol::Uwsgi => Head::Uwsgi(Environment {
            server_port: connection.local_port,
            ..Environment::question(target, &path_info, "localhost", &sent)
        }),
    };
    let mut outbound = Outbound {
        method: &Method::GET,
        head,
        payload: Payload::Collected(Collected::EMPTY),
        affinity: Affinity::default(),
        upgrade: false,
        connect_timeout: upstream.plan.connect_timeout,
        progress: runtime.plan.limits.progress_timeout,
        timeout: COLLECTED_WITHIN,
    };
    let thread = &connection.thread;
    let mut reply = proxy::send(&mut outbound, upstream, place, &thread.pool, &mut log.trace).await?;
    headers::strip_response(&mut reply.parts.headers);
    let (parts, body): (response::Parts, Body) = reply.into_body(Delivery::Buffered, &runtime.spool, &connection.tasks);
    Ok(Response::from_parts(parts, body))
}

/// Has supervisord run the program that collects logs, and waits for it. Those who come meanwhile wait for the same run.
async fn collect(supervisor: &SupervisorPlan, runtime: &Runtime) {
    let mut last = runtime.logs_collected.lock().await;
    if last.is_some_and(|last| last.elapsed() < RECENTLY) {
        return;
    }
    let program = &supervisor.program;
    match timeout(COLLECTED_WITHIN, run(supervisor)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, program, "the logs were not collected; the index is made of those that are there");
        }
        Err(_) => tracing::warn!(program, "collecting the logs takes longer than {COLLECTED_WITHIN:?}; it goes on"),
    }
    *last = Some(Instant::now());
}

async fn run(supervisor: &SupervisorPlan) -> Result<(), SupervisordError> {
    let supervisord = Supervisord(supervisor);
    match supervisord.start(&supervisor.program).await {
        Ok(()) | Err(SupervisordError::Fault { code: ALREADY_STARTED, .. }) => {}
        Err(error) => return Err(error),
    }
    while supervisord.program(&supervisor.program).await?.state.is_running() {
        sleep(LOOK).await;
    }
    Ok(())
}

/// The index, made here.
async fn list(folder: &FilePath) -> Result<Response<Body>, GatewayError> {
    let read = folder.to_owned();
    let names = off_thread(move || names(&read)).await.map_err(|error| {
        let message = format!("the folder {} (`log_server.folder`) cannot be read", folder.display());
        GatewayError::gateway(StatusCode::NOT_FOUND, message).source(error)
    })?;
    let mut text = names.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    let mut response = Response::new(Body::Empty);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *response.body_mut() = bytes::Bytes::from(text).into();
    Ok(response)
}

fn names(folder: &FilePath) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)?.take(MOST_LISTED) {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && is_plain(name.as_bytes())
            && entry.file_type()?.is_file()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

const TEXT: &str = "text/plain; charset=utf-8";
const PACKED: &str = "application/octet-stream";
const COLLECTED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at what the program does.
const LOOK: Duration = Duration::from_millis(250);
/// Whoever comes so soon after a run is answered from it.
const RECENTLY: Duration = Duration::from_secs(2);
const MOST_LISTED: usize = 10_000;
