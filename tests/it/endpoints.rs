//! Several endpoints: who gets which request, who stays where, and where names lead.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SRV},
    },
};

use crate::support::{
    Backend, Peer, TestGateway, Warnings, clients, connect, header, program, read_response, status, wait_for,
};

/// A backend that answers with its name and closes: one that has gone keeps no connection.
fn named(name: &str, address: &str) -> Backend {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}", name.len());
    Backend::start_at(address, move |mut stream| {
        if crate::support::read_request(&mut stream).is_some() {
            drop(stream.write_all(answer.as_bytes()));
        }
    })
}

fn any(name: &str) -> Backend {
    named(name, "127.0.0.1:0")
}

fn before(endpoints: &str, upstream: &str, route: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: [{endpoints}], {upstream} }} }}\n\
         routes: [{{ prefix: /, upstream: app, {route} }}]\n\
         trusted_proxies: [loopback]\n"
    )
}

/// Who answers so many requests.
fn answers(gateway: &TestGateway, requests: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..requests {
        *answers.entry(gateway.get("/").1).or_default() += 1;
    }
    answers
}

/// Who answers `client`, which is behind a proxy, and has these cookies.
fn answer_for(gateway: &TestGateway, client: &str, cookies: &str) -> (String, Option<String>) {
    let answer = gateway.raw(format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n"
    ));
    assert_eq!(status(&answer), 200, "{answer}");
    (crate::support::body(&answer), header(&answer, "set-cookie"))
}

#[test]
fn each_endpoint_gets_requests_by_its_weight() {
    let (one, two) = (any("one"), any("two"));
    for balance in ["least", "round_robin"] {
        let endpoints = format!("'{}', {{ address: '{}', weight: 3 }}", one.address, two.address);
        let gateway = TestGateway::start(&before(&endpoints, &format!("balance: {balance}"), ""));

        let answers = answers(&gateway, 40);

        assert_eq!((answers["one"], answers["two"]), (10, 30), "{balance}");
    }
}

#[test]
fn a_backup_takes_over_and_gives_back() {
    let (one, spare) = (any("one"), any("spare"));
    let address = one.address;
    let endpoints = format!("'{address}', {{ address: '{}', backup: true }}", spare.address);
    let gateway = TestGateway::start(&before(&endpoints, "hold: 0", ""));
    assert_eq!(answers(&gateway, 5)["one"], 5);

    drop(one);
    wait_for("the first one to be gone", || std::net::TcpStream::connect(address).is_err());
    assert_eq!(answers(&gateway, 5)["spare"], 5, "without a wait, and without a failure");
    let _one = named("one", &address.to_string());

    wait_for("the first one to be used again", || gateway.get("/").1 == "one");
    assert_eq!(answers(&gateway, 5)["one"], 5);
}

#[test]
fn a_refused_connection_is_followed_by_the_next_endpoint_at_once() {
    let dead: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()).collect();
    let one = any("one");
    let endpoints = format!("'{}', '{}', '{}', '{}'", dead[0], dead[1], dead[2], one.address);
    let gateway = TestGateway::start(&before(&endpoints, "hold: 0", ""));

    assert_eq!(answers(&gateway, 10)["one"], 10);
}

#[test]
fn over_https_a_browser_keeps_its_endpoint_at_another_front_door_that_has_the_key() {
    let Some(curl) = program("curl") else { return };
    let (one, two) = (any("one"), any("two"));
    let endpoints = format!("'{}', '{}'", one.address, two.address);
    let configuration = before(&endpoints, "balance: round_robin", "stick: cookie")
        .replace("'127.0.0.1:0' }", "'127.0.0.1:0', tls: true }")
        + &clients::tls(&["site"]);
    let start = |key: Option<&Path>| {
        let folder = tempfile::tempdir().unwrap();
        clients::certificate(folder.path(), "site", &["localhost"]);
        if let Some(key) = key {
            fs::create_dir_all(folder.path().join("storage/stick")).unwrap();
            fs::set_permissions(folder.path().join("storage"), fs::Permissions::from_mode(0o700)).unwrap();
            fs::copy(key, folder.path().join("storage/stick/key")).unwrap();
        }
        TestGateway::start_in(folder, &configuration)
    };
    let gateway = start(None);
    let elsewhere = start(Some(&gateway.folder.path().join("storage/stick/key")));
    let jar = gateway.folder.path().join("jar");
    let ask = |gateway: &TestGateway| {
        let (own, port) = (gateway.folder.path().join("site.crt"), gateway.address(0).port());
        let asked = Command::new(&curl)
            .args(["--silent", "--show-error", "--noproxy", "*", "--include", "--http1.1", "--cacert"])
            .arg(own)
            .args(["--connect-to", &format!("localhost:{port}:127.0.0.1:{port}"), "--cookie-jar"])
            .arg(&jar)
            .arg("--cookie")
            .arg(&jar)
            .arg(format!("https://localhost:{port}/"))
            .output()
            .unwrap();
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        String::from_utf8(asked.stdout).unwrap()
    };

    let first = ask(&gateway);

    let cookie = header(&first, "set-cookie").unwrap_or_else(|| panic!("no cookie: {first}"));
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
    for front_door in [&gateway, &elsewhere, &gateway, &elsewhere] {
        let next = ask(front_door);
        assert_eq!(crate::support::body(&next), crate::support::body(&first), "{next}");
        assert_eq!(header(&next, "set-cookie"), None, "it has one that is good: {next}");
    }
}

