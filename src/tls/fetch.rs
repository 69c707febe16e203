//! Certificates of the operator's own in a bucket, under the names that docassemble has for them.
//!
//! They are looked at again and again, so that whoever puts another pair there has it served. Whatever is there for the
//! moment that cannot be served (half of a new pair, one that has expired, nothing) leaves what is served.
//!
//! | bound | |
//! |---|---|
//! | an object | 64 KiB |
//! | the answer for one object | 30 s |
//! | between two looks | 5 min; 1 min after one in vain |

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    Certificate, CertificateMaterial, Checked, OrderReport, OrderState, SecretBytes,
    acme::{self, Asked, Finding, Told, flight::Severity},
    storage::{Storage, StorageError},
};
use crate::{config::FetchPlan, telemetry};

/// What a certificate is known by that is fetched: a digest of the place.
pub(crate) fn id(plan: &FetchPlan) -> String {
    let digest = digest(&SHA256, plan.store.to_string().as_bytes());
    HEXLOWER.encode(&digest.as_ref()[..16])
}

/// The key of the folder of this machine that what was fetched is kept under, in the form of an ordered one.
pub(crate) fn bundle_key(id: &str) -> String {
    format!("fetched/{id}/bundle.pem")
}

/// One certificate that is fetched.
pub(crate) struct Fetcher {
    id: String,
    plan: FetchPlan,
    store: Storage,
    /// The folder of this machine, so that a start needs no store.
    copies: Storage,
    told: mpsc::Sender<Told>,
    /// What an operator asks.
    asked: mpsc::Receiver<Asked>,
    /// The names of what is kept.
    hosts: Vec<String>,
    /// What was told last.
    announced: Option<SecretBytes>,
    /// Looks in vain, one after the other, and why the last one was.
    failures: u32,
    fault: Option<Fault>,
}

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Store(#[from] StorageError),
    #[error("{0}")]
    Pair(String),
}

impl Fetcher {
    pub(crate) fn new(
        plan: FetchPlan,
        store: Storage,
        copies: Storage,
        told: mpsc::Sender<Told>,
        asked: mpsc::Receiver<Asked>,
    ) -> Self {
        let id = id(&plan);
        Self { id, plan, store, copies, told, asked, hosts: Vec::new(), announced: None, failures: 0, fault: None }
    }

    /// Never ends by itself.
    pub(crate) async fn go_on(mut self) {
        if let Ok(Some(copy)) = self.copies.read(&bundle_key(&self.id)).await
            && let Some((_, certificate)) = acme::unfold(&self.plan.at, &copy, Path::new(""))
        {
            self.hosts = names(&certificate);
        }
        loop {
            let mut wake = self.step().await;
            loop {
                tokio::select! {
                    () = sleep_until(wake) => break,
                    Some(asked) = self.asked.recv() => match asked {
                        Asked::Renew { .. } => break,
                        Asked::Check(found) => {
                            wake = self.step().await;
                            found.send(self.finding().into_iter().collect()).ok();
                        }
                    },
                }
            }
        }
    }

    /// Looks once, tells what comes of it, and answers when to look again.
    async fn step(&mut self) -> Instant {
        let pause = match self.look().await {
            Ok((bundle, certificate)) => {
                self.hosts = names(&certificate);
                self.announce(bundle, &certificate).await;
                (self.failures, self.fault) = (0, None);
                EVERY
            }
            Err(fault) => {
                if self.fault.as_ref().is_none_or(|before| !before.is_like(&fault)) {
                    let (store, error) = (&self.plan.store, &fault as &dyn std::error::Error);
                    tracing::error!(%store, error, "no certificate could be fetched; what is served stays");
                }
                self.failures += 1;
                self.fault = Some(fault);
                AFTER_A_FAULT
            }
        };
        let next = Timestamp::now() + pause;
        let report = OrderReport {
            at: self.plan.at.clone(),
            hosts: self.hosts.clone(),
            fetched_from: Some(self.plan.store.to_string()),
            state: if self.fault.is_none() { OrderState::Issued } else { OrderState::Failing },
            next: Some(next.to_string()),
            failures: self.failures,
            why: self.fault.as_ref().map(ToString::to_string),
            ..OrderReport::default()
        };
        self.told.send(Told::Stands { id: self.id.clone(), report }).await.ok();
        Instant::now() + pause
    }

    /// What is in the store, as it is kept.
    async fn look(&self) -> Result<(SecretBytes, Certificate), Fault> {
        for [certificate_name, key_name, chain_name] in NAMES {
            let Some(certificate) = self.get(certificate_name).await? else { continue };
            let Some(key) = self.get(key_name).await? else { continue };
            let chain = if chain_name.is_empty() { None } else { self.get(chain_name).await? };
            let file = |name: &str| PathBuf::from(format!("{}/{name}", self.plan.store));
            let material = CertificateMaterial {
                at: self.plan.at.clone(),
                certificate: certificate.expose().to_vec(),
                key,
                chain: chain.map(|chain| chain.expose().to_vec()),
                certificate_file: file(certificate_name),
                key_file: file(key_name),
                chain_file: Some(file(chain_name)),
                checked: Checked::default(),
            };
            let certificate =
                Certificate::from_material(&material).map_err(|error| Fault::Pair(telemetry::chain(&error)))?;
            if let Some(warning) = certificate.warning(Timestamp::now()) {
                return Err(Fault::Pair(format!("{}: {warning}", material.certificate_file.display())));
            }
            let bundle = bundle(&material);
            if acme::unfold("", &bundle, Path::new("")).is_none() {
                return Err(Fault::Pair(format!("{}: leave the key alone in it", material.key_file.display())));
            }
            return Ok((bundle, certificate));
        }
        let [nginx, apache] = NAMES.map(|[certificate, key, _]| format!("{certificate} and {key}"));
        Err(Fault::Pair(format!("there is neither {nginx} nor {apache} in {}", self.plan.store)))
    }

