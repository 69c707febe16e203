//! What `/status` says, and what of it `vestibule status` shows.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write},
    time::SystemTime,
};

use jiff::{Timestamp, TimestampRound, Unit};
use serde::{Deserialize, Serialize};

use super::{BackendReport, Report};
use crate::{
    tls::{OrderReport, OrderState},
    upstream::Workers,
};

/// The gateway at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// When it was started, whatever has been upgraded since; see [`timestamp`].
    pub started: String,
    pub uptime_seconds: u64,
    /// Number of the configuration in force.
    pub generation: u64,
    pub listeners: Vec<ListenerStatus>,
    pub upstreams: Vec<UpstreamStatus>,
    pub certificates: Vec<CertificateStatus>,
    /// Open connections, over all listeners.
    pub connections: u64,
    /// Open websockets.
    pub tunnels: u64,
    #[serde(default)]
    pub limits: LimitsStatus,
    /// Configurations that requests still run under, the one in force last.
    #[serde(default)]
    pub generations: Vec<GenerationStatus>,
    #[serde(default)]
    pub processes: Report,
    #[serde(default)]
    pub hops: HopsStatus,
}

/// What limits on clients there are to be seen, and whom they have met since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitsStatus {
    /// Connections there may be.
    pub connections: u64,
    /// Bytes of memory of the worker, and how many there may be.
    pub memory: u64,
    pub memory_limit: Option<u64>,
    /// Connections that were refused or ended, by the limit.
    pub closed: BTreeMap<String, u64>,
    /// Requests that were answered 429.
    pub requests: u64,
}

/// The chain of proxies, as requests of late have shown it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HopsStatus {
    /// The last request noted that came from a trusted proxy.
    pub trusted: Option<HopStatus>,
    /// The last request noted that somebody else spoke for a client in.
    pub untrusted: Option<HopStatus>,
    /// Where browsers see https and the application is told http: what to do, and when that was seen last.
    pub mismatch: Option<String>,
}

/// Where one request came from, and what was made of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HopStatus {
    /// See [`timestamp`].
    pub at: String,
    pub peer: String,
    /// What it said of its way, as it came.
    pub said: String,
    pub client: String,
    pub scheme: String,
    pub host: String,
}

/// A configuration that is in force, or was when a request began that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationStatus {
    pub generation: u64,
    /// Since it was put in force.
    pub age_seconds: u64,
    /// Requests and websockets that began under it and have not ended.
    pub exchanges: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub address: String,
    pub tls: bool,
    pub connections: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    pub name: String,
    /// `uwsgi` or `http`.
    pub protocol: String,
    pub endpoints: Vec<EndpointStatus>,
    /// Names whose last resolution failed, and why.
    #[serde(default)]
    pub unresolved: BTreeMap<String, String>,
    /// Requests inside.
    pub in_flight: u64,
    /// Requests that may be inside at once. `None`: no bound.
    pub concurrency: Option<u64>,
    /// Requests that wait for a place.
    pub queue_depth: u64,
    pub queue_limit: u64,
    /// What its `health.ready` page says: `unknown`, `starting`, `ready`, `gone` or `stopping`; `None` where it has none.
    #[serde(default)]
    pub readiness: Option<String>,
    /// For how long.
    #[serde(default)]
    pub readiness_seconds: Option<u64>,
    /// What `stats` said last; `None` where it is not asked, or has not answered yet.
    #[serde(default)]
    pub workers: Option<Workers>,
    /// For how long `stats` could not be read; `None` while it can.
    #[serde(default)]
    pub stats_unread_seconds: Option<u64>,
    /// Why not.
    #[serde(default)]
    pub stats_fault: Option<String>,
    /// The program of supervisord's behind it; `None` where none is named.
    #[serde(default)]
    pub program: Option<ProgramStatus>,
}

