//! One core's traffic.

use std::{
    cell::Cell,
    io,
    net::TcpListener,
    os::unix::net::UnixListener,
    rc::Rc,
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::{
    task::LocalSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::{ListenAddress, ListenerPlan},
    drain::{Drain, Tasks},
    listener::{Connections, Listener, Socket},
    metrics::Metrics,
    runtime::Current,
    service::Worker,
    spool::Spool,
    telemetry::access_log::{Format, LogWriter},
    tls::{CertificateStore, ServerConfigs},
};

/// What one traffic thread is given.
pub(super) struct Share {
    pub(super) listeners: Vec<(ListenerPlan, ListenAddress, Bound)>,
    pub(super) current: Arc<Current>,
    pub(super) spool: Arc<Spool>,
    pub(super) certificates: Arc<CertificateStore>,
    pub(super) tls: ServerConfigs,
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: Option<(LogWriter, Arc<Format>)>,
    pub(super) connections: Arc<Connections>,
    pub(super) drain: Drain,
}

/// A socket before it has a runtime.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Share {
    /// One core's traffic, from its runtime's start to the end of its last connection or of the drain's deadline.
    pub(super) fn run(self, ready: &mpsc::Sender<io::Result<()>>) -> bool {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                // Whoever started us has gone if nobody hears this.
                drop(ready.send(Err(error)));
                return true;
            }
        };
        let local = LocalSet::new();
        local.block_on(&runtime, self.serve(ready))
    }

    async fn serve(self, ready: &mpsc::Sender<io::Result<()>>) -> bool {
        let tasks = Tasks::default();
        let deadline = self.current.load().plan.drain;
        let worker = Worker::new(
            self.current,
            self.spool,
            self.certificates,
            Arc::clone(&self.metrics),
            self.log,
            self.drain.clone(),
            tasks.clone(),
        );
        let tls = Rc::new(self.tls);
        let mut listeners = Vec::new();
        for (plan, address, socket) in self.listeners {
            let socket = match Socket::try_from(socket) {
                Ok(socket) => socket,
                Err(error) => {
                    drop(ready.send(Err(error)));
                    return true;
                }
            };
            listeners.push(Listener {
                tls: plan.tls.then(|| Rc::clone(&tls)),
                metrics: self.metrics.listener(&address.to_string()),
                plan: Rc::new(plan),
                socket,
                connections: Arc::clone(&self.connections),
                refused: Cell::new(false),
            });
        }
        for listener in listeners {
            tasks.spawn(listener.run(Rc::clone(&worker)));
        }
        drop(ready.send(Ok(())));

        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.drain.is_on() {
            tokio::select! {
                _ = tick.tick() => worker.pool.prune(),
                () = self.drain.started() => {}
            }
        }
        tasks.finished(deadline).await
    }
}

impl TryFrom<Bound> for Socket {
    type Error = io::Error;

    /// Must be called inside the runtime that is to accept on it.
    fn try_from(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Tcp(socket) => Self::Tcp(tokio::net::TcpListener::from_std(socket)?),
            Bound::Unix(socket) => Self::Unix(tokio::net::UnixListener::from_std(socket)?),
        })
    }
}

/// How often a traffic thread looks after its idle connections to endpoints.
const TICK: Duration = Duration::from_millis(500);
