//! The only door for settings: text, raw values, [`Plan`].
//!
//! [`parse`] makes a tree of YAML text (`tree`), fills in variables (`environment`), lays it on what docassemble's own
//! configuration says where that is a source (`docassemble`, `merge`), reads each key as
//! what it may hold (`read`, `keys`, `raw`) and applies the rules between keys (`lower`). Every
//! fault of a file is told at once, with its place and the key. Nothing here opens what a plan names,
//! except `files` for `check`.

mod access;
mod address;
mod admin;
mod ciphers;
mod difference;
mod docassemble;
mod environment;
mod error;
mod explain;
mod files;
mod keys;
mod lower;
mod merge;
mod outer;
mod plan;
mod raw;
mod read;
mod stamp;
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
    time::Duration,
};

pub use admin::TOKEN_COMMAND;
pub use difference::{Takes, difference, takes, without_passwords};
pub use environment::Environment;
pub use error::{ConfigError, Fault, Names, Origin, Position, Problem};
pub use explain::explain;
pub use files::unusable_folders;
pub use outer::{Outer, explain_outer};
pub use plan::*;
pub(crate) use stamp::FileStamp;
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
pub enum Source {
    /// A file of ours.
    Native(PathBuf),
    /// docassemble's own configuration, and perhaps a file of ours, whose keys win.
    Docassemble { file: PathBuf, overlay: Option<PathBuf> },
}

impl Source {
    /// The file that it is known by.
    #[must_use]
    pub fn file(&self) -> &Path {
        match self {
            Self::Native(file) | Self::Docassemble { file, .. } => file,
        }
    }

    /// The file of ours, if there is one.
    #[must_use]
    pub fn native(&self) -> Option<&Path> {
        match self {
            Self::Native(file) => Some(file),
            Self::Docassemble { overlay, .. } => overlay.as_deref(),
        }
    }

    fn names(&self) -> Names {
        let name = |file: &Path| file.display().to_string();
        match self {
            Self::Native(file) => Names { native: name(file), docassemble: String::new() },
            Self::Docassemble { file, overlay } => {
                Names { native: overlay.as_deref().map(name).unwrap_or_default(), docassemble: name(file) }
            }
        }
    }
}

/// Reads the configuration, with the variables of this process.
pub fn load(source: &Source) -> Result<Plan, ConfigError> {
    understand(source, &text(source)?).map(|(plan, _)| plan)
}

/// Reads the configuration as [`load`] does, and tells all that `inspections` find wrong with it.
pub fn check(source: &Source, inspections: &[Inspection]) -> Result<Plan, ConfigError> {
    check_text(source, &text(source)?, inspections)
}

/// The unix socket that the running gateway is administered by, as far as it can be told from a configuration that may have
/// been broken since it was put in force; the errors of `load` otherwise.
pub fn admin_socket(source: &Source) -> Result<Option<PathBuf>, ConfigError> {
    load(source).map(|plan| plan.admin.and_then(|admin| admin.socket)).or_else(|error| {
        let text = source.native().and_then(|file| text_of(file).ok()).unwrap_or_default();
        let default = matches!(source, Source::Docassemble { .. }).then_some(admin::DEFAULT_SOCKET);
        admin::socket_in(&text).or(default).map(|path| Some(path.into())).ok_or(error)
    })
}

/// The configuration as it is written, before variables are filled in; of docassemble's, what was read of it and the
/// overlay.
///
/// Blocks on the disk, and for as long as docassemble's own reader takes where that has to be asked.
pub fn text(source: &Source) -> Result<String, ConfigError> {
    let unreadable = |path: &Path, source| ConfigError::Unreadable { path: path.to_owned(), source };
    let native = match source.native() {
        Some(file) => text_of(file).map_err(|error| unreadable(file, error))?,
        None => String::new(),
    };
    let Source::Docassemble { file, .. } = source else { return Ok(native) };
    let user = tree::parse(&native, Origin::Native).ok().and_then(|tree| Some(tree.get("user")?.text()?.to_owned()));
    let user = user.as_deref().unwrap_or(raw::DEFAULT_USER);
    match docassemble::read(file, user).map_err(|error| unreadable(file, error))? {
        docassemble::Answer::Settings(settings) => Ok(docassemble::join(&settings, &native)),
        docassemble::Answer::Unreadable(why) => Err(unreadable(file, io::Error::other(why))),
        docassemble::Answer::Refused(faults) => Err(ConfigError::Refused { names: source.names(), faults }),
        docassemble::Answer::Elsewhere(fault) => {
            Err(ConfigError::Refused { names: source.names(), faults: vec![fault] })
        }
    }
}

/// Reads docassemble's configuration for a process that must not do it itself, and prints what it says.
pub fn read_docassemble(file: &Path, fetch: bool) -> io::Result<()> {
    docassemble::work(file, fetch)
}

/// Makes a plan of `text` as if it were what `source` has, and tells all that `inspections` find wrong with it.
pub fn check_text(source: &Source, text: &str, inspections: &[Inspection]) -> Result<Plan, ConfigError> {
    let (plan, places) = understand(source, text)?;
    let problems = inspections.iter().flat_map(|inspect| inspect(&plan));
    let mut faults: Vec<_> =
        problems.map(|Problem { at, problem }| Fault { position: places.find(&at), at, problem }).collect();
    faults.sort_by_key(|fault| fault.position);
    if faults.is_empty() { Ok(plan) } else { Err(ConfigError::Refused { names: source.names(), faults }) }
}

