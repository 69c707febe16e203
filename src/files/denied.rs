//! What is never served, whatever the roots say: configuration, keys, storage.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::roots::RootsError;

/// Files and directories that are never served.
///
/// Recognised by where they really are, and, so that a hard link or a bind mount does not help, by device and inode.
/// The inodes are those of the moment it was made, of at most [`Denied::INODES`] files; the paths have no such limit
/// and hold for what is made in them later.
///
/// Made by whoever may pass every folder on the way to them, and handed on.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Denied {
    /// Without links.
    paths: HashSet<PathBuf>,
    /// Device and inode.
    files: HashSet<(u64, u64)>,
}

impl Denied {
    pub const INODES: usize = 10_000;

    /// A path that does not exist is denied for the day it does.
    ///
    /// # Errors
    ///
    /// Where one is cannot be known, so it could not be kept from being served. Blocks on the disk.
    pub fn new(denied: &[PathBuf]) -> Result<Self, RootsError> {
        let mut this = Self::default();
        let mut folders = HashMap::new();
        for path in denied {
            let found = fs::symlink_metadata(path).ok();
            let is_plain = found.as_ref().is_some_and(|found| !found.is_symlink());
            let canonical = if is_plain { canonical_among(path, &mut folders) } else { canonical(path) };
            let canonical = canonical.map_err(|source| RootsError::Deny { path: path.clone(), source })?;
            match found {
                Some(file) if file.is_file() => drop(this.files.insert((file.dev(), file.ino()))),
                _ => this.remember(canonical.clone()),
            }
            this.paths.insert(canonical);
        }
        Ok(this)
    }

    /// `real` is a path the kernel gave.
    pub(super) fn covers(&self, real: &Path, file: (u64, u64)) -> bool {
        // The kernel's mark on a name that is gone: a key that is replaced just now is still a key.
        let bytes = real.as_os_str().as_bytes();
        let unmarked = Path::new(OsStr::from_bytes(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes)));
        let mut ways = real.ancestors().chain(unmarked.ancestors());
        self.files.contains(&file) || ways.any(|folder| self.paths.contains(folder))
    }

    /// Notes the inodes of the files at and under `path`. What cannot be read is left to the paths.
    fn remember(&mut self, path: PathBuf) {
        let mut waiting = vec![path];
        while let Some(path) = waiting.pop() {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                let Ok(entries) = fs::read_dir(&path) else { continue };
                let room = Self::INODES.saturating_sub(self.files.len() + waiting.len());
                waiting.extend(entries.take(room).filter_map(Result::ok).map(|entry| entry.path()));
            } else if metadata.is_file() {
                self.files.insert((metadata.dev(), metadata.ino()));
            }
        }
    }
}

/// The same as [`canonical`] for one of many that is there and no link; `folders` remembers where those are that they lie in.
fn canonical_among<'p>(path: &'p Path, folders: &mut HashMap<&'p Path, PathBuf>) -> io::Result<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return canonical(path) };
    if folder.as_os_str().is_empty() {
        return canonical(path);
    }
    Ok(match folders.entry(folder) {
        Entry::Occupied(known) => known.get().join(name),
        Entry::Vacant(new) => new.insert(canonical(folder)?).join(name),
    })
}

/// `path` without links, as far as it exists; for a link to nothing, where it leads.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            match path.read_link() {
                // No endless loop: links in a circle are another error than `NotFound`.
                Ok(target) => canonical(&parent.join(target)),
                Err(_) => Ok(canonical(parent)?.join(name)),
            }
        }
        result => result,
    }
}
