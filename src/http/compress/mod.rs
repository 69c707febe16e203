//! Compression of responses: whether, in which coding, and what it changes in the head.
//!
//! A compressor holds at most about 2 MiB (brotli; zstd 1.3 MiB, gzip 0.4 MiB) and works in steps of 64 KiB.

mod encoder;

use std::cmp::Reverse;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
        ETAG,
    },
    response::Parts,
};

use self::encoder::EncodedBody;
use super::{
    Body,
    headers::{has_token, vary_by},
    weight::thousandths,
};

/// A content coding we can apply (RFC 9110, 8.4.1; RFC 7932; RFC 8878).
///
/// In the order of preference where the client has none: zstd takes the least time for its size, brotli (quality 4)
/// makes text smaller than gzip does, gzip everybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coding {
    Zstd,
    Brotli,
    Gzip,
}

impl Coding {
    const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];

    /// As in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    fn is(self, name: &str) -> bool {
        name.eq_ignore_ascii_case(self.name()) || (self == Self::Gzip && name.eq_ignore_ascii_case("x-gzip"))
    }
}

/// Compresses `body` if the client takes it, the type gains by it, and nothing in the response speaks against it.
///
/// Left alone: what has a `Content-Encoding`, ranges, 204 and 304, `no-transform`, event streams, and what is known to
/// be shorter than [`MINIMUM`]. What is compressed loses `Content-Length` and `Accept-Ranges`, and a strong `ETag`
/// becomes weak: the bytes differ, the content does not (RFC 9110, 8.8.1). A type that could have been compressed gets
/// `Vary: Accept-Encoding` either way. The answer to HEAD has the headers of the answer to GET.
pub fn apply(request: &HeaderMap, method: &Method, response: &mut Parts, body: Body) -> Body {
    let headers = &mut response.headers;
    if !headers.get(CONTENT_TYPE).is_some_and(is_compressible)
        || headers.contains_key(CONTENT_ENCODING)
        || has_token(headers, &CACHE_CONTROL, "no-transform")
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || response.status.is_informational()
    {
        return body;
    }
    vary_by(headers, "Accept-Encoding");
    let length = match content_length(headers) {
        // Nothing is to come, and nothing says that something would have come.
        None if method == Method::HEAD => None,
        None => body.length(),
        known => known,
    };
    if response.status == StatusCode::PARTIAL_CONTENT
        || headers.contains_key(CONTENT_RANGE)
        || length.is_some_and(|length| length < MINIMUM)
    {
        return body;
    }
    let Some(coding) = negotiate(request) else { return body };
    let encoded = if method == Method::HEAD {
        body
    } else {
        match EncodedBody::new(coding, body, length) {
            Ok(encoded) => Body::stream(encoded),
            // Out of memory for the compressor: the body as it is will do.
            Err(body) => return body,
        }
    };
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    if let Some(etag) = headers.get_mut(ETAG)
        && etag.as_bytes().starts_with(b"\"")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat())
    {
        *etag = weak;
    }
    encoded
}

/// In bytes; below it a compressed body is hardly smaller, and fits the same packet.
pub const MINIMUM: u64 = 256;

/// The coding the client likes best; `None` where that is none (RFC 9110, 12.5.3).
///
/// Weights decide, our own preference only among equals. A client that gives `identity` more weight than any coding of
/// ours gets the body as it is; so does one that refuses everything, since an answer is worth more than a 415.
pub fn negotiate(request: &HeaderMap) -> Option<Coding> {
    let mut weights = [None; Coding::ALL.len()];
    let (mut any, mut identity) = (None, None);
    for (name, weight) in request.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).flat_map(list)
    {
        match Coding::ALL.iter().position(|coding| coding.is(name)) {
            Some(index) => weights[index] = Some(weight),
            None if name == "*" => any = Some(weight),
            None if name.eq_ignore_ascii_case("identity") => identity = Some(weight),
            None => {}
        }
    }
    let weighed = Coding::ALL.into_iter().zip(weights).map(|(coding, weight)| (coding, weight.or(any).unwrap_or(0)));
    let (coding, weight) = weighed.max_by_key(|&(coding, weight)| (weight, Reverse(coding)))?;
    (weight > 0 && weight >= identity.unwrap_or(0)).then_some(coding)
}

