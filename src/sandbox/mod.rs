//! A pod sandbox: the supervisor, namespaces, cgroup and network that a pod's containers share.
//!
//! ```text
//!  RunPodSandbox ──▶ Making ──▶ Ready ──StopPodSandbox──▶ Stopping ──▶ Stopped ──Remove──▶ Removing ──▶ ∅
//!                      │         │ ▲ supervisor lost and replaced            ▲
//!                      │         └─┘ (not to be replaced ──▶ Stopping)        │
//!                      │      Silent ──supervisor answers──▶ Ready            │
//!                      └─ failure or daemon's death: undone, ∅               └── daemon's death: goes on
//! ```
//!
//! What must always hold: before anything of a pod exists in the world its record exists on disk, and
//! the record goes last; so whatever a crash leaves has an owner that the next start finds.

mod adopt;
mod connect;
mod dismantle;
pub(crate) mod files;
mod pids;
mod run;
mod stop;
mod update;
pub(crate) mod user;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use update::PodLimits;

use crate::container::Asked;
use crate::error::Error;
use crate::ids::SandboxId;
use crate::network::Attachment;
use crate::selinux::Labels;
use crate::spec::config::{SandboxConfig, Scope};
use crate::stats::Rate;
use crate::store::record::Turns;
use crate::supervisor::Supervisor;
use crate::timeline::Timeline;

/// A sandbox in memory.
pub struct Sandbox {
    pub id: SandboxId,
    pub config: Arc<SandboxConfig>,
    /// The request's configuration, byte for byte.
    pub request: Vec<u8>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub timeline: Timeline,
    /// Cgroup path of the sandbox itself; its containers' are beside it.
    pub cgroup: String,
    /// The pin of the pod's network namespace; `None` with the host's network.
    pub netns: Option<PathBuf>,
    /// Whoever changes this sandbox has its turn.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Whether plugins have been told that it has stopped.
    pub(crate) told_stopped: AtomicBool,
    /// How fast its CPU time grows.
    pub(crate) rate: Rate,
    /// `None` if it has none.
    pub(crate) selinux: Option<Labels>,
    limits: Mutex<PodLimits>,
    state: watch::Sender<State>,
    /// At its record.
    pub(crate) turns: Turns,
}

/// Where a sandbox is in its life.
#[derive(Clone)]
pub enum State {
    Making,
    /// Also while a supervisor that died is being replaced.
    Ready(Live),
    /// As a daemon finds one that is ready by its record, as long as its supervisor lives and does not answer it.
    Silent {
        attachment: Option<Attachment>,
        /// Whether its network namespace is there.
        connected: bool,
    },
    /// No longer ready, but some of it may still be there: stopping it goes on from here.
    Stopping {
        supervisor: Option<Supervisor>,
        attachment: Option<Attachment>,
        /// Whether anybody asked for it: then it goes on by itself until it is done.
        requested: bool,
    },
    Stopped {
        attachment: Option<Attachment>,
    },
    Removing,
}

impl State {
    /// What a ready sandbox becomes when it stops or loses its supervisor for good.
    fn stopping(live: &Live) -> Self {
        Self::Stopping {
            supervisor: Some(live.supervisor.clone()),
            attachment: live.attachment.clone(),
            requested: false,
        }
    }
}

/// What a ready sandbox has.
#[derive(Clone)]
pub struct Live {
    pub supervisor: Supervisor,
    /// `None` with the host's network.
    pub attachment: Option<Attachment>,
    /// `None` with the host's.
    pub user_namespace: Option<Arc<OwnedFd>>,
}

/// What is written down of a sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: SandboxId,
    #[serde(with = "crate::node::base64")]
    pub request: Vec<u8>,
    pub runtime_handler: String,
    pub created_at: i64,
    pub cgroup: String,
    pub phase: Phase,
    pub attachment: Option<Attachment>,
    /// What the pod is to have, if that was changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<Asked>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Asked>,
    /// As they were chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<Labels>,
}

/// How far a sandbox had come. Whether it lives is not written down: its supervisor says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    Making,
    Ready,
    Stopping,
    Stopped,
    Removing,
}

impl Sandbox {
    pub(crate) fn new(
        record: &Record,
        config: SandboxConfig,
        netns: PathBuf,
        state: State,
    ) -> Self {
        Self {
            id: record.id,
            netns: (config.network == Scope::Pod).then_some(netns),
            config: Arc::new(config),
            request: record.request.clone(),
            created_at: record.created_at,
            cgroup: record.cgroup.clone(),
            timeline: Timeline::default(),
            turn: tokio::sync::Mutex::default(),
            state: watch::Sender::new(state),
            told_stopped: AtomicBool::new(false),
            turns: Turns::default(),
            rate: Rate::default(),
            selinux: record.selinux.clone(),
            limits: Mutex::new(PodLimits {
                overhead: record.overhead.clone(),
                resources: record.resources.clone(),
            }),
        }
    }

    /// What the pod is to have, as far as that was changed.
    #[must_use]
    pub fn limits(&self) -> PodLimits {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.clone()
    }

    pub(crate) fn set_limits(&self, limits: PodLimits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.send_replace(state);
    }

