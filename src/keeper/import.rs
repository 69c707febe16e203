//! Certificates that were ordered by other means, taken over into the storage.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Component, Path, PathBuf},
};

use flate2::read::GzDecoder;
use jiff::Timestamp;

use super::folder;
use crate::{
    config::{AcmePlan, TlsPlan, untrusted},
    tls::{Certificate, SecretBytes, acme, read_bounded},
};

/// Takes over what `tls.import` has for all names of `ordered`: of what is valid now, the one that is so for the longest.
/// Answers it as it is kept.
pub(super) fn take(tls: &TlsPlan, ordered: &AcmePlan) -> Option<SecretBytes> {
    let hosts = || ordered.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut best: Option<(Timestamp, SecretBytes, &Path)> = None;
    for source in &tls.import {
        let lineages = match lineages(source) {
            Ok(lineages) => lineages,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, source = %source.display(), "nothing is imported from there");
                continue;
            }
        };
        for bundle in lineages.iter().filter_map(Lineage::bundle) {
            if let Some(until) = valid_until(ordered, &bundle)
                && best.as_ref().is_none_or(|(known, ..)| *known < until)
            {
                best = Some((until, bundle, source));
            }
        }
    }
    let (until, bundle, source) = best?;
    let kept = folder::private(&tls.storage, "acme").and_then(|_| acme::keep_imported(&tls.storage, ordered, &bundle));
    match kept {
        Ok(()) => tracing::info!(hosts = hosts(), source = %source.display(), %until, "certificate imported"),
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                hosts = hosts(),
                "the certificate that is imported cannot be kept"
            );
        }
    }
    Some(bundle)
}

/// Until when `bundle` is of use for `ordered`, if it is now. One that was signed by itself is none of an authority.
fn valid_until(ordered: &AcmePlan, bundle: &SecretBytes) -> Option<Timestamp> {
    let material = acme::material(ordered, bundle, Path::new(""))?;
    let certificate = Certificate::from_material(&material).ok()?;
    let is_good = certificate.warning(Timestamp::now()).is_none() && !certificate.self_signed();
    is_good.then(|| certificate.not_after())
}

/// A certificate of certbot's.
struct Lineage {
    chain: SecretBytes,
    key: SecretBytes,
}

impl Lineage {
    fn bundle(&self) -> Option<SecretBytes> {
        let text = |pem: &SecretBytes| std::str::from_utf8(pem.expose()).map(str::to_owned).ok();
        Some(acme::bundle(&text(&self.key)?, &text(&self.chain)?))
    }
}

/// All certificates in certbot's folder `source`, or in an archive of one.
fn lineages(source: &Path) -> io::Result<Vec<Lineage>> {
    if let Some(why) = untrusted(source) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let found = fs::metadata(source)?;
    if found.is_dir() {
        return in_folder(source);
    }
    if !found.is_file() {
        return Err(io::Error::other("it is neither a folder nor a file"));
    }
    in_archive(File::open(source)?)
}

fn in_folder(folder: &Path) -> io::Result<Vec<Lineage>> {
    let mut lineages = Vec::new();
    for entry in fs::read_dir(folder.join("live"))?.take(LINEAGES) {
        let live = entry?.path();
        let read = |name: &str| {
            let file = live.join(name);
            // Its links may lead anywhere.
            if untrusted(&file).is_some() {
                return None;
            }
            read_bounded(&file).ok().map(SecretBytes::new)
        };
        if let (Some(chain), Some(key)) = (read(CHAIN), read(KEY)) {
            lineages.push(Lineage { chain, key });
        }
    }
    Ok(lineages)
}

/// What an archive has at a path.
enum Member {
    Content(SecretBytes),
    Link(PathBuf),
}

/// Unpacked in memory: nothing of it is written, and its links lead nowhere else.
fn in_archive(file: File) -> io::Result<Vec<Lineage>> {
    let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(file)).take(UNPACKED));
    let members = members(&mut archive);
    if archive.into_inner().limit() == 0 {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "unpacked, it is larger than 16 MiB"));
    }
    let members = members?;
    let chains = members.keys().filter(|path| path.ends_with(CHAIN) && is_live(path)).take(LINEAGES);
    let lineage = |chain: &PathBuf| {
        let key = content(&members, &chain.with_file_name(KEY))?;
        Some(Lineage { chain: content(&members, chain)?, key })
    };
    Ok(chains.filter_map(lineage).collect())
}

/// The files and links that may be of a certificate.
fn members(archive: &mut tar::Archive<impl Read>) -> io::Result<BTreeMap<PathBuf, Member>> {
    let mut members = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(path) = plain(&entry.path()?) else { continue };
        if path.extension().is_none_or(|extension| extension != "pem") {
            continue;
        }
        let kind = entry.header().entry_type();
        if kind.is_file() && entry.size() <= MEMBER {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            members.insert(path, Member::Content(SecretBytes::new(content)));
        } else if kind.is_symlink()
            && let Some(target) = entry.link_name()?
            && let Some(target) = plain(&path.with_file_name("").join(target))
        {
            members.insert(path, Member::Link(target));
        }
    }
    Ok(members)
}

/// Whether it is `live/NAME/FILE`, wherever that is.
fn is_live(path: &Path) -> bool {
    path.parent().and_then(Path::parent).is_some_and(|folder| folder.ends_with("live"))
}

/// What is at `path` in the end.
fn content(members: &BTreeMap<PathBuf, Member>, path: &Path) -> Option<SecretBytes> {
    let mut path = path;
    for _ in 0..LINKS {
        match members.get(path)? {
            Member::Content(content) => return Some(content.clone()),
            Member::Link(target) => path = target,
        }
    }
    None
}

