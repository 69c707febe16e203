//! The operator's own certificates as they were read last.
//!
//! A check, a start and a reload all want them, and of thousands hardly one has changed since the last time: a file whose
//! stamp is the same is not read again, and what has been parsed is not parsed again. For the keeper and for `vestibule
//! check`; who carries the traffic is told of certificates.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Certificate, CertificateError, CertificateMaterial, MaterialFault, certificate::CertificateFacts};
use crate::config::{CertificatePlan, FileStamp, TlsPlan};

/// Why there is nothing to be known of a certificate.
pub(super) enum Unfit {
    Unreadable(Vec<MaterialFault>),
    Unusable(Vec<CertificateError>),
}

/// The one of this process.
pub(crate) static SHELF: LazyLock<Shelf> = LazyLock::new(Shelf::default);

#[derive(Default)]
pub(crate) struct Shelf(Mutex<HashMap<Files, Entry>>);

impl Shelf {
    /// The files of `plan`, read unless they are known; see [`CertificateMaterial::read`].
    pub(crate) fn read(&self, plan: &CertificatePlan) -> Result<Arc<CertificateMaterial>, Vec<MaterialFault>> {
        Ok(Arc::clone(&taken(&mut self.entries(), plan)?.material))
    }

    /// What is known of the certificate of `plan`, which can be served.
    pub(super) fn facts(&self, plan: &CertificatePlan) -> Result<Arc<CertificateFacts>, Unfit> {
        let mut entries = self.entries();
        let entry = taken(&mut entries, plan).map_err(Unfit::Unreadable)?;
        if let Some(facts) = &entry.facts {
            return Ok(Arc::clone(facts));
        }
        match Certificate::from_material(&entry.material) {
            Ok(certificate) => Ok(Arc::clone(entry.facts.insert(Arc::clone(certificate.facts())))),
            Err(error) => {
                let each = Certificate::faults(&entry.material);
                Err(Unfit::Unusable(if each.is_empty() { vec![error] } else { each }))
            }
        }
    }

    /// Forgets, and wipes, what `tls` does not name.
    pub(crate) fn keep_only(&self, tls: &TlsPlan) {
        let named: HashSet<Files> = tls.certificates.iter().map(files).collect();
        self.entries().retain(|files, _| named.contains(files));
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Files, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Certificate, key and chain.
type Files = [Option<PathBuf>; 3];

struct Entry {
    stamps: [Option<FileStamp>; 3],
    /// The stamps tell: nothing was changed so lately that another change could have the same.
    settled: bool,
    material: Arc<CertificateMaterial>,
    facts: Option<Arc<CertificateFacts>>,
}

fn files(plan: &CertificatePlan) -> Files {
    [Some(plan.certificate.clone()), Some(plan.key.clone()), plan.chain.clone()]
}

fn taken<'s>(
    entries: &'s mut HashMap<Files, Entry>,
    plan: &CertificatePlan,
) -> Result<&'s mut Entry, Vec<MaterialFault>> {
    let files = files(plan);
    // Before they are read: what is changed meanwhile has another stamp next time.
    let stamps = files.each_ref().map(|file| FileStamp::of(file.as_deref()?));
    let known = entries.remove(&files);
    let entry = match known {
        Some(known) if known.settled && known.stamps == stamps && known.material.at == plan.at => known,
        known => {
            let material = CertificateMaterial::read(plan)?;
            // The same content under another stamp is no reason to parse it again, nor to tell anybody of it.
            let same =
                known.filter(|known| known.material.at == plan.at && known.material.content() == material.content());
            let settled = stamps.iter().flatten().all(|stamp| stamp.changed() + SETTLES < now());
            match same {
                Some(known) => Entry { stamps, settled, ..known },
                None => Entry { stamps, settled, material: Arc::new(material), facts: None },
            }
        }
    };
    Ok(entries.entry(files).insert_entry(entry).into_mut())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Seconds: longer than the clocks of file systems take to move on.
const SETTLES: i64 = 2;

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::PKCS_ECDSA_P256_SHA256;

    use super::*;
    use crate::{
        keeper::testing::tls_plan,
        tls::testing::{Authority, material},
    };

    #[test]
    fn what_has_not_changed_is_neither_read_nor_parsed_again() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("crt"), folder.path().join("key"));
        let authority = Authority::new();
        let write = || {
            let pair = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
            fs::write(&certificate, pair.0).unwrap();
            fs::write(&key, pair.1).unwrap();
        };
        let at = "tls.certificates[0]".to_owned();
        let plan = CertificatePlan { certificate: certificate.clone(), key: key.clone(), chain: None, at };
        let shelf = Shelf::default();
        let facts = || shelf.facts(&plan).unwrap_or_else(|_| panic!("it can be served"));
        write();

        let (read, known) = (shelf.read(&plan).unwrap(), facts());
        assert!(!shelf.entries()[&files(&plan)].settled, "it has just been written");
        fs::write(&key, read.key.expose()).unwrap();
        assert!(Arc::ptr_eq(&shelf.read(&plan).unwrap(), &read), "the same in another file is the same");
        assert!(Arc::ptr_eq(&facts(), &known));

        // As it is a while later. What is on the disk is then not looked at: another content would be seen.
        let marked = Arc::new(CertificateMaterial { at: plan.at.clone(), ..material("marked", "marked", None) });
        shelf.entries().entry(files(&plan)).and_modify(|entry| {
            (entry.settled, entry.material) = (true, Arc::clone(&marked));
        });
        assert!(Arc::ptr_eq(&shelf.read(&plan).unwrap(), &marked));
        assert!(Arc::ptr_eq(&facts(), &known));

        write();
        let other = shelf.read(&plan).unwrap();
        assert!(other.content() != read.content() && other.content() != marked.content());
        assert!(!Arc::ptr_eq(&facts(), &known));

        fs::remove_file(&key).unwrap();
        assert!(matches!(shelf.facts(&plan), Err(Unfit::Unreadable(_))));
        fs::write(&key, "no key").unwrap();
        assert!(matches!(shelf.facts(&plan), Err(Unfit::Unusable(_))));
        shelf.keep_only(&tls_plan(folder.path()).tls);
        assert!(shelf.entries().is_empty());
    }
}
