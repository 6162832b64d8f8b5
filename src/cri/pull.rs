//! carpel.v1 Images/Pull: a pull that tells how far it is.

use std::sync::Arc;
use std::time::Duration;

use carpel_api::carpel::pull_response::Step;
use carpel_api::carpel::{
    PullLayer, PullManifest, PullPhase, PullRequest, PullResponse, PulledImage,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use tracing::Instrument;

use super::domain::{Domain, ImageView};
use super::status::panicked;
use super::validate;
use crate::error::Error;
use crate::image::Image;
use crate::image::pull::{LayerProgress, Phase, PullState};
use crate::node::Pull;

type Sender = mpsc::Sender<Result<PullResponse, Status>>;

/// Steps that may wait for the client.
const WAITING: usize = 16;
/// Between two looks at a pull.
const INTERVAL: Duration = Duration::from_millis(100);

/// Tells one client how far a pull is.
pub struct Steps {
    sender: Sender,
    told: PullState,
}

impl Steps {
    /// Tells how far the pull is until it ends.
    ///
    /// # Errors
    /// The pull's own.
    pub async fn follow(&mut self, pull: &Pull) -> Result<Arc<Image>, Error> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut outcome = std::pin::pin!(pull.outcome());
        loop {
            tokio::select! {
                outcome = &mut outcome => {
                    self.tell(pull.progress().state()).await;
                    return outcome;
                }
                _ = ticks.tick() => self.tell(pull.progress().state()).await,
            }
        }
    }

    /// Tells what is new. A client that reads slowly is told less often.
    pub async fn tell(&mut self, state: PullState) {
        let mut steps = Vec::new();
        if self.told.manifest != state.manifest
            && let Some(manifest) = &state.manifest
        {
            steps.push(Step::Manifest(PullManifest {
                reference: manifest.reference.clone(),
                digest: manifest.digest.to_string(),
                layers: u32::try_from(state.layers.len()).unwrap_or(u32::MAX),
            }));
        }
        for (position, layer) in state.layers.iter().enumerate() {
            if self.told.layers.get(position) != Some(layer) {
                steps.push(Step::Layer(pull_layer(layer)));
            }
        }
        self.told = state;
        for step in steps {
            let response = PullResponse { step: Some(step) };
            // A client that is gone is noticed where its call is.
            let _ = self.sender.send(Ok(response)).await;
        }
    }
}

fn pull_layer(layer: &LayerProgress) -> PullLayer {
    let phase = match layer.phase {
        Phase::Waiting => PullPhase::Waiting,
        Phase::Downloading => PullPhase::Downloading,
        Phase::Retrying => PullPhase::Retrying,
        Phase::Unpacked => PullPhase::Unpacked,
        Phase::Shared => PullPhase::Shared,
    };
    PullLayer {
        digest: layer.digest.to_string(),
        phase: phase.into(),
        done: layer.done,
        total: layer.total,
    }
}

/// Begins a pull for a client, and takes its wish back when the client goes.
pub fn serve<D: Domain>(
    domain: Arc<D>,
    request: PullRequest,
) -> Result<Response<ReceiverStream<Result<PullResponse, Status>>>, Status> {
    let span = tracing::info_span!("Pull", image = request.image);
    let wanted = validate::pull(request)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let steps = Steps {
        sender: sender.clone(),
        told: PullState::default(),
    };
    let work = async move { domain.pull(wanted, Some(steps)).await }.instrument(span);
    tokio::spawn(async move {
        let mut work = tokio::spawn(work);
        let outcome = tokio::select! {
            outcome = &mut work => outcome,
            () = sender.closed() => {
                work.abort();
                return;
            }
        };
        let last = match outcome {
            Ok(image) => image.map(pulled).map_err(Status::from),
            Err(error) => Err(panicked(error)),
        };
        let _ = sender.send(last).await;
    });
    Ok(Response::new(ReceiverStream::new(receiver)))
}

fn pulled(image: ImageView) -> PullResponse {
    let image = PulledImage {
        id: image.id,
        tags: image.tags,
        digests: image.digests,
        size: image.size,
    };
    PullResponse {
        step: Some(Step::Image(image)),
    }
}
