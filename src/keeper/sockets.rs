//! Listening sockets, made once and handed over.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    num::NonZeroUsize,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
    process::geteuid,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{activation::Inherited, folder, user::User};
use crate::config::{AdminAddress, AdminPlan, ListenAddress, ListenerPlan, Plan};

/// The sockets of one listener: not blocking, closed on exec.
#[derive(Debug)]
pub struct BoundListener {
    /// As the plan has it.
    pub plan: ListenerPlan,
    /// As it is: port 0 has become the port the system chose.
    pub address: ListenAddress,
    pub sockets: BoundSockets,
}

/// As [`Sockets`] holds them, those that were made; as they are handed over, at least a descriptor for each thread.
#[derive(Debug)]
pub enum BoundSockets {
    /// One for each traffic thread that there was to be when they were made, each with a queue of its own; the kernel
    /// spreads connections over them (`SO_REUSEPORT`).
    Tcp(Vec<TcpListener>),
    /// One socket with one queue, however many descriptors of it.
    Unix(Vec<UnixListener>),
    /// Whoever they are for has them already.
    Kept,
}

/// Every socket that is listened on, held for whoever is to accept on it.
///
/// A socket is made once and stays for as long as its address is in the plan: what waits in its queue is lost with it.
#[derive(Debug, Default)]
pub struct Sockets {
    listeners: Vec<BoundListener>,
    /// One of each kind, or two while it is not decided whether it moves.
    admin: Vec<(AdminAddress, AdminSocket)>,
    inherited: Inherited,
}

/// A socket of the admin endpoint.
#[derive(Debug)]
enum AdminSocket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Those of the admin endpoint as they are handed over, not blocking. `None` also where whoever they are for has them already.
#[derive(Debug, Default)]
pub struct AdminSockets {
    /// Mode 0600.
    pub unix: Option<UnixListener>,
    pub tcp: Option<TcpListener>,
}

impl Sockets {
    /// Has `inherited` to take listeners with an address `fd:NAME` from.
    pub fn with(inherited: Inherited) -> Self {
        Self { inherited, ..Self::default() }
    }

    /// Binds what `plan` asks for and is not held yet.
    ///
    /// `[::]` takes IPv4 as well. A unix socket is made with mode 0660 and the group of `owner`, which may connect; one that is there already
    /// is replaced if nobody answers on it. It stays when we end, for the next start to replace.
    ///
    /// Answers every fault with the number of its listener, or `None` for the admin endpoint.
    pub fn bind(&mut self, plan: &Plan, owner: Option<&User>) -> Vec<(Option<usize>, BindError)> {
        let mut faults = Vec::new();
        let mut unclaimed: Vec<_> = self.listeners.iter().collect();
        let mut new = Vec::new();
        for (position, listener) in plan.listeners.iter().enumerate() {
            let held = unclaimed.iter().position(|held| held.plan.address == listener.address);
            if let Some(held) = held {
                // As many as they are, also for more threads: one more would take its share of the connections from the
                // moment it is bound, and nobody may ever accept on it.
                unclaimed.swap_remove(held);
                continue;
            }
            match bind(listener, plan.workers, owner, &self.inherited) {
                Ok(bound) => new.push(bound),
                Err(fault) => faults.push((Some(position), fault)),
            }
        }
        self.listeners.extend(new);
        for address in admin_addresses(plan) {
            if self.admin.iter().any(|(held, _)| *held == address) {
                continue;
            }
            match bind_admin(&address) {
                Ok(socket) => self.admin.push((address, socket)),
                Err(fault) => faults.push((None, fault)),
            }
        }
        faults
    }

