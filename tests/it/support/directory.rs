//! An ACME directory of ours before pebble, for what pebble lacks: ARI, profiles, limits, and failing on purpose.
//!
//! What it does not answer itself it passes on with the same `Host`, from which pebble makes its URLs: clients stay here.

use std::{
    collections::BTreeMap,
    future::pending,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER},
};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task};
use tokio_rustls::TlsAcceptor;

use super::{body, clients, pebble::Pebble};

/// A server before a [`Pebble`], with a certificate of its [`Pebble::ca_file`]; stopped when dropped.
pub(crate) struct Directory {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A part of the server that a test can have fail, and whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Directory,
    NewNonce,
    NewAccount,
    NewOrder,
    /// A `newOrder` that names what it replaces; its requests count as those of [`Self::NewOrder`].
    Replacement,
    RenewalInfo,
    /// Authorisations, challenges, orders, certificates.
    Other,
}

/// What comes instead of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// An ACME error of this kind, which is the end of its URN.
    Problem { status: u16, kind: &'static str, retry_after: Option<Duration> },
    /// A page of a server in trouble.
    Status(u16),
    /// Nothing, ever.
    Hang,
    /// The end of the connection.
    Close,
}

impl Failure {
    pub(crate) fn rate_limited(retry_after: Duration) -> Self {
        Self::Problem { status: 429, kind: "rateLimited", retry_after: Some(retry_after) }
    }

    /// What RFC 9773 has for a `replaces` that another order has named already.
    pub(crate) fn already_replaced() -> Self {
        Self::Problem { status: 409, kind: "alreadyReplaced", retry_after: None }
    }
}

/// What is said of the renewal of a certificate.
#[derive(Clone, Debug)]
pub(crate) struct RenewalInfo {
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    pub(crate) explanation: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

/// What a `newOrder` asked for, be it refused or not.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: SystemTime,
    pub(crate) names: Vec<String>,
    pub(crate) profile: Option<String>,
    pub(crate) replaces: Option<String>,
    /// Of the answer, unless there was none.
    pub(crate) status: Option<u16>,
}

struct Shared {
    pebble: SocketAddr,
    client: Arc<rustls::ClientConfig>,
    paths: Paths,
    state: Mutex<State>,
}

/// Where pebble has what is new.
struct Paths {
    nonce: String,
    account: String,
    order: String,
}

#[derive(Default)]
struct State {
    profiles: BTreeMap<String, String>,
    caa_identities: Vec<String>,
    no_renewal_info: bool,
    renewals: BTreeMap<String, RenewalInfo>,
    any_renewal: Option<RenewalInfo>,
    failures: Vec<(Option<Resource>, Failure)>,
    /// Seconds that the clock in `Date` is ahead.
    ahead: i64,
    orders: Vec<Asked>,
    renewals_asked: Vec<String>,
    requests: Vec<(Resource, SystemTime)>,
}

