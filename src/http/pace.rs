//! How fast a client sends or takes a body: not when it is over, but whether it moves at all.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::{Body, GatewayError, Relay};
use crate::splice::Pipe;

/// How slow a client may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The longest time without a byte.
    pub progress: Duration,
    /// Bytes a second, over half of that time at least; 0: any number.
    pub rate: u64,
}

/// Measures a client, for as long as it is waited for and no longer: what others take is not held against it.
#[derive(Debug)]
pub struct Pace {
    patience: Patience,
    /// Since when it has been waited for.
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

/// Fewer bytes than a client has to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("client too slow: fewer than {0} bytes a second (`minimum_rate`)")]
pub struct TooSlow(u64);

impl Pace {
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self { patience, since: None, waited: Duration::ZERO, bytes: 0 }
    }

    /// The client is waited for, if it was not before.
    pub fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Somebody else is waited for.
    pub fn rest(&mut self) {
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// The client is not waited for any more, as it has moved so many bytes.
    ///
    /// # Errors
    ///
    /// When it has been waited for long enough, and moved too little.
    pub fn moved(&mut self, bytes: u64) -> Result<(), TooSlow> {
        self.rest();
        self.bytes += bytes;
        let Patience { progress, rate } = self.patience;
        if self.waited < progress / 2 {
            return Ok(());
        }
        let milliseconds = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX);
        let enough = self.bytes.saturating_mul(1000) >= rate.saturating_mul(milliseconds);
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        if enough { Ok(()) } else { Err(TooSlow(rate)) }
    }
}

/// A request body whose client must not trickle it.
pub struct Paced {
    body: Body,
    pace: Pace,
}

impl Paced {
    /// `body`, which ends with 408 where it comes too slowly.
    pub fn body(body: Body, patience: Patience) -> Body {
        match body {
            body @ (Body::Empty | Body::Full(_)) => body,
            body => Body::relay(Self { body, pace: Pace::new(patience) }),
        }
    }
}

impl Paced {
    /// `moved`, unless the client was too slow with it.
    fn judge<T>(&mut self, moved: Option<Result<T, GatewayError>>, bytes: usize) -> Option<Result<T, GatewayError>> {
        match self.pace.moved(bytes as u64) {
            Err(slow) if matches!(moved, Some(Ok(_))) => {
                Some(Err(GatewayError::downstream(StatusCode::REQUEST_TIMEOUT, slow.to_string())))
            }
            _ => moved,
        }
    }
}

impl Relay for Paced {
    fn poll_relay(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Option<Result<usize, GatewayError>>> {
        let polled = self.body.poll_relay(cx, pipe);
        if polled.is_pending() {
            self.pace.wait();
        }
        match ready!(polled) {
            // It is read next, and counted then.
            None => Poll::Ready(None),
            moved => {
                let bytes = moved.as_ref().and_then(|moved| moved.as_ref().ok()).map_or(0, |count| *count);
                Poll::Ready(self.judge(moved, bytes))
            }
        }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() {
            self.pace.wait();
        }
        let frame = ready!(polled);
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        Poll::Ready(self.judge(frame, bytes))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Patience = Patience { progress: Duration::from_secs(60), rate: 240 };

    /// What a client meets that is waited for this long, and then moves this much, again and again.
    async fn after(rounds: u32, pause: Duration, bytes: u64) -> Result<(), TooSlow> {
        let mut pace = Pace::new(PATIENCE);
        for _ in 0..rounds {
            pace.wait();
            sleep(pause).await;
            pace.moved(bytes)?;
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn who_trickles_is_too_slow_and_who_is_slow_for_hours_is_not() {
        let second = Duration::from_secs(1);
        assert_eq!(after(29, second, 1).await, Ok(()), "it may still catch up");
        assert_eq!(after(30, second, 1).await, Err(TooSlow(240)));
        assert_eq!(after(10_000, second, 240).await, Ok(()));
        assert_eq!(after(100, 50 * second, 12_000).await, Ok(()), "in bursts");
        assert_eq!(TooSlow(240).to_string(), "client too slow: fewer than 240 bytes a second (`minimum_rate`)");
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_take_is_not_held_against_the_client() {
        let mut pace = Pace::new(PATIENCE);
        for _ in 0..1000 {
            pace.wait();
            pace.rest();
            sleep(Duration::from_secs(10)).await;
            assert_eq!(pace.moved(1), Ok(()));
        }
    }
}
