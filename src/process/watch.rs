//! Which files that concern the configuration have changed.
//!
//! Folders are watched and not files, since a file is as often replaced as written: by a rename over it, or by another
//! target of a link on the way to it, as certbot does with certificates and Kubernetes with whole folders. What the
//! system tells (inotify) is only a reason to look: a change is what [`Seen`] differs in. As the system tells nothing of
//! network file systems, and of no more folders than `fs.inotify.max_user_watches`, there is a look every few seconds
//! besides.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf, absolute},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, warn};

use super::signal_mask;
use crate::{allocator, config::FileStamp as Seen};

/// Tells when files change.
///
/// Works in a thread of its own, which ends soon after this is dropped; nobody waits for it.
pub(super) struct Watcher {
    files: Vec<PathBuf>,
    messages: Sender<Message>,
}

impl Watcher {
    /// Tells each change to `changes`, as the path that was given to [`Self::watch`]; several at once where they come
    /// together.
    ///
    /// A change is told when nothing has moved for [`QUIET`], and after [`LONGEST`] at the latest. A file that vanishes
    /// is told after [`GAP`], unless it has come back.
    pub(super) fn new(changes: UnboundedSender<Vec<PathBuf>>) -> Self {
        Self::listening(changes, listen)
    }

    fn listening(changes: UnboundedSender<Vec<PathBuf>>, listen: Listen) -> Self {
        let (messages, received) = mpsc::channel();
        let watch = Watch {
            changes,
            listen,
            stir: messages.clone(),
            files: Vec::new(),
            way: BTreeSet::new(),
            inotify: None,
            deaf: BTreeSet::new(),
            stirred: None,
            next_look: Instant::now() + LOOK,
            next_attempt: Instant::now(),
        };
        let thread = thread::Builder::new().name("files".to_owned());
        let run = move || {
            signal_mask::hold();
            watch.run(&received);
        };
        if let Err(error) = thread.spawn(run) {
            error!(error = &error as &dyn std::error::Error, "no file is watched; reload by hand (SIGHUP)");
        }
        Self { files: Vec::new(), messages }
    }

    /// Watches exactly `files` from now on. What they are now is what later is compared with, but for files that were
    /// watched before: what has happened to them since the last [`Self::take_for_known`] is not lost.
    pub(super) fn watch(&mut self, files: Vec<PathBuf>) {
        if files == self.files {
            return;
        }
        let watched: HashSet<&PathBuf> = self.files.iter().collect();
        // What those that are watched already are now, nobody asks.
        let looked = |file: PathBuf| {
            let seen = if watched.contains(&file) { None } else { Seen::of(&file) };
            (file, seen)
        };
        let looked = files.into_iter().map(looked).collect();
        self.watch_since(looked);
    }

    /// The same of files as they were when they were looked at, before they were read: what has happened since is told.
    pub(super) fn watch_since(&mut self, looked: Looked) {
        self.files = looked.iter().map(|(file, _)| file.clone()).collect();
        self.tell(Message::Watch(looked));
    }

    /// Takes what the files are now for known: to be called before they are read for another reason than a change that
    /// was told.
    pub(super) fn take_for_known(&mut self) {
        self.tell(Message::Known(self.files.iter().map(|file| Seen::of(file)).collect()));
    }

    fn tell(&self, message: Message) {
        // Without a thread that has been told once.
        self.messages.send(message).ok();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.tell(Message::End);
    }
}

/// Files, and what they were.
pub(super) type Looked = Vec<(PathBuf, Option<Seen>)>;

/// What `files` are. Who asks is about to read them, or has just done so: what can hang here hangs there.
pub(super) fn look(files: Vec<PathBuf>) -> Looked {
    let look = |file: PathBuf| {
        let seen = Seen::of(&file);
        (file, seen)
    };
    files.into_iter().map(look).collect()
}

enum Message {
    Watch(Looked),
    /// What the files are that are watched, in their order.
    Known(Vec<Option<Seen>>),
    /// Something has happened to a name that matters.
    Stirred,
    End,
}

/// A file as it was told last.
struct File {
    path: PathBuf,
    known: Option<Seen>,
    /// Since when it is not there, although it is known to be.
    missing: Option<Instant>,
}

