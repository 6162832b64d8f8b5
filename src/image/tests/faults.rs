//! What a kill, damage, a full disk or a crowd leaves.

use super::*;

#[test]
fn many_import_and_remove_at_once() {
    let ground = Ground::new();
    let base = Tar::new()
        .folder("./")
        .file("base", &[5; 1_000_000])
        .finish();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (store, base) = (ground.store.clone(), base.clone());
            scope.spawn(move || {
                let top = Tar::new().folder("./").file("top", &[number % 2]).finish();
                let made = Made::new(&[base, top], Pack::Gzip, json!({}));
                import(&store, &made.saved(&[&format!("app:{number}")])).unwrap();
            });
        }
        let store = ground.store.clone();
        scope.spawn(move || {
            for _ in 0..20 {
                store.collect(HashSet::new);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
    });
    assert_eq!(ground.counts(), [3, 2, 0, 0]);
    let images = ground.store.list();
    assert_eq!(
        images.iter().map(|image| image.tags.len()).sum::<usize>(),
        8
    );
    for image in &images {
        assert_eq!(ground.file(image, "base").len(), 1_000_000);
    }
    std::thread::scope(|scope| {
        for _ in 0..5 {
            let (store, id) = (ground.store.clone(), images[0].id);
            scope.spawn(move || store.remove(&id.to_string()).unwrap());
        }
    });
    assert_eq!(ground.store.list().len(), 1);
}

/// Gives an error after some bytes, as a client that goes away.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("client is gone")),
            length => Ok(length),
        }
    }
}

#[test]
fn an_import_whose_client_goes_away_leaves_nothing() {
    let ground = Ground::new();
    let archive = Made::simple("a").saved(&["a"]);
    for length in [0, 1, 511, 512, archive.len() / 2, archive.len() - 100] {
        let broken = Broken(&archive[..length]);
        let error = ground
            .store
            .import(broken, &Selection::default(), &|_| {})
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "read image archive: client is gone",
            "{length}"
        );
        assert_eq!(ground.counts(), [0, 0, 0, 0]);
    }
}

#[test]
fn what_a_killed_daemon_left_goes_at_the_start() {
    let mut ground = Ground::new();
    let (kept, lost) = (Made::simple("kept"), Made::simple("lost"));
    ground.import(&kept.saved(&["kept"])).unwrap();
    ground.import(&lost.saved(&["lost"])).unwrap();
    // Killed after the layers got their names and before the record did.
    std::fs::remove_file(ground.path("images").join(lost.id().hex())).unwrap();
    // While unpacking, while spooling, while writing a record, while collecting.
    std::fs::create_dir_all(ground.path("tmp/layer-x/fs/deep/er")).unwrap();
    std::fs::write(ground.path("tmp/spool"), "half").unwrap();
    std::fs::write(ground.path("images/x.tmp"), "half").unwrap();
    std::fs::create_dir_all(ground.path("tmp/removed-x/fs")).unwrap();
    ground.reopen();
    assert_eq!(ground.counts(), [2, 1, 0, 0]);
    assert_eq!(ground.store.list().len(), 1);
    assert_eq!(ground.collect(), 1);
    assert!(ground.store.resolve("kept").is_some());
    // What was imported before counts again when it is imported again.
    ground.import(&lost.saved(&["lost"])).unwrap();
    assert_eq!(ground.store.list().len(), 2);
}

