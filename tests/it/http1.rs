//! HTTP/1.1 as clients speak it to us, well or badly.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{
    io::{Read, Write},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Backend, TestGateway, body, connect, half_close, header, proxying, raw, read_head, read_request, read_response,
    read_rest, status, wait_for,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LAST_GET: &str = "GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// In the access log: what a test asks for, a line a request, in the order of requests.
fn logging(fields: &str) -> String {
    format!("workers: 1\naccess_log: {{ path: access.log, format: '{fields}' }}\n")
}

#[test]
fn a_connection_carries_one_request_after_the_other() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    for number in 0..3 {
        write!(client, "GET /{number} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let answer = read_response(&mut client);
        assert!(body(&answer).starts_with(&format!("GET /{number} HTTP/1.1\r\n")), "{answer}");
        assert_eq!(header(&answer, "connection"), None);
    }
}

#[test]
fn twenty_requests_in_one_write_are_answered_in_order() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));
    let requests: String = (0..20)
        .map(|number| match number % 2 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            _ => format!("POST /{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nGET /"),
        })
        .collect();

    client.write_all(requests.as_bytes()).unwrap();

    for number in 0..20 {
        let answer = read_response(&mut client);
        assert!(body(&answer).split(' ').nth(1) == Some(&format!("/{number}")), "{number}: {answer}");
    }
}

#[test]
fn a_client_that_says_close_gets_its_answer_and_an_end() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw(LAST_GET);

    assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (200, Some("close")));
    let asked = body(&answer).to_ascii_lowercase();
    assert!(!asked.contains("connection: close"), "the client's wish went to the backend: {asked}");
}

#[test]
fn what_comes_after_a_request_that_says_close_is_not_answered() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answers = gateway.raw(format!("{LAST_GET}{GET}"));

    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 1, "{answers}");
}

#[test]
fn http_1_0_without_a_host_is_answered_and_closed() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw("GET / HTTP/1.0\r\n\r\n");

    assert_eq!((status(&answer), body(&answer).as_str()), (200, "one"));
}

#[test]
fn http_1_0_that_asks_for_it_keeps_its_connection() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let answer = read_response(&mut client);
        assert_eq!(header(&answer, "connection").as_deref(), Some("keep-alive"), "{answer}");
    }
}

#[test]
fn head_is_told_the_length_and_sent_no_body() {
    let backend = Backend::start(|mut stream| {
        while let Some(request) = read_request(&mut stream) {
            let body = if request.starts_with(b"HEAD") { "" } else { "one" };
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{body}").unwrap();
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    client.write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let head = read_head(&mut client);
    client.write_all(LAST_GET.as_bytes()).unwrap();
    let rest = String::from_utf8(read_rest(&mut client)).unwrap();

    assert_eq!(header(&head, "content-length").as_deref(), Some("3"));
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("\r\n\r\none"), "{rest}");
}

#[test]
fn the_answer_of_our_own_to_head_has_no_body() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", "").replace("prefix: /,", "prefix: /da,"));

    let answer = gateway.raw("HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");

    assert_eq!((status(&answer), body(&answer).as_str()), (404, ""));
    assert_ne!(header(&answer, "content-length").as_deref(), Some("0"), "{answer}");
}

#[test]
fn a_target_in_absolute_form_wins_over_the_host() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway
        .raw("GET http://one.example:8080/a//b?c=%20 HTTP/1.1\r\nHost: two.example\r\nConnection: close\r\n\r\n");

    let asked = body(&answer);
    assert!(asked.starts_with("GET /a//b?c=%20 HTTP/1.1\r\n"), "{asked}");
    assert_eq!(header(&asked, "host").as_deref(), Some("one.example:8080"));
}