/// A name that decides what a file is, and the folder it is in: of the file itself, or of a link on the way to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// First, as names tell most steps apart.
    name: OsString,
    folder: Arc<Folder>,
}

/// A folder, without links on the way to it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Folder {
    path: PathBuf,
    /// Device and inode: another one may come under its name.
    identity: Option<(u64, u64)>,
}

/// Finds the steps from the root to files. Thousands may lie in one folder, the way to which is gone once.
#[derive(Default)]
struct Finder {
    steps: BTreeSet<Step>,
    /// Where the folders that files lie in are, by their paths as they are written; `None` where something is missing.
    ways: HashMap<PathBuf, Option<PathBuf>>,
    /// Those of `steps`.
    folders: HashMap<PathBuf, Arc<Folder>>,
}

impl Finder {
    /// Adds the steps to `file`; where one is missing, the way ends with it.
    fn add(&mut self, file: &Path) {
        let (Some(written), Some(name)) = (file.parent(), file.file_name()) else { return };
        let (mut folder, mut rest) = match self.ways.get(written) {
            Some(Some(known)) => (known.clone(), VecDeque::from([name.to_owned()])),
            Some(None) => return,
            None => {
                self.ways.insert(written.to_owned(), None);
                (PathBuf::from("/"), names(file).into())
            }
        };
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if rest.is_empty()
                && let Some(unknown @ None) = self.ways.get_mut(written)
            {
                *unknown = Some(folder.clone());
            }
            if name == ".." {
                folder.pop();
                continue;
            }
            let here = folder.join(&name);
            let target = if rest.is_empty() {
                fs::read_link(&here).ok()
            } else {
                match fs::symlink_metadata(&here) {
                    Ok(found) if found.is_symlink() => fs::read_link(&here).ok(),
                    Ok(_) => {
                        folder = here;
                        continue;
                    }
                    Err(_) => None,
                }
            };
            self.step(&folder, name);
            links += 1;
            // The kernel follows no more either.
            let Some(target) = target.filter(|_| links <= 40) else { return };
            if target.is_absolute() {
                folder = PathBuf::from("/");
            }
            for name in names(&target).into_iter().rev() {
                rest.push_front(name);
            }
        }
    }

    fn step(&mut self, folder: &Path, name: OsString) {
        let known = self.folders.get(folder).cloned();
        let folder = known.unwrap_or_else(|| {
            let identity = fs::metadata(folder).ok().map(|found| (found.dev(), found.ino()));
            let new = Arc::new(Folder { path: folder.to_owned(), identity });
            self.folders.insert(folder.to_owned(), Arc::clone(&new));
            new
        });
        self.steps.insert(Step { name, folder });
    }
}

/// The names that `path` goes by from the root.
fn names(path: &Path) -> Vec<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

/// The thread of a [`Watcher`].
struct Watch {
    changes: UnboundedSender<Vec<PathBuf>>,
    listen: Listen,
    stir: Sender<Message>,
    files: Vec<File>,
    /// What `inotify` listens to.
    way: BTreeSet<Step>,
    inotify: Option<RecommendedWatcher>,
    /// Folders that cannot be listened to, and have been told of.
    deaf: BTreeSet<PathBuf>,
    /// When something first happened that was not looked at yet, and when last.
    stirred: Option<(Instant, Instant)>,
    next_look: Instant,
    /// When folders that cannot be listened to are tried again.
    next_attempt: Instant,
}

