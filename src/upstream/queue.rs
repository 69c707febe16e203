//! The bound on requests inside an upstream, and the room where the others wait.

use std::{
    future::poll_fn,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::line::{Class, Client, Line, Standing, Who};
use crate::{
    config::QueuePlan,
    metrics::{Held, Refusal, UpstreamMetrics},
    turns,
};

/// Lets at most so many requests in at once, over all cores; the others wait, and are let in as [`super::line`] says.
///
/// Dropping the future of [`Self::enter`] leaves the queue, so that a client that has gone holds nobody up.
///
/// A reload, or a number of workers that has changed, changes the bounds under those who wait and those inside
/// ([`Self::resize`]). Another process that serves the same application shares the places: one is given up here and
/// granted there, never in both.
#[derive(Debug)]
pub struct Queue {
    metrics: UpstreamMetrics,
    /// `None` without a bound.
    places: Option<Arc<Places>>,
}

/// The places of one upstream. The lock is held for a few steps, and never while somebody is woken.
#[derive(Debug)]
struct Places(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The bound of the upstream.
    concurrency: usize,
    /// Places that another process has.
    elsewhere: usize,
    /// Places that are taken here, by those who have been called, too. More than there are while a bound that has become
    /// smaller is not reached yet.
    inside: usize,
    line: Line,
    limit: usize,
    timeout: Duration,
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
pub struct Place(Option<Arc<Places>>);

impl Place {
    /// Whether there is a bound on those inside.
    pub fn is_one_of_few(&self) -> bool {
        self.0.is_some()
    }

    /// Whether somebody waits for it, or for another one.
    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|places| places.lock().line.requests() > 0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = &self.0 {
            places.change(|state| state.inside -= 1);
        }
    }
}

impl State {
    /// Whether somebody could come in at once and overtake nobody.
    fn is_free(&self) -> bool {
        self.has_place() && self.line.waiting() == 0
    }

    fn has_place(&self) -> bool {
        self.inside < self.share()
    }

    /// Places that no other process has.
    fn share(&self) -> usize {
        self.concurrency.saturating_sub(self.elsewhere)
    }

    /// Calls the next one in line, if there is a place.
    fn call(&mut self) -> Option<Waker> {
        let waker = if self.has_place() { self.line.call() } else { None };
        self.inside += usize::from(waker.is_some());
        waker
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if that is nobody else's.
    fn take(&self) -> bool {
        let mut state = self.lock();
        let is_free = state.is_free();
        state.inside += usize::from(is_free);
        is_free
    }

    /// `None` where the line is full and nobody in it has less of a right to be there.
    fn stand_in_line(&self, who: Who) -> Option<(Waiter<'_>, Duration)> {
        let (number, timeout, sent_away) = self.change(|state| {
            let is_full = state.line.requests() >= state.limit;
            let who = state.line.placed(who);
            let sent_away = if is_full { Some(state.line.make_room(who)?) } else { None };
            Some((state.line.join(who), state.timeout, sent_away))
        })?;
        let waiter = Waiter { places: self, number, is_in: false };
        if let Some(waker) = sent_away {
            waker.wake();
        }
        Some((waiter, timeout))
    }

    /// Makes `change`, and calls whoever can come in after it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let answer = change(&mut state);
        while let Some(waker) = state.call() {
            drop(state);
            waker.wake();
            state = self.lock();
        }
        answer
    }
}

impl Queue {
    pub fn new(concurrency: Option<NonZeroUsize>, plan: &QueuePlan, metrics: UpstreamMetrics) -> Self {
        let places = |concurrency: NonZeroUsize| {
            Arc::new(Places(Mutex::new(State {
                concurrency: concurrency.get(),
                elsewhere: 0,
                inside: 0,
                line: Line::new(),
                limit: plan.limit,
                timeout: plan.timeout,
            })))
        };
        Self { metrics, places: concurrency.map(places) }
    }

    /// Changes the bounds; whoever waits keeps its place in line. Fewer places are reached as those inside leave.
    ///
    /// Answers whether that can be: a queue with a bound does not become one without, nor the other way round.
    pub fn resize(&self, concurrency: Option<NonZeroUsize>, plan: &QueuePlan) -> bool {
        match (&self.places, concurrency) {
            (None, None) => true,
            (Some(places), Some(concurrency)) => {
                places.change(|state| {
                    state.concurrency = concurrency.get();
                    (state.limit, state.timeout) = (plan.limit, plan.timeout);
                });
                true
            }
            _ => false,
        }
    }

    /// Changes the bound alone, where there is one.
    pub fn follow(&self, concurrency: NonZeroUsize) {
        if let Some(places) = &self.places {
            places.change(|state| state.concurrency = concurrency.get());
        }
    }

    /// Requests that may be inside at once, over all processes. `None`: no bound.
    pub fn concurrency(&self) -> Option<usize> {
        self.places.as_ref().map(|places| places.lock().concurrency)
    }

    /// Those of the places that no other process has; none without a bound.
    pub fn share(&self) -> usize {
        self.places.as_ref().map_or(0, |places| places.lock().share())
    }

    /// Leaves `count` places to another process until they are granted.
    pub fn leave_elsewhere(&self, count: usize) {
        if let Some(places) = &self.places {
            places.change(|state| state.elsewhere = count);
        }
    }

    /// Takes back `count` places that another process had.
    pub fn grant(&self, count: usize) {
        if let Some(places) = &self.places {
            places.change(|state| state.elsewhere = state.elsewhere.saturating_sub(count));
        }
    }

    /// Gives a free place to another process, if there is one and nobody waits for it here.
    pub fn give_up_free(&self) -> bool {
        let Some(places) = &self.places else { return false };
        let mut state = places.lock();
        let is_free = state.is_free();
        state.elsewhere += usize::from(is_free);
        is_free
    }

    /// Gives a place to another process as soon as it is its turn, which it takes as a client with a session does.
    pub async fn give_up(&self) {
        let Some(places) = &self.places else { return };
        let who = Who { class: Class::Session, client: Client::Process };
        let waiter = Waiter { number: places.change(|state| state.line.join(who)), places, is_in: false };
        waiter.called().await;
        places.lock().elsewhere += 1;
        // Dropped after that, or somebody would be let in meanwhile.
        drop(waiter);
    }

    /// Requests waiting now.
    pub fn depth(&self) -> usize {
        self.places.as_ref().map_or(0, |places| places.lock().line.requests())
    }

    /// A place, where nobody has to be waited for.
    pub fn enter_at_once(&self) -> Option<Place> {
        match &self.places {
            None => Some(Place(None)),
            Some(places) => {
                // Who has a place, or is called to one, has to get on with it: others wait for it.
                turns::cost(turns::AT_ONCE);
                places.take().then(|| Place(Some(Arc::clone(places))))
            }
        }
    }

    /// Waits for a place, at most `queue.timeout`. `who` is asked only where one has to wait.
    pub async fn enter(&self, who: impl FnOnce() -> Who) -> Result<Place, Refused> {
        if let Some(place) = self.enter_at_once() {
            return Ok(place);
        }
        let Some(places) = &self.places else { return Ok(Place(None)) };
        let Some((mut waiter, timeout)) = places.stand_in_line(who()) else {
            self.metrics.refused(Refusal::Full);
            return Err(Refused::Full);
        };
        let mut counted = Counted::new(&self.metrics);
        let began = Instant::now();
        match tokio::time::timeout(timeout, waiter.called()).await {
            Ok(true) => {
                waiter.is_in = true;
                counted.left = None;
                self.metrics.queue_seconds.observe(began.elapsed());
                Ok(Place(Some(Arc::clone(places))))
            }
            Ok(false) => {
                counted.left = Some(Refusal::Full);
                Err(Refused::Full)
            }
            Err(_) => {
                counted.left = Some(Refusal::Timeout);
                Err(Refused::TimedOut)
            }
        }
    }
}

/// One in line, until it is dropped.
struct Waiter<'a> {
    places: &'a Places,
    number: u32,
    /// It has taken the place that it was called to.
    is_in: bool,
}

