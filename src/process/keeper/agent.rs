//! The keeper's side of the agent: begins it, and does for it what it cannot do itself.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::{
    sync::mpsc::{Sender, channel, error::TrySendError},
    task::{AbortHandle, JoinHandle, spawn_blocking, spawn_local},
    time::{Instant, timeout},
};

use super::{
    super::{
        agent::{self, Assigned, Assignment, Fetched, FromAgent, ToAgent},
        link::{Link, LinkError},
        message::ToWorker,
        sandbox::Resolver,
        worker::RunsAs,
    },
    Keeper, Occasion, WorkerId,
    workers::{Worker, reap, spawn},
};
use crate::{
    config::{AcmePlan, Plan, Problem},
    keeper::folder,
    tls::{Awaited, CertificateMaterial, PendingChallenge, SecretBytes, acme, read_bounded, storage::Access},
};

/// An agent that lives.
pub(super) struct Agent {
    number: u64,
    process: Option<Pid>,
    /// What its sandbox was made for.
    keeps: (PathBuf, Option<Access>),
    resolver: Resolver,
    messages: Sender<ToAgent>,
    tasks: [AbortHandle; 2],
}

impl Drop for Agent {
    fn drop(&mut self) {
        // With them goes our end of the link, which is what it ends by.
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What an agent did.
#[derive(Debug)]
pub(super) enum AgentDeed {
    Said(Box<FromAgent>),
    /// With what it said last, where that was no message.
    Ended(Option<LinkError>),
}

/// What is to be done about certificates that are ordered or fetched.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) agent: Option<Agent>,
    next: u64,
    /// When the next one is begun, where one is missing.
    pub(super) restart: Option<Instant>,
    quick_ends: u32,
    begun: Option<Instant>,
    /// Where among all that the plan in force awaits a certificate is, by its id.
    places: HashMap<String, usize>,
    /// What is to be answered, in versions of ours, which outlast the agent.
    version: u64,
    pending: Vec<PendingChallenge>,
    answering: HashMap<WorkerId, Answering>,
    /// The agent's version that it has not heard of yet.
    owed: Option<u64>,
    /// By id, as those below.
    reports: HashMap<String, acme::OrderReport>,
    /// What has come and is not served yet.
    issued: BTreeMap<String, SecretBytes>,
    /// When workers are told what has changed of these two, and when they were last.
    tell: Option<Instant>,
    told: Option<Instant>,
    /// A configuration is being put in force: what comes meanwhile is served after it, since it may be older than what the
    /// next configuration brings along, or newer.
    pub(super) is_held: bool,
    /// Who waits for what is found, by number.
    checks: Vec<(u64, WorkerId, u32)>,
    next_check: u64,
    /// When it was looked last for what other machines order.
    sought: Option<Instant>,
}

/// Versions of challenges. One is told after the other, whatever an agent that is not itself any more has answered.
#[derive(Default)]
struct Answering {
    told: u64,
    answered: u64,
}

impl Orders {
    /// When there is something to be done.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.restart, self.tell.filter(|_| !self.is_held)].into_iter().flatten().min()
    }

    /// Whether workers are to be told now.
    pub(super) fn is_to_be_told(&self) -> bool {
        self.tell.is_some_and(|at| at <= Instant::now()) && !self.is_held
    }

    fn tell_soon(&mut self) {
        let now = Instant::now();
        self.tell.get_or_insert_with(|| self.told.map_or(now, |told| now.max(told + BETWEEN_TELLS)));
    }

    /// How they stand, in the order of the plan.
    pub(super) fn reports(&self) -> Vec<acme::OrderReport> {
        let placed = self.reports.iter().filter_map(|(id, report)| Some((self.places.get(id)?, report)));
        let mut reports: Vec<_> = placed.collect();
        reports.sort_unstable_by_key(|(place, _)| **place);
        reports.into_iter().map(|(_, report)| report.clone()).collect()
    }

    /// What is known of a worker that has ended is of no use.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.answering.remove(&worker);
    }
}