#[test]
fn a_route_may_have_less_patience_for_a_connection_than_its_upstream() {
    // Nobody accepts, and its queue is full: a connection to it is neither made nor refused.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _queued: Vec<_> =
        (0..4).map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50))).collect();
    let upstream = "hold: 0, connect_timeout: 60s";
    let gateway = TestGateway::start(&before(&format!("'{address}'"), upstream, "connect_timeout: 100ms"));

    let began = Instant::now();

    assert_eq!(gateway.get("/").0, 503);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn by_hash_every_front_door_finds_the_same_and_only_those_of_one_that_goes_move() {
    let backends: Vec<_> = ["one", "two", "three"].iter().map(|name| any(name)).collect();
    let list: Vec<_> = backends.iter().map(|backend| format!("'{}'", backend.address)).collect();
    let gateway = TestGateway::start(&before(&list.join(", "), "balance: hash", ""));
    let other = TestGateway::start(&before(&[&*list[2], &list[0], &list[1]].join(", "), "balance: hash", ""));
    let clients: Vec<_> = (0..30).map(|number| format!("192.0.2.{number}")).collect();
    let find =
        |gateway: &TestGateway| -> Vec<_> { clients.iter().map(|client| answer_for(gateway, client, "").0).collect() };
    let first = find(&gateway);

    assert_eq!(first, find(&other), "another front door");
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "{first:?}");
    let mut backends = backends;
    let gone = backends.remove(1);
    let address = gone.address;
    drop(gone);
    wait_for("one to be gone", || std::net::TcpStream::connect(address).is_err());
    for (before, after) in first.iter().zip(find(&gateway)) {
        assert!(*before == after || (before == "two" && after != "two"), "{before} {after}");
    }
}

