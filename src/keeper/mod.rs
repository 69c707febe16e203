//! What is privileged: binds, reads keys, opens logs, and hands all of it over.
//!
//! The gateway is given sockets, secrets and open files and never fetches them, so that whoever does can be another
//! process that runs as root. Here is what that process does with the system; when it does it is the business of its
//! loop, `process::keeper`. Nothing here reads from the network.

pub mod activation;
pub(crate) mod command;
pub(crate) mod export;
pub(crate) mod folder;
mod import;
pub mod output;
pub mod rotation;
pub mod secrets;
mod self_signed;
pub mod sockets;
mod stick;
#[cfg(test)]
pub(crate) mod testing;
pub mod user;

use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Access, AtFlags, Mode, OFlags};

use crate::{
    admin::AdminSecrets,
    config::{self, Plan},
    files::{Denied, Roots, RootsError},
    telemetry::chain,
    tls::{Certificate, CertificateMaterial, ClientAuthorities, HandedCertificate},
    upstream::StickKey,
};
use output::{LogOutput, OutputError};
use secrets::{SecretFault, UserFiles};
use sockets::{AdminSockets, BindError, BoundListener, Sockets};
use user::User;

/// The access log and the error log, as far as they could be opened.
type Logs = (Option<Result<LogOutput, OutputError>>, Option<Result<LogOutput, OutputError>>);

/// Certificates, the authorities of clients', users, and what the admin endpoint takes, as far as they could be read.
type Secrets = (
    Result<Vec<Arc<CertificateMaterial>>, Vec<SecretFault>>,
    Result<ClientAuthorities, Vec<SecretFault>>,
    Result<UserFiles, Vec<SecretFault>>,
    Result<Option<AdminSecrets>, Vec<SecretFault>>,
);

/// Everything of the system that a [`Plan`] asks for, opened.
#[derive(Debug)]
pub struct Provisions {
    /// In the order of the plan.
    pub listeners: Vec<BoundListener>,
    /// In the order of the plan; self-signed if it names none and has a TLS listener.
    pub certificates: Vec<HandedCertificate>,
    /// What they were read from, in the same order; nothing to whoever they were handed to.
    pub materials: Vec<Arc<CertificateMaterial>>,
    /// By the file of `client_ca`.
    pub client_authorities: ClientAuthorities,
    /// By the file of `basic_auth`.
    pub users: UserFiles,
    pub access_log: Option<LogOutput>,
    /// The file for warnings and errors.
    pub error_log: Option<LogOutput>,
    /// The folder that bodies are spooled in.
    pub spool: OwnedFd,
    pub admin: AdminSockets,
    /// Where the admin endpoint is on TCP.
    pub admin_secrets: Option<AdminSecrets>,
    /// What is never served, whatever `files` says: the configuration, certificates and their storage.
    pub denied: Arc<Denied>,
    /// What `files` of each route may name, in the order of the routes; the last are what log servers may send.
    pub files: Vec<Roots>,
    /// The key of the cookies that name endpoints, where a route has such.
    pub stick: Option<StickKey>,
}

impl Provisions {
    /// Opens everything that `plan` asks for.
    ///
    /// # Errors
    ///
    /// Every fault at once. What could be opened is closed again; files and folders that were made stay.
    pub fn gather(plan: &Plan) -> Result<Self, ProvisionFaults> {
        Self::gather_beside(plan, &mut Sockets::default(), None, None)
    }

    /// Opens everything that `plan` asks for beside what is open already.
    ///
    /// New sockets are added to `sockets`, which keeps those of before as well until it is told what to
    /// [`keep`](Sockets::keep). Whoever serves the plan `held` is handed only what that one has not. What `owner`, the
    /// user that carries the traffic, must be able to write in is made its own.
    ///
    /// # Errors
    ///
    /// Every fault at once.
    pub fn gather_beside(
        plan: &Plan,
        sockets: &mut Sockets,
        held: Option<&Plan>,
        owner: Option<&User>,
    ) -> Result<Self, ProvisionFaults> {
        let access_log = plan.access_log.as_ref().map(|log| LogOutput::open(&log.sink, owner));
        let error_log = plan.error_log.as_ref().map(|log| LogOutput::file(&log.path, owner));
        let (certificates, clients) = (secrets::read(plan), secrets::client_authorities(plan));
        let secrets = (certificates, clients, secrets::users(plan), secrets::admin(plan));
        Self::open(plan, secrets, (access_log, error_log), sockets, held, owner)
    }

