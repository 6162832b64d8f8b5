//! Streams that are made again from their skeletons.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::testing::{Tar, tool};
use super::super::*;
use crate::store::blobs::Digest;

/// Unpacks an archive and makes it again; `None` if what is needed for that was not kept.
fn made_again(folder: &Path, archive: &[u8]) -> Option<Result<Vec<u8>, String>> {
    let (fs, kept) = (folder.join("fs"), folder.join("skeleton"));
    std::fs::create_dir(&fs).unwrap();
    let tree = Tree::open(&fs).unwrap();
    let expected = Expected {
        packed: None,
        diff: Digest::of(archive),
    };
    let skeleton = Skeleton::new(File::create_new(&kept).unwrap());
    let limits = Limits::default();
    let unpacked = unpack(archive, expected, &tree, skeleton, &limits, &|| true).unwrap();
    let skeleton = unpacked.recreatable.then(|| File::open(kept).unwrap())?;
    let mut again = Vec::new();
    let made = recreate(skeleton, &tree, &mut again, &|| true);
    Some(made.map(|()| again).map_err(|error| error.to_string()))
}

#[test]
fn a_stream_is_made_again_bit_for_bit() {
    let source = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(source.path().join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::fs::write(source.path().join("x".repeat(150)), [3; 10_000]).unwrap();
    std::fs::write(source.path().join("empty"), "").unwrap();
    std::fs::hard_link(source.path().join("empty"), source.path().join("same")).unwrap();
    symlink("nowhere", source.path().join("link")).unwrap();
    let gnu = |arguments: &[&str]| {
        let path = source.path().display().to_string();
        let all = [&["-C", &path, "-cf", "-"], arguments, &["."]].concat();
        tool("tar", &all, source.path(), b"")
    };
    let odd = Tar::new()
        .folder("./")
        .pax(&[("path", b"long/path"), ("SCHILY.xattr.user.a", b"b")])
        .file("x", &[9; 1000])
        .file("a/.wh.gone", b"with data that mean nothing")
        .file(".wh..wh..opq", b"")
        .file(".wh..wh.plnk/1", b"ignored")
        .file("a/big", &vec![7; 300_000])
        .hardlink("second", "a/big")
        .symlink("s", "a")
        .symlink("s", "b")
        .device("dev", b'3', 1, 3);
    for (what, archive) in [
        ("nothing", Vec::new()),
        ("gnu", gnu(&["--format=gnu"])),
        ("gnu, sparse", gnu(&["--format=gnu", "--sparse"])),
        ("pax, sparse", gnu(&["--format=pax", "--sparse"])),
        ("odd", odd.clone().finish()),
        ("odd, without an end", odd.clone().unfinished()),
        (
            "odd, with more",
            [odd.finish(), vec![0; 70_000], vec![5; 7]].concat(),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let again = made_again(folder.path(), &archive)
            .expect(what)
            .expect(what);
        assert!(again == archive, "{what}");
    }
}

#[test]
fn a_stream_with_something_twice_cannot_be_made_again() {
    for archive in [
        Tar::new().file("a", b"1").file("a", b"2"),
        Tar::new().file("a/b", b"1").symlink("a", "c"),
        Tar::new().file("a/b", b"1").file("a", b"2"),
        Tar::new()
            .file("a", b"1")
            .hardlink("b", "a")
            .symlink("a", "b"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert!(made_again(folder.path(), &archive.finish()).is_none());
    }
    // A folder that is named twice is the same folder.
    let archive = Tar::new()
        .folder("a")
        .file("a/b", b"1")
        .folder("a")
        .finish();
    let folder = tempfile::tempdir().unwrap();
    assert!(made_again(folder.path(), &archive).unwrap().unwrap() == archive);
}

#[test]
fn what_is_not_there_any_more_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Tar::new()
        .file("a", &[1; 1000])
        .file("b", &[2; 1000])
        .finish();
    made_again(folder.path(), &archive).unwrap().unwrap();
    let (a, skeleton) = (folder.path().join("fs/a"), folder.path().join("skeleton"));
    let tree = Tree::open(&folder.path().join("fs")).unwrap();
    let again = || {
        let mut out = Vec::new();
        let skeleton = std::fs::File::open(&skeleton).unwrap();
        let made = recreate(skeleton, &tree, &mut out, &|| true);
        made.map(|()| out).map_err(|error| error.to_string())
    };
    std::fs::write(&a, [3; 1000]).unwrap();
    assert!(again().unwrap() != archive);
    std::fs::write(&a, [1; 999]).unwrap();
    assert_eq!(again().unwrap_err(), "a: has 999 bytes instead of 1000");
    std::fs::remove_file(&a).unwrap();
    assert_eq!(
        again().unwrap_err(),
        "a: No such file or directory (os error 2)"
    );
    symlink("b", &a).unwrap();
    assert!(again().unwrap_err().starts_with("a: "));
    std::fs::remove_file(&a).unwrap();
    nix::unistd::mkfifo(&a, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(again().unwrap_err(), "a: is no file any more");
    std::fs::remove_file(&a).unwrap();
    std::fs::write(&a, [1; 1000]).unwrap();
    assert!(again().unwrap() == archive);
    let whole = std::fs::read(&skeleton).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&skeleton, &whole[..length]).unwrap();
        assert!(again().is_err(), "{length}");
    }
}