/// What supervisord says of a program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgramStatus {
    pub name: String,
    /// supervisord's word: `RUNNING`, `FATAL`, …; `None` while it cannot be asked.
    pub state: Option<String>,
    /// For how long.
    pub state_seconds: Option<u64>,
    pub pid: Option<u32>,
    /// How its last process ended or failed to start; or why supervisord cannot be asked.
    pub why: Option<String>,
    /// Restarts that were ordered because it hung, or for what it used.
    pub restarts: u64,
    /// When the last of them was; see [`timestamp`].
    pub last_restart: Option<String>,
    pub last_cause: Option<String>,
    /// Bytes, of its process and all that it began, where that is measured.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Percents of one processor.
    #[serde(default)]
    pub cpu: Option<u32>,
    /// What it uses beyond its `watch`.
    #[serde(default)]
    pub over: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointStatus {
    pub address: String,
    /// `up`; `unreachable` while the last attempt to connect has failed; `failing: ` and why its health page says so;
    /// `ejected for 12s more: ` and why.
    pub state: String,
    /// How long no connection could be made.
    pub unreachable_seconds: Option<u64>,
    /// Its share beside the others.
    #[serde(default)]
    pub weight: u64,
    /// Only for while no other can be used.
    #[serde(default)]
    pub backup: bool,
    /// Requests inside.
    #[serde(default)]
    pub in_flight: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    pub names: Vec<String>,
    /// The key path of its entry in the configuration, or `self-signed`.
    pub source: String,
    /// See [`timestamp`].
    pub not_after: String,
    /// Whole days until then; negative once it has expired.
    pub days_left: i64,
}

/// `wall` in UTC to the second, as RFC 3339 writes it: `2026-11-22T21:29:31Z`.
#[must_use]
pub fn timestamp(wall: SystemTime) -> String {
    let to_the_second = TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Trunc);
    Timestamp::try_from(wall).and_then(|moment| moment.round(to_the_second)).unwrap_or_default().to_string()
}

/// `status` as text for a terminal.
#[must_use]
pub fn render_status(status: &Status) -> String {
    let mut text = String::new();
    render(status, &mut text).expect("a string takes every write");
    text
}

fn render(status: &Status, text: &mut String) -> fmt::Result {
    writeln!(
        text,
        "vestibule {}, up {} since {}, configuration {}",
        status.version,
        duration(status.uptime_seconds),
        status.started,
        status.generation
    )?;
    writeln!(text, "{}, {}", count(status.connections, "connection"), count(status.tunnels, "tunnel"))?;
    render_limits(&status.limits, text)?;
    render_processes(status, text)?;

    writeln!(text, "\nlisteners")?;
    let listeners = status.listeners.iter().map(|listener| {
        let protocol = if listener.tls { "tls" } else { "plain" };
        [listener.address.clone(), protocol.to_owned(), count(listener.connections, "connection")]
    });
    table(listeners.collect(), text)?;

    writeln!(text, "\nupstreams")?;
    for upstream in &status.upstreams {
        let places = upstream.concurrency.map_or_else(String::new, |places| format!(" of {places}"));
        writeln!(
            text,
            "  {} ({}): {}{places} in flight, {} of {} waiting",
            upstream.name, upstream.protocol, upstream.in_flight, upstream.queue_depth, upstream.queue_limit
        )?;
        if let (Some(readiness), Some(seconds)) = (&upstream.readiness, upstream.readiness_seconds) {
            writeln!(text, "    {readiness} for {}", duration(seconds))?;
        }
        if let Some(Workers { workers, threads, busy, listen_queue, exceptions, harakiris, .. }) = &upstream.workers {
            let killed = if *harakiris > 0 { format!(", {harakiris} killed over a request") } else { String::new() };
            writeln!(
                text,
                "    {} of uWSGI: {busy} of {} busy, {listen_queue} in its own queue, {}{killed}",
                count(*workers, "worker"),
                count(*threads, "thread"),
                count(*exceptions, "exception")
            )?;
        }
        if let (Some(seconds), Some(fault)) = (upstream.stats_unread_seconds, &upstream.stats_fault) {
            writeln!(text, "    stats NOT READ for {}: {fault}", duration(seconds))?;
        }
        if let Some(program) = &upstream.program {
            write_program(program, text)?;
        }
        let endpoints = upstream.endpoints.iter().map(|endpoint| {
            let state = match endpoint.unreachable_seconds {
                None => endpoint.state.clone(),
                Some(seconds) => format!("{} for {}", endpoint.state, duration(seconds)),
            };
            let weight = if endpoint.weight == 1 { String::new() } else { format!(", weight {}", endpoint.weight) };
            let backup = if endpoint.backup { ", backup" } else { "" };
            let share = format!("{} in flight{weight}{backup}", endpoint.in_flight);
            [format!("  {}", endpoint.address), state, share]
        });
        table(endpoints.collect(), text)?;
        for (name, fault) in &upstream.unresolved {
            writeln!(text, "    {name} cannot be resolved: {fault}")?;
        }
    }

    render_backends(&status.processes.backends, text)?;
    text.push_str(&render_hops(&status.hops));

    writeln!(text, "\ncertificates")?;
    write_certificates(status, text)
}

