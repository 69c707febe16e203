//! From what is written to what it means: the rules between keys, and a [`Plan`] that can run.
//!
//! A key that could not be read is passed over by every rule that needs it: its fault has been told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroUsize,
    path::PathBuf,
    thread,
    time::Duration,
};

use super::{
    address::Trusted,
    ciphers::Cipher,
    plan::{
        AccessLogPlan, AcmePlan, BackendLimitsPlan, BackendPlan, CertificateHost, CertificatePlan, ChallengeKind,
        ClientCaPlan, DeployPlan, EabPlan, EjectPlan, EndpointAddress, EndpointPlace, EndpointPlan, ErrorLogPlan,
        ExportFilesPlan, ExportPlan, FetchPlan, HealthPlan, HostName, HttpsRedirect, LimitsPlan, ListenAddress,
        ListenerPlan, LogServerPlan, LogSink, Plan, ProgramPlan, QueuePlan, RestartPlan, RetriesPlan, RotatePlan,
        RoutePlan, Secret, SharedService, SharedStoragePlan, SpoolPlan, Stick, StorePlan, SupervisorPlan, TlsPlan,
        TrustedProxies, UpstreamPlan, WatchPlan,
    },
    raw,
    read::{Reading, Told, suggestion},
    words::{ClientCertificate, Concurrency, StoragePlace, StorePlace, TlsVersion, Workers},
};

/// What `file` means. Every broken rule is told to `reading`.
pub(super) fn lower(file: raw::File, reading: &mut Reading<'_>) -> Result<Plan, Told> {
    let trusted_proxies = file.trusted_proxies.map(trust);
    // As written: a route may name an upstream that is wrong in itself.
    let names = file.upstreams.as_ref().map(|upstreams| upstreams.keys().cloned().collect()).map_err(|told| *told);
    let backend_names: Result<BTreeSet<String>, Told> =
        file.backends.as_ref().map(|backends| backends.keys().cloned().collect()).map_err(|told| *told);
    let upstreams = file.upstreams.and_then(|upstreams| lower_upstreams(upstreams, &backend_names, reading));
    let mut backends = file.backends.and_then(|backends| lower_backends(backends, reading));
    let listeners =
        file.listeners.and_then(|listeners| lower_listeners(listeners, &file.host, &trusted_proxies, &names, reading));
    let only_logs =
        listeners.as_ref().is_ok_and(|listeners| listeners.iter().all(|listener| listener.log_server.is_some()));
    let routes = file.routes.and_then(|routes| lower_routes(routes, &names, only_logs, reading));
    if let (Ok(backends), Ok(upstreams)) = (&mut backends, &upstreams) {
        take_health_pages(backends, upstreams, &routes);
    }
    refuse_routes_for_nobody(&listeners, &routes, reading);
    let tls = file.tls.and_then(|tls| lower_tls(tls, &listeners, reading));
    refuse_circles(&listeners, &upstreams, reading);
    refuse_supervisors_for_clients(&listeners, &upstreams, reading);
    refuse_indexes_that_hold(&listeners, &upstreams, reading);
    refuse_sessions_without_cookies(&backends, &upstreams, &routes, reading);
    if let (Ok(Some(access)), Ok(Some(errors))) = (&file.access_log, &file.error_log)
        && let (Ok(LogSink::File(access)), Ok(errors)) = (&access.path, &errors.path)
        && *access == errors.0
    {
        reading.refuse_at("error_log.path", "this is the file of the access log; name another one");
    }
    let spool = file.spool.and_then(|spool| lower_spool(&spool, reading));
    let limits = file.limits.and_then(|limits| lower_limits(&limits, reading));

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
        admin: file.admin?,
        workers: workers(file.workers?),
        administrator: file.administrator?.map(|address| address.0),
        user: file.user?.0,
        drain: file.drain?.0,
        spool: spool?,
        limits: limits?,
    })
}

