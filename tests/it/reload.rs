//! Another configuration for a gateway that serves: what changes, what stays, and what is refused.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use crate::{
    queue::Held,
    support::{
        Backend, PATIENCE, body,
        clients::{self, block_on},
        connect, read_head, read_response,
        served::{self, Served},
        status, to, to_over_tls, wait_for,
    },
    websockets::{Echo, websocket},
};

fn saying(what: &str) -> Backend {
    Backend::replying(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{what}", what.len()))
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// One more request on a connection that is kept.
fn again(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_response(stream)
}

#[test]
fn a_file_that_changes_is_put_in_force_without_anybody_being_told() {
    let (one, two) = (saying("one"), saying("two"));
    let served = Served::start(&to(one.address, ""));
    let address = served.address(0);
    assert_eq!(body(&get(address, "/")), "one");

    served.rewrite(&to(two.address, ""));
    wait_for("the change to be noticed", || body(&get(address, "/")) == "two");

    wait_for("the cause to be told", || {
        served.status()["processes"]["history"][0]["cause"].to_string().contains("vestibule.yml changed")
    });
}

#[test]
fn a_signal_and_an_order_read_it_anew_and_say_so_where_nothing_has_changed() {
    let backend = saying("ok");
    let served = Served::start(&to(backend.address, ""));

    assert_eq!(served.order(&["reload"]), "nothing has changed: configuration 1 stays in force\n");
    served.rewrite(&to(backend.address, "drain: 7s"));
    served.signal("HUP");
    wait_for("the signal to be obeyed", || served.generation() == 2);
    served.rewrite(&to(backend.address, "drain: 8s"));
    let said = served.order(&["reload"]);

    assert!(said == "configuration 3 is in force\n" || said.contains("configuration 3 stays in force"), "{said}");
    let config: serde_json::Value = serde_json::from_str(&body(&served.get("admin.sock", "/config"))).unwrap();
    assert_eq!(config["drain"]["secs"], 8, "{config:#}");
}

#[test]
fn a_refused_file_changes_nothing_says_every_fault_and_stays_visible_until_it_is_mended() {
    let backend = saying("ok");
    let good = to(backend.address, "");
    let served = Served::start(&good);

    served.rewrite(&to(backend.address, "hots: example.org\nlimits: { streams: none }"));
    let refused = served.run(&["reload"]);

    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    for part in ["vestibule.yml:4:", "hots", "limits.streams"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    assert_eq!(status(&get(served.address(0), "/")), 200);
    let refusal = served.status()["processes"]["refused"].clone();
    assert_eq!(refusal["faults"].as_array().unwrap().len(), 2, "{refusal}");
    let success = || body(&served.get("admin.sock", "/metrics")).contains("vestibule_last_reload_success 1\n");
    assert!(!success());
    let told = served.order(&["status"]);
    assert!(told.contains("REFUSED") && told.contains("limits.streams"), "{told}");

    served.apply(&good);

    assert_eq!(served.status()["processes"]["refused"], serde_json::Value::Null);
    wait_for("the metric to say so", success);
}

#[test]
fn an_address_that_cannot_be_had_refuses_all_of_it() {
    let backend = saying("ok");
    let served = Served::start(&to(backend.address, ""));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = free_port();

    let listeners = |addresses: &[SocketAddr]| -> String {
        let all: Vec<_> = addresses.iter().map(|address| format!("{{ address: '{address}' }}")).collect();
        to(backend.address, "").replace("{ address: '127.0.0.1:0' }", &all.join(", "))
    };
    served.rewrite(&listeners(&[free, taken.local_addr().unwrap()]));
    let refused = served.run(&["reload"]);

    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("listeners[1].address") && said.contains("is in use"), "{said}");
    assert!(TcpStream::connect(free).is_err(), "what could be bound is let go again");
    assert_eq!(served.generation(), 1);
    assert_eq!(status(&get(served.address(0), "/")), 200);
}

#[test]
fn listeners_are_added_moved_and_removed_and_a_kept_one_keeps_its_connections() {
    let backend = saying("ok");
    let [kept, moved, new] = [free_port(), free_port(), free_port()];
    let listening = |addresses: [SocketAddr; 2]| {
        let [one, two] = addresses.map(|address| format!("{{ address: '{address}' }}"));
        to(backend.address, "").replace("{ address: '127.0.0.1:0' }", &format!("{one}, {two}"))
    };
    let served = Served::start(&listening([kept, moved]));
    let (mut on_kept, mut on_moved) = (connect(kept), connect(moved));
    for stream in [&mut on_kept, &mut on_moved] {
        assert_eq!(status(&again(stream, "/")), 200);
    }

    served.apply(&listening([new, kept]));

    assert_eq!(status(&get(new, "/")), 200);
    let answer = again(&mut on_kept, "/");
    assert!(!answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    // Of a listener that is no more, the next answer is the last.
    let answer = again(&mut on_moved, "/");
    assert_eq!(status(&answer), 200);
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    wait_for("the old address to be closed", || TcpStream::connect(moved).is_err());
}

#[test]
fn tls_is_switched_on_for_those_who_connect_from_then_on() {
    let backend = saying("ok");
    let served = Served::start(&to(backend.address, ""));
    let address = served.address(0);
    let mut plain = connect(address);
    assert_eq!(status(&again(&mut plain, "/")), 200);

    let certificate = clients::certificate(served.folder.path(), "site", &["site.example"]);
    let tls = clients::tls(&["site"]);
    let text = to(backend.address, &tls).replace("'127.0.0.1:0' }", "'127.0.0.1:0', tls: true }");
    served.apply(&text);

    let spoken =
        block_on(clients::tls_connect(address, "site.example", clients::client(&[&certificate], &["http/1.1"])));
    assert!(spoken.is_ok(), "{spoken:?}");
    assert_eq!(status(&again(&mut plain, "/")), 200, "what is open goes on as it began");
}

#[test]
fn a_certificate_that_is_replaced_on_the_disk_is_served_without_anybody_being_told() {
    let backend = saying("ok");
    let folder = served::folder();
    clients::certificate(folder.path(), "site", &["site.example"]);
    let text = to_over_tls(backend.address);
    let served = Served::start_in(folder, &text, |_| {});
    let address = served.address(0);

    // As certbot does it: elsewhere first, then into its place.
    fs::create_dir(served.path("new")).unwrap();
    let second = clients::certificate(&served.path("new"), "site", &["site.example"]);
    for file in ["site.crt", "site.key"] {
        fs::rename(served.path("new").join(file), served.path(file)).unwrap();
    }

    wait_for("the new certificate to be served", || {
        let client = clients::client(&[&second], &["http/1.1"]);
        block_on(clients::tls_connect(address, "site.example", client)).is_ok()
    });
    assert_eq!(served.status()["processes"]["history"].as_array().unwrap().len(), 1, "its text is what it was");
}

#[test]
fn a_pair_of_which_half_is_there_is_told_once_and_served_when_it_is_whole() {
    let backend = saying("ok");
    let folder = served::folder();
    let first = clients::certificate(folder.path(), "site", &["site.example"]);
    let served = Served::start_in(folder, &to_over_tls(backend.address), |_| {});
    let address = served.address(0);
    let is_served = |certificate: &_| {
        block_on(clients::tls_connect(address, "site.example", clients::client(&[certificate], &["http/1.1"]))).is_ok()
    };
    fs::create_dir(served.path("new")).unwrap();
    let second = clients::certificate(&served.path("new"), "site", &["site.example"]);
    let told = || served.events().matches("does not belong to the certificate").count();

    fs::rename(served.path("new/site.crt"), served.path("site.crt")).unwrap();
    wait_for("the fault to be told", || told() > 0);
    assert!(is_served(&first) && !is_served(&second), "the pair of before is served");
    fs::rename(served.path("new/site.key"), served.path("site.key")).unwrap();

    wait_for("the new pair to be served", || is_served(&second));
    assert_eq!(told(), 1, "{}", served.events());
    // The keeper hears of it a moment after the first client.
    wait_for("the fault to be forgotten", || served.status()["processes"]["refused"].is_null());
}

#[test]
fn what_is_wrong_with_a_certificate_that_is_served_is_told_by_events_and_by_check() {
    let backend = saying("ok");
    let folder = served::folder();
    let make = |name: &str, days: i64| {
        let mut params = rcgen::CertificateParams::new(vec!["site.example".to_owned()]).unwrap();
        let end = std::time::SystemTime::now() + Duration::from_secs(100 * 24 * 3600);
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2025, 1, 1), end.into());
        params.not_after -= Duration::from_secs((100 - days).unsigned_abs() * 24 * 3600);
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(folder.path().join(format!("{name}.crt")), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    make("old", -1);
    make("ending", 10);
    make("good", 60);
    let names = clients::tls(&["ending", "good"]);
    let text = to(backend.address, &format!("host: other.example\n{names}"))
        .replace("'127.0.0.1:0' }", "'127.0.0.1:0', tls: true }");
    let served = Served::start_in(folder, &text, |_| {});

    for part in ["certificates[0]", "the certificate ends at", "host", "no certificate is for `other.example`"] {
        wait_for(part, || served.events().contains(part));
    }
    let mismatch = served.run(&["check"]);
    assert_eq!(mismatch.status.code(), Some(78), "{mismatch:?}");

    served.apply(&text.replace("host: other.example", "host: site.example"));
    let fine = served.order(&["check"]);
    assert!(fine.starts_with("warning: tls.certificates[0].files.certificate: the certificate ends at"), "{fine}");

    served.apply(&text.replace("host: other.example", "host: site.example").replace("ending", "old"));
    wait_for("the end to be told", || served.events().contains("the certificate expired at"));
    assert!(!served.events().contains("certificates[1]"), "{}", served.events());
    let expired = served.run(&["check"]);
    assert!(String::from_utf8_lossy(&expired.stdout).contains("the certificate expired at"), "{expired:?}");
}

#[test]
fn host_routes_limits_and_trust_change_with_the_next_request_of_an_open_connection() {
    let (one, two) = (saying("one"), Backend::echoing());
    let served = Served::start(&to(one.address, ""));
    let mut stream = connect(served.address(0));
    assert_eq!(body(&again(&mut stream, "/")), "one");

    served.apply(&format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\ntrusted_proxies: [loopback]\nlimits: {{ uri_bytes: 300B }}\n\
         upstreams: {{ one: {{ endpoints: ['{}'] }}, two: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ prefix: /, upstream: one }}, {{ prefix: /two, upstream: two }}]\n",
        one.address, two.address
    ));

    assert_eq!(body(&again(&mut stream, "/")), "one");
    write!(stream, "GET /two HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n").unwrap();
    let seen = read_response(&mut stream).to_ascii_lowercase();
    assert!(
        seen.contains("x-forwarded-for: 192.0.2.7, 127.0.0.1") || seen.contains("x-forwarded-for: 192.0.2.7"),
        "{seen}"
    );
    assert_eq!(status(&again(&mut stream, &format!("/{}", "x".repeat(400)))), 414);
}

#[test]
fn the_access_log_moves_and_changes_its_form_and_no_line_is_lost() {
    let backend = saying("ok");
    let served = Served::start(&to(backend.address, ""));
    let mut stream = connect(served.address(0));
    again(&mut stream, "/before");

    served.apply(&to(backend.address, "access_log: { path: other.log, format: '{status} {target}' }"));
    again(&mut stream, "/after");

    wait_for("a line in the other file", || served.log("other.log") == "200 /after\n");
    assert_eq!(served.log("access.log"), "GET /before 200\n");
}

#[test]
fn an_upstream_that_has_not_changed_keeps_its_connections_and_whoever_waits_for_it() {
    let held = Held::start();
    let text = |keys: &str| {
        format!(
            "listeners: [{{ address: '127.0.0.1:0' }}]\n\
             upstreams: {{ app: {{ endpoints: ['{}'], concurrency: 1 }} }}\n\
             routes: [{{ prefix: /, upstream: app }}]\nworkers: 1\n{keys}\n",
            held.backend.address
        )
    };
    let served = Served::start(&text(""));
    let address = served.address(0);
    let asking: Vec<_> = ["/first", "/second"]
        .into_iter()
        .map(|path| {
            let asked = thread::spawn(move || get(address, path));
            if path == "/first" {
                assert_eq!(held.next(), "/first");
            }
            asked
        })
        .collect();
    wait_for("one to wait", || served.status()["upstreams"][0]["queue_depth"] == 1);

    served.apply(&text("drain: 3s"));

    let upstream = served.status()["upstreams"][0].clone();
    assert_eq!((&upstream["queue_depth"], &upstream["in_flight"]), (&1.into(), &1.into()), "{upstream}");
    held.answer();
    assert_eq!(held.next(), "/second");
    held.answer();
    for asked in asking {
        assert_eq!(status(&asked.join().unwrap()), 200);
    }
    assert_eq!(held.backend.connections(), 1, "one connection served both generations");
}

fn echoes(socket: &mut WebSocket<TcpStream>, text: &str) {
    socket.send(Message::text(text)).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text(text));
}

