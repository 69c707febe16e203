//! One HTTP/1.1 connection from its first byte to its last.

mod request;
mod response;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use http::{Method, Request, StatusCode, Version};
use tokio::time::{Instant, Sleep, sleep};

use self::request::{ClientWire, RequestBody};
use super::{Connection, Downstream};
use crate::{
    h1::{Glimpse, HeadLimits, RequestHead, decode_request},
    http::{Body, GatewayError},
    proxy::Tunnel,
    service::{self, Answer, LogGuard},
};

/// A connection that has become a websocket, with what its client has sent behind the handshake.
pub(super) struct Upgraded<Io> {
    tunnel: Box<Tunnel>,
    io: Io,
    early: BytesMut,
    log: Box<LogGuard>,
}

impl<Io: Downstream> Upgraded<Io> {
    /// Carries it to its end.
    pub(super) async fn carry(mut self: Box<Self>, connection: Rc<Connection>) {
        service::tunnel(self.tunnel, &mut self.io, self.early, self.log, &connection).await;
    }
}

/// A connection that requests are read from.
pub(super) type Wire<Io> = Rc<RefCell<ClientWire<Io>>>;

pub(super) fn wire<Io: Downstream>(io: Io) -> Wire<Io> {
    Rc::new(RefCell::new(ClientWire::new(io)))
}

/// Serves requests one after the other until the client, a limit or a drain ends it; what has become a websocket is left to
/// the caller, so that nothing of what has served its requests is kept for as long as it lasts.
pub(super) async fn serve<Io: Downstream>(wire: Wire<Io>, connection: &Rc<Connection>) -> Option<Box<Upgraded<Io>>> {
    let (head_limits, mut waits, keep_alive) = {
        let limits = &connection.thread.current().plan.limits;
        let head = HeadLimits { bytes: limits.header_bytes, fields: limits.header_count, target: limits.uri_bytes };
        // The first head is waited for no longer than any other; between requests `keep_alive` rules.
        (head, Waits { idle: limits.head_timeout, head: limits.head_timeout }, limits.keep_alive)
    };
    let mut timer = pin!(sleep(waits.head));
    let drain = connection.thread.drain.clone();
    let mut stopping = pin!(drain.stopping());

    loop {
        let head = match read_head(&wire, head_limits, waits, timer.as_mut(), stopping.as_mut()).await {
            Ok(head) => head,
            Err(NoHead::Over) => return None,
            Err(NoHead::Refused(error)) => {
                let glimpse = Glimpse::of(&wire.borrow().read);
                let answer = service::refuse(connection, &error, glimpse);
                let asked = Asked { method: Method::GET, version: Version::HTTP_11, keep_alive: false };
                Box::pin(response::send(&wire, answer, &asked, timer.as_mut())).await;
                Box::pin(request::linger(&wire, timer.as_mut())).await;
                return None;
            }
        };
        waits.idle = keep_alive;

        let mut asked =
            Asked { method: head.parts.method.clone(), version: head.parts.version, keep_alive: head.keep_alive };
        wire.borrow_mut().begin(&head);
        let body = if wire.borrow().body_is_read() {
            Body::Empty
        } else {
            Body::relay(RequestBody::new(Rc::clone(&wire), &head))
        };
        let request = Request::from_parts(head.parts, body);

        // On the heap by itself, as the answer is: an idle connection is then not as large as a request that is being served.
        let serving = Box::pin(service::serve(request, connection));
        // A client that has gone takes its request with it: out of the queue, off the endpoint.
        let answer = until_gone(serving, &wire).await?;

        asked.keep_alive &= !connection.leaving.is_on() && !connection.turned_away;
        let next = Box::pin(response::send(&wire, answer, &asked, timer.as_mut())).await;
        match next {
            response::Next::Request => {}
            response::Next::Gone => return None,
            response::Next::Close => {
                Box::pin(request::close(&wire)).await;
                return None;
            }
            response::Next::Linger => {
                Box::pin(request::linger(&wire, timer.as_mut())).await;
                return None;
            }
            response::Next::Tunnel(tunnel, log) => {
                let (io, early) = Rc::into_inner(wire)?.into_inner().into_parts();
                return Some(Box::new(Upgraded { tunnel, io, early, log }));
            }
        }
    }
}

/// What of the request decides how its answer is written.
struct Asked {
    method: Method,
    version: Version,
    keep_alive: bool,
}

/// How long a head is waited for: until its first byte, and from there to its last.
#[derive(Clone, Copy)]
struct Waits {
    idle: Duration,
    head: Duration,
}

enum NoHead {
    /// The client has closed, or has been silent, or we stop: nobody waits for an answer.
    Over,
    Refused(GatewayError),
}

async fn read_head<Io: Downstream>(
    wire: &RefCell<ClientWire<Io>>,
    limits: HeadLimits,
    waits: Waits,
    mut timer: Pin<&mut Sleep>,
    mut stopping: Pin<&mut impl Future<Output = ()>>,
) -> Result<RequestHead, NoHead> {
    let mut armed = Armed::No;
    poll_fn(|cx| {
        let mut wire = wire.borrow_mut();
        loop {
            if !wire.read.is_empty() {
                match decode_request(&mut wire.read, limits) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(NoHead::Refused(error.into()))),
                }
            }
            match wire.poll_read(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) if !wire.is_blank() => {
                    let cut =
                        GatewayError::downstream(StatusCode::BAD_REQUEST, "the connection ended in a request head");
                    return Poll::Ready(Err(NoHead::Refused(cut)));
                }
                Poll::Ready(_) => return Poll::Ready(Err(NoHead::Over)),
                Poll::Pending => break,
            }
        }
        let begun = !wire.is_blank();
        if !begun {
            // An idle connection keeps no buffer; of an empty line, its CR waits for the LF.
            if !wire.read.ends_with(b"\r") {
                wire.read = BytesMut::new();
            }
            // Who is writing a request just now has not heard that we stop; it is answered, and told. One that we leave
            // while another process serves on is not closed at all before its time, lest that meet a request on its way.
            if !matches!(armed, Armed::Stopping) && stopping.as_mut().poll(cx).is_ready() {
                armed = Armed::Stopping;
                timer.as_mut().reset(Instant::now() + waits.idle.min(LAST_REQUEST));
            }
        }
        match (begun, armed) {
            (false, Armed::No) => {
                armed = Armed::Idle;
                timer.as_mut().reset(Instant::now() + waits.idle);
            }
            (true, Armed::No | Armed::Idle | Armed::Stopping) => {
                armed = Armed::Head;
                timer.as_mut().reset(Instant::now() + waits.head);
            }
            _ => {}
        }
        std::task::ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(if begun {
            let slow = format!("the request head was not whole within {:?}", waits.head);
            NoHead::Refused(GatewayError::downstream(StatusCode::REQUEST_TIMEOUT, slow))
        } else {
            NoHead::Over
        }))
    })
    .await
}

#[derive(Clone, Copy)]
enum Armed {
    No,
    Idle,
    Stopping,
    Head,
}

/// How long a connection without a request stays open once we stop.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// Runs `serve`, unless the client closes its side before the answer is there.
async fn until_gone<Io: Downstream>(
    serve: impl Future<Output = Answer>,
    wire: &RefCell<ClientWire<Io>>,
) -> Option<Answer> {
    let mut serve = pin!(serve);
    poll_fn(|cx| {
        if let Poll::Ready(answer) = serve.as_mut().poll(cx) {
            return Poll::Ready(Some(answer));
        }
        if wire.borrow_mut().poll_gone(cx).is_ready() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}