impl Agent {
    fn begin(
        number: u64,
        runs_as: RunsAs,
        keeps: (PathBuf, Option<Access>),
        deeds: &Sender<(u64, AgentDeed)>,
    ) -> io::Result<Self> {
        let (link, theirs) = Link::pair()?;
        // Before it looks.
        let resolver = Resolver::of_the_system();
        let process = match runs_as {
            RunsAs::Process => Some(spawn("agent", theirs)?),
            RunsAs::Thread => {
                thread::Builder::new().name("agent".to_owned()).spawn(move || run_in_thread(theirs))?;
                None
            }
        };
        let link = Rc::new(link);
        let (messages, mut to_send) = channel::<ToAgent>(MESSAGES);
        let sending = {
            let link = Rc::clone(&link);
            spawn_local(async move {
                while let Some(message) = to_send.recv().await {
                    if let Err(error) = link.send(&message, &[]).await {
                        // The end of the link is told by whoever hears it.
                        tracing::debug!(error = &error as &dyn std::error::Error, "the agent was not told");
                        return;
                    }
                }
            })
        };
        let deeds = deeds.clone();
        let hearing = spawn_local(async move {
            let ended = loop {
                let said = match link.listen::<FromAgent>().await {
                    Ok(Some(said)) => AgentDeed::Said(Box::new(said)),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                };
                if deeds.send((number, said)).await.is_err() {
                    return;
                }
            };
            deeds.send((number, AgentDeed::Ended(ended))).await.ok();
        });
        let tasks = [sending.abort_handle(), hearing.abort_handle()];
        Ok(Self { number, process, keeps, resolver, messages, tasks })
    }

    /// Does not wait for it to be taken. Where it has ended, that comes to be known by itself.
    pub(super) fn tell(&self, message: ToAgent) {
        if let Err(TrySendError::Full(_)) = self.messages.try_send(message) {
            tracing::error!("the agent that orders certificates does not take what it is told; it is ended");
            self.kill();
        }
    }

    /// Whether there is room for what somebody asks who may ask without end.
    fn has_room(&self) -> bool {
        self.messages.capacity() > MESSAGES / 2
    }

    /// To tell it something later, and no other agent.
    pub(super) fn messages(&self) -> Sender<ToAgent> {
        self.messages.clone()
    }

    /// Why another one has to take over: none leaves its sandbox.
    fn lacks(&self, keeps: &(PathBuf, Option<Access>)) -> Option<&'static str> {
        if self.keeps != *keeps {
            return Some("`tls.storage` is another one");
        }
        let is_confined = self.process.is_some();
        (is_confined && self.resolver != Resolver::of_the_system())
            .then_some("a file by which names are resolved is another one")
    }

    /// Ends its process where it stands; a thread ends by the end of its link.
    fn kill(&self) {
        // Its number is nobody else's: its status has not been taken.
        if let Some(process) = self.process
            && let Err(error) = kill_process(process, Signal::KILL)
        {
            tracing::debug!(error = &io::Error::from(error) as &dyn std::error::Error, "the agent cannot be killed");
        }
    }
}

fn run_in_thread(link: OwnedFd) {
    if let Err(error) = agent::run(link, RunsAs::Thread) {
        tracing::error!(error = &error as &dyn std::error::Error, "no certificates can be ordered");
    }
}

