//! What a new daemon does before it serves: find out what is there, finish what was half done, release
//! what nobody owns.
//!
//! ```text
//! read the records ─▶ reconnect to the supervisors ─▶ merge what they say with the exits they wrote
//!                  ─▶ go on with half-done removals ─▶ serve, undo half-made pods and release the rest
//! ```
//!
//! Nothing here ends the daemon because of one object: what is damaged is quarantined, what cannot be
//! undone is reported and tried again when it is asked for. But what this daemon cannot read or reach now, for want
//! of descriptors or of a disk that answers, may be sound: it is left as it is, and the start fails, to be tried again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use carpel_api::nri;
use carpel_wire::{ObjectId, UNKNOWN_STATUS};
use futures::future::join_all;
use serde::de::DeserializeOwned;

use super::silent::{Met, PATIENCE};
use super::unreadable::release_pins;
use super::{Node, Parts};
use crate::container::{self, Container, Exited, Kept, Limits, Prepared, Running};
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::network::{Attachment, netns};
use crate::sandbox::{self, Live, Phase, PodLimits, Sandbox};
use crate::spec::config::{ContainerConfig, Resources, SandboxConfig, Scope};
use crate::spec::hooks::Point;
use crate::spec::plan;
use crate::stats::Walker;
use crate::store::record::{self, ReadError};
use crate::supervisor::{self, Exit, Listed, Supervisor};

/// A pod's overhead, and the resources that it has as a whole.
pub type PodResources = (Option<Resources>, Option<Resources>);

/// How a record's verbatim request becomes a checked configuration again: `cri/` knows.
#[derive(Clone, Copy)]
pub struct Decode {
    pub sandbox: fn(&[u8], &str) -> Result<SandboxConfig, Error>,
    pub container: fn(&[u8]) -> Result<ContainerConfig, Error>,
    /// Of limits that were changed.
    pub resources: fn(&[u8]) -> Result<Resources, Error>,
    /// What plugins want, laid over what was asked for last (or else when the container was created): the limits, and
    /// the message that asks for them. Then their score, if they say one, and whether the node has cgroup v2.
    pub amend: Amend,
    /// What a pod is to have: overhead and resources, by its request and what was changed since.
    pub pod_resources: fn(&[u8], &PodLimits) -> Result<PodResources, Error>,
    /// Kernel settings that plugins want, of a pod with such a network and IPC namespace.
    pub sysctls: fn(Sysctls, Scope, Scope) -> Result<Sysctls, Error>,
}
type Amend = fn(
    Option<&[u8]>,
    &[u8],
    &nri::LinuxResources,
    Option<i64>,
    bool,
) -> Result<(Resources, Vec<u8>), Error>;

type Sysctls = BTreeMap<String, String>;

