//! What `vestibule check` says about certificates, before anything is served with them.

use std::{collections::HashSet, error::Error, ops::Deref};

use jiff::Timestamp;

use super::{
    Certificate, CertificateFacts, ClientAuthority, Role, read_bounded,
    shelf::{SHELF, Unfit},
};
use crate::config::{CertificatePlan, HostName, ListenerPlan, Plan, Problem};

/// Reads and checks every configured certificate: files, pairs, dates, and whether the site's hosts are covered.
///
/// Without a TLS listener nothing is read: an unused key stays on its disk. Without a certificate there is nothing to
/// check, since self-signed ones will be made for the known hosts.
pub fn check(plan: &Plan) -> Vec<Problem> {
    let Examined { mut faults, warnings } = examine(plan, Timestamp::now());
    faults.extend(warnings);
    faults
}

/// What keeps a certificate from being served at all. One that has expired, or is for another name, is better than a
/// closed door: [`check`] tells, and so does an event at the start.
pub fn faults(plan: &Plan) -> Vec<Problem> {
    examine(plan, Timestamp::now()).faults
}

/// What is right still, and will not be for long: certificates of the operator's own that end soon. That of the admin endpoint
/// is told of here when it has ended, too: it closes no door of the site.
pub fn warnings(plan: &Plan) -> Vec<Problem> {
    let now = Timestamp::now();
    let warning = |entry: &CertificatePlan| {
        let problem = SHELF.certificate(entry).ok()?.ends_soon(now)?.to_string();
        Some(Problem { at: format!("{}.files.{}", entry.at, Role::Certificate), problem })
    };
    let has_tls = plan.listeners.iter().any(|listener| listener.tls);
    let own = plan.tls.certificates.iter().filter(|_| has_tls).filter_map(warning);
    let listen = plan.admin.as_ref().and_then(|admin| admin.listen.as_ref());
    let admin = listen.and_then(|listen| {
        let certificate = SHELF.certificate(&listen.certificate()).ok()?;
        admin_warning(&certificate, now)
    });
    own.chain(admin).collect()
}

/// What is to be told at `now` of the certificate of the admin endpoint.
pub fn admin_warning(certificate: &CertificateFacts, now: Timestamp) -> Option<Problem> {
    let problem = certificate.attention(now)?.to_string();
    Some(Problem { at: format!("admin.{}", Role::Certificate), problem })
}

/// What is to be told at `now` of the certificates that are served.
pub fn findings(plan: &Plan, certificates: &[Certificate], now: Timestamp) -> Vec<Problem> {
    let own: HashSet<&str> = plan.tls.certificates.iter().map(|own| own.at.as_str()).collect();
    let dates = certificates.iter().filter_map(|certificate| {
        // Others are renewed by us.
        let is_own = own.contains(certificate.at());
        let warning = if is_own { certificate.attention(now) } else { certificate.warning(now) }?;
        Some(Problem { at: certificate.at().to_owned(), problem: warning.to_string() })
    });
    let facts: Vec<&CertificateFacts> = certificates.iter().map(Deref::deref).collect();
    dates.chain(uncovered(plan, &facts)).collect()
}

#[derive(Default)]
struct Examined {
    faults: Vec<Problem>,
    warnings: Vec<Problem>,
}

fn examine(plan: &Plan, now: Timestamp) -> Examined {
    let mut examined = Examined { faults: client_authorities(plan), warnings: Vec::new() };
    if plan.tls.certificates.is_empty() || !plan.listeners.iter().any(|listener| listener.tls) {
        return examined;
    }
    let Examined { faults: problems, warnings } = &mut examined;
    let mut certificates = Vec::new();
    for entry in &plan.tls.certificates {
        let at = |role: Role, problem: String| Problem { at: format!("{}.files.{role}", entry.at), problem };
        match SHELF.certificate(entry) {
            Ok(certificate) => {
                warnings.extend(
                    certificate
                        .warning(now)
                        .map(|warning| at(Role::Certificate, format!("{}: {warning}", entry.certificate.display()))),
                );
                certificates.push(certificate);
            }
            Err(Unfit::Unreadable(faults)) => problems.extend(
                faults
                    .into_iter()
                    .map(|fault| at(fault.role, format!("cannot read {}: {}", fault.file.display(), fault.problem))),
            ),
            Err(Unfit::Unusable(faults)) => {
                problems.extend(faults.iter().map(|fault| at(fault.role(), with_cause(fault))));
            }
        }
    }
    // What a certificate that cannot be read would have covered is not known.
    if certificates.len() == plan.tls.certificates.len() {
        let certificates: Vec<&CertificateFacts> = certificates.iter().map(Deref::deref).collect();
        warnings.extend(uncovered(plan, &certificates));
    }
    examined
}

