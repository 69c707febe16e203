//! Workers as the keeper sees them: how one is begun, what it is told, what it says, and how it ended.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    env, fmt, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, pidfd_open, pidfd_send_signal,
        waitid,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel, error::TrySendError},
    task::{AbortHandle, spawn_blocking, spawn_local},
    time::{Instant, interval},
};

use super::super::{
    link::Link,
    message::{Handover, NoWord, ToWorker, Word, borrowed},
    worker::{self, RunsAs},
};
use crate::{
    admin::{WorkerReport, timestamp},
    config::{LogSink, Plan},
    keeper::Provisions,
    tls::{CertificateMaterial, HandedCertificate},
};

/// A worker that lives, or is just ending.
pub(super) struct Worker {
    pub(super) id: WorkerId,
    /// `None`: a thread of this process.
    process: Option<Pid>,
    pub(super) started: SystemTime,
    pub(super) state: State,
    /// Those that it was told of last; none where that is not known.
    certificates: Vec<Arc<CertificateMaterial>>,
    /// What its sandbox was made for; `None` where that cannot be known any more.
    pub(super) begun_with: Option<Plan>,
    /// Places that it has while it leaves, by upstream.
    pub(super) held: BTreeMap<String, u32>,
    /// Where it writes its lines.
    pub(super) log: Option<LogSink>,
    /// When it last showed that it turns.
    pub(super) alive: Instant,
    /// The beat that it has not answered.
    asked: Option<u64>,
    link: Rc<Link>,
    messages: Sender<(ToWorker, Vec<OwnedFd>)>,
    progress: Rc<Progress>,
    sending: AbortHandle,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may wait for room in a link whose other end somebody else has.
        self.sending.abort();
    }
}

/// What is under way between a worker and us.
#[derive(Default)]
struct Progress {
    /// Messages that it has not taken yet.
    untold: Cell<usize>,
    /// It has closed the link, and its status is being taken.
    is_ending: Cell<bool>,
}

pub(super) type WorkerId = u64;

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// It has not accepted a connection yet.
    Starting,
    Serving,
    /// It ends what it began.
    Leaving,
    /// We have killed it before it served; nobody waits for it.
    GivenUp,
}

/// What a worker did.
#[derive(Debug)]
pub(super) enum Deed {
    Said(Word),
    /// It said what is no word.
    Mumbled(NoWord),
    /// It is no more.
    Ended(Ending),
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// A thread has no status.
    Thread,
    Status(i32),
    Killed(i32),
    /// It closed the link and was ended by us.
    LetGo,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread => f.write_str("its thread ended"),
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Killed(signal) => match SIGNALS.iter().find(|(known, _)| known.as_raw() == *signal) {
                Some((_, name)) => write!(f, "ended by {name}"),
                None => write!(f, "ended by signal {signal}"),
            },
            Self::LetGo => f.write_str("it let go of the link and did not end"),
        }
    }
}

impl Worker {
    /// Begins one; it is told `handover` first and says [`Word::Ready`] when it accepts connections.
    pub(super) fn begin(
        id: WorkerId,
        runs_as: RunsAs,
        handover: Handover,
        descriptors: Vec<OwnedFd>,
        deeds: &Sender<(WorkerId, Deed)>,
    ) -> io::Result<Self> {
        let (link, theirs) = Link::pair()?;
        let process = match runs_as {
            RunsAs::Process => Some(spawn("worker", theirs)?),
            RunsAs::Thread => {
                let run = move || {
                    if let Err(error) = worker::run(theirs, RunsAs::Thread) {
                        tracing::error!(error = &error as &dyn std::error::Error, "the traffic cannot begin");
                    }
                };
                thread::Builder::new().name("worker".to_owned()).spawn(run)?;
                None
            }
        };
        let (begun_with, log) = (Some(handover.plan.clone()), sink(&handover.plan));
        let started = SystemTime::now();
        let worker = Self::listen_to(id, process, link, deeds, started, begun_with, log)?;
        worker.tell_with(ToWorker::Start(Box::new(handover)), descriptors);
        Ok(worker)
    }

    /// Takes over one that a keeper before us began.
    pub(super) fn adopt(
        id: WorkerId,
        process: Pid,
        link: OwnedFd,
        deeds: &Sender<(WorkerId, Deed)>,
        started: SystemTime,
        begun_with: Option<Plan>,
        log: Option<LogSink>,
    ) -> io::Result<Self> {
        Self::listen_to(id, Some(process), Link::over(link)?, deeds, started, begun_with, log)
    }

