//! The daemon's configuration: from files and flags to one checked [`Config`].
//!
//! Three layers, the later wins key by key: the defaults, the file with its drop-ins (`conf.d/*.toml`
//! beside it, in lexical order), the flags. Every value is checked where it is read, so that an error
//! names the file and the line; what is in a [`Config`] is not checked again.

mod flags;
mod layer;
mod value;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use flags::Flags;
pub use layer::{ConfigError, Layer};
pub(crate) use layer::{invalid, parse};
pub use value::{
    AbsolutePath, CgroupParent, Collector, Endpoint, LogFormat, LogLevel, Ratio, SearchPath,
};

use crate::image::pinned::NamePattern;
use crate::image::registry::RegistryHost;
use crate::image::trust::{Policy, PolicyError};
use crate::nri;
use crate::spec::base::{self, BaseSpec};

/// Where the configuration is read from unless a flag says otherwise.
pub const DEFAULT_FILE: &str = "/etc/carpel/config.toml";

/// The defaults as a file, with an explanation of every key: what `carpel config default` prints.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");

/// How this daemon shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Durable state: images, records, the containers' writable layers.
    pub root: PathBuf,
    /// Volatile state: the supervisors' sockets, exits written down. Gone after a reboot.
    pub state: PathBuf,
    /// Socket that the CRI is served on.
    pub listen: Endpoint,
    /// Threads that answer requests.
    pub workers: usize,
    pub cgroup: Cgroup,
    pub runtime: Runtime,
    pub cdi: Cdi,
    pub nri: Plugins,
    pub network: Network,
    pub image: Images,
    pub registry: Registry,
    pub streaming: Streaming,
    pub libexec: Libexec,
    pub log: Log,
    pub telemetry: Telemetry,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cgroup {
    /// Parent of a pod's cgroups when the request names none.
    pub parent: CgroupParent,
    /// Most processes and threads of a container when the request names no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
}

/// What every container gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// Whether containers have SELinux labels where SELinux is on.
    pub selinux: bool,
    /// A file of the OCI runtime specification that is laid below every container's spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_spec: Option<PathBuf>,
}

impl Runtime {
    /// Reads the base spec, if there is one.
    ///
    /// # Errors
    /// What in it carpel cannot fulfil.
    pub fn base_spec(&self) -> Result<BaseSpec, base::Error> {
        match &self.base_spec {
            Some(path) => BaseSpec::read(path),
            None => Ok(BaseSpec::default()),
        }
    }
}

/// Devices that are described by files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cdi {
    /// Folders of specifications; a later one goes before.
    pub dirs: Vec<PathBuf>,
    /// Whether a container's annotations may name devices, as those of device plugins do.
    pub annotations: bool,
}

/// Plugins that have a say in how containers are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plugins {
    pub enabled: bool,
    /// Where they connect.
    pub socket: PathBuf,
    /// Folder of those that are started with the daemon.
    pub plugin_dir: PathBuf,
    /// Folder of their configurations.
    pub config_dir: PathBuf,
    /// How long one may take from its connection to its registration.
    #[serde(
        rename = "registration_timeout_seconds",
        serialize_with = "whole_seconds"
    )]
    pub registration_timeout: Duration,
    /// How long one may take to answer.
    #[serde(rename = "request_timeout_seconds", serialize_with = "whole_seconds")]
    pub request_timeout: Duration,
}

