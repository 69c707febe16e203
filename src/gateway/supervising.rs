//! Looks at the programs behind upstreams through their supervisord, and has one restarted that hangs or uses too much.
//!
//! A supervisord is asked for all of its programs at once, and one that is not there is no fault. Restarts are ordered one at a
//! time over all upstreams, and of one program so often in a while; what does not start is supervisord's to try again
//! (`startretries`), and never ours.

use std::{
    collections::VecDeque,
    error::Error,
    io,
    mem::{Discriminant, discriminant},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc::UnboundedReceiver, oneshot},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    admin::Outcome,
    backends::{ProgramInfo, ProgramState, Supervisord, SupervisordError},
    config::{EndpointAddress, RestartPlan, SupervisorPlan},
    drain::Drain,
    runtime::{Current, Runtime},
    telemetry::chain,
    upstream::{Program, Upstream},
};

/// Goes on for as long as the runtime it runs on, and has restarted what hangs and what is `wanted` by an operator. What hangs
/// is left alone once `drain` is on: whoever comes after us looks after it.
pub(super) async fn look_after(
    current: Arc<Current>,
    drain: Drain,
    busy: Arc<Mutex<()>>,
    mut wanted: UnboundedReceiver<(SupervisorPlan, oneshot::Sender<Outcome>)>,
) {
    let mut supervisors: Vec<Supervisor> = Vec::new();
    let mut programs: Vec<Known> = Vec::new();
    let (mut looks, mut orders, mut warnings) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    loop {
        let runtime = current.load_full();
        keep_up_with(&runtime, &mut supervisors, &mut programs);
        for supervisor in supervisors.iter_mut().filter(|supervisor| supervisor.next.is_some_and(has_come)) {
            supervisor.next = None;
            looks.spawn(look(supervisor.plan.clone()));
        }
        if orders.is_empty() {
            let by_operator = wanted.try_recv().ok().map(|(plan, told)| Order { plan, reason: Reason::Operator(told) });
            let hanging = || next_order(&runtime, &mut programs).filter(|_| !drain.is_on());
            if let Some(order) = by_operator.or_else(hanging) {
                let upstreams = programs_of(&runtime).filter(|(_, program)| program.plan.supervisor == order.plan);
                let upstreams = upstreams.map(|(upstream, _)| Arc::clone(upstream)).collect();
                orders.spawn(order.carry_out(Arc::clone(&busy), upstreams));
            }
        }
        drop(runtime);
        sleep(SOON / 2).await;
        let runtime = current.load_full();
        // A look does not panic; one that had would be the last at this supervisord, and no reason to end.
        while let Some(Ok((plan, found))) = looks.try_join_next() {
            let Some(supervisor) = supervisors.iter_mut().find(|supervisor| supervisor.plan == plan) else { continue };
            if supervisor.answered(&found) {
                warnings.spawn(warn_if_open(plan.clone()));
            }
            note(&runtime, &plan, &found, &mut programs);
            supervisor.next = Some(Instant::now() + pause(&runtime, &plan));
        }
        while let Some(Ok(outcome)) = orders.try_join_next() {
            outcome.note(&runtime, &mut programs);
            supervisors
                .iter_mut()
                .filter_map(|supervisor| supervisor.next.as_mut())
                .for_each(|next| *next = Instant::now());
        }
        while warnings.try_join_next().is_some() {}
    }
}

/// A supervisord that is asked.
struct Supervisor {
    /// Without a program.
    plan: SupervisorPlan,
    /// When it is asked again; `None` while it is being asked.
    next: Option<Instant>,
    /// That it answers, or why it does not, as the log has it.
    told: Option<Result<(), Discriminant<SupervisordError>>>,
}

