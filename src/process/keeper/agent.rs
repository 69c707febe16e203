//! The keeper's side of the agent: begins it, and does for it what it cannot do itself.

use std::{io, os::fd::OwnedFd, rc::Rc, thread, time::Duration};

use rustix::process::Pid;
use tokio::{
    sync::mpsc::{Sender, UnboundedSender, unbounded_channel},
    task::{AbortHandle, spawn_blocking, spawn_local},
    time::{Instant, timeout},
};

use super::{
    super::{
        agent::{self, Assigned, Assignment, Fetched, FromAgent, ToAgent},
        link::Link,
        message::ToWorker,
        worker::RunsAs,
    },
    Keeper, Occasion, WorkerId,
    workers::{Worker, reap, spawn},
};
use crate::{
    config::{Plan, Problem},
    tls::{Awaited, PendingChallenge, acme, read_bounded, storage::Access},
};

/// An agent that lives.
pub(super) struct Agent {
    number: u64,
    process: Option<Pid>,
    messages: UnboundedSender<ToAgent>,
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
    Ended,
}

/// What is to be done about certificates that are ordered.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) agent: Option<Agent>,
    next: u64,
    /// When the next one is begun, where one is missing.
    pub(super) restart: Option<Instant>,
    quick_ends: u32,
    begun: Option<Instant>,
    /// What is to be answered, and who has said that it does.
    version: u64,
    pub(super) pending: Vec<PendingChallenge>,
    answering: Vec<(WorkerId, u64)>,
    told: u64,
    pub(super) reports: Vec<acme::OrderReport>,
    /// Who waits for what is found, by number.
    checks: Vec<(u64, WorkerId, u32)>,
    next_check: u64,
    /// When it was looked last for what other machines order.
    sought: Option<Instant>,
}

impl Orders {
    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

impl Agent {
    fn begin(number: u64, runs_as: RunsAs, deeds: &Sender<(u64, AgentDeed)>) -> io::Result<Self> {
        let (link, theirs) = Link::pair()?;
        let process = match runs_as {
            RunsAs::Process => Some(spawn("agent", theirs)?),
            RunsAs::Thread => {
                thread::Builder::new().name("agent".to_owned()).spawn(move || run_in_thread(theirs))?;
                None
            }
        };
        let link = Rc::new(link);
        let (messages, mut to_send) = unbounded_channel::<ToAgent>();
        let sending = {
            let link = Rc::clone(&link);
            spawn_local(async move {
                while let Some(message) = to_send.recv().await {
                    if link.send(&message, &[]).await.is_err() {
                        return;
                    }
                }
            })
        };
        let deeds = deeds.clone();
        let hearing = spawn_local(async move {
            while let Ok(Some((said, _))) = link.receive::<FromAgent>().await {
                if deeds.send((number, AgentDeed::Said(Box::new(said)))).await.is_err() {
                    return;
                }
            }
            deeds.send((number, AgentDeed::Ended)).await.ok();
        });
        Ok(Self { number, process, messages, tasks: [sending.abort_handle(), hearing.abort_handle()] })
    }

    fn tell(&self, message: ToAgent) {
        // Where it has ended, that comes to be known by itself.
        self.messages.send(message).ok();
    }

