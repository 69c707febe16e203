//! The bound on requests inside an upstream, and the room where the others wait.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::QueuePlan,
    metrics::{Held, Refusal, UpstreamMetrics},
};

/// Lets at most so many requests in at once, over all cores; the others wait, first in first out.
///
/// Dropping the future of [`Self::enter`] leaves the queue, so that a client that has gone holds nobody up.
#[derive(Debug)]
pub struct Queue {
    metrics: UpstreamMetrics,
    places: Option<Arc<Semaphore>>,
    plan: QueuePlan,
    waiting: AtomicUsize,
}

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many as `queue.limit` were waiting already.
    Full,
    /// `queue.timeout` has passed.
    TimedOut,
}

/// The right to be inside; given back when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Queue {
    pub fn new(concurrency: Option<NonZeroUsize>, plan: QueuePlan, metrics: UpstreamMetrics) -> Self {
        let places = concurrency.map(|places| Arc::new(Semaphore::new(places.get().min(Semaphore::MAX_PERMITS))));
        Self { metrics, places, plan, waiting: AtomicUsize::new(0) }
    }

    /// Requests waiting now.
    pub fn depth(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits for a place, at most `queue.timeout`.
    pub async fn enter(&self) -> Result<Place, Refused> {
        let Some(places) = &self.places else { return Ok(Place { _permit: None }) };
        if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
            return Ok(Place { _permit: Some(permit) });
        }
        let Some(mut waiter) = Waiter::new(self) else {
            self.metrics.refused(Refusal::Full);
            return Err(Refused::Full);
        };
        let began = Instant::now();
        let permit = tokio::time::timeout(self.plan.timeout, Arc::clone(places).acquire_owned()).await;
        if let Ok(permit) = permit {
            waiter.left = None;
            self.metrics.queue_seconds.observe(began.elapsed());
            return Ok(Place { _permit: Some(permit.expect("the semaphore is never closed")) });
        }
        waiter.left = Some(Refusal::Timeout);
        Err(Refused::TimedOut)
    }
}

/// One that waits; counted until it is dropped.
struct Waiter<'a> {
    queue: &'a Queue,
    _counted: Held,
    /// Why it leaves without a place; its client has gone, unless something else is said.
    left: Option<Refusal>,
}

impl<'a> Waiter<'a> {
    fn new(queue: &'a Queue) -> Option<Self> {
        let one_more = |count| (count < queue.plan.limit).then_some(count + 1);
        queue.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self { queue, _counted: queue.metrics.queue_depth.hold(), left: Some(Refusal::Canceled) })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(refusal) = self.left {
            self.queue.metrics.refused(refusal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use futures_util::poll;

    use super::*;
    use crate::metrics::Metrics;

    fn queue(concurrency: usize, limit: usize) -> Queue {
        let metrics = Metrics::new(std::time::SystemTime::now()).upstream("app");
        Queue::new(NonZeroUsize::new(concurrency), QueuePlan { limit, timeout: Duration::from_secs(30) }, metrics)
    }

    #[tokio::test]
    async fn places_are_given_in_the_order_of_arrival() {
        let queue = queue(1, 10);
        let inside = queue.enter().await.unwrap();
        let mut first = pin!(queue.enter());
        let mut second = pin!(queue.enter());
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());

        drop(inside);

        assert!(poll!(&mut second).is_pending(), "the second came later");
        assert!(poll!(&mut first).is_ready());
    }

    #[tokio::test]
    async fn one_more_than_the_limit_is_refused_at_once() {
        let queue = queue(1, 1);
        let _inside = queue.enter().await.unwrap();
        let mut waiting = pin!(queue.enter());
        assert!(poll!(&mut waiting).is_pending());

        assert_eq!(queue.enter().await.unwrap_err(), Refused::Full);
    }

    #[tokio::test]
    async fn a_client_that_has_gone_leaves_the_queue() {
        let queue = queue(1, 1);
        let inside = queue.enter().await.unwrap();
        {
            let mut gone = pin!(queue.enter());
            assert!(poll!(&mut gone).is_pending());
        }
        assert_eq!(queue.depth(), 0);
        let mut next = pin!(queue.enter());
        assert!(poll!(&mut next).is_pending());

        drop(inside);

        assert!(poll!(&mut next).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_timeout() {
        let queue = queue(1, 1);
        let _inside = queue.enter().await.unwrap();

        assert_eq!(queue.enter().await.unwrap_err(), Refused::TimedOut);
        assert_eq!(queue.depth(), 0);
    }
}
