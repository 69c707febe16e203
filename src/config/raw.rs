//! The configuration as it is written: each key, what it holds, its default, and what it means.
//!
//! `config/schema.json` is made from this file, and `config/vestibule.yml` is held to it by a test.
//! Rules between keys, and what they mean together, are in [`super::lower`].

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{
    address::{ServerAddress, Trusted},
    admin::{AdminListen, AdminSocket},
    ciphers::Cipher,
    keys::keys,
    plan::{
        Balance, CertificateHost, ChallengeKind, EndpointAddress, EndpointPlace, FileMode, FrameAncestor, HostName,
        ListenAddress, LogFormat, LogSink, LoggedQuery, PathPrefix, Protocol, RateKey, Secret, Slash, Stick,
        StopSignal,
    },
    read::{OneOrMore, Read, Reading, Told},
    tree::{Key, Node, Value},
    units::{Count, Percent, Size, Timeout, Wait},
    words::{
        AccelPrefix, AutoPort, CertificateRequired, ClientCertificate, Concurrency, CookieName, DirectoryUrl, FilePath,
        Https, MailAddress, Memory, PagePath, PageTarget, ProxyRequired, ReadyPage, Realm, ReferrerPolicy,
        ServedFolder, ServiceUrl, SiteOrigin, StoragePlace, StorePlace, TlsVersion, ToldHeader, UserName, Workers,
    },
};

keys! {
    /// The configuration of Vestibule. Values may hold `${NAME}` and `${NAME:-default}` from the
    /// environment; `$${` stands for `${` itself. Relative paths are beside this file.
    struct File {
        /// The addresses that are listened on.
        listeners: Vec<Listener> = required,
        /// The canonical host name, without scheme and port. On TLS listeners, requests for hosts that are not
        /// known are redirected to it. `null`: any host is served.
        host: Option<HostName> = "null",
        /// Other names of the site, served as they are.
        aliases: Vec<HostName> = "[]",
        /// Certificates and protocol versions.
        tls: Tls = "{}",
        /// Whose `X-Forwarded-*` and PROXY headers are believed: networks, addresses, `loopback`, `private`
        /// (`10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16`, `fc00::/7`) and `unix` (peers on unix sockets). Nobody by default.
        trusted_proxies: Vec<Trusted> = "[]",
        /// The applications, by names of your choice.
        upstreams: BTreeMap<String, Upstream> = "{}",
        /// The name servers, such as `10.0.0.53:53`, that are asked where endpoints are which have names. Empty: those of
        /// `/etc/resolv.conf`. `/etc/hosts` comes before either.
        resolver: Vec<ServerAddress> = "[]",
        /// Programs that are begun, looked after and ended by Vestibule, by names of your choice.
        backends: BTreeMap<String, Backend> = "{}",
        /// Which requests go where: those of a `host` first, then by the longest prefix.
        routes: Vec<Route> = required,
        /// One line a request. `null`: none.
        access_log: Option<AccessLog> = "{}",
        /// A file for warnings and errors, as nginx writes them, besides standard error. `null`: none.
        error_log: Option<ErrorLog> = "null",
        /// Where `vestibule` commands and metrics reach the running one: `unix:/path`, or a mapping. `null`: nowhere.
        admin: Option<AdminPlaces> = "null",
        /// Traffic threads. `auto`: one a processor.
        workers: Workers = "auto",
        /// The mail address shown on error pages. `null`: none.
        administrator: Option<MailAddress> = "null",
        /// How long a stop waits for requests in flight.
        drain: Wait = "18s",
        /// Who carries the traffic when Vestibule is started as root: a user that owns nothing of value. `root` is taken
        /// and gives this protection up.
        user: UserName = "www-data",
        /// Disk for bodies that do not fit in memory.
        spool: Spool = "{}",
        /// Bounds on what a client may ask for.
        limits: Limits = "{}",
    }
}

keys! {
    /// One address that is listened on.
    struct Listener {
        /// `host:port`, where the host is an address (`[::]:443`, `127.0.0.1:80`), `unix:/path`, or `fd:NAME`: the sockets
        /// that a service manager passes on under this name.
        address: ListenAddress = required,
        /// Whether TLS is spoken here: h2 and http/1.1.
        tls: bool = "false",
        /// `https`: answer everything with a redirect to `https://` and `host`.
        redirect: Option<Https> = "null",
        /// The port that browsers use for https, where it is not 443; only with `redirect`.
        https_port: Option<Count<1, 65_535>> = "null",
        /// `required`: each connection begins with a PROXY protocol header (v1 or v2).
        proxy_protocol: Option<ProxyRequired> = "null",
        /// It serves a folder of logs to other machines of the site, and nothing else. `null`: it serves the routes.
        log_server: Option<LogServer> = "null",
        /// The certificates (PEM) of the authorities that clients' certificates must come from: clients are asked for one in the
        /// handshake. `null`: nobody is asked.
        client_ca: Option<FilePath> = "null",
        /// With `client_ca`: whether a client without a certificate is refused the handshake, `required`, or let in,
        /// `optional`. `null`: it is refused.
        client_certificate: Option<ClientCertificate> = "null",
    }
}

