//! Looks after one certificate: orders it, renews it in time, and tells how it stands.

use std::{path::Path, sync::Arc, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use instant_acme::{Account, AccountCredentials, CertificateIdentifier, Error};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::sleep,
};

use super::{
    bundle_key,
    client::{Https, Roots},
    flight::{Authority, Dns, Finding, Flight, Handshake, Page, Proof, Severity},
    id, material,
    order::{Favour, OrderError, Ordering, pending_key_key, record_key},
    record::{Advice, Record, due, later},
    shelf::Shelf,
};
use crate::{
    config::{AcmePlan, CertificateHost, ChallengeKind},
    tls::{Certificate, PendingChallenge, SecretBytes},
};

/// How a certificate that is ordered stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct OrderReport {
    /// The key path of its entry in the configuration.
    pub at: String,
    pub hosts: Vec<String>,
    pub state: OrderState,
    /// When it is renewed, or the next attempt is; RFC 3339.
    pub next: Option<String>,
    /// Attempts that have failed one after the other.
    pub failures: u32,
    /// Why the last of them did.
    pub why: Option<String>,
    /// Whose certificate is in force.
    pub issued_by: Option<String>,
    /// What the CA says of a renewal at an unusual time.
    pub explanation: Option<String>,
    /// Why it has not been brought to all programs that are to have it; known to the keeper only.
    pub undeployed: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderState {
    /// An order is under way.
    #[default]
    Ordering,
    /// It is there, and its time has not come.
    Issued,
    /// The last attempt has failed; what there is stays in force.
    Failing,
}

/// What is told of a certificate.
#[derive(Debug)]
pub(crate) enum Told {
    /// It has come, and is kept.
    Issued {
        id: String,
        bundle: SecretBytes,
    },
    Stands {
        id: String,
        report: OrderReport,
    },
}

/// One certificate, and what it takes to look after it.
pub(crate) struct Care {
    id: String,
    plan: AcmePlan,
    roots: Roots,
    shelf: Shelf,
    favours: mpsc::Sender<Favour>,
    told: mpsc::Sender<Told>,
    /// Orders that may be under way at once.
    turns: Arc<Semaphore>,
    /// What an operator asks.
    asked: mpsc::Receiver<Asked>,
}

/// What an operator asks of one certificate.
#[derive(Debug)]
pub(crate) enum Asked {
    /// To be ordered anew, now.
    Renew,
    /// What is in its way.
    Check(oneshot::Sender<Vec<Finding>>),
}

/// What there is.
struct Current {
    certificate: Certificate,
    leaf: CertificateDer<'static>,
}

impl Care {
    #[expect(clippy::too_many_arguments, reason = "what several cares share, and what each has of its own")]
    pub(crate) fn new(
        plan: AcmePlan,
        roots: Roots,
        shelf: Shelf,
        favours: mpsc::Sender<Favour>,
        told: mpsc::Sender<Told>,
        turns: Arc<Semaphore>,
        asked: mpsc::Receiver<Asked>,
    ) -> Self {
        Self { id: id(&plan.hosts), plan, roots, shelf, favours, told, turns, asked }
    }

    /// Never ends by itself.
    pub(crate) async fn go_on(mut self) {
        let mut asked = false;
        loop {
            let wake = match self.step(asked).await {
                Ok(next) => {
                    let seconds = next.as_second().saturating_sub(Timestamp::now().as_second());
                    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
                }
                Err(OrderError { why, .. }) => {
                    // Nothing can be remembered: neither is anything ordered then, or a CA would be asked without end.
                    tracing::error!(hosts = %self.hosts(), why, "this certificate is not looked after for the moment");
                    UNREADABLE
                }
            };
            // Not longer: clocks are set, and machines sleep.
            let rest = sleep(wake.clamp(SHORTEST, LONGEST));
            let mut rest = std::pin::pin!(rest);
            asked = loop {
                tokio::select! {
                    () = &mut rest => break false,
                    Some(asked) = self.asked.recv() => match asked {
                        Asked::Renew => break true,
                        Asked::Check(found) => {
                            found.send(self.check().await).ok();
                        }
                    },
                }
            };
        }
    }

