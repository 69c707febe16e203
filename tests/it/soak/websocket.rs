//! A websocket that lives as long as it is let, and notices at once when it is cut.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};
use tokio_util::sync::CancellationToken;

use super::{
    job,
    ledger::{End, Exchange, Kind, Protocol, Session},
};
use crate::support::clients::tls_connect;

/// Where it goes, and over what.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) address: SocketAddr,
    /// Offers http/1.1. `None`: plain.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

pub(super) struct Socket {
    stream: WebSocketStream<Box<dyn Transport>>,
    id: u64,
    opened: Instant,
}

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

impl Client {
    /// Opens one; the handshake is an exchange like any other.
    pub(super) async fn open(&self) -> (Exchange, Option<Socket>) {
        let (id, begun) = (job::next(), Instant::now());
        let mut connected = None;
        let opened = timeout(PATIENCE, async {
            let stream = self.connect().await.map_err(|error| format!("cannot connect: {error}"))?;
            connected = Some(Instant::now());
            let request = format!("ws://localhost/ws/?n={id}");
            tokio_tungstenite::client_async(request, stream).await.map_err(|error| error.to_string())
        });
        let opened = opened.await.unwrap_or_else(|_| Err(format!("no handshake within {PATIENCE:?}")));
        let ended = Instant::now();
        let error = opened.as_ref().err().cloned();
        let socket = opened.ok().map(|(stream, _)| Socket { stream, id, opened: ended });
        let (kind, protocol) = (Kind::Websocket, Protocol::H1);
        (Exchange { id, kind, protocol, connected, begun, ended, retried: 0, resent: 0, error }, socket)
    }

    async fn connect(&self) -> io::Result<Box<dyn Transport>> {
        Ok(match &self.tls {
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Some(tls) => Box::new(tls_connect(self.address, "localhost", Arc::clone(tls)).await?),
        })
    }
}

impl Socket {
    /// Sends numbered messages and waits for each to come back, until it ends or `stop` says so.
    pub(super) async fn live(mut self, stop: &CancellationToken) -> Session {
        let mut messages = 0;
        let end = loop {
            tokio::select! {
                // It is looked at while nothing is to be sent, too.
                came = self.stream.next() => break ended(came),
                () = stop.cancelled() => {
                    // Who does not answer our Close is gone all the same.
                    drop(timeout(PATIENCE, self.stream.close(None)).await);
                    break End::Ours;
                }
                () = sleep(Duration::from_millis(fastrand::u64(50..200))) => {}
            }
            let message = format!("message {messages}");
            if let Err(error) = self.stream.send(Message::text(message.as_str())).await {
                // A Close that crossed with our message says more than that it could not be sent.
                break match timeout(PATIENCE, self.stream.next()).await {
                    Ok(came @ Some(Ok(Message::Close(_)))) => ended(came),
                    _ => End::Broken(format!("cannot send: {error}")),
                };
            }
            match timeout(PATIENCE, self.stream.next()).await {
                Ok(Some(Ok(Message::Text(text)))) if text.as_str() == message => messages += 1,
                Ok(came) => break ended(came),
                Err(_) => break End::Broken(format!("no echo within {PATIENCE:?}")),
            }
        };
        Session { id: self.id, opened: self.opened, ended: Instant::now(), messages, end }
    }
}

fn ended(came: Option<Result<Message, tungstenite::Error>>) -> End {
    match came {
        Some(Ok(Message::Close(None))) => End::Closed(None, String::new()),
        Some(Ok(Message::Close(Some(close)))) => End::Closed(Some(close.code.into()), close.reason.to_string()),
        Some(Ok(other)) => End::Broken(format!("not what was sent: {other:?}")),
        Some(Err(error)) => End::Broken(error.to_string()),
        None => End::Broken("the connection was closed".to_owned()),
    }
}

/// The longest wait for a handshake or an echo.
const PATIENCE: Duration = Duration::from_secs(20);
