//! What is done about programs of ours: as many instances as the plan wants, none of which is outdated, and their end.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{
    super::{Keeper, Signal as Told, State as WorkerState, usage},
    begin::remove,
    instance::{Instance, Reason},
    program::Program,
    told::{ANSWERED, QUICK},
};
use crate::{
    backends::{InstanceState as State, guard::KILL},
    config::BackendPlan,
    process::message::ToWorker,
};

impl Keeper {
    /// Has the programs of the plan in force run, and no others.
    pub(in crate::process::keeper) fn run_backends(&mut self) {
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
    pub(in crate::process::keeper) fn tend_backends(&mut self) {
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
    pub(super) fn tend(&mut self, name: &str) -> bool {
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
    pub(super) fn tell_instances(&self) {
        let known = self.backends.known();
        for worker in &self.workers {
            worker.tell(ToWorker::Instances(known.clone()));
        }
        self.report();
    }

    /// Looks at what instances use, from time to time, and which are beyond a limit; answers whether one drains for that.
    pub(super) fn look_at_usage(&mut self) -> bool {
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
    pub(in crate::process::keeper) async fn end_backends(&mut self) {
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
    pub(in crate::process::keeper) fn backends_end_within(&self) -> Duration {
        let instances = self.backends.programs.values().flat_map(|program| &program.instances);
        instances.map(|instance| instance.plan.stop_timeout + GRACE).max().unwrap_or_default()
    }
}

/// Between two looks at what instances use.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);
/// For a guard, beyond the time of its program.
const GRACE: Duration = Duration::from_secs(3);
