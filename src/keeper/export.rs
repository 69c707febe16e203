//! Ordered certificates in the places where other programs look for them.
//!
//! A pair is written beside the one that is in use and then given its names, key and certificate one right after the other:
//! a reader that comes between the two sees what does not fit for that moment, as it does with certbot.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Gid, Uid};
use zeroize::Zeroizing;

use super::folder::{self, Staged};
use crate::{
    config::{AcmePlan, ExportFilesPlan, ExportPlan, TlsPlan, untrusted},
    tls::{CertificateMaterial, read_bounded},
};

/// What became of the places of one certificate.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// Files that were not as they are to be.
    pub(crate) written: Vec<PathBuf>,
    pub(crate) faults: Vec<ExportFault>,
}

/// A place that a certificate is not in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportFault {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is not written: {why}", path.display())]
    Untrusted { path: PathBuf, why: String },
    #[error(
        "{} is not written: certbot renews {name} there; delete it there (`certbot delete --cert-name {name}`), or write \
         `replace: true` in `tls.export`",
        path.display()
    )]
    Certbot { path: PathBuf, name: String },
    #[error("{} is not written: there is no {kind} `{name}` on this machine", path.display())]
    Unknown { path: PathBuf, kind: &'static str, name: String },
}

/// Writes `material`, the certificate of `ordered`, wherever `tls` says that is not so already.
pub(crate) fn write(tls: &TlsPlan, ordered: &AcmePlan, material: &CertificateMaterial) -> Exported {
    let mut exported = Exported::default();
    let Some(export) = &tls.export else { return exported };
    if let Some(folder) = &export.folder {
        exported.note(live(folder, &lineage(tls, ordered), export, material));
    }
    for files in &export.files {
        let is_first = || tls.acme.first().is_some_and(|first| first.hosts == ordered.hosts);
        let is_meant = files.host.as_ref().map_or_else(is_first, |host| ordered.hosts.contains(host));
        let has_own = || files.unless.as_ref().is_some_and(|file| file.exists());
        if is_meant && !has_own() {
            exported.note(pair(files, material));
        }
    }
    exported
}

/// The folder that certbot would tell its deploy hooks, if there is one.
pub(crate) fn lineage_folder(tls: &TlsPlan, ordered: &AcmePlan) -> Option<PathBuf> {
    let folder = tls.export.as_ref()?.folder.as_ref()?;
    Some(folder.join("live").join(lineage(tls, ordered)))
}

impl Exported {
    fn note(&mut self, written: Result<Vec<PathBuf>, ExportFault>) {
        match written {
            Ok(written) => self.written.extend(written),
            Err(fault) => self.faults.push(fault),
        }
    }
}

/// The name that certbot would give to the certificate: its first host without `*.`, numbered where another one has it.
fn lineage(tls: &TlsPlan, ordered: &AcmePlan) -> String {
    let name = |ordered: &AcmePlan| {
        let first = ordered.hosts.first().map_or("", |host| host.as_str());
        first.strip_prefix("*.").unwrap_or(first).to_owned()
    };
    let own = name(ordered);
    let before = tls.acme.iter().take_while(|other| other.hosts != ordered.hosts);
    match before.filter(|other| name(other) == own).count() {
        0 => own,
        number => format!("{own}-{number:04}"),
    }
}

/// Adds a version to the archive of `name` in certbot's `folder`, and has the links in `live` lead to it.
fn live(
    folder: &Path,
    name: &str,
    export: &ExportPlan,
    material: &CertificateMaterial,
) -> Result<Vec<PathBuf>, ExportFault> {
    let (live, archive) = (folder.join("live").join(name), folder.join("archive").join(name));
    let (leaf, chain) = material.certificate.split_at(end_of_leaf(&material.certificate));
    let parts: [(&str, &[u8], u32); 4] = [
        ("cert", leaf, 0o644),
        ("chain", chain, 0o644),
        ("privkey", material.key.expose(), 0o600),
        ("fullchain", &material.certificate, 0o644),
    ];
    let link = |part: &str| live.join(format!("{part}.pem"));
    if parts.iter().all(|(part, content, _)| holds(&link(part), content)) {
        return Ok(Vec::new());
    }
    if let Some(why) = untrusted(&archive).or_else(|| untrusted(&live)) {
        return Err(ExportFault::Untrusted { path: live, why });
    }
    let is_certbots = folder.join("renewal").join(format!("{name}.conf")).exists();
    if is_certbots && !export.replace {
        return Err(ExportFault::Certbot { path: live, name: name.to_owned() });
    }
    let write = || -> io::Result<()> {
        folder::make(folder, 0o755)?;
        for made in [&folder.join("live"), &folder.join("archive"), &live, &archive] {
            folder::make(made, 0o700)?;
        }
        let versions = versions(&archive)?;
        let version = versions.iter().max().map_or(1, |last| last + 1);
        for (part, content, mode) in parts {
            folder::write(&archive, &format!("{part}{version}.pem"), content, mode)?;
        }
        for (part, ..) in parts {
            let version = Path::new("../../archive").join(name).join(format!("{part}{version}.pem"));
            folder::link(&link(part), &version)?;
        }
        fs::File::open(&live)?.sync_all()?;
        // Who has opened the one before is to find it. What certbot has kept is its own.
        for old in versions.into_iter().filter(|old| *old + 1 < version && !is_certbots) {
            for (part, ..) in parts {
                fs::remove_file(archive.join(format!("{part}{old}.pem"))).ok();
            }
        }
        Ok(())
    };
    write().map_err(|source| ExportFault::Write { path: live.clone(), source })?;
    Ok(parts.iter().map(|(part, ..)| link(part)).collect())
}