impl Watch {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(self.due().saturating_duration_since(Instant::now())) {
                Ok(Message::Watch(files)) => self.watch(files),
                Ok(Message::Known(seen)) => self.know(seen),
                Ok(Message::Stirred) => {
                    let now = Instant::now();
                    self.stirred = Some((self.stirred.map_or(now, |(first, _)| first), now));
                }
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= self.due() && !self.look() {
                return;
            }
        }
    }

    /// When to look next.
    fn due(&self) -> Instant {
        let settled = self.stirred.map(|(first, last)| (last + QUIET).min(first + LONGEST));
        let gaps = self.files.iter().filter_map(|file| Some(file.missing? + GAP));
        gaps.chain(settled).chain([self.next_look]).min().unwrap_or(self.next_look)
    }

    fn watch(&mut self, files: Looked) {
        let before = std::mem::take(&mut self.files).into_iter();
        let mut before: HashMap<PathBuf, File> = before.map(|file| (file.path.clone(), file)).collect();
        for (path, seen) in files {
            self.files.push(before.remove(&path).unwrap_or(File { path, known: seen, missing: None }));
        }
        self.next_attempt = Instant::now();
        // What has happened until we listen is seen at once.
        self.next_look = Instant::now();
    }

    fn know(&mut self, seen: Vec<Option<Seen>>) {
        for (file, seen) in self.files.iter_mut().zip(seen) {
            file.known = seen;
            file.missing = None;
        }
        // Whoever reads them anew may have mended what kept us from listening.
        self.next_attempt = Instant::now();
    }

    /// Tells what has changed; answers whether anybody hears it.
    fn look(&mut self) -> bool {
        let stirred = self.stirred.take().is_some();
        self.listen_again(stirred);
        let now = Instant::now();
        self.next_look = now + LOOK;
        let changed: Vec<PathBuf> = self.files.iter_mut().filter_map(|file| file.changed(now)).collect();
        // What the way to thousands of files has taken, until the next look.
        allocator::give_back();
        changed.is_empty() || self.changes.send(changed).is_ok()
    }

    /// Listens to the folders that matter now.
    ///
    /// After anything has happened to one, all of them anew: the system follows the folder that was, and not its name.
    fn listen_again(&mut self, stirred: bool) {
        let mut way = self.current_way();
        let again = !self.deaf.is_empty() && Instant::now() >= self.next_attempt;
        if way == self.way && !stirred && !again {
            return;
        }
        for _ in 0..ROUNDS {
            // One instance at a time: there are few of them for all processes of a user.
            self.inotify = None;
            let (inotify, refused) = (self.listen)(&self.stir, &way);
            self.inotify = inotify;
            self.refused(refused);
            self.way = way;
            // A link may have been changed before its folder was listened to.
            way = self.current_way();
            if way == self.way {
                return;
            }
        }
    }

    fn current_way(&self) -> BTreeSet<Step> {
        let mut finder = Finder::default();
        for file in &self.files {
            if let Ok(file) = absolute(&file.path) {
                finder.add(&file);
            }
        }
        finder.steps
    }

    /// Tells of each folder once, until it can be listened to again.
    fn refused(&mut self, refused: Vec<(PathBuf, notify::Error)>) {
        self.next_attempt = Instant::now() + ATTEMPT;
        for (folder, error) in &refused {
            if !self.deaf.contains(folder) {
                warn!(
                    folder = %folder.display(), error = error as &dyn std::error::Error, every = ?LOOK,
                    "the system does not tell of changes in a folder, which is looked at now and then instead; \
                     `fs.inotify.max_user_watches` and `max_user_instances` are the usual limits"
                );
            }
        }
        self.deaf = refused.into_iter().map(|(folder, _)| folder).collect();
    }
}

impl File {
    /// Its path, if it is not as it was told last.
    fn changed(&mut self, now: Instant) -> Option<PathBuf> {
        let seen = Seen::of(&self.path);
        if seen == self.known {
            self.missing = None;
            return None;
        }
        if seen.is_none() && now < *self.missing.get_or_insert(now) + GAP {
            return None;
        }
        self.known = seen;
        self.missing = None;
        Some(self.path.clone())
    }
}

/// Stirs when anything happens to a step; answers the folders in which it will not, too.
type Listen = fn(&Sender<Message>, &BTreeSet<Step>) -> (Option<RecommendedWatcher>, Vec<(PathBuf, notify::Error)>);

