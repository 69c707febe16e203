//! Instances of programs of ours: which of them get requests, and what the keeper, who has begun them and never connects
//! anywhere, is told of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc::UnboundedSender,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Gateway, News};
use crate::{
    backends::{Instance, InstanceState},
    config::{HostName, Protocol},
    proxy::probe,
    runtime::{Current, Runtime},
    upstream::{Endpoint, Finding, Member, Upstream, UpstreamStream},
};

/// What there is to tell of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceNews {
    /// It answers.
    Up,
    /// It should, and does not.
    Hung,
    /// It is sent nothing any more and has nothing left.
    Drained,
    /// So many requests have been sent there.
    Served(u32),
}

impl Gateway {
    /// Sends requests to those of `instances` that serve, from now on.
    pub fn set_instances(&self, instances: Vec<Instance>) {
        // Who asks about those that serve no more finds their endpoints by their addresses: before they are taken out.
        self.instances.store(Arc::new(instances));
        self.instances_changed.notify_one();
        let instances = self.instances.load();
        for runtime in self.current.living() {
            assign(&runtime, &instances);
        }
    }

    /// Tells `news` how the instances are, from now on and for as long as the control runtime runs.
    pub fn look_after_instances(&self, news: UnboundedSender<News>) {
        let (current, instances) = (Arc::clone(&self.current), Arc::clone(&self.instances));
        let changed = Arc::clone(&self.instances_changed);
        self.control.spawn(async move {
            let mut watch = Watch::default();
            loop {
                let known = instances.load_full();
                if known.is_empty() {
                    changed.notified().await;
                    continue;
                }
                watch.look(&current, &known, &news);
                timeout(TICK, changed.notified()).await.ok();
            }
        });
    }
}

/// Has the upstreams of `runtime` send requests to the instances that serve, and to those that linger what is theirs.
pub(super) fn assign(runtime: &Runtime, instances: &[Instance]) {
    for upstream in runtime.upstreams.values() {
        let Some(backend) = &upstream.plan.backend else { continue };
        let member = |instance: &Instance| {
            let leaving = match instance.state {
                InstanceState::Serving => false,
                InstanceState::Lingering => true,
                InstanceState::Starting | InstanceState::Draining | InstanceState::Stopping => return None,
            };
            Some(Member { leaving, ..instance.address.clone().into() })
        };
        let members: Vec<_> =
            instances.iter().filter(|instance| instance.backend == *backend).filter_map(member).collect();
        let endpoints = upstream.endpoints();
        let known = endpoints.iter().map(|endpoint| (&endpoint.address, endpoint.is_leaving()));
        if !known.eq(members.iter().map(|member| (&member.address, member.leaving))) {
            upstream.set_endpoints(members);
        }
    }
}

/// What is known of the instances that there are, by their numbers.
#[derive(Default)]
struct Watch {
    known: HashMap<u32, Known>,
    looks: JoinSet<(u32, Finding)>,
    looking: HashSet<u32>,
}

#[derive(Default)]
struct Known {
    /// Everywhere that requests are sent to it from; those of generations that go are kept until it has gone.
    endpoints: Vec<Arc<Endpoint>>,
    looked: Option<Instant>,
    /// Looks at its page in a row that were not answered.
    unanswered: u32,
    /// When it was last told that it hangs.
    told_hung: Option<Instant>,
    /// Since when nothing is inside.
    empty: Option<Instant>,
    served: u32,
}

