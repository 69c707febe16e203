//! The traffic of one thread.

use std::{
    collections::HashMap,
    io,
    net::TcpListener,
    os::unix::net::UnixListener,
    rc::Rc,
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender},
        oneshot,
    },
    task::LocalSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    allocator::Quiet,
    config::ListenerPlan,
    drain::{Drain, Tasks},
    limits::Connections,
    listener::{Listener, Socket},
    metrics::Metrics,
    runtime::Current,
    service::{Hops, TrafficThread},
    telemetry::access_log::{Format, LogWriter},
    tls::{CertificateStore, ServerConfigs},
};

/// What one traffic thread is given.
pub(super) struct Share {
    pub(super) current: Arc<Current>,
    pub(super) certificates: Arc<CertificateStore>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) connections: Arc<Connections>,
    pub(super) drain: Drain,
    pub(super) commands: UnboundedReceiver<Command>,
    pub(super) hops: Arc<Hops>,
}

/// What a running thread is told. A change comes in two steps, so that the second cannot fail on any thread.
pub(super) enum Command {
    /// Takes sockets into its runtime and does not accept on them yet.
    Take(Vec<(SocketId, Bound)>, mpsc::Sender<io::Result<()>>),
    /// Drops those that it took and never accepted on.
    Forget,
    /// Goes on with exactly `listeners`.
    Switch(Switch, mpsc::Sender<io::Result<()>>),
    /// Answers, if it still turns.
    Beat(oneshot::Sender<()>),
}

pub(super) struct Switch {
    pub(super) listeners: Vec<Terms>,
    pub(super) log: Log,
}

/// Where lines go; `None` when there is no access log.
pub(super) type Log = Option<(LogWriter, Arc<Format>)>;

/// On what terms connections are accepted at a listener, and from which sockets.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) id: ListenerId,
    pub(super) plan: ListenerPlan,
    /// The address as it is, for metrics.
    pub(super) label: String,
    pub(super) tls: Option<ServerConfigs>,
    /// Other ones than before.
    pub(super) changed: bool,
}

pub(super) type ListenerId = u64;

/// The listener, and which of its sockets: a thread may have several.
pub(super) type SocketId = (ListenerId, usize);

/// A socket before it has a runtime.
pub(super) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Share {
    /// The traffic of this thread, from its runtime's start to the end of its last connection or of the stop's deadline.
    ///
    /// `_alive` is dropped at the end.
    pub(super) fn run(self, ready: &mpsc::Sender<io::Result<()>>, _alive: UnboundedSender<()>) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                // Whoever started us has gone if nobody hears this.
                drop(ready.send(Err(error)));
                return;
            }
        };
        drop(ready.send(Ok(())));
        let local = LocalSet::new();
        let drain = self.drain.clone();
        if !local.block_on(&runtime, self.serve()) {
            drain.cut_off();
        }
    }

    async fn serve(self) -> bool {
        let Self { current, certificates, metrics, connections, drain, hops, mut commands } = self;
        let tasks = Tasks::default();
        let thread =
            TrafficThread::new(current, certificates, Arc::clone(&metrics), None, drain.clone(), tasks.clone(), hops);
        let mut sockets = Sockets { thread, metrics, connections, taken: HashMap::new(), open: HashMap::new() };

        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quiet = Quiet::default();
        while !drain.is_on() {
            tokio::select! {
                // A change that was ordered before a stop is made before it.
                biased;
                Some(command) = commands.recv() => sockets.obey(command),
                () = drain.started() => {}
                _ = tick.tick() => {
                    sockets.thread.pool.prune();
                    quiet.look(Handle::current().metrics().worker_total_busy_duration(0));
                }
            }
        }
        drop(sockets);
        // What is left to this thread it can still answer for.
        let beats = async {
            while let Some(command) = commands.recv().await {
                if let Command::Beat(alive) = command {
                    alive.send(()).ok();
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = tasks.finished(&drain) => ended,
            () = beats => false,
        }
    }
}

/// The sockets of one thread.
struct Sockets {
    thread: Rc<TrafficThread>,
    metrics: Arc<Metrics>,
    connections: Arc<Connections>,
    /// Not accepted on yet.
    taken: HashMap<SocketId, Socket>,
    open: HashMap<SocketId, Rc<Listener>>,
}

impl Sockets {
    fn obey(&mut self, command: Command) {
        match command {
            Command::Take(sockets, done) => drop(done.send(self.take(sockets))),
            Command::Forget => self.taken.clear(),
            Command::Switch(switch, done) => {
                self.switch(switch);
                drop(done.send(Ok(())));
            }
            Command::Beat(alive) => {
                // Whoever asked may be ending.
                alive.send(()).ok();
            }
        }
    }

    fn take(&mut self, sockets: Vec<(SocketId, Bound)>) -> io::Result<()> {
        for (id, socket) in sockets {
            self.taken.insert(id, Socket::try_from(socket)?);
        }
        Ok(())
    }

    fn switch(&mut self, switch: Switch) {
        let Self { thread, metrics, connections, taken, open } = self;
        thread.log_to(switch.log);
        // Or a thread without requests would keep the generation before, and all that belongs to it.
        drop(thread.current());
        let stays = |(id, _): &SocketId| switch.listeners.iter().any(|terms| terms.id == *id);
        open.retain(|id, listener| {
            let stays = stays(id);
            if !stays {
                listener.close();
            }
            stays
        });
        for terms in switch.listeners {
            let tls = terms.tls.map(Rc::new);
            for (_, listener) in open.iter().filter(|((id, _), _)| *id == terms.id && terms.changed) {
                listener.change(terms.plan.clone(), tls.clone(), &thread.drain);
            }
            for (id, socket) in taken.extract_if(|(id, _), _| *id == terms.id) {
                let listener = Rc::new(Listener::new(
                    socket,
                    terms.plan.clone(),
                    tls.clone(),
                    metrics.listener(&terms.label),
                    Arc::clone(connections),
                    &thread.drain,
                ));
                thread.tasks.spawn(Rc::clone(&listener).run(Rc::clone(thread)));
                open.insert(id, listener);
            }
        }
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

/// How often a traffic thread looks after its idle connections to endpoints, and whether it has memory to give back.
const TICK: Duration = Duration::from_millis(500);
