//! Another program in our place: same pid, same sockets with what waits in them, same workers.
//!
//! The keeper writes down what it holds, puts that and every descriptor into a socket, and lets the program file that
//! is on the disk now take over its process (`execve(2)`) with that socket as standard input. Workers notice nothing:
//! their links are among the descriptors. The new program begins a worker of its own, and the others leave once it
//! serves. If it does not, the new program hands everything back to the old one, whose file it was given open.

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{self, Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::{io::Errno, process::Pid};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::{
    super::{Options, ServeError, history::History, link::Link, message::borrowed, signal_mask, signals::Signal},
    Event, Keeper, Missed, STOPPING, State, WorkerId,
    backends::{Backends, LeftBackends},
    event, watched,
    workers::{OURSELVES, Worker, sink},
};
use crate::{
    admin::{AdminSecrets, Order, Refusal},
    config::{self, Plan, Source},
    keeper::{
        Provisions,
        secrets::UserFiles,
        sockets::{SocketList, Sockets},
        user::User,
    },
    telemetry::chain,
    tls::{CertificateMaterial, ClientAuthorities, TicketKeys},
};

/// The form of [`Inheritance`]: a program says before it takes over whether it reads it.
pub(in super::super) const FORM: u32 = 2;

/// What one program leaves to the next; descriptors come in the order of the fields.
#[derive(Serialize, Deserialize)]
struct Inheritance {
    /// The configuration in force.
    text: String,
    generation: u64,
    history: History,
    refused: Option<Refusal>,
    crashes: u64,
    tickets: TicketKeys,
    certificates: Vec<CertificateMaterial>,
    /// Of a program before this one that knows of none.
    #[serde(default)]
    client_authorities: ClientAuthorities,
    #[serde(default)]
    users: UserFiles,
    #[serde(default)]
    admin: Option<AdminSecrets>,
    user: Option<User>,
    program: PathBuf,
    started: SystemTime,
    /// What the program before was begun with.
    arguments: Vec<OsString>,
    sockets: SocketList,
    workers: Vec<LeftWorker>,
    next_worker: WorkerId,
    wants: VecDeque<(WorkerId, String)>,
    /// What came and was not done any more.
    later: Vec<Later>,
    /// Whom to tell how it went.
    asked_by: Option<(WorkerId, u32)>,
    /// On the way back: why the other program did not do.
    returned: Option<String>,
    /// On the way there: whether the old program's file comes along, to go back to.
    way_back: bool,
    /// Their descriptors come before the way back.
    #[serde(default)]
    backends: LeftBackends,
}

#[derive(Serialize, Deserialize)]
struct LeftWorker {
    id: WorkerId,
    pid: i32,
    started: SystemTime,
    state: State,
    held: BTreeMap<String, u32>,
    /// A [`Plan`], which a later program may not be able to read.
    begun_with: Option<serde_json::Value>,
}

/// What waits for the next program.
#[derive(Serialize, Deserialize)]
enum Later {
    Signal(Signal),
    Changed(Vec<PathBuf>),
    Order(WorkerId, u32, Order),
}

impl Keeper {
    /// Lets the program that is on the disk now take over. Does not return where it does.
    ///
    /// # Errors
    ///
    /// Why there is no upgrade; everything is as it was.
    pub(super) async fn upgrade(&mut self, asked_by: Option<(WorkerId, u32)>) -> Result<(), String> {
        if self.options.single {
            return Err("with --single there is nobody to serve meanwhile: restart instead".to_owned());
        }
        if self.serving_worker().is_none() {
            return Err("no worker serves at present; try again when one does".to_owned());
        }
        if self.drained.is_some() {
            return Err("a drain is under way, and vestibule stops after it".to_owned());
        }
        let program = self.program.clone();
        self.try_out(&program).await?;
        // First who asks for commands, so that there is an end of them.
        self.end_agent().await;
        if let Err(why) = self.hooks_ended().await {
            self.assign();
            return Err(why);
        }
        tracing::info!(program = %program.display(), "upgrade: the program on the disk takes over");
        self.manager.reloading();
        let error = self.hand_over(&program, asked_by, None).await;
        self.manager.ready(self.generation, self.refused.as_ref());
        Err(format!("cannot hand over to {}: {error}", program.display()))
    }

    /// Asks `program` whether it could take over: whether it runs, reads the configuration, and knows [`FORM`].
    async fn try_out(&mut self, program: &Path) -> Result<(), String> {
        let cannot = |why: &str| format!("{} cannot take over: {why}", program.display());
        if let Some(why) = config::untrusted(program) {
            return Err(cannot(&why));
        }
        let answer = tokio::process::Command::new(program)
            .args(&self.arguments)
            .arg("--takeover")
            .arg(FORM.to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let answer = self.meanwhile(Instant::now() + TRIAL, answer).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| cannot(&error.to_string()))?,
            Err(Missed::Late) => return Err(cannot(&format!("it says nothing within {TRIAL:?}"))),
            Err(Missed::Stopping) => return Err(STOPPING.to_owned()),
        };
        let said = String::from_utf8_lossy(&answer.stderr);
        match answer.status.code() {
            Some(0) if answer.stdout == TAKES_OVER => Ok(()),
            Some(0) => Err(cannot("it does not say that it would")),
            _ => Err(cannot(&format!("{}: {}", answer.status, said.trim()))),
        }
    }

    /// Becomes `program`; answers why not.
    async fn hand_over(
        &mut self,
        program: &Path,
        asked_by: Option<(WorkerId, u32)>,
        returned: Option<String>,
    ) -> io::Error {
        signal_mask::hold();
        // It begins where it was, with the program that takes over.
        self.end_agent().await;
        self.come_to_rest().await;
        // From here on nothing is waited for, so that nothing is taken in that would not be handed on.
        let error = if self.is_told_to_stop() {
            io::Error::other(STOPPING)
        } else {
            self.become_now(program, asked_by, returned)
        };
        signal_mask::release();
        self.assign();
        error
    }

    /// Waits until nothing is half done: workers have taken what they were told, and what they said was taken note of.
    async fn come_to_rest(&mut self) {
        let deadline = Instant::now() + REST;
        loop {
            // A turn of the runtime, by which signals that were caught before come in.
            sleep(TURN).await;
            for signal in self.signals.come() {
                self.defer(Event::Signal(signal));
            }
            while let Ok(files) = self.changes.try_recv() {
                self.defer(Event::Changed(files));
            }
            while let Ok((worker, deed)) = self.deeds.try_recv() {
                match event(worker, deed) {
                    Event::Deed(worker, deed) => self.note(worker, deed),
                    later => self.defer(later),
                }
            }
            while let Ok((id, deed)) = self.backends.deeds.try_recv() {
                self.note_instance(id, deed);
            }
            // One that stands still is not waited for.
            if self.workers.iter().all(Worker::is_at_rest) || Instant::now() >= deadline {
                return;
            }
        }
    }

    fn become_now(&self, program: &Path, asked_by: Option<(WorkerId, u32)>, returned: Option<String>) -> io::Error {
        let handed = || {
            let way_back = returned.is_none();
            let (sockets, mut descriptors) = self.sockets.leave()?;
            for worker in &self.workers {
                descriptors.push(worker.link()?);
            }
            let (backends, of_backends) = self.backends.leave()?;
            descriptors.extend(of_backends);
            if way_back {
                descriptors.push(fs::File::open(OURSELVES)?.into());
            }
            let inheritance = Inheritance {
                text: self.history.text().unwrap_or_default().to_owned(),
                generation: self.generation,
                history: self.history.clone(),
                refused: self.refused.clone(),
                crashes: self.crashes,
                tickets: self.tickets.clone(),
                certificates: self.certificates.iter().map(|material| CertificateMaterial::clone(material)).collect(),
                client_authorities: self.client_authorities.clone(),
                users: self.users.clone(),
                admin: self.admin.clone(),
                user: self.user.clone(),
                program: self.program.clone(),
                started: self.started,
                arguments: self.arguments.clone(),
                sockets,
                workers: self.workers.iter().map(leave).collect(),
                next_worker: self.next_worker,
                wants: self.wants.clone(),
                later: self.deferred.iter().filter_map(later).collect(),
                asked_by,
                returned,
                way_back,
                backends,
            };
            leave_at_stdin(&inheritance, &descriptors)
        };
        match handed() {
            Ok(stdin) => become_program(program, &self.arguments, stdin),
            Err(error) => error,
        }
    }

    /// Takes over from the program that was this process before: at its standard input is what it left.
    ///
    /// Where that cannot be, everything goes back to the program before.
    ///
    /// # Errors
    ///
    /// There is no going back either.
    pub(in super::super) async fn take_over(source: Source, options: Options) -> Result<Self, ServeError> {
        let unreadable = |error: &dyn std::error::Error| ServeError::Inheritance(error.to_string());
        let link = Link::from_stdin().map_err(ServeError::System)?;
        let received = link.receive::<String>().await.map_err(|error| unreadable(&error))?;
        let (text, descriptors) = received.ok_or_else(|| ServeError::Inheritance("nothing was left".to_owned()))?;
        let text = Zeroizing::new(text);
        let left: Inheritance = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
        let asked_by = left.asked_by;
        // Until we serve, what was left is kept as it was.
        let kept =
            descriptors.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>().map_err(ServeError::System)?;
        let returned = left.returned.clone();
        let mut keeper = match Self::inherit(source, options, left, descriptors.into_iter()) {
            Ok(keeper) => keeper,
            Err(error) => return Err(go_back(&text, kept, error)),
        };
        let outcome = match returned {
            // The other program's doing; the workers of this one serve still.
            Some(why) => keeper.provide().and(Err(why)),
            None => keeper.succeed().await,
        };
        if let Err(why) = &outcome {
            tracing::error!("not upgraded: {why}");
            if let Some(before) = keeper.before.take() {
                let error = keeper.hand_over(&path_of(&before), asked_by, Some(why.clone())).await;
                tracing::error!(error = &error as &dyn std::error::Error, "cannot go back to the program before");
            }
        } else {
            tracing::info!(version = env!("CARGO_PKG_VERSION"), "upgraded");
        }
        keeper.before = None;
        if let Some((worker, id)) = asked_by {
            let version = env!("CARGO_PKG_VERSION");
            keeper.answer(worker, id, outcome.map(|()| format!("upgraded: vestibule {version} serves")));
        }
        Ok(keeper)
    }

    /// A keeper that holds what was left, with the workers of before.
    fn inherit(
        source: Source,
        options: Options,
        left: Inheritance,
        mut descriptors: impl Iterator<Item = OwnedFd>,
    ) -> Result<Self, ServeError> {
        // Standard input has done its part.
        let null = fs::File::open("/dev/null").map_err(ServeError::System)?;
        rustix::stdio::dup2_stdin(&null).map_err(|error| ServeError::System(error.into()))?;
        let sockets = Sockets::inherit(left.sockets, &mut descriptors).map_err(ServeError::System)?;
        // It is in force: what has become of the files that it names is the matter of the next reload.
        let plan = config::check_text(&source, &left.text, &[])?;
        let mut keeper = Self::new(source, options, plan, left.user, sockets, left.history, left.tickets)?;
        keeper.certificates = left.certificates.into_iter().map(Arc::new).collect();
        keeper.client_authorities = left.client_authorities;
        keeper.users = left.users;
        keeper.admin = left.admin;
        keeper.generation = left.generation;
        keeper.refused = left.refused;
        keeper.crashes = left.crashes;
        keeper.program = left.program;
        keeper.started = left.started;
        keeper.arguments = left.arguments;
        keeper.next_worker = left.next_worker;
        keeper.wants = left.wants;
        keeper.deferred = left.later.into_iter().map(Event::from).collect();
        for worker in left.workers {
            keeper.adopt(worker, &mut descriptors).map_err(ServeError::System)?;
        }
        keeper.backends =
            Backends::inherit(left.backends, &keeper.plan, &mut descriptors).map_err(ServeError::System)?;
        keeper.before = if left.way_back { descriptors.next() } else { None };
        Ok(keeper)
    }

    /// Goes on with a worker of before, whose link is the next of `descriptors`.
    fn adopt(&mut self, left: LeftWorker, descriptors: &mut impl Iterator<Item = OwnedFd>) -> io::Result<()> {
        let missing = || io::Error::other("fewer descriptors were left than workers");
        let process = Pid::from_raw(left.pid).ok_or_else(missing)?;
        let link = descriptors.next().ok_or_else(missing)?;
        let begun_with = left.begun_with.and_then(|plan| serde_json::from_value::<Plan>(plan).ok());
        let log = begun_with.as_ref().and_then(sink);
        let adopted = Worker::adopt(left.id, process, link, &self.deeds_sender, left.started, begun_with, log);
        let mut worker = match adopted {
            Ok(worker) => worker,
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {
                tracing::error!(pid = left.pid, "a worker has ended while another program took over");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        worker.state = left.state;
        worker.held = left.held;
        self.workers.push(worker);
        Ok(())
    }

    /// Opens what the plan in force asks for, and takes note of it.
    fn provide(&mut self) -> Result<Provisions, String> {
        let provisions = self.gather_again().map_err(|faults| faults.to_string())?;
        (self.log, self.errors) = watched(&self.plan, &provisions, self.user.as_ref());
        self.write_errors();
        Ok(provisions)
    }

    /// Begins a worker of this program beside those there are.
    async fn succeed(&mut self) -> Result<(), String> {
        let provisions = self.provide()?;
        let plan = self.plan.clone();
        self.start_successor(self.generation, &plan, provisions).await
    }
}

/// Gives everything back to the program before, as it was left; answers why that cannot be.
fn go_back(text: &str, mut descriptors: Vec<OwnedFd>, why: ServeError) -> ServeError {
    let Ok(mut left) = serde_json::from_str::<Inheritance>(text) else { return why };
    let Some(before) = descriptors.pop().filter(|_| left.way_back) else { return why };
    tracing::error!(error = &why as &dyn std::error::Error, "cannot take over; the program before goes on");
    signal_mask::hold();
    left.way_back = false;
    left.returned = Some(chain(&why));
    match leave_at_stdin(&left, &descriptors) {
        Ok(stdin) => ServeError::System(become_program(&path_of(&before), &left.arguments, stdin)),
        Err(error) => ServeError::System(error),
    }
}

/// What `inheritance` says and `descriptors`, in a socket that is to be the standard input of a program.
fn leave_at_stdin(inheritance: &Inheritance, descriptors: &[OwnedFd]) -> io::Result<OwnedFd> {
    let (ours, theirs) = Link::pair()?;
    let text = Zeroizing::new(serde_json::to_string(inheritance)?);
    let descriptors = borrowed(descriptors);
    // A few packets, which the socket holds until they are read on the other side of execve.
    ours.send_now(&*text, &descriptors).map_err(io::Error::other)?;
    Ok(theirs)
}

/// Lets `program` take over this process; answers why not.
fn become_program(program: &Path, arguments: &[OsString], stdin: OwnedFd) -> io::Error {
    Command::new(program)
        .arg0(env::args_os().next().unwrap_or_else(|| "vestibule".into()))
        .args(arguments)
        .arg("--takeover")
        .stdin(Stdio::from(stdin))
        .exec()
}

/// A program that is open, and may have no other name any more.
fn path_of(program: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", program.as_raw_fd()).into()
}

fn leave(worker: &Worker) -> LeftWorker {
    LeftWorker {
        id: worker.id,
        pid: worker.pid().as_raw_pid(),
        started: worker.started,
        state: worker.state,
        held: worker.held.clone(),
        begun_with: worker.begun_with.as_ref().and_then(|plan| serde_json::to_value(plan).ok()),
    }
}

fn later(event: &Event) -> Option<Later> {
    match event {
        Event::Signal(signal) => Some(Later::Signal(*signal)),
        Event::Changed(files) => Some(Later::Changed(files.clone())),
        Event::Order(worker, id, order) => Some(Later::Order(*worker, *id, *order)),
        // The agent has been ended before, and what came of commands is taken note of at once.
        Event::Deed(..) | Event::Agent(..) | Event::Deployed(..) | Event::Instance(..) | Event::Time => None,
    }
}

impl From<Later> for Event {
    fn from(later: Later) -> Self {
        match later {
            Later::Signal(signal) => Self::Signal(signal),
            Later::Changed(files) => Self::Changed(files),
            Later::Order(worker, id, order) => Self::Order(worker, id, order),
        }
    }
}

/// The name that this program was begun by: where it is a link to this version, it may be one to another later.
pub(super) fn program() -> io::Result<PathBuf> {
    let identity = |file: &Path| fs::metadata(file).map(|found| (found.dev(), found.ino())).ok();
    let named = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let candidates: Vec<_> = if named.components().count() > 1 {
        path::absolute(&named).into_iter().collect()
    } else {
        env::var_os("PATH").iter().flat_map(env::split_paths).map(|folder| folder.join(&named)).collect()
    };
    let ours = identity(Path::new(OURSELVES));
    match candidates.into_iter().find(|file| file.is_absolute() && identity(file) == ours) {
        Some(found) => Ok(found),
        None => env::current_exe(),
    }
}

/// What we were begun with, but for what an upgrade added.
pub(super) fn own_arguments() -> Vec<OsString> {
    env::args_os().skip(1).filter(|argument| argument != "--takeover").collect()
}

/// What a program says that would take over.
pub(in super::super) const TAKES_OVER: &[u8] = b"takes over\n";
/// How long what is under way between the processes may take before another program takes over.
const REST: Duration = Duration::from_secs(1);
const TURN: Duration = Duration::from_millis(1);
/// How long a program may take to say so.
const TRIAL: Duration = Duration::from_secs(10);
