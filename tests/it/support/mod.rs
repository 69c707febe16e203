//! What the tests stand on: a gateway in this process, backends that do as they are told, clients that write bytes.

#![allow(clippy::unwrap_used, reason = "a helper that cannot do its part fails the test that called it")]
#![allow(dead_code, reason = "each helper has its users in some of the modules")]

pub(crate) mod applications;
pub(crate) mod azurite;
pub(crate) mod clients;
pub(crate) mod directory;
pub(crate) mod moto;
pub(crate) mod network;
pub(crate) mod pebble;
pub(crate) mod served;

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, Once,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use vestibule::{
    config::{self, ListenAddress},
    gateway::Gateway,
    keeper::Provisions,
    tls::TicketKeys,
};

/// A gateway with its files in a folder of its own, stopped when dropped.
pub(crate) struct TestGateway {
    gateway: Option<Gateway>,
    pub(crate) folder: tempfile::TempDir,
}

impl TestGateway {
    /// Starts from `configuration`, in which `{dir}` is a folder of the test's own. Storage, spool and access log are in
    /// that folder unless the configuration says otherwise.
    pub(crate) fn start(configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, configuration)
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, configuration: &str) -> Self {
        keep_warnings();
        let mut text = configuration.replace("{dir}", folder.path().to_str().unwrap());
        for (key, value) in [
            ("tls:", "tls: { storage: storage }\n"),
            ("spool:", "spool: { path: . }\n"),
            ("access_log:", "access_log: { path: access.log }\n"),
            ("workers:", "workers: 2\n"),
            ("drain:", "drain: 2s\n"),
        ] {
            if !text.lines().any(|line| line.starts_with(key)) {
                text.push_str(value);
            }
        }
        let file = folder.path().join("vestibule.yml");
        let plan = config::parse(file.to_str().unwrap(), &text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        let provisions = Provisions::gather(&plan).unwrap_or_else(|faults| panic!("{faults:?}"));
        let gateway = Gateway::start(plan, provisions, 1, &TicketKeys::generate().unwrap(), None).unwrap();
        Self { gateway: Some(gateway), folder }
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    /// The TCP address of the listener with this number.
    pub(crate) fn address(&self, number: usize) -> SocketAddr {
        match &self.gateway().addresses()[number] {
            ListenAddress::Tcp(address) => *address,
            other => panic!("listener {number} is at {other}"),
        }
    }

    /// Sends `request` as it is and reads to the end of the connection.
    pub(crate) fn raw(&self, request: impl AsRef<[u8]>) -> String {
        raw(self.address(0), request)
    }

    /// `GET path` on a connection of its own: the status and the body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let answer = self.raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        (status(&answer), body(&answer))
    }

    /// Waits for the access log to have `lines` lines.
    pub(crate) fn log(&self, lines: usize) -> Vec<String> {
        let file = self.folder.path().join("access.log");
        let read = || -> Vec<String> {
            std::fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect()
        };
        wait_for(&format!("{lines} lines in the access log"), || read().len() >= lines);
        read()
    }

    /// Stops within `deadline`; answers whether all requests came to their end.
    pub(crate) fn stop(mut self, deadline: Duration) -> bool {
        self.gateway.take().unwrap().stop(deadline).is_nothing()
    }
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop(Duration::from_secs(2));
        }
    }
}

/// A listener and a route to one HTTP backend, with `route` and `upstream` as further keys of each.
pub(crate) fn proxying(backend: SocketAddr, upstream: &str, route: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{backend}'], {upstream} }} }}\n\
         routes: [{{ prefix: /, upstream: app, {route} }}]\n"
    )
}

