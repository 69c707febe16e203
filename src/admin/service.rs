//! One request to the admin endpoint, and its answer.

use std::{any::Any, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;
use tower::{ServiceBuilder, util::BoxCloneSyncService};
use tower_http::{BoxError, body::UnsyncBoxBody, catch_panic::CatchPanicLayer, timeout::TimeoutLayer};
use tracing::error;

use super::{AdminState, Order, Outcome};
use crate::metrics;

pub(super) type Service = BoxCloneSyncService<Request<Incoming>, Response<UnsyncBoxBody<Bytes, BoxError>>, Infallible>;

/// Answers from `state`, unless `refusal` has another answer: within a time limit, and also where `state` panics.
pub(super) fn service(
    state: Arc<dyn AdminState>,
    refusal: impl Fn(&Request<Incoming>) -> Option<Response<Full<Bytes>>> + Clone + Send + Sync + 'static,
) -> Service {
    let answers = ServiceBuilder::new()
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, TIMEOUT))
        .service_fn(move |request: Request<Incoming>| {
            let (state, refused) = (Arc::clone(&state), refusal(&request));
            async move {
                Ok::<_, Infallible>(match refused {
                    Some(refused) => refused,
                    None => answer(&request, state.as_ref()).await,
                })
            }
        });
    BoxCloneSyncService::new(answers)
}

async fn answer(request: &Request<Incoming>, state: &dyn AdminState) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let (allowed, order) = match (path, Order::read(path, query)) {
        ("/live" | "/ready" | "/status" | "/metrics" | "/config", _) => ("GET, HEAD", None),
        (_, Ok(None)) if path.starts_with(RESTART) => ("POST", Some(Ok(None))),
        (_, Ok(None)) => return problem(StatusCode::NOT_FOUND, THERE_IS),
        (_, order) => ("POST", Some(order)),
    };
    let is_allowed = match *request.method() {
        Method::GET | Method::HEAD => order.is_none(),
        Method::POST => order.is_some(),
        _ => false,
    };
    if !is_allowed {
        let mut refused = problem(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} takes {allowed}"));
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return refused;
    }
    // The body limit: no question here has one, so nothing is ever read.
    if !request.body().is_end_stream() {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "a request here has no body");
    }
    match order {
        Some(Ok(Some(order))) => match state.order(order) {
            Some(outcome) => return outcome_of(outcome).await,
            None => return problem(StatusCode::NOT_IMPLEMENTED, "this one takes no orders"),
        },
        Some(Ok(None)) => match state.restart(path.strip_prefix(RESTART).unwrap_or_default()) {
            Some(outcome) => return outcome_of(outcome).await,
            None => {
                return problem(
                    StatusCode::NOT_FOUND,
                    "there is no such backend, and no upstream names such a program (upstreams.*.supervisor)",
                );
            }
        },
        Some(Err(wrong)) => return problem(StatusCode::BAD_REQUEST, &wrong),
        None => {}
    }
    match path {
        "/live" => json(StatusCode::OK, &json!({ "live": true })),
        "/ready" => match state.ready() {
            Ok(()) => json(StatusCode::OK, &json!({ "ready": true })),
            Err(reason) => json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": reason })),
        },
        "/status" => json(StatusCode::OK, &state.status()),
        "/config" => json(StatusCode::OK, &state.config()),
        _ => response(StatusCode::OK, metrics::CONTENT_TYPE, state.metrics().into()),
    }
}

async fn outcome_of(outcome: oneshot::Receiver<Outcome>) -> Response<Full<Bytes>> {
    match outcome.await {
        Ok(Ok(done)) => json(StatusCode::OK, &json!({ "done": done })),
        Ok(Err(refused)) => problem(StatusCode::CONFLICT, &refused),
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "vestibule ended before it was done"),
    }
}

const RESTART: &str = "/restart/";
const THERE_IS: &str = "there is GET /live, /ready, /status, /metrics, /config and POST /reload, /rollback, /drain, /upgrade, /reopen, \
     /restart/NAME";

fn panicked(_: Box<dyn Any + Send>) -> Response<Full<Bytes>> {
    // The panic hook has told what and where.
    error!("an admin request panicked");
    problem(StatusCode::INTERNAL_SERVER_ERROR, "vestibule failed to answer; its log says why")
}

pub(super) fn problem(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    json(status, &json!({ "error": error }))
}

fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).expect("what is said here has text keys and no failing parts");
    response(status, "application/json", body.into())
}

fn response(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An upgrade waits for a worker of the new program for less than that.
const TIMEOUT: Duration = Duration::from_secs(120);
