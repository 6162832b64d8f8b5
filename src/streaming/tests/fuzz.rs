//! The corpus of the fuzz targets, and changes of it, through the same functions.

use std::path::Path;

use proptest::prelude::*;

use crate::streaming::fuzz;

type Target = fn(&[u8]);

fn corpus(target: &str) -> Vec<Vec<u8>> {
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

/// A seed with some bytes changed, left out, doubled or put in, and another seed behind it.
fn changed(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let seeds = corpus(target);
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

#[test]
fn the_corpus_breaks_nothing() {
    let targets: [(&str, Target); 3] = [
        ("spdy", fuzz::spdy),
        ("websocket", fuzz::websocket),
        ("sizes", fuzz::sizes),
    ];
    for (name, target) in targets {
        corpus(name).iter().for_each(|bytes| target(bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_spdy_breaks_nothing(bytes in changed("spdy")) {
        fuzz::spdy(&bytes);
    }

    #[test]
    fn changed_messages_break_nothing(bytes in changed("websocket")) {
        fuzz::websocket(&bytes);
    }

    #[test]
    fn changed_sizes_break_nothing(bytes in changed("sizes")) {
        fuzz::sizes(&bytes);
    }

    #[test]
    fn noise_breaks_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        fuzz::spdy(&bytes);
        fuzz::websocket(&bytes);
        fuzz::sizes(&bytes);
    }
}
