//! Folders of our own, made where they are missing.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt, path::Path};

/// Makes the folder `path` with `mode` unless it is there. Only the last part is made: a whole missing tree is more
/// often a misspelt path than a wish. Answers whether it was made.
pub(super) fn make(path: &Path, mode: u32) -> io::Result<bool> {
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
