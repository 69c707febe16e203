//! What a worker cannot do any more once it carries traffic, whoever has taken it over; and an agent, once it orders
//! certificates.
//!
//! Three walls, each for what the others let through: it is an ordinary user without capabilities ([`privileges`]), it
//! reaches the spool, the folders of `files` and little else of the disk ([`landlock`]), and it makes the system calls
//! that traffic takes and no others ([`seccomp`]). None of them can be taken down again: a plan that needs more needs a
//! new worker ([`covers`]).
//!
//! What it was handed before, it keeps: sockets, the log, the folder of the spool. Nothing here keeps it from connecting
//! to whatever the network lets it connect to, since endpoints come and go by configuration and by name.

mod landlock;
mod privileges;
mod seccomp;
#[cfg(test)]
mod tests;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

pub(super) use self::privileges::hide_memory;
use self::{landlock::Fence, privileges::PrivilegeError, seccomp::Calls};
use crate::{
    config::{EndpointPlace, Plan},
    keeper::user::User,
};

/// Why a worker could not be shut in: it must not carry traffic then.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("cannot give up the privileges of the worker")]
    Privileges(#[from] PrivilegeError),
    #[error("spool.path: cannot open {path}")]
    Spool { path: PathBuf, source: ::landlock::PathFdError },
    #[error("tls.storage: cannot open {path}")]
    Storage { path: PathBuf, source: ::landlock::PathFdError },
    #[error("cannot restrict the worker to its folders (landlock)")]
    Landlock(#[from] ::landlock::RulesetError),
    #[error("cannot restrict the worker to its system calls (seccomp)")]
    Seccomp(#[from] seccompiler::Error),
}

/// Gives up all that carrying traffic does not need, for this thread and those it begins.
///
/// To be called before there is another thread. `user` is whom to become; `None` where we are not root and stay who we
/// are. Answers what could not be given up, a sentence each for the operator.
///
/// # Errors
///
/// Part of it may have been given up.
pub(super) fn enter(user: Option<&User>, plan: &Plan) -> Result<Vec<String>, SandboxError> {
    let mut weaknesses = Vec::new();
    let names = names(plan).next().is_some();
    // While we are root still: the spool may lie in a folder that only root can pass through.
    let fence = Fence::around(plan)?;
    weaknesses.extend(privileges::give_up(user)?);
    weaknesses.extend(fence.close()?);
    // Last, since what is above takes calls that it forbids.
    weaknesses.extend(Calls { names, storage: false }.restrict()?);
    if let Some((key, name)) = self::names(plan).next() {
        weaknesses.push(format!(
            "{key}: `{name}` is a name: to resolve it, the worker can read what its user may \
             read beneath /etc; an address instead of the name would close that"
        ));
    }
    Ok(weaknesses)
}

/// Gives up all that ordering certificates does not need: the agent reaches its `storage`, [`RESOLVER_FILES`] as they are now, and
/// the network, and has no capability. It stays who it is, because the storage is nobody else's.
///
/// What is left to one that has been taken over is what it is there for, the keys and accounts in the storage, and every
/// address that the network lets it reach, those of this machine included. It reaches no program by a Unix socket, where it
/// would be taken for root.
///
/// # Errors
///
/// Part of it may have been given up.
pub(super) fn enter_agent(storage: &Path) -> Result<(), SandboxError> {
    let fence = Fence::around_storage(storage)?;
    // What stays is said of the workers, which are the ones to be afraid for.
    privileges::give_up(None)?;
    fence.close()?;
    Calls { names: true, storage: true }.restrict()?;
    Ok(())
}

/// What resolving names reads. They are named because they may be links that lead somewhere else.
const RESOLVER_FILES: [&str; 8] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/ld.so.cache",
];

/// Which files [`RESOLVER_FILES`] are at a moment: an agent can read no others, and one that took the place of another is
/// read by the next agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resolver([Option<(u64, u64)>; RESOLVER_FILES.len()]);

impl Resolver {
    pub(super) fn of_the_system() -> Self {
        Self(RESOLVER_FILES.map(|file| fs::metadata(file).ok().map(|found| (found.dev(), found.ino()))))
    }
}

/// What a worker in the sandbox of `old` lacks to serve `new`, a sentence each that begins with the key; empty if it can.
///
/// Who the user is does not count: [`crate::config::takes`] knows. Folders are compared by where they are now. One that
/// was not there yet when the worker was shut in is taken for covered and is not: its files are answered 404 until
/// there is a new worker. Blocks on the disk.
pub(super) fn covers(old: &Plan, new: &Plan) -> Vec<String> {
    let mut lacking = Vec::new();
    if old.spool.path != new.spool.path {
        lacking.push(format!("spool.path: {} is new", new.spool.path.display()));
    }
    let open: Vec<PathBuf> = old.served_folders().map(|(_, root)| real(root)).collect();
    for (key, root) in new.served_folders() {
        let place = real(root);
        if !open.iter().any(|open| place.starts_with(open)) {
            lacking.push(format!("{key}: {} is new", root.display()));
        }
    }
    if names(old).next().is_none()
        && let Some((key, name)) = names(new).next()
    {
        lacking.push(format!("{key}: `{name}` is a name, and there was none to resolve before"));
    }
    lacking
}

/// Addresses that have to be resolved, after the keys that name them.
fn names(plan: &Plan) -> impl Iterator<Item = (String, &str)> {
    let endpoints = plan.upstreams.iter().flat_map(|(upstream, plan)| {
        let stats =
            plan.stats.iter().filter_map(move |address| Some((format!("upstreams.{upstream}.stats"), address.name()?)));
        let endpoints = plan.endpoints.iter().filter_map(move |endpoint| {
            let name = match &endpoint.address {
                EndpointPlace::At(address) => address.name()?,
                EndpointPlace::Srv(name) => name,
            };
            Some((format!("upstreams.{upstream}.endpoints"), name))
        });
        endpoints.chain(stats)
    });
    let supervisors =
        plan.supervisors().filter_map(|(key, supervisor)| Some((format!("{key}.address"), supervisor.address.name()?)));
    endpoints.chain(supervisors)
}

/// `path` without links, or as it is where there is nothing.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
