//! A websocket server that says everything again.

use std::{
    convert::Infallible,
    error::Error,
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_tungstenite::{
    HyperWebsocket,
    tungstenite::{self, protocol::WebSocketConfig},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

/// The socket, before there is a runtime to accept on it.
#[derive(Debug)]
pub(super) struct Echo {
    socket: std::net::TcpListener,
}

impl Echo {
    /// On a free port of loopback.
    pub(super) fn bind() -> io::Result<Self> {
        let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until it is dropped, with its connections. There are at most 64, and a
    /// message has at most 64 KiB.
    pub(super) async fn run(self) {
        let listener = match TcpListener::from_std(self.socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(error = &error as &dyn Error, "the websocket server cannot accept");
                return;
            }
        };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(connection(stream))),
                    // Out of descriptors, most likely: accepting again at once would spin.
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// One request, and the websocket it becomes.
async fn connection(stream: TcpStream) {
    let accepted = Mutex::new(None);
    let service = service_fn(|request| {
        let response = answer(request, &accepted);
        async { Ok::<_, Infallible>(response) }
    });
    let exchange = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let accepted = accepted.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let (Ok(()), Some(websocket)) = (exchange, accepted)
        && let Err(error) = echo(websocket).await
    {
        // A peer that goes without a Close is no news to anybody else.
        tracing::debug!(error = &error as &dyn Error, "a websocket of the demonstration failed");
    }
}

fn answer(mut request: Request<Incoming>, accepted: &Mutex<Option<HyperWebsocket>>) -> Response<Full<Bytes>> {
    let refused = |status, why| {
        let mut response = Response::new(Full::new(Bytes::from_static(why)));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/echo" {
        return refused(StatusCode::NOT_FOUND, b"the websocket is at /echo\n");
    }
    if !hyper_tungstenite::is_upgrade_request(&request) {
        return refused(StatusCode::UPGRADE_REQUIRED, b"only websockets are spoken here\n");
    }
    let bounds =
        WebSocketConfig::default().max_message_size(Some(LONGEST_MESSAGE)).max_frame_size(Some(LONGEST_MESSAGE));
    match hyper_tungstenite::upgrade(&mut request, Some(bounds)) {
        Ok((response, websocket)) => {
            *accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(websocket);
            response
        }
        Err(_) => refused(StatusCode::BAD_REQUEST, b"not a handshake of RFC 6455\n"),
    }
}

async fn echo(websocket: HyperWebsocket) -> Result<(), tungstenite::Error> {
    let mut websocket = websocket.await?;
    while let Some(message) = websocket.next().await {
        let message = message?;
        // Pings and the Close are answered by tungstenite.
        if message.is_text() || message.is_binary() {
            websocket.send(message).await?;
        }
    }
    Ok(())
}

const LONGEST_MESSAGE: usize = 64 * 1024;
const CONNECTIONS: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
