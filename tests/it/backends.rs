//! Programs of ours: begun, looked after, replaced and ended, with real application servers and whatever ends them.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    service_managers::{begin_by, of_service},
    support::{
        body, connect, header, patiently, program,
        served::{Served, folder, signal},
        status,
    },
};

const APPLICATION: &str = include_str!("support/application.py");

/// A gateway before `backend`, further keys of which are `keys`; its application is in the folder.
fn serve(command: &str, keys: &str) -> Served {
    let folder = folder();
    fs::write(folder.path().join("application.py"), APPLICATION).unwrap();
    Served::start_in(folder, &configuration(command, keys, ""), |_| {})
}

fn configuration(command: &str, keys: &str, upstream: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         backends: {{ app: {{ command: {command}, directory: '{{dir}}', {keys} }} }}\n\
         upstreams: {{ app: {{ backend: app, {upstream} }} }}\n\
         routes: [{{ prefix: /, upstream: app, timeout: 2s }}]\n"
    )
}

const GUNICORN: &str =
    "[gunicorn, --bind, 'unix:{socket}', --worker-class, gthread, --threads, '4', 'application:application']";
const GUNICORN_ON_A_PORT: &str =
    "[gunicorn, --bind, '127.0.0.1:{port}', --worker-class, gthread, --threads, '4', 'application:application']";
const UWSGI: &str = "[uwsgi, --plugin, python3, --master, --die-on-term, --need-app, --enable-threads, --threads, '4', --listen, \
                     '100', --wsgi-file, application.py, --chmod-socket=666, --socket, '{socket}']";

fn answer(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = connect(address);
    let sent = if method == "POST" { "Content-Length: 4\r\n\r\nbody" } else { "\r\n" };
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{sent}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: SocketAddr, path: &str) -> u16 {
    status(&answer(address, "GET", path))
}

fn backend(served: &Served) -> Value {
    served.status()["processes"]["backends"][0].clone()
}

fn instances(served: &Served, state: &str) -> Vec<(u32, u32)> {
    let instances = backend(served)["instances"].as_array().cloned().unwrap_or_default();
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let of = instances.iter().filter(|instance| instance["state"] == state);
    of.map(|instance| (number(&instance["id"]), number(&instance["pid"]))).collect()
}

fn serving(served: &Served, count: usize) -> Vec<(u32, u32)> {
    patiently(&format!("{count} to serve"), || instances(served, "serving").len() == count);
    instances(served, "serving")
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Processes whose command line has `text` in it.
fn named(text: &str) -> Vec<u32> {
    let own = std::process::id();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let has = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(text));
    pids.filter(|pid| *pid != own && has(pid) && lives(*pid)).collect()
}

/// Clients that ask without a pause, and how many of their requests were answered otherwise than 200.
struct Load {
    stopped: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<Vec<String>>>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    fn on(address: SocketAddr, methods: &[&'static str]) -> Self {
        let (stopped, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |method: &'static str| {
            let (stopped, answered) = (Arc::clone(&stopped), Arc::clone(&answered));
            thread::spawn(move || {
                let mut failed = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let answer = answer(address, method, "/x");
                    answered.fetch_add(1, Ordering::Relaxed);
                    if status(&answer) != 200 {
                        failed.push(format!("{method}: {}", answer.lines().next().unwrap_or_default()));
                    }
                    thread::park_timeout(Duration::from_millis(5));
                }
                failed
            })
        };
        let clients = methods.iter().map(|method| client(method)).collect();
        let load = Self { stopped, clients, answered };
        load.goes_on();
        load
    }