#[test]
fn a_malformed_request_gets_its_status_a_page_an_end_and_a_line_and_reaches_no_backend() {
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\nabc");
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
    let cases = [
        ("both lengths", post("Content-Length: 3\r\nTransfer-Encoding: chunked"), 400),
        ("both lengths, the other way", post("Transfer-Encoding: chunked\r\nContent-Length: 3"), 400),
        ("two lengths", post("Content-Length: 3\r\nContent-Length: 4"), 400),
        ("the same length twice", post("Content-Length: 3\r\nContent-Length: 3"), 400),
        ("a list of lengths", post("Content-Length: 3, 3"), 400),
        ("a signed length", post("Content-Length: +3"), 400),
        ("an empty length", post("Content-Length:"), 400),
        ("a length in hexadecimal", post("Content-Length: 0x3"), 400),
        ("a length beyond 64 bits", post("Content-Length: 18446744073709551616"), 400),
        (
            "chunked in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
        ),
        ("obs-fold", get("X-A: b\r\n c"), 400),
        ("obs-fold at the first field", "GET / HTTP/1.1\r\n Host: x\r\n\r\n".into(), 400),
        ("a space before the colon", get("X-A : b"), 400),
        ("a bare CR in a value", get("X-A: b\rc"), 400),
        ("a bare LF", "GET / HTTP/1.1\nHost: x\r\n\r\n".into(), 400),
        ("a bare LF at the end of a field", "GET / HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n".into(), 400),
        ("only bare LF", "GET / HTTP/1.1\nHost: x\n\n".into(), 400),
        ("NUL in a value", get("X-A: b\0c"), 400),
        ("NUL in the target", "GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("no name", get(": b"), 400),
        ("no colon", get("X-A"), 400),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a fragment", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("no target", "GET HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into(), 400),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("two hosts", get("Host: y"), 400),
        ("a host with a path", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n".into(), 400),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: a@x\r\n\r\n".into(), 400),
        ("a host with a space", "GET / HTTP/1.1\r\nHost: a x\r\n\r\n".into(), 400),
        ("a host with a bad port", "GET / HTTP/1.1\r\nHost: x:99999\r\n\r\n".into(), 400),
        ("an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), 400),
        ("a bad escape", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("an encoded NUL", "GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a target without a slash", "GET a HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a chunk that is none", post("Transfer-Encoding: chunked"), 400),
        (
            "a chunk longer than its size",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n".into(),
            400,
        ),
        ("CONNECT", "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n".into(), 501),
        ("gzip as a transfer coding", post("Transfer-Encoding: gzip, chunked"), 501),
        ("chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 501),
        ("identity as a transfer coding", post("Transfer-Encoding: identity"), 501),
        ("HTTP/2 in HTTP/1", "GET / HTTP/2.0\r\nHost: x\r\n\r\n".into(), 505),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
    ];
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + &logging("{status}")));

    for (what, text, expected) in &cases {
        // A request that is well formed comes after it: it must not be answered, as it may be part of the first one.
        let answer = gateway.raw(format!("{text}{GET}"));
        assert_eq!(status(&answer), *expected, "{what}: {answer}");
        assert_eq!(header(&answer, "connection").as_deref(), Some("close"), "{what}: {answer}");
        assert_eq!(header(&answer, "content-type").as_deref(), Some("text/html; charset=utf-8"), "{what}");
        assert!(
            body(&answer).starts_with("<!DOCTYPE html>") && body(&answer).ends_with("</html>\n"),
            "{what}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
    }

    let expected: Vec<_> = cases.iter().map(|(_, _, status)| status.to_string()).collect();
    assert_eq!(gateway.log(cases.len()), expected);
    assert_eq!(backend.connections(), 0, "a backend was asked");
}

#[test]
fn a_request_head_that_takes_too_long_is_answered_408() {
    let backend = Backend::echoing();
    let configuration = proxying(backend.address, "", "") + "limits: { head_timeout: 200ms }\n" + &logging("{status}");
    let gateway = TestGateway::start(&configuration);
    let mut client = connect(gateway.address(0));
    let mut slow = client.try_clone().unwrap();
    // A byte now and then must not prolong it.
    thread::spawn(move || {
        for byte in GET.bytes().cycle().filter(u8::is_ascii_alphabetic) {
            if slow.write_all(&[byte]).is_err() {
                return;
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    });

    let answer = String::from_utf8(read_rest(&mut client)).unwrap();

    assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (408, Some("close")));
    assert_eq!(gateway.log(1), ["408"]);
}

#[test]
fn a_connection_without_a_request_is_closed_without_a_word() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "limits: { head_timeout: 200ms }\n"));

    assert_eq!(gateway.raw(""), "");
}

