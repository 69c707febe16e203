//! The process as a table of contents: what is started, in which order, and how it ends.
//!
//! A [`Gateway`] is given everything of the system that its plan asks for ([`Provisions`]) and opens nothing itself.

mod signals;
mod traffic;

use std::{
    error::Error,
    io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, SystemTime},
};

use self::traffic::{Bound, Share};
use crate::{
    admin::{self, Observer},
    config::{ListenAddress, LogSink, Plan},
    drain::Drain,
    keeper::{Provisions, output::LogOutput, sockets::BoundSockets},
    listener::Connections,
    metrics::Metrics,
    runtime::{Current, Runtime},
    spool::Spool,
    telemetry::access_log::{self, AccessLog, Format, FormatError},
    tls::{Certificate, CertificateError, CertificateStore, ServerConfigs},
};

/// A front door that is open.
pub struct Gateway {
    addresses: Vec<ListenAddress>,
    threads: Vec<thread::JoinHandle<bool>>,
    control: tokio::runtime::Runtime,
    drain: Drain,
    access_log: Option<AccessLog>,
    pub metrics: Arc<Metrics>,
    pub current: Arc<Current>,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{at}: this certificate cannot be used")]
    Certificate { at: String, source: CertificateError },
    #[error("the terms of TLS cannot be made")]
    Tls(#[from] rustls::Error),
    #[error("access_log.format")]
    Format(#[from] FormatError),
    #[error("cannot start a thread or its runtime")]
    Thread(#[from] io::Error),
}

/// Runs `plan` in the foreground until a signal ends it: the work of `vestibule serve`.
///
/// TERM, INT and QUIT drain; a second one ends the process at once. USR1 opens the access log anew.
///
/// # Errors
///
/// What kept it from starting, every fault in a line of its own; and whether a stop had to cut requests off.
pub fn run(plan: Plan) -> Result<(), Box<dyn Error>> {
    raise_file_limit();
    let provisions = Provisions::gather(&plan)?;
    let log_file = plan.access_log.as_ref().and_then(|log| match &log.sink {
        LogSink::File(path) => Some(path.clone()),
        LogSink::Stdout => None,
    });
    let deadline = plan.drain;
    let gateway = Gateway::start(plan, provisions)?;
    let signals = gateway.catch_signals()?;
    for address in &gateway.addresses {
        tracing::info!(%address, "listening");
    }
    gateway.wait_for(signals, log_file.as_deref());
    tracing::info!(deadline = ?deadline, "stopping: requests in flight come to their end");
    if gateway.stop(deadline) { Ok(()) } else { Err("the stop cut off requests that took too long".into()) }
}

impl Gateway {
    /// Opens the door: when this returns, connections are accepted.
    pub fn start(plan: Plan, provisions: Provisions) -> Result<Self, StartError> {
        let started = SystemTime::now();
        let metrics = Arc::new(Metrics::new(started));
        let certificates = Arc::new(CertificateStore::new(certificates(&provisions)?));
        let tls = ServerConfigs::new(&plan.tls, Arc::clone(&certificates))?;
        let format = plan.access_log.as_ref().map(|log| Format::compile(&log.format)).transpose()?.map(Arc::new);
        let access_log = match provisions.access_log {
            None => None,
            Some(output) => {
                let output = match output {
                    LogOutput::Stdout => access_log::stdout()?,
                    LogOutput::File { file, .. } => file,
                };
                Some(AccessLog::start(output, metrics.access_log_dropped.clone())?)
            }
        };
        let spool = Spool::new(provisions.spool, plan.spool.limit, plan.spool.memory, metrics.spool_bytes.clone());
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()?;
        let (workers, drain) = (plan.workers.get(), Drain::default());
        let connections = Arc::new(Connections::default());
        let addresses: Vec<_> = provisions.listeners.iter().map(|listener| listener.address.clone()).collect();
        let listening = provisions
            .listeners
            .iter()
            .map(|listener| {
                (listener.address.to_string(), listener.plan.tls, metrics.listener(&listener.address.to_string()))
            })
            .collect();
        let runtime = Runtime::build(plan, provisions.files, 1, &metrics);
        metrics.reloaded(runtime.generation);
        let current = Arc::new(Current::new(runtime));

        let mut shares: Vec<Share> = (0..workers)
            .map(|_| Share {
                listeners: Vec::new(),
                current: Arc::clone(&current),
                spool: Arc::clone(&spool),
                certificates: Arc::clone(&certificates),
                tls: tls.clone(),
                metrics: Arc::clone(&metrics),
                log: access_log.as_ref().map(AccessLog::writer).zip(format.clone()),
                connections: Arc::clone(&connections),
                drain: drain.clone(),
            })
            .collect();
        for listener in provisions.listeners {
            let sockets: Vec<Bound> = match listener.sockets {
                BoundSockets::Tcp(sockets) => sockets.into_iter().map(Bound::Tcp).collect(),
                BoundSockets::Unix(sockets) => sockets.into_iter().map(Bound::Unix).collect(),
            };
            for (share, socket) in shares.iter_mut().zip(sockets) {
                share.listeners.push((listener.plan.clone(), listener.address.clone(), socket));
            }
        }

        let (ready, readiness) = mpsc::channel();
        let mut threads = Vec::with_capacity(workers);
        for (number, share) in shares.into_iter().enumerate() {
            let ready = ready.clone();
            threads.push(thread::Builder::new().name(format!("traffic-{number}")).spawn(move || share.run(&ready))?);
        }
        drop(ready);
        // Each says so once, or has died: then its end is the answer.
        for started in readiness.iter().take(workers) {
            started?;
        }

        if let Some(socket) = provisions.admin {
            let observer = Observer {
                started,
                current: Arc::clone(&current),
                metrics: Arc::clone(&metrics),
                certificates,
                connections,
                listeners: listening,
                drain: drain.clone(),
            };
            let stopped = drain.clone();
            control.spawn(async move {
                match tokio::net::UnixListener::from_std(socket) {
                    Ok(socket) => {
                        admin::serve(socket, Arc::new(observer), async move { stopped.started().await }).await;
                    }
                    Err(error) => tracing::error!(error = &error as &dyn Error, "the admin socket cannot be used"),
                }
            });
        }
        Ok(Self { addresses, threads, control, drain, access_log, metrics, current })
    }

    /// Where it listens; port 0 of the plan has become the real one.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Runs `task` beside the traffic, on the runtime for everything that is not.
    pub fn control(&self) -> &tokio::runtime::Runtime {
        &self.control
    }

    /// Ends the access log's file and goes on in `file`.
    pub fn reopen(&self, file: std::fs::File) {
        if let Some(log) = &self.access_log {
            log.reopen(file);
        }
    }

    /// Closes the door: no new connections, an end to those that are idle, `deadline` for requests in flight.
    ///
    /// Answers whether all came to their end.
    pub fn stop(self, deadline: Duration) -> bool {
        self.drain.start();
        let finished = self.threads.into_iter().map(|thread| thread.join().unwrap_or(false));
        let whole = finished.fold(true, |whole, finished| whole & finished);
        self.control.shutdown_timeout(Duration::from_secs(1));
        if let Some(log) = self.access_log
            && let Err(error) = log.shutdown(LAST_LINES.min(deadline.max(Duration::from_secs(1))))
        {
            tracing::error!(error = &error as &dyn Error, "the access log is not whole");
        }
        whole
    }
}

fn certificates(provisions: &Provisions) -> Result<Vec<Certificate>, StartError> {
    let now = jiff::Timestamp::now();
    let load = |material| {
        let certificate = Certificate::from_material(material)
            .map_err(|source| StartError::Certificate { at: material.at.clone(), source })?;
        if let Some(warning) = certificate.warning(now) {
            tracing::warn!(at = certificate.at(), %warning, "a certificate needs attention");
        }
        Ok(certificate)
    };
    provisions.certificates.iter().map(load).collect()
}

/// A connection is a descriptor, and so is its way to the endpoint: as many as the system allows.
fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(error = &error as &dyn Error, "the limit of open files stays as it is");
    }
}

/// How long a stop waits for the last lines of the access log.
const LAST_LINES: Duration = Duration::from_secs(5);
