//! From what is written to what it means: the rules between keys, and a [`Plan`] that can run.
//!
//! A key that could not be read is passed over by every rule that needs it: its fault has been told.

mod access;
mod admin;
mod listeners;
mod routes;
mod rules;
mod tls;
mod upstreams;

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    num::{NonZeroU32, NonZeroUsize},
    thread,
    time::Duration,
};

use super::{
    address::Trusted,
    plan::{
        AccessLogPlan, ErrorLogPlan, LimitsPlan, ListenerPlan, LogSink, Plan, Rate, RequestRate, RotatePlan, SpoolPlan,
        TrustedProxies,
    },
    raw,
    read::{Reading, Told},
    units::{Count, Timeout},
    words::{Memory, Workers},
};
use admin::lower_admin;
use listeners::lower_listeners;
use routes::lower_routes;
use tls::lower_tls;
use upstreams::{lower_backends, lower_upstreams, take_health_pages, without_word_of_pages};

/// What `file` means. Every broken rule is told to `reading`.
pub(super) fn lower(file: raw::File, reading: &mut Reading<'_>) -> Result<Plan, Told> {
    let trusted_proxies = file.trusted_proxies.map(trust);
    // As written: a route may name an upstream that is wrong in itself.
    let names = file.upstreams.as_ref().map(|upstreams| upstreams.keys().cloned().collect()).map_err(|told| *told);
    let backend_names: Result<BTreeSet<String>, Told> =
        file.backends.as_ref().map(|backends| backends.keys().cloned().collect()).map_err(|told| *told);
    let upstreams = file.upstreams.and_then(|upstreams| lower_upstreams(upstreams, &backend_names, reading));
    let without_word = without_word_of_pages(&file.backends);
    let mut backends = file.backends.and_then(|backends| lower_backends(backends, reading));
    let listeners =
        file.listeners.and_then(|listeners| lower_listeners(listeners, &file.host, &trusted_proxies, &names, reading));
    let only_logs =
        listeners.as_ref().is_ok_and(|listeners| listeners.iter().all(|listener| listener.log_server.is_some()));
    let routes = file.routes.and_then(|routes| lower_routes(routes, &names, only_logs, reading));
    if let (Ok(backends), Ok(upstreams)) = (&mut backends, &upstreams) {
        take_health_pages(backends.iter_mut().filter(|(name, _)| without_word.contains(*name)), upstreams, &routes);
    }
    rules::refuse_routes_for_nobody(&listeners, &routes, reading);
    let tls = file.tls.and_then(|tls| lower_tls(tls, &listeners, reading));
    rules::refuse_circles(&listeners, &upstreams, reading);
    rules::refuse_supervisors_for_clients(&listeners, &upstreams, reading);
    rules::refuse_indexes_that_hold(&listeners, &upstreams, reading);
    rules::refuse_sessions_without_cookies(&backends, &upstreams, &routes, reading);
    if let (Ok(Some(access)), Ok(Some(errors))) = (&file.access_log, &file.error_log)
        && let (Ok(LogSink::File(access)), Ok(errors)) = (&access.path, &errors.path)
        && *access == errors.0
    {
        reading.refuse_at("error_log.path", "this is the file of the access log; name another one");
    }
    let admin = match file.admin {
        Ok(Some(admin)) => lower_admin(admin.0, &listeners, reading).map(Some),
        Ok(None) => Ok(None),
        Err(told) => Err(told),
    };
    let spool = file.spool.and_then(|spool| lower_spool(&spool, reading));
    let limits = file.limits.and_then(|limits| lower_limits(limits, reading));

    Ok(Plan {
        sources: Vec::new(),
        docassemble: None,
        warnings: Vec::new(),
        listeners: listeners?,
        host: file.host?,
        aliases: file.aliases?,
        tls: tls?,
        trusted_proxies: trusted_proxies?,
        upstreams: upstreams?,
        resolver: file.resolver?.into_iter().map(|server| server.0).collect(),
        backends: backends?,
        routes: routes?,
        access_log: match file.access_log? {
            Some(log) => Some(lower_access_log(log, reading)?),
            None => None,
        },
        error_log: match file.error_log? {
            Some(log) => Some(lower_error_log(log, reading)?),
            None => None,
        },
        admin: admin?,
        workers: workers(file.workers?),
        administrator: file.administrator?.map(|address| address.0),
        user: file.user?.0,
        drain: file.drain?.0,
        spool: spool?,
        limits: limits?,
    })
}

