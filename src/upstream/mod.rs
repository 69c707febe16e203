//! The application as the gateway sees it: a named set of endpoints and the room before it.
//!
//! An [`Upstream`] is shared by all cores, and so are its queue and the counts of its endpoints, on
//! purpose: the bound on requests inside is one bound. Connections are not shared; each core has
//! its own [`Pool`]. What is said over a connection is [`crate::proxy`]'s business.

mod balance;
mod endpoint;
mod health;
mod line;
mod pool;
mod program;
mod queue;
mod readiness;
mod retries;
mod stats;
mod stick;
mod stream;

use std::{
    collections::BTreeMap,
    error::Error,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
pub use balance::Affinity;
use balance::Balancer;
use endpoint::HEARD;
pub use endpoint::{Endpoint, InFlight, Member};
pub use health::{Cause, Failure, State};
use http::StatusCode;
pub use line::{Class, Client, Who};
pub use pool::{Lease, Pool};
pub use program::{Halt, Program, Sight};
pub use queue::{Place, Queue, Refused};
use readiness::LET_IN;
pub use readiness::{Finding, Phase, Readiness};
use retries::Retries;
use stats::Turn;
pub use stats::{Stats, StatsError, Workers};
pub use stick::{Cookies, StickKey};
pub use stream::UpstreamStream;

use crate::{
    config::{EndpointPlace, EndpointPlan, UpstreamPlan},
    http::page::Missing,
    limits::Notice,
    metrics::UpstreamMetrics,
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
    /// The program behind it, where supervisord has one.
    pub program: Option<Arc<Program>>,
    /// Those that there are now; names and processes behind them come and go.
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    balancer: Balancer,
    /// What is known of the places in its plan that have to be resolved.
    answers: Mutex<BTreeMap<EndpointPlace, Answer>>,
    retries: Arc<Retries>,
    /// Held while one is ejected, so that two at once are not all of them.
    ejecting: Mutex<()>,
    /// It takes requests and answers none: nearly all are refused.
    silent: AtomicBool,
    /// When a request may next go there all the same.
    next_trial: AtomicU64,
    /// Requests for which there was no place.
    pub refusals: Notice,
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
        let mut answers = before.map(|before| before.answers().clone()).unwrap_or_default();
        answers.retain(|place, _| plan.endpoints.iter().any(|endpoint| endpoint.address == *place));
        let endpoints = ArcSwap::new(match before {
            // They are said by others, and have not changed with the plan.
            Some(before) if plan.backend.is_some() && before.plan.backend == plan.backend => Arc::clone(&known),
            _ => Arc::new(successors(&known, members_of(plan, &answers))),
        });
        let stats = match before.filter(|before| before.plan.stats == plan.stats) {
            Some(before) => before.stats.clone(),
            None => (!plan.stats.is_empty()).then(Arc::default),
        };
        let workers = stats.as_ref().filter(|_| plan.follows).and_then(|stats| places(stats.last()?));
        let concurrency = workers.or(plan.concurrency);
        if before
            .is_some_and(|before| (&before.plan.health_path, &before.plan.health) != (&plan.health_path, &plan.health))
        {
            known.iter().for_each(|endpoint| endpoint.health.forget_looks());
        }
        let queue =
            before.map(|before| Arc::clone(&before.queue)).filter(|queue| queue.resize(concurrency, &plan.queue));
        // Of the same application, as far as can be told.
        let kept = before.filter(|before| {
            let UpstreamPlan { ready_path, endpoints, backend, .. } = &before.plan;
            (ready_path, endpoints, backend) == (&plan.ready_path, &plan.endpoints, &plan.backend)
        });
        let readiness = match kept {
            Some(before) => before.readiness.clone(),
            None => plan.ready_path.as_ref().map(|_| Arc::default()),
        };
        let program = plan.program.as_ref().map(|plan| {
            let same = before.and_then(|before| before.program.clone()).filter(|before| before.plan == *plan);
            same.unwrap_or_else(|| Arc::new(Program::new(plan.clone())))
        });
        Arc::new(Self {
            plan: plan.clone(),
            name: plan.name.as_str().into(),
            queue: queue.unwrap_or_else(|| Arc::new(Queue::new(concurrency, &plan.queue, metrics.clone()))),
            metrics,
            readiness,
            stats,
            program,
            endpoints,
            balancer: Balancer::new(plan.balance, plan.slow_start, before.map(|before| &before.balancer)),
            answers: Mutex::new(answers),
            retries: before.map(|before| Arc::clone(&before.retries)).unwrap_or_default(),
            ejecting: Mutex::default(),
            silent: AtomicBool::new(false),
            next_trial: AtomicU64::new(0),
            refusals: Notice::new(),
        })
    }

    /// The endpoints that there are now.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Has exactly the endpoints of `members` from now on; those that stay keep what is known of them, and requests
    /// inside those that go come to their end. Called from one place at a time.
    pub fn set_endpoints(&self, members: impl IntoIterator<Item = Member>) {
        self.endpoints.store(Arc::new(successors(&self.endpoints(), members)));
    }

    /// Takes note of what has come of resolving `place`, one of its plan.
    ///
    /// An answer that is the same changes nothing, and where nothing could be found out, what was known last stays.
    pub fn resolved(&self, place: &EndpointPlace, found: Result<Vec<Member>, String>) {
        let upstream = &self.name;
        let mut answers = self.answers();
        let answer = answers.entry(place.clone()).or_default();
        let before = answer.fault.take();
        match found {
            Ok(members) => {
                if before.is_some() {
                    tracing::info!(%upstream, %place, "can be resolved again");
                }
                if answer.members != members {
                    let addresses: Vec<_> = members.iter().map(|member| member.address.to_string()).collect();
                    tracing::info!(%upstream, %place, addresses = addresses.join(", "), "resolved");
                    answer.members = members;
                    self.set_endpoints(members_of(&self.plan, &answers));
                }
            }
            Err(fault) => {
                if before.is_none() {
                    tracing::warn!(%upstream, %place, fault, "cannot be resolved; what was known last stays");
                }
                answer.fault = Some(fault);
            }
        }
    }

    /// Whether its plan names `place`.
    pub fn has(&self, place: &EndpointPlace) -> bool {
        self.plan.endpoints.iter().any(|endpoint| endpoint.address == *place)
    }

    /// Whether an endpoint that was found at `place` cannot be connected to.
    pub fn has_lost(&self, place: &EndpointPlace) -> bool {
        let endpoints = self.endpoints.load();
        let mut lost = endpoints.iter().filter(|endpoint| endpoint.unreachable_for().is_some()).peekable();
        if lost.peek().is_none() {
            return false;
        }
        let answers = self.answers();
        let found = answers.get(place).map(|answer| &answer.members[..]).unwrap_or_default();
        lost.any(|endpoint| found.iter().any(|member| member.address == endpoint.address))
    }

    /// Who was found at `place` last.
    pub fn known(&self, place: &EndpointPlace) -> Option<Vec<Member>> {
        self.answers().get(place).map(|answer| answer.members.clone())
    }

    /// The places of its plan that have to be resolved, and have never been.
    pub fn unresolved(&self) -> Vec<EndpointPlace> {
        let answers = self.answers();
        let places = self.plan.endpoints.iter().map(|endpoint| &endpoint.address);
        places.filter(|place| place.is_resolved() && !answers.contains_key(place)).cloned().collect()
    }

    /// Why places of its plan could not be resolved the last time, by place.
    pub fn unresolvable(&self) -> Vec<(String, String)> {
        let answers = self.answers();
        let faults = answers.iter().filter_map(|(place, answer)| Some((place.to_string(), answer.fault.clone()?)));
        faults.collect()
    }

    fn answers(&self) -> MutexGuard<'_, BTreeMap<EndpointPlace, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picks the endpoint for a request, as [`UpstreamPlan::balance`] says, among those that can be used.
    ///
    /// Backups are used while no other can be, and all are tried again while none can. One that leaves is used for those
    /// requests only that `affinity` ties to it. `None` while there is none.
    pub fn select(&self, affinity: &Affinity) -> Option<Arc<Endpoint>> {
        self.balancer.pick(&self.endpoints.load(), affinity).map(Arc::clone)
    }

    /// Whether there is an endpoint other than `endpoint` that any request can use, as far as is known.
    pub fn has_another(&self, endpoint: &Endpoint) -> bool {
        staying(&self.endpoints.load()).any(|other| other.id != endpoint.id && other.is_usable())
    }

    /// Whether there is an endpoint that could be connected to, the last time.
    pub fn is_reachable(&self) -> bool {
        staying(&self.endpoints.load()).any(|endpoint| endpoint.unreachable_for().is_none())
    }

    /// Counts a request inside `endpoint`, one of ours, until the guard is dropped.
    pub fn enter(&self, endpoint: &Arc<Endpoint>) -> InFlight {
        // In one order with `Program::halt`: who halts it sees this one, or this one sees that.
        endpoint.in_flight.fetch_add(1, Ordering::SeqCst);
        endpoint.sent.fetch_add(1, Ordering::Relaxed);
        InFlight { endpoint: Arc::clone(endpoint), tunnel: false, _counted: self.metrics.in_flight.hold() }
    }

    /// Takes note that a connection to `endpoint` was made.
    pub fn connected(&self, endpoint: &Endpoint) {
        if endpoint.connected() {
            tracing::info!(upstream = %self.name, endpoint = %endpoint.label, "endpoint answers again");
        }
    }

    /// Takes note that none could be made.
    pub fn refused(&self, endpoint: &Endpoint, error: &std::io::Error) {
        if !endpoint.refused(self.plan.eject.time) {
            return;
        }
        tracing::warn!(
            upstream = %self.name,
            endpoint = %endpoint.label,
            error = error as &dyn Error,
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
        endpoint.count_failure();
        if let Failure::Silent { began, .. } = failure
            && endpoint.health.was_silent(began)
        {
            endpoint.did_not_answer();
        }
        if let Some(cause) = endpoint.health.failed(failure, &self.plan.eject) {
            self.eject(endpoint, cause);
        }
    }

    /// Takes note of a look at the health page of `endpoint`, which went well or not, for this reason.
    pub fn looked_at_endpoint(&self, endpoint: &Endpoint, found: Result<(), &str>) {
        let upstream = &self.name;
        if !endpoint.health.looked(found, &self.plan.health, now_micros()) {
            return;
        }
        match found {
            Ok(()) => tracing::info!(%upstream, endpoint = %endpoint.label, "endpoint passes its health check again"),
            // That has been told.
            Err(_) if endpoint.unreachable_for().is_some() => {}
            Err(cause) => tracing::warn!(
                %upstream,
                endpoint = %endpoint.label,
                cause,
                "endpoint fails its health check; it is passed over where there is another one"
            ),
        }
    }

    /// Passes `endpoint` over for a while, unless too many are already: never all of them.
    fn eject(&self, endpoint: &Endpoint, cause: Cause) {
        let endpoints = self.endpoints.load();
        let plan = &self.plan.eject;
        // Not to one that leaves can the others' requests go.
        let count = staying(&endpoints).count();
        // One that answers nothing at all serves nobody, however many there are of them: each request that it is sent waits for
        // a whole deadline, while another one answers.
        let part = if matches!(cause, Cause::Silent(_)) { count } else { count * plan.most as usize / 100 };
        let most = part.max(1).min(count.saturating_sub(1));
        let now = now_micros();
        let ejecting = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |other: &&Arc<Endpoint>| other.id != endpoint.id && !other.is_usable();
        if endpoint.health.is_ejected(now) || staying(&endpoints).filter(missing).count() >= most {
            return;
        }
        let Some(time) = endpoint.health.eject(cause, plan, now) else { return };
        drop(ejecting);
        self.metrics.ejected(cause.kind());
        tracing::warn!(
            upstream = %self.name,
            endpoint = %endpoint.label,
            %cause,
            ?time,
            "endpoint is ejected: it is passed over where there is another one"
        );
    }

    /// Whether a request may go on to an endpoint. Where all of them take requests and answer none, one may at a time, or one
    /// every [`TRIAL`], to see whether that is still so; the others had better not wait for what nobody gets.
    ///
    /// One that cannot be connected to is not silent: it is waited for.
    pub fn admit(&self) -> Result<Option<Trial<'_>>, Silent> {
        let endpoints = self.endpoints.load();
        let silent = |endpoint: &Arc<Endpoint>| endpoint.health.is_silent(self.plan.eject.failures);
        let mut staying = staying(&endpoints).peekable();
        if staying.peek().is_none() || !staying.all(silent) {
            if self.silent.load(Ordering::Relaxed) && self.silent.swap(false, Ordering::Relaxed) {
                tracing::info!(upstream = %self.name, "answers again");
            }
            return Ok(None);
        }
        if !self.silent.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                upstream = %self.name,
                "takes requests and answers none of them; all but one at a time are answered 503 until it does"
            );
        }
        let now = now_micros();
        let next = self.next_trial.load(Ordering::Relaxed);
        let until = now + micros(TRIAL);
        let ours =
            next <= now && self.next_trial.compare_exchange(next, until, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if ours { Ok(Some(Trial { upstream: self, until })) } else { Err(Silent) }
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
            && staying(&self.endpoints.load()).all(|endpoint| endpoint.unreachable_for().is_some())
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
                    tracing::info!(%upstream, workers, threads, places, "the workers of uWSGI are known (stats)");
                }
                (Turn::Unread, Err(error)) => {
                    let error = error as &dyn Error;
                    tracing::warn!(
                        %upstream,
                        error,
                        places,
                        "the workers of uWSGI are not known (stats); the bound stays"
                    );
                }
                (Turn::Queued(connections), _) => tracing::warn!(
                    %upstream,
                    connections,
                    "requests wait in uWSGI's own queue, where nothing is in order: others ask it too, or more are let in than \
                     it has threads (concurrency)"
                ),
                (Turn::Exceptions(exceptions), _) => {
                    tracing::warn!(%upstream, exceptions, "more exceptions in the application; its own log tells which");
                }
                (Turn::Read | Turn::Unread, _) => {}
            }
        }
    }

    fn tell(&self, begun: Option<Phase>, found: Finding) {
        let upstream = &self.name;
        match begun {
            None => {}
            Some(Phase::Ready) => tracing::info!(%upstream, "ready"),
            Some(Phase::Stopping) => tracing::info!(%upstream, "says that it is not ready any more"),
            Some(Phase::Gone) => tracing::warn!(%upstream, "cannot be connected to any more"),
            Some(Phase::Unknown) => tracing::warn!(
                %upstream,
                "has answered for {LET_IN:?} and never that it is ready (health.ready); clients are let in all the same"
            ),
            Some(Phase::Starting) => {
                tracing::info!(%upstream, ?found, "not ready; clients see the starting page");
            }
        }
    }

    /// Waiting for a connection is of no use: its page, or supervisord, says that there is none to come by itself.
    pub fn lets_go(&self) -> bool {
        self.readiness.as_ref().is_some_and(|readiness| readiness.lets_go())
            || self.program.as_ref().is_some_and(|program| program.is_down())
    }

    /// Whether its program, which has run for `running`, hangs: each of its endpoints has let `after` requests and looks pass
    /// without an answer. One that has never answered may be starting, for a while.
    pub fn hangs(&self, after: u32, running: Duration) -> bool {
        let hangs = |endpoint: &Arc<Endpoint>| {
            let silences = endpoint.silences.load(Ordering::Relaxed);
            silences & !HEARD >= after && (silences & HEARD != 0 || running >= LET_IN)
        };
        let endpoints = self.endpoints.load();
        !endpoints.is_empty() && endpoints.iter().all(hangs)
    }

    /// Another process is behind it: what the one before did not answer is not counted against it.
    pub fn begins_anew(&self) {
        for endpoint in self.endpoints.load().iter() {
            endpoint.silences.store(0, Ordering::Relaxed);
            endpoint.health.begins_anew();
        }
    }

    /// Its page has said that it is not ready yet.
    pub fn is_starting(&self) -> bool {
        self.readiness.as_ref().is_some_and(|readiness| readiness.is_starting())
    }

    /// What is missing of it, for whoever waits: in supervisord's words, where it has any.
    pub fn missing(&self) -> Option<Missing> {
        let missing = self.missing_by_itself()?;
        let said = self.program.as_ref().and_then(|program| {
            let seen = program.seen();
            let name = format!("{} ({})", self.name, program.name());
            Some(Missing { name, state: seen.words()?, since: seen.since?.elapsed() })
        });
        Some(said.unwrap_or(missing))
    }

    /// The same without supervisord's word.
    fn missing_by_itself(&self) -> Option<Missing> {
        let name = self.name.to_string();
        if let Some(readiness) = &self.readiness
            && let Some(state) = readiness.words()
        {
            return Some(Missing { name, state, since: readiness.since() });
        }
        let endpoints = self.endpoints.load();
        let unreachable: Option<Vec<_>> = staying(&endpoints).map(|endpoint| endpoint.unreachable_for()).collect();
        let since = unreachable?.into_iter().min()?;
        Some(Missing { name, state: "cannot be reached", since })
    }

    /// Requests have to wait, since its program is being restarted by us.
    pub fn is_halted(&self) -> bool {
        self.program.as_ref().is_some_and(|program| program.is_halted())
    }

    /// Whether nothing is inside but tunnels.
    pub fn is_idle(&self) -> bool {
        let counts = |endpoint: &Arc<Endpoint>| {
            // In this order: one that becomes a tunnel, or ends as one, between the two is taken for a request.
            let tunnels = endpoint.tunnels.load(Ordering::SeqCst);
            endpoint.in_flight.load(Ordering::SeqCst) <= tunnels
        };
        self.endpoints.load().iter().all(counts)
    }

    /// Requests inside, over all endpoints and cores.
    pub fn in_flight(&self) -> usize {
        self.endpoints.load().iter().map(|endpoint| endpoint.in_flight()).sum()
    }
}

