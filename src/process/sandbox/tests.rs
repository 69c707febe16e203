use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, Write},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    os::{
        fd::{AsFd, AsRawFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileExt, PermissionsExt, symlink},
            net::{UnixListener, UnixStream},
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Command, Output},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{
    fs::{CWD, MemfdFlags, Mode, memfd_create, mkdirat},
    io::Errno,
    process::{geteuid, kill_process, test_kill_process},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::*;
use crate::{
    config::{self, ListenAddress},
    gateway::Gateway,
    keeper::{self, Provisions, sockets::Sockets},
    metrics::Gauge,
    process::{link::Link, message::Word},
    spool::Spool,
    tls::TicketKeys,
};

/// Who there is on every machine and owns nothing.
const NOBODY: &str = "nobody";

/// Names the test that a process of its own was begun for.
const ALONE: &str = "VESTIBULE_TEST_ALONE";

/// Runs `body`, of which a sandbox is never left again, in a process of its own, and answers there `None`; here, how it
/// ended.
fn alone<F: FnOnce()>(body: F) -> Option<Output> {
    let closure = std::any::type_name::<F>();
    let test = closure.trim_start_matches("vestibule::").trim_end_matches("::{{closure}}");
    if std::env::var_os(ALONE).is_some_and(|name| name == test) {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    Some(command.args(["--exact", test, "--nocapture"]).env(ALONE, test).output().unwrap())
}

/// [`alone`], and it has to end well.
fn succeeds_alone<F: FnOnce()>(body: F) {
    if let Some(ended) = alone(body) {
        let (said, complained) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(ended.status.success() && said.contains("1 passed"), "{}\n{said}\n{complained}", ended.status);
    }
}

/// [`alone`], and the kernel has to end it.
fn is_killed_alone<F: FnOnce()>(body: F) {
    if let Some(ended) = alone(body) {
        let said = String::from_utf8_lossy(&ended.stdout);
        assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{}\n{said}", ended.status);
    }
}

/// Whom to become; `None` where only root could, which is an error where all tests have to run.
fn nobody() -> Option<User> {
    if geteuid().is_root() {
        return Some(User::find(NOBODY).unwrap());
    }
    assert!(std::env::var_os("CI").is_none(), "this test needs root");
    None
}

/// A folder that everybody may pass through, with `spool`, `served/file`, `beside` and a plan that serves `served`.
struct Place {
    folder: tempfile::TempDir,
    plan: Plan,
}

impl Place {
    fn new(endpoints: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["spool", "served"] {
            fs::create_dir(at(name)).unwrap();
            // For whoever it is that the test becomes.
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        for name in ["served/file", "beside"] {
            fs::write(at(name), "content").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o666)).unwrap();
        }
        let plan = plan(folder.path(), endpoints, "[served]");
        Self { folder, plan }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Result<String, ErrorKind> {
        fs::read_to_string(self.at(name)).map_err(|error| error.kind())
    }
}

fn plan(folder: &Path, endpoints: &str, files: &str) -> Plan {
    let files = files.replace('[', &format!("['{}/", folder.display())).replace(']', "']");
    let text = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}, {{ address: '127.0.0.1:0', tls: true }}]\n\
         tls: {{ storage: storage }}\n\
         spool: {{ path: spool, memory: 64KiB }}\n\
         workers: 2\n\
         upstreams: {{ app: {{ endpoints: [{endpoints}] }} }}\n\
         routes: [{{ prefix: /, upstream: app, files: {files} }}]\n"
    );
    let file = folder.join("vestibule.yml");
    config::parse(file.to_str().unwrap(), &text, &|_| None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn of_roots_rights_nothing_is_left() {
    let Some(user) = nobody() else { return };
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        // Opened now: it is not to be had later.
        let mut status = File::open("/proc/thread-self/status").unwrap();

        let weaknesses = enter(Some(&user), &place.plan).unwrap();

        assert_eq!(weaknesses, Vec::<String>::new());
        let mut text = String::new();
        status.rewind().unwrap();
        status.read_to_string(&mut text).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        let (uid, gid) = (user.uid().as_raw(), user.gid().as_raw());
        assert_eq!(field("Uid"), format!("{uid} {uid} {uid} {uid}"));
        assert_eq!(field("Gid"), format!("{gid} {gid} {gid} {gid}"));
        assert_eq!(field("Groups"), gid.to_string());
        assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    });
}

