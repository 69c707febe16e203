//! The terms we offer clients: versions, ciphers, ALPN, tickets.

use std::{io, net::IpAddr, sync::Arc};

use rustls::{
    CipherSuite, ConfigBuilder, ServerConfig, SupportedCipherSuite, WantsVerifier,
    crypto::aws_lc_rs,
    server::{ClientHello, NoServerSessionStorage},
    sign::SingleCertAndKey,
    version,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{
    Certificate, TlsInfo, challenges,
    client::ClientAuthority,
    store::CertificateStore,
    stream::{Greeted, TlsStream},
    tickets::Ticketer,
};
use crate::config::TlsPlan;

/// The terms for every client, in the two orders of ciphers that clients need.
///
/// Most take ours: AES-128-GCM first, whose SHA-256 the processor computes (12 % less CPU a handshake than AES-256 with
/// SHA-384, which OpenSSL's clients list first). A client that lists CHACHA20 first has no AES in hardware, and rustls
/// has one order a config: so there are two, and the hello decides.
#[derive(Clone, Debug)]
pub struct ServerConfigs {
    store: Arc<CertificateStore>,
    our_order: Arc<ServerConfig>,
    client_order: Arc<ServerConfig>,
    clients: Option<ClientAuthority>,
}

impl ServerConfigs {
    /// Made once and shared by all cores, so that a session resumes on any of them; one that began with other `clients`,
    /// or with none, does not.
    ///
    /// # Errors
    ///
    /// `plan` has no protocol version, or the system has no randomness.
    pub fn new(
        plan: &TlsPlan,
        store: Arc<CertificateStore>,
        ticketer: &Arc<Ticketer>,
        clients: Option<ClientAuthority>,
    ) -> Result<Self, rustls::Error> {
        let client_order = server_config(plan, Arc::clone(&store), ticketer, clients.as_ref())?;
        let mut our_order = (*client_order).clone();
        our_order.ignore_client_order = true;
        Ok(Self { store, our_order: Arc::new(our_order), client_order, clients })
    }

    /// The terms for the client that sent `hello` to the address `local`.
    ///
    /// A client that names no server gets the certificate for `local` if there is one, otherwise the default.
    pub fn choose(&self, hello: &ClientHello<'_>, local: Option<IpAddr>) -> Arc<ServerConfig> {
        let config = if prefers_chacha(hello.cipher_suites()) { &self.client_order } else { &self.our_order };
        let by_address = || self.store.key_for_address(local?);
        match hello.server_name().map_or_else(by_address, |_| None) {
            Some(key) => {
                // Rare, so a config of its own is less than asking for the address in every handshake.
                let mut config = (**config).clone();
                config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
                Arc::new(config)
            }
            None => Arc::clone(config),
        }
    }

    /// Handshakes on `stream`, which the client connected to at `local`.
    ///
    /// Has no deadline of its own; a client that is refused is sent the alert that says why. Cancelling it closes the
    /// connection. `None`: it was a CA that looked whether a name is ours, and has seen it.
    pub async fn accept<S>(&self, stream: S, local: Option<IpAddr>) -> io::Result<Option<(TlsStream<S>, TlsInfo)>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let greeted = Greeted::read(stream).await?;
        let hello = greeted.hello();
        let asked_for: Option<Box<str>> = hello.server_name().map(Into::into);
        if challenges::is_challenge(&hello) {
            let config = self.store.challenges().handshake(asked_for.map(Into::into)).await?;
            greeted.agree(config).await?.shutdown().await?;
            return Ok(None);
        }
        let config = self.choose(&hello, local);
        let stream = greeted.agree(config).await?;
        if let Some(clients) = &self.clients {
            clients.admit(stream.terms())?;
        }
        let info = TlsInfo::of(stream.terms(), asked_for);
        Ok(Some((stream, info)))
    }
}

