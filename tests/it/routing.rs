//! Which requests go where, and which are ours to refuse or to send elsewhere.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::net::SocketAddr;

use crate::support::{Backend, TestGateway, body, header, proxying, read_request, status};

/// Answers with its name and the target it was asked for.
fn named(name: &'static str) -> Backend {
    use std::io::Write;
    Backend::start(move |mut stream| {
        while let Some(request) = read_request(&mut stream) {
            let request = String::from_utf8_lossy(&request).into_owned();
            let target = request.split(' ').nth(1).unwrap();
            let said = format!("{name} {target}");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", said.len());
            if stream.write_all((head + &said).as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn ask(gateway: &TestGateway, host: &str, target: &str) -> String {
    gateway.raw(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

fn upstreams(backends: &[(&str, SocketAddr)]) -> String {
    let each = backends.iter().map(|(name, address)| format!("  {name}: {{ endpoints: ['{address}'] }}\n"));
    format!("upstreams:\n{}", each.collect::<String>())
}

const LISTENER: &str = "listeners: [{ address: '127.0.0.1:0' }]\n";

#[test]
fn a_request_is_answered_by_the_backend_of_its_route() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    assert_eq!(gateway.get("/x"), (200, "one".to_owned()));
}

#[test]
fn outside_every_route_is_a_404_of_our_own() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", "").replace("prefix: /,", "prefix: /da/,"));

    let answer = gateway.raw("GET /dashboard HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");

    assert_eq!(status(&answer), 404);
    assert_eq!(backend.connections(), 0, "the backend was asked");
}

#[test]
fn the_longest_prefix_of_whole_segments_wins_and_the_target_is_forwarded_as_it_came() {
    let (app, sockets, rest) = (named("app"), named("sockets"), named("rest"));
    let configuration = LISTENER.to_owned()
        + &upstreams(&[("app", app.address), ("sockets", sockets.address), ("rest", rest.address)])
        + "routes:\n\
           - { prefix: /, upstream: rest }\n\
           - { prefix: /da/, upstream: app }\n\
           - { prefix: /da/ws/, upstream: sockets, strip_prefix: true }\n";
    let gateway = TestGateway::start(&configuration);

    for (target, expected) in [
        ("/", "rest /"),
        ("/index.html", "rest /index.html"),
        ("/?/da/", "rest /?/da/"),
        ("/da", "app /da"),
        ("/da?x=1", "app /da?x=1"),
        ("/da/", "app /da/"),
        ("/da/x", "app /da/x"),
        ("/dashboard", "rest /dashboard"),
        ("/DA/x", "rest /DA/x"),
        // Slashes are merged for the choice, not on the way.
        ("//da//x", "app //da//x"),
        ("//x", "rest //x"),
        // Escapes are read for the choice, and stay as they were written.
        ("/%64a/x", "app /%64a/x"),
        ("/d%61", "app /d%61"),
        ("/da/%7Euser/%e2%82%ac", "app /da/%7Euser/%e2%82%ac"),
        ("/da/a%2Fb", "app /da/a%2Fb"),
        ("/da%2Fx", "rest /da%2Fx"),
        ("/da/%252e%252e/x", "app /da/%252e%252e/x"),
        ("/da/a+b;c=d,e:f@g!h$i&j'k(l)*", "app /da/a+b;c=d,e:f@g!h$i&j'k(l)*"),
        ("/da/...", "app /da/..."),
        ("/da/.well-known", "app /da/.well-known"),
        // A query is nobody's business but the application's.
        ("/da/?q=%zz&r=../..&s=a//b?c", "app /da/?q=%zz&r=../..&s=a//b?c"),
        ("/da/?", "app /da/?"),
        // Taken off, with what stands for it.
        ("/da/ws", "sockets /"),
        ("/da/ws?x", "sockets /?x"),
        ("/da/ws/", "sockets /"),
        ("/da/ws/socket.io/?transport=polling", "sockets /socket.io/?transport=polling"),
        ("/da//ws/socket.io/", "sockets /socket.io/"),
        ("/d%61/w%73/a%20b", "sockets /a%20b"),
        ("/da/ws/other", "sockets /other"),
        ("/da/wsfoo", "app /da/wsfoo"),
    ] {
        let answer = ask(&gateway, "x", target);
        assert_eq!(body(&answer), expected, "{target}");
    }
}

#[test]
fn a_path_that_climbs_is_not_found_whatever_it_is_written_in() {
    let app = named("app");
    let configuration = LISTENER.to_owned()
        + &upstreams(&[("app", app.address)])
        + "routes: [{ prefix: /, upstream: app }, { prefix: /da/, upstream: app, strip_prefix: true }]\n";
    let gateway = TestGateway::start(&configuration);

    for target in [
        "/..",
        "/da/..",
        "/da/../x",
        "/da/./x",
        "/da/%2e%2e/x",
        "/da/%2E%2E/x",
        "/da/.%2e/x",
        "/da/%2e",
        "/da/..%2fx",
        "/da/x%2f..%2f..%2fx",
        "/da/..;/x",
        "/da/..\\x",
        "/da/x%5c..%5cx",
        "/%2e%2e/da/",
        "//../da",
    ] {
        let answer = ask(&gateway, "x", target);
        assert_eq!(status(&answer), 404, "{target}: {answer}");
    }
    assert_eq!(app.connections(), 0, "the backend was asked");
}

#[test]
fn a_route_of_the_host_comes_before_any_other() {
    let (one, two, any) = (named("one"), named("two"), named("any"));
    let configuration = LISTENER.to_owned()
        + &upstreams(&[("one", one.address), ("two", two.address), ("any", any.address)])
        + "routes:\n\
           - { prefix: /, upstream: any }\n\
           - { prefix: /long/prefix/, upstream: any }\n\
           - { host: one.example, prefix: /, upstream: one }\n\
           - { host: two.example, prefix: /two, upstream: two }\n";
    let gateway = TestGateway::start(&configuration);

    for (host, target, expected) in [
        ("one.example", "/long/prefix/", "one /long/prefix/"),
        ("ONE.example", "/", "one /"),
        ("one.example.", "/", "one /"),
        ("one.example:8080", "/", "one /"),
        ("two.example", "/two/x", "two /two/x"),
        ("two.example", "/x", "any /x"),
        ("two.example", "/long/prefix/", "any /long/prefix/"),
        ("www.one.example", "/", "any /"),
        ("three.example", "/", "any /"),
        ("[::1]:80", "/", "any /"),
    ] {
        assert_eq!(body(&ask(&gateway, host, target)), expected, "{host} {target}");
    }
}

#[test]
fn the_bare_prefix_is_redirected_to_its_slash_where_that_is_wanted() {
    let app = named("app");
    let configuration = proxying(app.address, "", "slash: redirect").replace("prefix: /,", "prefix: /da,");
    let gateway = TestGateway::start(&configuration);

    for (target, expected) in
        [("/da", "/da/"), ("/da?x=%20&y", "/da/?x=%20&y"), ("//da", "/da/"), ("/%64a", "/%64a/"), ("/da?", "/da/?")]
    {
        for method in ["GET", "POST"] {
            let answer = gateway.raw(format!(
                "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            ));
            assert_eq!((status(&answer), header(&answer, "location").as_deref()), (308, Some(expected)), "{target}");
        }
    }
    assert_eq!(body(&ask(&gateway, "x", "/da/")), "app /da/");
}

#[test]
fn the_location_of_a_backend_becomes_the_public_one() {
    let backend = Backend::start(|mut stream| {
        use std::io::Write;
        let own = stream.local_addr().unwrap();
        while let Some(request) = read_request(&mut stream) {
            // What to redirect to is said in the query.
            let request = String::from_utf8(request).unwrap();
            let location =
                request.split(' ').nth(1).unwrap().split_once('?').unwrap().1.replace("OWN", &own.to_string());
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
        }
    });
    let port = backend.address.port();
    let configuration = LISTENER.to_owned()
        + &upstreams(&[("app", backend.address)])
        + "routes: [{ prefix: /, upstream: app }, { prefix: /da/ws, upstream: app, strip_prefix: true }]\n";
    let gateway = TestGateway::start(&configuration);

    for (from, said, expected) in [
        ("/da/ws/", "http://OWN/next?a=b", "http://public.example:81/da/ws/next?a=b"),
        ("/da/ws/", &format!("http://localhost:{port}/next"), "http://public.example:81/da/ws/next"),
        ("/da/ws/", "//OWN/next", "http://public.example:81/da/ws/next"),
        ("/da/ws/", "/next", "/da/ws/next"),
        ("/da/ws/", "/da/ws/next", "/da/ws/next"),
        ("/da/ws/", "next", "next"),
        ("/da/ws/", "https://elsewhere.example/next", "https://elsewhere.example/next"),
        ("/da/ws/", "http://public.example:81/next", "http://public.example:81/next"),
        ("/", "http://OWN/next", "http://public.example:81/next"),
        ("/", "/next", "/next"),
        ("/", "http://127.0.0.1:1/next", "http://127.0.0.1:1/next"),
    ] {
        let answer = ask(&gateway, "public.example:81", &format!("{from}?{said}"));
        assert_eq!(header(&answer, "location").as_deref(), Some(expected), "{from} {said}");
    }
}

fn redirecting(backend: SocketAddr, keys: &str) -> TestGateway {
    let listener = format!("'127.0.0.1:0', redirect: https{keys}");
    TestGateway::start(&(proxying(backend, "", "").replace("'127.0.0.1:0'", &listener) + "host: justice.example.com\n"))
}

#[test]
fn a_redirecting_listener_sends_every_request_to_the_host_of_the_site() {
    let backend = Backend::echoing();
    let gateway = redirecting(backend.address, "");

    for (request, expected) in [
        ("GET /a//b%20c?d=%zz HTTP/1.1\r\nHost: justice.example.com\r\n", "/a//b%20c?d=%zz"),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n", "/"),
        ("GET // HTTP/1.1\r\nHost: justice.example.com:8080\r\n", "//"),
        ("GET //evil.example/x HTTP/1.1\r\nHost: x\r\n", "//evil.example/x"),
        ("GET http://evil.example/x?y HTTP/1.1\r\nHost: evil.example\r\n", "/x?y"),
        ("GET /../x HTTP/1.1\r\nHost: x\r\n", "/../x"),
        ("POST /form HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n", "/form"),
        ("HEAD /x HTTP/1.1\r\nHost: x\r\n", "/x"),
        ("GET /old HTTP/1.0\r\n", "/old"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n", "/"),
        ("GET /ws/ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n", "/ws/"),
    ] {
        let answer = gateway.raw(format!("{request}Connection: close\r\n\r\n"));
        let expected = format!("https://justice.example.com{expected}");
        assert_eq!((status(&answer), header(&answer, "location")), (301, Some(expected)), "{request}");
    }
    assert_eq!(backend.connections(), 0, "the backend was asked");
}

#[test]
fn a_redirecting_listener_names_the_port_of_https_where_it_is_another() {
    let backend = Backend::echoing();
    let gateway = redirecting(backend.address, ", https_port: 8443");

    let answer = ask(&gateway, "x", "/x");

    assert_eq!(header(&answer, "location").as_deref(), Some("https://justice.example.com:8443/x"));
}

#[test]
fn a_redirected_body_is_not_waited_for() {
    let backend = Backend::echoing();
    let gateway = redirecting(backend.address, "");

    let answer =
        gateway.raw("POST /form HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n");

    assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (301, Some("close")));
}

#[test]
fn on_a_plain_listener_every_host_is_served() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "host: justice.example.com\n"));

    assert_eq!(status(&ask(&gateway, "other.example", "/")), 200);
}
