//! The OCI spec of a container: the request's configuration laid over the image's and the defaults.
//!
//! Nothing of the machine is changed here; the files that are read are the Localhost seccomp profile and
//! the device nodes' metadata. Every error of the user's that can be found without a process is found
//! here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxCpu, LinuxHugepageLimit, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources, LinuxSeccomp,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec, User as OciUser,
};
use serde::{Deserialize, Serialize};

use super::capability;
use super::config::{
    AppArmorProfile, Ceiling, ContainerConfig, IdMap, PidScope, Resources, SandboxConfig,
    SeccompProfile, Security,
};
use super::devices::{self, Devices};
use super::env::{BinaryEnv, DEFAULT_PATH, Environment};
use super::host::{CgroupLayout, HostFacts};
use super::mounts;
use super::net_devices::NetDevice;
use super::user::User;
use crate::apparmor;
use crate::ids::ContainerId;
use crate::seccomp;
use crate::store::layers::LayerId;

/// Why a configuration makes no container. Each names the field and the object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no command specified: neither the request nor the image has one")]
    NoCommand,
    #[error("{field}: {object:?} holds a NUL byte")]
    Nul { field: &'static str, object: String },
    #[error("envs: HOME={0:?} holds a line break or a colon")]
    Home(String),
    #[error("working_dir {0:?}: not an absolute path")]
    WorkingDir(String),
    #[error("capabilities: {0:?} is not a capability")]
    Capability(String),
    #[error("mounts: {path}: {reason}")]
    Mount { path: String, reason: &'static str },
    #[error("devices: {0}")]
    Device(#[from] devices::Error),
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccomp::Error),
}

/// The files that a sandbox's containers see in /etc, unless the request mounts its own.
#[derive(Debug, Clone)]
pub struct SandboxFiles {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv_conf: PathBuf,
}

/// All that a container is made of.
#[derive(Debug, Clone)]
pub struct ContainerInput<'a> {
    pub id: &'a ContainerId,
    pub sandbox: &'a SandboxConfig,
    pub config: &'a ContainerConfig,
    pub image: &'a ImageConfiguration,
    pub user: &'a User,
    /// Absolute path of the container's cgroup in its hierarchy.
    pub cgroup_path: &'a str,
    pub files: SandboxFiles,
    /// The images that the request mounts, in its order.
    pub image_volumes: &'a [ImageVolume],
    /// What SELinux knows its processes by, and its files.
    pub process_label: Option<&'a str>,
    pub mount_label: Option<&'a str>,
    pub host: &'a HostFacts,
}

/// An image that a container has mounted beside its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    pub container_path: PathBuf,
    /// Its id.
    pub image: String,
    pub layers: Vec<LayerId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<PathBuf>,
}

impl ImageVolume {
    /// What the spec has as the mount's source: relative, so that no path of the host is ever taken for it.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        let image = PathBuf::from(format!("image:{}", self.image));
        match &self.sub_path {
            Some(path) => image.join(path),
            None => image,
        }
    }
}

/// All that a container's Plans are compiled from, now or by a later daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    pub id: ContainerId,
    pub spec: Spec,
    /// What of the environment the spec cannot hold.
    #[serde(default)]
    pub binary_env: BinaryEnv,
    pub pid: PidScope,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_volumes: Vec<ImageVolume>,
    /// The folder that hooks find the container's spec in. `None`: it has no hooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PathBuf>,
    /// What of the bundle's path is covered for hooks of a pod with a user namespace, whose root is nobody on the host:
    /// the first folder on the way that is not everybody's, or the bundle itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cover: Option<PathBuf>,
    /// Interfaces of the host that are in the pod while the container runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<NetDevice>,
    /// Beside the spec, where it would be many times as long as all the rest.
    pub seccomp: Filter,
}

impl Source {
    /// Whether the pod has a user namespace. The spec says which ids are mapped.
    #[must_use]
    pub fn in_user_namespace(&self) -> bool {
        in_user_namespace(&self.spec)
    }

    /// The SELinux label of the container's files.
    #[must_use]
    pub fn mount_label(&self) -> Option<&str> {
        self.spec.linux().as_ref()?.mount_label().as_deref()
    }
}

pub(super) fn in_user_namespace(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// What system calls are filtered by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Filter {
    Unconfined,
    /// The default profile of a process with this bounding set (bit = capability).
    Default {
        capabilities: u64,
    },
    Profile(LinuxSeccomp),
}

