//! Idle connections of one core.

use std::{
    cell::RefCell,
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use super::{Endpoint, UpstreamStream};

/// Connections of one core that wait for their next request, the youngest used first.
///
/// At most [`MAX_IDLE`] an endpoint are kept, for at most [`MAX_AGE`]; [`Self::prune`] is to be called now and then.
#[derive(Debug, Default)]
pub struct Pool {
    idle: RefCell<HashMap<u64, Vec<Idle>>>,
    timers: RefCell<Vec<Pin<Box<Sleep>>>>,
}

#[derive(Debug)]
struct Idle {
    stream: UpstreamStream,
    since: Instant,
    /// Requests answered on it.
    requests: u32,
}

/// A connection taken from the pool, or a new one, for one request.
#[derive(Debug)]
pub struct Lease {
    pub stream: UpstreamStream,
    requests: u32,
}

impl Lease {
    pub fn new(stream: UpstreamStream) -> Self {
        Self { stream, requests: 0 }
    }

    /// It has carried a request before, so its peer may just be closing it.
    pub fn is_reused(&self) -> bool {
        self.requests > 0
    }
}

impl Pool {
    /// Takes an idle connection to `endpoint`, for a request that can be sent again.
    ///
    /// Between this look and the write its peer may still close it, however new it is: a server that restarts closes
    /// what is idle. Whatever must not be sent twice needs a connection of its own.
    pub fn take(&self, endpoint: &Endpoint) -> Option<Lease> {
        if endpoint.closes_unannounced() {
            return None;
        }
        let mut pools = self.idle.borrow_mut();
        let idle = pools.get_mut(&endpoint.id)?;
        while let Some(candidate) = idle.pop() {
            if !candidate.stream.is_silent() {
                // It was given to us as one that stays; whoever closes after a first answer always will.
                if candidate.requests == 1 && candidate.since.elapsed() < CLOSES_AT_ONCE {
                    endpoint.closed_unannounced();
                }
                continue;
            }
            if candidate.since.elapsed() < MAX_AGE {
                return Some(Lease { stream: candidate.stream, requests: candidate.requests });
            }
        }
        None
    }

    /// Puts a connection back after a whole exchange.
    pub fn put(&self, endpoint: &Arc<Endpoint>, lease: Lease) {
        if endpoint.closes_unannounced() {
            return;
        }
        let mut pools = self.idle.borrow_mut();
        let idle = pools.entry(endpoint.id).or_default();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { stream: lease.stream, since: Instant::now(), requests: lease.requests.saturating_add(1) });
        }
    }

    /// A timer that ends at `deadline`; [`Self::put_timer`] gives it back.
    ///
    /// One that is in the runtime's list already is moved to a later time without the lock that a new one takes twice.
    pub fn timer(&self, deadline: Instant) -> Pin<Box<Sleep>> {
        match self.timers.borrow_mut().pop() {
            Some(mut timer) => {
                timer.as_mut().reset(deadline.into());
                timer
            }
            None => Box::pin(sleep_until(deadline.into())),
        }
    }

    /// Keeps `timer` for the next one who needs one.
    pub fn put_timer(&self, timer: Pin<Box<Sleep>>) {
        let mut timers = self.timers.borrow_mut();
        if timers.len() < MAX_IDLE {
            timers.push(timer);
        }
    }

    /// Closes what has been idle for too long or was closed by its peer.
    pub fn prune(&self) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(|candidate| candidate.since.elapsed() < MAX_AGE && candidate.stream.is_silent());
            !idle.is_empty()
        });
    }
}

/// Idle connections kept for one endpoint by one core, and timers in all.
const MAX_IDLE: usize = 512;
/// The longest idle time.
const MAX_AGE: Duration = Duration::from_secs(30);
/// A peer that closes a new connection within this time of its first answer does so by habit.
const CLOSES_AT_ONCE: Duration = Duration::from_millis(500);