    /// Waits for another fifty answers.
    fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        patiently("answers under load", || self.answered.load(Ordering::Relaxed) > before + 50);
    }

    fn failed(self) -> Vec<String> {
        self.stopped.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

#[test]
fn application_servers_are_begun_on_sockets_and_ports_and_what_they_say_is_in_the_log() {
    for (name, command, keys, protocol) in [
        ("gunicorn", GUNICORN, "instances: 2", "http"),
        ("gunicorn", GUNICORN_ON_A_PORT, "instances: 2, port: auto, ready: { path: /health_check }", "http"),
        ("uwsgi", UWSGI, "environment: { COLOUR: '{socket} blue' }", "uwsgi"),
    ] {
        if program(name).is_none() {
            return;
        }
        let place = folder();
        fs::write(place.path().join("application.py"), APPLICATION).unwrap();
        let text = configuration(command, keys, &format!("protocol: {protocol}"));
        let served = Served::start_in(place, &text, |_| {});

        // Before one is ready a request waits.
        let answer = answer(served.address(0), "GET", "/x");

        assert_eq!(status(&answer), 200, "{answer}\n{}", served.events());
        assert!(body(&answer).contains("PATH_INFO"), "{answer}");
        let count = if keys.contains("instances: 2") { 2 } else { 1 };
        for (_, pid) in serving(&served, count) {
            assert!(lives(pid));
        }
        assert!(
            served.events().contains("backend=\"app\"") || served.events().contains("backend=app"),
            "{}",
            served.events()
        );
        let said = served.order(&["status"]);
        assert!(said.contains("backends\n  app: 0 failures") && said.contains("serving"), "{said}");
        patiently("what they use", || backend(&served)["instances"][0]["memory"].as_u64() > Some(1 << 20));
        let metrics = served.get("admin.sock", "/metrics");
        assert!(
            metrics.contains(&format!("vestibule_backend_instances{{backend=\"app\",state=\"serving\"}} {count}")),
            "{metrics}"
        );
    }
}

#[test]
fn a_program_has_its_user_its_own_environment_and_little_of_ours() {
    let script = "env | sort | sed \"s/^/has /\"; id -un | sed \"s/^/is /\"; pwd | sed \"s/^/in /\"; exec sleep 1000";
    let served = serve(&format!("[sh, -c, '{script}']"), "environment: { SECRET_COLOUR: 'blue ${BLUE:-sky}' }");

    patiently("what it says", || served.events().contains("in /"));

    let events = served.events();
    assert!(events.contains("has SECRET_COLOUR=blue sky") && events.contains("has SOCKET=/"), "{events}");
    assert!(!events.contains("has CARGO"), "{events}");
    assert!(!served.get("admin.sock", "/config").contains("blue"));
    if rustix::process::geteuid().is_root() {
        assert!(events.contains("is www-data"), "{events}");
    }
}

#[test]
fn what_is_in_the_environment_of_a_program_is_not_obeyed_by_us() {
    let served = serve(
        "[sh, -c, 'echo begun; while true; do sleep 1000; done']",
        "environment: { LD_PRELOAD: /no/such/library.so, PATH: '/usr/bin:/bin' }",
    );
    patiently("its output", || served.events().contains("begun"));
    patiently("its number", || instances(&served, "starting").first().is_some_and(|(_, pid)| *pid != 0));
    let [(_, pid)] = instances(&served, "starting")[..] else { panic!("one") };
    let guard = parent(pid);

    let of = |pid: u32| fs::read(format!("/proc/{pid}/environ")).unwrap();

    let has = |environment: &[u8], text: &str| String::from_utf8_lossy(environment).contains(text);
    assert!(has(&of(pid), "LD_PRELOAD=/no/such/library.so"));
    assert_eq!(of(guard), b"");
    let line = fs::read(format!("/proc/{guard}/cmdline")).unwrap();
    assert!(has(&line, "backend-guard") && !has(&line, "library"), "no secret is in a command line");
}

#[test]
fn nothing_of_a_program_outlives_us_however_we_end() {
    for how in ["KILL", "TERM"] {
        let mark = format!("{}{}", 7_000_000 + std::process::id(), how.len());
        // One that leaves group and session, one that does not hear, one that is left by its parent.
        let script = format!(
            "setsid sleep {mark} & (sleep {mark} &) ; trap \"\" TERM; echo begun; while true; do sleep {mark}; done"
        );
        let mut served = serve(&format!("[sh, -c, '{script}']"), "stop: { timeout: 300ms }");
        patiently("all of it", || served.events().contains("begun") && named(&mark).len() >= 5);

        served.signal(how);
        served.ended();

        patiently("the end of all of it", || named(&mark).is_empty());
    }
}

#[test]
fn told_to_stop_again_we_wait_for_no_program() {
    let mark = format!("{}", 8_000_000 + std::process::id());
    let script = format!("trap \"\" TERM; setsid sleep {mark} & echo begun; while true; do sleep {mark}; done");
    let mut served = serve(&format!("[sh, -c, '{script}']"), "stop: { timeout: 10m }");
    patiently("all of it", || served.events().contains("begun") && named(&mark).len() >= 3);

    patiently("the end of all of it", || {
        served.signal("TERM");
        named(&mark).is_empty()
    });

    served.ended();
    assert!(served.events().contains("are killed"), "{}", served.events());
}

#[test]
fn a_program_that_writes_without_end_waits_for_the_log() {
    let begun = std::time::Instant::now();
    let served = serve("[yes, over and over]", "");
    patiently("a second of it", || served.events().matches("over and over").count() > 1000);

    let lines = served.events().matches("over and over").count();

    assert!(lines as u64 <= 1000 * (begun.elapsed().as_secs() + 2), "{lines} lines");
}

#[test]
fn killed_at_whatever_moment_of_the_start_we_leave_nothing() {
    let mark = format!("{}", 6_000_000 + std::process::id());
    let text = configuration(&format!("[sleep, '{mark}']"), "instances: 3", "");
    let program = std::path::PathBuf::from(env!("CARGO_BIN_EXE_vestibule"));
    for moment in 0..15 {
        let mut served = Served::spawn(folder(), &program, &text, |_| {});
        thread::park_timeout(Duration::from_millis(moment * 10));
        served.signal("KILL");
        served.ended();
    }

    patiently("the end of all of it", || named(&mark).is_empty());
}

#[test]
fn a_killed_guard_takes_its_program_along_and_another_one_is_begun() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve(GUNICORN, "");
    let [(id, pid)] = serving(&served, 1)[..] else { panic!("one") };
    let guard = parent(pid);
    let workers = crate::support::served::children(pid);

    signal("KILL", guard);

    patiently("another one", || matches!(instances(&served, "serving")[..], [(other, _)] if other != id));
    assert!(!lives(pid));
    patiently("the end of what it began", || !workers.iter().any(|worker| lives(*worker)));
    assert_eq!(get(served.address(0), "/x"), 200);
}

