//! The processes behind endpoints.

pub(crate) mod guard;
mod instance;
mod supervisord;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use instance::{Instance, InstanceState};
pub use supervisord::{ALREADY_STARTED, ProgramInfo, ProgramState, Supervisord, SupervisordError};

/// Why it is not known what a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmeasured {
    /// It is not there, or hidden from us.
    Hidden,
    /// The process with this number was begun at another time.
    Another,
}

impl fmt::Display for Unmeasured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hidden => {
                "what the program uses is hidden from us in /proc (with systemd, `ProtectProc=default` shows it)"
            }
            Self::Another => {
                "the process with its number was begun at another time than supervisord says (it runs in another container, \
                 or the clock was set since it was begun)"
            }
        })
    }
}

/// What a process uses, with all that it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Bytes.
    pub memory: u64,
    /// Percents of one processor, of late.
    pub cpu: u32,
}
