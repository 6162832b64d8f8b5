//! Bringing the layers of an image: several at once, each streamed through the unpacking into its folder.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug_span, field};

use super::Failure;
use super::incoming::Incoming;
use super::progress::{Phase, PullProgress, Transfer};
use super::resolve::{Resolved, Target};
use crate::failpoint;
use crate::image::document::Descriptor;
use crate::image::registry::{self, Registries, Remote};
use crate::image::{Error, ImageStore};
use crate::store::layers::{Claims, LayerId, LayerStore, Staged};
use crate::store::unpack::{Expected, Limits, UnpackError};
use crate::telemetry::trace;

/// Pieces of a layer that wait to be unpacked: the connection's buffers, 128 KiB each at most.
const WAITING: usize = 8;

/// One pull's layers.
pub(super) struct Fetch {
    shared: Arc<Shared>,
    parallel: usize,
    tasks: JoinSet<Result<Staged, Failure>>,
    /// Yet to be begun, the next one last.
    queue: Vec<Job>,
    staged: Vec<Staged>,
}

/// What the transfers of a pull have in common.
struct Shared {
    layers: Arc<LayerStore>,
    remote: Arc<Remote>,
    transfers: Arc<Semaphore>,
    /// Bottom first.
    packed: Vec<(Descriptor, Target)>,
    progress: Arc<PullProgress>,
    stop: CancellationToken,
}

#[derive(Clone, Copy)]
struct Job {
    id: LayerId,
    /// In the image, from the bottom.
    position: usize,
}

impl Fetch {
    pub(super) fn new(
        store: &ImageStore,
        registries: &Registries,
        remote: Arc<Remote>,
        resolved: &Resolved,
        progress: &Arc<PullProgress>,
        cancel: &CancellationToken,
    ) -> Self {
        let shared = Shared {
            layers: Arc::clone(store.layers()),
            remote,
            transfers: registries.transfers(),
            packed: resolved.layers.clone(),
            progress: Arc::clone(progress),
            stop: cancel.child_token(),
        };
        Self {
            shared: Arc::new(shared),
            parallel: registries.parallel_layers(),
            tasks: JoinSet::new(),
            queue: Vec::new(),
            staged: Vec::new(),
        }
    }

    /// Makes sure that all layers of `stack` are there, all of which are claimed.
    pub(super) async fn run(
        mut self,
        claims: Claims,
        stack: &[LayerId],
    ) -> Result<Claims, Failure> {
        let (claims, failure) = match self.bring(claims, stack).await {
            Ok(claims) => return Ok(claims),
            Err(failed) => failed,
        };
        self.shared.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            self.staged.extend(ended.ok().and_then(Result::ok));
        }
        let staged = std::mem::take(&mut self.staged);
        // Removing many files takes a while.
        let undo = move || {
            drop(staged);
            if let Some(mut claims) = claims {
                claims.withdraw();
            }
        };
        let _ = tokio::task::spawn_blocking(undo).await;
        Err(failure)
    }

    async fn bring(
        &mut self,
        mut claims: Claims,
        stack: &[LayerId],
    ) -> Result<Claims, (Option<Claims>, Failure)> {
        let mut changes = claims.changes();
        let mine = claims.missing().clone();
        self.enqueue(&mine, stack);
        loop {
            changes.mark_unchanged();
            let taken = claims.take();
            self.enqueue(&taken, stack);
            self.start();
            if self.tasks.is_empty() {
                claims = self.commit(claims, stack).await?;
                if claims.is_complete() {
                    return Ok(claims);
                }
            }
            if let Err(failure) = self.wait(&mut changes).await {
                return Err((Some(claims), failure));
            }
        }
    }

    fn enqueue(&mut self, missing: &BTreeSet<LayerId>, stack: &[LayerId]) {
        for (position, &id) in stack.iter().enumerate() {
            if missing.contains(&id) {
                self.shared.progress.set(position, Phase::Waiting);
                self.queue.push(Job { id, position });
            }
        }
        // The largest first, so that none is left alone with it at the end.
        let packed = &self.shared.packed;
        self.queue.sort_by_key(|job| packed[job.position].0.size);
    }

    fn start(&mut self) {
        while self.tasks.len() < self.parallel
            && let Some(job) = self.queue.pop()
        {
            let shared = Arc::clone(&self.shared);
            let descriptor = &shared.packed[job.position].0;
            let span = debug_span!(
                "layer",
                layer.digest = %descriptor.digest,
                layer.size = descriptor.size,
                error = field::Empty,
            );
            let task = async move { trace::note(shared.layer(job).await) };
            self.tasks.spawn(task.instrument(span));
        }
    }

    /// Waits until a transfer ends or something changes with the layers that others make.
    async fn wait(&mut self, changes: &mut watch::Receiver<()>) -> Result<(), Failure> {
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Err(Failure::Cancelled),
            Some(ended) = self.tasks.join_next() => {
                self.staged.push(ended??);
                hit("pull:unpacked")
            }
            _ = changes.changed() => Ok(()),
        }
    }

    /// Makes those the store's that nothing below is missing of.
    async fn commit(
        &mut self,
        mut claims: Claims,
        stack: &[LayerId],
    ) -> Result<Claims, (Option<Claims>, Failure)> {
        if self.staged.is_empty() {
            return Ok(claims);
        }
        if let Err(failure) = hit("pull:staged") {
            return Err((Some(claims), failure));
        }
        let staged = std::mem::take(&mut self.staged);
        let (stacks, stop) = ([stack.to_vec()], self.shared.stop.clone());
        let commit = move || {
            let early = claims.commit(staged, &stacks, &|| !stop.is_cancelled());
            (claims, early)
        };
        let committed = tokio::task::spawn_blocking(commit).await;
        let (claims, early) = committed.map_err(|error| (None, error.into()))?;
        match early {
            Ok(early) => {
                self.staged = early;
                Ok(claims)
            }
            Err(UnpackError::Cancelled) => Err((Some(claims), Failure::Cancelled)),
            Err(error) => Err((Some(claims), Failure::Commit(error))),
        }
    }
}

