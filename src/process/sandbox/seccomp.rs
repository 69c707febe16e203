//! The system calls that a worker makes, and an agent.
//!
//! Two filters. One ends the process, and the keeper says so, at a call that nobody makes by mistake: starting a program,
//! tracing another process, mounting, becoming somebody. The other lets through what traffic takes, and answers all else
//! `ENOSYS`, as a kernel does that is older than the call: libraries try newer calls first and go on with older ones, and
//! one that a newer library begins to make should cost its speed, not the site.
//!
//! Where a call is let through whatever its arguments, the kernel remembers that and runs no filter: the calls of a
//! request are among them.

use std::collections::BTreeMap;

use libc::{self as c, c_int, c_long};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// What decides which calls are needed.
pub(super) struct Calls {
    /// Names are resolved.
    pub(super) names: bool,
    /// Files of the storage are written, replaced and locked.
    pub(super) storage: bool,
}

impl Calls {
    /// Lets this thread, and those it begins, make no other calls; answers why it could not be.
    pub(super) fn restrict(&self) -> Result<Option<String>, Error> {
        let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else {
            let weakness = "the worker may make any system call: there is no list of them for this kind of processor";
            return Ok(Some(weakness.to_owned()));
        };
        for filter in self.filters(architecture)? {
            match seccompiler::apply_filter(&filter) {
                Err(Error::Seccomp(error)) if matches!(error.raw_os_error(), Some(c::ENOSYS | c::EINVAL)) => {
                    let weakness = "the worker may make any system call: the kernel has no seccomp filters";
                    return Ok(Some(weakness.to_owned()));
                }
                applied => applied?,
            }
        }
        Ok(None)
    }

    fn filters(&self, architecture: TargetArch) -> Result<[BpfProgram; 2], Error> {
        let fatal = FATAL.iter().map(|call| (*call, Vec::new())).collect();
        let (allow, kill) = (SeccompAction::Allow, SeccompAction::KillProcess);
        let fatal = SeccompFilter::new(fatal, allow, kill, architecture)?;
        let absent = SeccompAction::Errno(c::ENOSYS.unsigned_abs());
        let allowed = SeccompFilter::new(self.allowed()?, absent, SeccompAction::Allow, architecture)?;
        Ok([fatal.try_into()?, allowed.try_into()?])
    }

    fn allowed(&self) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, Error> {
        let plain = ALLOWED.iter().flat_map(|group| *group);
        let mut calls: BTreeMap<c_long, Vec<SeccompRule>> = plain.map(|call| (*call, Vec::new())).collect();
        if self.names {
            calls.extend(RESOLVER.iter().map(|call| (*call, Vec::new())));
        }
        if self.storage {
            calls.extend(STORAGE.iter().map(|call| (*call, Vec::new())));
        }
        for (call, rules) in self.conditional() {
            let rules = rules.into_iter().map(SeccompRule::new).collect::<Result<_, _>>()?;
            calls.insert(call, rules);
        }
        Ok(calls)
    }

    /// Calls that depend on their arguments: any of the rules, all conditions of it.
    fn conditional(&self) -> Vec<(c_long, Vec<Vec<SeccompCondition>>)> {
        let mut fcntl = any_of(1, &FCNTL.map(bits));
        let mut calls = Vec::new();
        if self.storage {
            // What is long is said to the keeper in sealed memory.
            fcntl.push(vec![equal(1, bits(c::F_ADD_SEALS))]);
            calls.push((c::SYS_memfd_create, any_of(1, &[u64::from(c::MFD_CLOEXEC | c::MFD_ALLOW_SEALING)])));
        }
        calls.extend([
            (c::SYS_mmap, self.mappings()),
            // What has been written does not become code.
            (c::SYS_mprotect, vec![vec![masked(2, bits(c::PROT_EXEC), 0)]]),
            (c::SYS_clone, vec![vec![masked(0, THREAD | NAMESPACES, THREAD)]]),
            (c::SYS_socket, self.sockets()),
            // For the signals of the runtime, within this process. Not datagrams, which could be connected to another one.
            (c::SYS_socketpair, vec![vec![equal(0, bits(c::AF_UNIX)), masked(1, SOCKET_KIND, bits(c::SOCK_STREAM))]]),
            (c::SYS_ioctl, any_of(1, &[c::FIONBIO, c::FIONREAD, c::TCGETS, c::TIOCGWINSZ])),
            (c::SYS_fcntl, fcntl),
            (c::SYS_prctl, any_of(0, &PRCTL.map(bits))),
            // `abort`, and with it a panic in a panic.
            (c::SYS_tgkill, any_of(0, &[u64::from(std::process::id())])),
            // The limit of open files is raised; not that of another process.
            (c::SYS_prlimit64, any_of(0, &[0])),
        ]);
        calls
    }

