//! What the two large requests refuse, field by field: the kind of refusal and the text that a person gets.

mod container;
mod fields;
mod sandbox;

use carpel_api::cri;
use carpel_api::cri::security_profile::ProfileType;

use super::container::CreateContainer;
use super::*;
use crate::spec::config::{
    AppArmorProfile, GroupsPolicy, IdMap, PidScope, SandboxConfig, Scope, SeccompProfile,
    SelinuxOptions, UserNamespace,
};

const PLATFORM: Platform = Platform {
    apparmor: false,
    recursive_read_only: true,
    unified: true,
};

/// The same platform with AppArmor.
const LSM: Platform = Platform {
    apparmor: true,
    recursive_read_only: true,
    unified: true,
};

pub fn sandbox_request() -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "pod".into(),
                uid: "a-b-c".into(),
                namespace: "ns".into(),
                attempt: 1,
            }),
            hostname: "pod".into(),
            log_directory: "/var/log/pods/ns_pod_a-b-c".into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/besteffort/poda-b-c".into(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(kubelet_namespaces()),
                    seccomp: Some(profile(ProfileType::RuntimeDefault, "")),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        runtime_handler: String::new(),
    }
}

pub fn container_request() -> cri::CreateContainerRequest {
    cri::CreateContainerRequest {
        pod_sandbox_id: "a".repeat(64),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "web".into(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: "sha256:1234".into(),
                ..Default::default()
            }),
            log_path: "web/0.log".into(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    cpu_shares: 2,
                    oom_score_adj: 1000,
                    hugepage_limits: vec![cri::HugepageLimit {
                        page_size: "1GB".into(),
                        limit: 0,
                    }],
                    ..Default::default()
                }),
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(kubelet_namespaces()),
                    masked_paths: vec!["/proc/kcore".into()],
                    readonly_paths: vec!["/proc/sys".into()],
                    seccomp: Some(profile(ProfileType::RuntimeDefault, "")),
                    apparmor: Some(profile(ProfileType::RuntimeDefault, "")),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }),
        sandbox_config: sandbox_request().config,
    }
}

/// What a kubelet sends for an ordinary pod.
fn kubelet_namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        pid: cri::NamespaceMode::Container.into(),
        ..Default::default()
    }
}

fn profile(kind: ProfileType, reference: &str) -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: reference.into(),
    }
}

fn sandbox(
    change: impl FnOnce(&mut cri::PodSandboxConfig),
    platform: Platform,
) -> Result<SandboxConfig, Rejected> {
    let mut request = sandbox_request();
    change(request.config.as_mut().expect("the sample has one"));
    run_pod_sandbox(request, platform)
}

fn container(
    change: impl FnOnce(&mut cri::ContainerConfig),
    platform: Platform,
) -> Result<CreateContainer, Rejected> {
    let mut request = container_request();
    change(request.config.as_mut().expect("the sample has one"));
    create_container(request, platform)
}

type SandboxChange = fn(&mut cri::LinuxSandboxSecurityContext);
type ContainerChange = fn(&mut cri::LinuxContainerSecurityContext);

fn sandbox_security(change: SandboxChange) -> Result<SandboxConfig, Rejected> {
    let linux = |config: &mut cri::PodSandboxConfig| {
        let linux = config.linux.get_or_insert_default();
        change(linux.security_context.get_or_insert_default());
    };
    sandbox(linux, PLATFORM)
}

fn sandbox_security_of(
    change: &dyn Fn(&mut cri::LinuxSandboxSecurityContext),
) -> Result<SandboxConfig, Rejected> {
    let linux = |config: &mut cri::PodSandboxConfig| {
        let linux = config.linux.get_or_insert_default();
        change(linux.security_context.get_or_insert_default());
    };
    sandbox(linux, PLATFORM)
}

fn container_security(
    change: ContainerChange,
    platform: Platform,
) -> Result<CreateContainer, Rejected> {
    let linux = |config: &mut cri::ContainerConfig| {
        let linux = config.linux.get_or_insert_default();
        change(linux.security_context.get_or_insert_default());
    };
    container(linux, platform)
}

fn invalid(text: &str, object: &str) -> Rejected {
    Rejected::Invalid(format!("config.{text} ({object})"))
}

fn unsupported(text: &str, object: &str) -> Rejected {
    Rejected::Unsupported(format!("config.{text} ({object})"))
}

#[test]
fn what_a_kubelet_sends_passes() {
    let config = sandbox(|_| {}, LSM).expect("an ordinary pod");
    assert_eq!(config.hostname.as_deref(), Some("pod"));
    assert_eq!((config.network, config.ipc), (Scope::Pod, Scope::Pod));
    assert_eq!(config.pid, PidScope::Container);
    let created = container(|_| {}, PLATFORM).expect("an ordinary container");
    let security = &created.config.security;
    assert_eq!(security.seccomp, SeccompProfile::RuntimeDefault);
    assert_eq!(security.supplemental_groups_policy, GroupsPolicy::Merge);
    assert_eq!(security.masked_paths, ["/proc/kcore"]);
    assert_eq!(created.config.resources.oom_score_adj, 1000);
    assert_eq!(fits_sandbox(&created, &config), Ok(()));
}

#[test]
fn the_least_that_a_person_sends_passes() {
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: "ab".into(),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "x".into(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: "busybox".into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        sandbox_config: None,
    };
    let created = create_container(request, LSM).expect("a container with defaults");
    assert_eq!(created.config.security.pid, PidScope::Pod);
    assert_eq!(created.config.security.seccomp, SeccompProfile::Unconfined);
    assert_eq!(created.config.log_path, None);
    let pod = sandbox(|config| config.linux = None, LSM).expect("a sandbox with defaults");
    assert_eq!((pod.pid, pod.cgroup_parent), (PidScope::Pod, None));
}

#[test]
fn a_container_asks_for_no_more_than_its_pod_has() {
    let pod = sandbox(|_| {}, PLATFORM).expect("an ordinary pod");
    let check = |change: ContainerChange| {
        let created = container_security(change, PLATFORM).expect("good in itself");
        fits_sandbox(&created, &pod).map_err(|error| error.to_string())
    };
    fn options(context: &mut cri::LinuxContainerSecurityContext) -> &mut cri::NamespaceOption {
        context.namespace_options.get_or_insert_default()
    }
    let about = |text: &str| {
        Err(format!(
            "config.linux.security_context.{text} (container \"web\")"
        ))
    };
    assert_eq!(
        check(|c| c.privileged = true),
        about("privileged: needs a privileged sandbox")
    );
    // As a kubelet says it of a pod that has got a privileged ephemeral container.
    let mut request = container_request();
    let config = request.config.as_mut().and_then(|c| c.linux.as_mut());
    let context = config.and_then(|linux| linux.security_context.as_mut());
    context.expect("a security context").privileged = true;
    let pod_now = request
        .sandbox_config
        .as_mut()
        .and_then(|c| c.linux.as_mut());
    let context = pod_now
        .expect("of Linux")
        .security_context
        .get_or_insert_default();
    context.privileged = true;
    let created = create_container(request, PLATFORM).expect("good in itself");
    assert_eq!(fits_sandbox(&created, &pod), Ok(()));
    assert_eq!(
        check(|c| options(c).network = 2),
        about("namespace_options: network NODE needs a pod with network NODE")
    );
    assert_eq!(
        check(|c| options(c).ipc = 2),
        about("namespace_options: ipc NODE needs a pod with ipc NODE")
    );
    assert_eq!(
        check(|c| options(c).pid = 2),
        about("namespace_options: pid NODE needs a pod with pid NODE")
    );
}
