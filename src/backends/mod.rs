//! The processes behind endpoints.

pub(crate) mod guard;
mod instance;
mod process;
mod supervisord;

pub use instance::{Instance, InstanceState};
pub use process::{NotReady, Process};
pub use supervisord::{ProgramState, Supervisord, SupervisordError};
