//! What the system tells a running gateway.

use std::{error::Error, future::poll_fn, io, path::Path, task::Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Gateway;
use crate::keeper::output;

/// The signals that concern a gateway, caught for as long as the process lives.
pub(crate) struct Signals {
    /// TERM, INT and QUIT.
    stop: [Signal; 3],
    reopen: Signal,
    reload: Signal,
}

async fn one_of(signals: &mut [Signal]) {
    poll_fn(|cx| {
        let came = signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
        if came { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl Gateway {
    /// Catches the signals to stop from here on; before, one of them ends the process where it stands.
    ///
    /// Comes before anybody is told that we listen: whoever is told may send one.
    pub(crate) fn catch_signals(&self) -> io::Result<Signals> {
        let _inside = self.control.enter();
        Ok(Signals {
            stop: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::quit())?],
            reopen: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// Until it is told to stop; a second time, then, ends the process at once.
    pub(crate) fn wait_for(&self, mut signals: Signals, log_file: Option<&Path>) {
        self.control.block_on(async {
            loop {
                tokio::select! {
                    () = one_of(&mut signals.stop) => break,
                    _ = signals.reload.recv() => {
                        tracing::warn!("a reload by SIGHUP is not supported yet: nothing has changed; restart to apply");
                    }
                    _ = signals.reopen.recv() => {
                        let Some(path) = log_file else { continue };
                        match output::open(path) {
                            Ok(file) => self.reopen(file),
                            Err(error) => {
                                tracing::error!(error = &error as &dyn Error, "the access log stays in its old file");
                            }
                        }
                    }
                }
            }
        });
        self.control.spawn(async move {
            one_of(&mut signals.stop).await;
            tracing::warn!("stopped at once by a second signal");
            std::process::exit(1);
        });
    }
}
