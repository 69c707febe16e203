//! Writing heads and chunks.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime},
};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version, header};

/// How the body that follows a head is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The length is said, by the headers given or by ours.
    Length(u64),
    Chunked,
    /// The body ends with the connection, or there can be none; nothing is said.
    Unsaid,
}

/// Writes the head of a request to an endpoint.
///
/// `headers` carry no framing and no connection options of their own; both are written here. `connection` is the
/// value of the `Connection` field, if there is to be one.
pub fn request_head(
    out: &mut BytesMut,
    method: &Method,
    target: &str,
    headers: &HeaderMap,
    framing: Framing,
    connection: Option<&str>,
) {
    out.reserve(512);
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    fields(out, headers);
    write_framing(out, framing);
    if let Some(options) = connection {
        field(out, "connection", options.as_bytes());
    }
    out.put_slice(b"\r\n");
}

/// What becomes of the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It stays, as is the rule in HTTP/1.1: nothing is said.
    Stays,
    /// It stays, to a client of HTTP/1.0, which has to be told.
    KeepAlive,
    Close,
    /// It becomes a tunnel; the headers say which.
    Upgrade,
}

/// Writes the head of a response to a client; adds `Date` where it is missing (RFC 9110, 6.6.1).
pub fn response_head(
    out: &mut BytesMut,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    persistence: Persistence,
) {
    out.reserve(512);
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or("Status").as_bytes());
    out.put_slice(b"\r\n");
    fields(out, headers);
    if !headers.contains_key(header::DATE) {
        write_date(out);
    }
    write_framing(out, framing);
    match persistence {
        Persistence::Stays => {}
        Persistence::KeepAlive => field(out, "connection", b"keep-alive"),
        Persistence::Close => field(out, "connection", b"close"),
        Persistence::Upgrade => field(out, "connection", b"upgrade"),
    }
    out.put_slice(b"\r\n");
}

/// Writes the line before the data of a chunk; the data is followed by [`CHUNK_END`].
pub fn chunk_size(out: &mut BytesMut, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(DIGITS[length >> (digit * 4) & 15]);
    }
    out.put_slice(b"\r\n");
}

/// What follows the data of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Framing belongs to one hop: it is written by [`write_framing`] and never copied.
fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        if *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING || *name == header::CONNECTION {
            continue;
        }
        field(out, name.as_str(), value.as_bytes());
    }
}

fn field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn write_framing(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::Length(length) => {
            out.put_slice(b"content-length: ");
            let mut digits = [0_u8; 20];
            let mut at = digits.len();
            let mut left = length;
            loop {
                at -= 1;
                digits[at] = b'0' + u8::try_from(left % 10).expect("a digit is below 10");
                left /= 10;
                if left == 0 {
                    break;
                }
            }
            out.put_slice(&digits[at..]);
            out.put_slice(b"\r\n");
        }
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Unsaid => {}
    }
}

/// Formatting a date costs more than the rest of a head, so each thread keeps the line of the second.
fn write_date(out: &mut BytesMut) {
    thread_local! {
        static LINE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    LINE.with_borrow_mut(|(of, line)| {
        if *of != second || line.is_empty() {
            *of = second;
            *line = format!("date: {}\r\n", httpdate::fmt_http_date(now));
        }
        out.put_slice(line.as_bytes());
    });
}

/// Whether a body of unknown length may be sent in chunks to a client of this version.
pub fn can_chunk(version: Version) -> bool {
    version >= Version::HTTP_11
}