    /// Memory that can be written or executed, never both; and executed only where libraries may have to be loaded.
    fn mappings(&self) -> Vec<Vec<SeccompCondition>> {
        let mut rules = vec![vec![masked(2, bits(c::PROT_EXEC), 0)]];
        if self.names {
            let code = masked(2, bits(c::PROT_EXEC | c::PROT_WRITE), bits(c::PROT_EXEC));
            rules.push(vec![code, masked(3, bits(c::MAP_ANONYMOUS), 0)]);
        }
        rules
    }

    /// Streams to endpoints; where names are resolved, questions to name servers, and to the kernel about its addresses.
    ///
    /// None to programs of this machine for who keeps the storage: most of them do what root says, and it is root by name
    /// still. glibc asks `nscd` and `systemd-resolved` by one, and goes on without them.
    fn sockets(&self) -> Vec<Vec<SeccompCondition>> {
        let mut rules = Vec::new();
        if !self.storage {
            rules.push(vec![equal(0, bits(c::AF_UNIX))]);
        }
        let mut kinds = vec![(c::SOCK_STREAM, c::IPPROTO_TCP)];
        if self.names {
            kinds.push((c::SOCK_DGRAM, c::IPPROTO_UDP));
            rules.push(vec![equal(0, bits(c::AF_NETLINK)), equal(2, bits(c::NETLINK_ROUTE))]);
        }
        for family in [c::AF_INET, c::AF_INET6] {
            for &(kind, protocol) in &kinds {
                // Not a raw socket, nor a protocol whose module would be loaded for it.
                for protocol in [0, protocol] {
                    let kind = masked(1, SOCKET_KIND, bits(kind));
                    rules.push(vec![equal(0, bits(family)), kind, equal(2, bits(protocol))]);
                }
            }
        }
        rules
    }
}

/// Rules for an argument that is one of `values`.
fn any_of(argument: u8, values: &[u64]) -> Vec<Vec<SeccompCondition>> {
    values.iter().map(|value| vec![equal(argument, *value)]).collect()
}

fn equal(argument: u8, value: u64) -> SeccompCondition {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> SeccompCondition {
    condition(argument, SeccompCmpOp::MaskedEq(mask), value)
}

/// All of these arguments are 32 bits wide to the kernel, or have no flag above them.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).expect("no call has that many arguments")
}

/// A constant of C as the kernel gets it.
fn bits(constant: c_int) -> u64 {
    u64::from(constant.cast_unsigned())
}

/// A thread, and not a process.
///
/// glibc tries `clone3` first, whose flags no filter can see. It is answered `ENOSYS` as all that is not named here, and
/// glibc goes on with `clone`.
const THREAD: u64 = c::CLONE_THREAD as u64 | c::CLONE_VM as u64;

/// That a thread could leave the process's own for.
const NAMESPACES: u64 = c::CLONE_NEWNS as u64
    | c::CLONE_NEWCGROUP as u64
    | c::CLONE_NEWUTS as u64
    | c::CLONE_NEWIPC as u64
    | c::CLONE_NEWUSER as u64
    | c::CLONE_NEWPID as u64
    | c::CLONE_NEWNET as u64;

/// The kind of a socket beside the flags that are given with it.
const SOCKET_KIND: u64 = 0xf;

