//! Bound sockets, and what happens on a connection before its first request.
//!
//! A connection has a task of its own from the moment it is accepted: nothing a client does, or leaves undone, is
//! waited for by anyone else. Sockets are given, never bound here; see [`crate::keeper`].

mod downstream;
mod http1;
mod http2;
pub mod proxy_protocol;

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::LocalBoxFuture};
use rustix::{io::Errno, net::SocketFlags};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

pub use self::downstream::Downstream;
use crate::{
    config::ListenerPlan,
    drain::{Drain, Leaving},
    http::forwarded::Peer,
    limits::{Client, ClientStreams, Connections, OpenConnection, memory::Pressure},
    metrics::{Handshake, ListenerMetrics, Shed},
    runtime::Runtime,
    service::{Connection, TrafficThread},
    tls::{ServerConfigs, TlsInfo, TlsStream},
    turns,
};

/// One thread's share of a listener: a socket, and the terms on which connections are accepted from it.
pub struct Listener {
    socket: Socket,
    terms: RefCell<Terms>,
    /// Given when no more is to be accepted.
    closing: Leaving,
    metrics: Rc<ListenerMetrics>,
    /// Connections of all listeners and threads.
    connections: Arc<Connections>,
    /// When the system last refused to accept.
    refused: Cell<Option<Instant>>,
}

/// What a reload may change of a listener, for connections that are accepted from then on.
#[derive(Clone)]
struct Terms {
    plan: Rc<ListenerPlan>,
    tls: Option<Rc<ServerConfigs>>,
    /// Given to connections of these terms when others are in force.
    leaving: Leaving,
}

