//! The flight check: what would make a CA refuse, found before it is asked, in the words of who can mend it.
//!
//! A CA counts failures, and each one there costs an hour; here it costs nothing. What is looked at: whether a name is in
//! the DNS (A and AAAA), whether each of its addresses leads to us, whether CAA records (RFC 8659) let this CA issue, and
//! whether our clock and the CA's agree. What only a CA can know stays open: a network may let others in and not us.
//!
//! Times are bounded: a question to the DNS has 6 seconds, the CAA records of a name 15, connecting to an address 5 and
//! its answer 5, all names together a minute. Of a name at most 8 addresses of a family are tried, of an answer 4 KiB
//! read.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use futures_util::{StreamExt, future::join, stream};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError as Answered, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};
use http::{
    HeaderMap, HeaderName, Request, Response,
    header::{AGE, DATE, HOST, LOCATION, SERVER, USER_AGENT},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    io,
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

/// One thing that is in the way of a certificate, or may be.
///
/// Its `Display` is a sentence for who runs the office and not the network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Finding {
    /// The name of the certificate; `None` where it concerns all of them.
    pub name: Option<String>,
    pub severity: Severity,
    /// What is the matter; begins with the name.
    pub what: String,
    /// What to do, by whom.
    pub remedy: String,
}

/// How sure it is that a CA refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A CA may see it otherwise than we do.
    Warning,
    /// A CA will refuse.
    Fault,
}

/// What is to be ordered, of whom.
#[derive(Clone, Copy, Debug)]
pub struct Flight<'a> {
    /// Host names in ASCII, `*.` and one, or addresses without brackets.
    pub names: &'a [&'a str],
    pub proof: Proof<'a>,
    pub authority: &'a Authority,
}

/// How the CA is to be shown that the names are ours.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// By http-01: this page is to be found at every address.
    Page(&'a Page),
    /// By tls-alpn-01: so ends a handshake with every address.
    Handshake(&'a Handshake),
    /// By dns-01: names need no address.
    Record,
}

/// A page of ours below `/.well-known/acme-challenge/`.
///
/// Whoever asks for the check answers it first, on this node and on every other that the names may lead to.
#[derive(Clone, Debug)]
pub struct Page {
    /// Where the CA comes: 80, but in tests.
    pub port: u16,
    pub token: String,
    pub body: String,
}

/// A handshake for `acme-tls/1` (RFC 8737) that is ours, for every name that is checked.
///
/// It is prepared before the check as a [`Page`] is.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// Where the CA comes: 443, but in tests.
    pub port: u16,
    pub key_authorization: String,
}

/// What a CA says of itself in its directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authority {
    /// The names by which it finds itself in CAA records (`meta.caaIdentities`); it may name none.
    pub identities: Vec<String>,
    /// Its clock and ours at the same moment.
    pub clock: Option<(SystemTime, SystemTime)>,
    /// The URL of our account, if there is one yet: CAA records may name it (RFC 8657).
    pub account: Option<String>,
    /// It is of the operator's own network, and may reach what the internet does not.
    pub private: bool,
}

impl Authority {
    /// Reads the answer that a directory was, which arrived at `now`.
    pub fn read(headers: &HeaderMap, directory: &[u8], now: SystemTime) -> Self {
        #[derive(Default, Deserialize)]
        struct Directory {
            #[serde(default)]
            meta: Meta,
        }
        #[derive(Default, Deserialize)]
        struct Meta {
            #[serde(default, rename = "caaIdentities")]
            identities: Vec<String>,
        }
        let directory: Directory = serde_json::from_slice(directory).unwrap_or_default();
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let date = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        // A cache on the way adds how long it has had the answer (RFC 9111, 5.1).
        let age = text(AGE).and_then(|age| Some(Duration::from_secs(age.parse::<u32>().ok()?.into())));
        let date = date.and_then(|date| date.checked_add(age.unwrap_or_default()));
        Self { identities: directory.meta.identities, clock: date.map(|date| (date, now)), ..Self::default() }
    }
}

impl Finding {
    /// The name servers of this machine cannot be asked.
    pub(super) fn no_dns(error: &DnsError) -> Self {
        Self {
            name: None,
            severity: Severity::Warning,
            what: format!("names could not be looked up: {error}"),
            remedy: "see to /etc/resolv.conf".to_owned(),
        }
    }
}

