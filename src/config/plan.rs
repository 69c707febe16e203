//! What a configuration means once it has been checked: types that can run.
//!
//! Everything here is plain data, compared with `==`; what changes by itself (health, requests in
//! flight, certificates) lives elsewhere. No string in a [`Plan`] is looked up at request time
//! and no path in it is opened by the gateway: see [`crate::keeper`].

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

pub use super::{
    access::{AccessPlan, BasicAuthPlan, ForwardAuthPlan, FrameAncestor, HstsPlan, SecurityHeadersPlan},
    admin::{AdminAddress, AdminListenPlan, AdminPlan},
    ciphers::Cipher,
};

/// A whole configuration that can run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Plan {
    /// The configuration files of ours it was read from; never served.
    pub sources: Vec<PathBuf>,
    /// What it owes to docassemble's configuration.
    pub docassemble: Option<DocassemblePlan>,
    /// What is not as it should be, and does not keep it from running; a line each, with its place.
    pub warnings: Vec<String>,
    pub listeners: Vec<ListenerPlan>,
    /// The canonical host; requests for unknown hosts on TLS listeners are redirected to it.
    pub host: Option<HostName>,
    /// Other names of the site, served as they are.
    pub aliases: Vec<HostName>,
    pub tls: TlsPlan,
    pub trusted_proxies: TrustedProxies,
    /// By name; [`RoutePlan::upstream`] is a key of this map.
    pub upstreams: BTreeMap<String, UpstreamPlan>,
    /// The name servers that endpoints' names are asked of; empty: the system's.
    pub resolver: Vec<SocketAddr>,
    /// Programs of ours, by name; [`UpstreamPlan::backend`] is a key of this map.
    pub backends: BTreeMap<String, BackendPlan>,
    pub routes: Vec<RoutePlan>,
    pub access_log: Option<AccessLogPlan>,
    /// Where warnings and errors are written, besides standard error.
    pub error_log: Option<ErrorLogPlan>,
    pub admin: Option<AdminPlan>,
    /// Traffic threads.
    pub workers: NonZeroUsize,
    /// Mail address shown on error pages.
    pub administrator: Option<String>,
    /// Who carries the traffic when the keeper is root.
    pub user: String,
    /// How long a stop waits for requests in flight.
    pub drain: Duration,
    pub spool: SpoolPlan,
    pub limits: LimitsPlan,
}

impl Plan {
    /// Every folder that files are sent from, after the key that says so.
    pub fn served_folders(&self) -> impl Iterator<Item = (String, &PathBuf)> {
        let routes = self.routes.iter().flat_map(|route| {
            route.files.iter().map(move |folder| (format!("routes[{}].files", route.prefix), folder))
        });
        routes.chain(
            self.log_servers()
                .map(|(address, server)| (format!("listeners[{address}].log_server.folder"), &server.folder)),
        )
    }

    /// Every supervisord that may be asked, after the key that says so.
    pub fn supervisors(&self) -> impl Iterator<Item = (String, &SupervisorPlan)> {
        let programs = self.upstreams.iter().filter_map(|(name, upstream)| {
            Some((format!("upstreams.{name}.supervisor"), &upstream.program.as_ref()?.supervisor))
        });
        let log_servers = self.log_servers().filter_map(|(address, server)| {
            Some((format!("listeners[{address}].log_server.supervisor"), server.supervisor.as_ref()?))
        });
        programs.chain(log_servers)
    }

    /// The log servers, with the addresses they listen on.
    pub fn log_servers(&self) -> impl Iterator<Item = (&ListenAddress, &LogServerPlan)> {
        self.listeners.iter().filter_map(|listener| Some((&listener.address, listener.log_server.as_ref()?)))
    }
}

/// What a plan that was read from docassemble's configuration has to look after beside it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DocassemblePlan {
    /// `config.yml`, which need not be there yet, and which root does not obey.
    pub file: PathBuf,
    /// Files which would make another plan if they came or went.
    pub awaited: Vec<PathBuf>,
    /// Folders that are never served.
    pub private: Vec<PathBuf>,
    /// Where docassemble's supervisord would be reached from the internet, if nothing else is in the way.
    pub supervisors: Vec<SocketAddr>,
}

