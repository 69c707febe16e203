//! The application: a Python program, run by whatever `python3` is.

use std::{fs, io, path::Path, process::Command, time::Duration};

use crate::backends::{NotReady, Process};

/// The program while it runs.
#[derive(Debug)]
pub(super) struct Application {
    /// `127.0.0.1:PORT`, as it said itself.
    pub(super) address: String,
    _process: Process,
}

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
        "the demonstration's application did not start under python3, which should be 3.8 or newer with its whole \
         standard library (on Debian: apt-get install python3)"
    )]
    NotReady(#[from] NotReady),
    #[error("cannot write the demonstration's files")]
    Write(#[source] io::Error),
}

/// Starts the application with its files in `folder`, which it removes if we die before it.
pub(super) fn start(folder: &Path) -> Result<Application, ApplicationError> {
    let program = folder.join("application.py");
    let files = folder.join("files");
    fs::write(&program, include_bytes!("application.py"))
        .and_then(|()| fs::write(folder.join("page.html"), include_bytes!("page.html")))
        .and_then(|()| fs::create_dir(&files))
        .and_then(|()| fs::write(files.join("sample.txt"), sample()))
        .map_err(ApplicationError::Write)?;
    // -I: neither variables such as PYTHONPATH nor the folder we are in change what it is.
    let mut command = Command::new("python3");
    let mut process = Process::start(command.arg("-I").arg(program).arg(folder)).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            ApplicationError::NoPython
        } else {
            ApplicationError::Start(error)
        }
    })?;
    let address = process.first_line(PATIENCE)?;
    Ok(Application { address, _process: process })
}

/// Lines of 32 bytes, each of which begins with its place in the file.
fn sample() -> String {
    (0..1024).step_by(32).fold(String::new(), |text, place| text + &format!("{place:4} ..........................\n"))
}

/// Python starts in a fraction of a second; a slow disk is given its time.
const PATIENCE: Duration = Duration::from_secs(20);
