//! Bytes that pass from a socket or a file to a socket within the kernel.
//!
//! Nothing here looks at them: `splice(2)` takes them from one socket into a pipe and from there to another, and
//! `sendfile(2)` from a file. What must be read, as for TLS or a compressor, goes another way.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, IoSliceMut},
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::{
    io::{Errno, ReadWriteFlags},
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use crate::disk::off_thread;

/// A socket of this thread's runtime, as far as its readiness goes.
pub trait Socket: AsFd {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Runs `call`, and takes note of it when that would have had to wait.
    fn attempt<T>(&self, interest: Interest, call: impl FnOnce() -> io::Result<T>) -> io::Result<T>;
}

impl Socket for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn attempt<T>(&self, interest: Interest, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.try_io(interest, call)
    }
}

impl Socket for UnixStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn attempt<T>(&self, interest: Interest, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.try_io(interest, call)
    }
}

/// Bytes on their way from one socket to another.
///
/// A thread has at most [`PIPES`], and keeps those that are empty for whoever is next. It stays on its thread.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<Ends>,
    held: usize,
    _of_this_thread: PhantomData<Rc<()>>,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// The pipes of one thread.
#[derive(Default)]
struct Pipes {
    idle: Vec<Ends>,
    open: usize,
}

thread_local! {
    static PIPES_HERE: RefCell<Pipes> = RefCell::default();
}

impl Pipe {
    /// An empty pipe, if one is to be had: not beyond [`PIPES`], nor where the user's share of the kernel's memory for
    /// them is used up, and they have shrunk to a page.
    pub fn take() -> Option<Self> {
        PIPES_HERE.with_borrow_mut(|pipes| {
            let ends = match pipes.idle.pop() {
                Some(ends) => ends,
                None if pipes.open < PIPES => {
                    let ends = Ends::open().ok()?;
                    pipes.open += 1;
                    ends
                }
                None => return None,
            };
            Some(Self { ends: Some(ends), held: 0, _of_this_thread: PhantomData })
        })
    }

    /// Bytes in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes up to `limit` bytes from `socket`; 0 at its end. To be called only while the pipe is empty.
    ///
    /// A call that would have to wait does not tell for which side: with bytes in the pipe, that could be for room in it,
    /// and the runtime would wait for a socket that is ready already.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, socket: &impl Socket, limit: u64) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0, "a pipe is filled when it is empty");
        let Some(ends) = &self.ends else { return Poll::Ready(Err(io::ErrorKind::Unsupported.into())) };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(LONG);
        let call = || Ok(splice(socket, None, &ends.write, None, limit, FLAGS)?);
        loop {
            ready!(socket.poll_readable(cx))?;
            match socket.attempt(Interest::READABLE, call) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.held = count;
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }

    /// Gives what it holds to `socket`, or as much as that takes.
    pub fn poll_pour(&mut self, cx: &mut Context<'_>, socket: &impl Socket) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Err(io::ErrorKind::Unsupported.into())) };
        let call = || Ok(splice(&ends.read, None, socket, None, self.held, FLAGS)?);
        loop {
            ready!(socket.poll_writable(cx))?;
            match socket.attempt(Interest::WRITABLE, call) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.held -= count;
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }
}

impl Pipe {
    /// Writes all that it holds to `file` from `at` on, off this thread: a disk that is behind must not stop other
    /// connections.
    ///
    /// On an error, or cancelled, it is only fit to be dropped.
    pub async fn spill(&mut self, file: Arc<File>, at: u64) -> io::Result<()> {
        let Some(ends) = self.ends.take() else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut left = self.held;
        let spilled = off_thread(move || -> io::Result<Ends> {
            let mut at = at;
            while left > 0 {
                match splice(&ends.read, None, &file, Some(&mut at), left, SpliceFlags::MOVE)? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    count => left -= count,
                }
            }
            Ok(ends)
        });
        self.ends = Some(spilled.await?);
        self.held = 0;
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // One that is dropped with its thread is only closed.
        let here = PIPES_HERE.try_with(|pipes| {
            let Ok(mut pipes) = pipes.try_borrow_mut() else { return };
            match self.ends.take() {
                // What is left in it would come before the next one's bytes; and what is kept is missing to others of this user.
                Some(ends) if self.held == 0 && pipes.idle.len() < KEPT => pipes.idle.push(ends),
                _ => pipes.open -= 1,
            }
        });
        here.unwrap_or_default();
    }
}

