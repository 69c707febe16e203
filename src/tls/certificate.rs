//! One certificate with its key and chain, checked as far as that can be done without asking anybody.

use std::{
    fmt,
    net::IpAddr,
    ops::Deref,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use jiff::Timestamp;
use rustls::{
    SignatureAlgorithm,
    crypto::aws_lc_rs::sign::{any_ecdsa_type, any_supported_type},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::{CertifiedKey, SigningKey},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x509_parser::{
    asn1_rs::{Oid, oid},
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Error},
    x509::SubjectPublicKeyInfo,
};
use zeroize::Zeroizing;

use super::material::{CertificateMaterial, Role, SecretBytes};

/// A certificate that can be served: leaf, chain and the key that belongs to the leaf. Cheap to clone.
///
/// Checked by whoever made it of files; one process of ours hands it to another as it is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Certificate {
    #[serde(serialize_with = "serialize", deserialize_with = "deserialize_text")]
    at: Arc<str>,
    #[serde(serialize_with = "serialize", deserialize_with = "deserialize_pair")]
    pair: Arc<Pair>,
}

/// A certificate and its key, wherever they are from.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Pair {
    facts: CertificateFacts,
    /// The leaf and what follows it, each in DER.
    chain: Vec<Vec<u8>>,
    /// In DER.
    key: SecretBytes,
    algorithm: u8,
    /// What rustls signs with and sends, made when it is first asked for: of thousands, few are.
    #[serde(skip)]
    certified: OnceLock<Option<Arc<CertifiedKey>>>,
}

/// What is known of a [`Certificate`] without its key.
#[derive(Debug, Deserialize, Serialize)]
pub struct CertificateFacts {
    names: Vec<CertificateName>,
    #[serde(with = "jiff::fmt::serde::timestamp::second::required")]
    not_before: Timestamp,
    #[serde(with = "jiff::fmt::serde::timestamp::second::required")]
    not_after: Timestamp,
    self_signed: bool,
}

impl Deref for Certificate {
    type Target = CertificateFacts;

    fn deref(&self) -> &CertificateFacts {
        &self.pair.facts
    }
}

impl Certificate {
    /// Parses PEM and checks that key and certificate are a pair.
    ///
    /// The leaf is the certificate the key belongs to, as a rule the first in its file. The chain is what follows it and
    /// what the chain file holds, each certificate once, put in the order of issue (RFC 8446, 4.4.2); what does not
    /// link up keeps its place at the end. A certificate that has expired is still a certificate: see
    /// [`CertificateFacts::warning`].
    pub fn from_material(material: &CertificateMaterial) -> Result<Self, CertificateError> {
        Ok(Self { at: material.at.as_str().into(), pair: material.checked.pair(|| Pair::of(material))? })
    }

    /// What is wrong with each file of `material` by itself; whether they belong together is not looked at.
    pub fn faults(material: &CertificateMaterial) -> Vec<CertificateError> {
        let certificate = certificates(material, Role::Certificate, &material.certificate).err();
        let key = private_key(material).err();
        let chain = material.chain.as_ref().and_then(|chain| certificates(material, Role::Chain, chain).err());
        [certificate, key, chain].into_iter().flatten().collect()
    }

    /// The key path of the entry in the configuration it comes from.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// What rustls signs with and sends; `None` of a key that was handed over and is none.
    pub(super) fn key(&self) -> Option<&Arc<CertifiedKey>> {
        self.pair.certified.get_or_init(|| self.pair.certify()).as_ref()
    }

    /// Whether it is the same one, by what it was read from first.
    #[cfg(test)]
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pair, &other.pair)
    }

    /// What clients are sent, each in DER.
    pub(super) fn chain(&self) -> &[Vec<u8>] {
        &self.pair.chain
    }

    pub(super) fn algorithm(&self) -> SignatureAlgorithm {
        self.pair.algorithm.into()
    }
}

