//! A client of HTTP/2 whose streams share a connection, and who goes to another one when the peer says so.

use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::time::{sleep_until, timeout};

use super::{
    job::{Answer, BLOCK, Content, Job},
    ledger::{Exchange, Protocol},
};
use crate::support::clients::tls_connect;

pub(super) struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Body>,
    opened: Instant,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Why there is no answer.
enum Trouble {
    /// The peer has not begun with it, or it was never sent.
    Unprocessed(String),
    Failed(String),
}

impl Client {
    /// `tls` offers h2.
    pub(super) fn new(address: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self { address, tls, connection: tokio::sync::Mutex::default() }
    }

    /// Sends `job`, and sends it again as long as it is said to be unprocessed.
    pub(super) async fn exchange(&self, job: &Job) -> Exchange {
        let begun = Instant::now();
        let (mut connected, mut resent) = (None, 0);
        let error = loop {
            let connection = match self.connection().await {
                Ok(connection) => connection,
                Err(error) => break Some(format!("cannot connect: {error}")),
            };
            connected = Some(connection.opened);
            match timeout(job.patience(), ask(connection, job)).await {
                Ok(Ok(answer)) => break job.check(&answer).err(),
                Ok(Err(Trouble::Unprocessed(error))) => {
                    self.forget(connected).await;
                    resent += 1;
                    if resent == AGAIN {
                        break Some(format!("unprocessed {AGAIN} times: {error}"));
                    }
                }
                Ok(Err(Trouble::Failed(error))) => {
                    self.forget(connected).await;
                    break Some(error);
                }
                Err(_) => break Some(format!("no answer within {:?}", job.patience())),
            }
        };
        let ended = Instant::now();
        let (id, kind, protocol) = (job.id, job.kind, Protocol::H2);
        Exchange { id, kind, protocol, connected, begun, ended, retried: 0, resent, error }
    }

    /// The one that all streams share, made where there is none.
    async fn connection(&self) -> Result<Connection, Box<dyn Error + Send + Sync>> {
        let mut shared = self.connection.lock().await;
        if let Some(connection) = shared.as_ref().filter(|connection| !connection.sender.is_closed()) {
            return Ok(connection.clone());
        }
        *shared = None;
        let connection = timeout(CONNECT, connect(self.address, Arc::clone(&self.tls))).await??;
        *shared = Some(connection.clone());
        Ok(connection)
    }

    /// New streams go elsewhere; those on it go on.
    async fn forget(&self, opened: Option<Instant>) {
        let mut shared = self.connection.lock().await;
        if shared.as_ref().map(|connection| connection.opened) == opened {
            *shared = None;
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a client's task is none of the gateway's")]
async fn connect(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Connection, Box<dyn Error + Send + Sync>> {
    let stream = tls_connect(address, "localhost", tls).await?;
    let opened = Instant::now();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(Connection { sender, opened })
}

async fn ask(mut connection: Connection, job: &Job) -> Result<Answer, Trouble> {
    let mut request = Request::builder().method(job.method()).uri(format!("https://localhost{}", job.target));
    request = request.header("user-agent", "soak");
    if !matches!(job.body, Content::None) {
        request = request.header("content-length", job.length());
    }
    let request = request.body(body(job)).unwrap();
    connection.sender.ready().await.map_err(|error| Trouble::Unprocessed(told(&error)))?;
    let response = connection.sender.send_request(request).await.map_err(|error| trouble(&error))?;
    let mut answer = Answer::begin(response.status().as_u16());
    let blocks = job_blocks(&response);
    let begun = Instant::now();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Trouble::Failed(told(&error)))?;
        let Some(piece) = frame.data_ref() else { continue };
        answer.take(piece);
        sleep_until(job.due(begun, answer.length / BLOCK as u64, blocks)).await;
    }
    Ok(answer)
}

fn job_blocks(response: &http::Response<hyper::body::Incoming>) -> u64 {
    let length = response.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(0) / BLOCK as u64
}

fn body(job: &Job) -> Body {
    let large = match &job.body {
        Content::None => return Empty::new().boxed_unsync(),
        Content::Small(body) => return Full::new(body.clone()).boxed_unsync(),
        Content::Large(large) => large.clone(),
    };
    let begun = Instant::now();
    let due: Vec<_> = (0..large.blocks).map(|number| job.due(begun, number, large.blocks)).collect();
    let blocks = stream::unfold((0, large, due), |(number, large, due)| async move {
        let next = *due.get(usize::try_from(number).unwrap())?;
        sleep_until(next).await;
        Some((Ok(Frame::data(large.block(number))), (number + 1, large, due)))
    });
    StreamBody::new(blocks).boxed_unsync()
}

/// RFC 9113, 8.7: a stream above the last one of a GOAWAY, or refused by name, has not been processed.
fn trouble(error: &hyper::Error) -> Trouble {
    let unprocessed = error.is_canceled()
        || error.source().and_then(|source| source.downcast_ref::<h2::Error>()).is_some_and(|error| {
            error.is_remote()
                && (error.is_go_away() || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
        });
    if unprocessed { Trouble::Unprocessed(told(error)) } else { Trouble::Failed(told(error)) }
}

fn told(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// How often a request is sent before that is a failure too.
const AGAIN: u32 = 5;

/// The longest wait for one connection.
const CONNECT: Duration = Duration::from_secs(10);