impl Supervisor {
    /// Tells how it stands when that has changed; answers whether it has just begun to answer.
    fn answered(&mut self, found: &Result<Vec<ProgramInfo>, SupervisordError>) -> bool {
        let outcome = found.as_ref().map(drop).map_err(discriminant);
        if self.told == Some(outcome) {
            return false;
        }
        self.told = Some(outcome);
        let address = &self.plan.address;
        match found {
            Ok(_) => tracing::info!(supervisord = %address, "supervisord answers"),
            // It may come later, or never: a machine without it is none the worse.
            Err(error @ SupervisordError::Connect(_, cause)) if cause.kind() != io::ErrorKind::PermissionDenied => {
                let error = error as &dyn Error;
                tracing::info!(error, "no word of programs: there is no supervisord here");
            }
            Err(error) => tracing::warn!(error = error as &dyn Error, "no word of programs"),
        }
        found.is_ok()
    }
}

/// A program, and what there is to remember of it over several looks and configurations.
struct Known {
    plan: SupervisorPlan,
    /// As the log has it.
    told: Option<ProgramState>,
    /// When it was restarted, as far back as that counts.
    restarts: VecDeque<Instant>,
    /// The log has that it hangs and is left alone.
    left_alone: bool,
}

impl Known {
    /// Tells of another state, each once: a start that is tried again and again is told as its first failure.
    fn tell(&mut self, found: Result<&ProgramInfo, &SupervisordError>) {
        let program = self.plan.program.as_str();
        let Ok(info) = found else { return };
        let again = self.told == Some(ProgramState::Backoff) && info.state == ProgramState::Starting;
        if self.told == Some(info.state) || again {
            return;
        }
        self.told = Some(info.state);
        let why = info.why.as_deref().unwrap_or_default();
        match info.state {
            ProgramState::Running | ProgramState::Starting | ProgramState::Stopping | ProgramState::Stopped => {
                tracing::info!(program, pid = info.pid, "program is {}", info.state.name());
            }
            ProgramState::Backoff => tracing::warn!(program, why, "program has failed to start, and is tried again"),
            ProgramState::Exited => tracing::warn!(program, why, "program has ended by itself"),
            ProgramState::Fatal => tracing::error!(
                program,
                why,
                "program has failed to start, and supervisord has given up: see `supervisorctl tail {program} stderr`, then \
                 `supervisorctl start {program}`"
            ),
            ProgramState::Unknown => {
                tracing::warn!(program, why, "supervisord does not know the program, or not its state");
            }
        }
    }
}

/// Has exactly the supervisords and programs of `runtime`, and what was known of them.
fn keep_up_with(runtime: &Runtime, supervisors: &mut Vec<Supervisor>, programs: &mut Vec<Known>) {
    let named: Vec<_> = programs_of(runtime).map(|(_, program)| program.plan.supervisor.clone()).collect();
    programs.retain(|known| named.contains(&known.plan));
    supervisors.retain(|supervisor| named.iter().any(|plan| server(plan) == supervisor.plan));
    for plan in named {
        let server = server(&plan);
        if supervisors.iter().all(|supervisor| supervisor.plan != server) {
            supervisors.push(Supervisor { plan: server, next: Some(Instant::now()), told: None });
        }
        if programs.iter().all(|known| known.plan != plan) {
            programs.push(Known { plan, told: None, restarts: VecDeque::new(), left_alone: false });
        }
    }
}

fn programs_of(runtime: &Runtime) -> impl Iterator<Item = (&Arc<Upstream>, &Arc<Program>)> {
    runtime.upstreams.values().filter_map(|upstream| Some((upstream, upstream.program.as_ref()?)))
}

/// The supervisord of `plan`.
fn server(plan: &SupervisorPlan) -> SupervisorPlan {
    SupervisorPlan { program: String::new(), ..plan.clone() }
}

async fn look(plan: SupervisorPlan) -> (SupervisorPlan, Result<Vec<ProgramInfo>, SupervisordError>) {
    let found = Supervisord(&plan).programs().await;
    (plan, found)
}

/// Has each program of `plan` know what was found, and the log.
fn note(
    runtime: &Runtime,
    plan: &SupervisorPlan,
    found: &Result<Vec<ProgramInfo>, SupervisordError>,
    programs: &mut [Known],
) {
    for (upstream, program) in programs_of(runtime).filter(|(_, program)| server(&program.plan.supervisor) == *plan) {
        let info = found.as_ref().map(|all| of_name(all, program.name()));
        if program.found(info.as_ref().map_err(|error| chain(*error))) {
            upstream.begins_anew();
        }
        if let Some(known) = programs.iter_mut().find(|known| known.plan == program.plan.supervisor) {
            known.tell(info.as_ref().map_err(|error| *error));
        }
    }
}

