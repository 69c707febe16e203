//! Who the client is, and what it sees: from the connection, or from a proxy that is trusted to say so.
//!
//! One [`Origin`] per request is what the access log, the limits and the application are told. What the client itself
//! says about it never gets past here: [`Origin::apply`] removes every field an application might read it from.
//!
//! From a trusted peer:
//! - The client is the right-most address of `X-Forwarded-For`, over all its lines, that is not trusted itself; the
//!   left-most when all are. An entry that is no address ends the search at the last good one. Empty entries count
//!   for nothing.
//! - The scheme, the host and the port are the right-most values of `X-Forwarded-Proto`, `-Host` and `-Port`: those of
//!   the nearest hop, the only one that is known to have written them. A proxy behind another must pass on what it was
//!   told. What cannot be read there is taken from the connection and `Host`, never from a value further left.
//!   Such a proxy should set or drop all three: one that lets its client's `X-Forwarded-Host` through vouches for it.
//!   Where the site has a `host`, a told host that is none of the site's gives way to `Host` ([`Origin::take_host`]).
//! - `Forwarded` (RFC 7239) is read only when there is no `X-Forwarded-For`, `-Proto` or `-Host`: a proxy that writes
//!   these usually passes on whatever `Forwarded` its client sent. Its elements are searched by the same rule, and
//!   `proto` and `host` are those of the element the search ended at, since the proxy that wrote it saw the client.

use std::{
    io::Write,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use bytes::BufMut;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{authority::Authority, client_certificate::says_whose_it_is};
use crate::config::TrustedProxies;

/// The other end of the connection, or what a PROXY header says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A unix socket has no address.
    Unix,
}

/// What the client calls the scheme of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that is left out of a URL.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// `ws` and `wss` are what some proxies say of a websocket's handshake.
    fn read(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("https") || text.eq_ignore_ascii_case("wss") {
            Some(Self::Https)
        } else if text.eq_ignore_ascii_case("http") || text.eq_ignore_ascii_case("ws") {
            Some(Self::Http)
        } else {
            None
        }
    }
}

/// The client of a request, and the URL as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// IPv4 even where the connection is IPv6 with a mapped address. `None`: a unix socket, and nobody said more.
    pub client: Option<IpAddr>,
    pub scheme: Scheme,
    /// With the port, where the client's URL has one. Empty when no host is known.
    pub host: Authority,
    /// The port of the client's URL, by default that of the scheme. The listener's own is not used where there is a
    /// host: behind a mapped port it would be one the client has never seen.
    pub port: u16,
    /// The peer is a trusted proxy.
    pub trusted: bool,
}

impl Origin {
    /// Reads who sent the request. `local_port` is only the answer for a request without a host.
    pub fn of(
        peer: &Peer,
        tls: bool,
        local_port: u16,
        authority: &Authority,
        headers: &HeaderMap,
        trusted: &TrustedProxies,
    ) -> Self {
        let (address, is_trusted) = match peer {
            Peer::Tcp(address) => {
                let address = address.ip().to_canonical();
                (Some(address), trusted.contains(address))
            }
            Peer::Unix => (None, trusted.unix),
        };
        let told = if is_trusted { Told::read(headers, address, trusted) } else { Told::of_client(address) };
        let scheme = told.scheme.unwrap_or(if tls { Scheme::Https } else { Scheme::Http });
        let host = told.host.unwrap_or_else(|| authority.clone());
        let port = told.port.or_else(|| host.port()).unwrap_or_else(|| match local_port {
            1.. if host.is_empty() => local_port,
            _ => scheme.default_port(),
        });
        Self { client: told.client, scheme, host, port, trusted: is_trusted }
    }

    /// What a trusted proxy says of a user it has authenticated stays.
    fn is_ours_to_say(&self, name: &str) -> bool {
        says_who_the_client_is(name) || (!self.trusted && says_who_the_user_is(name))
    }

