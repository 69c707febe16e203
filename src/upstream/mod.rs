//! The application as the gateway sees it: a named set of endpoints and the room before it.
//!
//! An [`Upstream`] is shared by all cores, and so are its queue and the counts of its endpoints, on
//! purpose: the bound on requests inside is one bound. Connections are not shared; each core has
//! its own [`Pool`]. What is said over a connection is [`crate::proxy`]'s business.

mod health;
mod pool;
mod queue;
mod readiness;
mod retries;
mod stream;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use health::Health;
pub use health::{Cause, Failure, State};
use http::StatusCode;
pub use pool::{Lease, Pool};
pub use queue::{Place, Queue, Refused};
use readiness::LET_IN;
pub use readiness::{Finding, Phase, Readiness};
use retries::Retries;
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
    retries: Retries,
    /// Held while one is ejected, so that two at once are not all of them.
    ejecting: Mutex<()>,
    /// It takes requests and answers none: nearly all are refused.
    silent: AtomicBool,
    /// When a request may next go there all the same; far away while one does.
    next_trial: AtomicU64,
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
        let endpoints = ArcSwap::from_pointee(successors(&known, &plan.endpoints));
        if before
            .is_some_and(|before| (&before.plan.health_path, &before.plan.health) != (&plan.health_path, &plan.health))
        {
            known.iter().for_each(|endpoint| endpoint.health.forget_looks());
        }
        let queue =
            before.map(|before| Arc::clone(&before.queue)).filter(|queue| queue.resize(plan.concurrency, plan.queue));
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
            queue: queue.unwrap_or_else(|| Arc::new(Queue::new(plan.concurrency, plan.queue, metrics.clone()))),
            metrics,
            readiness,
            endpoints,
            retries: Retries::default(),
            ejecting: Mutex::default(),
            silent: AtomicBool::new(false),
            next_trial: AtomicU64::new(0),
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
        InFlight { endpoint: Arc::clone(endpoint), _counted: self.metrics.in_flight.hold() }
    }

    /// Whether there is an endpoint that nothing speaks against.
    pub fn has_usable(&self) -> bool {
        self.endpoints.load().iter().any(|endpoint| !endpoint.is_passed_over())
    }

    /// Takes note that a connection to `endpoint` was made.
    pub fn connected(&self, endpoint: &Endpoint) {
        if endpoint.connected() {
            tracing::info!(upstream = &*self.name, endpoint = &*endpoint.label, "endpoint answers again");
        }
    }

    /// Takes note that none could be made.
    pub fn refused(&self, endpoint: &Endpoint, error: &std::io::Error) {
        if !endpoint.refused(self.plan.eject.time) {
            return;
        }
        tracing::warn!(
            upstream = &*self.name,
            endpoint = &*endpoint.label,
            error = error as &dyn std::error::Error,
            hold = ?self.plan.hold,
            "endpoint cannot be connected to; requests wait for it as long as `hold`"
        );
        if let Some(cause) = endpoint.health.went_away(now_micros()) {
            self.eject(endpoint, cause);
        }
    }

    /// Takes note of an answer of `endpoint` to a request.
    pub fn answered(&self, endpoint: &Endpoint, status: StatusCode) {
        let (health, now) = (&endpoint.health, now_micros());
        let mut cause = health.answered(status, &self.plan.eject, now);
        if cause.is_none() && status.is_server_error() {
            let endpoints = self.endpoints.load();
            let others = endpoints.iter().filter(|other| other.id != endpoint.id).map(|other| &other.health);
            cause = health.has_more_errors(others, now);
        }
        if let Some(cause) = cause {
            self.eject(endpoint, cause);
        }
    }

    /// Takes note of a request that `endpoint` has failed.
    pub fn failed(&self, endpoint: &Endpoint, failure: Failure) {
        if failure == Failure::Unanswered {
            endpoint.avoid();
        }
        if let Some(cause) = endpoint.health.failed(failure, &self.plan.eject) {
            self.eject(endpoint, cause);
        }
    }

    /// Takes note of a look at the health page of `endpoint`, which went well or not, for this reason.
    pub fn looked_at_endpoint(&self, endpoint: &Endpoint, found: Result<(), &str>) {
        let (upstream, label) = (&*self.name, &*endpoint.label);
        if !endpoint.health.looked(found, &self.plan.health, now_micros()) {
            return;
        }
        match found {
            Ok(()) => tracing::info!(upstream, endpoint = label, "endpoint passes its health check again"),
            // That has been told.
            Err(_) if endpoint.unreachable_for().is_some() => {}
            Err(cause) => tracing::warn!(
                upstream,
                endpoint = label,
                cause,
                "endpoint fails its health check; it is passed over where there is another one"
            ),
        }
    }

    /// Passes `endpoint` over for a while, unless too many are already: never all of them.
    fn eject(&self, endpoint: &Endpoint, cause: Cause) {
        let endpoints = self.endpoints.load();
        let plan = &self.plan.eject;
        let most = (endpoints.len() * plan.most as usize / 100).max(1).min(endpoints.len().saturating_sub(1));
        let now = now_micros();
        let ejecting = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        if endpoints.iter().filter(|other| other.health.is_ejected(now)).count() >= most {
            return;
        }
        let Some(time) = endpoint.health.eject(cause, plan, now) else { return };
        drop(ejecting);
        self.metrics.ejected(cause.kind());
        tracing::warn!(
            upstream = &*self.name,
            endpoint = &*endpoint.label,
            %cause,
            ?time,
            "endpoint is ejected: it is passed over where there is another one"
        );
    }

    /// Whether a request may go on to an endpoint. Where all of them take requests and answer none, one may at a time, to see
    /// whether that is still so; the others had better not wait for what nobody gets.
    ///
    /// One that cannot be connected to is not silent: it is waited for.
    pub fn admit(&self) -> Result<Option<Trial<'_>>, Silent> {
        let endpoints = self.endpoints.load();
        let silent = |endpoint: &Arc<Endpoint>| endpoint.health.is_silent(self.plan.eject.failures);
        if endpoints.is_empty() || !endpoints.iter().all(silent) {
            if self.silent.load(Ordering::Relaxed) && self.silent.swap(false, Ordering::Relaxed) {
                tracing::info!(upstream = &*self.name, "answers again");
            }
            return Ok(None);
        }
        if !self.silent.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                upstream = &*self.name,
                "takes requests and answers none of them; all but one at a time are answered 503 until it does"
            );
        }
        let now = now_micros();
        let next = self.next_trial.load(Ordering::Relaxed);
        let ours = next <= now
            && self.next_trial.compare_exchange(next, u64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if ours { Ok(Some(Trial(self))) } else { Err(Silent) }
    }

    /// It takes requests and answered none of them, the last time that one came.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Counts a request, of which a part may be sent again.
    pub fn count_request(&self) {
        self.retries.request(now_micros());
    }

    /// Whether a request may be sent again.
    pub fn may_retry(&self) -> bool {
        let may = self.retries.take(self.plan.retries, now_micros());
        self.metrics.retried(may);
        may
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
    selected: AtomicU64,
    /// Since when no connection could be made, in microseconds on [`now_micros`]'s clock; 0 when one could, or none
    /// was tried.
    unreachable_since: AtomicU64,
    /// Until when it is passed over.
    passed_over_until: AtomicU64,
    /// The same for its having closed a connection under a request.
    avoided_until: AtomicU64,
    /// The same for its closing connections without having said so.
    closes_until: AtomicU64,
    health: Health,
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
            avoided_until: AtomicU64::new(0),
            closes_until: AtomicU64::new(0),
            health: Health::default(),
        })
    }

    /// What tells it from all others.
    pub fn id(&self) -> u64 {
        self.id
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
        let now = now_micros();
        let until = self.passed_over_until.load(Ordering::Relaxed).max(self.avoided_until.load(Ordering::Relaxed));
        until > now || self.health.is_passed_over(now)
    }

    /// How it stands.
    pub fn state(&self) -> State {
        match self.unreachable_for() {
            Some(time) => State::Unreachable(time),
            None => self.health.state(now_micros()).unwrap_or(State::Up),
        }
    }

    /// It has closed a connection under a request, which goes elsewhere where there is an elsewhere. A connection that can
    /// be made does not end that: of a process that is dying they all can, for a moment.
    pub fn avoid(&self) {
        self.avoided_until.store(now_micros() + micros(UNREACHABLE), Ordering::Relaxed);
    }

    fn pass_over(&self, time: Duration) {
        self.passed_over_until.store(now_micros() + micros(time), Ordering::Relaxed);
    }

    /// A connection was made; answers whether that is news.
    fn connected(&self) -> bool {
        self.passed_over_until.store(0, Ordering::Relaxed);
        self.unreachable_since.load(Ordering::Relaxed) != 0 && self.unreachable_since.swap(0, Ordering::Relaxed) != 0
    }

    /// No connection could be made; answers whether that is news. The longer it has been so the longer it is passed over
    /// until the next attempt, up to `longest`.
    fn refused(&self, longest: Duration) -> bool {
        let now = now_micros();
        let time = self.unreachable_for().unwrap_or_default().min(longest).max(UNREACHABLE);
        self.pass_over(time);
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

/// All endpoints take requests and answer none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent;

/// The one request that goes to an application that is silent, until it is dropped.
#[derive(Debug)]
pub struct Trial<'a>(&'a Upstream);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.next_trial.store(now_micros() + micros(BETWEEN_TRIALS), Ordering::Relaxed);
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

