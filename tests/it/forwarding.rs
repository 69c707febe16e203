//! What backends and the access log are told of the client, from whom, over which connection.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use crate::support::{
    Backend, TestGateway, body,
    clients::{connect_from, curl},
    proxying, status,
};

/// Sends `request` and reads to the end.
fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    // A peer that is not believed may close first.
    drop(stream.write_all(request.as_bytes()));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8(answer).unwrap()
}

fn request(fields: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: front.example\r\nConnection: close\r\n{fields}\r\n")
}

/// The lines of a request, as the echoing backend saw it, that say who the client is.
fn told(answer: &str) -> Vec<String> {
    assert_eq!(status(answer), 200, "{answer}");
    let mut lines: Vec<_> = body(answer)
        .lines()
        .map(str::to_ascii_lowercase)
        .filter(|line| line.starts_with("x-forwarded") || line.starts_with("x-real") || line.starts_with("forwarded"))
        .collect();
    lines.sort();
    lines
}

fn says(client: &str, proto: &str, host: &str, port: u16) -> Vec<String> {
    vec![
        format!("x-forwarded-for: {client}"),
        format!("x-forwarded-host: {host}"),
        format!("x-forwarded-port: {port}"),
        format!("x-forwarded-proto: {proto}"),
        format!("x-real-ip: {client}"),
    ]
}

/// 127.0.0.2 is a trusted proxy; the client at 127.0.0.1 is not.
fn trusting_second(backend: &Backend) -> TestGateway {
    TestGateway::start(&(proxying(backend.address, "", "") + "trusted_proxies: [127.0.0.2]\n"))
}

const ALL: &str = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public.example\r\n\
     X-Forwarded-Port: 8443\r\nX-Real-IP: 192.0.2.8\r\nForwarded: for=192.0.2.9\r\nX-Forwarded-Server: s\r\n\
     X-Forwarded-Ssl: on\r\nX_Forwarded_For: 192.0.2.10\r\nX-Forwarded-Prefix: /p\r\n";

#[test]
fn a_peer_that_is_not_trusted_is_the_client_whatever_it_says() {
    let backend = Backend::echoing();
    let gateway = trusting_second(&backend);

    let answer = exchange(connect_from("127.0.0.1", gateway.address(0)), &request(ALL));

    assert_eq!(told(&answer), says("127.0.0.1", "http", "front.example", 80));
    assert!(gateway.log(1)[0].starts_with("127.0.0.1 - - ["), "{:?}", gateway.log(1));
}

#[test]
fn a_trusted_peer_is_believed_and_its_words_are_said_once() {
    let backend = Backend::echoing();
    let gateway = trusting_second(&backend);

    let answer = exchange(connect_from("127.0.0.2", gateway.address(0)), &request(ALL));

    assert_eq!(told(&answer), says("192.0.2.7", "https", "public.example", 8443));
    assert!(body(&answer).to_ascii_lowercase().contains("\r\nhost: front.example\r\n"), "Host as received: {answer}");
    assert!(gateway.log(1)[0].starts_with("192.0.2.7 - - ["), "{:?}", gateway.log(1));
}

#[test]
fn the_client_is_the_right_most_address_that_is_not_trusted() {
    let backend = Backend::echoing();
    let gateway = trusting_second(&backend);
    let fields = "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-For: 127.0.0.2\r\n";

    let answer = exchange(connect_from("127.0.0.2", gateway.address(0)), &request(fields));

    assert_eq!(told(&answer), says("192.0.2.7", "http", "front.example", 80));
}

#[test]
fn forwarded_of_a_trusted_peer_is_read_where_there_is_nothing_else() {
    let backend = Backend::echoing();
    let gateway = trusting_second(&backend);
    let fields = "Forwarded: for=6.6.6.6, for=\"[2001:db8::7]:4711\";proto=https;host=public.example\r\n";

    let answer = exchange(connect_from("127.0.0.2", gateway.address(0)), &request(fields));

    assert_eq!(told(&answer), says("2001:db8::7", "https", "public.example", 443));
}