impl Node {
    /// Takes over what earlier daemons left, and returns a node that can serve.
    ///
    /// # Errors
    /// If the folders or what is in them cannot be made or read, or a supervisor that lives cannot be talked to.
    pub async fn open(parts: Parts, decode: Decode) -> Result<Arc<Self>, Error> {
        parts
            .paths
            .make()
            .map_err(Error::at("make the daemon's folders"))?;
        let (walker, asked) = Walker::new();
        let node = Arc::new(Self::new(parts, walker, decode));
        let sandboxes = node.load_sandboxes(decode).await?;
        for id in ids_in::<SandboxId>(&node.paths.pod_states())? {
            if node.sandbox(&id).is_none() {
                tracing::warn!(sandbox.id = %id, "sandbox without a record is ended");
                node.release_unreadable_sandbox(&id).await;
            }
        }
        node.load_containers(decode).await?;
        let pins = node.pins()?;
        let (half_made, sandboxes): (Vec<_>, Vec<_>) = sandboxes
            .into_iter()
            .partition(|(_, phase)| *phase == Phase::Making);
        let recovered = sandboxes.into_iter().map(|(sandbox, phase)| {
            let connected = sandbox.netns.as_ref().is_none_or(|pin| pins.contains(pin));
            node.recover_sandbox(sandbox, phase, connected)
        });
        join_all(recovered)
            .await
            .into_iter()
            .collect::<Result<(), Error>>()?;
        node.finish_removals().await;
        node.collect_layers();
        let unowned = node.unowned_pins(pins);
        let networks = node.release_unowned();
        let half_made = half_made.into_iter().map(|(sandbox, _)| sandbox);
        let mut undone = node.undo_half_made(half_made).await;
        tokio::spawn(async move {
            // The plugins' own collection wants a moment without any DEL: it comes last.
            while let Some(ended) = undone.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "undo of a half-made sandbox");
                }
            }
            networks.await;
            let _ = tokio::task::spawn_blocking(move || release_pins(&unowned)).await;
        });
        asked
            .serve(&node)
            .map_err(Error::at("start the thread that measures writable layers"))?;
        Ok(node)
    }

    /// The names under which network namespaces are there.
    fn pins(&self) -> Result<HashSet<PathBuf>, Error> {
        let dir = &self.paths.netns;
        let pins = netns::list(dir).map_err(Error::at(format!("read {}", dir.display())))?;
        let live = pins.into_iter().filter(|pin| pin.live);
        Ok(live.map(|pin| pin.path).collect())
    }

    async fn load_sandboxes(&self, decode: Decode) -> Result<Vec<(Arc<Sandbox>, Phase)>, Error> {
        let mut loaded = Vec::new();
        for id in ids_in::<SandboxId>(&self.paths.sandboxes())? {
            let path = self.paths.sandbox_record(&id);
            let Some(record) = self.read_record::<sandbox::Record>(&path)? else {
                self.release_unreadable_sandbox(&id).await;
                continue;
            };
            match (decode.sandbox)(&record.request, &record.runtime_handler) {
                Ok(config) => {
                    let netns = self.paths.netns(&id);
                    let state = match record.phase {
                        Phase::Making => sandbox::State::Making,
                        _ => sandbox::State::Stopping {
                            supervisor: None,
                            attachment: record.attachment.clone(),
                            requested: false,
                        },
                    };
                    let sandbox = Arc::new(Sandbox::new(&record, config, netns, state));
                    self.insert_sandbox(&sandbox);
                    loaded.push((sandbox, record.phase));
                }
                Err(error) => {
                    tracing::error!(sandbox.id = %id, %error, "record of another version, quarantined");
                    self.quarantine(&path);
                    self.release_unreadable_sandbox(&id).await;
                }
            }
        }
        Ok(loaded)
    }

    async fn load_containers(self: &Arc<Self>, decode: Decode) -> Result<(), Error> {
        for id in ids_in::<ContainerId>(&self.paths.containers())? {
            let path = self.paths.container_record(&id);
            let record = self.read_record::<container::Record>(&path)?;
            let record = match record {
                Some(record) if self.sandbox(&record.sandbox).is_some() => record,
                ownerless => {
                    let owner = ownerless.map(|record| (record.sandbox, record.cgroup));
                    self.release_ownerless_container(id, owner).await;
                    continue;
                }
            };
            let config = (decode.container)(&record.request);
            let limits = changed_limits(&record, decode);
            let compiled = plan::compile_container(&record.source, &self.host)
                .map_err(|error| Error::Internal(crate::error::chain(&error)));
            match config.and_then(|config| Ok((config, compiled?, limits?))) {
                Ok((config, compiled, limits)) => {
                    let pid_namespace = compiled.pid_namespace;
                    let state = match (&record.exited, record.removing) {
                        (exited, true) => container::State::Removing(exited.clone()),
                        (Some(exited), false) => container::State::Exited(exited.clone()),
                        (None, false) => container::State::Created(Prepared {
                            rootfs: None,
                            compiled: Arc::new(compiled),
                        }),
                    };
                    let container = Container::new(record, config, pid_namespace, state);
                    if let Some(limits) = limits {
                        container.set_limits(limits);
                    }
                    self.insert_container(&Arc::new(container));
                }
                Err(error) => {
                    tracing::error!(container.id = %id, %error, "record of another version, quarantined");
                    self.quarantine(&path);
                    self.release_ownerless_container(id, None).await;
                }
            }
        }
        Ok(())
    }

    /// Brings one sandbox and its containers to the state that they are really in.
    async fn recover_sandbox(
        self: &Arc<Self>,
        sandbox: Arc<Sandbox>,
        phase: Phase,
        connected: bool,
    ) -> Result<(), Error> {
        let _turn = sandbox.turn.lock().await;
        let attachment = match &*sandbox.lock() {
            sandbox::State::Stopping { attachment, .. } => attachment.clone(),
            _ => None,
        };
        match phase {
            // It is undone beside the requests.
            Phase::Making => {}
            // Without a network somebody has broken it.
            Phase::Ready => return self.meet(&sandbox, attachment, connected).await,
            Phase::Stopping => {
                let reconnected = self.reconnect(&sandbox);
                let reconnected = tokio::time::timeout(PATIENCE, reconnected).await;
                let met = match reconnected.unwrap_or(Err(supervisor::Error::Silent)) {
                    Ok(met) => met,
                    Err(error) => {
                        // Its stop goes on without.
                        tracing::warn!(sandbox.id = %sandbox.id, %error, "sandbox is to be stopped");
                        None
                    }
                };
                self.take_apart(&sandbox, attachment, met, true).await;
            }
            Phase::Stopped => {
                self.merge_lost(&sandbox).await;
                sandbox.set_state(sandbox::State::Stopped { attachment });
            }
            Phase::Removing => {
                self.merge_lost(&sandbox).await;
                sandbox.set_state(sandbox::State::Removing);
            }
        }
        Ok(())
    }

    /// A sandbox that is ready by its record, and what its supervisor says: `None` if there is none.
    pub(super) async fn settle(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        attachment: Option<Attachment>,
        connected: bool,
        met: Option<Met>,
    ) {
        let (supervisor, entries) = match met {
            Some(met) if connected => met,
            met => return self.take_apart(sandbox, attachment, met, false).await,
        };
        let user_namespace = sandbox::user::of(&sandbox.config, &supervisor);
        let user_namespace = user_namespace.unwrap_or_else(|error| {
            tracing::error!(sandbox.id = %sandbox.id, pod = sandbox.pod(), %error, "user namespace is not found: nothing can be started in the pod");
            None
        });
        let live = Live {
            supervisor: supervisor.clone(),
            attachment,
            user_namespace,
        };
        sandbox.set_state(sandbox::State::Ready(live));
        self.watch_supervisor(sandbox, supervisor.clone());
        self.merge_living(sandbox, &supervisor, entries).await;
    }

    /// A sandbox that is not ready, and what its supervisor says.
    async fn take_apart(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        attachment: Option<Attachment>,
        met: Option<Met>,
        requested: bool,
    ) {
        let supervisor = met.as_ref().map(|(one, _)| one.clone());
        match met {
            Some((one, entries)) => self.merge_living(sandbox, &one, entries).await,
            None => self.merge_lost(sandbox).await,
        }
        sandbox.set_state(sandbox::State::Stopping {
            supervisor,
            attachment,
            requested,
        });
    }

    /// The supervisor lives: its word counts.
    async fn merge_living(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        supervisor: &Supervisor,
        mut entries: HashMap<ObjectId, Listed>,
    ) {
        for container in self.containers_of(&sandbox.id) {
            if !has_not_ended(&container) {
                // Its end is on record, and counts: what the supervisor has yet is forgotten with the rest.
                if entries.contains_key(&container.id.object()) {
                    self.run_late_hooks(&container, Point::Poststop).await;
                }
                continue;
            }
            match entries.remove(&container.id.object()) {
                Some(Listed { entry, fds, exit }) => {
                    let (pidfd, kept) = Kept::new(&entry.held, fds);
                    if let Some(pidfd) = pidfd.filter(|_| entry.exited.is_none()) {
                        let running = Running {
                            pid: entry.pid,
                            started_at: entry.started_at,
                            pidfd: Arc::new(pidfd),
                            supervisor: supervisor.clone(),
                            kept: Arc::new(kept),
                        };
                        *container.lock() = container::State::Running(running.clone());
                        self.watch_container(&container, running, exit);
                        continue;
                    }
                    let unknown = (UNKNOWN_STATUS, super::now());
                    let (wait_status, finished_at) = entry.exited.unwrap_or(unknown);
                    let exit = Exit {
                        wait_status,
                        started_at: entry.started_at,
                        finished_at,
                        dropped_lines: entry.dropped_lines,
                    };
                    self.note_exit(&container, exit, Some(supervisor)).await;
                }
                // On file but no longer in the table: forgotten just before the daemon died.
                None => {
                    if let Some(exit) = self.exit_on_file(&container) {
                        self.note_exit(&container, exit, None).await;
                    } else if self.has_processes(&container) {
                        // Its supervisor was replaced just when it was started and this daemon's forerunner
                        // died: nobody reads its output.
                        self.end_lost(&container, "the pod's supervisor died with carpel")
                            .await;
                    } else {
                        container.set_not_started();
                    }
                }
            }
        }
        self.end_unknown_processes(sandbox, supervisor, entries.into_values())
            .await;
    }

    /// The supervisor is gone: what it wrote down counts; everything else of the pod is dead or dies now.
    async fn merge_lost(&self, sandbox: &Sandbox) {
        for container in self.containers_of(&sandbox.id) {
            if !has_not_ended(&container) {
                if self.has_processes(&container) {
                    // On record, but what it left was not cleared up.
                    self.kill_cgroup(&container).await;
                    self.release(&container).await;
                }
                continue;
            }
            if let Some(exit) = self.exit_on_file(&container) {
                self.note_exit(&container, exit, None).await;
                continue;
            }
            if self.was_never_started(&container) {
                continue;
            }
            let what = "the pod's supervisor was gone when carpel started";
            self.end_lost(&container, what).await;
        }
    }

    /// Whether there is no trace of a start: its cgroup, which a reboot takes, and its log, which stays.
    fn was_never_started(&self, container: &Container) -> bool {
        let gone = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let cgroup = self.cgroups.open(&container.cgroup);
        let log = container.log_path.as_ref();
        cgroup.oom_kills().is_err_and(gone)
            && log.is_some_and(|log| log.symlink_metadata().is_err_and(gone))
    }

    pub(crate) fn has_processes(&self, container: &Container) -> bool {
        let pids = self.cgroups.open(&container.cgroup).pids();
        pids.is_ok_and(|pids| !pids.is_empty())
    }

    /// Ends a container that nobody can look after: the ends of its pipes died with supervisor and daemon.
    async fn end_lost(&self, container: &Container, what: &str) {
        let alive = self.has_processes(container);
        self.kill_cgroup(container).await;
        self.note_lost(container, what, alive).await;
    }

    /// As [`Node::end_lost`], of one that was `alive` and has been killed, or was not.
    pub(crate) async fn note_lost(&self, container: &Container, what: &str, alive: bool) {
        self.release(container).await;
        self.run_late_hooks(container, Point::Poststop).await;
        let (exit_code, reason, why) = if alive {
            (128 + libc::SIGKILL, "Error", "so the container was killed")
        } else {
            (
                255,
                "Unknown",
                "killed, or the node was rebooted: the exit code is not known",
            )
        };
        self.finish(
            container,
            Exited {
                // Nothing nearer is on disk, and a client starts what it has made at once. 0 would be 1970 to kubectl.
                started_at: container.created_at,
                finished_at: super::now(),
                exit_code,
                reason: reason.to_owned(),
                dropped_log_lines: 0,
                message: format!("{what}, {why}"),
            },
        );
        self.tell_stopped(container).await;
    }

    async fn finish_removals(self: &Arc<Self>) {
        for container in self.containers() {
            if container.with_state(|state| matches!(state, container::State::Removing(_))) {
                let removed = self.delete_container(&container).await;
                report(&format!("removal of container {}", container.id), removed);
            }
        }
        for sandbox in self.sandboxes() {
            if matches!(sandbox.state(), sandbox::State::Removing) {
                let _turn = sandbox.turn.lock().await;
                let ended = self.dismantle(&sandbox).await;
                let removed = match ended {
                    Ok(()) => self.remove_in_turn(&sandbox).await,
                    failed => failed,
                };
                report(&format!("removal of sandbox {}", sandbox.id), removed);
            }
        }
    }

    /// `None`: there is none, or it was damaged.
    fn read_record<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, Error> {
        match record::read(path) {
            Ok(found) => Ok(found),
            Err(error @ ReadError::Damaged { .. }) => {
                tracing::error!(path = %path.display(), error = crate::error::chain(&error), "damaged record, quarantined");
                self.quarantine(path);
                Ok(None)
            }
            Err(error @ ReadError::Io { .. }) => Err(Error::wrap("read what is there", error)),
        }
    }

    fn quarantine(&self, path: &Path) {
        if let Err(error) = record::quarantine(path, &self.paths.quarantine()) {
            tracing::warn!(path = %path.display(), %error, "cannot be quarantined");
        }
    }
}

/// Whether its end, if it has come, is not on record.
fn has_not_ended(container: &Container) -> bool {
    container.with_state(|state| {
        matches!(
            state,
            container::State::Created(_) | container::State::Unseen(_)
        )
    })
}

fn changed_limits(record: &container::Record, decode: Decode) -> Result<Option<Limits>, Error> {
    let Some(asked) = &record.limits else {
        return Ok(None);
    };
    Ok(Some(Limits {
        resources: (decode.resources)(&asked.0)?,
        asked: Some(asked.clone()),
    }))
}

pub(super) fn report(what: &str, result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what} is not complete");
    }
}

/// The ids that folders in `dir` are named by. Other names are not ours.
fn ids_in<T: FromStr>(dir: &Path) -> Result<Vec<T>, Error> {
    let at = |error| Error::wrap(format!("read {}", dir.display()), error);
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at)? {
        if let Some(id) = entry
            .map_err(at)?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            ids.push(id);
        }
    }
    Ok(ids)
}
