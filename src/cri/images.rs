//! The image service.

use std::sync::Arc;

use carpel_api::cri;
use carpel_api::cri::image_service_server::ImageService;
use tonic::{Request, Response, Status};
use tracing::info_span;

use super::domain::Domain;
use super::status::{answer, not_built};
use super::{convert, deadline, validate, verbose};
use crate::stats::DiskTotal;

/// The CRI's image service.
pub struct Images<D>(pub Arc<D>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<D: Domain> ImageService for Images<D> {
    type StreamImagesStream = tokio_stream::Empty<Result<cri::StreamImagesResponse, Status>>;

    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Answer<cri::ListImagesResponse> {
        let call = list(&*self.0, request.into_inner());
        answer(info_span!("ListImages"), call).await
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let call = status(&*self.0, request.into_inner());
        answer(info_span!("ImageStatus"), call).await
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Answer<cri::RemoveImageResponse> {
        let call = remove(&*self.0, request.into_inner());
        answer(info_span!("RemoveImage"), call).await
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Answer<cri::ImageFsInfoResponse> {
        answer(info_span!("ImageFsInfo"), fs_info(&*self.0)).await
    }

    async fn stream_images(
        &self,
        _: Request<cri::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        Err(not_built("StreamImages"))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Answer<cri::PullImageResponse> {
        let deadline = deadline::of(request.metadata());
        let request = request.into_inner();
        let image = request.image.as_ref().map(|image| image.image.clone());
        let span = info_span!("PullImage", image = image.unwrap_or_default());
        answer(span, deadline::within(deadline, pull(&*self.0, request))).await
    }
}

async fn list<D: Domain>(
    domain: &D,
    request: cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, Status> {
    let images = match validate::image_filter(request.filter)? {
        Some(name) => domain.image(&name)?.into_iter().collect(),
        None => domain.images(),
    };
    Ok(cri::ListImagesResponse {
        images: images.into_iter().map(convert::image).collect(),
    })
}

async fn status<D: Domain>(
    domain: &D,
    request: cri::ImageStatusRequest,
) -> Result<cri::ImageStatusResponse, Status> {
    let name = validate::image_name(request.image)?;
    let image = domain.image(&name)?;
    let info = match &image {
        Some(image) if request.verbose => {
            let spec = domain.image_spec(&image.id);
            let info = serde_json::json!({ "user": image.user, "imageSpec": spec });
            verbose::info("info", &info)?
        }
        _ => verbose::none(),
    };
    Ok(cri::ImageStatusResponse {
        image: image.map(convert::image),
        info,
    })
}

async fn pull<D: Domain>(
    domain: &D,
    request: cri::PullImageRequest,
) -> Result<cri::PullImageResponse, Status> {
    let wanted = validate::pull_image(request)?;
    let image = domain.pull(wanted, None).await?;
    Ok(cri::PullImageResponse {
        image_ref: image.id,
    })
}

async fn remove<D: Domain>(
    domain: &D,
    request: cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, Status> {
    let name = validate::image_name(request.image)?;
    domain.remove_image(&name).await?;
    Ok(cri::RemoveImageResponse {})
}

/// Images and writable layers share a file system.
async fn fs_info<D: Domain>(domain: &D) -> Result<cri::ImageFsInfoResponse, Status> {
    let usages = domain.image_usage().await?;
    let filesystem = |usage: DiskTotal| cri::FilesystemUsage {
        timestamp: verbose::now(),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: domain.root().display().to_string(),
        }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value {
            value: usage.inodes,
        }),
    };
    Ok(cri::ImageFsInfoResponse {
        image_filesystems: vec![filesystem(usages.images)],
        container_filesystems: vec![filesystem(usages.writable_layers)],
    })
}
