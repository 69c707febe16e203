//! The directories files may be served from, and the way from a path to an open file in one of them.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::denied::Denied;
use crate::http::GatewayError;

/// The directories an application may name files in. Cheap to clone; shared by all traffic threads.
///
/// # How a path is checked
///
/// The path must lie under a root as it is written (whole segments, no `..`). It is then opened with `O_PATH`, which
/// touches neither the content nor a device, links followed wherever they lead; the kernel is asked where the open
/// file really is (`/proc/self/fd`), and only if that is under a root, is a regular file and is not denied, the same
/// descriptor is opened for reading. Nothing is looked up twice, so nothing can be exchanged in between.
///
/// `openat2` with `RESOLVE_BENEATH` would do for links that stay inside one root, but not for an absolute link, a link
/// from one root to another, or the denied paths; this way is one check for all of them, and works where `openat2` is
/// missing. `openat2` serves here to stay off the disk (`RESOLVE_CACHED`) and to refuse magic links. Hard links
/// cannot be told from the file itself: only denied files are recognised behind them.
#[derive(Clone, Debug)]
pub struct Roots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The longest path first.
    roots: Vec<Root>,
    denied: Arc<Denied>,
}

#[derive(Debug)]
struct Root {
    /// As in the configuration; compared with paths as they are written.
    configured: PathBuf,
    /// Where the directory was when it was opened; compared with paths the kernel gives.
    canonical: PathBuf,
    directory: OwnedFd,
}

/// A root that was left out because it does not exist: files under it are not served until the next start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} does not exist: no file under it is served until it is there and vestibule is started again")]
pub struct MissingRoot(pub PathBuf);

/// Why the roots cannot be used as they are given.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("{path} is not an absolute path without `..`")]
    NotAbsolute { path: PathBuf },
    #[error("cannot open the directory {path}")]
    Open { path: PathBuf, source: io::Error },
    /// Where a denied path is cannot be known, so it could not be kept from being served.
    #[error("cannot find out where {path} is, which must not be served")]
    Deny { path: PathBuf, source: io::Error },
}

impl Roots {
    /// Opens each of `allowed`; those that do not exist are left out and returned for a warning.
    ///
    /// What is `denied` is never served, links to it included; hard links and bind mounts are recognised for the files (at
    /// most 10 000) that were there when it was made. Links in the path of a root are followed
    /// once, here: name the directory above one that is exchanged while we run. Blocks on the disk.
    pub fn open(allowed: &[PathBuf], denied: &Arc<Denied>) -> Result<(Self, Vec<MissingRoot>), RootsError> {
        let (mut roots, mut missing) = (Vec::with_capacity(allowed.len()), Vec::new());
        for path in allowed {
            if !path.is_absolute() || has_parent_segment(path) {
                return Err(RootsError::NotAbsolute { path: path.clone() });
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => {
                    missing.push(MissingRoot(path.clone()));
                    continue;
                }
                Err(errno) => return Err(RootsError::Open { path: path.clone(), source: errno.into() }),
            };
            let canonical = real_path(&directory).map_err(|source| RootsError::Open { path: path.clone(), source })?;
            roots.push(Root { configured: path.clone(), canonical, directory });
        }
        roots.sort_by_key(|root| std::cmp::Reverse(root.configured.as_os_str().len()));
        Ok((Self(Arc::new(Inner { roots, denied: Arc::clone(denied) })), missing))
    }

    /// No directory is allowed: every file is refused.
    pub fn is_empty(&self) -> bool {
        self.0.roots.is_empty()
    }

    /// Opens the regular file at the absolute `path` for reading.
    ///
    /// Answers at once when the path is in the kernel's cache of names; else waits for a blocking thread.
    pub async fn file(&self, path: &[u8]) -> Result<OpenFile, FileError> {
        let (root, relative) = self.0.root_of(path)?;
        match self.0.find(root, relative, ResolveFlags::CACHED | ResolveFlags::NO_MAGICLINKS) {
            // `AGAIN`: needs the disk. The others: no `openat2`, by age or by a seccomp filter that does not know it.
            Err(FindError::Find(Errno::AGAIN | Errno::NOSYS | Errno::PERM)) => {}
            found => return found.map_err(|error| error.at(path)),
        }
        let (roots, owned) = (self.clone(), path.to_vec());
        let found = tokio::task::spawn_blocking(move || {
            let (root, relative) = roots.0.root_of(&owned)?;
            roots.0.find_blocking(root, relative).map_err(|error| error.at(&owned))
        });
        found
            .await
            .unwrap_or_else(|stopped| Err(FileError::Read { path: to_path(path), source: io::Error::other(stopped) }))
    }
}

