//! The index in memory: images by id, and the names that stand for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::reference::Reference;
use super::{Image, ImageId, Pinned};
use crate::store::blobs::Digest;

#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) images: BTreeMap<ImageId, Entry>,
    /// Tags and digest references.
    names: HashMap<String, ImageId>,
    /// Removed or replaced, but perhaps held by someone who is making a container of it.
    pub(super) retired: Vec<Weak<Image>>,
    /// What the configuration pins.
    pub(super) pinned: Pinned,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) image: Arc<Image>,
}

/// What is written down of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// Grows with every record written.
    pub(super) revision: u64,
    pub(super) tags: BTreeSet<String>,
    pub(super) digests: BTreeSet<String>,
    pub(super) size: u64,
    pub(super) pinned: bool,
    /// Whether it is one of an artifact.
    #[serde(default)]
    pub(super) artifact: bool,
    /// The configuration, of an artifact the manifest: byte for byte, since its digest is the image's id.
    pub(super) config: String,
}

impl Record {
    /// Whether it is pinned by itself or by one of its names.
    pub(super) fn is_pinned(&self, pinned: &Pinned) -> bool {
        self.pinned || self.pattern(pinned).is_some()
    }

    /// The pattern of the configuration that pins it.
    pub(super) fn pattern<'a>(&self, pinned: &'a Pinned) -> Option<&'a str> {
        let mut names = self.tags.iter().chain(&self.digests);
        names.find_map(|name| pinned.pattern(name))
    }
}

/// Hex digits that an abbreviated id has at least.
const SHORTEST_ID: usize = 4;

impl Index {
    /// The image that a name stands for, and the tag or digest reference that it was found by.
    pub(super) fn find(&self, name: &str) -> Option<(ImageId, Option<String>)> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if let Ok(digest) = Digest::from_hex(hex) {
            let id = ImageId(digest);
            return self.images.contains_key(&id).then_some((id, None));
        }
        // With both a tag and a digest it is the digest that counts.
        let reference = name.parse::<Reference>().ok();
        let names = reference.and_then(|name| name.digested().or_else(|| name.tagged()));
        if let Some(name) = names
            && let Some(&id) = self.names.get(&name)
        {
            return Some((id, Some(name)));
        }
        let is_hex = hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex.len() < SHORTEST_ID || hex.len() > 64 || !is_hex {
            return None;
        }
        let lowest = Digest::from_hex(&format!("{hex:0<64}")).ok()?;
        let mut from = self.images.range(ImageId(lowest)..).map(|(&id, _)| id);
        let fits = |id: &ImageId| id.0.hex().starts_with(hex);
        let first = from.next().filter(fits)?;
        match from.next().filter(fits) {
            Some(_) => None,
            None => Some((first, None)),
        }
    }

    /// An index of images, whose names are yet to be settled.
    pub(super) fn of(images: BTreeMap<ImageId, Entry>, pinned: Pinned) -> Self {
        Self {
            images,
            pinned,
            ..Self::default()
        }
    }

    /// Whether an image with this record is pinned.
    pub(super) fn is_pinned(&self, record: &Record) -> bool {
        record.is_pinned(&self.pinned)
    }

    pub(super) fn put(&mut self, id: ImageId, entry: Entry) {
        let old = self.images.insert(id, entry);
        self.retire(old);
        self.rename();
    }

    pub(super) fn take(&mut self, id: ImageId) {
        let old = self.images.remove(&id);
        self.retire(old);
        self.rename();
    }

    fn retire(&mut self, old: Option<Entry>) {
        self.retired.retain(|image| image.strong_count() > 0);
        self.retired
            .extend(old.map(|entry| Arc::downgrade(&entry.image)));
    }

    pub(super) fn rename(&mut self) {
        self.names.clear();
        for (&id, entry) in &self.images {
            for name in entry.record.tags.iter().chain(&entry.record.digests) {
                self.names.insert(name.clone(), id);
            }
        }
    }

    /// Leaves each tag to the image recorded last. Returns the images that lost one.
    pub(super) fn settle_tags(&mut self) -> BTreeSet<ImageId> {
        let mut latest: HashMap<String, (u64, ImageId)> = HashMap::new();
        for (&id, entry) in &self.images {
            for tag in &entry.record.tags {
                let owner = latest.entry(tag.clone()).or_insert((0, id));
                *owner = (*owner).max((entry.record.revision, id));
            }
        }
        let mut lost = BTreeSet::new();
        let pinned = self.pinned.clone();
        for (&id, entry) in &mut self.images {
            let count = entry.record.tags.len();
            entry.record.tags.retain(|tag| latest[tag].1 == id);
            if entry.record.tags.len() < count {
                entry.image = Arc::new(
                    entry
                        .image
                        .renamed(&entry.record, entry.record.is_pinned(&pinned)),
                );
                lost.insert(id);
            }
        }
        lost
    }
}

/// Takes a tag or digest reference away. With the last tag of a repository go its digests.
pub(super) fn drop_name(record: &mut Record, name: &str) {
    if record.digests.remove(name) || !record.tags.remove(name) {
        return;
    }
    let repository = name
        .rsplit_once(':')
        .map_or(name, |(repository, _)| repository);
    let of_it = |other: &String, mark: char| {
        other
            .strip_prefix(repository)
            .is_some_and(|rest| rest.starts_with(mark) && !rest.contains('/'))
    };
    if !record.tags.iter().any(|tag| of_it(tag, ':')) {
        record.digests.retain(|digest| !of_it(digest, '@'));
    }
}
