//! UpdatePodSandboxResources: what a pod as a whole is to have, kept for whoever asks.
//!
//! Nothing is written to a cgroup: that of the pod belongs to the kubelet, which has changed it already when it calls
//! this, and the sandbox's own has no limits. (containerd and CRI-O tell their plugins and virtual machines, and do no
//! more either.)

use std::sync::Arc;

use carpel_api::nri::Event;
use tracing::Instrument;

use super::{Phase, Sandbox};
use crate::container::Asked;
use crate::error::Error;
use crate::failpoint;
use crate::ids::SandboxId;
use crate::node::Node;

/// What a pod is to have, as it was asked for last: messages, encoded. `None`: as in the sandbox's own request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// What the sandbox itself takes.
    pub overhead: Option<Asked>,
    /// The sum over the containers.
    pub resources: Option<Asked>,
}

impl Node {
    /// Remembers what a pod is to have. What `change` does not say stays as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`]; that the record cannot be written: then all is as before.
    pub async fn update_sandbox(
        self: &Arc<Self>,
        id: &SandboxId,
        change: PodLimits,
    ) -> Result<(), Error> {
        let not_found = || Error::NotFound {
            kind: "sandbox",
            id: id.to_string(),
        };
        let sandbox = self.sandbox(id).ok_or_else(not_found)?;
        let node = Arc::clone(self);
        // A task of its own: the request may be cancelled, the record is not left behind what is in memory.
        let update = async move {
            let _turn = sandbox.turn.lock().await;
            node.ask_about_pod(&sandbox, &change).await?;
            let updated = node.update_sandbox_in_turn(&sandbox, change)?;
            let told = node.tell_of_pod(Event::PostUpdatePodSandbox, &sandbox, None);
            if let Err(error) = told.await {
                tracing::warn!(sandbox.id = %sandbox.id, %error, "update of a pod");
            }
            Ok::<_, Error>(updated)
        };
        let update = tokio::spawn(update.in_current_span());
        let updated = update.await.map_err(Error::at("update the sandbox"))??;
        updated.then_some(()).ok_or_else(not_found)
    }

    /// Says whether the sandbox is there still.
    fn update_sandbox_in_turn(&self, sandbox: &Sandbox, change: PodLimits) -> Result<bool, Error> {
        let phase = sandbox.phase();
        if matches!(phase, Phase::Making | Phase::Removing) {
            return Ok(false);
        }
        let before = sandbox.limits();
        sandbox.set_limits(PodLimits {
            overhead: change.overhead.or_else(|| before.overhead.clone()),
            resources: change.resources.or_else(|| before.resources.clone()),
        });
        let recorded =
            failpoint::hit("update-sandbox:set").and_then(|()| self.write_sandbox(sandbox, phase));
        if recorded.is_err() {
            sandbox.set_limits(before);
        }
        recorded.map(|()| true)
    }
}
