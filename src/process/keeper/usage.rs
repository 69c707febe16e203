//! What processes use, as the kernel tells it.

use std::{
    collections::{HashMap, HashSet},
    fs,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// A process as `/proc` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// Bytes.
    memory: u64,
    /// Of processor time, with that of children it has waited for.
    ticks: u64,
    /// When it was begun, in ticks since the machine was.
    begun: u64,
}

/// What some processes use together, look after look.
#[derive(Clone, Copy, Default)]
pub(super) struct Meter {
    /// Bytes.
    pub(super) memory: u64,
    /// Of processor time, in all, when it was last looked at.
    ticks: u64,
    pub(super) looked: Option<Instant>,
    /// Percents of a processor since the look before.
    pub(super) cpu: u32,
}

impl Meter {
    pub(super) fn note(&mut self, memory: u64, ticks: u64, now: Instant) {
        if let Some(looked) = self.looked {
            let used = ticks.saturating_sub(self.ticks) * 1000 / rustix::param::clock_ticks_per_second();
            let passed = u64::try_from(now.duration_since(looked).as_millis()).unwrap_or(u64::MAX);
            self.cpu = u32::try_from(used * 100 / passed.max(1)).unwrap_or(u32::MAX);
        }
        (self.memory, self.ticks, self.looked) = (memory, ticks, Some(now));
    }
}

/// All that we may see.
pub(super) fn processes() -> Vec<Process> {
    let pid = |process: &fs::DirEntry| process.file_name().to_str()?.parse::<i32>().ok();
    let read = |process: fs::DirEntry| {
        let pid = pid(&process)?;
        // A name need not be text.
        read(pid, &String::from_utf8_lossy(&fs::read(process.path().join("stat")).ok()?))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(read).collect()
}

/// Bytes of memory and ticks of processor time of all processes of each session.
pub(super) fn by_session(processes: &[Process]) -> HashMap<i32, (u64, u64)> {
    let mut all: HashMap<i32, (u64, u64)> = HashMap::new();
    for process in processes {
        let entry = all.entry(process.session).or_default();
        *entry = (entry.0 + process.memory, entry.1 + process.ticks);
    }
    all
}

/// The same of `root` and all that it began; `None` where it is not seen.
pub(super) fn of_tree(processes: &[Process], root: i32) -> Option<(u64, u64)> {
    processes.iter().find(|process| process.pid == root)?;
    // A number may be another process's by the time its children are read: nobody is counted twice.
    let (mut seen, mut parents) = (HashSet::from([root]), vec![root]);
    while let Some(parent) = parents.pop() {
        let children = processes.iter().filter(|process| process.parent == parent).map(|process| process.pid);
        parents.extend(children.filter(|child| seen.insert(*child)));
    }
    let members = processes.iter().filter(|process| seen.contains(&process.pid));
    Some(members.fold((0, 0), |(memory, ticks), process| (memory + process.memory, ticks + process.ticks)))
}

/// When `pid` was begun, in seconds since 1970; `None` where it is not seen.
pub(super) fn begun(processes: &[Process], pid: i32) -> Option<i64> {
    let process = processes.iter().find(|process| process.pid == pid)?;
    let seconds = |clock| clock_gettime(clock).tv_sec;
    let machine = seconds(ClockId::Realtime) - seconds(ClockId::Boottime);
    Some(machine + i64::try_from(process.begun / rustix::param::clock_ticks_per_second()).ok()?)
}

/// The process `pid`, of one line of `/proc/PID/stat`.
fn read(pid: i32, stat: &str) -> Option<Process> {
    // A name may have any character in it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        pid,
        parent: fields.get(4 - 3)?.parse().ok()?,
        session: fields.get(6 - 3)?.parse().ok()?,
        memory: number(24)? * rustix::param::page_size() as u64,
        ticks: number(14)? + number(15)? + number(16)? + number(17)?,
        begun: number(22)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_processor_time_are_read_whatever_a_program_is_called() {
        let line = "7 (a) b) S 1 5 6 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 50 1000 3 18446744073709551615 0";

        let memory = 3 * rustix::param::page_size() as u64;
        assert_eq!(read(7, line), Some(Process { pid: 7, parent: 1, session: 6, memory, ticks: 127, begun: 50 }));
        assert_eq!(read(7, "7 (a"), None);
    }

    #[test]
    fn when_a_process_was_begun_is_known_by_the_clock_of_everybody() {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut child = child.unwrap();

        let begun = begun(&processes(), i32::try_from(child.id()).unwrap());

        child.kill().unwrap();
        child.wait().unwrap();
        assert!(begun.is_some_and(|begun| begun.abs_diff(i64::try_from(now).unwrap()) <= 2), "{begun:?} and not {now}");
    }

    #[test]
    fn a_tree_is_a_process_and_all_that_it_began() {
        let process = |pid, parent| Process { pid, parent, session: 1, memory: 10, ticks: 1, begun: 0 };
        let all = [process(1, 0), process(5, 1), process(7, 6), process(6, 5), process(8, 1)];

        assert_eq!(of_tree(&all, 5), Some((30, 3)));
        assert_eq!(of_tree(&all, 9), None);
        assert_eq!(
            of_tree(&[process(5, 6), process(6, 5)], 5),
            Some((20, 2)),
            "numbers that were given anew meanwhile"
        );
    }
}
