//! Folders of our own, made where they are missing.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

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
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    // One that an earlier process with our id left behind may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written =
        file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, folder.join(name)));
    if written.is_err() {
        // The error to report is the first.
        drop(fs::remove_file(&temporary));
    }
    written?;
    File::open(folder)?.sync_all()
}
