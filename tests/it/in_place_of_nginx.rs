//! What docassemble's scripts, cron and logrotate do with nginx, where `/usr/sbin/nginx` is a link to this program.
//!
//! The scripts here are ours, and short; they do what docassemble's do with nginx, uWSGI and Supervisor.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use tokio_tungstenite::tungstenite::Message;

use crate::{
    service_managers::{Supervisor, free_port, lives, request},
    support::{
        PATIENCE, body, connect, ok, program, read_response,
        served::{self, Served, children, signal},
        status, wait_for,
    },
    websockets::Echo,
};

/// A folder in which `nginx` is a link to this program, as `/usr/sbin/nginx` would be.
struct Installed<'a> {
    folder: &'a Path,
}

impl<'a> Installed<'a> {
    fn new(folder: &'a Path) -> Self {
        symlink(env!("CARGO_BIN_EXE_vestibule"), folder.join("nginx")).unwrap();
        Self { folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.folder.join("nginx"));
        command
            .args(arguments)
            .env("VESTIBULE_ADMIN", format!("unix:{}", self.folder.join("admin.sock").display()))
            .env("VESTIBULE_NGINX_PID", self.folder.join("nginx.pid"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// `nginx -g "daemon off;"`, in the background of the test.
    fn stay(&self) -> Stay {
        let said = self.folder.join("said");
        let output = fs::File::create(&said).unwrap();
        let child = self.command(&["-g", "daemon off;"]).stderr(output).spawn().unwrap();
        wait_for("the pid file", || self.pid() == Some(child.id()));
        Stay { child, said }
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.folder.join("nginx.pid")).ok()?.trim().parse().ok()
    }
}

struct Stay {
    child: Child,
    said: PathBuf,
}

impl Stay {
    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// Waits until it has said `words`.
    fn until_said(&mut self, words: &str) {
        wait_for(words, || {
            assert_eq!(self.child.try_wait().unwrap(), None, "{}", self.said());
            self.said().contains(words)
        });
    }

    fn ended(&mut self) -> Option<i32> {
        let mut ended = None;
        wait_for("the end of what stands in place of nginx", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap().code()
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn on_a_port(application: SocketAddr) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\nupstreams: {{ app: {{ endpoints: ['{application}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n"
    )
}

#[test]
fn in_the_foreground_it_has_the_front_door_reload_and_ends_when_it_is_told_to() {
    let application = ok();
    let served = Served::start(&on_a_port(application.address));
    let nginx = Installed::new(served.folder.path());

    for name in ["TERM", "INT", "QUIT"] {
        let mut stay = nginx.stay();
        stay.until_said("and serves");
        signal(name, stay.child.id());

        assert_eq!(stay.ended(), Some(0), "{name}");
        assert_eq!(nginx.pid(), None, "{name}");
        assert!(stay.said().contains("vestibule answers at"), "{}", stay.said());
        assert_eq!(status(&request(connect(served.address(0)), "/")), 200, "the front door goes on");
    }
    assert_eq!(served.events().matches("access log reopened").count(), 3, "{}", served.events());
}

#[test]
fn without_a_front_door_it_says_what_to_do_waits_and_finds_the_one_that_comes() {
    let folder = served::folder();
    let application = ok();
    let path = folder.path().to_owned();
    let nginx = Installed::new(&path);
    let mut stay = nginx.stay();

    stay.until_said("no vestibule answers at");
    let said = stay.said();
    assert!(said.contains("admin.sock") && said.contains("supervisorctl start vestibule"), "{said}");

    let _served = Served::start_in(folder, &on_a_port(application.address), |_| {});
    stay.until_said("vestibule answers at");
    assert_eq!(stay.said().matches("no vestibule answers at").count(), 1, "it says so once: {}", stay.said());
}

#[test]
fn a_configuration_that_is_refused_is_told_and_what_was_served_is_served_still() {
    let application = ok();
    let served = Served::start(&on_a_port(application.address));
    let nginx = Installed::new(served.folder.path());
    let good = nginx.run(&["-t", "-q"]);
    served.rewrite(&format!("{}drain: soon\n", on_a_port(application.address)));

    let (tested, reloaded) = (nginx.run(&["-t"]), nginx.run(&["-s", "reload"]));
    let mut stay = nginx.stay();
    stay.until_said("is served still");

    assert!(good.status.success() && said(&good).contains("vestibule.yml test is successful"), "{good:?}");
    assert_eq!(tested.status.code(), Some(1));
    assert!(said(&tested).contains("drain") && said(&tested).contains("test is failed"), "{}", said(&tested));
    assert_eq!(reloaded.status.code(), Some(1));
    assert!(said(&reloaded).contains("drain"), "{}", said(&reloaded));
    assert_eq!(status(&request(connect(served.address(0)), "/")), 200);
}

#[test]
fn reload_reopen_version_and_a_start_in_the_background_leave_no_process() {
    let application = ok();
    let served = Served::start(&on_a_port(application.address));
    let nginx = Installed::new(served.folder.path());
    fs::rename(served.path("access.log"), served.path("access.log.moved")).unwrap();

    let reopened = nginx.run(&["-s", "reopen"]);
    let begun = nginx.run(&["-c", "/etc/nginx/nginx.conf"]);
    let reloaded = nginx.run(&["-s", "reload"]);
    let version = nginx.run(&["-V"]);
    let unknown = nginx.run(&["-x"]);

    assert!(reopened.status.success() && said(&reopened).contains("access log reopened"), "{reopened:?}");
    wait_for("the log under its name", || served.path("access.log").exists());
    assert!(begun.status.success() && said(&begun).contains("and serves"), "{begun:?}");
    assert!(reloaded.status.success(), "{reloaded:?}");
    assert_eq!(nginx.pid(), None);
    assert_eq!(said(&version), concat!("vestibule/", env!("CARGO_PKG_VERSION"), " (in place of nginx)\n"));
    assert!(version.status.success() && version.stdout.is_empty());
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said(&unknown).contains("-x"), "{unknown:?}");
}

#[test]
fn a_stop_ends_what_stands_in_place_of_nginx_and_no_other_process() {
    let application = ok();
    let served = Served::start(&on_a_port(application.address));
    let nginx = Installed::new(served.folder.path());
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let of_others = [Some(served.child.id()), Some(other.id()), None];

    for pid in of_others {
        match pid {
            Some(pid) => fs::write(nginx.folder.join("nginx.pid"), format!("{pid}\n")).unwrap(),
            None => fs::remove_file(nginx.folder.join("nginx.pid")).unwrap(),
        }
        let stopped = nginx.run(&["-s", "stop"]);
        assert_eq!(stopped.status.code(), Some(1), "{pid:?}: {stopped:?}");
    }
    assert_eq!(other.try_wait().unwrap(), None);
    assert_eq!(status(&request(connect(served.address(0)), "/")), 200);
    other.kill().unwrap();
    other.wait().unwrap();

    for word in ["stop", "quit"] {
        let mut stay = nginx.stay();
        let stopped = nginx.run(&["-s", word]);
        assert!(stopped.status.success(), "{stopped:?}");
        assert_eq!(stay.ended(), Some(0));
    }
}

#[test]
fn its_signals_are_those_of_nginx_and_its_name_is_what_debians_script_looks_for() {
    let Some(tool) = program("start-stop-daemon") else { return };
    let application = ok();
    let served = Served::start(&on_a_port(application.address));
    let nginx = Installed::new(served.folder.path());
    let mut stay = nginx.stay();
    stay.until_said("and serves");

    // As /etc/init.d/nginx does `rotate`.
    let pid_file = nginx.folder.join("nginx.pid");
    let rotated =
        Command::new(tool).args(["--stop", "--signal", "USR1", "--name", "nginx", "--pidfile"]).arg(pid_file).status();
    assert!(rotated.unwrap().success());
    stay.until_said("nginx: access log reopened");
    signal("HUP", stay.child.id());
    wait_for("the reload", || stay.said().lines().count() == 3);
    signal("USR2", stay.child.id());

    stay.until_said("vestibule upgrade");
}

#[test]
fn no_process_has_a_name_that_docassembles_watchdog_kills() {
    let application = ok();
    let served = Served::start(&on_a_port(application.address));
    let nginx = Installed::new(served.folder.path());
    let stay = nginx.stay();
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned();

    let keeper = served.child.id();
    let mut names: Vec<_> = children(keeper).into_iter().chain([keeper]).map(name).collect();
    names.push(name(stay.child.id()));

    assert!(names.len() >= 3 && names.iter().all(|name| !["apache2", "uwsgi"].contains(&name.as_str())), "{names:?}");
}

// Under a real supervisord, with programs such as docassemble's.

/// Everything of docassemble's that is on the way of a request, with its priorities, and a page that is served until then.
struct Site {
    supervisor: Supervisor,
    address: SocketAddr,
    sockets: Echo,
}

impl Site {
    fn start(configuration: &str) -> Option<Self> {
        program("uwsgi")?;
        let folder = served::folder();
        let (address, sockets) = (free_port(), Echo::start());
        Installed::new(folder.path());
        fs::write(folder.path().join("docassemble.wsgi"), APPLICATION).unwrap();
        for (name, text) in [
            ("run-nginx.sh", RUN_NGINX),
            ("run-uwsgi.sh", RUN_UWSGI),
            ("run-websockets.sh", RUN_WEBSOCKETS),
            ("initialize.sh", INITIALIZE),
        ] {
            let text = text.replace("{dir}", folder.path().to_str().unwrap());
            fs::write(folder.path().join(name), text).unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let configuration = format!(
            "listeners: [{{ address: '{address}' }}]\n\
             upstreams:\n  app: {{ protocol: uwsgi, endpoints: ['unix:{{dir}}/app.sock'], concurrency: 6, hold: 30s }}\n  \
               websockets: {{ endpoints: ['{sockets}'] }}\n\
             routes:\n- {{ prefix: /ws/, strip_prefix: true, upstream: websockets, buffer: {{ request: false, response: false }} }}\n\
             - {{ prefix: /, upstream: app }}\n{configuration}\n",
            sockets = sockets.backend.address
        );
        let programs = PROGRAMS.replace("{port}", &address.port().to_string());
        let supervisor = Supervisor::start_beside(folder, &configuration, &programs)?;
        let site = Self { supervisor, address, sockets };
        site.supervisor.until_is("nginx", "RUNNING");
        assert_eq!(site.ask(), 200, "{}", site.supervisor.events());
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.supervisor.folder.path().join(name)
    }

    fn ask(&self) -> u16 {
        status(&request(connect(self.address), "/"))
    }

    /// Clients that ask again and again, on connections that they keep and on fresh ones.
    fn hammer(&self) -> Hammer {
        let (stopped, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = [true, true, false, false].map(|keeps| {
            let (stopped, asked, address) = (Arc::clone(&stopped), Arc::clone(&asked), self.address);
            thread::spawn(move || {
                let mut kept: Option<TcpStream> = None;
                while !stopped.load(Ordering::Relaxed) {
                    let answer = if keeps {
                        let stream = kept.get_or_insert_with(|| patient(address));
                        write!(stream, "GET /kept HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
                        let answer = read_response(stream);
                        // A worker that leaves says so; that is no error.
                        if answer.contains("Connection: close") || answer.contains("connection: close") {
                            kept = None;
                        }
                        answer
                    } else {
                        request(patient(address), "/fresh")
                    };
                    assert!(status(&answer) == 200 && body(&answer) == "whole", "{answer}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Hammer { stopped, asked, clients: clients.into() }
    }
}

/// A connection with more patience than a restart of the application takes.
fn patient(address: SocketAddr) -> TcpStream {
    let stream = connect(address);
    stream.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    stream
}

struct Hammer {
    stopped: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Hammer {
    /// Waits until another `count` requests have been answered.
    fn goes_on(&self, count: usize) {
        let begun = self.asked.load(Ordering::Relaxed);
        wait_for("further answers", || {
            self.clients.iter().any(thread::JoinHandle::is_finished)
                || self.asked.load(Ordering::Relaxed) >= begun + count
        });
    }

    /// How many requests were answered, all of them well.
    fn stop(self) -> usize {
        self.stopped.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("no client saw an error"));
        self.asked.load(Ordering::Relaxed)
    }
}

#[test]
fn a_restart_of_nginx_by_its_scripts_loses_no_request_and_no_websocket() {
    let Some(site) = Site::start("") else { return };
    let mut socket = crate::websockets::websocket(site.address);
    let mut echo = |text: &str| {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    };
    echo("before");
    let front_door = site.supervisor.state_of("vestibule");
    let hammer = site.hammer();
    hammer.goes_on(20);

    let first = site.supervisor.until_is("nginx", "RUNNING");
    let restarted = site.supervisor.control(&["restart", "nginx"]);
    assert!(restarted.contains("nginx: stopped") && restarted.contains("nginx: started"), "{restarted}");
    hammer.goes_on(20);
    echo("restarted");
    let stopped = site.supervisor.control(&["stop", "nginx"]);
    assert!(stopped.contains("nginx: stopped"), "{stopped}");
    assert!(!site.path("nginx.pid").exists());
    hammer.goes_on(20);
    echo("stopped");
    site.supervisor.control(&["start", "nginx"]);
    let second = site.supervisor.until_is("nginx", "RUNNING");
    hammer.goes_on(20);
    echo("started");

    assert!(hammer.stop() >= 80);
    assert!(first.is_some() && first != second);
    assert_eq!(site.supervisor.state_of("vestibule"), front_door);
    assert_eq!(site.sockets.backend.connections(), 1, "one websocket, from the first message to the last");
    // Its wrapper waits for it, and nothing of it stays.
    let log = site.supervisor.log("supervisord.log");
    assert!(log.contains("stopped: nginx (exit status 0)"), "{log}");
}

#[test]
fn the_front_door_is_begun_first_has_the_port_and_is_stopped_last() {
    let Some(mut site) = Site::start("") else { return };
    let begun = site.supervisor.log("supervisord.log");
    let at = |log: &str, what: &str| log.find(what).unwrap_or_else(|| panic!("{what}: {log}"));
    let first = at(&begun, "spawned: '");
    assert!(begun[first..].starts_with("spawned: 'vestibule'"), "{begun}");
    assert!(!begun.contains("'nascent'"), "its place is taken: {begun}");
    let keeper = site.supervisor.state_of("vestibule").1.unwrap();

    site.supervisor.stop();

    let log = site.supervisor.log("supervisord.log");
    let last = at(&log, "stopped: vestibule (exit status 0)");
    for program in ["nginx", "websockets", "uwsgi"] {
        assert!(at(&log, &format!("stopped: {program}")) < last, "{program} after the front door: {log}");
    }
    assert!(!lives(keeper));
}

#[test]
fn while_the_application_is_away_the_front_door_answers() {
    let Some(site) = Site::start("") else { return };
    let said = fs::read_to_string(site.path("vestibule.yml")).unwrap().replace("hold: 30s", "hold: 1s");
    served::write(site.supervisor.folder.path(), &said);
    site.supervisor.control(&["restart", "nginx"]);
    wait_for("the reload", || site.supervisor.status()["generation"].as_u64() >= Some(2));

    site.supervisor.control(&["stop", "nginx", "uwsgi", "websockets"]);
    let away = request(connect(site.address), "/");
    site.supervisor.control(&["start", "uwsgi"]);
    site.supervisor.until_is("uwsgi", "RUNNING");

    assert_eq!(status(&away), 503, "{away}");
    wait_for("the application", || site.ask() == 200);
}

#[test]
fn a_touch_of_the_wsgi_file_reloads_uwsgi_and_no_client_sees_it() {
    let Some(site) = Site::start("") else { return };
    let workers = || {
        let log = site.supervisor.log("uwsgi.log");
        log.matches("spawned uWSGI worker 1").count()
    };
    assert_eq!(workers(), 1);
    let hammer = site.hammer();
    hammer.goes_on(20);

    for reload in 1..=2 {
        // It looks at whole seconds.
        let file = fs::File::options().write(true).open(site.path("docassemble.wsgi")).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(10 * reload)).unwrap();
        wait_for("the reload of uWSGI", || workers() > usize::try_from(reload).unwrap());
        hammer.goes_on(20);
    }

    let asked = hammer.stop();
    let log = site.supervisor.log("access.log");
    assert!(!log.lines().any(|line| line.contains(" 5")), "{log}");
    assert!(asked >= 60, "{asked}");
}

#[test]
fn logrotate_with_a_restart_of_nginx_after_it_loses_no_line() {
    let Some(logrotate) = program("logrotate") else { return };
    let log = "access_log: { path: logs/access.log, rotate: null, format: '{target} {status}' }";
    let Some(site) = Site::start(log) else { return };
    let dir = site.supervisor.folder.path();
    let folder = fs::metadata(site.path("logs")).unwrap();
    assert_eq!(folder.permissions().mode() & 0o022, 0, "or logrotate refuses");
    let rotation = format!(
        "{dir}/logs/*.log {{\n  daily\n  missingok\n  rotate 7\n  compress\n  delaycompress\n  notifempty\n  \
           create 0640 www-data adm\n  sharedscripts\n  postrotate\n    \
             if kill -0 $(cat {dir}/nginx.pid); then {ctl} -c {dir}/supervisord.conf restart nginx > /dev/null; fi\n  \
           endscript\n}}\n",
        dir = dir.display(),
        ctl = program("supervisorctl").unwrap().display(),
    );
    fs::write(site.path("rotation"), rotation).unwrap();
    let hammer = site.hammer();

    for _ in 0..2 {
        hammer.goes_on(50);
        // Lines are written a moment later, and an empty log is not rotated.
        wait_for("lines in the log", || !site.supervisor.log("logs/access.log").is_empty());
        let rotated = Command::new(&logrotate)
            .args(["--force", "--state"])
            .args([site.path("rotation.state"), site.path("rotation")])
            .output()
            .unwrap();
        assert!(rotated.status.success(), "{rotated:?}");
    }
    hammer.goes_on(50);
    let asked = hammer.stop();

    let lines = || {
        let whole =
            Command::new("sh").args(["-c", "zcat -f \"$0\"/access.log*"]).arg(site.path("logs")).output().unwrap();
        let text = String::from_utf8(whole.stdout).unwrap();
        text.lines().filter(|line| line.starts_with("/kept 200") || line.starts_with("/fresh 200")).count()
    };
    let mut files: Vec<_> = fs::read_dir(site.path("logs")).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["access.log", "access.log.1", "access.log.2.gz"]);
    wait_for("the last line", || lines() >= asked);
    assert_eq!(lines(), asked);
    assert!(!site.supervisor.log("logs/access.log").is_empty(), "the file under its name is the one that is written");
}

const PROGRAMS: &str = "
[program:nascent]
command=python3 -m http.server --bind 127.0.0.1 {port}
autostart=true
autorestart=false
startsecs=1
startretries=0
priority=600

[program:initialize]
command=bash {dir}/initialize.sh
autostart=true
autorestart=false
startsecs=0
priority=400

[program:uwsgi]
command=bash {dir}/run-uwsgi.sh
autostart=false
autorestart=true
startsecs=1
startretries=0
stopwaitsecs=20
stopasgroup=true
killasgroup=true
priority=500
redirect_stderr=true
stdout_logfile={dir}/uwsgi.log

[program:websockets]
command=bash {dir}/run-websockets.sh
autostart=false
autorestart=true
startsecs=1
stopwaitsecs=20
killasgroup=true
priority=600

[program:nginx]
command=bash {dir}/run-nginx.sh
autostart=false
autorestart=true
startsecs=2
startretries=2
stopwaitsecs=20
stopasgroup=true
killasgroup=true
priority=600
";

/// A start of everything in the order of docassemble's.
const INITIALIZE: &str = "#!/bin/bash
for name in websockets uwsgi; do
    supervisorctl -c {dir}/supervisord.conf start $name
done
{dir}/nginx -s stop &> /dev/null
supervisorctl -c {dir}/supervisord.conf stop nascent
supervisorctl -c {dir}/supervisord.conf start nginx
sleep infinity &
trap 'kill %1; exit 0' TERM INT
wait %1
";

/// Begins nginx in the background, hands a stop on to the process of the pid file, and waits for its end.
const RUN_NGINX: &str = "#!/bin/bash
export VESTIBULE_ADMIN=unix:{dir}/admin.sock VESTIBULE_NGINX_PID={dir}/nginx.pid
function finish {
    if [ -f {dir}/nginx.pid ]; then
        pid=$(<{dir}/nginx.pid)
        kill -QUIT $pid
        wait $pid
    fi
    exit 0
}
trap finish INT TERM
{dir}/nginx -g 'daemon off;' &
wait %1
";

const RUN_UWSGI: &str = "#!/bin/bash
function finish {
    kill -INT $(<{dir}/uwsgi.pid)
    wait
    exit 0
}
trap finish INT TERM
cd {dir}
uwsgi --plugin python3 --master --enable-threads --processes 1 --threads 6 --listen 100 --buffer-size 32768 \\
    --pidfile {dir}/uwsgi.pid --socket {dir}/app.sock --chmod-socket=666 --need-app --manage-script-name \\
    --mount /={dir}/docassemble.wsgi --touch-reload {dir}/docassemble.wsgi &
wait %1
";

const RUN_WEBSOCKETS: &str = "#!/bin/bash
sleep infinity &
trap 'kill %1; exit 0' INT TERM
wait %1
";

/// An application that takes its time to be imported.
const APPLICATION: &str = "
import time
time.sleep(1)


def application(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '5')])
    return [b'whole']
";
