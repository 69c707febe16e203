//! One look at a page of an application, beside the requests of clients: no place is taken, no connection kept.

use std::{io, time::Duration};

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    uwsgi::{self, Environment},
    wire::RESPONSE_LIMITS,
};
use crate::{
    config::{HealthPlan, Protocol, UpstreamPlan},
    h1::{self, BodyDecoder, Decoded, encode},
    http::path::Path,
    upstream::{Endpoint, Finding, UpstreamStream},
};

/// Asks `endpoint` for `target`, a path with or without a query, as for the site `host`.
pub async fn probe(endpoint: &Endpoint, protocol: Protocol, target: &str, host: &str) -> Finding {
    let asked = async { ask(UpstreamStream::connect(&endpoint.address).await?, protocol, target, host).await };
    let Ok(asked) = timeout(LONGEST, asked).await else { return Finding::Silent };
    match asked.ok().and_then(|answer| status(&answer)) {
        Some(StatusCode::OK) => Finding::Ready,
        Some(status) if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE => {
            Finding::Failing(status)
        }
        Some(status) => Finding::NotYet(status),
        // Nobody listens; or it took the connection and closed it, as one does that is being started or stopped.
        None => Finding::Refused,
    }
}

/// What a look at the health page of an endpoint finds.
#[derive(Debug)]
pub enum Look {
    Well,
    /// It can be connected to, and this is what is wrong.
    Failing(String),
    /// It can be connected to, and nothing came in this time.
    Silent(Duration),
    Unreachable(io::Error),
}

/// Asks `endpoint` for its health page, `target` as the application sees it, as for the site `host`.
pub async fn look(endpoint: &Endpoint, upstream: &UpstreamPlan, target: &str, host: &str) -> Look {
    let plan = &upstream.health;
    let connecting = timeout(upstream.connect_timeout.min(plan.timeout), UpstreamStream::connect(&endpoint.address));
    let stream = match connecting.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Look::Unreachable(error),
        Err(elapsed) => return Look::Unreachable(elapsed.into()),
    };
    match timeout(plan.timeout, ask(stream, upstream.protocol, target, host)).await {
        Err(_) => Look::Silent(plan.timeout),
        Ok(Err(error)) => Look::Failing(format!("no answer: {error}")),
        Ok(Ok(answer)) => verdict(&answer, plan),
    }
}

fn verdict(answer: &[u8], plan: &HealthPlan) -> Look {
    match status(answer) {
        None => Look::Failing("the answer is not HTTP".to_owned()),
        Some(status) if !plan.status.contains(&status.as_u16().into()) => {
            Look::Failing(format!("the answer is {}", status.as_u16()))
        }
        Some(_) => match &plan.body {
            Some(text) if !holds(answer, text) => {
                Look::Failing("the answer does not hold the text of `health.body`".to_owned())
            }
            _ => Look::Well,
        },
    }
}

/// Whether the body of an answer has `text` in it, however it is framed.
fn holds(answer: &[u8], text: &str) -> bool {
    let mut left = BytesMut::from(answer);
    let Ok(Some(head)) = h1::decode_response(&mut left, RESPONSE_LIMITS, &Method::GET) else { return false };
    let mut decoder = BodyDecoder::new(head.body);
    let mut body = Vec::new();
    while let Ok(Decoded::Data(data)) = decoder.decode(&mut left) {
        body.extend_from_slice(&data);
    }
    text.is_empty() || body.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Sends the request and reads the answer.
async fn ask(mut stream: UpstreamStream, protocol: Protocol, target: &str, host: &str) -> io::Result<Vec<u8>> {
    stream.write_all(&request(protocol, target, host)).await?;
    // To its end, or the application finds a connection broken off and says so in its log.
    let mut answer = Vec::with_capacity(4096);
    match stream.take(MOST_READ).read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error),
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
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
            let path = target.split_once('?').map_or(target, |(path, _)| path);
            let path_info = Path::read(path).map(|path| path.decoded_merged().into_owned()).unwrap_or_default();
            // It has two headers.
            uwsgi::encode(&mut bytes, &Environment::question(target, &path_info, host, &headers)).ok();
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
    fn what_is_well_has_the_status_and_holds_the_text_however_it_is_framed() {
        let plan = |body: Option<&str>| HealthPlan {
            interval: LONGEST,
            timeout: LONGEST,
            status: vec![200, 204],
            body: body.map(str::to_owned),
            failures: 1,
            successes: 1,
        };
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n it\r\n5\r\n is w\r\n3\r\nell\r\n0\r\n\r\n";
        for (answer, body, problem) in [
            (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], None, None),
            (b"HTTP/1.0 200 OK\r\n\r\nit is well", Some("well"), None),
            (chunked, Some("is well"), None),
            (chunked, Some("chunked"), Some("the answer does not hold the text of `health.body`")),
            (b"HTTP/1.1 503 No\r\n\r\nwell", Some("well"), Some("the answer is 503")),
            (b"SSH-2.0", None, Some("the answer is not HTTP")),
        ] {
            let found = match verdict(answer, &plan(body)) {
                Look::Well => None,
                Look::Failing(problem) => Some(problem),
                Look::Silent(time) => panic!("nothing within {time:?}"),
                Look::Unreachable(error) => panic!("{error}"),
            };
            assert_eq!(found.as_deref(), problem, "{}", String::from_utf8_lossy(answer));
        }
    }

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
