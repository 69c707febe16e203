//! Which file is opened, and what of it is sent.

use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use tokio::runtime::{Builder, Runtime};

use crate::files::{Roots, Selection, select};

/// What is opened is a regular file below the root, wherever links and parents lead.
pub fn file(bytes: &[u8]) -> bool {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime can be made");
    }
    let Ok(open) = RUNTIME.with(|runtime| runtime.block_on(ROOTS.file(bytes))) else { return false };
    let real = fs::read_link(Path::new("/proc/self/fd").join(open.file.as_raw_fd().to_string()));
    let real = real.expect("the kernel knows where it is");
    assert!(real.starts_with(ROOT), "{} is {}", bytes.escape_ascii(), real.display());
    assert!(open.file.metadata().is_ok_and(|file| file.is_file()), "{} is no file", real.display());
    true
}

/// A line with the length of a file, and the value of `Range`.
pub fn range(bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let length = parts.next().and_then(|line| str::from_utf8(line).ok()?.parse().ok());
    let (Some(length), Some(header)) = (length, parts.next()) else { return false };
    selection(header, length)
}

/// [`range`], of the parts: what is selected lies within the file, apart from each other, in few pieces, and is what was asked for.
pub(crate) fn selection(header: &[u8], length: u64) -> bool {
    let mut ranges = match select(header, length) {
        Selection::Whole => return false,
        Selection::Ranges(ranges) => {
            assert!(!ranges.is_empty());
            ranges
        }
        Selection::Unsatisfiable => Vec::new(),
    };
    assert!(ranges.len() <= 16, "{} ranges", ranges.len());
    ranges.sort_by_key(|range| range.start);
    for range in &ranges {
        assert!(range.start < range.end && range.end <= length, "{range:?} of {length}");
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].end < pair[1].start, "{pair:?}");
    }
    let specs = str::from_utf8(header).expect("numbers are ASCII").split_once('=').expect("a unit").1;
    for byte in (0..length.min(40)).chain(length.saturating_sub(40)..length) {
        let sent = ranges.iter().any(|range| range.contains(&byte));
        let asked = specs.split(',').any(|spec| asks_for(spec.trim_ascii(), byte, length));
        assert_eq!(sent, asked, "byte {byte} of {length}, {specs}");
    }
    true
}

/// Whether `byte` is in a `range-spec` (RFC 9110, 14.1.2).
fn asks_for(spec: &str, byte: u64, length: u64) -> bool {
    let Some((first, last)) = spec.split_once('-') else { return false };
    // A number that does not fit is larger than any.
    let number = |digits: &str| digits.parse::<u128>().unwrap_or(u128::MAX);
    let byte = u128::from(byte);
    match (first, last) {
        ("", suffix) => u128::from(length) - byte <= number(suffix),
        (first, "") => number(first) <= byte,
        (first, last) => number(first) <= byte && byte <= number(last),
    }
}

/// A folder that every system has, with links in it that lead out and back.
const ROOT: &str = "/usr";

static ROOTS: LazyLock<Roots> = LazyLock::new(|| {
    let (roots, missing) = Roots::open(&[PathBuf::from(ROOT)], &Arc::default()).expect("it can be opened");
    assert!(missing.is_empty(), "it is there");
    roots
});
