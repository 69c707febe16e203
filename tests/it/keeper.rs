//! The two processes: what the worker cannot do, what the keeper does not believe, and what becomes of a crash.

use std::{
    fs,
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, getpeername, sendmsg},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{
    queue::Held,
    support::{
        Backend, clients, connect, header, ok, read_response,
        served::{Served, folder, signal},
        status, to, to_over_tls, wait_for,
    },
};

/// Tests of what root gives up need root, as CI has.
pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "CI runs as root");
    is_root
}

fn get(address: SocketAddr) -> u16 {
    let mut stream = connect(address);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    status(&answer)
}

/// A line of `/proc/PID/status`.
fn of_process(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
}

#[test]
fn the_worker_is_another_user_without_capabilities_and_in_a_sandbox() {
    if !is_root() {
        return;
    }
    let backend = ok();
    let served = Served::start(&to(backend.address, ""));
    let worker = served.worker();

    let user: Vec<_> = of_process(worker, "Uid").split_whitespace().map(str::to_owned).collect();
    let www_data = fs::read_to_string("/etc/passwd").unwrap();
    let www_data =
        www_data.lines().find_map(|line| line.strip_prefix("www-data:x:")?.split(':').next().map(str::to_owned));
    assert_eq!(user, vec![www_data.unwrap(); 4], "real, effective, saved and of files");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(of_process(worker, set).trim_matches('0'), "", "{set}");
    }
    assert_eq!(of_process(worker, "NoNewPrivs"), "1");
    assert_eq!(of_process(worker, "Seccomp"), "2");
    // Each thread, as each was begun behind the walls.
    for thread in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let text = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(text.contains("Seccomp:\t2") && text.contains("CapEff:\t0000000000000000"), "{text}");
    }
    assert_eq!(of_process(served.child.id(), "Uid").split_whitespace().next(), Some("0"));
    assert_eq!(served.status()["processes"]["weaknesses"], serde_json::json!([]));
}

#[test]
fn a_key_that_only_root_may_read_is_served_and_the_worker_cannot_read_it() {
    if !is_root() {
        return;
    }
    let backend = ok();
    let place = folder();
    let certificate = clients::certificate(place.path(), "site", &["site.example"]);
    fs::set_permissions(place.path().join("site.key"), fs::Permissions::from_mode(0o400)).unwrap();
    let text = to_over_tls(backend.address);
    let served = Served::start_in(place, &text, |_| {});

    let client = clients::client(&[&certificate], &["http/1.1"]);
    let spoken = clients::block_on(clients::tls_connect(served.address(0), "site.example", client));

    assert!(spoken.is_ok(), "{spoken:?}");
}

#[test]
fn a_configuration_that_others_could_write_commands_no_root() {
    if !is_root() {
        return;
    }
    let backend = ok();
    let served = Served::start(&to(backend.address, ""));
    served.rewrite(&to(backend.address, "drain: 3s"));
    fs::set_permissions(served.path("vestibule.yml"), fs::Permissions::from_mode(0o666)).unwrap();

    let refused = served.run(&["reload"]);

    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("chmod go-w"), "{said}");
    let start = Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(["serve", "--config"])
        .arg(served.path("vestibule.yml"))
        .output()
        .unwrap();
    assert_eq!(start.status.code(), Some(78), "{start:?}");
}

#[test]
fn a_user_that_there_is_not_is_refused_by_its_key() {
    if !is_root() {
        return;
    }
    let backend = ok();
    let place = folder();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_vestibule"));
    let mut served = Served::spawn(place, &binary, &to(backend.address, "user: nobody-here"), |_| {});

    assert_eq!(served.ended().code(), Some(78), "{}", served.events());
    assert!(served.events().contains("user: there is no user `nobody-here`"), "{}", served.events());
}

#[test]
fn not_started_as_root_it_serves_and_says_what_is_weaker() {
    if !is_root() {
        return;
    }
    let backend = ok();
    let place = folder();
    std::os::unix::fs::chown(place.path(), Some(65534), Some(65534)).unwrap();
    let served = Served::start_in(place, &to(backend.address, ""), |command| {
        command.uid(65534).gid(65534);
    });

    assert_eq!(get(served.address(0)), 200);
    let weaknesses = served.status()["processes"]["weaknesses"].to_string();
    assert!(weaknesses.contains("not started as root"), "{weaknesses}");
    assert!(served.events().contains("not started as root"), "{}", served.events());
    // What needs no root is done all the same.
    assert_eq!(of_process(served.worker(), "Seccomp"), "2");
    signal("KILL", served.worker());
    wait_for("another worker", || get(served.address(0)) == 200);
}