fn trust(entries: Vec<Trusted>) -> TrustedProxies {
    let mut trusted = TrustedProxies::default();
    for entry in entries {
        match entry {
            Trusted::Networks(networks) => trusted.networks.extend(networks),
            Trusted::Unix => trusted.unix = true,
        }
    }
    trusted
}

fn workers(workers: Workers) -> NonZeroUsize {
    match workers {
        Workers::Threads(threads) => NonZeroUsize::new(threads.get()),
        Workers::Auto => thread::available_parallelism().ok(),
    }
    .unwrap_or(NonZeroUsize::MIN)
}

fn has_tls(listeners: &Result<Vec<ListenerPlan>, Told>) -> bool {
    listeners.as_ref().is_ok_and(|listeners| listeners.iter().any(|listener| listener.tls))
}

fn lower_access_log(log: raw::AccessLog, reading: &mut Reading<'_>) -> Result<AccessLogPlan, Told> {
    let sink = log.path?;
    let rotate = match log.rotate? {
        // Nothing to rotate; the default is for files.
        Some(_) if sink == LogSink::Stdout => None,
        rotate => lower_rotate("access_log", rotate, reading)?,
    };
    Ok(AccessLogPlan { sink, format: log.format?, query: log.query?, rotate })
}

fn lower_error_log(log: raw::ErrorLog, reading: &mut Reading<'_>) -> Result<ErrorLogPlan, Told> {
    Ok(ErrorLogPlan { path: log.path?.0, rotate: lower_rotate("error_log", log.rotate?, reading)? })
}

fn lower_rotate(log: &str, rotate: Option<raw::Rotate>, reading: &mut Reading<'_>) -> Result<Option<RotatePlan>, Told> {
    let Some(rotate) = rotate else { return Ok(None) };
    let size = rotate.size.and_then(|size| match size.0 {
        0..ROTATED_AT_LEAST => {
            Err(reading.refuse_at(&format!("{log}.rotate.size"), "rotated all the time; write `64KiB` or more"))
        }
        size => Ok(size),
    });
    Ok(Some(RotatePlan { size: size?, keep: u32::try_from(rotate.keep?.get()).unwrap_or(u32::MAX) }))
}

const ROTATED_AT_LEAST: u64 = 64 * 1024;

fn lower_spool(spool: &raw::Spool, reading: &mut Reading<'_>) -> Result<SpoolPlan, Told> {
    let memory = bytes("spool.memory", spool.memory?.0, reading);
    Ok(SpoolPlan { path: spool.path.clone()?.0, limit: spool.limit?.0, memory: memory? })
}

