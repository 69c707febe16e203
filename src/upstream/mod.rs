//! The application as the gateway sees it: a named set of endpoints and the room before it.
//!
//! An [`Upstream`] is shared by all cores, and so are its queue and the counts of its endpoints, on
//! purpose: the bound on requests inside is one bound. Connections are not shared; each core has
//! its own [`Pool`]. What is said over a connection is [`crate::proxy`]'s business.

mod pool;
mod queue;
mod readiness;
mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
pub use pool::{Lease, Pool};
pub use queue::{Place, Queue, Refused};
use readiness::LET_IN;
pub use readiness::{Finding, Phase, Readiness};
pub use stream::UpstreamStream;

use crate::{
    config::{EndpointAddress, UpstreamPlan},
    http::page::Missing,
    metrics::{Held, UpstreamMetrics},
};

/// A named set of endpoints that are one application.
#[derive(Debug)]
pub struct Upstream {
    pub plan: UpstreamPlan,
    pub name: Arc<str>,
    pub queue: Arc<Queue>,
    pub metrics: UpstreamMetrics,
    /// What its own page says of it; `None` where it has none.
    pub readiness: Option<Arc<Readiness>>,
    /// Those that there are now; names and processes behind them come and go.
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
}

impl Upstream {
    pub fn new(plan: &UpstreamPlan, metrics: UpstreamMetrics) -> Arc<Self> {
        Self::succeeding(None, plan, metrics)
    }

    /// The upstream of `plan` in the place of `before`, which is the same one if nothing has changed.
    ///
    /// What is the same in both is kept: endpoints by their address, with what is known of them and with the idle
    /// connections to them, and the queue with all that wait in it.
    pub fn succeeding(before: Option<&Arc<Self>>, plan: &UpstreamPlan, metrics: UpstreamMetrics) -> Arc<Self> {
        let before = before.filter(|before| before.plan.protocol == plan.protocol);
        if let Some(before) = before
            && before.plan == *plan
        {
            return Arc::clone(before);
        }
        let known = before.map(|before| before.endpoints()).unwrap_or_default();
        let endpoints = match before {
            // They are said by others, and have not changed with the plan.
            Some(before) if plan.backend.is_some() && before.plan.backend == plan.backend => known,
            _ => Arc::new(successors(&known, &plan.endpoints)),
        };
        let queue =
            before.map(|before| Arc::clone(&before.queue)).filter(|queue| queue.resize(plan.concurrency, plan.queue));
        // Of the same application, as far as can be told.
        let application = |plan: &UpstreamPlan| (plan.ready_path.clone(), plan.endpoints.clone(), plan.backend.clone());
        let kept = before.filter(|before| application(&before.plan) == application(plan));
        let readiness = match kept {
            Some(before) => before.readiness.clone(),
            None => plan.ready_path.as_ref().map(|_| Arc::default()),
        };
        Arc::new(Self {
            plan: plan.clone(),
            name: plan.name.as_str().into(),
            queue: queue.unwrap_or_else(|| Arc::new(Queue::new(plan.concurrency, plan.queue, metrics.clone()))),
            metrics,
            readiness,
            endpoints: ArcSwap::new(endpoints),
        })
    }

    /// The endpoints that there are now.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Has exactly the endpoints at `addresses` from now on; those that stay keep what is known of them, and requests
    /// inside those that go come to their end. Called from one place at a time.
    pub fn set_endpoints(&self, addresses: &[EndpointAddress]) {
        self.endpoints.store(Arc::new(successors(&self.endpoints(), addresses)));
    }

