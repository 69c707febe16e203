//! What a CA may ask us for: the challenges of orders that are under way, whoever placed them.

use std::{collections::HashMap, fmt, io, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    ServerConfig, crypto,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::ClientHello,
    sign::{CertifiedKey, SingleCertAndKey},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

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
///
/// A CA may come to another machine than the one that has asked it to. Where there are others, a question that cannot be
/// answered waits a moment, while it is looked whether it is about an order of theirs.
pub struct Challenges {
    pending: ArcSwap<Pending>,
    /// Has it looked for; `None` where there are no others.
    seek: ArcSwapOption<Seek>,
    replaced: watch::Sender<()>,
    waiting: Semaphore,
}

type Seek = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Pending {
    /// By token (RFC 8555, 8.3).
    pages: HashMap<String, Arc<str>>,
    /// By the name that the client of RFC 8737 asks for; with the challenge that each was made for.
    handshakes: HashMap<String, (PendingChallenge, Arc<ServerConfig>)>,
}

impl Default for Challenges {
    fn default() -> Self {
        Self {
            pending: ArcSwap::default(),
            seek: ArcSwapOption::empty(),
            replaced: watch::Sender::default(),
            waiting: Semaphore::new(WAITING),
        }
    }
}

impl Challenges {
    /// Answers exactly `pending` from now on; what was answered before is as it was.
    ///
    /// One for which no certificate can be made is left out, with an event: the CA says that it was not answered.
    pub fn replace(&self, pending: &[PendingChallenge]) {
        let (before, mut next) = (self.pending.load(), Pending::default());
        for challenge in pending {
            match challenge.kind {
                ChallengeKind::Http01 => {
                    next.pages.insert(challenge.token.clone(), challenge.key_authorization.as_str().into());
                }
                ChallengeKind::TlsAlpn01 => {
                    let name = asked_for(&challenge.host);
                    let known = before.handshakes.get(&name).filter(|(known, _)| known == challenge);
                    match known.map_or_else(|| config(challenge).map(Arc::new), |(_, made)| Ok(Arc::clone(made))) {
                        Ok(config) => drop(next.handshakes.insert(name, (challenge.clone(), config))),
                        Err(error) => {
                            tracing::error!(host = challenge.host, error = &*error, "tls-alpn-01 cannot be answered");
                        }
                    }
                }
                ChallengeKind::Dns01 => {}
            }
        }
        self.pending.store(Arc::new(next));
        self.replaced.send_replace(());
    }

    /// Has what is not known sought by `seek`, which is called as often as somebody asks; a [`Challenges::replace`] answers it.
    pub fn seek_by(&self, seek: Option<Seek>) {
        self.seek.store(seek.map(Arc::new));
    }

    /// What is answered at `/.well-known/acme-challenge/` and `token`.
    pub async fn page(&self, token: &str) -> Option<Arc<str>> {
        // RFC 8555, 8.3.
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if token.is_empty() || token.len() > LONGEST_TOKEN || !token.bytes().all(is_token) {
            return None;
        }
        self.find(|pending| pending.pages.get(token).cloned()).await
    }

    /// The terms for a client that wants nothing but to see that the name `asked_for` is ours (RFC 8737, 3).
    pub(super) async fn handshake(&self, asked_for: Option<String>) -> io::Result<Arc<ServerConfig>> {
        let config = match asked_for {
            Some(name) => {
                self.find(|pending| pending.handshakes.get(&name).map(|(_, config)| Arc::clone(config))).await
            }
            None => None,
        };
        config.ok_or_else(|| io::Error::other("no order is under way for the name that acme-tls/1 is asked for"))
    }

    async fn find<T>(&self, look: impl Fn(&Pending) -> Option<T>) -> Option<T> {
        let mut replaced = self.replaced.subscribe();
        if let Some(found) = look(&self.pending.load()) {
            return Some(found);
        }
        let seek = self.seek.load_full()?;
        let _place = self.waiting.try_acquire().ok()?;
        let found = async {
            loop {
                seek();
                // A look that had begun before we asked may have missed it.
                drop(timeout(AGAIN, replaced.changed()).await);
                if let Some(found) = look(&self.pending.load()) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, found).await.ok()
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
        let pending = self.pending.load();
        f.debug_struct("Challenges")
            .field("pages", &pending.pages.len())
            .field("handshakes", &pending.handshakes.keys())
            .finish_non_exhaustive()
    }
}

const ALPN: &[u8] = b"acme-tls/1";
const LONGEST_TOKEN: usize = 128;
/// How long it is sought: a CA waits for some ten seconds.
const PATIENCE: Duration = Duration::from_secs(4);
const AGAIN: Duration = Duration::from_secs(1);
/// Those who wait at once; others are told that there is nothing.
const WAITING: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{Instant, sleep};

    use super::*;

    fn challenge(host: &str, kind: ChallengeKind, token: &str) -> PendingChallenge {
        let key_authorization = format!("{token}.thumbprint");
        PendingChallenge { host: host.to_owned(), kind, token: token.to_owned(), key_authorization }
    }

    #[tokio::test]
    async fn a_page_is_there_as_long_as_its_challenge() {
        let challenges = Challenges::default();
        assert_eq!(challenges.page("a").await, None);

        challenges.replace(&[challenge("h.example", ChallengeKind::Http01, "a")]);
        assert_eq!(challenges.page("a").await.as_deref(), Some("a.thumbprint"));
        assert_eq!(challenges.page("b").await, None);

        challenges.replace(&[challenge("h.example", ChallengeKind::TlsAlpn01, "a")]);
        assert_eq!(challenges.page("a").await, None, "it is no challenge of that kind");
    }

    #[tokio::test]
    async fn a_certificate_for_a_handshake_is_made_once_for_each_challenge() {
        let challenges = Challenges::default();
        let shown = async || challenges.handshake(Some("a.example".to_owned())).await.unwrap();
        let first = challenge("a.example", ChallengeKind::TlsAlpn01, "a");
        challenges.replace(std::slice::from_ref(&first));
        let made = shown().await;

        challenges.replace(&[first, challenge("b.example", ChallengeKind::TlsAlpn01, "b")]);
        assert!(Arc::ptr_eq(&made, &shown().await));
        challenges.replace(&[challenge("a.example", ChallengeKind::TlsAlpn01, "c")]);
        assert!(!Arc::ptr_eq(&made, &shown().await), "it is another challenge");
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_machine_orders_is_waited_for() {
        let challenges = Arc::new(Challenges::default());
        let sought = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sought);
        challenges.seek_by(Some(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })));

        let answered = challenges.page("a");
        let found = async {
            // A look that finds nothing, and one that does.
            sleep(Duration::from_millis(500)).await;
            challenges.replace(&[]);
            sleep(Duration::from_millis(500)).await;
            challenges.replace(&[challenge("h.example", ChallengeKind::Http01, "a")]);
        };
        assert_eq!(tokio::join!(answered, found).0.as_deref(), Some("a.thumbprint"));
        assert_eq!(sought.load(Ordering::Relaxed), 2);

        let begun = Instant::now();
        assert_eq!(challenges.page("b").await, None, "it is nobody's");
        assert_eq!(begun.elapsed(), PATIENCE);
        assert_eq!(challenges.page("a/../b").await, None, "it is no token");
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_bounded() {
        let challenges = Challenges::default();
        challenges.seek_by(Some(Box::new(|| {})));
        let _all = challenges.waiting.try_acquire_many(u32::try_from(WAITING).unwrap()).unwrap();

        let begun = Instant::now();
        assert_eq!(challenges.page("a").await, None);
        assert_eq!(begun.elapsed(), Duration::ZERO);
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
