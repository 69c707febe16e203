//! Memory that was freed goes back to the system, which mimalloc sees to only while it is asked for more: what a burst
//! has left behind would stay for as long as it is quiet.
//!
//! The one module that calls the allocator by another way than through Rust's own.

use std::time::{Duration, Instant};

// The library that has the symbol.
use mimalloc as _;

/// Gives back what this thread has freed, and what lies free among all threads.
#[allow(unsafe_code, reason = "the crate has no safe function for it")]
pub(crate) fn give_back() {
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: it takes no pointer, may be called by any thread at any time, and does nothing but free what is free. Where
    // another allocator is in force, as in tests, there is nothing.
    unsafe { mi_collect(true) }
}

/// Lets go of the program's own pages, most of which nobody needs after a start: what was used once, and what the system has
/// mapped around it, counts as ours for as long as we live. What is used again comes back from the file's cache.
#[allow(unsafe_code, reason = "nothing safe tells where the program lies")]
pub(crate) fn let_go_of_code() {
    unsafe extern "C" {
        // Of the linker: nothing between them is ever written to, relocations included.
        static __executable_start: u8;
        static etext: u8;
    }
    let start = &raw const __executable_start;
    let length = (&raw const etext).addr().saturating_sub(start.addr());
    let length = length - length % rustix::param::page_size();
    // SAFETY: these pages are as they are in the file, which nobody can write to while it runs; they are read from there
    // again. It is advice: where it is refused, nothing has changed.
    unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) };
}

/// When it is worth it on a thread with a runtime of its own: once it has become quiet after it was busy.
pub(crate) struct Quiet {
    looked: Instant,
    busy: Duration,
    /// How busy it was since memory was last given back.
    since: Duration,
}

impl Quiet {
    /// To be called now and then with how long the thread has been busy in all.
    pub(crate) fn look(&mut self, busy: Duration) {
        let (now, lately) = (Instant::now(), busy.saturating_sub(self.busy));
        let is_quiet = lately < now.duration_since(self.looked) / QUIET;
        (self.looked, self.busy) = (now, busy);
        self.since += lately;
        if is_quiet && self.since >= WORTH_IT {
            self.since = Duration::ZERO;
            give_back();
        }
    }
}

impl Default for Quiet {
    fn default() -> Self {
        Self { looked: Instant::now(), busy: Duration::ZERO, since: Duration::ZERO }
    }
}

/// A thread is quiet that has been busy for less than this part of a while.
const QUIET: u32 = 20;
/// A thread that did less leaves next to nothing behind; giving it back takes less than a millisecond.
const WORTH_IT: Duration = Duration::from_millis(20);