/// One address that is listened on.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ListenerPlan {
    pub address: ListenAddress,
    pub tls: bool,
    /// Answer everything with a redirect to https on [`Plan::host`].
    pub redirect: Option<HttpsRedirect>,
    /// Every connection must begin with a PROXY protocol header (v1 or v2).
    pub proxy_protocol: bool,
    /// It serves a folder of logs and nothing else.
    pub log_server: Option<LogServerPlan>,
    /// Clients are asked for a certificate; only with `tls`.
    pub client_ca: Option<ClientCaPlan>,
}

/// Whose certificates clients are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ClientCaPlan {
    /// PEM: the certificates of the authorities.
    pub file: PathBuf,
    /// Without one there is no handshake.
    pub required: bool,
}

/// A folder of logs for other machines of the same site.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct LogServerPlan {
    pub folder: PathBuf,
    /// Who may connect; nobody else is answered.
    pub allow: TrustedProxies,
    /// A key of [`Plan::upstreams`], which is asked for the index where it can be connected to.
    pub index: Option<String>,
    /// Has the logs collected before the index is made.
    pub supervisor: Option<SupervisorPlan>,
}

/// A supervisord, and a program of its.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SupervisorPlan {
    pub address: EndpointAddress,
    pub program: String,
    pub username: Option<String>,
    pub password: Option<Secret>,
}

/// A password: in no message, and in no answer of ours.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where a listener is bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// Sockets that a service manager passes on under this name.
    Inherited(String),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inherited(name) => write!(f, "fd:{name}"),
        }
    }
}

/// The target of a listener's `redirect: https`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct HttpsRedirect {
    pub host: HostName,
    /// The public https port; 443 is left out of the `Location`.
    pub port: u16,
}

/// Certificates and protocol versions.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct TlsPlan {
    pub tls12: bool,
    pub tls13: bool,
    /// The ciphers of TLS 1.2.
    pub ciphers: Vec<Cipher>,
    /// Those of the operator's own.
    pub certificates: Vec<CertificatePlan>,
    /// Those that are ordered.
    pub acme: Vec<AcmePlan>,
    /// Those of the operator's own that are in a store.
    pub fetched: Vec<FetchPlan>,
    /// The folder of this machine where ordered and self-signed certificates and the history are kept (0700).
    pub storage: PathBuf,
    /// Where several machines keep what is ordered for all of them; `None`: in `storage`.
    pub shared: Option<SharedStoragePlan>,
    /// Where one is taken from that the storage does not have: folders of certbot's, archives of one.
    pub import: Vec<PathBuf>,
    pub export: Option<ExportPlan>,
    /// In the order in which they are run.
    pub deploy: Vec<DeployPlan>,
}

impl TlsPlan {
    /// Whether no certificate is named, so that we make one.
    pub fn is_self_signed(&self) -> bool {
        self.certificates.is_empty() && self.acme.is_empty() && self.fetched.is_empty()
    }

    /// Whether certificates come while we run, so that there is an agent.
    pub fn awaits_certificates(&self) -> bool {
        !self.acme.is_empty() || !self.fetched.is_empty()
    }
}

/// A storage that several machines share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SharedStoragePlan {
    pub store: StorePlan,
    /// What objects are sealed with.
    pub secret_file: PathBuf,
    /// Whether the keys of session tickets are made of it, too, so that machines resume each other's sessions.
    pub share_tickets: bool,
}

/// A place for objects in a bucket, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct StorePlan {
    pub service: SharedService,
    /// What Azure calls a container.
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL of a service that is not Amazon's or Microsoft's own.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// The id of an access key, or the name of a storage account.
    pub identity: Option<String>,
    /// The secret that belongs to it.
    pub key_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}

/// Whose protocol a store speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum SharedService {
    S3,
    Azure,
}

impl fmt::Display for StorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.service {
            SharedService::S3 => "s3",
            SharedService::Azure => "azure",
        };
        write!(f, "{scheme}://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// Where ordered certificates are written for other programs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ExportPlan {
    /// Laid out as certbot's.
    pub folder: Option<PathBuf>,
    /// Also where certbot has a certificate of the name.
    pub replace: bool,
    pub files: Vec<ExportFilesPlan>,
}

/// A certificate with its chain, and its key, for a program that reads them as its own user.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ExportFilesPlan {
    /// Of which certificate; the first without.
    pub host: Option<CertificateHost>,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub owner: String,
    pub group: String,
    pub mode: FileMode,
    pub unless: Option<PathBuf>,
}

/// A command that is run when a certificate has come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DeployPlan {
    /// Never empty.
    pub command: Vec<String>,
    pub timeout: Duration,
}