impl Flight<'_> {
    /// What is found, in the order of the names; nothing if all is well. Runs on a tokio runtime with a timer and a
    /// network, and ends within a minute.
    pub async fn check(&self, dns: &Dns) -> Vec<Finding> {
        let end = Instant::now() + WHOLE;
        let mut findings: Vec<Finding> = self.authority.clock.and_then(clock).into_iter().collect();
        let names = stream::iter(self.names).map(|name| async move {
            timeout_at(end, self.name(name, dns)).await.unwrap_or_else(|_| {
                vec![Finding::warning(
                    name,
                    format!(
                        "{name} was not looked at: all names together took longer than {} seconds",
                        WHOLE.as_secs()
                    ),
                    "see what is found for the others, and check again",
                )]
            })
        });
        let mut names = names.buffered(NAMES_AT_ONCE);
        while let Some(found) = names.next().await {
            findings.extend(found);
        }
        findings
    }

    async fn name(&self, name: &str, dns: &Dns) -> Vec<Finding> {
        if let Ok(address) = name.parse() {
            return self.addresses(name, &[address]).await;
        }
        if let Some(base) = name.strip_prefix("*.") {
            let caa = self.caa(name, base, dns).await;
            return caa.unwrap_or_else(|(at, failure)| Some(failure.asking_for_caa(name, &at))).into_iter().collect();
        }
        let ((mut findings, resolved), caa) = join(self.resolve(name, dns), self.caa(name, name, dns)).await;
        match caa {
            Ok(caa) => findings.extend(caa),
            // Once is enough.
            Err((at, failure)) if resolved => findings.push(failure.asking_for_caa(name, &at)),
            Err(_) => {}
        }
        findings
    }

    /// What is the matter with the addresses of `name`, and whether it has any.
    async fn resolve(&self, name: &str, dns: &Dns) -> (Vec<Finding>, bool) {
        let (v4, v6) = join(dns.ask(name, RecordType::A), dns.ask(name, RecordType::AAAA)).await;
        let addresses: Vec<IpAddr> = [&v4, &v6]
            .into_iter()
            .filter_map(|answer| answer.as_ref().ok())
            .flat_map(|records| records.iter().filter_map(RData::ip_addr).take(ADDRESSES))
            .collect();
        let failures: Vec<_> = [("A", v4.err()), ("AAAA", v6.err())]
            .into_iter()
            .filter_map(|(kind, failure)| Some((kind, failure?)))
            .collect();
        if addresses.is_empty() {
            return (vec![self.nowhere(name, failures.into_iter().map(|(_, failure)| failure).max())], false);
        }
        let mut findings: Vec<Finding> =
            failures.into_iter().map(|(kind, failure)| failure.asking_for_other(name, kind)).collect();
        if !self.authority.private
            && !matches!(self.proof, Proof::Record)
            && addresses.iter().all(|address| !is_public(*address))
        {
            findings.push(Finding::warning(
                name,
                format!("{name} leads to {}, to which nobody comes from the internet, nor does a CA", addresses[0]),
                "have your DNS provider give the name the public address of your router or server; if only the name \
                 server of your own network answers like this, all is well",
            ));
        }
        findings.extend(self.addresses(name, &addresses).await);
        (findings, true)
    }

    /// Without an address.
    fn nowhere(&self, name: &str, failure: Option<Failure>) -> Finding {
        let needed = |what: String, remedy: &str| match self.proof {
            Proof::Record => Finding::warning(name, what, remedy),
            Proof::Page(_) | Proof::Handshake(_) => Finding::fault(name, what, remedy),
        };
        let make = "have your DNS provider make an A record for it, with the public address of this server";
        match failure {
            None => needed(format!("{name} has no address in the DNS"), make),
            Some(Failure::Missing) => needed(format!("{name} is not known in the DNS"), make),
            Some(Failure::Broken) => Finding::fault(
                name,
                format!("{name} cannot be looked up: its name servers fail (SERVFAIL)"),
                "ask your DNS provider; after a change of provider it is often a DS record (DNSSEC) left from the one \
                 before",
            ),
            Some(Failure::Unanswered) => Finding::warning(
                name,
                format!("{name} cannot be looked up: no name server has an answer for this machine"),
                "see that this machine reaches the name servers in /etc/resolv.conf, and that they are the right ones",
            ),
            Some(Failure::NoName) => Finding::fault(
                name,
                format!("{name} is not a name that the DNS can have"),
                "correct the name in the configuration",
            ),
        }
    }

    async fn addresses(&self, name: &str, addresses: &[IpAddr]) -> Vec<Finding> {
        let port = match self.proof {
            Proof::Page(page) => page.port,
            Proof::Handshake(handshake) => handshake.port,
            Proof::Record => return Vec::new(),
        };
        let tries = stream::iter(addresses).map(|address| async move {
            let reached = self.reach(name, SocketAddr::new(*address, port)).await;
            reached.finding(name, *address, port)
        });
        let found: Vec<Option<Finding>> = tries.buffered(2 * ADDRESSES).collect().await;
        found.into_iter().flatten().collect()
    }

    /// Goes to `address` as a CA does, and not on to where others send us.
    async fn reach(&self, name: &str, address: SocketAddr) -> Reached {
        let stream = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Reached::not_connected(&error, address.ip()),
            Err(_) => return Reached::Silent,
        };
        let answer = async {
            match self.proof {
                Proof::Page(page) => page.ask(name, stream).await,
                Proof::Handshake(handshake) => handshake.shake(name, stream).await,
                Proof::Record => Reached::Us,
            }
        };
        timeout(ANSWER, answer).await.unwrap_or(Reached::Cut)
    }

    /// Climbs from `base` to the records that count (RFC 8659, 3).
    ///
    /// # Errors
    ///
    /// Where and why the DNS was silent; a CA refuses then, if it is so for it, too.
    async fn caa(&self, name: &str, base: &str, dns: &Dns) -> Result<Option<Finding>, (String, Failure)> {
        let end = Instant::now() + CLIMB;
        let mut at = base;
        loop {
            let answer = timeout_at(end, dns.ask(at, RecordType::CAA)).await.unwrap_or(Err(Failure::Unanswered));
            let records: Vec<Caa> = match answer {
                Ok(records) => records.iter().filter_map(Caa::read).collect(),
                Err(Failure::Missing) => Vec::new(),
                Err(failure) => return Err((at.to_owned(), failure)),
            };
            if !records.is_empty() {
                return Ok(self.judge(name, at, &records));
            }
            let Some((_, parent)) = at.split_once('.') else { return Ok(None) };
            at = parent;
        }
    }

    /// Whether `records`, found at `at`, let the CA issue for `name` (RFC 8659, 4).
    fn judge(&self, name: &str, at: &str, records: &[Caa]) -> Option<Finding> {
        if let Some(record) = records.iter().find(|record| record.critical && !KNOWN.contains(&record.tag.as_str())) {
            return Some(Finding::warning(
                name,
                format!("a CAA record of {at} demands what not every CA knows ({})", shown(&record.tag)),
                "remove it at your DNS provider, if the CA refuses",
            ));
        }
        let of = |tag: &str| records.iter().filter(|record| record.tag == tag).map(Issuer::read).collect::<Vec<_>>();
        let mut issuers = if name.starts_with("*.") { of("issuewild") } else { Vec::new() };
        let tag = if issuers.is_empty() { "issue" } else { "issuewild" };
        if issuers.is_empty() {
            issuers = of("issue");
        }
        // Records that say something else forbid nothing.
        if issuers.is_empty() {
            return None;
        }
        let Authority { identities, account, .. } = self.authority;
        let ours = |issuer: &&Issuer| {
            identities.iter().any(|identity| issuer.domain.eq_ignore_ascii_case(identity.trim_end_matches('.')))
        };
        let named: Vec<&Issuer> = issuers.iter().filter(ours).collect();
        let method = self.proof.method();
        if named.iter().any(|issuer| issuer.allows(method, account.as_deref())) {
            return None;
        }
        let mut others: Vec<&str> = issuers.iter().map(|issuer| issuer.domain.as_str()).collect();
        others.retain(|domain| !domain.is_empty());
        let others: Vec<String> = others.into_iter().map(shown).collect();
        if !named.is_empty() {
            return Some(Finding::fault(
                name,
                format!(
                    "a CAA record of {at} lets the CA issue for another account or by another way than {method} only"
                ),
                "change its `validationmethods` or `accounturi` at your DNS provider, or remove them",
            ));
        }
        if identities.is_empty() && !others.is_empty() {
            return Some(Finding::warning(
                name,
                format!(
                    "the CAA records of {at} let only {} issue, and the CA does not say who it is",
                    others.join(", ")
                ),
                "if it refuses, have your DNS provider add the CAA record that the CA's documentation names",
            ));
        }
        let allowed = if others.is_empty() { "nobody".to_owned() } else { format!("only {}", others.join(", ")) };
        let remedy = match identities.first() {
            Some(identity) => format!(
                "have your DNS provider add the CAA record `0 {tag} \"{}\"` to {at}, or remove those that are there",
                shown(identity)
            ),
            None => "have your DNS provider remove them, or add one for the CA".to_owned(),
        };
        let for_names = if tag == "issuewild" { " for wildcards" } else { "" };
        Some(Finding::fault(
            name,
            format!(
                "{name} may not have a certificate of this CA: the CAA records of {at} let {allowed} issue{for_names}"
            ),
            remedy,
        ))
    }
}

