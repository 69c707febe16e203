//! The way to a CA: https to one directory, bounded in time and size.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, header};
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
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_or_else(|never| match never {}, http_body_util::Collected::to_bytes);
        let answer = self.client.request(Request::from_parts(parts, Full::new(body))).await;
        let (parts, body) = answer.map_err(|error| Error::Other(Box::new(error)))?.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(Error::Other)?.to_bytes();
        if !parts.status.is_success() {
            let said = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let at = said.and_then(|said| match said.trim().parse() {
                Ok(seconds) => SystemTime::now().checked_add(Duration::from_secs(seconds)),
                Err(_) => httpdate::parse_http_date(said).ok(),
            });
            *self.retry_after.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = at;
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

/// For one request and its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A connection to a CA is kept for as long as an order asks every few seconds.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes of one answer; a directory or a chain has some kilobytes.
const LONGEST_ANSWER: usize = 1 << 20;
