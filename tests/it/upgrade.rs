//! Another program in the place of the running one.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use tokio_tungstenite::tungstenite::Message;

use crate::{
    queue::Held,
    support::{
        clients, connect, ok, read_response,
        served::{Served, folder, signal},
        status, to, to_over_tls, wait_for,
    },
    websockets::{Echo, websocket},
};

/// Serves `configuration` from a program file of its own, which can be exchanged.
pub(crate) fn installed(configuration: &str) -> Served {
    installed_in(folder(), configuration)
}

pub(crate) fn installed_in(place: tempfile::TempDir, configuration: &str) -> Served {
    let program = place.path().join("vestibule");
    install(&program);
    let mut served = Served::spawn(place, &program, configuration, |_| {});
    wait_for("the gateway to be ready", || {
        assert_eq!(served.child.try_wait().unwrap(), None, "{}", served.events());
        served.events().contains("listening")
    });
    served
}

/// Puts the program at `path`, as a package manager does: another file under the name.
pub(crate) fn install(path: &Path) {
    let new = path.with_extension("new");
    // By another process: a file that this one has open to write, its children have open for a moment, too, and what is
    // open to write cannot be begun.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_vestibule")).arg(&new).status().unwrap().success());
    fs::rename(new, path).unwrap();
}

/// Puts a shell script there.
fn install_script(path: &Path, script: &str) {
    let new = path.with_extension("new");
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
    assert!(Command::new("sh").args(["-c", write]).arg(&new).arg(script).status().unwrap().success());
    fs::rename(new, path).unwrap();
}

fn again(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_response(stream)
}

fn program_of(pid: u32) -> String {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap().display().to_string()
}

#[test]
fn the_program_on_the_disk_takes_over_with_the_same_pid_and_sockets() {
    let backend = ok();
    let served = installed(&to(backend.address, ""));
    let (address, keeper, before) = (served.address(0), served.child.id(), served.worker());
    let started = served.status()["started"].clone();
    let mut kept = connect(address);
    assert_eq!(status(&again(&mut kept)), 200);
    install(&served.path("vestibule"));
    assert!(program_of(keeper).ends_with("(deleted)"));

    let said = served.order(&["upgrade"]);

    assert_eq!(said, format!("upgraded: vestibule {} serves\n", env!("CARGO_PKG_VERSION")));
    // Whoever asked is answered before the one that was asked leaves.
    wait_for("another worker", || served.worker() != before);
    let worker = served.worker();
    wait_for("its beginning to be told", || served.status()["started"] == started);
    for pid in [keeper, worker] {
        assert_eq!(program_of(pid), served.path("vestibule").display().to_string());
    }
    // A connection that was idle is answered where it is, and told to come back elsewhere.
    let answer = again(&mut kept);
    assert_eq!(status(&answer), 200);
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    assert_eq!(status(&again(&mut connect(address))), 200);
    wait_for("the worker of before to end", || served.status()["processes"]["workers"].as_array().unwrap().len() == 1);
    let events = served.events();
    assert!(!events.contains("ERROR"), "{events}");
}

#[test]
fn a_signal_upgrades_again_and_again_and_the_history_and_counts_go_along() {
    let backend = ok();
    let served = installed(&to(backend.address, ""));
    served.apply(&to(backend.address, "drain: 7s"));
    signal("KILL", served.worker());
    wait_for("the crash", || served.status()["processes"]["crashes"] == 1);

    for round in 1..=3 {
        let before = served.worker();
        install(&served.path("vestibule"));
        served.signal("USR2");
        wait_for("another worker", || served.worker() != before);
        let status = served.status();
        assert_eq!(status["generation"], 2, "round {round}");
        assert_eq!(status["processes"]["crashes"], 1);
        assert_eq!(status["processes"]["history"].as_array().unwrap().len(), 2, "{status:#}");
    }

    served.order(&["rollback"]);
    assert_eq!(served.generation(), 3);
    // What is watched is watched by the new program too.
    served.rewrite(&to(backend.address, "drain: 9s"));
    wait_for("a change to be seen", || served.generation() == 4);
}