    fn listen_to(
        id: WorkerId,
        process: Option<Pid>,
        link: Link,
        deeds: &Sender<(WorkerId, Deed)>,
        started: SystemTime,
        begun_with: Option<Plan>,
        log: Option<LogSink>,
    ) -> io::Result<Self> {
        let link = Rc::new(link);
        let (messages, sent) = channel(MESSAGES);
        let progress = Rc::new(Progress::default());
        // By this descriptor until we take its status, by its number never: that could be another's by then.
        let ended = process.map(|pid| pidfd_open(pid, PidfdFlags::empty())).transpose()?;
        let sending = spawn_local(send(Rc::clone(&link), sent, Rc::clone(&progress))).abort_handle();
        spawn_local(hear(id, Rc::clone(&link), ended, deeds.clone(), Rc::clone(&progress)));
        Ok(Self {
            id,
            process,
            started,
            state: State::Starting,
            certificates: Vec::new(),
            begun_with,
            held: BTreeMap::new(),
            log,
            alive: Instant::now(),
            asked: None,
            link,
            messages,
            progress,
            sending,
        })
    }

    /// Leaves of `provisions`, which it is to be told at once, the certificates that it serves already.
    pub(super) fn hand(&mut self, provisions: &mut Provisions) {
        let known: HashMap<_, _> = self.certificates.iter().map(Arc::as_ptr).zip(0..).collect();
        for (certificate, material) in provisions.certificates.iter_mut().zip(&provisions.materials) {
            if let Some(place) = known.get(&Arc::as_ptr(material)) {
                *certificate = HandedCertificate::Kept(*place);
            }
        }
        self.has_been_told(&provisions.materials);
    }

    /// Takes note of those that it has been told of; none where it is not known which it serves.
    pub(super) fn has_been_told(&mut self, certificates: &[Arc<CertificateMaterial>]) {
        self.certificates = certificates.to_vec();
    }

    pub(super) fn tell(&self, message: ToWorker) {
        self.tell_with(message, Vec::new());
    }

    /// Does not wait for it to be taken.
    pub(super) fn tell_with(&self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        match self.messages.try_send((message, descriptors)) {
            Ok(()) => self.progress.untold.set(self.progress.untold.get() + 1),
            Err(TrySendError::Full(_)) => {
                tracing::error!(pid = self.pid().as_raw_pid(), "a worker does not take what it is told; it is ended");
                self.kill();
            }
            // It is ending; that comes to be known by itself.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    /// Whether nothing is half done: it has taken all that it was told, and is not just ending.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.progress.is_ending.get() && (self.progress.untold.get() == 0 || self.messages.is_closed())
    }

    /// Whether it serves, or is to.
    pub(super) fn is_current(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving)
    }

    /// Ends it before it serves; that is no crash.
    pub(super) fn give_up(&mut self) {
        self.state = State::GivenUp;
        self.kill();
    }

    /// Asks whether it turns, unless it owes an answer still.
    pub(super) fn ask(&mut self, beat: u64) {
        if self.asked.is_none() {
            self.asked = Some(beat);
            self.tell(ToWorker::Beat(beat));
        }
    }

    /// Takes an answer; says whether it is one to what was asked.
    pub(super) fn has_answered(&mut self, beat: u64) -> bool {
        let turns = self.asked.take_if(|asked| *asked == beat).is_some();
        if turns {
            self.alive = Instant::now();
        }
        turns
    }

    /// Its process, or ours.
    pub(super) fn pid(&self) -> Pid {
        self.process.unwrap_or_else(rustix::process::getpid)
    }

    /// The keeper's end of the link, for a successor.
    pub(super) fn link(&self) -> io::Result<OwnedFd> {
        self.link.socket().try_clone_to_owned()
    }

    /// Ends its process where it stands; a thread cannot be ended so.
    pub(super) fn kill(&self) {
        if let Some(process) = self.process
            && let Err(error) = kill_process(process, Signal::KILL)
        {
            tracing::debug!(error = &io::Error::from(error) as &dyn std::error::Error, "a worker cannot be killed");
        }
    }

    pub(super) fn report(&self) -> WorkerReport {
        WorkerReport {
            pid: self.pid().as_raw_pid().unsigned_abs(),
            started: timestamp(self.started),
            accepts: self.state == State::Serving,
        }
    }
}

/// Where lines of `plan` go.
pub(super) fn sink(plan: &Plan) -> Option<LogSink> {
    plan.access_log.as_ref().map(|log| log.sink.clone())
}

async fn send(link: Rc<Link>, mut messages: Receiver<(ToWorker, Vec<OwnedFd>)>, progress: Rc<Progress>) {
    while let Some((message, descriptors)) = messages.recv().await {
        if let Err(error) = link.send(&message, &borrowed(&descriptors)).await {
            // The end of the link is told by whoever hears it.
            tracing::debug!(error = &error as &dyn std::error::Error, "a worker was not told");
            return;
        }
        progress.untold.set(progress.untold.get().saturating_sub(1));
    }
}

