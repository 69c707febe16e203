//! The application: a Python program, run by whatever `python3` is.

use std::{
    fs, io,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

/// Why there is no application.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplicationError {
    #[error(
        "there is no python3 in PATH, and what the demonstration shows is a Python application; \
         install it (on Debian: apt-get install python3) and try again"
    )]
    NoPython,
    #[error("cannot start python3")]
    Start(#[source] io::Error),
    #[error(
        "the demonstration's application does not run under python3 ({0}), which should be 3.8 or newer with its whole \
         standard library (on Debian: apt-get install python3)"
    )]
    Unfit(ExitStatus),
    #[error("cannot write the demonstration's files")]
    Write(#[source] io::Error),
}

/// Writes its files into `folder`, which it removes if we die before it; says whether it could run.
pub(super) fn prepare(folder: &Path) -> Result<(), ApplicationError> {
    let program = folder.join("application.py");
    let files = folder.join("files");
    fs::write(&program, include_bytes!("application.py"))
        .and_then(|()| fs::write(folder.join("page.html"), include_bytes!("page.html")))
        .and_then(|()| fs::create_dir(&files))
        .and_then(|()| fs::write(files.join("sample.txt"), sample()))
        .map_err(ApplicationError::Write)?;
    // -I: neither variables such as PYTHONPATH nor the folder we are in change what it is.
    let mut command = Command::new("python3");
    let tried = command.args(["-I", "-c", TRIAL]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    match tried {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(ApplicationError::Unfit(status)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ApplicationError::NoPython),
        Err(error) => Err(ApplicationError::Start(error)),
    }
}

/// Lines of 32 bytes, each of which begins with its place in the file.
fn sample() -> String {
    (0..1024).step_by(32).fold(String::new(), |text, place| text + &format!("{place:4} ..........................\n"))
}

/// What the application needs.
const TRIAL: &str = "import sys, hashlib, html, json, secrets, socketserver, wsgiref.simple_server; sys.exit(sys.version_info < (3, 8))";
