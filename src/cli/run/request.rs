//! From `carpel run`'s flags to the requests: what a kubelet would send for the same container.

use std::collections::BTreeMap;

use carpel_api::cri::security_profile::ProfileType;
use carpel_api::cri::{
    Capability, ContainerConfig, ContainerMetadata, Int64Value, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, SecurityProfile,
};
use rand::Rng;

use super::options::User;
use super::{LOG_FOLDER, RunArgs, Space, spec};

/// Microseconds of a scheduling period.
const CPU_PERIOD: i64 = 100_000;
/// Longest hostname.
const MAX_HOSTNAME: usize = 63;

/// What a container does not see of /proc and /sys unless it is privileged. The kubelet names them in each
/// request, as the CRI has no default.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
const MASKED_SYS: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];
/// What it only reads.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

impl RunArgs {
    pub(super) fn pod_config(&self) -> PodSandboxConfig {
        let uid = random_uid();
        let name = match &self.name {
            Some(name) => name.clone(),
            None => format!("{}-{}", base_name(&self.image), &uid[..6]),
        };
        let folder = format!("{}_{name}_{uid}", self.namespace);
        let folder = self.log_dir.join(folder).display().to_string();
        let mut annotations: BTreeMap<_, _> = self.annotation.iter().cloned().collect();
        annotations.insert(LOG_FOLDER.to_owned(), folder.clone());
        let mut hostname = self.hostname.clone().unwrap_or_else(|| name.clone());
        if self.network == Space::Host {
            // That is the host's, too.
            hostname.clear();
        }
        hostname.truncate(MAX_HOSTNAME);
        hostname.truncate(hostname.trim_end_matches(['-', '.']).len());
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name,
                uid,
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            hostname,
            log_directory: folder,
            port_mappings: self.publish.clone(),
            labels: self.label.iter().cloned().collect(),
            annotations,
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    privileged: self.privileged,
                    seccomp: Some(self.seccomp()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    pub(super) fn container_config(&self, pod: &PodSandboxConfig) -> ContainerConfig {
        let name = pod.metadata.clone().unwrap_or_default().name;
        ContainerConfig {
            log_path: format!("{name}/0.log"),
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            image: Some(spec(&self.image)),
            command: self.entrypoint.iter().cloned().collect(),
            args: self.command.clone(),
            working_dir: self.workdir.clone().unwrap_or_default(),
            envs: self.env.clone(),
            mounts: self.mount.clone(),
            devices: self.device.clone(),
            labels: self.label.iter().cloned().collect(),
            annotations: self.annotation.iter().cloned().collect(),
            linux: Some(LinuxContainerConfig {
                resources: Some(self.resources()),
                security_context: Some(self.security()),
            }),
            ..ContainerConfig::default()
        }
    }

    fn namespaces(&self) -> NamespaceOption {
        let of = |space: Space, own: NamespaceMode| match space {
            Space::Own => own.into(),
            Space::Host => NamespaceMode::Node.into(),
        };
        NamespaceOption {
            network: of(self.network, NamespaceMode::Pod),
            pid: of(self.pid, NamespaceMode::Container),
            ipc: NamespaceMode::Pod.into(),
            ..NamespaceOption::default()
        }
    }

    fn seccomp(&self) -> SecurityProfile {
        let kind = match self.privileged {
            true => ProfileType::Unconfined,
            false => ProfileType::RuntimeDefault,
        };
        SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: String::new(),
        }
    }

    fn resources(&self) -> LinuxContainerResources {
        let quota = self
            .cpus
            .map_or(0, |cpus| CPU_PERIOD * i64::from(cpus) / 1000);
        LinuxContainerResources {
            cpu_period: if quota > 0 { CPU_PERIOD } else { 0 },
            // The kernel takes no less than a millisecond.
            cpu_quota: if quota > 0 { quota.max(1000) } else { 0 },
            memory_limit_in_bytes: self
                .memory
                .map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            ..LinuxContainerResources::default()
        }
    }

    fn security(&self) -> LinuxContainerSecurityContext {
        let value = |value: i64| Some(Int64Value { value });
        let (uid, name, gid) = match &self.user {
            None => (None, String::new(), None),
            Some(User::Id { uid, gid }) => (value(*uid), String::new(), *gid),
            Some(User::Name { name, gid }) => (None, name.clone(), *gid),
        };
        let owned = |paths: &[&str]| -> Vec<String> {
            match self.privileged {
                true => Vec::new(),
                false => paths.iter().map(|path| (*path).to_owned()).collect(),
            }
        };
        LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: self.cap_add.clone(),
                drop_capabilities: self.cap_drop.clone(),
                ..Capability::default()
            }),
            privileged: self.privileged,
            namespace_options: Some(self.namespaces()),
            run_as_user: uid,
            run_as_username: name,
            run_as_group: gid.and_then(value),
            readonly_rootfs: self.read_only,
            masked_paths: [owned(&MASKED), owned(&MASKED_SYS)].concat(),
            readonly_paths: owned(&READ_ONLY),
            seccomp: Some(self.seccomp()),
            ..LinuxContainerSecurityContext::default()
        }
    }
}

