//! The keeper: the process that a service manager knows.
//!
//! It holds what must not be lost: the sockets with what waits in them, the keys, the configuration in force. It begins
//! workers, tells them what to serve, and begins another when one ends unasked. It reads nothing from the network; what
//! a worker says to it is one of a few fixed words ([`super::message::Word`]).
//!
//! One loop ([`Keeper::run`]) takes what happens, one thing at a time. What takes a while (a reload, an upgrade) waits
//! for the worker's word inside the loop's step, by [`Keeper::until`]: places, beats and ends of other workers are dealt
//! with meanwhile, further orders come after it, and a stop ends it.

mod agent;
mod backends;
mod change;
mod hooks;
mod places;
mod service_manager;
mod stop;
mod upgrade;
mod usage;
mod watched;
mod workers;

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel},
    time::{Instant, sleep_until, timeout_at},
};

pub(crate) use self::stop::Ended;
use self::{
    agent::{AgentDeed, Orders},
    backends::{Backends, InstanceDeed},
    hooks::{Deployed, Hooks, Occasion},
    service_manager::ServiceManager,
    watched::Watched,
    workers::{Deed, Ending, State, Worker, WorkerId},
};
pub(super) use self::{
    change::rehearsal,
    upgrade::{FORM, TAKES_OVER},
};
use super::{
    Options, ServeError,
    history::History,
    message::{Handover, ToWorker, Word},
    signals::{Signal, Signals},
    watch::{Watcher, look},
    worker::RunsAs,
};
use crate::{
    admin::{AdminSecrets, Order, Outcome, Refusal, Report},
    allocator,
    config::{self, ListenAddress, Plan, Problem, RotatePlan, Source},
    keeper::{
        ProvisionFaults, Provisions, activation::Inherited, output::LogOutput, rotation::WatchedLog,
        secrets::UserFiles, sockets::Sockets, user::User,
    },
    telemetry::{chain, error_log},
    tls::{CertificateMaterial, ClientAuthorities, LIFETIME_SECONDS, TicketKeys, shelf::SHELF, storage},
};

/// Whether the keys of session tickets are those that machines with one secret have by the clock.
fn shares_tickets(plan: &Plan) -> bool {
    plan.tls.shared.as_ref().is_some_and(|shared| shared.share_tickets)
}

/// All that the keeper holds.
pub(super) struct Keeper {
    source: Source,
    options: Options,
    /// The program file that an upgrade looks at.
    program: PathBuf,
    started: SystemTime,
    /// What we were begun with.
    arguments: Vec<OsString>,
    /// The program that was this process before, until we serve.
    before: Option<OwnedFd>,

    plan: Plan,
    generation: u64,
    /// As they are in force, whatever becomes of their files.
    certificates: Vec<Arc<CertificateMaterial>>,
    /// Likewise.
    client_authorities: ClientAuthorities,
    users: UserFiles,
    admin: Option<AdminSecrets>,
    history: History,
    refused: Option<Refusal>,

    sockets: Sockets,
    /// Who the workers are to be; `None` where we are not root.
    user: Option<User>,
    tickets: TicketKeys,
    rotate_tickets: Instant,
    log: Option<WatchedLog>,
    /// The file for warnings and errors.
    errors: Option<WatchedLog>,

    /// At most one of them is serving, but for those in `superseded`, and at most one starting.
    workers: Vec<Worker>,
    /// With the places there are by their plan.
    superseded: Vec<(WorkerId, BTreeMap<String, u32>)>,
    next_worker: WorkerId,
    crashes: u64,
    /// Workers that have ended unasked in short order.
    quick_crashes: u32,
    /// When the next worker is begun, where one is missing.
    restart: Option<Instant>,
    beat: u64,
    next_beat: Instant,
    /// Requests of workers that leave and have no place, in the order in which a place was asked for.
    wants: VecDeque<(WorkerId, String)>,
    /// Places of upstreams whose bound follows their workers, as it was last told.
    bounds: BTreeMap<String, u32>,
    refused_words: u64,

