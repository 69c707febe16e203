//! Programs of a real supervisord behind upstreams: what is known of them, what clients see of it, and restarts.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use tokio_tungstenite::tungstenite::{self, Message, protocol::frame::coding::CloseCode};

use crate::{
    service_managers::{free_port, lives},
    support::{
        PATIENCE, Peer, connect, header, ok, patiently, program,
        served::{self, Served, signal},
        status, wait_for,
    },
    websockets::websocket,
    wsgi::pause,
};

/// A supervisord and what it runs.
struct Supervisord {
    _peer: Peer,
    folder: std::path::PathBuf,
    /// Where it speaks over TCP.
    tcp: SocketAddr,
}

impl Supervisord {
    /// With `programs`, in which `{dir}` is `folder`, and `secrets` for TCP. `None` where it is not installed.
    fn start(folder: &Path, tcp: SocketAddr, secrets: &str, programs: &str) -> Option<Self> {
        let supervisord = program("supervisord")?;
        let user = if rustix::process::geteuid().is_root() { "user=root\n" } else { "" };
        let text = format!(
            "[unix_http_server]\nfile={{dir}}/supervisor.sock\nchmod=0777\n\
             [inet_http_server]\nport={tcp}\n{secrets}\
             [supervisord]\nnodaemon=true\nlogfile={{dir}}/supervisord.log\npidfile={{dir}}/supervisord.pid\n\
             childlogdir={{dir}}\n{user}\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisorctl]\nserverurl=unix://{{dir}}/supervisor.sock\n{programs}"
        );
        let file = folder.join("supervisord.conf");
        fs::write(&file, text.replace("{dir}", folder.to_str().unwrap())).unwrap();
        let mut command = Command::new(supervisord);
        let peer = Peer::start(command.arg("-c").arg(&file), &folder.join("supervisord.out"));
        patiently("supervisord to listen", || TcpStream::connect(tcp).is_ok());
        Some(Self { _peer: peer, folder: folder.to_owned(), tcp })
    }

    fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program("supervisorctl").unwrap());
        let output = command.arg("-c").arg(self.folder.join("supervisord.conf")).args(arguments).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    fn pid(&self, program: &str) -> u32 {
        let mut pid = None;
        patiently("a pid", || {
            pid = self.control(&["pid", program]).trim().parse().ok().filter(|pid| *pid != 0);
            pid.is_some()
        });
        pid.unwrap()
    }
}

/// A program called `uwsgi` as docassemble has it, at `app.sock`. `None` where it is not installed.
fn uwsgi(folder: &Path, more: &str) -> Option<String> {
    let uwsgi = program("uwsgi")?;
    fs::write(folder.join("application.py"), include_str!("support/application.py")).unwrap();
    fs::write(folder.join("reload"), "").unwrap();
    Some(format!(
        "[program:uwsgi]\ndirectory={{dir}}\nstopsignal=QUIT\nstopasgroup=true\nkillasgroup=true\nstopwaitsecs=3\n\
         environment=PYTHONHOME=\"\"\nstdout_logfile={{dir}}/uwsgi.log\nredirect_stderr=true\n{more}\n\
         command={} --plugin python3 --master --need-app --enable-threads --single-interpreter --listen 100 \
         --buffer-size 32768 --wsgi-file application.py --socket app.sock --chmod-socket=666 --threads 4 \
         --touch-reload reload --worker-reload-mercy 2\n",
        uwsgi.display()
    ))
}

/// A front door before `app.sock`, with `supervisor` for the program.
fn before(upstream: &str, supervisor: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ protocol: uwsgi, endpoints: ['unix:{{dir}}/app.sock'], {upstream} supervisor: {supervisor} }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n"
    )
}

const BY_SOCKET: &str = "{ program: uwsgi, address: 'unix:{dir}/supervisor.sock' }";

/// What `/status` says of the program behind the first upstream.
fn seen(served: &Served) -> Value {
    served.status()["upstreams"][0]["program"].clone()
}

fn until_is(served: &Served, state: &str) -> Value {
    let mut last = Value::Null;
    let end = Instant::now() + 3 * PATIENCE;
    while last["state"] != state {
        assert!(Instant::now() < end, "{last} and not {state}: {}", served.events());
        thread::park_timeout(Duration::from_millis(20));
        last = seen(served);
    }
    last
}

