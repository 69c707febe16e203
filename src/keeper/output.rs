//! Where log lines go, opened for the gateway that writes them.

use std::{
    fs::{self, File, OpenOptions},
    io, iter,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf, absolute},
};

use rustix::fs::{Gid, OFlags, Uid, fchown};

use super::{folder, user::User};
use crate::config::{LogSink, untrusted_for_logs};

/// An open log.
#[derive(Debug)]
pub enum LogOutput {
    Stdout,
    /// Opened to append: what another process writes to it stays whole.
    File {
        path: PathBuf,
        file: File,
    },
}

impl LogOutput {
    /// `owner` is who carries the traffic for us, and may own the folder.
    pub fn open(sink: &LogSink, owner: Option<&User>) -> Result<Self, OutputError> {
        match sink {
            LogSink::Stdout => Ok(Self::Stdout),
            LogSink::File(path) => Self::file(path, owner),
        }
    }

    pub fn file(path: &Path, owner: Option<&User>) -> Result<Self, OutputError> {
        Ok(Self::File { path: path.to_owned(), file: open(path, owner.map(User::uid))? })
    }

    /// `None` of standard output.
    pub fn into_file(self) -> Option<File> {
        match self {
            Self::File { file, .. } => Some(file),
            Self::Stdout => None,
        }
    }
}

/// Opens the log at `path` to append, made with mode 0640 if it is missing, in a folder made with mode 0755 if only that
/// is missing. As root it is made for the group `adm`, where there is one, as Debian's logs are.
///
/// Also for a reopening (SIGUSR1): the file that has been moved away is complete once the old one is dropped.
///
/// # Errors
///
/// Besides what the system refuses: as root, a path that others could lead elsewhere. A folder of `owner`'s is none, as
/// no link in it is followed and no file with another name written to.
pub fn open(path: &Path, owner: Option<Uid>) -> Result<File, OutputError> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640);
    let (mut real, mut plain) = (path.to_owned(), false);
    let root = rustix::process::geteuid().is_root();
    let untrusted = |why| OutputError::Untrusted { path: path.to_owned(), why };
    if root && let Some(file) = followed(path, owner).map_err(untrusted)? {
        // What was looked at, and no link that has come since.
        // Nor a pipe, which would be waited for.
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        real = file;
        plain = true;
    }
    let new = root && fs::symlink_metadata(&real).is_err();
    let failed = |source| OutputError::Open { path: path.to_owned(), source };
    let file = folder::make_for(&real).and_then(|()| options.open(&real)).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if plain && !found.is_file() {
        return Err(untrusted("it is no file; remove it".to_owned()));
    }
    if root && found.is_file() && found.nlink() > 1 {
        return Err(untrusted(format!(
            "it has {} names, one of which may be of a file of the system's; remove it",
            found.nlink()
        )));
    }
    if new && let Some(group) = uzers::get_group_by_name("adm") {
        fchown(&file, None, Some(Gid::from_raw(group.gid()))).ok();
    }
    Ok(file)
}

/// Whether the files in the folder of `path` are for us to rename; whose they are otherwise rotates them.
pub(super) fn may_rotate(path: &Path) -> bool {
    let root = rustix::process::geteuid().is_root();
    !root || path.parent().is_none_or(|folder| untrusted_for_logs(folder).is_none())
}

/// Whether `path` is, or is a link to, something other than a file in a folder: `/dev/stdout`, `/proc/self/fd/2`.
pub(super) fn is_device(path: &Path) -> bool {
    way(path).any(|here| is_system(&here))
}

/// The file that root opens for `path`, which nobody else chooses; `None` for a device. Otherwise why not.
fn followed(path: &Path, owner: Option<Uid>) -> Result<Option<PathBuf>, String> {
    let mut last = None;
    for here in way(path) {
        if is_system(&here) {
            return Ok(None);
        }
        let folder = here.parent().unwrap_or(&here);
        if let Some(why) = untrusted_for_logs(folder) {
            let is_owners = fs::metadata(folder).is_ok_and(|found| {
                owner.is_some_and(|owner| found.uid() == owner.as_raw()) && found.mode() & 0o002 == 0
            });
            let above = folder.parent().and_then(untrusted_for_logs);
            if !is_owners || above.is_some() {
                return Err(above.unwrap_or(why));
            }
            if fs::symlink_metadata(&here).is_ok_and(|found| !found.is_file()) {
                return Err(format!("{} is no file; remove it", here.display()));
            }
            return Ok(Some(here));
        }
        // In a folder such as /tmp anybody makes links and files.
        let shared = fs::metadata(folder).is_ok_and(|found| found.mode() & 0o022 != 0);
        if let Ok(found) = fs::symlink_metadata(&here)
            && found.uid() != 0
            && (found.is_symlink() || shared)
        {
            return Err(format!(
                "{} belongs to the user {}, who may lead root elsewhere; remove it, or log in a folder of root's own",
                here.display(),
                found.uid()
            ));
        }
        last = Some(here);
    }
    Ok(last)
}

