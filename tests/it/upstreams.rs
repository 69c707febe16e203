//! Backends as they are: away, slow, silent, broken, closing when they like.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Gate, TestGateway, Warnings, body, connect, header, proxying, read_head, read_request, read_response,
    read_rest, status, wait_for,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A gateway before an application at a unix socket in its folder.
fn before_a_socket(keys: &str) -> TestGateway {
    TestGateway::start(&format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: ['unix:{{dir}}/app.sock'], {keys} }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n"
    ))
}

/// A port that is taken, and refuses.
pub(crate) fn refusing() -> (socket2::Socket, std::net::SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
fn a_backend_that_refuses_is_waited_for_and_then_said_to_be_starting() {
    let (_socket, address) = refusing();
    let warnings = Warnings::begin();
    let gateway = TestGateway::start(&proxying(address, "hold: 200ms", ""));

    let began = Instant::now();
    let answer = gateway.raw(GET);

    assert!(began.elapsed() >= Duration::from_millis(150), "given up after {:?}", began.elapsed());
    assert_eq!((status(&answer), header(&answer, "retry-after").as_deref()), (503, Some("10")));
    assert!(answer.contains("<h1>Starting up</h1>"), "{answer}");
    let lines = warnings.naming(address);
    // Once, however often it was tried and whatever became of the request.
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("cannot be connected to"), "{lines:?}");
}

#[test]
fn a_program_is_told_of_a_backend_that_refuses_in_json() {
    let (_socket, address) = refusing();
    let gateway = TestGateway::start(&proxying(address, "hold: 0", ""));

    let answer = gateway.raw("GET /api/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");

    let said: serde_json::Value = serde_json::from_str(&body(&answer)).unwrap();
    assert_eq!((status(&answer), &said["error"]["status"]), (503, &503.into()));
}

#[test]
fn a_backend_that_comes_up_in_time_answers_what_has_waited_for_it() {
    let gateway = before_a_socket("hold: 10s");
    let mut waits = connect(gateway.address(0));
    waits.write_all(POST.as_bytes()).unwrap();
    thread::park_timeout(Duration::from_millis(100));

    let socket = UnixListener::bind(gateway.folder.path().join("app.sock")).unwrap();
    let backend = thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        let request = read_request(&mut stream).unwrap();
        stream.write_all(OK).unwrap();
        request
    });

    assert_eq!(status(&read_response(&mut waits)), 200);
    assert!(backend.join().unwrap().ends_with(b"\r\n\r\nhi"), "the body has waited too");
}

#[test]
fn a_backend_at_a_unix_socket_is_asked_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let socket = UnixListener::bind(folder.path().join("app.sock")).unwrap();
    let backend = thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        // The same connection for both.
        for _ in 0..2 {
            assert!(read_request(&mut stream).is_some());
            stream.write_all(OK).unwrap();
        }
    });
    let gateway = TestGateway::start_in(
        folder,
        "listeners: [{ address: '127.0.0.1:0' }]\n\
         upstreams: { app: { endpoints: ['unix:{dir}/app.sock'] } }\n\
         routes: [{ prefix: /, upstream: app }]\n",
    );
    let mut client = connect(gateway.address(0));

    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(body(&read_response(&mut client)), "ok");
    }

    backend.join().unwrap();
}

/// Closes each of its first connections after so many requests, the last of them unanswered.
fn closing(connections: usize, requests: usize) -> (Backend, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, left) = (Arc::clone(&asked), AtomicUsize::new(connections));
    let backend = Backend::start(move |mut stream| {
        let closes = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let mut seen = 0;
        while read_request(&mut stream).is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            seen += 1;
            if (closes && seen == requests) || stream.write_all(OK).is_err() {
                return;
            }
        }
    });
    (backend, asked)
}

