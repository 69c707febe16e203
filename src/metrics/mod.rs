//! Numbers about the gateway, for Prometheus.
//!
//! A [`Metrics`] belongs to one gateway; nothing here is process-wide. Whoever counts asks once for the handles of its
//! route, upstream or listener ([`Metrics::route`] takes a lock) and keeps them: counting is then a relaxed addition.
//!
//! Every label comes from the plan or from a fixed list, never from a client. The series of a route, upstream or
//! listener that a reload took away go with the first reload after the last request that counts in them.

mod admin;
mod sharded;

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter, family::Family, gauge, info::Info},
    registry::{Registry, Unit},
};

pub use admin::AdminRefusal;
use admin::AdminRefused;
pub use sharded::{Counter, Gauge, Held, Histogram};

/// Every metric of one gateway.
pub struct Metrics {
    registry: Registry,
    requests: Family<RouteCode, Counter>,
    request_seconds: Family<RouteLabel, Histogram>,
    bytes_received: Family<RouteLabel, Counter>,
    bytes_sent: Family<RouteLabel, Counter>,
    upstream_requests: Family<UpstreamOutcome, Counter>,
    upstream_in_flight: Family<UpstreamLabel, Gauge>,
    upstream_queue_depth: Family<UpstreamLabel, Gauge>,
    upstream_queue_seconds: Family<UpstreamLabel, Histogram>,
    upstream_queue_refused: Family<UpstreamRefusal, Counter>,
    /// What uWSGI says of its workers, in the order of [`WORKERS`].
    workers: [Family<UpstreamLabel, gauge::Gauge>; WORKERS.len()],
    upstream_restarts: Family<UpstreamLabel, Counter>,
    upstream_ejections: Family<UpstreamEjection, Counter>,
    upstream_retries: Family<UpstreamOutcome, Counter>,
    upstream_endpoint_up: Family<EndpointLabel, gauge::Gauge>,
    upstream_endpoint_in_flight: Family<EndpointLabel, gauge::Gauge>,
    upstream_endpoint_requests: Family<EndpointLabel, counter::Counter>,
    upstream_endpoint_failures: Family<EndpointLabel, counter::Counter>,
    connections: Family<ListenerLabel, Gauge>,
    connections_total: Family<ListenerLabel, Counter>,
    connections_shed: Family<ListenerShed, Counter>,
    accept_errors: Family<ListenerLabel, Counter>,
    tls_handshakes: Family<HandshakeLabel, Counter>,
    /// Websockets.
    pub tunnels: Gauge,
    /// Requests that were too many.
    pub requests_limited: Counter,
    /// Requests of clients that were let in, for which there was no memory.
    pub requests_shed: Counter,
    admin_refused: Family<AdminRefused, Counter>,
    memory: gauge::Gauge,
    /// Bytes of bodies on disk.
    pub spool_bytes: Gauge,
    /// Lines the access log could not keep up with or could not write.
    pub access_log_dropped: Counter,
    generation: gauge::Gauge,
    last_reload_success: gauge::Gauge,
    certificate_expires: Family<CertificateLabel, gauge::Gauge>,
    certificate_order_failures: Family<CertificateLabel, gauge::Gauge>,
    backend_instances: Family<BackendState, gauge::Gauge>,
    backend_restarts: Family<BackendLabel, counter::Counter>,
    backend_memory: Family<BackendLabel, gauge::Gauge>,
    program_memory: Family<ProgramLabel, gauge::Gauge>,
    program_cpu: Family<ProgramLabel, gauge::Gauge>,
    /// Requests that were answered before they had a route.
    pub unrouted: RouteMetrics,
    known: Mutex<Known>,
}

/// The handles of all series that have names, by their names.
#[derive(Default)]
struct Known {
    routes: HashMap<String, RouteMetrics>,
    upstreams: HashMap<String, UpstreamMetrics>,
    listeners: HashMap<String, ListenerMetrics>,
}

