//! A request whose client has gone while the application works on it.
//!
//! An application under WSGI does not hear of that: its thread works on to the end. Were the place given to the next one at
//! once, more would be inside than there are threads, and who asks and leaves, again and again, would fill the application
//! without ever waiting here.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::timeout,
};

use super::wire::EndpointWire;
use crate::upstream::{InFlight, Place, UpstreamStream};

/// An exchange of which no head has been read yet.
///
/// Dropped as that, when something of the request has gone and there is a bound on those inside, it keeps its place until the
/// endpoint says something or closes; no longer than the head would have been waited for.
pub(super) struct Unanswered<'a> {
    exchange: Option<(EndpointWire, InFlight)>,
    place: &'a mut Option<Place>,
    /// The longest wait for the head.
    longest: Duration,
}

impl<'a> Unanswered<'a> {
    pub(super) fn new(
        wire: EndpointWire,
        in_flight: InFlight,
        place: &'a mut Option<Place>,
        longest: Duration,
    ) -> Self {
        Self { exchange: Some((wire, in_flight)), place, longest }
    }

    pub(super) fn wire(&mut self) -> &mut EndpointWire {
        self.exchange.as_mut().map(|(wire, _)| wire).expect(THERE)
    }

    /// Whatever has come of it, it has not been left.
    pub(super) fn over(mut self) -> (EndpointWire, InFlight) {
        self.exchange.take().expect(THERE)
    }
}

const THERE: &str = "it is there until it is over";

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Some((wire, in_flight)) = self.exchange.take() else { return };
        if wire.is_begun()
            && !std::thread::panicking()
            && let Some(place) = self.place.take_if(|place| place.is_one_of_few())
        {
            // Not among those that a stop waits for: there is nobody to answer.
            spawn_local(keep(wire.lease.stream, (place, in_flight), self.longest));
        }
    }
}

/// Tells the endpoint that nobody waits, which a server that looks for it can end its work on, and waits until it has.
async fn keep(mut stream: UpstreamStream, kept: (Place, InFlight), longest: Duration) {
    drop(stream.shutdown().await);
    drop(timeout(longest, stream.read_u8()).await);
    drop(kept);
}
