//! A selection of fields over the socket: a bad value is INVALID_ARGUMENT with the field's name, for each kind of
//! request. (The table of all fields is beside the validators.)

use carpel_integration::v1::{
    self, Capability, LinuxContainerSecurityContext, SeLinuxOption, SecurityProfile,
};

use super::*;

#[tokio::test]
async fn of_a_sandbox() {
    let node = TestNode::start().await;
    type Change = fn(&mut PodSandboxConfig);
    let cases: [(Change, &str); 8] = [
        (
            |c| c.security().run_as_user = Some(Int64Value { value: -1 }),
            "config.linux.security_context.run_as_user: ",
        ),
        (
            |c| c.security().supplemental_groups = vec![0, 1 << 40],
            "config.linux.security_context.supplemental_groups[1]: ",
        ),
        (
            |c| c.security().supplemental_groups_policy = 7,
            "config.linux.security_context.supplemental_groups_policy: ",
        ),
        (
            |c| c.namespaces().network = 1,
            "config.linux.security_context.namespace_options.network: ",
        ),
        (
            |c| c.linux().sysctls = [("vm.swappiness".into(), "1".into())].into(),
            "config.linux.sysctls[\"vm.swappiness\"]: ",
        ),
        (
            |c| {
                c.linux().overhead = Some(v1::LinuxContainerResources {
                    memory_limit_in_bytes: -1,
                    ..Default::default()
                })
            },
            "config.linux.overhead.memory_limit_in_bytes: ",
        ),
        (
            |c| {
                c.port_mappings = vec![v1::PortMapping {
                    protocol: 9,
                    container_port: 1,
                    host_port: 1,
                    ..Default::default()
                }]
            },
            "config.port_mappings[0].protocol: ",
        ),
        (
            |c| {
                c.dns_config = Some(v1::DnsConfig {
                    servers: vec!["dns".into()],
                    ..Default::default()
                })
            },
            "config.dns_config.servers[0]: ",
        ),
    ];
    for (change, field) in cases {
        let mut config = node.pod("one");
        change(&mut config);
        refused(
            node.try_run_pod(&config).await,
            Code::InvalidArgument,
            field,
        );
    }
    assert!(node.pods().await.is_empty());
    node.finish().await;
}