impl Ends {
    fn open() -> rustix::io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // The longer one takes fewer calls, and a thread less often; the user's share may not allow it.
        fcntl_setpipe_size(&write, LONG).or_else(|_| fcntl_setpipe_size(&write, SHORT))?;
        Ok(Self { read, write })
    }
}

/// Sends up to `length` bytes of `file` from `offset` on; 0 when the file has become shorter.
pub fn poll_send_file(
    cx: &mut Context<'_>,
    socket: &impl Socket,
    file: &File,
    offset: u64,
    length: u64,
) -> Poll<io::Result<u64>> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    loop {
        ready!(socket.poll_writable(cx))?;
        let call = || Ok(rustix::fs::sendfile(socket, file, Some(&mut { offset }), length)? as u64);
        match socket.attempt(Interest::WRITABLE, call) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// How much of the `left` bytes of `file` from `offset` on a socket is to be sent next by itself: of what is in memory.
/// What is not would stop every connection of this thread for the disk; it is read elsewhere, as any body is.
pub fn sendable(file: &File, offset: u64, left: u64) -> Option<u64> {
    if left == 0 || !is_cached(file, offset) {
        return None;
    }
    let long = left.min(LONG_PIECE);
    // With its end in memory as well, what lies between most likely is.
    Some(if is_cached(file, offset + long - 1) { long } else { long.min(READ_AHEAD) })
}

/// Whether the byte at `offset` is in memory, so that the system call that sends it will not wait for the disk.
fn is_cached(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::AGAIN))
}

/// Whether what failed is the connection, and not the file or the way it was to be sent.
pub fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut)
}

/// A body of this size is worth system calls of its own.
pub const WORTH_IT: u64 = 64 * 1024;
/// Pipes that a thread keeps while nothing passes.
const KEPT: usize = 4;
/// Pipes of one thread, each two descriptors.
pub const PIPES: usize = 64;
/// What a pipe can hold, by pages.
const LONG: usize = 1024 * 1024;
const SHORT: usize = 256 * 1024;
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
/// The most of a file that is sent at once, and what a disk has read ahead of what was asked for.
const LONG_PIECE: u64 = 1024 * 1024;
const READ_AHEAD: u64 = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_one_socket_has_goes_to_another_and_the_pipe_is_kept() {
        let (mut client, from) = UnixStream::pair().unwrap();
        let (to, mut endpoint) = UnixStream::pair().unwrap();
        client.write_all(b"twelve bytes, and more").await.unwrap();

        let mut pipe = Pipe::take().unwrap();
        assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &from, 12)).await.unwrap(), 12);
        while pipe.held() > 0 {
            poll_fn(|cx| pipe.poll_pour(cx, &to)).await.unwrap();
        }
        drop(pipe);

        let mut read = [0; 12];
        endpoint.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"twelve bytes");
        assert_eq!(PIPES_HERE.with_borrow(|pipes| (pipes.open, pipes.idle.len())), (1, 1));
    }

    #[tokio::test]
    async fn the_end_of_a_socket_is_told_and_no_bytes_are_waited_for() {
        let (client, from) = UnixStream::pair().unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert!(futures_util::poll!(poll_fn(|cx| pipe.poll_fill(cx, &from, 1))).is_pending());

        drop(client);

        assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &from, 1)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_pipe_that_holds_something_is_nobody_elses() {
        let (mut client, from) = UnixStream::pair().unwrap();
        client.write_all(b"left").await.unwrap();
        let mut pipe = Pipe::take().unwrap();
        poll_fn(|cx| pipe.poll_fill(cx, &from, 4)).await.unwrap();

        drop(pipe);

        assert_eq!(PIPES_HERE.with_borrow(|pipes| (pipes.open, pipes.idle.len())), (0, 0));
    }

    #[test]
    fn a_thread_has_so_many_and_no_more() {
        let pipes: Vec<_> = std::iter::from_fn(Pipe::take).collect();
        assert!(pipes.len() <= PIPES, "{}", pipes.len());
        drop(pipes);
        assert!(Pipe::take().is_some());
    }
}
