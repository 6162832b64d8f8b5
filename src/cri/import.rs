//! carpel.v1 Images: what the CRI has no call for.

use std::io::{self, Read};
use std::sync::Arc;

use carpel_api::carpel::images_server::Images;
use carpel_api::carpel::import_response::Step;
use carpel_api::carpel::{
    ExportRequest, ImportRequest, ImportResponse, ImportedImage, LayerProgress, LayerState,
    PinRequest, PinResponse, PruneRequest, PruneResponse, PullRequest, PullResponse, TagRequest,
    TagResponse, UsageRequest, UsageResponse, VerifyRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::domain::{Domain, ImageView};
use super::export::{self, Exported, Verified};
use super::status::{answer, panicked};
use super::upkeep;
use super::{pull, validate};
use crate::image::Platforms;

/// Chunks that may wait for the reader, and steps that may wait for the client.
const WAITING_CHUNKS: usize = 4;
const WAITING_STEPS: usize = 64;

/// An archive that a client sends, to be read by a blocking thread. A client that goes away is an error,
/// not the archive's end.
pub struct Archive {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl Archive {
    fn new(chunks: mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Self {
            chunks,
            chunk: io::Cursor::default(),
            ended: false,
        }
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.chunk.read(buffer)?;
            if read > 0 || buffer.is_empty() || self.ended {
                return Ok(read);
            }
            match self.chunks.blocking_recv() {
                // An empty chunk is the end: the sender says so, as its own disappearance would not.
                Some(Ok(chunk)) if chunk.is_empty() => self.ended = true,
                Some(chunk) => self.chunk = io::Cursor::new(chunk?),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the client went away",
                    ));
                }
            }
        }
    }
}

/// Tells the client how far an import is. It never waits: steps that the client does not fetch in time are
/// left out.
#[derive(Clone)]
pub struct Progress(mpsc::Sender<Result<ImportResponse, Status>>);

impl Progress {
    /// `bytes` of the archive have been read.
    pub fn received(&self, bytes: u64) {
        self.tell(Step::Received(bytes));
    }

    pub fn layer(&self, digest: String, state: LayerState) {
        self.tell(Step::Layer(LayerProgress {
            digest,
            state: state.into(),
        }));
    }

    fn tell(&self, step: Step) {
        let _ = self.0.try_send(Ok(ImportResponse { step: Some(step) }));
    }
}

/// carpel's own image service.
pub struct OwnImages<D>(pub Arc<D>);

#[tonic::async_trait]
impl<D: Domain> Images for OwnImages<D> {
    type ImportStream = ReceiverStream<Result<ImportResponse, Status>>;

    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let (steps, step_receiver) = mpsc::channel(WAITING_STEPS);
        let span = tracing::info_span!("Import");
        let domain = Arc::clone(&self.0);
        let progress = Progress(steps.clone());
        let work = begin(domain, request.into_inner(), progress);
        let work = tokio::spawn(work.instrument(span));
        tokio::spawn(async move {
            let outcome = match work.await {
                Ok(outcome) => outcome,
                Err(error) => Err(panicked(error)),
            };
            report(outcome, steps).await;
        });
        Ok(Response::new(ReceiverStream::new(step_receiver)))
    }

    type PullStream = ReceiverStream<Result<PullResponse, Status>>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        pull::serve(Arc::clone(&self.0), request.into_inner())
    }

    type ExportStream = Exported;

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        export::export(Arc::clone(&self.0), request.into_inner())
    }

    type VerifyStream = Verified;

    async fn verify(
        &self,
        request: Request<VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        export::verify(Arc::clone(&self.0), request.into_inner())
    }

    async fn tag(&self, request: Request<TagRequest>) -> Result<Response<TagResponse>, Status> {
        let request = request.into_inner();
        let span = tracing::info_span!("Tag", image = request.image);
        answer(span, upkeep::tag(&*self.0, request)).await
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        let request = request.into_inner();
        let span = tracing::info_span!("Pin", image = request.image);
        answer(span, upkeep::pin(&*self.0, request)).await
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        answer(tracing::info_span!("Usage"), upkeep::usage(&*self.0)).await
    }

    async fn prune(
        &self,
        request: Request<PruneRequest>,
    ) -> Result<Response<PruneResponse>, Status> {
        let call = upkeep::prune(&*self.0, request.into_inner());
        answer(tracing::info_span!("Prune"), call).await
    }
}

/// Imports what a client sends, as its first message says.
async fn begin<D: Domain>(
    domain: Arc<D>,
    mut requests: Streaming<ImportRequest>,
    progress: Progress,
) -> Result<Vec<ImageView>, Status> {
    let first = requests.message().await;
    let platforms = match &first {
        Ok(Some(first)) => validate::import(&first.platform, first.all_platforms)?,
        // The archive is empty, or breaks off: the import says so.
        _ => Platforms::This,
    };
    let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
    tokio::spawn(forward(first, requests, sender).in_current_span());
    let imported = domain.import(Archive::new(chunks), platforms, progress);
    Ok(imported.await?)
}

/// Passes the client's chunks on until it ends them.
async fn forward(
    mut next: Result<Option<ImportRequest>, Status>,
    mut requests: Streaming<ImportRequest>,
    chunks: mpsc::Sender<io::Result<Vec<u8>>>,
) {
    loop {
        let chunk = match next {
            Ok(Some(request)) if request.chunk.is_empty() => None,
            Ok(Some(request)) => Some(Ok(request.chunk)),
            Ok(None) => Some(Ok(Vec::new())),
            Err(status) => Some(Err(io::Error::other(status))),
        };
        if let Some(chunk) = chunk {
            let last = !matches!(&chunk, Ok(bytes) if !bytes.is_empty());
            // An import that reads no more has failed, and says why itself.
            if chunks.send(chunk).await.is_err() || last {
                return;
            }
        }
        next = requests.message().await;
    }
}

/// Sends what an import made, or why it failed. A client that does not listen any more is none.
async fn report(
    outcome: Result<Vec<ImageView>, Status>,
    steps: mpsc::Sender<Result<ImportResponse, Status>>,
) {
    let images = match outcome {
        Ok(images) => images,
        Err(status) => {
            let _ = steps.send(Err(status)).await;
            return;
        }
    };
    for image in images {
        let image = ImportedImage {
            id: image.id,
            tags: image.tags,
            size: image.size,
        };
        let step = Some(Step::Image(image));
        if steps.send(Ok(ImportResponse { step })).await.is_err() {
            return;
        }
    }
}
