//! StopContainer and RemoveContainer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use carpel_wire::SignalScope;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::MutexGuard;
use tracing::Instrument;

use super::{Container, State};
use crate::error::Error;
use crate::failpoint;
use crate::ids::ContainerId;
use crate::node::{EventKind, Node, Op};

/// How long a killed container may take to be gone.
const DEATH: Duration = Duration::from_secs(10);
/// Between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a start that is under way is waited for, in addition to the grace period.
const TURN: Duration = Duration::from_secs(5);
/// After this long, a killed first process has not taken the others along: they are killed by cgroup.
const FIRST_DEATH: Duration = Duration::from_secs(2);

/// The turn of a container that is to stop. Whoever has it may be stuck in the kernel.
async fn turn_to_end(container: &Container, grace: Duration) -> Result<MutexGuard<'_, ()>, Error> {
    container.interrupt.notify_waiters();
    let turn = tokio::time::timeout(grace + TURN, container.turn.lock());
    turn.await.map_err(|_| {
        Error::DeadlineExceeded(format!(
            "container {} ({}) is not stopped: its start is under way and does not end",
            container.config.name.name, container.id
        ))
    })
}

impl Node {
    /// Stops a container: its stop signal, then after `grace` SIGKILL. One that does not run, or is
    /// unknown, is stopped. Calls do not wait for each other: the shortest grace period wins. A start that
    /// waits for hooks ends.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] if it does not even die from SIGKILL, or a start of it does not end.
    pub async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), Error> {
        let Some(container) = self.container(id) else {
            return Ok(());
        };
        let node = Arc::clone(self);
        // A task of its own: the request may be cancelled, the stop goes on.
        let stop = async move {
            // A start that is under way ends first.
            let turn = turn_to_end(&container, grace).await?;
            if container.is_unseen() {
                return node.end_unseen(&container, grace).await;
            }
            drop(turn);
            let ran = container.running().is_some();
            node.stop_running(&container, grace).await?;
            if ran {
                node.tell_stopped(&container).await;
            }
            Ok(())
        };
        let stop = tokio::spawn(stop.in_current_span());
        stop.await.map_err(Error::at("stop the container"))?
    }

    /// Ends a container, whose turn it is, of a supervisor that does not answer. How it ends is not to be learnt then:
    /// only who wants it killed can have it. Others are in the same case.
    async fn end_unseen(&self, container: &Container, grace: Duration) -> Result<(), Error> {
        if !container.is_unseen() {
            return Ok(());
        }
        let name = format!(
            "container {} ({})",
            container.config.name.name, container.id
        );
        if !grace.is_zero() {
            return Err(Error::FailedPrecondition(format!(
                "{name} cannot be asked to stop: its pod's supervisor does not answer; it can be killed (no grace \
                 period), or the pod be stopped"
            )));
        }
        if let Some(exit) = self.exit_on_file(container) {
            self.note_exit(container, exit, None).await;
            return Ok(());
        }
        let alive = self.has_processes(container);
        self.kill_cgroup(container).await;
        let deadline = Instant::now() + DEATH;
        while self.has_processes(container) {
            if Instant::now() > deadline {
                return Err(Error::DeadlineExceeded(format!(
                    "{name} does not die: a process of it is stuck in the kernel"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
        let what = "the pod's supervisor does not answer";
        self.note_lost(container, what, alive).await;
        Ok(())
    }

    async fn stop_running(&self, container: &Container, grace: Duration) -> Result<(), Error> {
        if container.running().is_none() {
            return Ok(());
        }
        let mut exited = container.exited.subscribe();
        // One that is gone by now is stopped.
        let signal = async |signal: i32| {
            let Some(running) = container.running() else {
                return;
            };
            match Signal::from_named_raw(signal) {
                Some(signal) => drop(pidfd_send_signal(&running.pidfd, signal)),
                // A real-time signal: those are only safe to be named by who has no libc.
                None => {
                    if let Ok(supervisor) = self.supervisor_of(container).await {
                        let id = container.id.object();
                        let _ = supervisor.signal(id, signal, SignalScope::Process).await;
                    }
                }
            }
        };
        if !grace.is_zero() {
            signal(container.stop_signal).await;
            failpoint::hit("stop:signalled")?;
            if tokio::time::timeout(grace, exited.wait_for(|exited| *exited))
                .await
                .is_ok()
            {
                return failpoint::hit("stop:exited");
            }
        }
        signal(libc::SIGKILL).await;
        if tokio::time::timeout(FIRST_DEATH, exited.wait_for(|exited| *exited))
            .await
            .is_err()
        {
            let cgroup = self.cgroups.open(&container.cgroup);
            let _ = tokio::task::spawn_blocking(move || cgroup.kill()).await;
        }
        if tokio::time::timeout(DEATH, exited.wait_for(|exited| *exited))
            .await
            .is_err()
        {
            return Err(Error::DeadlineExceeded(format!(
                "container {} ({}) does not die: a process of it is stuck in the kernel",
                container.config.name.name, container.id
            )));
        }
        failpoint::hit("stop:exited")
    }

    /// Removes a container, killing it first if it runs. An unknown one is removed.
    ///
    /// # Errors
    /// What could not be deleted; the removal goes on when it is repeated, or at the next start.
    pub async fn remove_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), Error> {
        let Some(container) = self.container(id) else {
            return Ok(());
        };
        let node = Arc::clone(self);
        let work = || async move {
            let _turn = turn_to_end(&container, Duration::ZERO).await?;
            if node.container(&container.id).is_none() {
                return Ok(());
            }
            node.end_unseen(&container, Duration::ZERO).await?;
            node.stop_running(&container, Duration::ZERO).await?;
            node.delete_container(&container).await
        };
        self.operations
            .join((Op::RemoveContainer, id.object()), work)
            .await
    }

    /// Deletes a container that does not run.
    pub(crate) async fn delete_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), Error> {
        {
            let mut state = container.lock();
            let exited = match &*state {
                State::Exited(exited) => Some(exited.clone()),
                State::Removing(exited) => exited.clone(),
                State::Created(_) | State::Running(_) | State::Unseen(_) => None,
            };
            // Drops the root file system of one that never ran.
            *state = State::Removing(exited);
        }
        // Without room for it the removal, which makes room, goes on all the same.
        if let Err(error) = self.write_container(container) {
            tracing::warn!(container.id = %container.id, %error, "removal is not on disk");
        }
        failpoint::hit("remove:begun")?;
        self.tell_removed(container).await;
        self.release(container).await;
        let (node, id) = (Arc::clone(self), container.id);
        tokio::task::spawn_blocking(move || node.delete_container_files(&id))
            .await
            .map_err(Error::at("remove the container's files"))??;
        self.forget_container(container);
        self.announce_container(EventKind::Deleted, container);
        Ok(())
    }

    /// Deletes a container's folder, its record last.
    pub(crate) fn delete_container_files(&self, id: &ContainerId) -> Result<(), Error> {
        let at = |doing: &str| format!("{doing} of container {id}");
        let dir = self.paths.container(id);
        let record = self.paths.container_record(id);
        crate::node::remove_entries_but(&dir, &record).map_err(Error::at(at("remove files")))?;
        self.delete_bundle(id)?;
        failpoint::hit("remove:files-gone")?;
        crate::node::remove_tree(&dir).map_err(Error::at(at("remove the record")))
    }
}
