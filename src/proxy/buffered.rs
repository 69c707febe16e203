//! A response drained off the endpoint at the endpoint's speed.
//!
//! The application's thread is free again when its last byte is in our hands, however slowly the client reads: up
//! to `spool.memory` bytes wait in memory, the rest in the spool. When that is full too, the endpoint is
//! slowed; nothing is dropped.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

use super::{Incoming, pieces::Pieces};
use crate::{
    drain::Tasks,
    http::{Body, FileBody, GatewayError},
    spool::{Spool, SpoolFile},
};

/// Starts to drain `incoming`, and answers with the body as the client is to read it.
///
/// Dropping that body ends the exchange with the endpoint.
pub(super) fn drain(incoming: Incoming, spool: Arc<Spool>, tasks: &Tasks) -> Body {
    let length = incoming.size_hint().exact();
    let shared = Rc::new(RefCell::new(Shared::default()));
    let drainer = tasks.spawn(fill(incoming, Rc::clone(&shared), spool));
    Body::stream(Buffered { shared, file: None, left: length, drainer })
}

/// What passes from the one who fills to the one who reads.
///
/// What is in memory comes before what is in the file. Only the filler makes and ends the file; it is `None` while the
/// filler writes to it.
#[derive(Default)]
struct Shared {
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

    fn is_file_unread(&self) -> bool {
        self.reading || self.file.as_ref().is_some_and(|file| self.given < file.length())
    }
}

async fn fill(mut incoming: Incoming, shared: Rc<RefCell<Shared>>, spool: Arc<Spool>) {
    let Filling(shared) = &Filling(shared);
    let end = loop {
        match incoming.frame().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    store(data, shared, &spool).await;
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
        if shared.file.is_none() && shared.memory.length() < spool.memory() {
            shared.memory.push(data);
            shared.wake_reader();
            return;
        }
        shared.file.take()
    };
    let file = match file {
        Some(file) => Ok(file),
        None => spool.file(),
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
    std::future::poll_fn(|cx| {
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
    shared: Rc<RefCell<Shared>>,
    /// The piece of the file that is being read.
    file: Option<FileBody>,
    left: Option<u64>,
    drainer: tokio::task::JoinHandle<()>,
}

impl http_body::Body for Buffered {
    type Data = Bytes;
    type Error = GatewayError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GatewayError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(this.poll_next(cx));
        if let (Some(left), Some(Ok(data))) = (&mut this.left, &frame) {
            *left = left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(frame.map(|data| data.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Buffered {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, GatewayError>>> {
        loop {
            if let Some(file) = &mut self.file {
                if let Some(frame) = std::task::ready!(Pin::new(file).poll_frame(cx)) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::LocalSet;

    use super::*;

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
                tokio::time::sleep(Duration::from_millis(1)).await;
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
