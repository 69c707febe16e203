//! Whole files: what they mean, and what is wrong with them.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

mod documentation;
mod properties;

use std::{
    collections::BTreeMap,
    fmt::Write,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    time::Duration,
};

use super::{plan::*, *};

/// The least that can run, followed by what a test is about.
fn minimal(more: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:80' }}]\n\
         upstreams: {{ app: {{ endpoints: ['127.0.0.1:8000'] }} }}\n\
         routes: [{{ prefix: /, upstream: app }}]\n{more}"
    )
}

fn unset(_: &str) -> Option<String> {
    None
}

fn plan(text: &str) -> Plan {
    parse("/etc/v.yml", text, &unset).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn faults(text: &str) -> Vec<String> {
    match parse("/etc/v.yml", text, &unset) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(|line| line.replace("/etc/v.yml:", "")).collect(),
    }
}

#[test]
fn the_least_that_can_run_has_the_defaults_of_a_careful_operator() {
    let route = RoutePlan {
        host: None,
        prefix: PathPrefix::parse("/").unwrap(),
        strip_prefix: false,
        slash: Slash::Forward,
        upstream: "app".to_owned(),
        stick: None,
        timeout: Duration::from_secs(60),
        connect_timeout: None,
        progress_timeout: None,
        minimum_rate: None,
        body_limit: Some(16 << 20),
        buffer_request: true,
        buffer_response: true,
        files: Vec::new(),
        accel_prefix: "/xaccel/".to_owned(),
        compress: true,
        tunnel_idle: Duration::from_secs(24 * 3600),
        server_timing: false,
        allow_origin: Vec::new(),
        client_certificate: false,
        requests: Vec::new(),
        access: AccessPlan::default(),
        security_headers: SecurityHeadersPlan::default(),
    };
    let upstream = UpstreamPlan {
        backend: None,
        name: "app".to_owned(),
        protocol: Protocol::Http,
        endpoints: vec![EndpointPlan::at(EndpointAddress::Tcp { host: "127.0.0.1".to_owned(), port: 8000 })],
        balance: Balance::Least,
        slow_start: Duration::ZERO,
        concurrency: None,
        follows: false,
        stats: Vec::new(),
        queue: QueuePlan { limit: 512, timeout: Duration::from_secs(30), sessions: vec!["session".to_owned()] },
        health_path: None,
        ready_path: None,
        hold: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(3),
        program: None,
        health: HealthPlan {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            status: vec![200],
            body: None,
            failures: 3,
            successes: 2,
        },
        eject: EjectPlan { failures: 5, time: Duration::from_secs(10), most: 50 },
        retries: RetriesPlan { budget: 20, floor: 10 },
    };
    let expected = Plan {
        backends: BTreeMap::new(),
        sources: Vec::new(),
        docassemble: None,
        warnings: Vec::new(),
        listeners: vec![ListenerPlan {
            address: ListenAddress::Tcp("127.0.0.1:80".parse().unwrap()),
            tls: false,
            redirect: None,
            proxy_protocol: false,
            log_server: None,
            client_ca: None,
        }],
        host: None,
        aliases: Vec::new(),
        tls: TlsPlan {
            tls12: true,
            tls13: true,
            ciphers: Cipher::ALL.to_vec(),
            certificates: Vec::new(),
            acme: Vec::new(),
            fetched: Vec::new(),
            storage: "/var/lib/vestibule".into(),
            shared: None,
            import: Vec::new(),
            export: None,
            deploy: Vec::new(),
        },
        trusted_proxies: TrustedProxies::default(),
        upstreams: BTreeMap::from([("app".to_owned(), upstream)]),
        resolver: Vec::new(),
        routes: vec![route],
        access_log: Some(AccessLogPlan {
            sink: LogSink::Stdout,
            format: LogFormat::Combined,
            query: LoggedQuery::Names,
            rotate: None,
        }),
        error_log: None,
        admin: None,
        workers: std::thread::available_parallelism().unwrap(),
        administrator: None,
        user: "www-data".to_owned(),
        drain: Duration::from_secs(18),
        spool: SpoolPlan { path: "/var/tmp".into(), limit: 1 << 30, memory: 256 << 10 },
        limits: LimitsPlan {
            connections: 10_000,
            header_bytes: 32 << 10,
            header_count: 100,
            uri_bytes: 16 << 10,
            streams: 100,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(15),
            keep_alive: Duration::from_secs(10),
            progress_timeout: Duration::from_secs(60),
            minimum_rate: 240,
            connections_per_address: Some(1000),
            streams_per_address: Some(1000),
            handshakes: None,
            handshakes_per_address: Some(Rate { count: NonZeroU32::new(500).unwrap(), per: Duration::from_secs(10) }),
            requests: Vec::new(),
            exempt: TrustedProxies {
                networks: ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
                    .map(|network| network.parse().unwrap())
                    .to_vec(),
                unix: false,
            },
            memory: None,
        },
    };

    assert_eq!(plan(&minimal("")), expected);
}

