//! A connection to an endpoint, by whatever road.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use crate::{
    config::EndpointAddress,
    splice::{self, Pipe},
};

/// A connection to an endpoint.
#[derive(Debug)]
pub enum UpstreamStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl UpstreamStream {
    /// Connects. Names of a plan have been resolved before; another one is by the system, its addresses tried in turn.
    pub async fn connect(address: &EndpointAddress) -> io::Result<Self> {
        match address {
            EndpointAddress::Tcp { host, port } => {
                let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                let stream = match literal.parse::<IpAddr>() {
                    Ok(address) => TcpStream::connect((address, *port)).await?,
                    // A name that no resolver is to be asked about (RFC 6761, 6.3); an application most often listens
                    // on the first.
                    Err(_) if host.eq_ignore_ascii_case("localhost") => {
                        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
                        TcpStream::connect(&loopback.map(|address| SocketAddr::new(address, *port))[..]).await?
                    }
                    Err(_) => TcpStream::connect((host.as_str(), *port)).await?,
                };
                // A request is written in one piece; what waits for an acknowledgement only waits.
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            EndpointAddress::Unix(path) => Self::connect_unix(path),
        }
    }

    /// Connects to a unix socket, which takes a connection at once, or refuses it: there is nothing to wait for.
    pub fn connect_unix(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        UnixStream::from_std(socket.into()).map(Self::Unix)
    }

    /// Writes to a connection that is new, of which the runtime does not know yet that it can be written to.
    pub fn try_write_first(&self, bytes: &[u8]) -> io::Result<usize> {
        let sent = match self {
            Self::Tcp(stream) => rustix::net::send(stream, bytes, SendFlags::NOSIGNAL),
            Self::Unix(stream) => rustix::net::send(stream, bytes, SendFlags::NOSIGNAL),
        };
        Ok(sent?)
    }

    /// Whether the peer has been silent: no byte and no end of stream has arrived on an idle connection.
    pub fn is_silent(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
        };
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Takes up to `limit` bytes into `pipe`, which is empty; 0 at the end of the stream.
    pub fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe, limit: u64) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => pipe.poll_fill(cx, stream, limit),
            Self::Unix(stream) => pipe.poll_fill(cx, stream, limit),
        }
    }

    /// Sends what `pipe` holds, or some of it.
    pub fn poll_pour(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => pipe.poll_pour(cx, stream),
            Self::Unix(stream) => pipe.poll_pour(cx, stream),
        }
    }

    /// Sends up to `length` bytes of `file` from `offset` on; 0 when the file has become shorter.
    pub fn poll_send_file(&self, cx: &mut Context<'_>, file: &File, offset: u64, length: u64) -> Poll<io::Result<u64>> {
        match self {
            Self::Tcp(stream) => splice::poll_send_file(cx, stream, file, offset, length),
            Self::Unix(stream) => splice::poll_send_file(cx, stream, file, offset, length),
        }
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ipv6_address_is_connected_to_as_it_is_written() {
        let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else {
            assert!(std::env::var_os("CI").is_none(), "this machine has no IPv6 loopback");
            return;
        };
        let port = listener.local_addr().unwrap().port();
        let address = EndpointAddress::Tcp { host: "[::1]".to_owned(), port };

        let connected = UpstreamStream::connect(&address).await;

        assert!(connected.is_ok(), "{connected:?}");
        assert_eq!(address.to_string(), format!("[::1]:{port}"));
    }
}
