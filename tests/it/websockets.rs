//! Websockets through the gateway: a tungstenite client and server, or bytes where it matters.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        handshake::server::{Request, Response},
        protocol::{Role, frame::coding::CloseCode},
    },
};

use crate::support::{
    Backend, PATIENCE, TestGateway,
    clients::{self, block_on},
    connect, header, proxying, read_head, read_request, status, wait_for,
};

/// An open websocket through the gateway at `address`.
pub(crate) fn websocket(address: SocketAddr) -> tungstenite::WebSocket<TcpStream> {
    tungstenite::client(format!("ws://localhost:{}/ws", address.port()), connect(address)).unwrap().0
}

/// A tungstenite server that sends every message back, and keeps the heads of its handshakes.
pub(crate) struct Echo {
    pub(crate) backend: Backend,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Echo {
    pub(crate) fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let backend = Backend::start({
            let seen = Arc::clone(&seen);
            move |stream| {
                #[allow(clippy::result_large_err, reason = "tungstenite asks for it")]
                let callback = |request: &Request, mut response: Response| {
                    let mut head = format!("GET {}\n", request.uri());
                    for (name, value) in request.headers() {
                        head.extend([name.as_str(), ": ", value.to_str().unwrap(), "\n"]);
                    }
                    seen.lock().unwrap().push(head);
                    if let Some(offered) = request.headers().get("sec-websocket-protocol") {
                        let first = offered.to_str().unwrap().split(',').next().unwrap().to_owned();
                        response.headers_mut().insert("sec-websocket-protocol", first.parse().unwrap());
                    }
                    Ok(response)
                };
                let Ok(mut socket) = tungstenite::accept_hdr(stream, callback) else { return };
                while let Ok(message) = socket.read() {
                    if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
                        return;
                    }
                }
            }
        });
        Self { backend, seen }
    }

    /// The head of the last handshake.
    pub(crate) fn seen(&self) -> String {
        self.seen.lock().unwrap().last().expect("a handshake").clone()
    }

    /// A gateway that has it at `/ws/`.
    fn behind(&self, route: &str) -> TestGateway {
        TestGateway::start(&at_ws(self.backend.address, route))
    }
}

fn at_ws(backend: SocketAddr, route: &str) -> String {
    proxying(backend, "", &format!("strip_prefix: true, {route}")).replace("prefix: /,", "prefix: /ws/, host: null,")
}

type Client = WebSocketStream<tokio::net::TcpStream>;

async fn open(gateway: &TestGateway, path: &str, fields: &[(&'static str, &str)]) -> (Client, http::HeaderMap) {
    let address = gateway.address(0);
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    (client, response.headers().clone())
}

async fn echo<S>(client: &mut WebSocketStream<S>, message: Message)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    client.send(message.clone()).await.unwrap();
    let answer = client.next().await.unwrap().unwrap();
    assert!(answer == message, "{} bytes came back of {}", answer.len(), message.len());
}

#[test]
fn messages_of_every_size_come_back() {
    let server = Echo::start();
    let gateway = server.behind("");
    block_on(async {
        let (mut client, _) = open(&gateway, "/ws/socket.io/?EIO=4&transport=websocket", &[]).await;
        for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
            echo(&mut client, Message::binary(vec![7; size])).await;
        }
        echo(&mut client, Message::text("Grüße ☃")).await;
    });
}

