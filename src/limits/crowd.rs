//! How many are inside at once, in all and of one client.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Lets in so many at once, and no more than a few of one client. Bounded by how many are inside, however many clients there
/// are.
pub struct Crowd<C> {
    most: usize,
    most_of_one: usize,
    inside: Mutex<HashMap<C, usize>>,
}

/// One of those who are inside.
pub struct Inside<'c, C: Copy + Eq + Hash> {
    crowd: &'c Crowd<C>,
    client: C,
}

impl<C: Copy + Eq + Hash> Crowd<C> {
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, inside: Mutex::default() }
    }

    /// Lets one more of `client` in, until what is answered is dropped; `None` where there are too many.
    pub fn enter(&self, client: C) -> Option<Inside<'_, C>> {
        let mut inside = self.inside();
        let own = inside.get(&client).copied().unwrap_or_default();
        if own >= self.most_of_one || inside.values().sum::<usize>() >= self.most {
            return None;
        }
        inside.insert(client, own + 1);
        Some(Inside { crowd: self, client })
    }

    fn inside(&self) -> MutexGuard<'_, HashMap<C, usize>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Copy + Eq + Hash> Drop for Inside<'_, C> {
    fn drop(&mut self) {
        let mut inside = self.crowd.inside();
        match inside.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(inside.remove(&self.client)),
        }
    }
}

impl<C> fmt::Debug for Crowd<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("most", &self.most).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_keep_the_others_out() {
        let crowd = Crowd::new(5, 2);
        let mut inside: Vec<_> = (0..2).map(|_| crowd.enter(1).unwrap()).collect();
        assert!(crowd.enter(1).is_none());

        inside.extend([2, 2, 3].map(|client| crowd.enter(client).unwrap()));
        assert!(crowd.enter(4).is_none(), "there are as many as there may be");

        inside.clear();
        assert!(crowd.inside().is_empty() && crowd.enter(1).is_some());
    }
}
