//! Archives that want to do harm. What each wants outside of its folder must not happen, whether it is refused or not.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::testing::{Seen, Tar, look};
use super::{Limits, Tree, UnpackError, Unpacked, extract};

/// What is looked at to see that nothing outside was touched. A change of anything shows in the time of change.
fn watch(canary: &Path) -> (Vec<Seen>, Vec<(i64, i64)>) {
    let seen = look(canary);
    let changes = seen
        .iter()
        .map(|seen| std::fs::symlink_metadata(canary.join(&seen.path)).unwrap())
        .map(|metadata| (metadata.ctime(), metadata.ctime_nsec()))
        .collect();
    (seen, changes)
}

struct Ground {
    folder: tempfile::TempDir,
    before: (Vec<Seen>, Vec<(i64, i64)>),
}

impl Ground {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    fn on(folder: tempfile::TempDir) -> Self {
        let canary = folder.path().join("canary");
        std::fs::create_dir_all(canary.join("folder")).unwrap();
        std::fs::write(canary.join("file"), "canary").unwrap();
        std::fs::create_dir(folder.path().join("fs")).unwrap();
        let before = watch(&canary);
        Self { folder, before }
    }

    fn canary(&self) -> String {
        self.folder.path().join("canary").display().to_string()
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, UnpackError> {
        let tree = Tree::open(&self.folder.path().join("fs")).unwrap();
        let result = extract(archive, &tree, &Limits::default(), &|| true);
        assert_eq!(watch(&self.folder.path().join("canary")), self.before);
        let mut names: Vec<_> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["canary", "fs"]);
        result
    }
}

