//! How many may come in, and how often: connections, handshakes and requests, by client and in all, and the memory of all.
//!
//! Whoever is beyond a limit is told so, or closed, at once; nobody waits here. What is counted by client is counted in
//! tables of a fixed size ([`slots`]): an attacker with many addresses fills them without our growing. Who is inside of a place
//! for few is counted one by one ([`Crowd`]). Bounds of one request or one connection are kept where they are read
//! ([`crate::h1`], [`crate::listener`]).

mod attempts;
mod connections;
mod crowd;
pub mod memory;
mod notice;
mod rate;
mod slots;

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

pub use self::{
    attempts::Attempts,
    connections::{ClientStreams, Connections, OpenConnection},
    crowd::{Crowd, Inside},
    notice::Notice,
    rate::{Handshakes, Requests},
};
use crate::config::{LimitsPlan, TrustedProxies};

/// Whom an address is counted as: itself, or, of IPv6, its first 64 bits, since a single client has all the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

impl Client {
    pub fn new(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => Self(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()),
            address @ IpAddr::V4(_) => Self(address),
        }
    }

    /// Whom `address` is counted as; `None` where it is not counted by address: there may be many clients behind it.
    pub fn counted(address: IpAddr, limits: &LimitsPlan, trusted: &TrustedProxies) -> Option<Self> {
        (!limits.exempt.contains(address) && !trusted.contains(address)).then(|| Self::new(address))
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(address) => write!(f, "{address}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// Those of a configuration that says `text` of them.
    pub(super) fn limits(text: &str) -> LimitsPlan {
        let text = format!(
            "listeners: [{{ address: '127.0.0.1:80' }}]\nupstreams: {{ app: {{ endpoints: ['127.0.0.1:1'] }} }}\n\
             routes: [{{ prefix: /, upstream: app }}]\nlimits: {{ {text} }}\n"
        );
        config::parse("/etc/v.yml", &text, &|_| None).unwrap().limits
    }

    fn client(text: &str) -> Client {
        Client::new(text.parse().unwrap())
    }

    #[test]
    fn an_address_of_ipv6_is_counted_by_its_first_64_bits() {
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_eq!(client("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
    }
}