fn write_program(program: &ProgramStatus, text: &mut String) -> fmt::Result {
    let ProgramStatus { name, state, state_seconds, why, restarts, last_restart, last_cause, over, .. } = program;
    let state = state.as_deref().unwrap_or("not known");
    let lasting = state_seconds.map_or_else(String::new, |seconds| format!(" for {}", duration(seconds)));
    let why = why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
    writeln!(text, "    program {name}: {state}{lasting}{why}")?;
    if let Some(over) = over {
        writeln!(text, "      uses too much: {over}")?;
    }
    if let (Some(at), Some(cause)) = (last_restart, last_cause) {
        writeln!(text, "      {}, the last one at {at}: {cause}", count(*restarts, "restart"))?;
    }
    Ok(())
}

fn render_backends(backends: &[BackendReport], text: &mut String) -> fmt::Result {
    if backends.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nbackends")?;
    for backend in backends {
        let failing = if backend.failing { ", FAILS AGAIN AND AGAIN" } else { "" };
        let last = backend.last_exit.as_ref().map(|last| format!("; the last one: {last}")).unwrap_or_default();
        writeln!(text, "  {}: {}{last}{failing}", backend.name, count(backend.restarts, "failure"))?;
        let instances = backend.instances.iter().map(|instance| {
            [
                format!("  {}", instance.pid),
                instance.state.clone(),
                format!("since {}", instance.started),
                format!("{} MiB", instance.memory >> 20),
                format!("{}% cpu", instance.cpu),
                instance.address.clone(),
                match (&instance.lingers_since, &instance.replaced_for) {
                    (Some(since), _) => format!("stays for its sessions since {since}"),
                    (None, Some(why)) => format!("is replaced: {why}"),
                    (None, None) => String::new(),
                },
            ]
        });
        table(instances.collect(), text)?;
    }
    Ok(())
}

/// The certificates as text for a terminal.
#[must_use]
pub fn render_certificates(status: &Status) -> String {
    let mut text = String::new();
    write_certificates(status, &mut text).expect("a string takes every write");
    text
}

fn write_certificates(status: &Status, text: &mut String) -> fmt::Result {
    let certificates = status.certificates.iter().map(|certificate| {
        let left = match certificate.days_left {
            expired @ ..0 => format!("EXPIRED {} ago", count(expired.unsigned_abs(), "day")),
            left => format!("{} left", count(left.unsigned_abs(), "day")),
        };
        [certificate.names.join(", "), left, certificate.not_after.clone(), certificate.source.clone()]
    });
    table(certificates.collect(), text)?;
    render_orders(&status.processes.orders, text)
}

/// How the certificates stand that are ordered, in words.
fn render_orders(orders: &[OrderReport], text: &mut String) -> fmt::Result {
    for order in orders {
        let hosts = match &order.fetched_from {
            Some(place) if order.hosts.is_empty() => place.clone(),
            _ => order.hosts.join(", "),
        };
        let next = order.next.as_deref().unwrap_or("a time that is not known");
        match (order.state, &order.fetched_from) {
            (OrderState::Issued, None) => writeln!(text, "  {hosts}: ordered, and renewed at {next}")?,
            (OrderState::Issued, Some(place)) => {
                writeln!(text, "  {hosts}: fetched from {place}, looked at again at {next}")?;
            }
            (OrderState::Ordering, _) => writeln!(text, "  {hosts}: an order is under way")?,
            (OrderState::Failing, _) => {
                let failures = count(order.failures.into(), "attempt");
                writeln!(text, "  {hosts}: {failures} FAILED, the next one is at {next}")?;
                writeln!(text, "    {}", order.why.as_deref().unwrap_or("no reason is known"))?;
            }
        }
        if let Some(explanation) = &order.explanation {
            writeln!(text, "    the authority says: {explanation}")?;
        }
        if let Some(why) = &order.undeployed {
            writeln!(text, "    NOT DEPLOYED: {why}")?;
        }
    }
    Ok(())
}