#[test]
fn damaged_records_are_kept_apart() {
    let mut ground = Ground::new();
    let made = [
        Made::simple("a"),
        Made::simple("b"),
        Made::simple("c"),
        Made::simple("d"),
    ];
    for (made, name) in made.iter().zip(["a", "b", "c", "d"]) {
        ground.import(&made.saved(&[name])).unwrap();
    }
    let usage = ground.store.disk_usage();
    let path = |made: &Made| ground.path("images").join(made.id().hex());
    let mut bytes = std::fs::read(path(&made[0])).unwrap();
    bytes[100] ^= 1;
    std::fs::write(path(&made[0]), bytes).unwrap();
    // A record in another one's place, and an image whose layer is gone.
    std::fs::copy(path(&made[3]), path(&made[1])).unwrap();
    let layer = ground
        .store
        .layer_dirs(&ground.store.resolve("c").unwrap().layers)[0]
        .clone();
    std::fs::remove_dir_all(layer.parent().unwrap()).unwrap();
    // A layer's own record is made anew: a container may run on the layer.
    let layer = ground
        .store
        .layer_dirs(&ground.store.resolve("d").unwrap().layers)[0]
        .clone();
    std::fs::write(layer.parent().unwrap().join("record"), "").unwrap();
    ground.reopen();
    assert_eq!(ground.counts(), [3, 1, 0, 4]);
    let images = ground.store.list();
    assert_eq!(images.len(), 1);
    assert_eq!(ground.file(&images[0], "name"), b"d");
    let left = ground.store.disk_usage();
    assert!(left.bytes < usage.bytes && left.inodes < usage.inodes);
    ground.reopen();
    assert_eq!(ground.counts(), [3, 1, 0, 4]);
}

#[test]
fn what_lies_in_a_layers_place_does_not_keep_it_out() {
    let ground = Ground::new();
    let made = [Made::simple("a"), Made::simple("b")];
    // The first layer of an image has its diff id as its name.
    let place = |made: &Made| ground.path("layers").join(made.layers[0].1.hex());
    std::fs::create_dir_all(place(&made[0]).join("fs/old")).unwrap();
    std::fs::write(place(&made[1]), "no folder").unwrap();
    for (made, name) in made.iter().zip(["a", "b"]) {
        ground.import(&made.saved(&[name])).unwrap();
        let image = ground.store.resolve(name).unwrap();
        assert_eq!(ground.file(&image, "name"), name.as_bytes());
        assert!(!place(made).join("fs/old").exists());
    }
    assert_eq!(ground.counts(), [2, 2, 0, 2]);
}

/// A small file system of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(options: &std::ffi::CStr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, options).unwrap();
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.0.path(), flags).unwrap();
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    let disk = SmallDisk::new(c"size=3m");
    let store = ImageStore::open(disk.0.path(), Pinned::default(), Unpacker::Here).unwrap();
    import(&store, &Made::simple("small").saved(&["small"])).unwrap();
    let before = look(disk.0.path());
    let noise: Vec<u8> = (0..700_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let layer = Tar::new().folder("./").file("big", &noise).finish();
    // It is full while spooling, then while unpacking.
    let plain = Made::new(std::slice::from_ref(&layer), Pack::Plain, json!({}));
    let archive = Layout::default().image(&plain, "big:1");
    let error = import(&store, &[archive.finish(), vec![0; 1 << 20]].concat()).unwrap_err();
    assert!(
        error.is_no_space() || error.to_string().contains("spool"),
        "{error}"
    );
    let zeros = Tar::new()
        .folder("./")
        .file("big", &vec![0; 8 << 20])
        .finish();
    let packed = Made::new(std::slice::from_ref(&zeros), Pack::Gzip, json!({}));
    let error = import(&store, &packed.saved(&["big:1"])).unwrap_err();
    assert!(error.is_no_space() && !error.is_invalid());
    let text = error.to_string();
    let diff = Digest::of(&zeros);
    assert!(text.starts_with(&format!(
        "image docker.io/library/big:1: unpack layer {diff}: write big: "
    )));
    assert!(text.contains("No space left on device"));
    let places = |seen: &[crate::store::unpack::testing::Seen]| {
        seen.iter()
            .map(|seen| seen.path.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(places(&look(disk.0.path())), places(&before));
    // Removing works on a full disk, and space comes back without a restart.
    let fill = disk.0.path().join("fill");
    std::fs::write(&fill, vec![1; 3 << 20]).unwrap_err();
    store.remove("small").unwrap();
    assert_eq!(store.collect(HashSet::new).layers.len(), 1);
    std::fs::remove_file(&fill).unwrap();
    import(&store, &Made::simple("small").saved(&["small"])).unwrap();
}

#[test]
fn a_second_image_that_fails_takes_the_first_with_it() {
    let ground = Ground::new();
    let (good, mut bad) = (Made::simple("good"), Made::simple("bad"));
    bad.layers[0].0 = Tar::new().file("other", b"").finish();
    let archive = Layout::default()
        .image(&good, "good:1")
        .image(&bad, "bad:1")
        .finish();
    let error = ground.import(&archive).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("image docker.io/library/bad:1: unpack layer ")
    );
    assert_eq!(ground.counts(), [0, 0, 0, 0]);
    assert!(ground.store.list().is_empty());
}

/// No test by itself: what [`a_killed_import_leaves_an_image_whole_or_not_at_all`] kills.
#[test]
fn victim() {
    let Some(root) = std::env::var_os("CARPEL_TEST_VICTIM") else {
        return;
    };
    let root = Path::new(&root);
    let archive = std::fs::read(root.join("archive")).unwrap();
    let store = ImageStore::open(&root.join("root"), Pinned::default(), Unpacker::Here).unwrap();
    loop {
        import(&store, &archive).unwrap();
        std::fs::write(root.join("imported"), "").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(40));
        store.remove("app:1").unwrap();
        store.collect(HashSet::new);
    }
}