    /// Puts `authority`, the host of the request itself, in the place of the one a proxy told.
    pub fn take_host(&mut self, authority: &Authority) {
        self.port = authority.port().unwrap_or_else(|| self.scheme.default_port());
        self.host = authority.clone();
    }

    /// Makes `headers` say this and nothing else.
    ///
    /// Sets exactly one `X-Forwarded-For` (the client's address alone), `X-Real-IP`, `X-Forwarded-Proto`,
    /// `X-Forwarded-Host` and `X-Forwarded-Port`. The first two are left out when there is no address, the host when
    /// there is none. `Host` is not touched.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let others: Vec<HeaderName> =
            headers.keys().filter(|name| self.is_ours_to_say(name.as_str())).cloned().collect();
        for name in &others {
            headers.remove(name);
        }
        if let Some(client) = self.client {
            let client = address_value(client);
            headers.insert(&X_FORWARDED_FOR, client.clone());
            headers.insert(&X_REAL_IP, client);
        }
        headers.insert(&X_FORWARDED_PROTO, HeaderValue::from_static(self.scheme.as_str()));
        if !self.host.is_empty() {
            headers.insert(&X_FORWARDED_HOST, self.host.value().clone());
        }
        headers.insert(&X_FORWARDED_PORT, port_value(self.port));
    }
}

/// What proxies say of the client.
struct Told {
    client: Option<IpAddr>,
    scheme: Option<Scheme>,
    host: Option<Authority>,
    port: Option<u16>,
}

impl Told {
    fn of_client(client: Option<IpAddr>) -> Self {
        Self { client, scheme: None, host: None, port: None }
    }

    fn read(headers: &HeaderMap, peer: Option<IpAddr>, trusted: &TrustedProxies) -> Self {
        let de_facto = [&X_FORWARDED_FOR, &X_FORWARDED_PROTO, &X_FORWARDED_HOST];
        if de_facto.iter().all(|name| !headers.contains_key(*name)) {
            return Self::read_forwarded(headers, peer, trusted);
        }
        let mut search = Search { client: peer, trusted };
        for entry in from_the_right(headers, &X_FORWARDED_FOR) {
            if search.ends_at(entry) {
                break;
            }
        }
        Self {
            client: search.client,
            scheme: nearest(headers, &X_FORWARDED_PROTO).and_then(Scheme::read),
            host: nearest(headers, &X_FORWARDED_HOST).and_then(Authority::parse),
            port: nearest(headers, &X_FORWARDED_PORT).and_then(|port| port.parse().ok()).filter(|port| *port != 0),
        }
    }

    fn read_forwarded(headers: &HeaderMap, peer: Option<IpAddr>, trusted: &TrustedProxies) -> Self {
        let mut search = Search { client: peer, trusted };
        let mut told = Self::of_client(peer);
        for element in from_the_right(headers, &header::FORWARDED) {
            told.scheme = parameter(element, "proto").and_then(Scheme::read);
            told.host = parameter(element, "host").and_then(Authority::parse);
            if search.ends_at(parameter(element, "for").unwrap_or("unknown")) {
                break;
            }
        }
        told.client = search.client;
        told
    }
}

/// The search for the client, from the nearest hop outwards.
struct Search<'a> {
    client: Option<IpAddr>,
    trusted: &'a TrustedProxies,
}

impl Search<'_> {
    /// Takes the next entry to the left. Whether the search ends there.
    fn ends_at(&mut self, entry: &str) -> bool {
        let Some(address) = read_address(entry) else { return true };
        self.client = Some(address);
        !self.trusted.contains(address)
    }
}

