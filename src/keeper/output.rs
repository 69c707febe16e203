//! Where log lines go, opened for the core that writes them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::folder;
use crate::config::LogSink;

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
    pub fn open(sink: &LogSink) -> Result<Self, OutputError> {
        match sink {
            LogSink::Stdout => Ok(Self::Stdout),
            LogSink::File(path) => Ok(Self::File { path: path.clone(), file: open(path)? }),
        }
    }
}

/// Opens the log at `path` to append, made with mode 0640 if it is missing, in a folder made with mode 0755 if only that
/// is missing.
///
/// Also for a reopening (SIGUSR1): the file that has been moved away is complete once the old one is dropped.
pub fn open(path: &Path) -> Result<File, OutputError> {
    folder::make_for(path)
        .and_then(|()| OpenOptions::new().append(true).create(true).mode(0o640).open(path))
        .map_err(|source| OutputError { path: path.to_owned(), source })
}

/// A log that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {} to append: {source}; {}", path.display(), remedy(source))]
pub struct OutputError {
    pub path: PathBuf,
    pub source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create its folder",
        io::ErrorKind::IsADirectory => "name a file, not a folder",
        _ => "let the user Vestibule runs as write there, or log to standard output, which is `-`",
    }
}
