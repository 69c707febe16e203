//! Whose turn it is on a traffic thread.
//!
//! A thread does one piece of work after the other. Were they taken as they become ready, everybody would wait behind a client
//! that has ten thousand streams. So there are rounds, and a client has [`TURNS`] in each: what it has ready beyond that waits
//! for the next one, in order, and the next one begins when all that was ready has had its turn and the network has been asked for
//! what has come meanwhile. Whoever wants little waits for a few turns of each of the others, however much they want; whoever
//! is alone has one round after the other.
//!
//! A piece of work costs one turn, a handshake [`HANDSHAKE`]. What has a place in an application of which there are few, or is in
//! line for one, costs none ([`AT_ONCE`]): there are not many of them, and others wait for the place.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;
use tokio::task::{spawn_local, yield_now};

use crate::limits::Client;

/// The rounds of one thread.
#[derive(Clone, Default)]
pub(crate) struct Turns(Rc<Thread>);

struct Thread {
    clients: RefCell<HashMap<Client, Weak<Share>>>,
    round: Cell<u64>,
    /// How many clients have had a turn in it, and how many turns each has.
    clients_in_round: Cell<u32>,
    turns: Cell<u32>,
    /// When there was a round with several of them last.
    shared: Cell<Option<Instant>>,
    /// Of whom something waits for the next round.
    waiting: RefCell<Vec<Rc<Share>>>,
}

/// One client's part of the rounds.
pub(crate) struct Share {
    thread: Rc<Thread>,
    client: Option<Client>,
    /// The last round that it had a turn in, and how many it has left there.
    round: Cell<u64>,
    left: Cell<u32>,
    /// In order, with what each costs; whoever is woken may go.
    queue: RefCell<VecDeque<(Waker, u32)>>,
    /// How many have ever queued, and how many of them have been woken.
    queued: Cell<u64>,
    woken: Cell<u64>,
}

impl Turns {
    /// The part of `client`; of a connection by itself where it is not known whose that is, as behind another proxy.
    pub(crate) fn share(&self, client: Option<Client>) -> Rc<Share> {
        let mut clients = self.0.clients.borrow_mut();
        if let Some(share) = client.and_then(|client| clients.get(&client)?.upgrade()) {
            return share;
        }
        let share = Rc::new(Share {
            thread: Rc::clone(&self.0),
            client,
            round: Cell::default(),
            left: Cell::new(TURNS),
            queue: RefCell::default(),
            queued: Cell::default(),
            woken: Cell::default(),
        });
        if let Some(client) = client {
            clients.insert(client, Rc::downgrade(&share));
        }
        share
    }
}

impl Default for Thread {
    fn default() -> Self {
        Self {
            clients: RefCell::default(),
            round: Cell::default(),
            clients_in_round: Cell::default(),
            turns: Cell::new(TURNS),
            shared: Cell::default(),
            waiting: RefCell::default(),
        }
    }
}

impl Thread {
    /// Holds rounds for as long as somebody waits for one.
    async fn hold_rounds(self: Rc<Self>) {
        loop {
            // Comes back after all that is ready, and after the network has been asked.
            yield_now().await;
            self.round.set(self.round.get() + 1);
            if self.clients_in_round.replace(0) > 1 {
                self.shared.set(Some(Instant::now()));
            }
            // Whoever comes has to come again, from one step of a handshake to the next.
            let is_alone = self.shared.get().is_none_or(|shared| shared.elapsed() > ALONE);
            self.turns.set(if is_alone { TURNS_ALONE } else { TURNS });
            let mut waiting = self.waiting.take();
            waiting.retain(|share| share.begin_round());
            self.waiting.borrow_mut().append(&mut waiting);
            if self.waiting.borrow().is_empty() {
                return;
            }
        }
    }
}

impl Share {
    /// `work`, done in turns of this client. Each of its pieces costs so much, until it says something else ([`cost`]).
    pub(crate) fn in_turn<F: Future>(self: Rc<Self>, cost: u32, work: F) -> InTurn<F> {
        InTurn { share: self, place: None, cost, work }
    }

