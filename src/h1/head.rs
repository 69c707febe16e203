//! Reading the heads of requests and responses.

use std::mem::MaybeUninit;

use arrayvec::ArrayVec;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request, response};

use super::BodyLength;
use crate::http::{GatewayError, headers::has_token};

/// Bounds on one head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Start line and header section, in bytes.
    pub bytes: usize,
    /// Header fields; never more than 256.
    pub fields: usize,
    /// The request target, in bytes.
    pub target: usize,
}

/// The head of a request, and what it says about the message and the connection.
#[derive(Debug)]
pub struct RequestHead {
    pub parts: request::Parts,
    pub body: BodyLength,
    /// The client wants to go on with this connection (RFC 9112, 9.3).
    pub keep_alive: bool,
    /// The client waits for `100 (Continue)` before it sends the body (RFC 9110, 10.1.1).
    pub expect_continue: bool,
}

/// The head of a response, and what it says about the message and the connection.
#[derive(Debug)]
pub struct ResponseHead {
    pub parts: response::Parts,
    pub body: BodyLength,
    pub keep_alive: bool,
}

/// Why a head was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the message is malformed: {0}")]
    Malformed(&'static str),
    #[error("the head has more than {0} bytes")]
    TooLarge(usize),
    #[error("the head has more than {0} fields")]
    TooManyFields(usize),
    #[error("the request target has more than {0} bytes")]
    TargetTooLong(usize),
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    #[error("the transfer coding is not `chunked`")]
    TransferCoding,
}

impl HeadError {
    /// The status a client is answered with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) | Self::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong(_) => StatusCode::URI_TOO_LONG,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

impl From<HeadError> for GatewayError {
    fn from(error: HeadError) -> Self {
        Self::downstream(error.status(), "the request was refused before it was read").source(error)
    }
}

/// Takes one request head off the front of `buffer`; `None` while it is not whole. On an error `buffer` is as it was.
///
/// Empty lines before the request line are skipped (RFC 9112, 2.2). Refused, beyond what is not HTTP:
/// `Transfer-Encoding` beside `Content-Length` or in HTTP/1.0, differing lengths, codings other than
/// `chunked`, a target with a fragment or with bytes a URI cannot hold, a line that ends without CR.
pub fn decode_request(buffer: &mut BytesMut, limits: HeadLimits) -> Result<Option<RequestHead>, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let status = httparse::ParserConfig::default().parse_request_with_uninit_headers(
        &mut parsed,
        buffer,
        &mut fields[..limits.fields.min(MAX_FIELDS)],
    );
    let length = match status {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return incomplete_request(buffer, limits),
        Err(httparse::Error::Version) if !names_a_version(buffer) => {
            return Err(HeadError::Malformed("white space in the request target"));
        }
        Err(error) => return Err(syntax(error, limits)),
    };
    if length > limits.bytes {
        return Err(HeadError::TooLarge(limits.bytes));
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::Malformed("no request line"));
    };
    if target.len() > limits.target {
        return Err(HeadError::TargetTooLong(limits.target));
    }
    if target.as_bytes().contains(&b'#') {
        return Err(HeadError::Malformed("a fragment in the request target"));
    }
    refuse_bare_line_feeds(&buffer[..length])?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed("not a method"))?;
    let target = Range::of(target.as_bytes(), buffer);
    let mut ranges = Ranges::new();
    note(&mut ranges, parsed.headers, buffer);
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };

    let head = buffer.split_to(length).freeze();
    read_request(method, target, version, &ranges, &head).map(Some).inspect_err(|_| {
        // Left as it was, so that it can be told what was refused.
        let mut whole = BytesMut::from(&head[..]);
        whole.extend_from_slice(buffer);
        *buffer = whole;
    })
}

