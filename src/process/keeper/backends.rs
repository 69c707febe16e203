//! Programs of ours as the keeper looks after them: begun before there is traffic, begun again when they end, replaced one
//! instance at a time, and ended with us.
//!
//! The keeper connects nowhere: whether an instance answers, hangs, or has requests left is said by the workers, in words
//! that name its number. Each program has a guard ([`crate::backends::guard`]), which ends it when we are gone. An upgrade hands
//! all of them on as they are: the number of the guard, its line, and the output.
//!
//! What is to be done is always the same ([`Keeper::tend`]): as many instances as the plan wants, none of which is outdated.
//! Restarts, rolls, a plan with other instances and the end of a backend all come out of that.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    env,
    ffi::OsString,
    fmt, fs, io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt, chown, lchown},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::unix::pipe,
    sync::mpsc::{Receiver, Sender, channel},
    task::{spawn_blocking, spawn_local},
    time::{Instant, sleep_until, timeout_at},
};
use uzers::os::unix::UserExt;

use super::{
    super::message::ToWorker,
    Keeper, Signal as Told, State as WorkerState, WorkerId,
    usage::{self, Meter},
    workers::{OURSELVES, reap},
};
use crate::{
    admin::{BackendReport, InstanceReport, tag, timestamp},
    backends::{
        Instance as Known, InstanceState as State,
        guard::{BEGUN, ENDED, Guarded, KILL, STOP, environment_file},
    },
    config::{BackendPlan, EndpointAddress, Plan},
    keeper::user::User,
};

/// All programs of ours.
pub(super) struct Backends {
    programs: BTreeMap<String, Program>,
    /// The number of the last instance.
    last: u32,
    /// Where their sockets are, once there are any.
    folder: Option<PathBuf>,
    pub(super) deeds: Receiver<(u32, InstanceDeed)>,
    sender: Sender<(u32, InstanceDeed)>,
    next_look: Instant,
    /// None is begun any more.
    is_ending: bool,
}

/// A program by its name in the configuration.
#[derive(Default)]
struct Program {
    /// `None`: it is not in the configuration any more.
    plan: Option<BackendPlan>,
    instances: Vec<Instance>,
    /// Not before this is another one begun.
    restart: Option<Instant>,
    /// Rounds in a row whose instances ended soon after their beginning.
    quick_ends: u32,
    /// When the last of them was counted: what has been begun before then is of the same round.
    counted: Option<Instant>,
    /// When an order last made an end of the pauses.
    pardoned: Option<Instant>,
    restarts: u64,
    last_exit: Option<String>,
    /// Who waits for all instances to be replaced.
    asked: Vec<(WorkerId, u32, Instant)>,
    /// Why one that was to take another one's place does not.
    refused: Option<String>,
    /// Instances that were replaced because a worker said that they hang.
    hung: Budget,
    /// It is told that there were too many of them.
    left_alone: bool,
    /// Orders that a worker brought.
    ordered: Budget,
}

/// What is done for a word of a worker's, which may have been taken over: so often in [`BUDGETED`], and no more.
#[derive(Default)]
struct Budget(VecDeque<Instant>);

impl Budget {
    /// Whether it may be done once more, of `most`; then it is counted.
    fn take(&mut self, most: usize, now: Instant) -> bool {
        self.0.retain(|at| now.duration_since(*at) < BUDGETED);
        let may = self.0.len() < most;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

struct Instance {
    id: u32,
    guard: Pid,
    /// The leader of its group and its session.
    program: Option<Pid>,
    line: UnixStream,
    output: OwnedFd,
    address: EndpointAddress,
    state: State,
    /// Why it is to be replaced.
    outdated: Option<Reason>,
    /// While it lingers.
    lingers: Option<Lingers>,
    plan: BackendPlan,
    started: SystemTime,
    begun: Instant,
    /// When it is told to end while it drains.
    deadline: Option<Instant>,
    /// Workers that have nothing left in it.
    drained: HashSet<WorkerId>,
    /// Requests by worker.
    served: HashMap<WorkerId, u32>,
    usage: Usage,
}

/// An instance that stays for clients that were there before it was replaced.
#[derive(Clone, Copy)]
struct Lingers {
    since: SystemTime,
    begun: Instant,
    /// When one of them asked last, as far as is known.
    asked: Instant,
}

/// What an instance uses.
#[derive(Clone, Copy, Default)]
struct Usage {
    meter: Meter,
    /// Since when it has used more of the processors than its limit.
    busy: Option<Instant>,
    is_told: bool,
    /// It is told that nothing can be known of it.
    is_unseen: bool,
}

/// Why an instance is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Reason {
    Asked,
    Plan,
    Hung,
    Memory,
    Requests,
    Age,
    Cpu,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "`vestibule restart`",
            Self::Plan => "its configuration is another one",
            Self::Hung => "it does not answer any more (`hung`)",
            Self::Memory => "it has more memory than `limits.memory`",
            Self::Requests => "it has had the requests of `limits.requests`",
            Self::Age => "it is as old as `limits.age`",
            Self::Cpu => "it has used more than `limits.cpu` for `limits.cpu_time`",
        })
    }
}

/// What an instance did.
#[derive(Debug)]
pub(super) enum InstanceDeed {
    /// Its number among processes.
    Begun(i32),
    /// It is no more, and how it ended, if its guard has said it.
    Ended(Option<String>),
}

/// An instance for the next program; its line and its output come along.
#[derive(Serialize, Deserialize)]
pub(super) struct LeftInstance {
    backend: String,
    id: u32,
    guard: i32,
    program: Option<i32>,
    address: EndpointAddress,
    state: State,
    outdated: Option<Reason>,
    /// Since when it lingers, for how long, and for how long it was not asked.
    lingers: Option<(SystemTime, Duration, Duration)>,
    started: SystemTime,
    age: Duration,
    /// A [`BackendPlan`], which a later program may not be able to read.
    plan: serde_json::Value,
    restarts: u64,
}

