//! What an operator may have a running gateway do.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// One order, as it comes from the admin socket or a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration anew and apply it; with `dry_run`, only say what would change.
    Reload { dry_run: bool },
    /// Go back to the configuration that was applied `steps` times ago.
    Rollback { steps: u32 },
    /// Say "not ready" for `wait`, so that a load balancer looks elsewhere, then stop.
    Drain { wait: Duration },
    /// Let the program file as it is now on disk take over.
    Upgrade,
}

/// What came of an order, in words: `Err` when it was refused, and then nothing has changed.
pub type Outcome = Result<String, String>;

/// Orders on their way to whoever carries them out, each with where its outcome is awaited.
pub type Orders = mpsc::UnboundedSender<(Order, oneshot::Sender<Outcome>)>;
