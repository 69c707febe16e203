//! What holds of any bytes that come from outside, each property once.
//!
//! A property takes bytes as a client, a balancer, an application or a file has them, gets them read as the front door reads
//! them, and panics where something does not hold. It returns whether they were taken. Where an answer can be found in another
//! way it is: slowly, and by the words of the specification.
//!
//! | property | of |
//! |---|---|
//! | [`request`], [`response`] | messages of HTTP/1.1: where they end, what is read out of them, what is written of that |
//! | [`uwsgi`] | a request as WSGI variables |
//! | [`forwarded`] | who the client is, and what an application is told of it |
//! | [`proxy_header`] | the PROXY protocol |
//! | [`path`] | how a path is read, and the route it leads to |
//! | [`file`], [`range`] | which file is opened, and what of it is sent |
//! | [`configuration`], [`docassemble`] | a configuration of ours, and docassemble's |
//!
//! The tests hold each to its seeds in `tests/fuzz/seeds`, and to variations of them. `tests/fuzz` has libFuzzer look for bytes
//! that nobody has thought of. All of it is there for tests and with the feature `fuzzing` only.

mod configuration;
mod file;
mod forwarded;
mod message;
mod path;
mod proxy_header;
#[cfg(test)]
mod tests;
mod uwsgi;

pub use self::{
    configuration::{configuration, docassemble},
    file::{file, range},
    forwarded::forwarded,
    message::{request, response},
    path::path,
    proxy_header::proxy_header,
    uwsgi::uwsgi,
};
#[cfg(test)]
pub(crate) use self::{
    file::selection,
    forwarded::origin,
    path::reading,
    uwsgi::{packet, variables},
};