keys! {
    /// A folder of logs for other machines of the same site, as docassemble's log server has it: `/` is an index of names, one
    /// a line, and `/name` that file.
    struct LogServer {
        /// The folder.
        folder: ServedFolder = "/usr/share/docassemble/log",
        /// Who may connect: networks, addresses, `loopback`, `private`. Everybody else is answered 403.
        allow: Vec<Trusted> = "[private, loopback]",
        /// The name of an upstream that makes the index, at `/listlog`; without it, and where it cannot be connected to, we
        /// do.
        index: Option<String> = "null",
        /// Has the logs collected before we make the index. `null`: it is made of what is there.
        supervisor: Option<Supervisor> = "null",
    }
}

keys! {
    /// A supervisord that is asked to run a program.
    struct Supervisor {
        /// Where it listens.
        address: EndpointAddress = "127.0.0.1:9001",
        /// The program, which ends by itself.
        program: String = "sync",
        /// What it wants to be told, if anything; with `password`.
        username: Option<String> = "null",
        /// Shown nowhere.
        password: Option<Secret> = "null",
    }
}

keys! {
    /// Certificates and protocol versions.
    struct Tls {
        /// The versions that are spoken: `TLSv1.2`, `TLSv1.3`.
        protocols: Vec<TlsVersion> = "[TLSv1.2, TLSv1.3]",
        /// The ciphers of TLS 1.2 by OpenSSL's names. Empty: all that are spoken here. TLS 1.3 has its own.
        ciphers: Vec<Cipher> = "[]",
        /// Certificates: of your own, or ordered from a certificate authority. Where there is none, a self-signed one is
        /// made.
        certificates: Vec<Certificate> = "[]",
        /// The folder where ordered and self-signed certificates, accounts and the configurations that were applied are kept.
        /// Where several machines serve one site: `s3://bucket/prefix` or `azure://container/prefix`, so that they share
        /// accounts and certificates, which one of them orders for all.
        storage: StoragePlace = "/var/lib/vestibule",
        /// How `s3://` and `azure://` are reached, in `storage` and in `fetch`, and what is kept there sealed with; the same on each
        /// machine.
        storage_options: StorageOptions = "{}",
        /// Where a certificate is taken from that was ordered by other means: folders laid out as certbot's, or `.tar.gz`
        /// archives of one. Looked at only where `storage` has none for the names of `hosts`; what is found is served, and renewed
        /// when it is due.
        import: Vec<FilePath> = "[]",
        /// Where ordered certificates are written for other programs of this machine. `null`: nowhere.
        export: Option<Export> = "null",
        /// What is run when an ordered certificate has come and is exported: one command after the other.
        deploy: Vec<Deploy> = "[]",
    }
}

keys! {
    /// How a store of objects is reached.
    struct StorageOptions {
        /// A file with at least 32 bytes that nobody else knows, the same on each machine
        /// (`openssl rand -base64 -out FILE 48`): what is stored is sealed with it. Required where `storage` is shared.
        secret_file: Option<FilePath> = "null",
        /// Whether the machines resume each other's TLS sessions, by keys that are made of the secret and the time: whoever has
        /// recorded TLS 1.2 traffic and gets hold of the secret later can read it.
        share_tickets: bool = "false",
        /// The URL of a service of the same kind, such as `https://minio.example.com`. `null`: Amazon's or Microsoft's own.
        endpoint: Option<ServiceUrl> = "null",
        /// S3: the region of the bucket. `null`: what `AWS_REGION` says.
        region: Option<String> = "null",
        /// S3: the id of the access key; with `secret_access_key_file`. `null`: what `AWS_ACCESS_KEY_ID` and
        /// `AWS_SECRET_ACCESS_KEY` say, or what the role of this machine allows.
        access_key_id: Option<String> = "null",
        /// S3: a file with the secret access key.
        secret_access_key_file: Option<FilePath> = "null",
        /// Azure: the name of the storage account. `null`: what `AZURE_STORAGE_ACCOUNT_NAME` says.
        account: Option<String> = "null",
        /// Azure: a file with a key of the account. `null`: what `AZURE_STORAGE_ACCOUNT_KEY` says, or what the identity of this
        /// machine allows.
        account_key_file: Option<FilePath> = "null",
        /// The root certificates (PEM) that the service is trusted by. `null`: those of the system.
        ca_file: Option<FilePath> = "null",
        /// The folder of this machine for what is not shared, and for copies of the certificates, so that a start needs
        /// nobody else.
        folder: FilePath = "/var/lib/vestibule",
    }
}

