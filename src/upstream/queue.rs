//! The bound on requests inside an upstream, and the room where the others wait.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::QueuePlan,
    metrics::{Held, Refusal, UpstreamMetrics},
};

/// Lets at most so many requests in at once, over all cores; the others wait, first in first out.
///
/// Dropping the future of [`Self::enter`] leaves the queue, so that a client that has gone holds nobody up.
///
/// A reload changes the bounds under those who wait and those inside ([`Self::resize`]). Another process that serves
/// the same application shares the places: one is given up here and granted there, never in both.
#[derive(Debug)]
pub struct Queue {
    metrics: UpstreamMetrics,
    places: Option<Arc<Places>>,
    limit: AtomicUsize,
    timeout_ms: AtomicU64,
    waiting: AtomicUsize,
}

/// The places of one upstream.
#[derive(Debug)]
struct Places {
    permits: Arc<Semaphore>,
    /// Places that are taken away as soon as they are left.
    debt: AtomicUsize,
    share: Mutex<Share>,
}

/// How many of the upstream's places are ours.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// The bound of the upstream.
    concurrency: usize,
    /// Places that another process has.
    elsewhere: usize,
    /// Places that there are here, free, taken and owed.
    issued: usize,
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
pub struct Place(Option<(OwnedSemaphorePermit, Arc<Places>)>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((permit, places)) = self.0.take()
            && places.debt.load(Ordering::Relaxed) > 0
        {
            places.pay(permit);
        }
    }
}

impl Places {
    fn new(concurrency: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(concurrency));
        let share = Mutex::new(Share { concurrency, elsewhere: 0, issued: concurrency });
        Arc::new(Self { permits, debt: AtomicUsize::new(0), share })
    }

    /// Takes `permit` away if one is owed.
    fn pay(&self, permit: OwnedSemaphorePermit) {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        if self.debt.load(Ordering::Relaxed) > 0 {
            self.debt.fetch_sub(1, Ordering::Relaxed);
            share.issued -= 1;
            permit.forget();
        }
    }

    /// A place has been taken out, for another process.
    fn gone(&self) {
        self.change(|share| {
            share.elsewhere += 1;
            share.issued -= 1;
        });
    }

    /// Changes our share, and makes or takes away places until it is what there is.
    fn change(&self, change: impl FnOnce(&mut Share)) {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut share);
        let wanted = share.concurrency.saturating_sub(share.elsewhere);
        let there = share.issued - self.debt.load(Ordering::Relaxed);
        if wanted >= there {
            let forgiven = self.debt.load(Ordering::Relaxed).min(wanted - there);
            self.debt.fetch_sub(forgiven, Ordering::Relaxed);
            let new = wanted - there - forgiven;
            share.issued += new;
            self.permits.add_permits(new);
        } else {
            let taken = self.permits.forget_permits(there - wanted);
            share.issued -= taken;
            self.debt.fetch_add(there - wanted - taken, Ordering::Relaxed);
        }
    }
}