/// Duplicates, flags, and the size of a pipe. Not signals to other processes at what happens to a descriptor, leases or
/// watches.
const FCNTL: [c_int; 8] =
    [c::F_DUPFD, c::F_DUPFD_CLOEXEC, c::F_GETFD, c::F_SETFD, c::F_GETFL, c::F_SETFL, c::F_GET_SEALS, c::F_SETPIPE_SZ];

/// Names of threads, and of memory in `/proc`.
const PRCTL: [c_int; 3] = [c::PR_SET_NAME, c::PR_GET_NAME, c::PR_SET_VMA];

/// Let through whatever their arguments.
const ALLOWED: &[&[c_long]] = &[MEMORY, THREADS, SIGNALS, FILES, NETWORK, WAITING, CLOCKS, IDENTITY, SYSTEM, OLD];

/// The allocator, and stacks of threads.
const MEMORY: &[c_long] = &[c::SYS_brk, c::SYS_munmap, c::SYS_mremap, c::SYS_madvise];

/// What std, tokio and the locks of both make of a thread, from its beginning to its end.
const THREADS: &[c_long] = &[
    c::SYS_futex,
    c::SYS_set_robust_list,
    c::SYS_rseq,
    c::SYS_membarrier,
    c::SYS_sched_yield,
    c::SYS_sched_getaffinity,
    c::SYS_getcpu,
    c::SYS_exit,
    c::SYS_exit_group,
];

/// Handlers of this process: nothing here sends a signal.
const SIGNALS: &[c_long] =
    &[c::SYS_rt_sigaction, c::SYS_rt_sigprocmask, c::SYS_rt_sigreturn, c::SYS_sigaltstack, c::SYS_restart_syscall];

/// Spooled bodies, files of `files`, the access log, messages of the keeper. Which files, landlock and the user decide.
///
/// None to rename, to link, or to change modes, owners or times; one to remove, for spools on file systems that know no
/// files without a name.
const FILES: &[c_long] = &[
    c::SYS_openat,
    c::SYS_openat2,
    c::SYS_close,
    c::SYS_read,
    c::SYS_readv,
    c::SYS_pread64,
    c::SYS_preadv,
    c::SYS_preadv2,
    c::SYS_write,
    c::SYS_writev,
    c::SYS_pwrite64,
    c::SYS_pwritev,
    c::SYS_pwritev2,
    c::SYS_sendfile,
    c::SYS_splice,
    c::SYS_lseek,
    c::SYS_ftruncate,
    c::SYS_fallocate,
    c::SYS_fadvise64,
    c::SYS_fsync,
    c::SYS_fdatasync,
    c::SYS_fstat,
    c::SYS_newfstatat,
    c::SYS_statx,
    c::SYS_faccessat,
    c::SYS_faccessat2,
    c::SYS_readlinkat,
    c::SYS_getcwd,
    c::SYS_getdents64,
    c::SYS_unlinkat,
    c::SYS_dup,
    c::SYS_dup3,
];

/// Connections that are accepted and made, and the link to the keeper. Sockets that listen come from there.
const NETWORK: &[c_long] = &[
    c::SYS_accept4,
    c::SYS_connect,
    c::SYS_shutdown,
    c::SYS_sendto,
    c::SYS_sendmsg,
    c::SYS_recvfrom,
    c::SYS_recvmsg,
    c::SYS_getsockopt,
    c::SYS_setsockopt,
    c::SYS_getsockname,
    c::SYS_getpeername,
];

/// glibc asks several name servers in one call, and binds the socket by which it asks the kernel for our addresses.
///
/// That call would bind others too: landlock refuses what is TCP.
const RESOLVER: &[c_long] = &[c::SYS_bind, c::SYS_sendmmsg, c::SYS_recvmmsg];

/// Folders that are made, and files that take the place of others whole. Which, landlock decides.
const STORAGE: &[c_long] = &[
    c::SYS_mkdirat,
    c::SYS_renameat,
    c::SYS_renameat2,
    c::SYS_flock,
    #[cfg(target_arch = "x86_64")]
    c::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    c::SYS_rename,
];

