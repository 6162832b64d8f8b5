//! A container's configuration, to be changed by a test.

use std::collections::BTreeMap;

use oci_spec::image::{
    ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder,
};

use super::super::*;
use crate::ids::ContainerId;
use crate::spec::config::*;
use crate::spec::host::CgroupHierarchy;
use crate::spec::oci::{ContainerInput, SandboxFiles};
use crate::spec::user::User;

/// All that a container is built from, owned.
#[derive(Debug, Clone)]
pub(super) struct Fixture {
    pub(super) id: ContainerId,
    pub(super) sandbox: SandboxConfig,
    pub(super) config: ContainerConfig,
    pub(super) image: ImageConfiguration,
    pub(super) user: User,
    pub(super) image_volumes: Vec<oci::ImageVolume>,
    pub(super) process_label: Option<String>,
    pub(super) mount_label: Option<String>,
    pub(super) host: HostFacts,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let security = Security {
            privileged: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            add_ambient_capabilities: Vec::new(),
            pid: PidScope::Container,
            user: None,
            run_as_group: None,
            supplemental_groups: Vec::new(),
            supplemental_groups_policy: GroupsPolicy::Merge,
            readonly_rootfs: false,
            no_new_privs: false,
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            seccomp: SeccompProfile::RuntimeDefault,
            apparmor: AppArmorProfile::Unconfined,
            selinux: SelinuxOptions::default(),
        };
        let config = ContainerConfig {
            name: ContainerName {
                name: "app".into(),
                attempt: 0,
            },
            image: "docker.io/library/app:1".into(),
            user_specified_image: String::new(),
            command: Vec::new(),
            args: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            cdi_devices: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::from([("org.systemd.property.X".into(), "1".into())]),
            log_path: None,
            stdin: false,
            stdin_once: false,
            tty: false,
            resources: Resources::default(),
            security,
            stop_signal: None,
        };
        Self {
            id: ContainerId::random(),
            sandbox: sandbox(),
            config,
            image: image(&["/entry"], &["one"], &["A=image", "B=image"], "/work", &[]),
            user: User {
                uid: 1000,
                gid: 1001,
                groups: vec![1001, 10],
                home: Some("/home/a".into()),
                name: None,
            },
            image_volumes: Vec::new(),
            process_label: None,
            mount_label: None,
            host: host(true),
        }
    }

    pub(super) fn build(&self) -> Result<Source, oci::Error> {
        oci::build(&ContainerInput {
            id: &self.id,
            sandbox: &self.sandbox,
            config: &self.config,
            image: &self.image,
            user: &self.user,
            cgroup_path: "/pods/abc",
            files: SandboxFiles {
                hosts: "/run/s/hosts".into(),
                hostname: "/run/s/hostname".into(),
                resolv_conf: "/run/s/resolv.conf".into(),
            },
            image_volumes: &self.image_volumes,
            process_label: self.process_label.as_deref(),
            mount_label: self.mount_label.as_deref(),
            host: &self.host,
        })
    }

    pub(super) fn compile(&self) -> Compiled {
        compile_container(&self.build().unwrap(), &self.host).unwrap()
    }
}

pub(super) fn sandbox() -> SandboxConfig {
    SandboxConfig {
        name: PodName {
            namespace: "ns".into(),
            name: "pod".into(),
            uid: "u".into(),
            attempt: 0,
        },
        hostname: Some("pod-1".into()),
        log_directory: None,
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        cgroup_parent: None,
        sysctls: BTreeMap::new(),
        network: Scope::Pod,
        ipc: Scope::Pod,
        pid: PidScope::Container,
        user_namespace: None,
        privileged: false,
        selinux: SelinuxOptions::default(),
        runtime_handler: String::new(),
    }
}

pub(super) fn host(v2: bool) -> HostFacts {
    let hierarchy = |name: &str| CgroupHierarchy {
        mounted_on: format!("/sys/fs/cgroup/{}", name.trim_start_matches("name=")).into(),
        controllers: name.into(),
    };
    HostFacts {
        bounding_set: crate::spec::capability::ALL & !(1 << 24),
        cgroups: if v2 {
            CgroupLayout::V2
        } else {
            CgroupLayout::V1(
                ["memory", "cpu,cpuacct", "name=systemd"]
                    .map(hierarchy)
                    .to_vec(),
            )
        },
        open_files: (Some(1024), None),
    }
}

pub(super) fn image(
    entrypoint: &[&str],
    cmd: &[&str],
    env: &[&str],
    dir: &str,
    volumes: &[&str],
) -> ImageConfiguration {
    let owned = |list: &[&str]| {
        list.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let config = ConfigBuilder::default()
        .entrypoint(owned(entrypoint))
        .cmd(owned(cmd))
        .env(owned(env))
        .working_dir(dir)
        .volumes(owned(volumes))
        .build()
        .unwrap();
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(Vec::new())
        .build()
        .unwrap();
    ImageConfigurationBuilder::default()
        .architecture("amd64")
        .os("linux")
        .rootfs(rootfs)
        .config(config)
        .build()
        .unwrap()
}

pub(super) fn mount(path: &str, source: &str) -> Mount {
    Mount {
        container_path: path.into(),
        source: MountSource::Host(source.into()),
        readonly: false,
        recursive_readonly: false,
        propagation: Propagation::Private,
        options: Vec::new(),
        relabel: false,
    }
}
