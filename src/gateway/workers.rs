//! Follows how the workers of applications are, where uWSGI says it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    drain::Drain,
    runtime::Current,
    upstream::{Upstream, Workers},
};

/// Reads every stats server once a second until we leave: from then on the bounds are our successor's business.
pub(super) async fn follow(current: Arc<Current>, drain: Drain) {
    let mut tick = interval(PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Each by itself, and none twice at once.
    let mut reads = JoinSet::new();
    let mut reading = HashSet::new();
    while !drain.is_on() {
        tokio::select! {
            () = drain.started() => return,
            Some(Ok((upstream, read))) = reads.join_next() => {
                let upstream: Arc<Upstream> = upstream;
                reading.remove(&*upstream.name);
                // One that another has taken the place of meanwhile shares its queue, and may have followed where the other does
                // not.
                if current.load().upstreams.get(&*upstream.name).is_some_and(|now| Arc::ptr_eq(now, &upstream)) {
                    upstream.workers_read(&read);
                }
            }
            _ = tick.tick() => {
                let runtime = current.load();
                for upstream in runtime.upstreams.values().filter(|upstream| upstream.stats.is_some()) {
                    if reading.insert(upstream.name.to_string()) {
                        let upstream = Arc::clone(upstream);
                        reads.spawn(async move {
                            let read = Workers::read(&upstream.plan.stats).await;
                            (upstream, read)
                        });
                    }
                }
            }
        }
    }
}

/// Between two readings.
const PAUSE: Duration = Duration::from_secs(1);
