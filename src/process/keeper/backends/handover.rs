//! What is left to the next program of an upgrade, and taken over from the one before.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::{Duration, SystemTime},
};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Backends,
    instance::{Lingers, Reason},
};
use crate::{
    backends::InstanceState as State,
    config::{EndpointAddress, Plan},
};

/// An instance for the next program; its line and its output come along.
#[derive(Serialize, Deserialize)]
pub(in crate::process::keeper) struct LeftInstance {
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
    /// A [`crate::config::BackendPlan`], which a later program may not be able to read.
    plan: serde_json::Value,
    restarts: u64,
}

/// All that is left to the next program, besides descriptors.
#[derive(Default, Serialize, Deserialize)]
pub(in crate::process::keeper) struct LeftBackends {
    instances: Vec<LeftInstance>,
    last: u32,
    folder: Option<PathBuf>,
}

impl Backends {
    /// What there is to hand on, and the descriptors of it.
    pub(in crate::process::keeper) fn leave(&self) -> io::Result<(LeftBackends, Vec<OwnedFd>)> {
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
    pub(in crate::process::keeper) fn inherit(
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