/// Each is refused, with the text that says why.
#[test]
fn what_leads_outside_is_refused() {
    let dots = "\"..\" in its path";
    let link = "a symbolic link used as a folder";
    type Make = fn(Tar, &str) -> Tar;
    let corpus: &[(Make, &str)] = &[
        (|t, _| t.file("../canary/file", b"x"), dots),
        (|t, _| t.file("a/../../canary/file", b"x"), dots),
        (|t, _| t.file("/../canary/file", b"x"), dots),
        (|t, _| t.file("./../canary/new", b"x"), dots),
        (|t, _| t.folder("../canary/"), dots),
        (|t, _| t.folder(".."), dots),
        (|t, _| t.symlink("../canary/link", "x"), dots),
        (|t, _| t.hardlink("../canary/link", "x"), dots),
        (
            |t, _| t.file("a", b"").hardlink("b", "../canary/file"),
            dots,
        ),
        (|t, _| t.hardlink("a", "x/../../canary/file"), dots),
        (
            |t, _| t.pax(&[("path", b"../canary/file")]).file("a", b"x"),
            dots,
        ),
        (
            |t, _| t.pax(&[("linkpath", b"../canary/file")]).hardlink("a", "b"),
            dots,
        ),
        (
            |t, _| {
                t.entry(b"L", b'L', b"", b"../canary/file\0")
                    .file("a", b"x")
            },
            dots,
        ),
        (
            |t, _| {
                t.entry(b"K", b'K', b"", b"../canary/file\0")
                    .hardlink("a", "b")
            },
            dots,
        ),
        (|t, _| t.file("../canary/.wh.file", b""), dots),
        (|t, _| t.file("../canary/.wh..wh..opq", b""), dots),
        (|t, _| t.file("../.wh.canary", b""), dots),
        (|t, c| t.symlink("l", c).file("l/file", b"x"), link),
        (|t, c| t.symlink("l", c).folder("l/folder"), link),
        (|t, c| t.symlink("l", c).symlink("l/new", "x"), link),
        (|t, c| t.symlink("l", c).file("l/.wh.file", b""), link),
        (|t, c| t.symlink("l", c).file("l/.wh..wh..opq", b""), link),
        (
            |t, c| t.symlink("l", c).file("x", b"").hardlink("l/new", "x"),
            link,
        ),
        (|t, c| t.symlink("l", c).device("l/fifo", b'6', 0, 0), link),
        (|t, c| t.symlink("l", c).device("l/null", b'3', 1, 3), link),
        (|t, c| t.symlink("l", c).file("l/deep/er/file", b"x"), link),
        (
            |t, _| t.symlink("l", "../canary").file("l/file", b"x"),
            link,
        ),
        (
            |t, _| t.symlink("l", ".").symlink("l/m", "..").file("l/m/x", b"x"),
            link,
        ),
        (
            |t, c| t.folder("d").symlink("d/l", c).file("d/l/file", b"x"),
            link,
        ),
        (
            |t, c| {
                t.folder("l")
                    .file("l/x", b"")
                    .symlink("l", c)
                    .file("l/file", b"x")
            },
            link,
        ),
        (
            |t, c| t.symlink("a", "b").symlink("b", c).file("a/file", b"x"),
            link,
        ),
        (
            |t, _| t.symlink("l", "/proc/self/root").file("l/etc/x", b"x"),
            link,
        ),
        (
            |t, c| t.symlink("l", c).hardlink("h", "l/file"),
            "a hard link to l/file",
        ),
        (|t, _| t.hardlink("h", "missing"), "a hard link to missing"),
        (
            |t, _| t.hardlink("h", "/etc/passwd"),
            "a hard link to /etc/passwd",
        ),
        (|t, _| t.folder("d").hardlink("h", "d"), "which is no file"),
        (|t, _| t.hardlink("h", "."), "which is no file"),
        (
            |t, _| t.file(".wh.w", b"").hardlink("h", "w"),
            "which is no file",
        ),
        (
            |t, _| t.file("h", b"").hardlink("h", "./h"),
            "a hard link to itself",
        ),
        (
            |t, _| t.file("f", b"").file("f/x", b"x"),
            "a file used as a folder",
        ),
        (|t, _| t.file(".wh..", b""), "a whiteout of nothing"),
        (|t, _| t.file(".wh...", b""), "a whiteout of nothing"),
        (|t, _| t.file("d/.wh.", b""), "a whiteout of nothing"),
        (
            |t, _| t.file(".wh.d/x", b""),
            "a whiteout with something in it",
        ),
        (|t, c| t.symlink("/", c), "the root is not a folder"),
        (|t, c| t.symlink("./", c), "the root is not a folder"),
        (|t, _| t.file(".", b"x"), "the root is not a folder"),
        (|t, _| t.symlink("l", ""), "a link to nothing"),
        (|t, _| t.entry(b"f", b'Z', b"", b""), "of unknown type Z"),
        (
            |t, _| t.entry(b"d", b'5', b"", b"data"),
            "data where there can be none",
        ),
        (
            |t, _| t.entry(b"l", b'2', b"x", b"data"),
            "data where there can be none",
        ),
        (
            |t, _| t.pax(&[("size", b"512")]).folder("d"),
            "data where there can be none",
        ),
    ];
    for (number, (make, why)) in corpus.iter().enumerate() {
        let ground = Ground::new();
        let archive = make(Tar::new(), &ground.canary()).finish();
        let error = ground
            .unpack(&archive)
            .expect_err(&format!("number {number}: {why}"));
        assert!(
            error.to_string().contains(why),
            "number {number}: {error}, not {why}"
        );
    }
}

/// These are carried out, inside.
#[test]
fn what_only_looks_as_if_it_led_outside_stays_inside() {
    type Make = fn(Tar, &str) -> Tar;
    let corpus: &[(Make, &str)] = &[
        (|t, c| t.file(&format!("{c}/file"), b"inside"), ""),
        (|t, _| t.file("//etc//passwd", b"inside"), "etc/passwd"),
        (
            |t, c| t.symlink("l", &format!("{c}/file")).file("l", b"inside"),
            "l",
        ),
        (
            |t, c| t.symlink("l", c).folder("l").file("l/file", b"inside"),
            "l/file",
        ),
        (
            |t, c| {
                t.symlink("l", &format!("{c}/file"))
                    .hardlink("h", "l")
                    .file("l", b"inside")
            },
            "l",
        ),
        (
            |t, c| t.symlink("l", c).file(".wh.l", b"").file("x", b"inside"),
            "x",
        ),
        (|t, _| t.file("...", b"inside"), "..."),
        (
            |t, _| t.file("a", b"old").hardlink("b", "a").file("b", b"inside"),
            "b",
        ),
    ];
    for (number, (make, path)) in corpus.iter().enumerate() {
        let ground = Ground::new();
        let archive = make(Tar::new(), &ground.canary()).finish();
        ground
            .unpack(&archive)
            .unwrap_or_else(|error| panic!("number {number}: {error}"));
        if !path.is_empty() {
            let path = ground.folder.path().join("fs").join(path);
            assert!(!path.is_symlink());
            assert_eq!(std::fs::read(path).unwrap(), b"inside", "number {number}");
        }
    }
}