#[test]
fn a_core_dump_or_another_process_of_the_user_does_not_get_its_memory() {
    let Some(user) = nobody() else { return };
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        privileges::give_up(Some(&user)).unwrap();

        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
        assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Core).maximum, Some(0));
        // What the way to a file of `files` needs: where an open file is, and to open it once more.
        let file = File::open(place.at("served/file")).unwrap();
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(fs::read_link(&link).unwrap(), real(&place.at("served/file")));
        assert_eq!(fs::read_to_string(&link).unwrap(), "content");
    });
}

#[test]
fn who_stays_root_is_told_so() {
    if nobody().is_none() {
        return;
    }
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let weaknesses = enter(Some(&User::find("root").unwrap()), &place.plan).unwrap();
        assert!(matches!(&weaknesses[..], [only] if only.starts_with("user: ")), "{weaknesses:?}");
        assert!(place.read("beside").is_err());
    });
}

#[test]
fn a_worker_that_is_not_root_cannot_become_another_user() {
    let Some(user) = nobody() else { return };
    succeeds_alone(|| {
        privileges::give_up(Some(&user)).unwrap();
        let refused = privileges::give_up(Some(&User::find("daemon").unwrap())).unwrap_err().to_string();
        assert!(refused.contains("`user`"), "{refused}");
    });
}

#[test]
fn of_the_disk_only_what_is_served_can_be_read_and_only_the_spool_written() {
    let user = nobody();
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let spool = File::open(place.at("spool")).unwrap();

        enter(user.as_ref(), &place.plan).unwrap();

        assert_eq!(place.read("served/file").as_deref(), Ok("content"));
        let denied = |error: io::Error| assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        for beside in [place.at("beside"), "/etc/shadow".into(), "/etc/hosts".into(), "/proc/self/maps".into()] {
            denied(File::open(beside).unwrap_err());
        }
        denied(File::options().write(true).open(place.at("served/file")).unwrap_err());
        denied(File::create(place.at("served/new")).unwrap_err());
        denied(fs::read_dir(place.folder.path()).unwrap_err());

        let spool = Spool::new(spool.into(), 100, 1, Gauge::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut file = spool.file().await.unwrap();
            file.append(vec![bytes::Bytes::from_static(b"spooled")]).await.unwrap();
            let mut read = [0; 7];
            file.file().read_exact_at(&mut read, 0).unwrap();
            assert_eq!(&read, b"spooled");
        });
        // The way of file systems that know no files without a name.
        File::create_new(place.at("spool/named")).unwrap().write_all(b"x").unwrap();
        fs::remove_file(place.at("spool/named")).unwrap();
    });
}

#[test]
fn a_folder_that_is_not_there_does_not_keep_the_worker_from_its_work() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        fs::remove_dir_all(place.at("served")).unwrap();
        enter(None, &place.plan).unwrap();
    });
}

#[test]
fn without_its_spool_a_worker_does_not_start() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        fs::remove_dir_all(place.at("spool")).unwrap();
        let refused = enter(None, &place.plan).unwrap_err().to_string();
        assert_eq!(refused, format!("spool.path: cannot open {}", place.at("spool").display()));
    });
}

#[test]
fn where_endpoints_have_names_they_are_resolved_and_the_operator_is_told_what_that_opens() {
    let Some(user) = nobody() else { return };
    succeeds_alone(|| {
        let name = own_name();
        let place = Place::new(&format!("'{name}:1'"));

        let weaknesses = enter(Some(&user), &place.plan).unwrap();

        let expected = format!("upstreams.app.endpoints: `{name}` is a name");
        assert!(matches!(&weaknesses[..], [only] if only.starts_with(&expected)), "{weaknesses:?}");
        assert!((name.as_str(), 1).to_socket_addrs().unwrap().count() > 0);
        // The folder, so that a file which takes the place of another one is as good.
        fs::read_to_string("/etc/passwd").unwrap();
        assert!(File::open("/etc/shadow").is_err());
        assert!(place.read("beside").is_err());
        assert!(TcpListener::bind("127.0.0.1:0").is_err());
    });
}