/// What is said of the program called `name`.
fn of_name(all: &[ProgramInfo], name: &str) -> ProgramInfo {
    // A group of one has the name of its program, and may be named for it.
    let is = |info: &&ProgramInfo| info.name == name || name.split_once(':') == Some((&info.name, &info.name));
    all.iter().find(is).cloned().unwrap_or_else(|| ProgramInfo {
        name: name.to_owned(),
        state: ProgramState::Unknown,
        started: 0,
        since: None,
        pid: 0,
        why: Some("supervisord has no program of this name; `supervisorctl status` lists them".to_owned()),
    })
}

/// Until the next look at a supervisord.
fn pause(runtime: &Runtime, plan: &SupervisorPlan) -> Duration {
    let is_well = |(upstream, program): (&Arc<Upstream>, &Arc<Program>)| {
        let running = program.seen().info.is_some_and(|info| info.state == ProgramState::Running);
        running && upstream.missing().is_none()
    };
    let all = programs_of(runtime).filter(|(_, program)| server(&program.plan.supervisor) == *plan).all(is_well);
    if all { LATER } else { SOON }
}

/// A program that is to be restarted.
struct Order {
    plan: SupervisorPlan,
    reason: Reason,
}

enum Reason {
    /// The process that is not well, by when it was started; what is the matter with it, and how that is known.
    Unwell { started: i64, matter: &'static str, cause: String },
    /// Who waits for the outcome.
    Operator(oneshot::Sender<Outcome>),
}

impl Reason {
    /// Requests inside may come to their end first. Those inside of what hangs do not.
    fn lets_end(&self) -> bool {
        !matches!(self, Self::Unwell { matter: HANGS, .. })
    }
}

/// What came of it: whether it was restarted, which it is not where somebody else was faster.
struct Carried {
    order: Order,
    outcome: Result<bool, SupervisordError>,
}

/// The next program that hangs, or uses too much, and may be restarted.
fn next_order(runtime: &Runtime, programs: &mut [Known]) -> Option<Order> {
    for (upstream, program) in programs_of(runtime) {
        let (terms, seen) = (program.plan.restart, program.seen());
        let (Some(info), Some(since)) = (seen.info, seen.since) else { continue };
        // One that is on its way, or was stopped, or could not be started, is not hanging.
        let running = info.state == ProgramState::Running;
        let hangs = terms.filter(|terms| running && upstream.hangs(terms.after, since.elapsed()));
        let hangs =
            hangs.map(|terms| (HANGS, format!("{} requests and looks in a row without an answer", terms.after)));
        let is_watched = program.plan.watch.is_some_and(|watch| watch.restart);
        let over = seen.over.filter(|_| running && is_watched).map(|over| ("uses too much", over));
        let terms = terms.unwrap_or(BUDGET);
        let Some(known) = programs.iter_mut().find(|known| known.plan == program.plan.supervisor) else { continue };
        known.restarts.retain(|at| at.elapsed() < terms.within);
        let Some((matter, cause)) = hangs.or(over) else { continue };
        if known.restarts.len() < terms.at_most {
            known.left_alone = false;
            let reason = Reason::Unwell { started: info.started, matter, cause };
            return Some(Order { plan: known.plan.clone(), reason });
        }
        if !known.left_alone {
            known.left_alone = true;
            tracing::error!(
                upstream = %upstream.name,
                program = program.name(),
                cause,
                "program {matter} again after {} restarts within {:?}, and is left alone now",
                known.restarts.len(),
                terms.within
            );
        }
    }
    None
}

impl Order {
    /// Requests for `upstreams`, the program's, wait meanwhile, so that none is inside of what is ended.
    async fn carry_out(self, busy: Arc<Mutex<()>>, upstreams: Vec<Arc<Upstream>>) -> Carried {
        let _busy = busy.lock().await;
        // Where none waits, none is held back.
        let waits = upstreams.iter().filter(|upstream| !upstream.plan.hold.is_zero());
        let _halts: Vec<_> = waits.filter_map(|upstream| Some(upstream.program.as_ref()?.halt())).collect();
        if self.reason.lets_end() {
            let longest = upstreams.iter().map(|upstream| upstream.plan.hold / 3).max().unwrap_or_default();
            let end = Instant::now() + longest;
            while !upstreams.iter().all(|upstream| upstream.is_idle()) && Instant::now() < end {
                sleep(IDLE).await;
            }
        }
        let outcome = self.restart().await;
        Carried { order: self, outcome }
    }