/// The versions that there are in an archive of certbot's.
fn versions(archive: &Path) -> io::Result<BTreeSet<u64>> {
    let version = |entry: io::Result<fs::DirEntry>| {
        let name = entry.ok()?.file_name();
        let name = name.to_str()?.strip_suffix(".pem")?;
        let part = ["cert", "chain", "privkey", "fullchain"].into_iter().find_map(|part| name.strip_prefix(part))?;
        part.parse().ok()
    };
    Ok(fs::read_dir(archive)?.filter_map(version).collect())
}

/// Writes both of `files`.
fn pair(files: &ExportFilesPlan, material: &CertificateMaterial) -> Result<Vec<PathBuf>, ExportFault> {
    let mode = files.mode.bits();
    let owner = owner(files)?;
    let wanted: [(&Path, &[u8]); 2] =
        [(&files.key, material.key.expose()), (&files.certificate, &material.certificate)];
    let is_as_wanted = |(file, content): &(&Path, &[u8])| {
        let is_owned = |found: fs::Metadata| {
            owner.is_none_or(|(user, group)| (found.uid(), found.gid()) == (user.as_raw(), group.as_raw()))
                && found.mode() & 0o7777 == mode
        };
        holds(file, content) && fs::metadata(file).is_ok_and(is_owned)
    };
    if wanted.iter().all(is_as_wanted) {
        return Ok(Vec::new());
    }
    for (file, _) in wanted {
        let path = file.to_owned();
        if let Some(why) = file.parent().and_then(untrusted) {
            return Err(ExportFault::Untrusted { path, why });
        }
    }
    let failed = |file: &Path| {
        let path = file.to_owned();
        move |source| ExportFault::Write { path, source }
    };
    let stage = |(file, content): (&Path, &[u8])| Staged::new(file, content, mode, owner).map_err(failed(file));
    let [key, certificate] = wanted.map(stage);
    let (key, certificate) = (key?, certificate?);
    key.put().map_err(failed(&files.key))?;
    certificate.put().map_err(failed(&files.certificate))?;
    Ok(vec![files.certificate.clone(), files.key.clone()])
}

/// Whose the files are to be; `None` where we cannot give them to anybody.
fn owner(files: &ExportFilesPlan) -> Result<Option<(Uid, Gid)>, ExportFault> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let unknown =
        |kind, name: &String| ExportFault::Unknown { path: files.certificate.clone(), kind, name: name.clone() };
    let user = uzers::get_user_by_name(&files.owner).ok_or_else(|| unknown("user", &files.owner))?;
    let group = uzers::get_group_by_name(&files.group).ok_or_else(|| unknown("group", &files.group))?;
    Ok(Some((Uid::from_raw(user.uid()), Gid::from_raw(group.gid()))))
}

fn holds(file: &Path, content: &[u8]) -> bool {
    read_bounded(file).is_ok_and(|found| Zeroizing::new(found).as_slice() == content)
}

