//! WSGI applications behind real uWSGI and real gunicorn.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use serde_json::Value;

use crate::support::{
    TestGateway,
    applications::{Gunicorn, Uwsgi, application_at, seen},
    body,
    clients::{self, H2, block_on},
    connect, header, raw, read_response, status, unchunked, wait_for,
};

/// A request with the connection closed after it, so that it can be read to its end.
fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: justice.example.com\r\nConnection: close\r\n{headers}\r\n")
}

/// A folder, uWSGI in it, and a gateway that speaks uwsgi with it over its unix socket.
fn behind_uwsgi(options: &[&str], upstream: &str, route: &str) -> Option<(TestGateway, Uwsgi)> {
    let folder = tempfile::tempdir().unwrap();
    let uwsgi = Uwsgi::start(folder.path(), options)?;
    let endpoint = format!("unix:{}", uwsgi.socket.display());
    let configuration = application_at(endpoint, &format!("protocol: uwsgi, {upstream}"), route);
    Some((TestGateway::start_in(folder, &configuration), uwsgi))
}

/// An application server that keeps `folder` alive, and a gateway that speaks HTTP with it.
fn over_http(folder: tempfile::TempDir, endpoint: impl std::fmt::Display) -> TestGateway {
    TestGateway::start_in(folder, &application_at(endpoint, "", ""))
}

fn behind_gunicorn() -> Option<(TestGateway, Gunicorn)> {
    let folder = tempfile::tempdir().unwrap();
    let gunicorn = Gunicorn::start(folder.path())?;
    let endpoint = gunicorn.tcp;
    Some((over_http(folder, endpoint), gunicorn))
}

fn text<'a>(seen: &'a serde_json::Map<String, Value>, name: &str) -> Option<&'a str> {
    seen.get(name).and_then(Value::as_str)
}

#[test]
fn uwsgi_is_told_every_variable_that_nginx_tells_it() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };

    let answer = gateway.raw(
        "POST /x%20y//z%2Fq?a=1&b=%20 HTTP/1.1\r\nHost: justice.example.com:8443\r\nConnection: close\r\n\
         Content-Type: text/plain\r\nContent-Length: 5\r\nX-Test: one\r\nReferer: http://justice.example.com/\r\n\r\nhello",
    );

    let seen = seen(&answer);
    for (name, expected) in [
        ("REQUEST_METHOD", "POST"),
        ("REQUEST_URI", "/x%20y//z%2Fq?a=1&b=%20"),
        ("PATH_INFO", "/x y/z/q"),
        ("SCRIPT_NAME", ""),
        ("QUERY_STRING", "a=1&b=%20"),
        ("CONTENT_TYPE", "text/plain"),
        ("CONTENT_LENGTH", "5"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("SERVER_NAME", "justice.example.com"),
        ("SERVER_PORT", "8443"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REQUEST_SCHEME", "http"),
        ("HTTP_HOST", "justice.example.com:8443"),
        ("HTTP_X_TEST", "one"),
        ("HTTP_REFERER", "http://justice.example.com/"),
        ("HTTP_X_FORWARDED_FOR", "127.0.0.1"),
        ("HTTP_X_REAL_IP", "127.0.0.1"),
        ("HTTP_X_FORWARDED_PROTO", "http"),
        ("HTTP_X_FORWARDED_HOST", "justice.example.com:8443"),
        ("HTTP_X_FORWARDED_PORT", "8443"),
        ("wsgi.url_scheme", "http"),
        ("body", "hello"),
    ] {
        assert_eq!(text(&seen, name), Some(expected), "{name} in {seen:#?}");
    }
    assert_eq!(text(&seen, "HTTPS"), None);
    assert_eq!(text(&seen, "HTTP_CONNECTION"), None, "a matter of the client's connection");
}

#[test]
fn a_mount_of_uwsgi_gets_its_script_name_and_the_rest_as_path_info() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };

    for (path, script_name, path_info, request_uri) in [
        ("/da/interview?i=1", "/da", "/interview", "/da/interview?i=1"),
        ("/da/", "/da", "/", "/da/"),
        ("/da//x", "/da", "/x", "/da//x"),
        ("/dashboard", "", "/dashboard", "/dashboard"),
    ] {
        let seen = seen(&gateway.raw(get(path, "")));

        assert_eq!(text(&seen, "SCRIPT_NAME"), Some(script_name), "{path}");
        assert_eq!(text(&seen, "PATH_INFO"), Some(path_info), "{path}");
        assert_eq!(text(&seen, "REQUEST_URI"), Some(request_uri), "{path}");
    }
}

