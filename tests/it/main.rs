//! The gateway over real sockets, against real peers: one binary, one module a topic.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails it")]

mod access;
mod admin;
mod authorities;
mod backends;
mod bodies;
mod cli;
mod client_certificates;
mod config;
mod demo;
mod descriptors;
mod docassemble;
mod drain;
mod endpoints;
mod fetched;
mod files;
mod flight;
mod forwarding;
mod health;
mod http1;
mod http2;
mod in_place_of_nginx;
mod keeper;
mod limits;
mod logs;
mod many_certificates;
mod memory;
mod ordering;
mod places;
mod programs;
mod queue;
mod reload;
mod routing;
mod scaling;
mod service_managers;
mod shared;
mod soak;
mod support;
mod testssl;
mod tls;
mod upgrade;
mod upstreams;
mod websockets;
mod workers;
mod wsgi;
