//! A websocket between a client and an endpoint: bytes both ways, frames only counted.
//!
//! Extensions, masks and limits stay end to end. Frame boundaries are followed so that, when we are to stop, or the endpoint is
//! gone without a word, a Close frame (RFC 6455, 5.5.1) can be put between two frames rather than into one.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, sleep_until, timeout},
};

use super::wire::EndpointWire;
use crate::{
    drain::Drain,
    upstream::{Endpoint, InFlight, UpstreamStream},
};

/// An endpoint's side of a websocket, waiting for the client's.
#[derive(Debug)]
pub struct Tunnel {
    upstream: UpstreamStream,
    /// What the endpoint has sent behind its `101`.
    early: BytesMut,
    idle: Duration,
    pub endpoint: Arc<Endpoint>,
    _in_flight: InFlight,
}

/// How a tunnel ended.
#[derive(Debug)]
pub struct TunnelEnd {
    /// Bytes to the client.
    pub sent: u64,
    /// Bytes from the client.
    pub received: u64,
    pub cause: TunnelCause,
}

#[derive(Debug)]
pub enum TunnelCause {
    /// Both sides have closed.
    Closed,
    /// Nothing has moved for the route's `tunnel_idle`.
    Idle,
    /// We stop, and have said so.
    Drained,
    Failed(io::Error),
}

impl Tunnel {
    pub(super) fn new(wire: EndpointWire, mut in_flight: InFlight, endpoint: Arc<Endpoint>, idle: Duration) -> Self {
        in_flight.is_tunnel();
        // Copied, so that the read buffer of the handshake is not kept for the life of the tunnel.
        let early = BytesMut::from(&wire.incoming[..]);
        Self { upstream: wire.lease.stream, early, idle, endpoint, _in_flight: in_flight }
    }

    /// Carries bytes until both sides have closed, nothing moves any more, or `drain` becomes a stop.
    ///
    /// `early` is what the client has sent behind its handshake.
    pub async fn run<C>(mut self: Box<Self>, client: &mut C, early: BytesMut, drain: &Drain) -> TunnelEnd
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let mut down = Pipe::new(std::mem::take(&mut self.early), Mask::No);
        let mut up = Pipe::new(early, Mask::Yes);
        let cause = tokio::select! {
            cause = carry(client, &mut self.upstream, &mut down, &mut up, self.idle) => {
                if matches!(cause, TunnelCause::Failed(_)) {
                    // Best effort: it may be the client that failed.
                    down.give_up();
                    let last = timeout(CLOSE_GRACE, client.write_all(&down.pending)).await;
                    last.map_err(io::Error::from).flatten().ok();
                }
                cause
            }
            () = drain.stopping() => {
                down.close();
                up.close();
                let ending = carry(client, &mut self.upstream, &mut down, &mut up, self.idle);
                match timeout(CLOSE_GRACE, ending).await {
                    Ok(TunnelCause::Failed(error)) => TunnelCause::Failed(error),
                    _ => TunnelCause::Drained,
                }
            }
        };
        TunnelEnd { sent: down.carried, received: up.carried, cause }
    }
}

async fn carry<C>(
    client: &mut C,
    upstream: &mut UpstreamStream,
    down: &mut Pipe,
    up: &mut Pipe,
    idle: Duration,
) -> TunnelCause
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut last = (Instant::now(), down.carried + up.carried);
    let mut idle = idle;
    let mut half_open = false;
    loop {
        let known = half_open;
        let moving = poll_fn(|cx| {
            let to_client = down.poll_carry(cx, upstream, client)?;
            if down.ended && down.closed {
                // Nobody is there to take it.
                up.closed = true;
                up.pending.clear();
            }
            let to_upstream = up.poll_carry(cx, client, upstream)?;
            match (to_client, to_upstream) {
                (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(io::Result::Ok(Step::Ended)),
                // One side has ended and we are on our way out: the other has had its Close frame.
                (Poll::Ready(()), Poll::Pending) | (Poll::Pending, Poll::Ready(())) if down.closing => {
                    Poll::Ready(Ok(Step::Ended))
                }
                _ if !known && (down.ended || up.ended) => Poll::Ready(Ok(Step::HalfOpen)),
                _ => Poll::Pending,
            }
        });
        tokio::select! {
            step = moving => match step {
                Ok(Step::Ended) => return TunnelCause::Closed,
                Ok(Step::HalfOpen) => {
                    // The side that is left has little to say, and may never learn that it is alone.
                    half_open = true;
                    idle = idle.min(HALF_OPEN);
                    last = (Instant::now(), down.carried + up.carried);
                }
                Err(error) => return TunnelCause::Failed(error),
            },
            () = sleep_until(last.0 + idle) => {
                let carried = down.carried + up.carried;
                if carried == last.1 {
                    return if half_open { TunnelCause::Closed } else { TunnelCause::Idle };
                }
                // Coarse on purpose: a timer set anew for each frame would cost more than the frame.
                last = (Instant::now(), carried);
            }
        }
    }
}