impl Shared {
    /// Fetches and unpacks one layer; from another host if what one has is not the layer.
    async fn layer(self: &Arc<Self>, job: Job) -> Result<Staged, Failure> {
        let permit = tokio::select! {
            permit = self.transfers.acquire() => permit,
            () = self.stop.cancelled() => return Err(Failure::Cancelled),
        };
        let _permit = permit.map_err(|_| Failure::Cancelled)?;
        let digest = self.packed[job.position].0.digest;
        loop {
            match self.attempt(job).await {
                Err(Failure::Layer { source, .. })
                    if source.is_invalid() && self.remote.distrust(digest, &source) => {}
                outcome => return outcome,
            }
        }
    }

    async fn attempt(self: &Arc<Self>, job: Job) -> Result<Staged, Failure> {
        self.progress.set(job.position, Phase::Downloading);
        let (descriptor, target) = &self.packed[job.position];
        let (digest, target) = (descriptor.digest, target.clone());
        let (sender, receiver) = mpsc::channel(WAITING);
        let incoming = Incoming::new(receiver, descriptor.size);
        let (layers, stop) = (Arc::clone(&self.layers), self.stop.clone());
        // A thread of its own: a panic in the unpacking of a hostile layer costs this pull.
        let unpacking = tokio::task::spawn_blocking(move || {
            let proceed = || !stop.is_cancelled();
            match target {
                Target::File(name) => layers.place_file(&name, incoming, digest, &proceed),
                Target::Layer(diff) => {
                    let packed = Some(digest);
                    let expected = Expected { packed, diff };
                    layers.unpack(job.id, incoming, expected, &Limits::default(), &proceed)
                }
            }
        });
        let transfer = Transfer {
            progress: &self.progress,
            layer: job.position,
        };
        let streaming = self
            .remote
            .stream(descriptor.digest, descriptor.size, &sender, &transfer);
        let streamed = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(registry::Error::Cancelled),
            streamed = streaming => streamed,
        };
        drop(sender);
        let unpacked = unpacking.await?;
        let of_layer = |source| match source {
            UnpackError::Cancelled => Failure::Cancelled,
            source => Failure::Layer {
                layer: descriptor.digest.to_string(),
                source,
            },
        };
        match (streamed, unpacked) {
            (Ok(()), Ok(staged)) => {
                tracing::debug!(layer = %descriptor.digest, bytes = descriptor.size, "layer unpacked");
                self.progress.set(job.position, Phase::Unpacked);
                Ok(staged)
            }
            (Ok(()) | Err(registry::Error::Abandoned), Err(error)) => Err(of_layer(error)),
            (Err(error), _) => Err(error.into()),
        }
    }
}

fn hit(name: &str) -> Result<(), Failure> {
    failpoint::hit(name).map_err(|error| {
        let source = std::io::Error::other(error);
        let object = "layers".into();
        Failure::Other(Error::Store { object, source })
    })
}
