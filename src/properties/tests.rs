//! Every property, of its seeds and of variations of them.

use std::{
    fmt, fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use proptest::{prelude::*, sample::Index, strategy::ValueTree, test_runner::TestRunner};

use super::*;

type Property = fn(&[u8]) -> bool;

/// By the names of the targets in `tests/fuzz`.
const PROPERTIES: [(&str, Property); 10] = [
    ("configuration", configuration),
    ("docassemble", docassemble),
    ("file", file),
    ("forwarded", forwarded),
    ("path", path),
    ("proxy_header", proxy_header),
    ("range", range),
    ("request", request),
    ("response", response),
    ("uwsgi", uwsgi),
];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// The names in a folder, and what the files are.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a folder can be read to its end"))
        .map(|entry| (entry.file_name().into_string().expect("a name is text"), entry.path()))
        .collect();
    files.sort();
    files
}

fn seeds(property: &str) -> Vec<(String, Vec<u8>)> {
    let files = files(&fuzz().join("seeds").join(property)).into_iter();
    files.map(|(name, path)| (name, fs::read(path).expect("a seed can be read"))).collect()
}

#[test]
fn seeds_are_taken_or_refused_as_their_names_say() {
    for (name, property) in PROPERTIES {
        let mut refused = 0;
        let seeds = seeds(name);
        for (seed, bytes) in &seeds {
            let taken = catch_unwind(|| property(bytes)).unwrap_or_else(|_| panic!("{name}/{seed} does not hold"));
            assert_eq!(taken, !seed.starts_with("refused-"), "whether {name}/{seed} was taken");
            refused += usize::from(!taken);
        }
        assert!(refused > 0 && refused < seeds.len(), "{name} has {} seeds, {refused} of them refused", seeds.len());
    }
}

#[test]
fn every_property_has_a_target_and_seeds_and_the_other_way_round() {
    let names = PROPERTIES.map(|(name, _)| name.to_owned());
    let targets: Vec<_> = files(&fuzz().join("targets")).into_iter().map(|(name, _)| name.replace(".rs", "")).collect();
    let folders: Vec<_> = files(&fuzz().join("seeds")).into_iter().map(|(name, _)| name).collect();
    assert_eq!((&targets[..], &folders[..]), (&names[..], &names[..]));
}

/// Bytes that are shown as text.
#[derive(Clone)]
struct Shown(Vec<u8>);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// Seeds, of which some pieces are exchanged for others or for anything.
fn variations(property: &str) -> impl Strategy<Value = Shown> {
    let seeds: Vec<_> = seeds(property).into_iter().map(|(_, bytes)| bytes).collect();
    let words = |seed: &Vec<u8>| {
        let lines = seed.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec);
        let words = seed.split_inclusive(|byte| !byte.is_ascii_alphanumeric()).map(<[u8]>::to_vec);
        lines.chain(words).collect::<Vec<_>>()
    };
    let pieces: Vec<_> = seeds.iter().flat_map(words).filter(|piece| !piece.is_empty()).collect();
    let piece = prop_oneof![
        4 => prop::sample::select(pieces),
        1 => prop::collection::vec(any::<u8>(), 0..6),
        1 => prop::sample::select(vec![b"\r\n".to_vec(), b"\"".to_vec(), b"%2e".to_vec(), b"/".to_vec(), b"\xff".to_vec()]),
    ];
    let edit = (any::<Index>(), 0_usize..12, piece);
    (prop::sample::select(seeds), prop::collection::vec(edit, 0..6)).prop_map(|(mut bytes, edits)| {
        for (at, gone, piece) in edits {
            let at = at.index(bytes.len() + 1);
            let end = (at + gone).min(bytes.len());
            bytes.splice(at..end, piece);
        }
        Shown(bytes)
    })
}

#[test]
fn variations_are_some_taken_and_some_refused() {
    for (name, property) in PROPERTIES {
        let (mut runner, variations) = (TestRunner::deterministic(), variations(name));
        let mut taken = [0, 0];
        for _ in 0..200 {
            let Shown(bytes) = variations.new_tree(&mut runner).expect("nothing is filtered").current();
            taken[usize::from(property(&bytes))] += 1;
        }
        assert!(taken.iter().all(|count| *count >= 5), "{name}: {} refused, {} taken", taken[0], taken[1]);
    }
}

macro_rules! holds_for_variations_of {
    ($($property:ident)*) => {
        mod holds_for_variations_of {
            use super::*;

            proptest! {
                $(
                    #[test]
                    fn $property(Shown(bytes) in variations(stringify!($property))) {
                        super::super::$property(&bytes);
                    }
                )*
            }
        }
    };
}

holds_for_variations_of! { configuration docassemble file forwarded path proxy_header range request response uwsgi }
