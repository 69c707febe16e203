//! Certificates and keys, read for the gateway.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;

use super::{import, self_signed};
use crate::{
    access::{UserFault, Users},
    admin::{AdminSecrets, Token, TokenFault},
    config::{CertificateHost, Plan, Problem},
    telemetry::chain,
    tls::{
        Awaited, Certificate, CertificateMaterial, ClientAuthorities, MaterialFault, MaterialProblem, SecretBytes,
        acme, read_bounded, shelf::SHELF,
    },
};

/// Reads every certificate of `plan`.
///
/// Where the plan has TLS listeners and names no certificate, self-signed ones take their place: one for each known host,
/// then one for `localhost`. They are kept under `tls.storage` and made again 30 days before they expire. Without a TLS
/// listener nothing is read or made.
///
/// # Errors
///
/// Every file that cannot be read.
pub fn read(plan: &Plan) -> Result<Vec<Arc<CertificateMaterial>>, Vec<SecretFault>> {
    if !plan.listeners.iter().any(|listener| listener.tls) {
        return Ok(Vec::new());
    }
    if plan.tls.is_self_signed() {
        let made = self_signed::for_the_site(plan).map_err(|fault| vec![fault])?;
        return Ok(made.into_iter().map(Arc::new).collect());
    }
    let mut materials = Vec::new();
    let mut faults = Vec::new();
    let substitutes = OnceCell::new();
    for certificate in &plan.tls.certificates {
        match SHELF.read(certificate) {
            Ok(material) => materials.push(material),
            Err(found) => faults.extend(found.into_iter().map(SecretFault::File)),
        }
    }
    // From the last on, so that the places of those before stay.
    for ordered in plan.tls.acme.iter().rev() {
        let substitutes = || substitutes.get_or_init(|| self::substitutes(plan, &materials));
        match awaited(plan, Awaited::Ordered(ordered), &ordered.hosts, substitutes) {
            // Where faults have thinned out the list, places mean nothing and nobody asks.
            Ok(material) => materials.insert(ordered.after.min(materials.len()), Arc::new(material)),
            Err(fault) => faults.push(fault),
        }
    }
    let site: Vec<_> = self_signed::hosts(plan).into_iter().filter_map(CertificateHost::parse).collect();
    for fetched in &plan.tls.fetched {
        let substitutes = || substitutes.get_or_init(|| self::substitutes(plan, &materials));
        match awaited(plan, Awaited::Fetched(fetched), &site, substitutes) {
            Ok(material) => materials.insert(fetched.after.min(materials.len()), Arc::new(material)),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(materials) } else { Err(faults) }
}

/// What the storage has of `awaited`, or what is imported into it; where there is nothing yet, one of `substitutes` that is
/// for most of `hosts`, so that a name more costs the others nothing; a self-signed one where there is none of use.
///
/// One that has expired is still better known to a browser than one of ours.
fn awaited<'s>(
    plan: &Plan,
    awaited: Awaited<'_>,
    hosts: &[CertificateHost],
    substitutes: impl FnOnce() -> &'s Vec<(CertificateMaterial, Certificate)>,
) -> Result<CertificateMaterial, SecretFault> {
    let file = awaited.file(&plan.tls.storage);
    match read_bounded(&file) {
        Ok(bundle) => {
            if let Some(material) = awaited.material(&SecretBytes::new(bundle), &file) {
                return Ok(material);
            }
            tracing::error!(
                file = %file.display(),
                "a certificate that was kept is damaged; another one is served until it has come anew"
            );
        }
        Err(MaterialProblem::Io { source }) if source.kind() == io::ErrorKind::NotFound => {}
        // What is there and cannot be read is not ordered anew behind the operator's back.
        Err(problem) => return Err(SecretFault::Awaited { at: awaited.at().to_owned(), file, problem }),
    }
    if let Awaited::Ordered(ordered) = awaited
        && let Some(bundle) = import::take(&plan.tls, ordered)
        && let Some(material) = awaited.material(&bundle, &file)
    {
        return Ok(material);
    }
    let covered = |certificate: &Certificate| hosts.iter().filter(|host| acme::covers(certificate, host)).count();
    match substitutes().iter().max_by_key(|(_, certificate)| covered(certificate)) {
        Some((material, certificate)) if covered(certificate) > 0 => {
            Ok(CertificateMaterial { at: awaited.at().to_owned(), ..material.clone() })
        }
        _ => self_signed::in_the_meantime(plan, awaited, hosts),
    }
}