/// The spec of a container.
///
/// # Errors
/// [`Error`] for whatever the user has to change.
pub fn build(input: &ContainerInput<'_>) -> Result<Source, Error> {
    let security = &input.config.security;
    let in_user_namespace = input.sandbox.user_namespace.is_some();
    // In a user namespace every right can be had: it is one over what belongs to the namespace.
    let possible = match in_user_namespace {
        true => capability::ALL,
        false => input.host.bounding_set,
    };
    let ambient = ambient(security)? & possible;
    let capabilities = capabilities(security)? & possible | ambient;
    let devices = devices::build(
        &input.config.devices,
        security.privileged,
        in_user_namespace,
    )?;
    let mut mounts = mounts::build(input)?;
    if in_user_namespace {
        mounts::bind_devices(&mut mounts, &devices);
    }
    let (process, binary_env) = process(input, capabilities, ambient)?;
    let mut root = Root::default();
    root.set_path("rootfs".into())
        .set_readonly(Some(security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version("1.2.0".into())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_hostname(None)
        .set_mounts(Some(mounts))
        .set_annotations(Some(annotations(input)))
        .set_linux(Some(linux(input, devices)?));
    Ok(Source {
        id: *input.id,
        spec,
        binary_env,
        pid: pid_scope(security.pid, input.sandbox.pid),
        image_volumes: input.image_volumes.to_vec(),
        bundle: None,
        cover: None,
        net_devices: Vec::new(),
        seccomp: filter(security, capabilities)?,
    })
}

/// The image's volumes that need a directory of their own: those that no mount of the request covers.
pub(super) fn image_volumes(image: &ImageConfiguration, config: &ContainerConfig) -> Vec<String> {
    let volumes = image
        .config()
        .as_ref()
        .and_then(|config| config.volumes().as_ref());
    let mut paths: Vec<String> = volumes
        .into_iter()
        .flatten()
        .filter_map(|path| mounts::normal(path))
        .filter(|path| {
            !config
                .mounts
                .iter()
                .any(|mount| Path::new(path).starts_with(&mount.container_path))
        })
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

fn capabilities(security: &Security) -> Result<u64, Error> {
    if security.privileged {
        return Ok(capability::ALL);
    }
    capability::resolve(&security.add_capabilities, &security.drop_capabilities)
        .map_err(Error::Capability)
}

/// What a process that is not root keeps, too. What is dropped is dropped.
fn ambient(security: &Security) -> Result<u64, Error> {
    capability::added(
        &security.add_ambient_capabilities,
        &security.drop_capabilities,
    )
    .map_err(Error::Capability)
}

fn process(
    input: &ContainerInput<'_>,
    capabilities: u64,
    ambient: u64,
) -> Result<(Process, BinaryEnv), Error> {
    let ContainerInput { config, user, .. } = input;
    let (env, binary_env) = environment(input)?.split();
    let mut oci_user = OciUser::default();
    oci_user
        .set_uid(user.uid)
        .set_gid(user.gid)
        .set_additional_gids(Some(user.groups.clone()))
        .set_username(user.name.clone());
    let held = || Some(capability::to_oci(capabilities));
    // The kernel raises nothing that is not inheritable; nothing else is.
    let kept = || Some(capability::to_oci(ambient));
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(held())
        .set_permitted(held())
        .set_effective(held());
    sets.set_inheritable(kept()).set_ambient(kept());
    let mut process = Process::default();
    process
        .set_terminal(Some(config.tty))
        .set_user(oci_user)
        .set_args(Some(arguments(input)?))
        .set_env(Some(env))
        .set_cwd(working_dir(input)?.into())
        .set_capabilities(Some(sets))
        .set_rlimits(Some(vec![open_files(input.host)]))
        .set_no_new_privileges(Some(config.security.no_new_privs))
        .set_oom_score_adj(Some(config.resources.oom_score_adj))
        .set_apparmor_profile(match &config.security.apparmor {
            AppArmorProfile::Unconfined => None,
            AppArmorProfile::Default { .. } => Some(apparmor::DEFAULT.to_owned()),
            AppArmorProfile::Localhost(name) => Some(name.clone()),
        })
        .set_selinux_label(input.process_label.map(str::to_owned));
    Ok((process, binary_env))
}

/// The limit that the daemon itself was started with.
fn open_files(host: &HostFacts) -> PosixRlimit {
    let (soft, hard) = host.open_files;
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(soft.unwrap_or(u64::MAX))
        .hard(hard.unwrap_or(u64::MAX))
        .build()
        .expect("every field is given")
}

/// A command replaces the image's entrypoint and its arguments; arguments alone replace only those.
fn arguments(input: &ContainerInput<'_>) -> Result<Vec<String>, Error> {
    let ContainerInput { config, image, .. } = input;
    let image = image.config().as_ref();
    let list = |list: Option<&Option<Vec<String>>>| list.cloned().flatten().unwrap_or_default();
    let mut arguments = config.command.clone();
    if arguments.is_empty() {
        arguments = list(image.map(|image| image.entrypoint()));
        // What a builder writes for "no entrypoint".
        if arguments == [""] {
            arguments.clear();
        }
        if config.args.is_empty() {
            arguments.extend(list(image.map(|image| image.cmd())));
        }
    }
    arguments.extend(config.args.iter().cloned());
    check_command(&arguments)?;
    Ok(arguments)
}

/// A command has a program, and no NUL in it.
pub(super) fn check_command(arguments: &[String]) -> Result<(), Error> {
    if arguments.first().is_none_or(String::is_empty) {
        return Err(Error::NoCommand);
    }
    match arguments.iter().find(|argument| argument.contains('\0')) {
        Some(argument) => Err(Error::Nul {
            field: "command",
            object: argument.clone(),
        }),
        None => Ok(()),
    }
}

/// Defaults, then the image's variables, then the request's; HOME if nobody has said it.
fn environment(input: &ContainerInput<'_>) -> Result<Environment, Error> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH.as_bytes());
    if input.config.tty {
        env.set("TERM", b"xterm");
    }
    let hostname = match &input.sandbox.hostname {
        Some(hostname) => hostname.clone(),
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    };
    env.set("HOSTNAME", hostname.as_bytes());
    let image = input
        .image
        .config()
        .as_ref()
        .and_then(|config| config.env().as_ref());
    for entry in image.into_iter().flatten() {
        env.apply(entry);
    }
    for (name, value) in &input.config.env {
        env.set(name, value);
    }
    if env.get("HOME").is_none_or(<[u8]>::is_empty) {
        let home = input.user.home.as_deref().unwrap_or("/");
        env.set("HOME", home.as_bytes());
    }
    if let Some(name) = env.with_nul() {
        return Err(Error::Nul {
            field: "envs",
            object: name.to_owned(),
        });
    }
    // It ends in the user database of whatever copies it there.
    let home = env.get("HOME").unwrap_or_default();
    if home.iter().any(|byte| matches!(byte, b'\n' | b'\r' | b':')) {
        return Err(Error::Home(String::from_utf8_lossy(home).into_owned()));
    }
    Ok(env)
}

fn working_dir(input: &ContainerInput<'_>) -> Result<String, Error> {
    let image = input
        .image
        .config()
        .as_ref()
        .and_then(|config| config.working_dir().as_deref());
    let requested = input
        .config
        .working_dir
        .as_deref()
        .filter(|dir| !dir.is_empty());
    let dir = match requested {
        Some(dir) if dir.starts_with('/') => dir.to_owned(),
        Some(dir) => return Err(Error::WorkingDir(dir.to_owned())),
        // Builders of old wrote relative ones; they begin at the root.
        None => format!("/{}", image.unwrap_or_default().trim_start_matches('/')),
    };
    if dir.contains('\0') {
        return Err(Error::Nul {
            field: "working_dir",
            object: dir,
        });
    }
    Ok(dir)
}

fn linux(input: &ContainerInput<'_>, devices: Devices) -> Result<Linux, Error> {
    let security = &input.config.security;
    let mut resources = resources(&input.config.resources);
    resources.set_devices(Some(devices.rules));
    let hidden = |paths: &[String]| {
        let paths = if security.privileged { &[] } else { paths };
        match paths
            .iter()
            .find(|path| !path.starts_with('/') || path.contains('\0'))
        {
            Some(path) => Err(Error::Mount {
                path: path.clone(),
                reason: "a masked or read-only path is not absolute",
            }),
            None => Ok(Some(paths.to_owned())),
        }
    };
    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources))
        .set_cgroups_path(Some(input.cgroup_path.into()))
        .set_namespaces(Some(namespaces(input)))
        .set_devices(Some(devices.nodes))
        .set_mount_label(input.mount_label.map(str::to_owned))
        .set_masked_paths(hidden(&security.masked_paths)?)
        .set_readonly_paths(hidden(&security.readonly_paths)?);
    if let Some(user) = &input.sandbox.user_namespace {
        linux
            .set_uid_mappings(Some(vec![id_mapping(user.uids)]))
            .set_gid_mappings(Some(vec![id_mapping(user.gids)]));
    }
    Ok(linux)
}

fn id_mapping(ids: IdMap) -> LinuxIdMapping {
    LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(ids.host)
        .size(ids.count)
        .build()
        .expect("every field is given")
}

/// The pod's PID namespace is the node's if the pod is among the node's processes, as with the peers.
fn pid_scope(wanted: PidScope, of_pod: PidScope) -> PidScope {
    match (wanted, of_pod) {
        (PidScope::Pod, PidScope::Node) => PidScope::Node,
        (wanted, _) => wanted,
    }
}

/// The namespaces that are the container's own. All others are those of the process that clones it: the
/// pod's supervisor.
fn namespaces(input: &ContainerInput<'_>) -> Vec<LinuxNamespace> {
    let security = &input.config.security;
    let mut types = vec![LinuxNamespaceType::Mount];
    if input.sandbox.user_namespace.is_some() {
        types.push(LinuxNamespaceType::User);
    }
    if security.pid == PidScope::Container {
        types.push(LinuxNamespaceType::Pid);
    }
    let confined = !security.privileged || input.sandbox.user_namespace.is_some();
    if input.host.cgroups == CgroupLayout::V2 && confined {
        types.push(LinuxNamespaceType::Cgroup);
    }
    let own = |typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    };
    types.into_iter().map(own).collect()
}

