//! What a CA may ask us for: the challenges of orders that are under way, whoever placed them.

use std::{collections::HashMap, fmt, io, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    ServerConfig, crypto,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::ClientHello,
    sign::{CertifiedKey, SingleCertAndKey},
};
use serde::{Deserialize, Serialize};

use crate::config::ChallengeKind;

/// A challenge that a CA has been asked to look at, or is about to be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PendingChallenge {
    /// The name that is to be shown to be ours: a host name without `*.`, or an address.
    pub host: String,
    pub kind: ChallengeKind,
    pub token: String,
    /// The token and the thumbprint of the account's key (RFC 8555, 8.1); no secret.
    pub key_authorization: String,
}

/// The challenges that are answered at present.
#[derive(Default)]
pub struct Challenges(ArcSwap<Pending>);

#[derive(Default)]
struct Pending {
    /// By token (RFC 8555, 8.3).
    pages: HashMap<String, Arc<str>>,
    /// By the name that the client of RFC 8737 asks for.
    handshakes: HashMap<String, Arc<ServerConfig>>,
}

impl Challenges {
    /// Answers exactly `pending` from now on.
    ///
    /// One for which no certificate can be made is left out, with an event: the CA says that it was not answered.
    pub fn replace(&self, pending: &[PendingChallenge]) {
        let mut next = Pending::default();
        for challenge in pending {
            match challenge.kind {
                ChallengeKind::Http01 => {
                    next.pages.insert(challenge.token.clone(), challenge.key_authorization.as_str().into());
                }
                ChallengeKind::TlsAlpn01 => match config(challenge) {
                    Ok(config) => {
                        next.handshakes.insert(asked_for(&challenge.host), Arc::new(config));
                    }
                    Err(error) => {
                        tracing::error!(host = challenge.host, error = &*error, "tls-alpn-01 cannot be answered");
                    }
                },
                ChallengeKind::Dns01 => {}
            }
        }
        self.0.store(Arc::new(next));
    }

    /// What is answered at `/.well-known/acme-challenge/` and `token`.
    pub fn page(&self, token: &str) -> Option<Arc<str>> {
        let pending = self.0.load();
        if pending.pages.is_empty() { None } else { pending.pages.get(token).cloned() }
    }

    /// The terms for a client that wants nothing but to see that a name is ours (RFC 8737, 3).
    pub(super) fn handshake(&self, hello: &ClientHello<'_>) -> io::Result<Arc<ServerConfig>> {
        let pending = self.0.load();
        let config = hello.server_name().and_then(|name| pending.handshakes.get(name));
        config
            .cloned()
            .ok_or_else(|| io::Error::other("no order is under way for the name that acme-tls/1 is asked for"))
    }
}

/// Whether it is a client of RFC 8737, which offers `acme-tls/1` and nothing else.
pub(super) fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ALPN) && offered.next().is_none())
}

/// The terms of one handshake: a certificate with the digest of the key authorization (RFC 8737, 3).
fn config(challenge: &PendingChallenge) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let digest = digest(&SHA256, challenge.key_authorization.as_bytes());
    let mut params = CertificateParams::new([challenge.host.clone()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        // Not by `with_single_cert`, which refuses the extension that this is about for being critical.
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate.der().clone()], key))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A name by itself; for an address what stands for it in the tree of names (RFC 8738, 6).
fn asked_for(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let nibbles = address.octets().into_iter().rev().flat_map(|byte| [byte & 0xf, byte >> 4]);
            let labels: Vec<String> = nibbles.map(|nibble| format!("{nibble:x}")).collect();
            format!("{}.ip6.arpa", labels.join("."))
        }
        Err(_) => host.to_owned(),
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending = self.0.load();
        f.debug_struct("Challenges")
            .field("pages", &pending.pages.len())
            .field("handshakes", &pending.handshakes.keys())
            .finish()
    }
}

const ALPN: &[u8] = b"acme-tls/1";

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(host: &str, kind: ChallengeKind, token: &str) -> PendingChallenge {
        let key_authorization = format!("{token}.thumbprint");
        PendingChallenge { host: host.to_owned(), kind, token: token.to_owned(), key_authorization }
    }

    #[test]
    fn a_page_is_there_as_long_as_its_challenge() {
        let challenges = Challenges::default();
        assert_eq!(challenges.page("a"), None);

        challenges.replace(&[challenge("h.example", ChallengeKind::Http01, "a")]);
        assert_eq!(challenges.page("a").as_deref(), Some("a.thumbprint"));
        assert_eq!(challenges.page("b"), None);

        challenges.replace(&[challenge("h.example", ChallengeKind::TlsAlpn01, "a")]);
        assert_eq!(challenges.page("a"), None, "it is no challenge of that kind");
    }

    #[test]
    fn an_address_is_asked_for_by_its_name_in_the_tree() {
        assert_eq!(asked_for("192.0.2.1"), "1.2.0.192.in-addr.arpa");
        assert_eq!(
            asked_for("2001:db8::1"),
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
        assert_eq!(asked_for("a.example"), "a.example");
    }
}