impl Inner {
    /// The longest root that `path` is under as it is written, and the rest of the path.
    fn root_of<'a>(&self, path: &'a [u8]) -> Result<(&Root, &'a Path), FileError> {
        let written = Path::new(OsStr::from_bytes(path));
        if path.contains(&0) || has_parent_segment(written) {
            return Err(FileError::Outside { path: to_path(path) });
        }
        let under = |root: &'_ Path| written.strip_prefix(root).ok();
        self.roots
            .iter()
            .find_map(|root| Some((root, under(&root.configured).or_else(|| under(&root.canonical))?)))
            .ok_or_else(|| FileError::Outside { path: to_path(path) })
    }

    fn find_blocking(&self, root: &Root, relative: &Path) -> Result<OpenFile, FindError> {
        match self.find(root, relative, ResolveFlags::NO_MAGICLINKS) {
            Err(FindError::Find(Errno::NOSYS | Errno::PERM)) => self.find_plainly(root, relative),
            found => found,
        }
    }

    /// Where there is no `openat2`: the check afterwards is the same.
    fn find_plainly(&self, root: &Root, relative: &Path) -> Result<OpenFile, FindError> {
        let found = rustix::fs::openat(&root.directory, segments(relative), FIND, Mode::empty());
        self.check(&found.map_err(FindError::Find)?)
    }

    fn find(&self, root: &Root, relative: &Path, resolve: ResolveFlags) -> Result<OpenFile, FindError> {
        let found = rustix::fs::openat2(&root.directory, segments(relative), FIND, Mode::empty(), resolve);
        self.check(&found.map_err(FindError::Find)?)
    }

    /// Opens for reading what has been found, if it may be served.
    fn check(&self, found: &OwnedFd) -> Result<OpenFile, FindError> {
        let real = real_path(found).map_err(FindError::Read)?;
        let stat = rustix::fs::fstat(found).map_err(|errno| FindError::Read(errno.into()))?;
        if !self.roots.iter().any(|root| real.starts_with(&root.canonical)) {
            return Err(FindError::LeadsOutside(real));
        }
        if self.denied.covers(&real, (stat.st_dev, stat.st_ino)) {
            return Err(FindError::Denied);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FindError::NotRegular);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::openat(CWD, descriptor_link(found), flags, Mode::empty())
            .map_err(|errno| FindError::Read(errno.into()))?;
        // A time before 1970 cannot be written as an HTTP date.
        let seconds = u64::try_from(stat.st_mtime).unwrap_or_default();
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
        let modified = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds.min(999_999_999)));
        Ok(OpenFile {
            file: Arc::new(File::from(file)),
            length: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: modified.unwrap_or(SystemTime::UNIX_EPOCH),
            inode: stat.st_ino,
        })
    }
}

/// A regular file under a root, open for reading, as it was when it was opened.
#[derive(Debug)]
pub struct OpenFile {
    pub file: Arc<File>,
    /// In bytes.
    pub length: u64,
    /// Not before 1970.
    pub modified: SystemTime,
    pub inode: u64,
}

/// Why a file is not served. All but [`FileError::Read`] are a 404: the client learns nothing of the disk.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path} does not exist")]
    Missing { path: PathBuf },
    #[error("{path} is not under a directory of routes[].files")]
    Outside { path: PathBuf },
    #[error("{path} is really {real}, which is not under a directory of routes[].files")]
    LeadsOutside { path: PathBuf, real: PathBuf },
    #[error("{path} is configuration, a certificate or storage, which are never served")]
    Denied { path: PathBuf },
    #[error("{path} is not a regular file")]
    NotRegular { path: PathBuf },
    #[error("{path} may not be read by the user vestibule runs as")]
    Forbidden { path: PathBuf },
    #[error("cannot open {path}")]
    Read { path: PathBuf, source: io::Error },
}

impl FileError {
    /// Nothing was found where the path points: another spelling of it may be meant.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Outside { .. })
    }
}

