//! Endpoints that are known by name: where they are, asked again and again for as long as an answer holds.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{join, join_all};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RData, Record, RecordType},
    },
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    config::{EndpointAddress, EndpointPlace, EndpointPlan},
    runtime::{Current, Runtime},
    upstream::Member,
};

/// Goes on for as long as the runtime it runs on; `changed` says that another configuration is in force.
pub(super) async fn look_after(current: Arc<Current>, changed: Arc<Notify>) {
    let mut due: HashMap<EndpointPlace, (Instant, Instant)> = HashMap::new();
    let mut looks = JoinSet::new();
    let mut looking: HashSet<EndpointPlace> = HashSet::new();
    loop {
        let runtime = current.load_full();
        let places = places(&runtime);
        due.retain(|place, _| places.contains(place));
        for place in &places {
            let is_due = due.get(place).is_none_or(|(again, soon)| {
                let now = Instant::now();
                // One that has moved, most likely: the DNS may know where before its answer ends.
                *again <= now || (*soon <= now && is_lost(&runtime, place))
            });
            if is_due && looking.insert(place.clone()) {
                looks.spawn(look(Arc::clone(&current), place.clone()));
            }
        }
        drop(runtime);
        tokio::select! {
            // What was found while another configuration was made is not known to that.
            () = changed.notified() => due.clear(),
            Some(Ok((place, holds))) = looks.join_next() => {
                looking.remove(&place);
                let now = Instant::now();
                // Not all front doors at the same moment.
                let jitter = holds.mul_f64(fastrand::f64() / 10.0);
                due.insert(place, (now + holds - jitter, now + SOON));
            }
            () = sleep(TICK), if !places.is_empty() => {}
        }
    }
}

/// Resolves what has never been of `runtime`, which is not in force yet, for a short while at most.
pub(super) async fn prepare(runtime: Arc<Runtime>) {
    let unresolved: BTreeSet<_> = runtime.upstreams.values().flat_map(|upstream| upstream.unresolved()).collect();
    let resolve = |place: EndpointPlace| {
        let runtime = &runtime;
        async move {
            let (found, _) = resolve(&runtime.plan.resolver, &place, &[]).await;
            tell(runtime, &place, &found);
        }
    };
    // The others are asked for again by whoever looks after them.
    timeout(PREPARED_WITHIN, join_all(unresolved.into_iter().map(resolve))).await.ok();
}

/// The places of all upstreams that have to be resolved.
fn places(runtime: &Runtime) -> BTreeSet<EndpointPlace> {
    let endpoints = runtime.upstreams.values().flat_map(|upstream| &upstream.plan.endpoints);
    endpoints.map(|endpoint| &endpoint.address).filter(|place| place.is_resolved()).cloned().collect()
}

/// Whether an endpoint that was found at `place` cannot be connected to.
fn is_lost(runtime: &Runtime, place: &EndpointPlace) -> bool {
    runtime.upstreams.values().any(|upstream| upstream.has_lost(place))
}

/// Looks once where `place` is; answers it, and how long that holds.
async fn look(current: Arc<Current>, place: EndpointPlace) -> (EndpointPlace, Duration) {
    let runtime = current.load_full();
    let known = runtime.upstreams.values().find_map(|upstream| upstream.known(&place)).unwrap_or_default();
    let (found, holds) = resolve(&runtime.plan.resolver, &place, &known).await;
    // Another one may have come to be in force meanwhile.
    tell(&current.load_full(), &place, &found);
    (place, holds.clamp(LEAST, MOST))
}

fn tell(runtime: &Runtime, place: &EndpointPlace, found: &Result<Vec<Member>, String>) {
    for upstream in runtime.upstreams.values().filter(|upstream| upstream.has(place)) {
        upstream.resolved(place, found.clone());
    }
}