/// How often it was told.
fn told(served: &Served, what: &str) -> usize {
    served.events().matches(what).count()
}

/// `GET path`, and how long its answer took.
fn get(address: SocketAddr, path: &str) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = connect(address);
    stream.set_read_timeout(Some(4 * PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer, begun.elapsed())
}

#[test]
fn what_supervisord_says_is_in_the_status_the_log_and_on_the_page() {
    let folder = served::folder();
    let Some(programs) = uwsgi(folder.path(), "") else { return };
    let Some(supervisord) = Supervisord::start(folder.path(), free_port(), "", &programs) else { return };
    let served = Served::start_in(folder, &before("", BY_SOCKET), |_| {});
    let address = served.address(0);

    let running = until_is(&served, "RUNNING");
    assert_eq!((&running["name"], &running["pid"]), (&"uwsgi".into(), &supervisord.pid("uwsgi").into()));
    assert_eq!(status(&get(address, "/").0), 200);

    supervisord.control(&["stop", "uwsgi"]);
    let (answer, waited) = get(address, "/");
    assert_eq!(status(&answer), 503);
    assert!(waited < PATIENCE, "`hold` is 30 s, and nobody will start it: {waited:?}");
    assert!(header(&answer, "retry-after").is_some(), "{answer}");
    for said in
        ["The application is stopped", "<code>app (uwsgi)</code> was stopped by an operator, for less than a minute"]
    {
        assert!(answer.contains(said), "{answer}");
    }
    let said = served.order(&["status"]);
    assert!(said.contains("program uwsgi: STOPPED for"), "{said}");

    supervisord.control(&["start", "uwsgi"]);
    until_is(&served, "RUNNING");
    wait_for("the application", || status(&get(address, "/").0) == 200);
    assert_eq!(told(&served, "program is STOPPED"), 1, "{}", served.events());
    let before = supervisord.pid("uwsgi");
    let ordered = served.ask("admin.sock", "POST", "/restart/app");
    assert!(ordered.contains("uwsgi was restarted"), "{ordered}\n{}", served.events());
    assert_ne!(supervisord.pid("uwsgi"), before);
    assert_eq!(status(&served.ask("admin.sock", "POST", "/restart/nobody")), 404);
    assert_eq!(status(&served.get("admin.sock", "/restart/app")), 405);
    assert_eq!(seen(&served)["restarts"], 0, "it did not hang");
}

#[test]
fn a_program_that_cannot_be_started_is_told_once_and_clients_do_not_wait() {
    let folder = served::folder();
    let programs = "[program:uwsgi]\ncommand=sh -c 'exit 3'\nstartretries=0\n";
    let Some(_supervisord) = Supervisord::start(folder.path(), free_port(), "", programs) else { return };
    let supervisor = BY_SOCKET.replace(" }", ", restart: { after: 1 } }");
    let served = Served::start_in(folder, &before("health: { path: /health_check },", &supervisor), |_| {});

    let fatal = until_is(&served, "FATAL");
    assert!(fatal["why"].as_str().unwrap().contains("Exited too quickly"), "{fatal}");
    let (answer, waited) = get(served.address(0), "/");
    assert_eq!(status(&answer), 503);
    assert!(waited < PATIENCE, "{waited:?}");
    assert!(answer.contains("has failed to start; the administrator has to look at it"), "{answer}");
    patiently("some looks more", || seen(&served)["state_seconds"].as_u64() >= Some(5));
    assert_eq!(told(&served, "supervisord has given up"), 1, "{}", served.events());
    assert_eq!(seen(&served)["restarts"], 0, "startretries is respected");
}

