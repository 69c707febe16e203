//! What can be made out of a request that was refused: for its log line, and for the form of its answer.

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

/// Whatever of a refused head is legible by itself. Nothing here decides where anything goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Glimpse {
    pub method: Option<Method>,
    pub target: Option<Uri>,
    pub version: Option<Version>,
    /// Only `Accept`.
    pub headers: HeaderMap,
}

impl Glimpse {
    /// Looks at the beginning of `bytes`, which need not be HTTP.
    pub fn of(bytes: &[u8]) -> Self {
        let mut lines = bytes[..bytes.len().min(LOOKED_AT)].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let mut words = lines.find(|line| !line.is_empty()).unwrap_or_default().split(|byte| *byte == b' ');
        let method = words.next().and_then(|word| Method::from_bytes(word).ok());
        let target = words.next().and_then(|word| Uri::try_from(word).ok());
        let version = words.next().and_then(|word| match word {
            b"HTTP/1.1" => Some(Version::HTTP_11),
            b"HTTP/1.0" => Some(Version::HTTP_10),
            _ => None,
        });
        let mut headers = HeaderMap::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            if line[..colon].eq_ignore_ascii_case(b"accept")
                && let Ok(value) = HeaderValue::from_bytes(line[colon + 1..].trim_ascii())
            {
                headers.append(header::ACCEPT, value);
            }
        }
        Self { method, target, version, headers }
    }
}

/// Bytes that are looked at.
const LOOKED_AT: usize = 64 * 1024;
