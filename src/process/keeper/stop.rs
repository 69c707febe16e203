//! The end: a drain that says so first, and a stop.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{
    super::message::{ToWorker, Word},
    Deed, Ending, Event, Keeper, Signal, State,
};
use crate::drain::Cut;

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What had not come to its end by itself.
    pub(crate) cut: Cut,
    /// Workers that did not end in order.
    pub(crate) disorderly: u32,
}

impl Keeper {
    /// Says "not ready" from now on, and stops in `wait`; answers in words.
    pub(super) fn drain(&mut self, wait: Duration) -> String {
        self.drained = Some(Instant::now() + wait);
        for worker in &self.workers {
            worker.tell(ToWorker::Unready);
        }
        tracing::info!(?wait, "draining: /ready answers 503 from now on, and a stop follows");
        format!("/ready answers 503 from now on; vestibule stops in {wait:?}")
    }

    /// Closes the door and waits for what is inside, `drain` of the configuration at most; a second signal ends it there.
    pub(super) async fn stop(mut self) -> Ended {
        let patience = self.plan.drain;
        tracing::info!(deadline = ?patience, "stopping: no new connections, requests in flight come to their end");
        self.manager.stopping(patience + GRACE + self.backends_end_within());
        self.backends.end();
        // An order that is cut off is taken up at the next start.
        self.end_agent().await;
        // Ours first: what came to wait in a socket after its worker has looked for the last time would be lost with it.
        self.sockets.close();
        self.stop_workers(patience);
        // Nothing of that is due any more.
        (self.drained, self.restart) = (None, None);
        let mut ended = Ended { cut: Cut::default(), disorderly: 0 };
        let mut deadline = Instant::now() + patience + GRACE;
        let mut is_forced = false;
        while !self.workers.is_empty() {
            match timeout_at(deadline, self.next()).await {
                Ok(Event::Signal(Signal::Stop)) if !is_forced => {
                    tracing::warn!("told to stop once more: what is in flight is cut off");
                    is_forced = true;
                    deadline = Instant::now() + GRACE;
                    self.stop_workers(Duration::ZERO);
                }
                Ok(Event::Deed(worker, deed)) => match &deed {
                    Deed::Said(Word::Ended { requests, tunnels }) => {
                        ended.cut.requests += u64::from(*requests);
                        ended.cut.tunnels += u64::from(*tunnels);
                    }
                    Deed::Ended(ending) => {
                        let given_up = self.worker(worker).is_some_and(|worker| worker.state == State::GivenUp);
                        self.workers.retain(|left| left.id != worker);
                        if !given_up && !matches!(ending, Ending::Thread | Ending::Status(0)) {
                            tracing::error!(%ending, "a worker did not end in order");
                            ended.disorderly += 1;
                        }
                    }
                    _ => {}
                },
                Ok(Event::Time) => {
                    // The deadline is what watches over the workers now.
                    self.manager.alive();
                    self.next_look = Instant::now() + self.manager.interval().unwrap_or(GRACE);
                }
                Ok(Event::Instance(id, deed)) => self.note_instance(id, deed),
                Ok(_) => {}
                Err(_) => {
                    tracing::error!("a worker does not end; it is killed");
                    if self.options.single {
                        ended.disorderly += 1;
                        break;
                    }
                    self.workers.iter().for_each(super::workers::Worker::kill);
                    deadline = Instant::now() + GRACE;
                }
            }
        }
        // Until here requests were inside.
        self.end_backends().await;
        self.manager.ended();
        ended
    }

    fn stop_workers(&self, deadline: Duration) {
        for worker in &self.workers {
            worker.tell(ToWorker::Stop { deadline });
        }
    }
}

/// Beyond the deadline of requests, for last lines and Close frames.
const GRACE: Duration = Duration::from_secs(5);