keys! {
    /// Where ordered certificates are written for other programs of this machine; each file is whole at every moment.
    struct Export {
        /// A folder laid out as certbot's: `live/HOST/fullchain.pem`, `privkey.pem`, `cert.pem` and `chain.pem`, by the first of
        /// `hosts` and for root only. `null`: none.
        folder: Option<FilePath> = "/etc/letsencrypt",
        /// Whether that is also done where certbot itself renews a certificate of this name in the folder.
        replace: bool = "false",
        /// Pairs of files.
        files: Vec<ExportFiles> = "[]",
    }
}

keys! {
    /// A certificate with its chain, and its key, in two files for a program that reads them as its own user.
    struct ExportFiles {
        /// Which certificate: one of its `hosts`. `null`: the first that is ordered.
        host: Option<CertificateHost> = "null",
        /// The file of certificate and chain.
        certificate: FilePath = required,
        /// The file of the key.
        key: FilePath = required,
        /// Whose the files are, where Vestibule runs as root.
        owner: UserName = "root",
        /// Their group, likewise.
        group: UserName = "root",
        /// Their mode: for the owner, and for the group.
        mode: FileMode = "'0600'",
        /// They are not written while this file is there. `null`: they always are.
        unless: Option<FilePath> = "null",
    }
}

keys! {
    /// A command that is run when a certificate has come.
    struct Deploy {
        /// The program and its arguments. It is told what certbot tells its deploy hooks, `RENEWED_LINEAGE` (where there is a
        /// `folder`) and `RENEWED_DOMAINS`, and `VESTIBULE_HOST`, the first of them.
        command: Vec<String> = required,
        /// How long it may take; then it is ended.
        timeout: Timeout = "60s",
    }
}

keys! {
    /// A certificate: `files` of your own, or `fetch`, or `hosts` and `acme`.
    struct Certificate {
        /// The files of a certificate of your own.
        files: Option<CertificateFiles> = "null",
        /// Where a certificate of your own is fetched from: `s3://bucket/certs` or `azure://container/certs`, reached as
        /// `storage_options` says, with docassemble's names: `nginx.crt` (with its chain) and `nginx.key`, or `apache.crt`,
        /// `apache.key` and, for the chain, `apache.ca.pem`. It is looked at every five minutes.
        fetch: Option<StorePlace> = "null",
        /// The names that one is ordered for: host names, `*.example.com`, IP addresses; the first one names it.
        hosts: Vec<CertificateHost> = "[]",
        /// From whom it is ordered, and renewed in time. Until it is there a self-signed one is served.
        acme: Option<Acme> = "null",
    }
}

keys! {
    /// A certificate authority that certificates are ordered from by ACME (RFC 8555). Whoever orders agrees to its terms.
    struct Acme {
        /// Where it may write to about the account. `null`: nowhere.
        email: Option<MailAddress> = "null",
        /// The URL of its directory. `null`: that of Let's Encrypt.
        directory: Option<DirectoryUrl> = "null",
        /// Let's Encrypt's staging environment, to try things out: browsers do not trust its certificates.
        staging: bool = "false",
        /// The directory of another one that is asked while the first one fails. `null`: none.
        fallback: Option<DirectoryUrl> = "null",
        /// How we show that the names are ours: `http-01` (port 80), `tls-alpn-01` (port 443) or `dns-01` (`dns_hook`).
        /// `null`: `dns-01` where there is a hook, else what the listeners allow.
        challenge: Option<ChallengeKind> = "null",
        /// The command, with its arguments, that makes and removes TXT records at your DNS provider. It is run as
        /// `… present NAME VALUE` and `… cleanup NAME VALUE`, the same in `VESTIBULE_DNS_ACTION`, `_NAME` and `_VALUE`, and with
        /// what certbot tells its manual hooks: `CERTBOT_DOMAIN`, `CERTBOT_VALIDATION` and, to clean up, `CERTBOT_AUTH_OUTPUT`.
        dns_hook: Vec<String> = "[]",
        /// The profile of certificate that is asked for. `null`: the authority's default.
        profile: Option<String> = "null",
        /// The root certificates (PEM) that the directory itself is trusted by. `null`: those of the system.
        ca_file: Option<FilePath> = "null",
        /// An account with the authority that the new one is bound to. `null`: none.
        eab: Option<Eab> = "null",
    }
}

keys! {
    /// External account binding (RFC 8555, 7.3.4): what the authority gave its customer.
    struct Eab {
        /// The number of the key.
        key_id: String = required,
        /// The key, in base64url. Shown nowhere.
        key: Secret = required,
    }
}

