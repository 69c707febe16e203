//! An endpoint's `Location`, put back into the URL the client knows.
//!
//! An endpoint that is told the public host writes public URLs, and these are left alone, their scheme too: it had
//! `X-Forwarded-Proto`. What needs help is an endpoint that names its own address, and one that does not know of the
//! prefix we took off. `Refresh` and links in bodies are not looked at.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    authority::{Authority, host_name},
    forwarded::Scheme,
};

/// Between the URL the client asked for and the one the endpoint was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    pub scheme: Scheme,
    /// The host as the client sees it, with the port; empty when it named none.
    pub host: &'a str,
    /// The prefix that was taken off, without its trailing slash; empty when none was.
    pub stripped: &'a str,
    /// Host and port of the endpoint; `None` on a unix socket.
    pub endpoint: Option<(&'a str, u16)>,
}

impl Mapping<'_> {
    /// Rewrites `Location` and `Content-Location`. Only looks them up where there is nothing to do.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &FIELDS {
            if let Some(value) = headers.get_mut(name)
                && let Some(rewritten) = self.rewrite(value.as_bytes())
            {
                // A public host or prefix that is no header value cannot come about; the field then stays as it is.
                if let Ok(rewritten) = HeaderValue::from_maybe_shared(Bytes::from(rewritten)) {
                    *value = rewritten;
                }
            }
        }
    }

    /// The public form of `location`, when it has another.
    ///
    /// - An http URL at the endpoint's own address, or `//address/…`: public scheme, host and prefix. On a loopback
    ///   endpoint `localhost`, `127.0.0.1` and `[::1]` are one.
    /// - With a prefix taken off, a path from the root gets it back, unless it has it already.
    /// - Anything else: as it is.
    fn rewrite(&self, location: &[u8]) -> Option<Vec<u8>> {
        let mut public = Vec::with_capacity(location.len() + self.stripped.len() + self.host.len());
        let path = match split_authority(location) {
            Some((scheme, authority, path)) => {
                // Without a public host a path of two slashes would name another one.
                if !self.is_endpoint(scheme, authority) || (self.host.is_empty() && path.starts_with(b"//")) {
                    return None;
                }
                if !self.host.is_empty() {
                    public.extend_from_slice(self.scheme.as_str().as_bytes());
                    public.extend_from_slice(b"://");
                    public.extend_from_slice(self.host.as_bytes());
                }
                path
            }
            None if location.starts_with(b"/") && !self.stripped.is_empty() && !self.is_under_prefix(location) => {
                location
            }
            None => return None,
        };
        if !self.is_under_prefix(path) {
            public.extend_from_slice(self.stripped.as_bytes());
        }
        if !path.starts_with(b"/") {
            public.push(b'/');
        }
        public.extend_from_slice(path);
        Some(public)
    }

    fn is_endpoint(&self, scheme: Option<Scheme>, authority: &[u8]) -> bool {
        let Some((host, port)) = self.endpoint else { return false };
        let Some(named) = std::str::from_utf8(authority).ok().and_then(Authority::parse) else { return false };
        let named_port = named.port().unwrap_or_else(|| scheme.unwrap_or(self.scheme).default_port());
        // An endpoint's IPv6 address may come without brackets.
        let bracketed = host.contains(':') && !host.starts_with('[');
        let host = if bracketed { format!("[{host}]") } else { host.to_owned() };
        let host = host_name(&host);
        named_port == port && (named.host() == host || (is_loopback(named.host()) && is_loopback(&host)))
    }

    fn is_under_prefix(&self, path: &[u8]) -> bool {
        path.strip_prefix(self.stripped.as_bytes())
            .is_some_and(|rest| rest.first().is_none_or(|byte| matches!(byte, b'/' | b'?' | b'#')))
    }
}

/// Splits `http://authority/path`, `https://…` and `//authority/path`; no scheme is the scheme of the request.
fn split_authority(location: &[u8]) -> Option<(Option<Scheme>, &[u8], &[u8])> {
    let after = |start: &[u8]| {
        let (head, rest) = location.split_at_checked(start.len())?;
        head.eq_ignore_ascii_case(start).then_some(rest)
    };
    let (scheme, rest) = (after(b"//").map(|rest| (None, rest)))
        .or_else(|| after(b"http://").map(|rest| (Some(Scheme::Http), rest)))
        .or_else(|| after(b"https://").map(|rest| (Some(Scheme::Https), rest)))?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    Some((scheme, authority, path))
}

