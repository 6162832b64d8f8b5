//! What pods that are gone, or were never whole, have left behind is released beside the requests: plugins may hang, and
//! disks may be full.

use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Node;
use super::recover::report;
use crate::error::Error;
use crate::ids::SandboxId;
use crate::sandbox::Sandbox;

/// How many networks that were not released are tried again at a time.
const RETRIED_AT_A_TIME: usize = 4;

impl Node {
    /// Undoes sandboxes that were being made when an earlier daemon died. Beside the requests, as a plugin's DEL may
    /// hang; but each has its turn before any request has, so that a repeated RunPodSandbox waits until it is gone.
    pub(super) async fn undo_half_made(
        self: &Arc<Self>,
        half_made: impl Iterator<Item = Arc<Sandbox>>,
    ) -> JoinSet<()> {
        let mut undone = JoinSet::new();
        for sandbox in half_made {
            let node = Arc::clone(self);
            let (has_turn, taken) = oneshot::channel();
            undone.spawn(async move {
                let _turn = sandbox.turn.lock().await;
                let _ = has_turn.send(());
                tracing::info!(sandbox.id = %sandbox.id, pod = sandbox.pod(), "half-made sandbox is undone");
                node.undo_sandbox(&sandbox).await;
            });
            // An error: the task is over already.
            let _ = taken.await;
        }
        undone
    }

    /// Attachments of sandboxes that are gone now. Beside the requests: a plugin that hangs must not keep the
    /// daemon from serving, above all not from starting the very pod that the plugin waits for.
    pub(super) fn release_unowned(&self) -> impl Future<Output = ()> + use<> {
        let owned = self.all_sandboxes();
        let owned = owned.iter().map(|sandbox| sandbox.id).collect();
        let collection = self.network.gc(owned);
        async move {
            let collected = collection.await;
            for (id, error) in collected.failed {
                tracing::warn!(%error, "network of sandbox {id} is not released yet");
            }
            if let Some(error) = collected.plugins {
                tracing::warn!(%error, "plugins' own garbage collection");
            }
        }
    }

    /// Retries, for as long as the daemon lives, the clean-up of networks whose pods are gone or to be stopped:
    /// a plugin's DEL that failed leaks an address until it succeeds. Beside that, the undoing of pods that could
    /// not be made, and records that could not be written.
    pub async fn release_networks(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.settings.network_retry).await;
            for sandbox in self.sandboxes() {
                if let Ok(_turn) = sandbox.turn.try_lock() {
                    self.write_late(&sandbox);
                }
            }
            let half_undone = futures::stream::iter(self.half_undone.all(|_| true));
            let undo = async |sandbox: Arc<Sandbox>| {
                let _turn = sandbox.turn.lock().await;
                self.undo_sandbox(&sandbox).await;
            };
            half_undone
                .for_each_concurrent(RETRIED_AT_A_TIME, undo)
                .await;
            let cached = futures::stream::iter(self.network.cached());
            let retry = |id| self.release_network(id);
            cached.for_each_concurrent(RETRIED_AT_A_TIME, retry).await;
        }
    }

    async fn release_network(self: &Arc<Self>, id: SandboxId) {
        match self.sandbox(&id) {
            None => {
                let released = self.network.del(&id).await;
                let released = released.map_err(Error::at("release"));
                report(&format!("network of sandbox {id}"), released);
            }
            Some(sandbox) if sandbox.is_stopping() => {
                let stopped = self.stop_sandbox(&id).await;
                report(&format!("stop of sandbox {id}"), stopped);
            }
            // It has what it needs, or releases it when it is stopped.
            Some(_) => {}
        }
    }
}