/// Writing through a second name must not change what the first one has.
#[test]
fn a_file_that_is_replaced_is_not_written_through() {
    let ground = Ground::new();
    let archive = Tar::new()
        .file("a", b"old")
        .hardlink("b", "a")
        .file("b", b"new");
    ground.unpack(&archive.finish()).unwrap();
    assert_eq!(
        std::fs::read(ground.folder.path().join("fs/a")).unwrap(),
        b"old"
    );
}

#[test]
fn overlayfs_cannot_be_steered() {
    let ground = Ground::new();
    let value = &b"y"[..];
    let archive = Tar::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", value),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", value),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.security.ima", b"x"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
            ("SCHILY.xattr.user.kept", b"kept"),
        ])
        .folder("d")
        .device("d/whiteout", b'3', 0, 0)
        .device("d/mem", b'3', 1, 1)
        .device("d/disk", b'4', 8, 0)
        .device("d/null", b'3', 1, 3);
    ground.unpack(&archive.finish()).unwrap();
    let seen = look(&ground.folder.path().join("fs"));
    let paths: Vec<_> = seen.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(paths, ["", "d", "d/null"]);
    assert_eq!(seen[1].xattrs, [("user.kept".into(), b"kept".to_vec())]);
    assert_eq!(seen[2].device, rustix::fs::makedev(1, 3));
}

#[test]
fn an_id_that_means_none_is_refused() {
    for key in ["uid", "gid"] {
        for id in ["4294967295", "4294967296", "18446744073709551615"] {
            let ground = Ground::new();
            let archive = Tar::new().pax(&[(key, id.as_bytes())]).file("a", b"");
            let error = ground.unpack(&archive.finish()).unwrap_err();
            assert_eq!(error.to_string(), format!("malformed {key} in a header"));
        }
    }
}

/// A reader that takes the size from the wrong header would see what is hidden in the data as an entry.
#[test]
fn data_are_never_taken_for_entries() {
    let hidden = Tar::new().file("hidden", b"x").unfinished();
    // The extended header says how long the data are; the entry's own says 0.
    let size = hidden.len().to_string();
    let desync =
        Tar::new()
            .pax(&[("size", size.as_bytes())])
            .with(b"a", b'0', b"", &hidden, |header| {
                header[124..136].copy_from_slice(b"00000000000\0");
            });
    let ground = Ground::new();
    ground.unpack(&desync.finish()).unwrap();
    let fs = ground.folder.path().join("fs");
    assert_eq!(std::fs::read(fs.join("a")).unwrap(), hidden);
    assert!(!fs.join("hidden").exists());
    for broken in [
        // Twice the same kind of extended header, or two that name the entry.
        Tar::new()
            .pax(&[("size", b"0")])
            .pax(&[("size", b"1")])
            .file("a", b"x"),
        Tar::new()
            .entry(b"L", b'L', b"", b"b\0")
            .pax(&[("path", b"c")])
            .file("a", b"x"),
        Tar::new()
            .entry(b"L", b'L', b"", b"b\0")
            .entry(b"L", b'L', b"", b"c\0")
            .file("a", b""),
        // At the end of the archive.
        Tar::new().pax(&[("path", b"c")]),
    ] {
        let error = Ground::new().unpack(&broken.finish()).unwrap_err();
        assert!(matches!(error, UnpackError::Invalid(_)), "{error}");
    }
}