/// The chain of proxies as text for a terminal; nothing where none has been seen.
#[must_use]
pub fn render_hops(hops: &HopsStatus) -> String {
    let mut text = String::new();
    write_hops(hops, &mut text).expect("a string takes every write");
    text
}

fn write_hops(hops: &HopsStatus, text: &mut String) -> fmt::Result {
    let HopsStatus { trusted, untrusted, mismatch } = hops;
    if trusted.is_none() && untrusted.is_none() && mismatch.is_none() {
        return Ok(());
    }
    writeln!(text, "\nproxies, as seen")?;
    if let Some(mismatch) = mismatch {
        writeln!(text, "  WARNING: browsers see https and the application is told http: {mismatch}")?;
    }
    for (kind, hop) in [("trusted", trusted), ("NOT trusted", untrusted)] {
        if let Some(HopStatus { at, peer, said, client, scheme, host }) = hop {
            writeln!(text, "  {peer} ({kind}) at {at}: {said}")?;
            writeln!(text, "    the application was told: {client}, {scheme}://{host}")?;
        }
    }
    Ok(())
}

/// Writes what there is to say of the processes and configurations, beyond what goes without saying.
/// The memory, and the limits that somebody has met.
fn render_limits(limits: &LimitsStatus, text: &mut String) -> fmt::Result {
    if let (1.., Some(limit)) = (limits.memory, limits.memory_limit) {
        writeln!(text, "{} MiB of memory, of {} MiB", limits.memory >> 20, limit >> 20)?;
    }
    let closed = limits.closed.iter().filter(|(_, times)| **times > 0);
    let mut met: Vec<_> = closed.map(|(limit, times)| format!("{} by {limit}", count(*times, "connection"))).collect();
    if limits.requests > 0 {
        met.push(format!("{} by 429", count(limits.requests, "request")));
    }
    if !met.is_empty() {
        writeln!(text, "refused by limits: {}", met.join(", "))?;
    }
    Ok(())
}

fn render_processes(status: &Status, text: &mut String) -> fmt::Result {
    let processes = &status.processes;
    if let Some(refused) = &processes.refused {
        writeln!(
            text,
            "\nREFUSED: the configuration of {} ({}); the one before is in force",
            refused.at, refused.cause
        )?;
        for fault in &refused.faults {
            writeln!(text, "  {fault}")?;
        }
    }
    if processes.pid != 0 {
        writeln!(text, "\nprocesses")?;
        let kind = if processes.keeper { "keeper" } else { "keeper and worker in one" };
        let crashes = match processes.crashes {
            0 => String::new(),
            crashes => format!("workers ended unasked: {crashes}"),
        };
        let mut rows = vec![[processes.pid.to_string(), kind.to_owned(), crashes]];
        for worker in processes.workers.iter().filter(|worker| worker.pid != processes.pid) {
            let role = if worker.accepts { "worker" } else { "worker, ends what it began" };
            rows.push([worker.pid.to_string(), role.to_owned(), format!("since {}", worker.started)]);
        }
        table(rows, text)?;
        for weakness in &processes.weaknesses {
            writeln!(text, "  weaker than it could be: {weakness}")?;
        }
    }
    if !processes.history.is_empty() {
        writeln!(text, "\nconfigurations, for `vestibule rollback`")?;
        let rows = processes.history.iter().zip(0..).map(|(applied, steps): (_, u32)| {
            let steps = if steps == 0 { "in force".to_owned() } else { steps.to_string() };
            [steps, applied.at.clone(), applied.cause.clone()]
        });
        table(rows.collect(), text)?;
    }
    if let [before @ .., _] = &status.generations[..]
        && !before.is_empty()
    {
        writeln!(text, "\nconfigurations before this one, for what began under them")?;
        let rows = before.iter().map(|generation| {
            let age = format!("{} old", duration(generation.age_seconds));
            [generation.generation.to_string(), age, count(generation.exchanges, "request or websocket")]
        });
        table(rows.collect(), text)?;
    }
    Ok(())
}

/// Writes `rows` with aligned columns, or that there are none.
fn table<const N: usize>(rows: Vec<[String; N]>, text: &mut String) -> fmt::Result {
    if rows.is_empty() {
        return writeln!(text, "  none");
    }
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "  {cell:width$}")?;
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

