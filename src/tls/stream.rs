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
            if sent.len() > HELLO {
                return Err(io::Error::other("the hello is too long"));
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
        let mut records = mem::take(&mut stream.incoming);
        let mut processed = stream.take(&mut records, &mut ReadBuf::new(&mut []));
        poll_fn(|cx| stream.poll_handshake(cx, &mut processed)).await?;
        Ok(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// What was agreed on.
    pub fn terms(&self) -> &CommonState {
        &self.tls
    }

    /// `processed` is what came of the records that were read last.
    fn poll_handshake(&mut self, cx: &mut Context<'_>, processed: &mut io::Result<()>) -> Poll<io::Result<()>> {
        loop {
            // Also where it has failed: an alert says why.
            ready!(self.poll_send(cx))?;
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            mem::replace(processed, Ok(()))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            *processed = ready!(self.poll_records(cx, &mut ReadBuf::new(&mut [])));
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
            Poll::Ready(self.take(records, into))
        })
    }

    /// Takes all that is whole from `records`, and keeps the rest.
    fn take(&mut self, records: &mut [u8], into: &mut ReadBuf<'_>) -> io::Result<()> {
        let done = self.process(records, into)?;
        self.keep(&records[done..]);
        Ok(())
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
        for piece in pieces.iter().take(PIECES) {
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
        if this.reading == Reading::Failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
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
            if let Err(error) = read {
                // What came before it is not given either: nobody could tell that it is a part.
                buffer.set_filled(before);
                this.plaintext = BytesMut::new();
                return Poll::Ready(Err(error));
            }
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
            let (taken, sealed) = this.seal(pieces, place).map_err(|error| this.fail(error))?;
            // Straight on, in the common case.
            let sent = match Pin::new(&mut this.io).poll_write(cx, &place[..sealed]) {
                Poll::Ready(sent) => sent.map_err(|error| this.fail(error))?,
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
        let mut read = ReadBuf::new(&mut place[..RECORD]);
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
/// What a client may have sent when its hello is whole: that, and what it sends without waiting.
const HELLO: usize = 3 * RECORD;
/// What lies around so many records as are encrypted at once, beyond what they hold.
const OVERHEAD: usize = 1024;
/// Pieces that are encrypted for one system call, each into records of its own, and their bytes.
const PIECES: usize = 16;
const SEALED_AT_ONCE: usize = 64 * 1024;

thread_local! {
    /// Records as they have come: so long that the longest handshake message that rustls takes fits.
    static RECEIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; 64 * 1024 + RECORD].into());
    /// Records that are to be sent.
    static SEALED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEALED_AT_ONCE + OVERHEAD].into());
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::aws_lc_rs,
        pki_types::{PrivateKeyDer, ServerName},
        version::{TLS12, TLS13},
    };
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio_rustls::{TlsConnector, client};

    use super::*;

    const PROTOCOLS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

    fn terms(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, TlsConnector) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        // A client that is done with the handshake and does not read yet makes no room for them.
        server.send_tls13_tickets = 0;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server), Arc::new(client).into())
    }

    /// Both ends, where so many bytes are on their way at most.
    async fn ends(
        version: &'static SupportedProtocolVersion,
        on_the_way: usize,
    ) -> (TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
        let (config, connector) = terms(version);
        let (ours, theirs) = duplex(on_the_way);
        let accept = async { Greeted::read(ours).await.unwrap().agree(config).await.unwrap() };
        let connect = connector.connect(ServerName::try_from("localhost").unwrap(), theirs);
        let (ours, theirs) = tokio::join!(accept, connect);
        (ours, theirs.unwrap())
    }

    #[tokio::test]
    async fn everything_comes_through_in_whatever_pieces_and_nothing_is_kept_after_it() {
        let sent: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for version in PROTOCOLS {
            // The client reads nothing before it has sent the six bytes of its `change_cipher_spec`.
            for (on_the_way, length) in [(7, 20_000), (1000, 200_000), (1 << 20, 200_000)] {
                let sent = &sent[..length];
                let (mut ours, mut theirs) = ends(version, on_the_way).await;
                let echo = async {
                    let mut back = vec![0; 3_000];
                    loop {
                        match ours.read(&mut back).await.unwrap() {
                            0 => break,
                            count => {
                                ours.write_all(&back[..count]).await.unwrap();
                                ours.flush().await.unwrap();
                            }
                        }
                    }
                    assert_eq!((ours.incoming.capacity(), ours.plaintext.capacity()), (0, 0));
                    ours.shutdown().await.unwrap();
                    assert_eq!(ours.outgoing.capacity(), 0);
                };
                let (mut reading, mut writing) = tokio::io::split(&mut theirs);
                let write = async {
                    writing.write_all(sent).await.unwrap();
                    writing.shutdown().await.unwrap();
                };
                let mut came = Vec::new();
                let (_, (), ()) = tokio::join!(reading.read_to_end(&mut came), write, echo);
                assert!(came == sent, "{version:?} by {on_the_way}: {} bytes", came.len());
            }
        }
    }

    #[tokio::test]
    async fn pieces_are_sent_in_order_and_as_much_as_fits_at_once() {
        let (mut ours, mut theirs) = ends(&TLS13, 1 << 20).await;
        let pieces = [vec![1; 30_000], Vec::new(), vec![2; 30_000], vec![3; 30_000]];
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();

        let taken = ours.write_vectored(&pieces).await.unwrap();
        ours.flush().await.unwrap();

        assert_eq!(taken, SEALED_AT_ONCE);
        let mut came = vec![0; taken];
        theirs.read_exact(&mut came).await.unwrap();
        assert!(came[..30_000].iter().all(|byte| *byte == 1) && came[30_000..60_000].iter().all(|byte| *byte == 2));
        assert!(came[60_000..].iter().all(|byte| *byte == 3));
    }

    #[tokio::test]
    async fn keys_may_change_under_way() {
        let (mut ours, mut theirs) = ends(&TLS13, 1 << 20).await;
        for _ in 0..3 {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.write_all(b"question").await.unwrap();
            let mut came = [0; 8];
            ours.read_exact(&mut came).await.unwrap();
            ours.write_all(b"answer").await.unwrap();
            ours.flush().await.unwrap();
            let mut answer = [0; 6];
            theirs.read_exact(&mut answer).await.unwrap();
            assert_eq!((&came, &answer), (b"question", b"answer"));
        }
    }

    #[tokio::test]
    async fn what_is_no_record_is_answered_by_an_alert_and_ends_it() {
        for version in PROTOCOLS {
            let (mut ours, theirs) = ends(version, 1 << 20).await;
            let (mut raw, _session) = theirs.into_inner();
            // Sessions that the client has been given to resume with.
            let given = ours.flush().await;
            raw.write_all(&[
                23, 3, 3, 0, 32, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
            ])
            .await
            .unwrap();
            raw.write_all(&[0; 10]).await.unwrap();

            let refused = ours.read(&mut [0; 100]).await.unwrap_err();
            assert_eq!((given.is_ok(), refused.kind()), (true, io::ErrorKind::InvalidData), "{refused}");
            assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(ours.read(&mut [0; 100]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            drop(ours);
            let mut said = Vec::new();
            raw.read_to_end(&mut said).await.unwrap();
            assert!(!said.is_empty(), "{version:?}: no alert");
        }
    }

    #[tokio::test]
    async fn who_says_no_hello_is_sent_an_alert() {
        let (ours, mut theirs) = duplex(1 << 20);
        theirs.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();

        assert!(Greeted::read(ours).await.is_err());

        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert_eq!((said[0], said.len()), (21, 7), "{said:?}");
    }

    #[tokio::test]
    async fn an_end_that_was_not_said_is_an_error() {
        for version in PROTOCOLS {
            let (mut ours, theirs) = ends(version, 1 << 20).await;
            drop(theirs.into_inner());
            assert_eq!(ours.read(&mut [0; 100]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

            let (mut ours, mut theirs) = ends(version, 1 << 20).await;
            theirs.write_all(b"last").await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut came = Vec::new();
            ours.read_to_end(&mut came).await.unwrap();
            assert_eq!(came, b"last");
        }
    }
}
