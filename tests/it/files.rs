//! Files that an application names and the gateway sends.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::SocketAddr,
    thread,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::support::{
    Backend, TestGateway,
    applications::{Uwsgi, application_at},
    body,
    clients::{self, H2, block_on},
    connect, header, proxying, status, wait_for,
};

const HOST: &str = "Host: localhost\r\nConnection: close\r\n";

/// A gateway before uWSGI, which may have the files under `{dir}/files` sent.
struct Files {
    gateway: TestGateway,
    _uwsgi: Uwsgi,
}

impl Files {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("files")).unwrap();
        let uwsgi = Uwsgi::start(folder.path(), &[])?;
        let endpoint = format!("unix:{}", uwsgi.socket.display());
        let configuration = application_at(endpoint, "protocol: uwsgi", "files: ['{dir}/files']");
        Some(Self { gateway: TestGateway::start_in(folder, &configuration), _uwsgi: uwsgi })
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.gateway.folder.path().join("files").join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Asks for an answer with these headers, and sends `fields` with the request.
    fn ask(&self, method: &str, answer: &[(&str, &str)], fields: &str) -> String {
        let query: Vec<_> = answer
            .iter()
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        self.gateway.raw(format!("{method} /file?{} HTTP/1.1\r\n{HOST}{fields}\r\n", query.join("&")))
    }
}

/// The two headers that name the file at `path`.
fn both(path: &str) -> [(&'static str, String); 2] {
    [("X-Sendfile", path.to_owned()), ("X-Accel-Redirect", format!("/xaccel{path}"))]
}

#[test]
fn a_named_file_is_the_body_and_every_header_of_the_application_stays() {
    let Some(files) = Files::start() else { return };
    let path = files.write("letter.txt", b"Dear client");
    for (name, value) in both(&path) {
        let answer = files.ask(
            "GET",
            &[
                (name, &value),
                ("Content-Type", "application/x-letter"),
                ("Content-Disposition", "attachment; filename=letter.txt"),
                ("Set-Cookie", "a=1"),
                ("Cache-Control", "no-cache"),
                ("Strict-Transport-Security", "max-age=31536000"),
                ("X-Content-Type-Options", "nosniff"),
                ("Content-Security-Policy", "frame-ancestors 'self'"),
                ("Access-Control-Allow-Origin", "https://other.example"),
            ],
            "",
        );

        assert_eq!((status(&answer), body(&answer)), (200, "Dear client".into()), "{name}");
        for (field, expected) in [
            ("content-type", "application/x-letter"),
            ("content-disposition", "attachment; filename=letter.txt"),
            ("set-cookie", "a=1"),
            ("cache-control", "no-cache"),
            ("strict-transport-security", "max-age=31536000"),
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "frame-ancestors 'self'"),
            ("access-control-allow-origin", "https://other.example"),
            ("content-length", "11"),
            ("accept-ranges", "bytes"),
        ] {
            assert_eq!(header(&answer, field).as_deref(), Some(expected), "{name}: {field}");
        }
        assert!(header(&answer, "etag").is_some() && header(&answer, "last-modified").is_some(), "{answer}");
        assert_eq!(header(&answer, name), None, "{name} is between the application and us");
        assert!(!answer.contains(&path), "the path has leaked: {answer}");
    }
}

#[test]
fn names_are_taken_as_the_application_spells_them() {
    let Some(files) = Files::start() else { return };
    for file in ["with space.txt", "100%41.txt", "what?.txt", "Größe ☃.txt", "a;b,c.txt"] {
        let path = files.write(file, file.as_bytes());
        for (name, value) in both(&path) {
            // WSGI carries the bytes of a header as Latin-1.
            let answer = files.ask("GET", &[(name, &value.bytes().map(char::from).collect::<String>())], "");

            assert_eq!((status(&answer), body(&answer)), (200, file.into()), "{name}: {file}");
        }
    }
}

#[test]
fn a_range_is_a_206_and_one_beyond_the_end_a_416() {
    let Some(files) = Files::start() else { return };
    let path = files.write("digits", b"0123456789");
    for (name, value) in both(&path) {
        let ask = |range: &str| files.ask("GET", &[(name, &value)], &format!("Range: {range}\r\n"));

        for (range, expected, content_range) in [
            ("bytes=2-4", "234", "bytes 2-4/10"),
            ("bytes=8-", "89", "bytes 8-9/10"),
            ("bytes=-3", "789", "bytes 7-9/10"),
            ("bytes=0-99", "0123456789", "bytes 0-9/10"),
        ] {
            let answer = ask(range);
            assert_eq!((status(&answer), body(&answer)), (206, expected.into()), "{name}: {range}");
            assert_eq!(header(&answer, "content-range").as_deref(), Some(content_range), "{name}: {range}");
        }
        let beyond = ask("bytes=10-");
        assert_eq!(status(&beyond), 416, "{name}");
        assert_eq!(header(&beyond, "content-range").as_deref(), Some("bytes */10"), "{name}");
    }
}

