//! UpdateContainerResources: other limits for a container that is there.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use carpel_api::nri::Event;
use rustix::fs::{Mode, OFlags};
use tracing::Instrument;

use super::{Container, Limits, Status};
use crate::cgroup::{self, Cgroup};
use crate::error::Error;
use crate::failpoint;
use crate::ids::ContainerId;
use crate::node::Node;
use crate::nri::Wanted;
use crate::spec::config::{Ceiling, Resources};

/// Who wants other limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Client,
    Plugin,
}

/// Lays a request over the limits that a container has.
pub type Merge = Box<dyn FnOnce(&Container) -> Result<Limits, Error> + Send>;

impl Node {
    /// Changes the limits of a container: in its cgroup if it runs, else for its start. `merge` makes the
    /// new ones from those in force. When it fails all limits are as before.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if the container has exited, or memory that is to be taken away is
    /// in use; [`Error::InvalidArgument`] for a limit that this machine cannot set.
    pub async fn update_container(
        self: &Arc<Self>,
        id: &ContainerId,
        merge: Merge,
    ) -> Result<(), Error> {
        self.change(id, merge, Asker::Client).await
    }

    /// As [`Node::update_container`], for a plugin: no plugin is asked about it.
    pub(crate) async fn change_limits(
        self: &Arc<Self>,
        id: &ContainerId,
        merge: Merge,
    ) -> Result<(), Error> {
        self.change(id, merge, Asker::Plugin).await
    }

    async fn change(
        self: &Arc<Self>,
        id: &ContainerId,
        merge: Merge,
        asker: Asker,
    ) -> Result<(), Error> {
        let container = self.require_container(id)?;
        let node = Arc::clone(self);
        // A task of its own: the request may be cancelled, the change is not left half made.
        let update = async move {
            let turn = container.turn.lock().await;
            let wanted = node.update_in_turn(&container, merge, asker).await?;
            // What plugins want of others is done without keeping this one's turn, for which those may wait.
            drop(turn);
            node.nri.carry_out(wanted).await;
            if asker == Asker::Client {
                let told = node.tell_of_container(Event::PostUpdateContainer, &container);
                if let Err(error) = told.await {
                    tracing::warn!(container.id = %container.id, %error, "update of a container");
                }
            }
            Ok(())
        };
        let update = tokio::spawn(update.in_current_span());
        update.await.map_err(Error::at("update the container"))?
    }

    async fn update_in_turn(
        &self,
        container: &Arc<Container>,
        merge: Merge,
        asker: Asker,
    ) -> Result<Wanted, Error> {
        let runs = match container.status() {
            Status::Created => false,
            Status::Running(_) | Status::Unseen => true,
            Status::Exited(_) => return Err(not_running(container)),
            Status::Removing(_) => {
                return Err(Error::NotFound {
                    kind: "container",
                    id: container.id.to_string(),
                });
            }
        };
        let limits = merge(container)?;
        let (limits, wanted) = match asker {
            Asker::Client => self.ask_about_limits(container, limits).await?,
            Asker::Plugin => (limits, Wanted::default()),
        };
        let before = container.limits();
        if runs {
            self.set_limits(container, &limits.resources).await?;
        }
        container.set_limits(limits);
        // The kernel first: if the daemon dies between, nobody was told that it is done, and the request
        // is repeated.
        let recorded = failpoint::hit("update:set").and_then(|()| self.write_container(container));
        if let Err(error) = recorded {
            if runs {
                let undone = self.set_limits(container, &before.resources).await;
                undone.unwrap_or_else(|error| {
                    tracing::warn!(container.id = %container.id, %error, "limits remain changed");
                });
            }
            container.set_limits(before);
            return Err(error);
        }
        Ok(wanted)
    }

    /// Sets the limits of a running container.
    async fn set_limits(
        &self,
        container: &Arc<Container>,
        resources: &Resources,
    ) -> Result<(), Error> {
        let cgroup = self.cgroups.open(&container.cgroup);
        let resources = self.with_defaults(resources);
        let adjust = (resources.oom_score_adj != container.limits().resources.oom_score_adj)
            .then_some(resources.oom_score_adj);
        let set = tokio::task::spawn_blocking(move || {
            cgroup.update(&resources)?;
            if let Some(score) = adjust {
                adjust_oom_scores(&cgroup, score);
            }
            Ok(())
        });
        match set.await.map_err(Error::at("set limits"))? {
            Err(error) if cgroup::Error::is_gone(&error) => Err(not_running(container)),
            result => result.map_err(|error| {
                of_cgroup(
                    format!("update the limits of container {}", container.id),
                    error,
                )
            }),
        }
    }

    /// An update before the start may have changed the score, which the Plan sets as it was created.
    pub(super) async fn adjust_started(&self, container: &Container) {
        let score = container.limits().resources.oom_score_adj;
        if score != container.config.resources.oom_score_adj {
            let cgroup = self.cgroups.open(&container.cgroup);
            let _ = tokio::task::spawn_blocking(move || adjust_oom_scores(&cgroup, score)).await;
        }
    }

    /// What a request leaves open is as the node's configuration says.
    pub(crate) fn with_defaults(&self, resources: &Resources) -> Resources {
        let mut resources = resources.clone();
        let default = self.settings.pids_limit.map(Ceiling::At);
        resources.pids_limit = resources.pids_limit.or(default);
        resources
    }
}

fn not_running(container: &Container) -> Error {
    Error::FailedPrecondition(format!(
        "container {} ({}) has exited: its limits cannot be changed",
        container.config.name.name, container.id
    ))
}

/// An error of a cgroup, told as what the caller can do about it.
pub(super) fn of_cgroup(doing: String, error: cgroup::Error) -> Error {
    let text = format!("{doing}: {}", crate::error::chain(&error));
    match error {
        cgroup::Error::InUse { .. } => Error::FailedPrecondition(text),
        error if error.is_invalid() => Error::InvalidArgument(text),
        error => Error::wrap(doing, error),
    }
}

/// Sets the score of every process in a cgroup. One that is forked meanwhile has its parent's. What the
/// daemon may not lower (without CAP_SYS_RESOURCE) stays.
fn adjust_oom_scores(cgroup: &Cgroup, score: i32) {
    let open = |pid: u32| -> Option<(u32, OwnedFd)> {
        let path = format!("/proc/{pid}/oom_score_adj");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Some((pid, rustix::fs::open(path, flags, Mode::empty()).ok()?))
    };
    let files: Vec<_> = cgroup
        .pids()
        .unwrap_or_default()
        .into_iter()
        .filter_map(open)
        .collect();
    // A file stays that of its process: who is in the cgroup now was in it when the file was opened,
    // and its number has not gone to another.
    let still = cgroup.pids().unwrap_or_default();
    for (_, file) in files.iter().filter(|(pid, _)| still.contains(pid)) {
        let _ = rustix::io::write(file, score.to_string().as_bytes());
    }
}