impl Proof<'_> {
    /// As CAA records name it (RFC 8657, 4).
    fn method(&self) -> &'static str {
        match self {
            Self::Page(_) => "http-01",
            Self::Handshake(_) => "tls-alpn-01",
            Self::Record => "dns-01",
        }
    }
}

impl Finding {
    fn new(name: &str, severity: Severity, what: String, remedy: impl Into<String>) -> Self {
        Self { name: Some(name.to_owned()), severity, what, remedy: remedy.into() }
    }

    fn fault(name: &str, what: String, remedy: impl Into<String>) -> Self {
        Self::new(name, Severity::Fault, what, remedy)
    }

    fn warning(name: &str, what: String, remedy: impl Into<String>) -> Self {
        Self::new(name, Severity::Warning, what, remedy)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

/// The name servers that are asked.
///
/// `/etc/hosts` is not: the CA does not see it. Nothing is remembered from one question to the next, so that what has
/// been mended is seen at once, as far as the name servers see it.
#[derive(Clone)]
pub struct Dns(TokioResolver);

impl Dns {
    /// Those of `/etc/resolv.conf`, which is read here and never again: a process that shuts itself in calls it before.
    pub fn of_the_system() -> Result<Self, DnsError> {
        let (config, _) =
            hickory_resolver::system_conf::read_system_conf().map_err(|error| DnsError::System(error.into()))?;
        Self::new(config)
    }

    /// These and no others.
    pub fn at(servers: &[SocketAddr]) -> Result<Self, DnsError> {
        let servers = servers.iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.to_vec())
        });
        Self::new(ResolverConfig::from_name_servers(servers.collect()))
    }

    fn new(config: ResolverConfig) -> Result<Self, DnsError> {
        let mut options = ResolverOpts::default();
        options.timeout = QUESTION / 2;
        options.attempts = 1;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.with_options(options).build().map_err(|error| DnsError::Unusable(error.into()))?;
        Ok(Self(resolver))
    }

    /// The records of `name`; none is an answer as well.
    async fn ask(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, Failure> {
        // From the root: the search domains of this machine are none of the CA's business.
        let absolute = Name::from_ascii(format!("{name}.")).map_err(|_| Failure::NoName)?;
        let error = match timeout(QUESTION, self.0.lookup(absolute, kind)).await {
            Ok(Ok(lookup)) => {
                return Ok(lookup.answers().iter().map(|record| record.data.clone()).collect());
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(Failure::Unanswered),
        };
        tracing::debug!(name, %kind, error = &error as &dyn Error, "no answer from the DNS");
        match error {
            NetError::Dns(Answered::NoRecordsFound(NoRecords { response_code, .. })) => match response_code {
                ResponseCode::NoError => Ok(Vec::new()),
                ResponseCode::NXDomain => Err(Failure::Missing),
                ResponseCode::ServFail => Err(Failure::Broken),
                _ => Err(Failure::Unanswered),
            },
            NetError::Dns(Answered::ResponseCode(ResponseCode::ServFail)) => Err(Failure::Broken),
            _ => Err(Failure::Unanswered),
        }
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").finish_non_exhaustive()
    }
}

/// Why no name server can be asked.
#[derive(Debug, Error)]
pub enum DnsError {
    #[error("cannot read the name servers of this machine from /etc/resolv.conf")]
    System(#[source] Box<dyn Error + Send + Sync>),
    #[error("cannot ask the name servers")]
    Unusable(#[source] Box<dyn Error + Send + Sync>),
}

/// Why there are no records, the gravest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    Missing,
    /// The name servers of this machine do not answer, refuse, or say what nobody understands: a CA has others.
    Unanswered,
    /// SERVFAIL, which a CA's own name server will have for it too.
    Broken,
    NoName,
}

impl Failure {
    /// One family of addresses is there, the other cannot be asked for.
    fn asking_for_other(self, name: &str, kind: &str) -> Finding {
        Finding::warning(
            name,
            format!("{name} has addresses, but its {kind} records cannot be looked up ({self})"),
            "ask your DNS provider; a CA may refuse for it",
        )
    }

    fn asking_for_caa(self, name: &str, at: &str) -> Finding {
        Finding::warning(
            name,
            format!("{name}: the CAA records of {at} cannot be looked up ({self})"),
            "ask your DNS provider: a CA that cannot either refuses",
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no such name",
            Self::Unanswered => "no name server has an answer for this machine",
            Self::Broken => "SERVFAIL",
            Self::NoName => "no name that the DNS can have",
        })
    }
}

/// A CAA record.
#[derive(Clone, Debug)]
struct Caa {
    critical: bool,
    /// In lower case.
    tag: String,
    value: String,
}

impl Caa {
    fn read(record: &RData) -> Option<Self> {
        let RData::CAA(caa) = record else { return None };
        Some(Self {
            critical: caa.issuer_critical,
            tag: caa.tag.to_ascii_lowercase(),
            value: String::from_utf8_lossy(&caa.value).into_owned(),
        })
    }
}

/// Who may issue, and on what terms (RFC 8659, 4.2; RFC 8657).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Issuer {
    /// Empty for nobody, which a value that cannot be read means too.
    domain: String,
    methods: Option<Vec<String>>,
    account: Option<String>,
}

