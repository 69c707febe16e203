//! The user that carries the traffic when we are started as root.

use rustix::fs::{Gid, Mode, RawMode, Uid};
use serde::{Deserialize, Serialize};

use crate::config::{Plan, Problem};

/// A user of this machine, with its groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    uid: u32,
    gid: u32,
    /// All of its groups, the first one included.
    groups: Vec<u32>,
}

/// A user that is not known here.
#[derive(Debug, thiserror::Error)]
#[error(
    "user: there is no user `{name}` on this machine; make one (`adduser --system --group {name}`) or name another one \
     that owns nothing of value"
)]
pub struct UnknownUser {
    pub name: String,
}

/// What of `plan` its `user` cannot be or do, where we are root and that user is to carry the traffic.
pub fn unusable(plan: &Plan) -> Vec<Problem> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let user = match User::find(&plan.user) {
        Ok(user) => user,
        Err(unknown) => {
            let problem = unknown.to_string().trim_start_matches("user: ").to_owned();
            return vec![Problem { at: "user".to_owned(), problem }];
        }
    };
    let mut problems = Vec::new();
    if let Ok(found) = rustix::fs::stat(&plan.spool.path)
        && !user.may_write(found.st_uid, found.st_gid, found.st_mode)
    {
        let folder = plan.spool.path.display();
        let problem =
            format!("the user {} (`user`) cannot write in {folder}; `chown {} {folder}`", user.name, user.name);
        problems.push(Problem { at: "spool.path".to_owned(), problem });
    }
    problems
}

/// Who the backends of `plan` cannot be run as: a user that there is not, one that we cannot become, and root, unless it
/// is said for that backend.
pub fn unusable_for_backends(plan: &Plan) -> Vec<Problem> {
    let is_root = rustix::process::geteuid().is_root();
    let own = uzers::get_current_username();
    let mut problems = Vec::new();
    for (name, backend) in &plan.backends {
        let at = format!("backends.{name}.user");
        let problem = match &backend.user {
            Some(user) if !is_root && own.as_deref() != Some(user.as_ref()) => {
                "only root can run a program as another user; take `user` out, or start vestibule as root".to_owned()
            }
            None if is_root && User::find(&plan.user).is_ok_and(|user| user.is_root()) => {
                "`user` at the top is root: name another one for this program, or say `root` here as well".to_owned()
            }
            user => match user.as_ref().map(|user| User::find(user)) {
                Some(Err(unknown)) => unknown.to_string().trim_start_matches("user: ").to_owned(),
                _ => continue,
            },
        };
        problems.push(Problem { at, problem });
    }
    problems
}

impl User {
    /// Looks `name` up, in the files or whatever else the machine asks.
    pub fn find(name: &str) -> Result<Self, UnknownUser> {
        let unknown = || UnknownUser { name: name.to_owned() };
        let user = uzers::get_user_by_name(name).ok_or_else(unknown)?;
        let groups = uzers::get_user_groups(name, user.primary_group_id()).unwrap_or_default();
        Ok(Self {
            name: name.to_owned(),
            uid: user.uid(),
            gid: user.primary_group_id(),
            groups: groups.iter().map(uzers::Group::gid).collect(),
        })
    }

    pub fn uid(&self) -> Uid {
        Uid::from_raw(self.uid)
    }

    pub fn gid(&self) -> Gid {
        Gid::from_raw(self.gid)
    }

    pub fn groups(&self) -> Vec<Gid> {
        self.groups.iter().copied().map(Gid::from_raw).collect()
    }

    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether the mode of a folder of that owner and group lets it make files there.
    pub(super) fn may_write(&self, uid: u32, gid: u32, mode: RawMode) -> bool {
        let mode = Mode::from_raw_mode(mode);
        let needed = if self.uid == 0 {
            return true;
        } else if self.uid == uid {
            Mode::WUSR | Mode::XUSR
        } else if self.gid == gid || self.groups.contains(&gid) {
            Mode::WGRP | Mode::XGRP
        } else {
            Mode::WOTH | Mode::XOTH
        };
        mode.contains(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, groups: &[u32]) -> User {
        User { name: "somebody".to_owned(), uid, gid: groups[0], groups: groups.to_vec() }
    }

    #[test]
    fn a_user_that_there_is_has_its_groups_and_one_that_there_is_not_is_refused_with_what_to_do() {
        let root = User::find("root").unwrap();
        assert!(root.is_root() && root.groups().contains(&root.gid()));

        let refused = User::find("no-such-user-here").unwrap_err().to_string();
        assert!(refused.contains("no-such-user-here") && refused.contains("adduser"), "{refused}");
    }

    #[test]
    fn a_folder_is_writable_by_the_bits_of_the_first_of_owner_group_and_others_that_it_is() {
        for (who, owner, mode, expected) in [
            (user(0, &[0]), (1, 1), 0o000, true),
            (user(5, &[6]), (5, 1), 0o700, true),
            (user(5, &[6]), (5, 6), 0o077, false),
            (user(5, &[6, 7]), (1, 7), 0o770, true),
            (user(5, &[6]), (1, 7), 0o770, false),
            (user(5, &[6]), (1, 7), 0o777, true),
            (user(5, &[6]), (1, 7), 0o776, false),
        ] {
            assert_eq!(who.may_write(owner.0, owner.1, mode), expected, "{who:?} {owner:?} {mode:o}");
        }
    }
}
