//! Reads `config.yml` without privilege.
//!
//! As root, we do it in a process of our own that is the user who carries the traffic, with a clean environment: whoever
//! can write the file, or exchange it for a link, reads nothing by it that this user could not. What comes back is
//! [`Answer`], and checked again. Where a value is kept elsewhere (`config from`, a reference to a secret store), the same
//! process asks docassemble's own reader, in docassemble's own Python.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::OFlags,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
    time::Timespec,
};
use serde_json::Value as Json;

use super::{
    super::{
        error::{Fault, Origin, Position},
        tree::{self, Key, Node, Value},
    },
    settings::{Answer, KEYS, Machine, VARIABLES, read as read_tree},
};

/// Reads `file` as the user `user`, where we are root; `command` is how this program is told to [`work`].
///
/// Blocks for as long as docassemble's reader takes, a minute at most.
///
/// # Errors
///
/// The process cannot be begun, or did not do its part.
pub(in super::super) fn read(file: &Path, user: &str) -> io::Result<Answer> {
    if !rustix::process::geteuid().is_root() || user == "root" {
        return Ok(answer(file, true));
    }
    let first = in_a_process(file, user, false)?;
    match first {
        Answer::Elsewhere(_) => in_a_process(file, user, true),
        answer => Ok(answer),
    }
}

/// The other side: prints what `file` says.
pub(in super::super) fn work(file: &Path, fetch: bool) -> io::Result<()> {
    let answer = answer(file, fetch);
    io::stdout().write_all(&serde_json::to_vec(&answer)?)
}

fn in_a_process(file: &Path, user: &str, fetch: bool) -> io::Result<Answer> {
    let unknown = || io::Error::other(format!("there is no user `{user}` on this machine to read it as"));
    let account = uzers::get_user_by_name(user).ok_or_else(unknown)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vestibule").arg("docassemble-settings").arg(file).uid(account.uid()).gid(account.primary_group_id());
    command.current_dir("/");
    if fetch {
        // docassemble finds what opens its secret store there.
        command.arg("--fetch");
    } else {
        command.env_clear().envs(VARIABLES.iter().filter_map(|name| Some((name, env::var_os(name)?))));
    }
    let longest = if fetch { FETCHING + PARSING } else { PARSING };
    let said = run(&mut command, "its reader", longest)?;
    serde_json::from_slice(&said).map_err(|error| io::Error::other(format!("its reader did not do its part: {error}")))
}

fn answer(file: &Path, fetch: bool) -> Answer {
    let text = match text(file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Answer::Unreadable(error.to_string()),
    };
    let tree = match text.map(|text| tree::parse(&text, Origin::Docassemble)).transpose() {
        Ok(tree) => tree,
        Err(fault) => return Answer::Refused(vec![fault]),
    };
    // As while somebody writes it; docassemble does not take it for a configuration either.
    if let Some(tree) = tree.as_ref().filter(|tree| tree.is_null()) {
        let problem = "nothing is written in it".to_owned();
        return Answer::Refused(vec![Fault { position: tree.position, at: String::new(), problem }]);
    }
    let variables = |name: &str| env::var(name).ok();
    let machine = Machine { name: machine_name(), addresses: addresses() };
    let elsewhere = match read_tree(tree.as_ref(), &variables, &machine) {
        Answer::Elsewhere(fault) if fetch => fault,
        answer => return answer,
    };
    match fetched(file, elsewhere.position) {
        Ok(tree) => match read_tree(Some(&tree), &variables, &machine) {
            Answer::Elsewhere(fault) => {
                let problem = format!("{}, and docassemble's own reader could not fetch it", fault.problem);
                Answer::Refused(vec![Fault { problem, ..fault }])
            }
            answer => answer,
        },
        Err(error) => {
            let problem = format!(
                "{}, from where docassemble's own reader has to fetch it: {error}; write the settings that concern the \
                 front door in `--config` instead, or name docassemble's Python in DA_PYTHON",
                elsewhere.problem
            );
            Answer::Refused(vec![Fault { problem, ..elsewhere }])
        }
    }
}

