//! The chain of proxies as requests show it, for whoever wonders why the application believes what it believes.
//!
//! A look now and then, not a record: each traffic thread notes a request ten times a second at most, so that what is seen
//! here is a matter of a moment and costs requests nothing.

use std::{
    cell::Cell,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, header};

use crate::http::forwarded::{Origin, Peer, Scheme};

/// What was seen last.
#[derive(Debug, Default)]
pub struct Hops {
    seen: Mutex<Seen>,
}

/// The requests that were noted last.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The one that came from a trusted proxy.
    pub trusted: Option<Hop>,
    /// The one that came from somebody else, and spoke for a client all the same.
    pub untrusted: Option<Hop>,
    pub mismatch: Option<Mismatch>,
    /// When a mismatch was told last.
    told: Option<Instant>,
}

/// Where one request came from, and what was made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub at: SystemTime,
    /// Who connected to us.
    pub peer: String,
    /// `X-Forwarded-For`, `-Proto` and `-Host` and `Forwarded` as they came, cut off where they are long.
    pub said: String,
    /// Whom the application is told of.
    pub client: String,
    pub scheme: &'static str,
    pub host: String,
}

/// The browser sees https, and the application is told http: its links are wrong, its cookies insecure or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub at: SystemTime,
    pub peer: String,
    /// What is wrong, and what to do about it.
    pub problem: String,
}

/// When a traffic thread looks again.
#[derive(Debug, Default)]
pub(super) struct NextLook(Cell<Option<Instant>>);

impl NextLook {
    /// Whether it is time at `now`; then it is not for a while.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let due = self.0.get().is_none_or(|next| next <= now);
        if due {
            self.0.set(Some(now + PAUSE));
        }
        due
    }
}

impl Hops {
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// Looks at one request, before its headers are made true.
    pub(super) fn note(&self, peer: &Peer, origin: &Origin, headers: &HeaderMap) {
        let said = said(headers);
        let at = SystemTime::now();
        if origin.trusted || said.is_some() {
            let hop = Hop {
                at,
                peer: show(peer),
                said: said.unwrap_or_default(),
                client: origin.client.map_or_else(|| "nobody is known".to_owned(), |client| client.to_string()),
                scheme: origin.scheme.as_str(),
                host: origin.host.text().to_owned(),
            };
            let mut seen = self.lock();
            *(if origin.trusted { &mut seen.trusted } else { &mut seen.untrusted }) = Some(hop);
        }
        match mismatch(peer, origin, headers) {
            Some(problem) => self.mismatched(Mismatch { at, peer: show(peer), problem }),
            None => self.is_well(peer, origin),
        }
    }

    /// Forgets a mismatch that has been mended, or was of another time.
    fn is_well(&self, peer: &Peer, origin: &Origin) {
        let mut seen = self.lock();
        let over = seen.mismatch.as_ref().is_some_and(|mismatch| {
            let mended = origin.scheme == Scheme::Https && mismatch.peer == show(peer);
            mended || mismatch.at.elapsed().is_ok_and(|age| age > FORGOTTEN)
        });
        if over {
            seen.mismatch = None;
        }
    }