impl From<FileError> for GatewayError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Read { ref path, .. } => {
                let message = format!("cannot open {}", path.display());
                Self::gateway(StatusCode::INTERNAL_SERVER_ERROR, message).source(error)
            }
            refused => Self::upstream(StatusCode::NOT_FOUND, refused.to_string()),
        }
    }
}

/// [`FileError`] before it has the path.
#[derive(Debug)]
enum FindError {
    Find(Errno),
    LeadsOutside(PathBuf),
    Denied,
    NotRegular,
    Read(io::Error),
}

impl FindError {
    fn at(self, path: &[u8]) -> FileError {
        let path = to_path(path);
        match self {
            Self::Find(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => FileError::Missing { path },
            Self::Find(Errno::ACCESS | Errno::PERM) => FileError::Forbidden { path },
            Self::Find(errno) => FileError::Read { path, source: errno.into() },
            Self::LeadsOutside(real) => FileError::LeadsOutside { path, real },
            Self::Denied => FileError::Denied { path },
            Self::NotRegular => FileError::NotRegular { path },
            Self::Read(source) if source.kind() == io::ErrorKind::PermissionDenied => FileError::Forbidden { path },
            Self::Read(source) => FileError::Read { path, source },
        }
    }
}

/// Finds without opening: no FIFO waits for its writer, no device is woken.
const FIND: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// The path of what is open, without links.
fn real_path(descriptor: impl AsFd) -> io::Result<PathBuf> {
    let target = rustix::fs::readlinkat(CWD, descriptor_link(descriptor), Vec::new())?;
    Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
}

fn descriptor_link(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

fn has_parent_segment(path: &Path) -> bool {
    path.components().any(|component| component == Component::ParentDir)
}

/// `relative`, or `.` where it is the root itself: an empty path means something else to the kernel.
fn segments(relative: &Path) -> &Path {
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

fn to_path(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}
#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read as _,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use proptest::prelude::*;

    use super::*;

    fn denied(paths: &[PathBuf]) -> Arc<Denied> {
        Arc::new(Denied::new(paths).unwrap())
    }

    /// `allowed` with files, links of every kind and a FIFO; `outside` with a secret; `keys` denied.
    fn house() -> (tempfile::TempDir, Roots) {
        let house = tempfile::tempdir().unwrap();
        let at = |path: &str| house.path().join(path);
        for directory in ["allowed/a/b", "allowed/storage", "other", "outside", "keys"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("allowed/a/b/file"), "inside").unwrap();
        fs::write(at("allowed/a/file"), "inside").unwrap();
        fs::write(at("allowed/storage/key"), "SECRET").unwrap();
        fs::write(at("other/file"), "inside").unwrap();
        fs::write(at("outside/file"), "SECRET").unwrap();
        fs::write(at("keys/key"), "SECRET").unwrap();
        symlink("file", at("allowed/a/file.png")).unwrap();
        symlink(at("allowed/a/b/file"), at("allowed/absolute")).unwrap();
        symlink(at("other/file"), at("allowed/to_other_root")).unwrap();
        symlink("..", at("allowed/up")).unwrap();
        symlink("../outside/file", at("allowed/out")).unwrap();
        symlink(at("outside"), at("allowed/a/outdir")).unwrap();
        symlink("loop", at("allowed/loop")).unwrap();
        symlink("/dev/null", at("allowed/device")).unwrap();
        symlink("/proc/self/root", at("allowed/magic")).unwrap();
        symlink("storage/key", at("allowed/key")).unwrap();
        fs::hard_link(at("keys/key"), at("allowed/hard_link")).unwrap();
        symlink("allowed", at("linked_root")).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, at("allowed/fifo"), FileType::Fifo, mode, 0).unwrap();
        let allowed = [at("linked_root"), at("other")];
        let (roots, missing) = Roots::open(&allowed, &denied(&[at("allowed/storage"), at("keys")])).unwrap();
        assert!(missing.is_empty());
        (house, roots)
    }

    fn open(roots: &Roots, path: &Path) -> Result<String, FileError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let file = runtime.block_on(roots.file(path.as_os_str().as_bytes()))?;
        let mut content = String::new();
        (&*file.file).read_to_string(&mut content).unwrap();
        assert_eq!(file.length, content.len() as u64);
        Ok(content)
    }

