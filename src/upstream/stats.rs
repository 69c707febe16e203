//! What uWSGI says of its workers: its stats server writes one JSON document to whoever connects, and closes.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, time::timeout};

use super::UpstreamStream;
use crate::{config::EndpointAddress, metrics::WORKERS};

/// The workers of an application at one moment, as `/status` has them; of several servers, of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {
    /// Those that run. Not those that `cheaper` keeps back.
    pub workers: u64,
    /// Requests that they take at once.
    pub threads: u64,
    /// Requests that they have.
    pub busy: u64,
    /// Connections that nobody has taken yet. Of a Unix socket uWSGI knows none.
    pub listen_queue: u64,
    /// All from here on since uWSGI was started.
    pub exceptions: u64,
    /// Workers that were started.
    pub spawns: u64,
    /// Workers that were killed over a request.
    pub harakiris: u64,
}

/// Why it could not be read what a stats server says.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    #[error("cannot connect to {address}")]
    Connect { address: EndpointAddress, source: io::Error },
    #[error("{address} breaks off")]
    Read { address: EndpointAddress, source: io::Error },
    #[error("{address} has not said all within {LONGEST:?}")]
    Late { address: EndpointAddress },
    #[error("{address} says more than {MOST_READ} bytes")]
    Long { address: EndpointAddress },
    #[error("{address} says what no stats server of uWSGI says")]
    Strange { address: EndpointAddress, source: serde_json::Error },
}

impl Workers {
    /// Reads all of `servers`, and adds up.
    ///
    /// # Errors
    ///
    /// Of the first that cannot be read; a part would be taken for all.
    pub async fn read(servers: &[EndpointAddress]) -> Result<Self, StatsError> {
        let mut all = Self::default();
        for read in join_all(servers.iter().map(Self::read_one)).await {
            all.add(read?);
        }
        Ok(all)
    }

    async fn read_one(address: &EndpointAddress) -> Result<Self, StatsError> {
        let said = async {
            let stream = UpstreamStream::connect(address).await;
            let stream = stream.map_err(|source| StatsError::Connect { address: address.clone(), source })?;
            let mut said = Vec::new();
            let read = stream.take(MOST_READ + 1).read_to_end(&mut said).await;
            read.map_err(|source| StatsError::Read { address: address.clone(), source })?;
            Ok(said)
        };
        let said = timeout(LONGEST, said).await.map_err(|_| StatsError::Late { address: address.clone() })??;
        if said.len() as u64 > MOST_READ {
            return Err(StatsError::Long { address: address.clone() });
        }
        Self::parse(&said).map_err(|source| StatsError::Strange { address: address.clone(), source })
    }

    /// With `stats-http` there is the head of a response before the document.
    fn parse(said: &[u8]) -> Result<Self, serde_json::Error> {
        let start = said.iter().position(|byte| *byte == b'{').unwrap_or(said.len());
        let Document { listen_queue, workers } = serde_json::from_slice(&said[start..])?;
        let mut all = Self { listen_queue, ..Self::default() };
        for worker in workers {
            let runs = worker.pid > 0 && worker.status != "cheap";
            let busy = worker.cores.iter().filter(|core| core.in_request > 0).count() as u64;
            all.add(Self {
                workers: runs.into(),
                // Without threads it has one core; with `stats-no-cores` none is told of.
                threads: if runs { (worker.cores.len() as u64).max(1) } else { 0 },
                busy: busy.max(u64::from(worker.status == "busy")),
                listen_queue: 0,
                exceptions: worker.exceptions,
                spawns: worker.respawn_count,
                harakiris: worker.harakiri_count,
            });
        }
        Ok(all)
    }

    /// In the order of [`crate::metrics::WORKERS`].
    pub fn values(self) -> [u64; WORKERS.len()] {
        let Self { workers, threads, busy, listen_queue, exceptions, spawns, harakiris } = self;
        [workers, threads, busy, listen_queue, exceptions, spawns, harakiris]
    }

    /// Whoever says them may say any number.
    fn add(&mut self, other: Self) {
        for (sum, other) in [
            (&mut self.workers, other.workers),
            (&mut self.threads, other.threads),
            (&mut self.busy, other.busy),
            (&mut self.listen_queue, other.listen_queue),
            (&mut self.exceptions, other.exceptions),
            (&mut self.spawns, other.spawns),
            (&mut self.harakiris, other.harakiris),
        ] {
            *sum = sum.saturating_add(other);
        }
    }
}

/// What counts of the document. It has much more, cookies of requests among it, which are not read.
#[derive(Deserialize)]
struct Document {
    listen_queue: u64,
    workers: Vec<Worker>,
}

#[derive(Deserialize)]
struct Worker {
    pid: i64,
    status: String,
    #[serde(default)]
    exceptions: u64,
    #[serde(default)]
    respawn_count: u64,
    #[serde(default)]
    harakiri_count: u64,
    #[serde(default)]
    cores: Vec<Core>,
}

#[derive(Deserialize)]
struct Core {
    in_request: u64,
}

/// What is known of an application's workers, and what has been told of them.
#[derive(Debug, Default)]
pub struct Stats(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    last: Option<Workers>,
    /// Since when it could not be read, and why not the last time.
    unread: Option<(Instant, String)>,
    /// Since when uWSGI's own queue has not been empty.
    queued: Option<Instant>,
    is_queue_told: bool,
    /// When exceptions were told of last, and how many there were then.
    exceptions: Option<(Option<Instant>, u64)>,
}

