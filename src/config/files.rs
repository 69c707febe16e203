//! The folders a plan names, looked at without binding or changing anything: for `check`, and before a start.
//!
//! Certificates and keys are for [`crate::tls::check`] to look at.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD},
    io::Errno,
    process::geteuid,
};

use super::{
    error::Problem,
    plan::{ListenAddress, LogSink, Plan},
};

/// The folders of `plan` that are not there and would not be made, or that the user this runs as cannot write in.
pub fn unusable_folders(plan: &Plan) -> Vec<Problem> {
    let mut folders = Folders::default();
    let mut problems = Vec::new();
    let mut note = |at: String, outcome: Result<(), String>| {
        problems.extend(outcome.err().map(|problem| Problem { at, problem }));
    };

    // In the order of a start: what one key makes may hold what the next one names.
    if (plan.tls.is_self_signed() || plan.tls.awaits_certificates())
        && plan.listeners.iter().any(|listener| listener.tls)
    {
        note("tls.storage".to_owned(), folders.storage(&plan.tls.storage));
    }
    if let Some(LogSink::File(path)) = plan.access_log.as_ref().map(|log| &log.sink) {
        note("access_log.path".to_owned(), folders.log(path));
    }
    if let Some(log) = &plan.error_log {
        note("error_log.path".to_owned(), folders.log(&log.path));
    }
    note("spool.path".to_owned(), folders.ours(&plan.spool.path));
    for (position, listener) in plan.listeners.iter().enumerate() {
        if let ListenAddress::Unix(path) = &listener.address {
            note(format!("listeners[{position}].address"), folders.socket(path));
        }
    }
    if let Some(path) = plan.admin.as_ref().and_then(|admin| admin.socket.as_ref()) {
        note("admin".to_owned(), folders.ours(folder_of(path)));
    }
    for (position, route) in plan.routes.iter().enumerate() {
        for (place, folder) in route.files.iter().enumerate() {
            note(format!("routes[{position}].files[{place}]"), folders.served(folder));
        }
    }
    for (position, listener) in plan.listeners.iter().enumerate() {
        if let Some(server) = &listener.log_server {
            note(format!("listeners[{position}].log_server.folder"), folders.served(&server.folder));
        }
    }
    problems
}

/// What there will be once a start has made what it makes.
#[derive(Default)]
struct Folders {
    made: Vec<PathBuf>,
}

impl Folders {
    /// A folder that is made unless it is there, and written in.
    fn ours(&mut self, folder: &Path) -> Result<(), String> {
        self.make(folder)?;
        self.writable(folder)
    }

    /// Self-signed certificates have a folder within, of a mode of its own.
    fn storage(&mut self, storage: &Path) -> Result<(), String> {
        self.make(storage)?;
        self.ours(&storage.join("self-signed"))
    }

    fn log(&mut self, file: &Path) -> Result<(), String> {
        match fs::metadata(file) {
            Ok(found) if found.is_dir() => Err(format!("{} is a folder; name a file in it", file.display())),
            Ok(_) => access(file, Access::WRITE_OK).map_err(|errno| refused(file, "write to", errno)),
            Err(_) => self.ours(folder_of(file)),
        }
    }

    /// The folder of a listener's socket is never made: whoever connects has to find it.
    fn socket(&self, socket: &Path) -> Result<(), String> {
        let folder = folder_of(socket);
        if self.is_there(folder)? { self.writable(folder) } else { Err(absent(folder)) }
    }

    fn served(&self, folder: &Path) -> Result<(), String> {
        if self.is_there(folder)? {
            return Ok(());
        }
        Err(format!("{} is not there, so no file could be sent from it; create it, or take it out", folder.display()))
    }

    /// A start makes the last part of a folder, and no more.
    fn make(&mut self, folder: &Path) -> Result<(), String> {
        if self.is_there(folder)? {
            return Ok(());
        }
        let outer = folder_of(folder);
        if !self.is_there(outer)? {
            return Err(format!("{}; a start makes the last part of a folder only", absent(outer)));
        }
        self.writable(outer)?;
        self.made.push(folder.to_owned());
        Ok(())
    }

    fn is_there(&self, folder: &Path) -> Result<bool, String> {
        match fs::metadata(folder) {
            Ok(found) if found.is_dir() => Ok(true),
            Ok(_) => Err(format!("{} is not a folder", folder.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.made.iter().any(|made| made == folder)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(format!("{}, who this runs as, cannot look at {}", user(), folder.display()))
            }
            Err(error) => Err(format!("cannot look at {}: {error}", folder.display())),
        }
    }

    fn writable(&self, folder: &Path) -> Result<(), String> {
        if self.made.iter().any(|made| made == folder) {
            return Ok(());
        }
        access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| refused(folder, "write in", errno))
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn absent(folder: &Path) -> String {
    format!("the folder {} is not there; create it", folder.display())
}

/// For the user that counts when a file is opened, which the kernel knows best (capabilities, read-only mounts).
fn access(path: &Path, wanted: Access) -> Result<(), Errno> {
    rustix::fs::accessat(CWD, path, wanted, AtFlags::EACCESS)
}

fn refused(path: &Path, act: &str, errno: Errno) -> String {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            format!("{}, who this runs as, cannot {act} {}; let it, or name another place", user(), path.display())
        }
        errno => format!("cannot {act} {}: {}", path.display(), io::Error::from(errno)),
    }
}

