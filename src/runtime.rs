//! What a request needs to know, built from a plan: one immutable generation of it.
//!
//! A request looks at [`Current`] once and keeps what it saw to its end. Everything in a
//! [`Runtime`] was resolved when it was built; nothing is looked up by name while a request waits.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};

use crate::{
    access::{Users, Verifier},
    config::{Plan, RoutePlan, UpstreamPlan},
    files::Roots,
    http::{cross_origin::AllowedOrigins, security_headers::SecurityHeaders},
    limits::{Handshakes, Requests},
    metrics::{Gauge, Metrics, RouteMetrics},
    route::RouteTable,
    spool::Spool,
    upstream::{Cookies, StickKey, Upstream},
};

/// One generation of the configuration, in force or on its way out.
#[derive(Debug)]
pub struct Runtime {
    pub generation: u64,
    pub plan: Plan,
    pub routes: RouteTable<Arc<Route>>,
    /// Whether any route keeps anybody out.
    pub is_guarded: bool,
    pub verifier: Arc<Verifier>,
    /// By name.
    pub upstreams: BTreeMap<String, Arc<Upstream>>,
    /// Hosts that are served as they are; certificates' names come on top.
    hosts: HashSet<String>,
    /// The applications' own health pages.
    health_paths: HashSet<String>,
    pub handshakes: Handshakes,
    /// How often any route may be asked.
    pub requests: Requests,
    pub spool: Arc<Spool>,
    /// What log servers may send.
    pub logs: Option<Roots>,
    /// Held while the logs are collected: when that was done last.
    pub logs_collected: tokio::sync::Mutex<Option<Instant>>,
    /// Requests that keep this generation, up to the last byte of each.
    pub exchanges: Gauge,
    since: Instant,
}

/// What a [`Runtime`] is made of beside its plan, and nobody else is told.
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'s> {
    /// The key of cookies, where there are any.
    pub stick: Option<&'s StickKey>,
    /// By the file of `basic_auth`; all that the plan names.
    pub users: &'s BTreeMap<PathBuf, Arc<Users>>,
}

/// A route with all it refers to.
#[derive(Debug)]
pub struct Route {
    pub plan: RoutePlan,
    /// The host and the prefix, as in the configuration; for logs and metrics.
    pub name: Arc<str>,
    pub upstream: Arc<Upstream>,
    /// Those that keep clients at one endpoint; `None` where the route asks for none.
    pub cookies: Option<Cookies>,
    pub files: Roots,
    /// How often it may be asked.
    pub requests: Requests,
    /// Where the route has `allow_origin`.
    pub allow_origin: Option<AllowedOrigins>,
    pub security_headers: Option<Arc<SecurityHeaders>>,
    /// Where the route has `basic_auth`.
    pub users: Option<Arc<Users>>,
    /// Where the route has `forward_auth`: who is asked.
    pub forward: Option<Arc<Upstream>>,
    pub metrics: RouteMetrics,
}

