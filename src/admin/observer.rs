//! What the admin endpoint is told about a running gateway.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::{
    AdminState, CertificateStatus, EndpointStatus, GenerationStatus, HopStatus, HopsStatus, LimitsStatus,
    ListenerStatus, Order, Orders, Outcome, ProgramStatus, Report, Status, UpstreamStatus, tag, timestamp,
};
use crate::{
    backends::InstanceState,
    config::{Protocol, SupervisorPlan, without_passwords},
    drain::Drain,
    limits::{Connections, memory},
    metrics::{EndpointCounts, ListenerMetrics, Metrics},
    runtime::{Current, Runtime},
    service::{Hop, Hops, Seen},
    tls::CertificateStore,
    upstream::{Endpoint, Program, Sight, State, Upstream},
};

/// Looks at what the gateway is made of.
pub struct Observer {
    pub started: SystemTime,
    pub current: Arc<Current>,
    pub metrics: Arc<Metrics>,
    pub certificates: Arc<CertificateStore>,
    pub connections: Arc<Connections>,
    /// The address of each, whether it speaks TLS, and its counts.
    pub listeners: ArcSwap<Vec<(String, bool, ListenerMetrics)>>,
    pub drain: Drain,
    /// The chain of proxies, as requests show it.
    pub hops: Arc<Hops>,
    /// What the keeper last said of itself.
    pub report: ArcSwap<Report>,
    /// Where orders go.
    pub orders: Option<Orders>,
    /// Where those go to restart a program of supervisord's.
    pub restarts: mpsc::UnboundedSender<(SupervisorPlan, oneshot::Sender<Outcome>)>,
}

impl AdminState for Observer {
    fn ready(&self) -> Result<(), String> {
        if self.drain.is_on() {
            Err("stopping: requests in flight come to their end".to_owned())
        } else if self.drain.is_unready() {
            Err("draining: about to stop".to_owned())
        } else {
            Ok(())
        }
    }

