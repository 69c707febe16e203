//! Which certificate a client gets: the one rustls asks at every handshake.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{
    Challenges, MADE_BY_US,
    certificate::{self, Certificate, CertificateName},
};

/// The certificates in force, found by the name a client asks for.
///
/// An exact name comes before a wildcard; who asks for an unknown name, or for none, gets the first certificate of the
/// configuration. Where several are for one name, one that has not expired comes before one that has, ECDSA and
/// Ed25519 (smaller, quicker to sign with) before RSA, then the first configured; a client that cannot verify the
/// signature gets the next.
pub struct CertificateStore {
    index: ArcSwap<Index>,
    challenges: Challenges,
}

impl CertificateStore {
    /// With no certificate, every handshake is refused.
    pub fn new(certificates: Vec<Certificate>) -> Self {
        let index = ArcSwap::from_pointee(Index::new(certificates, Timestamp::now()));
        Self { index, challenges: Challenges::default() }
    }

    /// Puts `certificates` in force for all handshakes that begin from now on; others keep what they have.
    pub fn replace(&self, certificates: Vec<Certificate>) {
        self.index.store(Arc::new(Index::new(certificates, Timestamp::now())));
    }

    /// What CAs may ask for that certificates are ordered from.
    pub fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// The certificates in force, in the order of the configuration.
    pub fn certificates(&self) -> Arc<[Certificate]> {
        self.index.load().certificates.clone()
    }

    /// The certificate for `name` (lower case, no port, IPv6 with or without brackets), `None` if there is only the
    /// default for it.
    ///
    /// Two names with one id may share a connection; otherwise a request belongs on another one (421, RFC 9110,
    /// 15.5.20). Ids are to be compared within one generation of the store. A client that named no server cannot come
    /// back under another name: for it there is nothing to compare.
    pub fn certificate_for(&self, name: &str) -> Option<CertificateId> {
        self.index.load().candidates(name).and_then(|found| found.first().copied()).map(CertificateId)
    }

    /// Whether the operator has a certificate for `name`; one that we have made ourselves makes no host a known one.
    pub fn is_configured_for(&self, name: &str) -> bool {
        let index = self.index.load();
        let found = index.candidates(name).and_then(|found| found.first().copied());
        found.is_some_and(|position| index.certificates[position].at() != MADE_BY_US)
    }

    /// The certificate for the address a client has connected to, for a client that names no server because it
    /// addressed us by number.
    pub(super) fn key_for_address(&self, local: IpAddr) -> Option<Arc<CertifiedKey>> {
        let index = self.index.load();
        let found = index.addresses.get(&local.to_canonical())?;
        found.first().and_then(|position| index.certificates[*position].key()).cloned()
    }

    fn select(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let index = self.index.load();
        let found = name.and_then(|name| index.candidates(name)).unwrap_or(&index.default);
        let key = |position: &usize| index.certificates[*position].key();
        // With one certificate there is nothing to choose; rustls says itself what does not fit.
        let fits = |key: &Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        let usable = |position: &&usize| found.len() == 1 || key(position).is_some_and(fits);
        found.iter().find(usable).or_else(|| found.first()).and_then(key).cloned()
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.select(client_hello.server_name(), client_hello.signature_schemes())
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.index.load().certificates.iter().map(|certificate| certificate.names())).finish()
    }
}

/// One certificate of the store, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CertificateId(usize);

/// Places in `certificates`, best first; never empty in a map.
type Candidates = Vec<usize>;

struct Index {
    certificates: Arc<[Certificate]>,
    exact: HashMap<String, Candidates>,
    /// By what follows the `*.`.
    wildcards: HashMap<String, Candidates>,
    addresses: HashMap<IpAddr, Candidates>,
    /// The first certificate and, when it is there, its twin with another kind of key.
    default: Candidates,
}

impl Index {
    fn new(certificates: Vec<Certificate>, now: Timestamp) -> Self {
        let mut index = Self {
            certificates: certificates.into(),
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            addresses: HashMap::new(),
            default: Vec::new(),
        };
        for (position, certificate) in index.certificates.iter().enumerate() {
            for name in certificate.names() {
                let candidates = match name {
                    CertificateName::Dns(name) => index.exact.entry(name.clone()).or_default(),
                    CertificateName::Wildcard(parent) => index.wildcards.entry(parent.clone()).or_default(),
                    CertificateName::Address(address) => index.addresses.entry(address.to_canonical()).or_default(),
                };
                if !candidates.contains(&position) {
                    candidates.push(position);
                }
            }
        }
        if let Some(first) = index.certificates.first() {
            let twin = |certificate: &Certificate| certificate.names() == first.names();
            let twins = index.certificates.iter().enumerate().filter(|(_, certificate)| twin(certificate));
            index.default = twins.map(|(position, _)| position).collect();
        }
        let rank = |position: &usize| {
            let certificate = &index.certificates[*position];
            let expired = certificate.warning(now).is_some();
            (expired, certificate.algorithm() == SignatureAlgorithm::RSA, *position)
        };
        let named = index.exact.values_mut().chain(index.wildcards.values_mut()).chain(index.addresses.values_mut());
        for candidates in named.chain([&mut index.default]) {
            candidates.sort_by_key(rank);
        }
        index
    }

