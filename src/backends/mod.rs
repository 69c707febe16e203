//! The processes behind endpoints.

pub(crate) mod guard;
mod instance;
mod supervisord;

use serde::{Deserialize, Serialize};

pub use instance::{Instance, InstanceState};
pub use supervisord::{ALREADY_STARTED, ProgramInfo, ProgramState, Supervisord, SupervisordError};

/// What a process uses, with all that it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Bytes.
    pub memory: u64,
    /// Percents of one processor, of late.
    pub cpu: u32,
}
