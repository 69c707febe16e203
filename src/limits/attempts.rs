//! How often a client may be wrong.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{Client, slots::Slots};

/// Wrong tries of each client: so many at once, and then one more each time that one has been forgiven (GCRA).
///
/// Unlike a rate, it is asked before anything is counted: whether a try is wrong is only known once it has been looked at.
#[derive(Debug)]
pub struct Attempts {
    at_once: u32,
    forgiven_in: Duration,
    /// Until when there is something to forgive, in milliseconds since [`Self::began`].
    until: Slots<AtomicU64>,
    began: Instant,
}

impl Attempts {
    pub fn new(at_once: u32, forgiven_in: Duration) -> Self {
        Self { at_once, forgiven_in, until: Slots::new(), began: Instant::now() }
    }

    /// After what time `client` may try again; `None`: now.
    pub fn wait(&self, client: Client) -> Option<Duration> {
        self.wait_at(client, self.began.elapsed())
    }

    /// `client` was wrong.
    pub fn failed(&self, client: Client) {
        self.failed_at(client, self.began.elapsed());
    }

    fn wait_at(&self, client: Client, now: Duration) -> Option<Duration> {
        let until = Duration::from_millis(self.slot(client).load(Relaxed));
        let bound = now + self.forgiven_in * self.at_once.saturating_sub(1);
        until.checked_sub(bound).filter(|wait| !wait.is_zero())
    }

    fn failed_at(&self, client: Client, now: Duration) {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let one_more = |until: u64| until.max(milliseconds(now)).saturating_add(milliseconds(self.forgiven_in));
        self.slot(client).fetch_update(Relaxed, Relaxed, |until| Some(one_more(until))).ok();
    }

    fn slot(&self, client: Client) -> &AtomicU64 {
        self.until.slot(self.until.of(&client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_wrong_too_often_waits_until_one_is_forgiven_and_others_do_not() {
        let attempts = Attempts::new(3, Duration::from_secs(6));
        let [client, other] = ["192.0.2.1", "192.0.2.2"].map(|address| Client::new(address.parse().unwrap()));
        let now = Duration::from_secs(1000);

        for _ in 0..3 {
            assert_eq!(attempts.wait_at(client, now), None);
            attempts.failed_at(client, now);
        }

        assert_eq!(attempts.wait_at(client, now), Some(Duration::from_secs(6)));
        assert_eq!(attempts.wait_at(client, now + Duration::from_secs(4)), Some(Duration::from_secs(2)));
        assert_eq!(attempts.wait_at(other, now), None);
        assert_eq!(attempts.wait_at(client, now + Duration::from_secs(6)), None);
        attempts.failed_at(client, now + Duration::from_secs(6));
        assert_eq!(attempts.wait_at(client, now + Duration::from_secs(6)), Some(Duration::from_secs(6)));
    }
}