/// The terms in one config that follows the client's order of ciphers, for an acceptor that cannot look at the hello.
///
/// One ticket a TLS 1.3 handshake, early data off: a replayed request may have been acted on already.
///
/// # Errors
///
/// `plan` has no protocol version, or the system has no randomness.
fn server_config(
    plan: &TlsPlan,
    store: Arc<CertificateStore>,
    ticketer: &Arc<Ticketer>,
    clients: Option<&ClientAuthority>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let config = versions_and_ciphers(plan)?;
    let (config, ticketer) = match clients {
        Some(clients) => (config.with_client_cert_verifier(clients.verifier()), ticketer.on(clients.digest())),
        None => (config.with_no_client_auth(), Arc::clone(ticketer)),
    };
    let mut config = config.with_cert_resolver(store);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ticketer;
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The terms of a place that speaks HTTP/1.1 with few and has one certificate of its own: nothing is resumed.
///
/// # Errors
///
/// `plan` has no protocol version, or `certificate` no key.
pub fn with_one_certificate(plan: &TlsPlan, certificate: &Certificate) -> Result<Arc<ServerConfig>, rustls::Error> {
    let key = certificate.key().ok_or_else(|| rustls::Error::General("the key cannot be used".to_owned()))?;
    let key = SingleCertAndKey::from(Arc::clone(key));
    let mut config = versions_and_ciphers(plan)?.with_no_client_auth().with_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn versions_and_ciphers(plan: &TlsPlan) -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, rustls::Error> {
    let mut provider = aws_lc_rs::default_provider();
    // Stable: the order within a rank stays that of rustls.
    provider.cipher_suites.sort_by_key(rank);
    let chosen = |suite: &SupportedCipherSuite| suite.suite().as_str().is_some_and(|name| is_chosen(plan, name));
    provider.cipher_suites.retain(|suite| suite.tls13().is_some() || chosen(suite));
    let versions: Vec<_> =
        [(plan.tls13, &version::TLS13), (plan.tls12, &version::TLS12)].into_iter().filter(|(on, _)| *on).collect();
    let versions: Vec<_> = versions.into_iter().map(|(_, version)| version).collect();
    ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&versions)
}

fn is_chosen(plan: &TlsPlan, name: &str) -> bool {
    plan.ciphers.iter().any(|cipher| cipher.iana_name() == name)
}

fn rank(suite: &SupportedCipherSuite) -> u8 {
    match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        suite if is_chacha(suite) => 2,
        _ => 1,
    }
}

/// Whether the first cipher that is not a placeholder (GREASE, RFC 8701) is CHACHA20.
fn prefers_chacha(offered: &[CipherSuite]) -> bool {
    let grease = |suite: &CipherSuite| u16::from(*suite) & 0x0f0f == 0x0a0a;
    offered.iter().find(|suite| !grease(suite)).is_some_and(|suite| is_chacha(*suite))
}

fn is_chacha(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::TicketKeys;

    #[test]
    fn sessions_are_kept_by_the_clients_in_one_ticket_and_carry_no_early_data() {
        let plan = TlsPlan {
            tls12: true,
            tls13: true,
            ciphers: crate::config::Cipher::ALL.to_vec(),
            certificates: Vec::new(),
            acme: Vec::new(),
            fetched: Vec::new(),
            storage: "/nonexistent".into(),
            shared: None,
            import: Vec::new(),
            export: None,
            deploy: Vec::new(),
        };

        let ticketer = Ticketer::new(&TicketKeys::generate().unwrap());
        let config = server_config(&plan, Arc::new(CertificateStore::new(Vec::new())), &ticketer, None).unwrap();

        assert!(config.ticketer.enabled());
        assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (1, 0));
    }

    #[test]
    fn grease_in_front_does_not_hide_what_a_client_prefers() {
        let table = [
            (vec![CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, CipherSuite::TLS13_AES_128_GCM_SHA256], true),
            (vec![CipherSuite::Unknown(0x4a4a), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256], true),
            (vec![CipherSuite::TLS13_AES_256_GCM_SHA384, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256], false),
            (vec![CipherSuite::Unknown(0x1a1a), CipherSuite::TLS13_AES_128_GCM_SHA256], false),
            (vec![], false),
        ];

        for (offered, expected) in table {
            assert_eq!(prefers_chacha(&offered), expected, "{offered:?}");
        }
    }
}
