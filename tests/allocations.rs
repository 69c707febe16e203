//! How often memory is taken for one proxied request, once everything that is kept is there.
//!
//! A whole gateway is in this process, with its access log and its threads, and all that any of them takes counts. The
//! client and the backend are here, too, and take nothing: they read and write what is made before.
//!
//! A number that grows says that a request takes what it could keep. The bounds are what it is, with room for the
//! threads that do something now and then; who takes less, lowers them.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]
#![allow(unsafe_code, reason = "an allocator that counts is an `unsafe impl`")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use vestibule::{
    config::{self, ListenAddress},
    gateway::Gateway,
    keeper::Provisions,
    tls::TicketKeys,
};

/// The system's, with a count.
struct Counting;

static TAKEN: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

fn count(bytes: usize) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

// SAFETY: every call is the system allocator's with the same arguments; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one of them takes would count for the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_request_over_http_takes_memory_no_more_often_than_it_needs() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    let taken = taken_per_request("http");

    assert!(taken <= 19.0, "{taken} allocations a request");
}

#[test]
fn a_request_over_uwsgi_takes_memory_no_more_often_than_it_needs() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    let taken = taken_per_request("uwsgi");

    assert!(taken <= 22.0, "{taken} allocations a request");
}

/// Of requests one after the other on one connection, as a browser sends them.
fn taken_per_request(protocol: &str) -> f64 {
    const REQUESTS: u32 = 1000;
    let folder = tempfile::tempdir().unwrap();
    let backend = backend(protocol == "http");
    let text = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ protocol: {protocol}, endpoints: ['{backend}'], concurrency: 4 }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n\
         tls: {{ storage: storage }}\nspool: {{ path: . }}\naccess_log: {{ path: access.log }}\nworkers: 1\n"
    );
    let file = folder.path().join("vestibule.yml");
    let plan = config::parse(file.to_str().unwrap(), &text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
    let provisions = Provisions::gather(&plan).unwrap_or_else(|faults| panic!("{faults}"));
    let gateway = Gateway::start(plan, provisions, 1, &TicketKeys::generate().unwrap(), None).unwrap();
    let ListenAddress::Tcp(address) = gateway.addresses()[0] else { panic!("not TCP") };
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();

    (0..REQUESTS / 4).for_each(|_| exchange(&mut client));
    let (before, bytes_before) = (TAKEN.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    (0..REQUESTS).for_each(|_| exchange(&mut client));
    let (taken, bytes) = (TAKEN.load(Ordering::Relaxed) - before, BYTES.load(Ordering::Relaxed) - bytes_before);

    #[allow(clippy::cast_precision_loss, reason = "a few thousand of either")]
    let (taken, bytes) = (taken as f64 / f64::from(REQUESTS), bytes as f64 / f64::from(REQUESTS));
    eprintln!("a request over {protocol}: {taken:.2} allocations, {bytes:.0} bytes");
    gateway.stop(Duration::from_secs(2));
    taken
}

const REQUEST: &[u8] = b"GET /app/interview?i=1 HTTP/1.1\r\n\
    Host: app.example.org\r\n\
    Connection: keep-alive\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Cookie: session=eyJfcGVybWFuZW50Ijp0cnVlfQ.Zx1c2Q.0123456789abcdefghij\r\n\
    Referer: https://app.example.org/app/\r\n\r\n";

const BODY: &[u8; 200] = &[b'x'; 200];

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Content-Type: text/html; charset=utf-8\r\n\
    Content-Length: 200\r\n\
    Vary: Cookie\r\n\r\n";

/// Sends one request and reads its answer.
fn exchange(client: &mut TcpStream) {
    client.write_all(REQUEST).unwrap();
    let mut answer = [0; 2048];
    let mut length = 0;
    while !answer[..length].ends_with(BODY) {
        let read = client.read(&mut answer[length..]).unwrap();
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer[..length]));
        length += read;
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..length]));
}

/// An application that answers every request alike: over HTTP on connections that stay; over uwsgi, as uWSGI does, on one
/// connection for each.
fn backend(keeps: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the process.
    thread::spawn(move || {
        let mut answer = HEAD.to_vec();
        answer.extend_from_slice(BODY);
        while let Ok((mut connection, _)) = listener.accept() {
            while answer_one(&mut connection, &answer, keeps) && keeps {}
        }
    });
    address
}

fn answer_one(connection: &mut TcpStream, answer: &[u8], http: bool) -> bool {
    let mut request = [0; 4096];
    let mut length = 0;
    let is_whole = |request: &[u8]| match (http, request) {
        (true, request) => request.ends_with(b"\r\n\r\n"),
        (false, [_, low, high, _, block @ ..]) => block.len() >= usize::from(u16::from_le_bytes([*low, *high])),
        (false, _) => false,
    };
    while !is_whole(&request[..length]) {
        match connection.read(&mut request[length..]) {
            Ok(read @ 1..) => length += read,
            _ => return false,
        }
    }
    connection.write_all(answer).is_ok()
}
