//! What processes use that workers ask about, by their numbers: programs of supervisord's. A worker may not look itself, and
//! learns only sizes.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    super::message::ToWorker,
    Keeper, WorkerId,
    usage::{self, Meter},
};
use crate::backends::Used;

/// The processes.
#[derive(Default)]
pub(super) struct Watched {
    processes: HashMap<u32, Process>,
    next_look: Option<Instant>,
}

struct Process {
    meter: Meter,
    /// When a worker has last asked.
    asked: Instant,
    /// What the last look has found, until it is told.
    found: Option<Found>,
}

/// `None`: it is not there, or hidden from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found(Option<Used>);

impl Keeper {
    /// A worker wants to know what a process uses. It is told what there is since it was told last: however often it asks,
    /// we look, and answer, once in a while.
    pub(super) fn watch(&mut self, worker: WorkerId, pid: u32) {
        let found = self.watched.ask(pid, Instant::now());
        if let (Some(Found(used)), Some(worker)) = (found, self.worker(worker)) {
            worker.tell(ToWorker::Used { pid, used });
        }
    }
}

impl Watched {
    fn ask(&mut self, pid: u32, now: Instant) -> Option<Found> {
        self.processes.retain(|_, process| now.duration_since(process.asked) < FORGOTTEN);
        if self.processes.len() >= MOST && !self.processes.contains_key(&pid) {
            return None;
        }
        let new = || Process { meter: Meter::default(), asked: now, found: None };
        self.processes.entry(pid).or_insert_with(new).asked = now;
        if self.next_look.is_none_or(|at| at <= now) {
            self.next_look = Some(now + BETWEEN_LOOKS);
            self.look(now);
        }
        self.processes.get_mut(&pid)?.found.take()
    }

    fn look(&mut self, now: Instant) {
        let all = usage::processes();
        for (pid, process) in &mut self.processes {
            let Some((memory, ticks)) = i32::try_from(*pid).ok().and_then(|pid| usage::of_tree(&all, pid)) else {
                (process.meter, process.found) = (Meter::default(), Some(Found(None)));
                continue;
            };
            // What share of a processor it has is known with the second look.
            let is_known = process.meter.looked.is_some();
            process.meter.note(memory, ticks, now);
            let Meter { memory, cpu, .. } = process.meter;
            process.found = is_known.then_some(Found(Some(Used { memory, cpu })));
        }
    }
}

/// Processes at once, and for how long after a worker has last asked.
const MOST: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Between two looks: less than workers take.
const BETWEEN_LOOKS: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_is_told_once_a_look_and_no_more_are_watched_than_there_is_room_for() {
        let (mut watched, now, us) = (Watched::default(), Instant::now(), std::process::id());
        assert_eq!(watched.ask(us, now), None, "the first look");
        assert_eq!(watched.ask(us, now), None);
        let used = watched.ask(us, now + BETWEEN_LOOKS).and_then(|Found(used)| used);
        assert!(used.is_some_and(|used| used.memory > 0), "{used:?}");
        assert_eq!(watched.ask(us, now + BETWEEN_LOOKS), None, "it is told already");

        for pid in 0..1000 {
            watched.ask(u32::MAX - pid, now + BETWEEN_LOOKS);
        }
        assert_eq!(watched.processes.len(), MOST);
        assert_eq!(watched.ask(u32::MAX, now + 2 * BETWEEN_LOOKS), Some(Found(None)), "there is none");
        watched.ask(us, now + 3 * FORGOTTEN);
        assert_eq!(watched.processes.len(), 1);
    }
}
