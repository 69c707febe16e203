//! What the admin endpoint over TCP counts.

use prometheus_client::encoding::EncodeLabelSet;

use super::{Counter, Metrics};

impl Metrics {
    /// What the admin endpoint over TCP counts in, in the order of [`AdminRefusal::ALL`].
    #[must_use]
    pub fn admin_refusals(&self) -> [Counter; AdminRefusal::ALL.len()] {
        AdminRefusal::ALL.map(|reason| self.admin_refused.get_or_create_owned(&AdminRefused { reason: reason.label() }))
    }
}

/// Why the admin endpoint over TCP refused a request or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdminRefusal {
    /// A browser sent it for a web page.
    Page,
    /// It shows no token, or a wrong one.
    Token,
    /// Its client has shown too many wrong ones.
    Attempts,
    /// Its client has as many connections as it may.
    Connections,
}

impl AdminRefusal {
    pub const ALL: [Self; 4] = [Self::Page, Self::Token, Self::Attempts, Self::Connections];

    fn label(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Token => "token",
            Self::Attempts => "attempts",
            Self::Connections => "connections",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AdminRefused {
    reason: &'static str,
}
