//! Which header fields pass: hop-by-hop ones end here, and what could be mistaken for ours never gets in.
//!
//! Who the client is, and the fields that say so, belong to [`super::forwarded`]. An upgrade reads `Upgrade` before
//! [`strip_hop_by_hop`] takes it, and sets its own towards the endpoint.

use std::time::Duration;

use arrayvec::ArrayVec;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::GatewayError;

/// Whether a field that is a list, over all its lines, has `token` in it, in any letter case (RFC 9110, 5.6.1).
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let mut elements = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    elements.any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Says in `headers`, those of an answer, that it depends on this field of the request, too (RFC 9110, 12.5.5).
pub fn vary_by(headers: &mut HeaderMap, field: &'static str) {
    if !has_token(headers, &header::VARY, field) && !has_token(headers, &header::VARY, "*") {
        headers.append(header::VARY, HeaderValue::from_static(field));
    }
}

/// What the one `Authorization` says after `scheme`, which ends with a blank; of several none counts.
pub fn credentials<'h>(headers: &'h HeaderMap, scheme: &[u8]) -> Option<&'h [u8]> {
    let mut lines = headers.get_all(header::AUTHORIZATION).into_iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let (found, said) = line.as_bytes().split_at_checked(scheme.len())?;
    found.eq_ignore_ascii_case(scheme).then(|| said.trim_ascii())
}

/// What `Retry-After` says of `delay`: whole seconds, rounded up, and one at least.
pub fn retry_after(delay: Duration) -> u64 {
    delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0)).max(1)
}

/// Removes the fields that are meant for the next hop alone (RFC 9110, 7.6.1), `Connection` and what it names included.
///
/// `Connection` cannot name a field that must reach the other end, or one that we set: `Connection: X-Real-IP` would
/// otherwise let a client undo what we say of it. `TE` is dropped as a whole: trailers do not reach a WSGI application.
/// Allocates only for names in `Connection` beyond `keep-alive`, `close` and `upgrade`.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !USUAL_OPTIONS.iter().any(|option| token.eq_ignore_ascii_case(option)))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !is_end_to_end(name.as_str()))
        .collect();
    for name in &named {
        headers.remove(name);
    }
    // One pass over those that are there, which are mostly none of these.
    let present: ArrayVec<HeaderName, HOP_BY_HOP> =
        headers.keys().filter(|name| is_hop_by_hop(name.as_str())).cloned().collect();
    for name in &present {
        headers.remove(name);
    }
}

/// Makes the fields of a request fit to be passed on.
///
/// - A name with an underscore goes, whatever it is: WSGI makes one variable of `X_Real_IP` and `X-Real-IP`.
/// - `Proxy` goes: CGI makes `HTTP_PROXY` of it (CVE-2016-5385 and its kin).
/// - `X-Accel-*` and `X-Sendfile*` go: they are what an application says to us.
/// - `Expect` goes: we have answered it by reading the body, and uWSGI never does.
/// - Several `Cookie` lines, as HTTP/2 clients send them, become one (RFC 9113, 8.2.3): uWSGI takes the last, or joins
///   them with a comma.
///
/// Allocates nothing when there is nothing to do.
pub fn sanitize_request(headers: &mut HeaderMap) {
    let refused: Vec<HeaderName> = headers.keys().filter(|name| is_refused(name.as_str())).cloned().collect();
    for name in &refused {
        headers.remove(name);
    }
    join_cookies(headers);
}

/// Makes the fields of an endpoint's answer fit to be passed on.
///
/// Drops what [`strip_hop_by_hop`] drops, and `Server`, which is the product and version of something behind us.
/// `X-Powered-By` stays: an application that sends it chose to.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(header::SERVER);
}

/// Whether it is plain where the body of an HTTP/1 request ends (RFC 9112, 6.3).
///
/// Refuses what two readers could read in two ways: a `Content-Length` next to a `Transfer-Encoding`, several lengths,
/// a length that is not a plain number, a coding that is not `chunked` alone.
pub fn check_framing(headers: &HeaderMap) -> Result<(), FramingError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(coding) = codings.next() {
        if lengths.next().is_some() {
            return Err(FramingError::Both);
        }
        let chunked = coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        return if chunked && codings.next().is_none() { Ok(()) } else { Err(FramingError::Coding) };
    }
    match (lengths.next(), lengths.next()) {
        (Some(_), Some(_)) => Err(FramingError::Lengths),
        (Some(length), None) => {
            let plain = length.as_bytes().iter().all(u8::is_ascii_digit);
            let fits = length.to_str().is_ok_and(|text| text.parse::<u64>().is_ok());
            if plain && fits { Ok(()) } else { Err(FramingError::Lengths) }
        }
        (None, _) => Ok(()),
    }
}

/// Why it is not plain where the body of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("the request has both Content-Length and Transfer-Encoding")]
    Both,
    #[error("Content-Length is not one number")]
    Lengths,
    #[error("Transfer-Encoding is not `chunked`")]
    Coding,
}