/// `path`, what it is a link to, and so on; as far as the kernel follows.
fn way(path: &Path) -> impl Iterator<Item = PathBuf> {
    let next = |here: &PathBuf| Some(here.parent()?.join(fs::read_link(here).ok()?));
    iter::successors(absolute(path).ok(), next).take(40)
}

fn is_system(path: &Path) -> bool {
    path.starts_with("/proc") || (path.starts_with("/dev") && !path.starts_with("/dev/shm"))
}

/// A log that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("cannot open {} to append: {source}; {}", path.display(), remedy(source))]
    Open { path: PathBuf, source: io::Error },
    #[error("will not write {} as root: {why}", path.display())]
    Untrusted { path: PathBuf, why: String },
    #[error("cannot put {} aside: {source}", path.display())]
    Aside { path: PathBuf, source: io::Error },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create its folder",
        io::ErrorKind::IsADirectory => "name a file, not a folder",
        _ => "let the user Vestibule runs as write there, or log to standard output, which is `-`",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    /// For what only root is refused.
    fn folder() -> Option<tempfile::TempDir> {
        rustix::process::geteuid().is_root().then(|| tempfile::tempdir().unwrap())
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn root_writes_no_log_where_others_could_lead_it_elsewhere() {
        let Some(folder) = folder() else { return };
        let logs = folder.path().join("log");
        let path = logs.join("access.log");
        fs::create_dir(&logs).unwrap();

        chown(&logs, Some(12345), None).unwrap();
        let refused = open(&path, None).unwrap_err().to_string();
        assert!(refused.contains("belongs to the user 12345") && !path.exists(), "{refused}");
        chown(&logs, Some(0), None).unwrap();
        mode(&logs, 0o777);
        open(&path, None).unwrap_err();
        mode(&logs, 0o755);
        symlink("elsewhere", &path).unwrap();
        lchown(&path, Some(12345), None).unwrap();
        open(&path, None).unwrap_err();
        assert!(!logs.join("elsewhere").exists());
    }

    #[test]
    fn in_a_folder_that_all_may_write_in_root_takes_only_its_own_files() {
        let Some(folder) = folder() else { return };
        for shared in [0o1777, 0o775] {
            mode(folder.path(), shared);
            let path = folder.path().join(format!("{shared:o}.log"));

            open(&path, None).unwrap();
            open(&path, None).unwrap();
            chown(&path, Some(12345), None).unwrap();
            let refused = open(&path, None).unwrap_err().to_string();
            assert!(refused.contains("12345"), "{refused}");
        }
    }

    #[test]
    fn a_log_of_somebody_elses_in_a_folder_of_roots_is_taken() {
        let Some(folder) = folder() else { return };
        let path = folder.path().join("access.log");
        fs::write(&path, "").unwrap();
        chown(&path, Some(12345), None).unwrap();

        open(&path, None).unwrap();
    }

    #[test]
    fn a_link_is_followed_to_a_file_that_is_there_or_not_and_to_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let [near, far, device] = ["near", "far", "device"].map(|name| folder.path().join(name));
        fs::create_dir(folder.path().join("disk")).unwrap();
        symlink("far", &near).unwrap();
        symlink("disk/real", &far).unwrap();
        symlink("/dev/null", &device).unwrap();

        open(&near, None).unwrap();
        open(&near, None).unwrap();
        assert!(folder.path().join("disk/real").exists());
        open(&device, None).unwrap();
        assert!(is_device(&device) && !is_device(&near));
    }

    #[test]
    fn what_a_process_has_open_can_be_written_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file.as_file()));

        open(Path::new(&path), None).unwrap();

        assert!(is_device(Path::new(&path)));
        for path in ["/dev/stdout", "/dev/fd/1", "/dev/pts/0"] {
            assert!(is_device(Path::new(path)), "{path}");
        }
        assert!(!is_device(Path::new("/dev/shm/access.log")));
    }

    #[test]
    fn root_writes_in_a_folder_of_the_workers_user_where_nothing_leads_elsewhere() {
        let Some(folder) = folder() else { return };
        let theirs = folder.path().join("nginx");
        fs::create_dir(&theirs).unwrap();
        let user = Uid::from_raw(12345);
        chown(&theirs, Some(12345), None).unwrap();
        let path = theirs.join("access.log");

        assert!(open(&path, None).is_err(), "nobody said whose it may be");
        drop(open(&path, Some(user)).unwrap());
        let adm = uzers::get_group_by_name("adm").map_or(0, |group| group.gid());
        let made = fs::metadata(&path).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (0, adm, 0o640));
        assert!(!may_rotate(&path), "they could exchange names while we do");

        let victim = folder.path().join("victim");
        fs::write(&victim, "").unwrap();
        let (link, name) = (theirs.join("link.log"), theirs.join("name.log"));
        symlink(&victim, &link).unwrap();
        fs::hard_link(&victim, &name).unwrap();
        for path in [&link, &name] {
            let refused = open(path, Some(user)).unwrap_err().to_string();
            assert!(refused.contains("no file") || refused.contains("2 names"), "{refused}");
        }
        assert_eq!(fs::read(&victim).unwrap(), b"");
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open(&path, Some(user)).is_err(), "anybody's");
    }
}
