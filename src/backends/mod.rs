//! The processes behind endpoints.

mod process;

pub use process::{NotReady, Process};
