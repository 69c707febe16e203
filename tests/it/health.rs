//! Endpoints that fail: killed, hung, flapping, unwell, slow; what becomes of the requests, and what an operator is told.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{
    fmt::Display,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Gate, TestGateway, Warnings,
    applications::{Gunicorn, Uwsgi},
    body, header, proxying, raw, read_request, status, wait_for,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A gateway with `admin` before `endpoints`, with further keys of the upstream and of its route.
fn before(endpoints: &[String], upstream: &str, route: &str) -> TestGateway {
    TestGateway::start(&format!(
        "admin: 'unix:{{dir}}/admin.sock'\nlisteners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: [{}], {upstream} }} }}\n\
         routes: [{{ upstream: app, {route} }}]\n",
        endpoints.iter().map(|endpoint| format!("'{endpoint}'")).collect::<Vec<_>>().join(", ")
    ))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

/// How the endpoint with this address stands, as `/status` says.
fn state(gateway: &TestGateway, endpoint: impl Display) -> String {
    let mut admin = UnixStream::connect(gateway.folder.path().join("admin.sock")).unwrap();
    admin.write_all(get("/status").as_bytes()).unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).unwrap();
    let status: serde_json::Value = serde_json::from_str(&body(&answer)).unwrap();
    let endpoints = status["upstreams"][0]["endpoints"].as_array().unwrap();
    let ours = endpoints.iter().find(|known| known["address"] == format!("{endpoint}").as_str());
    ours.unwrap_or_else(|| panic!("not there: {status}"))["state"].as_str().unwrap().to_owned()
}

/// The value of a metric.
fn metric(gateway: &TestGateway, name: &str) -> u64 {
    let text = gateway.gateway().metrics.encode();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Sends a signal to a process and to its children.
fn signal(signal: &str, process: u32) {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let status = Command::new("kill").arg(signal).arg(process.to_string()).args(children.split_whitespace()).status();
    assert!(status.unwrap().success());
}

/// As many gunicorns, each in a folder of its own.
fn gunicorns<const N: usize>(folder: &Path) -> Option<[Gunicorn; N]> {
    let start = |index: usize| {
        let folder = folder.join(index.to_string());
        fs::create_dir(&folder).unwrap();
        Gunicorn::start(&folder)
    };
    let started: Option<Vec<_>> = (0..N).map(start).collect();
    started?.try_into().ok()
}

#[test]
fn one_of_three_that_is_killed_under_load_fails_no_request_that_may_be_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(peers) = gunicorns::<3>(folder.path()) else { return };
    let warnings = Warnings::begin();
    let gateway = before(&peers.each_ref().map(|peer| peer.tcp.to_string()), "", "prefix: /");
    let (address, answered, over) =
        (gateway.address(0), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::default()));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (answered, over) = (Arc::clone(&answered), Arc::clone(&over));
            thread::spawn(move || {
                let mut failed = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let answer = raw(address, get("/slow?0.01"));
                    if !answer.starts_with("HTTP/1.1 200 ") {
                        failed.push(answer);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        })
        .collect();

    wait_for("some answers", || answered.load(Ordering::Relaxed) > 200);
    signal("-9", peers[0].peer.id());
    let then = answered.load(Ordering::Relaxed);
    wait_for("many more", || answered.load(Ordering::Relaxed) > then + 400);
    wait_for("it to be unreachable", || state(&gateway, peers[0].tcp) == "unreachable");
    over.store(true, Ordering::Relaxed);

    let failed: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    let lines = warnings.naming(peers[0].tcp);
    assert_eq!(lines.iter().filter(|line| line.contains("cannot be connected to")).count(), 1, "{lines:?}");
}