enum Step {
    Ended,
    HalfOpen,
}

/// One direction.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four things that happen to a direction, in any order")]
struct Pipe {
    /// What the far side has not taken yet.
    pending: BytesMut,
    frames: Frames,
    mask: Mask,
    ended: bool,
    shut: bool,
    /// A Close frame is to follow the frame that is under way.
    closing: bool,
    /// It has been written; whatever comes now is read over.
    closed: bool,
    carried: u64,
}

/// Whether frames of this direction are masked (RFC 6455, 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mask {
    Yes,
    No,
}

impl Pipe {
    fn new(early: BytesMut, mask: Mask) -> Self {
        let mut frames = Frames::default();
        frames.pass(&early);
        let carried = early.len() as u64;
        Self { pending: early, frames, mask, ended: false, shut: false, closing: false, closed: false, carried }
    }

    fn close(&mut self) {
        self.closing = true;
        if self.frames.at_boundary() {
            self.write_close(GOING_AWAY);
        }
    }

    /// The endpoint is gone: its client is told so, unless it has said so itself, or left a frame unfinished.
    fn give_up(&mut self) {
        if self.mask == Mask::No && !self.closed && !self.frames.has_closed && self.frames.at_boundary() {
            self.write_close(RESTARTING);
        }
    }

    fn write_close(&mut self, code: u16) {
        let code = code.to_be_bytes();
        match self.mask {
            Mask::No => self.pending.extend_from_slice(&[0x88, 0x02, code[0], code[1]]),
            Mask::Yes => {
                let key = fastrand::u32(..).to_be_bytes();
                self.pending.extend_from_slice(&[0x88, 0x82]);
                self.pending.extend_from_slice(&key);
                self.pending.extend_from_slice(&[code[0] ^ key[0], code[1] ^ key[1]]);
            }
        }
        self.closed = true;
    }

    /// Carries what there is; `Ready` when the near side has ended and the far side has been told.
    fn poll_carry<N, F>(&mut self, cx: &mut Context<'_>, near: &mut N, far: &mut F) -> io::Result<Poll<()>>
    where
        N: AsyncRead + Unpin,
        F: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            match self.poll_round(cx, near, far) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(Round::More)) => {}
                Poll::Ready(Ok(Round::Ended)) => return Ok(Poll::Ready(())),
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        // The other direction, and other connections, have a right to this thread too.
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    fn poll_round<N, F>(&mut self, cx: &mut Context<'_>, near: &mut N, far: &mut F) -> Poll<io::Result<Round>>
    where
        N: AsyncRead + Unpin,
        F: AsyncWrite + Unpin,
    {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut *far).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
        }
        ready!(Pin::new(&mut *far).poll_flush(cx))?;
        if self.ended {
            if !self.shut {
                ready!(Pin::new(&mut *far).poll_shutdown(cx))?;
                self.shut = true;
            }
            return Poll::Ready(Ok(Round::Ended));
        }
        if self.pending.capacity() > 0 {
            // Nothing is kept for an idle tunnel.
            self.pending = BytesMut::new();
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match ready!(Pin::new(&mut *near).poll_read(cx, &mut buffer)) {
                // Killed with something unread.
                Err(error) if self.mask == Mask::No && error.kind() == io::ErrorKind::ConnectionReset => {}
                read => read?,
            }
            let mut data = buffer.filled();
            if data.is_empty() {
                self.ended = true;
                self.give_up();
                return Poll::Ready(Ok(Round::More));
            }
            if self.closed {
                return Poll::Ready(Ok(Round::More));
            }
            let boundary = self.frames.pass_until_boundary(data, self.closing);
            let close_now = boundary.is_some();
            data = &data[..boundary.unwrap_or(data.len())];
            self.carried += data.len() as u64;
            if !close_now {
                // Straight on, in the common case.
                match Pin::new(&mut *far).poll_write(cx, data) {
                    Poll::Ready(written) => data = &data[written?..],
                    Poll::Pending => {}
                }
            }
            self.pending.extend_from_slice(data);
            if close_now {
                self.write_close(GOING_AWAY);
            }
            Poll::Ready(Ok(Round::More))
        })
    }
}

