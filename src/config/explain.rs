//! A plan in plain words, for a person who runs a site and not proxies.

use std::{cmp::Reverse, fmt};

use super::{
    plan::{
        AccessLogPlan, AdminListenPlan, AdminPlan, Balance, EndpointPlan, ListenerPlan, LogFormat, LogSink,
        LoggedQuery, Plan, ProgramPlan, Protocol, Rate, RateKey, RequestRate, RestartPlan, RotatePlan, RoutePlan,
        Slash, Stick, SupervisorPlan, TrustedProxies, UpstreamPlan, WatchPlan,
    },
    units::{show_size, show_time},
};

/// What Vestibule does with `plan`: a page of text that ends with a newline.
#[must_use]
pub fn explain(plan: &Plan) -> String {
    Explained(plan).to_string()
}

struct Explained<'a>(&'a Plan);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.0;
        listeners(plan, f)?;
        host(plan, f)?;
        routes(plan, f)?;
        upstreams(plan, f)?;
        backends(plan, f)?;
        trust(plan, f)?;
        certificates(plan, f)?;
        limits(plan, f)?;
        process(plan, f)?;
        warnings(plan, f)
    }
}

fn warnings(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if plan.warnings.is_empty() {
        return Ok(());
    }
    writeln!(f, "\nWarnings")?;
    plan.warnings.iter().try_for_each(|warning| writeln!(f, "  {warning}"))
}