fn listen(stir: &Sender<Message>, way: &BTreeSet<Step>) -> (Option<RecommendedWatcher>, Vec<(PathBuf, notify::Error)>) {
    let folders: BTreeSet<PathBuf> = way.iter().map(|step| step.folder.path.clone()).collect();
    let (stir, known) = (stir.clone(), folders.clone());
    let names: HashSet<OsString> = way.iter().map(|step| step.name.clone()).collect();
    let heard = move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| !concerns(&event, &known, &names)) {
            return;
        }
        // The thread has ended.
        stir.send(Message::Stirred).ok();
    };
    let mut inotify = match notify::recommended_watcher(heard) {
        Ok(inotify) => inotify,
        Err(error) => {
            let refused = |folder| (folder, notify::Error::generic(&error.to_string()));
            return (None, folders.into_iter().map(refused).collect());
        }
    };
    let refused = folders.into_iter().filter_map(|folder| {
        let error = inotify.watch(&folder, RecursiveMode::NonRecursive).err()?;
        // It has just gone: so has the way through it, which is looked at again.
        let gone = matches!(error.kind, notify::ErrorKind::PathNotFound)
            || matches!(&error.kind, notify::ErrorKind::Io(error) if error.kind() == io::ErrorKind::NotFound);
        (!gone).then_some((folder, error))
    });
    let refused = refused.collect();
    (Some(inotify), refused)
}

/// Whether `event` may have changed a step: by its name, as one folder may be known by two paths.
fn concerns(event: &Event, folders: &BTreeSet<PathBuf>, names: &HashSet<OsString>) -> bool {
    match event.kind {
        _ if event.need_rescan() => return true,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
        EventKind::Access(_) => return false,
        _ => {}
    }
    let matters = |path: &Path| path.file_name().is_some_and(|name| names.contains(name));
    event.paths.iter().any(|path| folders.contains(path) || matters(path))
}

