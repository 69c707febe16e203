//! Certificates and the TLS terms of our listeners.
//!
//! Takes bytes and makes of them what rustls asks for at a handshake: [`Certificate`]s in a [`CertificateStore`], and
//! the [`ServerConfigs`] that choose versions and ciphers. Opens nothing while traffic runs: files are read by
//! [`crate::keeper`] and by `vestibule check`, through [`CertificateMaterial::read`]. Who reads them also checks them; who
//! serves is handed what came of it ([`HandedCertificate`]), and makes a key ready when a handshake first asks for it.

pub mod acme;
mod awaited;
mod certificate;
mod challenges;
mod check;
mod client;
mod config;
pub(crate) mod fetch;
#[cfg(test)]
mod handshakes;
mod info;
mod material;
mod roots;
pub(crate) mod shelf;
pub mod storage;
mod store;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod tickets;

pub use acme::{OrderReport, OrderState};
pub(crate) use awaited::Awaited;
pub use certificate::{Certificate, CertificateError, CertificateFacts, CertificateName, CertificateWarning, Checked};
pub use challenges::{Challenges, PendingChallenge};
pub use check::{admin_warning, check, faults, findings, warnings};
pub use client::{ClientAuthorities, ClientAuthority, ClientAuthorityError};
pub use config::{ServerConfigs, with_one_certificate};
pub use info::TlsInfo;
pub(crate) use material::read_bounded;
pub use material::{
    CertificateMaterial, HandedCertificate, MADE_BY_US, MaterialFault, MaterialProblem, Role, SecretBytes,
};
pub use roots::Roots;
pub use store::{CertificateId, CertificateStore};
pub use stream::TlsStream;
pub use tickets::{LIFETIME_SECONDS, TicketKeys, Ticketer};
