//! What the fuzzers begin with, for tests: `fuzz/corpus`, as it is and changed.

use std::path::Path;

use proptest::prelude::*;

/// The inputs of a fuzz target.
pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{dir:?} is empty");
    let read = files.iter().map(std::fs::read);
    read.collect::<Result<_, _>>().expect("files")
}

/// An input with some bytes changed, left out, doubled or put in, and another one behind it.
pub(crate) fn changed(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds = of(target);
    let edits =
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 0..8);
    let pick = proptest::sample::select(seeds);
    (pick.clone(), proptest::option::of(pick), edits).prop_map(|(mut bytes, more, edits)| {
        bytes.extend(more.into_iter().flatten());
        for (index, byte, edit) in edits {
            if bytes.is_empty() {
                break;
            }
            let index = index.index(bytes.len());
            match edit {
                0 => bytes[index] = byte,
                1 => bytes[index] ^= 1 << (byte % 8),
                2 => drop(bytes.drain(index..(index + usize::from(byte % 16)).min(bytes.len()))),
                _ => bytes.insert(index, byte),
            }
        }
        bytes
    })
}