#[test]
fn a_hung_endpoint_costs_one_deadline_and_is_used_again_once_its_page_answers() {
    let folder = tempfile::tempdir().unwrap();
    let Some(peers) = gunicorns::<2>(folder.path()) else { return };
    let warnings = Warnings::begin();
    let keys = "health: { path: /well, interval: 200ms, timeout: 5s }, eject: { time: 60s }";
    let gateway = before(&peers.each_ref().map(|peer| peer.tcp.to_string()), keys, "prefix: /, timeout: 1s");
    let hung = &peers[0];

    signal("-STOP", hung.peer.id());
    let mut answers = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        answers.push(status(&gateway.raw(get("/where"))));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    let late = answers.iter().filter(|status| **status == 504).count();
    assert!(late <= 1 && answers.iter().all(|status| matches!(status, 200 | 504)), "{answers:?}");
    assert!(state(&gateway, hung.tcp).contains("it answered nothing for 1s"), "{}", state(&gateway, hung.tcp));
    assert_eq!(warnings.naming(hung.tcp).iter().filter(|line| line.contains("is ejected")).count(), 1);
    assert_eq!(metric(&gateway, r#"vestibule_upstream_ejections_total{upstream="app",cause="timeout"}"#), 1);

    signal("-CONT", hung.peer.id());
    wait_for("its page to answer", || state(&gateway, hung.tcp) == "up");
}

#[test]
fn an_endpoint_that_flaps_is_left_alone_and_fails_nothing() {
    let steady = Backend::replying(OK);
    let place = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let over = Arc::new(AtomicBool::default());
    let flapping = thread::spawn({
        let over = Arc::clone(&over);
        move || flap(place, &over)
    });
    let warnings = Warnings::begin();
    let gateway = before(&[steady.address.to_string(), place.to_string()], "eject: { time: 60s }", "prefix: /");

    let mut failed = 0;
    wait_for("it to be ejected", || {
        failed += usize::from(status(&gateway.raw(GET)) != 200);
        metric(&gateway, r#"vestibule_upstream_ejections_total{upstream="app",cause="flapping"}"#) == 1
    });
    let told = warnings.naming(place).len();
    for _ in 0..200 {
        failed += usize::from(status(&gateway.raw(GET)) != 200);
    }
    over.store(true, Ordering::Relaxed);
    flapping.join().unwrap();

    assert_eq!(failed, 0);
    let lines = warnings.naming(place);
    assert!(lines.last().unwrap().contains("it comes and goes"), "{lines:?}");
    assert_eq!(lines.len(), told, "nothing new is told of it: {lines:?}");
}

/// Listens for a moment, and does not for another, again and again.
fn flap(place: SocketAddr, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        listener.bind(&place.into()).unwrap();
        listener.listen(16).unwrap();
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(true).unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            if let Ok((mut stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                if read_request(&mut stream).is_some() {
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"));
                }
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        drop(listener);
        thread::park_timeout(Duration::from_millis(300));
    }
}

/// One of two endpoints says that it is unwell, and then that it is well again.
fn is_passed_over_while_unwell(gateway: &TestGateway, endpoint: &str, folder: &Path, warnings: &Warnings, at: &str) {
    let folder = fs::canonicalize(folder).unwrap();
    let answers_of_it = || {
        let answer = gateway.raw(get(&format!("{at}/where")));
        assert_eq!(status(&answer), 200, "{answer}");
        body(&answer) == folder.to_str().unwrap()
    };
    wait_for("an answer of it", answers_of_it);
    for (says, why) in [
        ("503 Service Unavailable:it is well", "failing: the answer is 503"),
        ("200 OK:it is not", "failing: the answer does not hold the text of `health.body`"),
    ] {
        let told = warnings.naming(endpoint).len();
        fs::write(folder.join("unwell.new"), says).unwrap();
        fs::rename(folder.join("unwell.new"), folder.join("unwell")).unwrap();
        wait_for("it to be failing", || state(gateway, endpoint) == why);
        assert!((0..10).all(|_| !answers_of_it()), "it is passed over");
        assert_eq!(warnings.naming(endpoint).len(), told + 1, "{:?}", warnings.naming(endpoint));

        fs::remove_file(folder.join("unwell")).unwrap();
        wait_for("it to be well", || state(gateway, endpoint) == "up");
        wait_for("an answer of it again", answers_of_it);
    }
}

const LOOKS: &str =
    "health: { path: /da/well, interval: 100ms, timeout: 5s, body: is well, status: [200, 204], failures: 2 }";

#[test]
fn a_gunicorn_whose_page_fails_is_passed_over_until_it_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let Some(peers) = gunicorns::<2>(folder.path()) else { return };
    let warnings = Warnings::begin();
    let endpoints = peers.each_ref().map(|peer| peer.tcp.to_string());
    let gateway = before(&endpoints, LOOKS, "prefix: /da, strip_prefix: true");

    is_passed_over_while_unwell(&gateway, &endpoints[1], &folder.path().join("1"), &warnings, "/da");
}

#[test]
fn a_uwsgi_whose_page_fails_is_passed_over_until_it_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        Uwsgi::start(&folder, &[])
    };
    let Some(peers) = ["0", "1"].into_iter().map(start).collect::<Option<Vec<_>>>() else { return };
    let warnings = Warnings::begin();
    let endpoints: Vec<_> = peers.iter().map(|peer| peer.tcp.to_string()).collect();
    let gateway = before(&endpoints, &format!("protocol: uwsgi, {LOOKS}"), "prefix: /da");

    is_passed_over_while_unwell(&gateway, &endpoints[0], &folder.path().join("0"), &warnings, "/da");
}

#[test]
fn the_only_endpoint_is_used_whatever_its_page_says() {
    let backend = Backend::start(|mut stream| {
        while let Some(request) = read_request(&mut stream) {
            let answer = if request.starts_with(b"GET /well ") {
                stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
                return;
            } else {
                OK
            };
            stream.write_all(answer).unwrap();
        }
    });
    let keys = "health: { path: /well, interval: 20ms }";
    let gateway = before(&[backend.address.to_string()], keys, "prefix: /");

    wait_for("its page to fail", || state(&gateway, backend.address) == "failing: the answer is 500");

    assert_eq!(status(&gateway.raw(GET)), 200);
}

#[test]
fn an_endpoint_that_answers_503_again_and_again_is_ejected() {
    let well = Backend::replying(OK);
    let unwell = Backend::replying("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
    let warnings = Warnings::begin();
    let endpoints = [well.address.to_string(), unwell.address.to_string()];
    let gateway = before(&endpoints, "eject: { failures: 3, time: 60s }", "prefix: /");

    let answers: Vec<_> = (0..30).map(|_| status(&gateway.raw(GET))).collect();

    assert_eq!(answers.iter().filter(|status| **status == 503).count(), 3, "{answers:?}");
    let said = state(&gateway, unwell.address);
    assert!(
        said.starts_with("ejected for ") && said.ends_with("3 failures in a row, the last one an answer 503"),
        "{said}"
    );
    assert_eq!(warnings.naming(unwell.address).len(), 1);
}

#[test]
fn no_more_requests_are_sent_again_than_the_budget_allows() {
    let backend = Backend::start(|mut stream| drop(read_request(&mut stream)));
    let gateway = TestGateway::start(&proxying(backend.address, "retries: { budget: 0%, floor: 3 }", ""));

    for _ in 0..5 {
        assert_eq!(status(&gateway.raw(GET)), 502);
    }

    assert_eq!(backend.connections(), 5 + 3);
    assert_eq!(metric(&gateway, r#"vestibule_upstream_retries_total{upstream="app",outcome="sent"}"#), 3);
    assert_eq!(metric(&gateway, r#"vestibule_upstream_retries_total{upstream="app",outcome="over_budget"}"#), 4);
}

#[test]
fn an_application_that_answers_nothing_is_not_waited_for_by_everybody() {
    let gate = Gate::default();
    let backend = Backend::held_up(&gate, OK);
    let warnings = Warnings::begin();
    let gateway = TestGateway::start(&proxying(backend.address, "eject: { failures: 3 }", "timeout: 300ms"));
    for _ in 0..3 {
        assert_eq!(status(&gateway.raw(GET)), 504);
    }

    // Who comes first finds out whether it is still so.
    assert_eq!(status(&gateway.raw(GET)), 504);
    let began = Instant::now();
    let answer = gateway.raw(GET);

    assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
    assert_eq!((status(&answer), header(&answer, "retry-after").as_deref()), (503, Some("10")), "{answer}");
    assert_eq!(warnings.naming("app").iter().filter(|line| line.contains("answers none of them;")).count(), 1);
    gate.open();
    wait_for("an answer", || status(&gateway.raw(GET)) == 200);
    assert_eq!(status(&gateway.raw(GET)), 200);
}