#[test]
fn requests_and_websockets_that_have_begun_come_to_their_end_in_the_worker_of_before() {
    let (held, echo) = (Held::start(), Echo::start());
    let served = installed(&format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{}'] }}, ws: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}, {{ prefix: /ws, upstream: ws }}]\n",
        held.backend.address, echo.backend.address
    ));
    let address = served.address(0);
    let mut socket = websocket(address);
    let asked = thread::spawn(move || again(&mut connect(address)));
    held.next();

    served.order(&["upgrade"]);
    served.order(&["upgrade"]);

    held.answer();
    assert_eq!(status(&asked.join().unwrap()), 200);
    socket.send(Message::text("still there")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("still there"));
    // One that serves, and the first one with the websocket; the second had begun nothing.
    wait_for("the second one to end", || served.status()["processes"]["workers"].as_array().unwrap().len() == 2);
}

#[test]
fn the_bound_of_an_application_is_one_bound_for_the_worker_of_before_and_the_new_one() {
    let held = Held::start();
    let served = installed(&to(held.backend.address, "").replace("] }", "], concurrency: 2 }"));
    let address = served.address(0);
    let ask = || thread::spawn(move || again(&mut connect(address)));
    let mut asked = vec![ask(), ask()];
    held.next();
    held.next();

    served.order(&["upgrade"]);
    wait_for("the new worker alone to accept", || {
        let _connection = connect(address);
        served.status()["connections"] == 1
    });
    // Both places are taken where we cannot see them.
    asked.extend([ask(), ask()]);
    wait_for("two to wait", || served.status()["upstreams"][0]["queue_depth"] == 2);
    held.answer();
    held.next();
    held.answer();
    held.next();
    held.answer();
    held.answer();

    for asked in asked {
        assert_eq!(status(&asked.join().unwrap()), 200);
    }
    assert_eq!(held.most(), 2, "more were inside than there may be");
}

#[test]
fn a_link_that_leads_to_another_version_is_followed() {
    let backend = ok();
    let place = folder();
    let link = place.path().join("vestibule");
    for version in ["one", "two"] {
        install(&place.path().join(version));
    }
    symlink("one", &link).unwrap();
    let mut served = Served::spawn(place, &link, &to(backend.address, ""), |_| {});
    wait_for("the gateway to be ready", || {
        assert_eq!(served.child.try_wait().unwrap(), None, "{}", served.events());
        served.events().contains("listening")
    });
    let keeper = served.child.id();
    assert_eq!(program_of(keeper), served.path("one").display().to_string());

    symlink("two", served.path("next")).unwrap();
    fs::rename(served.path("next"), served.path("vestibule")).unwrap();
    served.order(&["upgrade"]);

    assert_eq!(program_of(keeper), served.path("two").display().to_string());
}

