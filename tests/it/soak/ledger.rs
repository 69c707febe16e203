//! What was asked and what came of it, what was done meanwhile, and whose doing a failure was.

use std::{
    fmt,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    /// An answer that the application takes its time for; not among the latencies.
    Slow,
    Post,
    Upload,
    Download,
    /// The handshake; what comes after it is a [`Session`].
    Websocket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    H1,
    H2,
}

/// One request and its answer, or why there is none.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    /// In the target, and so in the log of whoever answered.
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) protocol: Protocol,
    /// When its connection was opened; the last one, if it was sent more than once. `None`: there was none.
    pub(super) connected: Option<Instant>,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    /// Sent once more since the idle connection it was first sent on was closed before a byte of an answer came.
    pub(super) retried: u32,
    /// Sent once more since the peer said that it had not begun with it.
    pub(super) resent: u32,
    pub(super) error: Option<String>,
}

/// An open websocket, to its end.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) opened: Instant,
    pub(super) ended: Instant,
    pub(super) messages: u64,
    pub(super) end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// We have closed it.
    Ours,
    /// A Close frame came, with this code.
    Closed(Option<u16>, String),
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => write!(f, "closed by the client"),
            Self::Closed(Some(code), reason) => write!(f, "closed with {code} {reason}"),
            Self::Closed(None, _) => write!(f, "closed without a code"),
            Self::Broken(error) => write!(f, "cut: {error}"),
        }
    }
}

/// What is done to a peer while it is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Act {
    Reload,
    Certificate,
    Rotation,
    Upgrade,
    Kill,
    BackendRestart,
}

impl Act {
    pub(super) const ALL: [Self; 6] =
        [Self::Reload, Self::Certificate, Self::Rotation, Self::Upgrade, Self::Kill, Self::BackendRestart];
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload => "reload",
            Self::Certificate => "new certificate",
            Self::Rotation => "log rotation",
            Self::Upgrade => "upgrade",
            Self::Kill => "kill of a worker",
            Self::BackendRestart => "backend restart",
        })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) act: Act,
    pub(super) begun: Instant,
    /// When it was in force; of a kill, when the process was gone.
    pub(super) ended: Instant,
    /// Of a kill: from then to the next answer on a connection made after it.
    pub(super) recovery: Option<Duration>,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Whoever is the peer has no such thing.
    NotPossible(&'static str),
    Failed(String),
}

/// Everything of one run.
pub(super) struct Ledger {
    pub(super) begun: Instant,
    entries: Mutex<Entries>,
}

#[derive(Clone, Default)]
pub(super) struct Entries {
    pub(super) exchanges: Vec<Exchange>,
    pub(super) sessions: Vec<Session>,
    pub(super) events: Vec<Event>,
    /// Bytes of memory, from the first to the last moment.
    pub(super) memory: Vec<u64>,
    /// When the peer was told to stop, with the websockets still open.
    pub(super) stopped: Option<Instant>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), entries: Mutex::default() }
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap()
    }
}

/// How an end that the client did not want is accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// It was inside a worker that was killed.
    Kill,
    /// A websocket that had the whole drain of an upgrade.
    Drain,
    /// Nothing excuses it.
    Nobody,
}

impl Entries {
    pub(super) fn failures(&self) -> impl Iterator<Item = (&Exchange, Blame)> {
        let failed = self.exchanges.iter().filter(|exchange| exchange.error.is_some());
        failed.map(|exchange| (exchange, self.blame(exchange)))
    }

    /// Excused only if it was in flight at a kill, on a connection that was there before it, and ended with it.
    fn blame(&self, failed: &Exchange) -> Blame {
        let inside = |kill: &&Event| {
            failed.connected.is_some_and(|connected| connected <= kill.ended)
                && failed.begun <= kill.ended
                && (kill.begun..=kill.ended + NOTICED).contains(&failed.ended)
        };
        if self.kills().any(|kill| inside(&kill)) { Blame::Kill } else { Blame::Nobody }
    }

    /// Whether `exchange` may have met with a connection that a kill had closed: clients ask again within a moment.
    pub(super) fn is_after_a_kill(&self, exchange: &Exchange) -> bool {
        self.kills().any(|kill| exchange.begun <= kill.ended + NOTICED && exchange.ended >= kill.begun)
    }

