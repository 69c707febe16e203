//! The `Range` header (RFC 9110, 14.2) against a file of a known length.

use std::ops::Range;

/// What of a file is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// All of it: the header is not ours to understand, malformed, or asks for too many ranges.
    Whole,
    /// These, none of them empty, none overlapping or touching another, in the order asked for.
    Ranges(Vec<Range<u64>>),
    /// The header is well formed and no byte of the file is in it.
    Unsatisfiable,
}

/// More ranges than this in one request are not answered with ranges: a whole file costs less than its crumbs.
const RANGES: usize = 16;

/// What `header`, the value of `Range`, selects of `length` bytes.
pub(crate) fn select(header: &[u8], length: u64) -> Selection {
    parse(header, length).unwrap_or(Selection::Whole)
}

fn parse(header: &[u8], length: u64) -> Option<Selection> {
    let equals = header.iter().position(|&byte| byte == b'=')?;
    if !header[..equals].trim_ascii().eq_ignore_ascii_case(b"bytes") {
        return None;
    }
    let specs = header[equals + 1..].split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let (mut ranges, mut count) = (Vec::new(), 0);
    for spec in specs.filter(|spec| !spec.is_empty()) {
        count += 1;
        if count > RANGES {
            return None;
        }
        let dash = spec.iter().position(|&byte| byte == b'-')?;
        let range = match (&spec[..dash], &spec[dash + 1..]) {
            (b"", suffix) => {
                let suffix = number(suffix)?;
                // The last bytes of an empty file are all of it, and `Content-Range` cannot say that.
                if length == 0 && suffix > 0 {
                    return None;
                }
                length.saturating_sub(suffix)..length
            }
            (first, b"") => number(first)?..length,
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                first..last.saturating_add(1).min(length)
            }
        };
        if range.start < range.end {
            insert(&mut ranges, range);
        }
    }
    match (count, ranges.is_empty()) {
        (0, _) => None,
        (_, true) => Some(Selection::Unsatisfiable),
        (_, false) => Some(Selection::Ranges(ranges)),
    }
}

/// Adds `range`, joined with those it overlaps or touches, in the place of the first of them.
fn insert(ranges: &mut Vec<Range<u64>>, mut range: Range<u64>) {
    let touch = |one: &Range<u64>, other: &Range<u64>| one.start <= other.end && other.start <= one.end;
    let mut place = ranges.len();
    while let Some(index) = ranges.iter().position(|other| touch(other, &range)) {
        let other = ranges.remove(index);
        range = range.start.min(other.start)..range.end.max(other.end);
        place = place.min(index);
    }
    ranges.insert(place.min(ranges.len()), range);
}

/// A number of decimal digits; one that is too large is larger than any file.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(digits.iter().fold(0, add))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Selection::*, *};
    use crate::properties;

    /// Start and end of each range.
    fn these(ranges: &[(u64, u64)]) -> Selection {
        Ranges(ranges.iter().map(|&(start, end)| start..end).collect())
    }

    #[test]
    fn ranges_are_selected_as_rfc_9110_says() {
        let table: &[(&str, u64, Selection)] = &[
            ("bytes=0-499", 10_000, these(&[(0, 500)])),
            ("bytes=500-999", 10_000, these(&[(500, 1000)])),
            ("bytes=-500", 10_000, these(&[(9500, 10_000)])),
            ("bytes=9500-", 10_000, these(&[(9500, 10_000)])),
            ("bytes=0-0,-1", 10_000, these(&[(0, 1), (9999, 10_000)])),
            ("bytes= 0-999, 4500-5499, -1000", 10_000, these(&[(0, 1000), (4500, 5500), (9000, 10_000)])),
            ("bytes=500-600,601-999", 10_000, these(&[(500, 1000)])),
            ("bytes=500-700,601-999", 10_000, these(&[(500, 1000)])),
            ("bytes=0-1,8-9,1-8", 10, these(&[(0, 10)])),
            ("bytes=8-9,0-1", 10, these(&[(8, 10), (0, 2)])),
            ("bytes=8-9,3-4,0-3", 10, these(&[(8, 10), (0, 5)])),
            ("BYTES=1-2", 10, these(&[(1, 3)])),
            ("bytes=,1-2,,", 10, these(&[(1, 3)])),
            ("bytes=5-99999999999999999999999", 10, these(&[(5, 10)])),
            ("bytes=0-18446744073709551615", 10, these(&[(0, 10)])),
            ("bytes=-99", 10, these(&[(0, 10)])),
            ("bytes=10-,3-3", 10, these(&[(3, 4)])),
            ("bytes=5368709120-", (5 << 30) + 3, these(&[(5 << 30, (5 << 30) + 3)])),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-5", 0, Whole),
            ("bytes=", 10, Whole),
            ("bytes=,", 10, Whole),
            ("bytes=2-1", 10, Whole),
            ("bytes=0-1,2-1", 10, Whole),
            ("bytes=a-1", 10, Whole),
            ("bytes=+1-2", 10, Whole),
            ("bytes=1", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=--1", 10, Whole),
            ("bytes 0-1", 10, Whole),
            ("lines=0-1", 10, Whole),
            ("", 10, Whole),
        ];

        for (header, length, expected) in table {
            assert_eq!(select(header.as_bytes(), *length), *expected, "{header} of {length}");
        }
    }

    #[test]
    fn more_than_sixteen_ranges_are_answered_with_the_whole() {
        let ranges = |count: u64| (0..count).map(|index| format!("{0}-{0}", index * 2)).collect::<Vec<_>>().join(",");

        assert!(matches!(select(format!("bytes={}", ranges(16)).as_bytes(), 100), Ranges(some) if some.len() == 16));
        assert_eq!(select(format!("bytes={}", ranges(17)).as_bytes(), 100), Whole);
    }

    proptest! {
        #[test]
        fn any_bytes_select_ranges_within_the_file_and_apart(header in proptest::collection::vec(any::<u8>(), 0..80), length in any::<u64>()) {
            properties::selection(&header, length);
        }

        #[test]
        fn anything_like_a_range_selects_ranges_within_the_file_and_apart(header in "bytes=[0-9]{0,3}-[0-9]{0,3}(, ?[0-9]{0,3}-[0-9]{0,3}){0,8}", length in 0_u64..1000) {
            properties::selection(header.as_bytes(), length);
        }
    }
}