/// `path` without `.` and `..`, from the top of the archive; `None` for one that leads out of it.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

const CHAIN: &str = "fullchain.pem";
const KEY: &str = "privkey.pem";
/// Certificates that are looked at in one place.
const LINEAGES: usize = 1000;
/// What an archive may hold in all, and one file of it that is looked at.
const UNPACKED: u64 = 16 << 20;
const MEMBER: u64 = 64 << 10;
/// Links that lead from one to another; certbot's lead to files.
const LINKS: usize = 8;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use flate2::{Compression, write::GzEncoder};
    use rcgen::PKCS_ECDSA_P256_SHA256;

    use super::*;
    use crate::{config, tls::testing::Authority};

    /// A site that orders for `hosts` and imports from `source`.
    fn tls(folder: &Path, hosts: &str, source: &Path) -> TlsPlan {
        let (folder, source) = (folder.display(), source.display());
        let text = format!(
            "listeners: [{{ address: '127.0.0.1:1' }}, {{ address: '127.0.0.1:2', tls: true }}]
routes: [{{ prefix: /, upstream: a }}]
upstreams: {{ a: {{ endpoints: ['a:1'] }} }}
tls: {{ storage: {folder}/storage, import: [{folder}/absent, {source}], certificates: [{{ hosts: [{hosts}], acme: {{}} }}] }}"
        );
        config::parse("/etc/v.yml", &text, &|_| None).unwrap_or_else(|error| panic!("{error}")).tls
    }

    /// A version in certbot's `folder`.
    fn lineage(folder: &Path, name: &str, (chain, key): &(String, String)) {
        let (live, archive) = (folder.join("live").join(name), folder.join("archive").join(name));
        fs::create_dir_all(&live).unwrap();
        fs::create_dir_all(&archive).unwrap();
        for (part, content) in [("fullchain", chain), ("privkey", key)] {
            fs::write(archive.join(format!("{part}7.pem")), content).unwrap();
            symlink(format!("../../archive/{name}/{part}7.pem"), live.join(format!("{part}.pem"))).unwrap();
        }
    }

    fn packed(build: impl FnOnce(&mut tar::Builder<GzEncoder<File>>)) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(GzEncoder::new(file.reopen().unwrap(), Compression::fast()));
        builder.follow_symlinks(false);
        build(&mut builder);
        builder.into_inner().unwrap().finish().unwrap();
        file
    }

    fn pair(names: &[&str], not_after: i32) -> (String, String) {
        Authority::new().issue_with(names, &PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = rcgen::date_time_ymd(not_after, 1, 1);
        })
    }

    #[test]
    fn of_what_certbot_has_the_one_for_all_names_that_is_valid_longest_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let le = folder.path().join("le");
        let wanted = pair(&["a.example", "www.a.example"], 2090);
        lineage(&le, "old", &pair(&["a.example", "www.a.example"], 2021));
        lineage(&le, "sooner", &pair(&["a.example", "www.a.example"], 2080));
        lineage(&le, "wanted", &wanted);
        lineage(&le, "others", &pair(&["a.example"], 2095));
        let broken = (pair(&["a.example", "www.a.example"], 2099).0, wanted.1.clone());
        lineage(&le, "broken", &broken);
        fs::write(le.join("live/README"), "").unwrap();
        let archive = packed(|builder| {
            builder.append_dir_all("etc/letsencrypt", &le).unwrap();
        });

        for source in [&le, archive.path()] {
            let tls = tls(folder.path(), "www.a.example, a.example", source);
            let taken = take(&tls, &tls.acme[0]).unwrap();
            assert_eq!(taken.expose(), acme::bundle(&wanted.1, &wanted.0).expose());
            let kept = acme::bundle_file(&tls.storage, &acme::id(&tls.acme[0].hosts));
            assert_eq!(fs::read(&kept).unwrap(), taken.expose());
            assert!(fs::read_to_string(kept.with_file_name("record.json")).unwrap().contains(r#""imported":true"#));
            fs::remove_dir_all(&tls.storage).unwrap();
        }
        let tls = tls(folder.path(), "b.example", &le);
        assert!(take(&tls, &tls.acme[0]).is_none() && !tls.storage.exists());
    }

    #[test]
    fn what_an_archive_leads_to_outside_of_it_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = pair(&["a.example"], 2090);
        let outside = folder.path().join("privkey.pem");
        fs::write(&outside, &key).unwrap();
        for target in [outside.to_str().unwrap(), "../../../../privkey.pem", "privkey.pem"] {
            let archive = packed(|builder| {
                let mut header = tar::Header::new_gnu();
                header.set_size(chain.len() as u64);
                builder.append_data(&mut header, "live/a.example/fullchain.pem", chain.as_bytes()).unwrap();
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, "live/a.example/privkey.pem", target).unwrap();
            });
            let tls = tls(folder.path(), "a.example", archive.path());

            assert!(take(&tls, &tls.acme[0]).is_none(), "{target}");
        }
    }

    #[test]
    fn an_archive_that_unpacks_to_more_than_there_is_room_for_is_refused() {
        let archive = packed(|builder| {
            for number in 0..20 {
                let mut header = tar::Header::new_gnu();
                header.set_size(1 << 20);
                builder.append_data(&mut header, format!("{number}"), io::repeat(0).take(1 << 20)).unwrap();
            }
        });

        let refused = lineages(archive.path()).err().unwrap();

        assert!(fs::metadata(archive.path()).unwrap().len() < 1 << 20);
        assert_eq!(refused.to_string(), "unpacked, it is larger than 16 MiB");
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "no archive").unwrap();

        assert!(lineages(file.path()).is_err());
    }
}
