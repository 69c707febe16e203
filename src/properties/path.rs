//! Paths, and where they lead.

use std::sync::LazyLock;

use crate::{
    config::{HostName, PathPrefix},
    http::path::Path,
    route::RouteTable,
};

/// A path is read as what it says and never climbs; who is kept out of a prefix is, however it is spelled.
pub fn path(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(reading)
}

/// [`path`], of text.
pub(crate) fn reading(raw: &str) -> bool {
    let decoded = decoded(raw.as_bytes());
    let can_be_read =
        raw.starts_with('/') && decoded.as_ref().is_some_and(|path| !path.contains(&0) && !has_dots(path));
    let Ok(path) = Path::read(raw) else {
        assert!(!can_be_read, "{raw:?} was refused");
        return false;
    };
    assert!(can_be_read, "{raw:?} was taken");
    let merged = merged(&decoded.expect("it can be read"));
    assert_eq!(path.decoded_merged(), merged, "{raw:?}");

    let mut of_segments = Vec::new();
    for segment in path.segments() {
        assert!(!segment.decoded.is_empty());
        assert!(raw[segment.rest..].is_empty() || raw[segment.rest..].starts_with('/'), "{raw:?}");
        assert!(!raw[segment.rest..].starts_with("//"), "{raw:?}");
        of_segments.push(b'/');
        of_segments.extend_from_slice(&segment.decoded);
    }
    of_segments.push(b'/');
    assert_eq!(self::merged(&of_segments), self::merged(&[&merged[..], b"/"].concat()), "{raw:?}");
    if let Some(others) = path.read_by_others() {
        assert!(others.starts_with(b"/") && !has_dots(&others), "{raw:?}");
    }

    for host in ["one.example", "other.example"] {
        assert_leads_to_its_prefix(host, &path, &merged);
    }
    true
}

fn assert_leads_to_its_prefix(host: &str, path: &Path<'_>, merged: &[u8]) {
    let raw = path.raw();
    let found = ROUTES.find(host, path);
    if let Some(found) = &found {
        let rest = below(found.value, merged).unwrap_or_else(|| panic!("{raw:?} is not below {}", found.value));
        assert_eq!(found.bare, rest.is_empty(), "{raw:?} below {}", found.value);
        let stripped = found.strip(raw);
        assert!(stripped.starts_with('/') && !stripped.starts_with("//"), "{raw:?} became {stripped:?}");
        assert!(Path::read(&stripped).is_ok(), "{raw:?} became {stripped:?}");
    }
    // Whoever decodes all of it, as WSGI does, is led to no prefix that was not found here, too.
    let others = ROUTES.find_as_others(host, path);
    let prefixes = ROUTES_OF.iter().filter(|(of, _)| of.is_empty() || *of == host);
    let longest = |own: bool| {
        let these = prefixes.clone().filter(|(of, prefix)| of.is_empty() != own && below(prefix, merged).is_some());
        these.map(|(_, prefix)| *prefix).max_by_key(|prefix| prefix.len())
    };
    if let Some(expected) = longest(true).or_else(|| longest(false)) {
        let led_to = found.map(|found| *found.value).into_iter().chain(others.into_iter().flatten().copied());
        assert!(led_to.into_iter().any(|prefix| prefix == expected), "{raw:?} of {host} may be read as {expected}");
    }
}

/// What follows `prefix` in a path that is decoded and merged.
fn below<'a>(prefix: &str, path: &'a [u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/').as_bytes())?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

/// With its escapes undone (RFC 3986, 2.1); `None` where one is none.
fn decoded(raw: &[u8]) -> Option<Vec<u8>> {
    let is_escape =
        |at: usize| raw[at + 1..].first_chunk::<2>().is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit));
    let escapes = raw.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    escapes.into_iter().all(|(at, _)| is_escape(at)).then(|| percent_encoding::percent_decode(raw).collect())
}

/// Whether a part of it is `.` or `..`, whatever ends a part: a slash, a backslash, a parameter.
fn has_dots(path: &[u8]) -> bool {
    let parts = path.split(|byte| matches!(byte, b'/' | b'\\'));
    let names = parts.map(|part| part.split(|byte| *byte == b';').next().unwrap_or_default());
    names.into_iter().any(|name| matches!(name, b"." | b".."))
}

fn merged(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|next, last| (*next, *last) == (b'/', b'/'));
    merged
}

const ROUTES_OF: [(&str, &str); 6] =
    [("", "/"), ("", "/da"), ("", "/da/ws"), ("", "/x/da/ws"), ("one.example", "/staff"), ("one.example", "/da/open")];

static ROUTES: LazyLock<RouteTable<&str>> = LazyLock::new(|| {
    RouteTable::new(ROUTES_OF.iter().map(|(host, prefix)| {
        let name = (!host.is_empty()).then(|| HostName::parse(host).expect("a host"));
        (name, PathPrefix::parse(prefix).expect("a prefix"), *prefix)
    }))
});
