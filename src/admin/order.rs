//! What an operator may have a running gateway do.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::config::parse_wait;

/// One order, as it comes from the admin socket or a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Read the configuration anew and apply it; with `dry_run`, only say what would change.
    Reload { dry_run: bool },
    /// Go back to the configuration that was applied `steps` times ago.
    Rollback { steps: u32 },
    /// Say "not ready" for `wait`, so that a load balancer looks elsewhere, then stop.
    Drain { wait: Duration },
    /// Let the program file as it is now on disk take over.
    Upgrade,
    /// Open the access log anew, which has been moved away.
    Reopen,
    /// Order the certificates anew that are ordered, whatever their age.
    Renew,
    /// Look what is in the way of the certificates that are ordered.
    Check,
    /// Replace all instances of the backend whose name has this [`tag`].
    Restart { backend: u32 },
    /// Write the certificates that are ordered to where other programs look for them, and run the commands for that.
    Export,
}

impl Order {
    /// The order that `POST path?query` is; `Ok(None)` where there is none at `path`. What is restarted is known by names, which
    /// are [`super::AdminState`]'s to look up.
    ///
    /// # Errors
    ///
    /// What is wrong with the query, in words.
    pub fn read(path: &str, query: &str) -> Result<Option<Self>, String> {
        let mut argument = match query {
            "" => None,
            query => Some(query.split_once('=').unwrap_or((query, ""))),
        };
        let mut take = |name| argument.take_if(|(found, _)| *found == name).map(|(_, value)| value);
        let order = match path {
            "/reload" => match take("dry_run") {
                None | Some("false") => Self::Reload { dry_run: false },
                Some("" | "true") => Self::Reload { dry_run: true },
                Some(other) => return Err(format!("dry_run is `true` or `false`, not `{other}`")),
            },
            "/rollback" => match take("steps").map_or(Ok(1), str::parse) {
                Ok(steps) if steps > 0 => Self::Rollback { steps },
                _ => return Err("steps is a number from 1 on".to_owned()),
            },
            "/drain" => match take("wait").map_or(Some(WAIT), parse_wait) {
                Some(wait) if wait <= LONGEST_WAIT => Self::Drain { wait },
                _ => return Err("wait is a time such as `10s`, an hour at most".to_owned()),
            },
            "/upgrade" => Self::Upgrade,
            "/reopen" => Self::Reopen,
            "/renew" => Self::Renew,
            "/check" => Self::Check,
            "/export" => Self::Export,
            _ => return Ok(None),
        };
        match argument {
            None => Ok(Some(order)),
            Some((name, _)) => Err(format!("there is no `{name}` for {path}")),
        }
    }

    /// What to `POST` for it.
    pub fn target(self) -> String {
        match self {
            Self::Reload { dry_run: false } => "/reload".to_owned(),
            Self::Reload { dry_run: true } => "/reload?dry_run=true".to_owned(),
            Self::Rollback { steps } => format!("/rollback?steps={steps}"),
            Self::Drain { wait } => format!("/drain?wait={}ms", wait.as_millis()),
            Self::Upgrade => "/upgrade".to_owned(),
            Self::Reopen => "/reopen".to_owned(),
            Self::Renew => "/renew".to_owned(),
            Self::Check => "/check".to_owned(),
            Self::Export => "/export".to_owned(),
            // By its name only.
            Self::Restart { .. } => "/restart/".to_owned(),
        }
    }
}

/// Stands for a name of the configuration where none can be said: see [`Order::Restart`], and what workers say to the keeper.
///
/// FNV-1a. Two names of one kind that share a tag, one pair in four billion, would share what is said of them.
pub fn tag(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |tag, byte| (tag ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// How long a drain says "not ready" before it stops, unless it is told: three probes of most load balancers.
const WAIT: Duration = Duration::from_secs(10);
/// The longest wait of a drain.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// What came of an order, in words: `Err` when it was refused, and then nothing has changed.
pub type Outcome = Result<String, String>;

/// Orders on their way to whoever carries them out, each with where its outcome is awaited.
pub type Orders = mpsc::UnboundedSender<(Order, oneshot::Sender<Outcome>)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_read_as_it_is_asked_for() {
        for order in [
            Order::Reload { dry_run: true },
            Order::Reload { dry_run: false },
            Order::Rollback { steps: 3 },
            Order::Drain { wait: Duration::from_millis(1500) },
            Order::Upgrade,
            Order::Reopen,
            Order::Renew,
            Order::Check,
            Order::Export,
        ] {
            let target = order.target();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            assert_eq!(Order::read(path, query), Ok(Some(order)));
        }
        assert_eq!(Order::read("/rollback", ""), Ok(Some(Order::Rollback { steps: 1 })));
        assert_eq!(Order::read("/nothing", ""), Ok(None));
    }

    #[test]
    fn what_is_no_order_says_why() {
        for (path, query) in [
            ("/rollback", "steps=0"),
            ("/rollback", "steps=x"),
            ("/drain", "wait=10"),
            ("/drain", "wait=2h"),
            ("/reload", "dryrun=true"),
            ("/upgrade", "to=/tmp/x"),
        ] {
            assert!(Order::read(path, query).is_err(), "{path}?{query}");
        }
    }
}