#[test]
fn a_websocket_keeps_the_generation_it_began_with_and_the_status_counts_it() {
    let echo = Echo::start();
    let served = Served::start(&to(echo.backend.address, ""));
    let mut socket = websocket(served.address(0));
    echoes(&mut socket, "one");

    // The upstream and the route it came by are gone.
    let other = saying("other");
    served.apply(&to(other.address, ""));
    echoes(&mut socket, "two");

    let generations = served.status()["generations"].clone();
    assert_eq!(generations[0]["generation"], 1, "{generations}");
    assert_eq!(generations[0]["exchanges"], 1, "{generations}");
    assert_eq!(generations[1]["generation"], 2, "{generations}");
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    wait_for("the old generation to end", || served.status()["generations"].as_array().unwrap().len() == 1);
}

#[test]
fn an_upload_that_has_begun_comes_to_its_end_where_it_was_going() {
    let (one, two) = (Backend::echoing(), saying("two"));
    let text = |backend| to(backend, "").replace("upstream: app }", "upstream: app, buffer: { request: false } }");
    let served = Served::start(&text(one.address));
    let mut stream = connect(served.address(0));
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nfirst").unwrap();
    wait_for("the upload to reach the application", || one.connections() == 1);

    served.apply(&text(two.address));
    stream.write_all(b"-half").unwrap();

    let answer = read_response(&mut stream);
    assert!(answer.ends_with("first-half"), "{answer}");
}

