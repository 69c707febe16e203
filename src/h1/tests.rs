use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};
use proptest::prelude::*;

use super::{BodyDecoder, BodyLength, Decoded, Glimpse, HeadError, HeadLimits, decode_request, decode_response};

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 20, target: 1024 };

fn request(text: &str) -> Result<Option<super::RequestHead>, HeadError> {
    decode_request(&mut BytesMut::from(text), LIMITS)
}

#[test]
fn a_request_head_is_taken_off_and_the_rest_left() {
    let mut buffer = BytesMut::from("\r\nPOST /a%20b?c=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET");

    let head = decode_request(&mut buffer, LIMITS).unwrap().unwrap();

    assert_eq!(head.parts.method, Method::POST);
    assert_eq!(head.parts.uri.path_and_query().unwrap(), "/a%20b?c=1");
    assert_eq!(head.body, BodyLength::Fixed(3));
    assert!(head.keep_alive);
    assert_eq!(&buffer[..], b"abcGET");
}

/// Every message whose end, or whose lines, two readers could see in different places.
#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let malformed = [
        ("both lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (
            "both lengths, the other way",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        ),
        ("two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n"),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n"),
        ("a signed length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n"),
        ("an empty length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n"),
        ("a length beyond 64 bits", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\n"),
        ("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("obs-fold", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n"),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n"),
        ("a bare CR in a value", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rc\r\n\r\n"),
        ("a bare LF", "GET / HTTP/1.1\nHost: x\r\n\r\n"),
        ("a bare LF at the end of a field", "GET / HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n"),
        ("NUL in a value", "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n\r\n"),
        ("no name", "GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n"),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("a fragment", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ];
    for (what, text) in malformed {
        let refused = request(text);
        assert!(matches!(refused, Err(HeadError::Malformed(_))), "{what}: {refused:?}");
    }
}

#[test]
fn other_codings_than_chunked_are_not_implemented() {
    for codings in ["gzip, chunked", "chunked, chunked", "xchunked", "identity"] {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {codings}\r\n\r\n");
        assert_eq!(request(&text).unwrap_err().status(), StatusCode::NOT_IMPLEMENTED, "{codings}");
    }
    let twice = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(request(twice).unwrap_err(), HeadError::TransferCoding);
}

#[test]
fn each_limit_has_its_status() {
    let long = "a".repeat(5000);
    let cases = [
        (format!("GET /{long}"), StatusCode::URI_TOO_LONG),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(2000)), StatusCode::URI_TOO_LONG),
        (format!("GET / HTTP/1.1\r\nX: {long}"), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(21)), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        ("GET / HTTP/3.0\r\n\r\n".to_owned(), StatusCode::HTTP_VERSION_NOT_SUPPORTED),
    ];
    for (text, status) in cases {
        assert_eq!(request(&text).unwrap_err().status(), status, "{}", &text[..20]);
    }
}

#[test]
fn what_is_within_the_limits_is_waited_for_wherever_it_is_cut() {
    let head = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(LIMITS.target - 1));
    for cut in 0..head.len() {
        assert!(matches!(request(&head[..cut]), Ok(None)), "cut at {cut}");
    }
    assert!(request(&head).unwrap().is_some());

    let mut decoder = BodyDecoder::new(BodyLength::Chunked);
    let mut buffer = BytesMut::from(&b"1;"[..]);
    buffer.resize(super::body::MAX_LINE, b'a');
    assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::NeedMore));
    buffer.extend_from_slice(b"\r");
    assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::NeedMore));
    buffer.extend_from_slice(b"\nb");
    assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::Data(Bytes::from_static(b"b"))));
}

#[test]
fn connections_persist_as_their_version_has_it() {
    let cases = [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: close\r\n", false),
        ("HTTP/1.1", "Connection: upgrade, CLOSE\r\n", false),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
    ];
    for (version, connection, expected) in cases {
        let head = request(&format!("GET / {version}\r\n{connection}\r\n")).unwrap().unwrap();
        assert_eq!(head.keep_alive, expected, "{version} {connection}");
    }
}

#[test]
fn a_response_ends_where_its_request_and_status_say() {
    let head = "Content-Length: 5\r\n\r\n";
    let cases = [
        (format!("HTTP/1.1 200 OK\r\n{head}"), Method::GET, BodyLength::Fixed(5)),
        (format!("HTTP/1.1 200 OK\r\n{head}"), Method::HEAD, BodyLength::Fixed(0)),
        (format!("HTTP/1.1 304 Not Modified\r\n{head}"), Method::GET, BodyLength::Fixed(0)),
        (format!("HTTP/1.1 204 No Content\r\n{head}"), Method::GET, BodyLength::Fixed(0)),
        ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), Method::GET, BodyLength::UntilClose),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), Method::GET, BodyLength::Chunked),
    ];
    for (text, method, expected) in cases {
        let head = decode_response(&mut BytesMut::from(&text[..]), LIMITS, &method).unwrap().unwrap();
        assert_eq!(head.body, expected, "{method} {text}");
    }
}

#[test]
fn a_response_that_could_end_in_two_places_is_refused() {
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    let refused = decode_response(&mut BytesMut::from(both), LIMITS, &Method::GET);

    assert!(matches!(refused, Err(HeadError::Malformed(_))), "{refused:?}");
}

