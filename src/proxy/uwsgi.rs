//! The uwsgi protocol: a request as a packet of WSGI variables, followed by its body.
//!
//! A packet is a modifier (0: WSGI), the size of the block in two bytes, another modifier, then names
//! and values, each after its length in two bytes, all little-endian. The answer is an HTTP response,
//! read as any other.

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

/// What a WSGI application is told beside the request headers (PEP 3333).
#[derive(Debug)]
pub struct Environment<'a> {
    pub method: &'a Method,
    pub version: Version,
    /// The request target as it came: `REQUEST_URI`.
    pub target: &'a str,
    pub query: &'a str,
    /// Decoded, slashes merged. With an empty [`Self::script_name`] it is the whole path, which uWSGI takes apart by
    /// its mounts (`manage-script-name`).
    pub path_info: &'a [u8],
    pub script_name: &'a str,
    pub https: bool,
    pub client: Option<IpAddr>,
    /// Whose password we have looked at: `REMOTE_USER`.
    pub user: Option<&'a HeaderValue>,
    pub server_name: &'a str,
    pub server_port: u16,
    pub content_length: Option<u64>,
    pub headers: &'a HeaderMap,
}

impl<'a> Environment<'a> {
    /// What we ask ourselves: a `GET` without a body, of no client, at port 80 of `server_name`.
    pub fn question(target: &'a str, path_info: &'a [u8], server_name: &'a str, headers: &'a HeaderMap) -> Self {
        Self {
            method: &Method::GET,
            version: Version::HTTP_11,
            target,
            query: target.split_once('?').map_or("", |(_, query)| query),
            path_info,
            script_name: "",
            https: false,
            client: None,
            user: None,
            server_name,
            server_port: 80,
            content_length: None,
            headers,
        }
    }
}

/// The block does not fit into [`MAX_BLOCK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request headers take more than {MAX_BLOCK} bytes as WSGI variables")]
pub struct TooLarge;

/// Writes the packet; on an error `out` is as it was.
pub fn encode(out: &mut BytesMut, environment: &Environment<'_>) -> Result<(), TooLarge> {
    let start = out.len();
    out.reserve(1024);
    out.put_slice(&[0; 4]);
    let mut block = Block { out, start, overflow: false };
    block.write(environment);
    let (overflow, size) = (block.overflow, block.out.len() - start - 4);
    let size = u16::try_from(size).ok().filter(|_| !overflow && size <= MAX_BLOCK);
    let Some(size) = size else {
        out.truncate(start);
        return Err(TooLarge);
    };
    out[start + 1..start + 3].copy_from_slice(&size.to_le_bytes());
    Ok(())
}

struct Block<'a> {
    out: &'a mut BytesMut,
    start: usize,
    overflow: bool,
}

impl Block<'_> {
    fn write(&mut self, environment: &Environment<'_>) {
        self.variable(b"REQUEST_METHOD", environment.method.as_str().as_bytes());
        self.variable(b"REQUEST_URI", environment.target.as_bytes());
        self.variable(b"QUERY_STRING", environment.query.as_bytes());
        if !environment.script_name.is_empty() {
            self.variable(b"SCRIPT_NAME", environment.script_name.as_bytes());
        }
        self.variable(b"PATH_INFO", environment.path_info);
        let protocol: &[u8] = match environment.version {
            Version::HTTP_10 => b"HTTP/1.0",
            // uWSGI writes the protocol into its status line; h2 has none.
            _ => b"HTTP/1.1",
        };
        self.variable(b"SERVER_PROTOCOL", protocol);
        if environment.https {
            self.variable(b"REQUEST_SCHEME", b"https");
            self.variable(b"UWSGI_SCHEME", b"https");
            self.variable(b"HTTPS", b"on");
        } else {
            self.variable(b"REQUEST_SCHEME", b"http");
        }
        let mut digits = scratch();
        if let Some(client) = environment.client {
            self.variable(b"REMOTE_ADDR", write_into(&mut digits, client));
        }
        if let Some(user) = environment.user {
            self.variable(b"AUTH_TYPE", b"Basic");
            self.variable(b"REMOTE_USER", user.as_bytes());
        }
        self.variable(b"SERVER_NAME", environment.server_name.as_bytes());
        self.variable(b"SERVER_PORT", write_into(&mut digits, environment.server_port));
        if let Some(value) = environment.headers.get(header::CONTENT_TYPE) {
            self.variable(b"CONTENT_TYPE", value.as_bytes());
        }
        // Empty rather than absent where there is no body: applications do int(environ.get('CONTENT_LENGTH') or 0).
        match environment.content_length {
            Some(length) => self.variable(b"CONTENT_LENGTH", write_into(&mut digits, length)),
            None => self.variable(b"CONTENT_LENGTH", b""),
        }
        for name in environment.headers.keys() {
            if *name != header::CONTENT_TYPE && *name != header::CONTENT_LENGTH {
                self.header(name, environment.headers);
            }
        }
    }

    fn variable(&mut self, name: &[u8], value: &[u8]) {
        if !self.fits(name.len() + value.len()) {
            return;
        }
        self.length(name.len());
        self.out.put_slice(name);
        self.length(value.len());
        self.out.put_slice(value);
    }

    /// `HTTP_NAME`; lines of the same name become one value, as an environment has each key once.
    fn header(&mut self, name: &HeaderName, headers: &HeaderMap) {
        let values = headers.get_all(name);
        let separator: &[u8] = if *name == header::COOKIE { b"; " } else { b", " };
        let length = values.iter().map(|value| value.len() + separator.len()).sum::<usize>() - separator.len();
        let name = name.as_str().as_bytes();
        if !self.fits(name.len() + 5 + length) {
            return;
        }
        self.length(name.len() + 5);
        self.out.put_slice(b"HTTP_");
        self.out.extend(name.iter().map(|byte| if *byte == b'-' { b'_' } else { byte.to_ascii_uppercase() }));
        self.length(length);
        for (number, value) in values.iter().enumerate() {
            if number > 0 {
                self.out.put_slice(separator);
            }
            self.out.put_slice(value.as_bytes());
        }
    }

    fn fits(&mut self, bytes: usize) -> bool {
        let used = self.out.len() - self.start - 4;
        self.overflow |= used + bytes + 4 > MAX_BLOCK;
        !self.overflow
    }

    fn length(&mut self, length: usize) {
        self.out.put_u16_le(u16::try_from(length).expect("`fits` bounds every length by the block's"));
    }
}

