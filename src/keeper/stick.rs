//! The key of the cookies that name endpoints: one for all machines that share a storage, else one that is made once and kept.

use std::{fs, io};

use super::{folder, secrets::SecretFault};
use crate::{
    config::{Plan, Problem},
    tls::storage,
    upstream::StickKey,
};

/// The key, made where there is none yet; `None` where no route of `plan` asks for it.
///
/// It outlives restarts, so that clients stay where they are. A file that holds no key is replaced.
pub(super) fn key(plan: &Plan) -> Result<Option<StickKey>, SecretFault> {
    if plan.routes.iter().all(|route| route.stick.is_none()) {
        return Ok(None);
    }
    if let Some(shared) = &plan.tls.shared {
        let secret = storage::secret(shared).map_err(|Problem { at, problem }| SecretFault::Shared { at, problem })?;
        return Ok(StickKey::new(storage::derived(&secret, "cookies that name endpoints").expose()));
    }
    let storage = &plan.tls.storage;
    let unkept = |source| SecretFault::Stick { folder: storage.join(FOLDER), source };
    let folder = folder::private(storage, FOLDER).map_err(unkept)?;
    match fs::read(folder.join(FILE)) {
        Ok(content) => {
            if let Some(key) = StickKey::new(&content) {
                return Ok(Some(key));
            }
            tracing::warn!(folder = %folder.display(), "the key of `stick` that was kept is damaged; clients are given new cookies");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unkept(error)),
    }
    let key = StickKey::generate().map_err(|error| unkept(io::Error::other(error)))?;
    folder::write(&folder, FILE, key.expose(), 0o600).map_err(unkept)?;
    Ok(Some(key))
}

const FOLDER: &str = "stick";
const FILE: &str = "key";
