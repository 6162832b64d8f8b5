//! The checked configuration of a sandbox and of a container: what is left of a CRI request after
//! `cri/` has validated it. Nothing below checks any of it again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cdi::QualifiedName;
use crate::ids::ContainerId;

/// The name of a sandbox: unique on the node. A repeated RunPodSandbox of the same name is the same sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
}

/// The name of a container: unique in its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerName {
    pub name: String,
    pub attempt: u32,
}

#[derive(Debug, Clone)]
pub struct SandboxConfig {
    pub name: PodName,
    /// `None`: the host's (as for host-network pods, or when none was sent).
    pub hostname: Option<String>,
    /// Absolute and normal.
    pub log_directory: Option<PathBuf>,
    /// `None`: a copy of the host's resolv.conf.
    pub dns: Option<Dns>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Cgroup below which the sandbox's and its containers' are made, absolute and normal
    /// ("/kubepods/burstable/pod…"). `None`: the configuration's default.
    pub cgroup_parent: Option<String>,
    /// Namespaced ones only: "net.*" (not with the host's network), "kernel.shm*|msg*|sem",
    /// "fs.mqueue.*" (not with the host's ipc). Keys in dotted form.
    pub sysctls: BTreeMap<String, String>,
    pub network: Scope,
    pub ipc: Scope,
    pub pid: PidScope,
    /// `None`: the host's. With one, `ipc` is the pod's and `pid` is not the node's.
    pub user_namespace: Option<UserNamespace>,
    /// Whether containers of the pod may be privileged.
    pub privileged: bool,
    pub selinux: SelinuxOptions,
    pub runtime_handler: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    /// Never 0: mappings without a host port are dropped.
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Whose namespace a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Pod,
    Node,
}

/// The ids of a pod's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserNamespace {
    pub uids: IdMap,
    pub gids: IdMap,
}

/// Id 0 of a user namespace is `host`, 1 the next, and so on: `count` of them, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    pub host: u32,
    pub count: u32,
}

impl IdMap {
    /// What an id of the namespace is on the host. `None` if it is not mapped.
    #[must_use]
    pub fn to_host(self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.host + id)
    }
}

/// Whose PID namespace a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidScope {
    Pod,
    Container,
    Node,
    /// That of another container of the same pod.
    Target(ContainerId),
}

#[derive(Debug, Clone)]
pub struct ContainerConfig {
    pub name: ContainerName,
    /// The image as the request names it (id, tag or digest reference), for ImageStatus-like lookup.
    pub image: String,
    /// What the user wrote in the pod, if the kubelet sent it.
    pub user_specified_image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    /// Absolute; `None`: the image's, else "/".
    pub working_dir: Option<String>,
    /// Values are bytes (CRI 0.35).
    pub env: Vec<(String, Vec<u8>)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub cdi_devices: Vec<QualifiedName>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory, without "..". `None`: output is thrown away.
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: Resources,
    pub security: Security,
    /// Number of the signal that asks the container to stop, if the request names one.
    pub stop_signal: Option<i32>,
}

#[derive(Debug, Clone)]
pub struct Mount {
    /// Absolute and normal.
    pub container_path: String,
    pub source: MountSource,
    pub readonly: bool,
    /// Only together with `readonly` and `Propagation::Private`.
    pub recursive_readonly: bool,
    pub propagation: Propagation,
    /// More flags of the mount, in the words of mount(8).
    pub options: Vec<String>,
    /// Whether what is mounted is to be the container's in the eyes of SELinux, too.
    pub relabel: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// Absolute and normal. A missing one is created as a directory, as the peers do.
    Host(PathBuf),
    /// An image, named as a container's is. Always read-only.
    Image {
        image: String,
        /// A folder in it, relative and normal. `None`: its root.
        sub_path: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub container_path: String,
    pub host_path: PathBuf,
    /// Some of "r", "w", "m".
    pub permissions: String,
}

/// A limit that can be lifted in so many words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceiling {
    Unlimited,
    At(u64),
}

/// Limits. `None`: nothing was said, so there is no limit but the defaults. Nothing negative and nothing
/// that the kernel would not take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds per period.
    pub cpu_quota: Option<Ceiling>,
    /// v1 shares, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<u64>,
    /// Bytes of memory and swap together: never less than `memory_limit`. `None` beside a memory limit: no
    /// swap, as the peers do.
    pub memory_swap_limit: Option<Ceiling>,
    pub oom_score_adj: i32,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Most processes and threads.
    pub pids_limit: Option<Ceiling>,
    /// Bytes in huge pages, by their size as the kernel writes it ("2MB"). 0 forbids them.
    pub huge_pages: BTreeMap<String, u64>,
    /// Cgroup v2 files and what to write to them, as sent.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// The limits of memory and of swap, in bytes; `None` is no limit. CRI limits both together, cgroup v2
    /// swap alone.
    #[must_use]
    pub fn memory_and_swap(&self) -> (Option<u64>, Option<u64>) {
        let swap = match (self.memory_limit, self.memory_swap_limit) {
            // A file that is named is written last.
            _ if self.unified.contains_key("memory.swap.max") => {
                self.unified["memory.swap.max"].trim().parse().ok()
            }
            (Some(memory), Some(Ceiling::At(both))) => Some(both.saturating_sub(memory)),
            (_, Some(Ceiling::Unlimited)) => None,
            (memory, _) => memory.map(|_| 0),
        };
        (self.memory_limit, swap)
    }
}

#[derive(Debug, Clone)]
pub struct Security {
    pub privileged: bool,
    /// Capability names without "CAP_", upper case; "ALL" is allowed.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    /// Added, and kept by a process that is not root. Names as above.
    pub add_ambient_capabilities: Vec<String>,
    pub pid: PidScope,
    pub user: Option<UserSpec>,
    pub run_as_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    pub supplemental_groups_policy: GroupsPolicy,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub seccomp: SeccompProfile,
    pub apparmor: AppArmorProfile,
    pub selinux: SelinuxOptions,
}

/// Who runs the container, as the request says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserSpec {
    Id(u32),
    /// A name to look up in the image's /etc/passwd.
    Name(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// The image's groups of the user are added.
    Merge,
    /// Only what the request names.
    Strict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompProfile {
    RuntimeDefault,
    Unconfined,
    /// Absolute path of a profile on the host.
    Localhost(PathBuf),
}

/// What a request says of an SELinux label; `None`: as others have it. The parts have the characters of labels, and it
/// is the kernel that says whether there are such.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelinuxOptions {
    pub user: Option<String>,
    pub role: Option<String>,
    /// The type.
    pub kind: Option<String>,
    pub level: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppArmorProfile {
    Unconfined,
    /// The runtime's own, by name or because nothing was said. Who asks for it in so many words does not
    /// run without it.
    Default {
        asked_for: bool,
    },
    /// One that the kernel is to have already.
    Localhost(String),
}
