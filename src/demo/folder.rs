//! A folder of the demonstration's own.

use std::{
    env, fs,
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// A new folder for our eyes only, removed with all that is in it when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes one where temporary files go (`TMPDIR`).
    pub(super) fn make() -> Result<Self, FolderError> {
        let parent = env::temp_dir();
        let failed = |source| FolderError { parent: parent.clone(), source };
        let parent = parent.canonicalize().map_err(failed)?;
        loop {
            let path = parent.join(format!("vestibule-demo-{:08x}", fastrand::u32(..)));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Somebody's: only one that is new is ours.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            // The application may have been first.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let folder = self.0.display();
                tracing::warn!(%folder, error = &error as &dyn std::error::Error, "a folder is left behind");
            }
            _ => {}
        }
    }
}

/// There is no place for temporary files.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a folder in {}; let TMPDIR name one that can be written in", parent.display())]
pub(super) struct FolderError {
    parent: PathBuf,
    source: io::Error,
}
