//! Makes container images: Debian's busybox in two layers, and whatever a test wants to break.

use std::collections::BTreeMap;
use std::io::Write;

use flate2::Compression;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// The tag of [`Image::busybox`].
pub const BUSYBOX: &str = "localhost/busybox:test";

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Gzip,
    Zstd,
    Plain,
}

/// An image to be: layers, lowest first, and a configuration.
#[derive(Debug, Clone)]
pub struct Image {
    pub tags: Vec<String>,
    pub layers: Vec<Layer>,
    pub packing: Packing,
    /// The `config` object of the image configuration: Env, Cmd, User, …
    pub config: Value,
    /// That it is for: this machine's, unless a test says otherwise.
    pub architecture: String,
}

impl Image {
    /// Debian's busybox with its applets, and a second layer with users, a web page and a script.
    ///
    /// # Panics
    /// If the package busybox-static is not installed.
    #[must_use]
    pub fn busybox() -> Self {
        Self {
            tags: vec![BUSYBOX.to_owned()],
            layers: vec![base_layer(), content_layer()],
            packing: Packing::Gzip,
            config: json!({
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"],
                "Cmd": ["/bin/sh", "-c", "echo from the image"],
                "Labels": { "org.example.kind": "test" },
            }),
            architecture: architecture().to_owned(),
        }
    }

    /// An image of one small layer without any program: quick to import.
    #[must_use]
    pub fn tiny(tag: &str) -> Self {
        Self {
            tags: vec![tag.to_owned()],
            layers: vec![Layer::default().file("hello", 0o644, tag.as_bytes())],
            packing: Packing::Gzip,
            config: json!({ "Cmd": ["/hello"] }),
            architecture: architecture().to_owned(),
        }
    }

    #[must_use]
    pub fn tagged(mut self, tag: &str) -> Self {
        self.tags = vec![tag.to_owned()];
        self
    }

    /// Makes it one for another machine.
    #[must_use]
    pub fn on(mut self, architecture: &str) -> Self {
        self.architecture = architecture.to_owned();
        self
    }

    #[must_use]
    pub fn packed(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets a field of the image's `config` object ("User", "WorkingDir", "Entrypoint", …).
    #[must_use]
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// The archive of an OCI image layout.
    #[must_use]
    pub fn oci(&self) -> Vec<u8> {
        let built = self.build();
        let mut files = built.blobs();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.tags.iter().map(|tag| json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(&built.manifest),
                "size": built.manifest.len(),
                "annotations": {
                    "io.containerd.image.name": tag,
                    "org.opencontainers.image.ref.name": tag,
                },
            })).collect::<Vec<_>>(),
        });
        files.insert("index.json".into(), index.to_string().into_bytes());
        files.insert(
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
        archive(&files)
    }

    /// The archive that `docker save` makes. Its layers are plain, whatever the packing.
    #[must_use]
    pub fn docker(&self) -> Vec<u8> {
        let plain = self.clone().packed(Packing::Plain).build();
        let mut files = BTreeMap::new();
        let config = format!("{}.json", hex_digest(&plain.config));
        let mut names = Vec::new();
        for layer in &plain.layers {
            let name = format!("{}/layer.tar", hex_digest(layer));
            files.insert(name.clone(), layer.clone());
            names.push(name);
        }
        let manifest = json!([{ "Config": config, "RepoTags": self.tags, "Layers": names }]);
        files.insert(config, plain.config.clone());
        files.insert("manifest.json".into(), manifest.to_string().into_bytes());
        archive(&files)
    }

    /// The image's id: the digest of its configuration.
    #[must_use]
    pub fn id(&self) -> String {
        digest(&self.build().config)
    }

    /// The parts, for tests that break one of them.
    #[must_use]
    pub fn build(&self) -> Built {
        let tars: Vec<Vec<u8>> = self.layers.iter().map(Layer::tar).collect();
        let layers: Vec<Vec<u8>> = tars.iter().map(|tar| pack(tar, self.packing)).collect();
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": tars.iter().map(|tar| digest(tar)).collect::<Vec<_>>() },
            "history": tars.iter().map(|_| json!({ "created_by": "carpel's tests" })).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        let suffix = match self.packing {
            Packing::Gzip => "+gzip",
            Packing::Zstd => "+zstd",
            Packing::Plain => "",
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config),
                "size": config.len(),
            },
            "layers": layers.iter().map(|layer| json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                "digest": digest(layer),
                "size": layer.len(),
            })).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        Built {
            manifest,
            config,
            layers,
        }
    }
}

/// The blobs of an image.
#[derive(Debug, Clone)]
pub struct Built {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

impl Built {
    /// The blobs under their names in an OCI layout.
    #[must_use]
    pub fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.layers)
            .map(|blob| (format!("blobs/sha256/{}", hex_digest(blob)), blob.clone()))
            .collect()
    }
}

