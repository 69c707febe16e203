//! Bytes that wait, in the order they came.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A queue of bytes whose cost is what they are: short pieces are copied together, so that a body of many does not take
/// many times its length to keep.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    whole: VecDeque<Bytes>,
    /// Short pieces, behind all others.
    tail: BytesMut,
    length: usize,
}

impl Pieces {
    pub(super) fn push(&mut self, data: Bytes) {
        self.length += data.len();
        if data.len() < SHORT {
            self.tail.extend_from_slice(&data);
            if self.tail.len() >= JOINED {
                self.whole.push_back(self.tail.split().freeze());
            }
        } else {
            if !self.tail.is_empty() {
                self.whole.push_back(self.tail.split().freeze());
            }
            self.whole.push_back(data);
        }
    }

    /// Takes the first bytes there are.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let data = match self.whole.pop_front() {
            None if self.tail.is_empty() => return None,
            None => self.tail.split().freeze(),
            Some(data) => data,
        };
        self.length -= data.len();
        Some(data)
    }

    /// Takes everything.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

/// A piece below this is copied to its neighbours, up to that.
const SHORT: usize = 2 * 1024;
const JOINED: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_in_the_order_they_went_in(lengths in proptest::collection::vec(0..5000_usize, 0..40)) {
            let (mut pieces, mut whole) = (Pieces::default(), Vec::new());
            for (number, length) in lengths.iter().enumerate() {
                let data = vec![u8::try_from(number).unwrap(); *length];
                whole.extend_from_slice(&data);
                pieces.push(data.into());
            }
            prop_assert_eq!(pieces.length(), whole.len());
            prop_assert_eq!(pieces.take().concat(), whole);
            prop_assert!(pieces.is_empty());
        }
    }

    #[test]
    fn many_short_pieces_become_few() {
        let mut pieces = Pieces::default();
        for _ in 0..100_000 {
            pieces.push(Bytes::from_static(b"x"));
        }

        assert!(pieces.take().len() < 10);
    }
}
