//! What is remembered of a certificate between two attempts to order it, across restarts.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::tls::{SecretBytes, storage::Version};

/// The state of one certificate's orders; no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Record {
    /// The directory that the certificate there is was ordered from.
    pub(crate) issued_by: Option<String>,
    pub(crate) profile: Option<String>,
    /// It was ordered by other means, and is as wanted until it is due, whoever issued it.
    pub(crate) imported: bool,
    /// An order that is under way.
    pub(crate) order: Option<Placed>,
    /// Attempts that have failed since the last that did not.
    pub(crate) failures: u32,
    /// Why the last one did, and when.
    pub(crate) last_failure: Option<Failure>,
    /// No attempt before then.
    pub(crate) not_before: Option<Timestamp>,
    /// Directories that have said when to come again.
    pub(crate) paused: BTreeMap<String, Timestamp>,
    /// An operator wants another one, whatever the age of the one there is.
    pub(crate) wanted: bool,
    /// Since when nobody was asked because of what was found in the way.
    pub(crate) grounded: Option<Timestamp>,
    /// Seconds that the last one was valid for.
    pub(crate) life: Option<i64>,
    /// When the last orders came to something, and when they did not: at most [`REMEMBERED`] each.
    pub(crate) issued: VecDeque<Timestamp>,
    pub(crate) refused: VecDeque<Timestamp>,
    /// What the CA advises (RFC 9773).
    pub(crate) advice: Option<Advice>,
    /// Which version of what is kept this was read from; `None`: there was nothing.
    #[serde(skip)]
    pub(crate) version: Option<Version>,
}

/// An order that a CA has taken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Placed {
    pub(crate) directory: String,
    pub(crate) url: String,
    #[serde(default)]
    pub(crate) profile: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Failure {
    pub(crate) at: Timestamp,
    pub(crate) why: String,
}

/// When to renew, by ARI, for the certificate of this serial.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Advice {
    /// The identifier of the certificate (RFC 9773, 4.1).
    pub(crate) certificate: String,
    /// A moment in the window, chosen once.
    pub(crate) renew_at: Timestamp,
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    /// When to ask again.
    pub(crate) ask_again: Timestamp,
    pub(crate) explanation: Option<String>,
}

impl Record {
    /// As it is kept.
    pub(crate) fn bytes(&self) -> SecretBytes {
        SecretBytes::new(serde_json::to_vec(self).expect("a record becomes JSON"))
    }

    /// Takes an attempt for failed at `now`; the next one is not before `told`, if the CA has told.
    pub(crate) fn failed(&mut self, why: String, told: Option<Timestamp>, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        let step = usize::try_from(self.failures).unwrap_or(usize::MAX).min(PAUSES.len()) - 1;
        // A fifth more or less, so that those that failed together do not come again together.
        let pause = PAUSES[step] * (80 + i64::from(fastrand::u8(0..=40))) / 100;
        let own = later(now, pause);
        let longest = later(now, LONGEST_TOLD);
        self.not_before = Some(told.map_or(own, |told| told.min(longest).max(own)));
        self.last_failure = Some(Failure { at: now, why });
        self.grounded = None;
        remember(&mut self.refused, now);
    }

    /// Until when it is left alone; `None`: it may be ordered now.
    pub(crate) fn rests_until(&self, now: Timestamp) -> Option<Timestamp> {
        // What was written by a clock that was ahead says nothing.
        let was_ahead = self.last_failure.as_ref().is_some_and(|failure| failure.at > later(now, 300));
        self.not_before.filter(|at| *at > now && *at <= later(now, LONGEST_TOLD) && !was_ahead)
    }

    /// Until when `directory` is not to be asked.
    pub(crate) fn paused_until(&self, directory: &str, now: Timestamp) -> Option<Timestamp> {
        self.paused.get(directory).copied().filter(|at| *at > now && *at <= later(now, LONGEST_TOLD))
    }

    /// Takes note of what is in the way of an attempt, which was not made.
    pub(crate) fn ground(&mut self, why: String, next: Timestamp) {
        self.grounded.get_or_insert_with(Timestamp::now);
        self.hold(why, next);
    }