    /// Duplicates of the sockets of `plan`, but for those that whoever serves the plan `held` has.
    pub fn hand(&self, plan: &Plan, held: Option<&Plan>) -> io::Result<(Vec<BoundListener>, AdminSockets)> {
        let mut unclaimed: Vec<_> = self.listeners.iter().collect();
        let mut had: Vec<_> = held.iter().flat_map(|plan| &plan.listeners).map(|listener| &listener.address).collect();
        let mut listeners = Vec::new();
        for listener in &plan.listeners {
            let Some(found) = unclaimed.iter().position(|bound| bound.plan.address == listener.address) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let bound = unclaimed.remove(found);
            let sockets = match had.iter().position(|address| **address == listener.address) {
                Some(kept) => {
                    had.swap_remove(kept);
                    BoundSockets::Kept
                }
                None => bound.sockets.duplicate(plan.workers)?,
            };
            listeners.push(BoundListener { plan: listener.clone(), address: bound.address.clone(), sockets });
        }
        let had: Vec<_> = held.into_iter().flat_map(admin_addresses).collect();
        let mut admin = AdminSockets::default();
        for address in admin_addresses(plan).filter(|address| !had.contains(address)) {
            match self.admin.iter().find(|(held, _)| *held == address) {
                Some((_, AdminSocket::Unix(socket))) => admin.unix = Some(socket.try_clone()?),
                Some((_, AdminSocket::Tcp(socket))) => admin.tcp = Some(socket.try_clone()?),
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Ok((listeners, admin))
    }

    /// Closes what `plan` does not ask for; answers whether there was any.
    pub fn keep(&mut self, plan: &Plan) -> bool {
        let before = self.listeners.len() + self.admin.len();
        let mut wanted: Vec<_> = plan.listeners.iter().collect();
        self.listeners.retain_mut(|held| {
            let Some(found) = wanted.iter().position(|listener| listener.address == held.plan.address) else {
                return false;
            };
            held.plan = wanted.remove(found).clone();
            true
        });
        self.admin.retain(|(held, _)| admin_addresses(plan).any(|address| address == *held));
        self.listeners.len() + self.admin.len() < before
    }

    /// Closes everything.
    pub fn close(&mut self) {
        self.listeners.clear();
        self.admin.clear();
    }

    /// Names of sockets that were passed on and that `plan` does not listen on.
    pub fn unused(&self, plan: &Plan) -> Vec<&str> {
        let used = |name: &str| {
            plan.listeners
                .iter()
                .any(|listener| matches!(&listener.address, ListenAddress::Inherited(used) if used == name))
        };
        self.inherited.unused(used)
    }

    /// Everything there is, for whoever holds it after us: a list, and a descriptor for each thing in it.
    pub fn leave(&self) -> io::Result<(SocketList, Vec<OwnedFd>)> {
        let mut descriptors = Vec::new();
        let mut take = |socket: BorrowedFd<'_>| socket.try_clone_to_owned().map(|socket| descriptors.push(socket));
        let mut listeners = Vec::new();
        for BoundListener { plan, address, sockets } in &self.listeners {
            let kind = match sockets {
                BoundSockets::Tcp(sockets) => {
                    sockets.iter().try_for_each(|socket| take(socket.as_fd()))?;
                    LeftSockets::Tcp(sockets.len())
                }
                BoundSockets::Unix(sockets) => {
                    sockets.iter().try_for_each(|socket| take(socket.as_fd()))?;
                    LeftSockets::Unix(sockets.len())
                }
                BoundSockets::Kept => continue,
            };
            listeners.push((plan.clone(), address.clone(), kind));
        }
        // At rest there is one of each kind at most.
        let unix = self.admin.iter().find_map(|(address, socket)| match (address, socket) {
            (AdminAddress::Unix(path), AdminSocket::Unix(socket)) => Some((path.clone(), socket)),
            _ => None,
        });
        let admin = unix.map(|(path, socket)| take(socket.as_fd()).map(|()| path)).transpose()?;
        for (_, socket) in self.inherited.sockets() {
            take(socket.as_fd())?;
        }
        let inherited = self.inherited.sockets().iter().map(|(name, _)| name.clone()).collect();
        let tcp = self.admin.iter().find_map(|(address, socket)| match (address, socket) {
            (AdminAddress::Tcp(address), AdminSocket::Tcp(socket)) => Some((*address, socket)),
            _ => None,
        });
        let admin_tcp = tcp.map(|(address, socket)| take(socket.as_fd()).map(|()| address)).transpose()?;
        Ok((SocketList { listeners, admin, inherited, admin_tcp }, descriptors))
    }

    /// Takes what was left: as many of `descriptors` as `list` names.
    pub fn inherit(list: SocketList, descriptors: &mut impl Iterator<Item = OwnedFd>) -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::UnexpectedEof, "fewer sockets were left than were listed");
        let mut next = || descriptors.next().ok_or_else(missing);
        let mut listeners = Vec::new();
        for (plan, address, kind) in list.listeners {
            let sockets = match kind {
                LeftSockets::Tcp(count) => {
                    BoundSockets::Tcp((0..count).map(|_| next().map(Into::into)).collect::<io::Result<_>>()?)
                }
                LeftSockets::Unix(count) => {
                    BoundSockets::Unix((0..count).map(|_| next().map(Into::into)).collect::<io::Result<_>>()?)
                }
            };
            listeners.push(BoundListener { plan, address, sockets });
        }
        let mut admin = Vec::new();
        if let Some(path) = list.admin {
            admin.push((AdminAddress::Unix(path), AdminSocket::Unix(next()?.into())));
        }
        let inherited = list.inherited.into_iter().map(|name| Ok((name, next()?))).collect::<io::Result<_>>()?;
        if let Some(address) = list.admin_tcp {
            admin.push((AdminAddress::Tcp(address), AdminSocket::Tcp(next()?.into())));
        }
        Ok(Self { listeners, admin, inherited: Inherited::of(inherited) })
    }