/// supervisord starts and stops programs for whoever reaches it, which must be nobody who comes through us.
fn refuse_supervisors_for_clients(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(upstreams)) = (listeners, upstreams) else { return };
    let programs = upstreams.values().filter_map(|upstream| Some(&upstream.program.as_ref()?.supervisor));
    let logs = listeners.iter().filter_map(|listener| listener.log_server.as_ref()?.supervisor.as_ref());
    let mut supervisors: Vec<_> = programs.chain(logs).map(|supervisor| &supervisor.address).collect();
    if supervisors.is_empty() {
        return;
    }
    // Asked on its unix socket, it may listen where it does by habit as well.
    let habit = EndpointAddress::Tcp { host: "127.0.0.1".to_owned(), port: 9001 };
    supervisors.push(&habit);
    for (name, upstream) in upstreams {
        for (index, endpoint) in upstream.endpoints.iter().enumerate() {
            if let EndpointPlace::At(address) = &endpoint.address
                && supervisors.iter().any(|supervisor| is_same_place(supervisor, address))
            {
                let problem = "supervisord listens here, and clients would command the programs of this machine";
                reading.refuse_at(&format!("upstreams.{name}.endpoints[{index}]"), problem);
            }
        }
    }
}

/// As far as can be told without resolving names; all of loopback is one.
fn is_same_place(one: &EndpointAddress, other: &EndpointAddress) -> bool {
    let loopback = |host: &str| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().map(|address| address.to_canonical());
        host.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
    };
    match (one, other) {
        (EndpointAddress::Tcp { host: one, port: of_one }, EndpointAddress::Tcp { host: other, port: of_other }) => {
            of_one == of_other && (one.eq_ignore_ascii_case(other) || loopback(one) && loopback(other))
        }
        (one, other) => one == other,
    }
}

/// Without the cookie nobody is known to have been there before.
fn refuse_sessions_without_cookies(
    backends: &Result<BTreeMap<String, BackendPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    routes: &Result<Vec<RoutePlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(backends), Ok(upstreams), Ok(routes)) = (backends, upstreams, routes) else { return };
    let of = |route: &RoutePlan| upstreams.get(&route.upstream)?.backend.as_ref();
    for (name, _) in backends.iter().filter(|(_, backend)| backend.drain_sessions.is_some()) {
        if !routes.iter().any(|route| route.stick == Some(Stick::Cookie) && of(route) == Some(name)) {
            let problem =
                "no route with `stick: cookie` leads to it, so that no client would stay; write that for its routes";
            reading.refuse_at(&format!("backends.{name}.drain_sessions"), problem);
        }
    }
}

/// Where an index cannot be had from its upstream it is made here, at once.
fn refuse_indexes_that_hold(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(upstreams)) = (listeners, upstreams) else { return };
    for (position, listener) in listeners.iter().enumerate() {
        let index = listener.log_server.as_ref().and_then(|server| server.index.as_ref());
        if let Some(upstream) = index.and_then(|name| upstreams.get(name))
            && !upstream.hold.is_zero()
        {
            let problem = format!(
                "`{}` is waited for where it cannot be connected to, and the index is made here then; write `hold: 0` for it",
                upstream.name
            );
            reading.refuse_at(&format!("listeners[{position}].log_server.index"), problem);
        }
    }
}

/// An upstream that is one of our own listeners would be sent its own requests for ever.
fn refuse_circles(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(upstreams)) = (listeners, upstreams) else { return };
    let is_ours = |host: &str, port: u16| {
        let address: Option<IpAddr> = if host == "localhost" {
            Some(Ipv4Addr::LOCALHOST.into())
        } else {
            host.trim_matches(['[', ']']).parse().ok()
        };
        address.is_some_and(|address| {
            listeners.iter().any(|listener| match &listener.address {
                ListenAddress::Tcp(own) => {
                    own.port() == port && (own.ip() == address || (own.ip().is_unspecified() && address.is_loopback()))
                }
                ListenAddress::Unix(_) | ListenAddress::Inherited(_) => false,
            })
        })
    };
    for (name, upstream) in upstreams {
        for (index, endpoint) in upstream.endpoints.iter().enumerate() {
            let circular = match &endpoint.address {
                EndpointPlace::At(EndpointAddress::Tcp { host, port }) => is_ours(host, *port),
                EndpointPlace::At(EndpointAddress::Unix(path)) => {
                    listeners.iter().any(|listener| listener.address == ListenAddress::Unix(path.clone()))
                }
                EndpointPlace::Srv(_) => false,
            };
            if circular {
                let problem = format!(
                    "we listen on {} ourselves, so requests would go round in circles; listen elsewhere, or name \
                     where the application listens",
                    endpoint.address
                );
                reading.refuse_at(&format!("upstreams.{name}.endpoints[{index}]"), problem);
            }
        }
    }
}

