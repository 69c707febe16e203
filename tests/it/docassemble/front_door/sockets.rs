//! F32 to F37: how the socket server is met when it is quiet, slow, elsewhere, gone and back.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::super::{
    super::support::{
        Backend, Gate, body, connect,
        network::{BALANCER, in_network},
        read_head, read_request, read_rest, status, wait_for,
    },
    installed::{HOST, Installed, upgrade},
};

const EIGHTY: ([u8; 4], u16) = ([127, 0, 0, 1], 80);
const HANDSHAKE: &str = "GET /ws/socket.io/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A tunnel to the socket server.
fn tunnel() -> TcpStream {
    let mut stream = connect(EIGHTY.into());
    stream.write_all(HANDSHAKE.as_bytes()).unwrap();
    assert_eq!(status(&read_head(&mut stream)), 101);
    stream
}

#[test]
fn f32_a_websocket_that_says_little_stays_up_and_may_be_silent_for_a_day() {
    in_network(|| {
        // Every other clock of ours is shorter than the silence.
        let clocks = "limits: { keep_alive: 300ms, progress_timeout: 300ms, head_timeout: 300ms }\n\
                      routes: [{ prefix: /ws/, timeout: 300ms }]\n";
        let prepare = |root: &std::path::Path| fs::write(root.join("overlay.yml"), clocks).unwrap();
        let site = Installed::bare("root: /\n", &[], prepare);
        let _sockets = Backend::start_at("127.0.0.1:5000", echo);
        let mut quiet = tunnel();
        for _ in 0..3 {
            // One that is idle by the other clocks: we close it.
            assert_eq!(read_rest(&mut connect(EIGHTY.into())), b"");
        }

        quiet.write_all(b"ping!").unwrap();
        let mut back = [0; 5];
        quiet.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"ping!");
        let route = site.plan()["routes"].as_array().unwrap().iter().find(|route| route["prefix"] == "/ws").cloned();
        assert_eq!(route.unwrap()["tunnel_idle"]["secs"], 86_400);
    });
}

/// Switches to what sends everything back.
fn echo(mut stream: TcpStream) {
    let Some(_) = read_request(&mut stream) else { return };
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        if stream.write_all(&piece[..length]).is_err() {
            return;
        }
    }
}

#[test]
fn f33_a_piece_of_a_polling_answer_reaches_the_client_before_the_next_is_made() {
    in_network(|| {
        let gate = Gate::default();
        let _site = Installed::bare("root: /\n", &[], |_| {});
        let _sockets = Backend::start_at("127.0.0.1:5000", {
            let gate = gate.clone();
            move |mut stream| {
                read_request(&mut stream);
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\nfour";
                stream.write_all(head.as_bytes()).unwrap();
                gate.wait();
                stream.write_all(b"more").unwrap();
            }
        });
        let mut polling = connect(EIGHTY.into());
        polling
            .write_all(
                b"GET /ws/socket.io/?transport=polling HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n",
            )
            .unwrap();
        assert_eq!(status(&read_head(&mut polling)), 200);
        let mut piece = [0; 4];
        polling.read_exact(&mut piece).unwrap();
        assert_eq!(&piece, b"four", "while the rest is not there yet");
        gate.open();
        assert_eq!(read_rest(&mut polling), b"more");
    });
}

#[test]
fn f36_an_exposed_socket_server_is_found_at_the_address_of_the_machine_and_else_on_loopback() {
    in_network(|| {
        let site = Installed::bare("root: /\nexpose websockets: True\n", &[], |_| {});
        let ask = || body(&site.get(80, "/ws/socket.io/", HOST));
        let answering = |address: &str, name: &'static str| {
            Backend::start_at(address, move |mut stream| {
                read_request(&mut stream);
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n";
                stream.write_all((head.to_owned() + name).as_bytes()).ok();
            })
        };
        let exposed = answering(&format!("{BALANCER}:5000"), "interface");
        assert_eq!(ask(), "interface");
        let _loopback = answering("127.0.0.1:5000", "loopback!");
        drop(exposed);
        wait_for("the other address", || ask() == "loopback!");
    });
}

#[test]
fn f37_a_restart_of_the_socket_server_ends_its_tunnels_and_the_next_handshake_waits_for_it() {
    in_network(|| {
        let site = Installed::bare("root: /\n", &[], |_| {});
        let first = TcpListener::bind("127.0.0.1:5000").unwrap();
        let (mut open, mut inside) = {
            let client = thread::spawn(tunnel);
            let mut inside = first.accept().unwrap().0;
            read_request(&mut inside);
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            inside.write_all(head.as_bytes()).unwrap();
            (client.join().unwrap(), inside)
        };
        // It goes as the real one does: a Close, and the end.
        inside.write_all(b"\x88\x02\x03\xe9").unwrap();
        drop((inside, first));
        assert_eq!(read_rest(&mut open), b"\x88\x02\x03\xe9", "its own word, and then the end");

        let began = Instant::now();
        let waiting = thread::spawn(|| upgrade(connect(SocketAddr::from(EIGHTY)), "/ws/socket.io/", HOST));
        wait_for("the handshake to find nobody", || site.served.events().contains("requests wait for it"));
        let _back = Backend::start_at("127.0.0.1:5000", echo);
        let (head, echoed) = waiting.join().unwrap();
        assert_eq!((status(&head), echoed.as_str()), (101, "hello"));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    });
}
