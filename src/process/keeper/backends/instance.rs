//! One instance: what it is doing, why it is to be replaced, and what it uses.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, SystemTime},
};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::super::{WorkerId, usage::Meter};
use crate::{
    admin::{InstanceReport, timestamp},
    backends::{InstanceState as State, guard::STOP},
    config::{BackendPlan, EndpointAddress},
};

pub(super) struct Instance {
    pub(super) id: u32,
    pub(super) guard: Pid,
    /// The leader of its group and its session.
    pub(super) program: Option<Pid>,
    pub(super) line: UnixStream,
    pub(super) output: OwnedFd,
    pub(super) address: EndpointAddress,
    pub(super) state: State,
    /// Why it is to be replaced.
    pub(super) outdated: Option<Reason>,
    /// While it lingers.
    pub(super) lingers: Option<Lingers>,
    pub(super) plan: BackendPlan,
    pub(super) started: SystemTime,
    pub(super) begun: Instant,
    /// When it is told to end while it drains.
    pub(super) deadline: Option<Instant>,
    /// Workers that have nothing left in it.
    pub(super) drained: HashSet<WorkerId>,
    /// Requests by worker.
    pub(super) served: HashMap<WorkerId, u32>,
    pub(super) usage: Usage,
}

/// An instance that stays for clients that were there before it was replaced.
#[derive(Clone, Copy)]
pub(super) struct Lingers {
    pub(super) since: SystemTime,
    pub(super) begun: Instant,
    /// When one of them asked last, as far as is known.
    pub(super) asked: Instant,
}

/// What an instance uses.
#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) meter: Meter,
    /// Since when it has used more of the processors than its limit.
    pub(super) busy: Option<Instant>,
    pub(super) is_told: bool,
    /// It is told that nothing can be known of it.
    pub(super) is_unseen: bool,
}

/// Why an instance is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reason {
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

impl Instance {
    pub(super) fn is_current(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving)
    }

    pub(super) fn is_well(&self) -> bool {
        self.state == State::Serving && self.outdated.is_none()
    }

    /// Has it end; its guard sees to it.
    pub(super) fn stop(&mut self) {
        (self.state, self.lingers) = (State::Stopping, None);
        self.say(STOP);
    }

    pub(super) fn say(&self, word: u8) {
        if let Err(error) = io::Write::write_all(&mut &self.line, &[word]) {
            // Its guard has ended, which comes to be known by itself.
            tracing::debug!(error = &error as &dyn std::error::Error, "the guard of an instance is not told");
        }
    }

    pub(super) fn linger(&mut self) {
        self.state = State::Lingering;
        let now = Instant::now();
        self.lingers = Some(Lingers { since: SystemTime::now(), begun: now, asked: now });
    }

    pub(super) fn drain(&mut self) {
        (self.state, self.lingers) = (State::Draining, None);
        self.deadline = Some(Instant::now() + self.plan.drain);
    }

    pub(super) fn report(&self) -> InstanceReport {
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
    pub(super) fn is_beyond(&self) -> Option<Reason> {
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

impl Lingers {
    /// When that ends, where nobody asks before.
    pub(super) fn until(self, idle: Duration) -> Instant {
        (self.asked + idle).min(self.begun + LONGEST_STAY)
    }
}

impl Usage {
    pub(super) fn tell_unseen(&mut self, name: &str) {
        if !std::mem::replace(&mut self.is_unseen, true) {
            tracing::warn!(
                backend = name,
                "what an instance uses is hidden from us in /proc, so that `limits` of memory and cpu do nothing; with systemd, `ProtectProc=default` shows it"
            );
        }
    }

    /// Whether it is to be told that it has been busier than `most` for `time`.
    pub(super) fn is_busy(&mut self, most: Option<u32>, time: Duration, now: Instant) -> bool {
        if most.is_none_or(|most| self.meter.cpu <= most) {
            (self.busy, self.is_told) = (None, false);
            return false;
        }
        let since = *self.busy.get_or_insert(now);
        now.duration_since(since) >= time && !std::mem::replace(&mut self.is_told, true)
    }
}

/// For an instance that was replaced, however often it is still asked.
const LONGEST_STAY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

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
}
