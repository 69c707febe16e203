//! The processes behind endpoints.

mod process;
mod supervisord;

pub use process::{NotReady, Process};
pub use supervisord::{ProgramState, Supervisord, SupervisordError};
