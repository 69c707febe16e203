//! The way to a CA: https to one directory, bounded in time and size.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::time::timeout;

use super::flight::Authority;
use crate::tls::Roots;

/// Speaks https, and notes what a CA says about when to come again.
#[derive(Clone)]
pub(super) struct Https {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    retry_after: Arc<Mutex<Option<SystemTime>>>,
}

impl Https {
    pub(super) fn new(roots: &Roots) -> Result<Self, rustls::Error> {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(roots.client_config()?).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector);
        Ok(Self { client, retry_after: Arc::default() })
    }

    /// What the last answer that was none said about when to come again (RFC 8555, 6.6).
    pub(super) fn retry_after(&self) -> Option<SystemTime> {
        *self.retry_after.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the CA says of itself at `directory`, and what its clock says.
    pub(super) async fn authority(&self, directory: &str) -> Result<Authority, Error> {
        let request = Request::get(directory).body(BodyWrapper::default())?;
        let mut answer = self.request(request).await?;
        let body = answer.body.into_bytes().await.map_err(Error::Other)?;
        Ok(Authority::read(&answer.parts.headers, &body, SystemTime::now()))
    }

    async fn exchange(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        *self.retry_after.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_or_else(|never| match never {}, http_body_util::Collected::to_bytes);
        let answer = self.client.request(Request::from_parts(parts, Full::new(body))).await;
        let (mut parts, body) = answer.map_err(|error| Error::Other(Box::new(error)))?.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(Error::Other)?.to_bytes();
        // The library adds whatever is said to the time, and a number that is too large would be the end of us.
        let pause = pause_of(&parts.headers, SystemTime::now());
        match pause {
            Some(pause) => parts.headers.insert(header::RETRY_AFTER, pause.as_secs().into()),
            None => parts.headers.remove(header::RETRY_AFTER),
        };
        if !parts.status.is_success() {
            let at = pause.and_then(|pause| SystemTime::now().checked_add(pause));
            *self.retry_after.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = at;
            let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            if !kind.starts_with("application/problem+json") {
                // A page for people, of a proxy before the CA.
                return Err(Error::Other(format!("it answers {}", parts.status).into()));
            }
        }
        Ok(BytesResponse::from(http::Response::from_parts(parts, Full::new(body))))
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        let exchange: BoxFuture<'static, _> = Box::pin(async move {
            let late = || Error::Other(format!("no answer within {} seconds", PATIENCE.as_secs()).into());
            timeout(PATIENCE, this.exchange(request)).await.map_err(|_| late())?
        });
        exchange
    }
}

/// What an answer says about when to come again (RFC 9110, 10.2.3), a week at most.
fn pause_of(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let said = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match said.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) if !said.is_empty() && said.bytes().all(|byte| byte.is_ascii_digit()) => LONGEST_PAUSE,
        Err(_) => httpdate::parse_http_date(said).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(pause.min(LONGEST_PAUSE))
}

/// For one request and its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A connection to a CA is kept for as long as an order asks every few seconds.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes of one answer; a directory or a chain has some kilobytes.
const LONGEST_ANSWER: usize = 1 << 20;
/// Whatever a CA says, it is asked again after a week.
const LONGEST_PAUSE: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_again_is_never_later_than_in_a_week() {
        let now = SystemTime::now();
        let pause = |said: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, said.parse().unwrap());
            pause_of(&headers, now).map(|pause| pause.as_secs())
        };
        assert_eq!(pause("120"), Some(120));
        assert_eq!(pause("18446744073709551615"), Some(7 * 86_400));
        assert_eq!(pause("99999999999999999999999999"), Some(7 * 86_400));
        assert_eq!(pause("Fri, 31 Dec 9999 23:59:59 GMT"), Some(7 * 86_400));
        assert_eq!(pause("Thu, 01 Jan 1970 00:00:01 GMT"), Some(0));
        assert_eq!(["soon", "-5", ""].map(pause), [None, None, None]);
    }
}
