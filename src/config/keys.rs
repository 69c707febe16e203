//! Declares a mapping: its keys, what they hold, and what they are when they are not written.
//!
//! Reader, defaults and JSON schema come from the one declaration, so that none of them knows a
//! key or a default that the others do not.

use serde_json::{Map, Value as Json, json};

use super::{
    error::{Origin, Position},
    read::{Read, Reading, Told, suggestion},
    tree::{self, Key, Node, Value},
};

/// Declares a struct and its [`Read`].
///
/// Each key is `required`, or has a default written as it would be in a file. A field is
/// `Err(Told)` where the fault that explains it has been told. Names after `not_yet` are keys of
/// later versions: they are refused by name.
macro_rules! keys {
    (
        $(#[doc = $about:literal])*
        struct $name:ident {
            $($(#[doc = $key_about:literal])* $key:ident: $type:ty = $default:tt,)*
        }
        $(not_yet [$($later:literal),*])?
    ) => {
        $(#[doc = $about])*
        #[derive(Debug)]
        pub(super) struct $name {
            $($(#[doc = $key_about])* pub(super) $key: Result<$type, $crate::config::read::Told>,)*
        }

        impl $crate::config::read::Read for $name {
            fn read(
                node: &$crate::config::tree::Node,
                reading: &mut $crate::config::read::Reading<'_>,
            ) -> Result<Self, $crate::config::read::Told> {
                let known = [$(stringify!($key)),*];
                let keys = $crate::config::keys::Keys::of(node, &known, &[$($($later),*)?], reading)?;
                Ok(Self {
                    $($key: keys.read(stringify!($key), $crate::config::keys::default!($default), reading),)*
                })
            }

            fn schema() -> serde_json::Value {
                $crate::config::keys::schema(
                    concat!($($about, "\n"),*),
                    &[$((
                        stringify!($key),
                        concat!($($key_about, "\n"),*),
                        <$type as $crate::config::read::Read>::schema(),
                        $crate::config::keys::default!($default),
                    )),*],
                )
            }
        }
    };
}

macro_rules! default {
    (required) => {
        None
    };
    ($default:literal) => {
        Some($default)
    };
}

pub(super) use {default, keys};

/// The keys of one mapping in a file.
pub(super) struct Keys<'n> {
    position: Position,
    entries: &'n [(Key, Node)],
    /// A key of a later version stands here: it may be why a required one does not.
    later: bool,
}

impl<'n> Keys<'n> {
    /// Tells of every key that is neither `known` nor, with its own words, `later`.
    pub(super) fn of(node: &'n Node, known: &[&str], later: &[&str], reading: &mut Reading<'_>) -> Result<Self, Told> {
        let entries = reading.mapping(node)?;
        let mut any_later = false;
        for (key, _) in entries {
            let name = key.name.as_str();
            let problem = if known.contains(&name) {
                continue;
            } else if later.contains(&name) {
                any_later = true;
                format!("`{name}` is not supported yet")
            } else {
                format!("unknown key `{name}`{}", suggestion(name, known.iter().copied()))
            };
            reading.within(name, (), |(), reading| reading.refuse(key.position, problem));
        }
        Ok(Self { position: node.position, entries, later: any_later })
    }

    pub(super) fn read<T: Read>(
        &self,
        name: &str,
        default: Option<&str>,
        reading: &mut Reading<'_>,
    ) -> Result<T, Told> {
        let written = self.entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node);
        match (written, default) {
            (Some(node), _) => reading.within(name, node, T::read),
            (None, Some(default)) => {
                let node = parsed(default).moved_to(self.position);
                reading.within(name, &node, T::read)
            }
            (None, None) if self.later => Err(Told),
            (None, None) => Err(reading.refuse(self.position, format!("the key `{name}` is missing"))),
        }
    }
}

/// The JSON schema of a mapping: name, documentation, schema and default of each key.
pub(super) fn schema(about: &str, keys: &[(&str, &str, Json, Option<&str>)]) -> Json {
    let mut properties = Map::new();
    for (name, about, schema, default) in keys {
        let mut schema = schema.clone();
        if let Json::Object(schema) = &mut schema {
            schema.insert("description".to_owned(), json!(flowing(about)));
            if let Some(default) = default {
                schema.insert("default".to_owned(), to_json(&parsed(default)));
            }
        }
        properties.insert((*name).to_owned(), schema);
    }
    let required: Vec<_> = keys.iter().filter(|(_, _, _, default)| default.is_none()).map(|(name, ..)| *name).collect();
    let mut schema = json!({
        "description": flowing(about),
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// The value as a JSON reader would see it.
pub(super) fn to_json(node: &Node) -> Json {
    match &node.value {
        _ if node.is_null() => Json::Null,
        Value::Scalar { text, plain: true } => match text.as_str() {
            "true" => json!(true),
            "false" => json!(false),
            text => text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number)),
        },
        Value::Scalar { text, .. } => json!(text),
        Value::Sequence(items) => items.iter().map(to_json).collect(),
        Value::Mapping(entries) => {
            Json::Object(entries.iter().map(|(key, value)| (key.name.clone(), to_json(value))).collect())
        }
        Value::Spoiled => Json::Null,
    }
}

fn parsed(default: &str) -> Node {
    tree::parse(default, Origin::Native).expect("defaults are written in YAML")
}

/// Documentation without the line breaks of its source.
fn flowing(about: &str) -> String {
    about.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}