/// The mode of a file that holds a key: nobody but its owner and its group may read it, and nobody runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(u32);

impl FileMode {
    /// Takes an octal number such as `0640`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|_| text.len() <= 4)?;
        (mode & !0o660 == 0 && mode & 0o400 != 0).then_some(Self(mode))
    }

    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> Self {
        mode.to_string()
    }
}

impl TryFrom<String> for FileMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or(text)
    }
}

/// A certificate in files of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct CertificatePlan {
    /// PEM: the leaf, or the leaf followed by its chain.
    pub certificate: PathBuf,
    /// PEM: the private key (PKCS#8, PKCS#1 or SEC1), not encrypted.
    pub key: PathBuf,
    /// PEM: the chain, when it is not in `certificate`.
    pub chain: Option<PathBuf>,
    /// The key path of this entry in the configuration, for messages.
    pub at: String,
}

/// A certificate of the operator's own that is fetched from a store, under the names that docassemble has for it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct FetchPlan {
    pub store: StorePlan,
    /// The key path of this entry in the configuration, for messages.
    pub at: String,
    /// How many certificates of whatever kind come before it in the configuration.
    pub after: usize,
}

/// A certificate that is ordered by ACME (RFC 8555) and renewed in time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AcmePlan {
    /// Never empty; each once.
    pub hosts: Vec<CertificateHost>,
    pub email: Option<String>,
    /// URLs of directories in the order in which they are asked; never empty.
    pub directories: Vec<String>,
    pub challenge: ChallengeKind,
    /// A command and its arguments; never empty with [`ChallengeKind::Dns01`].
    pub dns_hook: Vec<String>,
    pub profile: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub eab: Option<EabPlan>,
    /// The key path of this entry in the configuration, for messages.
    pub at: String,
    /// How many of [`TlsPlan::certificates`] come before it in the configuration.
    pub after: usize,
}

/// External account binding (RFC 8555, 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EabPlan {
    pub key_id: String,
    /// The key in base64url, which it has been seen to be.
    pub secret: Secret,
}

/// How control of a name is shown to a CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum ChallengeKind {
    /// By a page on port 80 (RFC 8555, 8.3).
    Http01,
    /// By a TXT record (RFC 8555, 8.4).
    Dns01,
    /// By a handshake on port 443 (RFC 8737).
    TlsAlpn01,
}

impl fmt::Display for ChallengeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http01 => "http-01",
            Self::Dns01 => "dns-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        })
    }
}

/// A name that a certificate is ordered for: a host name, `*.` and one, or an address without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct CertificateHost(String);

impl CertificateHost {
    /// Takes what [`HostName::parse`] takes, an IPv6 address without brackets as well, and `*.` before a host name of two
    /// labels and more.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Some(Self(address.to_string()));
        }
        let (star, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
        let host = HostName::parse(name)?;
        // No CA knows a name with an underscore (CA/Browser Forum ballot SC012), and IPv6 has been seen above.
        let plain = !host.as_str().contains(['_', '[']) && (star.is_empty() || host.as_str().contains('.'));
        plain.then(|| Self(format!("{star}{host}")))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }
}

impl fmt::Display for CertificateHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose `X-Forwarded-*` and PROXY headers are believed. Empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TrustedProxies {
    pub networks: Vec<IpNet>,
    /// Peers on unix sockets.
    pub unix: bool,
}

impl TrustedProxies {
    /// Whether `address` is in one of the networks; an IPv4-mapped IPv6 address counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }
}

/// A named set of endpoints.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct UpstreamPlan {
    pub name: String,
    pub protocol: Protocol,
    /// Empty where there is a `backend`.
    pub endpoints: Vec<EndpointPlan>,
    /// A key of [`Plan::backends`].
    pub backend: Option<String>,
    pub balance: Balance,
    /// How long an endpoint that has come (back) takes to its whole share. Zero: none.
    pub slow_start: Duration,
    /// Requests inside at once, over all cores; with `follows`, until `stats` can be read. `None`: no bound.
    pub concurrency: Option<NonZeroUsize>,
    /// Whether the bound is as many as `stats` says there are threads.
    pub follows: bool,
    /// uWSGI's stats servers.
    pub stats: Vec<EndpointAddress>,
    pub queue: QueuePlan,
    /// The application's own health page; never redirected by the host rule.
    pub health_path: Option<String>,
    /// Asked until it answers 200, with its query; until then clients are shown the starting page.
    pub ready_path: Option<String>,
    /// How long a request waits for a backend that cannot be connected to.
    pub hold: Duration,
    pub connect_timeout: Duration,
    /// The program behind it.
    pub program: Option<ProgramPlan>,
    /// How its endpoints are looked at, where there is a `health_path`.
    pub health: HealthPlan,
    pub eject: EjectPlan,
    pub retries: RetriesPlan,
}

