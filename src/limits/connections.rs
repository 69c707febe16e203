//! How many connections there are, and streams on them, against how many there may be.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
};

use super::{
    Client, Notice,
    memory::{self, Memory},
    slots::Slots,
};
use crate::{config::LimitsPlan, metrics::Shed};

/// The connections of all listeners and threads.
#[derive(Debug)]
pub struct Connections {
    open: AtomicUsize,
    by_client: Slots<AtomicU32>,
    /// Of HTTP/2, on all connections of a client.
    streams: Slots<AtomicU32>,
    told: [Notice; Shed::ALL.len()],
    pub memory: Memory,
}

/// One that counts until it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    all: Arc<Connections>,
    /// The slot it is counted in besides.
    client: Option<usize>,
}

/// Where the streams of a connection are counted, which is by client; nowhere, where nobody knows whose they are.
#[derive(Clone, Debug)]
pub struct ClientStreams {
    all: Arc<Connections>,
    client: Option<usize>,
}

impl Connections {
    pub fn new() -> Arc<Self> {
        let (open, memory) = (AtomicUsize::new(0), Memory::default());
        let (by_client, streams) = (Slots::new(), Slots::new());
        Arc::new(Self { open, by_client, streams, told: Default::default(), memory })
    }

    pub fn count(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Counts one more, unless that is more than there may be.
    pub fn enter(self: &Arc<Self>, limits: &LimitsPlan) -> Result<OpenConnection, Shed> {
        let counted = self.open.fetch_add(1, Relaxed);
        let connection = OpenConnection { all: Arc::clone(self), client: None };
        if counted >= limits.connections { Err(Shed::Connections) } else { Ok(connection) }
    }

    /// Tells that a connection of `client` was closed for `reason`, once a minute.
    pub fn tell(&self, reason: Shed, client: Option<Client>, limits: &LimitsPlan) {
        let Some(times) = self.told[reason as usize].happened() else { return };
        let client = client.map(tracing::field::display);
        match reason {
            Shed::Connections => {
                let limit = limits.connections;
                tracing::warn!(limit, times, "connections are closed at once: there are `limits.connections` of them");
            }
            Shed::Address => {
                let limit = limits.connections_per_address;
                tracing::warn!(
                    client,
                    limit,
                    times,
                    "connections are closed at once: their client has `limits.connections_per_address`; a proxy with many \
                     clients behind it belongs in `trusted_proxies` or `limits.exempt`"
                );
            }
            Shed::Streams => {
                let limit = limits.streams_per_address;
                tracing::warn!(
                    client,
                    limit,
                    times,
                    "HTTP/2 requests are refused: their client has `limits.streams_per_address` under way"
                );
            }
            Shed::Handshakes => tracing::warn!(
                client,
                times,
                "connections are closed before their TLS handshake: there were as many as `limits.handshakes_per_address` or \
                 `limits.handshakes` allow"
            ),
            Shed::Memory => tracing::warn!(
                memory = self.memory.used(),
                limit = memory::bound(limits),
                times,
                "new clients are answered 503, and above an eighth more new requests, too: we use as much memory as `limits.memory` allows"
            ),
            Shed::Flood => tracing::warn!(
                client,
                times,
                "an HTTP/2 connection was ended: its client sent frames that ask for nothing, or requests only to cancel them"
            ),
        }
    }
}

impl OpenConnection {
    /// Counts it as one of `client`'s, too.
    pub fn count_for(&mut self, client: Client, limits: &LimitsPlan) -> Result<(), Shed> {
        let slot = self.all.by_client.of(&client);
        let counted = self.all.by_client.slot(slot).fetch_add(1, Relaxed);
        self.leave_client();
        self.client = Some(slot);
        match limits.connections_per_address {
            Some(limit) if counted >= limit => Err(Shed::Address),
            _ => Ok(()),
        }
    }

    /// Where the streams on it are counted.
    pub fn streams(&self) -> ClientStreams {
        ClientStreams { all: Arc::clone(&self.all), client: self.client }
    }

    fn leave_client(&mut self) {
        if let Some(slot) = self.client.take() {
            self.all.by_client.slot(slot).fetch_sub(1, Relaxed);
        }
    }
}

impl ClientStreams {
    /// Counts one more.
    pub fn begin(&self) {
        if let Some(count) = self.count() {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Counts one less.
    pub fn end(&self) {
        if let Some(count) = self.count() {
            count.fetch_sub(1, Relaxed);
        }
    }

    /// Whether their client has more than it may have.
    pub fn are_too_many(&self, limits: &LimitsPlan) -> bool {
        self.count().zip(limits.streams_per_address).is_some_and(|(count, limit)| count.load(Relaxed) > limit)
    }

    fn count(&self) -> Option<&AtomicU32> {
        self.client.map(|slot| self.all.streams.slot(slot))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.leave_client();
        self.all.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::limits, *};

    #[test]
    fn one_connection_more_than_there_may_be_is_refused_until_another_has_ended() {
        let (all, limits) = (Connections::new(), limits("connections: 2"));
        let (first, _second) = (all.enter(&limits).unwrap(), all.enter(&limits).unwrap());

        assert_eq!(all.enter(&limits).unwrap_err(), Shed::Connections);
        assert_eq!(all.count(), 2);
        drop(first);
        assert!(all.enter(&limits).is_ok());
    }

    #[test]
    fn a_client_has_no_more_connections_than_it_may_and_others_have_theirs() {
        let (all, limits) = (Connections::new(), limits("connections_per_address: 1"));
        let enter = |address: &str| {
            let mut connection = all.enter(&limits).unwrap();
            connection.count_for(Client::new(address.parse().unwrap()), &limits).map(|()| connection)
        };
        let first = enter("2001:db8::1").unwrap();

        assert_eq!(enter("2001:db8::2").unwrap_err(), Shed::Address);
        assert!(enter("192.0.2.1").is_ok());
        assert_eq!(all.count(), 1, "whoever was refused, or has gone, is not counted");
        drop(first);
        assert!(enter("2001:db8::2").is_ok());
    }

    #[test]
    fn streams_are_counted_over_all_connections_of_a_client_and_not_where_nobody_is_counted() {
        let (all, limits) = (Connections::new(), limits("streams_per_address: 2"));
        let open = |client: Option<&str>| {
            let mut open = all.enter(&limits).unwrap();
            if let Some(client) = client {
                open.count_for(Client::new(client.parse().unwrap()), &limits).unwrap();
            }
            open
        };
        let [first, second] = [open(Some("192.0.2.1")), open(Some("192.0.2.1"))].map(|open| open.streams());
        let [other, nobody] = [open(Some("192.0.2.2")), open(None)].map(|open| open.streams());

        for streams in [&first, &first, &second] {
            streams.begin();
        }
        (0..9).for_each(|_| nobody.begin());
        assert!(first.are_too_many(&limits) && second.are_too_many(&limits));
        assert!(!other.are_too_many(&limits) && !nobody.are_too_many(&limits));

        first.end();
        assert!(!second.are_too_many(&limits), "as many as there may be");
    }
}