/// The elements of an `Accept-Encoding`, with weights in thousandths. An element whose weight cannot be read is left
/// out.
fn list(value: &str) -> impl Iterator<Item = (&str, u16)> {
    value.split(',').filter_map(|element| {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let weight = match parts.next() {
            None => 1000,
            Some(parameter) => {
                let (key, value) = parameter.split_once('=')?;
                if !key.trim_end().eq_ignore_ascii_case("q") {
                    return None;
                }
                thousandths(value.trim_start())?
            }
        };
        Some((name, weight))
    })
}

/// Types that become notably smaller. Not `text/event-stream`: it lives by each event arriving at once.
fn is_compressible(content_type: &HeaderValue) -> bool {
    let Ok(text) = content_type.to_str() else { return false };
    let media_type = text.split(';').next().unwrap_or(text).trim().to_ascii_lowercase();
    let Some((kind, subtype)) = media_type.split_once('/') else { return false };
    match kind {
        "text" => subtype != "event-stream",
        "application" => {
            matches!(subtype, "json" | "javascript" | "x-javascript" | "ecmascript" | "xml" | "wasm" | "manifest")
                || subtype.ends_with("+json")
                || subtype.ends_with("+xml")
        }
        "image" => matches!(subtype, "svg+xml" | "vnd.microsoft.icon" | "x-icon" | "bmp"),
        "font" => matches!(subtype, "ttf" | "otf"),
        _ => subtype.ends_with("+json") || subtype.ends_with("+xml"),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use bytes::Bytes;
    use http::{Response, header::VARY};
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "text/html; charset=utf-8";

    fn accept(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap())])
    }

    fn head(fields: &[(&str, &str)]) -> Parts {
        let response =
            fields.iter().fold(Response::builder(), |response, (name, value)| response.header(*name, *value));
        response.body(()).unwrap().into_parts().0
    }

    fn body() -> Body {
        Body::from(Bytes::from("some text ".repeat(100)))
    }

    #[test]
    fn the_heaviest_coding_is_chosen_and_ours_among_equals() {
        use Coding::*;
        let table = [
            ("", None),
            ("gzip", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("GZIP", Some(Gzip)),
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, deflate, br", Some(Brotli)),
            ("gzip;q=1.0, br;q=0.5, zstd;q=0.1", Some(Gzip)),
            ("gzip;q=0.5, br ; q=0.501", Some(Brotli)),
            ("gzip;q=0", None),
            ("gzip;q=0.000, br;q=0", None),
            ("*", Some(Zstd)),
            ("*;q=0", None),
            ("zstd;q=0, *", Some(Brotli)),
            ("gzip, *;q=0", Some(Gzip)),
            ("identity", None),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.5, gzip;q=0.5", Some(Gzip)),
            ("identity;q=0, gzip;q=0.1", Some(Gzip)),
            ("identity;q=0", None),
            ("deflate, compress", None),
            ("gzip;q=2", None),
            ("gzip;q=0.1234", None),
            ("gzip;q=-1", None),
            ("gzip;level=9", None),
            (",,gzip,", Some(Gzip)),
        ];

        for (value, expected) in table {
            assert_eq!(negotiate(&accept(value)), expected, "{value:?}");
        }
        assert_eq!(negotiate(&HeaderMap::new()), None);
    }

    #[test]
    fn types_that_gain_are_compressed_and_no_others() {
        let gain = [
            "text/html",
            "text/plain; charset=utf-8",
            "TEXT/CSS",
            "application/json",
            "application/javascript",
            "application/x-javascript",
            "text/javascript",
            "application/xml",
            "application/xhtml+xml",
            "image/svg+xml",
            "application/wasm",
            "application/manifest+json",
            "image/vnd.microsoft.icon",
            "application/problem+json",
        ];
        let none = [
            "text/event-stream",
            "image/png",
            "application/pdf",
            "application/zip",
            "multipart/byteranges",
            "video/mp4",
            "application/octet-stream",
            "font/woff2",
            "nonsense",
            "",
        ];

        for text in gain {
            assert!(is_compressible(&HeaderValue::from_static(text)), "{text}");
        }
        for text in none {
            assert!(!is_compressible(&HeaderValue::from_static(text)), "{text}");
        }
    }

    #[test]
    fn a_compressed_response_says_so_and_no_more_than_is_true() {
        let mut head = head(&[
            ("content-type", TEXT),
            ("content-length", "1000"),
            ("accept-ranges", "bytes"),
            ("etag", r#""a""#),
            ("vary", "Cookie"),
        ]);

        let body = apply(&accept("gzip"), &Method::GET, &mut head, body());

        assert_eq!(body.length(), None);
        assert_eq!(head.headers[CONTENT_ENCODING], "gzip");
        assert_eq!(head.headers[ETAG], r#"W/"a""#);
        assert_eq!(head.headers.get_all(VARY).iter().collect::<Vec<_>>(), ["Cookie", "Accept-Encoding"]);
        assert!(!head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(ACCEPT_RANGES));
    }

    #[test]
    fn what_must_not_be_compressed_is_left_as_it_is() {
        let table: &[(u16, &[(&str, &str)])] = &[
            (200, &[("content-type", TEXT), ("content-encoding", "br")]),
            (200, &[("content-type", TEXT), ("content-encoding", "identity")]),
            (200, &[("content-type", TEXT), ("cache-control", "private, No-Transform")]),
            (206, &[("content-type", TEXT), ("vary", "Accept-Encoding")]),
            (200, &[("content-type", TEXT), ("vary", "*"), ("content-range", "bytes 0-999/2000")]),
            (204, &[("content-type", TEXT)]),
            (304, &[("content-type", TEXT), ("etag", r#""a""#)]),
            (200, &[("content-type", TEXT), ("vary", "*"), ("content-length", "255")]),
            (200, &[("content-type", "image/png")]),
            (200, &[]),
        ];

        for (status, fields) in table {
            let mut head = head(fields);
            head.status = StatusCode::from_u16(*status).unwrap();
            let before = head.headers.clone();

            let after = apply(&accept("gzip"), &Method::GET, &mut head, body());

            assert_eq!(head.headers, before, "{status} {fields:?}");
            assert!(matches!(after, Body::Full(_)), "{status} {fields:?}");
        }
    }

    #[test]
    fn what_could_be_compressed_varies_also_where_it_is_not() {
        for (request, text) in [("identity", body()), ("gzip", Body::from(Bytes::from("short")))] {
            let mut head = head(&[("content-type", TEXT), ("vary", "origin")]);

            let after = apply(&accept(request), &Method::GET, &mut head, text);

            assert!(matches!(after, Body::Full(_)));
            assert_eq!(head.headers.get_all(VARY).iter().collect::<Vec<_>>(), ["origin", "Accept-Encoding"]);
            assert!(!head.headers.contains_key(CONTENT_ENCODING));
        }
    }

    #[test]
    fn head_has_the_headers_of_get() {
        for fields in [&[("content-type", TEXT), ("content-length", "1000")][..], &[("content-type", TEXT)]] {
            let (mut get, mut other) = (head(fields), head(fields));

            drop(apply(&accept("br"), &Method::GET, &mut get, body()));
            let rest = apply(&accept("br"), &Method::HEAD, &mut other, Body::Empty);

            assert_eq!(get.headers, other.headers);
            assert!(matches!(rest, Body::Empty));
        }
    }

    #[tokio::test]
    async fn each_coding_is_what_its_name_says() {
        let plain = body().collect().await.unwrap().to_bytes();
        for coding in Coding::ALL {
            let mut head = head(&[("content-type", TEXT)]);

            let compressed = apply(&accept(coding.name()), &Method::GET, &mut head, body());

            let compressed = compressed.collect().await.unwrap().to_bytes();
            assert_eq!(head.headers[CONTENT_ENCODING], coding.name());
            assert!(compressed.len() < plain.len() / 4, "{coding:?}: {}", compressed.len());
            assert_eq!(decode(coding, &compressed).unwrap(), plain, "{coding:?}");
        }
    }

    pub(super) fn decode(coding: Coding, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain)?,
            Coding::Brotli => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain)?,
            Coding::Zstd => zstd::stream::read::Decoder::new(bytes)?.read_to_end(&mut plain)?,
        };
        Ok(plain)
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_header_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            negotiate(&HeaderMap::from_iter([(ACCEPT_ENCODING, value.clone())]));
            for name in [CONTENT_TYPE, VARY, CACHE_CONTROL, ETAG, CONTENT_LENGTH] {
                let mut head = head(&[("content-type", TEXT)]);
                head.headers.insert(name, value.clone());
                drop(apply(&accept("gzip"), &Method::GET, &mut head, body()));
            }
        }
    }
}
