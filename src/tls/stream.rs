//! A client's connection under TLS, which keeps no buffer while nothing is under way.
//!
//! A connection of rustls' own keeps the 4 KiB that it reads into for as long as it lasts. Here records are read into, and
//! encrypted in, places that a thread has once; what is kept with a connection is a record that has come in part, and what
//! has not been taken yet, by us or by the client.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rustls::{
    CommonState, ServerConfig,
    server::{Accepted, Acceptor, ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// What comes and goes is encrypted; the handshake is over.
pub struct TlsStream<S> {
    io: S,
    tls: UnbufferedServerConnection,
    /// Records that have come in part.
    incoming: Vec<u8>,
    /// Decrypted, and not taken yet.
    plaintext: BytesMut,
    /// Encrypted, and not sent yet.
    outgoing: BytesMut,
    reading: Reading,
    said_goodbye: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    /// The client has said that nothing more comes.
    Ended,
    /// Nothing more can be understood, or said.
    Failed,
}

/// A client that has said hello, and is to be told the terms.
pub(super) struct Greeted<S> {
    io: S,
    accepted: Accepted,
    /// All that it has sent.
    sent: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeted<S> {
    /// Waits for the hello. A client whose hello is none is sent the alert that says why.
    pub(super) async fn read(mut io: S) -> io::Result<Self> {
        let mut acceptor = Acceptor::default();
        let mut sent = Vec::new();
        loop {
            let seen = sent.len();
            if poll_fn(|cx| poll_append(&mut io, cx, &mut sent)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut unseen = &sent[seen..];
            while !unseen.is_empty() {
                acceptor.read_tls(&mut unseen)?;
                match acceptor.accept() {
                    Ok(Some(accepted)) => return Ok(Self { io, accepted, sent }),
                    Ok(None) => {}
                    Err((error, mut alert)) => {
                        let mut said = Vec::new();
                        alert.write_all(&mut said)?;
                        io.write_all(&said).await?;
                        return Err(invalid(error));
                    }
                }
            }
        }
    }

    pub(super) fn hello(&self) -> rustls::server::ClientHello<'_> {
        self.accepted.client_hello()
    }

    /// Agrees with the client on the terms of `config`.
    pub(super) async fn agree(self, config: Arc<ServerConfig>) -> io::Result<TlsStream<S>> {
        let Self { io, accepted, sent } = self;
        // It cannot be taken on from there without a buffer; the hello is read once more.
        drop(accepted);
        let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let mut stream = TlsStream {
            io,
            tls,
            incoming: sent,
            plaintext: BytesMut::new(),
            outgoing: BytesMut::new(),
            reading: Reading::Open,
            said_goodbye: false,
        };
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// What was agreed on.
    pub fn terms(&self) -> &CommonState {
        &self.tls
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut nothing = ReadBuf::new(&mut []);
        let mut records = mem::take(&mut self.incoming);
        let mut processed = self.process(&mut records, &mut nothing);
        if let Ok(done) = processed {
            self.keep(&records[done..]);
        }
        loop {
            // Also where it has failed: an alert says why.
            ready!(self.poll_send(cx))?;
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            processed?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            processed = ready!(self.poll_records(cx, &mut nothing)).map(|()| 0);
        }
    }

    /// Reads what has come; what it holds goes to `into`, and beyond its room to `plaintext`.
    fn poll_records(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        RECEIVED.with_borrow_mut(|place| {
            let held = self.incoming.len();
            // No more than is asked for, that little of it has to be kept; a record comes whole or not at all.
            let end = place.len().min(held + RECORD.max(into.remaining() + OVERHEAD));
            if held == end {
                return Poll::Ready(Err(self.fail(io::Error::other("a handshake message is too long"))));
            }
            let mut read = ReadBuf::new(&mut place[held..end]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            let count = read.filled().len();
            if count == 0 {
                return Poll::Ready(Err(self.fail(io::ErrorKind::UnexpectedEof.into())));
            }
            let records = &mut place[..held + count];
            records[..held].copy_from_slice(&self.incoming);
            let done = self.process(records, into)?;
            self.keep(&records[done..]);
            Poll::Ready(Ok(()))
        })
    }

    /// Takes all that is whole from `records`, and says to `outgoing` what is to be said; answers how many bytes are done with.
    fn process(&mut self, records: &mut [u8], into: &mut ReadBuf<'_>) -> io::Result<usize> {
        let Self { tls, plaintext, outgoing, reading, .. } = self;
        let mut done = 0;
        loop {
            let UnbufferedStatus { discard, state } = tls.process_tls_records(&mut records[done..]);
            done += discard;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        done += record.discard;
                        give(record.payload, into, plaintext);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut message)) => encode(&mut message, outgoing)?,
                // It goes before everything else.
                Ok(ConnectionState::TransmitTlsData(message)) => message.done(),
                Ok(ConnectionState::PeerClosed) => *reading = Reading::Ended,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => {
                    return Ok(done);
                }
                Ok(state) => {
                    let unforeseen = format!("{state:?}");
                    return Err(self.fail(io::Error::other(unforeseen)));
                }
                Err(error) => {
                    // The alert that says why; and nothing more is read.
                    while tls.wants_write()
                        && let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(mut message)), .. } =
                            tls.process_tls_records(&mut records[done..])
                    {
                        encode(&mut message, outgoing)?;
                    }
                    return Err(self.fail(invalid(error)));
                }
            }
        }
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        self.reading = Reading::Failed;
        error
    }

    /// Keeps what has come of a record that is not whole.
    fn keep(&mut self, part: &[u8]) {
        if part.is_empty() {
            self.incoming = Vec::new();
        } else {
            self.incoming.clear();
            self.incoming.extend_from_slice(part);
        }
    }

    /// Encrypts of `pieces` what there is room for; answers how much that was, and as how many bytes in `place`.
    fn seal(&mut self, pieces: &[IoSlice<'_>], place: &mut [u8]) -> io::Result<(usize, usize)> {
        let UnbufferedStatus { state: Ok(ConnectionState::WriteTraffic(mut traffic)), .. } =
            self.tls.process_tls_records(&mut self.incoming)
        else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let (mut taken, mut sealed) = (0, 0);
        for piece in pieces {
            let piece = &piece[..piece.len().min(SEALED_AT_ONCE - taken)];
            sealed += traffic.encrypt(piece, &mut place[sealed..]).map_err(io::Error::other)?;
            taken += piece.len();
        }
        Ok((taken, sealed))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(sent);
        }
        self.outgoing = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if !this.plaintext.is_empty() {
            let count = this.plaintext.len().min(buffer.remaining());
            buffer.put_slice(&this.plaintext[..count]);
            this.plaintext.advance(count);
            if this.plaintext.is_empty() {
                this.plaintext = BytesMut::new();
            }
        }
        while buffer.filled().len() == before && buffer.remaining() > 0 && this.reading == Reading::Open {
            let read = ready!(this.poll_records(cx, buffer));
            // What a record asks to be answered, and an alert: it need not be waited for.
            if !this.outgoing.is_empty() {
                let _sent: Poll<_> = this.poll_send(cx);
            }
            read?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.reading == Reading::Failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_send(cx))?;
        SEALED.with_borrow_mut(|place| {
            let (taken, sealed) = this.seal(pieces, place)?;
            // Straight on, in the common case.
            let sent = match Pin::new(&mut this.io).poll_write(cx, &place[..sealed]) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            };
            this.outgoing.extend_from_slice(&place[sent..sealed]);
            Poll::Ready(Ok(taken))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !mem::replace(&mut this.said_goodbye, true) && this.reading != Reading::Failed {
            let status = this.tls.process_tls_records(&mut this.incoming);
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state {
                let mut goodbye = [0; OVERHEAD];
                let length = traffic.queue_close_notify(&mut goodbye).map_err(io::Error::other)?;
                this.outgoing.extend_from_slice(&goodbye[..length]);
            }
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// Reads what has come of a hello.
fn poll_append<S: AsyncRead + Unpin>(io: &mut S, cx: &mut Context<'_>, to: &mut Vec<u8>) -> Poll<io::Result<usize>> {
    RECEIVED.with_borrow_mut(|place| {
        let mut read = ReadBuf::new(place);
        ready!(Pin::new(io).poll_read(cx, &mut read))?;
        to.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

fn give(data: &[u8], into: &mut ReadBuf<'_>, beyond: &mut BytesMut) {
    // In order: once something lies beyond, everything does.
    let count = if beyond.is_empty() { data.len().min(into.remaining()) } else { 0 };
    into.put_slice(&data[..count]);
    beyond.extend_from_slice(&data[count..]);
}

fn encode(message: &mut EncodeTlsData<'_, ServerConnectionData>, outgoing: &mut BytesMut) -> io::Result<()> {
    let before = outgoing.len();
    if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
        outgoing.resize(before + size.required_size, 0);
        message.encode(&mut outgoing[before..]).map_err(io::Error::other)?;
    }
    Ok(())
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The most that a record takes on the wire (RFC 5246, 6.2.3, whose allowance is the larger one).
const RECORD: usize = 5 + 16 * 1024 + 2048;
/// What lies around a record, or a few, beyond what they hold.
const OVERHEAD: usize = 1024;
/// Bytes that are encrypted for one system call.
const SEALED_AT_ONCE: usize = 64 * 1024;

thread_local! {
    /// Records as they have come: so long that the longest handshake message that rustls takes fits.
    static RECEIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; 64 * 1024 + RECORD].into());
    /// Records that are to be sent.
    static SEALED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEALED_AT_ONCE + OVERHEAD].into());
}
