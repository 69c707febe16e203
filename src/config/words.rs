//! Keys that hold one of a few words, and those that hold text of a certain form.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value as Json, json};

use super::{
    plan::{
        Balance, CertificateHost, ChallengeKind, FileMode, FrameAncestor, LogFormat, LogSink, LoggedQuery, PathPrefix,
        Protocol, RateKey, Secret, SharedService, Slash, Stick, StopSignal,
    },
    read::{Scalar, or_variable, suggestion, unexpected},
    units::{Count, Size},
};

/// The meaning of the one word out of `words` that is `text`.
fn one_of<T: Scalar + Clone>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, meaning)) => Ok(meaning.clone()),
        None => Err(format!("{}{}", unexpected::<T>(text), suggestion(text, words.iter().map(|(word, _)| *word)))),
    }
}

impl Scalar for Protocol {
    const EXPECTED: &'static str = "`http` or `uwsgi`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("http", Self::Http), ("uwsgi", Self::Uwsgi)])
    }

    fn schema() -> Json {
        json!({ "enum": ["http", "uwsgi"] })
    }
}

impl Scalar for Balance {
    const EXPECTED: &'static str = "`least`, `round_robin`, `hash` or `bounded_hash`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let all = [
            ("least", Self::Least),
            ("round_robin", Self::RoundRobin),
            ("hash", Self::Hash),
            ("bounded_hash", Self::BoundedHash),
        ];
        one_of(text, &all)
    }

    fn schema() -> Json {
        json!({ "enum": ["least", "round_robin", "hash", "bounded_hash"] })
    }
}

impl Scalar for Stick {
    const EXPECTED: &'static str = "`sid` or `cookie`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("sid", Self::Sid), ("cookie", Self::Cookie)])
    }

    fn schema() -> Json {
        json!({ "enum": ["sid", "cookie"] })
    }
}

impl Scalar for Slash {
    const EXPECTED: &'static str = "`forward` or `redirect`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("forward", Self::Forward), ("redirect", Self::Redirect)])
    }

    fn schema() -> Json {
        json!({ "enum": ["forward", "redirect"] })
    }
}

/// The one target that a listener redirects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Https;

impl Scalar for Https {
    const EXPECTED: &'static str = "`https`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("https", Self)])
    }

    fn schema() -> Json {
        json!({ "enum": ["https"] })
    }
}

/// The one thing to say of the port of a program of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AutoPort;

impl Scalar for AutoPort {
    const EXPECTED: &'static str = "`auto` (a number could not be two instances' while one replaces the other)";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("auto", Self)])
    }

    fn schema() -> Json {
        json!({ "enum": ["auto"] })
    }
}

impl Scalar for StopSignal {
    const EXPECTED: &'static str = "`TERM`, `INT`, `QUIT`, `HUP`, `USR1`, `USR2` or `KILL`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text.trim_start_matches("SIG"), &Self::NAMES)
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

/// The one thing to say of the PROXY protocol: a listener never guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProxyRequired;

impl Scalar for ProxyRequired {
    const EXPECTED: &'static str = "`required` (or no such key: it is never guessed)";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("required", Self)])
    }

    fn schema() -> Json {
        json!({ "enum": ["required"] })
    }
}

/// What becomes of a client that is asked for a certificate and has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientCertificate {
    Required,
    Optional,
}

impl Scalar for ClientCertificate {
    const EXPECTED: &'static str = "`required` or `optional`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("required", Self::Required), ("optional", Self::Optional)])
    }

    fn schema() -> Json {
        json!({ "enum": ["required", "optional"] })
    }
}

/// The one thing a route can say of it: whether clients are asked is the listener's matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CertificateRequired;

