//! What the system tells the process that a service manager knows.

use std::{future::poll_fn, io, task::Poll};

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal as Caught, SignalKind, signal};

use super::signal_mask;

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Signal {
    /// TERM, INT or QUIT.
    Stop,
    /// HUP.
    Reload,
    /// USR1.
    Reopen,
    /// USR2.
    Upgrade,
}

/// The signals that concern us, caught for as long as the process lives.
pub(crate) struct Signals(Vec<(Signal, Caught)>);

impl Signals {
    /// Catches them from here on, also what was held ([`signal_mask::hold`]); before, most of them end the process where it stands.
    pub(crate) fn catch() -> io::Result<Self> {
        let kinds = [
            (Signal::Stop, SignalKind::terminate()),
            (Signal::Stop, SignalKind::interrupt()),
            (Signal::Stop, SignalKind::quit()),
            (Signal::Reload, SignalKind::hangup()),
            (Signal::Reopen, SignalKind::user_defined1()),
            (Signal::Upgrade, SignalKind::user_defined2()),
        ];
        let caught =
            kinds.into_iter().map(|(meaning, kind)| Ok((meaning, signal(kind)?))).collect::<io::Result<_>>()?;
        signal_mask::release();
        Ok(Self(caught))
    }

    /// Those that have come already.
    pub(super) fn come(&mut self) -> Vec<Signal> {
        std::iter::from_fn(|| self.next().now_or_never()).collect()
    }

    /// The next one; cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|cx| {
            let came =
                self.0.iter_mut().find_map(|(meaning, caught)| caught.poll_recv(cx).is_ready().then_some(*meaning));
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