    /// Where each listener is bound, in no order of interest.
    pub fn addresses(&self) -> impl Iterator<Item = &ListenAddress> {
        self.listeners.iter().map(|listener| &listener.address)
    }
}

/// What [`Sockets`] holds, for a successor that is handed the descriptors beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct SocketList {
    listeners: Vec<(ListenerPlan, ListenAddress, LeftSockets)>,
    admin: Option<PathBuf>,
    inherited: Vec<String>,
    /// Of a program before this one that knows of none.
    #[serde(default)]
    admin_tcp: Option<SocketAddr>,
}

/// How many descriptors of which kind.
#[derive(Debug, Serialize, Deserialize)]
enum LeftSockets {
    Tcp(usize),
    Unix(usize),
}

impl BoundSockets {
    /// A descriptor of every socket, and at least one for each of `workers`.
    fn duplicate(&self, workers: NonZeroUsize) -> io::Result<Self> {
        fn each<S>(sockets: &[S], workers: usize, clone: impl Fn(&S) -> io::Result<S>) -> io::Result<Vec<S>> {
            sockets.iter().cycle().take(sockets.len().max(workers)).map(clone).collect()
        }
        Ok(match self {
            Self::Tcp(sockets) => Self::Tcp(each(sockets, workers.get(), TcpListener::try_clone)?),
            Self::Unix(sockets) => Self::Unix(each(sockets, workers.get(), UnixListener::try_clone)?),
            Self::Kept => Self::Kept,
        })
    }
}

/// Where `plan` has the admin endpoint.
fn admin_addresses(plan: &Plan) -> impl Iterator<Item = AdminAddress> {
    plan.admin.iter().flat_map(AdminPlan::addresses)
}

fn bind(
    plan: &ListenerPlan,
    workers: NonZeroUsize,
    owner: Option<&User>,
    inherited: &Inherited,
) -> Result<BoundListener, BindError> {
    let (address, sockets) = match &plan.address {
        ListenAddress::Tcp(address) => {
            let (address, sockets) =
                bind_tcp(*address, workers).map_err(|source| BindError::Tcp { address: *address, source })?;
            (ListenAddress::Tcp(address), BoundSockets::Tcp(sockets))
        }
        ListenAddress::Unix(path) => {
            // Its group may connect: a proxy on the same machine is most often of the same group.
            let listener = bind_unix(path, 0o660, owner)?;
            (plan.address.clone(), BoundSockets::Unix(vec![listener]))
        }
        ListenAddress::Inherited(name) => inherited.take(name)?,
    };
    Ok(BoundListener { plan: plan.clone(), address, sockets })
}

