//! The file of a log, when others move it away and when it has grown.
//!
//! Whoever writes the log knows nothing of paths: it is given another file to go on with. What comes in between goes to
//! the file it has, wherever that has been moved, so that no line is lost.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Gid, Mode, RenameFlags, Uid, fchmod, fchown, renameat_with};
use tracing::{error, info};

use super::output::{self, LogOutput, OutputError};
use crate::config::RotatePlan;

/// The file of a log, looked after.
///
/// Of the other files in its folder only those with its own name and a number are ever touched: `access.log.1` is the
/// youngest. What is no file, such as `/dev/stdout`, is left alone.
#[derive(Debug)]
pub struct WatchedLog {
    path: PathBuf,
    /// The one that is written to.
    file: File,
    rotate: Option<RotatePlan>,
    device: bool,
    /// Whose the folder may be.
    owner: Option<Uid>,
    /// Something has failed, and was told: not to be tried again before.
    next_attempt: Option<Instant>,
}

impl WatchedLog {
    /// Looks after `file`, which was opened at `path`; in a folder of `owner`'s, who could lead us elsewhere, without
    /// rotating it.
    pub fn new(path: PathBuf, file: File, rotate: Option<RotatePlan>, owner: Option<Uid>) -> Self {
        let rotate = rotate.filter(|_| output::may_rotate(&path));
        let device = output::is_device(&path) || !file.metadata().is_ok_and(|found| found.is_file());
        Self { path, file, rotate, device, owner, next_attempt: None }
    }

    /// The file that is written to, for another one who is to write.
    pub fn output(&self) -> io::Result<LogOutput> {
        Ok(LogOutput::File { path: self.path.clone(), file: self.file.try_clone()? })
    }

    /// Answers the file to go on with where there is another one at the path, or none, or where the file has grown beyond
    /// its size and was put aside. To be called every second or so.
    ///
    /// What fails is told once and tried again after [`PAUSE`]; meanwhile the file there is goes on.
    pub fn look(&mut self) -> Option<File> {
        self.look_at(Instant::now())
    }

    /// Opens the path anew, whatever there is.
    pub fn reopen(&mut self) -> Result<File, OutputError> {
        self.go_on_in(output::open(&self.path, self.owner)?)
    }

    fn look_at(&mut self, now: Instant) -> Option<File> {
        if self.device || self.next_attempt.is_some_and(|next| now < next) {
            return None;
        }
        match self.look_now() {
            Ok(file) => {
                if self.next_attempt.take().is_some() {
                    info!(path = %self.path.display(), "the file of the log is in order again");
                }
                file
            }
            Err(error) => {
                if self.next_attempt.replace(now + PAUSE).is_none() {
                    let error = &error as &dyn std::error::Error;
                    error!(error, every = ?PAUSE, "the log goes on in the file it has, and this is tried again");
                }
                None
            }
        }
    }