#[test]
fn an_idle_connection_is_closed_after_keep_alive() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "limits: { keep_alive: 200ms }\n"));
    let mut client = connect(gateway.address(0));
    client.write_all(GET.as_bytes()).unwrap();
    read_response(&mut client);

    let began = Instant::now();
    let rest = read_rest(&mut client);

    assert_eq!(rest, b"");
    assert!(began.elapsed() >= Duration::from_millis(150), "closed after {:?}", began.elapsed());
}

#[test]
fn an_idle_connection_outlives_a_retirement_and_its_next_answer_is_its_last() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let (mut used, mut fresh) = (connect(gateway.address(0)), connect(gateway.address(0)));
    used.write_all(GET.as_bytes()).unwrap();
    read_response(&mut used);

    gateway.gateway().retire();

    // Longer than a stop would leave it open.
    used.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let silence = used.read(&mut [0]).unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);
    for client in [&mut used, &mut fresh] {
        client.write_all(GET.as_bytes()).unwrap();
        let answer = read_response(client);
        assert_eq!((status(&answer), header(&answer, "Connection").as_deref()), (200, Some("close")), "{answer}");
        assert_eq!(read_rest(client), b"");
    }
    assert!(gateway.stop(Duration::from_secs(1)), "something was left to be cut off");
}

#[test]
fn a_connection_that_sends_nothing_keeps_a_retired_gateway_no_longer_than_its_own_time() {
    let backend = Backend::echoing();
    let limits = "limits: { keep_alive: 1500ms, head_timeout: 1s }\n";
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + limits));
    let (mut used, mut fresh) = (connect(gateway.address(0)), connect(gateway.address(0)));
    used.write_all(GET.as_bytes()).unwrap();
    read_response(&mut used);
    let began = Instant::now();

    gateway.gateway().retire();

    assert_eq!((read_rest(&mut fresh), read_rest(&mut used)), (Vec::new(), Vec::new()));
    assert!(began.elapsed() >= Duration::from_millis(1400), "closed after {:?}", began.elapsed());
}

#[test]
fn a_stop_closes_an_idle_connection_soon_even_after_a_retirement() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));
    client.write_all(GET.as_bytes()).unwrap();
    read_response(&mut client);
    gateway.gateway().retire();

    let began = Instant::now();
    assert!(gateway.stop(Duration::from_secs(8)));

    assert!(began.elapsed() < Duration::from_secs(5), "stopped after {:?}", began.elapsed());
    assert_eq!(read_rest(&mut client), b"");
}

#[test]
fn a_head_beyond_a_limit_is_refused_with_the_status_of_that_limit() {
    let backend = Backend::echoing();
    let limits = "limits: { header_bytes: 8KiB, uri_bytes: 1KiB, header_count: 20 }\n";
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + limits));
    let with = |target: usize, fields: usize, each: usize| {
        let fields = format!("X-A: {}\r\n", "b".repeat(each)).repeat(fields);
        format!("GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n", "a".repeat(target))
    };

    for (what, request, expected) in [
        ("within all of them", with(1000, 18, 300), 200),
        ("the target", with(1100, 1, 1), 414),
        ("a target without an end", format!("GET /{}", "a".repeat(20_000)), 414),
        ("one long field", with(1, 1, 9000), 431),
        ("a field without an end", format!("GET / HTTP/1.1\r\nX-A: {}", "a".repeat(20_000)), 431),
        ("many bytes in many fields", with(1, 18, 600), 431),
        ("many fields", with(1, 19, 1), 431),
    ] {
        let answer = gateway.raw(&request);
        assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (expected, Some("close")), "{what}");
    }
    assert_eq!(backend.connections(), 1, "only the one within the limits");
}

