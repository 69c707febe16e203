//! The part of the disk that a worker reaches.
//!
//! Landlock asks what is opened by its name, on top of the rights of the user. What is open already, and looking at names
//! (`stat`, `readlink`, and with it `/proc/self/fd`), is not its matter.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};

use super::{SandboxError, names};
use crate::config::Plan;

/// Rules that have been laid out and do not hold yet.
pub(super) struct Fence(RulesetCreated);

impl Fence {
    /// Lays out rules for what serving `plan` takes.
    ///
    /// What is not there is left out: it may be a folder that comes with the application, or a habit of another
    /// distribution.
    pub(super) fn around(plan: &Plan) -> Result<Self, SandboxError> {
        let spool = &plan.spool.path;
        let folder = PathFd::new(spool).map_err(|source| SandboxError::Spool { path: spool.clone(), source })?;
        let roots = plan.served_folders().map(|(_, folder)| folder);

        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            // The keeper binds, we only accept. Connecting is left alone: an endpoint may be anywhere.
            .handle_access(AccessNet::BindTcp)?
            // No endpoint has an abstract name, and the keeper is not ours to signal.
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rule(PathBeneath::new(folder, SPOOL))?
            .add_rules(path_beneath_rules(roots, READ))?
            .add_rules(path_beneath_rules(TIME_ZONE, READ))?
            .add_rules(path_beneath_rules(DEVICES, READ_FILE))?
            .add_rules(path_beneath_rules(["/dev/null"], make_bitflags!(AccessFs::{ReadFile | WriteFile})))?
            // Our own program, in which a panic looks up the names of its backtrace.
            .add_rules(path_beneath_rules(["/proc/self/exe"], READ_FILE))?;
        if names(plan).next().is_some() {
            rules = rules
                .add_rules(path_beneath_rules(RESOLVER_FOLDERS, READ_FILE))?
                .add_rules(path_beneath_rules(super::RESOLVER_FILES, READ_FILE))?
                .add_rules(path_beneath_rules(LIBRARIES, READ_FILE))?;
        }
        Ok(Self(rules))
    }

    /// Lays out rules for what ordering certificates takes.
    pub(super) fn around_storage(storage: &Path) -> Result<Self, SandboxError> {
        let folder =
            PathFd::new(storage).map_err(|source| SandboxError::Storage { path: storage.to_owned(), source })?;
        let rules = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .add_rule(PathBeneath::new(folder, STORAGE))?
            .add_rules(path_beneath_rules(TIME_ZONE, READ))?
            .add_rules(path_beneath_rules(DEVICES, READ_FILE))?
            .add_rules(path_beneath_rules(["/dev/null"], make_bitflags!(AccessFs::{ReadFile | WriteFile})))?
            .add_rules(path_beneath_rules(["/proc/self/exe"], READ_FILE))?
            .add_rules(path_beneath_rules(super::RESOLVER_FILES, READ_FILE))?
            .add_rules(path_beneath_rules(LIBRARIES, READ_FILE))?;
        Ok(Self(rules))
    }

    /// Puts the rules in force; answers what they do not keep from happening on this kernel.
    pub(super) fn close(self) -> Result<Option<String>, RulesetError> {
        let weakness = match self.0.restrict_self()?.ruleset {
            RulesetStatus::FullyEnforced => return Ok(None),
            RulesetStatus::PartiallyEnforced => {
                "the kernel is older than Linux 6.12: its landlock keeps the worker to its folders, but not from all that \
                 a newer one does (binding ports, abstract sockets, signals)"
            }
            RulesetStatus::NotEnforced => {
                "the kernel has no landlock, or has it switched off: the worker can read what its user may read; add \
                 `landlock` to the kernel's `lsm=`"
            }
        };
        Ok(Some(weakness.to_owned()))
    }
}

/// The newest version whose rights have been tried with what the worker does.
const NEWEST: ABI = ABI::V7;

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const READ_FILE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile});

/// Files without a name, or with one for a moment. Not those of others there: nothing is listed.
const SPOOL: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | MakeReg | RemoveFile});

/// Objects of the storage, in folders of theirs: written beside and renamed.
const STORAGE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile});

/// For the times of the access log. A plain file `/etc/localtime` that is replaced is that of the next worker: until then
/// times are in UTC.
const TIME_ZONE: [&str; 2] = ["/etc/localtime", "/usr/share/zoneinfo"];

/// Where there is no `getrandom`; and, where there is this one, aws-lc ends the process if it cannot be opened.
const DEVICES: [&str; 2] = ["/dev/urandom", "/dev/sysgenid"];

/// Where a worker reads what resolving a name takes, beside [`super::RESOLVER_FILES`].
///
/// All of `/etc`, because a rule holds for a file and not for its name: the first `sed -i /etc/hosts` or renewed lease
/// puts another file there, and a worker with a rule for the old one would resolve nothing from then on. For the same
/// reason the folders that `/etc/resolv.conf` may lead to. Only where an endpoint is a name: what is beneath `/etc` and not
/// everybody's is often the application's group's, and that is ours.
///
/// Not for the agent, which is root by name and could read all of it: that one is begun anew ([`super::Resolver`]).
const RESOLVER_FOLDERS: [&str; 4] = ["/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager"];

/// What glibc loads to ask whom `/etc/nsswitch.conf` names. Mapping a library needs no right to execute it.
const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