    /// Whether what is in the way has been there for so long that the CA is asked all the same: it may see what we do not.
    pub(crate) fn is_grounded_for_long(&self, now: Timestamp) -> bool {
        self.grounded.is_some_and(|since| !(0..DAY).contains(&(now.as_second() - since.as_second())))
    }

    /// Takes note that it is not the time for an attempt.
    pub(crate) fn hold(&mut self, why: String, next: Timestamp) {
        self.not_before = Some(next);
        self.last_failure = Some(Failure { at: Timestamp::now(), why });
    }

    /// Takes note of a certificate from `directory` that is valid for `life` seconds.
    pub(crate) fn succeeded(&mut self, directory: &str, profile: Option<&str>, life: i64) {
        let (mut issued, refused) = (mem::take(&mut self.issued), mem::take(&mut self.refused));
        remember(&mut issued, Timestamp::now());
        let (issued_by, profile) = (Some(directory.to_owned()), profile.map(str::to_owned));
        let version = self.version.take();
        *self = Self { issued_by, profile, issued, refused, version, life: Some(life), ..Self::default() };
    }

    /// Until when there is to be no attempt at `now`, whoever asks for it, and why: Let's Encrypt issues five certificates
    /// for the same names in a week and lets five validations of a name fail in an hour, and one is left for others. Of
    /// certificates that live for less than a week there may be as many in one life.
    pub(crate) fn held_back(&self, now: Timestamp) -> Option<(Timestamp, &'static str)> {
        let full = |moments: &VecDeque<Timestamp>, span: i64| {
            let recent: Vec<_> =
                moments.iter().filter(|at| (0..span).contains(&(now.as_second() - at.as_second()))).collect();
            (recent.len() >= REMEMBERED).then(|| later(*recent[0], span))
        };
        let issued = full(&self.issued, self.life.unwrap_or(WEEK).clamp(1, WEEK))
            .map(|next| (next, "four certificates for these names have come lately"));
        let refused = full(&self.refused, HOUR).map(|next| (next, "four attempts have failed within an hour"));
        issued.or(refused)
    }
}

fn remember(moments: &mut VecDeque<Timestamp>, now: Timestamp) {
    moments.push_back(now);
    while moments.len() > REMEMBERED {
        moments.pop_front();
    }
}

/// When a certificate that is valid from `from` to `to` is renewed without advice: when a third of its life is left, a
/// little earlier for each certificate, so that those of one day are not renewed in one minute. `share` is what sets this
/// one apart, from 0 to 1.
pub(crate) fn due(from: Timestamp, to: Timestamp, share: f64) -> Timestamp {
    let life = to.as_second().saturating_sub(from.as_second()).max(0);
    // Up to a thirtieth of its life: three days of ninety.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "seconds of a few years")]
    let earlier = (life as f64 / 30.0 * share.clamp(0.0, 1.0)) as i64;
    Timestamp::from_second(to.as_second() - life / 3 - earlier).unwrap_or(to)
}

