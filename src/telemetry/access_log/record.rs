//! What is known of one request when it is over.

use std::{
    borrow::Cow,
    cell::Cell,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Method, Uri, Version};

/// One request, as the access log tells it.
///
/// Made by [`Record::new`] before anything is known and filled in on the way. Every value is copied or shared by
/// reference count; none is rendered before the line is written.
#[derive(Clone, Debug)]
pub struct Record {
    pub started: Started,
    pub request_id: RequestId,
    /// The client, past trusted proxies. `None`: a peer on a unix socket.
    pub client: Option<IpAddr>,
    /// Whose password was right.
    pub user: Option<HeaderValue>,
    /// `None`, like [`Self::target`] and [`Self::version`]: refused before it could be parsed (400, 408, 431).
    pub method: Option<Method>,
    /// As received, before any rewriting.
    pub target: Option<Uri>,
    pub version: Option<Version>,
    pub host: Option<HeaderValue>,
    pub referer: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
    pub route: Option<Arc<str>>,
    pub upstream: Option<Arc<str>>,
    pub endpoint: Option<Arc<str>>,
    /// As sent; 499 when the client went away before the response was complete and no error was ours.
    pub status: u16,
    /// Bytes of the request body.
    pub bytes_received: u64,
    /// Bytes of the response body.
    pub bytes_sent: u64,
    /// Waiting for a place in the upstream.
    pub queue: Option<Duration>,
    /// Connecting to the endpoint. `None` also when a pooled connection was used.
    pub connect: Option<Duration>,
    /// From the request being sent to the response head.
    pub head: Option<Duration>,
    /// From [`Self::started`] to the end of the response.
    pub total: Option<Duration>,
    pub tls: Option<Tls>,
    /// Why it failed, in the operator's words.
    pub note: Option<Cow<'static, str>>,
}

/// The TLS session a request came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// `TLSv1.3`
    pub version: &'static str,
    /// `TLS13_AES_128_GCM_SHA256`
    pub cipher: &'static str,
}

impl Record {
    /// A request of `client` of which nothing else is known yet.
    pub fn new(started: Started, client: Option<IpAddr>) -> Self {
        Self {
            started,
            request_id: RequestId::next(),
            client,
            user: None,
            method: None,
            target: None,
            version: None,
            host: None,
            referer: None,
            user_agent: None,
            route: None,
            upstream: None,
            endpoint: None,
            status: 0,
            bytes_received: 0,
            bytes_sent: 0,
            queue: None,
            connect: None,
            head: None,
            total: None,
            tls: None,
            note: None,
        }
    }
}

/// The moment a request began, on both clocks: the wall's for the line, the monotonic one for what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    pub wall: SystemTime,
    pub clock: Instant,
}

impl Started {
    #[must_use]
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), clock: Instant::now() }
    }

    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }
}

/// Names one request in the log and on error pages: 32 hexadecimal digits.
///
/// A random number of the thread followed by a count, so that making one takes no lock and no system call. Unique for
/// all practical purposes, but not a secret: whoever has seen one can guess the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u128);

impl RequestId {
    /// The next one of this thread.
    #[must_use]
    pub fn next() -> Self {
        NEXT.with(|next| {
            let id = next.get();
            next.set(id.wrapping_add(1));
            Self(id)
        })
    }

    /// The 32 lower case hexadecimal digits.
    #[must_use]
    pub fn digits(self) -> [u8; 32] {
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        digits
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

pub(super) const HEX: &[u8; 16] = b"0123456789abcdef";

thread_local! {
    static NEXT: Cell<u128> = Cell::new(u128::from(fastrand::u64(..)) << 64);
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    #[test]
    fn request_ids_differ_within_a_thread_and_between_threads() {
        let threads: Vec<_> =
            (0..4).map(|_| thread::spawn(|| (0..100).map(|_| RequestId::next()).collect::<Vec<_>>())).collect();

        let ids: HashSet<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();

        assert_eq!(ids.len(), 400);
    }

    #[test]
    fn the_digits_of_a_request_id_are_what_it_displays() {
        let id = RequestId(0x0123_4567_89ab_cdef_0000_0000_0000_002a);

        assert_eq!(id.to_string(), "0123456789abcdef000000000000002a");
        assert_eq!(str::from_utf8(&id.digits()).unwrap(), id.to_string());
    }
}
