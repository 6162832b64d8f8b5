//! What a fuzzer feeds: layers, as registries and archives have them. Each runs on any bytes and panics only if the
//! unpacker breaks its promises.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::tar::{Archive, BLOCK, Entry, numeric};
use super::{
    Bounded, Expected, Limits, Skeleton, Tree, UnpackError, complete, extract, recreate, unpack,
};
use crate::store::blobs::Digest;
use crate::store::remove_tree::remove_tree;

/// As tight as inputs are short. Of the window, as much is allocated as a frame asks for.
fn limits() -> Limits {
    Limits {
        entries: 100,
        bytes: 4 << 20,
        ratio: 50,
        ratio_floor: 1 << 20,
        sparse_length: 1 << 30,
        sparse_pieces: 100,
        header: 64 << 10,
        window: 1 << 20,
        ..Limits::default()
    }
}

/// A packed stream, read at once and in small pieces: both must give the same.
pub fn packed(bytes: &[u8]) {
    // How much was read of what is packed when the ratio is looked at differs.
    let limits = Limits {
        ratio: u64::MAX,
        ..limits()
    };
    let at_once = unpacked(bytes, bytes.len().max(1), &limits);
    let in_steps = unpacked(bytes, 1, &limits);
    assert_eq!(at_once.1, in_steps.1);
    assert!(at_once.0 == in_steps.0, "not the same bytes");
}

/// What comes out, and how it ended.
fn unpacked(bytes: &[u8], step: usize, limits: &Limits) -> (Vec<u8>, Option<String>) {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    let mut stream = match Bounded::without_digest(Steps { bytes, step }, limits) {
        Ok(stream) => stream,
        Err(error) => return (all, Some(error.to_string())),
    };
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, None),
            Ok(length) => all.extend_from_slice(&buffer[..length]),
            // Where exactly too much was seen is where a piece ended.
            Err(error) => return (Vec::new(), Some(error.to_string())),
        }
    }
}

/// A tar stream, perhaps packed, unpacked as that of a layer in the empty folder `ground`, which is empty again
/// afterwards. Needs root.
///
/// # Panics
/// If something outside of the layer's own folder was touched; if a layer that was taken cannot be made again, bit for
/// bit, though its skeleton is there.
pub fn layer(bytes: &[u8], ground: &Path) {
    let (stream, broken) = unpacked(bytes, bytes.len().max(1), &limits());
    if broken.is_none() {
        let at_once = entries(&stream, stream.len().max(1));
        assert_eq!(at_once, entries(&stream, 7));
    }
    let (canary, fs, kept) = (
        ground.join("canary"),
        ground.join("fs"),
        ground.join("skeleton"),
    );
    fs::write(&canary, "canary").expect("a file");
    fs::create_dir(&fs).expect("a folder");
    let before = changed(&canary);
    let tree = Tree::open(&fs).expect("a folder");
    let expected = Expected {
        packed: None,
        diff: Digest::of(&stream),
    };
    let skeleton = Skeleton::new(File::create_new(&kept).expect("a file"));
    let outcome = unpack(bytes, expected, &tree, skeleton, &limits(), &|| true);
    assert_eq!(changed(&canary), before);
    if let Ok(found) = outcome {
        assert_eq!(broken, None, "it was taken though");
        complete(&tree, found.opaque, &found.implicit, &[], &|| true).expect("folders");
        if found.recreatable {
            let skeleton = File::open(&kept).expect("a file");
            let mut again = Vec::new();
            recreate(skeleton, &tree, &mut again, &|| true).expect("what was just unpacked");
            assert!(again == stream, "not the same stream");
        }
        twice(&stream, &tree, found.opaque);
    }
    drop(tree);
    fs::remove_file(&kept).expect("a file");
    fs::remove_file(&canary).expect("a file");
    remove_tree(&fs).expect("a folder that can be removed");
    let left = fs::read_dir(ground).expect("a folder").count();
    assert_eq!(left, 0, "something was left beside the layer's folder");
}

/// What was taken is taken once more over itself: every entry replaces one.
fn twice(stream: &[u8], tree: &Tree, opaque: bool) {
    // Entries in an order that works once may not work again: a file where a folder was, for one.
    if let Ok(found) = extract(stream, tree, &limits(), &|| true) {
        assert_eq!(found.opaque, opaque);
    }
}

fn changed(path: &Path) -> (i64, i64, u64) {
    let metadata = fs::symlink_metadata(path).expect("it is still there");
    (metadata.ctime(), metadata.ctime_nsec(), metadata.nlink())
}

/// The entries of a tar stream with their data, and how it ended.
fn entries(stream: &[u8], step: usize) -> (Vec<(Entry, Vec<u8>)>, Option<String>) {
    let mut found = Vec::new();
    let mut archive = Archive::new(
        Steps {
            bytes: stream,
            step,
        },
        &limits(),
    );
    let mut next = || -> Result<bool, UnpackError> {
        let Some(entry) = archive.next()? else {
            return Ok(false);
        };
        let mut data = Vec::new();
        archive.read_to_end(&mut data)?;
        found.push((entry, data));
        Ok(true)
    };
    let end = loop {
        match next() {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(error.to_string()),
        }
    };
    (found, end)
}

/// Gives every header of a tar stream the sum that it should have, so that changes get beyond it.
pub fn mend(stream: &mut [u8]) {
    let mut rest = stream;
    while let Some((header, after)) = rest.split_first_chunk_mut::<BLOCK>() {
        if *header != [0; BLOCK] {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let data = numeric(&header[124..136]).unwrap_or(0);
        let skip = data.saturating_add(BLOCK as u64 - 1) / BLOCK as u64 * BLOCK as u64;
        let skip = usize::try_from(skip).map_or(after.len(), |skip| skip.min(after.len()));
        rest = &mut after[skip..];
    }
}

/// A reader that gives so many bytes at a time.
struct Steps<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Steps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = self.step.min(buffer.len());
        self.bytes.read(&mut buffer[..most])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;
    use proptest::prelude::*;

    fn on_a_ground(bytes: &[u8]) {
        let ground = tempfile::tempdir().expect("a folder");
        layer(bytes, ground.path());
    }

    #[test]
    fn the_corpus_breaks_nothing() {
        corpus::of("layer")
            .iter()
            .for_each(|bytes| on_a_ground(bytes));
        corpus::of("packed").iter().for_each(|bytes| packed(bytes));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn changed_layers_break_nothing(mut bytes in corpus::changed("layer"), mended: bool) {
            if mended {
                mend(&mut bytes);
            }
            on_a_ground(&bytes);
        }

        #[test]
        fn changed_packed_streams_break_nothing(bytes in corpus::changed("packed")) {
            packed(&bytes);
        }
    }
}
