//! Under service managers: the protocol of systemd and its tools, a real supervisord, and the samples for both.
//!
//! systemd itself is not booted: the tests hear what it would hear, and hand over what it would hand over.

use std::{
    fs,
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt},
    time::{ClockId, clock_gettime},
};

use crate::support::{
    Backend, Gate, PATIENCE, body, clients, connect, program, read_request,
    served::{self, Served, signal},
    status, wait_for,
};

// What systemd hears.

/// A socket such as systemd listens on.
struct NotifySocket {
    socket: UnixDatagram,
    /// As `NOTIFY_SOCKET` names it.
    name: String,
}

/// One message.
#[derive(Debug)]
struct Heard {
    /// Who sent it, by the kernel's word.
    pid: u32,
    lines: Vec<String>,
}

impl NotifySocket {
    fn bind(folder: &Path) -> Self {
        let path = folder.join("notify");
        Self::over(UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned())
    }

    /// Beyond the file system.
    fn bind_abstract(folder: &Path) -> Self {
        let name = format!("vestibule-test{}", folder.display());
        let address = UnixAddr::from_abstract_name(&name).unwrap();
        Self::over(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
    }

    fn over(socket: UnixDatagram, name: String) -> Self {
        sockopt::set_socket_passcred(&socket, true).unwrap();
        Self { socket, name }
    }

    /// Starts without waiting.
    fn spawn(&self, folder: tempfile::TempDir, configuration: &str, environment: &[(&str, &str)]) -> Served {
        Served::spawn(folder, Path::new(env!("CARGO_BIN_EXE_vestibule")), configuration, |command| {
            command.env("NOTIFY_SOCKET", &self.name).envs(environment.iter().copied());
        })
    }

    /// The next message, if one comes `within` that time.
    fn hear_within(&self, within: Duration) -> Option<Heard> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).ok()?;
        assert!(!received.flags.contains(ReturnFlags::TRUNC), "a message of more than 4 KiB");
        let sender = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.pid.as_raw_pid().unsigned_abs()),
            _ => None,
        });
        let text = std::str::from_utf8(&bytes[..received.bytes]).unwrap();
        Some(Heard { pid: sender.unwrap(), lines: text.lines().map(str::to_owned).collect() })
    }

    /// The next message that is no sign of life.
    fn hear(&self) -> Heard {
        loop {
            let heard = self.hear_within(PATIENCE).expect("a message");
            if heard.lines != ["WATCHDOG=1"] {
                return heard;
            }
        }
    }

    /// Hears a reload or an upgrade to its end, of `pid` and nobody else; answers its time and the status after it.
    fn hear_reload(&self, pid: u32) -> (u128, String) {
        let (begun, done) = (self.hear(), self.hear());
        assert!(begun.pid == pid && done.pid == pid, "{pid} is the main pid: {begun:?}, {done:?}");
        assert!(begun.says("RELOADING=1"), "{begun:?}");
        assert!(done.says("READY=1"), "{done:?}");
        (begun.value("MONOTONIC_USEC").parse().unwrap(), done.value("STATUS").to_owned())
    }

    /// Waits for a sign of life; answers when it came.
    fn sign_of_life(&self, pid: u32) -> Instant {
        let heard = self.hear_within(PATIENCE).expect("a sign of life");
        assert_eq!((heard.pid, &heard.lines[..]), (pid, &["WATCHDOG=1".to_owned()][..]));
        Instant::now()
    }
}

impl Heard {
    fn says(&self, line: &str) -> bool {
        self.lines.iter().any(|said| said == line)
    }

    fn value(&self, name: &str) -> &str {
        let value = |line: &'_ String| line.strip_prefix(name)?.strip_prefix('=').map(str::len);
        let (line, length) = self.lines.iter().find_map(|line| Some((line, value(line)?))).expect(name);
        &line[line.len() - length..]
    }
}

/// A listener on a unix socket before `backend`.
fn before(backend: SocketAddr, more: &str) -> String {
    format!(
        "listeners: [{{ address: 'unix:{{dir}}/front.sock' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{backend}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n{more}\n"
    )
}

fn ok() -> Backend {
    Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

fn monotonic() -> u128 {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap()).as_micros()
}