/// All that is left to the next program, besides descriptors.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct LeftBackends {
    instances: Vec<LeftInstance>,
    last: u32,
    folder: Option<PathBuf>,
}

impl Default for Backends {
    fn default() -> Self {
        let (sender, deeds) = channel(DEEDS);
        Self {
            programs: BTreeMap::new(),
            last: 0,
            folder: None,
            deeds,
            sender,
            next_look: Instant::now(),
            is_ending: false,
        }
    }
}

impl Backends {
    /// When there is something to be done.
    pub(super) fn due(&self) -> Option<Instant> {
        let programs = self.programs.values().filter(|_| !self.is_ending);
        let due = |program: &Program, instance: &Instance| match instance.state {
            State::Starting => Some(instance.begun + instance.plan.ready_timeout),
            State::Lingering => Some(instance.lingers?.until(program.drain_sessions()?)),
            State::Draining => instance.deadline,
            State::Serving | State::Stopping => None,
        };
        let instances = programs
            .clone()
            .flat_map(|program| program.instances.iter().filter_map(move |instance| due(program, instance)));
        let asked = programs.clone().flat_map(|program| &program.asked).map(|(_, _, until)| *until);
        programs.filter_map(|program| program.restart).chain(instances).chain(asked).min()
    }

    /// Has no other instance begun from now on.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
    }

    /// As workers know them.
    pub(super) fn known(&self) -> Vec<Known> {
        let known = |(name, instance): (&String, &Instance)| Known {
            id: instance.id,
            backend: name.clone(),
            address: instance.address.clone(),
            state: instance.state,
            ready_path: instance.plan.ready_path.clone(),
            hung: instance.plan.hung,
            // By that it is known whether one that lingers is still asked.
            is_counted: instance.plan.limits.requests.is_some() || instance.state == State::Lingering,
        };
        let all = self
            .programs
            .iter()
            .flat_map(|(name, program)| program.instances.iter().map(move |instance| (name, instance)));
        all.map(known).collect()
    }

    pub(super) fn reports(&self) -> Vec<BackendReport> {
        let report = |(name, program): (&String, &Program)| BackendReport {
            name: name.clone(),
            instances: program.instances.iter().map(Instance::report).collect(),
            restarts: program.restarts,
            last_exit: program.last_exit.clone(),
            failing: program.quick_ends >= TOLD,
        };
        self.programs.iter().map(report).collect()
    }

    fn instance(&mut self, id: u32) -> Option<(&String, &mut Program, usize)> {
        self.programs.iter_mut().find_map(|(name, program)| {
            let position = program.instances.iter().position(|instance| instance.id == id)?;
            Some((name, program, position))
        })
    }

    /// Begins an instance of `name`.
    fn begin(&mut self, name: &str, backend: &BackendPlan, plan: &Plan) -> io::Result<Instance> {
        let user = user_of(backend, plan)?;
        self.last += 1;
        let id = self.last;
        let (address, place, socket) = if backend.has_port {
            // Free at this moment; whoever takes it before the program does costs it a start.
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            (EndpointAddress::Tcp { host: "127.0.0.1".to_owned(), port }, port.to_string(), None)
        } else {
            let socket = self.folder_of(name, user.as_ref(), plan)?.join(format!("{id}.sock"));
            let text = socket.to_str().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
            (EndpointAddress::Unix(socket.clone()), text, Some(socket))
        };
        let (key, variable) = if backend.has_port { ("{port}", "PORT") } else { ("{socket}", "SOCKET") };
        let guarded = Guarded {
            user: user.clone(),
            directory: backend.directory.clone(),
            signal: backend.stop_signal,
            patience: backend.stop_timeout,
            socket,
        };
        let home = match &user {
            Some(user) => uzers::get_user_by_uid(user.uid().as_raw()).map(|user| user.home_dir().into()),
            None => env::var_os("HOME"),
        };
        // What is said last counts.
        let mut environment = vec![("PATH".into(), env::var_os("PATH").unwrap_or_else(|| PATH.into()))];
        environment.extend(PASSED_ON.iter().filter_map(|name| Some((name.into(), env::var_os(name)?))));
        environment.extend(home.map(|home: OsString| ("HOME".into(), home)));
        environment.push((variable.into(), place.clone().into()));
        let own = backend.environment.iter();
        environment.extend(own.map(|(name, value)| (name.into(), value.expose().replace(key, &place).into())));
        let (line, theirs) = UnixStream::pair()?;
        let (output, written) = io::pipe()?;
        let guard = Command::new(OURSELVES)
            .arg0("vestibule")
            .args(["backend-guard", &serde_json::to_string(&guarded)?, "--"])
            .args(backend.command.iter().map(|argument| argument.replace(key, &place)))
            .stdin(environment_file(&environment)?)
            .stdout(OwnedFd::from(theirs))
            .stderr(written)
            .current_dir("/")
            // A Ctrl-C at our terminal is ours to pass on.
            .process_group(0)
            // That of the program is not for root to obey: it comes into force when its user has been become.
            .env_clear()
            .spawn()?;
        let guard = i32::try_from(guard.id()).ok().and_then(Pid::from_raw).expect("ids of processes fit");
        tracing::debug!(backend = name, instance = id, %address, "an instance is begun");
        self.listen_to(
            id,
            name,
            guard,
            line,
            output.into(),
            address,
            backend.clone(),
            SystemTime::now(),
            Duration::ZERO,
        )
    }

    #[allow(clippy::too_many_arguments, reason = "what an instance is, whoever has begun it")]
    fn listen_to(
        &self,
        id: u32,
        name: &str,
        guard: Pid,
        line: UnixStream,
        output: OwnedFd,
        address: EndpointAddress,
        plan: BackendPlan,
        started: SystemTime,
        age: Duration,
    ) -> io::Result<Instance> {
        let process = pidfd_open(guard, PidfdFlags::empty())?;
        line.set_nonblocking(true)?;
        let heard = tokio::net::UnixStream::from_std(line.try_clone()?)?;
        let told = pipe::Receiver::from_owned_fd(output.try_clone()?)?;
        // Both end with the instance: the last words of one that has ended are heard, too.
        spawn_local(hear(id, heard, process, self.sender.clone()));
        spawn_local(tell(name.to_owned(), id, told));
        let now = Instant::now();
        Ok(Instance {
            id,
            guard,
            program: None,
            line,
            output,
            address,
            state: State::Starting,
            outdated: None,
            lingers: None,
            plan,
            started,
            begun: now.checked_sub(age).unwrap_or(now),
            deadline: None,
            drained: HashSet::new(),
            served: HashMap::new(),
            usage: Usage::default(),
        })
    }

    /// The folder for the sockets of `name`: its user makes them, and the workers can go through.
    fn folder_of(&mut self, name: &str, user: Option<&User>, plan: &Plan) -> io::Result<PathBuf> {
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => private_folder()?,
        };
        self.folder = Some(folder.clone());
        let own = folder.join(name);
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if fs::metadata(&own)?.uid() == rustix::process::geteuid().as_raw() {
            // Before it is somebody else's: changing that takes more of root than giving it away.
            fs::set_permissions(&own, fs::Permissions::from_mode(0o750))?;
        }
        if let Some(user) = user {
            let group = User::find(&plan.user).map_err(io::Error::other)?.gid();
            chown(&own, Some(user.uid().as_raw()), Some(group.as_raw()))?;
        }
        Ok(own)
    }

    /// What there is to hand on, and the descriptors of it.
    pub(super) fn leave(&self) -> io::Result<(LeftBackends, Vec<OwnedFd>)> {
        let mut descriptors = Vec::new();
        let mut instances = Vec::new();
        for (name, program) in &self.programs {
            for instance in &program.instances {
                descriptors.push(instance.line.as_fd().try_clone_to_owned()?);
                descriptors.push(instance.output.try_clone()?);
                instances.push(LeftInstance {
                    backend: name.clone(),
                    id: instance.id,
                    guard: instance.guard.as_raw_pid(),
                    program: instance.program.map(Pid::as_raw_pid),
                    address: instance.address.clone(),
                    state: instance.state,
                    outdated: instance.outdated,
                    lingers: instance
                        .lingers
                        .map(|lingers| (lingers.since, lingers.begun.elapsed(), lingers.asked.elapsed())),
                    started: instance.started,
                    age: instance.begun.elapsed(),
                    plan: serde_json::to_value(&instance.plan)?,
                    restarts: program.restarts,
                });
            }
        }
        Ok((LeftBackends { instances, last: self.last, folder: self.folder.clone() }, descriptors))
    }

    /// Goes on with what the program before has left. An instance whose plan cannot be read any more is outdated.
    pub(super) fn inherit(
        left: LeftBackends,
        plan: &Plan,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> io::Result<Self> {
        let mut all = Self { last: left.last, folder: left.folder, ..Self::default() };
        for left in left.instances {
            let missing = || io::Error::other("fewer descriptors were left than instances have");
            let (line, output) = descriptors.next().zip(descriptors.next()).ok_or_else(missing)?;
            let guard = Pid::from_raw(left.guard).ok_or_else(missing)?;
            let program = all.programs.entry(left.backend.clone()).or_default();
            program.restarts = left.restarts;
            program.plan = plan.backends.get(&left.backend).cloned();
            let read = serde_json::from_value(left.plan).ok();
            // One that is to go, and whose terms nobody knows, goes by those of now.
            let Some(terms) = read.clone().or_else(|| program.plan.clone()) else { continue };
            let outdated = if read.is_none() { Some(Reason::Plan) } else { left.outdated };
            let (line, name) = (UnixStream::from(line), left.backend.as_str());
            let taken = all.listen_to(left.id, name, guard, line, output, left.address, terms, left.started, left.age);
            let mut instance = match taken {
                Ok(instance) => instance,
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => continue,
                Err(error) => return Err(error),
            };
            instance.program = left.program.and_then(Pid::from_raw);
            instance.outdated = outdated;
            instance.state = left.state;
            let ago = |age| {
                let now = Instant::now();
                now.checked_sub(age).unwrap_or(now)
            };
            instance.lingers =
                left.lingers.map(|(since, age, asked)| Lingers { since, begun: ago(age), asked: ago(asked) });
            if left.state == State::Draining {
                instance.deadline = Some(Instant::now() + instance.plan.drain);
            }
            all.programs.entry(left.backend).or_default().instances.push(instance);
        }
        Ok(all)
    }
}

