//! What a request needs to know, built from a plan: one immutable generation of it.
//!
//! A request looks at [`Current`] once and keeps what it saw to its end. Everything in a
//! [`Runtime`] was resolved when it was built; nothing is looked up by name while a request waits.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use arc_swap::{ArcSwap, Guard};

use crate::{
    config::{Plan, RoutePlan},
    files::Roots,
    metrics::{Metrics, RouteMetrics},
    route::RouteTable,
    upstream::Upstream,
};

/// One generation of the configuration, in force or on its way out.
#[derive(Debug)]
pub struct Runtime {
    pub generation: u64,
    pub plan: Plan,
    pub routes: RouteTable<Arc<Route>>,
    /// By name.
    pub upstreams: BTreeMap<String, Arc<Upstream>>,
    /// Hosts that are served as they are; certificates' names come on top.
    hosts: HashSet<String>,
    /// The applications' own health pages.
    health_paths: HashSet<String>,
}

/// A route with all it refers to.
#[derive(Debug)]
pub struct Route {
    pub plan: RoutePlan,
    /// The host and the prefix, as in the configuration; for logs and metrics.
    pub name: Arc<str>,
    pub upstream: Arc<Upstream>,
    pub files: Roots,
    pub metrics: RouteMetrics,
}

impl Runtime {
    /// Puts together what `plan` says; `roots` are the opened `files` of its routes, in their order.
    pub fn build(plan: Plan, roots: Vec<Roots>, generation: u64, metrics: &Metrics) -> Self {
        let upstreams: BTreeMap<_, _> = plan
            .upstreams
            .iter()
            .map(|(name, upstream)| (name.clone(), Upstream::new(upstream, metrics.upstream(name))))
            .collect();
        let routes = RouteTable::new(plan.routes.iter().zip(roots).map(|(route, files)| {
            let name: Arc<str> = match &route.host {
                Some(host) => format!("{host}{}", route.prefix).into(),
                None => route.prefix.to_string().into(),
            };
            let upstream = upstreams.get(&route.upstream).expect("a plan's routes name its upstreams");
            let value = Route {
                plan: route.clone(),
                metrics: metrics.route(&name),
                name,
                upstream: Arc::clone(upstream),
                files,
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
        Self { generation, plan, routes, upstreams, hosts, health_paths }
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

/// The generation in force.
#[derive(Debug)]
pub struct Current(ArcSwap<Runtime>);

impl Current {
    pub fn new(runtime: Runtime) -> Self {
        Self(ArcSwap::from_pointee(runtime))
    }

    pub fn load(&self) -> Guard<Arc<Runtime>> {
        self.0.load()
    }
}