#[test]
fn several_ranges_come_as_parts_of_one_answer() {
    let Some(files) = Files::start() else { return };
    let path = files.write("digits.txt", b"0123456789");

    let answer = files.ask("GET", &[("X-Sendfile", &path)], "Range: bytes=0-1,5-6\r\n");

    assert_eq!(status(&answer), 206);
    let kind = header(&answer, "content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap_or_else(|| panic!("{kind}"));
    let body = body(&answer);
    let parts: Vec<_> = body.split(&format!("--{boundary}")).collect();
    assert_eq!(parts.len(), 4, "{body}");
    assert!(parts[1].contains("Content-Range: bytes 0-1/10") && parts[1].ends_with("\r\n\r\n01\r\n"), "{body}");
    assert!(parts[2].contains("Content-Range: bytes 5-6/10") && parts[2].ends_with("\r\n\r\n56\r\n"), "{body}");
    assert_eq!(parts[3], "--\r\n");
    assert_eq!(header(&answer, "content-length"), Some(body.len().to_string()));
}

#[test]
fn conditions_are_answered_without_the_file() {
    let Some(files) = Files::start() else { return };
    let path = files.write("page.html", b"<p>page");
    for (name, value) in both(&path) {
        let ask = |fields: &str| files.ask("GET", &[(name, &value), ("Set-Cookie", "a=1")], fields);
        let first = ask("");
        let (etag, modified) = (header(&first, "etag").unwrap(), header(&first, "last-modified").unwrap());

        for (field, expected) in [
            (format!("If-None-Match: {etag}"), 304),
            (format!("If-None-Match: \"other\", {etag}"), 304),
            (format!("If-Modified-Since: {modified}"), 304),
            ("If-None-Match: \"other\"".to_owned(), 200),
            ("If-Match: \"other\"".to_owned(), 412),
            ("If-Unmodified-Since: Mon, 01 Jan 2001 00:00:00 GMT".to_owned(), 412),
            (format!("If-None-Match: \"other\"\r\nIf-Modified-Since: {modified}"), 200),
        ] {
            let answer = ask(&format!("{field}\r\n"));
            assert_eq!(status(&answer), expected, "{name}: {field}");
            assert_eq!(body(&answer).is_empty(), expected != 200, "{name}: {field}");
            assert_eq!(header(&answer, "set-cookie").as_deref(), Some("a=1"), "{name}: {field}");
        }
    }
}

#[test]
fn a_head_has_the_headers_of_a_get_and_no_body() {
    let Some(files) = Files::start() else { return };
    let path = files.write("digits", b"0123456789");
    for (name, value) in both(&path) {
        let answer = files.ask("HEAD", &[(name, &value)], "");

        assert_eq!((status(&answer), body(&answer)), (200, String::new()), "{name}");
        assert_eq!(header(&answer, "content-length").as_deref(), Some("10"), "{name}");
    }
}

#[test]
fn an_empty_file_is_an_empty_answer() {
    let Some(files) = Files::start() else { return };
    let path = files.write("empty", b"");
    for (name, value) in both(&path) {
        let answer = files.ask("GET", &[(name, &value)], "");

        assert_eq!((status(&answer), body(&answer)), (200, String::new()), "{name}");
        assert_eq!(header(&answer, "content-length").as_deref(), Some("0"), "{name}");
    }
}

#[test]
fn a_file_beyond_four_gigabytes_has_its_length_and_its_end() {
    let Some(files) = Files::start() else { return };
    let path = files.write("large", b"");
    let file = File::options().write(true).open(&path).unwrap();
    let length = 5 << 30_u64;
    file.set_len(length).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"the end", length - 7).unwrap();

    let head = files.ask("HEAD", &[("X-Sendfile", &path)], "");
    let end = files.ask("GET", &[("X-Sendfile", &path)], "Range: bytes=-10\r\n");

    assert_eq!(header(&head, "content-length"), Some(length.to_string()));
    assert_eq!((status(&end), body(&end)), (206, "\0\0\0the end".into()));
    assert_eq!(header(&end, "content-range"), Some(format!("bytes {}-{}/{length}", length - 10, length - 1)));
}