    /// Picks the endpoint with the fewest requests in flight among those that could last be connected to.
    ///
    /// Ties go to the one that has waited longest, so that a cold start fills every endpoint. When
    /// none could be connected to, all are tried again: being down is a guess, not a verdict. `None` while there is none.
    pub fn select(&self) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        if let [only] = &endpoints[..] {
            return Some(Arc::clone(only));
        }
        let order = |endpoint: &&Arc<Endpoint>| {
            (endpoint.is_passed_over(), endpoint.in_flight(), endpoint.selected.load(Ordering::Relaxed))
        };
        let endpoint = endpoints.iter().min_by_key(order)?;
        endpoint.selected.store(now_micros(), Ordering::Relaxed);
        Some(Arc::clone(endpoint))
    }

    /// Counts a request inside `endpoint`, one of ours, until the guard is dropped.
    pub fn enter(&self, endpoint: &Arc<Endpoint>) -> InFlight {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        endpoint.sent.fetch_add(1, Ordering::Relaxed);
        InFlight { endpoint: Arc::clone(endpoint), _counted: self.metrics.in_flight.hold() }
    }

    /// Takes note that a connection was refused; with all of them refused the application is not there.
    pub fn cannot_be_reached(&self) {
        if let Some(readiness) = &self.readiness
            && self.endpoints.load().iter().all(|endpoint| endpoint.unreachable_for().is_some())
        {
            self.tell(readiness.found(Finding::Refused), Finding::Refused);
        }
    }

    /// Takes note of what a look at its page has found.
    pub fn looked_at(&self, found: Finding) {
        if let Some(readiness) = &self.readiness {
            self.tell(readiness.found(found), found);
        }
    }

    fn tell(&self, begun: Option<Phase>, found: Finding) {
        let upstream = &*self.name;
        match begun {
            None => {}
            Some(Phase::Ready) => tracing::info!(upstream, "ready"),
            Some(Phase::Stopping) => tracing::info!(upstream, "says that it is not ready any more"),
            Some(Phase::Gone) => tracing::warn!(upstream, "cannot be connected to any more"),
            Some(Phase::Unknown) => tracing::warn!(
                upstream,
                "has answered for {LET_IN:?} and never that it is ready (health.ready); clients are let in all the same"
            ),
            Some(Phase::Starting) => {
                tracing::info!(upstream, ?found, "not ready; clients see the starting page");
            }
        }
    }

    /// Its page has said that it is not ready yet.
    pub fn is_starting(&self) -> bool {
        self.readiness.as_ref().is_some_and(|readiness| readiness.is_starting())
    }

    /// What is missing of it, for whoever waits.
    pub fn missing(&self) -> Option<Missing> {
        let name = self.name.to_string();
        if let Some(readiness) = &self.readiness
            && let Some(state) = readiness.words()
        {
            return Some(Missing { name, state, since: readiness.since() });
        }
        let endpoints = self.endpoints.load();
        let unreachable: Option<Vec<_>> = endpoints.iter().map(|endpoint| endpoint.unreachable_for()).collect();
        let since = unreachable?.into_iter().min()?;
        Some(Missing { name, state: "cannot be reached", since })
    }

    /// Requests inside, over all endpoints and cores.
    pub fn in_flight(&self) -> usize {
        self.endpoints.load().iter().map(|endpoint| endpoint.in_flight()).sum()
    }
}

/// An endpoint for each of `addresses`: the one of `known` where there is one.
fn successors(known: &[Arc<Endpoint>], addresses: &[EndpointAddress]) -> Vec<Arc<Endpoint>> {
    let known = |address: &EndpointAddress| known.iter().find(|endpoint| endpoint.address == *address);
    addresses.iter().map(|address| known(address).map_or_else(|| Endpoint::new(address), Arc::clone)).collect()
}

/// One address of an upstream, and what is known of it.
#[derive(Debug)]
pub struct Endpoint {
    pub address: EndpointAddress,
    /// As it is written in the configuration; for logs and metrics.
    pub label: Arc<str>,
    /// Tells this endpoint from all others ever made; the key of the pools.
    pub(super) id: u64,
    in_flight: AtomicUsize,
    /// Requests so far.
    sent: AtomicU32,
    /// Answers in a row that did not come in time.
    missed_deadlines: AtomicU32,
    selected: AtomicU64,
    /// Since when no connection could be made, in microseconds on [`now_micros`]'s clock; 0 when one could, or none
    /// was tried.
    unreachable_since: AtomicU64,
    /// Until when it is passed over.
    passed_over_until: AtomicU64,
    /// The same for its closing connections without having said so.
    closes_until: AtomicU64,
}