    /// Opens everything for another process that is to serve `plan`, which is in force.
    ///
    /// With certificates and the other secrets as they were when it was put in force: what has become of their files since then
    /// is the matter of the next reload. Where a log cannot be opened, lines go on to that of `logs`, which is open still.
    pub fn gather_again(
        plan: &Plan,
        (certificates, clients, users, admin): (
            Vec<Arc<CertificateMaterial>>,
            ClientAuthorities,
            UserFiles,
            Option<AdminSecrets>,
        ),
        logs: (Option<LogOutput>, Option<LogOutput>),
        sockets: &mut Sockets,
        owner: Option<&User>,
    ) -> Result<Self, ProvisionFaults> {
        let or_before =
            |opened: Result<LogOutput, OutputError>, before: Option<LogOutput>, key: &str| match (opened, before) {
                (Err(fault), Some(before)) => {
                    tracing::error!("{key}.path: {fault}; lines go on to the file there was");
                    Ok(before)
                }
                (opened, _) => opened,
            };
        let access_log =
            plan.access_log.as_ref().map(|plan| or_before(LogOutput::open(&plan.sink, owner), logs.0, "access_log"));
        let error_log =
            plan.error_log.as_ref().map(|plan| or_before(LogOutput::file(&plan.path, owner), logs.1, "error_log"));
        let secrets = (Ok(certificates), Ok(clients), Ok(users), Ok(admin));
        Self::open(plan, secrets, (access_log, error_log), sockets, None, owner)
    }

    fn open(
        plan: &Plan,
        (certificates, clients, users, admin): Secrets,
        (access_log, error_log): Logs,
        sockets: &mut Sockets,
        held: Option<&Plan>,
        owner: Option<&User>,
    ) -> Result<Self, ProvisionFaults> {
        let mut faults = Vec::new();

        // Before the sockets: the fewer connections wait in them, the fewer are lost if there is a fault.
        let materials = certificates.unwrap_or_else(|found| {
            faults.extend(found.into_iter().map(ProvisionFault::Secret));
            Vec::new()
        });
        // What has been checked is not parsed again.
        let served = |material: &Arc<CertificateMaterial>| match Certificate::from_material(material) {
            Ok(certificate) => Ok(HandedCertificate::New(certificate)),
            Err(error) => Err(SecretFault::Unusable { at: material.at.clone(), problem: chain(&error) }),
        };
        let certificates = materials
            .iter()
            .map(served)
            .filter_map(|served| served.map_err(|fault| faults.push(ProvisionFault::Secret(fault))).ok());
        let certificates = certificates.collect();
        let client_authorities = clients.unwrap_or_else(|found| {
            faults.extend(found.into_iter().map(ProvisionFault::Secret));
            ClientAuthorities::new()
        });
        let users = users.unwrap_or_else(|found| {
            faults.extend(found.into_iter().map(ProvisionFault::Secret));
            UserFiles::new()
        });
        let admin_secrets = admin.unwrap_or_else(|found| {
            faults.extend(found.into_iter().map(ProvisionFault::Secret));
            None
        });
        let access_log = access_log.transpose().unwrap_or_else(|fault| {
            faults.push(ProvisionFault::AccessLog { fault });
            None
        });
        let error_log = error_log.transpose().unwrap_or_else(|fault| {
            faults.push(ProvisionFault::ErrorLog { fault });
            None
        });
        let spool = spool(&plan.spool.path, owner)
            .map_err(|source| faults.push(ProvisionFault::Spool { path: plan.spool.path.clone(), source }));

        for (position, fault) in sockets.bind(plan, owner) {
            faults.push(match position {
                Some(position) => ProvisionFault::Listener { position, fault },
                None => ProvisionFault::Admin { fault },
            });
        }

        let stick = stick::key(plan).unwrap_or_else(|fault| {
            faults.push(ProvisionFault::Secret(fault));
            None
        });
        let denied = denied(plan).unwrap_or_else(|fault| {
            faults.push(fault);
            Arc::default()
        });
        let files = roots(plan, &denied).unwrap_or_else(|found| {
            faults.extend(found.0);
            Vec::new()
        });

        let spool = match spool {
            Ok(spool) if faults.is_empty() => spool,
            _ => return Err(ProvisionFaults(faults)),
        };
        let (listeners, admin) =
            sockets.hand(plan, held).map_err(|source| ProvisionFaults(vec![ProvisionFault::Descriptors { source }]))?;
        Ok(Self {
            listeners,
            certificates,
            materials,
            client_authorities,
            users,
            access_log,
            error_log,
            spool,
            admin,
            admin_secrets,
            denied,
            files,
            stick,
        })
    }
}