/// Those of `endpoints` that any request may go to.
fn staying(endpoints: &[Arc<Endpoint>]) -> impl Iterator<Item = &Arc<Endpoint>> {
    endpoints.iter().filter(|endpoint| !endpoint.is_leaving())
}

/// What is known of a place that has to be resolved.
#[derive(Clone, Debug, Default)]
struct Answer {
    members: Vec<Member>,
    /// Why the last attempt failed.
    fault: Option<String>,
}

/// Whom `plan` names, as far as `answers` tell.
fn members_of(plan: &UpstreamPlan, answers: &BTreeMap<EndpointPlace, Answer>) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::with_capacity(plan.endpoints.len());
    for EndpointPlan { address: place, weight, backup } in &plan.endpoints {
        let found = match place {
            EndpointPlace::At(address) if !place.is_resolved() => vec![address.clone().into()],
            _ => answers.get(place).map(|answer| answer.members.clone()).unwrap_or_default(),
        };
        for member in found {
            // Two names may lead to one address.
            if !members.iter().any(|other| other.address == member.address) {
                let weight = member.weight.saturating_mul(*weight).min(EndpointPlan::LARGEST_WEIGHT);
                members.push(Member { weight, backup: member.backup || *backup, ..member });
            }
        }
    }
    members
}

