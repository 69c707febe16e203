//! Vestibule: the front door for self-hosted Python web applications.

pub mod admin;
pub mod backends;
pub mod cli;
pub mod config;
pub mod demo;
pub mod drain;
pub mod files;
pub mod gateway;
pub mod h1;
pub mod http;
pub mod keeper;
pub mod listener;
pub mod metrics;
pub mod proxy;
pub mod route;
pub mod runtime;
pub mod service;
pub mod spool;
pub mod telemetry;
pub mod tls;
pub mod upstream;