#[test]
fn one_process_serves_and_says_what_is_weaker() {
    let backend = ok();
    let served = Served::start_with(&to(backend.address, ""), |command| {
        command.arg("--single");
    });

    assert_eq!(get(served.address(0)), 200);
    assert_eq!(served.worker(), served.child.id());
    let weaknesses = served.status()["processes"]["weaknesses"].to_string();
    assert!(weaknesses.contains("--single"), "{weaknesses}");
    let refused = served.run(&["upgrade"]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("restart instead"));
}

#[test]
fn the_keeper_holds_no_connection_whatever_is_going_on() {
    if !is_root() {
        return;
    }
    let held = Held::start();
    let served = Served::start(&to(held.backend.address, ""));
    let mut open: Vec<TcpStream> = (0..8).map(|_| connect(served.address(0))).collect();
    for stream in &mut open {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    held.next();

    let keeper = served.child.id();
    let process = pidfd_open(pid(keeper), PidfdFlags::empty()).unwrap();
    let mut sockets = 0;
    for descriptor in fs::read_dir(format!("/proc/{keeper}/fd")).unwrap() {
        let number: i32 = descriptor.unwrap().file_name().to_str().unwrap().parse().unwrap();
        let Ok(taken) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else { continue };
        if let Ok(family) = rustix::net::sockopt::socket_domain(&taken)
            && family != rustix::net::AddressFamily::UNIX
        {
            sockets += 1;
            assert!(getpeername(&taken).is_err(), "a connection of the network in the keeper");
        }
    }
    assert!(sockets >= 2, "the listening sockets are the keeper's: {sockets}");
    for _ in &open {
        held.answer();
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

/// The worker's end of its link to the keeper: what one has who has taken the worker over.
fn link_of(worker: u32) -> OwnedFd {
    let process = pidfd_open(pid(worker), PidfdFlags::empty()).unwrap();
    pidfd_getfd(&process, 0, PidfdGetfdFlags::empty()).unwrap()
}

fn say(link: &OwnedFd, packet: &[u8], descriptor: Option<&OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_fd()).collect();
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    while let Err(refused) = sendmsg(link, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL) {
        assert_eq!(refused, Errno::AGAIN);
        // The keeper is behind.
        poll(&mut [PollFd::new(link, PollFlags::OUT)], None).unwrap();
    }
}

/// A word: kind, number, argument.
fn word(kind: u32, number: u32, argument: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&argument.to_le_bytes());
    bytes
}

/// Bytes of memory that are a process's own.
fn memory(pid: u32) -> u64 {
    let text = of_process(pid, "VmRSS");
    text.split(' ').next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_worker_that_was_taken_over_is_refused_what_no_worker_may_ask_for() {
    if !is_root() {
        return;
    }
    let held = Held::start();
    let text = to(held.backend.address, "").replace("] }", "], concurrency: 1 }");
    let served = Served::start(&text);
    let (keeper, worker, address) = (served.child.id(), served.worker(), served.address(0));
    let link = link_of(worker);
    let secret = OwnedFd::from(fs::File::open("/etc/shadow").unwrap());
    let before = memory(keeper);

    say(&link, b"/etc/shadow", None);
    say(&link, b"exec /bin/sh -c id", None);
    say(&link, &vec![b'x'; 100_000], None);
    say(&link, &word(3, 0, 0), Some(&secret));
    say(&link, &word(0, 0, 0), None);
    say(&link, &word(99, 1, 1), None);
    say(&link, &word(6, 1, u64::MAX), None);
    say(&link, &word(1, 0, 7), None);
    // Words that may be said, but mean nothing here: it is ready already, and has nothing to give or to answer.
    for (kind, number, argument) in [(1, 0, 0), (2, 0, 0), (3, 0, 0), (10, 0, u64::MAX), (8, 7, 1_000_000), (11, 9, 9)]
    {
        say(&link, &word(kind, number, argument), None);
    }
    // Places of the one upstream, of which there is one.
    let tag = "app".bytes().fold(0x811c_9dc5_u32, |tag, byte| (tag ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    say(&link, &word(8, tag, 1_000_000), None);
    say(&link, &word(9, tag, 0), None);
    for number in 0..100_000_u32 {
        say(&link, &number.to_le_bytes(), None);
    }

    wait_for("all of it to be read", || {
        let refused = served.run(&["rollback", "30"]);
        String::from_utf8(refused.stderr).unwrap().contains("cannot go back")
    });
    let events = served.events();
    assert_eq!(events.matches("a worker was refused").count(), 10, "told ten times and no more: {events}");
    for part in ["another length", "with descriptors", "unknown kind 99", "out of bounds"] {
        assert!(events.contains(part), "{part} is missing: {events}");
    }
    assert!(memory(keeper) < before + (8 << 20), "{} after {before}", memory(keeper));
    assert_eq!(served.worker(), worker, "it serves on");
    // One place is one place still.
    let asking: Vec<_> = (0..2).map(|_| thread::spawn(move || get(address))).collect();
    held.next();
    wait_for("the other to wait", || served.status()["upstreams"][0]["queue_depth"] == 1);
    held.answer();
    held.next();
    held.answer();
    for asked in asking {
        assert_eq!(asked.join().unwrap(), 200);
    }
    let descriptors = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
    let kept = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    assert!(kept.into_iter().all(|target| target.to_str() != Some("/etc/shadow")), "the descriptor was taken in");
}

#[test]
fn a_worker_that_asks_without_end_costs_the_keeper_no_memory() {
    if !is_root() {
        return;
    }
    let backend = ok();
    let served = Served::start(&to(backend.address, ""));
    let (keeper, worker) = (served.child.id(), served.worker());
    let link = link_of(worker);
    let before = memory(keeper);
    // It neither takes what it is told nor says what the keeper waits for.
    signal("STOP", worker);
    served.rewrite(&to(backend.address, "drain: 3s"));

    for number in 0..300_000 {
        let mut control = SendAncillaryBuffer::default();
        let packet = word(4, number, 0);
        match sendmsg(&link, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => {}
            // The keeper is behind.
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&link, PollFlags::OUT)], None).unwrap()),
            // It has been ended.
            Err(refused) => {
                assert!(matches!(refused, Errno::PIPE | Errno::CONNRESET), "{refused}");
                break;
            }
        }
    }

    wait_for("its end", || served.events().contains("it is ended"));
    assert!(memory(keeper) < before + (24 << 20), "{before} bytes have become {}", memory(keeper));
    // That we have its end of the link still does not hide that it has ended.
    assert_eq!(get(served.address(0)), 200);
    drop(link);
}

