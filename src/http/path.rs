//! How the path of a request is read: one rule for routing, for WSGI and for what is forwarded.
//!
//! The rule, in full:
//! - The path is decoded once. `%252e` is the text `%2e`, not a dot; whoever decodes again does so on their own account.
//! - An escape that is none (`%zz`, `%4`) and a NUL, plain or encoded, are refused with 400.
//! - A dot segment (`.` or `..`, plain, encoded, made by an encoded slash or by a backslash, or followed by a path
//!   parameter as in `..;x`) is answered 404: no route matches it. Clients resolve dot segments before they send (RFC 3986,
//!   5.2.4; the WHATWG URL parser reads `%2e` and `\` likewise), so none is lost that was meant well, and resolving
//!   them here could only disagree with whoever resolves them next. A path without one cannot climb out of a prefix.
//! - `//` counts as `/`, but the raw path is what is forwarded.
//! - `%2F` does not separate segments: `/a%2Fb` is one segment, as its author meant it. WSGI cannot tell the two
//!   apart, so [`Path::decoded_merged`] has a slash there, as nginx's `$document_uri` has.
//!
//! Which route a path belongs to is decided in [`crate::route`].

use std::borrow::Cow;

use http::StatusCode;

use super::GatewayError;

/// The path of a request target in origin form, without its query; checked, and borrowed as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    raw: &'a str,
    /// No escape and no empty segment: the raw path is the decoded one.
    plain: bool,
}

impl<'a> Path<'a> {
    /// Checks `raw` against the rule above. Never allocates.
    pub fn read(raw: &'a str) -> Result<Self, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        let mut part = Part::Empty;
        for byte in Decoded(raw.as_bytes()) {
            match byte? {
                0 => return Err(PathError::Nul),
                b'/' | b'\\' | b';' if part.is_dots() => return Err(PathError::DotSegment),
                b'/' | b'\\' => part = Part::Empty,
                b'.' => part = part.dot(),
                _ => part = Part::Other,
            }
        }
        if part.is_dots() {
            return Err(PathError::DotSegment);
        }
        Ok(Self { raw, plain: !raw.contains('%') && !raw.contains("//") })
    }

    /// The path as it came.
    pub fn raw(&self) -> &'a str {
        self.raw
    }

    /// The segments, each decoded by itself; empty ones are left out, so that `//` counts as `/`.
    pub fn segments(&self) -> Segments<'a> {
        Segments { raw: self.raw, rest: self.root() }
    }

    /// What an application may take the path for that reads it by other rules: an encoded slash and a backslash separate
    /// segments, and a segment ends at its parameters (`;`). `None` where that makes no difference.
    ///
    /// WSGI has the slash, servlets have the parameters, Windows has the backslash. For questions that are to be answered
    /// with the worst in mind.
    pub fn read_by_others(&self) -> Option<Vec<u8>> {
        if !self.raw.contains(['%', '\\', ';']) {
            return None;
        }
        let mut read = Vec::with_capacity(self.raw.len());
        let mut is_parameter = false;
        for byte in Decoded(self.raw.as_bytes()).map_while(Result::ok) {
            match byte {
                b'/' | b'\\' => {
                    is_parameter = false;
                    read.push(b'/');
                }
                b';' => is_parameter = true,
                _ if is_parameter => {}
                byte => read.push(byte),
            }
        }
        Some(read)
    }

    /// Where what follows the prefix `/` begins: the last slash of those the raw path starts with.
    pub fn root(&self) -> usize {
        last_slash(self.raw, 0)
    }

    /// The path decoded, every run of slashes merged into one, a trailing slash kept: `PATH_INFO` before a
    /// `SCRIPT_NAME` is taken off. Borrowed when the raw path is already that. Need not be UTF-8.
    pub fn decoded_merged(&self) -> Cow<'a, [u8]> {
        if self.plain {
            return Cow::Borrowed(self.raw.as_bytes());
        }
        let mut merged = Vec::with_capacity(self.raw.len());
        for byte in Decoded(self.raw.as_bytes()).map_while(Result::ok) {
            if byte != b'/' || merged.last() != Some(&b'/') {
                merged.push(byte);
            }
        }
        Cow::Owned(merged)
    }
}

