//! What becomes of clients that take too much, and that others are served meanwhile.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    http2,
    support::{
        Backend, Gate, PATIENCE, TestGateway,
        clients::{self, H2, block_on},
        ok, proxying, status, to_over_tls, wait_for,
    },
};

/// The type of the frame, its flags, its stream and what is in it.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `GET https://localhost/`, and the same with POST.
const GET: &[u8] = b"\x82\x87\x84\x41\x09localhost";
const POST: &[u8] = b"\x83\x87\x84\x41\x09localhost";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Sends what `attack` says at each turn until the connection ends: the code of the GOAWAY, if one came.
async fn attack(
    gateway: &TestGateway,
    certificate: &CertificateDer<'static>,
    attack: &dyn Fn(u32) -> Vec<u8>,
) -> Option<u32> {
    let config = clients::client(&[certificate], &["h2"]);
    let stream = clients::tls_connect(gateway.address(0), "localhost", config).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let write = async {
        writing.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        writing.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        for turn in 0..40_000 {
            if writing.write_all(&attack(turn)).await.is_err() {
                break;
            }
        }
        // It is heard of what was sent last.
        std::future::pending::<()>().await;
    };
    let read = async {
        let mut head = [0; 9];
        let mut code = None;
        while reading.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if reading.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    };
    tokio::select! {
        () = write => unreachable!("it never ends"),
        code = read => code,
    }
}

/// What one attack sends, by the number of its step.
type Frames<'a> = &'a dyn Fn(u32) -> Vec<u8>;

#[test]
fn a_flood_of_frames_ends_its_connection_and_no_other() {
    let backend = ok();
    let (gateway, certificate) = http2::before(&backend, "", "");
    let stream = |turn: u32| 2 * turn + 1;
    // A field of 4 KB that is remembered, and then named again and again.
    let bomb = |turn| {
        let mut block = [GET, b"\x40\x01a\x7f\xa1\x1e".as_slice(), &[b'b'; 4000]].concat();
        block.resize(16_000, 0xbe);
        frame(HEADERS, END_STREAM | END_HEADERS, stream(turn), &block)
    };
    let attacks: [(&str, Frames); 10] = [
        ("rapid reset", &|turn| {
            let open = frame(HEADERS, END_STREAM | END_HEADERS, stream(turn), GET);
            [open, frame(RST_STREAM, 0, stream(turn), &[0, 0, 0, 8])].concat()
        }),
        ("made you reset", &|turn| {
            let open = frame(HEADERS, END_HEADERS, stream(turn), POST);
            [open, frame(WINDOW_UPDATE, 0, stream(turn), &[0; 4])].concat()
        }),
        ("CONTINUATION", &|turn| match turn {
            0 => frame(HEADERS, END_STREAM, 1, GET),
            _ => frame(CONTINUATION, 0, 1, &[]),
        }),
        ("SETTINGS", &|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1])),
        ("PING", &|_| frame(PING, 0, 0, &[7; 8])),
        ("PRIORITY", &|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty DATA", &|turn| match turn {
            0 => frame(HEADERS, END_HEADERS, 1, POST),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("window updates", &|_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("frames nobody knows", &|_| frame(0xee, 0, 0, &[])),
        ("header bomb", &bomb),
    ];

    block_on(async {
        let mut other = H2::connect(gateway.address(0), "localhost", &certificate).await;
        for (name, frames) in attacks {
            let code = attack(&gateway, &certificate, frames).await;
            assert!(code.is_some_and(|code| code != 0), "{name}: {code:?}");
            assert_eq!(other.get("/").await.status(), 200, "{name}");
        }
    });
}

#[test]
fn what_is_taken_back_in_the_same_breath_does_not_reach_the_application() {
    let backend = ok();
    let (gateway, certificate) = http2::before(&backend, "", "");

    // Until there have been too many, which are about twenty.
    let code = block_on(attack(&gateway, &certificate, &|turn| {
        let open = frame(HEADERS, END_STREAM | END_HEADERS, 2 * turn + 1, GET);
        [open, frame(RST_STREAM, 0, 2 * turn + 1, &[0, 0, 0, 8])].concat()
    }));

    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert!(backend.connections() < 3, "{} have", backend.connections());
}

/// A client of this address, as a proxy says.
fn client_of(gateway: &TestGateway, address: &str) -> TcpStream {
    let mut stream = clients::connect_from("127.0.0.2", gateway.address(0));
    stream.write_all(format!("PROXY TCP6 {address} 2001:db8::1 4711 443\r\n").as_bytes()).unwrap();
    stream
}

