//! A response drained off the endpoint at the endpoint's speed.
//!
//! The application's thread is free again when its last byte is in our hands, however slowly the client reads: up
//! to `spool.memory` bytes wait in memory, the rest in the spool. When that is full too, the endpoint is
//! slowed; nothing is dropped.
//!
//! A client that takes a long response as fast as the spool would is given it directly, which frees the thread as soon
//! and costs a fraction. Whether it does is looked at every [`LOOK`], while it is waited for; the first look that finds it
//! slower turns to draining, for good.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{task::yield_now, time::sleep};

use super::{Incoming, pieces::Pieces};
use crate::{
    drain::Tasks,
    http::{Body, FileBody, GatewayError, Relay},
    splice::Pipe,
    spool::{Spool, SpoolFile},
    turns,
};

/// Starts to drain `incoming`, and answers with the body as the client is to read it.
///
/// Dropping that body ends the exchange with the endpoint.
pub(super) fn drain(incoming: Incoming, spool: Arc<Spool>, tasks: &Tasks) -> Body {
    let length = incoming.size_hint().exact();
    let shared = Rc::new(RefCell::new(Shared::default()));
    // What fits in memory frees the endpoint soonest there.
    let drainer = if length.is_some_and(|length| length <= spool.memory() as u64) {
        tasks.spawn(fill(incoming, Rc::clone(&shared), spool))
    } else {
        shared.borrow_mut().direct = Some(incoming);
        let shared = Rc::clone(&shared);
        tasks.spawn(async move {
            if let Some(incoming) = until_slow(&shared).await {
                fill(incoming, shared, spool).await;
            }
        })
    };
    Body::relay(Buffered { shared, file: None, left: length, drainer })
}

/// What passes from the one who fills to the one who reads.
///
/// What is in memory comes before what is in the file. Only the filler makes and ends the file; it is `None` while the
/// filler writes to it.
#[derive(Default)]
struct Shared {
    /// The body, while the reader takes it from the endpoint by itself; comes before all else.
    direct: Option<Incoming>,
    /// Bytes that it has taken since the last look.
    taken: u64,
    /// It has had all that there was.
    waits: bool,
    /// Whether something has come since.
    notice: Arc<Notice>,
    /// Comes before what is in the file.
    memory: Pieces,
    file: Option<SpoolFile>,
    /// Bytes of the file the reader has been given.
    given: u64,
    /// The reader is not done with what it was given, so the file is still on disk.
    reading: bool,
    end: Option<Result<(), GatewayError>>,
    reader: Option<Waker>,
    filler: Option<Waker>,
}

impl Shared {
    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// It waits for the endpoint, and not for the client: whoever compresses may have had all, and not come again since.
    fn waits_for_endpoint(&self) -> bool {
        self.waits && !self.notice.came.load(Ordering::Relaxed)
    }

    /// Lets the reader take what comes next from the endpoint; `None` when that is drained instead.
    fn poll_direct<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Incoming>, &mut Context<'_>) -> Poll<Option<Result<T, GatewayError>>>,
        length: impl FnOnce(&T) -> u64,
    ) -> Option<Poll<Option<Result<T, GatewayError>>>> {
        let direct = self.direct.as_mut()?;
        self.notice.reader.register(cx.waker());
        self.notice.came.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.notice));
        let polled = poll(Pin::new(direct), &mut Context::from_waker(&waker));
        self.waits = polled.is_pending();
        if !self.waits {
            self.notice.watcher.wake();
        }
        if let Poll::Ready(Some(Ok(moved))) = &polled {
            self.taken += length(moved);
        }
        Some(polled)
    }

    fn is_file_unread(&self) -> bool {
        self.reading || self.file.as_ref().is_some_and(|file| self.given < file.length())
    }
}

/// Tells the reader, and whoever looks ([`until_slow`]), that something has come.
#[derive(Default)]
struct Notice {
    came: AtomicBool,
    reader: AtomicWaker,
    watcher: AtomicWaker,
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.came.store(true, Ordering::Relaxed);
        self.reader.wake();
        self.watcher.wake();
    }
}

