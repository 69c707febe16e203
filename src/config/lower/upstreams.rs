//! `upstreams` and `backends`: applications, and the programs of ours that they are.

use std::{collections::BTreeMap, collections::BTreeSet, num::NonZeroUsize, time::Duration};

use super::Seen;
use crate::config::{
    plan::{
        BackendLimitsPlan, BackendPlan, EjectPlan, EndpointAddress, EndpointPlace, EndpointPlan, HealthPlan,
        ProgramPlan, QueuePlan, RestartPlan, RetriesPlan, RoutePlan, Secret, SupervisorPlan, UpstreamPlan, WatchPlan,
    },
    raw,
    read::{Reading, Told, suggestion},
    words::{Concurrency, ReadyPage},
};

pub(super) fn lower_upstreams(
    upstreams: BTreeMap<String, raw::Upstream>,
    backends: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<BTreeMap<String, UpstreamPlan>, Told> {
    let lower = |(name, upstream): (String, raw::Upstream)| {
        let plan = lower_upstream(&name, upstream, backends, reading)?;
        Ok((name, plan))
    };
    upstreams.into_iter().map(lower).collect::<Vec<_>>().into_iter().collect()
}

fn lower_upstream(
    name: &str,
    upstream: raw::Upstream,
    backends: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<UpstreamPlan, Told> {
    let at = format!("upstreams.{name}.endpoints");
    let backend = upstream.backend?;
    if let (Some(backend), Ok(backends)) = (&backend, backends)
        && !backends.contains(backend)
    {
        let near = suggestion(backend, backends.iter().map(String::as_str));
        reading.refuse_at(&format!("upstreams.{name}.backend"), format!("no backend is named `{backend}`{near}"));
    }
    let endpoints = upstream.endpoints.and_then(|endpoints| match &backend {
        None => lower_endpoints(&at, endpoints, reading),
        Some(_) if endpoints.is_empty() => Ok(Vec::new()),
        Some(_) => Err(reading.refuse_at(
            &at,
            "where the instances of a `backend` listen is not for you to say; take one of the two out",
        )),
    });
    let (queue, health, eject, retries) = (upstream.queue?, upstream.health?, upstream.eject?, upstream.retries?);
    let well = health.status?;
    if well.is_empty() {
        return Err(
            reading.refuse_at(&format!("upstreams.{name}.health.status"), "no answer would be well; write `[200]`")
        );
    }
    let stats = upstream.stats?.map_or_else(Vec::new, |stats| stats.0);
    let follows = matches!(upstream.concurrency?, Some(Concurrency::Auto));
    if follows && stats.is_empty() {
        let problem = "`auto` follows uWSGI's stats server: start uWSGI with `stats = /run/uwsgi/stats.sock`, and say so here with \
                       `stats: \"unix:/run/uwsgi/stats.sock\"`; or write the number of the application's threads";
        return Err(reading.refuse_at(&format!("upstreams.{name}.concurrency"), problem));
    }
    let concurrency = match upstream.concurrency? {
        Some(Concurrency::Places(places)) => NonZeroUsize::new(places.get()),
        Some(Concurrency::Auto) => NonZeroUsize::new(UNREAD_PLACES * stats.len()),
        None => None,
    };
    let program = upstream.supervisor?.map(|program| lower_program(program.0, &format!("upstreams.{name}"), reading));
    Ok(UpstreamPlan {
        name: name.to_owned(),
        protocol: upstream.protocol?,
        endpoints: endpoints?,
        backend,
        balance: upstream.balance?,
        slow_start: upstream.slow_start?.0,
        concurrency,
        follows,
        stats,
        queue: QueuePlan {
            limit: queue.limit?.get(),
            timeout: queue.timeout?.0,
            sessions: queue.sessions?.into_iter().map(|name| name.0).collect(),
        },
        health_path: health.path?.map(|path| path.0),
        ready_path: health.ready?.map(|target| target.0),
        hold: upstream.hold?.0,
        connect_timeout: upstream.connect_timeout?.0,
        program: program.transpose()?,
        health: HealthPlan {
            interval: health.interval?.0,
            timeout: health.timeout?.0,
            status: well.into_iter().map(|status| status.0).collect(),
            body: health.body?,
            failures: health.failures?.0,
            successes: health.successes?.0,
        },
        eject: EjectPlan { failures: eject.failures?.0, time: eject.time?.0, most: eject.most?.0 },
        retries: RetriesPlan { budget: retries.budget?.0, floor: retries.floor?.0 },
    })
}

/// Places for each stats server until it can be read. Too many would wait in uWSGI's own queue, too few would idle it.
const UNREAD_PLACES: usize = 4;

fn lower_endpoints(
    at: &str,
    endpoints: Vec<raw::Endpoint>,
    reading: &mut Reading<'_>,
) -> Result<Vec<EndpointPlan>, Told> {
    if endpoints.is_empty() {
        return Err(reading.refuse_at(at, "at least one endpoint is needed, such as `127.0.0.1:8000`, or a `backend`"));
    }
    let mut seen = Seen::default();
    let lower = |(index, raw::Endpoint(endpoint)): (usize, raw::Endpoint)| {
        let at = format!("{at}[{index}]");
        let plan = EndpointPlan {
            address: endpoint.address?,
            weight: u16::try_from(endpoint.weight?.get()).unwrap_or(EndpointPlan::LARGEST_WEIGHT),
            backup: endpoint.backup?,
        };
        if let Some(first) = seen.note(plan.address.clone(), &at) {
            reading.refuse_at(&at, format!("this is the same endpoint as `{first}`"));
        }
        if matches!(plan.address, EndpointPlace::Srv(_)) && plan.weight != 1 {
            reading.refuse_at(&format!("{at}.weight"), "SRV records have weights of their own; take this one out");
        }
        Ok(plan)
    };
    let plans: Vec<EndpointPlan> =
        endpoints.into_iter().enumerate().map(lower).collect::<Vec<_>>().into_iter().collect::<Result<_, _>>()?;
    if plans.iter().all(|endpoint| endpoint.backup) {
        reading.refuse_at(at, "all of these are backups, and of none; take `backup` off one");
    }
    Ok(plans)
}

/// A supervisord and a program of its, as the key `supervisor` of `at` has them.
pub(super) fn lower_supervisor(
    address: Result<EndpointAddress, Told>,
    program: Result<String, Told>,
    (username, password): (Result<Option<String>, Told>, Result<Option<Secret>, Told>),
    at: &str,
    example: &str,
    reading: &mut Reading<'_>,
) -> Result<SupervisorPlan, Told> {
    let (username, password) = (username?, password?);
    if username.is_some() != password.is_some() {
        reading.refuse_at(&format!("{at}.supervisor"), "write both `username` and `password`, or neither");
    }
    if username.as_ref().is_some_and(|username| username.contains(':')) {
        reading.refuse_at(&format!("{at}.supervisor.username"), "it cannot have a colon (RFC 7617, 2)");
    }
    let program = program?;
    if program.is_empty() {
        reading.refuse_at(&format!("{at}.supervisor.program"), example);
    }
    Ok(SupervisorPlan { address: address?, program, username, password })
}

fn lower_program(program: raw::Supervised, at: &str, reading: &mut Reading<'_>) -> Result<ProgramPlan, Told> {
    let known = (program.username, program.password);
    let example = "name the program, as `supervisorctl status` does, such as `uwsgi`";
    let supervisor = lower_supervisor(program.address, program.program, known, at, example, reading)?;
    let restart = match program.restart? {
        Some(restart) => Some(RestartPlan {
            after: u32::try_from(restart.after?.get()).unwrap_or(u32::MAX),
            at_most: restart.at_most?.get(),
            within: restart.within?.0,
        }),
        None => None,
    };
    let watch = match program.watch? {
        Some(watch) => Some(WatchPlan {
            memory: watch.memory?.map(|size| size.0),
            cpu: watch.cpu?.map(|percents| percents.0),
            time: watch.time?.0,
            restart: watch.restart?,
        }),
        None => None,
    };
    if watch.is_some() && !supervisor.address.is_of_this_machine() {
        let problem = "supervisord runs on another machine, whose programs cannot be measured from here; write `null`";
        reading.refuse_at(&format!("{at}.supervisor.watch"), problem);
    }
    Ok(ProgramPlan { supervisor, restart, watch })
}

pub(super) fn lower_backends(
    backends: BTreeMap<String, raw::Backend>,
    reading: &mut Reading<'_>,
) -> Result<BTreeMap<String, BackendPlan>, Told> {
    let lower = |(name, backend): (String, raw::Backend)| {
        let plan = lower_backend(&format!("backends.{name}"), backend, reading)?;
        Ok((name, plan))
    };
    backends.into_iter().map(lower).collect::<Vec<_>>().into_iter().collect()
}

/// The backends that leave it to us by which page they are ready.
pub(super) fn without_word_of_pages(backends: &Result<BTreeMap<String, raw::Backend>, Told>) -> BTreeSet<String> {
    let is_auto = |backend: &raw::Backend| {
        backend.ready.as_ref().is_ok_and(|ready| matches!(ready.path, Ok(Some(ReadyPage::Auto))))
    };
    let all = backends.iter().flatten();
    all.filter(|(_, backend)| is_auto(backend)).map(|(name, _)| name.clone()).collect()
}

/// A backend that leaves it to us is ready by the page of its only upstream, where 200 within five seconds is what is well
/// there, too, and the application knows the page by the name that browsers have for it.
pub(super) fn take_health_pages<'b>(
    backends: impl Iterator<Item = (&'b String, &'b mut BackendPlan)>,
    upstreams: &BTreeMap<String, UpstreamPlan>,
    routes: &Result<Vec<RoutePlan>, Told>,
) {
    let is_stripped = |upstream: &UpstreamPlan| {
        let strips = |route: &RoutePlan| route.strip_prefix && route.upstream == upstream.name;
        routes.as_ref().is_ok_and(|routes| routes.iter().any(strips))
    };
    for (name, backend) in backends {
        let mut before = upstreams.values().filter(|upstream| upstream.backend.as_ref() == Some(name));
        if let (Some(only), None) = (before.next(), before.next())
            && only.health.status == [200]
            && only.health.timeout <= Duration::from_secs(5)
            && !is_stripped(only)
        {
            backend.ready_path.clone_from(&only.health_path);
        }
    }
}

fn lower_backend(at: &str, backend: raw::Backend, reading: &mut Reading<'_>) -> Result<BackendPlan, Told> {
    let (command, environment, has_port) = (backend.command?, backend.environment?, backend.port?.is_some());
    if command.first().is_none_or(String::is_empty) {
        reading.refuse_at(&format!("{at}.command"), "name the program, and its arguments: `[gunicorn, --bind, …]`");
    }
    let (other, remedy) = if has_port {
        ("{socket}", "with `port: auto` there is no socket; write `{port}`, or take `port` out")
    } else {
        ("{port}", "an instance listens on a socket; write `{socket}`, or `port: auto` for the backend")
    };
    if let Some(index) = command.iter().position(|argument| argument.contains(other)) {
        reading.refuse_at(&format!("{at}.command[{index}]"), remedy);
    }
    for (name, value) in &environment {
        if value.expose().contains(other) {
            reading.refuse_at(&format!("{at}.environment.{name}"), remedy);
        }
    }
    let texts = command.iter().map(String::as_str).chain(environment.values().map(Secret::expose));
    if texts.into_iter().any(|text| text.contains('\0')) {
        reading.refuse_at(at, "no command and no environment can have a NUL in it");
    }
    let (ready, stop, limits) = (backend.ready?, backend.stop?, backend.limits?);
    Ok(BackendPlan {
        command,
        user: backend.user?.map(|user| user.0),
        environment,
        directory: backend.directory?.0,
        instances: backend.instances?.get(),
        has_port,
        ready_path: match ready.path? {
            Some(ReadyPage::At(target)) => Some(target.0),
            Some(ReadyPage::Auto) | None => None,
        },
        ready_timeout: ready.timeout?.0,
        stop_signal: stop.signal?,
        stop_timeout: stop.timeout?.0,
        drain: backend.drain?.0,
        drain_sessions: backend.drain_sessions?.map(|time| time.0),
        hung: backend.hung?.map(|count| count.0),
        limits: BackendLimitsPlan {
            memory: limits.memory?.map(|size| size.0),
            requests: limits.requests?.map(|count| count.0),
            age: limits.age?.map(|time| time.0),
            cpu: limits.cpu?.map(|percents| percents.0),
            cpu_time: limits.cpu_time?.0,
            cpu_restart: limits.cpu_restart?,
        },
    })
}