/// Writes other limits into a spec. The rules of devices stay.
pub fn set_limits(spec: &mut Spec, limits: &Resources) {
    if let Some(process) = spec.process_mut() {
        process.set_oom_score_adj(Some(limits.oom_score_adj));
    }
    if let Some(linux) = spec.linux_mut() {
        let known = linux.resources().as_ref();
        let devices = known.and_then(|known| known.devices().clone());
        let mut resources = resources(limits);
        resources.set_devices(devices);
        linux.set_resources(Some(resources));
    }
}

fn resources(wanted: &Resources) -> LinuxResources {
    let signed = |value: Option<u64>| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    // The spec writes "unlimited" as -1.
    let ceiling = |value: Option<Ceiling>| match value {
        Some(Ceiling::Unlimited) => Some(-1),
        Some(Ceiling::At(value)) => signed(Some(value)),
        None => None,
    };
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(wanted.cpu_shares)
        .set_quota(ceiling(wanted.cpu_quota))
        .set_period(wanted.cpu_period)
        .set_cpus(wanted.cpuset_cpus.clone())
        .set_mems(wanted.cpuset_mems.clone());
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(signed(wanted.memory_limit))
        .set_swap(ceiling(wanted.memory_swap_limit));
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu)).set_memory(Some(memory));
    if let Some(limit) = ceiling(wanted.pids_limit) {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if !wanted.huge_pages.is_empty() {
        let limit = |(size, limit): (&String, &u64)| {
            let mut huge_pages = LinuxHugepageLimit::default();
            huge_pages.set_page_size(size.clone());
            huge_pages.set_limit(signed(Some(*limit)).unwrap_or(i64::MAX));
            huge_pages
        };
        resources.set_hugepage_limits(Some(wanted.huge_pages.iter().map(limit).collect()));
    }
    if !wanted.unified.is_empty() {
        resources.set_unified(Some(wanted.unified.clone().into_iter().collect()));
    }
    resources
}

fn filter(security: &Security, capabilities: u64) -> Result<Filter, Error> {
    if security.privileged {
        return Ok(Filter::Unconfined);
    }
    Ok(match &security.seccomp {
        SeccompProfile::Unconfined => Filter::Unconfined,
        SeccompProfile::RuntimeDefault => Filter::Default { capabilities },
        SeccompProfile::Localhost(path) => {
            let profile = seccomp::load_profile(path, capabilities)?;
            // Errors belong to the request that names the profile.
            seccomp::compile(&profile)?;
            Filter::Profile(profile)
        }
    })
}

/// What other runtimes and tools know a container by. The request's own annotations are for the CRI's
/// clients: none reaches a runtime.
fn annotations(input: &ContainerInput<'_>) -> HashMap<String, String> {
    let ContainerInput {
        sandbox, config, ..
    } = input;
    [
        ("container-type", "container".to_owned()),
        ("container-name", config.name.name.clone()),
        ("image-name", config.image.clone()),
        ("sandbox-name", sandbox.name.name.clone()),
        ("sandbox-namespace", sandbox.name.namespace.clone()),
        ("sandbox-uid", sandbox.name.uid.clone()),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value))
    .collect()
}