impl Plugins {
    /// For the daemon's own code; `None`: there are none.
    #[must_use]
    pub fn settings(&self) -> Option<nri::Settings> {
        self.enabled.then(|| nri::Settings {
            socket: self.socket.clone(),
            folders: nri::Folders {
                plugins: self.plugin_dir.clone(),
                config: self.config_dir.clone(),
            },
            times: nri::Times {
                registration: self.registration_timeout,
                request: self.request_timeout,
            },
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Folder of CNI configurations; the first in lexical order counts.
    pub conf_dir: PathBuf,
    /// Folders that plugins are looked for in, before carpel's own.
    pub bin_dirs: Vec<PathBuf>,
    /// Whether the built-in bridge network is used while `conf_dir` holds no configuration.
    pub default_network: bool,
    /// A template that `conf_dir` gets a configuration from when the kubelet says the node's pod addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conf_template: Option<PathBuf>,
    /// How long one plugin may take.
    #[serde(rename = "timeout_seconds", serialize_with = "whole_seconds")]
    pub timeout: Duration,
    /// How often the deletion of a gone pod's network is tried again.
    #[serde(rename = "retry_seconds", serialize_with = "whole_seconds")]
    pub retry: Duration,
    /// Folder that the pods' network namespaces are pinned in.
    pub netns_dir: PathBuf,
}

/// The images that are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Images {
    /// Names of images that nobody may clear away.
    pub pinned: Vec<NamePattern>,
    /// A file of containers-policy.json(5) that says which images may be pulled. `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature_policy: Option<PathBuf>,
}

impl Images {
    /// Reads the policy, if there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn policy(&self) -> Result<Policy, PolicyError> {
        match &self.signature_policy {
            Some(path) => Policy::read(path),
            None => Ok(Policy::default()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Registry {
    /// Registries that are spoken to over http. Those on the loopback interface are anyway.
    pub plain_http: Vec<RegistryHost>,
    /// Hosts of token services that may be given the credentials of registries of other sites.
    pub token_hosts: Vec<RegistryHost>,
    /// Folders of `HOST/hosts.toml`, as containerd has them; the first that knows the host counts. Read for each pull.
    pub config_path: SearchPath,
    /// Files with credentials, as docker, podman and the kubelet write them. Read for each pull.
    pub auth_files: Vec<PathBuf>,
    /// Layers of one image that are fetched at once.
    pub parallel_layers: usize,
    /// How long a registry may take to connect, to answer, and to send the next bytes.
    #[serde(rename = "timeout_seconds", serialize_with = "whole_seconds")]
    pub timeout: Duration,
}

/// The server that clients of exec, attach and port-forward come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Streaming {
    /// Port 0: one that the kernel chooses.
    pub address: SocketAddr,
    /// `None`: plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tls {
    /// The chain, in PEM.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// carpel's other programs. `None`: looked for beside the executable that looks, then in `../libexec/carpel` from
/// there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Libexec {
    /// What `carpel serve` becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervisor: Option<PathBuf>,
    /// carpel's own CNI plugins, all in one binary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Telemetry {
    /// Where the daemon's own figures are served for Prometheus. `None`: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Who is sent traces. `None`: nobody, and none are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<Collector>,
    /// How many of the calls are traced whose caller does not say.
    pub sampling_ratio: Ratio,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/carpel".into(),
            state: "/run/carpel".into(),
            listen: Endpoint::default(),
            workers: 2,
            cgroup: Cgroup {
                parent: CgroupParent::default(),
                pids_limit: None,
            },
            runtime: Runtime {
                selinux: true,
                base_spec: None,
            },
            cdi: Cdi {
                dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
                annotations: true,
            },
            nri: Plugins {
                enabled: true,
                socket: "/var/run/nri/nri.sock".into(),
                plugin_dir: "/opt/nri/plugins".into(),
                config_dir: "/etc/nri/conf.d".into(),
                registration_timeout: Duration::from_secs(5),
                request_timeout: Duration::from_secs(2),
            },
            network: Network {
                conf_dir: "/etc/cni/net.d".into(),
                bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
                default_network: false,
                conf_template: None,
                timeout: Duration::from_secs(60),
                retry: Duration::from_secs(30),
                netns_dir: "/run/netns".into(),
            },
            image: Images::default(),
            registry: Registry {
                plain_http: Vec::new(),
                token_hosts: Vec::new(),
                config_path: "/etc/carpel/certs.d:/etc/containerd/certs.d"
                    .parse()
                    .expect("two absolute paths"),
                auth_files: Vec::new(),
                parallel_layers: 3,
                timeout: Duration::from_secs(30),
            },
            streaming: Streaming {
                address: (Ipv4Addr::LOCALHOST, 0).into(),
                tls: None,
            },
            libexec: Libexec::default(),
            log: Log {
                level: LogLevel::Info,
                format: LogFormat::Text,
            },
            telemetry: Telemetry {
                metrics: None,
                traces: None,
                sampling_ratio: Ratio::ALL,
            },
        }
    }
}

impl Config {
    /// Reads `file` and its drop-ins and lays `flags` over them. `None` is [`DEFAULT_FILE`], which
    /// may be missing; a file that was asked for may not. Returns the files that were read, too.
    ///
    /// # Errors
    /// A file that cannot be read, is no TOML, or has an unknown key or a value that is not allowed.
    pub fn load(file: Option<&Path>, flags: Layer) -> Result<(Self, Vec<PathBuf>), ConfigError> {
        let mut read = Vec::new();
        let mut config = Self::default();
        for path in layer::files(file)? {
            config.apply(Layer::read(&path)?);
            read.push(path);
        }
        config.apply(flags);
        Ok((config, read))
    }

    fn apply(&mut self, layer: Layer) {
        fn set<T>(field: &mut T, value: Option<impl Into<T>>) {
            if let Some(value) = value {
                *field = value.into();
            }
        }
        fn set_option<T>(field: &mut Option<T>, value: Option<impl Into<T>>) {
            if let Some(value) = value {
                *field = Some(value.into());
            }
        }
        set(&mut self.root, layer.root);
        set(&mut self.state, layer.state);
        set(&mut self.listen, layer.listen);
        set(
            &mut self.workers,
            layer.workers.map(|n| usize::from(n.get())),
        );
        set(&mut self.cgroup.parent, layer.cgroup.parent);
        set_option(
            &mut self.cgroup.pids_limit,
            layer.cgroup.pids_limit.map(|n| u64::from(n.get())),
        );
        set(&mut self.runtime.selinux, layer.runtime.selinux);
        set_option(&mut self.runtime.base_spec, layer.runtime.base_spec);
        if let Some(dirs) = layer.cdi.dirs {
            self.cdi.dirs = dirs.into_iter().map(PathBuf::from).collect();
        }
        set(&mut self.cdi.annotations, layer.cdi.annotations);
        let nri = layer.nri;
        set(&mut self.nri.enabled, nri.enabled);
        set(&mut self.nri.socket, nri.socket);
        set(&mut self.nri.plugin_dir, nri.plugin_dir);
        set(&mut self.nri.config_dir, nri.config_dir);
        if let Some(seconds) = nri.registration_timeout_seconds {
            self.nri.registration_timeout = Duration::from_secs(seconds.get().into());
        }
        if let Some(seconds) = nri.request_timeout_seconds {
            self.nri.request_timeout = Duration::from_secs(seconds.get().into());
        }
        let network = layer.network;
        set(&mut self.network.conf_dir, network.conf_dir);
        if let Some(dirs) = network.bin_dirs {
            self.network.bin_dirs = dirs.into_iter().map(PathBuf::from).collect();
        }
        set(&mut self.network.default_network, network.default_network);
        set_option(&mut self.network.conf_template, network.conf_template);
        if let Some(seconds) = network.timeout_seconds {
            self.network.timeout = Duration::from_secs(u32::from(seconds).into());
        }
        if let Some(seconds) = network.retry_seconds {
            self.network.retry = Duration::from_secs(u32::from(seconds).into());
        }
        set(&mut self.network.netns_dir, network.netns_dir);
        set(&mut self.image.pinned, layer.image.pinned);
        set_option(
            &mut self.image.signature_policy,
            layer.image.signature_policy,
        );
        let registry = layer.registry;
        set(&mut self.registry.plain_http, registry.plain_http);
        set(&mut self.registry.token_hosts, registry.token_hosts);
        set(&mut self.registry.config_path, registry.config_path);
        if let Some(files) = registry.auth_files {
            self.registry.auth_files = files.into_iter().map(PathBuf::from).collect();
        }
        set(
            &mut self.registry.parallel_layers,
            registry.parallel_layers.map(|n| usize::from(n.get())),
        );
        if let Some(seconds) = registry.timeout_seconds {
            self.registry.timeout = Duration::from_secs(u32::from(seconds).into());
        }
        set(&mut self.streaming.address, layer.streaming.address);
        if let Some(tls) = layer.streaming.tls {
            self.streaming.tls = Some(Tls {
                certificate: tls.certificate.into(),
                key: tls.key.into(),
            });
        }
        set_option(&mut self.libexec.daemon, layer.libexec.daemon);
        set_option(&mut self.libexec.supervisor, layer.libexec.supervisor);
        set_option(&mut self.libexec.cni, layer.libexec.cni);
        set(&mut self.log.level, layer.log.level);
        set(&mut self.log.format, layer.log.format);
        let telemetry = layer.telemetry;
        set_option(&mut self.telemetry.metrics, telemetry.metrics);
        set_option(&mut self.telemetry.traces, telemetry.traces);
        set(&mut self.telemetry.sampling_ratio, telemetry.sampling_ratio);
    }

    /// The configuration as a file that, read again, gives the same.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of a configuration has a TOML form")
    }
}

/// A program of carpel was not found.
#[derive(Debug, thiserror::Error)]
#[error("{program} is not in {}; reinstall carpel or set libexec.{key}", .searched.join(" or "))]
pub struct MissingProgram {
    program: &'static str,
    key: &'static str,
    searched: Vec<String>,
}

impl Libexec {
    /// Where the daemon is.
    ///
    /// # Errors
    /// [`MissingProgram`] if there is none.
    pub fn find_daemon(&self) -> Result<PathBuf, MissingProgram> {
        find("carpel-daemon", "daemon", self.daemon.as_deref())
    }