#[test]
fn a_change_that_takes_another_worker_cuts_nothing() {
    let echo = Echo::start();
    let served = Served::start(&to(echo.backend.address, "workers: 1"));
    let address = served.address(0);
    let mut socket = websocket(address);
    echoes(&mut socket, "one");
    let mut idle = connect(address);
    let before = served.worker();

    let told = served.rehearse(&to(echo.backend.address, "workers: 2"));
    assert!(told.contains("workers: 1 becomes 2") && told.contains("a new worker would take over"), "{told}");
    assert_eq!(served.generation(), 1, "it was only asked");
    served.apply(&to(echo.backend.address, "workers: 2"));

    wait_for("another worker", || served.worker() != before);
    echoes(&mut socket, "two");
    // A request that races with the change is answered where it was accepted.
    write!(idle, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_head(&mut idle);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop((idle, socket));
    wait_for("the worker of before to end", || served.status()["processes"]["workers"].as_array().unwrap().len() == 1);
    assert_eq!(served.status()["processes"]["crashes"], 0);
}

#[test]
fn a_folder_that_the_worker_has_no_door_to_takes_another_worker() {
    let place = served::folder();
    let files = place.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("page.txt"), "page").unwrap();
    let backend = Backend::replying(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Sendfile: {}/page.txt\r\n\r\n",
        files.display()
    ));
    let served = Served::start_in(place, &to(backend.address, ""), |_| {});
    let before = served.worker();
    let with_files = to(backend.address, "").replace("upstream: app }", "upstream: app, files: ['{dir}/files'] }");

    let told = served.rehearse(&with_files);
    assert!(told.contains("a new worker would take over") && told.contains("files"), "{told}");
    served.apply(&with_files);

    wait_for("another worker", || served.worker() != before);
    assert_eq!(body(&get(served.address(0), "/")), "page");
}

