//! Messages of HTTP/1.1.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, request};

use super::forwarded::{PROXY, peer, trusted};
use crate::{
    files::take_offload,
    h1::{
        BodyDecoder, BodyError, BodyLength, Decoded, Glimpse, HeadError, HeadLimits, RequestHead, decode_request,
        decode_response,
        encode::{self, Framing, Persistence},
    },
    http::{authority::Authority, forwarded::Origin, headers, path::Path},
    service::origin_form,
};

/// A request is taken whole or left, read as its lines say, and goes on as one request that says the same.
pub fn request(bytes: &[u8]) -> bool {
    drop(Glimpse::of(bytes));
    let mut buffer = BytesMut::from(bytes);
    let outcome = decode_request(&mut buffer, LIMITS);
    let Ok(Some(head)) = outcome else {
        assert_eq!(&buffer[..], bytes, "what was not taken is left as it was");
        assert!(outcome.is_err() || bytes.len() <= LIMITS.bytes, "no more than the limit is waited for");
        return false;
    };
    let (read, rest) = bytes.split_at(bytes.len() - buffer.len());
    assert_eq!(&buffer[..], rest, "what follows the head is left");
    assert_waited_for(read, |buffer| decode_request(buffer, LIMITS).map(|head| head.is_some()));
    assert_has_the_fields(&head.parts.headers, read);
    assert!(head.parts.headers.len() <= LIMITS.fields, "more fields than the limit");
    let Said { lengths, codings } = Said::in_headers(&head.parts.headers);
    match head.body {
        BodyLength::Chunked => {
            assert_eq!(
                (lengths.len(), codings, head.parts.version),
                (0, 1, Version::HTTP_11),
                "chunks, and chunks alone"
            );
        }
        BodyLength::Fixed(length) => {
            assert_eq!(codings, 0, "a length, and no coding");
            assert!(lengths.iter().all(|said| *said == length), "{lengths:?} were read as {length}");
            assert!(length == 0 || !lengths.is_empty(), "a length that nobody has said");
        }
        BodyLength::UntilClose => panic!("a request that ends with the connection"),
    }
    assert_same_however_cut(head.body, rest);
    assert_goes_on_as_one(head);
    true
}

fn assert_goes_on_as_one(head: RequestHead) {
    let Some(sent) = Forwardable::of(head.parts, PROXY) else { return };
    let framing = match head.body {
        BodyLength::Fixed(0) => Framing::Unsaid,
        BodyLength::Fixed(length) => Framing::Length(length),
        _ => Framing::Chunked,
    };
    let mut wire = BytesMut::new();
    encode::request_head(&mut wire, &sent.parts.method, &sent.target, &sent.parts.headers, framing, None);

    let again = decode_request(&mut wire, WIDE).expect("what we write can be read").expect("what we write is whole");

    assert!(wire.is_empty(), "one request became more than one");
    assert_eq!((again.parts.method, again.body), (sent.parts.method, head.body));
    assert_eq!(again.parts.uri.to_string(), sent.target);
    assert_eq!(without_framing(again.parts.headers), without_framing(sent.parts.headers));
}

/// An answer has one end, is read as its lines say, and goes on as one answer that says the same.
pub fn response(bytes: &[u8]) -> bool {
    let mut buffer = BytesMut::from(bytes);
    let outcome = decode_response(&mut buffer, LIMITS, &Method::GET);
    let Ok(Some(head)) = outcome else {
        assert!(outcome.is_err() || bytes.len() <= LIMITS.bytes, "no more than the limit is waited for");
        return false;
    };
    let (read, rest) = bytes.split_at(bytes.len() - buffer.len());
    assert_eq!(&buffer[..], rest, "what follows the head is left");
    assert_waited_for(read, |buffer| decode_response(buffer, LIMITS, &Method::GET).map(|head| head.is_some()));
    assert_has_the_fields(&head.parts.headers, read);
    let Said { lengths, codings } = Said::in_headers(&head.parts.headers);
    assert!(lengths.is_empty() || codings == 0, "an answer with two ends");
    let status = head.parts.status;
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    let bodiless = status.is_informational() || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    match head.body {
        BodyLength::Chunked => assert_eq!(codings, 1),
        BodyLength::Fixed(0) if bodiless => assert!(!switching),
        BodyLength::Fixed(length) => assert!(!lengths.is_empty() && lengths.iter().all(|said| *said == length)),
        BodyLength::UntilClose => assert!(!head.keep_alive && (switching || (lengths.is_empty() && codings == 0))),
    }
    let to_head = decode_response(&mut BytesMut::from(read), LIMITS, &Method::HEAD);
    let to_head = to_head.expect("the method changes no syntax").expect("it is as long");
    assert!(switching || to_head.body == BodyLength::Fixed(0), "an answer to HEAD has no body");
    assert_same_however_cut(head.body, rest);

    let mut kept = head.parts.headers;
    headers::strip_response(&mut kept);
    drop(take_offload(&mut kept, "/xaccel/"));
    let mut wire = BytesMut::new();
    encode::response_head(&mut wire, status, &kept, Framing::Unsaid, Persistence::Stays);

    let again = decode_response(&mut wire, WIDE, &Method::GET).expect("what we write can be read");
    let mut again = again.expect("what we write is whole");

    assert!(wire.is_empty(), "one answer became more than one");
    if !kept.contains_key(header::DATE) {
        again.parts.headers.remove(header::DATE);
    }
    assert_eq!(again.parts.status, status);
    assert_eq!(without_framing(again.parts.headers), without_framing(kept));
    true
}

