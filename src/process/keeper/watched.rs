//! What processes use that workers ask about, by their numbers: programs of supervisord's. A worker may not look itself, and
//! learns only sizes.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    super::message::ToWorker,
    Keeper, WorkerId,
    usage::{self, Meter},
};
use crate::backends::{Unmeasured, Used};

/// The processes.
#[derive(Default)]
pub(super) struct Watched {
    processes: HashMap<u32, Process>,
    next_look: Option<Instant>,
}

struct Process {
    /// When it was begun, as whoever asked last knows it, in seconds since 1970; 0: it is not said.
    started: u64,
    meter: Meter,
    /// When a worker has last asked.
    asked: Instant,
    /// What the last look has found, until it is told.
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found(Result<Used, Unmeasured>);

impl Keeper {
    /// A worker wants to know what a process uses. It is told what there is since it was told last: however often it asks,
    /// we look, and answer, once in a while.
    pub(super) fn watch(&mut self, worker: WorkerId, pid: u32, started: u64) {
        let found = self.watched.ask(pid, started, Instant::now());
        if let (Some(Found(found)), Some(worker)) = (found, self.worker(worker)) {
            worker.tell(match found {
                Ok(used) => ToWorker::Used { pid, used: Some(used) },
                Err(Unmeasured::Another) if started != 0 => ToWorker::Another { pid },
                // A program before this one, which does not say when the process began, knows no other word.
                Err(_) => ToWorker::Used { pid, used: None },
            });
        }
    }
}

impl Watched {
    fn ask(&mut self, pid: u32, started: u64, now: Instant) -> Option<Found> {
        self.processes.retain(|_, process| now.duration_since(process.asked) < FORGOTTEN);
        if self.processes.len() >= MOST && !self.processes.contains_key(&pid) {
            return None;
        }
        let new = || Process { started, meter: Meter::default(), asked: now, found: None };
        let process = self.processes.entry(pid).or_insert_with(new);
        (process.started, process.asked) = (started, now);
        if self.next_look.is_none_or(|at| at <= now) {
            self.next_look = Some(now + BETWEEN_LOOKS);
            self.look(now);
        }
        self.processes.get_mut(&pid)?.found.take()
    }

    fn look(&mut self, now: Instant) {
        let all = usage::processes();
        for (pid, process) in &mut self.processes {
            let pid = i32::try_from(*pid).unwrap_or(0);
            let (Some((memory, ticks)), Some(begun)) = (usage::of_tree(&all, pid), usage::begun(&all, pid)) else {
                (process.meter, process.found) = (Meter::default(), Some(Found(Err(Unmeasured::Hidden))));
                continue;
            };
            // A supervisord in another namespace of processes has other numbers for them than we.
            if process.started != 0 && begun.saturating_sub_unsigned(process.started).unsigned_abs() > TOLERANCE {
                (process.meter, process.found) = (Meter::default(), Some(Found(Err(Unmeasured::Another))));
                continue;
            }
            // What share of a processor it has is known with the second look.
            let is_known = process.meter.looked.is_some();
            process.meter.note(memory, ticks, now);
            let Meter { memory, cpu, .. } = process.meter;
            process.found = is_known.then_some(Found(Ok(Used { memory, cpu })));
        }
    }
}

/// Processes at once, and for how long after a worker has last asked.
const MOST: usize = 64;
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Between two looks: less than workers take.
const BETWEEN_LOOKS: Duration = Duration::from_secs(4);
/// Seconds by which two may differ in when one process was begun.
const TOLERANCE: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_is_told_once_a_look_and_no_more_are_watched_than_there_is_room_for() {
        let (mut watched, now, us) = (Watched::default(), Instant::now(), std::process::id());
        assert_eq!(watched.ask(us, 0, now), None, "the first look");
        assert_eq!(watched.ask(us, 0, now), None);
        let used = watched.ask(us, 0, now + BETWEEN_LOOKS).and_then(|Found(used)| used.ok());
        assert!(used.is_some_and(|used| used.memory > 0), "{used:?}");
        assert_eq!(watched.ask(us, 0, now + BETWEEN_LOOKS), None, "it is told already");

        for pid in 0..1000 {
            watched.ask(u32::MAX - pid, 0, now + BETWEEN_LOOKS);
        }
        assert_eq!(watched.processes.len(), MOST);
        assert_eq!(
            watched.ask(u32::MAX, 0, now + 2 * BETWEEN_LOOKS),
            Some(Found(Err(Unmeasured::Hidden))),
            "there is none"
        );
        watched.ask(us, 0, now + 3 * FORGOTTEN);
        assert_eq!(watched.processes.len(), 1);
    }

    #[test]
    fn a_process_that_has_the_number_of_another_one_is_not_measured() {
        let (mut watched, now, us) = (Watched::default(), Instant::now(), std::process::id());
        let begun = usage::begun(&usage::processes(), i32::try_from(us).unwrap()).unwrap().unsigned_abs();
        let mut found = Vec::new();
        for (look, started) in (0..).zip([begun, begun + 1, begun - 1, begun + 60, begun - 60, begun, begun]) {
            found.push(watched.ask(us, started, now + look * BETWEEN_LOOKS).map(|Found(found)| found.map(drop)));
        }

        let (well, another) = (Some(Ok(())), Some(Err(Unmeasured::Another)));
        assert_eq!(found, [None, well, well, another, another, None, well]);
    }
}
