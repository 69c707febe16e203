//! Who stands between the keeper and a program of ours, so that nothing of it outlives us: `vestibule backend-guard`.
//!
//! One for each instance, of the keeper's own user, so that the program cannot end it, and with an empty environment, so that
//! nobody who may say what is in that of the program (`LD_PRELOAD`) is obeyed by it. It begins the program in a session
//! and a process group of its own, is told by a line from the keeper to end it, and takes the end of that line, which is
//! the keeper's end, however it came, for the same. All that the program has begun, in whatever group, comes to be its child when
//! its parent ends (`PR_SET_CHILD_SUBREAPER`), and is killed before it ends itself. Should it be killed, the kernel kills the program
//! (`PR_SET_PDEATHSIG`), and the keeper its group.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, getpid, kill_process,
        kill_process_group, pidfd_open, set_child_subreaper, set_parent_process_death_signal, setsid, waitid, waitpid,
    },
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use serde::{Deserialize, Serialize};

use crate::{config::StopSignal, keeper::user::User, process};

/// What a guard is begun with, as JSON on its command line: nothing in it is secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Guarded {
    /// Who the program runs as; `None`: as we do.
    pub(crate) user: Option<User>,
    pub(crate) directory: PathBuf,
    pub(crate) signal: StopSignal,
    /// How long the program has to end by itself.
    pub(crate) patience: Duration,
    /// Its socket, which is removed after its end.
    pub(crate) socket: Option<PathBuf>,
}

/// The environment of a program, for the standard input of its guard: values may be secret, and a command line is everybody's.
pub(crate) fn environment_file(environment: &[(OsString, OsString)]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("vestibule", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&mut file, environment)?;
    file.rewind()?;
    Ok(file.into())
}

/// What the keeper says to a guard.
pub(crate) const STOP: u8 = b's';
/// Not to wait any more.
pub(crate) const KILL: u8 = b'k';

/// Begins `command` and sees to its end. Standard output is the line to the keeper, on which a line of text says what the
/// number of the program is ([`BEGUN`]), and another how it ended ([`ENDED`]). Standard input has the environment of the
/// program ([`environment_file`]), and standard error takes all output.
///
/// # Errors
///
/// Nothing is left of the program in that case either.
pub(crate) fn guard(guarded: &str, command: &[OsString]) -> io::Result<()> {
    // What is meant for the keeper, and sent to all of us, is not for us to obey.
    process::hold_signals();
    let parsed: Guarded = serde_json::from_str(guarded)?;
    let mut keeper = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    set_child_subreaper(Some(getpid()))?;
    // The output of the program is ours as well: what goes wrong before it runs comes into the same log.
    let program = Command::new("/proc/self/exe")
        .arg0("vestibule")
        .args(["backend-program", &getpid().as_raw_pid().to_string(), guarded])
        .args(command)
        .stdin(Stdio::inherit())
        .stdout(io::stderr().as_fd().try_clone_to_owned()?)
        .spawn()?;
    let program = i32::try_from(program.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    // Where the keeper has gone meanwhile, that is seen next.
    writeln!(keeper, "{BEGUN} {}", program.as_raw_pid()).ok();
    let ended = watch(&parsed, program, &keeper);
    end_all(program);
    if let Some(socket) = &parsed.socket {
        fs::remove_file(socket).ok();
    }
    // Nobody hears it where the keeper has gone.
    writeln!(keeper, "{ENDED} {}", ended?).ok();
    Ok(())
}

/// Becomes the program behind the guard with that number: the user, a session of its own, the folder, and that it ends with the
/// guard; last of all its environment, which comes by standard input.
///
/// # Errors
///
/// Why it does not run.
pub(crate) fn become_program(guard: i32, guarded: &str, command: &[OsString]) -> io::Result<()> {
    let guarded: Guarded = serde_json::from_str(guarded)?;
    let Some((program, arguments)) = command.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let environment: Vec<(OsString, OsString)> = serde_json::from_reader(io::stdin().lock())?;
    process::release_signals();
    setsid()?;
    if let Some(user) = &guarded.user {
        // Groups first, then the user: after it there is no right to change groups.
        set_thread_groups(&user.groups())?;
        set_thread_res_gid(user.gid(), user.gid(), user.gid())?;
        set_thread_res_uid(user.uid(), user.uid(), user.uid())?;
    }
    if !guarded.user.as_ref().is_some_and(|user| user.uid().is_root()) {
        // What the service manager gives us (`AmbientCapabilities=`) is for us. That set-uid programs (sudo, sendmail) give
        // more is not forbidden (`no_new_privs`): applications use them.
        clear_ambient_capability_set()?;
        let own = capabilities(None)?;
        set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..own })?;
    }
    // After the change of user, which takes it back.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Its end may have come before that.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(guard) {
        return Err(io::Error::other("its guard has ended"));
    }
    let name = program.to_string_lossy();
    let cannot = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    std::env::set_current_dir(&guarded.directory)
        .map_err(cannot(format!("cannot begin in {}", guarded.directory.display())))?;
    let error = Command::new(program).args(arguments).env_clear().envs(environment).stdin(Stdio::null()).exec();
    Err(cannot(format!("cannot run `{name}`"))(error))
}

