//! What happens a thousand times a second and is told once a minute.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// One thing to tell; shared by all threads.
#[derive(Debug, Default)]
pub struct Notice {
    /// When it is to be told again at the earliest, in milliseconds since [`BEGIN`].
    next: AtomicU64,
    untold: AtomicU64,
}

impl Notice {
    pub const fn new() -> Self {
        Self { next: AtomicU64::new(0), untold: AtomicU64::new(0) }
    }

    /// It has happened once more. If it is time to tell of it: how often it has since that was done last.
    pub fn happened(&self) -> Option<u64> {
        self.untold.fetch_add(1, Relaxed);
        let now = u64::try_from(BEGIN.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Relaxed);
        let then = now.saturating_add(u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX));
        // Of threads that come here at once, one tells.
        let ours = now >= next && self.next.compare_exchange(next, then, Relaxed, Relaxed).is_ok();
        ours.then(|| self.untold.swap(0, Relaxed))
    }
}

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
const PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_and_then_not_for_a_minute() {
        let notice = Notice::default();

        assert_eq!(notice.happened(), Some(1));
        assert_eq!((notice.happened(), notice.happened()), (None, None));
        notice.next.store(0, Relaxed);
        assert_eq!(notice.happened(), Some(3));
    }
}
