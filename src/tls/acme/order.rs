//! One order, from the account to the chain (RFC 8555, 7.4).
//!
//! Whatever is needed to go on is kept before it is used: the key before the request that is signed with it, the order's
//! address before its challenges. An attempt that is cut off anywhere, by a crash or a power cut, is taken up by the next
//! one where it was.

use std::{fmt, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, ExternalAccountKey,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    Shown, account_key, bundle, challenges_key,
    client::Https,
    lease::Claim,
    material,
    record::{DAY, Placed, Record, later},
    turns::{EVERY, EVERY_OF_OWN, Turns},
};
use crate::{
    config::{AcmePlan, CertificateHost, ChallengeKind},
    tls::{
        PendingChallenge, Roots, SecretBytes,
        storage::{Storage, StorageError},
    },
};

/// What an order has done for it by others.
#[derive(Debug)]
pub(crate) enum Favour {
    /// Answer exactly these challenges for the certificate `id`; said when they are.
    Answer { id: String, pending: Vec<PendingChallenge>, done: oneshot::Sender<()> },
    /// Make or remove a TXT record by the command of the certificate `id`.
    Dns { id: String, record: TxtRecord, done: oneshot::Sender<Result<(), String>> },
}

/// A record that proves control of a name (RFC 8555, 8.4).
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub(crate) struct TxtRecord {
    /// To be there, or to be there no more.
    pub(crate) present: bool,
    /// Without `_acme-challenge.`.
    pub(crate) host: String,
    pub(crate) value: String,
}

/// Why an attempt came to nothing.
#[derive(Debug)]
pub(crate) struct OrderError {
    /// In words, for an operator.
    pub(crate) why: String,
    /// No other attempt before then.
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) kind: ErrorKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    Failed,
    /// Nobody was asked: it was not the time.
    Held,
    /// The CA wants the same again, with other nonces (RFC 8555, 6.5): more often than the library does it by itself.
    Nonce,
}

/// A certificate to be ordered.
pub(crate) struct Ordering<'a> {
    pub(crate) id: &'a str,
    pub(crate) plan: &'a AcmePlan,
    pub(crate) roots: &'a Roots,
    pub(crate) storage: &'a Storage,
    pub(crate) favours: &'a mpsc::Sender<Favour>,
    pub(crate) turns: &'a Turns,
    /// The certificate that is to be replaced, in DER.
    pub(crate) replaces: Option<&'a [u8]>,
}

