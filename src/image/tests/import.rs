//! What archives may be, and what they may not.

use super::*;

#[test]
fn every_form_of_archive_gives_the_same_image() {
    let layers = [
        Tar::new()
            .folder("./")
            .folder("bin")
            .file("bin/sh", &[1; 5000])
            .finish(),
        Tar::new().folder("./").file("hello", b"hello").finish(),
    ];
    let config = json!({"User": "1000:1000", "Env": ["A=b"], "Cmd": ["/bin/sh"]});
    for pack in [Pack::Plain, Pack::Gzip, Pack::Zstd] {
        let made = Made::new(&layers, pack, config.clone());
        let layout = Layout::default().image(&made, "example.io/app:1").finish();
        for outer in [Pack::Plain, Pack::Gzip, Pack::Zstd] {
            for archive in [&made.saved(&["example.io/app:1"]), &layout] {
                let mut ground = Ground::new();
                let tags = ground.import(&outer.pack(archive)).unwrap();
                assert_eq!(tags, ["example.io/app:1"]);
                ground.reopen();
                let image = ground.store.resolve("example.io/app:1").unwrap();
                assert_eq!(image.id.0, made.id());
                assert_eq!(image.user, ImageUser::Id(1000));
                assert!(image.size > 5000);
                let config = image.config.config().as_ref().unwrap();
                assert_eq!(config.env().as_deref(), Some(&["A=b".to_owned()][..]));
                assert_eq!(ground.store.layer_dirs(&image.layers).len(), 2);
                assert_eq!(ground.file(&image, "hello"), b"hello");
                assert_eq!(ground.file(&image, "bin/sh"), [1; 5000]);
                assert_eq!(ground.counts(), [2, 1, 0, 0]);
            }
        }
    }
}

#[test]
fn images_share_layers() {
    let ground = Ground::new();
    let base = Tar::new().folder("./").file("base", &[5; 100_000]).finish();
    let with = |name: &str| {
        let top = Tar::new()
            .folder("./")
            .file("top", name.as_bytes())
            .finish();
        Made::new(&[base.clone(), top], Pack::Gzip, json!({}))
    };
    let (one, two) = (with("one"), with("two"));
    ground.import(&one.saved(&["one"])).unwrap();
    let usage = ground.store.disk_usage();
    assert!(usage.bytes > 100_000 && usage.inodes >= 4);
    let seen = Mutex::new(Vec::new());
    let progress = |p| seen.lock().unwrap().push(p);
    ground
        .store
        .import(&two.saved(&["two"])[..], &Selection::default(), &progress)
        .unwrap();
    let shared = Progress::Shared {
        layer: Digest::of(&base),
    };
    assert!(seen.lock().unwrap().contains(&shared));
    assert_eq!(ground.counts(), [3, 2, 0, 0]);
    assert!(ground.store.disk_usage().bytes < usage.bytes + 50_000);
    ground.store.remove("one").unwrap();
    assert_eq!(ground.collect(), 1);
    assert_eq!(
        ground.file(&ground.store.resolve("two").unwrap(), "base"),
        [5; 100_000]
    );
    ground.store.remove("two").unwrap();
    assert_eq!(ground.collect(), 2);
}

