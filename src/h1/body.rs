//! Where a body ends, and what comes before that.

use bytes::{Buf, Bytes, BytesMut};

/// How the end of a body is told (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// After this many bytes; 0 is no body.
    Fixed(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection (responses only).
    UntilClose,
}

/// Why a body cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("a chunk is malformed: {0}")]
    Chunk(&'static str),
    #[error("the connection ended before the body did")]
    Truncated,
}

/// One step of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    Data(Bytes),
    /// Read more from the peer first.
    NeedMore,
    End,
}

/// Takes a body off the front of a buffer.
///
/// Chunk extensions and trailers are read over and dropped (RFC 9112, 7.1.1 and 7.1.2), each within [`MAX_LINE`]
/// and [`MAX_TRAILERS`] bytes.
#[derive(Debug)]
pub struct BodyDecoder(State);

#[derive(Debug)]
enum State {
    Fixed(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers { read: usize },
    Done,
}

impl BodyDecoder {
    pub fn new(length: BodyLength) -> Self {
        Self(match length {
            BodyLength::Fixed(0) => State::Done,
            BodyLength::Fixed(length) => State::Fixed(length),
            BodyLength::Chunked => State::ChunkSize,
            BodyLength::UntilClose => State::UntilClose,
        })
    }

    /// The whole body has been taken.
    pub fn is_done(&self) -> bool {
        matches!(self.0, State::Done)
    }

    /// What is left, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.0 {
            State::Fixed(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Leaves out the next `count` bytes of a body of known length: they have gone some other way (splice).
    ///
    /// More than [`Self::remaining`] counts as all of them.
    pub fn skip(&mut self, count: u64) {
        if let State::Fixed(left) = &mut self.0 {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.0 = State::Done;
            }
        }
    }

    /// Takes what there is at the front of `buffer`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, BodyError> {
        loop {
            match &mut self.0 {
                State::Done => return Ok(Decoded::End),
                _ if buffer.is_empty() => return Ok(Decoded::NeedMore),
                State::UntilClose => return Ok(Decoded::Data(buffer.split().freeze())),
                State::Fixed(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        self.0 = State::Done;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::ChunkData(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        self.0 = State::ChunkEnd;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::ChunkSize => {
                    let Some(line) = line(buffer)? else { return Ok(Decoded::NeedMore) };
                    let size = chunk_size(&line)?;
                    self.0 = if size == 0 { State::Trailers { read: 0 } } else { State::ChunkData(size) };
                }
                State::ChunkEnd => {
                    if buffer.len() < 2 {
                        return Ok(Decoded::NeedMore);
                    }
                    if &buffer[..2] != b"\r\n" {
                        return Err(BodyError::Chunk("it is longer than its size says"));
                    }
                    buffer.advance(2);
                    self.0 = State::ChunkSize;
                }
                State::Trailers { read } => {
                    let Some(line) = line(buffer)? else { return Ok(Decoded::NeedMore) };
                    *read += line.len() + 2;
                    if line.is_empty() {
                        self.0 = State::Done;
                    } else if *read > MAX_TRAILERS {
                        return Err(BodyError::Chunk("the trailer section is too long"));
                    }
                }
            }
        }
    }

    /// The peer has closed its side: whether that was the end of the body.
    pub fn end_of_stream(&mut self) -> Result<(), BodyError> {
        match self.0 {
            State::Done | State::UntilClose => {
                self.0 = State::Done;
                Ok(())
            }
            _ => Err(BodyError::Truncated),
        }
    }
}

fn take(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= length as u64;
    buffer.split_to(length).freeze()
}

/// Takes one line off the buffer, without its CR LF.
fn line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, BodyError> {
    let Some(end) = buffer.iter().take(MAX_LINE + 2).position(|byte| *byte == b'\n') else {
        return if buffer.len() > MAX_LINE + 1 { Err(BodyError::Chunk("a line is too long")) } else { Ok(None) };
    };
    let mut line = buffer.split_to(end + 1);
    if end == 0 || line[end - 1] != b'\r' {
        return Err(BodyError::Chunk("a line does not end in CR LF"));
    }
    line.truncate(end - 1);
    if line.contains(&b'\r') || line.contains(&0) {
        return Err(BodyError::Chunk("a control byte in a line"));
    }
    Ok(Some(line))
}

/// `chunk-size [ chunk-ext ]` (RFC 9112, 7.1).
fn chunk_size(line: &[u8]) -> Result<u64, BodyError> {
    let (size, extension) = match line.iter().position(|byte| !byte.is_ascii_hexdigit()) {
        Some(end) => line.split_at(end),
        None => (line, &[][..]),
    };
    if !extension.trim_ascii_start().is_empty() && extension.trim_ascii_start()[0] != b';' {
        return Err(BodyError::Chunk("the size is not a hexadecimal number"));
    }
    if size.is_empty() || size.len() > 15 {
        return Err(BodyError::Chunk("the size is not a hexadecimal number of at most 15 digits"));
    }
    Ok(size.iter().fold(0, |number, digit| {
        number << 4 | u64::from((*digit as char).to_digit(16).expect("only hexadecimal digits were taken"))
    }))
}

/// Bytes of a chunk-size line (with extensions) or of a trailer field.
pub(super) const MAX_LINE: usize = 4096;
/// Bytes of a trailer section.
pub(super) const MAX_TRAILERS: usize = 16 * 1024;
