//! The file that says which process we are.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process,
};

use rustix::fs::OFlags;

/// Says in `file` which process we are; through no link: root is not to be led to another file.
pub(crate) fn write(file: &Path) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(file)?;
    writeln!(file, "{}", process::id())
}

/// Removes `file`, unless it is somebody else's by now.
pub(crate) fn remove(file: &Path) {
    if is_ours(file)
        && let Err(error) = fs::remove_file(file)
    {
        tracing::warn!(file = %file.display(), error = &error as &dyn std::error::Error, "the pid file stays");
    }
}

pub(crate) fn is_ours(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == process::id().to_string())
}