keys! {
    /// The files of a certificate, all in PEM.
    struct CertificateFiles {
        /// The certificate, alone or followed by its chain.
        certificate: FilePath = required,
        /// The private key, not encrypted.
        key: FilePath = required,
        /// The chain, where it is not in `certificate`.
        chain: Option<FilePath> = "null",
    }
}

keys! {
    /// An application: one or more endpoints that answer alike.
    struct Upstream {
        /// What is spoken with it: `http` or `uwsgi`.
        protocol: Protocol = "http",
        /// Where it listens: `host:port`, `[::1]:port`, `unix:/path` or `srv:_name._tcp.example.com`, or a mapping with such an
        /// `address`. Each address of a name is an endpoint; names are resolved again and again, as long as the DNS says an
        /// answer holds. The weights of SRV records are taken, and those of a later priority are backups.
        endpoints: Vec<Endpoint> = "[]",
        /// Instead of `endpoints`: the name of one of `backends`, whose instances are its endpoints. `null`: none.
        backend: Option<String> = "null",
        /// Which endpoint a request goes to. `least`: the one with the fewest requests inside; `round_robin`: one after the
        /// other; `hash`: by the client's address, the same one on every front door with these endpoints; `bounded_hash`: likewise,
        /// and to the next one where that has more than 1.25 of its share of the requests inside. All of them heed weights, and
        /// pass over an endpoint that cannot be used.
        balance: Balance = "least",
        /// An endpoint that is new beside others, or that could not be used before, comes to its weight over this time. Not with
        /// `balance: hash` or `bounded_hash`. `0`: at once.
        slow_start: Wait = "0",
        /// Requests inside at once; the rest wait. `auto`: as many as `stats` says there are threads of workers, and 4 for each
        /// address in `stats` until it can be read. `null`: no bound.
        concurrency: Option<Concurrency> = "null",
        /// Where uWSGI says how its workers are (its option `stats`): an address, or a list with one for each endpoint. It is
        /// asked once a second. `null`: nowhere.
        stats: Option<OneOrMore<EndpointAddress>> = "null",
        /// The waiting room in front of it.
        queue: Queue = "{}",
        /// Its own health page.
        health: Health = "{}",
        /// When one of several endpoints is passed over for a while, by what requests meet there.
        eject: Eject = "{}",
        /// How many requests may be sent again.
        retries: Retries = "{}",
        /// How long a request waits for a backend that cannot be connected to; then 503 and the starting page.
        hold: Wait = "30s",
        /// The longest wait for one connection.
        connect_timeout: Timeout = "3s",
        /// The program of supervisord that is behind it: its name, or a mapping. `null`: none that is known.
        supervisor: Option<NamedProgram> = "null",
    }
}

/// A [`Supervised`]; a name alone is one with everything else as it is by default.
#[derive(Debug)]
pub(super) struct NamedProgram(pub(super) Supervised);

impl Read for NamedProgram {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        let Value::Scalar { .. } = &node.value else { return Supervised::read(node, reading).map(Self) };
        let name = Key { position: node.position, name: "program".to_owned() };
        let mapping = Node { position: node.position, value: Value::Mapping(vec![(name, node.clone())]) };
        Supervised::read(&mapping, reading).map(Self)
    }

    fn schema() -> Json {
        json!({ "anyOf": [Supervised::schema(), { "type": "string" }] })
    }
}

keys! {
    /// A program of supervisord's, which is asked what it is doing.
    struct Supervised {
        /// Its name, as `supervisorctl status` has it: `uwsgi`, or `group:name`.
        program: String = required,
        /// Where supervisord listens: `host:port` or `unix:/path`.
        address: EndpointAddress = "127.0.0.1:9001",
        /// What it wants to be told, if anything; with `password`.
        username: Option<String> = "null",
        /// Shown nowhere.
        password: Option<Secret> = "null",
        /// When it is restarted because it hangs. `null`: never.
        restart: Option<Restart> = "null",
        /// What it may use. `null`: it is not measured.
        watch: Option<Watch> = "null",
    }
}

keys! {
    /// What a program of this machine may use, with all that it began; what is beyond is told in the log.
    struct Watch {
        /// Memory, as `ps` counts it (RSS). `null`: no limit.
        memory: Option<Size> = "null",
        /// Percents of one processor. `null`: no limit.
        cpu: Option<Count<1, 100_000>> = "null",
        /// How long without a break, for both.
        time: Timeout = "5m",
        /// Whether it is restarted then, no more often than `restart` says.
        restart: bool = "false",
    }
}

keys! {
    /// When a program that runs and does not answer is restarted.
    struct Restart {
        /// After so many requests and looks at `health.ready` or `health.path`, one after the other, without an answer in time.
        after: Count<1, 1_000> = "3",
        /// So often, and then it is left alone.
        at_most: Count<1, 100> = "3",
        /// In so much time.
        within: Timeout = "1h",
    }
}