    manager: ServiceManager,
    watcher: Watcher,
    changes: UnboundedReceiver<Vec<PathBuf>>,
    signals: Signals,
    deeds: Receiver<(WorkerId, Deed)>,
    deeds_sender: Sender<(WorkerId, Deed)>,
    agent_deeds: Receiver<(u64, AgentDeed)>,
    agent_deeds_sender: Sender<(u64, AgentDeed)>,
    /// Certificates that are ordered.
    orders: Orders,
    hooks: Hooks,
    /// Programs of ours.
    backends: Backends,
    watched: Watched,
    deferred: VecDeque<Event>,
    next_look: Instant,
    /// When a drain becomes a stop.
    drained: Option<Instant>,
    /// Until when a worker may accept at an address that was given up.
    let_go: Option<Instant>,
}

/// What happens to the keeper.
#[derive(Debug)]
enum Event {
    Signal(Signal),
    /// Files of the configuration are not what they were.
    Changed(Vec<PathBuf>),
    /// The worker that it came by and the number that its outcome is to go to there.
    Order(WorkerId, u32, Order),
    Deed(WorkerId, Deed),
    /// The number of the agent.
    Agent(u64, AgentDeed),
    /// The number of an instance of a program of ours.
    Instance(u32, InstanceDeed),
    /// Certificates were brought to other programs, or not.
    Deployed(Deployed),
    /// Something is due.
    Time,
}

/// Why something that was waited for did not come.
#[derive(Debug)]
enum Missed {
    Late,
    /// We are to stop.
    Stopping,
}

impl Keeper {
    /// Opens everything and begins the first worker; when this returns, connections are accepted.
    pub(super) async fn start(source: Source, options: Options, plan: Plan, text: String) -> Result<Self, ServeError> {
        let user = worker_user(&plan, &options)?;
        // Before they are read: what changes while we start is not lost.
        let looked = look(config::dependencies(&plan));
        let mut sockets = Sockets::with(Inherited::receive());
        let provisions = Provisions::gather_beside(&plan, &mut sockets, None, user.as_ref())?;
        let tickets = TicketKeys::generate().map_err(|error| ServeError::System(io::Error::other(error)))?;
        let mut history = History::load(&plan.tls.storage, source.file());
        history.push(1, "start", &text);
        let mut keeper = Self::new(source, options, plan, user, sockets, history, tickets)?;
        keeper.watcher.watch_since(looked);
        keeper.certificates = provisions.materials();
        keeper.client_authorities.clone_from(&provisions.client_authorities);
        keeper.users.clone_from(&provisions.users);
        keeper.admin.clone_from(&provisions.admin_secrets);
        (keeper.log, keeper.errors) = watched(&keeper.plan, &provisions, keeper.user.as_ref());
        keeper.write_errors();
        keeper.run_backends();
        let plan = keeper.plan.clone();
        let started = keeper.begin_worker(1, &plan, provisions, BTreeMap::new()).map_err(ServeError::System)?;
        match keeper.until_ready(started).await {
            // It is done by the loop, as at any other time.
            Err(_) if keeper.is_told_to_stop() => return Ok(keeper),
            ready => ready.map_err(ServeError::Worker)?,
        }
        for weakness in keeper.weaknesses() {
            tracing::warn!("{weakness}");
        }
        keeper.warn();
        for address in keeper.sockets.addresses() {
            tracing::info!(%address, "listening");
        }
        keeper.tidy();
        Ok(keeper)
    }

