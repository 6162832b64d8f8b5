//! Taking a sandbox apart. Every part may be gone already, so that this can be repeated after any crash.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carpel_wire::RequestBody;

use super::{Phase, Record, Sandbox, State};
use crate::error::Error;
use crate::failpoint;
use crate::network;
use crate::node::{Node, orphans};
use crate::supervisor::Supervisor;

/// How long a supervisor may take to end by itself before it is killed.
const SHUTDOWN: Duration = Duration::from_secs(5);

impl Node {
    /// Undoes a sandbox that could not be made. A plugin's DEL that fails now stays with the network's cache, whose
    /// clean-up goes on in the background. What else cannot be undone keeps its record, and is tried again: in the
    /// background, and by the next daemon.
    pub(crate) async fn undo_sandbox(&self, sandbox: &Arc<Sandbox>) {
        if let Err(error) = self.dismantle(sandbox).await {
            tracing::warn!(sandbox.id = %sandbox.id, %error, "undo of a sandbox is not complete");
        }
        let gone = |path: &Path| {
            let looked = path.symlink_metadata();
            looked.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        // The state folder is the last to go of all but the network.
        let is_gone =
            gone(&self.paths.pod_state(&sandbox.id)) && sandbox.netns.as_deref().is_none_or(gone);
        let deleted = is_gone.then(|| self.delete_sandbox_files(sandbox));
        if let Some(Err(error)) = &deleted {
            tracing::warn!(sandbox.id = %sandbox.id, %error, "files of an undone sandbox remain");
        }
        match deleted {
            Some(Ok(())) => self.half_undone.remove(&sandbox.id),
            _ => self.half_undone.insert(sandbox.id, sandbox),
        }
        self.forget_sandbox(sandbox);
    }

    /// Takes down the network, the supervisor and the cgroup.
    ///
    /// # Errors
    /// The first thing that could not be taken down; the rest has been tried.
    pub(crate) async fn dismantle(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let network = match self.disconnect_network(sandbox).await {
            Ok(()) => Ok(()),
            // Nobody comes back for the pin. Without it the plugins can still free addresses.
            failed => self.unpin(sandbox).and(failed),
        };
        let supervisor = self.end_supervisor(sandbox).await;
        network.and(supervisor)
    }

    /// Runs the chain's DEL while the namespace still exists, then drops its pin. The next try needs it too: a
    /// device that was lent to the pod is in there.
    pub(crate) async fn disconnect_network(&self, sandbox: &Sandbox) -> Result<(), Error> {
        if sandbox.netns.is_none() {
            return Ok(());
        }
        let deleted = self.network.del(&sandbox.id).await;
        deleted.map_err(Error::at(format!(
            "release the network of pod {}",
            sandbox.pod()
        )))?;
        self.unpin(sandbox)
    }

    fn unpin(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let Some(pin) = &sandbox.netns else {
            return Ok(());
        };
        network::netns::unpin(pin).map_err(Error::at(format!(
            "release the network namespace of sandbox {}",
            sandbox.id
        )))
    }

    /// Ends the supervisor, whoever started it, and removes its cgroup.
    pub(crate) async fn end_supervisor(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let at = |doing: &str| format!("{doing} of sandbox {}", sandbox.id);
        let run_dir = self.paths.pod_state(&sandbox.id);
        let known = match &*sandbox.lock() {
            State::Ready(live) => Some(live.supervisor.clone()),
            State::Stopping { supervisor, .. } => supervisor.clone(),
            _ => None,
        };
        let supervisor = match known {
            Some(supervisor) => Some(supervisor),
            None => Supervisor::connect(&run_dir, SHUTDOWN).await.ok(),
        };
        let cgroup = self.cgroups.open(&sandbox.cgroup);
        if let Some(supervisor) = supervisor {
            let polite = async {
                let asked = supervisor.request(RequestBody::Shutdown, &[]).await;
                if asked.is_ok_and(|(reply, _)| reply == carpel_wire::Reply::Done) {
                    supervisor.gone().await;
                }
            };
            let ended = tokio::time::timeout(SHUTDOWN, polite).await;
            if ended.is_err() || supervisor.is_alive() {
                tracing::warn!(sandbox.id = %sandbox.id, "supervisor does not end, killing it");
            }
            cgroup.kill().map_err(Error::at(at("kill what is left")))?;
            let reaper = supervisor.reaper().map(|reaper| reaper.pidfd);
            for pidfd in [supervisor.pidfd(), reaper].into_iter().flatten() {
                tokio::spawn(async move { orphans::end(&pidfd).await });
            }
        }
        cgroup.kill().map_err(Error::at(at("kill what is left")))?;
        tokio::task::spawn_blocking(move || cgroup.remove())
            .await
            .map_err(Error::at(at("remove the cgroup")))?
            .map_err(Error::at(at("remove the cgroup")))?;
        failpoint::hit("stop-sandbox:supervisor-gone")?;
        crate::node::remove_tree(&run_dir).map_err(Error::at(at("remove the state folder")))
    }

    /// Deletes a sandbox's folder, its record last.
    pub(crate) fn delete_sandbox_files(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let at = |doing: &str| format!("{doing} of sandbox {}", sandbox.id);
        let dir = self.paths.sandbox(&sandbox.id);
        let record = self.paths.sandbox_record(&sandbox.id);
        crate::node::remove_entries_but(&dir, &record).map_err(Error::at(at("remove files")))?;
        failpoint::hit("remove-sandbox:files-gone")?;
        crate::node::remove_tree(&dir).map_err(Error::at(at("remove the record")))
    }

    /// Writes down how far the end of a sandbox has come. On a full disk it goes on without: removing
    /// makes room, it is written later, and a new daemon finds out what is left.
    pub(crate) fn note_phase(&self, sandbox: &Sandbox, phase: Phase) {
        if let Err(error) = self.write_sandbox(sandbox, phase) {
            tracing::warn!(sandbox.id = %sandbox.id, %error, "state is not on disk");
        }
    }

    pub(crate) fn write_sandbox(&self, sandbox: &Sandbox, phase: Phase) -> Result<(), Error> {
        let path = self.paths.sandbox_record(&sandbox.id);
        let latest = || sandbox.record(phase);
        let write = |record: &Record| self.write_record(&path, record);
        sandbox.turns.write(latest, write)
    }

    /// Writes those records of a sandbox, whose turn it is, and its containers that could not be written when it
    /// was time.
    pub(crate) fn write_late(&self, sandbox: &Sandbox) {
        if sandbox.turns.is_behind() {
            self.note_phase(sandbox, sandbox.phase());
        }
        for container in self.containers_of(&sandbox.id) {
            if container.turns.is_behind()
                && let Err(error) = self.write_container(&container)
            {
                tracing::warn!(container.id = %container.id, %error, "state is not on disk");
            }
        }
    }
}
