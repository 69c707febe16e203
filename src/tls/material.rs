//! A certificate and its key as bytes: what lies between the files and a [`super::Certificate`].

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::certificate::{Certificate, Checked};
use crate::config::CertificatePlan;

/// The PEM of one certificate, its key and its chain, with the names of the files for messages.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CertificateMaterial {
    /// The key path of the entry in the configuration that named the files.
    pub at: String,
    pub certificate: Vec<u8>,
    pub key: SecretBytes,
    pub chain: Option<Vec<u8>>,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    pub chain_file: Option<PathBuf>,
    /// So that it is parsed once, whoever asks for what it makes.
    #[serde(skip)]
    pub checked: Checked,
}

impl CertificateMaterial {
    /// Reads the files of `plan`, each at most 1 MiB.
    ///
    /// For the privileged side and for `vestibule check`: the gateway never opens a key.
    ///
    /// # Errors
    ///
    /// A fault for every file that cannot be read, not only for the first.
    pub fn read(plan: &CertificatePlan) -> Result<Self, Vec<MaterialFault>> {
        let mut faults = Vec::new();
        let mut take = |role, file: &Path| match read_bounded(file) {
            Ok(bytes) => Some(bytes),
            Err(problem) => {
                faults.push(MaterialFault { at: plan.at.clone(), role, file: file.to_owned(), problem });
                None
            }
        };
        let certificate = take(Role::Certificate, &plan.certificate);
        // Wrapped at once, so that it is wiped as well when another file has a fault.
        let key = take(Role::Key, &plan.key).map(SecretBytes::new);
        let chain = plan.chain.as_deref().and_then(|file| take(Role::Chain, file));
        let (Some(certificate), Some(key), true) = (certificate, key, faults.is_empty()) else { return Err(faults) };
        Ok(Self {
            at: plan.at.clone(),
            certificate,
            key,
            chain,
            certificate_file: plan.certificate.clone(),
            key_file: plan.key.clone(),
            chain_file: plan.chain.clone(),
            checked: Checked::default(),
        })
    }

    /// Certificate, key and chain: what tells one reading of the files from another.
    pub fn content(&self) -> (&[u8], &[u8], &[u8]) {
        (&self.certificate, self.key.expose(), self.chain.as_deref().unwrap_or_default())
    }
}

/// A certificate as whoever serves is told of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum HandedCertificate {
    New(Certificate),
    /// The one at this place among those that it was told of before.
    Kept(u32),
}

/// Bytes that are wiped when they are dropped and never printed.
///
/// Serialized as they are: only ever into memory that one process of ours hands to another.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves; whoever copies them must wipe the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// Which of the files of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Certificate,
    Key,
    Chain,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Chain => "chain",
        })
    }
}

/// A file of a certificate that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{at}: cannot read the {role} {}: {problem}", file.display())]
pub struct MaterialFault {
    /// The key path of the entry in the configuration.
    pub at: String,
    pub role: Role,
    pub file: PathBuf,
    pub problem: MaterialProblem,
}

/// Why a file cannot be read, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum MaterialProblem {
    #[error("{}", remedy(source))]
    Io { source: io::Error },
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it is larger than {} KiB, which no PEM file of a certificate is", LIMIT / 1024)]
    TooLarge,
}

fn remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied; start as root, or let the user that Vestibule runs as read it".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Reads a whole file into a buffer that never grows: no copy of a key is left behind in freed memory.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, MaterialProblem> {
    let io = |source| MaterialProblem::Io { source };
    // Before `open`, which would wait for the other end of a FIFO.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(MaterialProblem::NotAFile);
    }
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if length > LIMIT {
        return Err(MaterialProblem::TooLarge);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).expect("LIMIT fits in a usize") + 1);
    file.take(length).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Bytes of one file. A chain of RSA-4096 certificates has about 10 KiB.
const LIMIT: u64 = 1024 * 1024;

/// The key path ([`CertificateMaterial::at`]) of a certificate that no one has configured.
pub const MADE_BY_US: &str = "tls.storage";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_cannot_be_read_is_named_with_its_key_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::create_dir(file("chain.pem")).unwrap();
        fs::write(file("big.key"), vec![b'x'; 1024 * 1024 + 1]).unwrap();
        let plan = CertificatePlan {
            certificate: file("absent.crt"),
            key: file("big.key"),
            chain: Some(file("chain.pem")),
            at: "tls.certificates[2].files".to_owned(),
        };

        let faults = CertificateMaterial::read(&plan).unwrap_err();

        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let path = folder.path().display();
        assert_eq!(
            texts,
            [
                format!(
                    "tls.certificates[2].files: cannot read the certificate {path}/absent.crt: there is no such file"
                ),
                format!(
                    "tls.certificates[2].files: cannot read the key {path}/big.key: it is larger than 1024 KiB, \
                     which no PEM file of a certificate is"
                ),
                format!("tls.certificates[2].files: cannot read the chain {path}/chain.pem: it is not a regular file"),
            ]
        );
    }

    #[test]
    fn a_secret_is_not_printed() {
        let secret = SecretBytes::new(b"-----BEGIN PRIVATE KEY-----".to_vec());

        assert_eq!(format!("{secret:?}"), "SecretBytes(..)");
    }
}