impl Endpoint {
    pub(crate) fn new(address: &EndpointAddress) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            address: address.clone(),
            label: address.to_string().into(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            in_flight: AtomicUsize::new(0),
            sent: AtomicU32::new(0),
            missed_deadlines: AtomicU32::new(0),
            selected: AtomicU64::new(0),
            unreachable_since: AtomicU64::new(0),
            passed_over_until: AtomicU64::new(0),
            closes_until: AtomicU64::new(0),
        })
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that were sent there, whatever came of them.
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Answers in a row that did not come in time.
    pub fn missed_deadlines(&self) -> u32 {
        self.missed_deadlines.load(Ordering::Relaxed)
    }

    /// An answer has come, or has not within its time.
    pub fn answered(&self, in_time: bool) {
        if !in_time {
            self.missed_deadlines.fetch_add(1, Ordering::Relaxed);
        } else if self.missed_deadlines.load(Ordering::Relaxed) != 0 {
            self.missed_deadlines.store(0, Ordering::Relaxed);
        }
    }

    /// How long no connection could be made; `None` when the last one could, or none was tried.
    pub fn unreachable_for(&self) -> Option<Duration> {
        match self.unreachable_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_micros(now_micros().saturating_sub(since))),
        }
    }

    /// Not worth an attempt while there is another endpoint.
    fn is_passed_over(&self) -> bool {
        self.passed_over_until.load(Ordering::Relaxed) > now_micros()
    }

    /// A connection was made; answers whether that is news.
    pub fn connected(&self) -> bool {
        self.passed_over_until.store(0, Ordering::Relaxed);
        self.unreachable_since.load(Ordering::Relaxed) != 0 && self.unreachable_since.swap(0, Ordering::Relaxed) != 0
    }

    /// No connection could be made; answers whether that is news.
    pub fn refused(&self) -> bool {
        let now = now_micros();
        self.passed_over_until.store(now + micros(UNREACHABLE), Ordering::Relaxed);
        self.unreachable_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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

/// A request inside an endpoint; counted until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    _counted: Held,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Microseconds since this was first called, from 1.
fn now_micros() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    micros(START.get_or_init(Instant::now).elapsed()) + 1
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 2)
}

/// How long an endpoint that refused a connection is passed over while another one answers.
const UNREACHABLE: Duration = Duration::from_secs(1);
/// How long an endpoint that closed an idle connection at once gets a new connection for each request.
const CLOSES: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Protocol, QueuePlan},
        metrics::Metrics,
    };

    fn upstream(endpoints: &[&str]) -> Arc<Upstream> {
        let plan = UpstreamPlan {
            name: "app".into(),
            protocol: Protocol::Http,
            backend: None,
            endpoints: endpoints.iter().map(|host| EndpointAddress::Tcp { host: (*host).into(), port: 1 }).collect(),
            concurrency: None,
            queue: QueuePlan { limit: 1, timeout: Duration::from_secs(1) },
            health_path: None,
            ready_path: None,
            hold: Duration::ZERO,
            connect_timeout: Duration::from_secs(1),
        };
        Upstream::new(&plan, Metrics::new(std::time::SystemTime::now()).upstream("app"))
    }

    #[test]
    fn the_endpoint_with_the_fewest_requests_is_selected() {
        let upstream = upstream(&["a", "b"]);
        let busy = upstream.select().unwrap();
        let _request = upstream.enter(&busy);

        assert_ne!(upstream.select().unwrap().id, busy.id);
        assert_ne!(upstream.select().unwrap().id, busy.id);
    }

    #[test]
    fn an_endpoint_that_refused_is_passed_over_while_another_answers() {
        let upstream = upstream(&["a", "b"]);
        let refusing = upstream.select().unwrap();
        assert!(refusing.refused(), "a first failure is news");

        assert_ne!(upstream.select().unwrap().id, refusing.id);
        assert!(!refusing.refused(), "a second failure is not");
        assert!(refusing.connected(), "an end of the failures is");
        assert!(!refusing.connected(), "a second success is not");
    }

    #[test]
    fn endpoints_that_stay_keep_what_is_known_of_them() {
        let upstream = upstream(&["a", "b"]);
        let [_, stays] = &upstream.endpoints()[..] else { panic!("two were given") };
        stays.refused();

        let address = |host: &str| EndpointAddress::Tcp { host: host.into(), port: 1 };
        upstream.set_endpoints(&[address("c"), address("b")]);

        let labels: Vec<_> = upstream.endpoints().iter().map(|endpoint| endpoint.label.to_string()).collect();
        assert_eq!(labels, ["c:1", "b:1"]);
        assert_eq!(upstream.endpoints()[1].id, stays.id);
        upstream.set_endpoints(&[]);
        assert!(upstream.select().is_none());
    }

    #[test]
    fn with_every_endpoint_refusing_one_is_selected_all_the_same() {
        let upstream = upstream(&["a"]);
        upstream.endpoints()[0].refused();

        assert_eq!(&*upstream.select().unwrap().label, "a:1");
    }
}
