//! The root certificates by which we trust servers that we are a client of.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Whom a server is trusted by.
#[derive(Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// Nobody is trusted.
    pub(super) fn none() -> Self {
        Self(Arc::new(RootCertStore::empty()))
    }

    /// The certificates in `pem`.
    ///
    /// # Errors
    ///
    /// There is none, or one cannot be read; in words.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        if roots.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(Self(Arc::new(roots))) }
    }

    /// Those of the system; to be asked for before the process is shut in. None where there are none: then no CA is
    /// trusted, and orders say so.
    pub fn of_the_system() -> Self {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "root certificates of the system cannot all be read"
            );
        }
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::error!(
                "the system has no root certificates, so that no certificate authority is trusted; install the package \
                 ca-certificates"
            );
        }
        Self(Arc::new(roots))
    }

    /// The terms of a client.
    ///
    /// # Errors
    ///
    /// None with what we are built with.
    pub(super) fn client_config(&self) -> Result<ClientConfig, rustls::Error> {
        Ok(ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&self.0))
            .with_no_client_auth())
    }
}
