//! Reading what is small most of the time.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Appends what has come to `buffer`, of which `expected` bytes are known to be still to come, 0 where nothing is known.
///
/// What is left of its room is used down to `least` bytes; only for a long body is as much made as a read may bring.
pub fn poll_read(
    io: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
    least: usize,
    expected: usize,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() < least {
        if expected < PIECE {
            return poll_read_piece(io, cx, buffer);
        }
        buffer.reserve(expected);
    }
    poll_read_buf(io, cx, buffer)
}

/// At most [`PIECE`] bytes, which take memory for no more than they are.
///
/// A head is a few hundred bytes, and it keeps what it was read into for as long as anything of it is in use. To copy it
/// from a place that each thread has once costs less than to make room for a large one with each request.
fn poll_read_piece(
    io: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    thread_local! {
        static PLACE: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into());
    }
    PLACE.with_borrow_mut(|place| {
        let mut read = ReadBuf::new(place);
        ready!(io.poll_read(cx, &mut read))?;
        buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// Bytes of one read.
const PIECE: usize = 16 * 1024;
