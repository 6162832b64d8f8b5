//! One file as a layer: for content that is not packed in an archive.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, mkdirat, openat};

use super::pax::Time;
use super::tree::{apply, set_times, split};
use super::{Metadata, Tree, UnpackError, Unpacked, check};
use crate::store::blobs::{Digest, Hash};

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;
/// What everything takes of the disk at least, about.
const BLOCK: u64 = 4096;

/// Writes what `content` gives to the file `name` in the empty folder `tree`. The name is a checked one. Size and digest are
/// checked at the end. `proceed` is asked now and then.
///
/// # Errors
/// [`UnpackError`].
pub fn single(
    tree: &Tree,
    name: &str,
    mut content: impl Read,
    expected: Digest,
    proceed: &dyn Fn() -> bool,
) -> Result<Unpacked, UnpackError> {
    let path = name.as_bytes();
    let write = |error| UnpackError::write(path, error);
    let mut implicit = vec![Vec::new()];
    let mut folder = tree.folder(b"").map_err(write)?;
    let (parents, last) = split(path);
    let mut below = Vec::new();
    for part in parents
        .split(|&b| b == b'/')
        .filter(|part| !part.is_empty())
    {
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(part);
        implicit.push(below.clone());
        mkdirat(&folder, part, Mode::from_raw_mode(0o755)).map_err(write)?;
        folder = tree.folder(&below).map_err(write)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file: OwnedFd = openat(&folder, last, flags, Mode::from_raw_mode(0o600)).map_err(write)?;
    let mut file = File::from(file);
    let mut hash = Hash::default();
    let mut buffer = vec![0; PIECE];
    loop {
        if !proceed() {
            return Err(UnpackError::Cancelled);
        }
        let length = crate::store::blobs::read_some(&mut content, &mut buffer)?;
        if length == 0 {
            break;
        }
        let piece = &buffer[..length];
        hash.write_all(piece)?;
        let written = file.write_all(piece);
        written.map_err(|error| UnpackError::write(path, error))?;
    }
    let (actual, length) = hash.finish();
    check("its digest", expected, Some(actual))?;
    let metadata = Metadata {
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        atime: None,
        xattrs: Vec::new(),
    };
    apply(file.as_fd(), &metadata, FileType::RegularFile).map_err(write)?;
    set_times(file.as_fd(), c"", &metadata).map_err(write)?;
    let folders = implicit.len() as u64 - 1;
    Ok(Unpacked {
        bytes: length.next_multiple_of(BLOCK).max(BLOCK) + folders * BLOCK,
        inodes: folders + 1,
        opaque: false,
        recreatable: false,
        implicit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn placed(
        name: &str,
        content: &[u8],
        expected: &[u8],
    ) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let placed = single(&tree, name, content, Digest::of(expected), &|| true);
        (dir, placed)
    }

    #[test]
    fn a_file_lies_where_its_name_says() {
        let content = vec![7; 600_000];
        for (name, inodes) in [("a", 1), ("a/b/c d", 3)] {
            let (dir, placed) = placed(name, &content, &content);
            let unpacked = placed.unwrap();
            assert_eq!(unpacked.inodes, inodes);
            assert_eq!(unpacked.implicit.len() as u64, inodes);
            assert!(unpacked.bytes >= 600_000);
            let path = dir.path().join(name);
            assert_eq!(std::fs::read(&path).unwrap(), content);
            let found = path.metadata().unwrap();
            assert_eq!(
                (found.mode() & 0o7777, found.uid(), found.mtime()),
                (0o644, 0, 0)
            );
        }
    }

    #[test]
    fn another_content_is_refused() {
        let (_dir, placed) = placed("a", b"one", b"other");
        assert!(matches!(placed, Err(UnpackError::Digest { .. })));
    }

    #[test]
    fn it_ends_when_nobody_wants_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let outcome = single(&tree, "a", std::io::repeat(0), Digest::of(b""), &|| false);
        assert!(matches!(outcome, Err(UnpackError::Cancelled)));
    }
}