impl Waiter<'_> {
    /// Waits until it is called; answers `false` when it is sent away.
    async fn called(&self) -> bool {
        poll_fn(|cx| match self.places.lock().line.look(self.number, cx.waker()) {
            Standing::Waiting => Poll::Pending,
            Standing::Called => Poll::Ready(true),
            Standing::SentAway => Poll::Ready(false),
        })
        .await
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.places.change(|state| {
            if state.line.leave(self.number) == Standing::Called && !self.is_in {
                state.inside -= 1;
            }
        });
    }
}

/// A request that waits; counted until it is dropped.
struct Counted<'a> {
    metrics: &'a UpstreamMetrics,
    _waits: Held,
    /// Why it leaves without a place; its client has gone, unless something else is said.
    left: Option<Refusal>,
}

impl<'a> Counted<'a> {
    fn new(metrics: &'a UpstreamMetrics) -> Self {
        Self { metrics, _waits: metrics.queue_depth.hold(), left: Some(Refusal::Canceled) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(refusal) = self.left {
            self.metrics.refused(refusal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use futures_util::poll;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;

    fn plan(limit: usize) -> QueuePlan {
        QueuePlan { limit, timeout: Duration::from_secs(30), sessions: Vec::new() }
    }

    /// All that is asked of one client.
    fn other() -> Who {
        Who { class: Class::Other, client: Client::of(None) }
    }

    fn queue(concurrency: usize, limit: usize) -> Queue {
        let metrics = Metrics::new(std::time::SystemTime::now()).upstream("app");
        Queue::new(NonZeroUsize::new(concurrency), &plan(limit), metrics)
    }

    #[tokio::test]
    async fn places_are_given_in_the_order_of_arrival() {
        let queue = queue(1, 10);
        let inside = queue.enter(other).await.unwrap();
        let mut first = pin!(queue.enter(other));
        let mut second = pin!(queue.enter(other));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());

        drop(inside);

        assert!(poll!(&mut second).is_pending(), "the second came later");
        assert!(poll!(&mut first).is_ready());
    }

    #[tokio::test]
    async fn one_more_than_the_limit_is_refused_at_once() {
        let queue = queue(1, 1);
        let _inside = queue.enter(other).await.unwrap();
        let mut waiting = pin!(queue.enter(other));
        assert!(poll!(&mut waiting).is_pending());

        assert_eq!(queue.enter(other).await.unwrap_err(), Refused::Full);
    }

    #[tokio::test]
    async fn a_client_that_has_gone_leaves_the_queue() {
        let queue = queue(1, 1);
        let inside = queue.enter(other).await.unwrap();
        {
            let mut gone = pin!(queue.enter(other));
            assert!(poll!(&mut gone).is_pending());
        }
        assert_eq!(queue.depth(), 0);
        let mut next = pin!(queue.enter(other));
        assert!(poll!(&mut next).is_pending());

        drop(inside);

        assert!(poll!(&mut next).is_ready());
    }

    #[tokio::test]
    async fn fewer_places_are_reached_as_those_inside_leave() {
        let queue = queue(3, 10);
        let inside =
            [queue.enter(other).await.unwrap(), queue.enter(other).await.unwrap(), queue.enter(other).await.unwrap()];
        assert!(queue.resize(NonZeroUsize::new(1), &plan(10)));
        let mut next = pin!(queue.enter(other));
        let [first, second, third] = inside;

        drop((first, second));
        assert!(poll!(&mut next).is_pending(), "one is still inside");
        drop(third);

        assert!(poll!(&mut next).is_ready());
    }

    #[tokio::test]
    async fn more_places_let_in_whoever_waits_and_forgive_what_is_owed() {
        let queue = queue(2, 10);
        let inside = [queue.enter(other).await.unwrap(), queue.enter(other).await.unwrap()];
        let mut next = pin!(queue.enter(other));
        assert!(poll!(&mut next).is_pending());

        assert!(queue.resize(NonZeroUsize::new(1), &plan(10)) && queue.resize(NonZeroUsize::new(3), &plan(10)));

        assert!(poll!(&mut next).is_ready());
        drop(inside);
        let mut entered = Vec::new();
        for _ in 0..3 {
            entered.push(queue.enter(other).await.unwrap());
        }
        assert!(poll!(pin!(queue.enter(other))).is_pending(), "three, and no more");
    }

    #[tokio::test]
    async fn a_place_that_another_process_has_is_not_here_until_it_is_granted() {
        let queue = queue(2, 10);
        queue.leave_elsewhere(2);
        let mut first = pin!(queue.enter(other));
        assert!(poll!(&mut first).is_pending());

        queue.grant(1);
        let place = first.await.unwrap();
        assert!(!queue.give_up_free(), "it is taken");
        let mut given = pin!(queue.give_up());
        assert!(poll!(&mut given).is_pending());
        drop(place);
        given.await;

        assert!(poll!(pin!(queue.enter(other))).is_pending());
        queue.grant(5);
        let _two = (queue.enter(other).await.unwrap(), queue.enter(other).await.unwrap());
        assert!(poll!(pin!(queue.enter(other))).is_pending(), "more were granted than there are");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_timeout() {
        let queue = queue(1, 1);
        let _inside = queue.enter(other).await.unwrap();

        assert_eq!(queue.enter(other).await.unwrap_err(), Refused::TimedOut);
        assert_eq!(queue.depth(), 0);
    }

    #[tokio::test]
    async fn whoever_is_sent_away_for_another_is_told_that_the_queue_is_full() {
        let queue = queue(1, 2);
        let at = |last| move || Who { class: Class::Other, client: Client::of(Some([10, 0, 0, last].into())) };
        let _inside = queue.enter(other).await.unwrap();
        let mut first = pin!(queue.enter(at(1)));
        let mut second = pin!(queue.enter(at(1)));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());

        let mut another = pin!(queue.enter(at(2)));

        assert!(poll!(&mut another).is_pending() && poll!(&mut first).is_pending());
        assert_eq!(second.await.unwrap_err(), Refused::Full);
        assert_eq!((queue.depth(), queue.enter(at(3)).await.unwrap_err()), (2, Refused::Full));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8),
        GoAway(prop::sample::Index),
        ComeOut(prop::sample::Index),
        Resize(usize),
        GiveUp,
        GiveUpFree,
        Grant,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..3_u8).prop_map(Step::Enter),
            2 => any::<prop::sample::Index>().prop_map(Step::GoAway),
            6 => any::<prop::sample::Index>().prop_map(Step::ComeOut),
            1 => (1..5_usize).prop_map(Step::Resize),
            1 => Just(Step::GiveUp),
            1 => Just(Step::GiveUpFree),
            2 => Just(Step::Grant),
        ];
        prop::collection::vec(step, 1..100)
    }

