//! Looks after one certificate: orders it, renews it in time, and tells how it stands.

use std::{
    cell::{Cell, RefCell},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use instant_acme::{Account, AccountCredentials, CertificateIdentifier, Error};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    account_key, bundle_key,
    client::Https,
    flight::{Authority, Dns, Finding, Flight, Handshake, Page, Proof, Severity},
    id,
    lease::Claim,
    lease_key, material,
    order::{ErrorKind, Favour, OrderError, Ordering, kept, pending_key_key, record_key, said},
    record::{Advice, Failure, Record, due, later},
    turns::Turns,
};
use crate::{
    config::{AcmePlan, CertificateHost, ChallengeKind},
    tls::{Certificate, PendingChallenge, Roots, SecretBytes, storage::Storage},
};

/// How a certificate that is ordered stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct OrderReport {
    /// The key path of its entry in the configuration.
    pub at: String,
    pub hosts: Vec<String>,
    /// Where it is fetched from, if it is not ordered.
    pub fetched_from: Option<String>,
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
    storage: Storage,
    /// The folder of this machine, for a copy of what is in a storage that is shared: a start needs nobody else then.
    copies: Option<Storage>,
    favours: mpsc::Sender<Favour>,
    told: mpsc::Sender<Told>,
    /// Orders that may be under way at once.
    turns: Arc<Turns>,
    /// What an operator asks.
    asked: mpsc::Receiver<Asked>,
    /// When a CA was asked last for advice that it may not give, and how long it is not asked again.
    asked_for_advice: Cell<Option<(Instant, Duration)>>,
    /// The digest of the bundle that was told last.
    announced: RefCell<Vec<u8>>,
    has_brought_along: Cell<bool>,
}

/// What an operator asks of one certificate.
#[derive(Debug)]
pub(crate) enum Asked {
    /// To be ordered anew, now, and before that, with `roll`, to change the key of its account.
    Renew { roll: bool },
    /// What is in its way.
    Check(oneshot::Sender<Vec<Finding>>),
}

/// What was found by looking.
enum Look {
    /// Nothing is to be done before then.
    Rest(Timestamp),
    /// To be ordered, or, where it has come, to be forgotten that it was.
    Due(Box<Due>),
}