    /// Forgets what was only needed on the way to the configuration in force.
    fn tidy(&self) {
        SHELF.keep_only(&self.plan.tls);
        allocator::give_back();
        allocator::let_go_of_code();
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> Vec<ListenAddress> {
        self.sockets.addresses().cloned().collect()
    }

    /// One that has no worker yet. Catches signals from here on.
    fn new(
        source: Source,
        options: Options,
        plan: Plan,
        user: Option<User>,
        sockets: Sockets,
        history: History,
        tickets: TicketKeys,
    ) -> Result<Self, ServeError> {
        let signals = Signals::catch().map_err(ServeError::System)?;
        let (deeds_sender, deeds) = channel(DEEDS);
        let (agent_deeds_sender, agent_deeds) = channel(AGENT_DEEDS);
        let (changes_sender, changes) = unbounded_channel();
        let now = Instant::now();
        // Those of machines that share them come at the first look.
        let rotate_tickets = if shares_tickets(&plan) { now } else { now + TICKETS };
        Ok(Self {
            program: upgrade::program().map_err(ServeError::System)?,
            started: SystemTime::now(),
            arguments: upgrade::own_arguments(),
            before: None,
            user,
            manager: ServiceManager::new(options.pid_file.clone()).map_err(ServeError::System)?,
            source,
            options,
            plan,
            generation: 1,
            certificates: Vec::new(),
            client_authorities: ClientAuthorities::new(),
            users: UserFiles::new(),
            admin: None,
            history,
            refused: None,
            sockets,
            tickets,
            rotate_tickets,
            log: None,
            errors: None,
            workers: Vec::new(),
            superseded: Vec::new(),
            next_worker: 0,
            crashes: 0,
            quick_crashes: 0,
            restart: None,
            beat: 0,
            next_beat: now,
            wants: VecDeque::new(),
            bounds: BTreeMap::new(),
            refused_words: 0,
            watcher: Watcher::new(changes_sender),
            changes,
            signals,
            deeds,
            deeds_sender,
            agent_deeds,
            agent_deeds_sender,
            orders: Orders::default(),
            hooks: Hooks::default(),
            backends: Backends::default(),
            watched: Watched::default(),
            deferred: VecDeque::new(),
            next_look: now,
            drained: None,
            let_go: None,
        })
    }

    /// Until something ends us.
    pub(super) async fn run(mut self) -> Ended {
        self.watcher.watch(config::dependencies(&self.plan));
        self.assign();
        self.run_backends();
        self.report();
        self.manager.ready(self.generation, self.refused.as_ref());
        loop {
            if !self.superseded.is_empty() {
                self.retire_superseded();
            }
            let event = match self.deferred.pop_front() {
                Some(event) => event,
                None => self.next().await,
            };
            match event {
                Event::Signal(Signal::Stop) => return self.stop().await,
                Event::Signal(Signal::Reload) => drop(self.reload("SIGHUP").await),
                // The log says what came of it.
                Event::Signal(Signal::Reopen) => drop(self.reopen_log()),
                Event::Signal(Signal::Upgrade) => {
                    if let Err(refused) = self.upgrade(None).await {
                        tracing::error!("not upgraded: {refused}");
                    }
                }
                Event::Changed(files) => drop(self.reload(&changed(&files)).await),
                Event::Order(worker, id, order) => self.obey(worker, id, order).await,
                Event::Deed(worker, deed) => self.note(worker, deed),
                Event::Agent(number, deed) => self.note_agent(number, deed),
                Event::Deployed(deployed) => self.note_deployed(deployed),
                Event::Instance(id, deed) => self.note_instance(id, deed),
                Event::Time => {
                    if self.drained.is_some_and(|at| at <= Instant::now()) {
                        return self.stop().await;
                    }
                    self.look_after();
                }
            }
        }
    }

    /// The next thing that happens; cancel-safe.
    async fn next(&mut self) -> Event {
        let due = [Some(self.next_look), self.drained, self.restart, self.orders.due(), self.backends.due()];
        let due = due.into_iter().flatten().min();
        tokio::select! {
            biased;
            signal = self.signals.next() => Event::Signal(signal),
            Some((worker, deed)) = self.deeds.recv() => event(worker, deed),
            Some(deployed) = self.hooks.deployed.recv() => Event::Deployed(deployed),
            Some((id, deed)) = self.backends.deeds.recv() => Event::Instance(id, deed),
            Some(files) = self.changes.recv() => Event::Changed(files),
            () = sleep_until(due.unwrap_or(self.next_look)) => Event::Time,
            // Last: one that is not itself any more may speak without end.
            Some((number, deed)) = self.agent_deeds.recv() => Event::Agent(number, deed),
        }
    }

    /// Waits for what `wanted` makes something of, at most until `deadline`.
    ///
    /// A stop ends the wait, and comes next. Orders and changes come after whatever waits here.
    async fn until<T>(
        &mut self,
        deadline: Instant,
        mut wanted: impl FnMut(WorkerId, &Deed) -> Option<T>,
    ) -> Result<T, Missed> {
        loop {
            let event = timeout_at(deadline, self.next()).await.map_err(|_| Missed::Late)?;
            let found = match &event {
                Event::Deed(worker, deed) => wanted(*worker, deed),
                _ => None,
            };
            self.aside(event)?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Waits for `work` in the same way.
    async fn meanwhile<T>(&mut self, deadline: Instant, work: impl Future<Output = T>) -> Result<T, Missed> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                event = timeout_at(deadline, self.next()) => self.aside(event.map_err(|_| Missed::Late)?)?,
            }
        }
    }

