//! Debian's Chromium, driven as a person would: `WebDriver` (W3C) is JSON over plain HTTP.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{body, program, read_response, status};

/// A browser with a fresh profile, closed when dropped.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// Profile and downloads, and room for files of the test.
    pub(crate) folder: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is no Chromium, or no driver for it.
    pub(crate) fn start() -> Option<Self> {
        let (browser, driver) = (program("chromium")?, program("chromedriver")?);
        let folder = tempfile::tempdir().unwrap();
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .env("TMPDIR", folder.path())
            .env("HOME", folder.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(driver.stdout.take().unwrap());
        // Before anything that can fail: what is dropped is ended.
        let mut this = Self { driver, address: SocketAddr::from(([127, 0, 0, 1], 0)), session: String::new(), folder };
        this.address.set_port(port(output));
        let profile = format!("--user-data-dir={}", this.folder.path().join("profile").display());
        let arguments: Vec<_> = ARGUMENTS.iter().copied().chain([profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": {
                "binary": browser,
                "args": arguments,
                "prefs": { "download.default_directory": this.downloads() },
            },
        } } });
        let session = this.send("POST", "/session", &wanted);
        session["sessionId"].as_str().expect("a session").clone_into(&mut this.session);
        Some(this)
    }

    pub(crate) fn downloads(&self) -> PathBuf {
        self.folder.path().join("downloads")
    }

    /// Opens `url`; returns when it is loaded.
    pub(crate) fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url }));
    }

    /// The title of the page, also while another is on its way.
    pub(crate) fn title(&self) -> String {
        self.command("GET", "/title", &Value::Null).as_str().expect("text").to_owned()
    }

    /// The text of the first element that `selector` selects, as it is seen.
    pub(crate) fn text(&self, selector: &str) -> String {
        let text = self.command("GET", &format!("/element/{}/text", self.element(selector)), &Value::Null);
        text.as_str().expect("text").to_owned()
    }

    pub(crate) fn click(&self, selector: &str) {
        self.command("POST", &format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types; for a file input, chooses the file at this path.
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        self.command("POST", &format!("/element/{}/value", self.element(selector)), &json!({ "text": text }));
    }

    /// What has been written to the console since it was last asked for.
    pub(crate) fn console(&self) -> Vec<String> {
        let log = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        log.as_array().expect("entries").iter().map(ToString::to_string).collect()
    }

    fn element(&self, selector: &str) -> String {
        let found = self.command("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        // One member, whose name the standard fixes: "web element identifier".
        found["element-6066-11e4-a52e-4f735466cecf"].as_str().expect("an element").to_owned()
    }

    fn command(&self, method: &str, path: &str, arguments: &Value) -> Value {
        self.send(method, &format!("/session/{}{path}", self.session), arguments)
    }

    fn send(&self, method: &str, path: &str, arguments: &Value) -> Value {
        let answer = self.exchange(method, path, arguments);
        let value = serde_json::from_str::<Value>(&body(&answer)).expect("JSON")["value"].take();
        assert_eq!(status(&answer), 200, "{method} {path} {arguments}: {value:#}");
        value
    }

    fn exchange(&self, method: &str, path: &str, arguments: &Value) -> String {
        let arguments = if arguments.is_null() { String::new() } else { arguments.to_string() };
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(BROWSER_PATIENCE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{arguments}",
            arguments.len()
        )
        .unwrap();
        read_response(&mut stream)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !thread::panicking() {
            self.exchange("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        // With the browser, which is in the same group.
        drop(Command::new("kill").args(["-KILL", "--", &format!("-{}", self.driver.id())]).status());
        drop(self.driver.wait());
    }
}

/// The port that the driver says it listens on.
fn port(output: impl BufRead + Send + 'static) -> u16 {
    let (found, port) = mpsc::channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("started successfully on port ") {
                found.send(rest.trim_end_matches('.').parse().unwrap()).unwrap();
            }
        }
    });
    port.recv_timeout(BROWSER_PATIENCE).expect("the driver says its port")
}

/// A new window without a screen, that asks nobody anything.
const ARGUMENTS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",
];

/// A browser takes its time to start, the more so beside a dozen other tests.
const BROWSER_PATIENCE: Duration = Duration::from_secs(60);