#[test]
fn what_a_worker_says_of_certificates_that_are_ordered_costs_the_keeper_no_memory() {
    if !is_root() {
        return;
    }
    let backend = ok();
    let place = folder();
    clients::certificate(place.path(), "site", &["site.example"]);
    // Of an authority that does not answer.
    let acme = "acme: { directory: 'https://127.0.0.1:1/', ca_file: site.crt }";
    let ordered = format!("tls: {{ storage: storage, certificates: [{{ hosts: [site.example], {acme} }}] }}");
    let text = to(backend.address, &ordered).replace("'127.0.0.1:0' }", "'127.0.0.1:0', tls: true }");
    let served = Served::start_in(place, &text, |_| {});
    wait_for("the state to be told", || served.status()["processes"]["orders"][0]["state"] == "failing");
    let (keeper, worker) = (served.child.id(), served.worker());
    let link = link_of(worker);
    let before = memory(keeper);

    for number in 0..600_000 {
        let mut control = SendAncillaryBuffer::default();
        // That it answers challenges; from time to time, that somebody wants a check.
        let packet = if number % 100 == 0 { word(15, number, 0) } else { word(13, 0, u64::from(number)) };
        while let Err(refused) = sendmsg(&link, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL) {
            assert_eq!(refused, Errno::AGAIN, "{}", served.events());
            poll(&mut [PollFd::new(&link, PollFlags::OUT)], None).unwrap();
        }
    }

    assert!(memory(keeper) < before + (6 << 20), "{before} bytes have become {}", memory(keeper));
    assert_eq!(served.worker(), worker);
    assert!(!served.events().contains("ended unasked"), "{}", served.events());
}

#[test]
fn a_worker_that_is_begun_anew_serves_what_is_in_force_whatever_has_become_of_its_files() {
    let backend = ok();
    let place = folder();
    let certificate = clients::certificate(place.path(), "site", &["site.example"]);
    let text = to_over_tls(backend.address);
    let served = Served::start_in(place, &text, |_| {});
    let (address, before) = (served.address(0), served.worker());
    fs::remove_file(served.path("site.key")).unwrap();

    signal("KILL", before);

    wait_for("another worker", || served.events().contains("a worker has ended unasked"));
    let client = clients::client(&[&certificate], &["http/1.1"]);
    let spoken = clients::block_on(clients::tls_connect(address, "site.example", client));
    assert!(spoken.is_ok(), "{spoken:?}\n{}", served.events());
    wait_for("another worker", || served.worker() != before);
}

