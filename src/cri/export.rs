//! carpel.v1 Images/Export and Verify: streams that a blocking thread fills.

use std::io::{self, Write};
use std::sync::Arc;

use carpel_api::carpel::verify_response::Step;
use carpel_api::carpel::{
    ExportRequest, ExportResponse, LayerCondition, VerifiedImage, VerifiedLayer, VerifyRequest,
    VerifyResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use tracing::Instrument;

use super::domain::Domain;
use super::status::panicked;
use super::validate;
use crate::error::Error;
use crate::image::VerifyStep;
use crate::store::verify::Condition;

/// Messages that may wait for the client.
const WAITING: usize = 4;
/// Bytes of an archive in one message.
const CHUNK: usize = 256 << 10;

pub type Exported = ReceiverStream<Result<ExportResponse, Status>>;
pub type Verified = ReceiverStream<Result<VerifyResponse, Status>>;

/// An archive on its way to a client. Writing waits for the client, and fails when it has gone.
pub struct Chunks {
    sender: mpsc::Sender<Result<ExportResponse, Status>>,
    chunk: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..length]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        let sent = self.sender.blocking_send(Ok(ExportResponse { chunk }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client went away"))
    }
}

impl Chunks {
    /// Whether somebody still reads.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.sender.is_closed()
    }

    /// A question for somebody else to ask: [`Self::is_wanted`].
    pub fn wanted(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let sender = self.sender.clone();
        move || !sender.is_closed()
    }
}

/// Tells a client how far a comparison is.
#[derive(Clone)]
pub struct VerifySteps(mpsc::Sender<Result<VerifyResponse, Status>>);

impl VerifySteps {
    /// Waits for the client.
    pub fn tell(&self, step: VerifyStep) {
        let step = match step {
            VerifyStep::Layer { diff, condition } => {
                let (condition, why) = told(condition);
                Step::Layer(VerifiedLayer {
                    diff_id: diff.to_string(),
                    condition: condition.into(),
                    why,
                })
            }
            VerifyStep::Image {
                image,
                condition,
                set_aside,
            } => {
                let (condition, _) = told(condition);
                Step::Image(VerifiedImage {
                    id: image.id.to_string(),
                    tags: image.tags.clone(),
                    condition: condition.into(),
                    set_aside,
                })
            }
        };
        // One that is gone is noticed by `is_wanted`.
        let _ = self
            .0
            .blocking_send(Ok(VerifyResponse { step: Some(step) }));
    }

    /// Whether somebody still reads.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.0.is_closed()
    }
}

fn told(condition: Condition) -> (LayerCondition, String) {
    match condition {
        Condition::Sound => (LayerCondition::Sound, String::new()),
        Condition::Unknown(why) => (LayerCondition::Unknown, why),
        Condition::Damaged(why) => (LayerCondition::Damaged, why),
    }
}

/// Sends the archive of images.
pub fn export<D: Domain>(
    domain: Arc<D>,
    request: ExportRequest,
) -> Result<Response<Exported>, Status> {
    let span = tracing::info_span!("Export");
    let images = validate::export(request)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let chunks = Chunks {
        sender: sender.clone(),
        chunk: Vec::with_capacity(CHUNK),
    };
    let work = async move { domain.export(images, chunks).await };
    tokio::spawn(end(work.instrument(span), sender));
    Ok(Response::new(ReceiverStream::new(receiver)))
}

/// Compares images with what was unpacked.
pub fn verify<D: Domain>(
    domain: Arc<D>,
    request: VerifyRequest,
) -> Result<Response<Verified>, Status> {
    let span = tracing::info_span!("Verify");
    let set_aside = request.set_aside;
    let images = validate::verify(request)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let steps = VerifySteps(sender.clone());
    let work = async move { domain.verify(images, set_aside, steps).await };
    tokio::spawn(end(work.instrument(span), sender));
    Ok(Response::new(ReceiverStream::new(receiver)))
}

/// Does the work, and tells the client why it failed.
async fn end<T>(
    work: impl Future<Output = Result<(), Error>> + Send + 'static,
    sender: mpsc::Sender<Result<T, Status>>,
) {
    let failed = match tokio::spawn(work).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Status::from(error),
        Err(error) => panicked(error),
    };
    let _ = sender.send(Err(failed)).await;
}
