//! Certificates for tests, made on the spot.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SignatureAlgorithm};

use super::{Certificate, CertificateMaterial, Checked, SecretBytes};

/// A root and an intermediate that issues certificates.
pub(crate) struct Authority {
    pub(crate) root: CertifiedIssuer<'static, KeyPair>,
    pub(crate) intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let params = |name: &str| {
            let mut params = CertificateParams::new([]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let root = CertifiedIssuer::self_signed(params("root"), KeyPair::generate().unwrap()).unwrap();
        let intermediate =
            CertifiedIssuer::signed_by(params("intermediate"), KeyPair::generate().unwrap(), &root).unwrap();
        Self { root, intermediate }
    }

    /// PEM of certificate and key.
    pub(crate) fn issue(&self, names: &[&str], algorithm: &'static SignatureAlgorithm) -> (String, String) {
        self.issue_with(names, algorithm, |_| {})
    }

    pub(crate) fn issue_with(
        &self,
        names: &[&str],
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate_for(algorithm).unwrap();
        (params.signed_by(&key, &self.intermediate).unwrap().pem(), key.serialize_pem())
    }

    /// A certificate with its chain.
    pub(crate) fn certificate(&self, names: &[&str], algorithm: &'static SignatureAlgorithm) -> Certificate {
        let (certificate, key) = self.issue(names, algorithm);
        Certificate::from_material(&material(&certificate, &key, Some(&self.intermediate.pem()))).unwrap()
    }
}

pub(crate) fn material(certificate: &str, key: &str, chain: Option<&str>) -> CertificateMaterial {
    CertificateMaterial {
        at: "tls.certificates[0]".to_owned(),
        certificate: certificate.as_bytes().to_vec(),
        key: SecretBytes::new(key.as_bytes().to_vec()),
        chain: chain.map(|chain| chain.as_bytes().to_vec()),
        certificate_file: PathBuf::from("/certs/site.crt"),
        key_file: PathBuf::from("/certs/site.key"),
        chain_file: chain.map(|_| PathBuf::from("/certs/site.ca.pem")),
        checked: Checked::default(),
    }
}