    /// Where the supervisor is.
    ///
    /// # Errors
    /// [`MissingProgram`] if there is none.
    pub fn find_supervisor(&self) -> Result<PathBuf, MissingProgram> {
        find(
            "carpel-supervisor",
            "supervisor",
            self.supervisor.as_deref(),
        )
    }

    /// Where carpel's own CNI plugins are.
    ///
    /// # Errors
    /// [`MissingProgram`] if they are nowhere.
    pub fn find_cni(&self) -> Result<PathBuf, MissingProgram> {
        find("carpel-cni", "cni", self.cni.as_deref())
    }
}

fn find(
    program: &'static str,
    key: &'static str,
    configured: Option<&Path>,
) -> Result<PathBuf, MissingProgram> {
    let candidates = match configured {
        Some(path) => vec![path.to_owned()],
        None => {
            let exe = std::env::current_exe().unwrap_or_default();
            let beside = exe.parent().unwrap_or(Path::new("/"));
            let prefix = beside.parent().unwrap_or(Path::new("/"));
            vec![
                beside.join(program),
                prefix.join("libexec/carpel").join(program),
            ]
        }
    };
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.canonicalize().unwrap_or_else(|_| path.clone())),
        None => Err(MissingProgram {
            program,
            key,
            searched: candidates
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
        }),
    }
}

fn whole_seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(time.as_secs())
}

#[cfg(test)]
mod tests;