#[test]
fn the_bare_form_of_a_mount_is_its_root_and_keeps_its_uri() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let configuration =
        application_at(uwsgi.tcp, "protocol: uwsgi", "").replace("prefix: /,", "prefix: /da/, host: null,");
    let gateway = TestGateway::start_in(folder, &configuration);

    let seen = seen(&gateway.raw(get("/da", "")));

    assert_eq!(text(&seen, "SCRIPT_NAME"), Some("/da"));
    assert_eq!(text(&seen, "PATH_INFO"), Some("/"));
    assert_eq!(text(&seen, "REQUEST_URI"), Some("/da"));
}

#[test]
fn a_stripped_prefix_is_the_script_name_of_an_application_without_mounts() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let configuration = application_at(uwsgi.tcp, "protocol: uwsgi", "strip_prefix: true")
        .replace("prefix: /,", "prefix: /forms/, host: null,");
    let gateway = TestGateway::start_in(folder, &configuration);

    let seen = seen(&gateway.raw(get("/forms/a%20b", "")));

    assert_eq!(text(&seen, "SCRIPT_NAME"), Some("/forms"));
    assert_eq!(text(&seen, "PATH_INFO"), Some("/a b"));
}

#[test]
fn an_application_behind_tls_knows_it_and_its_url_scheme() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["justice.example.com"]);
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let configuration = application_at(uwsgi.tcp, "protocol: uwsgi", "").replace("0' }", "0', tls: true }");
    let gateway = TestGateway::start_in(folder, &(configuration + &clients::tls(&["site"])));

    let answer =
        block_on(async { H2::connect(gateway.address(0), "justice.example.com", &certificate).await.get("/").await });

    let seen: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(seen["HTTPS"], "on");
    assert_eq!(seen["REQUEST_SCHEME"], "https");
    assert_eq!(seen["wsgi.url_scheme"], "https");
    assert_eq!(seen["SERVER_PORT"], "443");
    assert_eq!(seen["HTTP_X_FORWARDED_PROTO"], "https");
    assert_eq!(seen["HTTP_HOST"], "justice.example.com");
    assert_eq!(seen["SERVER_PROTOCOL"], "HTTP/1.1", "h2 is a matter between us and the client");
}

const SPOOFS: &str = "X-Forwarded-Proto: https\r\nX_Forwarded_Proto: https\r\nX-Forwarded-SSL: on\r\n\
     X-Forwarded-Scheme: https\r\nX-Scheme: https\r\nX-Url-Scheme: https\r\nFront-End-Https: on\r\nHTTPS: on\r\n\
     X-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6;proto=https\r\n\
     Proxy: http://6.6.6.6/\r\nScript-Name: /evil\r\nX-Script-Name: /evil\r\nSCRIPT_NAME: /evil\r\n";

