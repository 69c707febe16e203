//! The socket between the keeper and a worker, or the agent.
//!
//! From the keeper come messages of any size. A short one is a packet; the text of a long one is in memory that nobody can
//! change any more (a sealed `memfd`), handed over as a descriptor like the sockets and files that go with it.
//!
//! The keeper takes less than it gives, since whoever reads the network may have been taken over. From a worker come
//! words of a fixed size ([`Link::hear`]), and no descriptor is taken in. From the agent come messages up to
//! [`LONGEST_SAID`] ([`Link::listen`]); the only descriptor that is taken in is the memory of a long one, and only if it is
//! sealed: nothing else could be read without the risk of waiting for whoever is behind it, or be held to its size.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixDatagram};
use zeroize::Zeroizing;

use super::message::{NoWord, WORD, Word};

/// One end of the link.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixDatagram,
    /// Given up for the moment in which descriptors come, so that there is room for them though connections have taken
    /// all there may be.
    reserve: RefCell<Vec<OwnedFd>>,
}

/// Why a message did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the link between the processes: {0}")]
    Io(#[from] io::Error),
    #[error("a message between the processes cannot be read: {0}")]
    Content(#[from] postcard::Error),
    #[error("a message between the processes does not have the announced form")]
    Form,
    #[error("a message between the processes has {0} bytes, more than are taken")]
    Long(u64),
    #[error("a message between the processes is in memory that could still be changed")]
    Unsealed,
}

impl LinkError {
    /// Whether the other side has gone, which is no fault of anybody's.
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Io(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset))
    }
}