impl Issuer {
    fn read(record: &Caa) -> Self {
        let mut parts = record.value.split(';').map(|part| part.trim_matches([' ', '\t']));
        let domain = parts.next().unwrap_or_default().trim_end_matches('.');
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !domain.split('.').all(label) {
            return Self::default();
        }
        let mut issuer = Self { domain: domain.to_ascii_lowercase(), ..Self::default() };
        for part in parts.filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=') else { return Self::default() };
            match key.trim_end().to_ascii_lowercase().as_str() {
                "validationmethods" => {
                    issuer.methods = Some(value.split(',').map(|method| method.trim().to_ascii_lowercase()).collect());
                }
                "accounturi" => issuer.account = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        issuer
    }

    /// Of an account that we do not have yet nobody knows the URL.
    fn allows(&self, method: &str, account: Option<&str>) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(|allowed| allowed == method))
            && self.account.as_deref().is_none_or(|allowed| account.is_none_or(|account| account == allowed))
    }
}

impl Page {
    async fn ask(&self, name: &str, stream: TcpStream) -> Reached {
        let answer = self.exchange(name, stream).await;
        answer.unwrap_or_else(|error| if error.is_parse() { Reached::Other { server: None } } else { Reached::Cut })
    }

    async fn exchange(&self, name: &str, stream: TcpStream) -> hyper::Result<Reached> {
        let host = match name.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => name.to_owned(),
        };
        let host = if self.port == 80 { host } else { format!("{host}:{}", self.port) };
        let request = Request::get(format!("/.well-known/acme-challenge/{}", self.token))
            .header(HOST, host)
            .header(USER_AGENT, concat!("vestibule/", env!("CARGO_PKG_VERSION"), " (flight check)"))
            .body(Empty::<Bytes>::new());
        let Ok(request) = request else { return Ok(Reached::Other { server: None }) };
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(LONGEST_HEAD).handshake(TokioIo::new(stream)).await?;
        let exchange = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            // A body that is too long or cut short is not ours.
            let body = Limited::new(body, LONGEST_BODY).collect().await.map(http_body_util::Collected::to_bytes);
            Ok(self.read(&Response::from_parts(head, body.unwrap_or_default())))
        };
        // The connection does the reading and writing; it ends when the sender is dropped.
        join(exchange, connection).await.0
    }

    fn read(&self, answer: &Response<Bytes>) -> Reached {
        let text = |name| answer.headers().get(name).map(|value: &http::HeaderValue| shown_bytes(value.as_bytes()));
        if answer.status() == 200 && answer.body().trim_ascii() == self.body.as_bytes().trim_ascii() {
            return Reached::Us;
        }
        match text(LOCATION) {
            Some(to) if answer.status().is_redirection() => Reached::SentOn { to },
            _ => Reached::Other { server: text(SERVER) },
        }
    }
}

