//! Whose certificates clients are asked for, and what one says of its holder.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use ::aws_lc_rs::digest::{Context, SHA256, digest};
use data_encoding::{HEXLOWER, HEXUPPER};
use http::HeaderValue;
use rustls::{
    CommonState, HandshakeKind, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, UnixTime,
        pem::{self, PemObject},
    },
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::{
    asn1_rs::ToDer,
    certificate::X509Certificate,
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

use crate::http::client_certificate::ClientCertificate;

/// What the files of `client_ca` hold.
pub type ClientAuthorities = BTreeMap<PathBuf, Vec<u8>>;

/// The authorities that clients' certificates must come from, on the terms of one listener.
#[derive(Clone, Debug)]
pub struct ClientAuthority {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Of authorities and terms.
    digest: [u8; 32],
}

impl ClientAuthority {
    /// Takes every certificate in `pem`. `required`: whoever has no certificate gets no connection.
    pub fn new(pem: &[u8], required: bool) -> Result<Self, ClientAuthorityError> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let certificate = certificate.map_err(ClientAuthorityError::Pem)?;
            let unusable = |source| ClientAuthorityError::Unusable { number: index + 1, source };
            roots.add(certificate).map_err(unusable)?;
        }
        if roots.is_empty() {
            return Err(ClientAuthorityError::None);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        let mut context = Context::new(&SHA256);
        context.update(&[u8::from(required)]);
        context.update(pem);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Ok(Self { verifier: builder.build()?, digest })
    }

    /// What tells it from every other one.
    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// Looks once more at whom a handshake has let in: a session that resumes brings its certificate along, which may have
    /// expired since.
    pub(super) fn admit(&self, connection: &CommonState) -> io::Result<()> {
        let Some((leaf, chain)) = connection.peer_certificates().and_then(<[_]>::split_first) else {
            let mandatory = self.verifier.client_auth_mandatory();
            return if mandatory { Err(io::Error::other("no client certificate")) } else { Ok(()) };
        };
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.verifier.verify_client_cert(leaf, chain, UnixTime::now()).map_err(io::Error::other)?;
        }
        let unreadable = || io::Error::other("the client certificate cannot be read");
        read(leaf).map(drop).ok_or_else(unreadable)
    }
}

/// Why a file holds no authorities.
#[derive(Debug, thiserror::Error)]
pub enum ClientAuthorityError {
    #[error("it is not PEM")]
    Pem(#[source] pem::Error),
    #[error("there is no certificate in it; PEM with `BEGIN CERTIFICATE` is expected")]
    None,
    #[error("certificate {number} in it cannot be used")]
    Unusable { number: usize, source: rustls::Error },
    #[error("its authorities cannot be used")]
    Verifier(#[from] VerifierBuilderError),
}

/// What `certificate`, which has been verified, says of its holder.
pub(super) fn read(certificate: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    // The first byte of a positive number may be a zero.
    let serial = match parsed.raw_serial() {
        [0, serial @ ..] if !serial.is_empty() => serial,
        serial => serial,
    };
    Some(ClientCertificate {
        subject: value(distinguished_name(parsed.subject()))?,
        issuer: value(distinguished_name(parsed.issuer()))?,
        serial: value(HEXUPPER.encode(serial))?,
        fingerprint: value(HEXLOWER.encode(digest(&SHA256, certificate).as_ref()))?,
    })
}

fn value(text: String) -> Option<HeaderValue> {
    HeaderValue::try_from(text).ok()
}

/// `name` as RFC 4514 writes it: the last part first, everything in ASCII.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts = name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+"));
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let id = attribute.attr_type().to_id_string();
    let name = ATTRIBUTES.iter().find(|(known, _)| *known == id).map(|(_, name)| *name);
    match (name, attribute.as_str()) {
        (Some(name), Ok(text)) => format!("{name}={}", escaped(text)),
        (name, _) => {
            let value = attribute.attr_value().to_der_vec().unwrap_or_default();
            format!("{}=#{}", name.unwrap_or(&id), HEXLOWER.encode(&value))
        }
    }
}

/// RFC 4514, 2.4, where what is not ASCII may be written as its bytes: a header has no charset.
fn escaped(text: &str) -> String {
    let last = text.len().saturating_sub(1);
    let mut out = String::with_capacity(text.len());
    for (position, byte) in text.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => out.extend(['\\', byte.into()]),
            b' ' if position == 0 || position == last => out.push_str("\\ "),
            b'#' if position == 0 => out.push_str("\\#"),
            b' '..=b'~' => out.push(byte.into()),
            _ => out.extend(['\\'].into_iter().chain(HEXUPPER.encode(&[byte]).chars())),
        }
    }
    out
}

/// RFC 4514, 3, and two more that OpenSSL has names for, which many certificates have.
const ATTRIBUTES: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("2.5.4.5", "serialNumber"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SerialNumber};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        read(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der()).unwrap()
    }

    #[test]
    fn names_are_written_as_in_ldap_and_cannot_be_mistaken_for_others() {
        let table: [(&[(DnType, &str)], &str); 7] = [
            (
                &[(DnType::CountryName, "DE"), (DnType::OrganizationName, "Court"), (DnType::CommonName, "alice")],
                "CN=alice,O=Court,C=DE",
            ),
            (&[(DnType::CommonName, "alice,O=Court")], "CN=alice\\,O=Court"),
            (&[(DnType::CommonName, " #a\\\"+;<>b ")], "CN=\\ #a\\\\\\\"\\+\\;\\<\\>b\\ "),
            (&[(DnType::CommonName, "#a=b")], "CN=\\#a=b"),
            (&[(DnType::CommonName, "Zo\u{eb}\r\nX: y")], "CN=Zo\\C3\\AB\\0D\\0AX: y"),
            (&[(DnType::CustomDnType(vec![1, 2, 3]), "x")], "1.2.3=#0c0178"),
            (&[], ""),
        ];
        for (parts, expected) in table {
            let certificate = made(|params| {
                for (kind, text) in parts {
                    params.distinguished_name.push(kind.clone(), DnValue::Utf8String((*text).to_owned()));
                }
            });
            assert_eq!(certificate.subject, expected);
            assert_eq!(certificate.issuer, expected);
        }
    }

    #[test]
    fn serial_and_fingerprint_are_those_that_openssl_shows() {
        let certificate = made(|params| params.serial_number = Some(SerialNumber::from(vec![0, 0xab, 0x0c])));

        assert_eq!(certificate.serial, "AB0C");
        assert_eq!(certificate.fingerprint.len(), 64);
    }

    #[test]
    fn a_file_without_authorities_is_refused_by_what_is_wrong_with_it() {
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (pem, expected) in [
            ("", "there is no certificate in it; PEM with `BEGIN CERTIFICATE` is expected"),
            (garbage, "certificate 1 in it cannot be used"),
            (&garbage[..40], "it is not PEM"),
        ] {
            assert_eq!(ClientAuthority::new(pem.as_bytes(), true).unwrap_err().to_string(), expected);
        }
    }
}
