//! A client of HTTP/1.1 that keeps its connection, and knows whether any byte of an answer had come when it broke.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep_until, timeout},
};

use super::{
    job::{Answer, BLOCK, Content, Job},
    ledger::{Exchange, Protocol},
};

pub(super) struct Client {
    address: SocketAddr,
    connection: Option<Connection>,
}

struct Connection {
    stream: TcpStream,
    opened: Instant,
    used: bool,
    read: BytesMut,
}

/// Why there is no answer.
struct Trouble {
    /// A part of one had come.
    answered: bool,
    error: String,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Sends `job`, and a GET once more on a new connection where a kept one proves to be closed.
    pub(super) async fn exchange(&mut self, job: &Job) -> Exchange {
        let begun = Instant::now();
        let (mut connected, mut retried) = (None, 0);
        let error = loop {
            let connection = match self.connection.take().filter(Connection::is_open) {
                Some(connection) => connection,
                None => match connect(self.address).await {
                    Ok(connection) => connection,
                    Err(error) => break Some(format!("cannot connect: {error}")),
                },
            };
            connected = Some(connection.opened);
            let reused = connection.used;
            match timeout(job.patience(), connection.exchange(job)).await {
                Ok(Ok((answer, connection))) => {
                    self.connection = connection;
                    break job.check(&answer).err();
                }
                Ok(Err(trouble)) if reused && !trouble.answered && job.method() == "GET" && retried == 0 => retried = 1,
                Ok(Err(trouble)) => break Some(trouble.error),
                Err(_) => break Some(format!("no answer within {:?}", job.patience())),
            }
        };
        let ended = Instant::now();
        let (id, kind, protocol) = (job.id, job.kind, Protocol::H1);
        Exchange { id, kind, protocol, connected, begun, ended, retried, resent: 0, error }
    }
}

async fn connect(address: SocketAddr) -> io::Result<Connection> {
    let stream = timeout(CONNECT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(Connection { stream, opened: Instant::now(), used: false, read: BytesMut::new() })
}

impl Connection {
    /// Whether nothing speaks against sending a request on it.
    fn is_open(&self) -> bool {
        // Asked of the socket itself: the reactor may not have heard of its end yet.
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = socket2::SockRef::from(&self.stream).peek(&mut byte);
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn exchange(mut self, job: &Job) -> Result<(Answer, Option<Self>), Trouble> {
        self.used = true;
        let sent = self.send(job).await;
        // What the peer has said before it broke off counts: it may say why.
        match (self.receive(job).await, sent) {
            (Ok((answer, true)), Ok(())) => Ok((answer, Some(self))),
            (Ok((answer, _)), _) => Ok((answer, None)),
            (Err(trouble), Ok(())) => Err(trouble),
            (Err(trouble), Err(error)) => {
                Err(Trouble { error: format!("{} after a failed write: {error}", trouble.error), ..trouble })
            }
        }
    }

    async fn send(&mut self, job: &Job) -> io::Result<()> {
        let mut head =
            format!("{} {} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: soak\r\n", job.method(), job.target).into_bytes();
        if !matches!(job.body, Content::None) {
            head.extend_from_slice(format!("Content-Length: {}\r\n", job.length()).as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        match &job.body {
            Content::None => self.stream.write_all(&head).await,
            Content::Small(body) => {
                head.extend_from_slice(body);
                self.stream.write_all(&head).await
            }
            Content::Large(large) => {
                self.stream.write_all(&head).await?;
                let begun = Instant::now();
                for number in 0..large.blocks {
                    sleep_until(job.due(begun, number, large.blocks)).await;
                    self.stream.write_all(&large.block(number)).await?;
                }
                Ok(())
            }
        }
    }

    /// The answer, and whether another request may follow.
    async fn receive(&mut self, job: &Job) -> Result<(Answer, bool), Trouble> {
        let head = loop {
            if let Some(head) = self.head()? {
                break head;
            }
            self.more().await?;
        };
        let begun = Instant::now();
        let mut answer = Answer::begin(head.status);
        let mut due = 0;
        while answer.length < head.length {
            if self.read.is_empty() {
                self.more().await.map_err(|trouble| Trouble { answered: true, ..trouble })?;
            }
            let piece = usize::try_from(head.length - answer.length).unwrap_or(usize::MAX).min(self.read.len());
            answer.take(&self.read[..piece]);
            self.read.advance(piece);
            if answer.length / BLOCK as u64 > due {
                due = answer.length / BLOCK as u64;
                sleep_until(job.due(begun, due, head.length / BLOCK as u64)).await;
            }
        }
        Ok((answer, head.keeps))
    }

    async fn more(&mut self) -> Result<(), Trouble> {
        self.read.reserve(BLOCK);
        let error = match self.stream.read_buf(&mut self.read).await {
            Ok(0) => "the connection was closed".to_owned(),
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        };
        Err(Trouble { answered: !self.read.is_empty(), error })
    }

    /// The head of the answer, taken off what has been read; `None` while it is not whole.
    fn head(&mut self) -> Result<Option<Head>, Trouble> {
        let refused = |error: String| Trouble { answered: true, error };
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(&self.read).map_err(|error| refused(format!("not an answer: {error}")))?;
        let httparse::Status::Complete(size) = parsed else { return Ok(None) };
        let field = |name: &str| {
            let found = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            found.map(|field| String::from_utf8_lossy(field.value).trim().to_ascii_lowercase())
        };
        let Some(length) = field("content-length").and_then(|length| length.parse().ok()) else {
            return Err(refused(format!("{} without a length", response.code.unwrap_or(0))));
        };
        let keeps = field("connection").is_none_or(|value| value != "close");
        let head = Head { status: response.code.unwrap_or(0), length, keeps };
        self.read.advance(size);
        Ok(Some(head))
    }
}

struct Head {
    status: u16,
    length: u64,
    keeps: bool,
}

/// The longest wait for one connection.
const CONNECT: Duration = Duration::from_secs(10);
