//! carpel.v1 Images: names, pins, who uses what, and clearing away.

use carpel_api::carpel;
use tonic::Status;

use super::domain::{Domain, ImageUse};
use super::validate;
use crate::image::Unused;

pub async fn tag<D: Domain>(
    domain: &D,
    request: carpel::TagRequest,
) -> Result<carpel::TagResponse, Status> {
    let (image, tags) = validate::tag(request)?;
    let image = domain.tag_image(&image, tags).await?;
    let image = Some(told(image));
    Ok(carpel::TagResponse { image })
}

pub async fn pin<D: Domain>(
    domain: &D,
    request: carpel::PinRequest,
) -> Result<carpel::PinResponse, Status> {
    let name = validate::own_image_name(request.image)?;
    let image = domain.pin_image(&name, request.pinned).await?;
    let image = Some(told(image));
    Ok(carpel::PinResponse { image })
}

pub async fn usage<D: Domain>(domain: &D) -> Result<carpel::UsageResponse, Status> {
    let images = domain.image_uses().into_iter().map(told).collect();
    let unused = domain.prune_images(Unused::All, true).await?;
    Ok(carpel::UsageResponse {
        images,
        reclaimable: unused.freed,
    })
}

pub async fn prune<D: Domain>(
    domain: &D,
    request: carpel::PruneRequest,
) -> Result<carpel::PruneResponse, Status> {
    let which = match request.untagged {
        true => Unused::Untagged,
        false => Unused::All,
    };
    let pruned = domain.prune_images(which, request.dry_run).await?;
    Ok(carpel::PruneResponse {
        images: pruned.images.into_iter().map(told).collect(),
        freed: pruned.freed,
    })
}

fn told(one: ImageUse) -> carpel::ImageUsage {
    carpel::ImageUsage {
        id: one.image.id,
        tags: one.image.tags,
        digests: one.image.digests,
        size: one.image.size,
        unshared: one.unshared,
        pinned: one.image.pinned,
        containers: one.containers.iter().map(ToString::to_string).collect(),
    }
}