enum Round {
    More,
    Ended,
}

/// Where in its frame a byte stream is (RFC 6455, 5.2).
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of the header seen so far, of at most 14.
    header: [u8; 10],
    seen: u8,
    /// Bytes of the frame still to come, once the header is known.
    left: u64,
    /// A Close frame has gone by.
    has_closed: bool,
}

impl Frames {
    fn at_boundary(&self) -> bool {
        self.seen == 0 && self.left == 0
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.pass_until_boundary(bytes, false);
    }

    /// Follows `bytes`; with `stop`, only to the end of the frame under way, and answers where that is.
    fn pass_until_boundary(&mut self, bytes: &[u8], stop: bool) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= passed as u64;
                at += passed;
            } else {
                self.header[usize::from(self.seen)] = bytes[at];
                self.seen += 1;
                at += 1;
                if let Some(left) = self.payload() {
                    self.has_closed |= self.header[0] & 0x0f == 0x8;
                    self.left = left;
                    self.seen = 0;
                }
            }
            if stop && self.at_boundary() {
                return Some(at);
            }
        }
        None
    }

    /// What follows the length field, once that has been read: the masking key and the payload.
    fn payload(&self) -> Option<u64> {
        let header = &self.header;
        if self.seen < 2 {
            return None;
        }
        let key = if header[1] & 0x80 == 0 { 0 } else { 4 };
        let length = match header[1] & 0x7f {
            126 if self.seen < 4 => return None,
            126 => u64::from(u16::from_be_bytes([header[2], header[3]])),
            127 if self.seen < 10 => return None,
            127 => u64::from_be_bytes(header[2..10].try_into().expect("eight bytes")),
            short => u64::from(short),
        };
        Some(length.saturating_add(key))
    }
}

thread_local! {
    /// Read into by every tunnel of this thread: what is not taken at once by the far side is copied out.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 16 * 1024]);
}

/// Close codes (RFC 6455, 7.4.1, and IANA's registry): we go away; the server restarts, and may be asked again.
const GOING_AWAY: u16 = 1001;
const RESTARTING: u16 = 1012;
/// Reads of one direction before the thread is given up.
const ROUNDS: usize = 16;
/// How long a tunnel stays open without a byte once one side has closed.
const HALF_OPEN: Duration = Duration::from_secs(10);
/// From our Close frames to the end, whatever the peers do.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match payload {
            0..126 => frame.push(mask | u8::try_from(payload).unwrap()),
            126..65536 => {
                frame.push(mask | 0x7e);
                frame.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 0x7f);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0x88; payload + if masked { 4 } else { 0 }]);
        frame
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_stream_is_cut(
            frames in proptest::collection::vec((prop_oneof![0..200_usize, 60_000..70_000_usize], any::<bool>()), 1..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut stream = Vec::new();
            let mut ends = Vec::new();
            for (payload, masked) in frames {
                stream.extend(frame(payload, masked));
                ends.push(stream.len());
            }
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.push(stream.len());
            cuts.sort_unstable();
            let mut tracker = Frames::default();
            let mut from = 0;
            for cut in cuts {
                tracker.pass(&stream[from..cut]);
                from = cut;
                prop_assert_eq!(tracker.at_boundary(), cut == 0 || ends.contains(&cut));
            }
        }

        #[test]
        fn a_stop_comes_at_the_first_end_of_a_frame(first in 0..70_000_usize, begun in any::<prop::sample::Index>()) {
            let mut stream = frame(first, false);
            let end = stream.len();
            stream.extend(frame(5, false));
            let begun = begun.index(end - 1) + 1;
            let mut tracker = Frames::default();
            tracker.pass(&stream[..begun]);
            if begun < end {
                prop_assert_eq!(tracker.pass_until_boundary(&stream[begun..], true), Some(end - begun));
            }
        }
    }
}