fn assert_not_spoofed(gateway: &TestGateway) {
    let seen = seen(&gateway.raw(get("/", SPOOFS)));

    assert_eq!(text(&seen, "wsgi.url_scheme"), Some("http"));
    assert_eq!(text(&seen, "HTTP_X_FORWARDED_PROTO"), Some("http"));
    assert_eq!(text(&seen, "HTTP_X_FORWARDED_FOR"), Some("127.0.0.1"));
    assert_eq!(text(&seen, "HTTP_X_REAL_IP"), Some("127.0.0.1"));
    assert_eq!(text(&seen, "SCRIPT_NAME").unwrap_or_default(), "");
    for name in ["HTTP_X_FORWARDED_SSL", "HTTP_FORWARDED", "HTTP_PROXY", "HTTP_X_SCHEME", "HTTP_X_URL_SCHEME"] {
        assert_eq!(text(&seen, name), None, "{name}");
    }
    let spoofed: Vec<_> =
        seen.iter().filter(|(_, value)| value.as_str().is_some_and(|v| v.contains("6.6.6.6"))).collect();
    assert!(spoofed.is_empty(), "{spoofed:?}");
}

#[test]
fn no_client_spoofs_scheme_or_address_behind_uwsgi() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };

    assert_not_spoofed(&gateway);
}

#[test]
fn no_client_spoofs_scheme_or_address_behind_the_http_socket_of_uwsgi() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };

    assert_not_spoofed(&over_http(folder, uwsgi.http));
}

#[test]
fn no_client_spoofs_scheme_or_address_behind_gunicorn() {
    let Some((gateway, _gunicorn)) = behind_gunicorn() else { return };

    assert_not_spoofed(&gateway);
}

#[test]
fn gunicorn_is_told_https_of_a_client_on_tls() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["justice.example.com"]);
    let Some(gunicorn) = Gunicorn::start(folder.path()) else { return };
    let configuration = application_at(gunicorn.tcp, "", "").replace("0' }", "0', tls: true }");
    let gateway = TestGateway::start_in(folder, &(configuration + &clients::tls(&["site"])));

    let answer =
        block_on(async { H2::connect(gateway.address(0), "justice.example.com", &certificate).await.get("/").await });

    let seen: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(seen["wsgi.url_scheme"], "https");
}

#[test]
fn lines_of_one_header_reach_the_application_as_one_value() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };

    let seen = seen(&gateway.raw(get("/", "X-Two: a\r\nX-Two: b\r\nCookie: a=1\r\nCookie: b=2\r\n")));

    assert_eq!(text(&seen, "HTTP_X_TWO"), Some("a, b"));
    assert_eq!(text(&seen, "HTTP_COOKIE"), Some("a=1; b=2"));
}

#[test]
fn cookies_that_h2_split_are_whole_again() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["justice.example.com"]);
    let Some(gunicorn) = Gunicorn::start(folder.path()) else { return };
    let configuration = application_at(gunicorn.tcp, "", "").replace("0' }", "0', tls: true }");
    let gateway = TestGateway::start_in(folder, &(configuration + &clients::tls(&["site"])));

    let answer = block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "justice.example.com", &certificate).await;
        let request = h2.request("GET", "/").header("cookie", "a=1").header("cookie", "b=2").header("cookie", "c=3");
        let response = h2.send(request.body(Full::default()).unwrap()).await.unwrap();
        clients::whole(response).await
    });

    let seen: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(seen["HTTP_COOKIE"], "a=1; b=2; c=3");
}

#[test]
fn a_request_that_uwsgi_would_not_read_is_refused_with_431() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    // More than the packet takes, and the listener lets it in.
    let configuration = application_at(uwsgi.tcp, "protocol: uwsgi", "") + "limits: { header_bytes: 64KiB }\n";
    let gateway = TestGateway::start_in(folder, &configuration);

    let fits = gateway.raw(get("/", &format!("Cookie: {}\r\n", "c".repeat(31 * 1024))));
    let too_large = gateway.raw(get("/", &format!("Cookie: {}\r\n", "c".repeat(33 * 1024))));

    assert_eq!(text(&seen(&fits), "HTTP_COOKIE").map(str::len), Some(31 * 1024));
    assert_eq!(status(&too_large), 431, "{too_large}");
    assert!(!uwsgi.log().contains("invalid request block size"), "{}", uwsgi.log());
}

