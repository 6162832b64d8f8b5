//! What the two large requests refuse, field by field: the kind of refusal and the text that a person gets.

use carpel_api::cri;
use carpel_api::cri::security_profile::ProfileType;

use super::container::CreateContainer;
use super::*;
use crate::spec::config::{GroupsPolicy, PidScope, SandboxConfig, Scope, SeccompProfile, UserSpec};

const PLATFORM: Platform = Platform {
    apparmor: false,
    selinux: false,
    recursive_read_only: true,
};

/// The same platform with the security modules that this build does not serve.
const LSM: Platform = Platform {
    apparmor: true,
    selinux: true,
    recursive_read_only: true,
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
fn bad_sandboxes_are_named() {
    type Case = (fn(&mut cri::PodSandboxConfig), &'static str);
    fn name(config: &mut cri::PodSandboxConfig) -> &mut cri::PodSandboxMetadata {
        config.metadata.get_or_insert_default()
    }
    fn linux(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
        config.linux.get_or_insert_default()
    }
    fn port(host: i32, container: i32) -> cri::PortMapping {
        cri::PortMapping {
            host_port: host,
            container_port: container,
            ..Default::default()
        }
    }
    let cases: &[Case] = &[
        (|c| name(c).uid.clear(), "metadata.uid: must not be empty"),
        (
            |c| name(c).uid = "../../x".into(),
            "metadata.uid: \"../../x\" must not contain '/', only letters, digits, \"-\", \"_\" and \".\"",
        ),
        (
            |c| c.hostname = "a\nb".into(),
            "hostname: \"a\\nb\" must not contain '\\n', only letters, digits, \"-\", \"_\" and \".\"",
        ),
        (
            |c| c.hostname = "x".repeat(65),
            "hostname: is 65 bytes long, more than 64",
        ),
        (
            |c| c.log_directory = "var/log".into(),
            "log_directory: \"var/log\" must be absolute",
        ),
        (
            |c| c.log_directory = "/var/../etc".into(),
            "log_directory: \"/var/../etc\" must not contain \"..\"",
        ),
        (
            |c| {
                c.dns_config = Some(cri::DnsConfig {
                    servers: vec!["dns.local".into()],
                    ..Default::default()
                })
            },
            "dns_config.servers[0]: \"dns.local\" is no IP address",
        ),
        (
            |c| {
                c.dns_config = Some(cri::DnsConfig {
                    searches: vec!["a\nnameserver 1.2.3.4".into()],
                    ..Default::default()
                })
            },
            "dns_config.searches[0]: \"a\\nnameserver 1.2.3.4\" must not contain '\\n'",
        ),
        (
            |c| c.port_mappings = vec![port(65536, 80)],
            "port_mappings[0].host_port: 65536 is no port",
        ),
        (
            |c| c.port_mappings = vec![port(-1, 80)],
            "port_mappings[0].host_port: -1 is no port",
        ),
        (
            |c| c.port_mappings = vec![port(80, 0)],
            "port_mappings[0].container_port: 0 is no port",
        ),
        (
            |c| c.port_mappings = vec![port(80, 80), port(80, 81)],
            "port_mappings[1].host_port: 80 is mapped twice",
        ),
        (
            |c| {
                c.port_mappings = vec![cri::PortMapping {
                    protocol: 3,
                    ..port(80, 80)
                }]
            },
            "port_mappings[0].protocol: 3 is no known value",
        ),
        (
            |c| {
                c.port_mappings = vec![cri::PortMapping {
                    host_ip: "x".into(),
                    ..port(80, 80)
                }]
            },
            "port_mappings[0].host_ip: \"x\" is no IP address",
        ),
        (
            |c| c.labels = [("a".into(), "x".repeat(2 << 20))].into(),
            "labels: is 2097153 bytes long, more than 1048576",
        ),
        (
            |c| {
                c.annotations = (0..10_001)
                    .map(|i| (i.to_string(), String::new()))
                    .collect()
            },
            "annotations: has 10001 entries, more than 10000",
        ),
        (
            |c| linux(c).cgroup_parent = "kubepods".into(),
            "linux.cgroup_parent: \"kubepods\" must be absolute",
        ),
        (
            |c| linux(c).cgroup_parent = "/a/../b".into(),
            "linux.cgroup_parent: \"/a/../b\" must not contain \"..\"",
        ),
        (
            |c| linux(c).sysctls = [("kernel.shmmax".into(), "1+x".into())].into(),
            "linux.sysctls[\"kernel.shmmax\"]: value \"1+x\" must not contain '+'",
        ),
    ];
    for (spoil, why) in cases {
        let result = sandbox(spoil, PLATFORM).map(|_| ());
        assert_eq!(result, Err(invalid(why, "sandbox \"ns/pod\"")));
    }
    let result = sandbox(|config| name(config).name = "a/b".into(), PLATFORM).map(|_| ());
    let why =
        "metadata.name: \"a/b\" must not contain '/', only letters, digits, \"-\", \"_\" and \".\"";
    assert_eq!(result, Err(invalid(why, "sandbox \"ns/a/b\"")));
    let result = sandbox(|config| config.metadata = None, PLATFORM).map(|_| ());
    assert_eq!(
        result,
        Err(invalid("metadata: must be set", "sandbox \"/\""))
    );
    let systemd = sandbox(
        |config| linux(config).cgroup_parent = "kubepods.slice".into(),
        PLATFORM,
    );
    let why = "linux.cgroup_parent: \"kubepods.slice\" is in the form of the systemd cgroup driver, which is not supported yet; set the kubelet's cgroupDriver to cgroupfs";
    assert_eq!(
        systemd.map(|_| ()),
        Err(unsupported(why, "sandbox \"ns/pod\""))
    );
    let none = run_pod_sandbox(cri::RunPodSandboxRequest::default(), PLATFORM);
    assert_eq!(
        none.map(|_| ()),
        Err(Rejected::Invalid("config: must be set".into()))
    );
    let handler = cri::RunPodSandboxRequest {
        runtime_handler: "kata".into(),
        ..sandbox_request()
    };
    assert_eq!(
        run_pod_sandbox(handler, PLATFORM).map(|_| ()),
        Err(Rejected::Invalid(
            "runtime_handler: no handler \"kata\" is configured (sandbox \"ns/pod\")".into()
        ))
    );
}

#[test]
fn bad_sandbox_contexts_are_named() {
    type Case = (SandboxChange, &'static str);
    fn options(context: &mut cri::LinuxSandboxSecurityContext) -> &mut cri::NamespaceOption {
        context.namespace_options.get_or_insert_default()
    }
    let cases: &[Case] = &[
        (
            |c| options(c).network = 1,
            "namespace_options.network: must be POD or NODE",
        ),
        (
            |c| options(c).network = 7,
            "namespace_options.network: 7 is no known value",
        ),
        (
            |c| options(c).ipc = 3,
            "namespace_options.ipc: must be POD or NODE",
        ),
        (
            |c| options(c).pid = -1,
            "namespace_options.pid: -1 is no known value",
        ),
        (
            |c| (options(c).pid, options(c).target_id) = (3, "a".repeat(64)),
            "namespace_options.pid: TARGET is for containers",
        ),
        (
            |c| options(c).target_id = "a".repeat(64),
            "namespace_options.target_id: needs pid TARGET",
        ),
        (
            |c| c.run_as_user = Some(cri::Int64Value { value: -1 }),
            "run_as_user: -1 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.run_as_group = Some(cri::Int64Value { value: 1 }),
            "run_as_group: needs run_as_user or run_as_username",
        ),
        (
            |c| c.supplemental_groups = vec![1 << 32],
            "supplemental_groups[0]: 4294967296 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Localhost, "x.json")),
            "seccomp.localhost_ref: \"x.json\" must be absolute",
        ),
    ];
    for (spoil, why) in cases {
        let result = sandbox_security(*spoil).map(|_| ());
        let why = format!("linux.security_context.{why}");
        assert_eq!(result, Err(invalid(&why, "sandbox \"ns/pod\"")));
    }
    let userns: SandboxChange = |context| {
        let options = context.namespace_options.get_or_insert_default();
        options.userns_options = Some(cri::UserNamespace::default());
    };
    let why = "linux.security_context.namespace_options.userns_options.mode: user namespaces are not supported yet";
    assert_eq!(
        sandbox_security(userns).map(|_| ()),
        Err(unsupported(why, "sandbox \"ns/pod\""))
    );
    let node: SandboxChange = |context| {
        let options = context.namespace_options.get_or_insert_default();
        options.network = 2;
        options.userns_options = Some(cri::UserNamespace {
            mode: 2,
            ..Default::default()
        });
    };
    let config = sandbox_security(node).expect("a pod with the node's network");
    assert_eq!((config.network, config.hostname), (Scope::Node, None));
}

#[test]
fn bad_containers_are_named() {
    type Case = (fn(&mut cri::ContainerConfig), &'static str);
    fn env(key: &str, value: &[u8]) -> cri::KeyValue {
        cri::KeyValue {
            key: key.into(),
            value: value.to_vec(),
        }
    }
    let cases: &[Case] = &[
        (|c| c.image = None, "image.image: must not be empty"),
        (
            |c| c.image.get_or_insert_default().image = "a\0".into(),
            "image.image: \"a\\0\" must not contain '\\0'",
        ),
        (
            |c| c.log_path = "../../x".into(),
            "log_path: \"../../x\" must not contain \"..\"",
        ),
        (
            |c| c.log_path = "/abs".into(),
            "log_path: \"/abs\" must be relative",
        ),
        (
            |c| c.log_path = "a\0b".into(),
            "log_path: must not contain NUL",
        ),
        (
            |c| c.working_dir = "tmp".into(),
            "working_dir: \"tmp\" must be absolute",
        ),
        (
            |c| c.command = vec![String::new()],
            "command[0]: must not be empty",
        ),
        (
            |c| c.args = vec!["a".into(), "b\0".into()],
            "args[1]: must not contain NUL",
        ),
        (
            |c| c.args = vec![String::new(); 70_000],
            "args: has 70000 entries, more than 65536",
        ),
        (
            |c| c.envs = vec![env("", b"x")],
            "envs[0].key: must not be empty",
        ),
        (
            |c| c.envs = vec![env("A=B", b"x")],
            "envs[0].key: \"A=B\" must not contain '='",
        ),
        (
            |c| c.envs = vec![env("A\0", b"x")],
            "envs[0].key: must not contain NUL",
        ),
        (
            |c| c.envs = vec![env("A", b"x\0")],
            "envs[0].value: must not contain NUL",
        ),
        (
            |c| c.envs = vec![env("A", b"x"); 100_000],
            "envs: has 100000 entries, more than 65536",
        ),
        (
            |c| c.envs = vec![env("A", &[b'x'; 1 << 17])],
            "envs[0].value: is 131075 bytes long, more than 131072",
        ),
        (
            |c| c.envs = vec![env("A", &[b'x'; 1 << 16]); 100],
            "envs: is 6553900 bytes long, more than 6291456",
        ),
        (
            |c| c.mounts = vec![cri::Mount::default(); 100_000],
            "mounts: has 100000 entries, more than 4096",
        ),
        (
            |c| c.mounts = vec![cri::Mount::default()],
            "mounts[0].host_path: must not be empty",
        ),
        (
            |c| c.devices = vec![cri::Device::default()],
            "devices[0].container_path: must not be empty",
        ),
        (|c| c.stop_signal = 66, "stop_signal: 66 is no known value"),
        (
            |c| {
                c.linux
                    .get_or_insert_default()
                    .resources
                    .get_or_insert_default()
                    .memory_limit_in_bytes = -1
            },
            "linux.resources.memory_limit_in_bytes: -1 must not be negative",
        ),
    ];
    for (spoil, why) in cases {
        let result = container(spoil, PLATFORM).map(|_| ());
        assert_eq!(result, Err(invalid(why, "container \"web\"")));
    }
    let cdi = container(
        |c| c.cdi_devices = vec![cri::CdiDevice::default()],
        PLATFORM,
    );
    let why = "CDI_devices: CDI devices are not supported yet";
    assert_eq!(cdi.map(|_| ()), Err(unsupported(why, "container \"web\"")));
    let long = container(
        |c| c.metadata.get_or_insert_default().name = "x".repeat(1 << 16),
        PLATFORM,
    );
    let text = long.map(|_| ()).expect_err("too long").to_string();
    assert!(
        text.starts_with(
            "config.metadata.name: is 65536 bytes long, more than 253 (container \"xxx"
        ),
        "{text}"
    );
    assert!(text.len() < 200, "{text}");
    let binary = container(|c| c.envs = vec![env("A", b"\xff\xfe")], PLATFORM);
    assert!(binary.is_ok(), "values are bytes");
}

#[test]
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
fn bad_container_contexts_are_named() {
    type Case = (ContainerChange, &'static str);
    let cases: &[Case] = &[
        (
            |c| c.run_as_group = Some(cri::Int64Value { value: 5 }),
            "run_as_group: needs run_as_user or run_as_username",
        ),
        (
            |c| {
                (c.run_as_user, c.run_as_username) =
                    (Some(cri::Int64Value { value: 5 }), "bob".into())
            },
            "run_as_username: must not be set together with run_as_user",
        ),
        (
            |c| c.run_as_user = Some(cri::Int64Value { value: 1 << 32 }),
            "run_as_user: 4294967296 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.run_as_username = "a:b".into(),
            "run_as_username: \"a:b\" must not contain \":\" or \"/\"",
        ),
        (
            |c| c.run_as_username = "a\nb".into(),
            "run_as_username: \"a\\nb\" must not contain '\\n'",
        ),
        (
            |c| c.run_as_username = "4294967296".into(),
            "run_as_username: 4294967296 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.run_as_username = "-1".into(),
            "run_as_username: -1 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.supplemental_groups_policy = 2,
            "supplemental_groups_policy: 2 is no known value",
        ),
        (
            |c| c.masked_paths = vec!["proc".into()],
            "masked_paths[0]: \"proc\" must be absolute",
        ),
        (
            |c| c.readonly_paths = vec!["/proc/../x".into()],
            "readonly_paths[0]: \"/proc/../x\" must not contain \"..\"",
        ),
        (
            |c| c.capabilities.get_or_insert_default().add_capabilities = vec!["CAP_FLY".into()],
            "capabilities.add_capabilities[0]: \"CAP_FLY\" is no capability",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Localhost, "")),
            "seccomp.localhost_ref: must not be empty",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Localhost, "x")),
            "seccomp.localhost_ref: \"x\" must be absolute",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Unconfined, "/x")),
            "seccomp.localhost_ref: needs profile_type Localhost",
        ),
        (
            |c| {
                c.seccomp = Some(cri::SecurityProfile {
                    profile_type: 3,
                    ..Default::default()
                })
            },
            "seccomp.profile_type: 3 is no known value",
        ),
        (
            |c| (c.seccomp, c.seccomp_profile_path) = (None, "custom".into()),
            "seccomp_profile_path: \"custom\" is no seccomp profile",
        ),
        (
            |c| (c.seccomp, c.seccomp_profile_path) = (None, "localhost/x".into()),
            "seccomp_profile_path: \"x\" must be absolute",
        ),
        (
            |c| c.apparmor_profile = "custom".into(),
            "apparmor_profile: \"custom\" is no AppArmor profile",
        ),
        (
            |c| c.namespace_options.get_or_insert_default().pid = 3,
            "namespace_options.target_id: must be the id of a container of the pod",
        ),
    ];
    for (spoil, why) in cases {
        let result = container_security(*spoil, PLATFORM).map(|_| ());
        let why = format!("linux.security_context.{why}");
        assert_eq!(result, Err(invalid(&why, "container \"web\"")));
    }
}

