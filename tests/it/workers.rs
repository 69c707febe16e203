//! The workers of a real uWSGI: how many there are, and who of those that wait gets to them.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    TestGateway,
    applications::{Uwsgi, application_at},
    body, connect, patiently,
    served::{self, Served},
    status, wait_for,
};

/// Places that there are in the one upstream.
fn places(gateway: &TestGateway) -> Option<usize> {
    gateway.gateway().current.load().upstreams["app"].queue.concurrency()
}

fn following(uwsgi: &Uwsgi, folder: &Path) -> String {
    let stats = folder.join("stats.sock");
    application_at(uwsgi.tcp, &format!("protocol: uwsgi, concurrency: auto, stats: 'unix:{}'", stats.display()), "")
}

#[test]
fn as_many_are_let_in_as_there_are_threads_of_workers_and_what_was_known_last_holds() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--stats", "stats.sock", "--workers", "2", "--threads", "3"];
    let Some(uwsgi) = Uwsgi::start(folder.path(), &options) else { return };
    let (files, configuration) = (folder.path().to_owned(), following(&uwsgi, folder.path()));
    let gateway = TestGateway::start_in(folder, &configuration);
    let stats = || gateway.gateway().current.load().upstreams["app"].stats.clone().unwrap();

    // Before anything could be read.
    assert!([Some(4), Some(6)].contains(&places(&gateway)), "{:?}", places(&gateway));
    wait_for("the workers to be known", || places(&gateway) == Some(6));
    let workers = stats().last().unwrap();
    assert_eq!((workers.workers, workers.threads, workers.exceptions), (2, 6, 0));
    // uWSGI says nothing and closes, so that it is sent again.
    assert_eq!(gateway.get("/raise").0, 502);
    wait_for("the exception to be known", || stats().last().unwrap().exceptions > 0);

    drop(uwsgi);
    wait_for("the loss to be known", || stats().unread().is_some_and(|(_, why)| why.contains("cannot connect to")));
    assert_eq!(places(&gateway), Some(6));

    let options = ["--stats", "stats.sock", "--workers", "1", "--threads", "2"];
    let _uwsgi = Uwsgi::start(&files, &options);
    wait_for("the new workers to be known", || places(&gateway) == Some(2));
    assert_eq!(stats().unread(), None);
}

#[test]
fn workers_that_cheaper_starts_and_stops_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        ["--stats", "stats.sock", "--workers", "4", "--threads", "2", "--cheaper", "1", "--cheaper-overload", "1"];
    let Some(uwsgi) = Uwsgi::start(folder.path(), &options) else { return };
    let configuration = following(&uwsgi, folder.path());
    fs::write(folder.path().join("hold"), "").unwrap();
    let gateway = TestGateway::start_in(folder, &configuration);
    wait_for("the one worker to be known", || places(&gateway) == Some(2));

    let address = gateway.address(0);
    let clients: Vec<_> = (0..16)
        .map(|number| {
            let mut client = connect(address);
            client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            write!(client, "GET /note?{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            client
        })
        .collect();
    patiently("all workers to be started", || places(&gateway) == Some(8));
    fs::remove_file(gateway.folder.path().join("hold")).unwrap();

    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(status(&answer), 200, "{answer}");
    }
    patiently("workers to be stopped", || places(&gateway).unwrap() < 8);
}

/// The served gateway and its application's six threads, all of which are held until [`release`].
fn six_threads(queue: &str) -> Option<(Served, Uwsgi)> {
    let folder = served::folder();
    let options =
        ["--stats", "stats.sock", "--chmod-socket=666", "--threads", "6", "--listen", "100", "--disable-logging"];
    let uwsgi = Uwsgi::start(folder.path(), &options)?;
    fs::write(folder.path().join("hold"), "").unwrap();
    let served = Served::start_in(folder, &before_six_threads(&uwsgi, queue), |_| {});
    wait_for("the workers to be known", || upstream_of(&served)["concurrency"] == 6);
    Some((served, uwsgi))
}