struct Due {
    record: Record,
    current: Option<Current>,
    has_come: bool,
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
        storage: Storage,
        copies: Option<Storage>,
        favours: mpsc::Sender<Favour>,
        told: mpsc::Sender<Told>,
        turns: Arc<Turns>,
        asked: mpsc::Receiver<Asked>,
    ) -> Self {
        let (asked_for_advice, announced, has_brought_along) = <_>::default();
        Self {
            id: id(&plan.hosts),
            plan,
            roots,
            storage,
            copies,
            favours,
            told,
            turns,
            asked,
            asked_for_advice,
            announced,
            has_brought_along,
        }
    }

    /// Never ends by itself.
    pub(crate) async fn go_on(mut self) {
        let mut asked = false;
        let mut claim = Claim::new(&self.storage, lease_key(&self.id));
        // Looks in vain, one after the other.
        let mut outage = 0;
        // Another machine may have put something there.
        let longest = if self.storage.is_shared() { LONGEST_SHARED } else { LONGEST };
        loop {
            let wake = match self.step(&mut claim, asked).await {
                Ok(next) => {
                    outage = 0;
                    let seconds = next.as_second().saturating_sub(Timestamp::now().as_second());
                    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
                }
                Err(OrderError { why, .. }) => {
                    // Nothing can be remembered: neither is anything ordered then, or a CA would be asked without end.
                    if outage == 0 {
                        tracing::error!(hosts = %self.hosts(), why, "this certificate is not looked after for the moment; it is served on");
                    }
                    outage += 1;
                    let now = Timestamp::now();
                    let last_failure = Some(Failure { at: now, why });
                    let record = Record { failures: outage, last_failure, ..Record::default() };
                    self.tell(OrderState::Failing, &record, later(now, UNREADABLE)).await;
                    Duration::from_secs(UNREADABLE.unsigned_abs())
                }
            };
            // Not longer: clocks are set, and machines sleep.
            let rest = sleep(wake.clamp(SHORTEST, longest));
            let mut rest = std::pin::pin!(rest);
            asked = loop {
                tokio::select! {
                    () = &mut rest => break false,
                    Some(asked) = self.asked.recv() => match asked {
                        Asked::Renew { roll } => {
                            if roll {
                                self.roll().await;
                            }
                            break true;
                        }
                        Asked::Check(found) => {
                            found.send(self.check().await).ok();
                        }
                    },
                }
            };
            // Whoever asked more than once wants one certificate.
            while let Ok(again) = self.asked.try_recv() {
                match again {
                    Asked::Renew { .. } => asked = true,
                    Asked::Check(found) if found.is_closed() => {}
                    Asked::Check(found) => {
                        found.send(self.check().await).ok();
                    }
                }
            }
        }
    }

    /// Does what is due, and answers when to look again.
    async fn step(&self, claim: &mut Claim, asked: bool) -> Result<Timestamp, OrderError> {
        if !self.has_brought_along.get() {
            self.bring_along().await?;
            self.has_brought_along.set(true);
        }
        if let Look::Rest(next) = self.look(asked).await? {
            return Ok(next);
        }
        let Some(mut lease) = claim.take().await.map_err(|error| kept(&error))? else {
            let (record, next) = (self.record().await?, later(Timestamp::now(), OTHERS));
            self.tell(OrderState::Ordering, &record, next).await;
            return Ok(next);
        };
        let ordered = lease.during(async {
            // Another machine may have done it meanwhile.
            match self.look(asked).await? {
                Look::Rest(next) => Ok(next),
                Look::Due(mut due) if due.has_come => {
                    due.record.order = None;
                    self.ordering(None).keep(&mut due.record).await?;
                    Ok(Timestamp::now())
                }
                Look::Due(due) => Box::pin(self.place(asked, due.record, due.current)).await,
            }
        });
        let ordered = ordered.await;
        lease.give_up().await;
        if let Some(ordered) = ordered {
            return ordered;
        }
        // What is in the storage is the other machine's.
        self.ordering(None).answer_here(Vec::new()).await.ok();
        let late = "the storage (`tls.storage`) did not answer for so long that another machine may order; broken off";
        Err(said(&late))
    }

    /// Whether anything is to be done; that nothing is has been told.
    async fn look(&self, asked: bool) -> Result<Look, OrderError> {
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
        if asked || record.wanted {
            due = now;
        }
        if due > now && record.order.is_none() {
            self.tell(OrderState::Issued, &record, due).await;
            return Ok(Look::Rest(due));
        }
        if let Some(not_before) = record.rests_until(now).filter(|_| !asked) {
            self.tell(OrderState::Failing, &record, not_before).await;
            return Ok(Look::Rest(not_before));
        }
        // It has come, and that was the last that is remembered.
        let has_come = due > now;
        Ok(Look::Due(Box::new(Due { record, current, has_come })))
    }

    /// Orders, with the lease.
    async fn place(&self, asked: bool, mut record: Record, current: Option<Current>) -> Result<Timestamp, OrderError> {
        let now = Timestamp::now();
        record.wanted |= asked;
        if record.order.is_none() && !record.wanted {
            let faults = self.faults().await;
            if !faults.is_empty() && !record.is_grounded_for_long(now) {
                return self.grounded(&faults, &mut record).await;
            }
        }
        let _turn = self.turns.one().await;
        self.tell(OrderState::Ordering, &record, now).await;
        let replaces = current.as_ref().map(|current| current.leaf.as_ref());
        tracing::info!(hosts = %self.hosts(), renewal = current.is_some(), "ordering a certificate");
        let ordering = self.ordering(replaces);
        match ordering.place(&mut record).await {
            Ok((bundle, directory)) => self.issued(bundle, &directory, &mut record).await,
            Err(OrderError { why, retry_at: Some(next), kind: ErrorKind::Held }) => {
                tracing::warn!(hosts = %self.hosts(), why, %next, "not ordered yet, to stay within the limits of the authority");
                record.hold(why, next);
                ordering.keep(&mut record).await?;
                self.tell(OrderState::Failing, &record, next).await;
                Ok(next)
            }
            Err(error) => {
                record.failed(error.why.clone(), error.retry_at, Timestamp::now());
                let next = record.not_before.unwrap_or(now);
                let (why, failures) = (&error.why, record.failures);
                let in_force = if current.is_some() { "the certificate there is" } else { "a self-signed one" };
                tracing::error!(hosts = %self.hosts(), why, failures, %next, "no certificate could be had; {in_force} stays in force");
                ordering.keep(&mut record).await?;
                self.tell(OrderState::Failing, &record, next).await;
                Ok(next)
            }
        }
    }

    /// Changes the key of the account, while nobody orders with it.
    async fn roll(&self) {
        // Or what is asked in a loop would be as many keys.
        if !self.record().await.is_ok_and(|record| record.held_back(Timestamp::now()).is_none()) {
            return;
        }
        let _turns = self.turns.all().await;
        for directory in &self.plan.directories {
            if let Err(OrderError { why, .. }) = self.ordering(None).roll(directory).await {
                tracing::error!(directory, why, "the key of the account was not changed");
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
        record.ground(why, next);
        self.ordering(None).keep(record).await?;
        self.tell(OrderState::Failing, record, next).await;
        Ok(next)
    }

    /// The flight check.
    async fn check(&self) -> Vec<Finding> {
        let _look = self.turns.look().await;
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
            if let Err(error) = self.ordering(None).answer(pending.collect(), Some(&page.token)).await {
                tracing::debug!(hosts = %self.hosts(), error, "other machines do not answer for the check");
            }
        }
        let findings = Flight { names: &names, proof, authority: &authority }.check(&dns).await;
        self.ordering(None).answer(Vec::new(), Some(&page.token)).await.ok();
        findings
    }

    async fn issued(&self, bundle: SecretBytes, directory: &str, record: &mut Record) -> Result<Timestamp, OrderError> {
        // First of all, so that whatever comes between finds it.
        self.storage.write(&bundle_key(&self.id), bundle.clone()).await.map_err(|error| kept(&error))?;
        let Some(current) = self.current().await? else { return Err(said(&"what was kept cannot be read")) };
        let (from, until) = (current.certificate.not_before(), current.certificate.not_after());
        record.succeeded(directory, self.plan.profile.as_deref(), until.as_second() - from.as_second());
        self.ordering(None).keep(record).await?;
        self.storage.remove(&pending_key_key(&self.id)).await.map_err(|error| kept(&error))?;
        self.asked_for_advice.set(None);
        let next = self.due(&current, record).await?;
        if next <= Timestamp::now() {
            // Or there would be an order a second.
            let why = "the certificate that has come is due to be renewed already: is the clock right?".to_owned();
            tracing::error!(hosts = %self.hosts(), directory, %until, "{why}");
            record.failed(why, None, Timestamp::now());
            self.ordering(None).keep(record).await?;
            let next = record.not_before.unwrap_or(next);
            self.tell(OrderState::Failing, record, next).await;
            return Ok(next);
        }
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
        let may_ask = self.asked_for_advice.get().is_none_or(|(asked, pause)| asked.elapsed() >= pause);
        if may_ask && known.is_none_or(|advice| advice.ask_again <= now) {
            let advice = {
                let _look = self.turns.look().await;
                self.advice(&identifier, record).await
            };
            // One that advises says itself when to ask again.
            let pause = if matches!(advice, Ok(Some(_))) { Duration::ZERO } else { ASK_AGAIN };
            self.asked_for_advice.set(Some((Instant::now(), pause)));
            match advice {
                Ok(advice) => {
                    if advice.as_ref() != record.advice.as_ref() {
                        record.advice = advice;
                        if !self.ordering(None).has_kept(record).await? {
                            // Another machine has something to remember, too, and that may be more than an advice.
                            *record = self.record().await?;
                        }
                    }
                }
                Err(why) => tracing::debug!(hosts = %self.hosts(), why, "no advice on the renewal"),
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
        let kept = self.storage.read(&account_key(&self.plan, directory)).await.map_err(|error| error.to_string())?;
        let Some(kept) = kept else { return Ok(None) };
        let credentials: AccountCredentials =
            serde_json::from_slice(kept.expose()).map_err(|_| "the account cannot be read".to_owned())?;
        let builder = Account::builder_with_http(Box::new(https.clone()));
        let account =
            builder.from_credentials(credentials).await.map_err(|error| OrderError::of(&error, &https).why)?;
        let (info, again) = match account.renewal_info(certificate).await {
            Ok(told) => told,
            Err(Error::Unsupported(_)) => return Ok(None),
            Err(error) => return Err(OrderError::of(&error, &https).why),
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
        let Some((kept, version)) = self.storage.look(&record_key(&self.id)).await.map_err(|error| kept(&error))?
        else {
            return Ok(Record::default());
        };
        // One that cannot be read says nothing worth more than a new start.
        let record: Record = serde_json::from_slice(kept.expose()).unwrap_or_default();
        Ok(Record { version: Some(version), ..record })
    }

    /// The certificate that is kept; where another machine has put it there it is served from now on.
    async fn current(&self) -> Result<Option<Current>, OrderError> {
        let Some(kept) = self.storage.read(&bundle_key(&self.id)).await.map_err(|error| kept(&error))? else {
            return Ok(None);
        };
        let material = material(&self.plan, &kept, Path::new(""));
        let certificate = material.and_then(|material| Certificate::from_material(&material).ok());
        let seen = digest(&SHA256, kept.expose()).as_ref().to_vec();
        if certificate.is_some() && *self.announced.borrow() != seen {
            // Again at every look until it is done: what a reload reads is the copy.
            let is_copied = self.copy(&kept).await;
            // At the first look, too: whoever ordered it may have ended before it could say so.
            self.told.send(Told::Issued { id: self.id.clone(), bundle: kept }).await.ok();
            if is_copied {
                self.announced.replace(seen);
            }
        }
        Ok(certificate.map(|certificate| {
            let leaf = CertificateDer::from(certificate.chain()[0].clone());
            Current { certificate, leaf }
        }))
    }

    /// Brings what this machine has along into a storage that it shares since, so that nothing is ordered anew for it.
    async fn bring_along(&self) -> Result<(), OrderError> {
        let Some(copies) = &self.copies else { return Ok(()) };
        let key = bundle_key(&self.id);
        if self.storage.read(&key).await.map_err(|error| kept(&error))?.is_some() {
            return Ok(());
        }
        let Some(bundle) = copies.read(&key).await.map_err(|error| kept(&error))? else { return Ok(()) };
        let record = copies.read(&record_key(&self.id)).await.map_err(|error| kept(&error))?;
        let record = match record {
            Some(record) => record,
            None => Record { imported: true, ..Record::default() }.bytes(),
        };
        // The record first: a certificate without one would be ordered anew.
        self.storage.create(&record_key(&self.id), record).await.map_err(|error| kept(&error))?;
        self.storage.create(&key, bundle).await.map_err(|error| kept(&error))?;
        tracing::info!(hosts = %self.hosts(), "a certificate of this machine is shared from now on");
        Ok(())
    }

    /// Keeps `bundle` on this machine as well; answers whether that is done.
    async fn copy(&self, bundle: &SecretBytes) -> bool {
        let (Some(copies), key) = (&self.copies, bundle_key(&self.id)) else { return true };
        if copies.read(&key).await.is_ok_and(|copy| copy.as_ref() == Some(bundle)) {
            return true;
        }
        if let Err(error) = copies.write(&key, bundle.clone()).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a certificate cannot be kept in `tls.storage_options.folder`: after a restart without the storage there is none"
            );
            return false;
        }
        true
    }

    fn ordering<'a>(&'a self, replaces: Option<&'a [u8]>) -> Ordering<'a> {
        let Self { id, plan, roots, storage, favours, turns, .. } = self;
        Ordering { id, plan, roots, storage, favours, turns, replaces }
    }

    async fn tell(&self, state: OrderState, record: &Record, next: Timestamp) {
        let report = OrderReport {
            at: self.plan.at.clone(),
            hosts: self.plan.hosts.iter().map(ToString::to_string).collect(),
            fetched_from: None,
            state,
            next: Some(next.to_string()),
            // Nobody was asked where something was in the way, and it is a failure all the same.
            failures: record.failures.max(u32::from(state == OrderState::Failing)),
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

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10 * 60);
/// Where other machines order as well: so long one serves an older certificate than another at most.
const LONGEST_SHARED: Duration = Duration::from_secs(30);
/// Seconds until it is looked again whether a machine that orders has come to an end.
const OTHERS: i64 = 5;
/// Seconds after a storage could not be read or written.
const UNREADABLE: i64 = 60;
/// Seconds until it is looked again whether a CA would refuse: those who mend a record want to see it, and nobody counts.
const LOOK_AGAIN: i64 = 3 * 60;
/// Until an advice that could not be had is asked for again: a quarter of a day.
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// Bounds to what a CA says about that (RFC 9773, 4.3.2).
const SOONEST_AGAIN: i64 = 60;
const LATEST_AGAIN: i64 = 24 * 3600;
