//! The host a request is for: exactly one, from `Host`, `:authority` or an absolute request target.
//!
//! Whether we serve that host is not known here.

use std::{borrow::Cow, net::Ipv6Addr};

use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header, uri};

use super::GatewayError;

/// `host[:port]` as the client sent it, checked.
///
/// Empty when an HTTP/1.0 request named no host, as the health checks of some load balancers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    text: HeaderValue,
    /// Where the host ends in `text`, when that part is its normal form already.
    end: usize,
    /// The normal form of the host, when `text` has another.
    normal: Option<Box<str>>,
    port: Option<u16>,
}

impl Authority {
    /// The authority of a request.
    ///
    /// HTTP/1.1 needs exactly one `Host` (RFC 9112, 3.2), HTTP/1.0 at most one. A request target in absolute form wins
    /// over it, though both must be valid (3.2.2). In HTTP/2 `:authority` and `Host` must name the same host and port
    /// where both are there (RFC 9113, 8.3.1). An empty `Host` is accepted only from HTTP/1.0 and with `OPTIONS *`.
    pub fn read(headers: &HeaderMap, uri: &Uri, version: Version) -> Result<Self, AuthorityError> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(AuthorityError::Several);
        }
        let may_be_empty = version < Version::HTTP_11 || uri.path() == "*";
        let host = match host {
            Some(value) if value.is_empty() && may_be_empty && uri.authority().is_none() => Some(Self::empty()),
            Some(value) => Some(Self::from_value(value.clone()).ok_or(AuthorityError::Invalid)?),
            None => None,
        };
        let target = match uri.authority() {
            Some(authority) => Some(Self::parse(authority.as_str()).ok_or(AuthorityError::Invalid)?),
            None => None,
        };
        match (target, host) {
            (Some(target), Some(host)) if version >= Version::HTTP_2 && !target.names_the_same(&host, uri.scheme()) => {
                Err(AuthorityError::Differs)
            }
            (Some(authority), _) | (None, Some(authority)) => Ok(authority),
            (None, None) if version < Version::HTTP_11 => Ok(Self::empty()),
            (None, None) => Err(AuthorityError::Missing),
        }
    }

    /// Takes `host` or `host:port`; `None` when it is neither.
    ///
    /// A host is an IPv6 address in brackets, without a zone, or a name of letters, digits, `-` and `_` in labels of
    /// 1 to 63, 253 in all, perhaps with a trailing dot. Internationalised names come as `xn--`. A port is 1 to 65535.
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_value(HeaderValue::from_str(text).ok()?)
    }

    fn from_value(text: HeaderValue) -> Option<Self> {
        let (host, port) = split_port(text.to_str().ok()?);
        let port = match port {
            Some(port) => Some(read_port(port)?),
            None => None,
        };
        if !is_host(host) {
            return None;
        }
        let end = host.len();
        let normal = match normal(host) {
            Cow::Borrowed(normal) if normal.len() == end => None,
            other => Some(other.into()),
        };
        Some(Self { text, end, normal, port })
    }

    fn empty() -> Self {
        Self { text: HeaderValue::from_static(""), end: 0, normal: None, port: None }
    }

    /// As it was sent, with the port.
    pub fn text(&self) -> &str {
        self.text.to_str().expect("an authority is visible ASCII")
    }

    /// [`Self::text`] as a header value; cloning it does not copy.
    pub fn value(&self) -> &HeaderValue {
        &self.text
    }

    /// The host alone: lower case, without port and trailing dot, IPv6 in brackets and in its canonical form.
    pub fn host(&self) -> &str {
        match &self.normal {
            Some(normal) => normal,
            None => &self.text()[..self.end],
        }
    }

    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// No host was named.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Makes `Host` say what this does, for a request that had it in its target instead (RFC 9112, 3.2.2).
    ///
    /// A `Host` that is there already and agrees stays byte for byte as it came: the application compares it, port and
    /// all, with what the browser believes.
    pub fn set_host(&self, headers: &mut HeaderMap) {
        if !self.is_empty() && headers.get(header::HOST) != Some(&self.text) {
            headers.insert(header::HOST, self.text.clone());
        }
    }

    fn names_the_same(&self, other: &Self, scheme: Option<&uri::Scheme>) -> bool {
        let default = scheme.map(|scheme| if *scheme == uri::Scheme::HTTPS { 443 } else { 80 });
        self.host() == other.host() && self.port.or(default) == other.port.or(default)
    }
}

