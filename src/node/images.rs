//! Images, as far as containers have to do with them.

use std::io::Read;
use std::sync::Arc;

use super::Node;
use crate::error::Error;
use crate::image::{self, Image, Names, Progress};

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
                .flat_map(|container| container.layers.clone())
                .collect()
        };
        let collected = self.images.collect(of_containers);
        tracing::debug!(?collected, "unused layers");
    }
}

fn of_image(error: image::Error) -> Error {
    let text = crate::error::chain(&error);
    if error.is_no_space() {
        Error::ResourceExhausted(text)
    } else if error.is_invalid() {
        Error::InvalidArgument(text)
    } else {
        Error::Internal(text)
    }
}