/// The user this runs as, by name where the machine's own list has one.
fn user() -> String {
    let id = geteuid().as_raw().to_string();
    let named = |line: &str| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)? == id).then(|| name.to_owned())
    };
    let list = fs::read_to_string("/etc/passwd").unwrap_or_default();
    list.lines().find_map(named).unwrap_or_else(|| format!("the user {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    /// What is found wrong with the least that can run and `more`, in a folder that has `file` and `there` in it.
    fn problems(more: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("there")).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let name = folder.path().join("v.yml");
        let text = format!(
            "upstreams: {{ app: {{ endpoints: ['127.0.0.1:8000'] }} }}\n{}",
            more.replace("HERE", &folder.path().display().to_string())
        );
        let plan = parse(name.to_str().unwrap(), &text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        let shown = |found: Problem| format!("{}: {}", found.at, found.problem);
        let here = format!("{}/", folder.path().display());
        unusable_folders(&plan).into_iter().map(|found| shown(found).replace(&here, "")).collect()
    }

    const PLAIN: &str = "listeners: [{ address: '[::]:80' }]\nroutes: [{ prefix: /, upstream: app }]\n";
    const TLS: &str = "listeners: [{ address: '[::]:443', tls: true }]\nroutes: [{ prefix: /, upstream: app }]\n";

    #[test]
    fn what_is_there_or_can_be_made_is_no_problem() {
        for text in [
            "spool: { path: there }\n",
            "spool: { path: new }\n",
            "access_log: { path: file }\n",
            "access_log: { path: there/access.log }\n",
            "access_log: { path: new/access.log }\n",
            "admin: unix:new/admin.sock\n",
            "tls: { storage: absent/absent }\n",
            // Each is made in what the one before has made.
            "access_log: { path: new/access.log }\nspool: { path: new/spool }\nadmin: unix:new/admin.sock\n",
        ] {
            assert_eq!(problems(&format!("{PLAIN}{text}")), [""; 0], "{text}");
        }
        let served = "listeners: [{ address: 'unix:there/front.sock' }, { address: 'unix:new/front.sock' }]\n\
            routes: [{ prefix: /, upstream: app, files: [HERE/there] }]\nspool: { path: new }\n";
        assert_eq!(problems(served), [""; 0]);
        assert_eq!(problems(&format!("{TLS}tls: {{ storage: new }}\nspool: {{ path: new/spool }}\n")), [""; 0]);
    }

    #[test]
    fn what_a_start_could_not_use_is_told_with_its_key() {
        let only = "a start makes the last part of a folder only";
        for (text, problem) in [
            ("spool: { path: file }\n", "spool.path: file is not a folder".to_owned()),
            ("spool: { path: a/b }\n", format!("spool.path: the folder a is not there; create it; {only}")),
            (
                "access_log: { path: a/b/c.log }\n",
                format!("access_log.path: the folder a is not there; create it; {only}"),
            ),
            ("access_log: { path: there }\n", "access_log.path: there is a folder; name a file in it".to_owned()),
            ("admin: unix:a/b/admin.sock\n", format!("admin: the folder a is not there; create it; {only}")),
        ] {
            assert_eq!(problems(&format!("{PLAIN}{text}")), [problem], "{text}");
        }
    }

    #[test]
    fn self_signed_certificates_need_their_folder_and_others_do_not() {
        assert_eq!(
            problems(&format!("{TLS}tls: {{ storage: a/b }}\n")),
            ["tls.storage: the folder a is not there; create it; a start makes the last part of a folder only"]
        );
        let own = "tls: { storage: a/b, certificates: [{ files: { certificate: c.pem, key: k.pem } }] }\n";
        assert_eq!(problems(&format!("{TLS}{own}")), [""; 0]);
    }

    #[test]
    fn the_folder_of_a_listener_and_that_of_files_are_never_made() {
        let text = "listeners: [{ address: 'unix:new/front.sock' }]\n\
            routes: [{ prefix: /, upstream: app, files: [HERE/there, HERE/new, HERE/file] }]\n";

        assert_eq!(
            problems(text),
            [
                "listeners[0].address: the folder new is not there; create it",
                "routes[0].files[1]: new is not there, so no file could be sent from it; create it, or take it out",
                "routes[0].files[2]: file is not a folder",
            ]
        );
    }
}