#[test]
fn what_is_written_is_what_runs() {
    let plan = plan(
        "listeners:
- { address: '[::]:80', redirect: https, https_port: 8443 }
- { address: '[::]:8443', tls: true, proxy_protocol: required }
- { address: 'unix:v.sock' }
host: Justice.Example.com
aliases: [www.example.com]
tls:
  protocols: [TLSv1.3]
  certificates: [{ files: { certificate: c.pem, key: /k.pem, chain: a.pem } }]
trusted_proxies: [loopback, 10.0.0.0/8, unix]
upstreams:
  app:
    protocol: uwsgi
    endpoints: ['unix:/run/app.sock']
    concurrency: 6
    queue: { limit: 0, timeout: 0, sessions: [] }
    health: { path: /health_check }
    hold: 0s
routes:
- { host: other.example.com, prefix: /da/, upstream: app, strip_prefix: true, slash: redirect, body_limit: null,
    buffer: { request: false }, files: [/usr/, /tmp], compress: false, tunnel_idle: 1h }
access_log: { path: access.log, format: '{status} {path}' }
admin: unix:/run/admin.sock
workers: 3
administrator: admin@example.com
",
    );

    let host = HostName::parse("justice.example.com").unwrap();
    assert_eq!(plan.listeners[0].redirect, Some(HttpsRedirect { host: host.clone(), port: 8443 }));
    assert!(plan.listeners[1].tls && plan.listeners[1].proxy_protocol);
    assert_eq!(plan.listeners[2].address, ListenAddress::Unix("/etc/v.sock".into()));
    assert_eq!((plan.host, plan.aliases), (Some(host), vec![HostName::parse("www.example.com").unwrap()]));
    let certificate = CertificatePlan {
        certificate: "/etc/c.pem".into(),
        key: "/k.pem".into(),
        chain: Some("/etc/a.pem".into()),
        at: "tls.certificates[0]".to_owned(),
    };
    assert_eq!((plan.tls.tls12, plan.tls.tls13, plan.tls.certificates), (false, true, vec![certificate]));
    assert!(plan.trusted_proxies.unix && plan.trusted_proxies.contains("::1".parse().unwrap()));
    let app = &plan.upstreams["app"];
    assert_eq!((app.protocol, app.concurrency), (Protocol::Uwsgi, NonZeroUsize::new(6)));
    assert_eq!(app.queue, QueuePlan { limit: 0, timeout: Duration::ZERO, sessions: Vec::new() });
    assert_eq!((app.health_path.as_deref(), app.hold), (Some("/health_check"), Duration::ZERO));
    let route = &plan.routes[0];
    assert_eq!((route.prefix.as_str(), route.strip_prefix, route.slash), ("/da", true, Slash::Redirect));
    assert_eq!((route.body_limit, route.buffer_request, route.buffer_response), (None, false, true));
    assert_eq!(route.files, [Path::new("/usr"), Path::new("/tmp")]);
    let log = AccessLogPlan {
        sink: LogSink::File("/etc/access.log".into()),
        format: LogFormat::Template("{status} {path}".to_owned()),
        query: LoggedQuery::Names,
        rotate: Some(RotatePlan { size: 100 << 20, keep: 10 }),
    };
    assert_eq!(plan.access_log, Some(log));
    assert_eq!(plan.admin, Some(AdminPlan { socket: Some("/run/admin.sock".into()), listen: None }));
    assert_eq!((plan.workers.get(), plan.administrator.as_deref()), (3, Some("admin@example.com")));
}

#[test]
fn a_bound_that_follows_workers_begins_with_four_places_for_each_server_of_theirs() {
    let app = |keys: &str| {
        let text = minimal("").replace("endpoints:", &format!("{keys}, endpoints:"));
        plan(&text).upstreams.remove("app").unwrap()
    };
    let stats = EndpointAddress::Unix("/run/stats.sock".into());

    let one = app("concurrency: auto, stats: 'unix:/run/stats.sock'");
    assert_eq!((one.concurrency, one.follows, one.stats), (NonZeroUsize::new(4), true, vec![stats.clone()]));
    let two = app("concurrency: auto, stats: ['unix:/run/stats.sock', 'app:1717']");
    assert_eq!((two.concurrency, two.stats.len()), (NonZeroUsize::new(8), 2));
    let watched = app("concurrency: 6, stats: 'unix:/run/stats.sock'");
    assert_eq!((watched.concurrency, watched.follows, watched.stats), (NonZeroUsize::new(6), false, vec![stats]));
}

#[test]
fn a_storage_that_is_shared_leaves_a_folder_of_this_machine() {
    let shared = |storage: &str| {
        plan(&minimal(&format!(
            "tls: {{ storage: '{storage}', storage_options: {{ secret_file: s, folder: local }} }}\n"
        )))
        .tls
    };

    let tls = shared("s3://bucket/one/two/");
    assert_eq!(tls.storage, Path::new("/etc/local"));
    let plan = tls.shared.unwrap();
    let store = &plan.store;
    assert_eq!((store.service, store.bucket.as_str(), store.prefix.as_str()), (SharedService::S3, "bucket", "one/two"));
    assert_eq!(
        (store.to_string(), plan.secret_file.as_path()),
        ("s3://bucket/one/two".to_owned(), Path::new("/etc/s"))
    );
    assert_eq!(shared("azure://container").shared.unwrap().store.to_string(), "azure://container");
}

#[test]
fn what_is_fetched_is_reached_as_the_storage_is_and_takes_no_secret() {
    let tls = plan(&minimal(
        "tls: { certificates: [{ files: { certificate: c, key: k } }, { fetch: 'azure://container/certs/' }], \
         storage_options: { account: a, account_key_file: f } }\n",
    ))
    .tls;

    let [fetched] = &tls.fetched[..] else { panic!("{tls:?}") };
    assert_eq!((fetched.at.as_str(), fetched.after), ("tls.certificates[1]", 1));
    assert_eq!(fetched.store.to_string(), "azure://container/certs");
    assert_eq!((fetched.store.identity.as_deref(), &fetched.store.key_file), (Some("a"), &Some("/etc/f".into())));
    assert_eq!((tls.shared, tls.storage.as_path()), (None, Path::new("/var/lib/vestibule")));
}

#[test]
fn every_fault_of_a_file_is_told_at_once_in_its_order() {
    let text = "listeners:
  - address: '*:80'
    redirect: https
    tsl: true
hots: example.com
upstreams:
  web:
    endpoints: []
    concurrency: many
routes:
  - prefix: app
    upstream: wev
    timeout: 30
  - prefx: /
    upstream: web
drain: soon
drain: 1s
";
    assert_eq!(
        faults(text),
        [
            "2:14: listeners[0].address: write `[::]:80` for port 80 on every address",
            "3:15: listeners[0].redirect: `host` is missing: a redirect to whatever host the client names would be an \
             open redirect",
            "4:5: listeners[0].tsl: unknown key `tsl`; did you mean `tls`?",
            "5:1: hots: unknown key `hots`; did you mean `host`?",
            "8:16: upstreams.web.endpoints: at least one endpoint is needed, such as `127.0.0.1:8000`, or a `backend`",
            "9:18: upstreams.web.concurrency: expected `auto`, a whole number, or `null` for no bound, found `many`",
            "11:13: routes[0].prefix: `app` is not a path prefix; write `/app`",
            "12:15: routes[0].upstream: no upstream is named `wev`; did you mean `web`?",
            "13:14: routes[0].timeout: `30` has no unit; write `30s`, `5m` or `500ms`",
            "14:5: routes[1].prefx: unknown key `prefx`; did you mean `prefix`?",
            "14:5: routes[1]: the key `prefix` is missing",
            "16:8: drain: expected a time such as `30s`, found `soon`",
            "17:1: drain: the key `drain` stands here twice; the first is in line 16",
        ]
    );
}