impl Scalar for CertificateRequired {
    const EXPECTED: &'static str = "`required` (listeners say whether clients are asked for one)";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("required", Self)])
    }

    fn schema() -> Json {
        json!({ "enum": ["required"] })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsVersion {
    Tls12,
    Tls13,
}

impl Scalar for TlsVersion {
    const EXPECTED: &'static str = "`TLSv1.2` or `TLSv1.3`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        match text {
            "SSLv3" | "TLSv1" | "TLSv1.0" | "TLSv1.1" => {
                Err(format!("`{text}` is not safe and not spoken here; there are {}", Self::EXPECTED))
            }
            _ => one_of(text, &[("TLSv1.2", Self::Tls12), ("TLSv1.3", Self::Tls13)]),
        }
    }

    fn schema() -> Json {
        json!({ "enum": ["TLSv1.2", "TLSv1.3"] })
    }
}

impl Scalar for ChallengeKind {
    const EXPECTED: &'static str = "`http-01`, `tls-alpn-01` or `dns-01`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("http-01", Self::Http01), ("tls-alpn-01", Self::TlsAlpn01), ("dns-01", Self::Dns01)])
    }

    fn schema() -> Json {
        json!({ "enum": ["http-01", "tls-alpn-01", "dns-01"] })
    }
}

impl Scalar for CertificateHost {
    const EXPECTED: &'static str = "a host name such as `justice.example.com`, `*.example.com`, or an IP address";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| unexpected::<Self>(text))
    }
}

impl Scalar for FileMode {
    const EXPECTED: &'static str = "a mode by which only owner and group read, such as `0640`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| unexpected::<Self>(text))
    }

    fn schema() -> Json {
        // YAML takes some of them for numbers.
        json!({ "type": ["string", "integer"] })
    }
}

/// Where an ACME server says what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DirectoryUrl(pub(super) String);

impl Scalar for DirectoryUrl {
    const EXPECTED: &'static str = "the URL of a directory, such as `https://acme.example.com/directory`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let uri = text.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some() && uri.query().is_none());
        match uri.as_ref().and_then(http::Uri::scheme_str) {
            Some("https") => Ok(Self(text.to_owned())),
            Some("http") => Err("ACME is spoken over https only (RFC 8555, 6.1)".to_owned()),
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

/// A user of the machine, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserName(pub(super) String);

impl Scalar for UserName {
    const EXPECTED: &'static str = "the name of a user, such as `www-data`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'$'));
        if first && rest && text.len() <= 32 { Ok(Self(text.to_owned())) } else { Err(unexpected::<Self>(text)) }
    }

    fn schema() -> Json {
        or_variable(&json!({ "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.$-]{0,31}$" }))
    }
}

/// Traffic threads: one a processor, or so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workers {
    Auto,
    Threads(Count<1, 1024>),
}

impl Scalar for Workers {
    const EXPECTED: &'static str = "`auto` or a whole number";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ if text.starts_with(|c: char| c.is_ascii_digit()) => Count::parse(text, base).map(Self::Threads),
            _ => Err(unexpected::<Self>(text)),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "enum": ["auto"] }, Count::<1, 1024>::schema()] })
    }
}

/// Requests inside an upstream at once: so many, or as many as its workers take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Concurrency {
    Auto,
    Places(Count<1, 1_000_000>),
}

impl Scalar for Concurrency {
    const EXPECTED: &'static str = "`auto`, a whole number, or `null` for no bound";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "0" => {
                Err("no request could ever get in; write the number of the application's threads, or `null`".to_owned())
            }
            _ if text.starts_with(|c: char| c.is_ascii_digit()) => Count::parse(text, base).map(Self::Places),
            _ => Err(unexpected::<Self>(text)),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "enum": ["auto"] }, or_variable(&json!({ "type": "integer", "minimum": 1 }))] })
    }
}

/// The name of a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CookieName(pub(super) String);

impl Scalar for CookieName {
    const EXPECTED: &'static str = "the name of a cookie, such as `session`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        // A token (RFC 6265, 4.1.1).
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if !text.is_empty() && text.bytes().all(is_token) {
            Ok(Self(text.to_owned()))
        } else {
            Err(unexpected::<Self>(text))
        }
    }
}