fn read_request(
    method: Method,
    target: Range,
    version: Version,
    ranges: &Ranges,
    head: &Bytes,
) -> Result<RequestHead, HeadError> {
    let target = Uri::from_maybe_shared(target.slice(head))
        .map_err(|_| HeadError::Malformed("the request target is not a URI"))?;
    let headers = headers(ranges, head)?;

    let framing = Framing::read(&headers)?;
    let body = match (framing.chunked, framing.length) {
        (true, Some(_)) => return Err(HeadError::Malformed("Transfer-Encoding and Content-Length together")),
        (true, None) if version == Version::HTTP_10 => {
            return Err(HeadError::Malformed("Transfer-Encoding in an HTTP/1.0 request"));
        }
        (true, None) => BodyLength::Chunked,
        (false, Some(length)) => BodyLength::Fixed(length),
        (false, None) => BodyLength::Fixed(0),
    };
    let keep_alive = keep_alive(version, &headers);
    let expect_continue = version == Version::HTTP_11
        && headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));

    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = method;
    parts.uri = target;
    parts.version = version;
    parts.headers = headers;
    Ok(RequestHead { parts, body, keep_alive, expect_continue })
}

/// Takes one response head off the front of `buffer`; `None` while it is not whole.
///
/// `method` is the request's: it decides whether there is a body (RFC 9112, 6.3). An interim head
/// (1xx) comes out as any other, with an empty body; the caller reads on. `Transfer-Encoding` beside
/// `Content-Length` is an error, as there is no telling which one the peer meant.
/// So is a line that ends without CR: it may have come out of a value that was not meant to have lines.
pub fn decode_response(
    buffer: &mut BytesMut,
    limits: HeadLimits,
    method: &Method,
) -> Result<Option<ResponseHead>, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        buffer,
        &mut fields[..limits.fields.min(MAX_FIELDS)],
    );
    let length = match status {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() > limits.bytes => return Err(HeadError::TooLarge(limits.bytes)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(syntax(error, limits)),
    };
    if length > limits.bytes {
        return Err(HeadError::TooLarge(limits.bytes));
    }
    refuse_bare_line_feeds(&buffer[..length])?;
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Malformed("no status line"));
    };
    let status = StatusCode::from_u16(code).map_err(|_| HeadError::Malformed("not a status code"))?;
    let mut ranges = Ranges::new();
    note(&mut ranges, parsed.headers, buffer);
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };

    let head = buffer.split_to(length).freeze();
    let headers = headers(&ranges, &head)?;

    let framing = Framing::read(&headers)?;
    let bodiless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || method == Method::HEAD;
    let body = match (framing.chunked, framing.length) {
        (true, Some(_)) => return Err(HeadError::Malformed("Transfer-Encoding and Content-Length together")),
        // What follows is the other protocol's, to the end.
        _ if status == StatusCode::SWITCHING_PROTOCOLS => BodyLength::UntilClose,
        _ if bodiless => BodyLength::Fixed(0),
        (true, None) => BodyLength::Chunked,
        (false, Some(length)) => BodyLength::Fixed(length),
        (false, None) => BodyLength::UntilClose,
    };
    // An endpoint that announces a body where there is none may send it all the same: to the next request.
    let announced = bodiless && (framing.chunked || framing.length.is_some_and(|length| length > 0));
    let keep_alive = body != BodyLength::UntilClose && !announced && keep_alive(version, &headers);

    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    parts.version = version;
    parts.headers = headers;
    Ok(Some(ResponseHead { parts, body, keep_alive }))
}

/// What an unfinished head allows to say already: nothing, or that it is too long.
///
/// By the target and not by the line that it is in: a head that is taken whole is waited for however it is cut.
fn incomplete_request(buffer: &BytesMut, limits: HeadLimits) -> Result<Option<RequestHead>, HeadError> {
    if buffer.len() <= limits.target {
        return Ok(None);
    }
    let mut words = buffer.trim_ascii_start().split(u8::is_ascii_whitespace);
    if words.nth(1).is_some_and(|target| target.len() > limits.target) {
        return Err(HeadError::TargetTooLong(limits.target));
    }
    if buffer.len() > limits.bytes { Err(HeadError::TooLarge(limits.bytes)) } else { Ok(None) }
}