impl From<FramingError> for GatewayError {
    fn from(error: FramingError) -> Self {
        let status = match error {
            FramingError::Both | FramingError::Lengths => StatusCode::BAD_REQUEST,
            // RFC 9112, 6.1: a coding that is not understood.
            FramingError::Coding => StatusCode::NOT_IMPLEMENTED,
        };
        Self::downstream(status, "cannot tell where the body of the request ends").source(error)
    }
}

/// The value of the first cookie named `name`, as it came.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let fields = headers.get_all(header::COOKIE).into_iter();
    let mut pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let mut joined = Vec::new();
    for line in headers.get_all(header::COOKIE) {
        let line = line.as_bytes().trim_ascii();
        let line = line.strip_suffix(b";").map_or(line, <[u8]>::trim_ascii_end);
        if !line.is_empty() {
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(line);
        }
    }
    let joined = HeaderValue::from_maybe_shared(Bytes::from(joined))
        .expect("pieces of header values, joined by a semicolon, are a header value");
    headers.insert(header::COOKIE, joined);
}

fn is_refused(name: &str) -> bool {
    matches!(name, "proxy" | "expect")
        || name.contains('_')
        || name.starts_with("x-accel-")
        || name.starts_with("x-sendfile")
}

/// Fields that `Connection` cannot take away, whoever names them.
fn is_end_to_end(name: &str) -> bool {
    const PREFIXES: [&str; 10] = [
        "accept",
        "access-control-",
        "content-",
        "if-",
        "sec-",
        "x-accel-",
        "x-content-",
        "x-forwarded-",
        "x-frame-",
        "x-sendfile",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "age"
                | "allow"
                | "authorization"
                | "cache-control"
                | "cookie"
                | "date"
                | "etag"
                | "expires"
                | "forwarded"
                | "host"
                | "last-modified"
                | "location"
                | "origin"
                | "pragma"
                | "range"
                | "referer"
                | "referrer-policy"
                | "retry-after"
                | "set-cookie"
                | "strict-transport-security"
                | "user-agent"
                | "vary"
                | "www-authenticate"
                | "x-api-key"
                | "x-csrftoken"
                | "x-real-ip"
                | "x-request-id"
                | "x-requested-with"
        )
}

/// What `Connection` says in all but odd messages: no fields, or ones that [`is_hop_by_hop`].
const USUAL_OPTIONS: [&[u8]; 3] = [b"keep-alive", b"close", b"upgrade"];