    fn look_now(&mut self) -> Result<Option<File>, OutputError> {
        let ours = self.file.metadata().map_err(|error| self.failed(error))?;
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (ours.dev(), ours.ino()) => {}
            Ok(_) => return self.reopen().map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.reopen().map(Some),
            Err(error) => return Err(self.failed(error)),
        }
        match self.rotate {
            Some(rotate) if ours.len() >= rotate.size => self.rotate(rotate.keep, &ours).map(Some),
            _ => Ok(None),
        }
    }

    /// Puts the file aside.
    fn rotate(&mut self, keep: u32, ours: &Metadata) -> Result<File, OutputError> {
        // Where the path is a link, the files are beside what it leads to.
        let file = fs::canonicalize(&self.path).map_err(|error| self.failed(error))?;
        make_room(&file, keep).map_err(|error| self.failed(error))?;
        let aside = numbered(&file, 1);
        fs::rename(&file, &aside).map_err(|error| self.failed(error))?;
        let new = output::open(&self.path, self.owner).inspect_err(|_| {
            // It stays where it was. Should somebody have put a file there just now, the next look finds that one.
            renameat_with(CWD, &aside, CWD, &file, RenameFlags::NOREPLACE).ok();
        })?;
        // Whoever may read the log may read on. Somebody else's we cannot make it unless we are root.
        fchown(&new, Some(Uid::from_raw(ours.uid())), Some(Gid::from_raw(ours.gid()))).ok();
        fchmod(&new, Mode::from_raw_mode(ours.mode() & 0o777)).ok();
        // `keep` may have been more. A number that follows no other one is not of our doing.
        for number in keep.saturating_add(1).. {
            if fs::remove_file(numbered(&file, number)).is_err() {
                break;
            }
        }
        self.go_on_in(new)
    }

    fn go_on_in(&mut self, file: File) -> Result<File, OutputError> {
        let handed = file.try_clone().map_err(|error| self.failed(error))?;
        self.file = file;
        Ok(handed)
    }

    fn failed(&self, source: io::Error) -> OutputError {
        OutputError::Aside { path: self.path.clone(), source }
    }
}

/// Moves each numbered file to the next number, up to the first number that is free; the one at `keep` is given up.
fn make_room(file: &Path, keep: u32) -> io::Result<()> {
    let free = (1..keep).find(|number| fs::symlink_metadata(numbered(file, *number)).is_err()).unwrap_or(keep);
    (1..free).rev().try_for_each(|number| fs::rename(numbered(file, number), numbered(file, number + 1)))
}

fn numbered(file: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(format!(".{number}"));
    name.into()
}

