//! Bodies on their way in and out: whole, byte for byte, within bounds, and never waited for by the application.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::{
    Backend, Gate, PATIENCE, TestGateway, Warnings, body, connect, header, noise, proxying, raw, read_head,
    read_request, read_response, read_rest, status, unchunked, wait_for,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Bytes in the spool, as the metrics have it.
fn spooled(gateway: &TestGateway) -> u64 {
    let text = gateway.gateway().metrics.encode();
    let line = text.lines().find(|line| line.starts_with("vestibule_spool_bytes ")).unwrap_or_else(|| panic!("{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Bytes of the unnamed files that are open in the gateway's folder.
fn on_disk(gateway: &TestGateway) -> u64 {
    let folder = gateway.folder.path().to_str().unwrap();
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let unnamed = |path: &std::path::PathBuf| {
        fs::read_link(path)
            .is_ok_and(|target| target.to_str().is_some_and(|to| to.starts_with(folder) && to.ends_with("(deleted)")))
    };
    descriptors.filter(unnamed).filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum()
}

/// Answers each request with the number of body bytes, their sum, and what framed them.
fn counting() -> Backend {
    Backend::start(|mut stream| {
        while let Some(request) = read_request(&mut stream) {
            let head = request.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            let text = String::from_utf8_lossy(&request[..head]);
            let framing = header(&text, "content-length").or_else(|| header(&text, "transfer-encoding"));
            let sum = checksum(&request[head..]);
            let said = format!("{} {sum} {}", request.len() - head, framing.unwrap_or_default());
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len()).unwrap();
        }
    })
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(17, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// A backend that answers with `head` and `data`, and opens the gate when it has been rid of both.
fn answering(head: String, data: Arc<Vec<u8>>) -> (Backend, Gate) {
    let gone = Gate::default();
    let tell = gone.clone();
    let backend = Backend::start(move |mut stream| {
        if read_request(&mut stream).is_some() {
            stream.write_all(head.as_bytes()).unwrap();
            if stream.write_all(&data).is_ok() {
                tell.open();
            }
        }
    });
    (backend, gone)
}

fn post(body: &[u8]) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn a_chunked_request_arrives_with_its_length() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
         5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: z\r\n\r\n",
    );

    let asked = body(&answer);
    assert_eq!(header(&asked, "content-length").as_deref(), Some("11"));
    assert_eq!(header(&asked, "transfer-encoding"), None);
    assert!(asked.ends_with("\r\n\r\nhello world"), "{asked}");
}

#[test]
fn an_empty_post_is_told_its_length() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    for framing in ["Content-Length: 0\r\n\r\n", "\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let asked = body(&gateway.raw(format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}")));
        assert_eq!(header(&asked, "content-length").as_deref(), Some("0"), "{asked}");
    }
}

#[test]
fn a_large_body_passes_the_spool_byte_for_byte_and_leaves_it_empty() {
    let backend = counting();
    let configuration = proxying(backend.address, "", "") + "spool: { path: ., memory: 64KiB, limit: 16MiB }\n";
    let gateway = TestGateway::start(&configuration);
    let data = noise(10 * 1024 * 1024);

    let answer = gateway.raw(post(&data));

    assert_eq!(body(&answer), format!("{} {} {}", data.len(), checksum(&data), data.len()));
    wait_for("an empty spool", || spooled(&gateway) == 0 && on_disk(&gateway) == 0);
}

#[test]
fn a_body_in_tiny_chunks_is_the_same_body() {
    let backend = counting();
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "spool: { path: ., memory: 4KiB }\n"));
    let data = noise(20_000);
    let mut request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for byte in &data {
        request.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    }
    request.extend_from_slice(b"0\r\n\r\n");

    let answer = gateway.raw(request);

    assert_eq!(body(&answer), format!("{} {} {}", data.len(), checksum(&data), data.len()));
}

#[test]
fn a_body_that_finds_the_spool_full_gets_503() {
    let backend = counting();
    let configuration = proxying(backend.address, "", "") + "spool: { path: ., memory: 64KiB, limit: 1MiB }\n";
    let gateway = TestGateway::start(&configuration);

    let answer = gateway.raw(post(&noise(4 * 1024 * 1024)));

    assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (503, Some("close")), "{answer}");
    assert!(header(&answer, "retry-after").is_some());
    assert_eq!(backend.connections(), 0);
    assert_eq!(spooled(&gateway), 0);
    assert_eq!(status(&gateway.raw(post(b"small"))), 200);
}