    /// Deals with what happens while something is waited for.
    fn aside(&mut self, event: Event) -> Result<(), Missed> {
        match event {
            Event::Deed(worker, deed) => self.note(worker, deed),
            Event::Agent(number, deed) => self.note_agent(number, deed),
            Event::Deployed(deployed) => self.note_deployed(deployed),
            Event::Instance(id, deed) => self.note_instance(id, deed),
            Event::Time if self.drained.is_none_or(|at| at > Instant::now()) => self.look_after(),
            Event::Signal(Signal::Stop) | Event::Time => {
                self.deferred.push_front(event);
                return Err(Missed::Stopping);
            }
            later => self.defer(later),
        }
        Ok(())
    }

    fn is_told_to_stop(&self) -> bool {
        self.deferred.iter().any(|event| matches!(event, Event::Signal(Signal::Stop)))
    }

    /// Has `later` come after what is being done, with a bound on what a worker asks for meanwhile.
    fn defer(&mut self, later: Event) {
        let is_order = |event: &Event| matches!(event, Event::Order(..));
        match later {
            Event::Order(worker, id, _) if self.deferred.iter().filter(|event| is_order(event)).count() >= ORDERS => {
                self.answer(worker, id, Err("too many orders wait already".to_owned()));
            }
            Event::Signal(signal)
                if self.deferred.iter().any(|event| matches!(event, Event::Signal(known) if *known == signal)) => {}
            later => self.deferred.push_back(later),
        }
    }

    /// Carries out what an operator asked of `worker`, and answers.
    async fn obey(&mut self, worker: WorkerId, id: u32, order: Order) {
        let outcome = match order {
            Order::Reload { dry_run: true } => self.dry_run().await,
            Order::Reload { dry_run: false } => self.reload("`vestibule reload`").await,
            Order::Rollback { steps } => self.roll_back(steps).await,
            Order::Drain { wait } => Ok(self.drain(wait)),
            // The outcome comes from the program that takes over, unless there is none.
            Order::Upgrade => self.upgrade(Some((worker, id))).await.map(|()| String::new()),
            Order::Reopen => self.reopen_log(),
            Order::Renew => self.renew(),
            // The outcome comes when it is known.
            Order::Check => return self.check_certificates(worker, id),
            Order::Export => return self.export(worker, id),
            Order::Restart { backend } => return self.restart_backend(worker, id, backend),
        };
        self.answer(worker, id, outcome);
    }

    /// Whoever is told that something is in force is not to meet a worker of before on the admin socket.
    fn answer(&mut self, worker: WorkerId, id: u32, outcome: Outcome) {
        if !self.superseded.is_empty() {
            self.retire_superseded();
        }
        if let Some(worker) = self.worker(worker) {
            worker.tell(ToWorker::Reply { id, outcome });
        }
    }

    /// Takes note of what a worker did.
    fn note(&mut self, id: WorkerId, deed: Deed) {
        match deed {
            Deed::Said(Word::Ready) => self.serving(id),
            Deed::Said(Word::Alive { beat }) => {
                let turns = |worker: &mut Worker| worker.has_answered(beat) && worker.state == State::Serving;
                if self.worker_mut(id).is_some_and(turns) {
                    // Ours alone would say nothing of the traffic.
                    self.manager.alive();
                }
            }
            Deed::Said(Word::Place { upstream, count }) => self.place_given(id, upstream, count),
            Deed::Said(Word::Want { upstream }) => self.place_wanted(id, upstream),
            Deed::Said(Word::Bound { upstream, count }) => self.bound_told(id, upstream, count),
            Deed::Said(Word::Answers { version }) => self.answers(id, version),
            Deed::Said(Word::Seek) => self.seek_challenges(),
            Deed::Said(Word::Up { instance }) => self.instance_up(instance),
            Deed::Said(Word::Hung { instance }) => self.instance_hung(instance),
            Deed::Said(Word::Drained { instance }) => self.instance_drained(id, instance),
            Deed::Said(Word::Served { instance, count }) => self.instance_served(id, instance, count),
            Deed::Said(Word::Watch { pid, started }) => self.watch(id, pid, started),
            // Whoever waits for the others has seen them, and nobody else has a use for them.
            Deed::Said(_) => {}
            Deed::Mumbled(mumbled) => {
                self.refused_words += 1;
                if self.refused_words <= TOLD {
                    let pid = self.worker(id).map(|worker| worker.pid().as_raw_pid());
                    tracing::error!(pid, "a worker was refused: {mumbled}; it may have been taken over");
                }
            }
            Deed::Ended(ending) => self.worker_ended(id, &ending),
        }
    }