#[test]
fn what_is_not_under_a_root_is_a_404_and_not_told() {
    let Some(files) = Files::start() else { return };
    let inside = files.write("inside", b"inside");
    let folder = files.gateway.folder.path();
    fs::write(folder.join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(folder.join("secret"), folder.join("files/link")).unwrap();
    std::os::unix::fs::symlink(&inside, folder.join("files/inner")).unwrap();
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for path in [
        "/etc/hostname".to_owned(),
        at("secret"),
        at("files/../secret"),
        at("files/link"),
        at("files/missing"),
        at("files"),
        at("filesystem"),
        "relative".to_owned(),
        "/proc/self/environ".to_owned(),
    ] {
        for (name, value) in both(&path) {
            let answer = files.ask("GET", &[(name, &value), ("Set-Cookie", "a=1")], "");

            assert_eq!(status(&answer), 404, "{name}: {path}");
            assert!(!answer.contains("secret"), "{name}: {path}: {answer}");
        }
    }
    assert_eq!(body(&files.ask("GET", &[("X-Sendfile", &at("files/inner"))], "")), "inside", "a link that stays");
}

#[test]
fn an_application_that_has_answered_the_range_or_the_condition_itself_is_understood() {
    let Some(files) = Files::start() else { return };
    let path = files.write("digits", b"0123456789");

    // As Werkzeug does: status and headers of the part, and the whole file named.
    let partial = files.ask(
        "GET",
        &[
            ("X-Sendfile", &path),
            ("status", "206 PARTIAL CONTENT"),
            ("Content-Range", "bytes 2-4/10"),
            ("Content-Length", "3"),
        ],
        "Range: bytes=2-4\r\n",
    );
    let unchanged = files.ask("GET", &[("X-Sendfile", &path), ("status", "304 NOT MODIFIED"), ("ETag", "\"own\"")], "");

    assert_eq!((status(&partial), body(&partial)), (206, "234".into()));
    assert_eq!(header(&partial, "content-range").as_deref(), Some("bytes 2-4/10"));
    assert_eq!(header(&partial, "content-length").as_deref(), Some("3"));
    assert_eq!((status(&unchanged), body(&unchanged)), (304, String::new()));
    assert_eq!(header(&unchanged, "etag").as_deref(), Some("\"own\""));
}

#[test]
fn what_a_client_says_of_files_has_no_effect() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::echoing();
    let configuration = proxying(backend.address, "", "files: [/etc]");
    let gateway = TestGateway::start_in(folder, &configuration);

    let answer = gateway.raw(format!(
        "GET / HTTP/1.1\r\n{HOST}X-Sendfile: /etc/hostname\r\nX-Accel-Redirect: /xaccel/etc/hostname\r\n\
         X-Sendfile-Type: X-Accel-Redirect\r\nX-Accel-Mapping: /etc=/xaccel\r\nX_Sendfile: /etc/hostname\r\n\r\n"
    ));

    assert_eq!(status(&answer), 200);
    let seen = body(&answer).to_ascii_lowercase();
    assert!(!seen.contains("sendfile") && !seen.contains("accel"), "{seen}");
}

#[test]
fn the_internal_prefix_is_no_way_to_files_for_a_client() {
    let backend = Backend::replying("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\napp");
    let gateway = TestGateway::start(&proxying(backend.address, "", "files: [/etc]"));

    let (status, body) = gateway.get("/xaccel/etc/hostname");

    assert_eq!((status, body), (404, "app".to_owned()), "a path as any other, the application's to answer");
}

#[test]
fn without_files_in_the_plan_nothing_is_sent() {
    let backend = Backend::replying(
        "HTTP/1.1 200 OK\r\nX-Sendfile: /etc/hostname\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    let answer = gateway.raw(format!("GET / HTTP/1.1\r\n{HOST}\r\n"));

    assert_eq!(status(&answer), 404);
    assert_eq!(header(&answer, "x-sendfile"), None);
}

/// An application that names `{dir}/files/<name>` for every request.
fn naming(folder: &tempfile::TempDir, name: &str, content: &[u8], headers: &str) -> Backend {
    fs::create_dir(folder.path().join("files")).unwrap();
    let path = folder.path().join("files").join(name);
    fs::write(&path, content).unwrap();
    // With the length of the file, as Flask says it, and no body.
    let length = content.len();
    Backend::replying(format!(
        "HTTP/1.1 200 OK\r\nX-Sendfile: {}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n",
        path.display()
    ))
}

#[test]
fn a_file_is_compressed_for_clients_that_take_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = "All work and no play. ".repeat(1000);
    let backend = naming(&folder, "text.css", text.as_bytes(), "");
    let gateway = TestGateway::start_in(folder, &proxying(backend.address, "", "files: ['{dir}/files']"));
    let url = format!("http://{}/", gateway.address(0));
    for coding in ["gzip", "br", "zstd"] {
        let accept = format!("Accept-Encoding: {coding}");
        // `--compressed` undoes the coding, whatever it is.
        let Some(answer) = clients::curl(&["--compressed", "-i", "-H", &accept, &url]) else { return };

        assert_eq!(header(&answer, "content-encoding").as_deref(), Some(coding));
        assert_eq!(header(&answer, "vary").as_deref(), Some("Accept-Encoding"), "{coding}");
        assert!(header(&answer, "etag").unwrap().starts_with("W/"), "{coding}: the bytes are others");
        assert_ne!(header(&answer, "content-length"), Some(text.len().to_string()), "{coding}");
        assert!(body(&answer) == text, "{coding}: not the file");
    }
    let Some(plain) = clients::curl(&["-i", &url]) else { return };
    assert_eq!(header(&plain, "content-encoding"), None);
    assert_eq!(header(&plain, "content-length"), Some(text.len().to_string()));
}

