//! Folders of our own, made where they are missing.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{Gid, Uid, fchown};

use crate::config::untrusted;

/// Makes the folder `path` with `mode` unless it is there. Only the last part is made: a whole missing tree is more
/// often a misspelt path than a wish. Answers whether it was made.
pub(crate) fn make(path: &Path, mode: u32) -> io::Result<bool> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the folder that `file` is to be in, mode 0755, unless it is there.
pub(super) fn make_for(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => make(folder, 0o755).map(drop),
        _ => Ok(()),
    }
}

/// The folder `name` of the storage, for nobody's eyes but ours (0700); both are made where they are missing.
///
/// Root writes in no storage that others could lead elsewhere.
pub(crate) fn private(storage: &Path, name: &str) -> io::Result<PathBuf> {
    let folder = storage.join(name);
    make(storage, 0o700)?;
    if let Some(why) = untrusted(storage) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    make(&folder, 0o700)?;
    // It may have been there with another mode.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    Ok(folder)
}

/// Writes `name` so that at every moment, even after a power cut, it is whole: the old content or the new.
pub(crate) fn write(folder: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    Staged::new(&folder.join(name), content, mode, None)?.put()
}

/// A file that is written and does not have its name yet. It is gone if it is dropped before.
pub(crate) struct Staged {
    file: PathBuf,
    temporary: Option<PathBuf>,
}

impl Staged {
    /// Writes what is to be `file`, for `owner` or for us.
    pub(crate) fn new(file: &Path, content: &[u8], mode: u32, owner: Option<(Uid, Gid)>) -> io::Result<Self> {
        let temporary = temporary(file)?;
        let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        let staged = Self { file: file.to_owned(), temporary: Some(temporary) };
        if let Some((user, group)) = owner {
            fchown(&open, Some(user), Some(group))?;
            // What the umask has taken from it, and a change of the owner.
            open.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        open.write_all(content)?;
        open.sync_all()?;
        Ok(staged)
    }

    /// Gives it its name, in place of whatever has it.
    pub(crate) fn put(mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.file)?;
            self.temporary = None;
        }
        self.file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error to report is the first.
            drop(fs::remove_file(temporary));
        }
    }
}

/// Has the symbolic link `link` lead to `target`, in place of whatever has its name.
pub(crate) fn link(link: &Path, target: &Path) -> io::Result<()> {
    let temporary = temporary(link)?;
    symlink(target, &temporary)?;
    fs::rename(&temporary, link).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// The name that `file` is made under, which is free.
fn temporary(file: &Path) -> io::Result<PathBuf> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = file.with_file_name(format!(".{name}.{}", std::process::id()));
    // A process that was killed has left its own behind, with what may be a key in it.
    for entry in file.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten() {
        let left = entry.file_name();
        let process = left.to_str().and_then(|left| left.strip_prefix(&format!(".{name}."))?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            fs::remove_file(entry.path()).ok();
        }
    }
    // One that an earlier process with our id left behind may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(temporary),
    }
}