#[test]
fn a_cookie_keeps_a_client_where_it_is_on_every_front_door_with_the_key() {
    let (one, two) = (any("one"), any("two"));
    let endpoints = format!("'{}', '{}'", one.address, two.address);
    let configuration = before(&endpoints, "balance: round_robin, hold: 0", "stick: cookie");
    let gateway = TestGateway::start(&configuration);
    let key = gateway.folder.path().join("storage/stick/key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("storage/stick")).unwrap();
    fs::set_permissions(folder.path().join("storage"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::copy(&key, folder.path().join("storage/stick/key")).unwrap();
    let elsewhere = TestGateway::start_in(folder, &configuration);

    let (first, cookie) = answer_for(&gateway, "192.0.2.1", "");
    let cookie = cookie.expect("a cookie");
    assert!(cookie.starts_with("vestibule_app=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();

    for number in 0..6 {
        let door = if number % 2 == 0 { &gateway } else { &elsewhere };
        assert_eq!(answer_for(door, "192.0.2.1", cookie), (first.clone(), None), "{number}");
    }
    let (_, forged) = answer_for(&gateway, "192.0.2.1", "vestibule_app=00000000000000000000000000000001");
    assert!(forged.is_some(), "one that was made up is none");
    let (gone, left) = if first == "one" { (one, two) } else { (two, one) };
    let address = gone.address;
    drop(gone);
    wait_for("its endpoint to be gone", || std::net::TcpStream::connect(address).is_err());
    let (second, cookie) = answer_for(&gateway, "192.0.2.1", cookie);
    assert_ne!(second, first);
    assert!(cookie.is_some(), "it names the other one");
    drop(left);
}

/// A socket.io server named `name`; `None` where there is no such library.
fn socketio_server(folder: &Path, name: &str) -> Option<(Peer, String)> {
    let script = folder.join("server.py");
    fs::write(&script, include_str!("support/socketio_server.py")).unwrap();
    let log = folder.join(format!("{name}.log"));
    let mut peer = Peer::start(Command::new(python_with_socketio()?).arg(&script).arg(name), &log);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("a socket.io server to start", || {
        assert!(!peer.has_ended(), "it has ended: {}", said());
        said().contains("listens on ") && said().ends_with('\n')
    });
    let address = said().split("listens on ").nth(1).unwrap().trim().to_owned();
    Some((peer, address))
}

fn python_with_socketio() -> Option<std::path::PathBuf> {
    let python = program("python3")?;
    // Debian's, whatever other Python is on the PATH.
    let python = ["/usr/bin/python3".into(), python].into_iter().find(|python| {
        let imports = Command::new(python).args(["-c", "import socketio, aiohttp"]).output();
        imports.is_ok_and(|output| output.status.success())
    });
    if python.is_none() {
        assert!(std::env::var_os("CI").is_none(), "python3-socketio is not installed; `make test` installs it");
        eprintln!("skipped: python3-socketio is not installed");
    }
    python
}

/// What the client says: a transport and a server for each time it has connected.
fn socketio_client(folder: &Path, url: &str, transports: &str) -> Vec<(String, String)> {
    let script = folder.join("client.py");
    fs::write(&script, include_str!("support/socketio_client.py")).unwrap();
    let output = Command::new(python_with_socketio().unwrap()).arg(&script).args([url, transports]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

#[test]
fn polling_and_websocket_of_socket_io_come_to_the_same_of_two_servers() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_one, first)) = socketio_server(folder.path(), "one") else { return };
    let Some((_two, second)) = socketio_server(folder.path(), "two") else { return };
    let endpoints = format!("'{first}', '{second}'");
    // Where a handshake of one server meets the other the client is answered 400, and fails.
    for (stick, host, spread) in [
        // The client keeps no cookies of an address; its own decides.
        ("sid", "127.0.0.1", false),
        ("sid", "localhost", false),
        // Nothing but the cookie can bring it back: its requests are dealt out in turn.
        ("cookie", "localhost", true),
    ] {
        let configuration = before(&endpoints, "balance: round_robin", &format!("stick: {stick}"));
        let gateway = TestGateway::start(&configuration.replace("prefix: /,", "prefix: /ws/,"));
        let url = format!("http://{host}:{}", gateway.address(0).port());
        for (transports, used) in
            [("polling,websocket", "websocket"), ("polling", "polling"), ("websocket", "websocket")]
        {
            let said = socketio_client(folder.path(), &url, transports);

            assert_eq!(said.len(), 6);
            assert!(said.iter().all(|(transport, _)| transport == used), "{stick} {host} {transports}: {said:?}");
            let servers: BTreeSet<_> = said.iter().map(|(_, server)| server.as_str()).collect();
            assert_eq!(servers.len(), if spread { 2 } else { 1 }, "{stick} {host} {transports}: {said:?}");
        }
    }
}

/// By name, each with its time to live.
type Records = BTreeMap<String, Vec<(u32, RData)>>;

/// A name server that says what it is told to say.
struct NameServer {
    address: SocketAddr,
    records: Arc<Mutex<Records>>,
    /// The records that it cannot answer for.
    fails: Arc<Mutex<Vec<RecordType>>>,
    asked: Arc<AtomicUsize>,
}

const ALL: [RecordType; 3] = [RecordType::A, RecordType::AAAA, RecordType::SRV];

impl NameServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: socket.local_addr().unwrap(),
            records: Arc::default(),
            fails: Arc::default(),
            asked: Arc::default(),
        };
        let (records, fails, asked) =
            (Arc::clone(&server.records), Arc::clone(&server.fails), Arc::clone(&server.asked));
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let mut message = Message::from_vec(&buffer[..length]).unwrap();
                let query = message.queries[0].clone();
                let name = query.name().to_ascii().trim_end_matches('.').to_owned();
                message = message.into_response();
                message.additionals.clear();
                message.edns = None;
                let records = records.lock().unwrap();
                if fails.lock().unwrap().contains(&query.query_type()) {
                    message.metadata.response_code = ResponseCode::ServFail;
                } else if let Some(records) = records.get(&name) {
                    for (ttl, data) in records.iter().filter(|(_, data)| data.record_type() == query.query_type()) {
                        message.add_answer(Record::from_rdata(query.name().clone(), *ttl, data.clone()));
                    }
                } else {
                    message.metadata.response_code = ResponseCode::NXDomain;
                }
                if query.query_type() != RecordType::AAAA {
                    asked.fetch_add(1, Ordering::SeqCst);
                }
                drop(socket.send_to(&message.to_vec().unwrap(), from));
            }
        });
        server
    }

    fn say(&self, name: &str, records: Vec<RData>) {
        let records = records.into_iter().map(|data| (1, data)).collect();
        self.records.lock().unwrap().insert(name.to_owned(), records);
    }

    fn fail(&self, kinds: &[RecordType]) {
        *self.fails.lock().unwrap() = kinds.to_vec();
    }

    /// Waits until it has been asked so many times more.
    fn wait_for_questions(&self, more: usize) {
        let so_far = self.asked.load(Ordering::SeqCst);
        wait_for("more questions", || self.asked.load(Ordering::SeqCst) >= so_far + more);
    }

    fn is_asked_for(&self, configuration: &str) -> String {
        format!("{configuration}resolver: ['{}']\n", self.address)
    }
}