impl Handshake {
    async fn shake(&self, name: &str, stream: TcpStream) -> Reached {
        // For an address what stands for it in the tree of names (RFC 8738, 6).
        let asked_for =
            name.parse::<IpAddr>().map_or_else(|_| name.to_owned(), |address| Name::from(address).to_ascii());
        let Ok(server) = ServerName::try_from(asked_for.trim_end_matches('.').to_owned()) else {
            return Reached::Other { server: None };
        };
        let connector = TlsConnector::from(Arc::new(AnyCertificate::config()));
        match connector.connect(server, stream).await {
            Ok(stream) if self.is_ours(stream.get_ref().1) => Reached::Us,
            Ok(_) => Reached::Other { server: None },
            // It speaks TLS and not this, or something else.
            Err(error) if error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>()).is_some() => {
                Reached::Other { server: None }
            }
            Err(_) => Reached::Cut,
        }
    }

    /// Whether the certificate bears the digest of the key authorization (RFC 8737, 3).
    fn is_ours(&self, connection: &ClientConnection) -> bool {
        let Some([certificate, ..]) = connection.peer_certificates() else { return false };
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        let identifier =
            certificate.extensions().iter().find(|extension| extension.oid.to_id_string() == ACME_IDENTIFIER);
        let digest = digest(&SHA256, self.key_authorization.as_bytes());
        connection.alpn_protocol() == Some(ALPN)
            && identifier.is_some_and(|extension| extension.value.strip_prefix(&OCTETS) == Some(digest.as_ref()))
    }
}