/// A change is told when nothing has happened for this long: programs write in pieces.
const QUIET: Duration = Duration::from_millis(200);
/// The longest it is waited for that.
const LONGEST: Duration = Duration::from_secs(2);
/// How long a file may be missing between two that are.
const GAP: Duration = Duration::from_secs(2);
/// How often the files are looked at without a reason.
const LOOK: Duration = Duration::from_secs(5);
/// How often what cannot be listened to is tried.
const ATTEMPT: Duration = Duration::from_secs(60);
/// How often the way is followed while it changes under us; the next look goes on.
const ROUNDS: usize = 5;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError, unbounded_channel};

    use super::*;

    struct Watched {
        folder: tempfile::TempDir,
        watcher: Watcher,
        changes: UnboundedReceiver<Vec<PathBuf>>,
    }

    impl Watched {
        /// Watches `files` in a folder that `prepare` has filled.
        fn new(prepare: impl FnOnce(&Path), files: &[&str]) -> Self {
            Self::with(Watcher::new, prepare, files)
        }

        fn with(
            make: impl FnOnce(UnboundedSender<Vec<PathBuf>>) -> Watcher,
            prepare: impl FnOnce(&Path),
            files: &[&str],
        ) -> Self {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let (sender, changes) = unbounded_channel();
            let mut watched = Self { folder, watcher: make(sender), changes };
            watched.watch(files);
            watched
        }

        fn watch(&mut self, files: &[&str]) {
            self.watcher.watch(files.iter().map(|file| self.path(file)).collect());
            // Listens when it has looked; what happens before would be seen, too, but as one change with what follows.
            thread::park_timeout(QUIET);
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.path(name), content).unwrap();
        }

        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }

        /// The names in the next message.
        fn next(&mut self) -> Vec<String> {
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                match self.changes.try_recv() {
                    Ok(paths) => {
                        let name = |path: PathBuf| path.strip_prefix(self.folder.path()).unwrap().display().to_string();
                        return paths.into_iter().map(name).collect();
                    }
                    Err(error) => assert!(error == TryRecvError::Empty && Instant::now() < end, "no change: {error}"),
                }
                thread::park_timeout(Duration::from_millis(5));
            }
        }

        /// Nothing was told but what has been taken.
        fn is_silent(&mut self) -> bool {
            self.changes.try_recv() == Err(TryRecvError::Empty)
        }
    }

    fn two_files(folder: &Path) {
        fs::write(folder.join("a"), "1").unwrap();
        fs::write(folder.join("b"), "1").unwrap();
    }

    #[test]
    fn a_file_that_is_written_in_place_is_told() {
        let mut files = Watched::new(two_files, &["a", "b"]);

        files.write("a", "2");

        assert_eq!(files.next(), ["a"]);
    }

    #[test]
    fn what_has_happened_between_a_look_and_the_watch_is_told() {
        let mut files = Watched::new(two_files, &[]);
        let looked = look(vec![files.path("a"), files.path("b")]);
        files.write("a.new", "2");
        files.rename("a.new", "a");

        files.watcher.watch_since(looked);

        assert_eq!(files.next(), ["a"]);
    }

    #[test]
    fn a_file_that_another_is_renamed_over_is_told_each_time() {
        let mut files = Watched::new(two_files, &["a", "b"]);

        for content in ["2", "3"] {
            files.write("a.new", content);
            files.rename("a.new", "a");

            assert_eq!(files.next(), ["a"], "{content}");
        }
    }

    #[test]
    fn files_that_change_together_are_told_in_one_message() {
        let mut files = Watched::new(two_files, &["a", "b"]);

        files.write("b", "2");
        files.write("a", "2");

        assert_eq!(files.next(), ["a", "b"]);
    }

    #[test]
    fn a_link_that_is_given_another_target_is_told_and_the_new_target_watched() {
        // As certbot does it: live/ has links into archive/.
        let prepare = |folder: &Path| {
            fs::create_dir_all(folder.join("live/x")).unwrap();
            fs::create_dir_all(folder.join("archive/x")).unwrap();
            fs::write(folder.join("archive/x/cert1.pem"), "1").unwrap();
            symlink("../../archive/x/cert1.pem", folder.join("live/x/cert.pem")).unwrap();
        };
        let mut files = Watched::new(prepare, &["live/x/cert.pem"]);

        files.write("archive/x/cert2.pem", "2");
        fs::remove_file(files.path("live/x/cert.pem")).unwrap();
        symlink("../../archive/x/cert2.pem", files.path("live/x/cert.pem")).unwrap();
        assert_eq!(files.next(), ["live/x/cert.pem"]);

        files.write("archive/x/cert2.pem", "3");
        assert_eq!(files.next(), ["live/x/cert.pem"]);
    }

    #[test]
    fn a_folder_that_a_link_on_the_way_no_longer_leads_to_is_told() {
        // As Kubernetes does it: the file is a link through the link `..data`, which alone is swapped.
        let prepare = |folder: &Path| {
            for version in ["..1", "..2", "..3"] {
                fs::create_dir(folder.join(version)).unwrap();
                fs::write(folder.join(version).join("v.yml"), version).unwrap();
            }
            symlink("..1", folder.join("..data")).unwrap();
            symlink("..data/v.yml", folder.join("v.yml")).unwrap();
        };
        let mut files = Watched::new(prepare, &["v.yml"]);

        for version in ["..2", "..3"] {
            symlink(version, files.path("..tmp")).unwrap();
            files.rename("..tmp", "..data");

            assert_eq!(files.next(), ["v.yml"], "{version}");
        }
    }

    #[test]
    fn a_file_is_followed_into_another_folder_of_the_same_name() {
        let prepare = |folder: &Path| {
            for name in ["now", "next"] {
                fs::create_dir(folder.join(name)).unwrap();
                fs::write(folder.join(name).join("a"), name).unwrap();
            }
        };
        let mut files = Watched::new(prepare, &["now/a"]);

        files.rename("now", "before");
        files.rename("next", "now");
        assert_eq!(files.next(), ["now/a"]);

        files.write("now/a", "2");
        assert_eq!(files.next(), ["now/a"]);
    }

    #[test]
    fn a_file_that_comes_back_as_it_was_has_not_changed() {
        let prepare = |folder: &Path| {
            two_files(folder);
            fs::create_dir(folder.join("c")).unwrap();
            fs::write(folder.join("c/c"), "1").unwrap();
            symlink("a", folder.join("link")).unwrap();
        };
        let mut files = Watched::new(prepare, &["link", "c/c", "b"]);

        fs::remove_file(files.path("link")).unwrap();
        files.rename("c", "d");
        // Longer than it takes to tell a change.
        thread::park_timeout(2 * QUIET);
        symlink("a", files.path("link")).unwrap();
        files.rename("d", "c");
        thread::park_timeout(GAP);
        files.write("b", "2");

        assert_eq!(files.next(), ["b"]);
    }

    #[test]
    fn a_file_that_comes_back_as_another_one_is_told_once_and_then() {
        let mut files = Watched::new(two_files, &["a", "b"]);

        fs::remove_file(files.path("a")).unwrap();
        thread::park_timeout(2 * QUIET);
        assert!(files.is_silent(), "told while it was away");
        files.write("a", "2");

        assert_eq!(files.next(), ["a"]);
        files.write("b", "2");
        assert_eq!(files.next(), ["b"]);
    }

    #[test]
    fn a_file_that_stays_away_is_told_after_the_gap_and_again_when_it_is_back() {
        let mut files = Watched::new(two_files, &["a", "b"]);

        let begun = Instant::now();
        fs::remove_file(files.path("a")).unwrap();
        assert_eq!(files.next(), ["a"]);
        assert!(begun.elapsed() >= GAP, "{:?}", begun.elapsed());

        files.write("a", "2");
        assert_eq!(files.next(), ["a"]);
    }

    #[test]
    fn a_file_and_its_folder_that_are_yet_to_come_are_told_when_they_do() {
        let mut files = Watched::new(two_files, &["c/d/a"]);

        fs::create_dir_all(files.path("c/d")).unwrap();
        files.write("c/d/a", "1");

        assert_eq!(files.next(), ["c/d/a"]);
    }

    #[test]
    fn another_file_of_the_folder_is_nobodys_concern() {
        let mut files = Watched::new(two_files, &["a"]);

        files.write("b", "2");
        files.write("new", "1");
        fs::read(files.path("a")).unwrap();
        thread::park_timeout(2 * QUIET);
        files.write("a", "2");

        assert_eq!(files.next(), ["a"]);
        assert!(files.is_silent());
    }

    #[test]
    fn many_writes_in_a_row_are_few_messages_but_not_none() {
        let mut files = Watched::new(two_files, &["a"]);

        let begun = Instant::now();
        let mut number = 0;
        while begun.elapsed() < LONGEST + LONGEST / 2 {
            number += 1;
            files.write("a", &number.to_string());
            thread::park_timeout(Duration::from_millis(2));
        }

        assert!(!files.is_silent(), "{number} writes and nothing was told");
        let mut messages = 1;
        // After silence, what is to come has come.
        thread::park_timeout(3 * QUIET);
        while !files.is_silent() {
            messages += 1;
        }
        assert!(messages <= 4, "{messages} messages of {number} writes");
    }

    #[test]
    fn other_files_can_be_watched_in_their_place() {
        let mut files = Watched::new(two_files, &["a"]);

        files.watch(&["b"]);
        files.write("a", "2");
        thread::park_timeout(2 * QUIET);
        files.write("b", "2");

        assert_eq!(files.next(), ["b"]);
        assert!(files.is_silent());
    }

    #[test]
    fn what_happens_while_the_files_are_read_is_not_lost_and_what_was_read_not_told() {
        let mut files = Watched::new(two_files, &["a", "b"]);

        files.write("a", "2");
        files.watcher.take_for_known();
        // Read here, and then:
        files.write("b", "2");
        files.watch(&["a", "b"]);

        assert_eq!(files.next(), ["b"]);
        assert!(files.is_silent());
    }

    #[test]
    fn without_the_systems_help_a_change_comes_later() {
        let deaf: Listen = |_, way| {
            let refused =
                |step: &Step| (step.folder.path.clone(), notify::Error::new(notify::ErrorKind::MaxFilesWatch));
            (None, way.iter().map(refused).collect())
        };
        let mut files = Watched::with(|changes| Watcher::listening(changes, deaf), two_files, &["a", "b"]);

        files.write("b", "2");

        assert_eq!(files.next(), ["b"]);
    }

    #[test]
    fn its_thread_ends_with_it() {
        let mut files = Watched::new(two_files, &["a"]);

        drop(files.watcher);

        let end = Instant::now() + Duration::from_secs(10);
        while files.changes.try_recv() != Err(TryRecvError::Disconnected) {
            assert!(Instant::now() < end, "the thread goes on");
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}
