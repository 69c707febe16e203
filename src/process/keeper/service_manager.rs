//! What a service manager wants to hear: sd_notify(3), where `NOTIFY_SOCKET` says so, and a pid file, where asked for.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::Instant;

/// Tells the service manager how we are. Does nothing where there is none.
pub(super) struct ServiceManager {
    /// Half of the time within which it wants to hear from us.
    watchdog: Option<Duration>,
    next_sign: Instant,
    pid_file: Option<PathBuf>,
}

impl ServiceManager {
    /// Writes the pid file.
    pub(super) fn new(pid_file: Option<PathBuf>) -> io::Result<Self> {
        if let Some(file) = &pid_file {
            fs::write(file, format!("{}\n", process::id()))
                .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", file.display())))?;
        }
        let watchdog = sd_notify::watchdog_enabled().map(|time| time / 2);
        Ok(Self { watchdog, next_sign: Instant::now(), pid_file })
    }

    /// We serve; `generation` is what `systemctl status` shows.
    pub(super) fn ready(&self, generation: u64) {
        let status = format!("serving configuration {generation}");
        tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// We are about to serve another configuration, or to be another program. [`Self::ready`] is to follow.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no monotonic time"),
        }
    }

    /// We stop; `within` is the longest that may take.
    pub(super) fn stopping(&self, within: Duration) {
        let more = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(more)]);
    }

    /// Gives a sign of life where one is due.
    pub(super) fn alive(&mut self) {
        let Some(interval) = self.watchdog else { return };
        let now = Instant::now();
        if now >= self.next_sign {
            self.next_sign = now + interval.min(SIGN);
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// How often [`Self::alive`] wants to be asked.
    pub(super) fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|interval| interval.min(SIGN))
    }

    /// Removes the pid file.
    pub(super) fn ended(&self) {
        if let Some(file) = &self.pid_file {
            remove(file);
        }
    }
}

/// Unless it is somebody else's by now.
fn remove(file: &Path) {
    let ours = fs::read_to_string(file).is_ok_and(|text| text.trim() == process::id().to_string());
    if ours && let Err(error) = fs::remove_file(file) {
        tracing::warn!(file = %file.display(), error = &error as &dyn std::error::Error, "the pid file stays");
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(error = &error as &dyn std::error::Error, "the service manager was not told");
    }
}

/// No rarer than that, whatever the manager would take.
const SIGN: Duration = Duration::from_secs(5);
