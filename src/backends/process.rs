//! A process of ours: started with us, ended with us, and never left behind.

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// A process in a process group of its own: a Ctrl-C at our terminal is ours to pass on.
///
/// Its standard input is a pipe that nothing is written to. Its end says that we are gone, however we went, so a program
/// that ends then outlives not even our SIGKILL. Dropping this closes the pipe, waits two seconds, sends TERM, waits
/// again, and kills what is left of the group. Standard error is ours.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: ChildStdout,
}

/// Why a process did not say its first line.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("it ended before it was ready ({0})")]
    Ended(ExitStatus),
    #[error("it was not ready within {0:?}")]
    Late(Duration),
    #[error("its first line is longer than {LONGEST_LINE} bytes, or not text")]
    NotALine,
    #[error("it cannot be listened to")]
    Io(#[from] io::Error),
}

impl Process {
    /// Starts `command`. Whether it does what it should is for [`Self::first_line`] to say.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stdout.take().expect("standard output was made a pipe above");
        Ok(Self { child, output })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits at most `patience` for the first line of its standard output: what a program says when it is ready.
    ///
    /// Nothing is to follow; nobody would read it.
    pub fn first_line(&mut self, patience: Duration) -> Result<String, NotReady> {
        let end = Instant::now() + patience;
        let mut line = Vec::new();
        loop {
            if !readable(&self.output, end)? {
                return Err(NotReady::Late(patience));
            }
            let mut part = [0; LONGEST_LINE];
            let length = self.output.read(&mut part)?;
            if length == 0 {
                // It is about to end: a moment later there is a status.
                self.wait(end)?;
                return Err(self.child.try_wait()?.map_or(NotReady::Late(patience), NotReady::Ended));
            }
            line.extend_from_slice(&part[..length]);
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                line.truncate(end);
                return String::from_utf8(line).map_err(|_| NotReady::NotALine);
            }
            if line.len() >= LONGEST_LINE {
                return Err(NotReady::NotALine);
            }
        }
    }

    /// Waits for its end, but does not take its status: until that is taken, its id is nobody else's.
    fn wait(&self, end: Instant) -> io::Result<bool> {
        let ended = pidfd_open(self.pid(), PidfdFlags::empty())?;
        readable(&ended, end)
    }

    fn pid(&self) -> Pid {
        let id = i32::try_from(self.child.id()).expect("ids of processes are positive and fit");
        Pid::from_raw(id).expect("no child has the id 0")
    }

    fn stop(&mut self) -> io::Result<()> {
        drop(self.child.stdin.take());
        if !self.wait(Instant::now() + GRACE)? {
            kill_process_group(self.pid(), Signal::TERM)?;
            self.wait(Instant::now() + GRACE)?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::debug!(
                id = self.id(),
                error = &error as &dyn std::error::Error,
                "a process cannot be asked to end"
            );
        }
        // The status has not been taken, so the group is still ours. An error: nobody is left in it.
        kill_process_group(self.pid(), Signal::KILL).ok();
        drop(self.child.wait());
    }
}

/// Waits until `file` has something to say, which its end is, too; answers whether that came before `end`.
fn readable(file: &impl AsFd, end: Instant) -> io::Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How long a process may take to end by itself, and again after TERM.
const GRACE: Duration = Duration::from_secs(2);
const LONGEST_LINE: usize = 256;

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn shell(script: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_line_is_what_it_says_when_it_is_ready() {
        assert_eq!(shell("printf 12; echo 34; cat").first_line(PATIENCE).unwrap(), "1234");
    }

    #[test]
    fn one_that_does_not_get_ready_says_why() {
        let why = |script, patience| shell(script).first_line(patience).unwrap_err().to_string();

        assert_eq!(why("exit 3", PATIENCE), "it ended before it was ready (exit status: 3)");
        assert_eq!(why("printf x; cat", Duration::from_millis(50)), "it was not ready within 50ms");
        assert_eq!(why("head -c 300 /dev/zero; cat", PATIENCE), "its first line is longer than 256 bytes, or not text");
    }

    #[test]
    fn the_end_of_its_input_ends_it_without_a_signal() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        let process = Process::start(command.args(["-c", "cat; touch ended"]).current_dir(&folder)).unwrap();

        drop(process);

        assert!(folder.path().join("ended").exists(), "it was killed, or is still there");
    }

    #[test]
    fn what_it_started_ends_with_it() {
        let mut process = shell("sleep 1000 & echo ready; cat");
        process.first_line(PATIENCE).unwrap();
        // All of them hold the other end; its end is theirs.
        let mut output = File::from(process.output.as_fd().try_clone_to_owned().unwrap());

        drop(process);

        assert!(readable(&output, Instant::now() + PATIENCE).unwrap(), "somebody is left");
        assert_eq!(output.read(&mut [0]).unwrap(), 0);
    }
}