impl Metrics {
    /// All at zero, for a process that started at `started`.
    #[must_use]
    pub fn new(started: SystemTime) -> Self {
        let mut registry = Registry::with_prefix("vestibule");

        let requests = Family::default();
        registry.register("requests", "Requests answered, by route and class of status", requests.clone());
        let request_seconds = Family::default();
        let help = "From the beginning of a request to the end of its response";
        registry.register_with_unit("request", help, Unit::Seconds, request_seconds.clone());
        let bytes_received = Family::default();
        registry.register("bytes_received", "Bytes of request bodies", bytes_received.clone());
        let bytes_sent = Family::default();
        registry.register("bytes_sent", "Bytes of response bodies", bytes_sent.clone());

        let upstream_requests = Family::default();
        registry.register(
            "upstream_requests",
            "Exchanges with an upstream, by how the head of the answer came",
            upstream_requests.clone(),
        );
        let upstream_in_flight = Family::default();
        registry.register("upstream_in_flight", "Requests inside an upstream", upstream_in_flight.clone());
        let upstream_queue_depth = Family::default();
        registry.register("upstream_queue_depth", "Requests waiting for a place", upstream_queue_depth.clone());
        let upstream_queue_seconds = Family::default();
        let help = "Time requests waited for a place";
        registry.register_with_unit("upstream_queue", help, Unit::Seconds, upstream_queue_seconds.clone());
        let upstream_queue_refused = Family::default();
        let help = "Requests that left the queue without a place";
        registry.register("upstream_queue_refused", help, upstream_queue_refused.clone());

        let workers = WORKERS.map(|(name, help)| {
            let family = Family::<UpstreamLabel, gauge::Gauge>::default();
            registry.register(name, help, family.clone());
            family
        });
        let upstream_restarts = Family::default();
        let help = "Restarts of the program behind an upstream that were ordered because it hung or used too much";
        registry.register("upstream_restarts", help, upstream_restarts.clone());
        let upstream_ejections = Family::default();
        let help = "Times that an endpoint was passed over for a while, by what requests met there";
        registry.register("upstream_ejections", help, upstream_ejections.clone());
        let upstream_retries = Family::default();
        let help = "Requests that were sent again, or were not, being beyond the budget";
        registry.register("upstream_retries", help, upstream_retries.clone());
        let upstream_endpoint_up = Family::<EndpointLabel, gauge::Gauge>::default();
        let help = "1 if nothing speaks against an endpoint, 0 if it is unreachable, failing or ejected";
        registry.register("upstream_endpoint_up", help, upstream_endpoint_up.clone());
        let upstream_endpoint_in_flight = Family::<EndpointLabel, gauge::Gauge>::default();
        let help = "Requests inside an endpoint";
        registry.register("upstream_endpoint_in_flight", help, upstream_endpoint_in_flight.clone());
        let upstream_endpoint_requests = Family::<EndpointLabel, counter::Counter>::default();
        let help = "Requests that were sent to an endpoint, since it is one";
        registry.register("upstream_endpoint_requests", help, upstream_endpoint_requests.clone());
        let upstream_endpoint_failures = Family::<EndpointLabel, counter::Counter>::default();
        let help = "Those that an endpoint did not answer, and connections to it that could not be made";
        registry.register("upstream_endpoint_failures", help, upstream_endpoint_failures.clone());

        let connections = Family::default();
        registry.register("connections", "Open connections", connections.clone());
        let connections_total = Family::default();
        registry.register("connections_accepted", "Connections accepted", connections_total.clone());
        let connections_shed = Family::default();
        let help = "Connections that a limit refused or ended, by which";
        registry.register("connections_shed", help, connections_shed.clone());
        let accept_errors = Family::default();
        registry.register("accept_errors", "Connections that could not be accepted", accept_errors.clone());
        let tls_handshakes = Family::default();
        registry.register("tls_handshakes", "TLS handshakes, by outcome", tls_handshakes.clone());
        let tunnels = Gauge::default();
        registry.register("tunnels", "Open websockets", tunnels.clone());

        let requests_limited = Counter::default();
        let help = "Requests answered 429: more than limits.requests or routes[].requests allow";
        registry.register("requests_limited", help, requests_limited.clone());
        let requests_shed = Counter::default();
        let help = "Requests on open connections that were refused: much more memory than limits.memory allows";
        registry.register("requests_shed", help, requests_shed.clone());
        let admin_refused = Family::default();
        let help = "Requests and connections that the admin endpoint over TCP refused, by why";
        registry.register("admin_refused", help, admin_refused.clone());
        let memory = gauge::Gauge::<i64>::default();
        let help = "Memory of this worker, which limits.memory bounds";
        registry.register_with_unit("memory", help, Unit::Bytes, memory.clone());
        let spool_bytes = Gauge::default();
        registry.register("spool_bytes", "Bytes of bodies on disk", spool_bytes.clone());
        let access_log_dropped = Counter::default();
        registry.register("access_log_dropped", "Access log lines that were not written", access_log_dropped.clone());

        let generation = gauge::Gauge::<i64>::default();
        registry.register("generation", "Number of the configuration in force", generation.clone());
        let last_reload_success = gauge::Gauge::<i64>::default();
        let help = "1 if the last reload took effect, 0 if it was refused";
        registry.register("last_reload_success", help, last_reload_success.clone());
        let certificate_expires = Family::<CertificateLabel, gauge::Gauge>::default();
        let help = "Until a certificate expires, by its first name; negative once it has";
        registry.register_with_unit("certificate_expires", help, Unit::Seconds, certificate_expires.clone());
        let certificate_order_failures = Family::<CertificateLabel, gauge::Gauge>::default();
        let help = "Attempts to order a certificate that have failed one after the other";
        registry.register("certificate_order_failures", help, certificate_order_failures.clone());
        let backend_instances = Family::<BackendState, gauge::Gauge>::default();
        registry.register("backend_instances", "Instances of a program of ours", backend_instances.clone());
        let backend_restarts = Family::<BackendLabel, counter::Counter>::default();
        let help = "Instances that ended unasked, hung, or did not get ready";
        registry.register("backend_restarts", help, backend_restarts.clone());
        let backend_memory = Family::<BackendLabel, gauge::Gauge>::default();
        let help = "Memory of all instances, with all that they have begun";
        registry.register_with_unit("backend_memory", help, Unit::Bytes, backend_memory.clone());
        let program_memory = Family::<ProgramLabel, gauge::Gauge>::default();
        let help = "Memory of a program of supervisord's, with all that it has begun";
        registry.register_with_unit("program_memory", help, Unit::Bytes, program_memory.clone());
        let program_cpu = Family::<ProgramLabel, gauge::Gauge>::default();
        registry.register("program_cpu_percent", "Of one processor, likewise", program_cpu.clone());
        let since = started.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let process_start_time = gauge::Gauge::<f64, AtomicU64>::default();
        process_start_time.set(since.as_secs_f64());
        let help = "When the process started, in seconds since 1970";
        registry.register_with_unit("process_start_time", help, Unit::Seconds, process_start_time);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What is running", build);

        let mut metrics = Self {
            registry,
            requests,
            request_seconds,
            bytes_received,
            bytes_sent,
            upstream_requests,
            upstream_in_flight,
            upstream_queue_depth,
            upstream_queue_seconds,
            upstream_queue_refused,
            workers,
            upstream_restarts,
            upstream_ejections,
            upstream_retries,
            upstream_endpoint_up,
            upstream_endpoint_in_flight,
            upstream_endpoint_requests,
            upstream_endpoint_failures,
            connections,
            connections_total,
            connections_shed,
            accept_errors,
            tls_handshakes,
            tunnels,
            requests_limited,
            requests_shed,
            admin_refused,
            memory,
            spool_bytes,
            access_log_dropped,
            generation,
            last_reload_success,
            certificate_expires,
            certificate_order_failures,
            backend_instances,
            backend_restarts,
            backend_memory,
            program_memory,
            program_cpu,
            unrouted: RouteMetrics::default(),
            known: Mutex::default(),
        };
        metrics.unrouted = metrics.route(NO_ROUTE);
        metrics
    }