/// An endpoint: an address alone, or a mapping.
#[derive(Debug)]
pub(super) struct Endpoint(pub(super) EndpointKeys);

keys! {
    /// An endpoint with its share.
    struct EndpointKeys {
        /// Where it listens.
        address: EndpointPlace = required,
        /// How many requests it gets beside the others. Those of SRV records are in the DNS.
        weight: Count<1, 256> = "1",
        /// Whether it gets requests only while no other can be used.
        backup: bool = "false",
    }
}

impl Read for Endpoint {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        if matches!(node.value, Value::Mapping(_)) {
            return EndpointKeys::read(node, reading).map(Self);
        }
        let address = EndpointPlace::read(node, reading)?;
        Ok(Self(EndpointKeys { address: Ok(address), weight: Ok(Count(1)), backup: Ok(false) }))
    }

    fn schema() -> Json {
        json!({ "anyOf": [EndpointKeys::schema(), <EndpointPlace as Read>::schema()] })
    }
}

keys! {
    /// A program that Vestibule begins, in as many instances as are wanted, and looks after.
    struct Backend {
        /// The program and its arguments; no shell. In them, and in `environment`, `{socket}` or `{port}` is where an instance
        /// is to listen, which `SOCKET` or `PORT` in its environment says as well.
        command: Vec<String> = required,
        /// Who it runs as, where Vestibule is root; `root` only if it is said here. `null`: the `user` that carries the traffic.
        user: Option<UserName> = "null",
        /// What is in its environment besides `PATH`, `LANG`, `TZ` and `HOME`. Shown nowhere.
        environment: BTreeMap<String, Secret> = "{}",
        /// The folder that it begins in.
        directory: FilePath = "/",
        /// How many there are at once.
        instances: Count<1, 64> = "1",
        /// `auto`: each instance has a free port of 127.0.0.1. `null`: each has a unix socket in a folder that is its user's.
        port: Option<AutoPort> = "null",
        /// When it gets requests.
        ready: BackendReady = "{}",
        /// How it is ended.
        stop: BackendStop = "{}",
        /// How long one that is replaced has for the requests inside.
        drain: Wait = "30s",
        /// In a restart that is asked for, and after a change of this configuration, one that is replaced stays until no client
        /// whose cookie names it has asked for anything for so long, or for 24 hours. `null`: it drains at once.
        drain_sessions: Option<Timeout> = "null",
        /// An instance is replaced after so many answers in a row that did not come within `timeout` of the route, or looks at
        /// `ready.path` that were not answered. `null`: never.
        hung: Option<Count<1, 1_000>> = "3",
        /// What an instance may use before another one takes its place.
        limits: BackendLimits = "{}",
    }
}

keys! {
    /// When an instance gets requests: once it can be connected to, and answers.
    struct BackendReady {
        /// A page that answers 200 when it is ready, with or without a query. It is looked at every five seconds afterwards.
        /// `auto`: `health.path` of the upstream, where it is the only one with this backend and its `health.status` is `[200]`;
        /// else, and with `null`, it is ready when it can be connected to.
        path: Option<ReadyPage> = "auto",
        /// How long that may take; then the instance is ended, and another one begun.
        timeout: Timeout = "60s",
    }
}

keys! {
    /// How an instance is ended.
    struct BackendStop {
        /// What the program is sent: `TERM`, `INT`, `QUIT`, `HUP`, `USR1`, `USR2` or `KILL`.
        signal: StopSignal = "TERM",
        /// How long it has then; what is left of it and of all that it began is killed.
        timeout: Wait = "10s",
    }
}

keys! {
    /// What an instance may use; one at a time is replaced, the new one first.
    struct BackendLimits {
        /// Memory of it and of all that it began, as `ps` counts it (RSS). `null`: no limit.
        memory: Option<Size> = "null",
        /// Requests. `null`: no limit.
        requests: Option<Count<1, 4_000_000_000>> = "null",
        /// Age. `null`: no limit.
        age: Option<Timeout> = "null",
        /// Percents of one processor, over all of its processes, for `cpu_time` without a break: that is told in the log.
        /// `null`: no limit.
        cpu: Option<Count<1, 100_000>> = "null",
        /// How long, for `cpu`.
        cpu_time: Timeout = "5m",
        /// Whether it is replaced then as well.
        cpu_restart: bool = "false",
    }
}

keys! {
    /// The waiting room in front of an upstream.
    struct Queue {
        /// Requests waiting at once; one more is answered 503.
        limit: Count<0, 1_000_000> = "512",
        /// The longest wait; then 503.
        timeout: Wait = "30s",
        /// Names of cookies. A request with one of them is let in before those without, which have every fourth place all the
        /// same.
        sessions: Vec<CookieName> = "[session]",
    }
}