/// What the running program answers to an upgrade that cannot be, and that it serves on.
fn refused(served: &Served) -> String {
    let (keeper, worker) = (served.child.id(), served.worker());
    let output = served.run_by(env!("CARGO_BIN_EXE_vestibule"), &["upgrade"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}\n{}", served.events());
    assert_eq!(served.worker(), worker, "{}", served.events());
    assert_eq!(status(&again(&mut connect(served.address(0)))), 200);
    assert_eq!(served.child.id(), keeper);
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_program_that_does_not_run_or_does_not_take_over_is_refused_and_the_old_one_serves_on() {
    let backend = ok();
    let served = installed(&to(backend.address, ""));
    let program = served.path("vestibule");

    fs::remove_file(&program).unwrap();
    assert!(refused(&served).contains("No such file"));
    fs::write(&program, "not a program").unwrap();
    assert!(refused(&served).contains("cannot take over"));
    install_script(&program, "echo this is another program");
    assert!(refused(&served).contains("does not say that it would"));
    install_script(&program, "echo it is broken >&2; exit 3");
    assert!(refused(&served).contains("it is broken"));

    install(&program);
    served.order(&["upgrade"]);
}

#[test]
fn a_program_that_says_it_would_and_then_cannot_gives_everything_back() {
    let backend = ok();
    let served = installed(&to(backend.address, ""));
    let program = served.path("vestibule");
    let real = env!("CARGO_BIN_EXE_vestibule");
    let mut kept = connect(served.address(0));
    assert_eq!(status(&again(&mut kept)), 200);

    // It is asked with a number, and takes over without.
    let script = format!(
        "for last; do :; done\nif [ \"$last\" = --takeover ]; then exec {real} \"$@\" --pid-file /not/there; fi\nexec {real} \"$@\""
    );
    install_script(&program, &script);
    let said = refused(&served);

    assert!(said.contains("/not/there"), "{said}");
    assert_eq!(status(&again(&mut kept)), 200, "the connection has not noticed");
    for _ in 0..2 {
        refused(&served);
    }
    served.apply(&to(backend.address, "drain: 9s"));
    install(&program);
    served.order(&["upgrade"]);
    assert_eq!(served.generation(), 2);
}

#[test]
fn a_program_whose_worker_does_not_come_up_gives_everything_back() {
    let backend = ok();
    let place = folder();
    fs::create_dir_all(place.path().join("closed/files")).unwrap();
    let text = to(backend.address, "").replace("upstream: app }", "upstream: app, files: ['{dir}/closed/files'] }");
    let served = Served::start_in(place, &text, |_| {});
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // The keeper can open this; whoever is to send the files cannot.
    fs::set_permissions(served.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();

    let said = refused(&served);

    assert!(said.contains("the new worker does not serve"), "{said}");
    fs::set_permissions(served.path("closed"), fs::Permissions::from_mode(0o755)).unwrap();
    served.order(&["upgrade"]);
    assert_eq!(status(&again(&mut connect(served.address(0)))), 200);
}

#[test]
fn tls_sessions_are_resumed_by_the_new_program() {
    let backend = ok();
    let place = folder();
    let certificate = clients::certificate(place.path(), "site", &["site.example"]);
    let text = to_over_tls(backend.address);
    let served = Served::start_in(place, &text, |_| {});
    let address = served.address(0);
    let clients = [&rustls::version::TLS12, &rustls::version::TLS13].map(|version| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let config = config.with_protocol_versions(&[version]).unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    });
    let shake = |client: &Arc<rustls::ClientConfig>| {
        clients::block_on(async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = clients::tls_connect(address, "site.example", Arc::clone(client)).await.unwrap();
            // Tickets come with the first answer.
            let request = b"GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            stream.get_ref().1.handshake_kind()
        })
    };
    let both = || clients.each_ref().map(|client| shake(client).unwrap());
    assert_eq!(both(), [rustls::HandshakeKind::Full; 2]);

    served.order(&["upgrade"]);

    assert_eq!(both(), [rustls::HandshakeKind::Resumed; 2]);
    signal("KILL", served.worker());
    wait_for("the crash", || served.status()["processes"]["crashes"] == 1);
    assert_eq!(both(), [rustls::HandshakeKind::Resumed; 2], "nor does a crash make anybody start anew");
}

#[test]
fn what_waits_in_the_sockets_is_served_by_the_new_program() {
    let backend = ok();
    let served = installed(&to(backend.address, ""));
    let address = served.address(0);
    let worker = served.worker();
    signal("STOP", worker);
    wait_for("it to stand still", || {
        fs::read_to_string(format!("/proc/{worker}/status")).unwrap().contains("State:\tT")
    });
    let mut waiting: Vec<TcpStream> = (0..20).map(|_| connect(address)).collect();
    for stream in &mut waiting {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    }

    served.signal("USR2");

    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(status(&answer), 200);
    }
    signal("CONT", worker);
}

#[test]
fn signals_that_come_while_another_program_takes_over_are_its_own() {
    let backend = ok();
    let mut served = installed(&to(backend.address, ""));
    let (address, keeper) = (served.address(0), served.child.id());

    let storm = thread::spawn(move || {
        for number in 0..600 {
            signal(["USR2", "HUP", "USR1"][number % 3], keeper);
        }
    });
    for _ in 0..20 {
        assert_eq!(status(&again(&mut connect(address))), 200, "{}", served.events());
    }
    storm.join().unwrap();

    assert_eq!(served.child.try_wait().unwrap(), None, "{}", served.events());
    served.signal("USR2");
    served.signal("TERM");
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
}

#[test]
fn what_is_in_force_is_taken_over_whatever_has_become_of_its_files() {
    let backend = ok();
    let place = folder();
    let certificate = clients::certificate(place.path(), "site", &["site.example"]);
    let text = to_over_tls(backend.address);
    let served = Served::start_in(place, &text, |_| {});
    let address = served.address(0);
    // Refused, as no interface has the address, and without the certificate that is in force.
    served.rewrite(&to(backend.address, "").replace("127.0.0.1:0", "192.0.2.1:81"));
    wait_for("the refusal", || served.events().contains("configuration refused"));
    fs::remove_file(served.path("site.key")).unwrap();

    served.order(&["upgrade"]);

    let client = clients::client(&[&certificate], &["http/1.1"]);
    let spoken = clients::block_on(clients::tls_connect(address, "site.example", client));
    assert!(spoken.is_ok(), "{spoken:?}\n{}", served.events());
}
