//! nginx: reload by HUP, log files by USR1, another program by USR2 and QUIT.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};

use super::{Change, PATIENCE, Peer, Site, family, is_gone, outcome, run, send_signal, until};
use crate::{soak::ledger::Outcome, soak::scenario::DRAIN, support::program};

pub(in crate::soak) struct Nginx {
    folder: PathBuf,
    master: u32,
    /// The master before, while its workers finish.
    retiring: Option<u32>,
    deadlines: JoinSet<()>,
}

impl Peer for Nginx {
    const NAME: &'static str = "nginx";

    async fn start(site: &Site) -> Option<Self> {
        let program = program("nginx")?;
        configure(site, Change::default());
        let mut command = tokio::process::Command::new(program);
        command.arg("-e").arg(site.path("error.log")).arg("-c").arg(site.path("nginx.conf"));
        // As a daemon: a master whose parent is still there refuses to be replaced.
        run(&mut command).await.unwrap();
        let folder = site.path("");
        until("nginx to say who it is", PATIENCE, async || master(&folder).is_some()).await.unwrap();
        let master = master(&folder).expect("it has just been there");
        let nginx = Self { folder, master, retiring: None, deadlines: JoinSet::new() };
        until("nginx to work", PATIENCE, async || nginx.workers().len() >= 2).await.unwrap();
        Some(nginx)
    }

    async fn reload(&mut self, site: &Site, change: Change) -> Outcome {
        configure(site, change);
        outcome(self.hang_up().await)
    }

    async fn take_certificate(&mut self) -> Outcome {
        outcome(self.hang_up().await)
    }

    async fn rotate(&mut self, old: &Path) -> Outcome {
        let log = self.folder.join("access.log");
        fs::rename(&log, old).unwrap();
        send_signal(self.master, Signal::USR1);
        outcome(until("a new log file", PATIENCE, async || log.exists()).await)
    }

    async fn upgrade(&mut self) -> Outcome {
        outcome(self.replace_master().await)
    }

    async fn worker(&mut self) -> Result<u32, String> {
        self.workers().first().copied().ok_or_else(|| "nginx has no worker".to_owned())
    }

    async fn after_kill(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn roots(&self) -> Vec<u32> {
        let masters = self.retiring.into_iter().chain([self.master]);
        masters.filter(|master| title(*master).starts_with("nginx: master process")).collect()
    }

    async fn stop(mut self) -> Result<(), String> {
        send_signal(self.master, Signal::QUIT);
        let master = self.master;
        // It would wait for the websockets for ever.
        let quit = until("nginx to quit", Duration::from_secs(3), async || is_gone(master)).await;
        self.end().await;
        quit.map_err(|error| format!("{error}; terminated"))
    }
}

impl Nginx {
    /// The workers that accept.
    fn workers(&self) -> Vec<u32> {
        let accepts = |worker: &u32| {
            let title = title(*worker);
            title.starts_with("nginx: worker process") && !title.contains("shutting down")
        };
        family(&[self.master]).into_iter().filter(accepts).collect()
    }

    /// It says nothing when a configuration is in force; that it has other workers says as much.
    async fn hang_up(&mut self) -> Result<(), String> {
        let before = self.workers();
        send_signal(self.master, Signal::HUP);
        let this = &*self;
        until("other workers", PATIENCE, async || {
            let now = this.workers();
            now.len() >= 2 && now.iter().all(|worker| !before.contains(worker))
        })
        .await
    }

    async fn replace_master(&mut self) -> Result<(), String> {
        // With the one before the last still there it refuses to be replaced.
        if let Some(retiring) = self.retiring {
            until("the master before to go", DRAIN + PATIENCE, async || is_gone(retiring)).await?;
        }
        let old = self.master;
        send_signal(old, Signal::USR2);
        let folder = &self.folder;
        let another = || master(folder).filter(|new| *new != old);
        until("another master", PATIENCE, async || another().is_some()).await?;
        self.master = another().ok_or("the new master has gone")?;
        let this = &*self;
        until("its workers", PATIENCE, async || this.workers().len() >= 2).await?;
        send_signal(old, Signal::QUIT);
        self.retiring = Some(old);
        // QUIT waits for websockets without end; its operator does not.
        self.deadlines.spawn(async move {
            let deadline = Instant::now() + DRAIN;
            while !is_gone(old) && Instant::now() < deadline {
                sleep(Duration::from_millis(20)).await;
            }
            if title(old).starts_with("nginx: master process") {
                send_signal(old, Signal::TERM);
            }
        });
        Ok(())
    }

    async fn end(&mut self) {
        for process in self.roots() {
            send_signal(process, Signal::TERM);
            drop(until("nginx to end", PATIENCE, async || is_gone(process)).await);
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        for process in family(&self.roots()) {
            send_signal(process, Signal::KILL);
        }
    }
}

/// The process that the configuration belongs to.
fn master(folder: &Path) -> Option<u32> {
    fs::read_to_string(folder.join("nginx.pid")).ok()?.trim().parse().ok()
}

/// What a process of nginx says that it is.
fn title(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default()
}

fn configure(site: &Site, change: Change) {
    let folder = site.folder();
    let (plain, tls, application, websockets) = (site.plain, site.tls, site.application(), site.websockets);
    let user = if rustix::process::geteuid().is_root() { "user www-data;" } else { "" };
    let listener = change.listener.map_or_else(String::new, |address| format!("listen {address};"));
    let timeout = change.timeout();
    let proxy = format!(
        "proxy_http_version 1.1; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; \
         proxy_set_header X-Forwarded-Proto $scheme; proxy_read_timeout {timeout}s; proxy_send_timeout {timeout}s;"
    );
    let route = change.route().map_or_else(String::new, |prefix| {
        format!("location {prefix} {{ proxy_pass http://application; proxy_set_header Connection \"\"; {proxy} }}")
    });
    site.replace(
        "nginx.conf",
        &format!(
            "{user}
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    log_format short '$request_method $request_uri $status';
    access_log {folder}/access.log short;
    client_max_body_size 200m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    ssl_certificate {folder}/site.crt;
    ssl_certificate_key {folder}/site.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:sessions:1m;
    upstream application {{ server unix:{application}; keepalive 16; }}
    upstream websockets {{ server {websockets}; }}
    server {{
        listen {plain};
        listen {tls} ssl http2;
        {listener}
        location / {{ proxy_pass http://application; proxy_set_header Connection \"\"; {proxy} }}
        {route}
        location /ws/ {{
            proxy_pass http://websockets;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_read_timeout 1d;
        }}
    }}
}}
"
        ),
    );
}