#[test]
fn supervisord_may_want_a_password_come_late_and_go() {
    let (folder, tcp, backend) = (served::folder(), free_port(), ok());
    let to = |password: &str| {
        format!(
            "listeners: [{{ address: '127.0.0.1:0' }}]\n\
             upstreams: {{ app: {{ endpoints: ['{}'], supervisor: {{ program: 'web:a', address: '{tcp}', username: da, \
             password: {password} }} }} }}\nroutes: [{{ prefix: /, upstream: app }}]\n",
            backend.address
        )
    };
    let served = Served::start_in(folder, &to("wrong"), |_| {});
    let address = served.address(0);
    wait_for("a first look", || told(&served, "there is no supervisord here") == 1);
    assert_eq!(status(&get(address, "/").0), 200, "all is as without");
    assert_eq!(seen(&served)["state"], Value::Null);

    let programs = "[program:a]\ncommand=sleep 1000\n[group:web]\nprograms=a\n";
    let secrets = "username=da\npassword=s3cr3t\n";
    let Some(supervisord) = Supervisord::start(&served.path(""), tcp, secrets, programs) else { return };
    wait_for("a refusal", || told(&served, "wants a username and a password, or other ones") == 1);
    assert!(seen(&served)["why"].as_str().unwrap().contains("wants a username"));
    served.apply(&to("s3cr3t"));
    let running = until_is(&served, "RUNNING");
    assert_eq!(running["name"], "web:a");
    let shown = served.get("admin.sock", "/config");
    assert!(!shown.contains("s3cr3t") && !served.events().contains("s3cr3t"), "{shown}");
    assert_eq!(told(&served, "takes orders from"), 0, "it wants a password: {}", served.events());

    drop(supervisord);
    patiently("supervisord to be missed", || seen(&served)["state"].is_null());
    assert_eq!(status(&get(address, "/").0), 200);
    assert_eq!(told(&served, "there is no supervisord here"), 2, "{}", served.events());
}

#[test]
fn one_that_takes_orders_from_this_machine_is_noted_and_a_name_it_does_not_know() {
    let (folder, tcp, backend) = (served::folder(), free_port(), ok());
    let Some(supervisord) = Supervisord::start(folder.path(), tcp, "", "[program:a]\ncommand=sleep 1000\n") else {
        return;
    };
    let configuration = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{}'], supervisor: {{ program: b, address: '{}' }} }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n",
        backend.address, supervisord.tcp
    );
    let served = Served::start_in(folder, &configuration, |_| {});
    wait_for("the note", || told(&served, "takes orders from every program of this machine") == 1);
    wait_for("the warning", || told(&served, "supervisord does not know the program") == 1);
    let seen = seen(&served);
    assert!(seen["state"] == "UNKNOWN" && seen["why"].as_str().unwrap().contains("no program of this name"), "{seen}");
}

/// Stops the processes of uWSGI where they stand, as a deadlock does.
fn hang(supervisord: &Supervisord) -> u32 {
    let master = supervisord.pid("uwsgi");
    for pid in served::children(master).into_iter().chain([master]) {
        signal("STOP", pid);
    }
    master
}

#[test]
fn a_program_that_hangs_is_restarted_within_its_budget_and_then_left_alone() {
    let folder = served::folder();
    let Some(programs) = uwsgi(folder.path(), "") else { return };
    let Some(supervisord) = Supervisord::start(folder.path(), free_port(), "", &programs) else { return };
    let supervisor = BY_SOCKET.replace(" }", ", restart: { after: 2, at_most: 1, within: 1h } }");
    let upstream = "health: { path: /health_check, ready: '/health_check?ready=1' },";
    let served = Served::start_in(folder, &before(upstream, &supervisor), |_| {});
    let address = served.address(0);
    until_is(&served, "RUNNING");
    wait_for("the application", || status(&get(address, "/").0) == 200);

    let hanging = hang(&supervisord);
    let (answer, waited) = get(address, "/");
    eprintln!("a request to a program that hangs was answered after {waited:?}");
    assert_eq!(status(&answer), 200, "{answer}\n{}", served.events());
    assert!(!lives(hanging) && supervisord.pid("uwsgi") != hanging);
    patiently("the outcome", || seen(&served)["restarts"] == 1);
    assert_eq!(told(&served, "program hangs, and is restarted"), 1, "{}", served.events());
    assert!(served.order(&["status"]).contains("1 restart, the last one at"));
    let metrics = served.get("admin.sock", "/metrics");
    assert!(metrics.contains("vestibule_upstream_restarts_total{upstream=\"app\"} 1"), "{metrics}");

    let next = supervisord.pid("uwsgi");
    patiently("the new process to be known", || seen(&served)["pid"] == next);
    // One that has never answered may be starting, and would be given five minutes.
    assert_eq!(status(&get(address, "/").0), 200);
    let again = hang(&supervisord);
    patiently("to be told", || told(&served, "is left alone now") == 1);
    let age = seen(&served)["state_seconds"].as_u64().unwrap();
    patiently("some looks more", || seen(&served)["state_seconds"].as_u64() >= Some(age + 8));
    assert!(lives(again), "it is never a loop: {}", served.events());
    assert_eq!((seen(&served)["restarts"].clone(), told(&served, "is left alone now")), (1.into(), 1));
    supervisord.control(&["signal", "CONT", "uwsgi"]);
}

