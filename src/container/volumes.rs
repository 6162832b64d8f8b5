//! Image volumes: images that a container has mounted beside its own.
//!
//! They are looked up and tried at creation, so that mistakes show there, and made anew at each start: a volume is
//! one mount of layers that nobody writes to, and costs a fraction of a millisecond.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::Error;
use crate::failpoint;
use crate::image::Image;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::spec::config::{ContainerConfig, Mount, MountSource};
use crate::spec::oci::ImageVolume;
use crate::store::rootfs::{self, Volume};

/// How errors begin that are about an image volume: the kubelet knows the word.
pub(crate) const FAILED: &str = "ImageVolumeMountFailed";

/// The images that a container is made of, held until it is on record: no layer of theirs is collected meanwhile.
pub(super) struct Images {
    pub(super) own: Arc<Image>,
    pub(super) volumes: Vec<ImageVolume>,
    _held: Vec<Arc<Image>>,
}

impl Node {
    /// Looks up the images that a request names.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Absent`] for one that is not here.
    pub(super) fn find_images(&self, config: &ContainerConfig) -> Result<Images, Error> {
        let own = self.images.resolve(&config.image);
        let own = own.ok_or_else(|| Error::NotFound {
            kind: "image",
            id: config.image.clone(),
        })?;
        if let Some(artifact) = &own.artifact {
            let (name, kind) = (&config.name.name, artifact.kind.escape_debug());
            return Err(Error::InvalidArgument(format!(
                "container {name:?}: config.image: {} is an artifact ({kind}) and no container image: it can be mounted, and not run",
                config.image
            )));
        }
        let (mut volumes, mut held) = (Vec::new(), Vec::new());
        for (index, mount) in config.mounts.iter().enumerate() {
            let MountSource::Image { image, sub_path } = &mount.source else {
                continue;
            };
            let found = self.images.resolve(image).ok_or_else(|| {
                let name = &config.name.name;
                Error::Absent(format!(
                    "{FAILED}: container {name:?}: config.mounts[{index}].image: image {image} not found"
                ))
            })?;
            volumes.push(ImageVolume {
                container_path: mount.container_path.clone().into(),
                image: found.id.to_string(),
                layers: found.layers.clone(),
                sub_path: sub_path.clone(),
            });
            held.push(found);
        }
        Ok(Images {
            own,
            volumes,
            _held: held,
        })
    }

    /// Sees to it that what was looked up can be mounted.
    pub(super) async fn try_image_volumes(
        &self,
        config: &ContainerConfig,
        volumes: &[ImageVolume],
        sandbox: &Sandbox,
        label: Option<&str>,
    ) -> Result<(), Error> {
        if volumes.is_empty() {
            return Ok(());
        }
        self.make_image_volumes(config, volumes, sandbox, label)
            .await?;
        failpoint::hit("create:volumes")
    }

    /// Mounts the image volumes of a container: detached, each with nothing but what it names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if an image has no such folder.
    pub(super) async fn make_image_volumes(
        &self,
        config: &ContainerConfig,
        volumes: &[ImageVolume],
        sandbox: &Sandbox,
        label: Option<&str>,
    ) -> Result<Vec<OwnedFd>, Error> {
        let user_namespace = sandbox.user_namespace()?;
        let mut made = Vec::with_capacity(volumes.len());
        let is_image =
            |(_, mount): &(usize, &Mount)| matches!(mount.source, MountSource::Image { .. });
        let indexes = config.mounts.iter().enumerate().filter(is_image);
        for ((index, _), volume) in indexes.zip(volumes) {
            let content = Volume {
                layers: self.images.layer_dirs(&volume.layers),
                sub_path: volume.sub_path.clone(),
                user_namespace: user_namespace.clone(),
                label: label.map(str::to_owned),
            };
            let mount = self.builder.volume(content).await;
            made.push(mount.map_err(|error| failed(config, index, volume, error))?);
        }
        Ok(made)
    }
}

fn failed(
    config: &ContainerConfig,
    index: usize,
    volume: &ImageVolume,
    error: rootfs::Error,
) -> Error {
    let name = &config.name.name;
    let image = &volume.image;
    match error {
        rootfs::Error::SubPath { .. } => Error::InvalidArgument(format!(
            "{FAILED}: container {name:?}: config.mounts[{index}].image_sub_path: image {image}: {}",
            crate::error::chain(&error)
        )),
        other => Error::wrap(
            format!("{FAILED}: container {name:?}: config.mounts[{index}].image: image {image}"),
            other,
        ),
    }
}