/// A program of supervisord's behind an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ProgramPlan {
    pub supervisor: SupervisorPlan,
    /// When it is restarted because it hangs; `None`: never.
    pub restart: Option<RestartPlan>,
    /// What it may use; `None`: it is not measured.
    #[serde(default)]
    pub watch: Option<WatchPlan>,
}

/// What a program may use, with all that it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct WatchPlan {
    /// Bytes.
    pub memory: Option<u64>,
    /// Percents of one processor.
    pub cpu: Option<u32>,
    /// For so long it is beyond a limit until that is told.
    pub time: Duration,
    /// Whether it is restarted then.
    pub restart: bool,
}

/// When a program that hangs is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RestartPlan {
    /// Requests and looks in a row that were not answered in time.
    pub after: u32,
    /// Restarts in `within`.
    pub at_most: usize,
    pub within: Duration,
}

/// Looks at the health page of each endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct HealthPlan {
    pub interval: Duration,
    pub timeout: Duration,
    /// What is well.
    pub status: Vec<u32>,
    /// What the answer has to hold.
    pub body: Option<String>,
    /// In a row, until an endpoint is failing.
    pub failures: u32,
    /// In a row, until it is not any more.
    pub successes: u32,
}

/// When an endpoint is passed over for what requests meet there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EjectPlan {
    /// In a row.
    pub failures: u32,
    /// The first time.
    pub time: Duration,
    /// Of the endpoints, in percent.
    pub most: u32,
}

/// How many requests may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RetriesPlan {
    /// Of the requests, in percent.
    pub budget: u32,
    pub floor: u32,
}

/// A program that we begin, and look after.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct BackendPlan {
    /// The program and its arguments, with `{port}` or `{socket}` in them; never empty.
    pub command: Vec<String>,
    /// `None`: [`Plan::user`].
    pub user: Option<String>,
    pub environment: BTreeMap<String, Secret>,
    pub directory: PathBuf,
    pub instances: usize,
    /// Each instance has a port of its own, or else a unix socket.
    pub has_port: bool,
    pub ready_path: Option<String>,
    pub ready_timeout: Duration,
    pub stop_signal: StopSignal,
    pub stop_timeout: Duration,
    pub drain: Duration,
    /// How long nobody has to have asked one that was replaced until it ends; `None`: it stays for nobody.
    pub drain_sessions: Option<Duration>,
    /// Missed deadlines in a row that make an instance hung.
    pub hung: Option<u32>,
    pub limits: BackendLimitsPlan,
}

/// What an instance may use until it is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct BackendLimitsPlan {
    /// Bytes.
    pub memory: Option<u64>,
    pub requests: Option<u32>,
    pub age: Option<Duration>,
    /// Percents of one processor.
    pub cpu: Option<u32>,
    /// How long it is above that until it is told.
    pub cpu_time: Duration,
    /// And replaced.
    pub cpu_restart: bool,
}

/// A signal that programs end by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum StopSignal {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Kill,
}

impl StopSignal {
    pub(super) const NAMES: [(&'static str, Self); 7] = [
        ("TERM", Self::Term),
        ("INT", Self::Int),
        ("QUIT", Self::Quit),
        ("HUP", Self::Hup),
        ("USR1", Self::Usr1),
        ("USR2", Self::Usr2),
        ("KILL", Self::Kill),
    ];
}

/// The wire an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// The uwsgi protocol, modifier 0 (WSGI).
    Uwsgi,
}

/// Which endpoint a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Balance {
    /// The one with the fewest requests inside.
    Least,
    /// One after the other.
    RoundRobin,
    /// By the client's address.
    Hash,
    /// Likewise, but for those that have far more than their share.
    BoundedHash,
}

/// Where requests of an upstream may go, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct EndpointPlan {
    pub address: EndpointPlace,
    /// Its share beside the others; 1 to [`LARGEST_WEIGHT`](Self::LARGEST_WEIGHT).
    pub weight: u16,
    /// Only while no other can be used.
    pub backup: bool,
}