#[test]
fn requests_past_their_deadline_have_a_program_restarted_that_has_no_page_to_look_at() {
    let folder = served::folder();
    let Some(programs) = uwsgi(folder.path(), "") else { return };
    let Some(supervisord) = Supervisord::start(folder.path(), free_port(), "", &programs) else { return };
    let supervisor = BY_SOCKET.replace(" }", ", restart: { after: 2 } }");
    let configuration = before("", &supervisor).replace("upstream: app }]", "upstream: app, timeout: 1s }]");
    let served = Served::start_in(folder, &configuration, |_| {});
    let address = served.address(0);
    until_is(&served, "RUNNING");
    wait_for("the application", || status(&get(address, "/").0) == 200);

    hang(&supervisord);
    for _ in 0..2 {
        assert_eq!(status(&get(address, "/").0), 504);
    }
    patiently("the restart", || seen(&served)["restarts"] == 1);
    patiently("the application", || status(&get(address, "/").0) == 200);
}

/// A supervisord with a program whose child uses a processor while there is `burn`, and much memory; and a front door that
/// watches it.
fn running_away(watch: &str) -> Option<(Supervisord, Served)> {
    let (folder, python, backend) = (served::folder(), program("python3")?, ok());
    let text = "import os, time\nif os.fork(): os.wait()\nheld = bytearray(64 << 20)\nheld[::4096] = b'x' * len(held[::4096])\n\
                while True:\n    if not os.path.exists('burn'): time.sleep(0.05)\n";
    fs::write(folder.path().join("anything.py"), text).unwrap();
    let programs = format!(
        "[program:anything]\ndirectory={{dir}}\nstopasgroup=true\nkillasgroup=true\nstopwaitsecs=3\ncommand={} anything.py\n",
        python.display()
    );
    let supervisord = Supervisord::start(folder.path(), free_port(), "", &programs)?;
    let configuration = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{}'], supervisor: {{ program: anything, \
         address: 'unix:{{dir}}/supervisor.sock', {watch} }} }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n",
        backend.address
    );
    let served = Served::start_in(folder, &configuration, |_| {});
    until_is(&served, "RUNNING");
    Some((supervisord, served))
}

