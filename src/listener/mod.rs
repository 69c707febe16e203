//! Bound sockets, and what happens on a connection before its first request.
//!
//! A connection has a task of its own from the moment it is accepted: nothing a client does, or leaves undone, is
//! waited for by anyone else. Sockets are given, never bound here; see [`crate::keeper`].

mod downstream;
mod http1;
mod http2;
pub mod proxy_protocol;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    time::{sleep, timeout},
};

pub use self::downstream::Downstream;
use crate::{
    config::ListenerPlan,
    http::forwarded::Peer,
    metrics::{Handshake, ListenerMetrics},
    service::{Connection, Worker},
    tls::{ServerConfigs, TlsInfo},
};

/// One thread's share of a listener.
pub struct Listener {
    pub plan: Rc<ListenerPlan>,
    pub socket: Socket,
    pub tls: Option<Rc<ServerConfigs>>,
    pub metrics: ListenerMetrics,
    /// Connections of all listeners and threads.
    pub connections: Arc<Connections>,
}

/// A listening socket of this thread's runtime.
pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// How many connections there are, against how many there may be.
#[derive(Debug, Default)]
pub struct Connections(AtomicUsize);

impl Connections {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more, unless that is more than `limit`.
    fn enter(self: &Arc<Self>, limit: usize) -> Option<Counted> {
        if self.0.fetch_add(1, Ordering::Relaxed) < limit {
            return Some(Counted(Arc::clone(self)));
        }
        self.0.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

struct Counted(Arc<Connections>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Listener {
    /// Accepts until a drain begins; each connection is served in a task of its own.
    pub async fn run(self, worker: Rc<Worker>) {
        let drain = worker.drain.clone();
        let accepting = async {
            loop {
                match &self.socket {
                    Socket::Tcp(socket) => match socket.accept().await {
                        Ok((stream, peer)) => self.tcp(stream, peer, &worker),
                        Err(error) => self.accept_failed(&error).await,
                    },
                    Socket::Unix(socket) => match socket.accept().await {
                        Ok((stream, _)) => {
                            let connection = self.connection(&worker, Peer::Unix, 0, None);
                            self.spawn(&worker, |_| async move { http1::serve(stream, connection).await });
                        }
                        Err(error) => self.accept_failed(&error).await,
                    },
                }
            }
        };
        tokio::select! {
            () = accepting => {}
            () = drain.started() => {}
        }
    }

    fn tcp(&self, stream: TcpStream, peer: SocketAddr, worker: &Rc<Worker>) {
        let plan = worker.current();
        if self.plan.proxy_protocol && !plan.plan.trusted_proxies.contains(peer.ip()) {
            // Whoever may send the header chooses the client's address.
            tracing::debug!(%peer, listener = ?self.plan.address, "not a trusted proxy: connection closed unread");
            return;
        }
        let (tls, listener, metrics) = (self.tls.clone(), Rc::clone(&self.plan), self.metrics.clone());
        let deadline = plan.plan.limits.handshake_timeout;
        self.spawn(worker, |worker| async move {
            let opened = timeout(deadline, open(stream, peer, listener.proxy_protocol, tls.as_deref())).await;
            let opened = match opened {
                Ok(Ok(opened)) => opened,
                Ok(Err(error)) => {
                    if tls.is_some() {
                        metrics.handshake(Handshake::Error);
                    }
                    tracing::debug!(%peer, error = &error as &dyn std::error::Error, "connection not opened");
                    return;
                }
                Err(_) => {
                    if tls.is_some() {
                        metrics.handshake(Handshake::Timeout);
                    }
                    tracing::debug!(%peer, "connection not opened in time");
                    return;
                }
            };
            match opened {
                Opened { stream: Stream::Plain(stream), peer, local } => {
                    let connection = Rc::new(Connection { worker, listener, peer, local_port: local, tls: None });
                    http1::serve(stream, connection).await;
                }
                Opened { stream: Stream::Tls(stream), peer, local } => {
                    metrics.handshake(Handshake::Ok);
                    let info = TlsInfo::of(stream.get_ref().1);
                    let h2 = info.alpn == Some("h2");
                    let connection = Rc::new(Connection { worker, listener, peer, local_port: local, tls: Some(info) });
                    if h2 { http2::serve(*stream, connection).await } else { http1::serve(*stream, connection).await }
                }
            }
        });
    }

    fn connection(&self, worker: &Rc<Worker>, peer: Peer, local_port: u16, tls: Option<TlsInfo>) -> Rc<Connection> {
        Rc::new(Connection { worker: Rc::clone(worker), listener: Rc::clone(&self.plan), peer, local_port, tls })
    }

    /// Runs one connection, if there may be one more: beyond the limit it is closed at once, which costs the least.
    fn spawn<F: Future<Output = ()> + 'static>(&self, worker: &Rc<Worker>, serve: impl FnOnce(Rc<Worker>) -> F) {
        let limit = worker.current().plan.limits.connections;
        let Some(counted) = self.connections.enter(limit) else {
            self.metrics.shed();
            return;
        };
        let accepted = self.metrics.accepted();
        let serve = serve(Rc::clone(worker));
        worker.tasks.spawn(async move {
            serve.await;
            drop((counted, accepted));
        });
    }

    /// An error of one connection is passed over; one of ours, as when descriptors run out, would come again at once.
    async fn accept_failed(&self, error: &io::Error) {
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
        ) {
            return;
        }
        self.metrics.accept_error();
        tracing::error!(
            listener = ?self.plan.address,
            error = error as &dyn std::error::Error,
            pause = ?ACCEPT_PAUSE,
            "cannot accept connections; raise the limit of open files if it says so"
        );
        sleep(ACCEPT_PAUSE).await;
    }
}

/// A connection on which requests can be read.
struct Opened {
    stream: Stream,
    peer: Peer,
    local: u16,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

async fn open(
    mut stream: TcpStream,
    peer: SocketAddr,
    proxy_protocol: bool,
    tls: Option<&ServerConfigs>,
) -> Result<Opened, OpenError> {
    // Heads and bodies leave in whole pieces; what waits for an acknowledgement only waits.
    stream.set_nodelay(true)?;
    let mut local = stream.local_addr()?;
    let mut peer = peer;
    if proxy_protocol && let Some(said) = proxy_protocol::read(&mut stream).await? {
        peer = said.source;
        local = said.destination;
    }
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(configs) => {
            let address: IpAddr = local.ip().to_canonical();
            Stream::Tls(Box::new(configs.accept(stream, Some(address)).await?))
        }
    };
    Ok(Opened { stream, peer: Peer::Tcp(peer), local: local.port() })
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("the connection broke off, or its TLS handshake failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    ProxyProtocol(#[from] proxy_protocol::ProxyProtocolError),
}

/// How long a listener rests when the system refuses to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
