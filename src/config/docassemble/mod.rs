//! docassemble's own configuration as a way in: `config.yml` and the environment, to the same tree as a file of ours.
//!
//! | part | what it is |
//! |---|---|
//! | `reader` | reads `config.yml` without privilege, since the application can write it and root must not obey it |
//! | `lookup`, `settings` | keys by docassemble's rules: spelling, precedence, defaults, what it forgives |
//! | `compose` | what the settings mean for a front door, as a tree of our keys |
//!
//! What has been read is one line of JSON ([`Settings`]), which goes before the text of the overlay: together they are
//! the text of a configuration, and are remembered and gone back to as any other. No secret is in it but the password of
//! supervisord, where there is one.
//!
//! `config.yml` can name no command, no user, and no path outside the folders in `compose`.

mod compose;
mod lookup;
mod reader;
mod settings;
#[cfg(test)]
mod tests;

pub(super) use self::{
    compose::compose,
    reader::{read, work},
    settings::{Answer, Settings},
};
use super::error::{Fault, Origin, Position};

/// The settings and the overlay, as one text.
pub(super) fn join(settings: &Settings, overlay: &str) -> String {
    let settings = serde_json::to_string(settings).expect("settings have text keys only");
    format!("{MARK}{settings}\n{overlay}")
}

/// The two parts of what [`join`] made; `None` where it did not.
pub(super) fn split(text: &str) -> Option<Result<(Settings, &str), Fault>> {
    let (settings, overlay) = text.strip_prefix(MARK)?.split_once('\n')?;
    Some(serde_json::from_str(settings).map(|settings| (settings, overlay)).map_err(|error| Fault {
        position: Position::start(Origin::Docassemble),
        at: String::new(),
        problem: format!("what another version has read of it cannot be used: {error}"),
    }))
}

/// What `text`, a `config.yml`, says on a machine that nothing is known of.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn read_text(text: &str) -> Answer {
    match super::tree::parse(text, Origin::Docassemble) {
        Ok(tree) => settings::read(Some(&tree), &|_| None, &settings::Machine::default()),
        Err(fault) => Answer::Refused(vec![fault]),
    }
}

const MARK: &str = "# docassemble ";
