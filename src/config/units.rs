//! Sizes and times with their units, and whole numbers with their bounds.

use std::{path::Path, time::Duration};

use serde_json::{Value as Json, json};

use super::read::{Scalar, or_variable, unexpected};

/// Bytes: `16MiB`, `10MB`, or `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl Scalar for Size {
    const EXPECTED: &'static str = "a size such as `16MiB`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        parse(text, SIZES, "`16MiB`, `64KiB` or `512B`")
            .map_or_else(|| Err(unexpected::<Self>(text)), |size| size.map(Self))
    }
}

/// A time that something waits for, at most; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeout(pub(super) Duration);

impl Scalar for Timeout {
    const EXPECTED: &'static str = "a time such as `30s`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match Wait::parse(text, base)?.0 {
            Duration::ZERO => Err("no time at all is not allowed here; write a time such as `30s`".to_owned()),
            time => Ok(Self(time)),
        }
    }
}

/// The time that `text` says as a configuration would, such as `10s`.
pub fn parse_wait(text: &str) -> Option<Duration> {
    Wait::parse(text, Path::new("/")).ok().map(|wait| wait.0)
}

/// A time that may be zero: not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait(pub(super) Duration);

impl Scalar for Wait {
    const EXPECTED: &'static str = Timeout::EXPECTED;

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let milliseconds = parse(text, TIMES, "`30s`, `5m` or `500ms`").ok_or_else(|| unexpected::<Self>(text))??;
        if milliseconds > LONGEST {
            return Err(format!("`{text}` is longer than a year (`365d`)"));
        }
        Ok(Self(Duration::from_millis(milliseconds)))
    }
}

/// A whole number from `LEAST` to `MOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count<const LEAST: u32, const MOST: u32>(pub(super) u32);

impl<const LEAST: u32, const MOST: u32> Count<LEAST, MOST> {
    pub(super) fn get(self) -> usize {
        usize::try_from(self.0).expect("a usize holds 32 bits on every machine this is built for")
    }
}

impl<const LEAST: u32, const MOST: u32> Scalar for Count<LEAST, MOST> {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unexpected::<Self>(text));
        }
        match text.parse() {
            Ok(number) if (LEAST..=MOST).contains(&number) => Ok(Self(number)),
            _ => Err(format!("expected a whole number from {LEAST} to {MOST}, found `{text}`")),
        }
    }

    fn schema() -> Json {
        or_variable(&json!({ "type": "integer", "minimum": LEAST, "maximum": MOST }))
    }
}

/// A part of a whole, from `0%` to `100%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Percent(pub(super) u32);

impl Scalar for Percent {
    const EXPECTED: &'static str = "a part such as `50%`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let number = text.strip_suffix('%').ok_or_else(|| unexpected::<Self>(text))?;
        Count::<0, 100>::parse(number.trim_end(), base).map(|count| Self(count.0))
    }
}

/// The size in the largest unit that tells it exactly.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)])
}

/// The time in the largest unit that tells it exactly; less than a millisecond is left out.
pub(super) fn show_time(time: Duration) -> String {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    show(milliseconds, &[("d", DAY), ("h", 60 * MINUTE), ("m", MINUTE), ("s", 1000), ("ms", 1)])
}

fn show(amount: u64, units: &[(&str, u64)]) -> String {
    match units.iter().find(|(_, unit)| amount > 0 && amount.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", amount / unit),
        None => "0".to_owned(),
    }
}

/// A number and its unit. `None`: this is neither; the error: it is, but cannot be taken.
fn parse(text: &str, units: &[(&str, u64)], examples: &str) -> Option<Result<u64, String>> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() {
        return None;
    }
    let too_large = || format!("`{text}` is more than can be counted");
    let Ok(number) = number.parse::<u64>() else { return Some(Err(too_large())) };
    if unit.is_empty() {
        let bare = || format!("`{text}` has no unit; write {examples}");
        return Some((number == 0).then_some(0).ok_or_else(bare));
    }
    if unit.starts_with(['.', ',']) {
        return Some(Err(format!("`{text}` is not whole; write a whole number of a smaller unit")));
    }
    if let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) {
        return Some(number.checked_mul(*factor).ok_or_else(too_large));
    }
    if let Some(meant) = meant(unit, units) {
        return Some(Err(format!("`{unit}` is not a unit here; write `{number}{meant}`")));
    }
    let known: Vec<_> = units.iter().map(|(name, _)| format!("`{name}`")).collect();
    Some(Err(format!("`{unit}` is not a unit here; there are {}", known.join(", "))))
}

