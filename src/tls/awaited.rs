//! Certificates that come while we run: what the agent has kept of them, and the keeper serves.

use std::path::{Path, PathBuf};

use super::{CertificateMaterial, SecretBytes, acme, fetch};
use crate::config::{AcmePlan, FetchPlan, TlsPlan};

/// Where a certificate comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Awaited<'p> {
    Ordered(&'p AcmePlan),
    Fetched(&'p FetchPlan),
}

impl<'p> Awaited<'p> {
    /// Those of `tls`.
    pub(crate) fn all(tls: &'p TlsPlan) -> impl Iterator<Item = Self> {
        tls.acme.iter().map(Self::Ordered).chain(tls.fetched.iter().map(Self::Fetched))
    }

    /// The key path of its entry in the configuration.
    pub(crate) fn at(self) -> &'p str {
        match self {
            Self::Ordered(plan) => &plan.at,
            Self::Fetched(plan) => &plan.at,
        }
    }

    /// What it is known by; none of one kind is like one of the other.
    pub(crate) fn id(self) -> String {
        match self {
            Self::Ordered(plan) => acme::id(&plan.hosts),
            Self::Fetched(plan) => fetch::id(plan),
        }
    }

    /// The file in the folder `storage` of this machine that has its key and its chain.
    pub(crate) fn file(self, storage: &Path) -> PathBuf {
        match self {
            Self::Ordered(_) => acme::bundle_file(storage, &self.id()),
            Self::Fetched(_) => storage.join(fetch::bundle_key(&self.id())),
        }
    }

    /// What `bundle` holds of it; `None` if it is not whole, or for other names.
    pub(crate) fn material(self, bundle: &SecretBytes, file: &Path) -> Option<CertificateMaterial> {
        match self {
            Self::Ordered(plan) => acme::material(plan, bundle, file),
            Self::Fetched(plan) => acme::unfold(&plan.at, bundle, file).map(|(material, _)| material),
        }
    }
}
