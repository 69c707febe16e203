//! What a client's connection can do beyond reading and writing.

use std::{
    fs::File,
    io,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::{
    splice::{self, Pipe},
    tls::TlsStream,
};

/// A client's connection, plain or encrypted.
pub trait Downstream: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Whether bytes can pass without being read: [`Self::poll_send_file`], [`Self::poll_fill`] and [`Self::poll_pour`]
    /// can be used.
    const IS_PLAIN: bool;

    /// Sends up to `length` bytes of `file` from `offset` on; 0 when the file has become shorter.
    fn poll_send_file(&mut self, cx: &mut Context<'_>, file: &File, offset: u64, length: u64) -> Poll<io::Result<u64>>;

    /// Takes up to `limit` bytes into `pipe`, which is empty; 0 at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe, limit: u64) -> Poll<io::Result<usize>>;

    /// Sends what `pipe` holds, or some of it.
    fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>>;

    /// Makes the end of the connection one that no reader takes for the end of a body, where there is such an end.
    fn reset_on_close(&self) {}
}

impl Downstream for TcpStream {
    const IS_PLAIN: bool = true;

    fn poll_send_file(&mut self, cx: &mut Context<'_>, file: &File, offset: u64, length: u64) -> Poll<io::Result<u64>> {
        splice::poll_send_file(cx, self, file, offset, length)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe, limit: u64) -> Poll<io::Result<usize>> {
        pipe.poll_fill(cx, self, limit)
    }

    fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        pipe.poll_pour(cx, self)
    }

    fn reset_on_close(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(error = &error as &dyn std::error::Error, "a connection cannot be reset");
        }
    }
}

impl Downstream for UnixStream {
    const IS_PLAIN: bool = true;

    fn poll_send_file(&mut self, cx: &mut Context<'_>, file: &File, offset: u64, length: u64) -> Poll<io::Result<u64>> {
        splice::poll_send_file(cx, self, file, offset, length)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe, limit: u64) -> Poll<io::Result<usize>> {
        pipe.poll_fill(cx, self, limit)
    }

    fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        pipe.poll_pour(cx, self)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Downstream for TlsStream<S> {
    const IS_PLAIN: bool = false;

    fn poll_send_file(&mut self, _: &mut Context<'_>, _: &File, _: u64, _: u64) -> Poll<io::Result<u64>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_fill(&mut self, _: &mut Context<'_>, _: &mut Pipe, _: u64) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_pour(&mut self, _: &mut Context<'_>, _: &mut Pipe) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
