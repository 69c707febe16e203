//! Who is put to the test, each operated as its own manual says.

mod caddy;
mod nginx;
mod vestibule;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Pid, Signal};
use rustls::client::Resumption;
use rustls_pki_types::CertificateDer;

pub(super) use self::{caddy::Caddy, nginx::Nginx, vestibule::Vestibule};
use super::{ledger::Outcome, load::Target};
use crate::support::clients;

/// A front door as its operator sees it. What fails says why; nothing of it waits without a deadline.
pub(super) trait Peer: Sized {
    const NAME: &'static str;

    /// Starts it before `site`, and waits until it serves. `None` where it is not installed.
    async fn start(site: &Site) -> Option<Self>;

    /// Puts the configuration with this number in force; each differs from the one before.
    async fn reload(&mut self, site: &Site, change: Change) -> Outcome;

    /// Has it take the certificate files, which are other ones now.
    async fn take_certificate(&mut self) -> Outcome;

    /// Has it write to a new file, `old` being where the one before is to go.
    async fn rotate(&mut self, old: &Path) -> Outcome;

    /// Has another process of the program file take over.
    async fn upgrade(&mut self) -> Outcome;

    /// The process that is to be killed.
    async fn worker(&mut self) -> Result<u32, String>;

    /// What has to be done for it after that.
    async fn after_kill(&mut self) -> Result<(), String>;

    /// Its processes, without their children.
    fn roots(&self) -> Vec<u32>;

    /// Stops it as gently as it can be.
    async fn stop(self) -> Result<(), String>;
}

/// The folder, the addresses and the certificates that a peer is given.
pub(super) struct Site {
    folder: tempfile::TempDir,
    pub(super) plain: SocketAddr,
    pub(super) tls: SocketAddr,
    application: PathBuf,
    websockets: SocketAddr,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// What the configuration with this number has that others do not.
#[derive(Clone, Copy, Default)]
pub(super) struct Change {
    pub(super) number: usize,
    /// One more plain listener.
    pub(super) listener: Option<SocketAddr>,
}

impl Change {
    /// The first configuration has number 0.
    pub(super) fn number(number: usize) -> Self {
        Self { number, listener: (number % 3 == 1).then(free_port) }
    }

    /// The longest wait for an answer, in seconds.
    pub(super) fn timeout(self) -> usize {
        60 + self.number % 7
    }

    /// A prefix with the same application behind it.
    pub(super) fn route(self) -> Option<String> {
        (self.number % 2 == 1).then(|| format!("/more-{}/", self.number))
    }
}

impl Site {
    pub(super) fn new(folder: tempfile::TempDir, application: PathBuf, websockets: SocketAddr) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "soak");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let site = Self { folder, plain: free_port(), tls: free_port(), application, websockets, authority };
        site.renew();
        site
    }

    /// The unix socket of the application.
    fn application(&self) -> std::path::Display<'_> {
        self.application.display()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn folder(&self) -> std::path::Display<'_> {
        self.folder.path().display()
    }

    pub(super) fn target(&self) -> Target {
        let authority: &CertificateDer<'static> = self.authority.der();
        let (h2, h1) = (clients::client(&[authority], &["h2"]), clients::client(&[authority], &["http/1.1"]));
        Target { plain: self.plain, tls: self.tls, h2: Arc::new(h2), h1: Arc::new(h1) }
    }

    /// Moves a new certificate and its key over those that are there.
    pub(super) fn renew(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &self.authority).unwrap();
        self.replace("site.key", &key.serialize_pem());
        self.replace("site.crt", &certificate.pem());
        certificate.der().clone()
    }

    /// Puts a file in place at once.
    pub(super) fn replace(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// The certificate that a client is shown now.
    pub(super) async fn shown(&self) -> Option<CertificateDer<'static>> {
        let mut client = clients::client(&[self.authority.der()], &["h2"]);
        // A resumed session shows none.
        client.resumption = Resumption::disabled();
        let stream = clients::tls_connect(self.tls, "localhost", client).await.ok()?;
        let (_, session) = stream.get_ref();
        Some(session.peer_certificates()?.first()?.clone().into_owned())
    }

    /// The lines of the access log, over all files that it was in.
    pub(super) fn log(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|file| file.file_name().unwrap().to_string_lossy().starts_with("access.log"));
        logs.flat_map(|log| fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }
}

/// A folder that processes of other users can look into.
pub(super) fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// An address that nobody has, outside of the range that connections take theirs from.
pub(super) fn free_port() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(16_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until `condition` holds.
pub(super) async fn until(
    what: &str,
    patience: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Result<(), String> {
    let end = Instant::now() + patience;
    while !condition().await {
        if Instant::now() > end {
            return Err(format!("not within {patience:?}: {what}"));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// A process may have gone just before: then there is nothing to signal.
pub(super) fn send_signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(process, signal).ok();
}

/// Whether all that the process had has been given back.
pub(super) fn is_gone(process: u32) -> bool {
    match stat(process).map(|(state, _)| state) {
        None => true,
        // The first thread may be gone while others still are in the middle of something.
        Some('Z' | 'X') => fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count) <= 1,
        Some(_) => false,
    }
}

/// State and parent.
fn stat(process: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// `roots` and all below them.
pub(super) fn family(roots: &[u32]) -> Vec<u32> {
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = numbers.filter_map(|process| Some((process, stat(process)?.1))).collect();
    let mut family = roots.to_vec();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        let children = parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child);
        let children: Vec<_> = children.filter(|child| !family.contains(child)).collect();
        family.extend(children);
        next += 1;
    }
    family
}

/// Bytes of memory of `processes`; what they share is counted once.
pub(super) fn memory(processes: &[u32]) -> u64 {
    let pss = |process: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    processes.iter().filter_map(pss).sum::<u64>() * 1024
}

/// Runs `command` to its end.
async fn run(command: &mut tokio::process::Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().await.map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{:?}: {}: {}", command.as_std().get_args().next(), output.status, said.trim()))
}

/// A process with its output in a file, killed with its children when dropped.
struct Process {
    child: std::process::Child,
    log: PathBuf,
}

impl Process {
    fn start(command: &mut Command, log: PathBuf) -> Self {
        let output = fs::File::options().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log }
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for its end.
    async fn ended(&mut self, patience: Duration) -> Result<std::process::ExitStatus, String> {
        let mut status = None;
        let child = &mut self.child;
        until("the process to end", patience, async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await?;
        Ok(status.expect("it has ended"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            for process in family(&[self.id()]) {
                send_signal(process, Signal::KILL);
            }
            drop(self.child.wait());
        }
    }
}

fn outcome(result: Result<(), String>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Done)
}

/// The longest wait for anything that an operator asks for.
const PATIENCE: Duration = Duration::from_secs(20);
