//! Certificates and keys, read for the gateway.

use std::{io, path::PathBuf};

use super::{import, self_signed};
use crate::{
    config::{AcmePlan, Plan},
    tls::{CertificateMaterial, MaterialFault, SecretBytes, acme, read_bounded},
};

/// Reads every certificate of `plan`.
///
/// Where the plan has TLS listeners and names no certificate, self-signed ones take their place: one for each known host,
/// then one for `localhost`. They are kept under `tls.storage` and made again 30 days before they expire. Without a TLS
/// listener nothing is read or made.
///
/// # Errors
///
/// Every file that cannot be read.
pub fn read(plan: &Plan) -> Result<Vec<CertificateMaterial>, Vec<SecretFault>> {
    if !plan.listeners.iter().any(|listener| listener.tls) {
        return Ok(Vec::new());
    }
    if plan.tls.certificates.is_empty() && plan.tls.acme.is_empty() {
        return self_signed::for_the_site(plan).map_err(|fault| vec![fault]);
    }
    let mut materials = Vec::new();
    let mut faults = Vec::new();
    for certificate in &plan.tls.certificates {
        match CertificateMaterial::read(certificate) {
            Ok(material) => materials.push(material),
            Err(found) => faults.extend(found.into_iter().map(SecretFault::File)),
        }
    }
    // From the last on, so that the places of those before stay.
    for ordered in plan.tls.acme.iter().rev() {
        match self::ordered(plan, ordered) {
            // Where faults have thinned out the list, places mean nothing and nobody asks.
            Ok(material) => materials.insert(ordered.after.min(materials.len()), material),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(materials) } else { Err(faults) }
}

/// What the storage has for `ordered`, or what is imported into it; a self-signed one where there is nothing yet, or
/// nothing of use.
///
/// One that has expired is still better known to a browser than one of ours.
fn ordered(plan: &Plan, ordered: &AcmePlan) -> Result<CertificateMaterial, SecretFault> {
    let file = acme::bundle_file(&plan.tls.storage, &acme::id(&ordered.hosts));
    let kept = read_bounded(&file).ok().map(SecretBytes::new);
    let kept = kept.and_then(|bundle| acme::material(ordered, &bundle, &file));
    match kept.or_else(|| acme::material(ordered, &import::take(&plan.tls, ordered)?, &file)) {
        Some(material) => Ok(material),
        None => self_signed::in_the_meantime(plan, ordered),
    }
}

/// A certificate that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretFault {
    #[error(transparent)]
    File(MaterialFault),
    #[error(
        "tls.storage: cannot keep a self-signed certificate in {}: {source}; name a folder in `tls.storage` that the user \
         Vestibule runs as can write in, or a certificate in `tls.certificates`",
        folder.display()
    )]
    Storage { folder: PathBuf, source: io::Error },
    #[error("tls.certificates: cannot make a self-signed certificate for `{host}`; name a certificate of your own")]
    Make { host: String, source: rcgen::Error },
}

impl SecretFault {
    /// The key path in the configuration.
    pub fn at(&self) -> &str {
        match self {
            Self::File(fault) => &fault.at,
            Self::Storage { .. } => "tls.storage",
            Self::Make { .. } => "tls.certificates",
        }
    }
}