fn lower_limits(limits: raw::Limits, reading: &mut Reading<'_>) -> Result<LimitsPlan, Told> {
    let header_bytes = limits.header_bytes.and_then(|size| match size.0 {
        // What is read from a socket at once; no HTTP library goes below.
        0..8192 => Err(reading.refuse_at("limits.header_bytes", "browsers need more; write `8KiB` or more")),
        size => bytes("limits.header_bytes", size, reading),
    });
    let uri_bytes = limits.uri_bytes.and_then(|size| match size.0 {
        0..256 => Err(reading.refuse_at("limits.uri_bytes", "browsers need more; write `256B` or more")),
        size => bytes("limits.uri_bytes", size, reading),
    });
    let mut some_rate = |rates: Result<Option<raw::Rate>, Told>, at: &str| match rates? {
        Some(rates) => rate(rates.count?, rates.per?, at, reading).map(Some),
        None => Ok(None),
    };
    let handshakes = some_rate(limits.handshakes, "limits.handshakes");
    let handshakes_per_address = some_rate(limits.handshakes_per_address, "limits.handshakes_per_address");
    let requests = limits.requests.and_then(|rates| request_rates(rates, "limits.requests", reading));
    let memory = limits.memory.and_then(|memory| match memory {
        Memory::Auto => Ok(None),
        Memory::Bytes(size) if size.0 < LEAST_MEMORY => {
            Err(reading.refuse_at("limits.memory", "a worker needs more for itself; write `64MiB` or more, or `auto`"))
        }
        Memory::Bytes(size) => Ok(Some(size.0)),
    });
    Ok(LimitsPlan {
        connections: limits.connections?.get(),
        header_bytes: header_bytes?,
        header_count: limits.header_count?.get(),
        uri_bytes: uri_bytes?,
        streams: limits.streams?.0,
        handshake_timeout: limits.handshake_timeout?.0,
        head_timeout: limits.head_timeout?.0,
        keep_alive: limits.keep_alive?.0,
        progress_timeout: limits.progress_timeout?.0,
        minimum_rate: limits.minimum_rate?.0,
        connections_per_address: limits.connections_per_address?.map(|count| count.0),
        streams_per_address: limits.streams_per_address?.map(|count| count.0),
        handshakes: handshakes?,
        handshakes_per_address: handshakes_per_address?,
        requests: requests?,
        exempt: trust(limits.exempt?),
        memory: memory?,
    })
}

/// The rates of requests at the key `at`.
fn request_rates(rates: Vec<raw::RequestRate>, at: &str, reading: &mut Reading<'_>) -> Result<Vec<RequestRate>, Told> {
    let lower = |(index, rates): (usize, raw::RequestRate)| {
        Ok(RequestRate { by: rates.by?, rate: rate(rates.count?, rates.per?, &format!("{at}[{index}]"), reading)? })
    };
    rates.into_iter().enumerate().map(lower).collect::<Vec<_>>().into_iter().collect()
}

fn rate(count: Count<1, 10_000_000>, per: Timeout, at: &str, reading: &mut Reading<'_>) -> Result<Rate, Told> {
    if per.0 > LONGEST_RATE {
        return Err(
            reading.refuse_at(&format!("{at}.per"), "counts are not kept for longer than a day; write `24h` or less")
        );
    }
    Ok(Rate { count: NonZeroU32::new(count.0).expect("a count from 1 on"), per: per.0 })
}

/// So that times are far from any overflow.
const LONGEST_RATE: Duration = Duration::from_secs(24 * 60 * 60);
/// Less is what a worker takes before its first client.
const LEAST_MEMORY: u64 = 64 << 20;

/// A size that is kept in memory.
fn bytes(at: &str, size: u64, reading: &mut Reading<'_>) -> Result<usize, Told> {
    match usize::try_from(size) {
        Ok(size) if size <= LARGEST_IN_MEMORY => Ok(size),
        _ => Err(reading.refuse_at(at, "this much is not kept in memory for one request; write `64MiB` or less")),
    }
}

const LARGEST_IN_MEMORY: usize = 64 << 20;

/// What has been seen, and at which key first.
struct Seen<T>(HashMap<T, String>);

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Seen<T> {
    /// Answers where `value` was seen before.
    fn note(&mut self, value: T, at: &str) -> Option<&str> {
        use std::collections::hash_map::Entry;
        match self.0.entry(value) {
            Entry::Occupied(first) => Some(first.into_mut()),
            Entry::Vacant(place) => {
                place.insert(at.to_owned());
                None
            }
        }
    }
}