impl Scalar for RateKey {
    const EXPECTED: &'static str = "`address`, `cookie:NAME` or `all`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match text.strip_prefix("cookie:") {
            Some(name) => CookieName::parse(name, base).map(|name| Self::Cookie(name.0)),
            None => one_of(text, &[("address", Self::Address), ("all", Self::All)]),
        }
    }
}

/// What the memory may grow to: so much, or what is derived from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    Auto,
    Bytes(Size),
}

impl Scalar for Memory {
    const EXPECTED: &'static str = "`auto` or a size such as `2GiB`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ if text.starts_with(|c: char| c.is_ascii_digit()) => Size::parse(text, base).map(Self::Bytes),
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

impl Scalar for PathPrefix {
    const EXPECTED: &'static str = "a path prefix such as `/da/`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        match Self::parse(text) {
            Some(prefix) => Ok(prefix),
            None if text.contains(['*', '^', '$', '(']) => Err(format!(
                "`{text}` is not a path prefix: patterns are not supported; write whole segments such as `/da/`"
            )),
            None if !text.starts_with('/') && Self::parse(&format!("/{text}")).is_some() => {
                Err(format!("`{text}` is not a path prefix; write `/{text}`"))
            }
            None => Err(format!("`{text}` is not a path prefix; write whole segments such as `/da/`")),
        }
    }
}

/// The prefix of `X-Accel-Redirect` paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AccelPrefix(pub(super) String);

impl Scalar for AccelPrefix {
    const EXPECTED: &'static str = "a path with a slash at both ends, such as `/xaccel/`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        match PathPrefix::parse(text) {
            Some(prefix) if text.ends_with('/') && !prefix.as_str().is_empty() => Ok(Self(text.to_owned())),
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

/// The path of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PagePath(pub(super) String);

impl Scalar for PagePath {
    const EXPECTED: &'static str = "the path of a page, such as `/health_check`, without a query";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        if is_path(text) && !text.contains('?') { Ok(Self(text.to_owned())) } else { Err(unexpected::<Self>(text)) }
    }
}

/// The path of one page, with its query if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageTarget(pub(super) String);

impl Scalar for PageTarget {
    const EXPECTED: &'static str = "the path of a page, such as `/health_check?ready=1`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let is_plain = query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if is_path(path) && is_plain { Ok(Self(text.to_owned())) } else { Err(unexpected::<Self>(text)) }
    }
}

/// Whether requests may have this path, and every server reads it alike: whole escapes, no dot segments, nothing that could be one.
fn is_path(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\' | b';'));
    let escaped = |after: &str| {
        let digits = after.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        u8::from_str_radix(digits, 16).ok()
    };
    let is_harmless = |byte: Option<u8>| byte.is_some_and(|byte| !matches!(byte, 0 | b'.' | b'/' | b'\\' | b';'));
    let has_dots = text.split('/').any(|segment| matches!(segment, "." | ".."));
    text.starts_with('/') && is_plain && !has_dots && text.split('%').skip(1).map(escaped).all(is_harmless)
}

/// The page by which a program of ours is found to be ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadyPage {
    /// That of the upstream before it.
    Auto,
    At(PageTarget),
}

impl Scalar for ReadyPage {
    const EXPECTED: &'static str = "`auto`, or the path of a page, such as `/health_check?ready=1`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => PageTarget::parse(text, base).map(Self::At).map_err(|_| unexpected::<Self>(text)),
        }
    }
}

/// The origin of a site, as browsers send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SiteOrigin(pub(super) String);

