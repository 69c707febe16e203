//! The PROXY protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures_util::FutureExt;
use tokio::io::AsyncReadExt;

use crate::listener::proxy_protocol::{Addresses, ProxyProtocolError, read};

/// A header is read to its last byte and no further, wherever it is cut, and says what the specification has it say.
pub fn proxy_header(bytes: &[u8]) -> bool {
    let whole = read_in_pieces(bytes, 0);
    for cut in [1, 5, 13, 16, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        match (&whole, read_in_pieces(bytes, cut)) {
            (Ok(expected), Ok(found)) => assert_eq!(found, *expected, "{} cut at {cut}", bytes.escape_ascii()),
            (Err(_), Err(_)) => {}
            (_, found) => panic!("{} cut at {cut}: {found:?} and not {whole:?}", bytes.escape_ascii()),
        }
    }
    let Ok((addresses, left)) = whole else { return false };
    let header = &bytes[..bytes.len() - left];
    assert_eq!(read_in_pieces(header, 0).expect("alone it is the same"), (addresses, 0));
    let shorter = read_in_pieces(&header[..header.len() - 1], 0);
    assert!(matches!(shorter, Err(ProxyProtocolError::Truncated)), "{shorter:?} a byte before the end");
    let said = if header.starts_with(b"PROXY ") { said_in_version_1(header) } else { said_in_version_2(header) };
    assert_eq!(addresses, said, "{}", header.escape_ascii());
    true
}

/// What is read, and how many bytes are left.
fn read_in_pieces(bytes: &[u8], cut: usize) -> Result<(Option<Addresses>, usize), ProxyProtocolError> {
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut stream = first.chain(second);
    let read = read(&mut stream).now_or_never().expect("bytes that are there are not waited for")?;
    let (first, second) = stream.into_inner();
    Ok((read, first.len() + second.len()))
}

fn said_in_version_1(header: &[u8]) -> Option<Addresses> {
    assert!(header.len() <= 107, "longer than a header can be");
    let line = header.strip_suffix(b"\r\n").expect("it ends with its line");
    if line.starts_with(b"PROXY UNKNOWN") {
        return None;
    }
    let words: Vec<_> = str::from_utf8(line).expect("addresses are text").split(' ').collect();
    let &["PROXY", family, source, destination, source_port, port] = &words[..] else { panic!("{words:?}") };
    let address = |text: &str| match family {
        "TCP4" => IpAddr::V4(text.parse::<Ipv4Addr>().expect("an IPv4 address")),
        "TCP6" => IpAddr::V6(text.parse::<Ipv6Addr>().expect("an IPv6 address")),
        other => panic!("{other} was accepted"),
    };
    let port_of = |text: &str| text.parse::<u16>().expect("a port");
    Some(Addresses {
        source: SocketAddr::new(address(source), port_of(source_port)),
        destination: SocketAddr::new(address(destination), port_of(port)),
    })
}

fn said_in_version_2(header: &[u8]) -> Option<Addresses> {
    assert!(header.len() <= 4096, "longer than we hold");
    assert!(header.starts_with(b"\r\n\r\n\0\r\nQUIT\n"), "neither version");
    let (command, family, body) = (header[12], header[13], &header[16..]);
    assert_eq!(usize::from(u16::from_be_bytes([header[14], header[15]])), body.len(), "the length that is said");
    let port_at = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match (command, family) {
        (0x20, _) | (0x21, 0x00 | 0x31) => None,
        (0x21, 0x11) => {
            let address = |at: usize| Ipv4Addr::from(*body[at..].first_chunk::<4>().expect("four bytes"));
            Some(Addresses { source: (address(0), port_at(8)).into(), destination: (address(4), port_at(10)).into() })
        }
        (0x21, 0x21) => {
            let address = |at: usize| Ipv6Addr::from(*body[at..].first_chunk::<16>().expect("sixteen bytes"));
            Some(Addresses { source: (address(0), port_at(32)).into(), destination: (address(16), port_at(34)).into() })
        }
        other => panic!("{other:x?} was accepted"),
    }
}
