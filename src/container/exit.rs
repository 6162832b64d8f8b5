//! What happens when a container's process ends.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use carpel_wire::{ExitRecords, RequestBody};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::start::has_own_pids;
use super::{Container, Exited, Running};
use crate::error::Error;
use crate::node::{EventKind, Node};
use crate::supervisor::{Exit, ExitWait, Lost, Supervisor};

/// How long a killed process may take to die before its exit is reported without a code.
const DEATH: Duration = Duration::from_secs(5);

impl Node {
    /// Waits for a running container's exit, in a task of its own.
    pub(crate) fn watch_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        running: Running,
        mut exit: ExitWait,
        supervisor: Supervisor,
    ) {
        let (node, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            match exit.wait().await {
                Ok(exit) => node.note_exit(&container, exit, Some(&supervisor)).await,
                Err(Lost) => node.note_loss(&container, &running).await,
            }
        });
    }

    /// Records an exit, clears up after it and has the supervisor forget it.
    pub(crate) async fn note_exit(
        &self,
        container: &Container,
        exit: Exit,
        supervisor: Option<&Supervisor>,
    ) {
        let oom_killed = self.release_cgroup(container).await;
        let exit_code = exit_code(exit.wait_status);
        if exit.dropped_lines > 0 {
            crate::metrics::lines_dropped(exit.dropped_lines);
            let (id, lines) = (container.id, exit.dropped_lines);
            tracing::warn!(container.id = %id, lines, "log lines dropped, as its log could not be written");
        }
        let reason = match (oom_killed, exit_code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        self.finish(
            container,
            Exited {
                started_at: exit.started_at,
                finished_at: exit.finished_at,
                exit_code,
                reason: reason.to_owned(),
                dropped_log_lines: exit.dropped_lines,
                message: String::new(),
            },
        );
        if let Some(supervisor) = supervisor {
            // It forgets by itself when it ends.
            let _ = supervisor
                .request(
                    RequestBody::Forget {
                        id: container.id.object(),
                    },
                    &[],
                )
                .await;
        }
    }

    /// The supervisor has died, and nobody writes the container's log any more: it is killed. Its code
    /// comes from what the supervisor wrote down, or from the kernel, as we are the subreaper.
    async fn note_loss(&self, container: &Container, running: &Running) {
        if let Some(exit) = self.exit_on_file(container) {
            return self.note_exit(container, exit, None).await;
        }
        let cgroup = self.cgroups.open(&container.cgroup);
        let _ = tokio::task::spawn_blocking(move || cgroup.kill()).await;
        let pidfd = Arc::clone(&running.pidfd);
        let reaped = tokio::task::spawn_blocking(move || reap(&pidfd))
            .await
            .ok()
            .flatten();
        self.release_cgroup(container).await;
        self.finish(
            container,
            Exited {
                started_at: running.started_at,
                finished_at: crate::node::now(),
                exit_code: reaped.unwrap_or(255),
                reason: if reaped.is_some() { "Error" } else { "Unknown" }.to_owned(),
                dropped_log_lines: 0,
                message: "the pod's supervisor died, so the container was killed".to_owned(),
            },
        );
    }

    /// The exit that the supervisor wrote down, if it did.
    pub(crate) fn exit_on_file(&self, container: &Container) -> Option<Exit> {
        let bytes = std::fs::read(self.paths.exits(&container.sandbox)).ok()?;
        let id = container.id.object();
        ExitRecords(&bytes)
            .filter(|record| record.id == id)
            .last()
            .map(Exit::from)
    }

    pub(crate) fn finish(&self, container: &Container, exited: Exited) {
        container.set_exited(exited);
        if let Err(error) = self.write_container(container) {
            tracing::warn!(container.id = %container.id, %error, "exit is not on disk yet");
        }
        self.announce_container(EventKind::Stopped, container);
    }

    /// Kills what is left in the container's cgroup and removes it. Returns whether the kernel had killed
    /// for memory in it. Missing is fine.
    pub(crate) async fn release_cgroup(&self, container: &Container) -> bool {
        let cgroup = self.cgroups.open(&container.cgroup);
        let own_pids = has_own_pids(container);
        let released = tokio::task::spawn_blocking(move || {
            let oom_killed = cgroup.oom_kills().is_ok_and(|kills| kills > 0);
            // Children of an init in a shared PID namespace do not die with it.
            let killed = if own_pids { Ok(()) } else { cgroup.kill() };
            (oom_killed, killed.and_then(|()| cgroup.remove()))
        });
        match released.await {
            Ok((oom_killed, Ok(()))) => oom_killed,
            Ok((oom_killed, Err(error))) => {
                tracing::warn!(container.id = %container.id, %error, "cgroup remains");
                oom_killed
            }
            Err(_) => false,
        }
    }

    /// Writes a container's record.
    pub(crate) fn write_container(&self, container: &Container) -> Result<(), Error> {
        self.write_record(
            &self.paths.container_record(&container.id),
            &container.record(),
        )
    }
}

/// The code as a shell tells it: 128 + signal for a process that was killed.
pub(crate) fn exit_code(wait_status: i32) -> i32 {
    match wait_status & 0x7f {
        0 => (wait_status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

/// Waits for an orphan of a supervisor, which is our child if this daemon started that supervisor.
fn reap(pidfd: &impl AsFd) -> Option<i32> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: DEATH.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&limit))
        .ok()
        .filter(|ready| *ready > 0)?;
    let status = waitid(
        WaitId::PidFd(pidfd.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    )
    .ok()??;
    if let Some(code) = status.exit_status() {
        return Some(code);
    }
    status.terminating_signal().map(|signal| 128 + signal)
}

#[cfg(test)]
mod tests {
    use super::exit_code;

    #[test]
    fn codes_are_told_as_a_shell_tells_them() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(255 << 8), 255);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(0x80 | 11), 139);
    }
}
