//! Places in an application: how many, in which order, until when.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use data_encoding::HEXLOWER;

use crate::{
    bodies::{decode, narrow},
    support::{
        Backend, Gate, TestGateway, body, connect, header, noise, proxying, read_head, read_request, read_response,
        read_rest, status, unchunked, wait_for,
    },
};

/// A backend that tells of each request by its target and answers when it is told to.
pub(crate) struct Held {
    pub(crate) backend: Backend,
    asked: Receiver<String>,
    answer: Sender<()>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Held {
    pub(crate) fn start() -> Self {
        let (tell, asked) = mpsc::channel();
        let (answer, told) = mpsc::channel();
        let (tell, told) = (Mutex::new(tell), Mutex::new(told));
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (entered, seen) = (Arc::clone(&inside), Arc::clone(&most));
        let backend = Backend::start(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                let target = String::from_utf8(request).unwrap().split(' ').nth(1).unwrap().to_owned();
                seen.fetch_max(entered.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if tell.lock().unwrap().send(target.clone()).is_err() || told.lock().unwrap().recv().is_err() {
                    return;
                }
                entered.fetch_sub(1, Ordering::SeqCst);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
                drop(stream.write_all(answer.as_bytes()));
            }
        });
        Self { backend, asked, answer, inside, most }
    }

    pub(crate) fn next(&self) -> String {
        self.asked.recv_timeout(Duration::from_secs(10)).expect("a request")
    }

    /// The most requests that have been inside at once.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub(crate) fn answer(&self) {
        self.answer.send(()).unwrap();
    }
}

fn ask(gateway: &TestGateway, target: &str) -> TcpStream {
    let mut client = connect(gateway.address(0));
    write!(client, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    client
}

/// Requests that wait for a place.
fn waiting(gateway: &TestGateway) -> usize {
    gateway.gateway().current.load().plan.upstreams.keys().map(|name| depth(gateway, name)).sum()
}

fn depth(gateway: &TestGateway, upstream: &str) -> usize {
    metric(gateway, &format!("vestibule_upstream_queue_depth{{upstream=\"{upstream}\"}} "))
}

/// Requests whose client has left while an endpoint was at them.
fn left(gateway: &TestGateway) -> usize {
    metric(gateway, "vestibule_upstream_requests_total{upstream=\"app\",outcome=\"canceled\"} ")
}

/// The value in the line that begins so.
fn metric(gateway: &TestGateway, start: &str) -> usize {
    let text = gateway.gateway().metrics.encode();
    let line = text.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_else(|| panic!("{text}"));
    line.parse().unwrap()
}

#[test]
fn no_more_are_inside_than_there_are_places_over_all_threads() {
    let held = Held::start();
    let gateway = TestGateway::start(&proxying(held.backend.address, "concurrency: 2", ""));

    // Enough for both threads to have several.
    let clients: Vec<_> = (0..16).map(|number| ask(&gateway, &format!("/{number}"))).collect();
    wait_for("the rest to wait", || waiting(&gateway) == 14);
    for _ in 0..16 {
        held.next();
        held.answer();
    }

    for mut client in clients {
        assert_eq!(status(&read_response(&mut client)), 200);
    }
    assert_eq!(held.most.load(Ordering::SeqCst), 2);
    assert_eq!(held.inside.load(Ordering::SeqCst), 0);
}

#[test]
fn who_leaves_while_the_application_works_keeps_the_place_until_it_is_done() {
    let held = Held::start();
    let gateway = TestGateway::start(&proxying(held.backend.address, "concurrency: 1", ""));
    let leaves = ask(&gateway, "/leaves");
    assert_eq!(held.next(), "/leaves");
    let mut waits = ask(&gateway, "/waits");
    wait_for("the next one to wait", || waiting(&gateway) == 1);

    drop(leaves);
    wait_for("it to be noticed", || left(&gateway) == 1);
    assert_eq!((waiting(&gateway), held.asked.try_recv().is_err()), (1, true));
    held.answer();
    held.answer();

    assert_eq!(body(&read_response(&mut waits)), "/waits");
    assert_eq!(held.most(), 1);
}

#[test]
fn who_leaves_keeps_no_place_in_a_server_that_ends_its_work_then_nor_for_longer_than_an_answer_is_waited_for() {
    for (ends, route) in [(true, ""), (false, "timeout: 300ms")] {
        let (asked, over) = (Gate::default(), Gate::default());
        let (opens, works) = (asked.clone(), over.clone());
        let backend = Backend::start(move |mut stream| {
            let Some(request) = read_request(&mut stream) else { return };
            if request.starts_with(b"GET /next ") {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"));
                return;
            }
            opens.open();
            assert!(matches!(stream.read(&mut [0]), Ok(0)), "it is told that nobody waits");
            if !ends {
                works.wait();
            }
        });
        let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 1", route));
        let leaves = ask(&gateway, "/leaves");
        asked.wait();
        let mut next = ask(&gateway, "/next");
        wait_for("the next one to wait", || waiting(&gateway) == 1);

        drop(leaves);

        assert_eq!(body(&read_response(&mut next)), "next", "{route}");
        over.open();
    }
}

#[test]
fn a_compressed_answer_has_its_place_until_the_application_has_ended_it() {
    let text = "all work and no play ".repeat(5000);
    for route in ["", "buffer: { response: false }"] {
        let end = Gate::default();
        let (ends, sent) = (end.clone(), text.clone());
        let backend = Backend::start(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                if request.starts_with(b"GET /next ") {
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"));
                    continue;
                }
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
                write!(stream, "{head}{:x}\r\n{sent}\r\n", sent.len()).unwrap();
                ends.wait();
                drop(stream.write_all(b"0\r\n\r\n"));
            }
        });
        let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 1", route));
        let mut first = connect(gateway.address(0));
        first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n").unwrap();
        let head = read_head(&mut first);
        assert_eq!(header(&head, "content-encoding").as_deref(), Some("gzip"), "{head}");

        let mut next = ask(&gateway, "/next");
        wait_for("the next one to wait", || waiting(&gateway) == 1);
        end.open();

        assert_eq!(body(&read_response(&mut next)), "next", "{route}");
        let encoded = unchunked(&read_rest(&mut first)).expect("the whole answer");
        assert!(decode("gzip", &encoded) == text.as_bytes(), "{route}: not what was sent");
    }
}