    /// A worker accepts connections: it is the one that serves, if it is the one that was to start.
    fn serving(&mut self, id: WorkerId) {
        let Some(worker) = self.worker_mut(id).filter(|worker| worker.state == State::Starting) else { return };
        worker.state = State::Serving;
        worker.alive = Instant::now();
        self.recall_wanted();
        self.report();
    }

    fn worker_ended(&mut self, id: WorkerId, ending: &Ending) {
        let Some(position) = self.workers.iter().position(|worker| worker.id == id) else { return };
        let worker = self.workers.remove(position);
        self.wants.retain(|(wants, _)| *wants != id);
        let pid = worker.pid().as_raw_pid();
        let is_clean = matches!(ending, Ending::Thread | Ending::Status(0));
        match worker.state {
            State::Leaving if is_clean => tracing::info!(pid, "a worker has ended what it had begun"),
            State::Leaving => {
                self.crashes += 1;
                tracing::error!(pid, %ending, "a worker that was to end what it had begun has ended before");
            }
            State::Starting | State::Serving => {
                if worker.state == State::Serving {
                    self.places_left(id);
                }
                self.crashed(&worker, ending);
            }
            State::GivenUp => tracing::debug!(pid, %ending, "a worker that was given up has ended"),
        }
        self.places_back(&worker.held);
        self.orders.forget(id);
        self.challenges_answered();
        self.report();
    }

    /// A worker that was to serve is no more: another one is begun, at once unless it went the same way each time.
    fn crashed(&mut self, worker: &Worker, ending: &Ending) {
        self.crashes += 1;
        let lived = worker.started.elapsed().unwrap_or_default();
        self.quick_crashes = if lived < QUICK { self.quick_crashes + 1 } else { 1 };
        let pause = match self.quick_crashes {
            0..=AT_ONCE => Duration::ZERO,
            more => (FIRST_PAUSE * 2_u32.saturating_pow(more - AT_ONCE - 1)).min(LONGEST_PAUSE),
        };
        let (pid, crashes) = (worker.pid().as_raw_pid(), self.crashes);
        tracing::error!(pid, %ending, ?lived, crashes, next_in = ?pause, "a worker has ended unasked; another one is begun");
        if !self.workers.iter().any(Worker::is_current) {
            self.restart = Some(Instant::now() + pause);
            if pause.is_zero() {
                self.restart_worker();
            }
        }
    }

    fn restart_worker(&mut self) {
        self.restart = None;
        let plan = self.plan.clone();
        let begun = self
            .gather_again()
            .map_err(io::Error::other)
            .and_then(|provisions| self.begin_worker(self.generation, &plan, provisions, self.held_by_leaving()));
        if let Err(error) = begun {
            tracing::error!(error = &error as &dyn std::error::Error, again_in = ?LONGEST_PAUSE, "no worker can be begun");
            self.restart = Some(Instant::now() + LONGEST_PAUSE);
        }
    }

    /// What another worker for the configuration in force is to be handed.
    fn gather_again(&mut self) -> Result<Provisions, ProvisionFaults> {
        let logs = [&self.log, &self.errors].map(|log| log.as_ref().and_then(|log| log.output().ok()));
        let (certificates, clients) = (self.certificates.clone(), self.client_authorities.clone());
        let secrets = (certificates, clients, self.users.clone(), self.admin.clone());
        Provisions::gather_again(&self.plan, secrets, logs.into(), &mut self.sockets, self.user.as_ref())
    }