#[test]
fn an_instance_that_is_killed_under_load_costs_no_idempotent_request() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve(GUNICORN, "instances: 2");
    let before = serving(&served, 2);
    let load = Load::on(served.address(0), &["GET"; 4]);

    signal("KILL", before[0].1);

    patiently("another one", || {
        let now = instances(&served, "serving");
        now.len() == 2 && !now.contains(&before[0])
    });
    load.goes_on();
    assert_eq!(load.failed(), Vec::<String>::new(), "{}", served.events());
    assert_eq!(backend(&served)["restarts"], 1);
    assert!(backend(&served)["last_exit"].as_str().unwrap().contains("SIGKILL"));
}

#[test]
fn a_restart_under_load_loses_nothing() {
    for (name, command, keys, protocol) in [
        ("gunicorn", GUNICORN, "", "http"),
        ("gunicorn", GUNICORN_ON_A_PORT, ", port: auto", "http"),
        ("uwsgi", UWSGI, "", "uwsgi"),
    ] {
        if program(name).is_none() {
            return;
        }
        let place = folder();
        fs::write(place.path().join("application.py"), APPLICATION).unwrap();
        let text = configuration(command, &format!("instances: 2{keys}"), &format!("protocol: {protocol}"));
        let served = Served::start_in(place, &text, |_| {});
        let before = serving(&served, 2);
        let load = Load::on(served.address(0), &["GET", "POST", "POST"]);

        let said = served.order(&["restart", "app"]);

        assert!(said.contains("app: 2 new serving"), "{said}");
        patiently("the end of those before", || before.iter().all(|(_, pid)| !lives(*pid)));
        load.goes_on();
        assert_eq!(load.failed(), Vec::<String>::new(), "{name}\n{}", served.events());
        assert!(serving(&served, 2).iter().all(|instance| !before.contains(instance)));
    }
}