/// Takes every certificate: nothing is said over the connection, and what is looked at is the digest in it. Signatures
/// are not verified, since that is refused for a certificate with a critical extension as these have.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl AnyCertificate {
    fn config() -> ClientConfig {
        let provider = crypto::aws_lc_rs::default_provider();
        let verifier = Arc::new(Self(provider.signature_verification_algorithms.supported_schemes()));
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for both versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// Who was met at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reached {
    Us,
    Other {
        server: Option<String>,
    },
    SentOn {
        to: String,
    },
    /// Nobody, on this very machine.
    NotListening,
    Refused,
    Silent,
    NoRoute,
    /// Somebody who hung up.
    Cut,
}

impl Reached {
    fn not_connected(error: &io::Error, address: IpAddr) -> Self {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
        match error.kind() {
            ConnectionRefused if is_of_this_machine(address) => Self::NotListening,
            ConnectionRefused => Self::Refused,
            NetworkUnreachable | HostUnreachable => Self::NoRoute,
            _ => Self::Silent,
        }
    }

    fn finding(self, name: &str, address: IpAddr, port: u16) -> Option<Finding> {
        let record = if address.is_ipv4() { "A" } else { "AAAA" };
        let is_address = name.parse::<IpAddr>().is_ok();
        let leads = if is_address { name.to_owned() } else { format!("{name} leads to {address}, which") };
        let change = if is_address {
            format!("forward port {port} of your router to this machine, or order for another address")
        } else {
            format!(
                "change the {record} record at your DNS provider, or forward port {port} of your router to this machine"
            )
        };
        let finding = match self {
            Self::Us => return None,
            Self::Other { server } => {
                let by = server.map_or_else(String::new, |server| format!(" but by another ({server})"));
                Finding::fault(name, format!("{leads} is not answered by this server{by}"), change)
            }
            Self::SentOn { to } => Finding::warning(
                name,
                format!("{leads} is answered by another server, which sends visitors on to {to}"),
                "if that is a page of this server all is well: a CA goes there; otherwise have whoever runs that server \
                 pass /.well-known/acme-challenge/ on",
            ),
            Self::NotListening => Finding::fault(
                name,
                format!("{leads} is this machine, but nothing answers there on port {port}"),
                format!("see that Vestibule runs and that a listener of its configuration has port {port}"),
            ),
            Self::Refused => Finding::warning(
                name,
                format!("{leads} does not let this server in on port {port}"),
                format!("if others can open the site all is well; otherwise {change}"),
            ),
            Self::Silent => Finding::warning(
                name,
                format!("{leads} does not answer this server on port {port}"),
                format!(
                    "if others can open the site all is well; otherwise {change}, and let its firewall pass port {port}"
                ),
            ),
            Self::NoRoute if address.is_ipv6() => Finding::warning(
                name,
                format!("{leads} cannot be tried, since this machine has no way to it by IPv6"),
                "if this server is not meant to be reached by IPv6, remove the AAAA record at your DNS provider: a CA \
                 tries it first",
            ),
            Self::NoRoute => Finding::warning(
                name,
                format!("{leads} cannot be tried, since this machine has no way to it"),
                format!("if others can open the site all is well; otherwise {change}"),
            ),
            Self::Cut => Finding::warning(
                name,
                format!("{leads} takes connections of this server on port {port} and says nothing"),
                format!(
                    "if others can open the site all is well; otherwise let what stands there pass port {port} on to this \
                     server"
                ),
            ),
        };
        Some(finding)
    }
}