/// How many [`is_hop_by_hop`] knows.
const HOP_BY_HOP: usize = 11;

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn credentials_are_said_once_and_by_their_scheme() {
        for (lines, expected) in [
            (&[("authorization", "Bearer abc")][..], Some("abc")),
            (&[("authorization", "bearer  abc ")], Some("abc")),
            (&[("authorization", "Bearer")], None),
            (&[("authorization", "Bearerabc")], None),
            (&[("authorization", "Basic abc")], None),
            (&[("authorization", "Bearer abc"), ("authorization", "Bearer def")], None),
            (&[("cookie", "token=abc"), ("x-authorization", "Bearer abc")], None),
        ] {
            let headers = headers(lines);
            assert_eq!(credentials(&headers, b"bearer "), expected.map(str::as_bytes), "{lines:?}");
        }
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let mut given = headers(&[
            ("Connection", "close, X-Hop"),
            ("Connection", " x-other ,, not a name"),
            ("X-Hop", "1"),
            ("X-Other", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authenticate", "Basic"),
            ("Proxy-Authorization", "Basic x"),
            ("Proxy-Authentication-Info", "x"),
            ("TE", "trailers"),
            ("Trailer", "X-Sum"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "x"),
            ("X-Kept", "1"),
        ]);

        strip_hop_by_hop(&mut given);

        assert_eq!(given, headers(&[("X-Kept", "1")]));
    }

    #[test]
    fn connection_cannot_name_what_must_arrive() {
        let kept = [
            "Host",
            "Cookie",
            "Authorization",
            "Content-Length",
            "Content-Type",
            "Origin",
            "Referer",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "X-Real-IP",
            "X-API-Key",
            "Set-Cookie",
            "Location",
            "X-Accel-Redirect",
            "X-Sendfile",
            "Strict-Transport-Security",
            "Sec-WebSocket-Key",
        ];
        for name in kept {
            let mut given = headers(&[("Connection", name), (name, "1")]);
            strip_hop_by_hop(&mut given);
            assert_eq!(given, headers(&[(name, "1")]), "{name}");
        }
    }

    #[test]
    fn what_could_be_mistaken_for_ours_does_not_get_in() {
        for name in [
            "X_Forwarded_Proto",
            "X-Real_IP",
            "_",
            "Content_Length",
            "Proxy",
            "Expect",
            "X-Accel-Redirect",
            "X-Accel-Buffering",
            "X-Sendfile",
            "X-Sendfile-Type",
        ] {
            let mut given = headers(&[(name, "1"), (name, "2"), ("Accept", "*/*")]);
            sanitize_request(&mut given);
            assert_eq!(given, headers(&[("Accept", "*/*")]), "{name}");
        }
    }

    #[test]
    fn what_the_application_reads_gets_in_unchanged() {
        let lines = [
            ("Host", "Example.com:8443"),
            ("Origin", "https://example.com"),
            ("Referer", "https://example.com:8443/da/"),
            ("Cookie", "session=x; secret=y;"),
            ("X-API-Key", "k"),
            ("X-Twilio-Signature", "s"),
            ("X-HTTP-Method-Override", "PUT"),
            ("Accept-Language", "de"),
            ("Range", "bytes=0-2"),
        ];
        let mut given = headers(&lines);

        sanitize_request(&mut given);

        assert_eq!(given, headers(&lines));
    }

    #[test]
    fn several_cookie_lines_become_one() {
        for (lines, expected) in [
            (vec!["a=1", "b=2", "c=3"], "a=1; b=2; c=3"),
            (vec!["a=1;", "b=2; c=3 "], "a=1; b=2; c=3"),
            (vec!["", "a=1", ""], "a=1"),
            (vec!["", ""], ""),
        ] {
            let lines: Vec<_> = lines.into_iter().map(|line| ("Cookie", line)).collect();
            let mut given = headers(&lines);
            sanitize_request(&mut given);
            assert_eq!(given, headers(&[("Cookie", expected)]));
        }
    }

    #[test]
    fn an_answer_loses_its_server_and_keeps_what_the_application_says() {
        let kept = [("X-Powered-By", "docassemble"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Date", "x")];
        let mut given = headers(&kept);
        given.insert("server", HeaderValue::from_static("uWSGI/2.0"));
        given.insert("connection", HeaderValue::from_static("close"));
        given.insert("transfer-encoding", HeaderValue::from_static("chunked"));

        strip_response(&mut given);

        assert_eq!(given, headers(&kept));
    }

    #[test]
    fn a_body_whose_end_is_not_plain_is_refused() {
        use FramingError::{Both, Coding, Lengths};
        type Case = (&'static [(&'static str, &'static str)], Result<(), FramingError>);
        let cases: &[Case] = &[
            (&[], Ok(())),
            (&[("Content-Length", "0")], Ok(())),
            (&[("Content-Length", "18446744073709551615")], Ok(())),
            (&[("Transfer-Encoding", "Chunked")], Ok(())),
            (&[("Content-Length", "5"), ("Transfer-Encoding", "chunked")], Err(Both)),
            (&[("Content-Length", "5"), ("Content-Length", "5")], Err(Lengths)),
            (&[("Content-Length", "5, 5")], Err(Lengths)),
            (&[("Content-Length", "+5")], Err(Lengths)),
            (&[("Content-Length", "-1")], Err(Lengths)),
            (&[("Content-Length", "")], Err(Lengths)),
            (&[("Content-Length", "18446744073709551616")], Err(Lengths)),
            (&[("Transfer-Encoding", "gzip, chunked")], Err(Coding)),
            (&[("Transfer-Encoding", "identity")], Err(Coding)),
            (&[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")], Err(Coding)),
        ];
        for (lines, expected) in cases {
            assert_eq!(check_framing(&headers(lines)), *expected, "{lines:?}");
        }
    }

    fn any_headers() -> impl Strategy<Value = HeaderMap> {
        let name = prop_oneof![
            "[a-z_-]{1,12}",
            "(x[_-]forwarded[_-]for|proxy|expect|cookie|te|upgrade|x-accel-[a-z]|x-sendfile[a-z]?|host|connection)",
        ];
        prop::collection::vec((name, "([a-z]{1,6}[,;_= -]{0,2}){0,4}"), 0..12).prop_map(|lines| {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            headers(&lines)
        })
    }

    proptest! {
        #[test]
        fn after_sanitizing_nothing_refused_is_left_and_one_cookie_line(mut given in any_headers()) {
            let had_cookie = given.contains_key(header::COOKIE);
            sanitize_request(&mut given);

            for name in given.keys() {
                prop_assert!(!name.as_str().contains('_'));
                prop_assert!(!["proxy", "expect"].contains(&name.as_str()));
                prop_assert!(!name.as_str().starts_with("x-accel-") && !name.as_str().starts_with("x-sendfile"));
            }
            prop_assert_eq!(given.get_all(header::COOKIE).iter().count(), usize::from(had_cookie));
        }

        #[test]
        fn after_stripping_no_hop_by_hop_field_is_left_and_the_rest_is_untouched(given in any_headers()) {
            let mut stripped = given.clone();
            strip_hop_by_hop(&mut stripped);

            prop_assert!(stripped.keys().all(|name| !is_hop_by_hop(name.as_str())));
            for name in given.keys().filter(|name| is_end_to_end(name.as_str())) {
                prop_assert!(given.get_all(name).iter().eq(stripped.get_all(name).iter()), "{name} was touched");
            }
        }
    }
}