impl Keeper {
    /// Has the agent look after what the plan in force orders and fetches; there is none where that is nothing.
    pub(super) fn assign(&mut self) {
        self.deploy(Occasion::Due);
        let ids = Awaited::all(&self.plan.tls).map(Awaited::id);
        let places: HashMap<_, _> = ids.zip(0..).collect();
        self.orders.reports.retain(|id, _| places.contains_key(id));
        self.orders.places = places;
        self.orders.restart = None;
        if !self.plan.tls.awaits_certificates() {
            self.let_go_of_agent();
            return;
        }
        let assignment = assignment(&self.plan);
        let keeps = (assignment.storage.clone(), assignment.shared.clone());
        if let Some(agent) = &self.orders.agent
            && let Some(why) = agent.lacks(&keeps)
        {
            tracing::info!("{why}: the agent that orders certificates is begun anew");
            // Not two of them with one storage.
            agent.kill();
            self.let_go_of_agent();
        }
        if self.orders.agent.is_none() {
            // A storage that came with a reload has been asked for nothing yet.
            if let Err(error) = folder::private(&self.plan.tls.storage, "acme") {
                tracing::error!(error = &error as &dyn std::error::Error, "tls.storage: certificates cannot be kept");
            }
            self.orders.next += 1;
            let runs_as = if self.options.single { RunsAs::Thread } else { RunsAs::Process };
            match Agent::begin(self.orders.next, runs_as, keeps, &self.agent_deeds_sender) {
                Ok(agent) => self.orders.agent = Some(agent),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, again_in = ?LONGEST_PAUSE, "no agent can be begun: certificates are neither ordered nor renewed");
                    self.orders.restart = Some(Instant::now() + LONGEST_PAUSE);
                    return;
                }
            }
            self.orders.begun = Some(Instant::now());
        }
        if let Some(agent) = &self.orders.agent {
            agent.tell(ToAgent::Serve(Box::new(assignment)));
        }
    }

    /// Begins another agent where the present one could not read any more what resolving names takes.
    pub(super) fn look_at_resolver(&mut self) {
        if self.orders.agent.as_ref().is_some_and(|agent| agent.lacks(&agent.keeps).is_some()) {
            self.assign();
        }
    }

    /// Takes note of what the agent did.
    pub(super) fn note_agent(&mut self, number: u64, deed: AgentDeed) {
        if self.orders.agent.as_ref().is_none_or(|agent| agent.number != number) {
            return;
        }
        match deed {
            AgentDeed::Said(said) => self.heed(*said),
            AgentDeed::Ended(said) => {
                if let Some(error) = said.filter(|error| !error.is_end()) {
                    tracing::error!(error = &error as &dyn std::error::Error, "the agent is not understood");
                }
                let lived = self.orders.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
                self.orders.quick_ends = if lived < QUICK { self.orders.quick_ends + 1 } else { 1 };
                let pause = (FIRST_PAUSE * 2_u32.saturating_pow(self.orders.quick_ends - 1)).min(LONGEST_PAUSE);
                tracing::error!(?lived, next_in = ?pause, "the agent that orders certificates has ended unasked; another one is begun");
                self.let_go_of_agent();
                self.orders.restart = Some(Instant::now() + pause);
            }
        }
    }

    fn heed(&mut self, said: FromAgent) {
        match said {
            FromAgent::Challenges { version, pending } => {
                self.orders.owed = Some(version);
                self.challenge(pending);
            }
            FromAgent::Issued { id, bundle } => {
                // Otherwise awaited under a plan of before.
                if self.orders.places.contains_key(&id) {
                    self.orders.issued.insert(id, bundle);
                    self.orders.tell_soon();
                }
            }
            FromAgent::Dns { number, id, record } => self.make_record(number, &id, record),
            FromAgent::Checked { number, findings } => {
                let waiting = self.orders.checks.iter().position(|(waits, ..)| *waits == number);
                if let Some((_, worker, id)) = waiting.map(|position| self.orders.checks.remove(position)) {
                    self.answer(worker, id, found(&findings));
                }
            }
            FromAgent::Stands { id, report } => {
                if let Some(awaited) = self.awaited(&id) {
                    let report = bounded(report, awaited);
                    self.orders.reports.insert(id, report);
                    self.orders.tell_soon();
                }
            }
        }
    }

    /// What the plan in force awaits by this id.
    fn awaited(&self, id: &str) -> Option<Awaited<'_>> {
        Awaited::of(&self.plan.tls, *self.orders.places.get(id)?)
    }

    /// What it orders by this id.
    pub(super) fn ordered(&self, id: &str) -> Option<&AcmePlan> {
        match self.awaited(id)? {
            Awaited::Ordered(ordered) => Some(ordered),
            Awaited::Fetched(_) => None,
        }
    }

    /// Tells workers what has come, and how certificates stand.
    pub(super) fn tell_orders(&mut self) {
        (self.orders.tell, self.orders.told) = (None, Some(Instant::now()));
        if self.serve_issued() {
            self.deploy(Occasion::Due);
        }
        self.report();
    }

    /// Serves what has come; answers whether there was anything.
    fn serve_issued(&mut self) -> bool {
        let mut any = false;
        for (id, bundle) in std::mem::take(&mut self.orders.issued) {
            let Some(awaited) = self.awaited(&id) else { continue };
            let Some(material) = awaited.material(&bundle, &awaited.file(&self.plan.tls.storage)) else {
                tracing::error!(id, "a certificate has come that is not whole, or for other names; it is not served");
                continue;
            };
            let Some(place) = self.certificates.iter_mut().find(|place| place.at == material.at) else { continue };
            // An agent that begins tells all there are.
            if place.certificate != material.certificate || place.key != material.key {
                *place = Arc::new(material);
                any = true;
            }
        }
        if any {
            // One that leaves may be of a program before this one, which knows no other way to be told.
            let all: Vec<_> = self.certificates.iter().map(|material| CertificateMaterial::clone(material)).collect();
            for worker in &mut self.workers {
                // Nothing, as far as is known: it may not be able to use one of them, and keeps those it has then.
                worker.has_been_told(&[]);
                worker.tell(ToWorker::Certificates(all.clone()));
            }
        }
        any
    }

    /// Has exactly `pending` answered.
    fn challenge(&mut self, pending: Vec<PendingChallenge>) {
        self.orders.version += 1;
        self.orders.pending = pending;
        self.tell_challenges();
        self.challenges_answered();
    }

    /// Tells workers what is to be answered: those that do not know it, and owe no answer still.
    pub(super) fn tell_challenges(&mut self) {
        let Orders { version, pending, answering, .. } = &mut self.orders;
        for worker in self.workers.iter().filter(|worker| worker.is_current()) {
            let answering = answering.entry(worker.id).or_default();
            if answering.told == answering.answered && answering.told != *version {
                answering.told = *version;
                worker.tell(ToWorker::Challenges { version: *version, pending: pending.clone() });
            }
        }
    }

    /// A worker says that it answers the challenges of `version`.
    pub(super) fn answers(&mut self, worker: WorkerId, version: u64) {
        let Some(answering) = self.orders.answering.get_mut(&worker) else { return };
        if answering.told == version && answering.answered != version {
            answering.answered = version;
            self.tell_challenges();
            self.challenges_answered();
        }
    }

    /// Has the agent look for what other machines order; what it finds goes to all workers.
    pub(super) fn seek_challenges(&mut self) {
        // A worker says so once a second, and one that is not itself any more may say so without end.
        if self.orders.sought.is_some_and(|last| last.elapsed() < BETWEEN_LOOKS) {
            return;
        }
        self.orders.sought = Some(Instant::now());
        if let Some(agent) = self.orders.agent.as_ref().filter(|agent| agent.has_room()) {
            agent.tell(ToAgent::Seek);
        }
    }

    /// Lets the agent know when every worker that accepts connections answers.
    pub(super) fn challenges_answered(&mut self) {
        let Orders { agent: Some(agent), version, answering, owed, .. } = &mut self.orders else { return };
        let answers = |worker: &Worker| answering.get(&worker.id).is_some_and(|known| known.answered == *version);
        if self.workers.iter().filter(|worker| worker.is_current()).all(answers)
            && let Some(version) = owed.take()
        {
            agent.tell(ToAgent::Answered { version });
        }
    }

    /// Has it looked what is in the way of certificates; whoever asked by `worker` is answered when that is known.
    pub(super) fn check_certificates(&mut self, worker: WorkerId, id: u32) {
        let refused = match &self.orders.agent {
            None => NONE_ORDERED,
            // Those of a worker that has ended count as well, until the agent has done with them.
            Some(agent) if self.orders.checks.len() >= CHECKS || !agent.has_room() => "too many checks wait already",
            Some(agent) => {
                self.orders.next_check += 1;
                agent.tell(ToAgent::Check { number: self.orders.next_check });
                return self.orders.checks.push((self.orders.next_check, worker, id));
            }
        };
        self.answer(worker, id, Err(refused.to_owned()));
    }

    /// Has certificates ordered, and fetched, anew; answers in words.
    pub(super) fn renew(&mut self) -> Result<String, String> {
        let Some(agent) = &self.orders.agent else {
            return Err(NONE_ORDERED.to_owned());
        };
        if !agent.has_room() {
            return Err("too much is asked of the agent already; try again in a moment".to_owned());
        }
        agent.tell(ToAgent::Renew);
        Ok("begun; `vestibule certificates list` says what comes of it".to_owned())
    }

    /// Ends the agent and waits for its process, a moment at most; what it has said is taken note of before.
    pub(super) async fn end_agent(&mut self) {
        while let Ok((number, deed)) = self.agent_deeds.try_recv() {
            self.note_agent(number, deed);
        }
        self.serve_issued();
        if let Some(reaping) = self.let_go_of_agent() {
            timeout(END, reaping).await.ok();
        }
        (self.orders.restart, self.orders.tell) = (None, None);
    }

    /// Has the agent end, if there is one: whatever it needs to go on is in the storage.
    ///
    /// Nothing is answered for it any more, and who waits for it is told so. Answers what takes the status of its process.
    fn let_go_of_agent(&mut self) -> Option<JoinHandle<()>> {
        let agent = self.orders.agent.take()?;
        let reaping = agent.process.and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok()).map(|process| {
            spawn_blocking(move || {
                reap(&process);
            })
        });
        self.orders.owed = None;
        if !self.orders.pending.is_empty() {
            self.challenge(Vec::new());
        }
        for (_, worker, id) in std::mem::take(&mut self.orders.checks) {
            self.answer(worker, id, Err(CUT_OFF.to_owned()));
        }
        reaping
    }
}

