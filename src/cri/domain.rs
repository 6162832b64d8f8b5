//! What the services ask of the daemon behind them, in its own types. The node is one; tests have another.

use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;
use serde::{Serialize, Serializer};

use super::export::{Chunks, VerifySteps};
use super::import::{Archive, Progress};
use super::pull::Steps;
use super::update::Merge;
pub use crate::container::ExecOutput;
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::image::pull::Wanted;
use crate::image::reference::Reference;
use crate::image::{Artifact, Platforms, Unused};
use crate::network::Checked;
use crate::node::EventKind;
use crate::sandbox::PodLimits;
use crate::selinux::Labels;
use crate::spec::config::{ContainerConfig, SandboxConfig};
use crate::stats::{ContainerFigures, DiskTotal, SandboxAccounts, SandboxFigures, Volume};
use crate::streaming;
use crate::timeline::Span;

/// Pods, containers and images. What changes something runs in a task of its own, so that a call which is
/// dropped drops only the waiting.
pub trait Domain: Send + Sync + 'static {
    // ── sandboxes ──

    /// `request` is the configuration as it was sent, encoded.
    fn run_sandbox(
        &self,
        config: SandboxConfig,
        request: Vec<u8>,
    ) -> impl Future<Output = Result<SandboxId, Error>> + Send;
    fn stop_sandbox(&self, id: &SandboxId) -> impl Future<Output = Result<(), Error>> + Send;
    fn remove_sandbox(&self, id: &SandboxId) -> impl Future<Output = Result<(), Error>> + Send;
    /// Remembers what a pod is to have. What `change` does not say stays as it is.
    fn update_sandbox(
        &self,
        id: &SandboxId,
        change: PodLimits,
    ) -> impl Future<Output = Result<(), Error>> + Send;
    /// The id that `text` is, or begins.
    fn find_sandbox(&self, text: &str) -> Result<SandboxId, Lookup>;
    fn sandbox(&self, id: &SandboxId) -> Option<SandboxDetail>;
    fn sandbox_info(&self, id: &SandboxId) -> Option<SandboxInfo>;
    fn sandboxes(&self) -> Vec<SandboxView>;

    // ── containers ──

    /// `request` is the configuration as it was sent, encoded.
    fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
        request: Vec<u8>,
    ) -> impl Future<Output = Result<ContainerId, Error>> + Send;
    fn start_container(&self, id: &ContainerId) -> impl Future<Output = Result<(), Error>> + Send;
    fn stop_container(
        &self,
        id: &ContainerId,
        grace: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send;
    fn remove_container(&self, id: &ContainerId) -> impl Future<Output = Result<(), Error>> + Send;
    fn exec_sync(
        &self,
        id: &ContainerId,
        arguments: Vec<String>,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Result<ExecOutput, Error>> + Send;
    fn reopen_log(&self, id: &ContainerId) -> impl Future<Output = Result<(), Error>> + Send;
    /// Gives a container the limits that `merge` makes of those asked for before.
    fn update_container(
        &self,
        id: &ContainerId,
        merge: Merge,
    ) -> impl Future<Output = Result<(), Error>> + Send;
    /// The id that `text` is, or begins.
    fn find_container(&self, text: &str) -> Result<ContainerId, Lookup>;
    fn container(&self, id: &ContainerId) -> Option<ContainerDetail>;
    fn container_info(&self, id: &ContainerId) -> Option<ContainerInfo>;
    fn containers(&self) -> Vec<ContainerView>;
    /// Those of the sandbox in full.
    fn containers_of(&self, sandbox: &SandboxId) -> Vec<ContainerDetail>;

    // ── figures and events ──

    /// The figures of those of the containers that are there.
    fn container_figures(
        &self,
        ids: Vec<ContainerId>,
    ) -> impl Future<Output = Result<Vec<(ContainerId, ContainerFigures)>, Error>> + Send;
    /// The figures of those of the sandboxes that are ready.
    fn sandbox_figures(
        &self,
        ids: Vec<SandboxId>,
    ) -> impl Future<Output = Result<Vec<(SandboxId, SandboxFigures)>, Error>> + Send;
    /// All that metrics tell, of those of the sandboxes that are ready.
    fn sandbox_accounts(
        &self,
        ids: Vec<SandboxId>,
    ) -> impl Future<Output = Result<Vec<(SandboxId, SandboxAccounts)>, Error>> + Send;
    /// The file system that images and writable layers are on.
    fn volume(&self) -> Option<Volume>;
    /// Every change from now on.
    fn events(&self) -> impl Stream<Item = Result<EventView, Missed>> + Send + 'static;

    // ── images ──

    /// The image of this id or name.
    fn image(&self, name: &str) -> Result<Option<ImageView>, Error>;
    /// What the makers of the image of this id wrote into it. An artifact has nothing of the kind.
    fn image_spec(&self, id: &str) -> Option<ImageConfiguration>;
    /// What the artifact of this id is, if it is one.
    fn artifact(&self, id: &str) -> Option<Artifact>;
    fn images(&self) -> Vec<ImageView>;
    /// Removes the image of this id or name, and all its names. One that is absent is removed.
    fn remove_image(&self, name: &str) -> impl Future<Output = Result<(), Error>> + Send;
    fn image_usage(&self) -> impl Future<Output = Result<DiskUsages, Error>> + Send;
    /// Pulls an image. A call that is dropped takes its wish back: a pull that nobody wants any more is given up.
    fn pull(
        &self,
        wanted: Wanted,
        steps: Option<Steps>,
    ) -> impl Future<Output = Result<ImageView, Error>> + Send;
    fn import(
        &self,
        archive: Archive,
        platforms: Platforms,
        progress: Progress,
    ) -> impl Future<Output = Result<Vec<ImageView>, Error>> + Send;

    /// Writes the archive of images, by names or ids.
    fn export(
        &self,
        images: Vec<String>,
        archive: Chunks,
    ) -> impl Future<Output = Result<(), Error>> + Send;
    /// Compares images (none: all) with what was unpacked; perhaps sets damaged ones aside.
    fn verify(
        &self,
        images: Vec<String>,
        set_aside: bool,
        steps: VerifySteps,
    ) -> impl Future<Output = Result<(), Error>> + Send;
    /// Gives an image more tags.
    fn tag_image(
        &self,
        name: &str,
        tags: Vec<Reference>,
    ) -> impl Future<Output = Result<ImageUse, Error>> + Send;
    /// Says whether an image stays when unused ones go.
    fn pin_image(
        &self,
        name: &str,
        pinned: bool,
    ) -> impl Future<Output = Result<ImageUse, Error>> + Send;
    /// All images, and who uses them.
    fn image_uses(&self) -> Vec<ImageUse>;
    /// Removes the images that nobody uses, or says which these are.
    fn prune_images(
        &self,
        which: Unused,
        dry_run: bool,
    ) -> impl Future<Output = Result<Pruned, Error>> + Send;

    // ── the node ──

    /// The folder that images and writable layers are below.
    fn root(&self) -> &Path;
    /// Whether pods could be run at all.
    fn runtime_status(&self) -> Result<(), NotReady>;
    /// Whether a pod could get a network now.
    fn network_status(&self) -> Result<(), NotReady>;
    /// Files of network configurations that were passed over, each with what is wrong with it.
    fn network_warnings(&self) -> Vec<String>;
    /// Has the plugins of a sandbox's network check it; `None` if it has none of its own.
    fn check_network(
        &self,
        sandbox: &SandboxId,
    ) -> impl Future<Output = Result<Option<Checked>, Error>> + Send;
    /// Remembers the node's ranges of pod addresses.
    fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error>;
    /// A URL at which a client may do this, once.
    fn stream_url(&self, request: streaming::Request) -> Result<String, Error>;
    /// The configuration in force, for people and test suites.
    fn configuration(&self) -> serde_json::Value;
    /// What the kernel's security modules do for containers.
    fn security_modules(&self) -> SecurityModules;
    /// Whether pods can have user namespaces.
    fn user_namespaces(&self) -> bool;
}

/// Why an id from outside names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    NotFound,
    Ambiguous,
}

