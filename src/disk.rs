//! Work that may have to wait for a disk.

use std::io;

use tokio::task::spawn_blocking;

/// Does `work` on a thread of its own: a disk that is behind must not stop what else this one does.
pub(crate) async fn off_thread<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    spawn_blocking(work).await.map_err(io::Error::other)?
}