#[tokio::test]
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
async fn of_a_containers_security_context() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    type Change = fn(&mut LinuxContainerSecurityContext);
    let cases: [(Change, &str); 13] = [
        (
            |s| s.run_as_user = Some(Int64Value { value: 1 << 32 }),
            "run_as_user: ",
        ),
        (|s| s.run_as_username = "a:b".into(), "run_as_username: "),
        (
            |s| s.supplemental_groups = vec![-5],
            "supplemental_groups[0]: ",
        ),
        (
            |s| s.supplemental_groups_policy = 2,
            "supplemental_groups_policy: ",
        ),
        (
            |s| s.readonly_paths = vec!["/a".into(), "b".into()],
            "readonly_paths[1]: ",
        ),
        (
            |s| {
                s.capabilities = Some(Capability {
                    drop_capabilities: vec!["x".into()],
                    ..Default::default()
                })
            },
            "capabilities.drop_capabilities[0]: ",
        ),
        (
            |s| {
                s.capabilities = Some(Capability {
                    add_ambient_capabilities: vec!["x".into()],
                    ..Default::default()
                })
            },
            "capabilities.add_ambient_capabilities[0]: ",
        ),
        (
            |s| {
                s.seccomp = Some(SecurityProfile {
                    profile_type: 9,
                    ..Default::default()
                })
            },
            "seccomp.profile_type: ",
        ),
        (
            |s| {
                s.apparmor = Some(SecurityProfile {
                    profile_type: 2,
                    ..Default::default()
                })
            },
            "apparmor.localhost_ref: ",
        ),
        (
            |s| {
                s.apparmor = Some(SecurityProfile {
                    profile_type: 0,
                    localhost_ref: "x".into(),
                })
            },
            "apparmor.localhost_ref: ",
        ),
        (|s| s.apparmor_profile = "x".into(), "apparmor_profile: "),
        (
            |s| s.seccomp_profile_path = "x".into(),
            "seccomp_profile_path: ",
        ),
        (
            |s| {
                s.selinux_options = Some(SeLinuxOption {
                    r#type: "a:b".into(),
                    ..Default::default()
                })
            },
            "selinux_options.type: ",
        ),
    ];
    for (change, field) in cases {
        let mut config = sleeper("a");
        change(config.security());
        let field = format!("config.linux.security_context.{field}");
        refused(
            node.try_create(&pod, &config).await,
            Code::InvalidArgument,
            &field,
        );
    }
    let mut config = sleeper("a");
    config.image.as_mut().unwrap().runtime_handler = "kata".into();
    let outcome = node.try_create(&pod, &config).await;
    refused(
        outcome,
        Code::InvalidArgument,
        "config.image.runtime_handler: ",
    );
    assert!(node.containers().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn of_the_other_requests() {
    let (node, pod, id) = crate::node_with_container().await;
    let bad =
        |outcome: Result<(), Status>, field: &str| refused(outcome, Code::InvalidArgument, field);
    let (mut runtime, mut images) = (node.cri.runtime(), node.cri.images());
    bad(node.try_stop(&id, -1).await, "timeout: ");
    bad(node.try_stop("../x", 1).await, "container_id: ");
    bad(node.try_remove_pod("").await, "pod_sandbox_id: ");
    bad(node.try_exec(&id, &[], 1).await.map(drop), "cmd: ");
    bad(node.try_exec(&id, &["a"], -1).await.map(drop), "timeout: ");
    let request = v1::ExecRequest {
        container_id: id.clone(),
        cmd: vec!["sh".into()],
        ..Default::default()
    };
    bad(runtime.exec(request).await.map(drop), "stdout: ");
    let request = v1::AttachRequest {
        container_id: id.clone(),
        tty: true,
        stderr: true,
        ..Default::default()
    };
    bad(runtime.attach(request).await.map(drop), "stderr: ");
    let request = v1::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![80, 65_536],
    };
    bad(runtime.port_forward(request).await.map(drop), "port[1]: ");
    let filter = Some(v1::ContainerFilter {
        state: Some(v1::ContainerStateValue { state: 9 }),
        ..Default::default()
    });
    bad(
        runtime
            .list_containers(v1::ListContainersRequest { filter })
            .await
            .map(drop),
        "filter.state: ",
    );
    let filter = Some(v1::PodSandboxFilter {
        id: "a/b".into(),
        ..Default::default()
    });
    bad(
        runtime
            .list_pod_sandbox(v1::ListPodSandboxRequest { filter })
            .await
            .map(drop),
        "filter.id: ",
    );
    let network_config = Some(v1::NetworkConfig {
        pod_cidr: "10.0.0.0".into(),
    });
    let runtime_config = Some(v1::RuntimeConfig { network_config });
    let request = v1::UpdateRuntimeConfigRequest { runtime_config };
    bad(
        runtime.update_runtime_config(request).await.map(drop),
        "runtime_config.network_config.pod_cidr: ",
    );
    let limits = LinuxContainerResources {
        cpuset_cpus: "all".into(),
        ..Default::default()
    };
    bad(node.try_update(&id, &limits).await, "linux.cpuset_cpus: ");
    let image = |name: &str| {
        Some(v1::ImageSpec {
            image: name.to_owned(),
            ..Default::default()
        })
    };
    let request = v1::RemoveImageRequest { image: None };
    bad(images.remove_image(request).await.map(drop), "image: ");
    let request = v1::ImageStatusRequest {
        image: image("a b"),
        verbose: false,
    };
    bad(
        images.image_status(request).await.map(drop),
        "image.image: ",
    );
    let request = v1::PullImageRequest {
        image: image("localhost/a:1"),
        auth: Some(v1::AuthConfig {
            auth: "?".into(),
            ..Default::default()
        }),
        sandbox_config: None,
    };
    bad(images.pull_image(request).await.map(drop), "auth.auth: ");
    node.finish().await;
}
