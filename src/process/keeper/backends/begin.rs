//! How an instance is begun: as whom, where it listens, and what is in its environment.

use std::{
    collections::{HashMap, HashSet},
    env,
    ffi::OsString,
    fs, io,
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt, chown, lchown},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{net::unix::pipe, task::spawn_local, time::Instant};
use uzers::os::unix::UserExt;

use super::{
    super::workers::OURSELVES,
    Backends,
    instance::{Instance, Usage},
    output::tell,
    told::hear,
};
use crate::{
    backends::{
        InstanceState as State,
        guard::{Guarded, environment_file},
    },
    config::{BackendPlan, EndpointAddress, Plan},
    keeper::user::User,
};

impl Backends {
    /// Begins an instance of `name`.
    pub(super) fn begin(&mut self, name: &str, backend: &BackendPlan, plan: &Plan) -> io::Result<Instance> {
        let user = user_of(backend, plan)?;
        self.last += 1;
        let id = self.last;
        let (address, place, socket) = if backend.has_port {
            // Free at this moment; whoever takes it before the program does costs it a start.
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            (EndpointAddress::Tcp { host: "127.0.0.1".to_owned(), port }, port.to_string(), None)
        } else {
            let socket = self.folder_of(name, user.as_ref(), plan)?.join(format!("{id}.sock"));
            let text = socket.to_str().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
            (EndpointAddress::Unix(socket.clone()), text, Some(socket))
        };
        let (key, variable) = if backend.has_port { ("{port}", "PORT") } else { ("{socket}", "SOCKET") };
        let guarded = Guarded {
            user: user.clone(),
            directory: backend.directory.clone(),
            signal: backend.stop_signal,
            patience: backend.stop_timeout,
            socket,
        };
        let home = match &user {
            Some(user) => uzers::get_user_by_uid(user.uid().as_raw()).map(|user| user.home_dir().into()),
            None => env::var_os("HOME"),
        };
        // What is said last counts.
        let mut environment = vec![("PATH".into(), env::var_os("PATH").unwrap_or_else(|| PATH.into()))];
        environment.extend(PASSED_ON.iter().filter_map(|name| Some((name.into(), env::var_os(name)?))));
        environment.extend(home.map(|home: OsString| ("HOME".into(), home)));
        environment.push((variable.into(), place.clone().into()));
        let own = backend.environment.iter();
        environment.extend(own.map(|(name, value)| (name.into(), value.expose().replace(key, &place).into())));
        let (line, theirs) = UnixStream::pair()?;
        let (output, written) = io::pipe()?;
        let guard = Command::new(OURSELVES)
            .arg0("vestibule")
            .args(["backend-guard", &serde_json::to_string(&guarded)?, "--"])
            .args(backend.command.iter().map(|argument| argument.replace(key, &place)))
            .stdin(environment_file(&environment)?)
            .stdout(OwnedFd::from(theirs))
            .stderr(written)
            .current_dir("/")
            // A Ctrl-C at our terminal is ours to pass on.
            .process_group(0)
            // That of the program is not for root to obey: it comes into force when its user has been become.
            .env_clear()
            .spawn()?;
        let guard = i32::try_from(guard.id()).ok().and_then(Pid::from_raw).expect("ids of processes fit");
        tracing::debug!(backend = name, instance = id, %address, "an instance is begun");
        self.listen_to(
            id,
            name,
            guard,
            line,
            output.into(),
            address,
            backend.clone(),
            SystemTime::now(),
            Duration::ZERO,
        )
    }

    #[allow(clippy::too_many_arguments, reason = "what an instance is, whoever has begun it")]
    pub(super) fn listen_to(
        &self,
        id: u32,
        name: &str,
        guard: Pid,
        line: UnixStream,
        output: OwnedFd,
        address: EndpointAddress,
        plan: BackendPlan,
        started: SystemTime,
        age: Duration,
    ) -> io::Result<Instance> {
        let process = pidfd_open(guard, PidfdFlags::empty())?;
        line.set_nonblocking(true)?;
        let heard = tokio::net::UnixStream::from_std(line.try_clone()?)?;
        let told = pipe::Receiver::from_owned_fd(output.try_clone()?)?;
        // Both end with the instance: the last words of one that has ended are heard, too.
        spawn_local(hear(id, heard, process, self.sender.clone()));
        spawn_local(tell(name.to_owned(), id, told));
        let now = Instant::now();
        Ok(Instance {
            id,
            guard,
            program: None,
            line,
            output,
            address,
            state: State::Starting,
            outdated: None,
            lingers: None,
            plan,
            started,
            begun: now.checked_sub(age).unwrap_or(now),
            deadline: None,
            drained: HashSet::new(),
            served: HashMap::new(),
            usage: Usage::default(),
        })
    }

    /// The folder for the sockets of `name`: its user makes them, and the workers can go through.
    pub(super) fn folder_of(&mut self, name: &str, user: Option<&User>, plan: &Plan) -> io::Result<PathBuf> {
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => private_folder()?,
        };
        self.folder = Some(folder.clone());
        let own = folder.join(name);
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if fs::metadata(&own)?.uid() == rustix::process::geteuid().as_raw() {
            // Before it is somebody else's: changing that takes more of root than giving it away.
            fs::set_permissions(&own, fs::Permissions::from_mode(0o750))?;
        }
        if let Some(user) = user {
            let group = User::find(&plan.user).map_err(io::Error::other)?.gid();
            chown(&own, Some(user.uid().as_raw()), Some(group.as_raw()))?;
        }
        Ok(own)
    }
}

/// Who an instance runs as; `None`: as we do.
fn user_of(backend: &BackendPlan, plan: &Plan) -> io::Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    User::find(backend.user.as_ref().unwrap_or(&plan.user)).map(Some).map_err(io::Error::other)
}

/// A folder of this process, in which others can name what is theirs and list nothing.
fn private_folder() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let (own, standard) =
        if uid.is_root() { (None, "/run".into()) } else { (env::var_os("XDG_RUNTIME_DIR"), env::temp_dir()) };
    // First that of a unit of systemd's, where nothing else may be written to.
    let given = [env::var_os("RUNTIME_DIRECTORY"), own].into_iter().flatten().map(PathBuf::from);
    let parent = given.into_iter().find(|folder| folder.is_dir()).unwrap_or(standard);
    // Of processes that were killed.
    for entry in fs::read_dir(&parent)?.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.parse::<u32>().ok());
        let is_ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid.as_raw());
        let lives = |process: u32| Path::new(&format!("/proc/{process}")).exists();
        if is_ours && process.is_some_and(|process| process == std::process::id() || !lives(process)) {
            remove(&entry.path());
        }
    }
    let folder = parent.join(format!("{FOLDER}{}", std::process::id()));
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

/// Removes such a folder. What is in it belongs to others, and root may not have the right to look past that.
pub(super) fn remove(folder: &Path) {
    for own in fs::read_dir(folder).into_iter().flatten().flatten() {
        lchown(own.path(), Some(rustix::process::geteuid().as_raw()), None).ok();
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::debug!(error = &error as &dyn std::error::Error, "the folder of sockets is left");
    }
}

/// Where programs are that are named without a path, where our own environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What of our environment a program may need. What the configuration takes from it may be secret.
const PASSED_ON: &[&str] = &["LANG", "TZ"];
/// Before our number, in the name of the folder for sockets.
const FOLDER: &str = "vestibule-backends-";