impl Link {
    /// A link, and its other end for the standard input of a worker.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::over(ours)?, theirs))
    }

    /// The end that we were begun with.
    pub(super) fn from_stdin() -> io::Result<Self> {
        Self::over(io::stdin().as_fd().try_clone_to_owned()?)
    }

    /// The end `socket`.
    pub(super) fn over(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        // Packets, as those of datagrams, but in a connection whose end is seen; tokio looks at readiness only.
        Ok(Self { socket: UnixDatagram::from_std(socket)?, reserve: RefCell::default() })
    }

    /// The socket, to be handed on.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Keeps room for the descriptors of one packet from now on.
    pub(super) fn keep_room(&self) {
        let mut reserve = self.reserve.borrow_mut();
        while reserve.len() < BATCH
            && let Ok(spare) = self.socket().try_clone_to_owned()
        {
            reserve.push(spare);
        }
    }

    /// Sends `message` with `descriptors`; waits while the other side is behind.
    ///
    /// Not to be cancelled and tried again: part of a message may have gone.
    pub(super) async fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let content = content_of(message)?;
        if descriptors.is_empty() && content.len() <= SHORT {
            let packet = Zeroizing::new([&[WHOLE][..], &content].concat());
            return Ok(self.socket.async_io(Interest::WRITABLE, || send(self.socket(), &packet, &[])).await?);
        }
        let content = sealed(&content)?;
        for (packet, batch) in packets(&all(&content, descriptors))? {
            self.socket.async_io(Interest::WRITABLE, || send(self.socket(), &packet, batch)).await?;
        }
        Ok(())
    }

    /// The same where there is room for all of it; nothing is waited for.
    pub(super) fn send_now(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let content = sealed(&content_of(message)?)?;
        for (packet, batch) in packets(&all(&content, descriptors))? {
            send(self.socket(), &packet, batch)?;
        }
        Ok(())
    }

    /// The next message and what came with it; `None` when the other side has gone.
    pub(super) async fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, LinkError> {
        let mut packet = Zeroizing::new(vec![0; SHORT + 1]);
        let (length, mut descriptors) = self.packet(&mut packet).await?;
        if length == 0 {
            return Ok(None);
        }
        if packet[0] == WHOLE {
            return Ok(Some((postcard::from_bytes(&packet[1..length])?, descriptors)));
        }
        let head = Head::decode(&packet[..length]).ok_or(LinkError::Form)?;
        let expected = head.descriptors as usize + 1;
        if expected > MOST_DESCRIPTORS {
            return Err(LinkError::Form);
        }
        while descriptors.len() < expected {
            let (length, more) = self.packet(&mut packet).await?;
            if packet[..length] != MORE || more.is_empty() {
                return Err(LinkError::Form);
            }
            descriptors.extend(more);
        }
        if descriptors.len() > expected {
            return Err(LinkError::Form);
        }
        let content = read(&File::from(descriptors.remove(0)), LONGEST)?;
        Ok(Some((postcard::from_bytes(&content)?, descriptors)))
    }

    /// The next message of one who is not trusted, without descriptors; `None` when the other side has gone.
    ///
    /// # Errors
    ///
    /// It is no such message. What follows cannot be told apart.
    pub(super) async fn listen<T: DeserializeOwned>(&self) -> Result<Option<T>, LinkError> {
        let mut packet = Zeroizing::new(vec![0; SHORT + 1]);
        let (length, mut descriptors) = self.packet(&mut packet).await?;
        match (packet[0], descriptors.pop()) {
            _ if length == 0 => Ok(None),
            (WHOLE, None) => Ok(Some(postcard::from_bytes(&packet[1..length])?)),
            (_, Some(memory)) if descriptors.is_empty() && packet[..length] == (Head { descriptors: 0 }).encode() => {
                // Only memory has seals: a file, or a pipe, is not even looked at.
                if !fcntl_get_seals(&memory).is_ok_and(|seals| seals.contains(FIXED)) {
                    return Err(LinkError::Unsealed);
                }
                Ok(Some(postcard::from_bytes(&read(&File::from(memory), LONGEST_SAID)?)?))
            }
            _ => Err(LinkError::Form),
        }
    }

    async fn packet(&self, packet: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let receive = || {
            let mut first = [WHOLE];
            recv(self.socket(), &mut first[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            // Whoever says all in one packet sends no descriptors, and is heard most of the time.
            if first == [WHOLE] || self.reserve.borrow().is_empty() {
                return receive(self.socket(), packet);
            }
            self.reserve.borrow_mut().clear();
            let received = receive(self.socket(), packet);
            self.keep_room();
            received
        };
        self.socket.async_io(Interest::READABLE, receive).await
    }

    /// Says `word`; waits while the keeper is behind.
    pub(super) async fn say(&self, word: Word) -> io::Result<()> {
        let bytes = word.encode();
        self.socket.async_io(Interest::WRITABLE, || send(self.socket(), &bytes, &[])).await
    }

    /// The next word of a worker; `Ok(None)` when it has gone.
    ///
    /// # Errors
    ///
    /// What it said is no word. The next one may be. Cancel-safe.
    pub(super) async fn hear(&self) -> io::Result<Option<Result<Word, NoWord>>> {
        self.socket.async_io(Interest::READABLE, || hear(self.socket())).await
    }
}

/// `message` as bytes, in a buffer that never grows: it may hold keys, of which no copy is left behind in freed memory.
fn content_of(message: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, LinkError> {
    let mut content = Zeroizing::new(vec![0; postcard::experimental::serialized_size(message)?]);
    postcard::to_slice(message, &mut content)?;
    Ok(content)
}

fn hear(socket: BorrowedFd<'_>) -> io::Result<Option<Result<Word, NoWord>>> {
    // One byte more, so that a longer packet is seen to be one.
    let mut bytes = [0; WORD + 1];
    // No room for descriptors: the kernel closes those that were sent.
    let mut nothing = RecvAncillaryBuffer::default();
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut nothing, RecvFlags::DONTWAIT)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Some(Err(NoWord::Descriptors)));
    }
    if received.bytes == 0 && !received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(None);
    }
    Ok(Some(Word::decode(&bytes[..received.bytes])))
}

