//! Programs of ours as the keeper looks after them: begun before there is traffic, begun again when they end, replaced one
//! instance at a time, and ended with us.
//!
//! The keeper connects nowhere: whether an instance answers, hangs, or has requests left is said by the workers, in words
//! that name its number. Each program has a guard ([`crate::backends::guard`]), which ends it when we are gone. An upgrade hands
//! all of them on as they are: the number of the guard, its line, and the output.
//!
//! What is to be done is always the same ([`Keeper::tend`](super::Keeper::tend)): as many instances as the plan wants, none of which is outdated.
//! Restarts, rolls, a plan with other instances and the end of a backend all come out of that.

mod begin;
mod handover;
mod instance;
mod output;
mod program;
mod tend;
mod told;

use std::{collections::BTreeMap, path::PathBuf};

use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Instant,
};

use self::{
    instance::Instance,
    program::{Program, TOLD},
};
use crate::{
    admin::BackendReport,
    backends::{Instance as Known, InstanceState as State},
};

pub(super) use self::{handover::LeftBackends, told::InstanceDeed};

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
}

const DEEDS: usize = 64;