/// A listening socket of this thread's runtime.
pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub fn new(
        socket: Socket,
        plan: ListenerPlan,
        tls: Option<Rc<ServerConfigs>>,
        metrics: ListenerMetrics,
        connections: Arc<Connections>,
        drain: &Drain,
    ) -> Self {
        let terms = Terms { plan: Rc::new(plan), tls, leaving: drain.part() };
        let (terms, refused, metrics) = (RefCell::new(terms), Cell::new(None), Rc::new(metrics));
        Self { socket, terms, closing: drain.part(), metrics, connections, refused }
    }

    /// Accepts until it is closed or we leave; each connection is served in a task of its own.
    pub async fn run(self: Rc<Self>, thread: Rc<TrafficThread>) {
        tokio::select! {
            () = self.accept_all(&thread) => {}
            () = self.closing.started() => {}
        }
        // Whoever else holds the socket lets go of it first: what came to wait in it after our last look would be lost.
        let others_let_go = async {
            tokio::select! {
                () = sleep(LET_GO) => {}
                () = thread.drain.started() => {}
            }
        };
        tokio::select! {
            () = self.accept_all(&thread) => {}
            () = others_let_go => {}
        }
        self.accept_queued(&thread);
    }

    /// Accepts on other terms from now on; connections of the terms before end with their next answer.
    pub fn change(&self, plan: ListenerPlan, tls: Option<Rc<ServerConfigs>>, drain: &Drain) {
        let terms = Terms { plan: Rc::new(plan), tls, leaving: drain.part() };
        self.terms.replace(terms).leaving.start();
    }

    /// Accepts for another moment and what waits in the queue then, and no more; its connections end with their next
    /// answer.
    pub fn close(&self) {
        self.terms.borrow().leaving.start();
        self.closing.start();
    }

    async fn accept_all(&self, thread: &Rc<TrafficThread>) {
        loop {
            if let Err(error) = self.accept_one(thread).await {
                self.accept_failed(&error).await;
            }
        }
    }

    /// Takes what the kernel has queued: it has been promised an answer, and closing the socket would reset it.
    fn accept_queued(&self, thread: &Rc<TrafficThread>) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let accepted = match &self.socket {
                Socket::Tcp(socket) => rustix::net::accept_with(socket, flags),
                Socket::Unix(socket) => rustix::net::accept_with(socket, flags),
            };
            match (accepted, &self.socket) {
                (Ok(stream), Socket::Tcp(_)) => {
                    let stream = std::net::TcpStream::from(stream);
                    if let (Ok(peer), Ok(stream)) = (stream.peer_addr(), TcpStream::from_std(stream)) {
                        self.begin_tcp(stream, peer, thread);
                    }
                }
                (Ok(stream), Socket::Unix(_)) => {
                    if let Ok(stream) = UnixStream::from_std(stream.into()) {
                        self.begin(stream, Ends { peer: Peer::Unix, local: None }, thread);
                    }
                }
                // That one has gone; the next may not have.
                (Err(Errno::CONNABORTED | Errno::INTR), _) => {}
                (Err(_), _) => return,
            }
        }
    }

    async fn accept_one(&self, thread: &Rc<TrafficThread>) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                self.begin_tcp(stream, peer, thread);
            }
            Socket::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                self.begin(stream, Ends { peer: Peer::Unix, local: None }, thread);
            }
        }
        Ok(())
    }

    fn begin_tcp(&self, stream: TcpStream, peer: SocketAddr, thread: &Rc<TrafficThread>) {
        // Heads and bodies leave in whole pieces; what waits for an acknowledgement only waits.
        // A connection that is refused this has ended already, which is no fault of the listener's.
        if let (Ok(()), Ok(local)) = (stream.set_nodelay(true), stream.local_addr()) {
            self.begin(stream, Ends { peer: Peer::Tcp(peer), local: Some(local) }, thread);
        }
    }

    fn begin<S: Downstream>(&self, stream: S, ends: Ends, thread: &Rc<TrafficThread>) {
        let runtime = thread.current();
        let trusted = match ends.peer {
            Peer::Tcp(peer) => runtime.plan.trusted_proxies.contains(peer.ip()),
            Peer::Unix => runtime.plan.trusted_proxies.unix,
        };
        let Terms { plan: listener, tls, leaving } = self.terms.borrow().clone();
        if listener.proxy_protocol && !trusted {
            // Whoever may send the header chooses the client's address.
            tracing::debug!(peer = ?ends.peer, listener = %listener.address, "not a trusted proxy: closed unread");
            return;
        }
        let (connections, metrics) = (Arc::clone(&self.connections), Rc::clone(&self.metrics));
        let refused = move |reason, client, runtime: &Runtime| {
            metrics.shed(reason);
            connections.tell(reason, client, &runtime.plan.limits);
        };
        let pressure = self.connections.memory.pressure(&runtime.plan.limits, self.connections.count());
        if pressure == Pressure::Full {
            return refused(Shed::Memory, None, &runtime);
        }
        // Beyond a limit it is closed at once, which costs the least.
        let mut admission = match self.connections.enter(&runtime.plan.limits) {
            Ok(open) => Admission { open, tls: tls.is_some() },
            Err(reason) => return refused(reason, None, &runtime),
        };
        let client = counted(&ends.peer, &runtime);
        // Who comes through a proxy is known after its header.
        if !listener.proxy_protocol
            && let Err((reason, client)) = admission.count(client, &runtime)
        {
            return refused(reason, client, &runtime);
        }
        let turned_away = pressure == Pressure::High;
        if turned_away {
            refused(Shed::Memory, None, &runtime);
        }
        let accepted = self.metrics.accepted();
        let (metrics, all) = (Rc::clone(&self.metrics), Arc::clone(&self.connections));
        let tasks = thread.tasks.of(client);
        let (proxy_protocol, thread) = (listener.proxy_protocol, Rc::clone(thread));
        let connection = {
            let (thread, tasks) = (Rc::clone(&thread), tasks.clone());
            move |ends: &Ends, tls| {
                // Whose it is was said by the proxy.
                let tasks =
                    if proxy_protocol { thread.tasks.of(counted(&ends.peer, &thread.current())) } else { tasks };
                let (peer, local_port) = (ends.peer, ends.local.map_or(0, |local| local.port()));
                Rc::new(Connection { thread, tasks, listener, leaving, peer, local_port, turned_away, all, tls })
            }
        };
        // Until it is open: it is not to keep this generation for as long as it stays.
        let runtime = Arc::clone(&runtime);
        let cost = if tls.is_some() { turns::HANDSHAKE } else { turns::ONE };
        // Each phase on the heap by itself, and made by the one before: what the task keeps is not as large as a handshake.
        let opening = Box::pin(async move {
            let opened = open_in_time(stream, ends, proxy_protocol, tls, &mut admission, runtime, &metrics).await?;
            Ok(opened.map(|(stream, ends)| {
                let streams = admission.open.streams();
                (admission, serve(stream, &ends, connection, streams))
            }))
        });
        tasks.spawn_at(cost, async move {
            let (admission, serving) = match opening.await {
                Ok(Some(opened)) => opened,
                Ok(None) => return,
                Err((reason, client)) => return refused(reason, client, &thread.current()),
            };
            turns::cost(turns::ONE);
            if let Err((reason, client)) = serving.await {
                refused(reason, client, &thread.current());
            }
            drop((admission, accepted));
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
        // Once an episode: it comes again at every attempt, with one that succeeds now and then.
        let last = self.refused.replace(Some(Instant::now()));
        if last.is_none_or(|last| last.elapsed() > EPISODE) {
            tracing::error!(
            listener = %self.terms.borrow().plan.address,
            error = error as &dyn std::error::Error,
            pause = ?ACCEPT_PAUSE,
            "cannot accept connections, and tries again and again; raise the limit of open files if it says so"
            );
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Why a connection was refused or ended, and whose it was where that is counted.
type Refusal = (Shed, Option<Client>);

/// Serves what the client and we have agreed to speak. An error: its client has asked for too much.
fn serve<S: Downstream>(
    stream: Stream<S>,
    ends: &Ends,
    connection: impl FnOnce(&Ends, Option<TlsInfo>) -> Rc<Connection>,
    streams: ClientStreams,
) -> LocalBoxFuture<'static, Result<(), Refusal>> {
    match stream {
        Stream::Plain(stream) => Box::pin(serve_http1(http1::wire(stream), connection(ends, None))),
        Stream::Tls(stream, info) if info.alpn == Some("h2") => {
            let client = client(&ends.peer);
            let serving = http2::serve(stream, connection(ends, Some(*info)), streams);
            Box::pin(serving.map(move |ended| match ended {
                http2::End::Over => Ok(()),
                http2::End::Flood => Err((Shed::Flood, client)),
            }))
        }
        Stream::Tls(stream, info) => Box::pin(serve_http1(http1::wire(*stream), connection(ends, Some(*info)))),
    }
}

/// Serves requests, and what comes of them if that is a websocket.
async fn serve_http1<S: Downstream>(wire: http1::Wire<S>, connection: Rc<Connection>) -> Result<(), Refusal> {
    let upgraded = Box::pin(http1::serve(wire, &connection)).await;
    if let Some(upgraded) = upgraded {
        Box::pin(upgraded.carry(connection)).await;
    }
    Ok(())
}

/// A connection that has been let in so far.
struct Admission {
    open: OpenConnection,
    tls: bool,
}

impl Admission {
    /// Counts the connection, and its handshake if it is to make one, as `client`'s, unless that has had its part.
    fn count(&mut self, client: Option<Client>, runtime: &Runtime) -> Result<(), Refusal> {
        if let Some(client) = client {
            self.open.count_for(client, &runtime.plan.limits).map_err(|reason| (reason, Some(client)))?;
        }
        if self.tls && !runtime.handshakes.count(client) { Err((Shed::Handshakes, client)) } else { Ok(()) }
    }
}

/// Who `peer` is, if that is known.
fn client(peer: &Peer) -> Option<Client> {
    match peer {
        Peer::Tcp(peer) => Some(Client::new(peer.ip())),
        Peer::Unix => None,
    }
}

/// Whom `peer` is counted as, if by address.
fn counted(peer: &Peer, runtime: &Runtime) -> Option<Client> {
    match peer {
        Peer::Tcp(peer) => Client::counted(peer.ip(), &runtime.plan.limits, &runtime.plan.trusted_proxies),
        Peer::Unix => None,
    }
}

/// Both ends of a connection, or those a PROXY header tells.
struct Ends {
    peer: Peer,
    local: Option<SocketAddr>,
}

/// A connection on which requests can be read.
enum Stream<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>, Box<TlsInfo>),
}

/// `None`: there is nothing to be read from it. An error: it is beyond a limit.
async fn open_in_time<S: Downstream>(
    stream: S,
    ends: Ends,
    proxy_protocol: bool,
    tls: Option<Rc<ServerConfigs>>,
    admission: &mut Admission,
    runtime: Arc<Runtime>,
    metrics: &ListenerMetrics,
) -> Result<Option<(Stream<S>, Ends)>, Refusal> {
    let (peer, deadline) = (ends.peer, runtime.plan.limits.handshake_timeout);
    let opened = timeout(deadline, open(stream, ends, proxy_protocol, tls.as_deref(), admission, &runtime)).await;
    let outcome = match &opened {
        Ok(Ok(_)) => Some(Handshake::Ok),
        Ok(Err(OpenError::Limit(..))) => None,
        Ok(Err(_)) => Some(Handshake::Error),
        Err(_) => Some(Handshake::Timeout),
    };
    if tls.is_some()
        && let Some(outcome) = outcome
    {
        metrics.handshake(outcome);
    }
    match opened {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(OpenError::Limit(reason, client))) => Err((reason, client)),
        Ok(Err(error)) => {
            tracing::debug!(?peer, error = &error as &dyn std::error::Error, "connection not opened");
            Ok(None)
        }
        Err(_) => {
            tracing::debug!(?peer, ?deadline, "connection not opened in time");
            Ok(None)
        }
    }
}

