//! Objects in S3 or Azure: ours, sealed, or those of others as they are.

use std::{fmt, pin::Pin, time::Duration};

use futures_util::StreamExt;
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect},
    rt::TokioExecutor,
};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
    UpdateVersion,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpService,
    },
    path::Path,
};
use tokio::time::timeout;

use super::{
    Access, Condition, LONGEST, MOST_KEYS, StorageProblem, Version,
    seal::{OVERHEAD, Seal},
};
use crate::{
    config::SharedService,
    telemetry,
    tls::{Roots, SecretBytes},
};

pub(super) struct Objects {
    store: Box<dyn ObjectStore>,
    prefix: String,
    /// `None`: they are others'.
    seal: Option<Seal>,
}

impl Objects {
    pub(super) fn new(access: &Access, roots: &Roots) -> Result<Self, StorageProblem> {
        let https = Https::new(roots)?;
        let plan = access.store();
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES, retry_timeout: RETRYING };
        let store: Box<dyn ObjectStore> = match plan.service {
            SharedService::S3 => {
                let mut builder = AmazonS3Builder::new();
                for (name, value) in access.settings() {
                    builder = builder.with_config(name.parse()?, value);
                }
                let builder = builder
                    .with_bucket_name(&plan.bucket)
                    // One object at a time is removed: a form that all servers of the kind have.
                    .with_disable_bulk_delete(true)
                    .with_http_connector(https)
                    .with_retry(retry);
                Box::new(builder.build()?)
            }
            SharedService::Azure => {
                let mut builder = MicrosoftAzureBuilder::new();
                for (name, value) in access.settings() {
                    builder = builder.with_config(name.parse()?, value);
                }
                let builder = builder.with_container_name(&plan.bucket).with_http_connector(https).with_retry(retry);
                Box::new(builder.build()?)
            }
        };
        let seal = access.sealing_key().map(|key| Seal::new(key).ok_or(StorageProblem::Sealed)).transpose()?;
        Ok(Self { store, prefix: plan.prefix.clone(), seal })
    }

    pub(super) async fn look(&self, key: &str) -> Result<Option<(SecretBytes, Version)>, StorageProblem> {
        let got = in_time(async {
            let got = self.store.get_opts(&self.path(key), GetOptions::default()).await?;
            if got.meta.size > (LONGEST + OVERHEAD) as u64 {
                return Err(StorageProblem::TooLarge);
            }
            let version = Version { tag: got.meta.e_tag.clone(), number: got.meta.version.clone() };
            Ok((got.bytes().await?, version))
        });
        match got.await {
            Ok((sealed, version)) => {
                let content = match &self.seal {
                    Some(seal) => seal.open(key, &sealed).ok_or(StorageProblem::Sealed)?,
                    None => SecretBytes::new(sealed.to_vec()),
                };
                Ok(Some((content, version)))
            }
            Err(StorageProblem::Objects(object_store::Error::NotFound { .. })) => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    pub(super) async fn put(
        &self,
        key: &str,
        content: &SecretBytes,
        condition: Condition,
    ) -> Result<Option<Version>, StorageProblem> {
        let mode = match condition {
            Condition::None => PutMode::Overwrite,
            Condition::Absent => PutMode::Create,
            Condition::Is(Version { tag, number }) => PutMode::Update(UpdateVersion { e_tag: tag, version: number }),
        };
        let sealed = match &self.seal {
            Some(seal) => seal.seal(key, content).ok_or(StorageProblem::Sealed)?,
            None => content.expose().to_vec(),
        };
        let path = self.path(key);
        let put = self.store.put_opts(&path, sealed.into(), PutOptions::from(mode));
        match in_time(async { Ok(put.await?) }).await {
            Ok(put) => Ok(Some(Version { tag: put.e_tag, number: put.version })),
            Err(StorageProblem::Objects(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. }
                // Of a version that is no more.
                | object_store::Error::NotFound { .. },
            )) => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    pub(super) async fn remove(&self, key: &str) -> Result<(), StorageProblem> {
        let path = self.path(key);
        match in_time(async { Ok(self.store.delete(&path).await?) }).await {
            Err(StorageProblem::Objects(object_store::Error::NotFound { .. })) => Ok(()),
            removed => removed,
        }
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<String>, StorageProblem> {
        let path = self.path(prefix);
        let listed = in_time(async {
            let listed: Vec<_> = self.store.list(Some(&path)).take(MOST_KEYS).collect().await;
            Ok(listed.into_iter().collect::<Result<Vec<_>, _>>()?)
        });
        let ours = |location: &str| {
            let key = location.strip_prefix(&self.prefix)?;
            Some(if self.prefix.is_empty() { key } else { key.strip_prefix('/')? }.to_owned())
        };
        Ok(listed.await?.iter().filter_map(|object| ours(object.location.as_ref())).collect())
    }

    fn path(&self, key: &str) -> Path {
        Path::from(format!("{}/{key}", self.prefix))
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, StorageProblem>>) -> Result<T, StorageProblem> {
    timeout(PATIENCE, work).await.unwrap_or(Err(StorageProblem::Late))
}

/// What speaks with the store: the same client as with authorities. Plain HTTP where the operator names such an endpoint,
/// and for the credentials of a machine in a cloud, which it is given no other way.
#[derive(Clone)]
struct Https(Client<HttpsConnector<connect::HttpConnector>, HttpRequestBody>);

impl Https {
    fn new(roots: &Roots) -> Result<Self, StorageProblem> {
        let mut http = connect::HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECTING));
        let config = roots.client_config().map_err(std::io::Error::other)?;
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(http);
        Ok(Self(Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector)))
    }

    async fn exchange(self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.0.request(request).await.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
            HttpError::new(kind, NoAnswer(telemetry::chain(&error)))
        })?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await;
        let body =
            body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, NoAnswer(telemetry::chain(&*error))))?;
        Ok(HttpResponse::from_parts(parts, body.to_bytes().into()))
    }
}

impl HttpConnector for Https {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Https {
    fn call<'a, 'exchange>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'exchange>>
    where
        'a: 'exchange,
        Self: 'exchange,
    {
        Box::pin(self.clone().exchange(request))
    }
}

impl fmt::Debug for Https {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Https")
    }
}

/// Why a request came to nothing, with its causes: what it is put into shows none of them.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoAnswer(String);

/// For one operation, with all that is tried again in it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// For one connection; a machine outside of a cloud waits so long for credentials that nobody gives it.
const CONNECTING: Duration = Duration::from_secs(5);
const RETRIES: usize = 3;
const RETRYING: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(30);
/// Bytes of one answer: a page of a listing has a thousand keys of up to a kilobyte, and what is said of each.
const LONGEST_ANSWER: usize = 4 << 20;