impl Instance {
    fn is_current(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving)
    }

    fn is_well(&self) -> bool {
        self.state == State::Serving && self.outdated.is_none()
    }

    /// Has it end; its guard sees to it.
    fn stop(&mut self) {
        (self.state, self.lingers) = (State::Stopping, None);
        self.say(STOP);
    }

    fn say(&self, word: u8) {
        if let Err(error) = io::Write::write_all(&mut &self.line, &[word]) {
            // Its guard has ended, which comes to be known by itself.
            tracing::debug!(error = &error as &dyn std::error::Error, "the guard of an instance is not told");
        }
    }

    fn linger(&mut self) {
        self.state = State::Lingering;
        let now = Instant::now();
        self.lingers = Some(Lingers { since: SystemTime::now(), begun: now, asked: now });
    }

    fn drain(&mut self) {
        (self.state, self.lingers) = (State::Draining, None);
        self.deadline = Some(Instant::now() + self.plan.drain);
    }

    fn report(&self) -> InstanceReport {
        InstanceReport {
            id: self.id,
            pid: self.program.map_or(0, |program| program.as_raw_pid().unsigned_abs()),
            address: self.address.to_string(),
            state: self.state.name().to_owned(),
            started: timestamp(self.started),
            memory: self.usage.meter.memory,
            cpu: self.usage.meter.cpu,
            replaced_for: self.outdated.map(|reason| reason.to_string()),
            lingers_since: self.lingers.map(|lingers| timestamp(lingers.since)),
        }
    }

    /// The limit that it is beyond, if any.
    fn is_beyond(&self) -> Option<Reason> {
        let limits = &self.plan.limits;
        let served = || self.served.values().map(|count| u64::from(*count)).sum::<u64>();
        if limits.memory.is_some_and(|most| self.usage.meter.memory > most) {
            Some(Reason::Memory)
        } else if limits.requests.is_some_and(|most| served() >= u64::from(most)) {
            Some(Reason::Requests)
        } else if limits.age.is_some_and(|most| self.begun.elapsed() >= most) {
            Some(Reason::Age)
        } else if limits.cpu_restart && self.usage.is_told {
            Some(Reason::Cpu)
        } else {
            None
        }
    }
}

