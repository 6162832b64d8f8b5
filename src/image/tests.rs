//! The store as its users see it: import, look-up, removal, collection, and what a kill, damage or a full disk leaves.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::{Error, Image, ImageStore, ImageUser, Names, Progress};
use crate::store::blobs::Digest;
use crate::store::unpack::testing::{Tar, look, tool};

/// An image to be written into archives.
#[derive(Clone)]
struct Made {
    /// As packed, and their diff ids.
    layers: Vec<(Vec<u8>, Digest)>,
    config: Vec<u8>,
}

fn platform() -> (Value, &'static str) {
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    (
        json!({"os": "linux", "architecture": architecture}),
        architecture,
    )
}

#[derive(Clone, Copy)]
enum Pack {
    Plain,
    Gzip,
    Zstd,
}

impl Pack {
    fn pack(self, bytes: &[u8]) -> Vec<u8> {
        let here = Path::new("/");
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => tool("gzip", &["-nc"], here, bytes),
            Self::Zstd => tool("zstd", &["-qc"], here, bytes),
        }
    }
}

impl Made {
    fn new(layers: &[Vec<u8>], pack: Pack, config: Value) -> Self {
        Self::on(platform().1, layers, pack, config)
    }

    fn on(architecture: &str, layers: &[Vec<u8>], pack: Pack, config: Value) -> Self {
        let layers: Vec<_> = layers
            .iter()
            .map(|l| (pack.pack(l), Digest::of(l)))
            .collect();
        let diff_ids: Vec<_> = layers.iter().map(|(_, diff)| diff.to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        Self { layers, config }
    }

    fn simple(name: &str) -> Self {
        let layer = Tar::new()
            .folder("./")
            .file("name", name.as_bytes())
            .finish();
        Self::new(&[layer], Pack::Plain, json!({"Cmd": [name]}))
    }

    fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// What docker save writes.
    fn saved(&self, tags: &[&str]) -> Vec<u8> {
        let id = self.id().hex();
        let mut tar = Tar::new().file(&format!("{id}.json"), &self.config);
        let mut names = Vec::new();
        for (number, (bytes, _)) in self.layers.iter().enumerate() {
            let name = format!("{number}/layer.tar");
            tar = tar.folder(&format!("{number}/")).file(&name, bytes);
            names.push(name);
        }
        let manifest = json!([{"Config": format!("{id}.json"), "RepoTags": tags, "Layers": names}]);
        tar.file("manifest.json", manifest.to_string().as_bytes())
            .finish()
    }
}

/// An OCI layout being written.
#[derive(Default)]
struct Layout {
    tar: Tar,
    written: HashSet<Digest>,
    entries: Vec<Value>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Layout {
    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        if self.written.insert(digest) {
            let path = format!("blobs/sha256/{}", digest.hex());
            self.tar = std::mem::take(&mut self.tar).file(&path, bytes);
        }
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    fn manifest(&mut self, made: &Made) -> Value {
        let layers: Vec<_> = made
            .layers
            .iter()
            .map(|(bytes, _)| self.blob(LAYER, bytes))
            .collect();
        let config = self.blob(CONFIG, &made.config);
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.blob(INDEX, index.to_string().as_bytes())
    }

    fn entry(mut self, mut descriptor: Value, name: &str) -> Self {
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.entries.push(descriptor);
        self
    }

    fn image(mut self, made: &Made, name: &str) -> Self {
        let descriptor = self.manifest(made);
        self.entry(descriptor, name)
    }

    fn finish(self) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": self.entries});
        self.tar
            .file("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)
            .file("index.json", index.to_string().as_bytes())
            .finish()
    }
}

struct Ground {
    folder: tempfile::TempDir,
    store: ImageStore,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        Self { folder, store }
    }

    fn reopen(&mut self) {
        self.store = ImageStore::open(self.folder.path()).unwrap();
    }

