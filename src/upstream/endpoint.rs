//! One address of an upstream, and what is known of it: shared by all cores, in atomics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    balance,
    health::{Health, State},
    micros, now_micros,
};
use crate::{config::EndpointAddress, metrics::Held};

/// One address of an upstream, and what is known of it.
#[derive(Debug)]
pub struct Endpoint {
    pub address: EndpointAddress,
    /// The host and port that its address was found by.
    pub name: Option<String>,
    /// As it is written in the configuration, and its address where that is another; for logs and metrics.
    pub label: Arc<str>,
    /// Its address, which is the same to every front door.
    pub(super) identity: Box<str>,
    /// Stands for that where clients are shared out by hash.
    pub(super) tag: u64,
    /// Tells this endpoint from all others ever made; the key of the pools.
    pub(super) id: u64,
    /// When this was made.
    pub(super) made: u64,
    pub(super) weight: AtomicU16,
    pub(super) backup: AtomicBool,
    pub(super) leaving: AtomicBool,
    pub(super) in_flight: AtomicUsize,
    /// Those of them that have become tunnels.
    pub(super) tunnels: AtomicUsize,
    /// When it is its turn; see [`balance::Balancer`].
    pub(super) turn: AtomicU64,
    /// Since when its share grows; 0 where that is whole.
    pub(super) growing_since: AtomicU64,
    /// Requests so far.
    pub(super) sent: AtomicU64,
    /// Those of them that were not answered, and connections that could not be made for one.
    pub(super) failures: AtomicU64,
    /// Since when no connection could be made, in microseconds on [`now_micros`]'s clock; 0 when one could, or none
    /// was tried.
    pub(super) unreachable_since: AtomicU64,
    /// Until when it is passed over.
    pub(super) passed_over_until: AtomicU64,
    /// The same for its closing connections without having said so.
    pub(super) closes_until: AtomicU64,
    /// Requests and looks in a row that were not answered in time; with [`HEARD`], since its last answer. For whoever restarts
    /// it; a connection that is refused changes nothing about that, and is an end of the silence that [`Health`] counts.
    pub(super) silences: AtomicU32,
    pub(super) health: Health,
}

impl Endpoint {
    pub(crate) fn new(member: &Member) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let identity = member.address.to_string();
        let label = match &member.name {
            Some(name) => format!("{name} ({})", identity.rsplit_once(':').map_or(&*identity, |(host, _)| host)),
            None => identity.clone(),
        };
        Arc::new(Self {
            address: member.address.clone(),
            name: member.name.clone(),
            label: label.into(),
            tag: balance::tag(&identity),
            identity: identity.into(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            made: now_micros(),
            weight: AtomicU16::new(1),
            backup: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
            turn: AtomicU64::new(0),
            growing_since: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            unreachable_since: AtomicU64::new(0),
            passed_over_until: AtomicU64::new(0),
            closes_until: AtomicU64::new(0),
            silences: AtomicU32::new(0),
            health: Health::default(),
        })
    }

