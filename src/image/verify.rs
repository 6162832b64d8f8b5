//! Comparing images with what was unpacked, and setting damaged ones aside so that they are pulled anew.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Error, Image, ImageId, ImageStore};
use crate::store::blobs::Digest;
use crate::store::layers::LayerId;
use crate::store::record;
use crate::store::verify::Condition;

/// How far a comparison is.
#[derive(Debug)]
pub enum VerifyStep {
    Layer {
        diff: Digest,
        condition: Condition,
    },
    Image {
        image: Arc<Image>,
        /// That of its worst layer.
        condition: Condition,
        set_aside: bool,
    },
}

impl ImageStore {
    /// Compares the layers of images with what was unpacked, each once, and tells of each and then of the images. With
    /// `set_aside` damaged layers are no part of the store afterwards, nor are the images that have them.
    ///
    /// # Errors
    /// `proceed` said no; those of the file system.
    pub fn verify(
        &self,
        images: &[Arc<Image>],
        set_aside: bool,
        report: &dyn Fn(VerifyStep),
        proceed: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let mut conditions: HashMap<LayerId, Condition> = HashMap::new();
        for image in images {
            for (at, (&layer, diff)) in image.layers.iter().zip(image.diff_ids()).enumerate() {
                if conditions.contains_key(&layer) {
                    continue;
                }
                let condition = match &image.artifact {
                    None => self.layers().verify(layer, diff, proceed),
                    Some(artifact) => {
                        let name = &artifact.files[at].name;
                        self.layers().verify_file(name, diff, proceed)
                    }
                };
                let condition = condition.map_err(|_| Error::Cancelled {
                    image: image.title(),
                })?;
                let told = condition.clone();
                report(VerifyStep::Layer {
                    diff,
                    condition: told,
                });
                conditions.insert(layer, condition);
            }
        }
        let is_damaged = |condition: &Condition| matches!(condition, Condition::Damaged(_));
        let damaged = conditions.iter().filter(|(_, c)| is_damaged(c));
        let damaged: HashSet<LayerId> = damaged.map(|(&layer, _)| layer).collect();
        if set_aside && !damaged.is_empty() {
            self.set_aside(&damaged)?;
        }
        for image in images {
            let mine = || image.layers.iter().map(|layer| &conditions[layer]);
            let unknown = || mine().find(|c| matches!(c, Condition::Unknown(_)));
            let worst = mine().find(|c| is_damaged(c)).or_else(unknown);
            let condition = worst.cloned().unwrap_or(Condition::Sound);
            report(VerifyStep::Image {
                image: Arc::clone(image),
                set_aside: set_aside && is_damaged(&condition),
                condition,
            });
        }
        Ok(())
    }

    /// Sets layers aside, and all images that have one of them.
    fn set_aside(&self, damaged: &HashSet<LayerId>) -> Result<(), Error> {
        let _changes = self.change();
        let has = |image: &Image| image.layers.iter().any(|layer| damaged.contains(layer));
        let images = self.list().into_iter().filter(|image| has(image));
        let ids: Vec<ImageId> = images.map(|image| image.id).collect();
        // The images first: none ever counts without one of its layers.
        for id in ids {
            let moved = record::quarantine(&self.record_path(id), &self.quarantine());
            moved.map_err(|source| Error::Store {
                object: format!("image {id}"),
                source,
            })?;
            self.update(|index| index.take(id));
        }
        for &layer in damaged {
            let moved = self.layers().quarantine(layer);
            moved.map_err(|source| Error::Store {
                object: format!("layer {layer}"),
                source,
            })?;
        }
        Ok(())
    }
}

impl Image {
    /// The digests of its layers' tar streams, bottom first. Of an artifact, those of its files.
    pub(super) fn diff_ids(&self) -> Vec<Digest> {
        if let Some(artifact) = &self.artifact {
            return artifact.files.iter().map(|file| file.digest).collect();
        }
        // They were checked when the image was recorded.
        let ids = self.config.rootfs().diff_ids().iter();
        ids.filter_map(|id| id.parse().ok()).collect()
    }
}