#[test]
fn with_one_process_a_change_of_its_threads_is_refused_by_its_key() {
    let backend = saying("ok");
    let served = Served::start_with(&to(backend.address, "workers: 1"), |command| {
        command.arg("--single");
    });

    served.rewrite(&to(backend.address, "workers: 2"));
    let refused = served.run(&["reload"]);

    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("needs a restart") && said.contains("workers: 1 become 2"), "{said}");
    assert_eq!(served.generation(), 1);
    served.apply(&to(backend.address, "workers: 1\ndrain: 3s"));
    assert_eq!(status(&get(served.address(0), "/")), 200);
}

#[test]
fn a_rollback_goes_back_step_by_step_and_leaves_the_file_alone() {
    let backends = ["one", "two", "three"].map(saying);
    let served = Served::start(&to(backends[0].address, ""));
    let address = served.address(0);
    for backend in &backends[1..] {
        served.apply(&to(backend.address, ""));
    }
    assert_eq!(body(&get(address, "/")), "three");

    let said = served.order(&["rollback"]);
    assert!(said.contains("was not touched"), "{said}");
    assert_eq!(body(&get(address, "/")), "two");
    served.order(&["rollback"]);
    assert_eq!(body(&get(address, "/")), "one");
    let refused = served.run(&["rollback", "30"]);

    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(fs::read_to_string(served.path("vestibule.yml")).unwrap().contains(&backends[2].address.to_string()));
    served.order(&["reload"]);
    assert_eq!(body(&get(address, "/")), "three");
}