#[test]
fn a_slow_reader_of_a_compressed_answer_has_no_place() {
    // More than sockets hold, compressed to half of it.
    let data = HEXLOWER.encode(&noise(6 << 20));
    let backend = Backend::replying(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{data}",
        data.len()
    ));
    let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 1", ""));
    let ask = || {
        let mut client = narrow(gateway.address(0));
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n").unwrap();
        client
    };
    let mut slow = ask();
    read_head(&mut slow);

    let mut next = ask();
    read_head(&mut next);

    for client in [&mut next, &mut slow] {
        let encoded = unchunked(&read_rest(client)).expect("the whole answer");
        assert!(decode("gzip", &encoded) == data.as_bytes(), "not what was sent");
    }
}

#[test]
fn who_came_first_is_served_first() {
    let held = Held::start();
    let gateway = TestGateway::start(&proxying(held.backend.address, "concurrency: 1", ""));
    let mut clients = vec![ask(&gateway, "/0")];
    assert_eq!(held.next(), "/0");
    for number in 1..10 {
        clients.push(ask(&gateway, &format!("/{number}")));
        wait_for("the request to wait", || waiting(&gateway) == number);
    }

    held.answer();
    let order: Vec<_> = (1..10)
        .map(|_| {
            let target = held.next();
            held.answer();
            target
        })
        .collect();

    assert_eq!(order, (1..10).map(|number| format!("/{number}")).collect::<Vec<_>>());
}

/// Sends one request after the other, which all wait behind one that is inside, and answers in which order they come in.
fn order(requests: &[(&str, &str)]) -> Vec<String> {
    let held = Held::start();
    let keys = "trusted_proxies: [loopback]\n";
    let upstream = "concurrency: 1, health: { path: /health, interval: 1h }, queue: { sessions: [session, sid] }";
    let gateway = TestGateway::start(&(proxying(held.backend.address, upstream, "") + keys));
    let mut clients = vec![ask(&gateway, "/inside")];
    assert_eq!(held.next(), "/inside");
    for (number, (target, headers)) in requests.iter().enumerate() {
        let mut client = connect(gateway.address(0));
        write!(client, "GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").unwrap();
        clients.push(client);
        wait_for("the request to wait", || waiting(&gateway) == number + 1);
    }
    let next = |_| {
        held.answer();
        held.next()
    };
    let order = (0..requests.len()).map(next).collect();
    held.answer();
    order
}

#[test]
fn clients_take_turns_however_many_requests_one_of_them_has() {
    let many = ["/0", "/1", "/2", "/3", "/4"].map(|target| (target, "X-Forwarded-For: 203.0.113.1\r\n"));
    let others = [
        ("/other", "X-Forwarded-For: 203.0.113.2\r\n"),
        // One network, one client.
        ("/six/0", "X-Forwarded-For: 2001:db8::1\r\n"),
        ("/six/1", "X-Forwarded-For: 2001:db8::2\r\n"),
    ];

    let order = order(&[&many[..], &others[..]].concat());

    assert_eq!(order, ["/0", "/other", "/six/0", "/1", "/six/1", "/2", "/3", "/4"]);
}