impl EndpointPlan {
    pub const LARGEST_WEIGHT: u16 = 256;

    /// One with an equal share.
    pub fn at(address: EndpointAddress) -> Self {
        Self { address: EndpointPlace::At(address), weight: 1, backup: false }
    }
}

/// An address, or what the DNS knows addresses of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub enum EndpointPlace {
    At(EndpointAddress),
    /// The name of SRV records (RFC 2782).
    Srv(String),
}

impl EndpointPlace {
    /// Whether the DNS has to be asked where this is.
    pub fn is_resolved(&self) -> bool {
        match self {
            Self::At(address) => address.name().is_some(),
            Self::Srv(_) => true,
        }
    }
}

impl fmt::Display for EndpointPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Srv(name) => write!(f, "srv:{name}"),
        }
    }
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub enum EndpointAddress {
    /// A host name has to be resolved; an IPv6 address has its brackets, as in a URL.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl EndpointAddress {
    /// Whether only this machine can be meant.
    #[must_use]
    pub fn is_of_this_machine(&self) -> bool {
        let Self::Tcp { host, .. } = self else { return true };
        let inner = host.trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost")
            || inner.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// The host, where it has to be resolved. `localhost` has not (RFC 6761, 6.3).
    pub fn name(&self) -> Option<&str> {
        let Self::Tcp { host, .. } = self else { return None };
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.eq_ignore_ascii_case("localhost") && inner.parse::<IpAddr>().is_err()).then_some(host)
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The waiting room before an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueuePlan {
    /// Requests waiting at once; one more is answered 503.
    pub limit: usize,
    /// The longest wait; then 503.
    pub timeout: Duration,
    /// The cookies that say who has a session, and is let in before those who have none.
    pub sessions: Vec<String>,
}

/// Where the requests under one prefix go.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a key of its own, and any of them goes with any other")]
pub struct RoutePlan {
    /// Only for this host; routes with a host come first.
    pub host: Option<HostName>,
    pub prefix: PathPrefix,
    pub strip_prefix: bool,
    pub slash: Slash,
    pub upstream: String,
    /// How requests of one client come to the same endpoint; `None`: they need not.
    pub stick: Option<Stick>,
    /// From the request being sent to the response head.
    pub timeout: Duration,
    /// In the place of that of the upstream.
    pub connect_timeout: Option<Duration>,
    /// In the place of those of the limits.
    pub progress_timeout: Option<Duration>,
    pub minimum_rate: Option<u64>,
    /// Bytes of request body. `None`: only the spool bounds it.
    pub body_limit: Option<u64>,
    /// Collect the request body before an application thread is taken.
    pub buffer_request: bool,
    /// Drain the response off the backend at its own speed.
    pub buffer_response: bool,
    /// What `X-Sendfile` and `X-Accel-Redirect` may name: absolute directories. Empty: nothing.
    pub files: Vec<PathBuf>,
    /// The prefix that is taken off an `X-Accel-Redirect` path, with both slashes: `/xaccel/`.
    pub accel_prefix: String,
    pub compress: bool,
    /// A websocket, or any other tunnel, on this route closes after this long without a byte.
    pub tunnel_idle: Duration,
    /// Whether clients are told how long the queue and the application took.
    pub server_timing: bool,
    /// The origins whose pages may read the answers, where the application says nothing about it, or `*` alone. Empty: nothing is
    /// said.
    pub allow_origin: Vec<String>,
    /// Only for clients whose certificate was verified in the handshake.
    pub client_certificate: bool,
    /// How often it may be asked, beside what [`LimitsPlan::requests`] says.
    pub requests: Vec<RequestRate>,
    pub access: AccessPlan,
    pub security_headers: SecurityHeadersPlan,
}

impl RoutePlan {
    /// Whether anybody is kept out, or kept from asking too often.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.client_certificate || self.access.is_guarded() || !self.requests.is_empty()
    }
}

/// How many may come in a time: so many at once, and then as they are replenished, evenly over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rate {
    pub count: NonZeroU32,
    pub per: Duration,
}

/// How many requests of one kind may come in a time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RequestRate {
    pub by: RateKey,
    pub rate: Rate,
}

/// What requests have in common that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum RateKey {
    /// The client's address; of IPv6, its first 64 bits.
    Address,
    /// The value of this cookie, or the address where there is none.
    Cookie(String),
    /// Nothing: all together.
    All,
}

