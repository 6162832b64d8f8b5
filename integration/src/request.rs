//! The usual requests, to be changed field by field where a test wants something else.

use crate::image::BUSYBOX;
use crate::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};

/// A container of the busybox image that runs `command`, in a PID namespace of its own as the kubelet asks
/// for. Its log is `NAME.log` in the pod's folder.
#[must_use]
pub fn container(name: &str, command: &[&str]) -> ContainerConfig {
    let mut config = ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: BUSYBOX.to_owned(),
            ..ImageSpec::default()
        }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        ..ContainerConfig::default()
    };
    config.namespaces().set_pid(NamespaceMode::Container);
    config
}

/// A container that runs a shell script.
#[must_use]
pub fn sh(name: &str, script: &str) -> ContainerConfig {
    container(name, &["/bin/sh", "-c", script])
}

/// A container that runs until it is told to stop, and then stops at once.
#[must_use]
pub fn sleeper(name: &str) -> ContainerConfig {
    sh(name, "trap 'exit 0' TERM; sleep 3600 & wait")
}

/// The configuration of a pod whose logs go to `log_directory`.
#[must_use]
pub fn pod(name: &str, log_directory: &str) -> PodSandboxConfig {
    let mut config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: log_directory.to_owned(),
        ..PodSandboxConfig::default()
    };
    config.namespaces().set_pid(NamespaceMode::Container);
    config
}

/// The nested parts of a pod's configuration, made when first asked for.
pub trait PodConfigExt {
    fn linux(&mut self) -> &mut LinuxPodSandboxConfig;
    fn security(&mut self) -> &mut LinuxSandboxSecurityContext;
    fn namespaces(&mut self) -> &mut NamespaceOption;
}

impl PodConfigExt for PodSandboxConfig {
    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.linux.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxSandboxSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }
}

/// The nested parts of a container's configuration, made when first asked for.
pub trait ContainerConfigExt: Sized {
    fn linux(&mut self) -> &mut LinuxContainerConfig;
    fn resources(&mut self) -> &mut LinuxContainerResources;
    fn security(&mut self) -> &mut LinuxContainerSecurityContext;
    fn namespaces(&mut self) -> &mut NamespaceOption;
    /// Adds a private bind mount.
    #[must_use]
    fn mount(self, host: &std::path::Path, path: &str) -> Self;
    /// Adds an environment variable.
    #[must_use]
    fn env(self, key: &str, value: &[u8]) -> Self;
}

impl ContainerConfigExt for ContainerConfig {
    fn linux(&mut self) -> &mut LinuxContainerConfig {
        self.linux.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut LinuxContainerResources {
        self.linux().resources.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    fn mount(mut self, host: &std::path::Path, path: &str) -> Self {
        self.mounts.push(Mount {
            container_path: path.to_owned(),
            host_path: host.display().to_string(),
            ..Mount::default()
        });
        self
    }

    fn env(mut self, key: &str, value: &[u8]) -> Self {
        self.envs.push(KeyValue {
            key: key.to_owned(),
            value: value.to_vec(),
        });
        self
    }
}