#[test]
fn ready_is_said_once_connections_are_accepted_on_a_path_or_an_abstract_socket() {
    let backend = ok();
    for bind in [NotifySocket::bind, NotifySocket::bind_abstract] {
        let folder = served::folder();
        let systemd = bind(folder.path());
        let served = systemd.spawn(folder, &before(backend.address, ""), &[]);

        let ready = systemd.hear();
        let answer = served.get("front.sock", "/");

        assert_eq!(status(&answer), 200);
        assert!(ready.says("READY=1"), "{ready:?}");
        assert_eq!(ready.value("STATUS"), "serving configuration 1");
        assert_eq!(ready.pid, served.child.id());
    }
}

#[test]
fn a_start_that_fails_never_says_that_it_is_ready() {
    let folder = served::folder();
    let systemd = NotifySocket::bind(folder.path());
    let _taken = UnixListener::bind(folder.path().join("front.sock")).unwrap();

    let mut served = systemd.spawn(folder, &before(ok().address, ""), &[]);

    assert_eq!(served.ended().code(), Some(1), "{}", served.events());
    let heard = systemd.hear_within(Duration::from_millis(1));
    assert!(heard.is_none(), "{heard:?}");
}

#[test]
fn each_sighup_is_told_as_a_reload_with_its_time_and_its_end_whatever_comes_of_it() {
    let (folder, backend) = (served::folder(), ok());
    let systemd = NotifySocket::bind(folder.path());
    let served = systemd.spawn(folder, &before(backend.address, ""), &[]);
    let pid = served.child.id();
    assert!(systemd.hear().says("READY=1"));
    // A change may be noticed before we tell, and be a reload of its own.
    let until = |expected: &dyn Fn(&str) -> bool| loop {
        let (_, status) = systemd.hear_reload(pid);
        if expected(&status) {
            return status;
        }
    };

    let told = monotonic();
    served.signal("HUP");
    let (time, status) = systemd.hear_reload(pid);
    assert!((told..monotonic()).contains(&time), "systemd takes an older one for that of another reload: {time}");
    assert_eq!(status, "serving configuration 1", "nothing has changed");

    served.rewrite(&before(backend.address, "administrator: somebody@example.org"));
    served.signal("HUP");
    until(&|status| status == "serving configuration 2");

    served.rewrite(&before(backend.address, "drain: soon\nworkers: many"));
    served.signal("HUP");
    let status = until(&|status| status.contains("refused"));
    assert!(status.starts_with("serving configuration 2; the one of ") && status.contains("drain"), "{status}");
    assert!(status.ends_with("(and 1 more)"), "{status}");

    served.rewrite(&before(backend.address, "administrator: somebody@example.org"));
    served.signal("HUP");
    until(&|status| status == "serving configuration 2");
}

#[test]
fn an_upgrade_is_told_as_a_reload_of_the_same_pid() {
    let (folder, backend) = (served::folder(), ok());
    let systemd = NotifySocket::bind_abstract(folder.path());
    let served = systemd.spawn(folder, &before(backend.address, ""), &[]);
    assert!(systemd.hear().says("READY=1"));
    let worker = served.worker();

    let told = monotonic();
    served.signal("USR2");
    let (time, status) = systemd.hear_reload(served.child.id());

    assert!(time >= told);
    assert_eq!(status, "serving configuration 1");
    wait_for("another worker", || served.worker() != worker);
}

#[test]
fn a_stop_is_told_with_the_longest_that_it_may_take() {
    let (folder, backend) = (served::folder(), ok());
    let systemd = NotifySocket::bind(folder.path());
    let mut served = systemd.spawn(folder, &before(backend.address, "drain: 7s"), &[]);
    assert!(systemd.hear().says("READY=1"));

    served.signal("TERM");
    let heard = systemd.hear();

    assert!(heard.says("STOPPING=1") && heard.pid == served.child.id(), "{heard:?}");
    assert!(heard.value("STATUS").starts_with("stopping"), "{heard:?}");
    let longest: u128 = heard.value("EXTEND_TIMEOUT_USEC").parse().unwrap();
    assert!(longest > Duration::from_secs(7).as_micros(), "{heard:?}");
    assert_eq!(served.ended().code(), Some(0));
}

// The watchdog.

/// How long the systemd of these tests has patience.
const WATCHDOG: Duration = Duration::from_secs(2);
const WATCHDOG_USEC: (&str, &str) = ("WATCHDOG_USEC", "2000000");

