//! Who gets in: by address, by password, by another server's word; and what browsers are told to be careful about.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::{Mutex, mpsc},
};

use tokio_tungstenite::tungstenite::Message;

use crate::{
    support::{
        Backend, PATIENCE, TestGateway, body,
        clients::connect_from,
        connect, header, proxying, raw, read_packet, read_request, read_response,
        served::{self, Served},
        status, unchunked, wait_for,
    },
    websockets::{Echo, websocket},
};

/// Of the password `secret`.
const ALICE: &str = "alice:$2y$04$NIXZYIuNl69lH0VtRCDYeeqUxUy3yN5brlnch8SfrK4AbEOkpl0RW\n";
/// What alice says of herself.
const AUTHORIZATION: &str = "Authorization: Basic YWxpY2U6c2VjcmV0\r\n";

fn routes(backend: &Backend, routes: &str) -> String {
    proxying(backend.address, "", "").replace("{ prefix: /, upstream: app,  }", routes)
}

fn lines_of(answer: &str, word: &str) -> Vec<String> {
    let lines = body(answer).lines().map(str::to_ascii_lowercase).collect::<Vec<_>>();
    lines.into_iter().filter(|line| line.contains(word)).collect()
}

/// Sends `request` and reads to the end.
fn exchange(mut stream: TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A peer that refuses may close before it has read everything; what it said counts.
    drop(stream.read_to_end(&mut answer));
    String::from_utf8(answer).unwrap()
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n{fields}\r\n")
}

#[test]
fn who_gets_in_is_decided_by_the_address_that_trusted_proxies_vouch_for() {
    let backend = Backend::echoing();
    let routes = "{ prefix: /, upstream: app, deny: [192.0.2.66, 127.0.0.3] }, \
                  { prefix: /staff, upstream: app, allow: [192.0.2.0/24, '2001:db8::/32'], deny: [192.0.2.13] }";
    let gateway = TestGateway::start(&(self::routes(&backend, routes) + "trusted_proxies: [127.0.0.2]\n"));
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
        ("127.0.0.1", "/staff%2Fx", "", 403),
        ("127.0.0.1", "/%2Fstaff/x", "", 403),
        ("127.0.0.1", "/staff;x/y", "", 403),
    ] {
        assert_eq!(ask(from, path, fields), expected, "{from} {path} {fields}");
    }
}

#[test]
fn a_route_with_users_is_for_them_alone_and_the_application_is_told_who_it_was() {
    let backend = Backend::echoing();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("users"), ALICE).unwrap();
    let gateway = TestGateway::start_in(
        folder,
        &routes(
            &backend,
            "{ prefix: /, upstream: app }, { prefix: /staff, upstream: app, basic_auth: { file: '{dir}/users', realm: staff } }, \
             { prefix: /staff/pass, upstream: app, basic_auth: { file: '{dir}/users', pass: true } }",
        ),
    );
    let forged = "X-Remote-User: root\r\nX_Remote_User: root\r\nRemote-User: root\r\nRemote_User: root\r\n";
    let ask = |path: &str, fields: &str| gateway.raw(request(path, fields));

    let anonymous = ask("/staff", forged);
    assert_eq!(header(&anonymous, "www-authenticate").unwrap(), "Basic realm=\"staff\", charset=\"UTF-8\"");
    for (path, fields) in [
        ("/staff", "Authorization: Basic YWxpY2U6d3Jvbmc=\r\n"),
        ("/staff", "Authorization: Basic cm9vdDpzZWNyZXQ=\r\n"),
        ("/staff%2Fx", ""),
        ("/staff;x/y", ""),
    ] {
        assert_eq!(status(&ask(path, fields)), 401, "{path} {fields}");
    }
    assert_eq!((status(&anonymous), backend.connections()), (401, 0));

    for path in ["/staff", "/staff%2Fx"] {
        let known = ask(path, &format!("{AUTHORIZATION}{forged}"));
        assert_eq!(lines_of(&known, "remote"), ["x-remote-user: alice"], "{path}");
        assert_eq!(lines_of(&known, "authorization"), Vec::<String>::new(), "{path}");
    }
    let passed = ask("/staff/pass", AUTHORIZATION);
    assert_eq!(lines_of(&passed, "authorization"), ["authorization: basic ywxpy2u6c2vjcmv0"]);
    assert_eq!(gateway.log(8).iter().filter(|line| line.contains(" - alice [")).count(), 3);

    // A browser is asked, and comes again by the same connection.
    let mut stream = connect(gateway.address(0));
    for (fields, expected) in [("", 401), (AUTHORIZATION, 200)] {
        write!(stream, "GET /staff HTTP/1.1\r\nHost: site.example\r\n{fields}\r\n").unwrap();
        assert_eq!(status(&read_response(&mut stream)), expected);
    }
}

