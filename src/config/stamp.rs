//! What tells whether a file is what it was.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// What tells a file from what was, or will be, in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Nobody can set this one.
    changed: (i64, i64),
}

impl FileStamp {
    /// Of what links lead to; `None` of what is not there, or cannot be reached.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Seconds since 1970 when the file, or what is known of it, was last changed.
    pub(crate) fn changed(&self) -> i64 {
        self.changed.0
    }
}