/// How long something that failed is left alone.
const PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        io::Write,
        os::unix::fs::{PermissionsExt, symlink},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use super::*;
    use crate::{
        config::LogFormat,
        metrics::Counter,
        telemetry::access_log::{AccessLog, Format, Record, Started},
    };

    struct Logged {
        folder: tempfile::TempDir,
        log: WatchedLog,
        /// As whoever writes has it.
        file: File,
    }

    impl Logged {
        fn new(rotate: Option<(u64, u32)>) -> Self {
            Self::at("access.log", |_| {}, rotate)
        }

        fn at(name: &str, prepare: impl FnOnce(&Path), rotate: Option<(u64, u32)>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let path = folder.path().join(name);
            let file = output::open(&path, None).unwrap();
            let rotate = rotate.map(|(size, keep)| RotatePlan { size, keep });
            let log = WatchedLog::new(path, file.try_clone().unwrap(), rotate, None);
            Self { folder, log, file }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }

        fn write(&mut self, text: &str) {
            self.file.write_all(text.as_bytes()).unwrap();
        }

        /// Looks, and goes on as it says; whether it says anything.
        fn look(&mut self) -> bool {
            self.look_in(Duration::ZERO)
        }

        fn look_in(&mut self, time: Duration) -> bool {
            let next = self.log.look_at(Instant::now() + time);
            let some = next.is_some();
            self.file = next.unwrap_or_else(|| self.file.try_clone().unwrap());
            some
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        }

        fn names(&self) -> Vec<String> {
            let names: BTreeSet<_> = fs::read_dir(self.folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.into_iter().collect()
        }
    }

    #[test]
    fn a_file_in_its_place_below_its_size_is_left_alone() {
        let mut logged = Logged::new(Some((10, 2)));
        logged.write("123456789");

        assert!(!logged.look());
        assert_eq!(logged.names(), ["access.log"]);
    }

    #[test]
    fn a_file_that_has_grown_is_put_aside_and_only_so_many_are_kept() {
        let mut logged = Logged::new(Some((2, 2)));
        fs::write(logged.path("access.log.20261122"), "not ours").unwrap();
        fs::write(logged.path("access.log.1.gz"), "not ours").unwrap();

        for text in ["a\n", "b\n", "c\n", "d\n"] {
            logged.write(text);
            assert!(logged.look(), "{text}");
        }

        let names = ["access.log", "access.log.1", "access.log.1.gz", "access.log.2", "access.log.20261122"];
        assert_eq!(logged.names(), names);
        assert_eq!(["access.log", "access.log.1", "access.log.2"].map(|name| logged.read(name)), ["", "d\n", "c\n"]);
        assert!(!logged.look());
    }

    #[test]
    fn files_beyond_a_lowered_number_are_removed_with_the_next_rotation() {
        let mut logged = Logged::new(Some((1, 2)));
        for number in [1, 2, 3, 4, 6] {
            fs::write(logged.path(&format!("access.log.{number}")), number.to_string()).unwrap();
        }

        logged.write("0");
        assert!(logged.look());

        assert_eq!(logged.names(), ["access.log", "access.log.1", "access.log.2", "access.log.6"]);
        assert_eq!([logged.read("access.log.1"), logged.read("access.log.2")], ["0", "1"]);
    }

    #[test]
    fn numbers_behind_a_gap_stay_as_they_are() {
        let mut logged = Logged::new(Some((1, 9)));
        for number in [1, 3] {
            fs::write(logged.path(&format!("access.log.{number}")), number.to_string()).unwrap();
        }

        logged.write("0");
        assert!(logged.look());

        assert_eq!(["access.log.1", "access.log.2", "access.log.3"].map(|name| logged.read(name)), ["0", "1", "3"]);
    }

    #[test]
    fn the_new_file_is_as_readable_as_the_old_one() {
        let mut logged = Logged::new(Some((1, 2)));
        fs::set_permissions(logged.path("access.log"), fs::Permissions::from_mode(0o604)).unwrap();

        logged.write("0");
        assert!(logged.look());

        assert_eq!(fs::metadata(logged.path("access.log")).unwrap().mode() & 0o777, 0o604);
    }

    #[test]
    fn a_log_behind_a_link_is_put_aside_where_it_is() {
        let prepare = |folder: &Path| {
            fs::create_dir(folder.join("disk")).unwrap();
            symlink("disk/real.log", folder.join("access.log")).unwrap();
        };
        let mut logged = Logged::at("access.log", prepare, Some((1, 2)));

        logged.write("0");
        assert!(logged.look());
        logged.write("1");

        assert_eq!(logged.names(), ["access.log", "disk"]);
        assert_eq!([logged.read("disk/real.log.1"), logged.read("disk/real.log")], ["0", "1"]);
    }

    #[test]
    fn a_file_that_others_moved_is_followed_by_a_new_one_or_by_the_one_they_made() {
        let mut logged = Logged::new(None);
        logged.write("a\n");
        logged.rename("access.log", "access.log.1");
        assert!(logged.look());
        logged.write("b\n");

        logged.rename("access.log", "access.log.2");
        fs::write(logged.path("access.log"), "theirs\n").unwrap();
        assert!(logged.look());
        logged.write("c\n");

        let read = ["access.log.1", "access.log.2", "access.log"].map(|name| logged.read(name));
        assert_eq!(read, ["a\n", "b\n", "theirs\nc\n"]);
        assert!(!logged.look());
    }

    #[test]
    fn a_file_that_others_removed_is_made_again() {
        let mut logged = Logged::new(None);
        fs::remove_file(logged.path("access.log")).unwrap();

        assert!(logged.look());
        logged.write("a\n");

        assert_eq!(logged.read("access.log"), "a\n");
    }

    #[test]
    fn a_file_that_others_copied_and_emptied_is_written_on_from_its_beginning() {
        let mut logged = Logged::new(None);
        logged.write("a\n");
        File::options().write(true).truncate(true).open(logged.path("access.log")).unwrap();

        assert!(!logged.look());
        logged.write("b\n");

        assert_eq!(logged.read("access.log"), "b\n");
    }

    #[test]
    fn reopening_is_asked_for_or_not() {
        let mut logged = Logged::new(None);
        logged.write("a\n");

        logged.file = logged.log.reopen().unwrap();
        logged.write("b\n");

        assert_eq!(logged.read("access.log"), "a\nb\n");
    }

    #[test]
    fn without_its_folder_the_file_there_is_goes_on_and_it_is_tried_again() {
        let prepare = |folder: &Path| fs::create_dir_all(folder.join("a/b")).unwrap();
        let mut logged = Logged::at("a/b/access.log", prepare, Some((1, 2)));
        logged.rename("a", "away");

        logged.write("0");
        assert!(!logged.look());
        assert!(logged.log.next_attempt.is_some());
        logged.rename("away", "a");
        assert!(!logged.look(), "there was no pause");
        assert!(logged.look_in(PAUSE));
        assert!(logged.log.next_attempt.is_none());

        logged.write("1");
        assert_eq!([logged.read("a/b/access.log.1"), logged.read("a/b/access.log")], ["0", "1"]);
    }

    #[test]
    fn a_rotation_that_fails_leaves_the_file_where_it_is() {
        let mut logged = Logged::new(Some((1, 2)));
        // What is in the way is no file.
        fs::create_dir(logged.path("access.log.2")).unwrap();
        fs::write(logged.path("access.log.1"), "1").unwrap();

        logged.write("0");
        assert!(!logged.look());
        logged.write("0");
        assert_eq!([logged.read("access.log"), logged.read("access.log.1")], ["00", "1"]);

        fs::remove_dir(logged.path("access.log.2")).unwrap();
        assert!(logged.look_in(PAUSE));
        assert_eq!([logged.read("access.log.1"), logged.read("access.log.2")], ["00", "1"]);
    }

    #[test]
    fn what_is_no_file_is_neither_looked_at_nor_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("access.log");
        symlink("/dev/stdout", &link).unwrap();
        let rotate = Some(RotatePlan { size: 0, keep: 1 });
        for path in [link, "/dev/stderr".into(), "/proc/self/fd/1".into(), "/dev/null".into()] {
            // As when standard output is a file.
            let mut log = WatchedLog::new(path.clone(), tempfile::tempfile().unwrap(), rotate, None);

            assert!(log.look().is_none(), "{}", path.display());
        }
    }

    #[test]
    fn over_many_rotations_no_line_is_lost_or_cut() {
        const LINES: u64 = 20_000;
        let mut logged = Logged::new(Some((4096, 1000)));
        let dropped = Counter::default();
        let log = AccessLog::start(logged.file.try_clone().unwrap(), dropped.clone()).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let format = Format::compile(&LogFormat::Template("line {bytes_sent} end".to_owned())).unwrap();

        let mut rotations = 0;
        thread::scope(|scope| {
            let (writer, format, finished) = (log.writer(), &format, Arc::clone(&done));
            scope.spawn(move || {
                for number in 0..LINES {
                    let mut record = Record::new(Started::now(), None);
                    record.bytes_sent = number;
                    writer.log(format, &record);
                    if number % 100 == 0 {
                        thread::park_timeout(Duration::from_millis(5));
                    }
                }
                finished.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                if let Some(file) = logged.log.look() {
                    rotations += 1;
                    log.reopen(file);
                }
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        log.shutdown(Duration::from_secs(10)).unwrap();

        assert!(rotations > 1, "{rotations}");
        assert_eq!(dropped.get(), 0);
        logged.file = File::open(logged.path("access.log")).unwrap();
        let files = (1..=rotations).rev().map(|number| format!("access.log.{number}")).chain(["access.log".to_owned()]);
        let text: String = files.map(|name| logged.read(&name)).collect();
        let expected: Vec<_> = (0..LINES).map(|number| format!("line {number} end")).collect();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines == expected, "{} of {LINES} lines in {rotations} files", lines.len());
    }
}
