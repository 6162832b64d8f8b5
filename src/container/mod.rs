//! A container: a root file system, a cgroup and a process of a pod.
//!
//! ```text
//!  Create ──▶ Created ──Start──▶ Running ──exit──▶ Exited ──Remove──▶ Removing ──▶ ∅
//!                │                                   ▲
//!                └── Start fails (StartError, 128) ──┘
//! ```
//!
//! One that was started is `Unseen` while the pod's supervisor does not answer a new daemon.
//!
//! What must always hold: the root file system of a container is made once; after the daemon's death it
//! is made again only if the supervisor says that the container was never started. An exit is on disk
//! before the supervisor forgets it.

mod adopt;
mod attach;
mod copy;
mod create;
mod devices;
mod draft;
mod exec;
mod exit;
pub(crate) mod hooks;
mod kept;
mod log;
mod net_devices;
pub(crate) mod processes;
mod start;
mod stop;
mod streams;
mod update;
pub(crate) mod volumes;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use carpel_wire::PidNamespace;
use serde::{Deserialize, Serialize};

pub(crate) use adopt::Adopted;
pub use exec::ExecOutput;
pub(crate) use kept::Kept;
pub use streams::{ClientStreams, TerminalSize};
pub use update::Merge;

use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::image::ImageId;
use crate::spec::config::{ContainerConfig, Resources};
use crate::spec::oci::Source;
use crate::spec::plan::Compiled;
use crate::spec::user::User;
use crate::stats::{DiskUsage, Remembered};
use crate::store::layers::LayerId;
use crate::store::record::Turns;
use crate::supervisor::Supervisor;
use crate::timeline::Timeline;

/// A container in memory.
pub struct Container {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    pub config: Arc<ContainerConfig>,
    /// The request's configuration, byte for byte.
    pub request: Vec<u8>,
    pub image_id: ImageId,
    /// The digest reference of the image, or its id if it has none.
    pub image_ref: String,
    pub layers: Vec<LayerId>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub user: User,
    /// Absolute; `None`: output is thrown away.
    pub log_path: Option<PathBuf>,
    pub cgroup: String,
    /// What its Plans are compiled from.
    pub source: Source,
    pub stop_signal: i32,
    pub timeline: Timeline,
    pub(crate) pid_namespace: PidNamespace,
    /// Whoever changes this container has its turn; an exit waits for none.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Tells whoever has the turn that the container is to stop: hooks are not waited for then.
    pub(crate) interrupt: tokio::sync::Notify,
    /// What is remembered of its figures.
    pub(crate) remembered: Remembered,
    limits: Mutex<Limits>,
    state: Mutex<State>,
    /// What plugins have heard of its end. Locked while they are told.
    pub(crate) heard: tokio::sync::Mutex<Heard>,
    /// At its record, for which an exit waits as well.
    pub(crate) turns: Turns,
    /// How it ended, on record while what it leaves is cleared up and before anybody is told.
    ending: OnceLock<Exited>,
    /// Turns true at the exit.
    pub(crate) exited: tokio::sync::watch::Sender<bool>,
}

/// Where a container is in its life.
#[derive(Debug)]
pub enum State {
    Created(Prepared),
    Running(Running),
    Unseen(Unseen),
    Exited(Exited),
    Removing(Option<Exited>),
}

/// What creation made for the start, which uses it up.
#[derive(Debug)]
pub struct Prepared {
    /// `None` after a restart of the daemon.
    pub rootfs: Option<OwnedFd>,
    pub(crate) compiled: Arc<Compiled>,
}

/// What is known of a container that was started and has not ended by its record, while the pod's supervisor does not
/// answer a new daemon.
#[derive(Debug, Clone)]
pub struct Unseen {
    /// For the case that it was not started after all.
    pub(crate) compiled: Arc<Compiled>,
    /// Whether processes were in its cgroup when it was looked at last.
    pub(crate) has_processes: bool,
}