    /// Does what is due, and answers when to look again.
    async fn step(&self, asked: bool) -> Result<Timestamp, OrderError> {
        let mut record = self.record().await?;
        let current = self.current().await?;
        let now = Timestamp::now();
        let is_ours = record.profile == self.plan.profile
            && record.issued_by.as_ref().is_some_and(|directory| self.plan.directories.contains(directory));
        let is_as_wanted = current.is_some() && (is_ours || record.imported);
        let mut due = match &current {
            Some(current) if is_as_wanted => self.due(current, &mut record).await?,
            _ => now,
        };
        if asked {
            due = now;
        }
        if due > now {
            if record.order.take().is_some() {
                // It has come, and that was the last we remembered.
                self.ordering(None).keep(&record).await?;
            }
            self.tell(OrderState::Issued, &record, due).await;
            return Ok(due);
        }
        if let Some(not_before) = record.not_before.filter(|at| *at > now && !asked) {
            self.tell(OrderState::Failing, &record, not_before).await;
            return Ok(not_before);
        }
        if record.order.is_none() && !asked {
            let faults = self.faults().await;
            if !faults.is_empty() {
                return self.grounded(&faults, &mut record).await;
            }
        }
        let Ok(_turn) = self.turns.acquire().await else { return Ok(later(now, 60)) };
        self.tell(OrderState::Ordering, &record, now).await;
        let replaces = current.as_ref().map(|current| current.leaf.as_ref());
        tracing::info!(hosts = %self.hosts(), renewal = current.is_some(), "ordering a certificate");
        let ordering = self.ordering(replaces);
        match ordering.place(&mut record).await {
            Ok((bundle, directory)) => self.issued(bundle, &directory, &mut record).await,
            Err(error) => {
                record.failed(error.why.clone(), error.retry_at, Timestamp::now());
                let next = record.not_before.unwrap_or(now);
                let (why, failures) = (&error.why, record.failures);
                let in_force = if current.is_some() { "the certificate there is" } else { "a self-signed one" };
                tracing::error!(hosts = %self.hosts(), why, failures, %next, "no certificate could be had; {in_force} stays in force");
                ordering.keep(&record).await?;
                self.tell(OrderState::Failing, &record, next).await;
                Ok(next)
            }
        }
    }

    /// What would make the CA refuse, told; a CA of the operator's own may see names otherwise than the internet does.
    async fn faults(&self) -> Vec<String> {
        if self.plan.ca_file.is_some() {
            return Vec::new();
        }
        let (faults, warnings): (Vec<_>, Vec<_>) =
            self.check().await.into_iter().partition(|finding| finding.severity == Severity::Fault);
        for warning in warnings {
            tracing::warn!(hosts = %self.hosts(), "{warning}");
        }
        faults.iter().map(ToString::to_string).collect()
    }

    /// Leaves the CA alone: it would count a failure, and we look again soon.
    async fn grounded(&self, faults: &[String], record: &mut Record) -> Result<Timestamp, OrderError> {
        let why = faults.join("; ");
        let next = later(Timestamp::now(), LOOK_AGAIN);
        if record.last_failure.as_ref().is_none_or(|failure| failure.why != why) {
            for fault in faults {
                tracing::error!(hosts = %self.hosts(), "not ordered yet: {fault}");
            }
        }
        record.grounded(why, next);
        self.ordering(None).keep(record).await?;
        self.tell(OrderState::Failing, record, next).await;
        Ok(next)
    }

    /// The flight check.
    async fn check(&self) -> Vec<Finding> {
        let names: Vec<&str> = self.plan.hosts.iter().map(CertificateHost::as_str).collect();
        let authority = match Https::new(&self.roots) {
            Ok(https) => https.authority(&self.plan.directories[0]).await.unwrap_or_default(),
            Err(_) => Authority::default(),
        };
        let authority = Authority { private: self.plan.ca_file.is_some(), ..authority };
        let dns = match Dns::of_the_system() {
            Ok(dns) => dns,
            Err(error) => return vec![Finding::no_dns(&error)],
        };
        let token = BASE64URL_NOPAD.encode(&std::array::from_fn::<u8, 16, _>(|_| fastrand::u8(..)));
        let page = Page { port: 80, body: format!("{token}.vestibule"), token };
        let handshake = Handshake { port: 443, key_authorization: page.body.clone() };
        let proof = match self.plan.challenge {
            ChallengeKind::Http01 => Proof::Page(&page),
            ChallengeKind::TlsAlpn01 => Proof::Handshake(&handshake),
            ChallengeKind::Dns01 => Proof::Record,
        };
        if self.plan.challenge != ChallengeKind::Dns01 {
            let pending = names.iter().map(|name| PendingChallenge {
                host: (*name).to_owned(),
                kind: self.plan.challenge,
                token: page.token.clone(),
                key_authorization: page.body.clone(),
            });
            self.answer(pending.collect()).await;
        }
        let findings = Flight { names: &names, proof, authority: &authority }.check(&dns).await;
        self.answer(Vec::new()).await;
        findings
    }