/// Who is at `place`, and how long that holds; `known` is who was.
async fn resolve(
    servers: &[SocketAddr],
    place: &EndpointPlace,
    known: &[Member],
) -> (Result<Vec<Member>, String>, Duration) {
    let names = Names::new(servers);
    let found = timeout(QUESTIONS, async {
        match place {
            EndpointPlace::At(EndpointAddress::Tcp { host, port }) => names.members(host, *port, known).await,
            EndpointPlace::At(EndpointAddress::Unix(_)) => Ok((Vec::new(), MOST)),
            EndpointPlace::Srv(name) => names.services(name, known).await,
        }
    });
    let found = found.await.unwrap_or_else(|_| Err("no name server answers".to_owned()));
    match found {
        Ok((mut members, holds)) => {
            // The DNS shuffles its answers.
            members.sort_by(|one, other| one.address.cmp(&other.address));
            members.dedup_by(|one, other| one.address == other.address);
            members.truncate(MOST_MEMBERS);
            (Ok(members), holds)
        }
        Err(fault) => (Err(fault), SOON),
    }
}

/// What knows names: `/etc/hosts`, then the name servers, both as they are now.
struct Names {
    hosts: Hosts,
    resolver: Result<TokioResolver, String>,
}

impl Names {
    /// With `servers`; those of `/etc/resolv.conf` where there are none.
    fn new(servers: &[SocketAddr]) -> Self {
        let config = if servers.is_empty() {
            let system = hickory_resolver::system_conf::read_system_conf();
            system.map_err(|error| format!("cannot read the name servers from /etc/resolv.conf: {error}"))
        } else {
            let servers = servers.iter().map(|server| {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = server.port();
                    connection
                });
                NameServerConfig::new(server.ip(), true, connections.to_vec())
            });
            Ok((ResolverConfig::from_name_servers(servers.collect()), ResolverOpts::default()))
        };
        let resolver = config.and_then(|(config, mut options)| {
            options.timeout = options.timeout.min(QUESTION);
            options.attempts = options.attempts.min(2);
            options.cache_size = 0;
            options.use_hosts_file = ResolveHosts::Never;
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options).build().map_err(|error| format!("cannot ask the name servers: {error}"))
        });
        Self { hosts: Hosts::from_system().unwrap_or_default(), resolver }
    }

    /// An endpoint for each address of `host`.
    async fn members(&self, host: &str, port: u16, known: &[Member]) -> Result<(Vec<Member>, Duration), String> {
        let name = format!("{host}:{port}");
        let member = |address: IpAddr| Member {
            address: EndpointAddress::Tcp {
                host: match address {
                    IpAddr::V4(address) => address.to_string(),
                    IpAddr::V6(address) => format!("[{address}]"),
                },
                port,
            },
            name: Some(name.clone()),
            weight: 1,
            backup: false,
            leaving: false,
        };
        let noted = self.noted(host);
        if !noted.is_empty() {
            return Ok((noted.into_iter().map(member).collect(), NOTED));
        }
        let (v4, v6) = join(self.ask(host, RecordType::A), self.ask(host, RecordType::AAAA)).await;
        let both_failed = v4.is_err() && v6.is_err();
        let (mut members, mut holds, mut fault) = (Vec::new(), MOST, None);
        for (found, is_v6) in [(v4, false), (v6, true)] {
            match found {
                Ok(records) => {
                    holds = records.iter().map(ttl).fold(holds, Duration::min);
                    members.extend(records.iter().filter_map(address).map(member));
                }
                // One family is not lost with an answer to the other.
                Err(error) => {
                    let is_kept = |member: &&Member| {
                        matches!(&member.address, EndpointAddress::Tcp { host, .. } if host.starts_with('[') == is_v6)
                            && member.name.as_ref() == Some(&name)
                    };
                    members.extend(known.iter().filter(is_kept).cloned());
                    holds = holds.min(RETRY);
                    fault = Some(error);
                }
            }
        }
        match fault {
            Some(fault) if both_failed || members.is_empty() => Err(fault),
            None if members.is_empty() => Err("there is no such name, or it has no address".to_owned()),
            _ => Ok((members, holds)),
        }
    }

    /// An endpoint for each address of each service that `name` has SRV records of.
    async fn services(&self, name: &str, known: &[Member]) -> Result<(Vec<Member>, Duration), String> {
        let records = self.ask(name, RecordType::SRV).await?;
        let mut holds = records.iter().map(ttl).fold(MOST, Duration::min);
        let services = records.iter().filter_map(|record| match &record.data {
            RData::SRV(service) => Some(service),
            _ => None,
        });
        let services: Vec<_> = services.take(MOST_MEMBERS).collect();
        let first = services.iter().map(|service| service.priority).min();
        let heaviest = services.iter().map(|service| service.weight).max().unwrap_or(0);
        let (mut members, mut fault) = (Vec::new(), None);
        let targets = services.iter().map(|service| async {
            let target = service.target.to_ascii();
            let target = target.trim_end_matches('.');
            let found = self.members(target, service.port, known).await;
            (*service, format!("{target}:{}", service.port), found)
        });
        for (service, name, found) in join_all(targets).await {
            let (weight, backup) = (share(service.weight, heaviest), Some(service.priority) != first);
            let found = found.unwrap_or_else(|error| {
                fault = Some(format!("{name}: {error}"));
                // It is not gone for that.
                let kept = known.iter().filter(|member| member.name.as_ref() == Some(&name));
                (kept.cloned().collect(), RETRY)
            });
            holds = holds.min(found.1);
            members.extend(found.0.into_iter().map(|member| Member { weight, backup, ..member }));
        }
        match fault {
            Some(fault) if members.is_empty() => Err(fault),
            None if members.is_empty() => Err("it has no SRV records".to_owned()),
            _ => Ok((members, holds)),
        }
    }

    /// What `/etc/hosts` says.
    fn noted(&self, host: &str) -> Vec<IpAddr> {
        let Ok(name) = Name::from_ascii(host) else { return Vec::new() };
        let lookups = [RecordType::A, RecordType::AAAA]
            .map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)));
        lookups.iter().flatten().flat_map(|lookup| lookup.answers().iter().filter_map(address)).collect()
    }

    /// The records of `name`; none is an answer as well.
    async fn ask(&self, name: &str, kind: RecordType) -> Result<Vec<Record>, String> {
        let resolver = self.resolver.as_ref().map_err(Clone::clone)?;
        match resolver.lookup(name, kind).await {
            Ok(lookup) => Ok(lookup.answers().to_vec()),
            Err(NetError::Dns(DnsError::NoRecordsFound(_))) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn address(record: &Record) -> Option<IpAddr> {
    record.data.ip_addr()
}

fn ttl(record: &Record) -> Duration {
    Duration::from_secs(record.ttl.into())
}

/// The weight of an SRV record beside the `heaviest`, as those of endpoints are counted.
fn share(weight: u16, heaviest: u16) -> u16 {
    let largest = u32::from(EndpointPlan::LARGEST_WEIGHT);
    let scaled = match u32::from(heaviest) {
        heaviest if heaviest > largest => u32::from(weight) * largest / heaviest,
        _ => u32::from(weight),
    };
    u16::try_from(scaled.max(1)).unwrap_or(EndpointPlan::LARGEST_WEIGHT)
}

/// An answer holds as long as the DNS says, but not less and not more.
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(300);
/// How long what `/etc/hosts` says holds.
const NOTED: Duration = Duration::from_secs(5);
/// Until a question that failed is asked again, and one about endpoints that cannot be connected to.
const SOON: Duration = Duration::from_secs(2);
/// The same where one family of addresses has been answered for.
const RETRY: Duration = Duration::from_secs(30);
/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_millis(500);
/// How long one name server is waited for, and all of them.
const QUESTION: Duration = Duration::from_secs(2);
const QUESTIONS: Duration = Duration::from_secs(10);
/// How long a configuration waits for names before it is put in force.
const PREPARED_WITHIN: Duration = Duration::from_secs(2);
/// Endpoints of one name.
const MOST_MEMBERS: usize = 64;