impl Pair {
    /// What `material` makes, if key and certificate belong together.
    fn of(material: &CertificateMaterial) -> Result<Self, CertificateError> {
        let (key, signing) = private_key(material)?;
        let mut certificates = certificates(material, Role::Certificate, &material.certificate)?;
        let leaf = leaf_of(signing.as_ref(), material, &certificates)?;
        let leaf = certificates.remove(leaf);
        if let Some(chain) = &material.chain {
            certificates.extend(self::certificates(material, Role::Chain, chain)?);
        }

        let parsed = parse(material, Role::Certificate, &leaf)?;
        let names = names(&parsed)
            .map_err(|source| CertificateError::Leaf { file: material.certificate_file.clone(), source })?;
        if must_staple(&parsed) {
            return Err(CertificateError::MustStaple { file: material.certificate_file.clone() });
        }
        let time = |seconds| {
            // ASN.1 reaches to the end of the year 9999, a little further than jiff: "never" either way.
            Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
        };
        let (not_before, not_after) =
            (time(parsed.validity().not_before.timestamp()), time(parsed.validity().not_after.timestamp()));
        let self_signed = parsed.issuer().as_raw() == parsed.subject().as_raw();
        drop(parsed);

        let chain = in_order_of_issue(leaf, certificates).into_iter().map(|certificate| certificate.to_vec()).collect();
        let facts = CertificateFacts { names, not_before, not_after, self_signed };
        Ok(Self { facts, chain, key, algorithm: signing.algorithm().into(), certified: OnceLock::new() })
    }

    fn certify(&self) -> Option<Arc<CertifiedKey>> {
        let key = PrivateKeyDer::try_from(self.key.expose()).ok().and_then(|key| signing_key(&key).ok())?;
        let chain = self.chain.iter().map(|certificate| CertificateDer::from(certificate.clone())).collect();
        Some(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// What a [`CertificateMaterial`] makes, once it has been found fit to be served.
#[derive(Clone, Debug, Default)]
pub struct Checked(OnceLock<Arc<Pair>>);

impl Checked {
    fn pair(&self, check: impl FnOnce() -> Result<Pair, CertificateError>) -> Result<Arc<Pair>, CertificateError> {
        if let Some(pair) = self.0.get() {
            return Ok(Arc::clone(pair));
        }
        let pair = Arc::new(check()?);
        Ok(Arc::clone(self.0.get_or_init(|| pair)))
    }
}

fn serialize<T: Serialize + ?Sized, S: Serializer>(shared: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    shared.as_ref().serialize(serializer)
}

fn deserialize_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

fn deserialize_pair<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Pair>, D::Error> {
    Pair::deserialize(deserializer).map(Arc::new)
}

impl CertificateFacts {
    /// The names and addresses it is for; the common name only where there is no other (RFC 9110, 4.3.4).
    pub fn names(&self) -> &[CertificateName] {
        &self.names
    }

    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whole days until it expires, rounded down; negative afterwards.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).div_euclid(24 * 60 * 60)
    }

    /// Whether nobody but its own subject vouches for it.
    pub fn self_signed(&self) -> bool {
        self.self_signed
    }

    /// What clients will hold against it at `now`. It is served all the same: a page behind a warning is more than none.
    pub fn warning(&self, now: Timestamp) -> Option<CertificateWarning> {
        if now > self.not_after {
            Some(CertificateWarning::Expired { since: self.not_after })
        } else if now < self.not_before {
            Some(CertificateWarning::NotYetValid { from: self.not_before })
        } else {
            None
        }
    }

    /// What whoever renews it should know by `now`: that it ends within 14 days, or a third of its life where that is less.
    pub fn ends_soon(&self, now: Timestamp) -> Option<CertificateWarning> {
        let life = self.not_after.as_second().saturating_sub(self.not_before.as_second());
        let left = self.not_after.as_second() - now.as_second();
        (0..=SOON.min(life / 3)).contains(&left).then_some(CertificateWarning::EndsSoon { at: self.not_after })
    }

    /// What is to be told of its dates at `now` where it is nobody else's to renew.
    pub fn attention(&self, now: Timestamp) -> Option<CertificateWarning> {
        self.warning(now).or_else(|| self.ends_soon(now))
    }

    /// Whether a client that asks for `name` (lower case, without port; IPv6 with or without brackets) will accept it.
    pub fn covers(&self, name: &str) -> bool {
        let address = address(name);
        self.names.iter().any(|own| match (own, address) {
            (CertificateName::Address(own), Some(address)) => *own == address,
            (CertificateName::Dns(own), None) => own == name,
            (CertificateName::Wildcard(parent), None) => name.split_once('.').is_some_and(|(_, rest)| rest == parent),
            _ => false,
        })
    }
}

/// What a certificate is for. Names are lower case and carry no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum CertificateName {
    Dns(String),
    /// `*.example.com`, held as `example.com`: any one label in front of it (RFC 9525, 6.3).
    Wildcard(String),
    Address(IpAddr),
}