/// The host in `text`, which may have a port, in the form hosts are compared in; see [`Authority::host`].
///
/// Checks nothing: what is no host comes back as something no host is equal to.
pub fn host_name(text: &str) -> Cow<'_, str> {
    normal(split_port(text).0)
}

/// Why a request has no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the request has no Host")]
    Missing,
    #[error("the request has more than one Host")]
    Several,
    #[error("Host or :authority is not `host` or `host:port`")]
    Invalid,
    #[error("Host and :authority differ")]
    Differs,
}

impl From<AuthorityError> for GatewayError {
    fn from(error: AuthorityError) -> Self {
        Self::downstream(StatusCode::BAD_REQUEST, "cannot tell which host the request is for").source(error)
    }
}

/// Splits at the colon before the port. The brackets of an IPv6 address stay with the host.
fn split_port(text: &str) -> (&str, Option<&str>) {
    let host = if text.starts_with('[') { text.find(']').map_or(text.len(), |end| end + 1) } else { 0 };
    match text[host..].find(':') {
        Some(colon) => (&text[..host + colon], Some(&text[host + colon + 1..])),
        None => (text, None),
    }
}

fn read_port(text: &str) -> Option<u16> {
    // `u16::from_str` takes a plus sign, and any number of leading zeros.
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.strip_suffix(']').is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn normal(host: &str) -> Cow<'_, str> {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => Cow::Owned(format!("[{address}]")),
            Err(_) => Cow::Borrowed(host),
        };
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(hosts: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        headers
    }

    fn read(hosts: &[&str], target: &str, version: Version) -> Result<String, AuthorityError> {
        let uri = target.parse().unwrap();
        Authority::read(&headers(hosts), &uri, version).map(|authority| authority.text().to_owned())
    }

    #[test]
    fn a_host_is_taken_as_sent_and_compared_in_its_normal_form() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("Example.COM.:8443", "example.com", Some(8443)),
            ("example.com.", "example.com", None),
            ("a_b.example:80", "a_b.example", Some(80)),
            ("localhost:8000", "localhost", Some(8000)),
            ("192.0.2.7:65535", "192.0.2.7", Some(65535)),
            ("[::1]", "[::1]", None),
            ("[2001:DB8:0::1]:443", "[2001:db8::1]", Some(443)),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
        ] {
            let authority = Authority::parse(text).unwrap();
            assert_eq!((authority.text(), authority.host(), authority.port()), (text, host, port));
            assert_eq!(host_name(text), host);
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "user@example.com",
            "user:secret@example.com",
            "exa mple.com",
            "example.com/x",
            "example.com\\x",
            "http://example.com",
            "example.com:",
            "example.com:0",
            "example.com:65536",
            "example.com:+80",
            "example.com:000080",
            "example.com:80:80",
            "example.com:x",
            "a, b",
            "a..b",
            ".example.com",
            ".",
            ":80",
            "::1",
            "[::1",
            "[::1]x",
            "[fe80::1%25eth0]",
            "[192.0.2.7]",
            "[]",
            "bücher.example",
            "exa%6dple.com",
            "exa\tmple",
            "<script>",
        ] {
            assert_eq!(read(&[text], "/", Version::HTTP_11), Err(AuthorityError::Invalid), "{text}");
        }
        assert_eq!(Authority::parse(&"a".repeat(64)), None);
        assert!(Authority::parse(&"a.".repeat(127)).is_some());
        assert_eq!(Authority::parse(&format!("{}a", "a.".repeat(127))), None);
    }

    #[test]
    fn a_request_names_exactly_one_host() {
        use AuthorityError::{Differs, Invalid, Missing, Several};
        type Case = (&'static [&'static str], &'static str, Version, Result<&'static str, AuthorityError>);
        let (old, one, two) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        let cases: &[Case] = &[
            (&["a"], "/", one, Ok("a")),
            (&[], "/", one, Err(Missing)),
            (&[], "/", old, Ok("")),
            (&[""], "/", old, Ok("")),
            (&[""], "/", one, Err(Invalid)),
            (&[""], "*", one, Ok("")),
            (&[""], "http://a/", one, Err(Invalid)),
            (&["a", "a"], "/", one, Err(Several)),
            (&["a", "b"], "http://a/", one, Err(Several)),
            (&["b"], "http://a:81/x", one, Ok("a:81")),
            (&["b b"], "http://a/", one, Err(Invalid)),
            (&[], "http://user@a/", one, Err(Invalid)),
            (&[], "http://a/", one, Ok("a")),
            (&[], "https://a/", two, Ok("a")),
            (&["A."], "https://a/", two, Ok("a")),
            (&["a:443"], "https://a/", two, Ok("a")),
            (&["a:80"], "https://a/", two, Err(Differs)),
            (&["b"], "https://a/", two, Err(Differs)),
            (&["a"], "/", two, Ok("a")),
            (&[], "/", two, Err(Missing)),
            (&["a", "a"], "https://a/", two, Err(Several)),
        ];
        for (hosts, target, version, expected) in cases {
            assert_eq!(
                read(hosts, target, *version).as_deref(),
                expected.as_ref().copied(),
                "{hosts:?} {target} {version:?}"
            );
        }
    }

    #[test]
    fn the_host_header_is_set_from_the_target_only_where_it_says_something_else() {
        let mut same = headers(&["Example.com"]);
        Authority::parse("Example.com").unwrap().set_host(&mut same);
        assert_eq!(same, headers(&["Example.com"]));

        let mut absent = HeaderMap::new();
        Authority::parse("a:81").unwrap().set_host(&mut absent);
        assert_eq!(absent, headers(&["a:81"]));

        let mut unnamed = HeaderMap::new();
        Authority::empty().set_host(&mut unnamed);
        assert!(unnamed.is_empty());
    }

    proptest! {
        #[test]
        fn any_host_bytes_are_read_or_refused(bytes in prop::collection::vec(0x20u8.., 0..40), absolute: bool) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(header::HOST, value);
            }
            let uri = if absolute { "http://a/" } else { "/" }.parse().unwrap();
            for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
                if let Ok(authority) = Authority::read(&headers, &uri, version) {
                    prop_assert!(authority.is_empty() || is_host(authority.host()));
                }
            }
        }

        #[test]
        fn an_authority_reads_back_as_itself(host in "[a-zA-Z0-9_-]{1,20}(\\.[a-z0-9]{1,9}){0,3}\\.?", port in prop::option::of(1u16..)) {
            let text = format!("{host}{}", port.map(|port| format!(":{port}")).unwrap_or_default());
            let authority = Authority::parse(&text).unwrap();

            prop_assert_eq!(authority.text(), &text);
            prop_assert_eq!(authority.port(), port);
            prop_assert_eq!(authority.host(), host.trim_end_matches('.').to_ascii_lowercase());
            let again = Authority::parse(authority.host()).unwrap();
            prop_assert_eq!(again.host(), authority.host());
        }

        #[test]
        fn any_ipv6_literal_has_one_normal_form(address: [u16; 8]) {
            let spelled = format!("[{}]", address.map(|group| format!("{group:04X}")).join(":"));
            let authority = Authority::parse(&spelled).unwrap();

            prop_assert_eq!(authority.host(), format!("[{}]", Ipv6Addr::from(address)));
        }
    }
}