    /// Whether whoever asks has its turn now. If not, it is woken when it has, by its `place` in the queue.
    fn has_turn(self: &Rc<Self>, cost: u32, place: &mut Option<u64>, cx: &Context<'_>) -> bool {
        if let Some(queued) = *place {
            // Something else may have woken it.
            if queued < self.woken.get() {
                *place = None;
            }
            return place.is_none();
        }
        if self.round.get() != self.thread.round.get() {
            self.left.set(self.enter_round());
        }
        let mut queue = self.queue.borrow_mut();
        if let Some(left) = self.left.get().checked_sub(cost).filter(|_| queue.is_empty()) {
            self.left.set(left);
            return true;
        }
        *place = Some(self.queued.replace(self.queued.get() + 1));
        queue.push_back((cx.waker().clone(), cost));
        if queue.len() == 1 {
            let mut waiting = self.thread.waiting.borrow_mut();
            waiting.push(Rc::clone(self));
            if waiting.len() == 1 {
                spawn_local(Rc::clone(&self.thread).hold_rounds());
            }
        }
        false
    }

    /// Takes part in the round that is held; answers how many turns that gives.
    fn enter_round(&self) -> u32 {
        let Thread { round, clients_in_round, turns, .. } = &*self.thread;
        self.round.set(round.get());
        clients_in_round.set(clients_in_round.get() + 1);
        turns.get()
    }

    /// Wakes those whose turn this round is; answers whether there are more.
    fn begin_round(&self) -> bool {
        let mut queue = self.queue.borrow_mut();
        let mut left = self.enter_round();
        while let Some((_, cost)) = queue.front()
            && *cost <= left
            && let Some((waker, cost)) = queue.pop_front()
        {
            left -= cost;
            self.woken.set(self.woken.get() + 1);
            waker.wake();
        }
        self.left.set(left);
        !queue.is_empty()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            self.thread.clients.borrow_mut().remove(&client);
        }
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("round", &self.0.round.get()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("client", &self.client).field("left", &self.left).finish_non_exhaustive()
    }
}

pin_project! {
    /// Work of a client that is done in its turns. What is dropped before its turn gives it away.
    pub(crate) struct InTurn<F> {
        share: Rc<Share>,
        place: Option<u64>,
        cost: u32,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if *this.cost > 0 && !this.share.has_turn(*this.cost, this.place, cx) {
            return Poll::Pending;
        }
        let before = COST.replace(*this.cost);
        let polled = this.work.poll(cx);
        *this.cost = COST.replace(before);
        polled
    }
}

/// Has what this task does next cost so many turns: at most [`TURNS`].
pub(crate) fn cost(turns: u32) {
    COST.set(turns);
}

/// What a turn costs the task that is running.
pub(crate) fn current_cost() -> u32 {
    COST.get()
}

thread_local! {
    /// Of the task that is running.
    static COST: Cell<u32> = const { Cell::new(ONE) };
}

/// What most of it costs.
pub(crate) const ONE: u32 = 1;
/// What has to be done now costs nothing.
pub(crate) const AT_ONCE: u32 = 0;
/// A handshake has a signature, and takes as long as some requests.
pub(crate) const HANDSHAKE: u32 = 8;

/// Bytes that are copied before others have their turn: some tens of microseconds.
pub(crate) const BYTES: usize = 128 * 1024;

