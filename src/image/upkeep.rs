//! What a person does with the images that are here: more names, pins, and clearing away what nobody uses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::index::Entry;
use super::reference::Reference;
use super::{Error, Image, ImageId, ImageStore};
use crate::store::layers::LayerId;

/// What containers use.
#[derive(Debug, Default)]
pub struct Used {
    pub images: HashSet<ImageId>,
    pub layers: HashSet<LayerId>,
}

/// Which of the unused images are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unused {
    All,
    /// Those without a tag.
    Untagged,
}

/// What was cleared away, or would be.
#[derive(Debug, Default)]
pub struct Pruned {
    pub images: Vec<Arc<Image>>,
    /// Bytes.
    pub freed: u64,
}

/// An image and how much of the disk is its own.
#[derive(Debug)]
pub struct Usage {
    pub image: Arc<Image>,
    /// Bytes of the layers that no other image has.
    pub unshared: u64,
}

impl ImageStore {
    /// Gives the image that `name` stands for more tags, which others lose. `None`: there is no such image.
    ///
    /// # Errors
    /// Those of the file system; nothing is changed then.
    pub fn tag(&self, name: &str, tags: &[Reference]) -> Result<Option<Arc<Image>>, Error> {
        let _changes = self.change();
        let Some((id, mut entry)) = self.entry_of(name) else {
            return Ok(None);
        };
        let before = self.read(|index| index.images.clone());
        let tags = tags.iter().filter_map(Reference::tagged);
        entry.record.tags.extend(tags);
        entry.image = self.renamed(&entry.image, &entry.record);
        let mut images = self.replace(BTreeMap::from([(id, entry)]), before)?;
        Ok(images.pop())
    }

    /// Says whether the image that `name` stands for stays when unused ones go. `None`: there is no such image.
    ///
    /// # Errors
    /// [`Error::Kept`]; those of the file system.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<Option<Arc<Image>>, Error> {
        let _changes = self.change();
        let Some((id, mut entry)) = self.entry_of(name) else {
            return Ok(None);
        };
        let pattern = self.read(|index| entry.record.pattern(&index.pinned).map(str::to_owned));
        if let (false, Some(pattern)) = (pinned, pattern) {
            let image = entry.image.title();
            return Err(Error::Kept { image, pattern });
        }
        entry.record.pinned = pinned;
        entry.record.revision = self.next_revision();
        self.write(id, &entry.record)?;
        let image = self.renamed(&entry.image, &entry.record);
        entry.image = Arc::clone(&image);
        self.update(|index| index.put(id, entry));
        Ok(Some(image))
    }

    fn entry_of(&self, name: &str) -> Option<(ImageId, Entry)> {
        self.read(|index| {
            let (id, _) = index.find(name)?;
            Some((id, index.images.get(&id)?.clone()))
        })
    }

    /// All images, by id, and what of the disk is theirs alone.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        let images = self.list();
        let mut owners: HashMap<LayerId, usize> = HashMap::new();
        for image in &images {
            // An image may have a layer twice, but not a chain.
            for &layer in &image.layers {
                *owners.entry(layer).or_default() += 1;
            }
        }
        let usage = |image: Arc<Image>| {
            let own = image.layers.iter().filter(|layer| owners[layer] == 1);
            let unshared = self.layers().usage_of(own).bytes;
            Usage { image, unshared }
        };
        images.into_iter().map(usage).collect()
    }

    /// The images that nobody uses: no container of `used`, and nobody who is about to make one. Pinned ones stay.
    ///
    /// `used` is asked after those who hold an image have been seen, as with [`Self::collect`]. It must not change images.
    ///
    /// With `remove` they are gone afterwards, and their layers may be collected.
    ///
    /// # Errors
    /// Those of the file system. Images that were removed before stay removed.
    pub fn prune(
        &self,
        which: Unused,
        remove: bool,
        used: impl FnOnce() -> Used,
    ) -> Result<Pruned, Error> {
        let _changes = self.change();
        // One is the index's own.
        let held: HashSet<ImageId> = self.read(|index| {
            let held = |entry: &Entry| Arc::strong_count(&entry.image) > 1;
            let images = index.images.iter().filter(|(_, entry)| held(entry));
            images.map(|(&id, _)| id).collect()
        });
        let mut used = used();
        used.images.extend(held);
        let goes = |image: &Image| {
            let named = which == Unused::Untagged && !image.tags.is_empty();
            !(image.pinned || named || used.images.contains(&image.id))
        };
        let (images, stay): (Vec<_>, Vec<_>) =
            self.list().into_iter().partition(|image| goes(image));
        let retired = self.read(|index| {
            let retired = index.retired.iter().filter_map(Weak::upgrade);
            retired.collect::<Vec<_>>()
        });
        let stay = stay.iter().chain(&retired);
        used.layers.extend(stay.flat_map(|image| &image.layers));
        let freed = self.layers().usage_without(&used.layers).bytes;
        if remove {
            for image in &images {
                self.forget(image.id)?;
            }
        }
        Ok(Pruned { images, freed })
    }
}

impl Image {
    /// What a person calls it.
    #[must_use]
    pub fn title(&self) -> String {
        let name = self.tags.first().or(self.digests.first());
        name.cloned().unwrap_or_else(|| self.id.to_string())
    }
}
