//! The page for those who come before the application is there, when it has gone, and when it is being stopped.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    super::demo::browser::Browser,
    super::support::{body, header, network::in_network, raw, read_request, status, wait_for},
    Site,
};

/// An application whose `health_check?ready=1` says what a test wants.
struct Application {
    listens: Arc<AtomicBool>,
    ready: Arc<Mutex<&'static str>>,
    address: SocketAddr,
}

impl Application {
    fn start(ready: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
        let (listens, ready) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(ready)));
        let address = listener.local_addr().unwrap();
        let (goes_on, says) = (Arc::clone(&listens), Arc::clone(&ready));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if !goes_on.load(Ordering::SeqCst) {
                    break;
                }
                let (mut stream, says) = (stream.unwrap(), Arc::clone(&says));
                thread::spawn(move || {
                    let Some(request) = read_request(&mut stream) else { return };
                    let asked = request.starts_with(b"GET /da/health_check?ready=1 ");
                    let status = if asked { *says.lock().unwrap() } else { "200 OK" };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\nConnection: close\r\n\r\napp");
                    stream.write_all(answer.as_bytes()).ok();
                });
            }
        });
        Self { listens, ready, address }
    }

    fn says(&self, ready: &'static str) {
        *self.ready.lock().unwrap() = ready;
    }

    fn stop(self) {
        self.listens.store(false, Ordering::SeqCst);
        drop(std::net::TcpStream::connect(self.address));
        wait_for("the application to be gone", || std::net::TcpStream::connect(self.address).is_err());
    }
}

const CONFIG: &str = "root: /da/\nserver administrator email: admin@example.com\n";
const OVERLAY: &str = "upstreams: { app: { protocol: http, endpoints: ['127.0.0.1:7000'], hold: 1s } }\n";

fn get(path: &str) -> String {
    raw(([127, 0, 0, 1], 80).into(), format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"))
}

fn readiness(site: &Site) -> String {
    site.served.status()["upstreams"][0]["readiness"].as_str().unwrap_or_default().to_owned()
}

fn wait_until(site: &Site, state: &str) {
    wait_for(state, || readiness(site) == state);
}

#[test]
fn from_the_first_second_a_page_says_what_is_missing_until_the_application_is_ready() {
    in_network(|| {
        let site = Site::start(CONFIG, OVERLAY);
        wait_until(&site, "starting");
        let began = Instant::now();
        let answer = get("/da/interview?i=1");
        assert!(began.elapsed() < Duration::from_millis(900), "held for {:?}", began.elapsed());
        assert_eq!(status(&answer), 503);
        assert_eq!(header(&answer, "retry-after").as_deref(), Some("10"));
        assert_eq!(header(&answer, "cache-control").as_deref(), Some("no-store"));
        for text in [
            "<h1>Starting up</h1>",
            "<li><code>app</code> is not running yet, for less than a minute</li>",
            "data-ready=\"/da/health_check?ready=1\"",
            "mailto:admin@example.com",
        ] {
            assert!(answer.contains(text), "{text} is missing: {answer}");
        }
        assert!(!answer.contains(":7000"), "addresses are nobody's business: {answer}");
        wait_for("the websocket server to be missed", || {
            get("/da/").contains("<code>websockets</code> cannot be reached")
        });
        let said: serde_json::Value = serde_json::from_str(&body(&get("/da/api/x"))).unwrap();
        assert_eq!(said["error"]["missing"][0]["state"], "is not running yet");
        assert_eq!(status(&get("/da/health_check?ready=1")), 503, "nobody to ask");

        let application = Application::start("400 Bad Request");
        wait_for("the page to see it", || get("/da/").contains("is running, and not ready yet"));
        let answer = get("/da/health_check?ready=1");
        assert_eq!((status(&answer), body(&answer).as_str()), (400, "app"), "the health page passes");
        assert_eq!(status(&get("/da/health_check")), 200);

        application.says("500 Internal Server Error");
        wait_for("the error to be seen", || get("/da/").contains("has started with an error"));
        application.says("200 OK");
        wait_until(&site, "ready");
        assert_eq!(body(&get("/da/")), "app");
        let log = site.served.log("access.log");
        assert!(log.lines().all(|line| !line.contains("vestibule")), "no look of ours is logged: {log}");
    });
}

#[test]
fn one_that_has_gone_is_waited_for_and_said_to_have_gone() {
    in_network(|| {
        let application = Application::start("200 OK");
        let site = Site::start(CONFIG, OVERLAY);
        wait_until(&site, "ready");
        application.stop();

        let began = Instant::now();
        let answer = get("/da/");
        assert!(began.elapsed() > Duration::from_millis(500), "not waited for");
        assert!(answer.contains("<h1>The application has stopped answering</h1>"), "{answer}");
        assert!(answer.contains("<code>app</code> has stopped answering, for"), "{answer}");
        wait_until(&site, "gone");

        let _application = Application::start("200 OK");
        wait_until(&site, "ready");
        assert_eq!(body(&get("/da/")), "app");
    });
}

#[test]
fn one_that_is_being_stopped_is_served_to_its_end_and_not_waited_for() {
    in_network(|| {
        let application = Application::start("200 OK");
        let site = Site::start(CONFIG, &OVERLAY.replace("hold: 1s", "hold: 60s"));
        wait_until(&site, "ready");
        // docassemble takes its ready file away first.
        application.says("400 Bad Request");
        wait_until(&site, "stopping");
        assert_eq!(body(&get("/da/")), "app");

        application.stop();
        let answer = get("/da/");
        assert!(answer.contains("<h1>Being shut down or restarted</h1>"), "{answer}");
    });
}

#[test]
fn one_that_does_not_say_anything_is_taken_for_ready() {
    in_network(|| {
        let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let request = read_request(&mut stream).unwrap_or_default();
                    if !request.starts_with(b"GET /da/health_check") {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\napp").ok();
                        return;
                    }
                    // As one whose threads are all busy.
                    thread::park_timeout(Duration::from_secs(60));
                });
            }
        });
        let site = Site::start(CONFIG, OVERLAY);
        assert_eq!(body(&get("/da/")), "app");
        assert_eq!(readiness(&site), "unknown");
    });
}

#[test]
fn a_browser_that_waits_is_shown_the_application_when_it_is_there() {
    in_network(|| {
        let site = Site::start(CONFIG, OVERLAY);
        wait_until(&site, "starting");
        let Some(browser) = Browser::start() else { return };
        browser.open("http://127.0.0.1/da/interview?i=1");
        assert_eq!(browser.title(), "Starting up");

        let _application = Application::start("200 OK");
        // What it loads by itself has no title; elements come and go meanwhile.
        wait_for("the application to be shown", || browser.title() != "Starting up");
        let console = browser.console();
        assert!(!console.iter().any(|line| line.contains("Content Security Policy")), "{console:?}");
    });
}