fn text(file: &Path) -> io::Result<String> {
    // A pipe in its place would be waited for.
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    opened.take(super::super::LONGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > super::super::LONGEST_FILE {
        return Err(io::Error::other("it is longer than 1 MiB: hardly a configuration"));
    }
    Ok(text)
}

/// What docassemble's own reader makes of `file`: the keys that concern us, all of them at `position`.
fn fetched(file: &Path, position: Position) -> io::Result<Node> {
    let python = python().ok_or_else(|| io::Error::other("there is no docassemble on this machine"))?;
    let mut command = Command::new(&python);
    command.arg("-c").arg(FETCH).arg(file).args(KEYS).current_dir("/tmp").env("DA_CONFIG_FILE", file);
    let said = run(&mut command, "docassemble's own reader", FETCHING)?;
    let said = String::from_utf8_lossy(&said);
    let json =
        said.lines().rev().find_map(|line| line.strip_prefix(FETCHED)).and_then(|json| serde_json::from_str(json).ok());
    let unclear = || io::Error::other(format!("{} did not say what it found", python.display()));
    json.map(|json: Json| node(&json, position)).ok_or_else(unclear)
}

/// docassemble's own Python.
fn python() -> Option<PathBuf> {
    if let Some(folder) = env::var_os("DA_PYTHON") {
        return Some(Path::new(&folder).join("bin/python")).filter(|python| python.is_file());
    }
    let mut all: Vec<PathBuf> = fs::read_dir(ROOT)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("local")))
        .map(|path| path.join("bin/python"))
        .filter(|python| python.is_file())
        .collect();
    all.sort();
    all.pop()
}

fn node(json: &Json, position: Position) -> Node {
    let plain = |text: String| Node::scalar(text, true, position);
    match json {
        Json::Null => plain("null".to_owned()),
        Json::Bool(truth) => plain(truth.to_string()),
        Json::Number(number) => plain(number.to_string()),
        Json::String(text) => Node::scalar(text.clone(), false, position),
        Json::Array(items) => {
            Node { position, value: Value::Sequence(items.iter().map(|item| node(item, position)).collect()) }
        }
        Json::Object(keys) => {
            let entry = |(name, value): (&String, &Json)| (Key { position, name: name.clone() }, node(value, position));
            Node { position, value: Value::Mapping(keys.iter().map(entry).collect()) }
        }
    }
}

/// What `command` prints; it is ended when it takes longer, or says more.
fn run(command: &mut Command, who: &str, longest: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + longest;
    // What it says otherwise may hold what it read. A group of its own, so that what it begins ends with it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn()?;
    let said = child.stdout.take().map_or_else(
        || Ok(Vec::new()),
        |mut output| {
            let mut said = Vec::new();
            let mut piece = [0; 16 * 1024];
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = Timespec::try_from(left).unwrap_or_default();
                let ready = poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&left))?;
                if ready == 0 {
                    return Err(io::Error::other(format!("{who} took longer than {longest:?}")));
                }
                match output.read(&mut piece)? {
                    0 => return Ok(said),
                    more if said.len() + more > MOST_SAID => return Err(io::Error::other("it says too much")),
                    more => said.extend_from_slice(&piece[..more]),
                }
            }
        },
    );
    // Who has said all has a moment to end; whoever has not, and all that it began, is ended.
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let ended = said.is_ok() && {
            let ended = pidfd_open(pid, PidfdFlags::empty())?;
            poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&GRACE))? > 0
        };
        if !ended {
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
    let status = child.wait()?;
    let said = said?;
    if status.success() {
        return Ok(said);
    }
    Err(io::Error::other(format!("{who} ended with {status}")))
}

/// As `hostname --fqdn` has it, of what is on this machine: no resolver is asked.
fn machine_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    if name.contains('.') {
        return Some(name);
    }
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let canonical = hosts.lines().find_map(|line| {
        let names: Vec<_> = line.split('#').next()?.split_whitespace().skip(1).collect();
        names.contains(&name.as_str()).then(|| names[0].to_owned())
    });
    Some(canonical.unwrap_or(name)).filter(|name| !name.is_empty() && name != "(none)")
}

/// The machine's own IPv4 addresses but those of loopback, in the order of the kernel's table.
fn addresses() -> Vec<Ipv4Addr> {
    let table = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut all = Vec::new();
    let mut last = None;
    for line in table.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(address) = last.filter(|address| !address.is_loopback() && !all.contains(address))
        {
            all.push(address);
        }
    }
    all.truncate(MOST_ADDRESSES);
    all
}

/// Where docassemble is installed.
pub(super) const ROOT: &str = "/usr/share/docassemble";
const PARSING: Duration = Duration::from_secs(10);
/// docassemble's Python takes seconds to begin, and asks a cloud.
const FETCHING: Duration = Duration::from_secs(40);
const GRACE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const MOST_SAID: usize = 1 << 20;
const MOST_ADDRESSES: usize = 8;
/// Loads the configuration as docassemble does, and prints the keys that are named.
const FETCH: &str = "\
import sys, json
import docassemble.base.config as config
config.load(filename=sys.argv[1])
found = {key: config.daconfig[key] for key in sys.argv[2:] if key in config.daconfig}
print('\\nVESTIBULE ' + json.dumps(found, default=str))
";
const FETCHED: &str = "VESTIBULE ";