/// Some looks of five seconds each.
fn after_looks(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come");
        thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
fn a_program_that_runs_away_is_told_by_whatever_name_and_so_is_its_end() {
    let Some((supervisord, served)) = running_away("watch: { cpu: 20, time: 2s }") else { return };
    after_looks("a measure", || seen(&served)["memory"].as_u64() > Some(64 << 20));
    assert_eq!(seen(&served)["over"], Value::Null, "{}", served.events());
    let pid = supervisord.pid("anything");

    fs::write(served.path("burn"), "").unwrap();
    after_looks("word of it", || seen(&served)["over"].is_string());
    let said = seen(&served);
    assert!(said["over"].as_str().unwrap().contains("% of a processor, and not 20 %, for"), "{said}");
    assert!(served.order(&["status"]).contains("uses too much: "));
    let metrics = served.get("admin.sock", "/metrics");
    for name in ["memory_bytes", "cpu_percent"] {
        let series = format!("vestibule_program_{name}{{upstream=\"app\",program=\"anything\"}}");
        assert!(metrics.contains(&series), "{series} in {metrics}");
    }

    fs::remove_file(served.path("burn")).unwrap();
    after_looks("its end", || told(&served, "program uses no more than its `watch` allows again") == 1);
    assert_eq!(seen(&served)["over"], Value::Null);
    assert_eq!(told(&served, "program uses more than its `watch` allows"), 1, "once: {}", served.events());
    assert_eq!((supervisord.pid("anything"), &seen(&served)["restarts"]), (pid, &0.into()), "only reported");
}

#[test]
fn a_program_that_has_too_much_memory_is_restarted_within_its_budget_and_then_left_alone() {
    let watch = "watch: { memory: 32MiB, time: 1s, restart: true }, restart: { at_most: 1 }";
    let Some((supervisord, served)) = running_away(watch) else { return };
    let first = supervisord.pid("anything");

    after_looks("the restart", || seen(&served)["restarts"] == 1);
    let second = supervisord.pid("anything");
    assert!(!lives(first) && second != first);
    assert_eq!(told(&served, "program uses too much, and is restarted"), 1, "{}", served.events());
    let said = seen(&served);
    assert!(said["last_cause"].as_str().unwrap().contains("bytes of memory, and not 33554432, for"), "{said}");

    after_looks("to be told", || told(&served, "is left alone now") == 1);
    let age = seen(&served)["state_seconds"].as_u64().unwrap();
    after_looks("some looks more", || seen(&served)["state_seconds"].as_u64() >= Some(age + 8));
    assert_eq!(supervisord.pid("anything"), second, "it is never a loop: {}", served.events());
    assert_eq!(told(&served, "is left alone now"), 1);
}

/// What became of requests while something else happened.
#[derive(Debug, Default)]
struct Ledger {
    /// Answered with 200, of each method.
    gets: usize,
    posts: usize,
    /// What else `GET`s were answered with.
    failed: Vec<String>,
    /// `POST`s that were inside a worker which was ended, and may have been executed: 502.
    broken: usize,
    failed_posts: Vec<String>,
    longest: Duration,
}

fn is_post(number: u32) -> bool {
    number.is_multiple_of(3)
}

/// Fifty requests a second, every third a `POST`, each on a connection of its own, until `act` has ended and for a second
/// more.
fn under_load(address: SocketAddr, act: impl FnOnce()) -> Ledger {
    let over = AtomicBool::new(false);
    let ask = |number: u32| {
        let request = if is_post(number) {
            "POST /slow?0.02 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
        } else if number % 3 == 1 {
            "GET /slow?0.02 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        } else {
            "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        };
        let begun = Instant::now();
        let mut stream = connect(address);
        stream.set_read_timeout(Some(4 * PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (is_post(number), answer, begun.elapsed())
    };
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let (begun, mut clients) = (Instant::now(), Vec::new());
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                clients.push(scope.spawn(move || ask(number)));
                let next = begun + Duration::from_millis(20) * (number + 1);
                pause(next.saturating_duration_since(Instant::now()));
            }
            clients
        });
        pause(Duration::from_secs(1));
        act();
        pause(Duration::from_secs(1));
        over.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for client in clients.join().unwrap() {
            let (post, answer, waited) = client.join().unwrap();
            ledger.longest = ledger.longest.max(waited);
            match (post, status(&answer)) {
                (false, 200) => ledger.gets += 1,
                (true, 200) => ledger.posts += 1,
                (true, 502) => ledger.broken += 1,
                (true, _) => ledger.failed_posts.push(answer),
                (false, _) => ledger.failed.push(answer),
            }
        }
        ledger
    })
}