/// Where no listener asks for a certificate, a route that demands one would answer everybody 403.
fn refuse_routes_for_nobody(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    routes: &Result<Vec<RoutePlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(routes)) = (listeners, routes) else { return };
    if listeners.iter().any(|listener| listener.client_ca.is_some()) {
        return;
    }
    for index in routes.iter().enumerate().filter(|(_, route)| route.client_certificate).map(|(index, _)| index) {
        let problem = "no listener asks for a certificate, so nobody could show one; name the authorities in `client_ca` of \
                       a listener with `tls: true`";
        reading.refuse_at(&format!("routes[{index}].client_certificate"), problem);
    }
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

fn lower_listeners(
    listeners: Vec<raw::Listener>,
    host: &Result<Option<HostName>, Told>,
    trusted: &Result<TrustedProxies, Told>,
    upstreams: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<Vec<ListenerPlan>, Told> {
    if listeners.is_empty() {
        return Err(reading.refuse_at("listeners", "at least one listener is needed, such as `- address: \"[::]:80\"`"));
    }
    let mut seen = Seen::default();
    let lower = |(index, listener)| {
        let at = format!("listeners[{index}]");
        if let Ok(address) = &listener_address(&listener)
            // Each port 0 becomes another port.
            && !matches!(address, ListenAddress::Tcp(address) if address.port() == 0)
            && let Some(first) = seen.note(address.clone(), &at)
        {
            reading.refuse_at(&format!("{at}.address"), format!("`{first}` listens on this address already"));
        }
        lower_listener(listener, &at, host, trusted, upstreams, reading)
    };
    listeners.into_iter().enumerate().map(lower).collect::<Vec<_>>().into_iter().collect()
}

fn listener_address(listener: &raw::Listener) -> Result<ListenAddress, Told> {
    listener.address.clone()
}

fn lower_listener(
    listener: raw::Listener,
    at: &str,
    host: &Result<Option<HostName>, Told>,
    trusted: &Result<TrustedProxies, Told>,
    upstreams: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<ListenerPlan, Told> {
    let redirect = lower_redirect(&listener, at, host, reading);
    if listener.log_server.as_ref().is_ok_and(Option::is_some)
        && listener.redirect.is_ok_and(|redirect| redirect.is_some())
    {
        reading.refuse_at(&format!("{at}.log_server"), "this listener redirects everything; take one of the two out");
    }
    if let (Ok(Some(_)), Ok(address), Ok(trusted)) = (listener.proxy_protocol, &listener.address, trusted) {
        let (anybody, who) = match address {
            ListenAddress::Tcp(_) => (!trusted.networks.is_empty(), "the network of your load balancer"),
            ListenAddress::Unix(_) => (trusted.unix, "`unix`"),
            // Of which kind they are is known when they are there.
            ListenAddress::Inherited(_) => (!trusted.is_empty(), "the network of your load balancer, or `unix`"),
        };
        if !anybody {
            let problem = format!("nobody is trusted to send the PROXY header here; add {who} to `trusted_proxies`");
            reading.refuse_at(&format!("{at}.proxy_protocol"), problem);
        }
    }
    let client_ca = lower_client_ca(&listener, at, reading);
    Ok(ListenerPlan {
        address: listener.address.clone()?,
        tls: listener.tls?,
        redirect: redirect?,
        proxy_protocol: listener.proxy_protocol?.is_some(),
        log_server: match listener.log_server? {
            Some(server) => Some(lower_log_server(server, at, upstreams, reading)?),
            None => None,
        },
        client_ca: client_ca?,
    })
}

fn lower_client_ca(
    listener: &raw::Listener,
    at: &str,
    reading: &mut Reading<'_>,
) -> Result<Option<ClientCaPlan>, Told> {
    let wanted = listener.client_certificate?;
    let Some(file) = listener.client_ca.clone()? else {
        return match wanted {
            None => Ok(None),
            Some(_) => Err(reading.refuse_at(
                &format!("{at}.client_certificate"),
                "nobody is asked for a certificate here; name the file of the authorities in `client_ca`",
            )),
        };
    };
    if listener.tls == Ok(false) {
        let problem = "clients are asked for a certificate in the TLS handshake; write `tls: true` as well";
        return Err(reading.refuse_at(&format!("{at}.client_ca"), problem));
    }
    if wanted == Some(ClientCertificate::Optional) && listener.log_server.as_ref().is_ok_and(Option::is_some) {
        let problem =
            "a log server does not look at certificates: only the handshake keeps anybody out; write `required`";
        return Err(reading.refuse_at(&format!("{at}.client_certificate"), problem));
    }
    Ok(Some(ClientCaPlan { file: file.0, required: wanted != Some(ClientCertificate::Optional) }))
}

fn lower_log_server(
    server: raw::LogServer,
    at: &str,
    upstreams: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<LogServerPlan, Told> {
    let at = format!("{at}.log_server");
    if let (Ok(Some(name)), Ok(upstreams)) = (&server.index, upstreams)
        && !upstreams.contains(name)
    {
        let near = suggestion(name, upstreams.iter().map(String::as_str));
        reading.refuse_at(&format!("{at}.index"), format!("no upstream is named `{name}`{near}"));
    }
    let supervisor = match server.supervisor? {
        Some(supervisor) => {
            let known = (supervisor.username, supervisor.password);
            let example = "name the program that collects the logs, such as `sync`";
            Some(lower_supervisor(supervisor.address, supervisor.program, known, &at, example, reading)?)
        }
        None => None,
    };
    Ok(LogServerPlan { folder: server.folder?.0, allow: trust(server.allow?), index: server.index?, supervisor })
}

fn lower_redirect(
    listener: &raw::Listener,
    at: &str,
    host: &Result<Option<HostName>, Told>,
    reading: &mut Reading<'_>,
) -> Result<Option<HttpsRedirect>, Told> {
    let port = listener.https_port?;
    if listener.redirect?.is_none() {
        return match port {
            None => Ok(None),
            Some(_) => {
                Err(reading.refuse_at(&format!("{at}.https_port"), "it only has a meaning beside `redirect: https`"))
            }
        };
    }
    let at = format!("{at}.redirect");
    if listener.tls == Ok(true) {
        return Err(
            reading.refuse_at(&at, "a listener with `tls: true` would redirect to itself; take one of the two out")
        );
    }
    let Some(host) = host.clone()? else {
        let problem = "`host` is missing: a redirect to whatever host the client names would be an open redirect";
        return Err(reading.refuse_at(&at, problem));
    };
    let port = match port {
        Some(port) => u16::try_from(port.0).expect("the key is bounded by the largest port"),
        None => 443,
    };
    Ok(Some(HttpsRedirect { host, port }))
}

fn lower_tls(
    tls: raw::Tls,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<TlsPlan, Told> {
    let protocols = tls.protocols.and_then(|protocols| match protocols.as_slice() {
        [] => {
            Err(reading.refuse_at("tls.protocols", "without a version nobody can connect; write `[TLSv1.2, TLSv1.3]`"))
        }
        _ => Ok(protocols),
    });
    let (certificates, acme, to_fetch) = lower_certificates(tls.certificates?, listeners, reading)?;
    let (storage, shared, fetched) = lower_storage(tls.storage?, to_fetch, tls.storage_options?, reading)?;
    let export = match tls.export? {
        Some(export) => Some(lower_export(export, &acme, reading)?),
        None => None,
    };
    let deploy = tls.deploy?.into_iter().enumerate().map(|(index, deploy)| {
        let command = deploy.command.and_then(|command| match command.first() {
            Some(program) if !program.is_empty() => Ok(command),
            _ => {
                let at = format!("tls.deploy[{index}].command");
                Err(reading.refuse_at(&at, "name a program and its arguments, such as `[systemctl, reload, exim4]`"))
            }
        });
        Ok(DeployPlan { command: command?, timeout: deploy.timeout?.0 })
    });
    let deploy = deploy.collect::<Vec<_>>().into_iter().collect::<Result<_, _>>();
    let protocols = protocols?;
    Ok(TlsPlan {
        tls12: protocols.contains(&TlsVersion::Tls12),
        tls13: protocols.contains(&TlsVersion::Tls13),
        ciphers: match tls.ciphers? {
            none if none.is_empty() => Cipher::ALL.to_vec(),
            mut ciphers => {
                // Their order says nothing.
                ciphers.sort_unstable();
                ciphers.dedup();
                ciphers
            }
        },
        certificates,
        acme,
        fetched,
        storage,
        shared,
        import: tls.import?.into_iter().map(|path| path.0).collect(),
        export,
        deploy: deploy?,
    })
}

fn lower_export(export: raw::Export, acme: &[AcmePlan], reading: &mut Reading<'_>) -> Result<ExportPlan, Told> {
    let mut seen = Seen::default();
    let lower = |(index, files): (usize, raw::ExportFiles)| {
        let at = format!("tls.export.files[{index}]");
        let (host, certificate, key) = (files.host?, files.certificate?.0, files.key?.0);
        if let Some(host) = &host
            && !acme.iter().any(|ordered| ordered.hosts.contains(host))
        {
            reading.refuse_at(&format!("{at}.host"), format!("no certificate is ordered for {host}"));
        }
        for (name, file) in [("certificate", &certificate), ("key", &key)] {
            let at = format!("{at}.{name}");
            if let Some(first) = seen.note(file.clone(), &at) {
                reading.refuse_at(&at, format!("`{first}` is written to this file already"));
            }
        }
        Ok(ExportFilesPlan {
            host,
            certificate,
            key,
            owner: files.owner?.0,
            group: files.group?.0,
            mode: files.mode?,
            unless: files.unless?.map(|path| path.0),
        })
    };
    let files = export.files?.into_iter().enumerate().map(lower).collect::<Vec<_>>();
    Ok(ExportPlan {
        folder: export.folder?.map(|path| path.0),
        replace: export.replace?,
        files: files.into_iter().collect::<Result<_, _>>()?,
    })
}

/// The folder of this machine, what it shares with others, and what is fetched.
fn lower_storage(
    place: StoragePlace,
    to_fetch: Vec<Fetch>,
    options: raw::StorageOptions,
    reading: &mut Reading<'_>,
) -> Result<(PathBuf, Option<SharedStoragePlan>, Vec<FetchPlan>), Told> {
    let at = |name: &str| format!("tls.storage_options.{name}");
    let (secret_file, endpoint, ca_file) = (options.secret_file?, options.endpoint?, options.ca_file?);
    let (region, id, id_key) = (options.region?, options.access_key_id?, options.secret_access_key_file?);
    let (account, account_key) = (options.account?, options.account_key_file?);
    let shared = match &place {
        StoragePlace::Folder(_) => None,
        StoragePlace::Shared(shared) => Some(shared),
    };
    let mut all = Ok(());
    let reached = shared.or_else(|| to_fetch.first().map(|fetch| &fetch.place));
    let service = reached.map(|place| place.service);
    for fetch in to_fetch.iter().filter(|fetch| Some(fetch.place.service) != service) {
        let reached = reached.map(StorePlace::kind).unwrap_or_default();
        let problem = format!(
            "what is {reached} is reached by `tls.storage_options`, which are for one service; fetch from that"
        );
        all = Err(reading.refuse_at(&format!("{}.fetch", fetch.at), problem));
    }
    let kind = match (shared, reached) {
        (None, Some(reached)) => format!("{} and `fetch` {}", place.kind(), reached.kind()),
        _ => place.kind().to_owned(),
    };
    let key = [("secret_file", secret_file.is_some())];
    let both = [("endpoint", endpoint.is_some()), ("ca_file", ca_file.is_some())];
    let s3 =
        [("region", region.is_some()), ("access_key_id", id.is_some()), ("secret_access_key_file", id_key.is_some())];
    let azure = [("account", account.is_some()), ("account_key_file", account_key.is_some())];
    let mut foreign = Vec::new();
    foreign.extend(if shared.is_none() { &key[..] } else { &[] });
    foreign.extend(if service.is_none() { &both[..] } else { &[] });
    foreign.extend(if service == Some(SharedService::S3) { &[] } else { &s3[..] });
    foreign.extend(if service == Some(SharedService::Azure) { &[] } else { &azure[..] });
    for (name, _) in foreign.iter().filter(|(_, is_written)| *is_written) {
        let problem = format!("`tls.storage` is {kind}, for which this key means nothing; take it out");
        all = Err(reading.refuse_at(&at(name), problem));
    }
    let (identity, key_file) = match service {
        Some(SharedService::Azure) => (account, account_key),
        _ => (id, id_key),
    };
    if service == Some(SharedService::S3) && identity.is_some() != key_file.is_some() {
        let missing = if identity.is_some() { "secret_access_key_file" } else { "access_key_id" };
        all =
            Err(reading.refuse_at("tls.storage_options", format!("the other half of the key is missing: `{missing}`")));
    }
    let store = |StorePlace { service, bucket, prefix }: StorePlace| StorePlan {
        service,
        bucket,
        prefix,
        endpoint: endpoint.as_ref().map(|url| url.0.clone()),
        region: region.clone(),
        identity: identity.clone(),
        key_file: key_file.as_ref().map(|file| file.0.clone()),
        ca_file: ca_file.as_ref().map(|file| file.0.clone()),
    };
    let (folder, shared) = match (place, secret_file) {
        (StoragePlace::Folder(folder), _) => (folder, None),
        (StoragePlace::Shared(place), Some(secret)) => (
            options.folder?.0,
            Some(SharedStoragePlan {
                store: store(place),
                secret_file: secret.0,
                share_tickets: options.share_tickets?,
            }),
        ),
        (StoragePlace::Shared(_), None) => {
            let problem = "private keys are stored at others' only if they are sealed: name a file with a secret, the same on each \
                           machine (`openssl rand -base64 -out FILE 48`)";
            return Err(reading.refuse_at(&at("secret_file"), problem));
        }
    };
    let fetched = |Fetch { place, at, after }| FetchPlan { store: store(place), at, after };
    all.map(|()| (folder, shared, to_fetch.into_iter().map(fetched).collect()))
}

/// What [`FetchPlan`] is made of, without how it is reached.
struct Fetch {
    place: StorePlace,
    at: String,
    after: usize,
}

/// Certificates of one's own, ordered ones, and those that are fetched.
type ByKind = (Vec<CertificatePlan>, Vec<AcmePlan>, Vec<Fetch>);

fn lower_certificates(
    entries: Vec<raw::Certificate>,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<ByKind, Told> {
    let (mut own, mut ordered, mut fetched) = (Vec::new(), Vec::new(), Vec::new());
    let (mut seen, mut seen_places) = (Seen::default(), Seen::default());
    let mut all = Ok(());
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("tls.certificates[{index}]");
        let is_own = matches!((&entry.files, &entry.fetch), (Ok(Some(_)), _) | (_, Ok(Some(_))));
        if is_own && matches!(entry.acme, Ok(None)) && entry.hosts.as_ref().is_ok_and(|hosts| !hosts.is_empty()) {
            reading.refuse_at(
                &format!("{at}.hosts"),
                "the names of a certificate of your own are in its file; take the key out",
            );
        }
        let lowered = match (entry.files, entry.fetch, entry.acme) {
            (Ok(Some(files)), Ok(None), Ok(None)) => lower_files(files, &at).map(|files| own.push(files)),
            (Ok(None), Ok(Some(place)), Ok(None)) => {
                if let Some(first) = seen_places.note(place.clone(), &at) {
                    reading.refuse_at(&format!("{at}.fetch"), format!("`{first}` is fetched from there already"));
                }
                fetched.push(Fetch { place, at, after: index });
                Ok(())
            }
            // An overlay has taken docassemble's TLS listener away: it is an overlay of a site without https, then.
            (Ok(None), Ok(None), Ok(Some(_))) if reading.is_docassembles(&at) && !has_tls(listeners) => Ok(()),
            (Ok(None), Ok(None), Ok(Some(acme))) => entry.hosts.and_then(|hosts| {
                let acme = lower_acme(acme, hosts, &at, own.len(), listeners, reading)?;
                if let Some(first) = seen.note(acme.hosts.clone(), &at) {
                    reading.refuse_at(&format!("{at}.hosts"), format!("`{first}` is ordered for these already"));
                }
                ordered.push(acme);
                Ok(())
            }),
            (Ok(None), Ok(None), Ok(None)) => {
                Err(reading.refuse_at(&at, "write `files` of your own, `fetch`, or `hosts` and `acme`"))
            }
            (Ok(_), Ok(_), Ok(_)) => {
                let problem =
                    "a certificate is of your own, is fetched or is ordered: write one of `files`, `fetch` and `acme`";
                Err(reading.refuse_at(&at, problem))
            }
            (Err(told), ..) | (_, Err(told), _) | (.., Err(told)) => Err(told),
        };
        all = all.and(lowered);
    }
    all.map(|()| (own, ordered, fetched))
}

fn has_tls(listeners: &Result<Vec<ListenerPlan>, Told>) -> bool {
    listeners.as_ref().is_ok_and(|listeners| listeners.iter().any(|listener| listener.tls))
}

fn lower_files(files: raw::CertificateFiles, at: &str) -> Result<CertificatePlan, Told> {
    Ok(CertificatePlan {
        certificate: files.certificate?.0,
        key: files.key?.0,
        chain: files.chain?.map(|path| path.0),
        at: at.to_owned(),
    })
}

fn lower_acme(
    acme: raw::Acme,
    mut hosts: Vec<CertificateHost>,
    at: &str,
    after: usize,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<AcmePlan, Told> {
    let mut seen = BTreeSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    match hosts.len() {
        0 => {
            reading.refuse_at(
                &format!("{at}.hosts"),
                "name the hosts that it is ordered for, such as `[justice.example.com]`",
            );
        }
        1..=MOST_HOSTS => {}
        _ => {
            let problem = format!("authorities put at most {MOST_HOSTS} names into a certificate; order several");
            reading.refuse_at(&format!("{at}.hosts"), problem);
        }
    }
    let (directory, staging) = (acme.directory?, acme.staging?);
    if staging && directory.is_some() {
        reading.refuse_at(&format!("{at}.acme.staging"), "it is Let's Encrypt's; take it or `directory` out");
    }
    let first = match directory {
        Some(directory) => directory.0,
        None if staging => LETS_ENCRYPT_STAGING.to_owned(),
        None => LETS_ENCRYPT.to_owned(),
    };
    let directories: Vec<_> = [first].into_iter().chain(acme.fallback?.map(|directory| directory.0)).collect();
    if let [first, second] = directories.as_slice()
        && first == second
    {
        reading
            .refuse_at(&format!("{at}.acme.fallback"), "this is the directory that has just failed; name another one");
    }
    let dns_hook = acme.dns_hook?;
    let challenge = challenge(acme.challenge?, &dns_hook, &hosts, at, listeners, reading)?;
    let eab = match acme.eab? {
        Some(eab) => {
            let (key_id, key) = (eab.key_id?, eab.key?);
            if data_encoding::BASE64URL_NOPAD.decode(key.expose().trim_end_matches('=').as_bytes()).is_err() {
                reading.refuse_at(
                    &format!("{at}.acme.eab.key"),
                    "this is no base64url; copy it as the authority shows it",
                );
            }
            Some(EabPlan { key_id, secret: key })
        }
        None => None,
    };
    Ok(AcmePlan {
        hosts,
        email: acme.email?.map(|address| address.0),
        directories,
        challenge,
        dns_hook,
        profile: acme.profile?,
        ca_file: acme.ca_file?.map(|path| path.0),
        eab,
        at: at.to_owned(),
        after,
    })
}

/// The challenge that is `wanted`, or one that hook and listeners allow.
fn challenge(
    wanted: Option<ChallengeKind>,
    hook: &[String],
    hosts: &[CertificateHost],
    at: &str,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<ChallengeKind, Told> {
    let listeners = listeners.as_ref().map_err(|told| *told)?;
    let internet = |address: &ListenAddress| !matches!(address, ListenAddress::Unix(_));
    let listens = |tls: bool| listeners.iter().any(|listener| listener.tls == tls && internet(&listener.address));
    if !listeners.iter().any(|listener| listener.tls) {
        let problem = "no listener would use it; write `tls: true` for one, or take the certificate out";
        return Err(reading.refuse_at(at, problem));
    }
    let chosen = wanted.unwrap_or_else(|| match hook {
        [] if listens(false) => ChallengeKind::Http01,
        [] => ChallengeKind::TlsAlpn01,
        _ => ChallengeKind::Dns01,
    });
    let at_challenge = format!("{at}.acme.challenge");
    match chosen {
        ChallengeKind::Dns01 if hook.is_empty() => {
            let problem = "`dns-01` takes a command that makes records at your DNS provider: name it in `dns_hook`";
            return Err(reading.refuse_at(&at_challenge, problem));
        }
        ChallengeKind::Dns01 => {
            if let Some(address) = hosts.iter().find(|host| host.address().is_some()) {
                let problem = format!(
                    "{address} is an address, which no DNS record proves (RFC 8738, 7); order one of its own for it"
                );
                return Err(reading.refuse_at(&format!("{at}.hosts"), problem));
            }
        }
        ChallengeKind::Http01 | ChallengeKind::TlsAlpn01 => {
            if let Some(host) = hosts.iter().find(|host| host.is_wildcard()) {
                let problem =
                    format!("{host} takes `dns-01` (RFC 8555, 7.1.3): name a command for it in `acme.dns_hook`");
                return Err(reading.refuse_at(&format!("{at}.hosts"), problem));
            }
            if chosen == ChallengeKind::Http01 && !listens(false) {
                let problem = "`http-01` is answered on a listener without TLS, on port 80 of the internet; add one";
                return Err(reading.refuse_at(&at_challenge, problem));
            }
        }
    }
    Ok(chosen)
}

fn lower_upstreams(
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
fn lower_supervisor(
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

fn lower_backends(
    backends: BTreeMap<String, raw::Backend>,
    reading: &mut Reading<'_>,
) -> Result<BTreeMap<String, BackendPlan>, Told> {
    let lower = |(name, backend): (String, raw::Backend)| {
        let plan = lower_backend(&format!("backends.{name}"), backend, reading)?;
        Ok((name, plan))
    };
    backends.into_iter().map(lower).collect::<Vec<_>>().into_iter().collect()
}

/// Without a page of its own, a backend is ready by that of its only upstream, where 200 within five seconds is what is well
/// there, too, and the application knows the page by the name that browsers have for it.
fn take_health_pages(
    backends: &mut BTreeMap<String, BackendPlan>,
    upstreams: &BTreeMap<String, UpstreamPlan>,
    routes: &Result<Vec<RoutePlan>, Told>,
) {
    let is_stripped = |upstream: &UpstreamPlan| {
        let strips = |route: &RoutePlan| route.strip_prefix && route.upstream == upstream.name;
        routes.as_ref().is_ok_and(|routes| routes.iter().any(strips))
    };
    for (name, backend) in backends {
        let mut before = upstreams.values().filter(|upstream| upstream.backend.as_ref() == Some(name));
        if let (Some(only), None, None) = (before.next(), before.next(), &backend.ready_path)
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
        ready_path: ready.path?.map(|target| target.0),
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

fn lower_routes(
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
        lower_route(route)
    };
    routes.into_iter().enumerate().map(lower).collect::<Vec<_>>().into_iter().collect()
}

fn lower_route(route: raw::Route) -> Result<RoutePlan, Told> {
    let buffer = route.buffer?;
    Ok(RoutePlan {
        host: route.host?,
        prefix: route.prefix?,
        strip_prefix: route.strip_prefix?,
        slash: route.slash?,
        upstream: route.upstream?,
        stick: route.stick?,
        timeout: route.timeout?.0,
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
        allow_origin: route.allow_origin?.map(|origin| origin.0),
        client_certificate: route.client_certificate?.is_some(),
    })
}

fn lower_access_log(log: raw::AccessLog, reading: &mut Reading<'_>) -> Result<AccessLogPlan, Told> {
    let sink = log.path?;
    let rotate = match log.rotate? {
        // Nothing to rotate; the default is for files.
        Some(_) if sink == LogSink::Stdout => None,
        rotate => lower_rotate("access_log", rotate, reading)?,
    };
    Ok(AccessLogPlan { sink, format: log.format?, rotate })
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

fn lower_limits(limits: &raw::Limits, reading: &mut Reading<'_>) -> Result<LimitsPlan, Told> {
    let header_bytes = limits.header_bytes.and_then(|size| match size.0 {
        // What is read from a socket at once; no HTTP library goes below.
        0..8192 => Err(reading.refuse_at("limits.header_bytes", "browsers need more; write `8KiB` or more")),
        size => bytes("limits.header_bytes", size, reading),
    });
    let uri_bytes = limits.uri_bytes.and_then(|size| match size.0 {
        0..256 => Err(reading.refuse_at("limits.uri_bytes", "browsers need more; write `256B` or more")),
        size => bytes("limits.uri_bytes", size, reading),
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
    })
}

/// A size that is kept in memory.
fn bytes(at: &str, size: u64, reading: &mut Reading<'_>) -> Result<usize, Told> {
    match usize::try_from(size) {
        Ok(size) if size <= LARGEST_IN_MEMORY => Ok(size),
        _ => Err(reading.refuse_at(at, "this much is not kept in memory for one request; write `64MiB` or less")),
    }
}

const LARGEST_IN_MEMORY: usize = 64 << 20;
/// Let's Encrypt's limit, which no other authority is known to exceed.
const MOST_HOSTS: usize = 100;
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

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
