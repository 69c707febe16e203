//! The PROXY protocol: a balancer in front says in a header before all else whom it speaks for.
//!
//! Versions 1 and 2 (the specification is `HAProxy`'s). The header is required on a listener that asks for it and
//! never guessed on another. Whoever may send one chooses the client's address, so the caller lets only peers among
//! the trusted proxies in (see [`TrustedProxies`](crate::config::TrustedProxies)) and closes all other connections
//! unread.

use std::{io, net::SocketAddr};

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads the header from `stream`, and not a byte of what follows it.
///
/// `None` for a connection that the balancer makes for itself (`LOCAL`, a health check) or will not say anything about
/// (`UNKNOWN`, families other than IP): the connection's own addresses stand.
///
/// Holds at most 107 bytes of version 1 and 4 KiB of version 2. Has no deadline of its own; cancelling it loses what has
/// been read, so the connection must then be closed.
///
/// # Errors
///
/// On an error the connection must be closed without an answer: the peer is not what the listener is for.
pub async fn read<S>(stream: &mut S) -> Result<Option<Addresses>, ProxyProtocolError>
where
    S: AsyncRead + Unpin,
{
    let mut header = Vec::with_capacity(V1_LIMIT);
    // The shortest of version 1 is a byte shorter than the start of version 2 that holds its length.
    fill(stream, &mut header, V1_SHORTEST).await?;
    if header.starts_with(V2_SIGNATURE) { read_v2(stream, header).await } else { read_v1(stream, header).await }
}

/// Whom a balancer speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where the client connected to.
    pub destination: SocketAddr,
}

/// Why a connection does not begin with a header that can be believed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyProtocolError {
    /// Nothing was sent, as some probes of ports do.
    #[error("the connection was closed before a PROXY header")]
    Closed,
    #[error("the connection was closed within its PROXY header")]
    Truncated,
    #[error("the connection does not begin with a PROXY header; only a balancer that sends one may connect here")]
    Missing,
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error("the PROXY header is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("cannot read the PROXY header")]
    Read { source: io::Error },
}

async fn read_v1<S>(stream: &mut S, mut line: Vec<u8>) -> Result<Option<Addresses>, ProxyProtocolError>
where
    S: AsyncRead + Unpin,
{
    while !line.contains(&b'\n') {
        let next = line.len() + certainly_left(&line);
        if next > V1_LIMIT {
            return Err(ProxyProtocolError::TooLong { limit: V1_LIMIT });
        }
        fill(stream, &mut line, next).await?;
    }
    parse(&line)
}

/// How many bytes a well-formed line that begins with `line` still has at least, so that it is read in few steps and
/// never beyond its end.
fn certainly_left(line: &[u8]) -> usize {
    if line.last() == Some(&b'\r') {
        return 1;
    }
    if line.starts_with(b"PROXY UNKNOWN") {
        return 2;
    }
    // `PROXY TCP4 source destination port port` has five spaces, each before a byte at least.
    let fields = line.split(|byte| *byte == b' ').count();
    6_usize.saturating_sub(fields) * 2 + 2
}

async fn read_v2<S>(stream: &mut S, mut header: Vec<u8>) -> Result<Option<Addresses>, ProxyProtocolError>
where
    S: AsyncRead + Unpin,
{
    fill(stream, &mut header, V2_FIXED).await?;
    let length = V2_FIXED + usize::from(u16::from_be_bytes([header[14], header[15]]));
    if length > V2_LIMIT {
        return Err(ProxyProtocolError::TooLong { limit: V2_LIMIT });
    }
    fill(stream, &mut header, length).await?;
    // The addresses of LOCAL are to be skipped, whatever family they claim to be of.
    if header[12] == V2_LOCAL { Ok(None) } else { parse(&header) }
}

/// Reads until `buffer` has `length` bytes, and gives up at the first that no header has.
async fn fill<S>(stream: &mut S, buffer: &mut Vec<u8>, length: usize) -> Result<(), ProxyProtocolError>
where
    S: AsyncRead + Unpin,
{
    while buffer.len() < length {
        let missing = length - buffer.len();
        let read = (&mut *stream)
            .take(u64::try_from(missing).expect("a header is at most 4 KiB"))
            .read_buf(buffer)
            .await
            .map_err(|source| ProxyProtocolError::Read { source })?;
        if read == 0 {
            return Err(if buffer.is_empty() { ProxyProtocolError::Closed } else { ProxyProtocolError::Truncated });
        }
        if !begins_like(buffer, V1_PREFIX) && !begins_like(buffer, V2_SIGNATURE) {
            return Err(ProxyProtocolError::Missing);
        }
    }
    Ok(())
}

