//! `tls`: certificates, those that are ordered, and where they are kept.

use std::{collections::BTreeSet, path::PathBuf};

use super::{Seen, has_tls};
use crate::config::{
    ciphers::Cipher,
    plan::{
        AcmePlan, CertificateHost, CertificatePlan, ChallengeKind, DeployPlan, EabPlan, ExportFilesPlan, ExportPlan,
        FetchPlan, ListenAddress, ListenerPlan, SharedService, SharedStoragePlan, StorePlan, TlsPlan,
    },
    raw,
    read::{Reading, Told},
    words::{StoragePlace, StorePlace, TlsVersion},
};

pub(super) fn lower_tls(
    tls: raw::Tls,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<TlsPlan, Told> {
    let protocols = tls.protocols.and_then(|protocols| match protocols.as_slice() {
        [] => {
            Err(reading.refuse_at("tls.protocols", "without a version nobody can connect; write `[TLSv1.2, TLSv1.3]`"))
        }
        _ => Ok(protocols),
    });
    let (certificates, acme, to_fetch) = lower_certificates(tls.certificates?, listeners, reading)?;
    let (storage, shared, fetched) = lower_storage(tls.storage?, to_fetch, tls.storage_options?, reading)?;
    let export = match tls.export? {
        Some(export) => Some(lower_export(export, &acme, reading)?),
        None => None,
    };
    let deploy = tls.deploy?.into_iter().enumerate().map(|(index, deploy)| {
        let command = deploy.command.and_then(|command| match command.first() {
            Some(program) if !program.is_empty() => Ok(command),
            _ => {
                let at = format!("tls.deploy[{index}].command");
                Err(reading.refuse_at(&at, "name a program and its arguments, such as `[systemctl, reload, exim4]`"))
            }
        });
        Ok(DeployPlan { command: command?, timeout: deploy.timeout?.0 })
    });
    let deploy = deploy.collect::<Vec<_>>().into_iter().collect::<Result<_, _>>();
    let protocols = protocols?;
    Ok(TlsPlan {
        tls12: protocols.contains(&TlsVersion::Tls12),
        tls13: protocols.contains(&TlsVersion::Tls13),
        ciphers: match tls.ciphers? {
            none if none.is_empty() => Cipher::ALL.to_vec(),
            mut ciphers => {
                // Their order says nothing.
                ciphers.sort_unstable();
                ciphers.dedup();
                ciphers
            }
        },
        certificates,
        acme,
        fetched,
        storage,
        shared,
        import: tls.import?.into_iter().map(|path| path.0).collect(),
        export,
        deploy: deploy?,
    })
}

fn lower_export(export: raw::Export, acme: &[AcmePlan], reading: &mut Reading<'_>) -> Result<ExportPlan, Told> {
    let mut seen = Seen::default();
    let lower = |(index, files): (usize, raw::ExportFiles)| {
        let at = format!("tls.export.files[{index}]");
        let (host, certificate, key) = (files.host?, files.certificate?.0, files.key?.0);
        if let Some(host) = &host
            && !acme.iter().any(|ordered| ordered.hosts.contains(host))
        {
            reading.refuse_at(&format!("{at}.host"), format!("no certificate is ordered for {host}"));
        }
        for (name, file) in [("certificate", &certificate), ("key", &key)] {
            let at = format!("{at}.{name}");
            if let Some(first) = seen.note(file.clone(), &at) {
                reading.refuse_at(&at, format!("`{first}` is written to this file already"));
            }
        }
        Ok(ExportFilesPlan {
            host,
            certificate,
            key,
            owner: files.owner?.0,
            group: files.group?.0,
            mode: files.mode?,
            unless: files.unless?.map(|path| path.0),
        })
    };
    let files = export.files?.into_iter().enumerate().map(lower).collect::<Vec<_>>();
    Ok(ExportPlan {
        folder: export.folder?.map(|path| path.0),
        replace: export.replace?,
        files: files.into_iter().collect::<Result<_, _>>()?,
    })
}

/// The folder of this machine, what it shares with others, and what is fetched.
fn lower_storage(
    place: StoragePlace,
    to_fetch: Vec<Fetch>,
    options: raw::StorageOptions,
    reading: &mut Reading<'_>,
) -> Result<(PathBuf, Option<SharedStoragePlan>, Vec<FetchPlan>), Told> {
    let at = |name: &str| format!("tls.storage_options.{name}");
    let (secret_file, endpoint, ca_file) = (options.secret_file?, options.endpoint?, options.ca_file?);
    let (region, id, id_key) = (options.region?, options.access_key_id?, options.secret_access_key_file?);
    let (account, account_key) = (options.account?, options.account_key_file?);
    let shared = match &place {
        StoragePlace::Folder(_) => None,
        StoragePlace::Shared(shared) => Some(shared),
    };
    let mut all = Ok(());
    let reached = shared.or_else(|| to_fetch.first().map(|fetch| &fetch.place));
    let service = reached.map(|place| place.service);
    for fetch in to_fetch.iter().filter(|fetch| Some(fetch.place.service) != service) {
        let reached = reached.map(StorePlace::kind).unwrap_or_default();
        let problem = format!(
            "what is {reached} is reached by `tls.storage_options`, which are for one service; fetch from that"
        );
        all = Err(reading.refuse_at(&format!("{}.fetch", fetch.at), problem));
    }
    let kind = match (shared, reached) {
        (None, Some(reached)) => format!("{} and `fetch` {}", place.kind(), reached.kind()),
        _ => place.kind().to_owned(),
    };
    let key = [("secret_file", secret_file.is_some())];
    let both = [("endpoint", endpoint.is_some()), ("ca_file", ca_file.is_some())];
    let s3 =
        [("region", region.is_some()), ("access_key_id", id.is_some()), ("secret_access_key_file", id_key.is_some())];
    let azure = [("account", account.is_some()), ("account_key_file", account_key.is_some())];
    let mut foreign = Vec::new();
    foreign.extend(if shared.is_none() { &key[..] } else { &[] });
    foreign.extend(if service.is_none() { &both[..] } else { &[] });
    foreign.extend(if service == Some(SharedService::S3) { &[] } else { &s3[..] });
    foreign.extend(if service == Some(SharedService::Azure) { &[] } else { &azure[..] });
    for (name, _) in foreign.iter().filter(|(_, is_written)| *is_written) {
        let problem = format!("`tls.storage` is {kind}, for which this key means nothing; take it out");
        all = Err(reading.refuse_at(&at(name), problem));
    }
    let (identity, key_file) = match service {
        Some(SharedService::Azure) => (account, account_key),
        _ => (id, id_key),
    };
    if service == Some(SharedService::S3) && identity.is_some() != key_file.is_some() {
        let missing = if identity.is_some() { "secret_access_key_file" } else { "access_key_id" };
        all =
            Err(reading.refuse_at("tls.storage_options", format!("the other half of the key is missing: `{missing}`")));
    }
    let store = |StorePlace { service, bucket, prefix }: StorePlace| StorePlan {
        service,
        bucket,
        prefix,
        endpoint: endpoint.as_ref().map(|url| url.0.clone()),
        region: region.clone(),
        identity: identity.clone(),
        key_file: key_file.as_ref().map(|file| file.0.clone()),
        ca_file: ca_file.as_ref().map(|file| file.0.clone()),
    };
    let (folder, shared) = match (place, secret_file) {
        (StoragePlace::Folder(folder), _) => (folder, None),
        (StoragePlace::Shared(place), Some(secret)) => (
            options.folder?.0,
            Some(SharedStoragePlan {
                store: store(place),
                secret_file: secret.0,
                share_tickets: options.share_tickets?,
            }),
        ),
        (StoragePlace::Shared(_), None) => {
            let problem = "private keys are stored at others' only if they are sealed: name a file with a secret, the same on each \
                           machine (`openssl rand -base64 -out FILE 48`)";
            return Err(reading.refuse_at(&at("secret_file"), problem));
        }
    };
    let fetched = |Fetch { place, at, after }| FetchPlan { store: store(place), at, after };
    all.map(|()| (folder, shared, to_fetch.into_iter().map(fetched).collect()))
}

/// What [`FetchPlan`] is made of, without how it is reached.
struct Fetch {
    place: StorePlace,
    at: String,
    after: usize,
}

/// Certificates of one's own, ordered ones, and those that are fetched.
type ByKind = (Vec<CertificatePlan>, Vec<AcmePlan>, Vec<Fetch>);

fn lower_certificates(
    entries: Vec<raw::Certificate>,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<ByKind, Told> {
    let (mut own, mut ordered, mut fetched) = (Vec::new(), Vec::new(), Vec::new());
    let (mut seen, mut seen_places) = (Seen::default(), Seen::default());
    let mut all = Ok(());
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("tls.certificates[{index}]");
        let is_own = matches!((&entry.files, &entry.fetch), (Ok(Some(_)), _) | (_, Ok(Some(_))));
        if is_own && matches!(entry.acme, Ok(None)) && entry.hosts.as_ref().is_ok_and(|hosts| !hosts.is_empty()) {
            reading.refuse_at(
                &format!("{at}.hosts"),
                "the names of a certificate of your own are in its file; take the key out",
            );
        }
        let lowered = match (entry.files, entry.fetch, entry.acme) {
            (Ok(Some(files)), Ok(None), Ok(None)) => lower_files(files, &at).map(|files| own.push(files)),
            (Ok(None), Ok(Some(place)), Ok(None)) => {
                if let Some(first) = seen_places.note(place.clone(), &at) {
                    reading.refuse_at(&format!("{at}.fetch"), format!("`{first}` is fetched from there already"));
                }
                fetched.push(Fetch { place, at, after: index });
                Ok(())
            }
            // An overlay has taken docassemble's TLS listener away: it is an overlay of a site without https, then.
            (Ok(None), Ok(None), Ok(Some(_))) if reading.is_docassembles(&at) && !has_tls(listeners) => Ok(()),
            (Ok(None), Ok(None), Ok(Some(acme))) => entry.hosts.and_then(|hosts| {
                let acme = lower_acme(acme, hosts, &at, own.len(), listeners, reading)?;
                if let Some(first) = seen.note(acme.hosts.clone(), &at) {
                    reading.refuse_at(&format!("{at}.hosts"), format!("`{first}` is ordered for these already"));
                }
                ordered.push(acme);
                Ok(())
            }),
            (Ok(None), Ok(None), Ok(None)) => {
                Err(reading.refuse_at(&at, "write `files` of your own, `fetch`, or `hosts` and `acme`"))
            }
            (Ok(_), Ok(_), Ok(_)) => {
                let problem =
                    "a certificate is of your own, is fetched or is ordered: write one of `files`, `fetch` and `acme`";
                Err(reading.refuse_at(&at, problem))
            }
            (Err(told), ..) | (_, Err(told), _) | (.., Err(told)) => Err(told),
        };
        all = all.and(lowered);
    }
    all.map(|()| (own, ordered, fetched))
}

fn lower_files(files: raw::CertificateFiles, at: &str) -> Result<CertificatePlan, Told> {
    Ok(CertificatePlan {
        certificate: files.certificate?.0,
        key: files.key?.0,
        chain: files.chain?.map(|path| path.0),
        at: at.to_owned(),
    })
}

fn lower_acme(
    acme: raw::Acme,
    mut hosts: Vec<CertificateHost>,
    at: &str,
    after: usize,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<AcmePlan, Told> {
    let mut seen = BTreeSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    match hosts.len() {
        0 => {
            reading.refuse_at(
                &format!("{at}.hosts"),
                "name the hosts that it is ordered for, such as `[justice.example.com]`",
            );
        }
        1..=MOST_HOSTS => {}
        _ => {
            let problem = format!("authorities put at most {MOST_HOSTS} names into a certificate; order several");
            reading.refuse_at(&format!("{at}.hosts"), problem);
        }
    }
    let (directory, staging) = (acme.directory?, acme.staging?);
    if staging && directory.is_some() {
        reading.refuse_at(&format!("{at}.acme.staging"), "it is Let's Encrypt's; take it or `directory` out");
    }
    let first = match directory {
        Some(directory) => directory.0,
        None if staging => LETS_ENCRYPT_STAGING.to_owned(),
        None => LETS_ENCRYPT.to_owned(),
    };
    let directories: Vec<_> = [first].into_iter().chain(acme.fallback?.map(|directory| directory.0)).collect();
    if let [first, second] = directories.as_slice()
        && first == second
    {
        reading
            .refuse_at(&format!("{at}.acme.fallback"), "this is the directory that has just failed; name another one");
    }
    let dns_hook = acme.dns_hook?;
    let challenge = challenge(acme.challenge?, &dns_hook, &hosts, at, listeners, reading)?;
    let eab = match acme.eab? {
        Some(eab) => {
            let (key_id, key) = (eab.key_id?, eab.key?);
            if data_encoding::BASE64URL_NOPAD.decode(key.expose().trim_end_matches('=').as_bytes()).is_err() {
                reading.refuse_at(
                    &format!("{at}.acme.eab.key"),
                    "this is no base64url; copy it as the authority shows it",
                );
            }
            Some(EabPlan { key_id, secret: key })
        }
        None => None,
    };
    Ok(AcmePlan {
        hosts,
        email: acme.email?.map(|address| address.0),
        directories,
        challenge,
        dns_hook,
        profile: acme.profile?,
        ca_file: acme.ca_file?.map(|path| path.0),
        eab,
        at: at.to_owned(),
        after,
    })
}

/// The challenge that is `wanted`, or one that hook and listeners allow.
fn challenge(
    wanted: Option<ChallengeKind>,
    hook: &[String],
    hosts: &[CertificateHost],
    at: &str,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<ChallengeKind, Told> {
    let listeners = listeners.as_ref().map_err(|told| *told)?;
    let internet = |address: &ListenAddress| !matches!(address, ListenAddress::Unix(_));
    let listens = |tls: bool| listeners.iter().any(|listener| listener.tls == tls && internet(&listener.address));
    if !listeners.iter().any(|listener| listener.tls) {
        let problem = "no listener would use it; write `tls: true` for one, or take the certificate out";
        return Err(reading.refuse_at(at, problem));
    }
    let chosen = wanted.unwrap_or_else(|| match hook {
        [] if listens(false) => ChallengeKind::Http01,
        [] => ChallengeKind::TlsAlpn01,
        _ => ChallengeKind::Dns01,
    });
    let at_challenge = format!("{at}.acme.challenge");
    match chosen {
        ChallengeKind::Dns01 if hook.is_empty() => {
            let problem = "`dns-01` takes a command that makes records at your DNS provider: name it in `dns_hook`";
            return Err(reading.refuse_at(&at_challenge, problem));
        }
        ChallengeKind::Dns01 => {
            if let Some(address) = hosts.iter().find(|host| host.address().is_some()) {
                let problem = format!(
                    "{address} is an address, which no DNS record proves (RFC 8738, 7); order one of its own for it"
                );
                return Err(reading.refuse_at(&format!("{at}.hosts"), problem));
            }
        }
        ChallengeKind::Http01 | ChallengeKind::TlsAlpn01 => {
            if let Some(host) = hosts.iter().find(|host| host.is_wildcard()) {
                let problem =
                    format!("{host} takes `dns-01` (RFC 8555, 7.1.3): name a command for it in `acme.dns_hook`");
                return Err(reading.refuse_at(&format!("{at}.hosts"), problem));
            }
            if chosen == ChallengeKind::Http01 && !listens(false) {
                let problem = "`http-01` is answered on a listener without TLS, on port 80 of the internet; add one";
                return Err(reading.refuse_at(&at_challenge, problem));
            }
        }
    }
    Ok(chosen)
}

/// Let's Encrypt's limit, which no other authority is known to exceed.
const MOST_HOSTS: usize = 100;
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