/// Waits until the program has ended, unasked or as it was told; answers how. Its status is not taken: as long as it has one,
/// nobody else has its number.
fn watch(guarded: &Guarded, program: Pid, mut keeper: &UnixStream) -> io::Result<String> {
    let process = pidfd_open(program, PidfdFlags::empty())?;
    let mut deadline = None;
    let (mut ended, mut hears) = (None, true);
    loop {
        let wakes = &mut [PollFd::new(keeper, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        // What has come is not waited for.
        let waited_for = &mut wakes[usize::from(!hears)..if ended.is_none() { 2 } else { 1 }];
        let tick = Timespec::try_from(if ended.is_none() { TICK } else { SOON }).expect("a part of a second fits");
        match poll(waited_for, Some(&tick)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if hears && !wakes[0].revents().is_empty() {
            let mut word = [0];
            hears = matches!(keeper.read(&mut word), Ok(1));
            if word == [KILL] {
                deadline = Some(Instant::now());
            } else if deadline.is_none() {
                // Told to, or the keeper has gone.
                deadline = Some(Instant::now() + guarded.patience);
                kill_process(program, signal(guarded.signal)).ok();
            }
        }
        if ended.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            ended = waitid(WaitId::PidFd(process.as_fd()), options)?.map(|status| said(&status));
            if ended.is_some() && deadline.is_some() {
                // Who has not been told by it.
                kill_process_group(program, Signal::TERM).ok();
            }
        }
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        match ended {
            // Unasked, what it has begun goes with it at once.
            Some(status) if others(program).is_empty() || is_late || deadline.is_none() => return Ok(status),
            None if is_late => return Ok("it did not end in its time and was killed".to_owned()),
            _ => {}
        }
    }
}

/// Who is our child besides the program: those whose own parent has ended. Takes the status of all that have ended.
fn others(program: Pid) -> Vec<Pid> {
    let children = format!("/proc/self/task/{}/children", getpid().as_raw_pid());
    let children = fs::read_to_string(children).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    let lives = |pid: &Pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None));
    children.filter(|pid| *pid != program).filter(lives).collect()
}

/// Kills all that is left of the program; when this returns, there is nobody.
fn end_all(program: Pid) {
    kill_process_group(program, Signal::KILL).ok();
    // Those in other groups. Each one's children are ours once it has ended.
    loop {
        let left = others(program);
        if left.is_empty() && !matches!(waitpid(Some(program), WaitOptions::NOHANG), Ok(None)) {
            // The last one may have had children still.
            if others(program).is_empty() {
                return;
            }
        }
        for pid in left {
            kill_process(pid, Signal::KILL).ok();
        }
        pause();
    }
}

fn said(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) if status == i32::from(CANNOT_RUN) => {
            format!("exit status {status}: the program cannot be run; its last line in the log says why")
        }
        (Some(status), _) => format!("exit status {status}"),
        (None, Some(9)) => "ended by SIGKILL: by hand, or by the system for want of memory".to_owned(),
        (None, signal) => format!("ended by signal {}", signal.unwrap_or(0)),
    }
}

/// A moment for processes that are about to end.
fn pause() {
    let soon = Timespec::try_from(SOON).expect("a part of a second fits");
    poll(&mut [], Some(&soon)).ok();
}

fn signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
        StopSignal::Kill => Signal::KILL,
    }
}

/// What the lines of a guard begin with.
pub(crate) const BEGUN: &str = "begun";
pub(crate) const ENDED: &str = "ended";
/// The exit status of a program that could not be begun, as shells have it.
pub(crate) const CANNOT_RUN: u8 = 127;
/// How often a guard takes the status of what others left to it.
const TICK: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_millis(10);
