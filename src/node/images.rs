//! Images, as far as containers have to do with them.

use std::io::Read;
use std::sync::Arc;

use super::Node;
use super::joint::Waiter;
use crate::error::Error;
use crate::image::pull::{PullProgress, Wanted};
use crate::image::registry;
use crate::image::{self, Image, Names, Progress};

/// A pull that somebody waits for. When all who do have dropped it, it is given up.
pub type Pull = Waiter<Wanted, PullProgress, Arc<Image>>;

impl Node {
    /// Imports every image of an archive.
    ///
    /// # Errors
    /// What is wrong with the archive or the disk; nothing of it stays then.
    pub async fn import_images(
        self: &Arc<Self>,
        archive: impl Read + Send + 'static,
        report: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let node = Arc::clone(self);
        // A thread of its own: a panic in the unpacking of a hostile layer costs this import.
        tokio::task::spawn_blocking(move || {
            node.images.import(archive, &Names::FromArchive, &report)
        })
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
                let pulled = node
                    .images
                    .pull(&node.registries, &wanted, &progress, &cancel);
                let pulled = pulled.await;
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

    /// Deletes the layers that neither an image nor a container uses.
    pub(crate) fn collect_layers(&self) {
        let of_containers = || {
            self.containers()
                .iter()
                .flat_map(|container| {
                    let volumes = container.source.image_volumes.iter();
                    let layers = volumes.flat_map(|volume| &volume.layers);
                    layers.chain(&container.layers).copied().collect::<Vec<_>>()
                })
                .collect()
        };
        let collected = self.images.collect(of_containers);
        tracing::debug!(?collected, "unused layers");
    }
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
    if let image::Error::Unsuitable { .. } = &error {
        return Error::Absent(text);
    }
    if error.is_no_space() {
        Error::ResourceExhausted(text)
    } else if error.is_invalid() {
        Error::InvalidArgument(text)
    } else {
        Error::Internal(text)
    }
}