/// How long an endpoint that refused a connection, or closed one under a request, is passed over while another one answers.
const UNREACHABLE: Duration = Duration::from_secs(1);
/// From the end of one trial to the next.
const BETWEEN_TRIALS: Duration = Duration::from_secs(1);
/// How long an endpoint that closed an idle connection at once gets a new connection for each request.
const CLOSES: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{EjectPlan, HealthPlan, Protocol, QueuePlan, RetriesPlan},
        metrics::Metrics,
    };

    fn upstream(endpoints: &[&str]) -> Arc<Upstream> {
        let plan = UpstreamPlan {
            name: "app".into(),
            protocol: Protocol::Http,
            endpoints: endpoints.iter().map(|host| EndpointAddress::Tcp { host: (*host).into(), port: 1 }).collect(),
            concurrency: None,
            queue: QueuePlan { limit: 1, timeout: Duration::from_secs(1) },
            health_path: None,
            ready_path: None,
            hold: Duration::ZERO,
            connect_timeout: Duration::from_secs(1),
            health: HealthPlan {
                interval: Duration::from_secs(5),
                timeout: Duration::from_secs(5),
                status: vec![200],
                body: None,
                failures: 3,
                successes: 2,
            },
            eject: EjectPlan { failures: 5, time: Duration::from_secs(10), most: 50 },
            retries: RetriesPlan { budget: 20, floor: 10 },
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
        assert!(refusing.refused(UNREACHABLE), "a first failure is news");

        assert_ne!(upstream.select().unwrap().id, refusing.id);
        assert!(!refusing.refused(UNREACHABLE), "a second failure is not");
        assert!(refusing.connected(), "an end of the failures is");
        assert!(!refusing.connected(), "a second success is not");
    }

    #[test]
    fn never_are_all_endpoints_ejected_nor_the_only_one() {
        for (endpoints, most) in [(&["a"][..], 0), (&["a", "b"], 1), (&["a", "b", "c"], 1), (&["a", "b", "c", "d"], 2)]
        {
            let upstream = upstream(endpoints);
            let all = upstream.endpoints();
            for endpoint in all.iter() {
                (0..10).for_each(|_| upstream.failed(endpoint, Failure::Unanswered));
            }
            let ejected = all.iter().filter(|endpoint| matches!(endpoint.state(), State::Ejected(..))).count();
            assert_eq!(ejected, most, "of {endpoints:?}");
        }
    }

    #[test]
    fn an_application_that_answers_nothing_gets_one_request_at_a_time_until_it_does_or_goes() {
        let upstream = upstream(&["a"]);
        let endpoint = &upstream.endpoints()[0];
        let silent = || Failure::silent(Duration::from_secs(60), Duration::ZERO);
        for _ in 0..5 {
            assert_eq!(upstream.admit().map(|trial| trial.is_some()), Ok(false));
            upstream.failed(endpoint, silent());
        }

        let trial = upstream.admit().unwrap();
        assert!(trial.is_some());
        assert_eq!(upstream.admit().unwrap_err(), Silent);
        upstream.answered(endpoint, StatusCode::OK);
        assert!(upstream.admit().unwrap().is_none(), "it answers");

        (0..5).for_each(|_| upstream.failed(endpoint, silent()));
        drop(trial);
        assert_eq!(upstream.admit().unwrap_err(), Silent, "the last trial was just now");
        upstream.refused(endpoint, &std::io::ErrorKind::ConnectionRefused.into());
        assert!(upstream.admit().unwrap().is_none(), "it is restarted, and waited for");
    }

    #[test]
    fn endpoints_that_stay_keep_what_is_known_of_them() {
        let upstream = upstream(&["a", "b"]);
        let [_, stays] = &upstream.endpoints()[..] else { panic!("two were given") };
        stays.refused(UNREACHABLE);

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
        upstream.endpoints()[0].refused(UNREACHABLE);

        assert_eq!(&*upstream.select().unwrap().label, "a:1");
    }
}