fn begins_like(buffer: &[u8], prefix: &[u8]) -> bool {
    let common = buffer.len().min(prefix.len());
    buffer[..common] == prefix[..common]
}

fn parse(header: &[u8]) -> Result<Option<Addresses>, ProxyProtocolError> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| ProxyProtocolError::Malformed)?;
    if length != header.len() {
        return Err(ProxyProtocolError::Malformed);
    }
    match parsed.proxied_address() {
        // A datagram cannot have come in through a stream.
        Some(address) if address.protocol == Protocol::Datagram => Err(ProxyProtocolError::Malformed),
        Some(address) => Ok(Some(Addresses { source: address.source, destination: address.destination })),
        None => Ok(None),
    }
}

const V1_PREFIX: &[u8] = b"PROXY ";
/// `PROXY UNKNOWN` and the end of the line.
const V1_SHORTEST: usize = 15;
/// The longest line there is, by the specification.
const V1_LIMIT: usize = 107;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length.
const V2_FIXED: usize = 16;
const V2_LOCAL: u8 = 0x20;
/// Far more than addresses and the usual extensions need, far less than the 64 KiB the length could claim.
const V2_LIMIT: usize = 4096;

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use proptest::prelude::*;
    use proxy_header::{ProxiedAddress, Tlv};
    use tokio::io::ReadBuf;

    use super::*;

    const PAYLOAD: &[u8] = b"\x16\x03\x01PROXY \r\n";

    /// Gives its bytes in the pieces it was made of.
    struct Pieces(Vec<Vec<u8>>);

    impl Pieces {
        fn split(bytes: &[u8], at: usize) -> Self {
            let (first, second) = bytes.split_at(at.min(bytes.len()));
            Self([first, second].into_iter().filter(|piece| !piece.is_empty()).map(<[u8]>::to_vec).collect())
        }

        fn left(&self) -> Vec<u8> {
            self.0.concat()
        }
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if let Some(piece) = self.0.first_mut() {
                let length = piece.len().min(into.remaining());
                into.put_slice(&piece[..length]);
                piece.drain(..length);
                if piece.is_empty() {
                    self.0.remove(0);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    type Outcome = Result<Option<Addresses>, ProxyProtocolError>;

    fn read_all(stream: &mut Pieces) -> Outcome {
        futures_util::FutureExt::now_or_never(read(stream)).expect("the stream never waits")
    }

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, body].concat()
    }

    const V2_TCP4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x30, 0x39, 1, 0xbb];

    fn accepted() -> Vec<(Vec<u8>, Option<Addresses>)> {
        let client = || Some(addresses("192.0.2.1:12345", "198.51.100.2:443"));
        let v4 = ProxiedAddress::stream("192.0.2.1:12345".parse().unwrap(), "198.51.100.2:443".parse().unwrap());
        let v6 = ProxiedAddress::stream("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
        let encode = |header: ProxyHeader<'_>| {
            let mut bytes = Vec::new();
            header.encode_v2(&mut bytes).unwrap();
            bytes
        };
        let longest =
            format!("PROXY TCP6 {0} {0} 65535 65535\r\n", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").into_bytes();
        let full = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n".to_vec(), client()),
            (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".to_vec(), Some(addresses("0.0.0.0:0", "0.0.0.0:0"))),
            (b"PROXY TCP6 :: ::1 1 2\r\n".to_vec(), Some(addresses("[::]:1", "[::1]:2"))),
            (longest, Some(addresses(full, full))),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN x\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ::1 65535 65535\r\n".to_vec(), None),
            (v2(0x21, 0x11, &V2_TCP4), client()),
            (encode(ProxyHeader::with_address(v6)), Some(addresses("[2001:db8::1]:1", "[2001:db8::2]:2"))),
            (encode(ProxyHeader::with_tlvs(Some(v4), [Tlv::Authority("a.example".into()), Tlv::Noop(900)])), client()),
            (v2(0x20, 0x00, b""), None),
            // LOCAL: whatever the rest says is skipped.
            (v2(0x20, 0x11, b""), None),
            (v2(0x20, 0xff, &[7; 40]), None),
            (v2(0x21, 0x00, &[7; 9]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x11, &[&V2_TCP4[..], &[0xff; 4096 - 16 - 12]].concat()), client()),
        ]
    }

    #[test]
    fn a_header_is_read_to_its_last_byte_and_no_further_wherever_it_is_split() {
        for (header, expected) in accepted() {
            let stream = [&header, PAYLOAD].concat();
            for at in 0..=stream.len().min(600) {
                let mut pieces = Pieces::split(&stream, at);
                assert_eq!(read_all(&mut pieces).unwrap(), expected, "{} split at {at}", header.escape_ascii());
                assert_eq!(pieces.left(), PAYLOAD, "{} split at {at}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn a_header_that_ends_early_is_an_error_at_every_length() {
        for (header, _) in accepted() {
            for length in 0..header.len().min(600) {
                let outcome = read_all(&mut Pieces::split(&header[..length], length));
                match outcome {
                    Err(ProxyProtocolError::Closed) if length == 0 => {}
                    Err(ProxyProtocolError::Truncated) if length > 0 => {}
                    other => panic!("{} of {}: {other:?}", length, header.escape_ascii()),
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_header_is_refused() {
        let table: Vec<(Vec<u8>, &str)> = vec![
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "Missing"),
            (b"\x16\x03\x01\x02\0\x01".to_vec(), "Missing"),
            // As soon as it cannot become one, however little was sent.
            (b"G".to_vec(), "Missing"),
            (b"PROXI".to_vec(), "Missing"),
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), "Missing"),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 12345\r\nGET / HTTP/1.1\r\n".to_vec(), "Malformed"),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), "Malformed"),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 99999 443\r\n".to_vec(), "Malformed"),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\nGET".to_vec(), "Malformed"),
            (b"PROXY UDP4 192.0.2.1 198.51.100.2 12345 443\r\n".to_vec(), "Malformed"),
            ([b"PROXY TCP4 ", &[b'1'; 200][..]].concat(), "TooLong"),
            ([b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(), "TooLong"),
            (v2(0x21, 0x11, &V2_TCP4[..11]), "Malformed"),
            (v2(0x21, 0x12, &V2_TCP4), "Malformed"),
            (v2(0x21, 0x41, &V2_TCP4), "Malformed"),
            (v2(0x22, 0x11, &V2_TCP4), "Malformed"),
            (v2(0x11, 0x11, &V2_TCP4), "Malformed"),
            (v2(0x21, 0x11, &[0; 4096]), "TooLong"),
        ];

        for (bytes, expected) in table {
            let outcome = read_all(&mut Pieces::split(&bytes, bytes.len()));
            let name = format!("{:?}", outcome.unwrap_err());
            assert!(name.starts_with(expected), "{}: expected {expected}, got {name}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn the_bytes_behind_a_header_are_left_in_the_socket() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let sent = b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\nhello";
        tokio::io::AsyncWriteExt::write_all(&mut client, sent).await.unwrap();
        drop(client);

        let header = read(&mut server).await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();

        assert_eq!(header, Some(addresses("192.0.2.1:12345", "198.51.100.2:443")));
        assert_eq!(rest, b"hello");
    }

    fn header_like() -> impl Strategy<Value = Vec<u8>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300);
        let line = "PROXY (TCP4|TCP6|UNKNOWN|UDP4) [0-9a-f.: ]{0,100}(\r\n|\n|\r|)";
        prop_oneof![
            bytes(),
            bytes().prop_map(|rest| [V1_PREFIX, &rest].concat()),
            bytes().prop_map(|rest| [V2_SIGNATURE, &rest].concat()),
            (line, bytes()).prop_map(|(line, rest)| [line.as_bytes(), &rest].concat()),
            (0x1f_u8..0x23, any::<u8>(), bytes(), bytes()).prop_map(|(command, family, body, rest)| [
                v2(command, family, &body),
                rest
            ]
            .concat()),
        ]
    }

    proptest! {
        #[test]
        fn a_header_is_read_to_its_end_as_it_says_or_refused(bytes in header_like()) {
            crate::properties::proxy_header(&bytes);
        }

        #[test]
        fn addresses_survive_both_versions(source: SocketAddr, port: u16, six: bool) {
            let destination = SocketAddr::new(
                if source.is_ipv6() { "2001:db8::2".parse().unwrap() } else { "192.0.2.2".parse().unwrap() },
                port,
            );
            // Scope and flow do not travel.
            let source = SocketAddr::new(source.ip(), source.port());
            let header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
            let mut bytes = Vec::new();
            if six { header.encode_v2(&mut bytes).unwrap() } else { header.encode_v1(&mut bytes).unwrap() }

            let read = read_all(&mut Pieces::split(&bytes, bytes.len())).unwrap();

            prop_assert_eq!(read, Some(Addresses { source, destination }));
        }
    }
}