#[test]
fn a_dry_run_says_every_difference_in_words_and_changes_nothing() {
    let backend = saying("ok");
    let served = Served::start(&to(backend.address, ""));
    let free = free_port();

    let told = served.rehearse(&format!(
        "listeners: [{{ address: '127.0.0.1:0' }}, {{ address: '{free}' }}]\nhost: example.org\n\
         upstreams: {{ app: {{ endpoints: ['{}'], concurrency: 6 }} }}\nroutes: [{{ prefix: /, upstream: app }}]\n",
        backend.address
    ));

    for line in [
        "host: none becomes `example.org`",
        &format!("listeners[{free}] is added"),
        "upstreams.app.concurrency: none becomes 6",
    ] {
        assert!(told.contains(line), "{line} is missing: {told}");
    }
    assert!(TcpStream::connect(free).is_err());
}

#[test]
fn without_a_readable_configuration_the_running_one_is_still_reached() {
    let backend = saying("ok");
    let served = Served::start(&to(backend.address, ""));

    fs::write(served.path("vestibule.yml"), format!("admin: unix:{}\n{{", served.path("admin.sock").display()))
        .unwrap();

    assert!(served.order(&["status"]).contains("vestibule"));
}

#[test]
fn a_refused_move_of_the_admin_socket_leaves_the_one_of_before_for_all_that_comes_after() {
    let backend = saying("ok");
    let served = Served::start(&to(backend.address, ""));
    // Of no interface of this machine: the second listener cannot be bound, when the admin socket is already.
    let moved = to(backend.address, "admin: unix:{dir}/moved.sock")
        .replace("'127.0.0.1:0' }", "'127.0.0.1:0' }, { address: '192.0.2.1:81' }");
    served.rewrite(&moved);
    wait_for("the refusal", || served.status()["processes"]["refused"] != serde_json::Value::Null);

    served.apply(&to(backend.address, "drain: 3s"));
    served.apply(&to(backend.address, "workers: 1"));

    assert_eq!(served.generation(), 3);
}

/// The processes that the keeper has begun, the youngest last.
fn workers(served: &Served) -> Vec<Pid> {
    // One that is not its own program yet holds up whoever begins it: to stop it would be to stop the keeper. A line that
    // is empty is that of one which has ended and was not seen to.
    let is_begun = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.is_empty() || line.ends_with("worker\0")
    };
    let begun = served::children(served.child.id()).into_iter().filter(is_begun);
    begun.map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()).collect()
}

#[test]
fn a_worker_that_dies_while_another_one_starts_leaves_it_all_places() {
    let backend = saying("ok");
    let text = |keys| to(backend.address, keys).replace("] }", "], concurrency: 1 }");
    let served = Served::start(&text("workers: 1"));
    let address = served.address(0);

    // Until it is met at its start: it may be quicker than we are.
    for number in 2.. {
        wait_for("there to be one", || workers(&served).len() == 1);
        let generation = served.generation();
        served.rewrite(&text(if number % 2 == 0 { "workers: 2" } else { "workers: 1" }));
        let begun = Instant::now();
        let [before, successor] = loop {
            if let [before, successor] = workers(&served)[..] {
                break [before, successor];
            }
            assert!(begun.elapsed() < PATIENCE, "{}", served.events());
        };
        kill_process(successor, Signal::STOP).unwrap();
        // It may have left in order by then.
        kill_process(before, Signal::KILL).ok();
        wait_for("its end to be seen", || workers(&served).len() == 1);
        kill_process(successor, Signal::CONT).unwrap();
        wait_for("the change", || served.generation() > generation);
        assert_eq!(status(&get(address, "/")), 200, "{}", served.events());
        if served.events().contains("a worker has ended unasked") {
            return;
        }
        assert!(number < 20, "never met: {}", served.events());
    }
}