/// What keeps a client at one endpoint beside the cookie that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Stick {
    /// Nothing: without the cookie it is balanced.
    Cookie,
    /// Its address: for socket.io's clients, some of which keep no cookies.
    Sid,
}

/// What becomes of the bare form of a prefix: `/da` for `/da/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Slash {
    /// Passed on as it came.
    Forward,
    /// Answered 308 to the form with a slash.
    Redirect,
}

/// A path prefix on whole segments: `/da` matches `/da` and `/da/x`, not `/dashboard`.
///
/// Holds the prefix without its trailing slash; the root is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// Takes `/da/`, `/da` or `/`. Answers `None` for a path that is not absolute, has an empty, `.` or `..`
    /// segment, a query, a fragment, a percent sign, white space or a control character.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('/')?;
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        if inner.is_empty() {
            return Some(Self(String::new()));
        }
        let plain = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%' | b'\\'))
        };
        inner.split('/').all(plain).then(|| Self(format!("/{inner}")))
    }

    /// Without the trailing slash; empty for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.0)
    }
}

/// A host name or address literal without a port: lower case, no trailing dot, IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct HostName(String);

impl HostName {
    /// Takes a DNS name, an IPv4 address or a bracketed IPv6 address, without a port.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(literal) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: std::net::Ipv6Addr = literal.parse().ok()?;
            return Some(Self(format!("[{address}]")));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (name.len() <= 253 && name.split('.').all(label)).then(|| Self(name.to_ascii_lowercase()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where access log lines go, and what they look like.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AccessLogPlan {
    pub sink: LogSink,
    pub format: LogFormat,
    pub query: LoggedQuery,
    /// `None`: others rotate it, or nobody has to.
    pub rotate: Option<RotatePlan>,
}

/// The file that warnings and errors are written to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ErrorLogPlan {
    pub path: PathBuf,
    /// `None`: others rotate it.
    pub rotate: Option<RotatePlan>,
}

/// When the file of a log is put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RotatePlan {
    /// Bytes.
    pub size: u64,
    /// Files that are kept besides the one that is written.
    pub keep: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum LogSink {
    Stdout,
    File(PathBuf),
}

/// The shape of an access log line; see [`crate::telemetry::access_log`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum LogFormat {
    /// NCSA combined.
    Combined,
    /// One JSON object a line.
    Json,
    /// Text with `{field}` in it.
    Template(String),
}

/// What is written of a query in the target or the `Referer` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum LoggedQuery {
    /// `*` for each value: it may be a secret.
    #[default]
    Names,
    /// As it came.
    Whole,
}

/// Disk for bodies that do not fit in memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SpoolPlan {
    /// A directory; only unlinked files are made in it.
    pub path: PathBuf,
    /// Bytes on disk over all exchanges.
    pub limit: u64,
    /// Bytes of one body kept in memory before it goes to disk.
    pub memory: usize,
}

/// Bounds on what a client may ask of us.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LimitsPlan {
    /// Connections at once, over all listeners and cores.
    pub connections: usize,
    /// Request line and headers, in bytes.
    pub header_bytes: usize,
    /// Header fields of one request.
    pub header_count: usize,
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// Streams at once on one h2 connection.
    pub streams: u32,
    /// From accept to the end of the TLS handshake (and of the PROXY header).
    pub handshake_timeout: Duration,
    /// From the first byte of a request head to its last.
    pub head_timeout: Duration,
    /// An idle keep-alive connection is closed after this long.
    pub keep_alive: Duration,
    /// A body, in either direction, that does not move for this long is given up.
    pub progress_timeout: Duration,
    /// Bytes a second that a client has to move; 0: any number.
    pub minimum_rate: u64,
    /// Connections at once of one address; of IPv6, of its first 64 bits. `None`: any number.
    pub connections_per_address: Option<u32>,
    /// Requests under way of one address over HTTP/2, likewise.
    pub streams_per_address: Option<u32>,
    /// TLS handshakes, of all.
    pub handshakes: Option<Rate>,
    /// TLS handshakes of one address, likewise.
    pub handshakes_per_address: Option<Rate>,
    /// How often we may be asked, whatever the route.
    pub requests: Vec<RequestRate>,
    /// Whose connections, handshakes and requests are not counted by address; beside the trusted proxies, which never are.
    pub exempt: TrustedProxies,
    /// Bytes of our own that no more clients are let in beyond. `None`: half of the machine's, or of the control group's.
    pub memory: Option<u64>,
}