fn is_loopback(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

static FIELDS: [HeaderName; 2] = [header::LOCATION, header::CONTENT_LOCATION];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRIPPED: Mapping<'static> = Mapping {
        scheme: Scheme::Https,
        host: "public.example:8443",
        stripped: "/da/ws",
        endpoint: Some(("127.0.0.1", 5000)),
    };
    const WHOLE: Mapping<'static> = Mapping { stripped: "", endpoint: Some(("backend.internal", 80)), ..STRIPPED };

    fn location(mapping: &Mapping<'_>, location: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_bytes(location.as_bytes()).unwrap());
        headers.insert(header::CONTENT_LOCATION, HeaderValue::from_bytes(location.as_bytes()).unwrap());
        mapping.apply(&mut headers);
        assert_eq!(headers[header::LOCATION], headers[header::CONTENT_LOCATION]);
        String::from_utf8(headers[header::LOCATION].as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn with_a_prefix_taken_off_the_endpoints_urls_get_it_back() {
        for (given, expected) in [
            ("http://127.0.0.1:5000/x?y#z", "https://public.example:8443/da/ws/x?y#z"),
            ("http://localhost:5000/x", "https://public.example:8443/da/ws/x"),
            ("http://[::1]:5000/x", "https://public.example:8443/da/ws/x"),
            ("HTTP://LOCALHOST:5000/x", "https://public.example:8443/da/ws/x"),
            ("https://127.0.0.1:5000/x", "https://public.example:8443/da/ws/x"),
            ("//127.0.0.1:5000/x", "https://public.example:8443/da/ws/x"),
            ("http://127.0.0.1:5000", "https://public.example:8443/da/ws/"),
            ("http://127.0.0.1:5000?q", "https://public.example:8443/da/ws/?q"),
            ("http://127.0.0.1:5000/da/ws/x", "https://public.example:8443/da/ws/x"),
            ("http://127.0.0.1:5000/da/wsx", "https://public.example:8443/da/ws/da/wsx"),
            ("/x", "/da/ws/x"),
            ("/", "/da/ws/"),
            ("/socket.io/?a=http://127.0.0.1:5000/", "/da/ws/socket.io/?a=http://127.0.0.1:5000/"),
            ("/da/ws", "/da/ws"),
            ("/da/ws/x", "/da/ws/x"),
            ("/da/ws?x", "/da/ws?x"),
            ("/da/wsx", "/da/ws/da/wsx"),
            ("/é", "/da/ws/é"),
        ] {
            assert_eq!(location(&STRIPPED, given), expected, "{given}");
        }
    }

    #[test]
    fn without_one_only_the_endpoints_own_address_is_replaced() {
        for (given, expected) in [
            ("http://backend.internal/x", "https://public.example:8443/x"),
            ("http://backend.internal:80/x", "https://public.example:8443/x"),
            ("http://Backend.Internal./x", "https://public.example:8443/x"),
            ("http://backend.internal", "https://public.example:8443/"),
            ("https://backend.internal/x", "https://backend.internal/x"),
            ("http://backend.internal:81/x", "http://backend.internal:81/x"),
            ("/x", "/x"),
        ] {
            assert_eq!(location(&WHOLE, given), expected, "{given}");
        }
    }

    #[test]
    fn what_is_not_the_endpoints_is_left_alone() {
        for given in [
            "https://other.example/x",
            "http://public.example/x",
            "http://public.example:8443/x",
            "http://127.0.0.1:5001/x",
            "http://127.0.0.1/x",
            "http://127.0.0.1:5000@evil.example/x",
            "http://user@127.0.0.1:5000/x",
            "http://127.0.0.1:5000.evil.example/",
            "//other.example/x",
            "///x",
            "x",
            "../x",
            "?q",
            "#f",
            "",
            "mailto:a@b",
            "ws://127.0.0.1:5000/x",
            "http:/x",
            "http:x",
        ] {
            assert_eq!(location(&STRIPPED, given), given);
        }
    }

    #[test]
    fn a_unix_endpoint_has_no_address_to_replace_but_its_prefix() {
        let mapping = Mapping { endpoint: None, ..STRIPPED };

        assert_eq!(location(&mapping, "http://localhost/x"), "http://localhost/x");
        assert_eq!(location(&mapping, "/x"), "/da/ws/x");
    }

    #[test]
    fn an_ipv6_endpoint_is_recognised_however_it_is_spelled() {
        for host in ["2001:db8::1", "[2001:db8::1]", "2001:DB8:0::1"] {
            let mapping = Mapping { endpoint: Some((host, 5000)), ..STRIPPED };
            assert_eq!(location(&mapping, "http://[2001:db8::1]:5000/x"), "https://public.example:8443/da/ws/x");
        }
    }

    #[test]
    fn without_a_public_host_the_path_alone_is_sent() {
        let mapping = Mapping { host: "", ..STRIPPED };

        assert_eq!(location(&mapping, "http://127.0.0.1:5000/x"), "/da/ws/x");
        let whole = Mapping { host: "", ..WHOLE };
        assert_eq!(location(&whole, "http://backend.internal//evil"), "http://backend.internal//evil");
    }

    proptest! {
        #[test]
        fn a_path_never_becomes_a_url_of_another_host_and_twice_is_once(
            given in "(http://|https://|//|/)?(127\\.0\\.0\\.1:5000|evil|da/ws|[/?#.@:]|\\PC){0,6}",
        ) {
            for mapping in [&STRIPPED, &WHOLE] {
                if let Some(once) = mapping.rewrite(given.as_bytes()) {
                    let text = String::from_utf8(once.clone()).unwrap();
                    prop_assert!(
                        text.starts_with("https://public.example:8443/") || (text.starts_with('/') && !text.starts_with("//")),
                        "{given} became {text}"
                    );
                    prop_assert_eq!(mapping.rewrite(&once), None);
                }
            }
        }
    }
}
