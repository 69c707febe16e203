//! The admin endpoint: how the gateway is, for people, probes and Prometheus.
//!
//! `GET /live`, `/ready`, `/status`, `/metrics` and `/config`, and `POST /reload`, `/rollback`, `/drain`, `/upgrade`,
//! `/reopen` and `/restart/NAME`, over a unix socket, and over TCP where it is wanted. Binding, knowing the answers and obeying
//! ([`AdminState`]) is left to others. Whoever can connect to the unix socket may ask: its permissions (mode 0600) are the access
//! control. No web page can reach a unix socket, so `Host` is not looked at. Over TCP it takes a token ([`Remote`]).
//!
//! A connection carries one exchange, and there are [`CONNECTIONS`] at most on each of the two; one more waits in the backlog.
//! Each is over after [`CONNECTION_TIMEOUT`] at the latest, whatever its peer does.

pub mod client;
mod observer;
mod order;
mod remote;
mod report;
mod service;
mod status;
mod token;

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

pub use observer::Observer;
pub use order::{LONGEST_WAIT, Order, Orders, Outcome, tag};
pub use remote::{AdminSecrets, Remote, Terms};
pub use report::{Applied, BackendReport, InstanceReport, Refusal, Report, WorkerReport};
pub use status::{
    CertificateStatus, EndpointStatus, GenerationStatus, HopStatus, HopsStatus, LimitsStatus, ListenerStatus,
    ProgramStatus, Status, UpstreamStatus, render_certificates, render_hops, render_status, timestamp,
};
pub use token::{Token, TokenFault};

/// What the admin endpoint is asked about, and who carries out what it is told. Called on the control runtime; an answer
/// must not block.
pub trait AdminState: Send + Sync + 'static {
    /// Whether requests should be sent here; if not, why: draining, not yet started.
    fn ready(&self) -> Result<(), String>;

    fn status(&self) -> Status;

    /// The exposition of [`crate::metrics::Metrics::encode`].
    fn metrics(&self) -> String;

    /// The plan in force, as JSON.
    fn config(&self) -> serde_json::Value;

    /// Has `order` carried out; `None` where nobody takes any. The outcome does not come if we end before it.
    fn order(&self, order: Order) -> Option<oneshot::Receiver<Outcome>>;

    /// Has the backend `name` restarted, or the program of supervisord's that is called so or is behind the upstream of that
    /// name; `None` where there is none.
    fn restart(&self, name: &str) -> Option<oneshot::Receiver<Outcome>>;
}

/// Answers on `listener` until `shutdown`; open exchanges come to their end, until `stop` and [`SHUTDOWN_TIMEOUT`] from
/// then on.
///
/// Dropping the future closes every connection at once.
pub async fn serve(listener: UnixListener, state: Arc<dyn AdminState>, shutdown: impl Future, stop: impl Future) {
    let service = service::service(state, |_| None);
    accept(listener, |stream| answer_on(stream, service.clone()), shutdown, stop).await;
}

/// Answers over TCP in the same way, as `remote` has it.
pub async fn serve_remote(listener: TcpListener, remote: Arc<Remote>, shutdown: impl Future, stop: impl Future) {
    accept(listener, |accepted| Arc::clone(&remote).answer_on(accepted), shutdown, stop).await;
}

/// Where connections come from.
trait Accept {
    type Accepted;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Accepted>> + Send;
}

impl Accept for UnixListener {
    type Accepted = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for TcpListener {
    type Accepted = (TcpStream, SocketAddr);

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }
}

async fn accept<L: Accept, F: Future<Output = ()> + Send + 'static>(
    listener: L,
    connection: impl Fn(L::Accepted) -> F,
    shutdown: impl Future,
    stop: impl Future,
) {
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            _ = &mut shutdown => break,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok(accepted) => drop(connections.spawn(connection(accepted))),
                Err(error) => {
                    debug!(error = &error as &dyn Error, "cannot accept an admin connection");
                    // Out of descriptors, most likely: accepting again at once would spin.
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    let stopped = async {
        stop.await;
        sleep(SHUTDOWN_TIMEOUT).await;
    };
    tokio::select! {
        () = rest => {}
        () = stopped => debug!("admin connections were cut off by the stop"),
    }
}

/// One exchange on `stream`.
async fn answer_on<S>(stream: S, service: service::Service)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let exchange = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    match timeout(CONNECTION_TIMEOUT, exchange).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = &error as &dyn Error, "an admin connection failed"),
        Err(_) => debug!("an admin connection took too long"),
    }
}

/// Connections at once, on each of unix and TCP.
pub const CONNECTIONS: usize = 64;

/// From accept to the last byte of the answer.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(150);

/// What a stop leaves to exchanges under way.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_LIMIT: usize = 16 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
