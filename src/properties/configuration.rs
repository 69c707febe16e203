//! Configurations.

use crate::config::{self, ConfigError, Origin, Plan};

/// A configuration is a plan that can be told and handed on, or refused with a place for each fault.
pub fn configuration(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let environment = |name: &str| (name == "DAHOSTNAME").then(|| "justice.example.com".to_owned());
    match config::parse(FILE, text, &environment) {
        Ok(plan) => assert_can_be_told(&plan),
        Err(error) => return assert_names_places(&error, text),
    }
    true
}

/// So is one of docassemble's, which the application can write; what its side has passed, ours takes, but for listeners, of which
/// some take a name or a port that is free.
pub fn docassemble(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    match config::parse_docassemble(FILE, text, "listeners: [{ address: '127.0.0.1:8000' }]") {
        Ok(plan) => assert_can_be_told(&plan.expect("settings that were passed are a configuration")),
        Err(error) => return assert_names_places(&error, text),
    }
    true
}

fn assert_can_be_told(plan: &Plan) {
    assert!(config::explain(plan).ends_with('\n'));
    let handed = postcard::to_stdvec(plan).expect("a plan can be handed on");
    assert_eq!(postcard::from_bytes::<Plan>(&handed).as_ref(), Ok(plan));
}

/// Always false: the text was refused.
fn assert_names_places(error: &ConfigError, text: &str) -> bool {
    let lines = error.to_string();
    let ConfigError::Refused { faults, .. } = error else { panic!("text cannot be unreadable: {lines}") };
    assert!(!faults.is_empty(), "refused, and nobody knows why");
    assert_eq!(lines.lines().count(), faults.len(), "a line each: {lines}");
    let last = 1 + text.matches(['\n', '\r']).count();
    for (fault, line) in faults.iter().zip(lines.lines()) {
        let place = fault.position;
        assert!((1..=last).contains(&place.line) && place.column >= 1, "{line} of {last} lines");
        let file = if place.origin == Origin::Environment { "environment" } else { FILE };
        assert!(line.starts_with(file) && !fault.problem.is_empty(), "{line}");
        assert!(!line.contains(char::is_control), "{line}");
    }
    false
}

const FILE: &str = "/etc/vestibule.yml";
