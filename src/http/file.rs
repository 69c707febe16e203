//! Ranges of open files as bodies.
//!
//! Which file, and which range of it, is decided elsewhere: see [`crate::files`].

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    os::fd::AsRawFd,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use rustix::io::ReadWriteFlags;
use tokio::task::JoinHandle;

use super::{Body, GatewayError};

/// A range of an open file.
///
/// Yields exactly the bytes that were promised or fails: a file that has become shorter is an error, and what was
/// appended to it is not sent. Holds at most one chunk of [`FileBody::CHUNK`] bytes, read when it is asked for.
///
/// What is in the page cache is read in place; the rest on a blocking thread, so that a cold disk stalls nobody else
/// on this traffic thread. Must be polled inside a tokio runtime.
pub struct FileBody {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
    read: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileBody {
    /// Bytes of the largest frame. A slow reader costs one of these.
    pub const CHUNK: usize = 128 * 1024;

    /// The `length` bytes of `file` from `offset` on. The position of the descriptor is neither used nor moved.
    pub fn new(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self { file, offset, remaining: length, read: None }
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the next byte is in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes still to be sent.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Leaves out the next `count` bytes: they have been sent some other way (sendfile).
    ///
    /// More than [`FileBody::remaining`] counts as all of them.
    pub fn advance(&mut self, count: u64) {
        let count = count.min(self.remaining);
        self.offset += count;
        self.remaining -= count;
        // It began at the old offset.
        self.read = None;
    }

    /// The next bytes; empty at the end of the file.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.read.is_none() {
            let length = usize::try_from(self.remaining).map_or(Self::CHUNK, |left| left.min(Self::CHUNK));
            match read_cached(&self.file, Piece::of(length), self.offset) {
                Ok(bytes) => return Poll::Ready(Ok(bytes)),
                Err(buffer) => {
                    let (file, offset) = (Arc::clone(&self.file), self.offset);
                    self.read = Some(tokio::task::spawn_blocking(move || read(&file, buffer, offset)));
                }
            }
        }
        let read = self.read.as_mut().expect("a read was begun just above");
        let joined = ready!(Pin::new(read).poll(cx));
        self.read = None;
        Poll::Ready(joined.unwrap_or_else(|stopped| Err(io::Error::other(stopped))))
    }

    fn failed(&mut self, cause: io::Error) -> GatewayError {
        let missing = std::mem::take(&mut self.remaining);
        let message = format!("cannot read the last {missing} bytes of {}", self.name().display());
        GatewayError::gateway(StatusCode::INTERNAL_SERVER_ERROR, message).source(cause)
    }

