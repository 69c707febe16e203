//! How many requests may be sent again: a part of those that came in the last seconds, so that an application in trouble is
//! not asked for more than it was before.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::RetriesPlan;

/// Counts of the last seconds, shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Retries {
    requests: Recent,
    sent: Recent,
}

impl Retries {
    /// A request has come.
    pub(super) fn request(&self, now: u64) {
        self.requests.count(now);
    }

    /// Whether one may be sent again, which is counted.
    pub(super) fn take(&self, plan: RetriesPlan, now: u64) -> bool {
        let allowed = u64::from(plan.floor) + self.requests.sum(now) * u64::from(plan.budget) / 100;
        let within = self.sent.sum(now) < allowed;
        if within {
            self.sent.count(now);
        }
        within
    }
}

/// One count for each second, with the second it is of above it.
#[derive(Debug, Default)]
struct Recent([AtomicU64; SECONDS]);

impl Recent {
    fn count(&self, now: u64) {
        let second = (now / SECOND) & MASK;
        let add = |slot: u64| Some(if slot >> 32 == second { slot + 1 } else { second << 32 | 1 });
        let slot = &self.0[usize::try_from(second).unwrap_or(0) % SECONDS];
        slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok();
    }

    fn sum(&self, now: u64) -> u64 {
        let second = (now / SECOND) & MASK;
        let of_now = |slot: &u64| second.saturating_sub(slot >> 32) < SECONDS as u64;
        self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(of_now).map(|slot| slot & MASK).sum()
    }
}

const SECONDS: usize = 10;
/// In microseconds.
const SECOND: u64 = 1_000_000;
const MASK: u64 = u32::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_requests_of_the_last_seconds_may_be_sent_again() {
        let retries = Retries::default();
        let plan = RetriesPlan { budget: 20, floor: 2 };
        let taken = |now: u64| (0..1000).take_while(|_| retries.take(plan, now)).count();
        assert_eq!(taken(100 * SECOND), 2, "the floor");

        for second in 110..120 {
            (0..10).for_each(|_| retries.request(second * SECOND));
        }
        assert_eq!(taken(119 * SECOND), 2 + 20);
        assert_eq!(taken(119 * SECOND), 0);
        assert_eq!(taken(124 * SECOND), 0, "half of the requests are forgotten, and no retry");
        assert_eq!(taken(129 * SECOND), 2, "all of them are forgotten");
    }
}
