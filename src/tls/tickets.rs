//! Session tickets whose keys outlive a process: a successor resumes what its predecessor began.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{SecretBytes, storage::derived};

/// The keys of session tickets: one to seal with, and one before it that still opens.
///
/// Whoever has them reads what was said in sessions of TLS 1.2: they stay in memory, pass from process to process over
/// a private socket only, and are wiped.
#[derive(Clone, Deserialize, Serialize)]
pub struct TicketKeys {
    current: TicketKey,
    previous: Option<TicketKey>,
}

#[derive(Clone, Deserialize, Serialize)]
struct TicketKey {
    /// Tells which key a ticket was sealed with.
    name: [u8; NAME],
    secret: [u8; SECRET],
}

impl Drop for TicketKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl TicketKeys {
    /// A first key.
    ///
    /// # Errors
    ///
    /// The system has no randomness.
    pub fn generate() -> Result<Self, rustls::Error> {
        Ok(Self { current: TicketKey::generate()?, previous: None })
    }

    /// Those of the time `now` that everybody has who has `secret`: machines resume each other's sessions. With them come the
    /// seconds until the next ones.
    pub(crate) fn shared(secret: &SecretBytes, now: SystemTime) -> (Self, u64) {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (period, rest) = (seconds / u64::from(LIFETIME_SECONDS), seconds % u64::from(LIFETIME_SECONDS));
        let key = |period: u64| TicketKey::derived(secret, period);
        let keys = Self { current: key(period), previous: Some(key(period.saturating_sub(1))) };
        (keys, u64::from(LIFETIME_SECONDS) - rest)
    }

    /// A new key to seal with; tickets of the last one are taken until the next rotation.
    pub fn rotated(&self) -> Result<Self, rustls::Error> {
        Ok(Self { current: TicketKey::generate()?, previous: Some(self.current.clone()) })
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKeys")
    }
}

impl TicketKey {
    fn generate() -> Result<Self, rustls::Error> {
        let (mut name, mut secret) = ([0; NAME], [0; SECRET]);
        rand::fill(&mut name)
            .and_then(|()| rand::fill(&mut secret))
            .map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        Ok(Self { name, secret })
    }

    fn derived(secret: &SecretBytes, period: u64) -> Self {
        let (mut name, mut key) = ([0; NAME], [0; SECRET]);
        name.copy_from_slice(&derived(secret, &format!("name of the ticket key {period}")).expose()[..NAME]);
        key.copy_from_slice(derived(secret, &format!("ticket key {period}")).expose());
        Self { name, secret: key }
    }

    fn key(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, &self.secret).expect("the secret has the length of the cipher's key")
    }
}

/// Seals and opens tickets: the key's name, the nonce, and the state in AES-256-GCM.
pub struct Ticketer {
    keys: Arc<ArcSwap<Keys>>,
    /// What else has to be the same for a ticket to be good.
    terms: Vec<u8>,
}

struct Keys {
    name: [u8; NAME],
    current: RandomizedNonceKey,
    previous: Option<([u8; NAME], RandomizedNonceKey)>,
}

impl Ticketer {
    pub fn new(keys: &TicketKeys) -> Arc<Self> {
        Arc::new(Self { keys: Arc::new(ArcSwap::from_pointee(Keys::of(keys))), terms: Vec::new() })
    }

    /// One with the same keys, now and later, whose tickets are good on the same `terms` only.
    pub fn on(&self, terms: &[u8]) -> Arc<Self> {
        Arc::new(Self { keys: Arc::clone(&self.keys), terms: terms.to_owned() })
    }

    /// Seals with other keys from now on.
    pub fn replace(&self, keys: &TicketKeys) {
        self.keys.store(Arc::new(Keys::of(keys)));
    }

    /// Sealed with the state, and not in the ticket.
    fn associated(&self, name: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([name, &self.terms].concat())
    }
}

impl Keys {
    fn of(keys: &TicketKeys) -> Self {
        Self {
            name: keys.current.name,
            current: keys.current.key(),
            previous: keys.previous.as_ref().map(|key| (key.name, key.key())),
        }
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    /// Until a second rotation has taken the key away, at the latest.
    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        let mut sealed = plain.to_vec();
        let nonce = keys.current.seal_in_place_append_tag(self.associated(&keys.name), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(NAME + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(&keys.name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.load();
        let key = match &keys.previous {
            _ if name == keys.name => &keys.current,
            Some((previous, key)) if name == previous => key,
            _ => return None,
        };
        let mut state = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let length = key.open_in_place(nonce, self.associated(name), &mut state).ok()?.len();
        state.truncate(length);
        Some(state)
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticketer")
    }
}

const NAME: usize = 16;
const SECRET: usize = 32;

/// As long as a key opens after it was last sealed with; the keeper rotates as often.
pub const LIFETIME_SECONDS: u32 = 12 * 60 * 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_opened_by_a_successor_and_after_one_rotation_but_not_after_two() {
        let keys = TicketKeys::generate().unwrap();
        let ticket = Ticketer::new(&keys).encrypt(b"state").unwrap();
        let successor = Ticketer::new(&keys);
        assert_eq!(successor.decrypt(&ticket).as_deref(), Some(&b"state"[..]));

        let rotated = keys.rotated().unwrap();
        successor.replace(&rotated);
        assert_eq!(successor.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        successor.replace(&rotated.rotated().unwrap());
        assert_eq!(successor.decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_that_was_touched_or_cut_is_none() {
        let ticketer = Ticketer::new(&TicketKeys::generate().unwrap());
        let ticket = ticketer.encrypt(b"state").unwrap();

        for length in 0..ticket.len() {
            assert_eq!(ticketer.decrypt(&ticket[..length]), None, "{length}");
        }
        for position in 0..ticket.len() {
            let mut touched = ticket.clone();
            touched[position] ^= 1;
            assert_eq!(ticketer.decrypt(&touched), None, "{position}");
        }
    }

    #[test]
    fn a_ticket_is_good_on_its_own_terms_only_and_rotation_reaches_all_of_them() {
        let keys = TicketKeys::generate().unwrap();
        let plain = Ticketer::new(&keys);
        let (one, other) = (plain.on(&[1]), plain.on(&[2]));
        plain.replace(&keys.rotated().unwrap());
        let ticket = one.encrypt(b"state").unwrap();

        assert_eq!(plain.on(&[1]).decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert_eq!([&plain, &other].map(|ticketer| ticketer.decrypt(&ticket)), [None, None]);
    }

    #[test]
    fn machines_with_one_secret_resume_each_others_sessions_for_as_long_as_one_machine_would() {
        let secret = SecretBytes::new(vec![7; 32]);
        let at = |seconds| TicketKeys::shared(&secret, UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        let period = u64::from(LIFETIME_SECONDS);
        let ticket = Ticketer::new(&at(1000 * period).0).encrypt(b"state").unwrap();

        let opens = |keys: &TicketKeys| Ticketer::new(keys).decrypt(&ticket).is_some();
        assert!(opens(&at(1001 * period - 1).0) && opens(&at(1002 * period - 1).0));
        assert!(!opens(&at(1002 * period).0) && !opens(&at(1000 * period - 1).0));
        assert_eq!((at(1000 * period).1, at(1001 * period - 1).1), (period, 1));
        let other = SecretBytes::new(vec![8; 32]);
        assert!(!opens(&TicketKeys::shared(&other, UNIX_EPOCH + std::time::Duration::from_secs(1000 * period)).0));
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", TicketKeys::generate().unwrap()), "TicketKeys");
    }
}