fn count(number: u64, noun: impl Display) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The two largest units of `seconds`.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{
        super::{Applied, InstanceReport, Refusal, WorkerReport},
        *,
    };

    #[test]
    fn a_status_reads_well_in_a_terminal() {
        let status = Status {
            version: "0.1.0".to_owned(),
            started: timestamp(UNIX_EPOCH + Duration::from_millis(1_795_382_971_999)),
            uptime_seconds: 93_784,
            generation: 4,
            listeners: vec![
                ListenerStatus { address: "[::]:80".to_owned(), tls: false, connections: 1 },
                ListenerStatus { address: "[::]:443".to_owned(), tls: true, connections: 23 },
            ],
            upstreams: vec![
                UpstreamStatus {
                    name: "app".to_owned(),
                    protocol: "uwsgi".to_owned(),
                    endpoints: vec![
                        EndpointStatus {
                            address: "unix:/run/app.sock".to_owned(),
                            state: "up".to_owned(),
                            unreachable_seconds: None,
                            weight: 3,
                            backup: false,
                            in_flight: 6,
                        },
                        EndpointStatus {
                            address: "10.0.0.7:5000".to_owned(),
                            state: "unreachable".to_owned(),
                            unreachable_seconds: Some(7),
                            weight: 1,
                            backup: true,
                            in_flight: 0,
                        },
                    ],
                    unresolved: BTreeMap::from([("app:8000".to_owned(), "no name server answers".to_owned())]),
                    in_flight: 6,
                    concurrency: Some(6),
                    queue_depth: 2,
                    queue_limit: 512,
                    readiness: Some("starting".to_owned()),
                    readiness_seconds: Some(63),
                    workers: Some(Workers {
                        workers: 1,
                        threads: 6,
                        busy: 5,
                        listen_queue: 0,
                        exceptions: 2,
                        spawns: 3,
                        harakiris: 1,
                    }),
                    stats_unread_seconds: Some(61),
                    stats_fault: Some(
                        "cannot connect to unix:/run/stats.sock: Connection refused (os error 111)".to_owned(),
                    ),
                    program: Some(ProgramStatus {
                        name: "uwsgi".to_owned(),
                        state: Some("BACKOFF".to_owned()),
                        state_seconds: Some(4),
                        why: Some("exit status 1".to_owned()),
                        restarts: 1,
                        last_restart: Some("2026-11-22T21:30:00Z".to_owned()),
                        last_cause: Some("it did not answer".to_owned()),
                        ..ProgramStatus::default()
                    }),
                },
                UpstreamStatus { name: "ws".to_owned(), protocol: "http".to_owned(), ..UpstreamStatus::default() },
            ],
            certificates: vec![
                CertificateStatus {
                    names: vec!["justice.example.com".to_owned(), "www.example.com".to_owned()],
                    source: "tls.certificates[0]".to_owned(),
                    not_after: "2027-01-01T00:00:00Z".to_owned(),
                    days_left: 39,
                },
                CertificateStatus {
                    names: vec!["localhost".to_owned()],
                    source: "self-signed".to_owned(),
                    not_after: "2026-11-21T00:00:00Z".to_owned(),
                    days_left: -1,
                },
            ],
            connections: 24,
            tunnels: 1,
            limits: LimitsStatus {
                connections: 10_000,
                memory: 45 << 20,
                memory_limit: Some(4 << 30),
                closed: BTreeMap::from([("address".to_owned(), 2), ("memory".to_owned(), 0)]),
                requests: 1,
            },
            generations: vec![
                GenerationStatus { generation: 3, age_seconds: 4000, exchanges: 1 },
                GenerationStatus { generation: 4, age_seconds: 60, exchanges: 9 },
            ],
            hops: HopsStatus {
                trusted: None,
                untrusted: Some(HopStatus {
                    at: "2026-11-23T10:00:00Z".to_owned(),
                    peer: "10.0.0.1".to_owned(),
                    said: "x-forwarded-proto: https".to_owned(),
                    client: "10.0.0.1".to_owned(),
                    scheme: "http".to_owned(),
                    host: "justice.example.com".to_owned(),
                }),
                mismatch: Some("10.0.0.1 is not in `trusted_proxies`".to_owned()),
            },
            processes: Report {
                pid: 10,
                since: None,
                keeper: true,
                workers: vec![
                    WorkerReport { pid: 12, started: "2026-11-22T21:30:00Z".to_owned(), accepts: true },
                    WorkerReport { pid: 11, started: "2026-11-22T21:29:31Z".to_owned(), accepts: false },
                ],
                crashes: 1,
                history: vec![
                    Applied {
                        generation: 4,
                        at: "2026-11-23T09:00:00Z".to_owned(),
                        cause: "`vestibule reload`".to_owned(),
                    },
                    Applied { generation: 3, at: "2026-11-22T21:29:31Z".to_owned(), cause: "start".to_owned() },
                ],
                refused: Some(Refusal {
                    at: "2026-11-23T10:00:00Z".to_owned(),
                    cause: "SIGHUP".to_owned(),
                    faults: vec!["vestibule.yml:3:1: hots: there is no such key".to_owned()],
                }),
                weaknesses: vec!["the kernel has no landlock".to_owned()],
                orders: Vec::new(),
                backends: vec![BackendReport {
                    name: "app".to_owned(),
                    instances: vec![InstanceReport {
                        id: 3,
                        pid: 77,
                        address: "unix:/run/3.sock".to_owned(),
                        state: "serving".to_owned(),
                        started: "2026-11-22T21:30:00Z".to_owned(),
                        memory: 100 << 20,
                        cpu: 7,
                        replaced_for: None,
                        lingers_since: None,
                    }],
                    restarts: 1,
                    last_exit: Some("exit status 3".to_owned()),
                    failing: false,
                }],
            },
        };

        let expected = "\
vestibule 0.1.0, up 1d 2h since 2026-11-22T21:29:31Z, configuration 4
24 connections, 1 tunnel
45 MiB of memory, of 4096 MiB
refused by limits: 2 connections by address, 1 request by 429

REFUSED: the configuration of 2026-11-23T10:00:00Z (SIGHUP); the one before is in force
  vestibule.yml:3:1: hots: there is no such key

processes
  10  keeper                      workers ended unasked: 1
  12  worker                      since 2026-11-22T21:30:00Z
  11  worker, ends what it began  since 2026-11-22T21:29:31Z
  weaker than it could be: the kernel has no landlock

configurations, for `vestibule rollback`
  in force  2026-11-23T09:00:00Z  `vestibule reload`
  1         2026-11-22T21:29:31Z  start

configurations before this one, for what began under them
  3  1h 6m old  1 request or websocket

listeners
  [::]:80   plain  1 connection
  [::]:443  tls    23 connections

upstreams
  app (uwsgi): 6 of 6 in flight, 2 of 512 waiting
    starting for 1m 3s
    1 worker of uWSGI: 5 of 6 threads busy, 0 in its own queue, 2 exceptions, 1 killed over a request
    stats NOT READ for 1m 1s: cannot connect to unix:/run/stats.sock: Connection refused (os error 111)
    program uwsgi: BACKOFF for 4s (exit status 1)
      1 restart, the last one at 2026-11-22T21:30:00Z: it did not answer
    unix:/run/app.sock  up                  6 in flight, weight 3
    10.0.0.7:5000       unreachable for 7s  0 in flight, backup
    app:8000 cannot be resolved: no name server answers
  ws (http): 0 in flight, 0 of 0 waiting
  none

backends
  app: 1 failure; the last one: exit status 3
    77  serving  since 2026-11-22T21:30:00Z  100 MiB  7% cpu  unix:/run/3.sock

proxies, as seen
  WARNING: browsers see https and the application is told http: 10.0.0.1 is not in `trusted_proxies`
  10.0.0.1 (NOT trusted) at 2026-11-23T10:00:00Z: x-forwarded-proto: https
    the application was told: 10.0.0.1, http://justice.example.com

certificates
  justice.example.com, www.example.com  39 days left       2027-01-01T00:00:00Z  tls.certificates[0]
  localhost                             EXPIRED 1 day ago  2026-11-21T00:00:00Z  self-signed
";
        assert_eq!(render_status(&status), expected);
    }

    #[test]
    fn an_uptime_is_said_in_two_units() {
        for (seconds, said) in [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (172_800, "2d 0h")] {
            assert_eq!(duration(seconds), said);
        }
    }
}