    async fn restart(&self) -> Result<bool, SupervisordError> {
        let (supervisord, program) = (Supervisord(&self.plan), self.plan.program.as_str());
        match &self.reason {
            Reason::Unwell { started, matter, cause } => {
                let info = supervisord.program(program).await?;
                // Another front door, or an operator, may have seen it as well.
                if info.state != ProgramState::Running || info.started != *started {
                    return Ok(false);
                }
                tracing::warn!(program, pid = info.pid, cause, "program {matter}, and is restarted");
            }
            Reason::Operator(_) => tracing::info!(program, "program is restarted, by order"),
        }
        supervisord.restart(program).await.map(|()| true)
    }
}

impl Carried {
    fn note(self, runtime: &Runtime, programs: &mut [Known]) {
        let Order { plan, reason } = self.order;
        let program = plan.program.as_str();
        match &self.outcome {
            Ok(true) => tracing::info!(program, "program was restarted"),
            Ok(false) => tracing::info!(program, "program is not restarted: somebody else has just seen to it"),
            Err(error) => {
                let error = error as &dyn Error;
                tracing::error!(error, program, "program was not restarted; see `supervisorctl status`");
            }
        }
        let of_it = || programs_of(runtime).filter(|(_, program)| program.plan.supervisor == plan);
        for (upstream, program) in of_it() {
            upstream.begins_anew();
            program.forget_used();
        }
        match reason {
            Reason::Unwell { cause, .. } if !matches!(self.outcome, Ok(false)) => {
                if let Some(known) = programs.iter_mut().find(|known| known.plan == plan) {
                    known.restarts.push_back(Instant::now());
                }
                for (upstream, program) in of_it() {
                    program.restarted(&cause);
                    upstream.metrics.restarts.inc();
                }
            }
            Reason::Unwell { .. } => {}
            Reason::Operator(told) => {
                let outcome = self.outcome.map(|_| format!("{program} was restarted")).map_err(|error| chain(&error));
                // Whoever has gone does not want to know.
                told.send(outcome).ok();
            }
        }
    }
}

/// Tells who else may command the programs of a supervisord that wants no password.
async fn warn_if_open(plan: SupervisorPlan) {
    if matches!(plan.address, EndpointAddress::Unix(_)) || !Supervisord(&plan).is_open().await {
        return;
    }
    if plan.address.is_of_this_machine() {
        tracing::info!(
            supervisord = %plan.address,
            "supervisord takes orders from every program of this machine, and from others unless it is bound to 127.0.0.1: a \
             username and a password in [inet_http_server] keep it to those who know them"
        );
    } else {
        tracing::warn!(
            supervisord = %plan.address,
            "supervisord takes orders from anybody who reaches it: give it a username and a password in [inet_http_server], \
             or a unix socket"
        );
    }
}

fn has_come(moment: Instant) -> bool {
    moment <= Instant::now()
}

/// What is the matter with a program that answers nobody.
const HANGS: &str = "hangs";
/// Between two looks at whether requests are inside.
const IDLE: Duration = Duration::from_millis(20);
/// Of restarts for what a program uses, where `restart` says nothing else.
const BUDGET: RestartPlan = RestartPlan { after: 1, at_most: 3, within: Duration::from_secs(3600) };
/// Between two looks while a program is not running, or nobody can be asked.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks while all run.
const LATER: Duration = Duration::from_secs(5);
