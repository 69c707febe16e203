//! How it ends: for load balancers, requests, streams and websockets.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use tokio_tungstenite::tungstenite::{Message, WebSocket, protocol::frame::coding::CloseCode};

use crate::{
    queue::Held,
    support::{
        clients, connect, ok,
        served::{Served, folder, signal},
        status, to, to_over_tls, wait_for,
    },
    websockets::{Echo, websocket},
};

/// The code of the Close frame that comes next.
fn close_code(socket: &mut WebSocket<TcpStream>) -> Option<CloseCode> {
    match socket.read() {
        Ok(Message::Close(frame)) => frame.map(|frame| frame.code),
        other => panic!("not a Close: {other:?}"),
    }
}

#[test]
fn a_drain_says_not_ready_serves_on_and_stops_when_the_load_balancer_has_looked() {
    let backend = ok();
    let health = to(backend.address, "").replace("] }", "], health: { path: /health } }");
    let mut served = Served::start(&health);
    let address = served.address(0);
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        status(&crate::support::raw(address, request))
    };
    assert_eq!((status(&served.get("admin.sock", "/ready")), get("/health")), (200, 200));
    let begun = Instant::now();

    let said = served.order(&["drain", "--wait", "2s"]);

    assert!(said.contains("503"), "{said}");
    let ready = served.get("admin.sock", "/ready");
    assert_eq!(status(&ready), 503);
    assert!(ready.contains("draining"), "{ready}");
    // Where a load balancer looks that comes by the front door; users are served on.
    assert_eq!((get("/health"), get("/")), (503, 200));
    assert_eq!(served.child.try_wait().unwrap(), None);
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_second_worker_that_leaves_is_drained_as_well_and_its_websocket_told() {
    let echo = Echo::start();
    let mut served = Served::start(&to(echo.backend.address, ""));
    let address = served.address(0);
    let mut before = websocket(address);
    served.order(&["upgrade"]);
    let mut after = websocket(address);

    served.signal("TERM");

    assert_eq!(close_code(&mut before), Some(CloseCode::Away));
    assert_eq!(close_code(&mut after), Some(CloseCode::Away));
    drop((before, after));
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
}

#[test]
fn a_signal_to_the_whole_group_ends_it_as_one_to_the_keeper_does() {
    let held = Held::start();
    let mut served = Served::start(&to(held.backend.address, "drain: 10s"));
    let mut stream = connect(served.address(0));
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    held.next();

    let worker = served.worker();
    for name in ["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"] {
        signal(name, worker);
    }
    served.signal("TERM");
    wait_for("the stop to begin", || served.events().contains("stopping"));
    held.answer();

    assert_eq!(status(&crate::support::read_response(&mut stream)), 200);
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
}

#[test]
fn streams_of_http2_are_told_to_go_away_and_those_that_have_begun_are_answered() {
    let held = Held::start();
    let place = folder();
    let certificate = clients::certificate(place.path(), "site", &["site.example"]);
    let text = to_over_tls(held.backend.address);
    let mut served = Served::start_in(place, &text, |_| {});
    let address = served.address(0);

    clients::block_on(async {
        let mut client = clients::H2::connect(address, "site.example", &certificate).await;
        let request = client.request("GET", "/").body(http_body_util::Full::default()).unwrap();
        let answer = client.sender.send_request(request);
        // The client's connection goes on meanwhile: whoever waits here waits in a thread.
        let held = tokio::task::spawn_blocking(move || {
            held.next();
            held
        });
        let held = held.await.unwrap();
        served.signal("TERM");
        while !served.events().contains("stopping") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        held.answer();
        let answer = clients::whole(answer.await.unwrap()).await;
        assert_eq!(answer.status(), 200);
        // The connection ends by itself, which is what a GOAWAY comes to.
        client.connection.await.unwrap().unwrap();
    });
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
}

#[test]
fn what_outlives_the_deadline_is_cut_and_counted_and_the_exit_code_says_so() {
    let (held, echo) = (Held::start(), Echo::start());
    let mut served = Served::start(&format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\ndrain: 300ms\n\
         upstreams: {{ app: {{ endpoints: ['{}'] }}, ws: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}, {{ prefix: /ws, upstream: ws }}]\n",
        held.backend.address, echo.backend.address
    ));
    let address = served.address(0);
    let mut socket = websocket(address);
    let mut stream = connect(address);
    std::io::Write::write_all(&mut stream, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    held.next();

    served.signal("TERM");

    assert_eq!(close_code(&mut socket), Some(CloseCode::Away));
    assert_eq!(served.ended().code(), Some(1), "{}", served.events());
    let events = served.events();
    assert!(events.contains("cut off") && events.contains("/slow"), "{events}");
    held.answer();
}

#[test]
fn a_worker_that_is_begun_in_a_drain_says_not_ready_and_no_other_program_undoes_the_stop() {
    let backend = ok();
    let mut served = Served::start(&to(backend.address, ""));
    let before = served.worker();
    served.order(&["drain", "--wait", "4s"]);

    signal("KILL", before);

    wait_for("another worker", || served.worker() != before);
    assert_eq!(status(&served.get("admin.sock", "/ready")), 503);
    let refused = served.run(&["upgrade"]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("a drain is under way"));
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
}