#[test]
fn a_restart_or_a_reload_of_the_program_under_load_fails_no_request_that_can_be_sent_again() {
    let folder = served::folder();
    let Some(programs) = uwsgi(folder.path(), "") else { return };
    let Some(supervisord) = Supervisord::start(folder.path(), free_port(), "", &programs) else { return };
    let reload = folder.path().join("reload");
    // As an application that has much to load.
    let application = format!("import time\ntime.sleep(2)\n{}", include_str!("support/application.py"));
    fs::write(folder.path().join("application.py"), application).unwrap();
    let upstream = "health: { path: /health_check, ready: '/health_check?ready=1' }, concurrency: 4,";
    let served = Served::start_in(folder, &before(upstream, BY_SOCKET), |_| {});
    let address = served.address(0);
    patiently("the application", || status(&get(address, "/").0) == 200);
    until_is(&served, "RUNNING");

    eprintln!("| while | GET 200 | GET failed | POST 200 | POST 502 | POST failed | longest |");
    let row = |what: &str, act: &dyn Fn()| {
        let ledger = under_load(address, act);
        let Ledger { gets, posts, failed, broken, failed_posts, longest } = &ledger;
        eprintln!(
            "| {what} | {gets} | {} | {posts} | {broken} | {} | {} ms |",
            failed.len(),
            failed_posts.len(),
            longest.as_millis()
        );
        assert!(failed.is_empty() && failed_posts.is_empty(), "{what}: {ledger:?}\n{}", served.events());
        ledger
    };
    row("supervisorctl restart uwsgi", &|| {
        assert!(supervisord.control(&["restart", "uwsgi"]).contains("uwsgi: started"));
    });
    row("supervisorctl stop uwsgi, then start", &|| {
        supervisord.control(&["stop", "uwsgi"]);
        supervisord.control(&["start", "uwsgi"]);
    });
    let ordered = row("POST /restart/app", &|| {
        let told = served.ask("admin.sock", "POST", "/restart/app");
        assert!(told.contains("uwsgi was restarted"), "{told}\n{}", served.events());
    });
    assert_eq!(ordered.broken, 0, "what is inside comes to its end before a restart of ours");
    row("supervisorctl signal KILL uwsgi", &|| {
        let before = supervisord.pid("uwsgi");
        supervisord.control(&["signal", "KILL", "uwsgi"]);
        patiently("the next one", || supervisord.pid("uwsgi") != before);
    });
    let loads = || fs::read_to_string(served.path("uwsgi.log")).unwrap().matches("spawned uWSGI worker 1").count();
    let reloaded = row("touch reload", &|| {
        let before = loads();
        let file = fs::File::options().write(true).open(&reload).unwrap();
        // It looks at whole seconds.
        file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
        patiently("uWSGI to reload", || loads() > before);
    });
    assert_eq!(reloaded.broken, 0, "a reload ends what it began");
}

/// A server of websockets that sends every short message back, and ends without a word.
const SOCKET_SERVER: &str = r#"
import base64, hashlib, socket, sys, threading

def serve(connection):
    stream = connection.makefile("rwb", buffering=0)
    key = None
    for line in iter(stream.readline, b"\r\n"):
        if line.lower().startswith(b"sec-websocket-key:"):
            key = line.split(b":")[1].strip()
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    stream.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    while True:
        head = stream.read(2)
        mask = stream.read(4)
        data = stream.read(head[1] & 0x7f)
        stream.write(bytes([head[0], len(data)]) + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"#;

#[test]
fn a_websocket_of_a_server_that_is_restarted_is_closed_with_1012_and_the_next_one_waits_for_it() {
    let (folder, port) = (served::folder(), free_port());
    let Some(python) = program("python3") else { return };
    fs::write(folder.path().join("server.py"), SOCKET_SERVER).unwrap();
    let programs = format!(
        "[program:websockets]\ndirectory={{dir}}\ncommand={} server.py {}\nstdout_logfile={{dir}}/ws.log\nredirect_stderr=true\n",
        python.display(),
        port.port()
    );
    let Some(supervisord) = Supervisord::start(folder.path(), free_port(), "", &programs) else { return };
    let configuration = before("", &BY_SOCKET.replace("uwsgi", "websockets"))
        .replace("unix:{dir}/app.sock", &port.to_string())
        .replace("protocol: uwsgi", "protocol: http");
    let served = Served::start_in(folder, &configuration, |_| {});
    let echo = |socket: &mut tungstenite::WebSocket<TcpStream>| {
        socket.send(Message::text("hello")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("hello"));
    };
    until_is(&served, "RUNNING");
    let mut sockets: Vec<_> = (0..5).map(|_| websocket(served.address(0))).collect();
    sockets.iter_mut().for_each(echo);

    supervisord.control(&["stop", "websockets"]);
    let restarting = thread::spawn(move || supervisord.control(&["start", "websockets"]));
    for mut socket in sockets {
        let Message::Close(Some(close)) = socket.read().unwrap() else { panic!("no word of the end") };
        assert_eq!(close.code, CloseCode::Restart);
        let begun = Instant::now();
        let mut next = websocket(served.address(0));
        echo(&mut next);
        eprintln!("a websocket was there again after {:?}", begun.elapsed());
    }
    restarting.join().unwrap();
}