    /// To tell it something later, and no other agent.
    pub(super) fn messages(&self) -> UnboundedSender<ToAgent> {
        self.messages.clone()
    }
}

fn run_in_thread(link: OwnedFd) {
    if let Err(error) = agent::run(link, RunsAs::Thread) {
        tracing::error!(error = &error as &dyn std::error::Error, "no certificates can be ordered");
    }
}

impl Keeper {
    /// Has the agent look after what the plan in force orders; there is none where it orders nothing.
    pub(super) fn assign(&mut self) {
        self.deploy(Occasion::Due);
        if !self.plan.tls.awaits_certificates() {
            self.orders = Orders { next: self.orders.next, ..Orders::default() };
            return;
        }
        if self.orders.agent.is_none() {
            self.orders.next += 1;
            let runs_as = if self.options.single { RunsAs::Thread } else { RunsAs::Process };
            match Agent::begin(self.orders.next, runs_as, &self.agent_deeds_sender) {
                Ok(agent) => self.orders.agent = Some(agent),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, again_in = ?LONGEST_PAUSE, "no agent can be begun: certificates are neither ordered nor renewed");
                    self.orders.restart = Some(Instant::now() + LONGEST_PAUSE);
                    return;
                }
            }
            (self.orders.restart, self.orders.begun) = (None, Some(Instant::now()));
            // Versions begin anew with each one.
            (self.orders.version, self.orders.told) = (0, 0);
        }
        let assignment = assignment(&self.plan);
        if let Some(agent) = &self.orders.agent {
            agent.tell(ToAgent::Serve(Box::new(assignment)));
        }
    }

    /// Takes note of what the agent did.
    pub(super) fn note_agent(&mut self, number: u64, deed: AgentDeed) {
        if self.orders.agent.as_ref().is_none_or(|agent| agent.number != number) {
            return;
        }
        match deed {
            AgentDeed::Said(said) => self.heed(*said),
            AgentDeed::Ended => {
                let lived = self.orders.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
                self.orders.quick_ends = if lived < QUICK { self.orders.quick_ends + 1 } else { 1 };
                let pause = (FIRST_PAUSE * 2_u32.saturating_pow(self.orders.quick_ends - 1)).min(LONGEST_PAUSE);
                tracing::error!(?lived, next_in = ?pause, "the agent that orders certificates has ended unasked; another one is begun");
                let process = self.orders.agent.take().and_then(|agent| agent.process);
                forget(process);
                self.orders.restart = Some(Instant::now() + pause);
            }
        }
    }

    fn heed(&mut self, said: FromAgent) {
        match said {
            FromAgent::Challenges { version, pending } => {
                (self.orders.version, self.orders.pending) = (version, pending);
                self.orders.answering.clear();
                for worker in self.workers.iter().filter(|worker| worker.is_current()) {
                    worker.tell(ToWorker::Challenges { version, pending: self.orders.pending.clone() });
                }
                self.challenges_answered();
            }
            FromAgent::Issued { id, bundle } => {
                let tls = &self.plan.tls;
                let Some(awaited) = Awaited::all(tls).find(|awaited| awaited.id() == id) else {
                    // Ordered under a plan of before.
                    return;
                };
                let Some(material) = awaited.material(&bundle, &awaited.file(&tls.storage)) else {
                    tracing::error!(
                        id,
                        "the agent has handed over a certificate that is for other names; it is not served"
                    );
                    return;
                };
                let Some(place) = self.certificates.iter_mut().find(|place| place.at == material.at) else { return };
                // It is said again whenever an agent begins.
                if place.certificate == material.certificate && place.key == material.key {
                    return;
                }
                *place = material;
                for worker in &self.workers {
                    worker.tell(ToWorker::Certificates(self.certificates.clone()));
                }
                self.deploy(Occasion::Due);
            }
            FromAgent::Dns { number, id, record } => self.make_record(number, &id, record),
            FromAgent::Checked { number, findings } => {
                let waiting = self.orders.checks.iter().position(|(waits, ..)| *waits == number);
                if let Some((_, worker, id)) = waiting.map(|position| self.orders.checks.remove(position)) {
                    self.answer(worker, id, found(&findings));
                }
            }
            FromAgent::Stands(reports) => {
                self.orders.reports = reports;
                self.report();
            }
        }
    }

    /// A worker says that it answers the challenges of `version`.
    pub(super) fn answers(&mut self, worker: WorkerId, version: u64) {
        self.orders.answering.push((worker, version));
        self.challenges_answered();
    }

    /// Has the agent look for what other machines order; what it finds goes to all workers.
    pub(super) fn seek_challenges(&mut self) {
        // A worker says so once a second, and one that is not itself any more may say so without end.
        if self.orders.sought.is_some_and(|last| last.elapsed() < BETWEEN_LOOKS) {
            return;
        }
        self.orders.sought = Some(Instant::now());
        if let Some(agent) = &self.orders.agent {
            agent.tell(ToAgent::Seek);
        }
    }

    /// Lets the agent know when every worker that accepts connections answers.
    pub(super) fn challenges_answered(&mut self) {
        let version = self.orders.version;
        if self.orders.told == version {
            return;
        }
        let answers = |worker: &Worker| self.orders.answering.contains(&(worker.id, version));
        if self.workers.iter().filter(|worker| worker.is_current()).all(answers)
            && let Some(agent) = &self.orders.agent
        {
            agent.tell(ToAgent::Answered { version });
            self.orders.told = version;
        }
    }

    /// Has it looked what is in the way of certificates; whoever asked by `worker` is answered when that is known.
    pub(super) fn check_certificates(&mut self, worker: WorkerId, id: u32) {
        let Some(agent) = &self.orders.agent else {
            return self.answer(worker, id, Err(NONE_ORDERED.to_owned()));
        };
        self.orders.next_check += 1;
        agent.tell(ToAgent::Check { number: self.orders.next_check });
        if self.orders.checks.len() >= CHECKS {
            let (_, worker, id) = self.orders.checks.remove(0);
            self.answer(worker, id, Err("too many checks wait already".to_owned()));
        }
        self.orders.checks.push((self.orders.next_check, worker, id));
    }

    /// Has certificates ordered, and fetched, anew; answers in words.
    pub(super) fn renew(&mut self, host: Option<String>) -> Result<String, String> {
        let Some(agent) = &self.orders.agent else {
            return Err(NONE_ORDERED.to_owned());
        };
        let hosts = self.plan.tls.acme.iter().flat_map(|ordered| &ordered.hosts);
        if let Some(host) = &host
            && !hosts.clone().any(|known| known.as_str() == host)
        {
            let known: Vec<_> = hosts.map(ToString::to_string).collect();
            return Err(format!("no certificate is ordered for {host}; there are {}", known.join(", ")));
        }
        agent.tell(ToAgent::Renew { host });
        Ok("begun; `vestibule certificates list` says what comes of it".to_owned())
    }

    /// Ends the agent and waits for its process, a moment at most.
    pub(super) async fn end_agent(&mut self) {
        let process = self.orders.agent.take().and_then(|agent| agent.process);
        if let Some(reaping) = forget(process) {
            timeout(END, reaping).await.ok();
        }
    }
}

/// Takes the status of a process that is to end, so that nothing is left of it.
fn forget(process: Option<Pid>) -> Option<tokio::task::JoinHandle<()>> {
    let process = rustix::process::pidfd_open(process?, rustix::process::PidfdFlags::empty()).ok()?;
    Some(spawn_blocking(move || {
        reap(&process);
    }))
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
/// Operators that wait for a check at once.
const CHECKS: usize = 16;
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
const QUICK: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// For a process that has nothing to finish.
const END: Duration = Duration::from_secs(2);