    fn import(&self, archive: &[u8]) -> Result<Vec<String>, Error> {
        import(&self.store, archive)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn count(&self, name: &str) -> usize {
        std::fs::read_dir(self.path(name)).unwrap().count()
    }

    /// Layers, records, temporary things and what is in quarantine.
    fn counts(&self) -> [usize; 4] {
        ["layers", "images", "tmp", "quarantine"].map(|name| self.count(name))
    }

    fn collect(&self) -> usize {
        let collected = self.store.collect(HashSet::new);
        assert_eq!(collected.errors, Vec::<String>::new());
        collected.layers.len()
    }

    fn file(&self, image: &Image, path: &str) -> Vec<u8> {
        let folders = self.store.layer_dirs(&image.layers);
        let found = folders
            .iter()
            .rev()
            .map(|folder| folder.join(path))
            .find(|p| p.exists());
        std::fs::read(found.unwrap()).unwrap()
    }
}

/// The tags of what was imported.
fn import(store: &ImageStore, archive: &[u8]) -> Result<Vec<String>, Error> {
    let images = store.import(archive, &Names::FromArchive, &|_| {})?;
    Ok(images.iter().flat_map(|image| image.tags.clone()).collect())
}

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
fn an_image_is_found_by_all_its_names() {
    let ground = Ground::new();
    let made = Made::simple("a");
    let mut layout = Layout::default();
    let manifest = layout.manifest(&made);
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let archive = layout
        .entry(manifest.clone(), "busybox:latest")
        .entry(manifest, "localhost:5000/x:latest");
    ground.import(&archive.finish()).unwrap();
    let hex = made.id().hex();
    for name in [
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox",
        "localhost:5000/x",
        &format!("localhost:5000/x@{digest}"),
        &format!("busybox:whatever@{digest}"),
        &hex,
        &format!("sha256:{hex}"),
        &hex[..12],
        &hex[..4],
        &format!("sha256:{}", &hex[..10]),
    ] {
        let image = ground
            .store
            .resolve(name)
            .unwrap_or_else(|| panic!("{name}"));
        assert_eq!(image.id.0, made.id());
        assert_eq!(
            image.tags,
            [
                "docker.io/library/busybox:latest",
                "localhost:5000/x:latest"
            ]
        );
        let digests = ["docker.io/library/busybox", "localhost:5000/x"];
        assert_eq!(
            image.digests,
            digests.map(|repository| format!("{repository}@{digest}"))
        );
    }
    for name in [
        "",
        "busybox:2",
        "localhost/x",
        &hex[..3],
        &hex[1..],
        &hex.to_uppercase(),
        &format!("other@{digest}"),
        "../../etc/passwd",
        "busybox\0",
    ] {
        assert!(ground.store.resolve(name).is_none(), "{name}");
    }
}

#[test]
fn an_abbreviation_must_fit_one_image_only() {
    let ground = Ground::new();
    let layer = Tar::new().folder("./").finish();
    let mut made = std::collections::HashMap::new();
    let alike = (0..).find_map(|number| {
        let new = Made::new(
            std::slice::from_ref(&layer),
            Pack::Plain,
            json!({"Cmd": [number.to_string()]}),
        );
        let old = made.insert(new.id().hex()[..4].to_owned(), new.clone())?;
        Some([old, new])
    });
    let alike = alike.unwrap();
    let [one, two] = alike.each_ref().map(|made| made.id().hex());
    ground.import(&alike[0].saved(&[])).unwrap();
    assert_eq!(ground.store.resolve(&one[..4]).unwrap().id.0, alike[0].id());
    ground.import(&alike[1].saved(&[])).unwrap();
    assert!(ground.store.resolve(&one[..4]).is_none());
    for (id, made) in [(&one, &alike[0]), (&two, &alike[1])] {
        assert_eq!(ground.store.resolve(&id[..20]).unwrap().id.0, made.id());
    }
    assert_eq!(ground.store.list().len(), 2);
}

#[test]
fn removing_by_tag_and_by_id() {
    let ground = Ground::new();
    let made = Made::simple("a");
    let archive = Layout::default()
        .image(&made, "r.io/a:1")
        .image(&made, "r.io/b:1")
        .finish();
    ground.import(&archive).unwrap();
    ground.store.remove("r.io/a:1").unwrap();
    let image = ground.store.resolve("r.io/b:1").unwrap();
    assert_eq!(image.tags, ["r.io/b:1"]);
    assert!(
        image
            .digests
            .iter()
            .all(|digest| digest.starts_with("r.io/b@"))
    );
    assert_eq!(image.digests.len(), 1);
    ground.store.remove("r.io/b:1").unwrap();
    assert!(ground.store.list().is_empty());
    ground.import(&archive).unwrap();
    ground.store.remove(&made.id().to_string()).unwrap();
    assert!(ground.store.list().is_empty());
    for unknown in ["r.io/a:1", "", "a b", &made.id().to_string(), "../x"] {
        ground.store.remove(unknown).unwrap();
    }
    // By its only digest reference, when it has no tag.
    let names = [format!("r.io/a@{}", Digest::of(b"x")).parse().unwrap()];
    ground
        .store
        .import(&archive[..], &Names::Given(names.to_vec()), &|_| {})
        .unwrap_err();
    drop(image);
    assert_eq!(ground.collect(), 1);
    assert_eq!(ground.counts(), [0, 0, 0, 0]);
    assert_eq!(ground.store.disk_usage().bytes, 0);
}

#[test]
fn a_tag_moves_to_the_image_imported_last() {
    let mut ground = Ground::new();
    let (old, new) = (Made::simple("old"), Made::simple("new"));
    ground.import(&old.saved(&["app:1", "app:old"])).unwrap();
    ground.import(&new.saved(&["app:1"])).unwrap();
    for _ in 0..2 {
        assert_eq!(ground.store.resolve("app:1").unwrap().id.0, new.id());
        assert_eq!(ground.store.resolve("app:old").unwrap().id.0, old.id());
        assert_eq!(ground.store.list().len(), 2);
        ground.reopen();
    }
    // As if killed before the old record was written anew.
    let path = ground.path("images").join(old.id().hex());
    ground.store.remove("app:1").unwrap();
    ground.import(&old.saved(&["app:1"])).unwrap();
    let early = std::fs::read(&path).unwrap();
    ground.import(&new.saved(&["app:1"])).unwrap();
    std::fs::write(&path, early).unwrap();
    ground.reopen();
    assert_eq!(ground.store.resolve("app:1").unwrap().id.0, new.id());
    assert_eq!(
        ground.store.resolve("app:old").unwrap().tags,
        ["docker.io/library/app:old"]
    );
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
        .import(&two.saved(&["two"])[..], &Names::FromArchive, &progress)
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
fn what_is_held_or_in_use_is_not_collected() {
    let ground = Ground::new();
    let made = Made::simple("a");
    ground.import(&made.saved(&["a"])).unwrap();
    let held = ground.store.resolve("a").unwrap();
    // A change of names makes another image object; both count.
    ground.store.pin(held.id, true).unwrap();
    assert!(ground.store.resolve("a").unwrap().pinned);
    ground.store.remove("a").unwrap();
    assert_eq!(ground.collect(), 0);
    let in_use: HashSet<_> = held.layers.iter().copied().collect();
    drop(held);
    assert!(ground.store.collect(|| in_use).layers.is_empty());
    assert_eq!(ground.collect(), 1);
}

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
        "unknown schema",
    ));
    cases.push((manifest(&|d| d["fsLayers"] = json!([])), "unknown schema"));
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
fn names_can_be_given_for_one_image() {
    let ground = Ground::new();
    let (one, two) = (Made::simple("one"), Made::simple("two"));
    let names = Names::Given(vec!["given:1".parse().unwrap()]);
    let both = Layout::default()
        .image(&one, "a:1")
        .image(&two, "b:1")
        .finish();
    let error = ground.store.import(&both[..], &names, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("2 images, so no name"));
    let single = Layout::default().image(&one, "a:1").finish();
    ground.store.import(&single[..], &names, &|_| {}).unwrap();
    assert!(ground.store.resolve("a:1").is_none());
    assert_eq!(ground.store.resolve("given:1").unwrap().digests.len(), 1);
    // A bare tag names no repository, and none is made up.
    ground
        .import(&Layout::default().image(&two, "latest").finish())
        .unwrap();
    assert!(ground.store.resolve("latest").is_none());
    assert_eq!(
        ground.store.resolve(&two.id().to_string()).unwrap().tags,
        Vec::<String>::new()
    );
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
            .import(broken, &Names::FromArchive, &|_| {})
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
    let store = ImageStore::open(disk.0.path()).unwrap();
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

#[test]
fn folders_are_for_root_only() {
    use std::os::unix::fs::PermissionsExt;
    let ground = Ground::new();
    ground.import(&Made::simple("a").saved(&["a"])).unwrap();
    for name in ["", "images", "layers", "tmp", "quarantine"] {
        let mode = std::fs::metadata(ground.path(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
}

/// No test by itself: what [`a_killed_import_leaves_an_image_whole_or_not_at_all`] kills.
#[test]
fn victim() {
    let Some(root) = std::env::var_os("CARPEL_TEST_VICTIM") else {
        return;
    };
    let root = Path::new(&root);
    let archive = std::fs::read(root.join("archive")).unwrap();
    let store = ImageStore::open(&root.join("root")).unwrap();
    loop {
        import(&store, &archive).unwrap();
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
            .args(["--exact", "image::tests::victim"])
            .env("CARPEL_TEST_VICTIM", folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 + 37 * round));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        let store = ImageStore::open(&root).unwrap();
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
        let store = ImageStore::open(&root).unwrap();
        store.collect(HashSet::new);
        assert_eq!(std::fs::read_dir(root.join("layers")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(root.join("images")).unwrap().count(), 0);
    }
    println!("{whole} of 12 kills left the image");
}
