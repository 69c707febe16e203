//! Why a configuration was refused: every fault at once, each with its place.

use std::{collections::BTreeMap, fmt, io, path::PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why there is no [`Plan`](super::Plan).
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    /// Shown as `file:line:column: key.path: problem`, one fault a line, in the order of the files.
    #[error("{}", lines(names, faults))]
    Refused { names: Names, faults: Vec<Fault> },
}

fn lines(names: &Names, faults: &[Fault]) -> String {
    faults.iter().map(|fault| names.line(fault)).collect::<Vec<_>>().join("\n")
}

/// What the places that a configuration comes from are called in messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub native: String,
    pub docassemble: String,
}

impl Names {
    /// `fault` in one line, with where it is.
    pub(super) fn line(&self, fault: &Fault) -> String {
        let file = match fault.position.origin {
            Origin::Native => &self.native,
            Origin::Docassemble => &self.docassemble,
            Origin::Environment => "environment",
        };
        format!("{file}:{fault}").replace(char::is_control, "\u{fffd}")
    }
}

/// One thing that is wrong, or worth a warning, and where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Fault {
    pub position: Position,
    /// The key path, such as `routes[0].upstream`; empty for the file as a whole.
    pub at: String,
    /// What is wrong and what to write instead, in the user's words.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { origin, line, column } = self.position;
        match origin {
            // A variable has no line, only its name.
            Origin::Environment => f.write_str(" ")?,
            Origin::Docassemble | Origin::Native => write!(f, "{line}:{column}: ")?,
        }
        match self.at.as_str() {
            "" => f.write_str(&self.problem),
            at => write!(f, "{at}: {}", self.problem),
        }
    }
}

/// A place in a file; lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Position {
    pub origin: Origin,
    pub line: usize,
    pub column: usize,
}

impl Position {
    pub(super) const fn start(origin: Origin) -> Self {
        Self { origin, line: 1, column: 1 }
    }
}

/// What a value was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub enum Origin {
    /// A variable that docassemble reads as well.
    Environment,
    /// docassemble's own configuration.
    Docassemble,
    /// A configuration of ours.
    Native,
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
                None => return self.0.get("").copied().unwrap_or(Position::start(Origin::Native)),
            }
        }
    }
}