    pub(super) fn kills(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| event.act == Act::Kill)
    }

    /// The websockets that the peer said goodbye to when it was stopped, or did not.
    pub(super) fn goodbyes(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(|session| self.stopped.is_some_and(|stopped| session.ended >= stopped))
    }

    /// The websockets that ended before that, and why; `drain` is the time that an upgrade gives them.
    pub(super) fn cuts(&self, drain: Duration) -> impl Iterator<Item = (&Session, Blame)> {
        let cut = self.sessions.iter().filter(|session| self.stopped.is_none_or(|stopped| session.ended < stopped));
        cut.map(move |session| {
            let opened_before = |event: &Event| session.opened <= event.ended;
            // Who is killed says no goodbye.
            let killed = |kill: &Event| {
                matches!(session.end, End::Broken(_))
                    && opened_before(kill)
                    && (kill.begun..=kill.ended + NOTICED / 2).contains(&session.ended)
            };
            let drained = |event: &&Event| {
                let deadline = event.begun + drain.saturating_sub(NOTICED)..=event.ended + drain + 2 * NOTICED;
                event.act == Act::Upgrade && opened_before(event) && deadline.contains(&session.ended)
            };
            let blame = if self.kills().any(killed) {
                Blame::Kill
            } else if self.events.iter().any(|event| drained(&event)) {
                Blame::Drain
            } else {
                Blame::Nobody
            };
            (session, blame)
        })
    }

    /// The event that had begun last at `moment`.
    pub(super) fn last_before(&self, moment: Instant) -> Option<&Event> {
        self.events.iter().rev().find(|event| event.begun <= moment)
    }

    /// Latencies of small answered requests for which `chosen` holds, sorted.
    pub(super) fn latencies(&self, chosen: impl Fn(&Exchange) -> bool) -> Vec<Duration> {
        let small = |exchange: &&Exchange| {
            exchange.error.is_none() && matches!(exchange.kind, Kind::Get | Kind::Post) && chosen(exchange)
        };
        let mut latencies: Vec<_> =
            self.exchanges.iter().filter(small).map(|exchange| exchange.ended - exchange.begun).collect();
        latencies.sort_unstable();
        latencies
    }

    /// Whether `exchange` was under way while a configuration was changed, or shortly after.
    pub(super) fn in_a_reload(&self, exchange: &Exchange) -> bool {
        let mut reloads = self.events.iter().filter(|event| event.act == Act::Reload);
        reloads.any(|reload| exchange.begun <= reload.ended.max(reload.begun + FELT) && exchange.ended >= reload.begun)
    }
}

/// The value below which `share` of `sorted` are.
pub(super) fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index")]
    let place = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

/// A client sees within this that its connection is gone, also on a busy machine.
const NOTICED: Duration = Duration::from_secs(1);

/// A request is in a reload if it is under way until this long after its beginning.
const FELT: Duration = Duration::from_millis(500);

#[test]
fn a_failure_is_excused_only_by_a_kill_that_it_was_inside_of() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let kill = Event { act: Act::Kill, begun: at(10), ended: at(10), recovery: None, outcome: Outcome::Done };
    let reload = Event { act: Act::Reload, begun: at(30), ended: at(31), ..kill.clone() };
    let failed = |connected, begun, ended| Exchange {
        id: 1,
        kind: Kind::Post,
        protocol: Protocol::H1,
        connected: Some(at(connected)),
        begun: at(begun),
        ended: at(ended),
        retried: 0,
        resent: 0,
        error: Some("cut".to_owned()),
    };
    for (exchange, blame) in [
        (failed(1, 9, 10), Blame::Kill),
        (failed(1, 2, 5), Blame::Nobody),
        (failed(11, 11, 12), Blame::Nobody),
        (failed(1, 29, 30), Blame::Nobody),
        (failed(1, 9, 30), Blame::Nobody),
    ] {
        let entries = Entries {
            exchanges: vec![exchange.clone()],
            events: vec![kill.clone(), reload.clone()],
            ..Entries::default()
        };

        let found: Vec<_> = entries.failures().map(|(_, blame)| blame).collect();

        assert_eq!(found, [blame], "{exchange:?}");
    }
}