/// `report` as it is told of `awaited`: whoever speaks with authorities says nothing of other certificates, and nothing
/// without end.
fn bounded(report: acme::OrderReport, awaited: Awaited<'_>) -> acme::OrderReport {
    let text = |text: Option<String>| text.map(|text| text.chars().take(LONGEST_TEXT).collect());
    let (hosts, fetched_from) = match awaited {
        Awaited::Ordered(plan) => (plan.hosts.iter().map(ToString::to_string).collect(), None),
        Awaited::Fetched(plan) => {
            let hosts = report.hosts.iter().take(MOST_HOSTS);
            let hosts = hosts.map(|host| host.chars().take(LONGEST_HOST).collect()).collect();
            (hosts, Some(plan.store.to_string()))
        }
    };
    acme::OrderReport {
        at: awaited.at().to_owned(),
        hosts,
        fetched_from,
        next: text(report.next),
        why: text(report.why),
        issued_by: text(report.issued_by),
        explanation: text(report.explanation),
        undeployed: None,
        ..report
    }
}

fn assignment(plan: &Plan) -> Assignment {
    let assigned = plan.tls.acme.iter().filter_map(|ordered| {
        let roots = match ordered.ca_file.as_deref().map(read_bounded) {
            Some(Ok(pem)) => Some(pem),
            Some(Err(problem)) => {
                let file = ordered.ca_file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
                tracing::error!(
                    "{}.acme.ca_file: {file}: {problem}; this certificate is not ordered until then",
                    ordered.at
                );
                return None;
            }
            None => None,
        };
        Some(Assigned { plan: ordered.clone(), roots })
    });
    let certificates = assigned.collect();
    let fetched = plan.tls.fetched.iter().filter_map(|fetched| match Access::to_fetched(fetched) {
        Ok(access) => Some(Fetched { plan: fetched.clone(), access }),
        Err(problems) => {
            for Problem { at, problem } in problems {
                tracing::error!("{at}: {problem}; no certificate is fetched until then");
            }
            None
        }
    });
    let fetched = fetched.collect();
    let shared = match plan.tls.shared.as_ref().map(Access::of_this_process).transpose() {
        Ok(shared) => shared,
        Err(problems) => {
            // Without it each machine would order for itself.
            for Problem { at, problem } in problems {
                tracing::error!("{at}: {problem}; certificates are neither ordered nor renewed until then");
            }
            return Assignment { storage: plan.tls.storage.clone(), fetched, ..Assignment::default() };
        }
    };
    Assignment { storage: plan.tls.storage.clone(), shared, certificates, fetched }
}