keys! {
    /// The health page of an upstream.
    struct Health {
        /// The path as the browser sees it, prefix included; answered for every host, never redirected to `host`.
        /// A listener with `redirect: https` redirects it like everything else. During a drain it is answered 503, so that a
        /// load balancer looks elsewhere. Each endpoint is asked for it by itself, and one of several that fails is passed
        /// over. `null`: none.
        path: Option<PagePath> = "null",
        /// A page that answers 200 when the application is ready, with or without a query. It is asked every second; until it
        /// has said so clients are shown a page that says what is missing, and every five seconds afterwards. One that answers
        /// for five minutes, and never that it is ready, is let in all the same. `null`: none.
        ready: Option<PageTarget> = "null",
        /// Between two looks of ours at `path`, give or take a tenth.
        interval: Timeout = "5s",
        /// How long an answer to one may take.
        timeout: Timeout = "5s",
        /// The statuses that are well.
        status: Vec<Count<200, 599>> = "[200]",
        /// A text that the answer has to hold, within its first 64 KiB. `null`: any answer will do.
        body: Option<String> = "null",
        /// Looks in a row that have to fail until the endpoint is passed over.
        failures: Count<1, 1_000> = "3",
        /// Looks in a row that have to go well until it is used again.
        successes: Count<1, 1_000> = "2",
    }
}

keys! {
    /// When one of several endpoints is passed over for a while, by what requests meet there: never all of them, and never
    /// the only one.
    struct Eject {
        /// Requests in a row that are answered 502, 503 or 504, or not at all. One that is silent for the whole `timeout` of a
        /// route, while nothing else was answered, is enough.
        failures: Count<1, 1_000> = "5",
        /// For how long; each time twice as long as before, up to five minutes, until it has been well for as long again.
        time: Timeout = "10s",
        /// The most of the endpoints that are passed over for this at once (of silent ones, all but one); one always may be,
        /// and one never is.
        most: Percent = "50%",
    }
}

keys! {
    /// How many requests may be sent again, of those that were sent and not answered.
    struct Retries {
        /// A part of the requests of the last ten seconds.
        budget: Percent = "20%",
        /// As many in ten seconds may be in any case.
        floor: Count<0, 1_000_000> = "10",
    }
}

keys! {
    /// Where the requests under one prefix go.
    struct Route {
        /// Only for this host. `null`: any.
        host: Option<HostName> = "null",
        /// A path of whole segments: `/da` and `/da/` both match `/da` and all below it, never `/dashboard`.
        prefix: PathPrefix = required,
        /// Whether the prefix is taken off before the request is sent on.
        strip_prefix: bool = "false",
        /// What becomes of `/da` where the prefix is `/da/`: `forward` as it came, or `redirect` to `/da/`.
        slash: Slash = "forward",
        /// The name of the upstream.
        upstream: String = required,
        /// The longest wait for the response head, from when the request has been sent; then 504.
        timeout: Timeout = "60s",
        /// In place of `connect_timeout` of the upstream. `null`: that.
        connect_timeout: Option<Timeout> = "null",
        /// In place of `limits.progress_timeout`. `null`: that.
        progress_timeout: Option<Timeout> = "null",
        /// In place of `limits.minimum_rate`. `null`: that.
        minimum_rate: Option<Size> = "null",
        /// The largest request body; more is answered 413. `null`: only the spool bounds it.
        body_limit: Option<Size> = "16MiB",
        /// What is collected before it is passed on.
        buffer: Buffer = "{}",
        /// The folders that the application's `X-Sendfile` and `X-Accel-Redirect` may name. Empty: none.
        files: Vec<ServedFolder> = "[]",
        /// What is taken off an `X-Accel-Redirect` path, with both slashes.
        accel_prefix: AccelPrefix = "/xaccel/",
        /// Whether text is compressed for clients that take it.
        compress: bool = "true",
        /// A websocket closes after this long without a byte.
        tunnel_idle: Timeout = "24h",
        /// Whether answers say in `Server-Timing` how long the request waited in the queue and how long the application took.
        server_timing: bool = "false",
        /// A site whose pages may read the answers, such as `https://www.example.com`, a list of some, or `*`: four
        /// `Access-Control-*` headers are added to answers that have no `Access-Control-Allow-Origin` of the application's. `null`:
        /// that is the application's business.
        allow_origin: Option<OneOrMore<SiteOrigin>> = "null",
        /// The only clients that are let in, by their address as it is found past `trusted_proxies`: networks, addresses,
        /// `loopback`, `private`, `unix`; others are answered 403. `null`: everybody.
        allow: Option<Vec<Trusted>> = "null",
        /// Clients that are answered 403, even if they are in `allow`.
        deny: Vec<Trusted> = "[]",
        /// The only clients that are let in are users with their passwords; others are answered 401. `null`: everybody.
        basic_auth: Option<BasicAuth> = "null",
        /// Another server is asked of each request whether it may pass. `null`: none.
        forward_auth: Option<ForwardAuth> = "null",
        /// Browsers are told to come over https only, where the application does not say how it is. `null`: they are not.
        hsts: Option<Hsts> = "null",
        /// What browsers are told to be careful about, where the application does not say how it is; `{}` for all of it.
        /// `null`: nothing.
        security_headers: Option<SecurityHeaders> = "null",
        /// `required`: a client that has shown no certificate which its listener's `client_ca` vouches for is answered 403. `null`:
        /// the route asks for none.
        client_certificate: Option<CertificateRequired> = "null",
        /// Keeps a client at one endpoint, by a cookie that names it and is signed; for an application that remembers in its
        /// memory, as one with socket.io does. `cookie`: only by that. `sid`: for socket.io, whose clients need not keep cookies:
        /// without one the client's address decides, so that polling and websocket come to the same endpoint. `null`: requests
        /// are balanced each by itself.
        stick: Option<Stick> = "null",
        /// How many requests the route takes, beside `limits.requests`; more are answered 429. Empty: any number.
        requests: Vec<RequestRate> = "[]",
    }
}

