//! Tells of certificates that somebody has to do something about.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::Notify, time::timeout};

use crate::{
    config::Problem,
    drain::Drain,
    runtime::Current,
    tls::{self, Certificate, CertificateStore},
};

/// Tells of dates that end or have ended, and of hosts that no certificate is for: when that comes to be so, and once a
/// day.
///
/// `admin` is that of the admin endpoint. `changed` says that there are other certificates or other hosts. Ends when the gateway is to leave: another one tells.
pub(super) async fn look_after(
    certificates: Arc<CertificateStore>,
    admin: Arc<ArcSwapOption<Certificate>>,
    current: Arc<Current>,
    changed: Arc<Notify>,
    drain: Drain,
) {
    let mut told = Told::default();
    while !drain.is_on() {
        let (plan, now) = (current.load_full(), Timestamp::now());
        let mut found = tls::findings(&plan.plan, &certificates.certificates(), now);
        found.extend(admin.load().as_ref().and_then(|certificate| tls::admin_warning(certificate, now)));
        for Problem { at, problem } in told.news(found, now) {
            tracing::warn!(at, "a certificate needs attention: {problem}");
        }
        drop(plan);
        timeout(LOOK, changed.notified()).await.ok();
    }
}

/// What was told, and when.
#[derive(Default)]
struct Told(HashMap<(String, String), Timestamp>);

impl Told {
    /// What of `found` is to be told at `now`. What is not found any more is news when it comes again.
    fn news(&mut self, found: Vec<Problem>, now: Timestamp) -> Vec<Problem> {
        let mut before = std::mem::take(&mut self.0);
        let mut news = Vec::new();
        for found in found {
            let key = (found.at.clone(), found.problem.clone());
            let last = before.remove(&key).filter(|last| now.duration_since(*last) < DAY);
            self.0.insert(key, last.unwrap_or(now));
            if last.is_none() {
                news.push(found);
            }
        }
        news
    }
}

/// An hour late is soon enough, and the clock may have been set.
const LOOK: Duration = Duration::from_secs(60 * 60);
const DAY: SignedDuration = SignedDuration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_when_it_comes_and_once_a_day_while_it_stays() {
        let mut told = Told::default();
        let start = Timestamp::UNIX_EPOCH;
        let one = || Problem { at: "one".to_owned(), problem: "ends soon".to_owned() };
        let other = || Problem { at: "one".to_owned(), problem: "has ended".to_owned() };
        for (hours, found, expected) in [
            (0, vec![one()], 1),
            (1, vec![one()], 0),
            (23, vec![one()], 0),
            (24, vec![one()], 1),
            (25, vec![one()], 0),
            (26, vec![other()], 1),
            (27, vec![], 0),
            (28, vec![other()], 1),
        ] {
            let news = told.news(found, start + SignedDuration::from_hours(hours));
            assert_eq!(news.len(), expected, "after {hours} hours");
        }
    }
}
