//! What a plan names on disk, looked at without binding or changing anything: for `check`.
//!
//! Whether a key belongs to its certificate is for [`crate::tls`] to say.

use std::{fs, path::Path};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};

use super::{error::Problem, plan::Plan};

/// The files of `plan` that are not there, cannot be read, or are not what they should be.
pub fn unreadable(plan: &Plan) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |at: String, found: Result<(), String>| {
        if let Err(problem) = found {
            problems.push(Problem { at, problem });
        }
    };
    for certificate in &plan.tls.certificates {
        let at = &certificate.at;
        tell(format!("{at}.files.certificate"), holds_certificates(&certificate.certificate));
        tell(format!("{at}.files.key"), holds_a_key(&certificate.key));
        if let Some(chain) = &certificate.chain {
            tell(format!("{at}.files.chain"), holds_certificates(chain));
        }
    }
    tell("spool.path".to_owned(), is_folder(&plan.spool.path));
    problems
}

fn holds_certificates(path: &Path) -> Result<(), String> {
    let bytes = bytes_of(path)?;
    let shown = path.display();
    match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
        Ok(found) if found.is_empty() && bytes.starts_with(&[0x30, 0x82]) => {
            Err(format!("{shown} is in DER; convert it: `openssl x509 -inform der -in … -out …`"))
        }
        Ok(found) if found.is_empty() => {
            Err(format!("{shown} holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)"))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{shown} is not well-formed PEM: {error}")),
    }
}

fn holds_a_key(path: &Path) -> Result<(), String> {
    let bytes = bytes_of(path)?;
    let shown = path.display();
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(_) => Ok(()),
        Err(pem::Error::NoItemsFound) if contains(&bytes, b"ENCRYPTED PRIVATE KEY") => {
            Err(format!("{shown} is encrypted; take the passphrase off: `openssl pkey -in … -out …`"))
        }
        Err(pem::Error::NoItemsFound) => {
            Err(format!("{shown} holds no private key in PEM (`-----BEGIN PRIVATE KEY-----`)"))
        }
        Err(error) => Err(format!("{shown} is not well-formed PEM: {error}")),
    }
}

fn is_folder(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is not a folder", path.display())),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
