//! How much memory we have, and how much there may be.
//!
//! What is measured is what the kernel says this process has for itself, up to forty times a second, and not what we believe to have
//! allocated: buffers of libraries and what the allocator keeps count as well.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::config::LimitsPlan;

/// What was measured last.
#[derive(Debug, Default)]
pub struct Memory(AtomicU64);

/// How the memory stands against its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    None,
    /// New clients are told to come later.
    High,
    /// They are closed unread, since even telling them takes memory, and no more is begun for those who are here.
    Full,
}

impl Memory {
    /// Bytes, as they were measured last.
    pub fn used(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Measures again.
    pub fn measure(&self) {
        // Where it cannot be measured there is no bound.
        self.0.store(STATM.as_ref().and_then(private_bytes).unwrap_or(0), Relaxed);
    }

    /// How long the last measure is good for: the nearer to the bound, the shorter, since a flood takes a hundred megabytes a
    /// second.
    pub fn rests(&self, limits: &LimitsPlan) -> Duration {
        if self.used() < bound(limits) / 2 { LOOK } else { LOOK / 10 }
    }

    /// What is done about one more connection, or request, where there are `open` ones.
    pub fn pressure(&self, limits: &LimitsPlan, open: usize) -> Pressure {
        let (used, limit) = (self.used(), bound(limits));
        if open <= ALWAYS_LET_IN || used < limit {
            // What so few have not taken is not got back by refusing them.
            Pressure::None
        } else if used < limit.saturating_add(limit / 8) {
            Pressure::High
        } else {
            Pressure::Full
        }
    }
}

/// Bytes that `limits.memory` is; without a bound where `auto` cannot be told.
pub fn bound(limits: &LimitsPlan) -> u64 {
    limits.memory.unwrap_or(*HALF)
}

/// Opens what is measured by, which cannot be opened from within the sandbox.
pub fn open() {
    LazyLock::force(&STATM);
    LazyLock::force(&PAGE);
    LazyLock::force(&HALF);
}

static STATM: LazyLock<Option<File>> = LazyLock::new(|| File::open("/proc/self/statm").ok());
/// Bytes of a page.
static PAGE: LazyLock<u64> = LazyLock::new(|| rustix::param::page_size() as u64);
/// Half of what there is.
static HALF: LazyLock<u64> = LazyLock::new(|| available(Path::new("/")).map_or(u64::MAX, |bytes| bytes / 2));

/// What this process has in memory and shares with no file: `resident` less `shared`.
fn private_bytes(statm: &File) -> Option<u64> {
    let mut text = [0; 128];
    let read = statm.read_at(&mut text, 0).ok()?;
    let mut pages = std::str::from_utf8(&text[..read]).ok()?.split(' ').skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * *PAGE)
}

/// Bytes of memory of the machine, or of the control group, where that is allowed less. `root` is `/`.
fn available(root: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(root.join(file)).ok();
    let total = read("proc/meminfo")?
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())?
        .saturating_mul(1024);
    // `max` where there is no limit, which is not a number. Groups above may be allowed less still.
    let own = read("proc/self/cgroup")
        .unwrap_or_default()
        .lines()
        .find_map(|line| Some(line.strip_prefix("0::/")?.to_owned()));
    let own = own.unwrap_or_default();
    let groups = Path::new(&own)
        .ancestors()
        .filter_map(|group| read(Path::new("sys/fs/cgroup").join(group).join("memory.max").to_str()?));
    let old = read("sys/fs/cgroup/memory/memory.limit_in_bytes");
    groups.chain(old).filter_map(|text| text.trim().parse().ok()).chain([total]).min()
}

/// How often the memory is measured where there is enough.
const LOOK: Duration = Duration::from_millis(250);
/// With so many connections, or fewer, no client is refused for the memory's sake.
const ALWAYS_LET_IN: usize = 64;

#[cfg(test)]
mod tests {
    use super::{super::tests::limits, *};

    #[test]
    fn what_a_process_has_is_measured() {
        let memory = Memory::default();
        memory.measure();
        let before = memory.used();
        let much = vec![1_u8; 64 << 20];
        memory.measure();

        assert!(before > 0 && memory.used() >= before + (60 << 20), "{before} {}", memory.used());
        drop(much);
    }

    #[test]
    fn the_least_of_machine_and_control_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:        4194304 kB\nMemFree: 1 kB\n");
        write("proc/self/cgroup", "0::/system.slice/vestibule.service\n");
        assert_eq!(available(root.path()), Some(4 << 30));
        write("sys/fs/cgroup/system.slice/vestibule.service/memory.max", "max\n");
        assert_eq!(available(root.path()), Some(4 << 30));
        write("sys/fs/cgroup/system.slice/memory.max", "1073741824\n");
        assert_eq!(available(root.path()), Some(1 << 30));
    }

    #[test]
    fn pressure_begins_at_the_bound_and_spares_the_first_connections() {
        let limits = limits("memory: 800MiB");
        let at = |mebibytes: u64, open| Memory(AtomicU64::new(mebibytes << 20)).pressure(&limits, open);

        assert_eq!((at(799, 1000), at(800, 1000)), (Pressure::None, Pressure::High));
        assert_eq!((at(899, 1000), at(900, 1000)), (Pressure::High, Pressure::Full));
        assert_eq!(at(5000, 64), Pressure::None);
    }
}