impl Queue {
    pub fn new(concurrency: Option<NonZeroUsize>, plan: QueuePlan, metrics: UpstreamMetrics) -> Self {
        Self {
            metrics,
            places: concurrency.map(|places| Places::new(places.get().min(Semaphore::MAX_PERMITS))),
            limit: AtomicUsize::new(plan.limit),
            timeout_ms: AtomicU64::new(milliseconds(plan.timeout)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Changes the bounds; whoever waits keeps its place in line. Fewer places are reached as those inside leave.
    ///
    /// Answers whether that can be: a queue with a bound does not become one without, nor the other way round.
    pub fn resize(&self, concurrency: Option<NonZeroUsize>, plan: QueuePlan) -> bool {
        match (&self.places, concurrency) {
            (None, None) => {}
            (Some(places), Some(concurrency)) => {
                places.change(|share| share.concurrency = concurrency.get().min(Semaphore::MAX_PERMITS));
            }
            _ => return false,
        }
        self.limit.store(plan.limit, Ordering::Relaxed);
        self.timeout_ms.store(milliseconds(plan.timeout), Ordering::Relaxed);
        true
    }

    /// Leaves `count` places to another process until they are granted.
    pub fn leave_elsewhere(&self, count: usize) {
        if let Some(places) = &self.places {
            places.change(|share| share.elsewhere = count.min(share.concurrency));
        }
    }

    /// Takes back `count` places that another process had.
    pub fn grant(&self, count: usize) {
        if let Some(places) = &self.places {
            places.change(|share| share.elsewhere = share.elsewhere.saturating_sub(count));
        }
    }

    /// Gives a free place to another process, if there is one and nobody waits for it here.
    pub fn give_up_free(&self) -> bool {
        let Some(places) = &self.places else { return false };
        if self.depth() > 0 {
            return false;
        }
        let Ok(permit) = places.permits.try_acquire() else { return false };
        permit.forget();
        places.gone();
        true
    }

    /// Gives a place to another process as soon as it is our turn, behind those who wait here already.
    pub async fn give_up(&self) {
        let Some(places) = &self.places else { return };
        places.permits.acquire().await.expect("the semaphore is never closed").forget();
        places.gone();
    }

    /// Requests waiting now.
    pub fn depth(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits for a place, at most `queue.timeout`.
    pub async fn enter(&self) -> Result<Place, Refused> {
        let Some(places) = &self.places else { return Ok(Place(None)) };
        let place = |permit| Place(Some((permit, Arc::clone(places))));
        if let Ok(permit) = Arc::clone(&places.permits).try_acquire_owned() {
            return Ok(place(permit));
        }
        let Some(mut waiter) = Waiter::new(self) else {
            self.metrics.refused(Refusal::Full);
            return Err(Refused::Full);
        };
        let began = Instant::now();
        let timeout = Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed));
        let permit = tokio::time::timeout(timeout, Arc::clone(&places.permits).acquire_owned()).await;
        if let Ok(permit) = permit {
            waiter.left = None;
            self.metrics.queue_seconds.observe(began.elapsed());
            return Ok(place(permit.expect("the semaphore is never closed")));
        }
        waiter.left = Some(Refusal::Timeout);
        Err(Refused::TimedOut)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
        let limit = queue.limit.load(Ordering::Relaxed);
        let one_more = |count| (count < limit).then_some(count + 1);
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

    #[tokio::test]
    async fn fewer_places_are_reached_as_those_inside_leave() {
        let queue = queue(3, 10);
        let inside = [queue.enter().await.unwrap(), queue.enter().await.unwrap(), queue.enter().await.unwrap()];
        assert!(queue.resize(NonZeroUsize::new(1), QueuePlan { limit: 10, timeout: Duration::from_secs(30) }));
        let mut next = pin!(queue.enter());
        let [first, second, third] = inside;

        drop((first, second));
        assert!(poll!(&mut next).is_pending(), "one is still inside");
        drop(third);

        assert!(poll!(&mut next).is_ready());
    }

    #[tokio::test]
    async fn more_places_let_in_whoever_waits_and_forgive_what_is_owed() {
        let queue = queue(2, 10);
        let plan = QueuePlan { limit: 10, timeout: Duration::from_secs(30) };
        let inside = [queue.enter().await.unwrap(), queue.enter().await.unwrap()];
        let mut next = pin!(queue.enter());
        assert!(poll!(&mut next).is_pending());

        assert!(queue.resize(NonZeroUsize::new(1), plan) && queue.resize(NonZeroUsize::new(3), plan));

        assert!(poll!(&mut next).is_ready());
        drop(inside);
        let mut entered = Vec::new();
        for _ in 0..3 {
            entered.push(queue.enter().await.unwrap());
        }
        assert!(poll!(pin!(queue.enter())).is_pending(), "three, and no more");
    }

    #[tokio::test]
    async fn a_place_that_another_process_has_is_not_here_until_it_is_granted() {
        let queue = queue(2, 10);
        queue.leave_elsewhere(2);
        let mut first = pin!(queue.enter());
        assert!(poll!(&mut first).is_pending());

        queue.grant(1);
        let place = first.await.unwrap();
        assert!(!queue.give_up_free(), "it is taken");
        let mut given = pin!(queue.give_up());
        assert!(poll!(&mut given).is_pending());
        drop(place);
        given.await;

        assert!(poll!(pin!(queue.enter())).is_pending());
        queue.grant(5);
        let _two = (queue.enter().await.unwrap(), queue.enter().await.unwrap());
        assert!(poll!(pin!(queue.enter())).is_pending(), "more were granted than there are");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_timeout() {
        let queue = queue(1, 1);
        let _inside = queue.enter().await.unwrap();

        assert_eq!(queue.enter().await.unwrap_err(), Refused::TimedOut);
        assert_eq!(queue.depth(), 0);
    }
}
