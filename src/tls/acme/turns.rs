//! Who may order now: what a CA would take for a flood is none, whoever restarts us and whatever is configured.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use super::record::later;
use crate::tls::{
    SecretBytes,
    storage::{Storage, StorageError},
};

/// The turns of all certificates.
pub(crate) struct Turns {
    at_once: Semaphore,
    looks: Semaphore,
    /// Held while an account is made, or its key is changed.
    accounts: Mutex<()>,
    /// Held while an allowance is read and written.
    allowances: Mutex<()>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            at_once: Semaphore::new(AT_ONCE),
            looks: Semaphore::new(LOOKS),
            accounts: Mutex::new(()),
            allowances: Mutex::new(()),
        }
    }
}

impl Turns {
    /// Waits until fewer than four orders are under way.
    pub(super) async fn one(&self) -> SemaphorePermit<'_> {
        self.at_once.acquire().await.expect("the semaphore is never closed")
    }

    /// Waits until few certificates are looked into.
    pub(super) async fn look(&self) -> SemaphorePermit<'_> {
        self.looks.acquire().await.expect("the semaphore is never closed")
    }

    /// Waits until no order is under way, and keeps others from beginning.
    pub(super) async fn all(&self) -> SemaphorePermit<'_> {
        let all = u32::try_from(AT_ONCE).unwrap_or(1);
        self.at_once.acquire_many(all).await.expect("the semaphore is never closed")
    }

    /// Waits until nobody makes an account or changes its key.
    pub(super) async fn account(&self) -> MutexGuard<'_, ()> {
        self.accounts.lock().await
    }

    /// Takes one order from the allowance kept under `key`, to which one is added `every` so many seconds; when there will
    /// be one, if there is none left.
    ///
    /// # Errors
    ///
    /// The storage cannot be read or written: then nothing is ordered, or a crash would be worth an order each.
    pub(super) async fn order(
        &self,
        storage: &Storage,
        key: &str,
        every: i64,
    ) -> Result<Result<(), Timestamp>, StorageError> {
        let _held = self.allowances.lock().await;
        loop {
            let now = Timestamp::now();
            let (kept, version) = storage.look(key).await?.unzip();
            let kept = kept.and_then(|bytes| serde_json::from_slice(bytes.expose()).ok());
            let mut allowance: Allowance = kept.unwrap_or(Allowance { orders: FULL, at: now });
            let taken = allowance.take(now, every);
            let content = SecretBytes::new(serde_json::to_vec(&allowance).unwrap_or_default());
            let written = match version {
                Some(version) => storage.replace(key, content, &version).await?,
                None => storage.create(key, content).await?,
            };
            // Where another machine was quicker, what it has left.
            if written.is_some() {
                return Ok(taken);
            }
        }
    }
}

/// What is left of the orders of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Allowance {
    orders: i64,
    /// When it was as much.
    at: Timestamp,
}

impl Allowance {
    /// Takes one at `now`, or answers when there is one.
    fn take(&mut self, now: Timestamp, every: i64) -> Result<(), Timestamp> {
        // A clock that was set back gives nothing, and takes nothing for longer than it is wrong.
        let since = (now.as_second() - self.at.as_second()).max(0);
        let more = since / every;
        if self.orders + more >= FULL {
            *self = Self { orders: FULL, at: now };
        } else {
            *self = Self { orders: self.orders + more, at: later(self.at, more * every).min(now) };
        }
        if self.orders == 0 {
            return Err(later(self.at, every));
        }
        self.orders -= 1;
        Ok(())
    }
}

/// Certificates for which it is looked at once what is in their way, or when the CA would have them renewed.
const LOOKS: usize = 16;
/// Orders that are under way at once.
const AT_ONCE: usize = 4;
/// Orders that may come together, and the seconds until there is one more: 230 in three hours, where Let's Encrypt takes
/// 300 of an account.
const FULL: i64 = 50;
pub(super) const EVERY: i64 = 60;
/// The seconds where the CA is the operator's own, and its certificates may live for minutes.
pub(super) const EVERY_OF_OWN: i64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_three_hours_see_more_orders_than_a_ca_takes() {
        let began: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut allowance = Allowance { orders: FULL, at: began };
        let mut ordered = 0;
        for second in 0..3 * 3600 {
            let now = later(began, second);
            while allowance.take(now, EVERY).is_ok() {
                ordered += 1;
            }
        }
        assert!((200..=240).contains(&ordered), "{ordered}");
    }

    #[test]
    fn who_has_used_it_up_is_told_when_there_is_one_more() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut allowance = Allowance { orders: 1, at: now };
        assert_eq!(allowance.take(now, EVERY), Ok(()));
        assert_eq!(allowance.take(later(now, 20), EVERY), Err(later(now, 60)));
        assert_eq!(allowance.take(later(now, 60), EVERY), Ok(()));
        assert_eq!(allowance.take(later(now, -3600), EVERY), Err(later(now, -3540)), "after the clock was set back");
    }
}