impl Ordering<'_> {
    /// Orders from the first directory that does not fail; answers key and chain, which are not kept yet, and whose they
    /// are. `record` is kept at every step.
    pub(crate) async fn place(&self, record: &mut Record) -> Result<(SecretBytes, String), OrderError> {
        if record.order.as_ref().is_some_and(|placed| placed.profile != self.plan.profile) {
            self.forget_order(record).await?;
        }
        let begun = record.order.as_ref().map(|placed| placed.directory.clone());
        let mut directories: Vec<&String> = self.plan.directories.iter().collect();
        directories.sort_by_key(|directory| begun.as_ref() != Some(directory));
        let mut failed: Option<OrderError> = None;
        for directory in directories {
            let now = Timestamp::now();
            let placed = if let Some(until) = record.paused_until(directory, now) {
                Err(OrderError::held(format!("it said that we may come again at {until}"), until))
            } else {
                let mut placed = self.place_at(directory, record).await;
                for _ in 0..NONCES {
                    if placed.as_ref().is_err_and(|error| error.kind == ErrorKind::Nonce) {
                        placed = self.place_at(directory, record).await;
                    }
                }
                placed
            };
            match placed {
                Ok(bundle) => return Ok((bundle, directory.clone())),
                Err(error) => {
                    record.paused.retain(|_, until| *until > now);
                    if let Some(until) = error.retry_at.filter(|_| error.kind != ErrorKind::Held) {
                        record.paused.insert(directory.clone(), until);
                    }
                    let error = OrderError { why: format!("{directory}: {}", error.why), ..error };
                    failed = Some(match failed {
                        Some(first) => first.and(&error),
                        None => error,
                    });
                }
            }
        }
        Err(failed.unwrap_or_else(|| said(&"no directory is named")))
    }

    async fn place_at(&self, directory: &str, record: &mut Record) -> Result<SecretBytes, OrderError> {
        let https = Https::new(self.roots).map_err(|error| said(&error))?;
        let fault = |error| OrderError::of(&error, &https);
        let account = self.account(directory, &https).await?;
        let mut order = match self.begun(directory, &account, record).await.map_err(fault)? {
            Some(order) => order,
            None => self.new_order(directory, &account, &https, record).await?,
        };
        let key = self.pending_key().await?;
        if order.state().status == OrderStatus::Pending {
            let proved = self.prove(&mut order).await;
            self.clear(&mut order).await;
            if let Err(error) = proved {
                // What has been refused is not asked for again; an order that broke off is taken up.
                let has_lapsed = matches!(error, Error::Str(LAPSED));
                let is_refused = has_lapsed || is_refusal(&error) || order.state().status == OrderStatus::Invalid;
                let error = self.explained(error, &mut order, &https).await;
                if is_refused {
                    self.forget_order(record).await?;
                }
                return Err(error);
            }
        }
        if order.state().status == OrderStatus::Ready {
            let request = request(&self.plan.hosts, &key).map_err(|error| said(&error))?;
            if let Err(error) = order.finalize_csr(&request).await {
                // Neither the order nor its key is sent again.
                if is_refusal(&error) {
                    self.forget_order(record).await?;
                }
                return Err(fault(error));
            }
        }
        let chain = match order.state().status {
            OrderStatus::Valid => order.certificate().await.map_err(fault)?,
            _ => Some(order.poll_certificate(&ISSUING).await.map_err(fault)?),
        };
        let chain = chain.ok_or_else(|| said(&"the certificate is not ready yet"))?;
        let bundle = bundle(&key.serialize_pem(), &chain);
        if material(self.plan, &bundle, std::path::Path::new("")).is_none() {
            // An order of before whose key is lost, or a CA that has issued something else.
            self.forget_order(record).await?;
            return Err(said(&"what it has issued is not for our key and all of our names"));
        }
        Ok(bundle)
    }

    /// The order that is under way at `directory`, if it can still come to something.
    async fn begun(&self, directory: &str, account: &Account, record: &Record) -> Result<Option<Order>, Error> {
        let Some(placed) = record.order.as_ref().filter(|placed| placed.directory == directory) else {
            return Ok(None);
        };
        match account.order(placed.url.clone()).await {
            Ok(mut order) => Ok((order.state().status != OrderStatus::Invalid).then_some(order)),
            // It is nothing that the CA knows; one in trouble of its own says something else.
            Err(error) if is_refusal(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn new_order(
        &self,
        directory: &str,
        account: &Account,
        https: &Https,
        record: &mut Record,
    ) -> Result<Order, OrderError> {
        self.may_order(directory, record).await?;
        // Each certificate has a key of its own; that of an order that came to nothing, or whose certificate has come, goes.
        self.storage.remove(&pending_key_key(self.id)).await.map_err(|error| kept(&error))?;
        let identifiers: Vec<Identifier> = self.plan.hosts.iter().map(identifier).collect();
        let asked = || {
            let order = NewOrder::new(&identifiers);
            match &self.plan.profile {
                Some(profile) => order.profile(profile),
                None => order,
            }
        };
        let replaced = self.replaces.filter(|_| record.issued_by.as_deref() == Some(directory));
        let replaced = replaced.map(rustls::pki_types::CertificateDer::from);
        let replaced = replaced.as_ref().and_then(|certificate| CertificateIdentifier::try_from(certificate).ok());
        let placed = match replaced {
            // One that knows no renewal information, or takes it for replaced already, takes a plain order.
            Some(replaced) => match account.new_order(&asked().replaces(replaced)).await {
                Err(error) if !is_final(&error) => account.new_order(&asked()).await,
                placed => placed,
            },
            None => account.new_order(&asked()).await,
        };
        let order = match placed {
            Err(error) if knows_no_account(&error) => {
                // The CA has forgotten us; the next attempt makes itself known anew.
                self.forget_account(directory).await?;
                return Err(OrderError::of(&error, https));
            }
            placed => placed.map_err(|error| OrderError::of(&error, https))?,
        };
        let (directory, url, profile) = (directory.to_owned(), order.url().to_owned(), self.plan.profile.clone());
        record.order = Some(Placed { directory, url, profile });
        self.keep(record).await?;
        Ok(order)
    }

    /// Whether an order would stay within what a CA that serves many takes.
    async fn may_order(&self, directory: &str, record: &Record) -> Result<(), OrderError> {
        if let Some((next, why)) = record.held_back(Timestamp::now()) {
            return Err(OrderError::held(why.to_owned(), next));
        }
        let every = if self.plan.ca_file.is_some() { EVERY_OF_OWN } else { EVERY };
        let allowance = beside(&account_key(self.plan, directory), "allowance.json");
        match self.turns.order(self.storage, &allowance, every).await.map_err(|error| kept(&error))? {
            Ok(()) => Ok(()),
            Err(next) => {
                Err(OrderError::held("the account has ordered as much as we let it for the moment".to_owned(), next))
            }
        }
    }

    /// Shows the CA that all names are ours.
    async fn prove(&self, order: &mut Order) -> Result<(), Error> {
        let pending = self.pending(order).await?;
        for challenge in pending.iter().filter(|challenge| challenge.kind == ChallengeKind::Dns01) {
            self.txt(true, challenge).await.map_err(|why| Error::Other(why.into()))?;
        }
        self.answer(pending, None).await.map_err(|why| Error::Other(why.into()))?;

        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(self.kind())
            {
                challenge.set_ready().await?;
            }
        }
        match order.poll_ready(&VALIDATION).await? {
            OrderStatus::Invalid => Err(Error::Str("it does not believe that all names are ours")),
            _ => Ok(()),
        }
    }

    /// The challenges of names that the CA has not seen to be ours yet.
    async fn pending(&self, order: &mut Order) -> Result<Vec<PendingChallenge>, Error> {
        let mut pending = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                _ => return Err(Error::Str(LAPSED)),
            }
            let host = match authorization.identifier().identifier {
                Identifier::Dns(name) => name.clone(),
                Identifier::Ip(address) => address.to_string(),
                _ => return Err(Error::Str("it asks for an identifier that was not ordered")),
            };
            let Some(challenge) = authorization.challenge(self.kind()) else {
                let why = format!("it offers no {} for {host}; name another `challenge`", self.plan.challenge);
                return Err(Error::Other(why.into()));
            };
            pending.push(PendingChallenge {
                host,
                kind: self.plan.challenge,
                token: challenge.token.clone(),
                key_authorization: challenge.key_authorization().as_str().to_owned(),
            });
        }
        Ok(pending)
    }

    /// Takes back what was answered, as far as that is possible.
    async fn clear(&self, order: &mut Order) {
        if self.plan.challenge == ChallengeKind::Dns01 {
            let mut authorizations = order.authorizations();
            while let Some(Ok(mut authorization)) = authorizations.next().await {
                let Identifier::Dns(host) = authorization.identifier().identifier.clone() else { continue };
                let Some(challenge) = authorization.challenge(self.kind()) else { continue };
                let challenge = PendingChallenge {
                    host,
                    kind: ChallengeKind::Dns01,
                    token: challenge.token.clone(),
                    key_authorization: challenge.key_authorization().as_str().to_owned(),
                };
                if let Err(why) = self.txt(false, &challenge).await {
                    tracing::warn!(host = challenge.host, why, "a TXT record was not removed");
                }
            }
        }
        if let Err(why) = self.answer(Vec::new(), None).await {
            tracing::debug!(id = self.id, why, "a challenge is answered for longer than it is asked for");
        }
    }

    /// Has exactly `pending` answered by this machine, and by those that share the storage. A check, by its token, does not
    /// touch what another machine has answered for its order.
    pub(super) async fn answer(&self, pending: Vec<PendingChallenge>, check: Option<&str>) -> Result<(), String> {
        let key = challenges_key(self.id, check);
        let shown = match pending.is_empty() || pending.iter().all(|one| one.kind == ChallengeKind::Dns01) {
            _ if !self.storage.is_shared() => Ok(()),
            true => self.storage.remove(&key).await,
            false => {
                let shown = Shown { since: Timestamp::now(), pending: pending.clone() };
                let content = serde_json::to_vec(&shown).map_err(|error| error.to_string())?;
                self.storage.write(&key, SecretBytes::new(content)).await
            }
        };
        self.answer_here(pending).await?;
        shown.map_err(|error| kept(&error).why)
    }

    /// Has exactly `pending` answered by this machine.
    pub(super) async fn answer_here(&self, pending: Vec<PendingChallenge>) -> Result<(), String> {
        let (done, answered) = oneshot::channel();
        let gone = |()| "the process is about to end".to_owned();
        self.favours.send(Favour::Answer { id: self.id.to_owned(), pending, done }).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))
    }

    async fn txt(&self, present: bool, challenge: &PendingChallenge) -> Result<(), String> {
        let value = BASE64URL_NOPAD.encode(digest(&SHA256, challenge.key_authorization.as_bytes()).as_ref());
        let record = TxtRecord { present, host: challenge.host.clone(), value };
        let (done, made) = oneshot::channel();
        let favour = Favour::Dns { id: self.id.to_owned(), record, done };
        let gone = || "the process is about to end".to_owned();
        self.favours.send(favour).await.map_err(|_| gone())?;
        made.await.map_err(|_| gone())?
    }

    /// What the CA says of each name.
    async fn explained(&self, error: Error, order: &mut Order, https: &Https) -> OrderError {
        let mut said = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if authorization.refresh().await.is_err() {
                break;
            }
            let host = authorization.identifier().to_string();
            let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            said.extend(errors.map(|error| format!("{host}: {}", in_words(error))));
        }
        let error = OrderError::of(&error, https);
        if said.is_empty() { error } else { OrderError { why: line(&said.join("; "), LONGEST_REASON), ..error } }
    }

    /// The account with `directory`, made where there is none.
    async fn account(&self, directory: &str, https: &Https) -> Result<Account, OrderError> {
        let at = account_key(self.plan, directory);
        if !self.is_rolling(&at).await?
            && let Some(known) = self.known_account(&at, https).await?
        {
            return Ok(known);
        }
        let made = async {
            if self.is_rolling(&at).await? {
                // Its key may be another one by now: the CA would take us for a stranger, without end.
                let why = "the key of the account was being changed when we ended; another account is made";
                tracing::warn!(directory, why);
                self.forget_account(directory).await?;
                self.storage.remove(&rolling_key(&at)).await.map_err(|error| kept(&error))?;
            }
            match self.known_account(&at, https).await? {
                Some(known) => Ok(known),
                None => self.new_account(directory, &at, https).await,
            }
        };
        self.alone(&at, made).await
    }

    /// Does `work` on the account kept under `at` while nobody else does, on this machine or another.
    async fn alone<T>(&self, at: &str, work: impl Future<Output = Result<T, OrderError>>) -> Result<T, OrderError> {
        let _held = self.turns.account().await;
        let mut claim = Claim::new(self.storage, format!("{at}.lease"));
        let mut lease = loop {
            match claim.take().await.map_err(|error| kept(&error))? {
                Some(lease) => break lease,
                None => sleep(ANOTHERS_ACCOUNT).await,
            }
        };
        let done = lease.during(work).await;
        lease.give_up().await;
        done.unwrap_or_else(|| Err(said(&"another machine has taken the account over")))
    }

    async fn is_rolling(&self, at: &str) -> Result<bool, OrderError> {
        Ok(self.storage.read(&rolling_key(at)).await.map_err(|error| kept(&error))?.is_some())
    }

    async fn known_account(&self, at: &str, https: &Https) -> Result<Option<Account>, OrderError> {
        let Some(known) = self.storage.read(at).await.map_err(|error| kept(&error))? else { return Ok(None) };
        let Ok(credentials) = serde_json::from_slice::<AccountCredentials>(known.expose()) else {
            self.storage.remove(at).await.map_err(|error| kept(&error))?;
            return Ok(None);
        };
        let builder = Account::builder_with_http(Box::new(https.clone()));
        let account = builder.from_credentials(credentials).await;
        account.map(Some).map_err(|error| OrderError::of(&error, https))
    }

    async fn new_account(&self, directory: &str, at: &str, https: &Https) -> Result<Account, OrderError> {
        let builder = Account::builder_with_http(Box::new(https.clone()));
        let contact: Vec<String> = self.plan.email.iter().map(|email| format!("mailto:{email}")).collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let account = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let bound = match &self.plan.eab {
            // The one of the second directory is not known.
            Some(eab) if self.plan.directories.first().is_some_and(|first| first == directory) => {
                let key = BASE64URL_NOPAD.decode(eab.secret.expose().trim_end_matches('=').as_bytes());
                let key = key.map_err(|_| said(&"`eab.key` is no base64url"))?;
                Some(ExternalAccountKey::new(eab.key_id.clone(), &key))
            }
            _ => None,
        };
        let made = builder.create(&account, directory.to_owned(), bound.as_ref()).await;
        let (account, credentials) = made.map_err(|error| OrderError::of(&error, https))?;
        let content = serde_json::to_vec(&credentials).map_err(|error| said(&error))?;
        if self.storage.create(at, SecretBytes::new(content)).await.map_err(|error| kept(&error))?.is_none() {
            return Err(said(&"another machine has made an account meanwhile, which is used from now on"));
        }
        tracing::info!(directory, account = account.id(), "account made with a certificate authority");
        Ok(account)
    }

    /// Gives the account with `directory`, if there is one, another key (RFC 8555, 7.3.5), once a day at most.
    ///
    /// If we end between the CA's taking of it and our keeping it, the account is lost to us and another one is made: the
    /// library that makes the key shows it only afterwards.
    pub(super) async fn roll(&self, directory: &str) -> Result<(), OrderError> {
        let at = account_key(self.plan, directory);
        let https = Https::new(self.roots).map_err(|error| said(&error))?;
        let rolled = async {
            let (rolled, now) = (beside(&at, "rolled"), Timestamp::now());
            let last = self.storage.read(&rolled).await.map_err(|error| kept(&error))?;
            let last = last.and_then(|last| std::str::from_utf8(last.expose()).ok()?.parse::<Timestamp>().ok());
            if last.is_some_and(|last| last <= now && later(last, DAY) > now) || self.is_rolling(&at).await? {
                return Ok(());
            }
            let Some(mut account) = self.known_account(&at, &https).await? else { return Ok(()) };
            self.storage.write(&rolling_key(&at), SecretBytes::new(Vec::new())).await.map_err(|error| kept(&error))?;
            match account.update_key().await {
                Ok(credentials) => {
                    let content = serde_json::to_vec(&credentials).map_err(|error| said(&error))?;
                    self.storage.write(&at, SecretBytes::new(content)).await.map_err(|error| kept(&error))?;
                    let now = SecretBytes::new(now.to_string().into_bytes());
                    self.storage.write(&rolled, now).await.map_err(|error| kept(&error))?;
                    tracing::info!(directory, account = account.id(), "the key of the account was changed");
                }
                // It has refused: the old one goes on.
                Err(error @ (Error::Api(_) | Error::Unsupported(_) | Error::Str(_))) => {
                    let why = OrderError::of(&error, &https).why;
                    tracing::warn!(directory, why, "the key of the account was not changed");
                }
                Err(error) => return Err(OrderError::of(&error, &https)),
            }
            self.storage.remove(&rolling_key(&at)).await.map_err(|error| kept(&error))
        };
        self.alone(&at, rolled).await
    }

    async fn forget_account(&self, directory: &str) -> Result<(), OrderError> {
        self.storage.remove(&account_key(self.plan, directory)).await.map_err(|error| kept(&error))
    }

    /// The key of the certificate to come; it is another one for each certificate.
    async fn pending_key(&self) -> Result<KeyPair, OrderError> {
        let at = pending_key_key(self.id);
        let known = self.storage.read(&at).await.map_err(|error| kept(&error))?;
        let known = known.and_then(|pem| KeyPair::from_pem(std::str::from_utf8(pem.expose()).ok()?).ok());
        if let Some(known) = known {
            return Ok(known);
        }
        let key = KeyPair::generate().map_err(|error| said(&error))?;
        let pem = SecretBytes::new(key.serialize_pem().into_bytes());
        self.storage.write(&at, pem).await.map_err(|error| kept(&error))?;
        Ok(key)
    }

    async fn forget_order(&self, record: &mut Record) -> Result<(), OrderError> {
        record.order = None;
        self.keep(record).await
    }

    /// Keeps `record` in the place of what it was read from.
    pub(crate) async fn keep(&self, record: &mut Record) -> Result<(), OrderError> {
        if self.has_kept(record).await? {
            return Ok(());
        }
        Err(said(&"another machine has ordered this certificate meanwhile; it is looked at anew"))
    }

    /// The same; answers whether that was there still.
    pub(crate) async fn has_kept(&self, record: &mut Record) -> Result<bool, OrderError> {
        let content = record.bytes();
        let key = record_key(self.id);
        let version = match &record.version {
            Some(version) => self.storage.replace(&key, content, version).await,
            None => self.storage.create(&key, content).await,
        };
        let version = version.map_err(|error| kept(&error))?;
        let is_kept = version.is_some();
        record.version = version.or_else(|| record.version.take());
        Ok(is_kept)
    }

    fn kind(&self) -> ChallengeType {
        match self.plan.challenge {
            ChallengeKind::Http01 => ChallengeType::Http01,
            ChallengeKind::Dns01 => ChallengeType::Dns01,
            ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
        }
    }
}