/// The status and the answer to `request`; 0 where the connection is closed.
fn ask(stream: &mut TcpStream, request: &str) -> (u16, String) {
    drop(stream.write_all(request.as_bytes()));
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    (if answer.is_empty() { 0 } else { status(&answer) }, answer)
}

const PLAIN: &str = "GET /api/ HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn a_client_that_asks_too_much_is_told_when_to_come_again() {
    let backend = ok();
    let configuration = proxying(
        backend.address,
        "health: { path: /health }",
        "requests: [{ count: 2, per: 100s }, { by: 'cookie:s', count: 1, per: 1h }]",
    )
    .replace("0' }", "0', proxy_protocol: required }");
    let gateway = TestGateway::start(&(configuration + "trusted_proxies: [127.0.0.2]\n"));
    let mut stream = client_of(&gateway, "2001:db8:1::7");
    let cookie = |value: &str| PLAIN.replace("\r\n\r\n", &format!("\r\nCookie: s={value}\r\n\r\n"));

    assert_eq!(ask(&mut stream, &cookie("one")).0, 200);
    assert_eq!(ask(&mut stream, &cookie("two")).0, 200);
    let (status, answer) = ask(&mut stream, &cookie("three"));
    assert_eq!(status, 429, "{answer}");
    let answer = answer.to_ascii_lowercase();
    assert!(answer.contains("retry-after: 50\r\n") && answer.contains("application/json"), "{answer}");
    assert_eq!(ask(&mut stream, &PLAIN.replace("/api/", "/health")).0, 200, "on the same connection");
    assert_eq!(ask(&mut client_of(&gateway, "2001:db8:1::8"), &cookie("four")).0, 429, "of the same /64");
    assert_eq!(ask(&mut client_of(&gateway, "2001:db8:2::7"), &cookie("one")).0, 429, "with the same cookie");
    assert_eq!(ask(&mut client_of(&gateway, "2001:db8:3::7"), &cookie("five")).0, 200);
    assert!(gateway.gateway().metrics.encode().contains("vestibule_requests_limited_total 3\n"));
}

#[test]
fn a_client_has_its_connections_and_handshakes_and_others_have_theirs() {
    let backend = ok();
    let configuration = proxying(backend.address, "", "").replace("0' }", "0', proxy_protocol: required }");
    let gateway =
        TestGateway::start(&(configuration + "trusted_proxies: [127.0.0.2]\nlimits: { connections_per_address: 2 }\n"));
    let mut open = ["2001:db8:1::1", "2001:db8:1::2"].map(|address| client_of(&gateway, address));

    assert!(open.iter_mut().all(|stream| ask(stream, PLAIN).0 == 200));
    assert_eq!(ask(&mut client_of(&gateway, "2001:db8:1::3"), PLAIN).0, 0);
    assert_eq!(ask(&mut client_of(&gateway, "2001:db8:2::1"), PLAIN).0, 200);
    let metrics = gateway.gateway().metrics.encode();
    let counted =
        metrics.lines().any(|line| line.contains("connections_shed") && line.ends_with("reason=\"address\"} 1"));
    assert!(counted, "{metrics}");
    drop(open);
    wait_for("room for one more", || ask(&mut client_of(&gateway, "2001:db8:1::3"), PLAIN).0 == 200);
}

