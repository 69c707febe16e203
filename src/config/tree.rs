//! YAML text as a tree in which every value knows its place.
//!
//! A serde type would stop at the first thing that does not fit; from a tree every fault can be
//! told at once. What the values mean is left to [`super::read`].

use std::collections::HashMap;

use serde_yaml::granit_parser::{Event, Parser, ScalarStyle, Span};

use super::error::{Fault, Origin, Position};

/// A value and the place where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// `plain`: written without quotes, so that `null` in it means nothing instead of four letters.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order of the file; a key may still stand in it twice.
    Mapping(Vec<(Key, Node)>),
    /// What was there has been refused already.
    Spoiled,
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) position: Position,
    pub(super) name: String,
}

impl Node {
    pub(super) fn scalar(text: impl Into<String>, plain: bool, position: Position) -> Self {
        Self { position, value: Value::Scalar { text: text.into(), plain } }
    }

    /// The value of a key of a mapping.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let Value::Mapping(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// The text of a single value that is not null.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// Nothing is written there, or `null` or `~`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What is there, for a message that says what was expected instead.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, .. } => format!("`{text}`"),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::Spoiled => "what was refused".to_owned(),
        }
    }

    /// The same tree with everything in it at one place.
    pub(super) fn moved_to(mut self, place: Position) -> Self {
        self.position = place;
        match &mut self.value {
            Value::Scalar { .. } | Value::Spoiled => {}
            Value::Sequence(items) => {
                *items = std::mem::take(items).into_iter().map(|item| item.moved_to(place)).collect();
            }
            Value::Mapping(entries) => {
                *entries = std::mem::take(entries)
                    .into_iter()
                    .map(|(key, value)| (Key { position: place, ..key }, value.moved_to(place)))
                    .collect();
            }
        }
        self
    }
}

/// Parses one YAML 1.2 document; an empty one is nothing.
///
/// Anchors and aliases are followed, within a bound on what they unfold to. The first syntax error is a fault. In a file
/// of our own so are tags, merge keys, keys that are not text and a second document; in docassemble's, which holds much
/// that is no concern of ours, tags and a second document are passed over, and such keys are keys that nobody asks for.
pub(super) fn parse(text: &str, origin: Origin) -> Result<Node, Fault> {
    let mut builder = Builder { origin, open: Vec::new(), anchors: HashMap::new(), root: None, weight: 0 };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| fault(builder.position_of(*error.marker()), error.info()))?;
        builder.take(event, &span)?;
        if builder.is_lenient() && builder.root.is_some() {
            break;
        }
    }
    let empty = || Node::scalar("", true, Position::start(origin));
    Ok(builder.root.unwrap_or_else(empty))
}

struct Builder {
    origin: Origin,
    open: Vec<Collection>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    weight: usize,
}

/// A sequence or a mapping whose end has not come yet.
struct Collection {
    node: Node,
    anchor: usize,
    /// In a mapping: the key whose value comes next.
    key: Option<Key>,
}

impl Builder {
    fn is_lenient(&self) -> bool {
        self.origin == Origin::Docassemble
    }

    fn position_of(&self, marker: serde_yaml::granit_parser::Marker) -> Position {
        Position { origin: self.origin, line: marker.line().max(1), column: marker.col() + 1 }
    }

    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Fault> {
        let position = self.position_of(span.start);
        if event.tag().is_some() && !self.is_lenient() {
            return Err(fault(position, "tags (`!name`) have no meaning here; take it out"));
        }
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(fault(position, "a second document (`---`) has no meaning here; write one file each"))
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                self.finish(Node { position, value: Value::Scalar { text: text.into_owned(), plain } }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Collection {
                    node: Node { position, value: Value::Sequence(Vec::new()) },
                    anchor,
                    key: None,
                });
                Ok(())
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Collection {
                    node: Node { position, value: Value::Mapping(Vec::new()) },
                    anchor,
                    key: None,
                });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let collection = self.open.pop().expect("the parser ends only what it has begun");
                self.finish(collection.node, collection.anchor)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.finish(node, 0),
                None => Err(fault(position, "an alias stands inside the value it repeats")),
            },
            _ => Ok(()),
        }
    }

    /// Puts a whole node where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        self.weigh(&node)?;
        if anchor != 0 {
            self.weigh(&node)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(Collection { node: parent, key, .. }) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.value, key.take()) {
            (Value::Sequence(items), _) => items.push(node),
            (Value::Mapping(entries), Some(key)) => entries.push((key, node)),
            (Value::Mapping(_), None) => *key = Some(as_key(node, self.origin)?),
            (Value::Scalar { .. } | Value::Spoiled, _) => unreachable!("only collections are opened"),
        }
        Ok(())
    }

    // Aliases of aliases double with each line; this is what stops them before memory does.
    fn weigh(&mut self, node: &Node) -> Result<(), Fault> {
        let room = HEAVIEST.saturating_sub(self.weight);
        match weight(node, room) {
            Some(weight) => {
                self.weight += weight;
                Ok(())
            }
            None => Err(fault(node.position, "the file unfolds to more than a configuration can hold")),
        }
    }
}

/// The bytes of a node and all below it, or `None` for more than `room`.
fn weight(node: &Node, room: usize) -> Option<usize> {
    let own = match &node.value {
        Value::Scalar { text, .. } => size_of::<Node>() + text.len(),
        _ => size_of::<Node>(),
    };
    let mut sum = (own <= room).then_some(own)?;
    match &node.value {
        Value::Scalar { .. } | Value::Spoiled => {}
        Value::Sequence(items) => {
            for item in items {
                sum += weight(item, room - sum)?;
            }
        }
        Value::Mapping(entries) => {
            for (key, value) in entries {
                sum = (sum + key.name.len() <= room).then_some(sum + key.name.len())?;
                sum += weight(value, room - sum)?;
            }
        }
    }
    Some(sum)
}

fn as_key(node: Node, origin: Origin) -> Result<Key, Fault> {
    let lenient = origin == Origin::Docassemble;
    match node.value {
        Value::Scalar { text, plain: true } if text == "<<" && !lenient => {
            Err(fault(node.position, "merge keys (`<<`) are not supported; write the keys out"))
        }
        Value::Scalar { text, .. } => Ok(Key { position: node.position, name: text }),
        _ if lenient => Ok(Key { position: node.position, name: String::new() }),
        _ => Err(fault(node.position, "a key is text, not a list or a mapping")),
    }
}

fn fault(position: Position, problem: impl Into<String>) -> Fault {
    Fault { position, at: String::new(), problem: problem.into() }
}

/// Bytes of the whole tree, aliases unfolded. Each level of nesting weighs its content again.
const HEAVIEST: usize = 16 << 20;
