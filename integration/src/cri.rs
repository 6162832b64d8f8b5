//! The gRPC client: one lazy connection to a unix socket, made anew when the daemon was restarted.

use std::path::Path;

use carpel_api::carpel::images_client::ImagesClient;
use carpel_api::carpel::import_response::Step;
use carpel_api::carpel::{ImportRequest, ImportedImage};
use carpel_api::cri::image_service_client::ImageServiceClient;
use carpel_api::cri::runtime_service_client::RuntimeServiceClient;
use carpel_api::cri::{AuthConfig, ImageSpec, PullImageRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::Channel;

/// The longest answer that is taken, in bytes: two ExecSync streams of 16 MiB and some room.
const MAX_ANSWER: usize = 64 << 20;

/// A CRI endpoint: any runtime's.
#[derive(Debug, Clone)]
pub struct Cri {
    channel: Channel,
}

impl Cri {
    /// A client of the socket at `path`. Connects with the first call. Must be called in a runtime.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self::with_window(path, None)
    }

    /// A client that has at most `window` bytes of a stream sent to it before they are read.
    #[must_use]
    pub fn with_window(path: &Path, window: Option<u32>) -> Self {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://localhost")
            .initial_stream_window_size(window)
            .connect_with_connector_lazy(connector);
        Self { channel }
    }

    #[must_use]
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    #[must_use]
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Calls a method by its path, with an empty message, for an answer that is one.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn call(&self, path: &'static str) -> Result<(), Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        grpc.unary(tonic::Request::new(()), path, codec).await?;
        Ok(())
    }

    /// Pulls an image as the kubelet does; returns what it is called from then on.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn pull(&self, image: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
        let image = ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        };
        let request = PullImageRequest {
            image: Some(image),
            auth,
            sandbox_config: None,
        };
        let answer = self.images().pull_image(request).await?;
        Ok(answer.into_inner().image_ref)
    }

    /// carpel's own image service.
    #[must_use]
    pub fn own_images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    /// Imports an archive through carpel's own service.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn import(&self, archive: Vec<u8>) -> Result<Vec<ImportedImage>, Status> {
        self.import_with(archive, ImportRequest::default()).await
    }

    /// The same, after a first message.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn import_with(
        &self,
        archive: Vec<u8>,
        first: ImportRequest,
    ) -> Result<Vec<ImportedImage>, Status> {
        let chunks = archive.chunks(256 << 10).map(|chunk| ImportRequest {
            chunk: chunk.to_vec(),
            ..ImportRequest::default()
        });
        let chunks: Vec<_> = std::iter::once(first).chain(chunks).collect();
        let mut steps = ImagesClient::new(self.channel.clone())
            .import(tokio_stream::iter(chunks))
            .await?
            .into_inner();
        let mut images = Vec::new();
        while let Some(response) = steps.message().await? {
            if let Some(Step::Image(image)) = response.step {
                images.push(image);
            }
        }
        Ok(images)
    }
}
