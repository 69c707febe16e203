//! One request as every client sends it, and how its answer is checked.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use bytes::Bytes;

use super::ledger::Kind;

/// A request that knows its answer.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) target: String,
    pub(super) body: Content,
    expected: Expected,
    /// The least time that a large body takes, in either direction.
    pub(super) pace: Duration,
}

#[derive(Clone)]
pub(super) enum Content {
    None,
    Small(Bytes),
    /// All blocks of [`Large`].
    Large(Large),
}

enum Expected {
    Text(String),
    Body { length: u64, digest: String },
}

impl Job {
    pub(super) fn get() -> Self {
        let id = next();
        Self::new(id, Kind::Get, format!("/hello?n={id}"), Content::None, Expected::Text(format!("hello {id}")))
    }

    pub(super) fn slow() -> Self {
        let id = next();
        let target = format!("/slow?n={id}&ms={}", fastrand::u32(20..200));
        Self::new(id, Kind::Slow, target, Content::None, Expected::Text(format!("hello {id}")))
    }

    pub(super) fn post() -> Self {
        let id = next();
        let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(fastrand::usize(1..2000)).collect();
        let expected = format!("{} {}", body.len(), hex(&aws_lc_rs::digest::digest(&SHA256, &body)));
        Self::new(id, Kind::Post, format!("/digest?n={id}"), Content::Small(body.into()), Expected::Text(expected))
    }

    pub(super) fn upload(large: &Large, pace: Duration) -> Self {
        let id = next();
        let expected = Expected::Text(format!("{} {}", large.length(), large.digest));
        let content = Content::Large(large.clone());
        Self { pace, ..Self::new(id, Kind::Upload, format!("/digest?n={id}"), content, expected) }
    }

    pub(super) fn download(large: &Large, pace: Duration) -> Self {
        let id = next();
        let expected = Expected::Body { length: large.length(), digest: large.digest.clone() };
        Self { pace, ..Self::new(id, Kind::Download, format!("/large?n={id}"), Content::None, expected) }
    }

    /// One below `prefix` that is in no account.
    pub(super) fn probe(prefix: &str) -> Self {
        Self::new(0, Kind::Get, format!("{prefix}hello?n=0"), Content::None, Expected::Text("hello 0".to_owned()))
    }

    fn new(id: u64, kind: Kind, target: String, body: Content, expected: Expected) -> Self {
        Self { id, kind, target, body, expected, pace: Duration::ZERO }
    }

    pub(super) fn method(&self) -> &'static str {
        if matches!(self.body, Content::None) { "GET" } else { "POST" }
    }

    pub(super) fn length(&self) -> u64 {
        match &self.body {
            Content::None => 0,
            Content::Small(body) => body.len() as u64,
            Content::Large(large) => large.length(),
        }
    }

    /// Longer than a proxy may hold it, and than a large body takes.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(60) + 5 * self.pace
    }

    /// When the block with this number is due.
    pub(super) fn due(&self, begun: Instant, block: u64, blocks: u64) -> tokio::time::Instant {
        let pace = u64::try_from(self.pace.as_micros()).expect("a pace is seconds");
        let part = pace * block / blocks.max(1);
        (begun + Duration::from_micros(part)).into()
    }

    pub(super) fn check(&self, answer: &Answer) -> Result<(), String> {
        if answer.status != 200 {
            return Err(format!("{} {}", answer.status, answer.beginning().lines().next().unwrap_or_default()));
        }
        match &self.expected {
            Expected::Text(text) if answer.beginning() == *text => Ok(()),
            Expected::Text(text) => Err(format!("`{}` instead of `{text}`", answer.beginning())),
            Expected::Body { length, digest } if answer.length == *length && answer.digest() == *digest => Ok(()),
            Expected::Body { length, .. } => Err(format!("{} bytes instead of {length}, or other ones", answer.length)),
        }
    }
}

/// An answer, of whose body only what the check needs is kept.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) length: u64,
    beginning: Vec<u8>,
    digest: Context,
}

impl Answer {
    pub(super) fn begin(status: u16) -> Self {
        Self { status, length: 0, beginning: Vec::new(), digest: Context::new(&SHA256) }
    }

    pub(super) fn take(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.digest.update(piece);
        let room = KEPT.saturating_sub(self.beginning.len()).min(piece.len());
        self.beginning.extend_from_slice(&piece[..room]);
    }

    fn beginning(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.beginning)
    }

    fn digest(&self) -> String {
        hex(&self.digest.clone().finish())
    }
}

/// A large body of numbered blocks, the same at the clients and in the application.
#[derive(Clone)]
pub(super) struct Large {
    block: Bytes,
    pub(super) blocks: u64,
    digest: String,
}

impl Large {
    pub(super) fn new(blocks: u64) -> Self {
        let mut large = Self { block: crate::support::noise(BLOCK).into(), blocks, digest: String::new() };
        let mut digest = Context::new(&SHA256);
        (0..blocks).for_each(|number| digest.update(&large.block(number)));
        large.digest = hex(&digest.finish());
        large
    }

    pub(super) fn length(&self) -> u64 {
        self.blocks * BLOCK as u64
    }

    pub(super) fn block(&self, number: u64) -> Bytes {
        let mut block = self.block.to_vec();
        block[..8].copy_from_slice(&number.to_be_bytes());
        block.into()
    }

    pub(super) fn pattern(&self) -> &[u8] {
        &self.block
    }
}

fn hex(digest: &Digest) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A number that no other request of this process has; none has 0.
pub(super) fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Bytes of a block.
pub(super) const BLOCK: usize = 64 * 1024;

/// How much of an answer is kept to be looked at.
const KEPT: usize = 1024;
