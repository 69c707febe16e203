//! What stands where scripts look for `nginx`: this program, when it is called by that name.
//!
//! docassemble starts, stops and reloads a program called nginx: from Supervisor, from its daily cron, from logrotate.
//! Its scripts stay as they are. `/usr/sbin/nginx` becomes a link to this program, which then answers for nginx what can
//! be answered in its place, and serves nothing: the front door is a process of its own, which goes on whatever becomes
//! of this one. A start has it read its configuration and open its log anew, since whoever starts nginx has changed
//! something that nginx would read, and then stays in the foreground, idle, so that a service manager has a process to
//! watch.

use std::{
    env,
    ffi::OsStr,
    fs,
    future::pending,
    io::{self, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    time::Duration,
};

use rustix::process::{Pid, kill_process};
use tokio::time::sleep;

use crate::{
    admin::{Order, Outcome, client, client::ClientError},
    cli,
    process::{Signal, Signals, pid_file},
    telemetry::{chain, events},
};

/// Does what was asked of nginx, if it is by that name that we were called.
pub(crate) fn main_if_called() -> Option<ExitCode> {
    let mut arguments = env::args_os();
    let called = arguments.next()?;
    if Path::new(&called).file_name() != Some(OsStr::new(NGINX)) {
        return None;
    }
    events::init();
    let arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    Some(match Asked::read(arguments) {
        Ok(asked) => answer(&asked),
        Err(wrong) => {
            say(&wrong);
            ExitCode::FAILURE
        }
    })
}

/// What is asked of nginx.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    what: What,
    /// Where its pid is, where a directive says so.
    pid_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// `daemon off;`: to serve in the foreground.
    Stay,
    /// To go on in the background.
    Begin,
    Stop(Stop),
    Reload,
    Reopen,
    Test,
    Version,
    Help,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// `stop`: TERM.
    Fast,
    /// `quit`: QUIT.
    Graceful,
}

impl Asked {
    /// Reads a command line as nginx would: letters may stand together, and a value may stand with its letter.
    fn read(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let (mut what, mut order) = (What::Begin, None);
        let (mut stays, mut pid_file) = (false, None);
        while let Some(argument) = arguments.next() {
            let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                return Err(format!("`{argument}` is no option of nginx; {UNDERSTOOD}"));
            };
            for (at, letter) in letters.char_indices() {
                match letter {
                    // Asked for together, the first of these goes before.
                    '?' | 'h' if what != What::Version => what = What::Help,
                    'v' | 'V' if what != What::Help => what = What::Version,
                    't' | 'T' if what == What::Begin => what = What::Test,
                    '?' | 'h' | 'v' | 'V' | 't' | 'T' | 'q' => {}
                    'g' | 's' | 'c' | 'p' | 'e' => {
                        let value = match &letters[at + 1..] {
                            "" => arguments.next().ok_or_else(|| format!("-{letter} takes a value; {UNDERSTOOD}"))?,
                            value => value.to_owned(),
                        };
                        match letter {
                            'g' => directives(&value, &mut stays, &mut pid_file),
                            's' => order = Some(signal(&value)?),
                            // Files of nginx, which nobody reads here.
                            _ => {}
                        }
                        break;
                    }
                    other => return Err(format!("`-{other}` is not understood here; {UNDERSTOOD}")),
                }
            }
        }
        if what == What::Begin {
            what = order.unwrap_or(if stays { What::Stay } else { What::Begin });
        }
        Ok(Self { what, pid_file })
    }

    fn pid_file(&self) -> PathBuf {
        let told = env::var_os("VESTIBULE_NGINX_PID").map(PathBuf::from);
        self.pid_file.clone().or(told).unwrap_or_else(|| PathBuf::from(PID_FILE))
    }
}

/// Takes from nginx's directives the two that mean something without nginx.
fn directives(text: &str, stays: &mut bool, pid_file: &mut Option<PathBuf>) {
    for directive in text.split(';') {
        let mut words = directive.split_whitespace();
        match (words.next(), words.next()) {
            (Some("daemon"), Some(value)) => *stays = value == "off",
            (Some("pid"), Some(path)) => *pid_file = Some(PathBuf::from(path)),
            _ => {}
        }
    }
}

fn signal(name: &str) -> Result<What, String> {
    match name {
        "stop" => Ok(What::Stop(Stop::Fast)),
        "quit" => Ok(What::Stop(Stop::Graceful)),
        "reload" => Ok(What::Reload),
        "reopen" => Ok(What::Reopen),
        other => Err(format!("`-s {other}` is not understood; there is -s stop, quit, reload and reopen")),
    }
}