fn before_six_threads(uwsgi: &Uwsgi, queue: &str) -> String {
    let upstream = format!("protocol: uwsgi, concurrency: auto, stats: ['unix:{{dir}}/stats.sock'], queue: {queue}");
    application_at(uwsgi.tcp, &upstream, "")
        + "limits: { connections: 15000 }\ntrusted_proxies: [127.0.0.1]\ndrain: 1s\n"
}

fn release(served: &Served) {
    fs::remove_file(served.path("hold")).unwrap();
}

fn upstream_of(served: &Served) -> Value {
    served.status()["upstreams"][0].clone()
}

fn waiting(served: &Served) -> usize {
    usize::try_from(upstream_of(served)["queue_depth"].as_u64().unwrap()).unwrap()
}

fn asking(address: SocketAddr, target: &str, headers: &str) -> TcpStream {
    let mut client = connect(address);
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(client, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    client
}

fn answered(mut client: TcpStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_state_of_the_workers_is_told_to_whoever_looks_after_the_site() {
    let Some((served, uwsgi)) = six_threads("{ limit: 10 }") else { return };
    let clients: Vec<_> = (0..8).map(|number| asking(served.address(0), &format!("/note?{number}"), "")).collect();
    wait_for("the threads to be busy", || upstream_of(&served)["workers"]["busy"] == 6);

    let said = served.order(&["status"]);
    let metrics = served.get("admin.sock", "/metrics");

    assert!(said.contains("1 worker of uWSGI: 6 of 6 threads busy, 0 in its own queue, 0 exceptions\n"), "{said}");
    for line in ["workers{upstream=\"app\"} 1\n", "threads{upstream=\"app\"} 6\n", "busy{upstream=\"app\"} 6\n"] {
        assert!(metrics.contains(&format!("\nvestibule_uwsgi_{line}")), "{metrics}");
    }
    release(&served);
    for client in clients {
        assert_eq!(status(&answered(client)), 200);
    }
    drop(uwsgi);
    wait_for("the loss to be told", || upstream_of(&served)["stats_fault"].is_string());
    let said = served.order(&["status"]);
    assert!(
        said.contains("stats NOT READ for 0s: cannot connect to unix:") || said.contains("NOT READ for 1s"),
        "{said}"
    );
    assert_eq!(served.events().matches("the workers of uWSGI are not known").count(), 1, "{}", served.events());
}

#[test]
fn one_client_with_a_hundred_requests_does_not_keep_another_from_the_application() {
    let Some((served, _uwsgi)) = six_threads("{ limit: 512 }") else { return };
    let address = served.address(0);
    let many: Vec<_> = (0..106)
        .map(|number| asking(address, &format!("/note?{number}"), "X-Forwarded-For: 203.0.113.1\r\n"))
        .collect();
    wait_for("a hundred to wait", || waiting(&served) == 100);
    let one = asking(address, "/note?one", "X-Forwarded-For: 203.0.113.2\r\n");
    wait_for("one more to wait", || waiting(&served) == 101);
    let session = asking(address, "/note?session", "X-Forwarded-For: 203.0.113.1\r\nCookie: session=1\r\n");
    wait_for("another one to wait", || waiting(&served) == 102);

    release(&served);

    for client in many.into_iter().chain([one, session]) {
        assert_eq!(status(&answered(client)), 200);
    }
    let noted = body(&answered(asking(address, "/noted", "")));
    let noted: Vec<_> = noted.lines().collect();
    let place = |name| noted.iter().position(|noted| *noted == name).unwrap();
    // Behind the six that were inside, and those that came in at the same moment.
    assert!(place("session") < 18 && place("one") < 18, "{noted:?}");
}

#[test]
fn places_that_follow_the_workers_are_one_bound_while_a_process_leaves() {
    let Some((served, uwsgi)) = six_threads("{ limit: 512 }") else { return };
    let (address, known) = (served.address(0), served.status()["uptime_seconds"].as_u64());
    let mut clients: Vec<_> = (0..6).map(|number| asking(address, &format!("/note?{number}"), "")).collect();
    wait_for("the threads to be busy", || upstream_of(&served)["workers"]["busy"] == 6);
    wait_for("the keeper to be told, as it is each second", || {
        served.status()["uptime_seconds"].as_u64() > known.map(|known| known + 2)
    });

    // Takes another process.
    let another = before_six_threads(&uwsgi, "{ limit: 512 }") + "workers: 1\n";
    served.apply(&another);
    clients.extend((6..12).map(|number| asking(address, &format!("/note?{number}"), "")));
    wait_for("all of the others to wait", || waiting(&served) == 6);
    wait_for("the workers to be known to it", || upstream_of(&served)["concurrency"] == 6);
    assert_eq!(upstream_of(&served)["in_flight"], 0);
    release(&served);

    for client in clients {
        assert_eq!(status(&answered(client)), 200);
    }
    // And all of the places are its own now.
    fs::write(served.path("hold"), "").unwrap();
    let clients: Vec<_> = (12..19).map(|number| asking(address, &format!("/note?{number}"), "")).collect();
    wait_for("six to be inside", || upstream_of(&served)["in_flight"] == 6);
    wait_for("one to wait", || waiting(&served) == 1);
    release(&served);
    for client in clients {
        assert_eq!(status(&answered(client)), 200);
    }
}

/// In bytes.
fn memory(pid: u32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Everything of one request that waits on a connection of its own: the connection's buffers, the request, the turn.
const WAITER: usize = 64 << 10;

#[test]
fn ten_thousand_wait_for_six_threads_in_order_and_little_memory_and_none_that_has_gone_gets_in() {
    const CLIENTS: usize = 20;
    const ALL: usize = 10_000;
    const AT_ONCE: usize = 5 * CLIENTS;
    let Some((served, _uwsgi)) = six_threads("{ limit: 20000, timeout: 2m }") else { return };
    let (address, worker) = (served.address(0), served.worker());
    let ask = |number: usize| {
        let (client, number) = (number % CLIENTS, number / CLIENTS);
        let from = IpAddr::from(Ipv4Addr::new(203, 0, 113, u8::try_from(client).unwrap()));
        asking(address, &format!("/note?{client}:{number}"), &format!("X-Forwarded-For: {from}\r\n"))
    };
    let mut clients = Vec::with_capacity(ALL);
    let mut before = 0;
    for number in 0..ALL {
        clients.push(ask(number));
        // Or one of the two traffic threads could be far behind the other, and the order of theirs not that of ours.
        if clients.len() % AT_ONCE == 0 {
            patiently("those before to wait", || waiting(&served) == clients.len() - 6);
        }
        if clients.len() == AT_ONCE {
            // What is needed once is there.
            before = memory(worker);
        }
    }
    let each = (memory(worker) - before) / (ALL - AT_ONCE);
    // Every tenth client but those inside gives up.
    let (gone, stay): (Vec<_>, Vec<_>) =
        clients.into_iter().enumerate().partition(|(number, _)| number % 10 == 0 && *number >= AT_ONCE);
    let gone: Vec<_> =
        gone.into_iter().map(|(number, _)| format!("{}:{}", number % CLIENTS, number / CLIENTS)).collect();
    wait_for("those to leave", || waiting(&served) == stay.len() - 6);
    release(&served);

    eprintln!("{each} bytes for each that waits");
    assert!(each < WAITER, "{each} bytes for each that waits");
    let reading = stay.into_iter().map(|(_, client)| client);
    let statuses = thread::spawn(move || reading.map(|client| status(&answered(client))).collect::<Vec<_>>());
    assert!(statuses.join().unwrap().into_iter().all(|status| status == 200));
    let noted = body(&answered(asking(address, "/noted", "")));
    let noted: Vec<_> = noted.lines().collect();
    assert_eq!(noted.len(), ALL - gone.len());
    assert!(gone.iter().all(|gone| !noted.contains(&gone.as_str())), "whoever had gone was let in");
    let mut last = HashMap::new();
    for noted in noted {
        let (client, number) = noted.split_once(':').unwrap();
        let number: usize = number.parse().unwrap();
        let last = last.entry(client).or_insert(0);
        // Of those asked for at once whichever was read first, and of the six inside whichever was noted first.
        assert!(number + AT_ONCE / CLIENTS + 6 > *last, "{client}: {number} after {last}");
        *last = number.max(*last);
    }
}