    /// Looks at the state, which stays as it is meanwhile.
    pub(crate) fn lock(&self) -> watch::Ref<'_, State> {
        self.state.borrow()
    }

    /// A ready sandbox becomes one that stops. Says whether it was ready: this happens once.
    pub(crate) fn end_ready(&self) -> bool {
        self.state.send_if_modified(|state| {
            let (was_ready, stopping) = match state {
                State::Ready(live) => (true, State::stopping(live)),
                State::Silent {
                    attachment,
                    connected,
                } => {
                    let attachment = attachment.take();
                    let stopping = State::Stopping {
                        supervisor: None,
                        attachment,
                        requested: false,
                    };
                    (*connected, stopping)
                }
                _ => return false,
            };
            *state = stopping;
            was_ready
        })
    }

    /// Somebody asks for the sandbox's stop. Says whether that is news.
    pub(crate) fn request_stop(&self) -> bool {
        self.state.send_if_modified(|state| match state {
            State::Stopping { requested, .. } => !std::mem::replace(requested, true),
            _ => false,
        })
    }

    /// Whether a stop was asked for and is not done.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(
            *self.lock(),
            State::Stopping {
                requested: true,
                ..
            }
        )
    }

    /// The supervisor, if the sandbox is ready. While one that died is being replaced it waits.
    pub(crate) async fn supervisor(&self) -> Option<Supervisor> {
        self.supervisor_when(Supervisor::is_alive).await
    }

    /// The supervisor that comes after `lost`, or `None` if there is to be none.
    pub(crate) async fn supervisor_after(&self, lost: &Supervisor) -> Option<Supervisor> {
        self.supervisor_when(|supervisor| !supervisor.is(lost))
            .await
    }

    async fn supervisor_when(&self, wanted: impl Fn(&Supervisor) -> bool) -> Option<Supervisor> {
        let mut states = self.state.subscribe();
        let decided = states.wait_for(|state| match state {
            State::Ready(live) => wanted(&live.supervisor),
            _ => true,
        });
        match &*decided.await.ok()? {
            State::Ready(live) => Some(live.supervisor.clone()),
            _ => None,
        }
    }

    /// The pod's user namespace; `None` if it has the host's.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if it is to have one and there is none.
    pub(crate) fn user_namespace(&self) -> Result<Option<Arc<OwnedFd>>, Error> {
        if self.config.user_namespace.is_none() {
            return Ok(None);
        }
        let found = match &*self.lock() {
            State::Ready(live) => live.user_namespace.clone(),
            _ => None,
        };
        match found {
            Some(namespace) => Ok(Some(namespace)),
            None => Err(Error::FailedPrecondition(format!(
                "sandbox {} of pod {} is not ready: it has no user namespace",
                self.id,
                self.pod()
            ))),
        }
    }

    /// What the sandbox has, if it is ready and its supervisor lives.
    #[must_use]
    pub fn live(&self) -> Option<Live> {
        match &*self.lock() {
            State::Ready(live) if live.supervisor.is_alive() => Some(live.clone()),
            _ => None,
        }
    }

    /// Whether it is listed: a sandbox that is being made has no answer yet and may still be undone.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        !matches!(*self.lock(), State::Making)
    }

    /// Whether it is ready, as far as is known.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(
            *self.lock(),
            State::Ready(_)
                | State::Silent {
                    connected: true,
                    ..
                }
        )
    }

    /// Whether its supervisor has not answered this daemon yet.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(*self.lock(), State::Silent { .. })
    }

    /// Why nothing can be done in it: it is not ready, or nobody in it answers.
    pub(crate) fn refuses(&self) -> Error {
        let (id, pod) = (&self.id, self.pod());
        Error::FailedPrecondition(match self.is_silent() {
            true => format!(
                "sandbox {id} of pod {pod} cannot be reached: its supervisor does not answer"
            ),
            false => format!("sandbox {id} of pod {pod} is not ready"),
        })
    }

    /// The pod's addresses, the primary one first. They stay known after a stop.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        match &*self.lock() {
            State::Ready(Live { attachment, .. })
            | State::Silent { attachment, .. }
            | State::Stopping { attachment, .. }
            | State::Stopped { attachment } => attachment
                .as_ref()
                .map(|attachment| attachment.ips.clone())
                .unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// The phase that its record is to tell of.
    pub(crate) fn phase(&self) -> Phase {
        match *self.lock() {
            State::Making => Phase::Making,
            State::Stopping {
                requested: true, ..
            } => Phase::Stopping,
            State::Ready(_) | State::Silent { .. } | State::Stopping { .. } => Phase::Ready,
            State::Stopped { .. } => Phase::Stopped,
            State::Removing => Phase::Removing,
        }
    }

    pub(crate) fn record(&self, phase: Phase) -> Record {
        let attachment = match &*self.lock() {
            State::Ready(Live { attachment, .. })
            | State::Silent { attachment, .. }
            | State::Stopping { attachment, .. }
            | State::Stopped { attachment } => attachment.clone(),
            State::Making | State::Removing => None,
        };
        let PodLimits {
            overhead,
            resources,
        } = self.limits();
        Record {
            id: self.id,
            request: self.request.clone(),
            runtime_handler: self.config.runtime_handler.clone(),
            created_at: self.created_at,
            cgroup: self.cgroup.clone(),
            phase,
            attachment,
            overhead,
            resources,
            selinux: self.selinux.clone(),
        }
    }

    /// "namespace/name", for messages.
    #[must_use]
    pub fn pod(&self) -> String {
        format!("{}/{}", self.config.name.namespace, self.config.name.name)
    }
}