/// What is worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It can be read, for the first time or again.
    Read,
    Unread,
    /// So many connections wait in uWSGI's own queue, and have for [`LASTING`].
    Queued(u64),
    /// So many exceptions more.
    Exceptions(u64),
}

impl Stats {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was read last.
    pub fn last(&self) -> Option<Workers> {
        self.known().last
    }

    /// For how long it could not be read, and why.
    pub fn unread(&self) -> Option<(Duration, String)> {
        self.known().unread.as_ref().map(|(since, why)| (since.elapsed(), why.clone()))
    }

    /// Takes note of what was read at `now`; answers what there is to tell of it.
    pub(super) fn note(&self, read: Result<Workers, String>, now: Instant) -> Vec<Turn> {
        let known = &mut *self.known();
        let mut turns = Vec::new();
        let workers = match read {
            Ok(workers) => workers,
            Err(why) => {
                let since = known.unread.as_ref().map(|(since, _)| *since);
                if since.is_none() {
                    turns.push(Turn::Unread);
                }
                known.unread = Some((since.unwrap_or(now), why));
                return turns;
            }
        };
        if known.unread.take().is_some() || known.last.is_none() {
            turns.push(Turn::Read);
        }
        known.last = Some(workers);
        if workers.listen_queue == 0 {
            (known.queued, known.is_queue_told) = (None, false);
        } else if now.duration_since(*known.queued.get_or_insert(now)) >= LASTING && !known.is_queue_told {
            known.is_queue_told = true;
            turns.push(Turn::Queued(workers.listen_queue));
        }
        match &mut known.exceptions {
            Some((told, before)) if workers.exceptions > *before => {
                if told.is_none_or(|told| now.duration_since(told) >= BETWEEN) {
                    turns.push(Turn::Exceptions(workers.exceptions - *before));
                    (*told, *before) = (Some(now), workers.exceptions);
                }
            }
            // What there were before we came is no news. Fewer: it was started anew.
            Some((_, before)) => *before = workers.exceptions,
            None => known.exceptions = Some((None, workers.exceptions)),
        }
        turns
    }
}

/// The longest document that is read.
const MOST_READ: u64 = 1 << 20;
/// The longest that is waited for it.
const LONGEST: Duration = Duration::from_secs(2);
/// How long uWSGI's own queue may have something in it before that is told: a moment of it is no harm.
const LASTING: Duration = Duration::from_secs(10);
/// Between two events that exceptions have grown.
const BETWEEN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_run_are_counted_with_their_threads() {
        // As uWSGI 2.0.21 says it, with much left out; a variable of a request is not UTF-8.
        let said = b"HTTP/1.0 200 OK\r\n\r\n{\"version\":\"2.0.21-debian\",\"listen_queue\":3,\"locks\":[{\"user 0\":0}],\"workers\":[\
            {\"id\":1,\"pid\":17,\"exceptions\":2,\"harakiri_count\":1,\"status\":\"busy\",\"respawn_count\":4,\
             \"cores\":[{\"id\":0,\"in_request\":1,\"vars\":[\"HTTP_COOKIE=session=\xe9\"]},{\"id\":1,\"in_request\":0}]},\
            {\"id\":2,\"pid\":18,\"exceptions\":0,\"harakiri_count\":0,\"status\":\"busy\",\"respawn_count\":1,\"cores\":[]},\
            {\"id\":3,\"pid\":0,\"exceptions\":0,\"harakiri_count\":0,\"status\":\"cheap\",\"respawn_count\":0,\
             \"cores\":[{\"id\":0,\"in_request\":0},{\"id\":1,\"in_request\":0}]}]}";

        let expected =
            Workers { workers: 2, threads: 3, busy: 2, listen_queue: 3, exceptions: 2, spawns: 5, harakiris: 1 };
        assert_eq!(Workers::parse(said).unwrap(), expected);
        for strange in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n", b"{}", b"{\"listen_queue\":-1,\"workers\":[]}"] {
            assert!(Workers::parse(strange).is_err(), "{strange:?}");
        }
    }

    #[test]
    fn what_lasts_or_grows_is_told_once() {
        let stats = Stats::default();
        let start = Instant::now();
        let mut told = Vec::new();
        let said = |listen_queue, exceptions| Ok(Workers { listen_queue, exceptions, ..Workers::default() });
        for (second, read) in [
            (0, Err("not there".to_owned())),
            (1, Err("not there".to_owned())),
            (2, said(0, 7)),
            (3, said(1, 7)),
            (12, said(1, 8)),
            (13, said(2, 9)),
            (14, said(2, 9)),
            (15, said(0, 9)),
            (71, said(0, 9)),
            (72, said(0, 9)),
            (73, said(0, 1)),
            (133, said(0, 2)),
        ] {
            let turns = stats.note(read, start + Duration::from_secs(second));
            told.extend(turns.into_iter().map(|turn| (second, turn)));
        }

        let expected = [
            (0, Turn::Unread),
            (2, Turn::Read),
            (12, Turn::Exceptions(1)),
            (13, Turn::Queued(2)),
            // Those that came too soon after.
            (72, Turn::Exceptions(1)),
            (133, Turn::Exceptions(1)),
        ];
        assert_eq!(told, expected);
        assert_eq!(stats.last(), said(0, 2).ok());
    }
}
