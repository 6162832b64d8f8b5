//! The images of this machine: their records on disk, and the index in memory that answers for them.
//!
//! What must always hold: the index says what the records say; each tag stands for one image. A tag that moves is first
//! written into the record of its new image, then taken out of the old one's: if a kill comes between, the later
//! record wins at the next start.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use oci_spec::image::ImageConfiguration;

use super::config::Checked;
use super::index::{Entry, Index, Record, drop_name};
use super::{Artifact, Error, Image, ImageId, ImageUser, Pinned};
use crate::store::blobs::Digest;
use crate::store::gc::{Collected, Detached};
use crate::store::layers::{LayerId, LayerStore, Usage};
use crate::store::record::{self, Durability, ReadError};
use crate::store::remove_tree::remove_tree;
use crate::store::unpack::Unpacker;

/// All images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    layers: Arc<LayerStore>,
    /// Held while records change, and while it is decided which layers are unused.
    changes: Mutex<()>,
    index: RwLock<Index>,
}

/// An image to be recorded, whose layers are there.
pub(super) struct New {
    pub id: ImageId,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// The configuration, of an artifact the manifest: byte for byte.
    pub config: String,
    pub content: Content,
    pub layers: Vec<LayerId>,
}

/// What an image is, out of its configuration or manifest.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Image(Box<Checked>),
    Artifact(Artifact),
}

impl Content {
    fn parse(record: &Record) -> Result<Self, String> {
        let bytes = record.config.as_bytes();
        Ok(match record.artifact {
            true => Self::Artifact(Artifact::parse(bytes)?),
            false => Self::Image(Box::new(Checked::parse(bytes)?)),
        })
    }

    /// The layers that it consists of, bottom first.
    pub(super) fn layers(&self) -> Vec<LayerId> {
        match self {
            Self::Image(checked) => LayerId::chain(&checked.diff_ids),
            Self::Artifact(artifact) => artifact.layers(),
        }
    }
}