#[test]
fn health_checks_and_sessions_go_before_the_rest_which_is_not_forgotten() {
    let order = order(&[
        ("/a", ""),
        ("/b", "Cookie: sessions=1; xsession=2\r\nCookie: theme=session\r\n"),
        ("/0", "Cookie: theme=dark; session=eyJ1c2VyIjoxfQ\r\n"),
        ("/1", "Cookie: theme=dark\r\nCookie:  sid =x\r\n"),
        ("/2", "Cookie: session\r\n"),
        ("/3", "Cookie: session=\r\n"),
        ("/health?now", ""),
    ]);

    assert_eq!(order, ["/health?now", "/0", "/1", "/a", "/2", "/3", "/b"]);
}

#[test]
fn in_a_full_queue_a_client_with_many_makes_room_for_one_with_none() {
    let held = Held::start();
    let upstream = "concurrency: 1, queue: { limit: 3 }";
    let keys = "trusted_proxies: [loopback]\n";
    let gateway = TestGateway::start(&(proxying(held.backend.address, upstream, "") + keys));
    let client = |target: &str, address: &str| {
        let mut client = connect(gateway.address(0));
        write!(client, "GET {target} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n").unwrap();
        client
    };
    let mut many = vec![client("/0", "203.0.113.1")];
    held.next();
    for number in 1..4 {
        many.push(client(&format!("/{number}"), "203.0.113.1"));
        wait_for("the request to wait", || waiting(&gateway) == number);
    }

    let mut one = client("/one", "203.0.113.2");

    let refused = read_response(&mut many.pop().unwrap());
    assert_eq!((status(&refused), header(&refused, "retry-after").as_deref()), (503, Some("5")));
    (0..4).for_each(|_| held.answer());
    assert_eq!(body(&read_response(&mut one)), "/one");
    for (number, mut client) in many.into_iter().enumerate() {
        assert_eq!(body(&read_response(&mut client)), format!("/{number}"));
    }
}

#[test]
fn a_route_that_says_so_tells_how_long_the_queue_and_the_application_took() {
    let answer = "HTTP/1.1 200 OK\r\nServer-Timing: db;dur=7\r\nContent-Length: 0\r\n\r\n";
    let backend = Backend::replying(answer);
    let start = |route| TestGateway::start(&proxying(backend.address, "concurrency: 1", route));
    let told = |gateway: &TestGateway| {
        let answer = read_response(&mut ask(gateway, "/"));
        let lines =
            answer.lines().filter_map(|line| line.to_lowercase().strip_prefix("server-timing: ").map(str::to_owned));
        lines.collect::<Vec<_>>()
    };

    assert_eq!(told(&start("")), ["db;dur=7"]);
    let told = told(&start("server_timing: true"));
    assert_eq!((told.len(), &*told[0]), (3, "db;dur=7"), "{told:?}");
    for (value, name) in told[1..].iter().zip(["queue;dur=", "app;dur="]) {
        let milliseconds: f64 = value.strip_prefix(name).unwrap().parse().unwrap();
        assert!((0.0..10_000.0).contains(&milliseconds), "{told:?}");
    }
}

#[test]
fn whoever_finds_the_queue_full_is_told_when_to_come_back() {
    let held = Held::start();
    let upstream = "concurrency: 1, queue: { limit: 1 }";
    let gateway = TestGateway::start(&proxying(held.backend.address, upstream, ""));
    let _inside = ask(&gateway, "/inside");
    held.next();
    let mut waits = ask(&gateway, "/waits");
    wait_for("the request to wait", || waiting(&gateway) == 1);

    let refused = read_response(&mut ask(&gateway, "/refused"));
    held.answer();
    held.answer();

    assert_eq!((status(&refused), header(&refused, "retry-after").as_deref()), (503, Some("5")));
    assert!(refused.contains("The application is not available") && !refused.contains("Starting up"), "{refused}");
    assert_eq!(body(&read_response(&mut waits)), "/waits");
    assert_eq!((held.next(), held.asked.try_recv().is_err()), ("/waits".to_owned(), true));
}

#[test]
fn whoever_waits_too_long_is_told_when_to_come_back() {
    let held = Held::start();
    let upstream = "concurrency: 1, queue: { timeout: 100ms }";
    let gateway = TestGateway::start(&proxying(held.backend.address, upstream, ""));
    let _inside = ask(&gateway, "/inside");
    held.next();

    let refused = read_response(&mut ask(&gateway, "/refused"));

    assert_eq!((status(&refused), header(&refused, "retry-after").as_deref()), (503, Some("5")));
    // It is our own refusal: the connection may go on.
    assert_eq!(header(&refused, "connection"), None);
    assert_eq!(waiting(&gateway), 0);
}