#[test]
fn nothing_is_bound_and_no_process_begun_or_signalled() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let parent = rustix::process::getppid().unwrap();

        enter(None, &place.plan).unwrap();

        assert!(TcpListener::bind("127.0.0.1:0").is_err());
        let refused = Command::new("true").spawn().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSYS));
        assert_eq!(test_kill_process(parent), Err(Errno::NOSYS));
        assert_eq!(kill_process(parent, rustix::process::Signal::URG), Err(Errno::NOSYS));
        // Unlike a thread.
        assert_eq!(thread::spawn(|| 1).join().unwrap(), 1);
    });
}

#[test]
fn a_call_that_is_not_listed_is_answered_as_by_a_kernel_that_does_not_know_it() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        enter(None, &place.plan).unwrap();
        assert_eq!(memfd_create("test", MemfdFlags::empty()).unwrap_err(), Errno::NOSYS);
        assert_eq!(mkdirat(CWD, place.at("spool/folder"), Mode::RWXU).unwrap_err(), Errno::NOSYS);
    });
}

#[test]
fn of_calls_with_many_uses_only_those_of_traffic_are_made() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let parent = i64::from(rustix::process::getppid().unwrap().as_raw_nonzero().get());
        let library = File::open("/proc/self/exe").unwrap();
        enter(None, &place.plan).unwrap();

        let (own, thread) = (i64::from(std::process::id()), call(libc::SYS_gettid, []).unwrap());
        let stream = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        for (what, made) in [
            ("memory", map(READABLE | libc::PROT_WRITE, None)),
            ("a stream", socket(libc::AF_INET6, stream, 0)),
            ("a named stream", socket(libc::AF_INET, stream, libc::IPPROTO_TCP)),
            ("a signal to itself", call(libc::SYS_tgkill, [own, thread, 0])),
            ("its name", call(libc::SYS_prctl, [i64::from(libc::PR_SET_NAME), c"x".as_ptr() as i64])),
        ] {
            made.unwrap_or_else(|errno| panic!("{what}: {errno}"));
        }
        let fork = i64::from(libc::SIGCHLD);
        let elsewhere = i64::from(libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_NEWNET);
        for (what, made) in [
            ("code that can be written", map(READABLE | libc::PROT_WRITE | libc::PROT_EXEC, None)),
            ("code from nowhere", map(READABLE | libc::PROT_EXEC, None)),
            ("code from a file", map(READABLE | libc::PROT_EXEC, Some(&library))),
            ("memory into code", call(libc::SYS_mprotect, [0, 4096, i64::from(READABLE | libc::PROT_EXEC)])),
            ("a process", call(libc::SYS_clone, [fork])),
            ("a thread elsewhere", call(libc::SYS_clone, [elsewhere])),
            ("a process by the newest call", call(libc::SYS_clone3, [0, 0])),
            ("packets", socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
            ("raw packets", socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP)),
            ("datagrams", socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
            ("another protocol", socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)),
            ("a question to the kernel", socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)),
            ("memory for all to see", call(libc::SYS_prctl, [i64::from(libc::PR_SET_DUMPABLE), 1])),
            ("a signal to the keeper", call(libc::SYS_tgkill, [parent, parent, 0])),
            ("a limit of the keeper", call(libc::SYS_prlimit64, [parent, i64::from(libc::RLIMIT_NOFILE)])),
            ("signals by descriptor", call(libc::SYS_fcntl, [1, i64::from(libc::F_SETOWN), parent])),
            ("typing", call(libc::SYS_ioctl, [1, i64::try_from(libc::TIOCSTI).unwrap()])),
            ("an address", call(libc::SYS_bind, [0, 0, 0])),
        ] {
            assert_eq!(made, Err(Errno::NOSYS), "{what}");
        }
    });
}