#[test]
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
fn what_is_not_built_is_refused_and_not_ignored() {
    type Case = (ContainerChange, Platform, Option<&'static str>);
    let apparmor = Some("apparmor: AppArmor profiles are not supported yet");
    let former = Some("apparmor_profile: AppArmor profiles are not supported yet");
    let selinux = Some("selinux_options: SELinux labels are not supported yet");
    let labelled: ContainerChange =
        |c| c.selinux_options.get_or_insert_default().r#type = "x".into();
    let localhost: ContainerChange = |c| c.apparmor = Some(profile(ProfileType::Localhost, "x"));
    let cases: &[Case] = &[
        (|_| {}, LSM, apparmor),
        (|c| c.privileged = true, LSM, None),
        (|c| c.apparmor = None, LSM, None),
        (
            |c| c.apparmor = Some(profile(ProfileType::Unconfined, "")),
            LSM,
            None,
        ),
        (localhost, PLATFORM, apparmor),
        (
            |c| (c.apparmor, c.apparmor_profile) = (None, "runtime/default".into()),
            LSM,
            former,
        ),
        (
            |c| (c.apparmor, c.apparmor_profile) = (None, "runtime/default".into()),
            PLATFORM,
            None,
        ),
        (
            |c| (c.apparmor, c.apparmor_profile) = (None, "localhost/x".into()),
            PLATFORM,
            former,
        ),
        (
            |c| (c.apparmor, c.apparmor_profile) = (None, "unconfined".into()),
            LSM,
            None,
        ),
        (labelled, PLATFORM, None),
        (
            |c| {
                (c.apparmor, c.selinux_options) = (
                    None,
                    Some(cri::SeLinuxOption {
                        level: "s0".into(),
                        ..Default::default()
                    }),
                )
            },
            LSM,
            selinux,
        ),
        (
            |c| (c.apparmor, c.selinux_options) = (None, Some(cri::SeLinuxOption::default())),
            LSM,
            None,
        ),
        (
            |c| {
                c.capabilities
                    .get_or_insert_default()
                    .add_ambient_capabilities = vec!["KILL".into()]
            },
            PLATFORM,
            Some(
                "capabilities.add_ambient_capabilities: ambient capabilities are not supported yet",
            ),
        ),
        (
            |c| {
                c.namespace_options.get_or_insert_default().userns_options =
                    Some(cri::UserNamespace::default())
            },
            PLATFORM,
            Some("namespace_options.userns_options.mode: user namespaces are not supported yet"),
        ),
    ];
    for (index, (change, platform, refusal)) in cases.iter().enumerate() {
        let result = container_security(*change, *platform).map(|_| ());
        let expected = match refusal {
            None => Ok(()),
            Some(why) => Err(unsupported(
                &format!("linux.security_context.{why}"),
                "container \"web\"",
            )),
        };
        assert_eq!(result, expected, "case {index}");
    }
}

#[test]
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
fn contexts_come_out_as_meant() {
    let security = |change: ContainerChange| {
        container_security(change, PLATFORM)
            .expect("a good context")
            .config
            .security
    };
    let privileged = security(|c| c.privileged = true);
    assert_eq!(privileged.seccomp, SeccompProfile::Unconfined);
    assert!(privileged.masked_paths.is_empty() && privileged.readonly_paths.is_empty());
    let former =
        security(|c| (c.seccomp, c.seccomp_profile_path) = (None, "localhost//a/b".into()));
    assert_eq!(former.seccomp, SeccompProfile::Localhost("/a/b".into()));
    let former =
        security(|c| (c.seccomp, c.seccomp_profile_path) = (None, "docker/default".into()));
    assert_eq!(former.seccomp, SeccompProfile::RuntimeDefault);
    let digits = security(|c| c.run_as_username = "1000".into());
    assert_eq!(digits.user, Some(UserSpec::Id(1000)));
    let named = security(|c| {
        c.run_as_username = "bob".into();
        c.run_as_group = Some(cri::Int64Value { value: 7 });
        c.capabilities.get_or_insert_default().add_capabilities =
            vec!["cap_net_admin".into(), "all".into()];
    });
    assert_eq!(named.user, Some(UserSpec::Name("bob".into())));
    assert_eq!(
        (named.run_as_group, named.add_capabilities),
        (Some(7), vec!["NET_ADMIN".into(), "ALL".into()])
    );
    let target = security(|c| {
        let options = c.namespace_options.get_or_insert_default();
        (options.pid, options.target_id) = (3, "b".repeat(64));
    });
    assert!(matches!(target.pid, PidScope::Target(_)));
    let signal = container(|c| c.stop_signal = cri::Signal::Sigusr1.into(), PLATFORM);
    assert_eq!(
        signal.expect("a good signal").config.stop_signal,
        Some(libc::SIGUSR1)
    );
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
