//! What is left of pods and containers whose records cannot be read: nobody knows how they were meant, so
//! they are ended, and what they held is released. Their records stay in quarantine, for a person to read.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carpel_wire::{RequestBody, SignalScope};
use futures::future::try_join_all;

use super::silent::PATIENCE;
use super::{Node, report};
use crate::cgroup::Cgroups;
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::network::netns::unpin;
use crate::sandbox::Sandbox;
use crate::supervisor::{self, Listed, Supervisor};

/// How long killed processes, and a supervisor that is asked to end, may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

impl Node {
    /// Ends a pod of which only the id is known: its processes, its supervisor and its files. Its network, which a
    /// plugin may take long for, has no owner from then on, and is released as such.
    pub(super) async fn release_unreadable_sandbox(&self, id: &SandboxId) {
        let state = self.paths.pod_state(id);
        let connected = match Supervisor::connect(&state, PATIENCE).await {
            Err(supervisor::Error::Gone) => None,
            Ok(supervisor) => Some(supervisor),
            Err(error) => {
                // The next start finds it by its state folder.
                tracing::warn!(sandbox.id = %id, %error, "sandbox without a record is not ended");
                return;
            }
        };
        if let Some(supervisor) = connected {
            let cgroup = own_cgroup(supervisor.pid(), id);
            let listed = supervisor.list().await.unwrap_or_default();
            end_processes(&supervisor, listed.into_iter()).await;
            let ended = async {
                let _ = supervisor.request(RequestBody::Shutdown, &[]).await;
                supervisor.gone().await;
            };
            if tokio::time::timeout(DEATH, ended).await.is_err() {
                tracing::warn!(sandbox.id = %id, "supervisor of a sandbox without a record does not end");
            }
            if let Some(cgroup) = cgroup {
                self.end_cgroup(cgroup).await;
            }
        }
        let (dir, record) = (self.paths.sandbox(id), self.paths.sandbox_record(id));
        for removed in [super::remove_tree(&state), remove_but_record(&dir, &record)] {
            report(
                &format!("files of sandbox {id}"),
                removed.map_err(Error::at("remove")),
            );
        }
    }

    /// Those of the pins that carpel made for sandboxes which are not there any more.
    pub(super) fn unowned_pins(&self, mut pins: HashSet<PathBuf>) -> HashSet<PathBuf> {
        pins.retain(|pin| {
            let id = self.paths.pinned(pin);
            id.is_some_and(|id| self.sandbox(&id).is_none())
        });
        pins
    }

    /// Ends a container that has no sandbox: it was half made or half removed, or the sandbox's record could
    /// not be read. Without a record of its own (`cgroup`) there are only its files.
    pub(super) async fn release_ownerless_container(
        self: &Arc<Self>,
        id: ContainerId,
        owner: Option<(SandboxId, String)>,
    ) {
        let is_read = owner.is_some();
        if let Some((sandbox, cgroup)) = owner {
            let beside = cgroup.rsplit_once('/').map_or("", |(parent, _)| parent);
            let beside = Cgroups::path(beside, &sandbox.to_string());
            self.end_cgroup(cgroup).await;
            self.end_cgroup(beside).await;
        }
        let node = Arc::clone(self);
        let deleted = tokio::task::spawn_blocking(move || {
            if !is_read {
                let (dir, record) = (node.paths.container(&id), node.paths.container_record(&id));
                remove_but_record(&dir, &record).map_err(Error::at("its folder"))?;
            }
            node.delete_container_files(&id)
        })
        .await;
        report(
            &format!("files of container {id}"),
            deleted
                .map_err(Error::at("remove"))
                .and_then(|deleted| deleted),
        );
    }

    /// Ends what a pod's supervisor has and no record tells of: commands whose client died with the daemon,
    /// and containers whose record is gone.
    pub(super) async fn end_unknown_processes(
        &self,
        sandbox: &Sandbox,
        supervisor: &Supervisor,
        listed: impl Iterator<Item = Listed>,
    ) {
        let listed: Vec<_> = listed.collect();
        let containers = listed.iter().filter(|listed| listed.entry.init);
        let cgroups: Vec<_> = containers
            .map(|listed| {
                let id = ContainerId::from(listed.entry.id);
                self.cgroup_path(sandbox.config.cgroup_parent.as_deref(), &id.to_string())
            })
            .collect();
        end_processes(supervisor, listed.into_iter()).await;
        for cgroup in cgroups {
            self.end_cgroup(cgroup).await;
        }
    }

    /// Kills what is in a cgroup and removes it. Missing is fine.
    pub(super) async fn end_cgroup(&self, path: String) {
        let cgroup = self.cgroups.open(&path);
        let ended = tokio::task::spawn_blocking(move || {
            cgroup.kill()?;
            cgroup.remove()
        });
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "cgroup {path} remains");
        }
    }
}

/// Takes pins away whose namespaces no process is in. The others may be those of another daemon on this machine.
pub(super) fn release_pins(pins: &HashSet<PathBuf>) {
    if pins.is_empty() {
        return;
    }
    let namespace = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let used: HashSet<_> = processes
        .filter_map(|process| namespace(&process.path().join("ns/net")).ok())
        .collect();
    for pin in pins {
        let what = format!("network namespace {} without a record", pin.display());
        match namespace(pin) {
            Ok(namespace) if used.contains(&namespace) => {
                tracing::warn!("{what} is in use, and stays");
            }
            _ => report(&what, unpin(pin).map_err(Error::at("release"))),
        }
    }
}

/// Removes a folder. A record in it that could not be put aside stays, and the folder with it.
fn remove_but_record(dir: &Path, record: &Path) -> io::Result<()> {
    super::remove_entries_but(dir, record)?;
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Kills processes that a supervisor looks after, waits until they are reaped, and has them forgotten.
async fn end_processes(supervisor: &Supervisor, listed: impl Iterator<Item = Listed>) {
    let ends = listed.map(
        |Listed {
             entry, mut exit, ..
         }| async move {
            if entry.exited.is_none() {
                let scope = if entry.init {
                    SignalScope::Process
                } else {
                    SignalScope::Group
                };
                supervisor.signal(entry.id, libc::SIGKILL, scope).await?;
                let _ = exit.wait().await;
            }
            let forget = RequestBody::Forget { id: entry.id };
            supervisor.request(forget, &[]).await.map(drop)
        },
    );
    match tokio::time::timeout(DEATH, try_join_all(ends)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(?supervisor, %error, "unknown processes remain"),
        Err(_) => tracing::warn!(?supervisor, "unknown processes do not die"),
    }
}

/// The cgroup named by the sandbox's id that its supervisor is in, if it has one in any hierarchy.
fn own_cgroup(pid: u32, id: &SandboxId) -> Option<String> {
    let joined = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let name = id.to_string();
    joined
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find(|path| path.rsplit('/').next() == Some(&name))
        .map(str::to_owned)
}