#[test]
fn with_no_time_to_wait_nobody_waits() {
    let held = Held::start();
    let upstream = "concurrency: 1, queue: { timeout: 0 }";
    let gateway = TestGateway::start(&proxying(held.backend.address, upstream, ""));
    let _inside = ask(&gateway, "/inside");
    held.next();

    assert_eq!(status(&read_response(&mut ask(&gateway, "/refused"))), 503);
}

#[test]
fn a_client_that_goes_leaves_the_queue() {
    let held = Held::start();
    let configuration = proxying(held.backend.address, "concurrency: 1", "")
        + "access_log: { path: access.log, format: '{status} {target}' }\n";
    let gateway = TestGateway::start(&configuration);
    let _inside = ask(&gateway, "/inside");
    held.next();
    let goes = ask(&gateway, "/goes");
    wait_for("the request to wait", || waiting(&gateway) == 1);
    let mut stays = ask(&gateway, "/stays");
    wait_for("both requests to wait", || waiting(&gateway) == 2);

    drop(goes);
    wait_for("the client to leave", || waiting(&gateway) == 1);
    held.answer();
    held.answer();

    assert_eq!(body(&read_response(&mut stays)), "/stays");
    assert_eq!(held.next(), "/stays", "the request of a client that had gone reached the backend");
    assert!(gateway.log(2).contains(&"499 /goes".to_owned()));
}

#[test]
fn a_place_is_free_at_the_end_of_the_response_and_not_at_its_head() {
    let (go_on, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let backend = Backend::start(move |mut stream| {
        while read_request(&mut stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").unwrap();
            if told.lock().unwrap().recv().is_err() {
                return;
            }
            stream.write_all(b"half").unwrap();
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 1", ""));
    let mut first = ask(&gateway, "/first");
    read_head(&mut first);
    let mut second = ask(&gateway, "/second");
    wait_for("the request to wait", || waiting(&gateway) == 1);

    go_on.send(()).unwrap();
    go_on.send(()).unwrap();

    let mut rest = [0; 8];
    first.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"halfhalf");
    assert_eq!(body(&read_response(&mut second)), "halfhalf");
}

#[test]
fn a_backend_that_fails_frees_its_place() {
    let backend = Backend::start(|mut stream| {
        if read_request(&mut stream).is_some_and(|request| !request.starts_with(b"GET /bad")) {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 1", ""));

    for _ in 0..3 {
        assert_eq!(status(&read_response(&mut ask(&gateway, "/bad"))), 502);
        assert_eq!(status(&read_response(&mut ask(&gateway, "/good"))), 200);
    }
}

#[test]
fn a_slow_upload_takes_no_place() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 1, queue: { timeout: 0 }", ""));
    let mut uploads = connect(gateway.address(0));
    uploads.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf").unwrap();

    assert_eq!(status(&read_response(&mut ask(&gateway, "/"))), 200);

    uploads.write_all(b"half").unwrap();
    assert_eq!(status(&read_response(&mut uploads)), 200);
}

#[test]
fn a_websocket_takes_no_place() {
    let backend = Backend::start(|mut stream| {
        let request = read_request(&mut stream).unwrap_or_default();
        if request.starts_with(b"GET /socket") {
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            while matches!(stream.read(&mut [0; 100]), Ok(1..)) {}
        } else if !request.is_empty() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 1, queue: { timeout: 0 }", ""));
    let sockets: Vec<_> = (0..3)
        .map(|_| {
            let mut socket = connect(gateway.address(0));
            let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
            write!(socket, "GET /socket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n")
                .unwrap();
            assert_eq!(status(&read_head(&mut socket)), 101);
            socket
        })
        .collect();

    assert_eq!(status(&read_response(&mut ask(&gateway, "/"))), 200);
    drop(sockets);
}

#[test]
fn many_threads_of_clients_are_all_served() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gateway = TestGateway::start(&proxying(backend.address, "concurrency: 3", ""));
    let address = gateway.address(0);

    let clients: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                let mut client = connect(address);
                for _ in 0..25 {
                    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                    assert_eq!(status(&read_response(&mut client)), 200);
                }
            })
        })
        .collect();

    for client in clients {
        client.join().unwrap();
    }
    // Three at once, from either thread.
    assert!(backend.connections() <= 6, "{} connections for 200 requests", backend.connections());
}
