//! The table itself, in the order of the interface. In names "CTX" is `config.linux.security_context`.

#![expect(deprecated, reason = "older clients send some of them")]

use super::*;

/// A field, an attempt with a bad value of it, and the field that the refusal begins with.
pub type Rule = (&'static str, fn() -> Option<Rejected>, &'static str);

macro_rules! rules {
    ($($message:ident . $field:tt : $attempt:expr => $named:literal;)*) => {
        &[$((concat!(stringify!($message), ".", stringify!($field)), || $attempt, $named)),*]
    };
}

const SWITCH: &str = "on or off";
const NUMBER: &str = "any number names another";
const UNUSED: &str = "leads to nothing";

/// Fields that have no bad value: every one can be honoured, or means nothing.
pub const FREE: &[(&str, &str)] = &[
    ("PodSandboxMetadata.attempt", NUMBER),
    ("LinuxSandboxSecurityContext.readonly_rootfs", SWITCH),
    ("LinuxSandboxSecurityContext.privileged", SWITCH),
    ("ContainerMetadata.attempt", NUMBER),
    ("ImageSpec.annotations", UNUSED),
    (
        "ImageSpec.image_ref",
        "is of answers, and means nothing in a request",
    ),
    ("ContainerConfig.stdin", SWITCH),
    ("ContainerConfig.stdin_once", SWITCH),
    ("ContainerConfig.tty", SWITCH),
    ("Mount.readonly", SWITCH),
    (
        "Mount.selinux_relabel",
        "where SELinux is on it is the path that may be refused",
    ),
    (
        "LinuxContainerSecurityContext.privileged",
        "whether the sandbox allows it is asked later",
    ),
    ("LinuxContainerSecurityContext.readonly_rootfs", SWITCH),
    ("LinuxContainerSecurityContext.no_new_privs", SWITCH),
    ("ContainerStatusRequest.verbose", SWITCH),
    ("PodSandboxStatusRequest.verbose", SWITCH),
    ("ExecRequest.tty", "stderr is the one that contradicts it"),
    ("ExecRequest.stdin", SWITCH),
    ("AttachRequest.stdin", SWITCH),
    ("AttachRequest.tty", "stderr is the one that contradicts it"),
    ("UpdateContainerResourcesRequest.annotations", UNUSED),
    ("ImageStatusRequest.verbose", SWITCH),
    (
        "AuthConfig.server_address",
        "one that is another registry's makes the credentials none",
    ),
];

