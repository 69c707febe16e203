//! What the keeper tells about itself, for `/status`: the gateway knows nothing of it otherwise.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::tls::OrderReport;

/// The processes and the configurations, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The pid that a service manager sees.
    pub pid: u32,
    /// When that process began; an upgrade is no beginning.
    pub since: Option<SystemTime>,
    /// Whether the traffic is in a process of its own; `false` with `--single`.
    pub keeper: bool,
    /// Workers that are alive, the one that accepts connections first.
    pub workers: Vec<WorkerReport>,
    /// Workers that ended without having been told to.
    pub crashes: u64,
    /// Configurations that were applied, the youngest first.
    pub history: Vec<Applied>,
    /// The last configuration that was refused, until one is applied.
    pub refused: Option<Refusal>,
    /// What protects less than it could, one a sentence.
    pub weaknesses: Vec<String>,
    /// Certificates that are ordered.
    pub orders: Vec<OrderReport>,
    /// Programs of ours.
    #[serde(default)]
    pub backends: Vec<BackendReport>,
}

/// A program that we begin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendReport {
    pub name: String,
    /// The oldest first.
    pub instances: Vec<InstanceReport>,
    /// Instances that ended unasked, or did not get ready.
    pub restarts: u64,
    /// How the last one of them ended.
    pub last_exit: Option<String>,
    /// It ends again and again: why that is not told any more in the log.
    pub failing: bool,
}

/// One process of such a program, with all that it has begun.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceReport {
    pub id: u32,
    pub pid: u32,
    pub address: String,
    /// `starting`, `serving`, `lingering`, `draining` or `stopping`.
    pub state: String,
    /// When it began; see [`super::timestamp`].
    pub started: String,
    /// Bytes, as last looked at.
    pub memory: u64,
    /// Percents of a processor, likewise.
    pub cpu: u32,
    /// Why it is about to be replaced.
    pub replaced_for: Option<String>,
    /// Since when it has been there only for clients that were there before it was replaced.
    pub lingers_since: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    pub pid: u32,
    /// When it began; see [`super::timestamp`].
    pub started: String,
    /// Whether it accepts connections; one that does not lives for what it began.
    pub accepts: bool,
}

/// A configuration that was put in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    pub generation: u64,
    /// See [`super::timestamp`].
    pub at: String,
    /// What made us read it: `start`, `SIGHUP`, `/etc/vestibule/vestibule.yml changed`, …
    pub cause: String,
}

/// A configuration that was not put in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// See [`super::timestamp`].
    pub at: String,
    pub cause: String,
    /// Every fault, as `check` prints it.
    pub faults: Vec<String>,
}