    proptest! {
        #[test]
        fn there_are_never_more_inside_than_places_and_no_place_is_free_while_somebody_waits(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let queue = queue(2, 1000);
                let (mut waiting, mut gives, mut inside) = (Vec::new(), Vec::new(), Vec::new());
                let (mut concurrency, mut elsewhere) = (2, 0_usize);
                for step in steps {
                    let before = inside.len();
                    match step {
                        Step::Enter(client) => {
                            let client = Client::of(Some([10, 0, 0, client].into()));
                            waiting.push(Box::pin(queue.enter(move || Who { class: Class::Other, client })));
                        }
                        Step::GoAway(index) if !waiting.is_empty() => drop(waiting.remove(index.index(waiting.len()))),
                        Step::ComeOut(index) if !inside.is_empty() => drop(inside.remove(index.index(inside.len()))),
                        Step::GoAway(_) | Step::ComeOut(_) => {}
                        Step::Resize(places) => {
                            concurrency = places;
                            assert!(queue.resize(NonZeroUsize::new(places), &plan(1000)));
                        }
                        Step::GiveUp => gives.push(Box::pin(queue.give_up())),
                        Step::GiveUpFree => elsewhere += usize::from(queue.give_up_free()),
                        Step::Grant => {
                            elsewhere = elsewhere.saturating_sub(1);
                            queue.grant(1);
                        }
                    }
                    // Until nothing more comes of it.
                    for _ in 0..3 {
                        let mut still = Vec::new();
                        for mut request in waiting {
                            match poll!(&mut request) {
                                Poll::Ready(place) => inside.push(place.unwrap()),
                                Poll::Pending => still.push(request),
                            }
                        }
                        waiting = still;
                        let mut still = Vec::new();
                        for mut give in gives {
                            if poll!(&mut give).is_ready() { elsewhere += 1 } else { still.push(give) }
                        }
                        gives = still;
                    }
                    let places = concurrency.saturating_sub(elsewhere);
                    assert!(inside.len() <= places.max(before), "{} in {places}", inside.len());
                    assert!(waiting.len() + gives.len() == 0 || inside.len() >= places, "a place is free");
                    assert_eq!(queue.depth(), waiting.len());
                }
                queue.leave_elsewhere(0);
                drop((inside, gives));
                // Each gives its place to the next.
                while !waiting.is_empty() {
                    let count = waiting.len();
                    let mut still = Vec::new();
                    for mut request in waiting {
                        if poll!(&mut request).is_pending() { still.push(request) }
                    }
                    waiting = still;
                    assert!(waiting.len() < count, "{count} have been forgotten");
                }
            });
        }
    }
}
