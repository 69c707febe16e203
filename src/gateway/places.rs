//! Places in applications that two workers share while one of them leaves.
//!
//! The bound of an upstream is one bound, whoever's requests are inside. A leaving gateway gives each place on as soon
//! as it is free, and asks for one when a late request of it has none.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::UnboundedSender,
    time::{MissedTickBehavior, interval},
};

use super::{Gateway, News};

impl Gateway {
    /// Leaves `held` places of each upstream to the gateways before this one, until they are granted.
    pub(super) fn leave_places(&self, held: &BTreeMap<String, u32>) {
        let runtime = self.current.load();
        for (name, count) in held {
            if let Some(upstream) = runtime.upstreams.get(name) {
                upstream.queue.leave_elsewhere(*count as usize);
            }
        }
    }

    /// Takes places that another gateway had.
    pub fn grant_places(&self, upstream: &str, count: u32) {
        if let Some(upstream) = self.current.load().upstreams.get(upstream) {
            upstream.queue.grant(count as usize);
        }
    }

    /// Gives one place back to a gateway that leaves, in turn with the clients that wait here; tells `news` when it is free.
    pub fn recall_place(&self, upstream: &str, news: UnboundedSender<News>) {
        let runtime = self.current.load();
        let found = runtime.upstreams.get(upstream).filter(|upstream| upstream.plan.concurrency.is_some());
        let Some(upstream) = found.map(Arc::clone) else { return };
        let drain = self.drain.clone();
        self.control.spawn(async move {
            tokio::select! {
                biased;
                // It is asked of our successor, and what we are lent from then on is for requests of ours.
                () = drain.started() => {}
                () = upstream.queue.give_up() => {
                    // Nobody hears it when we stop.
                    news.send(News::Given { upstream: Arc::clone(&upstream.name), count: 1 }).ok();
                }
            }
        });
    }

    /// Tells `news` how many places there are of each upstream whose bound follows its workers, and again as that changes.
    pub fn tell_bounds(&self, news: UnboundedSender<News>) {
        let (current, drain) = (Arc::clone(&self.current), self.drain.clone());
        self.control.spawn(async move {
            let mut told = BTreeMap::new();
            let mut tick = interval(BOUNDS);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0_u32.. {
                tokio::select! {
                    biased;
                    () = drain.started() => return,
                    _ = tick.tick() => {}
                }
                if number.is_multiple_of(AGAIN) {
                    told.clear();
                }
                for upstream in current.load().upstreams.values().filter(|upstream| upstream.plan.follows) {
                    let count = upstream.queue.concurrency().map_or(0, count);
                    let name = || Arc::clone(&upstream.name);
                    if told.insert(name(), count) != Some(count)
                        && news.send(News::Bound { upstream: name(), count }).is_err()
                    {
                        return;
                    }
                }
            }
        });
    }

    /// Gives every place on as it becomes free, from now on.
    pub fn give_places(&self, news: UnboundedSender<News>) {
        let runtime = self.current.load_full();
        self.control.spawn(async move {
            let bound: Vec<_> =
                runtime.upstreams.values().filter(|upstream| upstream.plan.concurrency.is_some()).collect();
            // Nobody follows the workers any more here, and whoever counts on places is to have them all.
            for upstream in bound.iter().filter(|upstream| upstream.plan.follows) {
                let count = count(upstream.queue.share());
                news.send(News::Bound { upstream: Arc::clone(&upstream.name), count }).ok();
            }
            let mut wanted = vec![0; bound.len()];
            let mut tick = interval(LOOK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                for (upstream, wanted) in bound.iter().zip(&mut wanted) {
                    let mut count = 0;
                    while upstream.queue.give_up_free() {
                        count += 1;
                    }
                    let waiting = upstream.queue.depth();
                    let name = || Arc::clone(&upstream.name);
                    let told = if count > 0 {
                        news.send(News::Given { upstream: name(), count })
                    } else if waiting > *wanted {
                        news.send(News::Wanted { upstream: name() })
                    } else {
                        Ok(())
                    };
                    if told.is_err() {
                        return;
                    }
                    // One at a time is asked for; those that were given count for whoever waits next.
                    *wanted = if waiting > *wanted { *wanted + 1 } else { waiting };
                }
            }
        });
    }
}

fn count(places: usize) -> u32 {
    u32::try_from(places).unwrap_or(u32::MAX)
}

/// Between two looks whether a bound has changed.
const BOUNDS: Duration = Duration::from_secs(1);
/// After so many of them it is told in any case: whoever hears it may be another one by then.
const AGAIN: u32 = 10;
/// How often a leaving gateway looks for free places: a few a second would do, and nobody waits longer than this.
const LOOK: Duration = Duration::from_millis(20);
