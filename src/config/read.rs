//! From a tree to typed keys: what a key may hold, what it is when absent, and every fault told once.
//!
//! Mappings with keys of ours are declared with [`super::keys`].

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value as Json, json};

use super::{
    environment::{Environment, fill_in},
    error::{Fault, Origin, Places, Position},
    tree::{Key, Node, Value},
};

/// A value is missing or wrong, and the fault that says so has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told;

/// Something that a value of the file can be read as.
pub(super) trait Read: Sized {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told>;

    /// What an editor is told about it.
    fn schema() -> Json;
}

/// A single word, number or line of text.
pub(super) trait Scalar: Sized {
    /// What to write, with its article: "a size such as `16MiB`".
    const EXPECTED: &'static str;

    /// Paths are relative to `base`, which is absolute. The error says what is wrong and what to write.
    fn parse(text: &str, base: &Path) -> Result<Self, String>;

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

/// The plainest answer to a text that does not fit.
pub(super) fn unexpected<T: Scalar>(text: &str) -> String {
    format!("expected {}, found `{text}`", T::EXPECTED)
}

impl<T: Scalar> Read for T {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => {
                T::parse(text, reading.base).map_err(|problem| reading.refuse(node.position, problem))
            }
            _ => Err(reading.mismatch(node, T::EXPECTED)),
        }
    }

    fn schema() -> Json {
        <T as Scalar>::schema()
    }
}

impl Scalar for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(unexpected::<Self>(other)),
        }
    }

    fn schema() -> Json {
        or_variable(&json!({ "type": "boolean" }))
    }
}

impl Scalar for String {
    const EXPECTED: &'static str = "text";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

/// `null` is a value of its own: none.
impl<T: Read> Read for Option<T> {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        if node.is_null() { Ok(None) } else { T::read(node, reading).map(Some) }
    }

    fn schema() -> Json {
        json!({ "anyOf": [T::schema(), { "type": "null" }] })
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        let Value::Sequence(items) = &node.value else {
            return Err(match &node.value {
                Value::Mapping(_) => {
                    reading.refuse(node.position, "expected a list, found a mapping; begin each entry with `- `")
                }
                _ => reading.mismatch(node, "a list"),
            });
        };
        // All of them are read before the first that failed ends it.
        let read = |(index, item)| reading.within(&format!("[{index}]"), item, T::read);
        items.iter().enumerate().map(read).collect::<Vec<_>>().into_iter().collect()
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }
}

/// A list that need not be written as one where it has one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OneOrMore<T>(pub(super) Vec<T>);

impl<T: Read> Read for OneOrMore<T> {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        match &node.value {
            Value::Sequence(_) => Vec::read(node, reading).map(Self),
            _ => T::read(node, reading).map(|one| Self(vec![one])),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [T::schema(), Vec::<T>::schema()] })
    }
}

/// A mapping whose keys are names that the operator chooses.
impl<T: Read> Read for BTreeMap<String, T> {
    fn read(node: &Node, reading: &mut Reading<'_>) -> Result<Self, Told> {
        let entries = reading.mapping(node)?;
        let mut named = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            named.push(reading.within(&key.name, value, |value, reading| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                if key.name.is_empty() || key.name.len() > 64 || !key.name.bytes().all(plain) {
                    let problem = format!("`{}` is not a name: letters, digits, `-` and `_`, up to 64", key.name);
                    return Err(reading.refuse(key.position, problem));
                }
                Ok((key.name.clone(), T::read(value, reading)?))
            }));
        }
        named.into_iter().collect()
    }

    fn schema() -> Json {
        json!({ "type": "object", "additionalProperties": T::schema() })
    }
}

/// Reads one file: where we are in it, and what was wrong so far.
pub(super) struct Reading<'a> {
    /// The folder of the file, absolute.
    pub(super) base: &'a Path,
    path: String,
    faults: Vec<Fault>,
    places: Places,
}

impl<'a> Reading<'a> {
    pub(super) fn new(base: &'a Path) -> Self {
        Self { base, path: String::new(), faults: Vec::new(), places: Places::default() }
    }

    /// Fills in variables and takes out keys that stand twice, in the whole tree.
    pub(super) fn prepare(&mut self, node: &mut Node, environment: Environment<'_>) {
        self.prepare_below(node, environment, &mut { MOST_FILLED_IN });
    }