/// The runtimes of tokio.
const WAITING: &[c_long] = &[
    c::SYS_epoll_create1,
    c::SYS_epoll_ctl,
    c::SYS_epoll_pwait,
    c::SYS_epoll_pwait2,
    c::SYS_eventfd2,
    c::SYS_pipe2,
    c::SYS_ppoll,
];

/// Where the kernel does not answer without a call, and sleep.
const CLOCKS: &[c_long] =
    &[c::SYS_clock_gettime, c::SYS_clock_getres, c::SYS_clock_nanosleep, c::SYS_gettimeofday, c::SYS_nanosleep];

/// Who we are: libraries ask before they believe the environment. To become somebody else ends the process.
const IDENTITY: &[c_long] = &[
    c::SYS_getpid,
    c::SYS_gettid,
    c::SYS_getppid,
    c::SYS_getuid,
    c::SYS_geteuid,
    c::SYS_getgid,
    c::SYS_getegid,
    c::SYS_getgroups,
    c::SYS_getresuid,
    c::SYS_getresgid,
];

/// Random numbers for TLS, the machine's name for the resolver, its memory and our use of it.
const SYSTEM: &[c_long] = &[c::SYS_getrandom, c::SYS_uname, c::SYS_sysinfo, c::SYS_getrusage];

/// What glibc, mio and mimalloc still call by its oldest number on the oldest of the architectures.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    c::SYS_open,
    c::SYS_stat,
    c::SYS_lstat,
    c::SYS_access,
    c::SYS_readlink,
    c::SYS_unlink,
    c::SYS_dup2,
    c::SYS_poll,
    c::SYS_epoll_wait,
    c::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// What ends the process: no library that we use makes one of them, whatever it falls back on.
const FATAL: &[c_long] = &[
    // Another program in our place.
    c::SYS_execve,
    c::SYS_execveat,
    // Another process's memory and descriptors.
    c::SYS_ptrace,
    c::SYS_process_vm_readv,
    c::SYS_process_vm_writev,
    c::SYS_pidfd_getfd,
    c::SYS_kcmp,
    // Another view of the file system.
    c::SYS_mount,
    c::SYS_umount2,
    c::SYS_move_mount,
    c::SYS_open_tree,
    c::SYS_fsopen,
    c::SYS_fsconfig,
    c::SYS_fsmount,
    c::SYS_fspick,
    c::SYS_mount_setattr,
    c::SYS_pivot_root,
    c::SYS_chroot,
    c::SYS_setns,
    c::SYS_unshare,
    c::SYS_mknodat,
    // Past the names of files, and with them past landlock.
    c::SYS_open_by_handle_at,
    c::SYS_name_to_handle_at,
    // Another user, or more rights.
    c::SYS_setuid,
    c::SYS_setreuid,
    c::SYS_setresuid,
    c::SYS_setfsuid,
    c::SYS_setgid,
    c::SYS_setregid,
    c::SYS_setresgid,
    c::SYS_setfsgid,
    c::SYS_setgroups,
    c::SYS_capset,
    c::SYS_personality,
    // Parts of the kernel that attacks on it begin with.
    c::SYS_bpf,
    c::SYS_perf_event_open,
    c::SYS_userfaultfd,
    c::SYS_io_uring_setup,
    c::SYS_io_uring_enter,
    c::SYS_io_uring_register,
    c::SYS_keyctl,
    c::SYS_add_key,
    c::SYS_request_key,
    // The machine.
    c::SYS_init_module,
    c::SYS_finit_module,
    c::SYS_delete_module,
    c::SYS_kexec_load,
    c::SYS_kexec_file_load,
    c::SYS_reboot,
    c::SYS_swapon,
    c::SYS_swapoff,
    c::SYS_acct,
    c::SYS_quotactl,
    c::SYS_syslog,
    c::SYS_sethostname,
    c::SYS_setdomainname,
    c::SYS_settimeofday,
    c::SYS_clock_settime,
    c::SYS_adjtimex,
    c::SYS_clock_adjtime,
    #[cfg(target_arch = "x86_64")]
    c::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    c::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    c::SYS_modify_ldt,
];
