//! Asks and orders a running gateway, for `vestibule status`, `vestibule reload` and their like.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};

use super::Outcome;

/// What the admin endpoint answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Gets `target`, such as `/status`, over the unix socket at `socket`.
///
/// Waits 10 s in all and takes 16 MiB at most. Any status is an answer, not an error.
pub async fn get(socket: &Path, target: &str) -> Result<Answer, ClientError> {
    ask(socket, &Method::GET, target, TIMEOUT).await
}

/// Has the order at `target` carried out, which takes as long as it takes, two minutes at most.
///
/// Answers what was done, or why nothing was.
pub async fn order(socket: &Path, target: &str) -> Result<Outcome, ClientError> {
    let answer = ask(socket, &Method::POST, target, ORDER_TIMEOUT).await?;
    let said: Said = serde_json::from_slice(&answer.body).unwrap_or_default();
    let refused = || said.error.unwrap_or_else(|| format!("vestibule answered {}", answer.status));
    Ok(said.done.ok_or_else(refused))
}

#[derive(Default, Deserialize)]
struct Said {
    done: Option<String>,
    error: Option<String>,
}

async fn ask(socket: &Path, method: &Method, target: &str, patience: Duration) -> Result<Answer, ClientError> {
    let asked = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| ClientError::Connect { socket: socket.to_owned(), source })?;
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Exchange {
            socket: socket.to_owned(),
            target: format!("{method} {target}"),
            source,
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(e.into()))?;
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "vestibule")
            .body(Empty::<Bytes>::new())
            .map_err(|e| failed(e.into()))?;
        let exchange = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, BODY_LIMIT).collect().await?.to_bytes();
            Ok(Answer { status: head.status, body })
        };
        // The connection does the reading and writing; it ends when the sender is dropped.
        let (answer, _) = futures_util::future::join(exchange, connection).await;
        answer.map_err(failed)
    };
    timeout(patience, asked)
        .await
        .unwrap_or_else(|_| Err(ClientError::TimedOut { socket: socket.to_owned(), patience }))
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("cannot connect to {}; is vestibule running?", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("{} did not answer {target}", socket.display())]
    Exchange { socket: PathBuf, target: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{} did not answer within {patience:?}", socket.display())]
    TimedOut { socket: PathBuf, patience: Duration },
}

const TIMEOUT: Duration = Duration::from_secs(10);
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);
const BODY_LIMIT: usize = 16 * 1024 * 1024;