/// Until the client takes less than the spool would, which is when the body is to be drained; `None` after its end.
async fn until_slow(shared: &RefCell<Shared>) -> Option<Incoming> {
    loop {
        poll_fn(|cx| {
            let shared = shared.borrow();
            shared.notice.watcher.register(cx.waker());
            if shared.waits_for_endpoint() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        // Others wait for what this client keeps: it has less time.
        let part = {
            let mut shared = shared.borrow_mut();
            shared.taken = 0;
            if shared.direct.as_ref()?.is_wanted() { 10 } else { 1 }
        };
        sleep(LOOK / part).await;
        let mut shared = shared.borrow_mut();
        if shared.direct.as_ref()?.is_end_stream() {
            return None;
        }
        if !shared.waits_for_endpoint() && shared.taken < KEEPS_UP / u64::from(part) {
            return shared.direct.take();
        }
    }
}

async fn fill(mut incoming: Incoming, shared: Rc<RefCell<Shared>>, spool: Arc<Spool>) {
    let Filling(shared) = &Filling(shared);
    let mut work = 0;
    let end = loop {
        match incoming.frame().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    work += data.len().max(LEAST_WORK);
                    store(data, shared, &spool).await;
                    // An endpoint may send as fast as it is read from, and whoever fills does not wait for a turn: several
                    // would keep the network from being asked for tens of milliseconds.
                    if work >= turns::BYTES {
                        work = 0;
                        yield_now().await;
                    }
                }
            }
        }
    };
    let mut shared = shared.borrow_mut();
    shared.end = Some(end);
    shared.wake_reader();
}

/// Tells whoever reads when a panic ends the one who fills: it would wait for ever.
struct Filling(Rc<RefCell<Shared>>);

impl Drop for Filling {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(mut shared) = self.0.try_borrow_mut()
        {
            shared.end = Some(Err(GatewayError::panicked()));
            shared.wake_reader();
        }
    }
}

/// Keeps `data` where there is room, and waits for room where there is none.
async fn store(data: Bytes, shared: &Rc<RefCell<Shared>>, spool: &Arc<Spool>) {
    let file = {
        let mut shared = shared.borrow_mut();
        // All of it has been read: back to memory.
        if !shared.is_file_unread() {
            shared.file = None;
            shared.given = 0;
        }
        // One piece at a time in any case: to a client that keeps up it goes without a file.
        let fits = shared.memory.is_empty() || shared.memory.length() + data.len() <= spool.memory();
        if shared.file.is_none() && fits {
            shared.memory.push(data);
            shared.wake_reader();
            return;
        }
        shared.file.take()
    };
    let file = match file {
        Some(file) => Ok(file),
        None => spool.file().await,
    };
    let kept = match file {
        Ok(mut file) => {
            let appended = file.append(vec![data.clone()]).await;
            let mut shared = shared.borrow_mut();
            if file.length() > 0 {
                shared.file = Some(file);
            }
            shared.wake_reader();
            appended
        }
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        tracing::debug!(error = &error as &dyn std::error::Error, "a response is not spooled; the endpoint is slowed");
        wait_for_reader(shared).await;
        let mut shared = shared.borrow_mut();
        shared.memory.push(data);
        shared.wake_reader();
    }
}

/// Until the reader has had everything: then memory is free, and comes before the file again.
async fn wait_for_reader(shared: &Rc<RefCell<Shared>>) {
    poll_fn(|cx| {
        let mut shared = shared.borrow_mut();
        if shared.memory.is_empty() && !shared.is_file_unread() {
            shared.file = None;
            shared.given = 0;
            return Poll::Ready(());
        }
        shared.filler = Some(cx.waker().clone());
        Poll::Pending
    })
    .await;
}

/// The client's end.
struct Buffered {
    /// The piece of the file that is being read; dropped before `shared`, which has the file closed elsewhere.
    file: Option<FileBody>,
    shared: Rc<RefCell<Shared>>,
    left: Option<u64>,
    drainer: tokio::task::JoinHandle<()>,
}

