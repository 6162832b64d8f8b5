//! Images, as far as containers have to do with them.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::Arc;

use super::Node;
use super::joint::Waiter;
use crate::container::Container;
use crate::error::Error;
use crate::image::pull::{PullProgress, Sources, Wanted};
use crate::image::reference::Reference;
use crate::image::registry;
use crate::image::{
    self, Image, ImageId, Platforms, Progress, Pruned, Selection, Unused, Usage, Used, VerifyStep,
};
use crate::store::blobs::Digest;
use crate::store::gc::Collected;
use crate::store::layers::LayerId;

/// A pull that somebody waits for. When all who do have dropped it, it is given up.
pub type Pull = Waiter<Wanted, PullProgress, Arc<Image>>;

impl Node {
    /// Imports the images of an archive that are for these platforms.
    ///
    /// # Errors
    /// What is wrong with the archive or the disk; nothing of it stays then.
    pub async fn import_images(
        self: &Arc<Self>,
        archive: impl Read + Send + 'static,
        platforms: Platforms,
        report: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let node = Arc::clone(self);
        let selection = Selection {
            platforms,
            ..Selection::default()
        };
        // A thread of its own: a panic in the unpacking of a hostile layer costs this import.
        tokio::task::spawn_blocking(move || node.images.import(archive, &selection, &report))
            .await
            .map_err(Error::at("import"))?
            .map_err(of_image)
    }

    /// Pulls an image, or joins the same pull that is under way.
    #[must_use]
    pub fn pull_image(self: &Arc<Self>, wanted: Wanted) -> Pull {
        let node = Arc::clone(self);
        self.pulls
            .join(wanted.clone(), |progress, cancel| async move {
                let sources = Sources {
                    registries: &node.registries,
                    policy: &node.policy,
                };
                let pulled = node.images.pull(sources, &wanted, &progress, &cancel).await;
                if pulled.is_err() {
                    // Layers that were shared with another pull, which failed as well.
                    let node = Arc::clone(&node);
                    let _ = tokio::task::spawn_blocking(move || node.collect_layers()).await;
                }
                pulled.map_err(of_image)
            })
    }

    /// Removes an image, or one of its names. Layers that containers use stay until these are gone.
    ///
    /// # Errors
    /// What could not be deleted.
    pub async fn remove_image(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let (node, name) = (Arc::clone(self), name.to_owned());
        let remove = move || {
            node.images.remove(&name).map_err(of_image)?;
            node.collect_layers();
            Ok(())
        };
        tokio::task::spawn_blocking(remove)
            .await
            .map_err(Error::at("remove an image"))?
    }

    /// Writes the archive of images.
    ///
    /// # Errors
    /// There is no such image, or it cannot be exported; those of the archive.
    pub async fn export_images(
        self: &Arc<Self>,
        names: &[String],
        mut archive: impl Write + Send + 'static,
        proceed: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), Error> {
        let (node, images) = (Arc::clone(self), self.named_images(names)?);
        let work = move || node.images.export(&images, &mut archive, &proceed);
        let exported = tokio::task::spawn_blocking(work).await;
        exported.map_err(Error::at("export"))?.map_err(of_image)
    }

    /// Compares images (none: all) with what was unpacked, and perhaps sets damaged ones aside.
    ///
    /// # Errors
    /// There is no such image; those of the disk.
    pub async fn verify_images(
        self: &Arc<Self>,
        names: &[String],
        set_aside: bool,
        report: impl Fn(VerifyStep) + Send + 'static,
        proceed: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), Error> {
        let (node, images) = (Arc::clone(self), self.named_images(names)?);
        let images = match names {
            [] => node.images.list(),
            _ => images,
        };
        let work = move || node.images.verify(&images, set_aside, &report, &proceed);
        let verified = tokio::task::spawn_blocking(work).await;
        verified.map_err(Error::at("verify"))?.map_err(of_image)
    }

    fn named_images(&self, names: &[String]) -> Result<Vec<Arc<Image>>, Error> {
        let find = |name: &String| {
            let absent = || Error::NotFound {
                kind: "image",
                id: name.clone(),
            };
            self.images.resolve(name).ok_or_else(absent)
        };
        names.iter().map(find).collect()
    }