#[test]
fn a_request_inside_an_instance_that_is_replaced_comes_to_its_end() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve(GUNICORN, "");
    let [(_, pid)] = serving(&served, 1)[..] else { panic!("one") };
    let address = served.address(0);
    let inside = thread::spawn(move || answer(address, "POST", "/slow?1.5"));
    patiently("a request inside", || served.status()["upstreams"][0]["in_flight"] == 1);

    served.order(&["restart", "app"]);

    assert!(lives(pid), "it has a request inside");
    assert_eq!(status(&inside.join().unwrap()), 200);
    patiently("its end", || !lives(pid));
}

#[test]
fn a_restart_that_fails_says_why_and_what_was_there_serves_on() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve(GUNICORN, "ready: { path: /x }");
    let before = serving(&served, 1);
    fs::write(served.path("application.py"), "raise SystemExit(3)").unwrap();

    let failed = served.run(&["restart", "app"]);

    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.contains("app: the new one failed") && said.contains("serve on"), "{said}");
    assert_eq!(get(served.address(0), "/x"), 200);
    assert_eq!(serving(&served, 1), before);
    let unknown = served.run(&["restart", "web"]);
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("there is no such backend"));
}

#[test]
fn one_that_fails_at_once_again_and_again_is_begun_more_and_more_rarely_and_not_told_for_ever() {
    let served = serve("[sh, -c, 'echo no luck; exit 3']", "");

    patiently("some failures", || backend(&served)["restarts"].as_u64() >= Some(7));

    let failing = backend(&served);
    assert_eq!((&failing["failing"], &failing["last_exit"]), (&Value::Bool(true), &Value::from("exit status 3")));
    let told = served.events().matches("an instance has failed").count();
    assert_eq!(told, 5, "{}", served.events());
    assert!(served.events().contains("no luck"));
    let said = served.order(&["status"]);
    assert!(said.contains("FAILS AGAIN AND AGAIN"), "{said}");

    let refused = served.run(&["restart", "app"]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("the new one failed (exit status 3)"));

    let absent = serve("[/no/such/program]", "");
    patiently("its failure", || absent.events().contains("cannot run `/no/such/program`"));
}

#[test]
fn one_that_does_not_get_ready_in_time_is_ended_and_gets_no_request() {
    let served = serve("[sh, -c, 'sleep 1000']", "ready: { timeout: 200ms }");

    patiently("two of them", || backend(&served)["restarts"].as_u64() >= Some(2));

    let why = backend(&served)["last_exit"].as_str().unwrap().to_owned();
    assert!(why.contains("not ready within 200ms"), "{why}");
}

#[test]
fn instances_beyond_a_limit_are_replaced() {
    if program("gunicorn").is_none() {
        return;
    }
    for (limit, why) in
        [("requests: 20", "limits.requests"), ("memory: 4MiB", "limits.memory"), ("age: 1s", "limits.age")]
    {
        let served = serve(GUNICORN, &format!("limits: {{ {limit} }}"));
        let before = serving(&served, 1);
        let load = Load::on(served.address(0), &["GET", "POST"]);

        patiently("another one", || matches!(instances(&served, "serving")[..], [other] if other != before[0]));

        load.goes_on();
        assert_eq!(load.failed(), Vec::<String>::new(), "{limit}\n{}", served.events());
        assert!(served.events().contains(why), "{}", served.events());
    }
}

