//! How a line looks: compiled once, written for every request without allocation.

use std::{net::IpAddr, time::Duration, time::SystemTime};

use http::{HeaderValue, Uri, Version};
use thiserror::Error;

use super::{Record, clock, escape};
use crate::{
    config::{LogFormat, LoggedQuery},
    http::forwarded::write_address,
};

/// A compiled [`LogFormat`].
///
/// - `combined` is the NCSA combined format byte for byte as Apache writes it:
///   `%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"`, where `%l` is always `-`, and `%u` the user of a route with `basic_auth`.
/// - `json` is one object a line; its keys are those of [`fields`] that say so, and what is not known is left out.
/// - A template is text with `{field}` in it, `{{` and `}}` for braces; values are escaped as Apache escapes them, and
///   what is not known is `-`.
///
/// Of a query only the names are written, unless it is told otherwise ([`Self::with_query`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    shape: Shape,
    query: LoggedQuery,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Text(Vec<Piece>),
    Json,
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Literal(String),
    Value(Kind),
}

impl Format {
    pub fn compile(format: &LogFormat) -> Result<Self, FormatError> {
        let shape = match format {
            LogFormat::Combined => Shape::Text(pieces(COMBINED)?),
            LogFormat::Json => Shape::Json,
            LogFormat::Template(template) => {
                let pieces = pieces(template)?;
                // Most likely a misspelt `combined` or `json`.
                if !pieces.iter().any(|piece| matches!(piece, Piece::Value(_))) {
                    return Err(FormatError::NoField { template: template.clone() });
                }
                Shape::Text(pieces)
            }
        };
        Ok(Self { shape, query: LoggedQuery::Names })
    }

    /// The same, with `query` written of queries.
    #[must_use]
    pub fn with_query(self, query: LoggedQuery) -> Self {
        Self { query, ..self }
    }

    /// Appends the line of `record` with its line break.
    pub fn write(&self, record: &Record, line: &mut Vec<u8>) {
        match &self.shape {
            Shape::Text(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Literal(literal) => line.extend_from_slice(literal.as_bytes()),
                        Piece::Value(kind) => kind.of(record).text(kind.query(self.query), line),
                    }
                }
            }
            Shape::Json => {
                let mut before = b'{';
                for field in FIELDS.iter().filter(|field| field.json) {
                    let value = field.kind.of(record);
                    if !matches!(value, Value::Missing) {
                        line.extend_from_slice(&[before, b'"']);
                        line.extend_from_slice(field.name.as_bytes());
                        line.extend_from_slice(b"\":");
                        value.json(field.kind.query(self.query), line);
                        before = b',';
                    }
                }
                line.push(b'}');
            }
        }
        line.push(b'\n');
    }
}

fn pieces(template: &str) -> Result<Vec<Piece>, FormatError> {
    if let Some(at) = template.find(char::is_control) {
        return Err(FormatError::Control { at });
    }
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = template;
    while let Some(brace) = rest.find(['{', '}']) {
        let at = template.len() - rest.len() + brace;
        literal.push_str(&rest[..brace]);
        let (found, after) = rest[brace..].split_at(1);
        if let Some(after) = after.strip_prefix(found) {
            literal.push_str(found);
            rest = after;
        } else if found == "}" {
            return Err(FormatError::NotOpened { at });
        } else {
            let (name, after) = after.split_once('}').ok_or(FormatError::NotClosed { at })?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Value(named(name)?));
            rest = after;
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

fn named(name: &str) -> Result<Kind, FormatError> {
    if let Some(field) = FIELDS.iter().find(|field| field.name == name) {
        return Ok(field.kind);
    }
    let nearest = FIELDS
        .iter()
        .map(|field| (strsim::damerau_levenshtein(field.name, name), field.name))
        .min()
        .filter(|&(distance, known)| distance <= known.len().min(name.len()) / 2)
        .map(|(_, known)| known);
    Err(FormatError::UnknownField { field: name.to_owned(), nearest })
}

/// Why a template is not one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    #[error("no log field is named `{field}`{}", nearest.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default())]
    UnknownField { field: String, nearest: Option<&'static str> },
    #[error("`{template}` is neither `combined` nor `json`, and has no `{{field}}` in it")]
    NoField { template: String },
    #[error("the `{{` at byte {at} is not closed; a brace itself is written `{{{{`")]
    NotClosed { at: usize },
    #[error("the `}}` at byte {at} closes nothing; a brace itself is written `}}}}`")]
    NotOpened { at: usize },
    #[error("there is a control character at byte {at}; a template is one line of text")]
    Control { at: usize },
}

/// Something a line can say.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub doc: &'static str,
    /// Whether it is a key of the `json` format too.
    pub json: bool,
    kind: Kind,
}

/// Every field a template can name, in the order of the `json` format.
#[must_use]
pub fn fields() -> &'static [Field] {
    FIELDS
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Time,
    TimeCommon,
    RequestId,
    Client,
    User,
    Request,
    Method,
    Target,
    Version,
    Host,
    Referer,
    UserAgent,
    Route,
    Upstream,
    Endpoint,
    Status,
    BytesReceived,
    BytesSent,
    Size,
    Queue,
    Connect,
    Head,
    Total,
    TlsVersion,
    TlsCipher,
    Note,
}