impl Keeper {
    /// Has the programs of the plan in force run, and no others.
    pub(super) fn run_backends(&mut self) {
        for (name, program) in &mut self.backends.programs {
            let plan = self.plan.backends.get(name);
            if program.plan.as_ref() == plan {
                continue;
            }
            program.plan = plan.cloned();
            (program.restart, program.quick_ends) = (None, 0);
            for instance in &mut program.instances {
                // How many there are to be is nobody's own matter, and how those before go that of the plan in force.
                let same = |plan: &BackendPlan| {
                    let BackendPlan { instances, drain_sessions, .. } = *plan;
                    *plan == BackendPlan { instances, drain_sessions, ..instance.plan.clone() }
                };
                if !plan.is_some_and(same) {
                    instance.outdated.get_or_insert(Reason::Plan);
                }
            }
        }
        for (name, plan) in &self.plan.backends {
            let program = self.backends.programs.entry(name.clone()).or_default();
            program.plan.get_or_insert_with(|| plan.clone());
        }
        self.tend_backends();
    }

    /// Does what is to be done about programs of ours.
    pub(super) fn tend_backends(&mut self) {
        if self.backends.is_ending {
            return;
        }
        let mut any = self.look_at_usage();
        for name in self.backends.programs.keys().cloned().collect::<Vec<_>>() {
            any |= self.tend(&name);
        }
        self.backends.programs.retain(|_, program| program.plan.is_some() || !program.instances.is_empty());
        if any {
            self.tell_instances();
        }
    }

    /// Brings the instances of `name` nearer to what they are to be; answers whether anything has changed.
    fn tend(&mut self, name: &str) -> bool {
        let now = Instant::now();
        let mut any = false;
        let workers: Vec<_> =
            self.workers.iter().filter(|worker| worker.state != WorkerState::GivenUp).map(|worker| worker.id).collect();
        let Some(program) = self.backends.programs.get_mut(name) else { return false };
        for position in 0..program.instances.len() {
            let instance = &mut program.instances[position];
            match instance.state {
                State::Starting if now >= instance.begun + instance.plan.ready_timeout => {
                    let why = format!("it was not ready within {:?} (`ready.timeout`)", instance.plan.ready_timeout);
                    instance.stop();
                    any = true;
                    let id = instance.id;
                    program.refused = Some(why.clone());
                    let begun = instance.begun;
                    program.failed(name, id, begun, &why, now);
                }
                State::Starting if instance.outdated.is_some() => {
                    instance.stop();
                    any = true;
                }
                State::Draining => {
                    let is_late = instance.deadline.is_some_and(|deadline| now >= deadline);
                    if is_late {
                        tracing::warn!(backend = name, instance = instance.id, drain = ?instance.plan.drain, "requests are left in an instance that ends");
                    }
                    if is_late || workers.iter().all(|worker| instance.drained.contains(worker)) {
                        instance.stop();
                        any = true;
                    }
                }
                _ => {}
            }
        }
        let wanted = program.plan.as_ref().map_or(0, |plan| plan.instances);
        let count = |program: &Program, state| program.instances.iter().filter(|one| one.state == state).count();
        let drain_sessions = program.drain_sessions();
        // More than enough serve, or none is wanted: the outdated go first, and the oldest of them.
        while count(program, State::Serving) > wanted {
            let serving = program.instances.iter_mut().filter(|instance| instance.state == State::Serving);
            if let Some(instance) = serving.min_by_key(|instance| (instance.outdated.is_none(), instance.begun)) {
                let is_of_before = matches!(instance.outdated, Some(Reason::Asked | Reason::Plan));
                if is_of_before && drain_sessions.is_some() {
                    instance.linger();
                } else {
                    instance.drain();
                }
                any = true;
            }
        }
        let lingering = |instance: &&mut Instance| instance.state == State::Lingering;
        for instance in program.instances.iter_mut().filter(lingering) {
            let until = instance.lingers.zip(drain_sessions).map(|(lingers, idle)| lingers.until(idle));
            if until.is_none_or(|until| now >= until) {
                tracing::info!(backend = name, instance = instance.id, "an instance stays no longer for its sessions");
                instance.drain();
                any = true;
            }
        }
        // However many restarts there are, the number of processes has a bound.
        while count(program, State::Lingering) > wanted {
            let oldest = program.instances.iter_mut().filter(lingering).min_by_key(|instance| instance.begun);
            oldest.into_iter().for_each(Instance::drain);
            any = true;
        }
        let lingering = count(program, State::Lingering);
        while wanted == 0 && count(program, State::Starting) > 0 {
            let starting = program.instances.iter_mut().find(|instance| instance.state == State::Starting);
            starting.into_iter().for_each(Instance::stop);
            any = true;
        }
        let is_outdated = |instance: &Instance| instance.is_current() && instance.outdated.is_some();
        let outdated = program.instances.iter().filter(|instance| is_outdated(instance)).count();
        let (serving, starting) = (count(program, State::Serving), count(program, State::Starting));
        let is_done = outdated == 0 && serving >= wanted;
        let late = program.asked.extract_if(.., |(_, _, until)| !is_done && *until <= now);
        let late: Vec<_> = late.map(|(worker, id, _)| (worker, id)).collect();
        let asked = if is_done { std::mem::take(&mut program.asked) } else { Vec::new() };
        // One more than wanted where another one is to go.
        let current = serving + starting;
        let missing = match wanted.saturating_sub(current) {
            0 if outdated > 0 && starting == 0 && current == wanted => 1,
            missing => missing,
        };
        // Those that end count: a worker that has been taken over can say what makes us begin others, without end.
        let room = (2 * wanted + 1).saturating_sub(program.instances.len());
        let is_lost = current < wanted || program.instances.iter().any(|one| one.outdated == Some(Reason::Hung));
        if missing > room && is_lost {
            // Nobody is served by what is missing, and somebody by what drains: that ends sooner.
            let drains = program.instances.iter_mut().filter(|instance| instance.state == State::Draining);
            if let Some(oldest) = drains.min_by_key(|instance| instance.begun) {
                oldest.stop();
            }
        }
        let missing = missing.min(room);
        if program.restart.is_none_or(|at| at <= now) {
            program.restart = None;
            if let Some(backend) = program.plan.clone() {
                for _ in 0..missing {
                    any = true;
                    match self.backends.begin(name, &backend, &self.plan) {
                        Ok(instance) => {
                            self.backends.programs.entry(name.to_owned()).or_default().instances.push(instance);
                        }
                        Err(error) => {
                            let why = format!("it cannot be begun: {error}");
                            let program = self.backends.programs.entry(name.to_owned()).or_default();
                            program.refused = Some(why.clone());
                            program.failed(name, 0, now, &why, now);
                            break;
                        }
                    }
                }
            }
        }
        for (worker, id) in late {
            let hint = "it goes on, and `vestibule status` says how far it is";
            self.answer(worker, id, Err(format!("{name}: not all are replaced within {ANSWERED:?}; {hint}")));
        }
        for (worker, id, _) in asked {
            let before = match drain_sessions.filter(|_| lingering > 0) {
                Some(idle) => {
                    format!("{lingering} of before stay for their sessions, until nobody has asked for {idle:?}")
                }
                None => "those before end what they began".to_owned(),
            };
            self.answer(worker, id, Ok(format!("{name}: {wanted} new serving; {before}")));
        }
        let refused = self.backends.programs.get_mut(name).map(Program::take_refused).unwrap_or_default();
        for (worker, id, why) in refused {
            self.answer(worker, id, Err(format!("{name}: the new one failed ({why}); those before serve on")));
        }
        any
    }