impl CertificateName {
    fn dns(text: &str) -> Self {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match text.strip_prefix("*.") {
            Some(parent) => Self::Wildcard(parent.to_owned()),
            None => Self::Dns(text),
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What clients will hold against a certificate that is served all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateWarning {
    #[error("the certificate expired at {since}: clients refuse it; replace it")]
    Expired { since: Timestamp },
    #[error(
        "the certificate is valid only from {from}: clients refuse it until then; is the clock of this machine right?"
    )]
    NotYetValid { from: Timestamp },
    #[error("the certificate ends at {at}: renew it")]
    EndsSoon { at: Timestamp },
}

/// Why material does not make a certificate. Every message names the file to look at.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the {role} {} is not PEM", file.display())]
    Pem { role: Role, file: PathBuf, source: pem::Error },
    #[error("there is no certificate in {}; PEM with `BEGIN CERTIFICATE` is expected", file.display())]
    NoCertificate { role: Role, file: PathBuf },
    #[error("there is no private key in {}; PEM with `BEGIN PRIVATE KEY` is expected", file.display())]
    NoKey { file: PathBuf },
    #[error(
        "the key {path} is encrypted, and nobody is there to type its password; decrypt it: \
         openssl pkey -in {path} -out {path}.plain",
        path = file.display()
    )]
    EncryptedKey { file: PathBuf },
    #[error("the key {} cannot be used: RSA of 2048 to 8192 bits, ECDSA P-256, P-384 or P-521, or Ed25519 is expected", file.display())]
    UnusableKey { file: PathBuf, source: rustls::Error },
    #[error("a certificate in the {role} {} cannot be parsed", file.display())]
    Der { role: Role, file: PathBuf, source: x509_parser::nom::Err<X509Error> },
    #[error("the certificate in {} cannot be understood", file.display())]
    Leaf { file: PathBuf, source: X509Error },
    #[error(
        "the certificate in {} demands an OCSP response with every handshake (Must-Staple), which is not sent here, and browsers that \
         heed it refuse it without; have one made without the TLS feature extension (RFC 7633)",
        file.display()
    )]
    MustStaple { file: PathBuf },
    #[error("the key {} does not belong to the certificate {}", key.display(), certificate.display())]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
}

impl CertificateError {
    /// The file to look at first.
    pub fn role(&self) -> Role {
        match self {
            Self::Pem { role, .. } | Self::NoCertificate { role, .. } | Self::Der { role, .. } => *role,
            Self::Leaf { .. } | Self::MustStaple { .. } => Role::Certificate,
            Self::NoKey { .. } | Self::EncryptedKey { .. } | Self::UnusableKey { .. } | Self::KeyMismatch { .. } => {
                Role::Key
            }
        }
    }
}

