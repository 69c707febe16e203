//! The gateway over real sockets, against real peers: one binary, one module a topic.

mod config;