    /// Tells this endpoint from all others ever made.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The host that its address was found by.
    pub fn host(&self) -> Option<&str> {
        self.name.as_deref().and_then(|name| name.rsplit_once(':')).map(|(host, _)| host)
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that were sent there, whatever came of them.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Those of them that were not answered, and connections that could not be made for one.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Counts one of these.
    pub fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests and looks in a row that it has let pass without an answer.
    pub fn silences(&self) -> u32 {
        self.silences.load(Ordering::Relaxed) & !HEARD
    }

    /// How long no connection could be made; `None` when the last one could, or none was tried.
    pub fn unreachable_for(&self) -> Option<Duration> {
        match self.unreachable_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_micros(now_micros().saturating_sub(since))),
        }
    }

    /// Its share beside the others; never 0.
    pub fn weight(&self) -> u16 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Only for while no other can be used.
    pub fn is_backup(&self) -> bool {
        self.backup.load(Ordering::Relaxed)
    }

    /// Only for requests that an [`super::Affinity`] ties to it.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Worth an attempt while there is another endpoint.
    pub fn is_usable(&self) -> bool {
        let now = now_micros();
        self.passed_over_until.load(Ordering::Relaxed) <= now && !self.health.is_passed_over(now)
    }

    /// Has its share grow from nothing, over the time that [`crate::config::UpstreamPlan::slow_start`] says.
    pub fn begins_slowly(&self) {
        self.growing_since.store(now_micros(), Ordering::Relaxed);
    }

    /// Its weight, of which it has a part only until it has been there for `slow_start`: as much as it has been there of that
    /// time, and a sixteenth from the beginning.
    pub(super) fn share(&self, slow_start: Duration) -> u64 {
        let whole = u64::from(self.weight()) << 10;
        let since = self.growing_since.load(Ordering::Relaxed);
        if since == 0 || slow_start.is_zero() {
            return whole;
        }
        let (age, time) = (now_micros().saturating_sub(since), micros(slow_start));
        if age >= time {
            self.growing_since.store(0, Ordering::Relaxed);
            return whole;
        }
        let part = u128::from(whole) * u128::from(age) / u128::from(time);
        u64::try_from(part).unwrap_or(whole).max(whole >> 4)
    }

    /// How it stands.
    pub fn state(&self) -> State {
        match self.unreachable_for() {
            Some(time) => State::Unreachable(time),
            None => self.health.state(now_micros()).unwrap_or(State::Up),
        }
    }

    /// Leaves it alone for this long, where there is another one.
    pub fn pass_over(&self, time: Duration) {
        self.passed_over_until.store(now_micros() + micros(time), Ordering::Relaxed);
    }

    /// A connection was made; answers whether that is news.
    pub(super) fn connected(&self) -> bool {
        self.passed_over_until.store(0, Ordering::Relaxed);
        let back = self.unreachable_since.load(Ordering::Relaxed) != 0
            && self.unreachable_since.swap(0, Ordering::Relaxed) != 0;
        if back {
            self.begins_slowly();
        }
        back
    }

    /// No connection could be made; answers whether that is news. The longer it has been so the longer it is passed over
    /// until the next attempt, up to `longest`.
    pub(super) fn refused(&self, longest: Duration) -> bool {
        let now = now_micros();
        let time = self.unreachable_for().unwrap_or_default().min(longest).max(UNREACHABLE);
        self.pass_over(time);
        self.unreachable_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// It has answered a request or a look, whatever it said.
    pub fn answered(&self) {
        self.health.heard();
        // Read first: with every answer, and hardly ever another value.
        if self.silences.load(Ordering::Relaxed) != HEARD {
            self.silences.store(HEARD, Ordering::Relaxed);
        }
    }

    /// It has let a request or a look pass without an answer.
    pub fn did_not_answer(&self) {
        if self.silences() < HEARD / 2 {
            self.silences.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The endpoint closes connections after a response without announcing it, as uWSGI's HTTP socket does.
    pub fn closes_unannounced(&self) -> bool {
        self.closes_until.load(Ordering::Relaxed) > now_micros()
    }

    /// Remembers that it just did.
    pub fn closed_unannounced(&self) {
        self.closes_until.store(now_micros() + micros(CLOSES), Ordering::Relaxed);
    }
}

/// An endpoint that there is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub address: EndpointAddress,
    /// The host and port that its address was found by.
    pub name: Option<String>,
    pub weight: u16,
    pub backup: bool,
    /// Only for those who are there already.
    pub leaving: bool,
}

impl From<EndpointAddress> for Member {
    fn from(address: EndpointAddress) -> Self {
        Self { address, name: None, weight: 1, backup: false, leaving: false }
    }
}

/// A request inside an endpoint; counted until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) tunnel: bool,
    pub(super) _counted: Held,
}

impl InFlight {
    /// It has become a tunnel, which may last for days.
    pub fn is_tunnel(&mut self) {
        self.tunnel = true;
        self.endpoint.tunnels.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.tunnel {
            self.endpoint.tunnels.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The bit of an endpoint that has answered.
pub(super) const HEARD: u32 = 1 << 31;
/// How long an endpoint that refused a connection is passed over while another one answers.
pub(super) const UNREACHABLE: Duration = Duration::from_secs(1);
/// How long an endpoint that closed an idle connection at once gets a new connection for each request.
const CLOSES: Duration = Duration::from_secs(60);