/// A request as it goes on, by the steps of [`crate::service::serve`] that have to do with what it says.
pub(super) struct Forwardable {
    pub(super) parts: request::Parts,
    pub(super) target: String,
    pub(super) path_info: Vec<u8>,
    pub(super) authority: Authority,
    pub(super) origin: Origin,
}

impl Forwardable {
    /// `None`: it is refused.
    pub(super) fn of(mut parts: request::Parts, address: &str) -> Option<Self> {
        headers::check_framing(&parts.headers).ok()?;
        let authority = Authority::read(&parts.headers, &parts.uri, parts.version).ok()?;
        let target = origin_form(&parts.method, &parts.uri).ok()?.to_owned();
        let path_info = Path::read(parts.uri.path()).ok()?.decoded_merged().into_owned();
        let origin = Origin::of(&peer(address), true, 443, &authority, &parts.headers, &trusted());
        headers::strip_hop_by_hop(&mut parts.headers);
        headers::sanitize_request(&mut parts.headers);
        origin.apply(&mut parts.headers);
        authority.set_host(&mut parts.headers);
        Some(Self { parts, target, path_info, authority, origin })
    }
}

/// A head that is taken is one to its last byte, and is waited for when less of it has come.
fn assert_waited_for(head: &[u8], is_whole: impl Fn(&mut BytesMut) -> Result<bool, HeadError>) {
    assert!(head.len() <= LIMITS.bytes && head.ends_with(b"\r\n\r\n"), "{}", head.escape_ascii());
    let line_ends = head.iter().enumerate().filter(|(_, byte)| matches!(byte, b'\r' | b'\n')).map(|(at, _)| at);
    for cut in [1, head.len() / 2, head.len() - 1].into_iter().chain(line_ends) {
        let whole = is_whole(&mut BytesMut::from(&head[..cut]));
        assert_eq!(whole, Ok(false), "{} cut at {cut}", head.escape_ascii());
    }
}

/// `headers` are the lines of `head`, in their order, and nothing else.
fn assert_has_the_fields(headers: &HeaderMap, head: &[u8]) {
    let lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let fields = lines.skip_while(|line| line.is_empty()).skip(1).take_while(|line| !line.is_empty());
    let mut expected = HeaderMap::new();
    for field in fields {
        let colon = field.iter().position(|byte| *byte == b':').expect("a field has a colon");
        let name = HeaderName::from_bytes(&field[..colon]).expect("a name has letters of names");
        expected.append(name, HeaderValue::from_bytes(field[colon + 1..].trim_ascii()).expect("a value is one"));
    }
    assert_eq!(*headers, expected);
}

/// What headers say of where the body ends.
struct Said {
    lengths: Vec<u64>,
    codings: usize,
}

impl Said {
    fn in_headers(headers: &HeaderMap) -> Self {
        let lengths = headers.get_all(header::CONTENT_LENGTH).iter().map(|value| {
            let digits = value.to_str().expect("a length is ASCII");
            assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits} is no length");
            digits.parse().expect("a length has 64 bits")
        });
        Self { lengths: lengths.collect(), codings: headers.get_all(header::TRANSFER_ENCODING).iter().count() }
    }
}

fn assert_same_however_cut(length: BodyLength, bytes: &[u8]) {
    let whole = body(length, bytes, bytes.len().max(1));
    for cut in [1, 7] {
        assert_eq!(body(length, bytes, cut), whole, "{length:?}, {} in pieces of {cut}", bytes.escape_ascii());
    }
}

/// What is in the body, and how many bytes it takes; `None`: it goes on.
fn body(length: BodyLength, bytes: &[u8], cut: usize) -> (Vec<u8>, Result<Option<usize>, BodyError>) {
    let mut decoder = BodyDecoder::new(length);
    let (mut buffer, mut data, mut fed) = (BytesMut::new(), Vec::new(), 0);
    for piece in bytes.chunks(cut).chain([&[][..]]) {
        buffer.extend_from_slice(piece);
        fed += piece.len();
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::Data(more)) => data.extend_from_slice(&more),
                Ok(Decoded::NeedMore) => break,
                Ok(Decoded::End) => return (data, Ok(Some(fed - buffer.len()))),
                Err(error) => return (data, Err(error)),
            }
        }
    }
    let ended = decoder.end_of_stream().is_ok();
    assert_eq!(ended, length == BodyLength::UntilClose, "only the end of a connection ends what goes on");
    (data, Ok(None))
}

fn without_framing(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    headers
}

/// Bounds that short messages meet.
pub(super) const LIMITS: HeadLimits = HeadLimits { bytes: 2048, fields: 24, target: 256 };
/// Bounds that are not met by what we add.
const WIDE: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 256, target: 2048 };
