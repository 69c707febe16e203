//! Certificates that are ordered from a CA by ACME (RFC 8555).
//!
//! What is here is used on both sides of the storage: the agent orders and keeps ([`Agent`](crate::process)), the keeper
//! reads what is kept. A certificate is known by the names it is for ([`id`]), so that a site which changes its name has
//! another certificate, and one that goes back to the old name has the old one.

mod care;
mod client;
pub mod flight;
mod lease;
mod order;
mod record;
mod turns;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use self::care::{OrderReport, OrderState};
pub(crate) use self::{
    care::{Asked, Care, Told},
    flight::Finding,
    order::{Favour, TxtRecord},
    turns::Turns,
};
use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::record::Record;
use super::{
    Certificate, CertificateMaterial, Checked, PendingChallenge, SecretBytes,
    storage::{self, Storage, StorageError},
};
use crate::config::{AcmePlan, CertificateHost};

/// What a certificate for `hosts` is known by in the storage: the first name, for the eye, and a digest of all.
pub(crate) fn id(hosts: &[CertificateHost]) -> String {
    let mut names: Vec<_> = hosts.iter().map(CertificateHost::as_str).collect();
    names.sort_unstable();
    let digest = digest(&SHA256, names.join("\n").as_bytes());
    let first: String = hosts.first().map_or("", CertificateHost::as_str).chars().take(SHOWN).collect();
    format!("{}-{}", first.replace(':', ".").replace('*', "_"), HEXLOWER.encode(&digest.as_ref()[..8]))
}

/// The key of the storage that the certificate `id` is kept under: its private key and its chain in one object, so that
/// no reader ever sees one without the other.
pub(crate) fn bundle_key(id: &str) -> String {
    format!("acme/certificates/{id}/bundle.pem")
}

/// The key of the storage that the account of `plan` with `directory` is kept under; customers of one CA have their own.
pub(crate) fn account_key(plan: &AcmePlan, directory: &str) -> String {
    let customer = plan.eab.as_ref().map_or("", |eab| &eab.key_id);
    let digest = digest(&SHA256, format!("{directory}\n{customer}").as_bytes());
    format!("acme/accounts/{}/account.json", HEXLOWER.encode(&digest.as_ref()[..16]))
}

fn lease_key(id: &str) -> String {
    format!("acme/certificates/{id}/lease.json")
}

/// What all machines answer while one of them orders the certificate `id`, or, with the token of the question, looks what is in
/// the way of that.
fn challenges_key(id: &str, check: Option<&str>) -> String {
    match check {
        None => format!("{CHALLENGES}/{id}.json"),
        Some(token) => format!("{CHALLENGES}/{id}{CHECK}{token}.json"),
    }
}

/// The file of a bundle, where the storage is a folder.
pub(crate) fn bundle_file(storage: &Path, id: &str) -> PathBuf {
    storage.join(bundle_key(id))
}

/// A private key and a chain, both PEM, as they are kept.
pub(crate) fn bundle(key: &str, chain: &str) -> SecretBytes {
    SecretBytes::new([key.trim_end(), "\n", chain.trim_end(), "\n"].concat().into_bytes())
}

/// Keeps `bundle`, which was ordered by other means, as the certificate of `ordered`.
pub(crate) fn keep_imported(storage: &Path, ordered: &AcmePlan, bundle: &SecretBytes) -> io::Result<()> {
    let id = id(&ordered.hosts);
    let record = Record { imported: true, ..Record::default() };
    // The record first: a certificate without one would be ordered anew.
    storage::keep(storage, &order::record_key(&id), &record.bytes())?;
    storage::keep(storage, &bundle_key(&id), bundle)
}

/// What `bundle` holds for `plan`; `None` if it is not whole, or for other names.
pub(crate) fn material(plan: &AcmePlan, bundle: &SecretBytes, file: &Path) -> Option<CertificateMaterial> {
    let (material, certificate) = unfold(&plan.at, bundle, file)?;
    plan.hosts.iter().all(|host| covers(&certificate, host)).then_some(material)
}

/// What `bundle` holds, for whatever names; `None` if it is not whole.
pub(crate) fn unfold(at: &str, bundle: &SecretBytes, file: &Path) -> Option<(CertificateMaterial, Certificate)> {
    let bytes = bundle.expose();
    let chain = bytes.windows(BEGIN.len()).position(|window| window == BEGIN)?;
    let (key, chain) = bytes.split_at(chain);
    let material = CertificateMaterial {
        at: at.to_owned(),
        certificate: chain.to_vec(),
        key: SecretBytes::new(key.to_vec()),
        chain: None,
        certificate_file: file.to_owned(),
        key_file: file.to_owned(),
        chain_file: None,
        checked: Checked::default(),
    };
    let certificate = Certificate::from_material(&material).ok()?;
    Some((material, certificate))
}

/// The bundles in the folder of the storage, for whatever names: a thousand at most.
pub(crate) fn bundles(storage: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(storage.join("acme/certificates")).into_iter().flatten().flatten();
    folders.take(1000).map(|folder| folder.path().join("bundle.pem")).collect()
}