    async fn get(&self, name: &str) -> Result<Option<SecretBytes>, Fault> {
        let found = self.store.read(name).await?;
        match found {
            Some(content) if content.expose().len() > LONGEST => {
                Err(Fault::Pair(format!("{}/{name} has more than {LONGEST} bytes", self.plan.store)))
            }
            found => Ok(found),
        }
    }

    /// Keeps `bundle` on this machine, and has it served.
    async fn announce(&mut self, bundle: SecretBytes, certificate: &Certificate) {
        if self.announced.as_ref() == Some(&bundle) {
            return;
        }
        let key = bundle_key(&self.id);
        if self.copies.read(&key).await.ok().flatten().as_ref() != Some(&bundle) {
            let (store, until) = (&self.plan.store, certificate.not_after());
            tracing::info!(%store, hosts = self.hosts.join(", "), %until, "certificate fetched");
            if let Err(error) = self.copies.write(&key, bundle.clone()).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "a certificate that was fetched cannot be kept: after a restart without its store there is none"
                );
                // Tried again at the next look: what a reload reads is the copy.
                self.told.send(Told::Issued { id: self.id.clone(), bundle }).await.ok();
                return;
            }
        }
        // At the first look, too: an agent of before may have ended before it could say so.
        self.told.send(Told::Issued { id: self.id.clone(), bundle: bundle.clone() }).await.ok();
        self.announced = Some(bundle);
    }

    fn finding(&self) -> Option<Finding> {
        let fault = self.fault.as_ref()?;
        Some(Finding {
            name: None,
            severity: Severity::Fault,
            what: fault.to_string(),
            remedy: format!("put a certificate and its key into {}; what is served stays until then", self.plan.store),
        })
    }
}

impl Fault {
    /// An outage is one, whatever it is told by: times are in it.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Store(_), Self::Store(_)) => true,
            (Self::Pair(why), Self::Pair(other)) => why == other,
            _ => false,
        }
    }
}

/// The key, the certificate and its chain, all PEM.
fn bundle(material: &CertificateMaterial) -> SecretBytes {
    let (certificate, key, chain) = material.content();
    let lines = [key, certificate, chain].map(<[u8]>::trim_ascii);
    SecretBytes::new([lines[0], b"\n", lines[1], b"\n", lines[2], b"\n"].concat())
}

fn names(certificate: &Certificate) -> Vec<String> {
    certificate.names().iter().map(ToString::to_string).collect()
}

/// Certificate, key and chain, as docassemble looks for them.
const NAMES: [[&str; 3]; 2] = [["nginx.crt", "nginx.key", ""], ["apache.crt", "apache.key", "apache.ca.pem"]];
const LONGEST: usize = 64 << 10;
const EVERY: Duration = Duration::from_secs(5 * 60);
/// As while one file of a pair is there before the other.
const AFTER_A_FAULT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use rcgen::{PKCS_ECDSA_P256_SHA256, date_time_ymd};

    use super::*;
    use crate::{
        config::{SharedService, StorePlan},
        tls::testing::Authority,
    };

    fn fetcher(store: &Path) -> Fetcher {
        let plan = FetchPlan {
            store: StorePlan {
                service: SharedService::S3,
                bucket: "site".to_owned(),
                prefix: "certs".to_owned(),
                endpoint: None,
                region: None,
                identity: None,
                key_file: None,
                ca_file: None,
            },
            at: "tls.certificates[0]".to_owned(),
            after: 0,
        };
        let (told, _) = mpsc::channel(1);
        let (_, asked) = mpsc::channel(1);
        Fetcher::new(plan, Storage::in_folder(store.to_owned()), Storage::in_folder(store.join("copies")), told, asked)
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_told_with_its_object() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let (other, _) = authority.issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let (expired, expired_key) = authority.issue_with(&["a.example"], &PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = date_time_ymd(2021, 1, 1);
        });
        let large = "x".repeat(LONGEST + 1);
        for (files, told) in [
            (&[][..], "there is neither nginx.crt and nginx.key nor apache.crt and apache.key in s3://site/certs"),
            (&[("nginx.crt", &certificate)], "there is neither nginx.crt and nginx.key nor "),
            (&[("nginx.crt", &other), ("nginx.key", &key)], "s3://site/certs/nginx.key"),
            (
                &[("apache.crt", &expired), ("apache.key", &expired_key)],
                "s3://site/certs/apache.crt: the certificate expired",
            ),
            (
                &[("nginx.crt", &certificate), ("nginx.key", &large)],
                "s3://site/certs/nginx.key has more than 65536 bytes",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in files {
                std::fs::write(folder.path().join(name), content).unwrap();
            }

            let fault = fetcher(folder.path()).look().await.err().unwrap().to_string();

            assert!(fault.contains(told), "{told}\n{fault}");
        }
    }
}
