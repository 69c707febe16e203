//! What happens when the system has no descriptors left.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

use crate::support::{Backend, PATIENCE, Peer, connect, served, wait_for};

#[test]
fn without_descriptors_a_listener_says_so_once_pauses_and_goes_on() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let folder = served::folder();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let configuration = format!(
        "listeners: [{{ address: '{free}' }}]\nupstreams: {{ app: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\naccess_log: {{ path: access.log }}\nspool: {{ path: spool }}\nworkers: 1\n\
         limits: {{ head_timeout: 60s }}\n",
        backend.address
    );
    fs::write(folder.path().join("vestibule.yml"), configuration).unwrap();
    let events = folder.path().join("events");
    let served = Peer::start(
        Command::new("bash")
            .args(["-c", "ulimit -n 160; exec \"$0\" serve --config \"$1\"", env!("CARGO_BIN_EXE_vestibule")])
            .arg(folder.path().join("vestibule.yml"))
            .stdin(Stdio::null()),
        &events,
    );
    let told = || fs::read_to_string(&events).unwrap();
    wait_for("the gateway to listen", || told().contains("listening"));

    let worker = || served::children(served.id());
    let before = worker();
    // More than there are descriptors for: the rest wait in the kernel.
    let held: Vec<TcpStream> = (0..200).map(|_| connect(free)).collect();
    wait_for("the refusal to be told", || told().contains("cannot accept connections"));
    // The keeper has a word for it all the same: what it hands over has room kept for it.
    served::signal("USR1", served.id());
    wait_for("the log to be reopened", || told().contains("access log reopened"));
    drop(held);
    let mut client = connect(free);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();

    assert!(answer.ends_with("ok"), "{answer}");
    assert_eq!(worker(), before, "the worker is the one it was: {}", told());
    assert_eq!(told().matches("cannot accept connections").count(), 1, "{}", told());
}