    fn status(&self) -> Status {
        let runtime = self.current.load();
        let now = jiff::Timestamp::now();
        let listener = |(address, tls, metrics): &(String, bool, ListenerMetrics)| ListenerStatus {
            address: address.clone(),
            tls: *tls,
            connections: metrics.connections(),
        };
        let upstreams = runtime.upstreams.values().map(|upstream| UpstreamStatus {
            name: upstream.name.to_string(),
            protocol: match upstream.plan.protocol {
                Protocol::Http => "http".to_owned(),
                Protocol::Uwsgi => "uwsgi".to_owned(),
            },
            endpoints: upstream
                .endpoints()
                .iter()
                .map(|endpoint| EndpointStatus {
                    address: endpoint.label.to_string(),
                    state: match endpoint.state() {
                        State::Up => "up".to_owned(),
                        State::Unreachable(_) => "unreachable".to_owned(),
                        State::Failing(why) => format!("failing: {why}"),
                        State::Ejected(left, cause) => format!("ejected for {}s more: {cause}", left.as_secs() + 1),
                    },
                    unreachable_seconds: endpoint.unreachable_for().map(|time| time.as_secs()),
                    weight: endpoint.weight().into(),
                    backup: endpoint.is_backup(),
                    in_flight: endpoint.in_flight() as u64,
                })
                .collect(),
            unresolved: upstream.unresolvable().into_iter().collect(),
            in_flight: upstream.in_flight() as u64,
            concurrency: upstream.queue.concurrency().map(|places| places as u64),
            queue_depth: upstream.queue.depth() as u64,
            queue_limit: upstream.plan.queue.limit as u64,
            readiness: upstream.readiness.as_ref().map(|readiness| readiness.phase().name().to_owned()),
            readiness_seconds: upstream.readiness.as_ref().map(|readiness| readiness.since().as_secs()),
            workers: upstream.stats.as_ref().and_then(|stats| stats.last()),
            stats_unread_seconds: unread(upstream).map(|(time, _)| time.as_secs()),
            stats_fault: unread(upstream).map(|(_, why)| why),
            program: upstream.program.as_ref().map(|program| program_status(program)),
        });
        let certificates = self.certificates.certificates();
        let certificates = certificates.iter().map(|certificate| CertificateStatus {
            names: certificate.names().iter().map(ToString::to_string).collect(),
            source: if certificate.self_signed() { "self-signed" } else { certificate.at() }.to_owned(),
            not_after: certificate.not_after().to_string(),
            days_left: certificate.days_left(now),
        });
        let processes = Report::clone(&self.report.load());
        let started = processes.since.unwrap_or(self.started);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: timestamp(started),
            uptime_seconds: started.elapsed().unwrap_or(Duration::ZERO).as_secs(),
            generation: runtime.generation,
            listeners: self.listeners.load().iter().map(listener).collect(),
            upstreams: upstreams.collect(),
            certificates: certificates.collect(),
            connections: self.connections.count() as u64,
            tunnels: self.metrics.tunnels.get(),
            limits: LimitsStatus {
                connections: runtime.plan.limits.connections as u64,
                memory: self.connections.memory.used(),
                memory_limit: Some(memory::bound(&runtime.plan.limits)).filter(|bound| *bound < u64::MAX),
                closed: self.listeners.load().iter().flat_map(|(.., metrics)| metrics.all_shed()).fold(
                    BTreeMap::new(),
                    |mut all, (reason, count)| {
                        *all.entry(reason.to_owned()).or_default() += count;
                        all
                    },
                ),
                requests: self.metrics.requests_limited.get(),
            },
            generations: self.current.living().iter().map(|living| generation(living)).collect(),
            processes,
            hops: hops(&self.hops.seen()),
        }
    }

    fn config(&self) -> serde_json::Value {
        without_passwords(&self.current.load().plan)
    }

    fn order(&self, order: Order) -> Option<oneshot::Receiver<Outcome>> {
        let (done, outcome) = oneshot::channel();
        self.orders.as_ref()?.send((order, done)).ok()?;
        Some(outcome)
    }

    fn restart(&self, name: &str) -> Option<oneshot::Receiver<Outcome>> {
        let runtime = self.current.load();
        if runtime.plan.backends.contains_key(name) {
            return self.order(Order::Restart { backend: tag(name) });
        }
        let (done, outcome) = oneshot::channel();
        let programs =
            || runtime.upstreams.values().filter_map(|upstream| Some((upstream, upstream.program.as_ref()?)));
        let program = programs()
            .find(|(_, program)| program.name() == name)
            .or_else(|| programs().find(|(upstream, _)| &*upstream.name == name));
        self.restarts.send((program?.1.plan.supervisor.clone(), done)).ok()?;
        Some(outcome)
    }

    fn metrics(&self) -> String {
        let (certificates, report) = (self.certificates.certificates(), self.report.load());
        let now = jiff::Timestamp::now().as_second();
        let expire = certificates.iter().map(|certificate| {
            let name = certificate.names().first().map(ToString::to_string).unwrap_or_default();
            (certificate.at(), name, certificate.not_after().as_second().saturating_sub(now))
        });
        let orders = report
            .orders
            .iter()
            .map(|order| (order.at.as_str(), order.hosts.first().cloned().unwrap_or_default(), order.failures));
        self.metrics.certificates(expire, orders);
        let runtime = self.current.load();
        let known =
            |upstream: &Arc<Upstream>| Some((upstream.name.to_string(), upstream.stats.as_ref()?.last()?.values()));
        self.metrics.workers(runtime.upstreams.values().filter_map(known));
        let used = |upstream: &Arc<Upstream>| {
            let program = upstream.program.as_ref()?;
            let used = program.seen().used?;
            Some((upstream.name.to_string(), program.name().to_owned(), used.memory, used.cpu))
        };
        self.metrics.programs(runtime.upstreams.values().filter_map(used));
        let mut endpoints = Vec::new();
        for upstream in runtime.upstreams.values() {
            let counts = |endpoint: &Arc<Endpoint>| EndpointCounts {
                endpoint: endpoint.label.to_string(),
                up: endpoint.state() == State::Up,
                in_flight: endpoint.in_flight(),
                requests: endpoint.sent(),
                failures: endpoint.failures(),
            };
            endpoints.extend(upstream.endpoints().iter().map(|endpoint| (&*upstream.name, counts(endpoint))));
        }
        self.metrics.endpoints(endpoints.into_iter());
        let backends = report.backends.iter().map(|backend| {
            let count = |state: &str| backend.instances.iter().filter(|instance| instance.state == state).count();
            let states = InstanceState::ALL.map(InstanceState::name).map(|state| (state, count(state)));
            let memory = backend.instances.iter().map(|instance| instance.memory).sum();
            (backend.name.as_str(), states.to_vec(), backend.restarts, memory)
        });
        self.metrics.backends(backends);
        self.metrics.encode()
    }
}

fn unread(upstream: &Upstream) -> Option<(Duration, String)> {
    upstream.stats.as_ref()?.unread()
}

fn hops(seen: &Seen) -> HopsStatus {
    let hop = |hop: &Hop| HopStatus {
        at: timestamp(hop.at),
        peer: hop.peer.clone(),
        said: hop.said.clone(),
        client: hop.client.clone(),
        scheme: hop.scheme.to_owned(),
        host: hop.host.clone(),
    };
    HopsStatus {
        trusted: seen.trusted.as_ref().map(hop),
        untrusted: seen.untrusted.as_ref().map(hop),
        mismatch: seen
            .mismatch
            .as_ref()
            .map(|mismatch| format!("{} (at {})", mismatch.problem, timestamp(mismatch.at))),
    }
}

fn program_status(program: &Program) -> ProgramStatus {
    let Sight { info, since, unasked, restarts, last_restart, used, over, .. } = program.seen();
    let last = last_restart.map(|(at, cause)| (timestamp(at), cause)).unzip();
    ProgramStatus {
        name: program.name().to_owned(),
        state: info.as_ref().map(|info| info.state.name().to_owned()),
        state_seconds: since.map(|since| since.elapsed().as_secs()),
        pid: info.as_ref().map(|info| info.pid).filter(|pid| *pid != 0),
        why: info.and_then(|info| info.why).or(unasked),
        restarts,
        last_restart: last.0,
        last_cause: last.1,
        memory: used.map(|used| used.memory),
        cpu: used.map(|used| used.cpu),
        over,
    }
}

fn generation(runtime: &Runtime) -> GenerationStatus {
    GenerationStatus {
        generation: runtime.generation,
        age_seconds: runtime.age().as_secs(),
        exchanges: runtime.exchanges.get(),
    }
}