impl ImageStore {
    /// Opens the store below `root`, which is made if missing. Removes what is half made and puts damaged records into
    /// `root/quarantine`. Layers that nothing uses are left to [`Self::collect`]. Images that `pinned` names are pinned
    /// whatever their records say.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: &Path, pinned: Pinned, unpacker: Unpacker) -> Result<Self, Error> {
        let object = |path: &Path| path.display().to_string();
        let store = |path: PathBuf| {
            move |source| Error::Store {
                object: object(&path),
                source,
            }
        };
        let [images, layers, temporary, quarantine] =
            ["images", "layers", "tmp", "quarantine"].map(|name| root.join(name));
        for folder in [root, &images, &layers, &temporary, &quarantine] {
            make_private(folder).map_err(store(folder.to_owned()))?;
        }
        empty(&temporary).map_err(store(temporary.clone()))?;
        let layers =
            LayerStore::open(&layers, &temporary, &quarantine, unpacker).map_err(store(layers))?;
        let entries =
            load(&images, &layers, &quarantine, &pinned).map_err(store(images.clone()))?;
        let mut index = Index::of(entries, pinned);
        for id in index.settle_tags() {
            let entry = &index.images[&id];
            let path = images.join(id.0.hex());
            record::write(&path, &entry.record, Durability::Now).map_err(store(path))?;
        }
        index.rename();
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            layers: Arc::new(layers),
            changes: Mutex::new(()),
            index: RwLock::new(index),
        })))
    }

    /// All images, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.read(|index| {
            index
                .images
                .values()
                .map(|entry| Arc::clone(&entry.image))
                .collect()
        })
    }

    /// The image that `name` stands for: its id (with or without "sha256:"), a tag, a digest reference, or at least four
    /// digits that only its id begins with. A tag goes before an abbreviated id.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        self.read(|index| {
            let (id, _) = index.find(name)?;
            index.images.get(&id).map(|entry| Arc::clone(&entry.image))
        })
    }

    /// Removes what `name` stands for: by id the image with all its names; by tag or digest reference that name, and the
    /// image if it was the last. Its layers stay until they are collected. An unknown name is no error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let _changes = self.change();
        let Some((id, used)) = self.read(|index| index.find(name)) else {
            return Ok(());
        };
        let Some(Entry { mut record, image }) = self.read(|index| index.images.get(&id).cloned())
        else {
            return Ok(());
        };
        if let Some(name) = used {
            drop_name(&mut record, &name);
            if !record.tags.is_empty() || !record.digests.is_empty() {
                record.revision = self.next_revision();
                self.write(id, &record)?;
                let entry = Entry {
                    image: self.renamed(&image, &record),
                    record,
                };
                self.update(|index| index.put(id, entry));
                return Ok(());
            }
        }
        self.forget(id)
    }

    /// Removes the record of an image. Whoever calls holds [`Self::change`].
    pub(super) fn forget(&self, id: ImageId) -> Result<(), Error> {
        let path = self.record_path(id);
        record::remove(&path, Durability::Now).map_err(|source| Error::Store {
            object: format!("image {id}"),
            source,
        })?;
        self.update(|index| index.take(id));
        Ok(())
    }

    /// The image under the names of `record`.
    pub(super) fn renamed(&self, image: &Image, record: &Record) -> Arc<Image> {
        let pinned = self.read(|index| index.is_pinned(record));
        Arc::new(image.renamed(record, pinned))
    }

    /// What images and the layers they left take. Answered from memory.
    #[must_use]
    pub fn disk_usage(&self) -> Usage {
        self.0.layers.usage()
    }

    /// The folders of layers, bottom first: what an overlay is made of.
    #[must_use]
    pub fn layer_dirs(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        self.0.layers.paths(layers)
    }

    /// Removes the layers that neither an image, nor anyone holding an [`Image`], nor a container uses.
    ///
    /// `in_use` gives the layers of all containers. It is asked after those who hold an image have been seen: whoever makes
    /// a container holds its image until the container is recorded, so none slips through. It must not change images.
    pub fn collect(&self, in_use: impl FnOnce() -> HashSet<LayerId>) -> Collected {
        self.detach(in_use).delete()
    }

    fn detach(&self, in_use: impl FnOnce() -> HashSet<LayerId>) -> Detached {
        let _changes = self.change();
        let held: Vec<Arc<Image>> = self.update(|index| {
            index.retired.retain(|image| image.strong_count() > 0);
            let retired = index.retired.iter().filter_map(Weak::upgrade);
            let images = index.images.values().map(|entry| Arc::clone(&entry.image));
            retired.chain(images).collect()
        });
        let mut used = in_use();
        used.extend(held.iter().flat_map(|image| &image.layers));
        self.0.layers.detach_unused(&used)
    }

    /// Records images, all of them or none.
    pub(super) fn publish(&self, new: Vec<New>) -> Result<Vec<Arc<Image>>, Error> {
        let _changes = self.change();
        let before = self.read(|index| index.images.clone());
        let mut entries: BTreeMap<ImageId, Entry> = BTreeMap::new();
        for new in new {
            let id = new.id;
            let known = entries.remove(&id).or_else(|| before.get(&id).cloned());
            entries.insert(id, self.entry(new, known));
        }
        self.replace(entries, before)
    }

    /// Writes records, all of them or none, and takes their tags from the images that had them `before`. Whoever calls
    /// holds [`Self::change`].
    pub(super) fn replace(
        &self,
        mut entries: BTreeMap<ImageId, Entry>,
        before: BTreeMap<ImageId, Entry>,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let mut written = Vec::new();
        for (&id, entry) in &mut entries {
            entry.record.revision = self.next_revision() + written.len() as u64;
            written.push(id);
            if let Err(error) = self.write(id, &entry.record) {
                self.restore(&written, &before);
                return Err(error);
            }
        }
        let moved: HashSet<String> = entries
            .values()
            .flat_map(|entry| entry.record.tags.iter().cloned())
            .collect();
        for (id, mut entry) in before {
            let count = entry.record.tags.len();
            entry.record.tags.retain(|tag| !moved.contains(tag));
            if entries.contains_key(&id) || entry.record.tags.len() == count {
                continue;
            }
            // If this fails the old record still names the tag, but an earlier revision of it.
            if let Err(error) = self.write(id, &entry.record) {
                tracing::warn!(image = %id, %error, "tag moved to another image");
            }
            entry.image = self.renamed(&entry.image, &entry.record);
            self.update(|index| index.put(id, entry));
        }
        let images = entries
            .values()
            .map(|entry| Arc::clone(&entry.image))
            .collect();
        self.update(|index| {
            for (id, entry) in entries {
                index.put(id, entry);
            }
        });
        Ok(images)
    }

    /// Puts records back as they were.
    fn restore(&self, written: &[ImageId], before: &BTreeMap<ImageId, Entry>) {
        for &id in written {
            let restored = match before.get(&id) {
                Some(entry) => self.write(id, &entry.record),
                None => record::remove(&self.record_path(id), Durability::Now).map_err(|source| {
                    Error::Store {
                        object: format!("image {id}"),
                        source,
                    }
                }),
            };
            if let Err(error) = restored {
                tracing::warn!(image = %id, %error, "image imported in part");
            }
        }
    }

    fn entry(&self, new: New, known: Option<Entry>) -> Entry {
        let (mut tags, mut digests, pinned) = match known {
            Some(Entry { record, .. }) => (record.tags, record.digests, record.pinned),
            None => (BTreeSet::new(), BTreeSet::new(), false),
        };
        tags.extend(new.tags);
        digests.extend(new.digests);
        let size = self.0.layers.usage_of(&new.layers).bytes + new.config.len() as u64;
        let record = Record {
            revision: 0,
            tags,
            digests,
            size,
            pinned,
            artifact: matches!(new.content, Content::Artifact(_)),
            config: new.config,
        };
        let pinned = self.read(|index| index.is_pinned(&record));
        let image = Arc::new(image(new.id, &record, pinned, new.content, new.layers));
        Entry { record, image }
    }

    pub(super) fn layers(&self) -> &Arc<LayerStore> {
        &self.0.layers
    }

    pub(super) fn temporary(&self) -> PathBuf {
        self.0.root.join("tmp")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.0.root.join("quarantine")
    }

    pub(super) fn record_path(&self, id: ImageId) -> PathBuf {
        self.0.root.join("images").join(id.0.hex())
    }

    pub(super) fn write(&self, id: ImageId, record: &Record) -> Result<(), Error> {
        record::write(&self.record_path(id), record, Durability::Now).map_err(|source| {
            Error::Store {
                object: format!("image {id}"),
                source,
            }
        })
    }

    pub(super) fn next_revision(&self) -> u64 {
        self.read(|index| {
            let revisions = index.images.values().map(|entry| entry.record.revision);
            revisions.max().unwrap_or(0) + 1
        })
    }

    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        self.0
            .changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read<T>(&self, question: impl FnOnce(&Index) -> T) -> T {
        question(&self.0.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        change(&mut self.0.index.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Image {
    /// The image under the names of `record`.
    pub(super) fn renamed(&self, record: &Record, pinned: bool) -> Self {
        Self {
            tags: record.tags.iter().cloned().collect(),
            digests: record.digests.iter().cloned().collect(),
            pinned,
            ..self.clone()
        }
    }
}

fn image(
    id: ImageId,
    record: &Record,
    pinned: bool,
    content: Content,
    layers: Vec<LayerId>,
) -> Image {
    let (config, user, artifact) = match content {
        Content::Image(checked) => (checked.configuration, checked.user, None),
        Content::Artifact(artifact) => (
            ImageConfiguration::default(),
            ImageUser::Unset,
            Some(artifact),
        ),
    };
    Image {
        id,
        tags: record.tags.iter().cloned().collect(),
        digests: record.digests.iter().cloned().collect(),
        size: record.size,
        config,
        artifact,
        layers,
        user,
        pinned,
    }
}

/// Reads the records. One that cannot be trusted, or whose layers are not all there, is no image.
fn load(
    folder: &Path,
    layers: &LayerStore,
    quarantine: &Path,
    pinned: &Pinned,
) -> io::Result<BTreeMap<ImageId, Entry>> {
    let mut entries = BTreeMap::new();
    for path in record::entries(folder)? {
        match load_one(&path, layers, pinned) {
            Ok((id, entry)) => drop(entries.insert(id, entry)),
            Err(Unusable::Io(error)) => return Err(error),
            Err(Unusable::Damaged(why)) => {
                tracing::warn!(path = %path.display(), why, "record is put into quarantine");
                record::quarantine(&path, quarantine)?;
            }
        }
    }
    Ok(entries)
}

enum Unusable {
    Io(io::Error),
    Damaged(String),
}

fn load_one(
    path: &Path,
    layers: &LayerStore,
    pinned: &Pinned,
) -> Result<(ImageId, Entry), Unusable> {
    let damaged = |why: &str| Unusable::Damaged(why.to_owned());
    let record: Record = match record::read(path) {
        Ok(Some(record)) => record,
        Ok(None) => return Err(damaged("gone")),
        Err(ReadError::Io { source, .. }) => return Err(Unusable::Io(source)),
        Err(error @ ReadError::Damaged { .. }) => {
            return Err(Unusable::Damaged(error.to_string()));
        }
    };
    let id = Digest::of(record.config.as_bytes());
    if path.file_name().and_then(|name| name.to_str()) != Some(&id.hex()) {
        return Err(damaged("not the image that it is named after"));
    }
    let content = Content::parse(&record).map_err(Unusable::Damaged)?;
    let stack = content.layers();
    if !layers.has(&stack) {
        return Err(damaged("its layers are not all there"));
    }
    let id = ImageId(id);
    let is_pinned = record.is_pinned(pinned);
    let image = Arc::new(image(id, &record, is_pinned, content, stack));
    Ok((id, Entry { record, image }))
}

/// Makes a folder that only root may enter, or keeps the one there.
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        remove_tree(&entry?.path())?;
    }
    Ok(())
}
