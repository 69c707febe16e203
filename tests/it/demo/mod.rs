//! `vestibule demo`, as whoever tries it meets it: from its output, over its addresses, in a browser.

#![allow(clippy::unwrap_used, reason = "a helper that cannot do its part fails the test that called it")]

pub(crate) mod browser;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use browser::Browser;
use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{PATIENCE, body, connect, header, program, raw, status, wait_for};

/// The built binary at `demo`, with temporary files in a folder of the test's own; killed when dropped.
struct Demo {
    process: Child,
    http: SocketAddr,
    https: SocketAddr,
    configuration: PathBuf,
    /// Where it makes its folder.
    temporary: tempfile::TempDir,
}

impl Demo {
    /// `None` where there is no Python.
    fn start() -> Option<Self> {
        program("python3")?;
        let temporary = tempfile::tempdir().unwrap();
        let process = command(temporary.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        // Before anything that can fail: what is dropped is ended.
        let mut demo = Self { process, http: nowhere, https: nowhere, configuration: PathBuf::new(), temporary };
        let output = BufReader::new(demo.process.stdout.take().unwrap());
        let (lines, said) = mpsc::channel();
        // To its end, as a terminal would.
        thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line))));
        let after = |start: &str| loop {
            let line = said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line begins with `{start}`"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        };
        let port = |rest: String| rest.split('/').next().unwrap().parse().unwrap();
        demo.http.set_port(port(after("  http://localhost:")));
        demo.https.set_port(port(after("  https://localhost:")));
        demo.configuration = PathBuf::from(after("Its configuration: "));
        Some(demo)
    }

    fn get(&self, path: &str, headers: &str) -> String {
        raw(self.http, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"))
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The application's process and whatever else it has started.
    fn children(&self) -> Vec<u32> {
        let children: Vec<_> = processes().filter(|(_, parent)| *parent == self.process.id()).collect();
        assert!(!children.is_empty(), "there is no application");
        children.into_iter().map(|(id, _)| id).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        if thread::panicking() {
            return;
        }
        // The folder is the application's to remove now; it should not meet our removing what is around it.
        wait_for("the end of the application", || fs::read_dir(&self.temporary).unwrap().next().is_none());
    }
}

fn command(temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    command.arg("demo").env("TMPDIR", temporary).stdin(Stdio::null());
    command
}

/// Every process that has not ended, with its parent.
fn processes() -> impl Iterator<Item = (u32, u32)> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Behind the name, in which anything may be: state and parent.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        (state != "Z").then_some((id, fields.next()?.parse().ok()?))
    })
}

fn has_ended(id: u32) -> bool {
    !processes().any(|(other, _)| other == id)
}

/// The cells of the row that begins with `name`.
fn row(page: &str, name: &str) -> String {
    let start = format!("<th scope=row>{name}</th><td><code>");
    let (_, rest) = page.split_once(&start).unwrap_or_else(|| panic!("no row {name} in {page}"));
    rest.split("</code>").next().unwrap().to_owned()
}

#[test]
fn the_page_says_what_the_application_saw() {
    let Some(demo) = Demo::start() else { return };

    let page = demo.get("/", "X-Forwarded-For: 192.0.2.1\r\n");

    assert_eq!(row(&page, "URL"), "http://localhost/");
    assert_eq!(row(&page, "Client"), "127.0.0.1", "the client's own word was believed");
    assert_eq!(row(&page, "REMOTE_ADDR"), "127.0.0.1");
    assert_eq!(row(&page, "Protocol"), "HTTP/1.1");
    assert_eq!(row(&page, "X-Forwarded-For"), "127.0.0.1");
    assert_eq!(row(&page, "X-Forwarded-Proto"), "http");
    assert_eq!(row(&page, "X-Forwarded-Host"), "localhost");
    assert_eq!(row(&page, "X-Forwarded-Port"), "80");
}

#[test]
fn nothing_that_a_client_sends_becomes_part_of_the_page() {
    let Some(demo) = Demo::start() else { return };

    let page = demo.get("/", "X-Note: <script>\"&{{configuration}}\r\n");

    assert_eq!(row(&page, "X-Note"), "&lt;script&gt;&quot;&amp;{{configuration}}");
}

