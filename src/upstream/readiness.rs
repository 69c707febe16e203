//! Whether an application is ready, as its own page for that says, and since when it is not.
//!
//! A guess is made in favour of the application: until its page has said something (just after a start, or an upgrade of
//! ours) requests go on as if there were no such page, and once it was ready only a refused connection, or the page itself,
//! says otherwise. A page that is slow says nothing: every thread of the application may be busy.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;

/// What one look at the page found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// 200.
    Ready,
    /// Another answer: the application runs, and says that it is not ready.
    NotYet(StatusCode),
    /// A server error: it listens, and cannot do its work.
    Failing(StatusCode),
    /// Nobody listens.
    Refused,
    /// No answer in time.
    Silent,
}

/// Where an application is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Its page has not said anything yet.
    Unknown,
    /// Not ready yet: clients are shown the starting page.
    Starting,
    Ready,
    /// It was ready, and cannot be connected to.
    Gone,
    /// It was ready, and says that it is not any more.
    Stopping,
}

impl Phase {
    /// As `/status` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Gone => "gone",
            Self::Stopping => "stopping",
        }
    }

    fn after(self, finding: Finding) -> Self {
        match (self, finding) {
            (_, Finding::Ready) => Self::Ready,
            // An error of one that was ready is said better by its own pages.
            (phase, Finding::Silent) | (phase @ (Self::Ready | Self::Stopping), Finding::Failing(_)) => phase,
            // What is being stopped is gone in the end, as was to be expected.
            (Self::Ready | Self::Stopping, Finding::NotYet(_)) | (Self::Stopping, Finding::Refused) => Self::Stopping,
            (Self::Ready | Self::Gone, Finding::Refused) => Self::Gone,
            (Self::Unknown | Self::Starting | Self::Gone, _) => Self::Starting,
        }
    }
}

/// What is known of one application.
#[derive(Debug)]
pub struct Readiness {
    /// Of `known`, for the path of a request.
    phase: AtomicU8,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    phase: Phase,
    since: Instant,
    last: Option<Finding>,
    /// Since when it has answered, and said that it is not ready, without a break.
    not_yet: Option<Instant>,
    /// That has gone on for so long that it is not believed any more.
    let_in: bool,
}

impl Default for Readiness {
    fn default() -> Self {
        let known = Known { phase: Phase::Unknown, since: Instant::now(), last: None, not_yet: None, let_in: false };
        Self { phase: AtomicU8::new(Phase::Unknown as u8), known: Mutex::new(known) }
    }
}

impl Readiness {
    /// Clients are to be shown the starting page.
    pub fn is_starting(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Starting as u8
    }

    /// Waiting for a connection is of no use: the page says by itself when there is one again.
    pub fn lets_go(&self) -> bool {
        let phase = self.phase.load(Ordering::Relaxed);
        phase == Phase::Starting as u8 || phase == Phase::Stopping as u8
    }

    pub fn phase(&self) -> Phase {
        self.known().phase
    }

    /// For how long it has been in this phase.
    pub fn since(&self) -> Duration {
        self.known().since.elapsed()
    }

    /// Takes a finding for known; answers the phase that this begins, if it is another, for an operator to be told.
    #[must_use]
    pub fn found(&self, finding: Finding) -> Option<Phase> {
        self.found_at(finding, Instant::now())
    }

    fn found_at(&self, finding: Finding, now: Instant) -> Option<Phase> {
        let mut known = self.known();
        if finding != Finding::Silent || known.last.is_none() {
            known.last = Some(finding);
        }
        match finding {
            Finding::NotYet(_) => known.not_yet = known.not_yet.or(Some(now)),
            Finding::Silent => {}
            Finding::Ready | Finding::Failing(_) | Finding::Refused => (known.not_yet, known.let_in) = (None, false),
        }
        let mut phase = known.phase.after(finding);
        // One whose page never says it is ready must not be kept from everybody for ever.
        if matches!(finding, Finding::NotYet(_))
            && phase == Phase::Starting
            && known.not_yet.is_some_and(|since| now.duration_since(since) >= LET_IN)
        {
            known.let_in = true;
        }
        if phase == Phase::Starting && known.let_in {
            phase = Phase::Unknown;
        }
        if phase == known.phase {
            return None;
        }
        // What comes up again after it was gone has been missing all the time.
        if !(known.phase == Phase::Gone && phase == Phase::Starting) {
            known.since = now;
        }
        known.phase = phase;
        self.phase.store(phase as u8, Ordering::Relaxed);
        Some(phase)
    }

