//! What the keeper is told of instances: by their guards, by workers, and by operators.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc::Sender,
    task::spawn_blocking,
    time::Instant,
};

use super::{
    super::{Keeper, WorkerId, workers::reap},
    instance::{Instance, Reason},
    program::BUDGETED,
};
use crate::{
    admin::tag,
    backends::{
        InstanceState as State,
        guard::{BEGUN, ENDED},
    },
};

/// What an instance did.
#[derive(Debug)]
pub(in crate::process::keeper) enum InstanceDeed {
    /// Its number among processes.
    Begun(i32),
    /// It is no more, and how it ended, if its guard has said it.
    Ended(Option<String>),
}

impl Keeper {
    /// Takes note of what an instance did.
    pub(in crate::process::keeper) fn note_instance(&mut self, id: u32, deed: InstanceDeed) {
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
    pub(in crate::process::keeper) fn instance_up(&mut self, id: u32) {
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
    pub(in crate::process::keeper) fn instance_hung(&mut self, id: u32) {
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
    pub(in crate::process::keeper) fn instance_drained(&mut self, worker: WorkerId, id: u32) {
        let Some((_, program, position)) = self.backends.instance(id) else { return };
        let instance = &mut program.instances[position];
        if instance.state == State::Draining && instance.drained.insert(worker) {
            self.tend_backends();
        }
    }

    /// A worker has sent so many requests to an instance.
    pub(in crate::process::keeper) fn instance_served(&mut self, worker: WorkerId, id: u32, count: u32) {
        if let Some((_, program, position)) = self.backends.instance(id) {
            let instance = &mut program.instances[position];
            instance.served.insert(worker, count);
            if let Some(lingers) = &mut instance.lingers {
                lingers.asked = Instant::now();
            }
        }
    }

    /// Replaces all instances of the backend with this tag; whoever asked by `worker` is answered when that is done.
    pub(in crate::process::keeper) fn restart_backend(&mut self, worker: WorkerId, id: u32, backend: u32) {
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
}

pub(super) async fn hear(id: u32, line: tokio::net::UnixStream, guard: OwnedFd, deeds: Sender<(u32, InstanceDeed)>) {
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

/// Operators that wait for the same restart.
const ASKED: usize = 16;
const ORDERS: usize = 60;
/// For each instance that there is to be.
const HUNG: usize = 6;
/// How long they wait; whoever asks for them waits a little longer.
pub(super) const ANSWERED: Duration = Duration::from_secs(100);
/// An instance that ends within this time of its beginning is taken to have a habit of it.
pub(super) const QUICK: Duration = Duration::from_secs(60);
/// Between two orders that make an end of the pauses.
const BETWEEN_PARDONS: Duration = Duration::from_secs(10);
