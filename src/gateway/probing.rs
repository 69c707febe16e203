//! Looks at the applications' own pages that say whether they are ready, at the health page of each endpoint, and once at
//! what should not be open.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    backends::Supervisord,
    config::{EndpointAddress, HostName, SupervisorPlan},
    http::path::Path,
    proxy::{Look, look, probe},
    runtime::{Current, Runtime},
    upstream::{Endpoint, Finding, Phase, Upstream, UpstreamStream},
};

/// Goes on for as long as the runtime it runs on; `changed` says that another configuration is in force.
pub(super) async fn look_after(current: Arc<Current>, changed: Arc<Notify>) {
    let mut looked: HashMap<String, Instant> = HashMap::new();
    // Each by itself: one that is slow to answer is no reason to look at others later.
    let mut looks = JoinSet::new();
    let mut looking: HashSet<String> = HashSet::new();
    loop {
        let runtime = current.load_full();
        looked.retain(|name, _| runtime.upstreams.contains_key(name));
        for (name, upstream) in &runtime.upstreams {
            let last = looked.get(name);
            if last.is_none_or(|last| last.elapsed() >= pause(upstream)) && looking.insert(name.clone()) {
                looks.spawn(ask(Arc::clone(&runtime), Arc::clone(upstream)));
            }
        }
        drop(runtime);
        timeout(SOON / 2, changed.notified()).await.ok();
        while let Some(done) = looks.try_join_next() {
            if let Ok(name) = done {
                looking.remove(&name);
                looked.insert(name, Instant::now());
            }
        }
    }
}

/// Looks once whether anybody on the internet may command the programs of this machine.
pub(super) async fn warn_of_open_supervisors(current: Arc<Current>) {
    let runtime = current.load_full();
    for address in runtime.plan.docassemble.iter().flat_map(|docassemble| &docassemble.supervisors) {
        let plan = SupervisorPlan {
            address: EndpointAddress::Tcp { host: address.ip().to_string(), port: address.port() },
            program: String::new(),
            username: None,
            password: None,
        };
        if Supervisord(&plan).is_open().await {
            tracing::warn!(
                %address,
                "supervisord answers anybody here, who may then start and stop every program: bind it to 127.0.0.1 \
                 ([inet_http_server] port), give it a username and a password (DASUPERVISORUSERNAME, DASUPERVISORPASSWORD), \
                 or close the port"
            );
        }
    }
}

/// Between two looks at an application.
fn pause(upstream: &Upstream) -> Duration {
    match upstream.readiness.as_ref().map(|readiness| readiness.phase()) {
        Some(Phase::Ready) => LATER,
        _ => SOON,
    }
}

/// Looks at the health page of every endpoint, each by itself; goes on for as long as the runtime it runs on.
pub(super) async fn look_at_endpoints(current: Arc<Current>) {
    // When which is due, by what tells it from all others.
    let mut due: HashMap<u64, Instant> = HashMap::new();
    let mut looks = JoinSet::new();
    let mut looking: HashSet<u64> = HashSet::new();
    loop {
        let runtime = current.load_full();
        let now = Instant::now();
        let mut there = HashSet::new();
        let mut next = now + SOON / 2;
        for upstream in runtime.upstreams.values() {
            let Some(target) = &upstream.plan.health_path else { continue };
            let interval = upstream.plan.health.interval;
            for endpoint in upstream.endpoints().iter() {
                let id = endpoint.id();
                there.insert(id);
                // The first ones are spread as well, over a shorter time.
                let at = due.entry(id).or_insert_with(|| now + (interval / 10).mul_f64(fastrand::f64()));
                if *at > now {
                    next = next.min(*at);
                } else if looks.len() < AT_ONCE && looking.insert(id) {
                    *at = now + interval.mul_f64(0.9 + fastrand::f64() / 5.0);
                    let (runtime, upstream) = (Arc::clone(&runtime), Arc::clone(upstream));
                    looks.spawn(look_at(runtime, upstream, Arc::clone(endpoint), target.clone()));
                }
            }
        }
        due.retain(|id, _| there.contains(id));
        drop(runtime);
        tokio::select! {
            () = sleep_until(next) => {}
            Some(done) = looks.join_next() => {
                if let Ok(id) = done {
                    looking.remove(&id);
                }
            }
        }
    }
}