#[test]
fn signs_of_life_are_the_workers_and_go_on_over_an_upgrade() {
    let (folder, backend) = (served::folder(), ok());
    let systemd = NotifySocket::bind(folder.path());
    let served = systemd.spawn(folder, &before(backend.address, ""), &[WATCHDOG_USEC]);
    let pid = served.child.id();
    assert!(systemd.hear().says("READY=1"));
    let in_time = |last: &mut Instant, count: usize| {
        for _ in 0..count {
            let came = systemd.sign_of_life(pid);
            assert!(came - *last < WATCHDOG, "systemd would have ended us: {:?}", came - *last);
            *last = came;
        }
    };
    let mut last = Instant::now();
    in_time(&mut last, 3);

    let worker = served.worker();
    signal("STOP", worker);
    // One may have been under way.
    let late = systemd.hear_within(WATCHDOG / 2).and_then(|_| systemd.hear_within(WATCHDOG));
    assert!(late.is_none(), "{late:?} from a worker that does not turn");
    assert_eq!(systemd.hear_within(WATCHDOG).map(|heard| heard.lines), None);
    signal("CONT", worker);
    last = systemd.sign_of_life(pid);
    in_time(&mut last, 1);

    served.signal("USR2");
    let mut told = Vec::new();
    while told.len() < 2 {
        let heard = systemd.hear_within(WATCHDOG).expect("signs of life, or the upgrade");
        match heard.lines.first().unwrap().as_str() {
            "WATCHDOG=1" => {
                assert!(last.elapsed() < WATCHDOG);
                last = Instant::now();
            }
            _ => told.push(heard),
        }
    }
    assert!(told[0].says("RELOADING=1") && told[1].says("READY=1"), "{told:?}");
    in_time(&mut last, 3);
    wait_for("another worker", || served.worker() != worker);
}

#[test]
fn a_watchdog_that_is_for_another_process_hears_nothing() {
    let (folder, backend) = (served::folder(), ok());
    let systemd = NotifySocket::bind(folder.path());
    let environment = [("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")];
    let _served = systemd.spawn(folder, &before(backend.address, ""), &environment);
    assert!(systemd.hear().says("READY=1"));

    let heard = systemd.hear_within(Duration::from_millis(500));

    assert!(heard.is_none(), "{heard:?}");
}

#[test]
fn a_stop_that_waits_for_a_request_gives_signs_of_life_and_takes_no_processor() {
    let folder = served::folder();
    let systemd = NotifySocket::bind(folder.path());
    let application = Application::start();
    let mut served = systemd.spawn(folder, &before(application.backend.address, ""), &[WATCHDOG_USEC]);
    let pid = served.child.id();
    assert!(systemd.hear().says("READY=1"));
    let slow = application.ask_slowly(served.connect("front.sock"));

    served.signal("TERM");
    assert!(systemd.hear().says("STOPPING=1"));
    systemd.sign_of_life(pid);
    let (begun, before) = (Instant::now(), processor_time(pid));
    systemd.sign_of_life(pid);
    systemd.sign_of_life(pid);
    let (lasted, used) = (begun.elapsed(), processor_time(pid).saturating_sub(before));

    assert!(lasted > WATCHDOG / 4, "{lasted:?}");
    assert!(used < lasted / 5, "{used:?} of {lasted:?}");
    application.slow.open();
    assert_eq!(slow.join().unwrap(), "whole");
    assert_eq!(served.ended().code(), Some(0), "{}", served.events());
}

fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, a hundred a second on Linux.
    let ticks: u32 = fields[11..=12].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    Duration::from_millis(10) * ticks
}

// Sockets that are passed on.

const PASSED: &str = "listeners: [{ address: 'fd:web' }, { address: 'fd:secure' }]\n";

fn on_passed(backend: SocketAddr) -> String {
    PASSED.to_owned() + before(backend, "").split_once('\n').unwrap().1
}

/// Has `command` be begun by `outer`, with its output where `Served` looks for it.
pub(crate) fn begin_by(command: &mut Command, folder: &Path, outer: &[&str]) {
    let mut begun = Command::new(outer[0]);
    begun.args(&outer[1..]).arg(command.get_program()).args(command.get_args());
    begun.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    begun.stdin(Stdio::null()).stdout(Stdio::null());
    begun.stderr(fs::File::create(folder.join("events")).unwrap());
    *command = begun;
}

