//! Where certificates, accounts and what is remembered of orders are kept: objects by their keys, each whole at every
//! moment.
//!
//! A folder of this machine, or objects in S3 or Azure that several machines share. What is shared is sealed: whoever runs
//! the store, or has read its backups, has no key of ours. He can still put an older object back in the place of a newer
//! one of the same key.
//!
//! | bound | |
//! |---|---|
//! | an object | 1 MiB |
//! | an operation, with all its attempts | 30 s |
//! | keys that are listed | 1000 |

mod access;
mod folder;
mod objects;
mod seal;

use std::{io, path::PathBuf, sync::Arc};

pub use self::access::Access;
pub(crate) use self::{
    access::{faults, secret},
    folder::keep,
    seal::derived,
};
use self::{folder::Folder, objects::Objects};
use super::{Roots, SecretBytes};

/// A place for objects; a clone is the same place.
#[derive(Clone, Debug)]
pub struct Storage(Arc<Place>);

#[derive(Debug)]
enum Place {
    Folder(Folder),
    Objects(Objects),
}

/// One content of an object: what has been read or written, and nothing that came after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// What the store calls it; of a file the digest of its content.
    tag: Option<String>,
    /// Where a store counts versions.
    number: Option<String>,
}

/// Why an object could not be had, or kept.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct StorageError {
    pub key: String,
    pub problem: StorageProblem,
}

#[derive(Debug, thiserror::Error)]
pub enum StorageProblem {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Objects(#[from] object_store::Error),
    #[error("`tls.storage_options.ca_file`: {0}")]
    Roots(String),
    #[error("no answer within {} seconds", objects::PATIENCE.as_secs())]
    Late,
    #[error("it has more than {LONGEST} bytes")]
    TooLarge,
    #[error(
        "it cannot be opened: it was sealed with another secret than the one in `tls.storage_options.secret_file`, or has \
         been changed"
    )]
    Sealed,
}

impl Storage {
    pub fn in_folder(folder: PathBuf) -> Self {
        Self(Arc::new(Place::Folder(Folder::new(folder))))
    }

    /// Objects in a store, which is believed by the roots of `access`, or those of the `system`.
    ///
    /// # Errors
    ///
    /// What `access` says cannot be used.
    pub fn shared(access: &Access, system: &Roots) -> Result<Self, StorageProblem> {
        let own = access.roots().map(Roots::from_pem).transpose().map_err(StorageProblem::Roots)?;
        Ok(Self(Arc::new(Place::Objects(Objects::new(access, own.as_ref().unwrap_or(system))?))))
    }

    /// Whether other machines have it, too.
    pub fn is_shared(&self) -> bool {
        matches!(*self.0, Place::Objects(_))
    }

    /// What is kept under `key`.
    pub async fn read(&self, key: &str) -> Result<Option<SecretBytes>, StorageError> {
        Ok(self.look(key).await?.map(|(content, _)| content))
    }

    /// What is kept under `key`, and which version of it that is.
    pub async fn look(&self, key: &str) -> Result<Option<(SecretBytes, Version)>, StorageError> {
        let looked = match &*self.0 {
            Place::Folder(folder) => folder.look(key).await,
            Place::Objects(objects) => objects.look(key).await,
        };
        looked.map_err(error(key))
    }

    /// Keeps `content` under `key`, whatever was there.
    pub async fn write(&self, key: &str, content: SecretBytes) -> Result<(), StorageError> {
        self.put(key, content, Condition::None).await.map(drop)
    }

    /// Keeps `content` under `key` if there is nothing yet; `None` if there is.
    ///
    /// Of several that try at once one is the first. After an answer was lost even that one may hear that there is
    /// something: it is its own.
    pub async fn create(&self, key: &str, content: SecretBytes) -> Result<Option<Version>, StorageError> {
        self.put(key, content, Condition::Absent).await
    }

    /// Keeps `content` under `key` if `version` is there still; `None` if not. Likewise.
    pub async fn replace(
        &self,
        key: &str,
        content: SecretBytes,
        version: &Version,
    ) -> Result<Option<Version>, StorageError> {
        self.put(key, content, Condition::Is(version.clone())).await
    }

    async fn put(
        &self,
        key: &str,
        content: SecretBytes,
        condition: Condition,
    ) -> Result<Option<Version>, StorageError> {
        if content.expose().len() > LONGEST {
            return Err(error(key)(StorageProblem::TooLarge));
        }
        let put = match &*self.0 {
            Place::Folder(folder) => folder.put(key, content, condition).await,
            Place::Objects(objects) => objects.put(key, &content, condition).await,
        };
        put.map_err(error(key))
    }

    /// Takes away what is kept under `key`, if there is something.
    pub async fn remove(&self, key: &str) -> Result<(), StorageError> {
        let removed = match &*self.0 {
            Place::Folder(folder) => folder.remove(key).await,
            Place::Objects(objects) => objects.remove(key).await,
        };
        removed.map_err(error(key))
    }

    /// The keys beneath `prefix`, which ends with no slash; not all where there are very many.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let listed = match &*self.0 {
            Place::Folder(folder) => folder.list(prefix).await,
            Place::Objects(objects) => objects.list(prefix).await,
        };
        listed.map_err(error(prefix))
    }
}

/// What must hold for something to be written.
enum Condition {
    None,
    Absent,
    Is(Version),
}

fn error(key: &str) -> impl FnOnce(StorageProblem) -> StorageError {
    move |problem| StorageError { key: key.to_owned(), problem }
}

/// Bytes of one object: a bundle of a hundred names has some ten thousand.
const LONGEST: usize = 1 << 20;
const MOST_KEYS: usize = 1000;
