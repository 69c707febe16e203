//! What a service manager wants to hear: `sd_notify(3)`, where `NOTIFY_SOCKET` says so, and a pid file, where asked for.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::PathBuf,
    time::Duration,
};

use sd_notify::NotifyState;

use crate::{admin::Refusal, process::pid_file};

/// Tells the service manager how we are. Does nothing where there is none.
pub(super) struct ServiceManager {
    ear: Option<Ear>,
    /// How often it is to hear that we are alive.
    interval: Option<Duration>,
    pid_file: Option<PathBuf>,
}

/// Where the manager listens.
struct Ear {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl ServiceManager {
    /// Writes the pid file, unless it is written: over an upgrade the pid stays the same.
    pub(super) fn new(pid_file: Option<PathBuf>) -> io::Result<Self> {
        if let Some(file) = pid_file.as_ref().filter(|file| !pid_file::is_ours(file)) {
            pid_file::write(file)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", file.display())))?;
        }
        let ear = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let error = match Ear::find(&name) {
                Ok(ear) => return Some(ear),
                Err(error) => error,
            };
            tracing::warn!(socket = ?name, error = &error as &dyn std::error::Error, "the service manager cannot be told anything");
            None
        });
        let watchdog = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero());
        // Two of its signs may be late or lost.
        let interval = watchdog.map(|patience| (patience / 3).max(SHORTEST));
        Ok(Self { ear, interval, pid_file })
    }

    /// We serve; `systemctl status` shows which configuration, and whether another one was refused since.
    pub(super) fn ready(&self, generation: u64, refused: Option<&Refusal>) {
        let refused = refused.map_or_else(String::new, |Refusal { at, faults, .. }| {
            let first = faults.first().map_or("", String::as_str);
            let more = match faults.len() {
                0 | 1 => String::new(),
                faults => format!(" (and {} more)", faults - 1),
            };
            format!("; the one of {at} was refused: {first}{more}")
        });
        let status = format!("serving configuration {generation}{refused}");
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// We are about to serve another configuration, or to be another program. [`Self::ready`] is to follow, whatever
    /// comes of it: with `Type=notify-reload` the manager waits for it.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no monotonic time"),
        }
    }

    /// We stop; `within` is the longest that may take.
    pub(super) fn stopping(&self, within: Duration) {
        let more = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        let status = NotifyState::Status("stopping: requests in flight come to their end");
        self.tell(&[NotifyState::Stopping, status, NotifyState::ExtendTimeoutUsec(more)]);
    }

    /// Gives a sign of life, if any is wanted.
    pub(super) fn alive(&self) {
        if self.interval.is_some() {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// How often it wants to hear from [`Self::alive`].
    pub(super) fn interval(&self) -> Option<Duration> {
        self.interval
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(ear) = &self.ear else { return };
        let lines = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        if let Err(error) = ear.socket.send_to_addr(lines.as_bytes(), &ear.address) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the service manager was not told");
        }
    }

    /// Removes the pid file.
    pub(super) fn ended(&self) {
        if let Some(file) = &self.pid_file {
            pid_file::remove(file);
        }
    }
}

impl Ear {
    /// What `NOTIFY_SOCKET` names: a path, or a name beyond the file system, which begins with `@`.
    fn find(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        // Traffic does not wait for a manager that does not listen, but reloads and crashes do.
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, address })
    }
}

/// How long we wait for a manager that has too much to read.
const PATIENCE: Duration = Duration::from_secs(1);
/// A sign of life more often than that is nobody's wish.
const SHORTEST: Duration = Duration::from_millis(10);