/// The key in DER, and what signs with it.
fn private_key(material: &CertificateMaterial) -> Result<(SecretBytes, Arc<dyn SigningKey>), CertificateError> {
    let file = || material.key_file.clone();
    let pem = material.key.expose();
    // PKCS#8 says so in its label, the older formats in a header inside of theirs (RFC 1421, 4.6.1.1).
    if contains(pem, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(pem, b"Proc-Type: 4,ENCRYPTED") {
        return Err(CertificateError::EncryptedKey { file: file() });
    }
    let key = match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Zeroizing::new(key),
        Err(pem::Error::NoItemsFound) => return Err(CertificateError::NoKey { file: file() }),
        Err(source) => return Err(CertificateError::Pem { role: Role::Key, file: file(), source }),
    };
    let signing = signing_key(&key).map_err(|source| CertificateError::UnusableKey { file: file(), source })?;
    Ok((SecretBytes::new(key.secret_der().to_vec()), signing))
}

/// What signs with `key`.
///
/// rustls would try RSA first and have the curve of any other key computed for it, which is most of what a key takes.
fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    let head = key.secret_der();
    // PKCS#8 says it in its first lines, SEC 1 is for nothing else.
    let is_ecdsa = match key {
        PrivateKeyDer::Sec1(_) => true,
        _ => contains(&head[..head.len().min(EC_WITHIN)], EC_PUBLIC_KEY),
    };
    if is_ecdsa && let Ok(ecdsa) = any_ecdsa_type(key) { Ok(ecdsa) } else { any_supported_type(key) }
}

/// Every certificate in `pem`, at least one.
fn certificates(
    material: &CertificateMaterial,
    role: Role,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| CertificateError::Pem { role, file: file(material, role), source })?;
    if certificates.is_empty() {
        return Err(CertificateError::NoCertificate { role, file: file(material, role) });
    }
    for certificate in &certificates {
        parse(material, role, certificate)?;
    }
    Ok(certificates)
}

fn file(material: &CertificateMaterial, role: Role) -> PathBuf {
    match role {
        Role::Certificate => material.certificate_file.clone(),
        Role::Key => material.key_file.clone(),
        Role::Chain => material.chain_file.clone().unwrap_or_default(),
    }
}

fn parse<'a>(
    material: &CertificateMaterial,
    role: Role,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CertificateError> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed).map_err(|source| CertificateError::Der {
        role,
        file: file(material, role),
        source,
    })
}

/// The place of the certificate that `key` belongs to.
fn leaf_of(
    key: &dyn SigningKey,
    material: &CertificateMaterial,
    certificates: &[CertificateDer<'_>],
) -> Result<usize, CertificateError> {
    let mismatch = || CertificateError::KeyMismatch {
        key: material.key_file.clone(),
        certificate: material.certificate_file.clone(),
    };
    let public = key.public_key().ok_or_else(mismatch)?;
    let (_, public) = SubjectPublicKeyInfo::from_der(public.as_ref()).map_err(|_| mismatch())?;
    // The bits of the key only: an RSA key may be labelled rsaEncryption or RSASSA-PSS, and is the same key.
    let belongs = |certificate: &CertificateDer<'_>| {
        X509Certificate::from_der(certificate)
            .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data == public.subject_public_key.data)
    };
    certificates.iter().position(belongs).ok_or_else(mismatch)
}

/// `leaf`, its issuer, the issuer of that, and so on; then whatever does not link up, each certificate once.
fn in_order_of_issue(
    leaf: CertificateDer<'static>,
    mut rest: Vec<CertificateDer<'static>>,
) -> Vec<CertificateDer<'static>> {
    let mut chain = vec![leaf];
    while !rest.is_empty()
        && let Some(last) = chain.last()
    {
        rest.retain(|certificate| !chain.contains(certificate));
        let next = X509Certificate::from_der(last).ok().and_then(|(_, last)| {
            rest.iter().position(|certificate| {
                X509Certificate::from_der(certificate)
                    .is_ok_and(|(_, issuer)| issuer.subject().as_raw() == last.issuer().as_raw())
            })
        });
        match next {
            Some(next) => chain.push(rest.remove(next)),
            None => break,
        }
    }
    for certificate in rest {
        if !chain.contains(&certificate) {
            chain.push(certificate);
        }
    }
    chain
}

