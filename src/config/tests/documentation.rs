//! `config/vestibule.yml` is held to the declarations of the keys: each is there, with its default.

use std::{fs, path::Path};

use serde_json::Value as Json;

use super::{minimal, plan};
use crate::{
    config::{
        Plan,
        keys::to_json,
        schema,
        tree::{self, Node, Value},
    },
    telemetry::access_log::{Field, fields},
};

/// `config/vestibule.yml` with the keys in it that are not in use.
fn documentation() -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/vestibule.yml")).unwrap();
    let uncommented = |line: &str| {
        let inner = line.trim_start();
        match inner.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| !c.is_whitespace()) => line.replacen('#', "", 1),
            _ => line.to_owned(),
        }
    };
    text.lines().map(|line| uncommented(line) + "\n").collect()
}

#[test]
fn the_documentation_is_a_configuration_that_can_run() {
    let documented = plan(&documentation());
    let least = plan(&minimal("").replace("127.0.0.1:80'", "[::]:80'"));

    // All but what is shown as an example, certificates, logs, the admin endpoint and programs, is what runs without being
    // written.
    let mut listeners = documented.listeners.clone();
    listeners.truncate(1);
    listeners[0].log_server = None;
    let mut upstreams = documented.upstreams.clone();
    for upstream in upstreams.values_mut() {
        upstream.program = None;
    }
    let backends = least.backends.clone();
    let as_shown = Plan { tls: least.tls.clone(), error_log: None, admin: None, ..documented };
    assert_eq!(Plan { listeners, upstreams, backends, ..as_shown }, least);
}

#[test]
fn the_documentation_shows_every_key_with_its_default() {
    let text = documentation();
    let lines: Vec<_> = text.lines().collect();
    let mut wrong = Vec::new();
    compare("", &schema(), &tree::parse(&text, crate::config::Origin::Native).unwrap(), &lines, &mut wrong);

    assert!(wrong.is_empty(), "config/vestibule.yml and src/config/raw.rs differ:\n{}", wrong.join("\n"));
}

#[test]
fn the_documentation_lists_every_field_of_a_log_template() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/vestibule.yml")).unwrap();
    let shown = |field: &Field| format!("  #   {:<16} {}\n", field.name, field.doc);
    let block: String = fields().iter().map(shown).collect();

    assert!(text.contains(&block), "config/vestibule.yml must say of `access_log.format`:\n{block}");
}

fn compare(at: &str, schema: &Json, node: &Node, lines: &[&str], wrong: &mut Vec<String>) {
    let mut schema = schema;
    while schema["anyOf"].is_array() {
        schema = &schema["anyOf"][0];
    }
    match &node.value {
        Value::Sequence(items) => {
            let mut told: Vec<Vec<String>> = Vec::new();
            for item in items {
                let mut wrong = Vec::new();
                compare(&format!("{at}[]"), &schema["items"], item, lines, &mut wrong);
                told.push(wrong);
            }
            // A key may be shown in one of them only.
            let missing_everywhere = |line: &String| told.iter().all(|told| told.contains(line));
            let is_wrong = |line: &&String| !line.ends_with("is not documented") || missing_everywhere(line);
            wrong.extend(told.iter().flatten().filter(is_wrong).cloned());
        }
        Value::Mapping(entries) if schema["additionalProperties"].is_object() => {
            for (_, value) in entries {
                compare(&format!("{at}.NAME"), &schema["additionalProperties"], value, lines, wrong);
            }
        }
        Value::Mapping(entries) => {
            for (name, property) in schema["properties"].as_object().unwrap() {
                let Some((key, value)) = entries.iter().find(|(key, _)| key.name == *name) else {
                    wrong.push(format!("{at}.{name} is not documented"));
                    continue;
                };
                let shown = lines[key.position.line - 1];
                let nested = matches!(value.value, Value::Mapping(_)) && property["properties"].is_object()
                    || property["anyOf"][0]["properties"].is_object();
                if let Some(default) = property.get("default")
                    && !nested
                    && to_json(value) != *default
                    && !shown.contains(&format!("# default: {default}"))
                {
                    wrong.push(format!("{at}.{name} is shown as {} and is {default}", to_json(value)));
                }
                compare(&format!("{at}.{name}"), property, value, lines, wrong);
            }
        }
        _ => {}
    }
}