/// Whether the two clocks of a moment agree.
fn clock((theirs, ours): (SystemTime, SystemTime)) -> Option<Finding> {
    let (ahead, apart) = match ours.duration_since(theirs) {
        Ok(ahead) => (true, ahead),
        Err(behind) => (false, behind.duration()),
    };
    let severity = match apart {
        apart if apart > CLOCK_FAULT => Severity::Fault,
        apart if apart > CLOCK_WARNING => Severity::Warning,
        _ => return None,
    };
    let (minutes, word) = (apart.as_secs().div_ceil(60), if ahead { "ahead of" } else { "behind" });
    Some(Finding {
        name: None,
        severity,
        what: format!("the clock of this machine is about {minutes} minutes {word} that of the CA"),
        remedy: "set it right, and let the system keep it so: `timedatectl set-ntp true`".to_owned(),
    })
}

/// Whether one of our interfaces has it: only then can a socket be bound to it.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Whether the internet leads there.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            // The last one is for providers that have too few addresses (RFC 6598).
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || (a == 100 && b & 0xc0 == 64))
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local())
        }
    }
}

/// Words of others, as far as they can be shown.
fn shown(text: &str) -> String {
    let plain = |character: char| if character.is_ascii_graphic() || character == ' ' { character } else { '?' };
    text.chars().take(SHOWN).map(plain).collect()
}

fn shown_bytes(text: &[u8]) -> String {
    shown(&String::from_utf8_lossy(text))
}

/// For the whole check.
const WHOLE: Duration = Duration::from_secs(60);
/// For a question to the DNS, with what is asked again.
const QUESTION: Duration = Duration::from_secs(6);
/// For the CAA records of a name and those above it.
const CLIMB: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);
/// For an answer, once there is a connection.
const ANSWER: Duration = Duration::from_secs(5);

const NAMES_AT_ONCE: usize = 8;
/// Of a name, in a family.
const ADDRESSES: usize = 8;
const LONGEST_HEAD: usize = 16 * 1024;
/// A key authorization has less than a hundred bytes.
const LONGEST_BODY: usize = 4 * 1024;
/// Characters of what others say.
const SHOWN: usize = 80;

/// By a clock that is behind, a new certificate is not valid yet; by one that is ahead, it is renewed too early.
const CLOCK_FAULT: Duration = Duration::from_secs(300);
const CLOCK_WARNING: Duration = Duration::from_secs(60);

const ALPN: &[u8] = b"acme-tls/1";
/// `id-pe-acmeIdentifier`.
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
/// How an OCTET STRING of 32 bytes begins.
const OCTETS: [u8; 2] = [4, 32];