#[test]
fn where_names_are_resolved_libraries_can_be_loaded_and_code_is_still_not_written() {
    succeeds_alone(|| {
        let place = Place::new(&format!("'{}:1'", own_name()));
        let library = File::open("/proc/self/exe").unwrap();
        enter(None, &place.plan).unwrap();

        map(READABLE | libc::PROT_EXEC, Some(&library)).unwrap();
        socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP).unwrap();
        socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE).unwrap();
        for (what, made) in [
            ("code that can be written", map(READABLE | libc::PROT_WRITE | libc::PROT_EXEC, Some(&library))),
            ("code from nowhere", map(READABLE | libc::PROT_EXEC, None)),
            ("another question", socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
        ] {
            assert_eq!(made, Err(Errno::NOSYS), "{what}");
        }
    });
}

const READABLE: libc::c_int = libc::PROT_READ;

/// Maps a page, of `file` or of nothing.
fn map(protection: libc::c_int, file: Option<&File>) -> Result<i64, Errno> {
    let (kind, descriptor) = file.map_or((libc::MAP_ANONYMOUS, -1), |file| (0, file.as_raw_fd()));
    let kind = libc::MAP_PRIVATE | kind;
    call(libc::SYS_mmap, [0, 4096, i64::from(protection), i64::from(kind), i64::from(descriptor), 0])
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> Result<i64, Errno> {
    call(libc::SYS_socket, [family, kind, protocol].map(i64::from))
}

/// Makes a system call, those that no library makes included.
#[allow(unsafe_code, reason = "there is no safe way to do what is not safe, and that it is refused is the claim")]
fn call<const N: usize>(number: i64, arguments: [i64; N]) -> Result<i64, Errno> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: what changes memory is refused, or maps a page that nobody had; pointers are null or live.
    let answer = unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) };
    if answer == -1 { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap()) } else { Ok(answer) }
}

#[test]
fn what_the_keeper_sends_is_received_and_what_it_is_told_is_sent() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (keeper, theirs) = Link::pair().unwrap();
            let worker = Link::over(theirs).unwrap();
            let descriptor = File::open(place.at("beside")).unwrap();
            keeper.send(&"message", &[descriptor.as_fd()]).await.unwrap();

            enter(None, &place.plan).unwrap();

            let (said, mut handed) = worker.receive::<String>().await.unwrap().unwrap();
            let opened = io::read_to_string(File::from(handed.remove(0))).unwrap();
            assert_eq!((said.as_str(), opened.as_str()), ("message", "content"));
            worker.say(Word::Ready).await.unwrap();
            assert_eq!(keeper.hear().await.unwrap(), Some(Ok(Word::Ready)));
        });
    });
}

#[test]
fn an_agent_says_what_is_long_as_well() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (keeper, theirs) = Link::pair().unwrap();
            let agent = Link::over(theirs).unwrap();
            enter_agent(&place.at("served")).unwrap();

            let said = "x".repeat(100 << 10);
            agent.send(&said, &[]).await.unwrap();
            assert!(keeper.listen::<String>().await.unwrap().unwrap() == said);
        });
    });
}

#[test]
fn an_agent_resolves_names_and_reads_no_more_than_that_takes_beside_its_storage() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let name = own_name();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        enter_agent(&place.at("served")).unwrap();

        assert!((name.as_str(), 1).to_socket_addrs().unwrap().count() > 0);
        fs::read_to_string("/etc/resolv.conf").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        fs::write(place.at("served/new"), "content").unwrap();
        fs::rename(place.at("served/new"), place.at("served/file")).unwrap();
        assert_eq!(place.read("served/file").as_deref(), Ok("content"));
        for beside in [place.at("beside"), "/etc/shadow".into(), "/etc/passwd".into(), "/proc/self/maps".into()] {
            assert_eq!(File::open(&beside).unwrap_err().kind(), ErrorKind::PermissionDenied, "{}", beside.display());
        }
    });
}