/// The segments of a [`Path`], in order.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    raw: &'a str,
    rest: usize,
}

/// One segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Never empty. Holds a slash only where the raw segment holds `%2F`.
    pub decoded: Cow<'a, [u8]>,
    /// Where what follows begins, in bytes of the raw path: at one slash, the last of several, or at the end.
    pub rest: usize,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let inner = self.raw[self.rest..].strip_prefix('/').filter(|inner| !inner.is_empty())?;
        let length = inner.find('/').unwrap_or(inner.len());
        let segment = &inner[..length];
        self.rest = last_slash(self.raw, self.rest + 1 + length);
        let decoded = if segment.contains('%') {
            Cow::Owned(Decoded(segment.as_bytes()).map_while(Result::ok).collect())
        } else {
            Cow::Borrowed(segment.as_bytes())
        };
        Some(Segment { decoded, rest: self.rest })
    }
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    #[error("the path has an invalid percent escape")]
    InvalidEscape,
    #[error("the path has a NUL character")]
    Nul,
    #[error("the path has a dot segment, which no route matches")]
    DotSegment,
}

impl PathError {
    /// 404 for a dot segment, 400 for the others.
    pub fn status(self) -> StatusCode {
        match self {
            Self::DotSegment => StatusCode::NOT_FOUND,
            Self::NotAbsolute | Self::InvalidEscape | Self::Nul => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<PathError> for GatewayError {
    fn from(error: PathError) -> Self {
        Self::downstream(error.status(), "cannot read the path of the request").source(error)
    }
}

/// What the part of a path since the last separator looks like so far.
#[derive(Clone, Copy)]
enum Part {
    Empty,
    Dot,
    Dots,
    Other,
}

impl Part {
    fn dot(self) -> Self {
        match self {
            Self::Empty => Self::Dot,
            Self::Dot => Self::Dots,
            Self::Dots | Self::Other => Self::Other,
        }
    }

    fn is_dots(self) -> bool {
        matches!(self, Self::Dot | Self::Dots)
    }
}

/// Bytes with their percent escapes decoded, once.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = Result<u8, PathError>;

    fn next(&mut self) -> Option<Result<u8, PathError>> {
        let (&first, rest) = self.0.split_first()?;
        if first != b'%' {
            self.0 = rest;
            return Some(Ok(first));
        }
        let [high, low, rest @ ..] = rest else { return Some(Err(PathError::InvalidEscape)) };
        let (Some(high), Some(low)) = (hex(*high), hex(*low)) else { return Some(Err(PathError::InvalidEscape)) };
        self.0 = rest;
        Some(Ok(high << 4 | low))
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The last slash of the run that begins at `at`; `at` itself when there is none.
fn last_slash(raw: &str, at: usize) -> usize {
    let run = raw.as_bytes()[at..].iter().take_while(|byte| **byte == b'/').count();
    at + run.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments(raw: &str) -> Vec<(String, &str)> {
        let path = Path::read(raw).unwrap();
        path.segments().map(|s| (String::from_utf8_lossy(&s.decoded).into_owned(), &raw[s.rest..])).collect()
    }

    #[test]
    fn each_segment_comes_decoded_with_what_follows_it() {
        for (raw, expected) in [
            ("/", vec![]),
            ("//", vec![]),
            ("/da", vec![("da", "")]),
            ("/da/", vec![("da", "/")]),
            ("/da/x/", vec![("da", "/x/"), ("x", "/")]),
            ("/da//ws/", vec![("da", "/ws/"), ("ws", "/")]),
            ("//ws//socket.io", vec![("ws", "/socket.io"), ("socket.io", "")]),
            ("/%64a/%C3%A9", vec![("da", "/%C3%A9"), ("é", "")]),
            ("/a%2Fb/c", vec![("a/b", "/c"), ("c", "")]),
            ("/%2F/c", vec![("/", "/c"), ("c", "")]),
            ("/.well-known/x", vec![(".well-known", "/x"), ("x", "")]),
            ("/.../..a/a..", vec![("...", "/..a/a.."), ("..a", "/a.."), ("a..", "")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(s, rest): (&str, _)| (s.to_owned(), rest)).collect();
            assert_eq!(segments(raw), expected, "{raw}");
        }
    }

    #[test]
    fn an_overlong_spelling_is_neither_a_dot_nor_a_slash_nor_a_nul() {
        // UTF-8 has one spelling of each (RFC 3629, 3); whoever knows others is asked to read bytes that say so.
        for raw in ["/a/%C0%AE%C0%AE%C0%AFb", "/a/%E0%80%AE%E0%80%AFb", "/a/%C0%80b"] {
            let path = Path::read(raw).unwrap();
            assert_eq!(path.segments().count(), 2, "{raw}");
            assert_eq!(path.read_by_others().unwrap().split(|byte| *byte == b'/').count(), 3, "{raw}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_read_is_refused() {
        for (raw, expected) in [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("da/", PathError::NotAbsolute),
            ("/%zz", PathError::InvalidEscape),
            ("/%4", PathError::InvalidEscape),
            ("/a%", PathError::InvalidEscape),
            ("/%+1", PathError::InvalidEscape),
            ("/a%00b", PathError::Nul),
            ("/a\0b", PathError::Nul),
        ] {
            assert_eq!(Path::read(raw), Err(expected), "{raw:?}");
            assert_eq!(expected.status(), StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn a_dot_segment_in_any_spelling_matches_no_route() {
        for raw in [
            "/..",
            "/.",
            "/../etc",
            "/da/../x",
            "/da/./x",
            "/da/..",
            "/da/.",
            "/da/%2e%2e/x",
            "/da/%2E./x",
            "/da/..%2fx",
            "/da/x%2f..%2fy",
            "/da/%2e%2e%5cx",
            "/da\\..\\x",
            "/da/..;x/y",
            "/da/..;",
            "/da/%2e%2e%3bx",
            "/da/.;/x",
            "//..//x",
            "/da/..\\",
        ] {
            assert_eq!(Path::read(raw), Err(PathError::DotSegment), "{raw}");
        }
        assert_eq!(PathError::DotSegment.status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn an_escape_is_decoded_once_only() {
        let path = Path::read("/%252e%252e/%2541").unwrap();

        assert_eq!(&*path.decoded_merged(), b"/%2e%2e/%41");
    }

    #[test]
    fn path_info_is_decoded_with_slashes_merged_and_the_last_one_kept() {
        for (raw, expected) in [
            ("/", &b"/"[..]),
            ("///", b"/"),
            ("/da", b"/da"),
            ("/da/", b"/da/"),
            ("//da//x//", b"/da/x/"),
            ("/a%2Fb", b"/a/b"),
            ("/a%2F/b", b"/a/b"),
            ("/a%20b%3Fc%23", b"/a b?c#"),
            ("/%ff%C3%A9", b"/\xff\xc3\xa9"),
        ] {
            assert_eq!(&*Path::read(raw).unwrap().decoded_merged(), expected, "{raw}");
        }
    }

    #[test]
    fn a_plain_path_is_borrowed() {
        let path = Path::read("/da/interview/x.html").unwrap();

        assert!(matches!(path.decoded_merged(), Cow::Borrowed(_)));
        assert!(path.segments().all(|segment| matches!(segment.decoded, Cow::Borrowed(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_what_it_says_or_refused(raw in "/?\\PC*") {
            crate::properties::reading(&raw);
        }

        #[test]
        fn a_path_that_is_read_has_no_dot_segment_however_it_is_split(raw in "/([./\\\\;a%]|%2[eEfF]|%5[cC]|%3b){0,12}") {
            crate::properties::reading(&raw);
        }
    }
}