fn listeners(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "Listeners: where connections are taken")?;
    for listener in &plan.listeners {
        let ListenerPlan { address, tls, redirect, proxy_protocol, log_server, client_ca } = listener;
        write!(f, "  {address}: ")?;
        if let Some(server) = log_server {
            write!(f, "the logs in {}, for {} only; ", server.folder.display(), list(&server.allow.networks))?;
        }
        match (redirect, tls) {
            (Some(redirect), _) => {
                let port = if redirect.port == 443 { String::new() } else { format!(":{}", redirect.port) };
                write!(f, "every request is answered with a redirect to https://{}{port}", redirect.host)?;
            }
            (None, true) => write!(f, "https (HTTP/2 and HTTP/1.1)")?,
            (None, false) => write!(f, "http, not encrypted")?,
        }
        if let Some(client_ca) = client_ca {
            let without = if client_ca.required { "is not let in" } else { "is let in all the same" };
            write!(f, "; who has no certificate that {} vouches for {without}", client_ca.file.display())?;
        }
        if *proxy_protocol {
            write!(f, "; each connection must begin with a PROXY protocol header from a trusted proxy")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn host(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nHost: which names are served")?;
    let Some(host) = &plan.host else {
        return writeln!(f, "  any name: no `host` is given, so nothing is redirected to it");
    };
    writeln!(f, "  the site is {host}")?;
    if !plan.aliases.is_empty() {
        writeln!(f, "  served under their own names as well: {}", list(&plan.aliases))?;
    }
    if plan.listeners.iter().any(|listener| listener.tls) {
        writeln!(f, "  a request over https for a name that is not known is redirected to https://{host};")?;
        writeln!(f, "  known are these, the hosts of routes and the names in certificates")?;
    } else {
        writeln!(f, "  without a TLS listener every name is served; nothing is redirected")?;
    }
    let health: Vec<_> = plan.upstreams.values().filter_map(|upstream| upstream.health_path.as_ref()).collect();
    if !health.is_empty() {
        writeln!(f, "  answered for every name, for the health checks of a load balancer: {}", list(health))?;
        if plan.listeners.iter().any(|listener| listener.redirect.is_some()) {
            writeln!(f, "  but not where every request is redirected (see above): ask for it elsewhere")?;
        }
    }
    Ok(())
}

fn routes(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nRoutes: the first that fits takes the request")?;
    for route in matching_order(&plan.routes) {
        let host = route.host.as_ref().map_or("", |host| host.as_str());
        let path = route.prefix.as_str();
        match path {
            "" => writeln!(f, "  {host}/ (whatever is left) goes to `{}`", route.upstream)?,
            path => writeln!(f, "  {host}{path} and all below {host}{path}/ goes to `{}`", route.upstream)?,
        }
        if route.strip_prefix && !path.is_empty() {
            writeln!(f, "    which sees the path without {path}")?;
        }
        if route.slash == Slash::Redirect && !path.is_empty() {
            writeln!(f, "    {path} itself is redirected to {path}/")?;
        }
        let clients = |list: &TrustedProxies| {
            let unix = list.unix.then(|| "unix sockets".to_owned());
            self::list(list.networks.iter().map(ToString::to_string).chain(unix))
        };
        if let Some(allow) = &route.access.allow {
            writeln!(f, "    only for clients from {}; others are answered 403", clients(allow))?;
        }
        if !route.access.deny.is_empty() {
            writeln!(f, "    never for clients from {}, who are answered 403", clients(&route.access.deny))?;
        }
        if let Some(basic) = &route.access.basic_auth {
            writeln!(
                f,
                "    only for the users of {} with their passwords; others are answered 401",
                basic.file.display()
            )?;
        }
        if let Some(forward) = &route.access.forward_auth {
            writeln!(f, "    only for those whom `{}` lets in, asked at {}", forward.upstream, forward.path)?;
        }
        if route.security_headers.hsts.is_some() {
            writeln!(f, "    browsers are told to come over https only, unless it says otherwise")?;
        }
        let told = &route.security_headers;
        if told.nosniff || told.referrer_policy.is_some() || told.frames.is_some() {
            writeln!(f, "    browsers are told to be careful (`security_headers`), unless it says otherwise")?;
        }
        if route.client_certificate {
            writeln!(
                f,
                "    only for clients with a certificate that their listener has verified; others are answered 403"
            )?;
        }
        writeln!(f, "    it has {} to begin its answer; then the client is told 504", show_time(route.timeout))?;
        if let Some(time) = route.connect_timeout {
            writeln!(f, "    each try to connect may take {} here, whatever its upstream says", show_time(time))?;
        }
        match route.body_limit {
            Some(limit) => writeln!(f, "    a request body may have {}; more is answered 413", show_size(limit))?,
            None => writeln!(f, "    a request body may have any size that the spool holds")?,
        }
        for rate in &route.requests {
            writeln!(f, "    it takes {}; more are answered 429", show_requests(rate))?;
        }
        match (route.buffer_request, route.buffer_response) {
            (true, true) => writeln!(f, "    slow clients do not hold a place in it: bodies are collected here")?,
            (true, false) => writeln!(f, "    requests are collected here; responses pass as they come")?,
            (false, true) => writeln!(f, "    requests pass as they come; responses are collected here")?,
            (false, false) => writeln!(f, "    bodies pass both ways as they come")?,
        }
        if !route.files.is_empty() {
            let folders = list(route.files.iter().map(|folder| folder.display()));
            writeln!(
                f,
                "    it may have files sent from {folders} (X-Sendfile; X-Accel-Redirect after {})",
                route.accel_prefix
            )?;
        }
        if !route.allow_origin.is_empty() {
            writeln!(f, "    pages of {} may read its answers, unless it says otherwise", list(&route.allow_origin))?;
        }
        if route.server_timing {
            writeln!(f, "    whoever asks is told how long the queue and the application took (Server-Timing)")?;
        }
        match route.stick {
            None => {}
            Some(Stick::Cookie) => writeln!(f, "    a client stays at one endpoint, by a cookie")?,
            Some(Stick::Sid) => writeln!(f, "    a client stays at one endpoint, by a cookie or else by its address")?,
        }
        let compress =
            if route.compress { "text is compressed for clients that take it" } else { "nothing is compressed" };
        writeln!(f, "    {compress}; a websocket closes after {} of silence", show_time(route.tunnel_idle))?;
    }
    if !plan.routes.iter().any(|route| route.host.is_none() && route.prefix.as_str().is_empty()) {
        writeln!(f, "  anything else is answered 404")?;
    }
    Ok(())
}

/// Routes with a host first, then the longest prefix.
fn matching_order(routes: &[RoutePlan]) -> Vec<&RoutePlan> {
    let mut ordered: Vec<_> = routes.iter().collect();
    ordered.sort_by_key(|route| (route.host.is_none(), route.host.clone(), Reverse(route.prefix.as_str().len())));
    ordered
}

fn upstreams(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nUpstreams: the applications")?;
    for upstream in plan.upstreams.values() {
        let UpstreamPlan {
            name,
            protocol,
            endpoints,
            backend,
            concurrency,
            queue,
            hold,
            connect_timeout,
            ready_path,
            ..
        } = upstream;
        let protocol = match protocol {
            Protocol::Http => "HTTP/1.1",
            Protocol::Uwsgi => "the uwsgi protocol",
        };
        match backend {
            Some(backend) => writeln!(f, "  `{name}` speaks {protocol} with the instances of the backend `{backend}`")?,
            None => writeln!(
                f,
                "  `{name}` speaks {protocol} at {}",
                list(endpoints.iter().map(|endpoint| &endpoint.address))
            )?,
        }
        if backend.is_some() || endpoints.len() > 1 || endpoints.iter().any(|endpoint| endpoint.address.is_resolved()) {
            shares(upstream, f)?;
        }
        match concurrency {
            Some(places) => {
                if upstream.follows {
                    write!(
                        f,
                        "    as many requests inside at once as uWSGI has threads ({places} until that is known); "
                    )?;
                } else {
                    write!(f, "    {places} requests inside at once; ")?;
                }
                let (limit, timeout) = (queue.limit, show_time(queue.timeout));
                writeln!(f, "{limit} more may wait, up to {timeout}; others are answered 503")?;
                if limit > 0 && !queue.sessions.is_empty() {
                    writeln!(f, "    clients take turns, those with a cookie {} first", list(&queue.sessions))?;
                }
            }
            None => writeln!(f, "    any number of requests inside at once")?,
        }
        if !upstream.stats.is_empty() {
            writeln!(f, "    how its workers are is read at {}", list(&upstream.stats))?;
        }
        writeln!(
            f,
            "    when it cannot be connected to (each try up to {}), a request waits {}, then sees the starting page",
            show_time(*connect_timeout),
            show_time(*hold)
        )?;
        if let Some(ready) = ready_path {
            writeln!(f, "    until {ready} answers 200, clients see the starting page")?;
        }
        if let Some(ProgramPlan { supervisor: SupervisorPlan { program, address, .. }, restart, watch }) =
            &upstream.program
        {
            writeln!(f, "    supervisord at {address} is asked about the program {program} behind it")?;
            if let Some(RestartPlan { after, at_most, within }) = restart {
                let within = show_time(*within);
                writeln!(
                    f,
                    "    {program} is restarted after {after} requests and looks in a row without an answer, {at_most} times in \
                     {within} at most"
                )?;
            }
            if let Some(WatchPlan { memory, cpu, time, restart }) = watch {
                let limits = [
                    memory.map(|bytes| format!("{bytes} bytes of memory")),
                    cpu.map(|cpu| format!("{cpu} % of a processor")),
                ];
                let limits: Vec<_> = limits.into_iter().flatten().collect();
                if limits.is_empty() {
                    writeln!(f, "    what {program} uses is measured")?;
                } else {
                    let (limits, time) = (limits.join(" or "), show_time(*time));
                    let done = if *restart { "restarted" } else { "reported" };
                    writeln!(f, "    {program} is {done} once it has used more than {limits} for {time}")?;
                }
            }
        }
        let lists = plan.log_servers().any(|(_, server)| server.index.as_deref() == Some(name));
        if lists {
            writeln!(f, "    it makes the index of logs")?;
        } else if !plan.routes.iter().any(|route| route.upstream == *name) {
            writeln!(f, "    no route leads here")?;
        }
    }
    Ok(())
}

/// How the requests of an upstream are shared out.
fn shares(upstream: &UpstreamPlan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let goes = match upstream.balance {
        Balance::Least => "to the one with the fewest requests inside",
        Balance::RoundRobin => "to one after the other",
        Balance::Hash => "to the one that the client's address decides on",
        Balance::BoundedHash => {
            "to the one that the client's address decides on, or the next, where that has 1.25 of its share"
        }
    };
    write!(f, "    each request goes {goes}")?;
    if !upstream.slow_start.is_zero() {
        write!(f, "; one that has come back takes {} to its weight", show_time(upstream.slow_start))?;
    }
    writeln!(f)?;
    for EndpointPlan { address, weight, backup } in &upstream.endpoints {
        match (weight, backup) {
            (1, false) => {}
            (weight, false) => writeln!(f, "    {address} gets {weight} where others get 1")?,
            (_, true) => writeln!(f, "    {address} gets requests only while no other can be used")?,
        }
    }
    Ok(())
}

fn backends(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if plan.backends.is_empty() {
        return Ok(());
    }
    writeln!(f, "\nBackends: programs that are begun here")?;
    for (name, backend) in &plan.backends {
        let place = if backend.has_port { "a port of 127.0.0.1" } else { "a socket" };
        writeln!(f, "  `{name}` is `{}`", backend.command.join(" "))?;
        writeln!(
            f,
            "    {} of it at once, each on {place} of its own, as the user {} where Vestibule is root",
            backend.instances,
            backend.user.as_ref().unwrap_or(&plan.user)
        )?;
        if let Some(idle) = backend.drain_sessions {
            writeln!(
                f,
                "    one that is replaced stays for clients whose cookie names it, until none has asked for {idle:?}"
            )?;
        }
        if !plan.upstreams.values().any(|upstream| upstream.backend.as_ref() == Some(name)) {
            writeln!(f, "    no upstream has it as its `backend`")?;
        }
    }
    Ok(())
}

fn trust(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nTrust: who may say what the client's address, host and scheme are")?;
    let trusted = &plan.trusted_proxies;
    if trusted.is_empty() {
        return writeln!(f, "  nobody: X-Forwarded-* headers of clients are taken off and set anew");
    }
    if !trusted.networks.is_empty() {
        writeln!(f, "  proxies at {}", list(&trusted.networks))?;
    }
    if trusted.unix {
        writeln!(f, "  whatever connects to a unix socket listened on")?;
    }
    writeln!(f, "  from anybody else, X-Forwarded-* headers are taken off and set anew")?;
    if trusted.networks.iter().any(|network| network.prefix_len() == 0) {
        writeln!(f, "  warning: that is everybody; any client can name whatever address it likes")?;
    }
    Ok(())
}

fn certificates(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !plan.listeners.iter().any(|listener| listener.tls) {
        return writeln!(f, "\nCertificates: none is needed, no listener has `tls: true`");
    }
    writeln!(f, "\nCertificates")?;
    for certificate in &plan.tls.certificates {
        write!(f, "  {} with the key {}", certificate.certificate.display(), certificate.key.display())?;
        match &certificate.chain {
            Some(chain) => writeln!(f, " and the chain {}", chain.display())?,
            None => writeln!(f)?,
        }
    }
    let storage = plan.tls.storage.display();
    let kept = match &plan.tls.shared {
        Some(shared) => format!("shared with other machines in {}, with a copy in {storage}", shared.store),
        None => format!("kept in {storage}"),
    };
    for ordered in &plan.tls.acme {
        let hosts: Vec<_> = ordered.hosts.iter().map(ToString::to_string).collect();
        write!(f, "  {}: ordered from {} by {}", hosts.join(", "), ordered.directories[0], ordered.challenge)?;
        if let Some(fallback) = ordered.directories.get(1) {
            write!(f, ", from {fallback} while that fails")?;
        }
        writeln!(f, ", renewed in time and {kept}")?;
    }
    if !plan.tls.acme.is_empty() {
        places_of_ordered(plan, f)?;
    }
    for fetched in &plan.tls.fetched {
        writeln!(f, "  fetched from {}, with a copy in {storage}", fetched.store)?;
    }
    if plan.tls.is_self_signed() {
        writeln!(f, "  none of your own: a self-signed one is made and kept in {storage}; browsers warn of it")?;
    } else {
        writeln!(f, "  for a name that none of them has: the first of them")?;
    }
    match (plan.tls.tls12, plan.tls.tls13) {
        (true, true) => writeln!(f, "  TLS 1.2 and 1.3 are spoken"),
        (true, false) => writeln!(f, "  only TLS 1.2 is spoken"),
        _ => writeln!(f, "  only TLS 1.3 is spoken; browsers from before 2019 cannot connect"),
    }
}

fn places_of_ordered(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for source in &plan.tls.import {
        writeln!(f, "  one that is not there yet is taken from {}, if it has one", source.display())?;
    }
    if let Some(export) = &plan.tls.export {
        if let Some(folder) = &export.folder {
            writeln!(f, "  those that are ordered are written to {}/live for other programs", folder.display())?;
        }
        for files in &export.files {
            let which = files.host.as_ref().or_else(|| plan.tls.acme.first()?.hosts.first());
            let which = which.map_or("", crate::config::CertificateHost::as_str);
            let (certificate, key) = (files.certificate.display(), files.key.display());
            let (owner, group, mode) = (&files.owner, &files.group, files.mode);
            write!(f, "  that of {which} is written to {certificate} and {key}, {owner}:{group} {mode}")?;
            match &files.unless {
                Some(file) => writeln!(f, ", unless there is {}", file.display())?,
                None => writeln!(f)?,
            }
        }
    }
    for deploy in &plan.tls.deploy {
        writeln!(f, "  after each new one this is run: {}", deploy.command.join(" "))?;
    }
    Ok(())
}

fn limits(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (limits, spool) = (&plan.limits, &plan.spool);
    let size = |bytes: usize| show_size(bytes as u64);
    writeln!(f, "\nLimits: what a client may ask for")?;
    writeln!(f, "  {} connections at once, {} requests at once on one of HTTP/2", limits.connections, limits.streams)?;
    writeln!(
        f,
        "  a request line and headers of {} in {} fields, an address of {}",
        size(limits.header_bytes),
        limits.header_count,
        size(limits.uri_bytes)
    )?;
    writeln!(
        f,
        "  {} for a TLS handshake, {} for a request head, {} without a request, {} without progress in a body",
        show_time(limits.handshake_timeout),
        show_time(limits.head_timeout),
        show_time(limits.keep_alive),
        show_time(limits.progress_timeout)
    )?;
    if limits.minimum_rate > 0 {
        let rate = show_size(limits.minimum_rate);
        writeln!(
            f,
            "  {rate} of a body a second at least, over half of that last time; whoever is slower is given up"
        )?;
    }
    let each = |rate: Option<Rate>| rate.map(|rate| format!("{} TLS handshakes {}", rate.count, show_rate(rate)));
    let connections = limits.connections_per_address.map(|count| format!("{count} connections"));
    let streams = limits.streams_per_address.map(|count| format!("{count} requests at once over HTTP/2"));
    let by_address = list(connections.into_iter().chain(streams).chain(each(limits.handshakes_per_address)));
    if !by_address.is_empty() {
        let exempt = list(&limits.exempt.networks);
        let exempt =
            if exempt.is_empty() { "trusted proxies".to_owned() } else { format!("trusted proxies, {exempt}") };
        writeln!(f, "  of one address (IPv6: one /64): {by_address}; but for {exempt}")?;
    }
    if let Some(handshakes) = each(limits.handshakes) {
        writeln!(f, "  of all: {handshakes}")?;
    }
    for rate in &limits.requests {
        writeln!(f, "  {}; more are answered 429", show_requests(rate))?;
    }
    match limits.memory {
        Some(memory) => write!(f, "  {} of memory", show_size(memory))?,
        None => write!(f, "  half of the memory there is")?,
    }
    writeln!(f, "; beyond, new clients are answered 503 and those inside are served")?;
    writeln!(
        f,
        "  {} of a body in memory, the rest in {} (up to {} in all)",
        size(spool.memory),
        spool.path.display(),
        show_size(spool.limit)
    )
}

fn show_rate(rate: Rate) -> String {
    format!("at once, and as many in {} after that", show_time(rate.per))
}

fn show_requests(limit: &RequestRate) -> String {
    let of = match &limit.by {
        RateKey::Address => "of one address".to_owned(),
        RateKey::Cookie(name) => format!("with one cookie `{name}`, or of one address"),
        RateKey::All => "of all".to_owned(),
    };
    format!("{} requests {of} {}", limit.rate.count, show_rate(limit.rate))
}

fn process(plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "\nProcess")?;
    writeln!(f, "  {} traffic threads; a stop waits {} for requests in flight", plan.workers, show_time(plan.drain))?;
    writeln!(f, "  started as root, the traffic is carried by the user {}", plan.user)?;
    match &plan.access_log {
        None => writeln!(f, "  no access log")?,
        Some(AccessLogPlan { sink, format, query, rotate }) => {
            let format = match format {
                LogFormat::Combined => "the combined format",
                LogFormat::Json => "JSON",
                LogFormat::Template(template) => template.as_str(),
            };
            match sink {
                LogSink::Stdout => writeln!(f, "  one line a request on standard output, as {format}")?,
                LogSink::File(path) => writeln!(f, "  one line a request in {}, as {format}", path.display())?,
            }
            if *query == LoggedQuery::Names {
                writeln!(f, "    with `*` for each value in a query")?;
            }
            if let Some(RotatePlan { size, keep }) = rotate {
                writeln!(f, "  put aside when it has grown to {}; {keep} are kept", show_size(*size))?;
            }
        }
    }
    match &plan.admin {
        Some(AdminPlan { socket, listen }) => {
            match socket {
                Some(path) => {
                    writeln!(f, "  commands and metrics at unix:{}, for the user it runs as", path.display())?;
                }
                None => writeln!(f, "  no admin socket: `vestibule status` and the other commands reach nobody")?,
            }
            if let Some(AdminListenPlan { address, token_file, .. }) = listen {
                let file = token_file.display();
                writeln!(f, "  commands and metrics at https://{address}, for whoever has the token in {file}")?;
            }
        }
        None => writeln!(f, "  no admin socket: no commands and no metrics")?,
    }
    match &plan.administrator {
        Some(address) => writeln!(f, "  error pages name {address}"),
        None => writeln!(f, "  error pages name nobody to write to"),
    }
}

fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