/// A state as others see it.
#[derive(Debug, Clone)]
pub enum Status {
    Created,
    Running(Running),
    Unseen,
    Exited(Exited),
    Removing(Option<Exited>),
}

/// A state to be told to others. Unlike a [`Status`] it keeps nothing of a running container open, so that they may take
/// their time.
#[derive(Debug, Clone)]
pub enum Told {
    Created,
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It was started. Whether it runs, only its supervisor could say.
    Unknown,
    Exited(Exited),
    Removing(Option<Exited>),
}

/// What plugins have heard of a container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Heard {
    Nothing,
    Stopped,
    Removed,
}

/// The limits of a container, which may be others than it was created with.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub resources: Resources,
    /// As they were asked for last, encoded. `None`: as in the request.
    pub asked: Option<Asked>,
}

/// A message of the interface, kept as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Asked(#[serde(with = "crate::node::base64")] pub Vec<u8>);

#[derive(Debug, Clone)]
pub struct Running {
    pub pid: u32,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    pub pidfd: Arc<OwnedFd>,
    /// The supervisor that looks after it.
    pub(crate) supervisor: Supervisor,
    pub(crate) kept: Arc<Kept>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Nanoseconds since the epoch; 0 if it never ran.
    pub started_at: i64,
    pub finished_at: i64,
    /// 128 + signal for one that was killed.
    pub exit_code: i32,
    /// "Completed", "Error", "OOMKilled", "StartError", "Unknown".
    pub reason: String,
    pub message: String,
    /// Lines of output that could not be written to the log.
    #[serde(default)]
    pub dropped_log_lines: u64,
}

/// What is written down of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    #[serde(with = "crate::node::base64")]
    pub request: Vec<u8>,
    pub image_id: ImageId,
    pub image_ref: String,
    pub layers: Vec<LayerId>,
    pub created_at: i64,
    pub user: User,
    pub log_path: Option<PathBuf>,
    pub cgroup: String,
    pub stop_signal: i32,
    pub source: Source,
    /// The limits, if they were changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Asked>,
    pub exited: Option<Exited>,
    pub removing: bool,
}