    fn begin_worker(
        &mut self,
        generation: u64,
        plan: &Plan,
        provisions: Provisions,
        held: BTreeMap<String, u32>,
    ) -> io::Result<WorkerId> {
        self.next_worker += 1;
        let id = self.next_worker;
        let (handover, descriptors) = Handover::new(
            generation,
            plan,
            provisions,
            self.user.clone(),
            held,
            self.tickets.clone(),
            self.backends.known(),
        );
        let runs_as = if self.options.single { RunsAs::Thread } else { RunsAs::Process };
        let worker = Worker::begin(id, runs_as, handover, descriptors, &self.deeds_sender)?;
        tracing::debug!(pid = worker.pid().as_raw_pid(), "a worker is begun");
        if self.drained.is_some() {
            worker.tell(ToWorker::Unready);
        }
        self.workers.push(worker);
        self.tell_challenges();
        Ok(id)
    }

    /// Waits for `started` to accept connections; says why it does not.
    async fn until_ready(&mut self, started: WorkerId) -> Result<(), String> {
        let ready = |worker, deed: &Deed| match deed {
            Deed::Said(Word::Ready) if worker == started => Some(Ok(())),
            Deed::Ended(ending) if worker == started => Some(Err(format!("it ended at its start ({ending})"))),
            _ => None,
        };
        match self.until(Instant::now() + START, ready).await {
            Ok(ready) => ready,
            Err(Missed::Late) => Err(format!("it did not accept connections within {START:?}")),
            Err(Missed::Stopping) => Err(STOPPING.to_owned()),
        }
    }

    /// What is due from time to time.
    fn look_after(&mut self) {
        let now = Instant::now();
        self.tend_backends();
        if !self.workers.iter().any(Worker::is_current) {
            // Whatever has led to it.
            self.restart.get_or_insert(now);
        }
        if self.restart.is_some_and(|at| at <= now) {
            self.restart_worker();
        }
        if self.orders.restart.is_some_and(|at| at <= now) {
            self.assign();
        }
        if self.orders.is_to_be_told() {
            self.tell_orders();
        }
        if now < self.next_look {
            return;
        }
        let beat = self.manager.interval().map_or(BEAT, |interval| interval.min(BEAT));
        self.next_look = now + beat.min(LOOK);
        self.look_at_log();
        self.look_at_resolver();
        if now >= self.rotate_tickets {
            self.rotate_tickets(now);
        }
        if now >= self.next_beat {
            self.beat += 1;
            self.next_beat = now + beat;
            let number = self.beat;
            let turning = |worker: &&mut Worker| matches!(worker.state, State::Serving | State::Leaving);
            self.workers.iter_mut().filter(turning).for_each(|worker| worker.ask(number));
        }
        // One that leaves has places, and one that starts is waited for.
        for worker in self.workers.iter_mut().filter(|worker| worker.alive.elapsed() > SILENCE) {
            let pid = worker.pid().as_raw_pid();
            tracing::error!(pid, silence = ?SILENCE, "a worker has not answered for this long; it is ended");
            worker.kill();
            worker.alive = Instant::now();
        }
    }

    /// Tells what is not as it should be in what is in force: warnings of the configuration, and sockets that connections wait in
    /// for nobody.
    fn warn(&self) {
        for warning in &self.plan.warnings {
            tracing::warn!("{warning}");
        }
        for name in self.sockets.unused(&self.plan) {
            tracing::warn!(name, "a socket that was passed on is not listened on: no listener is `fd:{name}`");
        }
    }

    /// Seals tickets with the next keys: new ones, or those that machines with one secret have by the clock.
    fn rotate_tickets(&mut self, now: Instant) {
        self.rotate_tickets = now + TICKETS;
        let next = match self
            .plan
            .tls
            .shared
            .as_ref()
            .filter(|shared| shared.share_tickets)
            .map(storage::secret)
            .transpose()
        {
            Ok(None) => self.tickets.rotated().map_err(|error| error.to_string()),
            Ok(Some(secret)) => {
                let (keys, seconds) = TicketKeys::shared(&secret, SystemTime::now());
                self.rotate_tickets = now + Duration::from_secs(seconds);
                Ok(keys)
            }
            Err(Problem { at, problem }) => Err(format!("{at}: {problem}")),
        };
        match next {
            Ok(keys) => {
                self.tickets = keys;
                for worker in &self.workers {
                    worker.tell(ToWorker::Tickets(self.tickets.clone()));
                }
            }
            Err(error) => tracing::error!(error, "ticket keys stay as they are"),
        }
    }