/// One listener and a route to `backend`, with `keys` at the top level.
pub(crate) fn to(backend: SocketAddr, keys: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\nupstreams: {{ app: {{ endpoints: ['{backend}'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n{keys}\n"
    )
}

/// The same over TLS, with the certificate `site`.
pub(crate) fn to_over_tls(backend: SocketAddr) -> String {
    to(backend, &clients::tls(&["site"])).replace("'127.0.0.1:0' }", "'127.0.0.1:0', tls: true }")
}

/// A server that gives each connection to a function of the test's, in a thread of its own.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Backend {
    pub(crate) fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), serve)
    }

    pub(crate) fn start_at(address: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind(address).unwrap(), serve)
    }

    pub(crate) fn start_on(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let backend =
            Self { address: listener.local_addr().unwrap(), connections: Arc::default(), stopped: Arc::default() };
        let (connections, stopped) = (Arc::clone(&backend.connections), Arc::clone(&backend.stopped));
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                connections.fetch_add(1, Ordering::Relaxed);
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream.unwrap()));
            }
        });
        backend
    }

    /// Answers every request with the bytes of `answer`, and closes if `answer` says so.
    pub(crate) fn replying(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |mut stream| {
            while read_request(&mut stream).is_some() {
                if stream.write_all(&answer).is_err() || answer.windows(17).any(|part| part == b"Connection: close") {
                    return;
                }
            }
        })
    }

    /// Answers every request with the bytes of `answer`, once `gate` is open.
    pub(crate) fn held_up(gate: &Gate, answer: &'static [u8]) -> Self {
        let gate = gate.clone();
        Self::start(move |mut stream| {
            while read_request(&mut stream).is_some() {
                gate.wait();
                if stream.write_all(answer).is_err() {
                    return;
                }
            }
        })
    }

    /// Answers with the request as it was received, head and body.
    pub(crate) fn echoing() -> Self {
        Self::echoing_at("127.0.0.1:0")
    }

    pub(crate) fn echoing_at(address: &str) -> Self {
        Self::start_at(address, |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.len());
                if stream.write_all(head.as_bytes()).is_err() || stream.write_all(&request).is_err() {
                    return;
                }
            }
        })
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
    }
}

/// A backend that has nothing more to say.
pub(crate) fn ok() -> Backend {
    Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}

/// Reads one request: its head, and as much body as its `Content-Length` or its chunks say. `None` at the end.
pub(crate) fn read_request(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
    if head.contains("transfer-encoding: chunked") {
        while !request.ends_with(b"\r\n0\r\n\r\n") {
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            request.push(byte[0]);
        }
        return Some(request);
    }
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok()).unwrap_or(0);
    let start = request.len();
    request.resize(start + length, 0);
    stream.read_exact(&mut request[start..]).ok()?;
    Some(request)
}

/// Reads one packet of the uwsgi protocol, and the body that its `CONTENT_LENGTH` says: the variables. `None` at the end.
pub(crate) fn read_packet(stream: &mut impl Read) -> Option<HashMap<String, String>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).ok()?;
    let mut block = vec![0; u16::from_le_bytes([head[1], head[2]]).into()];
    stream.read_exact(&mut block).ok()?;
    let mut rest = &block[..];
    let mut piece = || {
        let (length, after) = rest.split_first_chunk()?;
        let (piece, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
        rest = after;
        Some(String::from_utf8_lossy(piece).into_owned())
    };
    let mut variables = HashMap::new();
    while let Some(name) = piece() {
        variables.insert(name, piece()?);
    }
    let length = variables.get("CONTENT_LENGTH").and_then(|length| length.parse().ok()).unwrap_or(0);
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some(variables)
}

/// Sends `request` to `address` as it is, and reads to the end of the connection.
pub(crate) fn raw(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = connect(address);
    // A peer that refuses may close while it is still being written to; what it said counts.
    drop(stream.write_all(request.as_ref()));
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
            panic!("no end of the answer: {error}; so far {}", String::from_utf8_lossy(&answer))
        }
        _ => String::from_utf8_lossy(&answer).into_owned(),
    }
}

/// A connection whose reads and writes end after ten seconds, so that a test fails rather than hangs.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads one response with a `Content-Length` (or none and no body), leaving the connection open.
pub(crate) fn read_response(stream: &mut TcpStream) -> String {
    String::from_utf8_lossy(&read_request(stream).expect("a response")).into_owned()
}