/// Starts with two passed sockets, which stay the test's as well, as they would stay systemd's.
fn spawn_with(web: OwnedFd, secure: OwnedFd, configuration: &str) -> Served {
    spawn_named("web:secure", web, secure, configuration)
}

fn spawn_named(names: &str, web: OwnedFd, secure: OwnedFd, configuration: &str) -> Served {
    let folder = served::folder();
    let dir = folder.path().to_owned();
    Served::spawn(folder, Path::new(env!("CARGO_BIN_EXE_vestibule")), configuration, |command| {
        let pass_on = "exec 3<&0 4<&1 </dev/null >/dev/null; \
                       export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=$0; exec \"$@\"";
        begin_by(command, &dir, &["sh", "-c", pass_on, names]);
        command.stdin(web).stdout(secure);
    })
}

/// Sockets as systemd makes them, and duplicates to pass on.
fn passed(folder: &Path) -> (TcpListener, UnixListener, impl Fn() -> (OwnedFd, OwnedFd)) {
    let (web, secure) = (TcpListener::bind("127.0.0.1:0").unwrap(), folder.join("passed.sock"));
    let secure = UnixListener::bind(secure).unwrap();
    let (one, two) = (web.try_clone().unwrap(), secure.try_clone().unwrap());
    (web, secure, move || (one.try_clone().unwrap().into(), two.try_clone().unwrap().into()))
}

pub(crate) fn request(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn systemd_socket_activate_passes_on_tcp_and_unix_sockets_which_an_upgrade_keeps() {
    let Some(activate) = program("systemd-socket-activate") else { return };
    let (backend, address, folder) = (ok(), free_port(), served::folder());
    let dir = folder.path().to_owned();
    let (web, secure) = (address.to_string(), dir.join("secure.sock").display().to_string());
    let outer = [activate.to_str().unwrap(), "--fdname=web:secure", "-l", &web, "-l", &secure];
    let text = on_passed(backend.address);
    let served = Served::spawn(folder, Path::new(env!("CARGO_BIN_EXE_vestibule")), &text, |command| {
        begin_by(command, &dir, &outer);
    });
    let ask = || (status(&request(connect(address), "/")), status(&served.get("secure.sock", "/")));
    wait_for("the sockets", || served.path("secure.sock").exists());
    assert!(!served.events().contains("vestibule::"), "the first connection is what begins it");

    assert_eq!(ask(), (200, 200), "{}", served.events());
    wait_for("the keeper to be known", || served.status()["processes"]["pid"] == served.child.id());
    let worker = served.worker();
    served.signal("USR2");
    wait_for("the upgrade", || served.worker() != worker);

    assert_eq!(ask(), (200, 200), "{}", served.events());
}

#[test]
fn passed_sockets_survive_a_stop_and_who_waits_in_them_is_served_by_the_next_start() {
    let (backend, sockets) = (ok(), served::folder());
    let (web, _secure, pass) = passed(sockets.path());
    let (address, path) = (web.local_addr().unwrap(), sockets.path().join("passed.sock"));
    let start = || {
        let (web, secure) = pass();
        let served = spawn_with(web, secure, &on_passed(backend.address));
        wait_for("the gateway to be ready", || served.events().contains("listening"));
        served
    };
    let mut first = start();
    assert_eq!(status(&request(connect(address), "/")), 200);
    assert_eq!(status(&request(UnixStream::connect(&path).unwrap(), "/")), 200);

    first.signal("TERM");
    assert_eq!(first.ended().code(), Some(0), "{}", first.events());
    let waiting = [
        thread::spawn(move || request(connect(address), "/")),
        thread::spawn(move || request(UnixStream::connect(path).unwrap(), "/")),
    ];
    let second = start();

    for waiting in waiting {
        assert_eq!(status(&waiting.join().unwrap()), 200, "{}", second.events());
    }
}

#[test]
fn a_socket_that_was_not_passed_on_is_a_failed_start_that_names_those_that_were() {
    let (backend, sockets) = (ok(), served::folder());
    let (_web, _secure, pass) = passed(sockets.path());
    let (web, secure) = pass();

    let mut served = spawn_with(web, secure, &on_passed(backend.address).replace("fd:secure", "fd:https"));

    assert_eq!(served.ended().code(), Some(1));
    let said = served.events();
    assert!(said.contains("listeners[1].address: no socket named `https`"), "{said}");
    assert!(said.contains("there are: web, secure"), "{said}");
}

#[test]
fn a_passed_socket_that_nobody_listens_on_is_warned_of_also_after_a_reload() {
    let (backend, sockets) = (ok(), served::folder());
    let (_web, _secure, pass) = passed(sockets.path());
    let (web, secure) = pass();
    let served = spawn_with(web, secure, &on_passed(backend.address));
    wait_for("the gateway to be ready", || served.events().contains("listening"));
    let warned = || served.events().contains("no listener is `fd:secure`");
    assert!(!warned());

    served.apply(&on_passed(backend.address).replace(", { address: 'fd:secure' }", ""));

    wait_for("the warning", warned);
}

#[test]
fn what_was_passed_on_and_is_no_listener_is_not_used() {
    let (backend, sockets) = (ok(), served::folder());
    let (_web, _secure, pass) = passed(sockets.path());
    // As a `.socket` unit with `Accept=yes` would have it.
    let connection = TcpStream::connect(backend.address).unwrap();

    let mut served = spawn_with(pass().0, connection.into(), &on_passed(backend.address));

    assert_eq!(served.ended().code(), Some(1));
    let said = served.events();
    assert!(said.contains("not a listening stream socket") && said.contains("there are: web"), "{said}");
}

#[test]
fn sockets_of_one_name_are_of_one_kind_or_the_start_fails_with_what_to_do() {
    let (backend, sockets) = (ok(), served::folder());
    let (_web, _secure, pass) = passed(sockets.path());
    let (web, secure) = pass();
    let text = on_passed(backend.address).replace(", { address: 'fd:secure' }", "");

    let mut served = spawn_named("web:web", web, secure, &text);

    assert_eq!(served.ended().code(), Some(1));
    assert!(served.events().contains("give each kind a `.socket` unit of its own"), "{}", served.events());
}

pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

// A real supervisord, with our sample.

/// An application that answers `/slow` once it is let, and anything else at once.
struct Application {
    backend: Backend,
    slow: Gate,
    arrived: mpsc::Receiver<()>,
}

impl Application {
    fn start() -> Self {
        let slow = Gate::default();
        let (arrive, arrived) = mpsc::channel();
        let gate = slow.clone();
        let backend = Backend::start(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                if request.starts_with(b"GET /slow ") {
                    arrive.send(()).unwrap();
                    gate.wait();
                }
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole").is_err() {
                    return;
                }
            }
        });
        Self { backend, slow, arrived }
    }

    /// A request that is in the application when this returns; its thread ends with the body of the answer.
    fn ask_slowly(&self, stream: impl Read + Write + Send + 'static) -> thread::JoinHandle<String> {
        let asked = thread::spawn(move || body(&request(stream, "/slow")));
        self.arrived.recv_timeout(PATIENCE).unwrap();
        asked
    }
}