#[test]
fn a_port_in_the_host_is_passed_on() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer =
        gateway.raw("GET / HTTP/1.1\r\nHost: front.example:8080\r\nReferer: http://front.example:8080/\r\nConnection: close\r\n\r\n");

    assert_eq!(told(&answer), says("127.0.0.1", "http", "front.example:8080", 8080));
    let seen = body(&answer).to_ascii_lowercase();
    assert!(seen.contains("\r\nhost: front.example:8080\r\n"), "{seen}");
    assert!(seen.contains("\r\nreferer: http://front.example:8080/\r\n"), "{seen}");
}

/// A listener on which every connection begins with a PROXY header of 127.0.0.2.
fn proxy_protocol(backend: &Backend) -> TestGateway {
    let configuration = proxying(backend.address, "", "").replace("0' }", "0', proxy_protocol: required }");
    TestGateway::start(&(configuration + "trusted_proxies: [127.0.0.2]\nlimits: { handshake_timeout: 300ms }\n"))
}

/// Version 2, PROXY, TCP over IPv4: from 192.0.2.7:4711 to 192.0.2.1:443.
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x12\x67\x01\xbb";

#[test]
fn a_proxy_header_of_either_version_names_the_client() {
    let backend = Backend::echoing();
    let gateway = proxy_protocol(&backend);
    for header in [b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n", VERSION_2] {
        let mut stream = connect_from("127.0.0.2", gateway.address(0));
        stream.write_all(header).unwrap();

        let answer = exchange(stream, &request("X-Forwarded-For: 6.6.6.6\r\n"));

        assert_eq!(told(&answer), says("192.0.2.7", "http", "front.example", 80), "{header:?}");
    }
    assert!(gateway.log(2).iter().all(|line| line.starts_with("192.0.2.7 - - [")), "{:?}", gateway.log(2));
}

