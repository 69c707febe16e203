//! Disk for bodies that do not fit in memory: unlinked files, bounded in all.
//!
//! The directory is given as a descriptor. A file in it has no name, so that nothing is left behind
//! however we end, and nobody else can open it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use tokio::runtime::Handle;

use crate::{disk::off_thread, metrics::Gauge, splice::Pipe};

/// The space for spooled bodies, shared by all cores.
#[derive(Debug)]
pub struct Spool {
    directory: OwnedFd,
    /// Device and inode of the directory.
    identity: Option<(u64, u64)>,
    limit: AtomicU64,
    memory: AtomicUsize,
    /// What of `memory` there is room for.
    rationed: AtomicUsize,
    used: AtomicU64,
    gauge: Gauge,
}

/// Why a body could not be put on disk.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the spool is full: `spool.limit` is {0} bytes")]
    Full(u64),
    #[error("cannot write to `spool.path`")]
    Io(#[from] io::Error),
}

impl Spool {
    /// `limit` bounds the bytes on disk over all bodies, `memory` the bytes of one body before it goes there.
    pub fn new(directory: OwnedFd, limit: u64, memory: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            identity: identity(&directory),
            directory,
            limit: AtomicU64::new(limit),
            memory: AtomicUsize::new(memory),
            rationed: AtomicUsize::new(memory),
            used: AtomicU64::new(0),
            gauge,
        })
    }

    /// Whether `directory` is the one that bodies are put in.
    pub fn is_in(&self, directory: &OwnedFd) -> bool {
        self.identity.is_some() && self.identity == identity(directory)
    }

    /// Changes both bounds for bodies to come; those that are there stay.
    pub fn resize(&self, limit: u64, memory: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.memory.store(memory, Ordering::Relaxed);
        self.rationed.store(memory, Ordering::Relaxed);
    }

    /// Bytes of one body that are kept in memory.
    pub fn memory(&self) -> usize {
        self.rationed.load(Ordering::Relaxed)
    }

    /// From now on keeps so much in memory as there is memory left: all of a body's part while no more than half of `bound` is
    /// `used`, and less and less from there on, so that those who have much waiting do not take what others need to come in.
    pub fn ration(&self, used: u64, bound: u64) {
        let (half, left) = (u128::from(bound / 2).max(1), u128::from(bound.saturating_sub(used)));
        let memory = self.memory.load(Ordering::Relaxed);
        let part = memory as u128 * left.min(half) / half;
        let part = usize::try_from(part).unwrap_or(memory).max(LEAST.min(memory));
        self.rationed.store(part, Ordering::Relaxed);
    }

    /// Bytes on disk now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Makes an empty file without a name, off the traffic thread: a file system that is asked for many has to look for room.
    pub async fn file(self: &Arc<Self>) -> Result<SpoolFile, SpoolError> {
        let spool = Arc::clone(self);
        let file = off_thread(move || spool.unnamed()).await?;
        Ok(SpoolFile { file: Arc::new(file), length: 0, reserved: 0, spool: Arc::clone(self) })
    }

    fn unnamed(&self) -> io::Result<File> {
        let mode = Mode::RUSR | Mode::WUSR;
        let unnamed = openat(self.directory.as_fd(), ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode);
        match unnamed {
            Ok(descriptor) => return Ok(File::from(descriptor)),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // Some file systems (NFS, overlayfs of old kernels) have no O_TMPFILE.
        let name = format!(".vestibule-{:016x}", fastrand::u64(..));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let descriptor = openat(self.directory.as_fd(), &name, flags, mode)?;
        unlinkat(self.directory.as_fd(), &name, AtFlags::empty())?;
        Ok(File::from(descriptor))
    }

    fn reserve(&self, bytes: u64) -> Result<(), SpoolError> {
        let limit = self.limit.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .map_err(|_| SpoolError::Full(limit))?;
        self.gauge.add(bytes);
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.gauge.sub(bytes);
    }
}

/// What tells a directory from all others.
fn identity(directory: &OwnedFd) -> Option<(u64, u64)> {
    rustix::fs::fstat(directory).ok().map(|found| (found.st_dev, found.st_ino))
}

/// A spooled body; its space is given back when it is dropped.
#[derive(Debug)]
pub struct SpoolFile {
    file: Arc<File>,
    length: u64,
    /// Bytes taken from the spool's limit: more than `length` while some are on their way.
    reserved: u64,
    spool: Arc<Spool>,
}

