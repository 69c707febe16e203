//! Certificates of our own making, for a site that has none yet: browsers warn, but nothing travels in the clear.
//!
//! Made on the machine that serves them: a key that ships with a package is no secret.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};

use super::{folder, secrets::SecretFault};
use crate::{
    config::{CertificateHost, Plan},
    tls::{Awaited, Certificate, CertificateMaterial, Checked, MADE_BY_US, SecretBytes, acme},
};

/// The certificates for the hosts of `plan` and for `localhost`, read back or made.
pub(super) fn for_the_site(plan: &Plan) -> Result<Vec<CertificateMaterial>, SecretFault> {
    let folder = private(plan)?;
    hosts(plan).into_iter().map(|host| ensure(&folder, host, &[host])).collect()
}

/// One for all `hosts` in the place of `awaited`, until that is there.
pub(super) fn in_the_meantime(
    plan: &Plan,
    awaited: Awaited<'_>,
    hosts: &[CertificateHost],
) -> Result<CertificateMaterial, SecretFault> {
    let folder = private(plan)?;
    let hosts: Vec<&str> = hosts.iter().map(CertificateHost::as_str).collect();
    let material = ensure(&folder, &awaited.id(), &hosts)?;
    Ok(CertificateMaterial { at: awaited.at().to_owned(), ..material })
}

fn private(plan: &Plan) -> Result<PathBuf, SecretFault> {
    folder::private(&plan.tls.storage, FOLDER)
        .map_err(|source| SecretFault::Storage { folder: plan.tls.storage.join(FOLDER), source })
}

/// The certificate `name` for `hosts`, read back or made.
fn ensure(folder: &Path, name: &str, hosts: &[&str]) -> Result<CertificateMaterial, SecretFault> {
    if let Some(kept) = kept(folder, name, hosts, Timestamp::now()) {
        return Ok(kept);
    }
    let (certificate, key) = make(hosts).map_err(|source| SecretFault::Make { host: hosts.join(", "), source })?;
    // The key first: a certificate without its key would be taken for a pair that was damaged, which is no worse.
    let written = folder::write(folder, &format!("{name}.key"), key.expose(), 0o600)
        .and_then(|()| folder::write(folder, &format!("{name}.crt"), &certificate, 0o644));
    written.map_err(|source| SecretFault::Storage { folder: folder.to_owned(), source })?;
    tracing::info!(hosts = hosts.join(", "), folder = %folder.display(), "self-signed certificate made");
    Ok(material(folder, name, certificate, key))
}

/// The known hosts of the site, then `localhost`, each once. The first is also what an unknown client gets.
pub(super) fn hosts(plan: &Plan) -> Vec<&str> {
    let routes = plan.routes.iter().filter_map(|route| route.host.as_ref());
    let known = plan.host.iter().chain(&plan.aliases).chain(routes);
    let mut hosts = Vec::new();
    for host in known.map(crate::config::HostName::as_str).chain(["localhost"]) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// The pair in `folder`, if it is whole and good for another 30 days.
fn kept(folder: &Path, name: &str, hosts: &[&str], now: Timestamp) -> Option<CertificateMaterial> {
    let certificate = crate::tls::read_bounded(&folder.join(format!("{name}.crt"))).ok()?;
    let key = SecretBytes::new(crate::tls::read_bounded(&folder.join(format!("{name}.key"))).ok()?);
    let material = material(folder, name, certificate, key);
    let parsed = Certificate::from_material(&material).ok()?;
    let covers = |host: &&str| CertificateHost::parse(host).is_none_or(|host| acme::covers(&parsed, &host));
    let good = hosts.iter().all(covers) && parsed.warning(now).is_none() && parsed.days_left(now) >= RENEWAL_DAYS;
    good.then_some(material)
}

fn material(folder: &Path, name: &str, certificate: Vec<u8>, key: SecretBytes) -> CertificateMaterial {
    CertificateMaterial {
        at: MADE_BY_US.to_owned(),
        certificate,
        key,
        chain: None,
        certificate_file: folder.join(format!("{name}.crt")),
        key_file: folder.join(format!("{name}.key")),
        chain_file: None,
        checked: Checked::default(),
    }
}

/// Certificate and key as PEM, ECDSA P-256.
fn make(hosts: &[&str]) -> Result<(Vec<u8>, SecretBytes), rcgen::Error> {
    let literal =
        |host: &str| host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).to_owned();
    let literals: Vec<String> = hosts.iter().map(|host| literal(host)).collect();
    let common = literals.first().cloned().unwrap_or_default();
    let mut params = CertificateParams::new(literals)?;
    if hosts == ["localhost"] {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        params.subject_alt_names.extend(loopback.map(SanType::IpAddress));
    }
    // A common name has at most 64 characters (RFC 5280, appendix A.1), and nobody reads it where there are other names.
    let common = if common.len() <= 64 { &common } else { "self-signed" };
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    // An hour back, for clients whose clock is slow.
    params.not_before = (now - Duration::from_secs(60 * 60)).into();
    params.not_after = (now + LIFETIME).into();

    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem().into_bytes(), SecretBytes::new(key.serialize_pem().into_bytes())))
}

