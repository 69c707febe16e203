//! Caddy: `caddy reload`; it rolls its logs itself, and another program is a stop and a start.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tokio::net::TcpStream;

use super::{Change, PATIENCE, Peer, Process, Site, outcome, run, send_signal, until};
use crate::{soak::ledger::Outcome, support::program};

pub(in crate::soak) struct Caddy {
    program: PathBuf,
    folder: PathBuf,
    address: std::net::SocketAddr,
    process: Process,
}

impl Peer for Caddy {
    const NAME: &'static str = "caddy";

    async fn start(site: &Site) -> Option<Self> {
        let program = program("caddy")?;
        configure(site, Change::default());
        let folder = site.path("");
        let process = spawn(&program, &folder);
        let caddy = Self { program, folder, address: site.plain, process };
        caddy.listens().await.unwrap_or_else(|error| panic!("{error}: {}", caddy.process.log()));
        Some(caddy)
    }

    async fn reload(&mut self, site: &Site, change: Change) -> Outcome {
        configure(site, change);
        outcome(self.load(&[]).await)
    }

    async fn take_certificate(&mut self) -> Outcome {
        // The text is the same: without this it would not look at the files.
        outcome(self.load(&["--force"]).await)
    }

    async fn rotate(&mut self, _old: &Path) -> Outcome {
        Outcome::NotPossible("it rolls its logs itself")
    }

    async fn upgrade(&mut self) -> Outcome {
        send_signal(self.process.id(), Signal::TERM);
        if let Err(error) = self.process.ended(PATIENCE).await {
            return Outcome::Failed(error);
        }
        outcome(self.after_kill().await)
    }

    async fn worker(&mut self) -> Result<u32, String> {
        Ok(self.process.id())
    }

    async fn after_kill(&mut self) -> Result<(), String> {
        self.process.ended(PATIENCE).await?;
        self.process = spawn(&self.program, &self.folder);
        self.listens().await
    }

    fn roots(&self) -> Vec<u32> {
        vec![self.process.id()]
    }

    async fn stop(mut self) -> Result<(), String> {
        send_signal(self.process.id(), Signal::TERM);
        match self.process.ended(PATIENCE).await? {
            status if status.success() => Ok(()),
            status => Err(status.to_string()),
        }
    }
}

impl Caddy {
    async fn listens(&self) -> Result<(), String> {
        until("Caddy to listen", PATIENCE, async || TcpStream::connect(self.address).await.is_ok()).await
    }

    async fn load(&self, options: &[&str]) -> Result<(), String> {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .env("HOME", &self.folder)
            .args(["reload", "--adapter", "caddyfile", "--config"])
            .arg(self.folder.join("Caddyfile"))
            .arg("--address")
            .arg(format!("unix/{}", self.folder.join("caddy.sock").display()))
            .args(options);
        run(&mut command).await
    }
}

fn spawn(program: &Path, folder: &Path) -> Process {
    let mut command = Command::new(program);
    command.env("HOME", folder).args(["run", "--adapter", "caddyfile", "--config"]).arg(folder.join("Caddyfile"));
    Process::start(&mut command, folder.join("output"))
}

fn configure(site: &Site, change: Change) {
    let folder = site.folder();
    let (plain, tls, application, websockets) =
        (site.plain.port(), site.tls.port(), site.application(), site.websockets);
    let timeout = change.timeout();
    let application = format!(
        "reverse_proxy unix/{application} {{
            lb_try_duration 30s
            lb_try_interval 100ms
            transport http {{
                response_header_timeout {timeout}s
            }}
        }}"
    );
    let route = change.route().map_or_else(String::new, |prefix| format!("handle {prefix}* {{\n{application}\n}}"));
    let listener = change.listener.map_or_else(String::new, |address| {
        format!("http://:{} {{\n    bind 127.0.0.1\n    import site\n}}", address.port())
    });
    site.replace(
        "Caddyfile",
        &format!(
            "{{
    admin unix/{folder}/caddy.sock
    auto_https off
    log {{
        level WARN
    }}
}}
(site) {{
    log {{
        output file {folder}/access.log
    }}
    handle /ws/* {{
        reverse_proxy {websockets}
    }}
    {route}
    handle {{
        {application}
    }}
}}
http://:{plain} {{
    bind 127.0.0.1
    import site
}}
https://:{tls} {{
    bind 127.0.0.1
    tls {folder}/site.crt {folder}/site.key
    import site
}}
{listener}
"
        ),
    );
}
