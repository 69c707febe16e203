//! What a stop waits for, and how those concerned hear of it.

use std::{
    fmt,
    future::Future,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    limits::Client,
    turns::{self, Share, Turns},
};

/// Whatever runs on traffic threads is spawned here, so that nothing outlives a stop unseen.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    all: TaskTracker,
    turns: Turns,
    /// In whose turns they run; `None` for what is done for everybody.
    share: Option<Rc<Share>>,
}

impl Tasks {
    /// Tasks that run in `client`'s turns ([`crate::turns`]), where it is known who that is; else in some of their own.
    #[must_use]
    pub fn of(&self, client: Option<Client>) -> Self {
        Self { share: Some(self.turns.share(client)), ..self.clone() }
    }

    /// Runs `task` on this thread's `LocalSet`, where a turn of it costs as much as one of the task that this is called in.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, task: F) -> JoinHandle<()> {
        self.spawn_at(turns::current_cost(), task)
    }

    /// The same, where a turn costs `cost`.
    pub(crate) fn spawn_at<F: Future<Output = ()> + 'static>(&self, cost: u32, task: F) -> JoinHandle<()> {
        match &self.share {
            Some(share) => self.all.spawn_local(Rc::clone(share).in_turn(cost, task)),
            None => self.all.spawn_local(task),
        }
    }

    /// Tasks that have not ended.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Waits until all have ended; at the deadline of a stop that is given up. Answers whether it came to pass.
    pub async fn finished(&self, drain: &Drain) -> bool {
        self.all.close();
        tokio::select! {
            () = self.all.wait() => true,
            () = drain.deadline_passed() => false,
        }
    }
}

/// The signal to come to an end, in two degrees.
///
/// *Leaving*: nothing new is accepted, and the next answer on a connection is its last, but what has begun goes on to its
/// own end, be it a websocket of days; another process serves on. A connection that is idle ends with its own time.
/// *Stopping*: besides, websockets are closed and there is a deadline.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    leaving: CancellationToken,
    stopping: CancellationToken,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    unready: AtomicBool,
    /// When a stop cuts off what is left; `None` before there is a stop.
    deadline: watch::Sender<Option<Instant>>,
    /// The deadline of the stop has passed: what is dropped from now on is cut off.
    cutting: AtomicBool,
    cut_requests: AtomicU64,
    cut_tunnels: AtomicU64,
}

/// What a stop had to cut off when its deadline had passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    pub requests: u64,
    pub tunnels: u64,
}

impl Cut {
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        match (self.requests, self.tunnels) {
            (requests, 0) => f.write_str(&number(requests, "request")),
            (0, tunnels) => f.write_str(&number(tunnels, "websocket")),
            (requests, tunnels) => write!(f, "{} and {}", number(requests, "request"), number(tunnels, "websocket")),
        }
    }
}

impl Drain {
    /// Begins to leave.
    pub fn retire(&self) {
        self.leaving.cancel();
    }

    /// Begins to stop: `deadline` from now, what is left is cut off. Said again, the new deadline counts.
    pub fn start(&self, deadline: Duration) {
        let now = Instant::now();
        // A deadline beyond what the clock can say is none.
        let deadline = now.checked_add(deadline).unwrap_or_else(|| now + Duration::from_secs(86_400 * 365));
        self.shared.deadline.send_replace(Some(deadline));
        self.leaving.cancel();
        self.stopping.cancel();
    }

    /// Whether we leave or stop.
    pub fn is_on(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Ends when we leave or stop.
    pub async fn started(&self) {
        self.leaving.cancelled().await;
    }

    /// Ends when we stop.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Ends when the deadline of a stop has passed.
    async fn deadline_passed(&self) {
        let mut deadline = self.shared.deadline.subscribe();
        loop {
            let until = *deadline.borrow_and_update();
            let passed = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = passed => return,
                // The sender is ours as well.
                _ = deadline.changed() => {}
            }
        }
    }

    /// A signal of its own that is given when we leave, or by itself before.
    pub fn part(&self) -> Leaving {
        Leaving(self.leaving.child_token())
    }

    /// Answers "not ready" from now on to whoever asks (`/ready`), and changes nothing else: a stop is to follow.
    pub fn unready(&self) {
        self.shared.unready.store(true, Ordering::Relaxed);
    }

    /// Whether a load balancer should look elsewhere; not where another process serves on in our place.
    pub fn is_closing(&self) -> bool {
        self.shared.unready.load(Ordering::Relaxed) || self.stopping.is_cancelled()
    }

    pub fn is_unready(&self) -> bool {
        self.shared.unready.load(Ordering::Relaxed) || self.is_on()
    }

    /// Whatever is dropped from now on has been cut off.
    pub fn cut_off(&self) {
        self.shared.cutting.store(true, Ordering::Relaxed);
    }

    pub fn is_cutting(&self) -> bool {
        self.shared.cutting.load(Ordering::Relaxed)
    }

    /// Counts a request that is cut off, or a tunnel; answers how many there were before.
    pub fn count_cut(&self, tunnel: bool) -> u64 {
        let count = if tunnel { &self.shared.cut_tunnels } else { &self.shared.cut_requests };
        count.fetch_add(1, Ordering::Relaxed)
    }

    /// What has been cut off so far.
    pub fn cut(&self) -> Cut {
        Cut {
            requests: self.shared.cut_requests.load(Ordering::Relaxed),
            tunnels: self.shared.cut_tunnels.load(Ordering::Relaxed),
        }
    }
}

/// The signal that connections of one listener are not to be kept.
#[derive(Clone, Debug)]
pub struct Leaving(CancellationToken);

impl Leaving {
    pub fn start(&self) {
        self.0.cancel();
    }

    pub fn is_on(&self) -> bool {
        self.0.is_cancelled()
    }

    pub async fn started(&self) {
        self.0.cancelled().await;
    }
}