    /// The handles of the route named `route`; [`NO_ROUTE`] for requests that took none.
    #[must_use]
    pub fn route(&self, route: &str) -> RouteMetrics {
        let new = || {
            let label = RouteLabel { route: route.to_owned() };
            let code = |code| RouteCode { route: route.to_owned(), code };
            RouteMetrics {
                requests: CODES.map(|class| self.requests.get_or_create_owned(&code(class))),
                seconds: self.request_seconds.get_or_create_owned(&label),
                bytes_received: self.bytes_received.get_or_create_owned(&label),
                bytes_sent: self.bytes_sent.get_or_create_owned(&label),
            }
        };
        self.known().routes.entry(route.to_owned()).or_insert_with(new).clone()
    }

    /// The handles of the upstream named `upstream`.
    #[must_use]
    pub fn upstream(&self, upstream: &str) -> UpstreamMetrics {
        let new = || {
            let label = UpstreamLabel { upstream: upstream.to_owned() };
            UpstreamMetrics {
                outcomes: Outcome::ALL.map(|outcome| {
                    let label = UpstreamOutcome { upstream: upstream.to_owned(), outcome: outcome.label() };
                    self.upstream_requests.get_or_create_owned(&label)
                }),
                in_flight: self.upstream_in_flight.get_or_create_owned(&label),
                queue_depth: self.upstream_queue_depth.get_or_create_owned(&label),
                queue_seconds: self.upstream_queue_seconds.get_or_create_owned(&label),
                restarts: self.upstream_restarts.get_or_create_owned(&label),
                refusals: Refusal::ALL.map(|reason| {
                    let label = UpstreamRefusal { upstream: upstream.to_owned(), reason: reason.label() };
                    self.upstream_queue_refused.get_or_create_owned(&label)
                }),
                ejections: Ejection::ALL.map(|cause| {
                    let label = UpstreamEjection { upstream: upstream.to_owned(), cause: cause.label() };
                    self.upstream_ejections.get_or_create_owned(&label)
                }),
                retries: RETRIES.map(|outcome| {
                    let label = UpstreamOutcome { upstream: upstream.to_owned(), outcome };
                    self.upstream_retries.get_or_create_owned(&label)
                }),
            }
        };
        self.known().upstreams.entry(upstream.to_owned()).or_insert_with(new).clone()
    }

