//! The configurations that were applied, so that there is one to go back to, even after a restart.
//!
//! Kept as text: what a variable of the environment says, and what is in the files a configuration names, is looked up
//! again when one is gone back to.
//!
//! What *the one before* is: a rollback is an entry of its own, which remembers the entry whose text it has, its origin.
//! Before a rollback comes what was before its origin. So two rollbacks of one step go two back, as one of two steps does;
//! and what was rolled back from is not met again, whatever is applied on top.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    iter,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf, absolute},
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    admin::{Applied, timestamp},
    config::untrusted,
    keeper::folder,
};

/// What was applied, the youngest first; at most [`MOST`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    storage: PathBuf,
    configuration: PathBuf,
    entries: Vec<Entry>,
    /// It cannot be kept on disk, and that has been told.
    told: bool,
}

/// A configuration that was applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// As it was counted then.
    pub(super) generation: u64,
    /// See [`timestamp`].
    pub(super) at: String,
    pub(super) cause: String,
    /// The configuration as it is written.
    pub(super) text: String,
    /// Higher than that of any older one, over all processes.
    number: u64,
    /// Of a rollback: the number of the entry that has this text first.
    origin: Option<u64>,
}

/// There are not so many configurations to go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot go back {steps}: there {} before the one in force",
    match available {
        0 => "is no configuration".to_owned(),
        1 => "is 1 configuration".to_owned(),
        more => format!("are {more} configurations"),
    }
)]
pub(super) struct TooFew {
    pub(super) steps: u32,
    pub(super) available: usize,
}

impl History {
    /// What is kept under `storage` of the configuration in the file `configuration`; nothing, if it cannot be used.
    pub(super) fn load(storage: &Path, configuration: &Path) -> Self {
        let configuration = absolute(configuration).unwrap_or_else(|_| configuration.to_owned());
        let mut history = Self { storage: storage.to_owned(), configuration, entries: Vec::new(), told: false };
        match read(&history.file()) {
            Ok(entries) => history.entries = entries,
            Err(error) => {
                let file = history.file();
                warn!(
                    file = %file.display(), error = &error as &dyn std::error::Error,
                    "the history of the configuration cannot be used and begins anew"
                );
            }
        }
        history
    }

    /// Adds what has been applied.
    ///
    /// The same text as the youngest has is no other configuration to go back to: then that one is renewed.
    pub(super) fn push(&mut self, generation: u64, cause: &str, text: &str) {
        self.add(generation, cause.to_owned(), text, None);
    }

    /// Adds that `entry`, one of ours, has been applied again.
    pub(super) fn push_rollback(&mut self, generation: u64, entry: &Entry) {
        let cause = format!("rollback to generation {} of {}", entry.generation, entry.at);
        self.add(generation, cause, &entry.text, Some(entry.origin.unwrap_or(entry.number)));
    }

    fn add(&mut self, generation: u64, cause: String, text: &str, origin: Option<u64>) {
        let at = timestamp(SystemTime::now());
        match self.entries.first_mut() {
            Some(youngest) if youngest.text == text => {
                youngest.generation = generation;
                youngest.at = at;
                youngest.cause = cause;
                youngest.origin = origin.or(youngest.origin);
            }
            youngest => {
                let number = youngest.map_or(0, |youngest| youngest.number) + 1;
                self.entries.insert(0, Entry { generation, at, cause, text: text.to_owned(), number, origin });
                self.entries.truncate(MOST);
            }
        }
        self.save();
    }

    /// The configuration in force, as it is written.
    pub(super) fn text(&self) -> Option<&str> {
        self.entries.first().map(|youngest| youngest.text.as_str())
    }

    /// For `/status`.
    pub(super) fn applied(&self) -> Vec<Applied> {
        let applied =
            |entry: &Entry| Applied { generation: entry.generation, at: entry.at.clone(), cause: entry.cause.clone() };
        self.entries.iter().map(applied).collect()
    }

    /// The configuration `steps` before the one in force.
    pub(super) fn before(&self, steps: u32) -> Result<&Entry, TooFew> {
        let too_few = || TooFew { steps, available: self.line().count().saturating_sub(1) };
        self.line().nth(steps as usize).ok_or_else(too_few)
    }

    /// The one in force, the one before it, and so on.
    fn line(&self) -> impl Iterator<Item = &Entry> {
        let before = |entry: &&Entry| {
            let origin = entry.origin.unwrap_or(entry.number);
            self.entries.iter().find(|older| older.number < origin)
        };
        iter::successors(self.entries.first(), before)
    }