/// Ends our side of `stream`, as a client that has said all.
pub(crate) fn half_close(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
}

pub(crate) fn status(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("not an answer: {answer:?}"))
}

pub(crate) fn body(answer: &str) -> String {
    answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())
}

/// The value of a header of `answer`, names in any letter case.
pub(crate) fn header(answer: &str, name: &str) -> Option<String> {
    let head = answer.split_once("\r\n\r\n").map_or(answer, |(head, _)| head);
    head.lines().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// Waits until `condition` holds; fails with `what` after ten seconds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// The same for what takes others their time: the start of a program in Python or for Node, a lease that runs out.
pub(crate) fn patiently(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < end, "not within {LONG:?}: {what}");
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// A process of another program, ended when dropped.
pub(crate) struct Peer {
    child: Child,
}

impl Peer {
    /// Starts `command` with its output in `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let output = std::fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        drop(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status());
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::park_timeout(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The program `name`, if it is installed. Without it a test is skipped, which CI does not accept.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
            .map(|folder| folder.join(name))
            .find(|file| file.is_file())
    });
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is not installed; `make test` installs it");
        // Seen with --nocapture.
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// What is installed in `target/peers/NAME`, by `steps` in that folder where its `program` is missing. `None` where that fails,
/// most often for want of a network: the test is skipped then, which CI does not accept.
pub(crate) fn fetched(name: &str, program: &str, steps: &[&[&str]]) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("peers").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    // One installs, the others wait for it, threads and processes alike.
    let lock = std::fs::File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let program = folder.join(program);
    for step in steps.iter().filter(|_| !program.is_file()) {
        let output = Command::new(step[0]).args(&step[1..]).current_dir(&folder).stdin(Stdio::null()).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            assert!(std::env::var_os("CI").is_none(), "{name} cannot be installed: {step:?}: {output:?}");
            eprintln!("skipped: {name} cannot be installed: {step:?}: {output:?}");
            return None;
        }
    }
    Some(program)
}

/// The longest a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(90);

/// Reads to the empty line after a head.
pub(crate) fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut byte);
        assert!(matches!(read, Ok(1)), "{read:?} after {}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Everything that comes until the connection ends; a reset is an end too.
pub(crate) fn read_rest(stream: &mut impl Read) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
            panic!("no end of the answer: {error}; {} bytes so far", rest.len())
        }
        _ => rest,
    }
}

/// The data of a chunked body; `None` when it is not whole.
pub(crate) fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let end = body.windows(2).position(|pair| pair == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        body = &body[end + 2..];
        if size == 0 {
            return (body == b"\r\n").then_some(data);
        }
        data.extend_from_slice(body.get(..size)?);
        body = body.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// Bytes in which any piece that is lost, repeated or moved shows.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// Holds others up until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open; a test that fails before leaves the waiting thread to the end of the process.
    pub(crate) fn wait(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// What of the warnings and errors of this process was logged from a moment on.
pub(crate) struct Warnings(usize);

impl Warnings {
    /// From now on: the port of a backend may have been another one's before.
    pub(crate) fn begin() -> Self {
        Self(WARNINGS.lock().unwrap().len())
    }

    /// The lines that name `address`.
    pub(crate) fn naming(&self, address: impl std::fmt::Display) -> Vec<String> {
        let address = address.to_string();
        let names = |line: &&str| {
            let mut after = line.split(address.as_str()).skip(1);
            after.any(|after| !after.starts_with(|next: char| next.is_ascii_digit()))
        };
        let lines = String::from_utf8(WARNINGS.lock().unwrap()[self.0..].to_vec()).unwrap();
        lines.lines().filter(names).map(str::to_owned).collect()
    }
}

fn keep_warnings() {
    struct Kept;
    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            WARNINGS.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false).with_writer(|| Kept).init();
    });
}

static WARNINGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());
