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

use super::{Certificate, CertificateError, CertificateMaterial, MaterialFault};
use crate::config::{CertificatePlan, FileStamp, TlsPlan};

/// Why there is nothing to be known of a certificate.
pub(super) enum Unfit {
    Unreadable(Vec<MaterialFault>),
    Unusable(Vec<CertificateError>),
}

/// The one of this process.
pub(crate) static SHELF: LazyLock<Shelf> = LazyLock::new(Shelf::default);

#[derive(Default)]
pub(crate) struct Shelf(Mutex<Shelved>);

#[derive(Default)]
struct Shelved {
    entries: HashMap<Files, Entry>,
    /// A configuration is being read.
    reading: bool,
}

impl Shelf {
    /// The files of `plan`, read unless they are known; see [`CertificateMaterial::read`].
    pub(crate) fn read(&self, plan: &CertificatePlan) -> Result<Arc<CertificateMaterial>, Vec<MaterialFault>> {
        Ok(Arc::clone(&self.shelved().take(plan)?.material))
    }

    /// The certificate of `plan`, which can be served.
    pub(super) fn certificate(&self, plan: &CertificatePlan) -> Result<Certificate, Unfit> {
        let mut shelved = self.shelved();
        let material = &shelved.take(plan).map_err(Unfit::Unreadable)?.material;
        Certificate::from_material(material).map_err(|error| {
            let each = Certificate::faults(material);
            Unfit::Unusable(if each.is_empty() { vec![error] } else { each })
        })
    }

    /// A configuration is about to be read: until [`Self::keep_only`], a file that was looked at is not looked at again, so
    /// that what is served is what was checked. To be said once more when the files are watched: what happens to them from
    /// then on is told, and what has happened before is looked at.
    pub(crate) fn begin_reading(&self) {
        let mut shelved = self.shelved();
        shelved.reading = true;
        shelved.entries.values_mut().for_each(|entry| entry.looked_at = false);
    }

    /// Forgets, and wipes, what `tls` does not name.
    pub(crate) fn keep_only(&self, tls: &TlsPlan) {
        let named: HashSet<Files> = tls.certificates.iter().map(files).collect();
        let mut shelved = self.shelved();
        shelved.reading = false;
        shelved.entries.retain(|files, entry| {
            entry.looked_at = false;
            named.contains(files)
        });
    }

    fn shelved(&self) -> MutexGuard<'_, Shelved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Certificate, key and chain.
type Files = [Option<PathBuf>; 3];

struct Entry {
    stamps: [Option<FileStamp>; 3],
    /// The stamps tell: nothing was changed so lately that another change could have the same.
    settled: bool,
    /// In this reading.
    looked_at: bool,
    material: Arc<CertificateMaterial>,
}

fn files(plan: &CertificatePlan) -> Files {
    [Some(plan.certificate.clone()), Some(plan.key.clone()), plan.chain.clone()]
}

impl Shelved {
    fn take(&mut self, plan: &CertificatePlan) -> Result<&mut Entry, Vec<MaterialFault>> {
        let files = files(plan);
        let known = self.entries.remove(&files).filter(|known| known.material.at == plan.at);
        let entry = match known {
            Some(known) if known.looked_at => known,
            known => Entry { looked_at: self.reading, ..look(plan, &files, known)? },
        };
        Ok(self.entries.entry(files).insert_entry(entry).into_mut())
    }
}

/// The files of `plan` as they are now, read unless what is `known` is of the same.
fn look(plan: &CertificatePlan, files: &Files, known: Option<Entry>) -> Result<Entry, Vec<MaterialFault>> {
    // Before they are read: what is changed meanwhile has another stamp next time.
    let stamps = files.each_ref().map(|file| FileStamp::of(file.as_deref()?));
    let known = match known {
        Some(known) if known.settled && known.stamps == stamps => return Ok(known),
        known => known.map(|known| known.material),
    };
    let read = CertificateMaterial::read(plan)?;
    let settled = stamps.iter().flatten().all(|stamp| stamp.changed() + SETTLES < now());
    // The same content under another stamp is no reason to parse it again, nor to tell anybody of it.
    let same = known.filter(|known| known.content() == read.content());
    Ok(Entry { stamps, settled, looked_at: false, material: same.unwrap_or_else(|| Arc::new(read)) })
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
        let certificate = || shelf.certificate(&plan).unwrap_or_else(|_| panic!("it can be served"));
        write();

        let (read, known) = (shelf.read(&plan).unwrap(), certificate());
        assert!(!shelf.shelved().entries[&files(&plan)].settled, "it has just been written");
        fs::write(&key, read.key.expose()).unwrap();
        assert!(Arc::ptr_eq(&shelf.read(&plan).unwrap(), &read), "the same in another file is the same");
        assert!(certificate().is(&known), "nor is it parsed again");

        // As it is a while later. What is on the disk is then not looked at: another content would be seen.
        let marked = Arc::new(CertificateMaterial { at: plan.at.clone(), ..material("marked", "marked", None) });
        shelf.shelved().entries.entry(files(&plan)).and_modify(|entry| {
            (entry.settled, entry.material) = (true, Arc::clone(&marked));
        });
        assert!(Arc::ptr_eq(&shelf.read(&plan).unwrap(), &marked));

        write();
        let other = shelf.read(&plan).unwrap();
        assert!(other.content() != read.content() && other.content() != marked.content());
        assert!(!certificate().is(&known));

        fs::remove_file(&key).unwrap();
        assert!(matches!(shelf.certificate(&plan), Err(Unfit::Unreadable(_))));
        fs::write(&key, "no key").unwrap();
        assert!(matches!(shelf.certificate(&plan), Err(Unfit::Unusable(_))));
        shelf.keep_only(&tls_plan(folder.path()).tls);
        assert!(shelf.shelved().entries.is_empty());
    }

    #[test]
    fn what_was_looked_at_in_a_reading_stays_as_it_was_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("crt"), folder.path().join("key"));
        let plan =
            CertificatePlan { certificate: certificate.clone(), key: key.clone(), chain: None, at: "tls".to_owned() };
        let mut tls = tls_plan(folder.path()).tls;
        tls.certificates = vec![plan.clone()];
        let write = |content| [&certificate, &key].map(|file| fs::write(file, content).unwrap());
        let shelf = Shelf::default();
        write("before");

        shelf.begin_reading();
        let read = shelf.read(&plan).unwrap();
        write("after");
        assert!(Arc::ptr_eq(&shelf.read(&plan).unwrap(), &read));

        shelf.keep_only(&tls);
        assert_eq!(shelf.read(&plan).unwrap().certificate, b"after");
    }
}