    fn prepare_below(&mut self, node: &mut Node, environment: Environment<'_>, room: &mut usize) {
        match &mut node.value {
            Value::Scalar { text, .. } => match fill_in(text, environment, room) {
                Ok(filled) => *text = filled,
                Err(problem) => {
                    self.refuse(node.position, problem);
                    node.value = Value::Spoiled;
                }
            },
            Value::Spoiled => {}
            Value::Sequence(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.within(&format!("[{index}]"), item, |item, reading| {
                        reading.prepare_below(item, environment, room);
                    });
                }
            }
            Value::Mapping(entries) => {
                let mut first: BTreeMap<String, usize> = BTreeMap::new();
                let all = std::mem::take(entries);
                for (key, mut value) in all {
                    self.within(&key.name, &mut value, |value, reading| match first.get(&key.name) {
                        Some(line) => {
                            let problem =
                                format!("the key `{}` stands here twice; the first is in line {line}", key.name);
                            reading.refuse(key.position, problem);
                        }
                        None => reading.prepare_below(value, environment, room),
                    });
                    if !first.contains_key(&key.name) {
                        first.insert(key.name.clone(), key.position.line);
                        entries.push((key, value));
                    }
                }
            }
        }
    }

    /// Notes where each key of the tree that is about to be read stands.
    pub(super) fn note_places(&mut self, node: &Node) {
        self.places.insert(&self.path, node.position);
        match &node.value {
            Value::Scalar { .. } | Value::Spoiled => {}
            Value::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.within(&format!("[{index}]"), item, |item, reading| reading.note_places(item));
                }
            }
            Value::Mapping(entries) => {
                for (key, value) in entries {
                    self.within(&key.name, value, |value, reading| reading.note_places(value));
                }
            }
        }
    }

    /// Tells a fault of the key that is being read.
    pub(super) fn refuse(&mut self, position: Position, problem: impl Into<String>) -> Told {
        self.faults.push(Fault { position, at: self.path.clone(), problem: problem.into() });
        Told
    }

    /// Tells that something else than `expected` stands there.
    pub(super) fn mismatch(&mut self, node: &Node, expected: &str) -> Told {
        match node.value {
            Value::Spoiled => Told,
            _ => self.refuse(node.position, format!("expected {expected}, found {}", node.describe())),
        }
    }

    /// The entries of a mapping; nothing written is an empty one.
    pub(super) fn mapping<'n>(&mut self, node: &'n Node) -> Result<&'n [(Key, Node)], Told> {
        match &node.value {
            Value::Mapping(entries) => Ok(entries),
            _ if node.is_null() => Ok(&[]),
            _ => Err(self.mismatch(node, "a mapping of keys")),
        }
    }

    /// Tells a fault of a key that has been read.
    pub(super) fn refuse_at(&mut self, at: &str, problem: impl Into<String>) -> Told {
        self.faults.push(Fault { position: self.places.find(at), at: at.to_owned(), problem: problem.into() });
        Told
    }

    /// Whether what stands at the key path `at` was made of docassemble's configuration.
    pub(super) fn is_docassembles(&self, at: &str) -> bool {
        self.places.find(at).origin == Origin::Docassemble
    }

    /// The faults in the order of the file, and where each key stands.
    pub(super) fn finish(self) -> (Vec<Fault>, Places) {
        let mut faults = self.faults;
        faults.sort_by_key(|fault| fault.position);
        (faults, self.places)
    }

    /// Does `work` on what is below `segment`: a key, or `[index]`.
    pub(super) fn within<N, T>(&mut self, segment: &str, node: N, work: impl FnOnce(N, &mut Self) -> T) -> T {
        let outside = self.path.len();
        if !self.path.is_empty() && !segment.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(segment);
        let done = work(node, self);
        self.path.truncate(outside);
        done
    }
}

/// An editor also takes a variable where it would take a number or a truth value.
pub(super) fn or_variable(schema: &Json) -> Json {
    json!({ "anyOf": [schema, { "type": "string", "pattern": r"\$\{" }] })
}

/// `; did you mean …?` where one of `known` is close to `word`; otherwise nothing.
pub(super) fn suggestion<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let fold = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let folded = fold(word);
    let nearest = known
        .into_iter()
        .map(|name| (strsim::osa_distance(&folded, &fold(name)), name))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, name)) if distance <= 1 + name.len() / 4 => format!("; did you mean `{name}`?"),
        _ => String::new(),
    }
}

/// Bytes that the variables of one file may hold together.
const MOST_FILLED_IN: usize = 4 << 20;
