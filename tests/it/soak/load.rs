//! Clients of every kind that ask without a pause worth speaking of, until they are told to stop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::ClientConfig;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    h1, h2,
    job::{Job, Large},
    ledger::Ledger,
    websocket,
};

/// Where the peer listens, and whom its clients believe.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) plain: SocketAddr,
    pub(super) tls: SocketAddr,
    pub(super) h2: Arc<ClientConfig>,
    pub(super) h1: Arc<ClientConfig>,
}

/// How many clients of each kind.
#[derive(Clone, Copy)]
pub(super) struct Mix {
    pub(super) h1: usize,
    /// Connections, of [`STREAMS`] streams each.
    pub(super) h2: usize,
    /// One that sends and one that fetches large bodies, over h1 and over h2 each.
    pub(super) large: bool,
    /// Half of them over TLS.
    pub(super) websockets: usize,
}

impl Mix {
    pub(super) const WHOLE: Self = Self { h1: 4, h2: 2, large: true, websockets: 4 };
    pub(super) const SMALL: Self = Self { h1: 4, h2: 2, large: false, websockets: 0 };
}

pub(super) struct Load {
    ledger: Arc<Ledger>,
    asking: CancellationToken,
    talking: CancellationToken,
    clients: JoinSet<()>,
    websockets: JoinSet<()>,
}

impl Load {
    pub(super) fn start(ledger: &Arc<Ledger>, target: &Target, mix: Mix, large: &Large) -> Self {
        let mut load = Self {
            ledger: Arc::clone(ledger),
            asking: CancellationToken::new(),
            talking: CancellationToken::new(),
            clients: JoinSet::new(),
            websockets: JoinSet::new(),
        };
        for _ in 0..mix.h1 {
            load.h1(target, small, think);
        }
        for _ in 0..mix.h2 {
            let client = Arc::new(h2::Client::new(target.tls, Arc::clone(&target.h2)));
            for _ in 0..STREAMS {
                load.h2(&client, small, think);
            }
        }
        if mix.large {
            let client = || Arc::new(h2::Client::new(target.tls, Arc::clone(&target.h2)));
            let (send, fetch) = (large.clone(), large.clone());
            load.h1(target, move || Job::upload(&send, PACE), rest);
            load.h1(target, move || Job::download(&fetch, PACE), rest);
            let (send, fetch) = (large.clone(), large.clone());
            load.h2(&client(), move || Job::upload(&send, PACE), rest);
            load.h2(&client(), move || Job::download(&fetch, PACE), rest);
        }
        for number in 0..mix.websockets {
            let client = if number % 2 == 0 {
                websocket::Client { address: target.plain, tls: None }
            } else {
                websocket::Client { address: target.tls, tls: Some(Arc::clone(&target.h1)) }
            };
            load.websocket(client);
        }
        load
    }

    fn h1(&mut self, target: &Target, job: impl Fn() -> Job + Send + 'static, pause: fn() -> Duration) {
        let mut client = h1::Client::new(target.plain);
        let (ledger, stop) = (Arc::clone(&self.ledger), self.asking.clone());
        self.clients.spawn(async move {
            while paused(pause(), &stop).await {
                let exchange = client.exchange(&job()).await;
                ledger.entries().exchanges.push(exchange);
            }
        });
    }

    fn h2(&mut self, client: &Arc<h2::Client>, job: impl Fn() -> Job + Send + 'static, pause: fn() -> Duration) {
        let client = Arc::clone(client);
        let (ledger, stop) = (Arc::clone(&self.ledger), self.asking.clone());
        self.clients.spawn(async move {
            while paused(pause(), &stop).await {
                let job = job();
                let exchange = client.exchange(&job).await;
                ledger.entries().exchanges.push(exchange);
            }
        });
    }

    fn websocket(&mut self, client: websocket::Client) {
        let (ledger, stop, talking) = (Arc::clone(&self.ledger), self.asking.clone(), self.talking.clone());
        self.websockets.spawn(async move {
            // Once the others have stopped it goes on, and does not come back.
            while paused(think(), &stop).await {
                let (exchange, socket) = client.open().await;
                ledger.entries().exchanges.push(exchange);
                if let Some(socket) = socket {
                    let session = socket.live(&talking).await;
                    ledger.entries().sessions.push(session);
                }
            }
        });
    }

    /// Lets each request come to its end and has no more of them; websockets stay.
    pub(super) async fn stop_asking(&mut self) {
        self.asking.cancel();
        finished(&mut self.clients).await;
    }

    /// Waits for the websockets to be closed by the peer; closes what is left after `patience`.
    pub(super) async fn stop_talking(mut self, patience: Duration) {
        let websockets = &mut self.websockets;
        if tokio::time::timeout(patience, finished(websockets)).await.is_err() {
            self.talking.cancel();
            finished(&mut self.websockets).await;
        }
    }
}

/// A client that fails in a way of its own fails the test.
async fn finished(clients: &mut JoinSet<()>) {
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

fn small() -> Job {
    match fastrand::u8(..20) {
        0 => Job::slow(),
        1..=10 => Job::get(),
        _ => Job::post(),
    }
}

/// Between two small requests of a client.
fn think() -> Duration {
    Duration::from_millis(fastrand::u64(10..30))
}

/// Between two large ones.
fn rest() -> Duration {
    Duration::from_millis(fastrand::u64(200..800))
}

/// Whether to go on after `pause`.
async fn paused(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::time::timeout(pause, stop.cancelled()).await.is_err()
}

/// Streams of each h2 connection that asks small things.
const STREAMS: usize = 3;

/// A large body takes this long at least.
const PACE: Duration = Duration::from_millis(2500);