/// Whether it is a version of HTTP that comes third in the request line.
fn names_a_version(buffer: &[u8]) -> bool {
    let line = buffer.trim_ascii_start();
    line.split(|byte| *byte == b' ').nth(2).is_some_and(|third| third.starts_with(b"HTTP/"))
}

/// A recipient may accept a bare LF as a line end (RFC 9112, 2.2); one that does reads other lines
/// than one that does not, so it is refused.
fn refuse_bare_line_feeds(head: &[u8]) -> Result<(), HeadError> {
    let bare = head.iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || head[at - 1] != b'\r'));
    if bare { Err(HeadError::Malformed("a line that does not end in CR LF")) } else { Ok(()) }
}

fn syntax(error: httparse::Error, limits: HeadLimits) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyFields(limits.fields.min(MAX_FIELDS)),
        httparse::Error::Version => HeadError::Version,
        httparse::Error::HeaderName => HeadError::Malformed("a header name"),
        httparse::Error::HeaderValue => HeadError::Malformed("a header value"),
        httparse::Error::NewLine => HeadError::Malformed("a line end"),
        httparse::Error::Status => HeadError::Malformed("the status"),
        httparse::Error::Token => HeadError::Malformed("the start line"),
    }
}

/// What `Content-Length` and `Transfer-Encoding` say.
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    fn read(headers: &HeaderMap) -> Result<Self, HeadError> {
        let mut length = None;
        for value in headers.get_all(header::CONTENT_LENGTH) {
            let this = digits(value.as_bytes()).ok_or(HeadError::Malformed("Content-Length is not a number"))?;
            if length.is_some_and(|earlier| earlier != this) {
                return Err(HeadError::Malformed("two different Content-Length"));
            }
            length = Some(this);
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let chunked = match (codings.next(), codings.next()) {
            (None, _) => false,
            (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
            _ => return Err(HeadError::TransferCoding),
        };
        Ok(Self { length, chunked })
    }
}

/// `1*DIGIT` (RFC 9110, 8.6): no sign, no list, no overflow.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        byte.is_ascii_digit().then_some(())?;
        number.checked_mul(10)?.checked_add(u64::from(byte - b'0'))
    })
}

fn keep_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |option: &str| has_token(headers, &header::CONNECTION, option);
    if version == Version::HTTP_11 { !says("close") } else { says("keep-alive") && !says("close") }
}

/// A piece of the buffer, kept while the buffer is taken apart. A head is never longer than 4 GiB.
#[derive(Clone, Copy)]
struct Range {
    start: u32,
    end: u32,
}

impl Range {
    /// `part` lies inside `whole`, as httparse copies nothing.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        let position = |at: usize| u32::try_from(at).expect("the limits on a head are below 4 GiB");
        Self { start: position(start), end: position(start + part.len()) }
    }

    fn slice(self, head: &Bytes) -> Bytes {
        head.slice(self.start as usize..self.end as usize)
    }
}

/// Where the names and values of a head are; filled where it stands, as it is too large to be passed around.
type Ranges = ArrayVec<(Range, Range), MAX_FIELDS>;

fn note(ranges: &mut Ranges, parsed: &[httparse::Header<'_>], buffer: &[u8]) {
    for header in parsed {
        ranges.push((Range::of(header.name.as_bytes(), buffer), Range::of(header.value, buffer)));
    }
}

fn headers(ranges: &Ranges, head: &Bytes) -> Result<HeaderMap, HeadError> {
    let mut headers = HeaderMap::with_capacity(ranges.len() + ADDED);
    for (name, value) in ranges {
        let name = HeaderName::from_bytes(&head[name.start as usize..name.end as usize])
            .map_err(|_| HeadError::Malformed("a header name"))?;
        let value =
            HeaderValue::from_maybe_shared(value.slice(head)).map_err(|_| HeadError::Malformed("a header value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Fields that are added on the way: room that is there from the beginning need not be made.
const ADDED: usize = 6;
/// The most fields one head can have, whatever the limit says: they are indexed on the stack.
const MAX_FIELDS: usize = 256;