pub(super) fn record_key(id: &str) -> String {
    format!("acme/certificates/{id}/record.json")
}

pub(super) fn pending_key_key(id: &str) -> String {
    format!("acme/certificates/{id}/pending-key.pem")
}

/// What is kept beside an account while its key is changed.
fn rolling_key(account: &str) -> String {
    beside(account, "rolling")
}

/// The key of another object of the same account.
fn beside(account: &str, name: &str) -> String {
    account.replace("account.json", name)
}

fn identifier(host: &CertificateHost) -> Identifier {
    match host.address() {
        Some(address) => Identifier::Ip(address),
        None => Identifier::Dns(host.as_str().to_owned()),
    }
}

/// The signing request for `hosts`, in DER.
fn request(hosts: &[CertificateHost], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// Whether another form of the same order would fare no better.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Unsupported(_) => false,
        Error::Api(problem) => is_of(problem, ":rateLimited") || is_of(problem, ":accountDoesNotExist"),
        // A `replaces` that the CA does not speak of again is told by the library in words of its own.
        Error::Other(error) => !error.to_string().starts_with("replaces field mismatch"),
        _ => true,
    }
}

/// Whether the account is none that may order: forgotten, or deactivated (RFC 8555, 7.3.6).
fn knows_no_account(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if is_of(problem, ":accountDoesNotExist") || is_of(problem, ":unauthorized"))
}

