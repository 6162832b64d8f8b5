//! The image service.

use std::sync::Arc;

use carpel_api::cri;
use carpel_api::cri::image_service_server::ImageService;
use tonic::{Request, Response, Status};
use tracing::info_span;

use super::domain::Domain;
use super::lists::{self, Messages};
use super::status::{answer, answer_stream};
use super::{convert, deadline, validate, verbose};
use crate::stats::DiskTotal;

/// The CRI's image service.
pub struct Images<D>(pub Arc<D>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<D: Domain> ImageService for Images<D> {
    type StreamImagesStream = Messages<cri::StreamImagesResponse>;

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
        request: Request<cri::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let call = stream(&*self.0, request.into_inner());
        answer_stream(info_span!("StreamImages"), call).await
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
    let answer = cri::ListImagesResponse {
        images: matching(domain, request.filter)?.collect(),
    };
    lists::one_message(answer, "StreamImages")
}

async fn stream<D: Domain>(
    domain: &D,
    request: cri::StreamImagesRequest,
) -> Result<Messages<cri::StreamImagesResponse>, Status> {
    let images = matching(domain, request.filter)?;
    Ok(lists::messages(images, |images| {
        cri::StreamImagesResponse { images }
    }))
}

fn matching<D: Domain>(
    domain: &D,
    filter: Option<cri::ImageFilter>,
) -> Result<impl Iterator<Item = cri::Image> + Send + use<D>, Status> {
    let images = match validate::image_filter(filter)? {
        Some(name) => domain.image(&name)?.into_iter().collect(),
        None => domain.images(),
    };
    Ok(images.into_iter().map(convert::image))
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
            let mut info = serde_json::json!({ "user": image.user, "imageSpec": spec });
            if let Some(artifact) = domain.artifact(&image.id) {
                info["artifact"] = serde_json::json!(artifact);
            }
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

/// Images and writable layers share a file system. What writable layers take is what was measured last of each: the
/// time is that of the sum.
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