    fn save(&mut self) {
        match self.write() {
            Ok(()) => self.told = false,
            Err(error) if !self.told => {
                self.told = true;
                let file = self.file();
                warn!(
                    file = %file.display(), error = &error as &dyn std::error::Error,
                    "the history of the configuration is not kept over a restart"
                );
            }
            Err(_) => {}
        }
    }

    fn write(&self) -> io::Result<()> {
        if let Some(why) = untrusted(&self.file()) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let folder = folder::private(&self.storage, FOLDER)?;
        let configuration = self.configuration.display().to_string();
        let kept = Kept { configuration, entries: &self.entries };
        folder::write(&folder, &self.name(), &serde_json::to_vec(&kept)?, 0o600)
    }

    fn file(&self) -> PathBuf {
        self.storage.join(FOLDER).join(self.name())
    }

    /// For people the name of the configuration, and what no other path has.
    fn name(&self) -> String {
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest(&SHA256, self.configuration.as_os_str().as_bytes()).as_ref()[..16]);
        let plain = |letter: &char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
        let name = self.configuration.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let name: String = name.chars().filter(plain).take(64).collect();
        format!("{name}-{:032x}.json", u128::from_be_bytes(hash))
    }
}

/// A history on disk.
#[derive(Serialize, Deserialize)]
struct Kept<E> {
    /// For people.
    configuration: String,
    entries: E,
}

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Untrusted(String),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is damaged")]
    Json(#[from] serde_json::Error),
    #[error("its entries are not in order")]
    Order,
}