/// A layer to be: entries in the order in which they are added.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    kind: EntryType,
    path: String,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    link: String,
    content: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer {
    fn entry(mut self, kind: EntryType, path: &str, mode: u32) -> Self {
        self.entries.push(Entry {
            kind,
            path: path.to_owned(),
            mode,
            owner: (0, 0),
            mtime: 1_700_000_000,
            link: String::new(),
            content: Vec::new(),
            xattrs: Vec::new(),
        });
        self
    }

    fn last(&mut self) -> &mut Entry {
        self.entries.last_mut().expect("an entry was added before")
    }

    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode)
    }

    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut layer = self.entry(EntryType::Regular, path, mode);
        layer.last().content = content.to_vec();
        layer
    }

    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        let mut layer = self.entry(EntryType::Symlink, path, 0o777);
        layer.last().link = target.to_owned();
        layer
    }

    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let mut layer = self.entry(EntryType::Link, path, 0o644);
        layer.last().link = target.to_owned();
        layer
    }

    #[must_use]
    pub fn fifo(self, path: &str) -> Self {
        self.entry(EntryType::Fifo, path, 0o644)
    }

    /// One of this machine's programs at the path that it has here, with what it is linked with.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn program(mut self, path: &str) -> Self {
        let libraries = std::process::Command::new("ldd").arg(path).output();
        let libraries = String::from_utf8(libraries.expect("ldd").stdout).expect("text");
        let libraries = libraries.split_whitespace();
        let mut made = std::collections::BTreeSet::new();
        for path in std::iter::once(path).chain(libraries.filter(|word| word.starts_with('/'))) {
            let content = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let path = path.trim_start_matches('/');
            for (at, _) in path.match_indices('/') {
                if made.insert(path[..at].to_owned()) {
                    self = self.dir(&path[..at], 0o755);
                }
            }
            self = self.file(path, 0o755, &content);
        }
        self
    }

    /// Deletes `path` of the layers below.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.file(&format!("{dir}/.wh.{name}"), 0o644, b"")
    }

    /// Hides everything that the layers below have in `dir`.
    #[must_use]
    pub fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), 0o644, b"")
    }

    /// Owner of the entry added last.
    #[must_use]
    pub fn owned_by(mut self, uid: u64, gid: u64) -> Self {
        self.last().owner = (uid, gid);
        self
    }

    /// Time of last change of the entry added last, in seconds since the epoch.
    #[must_use]
    pub fn changed_at(mut self, mtime: u64) -> Self {
        self.last().mtime = mtime;
        self
    }

    /// An extended attribute of the entry added last.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.last().xattrs.push((name.to_owned(), value.to_vec()));
        self
    }

    /// The layer as a tar. Paths go in as they are: "../x" and "/x", too.
    #[must_use]
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            let names: Vec<_> = entry
                .xattrs
                .iter()
                .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()))
                .collect();
            tar.append_pax_extensions(names.iter().map(|(name, value)| (name.as_str(), *value)))
                .expect("memory");
            let mut header = Header::new_gnu();
            header.set_entry_type(entry.kind);
            header.set_mode(entry.mode);
            header.set_uid(entry.owner.0);
            header.set_gid(entry.owner.1);
            header.set_mtime(entry.mtime);
            header.set_size(entry.content.len() as u64);
            set_name(&mut header.as_gnu_mut().expect("gnu").name, &entry.path);
            set_name(&mut header.as_gnu_mut().expect("gnu").linkname, &entry.link);
            header.set_cksum();
            tar.append(&header, entry.content.as_slice())
                .expect("memory");
        }
        tar.into_inner().expect("memory")
    }
}

/// Writes a name as it is: the tar crate would refuse the very paths that a hostile layer has.
fn set_name(field: &mut [u8; 100], name: &str) {
    field[..name.len()].copy_from_slice(name.as_bytes());
}

fn base_layer() -> Layer {
    let busybox = std::fs::read("/bin/busybox").expect("Debian's busybox-static is installed");
    let mut layer = Layer::default()
        .dir("bin", 0o755)
        .file("bin/busybox", 0o755, &busybox);
    for applet in [
        "sh", "ash", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dmesg", "echo",
        "env", "false", "find", "free", "grep", "head", "hostname", "httpd", "id", "ip", "kill",
        "ln", "ls", "mkdir", "mkfifo", "mknod", "mount", "mv", "nc", "netstat", "nproc",
        "nslookup", "ping", "printf", "ps", "pwd", "readlink", "rm", "sed", "seq", "sleep", "sort",
        "stat", "stty", "sync", "tail", "tee", "test", "touch", "tr", "true", "tty", "umount",
        "uname", "unshare", "usleep", "wc", "wget", "which", "whoami", "xargs", "yes",
    ] {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    for dir in ["dev", "etc", "home", "proc", "root", "sys", "usr", "var"] {
        layer = layer.dir(dir, 0o755);
    }
    layer
        .dir("tmp", 0o1777)
        .file("etc/replaced", 0o644, b"from the first layer\n")
        .file("etc/deleted", 0o644, b"from the first layer\n")
}

fn content_layer() -> Layer {
    Layer::default()
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nalice:x:1001:1001::/home/alice:/bin/sh\nbob:x:1002:100::/:/bin/sh\n",
        )
        .file(
            "etc/group",
            0o644,
            b"root:x:0:\nusers:x:100:\nalice:x:1001:\nteam:x:2000:alice,bob\n",
        )
        .dir("home/alice", 0o700)
        .owned_by(1001, 1001)
        .dir("www", 0o755)
        .file("www/index.html", 0o644, b"hello from a pod\n")
        .file("etc/replaced", 0o644, b"from the second layer\n")
        .whiteout("etc/deleted")
        .file("bin/not-executable", 0o644, b"#!/bin/sh\n")
}

fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Zstd => {
            ruzstd::encoding::compress_to_vec(tar, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Packing::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(tar).expect("memory");
            gzip.finish().expect("memory")
        }
    }
}

/// An archive of files under their names.
#[must_use]
pub fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, content.as_slice())
            .expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// "sha256:" and the hex digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex_digest(bytes))
}

fn hex_digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
