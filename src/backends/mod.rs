//! The processes behind endpoints.

mod process;
mod supervisord;

pub use process::{NotReady, Process};
pub use supervisord::{ALREADY_STARTED, ProgramInfo, ProgramState, Supervisord, SupervisordError};