fn names(certificate: &X509Certificate<'_>) -> Result<Vec<CertificateName>, X509Error> {
    if let Some(alternatives) = certificate.subject_alternative_name()? {
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some(CertificateName::dns(name)),
            GeneralName::IPAddress(octets) => octets_to_address(octets).map(CertificateName::Address),
            _ => None,
        };
        return Ok(alternatives.value.general_names.iter().filter_map(name).collect());
    }
    let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(common.into_iter().map(CertificateName::dns).collect())
}

/// Whether it has `status_request` among its TLS features (RFC 7633, 4.2.3).
fn must_staple(certificate: &X509Certificate<'_>) -> bool {
    let features = certificate.extensions().iter().find(|extension| extension.oid == TLS_FEATURE);
    let features = features.and_then(|extension| Vec::<u32>::from_der(extension.value).ok());
    features.is_some_and(|(_, features)| features.contains(&STATUS_REQUEST))
}

fn octets_to_address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// The address in `192.0.2.1`, `2001:db8::1` or `[2001:db8::1]`.
pub(super) fn address(name: &str) -> Option<IpAddr> {
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    literal.parse().ok()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The object identifier of keys on elliptic curves (RFC 5480, 2.1.1) in DER, and within how many bytes of PKCS#8 it is.
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const EC_WITHIN: usize = 32;
/// Seconds: time enough to renew it in, and too short for one of Let's Encrypt's that is renewed as it should be.
const SOON: i64 = 14 * 24 * 60 * 60;
const TLS_FEATURE: Oid<'static> = oid!(1.3.6.1.5.5.7.1.24);
const STATUS_REQUEST: u32 = 5;

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rcgen::{
        CertificateParams, CustomExtension, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
        PKCS_ED25519, PKCS_RSA_SHA256, date_time_ymd,
    };

    use super::*;
    use crate::tls::{
        SecretBytes,
        testing::{Authority, material},
    };

    fn ders(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
    }

    fn refusal(material: &CertificateMaterial) -> String {
        Certificate::from_material(material).unwrap_err().to_string()
    }

    #[test]
    fn the_chain_is_put_in_order_wherever_it_was_and_holds_each_certificate_once() {
        let authority = Authority::new();
        let (leaf, key) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let (intermediate, root) = (authority.intermediate.pem(), authority.root.pem());
        let table = [
            ("in the certificate file", format!("{leaf}{intermediate}{root}"), None),
            ("in the chain file", leaf.clone(), Some(format!("{intermediate}{root}"))),
            ("in the wrong order", leaf.clone(), Some(format!("{root}{intermediate}"))),
            ("with the leaf repeated", leaf.clone(), Some(format!("{leaf}{intermediate}{root}"))),
            ("said twice", format!("{leaf}{intermediate}{root}"), Some(format!("{intermediate}{root}"))),
            ("before its leaf", format!("{intermediate}{leaf}"), Some(root.clone())),
        ];
        let expected = ders(&format!("{leaf}{intermediate}{root}"));

        for (case, certificate, chain) in table {
            let made = Certificate::from_material(&material(&certificate, &key, chain.as_deref())).unwrap();
            assert_eq!(made.key().unwrap().cert, expected, "chain {case}");
        }
    }

    #[test]
    fn a_certificate_that_does_not_link_up_is_kept_at_the_end() {
        let (authority, other) = (Authority::new(), Authority::new());
        let (leaf, key) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let stray = other.issue(&["stray.example"], &PKCS_ECDSA_P256_SHA256).0;
        let chain = format!("{stray}{}", authority.intermediate.pem());

        let made = Certificate::from_material(&material(&leaf, &key, Some(&chain))).unwrap();

        assert_eq!(made.key().unwrap().cert, ders(&format!("{leaf}{}{stray}", authority.intermediate.pem())));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_files_named() {
        let authority = Authority::new();
        let (certificate, _) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_RSA_SHA256] {
            let (_, key) = authority.issue(&["a.example"], algorithm);

            assert_eq!(
                refusal(&material(&certificate, &key, None)),
                "the key /certs/site.key does not belong to the certificate /certs/site.crt"
            );
        }
    }

    #[test]
    fn what_is_handed_to_another_process_is_what_was_checked() {
        let authority = Authority::new();
        let (chain, names) = (authority.intermediate.pem(), ["a.example", "*.b.example", "2001:db8::1"]);
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256, &PKCS_ED25519] {
            let (certificate, key) = authority.issue(&names, algorithm);
            let checked = Certificate::from_material(&material(&certificate, &key, Some(&chain))).unwrap();

            let handed: Certificate = postcard::from_bytes(&postcard::to_allocvec(&checked).unwrap()).unwrap();

            assert_eq!((handed.at(), handed.names()), (checked.at(), checked.names()));
            assert_eq!((handed.not_before(), handed.not_after()), (checked.not_before(), checked.not_after()));
            assert_eq!((handed.self_signed(), handed.algorithm()), (checked.self_signed(), checked.algorithm()));
            let signs = handed.key().unwrap();
            assert_eq!(signs.cert, ders(&format!("{certificate}{chain}")));
            assert_eq!(signs.keys_match(), Ok(()));
            assert_eq!(signs.key.algorithm(), handed.algorithm());
        }
    }

    #[test]
    fn a_file_that_holds_something_else_is_refused_by_name() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cut = &certificate[..certificate.len() / 2];
        let table = [
            (material("", &key, None), "there is no certificate in /certs/site.crt"),
            (material(&key, &certificate, None), "there is no private key in /certs/site.key"),
            (material(&certificate, &key, Some("")), "there is no certificate in /certs/site.ca.pem"),
            (material(cut, &key, None), "the certificate /certs/site.crt is not PEM"),
            (
                material(&certificate, &key, Some(garbage)),
                "a certificate in the chain /certs/site.ca.pem cannot be parsed",
            ),
            (material(&certificate, &key.replace("MIG", "AAA"), None), "the key /certs/site.key cannot be used"),
        ];

        for (material, expected) in table {
            let refused = refusal(&material);
            assert!(refused.starts_with(expected), "expected `{expected}`, got `{refused}`");
        }
    }

    #[test]
    fn an_encrypted_key_is_refused_with_the_command_that_decrypts_it() {
        let authority = Authority::new();
        let (certificate, _) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let pkcs8 = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let pkcs1 = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
                     -----END RSA PRIVATE KEY-----\n";
        for key in [pkcs8, pkcs1] {
            assert_eq!(
                refusal(&material(&certificate, key, None)),
                "the key /certs/site.key is encrypted, and nobody is there to type its password; decrypt it: \
                 openssl pkey -in /certs/site.key -out /certs/site.key.plain"
            );
        }
    }

    #[test]
    fn one_that_must_be_stapled_is_refused_with_the_reason_and_the_way_out() {
        let authority = Authority::new();
        let with = |features: &[u8]| {
            let content = [&[0x30, u8::try_from(features.len()).unwrap()], features].concat();
            let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], content);
            let (certificate, key) = authority.issue_with(&["a.example"], &PKCS_ECDSA_P256_SHA256, |params| {
                params.custom_extensions = vec![extension];
            });
            Certificate::from_material(&material(&certificate, &key, None))
        };

        for features in [&[2, 1, 5][..], &[2, 1, 17, 2, 1, 5]] {
            let refused = with(features).unwrap_err().to_string();
            assert!(refused.starts_with("the certificate in /certs/site.crt demands an OCSP response"), "{refused}");
            assert!(refused.contains("have one made without the TLS feature extension"), "{refused}");
        }
        assert!(with(&[2, 1, 17]).is_ok(), "another feature");
    }

    #[test]
    fn an_end_is_told_of_14_days_before_or_after_two_thirds_of_a_short_life() {
        let authority = Authority::new();
        let ending = |from, to| {
            let (certificate, key) = authority.issue_with(&["a.example"], &PKCS_ECDSA_P256_SHA256, |params| {
                (params.not_before, params.not_after) = (from, to);
            });
            Certificate::from_material(&material(&certificate, &key, None)).unwrap()
        };
        let of_a_year = ending(date_time_ymd(2030, 1, 1), date_time_ymd(2031, 1, 1));
        let of_six_days = ending(date_time_ymd(2030, 12, 26), date_time_ymd(2031, 1, 1));
        for (certificate, now, told) in [
            (&of_a_year, "2030-12-17T00:00:00Z", false),
            (&of_a_year, "2030-12-19T00:00:00Z", true),
            (&of_a_year, "2031-01-01T00:00:01Z", false),
            (&of_six_days, "2030-12-29T00:00:00Z", false),
            (&of_six_days, "2030-12-30T01:00:00Z", true),
        ] {
            assert_eq!(certificate.ends_soon(now.parse().unwrap()).is_some(), told, "{now}");
        }
    }

    #[test]
    fn names_are_lower_case_and_cover_what_a_client_would_accept() {
        let authority = Authority::new();
        let names = ["A.Example", "*.apps.example", "192.0.2.1", "2001:db8::1"];
        let certificate = authority.certificate(&names, &PKCS_ECDSA_P256_SHA256);
        let table = [
            ("a.example", true),
            ("b.example", false),
            ("x.apps.example", true),
            ("apps.example", false),
            ("x.y.apps.example", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("[2001:db8::1]", true),
            ("2001:db8:0::1", true),
        ];

        assert_eq!(
            certificate.names().iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a.example", "*.apps.example", "192.0.2.1", "2001:db8::1"]
        );
        for (name, expected) in table {
            assert_eq!(certificate.covers(name), expected, "{name}");
        }
    }

    #[test]
    fn the_common_name_counts_only_without_alternatives() {
        let with_common_name = |names: &[&str]| {
            let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
            params.distinguished_name.push(DnType::CommonName, "common.example");
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            Certificate::from_material(&material(&certificate.pem(), &key.serialize_pem(), None)).unwrap()
        };

        assert!(with_common_name(&[]).covers("common.example"));
        assert!(!with_common_name(&["a.example"]).covers("common.example"));
        assert!(with_common_name(&[]).self_signed());
    }

    proptest! {
        #[test]
        fn no_damage_to_a_file_panics(
            which in 0..3_usize,
            at: prop::sample::Index,
            cut: bool,
            bytes in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            static PEM: LazyLock<[String; 3]> = LazyLock::new(|| {
                let authority = Authority::new();
                let (leaf, key) = authority.issue(&["a.example", "192.0.2.1"], &PKCS_ECDSA_P256_SHA256);
                [leaf, key, authority.intermediate.pem()]
            });
            let mut material = material(&PEM[0], &PEM[1], Some(&PEM[2]));
            let mut damaged = PEM[which].clone().into_bytes();
            let at = at.index(damaged.len());
            let end = if cut { damaged.len() } else { (at + bytes.len()).min(damaged.len()) };
            damaged.splice(at..end, bytes);
            match which {
                0 => material.certificate = damaged,
                1 => material.key = SecretBytes::new(damaged),
                _ => material.chain = Some(damaged),
            }

            if let Ok(certificate) = Certificate::from_material(&material) {
                certificate.covers("a.example");
            }
        }
    }

    #[test]
    fn one_out_of_its_time_is_made_with_a_warning() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue_with(&["a.example"], &PKCS_ECDSA_P256_SHA256, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        });
        let certificate = Certificate::from_material(&material(&certificate, &key, None)).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();

        assert_eq!(certificate.warning(at("2020-06-01T00:00:00Z")), None);
        assert_eq!(certificate.days_left(at("2020-12-30T12:00:00Z")), 1);
        assert_eq!(certificate.days_left(at("2021-01-01T12:00:00Z")), -1);
        assert_eq!(
            certificate.warning(at("2019-06-01T00:00:00Z")),
            Some(CertificateWarning::NotYetValid { from: at("2020-01-01T00:00:00Z") })
        );
        assert_eq!(
            certificate.warning(Timestamp::now()),
            Some(CertificateWarning::Expired { since: at("2021-01-01T00:00:00Z") })
        );
    }
}