/// Binds a socket of the admin endpoint. That of unix: mode 0600, in a folder made with mode 0755 if only that is missing.
fn bind_admin(address: &AdminAddress) -> Result<AdminSocket, BindError> {
    match address {
        AdminAddress::Unix(path) => {
            folder::make_for(path).map_err(|source| BindError::Folder { path: path.to_owned(), source })?;
            bind_unix(path, 0o600, None).map(AdminSocket::Unix)
        }
        AdminAddress::Tcp(address) => {
            let fault = |source| BindError::Tcp { address: *address, source };
            let (bound, mut sockets) = bind_tcp(*address, NonZeroUsize::MIN).map_err(fault)?;
            tracing::info!(address = %bound, "the admin endpoint is bound to TCP");
            Ok(AdminSocket::Tcp(sockets.swap_remove(0)))
        }
    }
}

fn bind_tcp(address: SocketAddr, workers: NonZeroUsize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let first = tcp_socket(address)?;
    first.bind(&address.into())?;
    // Only now: bound with it, the socket would silently share the port with another Vestibule of the same user.
    first.set_reuse_port(true)?;
    first.listen(BACKLOG)?;
    let first = TcpListener::from(first);
    let address = first.local_addr()?;

    let mut sockets = vec![first];
    for _ in 1..workers.get() {
        let socket = tcp_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        sockets.push(socket.into());
    }
    Ok((address, sockets))
}

fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    // socket2 sets CLOEXEC in the same call.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Connections of a process before us that are in TIME_WAIT do not hold the port.
    socket.set_reuse_address(true)?;
    // For the connections that are accepted: what the client has no room for yet stays with us, so that it is seen how slowly
    // it takes it. A buffer of the kernel's that is full grows to megabytes, and has room again when a third of it has gone.
    socket.set_tcp_notsent_lowat(UNSENT)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

fn bind_unix(path: &Path, mode: u32, owner: Option<&User>) -> Result<UnixListener, BindError> {
    let fault = |source| BindError::Unix { path: path.to_owned(), source };
    make_room(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(fault)?;
    socket.set_nonblocking(true).map_err(fault)?;
    socket.bind(&SockAddr::unix(path).map_err(fault)?).map_err(fault)?;
    // Before `listen`: until then nobody gets in, whatever the umask has made of the mode.
    give(path, mode, owner).map_err(fault)?;
    socket.listen(BACKLOG).map_err(fault)?;
    Ok(socket.into())
}

/// Gives the socket at `path`, which we have just made, its mode and group.
///
/// Others may be able to write in its folder, most often the application, which is of the same user: what they put in its
/// place, such as a link to a file of root's, is not given to anybody.
fn give(path: &Path, mode: u32, owner: Option<&User>) -> io::Result<()> {
    let socket = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&socket)?;
    if !FileType::from_raw_mode(found.st_mode).is_socket() || found.st_uid != geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "somebody has put something else in its place"));
    }
    // The inode, whatever its name is by now.
    fs::set_permissions(format!("/proc/self/fd/{}", socket.as_raw_fd()), fs::Permissions::from_mode(mode))?;
    if let Some(owner) = owner {
        // The group alone. It stays ours, so that our next start may connect as well, to see whether anybody is there: root
        // may not without the capability to write everywhere.
        rustix::fs::chownat(&socket, "", None, Some(owner.gid()), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Removes a socket that nobody answers on.
fn make_room(path: &Path) -> Result<(), BindError> {
    let fault = |source| BindError::Unix { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fault(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match answers(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(fault),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(BindError::Closed { path: path.to_owned() })
        }
        // Anything but a refusal may be a listener that is busy or not ours to disturb.
        _ => Err(BindError::Occupied { path: path.to_owned() }),
    }
}

/// Connects without waiting: a listener whose queue is full must not hold up our start.
fn answers(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// An address that cannot be listened on, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}: {}", remedy(*address, source))]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("cannot listen on unix:{}: {}", path.display(), unix_remedy(source))]
    Unix { path: PathBuf, source: io::Error },
    #[error("cannot listen on unix:{}: another process answers on it; stop that one or choose another path", path.display())]
    Occupied { path: PathBuf },
    #[error(
        "cannot listen on unix:{}: there is a socket that we may not connect to, so that another process may be on it; \
         remove it if there is none",
        path.display()
    )]
    Closed { path: PathBuf },
    #[error("cannot listen on unix:{}: there is something that is not a socket; remove it or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("no socket named `{name}` was passed on; {}", inherited_remedy(names))]
    NotInherited { name: String, names: Vec<String> },
    #[error("the socket named `{name}` that was passed on cannot be used: {source}")]
    Inherited { name: String, source: io::Error },
    #[error("cannot listen on unix:{}: cannot make its folder: {source}; create it", path.display())]
    Folder { path: PathBuf, source: io::Error },
}

fn remedy(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse if address.ip().is_unspecified() => format!(
            "port {port} is in use; see `ss -ltnp sport = :{port}` for by whom (`[::]` takes IPv4 as well: do not list \
             `0.0.0.0` beside it)"
        ),
        io::ErrorKind::AddrInUse => format!("port {port} is in use; see `ss -ltnp sport = :{port}` for by whom"),
        io::ErrorKind::PermissionDenied => format!(
            "permission denied; a port below 1024 needs root, CAP_NET_BIND_SERVICE (`AmbientCapabilities=` in systemd) or \
             a lower `net.ipv4.ip_unprivileged_port_start`: {port} is one"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has the address; see `ip address`, or listen on `[::]`".to_owned()
        }
        _ if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            format!("this machine has no IPv6; listen on `0.0.0.0:{port}`")
        }
        _ => error.to_string(),
    }
}