/// An endpoint for each of `members`: the one of `known` where there is one.
fn successors(known: &[Arc<Endpoint>], members: impl IntoIterator<Item = Member>) -> Vec<Arc<Endpoint>> {
    let successor = |member: Member| {
        let is_same = |endpoint: &&Arc<Endpoint>| endpoint.address == member.address && endpoint.name == member.name;
        let endpoint = known.iter().find(is_same).map_or_else(
            || {
                let endpoint = Endpoint::new(&member);
                if known.iter().any(|other| other.made + micros(SETTLED) < endpoint.made) {
                    endpoint.begins_slowly();
                }
                endpoint
            },
            Arc::clone,
        );
        endpoint.weight.store(member.weight.max(1), Ordering::Relaxed);
        endpoint.backup.store(member.backup, Ordering::Relaxed);
        endpoint.leaving.store(member.leaving, Ordering::Relaxed);
        endpoint
    };
    members.into_iter().map(successor).collect()
}

/// As many places as `workers` take requests. One at least: with none running, the first request has uWSGI start them.
fn places(workers: Workers) -> Option<NonZeroUsize> {
    NonZeroUsize::new(usize::try_from(workers.threads).unwrap_or(usize::MAX).max(1))
}

/// All endpoints take requests and answer none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent;

/// The one request that goes to an application that is silent, until it is dropped.
#[derive(Debug)]
pub struct Trial<'a> {
    upstream: &'a Upstream,
    until: u64,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let next = now_micros() + micros(BETWEEN_TRIALS);
        // Another one may have begun: this one's slowness is not waited for.
        self.upstream.next_trial.compare_exchange(self.until, next, Ordering::Relaxed, Ordering::Relaxed).ok();
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

