//! Sockets that a service manager has opened for us: `LISTEN_FDS` and its kin (`sd_listen_fds(3)`).

use std::{
    env, io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
};

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketAddrAny, getsockname, sockopt};

use super::sockets::{BindError, BoundSockets};
use crate::config::ListenAddress;

/// The sockets, by the names they were given.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, OwnedFd)>);

impl Inherited {
    /// Takes what was passed on to this process; once, as it is then ours to hand on.
    pub fn receive() -> Self {
        // Before it is taken, which clears the environment.
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for position in 0..passed.len() {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
            // What is of no use is taken, too, so that it is closed and nobody that we begin has it.
            let socket = None
                .or_else(|| passed.take_tcp_listener(position).ok().flatten().map(OwnedFd::from))
                .or_else(|| passed.take_unix_listener(position).ok().flatten().map(OwnedFd::from))
                .or_else(|| passed.take_udp_socket(position).ok().flatten().map(OwnedFd::from))
                .or_else(|| passed.take_unix_datagram(position).ok().flatten().map(OwnedFd::from));
            if let Some(socket) = socket.filter(|socket| sockopt::socket_acceptconn(socket).unwrap_or(false)) {
                sockets.push((name, socket));
            } else {
                // A connection, for one: a `.socket` unit with `Accept=yes` passes these on.
                tracing::warn!(name, "what was passed on is not a listening stream socket: it is not used");
            }
        }
        Self(sockets)
    }

    /// Those of before an upgrade.
    pub fn of(sockets: Vec<(String, OwnedFd)>) -> Self {
        Self(sockets)
    }

    pub fn sockets(&self) -> &[(String, OwnedFd)] {
        &self.0
    }

    /// Those that `used` does not name.
    pub fn unused(&self, used: impl Fn(&str) -> bool) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).filter(|name| !used(name)).collect()
    }

    /// Duplicates of the sockets named `name`, and where the first is bound.
    pub(super) fn take(&self, name: &str) -> Result<(ListenAddress, BoundSockets), BindError> {
        let found: Vec<_> = self.0.iter().filter(|(known, _)| known == name).map(|(_, socket)| socket).collect();
        let absent = || {
            let names = self.0.iter().map(|(name, _)| name.clone()).collect();
            BindError::NotInherited { name: name.to_owned(), names }
        };
        let first = found.first().ok_or_else(absent)?;
        let of_unix =
            |socket: &OwnedFd| sockopt::socket_domain(socket).is_ok_and(|domain| domain == AddressFamily::UNIX);
        let is_unix = of_unix(first);
        let failed = |error| BindError::Inherited { name: name.to_owned(), source: error };
        if found.iter().any(|socket| of_unix(socket) != is_unix) {
            // A `.socket` unit gives all its sockets one name unless told otherwise, and knows no other name within it.
            let mixed =
                "some of that name are unix sockets and some are not; give each kind a `.socket` unit of its own";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, mixed)));
        }
        let duplicates = || found.iter().map(|socket| socket.as_fd().try_clone_to_owned());
        let sockets = if is_unix {
            let sockets = duplicates().map(|socket| {
                let socket = UnixListener::from(socket?);
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            BoundSockets::Unix(sockets.collect::<Result<_, _>>().map_err(failed)?)
        } else {
            let sockets = duplicates().map(|socket| {
                let socket = TcpListener::from(socket?);
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            BoundSockets::Tcp(sockets.collect::<Result<_, _>>().map_err(failed)?)
        };
        let address =
            getsockname(first).ok().and_then(address).unwrap_or_else(|| ListenAddress::Inherited(name.to_owned()));
        Ok((address, sockets))
    }
}

fn address(address: SocketAddrAny) -> Option<ListenAddress> {
    std::net::SocketAddr::try_from(address).ok().map(ListenAddress::Tcp)
}