    /// Rotates the logs where it is time, and follows where others have moved them.
    fn look_at_log(&mut self) {
        if let Some(file) = self.log.as_mut().and_then(WatchedLog::look) {
            self.log_to(&file.into());
        }
        if let Some(file) = self.errors.as_mut().and_then(WatchedLog::look) {
            self.errors_to(file);
        }
    }

    /// Goes on in files that are opened now, under the names that the logs have.
    fn reopen_log(&mut self) -> Outcome {
        let access = self.log.as_mut().map(WatchedLog::reopen);
        let errors = self.errors.as_mut().map(WatchedLog::reopen);
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for (name, reopened) in [("access log", access), ("error log", errors)] {
            match reopened {
                Some(Ok(file)) if name == "access log" => {
                    self.log_to(&file.into());
                    done.push(format!("{name} reopened"));
                }
                Some(Ok(file)) => {
                    self.errors_to(file);
                    done.push(format!("{name} reopened"));
                }
                Some(Err(error)) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the {name} stays as it is");
                    failed.push(format!("the {name} stays as it is: {}", chain(&error)));
                }
                None => {}
            }
        }
        if done.is_empty() && failed.is_empty() {
            tracing::info!("there is no log file to reopen");
            done.push("there is no log file to reopen".to_owned());
        }
        if failed.is_empty() { Ok(done.join("\n")) } else { Err(failed.join("\n")) }
    }

    /// Writes the warnings and errors of this process where they are to go.
    fn write_errors(&self) {
        let output = self.errors.as_ref().and_then(|log| log.output().ok());
        error_log::write_to(output.and_then(LogOutput::into_file));
    }

    /// Has every process write warnings and errors to `file`.
    fn errors_to(&self, file: File) {
        for worker in &self.workers {
            match file.try_clone() {
                Ok(file) => worker.tell_with(ToWorker::ReopenErrors, vec![file.into()]),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a worker stays with the old error log");
                }
            }
        }
        error_log::write_to(Some(file));
        tracing::info!("error log reopened");
    }

    /// Has every worker that writes to the log go on in `file`.
    fn log_to(&self, file: &OwnedFd) {
        let log = workers::sink(&self.plan);
        for worker in self.workers.iter().filter(|worker| worker.log == log) {
            match file.try_clone() {
                Ok(file) => worker.tell_with(ToWorker::Reopen, vec![file]),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a worker stays with the old log file");
                }
            }
        }
        tracing::info!("access log reopened");
    }

    /// Tells every worker how we are, for `/status`.
    fn report(&self) {
        let mut workers: Vec<_> = self.workers.iter().map(Worker::report).collect();
        workers.sort_by_key(|worker| !worker.accepts);
        let report = Box::new(Report {
            pid: std::process::id(),
            since: Some(self.started),
            keeper: !self.options.single,
            workers,
            crashes: self.crashes,
            history: self.history.applied(),
            refused: self.refused.clone(),
            weaknesses: self.weaknesses(),
            orders: self.order_reports(),
            backends: self.backends.reports(),
        });
        for worker in &self.workers {
            worker.tell(ToWorker::Report(report.clone()));
        }
    }

    /// What protects less than it could.
    fn weaknesses(&self) -> Vec<String> {
        let mut weaknesses = Vec::new();
        if self.options.single {
            let said = "--single: one process reads the network and holds the keys, nothing confines it, a crash ends all, \
                        and an upgrade is a restart";
            weaknesses.push(said.to_owned());
        } else if self.user.is_none() {
            let said = "not started as root: keys and traffic are one user's, so the worker could read what the keeper reads \
                        where the kernel's sandbox does not keep it from it";
            weaknesses.push(said.to_owned());
        }
        weaknesses
    }

    fn serving_worker(&self) -> Option<&Worker> {
        // The youngest, where one is about to be retired.
        self.workers.iter().rev().find(|worker| worker.state == State::Serving)
    }

    fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.id == id)
    }

    fn worker_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }
}

