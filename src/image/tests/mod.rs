//! The store as its users see it: import, look-up, removal, collection, and what a kill, damage or a full disk leaves.

mod faults;
mod import;
mod names;

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::{Error, Image, ImageStore, ImageUser, Names, Pinned, Platforms, Progress, Selection};
use crate::store::blobs::Digest;
use crate::store::unpack::Unpacker;
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
        let store = ImageStore::open(folder.path(), Pinned::default(), Unpacker::Here).unwrap();
        Self { folder, store }
    }

    fn reopen(&mut self) {
        self.store =
            ImageStore::open(self.folder.path(), Pinned::default(), Unpacker::Here).unwrap();
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

/// What is for this machine, under given names.
fn named(names: Vec<super::Reference>) -> Selection {
    Selection {
        names: Names::Given(names),
        ..Selection::default()
    }
}

/// The tags of what was imported.
fn import(store: &ImageStore, archive: &[u8]) -> Result<Vec<String>, Error> {
    let images = store.import(archive, &Selection::default(), &|_| {})?;
    Ok(images.iter().flat_map(|image| image.tags.clone()).collect())
}