/// A random UUID, of version 4.
fn random_uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// The last part of an image's name, fit for a pod's.
fn base_name(image: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let last = name.rsplit('/').next().unwrap_or(name);
    let last = last.split_once(':').map_or(last, |(last, _)| last);
    let mut base: String = last
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    base.truncate(40);
    match base.trim_matches('-') {
        "" => "run".to_owned(),
        base => base.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn configs(args: &[&str]) -> (PodSandboxConfig, ContainerConfig) {
        let line = [&["run"], args].concat();
        let args = Line::try_parse_from(line).unwrap().run;
        let pod = args.pod_config();
        let container = args.container_config(&pod);
        (pod, container)
    }

    #[test]
    fn a_plain_run_is_confined() {
        let (pod, container) = configs(&["host:5000/team/Web_App:1", "echo", "-n", "--rm"]);
        let metadata = pod.metadata.unwrap();
        assert!(metadata.name.starts_with("web-app-"), "{metadata:?}");
        assert_eq!(metadata.uid.len(), 36);
        assert_eq!(pod.hostname, metadata.name);
        assert!(
            pod.log_directory
                .starts_with("/var/log/pods/default_web-app-")
        );
        assert_eq!(container.args, ["echo", "-n", "--rm"]);
        assert!(container.command.is_empty());
        let security = container.linux.unwrap().security_context.unwrap();
        assert!(security.masked_paths.contains(&"/proc/kcore".to_owned()));
        assert_eq!(
            security.seccomp.unwrap().profile_type(),
            ProfileType::RuntimeDefault
        );
        let namespaces = security.namespace_options.unwrap();
        assert_eq!(namespaces.pid(), NamespaceMode::Container);
        assert_eq!(namespaces.network(), NamespaceMode::Pod);
    }

    #[test]
    fn flags_go_where_they_belong() {
        let (pod, container) = configs(&[
            "--name=web",
            "--namespace=ns",
            "-e",
            "A=1",
            "-v",
            "/a:/b:ro",
            "-p",
            "8080:80",
            "-m",
            "64m",
            "--cpus",
            "0.25",
            "-u",
            "7:8",
            "--privileged",
            "-w",
            "/srv",
            "--entrypoint",
            "/bin/x",
            "--network",
            "host",
            "-l",
            "k=v",
            "image",
        ]);
        assert_eq!(pod.hostname, "");
        assert_eq!(pod.port_mappings[0].host_port, 8080);
        assert_eq!(pod.labels["k"], "v");
        assert!(pod.annotations[LOG_FOLDER].contains("ns_web_"));
        assert_eq!(container.command, ["/bin/x"]);
        assert_eq!(container.log_path, "web/0.log");
        assert_eq!(container.mounts[0].container_path, "/b");
        let linux = container.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
        assert_eq!(
            (resources.cpu_period, resources.cpu_quota),
            (100_000, 25_000)
        );
        let security = linux.security_context.unwrap();
        assert!(security.privileged && security.masked_paths.is_empty());
        assert_eq!(security.run_as_user.unwrap().value, 7);
        assert_eq!(security.run_as_group.unwrap().value, 8);
        let sandbox = pod.linux.unwrap().security_context.unwrap();
        assert!(sandbox.privileged);
        assert_eq!(
            sandbox.namespace_options.unwrap().network(),
            NamespaceMode::Node
        );
    }

    #[test]
    fn names_are_made_from_images() {
        for (image, base) in [
            ("busybox", "busybox"),
            ("h:1/a/b.c:t", "b-c"),
            ("a@sha256:00", "a"),
            ("___", "run"),
            ("", "run"),
        ] {
            assert_eq!(base_name(image), base, "{image}");
        }
        assert_eq!(base_name(&"x".repeat(99)).len(), 40);
    }
}