#[test]
fn a_client_has_its_streams_on_all_its_connections_and_others_have_theirs() {
    let gate = Gate::default();
    let backend = Backend::held_up(&gate, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["localhost"]);
    let configuration =
        to_over_tls(backend.address) + "trusted_proxies: [127.0.0.2]\nlimits: { streams_per_address: 2, exempt: [] }\n";
    let gateway =
        TestGateway::start_in(folder, &configuration.replace("tls: true }", "tls: true, proxy_protocol: required }"));
    let connect = async |address: &str| {
        let stream = client_of(&gateway, address);
        stream.set_nonblocking(true).unwrap();
        let config = clients::client(&[&certificate], &["h2"]);
        let stream =
            clients::tls_over(tokio::net::TcpStream::from_std(stream).unwrap(), "localhost", config).await.unwrap();
        H2::over(stream, "localhost").await
    };

    block_on(async {
        let mut connections =
            [connect("2001:db8:1::1").await, connect("2001:db8:1::2").await, connect("2001:db8:2::1").await];
        let mut asked = Vec::new();
        for connection in &mut connections {
            let request = connection.request("GET", "/").body(Full::default()).unwrap();
            connection.sender.ready().await.unwrap();
            asked.push(connection.sender.send_request(request));
        }
        while backend.connections() < 3 {
            // The clients are on this thread, too.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let request = connections[0].request("GET", "/").body(Full::default()).unwrap();
        let refused = connections[0].send(request).await.unwrap_err();
        assert!(format!("{refused:?}").contains("REFUSED_STREAM"), "{refused:?}");

        gate.open();
        for answer in asked {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
        assert_eq!(connections[0].get("/").await.status(), 200, "there is room again");
    });
    assert_eq!(gateway.gateway().metrics.requests_shed.get(), 1);
}

#[test]
fn a_client_makes_no_more_handshakes_than_it_may_nor_do_all_together() {
    let backend = ok();
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["localhost"]);
    let gateway = TestGateway::start_in(
        folder,
        &(proxying(backend.address, "", "").replace("0' }", "0', tls: true, proxy_protocol: required }")
            + &clients::tls(&["site"])
            + "trusted_proxies: [127.0.0.2]\n\
               limits: { handshakes_per_address: { count: 2, per: 1h }, handshakes: { count: 4, per: 1h } }\n"),
    );
    let shake = async |address: &str| {
        let stream = client_of(&gateway, address);
        stream.set_nonblocking(true)?;
        let config = clients::client(&[&certificate], &["http/1.1"]);
        clients::tls_over(tokio::net::TcpStream::from_std(stream)?, "localhost", config).await
    };

    block_on(async {
        let mut first = shake("2001:db8:1::1").await.unwrap();
        for (address, shakes) in [
            ("2001:db8:1::2", true),
            // Of the same /64, which has made two; that one counts for nobody.
            ("2001:db8:1::3", false),
            ("2001:db8:2::1", true),
            ("2001:db8:3::1", true),
            // The fifth of all.
            ("2001:db8:4::1", false),
        ] {
            let shaken = shake(address).await;
            assert_eq!(shaken.is_ok(), shakes, "{address}: {:?}", shaken.err());
        }
        // Who is inside stays.
        first.write_all(PLAIN.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        first.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    });
    let metrics = gateway.gateway().metrics.encode();
    let counted =
        metrics.lines().any(|line| line.contains("connections_shed") && line.ends_with("reason=\"handshakes\"} 2"));
    assert!(counted, "{metrics}");
}

/// What the kernel says this process has for itself, and the gateway with it.
fn memory() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<usize> = pages.split_whitespace().map(|pages| pages.parse().unwrap()).collect();
    (pages[1] - pages[2]) * 4096
}

#[test]
fn without_memory_for_more_new_clients_are_told_to_come_again_and_those_inside_are_served() {
    const LIMIT: usize = 1 << 30;
    let backend = ok();
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["localhost"]);
    let gateway = TestGateway::start_in(
        folder,
        &(proxying(backend.address, "", "").replace("0' }", "0' }, { address: '127.0.0.1:0', tls: true }")
            + &clients::tls(&["site"])
            + "limits: { memory: 1GiB, keep_alive: 30s }\n"),
    );
    let connect = || {
        let stream = TcpStream::connect(gateway.address(0)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut inside: Vec<_> = (0..65).map(|_| connect()).collect();
    assert!(inside.iter_mut().all(|stream| ask(stream, PLAIN).0 == 200));

    block_on(async {
        let mut h2 = H2::connect(gateway.address(1), "localhost", &certificate).await;
        assert_eq!(h2.get("/api/").await.status(), 200);
        let ballast = vec![1_u8; LIMIT + (32 << 20) - memory()];
        wait_for("a client that is turned away", || ask(&mut connect(), PLAIN).0 == 503);

        let (_, answer) = ask(&mut connect(), PLAIN);
        let answer = answer.to_ascii_lowercase();
        assert!(answer.contains("retry-after: 10\r\n") && answer.contains("connection: close\r\n"), "{answer}");
        let (answer, ended) = asking_at_once(&gateway, &certificate).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "10");
        assert!(ended.is_ok(), "its connection has ended by a GOAWAY: {ended:?}");
        assert!(inside.iter_mut().all(|stream| ask(stream, PLAIN).0 == 200));
        assert_eq!(h2.get("/api/").await.status(), 200);
        drop(ballast);
    });
    wait_for("a client that is let in", || ask(&mut connect(), PLAIN).0 == 200);
}

/// What a new h2 client is answered that asks with its first flight, as browsers do, and how its connection ends by itself.
async fn asking_at_once(
    gateway: &TestGateway,
    certificate: &CertificateDer<'static>,
) -> (Response<Incoming>, hyper::Result<()>) {
    let config = clients::client(&[certificate], &["h2"]);
    let stream = clients::tls_connect(gateway.address(1), "localhost", config).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let request = Request::get("https://localhost/api/").body(Full::<Bytes>::default()).unwrap();
    let (answer, ended) = tokio::join!(sender.send_request(request), connection);
    (answer.unwrap(), ended)
}
