//! What is behind the peer: gunicorn, which can be started anew at the same address, and an echo for websockets.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
};

use super::{
    job::Large,
    peers::{send_signal, until},
};
use crate::support::{Peer, program};

/// gunicorn with threads, and the application of the soak in it.
pub(super) struct Gunicorn {
    program: PathBuf,
    folder: PathBuf,
    pub(super) socket: PathBuf,
    process: Option<Peer>,
}

impl Gunicorn {
    /// Starts it with its files in `folder`. `None` where it is not installed.
    pub(super) async fn start(folder: &Path, large: &Large) -> Option<Self> {
        let program = program("gunicorn")?;
        fs::write(folder.join("application.py"), include_str!("application.py")).unwrap();
        fs::write(folder.join("block"), large.pattern()).unwrap();
        fs::write(folder.join("blocks"), large.blocks.to_string()).unwrap();
        let mut gunicorn =
            Self { program, folder: folder.to_owned(), socket: folder.join("application.sock"), process: None };
        gunicorn.begin().await.unwrap();
        Some(gunicorn)
    }

    async fn begin(&mut self) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command
            .current_dir(&self.folder)
            .arg("--bind")
            .arg(format!("unix:{}", self.socket.display()))
            // gthread, but for its end.
            .args(["--worker-class", "application.Worker", "--threads", "16", "--graceful-timeout", "30"])
            // When it stops it reads no more from connections that it keeps: what was sent on them is lost, whoever
            // sent it. Without any it loses nothing.
            .args(["--keep-alive", "0", "application:application"]);
        self.process = Some(Peer::start(&mut command, &self.folder.join("gunicorn.log")));
        until("gunicorn to listen", PATIENCE, async || UnixStream::connect(&self.socket).await.is_ok()).await
    }

    /// As a service manager does it: TERM, wait for its end, start.
    pub(super) async fn restart(&mut self) -> Result<(), String> {
        let mut process = self.process.take().expect("it is running between restarts");
        send_signal(process.id(), rustix::process::Signal::TERM);
        until("gunicorn to end", PATIENCE, async || process.has_ended()).await?;
        self.begin().await
    }
}

/// Sends every message back.
pub(super) struct Echo {
    pub(super) address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Echo {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut sockets = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                sockets.spawn(echo(stream));
            }
        });
        Self { address, _serving: serving }
    }
}

async fn echo(stream: TcpStream) {
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Requests in it may take their time.
const PATIENCE: Duration = Duration::from_secs(40);