    /// Tells workers which instances there are.
    fn tell_instances(&self) {
        let known = self.backends.known();
        for worker in &self.workers {
            worker.tell(ToWorker::Instances(known.clone()));
        }
        self.report();
    }

    /// Takes note of what an instance did.
    pub(super) fn note_instance(&mut self, id: u32, deed: InstanceDeed) {
        let is_ending = self.backends.is_ending;
        let Some((name, program, position)) = self.backends.instance(id) else { return };
        match deed {
            InstanceDeed::Begun(pid) => program.instances[position].program = Pid::from_raw(pid),
            InstanceDeed::Ended(how) => {
                let instance = program.instances.remove(position);
                if let (None, Some(group)) = (&how, instance.program) {
                    // Whoever has killed its guard: the kernel has killed the program, and not what it began.
                    kill_process_group(group, Signal::KILL).ok();
                }
                let how = how.unwrap_or_else(|| "its guard has ended".to_owned());
                match instance.state {
                    State::Stopping => tracing::info!(backend = %name, instance = id, how, "an instance has ended"),
                    _ if is_ending => {}
                    State::Lingering | State::Draining => {
                        tracing::warn!(backend = %name, instance = id, how, "an instance has ended before it had drained");
                    }
                    State::Starting | State::Serving => {
                        let name = name.clone();
                        let lived = instance.begun.elapsed();
                        if lived >= QUICK {
                            program.quick_ends = 0;
                        }
                        if instance.outdated.is_none() && instance.state == State::Starting {
                            program.refused = Some(how.clone());
                        }
                        program.failed(&name, id, instance.begun, &how, Instant::now());
                    }
                }
                drop(instance);
                if !is_ending {
                    self.tend_backends();
                    self.tell_instances();
                }
                return;
            }
        }
        self.report();
    }

    /// A worker says that an instance answers.
    pub(super) fn instance_up(&mut self, id: u32) {
        let Some((name, program, position)) = self.backends.instance(id) else { return };
        let instance = &mut program.instances[position];
        if instance.state != State::Starting {
            return;
        }
        instance.state = State::Serving;
        let took = instance.begun.elapsed();
        tracing::info!(backend = %name, instance = id, address = %instance.address, ?took, "an instance is ready");
        self.tell_instances();
        self.tend_backends();
    }

    /// A worker says that an instance does not answer any more.
    pub(super) fn instance_hung(&mut self, id: u32) {
        let Some((name, program, position)) = self.backends.instance(id) else { return };
        let instance = &mut program.instances[position];
        if instance.state == State::Lingering {
            tracing::warn!(backend = %name, instance = instance.id, address = %instance.address, "an instance that stayed for its sessions hangs; it ends");
            instance.drain();
            return self.tell_instances();
        }
        if instance.state != State::Serving || instance.outdated == Some(Reason::Hung) {
            return;
        }
        let most = HUNG * instance.plan.instances;
        if !program.hung.take(most, Instant::now()) {
            if !std::mem::replace(&mut program.left_alone, true) {
                tracing::error!(backend = %name, instance = id, address = %instance.address, "an instance hangs again, after {most} that were replaced for that within {BUDGETED:?}: it is left alone until they are longer ago");
            }
            return;
        }
        program.left_alone = false;
        tracing::error!(backend = %name, instance = id, address = %instance.address, "an instance hangs; another one takes its place");
        instance.outdated = Some(Reason::Hung);
        program.restarts += 1;
        program.last_exit = Some(Reason::Hung.to_string());
        // One that hangs soon, again and again, is not replaced in a loop.
        if program.instances[position].begun.elapsed() < QUICK {
            program.quick_end(program.instances[position].begun, Instant::now());
        }
        let others = program.instances.iter().filter(|other| other.id != id && other.state != State::Stopping);
        if others.clone().count() > 0 && others.clone().all(Instance::is_well) {
            // There are others to ask meanwhile. Where they hang as well, or are being replaced, a new one comes first.
            program.instances[position].drain();
        }
        self.tend_backends();
        self.tell_instances();
    }