async fn hear(
    id: WorkerId,
    link: Rc<Link>,
    ended: Option<OwnedFd>,
    deeds: Sender<(WorkerId, Deed)>,
    progress: Rc<Progress>,
) {
    let mut look = interval(LOOK);
    // Once its process has ended: the link may be somebody else's by then, who goes on.
    let mut last_words = None;
    loop {
        // First, so that no word is taken out of the link for which there is no room: an upgrade hands the link on.
        let Ok(room) = deeds.reserve().await else { return };
        let heard = match &mut last_words {
            None => tokio::select! {
                biased;
                _ = look.tick() => {
                    let has_ended = ended.as_ref().is_some_and(|process| has_ended(process, Duration::ZERO));
                    last_words = has_ended.then_some(LAST_WORDS);
                    continue;
                }
                heard = link.hear() => heard,
            },
            Some(0) => break,
            Some(left) => {
                *left -= 1;
                let Some(heard) = link.hear().now_or_never() else { break };
                heard
            }
        };
        let deed = match heard {
            Ok(Some(Ok(word))) => Deed::Said(word),
            Ok(Some(Err(mumbled))) => Deed::Mumbled(mumbled),
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a worker is not heard any more");
                break;
            }
        };
        room.send((id, deed));
    }
    progress.is_ending.set(true);
    let ending = match ended {
        // Waits for the process, which is about to end.
        Some(process) => spawn_blocking(move || reap(&process)).await.unwrap_or(Ending::LetGo),
        None => Ending::Thread,
    };
    deeds.send((id, Deed::Ended(ending))).await.ok();
}

/// Waits for the process at most for `within`.
fn has_ended(process: &OwnedFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).expect("a few seconds fit");
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&within)), Ok(1))
}

/// The status of a process that has closed its link; one that goes on without it is killed.
pub(super) fn reap(process: &OwnedFd) -> Ending {
    let in_order = has_ended(process, GRACE);
    if !in_order && let Err(error) = pidfd_send_signal(process, Signal::KILL) {
        tracing::debug!(error = &io::Error::from(error) as &dyn std::error::Error, "a worker cannot be killed");
    }
    has_ended(process, GRACE);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match waitid(WaitId::PidFd(process.as_fd()), options) {
        Ok(Some(status)) if in_order => of(&status),
        _ => Ending::LetGo,
    }
}

fn of(status: &WaitIdStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Ending::Status(status),
        (None, Some(signal)) => Ending::Killed(signal),
        (None, None) => Ending::LetGo,
    }
}

/// Begins the process of a worker or an agent: the program that we are, whatever is at its path by now.
pub(super) fn spawn(what: &str, link: OwnedFd) -> io::Result<Pid> {
    let child = Command::new(OURSELVES)
        .arg0("vestibule")
        .arg(what)
        .stdin(Stdio::from(link))
        .current_dir("/")
        // What the configuration takes from the environment may be secret; a worker has no use for it.
        .env_clear()
        .envs(PASSED_ON.iter().filter_map(|name| Some((name, env::var_os(name)?))))
        .env("GLIBC_TUNABLES", COPY_BY_VECTORS)
        .spawn()?;
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(id.expect("ids of processes are positive and fit"))
}

/// The program of this process, even where another one has taken its place on the disk.
pub(super) const OURSELVES: &str = "/proc/self/exe";
/// On AMD's Zen 3 and 4, `rep movsb` copies at a twentieth of its speed where the target is a few bytes further into its page than
/// the source into its own, as with the plaintext of a TLS record, which is written behind its header. The C library uses it
/// for what is large before glibc 2.40 (sourceware bug 30994).
const COPY_BY_VECTORS: &str = "glibc.cpu.x86_rep_movsb_threshold=0x10000000";
/// What of the environment a worker has a use for: events, time zone, resolver.
const PASSED_ON: &[&str] = &[
    "VESTIBULE_LOG",
    "VESTIBULE_LOG_FORMAT",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NO_COLOR",
    "TZ",
    "LANG",
    "LC_ALL",
    "LOCALDOMAIN",
    "RES_OPTIONS",
];
/// What ends a worker that does not end by itself.
const SIGNALS: &[(Signal, &str)] = &[
    (Signal::KILL, "SIGKILL: by hand, or by the system for want of memory"),
    (Signal::ABORT, "SIGABRT: it could not go on, most often for want of memory"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::BUS, "SIGBUS"),
    (Signal::ILL, "SIGILL"),
    (Signal::SYS, "SIGSYS: it made a system call that no worker has a use for"),
    (Signal::TERM, "SIGTERM"),
];
/// What a worker may be behind with: more than it is ever asked for places at once.
const MESSAGES: usize = 16_384;
/// How often it is looked whether a process lives that says nothing: its end is most often seen by that of the link.
const LOOK: Duration = Duration::from_secs(1);
/// What is heard of a process after its end: more than a link holds.
const LAST_WORDS: u32 = 4096;
/// How long a process may take to end once it has closed its link.
const GRACE: Duration = Duration::from_secs(2);