#[test]
fn one_that_uses_the_processor_for_long_is_told_and_replaced_where_that_is_wanted() {
    let busy = "import os, socket\ns = socket.socket(socket.AF_UNIX)\ns.bind(os.environ['SOCKET'])\ns.listen()\nwhile True: pass\n";
    let place = folder();
    fs::write(place.path().join("busy.py"), busy).unwrap();
    let keys = "limits: { cpu: 20, cpu_time: 1s, cpu_restart: true }";
    let served = Served::start_in(place, &configuration("[python3, busy.py]", keys, ""), |_| {});
    let before = serving(&served, 1);

    patiently("another one", || matches!(instances(&served, "serving")[..], [other] if other != before[0]));

    assert!(served.events().contains("uses more of the processors"), "{}", served.events());
}

#[test]
fn a_hung_instance_is_replaced() {
    if program("gunicorn").is_none() {
        return;
    }
    // By missed deadlines of requests.
    let served = serve(GUNICORN, "hung: 2");
    let before = serving(&served, 1);
    for pid in crate::support::served::children(before[0].1) {
        signal("STOP", pid);
    }
    let address = served.address(0);
    assert_eq!(get(address, "/x"), 504);
    assert_eq!(get(address, "/x"), 504);

    patiently("another one", || matches!(instances(&served, "serving")[..], [other] if other != before[0]));

    assert_eq!(get(address, "/x"), 200);
    assert!(served.events().contains("an instance hangs"), "{}", served.events());
}

#[test]
fn a_reload_replaces_what_has_changed_and_nothing_else() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve(GUNICORN, "");
    let before = serving(&served, 1);

    served.apply(&format!("{}drain: 5s\n", configuration(GUNICORN, "", "")));
    assert_eq!(serving(&served, 1), before);

    served.apply(&format!("{}drain: 5s\n", configuration(GUNICORN, "instances: 2", "")));
    assert!(serving(&served, 2).contains(&before[0]), "more of them");

    let load = Load::on(served.address(0), &["GET", "POST"]);
    served.apply(&format!("{}drain: 5s\n", configuration(GUNICORN, "instances: 2, environment: { A: b }", "")));
    patiently("others", || {
        let now = instances(&served, "serving");
        now.len() == 2 && !now.contains(&before[0]) && !lives(before[0].1)
    });
    assert_eq!(load.failed(), Vec::<String>::new(), "{}", served.events());
}

#[test]
fn an_upgrade_keeps_the_instances_and_looks_after_them() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve(GUNICORN, "instances: 2");
    let before = serving(&served, 2);
    let load = Load::on(served.address(0), &["GET", "POST"]);

    served.order(&["upgrade"]);

    assert_eq!(serving(&served, 2), before);
    load.goes_on();
    assert_eq!(load.failed(), Vec::<String>::new(), "{}", served.events());
    signal("KILL", before[0].1);
    patiently("another one", || {
        let now = instances(&served, "serving");
        now.len() == 2 && !now.contains(&before[0])
    });
    served.signal("TERM");
    patiently("the end of all", || !lives(before[1].1));
}

/// A gateway whose clients stay by a cookie, before one version of an application that says which it is.
fn serve_versions(keys: &str) -> Served {
    let folder = folder();
    write_version(folder.path(), "one");
    Served::start_in(folder, &configuration(GUNICORN, keys, "").replace("2s }", "2s, stick: cookie }"), |_| {})
}

fn write_version(folder: &std::path::Path, version: &str) {
    let text = format!(
        "def application(environ, start_response):\n    \
             environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))\n    \
             start_response('200 OK', [('Content-Length', str(len('{version}')))])\n    \
             return [b'{version}']\n"
    );
    // At once, and with another name of what Python makes of it: it goes by seconds.
    fs::remove_dir_all(folder.join("__pycache__")).ok();
    fs::write(folder.join("application.py"), text).unwrap();
}

