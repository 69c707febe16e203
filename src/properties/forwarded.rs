//! Who the client is.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::message::LIMITS;
use crate::{
    config::TrustedProxies,
    h1::decode_request,
    http::{
        authority::Authority,
        forwarded::{Origin, Peer, Scheme},
    },
};

/// Whatever a client has written, the proxy's word counts and the client's does not.
pub fn forwarded(bytes: &[u8]) -> bool {
    let Ok(Some(head)) = decode_request(&mut bytes.into(), LIMITS) else { return false };
    origin(&head.parts.headers);
    true
}

/// [`forwarded`], of the fields alone.
pub(crate) fn origin(headers: &HeaderMap) {
    let own = Authority::parse("front.example:81").expect("a host and a port");
    let of = |address: &str, headers: &HeaderMap| Origin::of(&peer(address), false, 81, &own, headers, &trusted());

    assert_eq!(of(STRANGER, headers), of(STRANGER, &HeaderMap::new()), "a stranger was believed");
    for (client, said) in
        [(STRANGER, STRANGER), (STRANGER, "203.0.113.9, 10.2.2.2"), ("2001:db8::9", "[2001:db8::9]:1")]
    {
        for told in after_proxy(headers, "x-forwarded-for", said) {
            assert_eq!(of(PROXY, &told).client, client.parse().ok(), "{told:?}");
        }
    }
    for told in after_proxy(headers, "x-forwarded-proto", "https") {
        assert_eq!(of(PROXY, &told).scheme, Scheme::Https, "{told:?}");
    }
    for told in after_proxy(headers, "x-forwarded-host", "told.example") {
        assert_eq!(of(PROXY, &told).host.text(), "told.example", "{told:?}");
    }
    if !["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].iter().any(|name| headers.contains_key(*name)) {
        for (client, node) in [(STRANGER, STRANGER), ("2001:db8::9", "\"[2001:db8::9]:4711\"")] {
            let element = format!("for={node};host=\"told.example\";proto=https");
            for told in after_proxy(headers, header::FORWARDED.as_str(), &element) {
                let Origin { client: found, scheme, host, .. } = of(PROXY, &told);
                assert_eq!(
                    (found, scheme, host.text()),
                    (client.parse().ok(), Scheme::Https, "told.example"),
                    "{told:?}"
                );
            }
        }
    }
    for address in [STRANGER, PROXY] {
        assert_says_only(&of(address, headers), headers.clone());
    }
}

/// `headers` of a client after a proxy has added `entry`: to the last line of the field, as nginx does, and as a line of its
/// own, as `HAProxy` does.
fn after_proxy(headers: &HeaderMap, name: &str, entry: &str) -> [HeaderMap; 2] {
    let name = HeaderName::from_bytes(name.as_bytes()).expect("a name of a field");
    let mut lines: Vec<_> = headers.get_all(&name).iter().map(|line| line.as_bytes().to_vec()).collect();
    let mut own_line = headers.clone();
    own_line.append(&name, HeaderValue::from_str(entry).expect("an entry is visible ASCII"));
    let last = lines.pop();
    lines.push(last.map_or_else(Vec::new, |last| [&last[..], b", "].concat()));
    lines.last_mut().expect("one was pushed").extend_from_slice(entry.as_bytes());
    let mut last_line = headers.clone();
    last_line.remove(&name);
    for line in lines {
        last_line.append(&name, HeaderValue::from_bytes(&line).expect("values that are joined are a value"));
    }
    [last_line, own_line]
}

fn assert_says_only(origin: &Origin, mut headers: HeaderMap) {
    origin.apply(&mut headers);
    let client = origin.client.expect("a peer that has an address").to_string();
    for (name, expected) in [
        ("x-forwarded-for", client.as_str()),
        ("x-real-ip", client.as_str()),
        ("x-forwarded-proto", origin.scheme.as_str()),
        ("x-forwarded-host", origin.host.text()),
        ("x-forwarded-port", &origin.port.to_string()),
    ] {
        assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [expected], "{name}");
        headers.remove(name);
    }
    for name in headers.keys().map(HeaderName::as_str) {
        let alike = ["x-forward", "x-real-", "x-original-", "forwarded"].iter().any(|start| name.starts_with(start))
            || ["client-ip", "true-client-ip", "x-client-ip", "x-scheme", "front-end-https"].contains(&name)
            || (!origin.trusted && ["remote-user", "x-remote-user"].contains(&name));
        assert!(!alike, "{name} might be taken for what we say");
    }
}

pub(super) fn peer(address: &str) -> Peer {
    Peer::Tcp((address.parse::<std::net::IpAddr>().expect("an address"), 40000).into())
}

pub(super) fn trusted() -> TrustedProxies {
    TrustedProxies { networks: vec!["10.0.0.0/8".parse().expect("a network")], unix: false }
}

pub(super) const PROXY: &str = "10.0.0.1";
pub(super) const STRANGER: &str = "203.0.113.9";
