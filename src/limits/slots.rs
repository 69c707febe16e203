//! Counts by key in memory of a fixed size.
//!
//! A key has the slot that its hash says, and shares it with the keys that have the same hash: nothing is inserted,
//! looked for or thrown out, nothing is locked, and no number of keys makes it grow. The price is that one key in
//! [`SLOTS`] is held to what another one does. The hash is seeded, so that nobody can choose whom to share with.

use std::hash::{BuildHasher, Hash, RandomState};

#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Box<[T]>,
    seed: RandomState,
}

impl<T: Default> Slots<T> {
    pub(super) fn new() -> Self {
        Self::with(SLOTS)
    }

    /// One for all keys.
    pub(super) fn single() -> Self {
        Self::with(1)
    }

    fn with(slots: usize) -> Self {
        Self { slots: std::iter::repeat_with(T::default).take(slots).collect(), seed: RandomState::new() }
    }

    /// The number of the slot that `key` has.
    pub(super) fn of(&self, key: &impl Hash) -> usize {
        if self.slots.len() == 1 {
            return 0;
        }
        // Less than the number of slots, so that it fits.
        usize::try_from(self.seed.hash_one(key) % self.slots.len() as u64).unwrap_or(0)
    }

    pub(super) fn slot(&self, number: usize) -> &T {
        &self.slots[number]
    }
}

/// Slots of a table; 512 KiB of rates.
const SLOTS: usize = 1 << 16;