/// A sandbox, as lists show it.
#[derive(Debug, Clone)]
pub struct SandboxView {
    pub id: SandboxId,
    pub config: Arc<SandboxConfig>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub ready: bool,
    /// The primary one first; none with the node's network.
    pub ips: Vec<IpAddr>,
}

/// A sandbox in full.
#[derive(Debug, Clone)]
pub struct SandboxDetail {
    pub view: SandboxView,
    /// The configuration as it was sent, encoded.
    pub request: Vec<u8>,
    /// What the pod is to have, as far as that was changed since.
    pub limits: PodLimits,
}

/// What the kernel's security modules do for containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SecurityModules {
    pub apparmor: bool,
    pub selinux: SelinuxMode,
}

/// What becomes of SELinux labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SelinuxMode {
    Enforcing,
    Permissive,
    /// The kernel has none, or the configuration wants none.
    Off,
}

/// What the interface has no field for, in a verbose status.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxInfo {
    /// The supervisor's.
    pub pid: Option<u32>,
    pub netns: Option<PathBuf>,
    /// Ports of the node that were asked for, as plugins get them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<serde_json::Value>,
    pub cgroup: String,
    /// What SELinux knows it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux: Option<Labels>,
    pub timeline: Vec<Span>,
}

/// A container, as lists show it.
#[derive(Debug, Clone)]
pub struct ContainerView {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    pub config: Arc<ContainerConfig>,
    pub image_id: String,
    /// The image's digest reference, or its id if it has none.
    pub image_ref: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub state: ContainerState,
}