impl Container {
    pub(crate) fn new(
        record: Record,
        config: ContainerConfig,
        pid_namespace: PidNamespace,
        state: State,
    ) -> Self {
        let exited = matches!(state, State::Exited(_) | State::Removing(_));
        let remembered = Remembered::default();
        if matches!(&state, State::Created(made) if made.rootfs.is_some()) {
            // It has just been made.
            remembered.set_disk(DiskUsage {
                at: record.created_at,
                bytes: 0,
                inodes: 0,
            });
        }
        let limits = Limits {
            resources: config.resources.clone(),
            asked: None,
        };
        Self {
            id: record.id,
            sandbox: record.sandbox,
            config: Arc::new(config),
            request: record.request,
            image_id: record.image_id,
            image_ref: record.image_ref,
            layers: record.layers,
            created_at: record.created_at,
            user: record.user,
            log_path: record.log_path,
            cgroup: record.cgroup,
            source: record.source,
            stop_signal: record.stop_signal,
            timeline: Timeline::default(),
            pid_namespace,
            turn: tokio::sync::Mutex::default(),
            interrupt: tokio::sync::Notify::new(),
            remembered,
            limits: Mutex::new(limits),
            state: Mutex::new(state),
            heard: tokio::sync::Mutex::new(match exited {
                true => Heard::Stopped,
                false => Heard::Nothing,
            }),
            turns: Turns::default(),
            ending: OnceLock::new(),
            exited: tokio::sync::watch::Sender::new(exited),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the present state.
    pub fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    /// Another supervisor looks after the process now. `None` if it does not run any more.
    pub(crate) fn set_supervisor(&self, supervisor: &Supervisor) -> Option<Running> {
        match &mut *self.lock() {
            State::Running(running) => {
                running.supervisor = supervisor.clone();
                Some(running.clone())
            }
            _ => None,
        }
    }

    /// The present state, to be looked at without its lock.
    #[must_use]
    pub fn status(&self) -> Status {
        match &*self.lock() {
            State::Created(_) => Status::Created,
            State::Running(running) => Status::Running(running.clone()),
            State::Unseen(_) => Status::Unseen,
            State::Exited(exited) => Status::Exited(exited.clone()),
            State::Removing(exited) => Status::Removing(exited.clone()),
        }
    }

    /// The state, to be told to others.
    #[must_use]
    pub fn told(&self) -> Told {
        match &*self.lock() {
            State::Created(_) => Told::Created,
            State::Running(running) => Told::Running {
                started_at: running.started_at,
            },
            // When it was started is not known: soon after it was made.
            State::Unseen(Unseen {
                has_processes: true,
                ..
            }) => Told::Running {
                started_at: self.created_at,
            },
            State::Unseen(_) => Told::Unknown,
            State::Exited(exited) => Told::Exited(exited.clone()),
            State::Removing(exited) => Told::Removing(exited.clone()),
        }
    }

    /// The limits that it has, or will have when it is started.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let limits = self.limits.lock();
        limits.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The limits of memory and of swap, in bytes.
    pub(crate) fn memory_limits(&self) -> (Option<u64>, Option<u64>) {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.resources.memory_and_swap()
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// It has ended so, as its record is to say. `false`: that is known.
    pub(crate) fn set_ending(&self, exited: &Exited) -> bool {
        self.ending.set(exited.clone()).is_ok()
    }

    pub(crate) fn set_exited(&self, exited: Exited) {
        *self.lock() = State::Exited(exited);
        self.exited.send_replace(true);
    }

    /// The process, if it runs.
    #[must_use]
    pub fn running(&self) -> Option<Running> {
        match &*self.lock() {
            State::Running(running) => Some(running.clone()),
            _ => None,
        }
    }

    /// The process that runs.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`]: none does, or nobody can say.
    pub(crate) fn require_running(&self) -> Result<Running, Error> {
        let id = &self.id;
        let why = match self.status() {
            Status::Running(running) => return Ok(running),
            Status::Unseen => "cannot be reached: its pod's supervisor does not answer",
            _ => "is not running",
        };
        Err(Error::FailedPrecondition(format!("container {id} {why}")))
    }

    /// One that was unseen has not been started.
    pub(crate) fn set_not_started(&self) {
        let mut state = self.lock();
        if let State::Unseen(Unseen { compiled, .. }) = &*state {
            let compiled = Arc::clone(compiled);
            *state = State::Created(Prepared {
                rootfs: None,
                compiled,
            });
        }
    }

    /// One that was taken for created is unseen; how one that is unseen looks now.
    pub(crate) fn set_unseen(&self, has_processes: bool) {
        let mut state = self.lock();
        let compiled = match &*state {
            State::Created(Prepared { compiled, .. }) | State::Unseen(Unseen { compiled, .. }) => {
                Arc::clone(compiled)
            }
            _ => return,
        };
        *state = State::Unseen(Unseen {
            compiled,
            has_processes,
        });
    }

    pub(crate) fn is_unseen(&self) -> bool {
        self.with_state(|state| matches!(state, State::Unseen(_)))
    }

    pub(crate) fn record(&self) -> Record {
        let (exited, removing) = match &*self.lock() {
            State::Exited(exited) => (Some(exited.clone()), false),
            State::Removing(exited) => (exited.clone(), true),
            State::Created(_) | State::Running(_) | State::Unseen(_) => {
                (self.ending.get().cloned(), false)
            }
        };
        Record {
            id: self.id,
            sandbox: self.sandbox,
            request: self.request.clone(),
            image_id: self.image_id,
            image_ref: self.image_ref.clone(),
            layers: self.layers.clone(),
            created_at: self.created_at,
            user: self.user.clone(),
            log_path: self.log_path.clone(),
            cgroup: self.cgroup.clone(),
            stop_signal: self.stop_signal,
            source: self.source.clone(),
            limits: self.limits().asked,
            exited,
            removing,
        }
    }
}
