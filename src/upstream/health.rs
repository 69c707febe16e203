//! How an endpoint does, as requests and looks at its health page find it.
//!
//! Three things speak against an endpoint, and each of them ends in its own way: it is *unreachable* until a connection can
//! be made; *failing* until its health page has been well so many times; *ejected*, for what requests met there, until a
//! time is over. While any of them holds it is passed over, as long as there is another one. Whoever is the only one, or
//! one of many of which none is better, is used all the same.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;

use super::{micros, now_micros};
use crate::config::{EjectPlan, HealthPlan};

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Requests in a row that failed.
    failures: AtomicU32,
    /// Requests in a row that were not answered in their time, while nothing else was either.
    silences: AtomicU32,
    /// When it last answered anything.
    answered: AtomicU64,
    share: Share,
    ejected_until: AtomicU64,
    failing: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    looks_failed: u32,
    looks_well: u32,
    /// Why it is failing.
    why: String,
    /// Why it is ejected, or was.
    cause: Option<Cause>,
    /// For how long that was.
    time: Duration,
    /// How often it went away, since when.
    flips: u32,
    flips_since: u64,
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// So many requests in a row failed; this was the last of it.
    InARow(u32, Failure),
    /// It was silent for the whole time that a request waits, and nothing else was answered meanwhile.
    Silent(Duration),
    /// It came and went.
    Flapping,
    /// Of so many answers half and more were 5xx, unlike those of the others.
    Errors(u32),
}

/// How a request failed for which its endpoint can be blamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An answer of a kind that says that nobody is behind it.
    Status(StatusCode),
    /// No answer, or none that is HTTP.
    Unanswered,
    /// No answer within this time, counted from then on [`now_micros`]'s clock.
    Silent { began: u64, waited: Duration },
}

impl Cause {
    /// For metrics; one of [`crate::metrics::Ejection`].
    pub(super) fn kind(self) -> crate::metrics::Ejection {
        use crate::metrics::Ejection;
        match self {
            Self::InARow(_, Failure::Status(_)) | Self::Errors(_) => Ejection::Errors,
            Self::InARow(_, Failure::Unanswered) => Ejection::Closed,
            Self::InARow(_, Failure::Silent { .. }) | Self::Silent(_) => Ejection::Timeout,
            Self::Flapping => Ejection::Flapping,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InARow(count, failure) => {
                write!(f, "{count} failures in a row, the last one ")?;
                match failure {
                    Failure::Status(status) => write!(f, "an answer {}", status.as_u16()),
                    Failure::Unanswered => f.write_str("a request that was not answered"),
                    Failure::Silent { waited, .. } => write!(f, "silence for {waited:?}"),
                }
            }
            Self::Silent(waited) => write!(f, "it answered nothing for {waited:?}"),
            Self::Flapping => f.write_str("it comes and goes"),
            Self::Errors(answers) => {
                write!(f, "half and more of its last {answers} answers are 5xx, and not so elsewhere")
            }
        }
    }
}

/// How an endpoint stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Up,
    /// For so long.
    Unreachable(Duration),
    /// Its health page says so.
    Failing(String),
    /// For so much longer, and why.
    Ejected(Duration, Cause),
}

impl Health {
    /// Not worth an attempt while there is another endpoint.
    pub(super) fn is_passed_over(&self, now: u64) -> bool {
        self.is_ejected(now) || self.is_failing()
    }

    pub(super) fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// It takes requests and answers none of them, `least` of them in a row at least.
    pub(super) fn is_silent(&self, least: u32) -> bool {
        self.silences.load(Ordering::Relaxed) >= least
    }

    /// `None` while nothing speaks against it.
    pub(super) fn state(&self, now: u64) -> Option<State> {
        let known = self.known();
        let left = self.ejected_until.load(Ordering::Relaxed).saturating_sub(now);
        match known.cause {
            Some(cause) if left > 0 => Some(State::Ejected(Duration::from_micros(left), cause)),
            _ if self.is_failing() => Some(State::Failing(known.why.clone())),
            _ => None,
        }
    }

