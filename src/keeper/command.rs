//! Commands of the operator's, run for what happens to certificates.
//!
//! They are what the configuration names and nothing else, with an environment that holds what they are told and little
//! besides. What they say goes into the log, line by line.

use std::{
    cell::RefCell,
    env, io,
    path::{Path, PathBuf},
    process::ExitStatus,
    process::Stdio,
    time::Duration,
};

use futures_util::future::join;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::{sleep, timeout},
};

use crate::config::untrusted;

/// Runs `command` (never empty) with `environment`, for `limit` at most; answers what it wrote to standard output, the
/// first 4 KiB.
///
/// It begins a process group, which is ended as a whole when its time is over, or when nobody waits for it any more. What
/// it leaves running when it ends by itself is not waited for.
pub(crate) async fn run(
    command: &[String],
    environment: &[(&str, String)],
    limit: Duration,
) -> Result<String, CommandError> {
    let (program, arguments) = command.split_first().expect("the configuration takes no empty command");
    let name = || program.clone();
    let found =
        find(program).ok_or_else(|| CommandError::Begin { program: name(), source: io::ErrorKind::NotFound.into() })?;
    if let Some(why) = untrusted(&found) {
        return Err(CommandError::Untrusted { program: name(), why });
    }
    let mut child = Command::new(found)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(PASSED_ON.iter().filter_map(|name| Some((name, env::var_os(name)?))))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|source| CommandError::Begin { program: name(), source })?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (stdout, stderr) = (RefCell::new(Output::default()), RefCell::new(Output::default()));
    let telling = join(tell(program, child.stdout.take(), &stdout), tell(program, child.stderr.take(), &stderr));
    let mut telling = std::pin::pin!(telling);
    let mut told = false;
    let waiting = async {
        loop {
            tokio::select! {
                status = child.wait() => return status,
                _ = &mut telling, if !told => told = true,
            }
        }
    };
    let ended = timeout(limit, waiting).await;
    let Ok(status) = ended else {
        group.signal(Signal::TERM);
        // Its status is not taken before, so that the number of the group is nobody else's.
        sleep(GRACE).await;
        group.signal(Signal::KILL);
        child.wait().await.ok();
        group.0 = None;
        return Err(CommandError::Late { program: name(), limit });
    };
    group.0 = None;
    if !told {
        // What it has left running may have its output still.
        timeout(LAST_WORDS, telling).await.ok();
    }
    match status {
        Ok(status) if status.success() => Ok(stdout.take().first),
        Ok(status) => {
            let said = [stderr.take().last, stdout.take().last].into_iter().find(|last| !last.is_empty());
            let said = said.map(|last| format!(": {last}")).unwrap_or_default();
            Err(CommandError::Failed { program: name(), status, said })
        }
        Err(source) => Err(CommandError::Begin { program: name(), source }),
    }
}

/// The file of `program`, which is looked for in [`PATH`] where it is a name only.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program));
    }
    PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|file| file.is_file())
}

/// Why a command has not done what it is for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("`{program}` is not run: {why}")]
    Untrusted { program: String, why: String },
    #[error("`{program}` cannot be run")]
    Begin { program: String, source: io::Error },
    #[error("`{program}` did not end within {limit:?} and was ended")]
    Late { program: String, limit: Duration },
    #[error("`{program}` failed, {status}{said}")]
    Failed { program: String, status: ExitStatus, said: String },
}

/// A process group that has not ended; it is told to, unless it has been seen to end.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.0 {
            // It may have ended on its own.
            kill_process_group(leader, signal).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

/// What a command has said on one of its outputs, as far as it is kept.
#[derive(Default)]
struct Output {
    first: String,
    last: String,
}

