//! The access log of the built binary: put aside, moved away, without room.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
};

use crate::support::{Backend, body, connect, read_response, served::Served, status, wait_for};

fn to(backend: SocketAddr, log: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\nupstreams: {{ app: {{ endpoints: ['{backend}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\naccess_log: {log}\n"
    )
}

fn ok() -> Backend {
    Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

fn get(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(status(&read_response(stream)), 200);
}

/// All lines of all files, the oldest file first.
fn lines(served: &Served) -> Vec<String> {
    let aside = (1..20).rev().map(|number| served.log(&format!("access.log.{number}")));
    let files = aside.chain([served.log("access.log")]);
    files.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn a_file_that_others_rename_is_followed_without_a_signal() {
    let backend = ok();
    let served = Served::start(&to(backend.address, "{ path: access.log, format: '{target}', rotate: null }"));
    let mut stream = connect(served.address(0));
    get(&mut stream, "/before");
    wait_for("a line", || served.log("access.log") == "/before\n");

    fs::rename(served.path("access.log"), served.path("access.log.1")).unwrap();
    wait_for("a new file", || served.path("access.log").exists());
    wait_for("lines to go there", || {
        get(&mut stream, "/after");
        served.log("access.log").contains("/after")
    });

    assert!(served.log("access.log.1").starts_with("/before\n"));
}

#[test]
fn a_file_that_has_grown_is_put_aside_and_no_line_is_lost_also_of_a_worker_that_leaves() {
    let backend = ok();
    let served = Served::start(&to(
        backend.address,
        "{ path: access.log, format: '{target}', rotate: { size: 64KiB, keep: 19 } }",
    ));
    let mut before = connect(served.address(0));
    get(&mut before, "/first");
    served.order(&["upgrade"]);
    let mut after = connect(served.address(0));

    let path = "x".repeat(1000);
    let mut asked = 0;
    wait_for("three files to be put aside", || {
        for _ in 0..20 {
            get(&mut after, &format!("/{asked}/{path}"));
            asked += 1;
        }
        served.path("access.log.3").exists()
    });
    get(&mut before, "/last");

    wait_for("all lines", || lines(&served).len() == asked + 2);
    let all = lines(&served);
    for number in 0..asked {
        assert!(all.contains(&format!("/{number}/{path}")), "line {number}");
    }
    assert!(all.contains(&"/first".to_owned()) && all.contains(&"/last".to_owned()));
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_no_request() {
    let backend = ok();
    // What every write to is answered with: no space left on device.
    let served = Served::start(&to(backend.address, "{ path: /dev/full }"));
    let mut stream = connect(served.address(0));

    for number in 0..50 {
        get(&mut stream, &format!("/{number}"));
    }

    wait_for("the lines to be counted", || {
        body(&served.get("admin.sock", "/metrics")).contains("vestibule_access_log_dropped_total 50\n")
    });
    let events = served.events();
    assert_eq!(events.matches("cannot write the access log").count(), 1, "{events}");
}

#[test]
fn warnings_and_errors_are_in_a_file_that_others_may_rename() {
    let served = Served::start(
        "listeners: [{ address: '127.0.0.1:0' }]\nupstreams: { app: { endpoints: ['127.0.0.1:1'], hold: 0 } }\n\
         routes: [{ prefix: /, upstream: app }]\nerror_log: { path: error.log }\n",
    );
    let mut stream = connect(served.address(0));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(status(&read_response(&mut stream)), 503);
    let said = "[warn]";
    wait_for("the worker's warning", || served.log("error.log").contains("endpoint cannot be connected to"));
    let line = served.log("error.log").lines().next().unwrap().to_owned();
    assert!(line.contains(said) && line.contains("#0: ") && line.contains(", upstream: app"), "{line}");
    assert!(!served.log("error.log").contains("listening"), "only what an operator can act on");

    fs::rename(served.path("error.log"), served.path("error.log.1")).unwrap();
    wait_for("a new file", || served.path("error.log").exists());
    served.rewrite("listeners: nonsense\n");
    wait_for("the keeper's error", || served.log("error.log").contains("[error]"));
    assert!(served.log("error.log").contains("configuration refused"), "{}", served.log("error.log"));

    fs::rename(served.path("error.log"), served.path("error.log.2")).unwrap();
    served.signal("USR1");
    wait_for("a new file after USR1", || served.path("error.log").exists());
}