/// One that comes so much later than others comes among those that are at work.
const SETTLED: Duration = Duration::from_secs(5);
/// How long one trial keeps others from being made.
const TRIAL: Duration = Duration::from_secs(5);
/// From the end of one trial to the next.
const BETWEEN_TRIALS: Duration = Duration::from_secs(1);
#[cfg(test)]
mod tests {
    use super::{endpoint::UNREACHABLE, *};
    use crate::{
        config::{Balance, EjectPlan, EndpointAddress, Protocol, QueuePlan, RetriesPlan},
        metrics::Metrics,
    };

    fn address(host: &str) -> EndpointAddress {
        EndpointAddress::Tcp { host: host.into(), port: 1 }
    }

    pub(super) fn upstream(endpoints: &[&str]) -> Arc<Upstream> {
        let plan = UpstreamPlan {
            name: "app".into(),
            protocol: Protocol::Http,
            backend: None,
            endpoints: endpoints.iter().map(|host| EndpointPlan::at(address(host))).collect(),
            balance: Balance::Least,
            slow_start: Duration::ZERO,
            concurrency: None,
            follows: false,
            stats: Vec::new(),
            queue: QueuePlan { limit: 1, timeout: Duration::from_secs(1), sessions: Vec::new() },
            health_path: None,
            ready_path: None,
            hold: Duration::ZERO,
            connect_timeout: Duration::from_secs(1),
            program: None,
            health: health::tests::looks(),
            eject: EjectPlan { failures: 5, time: Duration::from_secs(10), most: 50 },
            retries: RetriesPlan { budget: 20, floor: 10 },
        };
        Upstream::new(&plan, Metrics::new(std::time::SystemTime::now()).upstream("app"))
    }

