//! Conditional requests (RFC 9110, 13): `If-Match`, `If-None-Match`, the dates, and `If-Range`.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED},
};

use super::roots::OpenFile;

/// What a condition is compared with: the `ETag` and `Last-Modified` of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Validators {
    etag: Option<HeaderValue>,
    /// In whole seconds, as in the header.
    modified: Option<SystemTime>,
    /// The file has been still for long enough that two contents cannot share the date (RFC 9110, 8.8.2.2).
    settled: bool,
}

/// A file may be written twice within the tick of its file system's clock; after this long it is taken to be still.
const SETTLED: Duration = Duration::from_secs(2);

impl Validators {
    /// Those the application has put in `headers`; what it left out is made from the file and added there.
    ///
    /// The tag is made of length, modification time and inode, and weak while the file is younger than two seconds.
    pub(super) fn complete(headers: &mut HeaderMap, file: &OpenFile, now: SystemTime) -> Self {
        let settled = now.duration_since(file.modified).is_ok_and(|age| age >= SETTLED);
        if !headers.contains_key(ETAG) {
            headers.insert(ETAG, entity_tag(file, settled));
        }
        if !headers.contains_key(LAST_MODIFIED) {
            // A date in the future must not be sent (RFC 9110, 8.8.2.1).
            let date = httpdate::fmt_http_date(file.modified.min(now));
            headers.insert(LAST_MODIFIED, HeaderValue::try_from(date).expect("a date is ASCII"));
        }
        Self { etag: headers.get(ETAG).cloned(), modified: date(headers, &LAST_MODIFIED), settled }
    }

    fn tag(&self) -> Option<EntityTag<'_>> {
        EntityTag::parse(self.etag.as_ref()?.as_bytes()).map(|(tag, _)| tag)
    }
}

fn entity_tag(file: &OpenFile, settled: bool) -> HeaderValue {
    let modified = file.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let weak = if settled { "" } else { "W/" };
    // Multiplied (Fibonacci hashing) so that the tag does not show the number of the inode.
    let inode = file.inode.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let tag = format!("{weak}\"{modified:x}-{:x}-{inode:x}\"", file.length);
    HeaderValue::try_from(tag).expect("a tag of hexadecimal digits is ASCII")
}

/// What the conditions of a request make of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Proceed,
    /// 304: the client has it.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates the conditions of a GET or HEAD in the order of RFC 9110, 13.2.2, all but `If-Range`.
pub(super) fn evaluate(request: &HeaderMap, validators: &Validators) -> Outcome {
    if request.contains_key(IF_MATCH) {
        if !any_tag(request, &IF_MATCH, |tag| validators.tag().is_some_and(|ours| ours.matches_strongly(tag))) {
            return Outcome::Failed;
        }
    } else if let (Some(since), Some(modified)) = (date(request, &IF_UNMODIFIED_SINCE), validators.modified)
        && modified > since
    {
        return Outcome::Failed;
    }
    if request.contains_key(IF_NONE_MATCH) {
        if any_tag(request, &IF_NONE_MATCH, |tag| validators.tag().is_some_and(|ours| ours.opaque == tag.opaque)) {
            return Outcome::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (date(request, &IF_MODIFIED_SINCE), validators.modified)
        && modified <= since
    {
        return Outcome::NotModified;
    }
    Outcome::Proceed
}

/// Whether `If-Range`, if it is there, lets `Range` stand (RFC 9110, 13.1.5): a strong tag or the exact date.
pub(super) fn range_applies(request: &HeaderMap, validators: &Validators) -> bool {
    let Some(value) = request.get(IF_RANGE) else { return true };
    if let Some((tag, _)) = EntityTag::parse(value.as_bytes()) {
        return validators.tag().is_some_and(|ours| ours.matches_strongly(&tag));
    }
    let date = date(request, &IF_RANGE);
    validators.settled && date.is_some() && date == validators.modified
}

/// Whether a list of tags is `*` or has one that `matches`. Ends at what is not a tag.
fn any_tag(headers: &HeaderMap, name: &HeaderName, matches: impl Fn(&EntityTag<'_>) -> bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let mut rest = value.as_bytes().trim_ascii();
        if rest == b"*" {
            return true;
        }
        while let Some((tag, after)) = EntityTag::parse(rest) {
            if matches(&tag) {
                return true;
            }
            rest = after.trim_ascii_start();
            while let [b',', after @ ..] = rest {
                rest = after.trim_ascii_start();
            }
        }
        false
    })
}

/// The date in the header `name`; `None` also for one that cannot be read, which must be ignored.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok()
}