/// An order is told apart from what else a worker says.
fn event(worker: WorkerId, deed: Deed) -> Event {
    let (id, order) = match deed {
        Deed::Said(Word::Reload { id, dry_run }) => (id, Order::Reload { dry_run }),
        Deed::Said(Word::Rollback { id, steps }) => (id, Order::Rollback { steps }),
        Deed::Said(Word::Drain { id, wait }) => (id, Order::Drain { wait }),
        Deed::Said(Word::Upgrade { id }) => (id, Order::Upgrade),
        Deed::Said(Word::Reopen { id }) => (id, Order::Reopen),
        Deed::Said(Word::Renew { id }) => (id, Order::Renew),
        Deed::Said(Word::Check { id }) => (id, Order::Check),
        Deed::Said(Word::Export { id }) => (id, Order::Export),
        Deed::Said(Word::Restart { id, backend }) => (id, Order::Restart { backend }),
        deed => return Event::Deed(worker, deed),
    };
    Event::Order(worker, id, order)
}

/// What a change of `files` is called in the history.
fn changed(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    format!("{} changed", joined(&names, ", "))
}

/// As many of `words` as somebody reads in one line.
fn joined(words: &[String], between: &str) -> String {
    match words.len().checked_sub(WORDS) {
        None | Some(0) => words.join(between),
        Some(more) => format!("{}{between}and {more} more", words[..WORDS].join(between)),
    }
}

/// Who the workers are to be.
fn worker_user(plan: &Plan, options: &Options) -> Result<Option<User>, ServeError> {
    let is_root = rustix::process::geteuid().is_root();
    Ok(if is_root && !options.single { Some(User::find(&plan.user)?) } else { None })
}

/// The access log and the error log among `provisions`, to be looked after.
fn watched(plan: &Plan, provisions: &Provisions, user: Option<&User>) -> (Option<WatchedLog>, Option<WatchedLog>) {
    let access = plan.access_log.as_ref().and_then(|log| log.rotate);
    let errors = plan.error_log.as_ref().and_then(|log| log.rotate);
    let watch = |output: &Option<LogOutput>, rotate| watched_log(output.as_ref(), rotate, user);
    (watch(&provisions.access_log, access), watch(&provisions.error_log, errors))
}

fn watched_log(output: Option<&LogOutput>, rotate: Option<RotatePlan>, user: Option<&User>) -> Option<WatchedLog> {
    let Some(LogOutput::File { path, file }) = output else { return None };
    match file.try_clone() {
        Ok(file) => Some(WatchedLog::new(path.clone(), file, rotate, user.map(User::uid))),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, path = %path.display(), "a log is not looked after");
            None
        }
    }
}

/// To whoever asked for something that a stop came before.
const STOPPING: &str = "vestibule was told to stop before it was done";
const WORDS: usize = 20;
/// What workers have done and we have not looked at; beyond it they wait.
const DEEDS: usize = 64;
/// Likewise of an agent, each of which may be some megabytes.
const AGENT_DEEDS: usize = 4;
/// Orders that wait while something is being done.
const ORDERS: usize = 64;
/// Refused messages that are told one by one.
const TOLD: u64 = 10;
/// How long a worker may take until it accepts connections, or has another configuration in force.
const START: Duration = Duration::from_secs(30);
/// How often we look at the log file and the clock.
const LOOK: Duration = Duration::from_secs(1);
/// How often a worker is asked whether it turns; more often where the service manager is to hear of it more often.
const BEAT: Duration = Duration::from_secs(5);
/// A worker that has not turned for this long never will.
const SILENCE: Duration = Duration::from_secs(60);
/// Half of a ticket's life: each is taken until its end.
const TICKETS: Duration = Duration::from_secs(LIFETIME_SECONDS as u64);
/// A worker that ends unasked within this time of its start is taken to have a habit of it.
const QUICK: Duration = Duration::from_secs(10);
/// So many are followed at once even so.
const AT_ONCE: u32 = 3;
/// Between two workers that end unasked again and again: from this, doubled, up to that.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
