//! A request body, whole before an application thread is taken.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;

use super::pieces::Pieces;
use crate::{
    http::{Body, FileBody, GatewayError},
    splice::{self, Pipe},
    spool::{Spool, SpoolError, SpoolFile},
};

/// A collected body: it can be sent, and sent again.
///
/// Up to `spool.memory` bytes are kept in memory; a longer body is on disk, whole.
#[derive(Debug)]
pub enum Collected {
    Memory { chunks: Vec<Bytes>, length: u64 },
    File(SpoolFile),
}

impl Collected {
    pub const EMPTY: Self = Self::Memory { chunks: Vec::new(), length: 0 };

    pub fn length(&self) -> u64 {
        match self {
            Self::Memory { length, .. } => *length,
            Self::File(file) => file.length(),
        }
    }

    /// The body from its beginning.
    pub fn body(&self) -> Body {
        match self {
            Self::Memory { chunks, .. } => match &chunks[..] {
                [] => Body::Empty,
                [only] => Body::Full(only.clone()),
                several => {
                    let mut whole = Vec::with_capacity(several.iter().map(Bytes::len).sum());
                    for chunk in several {
                        whole.extend_from_slice(chunk);
                    }
                    Body::Full(whole.into())
                }
            },
            Self::File(file) => Body::File(FileBody::new(Arc::clone(file.file()), 0, file.length())),
        }
    }
}

/// Bounds on one request body.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `body_limit` of the route, in bytes.
    pub limit: Option<u64>,
    /// The longest time without a byte.
    pub progress: Duration,
}

/// Reads `body` to its end.
///
/// # Errors
///
/// 413 beyond the limit, 408 when the client stops sending, 503 when the spool is full, and whatever `body` fails with.
pub async fn collect(mut body: Body, bounds: Bounds, spool: &Arc<Spool>) -> Result<Collected, GatewayError> {
    let mut length = 0_u64;
    let mut pieces = Pieces::default();
    let mut file: Option<SpoolFile> = None;
    // What is too long for memory goes from its socket to the disk without being read, while it comes in long pieces.
    let mut passes = body.length().is_some_and(|length| length > spool.memory() as u64);
    while let Some(piece) = next(&mut body, passes, bounds.progress).await {
        let piece = piece?;
        length += piece.length();
        if let Some(limit) = bounds.limit
            && length > limit
        {
            return Err(too_large(limit));
        }
        match piece {
            Next::Read(data) => pieces.push(data),
            Next::Piped(mut pipe) => {
                passes = pipe.held() as u64 >= splice::WORTH_IT;
                let target = match &mut file {
                    Some(file) => file,
                    none => none.insert(spool.file().await.map_err(no_room)?),
                };
                target.append(pieces.take()).await.map_err(no_room)?;
                target.append_from(&mut pipe).await.map_err(no_room)?;
                continue;
            }
        }
        // On disk it goes in pieces worth a system call.
        let threshold = if file.is_some() { PIECE } else { spool.memory() };
        if pieces.length() > threshold {
            let target = match &mut file {
                Some(file) => file,
                none => none.insert(spool.file().await.map_err(no_room)?),
            };
            target.append(pieces.take()).await.map_err(no_room)?;
            passes = body.length().is_some();
        }
    }
    match file {
        None => Ok(Collected::Memory { chunks: pieces.take(), length }),
        Some(mut file) => {
            file.append(pieces.take()).await.map_err(no_room)?;
            Ok(Collected::File(file))
        }
    }
}

/// The refusal of a body beyond the route's limit.
pub fn too_large(limit: u64) -> GatewayError {
    GatewayError::downstream(StatusCode::PAYLOAD_TOO_LARGE, format!("the request body has more than {limit} bytes"))
        .hint(format!("At most {} can be sent at once.", human(limit)))
}

/// `16 MiB`, for a person; rounded down to what has a whole unit.
fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes / 1_048_576),
        _ => format!("{} GiB", bytes / 1_073_741_824),
    }
}

/// What has come of a body.
enum Next {
    Read(Bytes),
    Piped(Pipe),
}

impl Next {
    fn length(&self) -> u64 {
        match self {
            Self::Read(data) => data.len() as u64,
            Self::Piped(pipe) => pipe.held() as u64,
        }
    }
}

async fn next(body: &mut Body, passes: bool, progress: Duration) -> Option<Result<Next, GatewayError>> {
    let next = async {
        if passes {
            // While there is nothing, others have the pipe.
            let piped = poll_fn(|cx| {
                let Some(mut pipe) = Pipe::take() else { return Poll::Ready(None) };
                let moved = ready!(body.poll_relay(cx, &mut pipe));
                Poll::Ready(moved.map(|moved| moved.map(|_| Next::Piped(pipe))))
            });
            if let Some(piped) = piped.await {
                return Some(piped);
            }
        }
        let frame = body.frame().await?;
        Some(frame.map(|frame| Next::Read(frame.into_data().unwrap_or_default())))
    };
    tokio::time::timeout(progress, next).await.unwrap_or_else(|_| Some(Err(too_slow(progress))))
}

/// The refusal of a body that has stopped coming.
pub(super) fn too_slow(progress: Duration) -> GatewayError {
    let message = format!("client too slow: it sent nothing of its body for {progress:?}");
    GatewayError::downstream(StatusCode::REQUEST_TIMEOUT, message)
}

fn no_room(error: SpoolError) -> GatewayError {
    let status = match error {
        SpoolError::Full(_) => StatusCode::SERVICE_UNAVAILABLE,
        SpoolError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    GatewayError::gateway(status, "the request body could not be kept")
        .retry_after(Duration::from_secs(10))
        .source(error)
}

/// Bytes written to the spool at once.
const PIECE: usize = 256 * 1024;