pub const RULES: &[Rule] = rules! {
    // ── RunPodSandbox ──
    RunPodSandboxRequest.runtime_handler:
        { let request = cri::RunPodSandboxRequest { runtime_handler: "kata".into(), ..sandbox_request() }; run_pod_sandbox(request, PLATFORM).err() }
        => "runtime_handler: ";
    PodSandboxMetadata.name:
        pod(|c| c.metadata.get_or_insert_default().name = NO_ID.into())
        => "config.metadata.name: ";
    PodSandboxMetadata.uid: pod(|c| c.metadata.get_or_insert_default().uid = NO_ID.into()) => "config.metadata.uid: ";
    PodSandboxMetadata.namespace:
        pod(|c| c.metadata.get_or_insert_default().namespace = NO_ID.into())
        => "config.metadata.namespace: ";
    PodSandboxConfig.hostname: pod(|c| c.hostname = "a b".into()) => "config.hostname: ";
    PodSandboxConfig.log_directory: pod(|c| c.log_directory = "var".into()) => "config.log_directory: ";
    PodSandboxConfig.labels: pod(|c| c.labels = big()) => "config.labels: ";
    PodSandboxConfig.annotations: pod(|c| c.annotations = big()) => "config.annotations: ";
    PodSandboxConfig.windows:
        pod(|c| { c.windows.get_or_insert_default().security_context = Some(Default::default()) })
        => "config.windows: ";
    DNSConfig.servers: dns(|c| c.servers = vec!["x".into()]) => "config.dns_config.servers[0]: ";
    DNSConfig.searches: dns(|c| c.searches = vec!["a\nb".into()]) => "config.dns_config.searches[0]: ";
    DNSConfig.options: dns(|c| c.options = vec!["a b".into()]) => "config.dns_config.options[0]: ";
    PortMapping.protocol: port(|p| p.protocol = 3) => "config.port_mappings[0].protocol: ";
    PortMapping.container_port: port(|p| p.container_port = 65_536) => "config.port_mappings[0].container_port: ";
    PortMapping.host_port: port(|p| p.host_port = -1) => "config.port_mappings[0].host_port: ";
    PortMapping.host_ip: port(|p| p.host_ip = "::g".into()) => "config.port_mappings[0].host_ip: ";
    LinuxPodSandboxConfig.cgroup_parent:
        pod_linux(|l| l.cgroup_parent = "/a/../b".into())
        => "config.linux.cgroup_parent: ";
    LinuxPodSandboxConfig.sysctls:
        pod_linux(|l| l.sysctls = [("kernel.panic".into(), "1".into())].into())
        => "config.linux.sysctls[\"kernel.panic\"]: ";
    LinuxContainerResources.cpu_quota:
        pod_linux(|l| l.overhead.get_or_insert_default().cpu_quota = 1)
        => "config.linux.overhead.cpu_quota: ";
    LinuxContainerResources.cpu_quota:
        pod_linux(|l| l.resources.get_or_insert_default().cpu_quota = 1)
        => "config.linux.resources.cpu_quota: ";
    // ── a sandbox's security context ──
    LinuxSandboxSecurityContext.run_as_user: pod_context(|s| s.run_as_user = value(-1)) => "CTX.run_as_user: ";
    LinuxSandboxSecurityContext.run_as_group: pod_context(|s| s.run_as_group = value(1)) => "CTX.run_as_group: ";
    LinuxSandboxSecurityContext.supplemental_groups:
        pod_context(|s| s.supplemental_groups = vec![1 << 32])
        => "CTX.supplemental_groups[0]: ";
    LinuxSandboxSecurityContext.supplemental_groups_policy:
        pod_context(|s| s.supplemental_groups_policy = 2)
        => "CTX.supplemental_groups_policy: ";
    LinuxSandboxSecurityContext.seccomp_profile_path:
        { pod_context(|s| { s.seccomp = None; s.seccomp_profile_path = "x".into(); }) }
        => "CTX.seccomp_profile_path: ";
    SecurityProfile.profile_type:
        pod_context(|s| s.seccomp.get_or_insert_default().profile_type = 3)
        => "CTX.seccomp.profile_type: ";
    SecurityProfile.profile_type:
        pod_context(|s| s.apparmor.get_or_insert_default().profile_type = 3)
        => "CTX.apparmor.profile_type: ";
    SecurityProfile.profile_type:
        context(|s| s.seccomp.get_or_insert_default().profile_type = 3)
        => "CTX.seccomp.profile_type: ";
    SecurityProfile.profile_type:
        context(|s| s.apparmor.get_or_insert_default().profile_type = 3)
        => "CTX.apparmor.profile_type: ";
    SecurityProfile.localhost_ref:
        context(|s| s.seccomp = Some(profile(ProfileType::Localhost, "x")))
        => "CTX.seccomp.localhost_ref: ";
    SecurityProfile.localhost_ref:
        context(|s| s.apparmor = Some(profile(ProfileType::Localhost, "a\nb")))
        => "CTX.apparmor.localhost_ref: ";
    NamespaceOption.network:
        pod_context(|s| s.namespace_options.get_or_insert_default().network = 1)
        => "CTX.namespace_options.network: ";
    NamespaceOption.pid:
        pod_context(|s| s.namespace_options.get_or_insert_default().pid = 4)
        => "CTX.namespace_options.pid: ";
    NamespaceOption.ipc:
        pod_context(|s| s.namespace_options.get_or_insert_default().ipc = 3)
        => "CTX.namespace_options.ipc: ";
    NamespaceOption.target_id:
        pod_context(|s| s.namespace_options.get_or_insert_default().target_id = "x".into())
        => "CTX.namespace_options.target_id: ";
    UserNamespace.mode: userns(|u| u.mode = 1) => "CTX.namespace_options.userns_options.mode: ";
    IDMapping.host_id: mapping(|m| m.host_id = u32::MAX) => "CTX.namespace_options.userns_options";
    IDMapping.container_id: mapping(|m| m.container_id = u32::MAX) => "CTX.namespace_options.userns_options";
    IDMapping.length: mapping(|m| m.length = 0) => "CTX.namespace_options.userns_options";
    // ── CreateContainer ──
    CreateContainerRequest.pod_sandbox_id:
        { let request = cri::CreateContainerRequest { pod_sandbox_id: NO_ID.into(), ..container_request() }; create_container(request, PLATFORM).err() }
        => "pod_sandbox_id: ";
    ContainerMetadata.name:
        app(|c| c.metadata.get_or_insert_default().name = NO_ID.into())
        => "config.metadata.name: ";
    ImageSpec.image: app(|c| c.image.get_or_insert_default().image = "a b".into()) => "config.image.image: ";
    ImageSpec.image: image(|i| i.image.clear()) => "image.image: ";
    ImageSpec.user_specified_image:
        app(|c| c.image.get_or_insert_default().user_specified_image = "x".repeat(1 << 17))
        => "config.image.user_specified_image: ";
    ImageSpec.runtime_handler:
        app(|c| c.image.get_or_insert_default().runtime_handler = "kata".into())
        => "config.image.runtime_handler: ";
    ImageSpec.runtime_handler: image(|i| i.runtime_handler = "kata".into()) => "image.runtime_handler: ";
    ContainerConfig.command: app(|c| c.command = vec!["a\0".into()]) => "config.command[0]: ";
    ContainerConfig.args: app(|c| c.args = vec!["a\0".into()]) => "config.args[0]: ";
    ContainerConfig.working_dir: app(|c| c.working_dir = "a".into()) => "config.working_dir: ";
    KeyValue.key: env("A=B", b"x") => "config.envs[0].key: ";
    KeyValue.value: env("A", b"x\0") => "config.envs[0].value: ";
    ContainerConfig.labels: app(|c| c.labels = big()) => "config.labels: ";
    ContainerConfig.annotations: app(|c| c.annotations = big()) => "config.annotations: ";
    ContainerConfig.log_path: app(|c| c.log_path = NO_ID.into()) => "config.log_path: ";
    ContainerConfig.windows:
        app(|c| c.windows.get_or_insert_default().resources = Some(Default::default()))
        => "config.windows: ";
    ContainerConfig.stop_signal: app(|c| c.stop_signal = 66) => "config.stop_signal: ";
    CDIDevice.name: app(|c| c.cdi_devices = vec![cri::CdiDevice { name: "a b".into() }]) => "config.CDI_devices";
    Mount.container_path: mount(|m| m.container_path = "/".into()) => "config.mounts[0].container_path: ";
    Mount.host_path: mount(|m| m.host_path = "b".into()) => "config.mounts[0].host_path: ";
    Mount.propagation: mount(|m| m.propagation = 3) => "config.mounts[0].propagation: ";
    Mount.recursive_read_only: mount(|m| m.recursive_read_only = true) => "config.mounts[0].recursive_read_only: ";
    Mount.image_sub_path: mount(|m| *m = image_mount(NO_ID)) => "config.mounts[0].image_sub_path: ";
    Mount.mount_options: mount(|m| m.mount_options = vec!["a b".into()]) => "config.mounts[0].mount_options";
    Device.container_path: device(|d| d.container_path = "a".into()) => "config.devices[0].container_path: ";
    Device.host_path: device(|d| d.host_path = "/a/../b".into()) => "config.devices[0].host_path: ";
    Device.permissions: device(|d| d.permissions = "rr".into()) => "config.devices[0].permissions: ";
    // ── limits ──
    LinuxContainerResources.cpu_period: limits(|l| l.cpu_period = 1) => "config.linux.resources.cpu_period: ";
    LinuxContainerResources.cpu_quota: limits(|l| l.cpu_quota = -2) => "config.linux.resources.cpu_quota: ";
    LinuxContainerResources.cpu_shares: limits(|l| l.cpu_shares = -1) => "config.linux.resources.cpu_shares: ";
    LinuxContainerResources.memory_limit_in_bytes:
        limits(|l| l.memory_limit_in_bytes = -1)
        => "config.linux.resources.memory_limit_in_bytes: ";
    LinuxContainerResources.oom_score_adj:
        limits(|l| l.oom_score_adj = 1001)
        => "config.linux.resources.oom_score_adj: ";
    LinuxContainerResources.cpuset_cpus:
        limits(|l| l.cpuset_cpus = "a".into())
        => "config.linux.resources.cpuset_cpus: ";
    LinuxContainerResources.cpuset_mems:
        limits(|l| l.cpuset_mems = "1-0".into())
        => "config.linux.resources.cpuset_mems: ";
    LinuxContainerResources.unified:
        limits(|l| l.unified = [("cgroup.kill".into(), "1".into())].into())
        => "config.linux.resources.unified[\"cgroup.kill\"]: ";
    LinuxContainerResources.memory_swap_limit_in_bytes:
        limits(|l| l.memory_swap_limit_in_bytes = 1)
        => "config.linux.resources.memory_swap_limit_in_bytes: ";
    HugepageLimit.page_size:
        limits(|l| l.hugepage_limits[0].page_size = "2 MB".into())
        => "config.linux.resources.hugepage_limits[0].page_size: ";
    HugepageLimit.limit:
        limits(|l| l.hugepage_limits[0].limit = u64::MAX)
        => "config.linux.resources.hugepage_limits[0].limit: ";
    // ── a container's security context ──
    LinuxContainerSecurityContext.run_as_user: context(|s| s.run_as_user = value(1 << 32)) => "CTX.run_as_user: ";
    LinuxContainerSecurityContext.run_as_username:
        context(|s| s.run_as_username = "a:b".into())
        => "CTX.run_as_username: ";
    LinuxContainerSecurityContext.run_as_group: context(|s| s.run_as_group = value(1)) => "CTX.run_as_group: ";
    LinuxContainerSecurityContext.supplemental_groups:
        context(|s| s.supplemental_groups = vec![1, -1])
        => "CTX.supplemental_groups[1]: ";
    LinuxContainerSecurityContext.supplemental_groups_policy:
        context(|s| s.supplemental_groups_policy = 2)
        => "CTX.supplemental_groups_policy: ";
    LinuxContainerSecurityContext.masked_paths:
        context(|s| s.masked_paths = vec!["a".into()])
        => "CTX.masked_paths[0]: ";
    LinuxContainerSecurityContext.readonly_paths:
        context(|s| s.readonly_paths = vec!["/a/..".into()])
        => "CTX.readonly_paths[0]: ";
    LinuxContainerSecurityContext.apparmor_profile: apparmor_profile() => "CTX.apparmor_profile: ";
    LinuxContainerSecurityContext.seccomp_profile_path: seccomp_profile_path() => "CTX.seccomp_profile_path: ";
    SELinuxOption.user: on_selinux(|s| s.user = "a:b".into()) => "CTX.selinux_options.user: ";
    SELinuxOption.role: on_selinux(|s| s.role = "a b".into()) => "CTX.selinux_options.role: ";
    SELinuxOption.type: on_selinux(|s| s.r#type = "a\0".into()) => "CTX.selinux_options.type: ";
    SELinuxOption.level: on_selinux(|s| s.level = "s0\n".into()) => "CTX.selinux_options.level: ";
    Capability.add_capabilities:
        context(|s| { s.capabilities.get_or_insert_default().add_capabilities = vec!["FLY".into()] })
        => "CTX.capabilities.add_capabilities[0]: ";
    Capability.drop_capabilities:
        context(|s| { s.capabilities.get_or_insert_default().drop_capabilities = vec!["".into()] })
        => "CTX.capabilities.drop_capabilities[0]: ";
    Capability.add_ambient_capabilities:
        context(|s| { s.capabilities.get_or_insert_default().add_ambient_capabilities = vec!["CAP_".into()] })
        => "CTX.capabilities.add_ambient_capabilities[0]: ";
    // ── ids ──
    StartContainerRequest.container_id: container_id(NO_ID).err() => "container_id: ";
    StopContainerRequest.container_id: container_id("").err() => "container_id: ";
    StopContainerRequest.timeout: stop_timeout(-1).err() => "timeout: ";
    RemoveContainerRequest.container_id: container_id("a/b").err() => "container_id: ";
    ContainerStatusRequest.container_id: container_id("a\0").err() => "container_id: ";
    ReopenContainerLogRequest.container_id: container_id("..").err() => "container_id: ";
    ContainerStatsRequest.container_id: container_id(&"a".repeat(300)).err() => "container_id: ";
    StopPodSandboxRequest.pod_sandbox_id: sandbox_id("").err() => "pod_sandbox_id: ";
    RemovePodSandboxRequest.pod_sandbox_id: sandbox_id(NO_ID).err() => "pod_sandbox_id: ";
    PodSandboxStatusRequest.pod_sandbox_id: sandbox_id("a b").err() => "pod_sandbox_id: ";
    PodSandboxStatsRequest.pod_sandbox_id: sandbox_id("a\n").err() => "pod_sandbox_id: ";
    // ── filters ──
    PodSandboxFilter.id:
        sandbox_query(Some(cri::PodSandboxFilter { id: NO_ID.into(), ..Default::default() })).err()
        => "filter.id: ";
    PodSandboxFilter.state:
        sandbox_query(Some(cri::PodSandboxFilter { state: Some(cri::PodSandboxStateValue { state: 2 }), ..Default::default() })).err()
        => "filter.state: ";
    PodSandboxFilter.label_selector:
        sandbox_query(Some(cri::PodSandboxFilter { label_selector: big(), ..Default::default() })).err()
        => "filter.label_selector: ";
    ContainerFilter.id:
        container_query(Some(cri::ContainerFilter { id: NO_ID.into(), ..Default::default() })).err()
        => "filter.id: ";
    ContainerFilter.state:
        container_query(Some(cri::ContainerFilter { state: Some(cri::ContainerStateValue { state: 4 }), ..Default::default() })).err()
        => "filter.state: ";
    ContainerFilter.pod_sandbox_id:
        container_query(Some(cri::ContainerFilter { pod_sandbox_id: NO_ID.into(), ..Default::default() })).err()
        => "filter.pod_sandbox_id: ";
    ContainerFilter.label_selector:
        container_query(Some(cri::ContainerFilter { label_selector: big(), ..Default::default() })).err()
        => "filter.label_selector: ";
    ContainerStatsFilter.id:
        container_stats_query(Some(cri::ContainerStatsFilter { id: NO_ID.into(), ..Default::default() })).err()
        => "filter.id: ";
    ContainerStatsFilter.pod_sandbox_id:
        container_stats_query(Some(cri::ContainerStatsFilter { pod_sandbox_id: NO_ID.into(), ..Default::default() })).err()
        => "filter.pod_sandbox_id: ";
    ContainerStatsFilter.label_selector:
        container_stats_query(Some(cri::ContainerStatsFilter { label_selector: big(), ..Default::default() })).err()
        => "filter.label_selector: ";
    PodSandboxStatsFilter.id:
        sandbox_stats_query(Some(cri::PodSandboxStatsFilter { id: NO_ID.into(), ..Default::default() })).err()
        => "filter.id: ";
    PodSandboxStatsFilter.label_selector:
        sandbox_stats_query(Some(cri::PodSandboxStatsFilter { label_selector: big(), ..Default::default() })).err()
        => "filter.label_selector: ";
    // ── streams ──
    ExecSyncRequest.container_id:
        exec_sync(cri::ExecSyncRequest { cmd: vec!["a".into()], ..Default::default() }).err()
        => "container_id: ";
    ExecSyncRequest.cmd:
        exec_sync(cri::ExecSyncRequest { container_id: "a".into(), ..Default::default() }).err()
        => "cmd: ";
    ExecSyncRequest.timeout:
        exec_sync(cri::ExecSyncRequest { container_id: "a".into(), cmd: vec!["a".into()], timeout: -1 }).err()
        => "timeout: ";
    ExecRequest.container_id:
        exec(cri::ExecRequest { cmd: vec!["a".into()], stdout: true, ..Default::default() }).err()
        => "container_id: ";
    ExecRequest.cmd:
        exec(cri::ExecRequest { container_id: "a".into(), cmd: vec!["".into()], stdout: true, ..Default::default() }).err()
        => "cmd[0]: ";
    ExecRequest.stdout:
        exec(cri::ExecRequest { container_id: "a".into(), cmd: vec!["a".into()], ..Default::default() }).err()
        => "stdout: ";
    ExecRequest.stderr:
        exec(cri::ExecRequest { container_id: "a".into(), cmd: vec!["a".into()], tty: true, stdout: true, stderr: true, ..Default::default() }).err()
        => "stderr: ";
    AttachRequest.container_id:
        attach(&cri::AttachRequest { stdout: true, ..Default::default() }).err()
        => "container_id: ";
    AttachRequest.stdout:
        attach(&cri::AttachRequest { container_id: "a".into(), ..Default::default() }).err()
        => "stdout: ";
    AttachRequest.stderr:
        attach(&cri::AttachRequest { container_id: "a".into(), tty: true, stderr: true, ..Default::default() }).err()
        => "stderr: ";
    PortForwardRequest.pod_sandbox_id: port_forward(&cri::PortForwardRequest::default()).err() => "pod_sandbox_id: ";
    PortForwardRequest.port:
        port_forward(&cri::PortForwardRequest { pod_sandbox_id: "a".into(), port: vec![0] }).err()
        => "port[0]: ";
    // ── changed limits ──
    UpdateContainerResourcesRequest.container_id:
        update_container(cri::UpdateContainerResourcesRequest::default()).err()
        => "container_id: ";
    UpdateContainerResourcesRequest.windows:
        update_container(cri::UpdateContainerResourcesRequest { container_id: "a".into(), windows: Some(cri::WindowsContainerResources { cpu_count: 1, ..Default::default() }), ..Default::default() }).err()
        => "windows: ";
    LinuxContainerResources.cpu_period:
        updated_resources(cri::LinuxContainerResources { cpu_period: 1, ..Default::default() }, PLATFORM).err()
        => "linux.cpu_period: ";
    // ── images and the node ──
    AuthConfig.username: auth(|a| (a.username, a.password) = ("a:b".into(), "c".into())) => "auth: ";
    AuthConfig.password: auth(|a| (a.username, a.password) = ("a".into(), "b\nc".into())) => "auth: ";
    AuthConfig.auth: auth(|a| a.auth = "?".into()) => "auth.auth: ";
    AuthConfig.identity_token: auth(|a| a.identity_token = "a\nb".into()) => "auth: ";
    AuthConfig.registry_token: auth(|a| a.registry_token = "a\nb".into()) => "auth: ";
    NetworkConfig.pod_cidr:
        { let network_config = Some(cri::NetworkConfig { pod_cidr: "10.0.0.0/99".into() }); pod_cidr(cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) }).err() }
        => "runtime_config.network_config.pod_cidr: ";
};

#[expect(deprecated, reason = "older clients send it")]
fn apparmor_profile() -> Option<Rejected> {
    context(|s| s.apparmor_profile = "x".into())
}

#[expect(deprecated, reason = "older clients send it")]
fn seccomp_profile_path() -> Option<Rejected> {
    context(|s| (s.seccomp, s.seccomp_profile_path) = (None, "x".into()))
}