/// `192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7`, `[2001:db8::7]` or `[2001:db8::7]:4711`.
fn read_address(text: &str) -> Option<IpAddr> {
    let bracketed = |text: &str| text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let address = (text.parse::<IpAddr>().ok())
        .or_else(|| bracketed(text).map(IpAddr::from))
        .or_else(|| text.parse::<SocketAddrV4>().ok().map(|address| IpAddr::from(*address.ip())))
        .or_else(|| text.parse::<SocketAddrV6>().ok().map(|address| IpAddr::from(*address.ip())));
    address.map(|address| address.to_canonical())
}

/// The entries of a list field over all its lines, last first. Empty ones are left out (RFC 9110, 5.6.1.2).
///
/// Commas in quotes do not separate. Read from the right, so that an open quote in what the client sent cannot
/// swallow what proxies have appended to it. An entry that is not text is `unknown`; what proxies have appended to it
/// in the same line is not.
fn from_the_right<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().rev().flat_map(|line| {
        let mut rest = Some(line.as_bytes());
        std::iter::from_fn(move || {
            let line = rest?;
            let (before, entry) = match last_outside_quotes(line, b',') {
                Some(comma) => (Some(&line[..comma]), &line[comma + 1..]),
                None => (None, line),
            };
            rest = before;
            Some(str::from_utf8(entry.trim_ascii()).unwrap_or("unknown"))
        })
        .filter(|entry| !entry.is_empty())
    })
}

/// The right-most value of the right-most line.
fn nearest<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    from_the_right(headers, name).next()
}

/// The value of a parameter of a `Forwarded` element, out of its quotes.
///
/// `None` where it is missing, empty, given twice, or has an escape, which no address, scheme or host needs.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = Some(element);
    let mut found = None;
    while let Some(text) = rest {
        let (before, pair) = match last_outside_quotes(text.as_bytes(), b';') {
            Some(semicolon) => (Some(&text[..semicolon]), &text[semicolon + 1..]),
            None => (None, text),
        };
        rest = before;
        let Some((key, value)) = pair.split_once('=') else { continue };
        if key.trim_ascii().eq_ignore_ascii_case(name) {
            if found.is_some() {
                return None;
            }
            let value = value.trim_ascii();
            found = Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value));
        }
    }
    found.filter(|value| !value.is_empty() && !value.contains(['"', '\\']))
}