/// An entity tag (RFC 9110, 8.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EntityTag<'a> {
    weak: bool,
    opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    /// The tag `text` begins with, and what follows it.
    fn parse(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (weak, quoted) = text.strip_prefix(b"W/").map_or((false, text), |quoted| (true, quoted));
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|&byte| byte == b'"')?;
        Some((Self { weak, opaque: &inner[..end] }, &inner[end + 1..]))
    }

    fn matches_strongly(&self, other: &EntityTag<'_>) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use proptest::prelude::*;

    use super::{Outcome::*, *};

    const BEFORE: &str = "Sat, 01 Feb 2025 00:00:00 GMT";
    const SAME: &str = "Sun, 02 Feb 2025 00:00:00 GMT";
    const AFTER: &str = "Mon, 03 Feb 2025 00:00:00 GMT";

    fn validators(etag: &'static str) -> Validators {
        Validators {
            etag: (!etag.is_empty()).then(|| HeaderValue::from_static(etag)),
            modified: httpdate::parse_http_date(SAME).ok(),
            settled: true,
        }
    }

    fn request(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    /// Our tag, the request's conditions, what becomes of it.
    type Row = (&'static str, &'static [(HeaderName, &'static str)], Outcome);

    #[test]
    fn conditions_are_evaluated_in_the_order_of_rfc_9110() {
        #[rustfmt::skip]
        let table: &[Row] = &[
            (r#""a""#, &[], Proceed),
            (r#""a""#, &[(IF_MATCH, r#""a""#)], Proceed),
            (r#""a""#, &[(IF_MATCH, r#""b", "a""#)], Proceed),
            (r#""a""#, &[(IF_MATCH, "*")], Proceed),
            (r#""a""#, &[(IF_MATCH, r#""b""#)], Failed),
            (r#""a""#, &[(IF_MATCH, r#"W/"a""#)], Failed),
            (r#"W/"a""#, &[(IF_MATCH, r#"W/"a""#)], Failed),
            (r#""a""#, &[(IF_MATCH, "nonsense")], Failed),
            (r#""a""#, &[(IF_UNMODIFIED_SINCE, BEFORE)], Failed),
            (r#""a""#, &[(IF_UNMODIFIED_SINCE, SAME)], Proceed),
            (r#""a""#, &[(IF_UNMODIFIED_SINCE, "nonsense")], Proceed),
            // If-Match hides If-Unmodified-Since.
            (r#""a""#, &[(IF_MATCH, r#""a""#), (IF_UNMODIFIED_SINCE, BEFORE)], Proceed),
            (r#""a""#, &[(IF_NONE_MATCH, r#""a""#)], NotModified),
            (r#""a""#, &[(IF_NONE_MATCH, r#"W/"a""#)], NotModified),
            (r#"W/"a""#, &[(IF_NONE_MATCH, r#""a""#)], NotModified),
            (r#""a,b""#, &[(IF_NONE_MATCH, r#""x" ,, "a,b""#)], NotModified),
            (r#""a""#, &[(IF_NONE_MATCH, r#""b""#), (IF_NONE_MATCH, r#""a""#)], NotModified),
            (r#""a""#, &[(IF_NONE_MATCH, "*")], NotModified),
            (r#""a""#, &[(IF_NONE_MATCH, r#""b""#)], Proceed),
            (r#""a""#, &[(IF_NONE_MATCH, r#""a"#)], Proceed),
            ("", &[(IF_NONE_MATCH, r#""a""#)], Proceed),
            (r#""a""#, &[(IF_MODIFIED_SINCE, BEFORE)], Proceed),
            (r#""a""#, &[(IF_MODIFIED_SINCE, SAME)], NotModified),
            (r#""a""#, &[(IF_MODIFIED_SINCE, AFTER)], NotModified),
            (r#""a""#, &[(IF_MODIFIED_SINCE, "nonsense")], Proceed),
            // If-None-Match hides If-Modified-Since.
            (r#""a""#, &[(IF_NONE_MATCH, r#""b""#), (IF_MODIFIED_SINCE, AFTER)], Proceed),
            // The first step that fails decides.
            (r#""a""#, &[(IF_MATCH, r#""b""#), (IF_NONE_MATCH, r#""a""#)], Failed),
            (r#""a""#, &[(IF_MATCH, r#""a""#), (IF_NONE_MATCH, r#""a""#)], NotModified),
        ];

        for (etag, fields, expected) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in *fields {
                headers.append(name, HeaderValue::from_static(value));
            }
            assert_eq!(evaluate(&headers, &validators(etag)), *expected, "{etag} against {fields:?}");
        }
    }

    #[test]
    fn a_range_stands_only_on_a_strong_tag_or_the_exact_date() {
        let table = [
            (r#""a""#, r#""a""#, true),
            (r#""a""#, r#""b""#, false),
            (r#""a""#, r#"W/"a""#, false),
            (r#"W/"a""#, r#""a""#, false),
            (r#""a""#, SAME, true),
            (r#""a""#, BEFORE, false),
            (r#""a""#, AFTER, false),
            (r#""a""#, "nonsense", false),
        ];

        for (etag, value, expected) in table {
            assert_eq!(range_applies(&request(&[(IF_RANGE, value)]), &validators(etag)), expected, "{etag}, {value}");
        }
        assert!(range_applies(&HeaderMap::new(), &validators("")));
        let fresh = Validators { settled: false, ..validators(r#""a""#) };
        assert!(!range_applies(&request(&[(IF_RANGE, SAME)]), &fresh));
    }

    fn file(modified: SystemTime, length: u64, inode: u64) -> OpenFile {
        OpenFile { file: Arc::new(File::open("/dev/null").unwrap()), length, modified, inode }
    }

    #[test]
    fn a_tag_changes_with_length_time_and_inode_and_is_weak_while_the_file_is_young() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let old = now - Duration::from_secs(3);
        let tag = |file: OpenFile| Validators::complete(&mut HeaderMap::new(), &file, now).etag.unwrap();

        let first = tag(file(old, 10, 1));

        assert!(!first.as_bytes().starts_with(b"W/"));
        assert_eq!(first, tag(file(old, 10, 1)));
        assert_ne!(first, tag(file(old, 11, 1)));
        assert_ne!(first, tag(file(old - Duration::from_nanos(1), 10, 1)));
        assert_ne!(first, tag(file(old, 10, 2)));
        assert!(tag(file(now - Duration::from_secs(1), 10, 1)).as_bytes().starts_with(b"W/"));
        assert!(tag(file(now + Duration::from_secs(60), 10, 1)).as_bytes().starts_with(b"W/"));
    }

    #[test]
    fn a_date_in_the_future_is_sent_as_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut headers = HeaderMap::new();

        Validators::complete(&mut headers, &file(now + Duration::from_secs(1 << 40), 1, 1), now);

        assert_eq!(headers[LAST_MODIFIED], httpdate::fmt_http_date(now));
    }

    #[test]
    fn the_validators_of_the_application_are_kept() {
        let mut headers = request(&[(ETAG, r#""theirs""#), (LAST_MODIFIED, SAME)]);

        let validators = Validators::complete(&mut headers, &file(SystemTime::now(), 1, 1), SystemTime::now());

        assert_eq!(headers, request(&[(ETAG, r#""theirs""#), (LAST_MODIFIED, SAME)]));
        assert_eq!(evaluate(&request(&[(IF_NONE_MATCH, r#""theirs""#)]), &validators), NotModified);
    }

    proptest! {
        #[test]
        fn no_bytes_in_a_condition_panic(value in proptest::collection::vec(any::<u8>(), 0..60), which in 0_usize..5) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let name = [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE][which].clone();
            let headers = HeaderMap::from_iter([(name, value.clone())]);
            let theirs = Validators { etag: Some(value), ..validators("") };
            evaluate(&headers, &theirs);
            range_applies(&headers, &theirs);
        }
    }
}