/// Whether `certificate` is for `host`; a wildcard must be named as it is.
pub(crate) fn covers(certificate: &Certificate, host: &CertificateHost) -> bool {
    if host.is_wildcard() {
        certificate.names().iter().any(|name| name.to_string() == host.as_str())
    } else {
        certificate.covers(host.as_str())
    }
}

/// What orders of other machines have to be answered, found in `storage`.
pub(crate) async fn shown(storage: &Storage) -> Result<Vec<(String, Vec<PendingChallenge>)>, StorageError> {
    let mut shown = Vec::new();
    let mut keys = storage.list(CHALLENGES).await?;
    // Orders first, where there are more than are looked at.
    keys.sort_by_key(|key| key.contains(CHECK));
    for key in keys.into_iter().take(ANSWERED) {
        let id = key.strip_prefix(CHALLENGES).and_then(|key| key.strip_prefix('/')?.strip_suffix(".json"));
        // One that cannot be read is no reason to leave the others unanswered.
        let content = storage.read(&key).await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "challenges that cannot be read are not answered");
            None
        });
        let (Some(id), Some(content)) = (id, content) else { continue };
        match serde_json::from_slice::<Shown>(content.expose()) {
            // A machine that has died took nothing back.
            Ok(Shown { since, .. }) if record::later(since, LONGEST_SHOWN) < Timestamp::now() => {
                storage.remove(&key).await.ok();
            }
            Ok(Shown { pending, .. }) => shown.push((id.to_owned(), pending)),
            Err(error) => tracing::warn!(key, %error, "challenges that cannot be read are not answered"),
        }
    }
    // Those of checks, whose id has their token behind it, first: for one name an order wins.
    shown.sort_by_key(|(id, _)| !id.contains(CHECK));
    Ok(shown)
}

/// What a machine has to be answered.
#[derive(Deserialize, Serialize)]
struct Shown {
    since: Timestamp,
    pending: Vec<PendingChallenge>,
}

const CHALLENGES: &str = "acme/challenges";
/// Before the token in the id of what is shown for a check.
const CHECK: &str = ".check.";
/// Seconds after which nobody asks any more: an order has two minutes for its names.
const LONGEST_SHOWN: i64 = 15 * 60;
/// Orders of other machines that are answered at once: more than may be under way on sixteen of them.
const ANSWERED: usize = 64;
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Characters of the first name in an id: with the digest it is no longer than a file name may be.
const SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ECDSA_P256_SHA256;

    use super::*;
    use crate::{config::ChallengeKind, tls::testing::Authority};

    fn hosts(names: &[&str]) -> Vec<CertificateHost> {
        names.iter().map(|name| CertificateHost::parse(name).unwrap()).collect()
    }

    fn plan(names: &[&str]) -> AcmePlan {
        AcmePlan {
            hosts: hosts(names),
            email: None,
            directories: vec!["https://acme.example/directory".to_owned()],
            challenge: ChallengeKind::Http01,
            dns_hook: Vec::new(),
            profile: None,
            ca_file: None,
            eab: None,
            at: "tls.certificates[0]".to_owned(),
            after: 0,
        }
    }

    #[test]
    fn an_id_is_a_name_of_a_file_and_the_same_in_any_order() {
        assert_eq!(id(&hosts(&["a.example", "b.example"]))[..10], *"a.example-");
        assert_ne!(id(&hosts(&["a.example", "b.example"])), id(&hosts(&["a.example"])));
        let digest = |names: &[&str]| id(&hosts(names)).rsplit_once('-').unwrap().1.to_owned();
        assert_eq!(digest(&["a.example", "b.example"]), digest(&["b.example", "a.example"]));
        for names in [&["*.a.example"][..], &["2001:db8::1"], &[&["x"; 63].concat()]] {
            let id = id(&hosts(names));
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)), "{id}");
        }
    }

    #[test]
    fn a_bundle_is_read_back_for_its_names_and_for_no_others() {
        let (chain, key) = Authority::new().issue(&["a.example", "*.b.example"], &PKCS_ECDSA_P256_SHA256);
        let bundle = bundle(&key, &chain);

        let read = |names: &[&str]| material(&plan(names), &bundle, Path::new("/f"));

        assert!(read(&["a.example"]).is_some());
        assert!(read(&["*.b.example", "a.example"]).is_some());
        assert!(read(&["x.b.example"]).is_some());
        assert!(read(&["a.example", "c.example"]).is_none());
        assert!(read(&["*.a.example"]).is_none());
        let key = read(&["a.example"]).unwrap().key;
        assert!(!String::from_utf8_lossy(key.expose()).contains("CERTIFICATE"));
    }

    #[test]
    fn half_a_bundle_is_none() {
        let (chain, key) = Authority::new().issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let whole = bundle(&key, &chain);

        for length in (0..whole.expose().len() - 1).step_by(7) {
            let half = SecretBytes::new(whole.expose()[..length].to_vec());
            let read = material(&plan(&["a.example"]), &half, Path::new("/f"));
            // Of a chain its end may be missing.
            assert!(length > key.len() || read.is_none(), "{length}");
        }
    }
}