#[test]
fn the_image_for_this_machine_is_taken_out_of_an_index() {
    let ground = Ground::new();
    let (this, architecture) = platform();
    let made = Made::simple("here");
    let other = Made::on(
        "s390x",
        &[Tar::new().file("x", b"").finish()],
        Pack::Plain,
        json!({}),
    );
    let mut layout = Layout::default();
    let with = |mut descriptor: Value, platform: &Value| {
        descriptor["platform"] = platform.clone();
        descriptor
    };
    let here = with(layout.manifest(&made), &this);
    let elsewhere = with(
        layout.manifest(&other),
        &json!({"os": "linux", "architecture": "s390x"}),
    );
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    let statement = with(layout.blob(MANIFEST, b"{}"), &unknown);
    // Of other platforms not even the documents need be there.
    let absent = json!({
        "mediaType": MANIFEST, "digest": Digest::of(b"absent"), "size": 6,
        "platform": {"os": "windows", "architecture": architecture},
    });
    let index = layout.index(&[elsewhere.clone(), absent, statement, here]);
    let digest = index["digest"].as_str().unwrap().to_owned();
    let nested = layout.index(&[index]);
    let outer = nested["digest"].as_str().unwrap().to_owned();
    let archive = layout.entry(nested, "r.io/app:1").finish();
    ground.import(&archive).unwrap();
    let image = ground.store.resolve("r.io/app:1").unwrap();
    assert_eq!(image.id.0, made.id());
    assert_eq!(image.digests, [format!("r.io/app@{outer}")]);
    assert!(
        ground
            .store
            .resolve(&format!("r.io/app@{digest}"))
            .is_none()
    );
    let mut layout = Layout::default();
    layout.manifest(&other);
    let error = ground
        .import(&layout.entry(elsewhere, "r.io/app:2").finish())
        .unwrap_err();
    let expected = format!("image archive: no image for linux/{architecture}, but linux/s390x");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn images_of_other_platforms_are_imported_if_they_are_asked_for() {
    let (this, architecture) = platform();
    let made = Made::simple("here");
    let layer = |name: &str| Tar::new().file("name", name.as_bytes()).finish();
    let on =
        |architecture: &str| Made::on(architecture, &[layer(architecture)], Pack::Plain, json!({}));
    let (s390x, riscv) = (on("s390x"), on("riscv64"));
    let mut layout = Layout::default();
    let mut descriptor = |made: &Made, platform: Value| {
        let mut descriptor = layout.manifest(made);
        descriptor["platform"] = platform;
        descriptor
    };
    let linux = |architecture: &str| json!({"os": "linux", "architecture": architecture});
    let windows = json!({
        "mediaType": MANIFEST, "digest": Digest::of(b"absent"), "size": 6,
        "platform": {"os": "windows", "architecture": architecture},
    });
    let manifests = [
        descriptor(&s390x, linux("s390x")),
        windows,
        descriptor(&riscv, linux("riscv64")),
        descriptor(&made, this),
    ];
    let manifest = |at: usize| manifests[at]["digest"].as_str().unwrap().to_owned();
    let index = layout.index(&manifests);
    let top = index["digest"].as_str().unwrap().to_owned();
    let archive = layout.entry(index, "r.io/app:1").finish();
    let import = |ground: &Ground, platforms: Platforms| {
        let selection = Selection {
            platforms,
            ..Selection::default()
        };
        ground.store.import(&archive[..], &selection, &|_| {})
    };
    let one = |text: &str| Platforms::One(text.parse().unwrap());

    // One that is named has the names.
    let ground = Ground::new();
    import(&ground, one("linux/s390x")).unwrap();
    let image = ground.store.resolve("r.io/app:1").unwrap();
    assert_eq!(image.id.0, s390x.id());
    assert_eq!(image.digests, [format!("r.io/app@{top}")]);
    assert_eq!(ground.file(&image, "name"), b"s390x");
    assert_eq!(ground.counts(), [1, 1, 0, 0]);
    let error = import(&ground, one("linux/arm/v6"))
        .unwrap_err()
        .to_string();
    let others =
        format!("linux/{architecture}, linux/riscv64, linux/s390x, windows/{architecture}");
    assert_eq!(
        error,
        format!("image archive: no image for linux/arm/v6, but {others}")
    );

    // Of all, the one of this machine has the names, and the others their digests.
    let ground = Ground::new();
    assert_eq!(import(&ground, Platforms::All).unwrap().len(), 3);
    let image = ground.store.resolve("r.io/app:1").unwrap();
    assert_eq!(image.id.0, made.id());
    assert_eq!(image.digests, [format!("r.io/app@{top}")]);
    for (made, at) in [(&s390x, 0), (&riscv, 2)] {
        let name = format!("r.io/app@{}", manifest(at));
        let image = ground.store.resolve(&name).unwrap();
        assert_eq!(image.id.0, made.id());
        assert_eq!((image.tags.len(), &image.digests[..]), (0, &[name][..]));
    }
    assert_eq!(ground.counts(), [3, 3, 0, 0]);

    // Side by side in the layout's own index, and as docker save has it.
    let ground = Ground::new();
    let archive = Layout::default()
        .image(&riscv, "r.io/app:1")
        .image(&made, "r.io/app:1")
        .finish();
    let all = Selection {
        platforms: Platforms::All,
        ..Selection::default()
    };
    ground.store.import(&archive[..], &all, &|_| {}).unwrap();
    assert_eq!(ground.store.resolve("r.io/app:1").unwrap().id.0, made.id());
    assert_eq!(ground.store.list().len(), 2);
    let saved = s390x.saved(&["r.io/saved:1"]);
    ground
        .store
        .import(&saved[..], &Selection::default(), &|_| {})
        .unwrap_err();
    ground.store.import(&saved[..], &all, &|_| {}).unwrap();
    assert!(ground.store.resolve("r.io/saved:1").is_none());
    assert!(ground.store.resolve(&s390x.id().to_string()).is_some());
}

/// Archives that break a rule, with a part of the text that a person gets.
#[test]
fn wrong_archives_are_refused_and_leave_nothing() {
    let made = Made::simple("a");
    let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
    let mut cases: Vec<(Vec<u8>, &str)> = Vec::new();
    let mut wrong = made.clone();
    wrong.layers[0].0 = Tar::new().file("other", b"").finish();
    cases.push((wrong.saved(&["a"]), "its diff id is sha256:"));
    cases.push((made.saved(&["A B"]), "image name \"A B\""));
    cases.push((made.saved(&["../a"]), "image name \"../a\""));
    cases.push((b"not a tar archive".to_vec(), "cut off"));
    cases.push((vec![b'x'; 4096], "not a tar archive"));
    cases.push((
        Tar::new().file("a", b"").finish(),
        "neither an OCI layout nor",
    ));
    cases.push((Vec::new(), "neither an OCI layout nor"));
    let saved = made.saved(&["a"]);
    cases.push((
        saved[..saved.len() / 2 / 512 * 512 + 100].to_vec(),
        "cut off",
    ));
    cases.push((
        Tar::new().file("x", b"").file("./x", b"").finish(),
        "two members x",
    ));
    let document = |text: &str| Tar::new().file("manifest.json", text.as_bytes()).finish();
    cases.push((document("[]"), "no image for"));
    cases.push((document("{"), "manifest.json: EOF"));
    cases.push((
        document(r#"[{"Config": "/etc/passwd"}]"#),
        "/etc/passwd is missing",
    ));
    cases.push((
        document(r#"[{"Config": "../x", "Layers": []}]"#),
        "../x is missing",
    ));
    cases.push((
        document(r#"[{"Config": "a", "Config": "b"}]"#),
        "key \"Config\" twice",
    ));
    let huge = format!("[{}]", " ".repeat(5 << 20));
    cases.push((document(&huge), "more than 4194304"));
    let text = format!("{}.json", "a".repeat(64));
    let manifest = json!([{"Config": text, "Layers": []}]).to_string();
    let misnamed = Tar::new()
        .file(&text, &made.config)
        .file("manifest.json", manifest.as_bytes());
    cases.push((misnamed.finish(), "is not what its name says"));
    let looped = json!([{"Config": "a", "Layers": []}]).to_string();
    let looped = Tar::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("manifest.json", looped.as_bytes());
    cases.push((looped.finish(), "a is missing"));
    let with_user = Made::new(&[], Pack::Plain, json!({"User": "4294967296"}));
    cases.push((
        with_user.saved(&["a"]),
        "user \"4294967296\": a number must be",
    ));

    let layout = |change: &dyn Fn(&mut Value)| {
        let mut layout = Layout::default();
        let mut descriptor = layout.manifest(&made);
        change(&mut descriptor);
        layout.entry(descriptor, "a:1").finish()
    };
    cases.push((layout(&|d| d["size"] = json!(1)), "bytes and not 1"));
    cases.push((layout(&|d| d["digest"] = json!(digest(b"x"))), "is missing"));
    cases.push((
        layout(&|d| d["digest"] = json!("sha256:../../x")),
        "not a digest",
    ));
    cases.push((
        layout(&|d| d["digest"] = json!(format!("sha1:{}", "a".repeat(40)))),
        "not a digest",
    ));
    cases.push((
        layout(&|d| d["mediaType"] = json!(INDEX)),
        "of another type than",
    ));
    cases.push((
        layout(&|d| d["mediaType"] = json!("text/html")),
        "no image for",
    ));
    let manifest = |change: &dyn Fn(&mut Value)| {
        let mut layout = Layout::default();
        let layer = layout.blob(LAYER, &made.layers[0].0);
        let config = layout.blob(CONFIG, &made.config);
        let mut document = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        change(&mut document);
        let descriptor = layout.blob(MANIFEST, document.to_string().as_bytes());
        layout.entry(descriptor, "a:1").finish()
    };
    cases.push((
        manifest(&|d| d["manifests"] = json!([])),
        "neither an index nor a manifest",
    ));
    cases.push((
        manifest(&|d| d["schemaVersion"] = json!(1)),
        "manifest schema 1",
    ));
    cases.push((
        manifest(&|d| d["fsLayers"] = json!([])),
        "manifest schema 1",
    ));
    cases.push((
        manifest(&|d| d["layers"] = json!([])),
        "names 1 layers, its manifest 0",
    ));
    cases.push((
        manifest(&|d| d["layers"][0]["mediaType"] = json!("x/y")),
        "of unknown type x/y",
    ));
    let encrypted = format!("{LAYER}+encrypted");
    cases.push((
        manifest(&|d| d["layers"][0]["mediaType"] = json!(encrypted)),
        "of unknown type",
    ));
    let many: Vec<_> = (0..1001)
        .map(|_| json!({"mediaType": "x", "digest": digest(b""), "size": 0}))
        .collect();
    cases.push((
        manifest(&|d| d["layers"] = json!(many)),
        "more than 1000 descriptors",
    ));
    let mut deep = Layout::default();
    let mut descriptor = deep.manifest(&made);
    for _ in 0..3 {
        descriptor = deep.index(&[descriptor]);
    }
    cases.push((deep.entry(descriptor, "a:1").finish(), "too many indexes"));
    let twice = Layout::default()
        .image(&made, "a:1")
        .image(&Made::simple("b"), "a:1");
    cases.push((twice.finish(), "two images named docker.io/library/a:1"));
    let mut ambiguous = Layout::default();
    let both = [
        ambiguous.manifest(&made),
        ambiguous.manifest(&Made::simple("b")),
    ];
    let index = ambiguous.index(&both);
    cases.push((
        ambiguous.entry(index, "a:1").finish(),
        "two images for this machine",
    ));
    let mut broken = Layout::default().image(&made, "a:1");
    let bad = broken.blob(MANIFEST, b"[]");
    cases.push((broken.entry(bad, "b:1").finish(), "invalid"));

    let ground = Ground::new();
    for (archive, why) in cases {
        let error = ground.import(&archive).expect_err(why);
        assert!(error.to_string().contains(why), "{error}, not {why}");
        assert!(error.is_invalid() && !error.is_no_space(), "{error}");
        assert_eq!(ground.counts(), [0, 0, 0, 0], "{why}");
    }
    assert!(ground.store.list().is_empty());
}

#[test]
fn links_between_members_are_followed() {
    let made = Made::simple("a");
    let id = made.id().hex();
    let manifest =
        json!([{"Config": format!("{id}.json"), "RepoTags": ["a:1"], "Layers": ["b/layer.tar"]}]);
    let archive = Tar::new()
        .file("a/layer.tar", &made.layers[0].0)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file(&format!("{id}.json"), &made.config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish();
    let ground = Ground::new();
    assert_eq!(ground.import(&archive).unwrap(), ["docker.io/library/a:1"]);
}

#[test]
fn a_layer_that_hides_all_below_leaves_them_out() {
    let mut ground = Ground::new();
    let layers = [
        Tar::new().folder("./").file("old", b"").finish(),
        Tar::new()
            .folder("./")
            .file(".wh..wh..opq", b"")
            .file("new", b"")
            .finish(),
        Tar::new().folder("./").file("top", b"").finish(),
    ];
    ground
        .import(&Made::new(&layers, Pack::Plain, json!({})).saved(&["a"]))
        .unwrap();
    for _ in 0..2 {
        let image = ground.store.resolve("a").unwrap();
        assert_eq!(
            (
                image.layers.len(),
                ground.store.layer_dirs(&image.layers).len()
            ),
            (3, 2)
        );
        // Also when the record of the layer has to be made anew.
        let hiding = &ground.store.layer_dirs(&image.layers)[0];
        std::fs::write(hiding.parent().unwrap().join("record"), "").unwrap();
        ground.reopen();
    }
}