    /// What is missing, in words; `None` where nothing is known to be.
    pub fn words(&self) -> Option<&'static str> {
        let known = self.known();
        match known.phase {
            Phase::Unknown | Phase::Ready => None,
            Phase::Gone => Some("has stopped answering"),
            Phase::Stopping => Some("is being stopped"),
            Phase::Starting => Some(match known.last {
                Some(Finding::NotYet(_)) => "is running, and not ready yet",
                Some(Finding::Failing(_)) => "has started with an error",
                _ => "is not running yet",
            }),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an application that answers is believed that it is not ready yet.
pub(super) const LET_IN: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_YET: Finding = Finding::NotYet(StatusCode::BAD_REQUEST);
    const FAILING: Finding = Finding::Failing(StatusCode::INTERNAL_SERVER_ERROR);

    #[test]
    fn an_application_starts_is_ready_and_stops() {
        let readiness = Readiness::default();
        let mut seen = Vec::new();
        for finding in [
            Finding::Silent,
            Finding::Refused,
            Finding::Refused,
            NOT_YET,
            Finding::Silent,
            Finding::Ready,
            Finding::Silent,
            FAILING,
            NOT_YET,
            Finding::Refused,
            Finding::Ready,
            Finding::Refused,
            FAILING,
            Finding::Ready,
        ] {
            seen.extend(readiness.found(finding));
        }
        let names: Vec<_> = seen.into_iter().map(Phase::name).collect();
        assert_eq!(names, ["starting", "ready", "stopping", "ready", "gone", "starting", "ready"]);
    }

    #[test]
    fn only_what_is_known_not_to_be_ready_is_kept_from_clients() {
        for (findings, starting, lets_go, words) in [
            (&[][..], false, false, None),
            (&[Finding::Silent], false, false, None),
            (&[Finding::Refused], true, true, Some("is not running yet")),
            (&[NOT_YET], true, true, Some("is running, and not ready yet")),
            (&[FAILING], true, true, Some("has started with an error")),
            (&[Finding::Refused, Finding::Ready], false, false, None),
            (&[Finding::Ready, Finding::Refused], false, false, Some("has stopped answering")),
            (&[Finding::Ready, NOT_YET], false, true, Some("is being stopped")),
            (&[Finding::Ready, FAILING], false, false, None),
            (&[NOT_YET, Finding::Silent], true, true, Some("is running, and not ready yet")),
        ] {
            let readiness = Readiness::default();
            for finding in findings {
                let _begun = readiness.found(*finding);
            }
            assert_eq!((readiness.is_starting(), readiness.lets_go()), (starting, lets_go), "{findings:?}");
            assert_eq!(readiness.words(), words, "{findings:?}");
        }
    }

    #[test]
    fn one_that_never_says_that_it_is_ready_is_let_in_all_the_same() {
        let readiness = Readiness::default();
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        assert_eq!(readiness.found_at(NOT_YET, at(0)), Some(Phase::Starting));
        assert_eq!(readiness.found_at(NOT_YET, at(299)), None);
        assert_eq!(readiness.found_at(Finding::Silent, at(300)), None);
        assert_eq!(readiness.found_at(NOT_YET, at(301)), Some(Phase::Unknown));
        assert!(!readiness.is_starting());
        assert_eq!(readiness.found_at(NOT_YET, at(302)), None, "and stays in");
        assert_eq!(readiness.found_at(Finding::Refused, at(303)), Some(Phase::Starting), "until it goes");
        assert_eq!(readiness.found_at(NOT_YET, at(304)), None, "from then on it has its time again");
        assert_eq!(readiness.found_at(Finding::Ready, at(305)), Some(Phase::Ready));
    }
}