/// The last `separator` that is not in quotes, seen from the right. A quote after a backslash is none.
fn last_outside_quotes(bytes: &[u8], separator: u8) -> Option<usize> {
    let mut quoted = false;
    for (at, byte) in bytes.iter().enumerate().rev() {
        match byte {
            b'"' if at == 0 || bytes[at - 1] != b'\\' => quoted = !quoted,
            byte if *byte == separator && !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// By which proxies name the user or the certificate they have checked; `HTTP_REMOTE_USER` and its like are believed by
/// many an application.
fn says_who_the_user_is(name: &str) -> bool {
    says_whose_it_is(name) || matches!(name, "remote-user" | "remote-addr" | "x-remote-user")
}

/// Whether an application might take the client's address, scheme, host or path from a field of this name.
///
/// `X-HTTP-Method-Override` is not one of them: it is the application's own matter.
fn says_who_the_client_is(name: &str) -> bool {
    name.starts_with("forwarded")
        || name.starts_with("x-forward")
        || name.starts_with("x-original-")
        || name.starts_with("x-real-")
        || matches!(
            name,
            "cf-connecting-ip"
                | "cf-connecting-ipv6"
                | "cf-pseudo-ipv4"
                | "cf-visitor"
                | "client-ip"
                | "cloudfront-forwarded-proto"
                | "cloudfront-viewer-address"
                | "fastly-client-ip"
                | "fly-client-ip"
                | "front-end-https"
                | "https"
                | "proxy-client-ip"
                | "true-client-ip"
                | "wl-proxy-client-ip"
                | "wl-proxy-ssl"
                | "x-appengine-user-ip"
                | "x-arr-ssl"
                | "x-azure-clientip"
                | "x-azure-socketip"
                | "x-client-ip"
                | "x-cluster-client-ip"
                | "x-envoy-external-address"
                | "x-envoy-original-path"
                | "x-host"
                | "x-https"
                | "x-http-host-override"
                | "x-originating-ip"
                | "x-proto"
                | "x-proxyuser-ip"
                | "x-remote-addr"
                | "x-remote-ip"
                | "x-rewrite-url"
                | "x-scheme"
                | "x-script-name"
                | "x-ssl"
                | "x-url-scheme"
        )
}

fn address_value(address: IpAddr) -> HeaderValue {
    let mut buffer = [0; LONGEST_ADDRESS];
    let mut free = &mut buffer[..];
    write_address(address, &mut free);
    let free = free.len();
    HeaderValue::from_bytes(&buffer[..LONGEST_ADDRESS - free]).expect("an address is visible ASCII")
}

/// Appends `address` as text. `Display` takes five times as long for IPv4, and an address is written twice for each request.
///
/// # Panics
///
/// Where there is no room for [`LONGEST_ADDRESS`] bytes.
pub fn write_address(address: IpAddr, out: &mut impl BufMut) {
    match address {
        IpAddr::V4(address) => {
            for (number, octet) in address.octets().into_iter().enumerate() {
                if number > 0 {
                    out.put_u8(b'.');
                }
                if octet >= 100 {
                    out.put_u8(b'0' + octet / 100);
                }
                if octet >= 10 {
                    out.put_u8(b'0' + octet / 10 % 10);
                }
                out.put_u8(b'0' + octet % 10);
            }
        }
        IpAddr::V6(address) => write!(out.writer(), "{address}").expect("there is room for an address"),
    }
}

/// Bytes of an IPv6 address with an IPv4 tail.
const LONGEST_ADDRESS: usize = 45;

/// What `HeaderValue` makes of a number takes memory three times.
fn port_value(port: u16) -> HeaderValue {
    match port {
        80 => HeaderValue::from_static("80"),
        443 => HeaderValue::from_static("443"),
        port => {
            let digits = [10_000, 1000, 100, 10, 1].map(|place| b"0123456789"[usize::from(port / place % 10)]);
            let zeros = digits.iter().take(digits.len() - 1).take_while(|digit| **digit == b'0').count();
            HeaderValue::from_bytes(&digits[zeros..]).expect("digits are visible ASCII")
        }
    }
}

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1:40000";
    const STRANGER: &str = "203.0.113.9:40000";

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        headers
    }

    fn trusted() -> TrustedProxies {
        TrustedProxies { networks: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], unix: true }
    }

    fn origin(peer: &str, lines: &[(&str, &str)]) -> Origin {
        let peer = if peer == "unix" { Peer::Unix } else { Peer::Tcp(peer.parse().unwrap()) };
        let host = Authority::parse("front.example").unwrap();
        Origin::of(&peer, false, 8080, &host, &headers(lines), &trusted())
    }

    fn client(peer: &str, lines: &[(&str, &str)]) -> Option<String> {
        origin(peer, lines).client.map(|address| address.to_string())
    }

    #[test]
    fn the_client_is_the_right_most_untrusted_entry() {
        for (lines, expected) in [
            (vec!["192.0.2.1"], "192.0.2.1"),
            (vec!["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
            (vec!["6.6.6.6, 192.0.2.1, 10.1.1.1,10.2.2.2"], "192.0.2.1"),
            (vec!["6.6.6.6", "192.0.2.1", "10.1.1.1"], "192.0.2.1"),
            (vec!["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
            (vec!["192.0.2.1:4711"], "192.0.2.1"),
            (vec!["2001:db8::7"], "2001:db8::7"),
            (vec!["[2001:db8::7]"], "2001:db8::7"),
            (vec!["[2001:db8::7]:4711"], "2001:db8::7"),
            (vec!["::ffff:192.0.2.1"], "192.0.2.1"),
            (vec!["192.0.2.1, fd00::5"], "192.0.2.1"),
            (vec!["6.6.6.6, unknown"], "10.0.0.1"),
            (vec!["6.6.6.6, unknown, 10.1.1.1"], "10.1.1.1"),
            (vec!["6.6.6.6, <garbage>, 10.1.1.1"], "10.1.1.1"),
            (vec!["6.6.6.6, 192.0.2.300"], "10.0.0.1"),
            (vec!["6.6.6.6, \u{fc}"], "10.0.0.1"),
            (vec!["6.6.6.6, \u{fc}, 192.0.2.1"], "192.0.2.1"),
            (vec!["192.0.2.1, , ,"], "192.0.2.1"),
            (vec![""], "10.0.0.1"),
            (vec![], "10.0.0.1"),
        ] {
            let lines: Vec<_> = lines.into_iter().map(|value| ("X-Forwarded-For", value)).collect();
            assert_eq!(client(PROXY, &lines).as_deref(), Some(expected), "{lines:?}");
        }
    }

    #[test]
    fn a_mapped_peer_is_the_ipv4_address_it_is() {
        let lines = [("X-Forwarded-For", "192.0.2.1")];

        assert_eq!(client("[::ffff:10.0.0.1]:5", &lines).as_deref(), Some("192.0.2.1"));
        assert_eq!(client("[::ffff:203.0.113.9]:5", &lines).as_deref(), Some("203.0.113.9"));
    }

    #[test]
    fn a_unix_peer_has_the_address_it_is_given_or_none() {
        assert_eq!(client("unix", &[("X-Forwarded-For", "192.0.2.1")]).as_deref(), Some("192.0.2.1"));
        assert_eq!(client("unix", &[]), None);
        let untrusted = TrustedProxies { unix: false, ..trusted() };
        let host = Authority::parse("front.example").unwrap();
        let said = headers(&[("X-Forwarded-For", "192.0.2.1")]);
        assert_eq!(Origin::of(&Peer::Unix, false, 0, &host, &said, &untrusted).client, None);
    }

    #[test]
    fn the_scheme_is_what_the_nearest_trusted_hop_says_if_it_is_one() {
        for (lines, expected) in [
            (vec!["https"], Scheme::Https),
            (vec!["HTTPS"], Scheme::Https),
            (vec!["wss"], Scheme::Https),
            (vec!["http"], Scheme::Http),
            (vec!["http, https"], Scheme::Https),
            (vec!["https, http"], Scheme::Http),
            (vec!["https", "http"], Scheme::Http),
            (vec!["https, evil"], Scheme::Http),
            (vec!["evil"], Scheme::Http),
            (vec!["https;"], Scheme::Http),
            (vec![], Scheme::Http),
        ] {
            let lines: Vec<_> = lines.into_iter().map(|value| ("X-Forwarded-Proto", value)).collect();
            assert_eq!(origin(PROXY, &lines).scheme, expected, "{lines:?}");
            assert_eq!(origin(STRANGER, &lines).scheme, Scheme::Http, "{lines:?}");
        }
    }

    #[test]
    fn host_and_port_are_those_of_the_clients_url() {
        let proto = ("X-Forwarded-Proto", "https");
        for (lines, host, port) in [
            (vec![], "front.example", 80),
            (vec![proto], "front.example", 443),
            (vec![proto, ("X-Forwarded-Host", "public.example")], "public.example", 443),
            (vec![proto, ("X-Forwarded-Host", "evil.example, Public.example:8443")], "Public.example:8443", 8443),
            (vec![proto, ("X-Forwarded-Host", "public.example, <x>")], "front.example", 443),
            (vec![proto, ("X-Forwarded-Port", "8443")], "front.example", 8443),
            (vec![proto, ("X-Forwarded-Port", "1, 8443")], "front.example", 8443),
            (vec![proto, ("X-Forwarded-Port", "0")], "front.example", 443),
            (vec![proto, ("X-Forwarded-Port", "99999")], "front.example", 443),
            (vec![proto, ("X-Forwarded-Port", "x")], "front.example", 443),
        ] {
            let origin = origin(PROXY, &lines);
            assert_eq!((origin.host.text(), origin.port), (host, port), "{lines:?}");
        }
    }

    #[test]
    fn without_a_host_the_port_is_the_listeners() {
        let old = Authority::read(&HeaderMap::new(), &"/".parse().unwrap(), http::Version::HTTP_10).unwrap();
        let peer = Peer::Tcp(STRANGER.parse().unwrap());

        let origin = Origin::of(&peer, true, 8443, &old, &HeaderMap::new(), &trusted());

        assert_eq!(origin.port, 8443);
        let mut given = headers(&[("X-Forwarded-Host", "evil.example")]);
        origin.apply(&mut given);
        assert!(!given.contains_key("x-forwarded-host"));
    }

    #[test]
    fn forwarded_is_searched_by_the_same_rule() {
        for (lines, expected) in [
            (vec!["for=192.0.2.1;proto=https;host=public.example"], ("192.0.2.1", Scheme::Https, "public.example")),
            (vec!["For=\"[2001:db8::7]:4711\"; Proto=https"], ("2001:db8::7", Scheme::Https, "front.example")),
            (
                vec![
                    "for=6.6.6.6;host=evil, for=192.0.2.1;proto=https;host=\"public.example:8443\", for=10.1.1.1;proto=http",
                ],
                ("192.0.2.1", Scheme::Https, "public.example:8443"),
            ),
            (
                vec!["for=6.6.6.6", "for=192.0.2.1;proto=https", "for=10.1.1.1"],
                ("192.0.2.1", Scheme::Https, "front.example"),
            ),
            (vec!["for=6.6.6.6, for=_hidden;proto=https"], ("10.0.0.1", Scheme::Https, "front.example")),
            (vec!["for=6.6.6.6, for=unknown, for=10.1.1.1"], ("10.1.1.1", Scheme::Http, "front.example")),
            (vec!["for=6.6.6.6, proto=https"], ("10.0.0.1", Scheme::Https, "front.example")),
            (vec!["for=\"6.6.6.6, for=192.0.2.1"], ("192.0.2.1", Scheme::Http, "front.example")),
            (vec!["for=6.6.6.6;x=\"a,b;for=7.7.7.7\", for=10.1.1.1"], ("6.6.6.6", Scheme::Http, "front.example")),
            (vec!["for=6.6.6.6, for=1.1.1.1;for=2.2.2.2"], ("10.0.0.1", Scheme::Http, "front.example")),
            (vec!["for=6.6.6.6, for=\"1.1.1.\\1\""], ("10.0.0.1", Scheme::Http, "front.example")),
            (vec!["garbage"], ("10.0.0.1", Scheme::Http, "front.example")),
        ] {
            let lines: Vec<_> = lines.into_iter().map(|value| ("Forwarded", value)).collect();
            let origin = origin(PROXY, &lines);
            let found = (origin.client.unwrap().to_string(), origin.scheme, origin.host.text().to_owned());
            assert_eq!((found.0.as_str(), found.1, found.2.as_str()), expected, "{lines:?}");
        }
    }

    #[test]
    fn forwarded_is_not_believed_next_to_the_other_fields() {
        let forwarded = ("Forwarded", "for=6.6.6.6;proto=https;host=evil.example");
        for other in [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "a")] {
            let origin = origin(PROXY, &[forwarded, other]);
            assert_ne!(origin.client, Some("6.6.6.6".parse().unwrap()), "{other:?}");
            assert_eq!(origin.scheme, Scheme::Http, "{other:?}");
            assert_ne!(origin.host.text(), "evil.example", "{other:?}");
        }
    }

    #[test]
    fn the_application_is_told_once_and_by_us_alone() {
        let mut given = headers(&[
            ("Host", "Front.example"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("X-Forwarded-For", "7.7.7.7"),
            ("X-Forwarded-SSL", "on"),
            ("X-Forwarded-Prefix", "/x"),
            ("X-Real-IP", "6.6.6.6"),
            ("Forwarded", "for=6.6.6.6"),
            ("CF-Connecting-IP", "6.6.6.6"),
            ("Front-End-Https", "on"),
            ("X-Original-URL", "/admin"),
            ("X-HTTP-Method-Override", "PUT"),
        ]);

        origin(STRANGER, &[]).apply(&mut given);

        let expected = headers(&[
            ("Host", "Front.example"),
            ("X-HTTP-Method-Override", "PUT"),
            ("X-Forwarded-For", "203.0.113.9"),
            ("X-Real-IP", "203.0.113.9"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "front.example"),
            ("X-Forwarded-Port", "80"),
        ]);
        assert_eq!(given, expected);
    }

    #[test]
    fn every_address_fits_in_its_value() {
        for text in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert_eq!(address_value(text.parse().unwrap()), text);
        }
    }

    fn any_headers() -> impl Strategy<Value = HeaderMap> {
        let name = prop_oneof![
            "x-forwarded-(for|host|proto|port|server|ssl|scheme|prefix|by|path|uri)",
            "(forwarded|x-real-ip|x-client-ip|true-client-ip|x-scheme|front-end-https|x-original-url|x-forwarded)",
            "[a-z-]{1,12}",
        ];
        let value = prop_oneof![
            "(10\\.0\\.0\\.[0-9]|192\\.0\\.2\\.[0-9]|unknown|\\[2001:db8::1\\]:9|,|\"|\\\\| ){0,6}",
            "(for=|proto=|host=|\"|;|,|\\\\|10\\.0\\.0\\.1|192\\.0\\.2\\.1|https|a\\.b){0,10}",
            "(https?|wss|443|evil|[a-z.]{1,9}:[0-9]{1,6}|, ){0,3}",
        ];
        prop::collection::vec((name, value), 0..8).prop_map(|lines| {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            headers(&lines)
        })
    }

    proptest! {
        #[test]
        fn whatever_is_said_the_proxys_word_counts_and_the_clients_does_not(given in any_headers()) {
            crate::properties::origin(&given);
        }

        #[test]
        fn after_apply_there_is_no_look_alike(mut given in any_headers()) {
            let host = Authority::parse("front.example").unwrap();
            let origin = Origin::of(&Peer::Tcp(STRANGER.parse().unwrap()), true, 443, &host, &given, &trusted());

            origin.apply(&mut given);

            let ours = [&X_FORWARDED_FOR, &X_REAL_IP, &X_FORWARDED_PROTO, &X_FORWARDED_HOST, &X_FORWARDED_PORT];
            prop_assert!(given.keys().all(|name| ours.contains(&name) || !says_who_the_client_is(name.as_str())));
        }

        #[test]
        fn the_client_is_the_peer_or_one_of_the_entries(given in any_headers()) {
            let peer = Peer::Tcp(PROXY.parse().unwrap());
            let host = Authority::parse("front.example").unwrap();
            let client = Origin::of(&peer, true, 443, &host, &given, &trusted()).client.unwrap();

            let named = given.values().any(|value| value.to_str().unwrap().contains(&client.to_string()));
            prop_assert!(named || client.to_string() == "10.0.0.1", "{client}");
        }
    }

    #[test]
    fn an_address_is_written_as_display_does() {
        let some = ["0.0.0.0", "9.10.99.100", "255.255.255.255", "::", "::ffff:1.2.3.4", "2001:db8::f:0:1"];
        for text in some {
            let mut written = Vec::new();
            write_address(text.parse().unwrap(), &mut written);
            assert_eq!(written, text.as_bytes());
        }
    }
}