/// Where a container is in its life. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running {
        started_at: i64,
    },
    Exited {
        /// 0 if it never ran.
        started_at: i64,
        finished_at: i64,
        exit_code: i32,
        reason: String,
        message: String,
    },
    Unknown,
}

/// A container in full.
#[derive(Debug, Clone)]
pub struct ContainerDetail {
    pub view: ContainerView,
    /// The configuration as it was sent, encoded.
    pub request: Vec<u8>,
    /// The limits as they were asked for last, encoded, if they were changed.
    pub limits: Option<Vec<u8>>,
    /// Absolute.
    pub log_path: Option<PathBuf>,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The kernel's number of the signal that a stop sends.
    pub stop_signal: i32,
    /// The ids of the images that the request mounts, in its order.
    pub image_volumes: Vec<String>,
}

/// What the interface has no field for, in a verbose status.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerInfo {
    pub sandbox_id: String,
    pub pid: Option<u32>,
    /// Lines of output that could not be written to the log; known once the container has exited.
    pub dropped_log_lines: Option<u64>,
    pub cgroup: String,
    /// Whether it takes input.
    pub stdin: bool,
    pub timeline: Vec<Span>,
    #[serde(serialize_with = "shared")]
    pub runtime_spec: Arc<Spec>,
}

fn shared<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    value.serialize(serializer)
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageView {
    /// "sha256:…".
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// The user that the image names: "", "user", "uid", either with ":group".
    pub user: String,
    pub pinned: bool,
}

/// An image and who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    pub image: ImageView,
    /// Bytes of the layers that no other image has.
    pub unshared: u64,
    /// Those that are made from it or mount it.
    pub containers: Vec<ContainerId>,
}

/// Images that were cleared away, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    pub images: Vec<ImageUse>,
    /// Bytes.
    pub freed: u64,
}

/// The space that images and writable layers take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsages {
    pub images: DiskTotal,
    pub writable_layers: DiskTotal,
}

/// A change, and the pod as it was just after it.
#[derive(Debug, Clone)]
pub struct EventView {
    /// Id of the container that changed, or of the sandbox itself.
    pub object: String,
    pub kind: EventKind,
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub sandbox: SandboxDetail,
    pub containers: Vec<ContainerDetail>,
}

/// A listener was too slow: this many events are lost to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed(pub u64);

/// Why no pod could be run, or get a network, now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotReady {
    /// One word in CamelCase.
    pub reason: String,
    pub message: String,
}