keys! {
    /// How many requests of one kind may come in a time.
    struct RequestRate {
        /// What is counted together: the requests of one `address` (IPv6: of its first 64 bits), those with one value of a
        /// cookie, `cookie:NAME` (without it: of one address), or `all` of them.
        by: RateKey = "address",
        /// So many may come at once.
        count: Count<1, 10_000_000> = required,
        /// The time in which as many more may come, evenly; up to a day.
        per: Timeout = "1s",
    }
}

keys! {
    /// How many may come in a time.
    struct Rate {
        /// So many may come at once.
        count: Count<1, 10_000_000> = required,
        /// The time in which as many more may come, evenly; up to a day.
        per: Timeout = required,
    }
}

keys! {
    /// Users and passwords.
    struct BasicAuth {
        /// A file of lines `NAME:HASH`, with hashes by bcrypt (`htpasswd -B -C 12`) or argon2id. It is read again when it changes.
        file: FilePath = required,
        /// What browsers show when they ask.
        realm: Realm = "restricted",
        /// Whether the application gets the `Authorization` of the request, and so the password.
        pass: bool = "false",
    }
}

keys! {
    /// A server that says who may pass: by a status from 200 to 299. Whatever else it answers is the client's answer.
    struct ForwardAuth {
        /// The name of an upstream.
        upstream: String = required,
        /// Where it is asked, by GET and without a body.
        path: PageTarget = required,
        /// Headers of its answer that the application is told; the client's own are taken off.
        response_headers: Vec<ToldHeader> = "[]",
        /// How long it may take; then the client is answered 503.
        timeout: Timeout = "10s",
    }
}

keys! {
    /// `Strict-Transport-Security`, in answers over https.
    struct Hsts {
        /// For how long. `0`: browsers are to forget it.
        max_age: Wait = "365d",
        /// For all names below this one, too.
        subdomains: bool = "false",
        /// Whether browsers may have it built in.
        preload: bool = "false",
    }
}

keys! {
    /// What browsers are told to be careful about.
    struct SecurityHeaders {
        /// `X-Content-Type-Options: nosniff`.
        nosniff: bool = "true",
        /// `Referrer-Policy`. `null`: none.
        referrer_policy: Option<ReferrerPolicy> = "strict-origin-when-cross-origin",
        /// Whose pages may show ours within them: `self`, `none`, or origins such as `https://www.example.com`.
        /// `null`: nothing is said of it.
        frames: Option<OneOrMore<FrameAncestor>> = "self",
    }
}

keys! {
    /// What is collected before it is passed on; `false`: passed on as it comes.
    struct Buffer {
        /// The request body, before a place in the application is taken.
        request: bool = "true",
        /// The response body, so that a slow client does not hold a place in the application.
        response: bool = "true",
    }
}

keys! {
    /// One line a request.
    struct AccessLog {
        /// A file; `-` is standard output.
        path: LogSink = "'-'",
        /// `combined`, `json`, or a template with `{fields}` in it.
        format: LogFormat = "combined",
        /// What is written of queries, in targets and in `Referer`: `names`, with `*` for each value, as it may be a secret; or
        /// `whole`, as they came.
        query: LoggedQuery = "names",
        /// When the file is put aside and a new one begun. `null`: others do it (their renames are noticed, nobody needs
        /// to tell us). Of no concern to standard output.
        rotate: Option<Rotate> = "{}",
    }
}

keys! {
    /// A file for warnings and errors.
    struct ErrorLog {
        /// The file.
        path: FilePath = required,
        /// As that of the access log.
        rotate: Option<Rotate> = "{}",
    }
}