/// supervisord with our sample, whose paths alone are others.
pub(crate) struct Supervisor {
    daemon: Child,
    pub(crate) folder: tempfile::TempDir,
}

impl Supervisor {
    fn start(configuration: &str) -> Option<Self> {
        Self::start_beside(served::folder(), configuration, "")
    }

    /// The same beside `programs`, which are read before, as docassemble's are; `{dir}` in them is the folder.
    pub(crate) fn start_beside(folder: tempfile::TempDir, configuration: &str, programs: &str) -> Option<Self> {
        let supervisord = program("supervisord")?;
        served::write(folder.path(), configuration);
        let dir = folder.path().display();
        let installed = "\ncommand=/usr/local/bin/vestibule serve --docassemble --config /etc/vestibule/overlay.yml\n";
        assert!(SUPERVISOR_SAMPLE.contains(installed));
        let here = format!(
            "\ncommand={} serve --config {dir}/vestibule.yml\nstderr_logfile={dir}/events\n",
            env!("CARGO_BIN_EXE_vestibule")
        );
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        let programs = programs.replace("{dir}", folder.path().to_str().unwrap());
        fs::write(folder.path().join("conf.d/docassemble.conf"), programs).unwrap();
        let sample = SUPERVISOR_SAMPLE.replace(installed, &here);
        fs::write(folder.path().join("conf.d/vestibule.conf"), sample).unwrap();
        let user = if rustix::process::geteuid().is_root() { "user=root\n" } else { "" };
        let text = format!(
            "[unix_http_server]\nfile={dir}/supervisor.sock\n\
             [supervisord]\nnodaemon=true\nlogfile={dir}/supervisord.log\npidfile={dir}/supervisord.pid\n\
             childlogdir={dir}\n{user}\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisorctl]\nserverurl=unix://{dir}/supervisor.sock\n\
             [include]\nfiles={dir}/conf.d/*.conf\n"
        );
        fs::write(folder.path().join("supervisord.conf"), text).unwrap();
        let daemon = Command::new(supervisord)
            .arg("-c")
            .arg(folder.path().join("supervisord.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { daemon, folder })
    }

    pub(crate) fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program("supervisorctl").unwrap());
        let output = command.arg("-c").arg(self.folder.path().join("supervisord.conf")).args(arguments).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    /// In which state it sees the program, and its pid.
    fn state(&self) -> (String, Option<u32>) {
        self.state_of("vestibule")
    }

    pub(crate) fn state_of(&self, program: &str) -> (String, Option<u32>) {
        let said = self.control(&["status", program]);
        let mut words = said.split_whitespace().skip(1);
        let state = words.next().unwrap_or_default().to_owned();
        let pid = words.skip_while(|word| *word != "pid").nth(1);
        (state, pid.and_then(|pid| pid.trim_end_matches(',').parse().ok()))
    }

    /// Waits until it sees the program in `state`; answers the pid.
    fn until(&self, state: &str) -> Option<u32> {
        self.until_is("vestibule", state)
    }

    pub(crate) fn until_is(&self, program: &str, state: &str) -> Option<u32> {
        let end = Instant::now() + 3 * PATIENCE;
        loop {
            let (seen, pid) = self.state_of(program);
            if seen == state {
                return pid;
            }
            assert!(Instant::now() < end, "{seen} and not {state}: {}\n{}", self.log("supervisord.log"), self.events());
        }
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    pub(crate) fn events(&self) -> String {
        self.log("events")
    }

    fn connect(&self, socket: &str) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_str(&body(&request(self.connect("admin.sock"), "/status"))).unwrap()
    }

    /// The pid of the worker that accepts connections.
    fn worker(&self) -> u32 {
        let mut serving = None;
        // One that has just begun has not heard of itself yet.
        wait_for("a worker that serves", || {
            let workers = self.status()["processes"]["workers"].as_array().cloned().unwrap_or_default();
            serving = workers.into_iter().find(|worker| worker["accepts"] == true);
            serving.is_some()
        });
        u32::try_from(serving.unwrap()["pid"].as_u64().unwrap()).unwrap()
    }

    /// Stops everything, as a container does that is stopped.
    pub(crate) fn stop(&mut self) {
        if matches!(self.daemon.try_wait(), Ok(Some(_))) {
            return;
        }
        // It stops what it has begun, which it gives `stopwaitsecs`.
        signal("TERM", self.daemon.id());
        let end = Instant::now() + STOPWAITSECS + PATIENCE;
        while Instant::now() < end {
            if !matches!(self.daemon.try_wait(), Ok(None)) {
                return;
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop();
    }
}

const SUPERVISOR_SAMPLE: &str = include_str!("../../config/supervisor/vestibule.conf");
/// As the sample says.
const STOPWAITSECS: Duration = Duration::from_secs(30);

/// A port and a unix socket before `application`.
fn at_port(address: SocketAddr, application: &Application, more: &str) -> String {
    before(application.backend.address, more)
        .replace("listeners: [", &format!("listeners: [{{ address: '{address}' }}, "))
}

#[test]
fn under_supervisord_reload_and_upgrade_keep_the_pid_and_a_stop_under_load_cuts_nothing() {
    let (application, address) = (Application::start(), free_port());
    let Some(supervisor) = Supervisor::start(&at_port(address, &application, "")) else { return };
    let pid = supervisor.until("RUNNING");
    assert_eq!(status(&request(connect(address), "/")), 200);
    wait_for("the keeper to be known", || supervisor.status()["processes"]["pid"] == u64::from(pid.unwrap()));

    let changed = at_port(address, &application, "administrator: somebody@example.org");
    served::write(supervisor.folder.path(), &changed);
    supervisor.control(&["signal", "HUP", "vestibule"]);
    wait_for("the reload", || supervisor.status()["generation"] == 2);
    assert_eq!(supervisor.state(), ("RUNNING".to_owned(), pid));

    let worker = supervisor.worker();
    supervisor.control(&["signal", "USR2", "vestibule"]);
    wait_for("the upgrade", || supervisor.worker() != worker);
    assert_eq!(supervisor.state(), ("RUNNING".to_owned(), pid));

    let slow = application.ask_slowly(supervisor.connect("front.sock"));
    let load: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || {
                let mut whole = 0;
                while let Ok(mut stream) = TcpStream::connect(address) {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let asked = write!(stream, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
                    let mut answer = String::new();
                    // A connection that was not accepted any more is none that was cut.
                    if asked.is_err() || stream.read_to_string(&mut answer).is_err() || answer.is_empty() {
                        continue;
                    }
                    assert!(status(&answer) == 200 && body(&answer) == "whole", "{answer}");
                    whole += 1;
                }
                whole
            })
        })
        .collect();
    let begun = Instant::now();
    // TERM for the keeper and its worker at once, as the sample has `stopasgroup`.
    let stopped = thread::scope(|scope| {
        let stopped = scope.spawn(|| supervisor.control(&["stop", "vestibule"]));
        wait_for("the stop to begin", || supervisor.events().contains("stopping"));
        wait_for("the door to close", || TcpStream::connect(address).is_err());
        assert_eq!(supervisor.state().0, "STOPPING", "the request in flight is waited for");
        application.slow.open();
        stopped.join().unwrap()
    });

    assert!(stopped.contains("vestibule: stopped"), "{stopped}");
    assert!(begun.elapsed() < STOPWAITSECS, "{:?}", begun.elapsed());
    assert_eq!(slow.join().unwrap(), "whole");
    let whole: usize = load.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(whole > 0);
    assert_eq!(supervisor.state().0, "STOPPED");
    let log = supervisor.log("supervisord.log");
    assert!(log.contains("stopped: vestibule (exit status 0)"), "{log}\n{}", supervisor.events());
}

#[test]
fn when_the_keeper_is_killed_its_worker_ends_what_it_began_and_the_next_keeper_has_the_ports() {
    let (application, address) = (Application::start(), free_port());
    let Some(supervisor) = Supervisor::start(&at_port(address, &application, "")) else { return };
    let keeper = supervisor.until("RUNNING").unwrap();
    let orphan = supervisor.worker();
    let slow = application.ask_slowly(supervisor.connect("front.sock"));

    signal("KILL", keeper);
    let killed = Instant::now();
    // Twice `listening` for each keeper.
    let next_listens = || supervisor.events().matches("listening").count() == 4;
    wait_for("the worker to close the door", || TcpStream::connect(address).is_err() || next_listens());
    let closed = killed.elapsed();
    wait_for("the port to be served again", || TcpStream::connect(address).is_ok());
    eprintln!("the port was closed after {closed:?} and served again after {:?}", killed.elapsed());

    assert_eq!(status(&request(connect(address), "/")), 200);
    assert_eq!(status(&request(supervisor.connect("front.sock"), "/")), 200);
    let next = supervisor.until("RUNNING").unwrap();
    assert!(next != keeper && supervisor.worker() != orphan);
    assert!(lives(orphan), "its request is still in flight: {}", supervisor.events());
    application.slow.open();
    assert_eq!(slow.join().unwrap(), "whole");
    wait_for("the worker of before to end", || !lives(orphan));
    let log = supervisor.log("supervisord.log");
    assert_eq!(log.matches("spawned: 'vestibule'").count(), 2, "the first attempt was enough: {log}");
}

/// Whether it has not ended; whoever adopts it may be late to take note.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

#[test]
fn supervisord_gives_up_on_a_configuration_that_is_refused() {
    let Some(supervisor) = Supervisor::start("drain: soon\n") else { return };

    supervisor.until("FATAL");

    let (log, said) = (supervisor.log("supervisord.log"), supervisor.events());
    assert_eq!(log.matches("exit status 78").count(), 4, "the first and `startretries`: {log}");
    assert!(said.contains("drain"), "{said}");
}

// The sample units.

const SERVICE_SAMPLE: &str = include_str!("../../config/systemd/vestibule.service");

#[test]
fn systemd_finds_no_fault_with_the_sample_units_and_little_that_they_leave_open() {
    let Some(analyze) = program("systemd-analyze") else { return };
    let folder = served::folder();
    let units = ["vestibule.service", "vestibule.socket", "vestibule-http.socket"].map(|unit| {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/systemd").join(unit);
        let text = fs::read_to_string(sample).unwrap();
        let file = folder.path().join(unit);
        // It looks whether the program is there.
        fs::write(&file, text.replace("/usr/local/bin/vestibule", env!("CARGO_BIN_EXE_vestibule"))).unwrap();
        file
    });

    let verified = Command::new(&analyze).args(["verify", "--man=no"]).args(&units).output().unwrap();
    let rated = Command::new(&analyze)
        .args(["security", "--offline=true", "--no-pager", "--threshold=35"])
        .arg(&units[0])
        .output()
        .unwrap();

    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    assert!(rated.status.success(), "{}", String::from_utf8_lossy(&rated.stdout));
}

/// The value of a key in the unit.
pub(crate) fn of_service(key: &str) -> &'static str {
    let value = SERVICE_SAMPLE.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{key} is not in the unit"))
}