fn read(file: &Path) -> Result<Vec<Entry>, Unusable> {
    if let Some(why) = untrusted(file) {
        return Err(Unusable::Untrusted(why));
    }
    let mut bytes = Vec::new();
    match File::open(file) {
        Ok(file) => file.take(LONGEST_FILE).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let Kept::<Vec<Entry>> { mut entries, .. } = serde_json::from_slice(&bytes)?;
    entries.truncate(MOST);
    let descending = entries.is_sorted_by(|younger, older| younger.number > older.number);
    if descending && entries.iter().all(|entry| entry.number < u64::MAX) { Ok(entries) } else { Err(Unusable::Order) }
}

/// Configurations that are kept; the text of each is bounded where it is read.
const MOST: usize = 20;
/// Twenty texts of 1 MiB, of which each letter may need two.
const LONGEST_FILE: u64 = 64 << 20;
/// Of the storage.
const FOLDER: &str = "history";

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, chown},
    };

    use super::*;

    fn storage() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn load(storage: &tempfile::TempDir) -> History {
        History::load(storage.path(), Path::new("/etc/vestibule/vestibule.yml"))
    }

    /// A history of these texts, the last one in force.
    fn applied(storage: &tempfile::TempDir, texts: &[&str]) -> History {
        let mut history = load(storage);
        for (generation, text) in (1..).zip(texts) {
            history.push(generation, "SIGHUP", text);
        }
        history
    }

    fn roll_back(history: &mut History, steps: u32) -> String {
        let entry = history.before(steps).unwrap().clone();
        history.push_rollback(100, &entry);
        entry.text
    }

    fn texts(history: &History) -> Vec<&str> {
        history.entries.iter().map(|entry| entry.text.as_str()).collect()
    }

    #[test]
    fn what_was_applied_is_told_the_youngest_first_and_survives_a_restart() {
        let storage = storage();
        let mut history = load(&storage);
        history.push(1, "start", "a");
        history.push(2, "SIGHUP", "b");

        let again = load(&storage);

        assert_eq!(again, history);
        let told: Vec<_> = again.applied().into_iter().map(|applied| (applied.generation, applied.cause)).collect();
        assert_eq!(told, [(2, "SIGHUP".to_owned()), (1, "start".to_owned())]);
        assert_eq!(again.before(1).unwrap().text, "a");
    }

    #[test]
    fn each_rollback_of_one_step_goes_one_further_back() {
        let storage = storage();
        let mut history = applied(&storage, &["a", "b", "c"]);

        assert_eq!(roll_back(&mut history, 1), "b");
        assert_eq!(roll_back(&mut history, 1), "a");

        assert_eq!(history.before(1).unwrap_err(), TooFew { steps: 1, available: 0 });
        assert_eq!(texts(&history), ["a", "b", "c", "b", "a"]);
        assert!(history.applied()[0].cause.starts_with("rollback to generation 1 of 2"), "{:?}", history.applied()[0]);
    }

    #[test]
    fn what_was_rolled_back_from_is_not_met_again() {
        let storage = storage();
        let mut history = applied(&storage, &["a", "b", "broken"]);
        roll_back(&mut history, 1);
        history.push(5, "SIGHUP", "d");

        assert_eq!(history.before(1).unwrap().text, "b");
        assert_eq!(history.before(2).unwrap().text, "a");
        assert_eq!(
            history.before(3).unwrap_err().to_string(),
            "cannot go back 3: there are 2 configurations before the one in force"
        );
        assert_eq!(roll_back(&mut history, 1), "b");
        assert_eq!(roll_back(&mut history, 1), "a");
    }

    #[test]
    fn a_rollback_to_the_text_that_is_in_force_goes_back_all_the_same() {
        let storage = storage();
        let mut history = applied(&storage, &["z", "a", "b", "a"]);

        assert_eq!(roll_back(&mut history, 2), "a");

        assert_eq!(history.before(1).unwrap().text, "z");
    }

    #[test]
    fn the_same_text_renews_the_youngest_entry() {
        let storage = storage();
        applied(&storage, &["a", "b"]);

        let mut history = load(&storage);
        history.push(1, "start", "b");

        assert_eq!(texts(&history), ["b", "a"]);
        assert_eq!((history.applied()[0].generation, history.applied()[0].cause.as_str()), (1, "start"));
        assert_eq!(load(&storage), history);
    }

    #[test]
    fn only_so_many_are_kept_and_an_origin_that_has_gone_ends_the_line() {
        let storage = storage();
        let mut history = applied(&storage, &["a", "b"]);
        roll_back(&mut history, 1);
        for number in 0..MOST - 1 {
            history.push(9, "SIGHUP", &number.to_string());
        }

        assert_eq!(history.entries.len(), MOST);
        assert_eq!(load(&storage), history);
        let oldest = u32::try_from(MOST - 1).unwrap();
        assert_eq!(history.before(oldest).unwrap().text, "a");
        assert_eq!(history.before(oldest + 1).unwrap_err().available, MOST - 1);
    }

    #[test]
    fn configurations_that_share_a_storage_have_histories_of_their_own() {
        let storage = storage();
        let mut one = History::load(storage.path(), Path::new("/etc/one/v.yml"));
        let mut other = History::load(storage.path(), Path::new("/etc/other/v.yml"));
        one.push(1, "start", "one");
        other.push(1, "start", "other");

        assert_eq!(texts(&History::load(storage.path(), Path::new("/etc/one/v.yml"))), ["one"]);
        assert_eq!(texts(&History::load(storage.path(), Path::new("/etc/other/v.yml"))), ["other"]);
    }

    #[test]
    fn nobody_else_may_read_it() {
        let storage = storage();
        let history = applied(&storage, &["password: secret"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;

        assert_eq!(mode(&history.file()), 0o600);
        assert_eq!(mode(history.file().parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(storage.path().join(FOLDER)).unwrap().count(), 1, "something was left behind");
    }

    #[test]
    fn a_damaged_one_is_replaced() {
        let storage = storage();
        let file = applied(&storage, &["a", "b"]).file();
        let whole = fs::read_to_string(&file).unwrap();
        let out_of_order = whole.replace("\"number\":1", "\"number\":2");
        assert_ne!(out_of_order, whole);

        for damaged in [&whole[..whole.len() / 2], "", "[]", &out_of_order] {
            fs::write(&file, damaged).unwrap();
            let mut history = load(&storage);
            assert_eq!(texts(&history), [""; 0], "{damaged}");

            history.push(1, "start", "c");
            assert_eq!(texts(&load(&storage)), ["c"], "{damaged}");
        }
    }

    #[test]
    fn without_a_storage_it_is_in_memory() {
        let storage = storage();
        fs::write(storage.path().join(FOLDER), "not a folder").unwrap();

        let history = applied(&storage, &["a", "b"]);

        assert_eq!(history.before(1).unwrap().text, "a");
    }

    #[test]
    fn root_obeys_no_history_that_others_can_write_and_writes_none_there() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let storage = storage();
        let file = applied(&storage, &["a", "b"]).file();
        chown(&file, Some(12345), None).unwrap();
        assert_eq!(texts(&load(&storage)), [""; 0]);

        chown(&file, Some(0), None).unwrap();
        fs::set_permissions(storage.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let before = fs::read(&file).unwrap();
        let history = applied(&storage, &["c"]);

        assert_eq!(texts(&history), ["c"]);
        assert_eq!(fs::read(&file).unwrap(), before);
    }

    #[test]
    fn a_successor_is_handed_all_of_it() {
        let storage = storage();
        let mut history = applied(&storage, &["a", "b", "c"]);
        roll_back(&mut history, 1);

        let handed: History = postcard::from_bytes(&postcard::to_stdvec(&history).unwrap()).unwrap();

        assert_eq!(handed, history);
    }
}