/// Writes what comes into the log, as far as there is room for it, and takes the rest.
async fn tell(program: &str, stream: Option<impl AsyncRead + Unpin>, output: &RefCell<Output>) {
    let Some(mut stream) = stream else { return };
    let (mut read, mut line, mut room) = ([0; 4096], Vec::new(), OUTPUT);
    let end_line = |line: &mut Vec<u8>, room: &mut usize| {
        let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
        line.clear();
        if text.is_empty() || *room == 0 {
            return;
        }
        tracing::info!(command = program, "{text}");
        *room = room.saturating_sub(text.len());
        if *room == 0 {
            tracing::info!(command = program, "what else it says is not shown");
        }
        let mut output = output.borrow_mut();
        if output.first.len() + text.len() < FIRST {
            output.first.push_str(&text);
            output.first.push('\n');
        }
        output.last = text;
    };
    while let Ok(length @ 1..) = stream.read(&mut read).await {
        for byte in &read[..length] {
            if *byte == b'\n' || line.len() == LINE {
                end_line(&mut line, &mut room);
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }
    end_line(&mut line, &mut room);
}

/// Where programs are that are named without a path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What of our environment a command may need. What the configuration takes from it may be secret.
const PASSED_ON: &[&str] = &["HOME", "LANG", "LC_ALL", "TZ"];
/// What of one output of a command is logged, and of one line.
const OUTPUT: usize = 64 * 1024;
const LINE: usize = 1000;
/// What of it is kept for whoever asks.
const FIRST: usize = 4096;
/// Between the signal that asks a command to end and the one that ends it.
const GRACE: Duration = Duration::from_secs(2);
/// How long the output of a command that has ended is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, limit: Duration) -> Result<String, CommandError> {
        let command = ["sh", "-c", script].map(str::to_owned);
        run(&command, &[("SAID", "a word".to_owned())], limit).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn it_is_told_what_it_is_to_know_and_nothing_else() {
        let said = shell("echo $SAID; env | cut -d= -f1 | sort | tr '\\n' ' '", LONG).await.unwrap();

        let (word, names) = said.split_once('\n').unwrap();
        assert_eq!(word, "a word");
        let known = ["HOME", "LANG", "LC_ALL", "TZ", "PATH", "SAID", "PWD", "OLDPWD", "SHLVL", "_"];
        assert!(names.split_whitespace().all(|name| known.contains(&name)), "{names}");
    }

    #[tokio::test]
    async fn one_that_fails_says_how_and_its_last_line() {
        let failed = shell("echo begun; printf 'no \\033[31mkey\\n' >&2; exit 3", LONG).await.unwrap_err();

        assert_eq!(failed.to_string(), "`sh` failed, exit status: 3: no [31mkey");
        let absent = run(&["/no/such/hook".to_owned()], &[], LONG).await.unwrap_err();
        assert_eq!(absent.to_string(), "`/no/such/hook` cannot be run");
    }

    #[tokio::test]
    async fn what_it_says_is_bounded() {
        let said = shell("head -c 3000000 /dev/zero | tr '\\0' x; yes | head -n 100000", LONG).await.unwrap();

        assert!(said.len() <= FIRST && said.lines().all(|line| line.len() <= LINE), "{}", said.len());
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_all_that_it_has_begun() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("trap '' TERM; sleep 1000 & echo $! > {}; wait; sleep 1000", pid.display());

        let late = shell(&script, Duration::from_millis(300)).await.unwrap_err();

        assert_eq!(late.to_string(), "`sh` did not end within 300ms and was ended");
        let begun = std::fs::read_to_string(pid).unwrap();
        let lives = || {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", begun.trim())).unwrap_or_default();
            // Whoever is its parent now may not have taken its status yet.
            !state.is_empty() && !state.contains(") Z ")
        };
        let ended = async {
            while lives() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG, ended).await.unwrap();
    }

    #[tokio::test]
    async fn what_it_leaves_running_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");

        let said = shell(&format!("echo done; sleep 1000 & echo $! > {}", pid.display()), LONG).await.unwrap();

        assert_eq!(said, "done\n");
        let left = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
    }
}