#[test]
fn a_chunked_upload_reaches_the_application_whole_and_with_its_length() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };
    let mut request =
        String::from("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in ["first ", "second ", "third"] {
        write!(request, "{:x}\r\n{piece}\r\n", piece.len()).unwrap();
    }
    request.push_str("0\r\nX-Trailer: gone\r\n\r\n");

    let seen = seen(&gateway.raw(request));

    assert_eq!(text(&seen, "body"), Some("first second third"));
    assert_eq!(text(&seen, "CONTENT_LENGTH"), Some("18"));
    assert_eq!(text(&seen, "HTTP_TRANSFER_ENCODING"), None);
    assert_eq!(text(&seen, "HTTP_X_TRAILER"), None);
}

#[test]
fn a_chunked_upload_reaches_an_application_behind_gunicorn() {
    let Some((gateway, _gunicorn)) = behind_gunicorn() else { return };

    let answer = gateway.raw(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\n\r\n",
    );

    assert_eq!(text(&seen(&answer), "body"), Some("hello"));
}

#[test]
fn an_upload_that_does_not_fit_in_memory_arrives_byte_for_byte() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };
    let upload: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 253) as u8).collect();
    let mut request = format!(
        "POST /digest HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        upload.len()
    )
    .into_bytes();
    request.extend(&upload);

    let answer = gateway.raw(request);

    let hex = run_sha256(&upload, &gateway);
    assert_eq!(body(&answer), format!("{} {hex}", upload.len()));
}

/// A client's own pause.
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(end - Instant::now());
    }
}

/// By another program, so that what the application says is held against something else.
fn run_sha256(data: &[u8], gateway: &TestGateway) -> String {
    let file = gateway.folder.path().join("upload");
    std::fs::write(&file, data).unwrap();
    let output = clients::run(std::process::Command::new("sha256sum").arg(&file));
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().to_owned()
}

#[test]
fn a_client_that_pauses_is_not_felt_by_an_impatient_uwsgi() {
    // It gives a client that pauses one second; nobody pauses before it.
    let Some((gateway, uwsgi)) = behind_uwsgi(&["--socket-timeout", "1"], "", "") else { return };
    let mut client = connect(gateway.address(0));
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello")
        .unwrap();
    pause(Duration::from_millis(1500));
    client.write_all(b"world").unwrap();

    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();

    assert_eq!(status(&answer), 200, "{answer}\n{}", uwsgi.log());
    assert_eq!(text(&seen(&answer), "body"), Some("helloworld"));
}

#[test]
fn an_application_that_does_not_read_a_body_is_heard_all_the_same() {
    for size in [10, 200_000, 5_000_000] {
        let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };
        let head =
            format!("POST /unread HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
        let mut request = head.into_bytes();
        request.resize(request.len() + size, b'x');

        let answer = gateway.raw(request);

        assert_eq!((status(&answer), body(&answer)), (403, "not wanted".into()), "{size}");
    }
}

#[test]
fn an_application_that_does_not_read_a_streamed_body_is_heard_all_the_same() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "buffer: { request: false, response: false }") else { return };
    let size = 3_000_000;
    let head =
        format!("POST /unread HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
    let mut request = head.into_bytes();
    request.resize(request.len() + size, b'x');

    let answer = gateway.raw(request);

    assert_eq!((status(&answer), body(&answer)), (403, "not wanted".into()));
}

#[test]
fn an_unread_body_is_no_harm_behind_the_http_servers_either() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let Some((gunicorn_gateway, _gunicorn)) = behind_gunicorn() else { return };
    for gateway in [over_http(folder, uwsgi.http), gunicorn_gateway] {
        let size = 1_000_000;
        let head =
            format!("POST /unread HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
        let mut request = head.into_bytes();
        request.resize(request.len() + size, b'x');

        let answer = gateway.raw(request);

        assert_eq!((status(&answer), body(&answer)), (403, "not wanted".into()));
    }
}

