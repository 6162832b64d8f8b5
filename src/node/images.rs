//! Images, as far as containers have to do with them.

use std::io::Read;
use std::sync::Arc;

use super::Node;
use crate::error::Error;
use crate::image::{Image, Progress};

impl Node {
    /// Imports every image of an archive.
    ///
    /// # Errors
    /// What is wrong with the archive or the disk; nothing of it stays then.
    pub async fn import_images(
        self: &Arc<Self>,
        archive: impl Read + Send + 'static,
        report: impl Fn(Progress<'_>) + Send + Sync + 'static,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let node = Arc::clone(self);
        // A thread of its own: a panic in the unpacking of a hostile layer costs this import.
        tokio::task::spawn_blocking(move || node.images.import(archive, &report))
            .await
            .map_err(Error::at("import"))?
            .map_err(Error::at("import"))
    }

    /// Removes an image, or one of its names. Layers that containers use stay until these are gone.
    ///
    /// # Errors
    /// What could not be deleted.
    pub async fn remove_image(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let (node, name) = (Arc::clone(self), name.to_owned());
        let remove = move || {
            node.images.remove(&name).map_err(Error::at(format!("remove image {name}")))?;
            node.collect_layers();
            Ok(())
        };
        tokio::task::spawn_blocking(remove).await.map_err(Error::at("remove an image"))?
    }

    /// Deletes the layers that neither an image nor a container uses.
    pub(crate) fn collect_layers(&self) {
        let used = self.containers().iter().flat_map(|container| container.layers.clone()).collect();
        self.images.collect(&used);
    }
}
