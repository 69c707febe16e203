//! A program by its name: its instances, how often it fails, and what is done for the words of workers.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{
    super::WorkerId,
    instance::{Instance, Reason},
};
use crate::config::BackendPlan;

/// A program by its name in the configuration.
#[derive(Default)]
pub(super) struct Program {
    /// `None`: it is not in the configuration any more.
    pub(super) plan: Option<BackendPlan>,
    pub(super) instances: Vec<Instance>,
    /// Not before this is another one begun.
    pub(super) restart: Option<Instant>,
    /// Rounds in a row whose instances ended soon after their beginning.
    pub(super) quick_ends: u32,
    /// When the last of them was counted: what has been begun before then is of the same round.
    pub(super) counted: Option<Instant>,
    /// When an order last made an end of the pauses.
    pub(super) pardoned: Option<Instant>,
    pub(super) restarts: u64,
    pub(super) last_exit: Option<String>,
    /// Who waits for all instances to be replaced.
    pub(super) asked: Vec<(WorkerId, u32, Instant)>,
    /// Why one that was to take another one's place does not.
    pub(super) refused: Option<String>,
    /// Instances that were replaced because a worker said that they hang.
    pub(super) hung: Budget,
    /// It is told that there were too many of them.
    pub(super) left_alone: bool,
    /// Orders that a worker brought.
    pub(super) ordered: Budget,
}

/// What is done for a word of a worker's, which may have been taken over: so often in [`BUDGETED`], and no more.
#[derive(Default)]
pub(super) struct Budget(VecDeque<Instant>);

impl Program {
    /// How long those before stay without being asked.
    pub(super) fn drain_sessions(&self) -> Option<Duration> {
        self.plan.as_ref()?.drain_sessions
    }

    /// An instance has ended unasked, or did not get ready.
    pub(super) fn failed(&mut self, name: &str, id: u32, begun: Instant, why: &str, now: Instant) {
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
    pub(super) fn quick_end(&mut self, begun: Instant, now: Instant) -> bool {
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
    pub(super) fn pause(&self) -> Duration {
        let pause = (FIRST_PAUSE * 2_u32.saturating_pow(self.quick_ends.saturating_sub(1))).min(LONGEST_PAUSE);
        pause.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Whoever has asked for other instances, where the first of them has failed: those there are go on.
    pub(super) fn take_refused(&mut self) -> Vec<(WorkerId, u32, String)> {
        let Some(why) = self.refused.take().filter(|_| !self.asked.is_empty()) else { return Vec::new() };
        for instance in self.instances.iter_mut().filter(|instance| instance.outdated == Some(Reason::Asked)) {
            instance.outdated = None;
        }
        std::mem::take(&mut self.asked).into_iter().map(|(worker, id, _)| (worker, id, why.clone())).collect()
    }
}

impl Budget {
    /// Whether it may be done once more, of `most`; then it is counted.
    pub(super) fn take(&mut self, most: usize, now: Instant) -> bool {
        self.0.retain(|at| now.duration_since(*at) < BUDGETED);
        let may = self.0.len() < most;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

/// What is counted of them, and of instances that are said to hang, within this time.
pub(super) const BUDGETED: Duration = Duration::from_secs(60 * 60);
/// Quick ends in a row that are told one by one.
pub(super) const TOLD: u32 = 5;
/// Between two instances that end unasked again and again: from this, doubled, up to that.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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
    fn pauses_grow_to_a_bound() {
        let pauses = |quick_ends| Program { quick_ends, ..Program::default() }.pause();

        assert!(pauses(1) < Duration::from_millis(126) && pauses(1) >= Duration::from_millis(75));
        assert!(pauses(4) >= Duration::from_millis(600));
        assert!(pauses(u32::MAX) <= Duration::from_secs(75));
    }
}
