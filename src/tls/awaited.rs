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

    /// The one at `place` among all of them.
    pub(crate) fn of(tls: &'p TlsPlan, place: usize) -> Option<Self> {
        let ordered = tls.acme.get(place).map(Self::Ordered);
        ordered.or_else(|| tls.fetched.get(place.checked_sub(tls.acme.len())?).map(Self::Fetched))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn each_of_all_is_found_at_its_place() {
        let text = "listeners: [{ address: '127.0.0.1:1' }, { address: '127.0.0.1:2', tls: true }]
routes: [{ prefix: /, upstream: a }]
upstreams: { a: { endpoints: ['a:1'] } }
tls: { certificates: [{ fetch: 's3://bucket/one' }, { hosts: [a.example], acme: {} }, { fetch: 's3://bucket/two' }] }";
        let tls = config::parse("/etc/v.yml", text, &|_| None).unwrap_or_else(|error| panic!("{error}")).tls;
        let all: Vec<_> = Awaited::all(&tls).map(Awaited::at).collect();

        assert_eq!(all, ["tls.certificates[1]", "tls.certificates[0]", "tls.certificates[2]"]);
        let found: Vec<_> = (0..).map_while(|place| Awaited::of(&tls, place)).map(Awaited::at).collect();
        assert_eq!(found, all);
    }
}