/// The version that answers a client with this cookie, and the cookie that it has afterwards.
fn version(address: SocketAddr, method: &str, cookie: &str) -> (String, String) {
    let answer = answer(address, method, &format!("/ HTTP/1.1\r\nCookie: {cookie}\r\nX-Rest:"));
    assert_eq!(status(&answer), 200, "{answer}");
    let set = header(&answer, "set-cookie").map(|set| set.split(';').next().unwrap().to_owned());
    (body(&answer), set.unwrap_or_else(|| cookie.to_owned()))
}

#[test]
fn after_a_restart_sessions_stay_with_the_version_they_began_with_until_they_are_idle() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve_versions("instances: 2, drain_sessions: 3s");
    let before = serving(&served, 2);
    let address = served.address(0);
    let (first, cookie) = version(address, "GET", "");
    assert_eq!(first, "one");
    let load = Load::on(address, &["GET", "POST"]);
    let stopped = Arc::new(AtomicBool::new(false));
    let client = thread::spawn({
        let (stopped, cookie) = (Arc::clone(&stopped), cookie.clone());
        move || {
            let mut others = Vec::new();
            for method in ["GET", "POST"].iter().cycle().take_while(|_| !stopped.load(Ordering::Relaxed)) {
                let answer = version(address, method, &cookie);
                others.extend((answer != ("one".to_owned(), cookie.clone())).then_some((method, answer)));
                thread::park_timeout(Duration::from_millis(20));
            }
            others
        }
    });
    write_version(&served.path(""), "two");

    let said = served.order(&["restart", "app"]);

    assert!(said.contains("app: 2 new serving; ") && said.contains("of before stay for their sessions"), "{said}");
    for method in ["GET", "POST", "GET", "POST"] {
        assert_eq!(version(address, method, "").0, "two", "a new client");
    }
    patiently("the end of the one that nobody stays with", || instances(&served, "lingering").len() == 1);
    load.goes_on();
    stopped.store(true, Ordering::Relaxed);
    assert_eq!(client.join().unwrap(), [], "the client stays");
    patiently("the end of those before", || before.iter().all(|(_, pid)| !lives(*pid)));
    assert_eq!(version(address, "POST", &cookie).0, "two");
    assert_eq!(load.failed(), Vec::<String>::new(), "{}", served.events());
}

#[test]
fn of_several_restarts_only_the_last_one_leaves_an_instance_for_its_sessions() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve_versions("drain_sessions: 30m");
    let first = serving(&served, 1);
    let address = served.address(0);
    let (_, cookie) = version(address, "GET", "");
    write_version(&served.path(""), "two");
    served.order(&["restart", "app"]);
    assert_eq!(instances(&served, "lingering"), first);
    assert!(served.order(&["status"]).contains("stays for its sessions since"));
    served.order(&["upgrade"]);
    assert_eq!(instances(&served, "lingering"), first);
    assert_eq!(version(address, "POST", &cookie), ("one".to_owned(), cookie.clone()));
    let second = serving(&served, 1);
    write_version(&served.path(""), "three");

    served.order(&["restart", "app"]);

    assert_eq!(instances(&served, "lingering"), second);
    assert_eq!(version(address, "POST", &cookie).0, "three");
    patiently("the end of the first", || !lives(first[0].1));
    served.signal("TERM");
    patiently("the end of the second", || !lives(second[0].1));
}

