//! Why a configuration was refused: every fault at once, each with its place.

use std::{collections::BTreeMap, fmt, io, path::PathBuf};

use thiserror::Error;

/// Why there is no [`Plan`](super::Plan).
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    /// Shown as `file:line:column: key.path: problem`, one fault a line, in the order of the file.
    #[error("{}", lines(file, faults))]
    Refused { file: String, faults: Vec<Fault> },
}

fn lines(file: &str, faults: &[Fault]) -> String {
    let line = |fault: &Fault| format!("{file}:{fault}").replace(char::is_control, "\u{fffd}");
    faults.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub position: Position,
    /// The key path, such as `routes[0].upstream`; empty for the file as a whole.
    pub at: String,
    /// What is wrong and what to write instead, in the user's words.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.position;
        match self.at.as_str() {
            "" => write!(f, "{line}:{column}: {}", self.problem),
            at => write!(f, "{line}:{column}: {at}: {}", self.problem),
        }
    }
}

/// A place in a file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

/// A fault found by whoever looked at a [`Plan`](super::Plan), who knows the key and not its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key path, such as [`CertificatePlan::at`](super::CertificatePlan::at).
    pub at: String,
    pub problem: String,
}

/// Where each key of a file stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(BTreeMap<String, Position>);

impl Places {
    pub(super) fn insert(&mut self, at: &str, position: Position) {
        self.0.insert(at.to_owned(), position);
    }

    /// The place of the key itself or, where it is not written, of the nearest key around it.
    pub(super) fn find(&self, at: &str) -> Position {
        let mut path = at;
        loop {
            if let Some(position) = self.0.get(path) {
                return *position;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.0.get("").copied().unwrap_or(Position::START),
            }
        }
    }
}