impl Kind {
    /// How much of a query is written where `asked` is what the configuration says.
    fn query(self, asked: LoggedQuery) -> LoggedQuery {
        match self {
            Self::Request | Self::Target | Self::Referer => asked,
            // Of a question mark elsewhere nothing follows.
            _ => LoggedQuery::Whole,
        }
    }

    fn of(self, record: &Record) -> Value<'_> {
        match self {
            Self::Time => Value::Time(record.started.wall),
            Self::TimeCommon => Value::TimeCommon(record.started.wall),
            Self::RequestId => Value::Id(record.request_id.digits()),
            Self::Client => record.client.map_or(Value::Missing, |address| Value::Address(address.to_canonical())),
            Self::User => Value::of_header(record.user.as_ref()),
            Self::Request => match (&record.method, &record.target, record.version) {
                (Some(method), Some(target), Some(version)) => {
                    let [scheme, colon, authority, path] = target_pieces(target, record.version);
                    Value::Text([method.as_str(), " ", scheme, colon, authority, path, " ", version_name(version)])
                }
                _ => Value::Missing,
            },
            Self::Method => record.method.as_ref().map_or(Value::Missing, |method| Value::of_str(method.as_str())),
            Self::Target => record.target.as_ref().map_or(Value::Missing, |target| {
                let [scheme, colon, authority, path] = target_pieces(target, record.version);
                Value::Text([scheme, colon, authority, path, "", "", "", ""])
            }),
            Self::Version => record.version.map_or(Value::Missing, |version| Value::of_str(version_name(version))),
            Self::Host => Value::of_header(record.host.as_ref()),
            Self::Referer => Value::of_header(record.referer.as_ref()),
            Self::UserAgent => Value::of_header(record.user_agent.as_ref()),
            Self::Route => Value::of_option(record.route.as_deref()),
            Self::Upstream => Value::of_option(record.upstream.as_deref()),
            Self::Endpoint => Value::of_option(record.endpoint.as_deref()),
            Self::Status => Value::Number(record.status.into()),
            Self::BytesReceived => Value::Number(record.bytes_received),
            Self::Size if record.bytes_sent == 0 => Value::Missing,
            Self::BytesSent | Self::Size => Value::Number(record.bytes_sent),
            Self::Queue => Value::of_duration(record.queue),
            Self::Connect => Value::of_duration(record.connect),
            Self::Head => Value::of_duration(record.head),
            Self::Total => Value::of_duration(record.total),
            Self::TlsVersion => Value::of_option(record.tls.map(|tls| tls.version)),
            Self::TlsCipher => Value::of_option(record.tls.map(|tls| tls.cipher)),
            Self::Note => Value::of_option(record.note.as_deref()),
        }
    }
}

