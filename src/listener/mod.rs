//! To come.

pub mod proxy_protocol;