/// What can be served in the place of a certificate that has not come yet: those of the operator's own, and those that
/// were ordered for other names.
fn substitutes(plan: &Plan, own: &[Arc<CertificateMaterial>]) -> Vec<(CertificateMaterial, Certificate)> {
    let own =
        own.iter().filter_map(|own| Some((CertificateMaterial::clone(own), Certificate::from_material(own).ok()?)));
    let kept = acme::bundles(&plan.tls.storage).into_iter().filter_map(|file| {
        let bundle = SecretBytes::new(read_bounded(&file).ok()?);
        acme::unfold("", &bundle, &file)
    });
    let now = Timestamp::now();
    own.chain(kept).filter(|(_, certificate)| certificate.not_after() > now).collect()
}

/// What the files of `client_ca` hold.
///
/// # Errors
///
/// Every file that cannot be read.
pub fn client_authorities(plan: &Plan) -> Result<ClientAuthorities, Vec<SecretFault>> {
    let mut authorities = ClientAuthorities::new();
    let mut faults = Vec::new();
    for (position, listener) in plan.listeners.iter().enumerate() {
        let Some(file) = listener.client_ca.as_ref().map(|client_ca| &client_ca.file) else { continue };
        match read_bounded(file) {
            Ok(pem) => drop(authorities.insert(file.clone(), pem)),
            Err(problem) => {
                let at = format!("listeners[{position}].client_ca");
                faults.push(SecretFault::ClientCa { at, file: file.clone(), problem });
            }
        }
    }
    if faults.is_empty() { Ok(authorities) } else { Err(faults) }
}

/// What the files of `basic_auth` hold, by their paths.
pub type UserFiles = BTreeMap<PathBuf, SecretBytes>;

/// Reads the files of `basic_auth`.
///
/// # Errors
///
/// Every file that cannot be read, and every line of them that cannot be taken.
pub fn users(plan: &Plan) -> Result<UserFiles, Vec<SecretFault>> {
    let mut files = UserFiles::new();
    let mut faults = Vec::new();
    for (position, route) in plan.routes.iter().enumerate() {
        let Some(file) = route.access.basic_auth.as_ref().map(|basic| &basic.file) else { continue };
        let at = format!("routes[{position}].basic_auth.file");
        match read_bounded(file).map(SecretBytes::new) {
            Ok(text) => {
                let wrong = Users::parse(text.expose()).err().into_iter().flatten().take(MOST_FAULTS);
                faults.extend(wrong.map(|fault| SecretFault::Users { at: at.clone(), file: file.clone(), fault }));
                files.insert(file.clone(), text);
            }
            Err(problem) => faults.push(SecretFault::UserFile { at, file: file.clone(), problem }),
        }
    }
    if faults.is_empty() { Ok(files) } else { Err(faults) }
}

/// Reads what the admin endpoint takes over TCP; `None` where it is on the unix socket alone.
///
/// # Errors
///
/// Every file that cannot be read, a certificate that cannot be served, and a token that is none or is no secret.
pub fn admin(plan: &Plan) -> Result<Option<AdminSecrets>, Vec<SecretFault>> {
    let Some(listen) = plan.admin.as_ref().and_then(|admin| admin.listen.as_ref()) else { return Ok(None) };
    let unusable = |material: &CertificateMaterial| {
        let error = Certificate::from_material(material).err()?;
        Some(SecretFault::Unusable { at: format!("admin.{}", error.role()), problem: chain(&error) })
    };
    let unreadable = |faults: Vec<MaterialFault>| faults.into_iter().map(SecretFault::File).collect::<Vec<_>>();
    let certificate = CertificateMaterial::read(&listen.certificate()).map_err(unreadable).and_then(|material| {
        match unusable(&material) {
            Some(fault) => Err(vec![fault]),
            None => Ok(material),
        }
    });
    match (certificate, token(&listen.token_file)) {
        (Ok(certificate), Ok(token)) => Ok(Some(AdminSecrets { certificate, token })),
        (certificate, token) => Err(certificate.err().into_iter().flatten().chain(token.err()).collect()),
    }
}