    /// A worker has nothing left in an instance.
    pub(super) fn instance_drained(&mut self, worker: WorkerId, id: u32) {
        let Some((_, program, position)) = self.backends.instance(id) else { return };
        let instance = &mut program.instances[position];
        if instance.state == State::Draining && instance.drained.insert(worker) {
            self.tend_backends();
        }
    }

    /// A worker has sent so many requests to an instance.
    pub(super) fn instance_served(&mut self, worker: WorkerId, id: u32, count: u32) {
        if let Some((_, program, position)) = self.backends.instance(id) {
            let instance = &mut program.instances[position];
            instance.served.insert(worker, count);
            if let Some(lingers) = &mut instance.lingers {
                lingers.asked = Instant::now();
            }
        }
    }

    /// Replaces all instances of the backend with this tag; whoever asked by `worker` is answered when that is done.
    pub(super) fn restart_backend(&mut self, worker: WorkerId, id: u32, backend: u32) {
        let Some(name) = self.plan.backends.keys().find(|name| tag(name) == backend).cloned() else {
            let names: Vec<_> = self.plan.backends.keys().map(|name| format!("`{name}`")).collect();
            let there_are =
                if names.is_empty() { "there is none".to_owned() } else { format!("there is {}", names.join(", ")) };
            return self.answer(worker, id, Err(format!("no backend has this name; {there_are}")));
        };
        let program = self.backends.programs.entry(name.clone()).or_default();
        if program.asked.len() >= ASKED {
            return self.answer(worker, id, Err("it is being restarted already".to_owned()));
        }
        if !program.ordered.take(ORDERS, Instant::now()) {
            let why =
                format!("{name}: it was restarted {ORDERS} times within {BUDGETED:?}; the next order is taken later");
            return self.answer(worker, id, Err(why));
        }
        tracing::info!(backend = %name, "all instances are replaced, as was asked for");
        program.refused = None;
        // What has failed before is tried again; orders without end change nothing about the pauses.
        if program.pardoned.is_none_or(|last| last.elapsed() >= BETWEEN_PARDONS) {
            (program.quick_ends, program.restart, program.pardoned) = (0, None, Some(Instant::now()));
        }
        program.asked.push((worker, id, Instant::now() + ANSWERED));
        for instance in program.instances.iter_mut().filter(|instance| instance.is_current()) {
            instance.outdated.get_or_insert(Reason::Asked);
        }
        self.tend_backends();
    }

    /// Looks at what instances use, from time to time, and which are beyond a limit; answers whether one drains for that.
    fn look_at_usage(&mut self) -> bool {
        let now = Instant::now();
        if now < self.backends.next_look || self.backends.programs.is_empty() {
            return false;
        }
        let mut any = false;
        self.backends.next_look = now + BETWEEN_LOOKS;
        let used = usage::by_session(&usage::processes());
        for (name, program) in &mut self.backends.programs {
            let lasts = |one: &Instance| one.state == State::Serving && one.begun.elapsed() >= QUICK;
            if !program.instances.is_empty() && program.instances.iter().all(lasts) {
                program.quick_ends = 0;
            }
            let mut beyond = None;
            for instance in &mut program.instances {
                let found = instance.program.and_then(|program| used.get(&program.as_raw_pid()));
                if found.is_none() && instance.program.is_some() && instance.state == State::Serving {
                    instance.usage.tell_unseen(name);
                }
                let (memory, ticks) = found.copied().unwrap_or_default();
                instance.usage.meter.note(memory, ticks, now);
                let limits = instance.plan.limits;
                if instance.usage.is_busy(limits.cpu, limits.cpu_time, now) {
                    tracing::warn!(backend = %name, instance = instance.id, cpu = instance.usage.meter.cpu, limit = limits.cpu, time = ?limits.cpu_time, "an instance uses more of the processors than `limits.cpu`");
                }
                let Some(reason) = instance.is_beyond() else { continue };
                if instance.state == State::Lingering {
                    tracing::info!(backend = %name, instance = instance.id, memory = instance.usage.meter.memory, "an instance stays no longer for its sessions: {reason}");
                    instance.drain();
                    any = true;
                }
                if instance.state == State::Serving && instance.outdated.is_none() {
                    tracing::info!(backend = %name, instance = instance.id, memory = instance.usage.meter.memory, "an instance is replaced: {reason}");
                    instance.outdated = Some(reason);
                    beyond = Some((reason, instance.begun.elapsed()));
                }
            }
            // A limit that is too low for the program is no reason to replace it in a loop.
            if let Some((reason, lived)) = beyond.filter(|(reason, lived)| *reason != Reason::Age && *lived < QUICK) {
                program.quick_ends += 1;
                program.restart = Some(now + program.pause());
                program.last_exit = Some(format!("{reason}, {lived:?} after its beginning"));
            }
        }
        self.report();
        any
    }