/// Makes a plan of `text`; `file_name` is for messages, and its folder is the base of relative paths.
pub fn parse(file_name: &str, text: &str, environment: Environment<'_>) -> Result<Plan, ConfigError> {
    let source = Source::Native(file_name.into());
    understand_with(&source, text, environment).map(|(plan, _)| plan)
}

/// What docassemble's own configuration in `text` comes to with `overlay`, read without a process of its own; the faults that
/// keep its settings from being known.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse_docassemble(
    file_name: &str,
    text: &str,
    overlay: &str,
) -> Result<Result<Plan, ConfigError>, ConfigError> {
    let source = Source::Docassemble { file: file_name.into(), overlay: None };
    let faults = match docassemble::read_text(text) {
        docassemble::Answer::Settings(settings) => {
            let text = docassemble::join(&settings, overlay);
            return Ok(understand_with(&source, &text, &|_| None).map(|(plan, _)| plan));
        }
        docassemble::Answer::Refused(faults) => faults,
        docassemble::Answer::Elsewhere(fault) => vec![fault],
        docassemble::Answer::Unreadable(why) => unreachable!("text that is there cannot be unreadable: {why}"),
    };
    Err(ConfigError::Refused { names: source.names(), faults })
}

/// The JSON schema of a configuration file, as it is in `config/schema.json`.
pub fn schema() -> serde_json::Value {
    let mut schema = raw::File::schema();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Vestibule".into();
    schema
}

/// Files whose change concerns `plan`: what it was read from, certificates and keys, and what would make another one of it.
/// Each once, in the order of [`in_order`].
pub fn dependencies(plan: &Plan) -> Vec<PathBuf> {
    let certificates = plan.tls.certificates.iter().flat_map(|certificate| {
        [Some(&certificate.certificate), Some(&certificate.key), certificate.chain.as_ref()].into_iter().flatten()
    });
    let authorities = plan.tls.acme.iter().filter_map(|ordered| ordered.ca_file.as_ref());
    let clients = plan.listeners.iter().filter_map(|listener| Some(&listener.client_ca.as_ref()?.file));
    let users = plan.routes.iter().filter_map(|route| Some(&route.access.basic_auth.as_ref()?.file));
    let admin = plan.admin.iter().filter_map(|admin| admin.listen.as_ref());
    let admin = admin.flat_map(|listen| [&listen.certificate, &listen.key, &listen.token_file]);
    let secret = plan.tls.shared.iter().map(|shared| &shared.secret_file);
    let stores = plan.tls.shared.iter().map(|shared| &shared.store);
    let stores = stores.chain(plan.tls.fetched.iter().map(|fetched| &fetched.store));
    let stores = stores.flat_map(|store| [store.key_file.as_ref(), store.ca_file.as_ref()].into_iter().flatten());
    let docassemble = plan.docassemble.iter().flat_map(|plan| plan.awaited.iter().chain([&plan.file]));
    let named = plan.sources.iter().chain(certificates).chain(authorities).chain(clients).chain(users).chain(secret);
    let named = named.chain(stores).chain(admin);
    in_order(named.chain(docassemble).cloned().collect())
}

/// `files` each once, by their bytes: comparing the parts of thousands of paths takes longer than looking at the files.
pub fn in_order(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    // Most are in order already where there are two lists of them.
    files.sort_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
    files.dedup();
    files
}

fn understand(source: &Source, text: &str) -> Result<(Plan, Places), ConfigError> {
    let (mut plan, places) = understand_with(source, text, &|name| env::var(name).ok())?;
    plan.sources = source.native().and_then(|file| absolute(file).ok()).into_iter().collect();
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

fn understand_with(source: &Source, text: &str, environment: Environment<'_>) -> Result<(Plan, Places), ConfigError> {
    let names = source.names();
    let refused = |faults| ConfigError::Refused { names: names.clone(), faults };
    let one = |fault| refused(vec![fault]);
    // Only where docassemble's is a source: a file of ours is text from its first line.
    let parts = matches!(source, Source::Docassemble { .. }).then(|| docassemble::split(text)).flatten();
    let (settings, text) = match parts.transpose().map_err(one)? {
        Some((settings, overlay)) => (Some(settings), overlay),
        None => (None, text),
    };
    let base = absolute(source.native().unwrap_or_else(|| source.file()));
    let base = base.ok().and_then(|file| Some(file.parent()?.to_owned())).unwrap_or_else(|| PathBuf::from("/"));
    let mut reading = Reading::new(&base);
    let mut tree = tree::parse(text, Origin::Native).map_err(one)?;
    // Of ours only: docassemble's can be written by the application, and would have the environment told.
    reading.prepare(&mut tree, environment);
    let composed = settings.map(|settings| docassemble::compose(&settings, source.file())).transpose().map_err(one)?;
    let (tree, docassemble) = match composed {
        Some(composed) => {
            let warnings = composed.warnings.iter().map(|fault| names.line(fault)).collect();
            (merge::merge(composed.tree, tree), Some((composed.plan, warnings)))
        }
        None => (tree, None),
    };
    reading.note_places(&tree);
    let plan = raw::File::read(&tree, &mut reading).and_then(|file| lower::lower(file, &mut reading));
    let (faults, places) = reading.finish();
    match plan {
        Ok(mut plan) if faults.is_empty() => {
            if let Some((docassemble, warnings)) = docassemble {
                plan.docassemble = Some(docassemble);
                plan.warnings = warnings;
            }
            Ok((plan, places))
        }
        Ok(_) | Err(Told) => Err(refused(faults)),
    }
}

/// The longest that [`text`] takes, with a moment to spare.
pub const LONGEST_READING: Duration = Duration::from_secs(75);
const LONGEST_FILE: u64 = 1 << 20;