/// What is wrong with the files of `client_ca`.
fn client_authorities(plan: &Plan) -> Vec<Problem> {
    let listeners = plan.listeners.iter().enumerate();
    let problem = |(position, listener): (usize, &ListenerPlan)| {
        let client_ca = listener.client_ca.as_ref()?;
        let file = client_ca.file.display();
        let problem = match read_bounded(&client_ca.file) {
            Ok(pem) => {
                let error = ClientAuthority::new(&pem, client_ca.required).err()?;
                format!("{file}: {}", with_cause(&error))
            }
            Err(problem) => format!("cannot read {file}: {problem}"),
        };
        Some(Problem { at: format!("listeners[{position}].client_ca"), problem })
    };
    listeners.filter_map(problem).collect()
}

fn uncovered<'a>(plan: &'a Plan, certificates: &'a [&'a CertificateFacts]) -> impl Iterator<Item = Problem> + 'a {
    let host = plan.host.iter().map(|host| ("host".to_owned(), host));
    let aliases = plan.aliases.iter().enumerate().map(|(position, host)| (format!("aliases[{position}]"), host));
    let names = || -> Vec<String> {
        certificates.iter().flat_map(|certificate| certificate.names()).map(ToString::to_string).collect()
    };
    let covered = |host: &HostName| certificates.iter().any(|certificate| certificate.covers(host.as_str()));
    host.chain(aliases).filter(move |(_, host)| !covered(host)).map(move |(at, host)| Problem {
        at,
        problem: format!("no certificate is for `{host}`; there are certificates for {}", list(&names())),
    })
}

fn list(names: &[String]) -> String {
    match names.len() {
        0 => "no name at all".to_owned(),
        1..=NAMES => names.join(", "),
        all => format!("{} and {} more", names[..NAMES].join(", "), all - NAMES),
    }
}

/// More of them would hide what the message is about.
const NAMES: usize = 20;

fn with_cause(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rcgen::{PKCS_ECDSA_P256_SHA256, date_time_ymd};

    use super::*;
    use crate::{keeper::testing::tls_plan, tls::testing::Authority};

    /// A plan with the given pairs as its certificates.
    fn plan_with(folder: &Path, pairs: &[(String, String)]) -> Plan {
        let mut plan = tls_plan(folder);
        for (position, (certificate, key)) in pairs.iter().enumerate() {
            let file = |kind: &str| folder.join(format!("{position}.{kind}"));
            fs::write(file("crt"), certificate).unwrap();
            fs::write(file("key"), key).unwrap();
            plan.tls.certificates.push(CertificatePlan {
                certificate: file("crt"),
                key: file("key"),
                chain: None,
                at: format!("tls.certificates[{position}]"),
            });
        }
        plan
    }

    fn texts(plan: &Plan) -> Vec<String> {
        check(plan).into_iter().map(|found| format!("{}: {}", found.at, found.problem)).collect()
    }

    #[test]
    fn a_good_pair_for_the_host_has_no_problem() {
        let folder = tempfile::tempdir().unwrap();
        let pair = Authority::new().issue(&["site.example", "*.site.example"], &PKCS_ECDSA_P256_SHA256);
        let mut plan = plan_with(folder.path(), &[pair]);
        plan.host = HostName::parse("site.example");
        plan.aliases = vec![HostName::parse("www.site.example").unwrap()];

        assert_eq!(texts(&plan), [""; 0]);
    }

    #[test]
    fn every_problem_is_told_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let expired = authority.issue_with(&["old.example"], &PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = date_time_ymd(2021, 1, 1);
        });
        let mismatched = (expired.0.clone(), authority.issue(&["x.example"], &PKCS_ECDSA_P256_SHA256).1);
        let mut plan = plan_with(folder.path(), &[expired.clone(), mismatched, expired]);
        fs::remove_file(folder.path().join("2.key")).unwrap();

        let path = folder.path().display();
        assert_eq!(
            texts(&plan),
            [
                format!(
                    "tls.certificates[1].files.key: the key {path}/1.key does not belong to the certificate {path}/1.crt"
                ),
                format!("tls.certificates[2].files.key: cannot read {path}/2.key: there is no such file"),
                format!(
                    "tls.certificates[0].files.certificate: {path}/0.crt: the certificate expired at 2021-01-01T00:00:00Z: clients \
                     refuse it; replace it"
                ),
            ]
        );

        plan.listeners[0].tls = false;
        assert_eq!(texts(&plan), [""; 0], "nothing is read without a TLS listener");
    }

    #[test]
    fn a_host_that_no_certificate_is_for_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let pair = Authority::new().issue(&["a.example", "*.b.example"], &PKCS_ECDSA_P256_SHA256);
        let mut plan = plan_with(folder.path(), &[pair]);
        plan.host = HostName::parse("b.example");
        plan.aliases = ["x.b.example", "c.example"].map(|host| HostName::parse(host).unwrap()).into();

        assert_eq!(
            texts(&plan),
            [
                "host: no certificate is for `b.example`; there are certificates for a.example, *.b.example",
                "aliases[1]: no certificate is for `c.example`; there are certificates for a.example, *.b.example",
            ]
        );
    }
}
