//! One key of docassemble's: in the file, in the environment, and which of the two counts.

use super::{
    super::{
        environment::Environment,
        error::{Fault, Origin, Position},
        read::Told,
        tree::{Node, Value},
    },
    settings::Placed,
};

/// A variable that may stand for a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variable {
    name: &'static str,
    /// It counts wherever the file is silent; otherwise only while there is no file.
    always: bool,
}

impl Variable {
    #[allow(clippy::unnecessary_wraps, reason = "it is given to what takes an option")]
    pub(super) const fn always(name: &'static str) -> Option<Self> {
        Some(Self { name, always: true })
    }

    #[allow(clippy::unnecessary_wraps, reason = "it is given to what takes an option")]
    pub(super) const fn initially(name: &'static str) -> Option<Self> {
        Some(Self { name, always: false })
    }
}

/// A value as Python would see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Null,
    Truth(bool),
    Number(i64),
    Text(String),
    /// A list or a mapping; whether there is anything in it.
    More(bool),
}

impl Word {
    /// A value of YAML 1.1, which docassemble reads.
    pub(super) fn of(node: &Node) -> Self {
        match &node.value {
            _ if node.is_null() => Self::Null,
            Value::Scalar { text, plain: true } => match text.as_str() {
                "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Self::Truth(true),
                "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Self::Truth(false),
                text => number(text).map_or_else(|| Self::Text(text.to_owned()), Self::Number),
            },
            Value::Scalar { text, .. } => Self::Text(text.clone()),
            Value::Sequence(items) => Self::More(!items.is_empty()),
            Value::Mapping(entries) => Self::More(!entries.is_empty()),
            Value::Spoiled => Self::Null,
        }
    }

    /// Of a variable. What is empty is as good as not set.
    fn of_variable(text: &str) -> Option<Self> {
        match text.trim() {
            "" => None,
            "null" | "None" | "Null" => Some(Self::Null),
            text => Some(number(text).map_or_else(|| Self::Text(text.to_owned()), Self::Number)),
        }
    }

    /// As Python has it.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Truth(truth) | Self::More(truth) => *truth,
            Self::Number(number) => *number != 0,
            Self::Text(text) => !text.is_empty(),
        }
    }

    /// As Python's `str` writes it; nothing for what is no single value.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Null | Self::More(_) => None,
            Self::Truth(true) => Some("True".to_owned()),
            Self::Truth(false) => Some("False".to_owned()),
            Self::Number(number) => Some(number.to_string()),
            Self::Text(text) => Some(text.clone()),
        }
    }

    /// Also in quotes.
    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => number(text.trim()),
            _ => None,
        }
    }
}

/// Decimal, with the underscores that YAML 1.1 allows.
fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let plain = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    if !plain || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// A value that was found, and where.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) word: Word,
    pub(super) position: Position,
    /// The key, or the variable.
    at: &'static str,
}

impl Found {
    pub(super) fn placed<T>(&self, value: T) -> Placed<T> {
        Placed { value, position: self.position }
    }
}

/// Reads keys, and notes what is wrong with them.
pub(super) struct Lookup<'a> {
    /// `None`: there is no file yet.
    tree: Option<&'a Node>,
    environment: Environment<'a>,
    pub(super) warnings: Vec<Fault>,
    pub(super) faults: Vec<Fault>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(tree: Option<&'a Node>, environment: Environment<'a>) -> Self {
        let mut lookup = Self { tree, environment, warnings: Vec::new(), faults: Vec::new() };
        if let Some(tree) = tree
            && !tree.is_null()
            && !matches!(tree.value, Value::Mapping(_))
        {
            let problem = format!("expected a mapping of keys, found {}", tree.describe());
            lookup.faults.push(Fault { position: tree.position, at: String::new(), problem });
        }
        lookup
    }

    pub(super) fn is_written(&self) -> bool {
        self.tree.is_some()
    }

    /// Whether the environment wins over the file.
    pub(super) fn takes_precedence(&self) -> bool {
        self.variable("ENVIRONMENT_TAKES_PRECEDENCE").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name)
    }

    /// What is written under `key`. docassemble takes `_` for a space, and the last of several.
    pub(super) fn node(&self, key: &str) -> Option<&'a Node> {
        let Value::Mapping(entries) = &self.tree?.value else { return None };
        entries
            .iter()
            .rev()
            .find(|(found, _)| found.name == key || found.name.replace('_', " ") == key)
            .map(|(_, node)| node)
    }

    /// The value that counts.
    pub(super) fn find(&mut self, key: &'static str, variable: Option<Variable>) -> Option<Found> {
        let written = self.node(key).map(|node| Found { word: Word::of(node), position: node.position, at: key });
        let in_environment = variable.and_then(|Variable { name, .. }| {
            let word = Word::of_variable(&self.variable(name)?)?;
            Some(Found { word, position: Position { origin: Origin::Environment, line: 1, column: 1 }, at: name })
        });
        let silent = written.as_ref().is_none_or(|found| found.word == Word::Null);
        let counts = variable
            .is_some_and(|variable| self.takes_precedence() || !self.is_written() || (variable.always && silent));
        if counts && in_environment.is_some() { in_environment } else { written }
    }

    /// The first of `keys` whose value is a reference to where it is kept, or `config from`.
    pub(super) fn elsewhere(&self, keys: &[&str]) -> Option<Fault> {
        if let Some(node) = self.node("config from").filter(|node| Word::of(node).is_true()) {
            let problem = "takes settings from elsewhere".to_owned();
            return Some(Fault { position: node.position, at: "config from".to_owned(), problem });
        }
        keys.iter().find_map(|key| {
            let node = self.node(key)?;
            let refers = references(node);
            let problem = "is kept elsewhere".to_owned();
            refers.then(|| Fault { position: node.position, at: (*key).to_owned(), problem })
        })
    }

    /// Keys that docassemble passes over although they look like one of `keys`.
    pub(super) fn warn_of_near_misses(&mut self, keys: &[&str]) {
        let Some(Value::Mapping(entries)) = self.tree.map(|tree| &tree.value) else { return };
        for (key, _) in entries {
            let spaced = key.name.replace('_', " ");
            let folded = spaced.to_ascii_lowercase().replace('-', " ").split_whitespace().collect::<Vec<_>>().join(" ");
            if folded != spaced
                && let Some(known) = keys.iter().find(|known| **known == folded)
            {
                let problem = format!("docassemble does not know `{}`; write `{known}`", key.name);
                self.warn_at(key.position, known, problem);
            }
        }
    }

    pub(super) fn warn(&mut self, found: &Found, problem: impl Into<String>) {
        self.warn_at(found.position, found.at, problem);
    }

    pub(super) fn warn_at(&mut self, position: Position, at: &str, problem: impl Into<String>) {
        self.warnings.push(Fault { position, at: at.to_owned(), problem: problem.into() });
    }

    pub(super) fn refuse(&mut self, found: &Found, problem: impl Into<String>) -> Told {
        self.faults.push(Fault { position: found.position, at: found.at.to_owned(), problem: problem.into() });
        Told
    }
}

/// Whether `node` refers to a secret store, as docassemble resolves it.
fn references(node: &Node) -> bool {
    match &node.value {
        Value::Scalar { text, .. } => {
            text.starts_with("arn:aws:secretsmanager:") || text.starts_with("@Microsoft.KeyVault(")
        }
        Value::Sequence(items) => items.iter().any(references),
        Value::Mapping(entries) => entries.iter().any(|(_, node)| references(node)),
        Value::Spoiled => false,
    }
}
