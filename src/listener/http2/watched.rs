//! The bytes of an h2 connection, and what the frames in them ask for.
//!
//! The library bounds what it keeps: streams, header lists and CONTINUATION frames, resets of streams it has not given on yet, small
//! DATA frames. What it does not bound is work: a client that opens streams only to cancel them, that has us cancel
//! them, or that sends PING and SETTINGS for ever costs us something with each frame and takes nothing. Each such
//! frame costs an allowance here, which time and what we send give back, and who has used it up is told
//! `ENHANCE_YOUR_CALM` (RFC 9113, 10.5).

use std::{
    cell::Cell,
    future::Future as _,
    io,
    mem::{self, MaybeUninit},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::turns;

/// A connection whose frames are looked at on their way.
pub(super) struct Watched<Io> {
    io: Io,
    received: Frames,
    sent: Frames,
    allowance: Allowance,
    /// Frames received in this turn.
    in_turn: u32,
    /// What comes is many small frames, as far as is known.
    dense: bool,
    /// The last stream that the client has opened.
    last_stream: u32,
    exhausted: Exhausted,
    resets: Resets,
    /// How long the end of the client's side is waited for, once ours is closed.
    lingers: Option<Pin<Box<Sleep>>>,
}

/// Whether the allowance was used up.
#[derive(Clone, Debug, Default)]
pub(super) struct Exhausted(Rc<Cell<bool>>);

impl Exhausted {
    pub(super) fn get(&self) -> bool {
        self.0.get()
    }
}

/// Who ends streams before their end.
#[derive(Clone, Debug, Default)]
pub(super) struct Resets(Rc<Reset>);

#[derive(Debug, Default)]
struct Reset {
    /// Streams that we have refused for our own sake, which is none of the client's doing, and whose resets are still to be sent.
    refused: Cell<u32>,
    by_client: Cell<bool>,
}

impl Resets {
    /// One is refused.
    pub(super) fn refuse(&self) {
        self.0.refused.set(self.0.refused.get() + 1);
    }

    /// Whether a reset that is sent is one of those.
    fn is_refusal(&self) -> bool {
        let left = self.0.refused.get();
        self.0.refused.set(left.saturating_sub(1));
        left > 0
    }

    /// The client takes one back.
    fn has_come(&self) {
        self.0.by_client.set(true);
    }

    /// Whether the client has ever taken back what it has asked for.
    pub(super) fn are_by_client(&self) -> bool {
        self.0.by_client.get()
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Watched<Io> {
    pub(super) fn new(io: Io, resets: Resets) -> (Self, Exhausted) {
        let exhausted = Exhausted::default();
        let watched = Self {
            io,
            received: Frames::after(PREFACE),
            sent: Frames::after(0),
            allowance: Allowance { left: ALLOWANCE, since: Instant::now() },
            in_turn: 0,
            dense: true,
            last_stream: 0,
            exhausted: exhausted.clone(),
            resets,
            lingers: None,
        };
        (watched, exhausted)
    }

    /// Reads, and little at once where much would be more frames than there are to be in a turn.
    fn poll_some(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = Pin::new(&mut self.io);
        if !self.dense {
            return io.poll_read(cx, buffer);
        }
        let mut bytes = [MaybeUninit::uninit(); SMALL_READ];
        let mut part = ReadBuf::uninit(&mut bytes[..buffer.remaining().min(SMALL_READ)]);
        ready!(io.poll_read(cx, &mut part))?;
        buffer.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }

    /// The next turn costs what this one has taken: who has asked for much at once does so again.
    fn end_turn(&mut self) {
        turns::cost((mem::take(&mut self.in_turn) / FRAMES_PER_TURN).clamp(turns::ONE, MOST_TURNS));
    }

    fn receive(&mut self, bytes: &[u8]) {
        let before = self.in_turn;
        let Self { received, allowance, in_turn, last_stream, resets, .. } = self;
        received.pass(bytes, |frame| {
            *in_turn += 1;
            match frame.kind {
                HEADERS => *last_stream = frame.stream.max(*last_stream),
                RST_STREAM => resets.has_come(),
                _ => {}
            }
            allowance.take(cost(&frame));
        });
        self.dense = self.in_turn - before >= DENSE;
        self.look();
    }

    fn send(&mut self, bytes: &[u8]) {
        let Self { sent, allowance, resets, .. } = self;
        sent.pass(bytes, |frame| match frame.kind {
            RST_STREAM if resets.is_refusal() => {}
            RST_STREAM => allowance.take(RESET),
            HEADERS => allowance.give(RESET),
            DATA => allowance.give(4 + frame.length / 1024),
            _ => {}
        });
        self.look();
    }

    fn look(&mut self) {
        if self.allowance.is_used_up() {
            self.exhausted.0.set(true);
        }
    }

    /// Says why the connection ends, if there is room for it, and that it does.
    fn end(&mut self, cx: &mut Context<'_>) -> io::Error {
        // Within a frame of another it would be taken for a part of that.
        if self.sent.is_between() {
            let mut goaway = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ENHANCE_YOUR_CALM];
            goaway[9..13].copy_from_slice(&self.last_stream.to_be_bytes());
            let mut io = Pin::new(&mut self.io);
            if io.as_mut().poll_write(cx, &goaway).is_ready() && io.as_mut().poll_flush(cx).is_ready() {
                let _closed = io.poll_shutdown(cx);
            }
        }
        io::Error::other("the client sent frames that ask for nothing (ENHANCE_YOUR_CALM)")
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.in_turn >= FRAMES_IN_TURN {
            this.end_turn();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if !this.exhausted.get() && this.poll_some(cx, buffer)?.is_pending() {
            this.end_turn();
            return Poll::Pending;
        }
        this.receive(&buffer.filled()[before..]);
        if this.exhausted.get() {
            buffer.set_filled(before);
            return Poll::Ready(Err(this.end(cx)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.send(&bytes[..written]);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        if let Poll::Ready(Ok(mut left)) = written {
            for piece in pieces {
                let part = left.min(piece.len());
                self.send(&piece[..part]);
                left -= part;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Closes our side, and reads over what the client still sends: a socket that is closed with bytes unread, such as a
    /// `WINDOW_UPDATE` for the last piece of a response, resets the connection, and that piece with it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingers.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let lingers = this.lingers.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if lingers.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..ROUNDS {
            let mut over = [MaybeUninit::uninit(); 4096];
            let mut over = ReadBuf::uninit(&mut over);
            match Pin::new(&mut this.io).poll_read(cx, &mut over) {
                Poll::Ready(Ok(())) if !over.filled().is_empty() => {}
                // The client has closed its side, in whatever way.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The head of a frame (RFC 9113, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the heads of frames in bytes that come in any pieces.
struct Frames {
    /// Bytes to be passed over before the next head.
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of `head` that have come.
    have: usize,
}

impl Frames {
    fn after(skip: usize) -> Self {
        Self { skip, head: [0; HEAD], have: 0 }
    }

    /// Whether what comes next is the head of a frame.
    fn is_between(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    fn pass(&mut self, mut bytes: &[u8], mut frame: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEAD {
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                frame(Frame { length, kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) });
                self.have = 0;
                self.skip = length as usize;
            }
        }
    }
}

/// What a connection may ask of us for nothing.
struct Allowance {
    left: u32,
    /// When it was last added to.
    since: Instant,
}

impl Allowance {
    fn take(&mut self, cost: u32) {
        if cost == 0 {
            return;
        }
        if self.left <= cost {
            let earned = u32::try_from(self.since.elapsed().as_millis()).unwrap_or(u32::MAX);
            self.since = Instant::now();
            self.give(earned.saturating_mul(A_SECOND / 1000));
        }
        self.left = self.left.saturating_sub(cost);
    }

    fn give(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(ALLOWANCE);
    }

    fn is_used_up(&self) -> bool {
        self.left == 0
    }
}

/// What a frame of the client's takes off the allowance.
fn cost(frame: &Frame) -> u32 {
    match frame.kind {
        // What may be padding alone is no data, either.
        DATA if frame.flags & END_STREAM == 0
            && (frame.length == 0 || frame.flags & PADDED != 0 && frame.length <= 256) =>
        {
            10
        }
        RST_STREAM => RESET,
        SETTINGS if frame.flags & ACK == 0 => 50,
        PING if frame.flags & ACK == 0 => 20,
        // Clients send two for each piece they take, down to 4 KiB.
        WINDOW_UPDATE => 1,
        // Requests are bounded elsewhere; their fields, by the library.
        DATA | HEADERS => 0,
        // PRIORITY, CONTINUATION, what we did not ask to be acknowledged, and frames that nobody knows.
        _ => 5,
    }
}

/// What a connection begins with, and has at most: 500 resets or PINGs at once, 200 SETTINGS, 10 000 `WINDOW_UPDATE`.
const ALLOWANCE: u32 = 10_000;
/// What time adds: 50 resets or PINGs a second, 20 SETTINGS.
const A_SECOND: u32 = 1_000;
/// What a reset costs, the client's or one that it has us send; a response gives that back.
const RESET: u32 = 20;

/// Frames after which others have their turn ([`crate::turns`]), but for what else the read has brought that brought the last.
const FRAMES_IN_TURN: u32 = 16;
/// Frames that cost one turn, as each may be a request to begin; and the most turns that they cost together.
const FRAMES_PER_TURN: u32 = 4;
const MOST_TURNS: u32 = 8;
/// A read with so many frames is followed by one of at most [`SMALL_READ`] bytes, which are about twenty requests of a client
/// that compresses them well.
const DENSE: u32 = 8;
const SMALL_READ: usize = 512;

/// How long a client that has been told goodbye has to close its side.
const LINGER: Duration = Duration::from_secs(2);
/// Reads before the thread is given up.
const ROUNDS: usize = 16;

/// Bytes of the client's preface, and of the head of a frame.
const PREFACE: usize = 24;
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
const ENHANCE_YOUR_CALM: u8 = 0xb;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn what_takes_all_that_is_left_has_what_time_has_added() {
        let hour_ago = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        let mut allowance = Allowance { left: 20, since: hour_ago };

        allowance.take(20);
        assert!(!allowance.is_used_up());

        (0..500).for_each(|_| allowance.take(20));
        assert!(allowance.is_used_up(), "all of it at once");
    }

    #[test]
    fn frames_are_found_in_whatever_pieces_they_come() {
        let bytes =
            [vec![b'P'; PREFACE], frame(SETTINGS, 0, 0, &[7; 12]), frame(HEADERS, 5, 3, &[1]), frame(PING, 1, 0, &[])]
                .concat();
        let expected = [(12, SETTINGS, 0, 0), (1, HEADERS, 5, 3), (0, PING, 1, 0)]
            .map(|(length, kind, flags, stream)| Frame { length, kind, flags, stream });
        for size in 1..bytes.len() {
            let (mut frames, mut found) = (Frames::after(PREFACE), Vec::new());
            bytes.chunks(size).for_each(|piece| frames.pass(piece, |frame| found.push(frame)));
            assert_eq!(found, expected, "in pieces of {size}");
            assert!(frames.is_between());
        }
    }

    #[tokio::test]
    async fn a_flood_is_told_to_be_calm_and_not_passed_on() {
        let resets = (0..600).flat_map(|number| frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8]));
        let (ours, mut theirs) = duplex(1 << 20);
        let (mut watched, exhausted) = Watched::new(ours, Resets::default());
        theirs.write_all(&[b'P'; PREFACE]).await.unwrap();
        theirs.write_all(&frame(HEADERS, 5, 7, &[])).await.unwrap();
        theirs.write_all(&resets.collect::<Vec<_>>()).await.unwrap();

        let mut passed = Vec::new();
        watched.read_to_end(&mut passed).await.unwrap_err();

        assert!(exhausted.get() && passed.len() < 600 * 13);
        let mut goaway = Vec::new();
        theirs.read_to_end(&mut goaway).await.unwrap();
        assert_eq!(goaway, frame(GOAWAY, 0, 0, &[0, 0, 0, 7, 0, 0, 0, ENHANCE_YOUR_CALM]));
    }

    #[tokio::test]
    async fn what_we_refuse_for_our_own_sake_costs_the_client_nothing() {
        for (refusals, expected) in [(600, false), (0, true)] {
            let (ours, mut theirs) = duplex(1 << 20);
            let resets = Resets::default();
            (0..refusals).for_each(|_| resets.refuse());
            let (mut watched, exhausted) = Watched::new(ours, resets);
            let resets: Vec<_> =
                (0..600).flat_map(|number| frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 7])).collect();

            watched.write_all(&resets).await.unwrap();

            assert_eq!(exhausted.get(), expected, "{refusals} of 600 refused");
            theirs.read_exact(&mut vec![0; resets.len()]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn who_takes_what_it_asked_for_may_update_its_window_as_often_as_it_likes() {
        let (ours, mut theirs) = duplex(1 << 20);
        let (mut watched, exhausted) = Watched::new(ours, Resets::default());
        theirs.write_all(&[b'P'; PREFACE]).await.unwrap();
        watched.read_exact(&mut [0; PREFACE]).await.unwrap();
        let piece = frame(DATA, 0, 1, &[0; 16 << 10]);
        let updates = frame(WINDOW_UPDATE, 0, 1, &[0, 0, 16, 0]).repeat(8);
        let (mut taken, mut read) = (vec![0; piece.len()], vec![0; updates.len()]);

        for _ in 0..5_000 {
            watched.write_all(&piece).await.unwrap();
            theirs.read_exact(&mut taken).await.unwrap();
            theirs.write_all(&updates).await.unwrap();
            watched.read_exact(&mut read).await.unwrap();
        }

        assert!(!exhausted.get());
    }
}
