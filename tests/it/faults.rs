//! Applications that fail in each way that one can, before clients of each kind.
//!
//! Whatever an application does, a client is told that something went wrong, within the time that the configuration gives;
//! whoever else is there is answered as ever; and nothing of the fault stays behind.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::{
    io::AsyncReadExt,
    time::{sleep, timeout},
};

use self::{
    Act::{Close, Flood, Pause, Reset, Say, Trickle},
    Seen::{Answer, Cut, Endless, Tunnel},
};
use crate::{
    support::{
        Backend,
        clients::{self, H2},
        read_packet, read_request,
        served::{self, Served},
        wait_for,
    },
    upstreams::refusing,
};

/// What an application does, one after the other, with a request that it has read. At the end it waits for the connection
/// to be closed.
#[derive(Clone, Copy)]
enum Act {
    Say(&'static [u8]),
    /// A byte each tenth of a second.
    Trickle(&'static [u8]),
    /// Again and again, as long as anybody takes it.
    Flood(&'static [u8]),
    /// So that what was said has most likely been read.
    Pause,
    Close,
    Reset,
}

/// What a client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// An answer with this status that is whole.
    Answer(u16),
    /// The head of an answer, and a body that breaks off.
    Cut,
    /// A body that is longer than the client has patience.
    Endless,
    /// A websocket, and its end.
    Tunnel,
    /// No answer at all.
    Nothing,
    /// Not even the end, within [`WITHIN`].
    Hung,
}

struct Fault {
    name: &'static str,
    acts: &'static [Act],
    /// One of these.
    seen: &'static [Seen],
}

const fn fault(name: &'static str, acts: &'static [Act], seen: &'static [Seen]) -> Fault {
    Fault { name, acts, seen }
}

/// Bodies are of the one word `decoy`, again and again, whatever is said around them.
const FAULTS: &[Fault] = &[
    // No head.
    fault("reset", &[Reset], &[Answer(502)]),
    fault("end", &[Close], &[Answer(502)]),
    fault("silence", &[], &[Answer(504)]),
    fault("silence after an interim answer", &[Say(b"HTTP/1.1 103 Early Hints\r\n\r\n")], &[Answer(504)]),
    fault("silence in the head", &[Say(HALF_A_HEAD)], &[Answer(504)]),
    fault("a head that trickles", &[Trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndecoy")], &[Answer(504)]),
    fault("end in the head", &[Say(HALF_A_HEAD), Close], &[Answer(502)]),
    fault("reset in the head", &[Say(HALF_A_HEAD), Pause, Reset], &[Answer(502)]),
    // A head that is none.
    fault("another protocol", &[Say(b"SSH-2.0-OpenSSH_10.0\r\n")], &[Answer(502)]),
    fault("an alert of TLS", &[Say(b"\x15\x03\x01\x00\x02\x02\x46")], &[Answer(502)]),
    fault("a head of CGI", &[Say(b"Status: 200 OK\r\nContent-Length: 5\r\n\r\ndecoy")], &[Answer(502)]),
    fault("another version", &[Say(b"HTTP/2 200\r\ncontent-length: 5\r\n\r\ndecoy")], &[Answer(502)]),
    fault("a status that is none", &[Say(b"HTTP/1.1 99 No\r\nContent-Length: 5\r\n\r\ndecoy")], &[Answer(502)]),
    fault("NUL in a field", &[Say(b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 5\r\n\r\ndecoy")], &[Answer(502)]),
    fault(
        "two lengths",
        &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\ndecoy")],
        &[Answer(502)],
    ),
    fault("a length below zero", &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\ndecoy")], &[Answer(502)]),
    fault(
        "a length and chunks",
        &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndecoy\r\n0\r\n\r\n")],
        &[Answer(502)],
    ),
    fault("interim answers without end", &[Flood(b"HTTP/1.1 100 Continue\r\n\r\n")], &[Answer(502)]),
    fault("fields without end", &[Say(b"HTTP/1.1 200 OK\r\n"), Flood(b"X-More: decoy\r\n")], &[Answer(502)]),
    fault("a field without end", &[Say(b"HTTP/1.1 200 OK\r\nX-More: "), Flood(b"decoy")], &[Answer(502)]),
    // A body that is not whole.
    fault("silence in the body", &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ndecoy")], &[Cut]),
    fault("silence in a chunk", &[Say(CHUNKED), Say(b"a\r\ndecoy")], &[Cut]),
    fault("silence after a chunk", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\n")], &[Cut]),
    fault("silence before the end of the connection", &[Say(b"HTTP/1.1 200 OK\r\n\r\ndecoy")], &[Cut]),
    fault("end before the body", &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Close], &[Cut]),
    fault("end in the body", &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ndecoy"), Close], &[Cut]),
    fault("end in a long body", &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\ndecoy"), Close], &[Cut]),
    fault("end in a chunk", &[Say(CHUNKED), Say(b"a\r\ndecoy"), Close], &[Cut]),
    fault("end after a chunk", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\n"), Close], &[Cut]),
    fault("end in the trailers", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\n0\r\n"), Close], &[Cut]),
    // What was sent and not read goes with a reset, the head as well.
    fault(
        "reset in the body",
        &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ndecoy"), Pause, Reset],
        &[Cut, Answer(502)],
    ),
    fault("reset in a chunk", &[Say(CHUNKED), Say(b"a\r\ndecoy"), Pause, Reset], &[Cut, Answer(502)]),
    fault("reset for an end", &[Say(b"HTTP/1.1 200 OK\r\n\r\ndecoy"), Pause, Reset], &[Cut, Answer(502)]),
    // Chunks that are none.
    fault("a size that is none", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\nzz\r\nother\r\n0\r\n\r\n")], &[Cut]),
    fault("a size below zero", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\n-5\r\nother\r\n0\r\n\r\n")], &[Cut]),
    fault("a size beyond all", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\nfffffffffffffffff\r\n")], &[Cut]),
    fault("a chunk beyond its size", &[Say(CHUNKED), Say(b"5\r\ndecoyother\r\n0\r\n\r\n")], &[Cut]),
    fault("an extension without end", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\n5"), Flood(b";other=other")], &[Cut]),
    fault("trailers without end", &[Say(CHUNKED), Say(b"5\r\ndecoy\r\n0\r\n"), Flood(b"X-More: other\r\n")], &[Cut]),
    // What is whole, and more.
    fault(
        "a body that trickles",
        &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"), Trickle(b"decoydecoy"), Close],
        &[Answer(200)],
    ),
    fault("the end of the connection", &[Say(b"HTTP/1.1 200 OK\r\n\r\ndecoy"), Close], &[Answer(200)]),
    fault(
        "another answer behind a length",
        &[Say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndecoyHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")],
        &[Answer(200)],
    ),
    fault(
        "another answer behind the last chunk",
        &[Say(CHUNKED), Say(b"5\r\ndecoy\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")],
        &[Answer(200)],
    ),
    fault("chunks without end", &[Say(CHUNKED), Flood(b"a\r\ndecoydecoy\r\n")], &[Endless]),
    fault("a body without end", &[Say(b"HTTP/1.1 200 OK\r\n\r\n"), Flood(b"decoydecoydecoydecoy")], &[Endless]),
];

/// To a client that asks for a websocket; to any other they are no answer.
const SWITCHES: &[Fault] = &[
    fault("a switch and the end", &[Say(SWITCH), Close], &[Tunnel]),
    fault("a switch and a reset", &[Say(SWITCH), Pause, Reset], &[Tunnel, Answer(502)]),
    fault("a switch and half a frame", &[Say(SWITCH), Say(b"\x81\x0adecoy"), Close], &[Tunnel]),
    fault("a switch and silence", &[Say(SWITCH)], &[Tunnel]),
    fault("a switch and frames without end", &[Say(SWITCH), Flood(b"\x82\x05decoy")], &[Tunnel]),
];

/// What an application does that does not even read: by the name of its upstream.
const UNREAD: [(&str, &[Seen]); 3] = [
    ("refusing", &[Answer(503)]),
    // Some see it when they connect, some when they have.
    ("resetting", &[Answer(502), Answer(503)]),
    ("closing", &[Answer(502)]),
];

const HALF_A_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Le";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// More than any deadline of the configuration, whose own are half a second, and three attempts.
const WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a body without end that a client reads before it goes.
const ENOUGH: usize = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    Uwsgi,
}

impl Protocol {
    /// The target of the next request.
    fn read(self, stream: &mut TcpStream) -> Option<String> {
        match self {
            Self::Http => {
                let request = String::from_utf8(read_request(stream)?).ok()?;
                request.split(' ').nth(1).map(str::to_owned)
            }
            Self::Uwsgi => read_packet(stream)?.remove("REQUEST_URI"),
        }
    }
}

/// What an application has met.
#[derive(Default)]
struct Met {
    /// Requests that it failed.
    failed: AtomicUsize,
    /// Connections on which it has, and which are still open.
    open: AtomicUsize,
    /// Those of them on which another request came.
    used_again: AtomicUsize,
}

/// Fails requests for `/fault/NUMBER/…`, of all faults in their order, and answers others with their target.
fn failing(protocol: Protocol, met: &Arc<Met>) -> Backend {
    let met = Arc::clone(met);
    Backend::start(move |mut stream| {
        stream.set_read_timeout(Some(4 * WITHIN)).unwrap();
        stream.set_write_timeout(Some(4 * WITHIN)).unwrap();
        while let Some(target) = protocol.read(&mut stream) {
            if let Some(acts) = acts_for(&target) {
                met.failed.fetch_add(1, Ordering::SeqCst);
                met.open.fetch_add(1, Ordering::SeqCst);
                if act(stream, acts) {
                    met.used_again.fetch_add(1, Ordering::SeqCst);
                }
                met.open.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
            if stream.write_all(answer.as_bytes()).is_err() || protocol == Protocol::Uwsgi {
                return;
            }
        }
    })
}

fn acts_for(target: &str) -> Option<&'static [Act]> {
    let number: usize = target.split_once("/fault/")?.1.split('/').next()?.parse().ok()?;
    FAULTS.iter().chain(SWITCHES).nth(number).map(|fault| fault.acts)
}

/// Does what `acts` say; whether another request came after that.
fn act(mut stream: TcpStream, acts: &[Act]) -> bool {
    for act in acts {
        let said = match act {
            Say(bytes) => stream.write_all(bytes),
            Trickle(bytes) => bytes.iter().try_for_each(|byte| {
                thread::park_timeout(Duration::from_millis(100));
                stream.write_all(&[*byte])
            }),
            Flood(bytes) => {
                let many = bytes.repeat(1 + 4096 / bytes.len());
                while stream.write_all(&many).is_ok() {}
                return false;
            }
            Pause => {
                thread::park_timeout(Duration::from_millis(50));
                Ok(())
            }
            Close => return false,
            Reset => {
                reset(stream);
                return false;
            }
        };
        if said.is_err() {
            return false;
        }
    }
    matches!(stream.read(&mut [0; 1024]), Ok(1..))
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http1,
    Http2,
    Websocket,
}

/// One client, which keeps its connection as long as it can.
enum Client {
    Http1 { address: SocketAddr, sender: http1::SendRequest<Full<Bytes>> },
    Http2(H2),
}

impl Client {
    async fn new(kind: Kind, served: &Served, certificate: &CertificateDer<'static>) -> Self {
        match kind {
            Kind::Http2 => Self::Http2(H2::connect(served.address(1), "localhost", certificate).await),
            Kind::Http1 | Kind::Websocket => {
                let address = served.address(0);
                Self::Http1 { address, sender: open(address).await }
            }
        }
    }

    async fn send(&mut self, method: &str, target: &str, websocket: bool) -> hyper::Result<Response<Incoming>> {
        let body = Full::from(if method == "POST" { "a body" } else { "" });
        match self {
            Self::Http2(h2) => h2.send(h2.request(method, target).body(body).unwrap()).await,
            Self::Http1 { sender, .. } => {
                let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
                if websocket {
                    request = request
                        .header("connection", "upgrade")
                        .header("upgrade", "websocket")
                        .header("sec-websocket-version", "13")
                        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
                }
                sender.ready().await?;
                sender.send_request(request.body(body).unwrap()).await
            }
        }
    }

    /// What becomes of a request, and the data of the answer.
    async fn see(&mut self, method: &str, target: &str, websocket: bool) -> (Seen, Vec<u8>) {
        let mut data = Vec::new();
        let seen = timeout(WITHIN, async {
            match self.send(method, target, websocket).await {
                Ok(response) => read(response, &mut data).await,
                // A stream that is reset before its head has gone; its connection has to be well for others.
                Err(_) if matches!(self, Self::Http2(_)) => Cut,
                Err(_) => Seen::Nothing,
            }
        });
        (seen.await.unwrap_or(Seen::Hung), data)
    }

    /// A request that is answered, as far as this test has a say; over another connection only where `may_open` one.
    async fn is_well(&mut self, target: &str, may_open: bool) -> Result<(), String> {
        if let Self::Http1 { address, sender } = self
            && may_open
        {
            *sender = open(*address).await;
        }
        let (seen, data) = self.see("GET", target, false).await;
        match seen {
            Answer(200) if data == target.as_bytes() => Ok(()),
            _ => Err(format!("{seen:?}: {}", String::from_utf8_lossy(&data))),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a client's task is none of the gateway's")]
async fn open(address: SocketAddr) -> http1::SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// Reads `response` to its end, or for as long as anybody would.
async fn read(response: Response<Incoming>, data: &mut Vec<u8>) -> Seen {
    let status = response.status().as_u16();
    if status == 101 {
        let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        while data.len() < ENOUGH && matches!(tunnel.read_buf(data).await, Ok(1..)) {}
        return Tunnel;
    }
    let mut body = response.into_body();
    while data.len() < ENOUGH {
        match body.frame().await {
            Some(Ok(frame)) => data.extend(frame.into_data().unwrap_or_default()),
            Some(Err(_)) => return Cut,
            None => return Answer(status),
        }
    }
    Endless
}

/// Nothing but what the application said in place of an answer, or a page of ours, or the frames of a websocket.
fn is_of_the_fault(seen: Seen, data: &[u8]) -> bool {
    match seen {
        Answer(200) | Cut | Endless => data.iter().eq(b"decoy".iter().cycle().take(data.len())),
        // The close frame that says that the server is gone stands between frames only.
        Tunnel => !data.starts_with(b"\x81") || data == b"\x81\x0adecoy",
        _ => !data.windows(5).any(|part| part == b"decoy"),
    }
}

/// The line of the access log for what was seen.
fn logged(seen: Seen) -> &'static [&'static str] {
    match seen {
        Answer(200) | Cut => &["200"],
        Answer(502) => &["502"],
        Answer(503) => &["503"],
        Answer(504) => &["504"],
        Endless => &["499"],
        Tunnel => &["101"],
        _ => &[],
    }
}

struct Run {
    served: Served,
    certificate: CertificateDer<'static>,
    met: Arc<Met>,
    /// Requests so far, and what stands in the log of those that met a fault.
    requests: usize,
    lines: Vec<(String, Seen)>,
    wrong: Vec<String>,
}

impl Run {
    /// `client` meets one fault, while `other` is answered; then both are.
    async fn meet(
        &mut self,
        name: &str,
        seen_may_be: &[Seen],
        path: &str,
        method: &str,
        websocket: bool,
        clients: &mut [Client; 2],
    ) {
        let [client, other] = clients;
        let target = format!("{path}/{}", self.requests);
        let well = [1, 2, 3].map(|number| format!("/well/{}", self.requests + number));
        self.requests += 4;
        let before = self.met.failed.load(Ordering::SeqCst);
        let mut wrong = Vec::new();

        let ((seen, data), during) =
            tokio::join!(client.see(method, &target, websocket), other.is_well(&well[0], false));
        if !seen_may_be.contains(&seen) {
            wrong.push(format!("{seen:?} with {} bytes, and not one of {seen_may_be:?}", data.len()));
        }
        if !is_of_the_fault(seen, &data) {
            wrong
                .push(format!("{seen:?}: not of the fault: {}", String::from_utf8_lossy(&data[..data.len().min(200)])));
        }
        let attempts = self.met.failed.load(Ordering::SeqCst) - before;
        if attempts > if method == "POST" { 1 } else { 3 } {
            wrong.push(format!("{attempts} attempts"));
        }
        // After a whole answer a connection goes on; of h2 it does always.
        let after = client.is_well(&well[1], !matches!(seen, Answer(_))).await;
        let after = [during, after, other.is_well(&well[2], false).await];
        wrong.extend(after.into_iter().filter_map(Result::err).map(|error| format!("another request: {error}")));
        let closed = timeout(WITHIN, async {
            while self.met.open.load(Ordering::SeqCst) > 0 {
                sleep(Duration::from_millis(2)).await;
            }
        });
        if closed.await.is_err() {
            wrong.push("its connection stays open".to_owned());
        }
        if self.met.used_again.swap(0, Ordering::SeqCst) > 0 {
            wrong.push("its connection was used again".to_owned());
        }
        self.lines.push((target.clone(), seen));
        self.wrong.extend(wrong.into_iter().map(|wrong| format!("{name}, {method} {target}: {wrong}")));
    }

    /// What stays behind, once all clients have gone.
    fn end(mut self) {
        let served = &self.served;
        let log = || served.log("access.log");
        let end = Instant::now() + WITHIN;
        while log().lines().count() < self.requests && Instant::now() < end {
            thread::park_timeout(Duration::from_millis(5));
        }
        let log = log();
        let mut lines = vec![0; self.requests];
        for line in log.lines() {
            let target = line.split(' ').next().unwrap();
            lines[target.rsplit('/').next().unwrap().parse::<usize>().unwrap()] += 1;
        }
        let other = lines.iter().enumerate().filter(|(_, lines)| **lines != 1);
        self.wrong.extend(other.map(|(number, lines)| format!("the log has {lines} lines of request {number}")));
        for (target, seen) in &self.lines {
            let start = format!("{target} ");
            let lines: Vec<_> = log.lines().filter_map(|line| line.strip_prefix(&start)).collect();
            // Whoever looks finds why.
            let fits = |line: &&&str| {
                let (status, note) = line.split_once(' ').unwrap_or((**line, "-"));
                logged(*seen).contains(&status) && (matches!(seen, Answer(200) | Endless | Tunnel) || note.len() > 1)
            };
            if lines.len() != 1 || lines.iter().filter(fits).count() != 1 {
                self.wrong.push(format!("{target}, {seen:?}: the log has {lines:?}"));
            }
        }
        let zero = |value: &Value| value.as_u64() == Some(0);
        let mut status = Value::Null;
        wait_for("all counts to be zero", || {
            status = served.status();
            let upstreams = status["upstreams"].as_array().unwrap();
            let inside = upstreams.iter().all(|upstream| {
                let endpoints = upstream["endpoints"].as_array().unwrap();
                zero(&upstream["in_flight"])
                    && zero(&upstream["queue_depth"])
                    && endpoints.iter().all(|endpoint| zero(&endpoint["in_flight"]))
            });
            inside && zero(&status["connections"]) && zero(&status["tunnels"])
        });
        wait_for("an empty spool", || served.get("admin.sock", "/metrics").contains("\nvestibule_spool_bytes 0\n"));
        if !zero(&status["processes"]["crashes"]) || served.events().contains("panicked") {
            self.wrong.push(format!("a crash: {}", served.events()));
        }
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

fn all_faults(kind: Kind, protocol: Protocol) {
    let folder = served::folder();
    let certificate = clients::certificate(folder.path(), "site", &["localhost"]);
    let met = Arc::default();
    let app = failing(protocol, &met);
    let (_taken, refusing) = refusing();
    let (resetting, closing) = (Backend::start(reset), Backend::start(drop));
    let spoken = if protocol == Protocol::Uwsgi { "uwsgi" } else { "http" };
    let upstream = |(name, address): (&str, SocketAddr)| {
        format!("  {name}: {{ protocol: {spoken}, endpoints: ['{address}'], hold: 0, connect_timeout: 500ms }}\n")
    };
    let upstreams =
        [("app", app.address), ("refusing", refusing), ("resetting", resetting.address), ("closing", closing.address)];
    let deadlines = "timeout: 500ms, progress_timeout: 500ms, tunnel_idle: 500ms, minimum_rate: 1KiB";
    let unread = UNREAD.map(|(name, _)| format!("  - {{ prefix: /{name}, upstream: {name}, {deadlines} }}\n"));
    let configuration = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}, {{ address: '127.0.0.1:0', tls: true }}]\n\
         {tls}workers: 1\nlimits: {{ keep_alive: 60s }}\n\
         access_log: {{ path: access.log, format: '{{target}} {{status}} {{note}}' }}\n\
         upstreams:\n{upstreams}routes:\n  - {{ prefix: /, upstream: app }}\n\
         \x20 - {{ prefix: /fault, upstream: app, {deadlines} }}\n\
         \x20 - {{ prefix: /streamed, upstream: app, {deadlines}, buffer: {{ request: false, response: false }} }}\n{unread}",
        tls = clients::tls(&["site"]),
        upstreams = upstreams.map(upstream).concat(),
        unread = unread.concat(),
    );
    let served = Served::start_in(folder, &configuration, |_| {});
    let mut run = Run { served, certificate, met, requests: 0, lines: Vec::new(), wrong: Vec::new() };

    let websocket = kind == Kind::Websocket;
    let methods: &[_] = if websocket { &["GET"] } else { &["GET", "POST"] };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut clients = [
            Client::new(kind, &run.served, &run.certificate).await,
            Client::new(kind, &run.served, &run.certificate).await,
        ];
        for method in methods {
            for (name, seen) in UNREAD {
                run.meet(name, seen, &format!("/{name}"), method, websocket, &mut clients).await;
            }
            for (number, fault) in FAULTS.iter().chain(SWITCHES).enumerate() {
                let switches = websocket && protocol == Protocol::Http;
                let seen = if number < FAULTS.len() || switches { fault.seen } else { &[Answer(502)] };
                for path in ["", "/streamed"] {
                    let path = format!("{path}/fault/{number}");
                    run.meet(fault.name, seen, &path, method, websocket, &mut clients).await;
                }
            }
        }
    });
    drop(runtime);
    run.end();
}

#[test]
fn no_fault_of_an_application_passes_for_an_answer_over_http_1() {
    all_faults(Kind::Http1, Protocol::Http);
}

#[test]
fn no_fault_of_an_application_passes_for_an_answer_over_http_2() {
    all_faults(Kind::Http2, Protocol::Http);
}

#[test]
fn no_fault_of_an_application_passes_for_an_answer_to_a_websocket() {
    all_faults(Kind::Websocket, Protocol::Http);
}

#[test]
fn no_fault_of_an_application_behind_uwsgi_passes_for_an_answer_over_http_1() {
    all_faults(Kind::Http1, Protocol::Uwsgi);
}

#[test]
fn no_fault_of_an_application_behind_uwsgi_passes_for_an_answer_over_http_2() {
    all_faults(Kind::Http2, Protocol::Uwsgi);
}

#[test]
fn no_fault_of_an_application_behind_uwsgi_passes_for_an_answer_to_a_websocket() {
    all_faults(Kind::Websocket, Protocol::Uwsgi);
}
