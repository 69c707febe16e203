//! What a panic on the path of a request ends, and what it does not.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{
    config::{self, ListenAddress},
    gateway::Gateway,
    http::{Body, GatewayError},
    keeper::Provisions,
    tls::TicketKeys,
};

/// The fault that is asked for by `path`: in place of the head, or behind the first piece of the body.
pub(super) fn faulty(path: &str, body: Body) -> Body {
    match path {
        "/panic" => panic!("as it was asked for"),
        "/panic-in-body" => Body::stream(Faulty(false)),
        _ => body,
    }
}

struct Faulty(bool);

impl http_body::Body for Faulty {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        assert!(!self.0, "as it was asked for");
        self.0 = true;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECE)))))
    }
}

/// A gateway with one traffic thread, a listener with TLS behind one without, and one place in an application whose
/// answers of one byte never end by themselves.
struct Faults {
    gateway: Gateway,
    folder: tempfile::TempDir,
}

impl Faults {
    fn start() -> Self {
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = application.local_addr().unwrap();
        thread::spawn(move || {
            for stream in application.incoming() {
                thread::spawn(move || answer(stream.unwrap()));
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "listeners: [{{ address: '127.0.0.1:0' }}, {{ address: '127.0.0.1:0', tls: true }}]\n\
             upstreams: {{ app: {{ endpoints: ['{address}'], concurrency: 1 }} }}\n\
             routes: [{{ prefix: /, upstream: app, buffer: {{ response: false }} }}]\n\
             tls: {{ storage: storage }}\nspool: {{ path: . }}\nworkers: 1\n\
             access_log: {{ path: access.log, format: '{{target}} {{status}} {{note}}' }}\n"
        );
        let file = folder.path().join("vestibule.yml");
        let plan = config::parse(file.to_str().unwrap(), &text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        let provisions = Provisions::gather(&plan).unwrap_or_else(|faults| panic!("{faults}"));
        let gateway = Gateway::start(plan, provisions, 1, &TicketKeys::generate().unwrap(), None).unwrap();
        Self { gateway, folder }
    }

    fn address(&self, number: usize) -> SocketAddr {
        match &self.gateway.addresses()[number] {
            ListenAddress::Tcp(address) => *address,
            other => panic!("{other}"),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address(0)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Waits for `series` to be zero.
    fn wait_for_none(&self, series: &str) {
        let end = Instant::now() + SOON;
        let zero = format!("{series} 0\n");
        while !self.gateway.metrics.encode().contains(&zero) {
            assert!(Instant::now() < end, "{series} is not 0: {}", self.gateway.metrics.encode());
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Stops and answers the lines of the access log.
    fn stop(self) -> Vec<String> {
        assert!(self.gateway.stop(SOON).is_nothing());
        let log = fs::read_to_string(self.folder.path().join("access.log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }
}

/// `/` whole, anything else in part.
fn answer(mut stream: TcpStream) {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        request.push(byte[0]);
    }
    let length = if request.starts_with(b"GET / ") { 2 } else { 3 };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\nok").unwrap();
    // Until we are hung up on.
    while stream.read(&mut byte).is_ok_and(|count| count > 0) {}
}

fn get(stream: &mut TcpStream, path: &str, version: &str) {
    write!(stream, "GET {path} HTTP/{version}\r\nHost: localhost\r\n\r\n").unwrap();
}

fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    // A reset is an end, too.
    stream.read_to_string(&mut text).ok();
    text
}

/// The head of an answer and its body of two bytes.
fn whole(stream: &mut TcpStream) -> String {
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\nok") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_panic_before_the_head_is_answered_500_and_ends_that_connection_only() {
    let faults = Faults::start();
    let (mut other, mut client) = (faults.connect(), faults.connect());
    get(&mut other, "/", "1.1");
    whole(&mut other);

    get(&mut client, "/panic", "1.1");
    let answer = rest(&mut client);

    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("<html") && !answer.contains("asked"), "{answer}");
    // The place is free again, the only one there is, and the other connection as it was.
    get(&mut other, "/", "1.1");
    assert!(whole(&mut other).starts_with("HTTP/1.1 200 "));
    drop(other);
    faults.wait_for_none("vestibule_upstream_in_flight{upstream=\"app\"}");
    let listener = faults.address(0);
    faults.wait_for_none(&format!("vestibule_connections{{listener=\"{listener}\"}}"));
    let lines = faults.stop();
    let told = "/panic 500 a fault of vestibule's own: a panic, which the event log tells of";
    assert!(lines.contains(&told.to_owned()), "{lines:?}");
}

#[test]
fn a_panic_behind_the_head_cuts_the_answer_so_that_it_is_not_taken_for_whole() {
    let faults = Faults::start();

    let mut client = faults.connect();
    get(&mut client, "/panic-in-body", "1.1");
    let answer = rest(&mut client);
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.ends_with("0\r\n\r\n"), "{answer:.200}");

    // Where the end of the connection is the end of the body, it is reset.
    let mut client = faults.connect();
    get(&mut client, "/panic-in-body", "1.0");
    let mut read = Vec::new();
    let end = client.read_to_end(&mut read);
    assert!(end.is_err(), "{:.200}", String::from_utf8_lossy(&read));

    let mut client = faults.connect();
    get(&mut client, "/", "1.1");
    assert!(whole(&mut client).starts_with("HTTP/1.1 200 "));
    drop(client);
    let lines = faults.stop();
    let told = lines.iter().filter(|line| line.starts_with("/panic-in-body 200 a fault of vestibule's own")).count();
    assert_eq!(told, 2, "{lines:?}");
}

#[test]
fn over_h2_a_panic_ends_its_stream_only() {
    let faults = Faults::start();
    let certificate = faults.folder.path().join("storage/self-signed/localhost.crt");
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    let address = faults.address(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();

    runtime.block_on(async {
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        runtime.spawn(connection);
        let mut get = |path: &str| {
            let request = http::Request::get(format!("https://localhost{path}")).body(Empty::<Bytes>::new()).unwrap();
            sender.send_request(request)
        };

        assert_eq!(get("/panic").await.unwrap().status(), 500);
        // Of a stream that is reset at once, the head may never be seen.
        if let Ok(cut) = get("/panic-in-body").await {
            assert_eq!(cut.status(), 200);
            cut.into_body().collect().await.unwrap_err();
        }
        let answer = get("/").await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    });
    drop(runtime);

    faults.wait_for_none(&format!("vestibule_connections{{listener=\"{address}\"}}"));
    let lines = faults.stop();
    assert!(lines.iter().any(|line| line.starts_with("/panic 500 a fault")), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("/panic-in-body 200 a fault")), "{lines:?}");
}

/// More than what waits for company.
static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];

const SOON: Duration = Duration::from_secs(10);