#[test]
fn a_chunked_body_is_counted_against_the_limit() {
    let backend = counting();
    let gateway = TestGateway::start(&proxying(backend.address, "", "body_limit: 1KiB"));
    let chunked = |data: &str| {
        let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{:x}\r\n{data}\r\n0\r\n\r\n", data.len())
    };

    let within = gateway.raw(chunked(&"a".repeat(1024)));
    let beyond = gateway.raw(chunked(&"a".repeat(1025)));

    assert_eq!((status(&within), status(&beyond)), (200, 413));
    assert_eq!(header(&beyond, "connection").as_deref(), Some("close"));
    assert!(beyond.contains("At most 1 KiB can be sent at once."), "{beyond}");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn without_a_limit_only_the_spool_bounds_a_body() {
    let backend = counting();
    let gateway = TestGateway::start(&proxying(backend.address, "", "body_limit: null"));

    let answer = gateway.raw(post(&vec![b'a'; 17 * 1024 * 1024]));

    assert_eq!(status(&answer), 200);
}

#[test]
fn an_upload_with_pauses_is_taken_and_one_that_stops_is_given_up() {
    let backend = counting();
    let configuration = proxying(backend.address, "", "") + "limits: { progress_timeout: 400ms, minimum_rate: 0 }\n";
    let gateway = TestGateway::start(&configuration);
    let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 8\r\n\r\n";
    let (mut slow, mut stopped) = (connect(gateway.address(0)), connect(gateway.address(0)));

    slow.write_all(head.as_bytes()).unwrap();
    for _ in 0..8 {
        // Together they take longer than any one pause may.
        thread::park_timeout(Duration::from_millis(75));
        slow.write_all(b"a").unwrap();
    }
    stopped.write_all(format!("{head}aaaa").as_bytes()).unwrap();

    assert_eq!(status(&read_response(&mut slow)), 200);
    assert_eq!(status(&read_response(&mut stopped)), 408);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn an_unbuffered_body_reaches_the_backend_before_it_has_ended() {
    let first = Gate::default();
    let seen = first.clone();
    let backend = Backend::start(move |mut stream| {
        let head = read_head(&mut stream);
        assert_eq!(header(&head, "content-length").as_deref(), Some("6"));
        let mut half = [0; 3];
        stream.read_exact(&mut half).unwrap();
        seen.open();
        stream.read_exact(&mut half).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", str::from_utf8(&half).unwrap()).unwrap();
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", "buffer: { request: false }"));
    let mut client = connect(gateway.address(0));

    client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\none").unwrap();
    first.wait();
    client.write_all(b"two").unwrap();

    assert_eq!(body(&read_response(&mut client)), "two");
}

#[test]
fn an_unbuffered_body_without_a_length_goes_in_chunks() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", "buffer: { request: false }"));

    let answer = gateway.raw(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n",
    );

    let asked = body(&answer);
    assert_eq!(header(&asked, "transfer-encoding").as_deref(), Some("chunked"));
    let (_, chunks) = asked.split_once("\r\n\r\n").unwrap();
    assert_eq!(unchunked(chunks.as_bytes()).unwrap(), b"onetwo");
}

#[test]
fn an_unbuffered_upload_that_stops_is_the_clients_fault() {
    let backend = counting();
    let warnings = Warnings::begin();
    let configuration =
        proxying(backend.address, "", "buffer: { request: false }") + "limits: { progress_timeout: 200ms }\n";
    let gateway = TestGateway::start(&configuration);
    let mut client = connect(gateway.address(0));

    client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\none").unwrap();

    assert_eq!(status(&read_response(&mut client)), 408);
    assert_eq!(warnings.naming(backend.address), [""; 0]);
}

#[test]
fn an_unbuffered_body_beyond_the_limit_is_refused_and_never_whole_to_the_backend() {
    let rest = Arc::new(AtomicU64::new(u64::MAX));
    let seen = Arc::clone(&rest);
    let backend = Backend::start(move |mut stream| {
        read_head(&mut stream);
        let body = read_rest(&mut stream);
        assert!(!body.ends_with(b"0\r\n\r\n"));
        seen.store(body.len() as u64, Ordering::Relaxed);
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", "body_limit: 1KiB, buffer: { request: false }"));

    let chunk = format!("3ff\r\n{}\r\n", "a".repeat(1023));
    let answer =
        gateway.raw(format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"));

    assert_eq!(status(&answer), 413, "{answer}");
    wait_for("the end of the backend's connection", || rest.load(Ordering::Relaxed) < 2048);
}

/// Echoes what follows the head, piece by piece, while it still comes.
fn duplex() -> Backend {
    Backend::start(|mut stream| {
        let head = read_head(&mut stream);
        let length = header(&head, "content-length").unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").unwrap();
        let mut piece = vec![0; 8192];
        let mut left: usize = length.parse().unwrap();
        while left > 0 {
            let Ok(read @ 1..) = stream.read(&mut piece) else { return };
            left -= read;
            stream.write_all(&piece[..read]).unwrap();
        }
    })
}

#[test]
fn an_answer_that_begins_before_the_request_has_ended_gets_the_rest_of_it() {
    for buffer in ["request: false, response: false", "request: false"] {
        let backend = duplex();
        let gateway = TestGateway::start(&proxying(backend.address, "", &format!("buffer: {{ {buffer} }}")));
        let mut client = connect(gateway.address(0));
        let data = noise(1024 * 1024);

        write!(client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", data.len()).unwrap();
        let head = read_head(&mut client);
        let mut sender = client.try_clone().unwrap();
        let sent = data.clone();
        thread::spawn(move || sender.write_all(&sent));
        let mut echo = vec![0; data.len()];
        client.read_exact(&mut echo).unwrap_or_else(|error| panic!("{buffer}: {error} after {head}"));

        assert!(echo == data, "{buffer}: not what was sent");
    }
}

/// With one place in the application, whoever is next is served while the first client still reads.
fn a_slow_reader_frees_the_place(spool: &str, length: usize) {
    let data = Arc::new(noise(length));
    let (backend, gone) = answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"), Arc::clone(&data));
    let gateway = TestGateway::start(&(proxying(backend.address, "concurrency: 1", "") + spool));
    let mut slow = connect(gateway.address(0));
    slow.write_all(GET.as_bytes()).unwrap();
    read_head(&mut slow);

    gone.wait();
    let next = TcpStream::connect(gateway.address(0)).map(|mut stream| {
        stream.write_all(GET.as_bytes()).unwrap();
        read_head(&mut stream);
        read_rest(&mut stream)
    });

    assert!(next.unwrap() == *data, "the second client got something else");
    assert!(read_rest(&mut slow) == *data, "the slow client got something else");
    wait_for("an empty spool", || spooled(&gateway) == 0 && on_disk(&gateway) == 0);
}

#[test]
fn a_slow_reader_of_what_fits_in_memory_frees_the_place() {
    a_slow_reader_frees_the_place("spool: { path: ., memory: 16MiB, limit: 0B }\n", 12 * 1024 * 1024);
}

#[test]
fn a_slow_reader_of_what_goes_through_the_spool_frees_the_place() {
    a_slow_reader_frees_the_place("spool: { path: ., memory: 64KiB, limit: 64MiB }\n", 24 * 1024 * 1024);
}

#[test]
fn a_full_spool_slows_the_backend_and_loses_nothing() {
    const LIMIT: u64 = 1024 * 1024;
    let data = Arc::new(noise(32 * 1024 * 1024));
    let (backend, _) = answering("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned(), Arc::clone(&data));
    let configuration = proxying(backend.address, "", "") + "spool: { path: ., memory: 64KiB, limit: 1MiB }\n";
    let gateway = TestGateway::start(&configuration);
    let mut slow = connect(gateway.address(0));
    slow.write_all(GET.as_bytes()).unwrap();
    let head = read_head(&mut slow);
    assert_eq!(header(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
    wait_for("a spool that is nearly full", || spooled(&gateway) > LIMIT / 2);

    let mut body = Vec::new();
    let mut piece = vec![0; 256 * 1024];
    let mut most = 0;
    loop {
        match slow.read(&mut piece).unwrap() {
            0 => break,
            read => body.extend_from_slice(&piece[..read]),
        }
        most = most.max(on_disk(&gateway));
    }

    assert!(unchunked(&body).is_some_and(|body| body == *data), "not what was sent");
    assert!(most <= LIMIT, "{most} bytes were on disk, {LIMIT} are allowed");
}

#[test]
fn a_client_that_goes_gives_back_what_it_had_in_the_spool() {
    let data = Arc::new(noise(24 * 1024 * 1024));
    let (backend, gone) = answering("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned(), data);
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + "spool: { path: ., memory: 64KiB }\n"));
    let mut slow = connect(gateway.address(0));
    slow.write_all(GET.as_bytes()).unwrap();
    read_head(&mut slow);
    gone.wait();
    assert!(spooled(&gateway) > 0);

    drop(slow);

    wait_for("an empty spool", || spooled(&gateway) == 0 && on_disk(&gateway) == 0);
}

/// The first piece of an answer arrives while the backend waits to be told to go on.
fn is_streamed(head: &str, route: &str) {
    let go_on = Gate::default();
    let told = go_on.clone();
    let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n");
    let backend = Backend::start(move |mut stream| {
        read_request(&mut stream);
        stream.write_all(answer.as_bytes()).unwrap();
        stream.write_all(b"6\r\none...\r\n").unwrap();
        told.wait();
        stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").unwrap();
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", route));
    let mut client = connect(gateway.address(0));
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n").unwrap();

    let head = read_head(&mut client);
    let mut first = [0; 11];
    client.read_exact(&mut first).expect("the first piece, before there is a second one");
    go_on.open();
    let rest = read_rest(&mut client);

    assert_eq!(header(&head, "x-accel-buffering"), None, "{head}");
    assert_eq!(unchunked(&[&first[..], &rest].concat()).unwrap(), b"one...two", "{head}");
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

#[test]
fn an_unbuffered_response_is_passed_on_as_it_comes() {
    is_streamed(CHUNKED, "buffer: { response: false }");
}

#[test]
fn an_event_stream_is_passed_on_as_it_comes() {
    is_streamed(&format!("{CHUNKED}Content-Type: text/event-stream; charset=utf-8\r\n"), "");
}

#[test]
fn a_response_that_asks_for_it_is_passed_on_as_it_comes() {
    is_streamed(&format!("{CHUNKED}X-Accel-Buffering: no\r\n"), "");
}

#[test]
fn a_buffered_response_is_not_held_back_either() {
    is_streamed(CHUNKED, "compress: false");
}

/// An answer that stops in the middle, in each way a backend can stop.
#[test]
fn a_response_that_breaks_off_never_looks_whole() {
    let large = "a".repeat(200_000);
    let answers = [
        ("a short length", "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n".to_owned() + &large),
        ("no last chunk", format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n30d40\r\n{large}\r\n")),
        ("half a chunk", format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n40d40\r\n{large}")),
        ("no end of the trailers", format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n30d40\r\n{large}\r\n0\r\n")),
        ("a chunk that is none", format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n30d40\r\n{large}\r\nzz\r\n")),
    ];
    for (what, answer) in answers {
        for route in ["", "buffer: { response: false }"] {
            for typed in ["", "Content-Type: text/html\r\n"] {
                let warnings = Warnings::begin();
                let answer = answer.replacen("OK\r\n", &format!("OK\r\n{typed}"), 1);
                let backend = Backend::start(move |mut stream| {
                    if read_request(&mut stream).is_some() {
                        drop(stream.write_all(answer.as_bytes()));
                    }
                });
                let configuration = proxying(backend.address, "", route)
                    + "access_log: { path: access.log, format: '{status} {note}' }\n";
                let gateway = TestGateway::start(&configuration);
                let mut client = connect(gateway.address(0));

                client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n").unwrap();
                let head = read_head(&mut client);
                let body = read_rest(&mut client);

                let whole = match header(&head, "content-length") {
                    Some(length) => body.len() >= length.parse().unwrap(),
                    None => body.ends_with(b"0\r\n\r\n"),
                };
                assert!(!whole, "{what}, {route}, {typed}: {} bytes after {head}", body.len());
                let named = warnings.naming(backend.address);
                assert_eq!(named.len(), 1, "{what}: {named:?}");
                assert!(gateway.log(1)[0].contains(&backend.address.to_string()), "{what}");
            }
        }
    }
}

#[test]
fn a_response_that_is_reset_never_looks_whole() {
    // Its end would be the end of the connection, and that is what a reset is not.
    let backend = Backend::start(|mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").unwrap();
        thread::park_timeout(Duration::from_millis(50));
        // The body that was not read makes a reset of the end.
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let mut client = connect(gateway.address(0));
    client.write_all(&post(b"not read")).unwrap();
    let head = read_head(&mut client);
    let body = read_rest(&mut client);

    assert_eq!(header(&head, "transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(unchunked(&body), None, "{}", String::from_utf8_lossy(&body));
}

#[test]
fn a_response_that_breaks_off_is_a_reset_to_a_client_that_knows_no_chunks() {
    let backend = Backend::start(|mut stream| {
        read_request(&mut stream);
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf"));
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let end = client.read_to_end(&mut Vec::new());

    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_chunked_response_reaches_a_client_of_http_1_0_without_chunks() {
    let backend =
        Backend::replying(format!("HTTP/1.1 200 OK\r\n{CHUNKED}\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nTrailer: x\r\n\r\n"));
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");

    assert_eq!((header(&answer, "transfer-encoding"), body(&answer).as_str()), (None, "onetwo"));
    assert_eq!(header(&answer, "connection").as_deref(), Some("close"));
}

#[test]
fn a_response_that_ends_with_its_connection_is_whole() {
    let backend = Backend::replying("HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nall of it");
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw(GET);

    assert_eq!(unchunked(body(&answer).as_bytes()).unwrap(), b"all of it");
}

fn asking_for(encoding: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {encoding}\r\nConnection: close\r\n\r\n")
}

#[test]
fn a_response_is_compressed_as_the_client_likes_it() {
    let text = "All work and no play makes Jack a dull boy.\n".repeat(1000);
    let length = text.len();
    let backend = Backend::replying(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"one\"\r\nContent-Length: {length}\r\n\r\n{text}"
    ));
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    for (accepted, expected) in [
        ("gzip", Some("gzip")),
        ("br", Some("br")),
        ("zstd", Some("zstd")),
        ("gzip;q=0.5, br;q=0.9", Some("br")),
        ("identity", None),
        ("gzip;q=0", None),
        ("deflate", None),
    ] {
        let mut client = connect(gateway.address(0));
        client.write_all(asking_for(accepted).as_bytes()).unwrap();
        let head = read_head(&mut client);
        let body = read_rest(&mut client);

        assert_eq!(header(&head, "content-encoding").as_deref(), expected, "{accepted}");
        assert_eq!(header(&head, "vary").as_deref(), Some("Accept-Encoding"), "{accepted}");
        let etag = if expected.is_some() { "W/\"one\"" } else { "\"one\"" };
        assert_eq!(header(&head, "etag").as_deref(), Some(etag), "{accepted}");
        let decoded = match expected {
            None => body,
            Some(coding) => {
                let encoded = unchunked(&body).unwrap();
                assert!(encoded.len() < length / 10, "{accepted}: {} bytes", encoded.len());
                decode(coding, &encoded)
            }
        };
        assert!(decoded == text.as_bytes(), "{accepted}: not what was sent");
    }
}

/// What was encoded in `coding`.
pub(crate) fn decode(coding: &str, encoded: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    match coding {
        "gzip" => flate2::read::GzDecoder::new(encoded).read_to_end(&mut decoded).unwrap(),
        "br" => brotli::Decompressor::new(encoded, 4096).read_to_end(&mut decoded).unwrap(),
        _ => zstd::stream::read::Decoder::new(encoded).unwrap().read_to_end(&mut decoded).unwrap(),
    };
    decoded
}

#[test]
fn what_is_encoded_or_no_text_or_short_or_not_to_be_touched_stays_as_it_is() {
    let long = "b".repeat(5000);
    for (fields, data) in [
        ("Content-Type: text/html\r\nContent-Encoding: br\r\n", long.as_str()),
        ("Content-Type: image/png\r\n", &long),
        ("", &long),
        ("Content-Type: text/html\r\n", "short"),
        ("Content-Type: text/html\r\nCache-Control: no-transform\r\n", &long),
    ] {
        let backend = Backend::replying(format!(
            "HTTP/1.1 200 OK\r\n{fields}ETag: \"one\"\r\nContent-Length: {}\r\n\r\n{data}",
            data.len()
        ));
        let gateway = TestGateway::start(&proxying(backend.address, "", ""));

        let answer = gateway.raw(asking_for("gzip, br, zstd"));

        assert_eq!(body(&answer), data, "{fields}");
        assert_eq!(header(&answer, "etag").as_deref(), Some("\"one\""), "{fields}");
        assert_eq!(header(&answer, "content-length"), Some(data.len().to_string()), "{fields}");
    }
}

#[test]
fn a_status_without_a_body_ends_with_its_head_whatever_its_length_says() {
    for (answer, expected) in [
        ("204 No Content\r\nContent-Length: 5\r\n\r\n", 204),
        ("204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204),
        ("304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304),
        ("304 Not Modified\r\nETag: \"a\"\r\n\r\n", 304),
        ("304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304),
    ] {
        let backend = Backend::replying(format!("HTTP/1.1 {answer}"));
        let gateway = TestGateway::start(&proxying(backend.address, "", ""));
        let mut client = connect(gateway.address(0));

        for _ in 0..2 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n").unwrap();
            // The next answer begins right behind this head.
            let head = read_head(&mut client);
            assert_eq!(status(&head), expected, "{answer}: {head}");
            assert_eq!(header(&head, "transfer-encoding"), None, "{answer}: {head}");
            assert!(expected != 204 || header(&head, "content-length").is_none(), "{answer}: {head}");
        }
    }
}

#[test]
fn the_answer_to_head_ends_with_its_head_whatever_its_length_says() {
    for fields in ["Content-Length: 5000\r\n", "Transfer-Encoding: chunked\r\n", "", "Content-Length: 0\r\n"] {
        let backend =
            Backend::replying(format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{fields}\r\n").into_bytes());
        let gateway = TestGateway::start(&proxying(backend.address, "", ""));
        let mut client = connect(gateway.address(0));

        for _ in 0..2 {
            client.write_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let head = read_head(&mut client);
            assert_eq!(status(&head), 200, "{fields}");
            let said = fields.strip_prefix("Content-Length: ").map(str::trim);
            assert_eq!(header(&head, "content-length").as_deref(), said, "{fields}: {head}");
        }
    }
}

/// A client that takes little at once, so that what is sent to it goes in parts.
pub(crate) fn narrow(address: std::net::SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    TcpStream::from(socket)
}

const COUNTED: &str = "access_log: { path: access.log, format: '{status} {bytes_sent}' }\n";

#[test]
fn long_responses_one_after_the_other_are_whole_and_counted() {
    let data = Arc::new(noise(3 * 1024 * 1024 + 1));
    let sent = Arc::clone(&data);
    let backend = Backend::start(move |mut stream| {
        while let Some(request) = read_request(&mut stream) {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
            if request.starts_with(b"GET") {
                stream.write_all(&sent).unwrap();
            }
        }
    });
    for buffer in ["true", "false"] {
        let route = format!("buffer: {{ response: {buffer} }}");
        let gateway = TestGateway::start(&(proxying(backend.address, "", &route) + COUNTED));
        let before = backend.connections();
        let mut client = narrow(gateway.address(0));

        let ask = |method: &str| format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
        client.write_all([ask("GET"), ask("HEAD"), ask("GET"), ask("GET")].concat().as_bytes()).unwrap();

        for body in [true, false, true, true] {
            let head = read_head(&mut client);
            assert_eq!(header(&head, "content-length"), Some(data.len().to_string()), "{head}");
            let mut read = vec![0; if body { data.len() } else { 0 }];
            client.read_exact(&mut read).unwrap();
            assert!(!body || read == *data, "{buffer}: not what was sent");
        }
        let whole = format!("200 {}", data.len());
        assert_eq!(gateway.log(4), [&whole, "200 0", &whole, &whole]);
        // One that has answered HEAD is not used again: an application may have sent a body all the same.
        assert_eq!(backend.connections() - before, 2, "{buffer}: connections that could have been used again");
    }
}

#[test]
fn what_follows_a_long_response_is_nobodys_answer() {
    let data = Arc::new(noise(1024 * 1024));
    let sent = Arc::clone(&data);
    let backend = Backend::start(move |mut stream| {
        while read_request(&mut stream).is_some() {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
            drop(stream.write_all(&[&sent[..], b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat()));
        }
    });
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));
    let mut client = connect(gateway.address(0));

    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        read_head(&mut client);
        let mut read = vec![0; data.len()];
        client.read_exact(&mut read).unwrap();
        assert!(read == *data, "not what was sent");
    }

    assert_eq!(backend.connections(), 2);
}

#[test]
fn of_a_long_response_that_breaks_off_what_has_come_is_passed_on_and_counted() {
    const SENT: usize = 1_000_003;
    let backend = Backend::start(|mut stream| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n").unwrap();
        stream.write_all(&noise(SENT)).unwrap();
    });
    let gateway = TestGateway::start(&(proxying(backend.address, "", "") + COUNTED));
    let mut client = narrow(gateway.address(0));

    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    read_head(&mut client);
    let body = read_rest(&mut client);

    assert!(body == noise(SENT), "{} bytes", body.len());
    assert_eq!(gateway.log(1), [format!("200 {SENT}")]);
}

#[test]
fn an_upload_counts_as_received_and_a_download_as_sent() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let configuration = proxying(backend.address, "", "")
        + "access_log: { path: access.log, format: '{status} {bytes_received} {bytes_sent}' }\n";
    let gateway = TestGateway::start(&configuration);

    raw(gateway.address(0), post(b"twelve bytes"));

    assert_eq!(gateway.log(1), ["200 12 5"]);
}

#[test]
fn a_client_that_trickles_its_body_is_refused_and_one_that_is_slow_is_not() {
    let backend = counting();
    for request in ["true", "false"] {
        let gateway = TestGateway::start(
            &(proxying(backend.address, "", &format!("buffer: {{ request: {request} }}, minimum_rate: 1KiB"))
                + "limits: { progress_timeout: 1s }\naccess_log: { path: access.log, format: json }\n"),
        );
        let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10000\r\n\r\n";
        let (mut slow, mut trickling) = (connect(gateway.address(0)), connect(gateway.address(0)));
        slow.write_all(head.as_bytes()).unwrap();
        trickling.write_all(head.as_bytes()).unwrap();

        // Twice what is asked for, and a fiftieth of it.
        for piece in 0..100 {
            slow.write_all(&[b'a'; 100]).unwrap();
            if piece < 20 {
                trickling.write_all(b"a").unwrap();
            }
            thread::park_timeout(Duration::from_millis(50));
        }

        assert_eq!(status(&read_response(&mut slow)), 200, "buffered: {request}");
        assert_eq!(status(&read_response(&mut trickling)), 408, "buffered: {request}");
        let lines = gateway.log(2);
        assert_eq!(lines.iter().filter(|line| line.contains("client too slow")).count(), 1, "{lines:?}");
    }
}

#[test]
fn a_client_that_trickles_a_response_is_cut_off_and_one_that_is_slow_gets_all_of_it() {
    const LENGTH: usize = 16 << 20;
    let backend = Backend::start(|mut stream| {
        read_request(&mut stream);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n").unwrap();
        drop(stream.write_all(&vec![b'a'; LENGTH]));
    });
    let gateway = TestGateway::start(
        &(proxying(backend.address, "", "progress_timeout: 2s")
            + "limits: { minimum_rate: 512KiB }\naccess_log: { path: access.log, format: json }\n"),
    );
    let address = gateway.address(0);
    let take = move |at_once: usize| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        socket.connect(&address.into()).unwrap();
        let mut client = TcpStream::from(socket);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let (mut taken, mut piece) = (0, vec![0; at_once]);
        loop {
            match client.read(&mut piece) {
                Ok(0) | Err(_) => return taken,
                Ok(read) => taken += read,
            }
            thread::park_timeout(Duration::from_millis(10));
        }
    };

    let trickling = thread::spawn(move || take(1024));
    let slow = take(64 * 1024);

    assert!(slow > LENGTH, "{slow} bytes, with the head");
    let trickled = trickling.join().unwrap();
    assert!(trickled < LENGTH / 2, "{trickled}");
    let lines = gateway.log(2);
    assert_eq!(lines.iter().filter(|line| line.contains("client too slow")).count(), 1, "{lines:?}");
}
