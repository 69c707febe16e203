//! Who may use a route, and what browsers are told to be careful about.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::plan::TrustedProxies;

/// Who may use a route. By default everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct AccessPlan {
    /// Nobody but clients from here; `None`: from anywhere.
    pub allow: Option<TrustedProxies>,
    /// Not even those who are in `allow`.
    pub deny: TrustedProxies,
    /// Nobody but users with their passwords.
    pub basic_auth: Option<BasicAuthPlan>,
    /// Nobody but those whom another server lets in.
    pub forward_auth: Option<ForwardAuthPlan>,
}

/// Users and passwords (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct BasicAuthPlan {
    /// As `htpasswd` writes it.
    pub file: PathBuf,
    /// What browsers show; visible ASCII and spaces.
    pub realm: String,
    /// Whether the application gets the password, too.
    pub pass: bool,
}

/// A server that is asked of each request whether it may pass.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ForwardAuthPlan {
    /// A key of [`super::Plan::upstreams`].
    pub upstream: String,
    /// Where it is asked, with or without a query.
    pub path: String,
    /// Names of fields of its answer that the application is told, in lower case.
    pub response_headers: Vec<String>,
    /// How long an answer may take in all.
    pub timeout: Duration,
}

/// What browsers are told to be careful about, where the application does not say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SecurityHeadersPlan {
    /// Come over https only (RFC 6797).
    pub hsts: Option<HstsPlan>,
    /// Do not guess what kind of thing an answer is.
    pub nosniff: bool,
    /// What to say to others of where one came from.
    pub referrer_policy: Option<String>,
    /// Whose pages may show ours within them; `None`: not a word of it.
    pub frames: Option<Vec<FrameAncestor>>,
}

/// How long browsers come over https only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct HstsPlan {
    /// Zero: they forget it.
    pub max_age: Duration,
    pub subdomains: bool,
    pub preload: bool,
}

/// Whose pages may show ours within them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum FrameAncestor {
    /// Nobody's; alone.
    None,
    /// Those of the same origin.
    Own,
    /// Those of this origin.
    Origin(String),
}

impl AccessPlan {
    /// Whether anybody is kept out.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        *self != Self::default()
    }

    /// Whether more is looked at than the address.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.basic_auth.is_some() || self.forward_auth.is_some()
    }

    /// The key that keeps `client` out, if one does; `None` for a client is a peer on a unix socket for whom no proxy spoke.
    #[must_use]
    pub fn refuses(&self, client: Option<IpAddr>) -> Option<&'static str> {
        let is_in = |list: &TrustedProxies| client.map_or(list.unix, |client| list.contains(client));
        if is_in(&self.deny) {
            return Some("deny");
        }
        self.allow.as_ref().is_some_and(|allow| !is_in(allow)).then_some("allow")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> TrustedProxies {
        let networks = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        TrustedProxies { networks, unix: text.split(' ').any(|word| word == "unix") }
    }

    #[test]
    fn who_is_denied_is_kept_out_whatever_else_is_allowed() {
        for (allow, deny, client, expected) in [
            (None, "", Some("203.0.113.7"), None),
            (None, "", None, None),
            (None, "203.0.113.0/24", Some("203.0.113.7"), Some("deny")),
            (None, "203.0.113.0/24", Some("::ffff:203.0.113.7"), Some("deny")),
            (None, "203.0.113.0/24", Some("203.0.112.7"), None),
            (None, "203.0.113.0/24", None, None),
            (None, "unix", None, Some("deny")),
            (Some("10.0.0.0/8"), "", Some("10.1.2.3"), None),
            (Some("10.0.0.0/8"), "", Some("::ffff:10.1.2.3"), None),
            (Some("10.0.0.0/8"), "", Some("11.0.0.1"), Some("allow")),
            (Some("10.0.0.0/8"), "", Some("2001:db8::1"), Some("allow")),
            (Some("10.0.0.0/8"), "", None, Some("allow")),
            (Some("unix"), "", None, None),
            (Some("2001:db8::/32"), "", Some("2001:db8::1"), None),
            // The smaller network in `allow` does not win over the larger one in `deny`.
            (Some("10.1.2.3/32"), "10.0.0.0/8", Some("10.1.2.3"), Some("deny")),
            (Some("10.0.0.0/8"), "10.1.0.0/16", Some("10.1.2.3"), Some("deny")),
            (Some("10.0.0.0/8"), "10.1.0.0/16", Some("10.2.2.3"), None),
        ] {
            let access = AccessPlan { allow: allow.map(list), deny: list(deny), ..AccessPlan::default() };
            let client = client.map(|client| client.parse().unwrap());
            assert_eq!(access.refuses(client), expected, "{client:?}: allow {allow:?}, deny {deny:?}");
        }
    }
}