fn is_of(problem: &Problem, kind: &str) -> bool {
    problem.r#type.as_deref().is_some_and(|is| is.ends_with(kind))
}

/// Whether the same would be refused again: what is said of a fault of the CA's own, or of too much, is none.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Api(problem) => {
            problem.status.is_none_or(|status| (400..500).contains(&status) && status != 429)
                && ![":rateLimited", ":serverInternal", ":badNonce"].iter().any(|passing| is_of(problem, passing))
        }
        _ => false,
    }
}

fn in_words(problem: &Problem) -> String {
    let detail = problem.detail.as_deref().unwrap_or("no reason is given");
    let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next()).unwrap_or("error");
    line(&format!("{} ({kind})", line(detail, 500)), 600)
}

/// What others say, as it is shown to people: no control characters, and no novel.
fn line(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

impl OrderError {
    pub(super) fn of(error: &Error, https: &Https) -> Self {
        let retry_at = https.retry_after().and_then(|at| Timestamp::try_from(at).ok());
        let why = match error {
            Error::Api(problem) => {
                let parts: Vec<_> = problem.subproblems.iter().filter_map(|part| part.detail.clone()).collect();
                let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join("; ")) };
                in_words(problem) + &parts
            }
            Error::Other(inner) => chain(&**inner),
            error => error.to_string(),
        };
        let is_nonce = matches!(error, Error::Api(problem) if is_of(problem, ":badNonce"));
        let kind = if is_nonce { ErrorKind::Nonce } else { ErrorKind::Failed };
        Self { why: line(&why, LONGEST_REASON), retry_at, kind }
    }

    fn held(why: String, next: Timestamp) -> Self {
        Self { why, retry_at: Some(next), kind: ErrorKind::Held }
    }

    /// What is said of both; the first may come to itself sooner than the second lets us come again, or the other way round.
    fn and(self, other: &Self) -> Self {
        Self {
            why: format!("{}; {}", self.why, other.why),
            retry_at: self.retry_at.zip(other.retry_at).map(|(one, other)| one.min(other)),
            kind: if self.kind == other.kind { self.kind } else { ErrorKind::Failed },
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::telemetry::chain(error)
}

pub(super) fn said(why: &dyn fmt::Display) -> OrderError {
    OrderError { why: why.to_string(), retry_at: None, kind: ErrorKind::Failed }
}

pub(super) fn kept(error: &StorageError) -> OrderError {
    said(&format!("the storage (`tls.storage`): {error}"))
}

/// Until it is looked again whether another machine has an account.
const ANOTHERS_ACCOUNT: Duration = Duration::from_secs(1);
const LAPSED: &str = "an authorization of this order has lapsed";
/// Characters of why an attempt failed.
const LONGEST_REASON: usize = 2000;
/// Attempts that are made again at once.
const NONCES: usize = 3;
/// Until a CA has looked at all names; it looks from several places.
const VALIDATION: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(120));
/// Until it has signed.
const ISSUING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(120));