fn all<'fd>(content: &'fd OwnedFd, descriptors: &[BorrowedFd<'fd>]) -> Vec<BorrowedFd<'fd>> {
    [content.as_fd()].into_iter().chain(descriptors.iter().copied()).collect()
}

/// What a message goes in: its content, which is the first of `all`, and the descriptors that go with it.
fn packets<'a, 'fd>(
    all: &'a [BorrowedFd<'fd>],
) -> Result<impl Iterator<Item = ([u8; PACKET], &'a [BorrowedFd<'fd>])>, LinkError> {
    let head = Head { descriptors: u32::try_from(all.len() - 1).map_err(|_| LinkError::Form)? };
    Ok(all
        .chunks(BATCH)
        .enumerate()
        .map(move |(number, batch)| (if number == 0 { head.encode() } else { MORE }, batch)))
}

/// The first packet of a message.
struct Head {
    /// That go with the message, besides the one it is in.
    descriptors: u32,
}

impl Head {
    fn encode(&self) -> [u8; PACKET] {
        let mut packet = *b"VEST\x01\0\0\0\0";
        packet[5..].copy_from_slice(&self.descriptors.to_le_bytes());
        packet
    }

    fn decode(packet: &[u8]) -> Option<Self> {
        let count = packet.strip_prefix(b"VEST\x01")?.try_into().ok()?;
        Some(Self { descriptors: u32::from_le_bytes(count) })
    }
}

/// All of `content`, at most `longest` bytes.
fn read(content: &File, longest: u64) -> Result<Zeroizing<Vec<u8>>, LinkError> {
    let length = content.metadata()?.len();
    if length > longest {
        return Err(LinkError::Long(length));
    }
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).map_err(|_| LinkError::Long(length))?]);
    content.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Memory with `content` that nobody can change any more.
fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create("vestibule", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(content)?;
    fcntl_add_seals(&file, FIXED | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Sends one packet at once, or not at all.
pub(super) fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(descriptors).size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags)?;
    Ok(())
}

/// Receives one packet, if there is one; nothing of it is left behind.
pub(super) fn receive(socket: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(packet)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        return Err(io::Error::new(ErrorKind::InvalidData, "a packet was cut: descriptors may have run out"));
    }
    Ok((received.bytes, descriptors))
}

/// What a packet says that only brings more descriptors.
pub(super) const MORE: [u8; PACKET] = *b"VESTMORE\0";
const PACKET: usize = 9;

/// The first byte of a packet that is a message by itself.
const WHOLE: u8 = 0;
/// Bytes of the longest of these. What goes into the socket's buffer at once.
const SHORT: usize = 32 << 10;