    fn mismatched(&self, mismatch: Mismatch) {
        let mut seen = self.lock();
        let tell = seen.told.is_none_or(|told| told.elapsed() > SILENCE);
        if tell {
            seen.told = Some(Instant::now());
            tracing::warn!(
                peer = mismatch.peer,
                "browsers see https and the application is told http: {}",
                mismatch.problem
            );
        }
        seen.mismatch = Some(mismatch);
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong where the browser sees https and the application is told http.
fn mismatch(peer: &Peer, origin: &Origin, headers: &HeaderMap) -> Option<String> {
    if origin.scheme == Scheme::Https {
        return None;
    }
    // What a client of the internet says of itself is no sign of anything.
    if !origin.trusted && !is_near(peer) {
        return None;
    }
    let by_page =
        [header::ORIGIN, header::REFERER].iter().any(|name| is_page_of_https(headers, name, origin.host.text()));
    if origin.trusted {
        return by_page.then(|| {
            "the proxy is trusted and does not say so; have it set `X-Forwarded-Proto: https` (`vestibule explain --outer` \
             prints how)"
                .to_owned()
        });
    }
    (by_page || says_https(headers))
        .then(|| format!("{} is not in `trusted_proxies`; if it is your proxy, add it there", show(peer)))
}

fn says_https(headers: &HeaderMap) -> bool {
    let value = |name| headers.get(name).map(http::HeaderValue::as_bytes).unwrap_or_default();
    value(PROTO).eq_ignore_ascii_case(b"https")
        || value("forwarded").windows(11).any(|part| part.eq_ignore_ascii_case(b"proto=https"))
}

/// Whether `name` is the address of a page of this very host over https.
fn is_page_of_https(headers: &HeaderMap, name: &HeaderName, host: &str) -> bool {
    let rest = headers.get(name).and_then(|value| value.to_str().ok()?.strip_prefix("https://"));
    !host.is_empty()
        && rest.is_some_and(|rest| rest.split('/').next().is_some_and(|page| page.eq_ignore_ascii_case(host)))
}

/// On this machine, or in a network of its owner's.
fn is_near(peer: &Peer) -> bool {
    match peer {
        Peer::Unix => true,
        Peer::Tcp(address) => match address.ip().to_canonical() {
            std::net::IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
            std::net::IpAddr::V6(address) => {
                address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
            }
        },
    }
}

fn show(peer: &Peer) -> String {
    match peer {
        Peer::Tcp(address) => address.ip().to_canonical().to_string(),
        Peer::Unix => "a unix socket".to_owned(),
    }
}

/// What the request says of its way; `None` where it says nothing.
fn said(headers: &HeaderMap) -> Option<String> {
    let named = [FOR, "forwarded", PROTO, HOST].into_iter().flat_map(|name| {
        headers.get_all(name).iter().map(move |value| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
    });
    let mut said = named.collect::<Vec<_>>().join("; ").replace(char::is_control, "\u{fffd}");
    if let Some((end, _)) = said.char_indices().nth(LONGEST) {
        said.truncate(end);
        said.push('…');
    }
    (!said.is_empty()).then_some(said)
}

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";
/// Between two looks of one thread.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two events about the same.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a mismatch is shown that has not been seen again.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Characters of what a request says that are kept.
const LONGEST: usize = 500;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::HeaderValue;

    use super::*;
    use crate::{config::TrustedProxies, http::authority::Authority};

    fn seen(peer: &str, tls: bool, trusted: &str, fields: &[(&'static str, &str)]) -> Seen {
        let peer = Peer::Tcp(peer.parse::<SocketAddr>().unwrap());
        let headers: HeaderMap = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        let trusted =
            TrustedProxies { networks: trusted.split(' ').filter_map(|text| text.parse().ok()).collect(), unix: false };
        let authority = Authority::parse("a.example").unwrap();
        let origin = Origin::of(&peer, tls, 80, &authority, &headers, &trusted);
        let hops = Hops::default();
        hops.note(&peer, &origin, &headers);
        hops.seen()
    }

    #[test]
    fn the_chain_is_shown_as_it_came_and_as_it_was_taken() {
        let seen = seen(
            "10.0.0.1:1",
            false,
            "10.0.0.0/8",
            &[("x-forwarded-for", "6.6.6.6, 203.0.113.7, 10.0.0.9"), ("x-forwarded-proto", "https")],
        );
        let hop = seen.trusted.unwrap();
        assert_eq!((hop.peer.as_str(), hop.client.as_str(), hop.scheme), ("10.0.0.1", "203.0.113.7", "https"));
        assert_eq!(hop.said, "x-forwarded-for: 6.6.6.6, 203.0.113.7, 10.0.0.9; x-forwarded-proto: https");
        assert_eq!((seen.untrusted, seen.mismatch), (None, None));
    }

    #[test]
    fn a_mismatch_is_what_a_near_proxy_or_the_page_itself_gives_away() {
        let https = ("x-forwarded-proto", "https");
        let page = ("referer", "https://a.example/x");
        for (peer, tls, trusted, fields, expected) in [
            ("10.0.0.1:1", false, "", vec![https], Some("10.0.0.1 is not in `trusted_proxies`")),
            ("127.0.0.1:1", false, "", vec![("forwarded", "for=1.2.3.4;Proto=HTTPS")], Some("127.0.0.1 is not in")),
            ("203.0.113.7:1", false, "", vec![https], None),
            ("203.0.113.7:1", false, "", vec![page], None),
            ("192.168.1.1:1", false, "", vec![page], Some("192.168.1.1 is not in")),
            ("10.0.0.1:1", false, "10.0.0.0/8", vec![https], None),
            ("10.0.0.1:1", false, "10.0.0.0/8", vec![page], Some("have it set `X-Forwarded-Proto: https`")),
            ("10.0.0.1:1", true, "", vec![https, page], None),
            ("10.0.0.1:1", false, "", vec![("origin", "https://a.example.evil")], None),
            ("10.0.0.1:1", false, "", vec![("origin", "http://a.example")], None),
        ] {
            let mismatch = seen(peer, tls, trusted, &fields).mismatch.map(|mismatch| mismatch.problem);
            assert_eq!(mismatch.is_some(), expected.is_some(), "{peer} {fields:?}: {mismatch:?}");
            assert!(mismatch.unwrap_or_default().contains(expected.unwrap_or_default()), "{peer} {fields:?}");
        }
    }

    #[test]
    fn what_a_peer_says_is_bounded_and_has_no_controls() {
        let long = "é".repeat(3000);
        let text = seen("10.0.0.1:1", false, "", &[("x-forwarded-for", &long)]).untrusted.unwrap().said;
        assert!(text.chars().count() <= LONGEST + 1);
        let tab = seen("10.0.0.1:1", false, "", &[("x-forwarded-for", "a\tb")]).untrusted.unwrap().said;
        assert!(!tab.contains('\t'));
    }
}
