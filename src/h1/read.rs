//! Reading what is small most of the time.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// Appends what has come to `buffer`, at most [`PIECE`] bytes, and takes memory for no more than that.
///
/// A head is a few hundred bytes, and it keeps what it was read into for as long as anything of it is in use. To copy it
/// from a place that each thread has once costs less than to make room for a large one with each request.
pub fn poll_read_piece(
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
pub const PIECE: usize = 16 * 1024;