/// A backend that takes a request, tells of it, answers nothing, and tells of its connection's end.
fn silent_backend() -> (Backend, mpsc::Receiver<&'static str>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let backend = Backend::start(move |mut stream| {
        let tell = tell.lock().unwrap().clone();
        if read_request(&mut stream).is_none() {
            return;
        }
        tell.send("asked").unwrap();
        while matches!(stream.read(&mut [0; 100]), Ok(1..)) {}
        tell.send("gone").unwrap_or_default();
    });
    (backend, told)
}

#[test]
fn a_client_that_goes_while_it_waits_takes_its_request_off_the_backend() {
    let (backend, told) = silent_backend();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + &logging("{status} {bytes_sent}")));
    let mut client = connect(gateway.address(0));
    client.write_all(GET.as_bytes()).unwrap();
    assert_eq!(told.recv().unwrap(), "asked");

    drop(client);

    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok("gone"));
    assert_eq!(gateway.log(1), ["499 0"]);
}

#[test]
fn a_client_that_closes_its_side_while_it_waits_has_gone() {
    let (backend, told) = silent_backend();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + &logging("{status} {bytes_sent}")));
    let mut client = connect(gateway.address(0));
    client.write_all(GET.as_bytes()).unwrap();
    assert_eq!(told.recv().unwrap(), "asked");

    half_close(&client);

    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok("gone"));
    assert_eq!(gateway.log(1), ["499 0"]);
    assert_eq!(read_rest(&mut client), b"");
}

#[test]
fn a_client_that_goes_in_the_middle_of_its_body_reaches_no_backend() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + &logging("{status}")));
    let mut client = connect(gateway.address(0));
    client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf").unwrap();

    drop(client);

    assert_eq!(gateway.log(1), ["499"]);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_request_reads_the_same_wherever_it_is_split() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));
    client.set_nodelay(true).unwrap();
    let request =
        "\r\nPOST /a?b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;e=f\r\nabc\r\n0\r\nT: u\r\n\r\n";

    for split in 0..=request.len() {
        client.write_all(&request.as_bytes()[..split]).unwrap();
        // What is written later may still be read at once; most often it is not.
        thread::park_timeout(Duration::from_millis(1));
        client.write_all(&request.as_bytes()[split..]).unwrap();
        let asked = body(&read_response(&mut client));
        assert!(asked.starts_with("POST /a?b HTTP/1.1\r\n") && asked.ends_with("\r\n\r\nabc"), "{split}: {asked}");
    }
}

#[test]
fn a_client_that_waits_is_told_to_go_on_and_keeps_its_connection() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").unwrap();
    let interim = read_head(&mut client);
    client.write_all(b"abc").unwrap();
    let asked = body(&read_response(&mut client));
    client.write_all(LAST_GET.as_bytes()).unwrap();
    let next = String::from_utf8(read_rest(&mut client)).unwrap();

    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(asked.ends_with("\r\n\r\nabc"), "{asked}");
    assert_eq!(header(&asked, "expect"), None);
    assert_eq!(status(&next), 200);
}

#[test]
fn nobody_is_told_to_go_on_for_a_body_that_is_not_wanted() {
    let backend = Backend::echoing();
    let route = proxying(backend.address, "", "body_limit: 1KiB").replace("prefix: /,", "prefix: /da,");
    let gateway = TestGateway::start(&route);

    for (what, path, length, expected) in [("too large", "/da", 2000, 413), ("no route", "/", 10, 404)] {
        let answer = gateway.raw(format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        ));
        assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (expected, Some("close")), "{what}");
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_client_that_is_still_sending_gets_to_read_why_it_is_refused() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", "body_limit: 1MiB"));
    // More than the buffers of both sockets hold.
    let body_of_20_mib = vec![b'a'; 20 * 1024 * 1024];
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body_of_20_mib.len());
    let mut client = connect(gateway.address(0));

    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&body_of_20_mib).expect("the connection stays until the client has sent what it wants");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer is not lost to a reset");

    assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (413, Some("close")));
    assert!(answer.contains("At most 1 MiB can be sent at once."), "{answer}");
}