impl Runtime {
    /// Puts together what `plan` says; `roots` are the opened `files` of its routes, in their order.
    ///
    /// What `before`, the generation in force, has and is to go on is taken from it.
    pub fn build(
        plan: Plan,
        mut roots: Vec<Roots>,
        spool: Arc<Spool>,
        generation: u64,
        before: Option<&Self>,
        secrets: Secrets<'_>,
        metrics: &Metrics,
    ) -> Self {
        let upstream = |(name, plan): (&String, &UpstreamPlan)| {
            let before = before.and_then(|before| before.upstreams.get(name));
            (name.clone(), Upstream::succeeding(before, plan, metrics.upstream(name)))
        };
        let upstreams: BTreeMap<_, _> = plan.upstreams.iter().map(upstream).collect();
        let handshakes = Handshakes::new(&plan.limits, before.map(|before| &before.handshakes));
        let requests = Requests::new(&plan.limits.requests, "limits.requests", before.map(|before| &before.requests));
        let logs = roots.split_off(plan.routes.len().min(roots.len())).pop();
        let routes = RouteTable::new(plan.routes.iter().zip(roots).enumerate().map(|(index, (route, files))| {
            let name: Arc<str> = match &route.host {
                Some(host) => format!("{host}{}", route.prefix).into(),
                None => route.prefix.to_string().into(),
            };
            let upstream = upstreams.get(&route.upstream).expect("a plan's routes name its upstreams");
            let before = before.and_then(|before| before.routes.get(route.host.as_ref(), &route.prefix));
            let requests = Requests::new(
                &route.requests,
                &format!("routes[{index}].requests"),
                before.map(|before| &before.requests),
            );
            let value = Route {
                requests,
                plan: route.clone(),
                metrics: metrics.route(&name),
                name,
                upstream: Arc::clone(upstream),
                cookies: route
                    .stick
                    .and(secrets.stick)
                    .map(|key| Cookies::new(key, &route.upstream, route.prefix.as_str())),
                files,
                users: route.access.basic_auth.as_ref().map(|basic| {
                    Arc::clone(secrets.users.get(&basic.file).expect("the users of every route have been read"))
                }),
                forward: route.access.forward_auth.as_ref().map(|forward| {
                    Arc::clone(upstreams.get(&forward.upstream).expect("a plan's routes name its upstreams"))
                }),
                security_headers: SecurityHeaders::new(&route.security_headers).map(Arc::new),
                allow_origin: AllowedOrigins::new(&route.allow_origin),
            };
            (route.host.clone(), route.prefix.clone(), Arc::new(value))
        }));
        let hosts = plan
            .host
            .iter()
            .chain(&plan.aliases)
            .chain(plan.routes.iter().filter_map(|route| route.host.as_ref()))
            .map(|host| host.as_str().to_owned())
            .collect();
        let health_paths = plan.upstreams.values().filter_map(|upstream| upstream.health_path.clone()).collect();
        let verifier = before.map(|before| Arc::clone(&before.verifier));
        let verifier = verifier.unwrap_or_else(|| Arc::new(Verifier::new(plan.workers)));
        let (exchanges, since) = (Gauge::default(), Instant::now());
        let is_guarded = plan.routes.iter().any(RoutePlan::is_guarded);
        Self {
            generation,
            plan,
            routes,
            is_guarded,
            verifier,
            upstreams,
            handshakes,
            requests,
            hosts,
            health_paths,
            spool,
            logs,
            logs_collected: tokio::sync::Mutex::default(),
            exchanges,
            since,
        }
    }

    /// How long ago it was put in force.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether `path`, as it came, is an application's health page.
    pub fn is_health_path(&self, path: &str) -> bool {
        self.health_paths.contains(path)
    }

    /// Whether `host`, in lower case and without a port, is one of the site's.
    pub fn knows(&self, host: &str) -> bool {
        self.hosts.contains(host)
    }
}

/// The generation in force, and those before it that requests still keep.
#[derive(Debug)]
pub struct Current {
    in_force: ArcSwap<Runtime>,
    before: Mutex<Vec<Weak<Runtime>>>,
}

impl Current {
    pub fn new(runtime: Runtime) -> Self {
        Self { in_force: ArcSwap::from_pointee(runtime), before: Mutex::default() }
    }

    /// Puts `runtime` in force for all requests that begin from now on.
    pub fn replace(&self, runtime: Arc<Runtime>) {
        let before = self.in_force.swap(runtime);
        let mut all = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|generation| generation.strong_count() > 0);
        all.push(Arc::downgrade(&before));
    }

    /// The generation in force, and before it those that have exchanges left, oldest first.
    pub fn living(&self) -> Vec<Arc<Runtime>> {
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let used = before.iter().filter_map(Weak::upgrade).filter(|generation| generation.exchanges.get() > 0);
        used.chain([self.in_force.load_full()]).collect()
    }

    pub fn load(&self) -> Guard<Arc<Runtime>> {
        self.in_force.load()
    }

    /// The same, for whoever keeps it for long.
    pub fn load_full(&self) -> Arc<Runtime> {
        self.in_force.load_full()
    }
}