    async fn answer(&self, pending: Vec<PendingChallenge>) {
        let (done, answered) = oneshot::channel();
        self.favours.send(Favour::Answer { id: self.id.clone(), pending, done }).await.ok();
        answered.await.ok();
    }

    async fn issued(&self, bundle: SecretBytes, directory: &str, record: &mut Record) -> Result<Timestamp, OrderError> {
        // First of all, so that whatever comes between finds it.
        self.shelf.write(&bundle_key(&self.id), bundle.clone()).await.map_err(storage)?;
        record.succeeded(directory, self.plan.profile.as_deref());
        self.ordering(None).keep(record).await?;
        self.shelf.remove(&pending_key_key(&self.id)).await.map_err(storage)?;
        self.told.send(Told::Issued { id: self.id.clone(), bundle }).await.ok();
        let Some(current) = self.current().await? else {
            return Err(OrderError { why: "what was kept cannot be read".to_owned(), retry_at: None });
        };
        let until = current.certificate.not_after();
        let next = self.due(&current, record).await?;
        tracing::info!(hosts = %self.hosts(), directory, %until, renewed_at = %next, "certificate issued");
        self.tell(OrderState::Issued, record, next).await;
        Ok(next)
    }

    /// When `current` is to be renewed: as the CA advises, or by its age.
    async fn due(&self, current: &Current, record: &mut Record) -> Result<Timestamp, OrderError> {
        let now = Timestamp::now();
        let (from, to) = (current.certificate.not_before(), current.certificate.not_after());
        let by_age = due(from, to, self.share());
        let Ok(identifier) = CertificateIdentifier::try_from(&current.leaf) else { return Ok(by_age) };
        let name = identifier.to_string();
        let known = record.advice.as_ref().filter(|advice| advice.certificate == name);
        if known.is_none_or(|advice| advice.ask_again <= now) {
            match self.advice(&identifier, record).await {
                Ok(advice) => {
                    if advice.as_ref() != record.advice.as_ref() {
                        record.advice = advice;
                        self.ordering(None).keep(record).await?;
                    }
                }
                Err(why) => {
                    tracing::debug!(hosts = %self.hosts(), why, "no advice on the renewal");
                    if let Some(advice) = &mut record.advice {
                        advice.ask_again = later(now, ASK_AGAIN);
                    }
                }
            }
        }
        let advised = record.advice.as_ref().filter(|advice| advice.certificate == name);
        // Whatever is advised, not after its end; and where the answer was lost, by its age.
        Ok(advised.map_or(by_age, |advice| advice.renew_at.min(to)))
    }