/// Where the first certificate of a chain ends and the second one begins.
fn end_of_leaf(chain: &[u8]) -> usize {
    let begins = |window: &[u8]| window == BEGIN;
    let second = chain.windows(BEGIN.len()).enumerate().filter(|(_, window)| begins(window)).nth(1);
    second.map_or(chain.len(), |(position, _)| position)
}

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::PKCS_ECDSA_P256_SHA256;

    use super::*;
    use crate::{
        config,
        tls::testing::{self, Authority},
    };

    fn tls(certificates: &str, export: &str) -> TlsPlan {
        let text = format!(
            "listeners: [{{ address: '127.0.0.1:1' }}, {{ address: '127.0.0.1:2', tls: true }}]
routes: [{{ prefix: /, upstream: a }}]
upstreams: {{ a: {{ endpoints: ['a:1'] }} }}
tls: {{ certificates: [{certificates}], export: {export} }}"
        );
        config::parse("/etc/v.yml", &text, &|_| None).unwrap_or_else(|error| panic!("{error}")).tls
    }

    fn material(authority: &Authority) -> CertificateMaterial {
        let (certificate, key) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        testing::material(&(certificate + &authority.intermediate.pem()), &key, None)
    }

    const ONE: &str = "{ hosts: [a.example], acme: {} }";

    fn mode(file: &Path) -> u32 {
        fs::metadata(file).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn certbots_folder_is_written_as_certbot_would_and_only_where_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let le = folder.path().join("le");
        let tls = tls(ONE, &format!("{{ folder: {} }}", le.display()));
        let authority = Authority::new();

        for version in 1..=3 {
            let material = material(&authority);
            let exported = write(&tls, &tls.acme[0], &material);
            assert!(exported.faults.is_empty(), "{:?}", exported.faults);
            assert_eq!(exported.written.len(), 4);
            assert!(write(&tls, &tls.acme[0], &material).written.is_empty());

            let live = le.join("live/a.example");
            let read = |part: &str| fs::read(live.join(part)).unwrap();
            assert_eq!(read("fullchain.pem"), material.certificate);
            assert_eq!([read("cert.pem"), read("chain.pem")].concat(), material.certificate);
            assert_eq!(read("privkey.pem"), material.key.expose());
            let target = fs::read_link(live.join("privkey.pem")).unwrap();
            assert_eq!(target, PathBuf::from(format!("../../archive/a.example/privkey{version}.pem")));
            assert_eq!(mode(&live.join("privkey.pem")), 0o600);
            assert_eq!(mode(&live.join("fullchain.pem")), 0o644);
            assert_eq!((mode(&live), mode(&le.join("archive"))), (0o700, 0o700));
        }
        let archive = le.join("archive/a.example");
        assert_eq!(versions(&archive).unwrap(), BTreeSet::from([2, 3]), "the one before is kept, older ones are not");
    }

    #[test]
    fn what_certbot_renews_is_left_alone_unless_we_are_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("renewal")).unwrap();
        fs::write(folder.path().join("renewal/a.example.conf"), "").unwrap();
        let (material, path) = (material(&Authority::new()), folder.path().display());

        let told = |replace: &str| {
            let tls = tls(ONE, &format!("{{ folder: {path}{replace} }}"));
            write(&tls, &tls.acme[0], &material)
        };

        let refused = told("");
        assert!(refused.written.is_empty() && !folder.path().join("live").exists());
        assert!(refused.faults[0].to_string().contains("certbot renews a.example there"), "{:?}", refused.faults);
        assert_eq!(told(", replace: true").written.len(), 4);
    }

    #[test]
    fn a_pair_is_written_for_its_user_unless_there_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let entry = format!(
            "{{ certificate: {0}/c, key: {0}/k, mode: 0640, group: daemon, unless: {0}/own }}",
            folder.path().display()
        );
        let tls = tls(ONE, &format!("{{ folder: null, files: [{entry}] }}"));
        let material = material(&Authority::new());

        fs::write(file("own"), "").unwrap();
        assert!(write(&tls, &tls.acme[0], &material).written.is_empty());
        fs::remove_file(file("own")).unwrap();
        assert_eq!(write(&tls, &tls.acme[0], &material).written, [file("c"), file("k")]);

        assert_eq!(fs::read(file("c")).unwrap(), material.certificate);
        assert_eq!(fs::read(file("k")).unwrap(), material.key.expose());
        assert_eq!(mode(&file("k")), 0o640);
        if rustix::process::geteuid().is_root() {
            let daemon = uzers::get_group_by_name("daemon").unwrap().gid();
            assert_eq!(fs::metadata(file("k")).unwrap().gid(), daemon);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside them");
    }

    #[test]
    fn root_writes_nowhere_that_others_could_lead_elsewhere() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let others = folder.path().join("others");
        fs::create_dir(&others).unwrap();
        fs::set_permissions(&others, fs::Permissions::from_mode(0o777)).unwrap();
        let path = others.display();
        let tls = tls(ONE, &format!("{{ folder: {path}/le, files: [{{ certificate: {path}/c, key: {path}/k }}] }}"));

        let refused = write(&tls, &tls.acme[0], &material(&Authority::new()));

        assert_eq!(refused.faults.len(), 2, "{refused:?}");
        assert_eq!(fs::read_dir(others).unwrap().count(), 0);
    }

    #[test]
    fn two_certificates_of_one_name_have_two_folders() {
        let tls = tls(
            "{ hosts: [a.example], acme: {} }, { hosts: ['*.a.example'], acme: { dns_hook: [/h] } }, \
             { hosts: [b.example], acme: {} }",
            "{}",
        );

        let names: Vec<_> = tls.acme.iter().map(|ordered| lineage(&tls, ordered)).collect();

        assert_eq!(names, ["a.example", "a.example-0001", "b.example"]);
    }
}