    /// It has answered; what this is reason to eject it for, the share of errors aside.
    pub(super) fn answered(&self, status: StatusCode, plan: &EjectPlan, now: u64) -> Option<Cause> {
        self.answered.store(now, Ordering::Relaxed);
        clear(&self.silences);
        self.share.count(status.is_server_error(), now);
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.one_more(Failure::Status(status), plan)
            }
            _ => {
                clear(&self.failures);
                None
            }
        }
    }

    /// It has said something, whatever it was.
    pub(super) fn heard(&self) {
        clear(&self.silences);
    }

    /// Another process is behind it: what speaks against the one before does not speak against this one.
    pub(super) fn begins_anew(&self) {
        clear(&self.silences);
        clear(&self.failures);
        self.ejected_until.store(0, Ordering::Relaxed);
    }

    /// Whether a request that was not answered since `began` was unlike others: a page may be slow, while others are answered.
    pub(super) fn was_silent(&self, began: u64) -> bool {
        self.answered.load(Ordering::Relaxed) <= began
    }

    /// A request has failed; what this is reason to eject it for.
    pub(super) fn failed(&self, failure: Failure, plan: &EjectPlan) -> Option<Cause> {
        let Failure::Silent { began, waited } = failure else {
            // It is gone, or coming: that is no silence.
            clear(&self.silences);
            return self.one_more(failure, plan);
        };
        if !self.was_silent(began) {
            return None;
        }
        self.silences.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
        Some(Cause::Silent(waited))
    }

    fn one_more(&self, failure: Failure, plan: &EjectPlan) -> Option<Cause> {
        let count = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        (count >= plan.failures).then_some(Cause::InARow(count, failure))
    }

    /// No connection could be made, after one could; whether it does that too often.
    pub(super) fn went_away(&self, now: u64) -> Option<Cause> {
        clear(&self.silences);
        let mut known = self.known();
        if now.saturating_sub(known.flips_since) > micros(FLAPPING) {
            (known.flips, known.flips_since) = (0, now);
        }
        known.flips += 1;
        // One that has just been let back is not trusted that far.
        let again = known.cause.is_some() && !self.has_been_well(&known, now);
        (known.flips >= FLIPS || again).then_some(Cause::Flapping)
    }

    /// Its answers are errors far more often than those of `others`.
    pub(super) fn has_more_errors<'a>(&self, others: impl Iterator<Item = &'a Self>, now: u64) -> Option<Cause> {
        let (answers, errors) = self.share.last(now);
        if answers < SHARE_OF || errors * 2 < answers {
            return None;
        }
        let sum = |(all, wrong): (u64, u64), other: &Self| {
            let (answers, errors) = other.share.last(now);
            (all + u64::from(answers), wrong + u64::from(errors))
        };
        let (all, wrong) = others.fold((0, 0), sum);
        let stands_out = all > 0 && wrong * 2 * u64::from(answers) < u64::from(errors) * all;
        stands_out.then_some(Cause::Errors(answers))
    }

    /// Ejects it; answers for how long, `None` if it is already.
    pub(super) fn eject(&self, cause: Cause, plan: &EjectPlan, now: u64) -> Option<Duration> {
        let mut known = self.known();
        if self.is_ejected(now) {
            return None;
        }
        known.time =
            if self.has_been_well(&known, now) { plan.time } else { (known.time * 2).min(LONGEST).max(plan.time) };
        known.cause = Some(cause);
        self.failures.store(0, Ordering::Relaxed);
        self.ejected_until.store(now + micros(known.time), Ordering::Relaxed);
        Some(known.time)
    }

    /// For as long as it was ejected, since then; or it never was.
    fn has_been_well(&self, known: &Known, now: u64) -> bool {
        known.cause.is_none() || now > self.ejected_until.load(Ordering::Relaxed) + micros(known.time)
    }

    /// A look at its health page went well, or not, for this reason; answers whether that begins or ends its failing.
    pub(super) fn looked(&self, found: Result<(), &str>, plan: &HealthPlan, now: u64) -> bool {
        let mut known = self.known();
        match found {
            Ok(()) => {
                known.looks_failed = 0;
                known.looks_well = known.looks_well.saturating_add(1);
                clear(&self.silences);
                self.answered.store(now, Ordering::Relaxed);
                // It was silent, and is not any more.
                if matches!(known.cause, Some(Cause::Silent(_))) && self.is_ejected(now) {
                    self.ejected_until.store(now, Ordering::Relaxed);
                }
                known.looks_well >= plan.successes && self.failing.swap(false, Ordering::Relaxed)
            }
            Err(why) => {
                known.looks_well = 0;
                known.looks_failed = known.looks_failed.saturating_add(1);
                if known.looks_failed < plan.failures {
                    return false;
                }
                why.clone_into(&mut known.why);
                !self.failing.swap(true, Ordering::Relaxed)
            }
        }
    }

    /// Another page is looked at from now on, or none.
    pub(super) fn forget_looks(&self) {
        let mut known = self.known();
        (known.looks_failed, known.looks_well) = (0, 0);
        self.failing.store(false, Ordering::Relaxed);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most often it is zero already, and nothing is written.
fn clear(count: &AtomicU32) {
    if count.load(Ordering::Relaxed) != 0 {
        count.store(0, Ordering::Relaxed);
    }
}

/// How many of the last answers were errors. Counts of threads that meet may be off by one.
#[derive(Debug, Default)]
struct Share {
    since: AtomicU64,
    answers: AtomicU32,
    errors: AtomicU32,
}

impl Share {
    fn count(&self, error: bool, now: u64) {
        if now.saturating_sub(self.since.load(Ordering::Relaxed)) > micros(SHARE_WITHIN) {
            self.since.store(now, Ordering::Relaxed);
            self.answers.store(0, Ordering::Relaxed);
            self.errors.store(0, Ordering::Relaxed);
        }
        self.answers.fetch_add(1, Ordering::Relaxed);
        if error {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn last(&self, now: u64) -> (u32, u32) {
        if now.saturating_sub(self.since.load(Ordering::Relaxed)) > 2 * micros(SHARE_WITHIN) {
            return (0, 0);
        }
        (self.answers.load(Ordering::Relaxed), self.errors.load(Ordering::Relaxed))
    }
}

impl Failure {
    /// No answer to a request that began just now, `waited` later.
    #[must_use]
    pub fn silent(waited: Duration, total: Duration) -> Self {
        Self::Silent { began: now_micros().saturating_sub(micros(total)), waited }
    }
}

/// The longest that an endpoint is ejected.
const LONGEST: Duration = Duration::from_secs(300);
/// One that goes away this often within this time is flapping.
const FLIPS: u32 = 3;
const FLAPPING: Duration = Duration::from_secs(60);
/// Of how many answers within what time a share is made.
const SHARE_OF: u32 = 20;
const SHARE_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const EJECT: EjectPlan = EjectPlan { failures: 3, time: Duration::from_secs(10), most: 50 };
    const SECOND: u64 = 1_000_000;

    pub(in crate::upstream) fn looks() -> HealthPlan {
        HealthPlan {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            status: vec![200],
            body: None,
            failures: 3,
            successes: 2,
        }
    }

    #[test]
    fn failures_count_in_a_row_only() {
        let health = Health::default();
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        for (status, reason) in [
            (unavailable, false),
            (unavailable, false),
            (StatusCode::INTERNAL_SERVER_ERROR, false),
            (unavailable, false),
            (unavailable, false),
            (unavailable, true),
        ] {
            assert_eq!(health.answered(status, &EJECT, SECOND).is_some(), reason, "{status}");
        }
        assert_eq!(
            Cause::InARow(3, Failure::Status(unavailable)).to_string(),
            "3 failures in a row, the last one an answer 503"
        );
    }

    #[test]
    fn a_slow_page_is_no_silence_while_others_are_answered() {
        let health = Health::default();
        let waited = Duration::from_secs(60);
        let slow = Failure::Silent { began: SECOND, waited };
        assert_eq!(health.failed(slow, &EJECT), Some(Cause::Silent(waited)));
        assert!(health.is_silent(1));

        health.answered(StatusCode::OK, &EJECT, 2 * SECOND);

        assert_eq!(health.failed(slow, &EJECT), None);
        assert!(!health.is_silent(1));
    }

    #[test]
    fn an_ejection_lasts_longer_each_time_until_it_has_been_well_for_as_long() {
        let health = Health::default();
        let mut now = SECOND;
        let mut times = Vec::new();
        for _ in 0..7 {
            let time = health.eject(Cause::Flapping, &EJECT, now).unwrap();
            assert_eq!(health.eject(Cause::Flapping, &EJECT, now), None, "it is ejected already");
            assert!(health.is_passed_over(now));
            times.push(time.as_secs());
            now += micros(time) + SECOND;
            assert!(!health.is_passed_over(now), "the time is over");
        }
        assert_eq!(times, [10, 20, 40, 80, 160, 300, 300]);

        now += 300 * SECOND;
        assert_eq!(health.eject(Cause::Flapping, &EJECT, now).unwrap().as_secs(), 10);
    }

    #[test]
    fn one_that_goes_away_three_times_in_a_minute_is_flapping() {
        let health = Health::default();
        let at = |second: u64| second * SECOND;
        assert_eq!(health.went_away(at(100)), None);
        assert_eq!(health.went_away(at(102)), None);
        assert_eq!(health.went_away(at(170)), None, "that is another minute");
        assert_eq!(health.went_away(at(172)), None);
        assert_eq!(health.went_away(at(174)), Some(Cause::Flapping));

        health.eject(Cause::Flapping, &EJECT, at(174));
        assert_eq!(health.went_away(at(240)), None, "long ago");
        health.eject(Cause::Flapping, &EJECT, at(240));
        assert_eq!(health.went_away(at(301)), None);
    }

    #[test]
    fn one_that_was_let_back_just_now_is_ejected_again_at_its_first_failing() {
        let health = Health::default();
        let at = |second: u64| second * SECOND;
        health.eject(Cause::Flapping, &EJECT, at(100));

        assert_eq!(health.went_away(at(112)), Some(Cause::Flapping));
    }

    #[test]
    fn a_health_page_has_to_fail_and_to_be_well_so_many_times_in_a_row() {
        let health = Health::default();
        let looks = looks();
        let mut flips = Vec::new();
        for well in [false, false, true, false, false, false, false, true, false, true, true, true] {
            let found = if well { Ok(()) } else { Err("answered 500") };
            flips.push((health.looked(found, &looks, SECOND), health.is_failing()));
        }
        let nothing = (false, false);
        let failing = (false, true);
        assert_eq!(
            flips,
            [
                nothing,
                nothing,
                nothing,
                nothing,
                nothing,
                (true, true),
                failing,
                failing,
                failing,
                failing,
                (true, false),
                nothing
            ]
        );
    }

    #[test]
    fn a_page_that_answers_ends_the_ejection_of_one_that_was_silent() {
        let (silent, other) = (Health::default(), Health::default());
        silent.eject(Cause::Silent(Duration::from_secs(60)), &EJECT, SECOND);
        other.eject(Cause::Flapping, &EJECT, SECOND);

        silent.looked(Ok(()), &looks(), 2 * SECOND);
        other.looked(Ok(()), &looks(), 2 * SECOND);

        assert!(!silent.is_passed_over(2 * SECOND));
        assert!(other.is_passed_over(2 * SECOND), "what it was ejected for is not what was looked at");
    }

    #[test]
    fn errors_count_where_one_has_far_more_of_them_than_the_others() {
        let [bad, good] = [Health::default(), Health::default()];
        let error = StatusCode::INTERNAL_SERVER_ERROR;
        for index in 0..SHARE_OF {
            bad.answered(if index % 2 == 0 { error } else { StatusCode::OK }, &EJECT, SECOND);
            good.answered(StatusCode::OK, &EJECT, SECOND);
        }
        assert_eq!(bad.has_more_errors([&good].into_iter(), SECOND), Some(Cause::Errors(20)));
        assert_eq!(good.has_more_errors([&bad].into_iter(), SECOND), None);
        assert_eq!(bad.has_more_errors(std::iter::empty(), SECOND), None, "nobody to compare it with");

        for _ in 0..SHARE_OF {
            good.answered(error, &EJECT, SECOND);
        }
        assert_eq!(bad.has_more_errors([&good].into_iter(), SECOND), None, "it is the application's own fault");
    }
}