impl Scalar for SiteOrigin {
    const EXPECTED: &'static str = "the origin of a site, such as `https://www.example.com`, or `*`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        match authority {
            // Browsers write names of hosts in lower case, and compare as they write.
            Some(authority) if !authority.is_empty() && authority.bytes().all(plain) => {
                Ok(Self(text.to_ascii_lowercase()))
            }
            Some(authority) if authority.ends_with('/') => {
                Err(format!("an origin has no path; write `{}`", text.trim_end_matches('/')))
            }
            None if text == "*" => Ok(Self(text.to_owned())),
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

impl Scalar for FrameAncestor {
    const EXPECTED: &'static str = "`self`, `none` or an origin such as `https://www.example.com`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match text {
            "self" | "'self'" => Ok(Self::Own),
            "none" | "'none'" => Ok(Self::None),
            "*" => Err("write `null` where any page may show this one".to_owned()),
            _ => {
                SiteOrigin::parse(text, base).map(|origin| Self::Origin(origin.0)).map_err(|_| unexpected::<Self>(text))
            }
        }
    }
}

/// What a page says to others of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReferrerPolicy(pub(super) String);

impl Scalar for ReferrerPolicy {
    const EXPECTED: &'static str = "a policy such as `strict-origin-when-cross-origin` or `same-origin`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &REFERRER_POLICIES.map(|policy| (policy, Self(policy.to_owned()))))
    }

    fn schema() -> Json {
        json!({ "enum": REFERRER_POLICIES })
    }
}

const REFERRER_POLICIES: [&str; 8] = [
    "no-referrer",
    "no-referrer-when-downgrade",
    "origin",
    "origin-when-cross-origin",
    "same-origin",
    "strict-origin",
    "strict-origin-when-cross-origin",
    "unsafe-url",
];

/// What browsers show when they ask for a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Realm(pub(super) String);

impl Scalar for Realm {
    const EXPECTED: &'static str = "a name in ASCII, without quotes, such as `staff only`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && !matches!(byte, b'"' | b'\\');
        if !text.is_empty() && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(unexpected::<Self>(text))
        }
    }
}

/// A header that another server may tell the application by us; in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToldHeader(pub(super) String);

impl Scalar for ToldHeader {
    const EXPECTED: &'static str = "the name of a header, such as `Remote-User`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let name = http::HeaderName::from_bytes(text.as_bytes()).map_err(|_| unexpected::<Self>(text))?;
        let name = name.as_str();
        if name.contains('_') {
            return Err(format!(
                "write `{}`: a WSGI application sees it under one name with the other",
                name.replace('_', "-")
            ));
        }
        let ours = matches!(
            name,
            "connection"
                | "content-length"
                | "content-type"
                | "expect"
                | "host"
                | "proxy"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "forwarded"
                | "x-forwarded-for"
                | "x-forwarded-host"
                | "x-forwarded-port"
                | "x-forwarded-proto"
                | "x-real-ip"
        ) || ["x-accel-", "x-sendfile", "proxy-"].iter().any(|prefix| name.starts_with(prefix));
        if ours { Err(format!("what `{text}` says is not another server's to say")) } else { Ok(Self(name.to_owned())) }
    }
}

impl Scalar for Secret {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        Ok(Self::new(text.to_owned()))
    }
}

/// A file or folder; a relative one is beside the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilePath(pub(super) PathBuf);

impl Scalar for FilePath {
    const EXPECTED: &'static str = "a path such as `/etc/vestibule/site.pem`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') || text.contains("://") {
            return Err(unexpected::<Self>(text));
        }
        Ok(Self(base.join(text)))
    }
}

/// Where certificates are kept: a folder, or a place that several machines share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StoragePlace {
    Folder(PathBuf),
    Shared(StorePlace),
}

impl StoragePlace {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Folder(_) => "a folder",
            Self::Shared(place) => place.kind(),
        }
    }
}

/// A place that several machines can reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct StorePlace {
    pub(super) service: SharedService,
    pub(super) bucket: String,
    pub(super) prefix: String,
}