#[test]
fn one_that_hangs_stays_for_no_sessions() {
    if program("gunicorn").is_none() {
        return;
    }
    let served = serve_versions("drain_sessions: 30m, hung: 1");
    let first = serving(&served, 1);
    let address = served.address(0);
    let (_, cookie) = version(address, "GET", "");
    write_version(&served.path(""), "two");
    served.order(&["restart", "app"]);
    for pid in crate::support::served::children(first[0].1) {
        signal("STOP", pid);
    }

    let refused = answer(address, "POST", &format!("/ HTTP/1.1\r\nCookie: {cookie}\r\nX-Rest:"));

    assert_eq!(status(&refused), 504, "{refused}");
    patiently("its end", || instances(&served, "lingering").is_empty());
    assert_eq!(version(address, "POST", &cookie).0, "two");
    assert!(served.events().contains("that stayed for its sessions hangs"), "{}", served.events());
}

#[test]
fn sessions_without_a_route_with_cookies_are_refused() {
    let served = serve("[sleep, '1000']", "");
    served.rewrite(&configuration("[sleep, '1000']", "drain_sessions: 30m", ""));

    let refused = served.run(&["check"]);

    let said = String::from_utf8(refused.stdout).unwrap();
    assert!(said.contains("backends.app.drain_sessions: no route with `stick: cookie` leads to it"), "{said}");
}

#[test]
fn in_one_process_and_without_root_it_is_the_same() {
    if program("gunicorn").is_none() {
        return;
    }
    let place = folder();
    fs::write(place.path().join("application.py"), APPLICATION).unwrap();
    let text = configuration(GUNICORN, "", "");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(place.path(), Some(65534), Some(65534)).unwrap();
    }
    let mut served = Served::start_in(place, &text, |command| {
        use std::os::unix::process::CommandExt;
        command.arg("--single");
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
    });
    let [(_, pid)] = serving(&served, 1)[..] else { panic!("one") };

    assert_eq!(get(served.address(0), "/x"), 200);
    let refused = format!("{}drain: 5s\n", configuration(GUNICORN, "user: root", ""));
    served.rewrite(&refused);
    let said = String::from_utf8(served.run(&["reload"]).stderr).unwrap();
    assert!(said.contains("backends.app.user: only root can run"), "{said}");
    signal("KILL", served.pid());
    served.ended();
    patiently("its end", || !lives(pid));
}

#[test]
fn root_runs_no_program_unless_it_is_said_for_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let served = serve("[sleep, '1000']", "");
    served.rewrite(&format!("{}user: root\n", configuration("[sleep, '1000']", "", "")));

    let refused = served.run(&["check"]);

    let said = String::from_utf8(refused.stdout).unwrap();
    assert!(said.contains("backends.app.user") && said.contains("say `root` here as well"), "{said}");
}

#[test]
fn the_capabilities_of_the_sample_unit_are_enough_for_programs() {
    if !rustix::process::geteuid().is_root() || program("setpriv").is_none() {
        return;
    }
    let capabilities: Vec<_> = of_service("CapabilityBoundingSet")
        .split_whitespace()
        .map(|name| format!("+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let set = format!("--bounding-set=-all,{}", capabilities.join(","));
    let script = "import os, socket, time; s = socket.socket(socket.AF_UNIX); s.bind(os.environ[\"SOCKET\"]); s.listen(); \
                  time.sleep(1000)";
    let place = folder();
    let dir = place.path().to_owned();
    let mut served =
        Served::start_in(place, &configuration(&format!("[python3, -c, '{script}']"), "", ""), |command| {
            let ours = ["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"];
            begin_by(command, &dir, &["setpriv", "--no-new-privs", &set, ours[0], ours[1]]);
        });

    let [(_, pid)] = serving(&served, 1)[..] else { panic!("one") };
    let has = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for none in ["CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "CapPrm:\t0000000000000000"] {
        assert!(has.contains(none), "{has}");
    }
    let sockets = format!("/run/vestibule-backends-{}", served.pid());
    assert!(fs::exists(&sockets).unwrap());
    served.order(&["restart", "app"]);
    patiently("its end", || !lives(pid));
    let [(_, pid)] = serving(&served, 1)[..] else { panic!("one") };
    served.signal("TERM");
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
    assert!(!lives(pid) && !fs::exists(&sockets).unwrap(), "{}", served.events());
}
