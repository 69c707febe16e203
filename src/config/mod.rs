//! The only door for settings: text, raw values, [`Plan`].
//!
//! [`parse`] makes a tree of YAML text (`tree`), fills in variables (`environment`), reads each key as
//! what it may hold (`read`, `keys`, `raw`) and applies the rules between keys (`lower`). Every
//! fault of a file is told at once, with its place and the key. Nothing here opens what a plan names,
//! except `files` for `check`.

mod address;
mod difference;
mod environment;
mod error;
mod explain;
mod files;
mod keys;
mod lower;
mod outer;
mod plan;
mod raw;
mod read;
#[cfg(test)]
mod tests;
mod tree;
mod trust;
mod units;
mod words;

use std::{
    env, fs,
    io::{self, Read as _},
    path::{Path, PathBuf, absolute},
};

pub use difference::{Takes, difference, takes};
pub use environment::Environment;
pub use error::{ConfigError, Fault, Position, Problem};
pub use explain::explain;
pub use files::unusable_folders;
pub use outer::{Outer, explain_outer};
pub use plan::*;
pub use trust::{untrusted, untrusted_for_logs, untrusted_sources};
pub use units::parse_wait;

use self::{
    error::Places,
    read::{Read, Reading, Told},
};

/// Something to hold a plan against; answers what is wrong with it.
pub type Inspection = fn(&Plan) -> Vec<Problem>;

/// Where a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub file: PathBuf,
}

/// Reads the configuration, with the variables of this process.
pub fn load(source: &Source) -> Result<Plan, ConfigError> {
    understand(source, &text(source)?).map(|(plan, _)| plan)
}

/// Reads the configuration as [`load`] does, and tells all that `inspections` find wrong with it.
pub fn check(source: &Source, inspections: &[Inspection]) -> Result<Plan, ConfigError> {
    check_text(source, &text(source)?, inspections)
}

/// Where the running gateway is administered, as far as it can be told from a configuration that may have been broken
/// since it was put in force; the errors of `load` otherwise.
pub fn admin(source: &Source) -> Result<Option<AdminAddress>, ConfigError> {
    load(source).map(|plan| plan.admin).or_else(|error| {
        let text = text(source).unwrap_or_default();
        let said = text.lines().find_map(|line| line.strip_prefix("admin:")?.trim().strip_prefix("unix:"));
        let path = said.map(str::trim).filter(|path| path.starts_with('/') && !path.contains(['$', '#', ' ']));
        path.map(|path| Some(AdminAddress::Unix(path.into()))).ok_or(error)
    })
}

/// The configuration as it is written, before variables are filled in.
pub fn text(source: &Source) -> Result<String, ConfigError> {
    text_of(&source.file).map_err(|error| ConfigError::Unreadable { path: source.file.clone(), source: error })
}

/// Makes a plan of `text` as if it were what `source` has, and tells all that `inspections` find wrong with it.
pub fn check_text(source: &Source, text: &str, inspections: &[Inspection]) -> Result<Plan, ConfigError> {
    let (plan, places) = understand(source, text)?;
    let problems = inspections.iter().flat_map(|inspect| inspect(&plan));
    let mut faults: Vec<_> =
        problems.map(|Problem { at, problem }| Fault { position: places.find(&at), at, problem }).collect();
    faults.sort_by_key(|fault| fault.position);
    if faults.is_empty() { Ok(plan) } else { Err(ConfigError::Refused { file: name(source), faults }) }
}

/// Makes a plan of `text`; `file_name` is for messages, and its folder is the base of relative paths.
pub fn parse(file_name: &str, text: &str, environment: Environment<'_>) -> Result<Plan, ConfigError> {
    parse_with_places(file_name, text, environment).map(|(plan, _)| plan)
}

/// The JSON schema of a configuration file, as it is in `config/schema.json`.
pub fn schema() -> serde_json::Value {
    let mut schema = raw::File::schema();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Vestibule".into();
    schema
}

/// Files whose change concerns `plan`: what it was read from, certificates and keys.
pub fn dependencies(plan: &Plan) -> Vec<PathBuf> {
    let certificates = plan.tls.certificates.iter().flat_map(|certificate| {
        [Some(&certificate.certificate), Some(&certificate.key), certificate.chain.as_ref()].into_iter().flatten()
    });
    plan.sources.iter().chain(certificates).cloned().collect()
}

fn understand(source: &Source, text: &str) -> Result<(Plan, Places), ConfigError> {
    let (mut plan, places) = parse_with_places(&name(source), text, &|name| env::var(name).ok())?;
    plan.sources = absolute(&source.file).into_iter().collect();
    Ok((plan, places))
}

fn text_of(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(file)?.take(LONGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB: hardly a configuration"));
    }
    Ok(text)
}

fn parse_with_places(file_name: &str, text: &str, environment: Environment<'_>) -> Result<(Plan, Places), ConfigError> {
    let refused = |faults| ConfigError::Refused { file: file_name.to_owned(), faults };
    let mut tree = tree::parse(text).map_err(|fault| refused(vec![fault]))?;
    let base = absolute(file_name).ok().and_then(|file| Some(file.parent()?.to_owned()));
    let base = base.unwrap_or_else(|| PathBuf::from("/"));
    let mut reading = Reading::new(&base);
    reading.prepare(&mut tree, environment);
    let plan = raw::File::read(&tree, &mut reading).and_then(|file| lower::lower(file, &mut reading));
    let (faults, places) = reading.finish();
    match plan {
        Ok(plan) if faults.is_empty() => Ok((plan, places)),
        Ok(_) | Err(Told) => Err(refused(faults)),
    }
}

fn name(source: &Source) -> String {
    source.file.display().to_string()
}

const LONGEST_FILE: u64 = 1 << 20;