fn v4(last: u8) -> RData {
    RData::A(A::new(127, 0, 0, last))
}

/// A port that is free on two addresses.
fn one_port_of_two() -> u16 {
    loop {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = one.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.2", port)).is_ok() {
            return port;
        }
    }
}

/// Backends with one port on two addresses.
fn two_on_one_port() -> (Backend, Backend, u16) {
    let port = one_port_of_two();
    (named("one", &format!("127.0.0.1:{port}")), named("two", &format!("127.0.0.2:{port}")), port)
}

#[test]
fn a_name_is_resolved_before_the_first_request_and_a_change_moves_traffic() {
    let (_one, _two, port) = two_on_one_port();
    let names = NameServer::start();
    names.say("app.test", vec![v4(1)]);
    let configuration = names.is_asked_for(&before(&format!("'app.test:{port}'"), "hold: 0", ""));
    let gateway = TestGateway::start(&configuration);
    assert_eq!(answers(&gateway, 5)["one"], 5, "at once");

    names.say("app.test", vec![v4(2)]);
    wait_for("the other address to be used", || gateway.get("/").1 == "two");
    assert_eq!(answers(&gateway, 5)["two"], 5);
    names.say("app.test", vec![v4(2), v4(1)]);

    wait_for("both to be used", || answers(&gateway, 4).len() == 2);
}

#[test]
fn an_answer_that_is_the_same_in_whatever_order_moves_no_connection() {
    let port = one_port_of_two();
    let [one, two] = ["127.0.0.1", "127.0.0.2"].map(|address| Backend::echoing_at(&format!("{address}:{port}")));
    let names = NameServer::start();
    names.say("app.test", vec![v4(1), v4(2)]);
    let configuration = names.is_asked_for(&before(&format!("'app.test:{port}'"), "", "")) + "workers: 1\n";
    let gateway = TestGateway::start(&configuration);
    let mut client = connect(gateway.address(0));
    let mut get = |requests: usize| {
        for _ in 0..requests {
            client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert_eq!(status(&read_response(&mut client)), 200);
        }
    };
    get(4);
    let opened = (one.connections(), two.connections());

    names.say("app.test", vec![v4(2), v4(1)]);
    names.wait_for_questions(2);
    get(4);

    assert_eq!((one.connections(), two.connections()), opened);
    assert_eq!(opened, (1, 1));
}

#[test]
fn while_the_dns_fails_the_last_answer_stays_and_before_the_first_requests_wait() {
    let one = any("one");
    let port = one.address.port();
    let names = NameServer::start();
    names.fail(&ALL);
    let warnings = Warnings::begin();
    let endpoint = format!("app-{port}.test:{port}");
    let configuration = names.is_asked_for(&before(&format!("'{endpoint}'"), "hold: 10s", ""));
    let gateway = TestGateway::start(&configuration);
    names.say(&format!("app-{port}.test"), vec![v4(1)]);
    let upstream = Arc::clone(&gateway.gateway().current.load().upstreams["app"]);
    assert_eq!(upstream.unresolvable().len(), 1, "it is said in the status");

    let began = Instant::now();
    let waits = thread::scope(|scope| {
        let waits = scope.spawn(|| gateway.get("/"));
        names.wait_for_questions(1);
        names.fail(&[]);
        waits.join().unwrap()
    });
    assert_eq!(waits, (200, "one".to_owned()), "after {:?}", began.elapsed());
    assert_eq!(upstream.unresolvable(), []);
    names.fail(&ALL);
    names.wait_for_questions(2);

    assert_eq!(gateway.get("/"), (200, "one".to_owned()));
    wait_for("it to be told again", || warnings.naming(&endpoint).len() == 2);
    let lines = warnings.naming(&endpoint);
    assert!(lines.iter().all(|line| line.contains("cannot be resolved")), "{lines:?}");
}