#[test]
fn a_killed_worker_is_followed_at_once_and_whoever_waits_in_the_sockets_is_served() {
    let backend = ok();
    let begun = Instant::now();
    let served = Served::start(&to(backend.address, ""));
    let start = begun.elapsed();
    let address = served.address(0);

    let mut best = Duration::MAX;
    for round in 0..5 {
        let worker = served.worker();
        signal("STOP", worker);
        wait_for("it to stand still", || of_process(worker, "State").starts_with('T'));
        // Nobody accepts these; they wait in the kernel, which has promised them an answer.
        let mut waiting: Vec<TcpStream> = (0..20).map(|_| connect(address)).collect();
        for stream in &mut waiting {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        }
        let killed = Instant::now();
        signal("KILL", worker);
        assert_eq!(status(&read_response(&mut waiting[0])), 200, "round {round}");
        best = best.min(killed.elapsed());
        for stream in &mut waiting[1..] {
            assert_eq!(status(&read_response(stream)), 200, "round {round}");
        }
        wait_for("the crash to be told", || served.status()["processes"]["crashes"] == round + 1);
    }

    // No pause and no look taken now and then are in it, only what the first worker was begun with: as slow as the machine is.
    assert!(best < 2 * start, "the quickest took {best:?}, a start {start:?}");
    assert!(served.events().contains("a worker has ended unasked"), "{}", served.events());
}

#[test]
fn a_worker_that_aborts_as_without_memory_or_ends_by_a_fault_is_followed_too() {
    let backend = ok();
    let served = Served::start(&to(backend.address, ""));

    for (crashes, name) in [(1, "ABRT"), (2, "ILL")] {
        signal(name, served.worker());
        wait_for("another one", || served.status()["processes"]["crashes"] == crashes);
        assert_eq!(get(served.address(0)), 200, "{name}");
        assert!(served.events().contains(&format!("ended by SIG{name}")), "{}", served.events());
    }
}

#[test]
fn workers_that_keep_dying_are_begun_slower_and_slower_and_it_is_reported() {
    let backend = ok();
    let served = Served::start(&to(backend.address, ""));
    let address = served.address(0);

    for crash in 1..=6_u64 {
        signal("KILL", served.worker());
        wait_for("another worker", || served.status()["processes"]["crashes"].as_u64() >= Some(crash));
    }

    let events = served.events();
    let pauses: Vec<_> = events.lines().filter_map(|line| line.split("next_in=").nth(1)).collect();
    assert_eq!(pauses[..6], ["0ns", "0ns", "0ns", "100ms", "200ms", "400ms"], "{events}");
    assert!(served.order(&["status"]).contains("workers ended unasked: 6"));
    assert_eq!(get(address), 200);
}

#[test]
fn a_request_in_a_killed_worker_is_the_only_one_that_is_lost() {
    let held = Held::start();
    let served = Served::start(&to(held.backend.address, ""));
    let address = served.address(0);
    let mut inside = connect(address);
    inside.write_all(b"GET /inside HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(held.next(), "/inside");

    signal("KILL", served.worker());

    let mut rest = Vec::new();
    drop(inside.read_to_end(&mut rest));
    assert_eq!(rest, b"", "cut off");
    let asked = thread::spawn(move || get(address));
    held.answer();
    assert_eq!(held.next(), "/");
    held.answer();
    assert_eq!(asked.join().unwrap(), 200);
}

#[test]
fn a_pid_file_names_the_keeper_and_goes_with_it() {
    let backend = ok();
    let place = folder();
    let file = place.path().join("vestibule.pid");
    let mut served = Served::start_in(place, &to(backend.address, ""), |command| {
        command.arg("--pid-file").arg(&file);
    });

    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", served.child.id()));
    served.order(&["upgrade"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", served.child.id()));
    served.signal("TERM");
    assert_eq!(served.ended().code(), Some(0));
    assert!(!file.exists());
}

#[test]
fn files_that_the_application_names_come_from_their_folders_though_the_configuration_is_roots_alone() {
    if !is_root() {
        return;
    }
    let place = folder();
    let files = place.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("page.txt"), "page").unwrap();
    // Where certbot keeps keys, and who runs a worker cannot look.
    let private = place.path().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    clients::certificate(&private, "site", &["site.example"]);
    let backend = Backend::replying(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Sendfile: {}/page.txt\r\n\r\n",
        files.display()
    ));
    let text = to(backend.address, &clients::tls(&["private/site"]))
        .replace("upstream: app }", "upstream: app, files: ['{dir}/files'] }")
        .replace("'127.0.0.1:0' }", "'127.0.0.1:0' }, { address: '127.0.0.1:0', tls: true }");
    let served = Served::start_in(place, &text, |_| {});

    let mut stream = connect(served.address(0));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let answer = read_response(&mut stream);

    assert!(answer.ends_with("page"), "{answer}\n{}", served.events());
    assert_eq!(header(&answer, "x-sendfile"), None);
}