fn token(file: &Path) -> Result<Token, SecretFault> {
    let read = read_bounded(file).map(SecretBytes::new);
    let text = read.map_err(|problem| SecretFault::TokenFile { file: file.to_owned(), problem })?;
    // Who it belongs to, and their group, are the operator's to choose; everybody else is nobody's choice.
    if fs::metadata(file).map_or(true, |found| found.mode() & 0o007 != 0) {
        return Err(SecretFault::OpenToken { file: file.to_owned() });
    }
    Token::parse(text.expose()).map_err(|fault| SecretFault::Token { file: file.to_owned(), fault })
}

/// What is wrong with the files of `basic_auth` and of `admin`, for `vestibule check` and before a start.
pub fn faults(plan: &Plan) -> Vec<Problem> {
    let problem = |fault: SecretFault| {
        let (at, text) = (fault.at().to_owned(), fault.to_string());
        let problem = text.strip_prefix(&format!("{at}: ")).unwrap_or(&text).to_owned();
        Problem { at, problem }
    };
    let faults = [users(plan).err(), admin(plan).err()];
    faults.into_iter().flatten().flatten().map(problem).collect()
}

/// Lines of a file of users that are told of; a whole file of hashes that are not taken says no more than these.
const MOST_FAULTS: usize = 10;

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretFault {
    #[error(transparent)]
    File(MaterialFault),
    #[error(
        "tls.storage: cannot keep a self-signed certificate in {}: {source}; name a folder in `tls.storage` that the user \
         Vestibule runs as can write in, or a certificate in `tls.certificates`",
        folder.display()
    )]
    Storage { folder: PathBuf, source: io::Error },
    #[error("{at}: cannot read {}: {problem}", file.display())]
    Awaited { at: String, file: PathBuf, problem: MaterialProblem },
    #[error(
        "tls.storage: cannot keep the key of `stick` in {}: {source}; name a folder in `tls.storage` that the user Vestibule \
         runs as can write in",
        folder.display()
    )]
    Stick { folder: PathBuf, source: io::Error },
    #[error("{at}: {problem}")]
    Shared { at: String, problem: String },
    #[error("{at}: cannot read {}: {problem}", file.display())]
    ClientCa { at: String, file: PathBuf, problem: MaterialProblem },
    #[error("{at}: cannot read {}: {problem}", file.display())]
    UserFile { at: String, file: PathBuf, problem: MaterialProblem },
    #[error("{at}: {}: {fault}", file.display())]
    Users { at: String, file: PathBuf, fault: UserFault },
    #[error("{at}: {problem}")]
    Unusable { at: String, problem: String },
    #[error("admin.token_file: cannot read {}: {problem}", file.display())]
    TokenFile { file: PathBuf, problem: MaterialProblem },
    #[error("admin.token_file: {0} is open to others than its owner and its group; `chmod o= {0}`", file.display())]
    OpenToken { file: PathBuf },
    #[error("admin.token_file: {}: {fault}", file.display())]
    Token { file: PathBuf, fault: TokenFault },
    #[error("tls.certificates: cannot make a self-signed certificate for `{host}`; name a certificate of your own")]
    Make { host: String, source: rcgen::Error },
}

impl SecretFault {
    /// The key path in the configuration.
    pub fn at(&self) -> &str {
        match self {
            Self::File(fault) => &fault.at,
            Self::Awaited { at, .. }
            | Self::ClientCa { at, .. }
            | Self::Shared { at, .. }
            | Self::UserFile { at, .. }
            | Self::Users { at, .. }
            | Self::Unusable { at, .. } => at,
            Self::TokenFile { .. } | Self::OpenToken { .. } | Self::Token { .. } => "admin.token_file",
            Self::Storage { .. } | Self::Stick { .. } => "tls.storage",
            Self::Make { .. } => "tls.certificates",
        }
    }
}
