//! Root's rights, given up for good.

use std::collections::BTreeSet;

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Gid, Resource, Rlimit, Uid, getegid, geteuid, getgid, getgroups, getuid},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        no_new_privs, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid, set_thread_uid,
    },
};

use crate::keeper::user::User;

/// A privilege that stayed where it should not, or one that we lack to give up the others.
#[derive(Debug, thiserror::Error)]
pub(in crate::process) enum PrivilegeError {
    #[error("cannot become the user {name} (`user`): {what}")]
    Become { name: String, what: &'static str, source: Errno },
    #[error("{what}")]
    System { what: &'static str, source: Errno },
    #[error("the user {name} (`user`) has been become, but not altogether: {left}")]
    Left { name: String, left: &'static str },
    #[error("capabilities are left: {0:?}")]
    Capabilities(CapabilitySets),
}

/// Becomes `user`, if there is one, without any capability and without a way to gain one; answers what stays.
///
/// All calls are those of the kernel, which hold for this thread alone, and for those it begins.
pub(super) fn give_up(user: Option<&User>) -> Result<Vec<String>, PrivilegeError> {
    let mut weaknesses = Vec::new();
    match user {
        Some(user) if user.is_root() => {
            weaknesses.push(
                "user: the worker is root, with all that root may do: whoever takes it over has the machine; name a \
                 user that owns nothing of value"
                    .to_owned(),
            );
        }
        Some(user) => {
            // First of all: it takes one of the capabilities that go with root.
            empty_bounding_set()?;
            become_user(user)?;
            drop_capabilities()?;
        }
        None => {
            empty_bounding_set()?;
            drop_capabilities()?;
            if geteuid().is_root() {
                weaknesses.push(
                    "user: the process is root without capabilities: whatever root owns is open to it".to_owned(),
                );
            }
        }
    }
    set_no_new_privs(true).map_err(system("cannot give up what set-uid programs would give"))?;
    hide_memory()?;
    if let Some(user) = user.filter(|user| !user.is_root()) {
        verify_user(user)?;
    }
    if !user.is_some_and(User::is_root) {
        let left = capabilities(None).map_err(system(READ))?;
        if !(left.effective | left.permitted | left.inheritable).is_empty() {
            return Err(PrivilegeError::Capabilities(left));
        }
    }
    if !no_new_privs().map_err(system(READ))? {
        return Err(PrivilegeError::System { what: "set-uid programs are still honoured", source: Errno::PERM });
    }
    Ok(weaknesses)
}

/// Limits what a program could gain that we ran.
///
/// Where that is not allowed, which is so for everyone but root, the set limits nothing that could be had: set-uid
/// programs and capabilities of files mean nothing to us afterwards.
fn empty_bounding_set() -> Result<(), PrivilegeError> {
    // By number, so that those which are newer than we are go as well.
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => {}
            Ok(false) => continue,
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            Err(source) => return Err(system(READ)(source)),
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::PERM) => break,
            Err(source) => return Err(system("cannot limit the capabilities of other programs")(source)),
        }
    }
    Ok(())
}

/// Groups first, then the user: after it there is no right to change groups.
fn become_user(user: &User) -> Result<(), PrivilegeError> {
    let cannot = |what| move |source| PrivilegeError::Become { name: user.name.clone(), what, source };
    let (uid, gid) = (user.uid(), user.gid());
    set_thread_groups(&user.groups()).map_err(cannot("cannot take its groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(cannot("cannot take its group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(cannot("cannot take its number"))
}

fn drop_capabilities() -> Result<(), PrivilegeError> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    // The ambient set holds nothing that is not inheritable too: that none is left need not be asked for each.
    clear_ambient_capability_set().map_err(system("cannot give up ambient capabilities"))?;
    set_capabilities(None, sets).map_err(system("cannot give up capabilities"))
}

/// Keeps keys and bodies out of core dumps, and out of reach of others of our user.
///
/// The application is often that same user, and whoever has taken it over could otherwise trace us and read the keys of
/// the certificates in our memory. What belongs to us in `/proc` then belongs to root; our own descriptors there, which
/// [`crate::files`] asks for, stay open to us, because a process may always look at itself.
///
/// After the change of user, at which the kernel sets the first of the two anew.
pub(in crate::process) fn hide_memory() -> Result<(), PrivilegeError> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(system("cannot hide the memory of the process"))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(system("cannot forbid core dumps"))
}

fn verify_user(user: &User) -> Result<(), PrivilegeError> {
    let left = |left| Err(PrivilegeError::Left { name: user.name.clone(), left });
    if getuid() != user.uid() || geteuid() != user.uid() {
        return left("the user is another one");
    }
    if getgid() != user.gid() || getegid() != user.gid() {
        return left("the group is another one");
    }
    let numbers = |groups: Vec<Gid>| groups.into_iter().map(Gid::as_raw).collect::<BTreeSet<_>>();
    if numbers(getgroups().map_err(system(READ))?) != numbers(user.groups()) {
        return left("the groups are other ones");
    }
    if set_thread_uid(Uid::ROOT).is_ok() {
        return left("root can be had back");
    }
    Ok(())
}

fn system(what: &'static str) -> impl Fn(Errno) -> PrivilegeError {
    move |source| PrivilegeError::System { what, source }
}

const READ: &str = "cannot find out which privileges are left";