pub(crate) fn later(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// Seconds after each failure: four attempts in the first hour, where Let's Encrypt lets five validations of a name fail,
/// and one a day in the end.
const PAUSES: [i64; 7] = [2 * 60, 10 * 60, 30 * 60, 2 * 3600, 6 * 3600, 12 * 3600, 24 * 3600];
const REMEMBERED: usize = 4;
const HOUR: i64 = 3600;
/// Seconds.
pub(super) const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * 24 * HOUR;
/// A week: whatever a CA says, there is an attempt before a certificate of ninety days has run out.
const LONGEST_TOLD: i64 = WEEK;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn pauses_grow_to_a_day_and_four_attempts_are_in_the_first_hour() {
        let mut record = Record::default();
        let began = at("2026-01-01T00:00:00Z");
        let mut now = began;
        let mut attempts = vec![now];
        for _ in 0..20 {
            record.failed("why".to_owned(), None, now);
            now = record.not_before.unwrap();
            attempts.push(now);
        }

        let within = |seconds: i64| attempts.iter().filter(|at| at.as_second() - began.as_second() < seconds).count();
        assert!((3..=5).contains(&within(3600)), "{attempts:?}");
        let last = attempts[20].as_second() - attempts[19].as_second();
        assert!((19 * 3600..=29 * 3600).contains(&last), "{last}");
    }

    #[test]
    fn what_a_ca_says_of_when_to_come_again_is_followed_for_a_week_at_most() {
        let now = at("2026-01-01T00:00:00Z");
        for (told, expected) in
            [("2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"), ("2027-01-01T00:00:00Z", "2026-01-08T00:00:00Z")]
        {
            let mut record = Record::default();
            record.failed("why".to_owned(), Some(at(told)), now);
            assert_eq!(record.not_before, Some(at(expected)));
        }
        let mut record = Record::default();
        record.failed("why".to_owned(), Some(at("2026-01-01T00:00:01Z")), now);
        assert!(record.not_before.unwrap() > at("2026-01-01T00:01:00Z"), "and never sooner than by ourselves");
    }

    #[test]
    fn nobody_is_asked_for_a_fifth_certificate_in_a_week_or_a_fifth_failure_in_an_hour() {
        let now = Timestamp::now();
        let mut record = Record::default();
        for _ in 0..4 {
            assert_eq!(record.held_back(now), None);
            record.succeeded("directory", None, WEEK * 12);
        }
        let (next, why) = record.held_back(Timestamp::now()).unwrap();
        assert!(next > later(now, WEEK - 60) && why.contains("four certificates"), "{next} {why}");
        assert_eq!(record.held_back(later(now, WEEK + 60)), None);

        let mut record = Record::default();
        for _ in 0..4 {
            assert_eq!(record.held_back(now), None);
            record.failed("why".to_owned(), None, now);
        }
        assert_eq!(record.held_back(later(now, 60)).unwrap().0, later(now, HOUR));
        assert_eq!(record.held_back(later(now, HOUR)), None);
    }

    #[test]
    fn short_lives_are_renewed_as_often_as_they_end() {
        let now = Timestamp::now();
        let mut record = Record { life: Some(600), ..Record::default() };
        for _ in 0..4 {
            record.succeeded("directory", None, 600);
        }
        assert!(record.held_back(now).unwrap().0 <= later(now, 660));
        assert_eq!(record.held_back(later(now, 700)), None);
    }

    #[test]
    fn what_a_clock_that_was_ahead_has_written_is_no_reason_to_rest() {
        let now = at("2026-01-01T00:00:00Z");
        let mut record = Record::default();
        record.failed("why".to_owned(), None, now);
        assert!(record.rests_until(later(now, 1)).is_some());
        record.failed("why".to_owned(), None, at("2027-01-01T00:00:00Z"));
        assert_eq!(record.rests_until(now), None);
    }

    #[test]
    fn after_a_day_of_faults_the_authority_is_asked_all_the_same() {
        let mut record = Record::default();
        let now = Timestamp::now();
        record.ground("why".to_owned(), later(now, 180));
        record.ground("why".to_owned(), later(now, 360));
        assert!(!record.is_grounded_for_long(later(now, DAY - 60)));
        assert!(record.is_grounded_for_long(later(now, DAY + 60)));
        record.failed("refused".to_owned(), None, now);
        assert!(!record.is_grounded_for_long(later(now, DAY + 60)), "once a day");
    }

    #[test]
    fn a_third_of_the_life_is_left_when_it_is_renewed() {
        let ninety = |share| due(at("2026-01-01T00:00:00Z"), at("2026-04-01T00:00:00Z"), share);
        assert_eq!(ninety(0.0), at("2026-03-02T00:00:00Z"));
        assert_eq!(ninety(1.0), at("2026-02-27T00:00:00Z"));
        assert_eq!(
            due(at("2026-01-01T00:00:00Z"), at("2026-01-07T00:00:00Z"), 0.0),
            at("2026-01-05T00:00:00Z"),
            "six days"
        );
    }

    #[test]
    fn a_record_is_read_back_and_so_is_one_of_another_version() {
        let mut record = Record::default();
        record.failed("why".to_owned(), None, at("2026-01-01T00:00:00Z"));
        record.order = Some(Placed { directory: "d".to_owned(), url: "u".to_owned(), profile: None });
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert_eq!(serde_json::from_str::<Record>(r#"{"failures":2,"new":1}"#).unwrap().failures, 2);
    }
}
