//! How far a pull is, for whoever wants to look: the state now, and no history.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::resolve::Resolved;
use crate::image::registry::Observer;
use crate::store::blobs::Digest;

/// How often the log is told of a pull.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How far one layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Waiting,
    /// It is unpacked as it comes.
    Downloading,
    /// The connection broke; another attempt follows.
    Retrying,
    Unpacked,
    /// The store had it, or another pull brings it.
    Shared,
}

/// One layer of what is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerProgress {
    /// As it is in the registry.
    pub digest: Digest,
    pub phase: Phase,
    /// Packed bytes that have come.
    pub done: u64,
    /// Packed bytes in all.
    pub total: u64,
}

/// What is pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledManifest {
    /// The name in full.
    pub reference: String,
    /// What the registry has under it.
    pub digest: Digest,
}

/// A pull as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullState {
    /// `None`: the registry has not answered yet.
    pub manifest: Option<PulledManifest>,
    /// Bottom first.
    pub layers: Vec<LayerProgress>,
}

/// Is written by one pull and read by all who wait for it.
#[derive(Debug, Default)]
pub struct PullProgress(Mutex<PullState>);

impl PullProgress {
    /// The pull as it is now.
    #[must_use]
    pub fn state(&self) -> PullState {
        self.lock().clone()
    }

    /// Tells the log, now and then, how far a pull is that takes long.
    pub(super) async fn log(&self, image: &str) -> Infallible {
        loop {
            tokio::time::sleep(LOG_INTERVAL).await;
            let layers = self.state().layers;
            let sum = |bytes: fn(&LayerProgress) -> u64| layers.iter().map(bytes).sum::<u64>();
            let is_done =
                |layer: &&LayerProgress| matches!(layer.phase, Phase::Unpacked | Phase::Shared);
            tracing::info!(
                image,
                layers = layers.len(),
                layers_done = layers.iter().filter(is_done).count(),
                bytes = sum(|layer| layer.done),
                of = sum(|layer| if layer.phase == Phase::Shared {
                    0
                } else {
                    layer.total
                }),
                "image is being pulled"
            );
        }
    }

    pub(super) fn resolved(&self, reference: &str, resolved: &Resolved) {
        let layers = resolved.layers.iter().map(|(layer, _)| LayerProgress {
            digest: layer.digest,
            phase: Phase::Shared,
            done: 0,
            total: layer.size,
        });
        let layers = layers.collect();
        let manifest = Some(PulledManifest {
            reference: reference.to_owned(),
            digest: resolved.digest,
        });
        *self.lock() = PullState { manifest, layers };
    }

    pub(super) fn set(&self, layer: usize, phase: Phase) {
        self.change(layer, |layer| layer.phase = phase);
    }

    /// Packed bytes of all layers that have come.
    pub(super) fn received(&self) -> u64 {
        self.lock().layers.iter().map(|layer| layer.done).sum()
    }

    fn change(&self, layer: usize, change: impl FnOnce(&mut LayerProgress)) {
        if let Some(layer) = self.lock().layers.get_mut(layer) {
            change(layer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, PullState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The transfer of one layer.
pub(super) struct Transfer<'a> {
    pub progress: &'a PullProgress,
    pub layer: usize,
}

impl Observer for Transfer<'_> {
    fn received(&self, bytes: u64) {
        self.progress.change(self.layer, |layer| {
            layer.done = bytes;
            layer.phase = Phase::Downloading;
        });
    }

    fn retrying(&self) {
        self.progress.set(self.layer, Phase::Retrying);
    }
}