/// Room for the longest number or address.
fn scratch() -> arrayvec::ArrayString<48> {
    arrayvec::ArrayString::new()
}

fn write_into(buffer: &mut arrayvec::ArrayString<48>, value: impl std::fmt::Display) -> &[u8] {
    use std::fmt::Write as _;
    buffer.clear();
    write!(buffer, "{value}").expect("48 bytes hold any address and any number");
    buffer.as_bytes()
}

/// Bytes of one block: what docassemble's uWSGI reads (`buffer-size = 32768`).
pub const MAX_BLOCK: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::properties::{packet, variables};

    fn environment<'a>(method: &'a Method, headers: &'a HeaderMap) -> Environment<'a> {
        Environment {
            method,
            version: Version::HTTP_11,
            target: "/da//x%20y?q=1",
            query: "q=1",
            path_info: b"/da/x y",
            script_name: "",
            https: true,
            client: Some([192, 0, 2, 7].into()),
            user: None,
            server_name: "justice.example.com",
            server_port: 443,
            content_length: Some(12),
            headers,
        }
    }

    #[test]
    fn who_the_user_is_comes_from_us_alone() {
        let headers: HeaderMap =
            [(HeaderName::from_static("remote-user"), HeaderValue::from_static("root"))].into_iter().collect();
        let user = HeaderValue::from_static("alice");
        let told = |environment: &Environment<'_>| {
            let mut packet = BytesMut::new();
            encode(&mut packet, environment).unwrap();
            let variables = variables(&packet);
            ["REMOTE_USER", "AUTH_TYPE"].map(|name| variables.get(name.as_bytes()).cloned())
        };

        let known = Environment { user: Some(&user), ..environment(&Method::GET, &headers) };

        assert_eq!(told(&known), [Some(b"alice".to_vec()), Some(b"Basic".to_vec())]);
        assert_eq!(told(&environment(&Method::GET, &headers)), [None, None]);
    }

    #[test]
    fn a_packet_says_what_wsgi_wants_to_know() {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("justice.example.com:443"));
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        headers.append("x-two", HeaderValue::from_static("a"));
        headers.append("x-two", HeaderValue::from_static("b"));
        headers.append("cookie", HeaderValue::from_static("a=1"));
        headers.append("cookie", HeaderValue::from_static("b=2"));
        let mut out = BytesMut::new();

        encode(&mut out, &environment(&Method::POST, &headers)).unwrap();

        let variables = variables(&out);
        let mut said: Vec<_> = variables
            .iter()
            .map(|(name, value)| format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
            .collect();
        said.sort();
        let expected = [
            "CONTENT_LENGTH=12",
            "CONTENT_TYPE=text/plain",
            "HTTPS=on",
            "HTTP_COOKIE=a=1; b=2",
            "HTTP_HOST=justice.example.com:443",
            "HTTP_X_TWO=a, b",
            "PATH_INFO=/da/x y",
            "QUERY_STRING=q=1",
            "REMOTE_ADDR=192.0.2.7",
            "REQUEST_METHOD=POST",
            "REQUEST_SCHEME=https",
            "REQUEST_URI=/da//x%20y?q=1",
            "SERVER_NAME=justice.example.com",
            "SERVER_PORT=443",
            "SERVER_PROTOCOL=HTTP/1.1",
            "UWSGI_SCHEME=https",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_block_that_uwsgi_would_not_read_is_refused_and_leaves_nothing() {
        let mut headers = HeaderMap::new();
        headers.insert("x-long", HeaderValue::from_bytes(&vec![b'a'; MAX_BLOCK]).unwrap());
        let mut out = BytesMut::from(&b"before"[..]);

        assert_eq!(encode(&mut out, &environment(&Method::GET, &headers)), Err(TooLarge));
        assert_eq!(&out[..], b"before");
    }

    proptest! {
        #[test]
        fn every_packet_reads_back(
            fields in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", "[ -~]{0,300}"), 0..60),
            path in "[ -~]{0,200}",
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                headers.append(name, HeaderValue::from_str(value).unwrap());
            }
            packet(&Environment { path_info: path.as_bytes(), ..environment(&Method::GET, &headers) });
        }
    }
}