/// Looks at the health page of one endpoint, and answers what tells it from others.
async fn look_at(runtime: Arc<Runtime>, upstream: Arc<Upstream>, endpoint: Arc<Endpoint>, target: String) -> u64 {
    let host = runtime.plan.host.as_ref().map_or("localhost", HostName::as_str);
    let target = as_sent(&runtime, &upstream, host, &target);
    // Whether the application hangs is seen by its page for that, where it has one; instances of ours have looks of their own.
    let tells = upstream.plan.ready_path.is_none() && upstream.plan.backend.is_none();
    match look(&endpoint, &upstream.plan, &target, host).await {
        Look::Well => {
            endpoint.answered();
            upstream.connected(&endpoint);
            upstream.looked_at_endpoint(&endpoint, Ok(()));
        }
        Look::Failing(why) => {
            upstream.connected(&endpoint);
            upstream.looked_at_endpoint(&endpoint, Err(&why));
        }
        Look::Silent(time) => {
            if tells {
                endpoint.did_not_answer();
            }
            upstream.connected(&endpoint);
            upstream.looked_at_endpoint(&endpoint, Err(&format!("no answer within {time:?}")));
        }
        Look::Unreachable(error) => {
            if tells {
                endpoint.did_not_answer();
            }
            upstream.refused(&endpoint, &error);
            upstream.looked_at_endpoint(&endpoint, Err("no connection"));
        }
    }
    endpoint.id()
}

/// Looks at one application, and answers its name.
async fn ask(runtime: Arc<Runtime>, upstream: Arc<Upstream>) -> String {
    let name = upstream.name.to_string();
    let Some(target) = &upstream.plan.ready_path else {
        // For the starting page, which says what is missing.
        if runtime.upstreams.values().any(|other| other.is_starting()) {
            reach(&upstream).await;
        }
        return name;
    };
    let host = runtime.plan.host.as_ref().map_or("localhost", HostName::as_str);
    let target = as_sent(&runtime, &upstream, host, target);
    let mut found = Finding::Refused;
    for endpoint in upstream.endpoints().iter() {
        found = probe(endpoint, upstream.plan.protocol, &target, host).await;
        match found {
            Finding::Silent | Finding::Refused => endpoint.did_not_answer(),
            Finding::Ready | Finding::NotYet(_) | Finding::Failing(_) => endpoint.answered(),
        }
        if found == Finding::Ready {
            break;
        }
    }
    upstream.looked_at(found);
    name
}

/// Notes whether an application without such a page can be connected to at all.
async fn reach(upstream: &Upstream) {
    for endpoint in upstream.endpoints().iter() {
        match timeout(upstream.plan.connect_timeout, UpstreamStream::connect(&endpoint.address)).await {
            Ok(Ok(_)) => upstream.connected(endpoint),
            Ok(Err(error)) => upstream.refused(endpoint, &error),
            Err(elapsed) => upstream.refused(endpoint, &elapsed.into()),
        }
    }
}

/// `target`, a page as browsers see it, as the application does.
fn as_sent(runtime: &Runtime, upstream: &Upstream, host: &str, target: &str) -> String {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let Ok(path) = Path::read(path) else { return target.to_owned() };
    match runtime.routes.find(host, &path) {
        Some(found) if found.value.plan.strip_prefix && found.value.upstream.name == upstream.name => {
            found.strip(target).into_owned()
        }
        _ => target.to_owned(),
    }
}

/// Between two looks while something is not ready.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks at what is.
const LATER: Duration = Duration::from_secs(5);
/// The most endpoints that are looked at at the same time.
const AT_ONCE: usize = 64;