#[test]
fn a_killed_import_leaves_an_image_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let layer = |name: &str| {
        let tar = Tar::new().folder("./").folder(name);
        let files = (0..100).fold(tar, |tar, n| tar.file(&format!("{name}/{n}"), &[n; 5000]));
        files.finish()
    };
    let made = Made::new(&[layer("a"), layer("b"), layer("c")], Pack::Gzip, json!({}));
    std::fs::write(folder.path().join("archive"), made.saved(&["app:1"])).unwrap();
    let root = folder.path().join("root");
    let mut whole = 0;
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "image::tests::faults::victim"])
            .env("CARPEL_TEST_VICTIM", folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Half of them in the middle of the first import, half after it.
        let late = round % 2 == 1;
        let begin = std::time::Instant::now();
        while late && !folder.path().join("imported").exists() {
            assert!(begin.elapsed().as_secs() < 60);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(7 + 13 * round));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        let _ = std::fs::remove_file(folder.path().join("imported"));
        let store = ImageStore::open(&root, Pinned::default(), Unpacker::Here).unwrap();
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        assert_eq!(
            std::fs::read_dir(root.join("quarantine")).unwrap().count(),
            0
        );
        if let Some(image) = store.resolve("app:1") {
            whole += 1;
            for (folder, name) in store.layer_dirs(&image.layers).iter().zip(["a", "b", "c"]) {
                for n in 0..100 {
                    let bytes = std::fs::read(folder.join(name).join(n.to_string())).unwrap();
                    assert_eq!(bytes, [n; 5000]);
                }
            }
            store.remove("app:1").unwrap();
        }
        drop(store);
        let store = ImageStore::open(&root, Pinned::default(), Unpacker::Here).unwrap();
        store.collect(HashSet::new);
        assert_eq!(std::fs::read_dir(root.join("layers")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(root.join("images")).unwrap().count(), 0);
    }
    assert!(whole > 0, "no kill came while the image was there");
}

#[test]
fn an_archive_is_read_to_its_end() {
    let ground = Ground::new();
    let archive = [Made::simple("a").saved(&["a"]), vec![0; 1_000_000]].concat();
    let mut rest = io::Cursor::new(&archive);
    ground
        .store
        .import(rest.by_ref(), &Selection::default(), &|_| {})
        .unwrap();
    assert_eq!(rest.position(), archive.len() as u64);
}