/// `None`: the connection has served its purpose.
async fn open<S: Downstream>(
    mut stream: S,
    mut ends: Ends,
    proxy_protocol: bool,
    tls: Option<&ServerConfigs>,
    admission: &mut Admission,
    runtime: &Runtime,
) -> Result<Option<(Stream<S>, Ends)>, OpenError> {
    if proxy_protocol {
        if let Some(said) = proxy_protocol::read(&mut stream).await? {
            ends = Ends { peer: Peer::Tcp(said.source), local: Some(said.destination) };
        }
        admission
            .count(counted(&ends.peer, runtime), runtime)
            .map_err(|(reason, client)| OpenError::Limit(reason, client))?;
    }
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(configs) => {
            let address = ends.local.map(|local| local.ip().to_canonical());
            match configs.accept(stream, address).await? {
                Some((stream, info)) => Stream::Tls(Box::new(stream), Box::new(info)),
                None => return Ok(None),
            }
        }
    };
    Ok(Some((stream, ends)))
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("the connection broke off, or its TLS handshake failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    ProxyProtocol(#[from] proxy_protocol::ProxyProtocolError),
    #[error("beyond a limit")]
    Limit(Shed, Option<Client>),
}

/// A refusal this long after the last one is news again.
const EPISODE: Duration = Duration::from_secs(10);
/// How long a listener that is to be closed accepts still.
pub(crate) const LET_GO: Duration = Duration::from_millis(500);
/// How long a listener rests when the system refuses to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
