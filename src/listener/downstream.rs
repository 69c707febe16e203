//! What a client's connection can do beyond reading and writing.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    task::{Context, Poll, ready},
};

use rustix::io::{Errno, ReadWriteFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

/// A client's connection, plain or encrypted.
pub trait Downstream: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Whether [`Self::poll_send_file`] can be used.
    const SENDS_FILES: bool;

    /// Sends up to `length` bytes of `file` from `offset` on without bringing them into user space; 0 when the file
    /// has become shorter.
    fn poll_send_file(&mut self, cx: &mut Context<'_>, file: &File, offset: u64, length: u64) -> Poll<io::Result<u64>>;

    /// Makes the end of the connection one that no reader takes for the end of a body, where there is such an end.
    fn reset_on_close(&self) {}
}

impl Downstream for TcpStream {
    const SENDS_FILES: bool = true;

    fn poll_send_file(&mut self, cx: &mut Context<'_>, file: &File, offset: u64, length: u64) -> Poll<io::Result<u64>> {
        let send = || self.try_io(Interest::WRITABLE, || send_file(&*self, file, offset, length));
        poll_when_ready(|| self.poll_write_ready(cx), send)
    }

    fn reset_on_close(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(error = &error as &dyn std::error::Error, "a connection cannot be reset");
        }
    }
}

impl Downstream for UnixStream {
    const SENDS_FILES: bool = true;

    fn poll_send_file(&mut self, cx: &mut Context<'_>, file: &File, offset: u64, length: u64) -> Poll<io::Result<u64>> {
        let send = || self.try_io(Interest::WRITABLE, || send_file(&*self, file, offset, length));
        poll_when_ready(|| self.poll_write_ready(cx), send)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Downstream for TlsStream<S> {
    const SENDS_FILES: bool = false;

    fn poll_send_file(&mut self, _: &mut Context<'_>, _: &File, _: u64, _: u64) -> Poll<io::Result<u64>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Sends as soon as the socket is ready, which it may claim once too often.
fn poll_when_ready(
    mut ready: impl FnMut() -> Poll<io::Result<()>>,
    send: impl Fn() -> io::Result<u64>,
) -> Poll<io::Result<u64>> {
    loop {
        ready!(ready())?;
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// Whether the byte at `offset` is in memory, so that the system call that sends it will not wait for the disk.
pub(super) fn is_cached(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    let read = rustix::io::preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::AGAIN))
}

/// One `sendfile(2)`.
fn send_file(socket: impl AsFd, file: &File, mut offset: u64, length: u64) -> io::Result<u64> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Ok(rustix::fs::sendfile(socket, file, Some(&mut offset), length)? as u64)
}