impl SpoolFile {
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds what `pipe` holds at the end, off the traffic thread.
    ///
    /// On an error nothing has been added. Cancelled, it leaves a file that is only fit to be dropped.
    pub async fn append_from(&mut self, pipe: &mut Pipe) -> Result<(), SpoolError> {
        let bytes = pipe.held() as u64;
        self.reserve(bytes)?;
        let spilled = pipe.spill(Arc::clone(&self.file), self.length).await;
        self.appended(bytes, spilled)
    }

    /// Adds `chunks` at the end, off the traffic thread: a disk that is behind must not stop other connections.
    ///
    /// On an error nothing has been added. Cancelled, it leaves a file that is only fit to be dropped.
    pub async fn append(&mut self, chunks: Vec<Bytes>) -> Result<(), SpoolError> {
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if bytes == 0 {
            return Ok(());
        }
        self.reserve(bytes)?;
        let (file, start) = (Arc::clone(&self.file), self.length);
        let written = off_thread(move || {
            let mut at = start;
            for chunk in chunks {
                file.write_all_at(&chunk, at)?;
                at += chunk.len() as u64;
            }
            Ok(())
        })
        .await;
        self.appended(bytes, written)
    }

    /// Takes room for `bytes`; before any wait, which a client that goes may end.
    fn reserve(&mut self, bytes: u64) -> Result<(), SpoolError> {
        self.spool.reserve(bytes)?;
        self.reserved += bytes;
        Ok(())
    }

    fn appended(&mut self, bytes: u64, written: io::Result<()>) -> Result<(), SpoolError> {
        match written {
            Ok(()) => {
                self.length += bytes;
                Ok(())
            }
            Err(error) => {
                self.reserved -= bytes;
                self.spool.release(bytes);
                Err(error.into())
            }
        }
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        self.spool.release(self.reserved);
        // Whoever closes it last waits until its blocks are given back.
        if let Ok(runtime) = Handle::try_current() {
            let file = Arc::clone(&self.file);
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

/// A body so small is kept in memory in any case.
const LEAST: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(limit: u64) -> Arc<Spool> {
        Spool::new(File::open(std::env::temp_dir()).unwrap().into(), limit, 16, Gauge::default())
    }

    #[test]
    fn the_less_memory_is_left_the_less_of_a_body_is_kept_there() {
        let spool = Spool::new(File::open(std::env::temp_dir()).unwrap().into(), 10, 256 * 1024, Gauge::default());
        let rationed = |used| {
            spool.ration(used, 1000);
            spool.memory() / 1024
        };

        assert_eq!([0, 500, 600, 750, 999, 5000].map(rationed), [256, 256, 204, 128, 16, 16]);
        spool.ration(0, u64::MAX);
        assert_eq!(spool.memory(), 256 * 1024);
        spool.resize(10, 1024);
        assert_eq!([0, 999].map(rationed), [1, 1]);
    }

    #[tokio::test]
    async fn a_full_spool_refuses_and_keeps_what_it_has() {
        let spool = spool(10);
        let mut file = spool.file().await.unwrap();
        file.append(vec![Bytes::from_static(b"12345678")]).await.unwrap();

        let refused = file.append(vec![Bytes::from_static(b"9ab")]).await;

        assert!(matches!(refused, Err(SpoolError::Full(10))), "{refused:?}");
        assert_eq!((file.length(), spool.used()), (8, 8));
    }

    #[tokio::test]
    async fn space_is_given_back_when_a_write_is_cancelled() {
        let spool = spool(10);
        let mut file = spool.file().await.unwrap();
        {
            let append = std::pin::pin!(file.append(vec![Bytes::from_static(b"12345678")]));
            assert!(futures_util::poll!(append).is_pending());
        }

        drop(file);

        assert_eq!(spool.used(), 0);
    }

    #[tokio::test]
    async fn space_is_given_back_when_the_body_is_gone() {
        let spool = spool(10);
        let mut file = spool.file().await.unwrap();
        file.append(vec![Bytes::from_static(b"1234"), Bytes::from_static(b"5678")]).await.unwrap();
        let mut read = [0; 8];
        file.file().read_exact_at(&mut read, 0).unwrap();

        drop(file);

        assert_eq!((&read, spool.used()), (b"12345678", 0));
    }
}
