//! The processes: a keeper that holds what must not be lost, and a worker that carries the traffic.

mod link;
mod message;
mod signals;

pub(crate) use signals::Signals;