fn answer(asked: &Asked) -> ExitCode {
    let front_door = FrontDoor::of_this_machine();
    let done = match asked.what {
        What::Version => {
            tell(&format!("vestibule/{} (in place of nginx)", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        What::Help => {
            say(UNDERSTOOD);
            Ok(())
        }
        What::Test => return test(&front_door),
        What::Stop(how) => stop(&asked.pid_file(), how),
        What::Reload => block_on(front_door.order(Order::Reload { dry_run: false })).map(|done| say(&done)),
        What::Reopen => block_on(front_door.order(Order::Reopen)).map(|done| say(&done)),
        // Whoever begins nginx in the background asks for no process, only that what it has changed is served.
        What::Begin => block_on(front_door.renew()).map(|done| say(&done)),
        What::Stay => block_on(stay(&front_door, &asked.pid_file())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

/// The vestibule that serves, by its admin socket.
struct FrontDoor {
    admin: PathBuf,
}

impl FrontDoor {
    fn of_this_machine() -> Self {
        let told = env::var_os("VESTIBULE_ADMIN").map(OsStringExt::into_vec).filter(|told| !told.is_empty());
        let path = told.map(|told| PathBuf::from(OsStr::from_bytes(told.strip_prefix(b"unix:").unwrap_or(&told))));
        Self { admin: path.unwrap_or_else(|| PathBuf::from(ADMIN)) }
    }

    async fn ask(&self, order: Order) -> Result<Outcome, ClientError> {
        client::order(&self.admin, &order.target()).await
    }

    /// Has `order` carried out; answers what was done, or why it was not.
    async fn order(&self, order: Order) -> Outcome {
        self.ask(order).await.unwrap_or_else(|error| Err(self.silent(&error)))
    }

    /// Has it read its configuration and certificates anew, and open its log anew.
    async fn renew(&self) -> Outcome {
        // A log that others have moved is to be let go of, whatever becomes of the configuration.
        let reopened = self.order(Order::Reopen).await;
        let reloaded = self.order(Order::Reload { dry_run: false }).await?;
        Ok(format!("vestibule answers at {} and serves: {reloaded}, {}", self.admin.display(), reopened?))
    }

    /// Does [`Self::renew`] as soon as there is somebody to do it, and says what came of it.
    async fn renewed(&self) {
        let mut is_told = false;
        loop {
            match client::get(&self.admin, "/live").await {
                Ok(_) => match self.renew().await {
                    Ok(done) => return say(&done),
                    Err(refused) => return say(&format!("what was served before is served still: {refused}")),
                },
                Err(error) if !is_told => {
                    say(&format!("{}; trying again every second", self.silent(&error)));
                    is_told = true;
                }
                Err(_) => {}
            }
            sleep(PAUSE).await;
        }
    }

    fn silent(&self, error: &ClientError) -> String {
        format!(
            "no vestibule answers at {admin}, and nothing serves in its place ({cause}). Start it (`supervisorctl start \
             vestibule`); its configuration must say `admin: unix:{admin}`, or VESTIBULE_ADMIN must name the socket \
             that it says",
            admin = self.admin.display(),
            cause = chain(error),
        )
    }

    /// What its configuration was read from.
    async fn source(&self) -> Option<String> {
        let answer = client::get(&self.admin, "/config").await.ok()?;
        let plan: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
        plan["sources"][0].as_str().map(str::to_owned)
    }
}

/// Stays in the foreground until it is told to end; the front door goes on.
async fn stay(front_door: &FrontDoor, pid: &Path) -> Result<(), String> {
    let mut signals = Signals::catch().map_err(|error| format!("cannot catch signals: {error}"))?;
    pid_file::write(pid).map_err(|error| format!("cannot write the pid file {}: {error}", pid.display()))?;
    let mut errand: Errand<'_> = Box::pin(front_door.renewed());
    loop {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            () = &mut errand => {
                errand = Box::pin(pending());
                continue;
            }
        };
        errand = match signal {
            Signal::Stop => break,
            Signal::Reload => Box::pin(said(front_door.order(Order::Reload { dry_run: false }))),
            Signal::Reopen => Box::pin(said(front_door.order(Order::Reopen))),
            Signal::Upgrade => {
                say("SIGUSR2 means nothing to what stands in place of nginx; there is `vestibule upgrade`");
                errand
            }
        };
    }
    pid_file::remove(pid);
    Ok(())
}

type Errand<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

async fn said(outcome: impl Future<Output = Outcome>) {
    match outcome.await {
        Ok(words) | Err(words) => say(&words),
    }
}

/// Ends the process that stays in the foreground in place of nginx, and no other: a pid may be somebody else's by now.
fn stop(pid_file: &Path, how: Stop) -> Result<(), String> {
    let shown = pid_file.display();
    let text = fs::read_to_string(pid_file).map_err(|error| format!("nothing to stop: {shown}: {error}"))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| format!("nothing to stop: {shown} holds no pid"))?;
    if !stands_in(pid) {
        return Err(format!("process {pid} of {shown} does not stand in place of nginx; it is left alone"));
    }
    let signal = match how {
        Stop::Fast => rustix::process::Signal::TERM,
        Stop::Graceful => rustix::process::Signal::QUIT,
    };
    kill_process(pid, signal).map_err(|error| format!("cannot stop process {pid} of {shown}: {error}"))
}

/// Whether `pid` runs this program, also if another one is at its place on the disk by now, under the name of nginx. The
/// front door runs it as well, under its own.
fn stands_in(pid: Pid) -> bool {
    let program = |pid: &str| {
        let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?.into_os_string().into_vec();
        Some(path.strip_suffix(b" (deleted)").map(<[u8]>::to_vec).unwrap_or(path))
    };
    let named = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let called = line.split(|byte| *byte == 0).next()?;
        Some(Path::new(OsStr::from_bytes(called)).file_name()? == OsStr::new(NGINX))
    };
    let theirs = program(&pid.to_string());
    theirs.is_some() && theirs == program("self") && named() == Some(true)
}

/// Tests the configuration that the running front door would read; where none runs, what is installed.
fn test(front_door: &FrontDoor) -> ExitCode {
    let (outcome, source) =
        block_on(async { (front_door.ask(Order::Reload { dry_run: true }).await, front_door.source().await) });
    let passed = match outcome {
        Ok(Ok(_)) => true,
        Ok(Err(faults)) => {
            tell(&faults);
            false
        }
        Err(_) => cli::check_installed() == ExitCode::SUCCESS,
    };
    let source = source.map_or_else(String::new, |source| format!(" {source}"));
    let result = if passed { "successful" } else { "failed" };
    // As nginx says it, for whoever looks for these words.
    tell(&format!("vestibule: configuration file{source} test is {result}"));
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the system has what a runtime of one thread takes").block_on(work)
}

fn say(text: &str) {
    tell(&format!("vestibule, in place of nginx: {text}"));
}

/// Who reads it may have gone; that is nobody's fault.
fn tell(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

const NGINX: &str = "nginx";
/// Where nginx of Debian, and docassemble's scripts, have it.
const PID_FILE: &str = "/var/run/nginx.pid";
const ADMIN: &str = "/run/vestibule/admin.sock";
/// Between two attempts to find a front door that is not there.
const PAUSE: Duration = Duration::from_secs(1);
const UNDERSTOOD: &str =
    "there is -g \"daemon off;\", -s stop|quit|reload|reopen, -t, -T, -v and -V; see `vestibule --help`";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Asked, String> {
        Asked::read(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    fn what(arguments: &[&str]) -> What {
        read(arguments).unwrap().what
    }

    #[test]
    fn what_docassemble_certbot_and_logrotate_ask_of_nginx_is_understood() {
        for (arguments, expected) in [
            (&["-g", "daemon off;"][..], What::Stay),
            (&["-g", "daemon on; master_process on;"], What::Begin),
            (&[], What::Begin),
            (&["-c", "/etc/nginx/nginx.conf"], What::Begin),
            (&["-s", "stop"], What::Stop(Stop::Fast)),
            (&["-squit"], What::Stop(Stop::Graceful)),
            (&["-c", "/etc/nginx/nginx.conf", "-s", "reload"], What::Reload),
            (&["-s", "reopen"], What::Reopen),
            (&["-t", "-q", "-g", "daemon on; master_process on;"], What::Test),
            (&["-Tc/etc/nginx/nginx.conf"], What::Test),
            (&["-V"], What::Version),
            (&["-tv"], What::Version),
            (&["-?"], What::Help),
        ] {
            assert_eq!(what(arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn a_directive_says_where_the_pid_is() {
        let asked = read(&["-g", "daemon off; pid /run/other.pid;"]).unwrap();

        assert_eq!(asked, Asked { what: What::Stay, pid_file: Some(PathBuf::from("/run/other.pid")) });
    }

    #[test]
    fn what_is_not_understood_says_what_is() {
        for arguments in [&["-x"][..], &["start"], &["-s"], &["-s", "restart"], &["--help"], &["-"]] {
            let wrong = read(arguments).unwrap_err();
            assert!(wrong.contains("there is -"), "{arguments:?}: {wrong}");
        }
    }
}
