//! What a stop waits for, and how those concerned hear of it.

use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Whatever runs on traffic threads is spawned here, so that nothing outlives a stop unseen.
#[derive(Clone, Debug, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Runs `task` on this thread's `LocalSet`.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, task: F) -> JoinHandle<()> {
        self.0.spawn_local(task)
    }

    /// Tasks that have not ended.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Waits until all have ended; answers whether that came to pass within `deadline`.
    pub async fn finished(&self, deadline: Duration) -> bool {
        self.0.close();
        tokio::time::timeout(deadline, self.0.wait()).await.is_ok()
    }
}

/// The signal to end what is going on, in order.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    pub fn start(&self) {
        self.0.cancel();
    }

    pub fn is_on(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Ends when a drain has begun.
    pub async fn started(&self) {
        self.0.cancelled().await;
    }
}