/// Tags that every CA understands or may pass over.
const KNOWN: [&str; 7] = ["issue", "issuewild", "iodef", "contactemail", "contactphone", "issuemail", "issuevmc"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn issuer(value: &str) -> Issuer {
        Issuer::read(&Caa { critical: false, tag: "issue".to_owned(), value: value.to_owned() })
    }

    fn judged(records: &[(bool, &str, &str)]) -> Option<Severity> {
        let records: Vec<Caa> = records
            .iter()
            .map(|(critical, tag, value)| Caa {
                critical: *critical,
                tag: (*tag).to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        let authority = Authority {
            identities: vec!["ca.example".to_owned(), "ca.example.org".to_owned()],
            account: Some("https://ca.example/acct/1".to_owned()),
            ..Authority::default()
        };
        let flight = Flight { names: &[], proof: Proof::Record, authority: &authority };
        flight.judge("a.example", "example", &records).map(|finding| finding.severity)
    }

    #[test]
    fn an_issuer_is_read_as_the_rfcs_have_it() {
        assert_eq!(issuer("ca.example").domain, "ca.example");
        assert_eq!(issuer(" \tCA.example\t; account=230123").domain, "ca.example");
        for nobody in ["", ";", " ; ", "%%%%%", "ca..example", "-ca.example", "ca.example; account"] {
            assert_eq!(issuer(nobody), Issuer::default(), "{nobody:?}");
        }
        let bound = issuer("ca.example; validationmethods=dns-01,http-01; accounturi=https://ca.example/acct/1");
        assert!(bound.allows("http-01", None) && bound.allows("dns-01", Some("https://ca.example/acct/1")));
        assert!(!bound.allows("tls-alpn-01", None) && !bound.allows("dns-01", Some("https://ca.example/acct/2")));
    }

    #[test]
    fn what_caa_records_forbid_is_a_fault_and_what_they_demand_a_warning() {
        for (expected, records) in [
            (None, &[(false, "issue", "ca.example.org")][..]),
            (None, &[(false, "issue", ";"), (false, "issue", "ca.example")]),
            (None, &[(false, "issuewild", ";")]),
            (None, &[(true, "iodef", "mailto:a@example"), (false, "unheard-of", "x")]),
            (None, &[(true, "issue", "ca.example; accounturi=https://ca.example/acct/1")]),
            (Some(Severity::Fault), &[(false, "issue", "another.example")]),
            (Some(Severity::Fault), &[(false, "issue", "sub.ca.example")]),
            (Some(Severity::Fault), &[(false, "issue", "ca.example; accounturi=https://ca.example/acct/2")]),
            (Some(Severity::Fault), &[(false, "issue", "ca.example; validationmethods=http-01")]),
            (Some(Severity::Warning), &[(true, "unheard-of", "x"), (false, "issue", "ca.example")]),
        ] {
            assert_eq!(judged(records), expected, "{records:?}");
        }
    }

    #[test]
    fn who_lets_others_in_and_not_us_is_no_fault() {
        let address = IpAddr::from([203, 0, 113, 9]);
        for reached in [Reached::Refused, Reached::Silent, Reached::NoRoute, Reached::Cut] {
            let finding = reached.clone().finding("justice.example.com", address, 80).unwrap();
            assert_eq!(finding.severity, Severity::Warning, "{finding}");
            assert!(finding.what.starts_with("justice.example.com leads to 203.0.113.9, which "), "{finding}");
            let finding = reached.finding("203.0.113.9", address, 80).unwrap();
            assert!(!finding.to_string().contains("DNS"), "{finding}");
        }
        let refused = Reached::not_connected(&io::ErrorKind::ConnectionRefused.into(), address);
        assert_eq!(refused, Reached::Refused);
    }

    #[test]
    fn a_directory_says_who_the_ca_is_and_when() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut headers = HeaderMap::new();
        headers.insert(DATE, "Fri, 15 Jan 2027 08:00:07 GMT".parse().unwrap());

        let authority = Authority::read(&headers, br#"{"meta":{"caaIdentities":["ca.example"]},"newNonce":"x"}"#, now);

        assert_eq!(authority.identities, ["ca.example"]);
        assert_eq!(authority.clock, Some((now + Duration::from_secs(7), now)));
        headers.insert(AGE, "60".parse().unwrap());
        assert_eq!(Authority::read(&headers, b"{}", now).clock, Some((now + Duration::from_secs(67), now)));
        for bare in ["", "{}", r#"{"meta":{}}"#, "[]", r#"{"meta":{"caaIdentities":1}}"#] {
            assert_eq!(Authority::read(&HeaderMap::new(), bare.as_bytes(), now), Authority::default(), "{bare}");
        }
    }

    #[test]
    fn only_what_the_internet_leads_to_is_public() {
        for (address, public) in [
            ("203.0.113.9", true),
            ("2001:db8::1", true),
            ("192.168.1.2", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("0.0.0.0", false),
            ("::1", false),
            ("fd00::1", false),
            ("fe80::1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    proptest! {
        #[test]
        fn no_record_is_too_odd(critical: bool, tag in ".{0,20}", value in proptest::collection::vec(any::<u8>(), 0..300)) {
            let value = String::from_utf8_lossy(&value).into_owned();
            judged(&[(critical, &tag, &value), (critical, "issue", &value)]);
        }

        #[test]
        fn words_of_others_are_one_short_line(text in ".{0,300}") {
            let shown = shown(&text);
            prop_assert!(shown.len() <= SHOWN && shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown:?}");
        }
    }
}