    /// What the CA that issued it says about its renewal (RFC 9773); `None` where it says nothing of that kind.
    async fn advice(&self, certificate: &CertificateIdentifier<'_>, record: &Record) -> Result<Option<Advice>, String> {
        let Some(directory) = &record.issued_by else { return Ok(None) };
        let https = Https::new(&self.roots).map_err(|error| error.to_string())?;
        let kept =
            self.shelf.read(&self.ordering(None).account_key(directory)).await.map_err(|error| error.to_string())?;
        let Some(kept) = kept else { return Ok(None) };
        let credentials: AccountCredentials =
            serde_json::from_slice(kept.expose()).map_err(|_| "the account cannot be read".to_owned())?;
        let builder = Account::builder_with_http(Box::new(https.clone()));
        let account = builder.from_credentials(credentials).await.map_err(|error| OrderError::of(error, &https).why)?;
        let (info, again) = match account.renewal_info(certificate).await {
            Ok(told) => told,
            Err(Error::Unsupported(_)) => return Ok(None),
            Err(error) => return Err(OrderError::of(error, &https).why),
        };
        let at = |time: i64| Timestamp::from_second(time).unwrap_or(Timestamp::MAX);
        let window = &info.suggested_window;
        let (start, end) = (at(window.start.unix_timestamp()), at(window.end.unix_timestamp()));
        if end <= start {
            return Err("the window that it suggests ends before it begins".to_owned());
        }
        let name = certificate.to_string();
        let same = record
            .advice
            .as_ref()
            .filter(|advice| advice.certificate == name && (advice.start, advice.end) == (start, end));
        // Chosen once a window: chosen anew at every look it would creep to the window's beginning.
        let renew_at = same.map_or_else(
            || Timestamp::from_second(fastrand::i64(start.as_second()..end.as_second())).unwrap_or(start),
            |advice| advice.renew_at,
        );
        let again = i64::try_from(again.as_secs()).unwrap_or(i64::MAX).clamp(SOONEST_AGAIN, LATEST_AGAIN);
        let explanation = info.explanation_url.filter(|url| url.len() <= 500 && !url.contains(char::is_control));
        if let (None, Some(explanation)) = (same, &explanation) {
            tracing::info!(hosts = %self.hosts(), %start, %end, explanation, "the authority says when to renew");
        }
        let ask_again = later(Timestamp::now(), again);
        Ok(Some(Advice { certificate: name, renew_at, start, end, ask_again, explanation }))
    }

    async fn record(&self) -> Result<Record, OrderError> {
        let kept = self.shelf.read(&record_key(&self.id)).await.map_err(storage)?;
        // One that cannot be read says nothing worth more than a new start.
        Ok(kept.and_then(|bytes| serde_json::from_slice(bytes.expose()).ok()).unwrap_or_default())
    }

    async fn current(&self) -> Result<Option<Current>, OrderError> {
        let Some(kept) = self.shelf.read(&bundle_key(&self.id)).await.map_err(storage)? else { return Ok(None) };
        let material = material(&self.plan, &kept, Path::new(""));
        let certificate = material.and_then(|material| Certificate::from_material(&material).ok());
        Ok(certificate.map(|certificate| {
            let leaf = certificate.key().cert[0].clone().into_owned();
            Current { certificate, leaf }
        }))
    }

    fn ordering<'a>(&'a self, replaces: Option<&'a [u8]>) -> Ordering<'a> {
        let Self { id, plan, roots, shelf, favours, .. } = self;
        Ordering { id, plan, roots, shelf, favours, replaces }
    }

    async fn tell(&self, state: OrderState, record: &Record, next: Timestamp) {
        let report = OrderReport {
            at: self.plan.at.clone(),
            hosts: self.plan.hosts.iter().map(ToString::to_string).collect(),
            state,
            next: Some(next.to_string()),
            failures: record.failures,
            why: record.last_failure.as_ref().map(|failure| failure.why.clone()),
            issued_by: record.issued_by.clone(),
            explanation: record.advice.as_ref().and_then(|advice| advice.explanation.clone()),
            undeployed: None,
        };
        self.told.send(Told::Stands { id: self.id.clone(), report }).await.ok();
    }

    fn hosts(&self) -> String {
        self.plan.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// What sets this certificate apart from others: the same after every restart.
    fn share(&self) -> f64 {
        let digest = self.id.rsplit('-').next().and_then(|digest| u16::from_str_radix(digest.get(..4)?, 16).ok());
        f64::from(digest.unwrap_or(0)) / f64::from(u16::MAX)
    }
}

fn storage(error: std::io::Error) -> OrderError {
    OrderError { why: format!("the storage (`tls.storage`): {error}"), retry_at: None }
}

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10 * 60);
/// After a storage that could not be read or written.
const UNREADABLE: Duration = Duration::from_secs(60);
/// Seconds until it is looked again whether a CA would refuse: those who mend a record want to see it, and nobody counts.
const LOOK_AGAIN: i64 = 3 * 60;
/// Seconds until an advice that could not be had is asked for again: a quarter of a day.
const ASK_AGAIN: i64 = 6 * 3600;
/// Bounds to what a CA says about that (RFC 9773, 4.3.2).
const SOONEST_AGAIN: i64 = 60;
const LATEST_AGAIN: i64 = 24 * 3600;
