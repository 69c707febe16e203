//! The folders a plan names, looked at without binding or changing anything: for `check`.
//!
//! Certificates and keys are for [`crate::tls::check`] to look at.

use std::{fs, io, path::Path};

use super::{error::Problem, plan::Plan};

/// The folders of `plan` that are not there and could not be made.
pub fn missing_folders(plan: &Plan) -> Vec<Problem> {
    let spool = folder_or_its_parent(&plan.spool.path);
    spool.err().map(|problem| Problem { at: "spool.path".to_owned(), problem }).into_iter().collect()
}

/// A start makes the last part of a folder, and no more.
fn folder_or_its_parent(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is not a folder", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => Ok(()),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}