    fn truncated(&mut self) -> GatewayError {
        let missing = std::mem::take(&mut self.remaining);
        let message =
            format!("{} became shorter while it was sent: {missing} bytes are missing", self.name().display());
        GatewayError::gateway(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The file's present name, for messages; asked of the kernel so that no body has to carry it.
    fn name(&self) -> PathBuf {
        let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        std::fs::read_link(&link).unwrap_or_else(|_| link.into())
    }
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = self.get_mut();
        if this.remaining == 0 {
            return Poll::Ready(None);
        }
        let result = ready!(this.poll_read(cx));
        Poll::Ready(Some(match result {
            Ok(bytes) if bytes.is_empty() => Err(this.truncated()),
            Ok(bytes) => {
                this.offset += bytes.len() as u64;
                this.remaining -= bytes.len() as u64;
                Ok(Frame::data(bytes))
            }
            Err(cause) => Err(this.failed(cause)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

/// A buffer for one frame, which is used again by this thread when the frame has been sent: memory that is in the
/// processor's cache, and need not be cleared.
struct Piece {
    buffer: Vec<u8>,
    /// Bytes of it that are the frame.
    length: usize,
}

thread_local! {
    static PIECES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Piece {
    fn of(length: usize) -> Self {
        let kept = if length == FileBody::CHUNK { PIECES.with_borrow_mut(Vec::pop) } else { None };
        Self { buffer: kept.unwrap_or_else(|| vec![0; length]), length }
    }

    fn filled(mut self, count: usize) -> Bytes {
        self.length = count;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.len() != FileBody::CHUNK {
            return;
        }
        // One that is dropped with its thread is only freed.
        let here = PIECES.try_with(|pieces| {
            if let Ok(mut pieces) = pieces.try_borrow_mut()
                && pieces.len() < KEPT
            {
                pieces.push(buffer);
            }
        });
        here.unwrap_or_default();
    }
}

/// Reads what the page cache has of `piece.length` bytes at `offset`; empty at the end of the file.
///
/// Gives the buffer back when nothing can be said without waiting: not cached, a file system that cannot tell, or a
/// fault that the blocking read will meet again.
fn read_cached(file: &File, mut piece: Piece, offset: u64) -> Result<Bytes, Piece> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut piece.buffer)], offset, ReadWriteFlags::NOWAIT) {
        Ok(count) => Ok(piece.filled(count)),
        Err(_) => Err(piece),
    }
}

fn read(file: &File, mut piece: Piece, offset: u64) -> io::Result<Bytes> {
    let count = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut piece.buffer[..], offset))?;
    Ok(piece.filled(count))
}

/// Buffers of [`FileBody::CHUNK`] bytes that a thread keeps.
const KEPT: usize = 4;

/// Bodies one after the other: the literal text between the parts of a `multipart/byteranges`, and the parts.
///
/// Its length is the sum of theirs, exact when all of them are. Trailers of a part are passed on where they stand.
pub struct Sequence {
    bodies: VecDeque<Body>,
}

impl Sequence {
    pub fn new(bodies: impl IntoIterator<Item = Body>) -> Self {
        Self { bodies: bodies.into_iter().collect() }
    }
}

impl http_body::Body for Sequence {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let bodies = &mut self.get_mut().bodies;
        while let Some(body) = bodies.front_mut() {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => {
                    // What follows would stand in the wrong place.
                    bodies.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                None => bodies.pop_front(),
            };
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.bodies.iter().all(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let exact = self.bodies.iter().map(Body::length).try_fold(0_u64, |sum, length| sum.checked_add(length?));
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use http_body::Body as _;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::*;

    fn file_of(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    fn collect(body: impl http_body::Body<Data = Bytes, Error = GatewayError>) -> Result<Bytes, GatewayError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { Box::pin(body).collect().await.map(http_body_util::Collected::to_bytes) })
    }

    #[tokio::test]
    async fn no_frame_is_larger_than_a_chunk_and_the_hint_counts_down() {
        let length = FileBody::CHUNK as u64 * 2 + 5;
        let mut body = FileBody::new(file_of(&vec![7; FileBody::CHUNK * 2 + 5]), 0, length);
        let mut seen = 0;

        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.len() <= FileBody::CHUNK, "{} bytes in one frame", data.len());
            seen += data.len() as u64;
            assert_eq!(body.size_hint().exact(), Some(length - seen));
            assert_eq!(body.offset(), seen);
        }

        assert_eq!(seen, length);
        assert!(body.is_end_stream());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error_and_ends_the_body() {
        let file = file_of(b"0123456789");
        file.set_len(4).unwrap();
        let mut body = FileBody::new(file, 2, 8);

        let error = collect(&mut body).unwrap_err();

        assert!(error.to_string().contains("6 bytes are missing"), "{error}");
        assert!(collect(body).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_in_the_page_cache_is_read_all_the_same() {
        let content: Vec<u8> = (0..251).cycle().take(FileBody::CHUNK * 2).collect();
        let file = file_of(&content);
        // Only written pages can be dropped.
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();

        assert_eq!(collect(FileBody::new(file, 3, content.len() as u64 - 3)).unwrap(), content[3..]);
    }

    #[test]
    fn what_is_appended_while_a_file_is_sent_is_not_sent() {
        let file = file_of(b"01234");
        let body = FileBody::new(Arc::clone(&file), 0, 5);
        (&*file).write_all(b"56789").unwrap();

        assert_eq!(collect(body).unwrap(), "01234");
    }

    #[test]
    fn bytes_advanced_over_are_left_out_and_never_more_than_remain() {
        let mut body = FileBody::new(file_of(b"0123456789"), 1, 6);

        body.advance(2);
        assert_eq!((body.offset(), body.remaining()), (3, 4));
        assert_eq!(collect(&mut body).unwrap(), "3456");

        body.advance(u64::MAX);
        assert_eq!((body.offset(), body.remaining()), (7, 0));
    }

    #[test]
    fn a_range_beyond_four_gibibytes_is_read_where_it_is() {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(5 << 30)).unwrap();
        file.write_all(b"the end").unwrap();

        assert_eq!(collect(FileBody::new(Arc::new(file), 5 << 30, 7)).unwrap(), "the end");
    }

    #[test]
    fn a_directory_cannot_be_sent_and_the_error_names_it() {
        let directory = tempfile::tempdir().unwrap();

        let error = collect(FileBody::new(Arc::new(File::open(directory.path()).unwrap()), 0, 3)).unwrap_err();

        assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_failing_part_ends_a_sequence() {
        let short = FileBody::new(file_of(b""), 0, 1);
        let mut sequence =
            Sequence::new([Body::from(Bytes::from("a")), Body::File(short), Body::from(Bytes::from("b"))]);
        assert_eq!(sequence.size_hint().exact(), Some(3));

        assert!(collect(&mut sequence).is_err());
        assert!(collect(sequence).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn a_sequence_is_its_parts_in_order(content in proptest::collection::vec(any::<u8>(), 0..300), cuts in proptest::collection::vec((0_usize..300, 0_usize..300), 0..6)) {
            let file = file_of(&content);
            let (mut bodies, mut expected) = (Vec::new(), Vec::new());
            for (start, length) in cuts {
                let start = start.min(content.len());
                let end = (start + length).min(content.len());
                bodies.push(Body::from(Bytes::from("--")));
                bodies.push(Body::File(FileBody::new(Arc::clone(&file), start as u64, (end - start) as u64)));
                expected.extend_from_slice(b"--");
                expected.extend_from_slice(&content[start..end]);
            }
            let sequence = Sequence::new(bodies);

            prop_assert_eq!(sequence.size_hint().exact(), Some(expected.len() as u64));
            prop_assert_eq!(collect(sequence).unwrap(), expected);
        }
    }
}
