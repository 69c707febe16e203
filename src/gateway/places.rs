//! Places in applications that two workers share while one of them leaves.
//!
//! The bound of an upstream is one bound, whoever's requests are inside. A leaving gateway gives each place on as soon
//! as it is free, and asks for one when a late request of it has none.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::mpsc::UnboundedSender,
    time::{MissedTickBehavior, interval},
};

use super::Gateway;

/// What becomes of places while a gateway leaves; upstreams by their number among those of its plan that have a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceNews {
    /// Free for another process.
    Given { upstream: u32, count: u32 },
    /// A request waits and there is none.
    Wanted { upstream: u32 },
}

impl Gateway {
    /// Leaves `held` places of each upstream to the gateways before this one, until they are granted.
    pub fn leave_places(&self, held: &BTreeMap<String, u32>) {
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

    /// Gives one place back to a gateway that leaves, behind the requests that wait here; tells `news` when it is free.
    pub fn recall_place(&self, upstream: &str, news: UnboundedSender<PlaceNews>) {
        let runtime = self.current.load_full();
        let bound = runtime.upstreams.values().filter(|upstream| upstream.plan.concurrency.is_some());
        let Some((number, upstream)) = bound.enumerate().find(|(_, found)| *found.name == *upstream) else { return };
        let (queue, number) = (upstream.queue.clone(), u32::try_from(number).unwrap_or(u32::MAX));
        self.control.spawn(async move {
            queue.give_up().await;
            // Nobody hears it when we stop.
            news.send(PlaceNews::Given { upstream: number, count: 1 }).ok();
        });
    }

    /// Gives every place on as it becomes free, from now on.
    pub fn give_places(&self, news: UnboundedSender<PlaceNews>) {
        let runtime = self.current.load_full();
        self.control.spawn(async move {
            let bound: Vec<_> =
                runtime.upstreams.values().filter(|upstream| upstream.plan.concurrency.is_some()).collect();
            let mut wanted = vec![0; bound.len()];
            let mut tick = interval(LOOK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                for ((number, upstream), wanted) in (0..).zip(&bound).zip(&mut wanted) {
                    let mut count = 0;
                    while upstream.queue.give_up_free() {
                        count += 1;
                    }
                    let waiting = upstream.queue.depth();
                    let told = if count > 0 {
                        news.send(PlaceNews::Given { upstream: number, count })
                    } else if waiting > *wanted {
                        news.send(PlaceNews::Wanted { upstream: number })
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

/// How often a leaving gateway looks for free places: a few a second would do, and nobody waits longer than this.
const LOOK: Duration = Duration::from_millis(20);