/// Sends `count` requests for `path` at once and answers with what came of each.
fn at_once(gateway: &TestGateway, count: usize, path: &str) -> Vec<String> {
    let (address, request) = (gateway.address(0), get(path, ""));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..count).map(|_| scope.spawn(|| raw(address, &request))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn a_hundred_requests_at_once_enter_uwsgi_no_more_than_four_at_a_time() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&["--threads", "16"], "concurrency: 4", "") else { return };

    let answers = at_once(&gateway, 100, "/slow?0.01");

    for answer in &answers {
        assert_eq!(status(answer), 200, "{answer}");
    }
    let peak = answers.iter().map(|answer| body(answer).parse::<usize>().unwrap()).max();
    assert_eq!(peak, Some(4), "requests inside at once, as the application counted them");
}

#[test]
fn a_hundred_requests_at_once_are_answered_over_the_http_socket_of_uwsgi() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let gateway = TestGateway::start_in(folder, &application_at(uwsgi.http, "concurrency: 4", ""));

    let statuses: Vec<_> = at_once(&gateway, 100, "/slow?0.005").iter().map(|answer| status(answer)).collect();

    assert_eq!(statuses, [200; 100]);
}

#[test]
fn requests_one_after_the_other_are_answered_over_the_http_socket_that_closes_unannounced() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let gateway = over_http(folder, uwsgi.http);
    let mut client = connect(gateway.address(0));

    for number in 0..50 {
        // What cannot be repeated is not to be lost to a connection that is just being closed.
        let method = if number % 2 == 0 { "POST" } else { "GET" };
        let request = format!("{method} /{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();

        let answer = read_response(&mut client);

        assert_eq!(status(&answer), 200, "{number}: {answer}");
    }
}

#[test]
fn connections_to_gunicorn_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(gunicorn) = Gunicorn::start(folder.path()) else { return };
    let configuration = application_at(gunicorn.tcp, "", "") + "workers: 1\n";
    let gateway = TestGateway::start_in(folder, &configuration);

    let ports: std::collections::HashSet<String> =
        (0..10).map(|_| text(&seen(&gateway.raw(get("/", ""))), "REMOTE_PORT").unwrap().to_owned()).collect();

    assert_eq!(ports.len(), 1, "one connection expected: {ports:?}");
}

#[test]
fn gunicorn_answers_over_its_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let Some(gunicorn) = Gunicorn::start(folder.path()) else { return };
    let endpoint = format!("unix:{}", gunicorn.socket.display());
    let gateway = over_http(folder, endpoint);

    let seen = seen(&gateway.raw(get("/x%20y?a=1", "")));

    assert_eq!(text(&seen, "PATH_INFO"), Some("/x y"));
    assert_eq!(text(&seen, "HTTP_HOST"), Some("justice.example.com"));
    assert_eq!(text(&seen, "HTTP_X_REAL_IP"), Some("127.0.0.1"));
}

#[test]
fn a_large_answer_of_uwsgi_arrives_byte_for_byte_at_a_slow_reader() {
    let Some((gateway, _uwsgi)) = behind_uwsgi(&[], "", "") else { return };
    let mut client = connect(gateway.address(0));
    client.write_all(get("/large?96", "").as_bytes()).unwrap();

    let mut answer = Vec::new();
    let mut piece = vec![0; 100_000];
    loop {
        let read = client.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
        if answer.len() < 2_000_000 {
            pause(Duration::from_millis(2));
        }
    }

    let start = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    let expected: Vec<u8> = (0..96_u32).flat_map(|number| vec![(number % 251) as u8; 65536]).collect();
    let head = String::from_utf8_lossy(&answer[..start]).into_owned();
    // uWSGI says no length, so it comes in chunks.
    assert_eq!(header(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
    assert!(unchunked(&answer[start..]).as_ref() == Some(&expected), "other bytes than the application sent");
}

/// Clients that ask again and again until they are told to stop; answers with what was not a 200.
fn under_load(gateway: &TestGateway, act: impl FnOnce(&AtomicUsize)) -> Vec<String> {
    let (address, request) = (gateway.address(0), get("/slow?0.005", ""));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (stop, answered, request) = (Arc::clone(&stop), Arc::clone(&answered), request.clone());
                scope.spawn(move || {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = raw(address, &request);
                        if answer.starts_with("HTTP/1.1 200") {
                            answered.fetch_add(1, Ordering::Relaxed);
                        } else {
                            failed.push(answer);
                        }
                    }
                    failed
                })
            })
            .collect();
        let stopper = Stop(&stop);
        act(&answered);
        drop(stopper);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