    #[test]
    fn files_under_a_root_are_opened_also_through_links_that_stay_under_a_root() {
        let (house, roots) = house();
        let served = [
            "linked_root/a/b/file",
            "allowed/a/b/file",
            "allowed//a/./b/file",
            "allowed/a/file.png",
            "allowed/absolute",
            "allowed/to_other_root",
            "other/file",
            "allowed/up/other/file",
        ];

        for path in served {
            assert_eq!(open(&roots, &house.path().join(path)).ok().as_deref(), Some("inside"), "{path}");
        }
    }

    #[test]
    fn whatever_else_a_path_names_is_refused_for_its_reason() {
        type Claim = fn(&FileError) -> bool;
        let (house, roots) = house();
        let refused: [(&str, Claim); 20] = [
            ("allowed/none", |error| matches!(error, FileError::Missing { .. })),
            ("allowed/a/file/below", |error| matches!(error, FileError::Missing { .. })),
            ("allowed/loop", |error| matches!(error, FileError::Missing { .. })),
            ("outside/file", |error| matches!(error, FileError::Outside { .. })),
            ("allowed/../outside/file", |error| matches!(error, FileError::Outside { .. })),
            ("allowed/a/../a/file", |error| matches!(error, FileError::Outside { .. })),
            ("allowed2/file", |error| matches!(error, FileError::Outside { .. })),
            ("allowed\0/a/file", |error| matches!(error, FileError::Outside { .. })),
            ("allowed/a/file\0", |error| matches!(error, FileError::Outside { .. })),
            ("allowed/out", |error| matches!(error, FileError::LeadsOutside { .. })),
            ("allowed/a/outdir/file", |error| matches!(error, FileError::LeadsOutside { .. })),
            ("allowed/up/outside/file", |error| matches!(error, FileError::LeadsOutside { .. })),
            ("allowed/device", |error| matches!(error, FileError::LeadsOutside { .. })),
            ("allowed/magic/etc/hostname", |error| matches!(error, FileError::Missing { .. })),
            ("allowed/storage/key", |error| matches!(error, FileError::Denied { .. })),
            ("allowed/key", |error| matches!(error, FileError::Denied { .. })),
            ("allowed/hard_link", |error| matches!(error, FileError::Denied { .. })),
            ("allowed", |error| matches!(error, FileError::NotRegular { .. })),
            ("allowed/a/", |error| matches!(error, FileError::NotRegular { .. })),
            ("allowed/fifo", |error| matches!(error, FileError::NotRegular { .. })),
        ];

        for (path, claim) in refused {
            let error = open(&roots, &house.path().join(path)).expect_err(path);
            assert!(claim(&error), "{path:?}: {error:?}");
        }
        assert!(matches!(open(&roots, Path::new("")), Err(FileError::Outside { .. })));
        assert!(matches!(open(&roots, Path::new("allowed/a/file")), Err(FileError::Outside { .. })));
        let long = house.path().join("allowed").join("x".repeat(5000));
        assert!(matches!(open(&roots, &long), Err(FileError::Missing { .. })));
    }

    #[test]
    fn a_name_that_is_exchanged_while_it_is_looked_up_leads_nowhere_else() {
        let (house, roots) = house();
        let at = |path: &str| house.path().join(path);
        // What the name is in turn: a file, a link to one outside, a link to one that is denied.
        let (name, next) = (at("allowed/turning"), at("allowed/next"));
        fs::write(&name, "inside").unwrap();
        let began = std::time::Instant::now();
        let goes_on = || began.elapsed() < Duration::from_millis(300);
        let (mut sent, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while goes_on() {
                    for elsewhere in ["outside/file", "keys/key"] {
                        symlink(at(elsewhere), &next).unwrap();
                        fs::rename(&next, &name).unwrap();
                    }
                    fs::write(&next, "inside").unwrap();
                    fs::rename(&next, &name).unwrap();
                }
            });
            while goes_on() {
                let (root, relative) = roots.0.root_of(name.as_os_str().as_bytes()).unwrap();
                match roots.0.find_blocking(root, relative) {
                    Ok(found) => {
                        let mut text = String::new();
                        (&*found.file).read_to_string(&mut text).unwrap();
                        assert_eq!(text, "inside");
                        sent += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        });
        assert!(sent > 0 && refused > 0, "{sent} sent, {refused} refused");
    }

    #[test]
    fn a_file_made_in_a_denied_directory_later_is_denied() {
        let (house, roots) = house();
        fs::write(house.path().join("allowed/storage/renewed"), "SECRET").unwrap();

        let error = open(&roots, &house.path().join("allowed/storage/renewed")).unwrap_err();

        assert!(matches!(error, FileError::Denied { .. }), "{error:?}");
    }