#[test]
fn an_agent_reaches_no_program_of_this_machine_by_a_unix_socket() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let _program = UnixListener::bind(place.at("served/app.sock")).unwrap();
        enter_agent(&place.at("served")).unwrap();

        assert!(UnixStream::connect(place.at("served/app.sock")).is_err());
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            assert_eq!(socket(libc::AF_UNIX, kind, 0), Err(Errno::NOSYS), "{kind}");
        }
        // Those of a pair of datagrams could be connected to another one.
        UnixStream::pair().unwrap();
        assert!(std::os::unix::net::UnixDatagram::pair().is_err());
    });
}

#[test]
fn unix_sockets_are_reached_by_path_and_not_by_an_abstract_name() {
    succeeds_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        let _named = UnixListener::bind(place.at("app.sock")).unwrap();
        let name = format!("vestibule-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let _abstract = UnixListener::bind_addr(&address).unwrap();

        enter(None, &place.plan).unwrap();

        UnixStream::connect(place.at("app.sock")).unwrap();
        assert_eq!(UnixStream::connect_addr(&address).unwrap_err().kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn another_program_in_its_place_ends_the_worker() {
    is_killed_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        enter(None, &place.plan).unwrap();
        panic!("{}", Command::new("true").exec());
    });
}

#[test]
fn to_become_root_again_ends_the_worker() {
    is_killed_alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        enter(nobody().as_ref(), &place.plan).unwrap();
        panic!("{:?}", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT));
    });
}

#[test]
fn a_traffic_thread_that_aborts_ends_by_that_and_not_by_the_filter() {
    if let Some(ended) = alone(|| {
        let place = Place::new("'127.0.0.1:1'");
        enter(None, &place.plan).unwrap();
        std::process::abort();
    }) {
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.status);
    }
}

#[test]
fn a_plan_that_needs_more_than_the_sandbox_lets_through_is_told_from_one_that_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir(at("c")).unwrap();
    symlink(at("c"), at("a/link")).unwrap();
    symlink(at("a"), at("same")).unwrap();
    let plan = |endpoints: &str, files: &str| plan(folder.path(), endpoints, files);
    let old = plan("'127.0.0.1:1'", "[a]");
    let lacking = |new: &Plan| covers(&old, new);

    for covered in ["[a]", "[a/b]", "[same]", "[same/b]"] {
        assert_eq!(lacking(&plan("'127.0.0.1:2', '[::1]:1', 'unix:/run/app'", covered)), Vec::<String>::new());
    }
    for new in ["c", "a/link", "absent"] {
        let lacking = lacking(&plan("'127.0.0.1:1'", &format!("[{new}]")));
        assert_eq!(lacking, [format!("routes[/].files: {} is new", at(new).display())]);
    }
    let mut elsewhere = plan("'127.0.0.1:1', 'app.internal:80'", "[a]");
    elsewhere.spool.path = at("other");
    assert_eq!(
        lacking(&elsewhere),
        [
            format!("spool.path: {} is new", at("other").display()),
            "upstreams.app.endpoints: `app.internal` is a name, and there was none to resolve before".to_owned(),
        ]
    );
    assert_eq!(covers(&elsewhere, &elsewhere), Vec::<String>::new());
    let mut follows = plan("'127.0.0.1:1'", "[a]");
    let stats = config::EndpointAddress::Tcp { host: "app.internal".to_owned(), port: 1717 };
    follows.upstreams.get_mut("app").unwrap().stats =
        vec![config::EndpointAddress::Unix("/run/stats.sock".into()), stats];
    assert_eq!(
        lacking(&follows),
        ["upstreams.app.stats: `app.internal` is a name, and there was none to resolve before"]
    );
}

#[test]
fn a_gateway_in_the_sandbox_serves_all_that_it_serves_outside() {
    let user = nobody();
    succeeds_alone(|| serves(user.as_ref(), "127.0.0.1"));
}

