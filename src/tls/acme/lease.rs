//! Who of several machines orders: a lease on an object of the storage that they share.
//!
//! Its holder writes it anew every few seconds. Whoever sees one version of it for as long as a lease lasts, by its own
//! clock, may take it: no clock is compared with another. A machine that stood still and comes to itself with a lease it
//! has no more finds that out at its next word to the storage: what is remembered of an order is replaced only where it
//! has not changed ([`super::record`]).

use std::{process, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use tokio::{
    select,
    time::{Instant, sleep_until, timeout_at},
};

use crate::tls::{
    SecretBytes,
    storage::{Storage, StorageError, Version},
};

/// What one machine knows of a lease that it would like to have.
#[derive(Debug)]
pub(super) struct Claim {
    storage: Storage,
    key: String,
    /// The version that was seen last, and since when.
    seen: Option<(Version, Instant)>,
}

/// A lease that is ours; without a word to the others it lasts [`LEASE`].
#[derive(Debug)]
pub(super) struct Lease {
    storage: Storage,
    key: String,
    /// What we wrote last, and when we began to; `None` where nobody else could have it.
    held: Option<(Version, Instant)>,
}

/// The object.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Held {
    /// Who has it, for people; `None`: nobody.
    holder: Option<String>,
    /// Sets each writing apart from all others.
    nonce: String,
}

impl Claim {
    pub(super) fn new(storage: &Storage, key: String) -> Self {
        Self { storage: storage.clone(), key, seen: None }
    }

    /// Takes the lease if nobody has it. A storage that is no one else's needs none.
    pub(super) async fn take(&mut self) -> Result<Option<Lease>, StorageError> {
        let lease = |held| Lease { storage: self.storage.clone(), key: self.key.clone(), held };
        if !self.storage.is_shared() {
            return Ok(Some(lease(None)));
        }
        let looked = self.storage.look(&self.key).await?;
        let begun = Instant::now();
        let content = Held::by_us();
        let version = match looked {
            None => self.storage.create(&self.key, content.bytes()).await?,
            Some((there, version)) => {
                let seen_since = match &self.seen {
                    Some((seen, since)) if *seen == version => *since,
                    _ => begun,
                };
                let is_held = Held::read(&there).holder.is_some();
                if is_held && seen_since.elapsed() < LEASE + MARGIN {
                    self.seen = Some((version, seen_since));
                    return Ok(None);
                }
                if is_held {
                    tracing::warn!(key = self.key, "a machine that was ordering has been silent; we go on with it");
                }
                self.storage.replace(&self.key, content.bytes(), &version).await?
            }
        };
        self.seen = None;
        Ok(version.map(|version| lease(Some((version, begun)))))
    }
}

impl Lease {
    /// Does `work` as long as the lease is ours; `None` where it was lost, and `work` broken off.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        select! {
            done = work => Some(done),
            () = self.keep() => None,
        }
    }

    /// Writes it anew again and again; returns when it is lost.
    async fn keep(&mut self) {
        loop {
            let Some((version, written)) = &self.held else { return std::future::pending().await };
            let end = *written + LEASE;
            sleep_until(*written + RENEWAL).await;
            // A write that fails is tried again while there is time.
            loop {
                let begun = Instant::now();
                let writing = self.storage.replace(&self.key, Held::by_us().bytes(), version);
                match timeout_at(end, writing).await {
                    Ok(Ok(Some(version))) => {
                        self.held = Some((version, begun));
                        break;
                    }
                    Ok(Err(error)) if begun < end => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "a lease is not written anew");
                        sleep_until((begun + RETRY).min(end)).await;
                    }
                    Ok(Ok(None) | Err(_)) | Err(_) => return,
                }
            }
        }
    }

    /// Lets others have it at once.
    pub(super) async fn give_up(self) {
        if let Some((version, _)) = &self.held
            && let Err(error) = self.storage.replace(&self.key, Held::default().bytes(), version).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "a lease is left to run out");
        }
    }
}

impl Held {
    fn by_us() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let nonce = BASE64URL_NOPAD.encode(&std::array::from_fn::<u8, 16, _>(|_| fastrand::u8(..)));
        Self { holder: Some(format!("{name}, process {}", process::id())), nonce }
    }

    fn bytes(&self) -> SecretBytes {
        SecretBytes::new(serde_json::to_vec(self).expect("text becomes JSON"))
    }

    /// One that cannot be read is nobody's.
    fn read(bytes: &SecretBytes) -> Self {
        serde_json::from_slice(bytes.expose()).unwrap_or_default()
    }
}

/// How long it is ours after we began to write it.
const LEASE: Duration = Duration::from_secs(30);
const RENEWAL: Duration = Duration::from_secs(10);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(2);
/// For clocks that do not go alike.
const MARGIN: Duration = Duration::from_secs(5);