/// Opens what `files` of each route names; whoever sends the files does this, as the user that it is.
///
/// # Errors
///
/// Every folder that cannot be opened. One that is not there is no fault: it may come with the application.
pub fn roots(plan: &Plan, denied: &Arc<Denied>) -> Result<Vec<Roots>, ProvisionFaults> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    for (position, route) in plan.routes.iter().enumerate() {
        match Roots::open(&route.files, denied) {
            Ok((roots, missing)) => {
                for missing in missing {
                    tracing::warn!(route = %route.prefix, "{missing}");
                }
                files.push(roots);
            }
            Err(fault) => faults.push(ProvisionFault::Files { position, fault }),
        }
    }
    let logs: Vec<_> = plan.log_servers().map(|(_, server)| server.folder.clone()).collect();
    match Roots::open(&logs, denied) {
        Ok((roots, missing)) => {
            for missing in missing {
                tracing::warn!("{missing}");
            }
            files.push(roots);
        }
        Err(fault) => faults.push(ProvisionFault::Denied { fault }),
    }
    if faults.is_empty() { Ok(files) } else { Err(ProvisionFaults(faults)) }
}

/// Everything of the system that cannot be had, one a line.
#[derive(Debug)]
pub struct ProvisionFaults(pub Vec<ProvisionFault>);

impl std::error::Error for ProvisionFaults {}

impl fmt::Display for ProvisionFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Something of the system that cannot be had; says the key, what failed and what to do.
///
/// The message is whole: it holds that of the fault within, which is therefore not its `source`.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionFault {
    #[error(transparent)]
    Secret(SecretFault),
    #[error("listeners[{position}].address: {fault}")]
    Listener { position: usize, fault: BindError },
    #[error("access_log.path: {fault}")]
    AccessLog { fault: OutputError },
    #[error("error_log.path: {fault}")]
    ErrorLog { fault: OutputError },
    #[error(
        "spool.path: cannot use the folder {}: {}; name one that the user Vestibule runs as can write in",
        path.display(), source
    )]
    Spool { path: PathBuf, source: io::Error },
    #[error("routes[{position}].files: {fault}")]
    Files { position: usize, fault: RootsError },
    #[error("routes: {fault}: {}", std::error::Error::source(fault).map_or_else(String::new, ToString::to_string))]
    Denied { fault: RootsError },
    #[error("admin: {fault}")]
    Admin { fault: BindError },
    #[error("listeners: a socket cannot be handed over: {source}; raise the limit of open files")]
    Descriptors { source: io::Error },
}

impl ProvisionFault {
    /// The key path in the configuration.
    pub fn at(&self) -> String {
        match self {
            Self::Secret(fault) => fault.at().to_owned(),
            Self::Listener { position, .. } => format!("listeners[{position}].address"),
            Self::AccessLog { .. } => "access_log.path".to_owned(),
            Self::ErrorLog { .. } => "error_log.path".to_owned(),
            Self::Spool { .. } => "spool.path".to_owned(),
            Self::Files { position, .. } => format!("routes[{position}].files"),
            Self::Denied { .. } => "routes".to_owned(),
            Self::Admin { .. } => "admin".to_owned(),
            Self::Descriptors { .. } => "listeners".to_owned(),
        }
    }
}

/// What is never served, whatever `files` says: the configuration, certificates and their storage.
fn denied(plan: &Plan) -> Result<Arc<Denied>, ProvisionFault> {
    let folders = plan.docassemble.iter().flat_map(|docassemble| docassemble.private.iter().cloned());
    let exported = plan.tls.export.iter().flat_map(|export| {
        let files = export.files.iter().flat_map(|files| [&files.certificate, &files.key]);
        export.folder.iter().chain(files).cloned()
    });
    let private = config::dependencies(plan).into_iter().chain([plan.tls.storage.clone()]).chain(folders);
    let private: Vec<_> = private.chain(exported).chain(plan.tls.import.iter().cloned()).collect();
    Denied::new(&private).map(Arc::new).map_err(|fault| ProvisionFault::Denied { fault })
}