/// Turns of one client in a round. One is a few tens of microseconds, so that another waits for about a millisecond; fewer would
/// have the network asked more often.
const TURNS: u32 = 16;
/// The same where nobody else has had one for so long: who comes then waits for so many once.
const TURNS_ALONE: u32 = 64;
const ALONE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    fn share(turns: &Turns, last: u8) -> Rc<Share> {
        turns.share(Some(Client::new([192, 0, 2, last].into())))
    }

    /// Comes back with the next piece of work, which is ready at once.
    async fn next_piece() {
        let mut ready = false;
        std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if std::mem::replace(&mut ready, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Work of `steps` pieces that are ready at once, each of which is noted under `name`.
    async fn work(name: &'static str, steps: usize, done: Rc<RefCell<Vec<&'static str>>>) {
        for _ in 0..steps {
            done.borrow_mut().push(name);
            next_piece().await;
        }
    }

    #[tokio::test]
    async fn who_wants_little_waits_for_a_few_turns_of_who_wants_much() {
        let (turns, done) = (Turns::default(), Rc::<RefCell<Vec<_>>>::default());
        let local = LocalSet::new();
        for _ in 0..5_000 {
            local.spawn_local(share(&turns, 1).in_turn(ONE, work("much", 3, Rc::clone(&done))));
        }
        local.spawn_local(share(&turns, 2).in_turn(ONE, work("little", 8, Rc::clone(&done))));
        local.await;

        let done = done.borrow();
        assert_eq!(done.len(), 15_008);
        let last = done.iter().rposition(|name| *name == "little").unwrap();
        assert!(last <= (TURNS_ALONE + 9 * TURNS) as usize, "it was done after {last} turns");
    }

    #[tokio::test]
    async fn work_of_one_client_is_done_in_the_order_in_which_it_was_ready() {
        let (turns, done) = (Turns::default(), Rc::<RefCell<Vec<_>>>::default());
        let local = LocalSet::new();
        for number in 0..1_000 {
            let done = Rc::clone(&done);
            local.spawn_local(share(&turns, 1).in_turn(ONE, async move { done.borrow_mut().push(number) }));
        }
        local.await;

        assert_eq!(*done.borrow(), (0..1_000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_costs_more_waits_for_more_rounds_and_what_costs_nothing_for_none() {
        let (turns, done) = (Turns::default(), Rc::<RefCell<Vec<_>>>::default());
        let local = LocalSet::new();
        for (number, cost, name) in [(1, HANDSHAKE, "dear"), (2, ONE, "cheap")] {
            for _ in 0..TURNS {
                let share = share(&turns, number);
                local.spawn_local(share.in_turn(cost, work(name, 1, Rc::clone(&done))));
            }
        }
        let rounds = turns.clone();
        local.spawn_local(share(&turns, 1).in_turn(ONE, async move {
            let begun = rounds.0.round.get();
            cost(AT_ONCE);
            for _ in 0..10 * TURNS {
                next_piece().await;
            }
            assert_eq!(rounds.0.round.get(), begun);
        }));
        local.await;

        let done = done.borrow();
        let cheap = done.iter().rposition(|name| *name == "cheap").unwrap();
        let dear = done[..cheap].iter().filter(|name| **name == "dear").count();
        assert_eq!((done.len(), dear), (2 * TURNS as usize, (TURNS / HANDSHAKE) as usize));
    }

    #[tokio::test]
    async fn what_is_dropped_while_it_waits_keeps_nobody_waiting() {
        let (turns, done) = (Turns::default(), Rc::<RefCell<Vec<_>>>::default());
        let local = LocalSet::new();
        let spawned: Vec<_> = (0..1_000)
            .map(|_| local.spawn_local(share(&turns, 1).in_turn(ONE, work("done", 1, Rc::clone(&done)))))
            .collect();
        local
            .run_until(async {
                yield_now().await;
                spawned.iter().skip(1).step_by(2).for_each(tokio::task::JoinHandle::abort);
            })
            .await;
        local.await;

        assert!((500..1_000).contains(&done.borrow().len()), "{}", done.borrow().len());
        assert!(turns.0.clients.borrow().is_empty() && turns.0.waiting.borrow().is_empty());
    }

    #[tokio::test]
    async fn the_network_is_asked_between_rounds() {
        let (turns, done) = (Turns::default(), Rc::<RefCell<Vec<_>>>::default());
        let local = LocalSet::new();
        let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        local.spawn_local(share(&turns, 2).in_turn(ONE, {
            let done = Rc::clone(&done);
            async move {
                theirs.readable().await.unwrap();
                done.borrow_mut().push("read");
            }
        }));
        local.run_until(yield_now()).await;
        for _ in 0..1_000 {
            local.spawn_local(share(&turns, 1).in_turn(ONE, work("much", 1, Rc::clone(&done))));
        }
        tokio::io::AsyncWriteExt::write_all(&mut ours, b"x").await.unwrap();
        local.await;

        let read = done.borrow().iter().position(|name| *name == "read").unwrap();
        assert!(read <= 2 * TURNS_ALONE as usize, "it was read after {read} turns");
    }
}
