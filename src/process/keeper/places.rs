//! Places in applications that workers share while one of them leaves: see [`crate::upstream::Queue`].
//!
//! The worker that serves has all places of an upstream but for those that workers which leave have still; each of
//! these is passed on as it becomes free. A request of a leaving worker that has none is given one back.

use std::collections::BTreeMap;

use super::{super::message::ToWorker, Keeper, State, Worker, WorkerId};
use crate::admin::tag;

impl Keeper {
    /// All places of each upstream that has a bound.
    pub(super) fn places(&self) -> BTreeMap<String, u32> {
        let bound = self.plan.upstreams.values().filter_map(|upstream| {
            let told = self.bounds.get(&upstream.name).filter(|_| upstream.follows).copied();
            let planned = u32::try_from(upstream.concurrency?.get()).unwrap_or(u32::MAX);
            Some((upstream.name.clone(), told.unwrap_or(planned)))
        });
        bound.collect()
    }

    /// `id` says how many places there are of the upstream with that tag, or, if it leaves, how many of them it has.
    pub(super) fn bound_told(&mut self, id: WorkerId, upstream: u32, count: u32) {
        let Some(name) = self.upstream(id, upstream) else { return };
        let Some(worker) = self.worker(id) else { return };
        match worker.state {
            // What it was taken to have, and others were told it has.
            State::Leaving => {
                let held = worker.held.get(&name).copied().unwrap_or(0);
                self.place_given(id, upstream, held.saturating_sub(count));
            }
            // One that starts was told of all there were, and is to get as many. It is said again.
            State::Serving if !self.workers.iter().any(|worker| worker.state == State::Starting) => {
                self.bounds.insert(name, count.min(MOST));
            }
            State::Serving | State::Starting | State::GivenUp => {}
        }
    }

    /// Places that leaving workers have, by upstream.
    pub(super) fn held_by_leaving(&self) -> BTreeMap<String, u32> {
        let mut held = BTreeMap::new();
        for worker in self.workers.iter().filter(|worker| worker.state == State::Leaving) {
            for (upstream, count) in &worker.held {
                *held.entry(upstream.clone()).or_default() += count;
            }
        }
        held
    }

    /// Those of `places`, all there are, that no leaving worker has.
    pub(super) fn held_by_none(&self, mut places: BTreeMap<String, u32>) -> BTreeMap<String, u32> {
        let elsewhere = self.held_by_leaving();
        for (upstream, count) in &mut places {
            *count = count.saturating_sub(elsewhere.get(upstream).copied().unwrap_or(0));
        }
        places
    }

    /// The worker that serves is to leave, with those of `places`, all that its plan has, that nobody else has.
    pub(super) fn retire(&mut self, id: WorkerId, places: BTreeMap<String, u32>) {
        let held = self.held_by_none(places);
        if let Some(worker) = self.worker_mut(id) {
            worker.state = State::Leaving;
            worker.held = held;
            worker.tell(ToWorker::Retire);
        }
    }

    /// `id` has given up `count` places of the upstream with that tag.
    pub(super) fn place_given(&mut self, id: WorkerId, upstream: u32, count: u32) {
        let Some(name) = self.upstream(id, upstream) else { return };
        let Some(worker) = self.workers.iter_mut().find(|worker| worker.id == id) else { return };
        match worker.state {
            // No more than it has, whatever it says.
            State::Leaving => {
                let held = worker.held.entry(name.clone()).or_default();
                let count = count.min(*held);
                *held -= count;
                self.places_back(&BTreeMap::from([(name, count)]));
            }
            // One that was recalled for the first who wanted it.
            State::Serving | State::Starting => {
                let wanted = self.wants.iter().position(|(_, wanted)| *wanted == name);
                match wanted.and_then(|position| self.wants.remove(position)) {
                    Some((wants, _)) => self.lend_place(wants, name),
                    // Whoever wanted it has gone meanwhile.
                    None => grant(worker, &BTreeMap::from([(name, count)])),
                }
            }
            State::GivenUp => {}
        }
    }

    /// A request inside `id`, which leaves, has no place in the upstream with that tag.
    pub(super) fn place_wanted(&mut self, id: WorkerId, upstream: u32) {
        let leaves = self.worker(id).is_some_and(|worker| worker.state == State::Leaving);
        let Some(name) = self.upstream(id, upstream).filter(|_| leaves && self.wants.len() < WANTS) else { return };
        if !self.places().contains_key(&name) {
            // Nobody shares it any more.
            return self.lend_place(id, name);
        }
        // Where nobody serves, it has to wait for whoever will.
        if let Some(serving) = self.serving_worker() {
            serving.tell(ToWorker::Recall { upstream: name.clone() });
        }
        self.wants.push_back((id, name));
    }

    fn lend_place(&mut self, id: WorkerId, upstream: String) {
        if let Some(leaving) = self.worker_mut(id) {
            *leaving.held.entry(upstream.clone()).or_default() += 1;
            leaving.tell(ToWorker::Places { upstream, count: 1 });
        }
    }

    /// Asks whoever serves now for places that others want and nobody has given back.
    pub(super) fn recall_wanted(&self) {
        let mut serving = self.workers.iter().filter(|worker| worker.state == State::Serving);
        // Where there are two, one is about to leave.
        let (Some(serving), None) = (serving.next(), serving.next()) else { return };
        for (_, upstream) in &self.wants {
            serving.tell(ToWorker::Recall { upstream: upstream.clone() });
        }
    }

    /// Places are free for whoever serves; nobody is told where nobody does: the next one is not told that they are held.
    pub(super) fn places_back(&self, places: &BTreeMap<String, u32>) {
        if let Some(serving) = self.workers.iter().find(|worker| worker.is_current()) {
            grant(serving, places);
        }
    }

    /// A worker that served has gone with its places, which one that was begun beside it was told are elsewhere.
    pub(super) fn places_left(&self, gone: WorkerId) {
        if let Some(successor) = self.workers.iter().find(|worker| worker.is_current() && worker.id > gone) {
            grant(successor, &self.held_by_none(self.places()));
        }
    }

    /// The upstream that `id` means by its tag.
    fn upstream(&self, id: WorkerId, upstream: u32) -> Option<String> {
        let worker = self.worker(id)?;
        let names = self.plan.upstreams.keys().chain(worker.held.keys());
        names.filter(|name| tag(name) == upstream).min().cloned()
    }
}

fn grant(worker: &Worker, places: &BTreeMap<String, u32>) {
    for (upstream, count) in places.iter().filter(|(_, count)| **count > 0) {
        worker.tell(ToWorker::Places { upstream: upstream.clone(), count: *count });
    }
}

/// The most places that a worker is believed to have, as many as may be written in a configuration.
const MOST: u32 = 1_000_000;
/// Places that are asked for at once, however much a worker wants.
const WANTS: usize = 10_000;