fn megabyte() -> Vec<u8> {
    (0..1_048_576_u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect()
}

#[test]
fn two_hundred_downloads_at_once_are_whole_over_plain_http() {
    let folder = tempfile::tempdir().unwrap();
    let content = megabyte();
    let backend = naming(&folder, "file.bin", &content, "");
    let gateway = TestGateway::start_in(folder, &proxying(backend.address, "", "files: ['{dir}/files']"));
    let address = gateway.address(0);

    let download = || {
        let mut stream = connect(address);
        stream.write_all(format!("GET / HTTP/1.1\r\n{HOST}\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer.ends_with(&content)
    };
    let whole = thread::scope(|scope| {
        let downloads: Vec<_> = (0..200).map(|_| scope.spawn(download)).collect();
        downloads.into_iter().map(|download| download.join().unwrap()).filter(|whole| *whole).count()
    });

    assert_eq!(whole, 200);
}

/// A gateway on TLS, before an application that names a file of `content`.
fn over_tls(content: &[u8]) -> (TestGateway, Backend, rustls_pki_types::CertificateDer<'static>) {
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["localhost"]);
    let backend = naming(&folder, "file.bin", content, "");
    let configuration = proxying(backend.address, "", "files: ['{dir}/files']").replace("0' }", "0', tls: true }");
    let gateway = TestGateway::start_in(folder, &(configuration + &clients::tls(&["site"])));
    (gateway, backend, certificate)
}

#[test]
fn downloads_at_once_are_whole_over_tls() {
    let content = megabyte();
    let (gateway, _backend, certificate) = over_tls(&content);
    let config = std::sync::Arc::new(clients::client(&[&certificate], &["http/1.1"]));
    let download = |address: SocketAddr| {
        let (config, content) = (config.clone(), &content);
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = clients::tls_connect(address, "localhost", config).await.unwrap();
            stream.write_all(format!("GET / HTTP/1.1\r\n{HOST}\r\n").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            answer.ends_with(content)
        }
    };

    let whole = block_on(futures_util::future::join_all((0..200).map(|_| download(gateway.address(0)))));

    assert_eq!(whole.iter().filter(|whole| **whole).count(), 200);
}

#[test]
fn downloads_at_once_are_whole_over_h2() {
    let content = megabyte();
    let (gateway, _backend, certificate) = over_tls(&content);

    let whole = block_on(async {
        let mut whole = 0;
        let mut connections = Vec::new();
        for _ in 0..4 {
            connections.push(H2::connect(gateway.address(0), "localhost", &certificate).await);
        }
        let downloads = connections.iter().flat_map(|h2| {
            (0..50).map(|_| {
                let (mut sender, request) = (h2.sender.clone(), h2.request("GET", "/").body(Full::default()).unwrap());
                async move {
                    sender.ready().await.unwrap();
                    let response = sender.send_request(request).await.unwrap();
                    response.into_body().collect().await.unwrap().to_bytes()
                }
            })
        });
        for body in futures_util::future::join_all(downloads).await {
            whole += usize::from(body == Bytes::copy_from_slice(&content));
        }
        whole
    });

    assert_eq!(whole, 200);
}

/// Descriptors of this process that are open on `path`, which is one test's own.
fn open_on(path: &std::path::Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link == path).count()
}

#[test]
fn a_client_that_vanishes_leaves_no_file_open() {
    let folder = tempfile::tempdir().unwrap();
    let backend = naming(&folder, "file.bin", b"", "");
    let path = folder.path().join("files/file.bin");
    // More than any socket takes; the length the application says is nobody's concern.
    File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let gateway = TestGateway::start_in(folder, &proxying(backend.address, "", "files: ['{dir}/files']"));

    for _ in 0..10 {
        let mut stream = connect(gateway.address(0));
        stream.write_all(format!("GET / HTTP/1.1\r\n{HOST}\r\n").as_bytes()).unwrap();
        let mut some = [0; 1000];
        stream.read_exact(&mut some).unwrap();
        assert!(open_on(&path) > 0, "nothing is being sent");
    }

    wait_for("the file to be closed", || open_on(&path) == 0);
    let log = gateway.log(10);
    assert!(log.iter().all(|line| line.contains("\" 499 ")), "{log:#?}");
}