/// Of the storage.
const FOLDER: &str = "self-signed";

/// The longest that browsers accept of a certificate for a year and a month; nobody else sets a bound for these.
const LIFETIME: Duration = Duration::from_secs(397 * 24 * 60 * 60);

const RENEWAL_DAYS: i64 = 30;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

    use super::*;
    use crate::{
        config::HostName,
        keeper::{secrets, testing::tls_plan},
    };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names(materials: &[Arc<CertificateMaterial>]) -> Vec<Vec<String>> {
        let names = |material: &Arc<CertificateMaterial>| Certificate::from_material(material).unwrap();
        let text = |certificate: Certificate| certificate.names().iter().map(ToString::to_string).collect();
        materials.iter().map(names).map(text).collect()
    }

    #[test]
    fn one_is_made_for_each_known_host_and_for_localhost_and_kept() {
        let storage = tempfile::tempdir().unwrap();
        let mut plan = tls_plan(storage.path());
        plan.host = HostName::parse("site.example");
        plan.aliases =
            ["www.site.example", "site.example", "[2001:db8::1]"].map(|host| HostName::parse(host).unwrap()).into();

        let made = secrets::read(&plan).unwrap();
        let again = secrets::read(&plan).unwrap();

        assert_eq!(
            names(&made),
            [
                vec!["site.example"],
                vec!["www.site.example"],
                vec!["2001:db8::1"],
                vec!["localhost", "127.0.0.1", "::1"]
            ]
        );
        let pem = |materials: &[Arc<CertificateMaterial>]| -> Vec<_> {
            materials.iter().map(|material| (material.certificate.clone(), material.key.expose().to_vec())).collect()
        };
        assert_eq!(pem(&again), pem(&made), "made anew although it was there");
    }

    #[test]
    fn only_the_owner_may_read_the_keys_and_nothing_is_left_beside_them() {
        let storage = tempfile::tempdir().unwrap();
        let folder = storage.path().join("self-signed");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();

        secrets::read(&tls_plan(storage.path())).unwrap();

        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("localhost.key")), 0o600);
        let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["localhost.crt", "localhost.key"]);
    }

    #[test]
    fn one_is_good_for_397_days_and_made_again_30_days_before_its_end() {
        let storage = tempfile::tempdir().unwrap();
        let made = secrets::read(&tls_plan(storage.path())).unwrap();
        let certificate = Certificate::from_material(&made[0]).unwrap();
        let folder = storage.path().join("self-signed");
        let days =
            |days: i64| Timestamp::from_second(certificate.not_after().as_second() - days * 24 * 60 * 60).unwrap();

        assert!((396..=397).contains(&certificate.days_left(Timestamp::now())));
        assert!(certificate.self_signed());
        assert!(kept(&folder, "localhost", &["localhost"], days(30)).is_some());
        assert!(kept(&folder, "localhost", &["localhost"], days(29)).is_none());
    }

    #[test]
    fn a_damaged_pair_is_made_again() {
        let storage = tempfile::tempdir().unwrap();
        let plan = tls_plan(storage.path());
        let folder = storage.path().join("self-signed");
        let first = secrets::read(&plan).unwrap();
        let (_, other) = make(&["localhost"]).unwrap();
        fs::write(folder.join("localhost.key"), other.expose()).unwrap();

        let second = secrets::read(&plan).unwrap();

        assert_ne!(second[0].certificate, first[0].certificate);
        assert!(kept(&folder, "localhost", &["localhost"], Timestamp::now()).is_some());
    }

    #[test]
    fn storage_that_cannot_be_written_is_named_with_its_key() {
        let storage = tempfile::tempdir().unwrap();
        let file = storage.path().join("file");
        fs::write(&file, "").unwrap();

        let faults = secrets::read(&tls_plan(&file)).unwrap_err();

        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].at(), "tls.storage");
        assert_eq!(
            faults[0].to_string(),
            format!(
                "tls.storage: cannot keep a self-signed certificate in {}/self-signed: Not a directory (os error 20); name a \
                 folder in `tls.storage` that the user Vestibule runs as can write in, or a certificate in \
                 `tls.certificates`",
                file.display()
            )
        );
    }

    #[test]
    fn without_a_tls_listener_none_is_made() {
        let storage = tempfile::tempdir().unwrap();
        let mut plan = tls_plan(storage.path());
        plan.listeners[0].tls = false;

        assert!(secrets::read(&plan).unwrap().is_empty());
        assert!(!storage.path().join("self-signed").exists());
    }
}
