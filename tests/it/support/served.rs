//! The built binary in the foreground, with its configuration and files in a folder of its own.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use serde_json::Value;

use super::{PATIENCE, body, wait_for};

/// `vestibule serve`, killed when dropped.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) folder: tempfile::TempDir,
    program: PathBuf,
}

impl Served {
    /// Serves `configuration`, in which `{dir}` is the folder, and waits until connections are accepted.
    ///
    /// What `configuration` does not say is in the folder: `admin.sock`, `access.log`, storage and spool.
    pub(crate) fn start(configuration: &str) -> Self {
        Self::start_with(configuration, |_| {})
    }

    /// The same with another command line or environment.
    pub(crate) fn start_with(configuration: &str, change: impl FnOnce(&mut Command)) -> Self {
        Self::start_in(folder(), configuration, change)
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, configuration: &str, change: impl FnOnce(&mut Command)) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_vestibule"));
        let mut served = Self::spawn(folder, &program, configuration, change);
        wait_for("the gateway to be ready", || {
            assert_eq!(served.child.try_wait().unwrap(), None, "{}", served.events());
            served.events().contains("listening")
        });
        served
    }

    /// Does not wait.
    pub(crate) fn spawn(
        folder: tempfile::TempDir,
        program: &Path,
        configuration: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        write(folder.path(), configuration);
        let mut command = Command::new(program);
        command
            .args(["serve", "--config"])
            .arg(folder.path().join("vestibule.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("events")).unwrap());
        change(&mut command);
        let child = command.spawn().unwrap();
        Self { child, folder, program: program.to_owned() }
    }

    /// The pid that a service manager sees.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it where it stands, and answers its folder for another one.
    pub(crate) fn into_folder(mut self) -> tempfile::TempDir {
        drop(self.child.kill());
        drop(self.child.wait());
        std::mem::replace(&mut self.folder, folder())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts another configuration into the file, as an editor does that renames.
    pub(crate) fn rewrite(&self, configuration: &str) {
        write(self.folder.path(), configuration);
    }

    /// Puts `configuration` in force, be it by our word or because its change was seen first.
    pub(crate) fn apply(&self, configuration: &str) {
        self.rewrite(configuration);
        let said = self.order(&["reload"]);
        assert!(said.contains("in force"), "{said}");
    }

    /// What `configuration` would change, in words.
    pub(crate) fn rehearse(&self, configuration: &str) -> String {
        write_to(&self.path("rehearsed.yml"), configuration);
        let mut command = Command::new(&self.program);
        let output =
            command.args(["reload", "--dry-run", "--config"]).arg(self.path("rehearsed.yml")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it said on standard error.
    pub(crate) fn events(&self) -> String {
        fs::read_to_string(self.path("events")).unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_for("the gateway to end", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }

    /// `vestibule VERB --config FILE …`.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_by(&self.program, arguments)
    }

    /// The same by another program file.
    pub(crate) fn run_by(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.arg(arguments[0]).arg("--config").arg(self.path("vestibule.yml")).args(&arguments[1..]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// The same; fails unless it ends with 0, and answers what it printed.
    pub(crate) fn order(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.events());
        String::from_utf8(output.stdout).unwrap()
    }

    /// `GET path` over a unix socket in the folder.
    pub(crate) fn get(&self, socket: &str, path: &str) -> String {
        self.ask(socket, "GET", path)
    }

    pub(crate) fn ask(&self, socket: &str, method: &str, path: &str) -> String {
        self.try_ask(socket, method, path).unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.events()))
    }

    fn try_ask(&self, socket: &str, method: &str, path: &str) -> std::io::Result<String> {
        let mut stream = self.connect(socket);
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}Connection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub(crate) fn connect(&self, socket: &str) -> UnixStream {
        let stream = UnixStream::connect(self.path(socket))
            .unwrap_or_else(|error| panic!("{socket}: {error}\n{}", self.events()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn status(&self) -> Value {
        let mut status = None;
        // A worker that is killed just now takes its answers with it; the next one has others.
        wait_for("the status", || {
            let answer = self.try_ask("admin.sock", "GET", "/status").unwrap_or_default();
            status = serde_json::from_str(&body(&answer)).ok();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().unwrap()
    }

    /// Where the listener with this number really is.
    pub(crate) fn address(&self, number: usize) -> SocketAddr {
        self.status()["listeners"][number]["address"].as_str().unwrap().parse().unwrap()
    }

    /// The pid of the worker that accepts connections.
    pub(crate) fn worker(&self) -> u32 {
        let mut serving = None;
        wait_for("a worker that serves", || {
            let status = self.status();
            let workers = status["processes"]["workers"].as_array().cloned().unwrap_or_default();
            serving = workers.into_iter().find(|worker| worker["accepts"] == true);
            serving.is_some()
        });
        u32::try_from(serving.unwrap()["pid"].as_u64().unwrap()).unwrap()
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A folder that the user of the workers can go through.
pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

pub(crate) fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(sent.success(), "{name} to {pid}");
}

/// The processes that `parent` has begun.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Puts `configuration` into the file in `folder`: see [`Served::start`].
pub(crate) fn write(folder: &Path, configuration: &str) {
    write_to(&folder.join("vestibule.yml.new"), configuration);
    fs::rename(folder.join("vestibule.yml.new"), folder.join("vestibule.yml")).unwrap();
}

fn write_to(file: &Path, configuration: &str) {
    let folder = file.parent().unwrap();
    let mut text = configuration.replace("{dir}", folder.to_str().unwrap());
    for (key, value) in [
        ("tls:", "tls: { storage: storage }\n"),
        ("spool:", "spool: { path: spool }\n"),
        ("access_log:", "access_log: { path: access.log, format: '{method} {target} {status}' }\n"),
        ("admin:", &format!("admin: unix:{}/admin.sock\n", folder.display())),
        ("workers:", "workers: 2\n"),
    ] {
        if !text.lines().any(|line| line.starts_with(key)) {
            text.push_str(value);
        }
    }
    fs::write(file, text).unwrap();
}
