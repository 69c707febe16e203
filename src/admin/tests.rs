use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Instant, SystemTime},
};

use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinHandle,
};

use super::*;
use crate::metrics::Metrics;

struct Gateway {
    not_ready: Mutex<Option<String>>,
    panics: AtomicBool,
    metrics: Metrics,
}

impl AdminState for Gateway {
    fn ready(&self) -> Result<(), String> {
        self.not_ready.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn status(&self) -> Status {
        assert!(!self.panics.load(Relaxed), "asked to panic");
        Status { version: "0.1.0".to_owned(), generation: 3, ..Status::default() }
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }

    fn config(&self) -> Value {
        json!({ "drain": 18 })
    }

    /// Takes a reload, refuses a rollback, forgets an upgrade, and has never heard of a drain.
    fn order(&self, order: Order) -> Option<oneshot::Receiver<Outcome>> {
        let (done, outcome) = oneshot::channel();
        match order {
            Order::Reload { dry_run } => done.send(Ok(format!("reloaded, {dry_run}"))).unwrap(),
            Order::Rollback { .. } => done.send(Err("nothing to go back to".to_owned())).unwrap(),
            Order::Upgrade => drop(done),
            Order::Drain { .. }
            | Order::Reopen
            | Order::Renew
            | Order::Check
            | Order::Export
            | Order::Restart { .. } => return None,
        }
        Some(outcome)
    }

    /// Knows `uwsgi`.
    fn restart(&self, name: &str) -> Option<oneshot::Receiver<Outcome>> {
        let (done, outcome) = oneshot::channel();
        done.send(Ok(format!("{name} was restarted"))).unwrap();
        (name == "uwsgi").then_some(outcome)
    }
}

/// An admin endpoint on a socket of its own.
struct Endpoint {
    directory: TempDir,
    gateway: Arc<Gateway>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Endpoint {
    #[allow(clippy::disallowed_methods, reason = "the test waits for this task itself")]
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("admin.sock")).unwrap();
        let metrics = Metrics::new(SystemTime::now());
        let gateway = Arc::new(Gateway { not_ready: Mutex::default(), panics: AtomicBool::default(), metrics });
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(listener, Arc::clone(&gateway) as _, stopped, std::future::ready(())));
        Self { directory, gateway, stop, served }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    async fn get(&self, target: &str) -> client::Answer {
        client::get(&self.socket(), target).await.unwrap()
    }

    async fn json(&self, target: &str) -> (StatusCode, Value) {
        let answer = self.get(target).await;
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    }

    /// Sends `request` as it is and reads to the end.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn live_and_ready_say_so() {
    let endpoint = Endpoint::start();

    assert_eq!(endpoint.json("/live").await, (StatusCode::OK, json!({ "live": true })));
    assert_eq!(endpoint.json("/ready").await, (StatusCode::OK, json!({ "ready": true })));
}

#[tokio::test]
async fn a_drain_is_live_but_not_ready_and_says_why() {
    let endpoint = Endpoint::start();
    *endpoint.gateway.not_ready.lock().unwrap() = Some("draining".to_owned());

    assert_eq!(
        endpoint.json("/ready").await,
        (StatusCode::SERVICE_UNAVAILABLE, json!({ "ready": false, "reason": "draining" }))
    );
    assert_eq!(endpoint.json("/live").await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_status_comes_back_as_it_was() {
    let endpoint = Endpoint::start();

    let answer = endpoint.get("/status").await;

    let status: Status = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(status, endpoint.gateway.status());
}

#[tokio::test]
async fn metrics_are_the_exposition_with_its_media_type() {
    let endpoint = Endpoint::start();
    endpoint.gateway.metrics.reloaded(3);

    let answer = endpoint.raw("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;

    assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
    assert!(answer.contains("\nvestibule_generation 3\n") && answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn what_is_not_offered_is_refused_in_json() {
    let endpoint = Endpoint::start();

    assert_eq!(endpoint.json("/nothing").await.0, StatusCode::NOT_FOUND);
    for (request, status, header) in [
        ("DELETE /status HTTP/1.1\r\nHost: x\r\n\r\n", "405", "allow: GET, HEAD\r\n"),
        ("GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "413", "application/json"),
        ("GET /reload HTTP/1.1\r\nHost: x\r\n\r\n", "405", "allow: POST\r\n"),
        ("POST /status HTTP/1.1\r\nHost: x\r\n\r\n", "405", "allow: GET, HEAD\r\n"),
        ("POST /rollback?steps=x HTTP/1.1\r\nHost: x\r\n\r\n", "400", "application/json"),
        ("HEAD /status HTTP/1.1\r\nHost: x\r\n\r\n", "200", "application/json"),
    ] {
        let answer = endpoint.raw(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request} {answer}");
        assert!(answer.contains(header), "{request} {answer}");
    }
}

#[tokio::test]
async fn an_order_is_answered_with_what_came_of_it() {
    let endpoint = Endpoint::start();
    let order = |order: Order| {
        let socket = endpoint.socket();
        async move { client::order(&socket, &order.target()).await.unwrap() }
    };

    assert_eq!(order(Order::Reload { dry_run: true }).await, Ok("reloaded, true".to_owned()));
    assert_eq!(order(Order::Rollback { steps: 1 }).await, Err("nothing to go back to".to_owned()));
    assert_eq!(order(Order::Upgrade).await, Err("vestibule ended before it was done".to_owned()));
    assert_eq!(order(Order::Drain { wait: Duration::ZERO }).await, Err("this one takes no orders".to_owned()));
    assert_eq!(endpoint.json("/config").await, (StatusCode::OK, json!({ "drain": 18 })));
}

#[tokio::test]
async fn a_panic_is_answered_and_the_next_request_is_served() {
    let endpoint = Endpoint::start();
    endpoint.gateway.panics.store(true, Relaxed);

    assert_eq!(endpoint.json("/status").await.0, StatusCode::INTERNAL_SERVER_ERROR);

    endpoint.gateway.panics.store(false, Relaxed);
    assert_eq!(endpoint.json("/status").await.0, StatusCode::OK);
}

#[tokio::test]
async fn one_connection_too_many_waits_until_another_ends() {
    let endpoint = Endpoint::start();
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(UnixStream::connect(endpoint.socket()).await.unwrap());
    }

    let mut waiting = Box::pin(endpoint.get("/live"));
    let early = timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "{early:?} with {CONNECTIONS} connections open");
    silent.pop();

    assert_eq!(waiting.await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() {
    let endpoint = Endpoint::start();
    let begun = Instant::now();

    let answer = endpoint.raw("GET /live HTTP/1.1\r\nHost:").await;

    assert!(begun.elapsed() < 2 * HEADER_TIMEOUT, "{:?}", begun.elapsed());
    assert!(!answer.contains("200"), "{answer}");
}

#[tokio::test]
async fn a_stop_ends_the_endpoint_though_a_connection_is_silent() {
    let endpoint = Endpoint::start();
    let (socket, begun) = (endpoint.socket(), Instant::now());
    let _silent = UnixStream::connect(&socket).await.unwrap();
    assert_eq!(endpoint.get("/live").await.status, StatusCode::OK);

    endpoint.stop.send(()).unwrap();
    endpoint.served.await.unwrap();

    assert!(begun.elapsed() < 4 * SHUTDOWN_TIMEOUT, "{:?}", begun.elapsed());
    let refused = client::get(&socket, "/live").await.unwrap_err();
    assert_eq!(refused.to_string(), format!("cannot connect to {}; is vestibule running?", socket.display()));
}