impl Watch {
    fn look(&mut self, current: &Current, instances: &[Instance], news: &UnboundedSender<News>) {
        self.known.retain(|id, _| instances.iter().any(|instance| instance.id == *id));
        let tell = |id, found| {
            // Nobody hears it when we stop.
            news.send(News::Instance { id, found }).ok();
        };
        let runtimes = current.living();
        while let Some(done) = self.looks.try_join_next() {
            let Ok((id, found)) = done else { continue };
            self.looking.remove(&id);
            let (Some(known), Some(instance)) =
                (self.known.get_mut(&id), instances.iter().find(|instance| instance.id == id))
            else {
                continue;
            };
            known.looked = Some(Instant::now());
            match (instance.state, found) {
                (InstanceState::Starting, Finding::Ready) => tell(id, InstanceNews::Up),
                (_, Finding::Silent | Finding::Refused) => known.unanswered += 1,
                _ => known.unanswered = 0,
            }
        }
        for instance in instances {
            let known = self.known.entry(instance.id).or_default();
            for upstream in runtimes.iter().flat_map(|runtime| of(runtime, &instance.backend)) {
                for endpoint in upstream.endpoints().iter().filter(|endpoint| endpoint.address == instance.address) {
                    if !known.endpoints.iter().any(|known| Arc::ptr_eq(known, endpoint)) {
                        known.endpoints.push(Arc::clone(endpoint));
                    }
                }
            }
            // As much of it as a word has room for: beyond any limit, it begins anew.
            let served = known.endpoints.iter().map(|endpoint| endpoint.sent()).sum::<u64>();
            let served = u32::try_from(served & u64::from(u32::MAX)).unwrap_or_default();
            if instance.is_counted && served != known.served {
                known.served = served;
                tell(instance.id, InstanceNews::Served(served));
            }
            match instance.state {
                InstanceState::Starting => known.unanswered = 0,
                InstanceState::Serving | InstanceState::Lingering => {
                    known.empty = None;
                    let missed = known.endpoints.iter().map(|endpoint| endpoint.silences()).max().unwrap_or(0);
                    if instance.hung.is_some_and(|most| missed >= most || known.unanswered >= most)
                        && known.told_hung.is_none_or(|last| last.elapsed() >= AGAIN)
                    {
                        known.told_hung = Some(Instant::now());
                        tell(instance.id, InstanceNews::Hung);
                    }
                }
                InstanceState::Draining => {
                    let inside: usize = known.endpoints.iter().map(|endpoint| endpoint.in_flight()).sum();
                    known.empty = if inside == 0 { known.empty.or_else(|| Some(Instant::now())) } else { None };
                    // A request may have chosen it just before, and be on its way.
                    if known.empty.is_some_and(|since| since.elapsed() >= ON_ITS_WAY) {
                        tell(instance.id, InstanceNews::Drained);
                    }
                }
                InstanceState::Stopping => {}
            }
            let pause = match (instance.state, &instance.ready_path) {
                (InstanceState::Starting, _) => TICK,
                (InstanceState::Serving | InstanceState::Lingering, Some(_)) => LATER,
                _ => continue,
            };
            if known.looked.is_none_or(|last| last.elapsed() >= pause) && self.looking.insert(instance.id) {
                let runtime = current.load_full();
                self.looks.spawn(look(runtime, instance.clone()));
            }
        }
    }
}

fn of<'r>(runtime: &'r Runtime, backend: &'r str) -> impl Iterator<Item = &'r Arc<Upstream>> {
    runtime.upstreams.values().filter(move |upstream| upstream.plan.backend.as_deref() == Some(backend))
}

/// Whether it answers: its page, or its socket where it has none.
async fn look(runtime: Arc<Runtime>, instance: Instance) -> (u32, Finding) {
    let Some(target) = &instance.ready_path else {
        let connected = timeout(PATIENCE, UpstreamStream::connect(&instance.address)).await;
        let found = match connected {
            Ok(Ok(_)) => Finding::Ready,
            Ok(Err(_)) => Finding::Refused,
            Err(_) => Finding::Silent,
        };
        return (instance.id, found);
    };
    let protocol = of(&runtime, &instance.backend).next().map_or(Protocol::Http, |upstream| upstream.plan.protocol);
    let host = runtime.plan.host.as_ref().map_or("localhost", HostName::as_str);
    (instance.id, probe(&Endpoint::new(&instance.address.clone().into()), protocol, target, host).await)
}

/// Between two looks at all.
const TICK: Duration = Duration::from_millis(200);
/// Between two looks at the page of one that serves.
const LATER: Duration = Duration::from_secs(5);
/// Until the keeper, which may not have had another one take its place, is told again of one that hangs.
const AGAIN: Duration = Duration::from_secs(60);
/// For a connection to one that starts.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long nothing has to be inside one that drains.
const ON_ITS_WAY: Duration = Duration::from_millis(500);
