//! The traffic, from the first socket to the last byte: how it starts, takes on another plan, leaves and stops.
//!
//! A [`Gateway`] is given everything of the system that its plan asks for ([`Provisions`]) and opens nothing itself.
//! Who gives it, and when, is [`crate::process`]'s business.

mod administering;
mod attention;
mod instances;
mod places;
mod probing;
mod resolving;
mod supervising;
mod traffic;
mod watching;
mod workers;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::{
    Notify,
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

use self::administering::Administration;
pub use self::instances::InstanceNews;
use self::traffic::{Bound, Command, ListenerId, Share, SocketId, Switch, Terms};
use crate::{
    access::Users,
    admin::{Observer, Orders, Report},
    backends::Instance,
    config::{ClientCaPlan, ListenAddress, ListenerPlan, LogSink, Plan},
    drain::{Cut, Drain},
    keeper::{Provisions, output::LogOutput, secrets::UserFiles, sockets::BoundSockets},
    limits::{Connections, memory},
    metrics::Metrics,
    runtime::{Current, Runtime, Secrets},
    service::Hops,
    spool::Spool,
    telemetry::access_log::{self, AccessLog, Format, FormatError},
    tls::{
        Certificate, CertificateError, CertificateMaterial, CertificateStore, ClientAuthority, ClientAuthorityError,
        HandedCertificate, PendingChallenge, SecretBytes, ServerConfigs, TicketKeys, Ticketer,
    },
};

/// A front door that is open.
pub struct Gateway {
    listeners: Vec<OpenListener>,
    next_listener: ListenerId,
    threads: Vec<Thread>,
    /// Ends with the last traffic thread.
    alive: UnboundedReceiver<()>,
    control: tokio::runtime::Runtime,
    drain: Drain,
    log: Option<OpenLog>,
    spool: Arc<Spool>,
    certificates: Arc<CertificateStore>,
    ticketer: Arc<Ticketer>,
    tls: ServerConfigs,
    admin: Administration,
    observer: Arc<Observer>,
    pub metrics: Arc<Metrics>,
    pub current: Arc<Current>,
    /// Locked while a program of supervisord's is restarted.
    restarting: Arc<tokio::sync::Mutex<()>>,
    /// Tells those who look after applications that there are others.
    changed: Arc<Notify>,
    /// Tells those who look after names the same.
    names_changed: Arc<Notify>,
    /// Those of programs of ours, and what tells that there are others.
    instances: Arc<ArcSwap<Vec<Instance>>>,
    instances_changed: Arc<Notify>,
    /// Tells those who look after certificates the same.
    certificates_changed: Arc<Notify>,
}

struct OpenListener {
    id: ListenerId,
    plan: ListenerPlan,
    /// As it is: port 0 has become the port the system chose.
    address: ListenAddress,
    /// What the file of its `client_ca` held.
    client_ca: Option<Vec<u8>>,
}

struct OpenLog {
    sink: LogSink,
    log: AccessLog,
}

/// What a gateway tells of itself, unasked or a while after it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Places are free for another process.
    Given { upstream: Arc<str>, count: u32 },
    /// A request waits and there is no place.
    Wanted { upstream: Arc<str> },
    /// As many places there are of an upstream whose bound follows its workers; as many as are still here, once we leave.
    Bound { upstream: Arc<str>, count: u32 },
    /// All traffic threads have turned since [`Gateway::beat`].
    Alive { beat: u64 },
    /// Somebody asks for a challenge that may be another machine's.
    Sought,
    /// Of an instance of a program of ours.
    Instance { id: u32, found: InstanceNews },
    /// A process of a program that is to be measured, if it is the one that was begun then, in seconds since 1970.
    Watched { pid: u32, started: i64 },
}

/// The log that a plan goes on with.
enum NextLog {
    /// The one there is, in this file.
    Same(File),
    Other(Option<OpenLog>),
}

struct Thread {
    handle: thread::JoinHandle<()>,
    commands: UnboundedSender<Command>,
}

