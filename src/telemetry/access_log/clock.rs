//! The date of a line, rendered once a second.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::{
    Timestamp,
    tz::{Offset, TimeZone},
};

/// One second in the local time zone, as log lines write it.
pub(super) struct Second {
    unix: u64,
    /// `22/Nov/2026:21:29:31 +0000`
    common: [u8; 26],
    /// `2026-11-22T21:29:31`
    date_time: [u8; 19],
    /// `+00:00`
    offset: [u8; 6],
}

/// Appends `[22/Nov/2026:21:29:31 +0000]`.
pub(super) fn common(wall: SystemTime, line: &mut Vec<u8>) {
    with(wall, |second, _| {
        line.push(b'[');
        line.extend_from_slice(&second.common);
        line.push(b']');
    });
}

/// Appends `2026-11-22T21:29:31.250+00:00` (RFC 3339).
pub(super) fn rfc3339(wall: SystemTime, line: &mut Vec<u8>) {
    with(wall, |second, millisecond| {
        line.extend_from_slice(&second.date_time);
        let mut fraction = *b".000";
        digits(&mut fraction[1..], millisecond);
        line.extend_from_slice(&fraction);
        line.extend_from_slice(&second.offset);
    });
}

/// Calls `write` with the second `wall` is in and the millisecond within it.
fn with(wall: SystemTime, write: impl FnOnce(&Second, u32)) {
    // A clock before 1970 is a machine without one; any date will do.
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let unix = since.as_secs();
    CACHE.with_borrow_mut(|cache| {
        // Requests that end together began in many different seconds, hence more than one entry.
        let slot = &mut cache[usize::from(unix.to_le_bytes()[0]) % SLOTS];
        if slot.as_ref().is_none_or(|second| second.unix != unix) {
            *slot = Some(Second::new(unix, &TimeZone::system()));
        }
        if let Some(second) = slot {
            write(second, since.subsec_millis());
        }
    });
}

impl Second {
    fn new(unix: u64, zone: &TimeZone) -> Self {
        let moment = i64::try_from(unix).ok().and_then(|unix| Timestamp::from_second(unix).ok()).unwrap_or_default();
        let offset = zone.to_offset(moment);
        let date_time = offset.to_datetime(moment);
        let year = u32::try_from(date_time.year()).unwrap_or(0);
        let part = |value: i8| u32::try_from(value).unwrap_or(0);
        let month = usize::try_from(date_time.month()).unwrap_or(1);

        let mut common = *b"00/Jan/0000:00:00:00 +0000";
        digits(&mut common[0..2], part(date_time.day()));
        common[3..6].copy_from_slice(MONTHS[(month - 1) % 12]);
        digits(&mut common[7..11], year);
        digits(&mut common[12..14], part(date_time.hour()));
        digits(&mut common[15..17], part(date_time.minute()));
        digits(&mut common[18..20], part(date_time.second()));
        common[21..26].copy_from_slice(&offset_digits(offset));

        let mut written = *b"0000-00-00T00:00:00";
        digits(&mut written[0..4], year);
        digits(&mut written[5..7], part(date_time.month()));
        digits(&mut written[8..10], part(date_time.day()));
        digits(&mut written[11..13], part(date_time.hour()));
        digits(&mut written[14..16], part(date_time.minute()));
        digits(&mut written[17..19], part(date_time.second()));

        let [sign, hour_tens, hour_ones, minute_tens, minute_ones] = offset_digits(offset);
        Self { unix, common, date_time: written, offset: [sign, hour_tens, hour_ones, b':', minute_tens, minute_ones] }
    }
}

/// `+0130`; seconds of an offset, which only dates before 1972 have, are left out.
fn offset_digits(offset: Offset) -> [u8; 5] {
    let minutes = offset.seconds().unsigned_abs() / 60;
    let mut written = *b"+0000";
    if offset.is_negative() {
        written[0] = b'-';
    }
    digits(&mut written[1..3], minutes / 60);
    digits(&mut written[3..5], minutes % 60);
    written
}

/// Writes the last digits of `value` that fit, with leading zeros.
fn digits(into: &mut [u8], mut value: u32) {
    for digit in into.iter_mut().rev() {
        // The remainder of a division by ten is one digit.
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

const SLOTS: usize = 8;

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

thread_local! {
    static CACHE: RefCell<[Option<Second>; SLOTS]> = const { RefCell::new([const { None }; SLOTS]) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(unix: u64, offset_seconds: i32) -> (String, String) {
        let zone = TimeZone::fixed(Offset::from_seconds(offset_seconds).unwrap());
        let second = Second::new(unix, &zone);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&second.common), text(&second.date_time) + &text(&second.offset))
    }

    #[test]
    fn a_second_is_written_in_its_own_time_zone() {
        for (unix, offset, common, rfc3339) in [
            (1_795_382_971, 0, "22/Nov/2026:21:29:31 +0000", "2026-11-22T21:29:31+00:00"),
            (1_795_382_971, 19_800, "23/Nov/2026:02:59:31 +0530", "2026-11-23T02:59:31+05:30"),
            (1_795_382_971, -34_200, "22/Nov/2026:11:59:31 -0930", "2026-11-22T11:59:31-09:30"),
            (0, 0, "01/Jan/1970:00:00:00 +0000", "1970-01-01T00:00:00+00:00"),
            (951_782_400, 0, "29/Feb/2000:00:00:00 +0000", "2000-02-29T00:00:00+00:00"),
        ] {
            assert_eq!(written(unix, offset), (common.to_owned(), rfc3339.to_owned()), "{unix} at {offset}");
        }
    }

    #[test]
    fn what_the_cache_holds_is_what_a_fresh_rendering_gives() {
        // Two passes, so that entries are made, found and pushed out.
        for unix in (1_795_382_900..1_795_383_000).chain(1_795_382_900..1_795_383_000) {
            let wall = UNIX_EPOCH + Duration::from_millis(unix * 1000 + 7);
            let fresh = Second::new(unix, &TimeZone::system());
            let (mut cached, mut dated) = (Vec::new(), Vec::new());

            common(wall, &mut cached);
            rfc3339(wall, &mut dated);

            assert_eq!(cached[1..27], fresh.common, "{unix}");
            assert_eq!(dated[..23], [&fresh.date_time[..], b".007"].concat(), "{unix}");
        }
    }
}
