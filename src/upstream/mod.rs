//! The application as the gateway sees it: a named set of endpoints and the room before it.
//!
//! An [`Upstream`] is shared by all cores, and so are its queue and the counts of its endpoints, on
//! purpose: the bound on requests inside is one bound. Connections are not shared; each core has
//! its own [`Pool`]. What is said over a connection is [`crate::proxy`]'s business.

mod line;
mod pool;
mod queue;
mod readiness;
mod stats;
mod stream;

use std::{
    error::Error,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub use line::{Class, Client, Who};
pub use pool::{Lease, Pool};
pub use queue::{Place, Queue, Refused};
use readiness::LET_IN;
pub use readiness::{Finding, Phase, Readiness};
use stats::Turn;
pub use stats::{Stats, StatsError, Workers};
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
    /// What uWSGI says of its workers; `None` where it is not asked.
    pub stats: Option<Arc<Stats>>,
    endpoints: Vec<Arc<Endpoint>>,
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
        let known = |address: &&EndpointAddress| {
            before.and_then(|before| before.endpoints.iter().find(|endpoint| endpoint.address == **address))
        };
        let endpoints = plan
            .endpoints
            .iter()
            .map(|address| known(&address).map_or_else(|| Endpoint::new(address), Arc::clone))
            .collect();
        let stats = match before.filter(|before| before.plan.stats == plan.stats) {
            Some(before) => before.stats.clone(),
            None => (!plan.stats.is_empty()).then(Arc::default),
        };
        let workers = stats.as_ref().filter(|_| plan.follows).and_then(|stats| places(stats.last()?));
        let concurrency = workers.or(plan.concurrency);
        let queue =
            before.map(|before| Arc::clone(&before.queue)).filter(|queue| queue.resize(concurrency, &plan.queue));
        // Of the same application, as far as can be told.
        let kept = before
            .filter(|before| (&before.plan.ready_path, &before.plan.endpoints) == (&plan.ready_path, &plan.endpoints));
        let readiness = match kept {
            Some(before) => before.readiness.clone(),
            None => plan.ready_path.as_ref().map(|_| Arc::default()),
        };
        Arc::new(Self {
            plan: plan.clone(),
            name: plan.name.as_str().into(),
            queue: queue.unwrap_or_else(|| Arc::new(Queue::new(concurrency, &plan.queue, metrics.clone()))),
            metrics,
            readiness,
            stats,
            endpoints,
        })
    }

    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Picks the endpoint with the fewest requests in flight among those that could last be connected to.
    ///
    /// Ties go to the one that has waited longest, so that a cold start fills every endpoint. When
    /// none could be connected to, all are tried again: being down is a guess, not a verdict.
    pub fn select(&self) -> Arc<Endpoint> {
        if let [only] = &self.endpoints[..] {
            return Arc::clone(only);
        }
        let order = |endpoint: &&Arc<Endpoint>| {
            (endpoint.is_passed_over(), endpoint.in_flight(), endpoint.selected.load(Ordering::Relaxed))
        };
        let endpoint =
            self.endpoints.iter().min_by_key(order).expect("a plan has at least one endpoint for each upstream");
        endpoint.selected.store(now_micros(), Ordering::Relaxed);
        Arc::clone(endpoint)
    }

    /// Counts a request inside `endpoint`, one of ours, until the guard is dropped.
    pub fn enter(&self, endpoint: &Arc<Endpoint>) -> InFlight {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { endpoint: Arc::clone(endpoint), _counted: self.metrics.in_flight.hold() }
    }

    /// Takes note that a connection was refused; with all of them refused the application is not there.
    pub fn cannot_be_reached(&self) {
        if let Some(readiness) = &self.readiness
            && self.endpoints.iter().all(|endpoint| endpoint.unreachable_for().is_some())
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

    /// Takes note of what a stats server has said of the workers, and follows it if that is wanted.
    pub fn workers_read(&self, read: &Result<Workers, StatsError>) {
        let (Some(stats), upstream) = (&self.stats, &*self.name) else { return };
        if let (Ok(workers), true) = (read, self.plan.follows)
            && let Some(places) = places(*workers)
        {
            self.queue.follow(places);
        }
        let places = self.queue.concurrency();
        let noted = match read {
            Ok(workers) => Ok(*workers),
            Err(error) => Err(error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))),
        };
        for turn in stats.note(noted, Instant::now()) {
            match (turn, read) {
                (Turn::Read, Ok(Workers { workers, threads, .. })) => {
                    tracing::info!(upstream, workers, threads, places, "the workers of uWSGI are known (stats)");
                }
                (Turn::Unread, Err(error)) => {
                    let error = error as &dyn Error;
                    tracing::warn!(
                        upstream,
                        error,
                        places,
                        "the workers of uWSGI are not known (stats); the bound stays"
                    );
                }
                (Turn::Queued(connections), _) => tracing::warn!(
                    upstream,
                    connections,
                    "requests wait in uWSGI's own queue, where nothing is in order: others ask it too, or more are let in than \
                     it has threads (concurrency)"
                ),
                (Turn::Exceptions(exceptions), _) => {
                    tracing::warn!(upstream, exceptions, "more exceptions in the application; its own log tells which");
                }
                (Turn::Read | Turn::Unread, _) => {}
            }
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
        let unreachable: Option<Vec<_>> = self.endpoints.iter().map(|endpoint| endpoint.unreachable_for()).collect();
        let since = unreachable?.into_iter().min()?;
        Some(Missing { name, state: "cannot be reached", since })
    }

    /// Requests inside, over all endpoints and cores.
    pub fn in_flight(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.in_flight()).sum()
    }
}

/// As many places as `workers` take requests. One at least: with none running, the first request has uWSGI start them.
fn places(workers: Workers) -> Option<NonZeroUsize> {
    NonZeroUsize::new(usize::try_from(workers.threads).unwrap_or(usize::MAX).max(1))
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
    fn new(address: &EndpointAddress) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            address: address.clone(),
            label: address.to_string().into(),
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            in_flight: AtomicUsize::new(0),
            selected: AtomicU64::new(0),
            unreachable_since: AtomicU64::new(0),
            passed_over_until: AtomicU64::new(0),
            closes_until: AtomicU64::new(0),
        })
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
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
            endpoints: endpoints.iter().map(|host| EndpointAddress::Tcp { host: (*host).into(), port: 1 }).collect(),
            concurrency: None,
            follows: false,
            stats: Vec::new(),
            queue: QueuePlan { limit: 1, timeout: Duration::from_secs(1), sessions: Vec::new() },
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
        let busy = upstream.select();
        let _request = upstream.enter(&busy);

        assert_ne!(upstream.select().id, busy.id);
        assert_ne!(upstream.select().id, busy.id);
    }

    #[test]
    fn an_endpoint_that_refused_is_passed_over_while_another_answers() {
        let upstream = upstream(&["a", "b"]);
        let refusing = upstream.select();
        assert!(refusing.refused(), "a first failure is news");

        assert_ne!(upstream.select().id, refusing.id);
        assert!(!refusing.refused(), "a second failure is not");
        assert!(refusing.connected(), "an end of the failures is");
        assert!(!refusing.connected(), "a second success is not");
    }

    #[test]
    fn with_every_endpoint_refusing_one_is_selected_all_the_same() {
        let upstream = upstream(&["a"]);
        upstream.endpoints()[0].refused();

        assert_eq!(&*upstream.select().label, "a:1");
    }
}
