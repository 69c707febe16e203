//! Passwords that are looked at, within bounds.

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::{digest, hmac, rand::SystemRandom};
use tokio::{sync::Semaphore, time::timeout};
use zeroize::Zeroizing;

use super::Users;
use crate::{limits::Crowd, upstream::Client};

/// Looks at passwords: few at a time, in the order in which they come, and no more than a few of one client.
///
/// One that was right is known for [`KNOWN_FOR`] after its last use, by a keyed hash of it; a hash that is not in the file any more is not
/// looked up, so who has been taken out of it is out at once.
pub struct Verifier {
    turns: Arc<Semaphore>,
    /// Who waits, or is looked at.
    waiting: Crowd<Client>,
    known: Mutex<HashMap<Proof, Instant>>,
    key: hmac::Key,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    Wrong,
    /// It was not looked at: too many others wait.
    Busy,
}

/// Stands for a hash of a file and the password that goes with it.
type Proof = [u8; digest::SHA256_OUTPUT_LEN];

impl Verifier {
    /// One for a process that carries traffic on `threads` threads.
    pub fn new(threads: NonZeroUsize) -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("the system has random numbers");
        Self {
            // There is a thread a processor; the other half of them goes on carrying traffic.
            turns: Arc::new(Semaphore::new((threads.get() / 2).clamp(1, MOST_AT_ONCE))),
            waiting: Crowd::new(MOST_WAITING, MOST_WAITING_OF_ONE),
            known: Mutex::default(),
            key,
        }
    }

    /// Whether `password` is that of `name`; whether there is such a user cannot be told from how long it takes.
    ///
    /// Cancelled, it waits no longer; what has begun is done to its end.
    pub async fn verify(&self, users: &Users, client: Client, name: &str, password: &[u8]) -> Verdict {
        if password.len() > LONGEST_PASSWORD {
            return Verdict::Wrong;
        }
        let (hash, is_user) = users.find(name);
        let proof = self.proof(hash.identity(), password);
        if is_user && self.knows(&proof, Instant::now()) {
            return Verdict::Right;
        }
        let Some(_place) = self.waiting.enter(client) else { return Verdict::Busy };
        let turn = timeout(LONGEST_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Verdict::Busy };
        // Of the same client, at the same time: a page and all that is on it.
        if is_user && self.knows(&proof, Instant::now()) {
            return Verdict::Right;
        }
        let (hash, password) = (Arc::clone(hash), Zeroizing::new(password.to_vec()));
        let looked = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, also where nobody waits for it any more.
            let _turn = turn;
            hash.matches(&password)
        });
        match looked.await {
            Ok(true) if is_user => {
                self.remember(proof, Instant::now());
                Verdict::Right
            }
            Ok(_) => Verdict::Wrong,
            Err(_) => Verdict::Busy,
        }
    }

    fn proof(&self, identity: &[u8], password: &[u8]) -> Proof {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(identity.len() as u64).to_be_bytes());
        context.update(identity);
        context.update(password);
        context.sign().as_ref().try_into().expect("SHA-256 makes 32 bytes")
    }

    fn knows(&self, proof: &Proof, now: Instant) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_mut(proof).filter(|until| **until > now).is_some_and(|until| {
            *until = now + KNOWN_FOR;
            true
        })
    }

    fn remember(&self, proof: Proof, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KNOWN {
            known.retain(|_, until| *until > now);
        }
        if known.len() >= MOST_KNOWN
            && let Some(oldest) = known.iter().min_by_key(|(_, until)| **until).map(|(proof, _)| *proof)
        {
            known.remove(&oldest);
        }
        known.insert(proof, now + KNOWN_FOR);
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

/// How long a password that was right is not looked at again.
const KNOWN_FOR: Duration = Duration::from_secs(5 * 60);
/// Passwords that are known at once.
const MOST_KNOWN: usize = 1024;
/// Passwords that are looked at at once, on a machine with many processors.
const MOST_AT_ONCE: usize = 4;
/// How long one waits for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Requests that wait for that.
const MOST_WAITING: usize = 64;
/// Of one client: as many connections as a browser opens, and a few.
const MOST_WAITING_OF_ONE: usize = 8;
/// Bytes.
const LONGEST_PASSWORD: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::users::tests::{ARGON2, BCRYPT};

    fn client(number: u8) -> Client {
        Client::of(Some([192, 0, 2, number].into()))
    }

    fn users(text: &str) -> Users {
        Users::parse(text.as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn the_password_of_a_user_is_right_and_nothing_else_is() {
        let (verifier, users) = (Verifier::new(NonZeroUsize::MIN), users(&format!("alice:{BCRYPT}\nbob:{ARGON2}\n")));
        for (name, password, expected) in [
            ("alice", "secret", Verdict::Right),
            ("alice", "secret", Verdict::Right),
            ("bob", "secret", Verdict::Right),
            ("alice", "wrong", Verdict::Wrong),
            // The decoy's own password.
            ("mallory", "secret", Verdict::Wrong),
            ("mallory", "secret", Verdict::Wrong),
        ] {
            assert_eq!(
                verifier.verify(&users, client(1), name, password.as_bytes()).await,
                expected,
                "{name} {password}"
            );
        }
        let long = vec![b'x'; LONGEST_PASSWORD + 1];
        assert_eq!(verifier.verify(&users, client(1), "alice", &long).await, Verdict::Wrong);
    }

    #[tokio::test]
    async fn a_password_is_known_for_a_while_by_the_hash_it_was_right_for() {
        let (verifier, users) = (Verifier::new(NonZeroUsize::MIN), users(&format!("alice:{BCRYPT}\n")));
        verifier.verify(&users, client(1), "alice", b"secret").await;

        let proof = |identity: &[u8]| verifier.proof(identity, b"secret");
        let (own, other) = (proof(BCRYPT.as_bytes()), proof(ARGON2.as_bytes()));
        let now = Instant::now();

        assert!(verifier.knows(&own, now) && !verifier.knows(&other, now));
        assert!(!verifier.knows(&own, now + KNOWN_FOR));
    }

    #[test]
    fn who_is_known_is_bounded_and_the_oldest_goes_first() {
        let verifier = Verifier::new(NonZeroUsize::MIN);
        let now = Instant::now();
        let proof = |number: usize| verifier.proof(&number.to_be_bytes(), b"");
        for number in 0..=MOST_KNOWN {
            verifier.remember(proof(number), now + Duration::from_millis(number as u64));
        }
        assert_eq!(verifier.known.lock().unwrap().len(), MOST_KNOWN);
        assert!(!verifier.knows(&proof(0), now) && verifier.knows(&proof(1), now));
    }
}