/// The unit that `unit` is short for (`M`), or the same in other letters (`mb`).
fn meant<'u>(unit: &str, units: &[(&'u str, u64)]) -> Option<&'u str> {
    let mut names = units.iter().map(|(name, _)| *name);
    let same = names.clone().find(|name| name.eq_ignore_ascii_case(unit));
    let begins = |name: &&str| unit.len() == 1 && name[..1].eq_ignore_ascii_case(unit);
    same.or_else(|| names.find(begins))
}

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1000),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// In milliseconds.
const TIMES: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("m", MINUTE), ("h", 60 * MINUTE), ("d", DAY)];

const MINUTE: u64 = 60 * 1000;
const DAY: u64 = 24 * 60 * MINUTE;
/// Adding more than this to a clock may overflow it.
const LONGEST: u64 = 365 * DAY;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> Result<u64, String> {
        Size::parse(text, Path::new("/")).map(|size| size.0)
    }

    fn wait(text: &str) -> Result<Duration, String> {
        Wait::parse(text, Path::new("/")).map(|wait| wait.0)
    }

    #[test]
    fn sizes_count_in_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("512B", 512),
            ("64KiB", 65_536),
            ("16MiB", 16_777_216),
            ("16 MiB", 16_777_216),
            ("1GiB", 1 << 30),
            ("10MB", 10_000_000),
            ("5kB", 5000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_cannot_be_taken_say_what_to_write() {
        for (text, problem) in [
            ("16777216", "`16777216` has no unit; write `16MiB`, `64KiB` or `512B`"),
            ("large", "expected a size such as `16MiB`, found `large`"),
            ("-1MiB", "expected a size such as `16MiB`, found `-1MiB`"),
            ("", "expected a size such as `16MiB`, found ``"),
            ("16M", "`M` is not a unit here; write `16MiB`"),
            ("512k", "`k` is not a unit here; write `512KiB`"),
            ("16mb", "`mb` is not a unit here; write `16MB`"),
            (
                "16Mbit",
                "`Mbit` is not a unit here; there are `B`, `KiB`, `MiB`, `GiB`, `TiB`, `KB`, `kB`, `MB`, `GB`, `TB`",
            ),
            ("1.5MiB", "`1.5MiB` is not whole; write a whole number of a smaller unit"),
            ("99999999TiB", "`99999999TiB` is more than can be counted"),
            ("99999999999999999999B", "`99999999999999999999B` is more than can be counted"),
        ] {
            assert_eq!(size(text).unwrap_err(), problem, "{text}");
        }
    }

    #[test]
    fn times_count_in_their_units() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(wait(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn times_that_cannot_be_taken_say_what_to_write() {
        for (text, problem) in [
            ("30", "`30` has no unit; write `30s`, `5m` or `500ms`"),
            ("soon", "expected a time such as `30s`, found `soon`"),
            ("30S", "`S` is not a unit here; write `30s`"),
            ("30sec", "`sec` is not a unit here; there are `ms`, `s`, `m`, `h`, `d`"),
            ("366d", "`366d` is longer than a year (`365d`)"),
        ] {
            assert_eq!(wait(text).unwrap_err(), problem, "{text}");
        }
    }

    #[test]
    fn a_timeout_is_never_zero() {
        for text in ["0", "0s", "0ms"] {
            let problem = Timeout::parse(text, Path::new("/")).unwrap_err();
            assert_eq!(problem, "no time at all is not allowed here; write a time such as `30s`", "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_that_is_shown_is_read_as_itself(bytes in any::<u64>()) {
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn a_time_that_is_shown_is_read_as_itself(milliseconds in 0..=LONGEST) {
            let time = Duration::from_millis(milliseconds);
            prop_assert_eq!(wait(&show_time(time)), Ok(time));
        }

        #[test]
        fn no_text_makes_a_unit_panic(text in any::<String>()) {
            let _size = size(&text);
            let _wait = wait(&text);
        }
    }
}
