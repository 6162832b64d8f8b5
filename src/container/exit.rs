//! What happens when a container's process ends.

use std::sync::Arc;

use carpel_wire::{ExitRecords, RequestBody, UNKNOWN_STATUS};

use super::start::has_own_pids;
use super::{Container, Exited, Record, Running};
use crate::error::Error;
use crate::failpoint;
use crate::node::{EventKind, Node, orphans};
use crate::spec::hooks::Point;
use crate::supervisor::{Exit, ExitWait, Lost, Supervisor};

/// Why an exit has no code.
const NOT_TOLD: &str = "its exit code is not known: the pod's supervisor had died, and this kernel does not \
    tell how a process ended that another one has reaped";

impl Node {
    /// Waits for a running container's exit, in a task of its own.
    pub(crate) fn watch_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        running: Running,
        mut exit: ExitWait,
    ) {
        let (node, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            let exit = exit.wait().await;
            // In memory of its own: the wait is as long as the container's life, and a task takes what its longest
            // part needs.
            let noted = async {
                match exit {
                    Ok(exit) => {
                        // One that was adopted is a child of ours.
                        orphans::reap(&running.pidfd);
                        node.note_exit(&container, exit, Some(&running.supervisor))
                            .await;
                    }
                    Err(Lost) => node.note_loss(&container, &running).await,
                }
            };
            Box::pin(noted).await;
        });
    }

    /// Records an exit, clears up after it and has the supervisor forget it.
    pub(crate) async fn note_exit(
        &self,
        container: &Container,
        exit: Exit,
        supervisor: Option<&Supervisor>,
    ) {
        let cgroup = self.cgroups.open(&container.cgroup);
        let oom_killed = cgroup.oom_kills().is_ok_and(|kills| kills > 0);
        if exit.dropped_lines > 0 {
            crate::metrics::lines_dropped(exit.dropped_lines);
            let (id, lines) = (container.id, exit.dropped_lines);
            tracing::warn!(container.id = %id, lines, "log lines dropped, as its log could not be written");
        }
        let exited = told(exit, oom_killed);
        // The cgroup goes with what it tells, and hooks take their time.
        self.write_exit(container, &exited);
        let _ = failpoint::hit("exit:recorded");
        self.release(container).await;
        self.run_late_hooks(container, Point::Poststop).await;
        self.finish(container, exited);
        let _ = failpoint::hit("exit:told");
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
        self.tell_stopped(container).await;
    }

    /// There is no supervisor any more, so nobody writes the container's log: it is killed.
    pub(super) async fn kill_lost(&self, container: &Container, running: &Running) {
        self.kill_cgroup(container).await;
        let status = match orphans::end(&running.pidfd).await {
            Some(status) => status,
            None if orphans::has_ended(&running.pidfd) => libc::SIGKILL,
            None => UNKNOWN_STATUS,
        };
        self.release(container).await;
        self.run_late_hooks(container, Point::Poststop).await;
        self.finish(
            container,
            Exited {
                started_at: running.started_at,
                finished_at: crate::node::now().max(running.started_at),
                exit_code: exit_code(status),
                reason: if status == UNKNOWN_STATUS {
                    "Unknown"
                } else {
                    "Error"
                }
                .to_owned(),
                dropped_log_lines: 0,
                message:
                    "the pod's supervisor died and could not be replaced, so the container was killed"
                        .to_owned(),
            },
        );
        self.tell_stopped(container).await;
    }

    pub(crate) async fn kill_cgroup(&self, container: &Container) {
        let cgroup = self.cgroups.open(&container.cgroup);
        let killed = tokio::task::spawn_blocking(move || cgroup.kill()).await;
        if let Ok(Err(error)) = killed {
            tracing::warn!(container.id = %container.id, %error, "processes may remain");
        }
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

    /// Writes down how a container has ended, whom nobody has been told yet.
    fn write_exit(&self, container: &Container, exited: &Exited) {
        if (container.set_ending(exited) || container.turns.is_behind())
            && let Err(error) = self.write_container(container)
        {
            tracing::warn!(container.id = %container.id, %error, "exit is not on disk yet");
        }
    }

    pub(crate) fn finish(&self, container: &Container, exited: Exited) {
        self.write_exit(container, &exited);
        container.set_exited(exited);
        self.announce_container(EventKind::Stopped, container);
    }

    /// Gives back what a container that does not run any more has had of the host: its cgroup, and interfaces. Missing
    /// is fine.
    pub(crate) async fn release(&self, container: &Container) {
        self.release_cgroup(container).await;
        self.return_net_devices(container).await;
    }

    /// Kills what is left in the container's cgroup and removes it.
    async fn release_cgroup(&self, container: &Container) {
        self.end_orphans(container).await;
        let cgroup = self.cgroups.open(&container.cgroup);
        let own_pids = has_own_pids(container);
        let released = tokio::task::spawn_blocking(move || {
            let kill_and_remove = || cgroup.kill().and_then(|()| cgroup.remove());
            if !own_pids {
                // Children of an init in a shared PID namespace do not die with it.
                return kill_and_remove();
            }
            match cgroup.remove() {
                // Not of that namespace, or it is not the init that ended.
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => kill_and_remove(),
                removed => removed,
            }
        });
        if let Ok(Err(error)) = released.await {
            tracing::warn!(container.id = %container.id, %error, "cgroup remains");
        }
    }

    /// Writes a container's record.
    pub(crate) fn write_container(&self, container: &Container) -> Result<(), Error> {
        let path = self.paths.container_record(&container.id);
        let latest = || container.record();
        let write = |record: &Record| self.write_record(&path, record);
        container.turns.write(latest, write)
    }
}

/// An exit as it is told.
fn told(exit: Exit, oom_killed: bool) -> Exited {
    let known = exit.wait_status != UNKNOWN_STATUS;
    let exit_code = exit_code(exit.wait_status);
    let reason = match (oom_killed, exit_code) {
        (true, _) => "OOMKilled",
        (false, _) if !known => "Unknown",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    Exited {
        started_at: exit.started_at,
        // The clock may have been set back: nothing ends before it begins.
        finished_at: exit.finished_at.max(exit.started_at),
        exit_code,
        reason: reason.to_owned(),
        dropped_log_lines: exit.dropped_lines,
        message: if known { "" } else { NOT_TOLD }.to_owned(),
    }
}

/// The code as a shell tells it: 128 + signal for a process that was killed. 255 if it is not known.
pub(crate) fn exit_code(wait_status: i32) -> i32 {
    if wait_status == UNKNOWN_STATUS {
        return 255;
    }
    match wait_status & 0x7f {
        0 => (wait_status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_before_it_begins() {
        let exit = |started_at, finished_at| Exit {
            wait_status: 3 << 8,
            started_at,
            finished_at,
            dropped_lines: 0,
        };
        let ended = told(exit(100, 200), false);
        assert_eq!((ended.started_at, ended.finished_at), (100, 200));
        assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"));
        let set_back = told(exit(100, 40), true);
        assert_eq!((set_back.started_at, set_back.finished_at), (100, 100));
        assert_eq!(set_back.reason, "OOMKilled");
    }

    #[test]
    fn codes_are_told_as_a_shell_tells_them() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(3 << 8), 3);
        assert_eq!(exit_code(255 << 8), 255);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(0x80 | 11), 139);
        assert_eq!(exit_code(UNKNOWN_STATUS), 255);
    }
}