    /// Ends all programs, each within its own time, and waits for that.
    pub(super) async fn end_backends(&mut self) {
        self.backends.end();
        let mut patience = Duration::ZERO;
        for instance in self.backends.programs.values_mut().flat_map(|program| &mut program.instances) {
            patience = patience.max(instance.plan.stop_timeout);
            if instance.state != State::Stopping {
                instance.stop();
            }
        }
        let deadline = Instant::now() + patience + GRACE;
        while self.backends.programs.values().any(|program| !program.instances.is_empty()) {
            let heard = tokio::select! {
                biased;
                told = self.signals.next() => {
                    if told == Told::Stop {
                        tracing::warn!("told to stop once more: programs of `backends` are killed");
                        let programs = self.backends.programs.values();
                        programs.flat_map(|program| &program.instances).for_each(|instance| instance.say(KILL));
                    }
                    continue;
                }
                heard = timeout_at(deadline, self.backends.deeds.recv()) => heard,
            };
            let Ok(Some((id, deed))) = heard else {
                tracing::error!("a guard does not end; it is left to itself");
                break;
            };
            self.note_instance(id, deed);
        }
        if let Some(folder) = self.backends.folder.take() {
            remove(&folder);
        }
    }

    /// How long that may take.
    pub(super) fn backends_end_within(&self) -> Duration {
        let instances = self.backends.programs.values().flat_map(|program| &program.instances);
        instances.map(|instance| instance.plan.stop_timeout + GRACE).max().unwrap_or_default()
    }
}

impl Lingers {
    /// When that ends, where nobody asks before.
    fn until(self, idle: Duration) -> Instant {
        (self.asked + idle).min(self.begun + LONGEST_STAY)
    }
}

impl Program {
    /// How long those before stay without being asked.
    fn drain_sessions(&self) -> Option<Duration> {
        self.plan.as_ref()?.drain_sessions
    }

    /// An instance has ended unasked, or did not get ready.
    fn failed(&mut self, name: &str, id: u32, begun: Instant, why: &str, now: Instant) {
        self.restarts += 1;
        self.last_exit = Some(why.to_owned());
        let is_counted = self.quick_end(begun, now);
        let pause = self.restart.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        match self.quick_ends {
            ..TOLD => {
                tracing::error!(backend = name, instance = id, next_in = ?pause, "an instance has failed: {why}");
            }
            TOLD if is_counted => tracing::error!(
                backend = name,
                instance = id,
                "an instance has failed: {why}; as this goes on and on, it is begun again with pauses up to {LONGEST_PAUSE:?}, \
                 and `vestibule status` tells of it"
            ),
            _ => tracing::debug!(backend = name, instance = id, next_in = ?pause, "an instance has failed: {why}"),
        }
    }

    /// Counts the round of an instance that was begun then, unless one of the same round has been counted, and has the next one
    /// wait; answers whether it was counted.
    fn quick_end(&mut self, begun: Instant, now: Instant) -> bool {
        let is_next = self.counted.is_none_or(|last| begun > last);
        if is_next {
            self.quick_ends += 1;
            (self.counted, self.restart) = (Some(now), None);
        }
        let next = now + self.pause();
        self.restart.get_or_insert(next);
        is_next
    }

    /// Until the next instance, with a part that is left to chance, so that what fails together does not begin together.
    fn pause(&self) -> Duration {
        let pause = (FIRST_PAUSE * 2_u32.saturating_pow(self.quick_ends.saturating_sub(1))).min(LONGEST_PAUSE);
        pause.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Whoever has asked for other instances, where the first of them has failed: those there are go on.
    fn take_refused(&mut self) -> Vec<(WorkerId, u32, String)> {
        let Some(why) = self.refused.take().filter(|_| !self.asked.is_empty()) else { return Vec::new() };
        for instance in self.instances.iter_mut().filter(|instance| instance.outdated == Some(Reason::Asked)) {
            instance.outdated = None;
        }
        std::mem::take(&mut self.asked).into_iter().map(|(worker, id, _)| (worker, id, why.clone())).collect()
    }
}

impl Usage {
    fn tell_unseen(&mut self, name: &str) {
        if !std::mem::replace(&mut self.is_unseen, true) {
            tracing::warn!(
                backend = name,
                "what an instance uses is hidden from us in /proc, so that `limits` of memory and cpu do nothing; with systemd, `ProtectProc=default` shows it"
            );
        }
    }

    /// Whether it is to be told that it has been busier than `most` for `time`.
    fn is_busy(&mut self, most: Option<u32>, time: Duration, now: Instant) -> bool {
        if most.is_none_or(|most| self.meter.cpu <= most) {
            (self.busy, self.is_told) = (None, false);
            return false;
        }
        let since = *self.busy.get_or_insert(now);
        now.duration_since(since) >= time && !std::mem::replace(&mut self.is_told, true)
    }
}

/// Who an instance runs as; `None`: as we do.
fn user_of(backend: &BackendPlan, plan: &Plan) -> io::Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    User::find(backend.user.as_ref().unwrap_or(&plan.user)).map(Some).map_err(io::Error::other)
}

/// A folder of this process, in which others can name what is theirs and list nothing.
fn private_folder() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let (own, standard) =
        if uid.is_root() { (None, "/run".into()) } else { (env::var_os("XDG_RUNTIME_DIR"), env::temp_dir()) };
    // First that of a unit of systemd's, where nothing else may be written to.
    let given = [env::var_os("RUNTIME_DIRECTORY"), own].into_iter().flatten().map(PathBuf::from);
    let parent = given.into_iter().find(|folder| folder.is_dir()).unwrap_or(standard);
    // Of processes that were killed.
    for entry in fs::read_dir(&parent)?.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.parse::<u32>().ok());
        let is_ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid.as_raw());
        let lives = |process: u32| Path::new(&format!("/proc/{process}")).exists();
        if is_ours && process.is_some_and(|process| process == std::process::id() || !lives(process)) {
            remove(&entry.path());
        }
    }
    let folder = parent.join(format!("{FOLDER}{}", std::process::id()));
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

/// Removes such a folder. What is in it belongs to others, and root may not have the right to look past that.
fn remove(folder: &Path) {
    for own in fs::read_dir(folder).into_iter().flatten().flatten() {
        lchown(own.path(), Some(rustix::process::geteuid().as_raw()), None).ok();
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::debug!(error = &error as &dyn std::error::Error, "the folder of sockets is left");
    }
}

