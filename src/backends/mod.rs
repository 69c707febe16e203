//! The processes behind endpoints.

pub(crate) mod guard;
mod instance;
mod supervisord;

pub use instance::{Instance, InstanceState};
pub use supervisord::{ALREADY_STARTED, ProgramInfo, ProgramState, Supervisord, SupervisordError};