#[test]
fn a_proxy_header_over_ipv6_names_the_client() {
    let backend = Backend::echoing();
    let gateway = proxy_protocol(&backend);
    let mut stream = connect_from("127.0.0.2", gateway.address(0));
    stream.write_all(b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n").unwrap();

    let answer = exchange(stream, &request(""));

    assert_eq!(told(&answer), says("2001:db8::7", "http", "front.example", 80));
}

#[test]
fn a_proxy_header_of_a_peer_that_is_not_trusted_closes_the_connection() {
    let backend = Backend::echoing();
    let gateway = proxy_protocol(&backend);
    let mut stream = connect_from("127.0.0.1", gateway.address(0));
    drop(stream.write_all(VERSION_2));

    assert_eq!(exchange(stream, &request("")), "");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_connection_without_its_proxy_header_is_closed() {
    let backend = Backend::echoing();
    let gateway = proxy_protocol(&backend);
    for (what, bytes) in [
        ("a request", request("").into_bytes()),
        ("a header that is none", b"PROXY TCP4 192.0.2.7 nowhere 1 2\r\n".to_vec()),
        ("half a header", b"PROXY TCP4 192.0.2.7".to_vec()),
        ("nothing", Vec::new()),
    ] {
        let mut stream: TcpStream = connect_from("127.0.0.2", gateway.address(0));
        stream.write_all(&bytes).unwrap();

        assert_eq!(exchange(stream, ""), "", "{what} was answered");
    }
    assert_eq!(backend.connections(), 0);
}

/// A gateway on a unix socket, and whom it trusts.
fn on_a_unix_socket(backend: &Backend, trusted: &str) -> TestGateway {
    let configuration = proxying(backend.address, "", "").replace("127.0.0.1:0", "unix:{dir}/front.sock");
    TestGateway::start(&format!("{configuration}trusted_proxies: [{trusted}]\n"))
}

#[test]
fn peers_on_a_unix_socket_are_believed_only_where_unix_is_trusted() {
    let backend = Backend::echoing();
    let trusting = on_a_unix_socket(&backend, "unix");
    let distrusting = on_a_unix_socket(&backend, "loopback");
    let ask = |gateway: &TestGateway| {
        exchange(UnixStream::connect(gateway.folder.path().join("front.sock")).unwrap(), &request(ALL))
    };

    assert_eq!(told(&ask(&trusting)), says("192.0.2.7", "https", "public.example", 8443));
    let unsaid = ["x-forwarded-host: front.example", "x-forwarded-port: 80", "x-forwarded-proto: http"];
    assert_eq!(told(&ask(&distrusting)), unsaid, "a peer without an address");
}

#[test]
fn clients_on_ipv6_are_told_as_they_are() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", "").replace("127.0.0.1:0", "[::]:0"));
    let port = gateway.address(0).port();

    let Some(six) = curl(&["-i", &format!("http://[::1]:{port}/")]) else { return };
    let Some(four) = curl(&["-i", &format!("http://127.0.0.1:{port}/")]) else { return };

    assert_eq!(told(&six), says("::1", "http", &format!("[::1]:{port}"), port));
    assert_eq!(told(&four), says("127.0.0.1", "http", &format!("127.0.0.1:{port}"), port), "not the mapped address");
}

#[test]
fn a_location_of_the_endpoint_becomes_one_of_the_client() {
    let backend = Backend::start(|mut stream| {
        let own = stream.local_addr().unwrap();
        while crate::support::read_request(&mut stream).is_some() {
            let answer = format!("HTTP/1.1 302 Found\r\nLocation: http://{own}/next?a=1\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let configuration =
        proxying(backend.address, "", "strip_prefix: true").replace("prefix: /,", "prefix: /ws/, host: null,");
    let gateway = TestGateway::start(&(configuration + "trusted_proxies: [loopback]\n"));

    let answer = gateway
        .raw("GET /ws/x HTTP/1.1\r\nHost: front.example\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n");

    assert_eq!(crate::support::header(&answer, "location").as_deref(), Some("https://front.example/ws/next?a=1"));
}

fn logged(format: &str) -> String {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let log = format!("access_log: {{ path: access.log, format: '{format}' }}\n");
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "trusted_proxies: [127.0.0.2]\n" + &log));
    let fields = "X-Forwarded-For: 192.0.2.7\r\nReferer: http://front.example/\r\nUser-Agent: a \"test\"\r\n";
    let request = format!(
        "POST /x?q=1 HTTP/1.1\r\nHost: front.example\r\nConnection: close\r\nContent-Length: 3\r\n{fields}\r\nabc"
    );

    let answer = exchange(connect_from("127.0.0.2", gateway.address(0)), &request);

    assert_eq!(body(&answer), "hello");
    gateway.log(1).remove(0)
}

#[test]
fn a_combined_line_has_the_client_the_bytes_and_the_agent() {
    let line = logged("combined");

    let (start, rest) = line.split_once(" [").unwrap();
    assert_eq!(start, "192.0.2.7 - -");
    let rest = rest.split_once("] ").unwrap().1;
    assert_eq!(rest, r#""POST /x?q=* HTTP/1.1" 200 5 "http://front.example/" "a \"test\"""#);
}

#[test]
fn a_json_line_has_the_client_the_bytes_and_the_timings() {
    let line: serde_json::Value = serde_json::from_str(&logged("json")).unwrap();

    for (key, expected) in [
        ("client", serde_json::json!("192.0.2.7")),
        ("method", "POST".into()),
        ("target", "/x?q=*".into()),
        ("host", "front.example".into()),
        ("user_agent", "a \"test\"".into()),
        ("upstream", "app".into()),
        ("status", 200.into()),
        ("bytes_received", 3.into()),
        ("bytes_sent", 5.into()),
    ] {
        assert_eq!(line[key], expected, "{key} in {line}");
    }
    let time = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"));
    assert!(time("head_seconds") > 0.0 && time("queue_seconds") >= 0.0, "{line}");
    assert!(time("total_seconds") >= time("head_seconds") + time("connect_seconds"), "{line}");
}

#[test]
fn a_line_of_a_template_says_what_it_asks_for() {
    let line =
        logged("{client} {status} {bytes_received}/{bytes_sent} {{{method}}} {tls_version} {upstream} {total_seconds}");

    let (start, total) = line.rsplit_once(' ').unwrap();
    assert_eq!(start, "192.0.2.7 200 3/5 {POST} - app");
    assert!(total.parse::<f64>().unwrap() > 0.0, "{line}");
}