/// What a field says of one record, not yet rendered.
enum Value<'r> {
    Missing,
    Bytes(&'r [u8]),
    /// One text in pieces, some of them empty.
    Text([&'r str; 8]),
    Number(u64),
    Seconds(Duration),
    Address(IpAddr),
    Id([u8; 32]),
    Time(SystemTime),
    TimeCommon(SystemTime),
}

impl<'r> Value<'r> {
    fn of_str(text: &'r str) -> Self {
        Self::Bytes(text.as_bytes())
    }

    fn of_option(text: Option<&'r str>) -> Self {
        text.map_or(Self::Missing, Self::of_str)
    }

    fn of_header(value: Option<&'r HeaderValue>) -> Self {
        value.map_or(Self::Missing, |value| Self::Bytes(value.as_bytes()))
    }

    fn of_duration(duration: Option<Duration>) -> Self {
        duration.map_or(Self::Missing, Self::Seconds)
    }

    fn text(self, query: LoggedQuery, line: &mut Vec<u8>) {
        let mut escape = |part: &[u8]| escape::text(part, line);
        match self {
            Self::Missing => line.push(b'-'),
            Self::Bytes(bytes) => show(bytes, query, &mut escape),
            Self::Text(pieces) => pieces.iter().for_each(|piece| show(piece.as_bytes(), query, &mut escape)),
            plain => plain.plain(line),
        }
    }

    fn json(self, query: LoggedQuery, line: &mut Vec<u8>) {
        match self {
            Self::Number(_) | Self::Seconds(_) => self.plain(line),
            Self::Missing => line.extend_from_slice(b"null"),
            text => {
                line.push(b'"');
                let mut escape = |part: &[u8]| escape::json(part, line);
                match text {
                    Self::Bytes(bytes) => show(bytes, query, &mut escape),
                    Self::Text(pieces) => pieces.iter().for_each(|piece| show(piece.as_bytes(), query, &mut escape)),
                    plain => plain.plain(line),
                }
                line.push(b'"');
            }
        }
    }

    /// Values of our own making, which need no escaping.
    fn plain(self, line: &mut Vec<u8>) {
        match self {
            Self::Number(number) => decimal(number, 1, line),
            Self::Seconds(duration) => {
                decimal(duration.as_secs(), 1, line);
                line.push(b'.');
                decimal(duration.subsec_micros().into(), 6, line);
            }
            Self::Address(address) => write_address(address, line),
            Self::Id(digits) => line.extend_from_slice(&digits),
            Self::Time(wall) => clock::rfc3339(wall, line),
            Self::TimeCommon(wall) => clock::common(wall, line),
            Self::Missing | Self::Bytes(_) | Self::Text(_) => {}
        }
    }
}

/// Writes `text`, of whose query `*` is written for each value. A part without a name may be a secret as a whole.
fn show(text: &[u8], query: LoggedQuery, mut write: impl FnMut(&[u8])) {
    let mark = text.iter().position(|byte| *byte == b'?').filter(|_| query == LoggedQuery::Names);
    let Some(mark) = mark else { return write(text) };
    let (path, query) = text.split_at(mark + 1);
    write(path);
    for (number, pair) in query.split(|byte| *byte == b'&').enumerate() {
        if number > 0 {
            write(b"&");
        }
        let value = pair.iter().position(|byte| *byte == b'=').map_or(0, |equals| equals + 1);
        write(&pair[..value]);
        if value < pair.len() {
            write(b"*");
        }
    }
}

/// The target as its version writes it: h2 and later split it into pseudo-headers, and Apache then logs the path only.
fn target_pieces(target: &Uri, version: Option<Version>) -> [&str; 4] {
    let path = target.path_and_query().map_or("", |path| path.as_str());
    let split = version.is_some_and(|version| version >= Version::HTTP_2);
    match target.authority() {
        Some(authority) if path.is_empty() || !split => {
            let scheme = target.scheme_str().unwrap_or("");
            [scheme, if scheme.is_empty() { "" } else { "://" }, authority.as_str(), path]
        }
        _ => ["", "", "", path],
    }
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// Appends `number` with at least `width` digits.
fn decimal(mut number: u64, width: usize, line: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    while number > 0 || digits.len() - first < width {
        first -= 1;
        // The remainder of a division by ten is one digit.
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    line.extend_from_slice(&digits[first..]);
}

const COMBINED: &str = r#"{client} - {user} {time_common} "{request}" {status} {size} "{referer}" "{user_agent}""#;

const FIELDS: &[Field] = &[
    json("time", Kind::Time, "when the request began, RFC 3339 with milliseconds, local time zone"),
    text("time_common", Kind::TimeCommon, "the same as Apache writes it: `[22/Nov/2026:21:29:31 +0000]`"),
    json("request_id", Kind::RequestId, "32 hexadecimal digits, also on error pages"),
    json("client", Kind::Client, "address of the client, past trusted proxies; none for a peer on a unix socket"),
    json("user", Kind::User, "who came with a password that was right (`routes[].basic_auth`)"),
    text("request", Kind::Request, "the request line: method, target and version"),
    json("method", Kind::Method, "method of the request"),
    json("target", Kind::Target, "target as received; of its query what `query` says"),
    json("version", Kind::Version, "`HTTP/1.1`"),
    json("host", Kind::Host, "`Host` as received"),
    json("referer", Kind::Referer, "`Referer` as received; of its query what `query` says"),
    json("user_agent", Kind::UserAgent, "`User-Agent` as received"),
    json("route", Kind::Route, "the route that was taken"),
    json("upstream", Kind::Upstream, "name of the upstream"),
    json("endpoint", Kind::Endpoint, "address of the endpoint that answered"),
    json("status", Kind::Status, "status sent; 499 when the client went away before the response was complete"),
    json("bytes_received", Kind::BytesReceived, "bytes of the request body"),
    json("bytes_sent", Kind::BytesSent, "bytes of the response body"),
    text("size", Kind::Size, "the same as Apache writes it: `-` for none"),
    json("queue_seconds", Kind::Queue, "seconds spent waiting for a place in the upstream"),
    json("connect_seconds", Kind::Connect, "seconds spent connecting to the endpoint; none on a pooled connection"),
    json("head_seconds", Kind::Head, "seconds from the request being sent to the response head"),
    json("total_seconds", Kind::Total, "seconds from the beginning to the end of the response"),
    json("tls_version", Kind::TlsVersion, "`TLSv1.3`; none on a plain connection"),
    json("tls_cipher", Kind::TlsCipher, "name of the cipher suite"),
    json("note", Kind::Note, "why the request failed"),
];

const fn json(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, doc, json: true, kind }
}

/// A field of templates only: the `json` format says the same in another key.
const fn text(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, doc, json: false, kind }
}

#[cfg(test)]
mod tests;