#[test]
fn the_prefix_is_stripped_and_what_the_handshake_says_is_passed_on() {
    let server = Echo::start();
    let gateway = server.behind("");
    let fields = [
        ("origin", "https://justice.example.com"),
        ("cookie", "session=abc; other=1"),
        ("sec-websocket-protocol", "chat, superchat"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
    ];

    let (_, answered) = block_on(open(&gateway, "/ws/socket.io/?EIO=4", &fields));

    let seen = server.seen();
    assert!(seen.starts_with("GET /socket.io/?EIO=4\n"), "{seen}");
    for (name, value) in fields {
        assert!(seen.contains(&format!("\n{name}: {value}\n")), "{name} is not as it was sent: {seen}");
    }
    assert!(seen.contains("\nsec-websocket-version: 13\n") && seen.contains("\nsec-websocket-key: "), "{seen}");
    assert!(seen.contains("\nx-forwarded-for: 127.0.0.1\n"), "{seen}");
    assert_eq!(answered["sec-websocket-protocol"], "chat");
}

#[test]
fn an_upgrade_needs_no_transport_in_the_query_and_no_letter_case() {
    let server = Echo::start();
    let gateway = server.behind("");
    for (path, upgrade, connection) in [
        ("/ws/socket.io/", "websocket", "Upgrade"),
        ("/ws/socket.io/?Transport=WebSocket", "WebSocket", "upgrade"),
        ("/ws/socket.io/?transport=polling", "WEBSOCKET", "keep-alive, UPGRADE"),
        ("//ws/socket.io/", "websocket", "Upgrade"),
        ("/ws", "websocket", "Upgrade"),
    ] {
        let mut client = connect(gateway.address(0));
        client.write_all(handshake(path, upgrade, connection).as_bytes()).unwrap();

        let answer = read_head(&mut client);

        assert_eq!(status(&answer), 101, "{path} {upgrade} {connection}: {answer}");
        assert_eq!(header(&answer, "sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    }
}

/// The key is the one of RFC 6455, 1.3.
pub(crate) fn handshake(path: &str, upgrade: &str, connection: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: {upgrade}\r\nConnection: {connection}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

#[test]
fn no_other_protocol_is_switched_to() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    for upgrade in ["h2c", "TLS/1.0", "foo"] {
        let answer = gateway.raw(format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\
             Connection: Upgrade, HTTP2-Settings, close\r\n\r\n"
        ));

        assert_eq!(status(&answer), 200, "{upgrade}");
        let seen = answer.split_once("\r\n\r\n").unwrap().1.to_ascii_lowercase();
        assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{upgrade}: {seen}");
    }
}

#[test]
fn fragments_and_pings_pass_as_they_are() {
    let (sent, received) = mpsc::channel();
    let backend = switching(move |mut stream| {
        let mut bytes = vec![0; 27];
        stream.read_exact(&mut bytes).unwrap();
        sent.send(bytes).unwrap();
        // A pong, and a text in two fragments with a ping between them.
        stream.write_all(b"\x8a\x02hi\x01\x03abc\x89\x00\x80\x03def").unwrap();
        drop(stream.read(&mut [0]));
    });
    let gateway = TestGateway::start(&at_ws(backend.address, ""));
    let mut client = upgraded(&gateway);
    // Masked with zeros: a fragment, a ping, the last fragment, each in pieces of its own.
    let frames = b"\x01\x83\0\0\0\0abc\x89\x82\0\0\0\0hi\x80\x84\0\0\0\0defg";

    for byte in frames {
        client.write_all(&[*byte]).unwrap();
    }
    let mut answer = [0; 16];
    client.read_exact(&mut answer).unwrap();

    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), frames);
    assert_eq!(&answer, b"\x8a\x02hi\x01\x03abc\x89\x00\x80\x03def");
}

/// A backend that switches to the protocol of `serve` at each request.
fn switching(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Backend {
    Backend::start(move |mut stream| {
        if read_request(&mut stream).is_some() {
            stream
                .write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                )
                .unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            serve(stream);
        }
    })
}

fn upgraded(gateway: &TestGateway) -> TcpStream {
    let mut client = connect(gateway.address(0));
    client.write_all(handshake("/ws/", "websocket", "Upgrade").as_bytes()).unwrap();
    let head = read_head(&mut client);
    assert_eq!(status(&head), 101, "{head}");
    client
}

#[test]
fn what_is_sent_right_behind_the_handshakes_is_not_lost() {
    let backend = Backend::start(|mut stream| {
        let request = read_request(&mut stream).unwrap();
        assert!(request.ends_with(b"\r\n\r\n"));
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05early",
            )
            .unwrap();
        let mut bytes = [0; 9];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let gateway = TestGateway::start(&at_ws(backend.address, ""));
    let mut client = connect(gateway.address(0));

    client.write_all((handshake("/ws/", "websocket", "Upgrade") + "\u{1}sent too").as_bytes()).unwrap();

    read_head(&mut client);
    let mut bytes = [0; 16];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\x81\x05early\x01sent too");
}

#[test]
fn a_refused_handshake_is_passed_on_and_the_connection_stays() {
    let backend = Backend::replying("HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\nX-Why: origin\r\n\r\nnot for yo");
    let gateway = TestGateway::start(&at_ws(backend.address, ""));
    let mut client = connect(gateway.address(0));
    for _ in 0..2 {
        client.write_all(handshake("/ws/", "websocket", "Upgrade").as_bytes()).unwrap();

        let head = read_head(&mut client);
        let mut body = [0; 10];
        client.read_exact(&mut body).unwrap();

        assert_eq!((status(&head), header(&head, "x-why").as_deref()), (403, Some("origin")));
        assert_eq!(&body, b"not for yo");
    }
}

#[test]
fn two_hundred_sockets_at_once_echo() {
    let server = Echo::start();
    let gateway = server.behind("");
    block_on(async {
        let sockets = (0..200_u32).map(|number| {
            let gateway = &gateway;
            async move {
                let (mut client, _) = open(gateway, "/ws/", &[]).await;
                for _ in 0..3 {
                    echo(&mut client, Message::text(number.to_string())).await;
                }
                client
            }
        });
        // All stay open to the end.
        let open = futures_util::future::join_all(sockets).await;
        assert_eq!(open.len(), 200);
    });
}

#[test]
fn sockets_over_tls_echo() {
    let server = Echo::start();
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["localhost"]);
    let configuration = at_ws(server.backend.address, "").replace("0' }", "0', tls: true }") + &clients::tls(&["site"]);
    let gateway = TestGateway::start_in(folder, &configuration);
    block_on(async {
        let config = Arc::new(clients::client(&[&certificate], &["http/1.1"]));
        let sockets = (0..50).map(|_| {
            let (config, address) = (Arc::clone(&config), gateway.address(0));
            async move {
                let stream = clients::tls_connect(address, "localhost", config).await.unwrap();
                let (mut client, _) = tokio_tungstenite::client_async("wss://localhost/ws/", stream).await.unwrap();
                echo(&mut client, Message::binary(vec![9; 100_000])).await;
                client
            }
        });
        futures_util::future::join_all(sockets).await;
    });
    assert!(server.seen().contains("\nx-forwarded-proto: https\n"), "{}", server.seen());
}

#[test]
fn a_socket_on_which_nothing_moves_is_closed_after_the_idle_time() {
    let server = Echo::start();
    let gateway = server.behind("tunnel_idle: 300ms");
    let mut client = upgraded(&gateway);
    let began = std::time::Instant::now();

    let read = client.read(&mut [0; 16]);

    assert!(matches!(read, Ok(0)) || read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    assert!(began.elapsed() >= Duration::from_millis(250), "closed after {:?}", began.elapsed());
    assert!(gateway.log(1)[0].contains("\" 101 "));
}

#[test]
fn a_socket_that_is_used_outlives_the_idle_time() {
    let server = Echo::start();
    let gateway = server.behind("tunnel_idle: 300ms");
    block_on(async {
        let (mut client, _) = open(&gateway, "/ws/", &[]).await;
        for _ in 0..8 {
            echo(&mut client, Message::text("still here")).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn a_stop_closes_sockets_with_1001_on_both_sides() {
    let (close, closings) = mpsc::channel();
    let backend = switching(move |stream| {
        let mut socket = tungstenite::WebSocket::from_raw_socket(stream, Role::Server, None);
        if let Ok(Message::Close(Some(frame))) = socket.read() {
            close.send(frame.code).unwrap();
        }
        while socket.read().is_ok() {}
    });
    let gateway = TestGateway::start(&at_ws(backend.address, ""));
    let client = upgraded(&gateway);
    let mut client = tungstenite::WebSocket::from_raw_socket(client, Role::Client, None);

    let stopping = thread::spawn(move || gateway.stop(Duration::from_secs(5)));

    match client.read().unwrap() {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("a close expected, not {other:?}"),
    }
    while client.read().is_ok() {}
    assert_eq!(closings.recv_timeout(PATIENCE).unwrap(), CloseCode::Away);
    assert!(stopping.join().unwrap(), "the stop was not clean");
}

#[test]
fn a_stop_waits_for_the_frame_that_is_under_way() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let payload = vec![0x88; 1 << 20];
    let backend = switching({
        let payload = payload.clone();
        move |mut stream| {
            let mut head = vec![0x82, 127];
            head.extend((payload.len() as u64).to_be_bytes());
            stream.write_all(&head).unwrap();
            stream.write_all(&payload[..300_000]).unwrap();
            gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            stream.write_all(&payload[300_000..]).unwrap();
            // Behind the frame, and too late.
            drop(stream.write_all(b"\x81\x04late"));
            while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
        }
    });
    let gateway = TestGateway::start(&at_ws(backend.address, ""));
    let mut client = upgraded(&gateway);
    let mut begun = vec![0; 100_000];
    client.read_exact(&mut begun).unwrap();

    let address = gateway.address(0);
    let stopping = thread::spawn(move || gateway.stop(Duration::from_secs(5)));
    wait_for("the gateway to drain", || TcpStream::connect(address).is_err());
    go.send(()).unwrap();
    let mut rest = Vec::new();
    // The end may be a reset, as we do not answer the Close.
    drop(client.read_to_end(&mut rest));

    begun.extend(rest);
    let (frame, behind) = begun[10..].split_at(payload.len().min(begun.len() - 10));
    assert!(frame == payload, "{} bytes of the frame arrived", frame.len());
    assert_eq!(behind, [0x88, 0x02, 0x03, 0xe9], "a close after the frame");
    stopping.join().unwrap();
}

#[test]
fn a_client_that_vanishes_ends_the_backends_side() {
    let (ends, ended) = mpsc::channel();
    let backend = switching(move |mut stream| {
        let end = stream.read(&mut [0; 16]);
        ends.send(end.map_or(0, |read| read)).unwrap();
    });
    let gateway = TestGateway::start(&at_ws(backend.address, ""));
    let client = upgraded(&gateway);

    drop(client);

    assert_eq!(ended.recv_timeout(PATIENCE), Ok(0));
    assert!(gateway.log(1)[0].contains("GET /ws/ HTTP/1.1\" 101"), "{:?}", gateway.log(1));
}

#[test]
fn a_backend_that_vanishes_ends_the_clients_side() {
    let backend = switching(drop);
    let gateway = TestGateway::start(&at_ws(backend.address, ""));
    let mut client = upgraded(&gateway);

    let mut rest = Vec::new();
    drop(client.read_to_end(&mut rest));

    assert_eq!(rest, [0x88, 0x02, 0x03, 0xf4], "a close with 1012 in its place");
}

#[test]
fn a_piece_of_a_polling_answer_reaches_the_client_at_once() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let backend = Backend::start(move |mut stream| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").unwrap();
        // Until the client has had it.
        gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").unwrap();
    });
    let gateway = TestGateway::start(&at_ws(backend.address, "buffer: { request: false, response: false }"));
    let mut client = connect(gateway.address(0));
    client
        .write_all(b"GET /ws/socket.io/?transport=polling HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();

    let mut answer = read_head(&mut client);
    let mut first = [0; 10];
    client.read_exact(&mut first).unwrap();
    go.send(()).unwrap();
    client.read_to_string(&mut answer).unwrap();

    assert_eq!(&first, b"5\r\nfirst\r\n");
    assert!(answer.ends_with("6\r\nsecond\r\n0\r\n\r\n"), "{answer}");
}

#[test]
fn a_path_that_only_begins_like_the_prefix_is_not_the_websocket_route() {
    let server = Echo::start();
    let gateway = server.behind("");

    let answer = gateway.raw(handshake("/wsfoo", "websocket", "Upgrade, close"));

    assert_eq!(status(&answer), 404);
}

/// A server of websockets that lets each be used for one message, and is then gone without a word, as one that is killed.
fn short_lived() -> Backend {
    Backend::start(|stream| {
        let Ok(mut socket) = tungstenite::accept(stream) else { return };
        let message = socket.read().unwrap();
        socket.send(message).unwrap();
    })
}

#[test]
fn the_client_of_a_server_that_is_gone_without_a_word_is_told_that_it_restarts() {
    let server = short_lived();
    let gateway = TestGateway::start(&at_ws(server.address, ""));
    let mut client = websocket(gateway.address(0));
    client.send(Message::text("one")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("one"));

    let Message::Close(Some(close)) = client.read().unwrap() else { panic!("no word of the end") };
    assert_eq!(close.code, CloseCode::Restart);
    assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)), "closed by both sides");
    // And comes again.
    let mut client = websocket(gateway.address(0));
    client.send(Message::text("two")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("two"));
}
