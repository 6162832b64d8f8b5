//! Sound layers: what tools write comes out exactly.

mod skeleton;

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::testing::{Seen, Tar, look, tool};
use super::{
    Expected, Limits, Lower, Skeleton, Tree, UnpackError, Unpacked, complete, extract, unpack,
};
use crate::store::blobs::Digest;

fn extract_to(folder: &Path, archive: &[u8]) -> Unpacked {
    let tree = Tree::open(folder).unwrap();
    extract(archive, &tree, &Limits::default(), &|| true).unwrap()
}

/// A tree with everything that a layer may have.
fn varied(root: &Path) {
    use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
    let long = "long-".repeat(40);
    for folder in ["bin", "etc/deep/er", "sticky", &long, "empty"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    for (path, mode) in [
        ("bin/setuid", 0o4755),
        ("etc/secret", 0o600),
        ("etc/deep/er/x", 0o444),
    ] {
        std::fs::write(root.join(path), path.repeat(300)).unwrap();
        std::os::unix::fs::chown(root.join(path), Some(1000), Some(3_000_000_000)).unwrap();
        std::fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    std::fs::write(root.join(&long).join("f"), "").unwrap();
    std::fs::set_permissions(root.join("sticky"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::hard_link(root.join("bin/setuid"), root.join("etc/second-name")).unwrap();
    symlink("../bin/setuid", root.join("etc/link")).unwrap();
    symlink("l".repeat(300), root.join("etc/long-link")).unwrap();
    std::os::unix::fs::lchown(root.join("etc/link"), Some(5), Some(6)).unwrap();
    let fifo = root.join("etc/fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let null = root.join("etc/null");
    let number = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        CWD,
        &null,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        number,
    )
    .unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    set("bin/setuid", "security.capability", capability);
    set("etc/secret", "user.some", b"\0binary\n");
    set("empty", "user.folder", b"1");
    let mut seen = look(root);
    seen.reverse();
    for (number, Seen { path, .. }) in seen.into_iter().enumerate() {
        let spec = Timespec {
            tv_sec: 1_000_000_000 + i64::try_from(number).unwrap(),
            tv_nsec: 123_456_789,
        };
        let times = Timestamps {
            last_access: spec,
            last_modification: spec,
        };
        rustix::fs::utimensat(CWD, root.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[test]
fn what_gnu_tar_writes_comes_out_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    varied(&source);
    let expected = look(&source);
    for (format, exact) in [("posix", true), ("gnu", false)] {
        let target = folder.path().join(format);
        std::fs::create_dir(&target).unwrap();
        let format = format!("--format={format}");
        let mut arguments = vec!["-c", "--numeric-owner", &format, "."];
        if exact {
            arguments.extend(["--xattrs", "--xattrs-include=*"]);
        }
        let archive = tool("tar", &arguments, &source, b"");
        let unpacked = extract_to(&target, &archive);
        assert_eq!(unpacked.implicit, Vec::<Vec<u8>>::new());
        // Second names are no inodes, and the layer's own folder is counted elsewhere.
        assert_eq!(unpacked.inodes, expected.len() as u64 - 2);
        let mut found = look(&target);
        if !exact {
            // This form has neither attributes nor fractions of a second.
            for (seen, expected) in found.iter_mut().zip(&expected) {
                assert_eq!(seen.mtime.0, expected.mtime.0);
                seen.mtime.1 = expected.mtime.1;
                seen.xattrs.clone_from(&expected.xattrs);
            }
        }
        assert_eq!(found, expected);
        let inode = |name: &str| std::fs::metadata(target.join(name)).unwrap().ino();
        assert_eq!(inode("bin/setuid"), inode("etc/second-name"));
    }
}

#[test]
fn old_forms_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir_all(source.join("d".repeat(60)).join("e".repeat(60))).unwrap();
    let file = source
        .join("d".repeat(60))
        .join("e".repeat(60))
        .join("f".repeat(60));
    std::fs::write(file, "data").unwrap();
    let expected = look(&source);
    let target = folder.path().join("ustar");
    std::fs::create_dir(&target).unwrap();
    let archive = tool("tar", &["-c", "--format=ustar", "."], &source, b"");
    extract_to(&target, &archive);
    assert_eq!(look(&target).len(), expected.len());
    let source = source.join("d".repeat(60));
    let target = folder.path().join("v7");
    std::fs::create_dir(&target).unwrap();
    std::fs::rename(source.join("e".repeat(60)), source.join("e")).unwrap();
    let archive = tool("tar", &["-c", "--format=v7", "."], &source, b"");
    extract_to(&target, &archive);
    let name = Path::new("e").join("f".repeat(60));
    assert_eq!(std::fs::read(target.join(name)).unwrap(), b"data");
}

#[test]
fn files_with_holes_keep_them() {
    use std::os::unix::fs::FileExt;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let file = std::fs::File::create(source.join("holes")).unwrap();
    // More pieces than the old form has in its header, and a hole at the end.
    for n in 0..60 {
        file.write_all_at(format!("piece {n}").as_bytes(), n * 1_000_000)
            .unwrap();
    }
    file.set_len(100_000_000).unwrap();
    std::fs::write(source.join("after"), "after").unwrap();
    let empty = std::fs::File::create(source.join("only-hole")).unwrap();
    empty.set_len(50_000_000).unwrap();
    let expected = look(&source);
    for arguments in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let target = tempfile::tempdir_in(folder.path()).unwrap();
        let arguments = [&["-c", "--sparse", "."][..], arguments].concat();
        let archive = tool("tar", &arguments, &source, b"");
        assert!(archive.len() < 2_000_000);
        let unpacked = extract_to(target.path(), &archive);
        let found = look(target.path());
        let contents = |seen: &[Seen]| {
            seen.iter()
                .map(|s| (s.path.clone(), s.mode, s.mtime.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(contents(&found), contents(&expected), "{arguments:?}");
        let same = |(a, b): (&Seen, &Seen)| a.content == b.content;
        assert!(found.iter().zip(&expected).all(same), "{arguments:?}");
        let holes = std::fs::metadata(target.path().join("holes")).unwrap();
        assert!(holes.blocks() * 512 < 2_000_000);
        assert!(unpacked.bytes < 2_000_000);
    }
}

/// Character devices 0:0 and opaque folders, as `(path, is whiteout, is opaque)`.
fn marks(root: &Path) -> Vec<(String, bool, bool)> {
    let opaque = |seen: &Seen| {
        let mark = ("trusted.overlay.opaque".to_owned(), b"y".to_vec());
        seen.xattrs.contains(&mark)
    };
    look(root)
        .iter()
        .map(|seen| {
            (
                seen.path.clone(),
                seen.mode & 0o170_000 == 0o020_000,
                opaque(seen),
            )
        })
        .filter(|(_, whiteout, opaque)| *whiteout || *opaque)
        .collect()
}

#[test]
fn whiteouts_take_the_form_of_overlayfs() {
    let whiteout = |path: &str| (path.to_owned(), true, false);
    let opaque = |path: &str| (path.to_owned(), false, true);
    for (tar, expected) in [
        (Tar::new().file(".wh.gone", b""), vec![whiteout("gone")]),
        (
            Tar::new().folder("d").file("d/.wh.gone", b""),
            vec![whiteout("d/gone")],
        ),
        (
            Tar::new().file("new/.wh.gone", b""),
            vec![whiteout("new/gone")],
        ),
        (
            Tar::new().folder("d").file("d/.wh..wh..opq", b""),
            vec![opaque("d")],
        ),
        (
            Tar::new()
                .file("d/.wh..wh..opq", b"")
                .folder("d")
                .file("d/x", b""),
            vec![opaque("d")],
        ),
        // A folder that takes the place of what was removed shows nothing of it, in either order.
        (
            Tar::new().file(".wh.d", b"").folder("d").file("d/x", b""),
            vec![opaque("d")],
        ),
        (
            Tar::new().folder("d").file("d/x", b"").file(".wh.d", b""),
            vec![opaque("d")],
        ),
        (
            Tar::new().file(".wh.d", b"").file("d/x", b""),
            vec![opaque("d")],
        ),
        (Tar::new().file(".wh.f", b"").file("f", b"x"), vec![]),
        (Tar::new().file("f", b"x").file(".wh.f", b""), vec![]),
        (
            Tar::new().file(".wh.f", b"").file(".wh.f", b""),
            vec![whiteout("f")],
        ),
        (
            Tar::new()
                .folder(".wh..wh.plnk")
                .file(".wh..wh.plnk/1.2", b"")
                .file(".wh..wh.aufs", b""),
            vec![],
        ),
        (Tar::new().file(".wh..wh..opq", b""), vec![opaque("")]),
    ] {
        let target = tempfile::tempdir().unwrap();
        let unpacked = extract_to(target.path(), &tar.clone().finish());
        assert_eq!(marks(target.path()), expected, "{tar:?}");
        assert_eq!(unpacked.opaque, expected == [opaque("")]);
    }
}

/// The kernel itself reads what was made.
#[test]
fn an_overlay_shows_what_layers_say() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [
        Tar::new()
            .folder("etc")
            .file("etc/kept", b"1")
            .file("etc/gone", b"1")
            .file("etc/new", b"1")
            .folder("all")
            .file("all/old", b"1")
            .folder("replaced")
            .file("replaced/old", b"1"),
        Tar::new()
            .file("etc/.wh.gone", b"")
            .file("etc/new", b"2")
            .folder("all")
            .file("all/.wh..wh..opq", b"")
            .file("all/x", b"2")
            .file(".wh.replaced", b"")
            .folder("replaced")
            .file("replaced/x", b"2"),
    ];
    let mut paths = Vec::new();
    for (number, layer) in layers.into_iter().enumerate() {
        let path = folder.path().join(number.to_string());
        std::fs::create_dir(&path).unwrap();
        extract_to(&path, &layer.finish());
        paths.insert(0, path.display().to_string());
    }
    let fs = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for path in &paths {
        rustix::mount::fsconfig_set_string(&fs, "lowerdir+", path.as_str()).unwrap();
    }
    rustix::mount::fsconfig_create(&fs).unwrap();
    let mounted = rustix::mount::fsmount(
        &fs,
        rustix::mount::FsMountFlags::FSMOUNT_CLOEXEC,
        rustix::mount::MountAttrFlags::empty(),
    )
    .unwrap();
    use std::os::fd::AsRawFd;
    let root = format!("/proc/self/fd/{}/.", mounted.as_raw_fd());
    let files: Vec<String> = look(Path::new(&root))
        .into_iter()
        .filter(|seen| seen.mode & 0o170_000 == 0o100_000)
        .map(|seen| format!("{}={}", seen.path, String::from_utf8(seen.content).unwrap()))
        .collect();
    assert_eq!(
        files,
        ["all/x=2", "etc/kept=1", "etc/new=2", "replaced/x=2"]
    );
}

#[test]
fn folders_not_described_look_as_below() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let with_mode = |tar: Tar, path: &str, mode: &[u8; 8], uid: &[u8; 8]| {
        tar.with(path.as_bytes(), b'5', b"", b"", |header| {
            header[100..108].copy_from_slice(mode);
            header[108..116].copy_from_slice(uid);
        })
    };
    let bottom = place("bottom");
    let tar = with_mode(Tar::new(), "./", b"0000711\0", b"0000000\0");
    let tar = with_mode(tar, "tmp", b"0001777\0", b"0000000\0");
    let tar = with_mode(tar, "home", b"0000755\0", b"0000000\0");
    let tar = with_mode(tar, "home/me", b"0000700\0", b"0001750\0");
    let tar = with_mode(tar, "gone", b"0000700\0", b"0000001\0");
    extract_to(
        &bottom,
        &with_mode(tar, "gone/x", b"0000700\0", b"0000001\0").finish(),
    );
    let middle = place("middle");
    let implicit = extract_to(&middle, &Tar::new().file(".wh.gone", b"").finish()).implicit;
    let lowers = [&bottom, &middle].map(|path| Lower {
        tree: Tree::open(path).unwrap(),
        opaque: false,
    });
    complete(
        &Tree::open(&middle).unwrap(),
        false,
        &implicit,
        &lowers[..1],
        &|| true,
    )
    .unwrap();
    let top = place("top");
    let tar = Tar::new()
        .file("tmp/f", b"")
        .file("home/me/f", b"")
        .file("gone/x/f", b"");
    let unpacked = extract_to(&top, &tar.file("new/f", b"").finish());
    let names: Vec<_> = unpacked
        .implicit
        .iter()
        .map(|n| n.escape_ascii().to_string())
        .collect();
    assert_eq!(
        names,
        ["", "gone", "gone/x", "home", "home/me", "new", "tmp"]
    );
    let tree = Tree::open(&top).unwrap();
    complete(&tree, false, &unpacked.implicit, &lowers, &|| true).unwrap();
    let folders: Vec<_> = look(&top)
        .into_iter()
        .filter(|seen| seen.mode & 0o170_000 == 0o040_000)
        .map(|seen| (seen.path, seen.mode & 0o7777, seen.owner.0, seen.mtime.0))
        .collect();
    let like = |path: &str, mode, uid, mtime| (path.to_owned(), mode, uid, mtime);
    assert_eq!(
        folders,
        [
            like("", 0o711, 0, 1000),
            like("gone", 0o755, 0, 0),
            like("gone/x", 0o755, 0, 0),
            like("home", 0o755, 0, 1000),
            like("home/me", 0o700, 1000, 1000),
            like("new", 0o755, 0, 0),
            like("tmp", 0o1777, 0, 1000),
        ]
    );
}

#[test]
fn both_digests_are_checked_to_the_end_of_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let plain = [Tar::new().file("a", b"data").finish(), vec![0; 20_000]].concat();
    for packed in [
        plain.clone(),
        tool("gzip", &["-c"], folder.path(), &plain),
        tool("zstd", &["-q", "-c"], folder.path(), &plain),
    ] {
        let right = Expected {
            packed: Some(Digest::of(&packed)),
            diff: Digest::of(&plain),
        };
        let wrong = Digest::of(b"");
        let wrong_packed = Expected {
            packed: Some(wrong),
            ..right
        };
        let wrong_diff = Expected {
            diff: wrong,
            ..right
        };
        for (expected, what) in [
            (right, None),
            (
                Expected {
                    packed: None,
                    ..right
                },
                None,
            ),
            (wrong_packed, Some("its digest")),
            (wrong_diff, Some("its diff id")),
        ] {
            let target = tempfile::tempdir_in(folder.path()).unwrap();
            let tree = Tree::open(target.path()).unwrap();
            let kept = tempfile::tempdir_in(folder.path()).unwrap();
            let skeleton = Skeleton::new(File::create_new(kept.path().join("skeleton")).unwrap());
            let limits = Limits::default();
            match (
                unpack(&packed[..], expected, &tree, skeleton, &limits, &|| true),
                what,
            ) {
                (Ok(_), None) => {}
                (Err(UnpackError::Digest { what: found, .. }), Some(what)) => {
                    assert_eq!(found, what)
                }
                (result, _) => panic!("{result:?}, not {what:?}"),
            }
        }
    }
}

#[test]
fn a_stream_packed_too_well_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let zeros = Tar::new().file("zeros", &vec![0; 50 << 20]).finish();
    let packed = tool("zstd", &["-q", "-c"], folder.path(), &zeros);
    let limits = Limits {
        ratio_floor: 10 << 20,
        ..Limits::default()
    };
    let expected = Expected {
        packed: None,
        diff: Digest::of(&zeros),
    };
    let tree = Tree::open(folder.path()).unwrap();
    let kept = tempfile::tempdir().unwrap();
    let skeleton = Skeleton::new(File::create_new(kept.path().join("skeleton")).unwrap());
    let error = unpack(&packed[..], expected, &tree, skeleton, &limits, &|| true).unwrap_err();
    assert_eq!(error.to_string(), "packed more than 250 times");
    let length = std::fs::metadata(folder.path().join("zeros"))
        .unwrap()
        .len();
    assert!(length <= 11 << 20);
}

#[test]
fn an_archive_cut_off_anywhere_is_refused() {
    let whole = Tar::new()
        .pax(&[("path", b"a/b")])
        .file("x", &[7; 700])
        .unfinished();
    for length in 1..whole.len() {
        let target = tempfile::tempdir().unwrap();
        let tree = Tree::open(target.path()).unwrap();
        let result = extract(&whole[..length], &tree, &Limits::default(), &|| true);
        assert!(result.is_err(), "{length} bytes");
    }
    let target = tempfile::tempdir().unwrap();
    // Without the blocks of zeros at its end it is as good as whole.
    extract_to(target.path(), &whole);
    extract_to(target.path(), b"");
}