#[test]
fn a_gateway_in_the_sandbox_serves_all_that_it_serves_outside_from_an_endpoint_with_a_name() {
    let user = nobody();
    succeeds_alone(|| serves(user.as_ref(), &own_name()));
}

/// A name that this machine resolves without asking another one.
fn own_name() -> String {
    let name = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    assert!((name.as_str(), 1).to_socket_addrs().is_ok(), "{name} is not in /etc/hosts");
    name
}

/// As keeper and worker would: what is needed is gathered here, the gateway runs in a thread that is shut in.
fn serves(user: Option<&User>, host: &str) {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = application.local_addr().unwrap().port();
    let place = Place::new(&format!("'{host}:{port}'"));
    let file = place.at("served/file");
    thread::spawn(move || {
        for stream in application.incoming() {
            let file = file.clone();
            thread::spawn(move || answer(stream.unwrap(), &file));
        }
    });
    let plan = place.plan.clone();
    let mut provisions = Provisions::gather_beside(&plan, &mut Sockets::default(), None, user).unwrap();

    let certificate = provisions.materials[0].certificate.clone();
    let (started, addresses) = std::sync::mpsc::channel();
    let (mut end, mut told) = UnixStream::pair().unwrap();
    let worker_user = user.cloned();
    let worker = thread::spawn(move || {
        enter(worker_user.as_ref(), &plan).unwrap();
        provisions.files = keeper::roots(&plan, &provisions.denied).unwrap();
        let gateway = Gateway::start(plan, provisions, 1, &TicketKeys::generate().unwrap(), None).unwrap();
        started.send(gateway.addresses()).unwrap();
        told.read_exact(&mut [0]).unwrap();
        gateway.stop(Duration::from_secs(5)).is_nothing()
    });
    let addresses: Vec<SocketAddr> = addresses.recv().unwrap().iter().map(tcp).collect();

    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let http = |request: &[u8]| exchange(TcpStream::connect(addresses[0]).unwrap(), request);

    assert!(http(get("/hello").as_bytes()).ends_with("\r\n\r\n/hello 0"));
    assert!(http(get("/file").as_bytes()).ends_with("\r\n\r\ncontent"));
    // Both ways over the bytes of a body that are kept in memory.
    let body = "x".repeat(1 << 20);
    let head = format!("POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    assert!(http((head + &body).as_bytes()).ends_with(&format!("\r\n\r\n{body}")));
    let upgrade = "GET /tunnel HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nping";
    assert!(http(upgrade.as_bytes()).ends_with("\r\n\r\nping"));
    let answered = exchange(tls(TcpStream::connect(addresses[1]).unwrap(), &certificate), get("/hello").as_bytes());
    assert!(answered.ends_with("\r\n\r\n/hello 0"), "{answered}");

    end.write_all(&[0]).unwrap();
    assert!(worker.join().unwrap());
}

fn tcp(address: &ListenAddress) -> SocketAddr {
    match address {
        ListenAddress::Tcp(address) => *address,
        other => panic!("{other}"),
    }
}

/// Writes `request` and reads to the end.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> String {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// A client that believes the `certificate` in PEM.
fn tls(stream: TcpStream, certificate: &[u8]) -> impl Read + Write {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate).unwrap()).unwrap();
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    rustls::StreamOwned::new(rustls::ClientConnection::new(Arc::new(client), name).unwrap(), stream)
}

/// The application: names `file`, sends a body back, or becomes a tunnel that ends after four bytes.
fn answer(mut stream: TcpStream, file: &Path) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let path = head.split(' ').nth(1).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let answer = |fields: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let answer = match path {
        "/file" => answer(&format!("X-Sendfile: {}\r\n", file.display()), ""),
        "/echo" => answer("", std::str::from_utf8(&body).unwrap()),
        "/tunnel" => {
            let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
            write!(stream, "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{accept}\r\n\r\n").unwrap();
            let mut four = vec![0; 4];
            stream.read_exact(&mut four).unwrap();
            String::from_utf8(four).unwrap()
        }
        path => answer("", &format!("{path} {length}")),
    };
    stream.write_all(answer.as_bytes()).unwrap();
}