#[test]
fn a_response_line_without_its_cr_is_refused() {
    for text in ["HTTP/1.1 200 OK\n\n", "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\n\r\n"] {
        let refused = decode_response(&mut BytesMut::from(text), LIMITS, &Method::GET);

        assert!(matches!(refused, Err(HeadError::Malformed(_))), "{text:?}: {refused:?}");
    }
}

#[test]
fn a_response_of_http_1_0_closes_unless_it_says_otherwise() {
    let mut text = BytesMut::from("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n");
    let head = decode_response(&mut text, LIMITS, &Method::GET).unwrap().unwrap();

    assert_eq!((head.parts.version, head.keep_alive), (Version::HTTP_10, false));
}

#[test]
fn malformed_chunks_are_refused() {
    let cases = [
        ("no size", "\r\nabc\r\n"),
        ("not hexadecimal", "g\r\n"),
        ("a prefix", "0x3\r\nabc\r\n"),
        ("a sign", "-3\r\nabc\r\n"),
        ("a space before the size", " 3\r\nabc\r\n"),
        ("too many digits", "0000000000000003\r\nabc\r\n"),
        ("a bare LF", "3\nabc\r\n"),
        ("longer than its size", "3\r\nabcd\r\n"),
        ("a bare LF in the trailers", "0\r\nA: b\n\r\n"),
        ("a bare CR in an extension", "3;a=\rb\r\nabc\r\n"),
    ];
    for (what, text) in cases {
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut buffer = BytesMut::from(text);
        let refused = loop {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::Data(_)) => {}
                other => break other,
            }
        };
        assert!(refused.is_err(), "{what}: {refused:?}");
    }
}

#[test]
fn extensions_and_trailers_are_read_over_within_bounds() {
    let mut decoder = BodyDecoder::new(BodyLength::Chunked);
    let mut buffer = BytesMut::from("3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\nNEXT");

    assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::Data(Bytes::from_static(b"abc"))));
    assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::End));
    assert_eq!(&buffer[..], b"NEXT");

    let mut endless = BytesMut::from(&b"0\r\n"[..]);
    endless.extend_from_slice(&b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000));
    assert!(BodyDecoder::new(BodyLength::Chunked).decode(&mut endless).is_err());
}

#[test]
fn a_body_that_is_cut_off_has_not_ended() {
    for length in [BodyLength::Fixed(5), BodyLength::Chunked] {
        let mut decoder = BodyDecoder::new(length);
        let mut buffer = BytesMut::from("2\r\n");
        while let Ok(Decoded::Data(_)) = decoder.decode(&mut buffer) {}
        assert!(decoder.end_of_stream().is_err(), "{length:?}");
    }
    assert!(BodyDecoder::new(BodyLength::UntilClose).end_of_stream().is_ok());
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        drop(decode_request(&mut BytesMut::from(&bytes[..]), LIMITS));
        drop(decode_response(&mut BytesMut::from(&bytes[..]), LIMITS, &Method::GET));
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Decoded::Data(_)) = decoder.decode(&mut buffer) {}
    }

    #[test]
    fn a_chunked_body_reads_the_same_however_it_is_cut(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
        cut in 1..50_usize,
    ) {
        let mut wire = BytesMut::new();
        for chunk in &chunks {
            super::encode::chunk_size(&mut wire, chunk.len());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(super::encode::CHUNK_END);
        }
        wire.extend_from_slice(super::encode::LAST_CHUNK);

        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(cut) {
            buffer.extend_from_slice(piece);
            while let Decoded::Data(data) = decoder.decode(&mut buffer).unwrap() {
                read.extend_from_slice(&data);
            }
        }
        prop_assert_eq!(read, chunks.concat());
        prop_assert!(decoder.is_done());
    }

    #[test]
    fn what_is_written_reads_back(
        fields in proptest::collection::btree_map("x-[a-z]{1,10}", "[!-~]{1,40}", 0..10),
        length in any::<u64>(),
    ) {
        let mut headers = http::HeaderMap::new();
        for (name, value) in &fields {
            headers.insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let mut wire = BytesMut::new();
        super::encode::request_head(&mut wire, &Method::PUT, "/a?b", &headers, super::encode::Framing::Length(length), None);

        let head = decode_request(&mut wire, LIMITS).unwrap().unwrap();

        prop_assert_eq!(head.body, BodyLength::Fixed(length));
        prop_assert_eq!(head.parts.uri.to_string(), "/a?b");
        for (name, value) in &fields {
            prop_assert_eq!(head.parts.headers[name].as_bytes(), value.as_bytes());
        }
    }
}

#[test]
fn a_refused_request_is_left_as_it_was_and_shows_what_it_asked_for() {
    let text =
        "POST /api/x?y HTTP/1.1\r\nAccept: application/json\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nbody";
    let mut buffer = BytesMut::from(text);
    decode_request(&mut buffer, LIMITS).unwrap_err();

    let glimpse = Glimpse::of(&buffer);

    assert_eq!(&buffer[..], text.as_bytes());
    assert_eq!((glimpse.method, glimpse.target), (Some(Method::POST), Some("/api/x?y".parse().unwrap())));
    assert_eq!(glimpse.headers["accept"], "application/json");
}

proptest! {
    #[test]
    fn no_bytes_make_a_glimpse_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(Glimpse::of(&bytes));
    }
}