#[test]
fn bombs_are_bounded() {
    let limits = Limits {
        entries: 100,
        bytes: 1 << 20,
        sparse_length: 1 << 30,
        sparse_pieces: 10,
        header: 4096,
        path: 1024,
        ..Limits::default()
    };
    let many = (0..101).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b""));
    let map = (0..11)
        .map(|n| format!("{},1", 2 * n))
        .collect::<Vec<_>>()
        .join(",");
    let long = "x/".repeat(600);
    let huge = vec![b'a'; 5000];
    for (archive, what) in [
        (many, "more than 100 entries"),
        (
            Tar::new().pax(&[("size", b"99999999999")]).file("a", b"x"),
            "more than 1048576 bytes in an entry",
        ),
        (
            Tar::new()
                .pax(&[
                    ("GNU.sparse.realsize", b"9999999999"),
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                ])
                .file("a", b"0\n"),
            "malformed map",
        ),
        (
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"9999999999"),
                    ("GNU.sparse.numblocks", b"0"),
                ])
                .file("a", b""),
            "more than 1073741824 bytes in a sparse file",
        ),
        (
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"100"),
                    ("GNU.sparse.numblocks", b"11"),
                    ("GNU.sparse.map", map.as_bytes()),
                ])
                .file("a", &[0; 11]),
            "more than 10 pieces of a sparse file",
        ),
        (
            Tar::new()
                .pax(&[
                    ("GNU.sparse.realsize", b"100"),
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                ])
                .entry(b"a", b'0', b"", &[&b"10000000\n"[..], &[0; 503]].concat()),
            "more than 10 pieces of a sparse file",
        ),
        (
            Tar::new().pax(&[("path", long.as_bytes())]).file("a", b""),
            "more than 1024 bytes in a path",
        ),
        (
            Tar::new().pax(&[("comment", &huge)]).file("a", b""),
            "more than 4096 bytes in an extended header",
        ),
        (
            Tar::new().entry(b"L", b'L', b"", &huge).file("a", b""),
            "more than 4096 bytes in an extended header",
        ),
        (
            Tar::new().entry(b"g", b'g', b"", &huge).file("a", b""),
            "more than 4096 bytes in an extended header",
        ),
    ] {
        let ground = Ground::new();
        let tree = Tree::open(&ground.folder.path().join("fs")).unwrap();
        let error = extract(&archive.finish()[..], &tree, &limits, &|| true).unwrap_err();
        assert!(error.to_string().contains(what), "{error}, not {what}");
    }
}

/// One mark costs one system call, not a walk through the folder.
#[test]
fn many_opaque_marks_are_quick() {
    let mut tar = Tar::new().folder("d");
    for n in 0..2000 {
        tar = tar.file(&format!("d/{n}"), b"");
    }
    let mut bytes = tar.unfinished();
    let mark = Tar::new().file("d/.wh..wh..opq", b"").unfinished();
    for _ in 0..20_000 {
        bytes.extend_from_slice(&mark);
    }
    bytes.extend_from_slice(&[0; 1024]);
    let begin = std::time::Instant::now();
    Ground::new().unpack(&bytes).unwrap();
    assert!(begin.elapsed().as_secs() < 20);
}

#[test]
fn a_cancelled_unpacking_stops() {
    let ground = Ground::new();
    let tree = Tree::open(&ground.folder.path().join("fs")).unwrap();
    let archive = Tar::new().file("a", b"").finish();
    let error = extract(&archive[..], &tree, &Limits::default(), &|| false).unwrap_err();
    assert!(matches!(error, UnpackError::Cancelled));
}

#[test]
fn a_flood_of_extended_attributes_is_refused_at_once() {
    let names: Vec<String> = (0..30_000)
        .map(|n| format!("SCHILY.xattr.user.{n:x}"))
        .collect();
    let records: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b"v"[..])).collect();
    let begin = std::time::Instant::now();
    let tar = Tar::new().pax(&records).file("x", b"").finish();
    let error = Ground::new().unpack(&tar).unwrap_err();
    assert!(
        error.to_string().contains("extended attributes of a file"),
        "{error}"
    );
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
}

proptest::proptest! {
    /// Sound archives with some bytes changed.
    #[test]
    fn no_bytes_make_it_panic_or_write_outside(changes in proptest::collection::vec(
        (0..4608_usize, proptest::prelude::any::<u8>(), proptest::prelude::any::<bool>()), 0..6)
    ) {
        let mut bytes = Tar::new()
            .pax(&[("path", b"a/b"), ("SCHILY.xattr.user.a", b"1")])
            .file("x", b"data")
            .symlink("l", "a")
            .hardlink("h", "a/b")
            .folder("d")
            .file("d/.wh.x", b"")
            .finish();
        for (at, byte, repair) in changes {
            if at < bytes.len() {
                bytes[at] = byte;
                if repair {
                    let start = at / 512 * 512;
                    let header: &mut [u8; 512] = (&mut bytes[start..start + 512]).try_into().unwrap();
                    super::testing::sum(header);
                }
            }
        }
        // In memory: this happens hundreds of times.
        let _ = Ground::on(tempfile::tempdir_in("/dev/shm").unwrap()).unpack(&bytes);
    }
}