/// Opens the spool, made with mode 0700 if only its last part is missing: bodies are nobody else's to read.
fn spool(path: &Path, owner: Option<&User>) -> io::Result<OwnedFd> {
    if owner.is_some()
        && !path.exists()
        && let Some(why) = path.parent().and_then(config::untrusted)
    {
        // Whoever could exchange it for another one, just when it was made, would be given that one.
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("root makes none where it would lie: {why}"),
        ));
    }
    let new = folder::make(path, 0o700)?;
    let folder = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    match owner {
        // One that was there is the operator's: its owner is not ours to change.
        Some(owner) if new => rustix::fs::fchown(&folder, Some(owner.uid()), Some(owner.gid()))?,
        Some(owner) => {
            let found = rustix::fs::fstat(&folder)?;
            if !owner.may_write(found.st_uid, found.st_gid, found.st_mode) {
                let who = format!("the user {} (`user`) cannot write in it", owner.name);
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, who));
            }
        }
        None => rustix::fs::accessat(&folder, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?,
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::config::{AccessLogPlan, AdminPlan, CertificatePlan, LogFormat, LogSink, LoggedQuery};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn log_to(path: PathBuf) -> AccessLogPlan {
        AccessLogPlan {
            sink: LogSink::File(path),
            format: LogFormat::Combined,
            query: LoggedQuery::Names,
            rotate: None,
        }
    }

    #[test]
    fn everything_a_plan_asks_for_is_opened_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = testing::tls_plan(folder.path());
        let (log, admin) = (folder.path().join("log/access.log"), folder.path().join("run/admin.sock"));
        plan.access_log = Some(log_to(log.clone()));
        plan.admin = Some(AdminPlan { socket: Some(admin.clone()), listen: None });

        let provisions = Provisions::gather(&plan).unwrap();

        assert_eq!(provisions.listeners.len(), 1);
        assert_eq!(provisions.listeners[0].plan, plan.listeners[0]);
        assert_eq!(provisions.certificates.len(), 1);
        assert!(provisions.admin.unix.is_some() && provisions.admin.tcp.is_none());
        // The umask of the test may take bits away, but nothing adds any.
        assert_eq!(mode(&log) & !0o640, 0);
        assert_eq!(mode(&admin), 0o600);
        assert_eq!(mode(&plan.spool.path), 0o700);
        rustix::fs::openat(&provisions.spool, "probe", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        assert!(plan.spool.path.join("probe").exists());
    }

    #[test]
    fn root_makes_and_gives_away_no_spool_where_others_could_exchange_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(12345), None).unwrap();
        let owner = User::find("root").unwrap();
        let path = folder.path().join("spool");

        let refused = spool(&path, Some(&owner)).unwrap_err().to_string();

        assert!(refused.contains("12345") && !path.exists(), "{refused}");
        fs::create_dir(&path).unwrap();
        spool(&path, Some(&owner)).unwrap();
    }

    #[test]
    fn every_fault_is_reported_at_once_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let mut plan = testing::tls_plan(folder.path());
        plan.listeners.push(plan.listeners[0].clone());
        plan.listeners[1].address = config::ListenAddress::Unix(file.clone());
        plan.tls.certificates = vec![CertificatePlan {
            certificate: folder.path().join("absent.crt"),
            key: folder.path().join("absent.key"),
            chain: None,
            at: "tls.certificates[0].files".to_owned(),
        }];
        plan.access_log = Some(log_to(folder.path().to_owned()));
        plan.admin = Some(AdminPlan { socket: Some(file.join("admin.sock")), listen: None });
        plan.spool.path = file.clone();

        let faults = Provisions::gather(&plan).unwrap_err();

        let keys: Vec<String> = faults.0.iter().map(ProvisionFault::at).collect();
        assert_eq!(
            keys,
            [
                "tls.certificates[0].files",
                "tls.certificates[0].files",
                "access_log.path",
                "spool.path",
                "listeners[1].address",
                "admin"
            ]
        );
        for fault in &faults.0 {
            assert!(fault.to_string().starts_with(&format!("{}: ", fault.at())), "{fault}");
        }
    }

    #[test]
    fn a_log_that_was_moved_away_is_complete_and_a_new_one_begun() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        fs::write(&path, "kept\n").unwrap();
        let mut before = output::open(&path, None).unwrap();
        fs::rename(&path, &moved).unwrap();

        let mut after = output::open(&path, None).unwrap();
        before.write_all(b"old\n").unwrap();
        after.write_all(b"new\n").unwrap();

        assert_eq!(fs::read_to_string(&moved).unwrap(), "kept\nold\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }
}