    /// The handles of the listener bound to `listener`.
    #[must_use]
    pub fn listener(&self, listener: &str) -> ListenerMetrics {
        let new = || {
            let label = ListenerLabel { listener: listener.to_owned() };
            let handshake = |outcome: Handshake| HandshakeLabel { outcome: outcome.label() };
            ListenerMetrics {
                connections: self.connections.get_or_create_owned(&label),
                connections_total: self.connections_total.get_or_create_owned(&label),
                shed: Shed::ALL.map(|reason| {
                    let label = ListenerShed { listener: listener.to_owned(), reason: reason.label() };
                    self.connections_shed.get_or_create_owned(&label)
                }),
                accept_errors: self.accept_errors.get_or_create_owned(&label),
                handshakes: Handshake::ALL.map(|outcome| self.tls_handshakes.get_or_create_owned(&handshake(outcome))),
            }
        };
        self.known().listeners.entry(listener.to_owned()).or_insert_with(new).clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the series that nobody counts in any more.
    fn prune(&self) {
        let Known { routes, upstreams, listeners } = &mut *self.known();
        for (route, _) in routes.extract_if(|_, handles| !handles.in_use()) {
            for code in CODES {
                self.requests.remove(&RouteCode { route: route.clone(), code });
            }
            let label = RouteLabel { route };
            self.request_seconds.remove(&label);
            self.bytes_received.remove(&label);
            self.bytes_sent.remove(&label);
        }
        for (upstream, _) in upstreams.extract_if(|_, handles| !handles.in_use()) {
            for outcome in Outcome::ALL {
                let label = UpstreamOutcome { upstream: upstream.clone(), outcome: outcome.label() };
                self.upstream_requests.remove(&label);
            }
            for reason in Refusal::ALL {
                let label = UpstreamRefusal { upstream: upstream.clone(), reason: reason.label() };
                self.upstream_queue_refused.remove(&label);
            }
            for cause in Ejection::ALL {
                let label = UpstreamEjection { upstream: upstream.clone(), cause: cause.label() };
                self.upstream_ejections.remove(&label);
            }
            for outcome in RETRIES {
                self.upstream_retries.remove(&UpstreamOutcome { upstream: upstream.clone(), outcome });
            }
            let label = UpstreamLabel { upstream };
            self.upstream_in_flight.remove(&label);
            self.upstream_queue_depth.remove(&label);
            self.upstream_queue_seconds.remove(&label);
            self.upstream_restarts.remove(&label);
        }
        for (listener, _) in listeners.extract_if(|_, handles| !handles.in_use()) {
            for reason in Shed::ALL {
                let label = ListenerShed { listener: listener.clone(), reason: reason.label() };
                self.connections_shed.remove(&label);
            }
            let label = ListenerLabel { listener };
            self.connections.remove(&label);
            self.connections_total.remove(&label);
            self.accept_errors.remove(&label);
        }
    }

    /// A configuration was put in force, and whoever counts for it has its handles.
    pub fn reloaded(&self, generation: u64) {
        self.prune();
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.last_reload_success.set(1);
    }

    /// A configuration was refused.
    pub fn reload_refused(&self) {
        self.last_reload_success.set(0);
    }

    /// The configuration that was refused has been mended: it is the one in force.
    pub fn reload_mended(&self) {
        self.last_reload_success.set(1);
    }

    /// So many bytes of memory were measured.
    pub fn memory(&self, bytes: u64) {
        self.memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Takes note of how certificates stand: seconds left by key path and first name, and failures by the same.
    pub fn certificates<'a>(
        &self,
        expire: impl Iterator<Item = (&'a str, String, i64)>,
        orders: impl Iterator<Item = (&'a str, String, u32)>,
    ) {
        let label = |at: &str, name| CertificateLabel { certificate: at.to_owned(), name };
        // What is no more is not told of.
        self.certificate_expires.clear();
        for (at, name, seconds) in expire {
            self.certificate_expires.get_or_create(&label(at, name)).set(seconds);
        }
        self.certificate_order_failures.clear();
        for (at, name, failures) in orders {
            self.certificate_order_failures.get_or_create(&label(at, name)).set(failures.into());
        }
    }

    /// Takes note of what uWSGI says of its workers, by upstream. What is not said any more is not told.
    pub fn workers(&self, known: impl Iterator<Item = (String, [u64; WORKERS.len()])>) {
        self.workers.iter().for_each(Family::clear);
        for (upstream, values) in known {
            let label = UpstreamLabel { upstream };
            for (family, value) in self.workers.iter().zip(values) {
                family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
    }

    /// Takes note of how endpoints stand, by upstream. One that is none any more is not told of.
    pub fn endpoints<'a>(&self, endpoints: impl Iterator<Item = (&'a str, EndpointCounts)>) {
        self.upstream_endpoint_up.clear();
        self.upstream_endpoint_in_flight.clear();
        self.upstream_endpoint_requests.clear();
        self.upstream_endpoint_failures.clear();
        for (upstream, EndpointCounts { endpoint, up, in_flight, requests, failures }) in endpoints {
            let label = EndpointLabel { upstream: upstream.to_owned(), endpoint };
            self.upstream_endpoint_up.get_or_create(&label).set(up.into());
            let in_flight = i64::try_from(in_flight).unwrap_or(i64::MAX);
            self.upstream_endpoint_in_flight.get_or_create(&label).set(in_flight);
            self.upstream_endpoint_requests.get_or_create(&label).inner().store(requests, Ordering::Relaxed);
            self.upstream_endpoint_failures.get_or_create(&label).inner().store(failures, Ordering::Relaxed);
        }
    }

    /// How programs of ours are, as the keeper has last said it: the name, instances by state, how many have failed, and bytes of
    /// memory of all.
    pub fn backends<'a>(&self, backends: impl Iterator<Item = (&'a str, Vec<(&'static str, usize)>, u64, u64)>) {
        self.backend_instances.clear();
        self.backend_restarts.clear();
        self.backend_memory.clear();
        for (name, states, restarts, memory) in backends {
            let label = BackendLabel { backend: name.to_owned() };
            for (state, count) in states {
                let label = BackendState { backend: name.to_owned(), state };
                self.backend_instances.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            self.backend_restarts.get_or_create(&label).inc_by(restarts);
            self.backend_memory.get_or_create(&label).set(i64::try_from(memory).unwrap_or(i64::MAX));
        }
    }

    /// What programs of supervisord's use: the upstream, the name, bytes of memory and percents of a processor.
    pub fn programs(&self, programs: impl Iterator<Item = (String, String, u64, u32)>) {
        self.program_memory.clear();
        self.program_cpu.clear();
        for (upstream, program, memory, cpu) in programs {
            let label = ProgramLabel { upstream, program };
            self.program_memory.get_or_create(&label).set(i64::try_from(memory).unwrap_or(i64::MAX));
            self.program_cpu.get_or_create(&label).set(cpu.into());
        }
    }

    /// Everything, in the `OpenMetrics` text format; see [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("a string takes every write");
        text
    }
}

/// What uWSGI says of its workers, and what that is. Gauges all, as it counts and begins anew when it likes.
pub const WORKERS: [(&str, &str); 7] = [
    ("uwsgi_workers", "Workers of uWSGI that run"),
    ("uwsgi_threads", "Requests that the workers of uWSGI take at once"),
    ("uwsgi_busy", "Requests that the workers of uWSGI have"),
    ("uwsgi_listen_queue", "Connections in uWSGI's own queue"),
    ("uwsgi_exceptions", "Exceptions in the application since uWSGI was started"),
    ("uwsgi_spawns", "Workers that uWSGI has started"),
    ("uwsgi_harakiris", "Workers that uWSGI has killed over a request"),
];

/// What is counted of one route.
#[derive(Clone, Debug, Default)]
pub struct RouteMetrics {
    requests: [Counter; 5],
    seconds: Histogram,
    bytes_received: Counter,
    bytes_sent: Counter,
}

impl RouteMetrics {
    fn in_use(&self) -> bool {
        self.bytes_sent.handles() > OURS
    }

    /// A request is over. A `status` outside 100 to 599 counts in the nearest class.
    pub fn finished(&self, status: u16, total: Duration, bytes_received: u64, bytes_sent: u64) {
        self.requests[usize::from(status / 100).clamp(1, 5) - 1].inc();
        self.seconds.observe(total);
        self.bytes_received.add(bytes_received);
        self.bytes_sent.add(bytes_sent);
    }
}

/// What is counted of one upstream.
#[derive(Clone, Debug)]
pub struct UpstreamMetrics {
    outcomes: [Counter; Outcome::ALL.len()],
    pub in_flight: Gauge,
    pub queue_depth: Gauge,
    pub queue_seconds: Histogram,
    pub restarts: Counter,
    refusals: [Counter; Refusal::ALL.len()],
    ejections: [Counter; Ejection::ALL.len()],
    retries: [Counter; RETRIES.len()],
}

impl UpstreamMetrics {
    /// A request inside, or one that waits, keeps one handle and no more.
    fn in_use(&self) -> bool {
        [&self.in_flight, &self.queue_depth].into_iter().any(|gauge| gauge.handles() > OURS)
    }

    /// An exchange is over.
    pub fn finished(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// An endpoint is passed over for a while.
    pub fn ejected(&self, cause: Ejection) {
        self.ejections[cause as usize].inc();
    }

    /// A request was to be sent again, and was if it may be.
    pub fn retried(&self, may: bool) {
        self.retries[usize::from(!may)].inc();
    }

    /// A request left the queue without a place.
    pub fn refused(&self, reason: Refusal) {
        self.refusals[reason as usize].inc();
    }
}

/// What is counted of one endpoint, by itself.
#[derive(Clone, Debug)]
pub struct EndpointCounts {
    pub endpoint: String,
    /// Nothing speaks against it.
    pub up: bool,
    pub in_flight: usize,
    pub requests: u64,
    pub failures: u64,
}

/// What is counted of one listener.
#[derive(Clone, Debug)]
pub struct ListenerMetrics {
    connections: Gauge,
    connections_total: Counter,
    shed: [Counter; Shed::ALL.len()],
    accept_errors: Counter,
    handshakes: [Counter; Handshake::ALL.len()],
}

impl ListenerMetrics {
    /// An open connection keeps one handle and no more.
    fn in_use(&self) -> bool {
        self.connections.handles() > OURS
    }

    /// A connection was accepted; it is open until the guard is dropped.
    #[must_use]
    pub fn accepted(&self) -> Held {
        self.connections_total.inc();
        self.connections.hold()
    }

    /// Open now.
    pub fn connections(&self) -> u64 {
        self.connections.get()
    }

    /// A connection was refused or ended by a limit.
    pub fn shed(&self, reason: Shed) {
        self.shed[reason as usize].inc();
    }

    /// How many have been, by which.
    pub fn all_shed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Shed::ALL.iter().zip(&self.shed).map(|(reason, count)| (reason.label(), count.get()))
    }

    /// `accept` failed.
    pub fn accept_error(&self) {
        self.accept_errors.inc();
    }

    /// A TLS handshake is over. Counted over all listeners.
    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes[outcome as usize].inc();
    }
}

/// How an exchange with an upstream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Ok,
    ErrorConnect,
    ErrorTimeout,
    ErrorProtocol,
    /// Not sent: nobody answers there.
    Refused,
    /// The client went away first.
    Canceled,
}

impl Outcome {
    const ALL: [Self; 6] =
        [Self::Ok, Self::ErrorConnect, Self::ErrorTimeout, Self::ErrorProtocol, Self::Refused, Self::Canceled];

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ErrorConnect => "error_connect",
            Self::ErrorTimeout => "error_timeout",
            Self::ErrorProtocol => "error_protocol",
            Self::Refused => "refused",
            Self::Canceled => "canceled",
        }
    }
}

