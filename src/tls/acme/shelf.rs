//! The objects that the ACME client keeps, by their keys.

use std::{fs, io, path::PathBuf};

use tokio::task::spawn_blocking;

use crate::{
    keeper::folder,
    tls::{MaterialProblem, SecretBytes, read_bounded},
};

/// A folder of the storage.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    storage: PathBuf,
}

impl Shelf {
    pub(crate) fn in_folder(storage: PathBuf) -> Self {
        Self { storage }
    }

    /// What is kept under `key`.
    pub(super) async fn read(&self, key: &str) -> io::Result<Option<SecretBytes>> {
        let file = self.storage.join(key);
        blocking(move || match read_bounded(&file) {
            Ok(bytes) => Ok(Some(SecretBytes::new(bytes))),
            Err(MaterialProblem::Io { source }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(problem) => Err(io::Error::other(format!("{}: {problem}", file.display()))),
        })
        .await
    }

    /// Keeps `content` under `key`, whole at every moment.
    pub(super) async fn write(&self, key: &str, content: SecretBytes) -> io::Result<()> {
        let (this, key) = (self.clone(), key.to_owned());
        blocking(move || this.put(&key, &content)).await
    }

    /// The same where nobody else waits.
    pub(super) fn put(&self, key: &str, content: &SecretBytes) -> io::Result<()> {
        let file = self.storage.join(key);
        let parents: Vec<_> = file.ancestors().skip(1).take_while(|folder| *folder != self.storage).collect();
        let (Some(folder), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        for folder in parents.into_iter().rev() {
            folder::make(folder, 0o700)?;
        }
        folder::write(folder, name, content.expose(), 0o600)
    }

    pub(super) async fn remove(&self, key: &str) -> io::Result<()> {
        let file = self.storage.join(key);
        blocking(move || match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
