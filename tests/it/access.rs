//! Who gets in: by address.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::support::{Backend, TestGateway, clients::connect_from, proxying, status};

/// Sends `request` and reads to the end.
fn exchange(mut stream: TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n{fields}\r\n")
}

#[test]
fn who_gets_in_is_decided_by_the_address_that_trusted_proxies_vouch_for() {
    let backend = Backend::echoing();
    let routes = "{ prefix: /, upstream: app, deny: [192.0.2.66, 127.0.0.3] }, \
                  { prefix: /staff, upstream: app, allow: [192.0.2.0/24, '2001:db8::/32'], deny: [192.0.2.13] }";
    let gateway = TestGateway::start(
        &(proxying(backend.address, "", "").replace("{ prefix: /, upstream: app,  }", routes)
            + "trusted_proxies: [127.0.0.2]\n"),
    );
    let ask = |from: &str, path: &str, fields: &str| {
        status(&exchange(connect_from(from, gateway.address(0)), &request(path, fields)))
    };

    for (from, path, fields, expected) in [
        ("127.0.0.1", "/", "", 200),
        ("127.0.0.3", "/", "", 403),
        // What a client says of itself opens no door, and closes none.
        ("127.0.0.3", "/", "X-Forwarded-For: 192.0.2.7\r\n", 403),
        ("127.0.0.1", "/staff", "X-Forwarded-For: 192.0.2.7\r\nX-Real-IP: 192.0.2.7\r\n", 403),
        ("127.0.0.1", "/", "X-Forwarded-For: 192.0.2.66\r\n", 200),
        ("127.0.0.2", "/staff", "X-Forwarded-For: 192.0.2.7\r\n", 200),
        ("127.0.0.2", "/staff", "X-Forwarded-For: ::ffff:192.0.2.7\r\n", 200),
        ("127.0.0.2", "/staff", "X-Forwarded-For: 2001:db8::7\r\n", 200),
        ("127.0.0.2", "/staff", "X-Forwarded-For: 192.0.2.7, 203.0.113.9\r\n", 403),
        ("127.0.0.2", "/staff", "X-Forwarded-For: 192.0.2.13\r\n", 403),
        ("127.0.0.2", "/", "X-Forwarded-For: 192.0.2.66\r\n", 403),
        // Paths that the application may take for one below /staff.
        ("127.0.0.1", "/x%2F..%2Fstaff", "", 403),
        ("127.0.0.1", "/%2Fstaff/x", "", 403),
        ("127.0.0.1", "/staff;x/y", "", 403),
    ] {
        assert_eq!(ask(from, path, fields), expected, "{from} {path} {fields}");
    }
}