keys! {
    /// When the file is put aside and a new one begun.
    struct Rotate {
        /// When it has grown to this size.
        size: Size = "100MiB",
        /// How many are kept, as `access.log.1` (the youngest) and so on.
        keep: Count<1, 1_000> = "10",
    }
}

/// Where the admin endpoint listens; a socket alone is that and nothing over TCP.
#[derive(Debug)]
pub(super) struct AdminPlaces(pub(super) Admin);

impl Read for AdminPlaces {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        let Value::Scalar { .. } = &node.value else { return Admin::read(node, reading).map(Self) };
        let socket = AdminSocket::read(node, reading).map(Some);
        Ok(Self(Admin { socket, listen: Ok(None), certificate: Ok(None), key: Ok(None), token_file: Ok(None) }))
    }

    fn schema() -> Json {
        json!({ "anyOf": [Admin::schema(), AdminSocket::schema()] })
    }
}

keys! {
    /// Where the running one is commanded and asked for its metrics.
    struct Admin {
        /// The unix socket that `vestibule` commands go to; whoever may write there may command it (mode 0600). `null`: none.
        socket: Option<AdminSocket> = "unix:/run/vestibule/admin.sock",
        /// The address, and the port, for other machines: the same over TLS, for whoever has the token, which is sent as
        /// `Authorization: Bearer TOKEN`. `null`: none.
        listen: Option<AdminListen> = "null",
        /// The certificate (PEM) of `listen`, alone or followed by its chain. It is not one of `tls.certificates`: who
        /// administers may trust another authority.
        certificate: Option<FilePath> = "null",
        /// Its private key (PEM), not encrypted.
        key: Option<FilePath> = "null",
        /// The file of the token: one line with at least 32 characters (`openssl rand -base64 -out FILE 48`) that nobody but its
        /// owner and its group can read.
        token_file: Option<FilePath> = "null",
    }
}

keys! {
    /// Disk for bodies that do not fit in memory.
    struct Spool {
        /// A folder; the files in it have no names.
        path: FilePath = "/var/tmp",
        /// Room on disk, over all requests.
        limit: Size = "1GiB",
        /// How much of one body is kept in memory before it goes to disk; less while more than half of `limits.memory` is taken.
        memory: Size = "256KiB",
    }
}

keys! {
    /// Bounds on what a client may ask for.
    struct Limits {
        /// Connections at once, over all listeners.
        connections: Count<1, 10_000_000> = "10000",
        /// Request line and headers together; more is answered 431. At least 8KiB.
        header_bytes: Size = "32KiB",
        /// Header fields of one request.
        header_count: Count<1, 10_000> = "100",
        /// The request target (path and query); more is answered 414.
        uri_bytes: Size = "16KiB",
        /// Requests at once on one h2 connection.
        streams: Count<1, 100_000> = "100",
        /// From accept to the end of the TLS handshake.
        handshake_timeout: Timeout = "10s",
        /// From the first byte of a request head to its last.
        head_timeout: Timeout = "15s",
        /// How long a connection may stay open without a request.
        keep_alive: Timeout = "10s",
        /// A body, in either direction, that does not move for this long is given up.
        progress_timeout: Timeout = "60s",
        /// The least bytes a second, over half of `progress_timeout`, that a client has to send of a body, or take of one that is
        /// ready for it; whoever trickles is given up. `0`: any number.
        minimum_rate: Size = "240B",
        /// Connections at once of one address (IPv6: of its first 64 bits); more are closed at once. `null`: any number.
        connections_per_address: Option<Count<1, 10_000_000>> = "1000",
        /// Requests under way of one address over HTTP/2, on all its connections; more are refused (`REFUSED_STREAM`). `null`:
        /// any number.
        streams_per_address: Option<Count<1, 10_000_000>> = "1000",
        /// TLS handshakes of all clients; beyond, connections are closed unread. `null`: any number.
        handshakes: Option<Rate> = "null",
        /// TLS handshakes of one address, likewise. `null`: any number.
        handshakes_per_address: Option<Rate> = "{ count: 500, per: 10s }",
        /// How many requests may come, whatever their route; more are answered 429. Health pages and the challenges of
        /// certificate authorities are not counted. Empty: any number.
        requests: Vec<RequestRate> = "[]",
        /// Who is not counted by address, beside `trusted_proxies`: networks, addresses, `loopback`, `private`. Behind such an
        /// address there often are many clients: a proxy that nobody has named, or a container's bridge.
        exempt: Vec<Trusted> = "[loopback, private]",
        /// The memory of a worker beyond which new clients are answered 503, while those inside are served. `auto`: half of the
        /// machine's, or of the control group's.
        memory: Memory = "auto",
    }
}

/// The default of `user`.
pub(super) const DEFAULT_USER: &str = "www-data";
