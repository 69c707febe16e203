//! The streams of one connection: how many there are, and which of them their client has left standing.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, Id},
    time::sleep,
};

use super::{
    super::{Connection, client},
    watched::Resets,
};
use crate::{
    drain::Tasks,
    http::pace::{Pace, Patience, TooSlow},
    limits::ClientStreams,
    metrics::Shed,
    turns,
};

/// The streams under way, each in a task of its own; given to hyper as what runs them.
#[derive(Clone)]
pub(super) struct Streams(Rc<Shared>);

struct Shared {
    tasks: Tasks,
    /// With those on other connections of the client.
    counted: ClientStreams,
    under_way: RefCell<HashMap<Id, Stream>>,
    begun: Cell<u64>,
    resets: Resets,
    /// One was refused; there are to be no more.
    over: Notify,
}

struct Stream {
    task: AbortHandle,
    progress: Rc<Progress>,
}

/// What is known of how a response is taken.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Since when the last piece has been waiting for the client to take it, and its bytes. hyper asks for the next one as
    /// soon as there is room, so this is the client's time.
    offered: Cell<Option<(Instant, u64)>>,
    /// `None` until there is a response.
    pace: RefCell<Option<Pace>>,
    patience: Cell<Option<Duration>>,
    slow: Cell<Option<TooSlow>>,
    stalled: Cell<bool>,
}

impl Progress {
    /// The client has room for more.
    pub(super) fn asked(&self) {
        if let (Some((_, bytes)), Some(pace)) = (self.offered.take(), &mut *self.pace.borrow_mut())
            && let Err(slow) = pace.moved(bytes)
        {
            self.slow.set(Some(slow));
        }
    }

    pub(super) fn offered(&self, bytes: u64) {
        self.offered.set(Some((Instant::now(), bytes)));
        if let Some(pace) = &mut *self.pace.borrow_mut() {
            pace.wait();
        }
    }

    fn is_given_up(&self, patience: Duration) -> bool {
        let patience = self.patience.get().unwrap_or(patience);
        self.slow.get().is_some() || self.offered.get().is_some_and(|(since, _)| since.elapsed() >= patience)
    }

    /// Why the stream was ended.
    pub(super) fn why(&self) -> io::Error {
        match self.slow.get() {
            Some(slow) => io::Error::new(io::ErrorKind::TimedOut, slow),
            None => io::ErrorKind::TimedOut.into(),
        }
    }

    /// The stream was ended because its client took nothing.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.get()
    }
}

impl Streams {
    pub(super) fn new(tasks: Tasks, counted: ClientStreams, resets: Resets) -> Self {
        let under_way = RefCell::default();
        Self(Rc::new(Shared { tasks, counted, under_way, begun: Cell::default(), resets, over: Notify::new() }))
    }

    /// The progress of the stream whose task this is called in, whose client may be so slow.
    pub(super) fn progress(&self, patience: Patience) -> Rc<Progress> {
        let under_way = self.0.under_way.borrow();
        let progress: Rc<Progress> =
            under_way.get(&tokio::task::id()).map_or_else(Rc::default, |stream| Rc::clone(&stream.progress));
        progress.pace.replace(Some(Pace::new(patience)));
        progress.patience.set(Some(patience.progress));
        progress
    }

    /// Whether the client has more of them than it may have, here and on its other connections; counted and told, if so.
    pub(super) fn are_too_many(&self, connection: &Connection) -> bool {
        let runtime = connection.thread.current();
        let are_too_many = self.0.counted.are_too_many(&runtime.plan.limits);
        if are_too_many {
            self.0.resets.refuse();
            connection.thread.metrics.requests_shed.inc();
            connection.all.tell(Shed::Streams, client(&connection.peer), &runtime.plan.limits);
        }
        are_too_many
    }

    /// One was refused for want of memory: there are to be no more of this connection.
    pub(super) fn refuse(&self) {
        self.0.resets.refuse();
        self.0.over.notify_one();
    }

    /// Waits until one is refused.
    pub(super) async fn refused(&self) {
        self.0.over.notified().await;
    }

    /// Ends streams whose client takes too little, or nothing for `patience` where their routes say nothing else: their tasks are dropped, which resets them. Returns when
    /// no stream has been under way, and none has begun, for `idle`.
    pub(super) async fn watch(&self, patience: Duration, idle: Duration) {
        let pause = (patience / 4).min(idle / 4).max(SHORTEST_PAUSE);
        let mut quiet = (self.0.begun.get(), Instant::now());
        loop {
            sleep(pause).await;
            for stream in self.0.under_way.borrow().values() {
                if stream.progress.is_given_up(patience) {
                    stream.progress.stalled.set(true);
                    stream.task.abort();
                }
            }
            if !self.0.under_way.borrow().is_empty() || self.0.begun.get() != quiet.0 {
                quiet = (self.0.begun.get(), Instant::now());
            } else if quiet.1.elapsed() >= idle {
                return;
            }
        }
    }
}

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, future: F) {
        let Self(shared) = self;
        shared.begun.set(shared.begun.get() + 1);
        shared.counted.begin();
        let ended = Ended(Rc::clone(shared));
        // Whatever a turn of the connection costs.
        let task = shared.tasks.spawn_at(turns::ONE, async move {
            let _ended = ended;
            future.await;
        });
        // The task has not run yet: it is on this thread.
        let stream = Stream { task: task.abort_handle(), progress: Rc::default() };
        shared.under_way.borrow_mut().insert(task.id(), stream);
    }
}

/// Takes the stream whose task this is in off the list, however it ends, be it before it has begun.
struct Ended(Rc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        let Self(shared) = self;
        shared.counted.end();
        if let Some(id) = tokio::task::try_id() {
            shared.under_way.borrow_mut().remove(&id);
        }
    }
}

/// How often a connection is looked at, at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
