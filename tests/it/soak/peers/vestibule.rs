//! Vestibule: its own commands and signals, or nothing but the files changed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{Change, PATIENCE, Peer, Process, Site, outcome, run, send_signal, until};
use crate::{soak::ledger::Outcome, soak::scenario::DRAIN};

pub(in crate::soak) struct Vestibule {
    folder: PathBuf,
    /// What copies are made of.
    built: PathBuf,
    keeper: Process,
    rotations: usize,
}

impl Peer for Vestibule {
    const NAME: &'static str = "vestibule";

    async fn start(site: &Site) -> Option<Self> {
        let spool = site.path("spool");
        fs::create_dir(&spool).unwrap();
        fs::set_permissions(&spool, fs::Permissions::from_mode(0o1777)).unwrap();
        configure(site, Change::default());
        let (folder, built) = (site.path(""), built());
        install(&built, &folder).await.unwrap();
        let mut command = Command::new(folder.join("vestibule"));
        command.args(["serve", "--config"]).arg(folder.join("vestibule.yml"));
        let keeper = Process::start(&mut command, folder.join("events"));
        let mut vestibule = Self { folder, built, keeper, rotations: 0 };
        let ready = vestibule.becomes("ready", async |this| this.admin("/ready").await.is_some()).await;
        ready.unwrap_or_else(|error| panic!("{error}: {}", vestibule.keeper.log()));
        Some(vestibule)
    }

    async fn reload(&mut self, site: &Site, change: Change) -> Outcome {
        outcome(self.reload_by(site, change).await)
    }

    async fn take_certificate(&mut self) -> Outcome {
        // It looks at the files itself.
        Outcome::Done
    }

    async fn rotate(&mut self, old: &Path) -> Outcome {
        let log = self.folder.join("access.log");
        fs::rename(&log, old).unwrap();
        self.rotations += 1;
        // The others it notices by itself.
        if self.rotations % 2 == 1 {
            send_signal(self.keeper.id(), Signal::USR1);
        }
        outcome(until("a new log file", PATIENCE, async || log.exists()).await)
    }

    async fn upgrade(&mut self) -> Outcome {
        if let Err(error) = install(&self.built, &self.folder).await {
            return Outcome::Failed(error);
        }
        outcome(self.run("upgrade").await)
    }

    async fn worker(&mut self) -> Result<u32, String> {
        let status = self.status().await.ok_or("no status")?;
        let workers = status["processes"]["workers"].as_array();
        let accepting = workers.and_then(|workers| workers.iter().find(|worker| worker["accepts"] == true));
        let pid = accepting.and_then(|worker| u32::try_from(worker["pid"].as_u64()?).ok());
        pid.ok_or_else(|| format!("no worker that accepts in {status}"))
    }

    async fn after_kill(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn roots(&self) -> Vec<u32> {
        vec![self.keeper.id()]
    }

    async fn stop(mut self) -> Result<(), String> {
        send_signal(self.keeper.id(), Signal::TERM);
        match self.keeper.ended(DRAIN + PATIENCE).await? {
            status if status.success() => Ok(()),
            status => Err(format!("{status}: {}", last_lines(&self.keeper.log()))),
        }
    }
}

impl Vestibule {
    /// By its command, by a signal, or by nobody.
    async fn reload_by(&mut self, site: &Site, change: Change) -> Result<(), String> {
        let before = self.generation().await;
        configure(site, change);
        match change.number % 4 {
            0 | 2 => return self.run("reload").await,
            1 => send_signal(self.keeper.id(), Signal::HUP),
            _ => {}
        }
        let risen = self.becomes("a higher generation", async |this| this.generation().await > before).await;
        risen.map_err(|error| format!("{error}: {}", last_lines(&self.keeper.log())))
    }

    /// Runs the command `verb` of the program that is installed.
    async fn run(&self, verb: &str) -> Result<(), String> {
        let mut command = tokio::process::Command::new(self.folder.join("vestibule"));
        run(command.args([verb, "--config"]).arg(self.folder.join("vestibule.yml"))).await
    }

    async fn becomes(&mut self, what: &str, mut condition: impl AsyncFnMut(&Self) -> bool) -> Result<(), String> {
        until(what, PATIENCE, async || condition(self).await).await
    }

    async fn generation(&self) -> Option<u64> {
        self.status().await?["generation"].as_u64()
    }

    async fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&self.admin("/status").await?).ok()
    }

    /// The body of the admin socket's answer, if it is 200.
    async fn admin(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.join("admin.sock")).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then(|| crate::support::body(&answer))
    }
}

/// The program under test: the one that `cargo test` has built, unless another one is named.
fn built() -> PathBuf {
    std::env::var_os("VESTIBULE_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_vestibule").into(), PathBuf::from)
}

/// Moves a copy of the program over the one in `folder`.
async fn install(built: &Path, folder: &Path) -> Result<(), String> {
    let (new, place) = (folder.join("vestibule.new"), folder.join("vestibule"));
    // Not by us: a process that is just being started elsewhere in this program would have the file open for writing.
    run(tokio::process::Command::new("cp").arg(built).arg(&new)).await?;
    fs::rename(&new, &place).map_err(|error| format!("{}: {error}", place.display()))
}

fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn configure(site: &Site, change: Change) {
    let folder = site.folder();
    let (plain, tls, application, websockets) = (site.plain, site.tls, site.application(), site.websockets);
    let (timeout, connections) = (change.timeout(), 10_000 + change.number);
    let listener = change.listener.map_or_else(String::new, |address| format!("  - {{ address: '{address}' }}\n"));
    let route = change.route().map_or_else(String::new, |prefix| {
        format!("  - {{ prefix: {prefix}, upstream: application, timeout: {timeout}s }}\n")
    });
    let drain = DRAIN.as_secs();
    site.replace(
        "vestibule.yml",
        &format!(
            "listeners:
  - {{ address: '{plain}' }}
  - {{ address: '{tls}', tls: true }}
{listener}tls:
  storage: {folder}/storage
  certificates: [{{ files: {{ certificate: {folder}/site.crt, key: {folder}/site.key }} }}]
upstreams:
  application: {{ endpoints: ['unix:{application}'], hold: 30s }}
  websockets: {{ endpoints: ['{websockets}'] }}
routes:
  - {{ prefix: /, upstream: application, timeout: {timeout}s, body_limit: 200MiB }}
  - {{ prefix: /ws/, upstream: websockets }}
{route}access_log: {{ path: {folder}/access.log, format: '{{method}} {{target}} {{status}}', query: whole, rotate: null }}
admin: unix:{folder}/admin.sock
spool: {{ path: {folder}/spool }}
limits: {{ connections: {connections} }}
drain: {drain}s
workers: 2
"
        ),
    );
}