async fn hear(id: u32, line: tokio::net::UnixStream, guard: OwnedFd, deeds: Sender<(u32, InstanceDeed)>) {
    let mut how = None;
    let mut lines = BufReader::new(line).lines();
    while let Ok(Some(text)) = lines.next_line().await {
        match text.split_once(' ') {
            Some((BEGUN, pid)) => {
                if let Ok(pid) = pid.parse() {
                    deeds.send((id, InstanceDeed::Begun(pid))).await.ok();
                }
            }
            Some((ENDED, said)) => how = Some(said.to_owned()),
            _ => {}
        }
    }
    // Its status says nothing that it has not said itself.
    spawn_blocking(move || reap(&guard)).await.ok();
    deeds.send((id, InstanceDeed::Ended(how))).await.ok();
}

/// Writes what an instance says into the log, line by line.
async fn tell(backend: String, instance: u32, mut output: pipe::Receiver) {
    let (mut read, mut line) = ([0; 4096], Vec::new());
    let (mut since, mut lines, mut bytes) = (Instant::now(), 0, 0);
    let end_line = |line: &mut Vec<u8>| {
        let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
        line.clear();
        if !text.is_empty() {
            tracing::info!(backend, instance, "{text}");
        }
    };
    while let Ok(length @ 1..) = output.read(&mut read).await {
        for byte in &read[..length] {
            if *byte == b'\n' || line.len() == LINE {
                end_line(&mut line);
                lines += 1;
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
            bytes += 1;
            if lines >= LINES || bytes >= BYTES {
                // The pipe fills meanwhile, and the program waits: all else that is to be done here does not.
                sleep_until(since + Duration::from_secs(1)).await;
                (since, lines, bytes) = (Instant::now(), 0, 0);
            }
        }
    }
    end_line(&mut line);
}

/// Where programs are that are named without a path, where our own environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What of our environment a program may need. What the configuration takes from it may be secret.
const PASSED_ON: &[&str] = &["LANG", "TZ"];
/// Before our number, in the name of the folder for sockets.
const FOLDER: &str = "vestibule-backends-";
const DEEDS: usize = 64;
/// Operators that wait for the same restart.
const ASKED: usize = 16;
/// What is counted of them, and of instances that are said to hang, within this time.
const BUDGETED: Duration = Duration::from_secs(60 * 60);
const ORDERS: usize = 60;
/// For each instance that there is to be.
const HUNG: usize = 6;
/// How long they wait; whoever asks for them waits a little longer.
const ANSWERED: Duration = Duration::from_secs(100);
/// Of what is logged of an instance: bytes of a line, lines and bytes in a second.
const LINE: usize = 1000;
const LINES: u32 = 1000;
const BYTES: u32 = 256 * 1024;
/// An instance that ends within this time of its beginning is taken to have a habit of it.
const QUICK: Duration = Duration::from_secs(60);
/// Quick ends in a row that are told one by one.
const TOLD: u32 = 5;
/// Between two instances that end unasked again and again: from this, doubled, up to that.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// For an instance that was replaced, however often it is still asked.
const LONGEST_STAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two looks at what instances use.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);
/// Between two orders that make an end of the pauses.
const BETWEEN_PARDONS: Duration = Duration::from_secs(10);
/// For a guard, beyond the time of its program.
const GRACE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_of_one_round_that_fail_are_counted_once() {
        let first = Instant::now();
        let at = |seconds| first + Duration::from_secs(seconds);
        let mut program = Program::default();

        program.failed("app", 1, at(0), "why", at(1));
        let restart = program.restart;
        program.failed("app", 2, at(0), "why", at(2));
        assert_eq!((program.quick_ends, program.restarts, program.restart), (1, 2, restart));

        program.failed("app", 3, at(3), "why", at(4));
        assert_eq!(program.quick_ends, 2);
    }

    #[test]
    fn what_a_worker_has_done_is_done_so_often_in_an_hour_and_again_later() {
        let first = Instant::now();
        let mut budget = Budget::default();
        let mut take = |seconds| budget.take(3, first + Duration::from_secs(seconds));

        assert_eq!([0, 10, 20, 30, 3599].map(&mut take), [true, true, true, false, false]);
        assert_eq!([3600, 3605, 3610, 3611].map(&mut take), [true, false, true, false]);
    }

    #[test]
    fn an_instance_stays_for_its_sessions_a_day_however_often_it_is_asked() {
        let begun = Instant::now();
        let idle = Duration::from_secs(30 * 60);
        for (asked, until) in [(0, 1800), (3600, 5400), (86_000, 86_400), (86_400, 86_400)] {
            let asked = begun + Duration::from_secs(asked);
            let lingers = Lingers { since: SystemTime::now(), begun, asked };

            assert_eq!(lingers.until(idle).duration_since(begun), Duration::from_secs(until));
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses = |quick_ends| Program { quick_ends, ..Program::default() }.pause();

        assert!(pauses(1) < Duration::from_millis(126) && pauses(1) >= Duration::from_millis(75));
        assert!(pauses(4) >= Duration::from_millis(600));
        assert!(pauses(u32::MAX) <= Duration::from_secs(75));
    }

    #[test]
    fn being_busy_is_told_once_when_it_has_lasted() {
        let (begun, limit, time) = (Instant::now(), Some(50), Duration::from_secs(10));
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut usage = Usage::default();
        usage.meter.cpu = 51;

        assert!(!usage.is_busy(limit, time, at(0)));
        assert!(!usage.is_busy(limit, time, at(9)));
        assert!(usage.is_busy(limit, time, at(10)));
        assert!(!usage.is_busy(limit, time, at(11)), "once");
        usage.meter.cpu = 50;
        assert!(!usage.is_busy(limit, time, at(12)));
        usage.meter.cpu = 51;
        assert!(!usage.is_busy(limit, time, at(13)), "from the beginning");
    }
}