#[test]
fn a_place_that_was_lent_for_a_request_that_has_gone_comes_back() {
    let held = Held::start();
    let text = |keys| to(held.backend.address, keys).replace("] }", "], concurrency: 1 }");
    let served = Served::start(&text("workers: 1"));
    let address = served.address(0);
    let mut kept = connect(address);
    // Once, so that it is accepted, and by whom.
    let first = thread::spawn(move || {
        again(&mut kept, "/first");
        kept
    });
    held.next();
    held.answer();
    let mut kept = first.join().unwrap();
    served.apply(&text("workers: 2"));
    let inside = thread::spawn(move || get(address, "/inside"));
    assert_eq!(held.next(), "/inside");

    // It waits in the worker that leaves, whose place is gone; and goes.
    write!(kept, "GET /late HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    kept.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    kept.read_exact(&mut [0]).unwrap_err();
    drop(kept);
    wait_for("the worker of before to end", || served.status()["processes"]["workers"].as_array().unwrap().len() == 1);
    held.answer();
    assert_eq!(status(&inside.join().unwrap()), 200);

    let after = thread::spawn(move || get(address, "/after"));
    assert_eq!(held.next(), "/after");
    held.answer();
    assert_eq!(status(&after.join().unwrap()), 200);
}

#[test]
fn places_that_came_with_a_change_are_not_withheld_for_a_worker_that_never_had_them() {
    let echo = Echo::start();
    let held = Held::start();
    let text = |places: u32, workers: u32| {
        format!(
            "listeners: [{{ address: '127.0.0.1:0' }}]\nworkers: {workers}\n\
             upstreams: {{ app: {{ endpoints: ['{}'], concurrency: {places} }}, ws: {{ endpoints: ['{}'] }} }}\n\
             routes: [{{ prefix: /, upstream: app }}, {{ prefix: /ws, upstream: ws }}]\n",
            held.backend.address, echo.backend.address
        )
    };
    let served = Served::start(&text(1, 1));
    let address = served.address(0);
    let mut socket = websocket(address);
    served.apply(&text(3, 2));

    let before = served.worker();
    served::signal("KILL", before);
    wait_for("another worker", || served.worker() != before);

    let asked: Vec<_> = (0..3).map(|_| thread::spawn(move || get(address, "/"))).collect();
    for _ in &asked {
        held.next();
    }
    for _ in &asked {
        held.answer();
    }
    for asked in asked {
        assert_eq!(status(&asked.join().unwrap()), 200);
    }
    echoes(&mut socket, "still there");
}

#[test]
fn an_address_that_was_just_given_up_is_had_again() {
    let backend = saying("ok");
    let port = free_port();
    let one = to(backend.address, "");
    let two = one.replace("'127.0.0.1:0' }", &format!("'127.0.0.1:0' }}, {{ address: '{port}' }}"));
    let served = Served::start(&two);

    served.apply(&one);
    served.apply(&two);

    assert_eq!(status(&get(port, "/")), 200);
}

#[test]
fn a_place_that_is_lent_to_a_worker_that_leaves_is_not_given_up_for_one_that_left_before() {
    let held = Held::start();
    let text =
        |workers: u32| to(held.backend.address, &format!("workers: {workers}")).replace("] }", "], concurrency: 1 }");
    let served = Served::start(&text(1));
    let address = served.address(0);
    let mut asked = vec![thread::spawn(move || get(address, "/inside"))];
    assert_eq!(held.next(), "/inside");
    // Three workers, none of which has a place when it leaves, and in two of them a request.
    served.apply(&text(2));
    let mut late = connect(address);
    wait_for("it to be accepted", || served.status()["connections"] == 1);
    served.apply(&text(1));
    write!(late, "GET /late HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    late.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    late.read_exact(&mut [0]).unwrap_err();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    asked.push(thread::spawn(move || get(address, "/later")));
    wait_for("it to wait", || served.status()["upstreams"][0]["queue_depth"] == 1);
    served.apply(&text(2));

    held.answer();
    for expected in ["/late", "/later"] {
        assert_eq!(held.next(), expected);
        held.answer();
    }

    assert_eq!(status(&read_response(&mut late)), 200);
    for asked in asked {
        assert_eq!(status(&asked.join().unwrap()), 200);
    }
}