#[test]
fn another_server_says_who_may_pass_and_what_the_application_is_told() {
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let questions = std::sync::Arc::clone(&asked);
    let judge = Backend::start(move |mut stream| {
        while let Some(question) = read_request(&mut stream) {
            let question = String::from_utf8(question).unwrap();
            let answer = if question.contains("Cookie: good") || question.contains("cookie: good") {
                "HTTP/1.1 200 OK\r\nX-User: alice\r\nX-Other: no\r\nContent-Length: 2\r\n\r\nok"
            } else {
                "HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\nSet-Cookie: a=b\r\nX-Accel-Redirect: /x\r\n\
                 Content-Length: 5\r\n\r\nlogin"
            };
            questions.lock().unwrap().push(question);
            if stream.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
    });
    let backend = Backend::echoing();
    let forward = "forward_auth: { upstream: judge, path: '/check?a=b', response_headers: [X-User, X-Groups] }";
    let configuration = routes(
        &backend,
        &format!(
            "{{ prefix: /, upstream: app, {forward} }}, \
             {{ prefix: /down, upstream: app, forward_auth: {{ upstream: down, path: / }} }}"
        ),
    )
    .replace(
        "upstreams: { ",
        &format!(
            "upstreams: {{ judge: {{ endpoints: ['{}'] }}, down: {{ endpoints: ['127.0.0.1:1'], hold: 0 }}, ",
            judge.address
        ),
    );
    let gateway = TestGateway::start(&configuration);

    let refused = gateway.raw(
        "POST /page?x=1 HTTP/1.1\r\nHost: site.example\r\nContent-Length: 3\r\nX-Forwarded-Uri: /public\r\n\
         X-Forwarded-Method: GET\r\nConnection: close\r\n\r\nabc",
    );
    let handshake = gateway.raw(
        "GET /ws HTTP/1.1\r\nHost: site.example\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let closed = gateway.raw(request("/down", "Cookie: good\r\n"));

    assert_eq!((status(&refused), body(&refused).as_str()), (302, "login"));
    assert_eq!(header(&refused, "location").unwrap(), "https://login.example/");
    assert_eq!((header(&refused, "set-cookie").unwrap().as_str(), header(&refused, "x-accel-redirect")), ("a=b", None));
    assert_eq!((status(&handshake), status(&closed), backend.connections()), (302, 503, 0));
    let question = asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(question.starts_with("get /check?a=b http/1.1\r\n") && question.ends_with("\r\n\r\n"), "{question}");
    for line in ["x-forwarded-uri: /page?x=1", "x-forwarded-method: post", "x-forwarded-host: site.example"] {
        assert_eq!(question.lines().filter(|said| said.starts_with(&line[..16])).collect::<Vec<_>>(), [line]);
    }

    let passed = gateway.raw(request("/page", "Cookie: good\r\nX-User: root\r\nX-Groups: admins\r\nX_User: root\r\n"));
    assert_eq!(lines_of(&passed, "user"), ["x-user: alice"]);
    assert_eq!((lines_of(&passed, "x-groups"), lines_of(&passed, "x-other")), (vec![], vec![]));
}

#[test]
fn another_server_is_asked_over_uwsgi_where_it_speaks_that() {
    let (tell, asked) = mpsc::channel();
    let tell = Mutex::new(tell);
    let judge = Backend::start(move |mut stream| {
        let Some(question) = read_packet(&mut stream) else { return };
        let answer = if question.get("HTTP_COOKIE").is_some_and(|cookie| cookie == "good") {
            "HTTP/1.1 200 OK\r\nX-User: alice\r\n\r\n"
        } else {
            "HTTP/1.1 401 Unauthorized\r\nContent-Type: text/plain\r\n\r\nwho are you?"
        };
        tell.lock().unwrap().send(question).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let backend = Backend::echoing();
    let route = "{ prefix: /, upstream: app, forward_auth: { upstream: judge, path: '/check%20in?a=b', response_headers: [X-User] } }";
    let judges = format!("upstreams: {{ judge: {{ protocol: uwsgi, endpoints: ['{}'] }}, ", judge.address);
    let gateway = TestGateway::start(&routes(&backend, route).replace("upstreams: { ", &judges));
    let post = request("/page?x=1", "X-User: root\r\nContent-Length: 3\r\n").replace("GET", "POST") + "abc";

    let refused = gateway.raw(&post);
    let question = asked.recv_timeout(PATIENCE).unwrap();
    let passed = gateway.raw(post.replace("X-User: root", "Cookie: good"));

    // A uwsgi server ends its answer with the connection.
    assert_eq!((status(&refused), unchunked(body(&refused).as_bytes())), (401, Some(b"who are you?".to_vec())));
    for (name, value) in [
        ("REQUEST_METHOD", "GET"),
        ("REQUEST_URI", "/check%20in?a=b"),
        ("PATH_INFO", "/check in"),
        ("QUERY_STRING", "a=b"),
        ("CONTENT_LENGTH", ""),
        ("SERVER_NAME", "site.example"),
        ("REQUEST_SCHEME", "http"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("HTTP_X_FORWARDED_METHOD", "POST"),
        ("HTTP_X_FORWARDED_URI", "/page?x=1"),
    ] {
        assert_eq!(question.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!((status(&passed), lines_of(&passed, "user")), (200, vec!["x-user: alice".to_owned()]));
    assert!(passed.ends_with("\r\n\r\nabc"), "the body was lost over the question: {passed}");
}

#[test]
fn a_websocket_whose_client_another_server_lets_in_is_open_and_says_who_it_is() {
    let (tell, asked) = mpsc::channel();
    let tell = Mutex::new(tell);
    let judge = Backend::start(move |mut stream| {
        while let Some(question) = read_request(&mut stream) {
            tell.lock().unwrap().send(String::from_utf8(question).unwrap().to_ascii_lowercase()).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-User: alice\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let server = Echo::start();
    let route =
        "{ prefix: /, upstream: app, forward_auth: { upstream: judge, path: /check, response_headers: [X-User] } }";
    let judges = format!("upstreams: {{ judge: {{ endpoints: ['{}'] }}, ", judge.address);
    let gateway = TestGateway::start(&routes(&server.backend, route).replace("upstreams: { ", &judges));

    let mut client = websocket(gateway.address(0));
    client.send(Message::text("hello")).unwrap();

    assert_eq!(client.read().unwrap(), Message::text("hello"));
    assert!(server.seen().contains("x-user: alice\n"), "{}", server.seen());
    let question = asked.recv_timeout(PATIENCE).unwrap();
    assert!(
        question.starts_with("get /check http/1.1\r\n") && question.contains("x-forwarded-uri: /ws\r\n"),
        "{question}"
    );
    // It is asked, and not to become one itself.
    assert!(!question.contains("upgrade") && !question.contains("sec-websocket-key"), "{question}");
}

#[test]
fn a_preflight_from_a_site_of_several_is_answered_before_a_password_or_another_server_is_asked_for() {
    let backend = Backend::echoing();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("users"), ALICE).unwrap();
    let sites = "allow_origin: ['https://one.example', 'https://two.example']";
    let configuration = routes(
        &backend,
        &format!(
            "{{ prefix: /, upstream: app, {sites}, basic_auth: {{ file: '{{dir}}/users' }} }}, \
             {{ prefix: /judged, upstream: app, {sites}, forward_auth: {{ upstream: down, path: / }} }}"
        ),
    )
    .replace("upstreams: { ", "upstreams: { down: { endpoints: ['127.0.0.1:1'], hold: 0 }, ");
    let gateway = TestGateway::start_in(folder, &configuration);
    let ask = |method: &str, path: &str, fields: &str| gateway.raw(request(path, fields).replace("GET", method));
    let told = |answer: &str| {
        let allowed = ["origin", "methods", "headers", "credentials"]
            .map(|name| header(answer, &format!("access-control-allow-{name}")).unwrap_or_default());
        (status(answer), allowed, header(answer, "vary").unwrap_or_default())
    };
    let from = |origin: &str| format!("Origin: {origin}\r\n");
    let preflight = |origin: &str| format!("{}Access-Control-Request-Method: PUT\r\n", from(origin));
    let all = |status: u16, origin: &str| {
        let allowed = [origin, "GET, POST, OPTIONS, PUT, DELETE", "Content-Type, origin", "true"].map(str::to_owned);
        (status, allowed, "Origin".to_owned())
    };
    let nothing = |status: u16| (status, [(); 4].map(|()| String::new()), "Origin".to_owned());

    for path in ["/", "/judged"] {
        for origin in ["https://one.example", "https://two.example"] {
            assert_eq!(told(&ask("OPTIONS", path, &preflight(origin))), all(204, origin), "{path}");
        }
    }
    for (path, refused) in [("/", 401), ("/judged", 503)] {
        assert_eq!(told(&ask("OPTIONS", path, &preflight("https://three.example"))), nothing(refused), "{path}");
        // Not a preflight: whoever asks so has a password or a cookie to send.
        assert_eq!(told(&ask("OPTIONS", path, &from("https://two.example"))), all(refused, "https://two.example"));
    }
    assert_eq!(backend.connections(), 0);

    let asked = ask("GET", "/", &format!("{AUTHORIZATION}{}", from("https://two.example")));
    assert_eq!(told(&asked), all(200, "https://two.example"));
    assert_eq!(told(&ask("GET", "/", AUTHORIZATION)), nothing(200), "by nobody's page, and kept by caches as such");
}

#[test]
fn browsers_are_told_to_be_careful_by_every_answer_that_does_not_say_how_it_is() {
    let backend = Backend::replying(
        "HTTP/1.1 200 OK\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\nContent-Length: 0\r\n\r\n",
    );
    let configuration =
        routes(&backend, "{ prefix: /, upstream: app, hsts: {}, security_headers: {}, allow: ['192.0.2.0/24'] }")
            + "trusted_proxies: [127.0.0.1]\n";
    let gateway = TestGateway::start(&configuration);
    let ask = |client: &str, scheme: &str| {
        gateway.raw(request("/", &format!("X-Forwarded-For: {client}\r\nX-Forwarded-Proto: {scheme}\r\n")))
    };
    let told = |answer: &str| {
        let names = ["strict-transport-security", "x-content-type-options", "referrer-policy", "x-frame-options"];
        (status(answer), names.map(|name| header(answer, name).unwrap_or_default()))
    };
    let words = |words: [&str; 4]| words.map(str::to_owned);

    assert_eq!(told(&ask("192.0.2.7", "https")), (200, words(["max-age=31536000", "nosniff", "no-referrer", "DENY"])));
    assert_eq!(told(&ask("192.0.2.7", "http")).1[0], "");
    // One of our own.
    assert_eq!(
        told(&ask("203.0.113.7", "https")),
        (403, words(["max-age=31536000", "nosniff", "strict-origin-when-cross-origin", "SAMEORIGIN"]))
    );
}

#[test]
fn who_is_taken_out_of_the_file_is_out_without_a_restart_and_a_file_that_is_refused_changes_nothing() {
    let backend = Backend::echoing();
    let folder = served::folder();
    let users = folder.path().join("users");
    fs::write(&users, ALICE).unwrap();
    let configuration = routes(&backend, "{ prefix: /, upstream: app, basic_auth: { file: users } }");
    let served = Served::start_in(folder, &configuration, |_| {});
    let ask = || status(&raw(served.address(0), request("/", AUTHORIZATION)));
    assert_eq!(ask(), 200);

    fs::write(&users, ALICE.replace("alice", "bob")).unwrap();
    wait_for("alice to be out", || ask() == 401);
    fs::write(&users, "alice:secret\n").unwrap();
    wait_for("the file to be refused", || served.events().contains("line 1: the password of `alice` is not hashed"));

    assert_eq!(ask(), 401);
    fs::write(&users, ALICE).unwrap();
    wait_for("alice to be in", || ask() == 200);
}