#[test]
fn an_endpoint_that_has_moved_is_looked_for_before_its_answer_ends() {
    let (one, _two, port) = two_on_one_port();
    let names = NameServer::start();
    names.records.lock().unwrap().insert("app.test".to_owned(), vec![(3600, v4(1))]);
    let gateway = TestGateway::start(&names.is_asked_for(&before(&format!("'app.test:{port}'"), "hold: 10s", "")));
    assert_eq!(gateway.get("/"), (200, "one".to_owned()));

    drop(one);
    wait_for("it to be gone", || std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    names.say("app.test", vec![v4(2)]);

    assert_eq!(gateway.get("/"), (200, "two".to_owned()), "within `hold`");
}

#[test]
fn addresses_of_both_families_are_endpoints_and_one_that_cannot_be_reached_costs_nothing() {
    let one = any("one");
    let port = one.address.port();
    let names = NameServer::start();
    names.say("app.test", vec![v4(1), RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))]);
    let configuration = before(&format!("'app.test:{port}'"), "hold: 0, connect_timeout: 500ms", "");
    let gateway = TestGateway::start(&names.is_asked_for(&configuration));

    assert_eq!(answers(&gateway, 10)["one"], 10);
    let upstream = Arc::clone(&gateway.gateway().current.load().upstreams["app"]);
    let labels: Vec<_> = upstream.endpoints().iter().map(|endpoint| endpoint.label.to_string()).collect();
    let both = [format!("app.test:{port} (127.0.0.1)"), format!("app.test:{port} ([2001:db8::1])")];
    assert_eq!(labels, both);

    // What cannot be answered for one family says nothing of it.
    names.fail(&[RecordType::AAAA]);
    names.wait_for_questions(2);
    let labels: Vec<_> = upstream.endpoints().iter().map(|endpoint| endpoint.label.to_string()).collect();
    assert_eq!((labels, upstream.unresolvable()), (both.to_vec(), Vec::new()));
}

#[test]
fn srv_records_bring_ports_weights_and_backups() {
    let (one, two, spare) = (any("one"), any("two"), any("spare"));
    let names = NameServer::start();
    let service = |priority, weight, backend: &Backend, target: &str| {
        RData::SRV(SRV::new(priority, weight, backend.address.port(), Name::from_ascii(target).unwrap()))
    };
    for name in ["a.test", "b.test", "c.test"] {
        names.say(name, vec![v4(1)]);
    }
    names.say(
        "_app._tcp.test",
        vec![service(10, 1, &one, "a.test."), service(10, 3, &two, "b.test."), service(20, 1, &spare, "c.test.")],
    );
    let gateway = TestGateway::start(&names.is_asked_for(&before("'srv:_app._tcp.test'", "hold: 0", "")));

    let answers = answers(&gateway, 40);

    assert_eq!((answers["one"], answers["two"]), (10, 30), "{answers:?}");
    for backend in [one, two] {
        let address = backend.address;
        drop(backend);
        wait_for("it to be gone", || std::net::TcpStream::connect(address).is_err());
    }
    assert_eq!(gateway.get("/"), (200, "spare".to_owned()));
}

#[test]
fn one_that_comes_back_is_not_flooded() {
    let (one, two) = (any("one"), any("two"));
    let address = one.address;
    let endpoints = format!("'{address}', '{}'", two.address);
    let gateway = TestGateway::start(&before(&endpoints, "slow_start: 1h, hold: 0", ""));
    assert_eq!(answers(&gateway, 20)["one"], 10, "our own start is none of its");
    drop(one);
    wait_for("it to be gone", || std::net::TcpStream::connect(address).is_err());
    answers(&gateway, 2);
    let upstream = Arc::clone(&gateway.gateway().current.load().upstreams["app"]);
    wait_for("it to be noticed", || {
        gateway.get("/");
        upstream.endpoints()[0].unreachable_for().is_some()
    });

    let _one = named("one", &address.to_string());
    wait_for("it to be usable", || upstream.endpoints()[0].is_usable());
    // Its first turn shows that it is back.
    wait_for("it to be back", || {
        gateway.get("/");
        upstream.endpoints()[0].unreachable_for().is_none()
    });
    let answers = answers(&gateway, 40);

    assert!(answers["two"] >= 36, "{answers:?}");
}