#[test]
fn our_own_pages_name_the_administrator_and_the_request() {
    let backend = Backend::echoing();
    let configuration = proxying(backend.address, "", "").replace("prefix: /,", "prefix: /da,")
        + "administrator: admin@example.com\n"
        + &logging("{request_id}");
    let gateway = TestGateway::start(&configuration);

    let (_, page) = gateway.get("/");
    let json = gateway.raw("GET / HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    let api = gateway.raw("GET /api/session HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nConnection: close\r\n\r\n");

    let ids = gateway.log(3);
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("Page not found"), "{page}");
    assert!(page.contains("admin@example.com") && page.contains(&format!("<code>{}</code>", ids[0])), "{page}");
    for (answer, id) in [(json, &ids[1]), (api, &ids[2])] {
        assert_eq!(header(&answer, "content-type").as_deref(), Some("application/json"));
        let said: serde_json::Value = serde_json::from_str(&body(&answer)).unwrap();
        assert_eq!(said["error"]["status"], 404);
        assert_eq!(said["error"]["administrator"], "admin@example.com");
        assert_eq!(said["error"]["request_id"], **id);
    }
}

#[test]
fn no_answer_says_what_is_behind_it_or_what_we_are() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nServer: gunicorn/23.0\r\nContent-Length: 0\r\n\r\n");
    let gateway = TestGateway::start(&proxying(backend.address, "", "").replace("prefix: /,", "prefix: /da,"));

    for request in [
        LAST_GET.replace("/last", "/da"),
        LAST_GET.to_owned(),
        "nonsense\r\n\r\n".to_owned(),
        LAST_GET.replace("Host: localhost\r\n", ""),
    ] {
        let answer = gateway.raw(&request);
        assert_eq!(header(&answer, "server"), None, "{answer}");
        for name in ["vestibule", "gunicorn", "hyper", env!("CARGO_PKG_VERSION")] {
            assert!(!answer.to_ascii_lowercase().contains(name), "{name} is named: {answer}");
        }
    }
}

#[test]
fn every_answer_has_one_date() {
    let backend =
        Backend::replying("HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n");
    let gateway = TestGateway::start(&proxying(backend.address, "", "").replace("prefix: /,", "prefix: /da,"));

    for path in ["/da", "/"] {
        let answer = gateway.raw(LAST_GET.replace("/last", path)).to_ascii_lowercase();
        assert_eq!(answer.matches("\r\ndate: ").count(), 1, "{answer}");
    }
}

#[test]
fn a_unix_socket_is_served_as_any_other() {
    let backend = Backend::echoing();
    let configuration =
        proxying(backend.address, "", "").replace("'127.0.0.1:0'", "'unix:{dir}/front.sock'") + &logging("{client}");
    let gateway = TestGateway::start(&configuration);
    let mut client = std::os::unix::net::UnixStream::connect(gateway.folder.path().join("front.sock")).unwrap();

    client.write_all(LAST_GET.as_bytes()).unwrap();
    let answer = String::from_utf8(read_rest(&mut client)).unwrap();

    assert_eq!(status(&answer), 200);
    assert_eq!(gateway.log(1), ["-"]);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_the_others_served() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "limits: { connections: 2 }\n"));
    let address = gateway.address(0);
    let mut held: Vec<_> = (0..2).map(|_| connect(address)).collect();
    for client in &mut held {
        client.write_all(GET.as_bytes()).unwrap();
        assert_eq!(status(&read_response(client)), 200);
    }

    assert_eq!(raw(address, GET), "");

    held.pop();
    let served = Arc::new(Mutex::new(String::new()));
    wait_for("room for another connection", || {
        *served.lock().unwrap() = raw(address, LAST_GET);
        !served.lock().unwrap().is_empty()
    });
    assert_eq!(status(&served.lock().unwrap()), 200);
}

#[test]
fn a_program_is_refused_in_json_and_the_line_says_what_it_asked_for() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw("POST /x HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nContent-Length: +1\r\n\r\n");

    assert_eq!(status(&answer), 400);
    assert_eq!(header(&answer, "content-type").as_deref(), Some("application/json"));
    assert!(gateway.log(1)[0].contains("\"POST /x"), "{:?}", gateway.log(1));
}