    #[test]
    fn a_denied_path_that_does_not_exist_yet_is_denied_once_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let later = directory.path().join("later/key");
        let (roots, _) = Roots::open(&[directory.path().to_owned()], &denied(std::slice::from_ref(&later))).unwrap();
        fs::create_dir(directory.path().join("later")).unwrap();
        fs::write(&later, "SECRET").unwrap();

        assert!(matches!(open(&roots, &later), Err(FileError::Denied { .. })));
    }

    #[test]
    fn a_denied_link_denies_what_it_will_lead_to() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        symlink("archive/key1", at("key")).unwrap();
        let (roots, _) = Roots::open(&[directory.path().to_owned()], &denied(&[at("key")])).unwrap();
        fs::create_dir(at("archive")).unwrap();
        fs::write(at("archive/key1"), "SECRET").unwrap();

        assert!(matches!(open(&roots, &at("archive/key1")), Err(FileError::Denied { .. })));
        assert!(matches!(open(&roots, &at("key")), Err(FileError::Denied { .. })));
    }

    #[test]
    fn the_blocking_way_and_the_way_without_openat2_find_the_same() {
        let (house, roots) = house();
        let path = house.path().join("allowed/absolute");
        let (root, relative) = roots.0.root_of(path.as_os_str().as_bytes()).unwrap();

        assert_eq!(roots.0.find_blocking(root, relative).unwrap().length, 6);
        assert_eq!(roots.0.find_plainly(root, relative).unwrap().length, 6);
        assert!(matches!(roots.0.find_plainly(root, Path::new("out")), Err(FindError::LeadsOutside(_))));
    }

    #[test]
    fn a_file_that_may_not_be_read_is_forbidden_to_all_but_root() {
        let (house, roots) = house();
        let path = house.path().join("allowed/a/file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let root = rustix::process::geteuid().is_root();

        let opened = open(&roots, &path);

        assert!(if root { opened.is_ok() } else { matches!(opened, Err(FileError::Forbidden { .. })) });
    }

    #[test]
    fn a_root_that_does_not_exist_is_left_out_and_reported() {
        let directory = tempfile::tempdir().unwrap();
        let none = directory.path().join("none");

        let (roots, missing) = Roots::open(std::slice::from_ref(&none), &Arc::default()).unwrap();

        assert!(roots.is_empty());
        assert_eq!(missing, [MissingRoot(none)]);
    }

    #[test]
    fn roots_that_cannot_be_meant_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();

        let opened = |path: &str| Roots::open(&[path.into()], &Arc::default()).unwrap_err();

        assert!(matches!(opened("usr"), RootsError::NotAbsolute { .. }));
        assert!(matches!(opened("/usr/../etc"), RootsError::NotAbsolute { .. }));
        assert!(matches!(opened(file.path().to_str().unwrap()), RootsError::Open { .. }));
    }

    #[test]
    fn a_refused_file_is_a_404_that_names_path_and_key() {
        let error = GatewayError::from(FileError::Outside { path: "/etc/passwd".into() });

        assert_eq!(error.status, StatusCode::NOT_FOUND);
        assert_eq!(error.to_string(), "/etc/passwd is not under a directory of routes[].files");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_path_of_links_and_parents_leads_out_of_the_roots(paths in proptest::collection::vec(
            proptest::collection::vec(proptest::sample::select(vec![
                "a", "b", "file", "file.png", "absolute", "up", "out", "outdir", "outside", "keys", "key", "storage",
                "hard_link", "magic", "allowed", "other", "linked_root", "..", ".", "", "loop", "etc", "passwd",
            ]), 0..6), 40))
        {
            let (house, roots) = house();
            for segments in paths {
                for start in ["allowed", "linked_root", "other"] {
                    let path = house.path().join(start).into_os_string().into_string().unwrap() + "/" + &segments.join("/");
                    if let Ok(content) = open(&roots, Path::new(&path)) {
                        prop_assert_eq!(content, "inside", "{}", path);
                    }
                }
            }
        }

        #[test]
        fn no_bytes_lead_out_of_the_roots(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(!crate::properties::file(&path));
            // Whatever it is, it is an answer.
            crate::properties::file(&[b"/usr/", &path[..]].concat());
        }
    }
}
