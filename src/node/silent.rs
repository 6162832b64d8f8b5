//! A supervisor that lives and does not answer a new daemon: it has been stopped, its cgroup is frozen, or it speaks
//! another version of the protocol.
//!
//! ```text
//!  ready by its record ──reconnect──▶ answers ─────────────────────────────▶ Ready
//!                          │ PATIENCE                                         ▲
//!                          └──▶ Silent: the daemon serves, and goes on ───────┘
//! ```
//!
//! What must always hold: nothing of the pod is ended because nobody answers. It stays as ready as it was by its
//! record. Its containers are running as long as processes are in their cgroups, else nobody knows. What needs the
//! supervisor is refused at once; who wants the pod stopped, or a container killed, can have that.

use std::collections::HashMap;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use carpel_wire::ObjectId;

use super::{EventKind, Node};
use crate::container::{Container, Status};
use crate::error::Error;
use crate::network::Attachment;
use crate::sandbox::{Sandbox, State};
use crate::supervisor::{self, Listed, Supervisor};

/// How long a new daemon waits for its supervisors before it serves without them.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// How long one connection is waited on after that: one that is given up and made anew would lie in the supervisor's
/// queue with the others.
const GREETING: Duration = Duration::from_secs(3600);
/// Between two attempts, and two looks at what the pod does meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// A supervisor, with what it has in its table.
pub(super) type Met = (Supervisor, HashMap<ObjectId, Listed>);

/// The same; `None` if it is gone.
type Meeting = Pin<Box<dyn Future<Output = Result<Option<Met>, supervisor::Error>> + Send>>;

impl Node {
    /// Finds out what a sandbox is, whose turn it is and that is ready by its record, or leaves that to a task.
    ///
    /// # Errors
    /// If the daemon itself has not what it takes to reconnect.
    pub(super) async fn meet(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        attachment: Option<Attachment>,
        connected: bool,
    ) -> Result<(), Error> {
        let mut meeting = self.meeting(sandbox);
        if let Ok(met) = tokio::time::timeout(PATIENCE, &mut meeting).await {
            let doing = format!(
                "reconnect to sandbox {} of pod {}",
                sandbox.id,
                sandbox.pod()
            );
            let met = met.map_err(Error::at(doing))?;
            self.settle(sandbox, attachment, connected, met).await;
            return Ok(());
        }
        let (id, pod) = (&sandbox.id, sandbox.pod());
        tracing::error!(sandbox.id = %id, pod, "supervisor does not answer: the pod is left as it is, and cannot be reached");
        sandbox.set_state(State::Silent {
            attachment,
            connected,
        });
        for container in self.containers_of(id) {
            self.lose_sight(&container).await;
        }
        let (node, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move { node.await_answer(&sandbox, meeting).await });
        Ok(())
    }

    /// Waits, for ever, for a supervisor to answer or end.
    fn meeting(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Meeting {
        let (node, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        Box::pin(async move {
            let mut told = false;
            loop {
                match node.reconnect(&sandbox).await {
                    Err(error @ (supervisor::Error::Silent | supervisor::Error::Version(_))) => {
                        if !std::mem::replace(&mut told, true) {
                            tracing::warn!(sandbox.id = %sandbox.id, pod = sandbox.pod(), %error, "not reconnected yet");
                        }
                    }
                    met => return met,
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
    }

    /// The supervisor with what it has; `None` if there is none any more.
    pub(super) async fn reconnect(
        &self,
        sandbox: &Sandbox,
    ) -> Result<Option<Met>, supervisor::Error> {
        let supervisor = Supervisor::connect(&self.paths.pod_state(&sandbox.id), GREETING).await;
        let connected = match supervisor {
            Ok(supervisor) if supervisor.was_ready() => {
                supervisor.list().await.map(|list| (supervisor, list))
            }
            Ok(_) => return Ok(None),
            Err(error) => Err(error),
        };
        match connected {
            Ok((supervisor, list)) => {
                let entries = list.into_iter().map(|listed| (listed.entry.id, listed));
                Ok(Some((supervisor, entries.collect())))
            }
            Err(error @ supervisor::Error::Gone) => {
                tracing::warn!(sandbox.id = %sandbox.id, pod = sandbox.pod(), %error, "no supervisor: sandbox is not ready");
                Ok(None)
            }
            // It may live, and its containers with it.
            Err(error) => Err(error),
        }
    }

    /// Takes the pod over when its supervisor answers, unless it was stopped meanwhile.
    async fn await_answer(self: &Arc<Self>, sandbox: &Arc<Sandbox>, mut meeting: Meeting) {
        let met = loop {
            match tokio::time::timeout(PAUSE, &mut meeting).await {
                Ok(Ok(met)) => break met,
                Ok(Err(error)) => {
                    tracing::warn!(sandbox.id = %sandbox.id, %error, "not reconnected yet");
                    meeting = self.meeting(sandbox);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => {}
            }
            if !sandbox.is_silent() {
                return;
            }
            for container in self.containers_of(&sandbox.id) {
                if container.is_unseen() {
                    self.look_at(&container);
                }
            }
        };
        let _turn = sandbox.turn.lock().await;
        // Who ends one that is unseen has its turn. Before the sandbox is ready: then who has one may wait for us.
        let containers = self.containers_of(&sandbox.id);
        let mut turns = Vec::new();
        for container in &containers {
            turns.push(container.turn.lock().await);
        }
        let (attachment, connected) = match &*sandbox.lock() {
            State::Silent {
                attachment,
                connected,
            } => (attachment.clone(), *connected),
            _ => return,
        };
        if met.is_none() && sandbox.end_ready() {
            self.announce_sandbox(EventKind::Stopped, sandbox);
        }
        let answers = met.is_some();
        self.settle(sandbox, attachment, connected, met).await;
        tracing::info!(sandbox.id = %sandbox.id, pod = sandbox.pod(), answers, "supervisor was silent");
    }

    /// A container of a supervisor that does not answer. What was never started has no cgroup.
    async fn lose_sight(&self, container: &Container) {
        if !matches!(container.status(), Status::Created) {
            return;
        }
        if let Some(exit) = self.exit_on_file(container) {
            return self.note_exit(container, exit, None).await;
        }
        let gone = |error: std::io::Error| error.kind() == ErrorKind::NotFound;
        let cgroup = self.cgroups.open(&container.cgroup);
        if !cgroup.oom_kills().is_err_and(gone) || self.has_processes(container) {
            self.look_at(container);
        }
    }

    fn look_at(&self, container: &Container) {
        container.set_unseen(self.has_processes(container));
    }
}