/// Why a request left the queue without a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    Full,
    Timeout,
    /// The client went away first.
    Canceled,
}

impl Refusal {
    const ALL: [Self; 3] = [Self::Full, Self::Timeout, Self::Canceled];

    fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
        }
    }
}

/// Which limit a connection was refused or ended by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shed {
    /// All there may be.
    Connections,
    /// Those of one client.
    Address,
    /// Requests of one client.
    Streams,
    Handshakes,
    Memory,
    /// Frames of HTTP/2 that ask for nothing.
    Flood,
}

impl Shed {
    pub const ALL: [Self; 6] =
        [Self::Connections, Self::Address, Self::Streams, Self::Handshakes, Self::Memory, Self::Flood];

    fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Address => "address",
            Self::Streams => "streams",
            Self::Handshakes => "handshakes",
            Self::Memory => "memory",
            Self::Flood => "flood",
        }
    }
}

/// What an endpoint was passed over for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ejection {
    /// Answers 5xx.
    Errors,
    /// Requests that were not answered.
    Closed,
    Timeout,
    Flapping,
}

impl Ejection {
    const ALL: [Self; 4] = [Self::Errors, Self::Closed, Self::Timeout, Self::Flapping];

    fn label(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Flapping => "flapping",
        }
    }
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handshake {
    Ok,
    Error,
    Timeout,
}

