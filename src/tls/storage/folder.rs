//! Objects as files of a folder that is nobody else's (0700, 0600).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use rustix::fs::{FlockOperation, flock};

use super::{Condition, MOST_KEYS, StorageProblem, Version};
use crate::{
    disk::off_thread,
    keeper::folder,
    tls::{MaterialProblem, SecretBytes, read_bounded},
};

#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    pub(super) async fn look(&self, key: &str) -> Result<Option<(SecretBytes, Version)>, StorageProblem> {
        let file = self.0.join(key);
        off_thread(move || look(&file)).await
    }

    pub(super) async fn put(
        &self,
        key: &str,
        content: SecretBytes,
        condition: Condition,
    ) -> Result<Option<Version>, StorageProblem> {
        let (storage, file) = (self.0.clone(), self.0.join(key));
        off_thread(move || {
            let holds = || {
                Ok(match condition {
                    Condition::None => true,
                    Condition::Absent => !file.try_exists()?,
                    Condition::Is(version) => look(&file)?.is_some_and(|(_, there)| there == version),
                })
            };
            let is_kept = keep_if(&storage, &file, &content, holds)?;
            Ok(is_kept.then(|| version(content.expose())))
        })
        .await
    }

    pub(super) async fn remove(&self, key: &str) -> Result<(), StorageProblem> {
        let file = self.0.join(key);
        off_thread(move || match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        })
        .await
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<String>, StorageProblem> {
        let (storage, prefix) = (self.0.clone(), prefix.to_owned());
        off_thread(move || {
            let (mut keys, mut folders) = (Vec::new(), vec![prefix]);
            while let Some(folder) = folders.pop() {
                let entries = match fs::read_dir(storage.join(&folder)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    entries => entries?,
                };
                for entry in entries {
                    let entry = entry?;
                    // What begins with a dot is being written, and no key.
                    let Some(name) =
                        entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned)
                    else {
                        continue;
                    };
                    let key = format!("{folder}/{name}");
                    if entry.file_type()?.is_dir() {
                        folders.push(key);
                    } else if keys.len() < MOST_KEYS {
                        keys.push(key);
                    }
                }
            }
            keys.sort_unstable();
            Ok(keys)
        })
        .await
    }
}

fn look(file: &Path) -> Result<Option<(SecretBytes, Version)>, StorageProblem> {
    match read_bounded(file) {
        Ok(bytes) => {
            let version = version(&bytes);
            Ok(Some((SecretBytes::new(bytes), version)))
        }
        Err(MaterialProblem::Io { source }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(MaterialProblem::TooLarge) => Err(StorageProblem::TooLarge),
        Err(problem) => Err(io::Error::other(problem.to_string()).into()),
    }
}

/// Keeps `content` under `key` of `storage`, whole at every moment; blocks.
pub(crate) fn keep(storage: &Path, key: &str, content: &SecretBytes) -> io::Result<()> {
    let kept = keep_if(storage, &storage.join(key), content, || Ok(true));
    kept.map(drop).map_err(|problem| match problem {
        StorageProblem::Io(error) => error,
        problem => io::Error::other(problem),
    })
}

/// Keeps `content` in `file` if that `holds`, and answers whether it does.
fn keep_if(
    storage: &Path,
    file: &Path,
    content: &SecretBytes,
    holds: impl FnOnce() -> Result<bool, StorageProblem>,
) -> Result<bool, StorageProblem> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    };
    make_folders(storage, folder)?;
    // From the look to the write nobody else writes. It is open as long as it is held, and gone with a crash.
    let _held = lock(storage)?;
    if !holds()? {
        return Ok(false);
    }
    folder::write(folder, name, content.expose(), 0o600)?;
    Ok(true)
}

/// Makes `folder` and those between it and `storage`, so that they are there after a power cut, too.
fn make_folders(storage: &Path, folder: &Path) -> io::Result<()> {
    let missing: Vec<_> = folder.ancestors().take_while(|folder| *folder != storage).collect();
    for folder in missing.into_iter().rev() {
        if folder::make(folder, 0o700)?
            && let Some(parent) = folder.parent()
        {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

fn lock(storage: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(storage.join(LOCK))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn version(content: &[u8]) -> Version {
    Version { tag: Some(HEXLOWER.encode(digest(&SHA256, content).as_ref())), number: None }
}

const LOCK: &str = ".lock";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use futures_util::future::join_all;

    use super::*;
    use crate::tls::storage::Storage;

    fn bytes(text: &str) -> SecretBytes {
        SecretBytes::new(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::in_folder(folder.path().to_owned());

        assert!(storage.read("a/b/c.pem").await.unwrap().is_none());
        storage.write("a/b/c.pem", bytes("one")).await.unwrap();
        storage.write("a/d", bytes("two")).await.unwrap();

        assert_eq!(storage.read("a/b/c.pem").await.unwrap().unwrap().expose(), b"one");
        assert_eq!(storage.list("a").await.unwrap(), ["a/b/c.pem", "a/d"]);
        assert_eq!(storage.list("x").await.unwrap(), [""; 0]);
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("a"), mode("a/b"), mode("a/b/c.pem"), mode(LOCK)), (0o700, 0o700, 0o600, 0o600));
        storage.remove("a/d").await.unwrap();
        storage.remove("a/d").await.unwrap();
        assert!(storage.read("a/d").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_conditional_write_has_one_winner() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::in_folder(folder.path().to_owned());
        for round in 0..20 {
            let key = format!("race/{round}");
            let creations = (0..8).map(|writer| storage.create(&key, bytes(&format!("{writer}"))));
            let won: Vec<_> = join_all(creations).await.into_iter().filter_map(Result::unwrap).collect();
            assert_eq!(won.len(), 1);

            let changes = (0..8).map(|writer| storage.replace(&key, bytes(&format!("after {writer}")), &won[0]));
            let won: Vec<_> = join_all(changes).await.into_iter().filter_map(Result::unwrap).collect();
            assert_eq!(won.len(), 1);
            assert_eq!(storage.look(&key).await.unwrap().unwrap().1, won[0]);
        }
    }

    #[tokio::test]
    async fn more_than_an_object_may_have_is_refused_on_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::in_folder(folder.path().to_owned());
        let long = vec![0; (1 << 20) + 1];
        fs::write(folder.path().join("long"), &long).unwrap();

        let written = storage.write("longer", SecretBytes::new(long)).await.unwrap_err();
        assert_eq!(written.to_string(), "longer: it has more than 1048576 bytes");
        assert_eq!(storage.read("long").await.unwrap_err().to_string(), "long: it has more than 1048576 bytes");
    }
}