fn inherited_remedy(names: &[String]) -> String {
    if names.is_empty() {
        "this process was not started by socket activation (`FileDescriptorName=` in a systemd `.socket` unit)"
            .to_owned()
    } else {
        format!("there are: {}", names.join(", "))
    }
}

fn unix_remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "its folder does not exist; create it".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied; let the user Vestibule runs as write in its folder".to_owned()
        }
        io::ErrorKind::InvalidInput => {
            "the path is longer than the 107 bytes of a socket's; choose a shorter one".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Bytes that a connection takes from us ahead of what its client has room for.
const UNSENT: u32 = 128 * 1024;
/// Connections that wait to be accepted, a socket; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        io::Read,
        net::TcpStream,
        os::{fd::AsFd, unix::fs::MetadataExt},
    };

    use super::*;

    fn plan(address: ListenAddress) -> ListenerPlan {
        ListenerPlan { address, tls: false, redirect: None, proxy_protocol: false, log_server: None, client_ca: None }
    }

    fn tcp(address: &str) -> ListenerPlan {
        plan(ListenAddress::Tcp(address.parse().unwrap()))
    }

    fn bind_workers(plan: &ListenerPlan, workers: usize) -> Result<BoundListener, BindError> {
        bind(plan, NonZeroUsize::new(workers).unwrap(), None, &Inherited::default())
    }

    fn tcp_of(bound: &BoundListener) -> (SocketAddr, &[TcpListener]) {
        match (&bound.address, &bound.sockets) {
            (ListenAddress::Tcp(address), BoundSockets::Tcp(sockets)) => (*address, sockets),
            other => panic!("not TCP: {other:?}"),
        }
    }

    #[test]
    fn every_worker_gets_a_socket_on_the_one_port_the_system_chose() {
        let bound = bind_workers(&tcp("127.0.0.1:0"), 3).unwrap();

        let (address, sockets) = tcp_of(&bound);
        assert_ne!(address.port(), 0);
        let addresses: HashSet<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!((sockets.len(), addresses), (3, HashSet::from([address])));
        for socket in sockets {
            let flags = rustix::io::fcntl_getfd(socket.as_fd()).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            let blocked = socket.accept().unwrap_err();
            assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn connections_are_spread_over_the_sockets() {
        let bound = bind_workers(&tcp("127.0.0.1:0"), 2).unwrap();
        let (address, sockets) = tcp_of(&bound);

        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();

        let accepted: Vec<usize> =
            sockets.iter().map(|socket| std::iter::from_fn(|| socket.accept().ok()).count()).collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(accepted.iter().all(|count| *count > 0), "one socket got all: {accepted:?}");
    }

    #[test]
    fn the_unspecified_address_of_ipv6_takes_ipv4_as_well() {
        let bound = match bind_workers(&tcp("[::]:0"), 2) {
            Ok(bound) => bound,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "{error}");
                eprintln!("skipped: {error}");
                return;
            }
        };
        let port = tcp_of(&bound).0.port();

        for address in ["127.0.0.1", "::1"] {
            TcpStream::connect((address, port)).unwrap_or_else(|error| panic!("{address}: {error}"));
        }
    }

    #[test]
    fn an_address_in_use_is_refused_even_to_another_vestibule_of_the_same_user() {
        let first = bind_workers(&tcp("127.0.0.1:0"), 2).unwrap();
        let (address, _) = tcp_of(&first);

        let refused = bind_workers(&tcp(&address.to_string()), 2).unwrap_err();

        let port = address.port();
        assert_eq!(
            refused.to_string(),
            format!("cannot listen on {address}: port {port} is in use; see `ss -ltnp sport = :{port}` for by whom")
        );
    }

    #[test]
    fn an_address_of_another_machine_is_refused_with_what_to_do() {
        let refused = bind_workers(&tcp("192.0.2.1:8080"), 1).unwrap_err();

        assert_eq!(
            refused.to_string(),
            "cannot listen on 192.0.2.1:8080: no interface of this machine has the address; see `ip address`, or listen on \
             `[::]`"
        );
    }

    #[test]
    fn a_port_that_takes_a_privilege_is_refused_with_the_ways_to_get_it() {
        let text = remedy("0.0.0.0:80".parse().unwrap(), &io::ErrorKind::PermissionDenied.into());

        assert!(text.contains("CAP_NET_BIND_SERVICE") && text.contains("80"), "{text}");
    }

    #[test]
    fn a_unix_socket_nobody_answers_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("front.sock");
        drop(UnixListener::bind(&path).unwrap());

        let bound = bind_workers(&plan(ListenAddress::Unix(path.clone())), 2).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        let BoundSockets::Unix(sockets) = &bound.sockets else { panic!("not unix: {bound:?}") };
        assert_eq!(sockets.len(), 1, "one queue, whichever thread looks first");
        let mut client = UnixStream::connect(&path).unwrap();
        drop(sockets[0].accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_unix_socket_somebody_answers_on_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("front.sock");
        let other = UnixListener::bind(&path).unwrap();

        let refused = bind_workers(&plan(ListenAddress::Unix(path.clone())), 1).unwrap_err();

        assert!(matches!(refused, BindError::Occupied { .. }), "{refused}");
        let _client = UnixStream::connect(&path).unwrap();
        assert!(other.accept().is_ok());
    }

    #[test]
    fn a_unix_socket_whose_queue_is_full_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("front.sock");
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert_eq!(answers(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let refused = bind_workers(&plan(ListenAddress::Unix(path.clone())), 1).unwrap_err();

        assert!(matches!(refused, BindError::Occupied { .. }), "{refused}");
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("front.sock");
        fs::write(&path, "mine").unwrap();

        let refused = bind_workers(&plan(ListenAddress::Unix(path.clone())), 1).unwrap_err();

        assert!(matches!(refused, BindError::NotASocket { .. }), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn what_others_put_in_the_place_of_a_socket_is_given_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, path) = (folder.path().join("secret"), folder.path().join("front.sock"));
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o400)).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();

        give(&path, 0o660, None).unwrap_err();
        fs::rename(&secret, &path).unwrap();
        give(&path, 0o660, None).unwrap_err();

        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
    }

    #[test]
    fn a_unix_path_that_cannot_be_bound_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let table = [
            (folder.path().join("absent/front.sock"), "its folder does not exist; create it"),
            (
                folder.path().join("x".repeat(120)),
                "the path is longer than the 107 bytes of a socket's; choose a shorter one",
            ),
        ];

        for (path, expected) in table {
            let refused = bind_workers(&plan(ListenAddress::Unix(path.clone())), 1).unwrap_err();
            assert_eq!(refused.to_string(), format!("cannot listen on unix:{}: {expected}", path.display()));
        }
    }
}