#[test]
fn an_upload_is_described_and_comes_back_as_it_was() {
    let Some(demo) = Demo::start() else { return };
    let content = [b"abc".as_slice(), &[0, 255, 13, 10]].concat();

    let mut request = format!(
        "POST /upload?name=a%20%22b%C3%BC.bin HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    )
    .into_bytes();
    request.extend(&content);
    let answer: serde_json::Value = serde_json::from_str(&body(&raw(demo.http, request))).unwrap();
    let mut stream = connect(demo.http);
    let url = answer["url"].as_str().unwrap();
    write!(stream, "GET {url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut download = Vec::new();
    stream.read_to_end(&mut download).unwrap();

    assert_eq!(answer["name"], "a \"bü.bin");
    assert_eq!(answer["size"], 7);
    assert_eq!(answer["sha256"], SHA256);
    let end = download.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let (head, received) = (String::from_utf8_lossy(&download[..end]), &download[end + 4..]);
    assert_eq!(received, content);
    assert_eq!(
        header(&head, "content-disposition").as_deref(),
        Some("attachment; filename*=UTF-8''a%20%22b%C3%BC.bin")
    );
    assert_eq!(header(&head, "x-sendfile"), None);
}

#[test]
fn a_part_of_the_sample_is_sent_on_request() {
    let Some(demo) = Demo::start() else { return };

    let answer = demo.get("/sample", "Range: bytes=64-95\r\n");

    assert_eq!(status(&answer), 206);
    assert_eq!(header(&answer, "content-range").as_deref(), Some("bytes 64-95/1024"));
    assert_eq!(body(&answer), "  64 ..........................\n");
}

#[test]
fn the_pages_for_when_something_is_wrong_are_our_own() {
    let Some(demo) = Demo::start() else { return };

    let missing = demo.get("/missing", "Accept: text/html\r\n");
    let slow = demo.get("/slow", "Accept: text/html\r\n");
    let large = raw(
        demo.http,
        "POST /small/ HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nContent-Length: 2048\r\n\
         Connection: close\r\n\r\n",
    );

    assert_eq!([&missing, &slow, &large].map(|answer| status(answer)), [404, 504, 413]);
    for answer in [missing, slow, large] {
        assert!(body(&answer).contains("Request <code>"), "not a page of ours: {answer}");
    }
}

#[tokio::test]
async fn the_websocket_echoes_over_tls_with_the_certificate_it_made() {
    let Some(demo) = Demo::start() else { return };
    let certificate = demo.configuration.with_file_name("storage/self-signed/localhost.crt");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(demo.https).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap();
    let (mut websocket, _) = tokio_tungstenite::client_async("wss://localhost/ws/echo", stream).await.unwrap();

    for message in [Message::text("grüße"), Message::binary(vec![0, 255])] {
        websocket.send(message.clone()).await.unwrap();
        let echo = tokio::time::timeout(PATIENCE, websocket.next()).await.expect("an echo in time").unwrap().unwrap();

        assert_eq!(echo, message);
    }
}

#[test]
fn the_configuration_it_names_is_one_that_check_accepts() {
    let Some(demo) = Demo::start() else { return };

    let check = Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(["check", "--config"])
        .arg(&demo.configuration)
        .output()
        .unwrap();

    assert_eq!((String::from_utf8_lossy(&check.stdout).as_ref(), check.status.code()), ("", Some(0)));
}

#[test]
fn a_signal_to_stop_ends_all_of_it_in_order() {
    for signal in ["-TERM", "-INT"] {
        let Some(mut demo) = Demo::start() else { return };
        let children = demo.children();

        demo.signal(signal);

        assert_eq!(demo.process.wait().unwrap().code(), Some(0), "{signal}");
        for child in children {
            assert!(has_ended(child), "{signal}: the application is still there");
        }
        assert_eq!(fs::read_dir(&demo.temporary).unwrap().count(), 0, "{signal}: its folder is still there");
    }
}

#[test]
fn killed_it_leaves_neither_a_process_nor_a_folder() {
    let Some(demo) = Demo::start() else { return };
    let children = demo.children();

    demo.signal("-KILL");

    wait_for("the end of the application", || children.iter().all(|child| has_ended(*child)));
    wait_for("the end of its folder", || fs::read_dir(&demo.temporary).unwrap().next().is_none());
}

#[test]
fn without_python_it_says_what_to_install() {
    let temporary = tempfile::tempdir().unwrap();

    let ended = command(temporary.path()).env("PATH", temporary.path()).output().unwrap();

    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no python3 in PATH"), "{said}");
    assert!(said.contains("apt-get install python3"), "{said}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "its folder is still there");
}

#[test]
fn a_python_that_cannot_run_it_is_told_of_with_its_status() {
    let temporary = tempfile::tempdir().unwrap();
    let path = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/false", path.path().join("python3")).unwrap();

    let ended = command(temporary.path()).env("PATH", path.path()).output().unwrap();

    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("which should be 3.8 or newer"), "{said}");
    assert!(said.contains("does not run under python3 (exit status: 1)"), "{said}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "its folder is still there");
}

#[test]
fn a_browser_uploads_downloads_and_talks_over_https() {
    let Some(demo) = Demo::start() else { return };
    let Some(browser) = Browser::start() else { return };
    let content = [b"abc".as_slice(), &[0, 255, 13, 10]].concat();
    let file = browser.folder.path().join("chosen.bin");
    fs::write(&file, &content).unwrap();

    browser.open(&format!("https://localhost:{}/", demo.https.port()));
    wait_for("the browser's protocol on the page", || browser.text("#browser code") == "h2");

    browser.type_into("#file", file.to_str().unwrap());
    browser.click("#upload button");
    wait_for("what was uploaded", || !browser.text("#sha256").is_empty());
    assert_eq!(browser.text("#name"), "chosen.bin");
    assert_eq!(browser.text("#size"), "7 bytes");
    assert_eq!(browser.text("#sha256"), SHA256);

    browser.click("#download");
    let downloaded = browser.downloads().join("chosen.bin");
    wait_for("the same bytes as a download", || fs::read(&downloaded).is_ok_and(|bytes| bytes == content));

    wait_for("the websocket", || browser.text("#state").starts_with("connected"));
    browser.type_into("#text", "grüße <b>");
    browser.click("#send");
    wait_for("the echo", || browser.text("#echoes") == "→ grüße <b>\n← grüße <b>");

    browser.click("#range button");
    wait_for("a part of the sample", || browser.text("#part").contains("206\nContent-Range: bytes 64-95/1024"));

    assert_eq!(browser.console(), Vec::<String>::new());
}

#[test]
fn a_browser_shows_our_page_for_a_form_that_is_too_large() {
    let Some(demo) = Demo::start() else { return };
    let Some(browser) = Browser::start() else { return };
    browser.open(&format!("https://localhost:{}/", demo.https.port()));

    browser.click("#large button");

    wait_for("a page of our own", || browser.title() == "This is too large");
    assert!(browser.text("footer").contains("Code 413"), "{}", browser.text("footer"));
}

/// printf 'abc\0\377\r\n' | sha256sum
const SHA256: &str = "420e9c8ccb6a038d9ef238d20a40909a0c885716e4b788e6a851b8e84f147c5c";
