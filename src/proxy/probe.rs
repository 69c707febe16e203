//! One look at a page of an application, beside the requests of clients: no place is taken, no connection kept.

use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::uwsgi::{self, Environment};
use crate::{
    config::Protocol,
    h1::encode,
    http::path::Path,
    upstream::{Endpoint, Finding, UpstreamStream},
};

/// Asks `endpoint` for `target`, a path with or without a query, as for the site `host`.
pub async fn probe(endpoint: &Endpoint, protocol: Protocol, target: &str, host: &str) -> Finding {
    timeout(LONGEST, ask(endpoint, protocol, target, host)).await.unwrap_or(Finding::Silent)
}

async fn ask(endpoint: &Endpoint, protocol: Protocol, target: &str, host: &str) -> Finding {
    let Ok(mut stream) = UpstreamStream::connect(&endpoint.address).await else { return Finding::Refused };
    let request = request(protocol, target, host);
    if stream.write_all(&request).await.is_err() {
        return Finding::Refused;
    }
    // To its end, or the application finds a connection broken off and says so in its log.
    let mut answer = Vec::with_capacity(4096);
    if stream.take(MOST_READ).read_to_end(&mut answer).await.is_err() && answer.is_empty() {
        return Finding::Refused;
    }
    match status(&answer) {
        Some(StatusCode::OK) => Finding::Ready,
        Some(status) if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE => {
            Finding::Failing(status)
        }
        Some(status) => Finding::NotYet(status),
        // It took the connection and closed it, as one does that is being started or stopped.
        None => Finding::Refused,
    }
}

fn request(protocol: Protocol, target: &str, host: &str) -> BytesMut {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static("localhost")));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("vestibule"));
    let mut bytes = BytesMut::new();
    match protocol {
        Protocol::Http => {
            encode::request_head(&mut bytes, &Method::GET, target, &headers, encode::Framing::Unsaid, Some("close"));
        }
        Protocol::Uwsgi => {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let path_info = Path::read(path).map(|path| path.decoded_merged().into_owned()).unwrap_or_default();
            let environment = Environment {
                method: &Method::GET,
                version: Version::HTTP_11,
                target,
                query,
                path_info: &path_info,
                script_name: "",
                https: false,
                client: None,
                server_name: host,
                server_port: 80,
                content_length: None,
                headers: &headers,
            };
            // It has two headers.
            uwsgi::encode(&mut bytes, &environment).ok();
        }
    }
    bytes
}

/// The status of an HTTP/1 response.
fn status(answer: &[u8]) -> Option<StatusCode> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let digits = rest.get(2..5).filter(|_| rest.get(1) == Some(&b' '))?;
    StatusCode::from_bytes(digits).ok()
}

const LONGEST: Duration = Duration::from_secs(5);
const MOST_READ: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_what_is_http_only() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], Some(200)),
            (b"HTTP/1.0 400 \r\n", Some(400)),
            (b"HTTP/2 200", None),
            (b"HTTP/1.1 20", None),
            (b"HTTP/1.1200 OK", None),
            (b"", None),
        ] {
            assert_eq!(status(answer).map(|status| status.as_u16()), expected, "{answer:?}");
        }
    }
}