impl Directory {
    /// Starts before `pebble`, which may stop and start again later.
    pub(crate) fn before(pebble: &Pebble) -> Self {
        let answer = pebble.authority.get(pebble.address(), "/dir").unwrap();
        let urls: Value = serde_json::from_str(&body(&answer)).unwrap_or_else(|error| panic!("{error}: {answer}"));
        let path = |name: &str| -> String {
            let url: http::Uri = urls[name].as_str().unwrap_or_else(|| panic!("{name} in {urls}")).parse().unwrap();
            url.path().to_owned()
        };
        let paths = Paths { nonce: path("newNonce"), account: path("newAccount"), order: path("newOrder") };
        let shared = Arc::new(Shared {
            pebble: pebble.address(),
            client: Arc::new(clients::client(&[&pebble.authority.root()], &[])),
            paths,
            state: Mutex::default(),
        });
        let (certificate, key) = pebble.authority.issue();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], rustls_pki_types::PrivateKeyDer::from(key))
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tasks = task::LocalSet::new();
            tasks.block_on(&runtime, async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, TlsAcceptor::from(Arc::new(config)), serving) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// The URL of the directory.
    pub(crate) fn url(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// Offers these profiles and refuses orders for others.
    pub(crate) fn set_profiles(&self, profiles: &[(&str, &str)]) {
        let profiles = profiles.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        self.state().profiles = profiles.collect();
    }

    /// The names under which the authority looks for itself in CAA records.
    pub(crate) fn set_caa_identities(&self, identities: &[&str]) {
        self.state().caa_identities = identities.iter().map(ToString::to_string).collect();
    }

    /// Does or does not speak of renewals at all.
    pub(crate) fn offer_renewal_info(&self, offered: bool) {
        self.state().no_renewal_info = !offered;
    }

    /// What it answers for `certificate`, an identifier of RFC 9773; without one, for all that have no answer of their own.
    pub(crate) fn set_renewal(&self, certificate: Option<&str>, info: RenewalInfo) {
        match certificate {
            Some(certificate) => drop(self.state().renewals.insert(certificate.to_owned(), info)),
            None => self.state().any_renewal = Some(info),
        }
    }

    /// Knows no certificate any more.
    pub(crate) fn clear_renewals(&self) {
        let mut state = self.state();
        state.renewals.clear();
        state.any_renewal = None;
    }

    /// Fails at `resource`, or at all of them, until [`Directory::heal`].
    pub(crate) fn fail(&self, resource: impl Into<Option<Resource>>, failure: Failure) {
        self.state().failures.push((resource.into(), failure));
    }

    /// Fails no more. Who is kept waiting waits on.
    pub(crate) fn heal(&self) {
        self.state().failures.clear();
    }

    /// Says in `Date` that it is so many seconds later than it is.
    pub(crate) fn set_clock_ahead(&self, seconds: i64) {
        self.state().ahead = seconds;
    }

    /// The orders that were asked for, in this order.
    pub(crate) fn orders(&self) -> Vec<Asked> {
        self.state().orders.clone()
    }

    /// The certificates whose renewal was asked about, by their identifiers.
    pub(crate) fn renewals_asked(&self) -> Vec<String> {
        self.state().renewals_asked.clone()
    }

    /// When `resource` was asked for.
    pub(crate) fn requests(&self, resource: Resource) -> Vec<SystemTime> {
        let state = self.state();
        state.requests.iter().filter(|(asked, _)| *asked == resource).map(|(_, at)| *at).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The thread ends with its sender, and with what it holds.
        self.stop = None;
        drop(self.thread.take().map(JoinHandle::join));
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        task::spawn_local(async move {
            // A client that goes away is none of the test's business.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(|request| shared.answer(request));
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

impl Shared {
    /// An error ends the connection without an answer.
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let request = Request::from_parts(parts, body);
        let resource = self.resource(request.uri().path());
        self.state.lock().unwrap().requests.push((resource, SystemTime::now()));

        let asked = (resource == Resource::NewOrder).then(|| Asked::read(request.body()));
        let replaces = asked.as_ref().is_some_and(|asked| asked.replaces.is_some());
        let number = asked.map(|asked| {
            let mut state = self.state.lock().unwrap();
            state.orders.push(asked);
            state.orders.len() - 1
        });
        let failure = self.failure(resource).or_else(|| self.failure(Resource::Replacement).filter(|_| replaces));
        let mut answer = match (failure, number) {
            (Some(failure), _) => self.failed(failure).await?,
            (None, Some(number)) => self.order(number, request).await?,
            (None, None) => match resource {
                Resource::Directory => self.directory(request).await?,
                Resource::RenewalInfo => self.renewal_info(&request),
                _ => self.pass_on(request).await?,
            },
        };
        let mut state = self.state.lock().unwrap();
        if let Some(number) = number {
            state.orders[number].status = Some(answer.status().as_u16());
        }
        if state.ahead != 0 {
            let ahead = Duration::from_secs(state.ahead.unsigned_abs());
            let now = SystemTime::now();
            let said = if state.ahead > 0 { now + ahead } else { now - ahead };
            answer.headers_mut().insert(DATE, httpdate::fmt_http_date(said).parse().unwrap());
        }
        Ok(answer)
    }

    fn resource(&self, path: &str) -> Resource {
        match path {
            "/dir" => Resource::Directory,
            path if path == self.paths.nonce => Resource::NewNonce,
            path if path == self.paths.account => Resource::NewAccount,
            path if path == self.paths.order => Resource::NewOrder,
            path if path.starts_with(RENEWAL_INFO) => Resource::RenewalInfo,
            _ => Resource::Other,
        }
    }

    fn failure(&self, resource: Resource) -> Option<Failure> {
        let state = self.state.lock().unwrap();
        let of_this = |(failing, _): &&(Option<Resource>, Failure)| failing.is_none_or(|failing| failing == resource);
        state.failures.iter().find(of_this).map(|(_, failure)| failure.clone())
    }

    async fn failed(&self, failure: Failure) -> io::Result<Response<Full<Bytes>>> {
        match failure {
            Failure::Problem { status, kind, retry_after } => {
                let mut answer = problem(status, kind);
                if let Some(time) = retry_after {
                    answer.headers_mut().insert(RETRY_AFTER, time.as_secs().into());
                }
                self.add_nonce(answer.headers_mut()).await;
                Ok(answer)
            }
            Failure::Status(status) => {
                let page = Full::from("<html><body><h1>in trouble</h1></body></html>\n");
                Ok(Response::builder().status(status).header(CONTENT_TYPE, "text/html").body(page).unwrap())
            }
            Failure::Hang => pending().await,
            Failure::Close => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Authorities give a fresh nonce with a refusal, too.
    async fn add_nonce(&self, headers: &mut HeaderMap) {
        let request = Request::builder().method(Method::HEAD).uri(&self.paths.nonce).header("host", "localhost");
        let answer = self.pass_on(request.body(Bytes::new()).unwrap()).await;
        if let Ok(Some(nonce)) = answer.map(|answer| answer.headers().get(REPLAY_NONCE).cloned()) {
            headers.insert(REPLAY_NONCE, nonce);
        }
    }

    async fn order(&self, number: usize, request: Request<Bytes>) -> io::Result<Response<Full<Bytes>>> {
        let unknown = {
            let state = self.state.lock().unwrap();
            state.orders[number].profile.as_ref().is_some_and(|profile| !state.profiles.contains_key(profile))
        };
        if unknown {
            let mut answer = problem(400, "invalidProfile");
            self.add_nonce(answer.headers_mut()).await;
            return Ok(answer);
        }
        self.pass_on(request).await
    }

    async fn directory(&self, request: Request<Bytes>) -> io::Result<Response<Full<Bytes>>> {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let (mut parts, body) = self.pass_on(request).await?.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut directory: Value = serde_json::from_slice(&body).unwrap();
        let state = self.state.lock().unwrap();
        if !state.no_renewal_info {
            directory["renewalInfo"] = format!("https://{host}{RENEWAL_INFO}").into();
        }
        if !state.profiles.is_empty() {
            directory["meta"]["profiles"] = json!(state.profiles);
        }
        if !state.caa_identities.is_empty() {
            directory["meta"]["caaIdentities"] = json!(state.caa_identities);
        }
        parts.headers.remove(CONTENT_LENGTH);
        Ok(Response::from_parts(parts, Full::from(directory.to_string())))
    }

    fn renewal_info(&self, request: &Request<Bytes>) -> Response<Full<Bytes>> {
        let certificate = request.uri().path()[RENEWAL_INFO.len()..].trim_start_matches('/').to_owned();
        let mut state = self.state.lock().unwrap();
        let info = state.renewals.get(&certificate).or(state.any_renewal.as_ref()).cloned();
        state.renewals_asked.push(certificate);
        let Some(info) = info.filter(|_| !state.no_renewal_info) else { return problem(404, "malformed") };
        let time = |time: SystemTime| jiff::Timestamp::try_from(time).unwrap().to_string();
        let mut said = json!({ "suggestedWindow": { "start": time(info.start), "end": time(info.end) } });
        if let Some(url) = info.explanation {
            said["explanationURL"] = url.into();
        }
        let mut answer = Response::new(Full::from(said.to_string()));
        answer.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
        if let Some(time) = info.retry_after {
            answer.headers_mut().insert(RETRY_AFTER, time.as_secs().into());
        }
        answer
    }

    async fn pass_on(&self, request: Request<Bytes>) -> io::Result<Response<Full<Bytes>>> {
        let name = self.pebble.ip().to_string();
        let stream = clients::tls_connect(self.pebble, &name, Arc::clone(&self.client)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = task::spawn_local(connection);
        let answer = sender.send_request(request.map(Full::new)).await.map_err(io::Error::other)?;
        let (mut parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        connection.abort();
        parts.headers.remove("connection");
        parts.headers.remove("transfer-encoding");
        Ok(Response::from_parts(parts, Full::new(body)))
    }
}

impl Asked {
    fn read(jws: &[u8]) -> Self {
        let payload = || -> Option<Value> {
            let jws: Value = serde_json::from_slice(jws).ok()?;
            serde_json::from_slice(&BASE64URL_NOPAD.decode(jws["payload"].as_str()?.as_bytes()).ok()?).ok()
        };
        let payload = payload().unwrap_or_else(|| panic!("not a JWS: {}", String::from_utf8_lossy(jws)));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let names = payload["identifiers"].as_array().into_iter().flatten();
        Self {
            at: SystemTime::now(),
            names: names.filter_map(|name| text(&name["value"])).collect(),
            profile: text(&payload["profile"]),
            replaces: text(&payload["replaces"]),
            status: None,
        }
    }
}

fn problem(status: u16, kind: &str) -> Response<Full<Bytes>> {
    let problem = json!({
        "type": format!("urn:ietf:params:acme:error:{kind}"),
        "detail": "as the test has it",
        "status": status,
    });
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header(CONTENT_TYPE, "application/problem+json")
        .body(Full::from(problem.to_string()))
        .unwrap()
}

const RENEWAL_INFO: &str = "/renewal-info";
const REPLAY_NONCE: HeaderName = HeaderName::from_static("replay-nonce");