    #[test]
    fn the_endpoint_with_the_fewest_requests_is_selected() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2"]);
        let busy = upstream.select(&Affinity::default()).unwrap();
        let _request = upstream.enter(&busy);

        assert_ne!(upstream.select(&Affinity::default()).unwrap().id, busy.id);
        assert_ne!(upstream.select(&Affinity::default()).unwrap().id, busy.id);
    }

    #[test]
    fn an_endpoint_that_refused_is_passed_over_while_another_answers() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2"]);
        let refusing = upstream.select(&Affinity::default()).unwrap();
        assert!(refusing.refused(UNREACHABLE), "a first failure is news");

        assert_ne!(upstream.select(&Affinity::default()).unwrap().id, refusing.id);
        assert!(!refusing.refused(UNREACHABLE), "a second failure is not");
        assert!(refusing.connected(), "an end of the failures is");
        assert!(!refusing.connected(), "a second success is not");
    }

    #[test]
    fn never_are_all_endpoints_ejected_nor_the_only_one() {
        for (endpoints, most) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
            let upstream = upstream(&["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"][..endpoints]);
            let all = upstream.endpoints();
            for endpoint in all.iter() {
                (0..10).for_each(|_| upstream.failed(endpoint, Failure::Unanswered));
            }
            let ejected = all.iter().filter(|endpoint| matches!(endpoint.state(), State::Ejected(..))).count();
            assert_eq!(ejected, most, "of {endpoints:?}");
        }
    }

    #[test]
    fn all_but_one_may_be_ejected_for_answering_nothing() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        let all = upstream.endpoints();
        for endpoint in all.iter() {
            upstream.failed(endpoint, Failure::silent(Duration::from_secs(60), Duration::ZERO));
        }
        let ejected: Vec<_> = all.iter().map(|endpoint| matches!(endpoint.state(), State::Ejected(..))).collect();
        assert_eq!(ejected, [true, true, false]);
    }

    #[test]
    fn one_that_leaves_and_is_not_well_keeps_no_other_from_being_ejected() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        let [bad, good, leaves] = &upstream.endpoints()[..] else { panic!("three were given") };
        let leaving = Member { leaving: true, ..leaves.address.clone().into() };
        upstream.set_endpoints([bad.address.clone().into(), good.address.clone().into(), leaving]);
        leaves.refused(UNREACHABLE);

        (0..10).for_each(|_| upstream.failed(bad, Failure::Unanswered));
        assert!(matches!(bad.state(), State::Ejected(..)), "{:?}", bad.state());

        (0..10).for_each(|_| upstream.failed(good, Failure::Unanswered));
        assert_eq!(good.state(), State::Up, "it is the last one that any request may go to");
    }

    #[test]
    fn an_application_that_answers_nothing_gets_one_request_at_a_time_until_it_does_or_goes() {
        let upstream = upstream(&["127.0.0.1"]);
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
    fn an_upstream_is_idle_with_nothing_inside_but_tunnels() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2"]);
        let [first, second] = &upstream.endpoints()[..] else { panic!("two were given") };
        assert!(upstream.is_idle());
        let (mut tunnel, request) = (upstream.enter(first), upstream.enter(second));
        tunnel.is_tunnel();
        assert!(!upstream.is_idle());
        drop(request);
        assert!(upstream.is_idle());
        drop(tunnel);
        assert!(upstream.is_idle());
        let _request = upstream.enter(first);
        assert!(!upstream.is_idle(), "a tunnel that has ended counts for nothing");
    }

    #[test]
    fn endpoints_that_stay_keep_what_is_known_of_them() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2"]);
        let [_, stays] = &upstream.endpoints()[..] else { panic!("two were given") };
        stays.refused(UNREACHABLE);

        upstream.set_endpoints(["127.0.0.3", "127.0.0.2"].map(|host| address(host).into()));

        let labels: Vec<_> = upstream.endpoints().iter().map(|endpoint| endpoint.label.to_string()).collect();
        assert_eq!(labels, ["127.0.0.3:1", "127.0.0.2:1"]);
        assert_eq!(upstream.endpoints()[1].id, stays.id);
        upstream.set_endpoints([]);
        assert!(upstream.select(&Affinity::default()).is_none());
    }

    #[test]
    fn a_name_is_lost_with_its_own_endpoints_and_with_no_others() {
        let upstream = upstream(&["one.test", "other.test"]);
        let [one, other] = ["one.test", "other.test"].map(|host| EndpointPlace::At(address(host)));
        upstream.resolved(&one, Ok(vec![address("127.0.0.1").into()]));
        upstream.resolved(&other, Ok(vec![address("127.0.0.2").into()]));
        assert!(!upstream.has_lost(&one) && !upstream.has_lost(&other));

        upstream.endpoints()[0].refused(UNREACHABLE);

        assert!(upstream.has_lost(&one));
        assert!(
            !upstream.has_lost(&other),
            "it would be asked for every two seconds, for as long as the other is down"
        );
    }

    #[test]
    fn one_that_leaves_gets_requests_of_those_who_are_there_and_no_others() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2"]);
        let [stays, leaves] = &upstream.endpoints()[..] else { panic!("two were given") };
        let leaving = Member { leaving: true, ..leaves.address.clone().into() };
        upstream.set_endpoints([stays.address.clone().into(), leaving.clone()]);
        let stuck = Affinity { endpoint: Some(Arc::clone(leaves)), ..Affinity::default() };

        assert_eq!(upstream.select(&stuck).unwrap().id, leaves.id);
        stays.refused(UNREACHABLE);
        assert_eq!(upstream.select(&Affinity::default()).unwrap().id, stays.id, "though it refuses");
        assert!(!upstream.is_reachable());
        upstream.set_endpoints([leaving]);
        assert_eq!(upstream.select(&stuck).unwrap().id, leaves.id);
        assert!(upstream.select(&Affinity::default()).is_none(), "though it is the only one");
    }

    #[test]
    fn a_program_hangs_once_none_of_its_endpoints_answers_any_more() {
        let upstream = upstream(&["127.0.0.1", "127.0.0.2"]);
        let silent = |times: usize| {
            for endpoint in std::iter::repeat_n(upstream.endpoints(), times).flat_map(|all| all.to_vec()) {
                endpoint.did_not_answer();
            }
        };
        silent(3);
        assert!(!upstream.hangs(3, Duration::ZERO), "it may be starting");
        assert!(upstream.hangs(3, LET_IN), "for so long");
        upstream.endpoints()[0].answered();
        upstream.endpoints()[1].answered();
        silent(2);
        assert!(!upstream.hangs(3, LET_IN), "two are not three");
        silent(1);
        assert!(upstream.hangs(3, Duration::ZERO));
        upstream.endpoints()[1].answered();
        assert!(!upstream.hangs(3, LET_IN), "one of them answers");
        silent(3);
        upstream.begins_anew();
        assert!(!upstream.hangs(1, LET_IN), "the process of before is gone");
    }

    #[test]
    fn with_every_endpoint_refusing_one_is_selected_all_the_same() {
        let upstream = upstream(&["127.0.0.1"]);
        upstream.endpoints()[0].refused(UNREACHABLE);

        assert_eq!(&*upstream.select(&Affinity::default()).unwrap().label, "127.0.0.1:1");
    }
}