impl StorePlace {
    pub(super) fn kind(&self) -> &'static str {
        match self.service {
            SharedService::S3 => "in S3",
            SharedService::Azure => "at Azure",
        }
    }
}

impl Scalar for StoragePlace {
    const EXPECTED: &'static str =
        "a folder such as `/var/lib/vestibule`, `s3://bucket/prefix` or `azure://container/prefix`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        if let Ok(place) = StorePlace::parse(text, base) {
            return Ok(Self::Shared(place));
        }
        FilePath::parse(text, base).map(|folder| Self::Folder(folder.0)).map_err(|_| unexpected::<Self>(text))
    }
}

impl Scalar for StorePlace {
    const EXPECTED: &'static str = "`s3://bucket/prefix` or `azure://container/prefix`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let services = [("s3://", SharedService::S3), ("azure://", SharedService::Azure)];
        let found = services.iter().find_map(|(scheme, service)| Some((text.strip_prefix(scheme)?, *service)));
        let Some((place, service)) = found else { return Err(unexpected::<Self>(text)) };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_end_matches('/');
        // What both services take, and no more: names of other forms cannot be made any more.
        let is_name = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
            && bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
            && (service == SharedService::S3 || !bucket.contains('.'));
        let is_prefix = prefix.is_empty()
            || prefix.len() <= 512
                && prefix.split('/').all(|part| {
                    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                    !matches!(part, "" | "." | "..") && part.bytes().all(plain)
                });
        if !is_name || !is_prefix {
            return Err(unexpected::<Self>(text));
        }
        Ok(Self { service, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceUrl(pub(super) String);

impl Scalar for ServiceUrl {
    const EXPECTED: &'static str = "the URL of a service, such as `https://minio.example.com`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let uri = text.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some() && uri.query().is_none());
        match uri.as_ref().and_then(http::Uri::scheme_str) {
            Some("http" | "https") => Ok(Self(text.trim_end_matches('/').to_owned())),
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

/// A folder that files may be served from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServedFolder(pub(super) PathBuf);

impl Scalar for ServedFolder {
    const EXPECTED: &'static str = "an absolute folder such as `/usr`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') {
            return Err(unexpected::<Self>(text));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(format!("`{text}` leads upwards; write the folder it means"));
        }
        // Comparing components leaves out `.` and doubled slashes.
        let path: PathBuf = path.components().collect();
        if path == Path::new("/") {
            return Err("`/` would let the application send any file of this machine; name the folders".to_owned());
        }
        Ok(Self(path))
    }
}

/// The mail address of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MailAddress(pub(super) String);

impl Scalar for MailAddress {
    const EXPECTED: &'static str = "a mail address such as `admin@example.com`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '<' | '>' | '"'))
        };
        match text.split_once('@') {
            Some((local, domain)) if plain(local) && plain(domain) && !domain.contains('@') => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

impl Scalar for LogSink {
    const EXPECTED: &'static str = "the path of a file, or `-` for standard output";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match text {
            "-" => Ok(Self::Stdout),
            "" => Err(unexpected::<Self>(text)),
            _ => FilePath::parse(text, base).map(|path| Self::File(path.0)),
        }
    }
}

impl Scalar for LoggedQuery {
    const EXPECTED: &'static str = "`names` or `whole`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        one_of(text, &[("names", Self::Names), ("whole", Self::Whole)])
    }

    fn schema() -> Json {
        json!({ "enum": ["names", "whole"] })
    }
}

impl Scalar for LogFormat {
    const EXPECTED: &'static str = "`combined`, `json` or a template with `{fields}` in it";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        match text {
            "combined" => Ok(Self::Combined),
            "json" => Ok(Self::Json),
            _ if text.contains(['\n', '\r']) => Err("a template is one line".to_owned()),
            _ if text.contains('{') => Ok(Self::Template(text.to_owned())),
            _ => Err(format!("{}{}", unexpected::<Self>(text), suggestion(text, ["combined", "json"]))),
        }
    }
}