impl http_body::Body for Buffered {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = self.get_mut();
        let length = |frame: &Frame<Bytes>| frame.data_ref().map_or(0, Bytes::len) as u64;
        let direct = this.shared.borrow_mut().poll_direct(cx, http_body::Body::poll_frame, length);
        let frame = match direct {
            Some(polled) => ready!(polled),
            None => ready!(this.poll_next(cx)).map(|data| data.map(Frame::data)),
        };
        this.count(frame.as_ref().and_then(|frame| frame.as_ref().ok()).map_or(0, length));
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Relay for Buffered {
    fn poll_relay(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Option<Result<usize, GatewayError>>> {
        let this = self.get_mut();
        let direct =
            this.shared.borrow_mut().poll_direct(cx, |body, cx| body.poll_relay(cx, pipe), |count| *count as u64);
        let Some(polled) = direct else { return Poll::Ready(None) };
        let relayed = ready!(polled);
        this.count(relayed.as_ref().and_then(|relayed| relayed.as_ref().ok()).map_or(0, |count| *count as u64));
        Poll::Ready(relayed)
    }
}

impl Buffered {
    fn count(&mut self, bytes: u64) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes);
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, GatewayError>>> {
        loop {
            if let Some(file) = &mut self.file {
                if let Some(frame) = ready!(Pin::new(file).poll_frame(cx)) {
                    let Ok(data) = frame?.into_data() else { continue };
                    return Poll::Ready(Some(Ok(data)));
                }
                self.file = None;
                self.shared.borrow_mut().reading = false;
            }
            let mut shared = self.shared.borrow_mut();
            if let Some(data) = shared.memory.pop() {
                if let Some(filler) = shared.filler.take() {
                    filler.wake();
                }
                return Poll::Ready(Some(Ok(data)));
            }
            if let Some(file) = shared.file.as_ref().filter(|file| shared.given < file.length()) {
                self.file = Some(FileBody::new(Arc::clone(file.file()), shared.given, file.length() - shared.given));
                shared.given = file.length();
                shared.reading = true;
                continue;
            }
            if let Some(filler) = shared.filler.take() {
                filler.wake();
            }
            if let Some(end) = shared.end.take() {
                return Poll::Ready(end.err().map(Err));
            }
            shared.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.drainer.abort();
    }
}

/// How long a client that is waited for is given before it is looked at, and what it has to have taken by then: 32 MiB a
/// second, below which a disk frees the endpoint sooner. A tenth of both where others wait for the place.
const LOOK: Duration = Duration::from_millis(50);
const KEEPS_UP: u64 = 32 * 1024 * 1024 / 20;

/// What a short piece counts as, towards [`turns::BYTES`].
const LEAST_WORK: usize = 512;

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn who_has_had_all_and_does_not_come_for_what_comes_next_does_not_wait_for_the_endpoint() {
        let shared = RefCell::new(Shared { waits: true, ..Shared::default() });
        let notice = Arc::clone(&shared.borrow().notice);
        let looked = async {
            yield_now().await;
            Waker::from(notice).wake();
        };

        // There is no body, so that it ends with the first look that there is a reason for.
        let (watched, ()) = tokio::join!(tokio::time::timeout(LOOK * 20, until_slow(&shared)), looked);

        assert!(matches!(watched, Ok(None)), "what has come is noticed, though nobody asks for it");
    }

    #[tokio::test]
    async fn a_panic_of_the_one_who_fills_ends_the_body_with_an_error() {
        let shared = Rc::new(RefCell::new(Shared::default()));
        shared.borrow_mut().memory.push(Bytes::from_static(b"part"));
        let filling = Filling(Rc::clone(&shared));

        let local = LocalSet::new();
        let read = local.run_until(async {
            let drainer = Tasks::default().spawn(async move {
                let _filling = filling;
                // The reader waits by now.
                sleep(Duration::from_millis(1)).await;
                panic!("as it was asked for");
            });
            let mut body = Buffered { shared, file: None, left: None, drainer };
            [body.frame().await.unwrap(), body.frame().await.unwrap()]
        });

        let [part, end] = tokio::time::timeout(Duration::from_secs(10), read).await.unwrap();
        assert_eq!(part.unwrap().into_data().unwrap(), "part");
        assert!(end.unwrap_err().is_panic());
    }
}