/// Descriptors of one packet; the kernel takes 253.
pub(super) const BATCH: usize = 64;
const MOST_DESCRIPTORS: usize = 16_384;
/// Bytes of one message of the keeper's.
const LONGEST: u64 = 256 << 20;
/// Bytes of one message to the keeper.
pub(super) const LONGEST_SAID: u64 = 4 << 20;
/// What content and length cannot be changed with.
const FIXED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn links() -> (Link, Link) {
        let (ours, theirs) = Link::pair().unwrap();
        (ours, Link::over(theirs).unwrap())
    }

    #[tokio::test]
    async fn a_message_comes_with_its_descriptors_in_their_order() {
        let (keeper, worker) = links();
        let pipes: Vec<_> = (0..200).map(|_| UnixStream::pair().unwrap()).collect();
        let text = "x".repeat(3 << 20);
        let descriptors: Vec<_> = pipes.iter().map(|(ours, _)| ours.as_fd()).collect();

        let (sent, received) = tokio::join!(keeper.send(&text, &descriptors), worker.receive::<String>());

        sent.unwrap();
        let (said, handed) = received.unwrap().unwrap();
        assert!(said == text && handed.len() == pipes.len());
        for ((_, theirs), (number, handed)) in pipes.iter().zip((0_u8..).zip(handed)) {
            UnixStream::from(handed).write_all(&[number]).unwrap();
            let mut byte = [0];
            io::Read::read_exact(&mut &*theirs, &mut byte).unwrap();
            assert_eq!(byte[0], number);
        }
        drop(keeper);
        assert!(worker.receive::<String>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn words_are_heard_and_what_is_none_is_refused_and_the_next_one_heard() {
        let (keeper, worker) = links();
        let say = |bytes: &[u8], descriptors: &[BorrowedFd<'_>]| send(worker.socket(), bytes, descriptors).unwrap();
        let pipe = UnixStream::pair().unwrap();

        worker.say(Word::Ready).await.unwrap();
        say(b"open /etc/shadow, please, and give it to me", &[]);
        say(&Word::Ready.encode(), &[pipe.0.as_fd()]);
        say(b"short", &[]);
        say(&vec![7; 100_000], &[]);
        worker.say(Word::Upgrade { id: 1 }).await.unwrap();

        let mut heard = Vec::new();
        for _ in 0..6 {
            heard.push(keeper.hear().await.unwrap().unwrap());
        }
        let expected = [
            Ok(Word::Ready),
            Err(NoWord::Length),
            Err(NoWord::Descriptors),
            Err(NoWord::Length),
            Err(NoWord::Length),
            Ok(Word::Upgrade { id: 1 }),
        ];
        assert_eq!(heard, expected);
        // The descriptor was closed by the kernel, not kept by us.
        let (ours, mut theirs) = pipe;
        drop(ours);
        assert_eq!(io::Read::read(&mut theirs, &mut [0]).unwrap(), 0);
        drop(worker);
        assert!(keeper.hear().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_message_that_is_not_as_announced_is_an_error() {
        let (keeper, worker) = links();
        for packet in [&b"VEST\x02\0\0\0\0"[..], b"VEST\x01\xff\xff\xff\xff", b"?"] {
            send(keeper.socket(), packet, &[]).unwrap();
            assert!(worker.receive::<String>().await.is_err(), "{packet:?}");
        }
    }

    #[tokio::test]
    async fn the_keeper_takes_messages_of_any_length_up_to_a_bound_and_in_sealed_memory_only() {
        let (keeper, agent) = links();
        for length in [3, SHORT + 1, 3 << 20] {
            let text = "x".repeat(length);
            let (sent, heard) = tokio::join!(agent.send(&text, &[]), keeper.listen::<String>());
            sent.unwrap();
            assert!(heard.unwrap().unwrap() == text, "{length}");
        }

        let long = "x".repeat(5 << 20);
        agent.send(&long, &[]).await.unwrap();
        assert!(matches!(keeper.listen::<String>().await, Err(LinkError::Long(_))));

        let head = Head { descriptors: 0 }.encode();
        let unsealed = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let (pipe, _end) = io::pipe().unwrap();
        for descriptor in [unsealed.as_fd(), pipe.as_fd()] {
            send(agent.socket(), &head, &[descriptor]).unwrap();
            assert!(matches!(keeper.listen::<String>().await, Err(LinkError::Unsealed)));
        }
        let sealed = sealed(&postcard::to_stdvec("x").unwrap()).unwrap();
        for (packet, descriptors) in [
            (&head[..], &[][..]),
            (&head, &[sealed.as_fd(), pipe.as_fd()]),
            (&Head { descriptors: 1 }.encode(), &[sealed.as_fd()]),
            (&[WHOLE, 1, b'x'], &[pipe.as_fd()]),
        ] {
            send(agent.socket(), packet, descriptors).unwrap();
            assert!(matches!(keeper.listen::<String>().await, Err(LinkError::Form)), "{packet:?}");
        }
        drop(agent);
        assert!(keeper.listen::<String>().await.unwrap().is_none());
    }
}