#[test]
fn a_get_that_was_not_answered_is_sent_once_more() {
    let (backend, asked) = closing(1, 1);
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    assert_eq!(gateway.get("/"), (200, "ok".to_owned()));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn a_get_on_a_connection_that_closes_under_it_is_sent_once_more() {
    let (backend, asked) = closing(1, 2);
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(status(&read_response(&mut client)), 200);
    }

    assert_eq!((asked.load(Ordering::SeqCst), backend.connections()), (3, 2));
}

#[test]
fn a_put_is_sent_once_more_with_its_body() {
    let seen = AtomicUsize::new(0);
    let backend = Backend::start(move |mut stream| {
        let request = read_request(&mut stream).unwrap_or_default();
        if seen.fetch_add(1, Ordering::SeqCst) > 0 && request.ends_with(b"\r\n\r\nhi") {
            stream.write_all(OK).unwrap();
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    assert_eq!(status(&gateway.raw(POST.replace("POST", "PUT"))), 200);
}

#[test]
fn a_get_that_is_never_answered_is_sent_three_times_and_no_more() {
    let (backend, asked) = closing(usize::MAX, 1);
    let warnings = Warnings::begin();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    assert_eq!(gateway.get("/").0, 502);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_eq!(warnings.naming(backend.address).len(), 1);
}

#[test]
fn a_post_that_was_not_answered_is_never_sent_again() {
    let (backend, asked) = closing(1, 1);
    let warnings = Warnings::begin();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "administrator: admin@example.com\n"));

    let answer = gateway.raw(POST);

    assert_eq!(status(&answer), 502);
    assert!(answer.contains("check first whether it has arrived") && answer.contains("admin@example.com"), "{answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(warnings.naming(backend.address).len(), 1);
    // It is not held against the backend.
    assert_eq!(gateway.get("/").0, 200);
}

#[test]
fn a_backend_that_stalls_is_given_up_within_the_timeout_of_the_route() {
    let backend = Backend::start(|mut stream| while matches!(stream.read(&mut [0; 1000]), Ok(1..)) {});
    let warnings = Warnings::begin();
    let configuration = proxying(backend.address, "", "timeout: 300ms") + "administrator: admin@example.com\n";
    let gateway = TestGateway::start(&configuration);

    let began = Instant::now();
    let answer = gateway.raw(GET);

    assert!((250..3000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(status(&answer), 504);
    for part in ["The application took too long", "Try again", "admin@example.com"] {
        assert!(answer.contains(part), "{part} is missing: {answer}");
    }
    let lines = warnings.naming(backend.address);
    assert!(lines.len() == 1 && lines[0].contains("300"), "the time is to be named: {lines:?}");
}

#[test]
fn a_head_that_comes_drop_by_drop_is_given_up_within_the_timeout_of_the_route() {
    let backend = Backend::start(|mut stream| {
        read_request(&mut stream);
        for byte in b"HTTP/1.1 200 OK\r\nX: ".iter().chain(&[b'a'; 1000]) {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", "timeout: 300ms"));

    assert_eq!(gateway.get("/").0, 504);
}

#[test]
fn a_backend_that_stalls_in_its_body_is_given_up_after_progress_timeout() {
    let backend = Backend::start(|mut stream| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").unwrap();
        while matches!(stream.read(&mut [0; 100]), Ok(1..)) {}
    });
    let warnings = Warnings::begin();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "limits: { progress_timeout: 200ms }\n"));

    let answer = gateway.raw(GET);

    assert_eq!(header(&answer, "content-length").as_deref(), Some("8"));
    assert_eq!(body(&answer), "half", "closed short");
    assert_eq!(warnings.naming(backend.address).len(), 1);
}

#[test]
fn an_answer_that_is_not_http_is_a_502_and_one_line_that_names_the_backend() {
    let fields = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok");
    let answers = [
        ("nothing of HTTP", "SSH-2.0-OpenSSH_10.0\r\n".to_owned()),
        ("a TLS alert", "\x15\x03\x01\x00\x02\x02\x46".to_owned()),
        ("a status that is none", "HTTP/1.1 99 No\r\n\r\n".to_owned()),
        ("a status of letters", "HTTP/1.1 abc OK\r\n\r\n".to_owned()),
        ("HTTP/2", "HTTP/2 200\r\n\r\n".to_owned()),
        ("both lengths", fields("Content-Length: 2\r\nTransfer-Encoding: chunked")),
        ("two lengths", fields("Content-Length: 2\r\nContent-Length: 3")),
        ("a list of lengths", fields("Content-Length: 2, 2")),
        ("a signed length", fields("Content-Length: -2")),
        ("another coding", fields("Transfer-Encoding: gzip")),
        ("a space before the colon", fields("Content-Length : 2")),
        ("a name that is none", fields("Content Length: 2")),
        ("obs-fold", fields("X: a\r\n b")),
        ("NUL in a value", fields("X: a\0b")),
        ("a bare CR in a value", fields("X: a\rb")),
        ("a bare LF", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned()),
        ("a bare LF at the end of a field", "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-Le".to_owned()),
        ("an oversized head", fields(&format!("X: {}", "a".repeat(70_000)))),
        ("a head without an end", format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(70_000))),
        ("too many fields", fields(&"X: a\r\n".repeat(300))),
        ("a flood of interim answers", "HTTP/1.1 102 Processing\r\n\r\n".repeat(100)),
        ("a switch nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_owned()),
    ];
    for (what, answer) in answers {
        let backend = Backend::start(move |mut stream| {
            read_request(&mut stream);
            drop(stream.write_all(answer.as_bytes()));
        });
        let warnings = Warnings::begin();
        let gateway = TestGateway::start(&proxying(backend.address, "", ""));

        let answer = gateway.raw(GET);

        assert_eq!(status(&answer), 502, "{what}: {answer}");
        assert!(answer.contains("The application did not answer"), "{what}: {answer}");
        let lines = warnings.naming(backend.address);
        assert!(lines.len() == 1 && lines[0].contains("upstream failed"), "{what}: {lines:?}");
        assert_eq!(backend.connections(), 1, "{what}: it was asked again");
    }
}

#[test]
fn an_answer_before_the_request_has_ended_gets_through() {
    let backend = Backend::start(|mut stream| {
        read_head(&mut stream);
        // In one piece: of two, the second may wait for an acknowledgement, and be thrown away with the connection.
        let head = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{head}too large").as_bytes()).unwrap();
        // Closed with most of the body unread: a reset.
    });
    for buffered in ["", "buffer: { request: false }"] {
        let warnings = Warnings::begin();
        let gateway = TestGateway::start(&proxying(backend.address, "", buffered));
        let large = vec![b'a'; 12 * 1024 * 1024];
        let mut client = connect(gateway.address(0));

        let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close";
        write!(client, "{head}\r\nContent-Length: {}\r\n\r\n", large.len()).unwrap();
        drop(client.write_all(&large));
        let answer = String::from_utf8(read_rest(&mut client)).unwrap();

        assert_eq!(warnings.naming(backend.address), [""; 0], "{buffered}");
        assert_eq!((status(&answer), body(&answer).as_str()), (413, "too large"), "{buffered}");
    }
}

#[test]
fn one_connection_to_the_backend_carries_many_requests() {
    let backend = Backend::replying(OK);
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "workers: 1\n"));

    for _ in 0..10 {
        assert_eq!(gateway.get("/").0, 200);
    }

    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_request_that_must_not_be_sent_twice_gets_a_connection_that_nobody_can_have_closed() {
    let backend = Backend::replying(OK);
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "workers: 1\n"));

    for _ in 0..3 {
        assert_eq!(gateway.get("/").0, 200);
        assert_eq!(status(&gateway.raw(POST)), 200);
    }

    // One for the first GET, and one for each POST, which is then there for the GET after it.
    assert_eq!(backend.connections(), 4);
}

#[test]
fn a_backend_that_says_close_is_taken_at_its_word() {
    let backend = Backend::start(|mut stream| {
        if read_request(&mut stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
            // It stays open to whoever has not listened.
            assert!(read_request(&mut stream).is_none(), "asked again on a connection that was to be closed");
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    for _ in 0..5 {
        assert_eq!(gateway.get("/"), (200, "ok".to_owned()));
    }
    assert_eq!(backend.connections(), 5);
}

#[test]
fn a_backend_that_closes_after_each_answer_without_a_word_never_fails_a_request() {
    let backend = Backend::start(|mut stream| {
        if read_request(&mut stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    });
    let warnings = Warnings::begin();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    for number in 0..200 {
        for request in [GET, POST] {
            client.write_all(request.replace("Connection: close\r\n", "").as_bytes()).unwrap();
            let answer = read_response(&mut client);
            assert_eq!((status(&answer), body(&answer).as_str()), (200, "ok"), "{number}: {request}");
        }
    }
    assert_eq!(warnings.naming(backend.address), [""; 0]);
}

#[test]
fn what_comes_after_an_answer_is_never_the_next_answer() {
    let backend = Backend::start(|mut stream| {
        while read_request(&mut stream).is_some() {
            let extra = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong";
            stream.write_all(&[OK, extra.as_bytes()].concat()).unwrap();
        }
    });
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "workers: 1\n"));

    for _ in 0..5 {
        assert_eq!(gateway.get("/"), (200, "ok".to_owned()));
    }
    assert_eq!(backend.connections(), 5);
}

#[test]
fn interim_answers_are_read_over() {
    let backend = Backend::replying(
        [&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"[..], OK]
            .concat(),
    );
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw(GET);

    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert_eq!(header(&answer, "link"), None);
}

fn two_endpoints(first: std::net::SocketAddr, second: std::net::SocketAddr) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{first}', '{second}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n"
    )
}

#[test]
fn the_endpoint_with_fewer_requests_inside_gets_the_next_one() {
    let open = Gate::default();
    let held = Arc::new(AtomicUsize::new(0));
    let holding = || {
        let (open, held) = (open.clone(), Arc::clone(&held));
        Backend::start(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                if request.starts_with(b"GET /held ") {
                    held.fetch_add(1, Ordering::SeqCst);
                    open.wait();
                }
                if stream.write_all(OK).is_err() {
                    return;
                }
            }
        })
    };
    let (one, two) = (holding(), holding());
    let gateway = TestGateway::start(&two_endpoints(one.address, two.address));
    let mut first = connect(gateway.address(0));
    first.write_all(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    wait_for("the first request to be inside", || held.load(Ordering::SeqCst) == 1);
    let (busy, free) = if one.connections() == 1 { (&one, &two) } else { (&two, &one) };

    for _ in 0..5 {
        assert_eq!(gateway.get("/").0, 200);
    }

    assert_eq!(busy.connections(), 1, "the busy endpoint got more");
    assert!(free.connections() >= 1);
    open.open();
    assert_eq!(status(&read_response(&mut first)), 200);
}

#[test]
fn a_dead_endpoint_costs_no_request_while_another_lives() {
    let (_socket, dead) = refusing();
    let backend = Backend::replying(OK);
    let gateway = TestGateway::start(&two_endpoints(dead, backend.address));

    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(status(&gateway.raw(POST)), 200);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[test]
fn a_request_that_no_connection_could_be_made_for_is_in_the_log_with_its_reason() {
    let (_socket, address) = refusing();
    let configuration =
        proxying(address, "hold: 0", "") + "access_log: { path: access.log, format: '{status} {upstream} {note}' }\n";
    let gateway = TestGateway::start(&configuration);

    gateway.get("/");

    let line = gateway.log(1).remove(0);
    assert!(line.starts_with("503 app ") && line.contains(&address.to_string()), "{line}");
}
