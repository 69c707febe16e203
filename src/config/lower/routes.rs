//! `routes`.

use std::collections::BTreeSet;

use super::{
    Seen,
    access::{lower_access, lower_allow_origin, lower_security_headers},
    request_rates,
};
use crate::config::{
    plan::RoutePlan,
    raw,
    read::{Reading, Told, suggestion},
};

pub(super) fn lower_routes(
    routes: Vec<raw::Route>,
    upstreams: &Result<BTreeSet<String>, Told>,
    only_logs: bool,
    reading: &mut Reading<'_>,
) -> Result<Vec<RoutePlan>, Told> {
    if routes.is_empty() && !only_logs {
        return Err(
            reading.refuse_at("routes", "at least one route is needed, such as `- { prefix: /, upstream: app }`")
        );
    }
    let mut seen = Seen::default();
    let lower = |(index, route): (usize, raw::Route)| {
        let at = format!("routes[{index}]");
        if let (Ok(host), Ok(prefix)) = (&route.host, &route.prefix)
            && let Some(first) = seen.note((host.clone(), prefix.clone()), &at)
        {
            let problem = match host {
                Some(host) => format!("`{first}` has this prefix for the host {host} already"),
                None => format!("`{first}` has this prefix already"),
            };
            reading.refuse_at(&format!("{at}.prefix"), problem);
        }
        if let (Ok(name), Ok(upstreams)) = (&route.upstream, upstreams)
            && !upstreams.contains(name)
        {
            let near = suggestion(name, upstreams.iter().map(String::as_str));
            reading.refuse_at(&format!("{at}.upstream"), format!("no upstream is named `{name}`{near}"));
        }
        if let Ok(Some(limit)) = route.body_limit
            && limit.0 == 0
        {
            reading.refuse_at(&format!("{at}.body_limit"), "no request could have a body; write `null` for no limit");
        }
        lower_route(route, upstreams, &at, reading)
    };
    routes.into_iter().enumerate().map(lower).collect::<Vec<_>>().into_iter().collect()
}

fn lower_route(
    route: raw::Route,
    upstreams: &Result<BTreeSet<String>, Told>,
    at: &str,
    reading: &mut Reading<'_>,
) -> Result<RoutePlan, Told> {
    let access = lower_access(&route, upstreams, at, reading);
    let security_headers = lower_security_headers(&route, at, reading);
    let allow_origin = lower_allow_origin(&route, at, reading);
    let requests = route.requests.and_then(|rates| request_rates(rates, &format!("{at}.requests"), reading));
    let buffer = route.buffer?;
    Ok(RoutePlan {
        host: route.host?,
        prefix: route.prefix?,
        strip_prefix: route.strip_prefix?,
        slash: route.slash?,
        upstream: route.upstream?,
        stick: route.stick?,
        timeout: route.timeout?.0,
        connect_timeout: route.connect_timeout?.map(|time| time.0),
        progress_timeout: route.progress_timeout?.map(|time| time.0),
        minimum_rate: route.minimum_rate?.map(|rate| rate.0),
        body_limit: route.body_limit?.map(|limit| limit.0),
        buffer_request: buffer.request?,
        buffer_response: buffer.response?,
        files: route.files?.into_iter().map(|folder| folder.0).collect(),
        accel_prefix: route.accel_prefix?.0,
        compress: route.compress?,
        tunnel_idle: route.tunnel_idle?.0,
        server_timing: route.server_timing?,
        allow_origin: allow_origin?,
        client_certificate: route.client_certificate?.is_some(),
        requests: requests?,
        access: access?,
        security_headers: security_headers?,
    })
}