    /// Allocates nothing: three lookups at most.
    fn candidates(&self, name: &str) -> Option<&Candidates> {
        let name = name.strip_suffix('.').unwrap_or(name);
        self.exact
            .get(name)
            .or_else(|| self.wildcards.get(name.split_once('.')?.1))
            .or_else(|| self.addresses.get(&certificate::address(name)?.to_canonical()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, date_time_ymd};

    use super::*;
    use crate::tls::testing::{Authority, material};

    const BOTH: [SignatureScheme; 2] = [SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256];

    fn serial(key: Option<Arc<CertifiedKey>>) -> Vec<u8> {
        key.unwrap().cert[0].as_ref().to_vec()
    }

    fn leaf(certificate: &Certificate) -> Vec<u8> {
        certificate.chain()[0].clone()
    }

    #[test]
    fn exact_comes_before_wildcard_before_default() {
        let authority = Authority::new();
        let make = |names: &[&str]| authority.certificate(names, &PKCS_ECDSA_P256_SHA256);
        let certificates =
            vec![make(&["first.example"]), make(&["*.example.org"]), make(&["a.example.org", "192.0.2.7"])];
        let store = CertificateStore::new(certificates.clone());
        let table = [
            (Some("first.example"), 0),
            (Some("a.example.org"), 2),
            (Some("a.example.org."), 2),
            (Some("b.example.org"), 1),
            (Some("b.a.example.org"), 0),
            (Some("example.org"), 0),
            (Some("unknown"), 0),
            (None, 0),
        ];

        for (name, expected) in table {
            assert_eq!(serial(store.select(name, &BOTH)), leaf(&certificates[expected]), "{name:?}");
        }
        let by_address = store.key_for_address("::ffff:192.0.2.7".parse().unwrap());
        assert_eq!(serial(by_address), leaf(&certificates[2]));
        assert!(store.key_for_address("192.0.2.8".parse().unwrap()).is_none());
    }

    #[test]
    fn ecdsa_comes_before_rsa_for_clients_that_take_it() {
        let authority = Authority::new();
        let rsa = authority.certificate(&["a.example"], &PKCS_RSA_SHA256);
        let ecdsa = authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let store = CertificateStore::new(vec![rsa.clone(), ecdsa.clone()]);

        for name in [Some("a.example"), None] {
            assert_eq!(serial(store.select(name, &BOTH)), leaf(&ecdsa), "{name:?}, both");
            assert_eq!(serial(store.select(name, &BOTH[..1])), leaf(&rsa), "{name:?}, RSA only");
        }
    }

    #[test]
    fn one_that_has_expired_gives_way_to_one_that_has_not() {
        let authority = Authority::new();
        let (old, key) = authority.issue_with(&["a.example"], &PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = date_time_ymd(2021, 1, 1);
        });
        let old = Certificate::from_material(&material(&old, &key, None)).unwrap();
        let new = authority.certificate(&["a.example"], &PKCS_RSA_SHA256);
        let store = CertificateStore::new(vec![old.clone(), new.clone()]);

        assert_eq!(serial(store.select(Some("a.example"), &BOTH)), leaf(&new));
        assert_eq!(serial(CertificateStore::new(vec![old.clone()]).select(Some("a.example"), &BOTH)), leaf(&old));
    }

    #[test]
    fn names_of_one_certificate_have_one_id_and_unknown_names_none() {
        let authority = Authority::new();
        let store = CertificateStore::new(vec![
            authority.certificate(&["a.example", "b.example"], &PKCS_ECDSA_P256_SHA256),
            authority.certificate(&["c.example", "::1"], &PKCS_ECDSA_P256_SHA256),
        ]);

        assert_eq!(store.certificate_for("a.example"), store.certificate_for("b.example"));
        assert_ne!(store.certificate_for("a.example"), store.certificate_for("c.example"));
        assert_eq!(store.certificate_for("c.example"), store.certificate_for("[::1]"));
        assert_eq!(store.certificate_for("d.example"), None);
    }

    #[test]
    fn a_name_is_found_as_soon_among_thousands_as_among_few() {
        let authority = Authority::new();
        let make = |number| {
            let names = [format!("site-{number}.example"), format!("*.site-{number}.example")];
            authority.certificate(&names.each_ref().map(String::as_str), &PKCS_ECDSA_P256_SHA256)
        };
        let certificates: Vec<_> = (0..5_000).map(make).collect();
        let takes = |count: usize| {
            let store = CertificateStore::new(certificates[..count].to_vec());
            let began = Instant::now();
            for _ in 0..10_000 {
                for name in ["site-9.example", "www.site-9.example", "unknown.example"] {
                    assert!(store.select(Some(name), &BOTH).is_some());
                }
            }
            began.elapsed()
        };

        let (few, many) = (takes(10), takes(5_000));

        // By a scan it would be five hundred times as long.
        assert!(many < 20 * few, "{few:?} among ten, {many:?} among all");
    }

    #[test]
    fn an_empty_store_has_nothing_to_serve_until_it_is_replaced() {
        let store = CertificateStore::new(Vec::new());
        assert!(store.select(Some("a.example"), &BOTH).is_none());

        store.replace(vec![Authority::new().certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256)]);

        assert!(store.select(Some("a.example"), &BOTH).is_some());
        assert_eq!(store.certificates().len(), 1);
    }
}
