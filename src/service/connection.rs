//! Where a request is served: the thread, and the connection it came on.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use super::hops::{Hops, NextLook};
use crate::{
    config::ListenerPlan,
    drain::{Drain, Leaving, Tasks},
    http::{client_certificate::ClientCertificate, forwarded::Peer},
    limits::{Connections, memory::Pressure},
    metrics::{Metrics, Shed},
    runtime::{Current, Runtime},
    telemetry::access_log::{Format, LogWriter, Record},
    tls::{CertificateStore, TlsInfo},
    upstream::Pool,
};

/// What the requests of one traffic thread share. There are as many as `workers` in the configuration says; a worker, which is
/// a process ([`crate::process`]), has all of them.
pub struct TrafficThread {
    current: Arc<Current>,
    /// The generation last seen; counted without atomics, as every request takes it.
    pinned: RefCell<Pinned>,
    pub pool: Rc<Pool>,
    pub certificates: Arc<CertificateStore>,
    pub metrics: Arc<Metrics>,
    /// `None` when there is no access log.
    log: RefCell<Option<(LogWriter, Arc<Format>)>>,
    pub drain: Drain,
    pub tasks: Tasks,
    pub(super) hops: Arc<Hops>,
    pub(super) next_look: NextLook,
}

/// One generation, held by a request until its end.
pub(super) type Pinned = Rc<Arc<Runtime>>;

impl TrafficThread {
    pub fn new(
        current: Arc<Current>,
        certificates: Arc<CertificateStore>,
        metrics: Arc<Metrics>,
        log: Option<(LogWriter, Arc<Format>)>,
        drain: Drain,
        tasks: Tasks,
        hops: Arc<Hops>,
    ) -> Rc<Self> {
        let pinned = RefCell::new(Rc::new(Arc::clone(&current.load())));
        let pool = Rc::new(Pool::default());
        let log = RefCell::new(log);
        Rc::new(Self {
            current,
            pinned,
            pool,
            certificates,
            metrics,
            log,
            drain,
            tasks,
            hops,
            next_look: NextLook::default(),
        })
    }

    /// Writes the line of a request.
    pub(super) fn log(&self, record: &Record) {
        if let Some((log, format)) = &*self.log.borrow() {
            log.log(format, record);
        }
    }

    /// Writes the lines of requests that end from now on to another log, or in another format.
    pub fn log_to(&self, log: Option<(LogWriter, Arc<Format>)>) {
        *self.log.borrow_mut() = log;
    }

    /// The generation in force.
    pub fn current(&self) -> Rc<Arc<Runtime>> {
        let current = self.current.load();
        let mut pinned = self.pinned.borrow_mut();
        if !Arc::ptr_eq(&current, &pinned) {
            *pinned = Rc::new(Arc::clone(&current));
        }
        Rc::clone(&pinned)
    }
}

/// One client's connection, as its requests see it.
pub struct Connection {
    pub thread: Rc<TrafficThread>,
    /// What is done for it beside its own task, in its client's turns.
    pub tasks: Tasks,
    pub listener: Rc<ListenerPlan>,
    /// The listener it came by is not as it was, or no more: another request needs another connection.
    pub leaving: Leaving,
    /// The other end, or whom a PROXY header spoke for.
    pub peer: Peer,
    /// Where the client connected to; 0 on a unix socket.
    pub local_port: u16,
    /// There was no memory for one more client: it is told to come again.
    pub turned_away: bool,
    pub all: Arc<Connections>,
    pub tls: Option<TlsInfo>,
}

impl Connection {
    /// Whether one more request is to be refused, since there is no memory for it, not even for one of a client that was let
    /// in; counted and told, if so.
    pub fn is_to_refuse(&self) -> bool {
        let runtime = self.thread.current();
        let limits = &runtime.plan.limits;
        // Counted only where that is needed.
        let is_full = self.all.memory.pressure(limits, usize::MAX) == Pressure::Full && {
            let requests = usize::try_from(runtime.exchanges.get()).unwrap_or(usize::MAX);
            self.all.memory.pressure(limits, requests) == Pressure::Full
        };
        if is_full {
            self.thread.metrics.requests_shed.inc();
            self.all.tell(Shed::Memory, None, limits);
        }
        is_full
    }

    /// The one that was verified in the handshake.
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.tls.as_ref().and_then(|tls| tls.client.as_ref())
    }
}
