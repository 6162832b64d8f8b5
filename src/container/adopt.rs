//! Containers whose supervisor has died go on with another.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use carpel_wire::{Adopt, PidNamespace, RequestBody};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Container, Running, log};
use crate::error::Error;
use crate::ids::SandboxId;
use crate::node::{Node, orphans};
use crate::supervisor::{ExitWait, Supervisor};

/// A container that a supervisor has adopted.
pub(crate) struct Adopted {
    container: Arc<Container>,
    exit: ExitWait,
}

impl Node {
    fn running_of(&self, sandbox: &SandboxId) -> Vec<(Arc<Container>, Running)> {
        let containers = self.containers_of(sandbox).into_iter();
        containers
            .filter_map(|container| {
                let running = container.running()?;
                Some((container, running))
            })
            .collect()
    }

    /// Hands every running container of a sandbox over.
    ///
    /// # Errors
    /// The first that is not taken: then the supervisor is of no use.
    pub(crate) async fn adopt_containers(
        &self,
        sandbox: &SandboxId,
        supervisor: &Supervisor,
    ) -> Result<Vec<Adopted>, Error> {
        let mut adopted = Vec::new();
        for (container, running) in self.running_of(sandbox) {
            // Who waits for it finds its exit there, too.
            if self.exit_on_file(&container).is_some() {
                continue;
            }
            let exit = adopt(&container, &running, supervisor).await?;
            adopted.push(Adopted { container, exit });
        }
        Ok(adopted)
    }

    /// Waits for the exit of an adopted container from now on.
    pub(crate) fn go_on(self: &Arc<Self>, adopted: Adopted, supervisor: &Supervisor) {
        let Adopted {
            container,
            mut exit,
        } = adopted;
        if let Some(running) = container.set_supervisor(supervisor) {
            return self.watch_container(&container, running, exit);
        }
        // Its exit was known already: all that is left of it is with the supervisor.
        let (supervisor, id) = (supervisor.clone(), container.id.object());
        tokio::spawn(async move {
            if exit.wait().await.is_ok() {
                let forget = RequestBody::Forget { id };
                let _ = supervisor.request(forget, &[]).await;
            }
        });
    }

    /// The supervisor of a running container has died. The next one adopts it with the others of the
    /// pod; or here, if it was only just started; or there is none, and it is killed.
    pub(crate) async fn note_loss(self: &Arc<Self>, container: &Arc<Container>, running: &Running) {
        let lost = &running.supervisor;
        let next = match self.sandbox(&container.sandbox) {
            Some(sandbox) => sandbox.supervisor_after(lost).await,
            None => None,
        };
        let taken = |running: Running| !running.supervisor.is(lost);
        if container.running().is_none_or(taken) {
            return;
        }
        if let Some(exit) = self.exit_on_file(container) {
            return self.note_exit(container, exit, None).await;
        }
        if let Some(next) = next {
            match adopt(container, running, &next).await {
                Ok(exit) => {
                    let container = Arc::clone(container);
                    return self.go_on(Adopted { container, exit }, &next);
                }
                Err(error) => tracing::error!(container.id = %container.id, %error, "not adopted"),
            }
        }
        self.kill_lost(container, running).await;
    }

    /// Kills what a dead supervisor was starting in running containers, and the commands that ran there:
    /// now children of the daemon, whom nobody knows.
    pub(crate) async fn end_strays(&self, sandbox: &SandboxId) {
        let running = self.running_of(sandbox);
        let known: HashSet<u32> = running.iter().map(|(_, running)| running.pid).collect();
        for (container, _) in running {
            // Among the host's processes its own orphans are the daemon's children too.
            if container.pid_namespace != PidNamespace::Host {
                self.end_children(&container, &known).await;
            }
        }
    }

    /// After the exit of a container that runs among the host's processes: kills and reaps those of it that
    /// have become the daemon's children, as its first process may have been when it was adopted.
    pub(super) async fn end_orphans(&self, container: &Container) {
        // Those whose parents are killed come next.
        const GENERATIONS: usize = 16;
        if container.pid_namespace != PidNamespace::Host {
            return;
        }
        for _ in 0..GENERATIONS {
            if !self.end_children(container, &HashSet::new()).await {
                return;
            }
        }
    }

    /// Ends the daemon's own children in a container's cgroup but the `known`. Whether there were any.
    async fn end_children(&self, container: &Container, known: &HashSet<u32>) -> bool {
        let mut found = false;
        let pids = self.cgroups.open(&container.cgroup).pids();
        for pid in pids.unwrap_or_default() {
            let Some(pid) = Pid::from_raw(pid.cast_signed()).filter(|_| !known.contains(&pid))
            else {
                continue;
            };
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
                && orphans::is_child(pid)
            {
                orphans::end(&pidfd).await;
                found = true;
            }
        }
        found
    }

    /// Cuts off lines that a supervisor was killed in the midst of.
    pub(crate) async fn mend_logs(&self, sandbox: &SandboxId) {
        let running = self.running_of(sandbox);
        let mend = move || {
            for (container, running) in running {
                if let Some(log) = running.kept.log()
                    && let Err(error) = log::mend(&log)
                {
                    tracing::warn!(container.id = %container.id, %error, "log may end within a line");
                }
            }
        };
        let _ = tokio::task::spawn_blocking(mend).await;
    }
}

async fn adopt(
    container: &Container,
    running: &Running,
    supervisor: &Supervisor,
) -> Result<ExitWait, Error> {
    let (stdin, log) = (running.kept.stdin(), running.kept.log());
    let stdin: Option<BorrowedFd<'_>> = stdin.as_deref().map(AsFd::as_fd);
    let log: Option<BorrowedFd<'_>> = log.as_deref().map(AsFd::as_fd);
    let (held, fds) = running.kept.hand_over(running.pidfd.as_fd(), stdin, log);
    let message = Adopt {
        id: container.id.object(),
        pid: running.pid,
        started_at: running.started_at,
        held,
    };
    let adopted = supervisor.adopt(message, &fds).await;
    adopted.map_err(Error::at(format!("hand over container {}", container.id)))
}