#[test]
fn each_refusal_says_what_is_wrong_and_what_to_write() {
    let mut wrong = Vec::new();
    for (more, fault) in [
        // Types.
        ("workers: many", "4:10: workers: expected `auto` or a whole number, found `many`"),
        ("workers: 0", "4:10: workers: expected a whole number from 1 to 1024, found `0`"),
        ("aliases: www.example.com", "4:10: aliases: expected a list, found `www.example.com`"),
        ("tls: true", "4:6: tls: expected a mapping of keys, found `true`"),
        ("limits: [1]", "4:9: limits: expected a mapping of keys, found a list"),
        ("drain: {}", "4:8: drain: expected a time such as `30s`, found a mapping"),
        ("drain:", "4:6: drain: expected a time such as `30s`, found nothing"),
        (
            "tls: { storage: ~ }",
            "4:17: tls.storage: expected a folder such as `/var/lib/vestibule`, `s3://bucket/prefix` or \
             `azure://container/prefix`, found nothing",
        ),
        (
            "tls: { storage: 's3://B/a' }",
            "4:17: tls.storage: expected a folder such as `/var/lib/vestibule`, `s3://bucket/prefix` or \
             `azure://container/prefix`, found `s3://B/a`",
        ),
        (
            "tls: { storage: 's3://bucket/a' }",
            "4:6: tls.storage_options.secret_file: private keys are stored at others' only if they are sealed: name a file with a \
             secret, the same on each machine (`openssl rand -base64 -out FILE 48`)",
        ),
        (
            "tls: { storage: 's3://bucket/a', storage_options: { secret_file: s, account: a } }",
            "4:78: tls.storage_options.account: `tls.storage` is in S3, for which this key means nothing; take it out",
        ),
        (
            "tls: { storage: 's3://bucket/a', storage_options: { secret_file: s, access_key_id: a } }",
            "4:51: tls.storage_options: the other half of the key is missing: `secret_access_key_file`",
        ),
        (
            "tls: { storage: /a, storage_options: { region: eu-central-1 } }",
            "4:48: tls.storage_options.region: `tls.storage` is a folder, for which this key means nothing; take it out",
        ),
        (
            "tls: { storage: 'azure://container', storage_options: { endpoint: blob } }",
            "4:67: tls.storage_options.endpoint: expected the URL of a service, such as `https://minio.example.com`, found `blob`",
        ),
        (
            "tls: { certificates: [{ fetch: /certs }] }",
            "4:32: tls.certificates[0].fetch: expected `s3://bucket/prefix` or `azure://container/prefix`, found `/certs`",
        ),
        (
            "tls: { certificates: [{ fetch: 's3://bucket/certs', hosts: [a.example] }] }",
            "4:60: tls.certificates[0].hosts: the names of a certificate of your own are in its file; take the key out",
        ),
        (
            "tls: { certificates: [{ fetch: 's3://bucket/a' }, { fetch: 's3://bucket/a/' }] }",
            "4:60: tls.certificates[1].fetch: `tls.certificates[0]` is fetched from there already",
        ),
        (
            "tls: { certificates: [{ fetch: 's3://bucket/a' }, { fetch: 'azure://container/a' }] }",
            "4:60: tls.certificates[1].fetch: what is in S3 is reached by `tls.storage_options`, which are for one service; fetch \
             from that",
        ),
        (
            "tls: { certificates: [{ fetch: 's3://bucket/a' }], storage_options: { account: a } }",
            "4:80: tls.storage_options.account: `tls.storage` is a folder and `fetch` in S3, for which this key means nothing; \
             take it out",
        ),
        (
            "tls: { certificates: [{ fetch: 's3://bucket/a' }], storage_options: { secret_file: a } }",
            "4:84: tls.storage_options.secret_file: `tls.storage` is a folder and `fetch` in S3, for which this key means nothing; \
             take it out",
        ),
        // Values.
        ("spool: { limit: 16M }", "4:17: spool.limit: `M` is not a unit here; write `16MiB`"),
        ("admin: /run/admin.sock", "4:8: admin: a socket begins with `unix:`; write `unix:/run/admin.sock`"),
        ("host: https://example.com/", "4:7: host: write the host name alone, without a scheme: `example.com`"),
        ("host: example.com:443", "4:7: host: write the host name alone, without a port: `example.com`"),
        (
            "tls: { protocols: [] }",
            "4:19: tls.protocols: without a version nobody can connect; write `[TLSv1.2, TLSv1.3]`",
        ),
        (
            "tls: { protocols: [TLSv1.1] }",
            "4:20: tls.protocols[0]: `TLSv1.1` is not safe and not spoken here; there are `TLSv1.2` or `TLSv1.3`",
        ),
        (
            "tls: { protocols: [tlsv1.2] }",
            "4:20: tls.protocols[0]: expected `TLSv1.2` or `TLSv1.3`, found `tlsv1.2`; did you mean `TLSv1.2`?",
        ),
        (
            "trusted_proxies: [10.0.0.1/8]",
            "4:19: trusted_proxies[0]: `10.0.0.1/8` is an address within a network; write the network, `10.0.0.0/8`",
        ),
        (
            "spool: { memory: 1GiB }",
            "4:18: spool.memory: this much is not kept in memory for one request; write `64MiB` or less",
        ),
        ("spool: { limit: 1000 }", "4:17: spool.limit: `1000` has no unit; write `16MiB`, `64KiB` or `512B`"),
        ("limits: { header_bytes: 4KiB }", "4:25: limits.header_bytes: browsers need more; write `8KiB` or more"),
        ("limits: { uri_bytes: 0 }", "4:22: limits.uri_bytes: browsers need more; write `256B` or more"),
        (
            "limits: { connections: 0 }",
            "4:24: limits.connections: expected a whole number from 1 to 10000000, found `0`",
        ),
        (
            "limits: { head_timeout: 0s }",
            "4:25: limits.head_timeout: no time at all is not allowed here; write a time such as `30s`",
        ),
        (
            "limits: { memory: 1MiB }",
            "4:19: limits.memory: a worker needs more for itself; write `64MiB` or more, or `auto`",
        ),
        (
            "limits: { requests: [{ count: 1, per: 2d }] }",
            "4:39: limits.requests[0].per: counts are not kept for longer than a day; write `24h` or less",
        ),
        (
            "limits: { requests: [{ by: cookie, count: 1 }] }",
            "4:28: limits.requests[0].by: expected `address`, `cookie:NAME` or `all`, found `cookie`",
        ),
        ("administrator: me", "4:16: administrator: expected a mail address such as `admin@example.com`, found `me`"),
        (
            "access_log: { format: combind }",
            "4:23: access_log.format: expected `combined`, `json` or a template with `{fields}` in it, found `combind`; \
             did you mean `combined`?",
        ),
        (
            "drain: ${ABSENT}",
            "4:8: drain: the environment variable `ABSENT` is not set; set it, or give a default: `${ABSENT:-value}`",
        ),
        // Later.
        ("user: 'a b'", "4:7: user: expected the name of a user, such as `www-data`, found `a b`"),
        (
            "backends: { a: { command: [] } }",
            "4:27: backends.a.command: name the program, and its arguments: `[gunicorn, --bind, …]`",
        ),
        (
            "backends: { a: { command: [a, '{port}'] } }",
            "4:31: backends.a.command[1]: an instance listens on a socket; write `{socket}`, or `port: auto` for the backend",
        ),
        (
            "backends: { a: { command: [a], port: 80 } }",
            "4:38: backends.a.port: expected `auto` (a number could not be two instances' while one replaces the other), found \
             `80`",
        ),
        (
            "admin: 127.0.0.1:9000",
            "4:8: admin: over TCP it takes a certificate and a token; write `admin: { listen: '127.0.0.1:9000', certificate: \
             FILE, key: FILE, token_file: FILE }`",
        ),
        // YAML.
        ("drain: !!str 1s", "4:14: tags (`!name`) have no meaning here; take it out"),
        ("---\na: 1", "4:1: a second document (`---`) has no meaning here; write one file each"),
        ("[a]: 1", "4:1: a key is text, not a list or a mapping"),
        ("<<: {}", "4:1: merge keys (`<<`) are not supported; write the keys out"),
    ] {
        let told = faults(&minimal(more));
        if told.first().map(String::as_str) != Some(fault) {
            wrong.push(format!("expected {fault}\nfound    {told:?}\nin       {more}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_log_server_is_held_to_its_upstream_and_to_its_listener() {
    let with = |server: &str, more: &str| {
        format!(
            "listeners: [{{ address: '127.0.0.1:8082', {server} }}]\nhost: a.example\n\
             upstreams: {{ log: {{ endpoints: ['127.0.0.1:1'], {more} }} }}\nroutes: []\n"
        )
    };
    assert_eq!(faults(&with("log_server: { index: log }", "hold: 0")), [""; 0], "no route is needed");
    for (text, expected) in [
        (
            with("log_server: { index: log }", ""),
            "1:55: listeners[0].log_server.index: `log` is waited for where it cannot be connected to, and the index is made \
             here then; write `hold: 0` for it",
        ),
        (
            with("log_server: { index: lgo }", "hold: 0"),
            "1:55: listeners[0].log_server.index: no upstream is named `lgo`; did you mean `log`?",
        ),
        (
            with("redirect: https, log_server: {}", ""),
            "1:49: listeners[0].log_server: this listener redirects everything; take one of the two out",
        ),
        (
            with("log_server: { supervisor: { username: 'a:b', password: c, program: '' } }", ""),
            "1:72: listeners[0].log_server.supervisor.username: it cannot have a colon (RFC 7617, 2)",
        ),
        (
            with("log_server: {}", "") + "access_log: { path: /l }\nerror_log: { path: /l }\n",
            "6:14: error_log.path: this is the file of the access log; name another one",
        ),
        (
            with("log_server: { supervisor: { username: a } }", ""),
            "1:60: listeners[0].log_server.supervisor: write both `username` and `password`, or neither",
        ),
    ] {
        let told = faults(&text);
        assert!(told.iter().any(|fault| fault.ends_with(expected.split_once(": ").unwrap().1)), "{told:?}");
    }
}

#[test]
fn listeners_upstreams_and_routes_are_held_to_each_other() {
    let upstreams = "upstreams: { app: { endpoints: ['a:1'] } }\n";
    let routes = "routes: [{ prefix: /, upstream: app }]\n";
    let listener = |listener: &str| format!("{routes}{upstreams}listeners: [{listener}]");
    let upstream =
        |keys: &str| format!("listeners: [{{ address: '[::]:80' }}]\n{routes}upstreams: {{ app: {{ {keys} }} }}");
    let route = |list: &str| format!("listeners: [{{ address: '[::]:80' }}]\n{upstreams}routes: [{list}]");
    let mut wrong = Vec::new();
    for (text, fault) in [
        (String::new(), "1:1: the key `listeners` is missing"),
        (listener(""), "3:12: listeners: at least one listener is needed, such as `- address: \"[::]:80\"`"),
        (
            listener("{ address: '[::]:80' }, { address: '[::]:80' }"),
            "3:48: listeners[1].address: `listeners[0]` listens on this address already",
        ),
        (
            listener("{ address: '[::]:80', tls: true, redirect: https }"),
            "3:56: listeners[0].redirect: a listener with `tls: true` would redirect to itself; take one of the two out",
        ),
        (
            listener("{ address: '[::]:80', https_port: 8443 }"),
            "3:47: listeners[0].https_port: it only has a meaning beside `redirect: https`",
        ),
        (
            listener("{ address: '[::]:80', redirect: http }"),
            "3:45: listeners[0].redirect: expected `https`, found `http`; did you mean `https`?",
        ),
        (
            listener("{ address: '[::]:80', proxy_protocol: required }"),
            "3:51: listeners[0].proxy_protocol: nobody is trusted to send the PROXY header here; add the network of your \
             load balancer to `trusted_proxies`",
        ),
        (
            listener("{ address: 'unix:/a', proxy_protocol: required }]\ntrusted_proxies: [loopback"),
            "3:51: listeners[0].proxy_protocol: nobody is trusted to send the PROXY header here; add `unix` to \
             `trusted_proxies`",
        ),
        (
            listener("{ address: '[::]:80', client_ca: /ca.pem }"),
            "3:46: listeners[0].client_ca: clients are asked for a certificate in the TLS handshake; write `tls: true` as well",
        ),
        (
            listener("{ address: '[::]:80', tls: true, client_certificate: required }"),
            "3:66: listeners[0].client_certificate: nobody is asked for a certificate here; name the file of the authorities in \
             `client_ca`",
        ),
        (
            listener(
                "{ address: '[::]:80', tls: true, client_ca: /ca.pem, client_certificate: optional, log_server: {} }",
            ),
            "3:86: listeners[0].client_certificate: a log server does not look at certificates: only the handshake keeps \
             anybody out; write `required`",
        ),
        (
            route("{ prefix: /, upstream: app, client_certificate: required }"),
            "3:58: routes[0].client_certificate: no listener asks for a certificate, so nobody could show one; name the \
             authorities in `client_ca` of a listener with `tls: true`",
        ),
        (
            route("{ prefix: /, upstream: app, client_certificate: optional }"),
            "3:58: routes[0].client_certificate: expected `required` (listeners say whether clients are asked for one), found `optional`",
        ),
        (
            listener("{ address: /run/v.sock }"),
            "3:24: listeners[0].address: a socket begins with `unix:`; write `unix:/run/v.sock`",
        ),
        (
            format!("{routes}{upstreams}listeners: {{ address: '[::]:80' }}"),
            "3:12: listeners: expected a list, found a mapping; begin each entry with `- `",
        ),
        (
            upstream("endpoints: ['a:1', { address: 'a:1' }]"),
            "3:40: upstreams.app.endpoints[1]: this is the same endpoint as `upstreams.app.endpoints[0]`",
        ),
        (
            upstream("endpoints: [{ address: 'a:1', weight: 257 }]"),
            "3:59: upstreams.app.endpoints[0].weight: expected a whole number from 1 to 256, found `257`",
        ),
        (
            upstream("endpoints: [{ address: 'srv:_a._tcp.b', weight: 2 }]"),
            "3:69: upstreams.app.endpoints[0].weight: SRV records have weights of their own; take this one out",
        ),
        (
            upstream("endpoints: ['srv:app.b']"),
            "3:33: upstreams.app.endpoints[0]: `app.b` is not a name of SRV records, such as `srv:_app._tcp.example.com`",
        ),
        (
            upstream("endpoints: [{ address: 'a:1', backup: true }]"),
            "3:32: upstreams.app.endpoints: all of these are backups, and of none; take `backup` off one",
        ),
        (
            upstream("endpoints: ['a:1'], balance: random"),
            "3:50: upstreams.app.balance: expected `least`, `round_robin`, `hash` or `bounded_hash`, found `random`",
        ),
        (
            format!("{}\nresolver: ['10.0.0.1']", upstream("endpoints: ['a:1']")),
            "4:12: resolver[0]: `10.0.0.1` has no port; write `10.0.0.1:53`",
        ),
        (
            upstream("endpoints: [/var/run/uwsgi.sock]"),
            "3:33: upstreams.app.endpoints[0]: a socket begins with `unix:`; write `unix:/var/run/uwsgi.sock`",
        ),
        (
            "listeners: [{ address: '[::]:80' }]\nroutes: [{ prefix: /, upstream: wev }]\n\
             upstreams: { web: { endpoints: ['a:0'] } }"
                .to_owned(),
            "2:33: routes[0].upstream: no upstream is named `wev`; did you mean `web`?",
        ),
        (
            listener("{ address: 'fd:' }"),
            "3:24: listeners[0].address: `fd:` is followed by the name of a socket that a service manager passes on, as in `fd:https`",
        ),
        (
            upstream(""),
            "3:19: upstreams.app.endpoints: at least one endpoint is needed, such as `127.0.0.1:8000`, or a `backend`",
        ),
        (upstream("backend: ap"), "3:30: upstreams.app.backend: no backend is named `ap`"),
        (
            upstream("endpoints: ['a:1', 'A:1']"),
            "3:40: upstreams.app.endpoints[1]: this is the same endpoint as `upstreams.app.endpoints[0]`",
        ),
        (
            upstream("endpoints: ['a:1'], protocol: uwgsi"),
            "3:51: upstreams.app.protocol: expected `http` or `uwsgi`, found `uwgsi`; did you mean `uwsgi`?",
        ),
        (
            upstream("endpoints: ['a:1'], concurrency: auto"),
            "3:54: upstreams.app.concurrency: `auto` follows uWSGI's stats server: start uWSGI with `stats = \
             /run/uwsgi/stats.sock`, and say so here with `stats: \"unix:/run/uwsgi/stats.sock\"`; or write the number of the \
             application's threads",
        ),
        (
            upstream("endpoints: ['a:1'], concurrency: auto, stats: []"),
            "3:54: upstreams.app.concurrency: `auto` follows uWSGI's stats server: start uWSGI with `stats = \
             /run/uwsgi/stats.sock`, and say so here with `stats: \"unix:/run/uwsgi/stats.sock\"`; or write the number of the \
             application's threads",
        ),
        (
            upstream("endpoints: ['a:1'], stats: ['/run/stats.sock']"),
            "3:49: upstreams.app.stats[0]: a socket begins with `unix:`; write `unix:/run/stats.sock`",
        ),
        (
            upstream("endpoints: ['a:1'], queue: { sessions: ['a b'] }"),
            "3:61: upstreams.app.queue.sessions[0]: expected the name of a cookie, such as `session`, found `a b`",
        ),
        (
            upstream("endpoints: ['a:1'], concurrency: 0"),
            "3:54: upstreams.app.concurrency: no request could ever get in; write the number of the application's \
             threads, or `null`",
        ),
        (
            upstream("endpoints: ['a:1'], supervisor: { program: '' }"),
            "3:64: upstreams.app.supervisor.program: name the program, as `supervisorctl status` does, such as `uwsgi`",
        ),
        (
            upstream("endpoints: ['a:1'], supervisor: { program: uwsgi, address: 'a:9001', watch: {} }"),
            "3:97: upstreams.app.supervisor.watch: supervisord runs on another machine, whose programs cannot be measured from \
             here; write `null`",
        ),
        (
            upstream("endpoints: ['127.0.0.1:9001'], supervisor: uwsgi"),
            "3:33: upstreams.app.endpoints[0]: supervisord listens here, and clients would command the programs of this \
             machine",
        ),
        (
            upstream("endpoints: ['unix:/s'], supervisor: { program: uwsgi, address: 'unix:/s' }"),
            "3:33: upstreams.app.endpoints[0]: supervisord listens here, and clients would command the programs of this \
             machine",
        ),
        (
            upstream("endpoints: ['a:1'], health: { status: [] }"),
            "3:59: upstreams.app.health.status: no answer would be well; write `[200]`",
        ),
        (
            upstream("endpoints: ['a:1'], eject: { most: 50 }"),
            "3:56: upstreams.app.eject.most: expected a part such as `50%`, found `50`",
        ),
        (
            upstream("endpoints: ['a:1'], retries: { budget: 120% }"),
            "3:60: upstreams.app.retries.budget: expected a whole number from 0 to 100, found `120`",
        ),
        (
            upstream("endpoints: ['a:1'], health: { path: health }"),
            "3:57: upstreams.app.health.path: expected the path of a page, such as `/health_check`, without a query, found \
             `health`",
        ),
        (
            upstream("endpoints: ['a:1'], health: { path: /%zz }"),
            "3:57: upstreams.app.health.path: expected the path of a page, such as `/health_check`, without a query, found \
             `/%zz`",
        ),
        (
            format!("listeners: [{{ address: '[::]:80' }}]\n{routes}upstreams: {{ 'a b': {{ endpoints: ['a:1'] }} }}"),
            "3:14: upstreams.a b: `a b` is not a name: letters, digits, `-` and `_`, up to 64",
        ),
        (route(""), "3:9: routes: at least one route is needed, such as `- { prefix: /, upstream: app }`"),
        (
            route("{ prefix: /, upstream: ap }"),
            "3:33: routes[0].upstream: no upstream is named `ap`; did you mean `app`?",
        ),
        (route("{ prefix: /, upstream: other }"), "3:33: routes[0].upstream: no upstream is named `other`"),
        (
            route("{ prefix: /, upstream: app, allow_origin: [] }"),
            "3:52: routes[0].allow_origin: `*` stands alone, and something has to stand there; write `null` to say nothing of it",
        ),
        (
            route("{ prefix: /, upstream: app, allow_origin: ['https://a.example', '*'] }"),
            "3:52: routes[0].allow_origin: `*` stands alone, and something has to stand there; write `null` to say nothing of it",
        ),
        (
            route("{ prefix: /, upstream: app, allow_origin: ['https://a.example', 'https://b.example/'] }"),
            "3:74: routes[0].allow_origin[1]: an origin has no path; write `https://b.example`",
        ),
        (
            route("{ prefix: /da, upstream: app }, { prefix: /da/, upstream: app }"),
            "3:52: routes[1].prefix: `routes[0]` has this prefix already",
        ),
        (
            route("{ host: a.b, prefix: /, upstream: app }, { host: A.b., prefix: /, upstream: app }"),
            "3:73: routes[1].prefix: `routes[0]` has this prefix for the host a.b already",
        ),
        (
            route("{ prefix: '^/da', upstream: app }"),
            "3:20: routes[0].prefix: `^/da` is not a path prefix: patterns are not supported; write whole segments such \
             as `/da/`",
        ),
        (
            route("{ prefix: /, upstream: app, files: [usr] }"),
            "3:46: routes[0].files[0]: expected an absolute folder such as `/usr`, found `usr`",
        ),
        (
            route("{ prefix: /, upstream: app, files: [//.//] }"),
            "3:46: routes[0].files[0]: `/` would let the application send any file of this machine; name the folders",
        ),
        (
            route("{ prefix: /, upstream: app, files: [/usr/../etc] }"),
            "3:46: routes[0].files[0]: `/usr/../etc` leads upwards; write the folder it means",
        ),
        (
            route("{ prefix: /, upstream: app, accel_prefix: /x }"),
            "3:52: routes[0].accel_prefix: expected a path with a slash at both ends, such as `/xaccel/`, found `/x`",
        ),
        (
            route("{ prefix: /, upstream: app, body_limit: 0 }"),
            "3:50: routes[0].body_limit: no request could have a body; write `null` for no limit",
        ),
        (
            route("{ prefix: /, upstream: app, compress: on }"),
            "3:48: routes[0].compress: expected `true` or `false`, found `on`",
        ),
        (
            route("{ prefix: /, upstream: app, stick: ip }"),
            "3:45: routes[0].stick: expected `sid` or `cookie`, found `ip`",
        ),
    ] {
        let told = faults(&text);
        if !told.iter().any(|line| line == fault) {
            wrong.push(format!("expected {fault}\nfound    {told:?}\nin       {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn with_listeners(listeners: &str, certificate: &str) -> String {
    minimal(&format!("tls: {{ certificates: [{certificate}] }}")).replace("[{ address: '127.0.0.1:80' }]", listeners)
}

const BOTH: &str = "[{ address: '127.0.0.1:80' }, { address: '127.0.0.1:443', tls: true }]";

#[test]
fn a_certificate_is_ordered_by_what_hook_and_listeners_allow() {
    const ONLY_TLS: &str = "[{ address: '127.0.0.1:443', tls: true }]";
    for (listeners, certificate, challenge) in [
        (BOTH, "{ hosts: [a.example], acme: {} }", ChallengeKind::Http01),
        (ONLY_TLS, "{ hosts: [a.example, '2001:db8::1'], acme: {} }", ChallengeKind::TlsAlpn01),
        (BOTH, "{ hosts: [a.example], acme: { challenge: tls-alpn-01 } }", ChallengeKind::TlsAlpn01),
        (BOTH, "{ hosts: [a.example, '*.a.example'], acme: { dns_hook: [/bin/hook, x] } }", ChallengeKind::Dns01),
    ] {
        let plan = plan(&with_listeners(listeners, certificate));
        assert_eq!(plan.tls.acme.len(), 1, "{certificate}");
        assert_eq!(plan.tls.acme[0].challenge, challenge, "{certificate}");
    }
}

#[test]
fn ordered_certificates_keep_their_place_among_those_of_ones_own() {
    let files = |name: &str| format!("{{ files: {{ certificate: {name}, key: k }} }}");
    let entries = [
        "{ hosts: [A.example., a.example], acme: {} }",
        &files("b"),
        "{ hosts: [c.example], acme: { staging: true } }",
    ];
    let plan = plan(&with_listeners(BOTH, &entries.join(", ")));

    let places: Vec<_> = plan.tls.acme.iter().map(|ordered| (ordered.at.as_str(), ordered.after)).collect();
    assert_eq!(places, [("tls.certificates[0]", 0), ("tls.certificates[2]", 1)]);
    assert_eq!(plan.tls.acme[0].hosts.len(), 1);
    assert!(plan.tls.acme[0].directories[0].contains("//acme-v02.api.letsencrypt.org/"));
    assert!(plan.tls.acme[1].directories[0].contains("//acme-staging-v02.api.letsencrypt.org/"));
}

#[test]
fn what_becomes_of_ordered_certificates_is_read_as_it_is_written() {
    let ordered = with_listeners(BOTH, "{ hosts: [a.example], acme: {} }");
    let tls = |keys: &str| ordered.replacen("tls: {", &format!("tls: {{ {keys},"), 1);
    let files = "{ certificate: c, key: /k }, { certificate: d, key: l, host: A.example, mode: 0640, unless: u }";

    let plan = plan(&tls(&format!("export: {{ files: [{files}] }}, deploy: [{{ command: [a, b] }}], import: [/le]")));

    let export = plan.tls.export.unwrap();
    assert_eq!((export.folder, export.replace), (Some("/etc/letsencrypt".into()), false));
    let [first, second] = &export.files[..] else { panic!("{:?}", export.files) };
    assert_eq!(
        (first.certificate.as_path(), first.mode.bits(), first.owner.as_str()),
        (Path::new("/etc/c"), 0o600, "root")
    );
    assert_eq!((second.mode.bits(), second.unless.as_deref()), (0o640, Some(Path::new("/etc/u"))));
    assert_eq!(
        plan.tls.deploy,
        [DeployPlan { command: vec!["a".into(), "b".into()], timeout: Duration::from_secs(60) }]
    );
    assert_eq!(plan.tls.import, [Path::new("/le")]);
    for (keys, fault) in [
        ("deploy: [{ command: [] }]", "tls.deploy[0].command: name a program and its arguments, such as `[systemctl"),
        ("deploy: [{ command: [''] }]", "tls.deploy[0].command: name a program and its arguments, such as `[systemctl"),
        (
            "export: { files: [{ certificate: c, key: c }] }",
            "tls.export.files[0].key: `tls.export.files[0].certificate` is written to this file already",
        ),
        (
            "export: { files: [{ certificate: c, key: k, host: b.example }] }",
            "tls.export.files[0].host: no certificate is ordered for b.example",
        ),
        (
            "export: { files: [{ certificate: c, key: k, mode: 0644 }] }",
            "tls.export.files[0].mode: expected a mode by which only owner and group read, such as `0640`",
        ),
    ] {
        let told = faults(&tls(keys)).join("\n");
        assert!(told.contains(fault), "{fault}\n{told}");
    }
}

#[test]
fn an_order_that_could_not_succeed_is_refused_with_what_to_do() {
    for (listeners, certificate, fault) in [
        (BOTH, "{}", "tls.certificates[0]: write `files` of your own, `fetch`, or `hosts` and `acme`"),
        (
            BOTH,
            "{ acme: {} }",
            "tls.certificates[0].hosts: name the hosts that it is ordered for, such as `[justice.example.com]`",
        ),
        (
            BOTH,
            "{ hosts: [a.example] }",
            "tls.certificates[0]: write `files` of your own, `fetch`, or `hosts` and `acme`",
        ),
        (
            BOTH,
            "{ hosts: [a.example], acme: {}, files: { certificate: c, key: k } }",
            "tls.certificates[0]: a certificate is of your own, is fetched or is ordered: write one of `files`, `fetch` and `acme`",
        ),
        (
            BOTH,
            "{ hosts: ['*.a.example'], acme: {} }",
            "tls.certificates[0].hosts: *.a.example takes `dns-01` (RFC 8555, 7.1.3): name a command for it in `acme.dns_hook`",
        ),
        (
            BOTH,
            "{ hosts: [192.0.2.1], acme: { dns_hook: [h] } }",
            "tls.certificates[0].hosts: 192.0.2.1 is an address, which no DNS record proves (RFC 8738, 7); order one of its own \
             for it",
        ),
        (
            BOTH,
            "{ hosts: [a.example], acme: { challenge: dns-01 } }",
            "tls.certificates[0].acme.challenge: `dns-01` takes a command that makes records at your DNS provider: name it in \
             `dns_hook`",
        ),
        (
            "[{ address: '127.0.0.1:443', tls: true }]",
            "{ hosts: [a.example], acme: { challenge: http-01 } }",
            "tls.certificates[0].acme.challenge: `http-01` is answered on a listener without TLS, on port 80 of the internet; \
             add one",
        ),
        (
            "[{ address: '127.0.0.1:80' }]",
            "{ hosts: [a.example], acme: {} }",
            "tls.certificates[0]: no listener would use it; write `tls: true` for one, or take the certificate out",
        ),
        (
            BOTH,
            "{ hosts: [a_b.example], acme: {} }",
            "tls.certificates[0].hosts[0]: expected a host name such as `justice.example.com`, `*.example.com`, or an IP \
             address, found `a_b.example`",
        ),
        (
            BOTH,
            "{ hosts: [a.example], acme: { directory: 'http://ca.example/d' } }",
            "tls.certificates[0].acme.directory: ACME is spoken over https only (RFC 8555, 6.1)",
        ),
        (
            BOTH,
            "{ hosts: [a.example], acme: { directory: 'https://ca.example/d', staging: true } }",
            "tls.certificates[0].acme.staging: it is Let's Encrypt's; take it or `directory` out",
        ),
        (
            BOTH,
            "{ hosts: [a.example], acme: { directory: 'https://ca.example/d', fallback: 'https://ca.example/d' } }",
            "tls.certificates[0].acme.fallback: this is the directory that has just failed; name another one",
        ),
        (
            BOTH,
            "{ hosts: [a.example], acme: { eab: { key_id: k, key: 'a+b' } } }",
            "tls.certificates[0].acme.eab.key: this is no base64url; copy it as the authority shows it",
        ),
        (
            BOTH,
            "{ hosts: [a.example], acme: {} }, { hosts: [A.example], acme: {} }",
            "tls.certificates[1].hosts: `tls.certificates[0]` is ordered for these already",
        ),
    ] {
        let told = faults(&with_listeners(listeners, certificate));
        assert!(told.len() == 1 && told[0].ends_with(fault), "{certificate}\n{told:?}\nexpected {fault}");
    }
}

#[test]
fn a_key_that_could_not_be_read_makes_no_second_fault() {
    for (text, count) in [
        (minimal("host: 'a b'").replace("'127.0.0.1:80'", "'127.0.0.1:80', redirect: https"), 1),
        (minimal("trusted_proxies: [x]").replace("'127.0.0.1:80'", "'127.0.0.1:80', proxy_protocol: required"), 1),
        (minimal("").replace("{ app: { endpoints: ['127.0.0.1:8000'] } }", "none"), 1),
        (
            minimal("host: ${A}\naliases: ['${B}']\ndrain: ${C}")
                .replace("'127.0.0.1:80'", "'127.0.0.1:80', redirect: https"),
            3,
        ),
    ] {
        assert_eq!(faults(&text).len(), count, "{:#?}", faults(&text));
    }
}

#[test]
fn two_listeners_may_each_take_any_free_port() {
    let text = minimal("").replace("[{ address: '127.0.0.1:80' }]", "[{ address: '[::]:0' }, { address: '[::]:0' }]");

    assert_eq!(faults(&text), [""; 0]);
}

#[test]
fn a_variable_is_a_value_and_never_syntax() {
    let environment = |name: &str| match name {
        "WORKERS" => Some("3".to_owned()),
        "HOST" => Some("a.example\nadmin: y".to_owned()),
        "NOBODY" => Some("null".to_owned()),
        _ => None,
    };
    let numbers = minimal("workers: ${WORKERS}\nlimits: { streams: \"${STREAMS:-7}\" }\nadministrator: ${NOBODY}");

    let numbers = parse("v.yml", &numbers, &environment).unwrap();
    let syntax = parse("v.yml", &minimal("host: ${HOST}"), &environment).unwrap_err().to_string();

    assert_eq!((numbers.workers.get(), numbers.limits.streams, numbers.administrator), (3, 7, None));
    assert_eq!(
        syntax,
        "v.yml:4:7: host: expected a host name such as `justice.example.com`, found `a.example\u{fffd}admin: y`"
    );
}

#[test]
fn an_alias_stands_for_what_it_names() {
    let text = minimal("").replace(
        "{ app: { endpoints: ['127.0.0.1:8000'] } }",
        "{ app: { endpoints: &here ['127.0.0.1:8000'] }, other: { endpoints: *here } }",
    );

    let plan = plan(&text);

    assert_eq!(plan.upstreams["app"].endpoints, plan.upstreams["other"].endpoints);
}

#[test]
fn aliases_that_double_with_each_line_are_refused_before_memory_is_gone() {
    let mut text = "a0: &a0 [x, x]\n".to_owned();
    for level in 1..64 {
        writeln!(text, "a{level}: &a{level} [*a{0}, *a{0}]", level - 1).unwrap();
    }

    let told = faults(&text);

    assert!(told[0].ends_with("the file unfolds to more than a configuration can hold"), "{told:?}");
}

#[test]
fn what_is_not_yaml_is_refused_with_its_place() {
    for text in ["listeners: [", "a: b: c", "\"", "a:\n\t- b", "*unknown"] {
        let told = faults(text);

        assert_eq!(told.len(), 1, "{text}: {told:?}");
        assert!(told[0].starts_with(|c: char| c.is_ascii_digit()), "{text}: {told:?}");
    }
}

#[test]
fn a_syntax_error_is_told_in_the_words_of_the_parser() {
    assert_eq!(faults("a: 1\n b: 2"), ["2:3: mapping values are not allowed in this context"]);
}

#[test]
fn a_backend_is_ready_by_the_health_page_of_its_only_upstream() {
    let behind = |route: &str, upstreams: &str, ready: &str| {
        let text = format!(
            "listeners: [{{ address: '127.0.0.1:80' }}]\n\
             backends: {{ app: {{ command: [app], {ready} }} }}\n\
             upstreams: {{ {upstreams} }}\n\
             routes: [{{ {route}, upstream: app }}]\n"
        );
        plan(&text).backends["app"].ready_path.clone()
    };
    let path = |upstreams: &str, ready: &str| behind("prefix: /", upstreams, ready);
    let one = "app: { backend: app, health: { path: /well } }";

    assert_eq!(path(one, "").as_deref(), Some("/well"));
    assert_eq!(path(one, "ready: { path: auto }").as_deref(), Some("/well"));
    assert_eq!(path(one, "ready: { path: /own }").as_deref(), Some("/own"));
    assert_eq!(path(one, "ready: { path: null }"), None, "none is wanted");
    assert_eq!(path("app: { backend: app, health: { path: /well, status: [204] } }", ""), None);
    assert_eq!(path("app: { backend: app, health: { path: /well, timeout: 20s } }", ""), None);
    assert_eq!(path(&format!("{one}, other: {{ backend: app }}"), ""), None);
    assert_eq!(behind("prefix: /da, strip_prefix: true", one, ""), None, "the application has another name for it");
}