/// What was found, in words; as a refusal where a CA would refuse.
fn found(findings: &[acme::Finding]) -> Result<String, String> {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    if findings.iter().any(|finding| finding.severity == acme::flight::Severity::Fault) {
        return Err(lines.join("\n"));
    }
    if lines.is_empty() { Ok("nothing is in the way of the certificates".to_owned()) } else { Ok(lines.join("\n")) }
}

const NONE_ORDERED: &str = "no certificate is ordered or fetched: `tls.certificates` has neither `acme` nor `fetch`";
const CUT_OFF: &str = "the agent has ended before it was done; try again";
/// What an agent may be behind with.
const MESSAGES: usize = 1024;
/// Characters of each text in a report: what an authority says of what it refuses may be a few sentences a name.
const LONGEST_TEXT: usize = 4096;
/// Names of a certificate that is fetched, as they are told, and characters of one.
const MOST_HOSTS: usize = 100;
const LONGEST_HOST: usize = 256;
/// Of thousands of certificates something changes all the time, and each time workers are told of all.
const BETWEEN_TELLS: Duration = Duration::from_secs(1);
/// Operators that wait for a check at once.
const CHECKS: usize = 16;
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
const QUICK: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// For a process that has nothing to finish.
const END: Duration = Duration::from_secs(2);
