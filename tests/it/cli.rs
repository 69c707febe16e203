//! The built binary in the foreground: its exit codes, its signals, its admin socket.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    process::Command,
    sync::{Mutex, mpsc},
    time::Duration,
};

use crate::support::{
    Backend, PATIENCE, Peer, body, ok, read_request,
    served::{self, Served},
    status, wait_for,
};

/// On a unix socket before `backend`, and ready.
fn start(backend: SocketAddr, more: &str) -> Served {
    Served::start(&format!(
        "listeners: [{{ address: 'unix:{{dir}}/front.sock' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{backend}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n{more}"
    ))
}

#[test]
fn each_signal_that_asks_for_a_stop_ends_with_0() {
    let backend = ok();
    for signal in ["TERM", "INT", "QUIT"] {
        let mut served = start(backend.address, "");
        assert_eq!(status(&served.get("front.sock", "/")), 200);

        served.signal(signal);

        assert_eq!(served.ended().code(), Some(0), "{signal}: {}", served.events());
        assert!(
            !served.folder.path().join("front.sock").exists()
                || UnixStream::connect(served.folder.path().join("front.sock")).is_err()
        );
    }
}

/// A backend that answers when it is told to, a gateway, and a request that is in it.
fn in_flight(drain: &str) -> (Served, Backend, UnixStream, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel::<()>();
    let (arrive, arrivals) = mpsc::channel();
    let gone = Mutex::new(gone);
    let backend = Backend::start(move |mut stream| {
        if read_request(&mut stream).is_some() {
            arrive.send(()).unwrap();
            // The gateway may have gone before it is told to.
            let _gone = gone.lock().unwrap().recv_timeout(PATIENCE);
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"));
        }
    });
    let served = start(backend.address, &format!("drain: {drain}\n"));
    let mut client = served.connect("front.sock");
    client.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    arrivals.recv_timeout(PATIENCE).unwrap();
    (served, backend, client, go)
}

#[test]
fn a_stop_finishes_the_request_in_flight_and_takes_no_other() {
    let (mut served, _backend, mut client, go) = in_flight("10s");

    served.signal("TERM");
    wait_for("the stop to begin", || served.events().contains("stopping"));
    wait_for("the door to close", || UnixStream::connect(served.folder.path().join("front.sock")).is_err());
    assert_eq!(served.child.try_wait().unwrap(), None, "gone before the request was answered");
    go.send(()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();

    assert_eq!((status(&answer), body(&answer)), (200, "whole".into()));
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
    assert_eq!(served.log("access.log"), "GET /slow 200\n");
}

#[test]
fn a_request_that_outlives_the_drain_is_cut_and_the_exit_code_says_so() {
    let (mut served, _backend, mut client, _go) = in_flight("200ms");

    served.signal("TERM");

    assert_eq!(served.ended().code(), Some(1), "{}", served.events());
    let mut answer = Vec::new();
    drop(client.read_to_end(&mut answer));
    assert_eq!(answer, b"");
    assert!(served.events().contains("cut off"), "{}", served.events());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (mut served, _backend, _client, _go) = in_flight("30s");
    served.signal("TERM");
    wait_for("the stop to begin", || served.events().contains("stopping"));

    served.signal("TERM");

    assert_eq!(served.ended().code(), Some(1), "{}", served.events());
}

#[test]
fn usr1_opens_the_access_log_anew() {
    let backend = ok();
    let served = start(backend.address, "");
    served.get("front.sock", "/before");
    wait_for("a line", || served.log("access.log") == "GET /before 200\n");
    fs::rename(served.folder.path().join("access.log"), served.folder.path().join("access.log.1")).unwrap();

    served.signal("USR1");
    wait_for("a new file", || served.folder.path().join("access.log").exists());
    // The file is there before the worker has it: until then lines go on to the old one.
    let mut sent = 0;
    wait_for("a line in the new file", || {
        served.get("front.sock", "/after");
        sent += 1;
        served.log("access.log").contains("GET /after 200\n")
    });

    let lines = || served.log("access.log.1") + &served.log("access.log");
    wait_for("every line in one of the two", || {
        lines() == format!("GET /before 200\n{}", "GET /after 200\n".repeat(sent))
    });
}

#[test]
fn the_admin_socket_answers_and_the_door_does_not() {
    let backend = ok();
    let served = start(backend.address, "");
    served.get("front.sock", "/x");

    let live = served.get("admin.sock", "/live");
    let ready = served.get("admin.sock", "/ready");
    let state: serde_json::Value = serde_json::from_str(&body(&served.get("admin.sock", "/status"))).unwrap();

    assert_eq!((status(&live), status(&ready)), (200, 200));
    assert_eq!(state["generation"], 1, "{state:#}");
    assert!(state["upstreams"].to_string().contains(&backend.address.to_string()), "{state:#}");
    wait_for("the request to be counted", || {
        let metrics = body(&served.get("admin.sock", "/metrics"));
        metrics.lines().any(|line| line.starts_with("vestibule_requests_total{") && line.ends_with(" 1"))
    });
    assert_eq!(body(&served.get("front.sock", "/status")), "ok", "a path of the application");
}

#[test]
fn a_socket_that_is_taken_is_a_failed_start_and_not_a_refused_configuration() {
    let backend = ok();
    let served = start(backend.address, "");

    let second = Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(["serve", "--config"])
        .arg(served.folder.path().join("vestibule.yml"))
        .output()
        .unwrap();

    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("front.sock") && said.contains("another process answers on it"), "{said}");
    assert_eq!(status(&served.get("front.sock", "/")), 200, "the first goes on");
}

#[test]
fn an_idle_connection_does_not_hold_up_a_stop() {
    let backend = ok();
    let mut served = start(backend.address, "drain: 30s\n");
    let mut idle = served.connect("front.sock");
    idle.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = [0; 64];
    assert!(idle.read(&mut answer).unwrap() > 0);
    let stopped = std::time::Instant::now();

    served.signal("TERM");

    assert_eq!(served.ended().code(), Some(0));
    assert!(stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
}

#[test]
fn an_expired_certificate_for_another_host_keeps_no_door_shut() {
    let folder = served::folder();
    let mut params = rcgen::CertificateParams::new(vec!["old.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs::write(folder.path().join("site.crt"), certificate.pem()).unwrap();
    fs::write(folder.path().join("site.key"), key.serialize_pem()).unwrap();
    let file = folder.path().join("vestibule.yml");
    let configuration = "listeners: [{ address: '127.0.0.1:0', tls: true }]\nhost: site.example\n\
        tls: { certificates: [{ files: { certificate: site.crt, key: site.key } }], storage: . }\n\
        upstreams: { app: { endpoints: ['127.0.0.1:9'] } }\n\
        routes: [{ prefix: /, upstream: app, files: [/not/there/yet] }]\nspool: { path: spool }\naccess_log: null\n";
    fs::write(&file, configuration).unwrap();
    let run = |verb: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
        command.args([verb, "--config"]).arg(&file);
        command
    };

    let checked = run("check").output().unwrap();
    let events = folder.path().join("events");
    let _served = Peer::start(&mut run("serve"), &events);

    let told = String::from_utf8(checked.stdout).unwrap();
    for part in ["expired at 2021", "no certificate is for `site.example`", "/not/there/yet"] {
        assert!(told.contains(part), "{part} is missing:\n{told}");
    }
    assert_eq!(checked.status.code(), Some(78));
    wait_for("the gateway to listen all the same", || fs::read_to_string(&events).unwrap().contains("listening"));
    assert!(fs::read_to_string(&events).unwrap().contains("expired at 2021"));
}