#[test]
fn the_capabilities_of_the_sample_unit_are_enough_for_all_that_a_keeper_does() {
    let tools = ["unshare", "nsenter", "setpriv", "ip", "curl"].map(program);
    if !rustix::process::geteuid().is_root() || tools.iter().any(Option::is_none) {
        eprintln!("skipped: it takes root");
        return;
    }
    assert_eq!(of_service("NoNewPrivileges"), "yes");
    let capabilities: Vec<_> = of_service("CapabilityBoundingSet")
        .split_whitespace()
        .map(|name| format!("+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let set = format!("--bounding-set=-all,{}", capabilities.join(","));
    let backend = UnixApplication::start();
    let folder = served::folder();
    clients::certificate(folder.path(), "site", &["site.example"]);
    fs::set_permissions(folder.path().join("site.key"), std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let text = format!(
        "listeners: [{{ address: '127.0.0.1:443', tls: true }}, {{ address: 'unix:{{dir}}/front.sock' }}]\n\
         user: www-data\nupstreams: {{ app: {{ endpoints: ['unix:{}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\ndrain: 1s\n{}",
        backend.path().display(),
        clients::tls(&["site"])
    );
    // A network of its own, where port 443 is free and privileged.
    let start = |folder: tempfile::TempDir| {
        let dir = folder.path().to_owned();
        Served::start_in(folder, &text, |command| {
            let confined = "ip link set lo up && exec setpriv --no-new-privs \"$@\"";
            begin_by(command, &dir, &["unshare", "--net", "sh", "-c", confined, "sh", &set]);
        })
    };
    let ask = |served: &Served| {
        let network = format!("--net=/proc/{}/ns/net", served.child.id());
        let over_tls = Command::new("nsenter")
            .args([&network, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://127.0.0.1/"])
            .output()
            .unwrap();
        (String::from_utf8(over_tls.stdout).unwrap(), status(&served.get("front.sock", "/")))
    };
    let served_well = ("200".to_owned(), 200);

    let mut first = start(folder);
    assert_eq!(ask(&first), served_well, "{}", first.events());
    let worker = fs::read_to_string(format!("/proc/{}/status", first.worker())).unwrap();
    let line = |name: &str| worker.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(line("CapBnd:"), "0000000000000000", "the worker has no way to any of them");
    assert!(!line("Uid:").split_whitespace().any(|uid| uid == "0"), "{worker}");
    first.signal("TERM");
    assert_eq!(first.ended().code(), Some(0), "{}", first.events());

    // Once more, over all that the first has left: the sockets, the spool that is the worker's.
    let mut second = start(std::mem::replace(&mut first.folder, served::folder()));
    let worker = second.worker();
    second.signal("USR2");
    wait_for("the upgrade", || second.worker() != worker);
    assert_eq!(ask(&second), served_well, "{}", second.events());
    // A worker that does not end is somebody else's process, which has to be killed.
    let stuck = second.worker();
    signal("STOP", stuck);
    second.signal("TERM");
    assert_eq!(second.ended().code(), Some(1), "{}", second.events());
    assert!(!lives(stuck), "{}", second.events());
}

/// An application on a unix socket, which is reached from every network, by everybody.
struct UnixApplication(tempfile::TempDir);

impl UnixApplication {
    fn start() -> Self {
        let folder = served::folder();
        let listener = UnixListener::bind(folder.path().join("app.sock")).unwrap();
        fs::set_permissions(folder.path().join("app.sock"), std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    while read_request(&mut stream).is_some() {
                        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
                    }
                });
            }
        });
        Self(folder)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("app.sock")
    }
}