    /// Gives an image more tags.
    ///
    /// # Errors
    /// There is no such image; those of the disk.
    pub async fn tag_image(
        self: &Arc<Self>,
        name: &str,
        tags: Vec<Reference>,
    ) -> Result<Arc<Image>, Error> {
        self.change_image(name, move |node, name| node.images.tag(name, &tags))
            .await
    }

    /// Says whether an image stays when unused ones go.
    ///
    /// # Errors
    /// There is no such image, or the configuration pins it; those of the disk.
    pub async fn pin_image(
        self: &Arc<Self>,
        name: &str,
        pinned: bool,
    ) -> Result<Arc<Image>, Error> {
        self.change_image(name, move |node, name| node.images.pin(name, pinned))
            .await
    }

    async fn change_image(
        self: &Arc<Self>,
        name: &str,
        change: impl FnOnce(&Self, &str) -> Result<Option<Arc<Image>>, image::Error> + Send + 'static,
    ) -> Result<Arc<Image>, Error> {
        let (node, name) = (Arc::clone(self), name.to_owned());
        let work = move || match change(&node, &name).map_err(of_image)? {
            Some(image) => Ok(image),
            None => Err(Error::NotFound {
                kind: "image",
                id: name,
            }),
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(Error::at("change an image"))?
    }

    /// What of the disk each image has for itself.
    #[must_use]
    pub fn images_usage(&self) -> Vec<Usage> {
        self.images.usage()
    }

    /// Removes the images that nobody uses, or says which these are; and how many bytes that frees.
    ///
    /// # Errors
    /// What could not be deleted.
    pub async fn prune_images(
        self: &Arc<Self>,
        which: Unused,
        dry_run: bool,
    ) -> Result<(Vec<ImageId>, u64), Error> {
        let node = Arc::clone(self);
        let work = move || {
            let pruned = node.images.prune(which, !dry_run, || node.used_images());
            let Pruned { images, freed } = pruned.map_err(of_image)?;
            let ids = images.iter().map(|image| image.id).collect();
            // Whoever holds an image holds its layers.
            drop(images);
            let freed = match dry_run {
                true => freed,
                false => node.collect_layers().freed.bytes,
            };
            Ok((ids, freed))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(Error::at("clear images away"))?
    }

    /// The images that containers are made from and mount, and the layers of these.
    fn used_images(&self) -> Used {
        let mut used = Used::default();
        for container in self.containers() {
            used.images.extend(container.image_ids());
            used.layers.extend(layers_of(&container));
        }
        used
    }

    /// Deletes the layers that neither an image nor a container uses.
    pub(crate) fn collect_layers(&self) -> Collected {
        let of_containers = || {
            self.containers()
                .iter()
                .flat_map(|container| layers_of(container))
                .collect::<HashSet<_>>()
        };
        let collected = self.images.collect(of_containers);
        tracing::debug!(?collected, "unused layers");
        collected
    }
}

impl Container {
    /// The images that it is made from and mounts.
    pub(crate) fn image_ids(&self) -> impl Iterator<Item = ImageId> {
        let volumes = self.source.image_volumes.iter();
        let mounted = volumes.filter_map(|volume| volume.image.parse::<Digest>().ok());
        std::iter::once(self.image_id).chain(mounted.map(ImageId))
    }
}

fn layers_of(container: &Container) -> impl Iterator<Item = LayerId> {
    let volumes = container.source.image_volumes.iter();
    let layers = volumes.flat_map(|volume| &volume.layers);
    layers.chain(&container.layers).copied()
}

fn of_image(error: image::Error) -> Error {
    let text = crate::error::chain(&error);
    if let image::Error::Registry { source, .. } = &error {
        match source {
            registry::Error::NotFound { .. } => return Error::Absent(text),
            registry::Error::Denied(_) => return Error::Denied(text),
            source if source.is_unavailable() => return Error::RegistryUnavailable(text),
            _ => {}
        }
    }
    if let image::Error::Untrusted { .. } = &error {
        return Error::SignatureValidationFailed(text);
    }
    if let image::Error::Unsuitable { .. } = &error {
        return Error::Absent(text);
    }
    if let image::Error::Kept { .. } | image::Error::Export { .. } = &error {
        return Error::FailedPrecondition(text);
    }
    if error.is_no_space() {
        Error::ResourceExhausted(text)
    } else if error.is_invalid() {
        Error::InvalidArgument(text)
    } else {
        Error::Internal(text)
    }
}