impl Handshake {
    const ALL: [Self; 3] = [Self::Ok, Self::Error, Self::Timeout];

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabel {
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProgramLabel {
    upstream: String,
    program: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendState {
    backend: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabel {
    certificate: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteCode {
    route: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamOutcome {
    upstream: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamRefusal {
    upstream: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamEjection {
    upstream: String,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    upstream: String,
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerShed {
    listener: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabel {
    outcome: &'static str,
}

/// The route label of requests that took no route: refused before, or for a path nobody serves.
pub const NO_ROUTE: &str = "none";

/// Clones of a handle that count nothing: of the family, and of those that are known.
const OURS: usize = 2;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const RETRIES: [&str; 2] = ["sent", "over_budget"];

const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Reads the exposition as a scraper does: every sample by its name and labels. Panics on what is none.
    fn parsed(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut typed = Vec::new();
        let body = text.strip_suffix("# EOF\n").expect("the exposition ends with its mark");
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let (keyword, rest) = comment.split_once(' ').unwrap();
                assert!(matches!(keyword, "HELP" | "TYPE" | "UNIT"), "{line}");
                if keyword == "TYPE" {
                    typed.push(rest.split_once(' ').unwrap().0.to_owned());
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            assert!(name.starts_with(typed.last().unwrap().as_str()), "{line} without its type");
            let before = samples.insert(series.to_owned(), value.parse().unwrap());
            assert_eq!(before, None, "{series} twice");
        }
        samples
    }

    #[test]
    fn what_was_counted_is_in_the_exposition() {
        let metrics = Metrics::new(UNIX_EPOCH + Duration::from_millis(1_795_382_971_250));
        let (route, upstream) = (metrics.route("/da/"), metrics.upstream("app"));
        let listener = metrics.listener("[::]:443");

        route.finished(200, Duration::from_millis(3), 5, 70);
        route.finished(499, Duration::from_secs(61), 0, 7);
        metrics.route("/da/").finished(204, Duration::from_millis(500), 0, 0);
        upstream.finished(Outcome::ErrorTimeout);
        upstream.refused(Refusal::Full);
        upstream.queue_seconds.observe(Duration::from_millis(2));
        upstream.queue_depth.add(3);
        let _inside = upstream.in_flight.hold();
        let _open = listener.accepted();
        drop(listener.accepted());
        listener.accept_error();
        listener.handshake(Handshake::Ok);
        let _tunnel = metrics.tunnels.hold();
        metrics.spool_bytes.add(4096);
        metrics.access_log_dropped.add(9);
        metrics.reloaded(4);

        let samples = parsed(&metrics.encode());
        for (series, value) in [
            (r#"requests_total{route="/da/",code="2xx"}"#, 2.0),
            (r#"requests_total{route="/da/",code="4xx"}"#, 1.0),
            (r#"requests_total{route="/da/",code="5xx"}"#, 0.0),
            (r#"request_seconds_count{route="/da/"}"#, 3.0),
            (r#"request_seconds_sum{route="/da/"}"#, 61.503),
            (r#"request_seconds_bucket{le="0.0025",route="/da/"}"#, 0.0),
            (r#"request_seconds_bucket{le="0.005",route="/da/"}"#, 1.0),
            (r#"request_seconds_bucket{le="60.0",route="/da/"}"#, 2.0),
            (r#"request_seconds_bucket{le="+Inf",route="/da/"}"#, 3.0),
            (r#"bytes_received_total{route="/da/"}"#, 5.0),
            (r#"bytes_sent_total{route="/da/"}"#, 77.0),
            (r#"upstream_requests_total{upstream="app",outcome="error_timeout"}"#, 1.0),
            (r#"upstream_requests_total{upstream="app",outcome="ok"}"#, 0.0),
            (r#"upstream_in_flight{upstream="app"}"#, 1.0),
            (r#"upstream_queue_depth{upstream="app"}"#, 3.0),
            (r#"upstream_queue_seconds_count{upstream="app"}"#, 1.0),
            (r#"upstream_queue_refused_total{upstream="app",reason="full"}"#, 1.0),
            (r#"connections{listener="[::]:443"}"#, 1.0),
            (r#"connections_accepted_total{listener="[::]:443"}"#, 2.0),
            (r#"accept_errors_total{listener="[::]:443"}"#, 1.0),
            (r#"tls_handshakes_total{outcome="ok"}"#, 1.0),
            ("tunnels", 1.0),
            ("spool_bytes", 4096.0),
            ("access_log_dropped_total", 9.0),
            ("generation", 4.0),
            ("last_reload_success", 1.0),
            ("process_start_time_seconds", 1_795_382_971.25),
            (concat!(r#"build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#), 1.0),
        ] {
            assert_eq!(samples.get(&format!("vestibule_{series}")), Some(&value), "{series} in {samples:#?}");
        }
    }

    #[test]
    fn series_that_nobody_counts_in_go_with_a_reload() {
        let metrics = Metrics::new(SystemTime::now());
        metrics.reloaded(1);
        let before = metrics.encode();
        for number in 0..100 {
            let name = number.to_string();
            metrics.route(&name).finished(200, Duration::ZERO, 0, 0);
            metrics.upstream(&name).finished(Outcome::Ok);
            drop(metrics.listener(&name).accepted());
        }
        let route = metrics.route("route");
        let (inside, open) = (metrics.upstream("upstream").in_flight.hold(), metrics.listener("listener").accepted());

        metrics.reloaded(1);
        let kept = parsed(&metrics.encode());
        for (series, value) in [
            (r#"bytes_sent_total{route="route"}"#, 0.0),
            (r#"upstream_in_flight{upstream="upstream"}"#, 1.0),
            (r#"connections{listener="listener"}"#, 1.0),
        ] {
            assert_eq!(kept.get(&format!("vestibule_{series}")), Some(&value), "{series} in {kept:#?}");
        }

        drop((route, inside, open));
        metrics.reloaded(1);
        // But for the handshakes, which are counted over all listeners.
        let after: BTreeMap<_, _> =
            parsed(&metrics.encode()).into_iter().filter(|(series, _)| !series.contains("handshakes")).collect();
        assert_eq!(after, parsed(&before));
    }

    #[test]
    fn an_endpoint_that_has_gone_leaves_the_exposition() {
        let metrics = Metrics::new(SystemTime::now());
        let counts = |endpoint: &str, requests| {
            let endpoint = endpoint.to_owned();
            ("app", EndpointCounts { endpoint, up: true, in_flight: 2, requests, failures: 1 })
        };
        metrics.endpoints([counts("10.0.0.1:80", 3), counts("10.0.0.2:80", 4)].into_iter());
        metrics.endpoints([counts("10.0.0.2:80", 5)].into_iter());

        let samples = parsed(&metrics.encode());
        for (name, value) in [("up", 1.0), ("in_flight", 2.0), ("requests_total", 5.0), ("failures_total", 1.0)] {
            let series = format!(r#"vestibule_upstream_endpoint_{name}{{upstream="app",endpoint="10.0.0.2:80"}}"#);
            assert_eq!(samples.get(&series), Some(&value), "{series} in {samples:#?}");
        }
        assert!(!samples.keys().any(|series| series.contains("10.0.0.1")), "{samples:#?}");
    }

    #[test]
    fn a_refused_reload_keeps_the_generation() {
        let metrics = Metrics::new(SystemTime::now());
        metrics.reloaded(7);

        metrics.reload_refused();

        let samples = parsed(&metrics.encode());
        assert_eq!(samples.get("vestibule_generation"), Some(&7.0));
        assert_eq!(samples.get("vestibule_last_reload_success"), Some(&0.0));
    }

    #[test]
    fn a_status_no_class_has_is_counted_all_the_same() {
        let metrics = Metrics::new(SystemTime::now());

        for status in [0, 99, 100, 600, u16::MAX] {
            metrics.route(NO_ROUTE).finished(status, Duration::ZERO, 0, 0);
        }

        let samples = parsed(&metrics.encode());
        assert_eq!(samples.get(r#"vestibule_requests_total{route="none",code="1xx"}"#), Some(&3.0));
        assert_eq!(samples.get(r#"vestibule_requests_total{route="none",code="5xx"}"#), Some(&2.0));
    }

    #[test]
    fn a_name_with_quotes_does_not_break_the_exposition() {
        let metrics = Metrics::new(SystemTime::now());

        metrics.route("/\"}\n\\").finished(200, Duration::ZERO, 0, 1);

        let samples = parsed(&metrics.encode());
        assert_eq!(samples.get(r#"vestibule_bytes_sent_total{route="/\"}\n\\"}"#), Some(&1.0));
    }
}
