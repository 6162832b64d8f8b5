//! The node: everything that a daemon has, and the tables of its sandboxes and containers.
//!
//! The tables are all that a list or a status reads. They are filled from the records at the start
//! ([`recover`]), and changed by `sandbox/` and `container/`, which write the records first.

mod events;
mod files;
mod images;
mod joint;
mod labels;
pub mod orphans;
mod paths;
mod plugins;
mod recover;
mod release;
mod silent;
mod tables;
mod unreadable;
mod work;

use std::cmp::Reverse;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carpel_wire::{FdIndex, ObjectId};
use serde::Serialize;

pub(crate) use events::Events;
pub use events::{Event, EventKind};
pub(crate) use files::{base64, make_dir, make_root_dir, remove_entries_but, remove_tree};
pub use images::Pull;
use joint::Joint;
pub(crate) use labels::ContainerLabels;
pub use paths::Paths;
pub(crate) use plugins::{Adjusted, Newcomer};
pub use recover::Decode;
use recover::report;
use tables::Table;
use work::Work;

use crate::apparmor::AppArmor;
use crate::cdi::Cdi;
use crate::cgroup::Cgroups;
use crate::container::Container;
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::image::pull::{PullProgress, Wanted};
use crate::image::registry::Registries;
use crate::image::trust::Policy;
use crate::image::{Image, ImageStore};
use crate::network::Network;
use crate::nri::{self, Nri};
use crate::sandbox::Sandbox;
use crate::selinux::Selinux;
use crate::spec::base::BaseSpec;
use crate::spec::config::{ContainerName, PodName};
use crate::spec::host::HostFacts;
use crate::stats::Walker;
use crate::store::record::{self, Durability};
use crate::store::rootfs::Builder;
use crate::store::syncer::Syncer;
use crate::supervisor::Binary;

/// What the node's own code needs of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Cgroup for sandboxes whose request names no parent.
    pub cgroup_parent: String,
    /// Most processes in a container whose request sets no limit.
    pub pids_limit: Option<u64>,
    /// How often the release of a gone pod's network is tried again.
    pub network_retry: Duration,
}

/// The parts that a node is put together from.
pub struct Parts {
    pub paths: Paths,
    pub settings: Settings,
    pub host: HostFacts,
    pub binary: Binary,
    pub cgroups: Cgroups,
    pub builder: Builder,
    pub images: ImageStore,
    pub registries: Registries,
    pub policy: Policy,
    pub network: Network,
    pub syncer: Syncer,
    pub cdi: Cdi,
    pub base: BaseSpec,
    /// `None`: no plugins.
    pub nri: Option<nri::Settings>,
    /// `None` where it is off, or shall not be used.
    pub selinux: Option<Selinux>,
}

/// A node that serves.
pub struct Node {
    pub paths: Paths,
    pub settings: Settings,
    pub host: HostFacts,
    pub images: ImageStore,
    pub registries: Registries,
    pub(crate) policy: Policy,
    pub network: Network,
    pub cgroups: Cgroups,
    pub apparmor: AppArmor,
    pub selinux: Option<Selinux>,
    pub(crate) binary: Binary,
    pub(crate) builder: Builder,
    pub(crate) runs: Work<PodName, SandboxId>,
    pub(crate) creates: Work<(SandboxId, ContainerName), ContainerId>,
    pub(crate) operations: Work<(Op, ObjectId), ()>,
    pub(crate) events: Events,
    pub(crate) walker: Walker,
    pulls: Joint<Wanted, PullProgress, Arc<Image>>,
    syncer: Syncer,
    pub(crate) cdi: Cdi,
    pub(crate) base: BaseSpec,
    pub(crate) nri: Arc<Nri>,
    pub(crate) decode: Decode,
    sandboxes: Table<SandboxId, Sandbox>,
    /// Sandboxes whose making failed, and its undoing too. They are in no list, and their names are free.
    pub(crate) half_undone: Table<SandboxId, Sandbox>,
    containers: Table<ContainerId, Container>,
    user_namespaces: OnceLock<Result<(), String>>,
}

/// Kinds of work on an object that a repeated request joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Start,
    RemoveContainer,
    StopSandbox,
    RemoveSandbox,
}

/// Why an id from outside names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lookup {
    #[error("not found")]
    NotFound,
    #[error("names more than one: give more of the id")]
    Ambiguous,
}