/// Why a plan was not put in force, the first one or a later one.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{at}: this certificate cannot be used")]
    Certificate { at: String, source: CertificateError },
    #[error("tls.certificates: the one of before at the place {place} is to be kept, and there is none")]
    NoCertificate { place: u32 },
    #[error("client_ca: {}", file.display())]
    ClientCa { file: PathBuf, source: ClientAuthorityError },
    #[error("basic_auth: {}: {problem}", file.display())]
    Users { file: PathBuf, problem: String },
    #[error("admin: no certificate and no token were handed over")]
    NoAdminSecrets,
    #[error("the terms of TLS cannot be made")]
    Tls(#[from] rustls::Error),
    #[error("access_log.format")]
    Format(#[from] FormatError),
    #[error("listeners: no socket was handed over for {0}")]
    NoSocket(ListenAddress),
    #[error("cannot start a thread or its runtime")]
    Thread(#[from] io::Error),
}

impl Gateway {
    /// Opens the door: when this returns, connections are accepted.
    ///
    /// Orders that come in by the admin endpoint are sent to `orders`; without, it takes none.
    pub fn start(
        plan: Plan,
        provisions: Provisions,
        generation: u64,
        tickets: &TicketKeys,
        orders: Option<Orders>,
    ) -> Result<Self, StartError> {
        Self::start_beside(plan, provisions, generation, tickets, orders, &BTreeMap::new(), Vec::new())
    }

    /// The same beside gateways that leave, and have `held` places of each upstream until they are granted; with the
    /// `instances` of backends that there are.
    pub fn start_beside(
        plan: Plan,
        provisions: Provisions,
        generation: u64,
        tickets: &TicketKeys,
        orders: Option<Orders>,
        held: &BTreeMap<String, u32>,
        instances: Vec<Instance>,
    ) -> Result<Self, StartError> {
        raise_file_limit();
        let started = SystemTime::now();
        let metrics = Arc::new(Metrics::new(started));
        let certificates = Arc::new(CertificateStore::new(Vec::new()));
        let ticketer = Ticketer::new(tickets);
        let tls = ServerConfigs::new(&plan.tls, Arc::clone(&certificates), &ticketer, None)?;
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()?;
        let drain = Drain::default();
        let connections = Connections::new();
        let spool =
            Spool::new(provisions.spool.try_clone()?, plan.spool.limit, plan.spool.memory, metrics.spool_bytes.clone());
        let workers = plan.workers.get();
        // Nobody sees it before the first plan is put in force below; routes that go nowhere yet.
        let empty = Plan { listeners: Vec::new(), upstreams: BTreeMap::new(), routes: Vec::new(), ..plan.clone() };
        let empty = Runtime::build(
            empty,
            Vec::new(),
            Arc::clone(&spool),
            0,
            None,
            Secrets { stick: None, users: &BTreeMap::new() },
            &metrics,
        );
        let current = Arc::new(Current::new(empty));

        let hops = Arc::new(Hops::default());
        let (ready, readiness) = mpsc::channel();
        let (alive_sender, alive) = unbounded_channel();
        let mut threads = Vec::with_capacity(workers);
        for number in 0..workers {
            let (commands, received) = unbounded_channel();
            let share = Share {
                current: Arc::clone(&current),
                certificates: Arc::clone(&certificates),
                metrics: Arc::clone(&metrics),
                connections: Arc::clone(&connections),
                drain: drain.clone(),
                hops: Arc::clone(&hops),
                commands: received,
            };
            let (ready, alive) = (ready.clone(), alive_sender.clone());
            let thread = thread::Builder::new().name(format!("traffic-{number}"));
            threads.push(Thread { handle: thread.spawn(move || share.run(&ready, alive))?, commands });
        }
        drop((ready, alive_sender));
        all(&readiness, workers)?;

        let (restarts, wanted) = unbounded_channel();
        let observer = Arc::new(Observer {
            started,
            current: Arc::clone(&current),
            metrics: Arc::clone(&metrics),
            certificates: Arc::clone(&certificates),
            connections: Arc::clone(&connections),
            listeners: ArcSwap::default(),
            drain: drain.clone(),
            hops,
            report: ArcSwap::default(),
            orders,
            restarts,
        });
        let admin = Administration::new(Arc::clone(&observer), Arc::clone(&metrics), drain.clone());
        let mut gateway = Self {
            listeners: Vec::new(),
            next_listener: 0,
            threads,
            alive,
            control,
            drain,
            log: None,
            spool,
            certificates,
            ticketer,
            tls,
            admin,
            observer,
            metrics,
            current,
            restarting: Arc::default(),
            changed: Arc::default(),
            names_changed: Arc::default(),
            instances: Arc::new(ArcSwap::from_pointee(instances)),
            instances_changed: Arc::default(),
            certificates_changed: Arc::default(),
        };
        gateway.apply_beside(generation, plan, provisions, held)?;
        let looking = probing::look_after(Arc::clone(&gateway.current), Arc::clone(&gateway.changed));
        gateway.control.spawn(looking);
        let resolving = resolving::look_after(Arc::clone(&gateway.current), Arc::clone(&gateway.names_changed));
        gateway.control.spawn(resolving);
        let (measured, of) = (Arc::clone(&gateway.metrics), Arc::clone(&gateway.current));
        gateway.control.spawn(async move {
            loop {
                connections.memory.measure();
                let used = connections.memory.used();
                measured.memory(used);
                let rests = {
                    let runtime = of.load();
                    runtime.spool.ration(used, memory::bound(&runtime.plan.limits));
                    connections.memory.rests(&runtime.plan.limits)
                };
                tokio::time::sleep(rests).await;
            }
        });
        gateway.control.spawn(probing::look_at_endpoints(Arc::clone(&gateway.current)));
        let (certificates, current) = (Arc::clone(&gateway.certificates), Arc::clone(&gateway.current));
        let others = Arc::clone(&gateway.certificates_changed);
        let admin = gateway.admin.certificate();
        gateway.control.spawn(attention::look_after(certificates, admin, current, others, gateway.drain.clone()));
        gateway.control.spawn(workers::follow(Arc::clone(&gateway.current), gateway.drain.clone()));
        gateway.control.spawn(probing::warn_of_open_supervisors(Arc::clone(&gateway.current)));
        gateway.control.spawn(supervising::look_after(
            Arc::clone(&gateway.current),
            gateway.drain.clone(),
            Arc::clone(&gateway.restarting),
            wanted,
        ));
        Ok(gateway)
    }

    /// Puts `plan` in force as `generation`, for all that begins from now on; what has begun keeps what it began with.
    ///
    /// Of `provisions`, listeners may be [`BoundSockets::Kept`], and a socket of `admin` is `None` where its address has not
    /// changed. When this returns, all threads have switched.
    ///
    /// # Errors
    ///
    /// Nothing has changed then.
    pub fn apply(&mut self, generation: u64, plan: Plan, provisions: Provisions) -> Result<(), StartError> {
        self.apply_beside(generation, plan, provisions, &BTreeMap::new())
    }

    fn apply_beside(
        &mut self,
        generation: u64,
        plan: Plan,
        provisions: Provisions,
        held: &BTreeMap<String, u32>,
    ) -> Result<(), StartError> {
        let before = self.current.load().plan.clone();
        let certificates = certificates(&provisions.certificates, &self.certificates.certificates())?;
        let protocols = |plan: &Plan| (plan.tls.tls12, plan.tls.tls13, plan.tls.ciphers.clone());
        let tls_changed = protocols(&plan) != protocols(&before);
        let tls = if tls_changed {
            ServerConfigs::new(&plan.tls, Arc::clone(&self.certificates), &self.ticketer, None)?
        } else {
            self.tls.clone()
        };
        let format = plan.access_log.as_ref().map(|log| Format::compile(&log.format)).transpose()?;
        let query = plan.access_log.as_ref().map(|log| log.query).unwrap_or_default();
        let format = format.map(|format| Arc::new(format.with_query(query)));
        let users = users(&plan, &provisions.users)?;
        let admin_terms = administering::terms(&plan, provisions.admin_secrets)?;
        let log = self.log_for(&plan, provisions.access_log)?;

        let mut kept: Vec<&OpenListener> = self.listeners.iter().collect();
        let (mut listeners, mut new, mut terms) = (Vec::new(), Vec::new(), Vec::new());
        let mut next_listener = self.next_listener;
        for bound in provisions.listeners {
            let held = kept.iter().position(|held| held.plan.address == bound.plan.address);
            // One that was not handed over has no authority in it, and is refused below.
            let pem =
                |clients: &ClientCaPlan| provisions.client_authorities.get(&clients.file).cloned().unwrap_or_default();
            let client_ca = bound.plan.client_ca.as_ref().map(pem);
            let (id, address, changed) = match (bound.sockets, held) {
                (BoundSockets::Kept, Some(position)) => {
                    let held = kept.remove(position);
                    let changed =
                        held.plan != bound.plan || held.client_ca != client_ca || (bound.plan.tls && tls_changed);
                    (held.id, held.address.clone(), changed)
                }
                (BoundSockets::Kept, None) => return Err(StartError::NoSocket(bound.address)),
                (BoundSockets::Tcp(sockets), _) => {
                    next_listener += 1;
                    new.push((next_listener, sockets.into_iter().map(Bound::Tcp).collect::<Vec<_>>()));
                    (next_listener, bound.address, false)
                }
                (BoundSockets::Unix(sockets), _) => {
                    next_listener += 1;
                    new.push((next_listener, sockets.into_iter().map(Bound::Unix).collect()));
                    (next_listener, bound.address, false)
                }
            };
            let label = address.to_string();
            let tls = match (&bound.plan.client_ca, &client_ca) {
                (Some(clients), Some(pem)) => Some(self.tls_for_clients_of(&plan, clients, pem)?),
                _ => bound.plan.tls.then(|| tls.clone()),
            };
            terms.push(Terms { id, plan: bound.plan.clone(), label, tls, changed });
            listeners.push(OpenListener { id, plan: bound.plan, address, client_ca });
        }
        self.take(new)?;

        // From here on nothing fails.
        self.next_listener = next_listener;
        self.listeners = listeners;
        self.tls = tls;
        self.certificates.replace(certificates);
        if self.spool.is_in(&provisions.spool) {
            self.spool.resize(plan.spool.limit, plan.spool.memory);
        } else {
            let (limit, memory) = (plan.spool.limit, plan.spool.memory);
            self.spool = Spool::new(provisions.spool, limit, memory, self.metrics.spool_bytes.clone());
        }
        self.observe_listeners();
        let admin_plan = plan.admin.clone();
        let (spool, files) = (Arc::clone(&self.spool), provisions.files);
        let before = self.current.load();
        let secrets = Secrets { stick: provisions.stick.as_ref(), users: &users };
        let runtime = Runtime::build(plan, files, spool, generation, Some(&before), secrets, &self.metrics);
        drop(before);
        instances::assign(&runtime, &self.instances.load());
        let runtime = self.prepare(runtime);
        self.current.replace(runtime);
        self.changed.notify_one();
        self.names_changed.notify_one();
        // Before the first connection is accepted, or there would be more inside than there may be.
        self.leave_places(held);
        let old = match log {
            NextLog::Same(file) => {
                self.reopen(file);
                None
            }
            NextLog::Other(open) => std::mem::replace(&mut self.log, open),
        };
        self.switch(&terms, self.log.as_ref().map(|open| &open.log), format.as_ref());
        if let Some(old) = old {
            finish(old);
        }
        self.admin.apply(admin_plan.as_ref(), provisions.admin, admin_terms, &self.control);
        self.certificates_changed.notify_one();
        self.metrics.reloaded(generation);
        Ok(())
    }

    /// Waits a while for names in `runtime` that were never resolved before.
    fn prepare(&self, runtime: Runtime) -> Arc<Runtime> {
        let runtime = Arc::new(runtime);
        if runtime.upstreams.values().any(|upstream| !upstream.unresolved().is_empty()) {
            let (done, prepared) = mpsc::channel::<()>();
            let preparing = resolving::prepare(Arc::clone(&runtime));
            self.control.spawn(async move {
                preparing.await;
                drop(done);
            });
            // Ends when the other side is dropped.
            prepared.recv().ok();
        }
        runtime
    }

    /// The terms of a listener that asks for certificates of the authorities in `pem`.
    fn tls_for_clients_of(&self, plan: &Plan, clients: &ClientCaPlan, pem: &[u8]) -> Result<ServerConfigs, StartError> {
        let unusable = |source| StartError::ClientCa { file: clients.file.clone(), source };
        let authority = ClientAuthority::new(pem, clients.required).map_err(unusable)?;
        Ok(ServerConfigs::new(&plan.tls, Arc::clone(&self.certificates), &self.ticketer, Some(authority))?)
    }

    fn log_for(&self, plan: &Plan, output: Option<LogOutput>) -> Result<NextLog, StartError> {
        let (Some(plan), Some(output)) = (&plan.access_log, output) else { return Ok(NextLog::Other(None)) };
        let file = match output {
            LogOutput::Stdout => access_log::stdout()?,
            LogOutput::File { file, .. } => file,
        };
        if self.log.as_ref().is_some_and(|open| open.sink == plan.sink) {
            return Ok(NextLog::Same(file));
        }
        let log = AccessLog::start(file, self.metrics.access_log_dropped.clone())?;
        Ok(NextLog::Other(Some(OpenLog { sink: plan.sink.clone(), log })))
    }

    /// Gives new sockets to the threads, which do not accept on them yet.
    fn take(&self, new: Vec<(ListenerId, Vec<Bound>)>) -> Result<(), StartError> {
        let mut shares: Vec<Vec<(SocketId, Bound)>> = self.threads.iter().map(|_| Vec::new()).collect();
        for (id, sockets) in new {
            // As many as there are threads, or not: those of a predecessor or of a service manager are taken as they are.
            for (number, socket) in sockets.into_iter().enumerate() {
                shares[number % self.threads.len()].push(((id, number), socket));
            }
        }
        let (done, taken) = mpsc::channel();
        for (thread, share) in self.threads.iter().zip(shares) {
            drop(thread.commands.send(Command::Take(share, done.clone())));
        }
        drop(done);
        all(&taken, self.threads.len()).inspect_err(|_| {
            for thread in &self.threads {
                drop(thread.commands.send(Command::Forget));
            }
        })?;
        Ok(())
    }

    fn switch(&self, terms: &[Terms], log: Option<&AccessLog>, format: Option<&Arc<Format>>) {
        let (done, switched) = mpsc::channel();
        for thread in &self.threads {
            let log = log.map(AccessLog::writer).zip(format.cloned());
            let switch = Switch { listeners: terms.to_vec(), log };
            drop(thread.commands.send(Command::Switch(switch, done.clone())));
        }
        drop(done);
        // A thread that has ended has nothing to switch.
        drop(all(&switched, self.threads.len()));
    }

    fn observe_listeners(&self) {
        let listener = |open: &OpenListener| {
            let address = open.address.to_string();
            let metrics = self.metrics.listener(&address);
            (address, open.plan.tls, metrics)
        };
        self.observer.listeners.store(Arc::new(self.listeners.iter().map(listener).collect()));
    }

    /// Where it listens; port 0 of the plan has become the real one.
    pub fn addresses(&self) -> Vec<ListenAddress> {
        self.listeners.iter().map(|open| open.address.clone()).collect()
    }

    /// The runtime for everything that is not traffic.
    pub fn control(&self) -> &tokio::runtime::Runtime {
        &self.control
    }

    /// Ends the access log's file and goes on in `file`.
    pub fn reopen(&self, file: File) {
        if let Some(open) = &self.log {
            open.log.reopen(file);
        }
    }

    /// Answers exactly `pending` to CAs that ask.
    pub fn answer_challenges(&self, pending: &[PendingChallenge]) {
        self.certificates.challenges().replace(pending);
    }

    /// Tells `news` of questions for challenges that are not known, which other machines may know of; `None` where there are
    /// no others. No more than one a second.
    pub fn seek_challenges(&self, news: Option<UnboundedSender<News>>) {
        let seek = news.map(|news| {
            let last = Mutex::new(None::<Instant>);
            let seek: Box<dyn Fn() + Send + Sync> = Box::new(move || {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.is_none_or(|last| last.elapsed() >= BETWEEN_QUESTIONS) {
                    *last = Some(Instant::now());
                    // Where nobody hears it any more there is nobody to answer.
                    news.send(News::Sought).ok();
                }
            });
            seek
        });
        self.certificates.challenges().seek_by(seek);
    }

    /// Serves `materials`, in their order, in place of the certificates there are; handshakes that have begun keep theirs.
    ///
    /// One that cannot be used leaves all as it was, with an event.
    pub fn serve_certificates(&self, materials: &[CertificateMaterial]) {
        match materials.iter().map(certificate).collect::<Result<_, _>>() {
            Ok(certificates) => {
                self.certificates.replace(certificates);
                self.certificates_changed.notify_one();
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the certificates of before stay in force");
            }
        }
    }

    /// Seals session tickets with other keys.
    pub fn set_tickets(&self, keys: &TicketKeys) {
        self.ticketer.replace(keys);
    }

    /// What the keeper has to say of itself, for `/status`.
    pub fn report(&self, report: Report) {
        match &report.refused {
            Some(_) => self.metrics.reload_refused(),
            None => self.metrics.reload_mended(),
        }
        self.observer.report.store(Arc::new(report));
    }

    /// Says "not ready" from now on, and goes on serving.
    pub fn unready(&self) {
        self.drain.unready();
    }

    /// Takes no more connections and keeps none for another request; what has begun goes on to its own end.
    pub fn retire(&self) {
        self.drain.retire();
    }

    /// Closes the door: no new connections, an end to those that are idle and to websockets, `deadline` for requests in
    /// flight. Said again, the new deadline counts.
    pub fn close(&self, deadline: Duration) {
        self.drain.start(deadline);
    }

    /// Ends when all has come to its end after [`Self::retire`] or [`Self::close`]. Cancel-safe.
    pub async fn ended(&mut self) {
        while self.alive.recv().await.is_some() {}
    }

    /// Has every traffic thread turn, and tells `news` when all have.
    pub fn beat(&self, beat: u64, news: UnboundedSender<News>) {
        let turned: Vec<_> = self
            .threads
            .iter()
            .map(|thread| {
                let (alive, turned) = oneshot::channel();
                drop(thread.commands.send(Command::Beat(alive)));
                turned
            })
            .collect();
        self.control.spawn(async move {
            for turned in turned {
                // One that has ended has nothing to answer for.
                drop(turned.await);
            }
            news.send(News::Alive { beat }).ok();
        });
    }

    /// Closes the door and waits for all to come to its end; answers what had to be cut off at the deadline.
    pub fn stop(self, deadline: Duration) -> Cut {
        self.close(deadline);
        self.finish()
    }

    /// Waits for what is left to come to its end and writes the last lines; see [`Self::ended`].
    pub fn finish(self) -> Cut {
        for thread in self.threads {
            if thread.handle.join().is_err() {
                tracing::error!("a traffic thread has panicked");
            }
        }
        let cut = self.drain.cut();
        if !cut.is_nothing() {
            tracing::warn!("the stop cut off {cut} that took longer than `drain`");
        }
        self.control.block_on(self.admin.ended());
        // A program must not be left stopped because we are.
        let restarted =
            self.control.block_on(async { tokio::time::timeout(A_RESTART, self.restarting.lock()).await.is_ok() });
        if !restarted {
            tracing::error!("a program of supervisord's may have been left stopped: see `supervisorctl status`");
        }
        self.control.shutdown_timeout(Duration::from_secs(1));
        if let Some(open) = self.log
            && let Err(error) = open.log.shutdown(LAST_LINES)
        {
            tracing::error!(error = &error as &dyn std::error::Error, "the access log is not whole");
        }
        cut
    }
}

/// Waits for `count` answers; the first fault, if there is one. Whoever has died answers by that.
fn all(answers: &mpsc::Receiver<io::Result<()>>, count: usize) -> io::Result<()> {
    answers.iter().take(count).collect()
}

/// Writes the last lines of a log that no thread writes to any more.
fn finish(old: OpenLog) {
    let finish = move || {
        if let Err(error) = old.log.shutdown(LAST_LINES) {
            tracing::error!(error = &error as &dyn std::error::Error, "the access log of before is not whole");
        }
    };
    if let Err(error) = thread::Builder::new().name("old-access-log".to_owned()).spawn(finish) {
        tracing::error!(error = &error as &dyn std::error::Error, "the access log of before is not whole");
    }
}

/// The users of all routes, by their file.
fn users(plan: &Plan, files: &UserFiles) -> Result<BTreeMap<PathBuf, Arc<Users>>, StartError> {
    let named = plan.routes.iter().filter_map(|route| Some(&route.access.basic_auth.as_ref()?.file));
    let read = |file: &PathBuf| {
        // One that was not handed over has nobody in it, and is refused.
        let text = files.get(file).map(SecretBytes::expose).unwrap_or_default();
        match Users::parse(text) {
            Ok(users) => Ok((file.clone(), Arc::new(users))),
            Err(faults) => {
                let problem = faults.first().map(ToString::to_string).unwrap_or_default();
                Err(StartError::Users { file: file.clone(), problem })
            }
        }
    };
    named.map(read).collect()
}

/// `before`: those that are served.
fn certificates(handed: &[HandedCertificate], before: &[Certificate]) -> Result<Vec<Certificate>, StartError> {
    let load = |handed: &HandedCertificate| match handed {
        HandedCertificate::New(certificate) => Ok(certificate.clone()),
        HandedCertificate::Kept(place) => {
            before.get(*place as usize).cloned().ok_or(StartError::NoCertificate { place: *place })
        }
    };
    handed.iter().map(load).collect()
}

fn certificate(material: &CertificateMaterial) -> Result<Certificate, StartError> {
    Certificate::from_material(material).map_err(|source| StartError::Certificate { at: material.at.clone(), source })
}

/// A connection is a descriptor, and so is its way to the endpoint: as many as the system allows.
fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(error = &error as &dyn std::error::Error, "the limit of open files stays as it is");
    }
}

/// Between two questions whether other machines know of a challenge.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);
/// How long a stop waits for the restart of a program.
const A_RESTART: Duration = Duration::from_secs(5);
/// How long a stop waits for the last lines of the access log.
const LAST_LINES: Duration = Duration::from_secs(5);
