//! StopPodSandbox and RemovePodSandbox.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carpel_api::nri::Event;
use futures::future::join_all;

use super::{Phase, Sandbox, State};
use crate::error::Error;
use crate::failpoint;
use crate::ids::SandboxId;
use crate::node::{EventKind, Node, Op};

impl Node {
    /// Stops a sandbox: kills its containers, releases its network, ends its supervisor. Repeating it
    /// goes on where an earlier attempt broke off; an unknown sandbox is stopped.
    ///
    /// # Errors
    /// What could not be released; the sandbox is not ready from the first moment on.
    pub async fn stop_sandbox(self: &Arc<Self>, id: &SandboxId) -> Result<(), Error> {
        let Some(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let node = Arc::clone(self);
        let work = || async move {
            let _turn = sandbox.turn.lock().await;
            node.stop_in_turn(&sandbox).await
        };
        self.operations
            .join((Op::StopSandbox, id.object()), work)
            .await
    }

    async fn stop_in_turn(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        if sandbox.end_ready() {
            self.announce_sandbox(EventKind::Stopped, sandbox);
        }
        if !matches!(*sandbox.lock(), State::Stopping { .. }) {
            return Ok(());
        }
        if sandbox.request_stop() {
            // Or a new daemon would call a pod ready that has lost its network.
            self.note_phase(sandbox, Phase::Stopping);
        }
        let containers = self.containers_of(&sandbox.id);
        let stops = containers
            .iter()
            .map(|container| self.stop_container(&container.id, Duration::ZERO));
        join_all(stops)
            .await
            .into_iter()
            .collect::<Result<(), Error>>()?;
        for container in &containers {
            // Of one that was about to be started when an earlier daemon died.
            self.return_net_devices(container).await;
        }
        for container in &containers {
            // Those that run are told of by now; nobody stops the others.
            if *container.exited.borrow() {
                self.tell_stopped(container).await;
            }
        }
        self.tell_sandbox_stopped(sandbox).await;
        failpoint::hit("stop-sandbox:containers-stopped")?;
        self.disconnect_network(sandbox).await?;
        failpoint::hit("stop-sandbox:network-deleted")?;
        // The supervisor and its file of exits are the last that know of them.
        self.write_late(sandbox);
        self.end_supervisor(sandbox).await?;
        let attachment = match &*sandbox.lock() {
            State::Stopping { attachment, .. } => attachment.clone(),
            _ => None,
        };
        sandbox.set_state(State::Stopped { attachment });
        self.note_phase(sandbox, Phase::Stopped);
        failpoint::hit("stop-sandbox:recorded")
    }

    /// Removes a sandbox and all its containers, stopping them first if need be. An unknown one is
    /// removed.
    ///
    /// # Errors
    /// What could not be released or deleted; the removal goes on when it is repeated, or at the
    /// daemon's next start.
    pub async fn remove_sandbox(self: &Arc<Self>, id: &SandboxId) -> Result<(), Error> {
        let Some(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let node = Arc::clone(self);
        let work = || async move {
            let _turn = sandbox.turn.lock().await;
            if node.sandbox(&sandbox.id).is_none() {
                return Ok(());
            }
            node.stop_in_turn(&sandbox).await?;
            node.remove_in_turn(&sandbox).await
        };
        self.operations
            .join((Op::RemoveSandbox, id.object()), work)
            .await
    }

    /// Deletes a stopped sandbox and its containers.
    pub(crate) async fn remove_in_turn(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
    ) -> Result<(), Error> {
        self.note_phase(sandbox, Phase::Removing);
        sandbox.set_state(State::Removing);
        failpoint::hit("remove-sandbox:begun")?;
        let containers = self.containers_of(&sandbox.id);
        let removals = containers
            .iter()
            .map(|container| self.remove_container(&container.id));
        join_all(removals)
            .await
            .into_iter()
            .collect::<Result<(), Error>>()?;
        {
            let _gate = self.nri.gate().await;
            let told = self.tell_of_pod(Event::RemovePodSandbox, sandbox, None);
            if let Err(error) = told.await {
                tracing::warn!(sandbox.id = %sandbox.id, %error, "removal of a pod");
            }
        }
        self.delete_sandbox_files(sandbox)?;
        self.forget_sandbox(sandbox);
        self.announce_sandbox(EventKind::Deleted, sandbox);
        Ok(())
    }

    /// Tells plugins that a pod has stopped, once: it is as it was, but for its containers.
    async fn tell_sandbox_stopped(&self, sandbox: &Sandbox) {
        if sandbox.told_stopped.swap(true, Ordering::Relaxed) {
            return;
        }
        let told = self.tell_of_pod(Event::StopPodSandbox, sandbox, None);
        if let Err(error) = told.await {
            tracing::warn!(sandbox.id = %sandbox.id, %error, "stop of a pod");
        }
    }
}