impl Node {
    fn new(parts: Parts, walker: Walker, decode: Decode) -> Self {
        Self {
            paths: parts.paths,
            settings: parts.settings,
            host: parts.host,
            images: parts.images,
            registries: parts.registries,
            policy: parts.policy,
            network: parts.network,
            cgroups: parts.cgroups,
            apparmor: AppArmor::default(),
            selinux: parts.selinux,
            binary: parts.binary,
            builder: parts.builder,
            runs: Work::default(),
            creates: Work::default(),
            operations: Work::default(),
            events: Events::default(),
            walker,
            pulls: Joint::default(),
            syncer: parts.syncer,
            cdi: parts.cdi,
            base: parts.base,
            nri: Arc::new(Nri::new(parts.nri)),
            decode,
            sandboxes: Table::default(),
            half_undone: Table::default(),
            containers: Table::default(),
            user_namespaces: OnceLock::new(),
        }
    }

    /// Says, once, whether pods can have user namespaces here, or why not.
    pub fn set_user_namespaces(&self, found: Result<(), String>) {
        let _ = self.user_namespaces.set(found);
    }

    /// Whether pods can have user namespaces here.
    ///
    /// # Errors
    /// Why not.
    pub fn user_namespaces(&self) -> Result<(), &str> {
        match self.user_namespaces.get() {
            Some(found) => found.as_ref().copied().map_err(String::as_str),
            None => Err("it is not known yet"),
        }
    }

    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        self.sandboxes.get(id)
    }

    /// Every sandbox that is listed.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.all(|sandbox| sandbox.is_listed())
    }

    /// The sandbox that a full id or a unique prefix of one names.
    ///
    /// # Errors
    /// [`Lookup`].
    pub fn find_sandbox(&self, id: &str) -> Result<SandboxId, Lookup> {
        self.sandboxes.find(id)
    }

    pub(crate) fn sandbox_named(&self, name: &PodName) -> Option<Arc<Sandbox>> {
        self.sandboxes
            .all(|sandbox| sandbox.config.name == *name)
            .pop()
    }

    /// Every sandbox, also one that is being made.
    pub(crate) fn all_sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.all(|_| true)
    }

    pub(crate) fn insert_sandbox(&self, sandbox: &Arc<Sandbox>) {
        self.sandboxes.insert(sandbox.id, sandbox);
    }

    pub(crate) fn forget_sandbox(&self, sandbox: &Sandbox) {
        self.sandboxes.remove(&sandbox.id);
    }

    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<Arc<Container>> {
        self.containers.get(id)
    }

    /// The container, or the error that says it is unknown.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn require_container(&self, id: &ContainerId) -> Result<Arc<Container>, Error> {
        self.container(id).ok_or_else(|| Error::NotFound {
            kind: "container",
            id: id.to_string(),
        })
    }

    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.all(|_| true)
    }

    /// A sandbox's containers, the newest first: of several with the same name a kubelet that follows
    /// events takes the first for the one that counts.
    #[must_use]
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let mut containers = self
            .containers
            .all(|container| container.sandbox == *sandbox);
        containers.sort_by_key(|container| Reverse(container.created_at));
        containers
    }

    /// The container that a full id or a unique prefix of one names.
    ///
    /// # Errors
    /// [`Lookup`].
    pub fn find_container(&self, id: &str) -> Result<ContainerId, Lookup> {
        self.containers.find(id)
    }

    pub(crate) fn insert_container(&self, container: &Arc<Container>) {
        self.containers.insert(container.id, container);
    }

    pub(crate) fn forget_container(&self, container: &Container) {
        self.containers.remove(&container.id);
    }

    /// "<parent>/<name>".
    pub(crate) fn cgroup_path(&self, parent: Option<&str>, name: &str) -> String {
        let parent = parent.unwrap_or(&self.settings.cgroup_parent);
        Cgroups::path(parent, name)
    }

    /// Writes a record; it is synced with others within a second.
    pub(crate) fn write_record<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), Error> {
        record::write(path, value, Durability::Soon(&self.syncer)).map_err(Error::at("keep state"))
    }
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The index of the next descriptor of a message. The Plan's compiler keeps it below 250.
pub(crate) fn index(count: usize) -> FdIndex {
    FdIndex(u16::try_from(count).unwrap_or(u16::MAX))
}