/// Stops the clients, also where the test has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn wait_for_answers(answered: &AtomicUsize, more: usize) {
    let until = answered.load(Ordering::Relaxed) + more;
    wait_for("more answers", || answered.load(Ordering::Relaxed) >= until);
}

#[test]
fn a_reload_of_uwsgi_under_load_fails_no_request() {
    // Its threads now and then do not end by themselves under load; it would wait a minute before it ends them.
    let mercy = &["--worker-reload-mercy=2"];
    let Some((gateway, uwsgi)) = behind_uwsgi(mercy, "concurrency: 4, hold: 10s", "") else { return };

    let failed = under_load(&gateway, |answered| {
        wait_for_answers(answered, 20);
        uwsgi.reload();
        wait_for("uWSGI to reload", || uwsgi.log().matches("spawned uWSGI worker 1").count() == 2);
        wait_for_answers(answered, 20);
    });

    assert!(failed.is_empty(), "{} failed, such as {}", failed.len(), failed[0]);
}

#[test]
fn requests_wait_for_a_uwsgi_that_is_started_anew() {
    let folder = tempfile::tempdir().unwrap();
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let files = folder.path().to_owned();
    let endpoint = format!("unix:{}", uwsgi.socket.display());
    let configuration = application_at(endpoint, "protocol: uwsgi, concurrency: 4, hold: 10s", "");
    let gateway = TestGateway::start_in(folder, &configuration);
    let mut second = None;

    let failed = under_load(&gateway, |answered| {
        wait_for_answers(answered, 10);
        drop(uwsgi);
        second = Uwsgi::start(&files, &[]);
        wait_for_answers(answered, 20);
    });

    assert!(failed.is_empty(), "{} failed, such as {}", failed.len(), failed[0]);
}

#[test]
fn an_application_that_is_not_there_is_a_starting_page_after_the_hold() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("unix:{}/nobody.sock", folder.path().display());
    let gateway = TestGateway::start_in(folder, &application_at(endpoint, "protocol: uwsgi, hold: 100ms", ""));

    let answer = gateway.raw(get("/", "Accept: text/html\r\n"));

    assert_eq!(status(&answer), 503);
    assert!(header(&answer, "retry-after").is_some(), "{answer}");
    assert_eq!(header(&answer, "cache-control").as_deref(), Some("no-store"));
}

#[test]
fn an_upload_over_h2_reaches_uwsgi_with_its_length() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["justice.example.com"]);
    let Some(uwsgi) = Uwsgi::start(folder.path(), &[]) else { return };
    let configuration = application_at(uwsgi.tcp, "protocol: uwsgi", "").replace("0' }", "0', tls: true }");
    let gateway = TestGateway::start_in(folder, &(configuration + &clients::tls(&["site"])));

    let answer = block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "justice.example.com", &certificate).await;
        let request = h2.request("POST", "/").body(Full::new(Bytes::from_static(b"over h2"))).unwrap();
        let response = h2.send(request).await.unwrap();
        clients::whole(response).await
    });

    let seen: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!((&seen["body"], &seen["CONTENT_LENGTH"]), (&"over h2".into(), &"7".into()));
}
