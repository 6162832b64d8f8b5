//! Codes and texts of the calls, and what reaches the domain.

use std::sync::Arc;

use carpel_api::cri;
use tonic::Code;

use super::fake::{self, Fake};

/// Code and message of a refusal.
fn refused<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> (Code, String) {
    let status = result.expect_err("must be refused");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn the_node_says_what_it_can() {
    let fake = Arc::new(Fake {
        network_down: true,
        ..Fake::default()
    });
    let mut client = fake::runtime(&fake).await;
    let version = client
        .version(cri::VersionRequest::default())
        .await
        .expect("a version")
        .into_inner();
    assert_eq!(
        (
            version.version.as_str(),
            version.runtime_name.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("0.1.0", "carpel", "v1")
    );
    let status = client
        .status(cri::StatusRequest { verbose: true })
        .await
        .expect("a status")
        .into_inner();
    let conditions = status.status.expect("conditions").conditions;
    assert_eq!(
        (conditions[0].r#type.as_str(), conditions[0].status),
        ("RuntimeReady", true)
    );
    assert_eq!(
        (conditions[1].r#type.as_str(), conditions[1].status),
        ("NetworkReady", false)
    );
    assert_eq!(conditions[1].reason, "NoNetworkConfig");
    assert_eq!(status.info["config"], "{\"stateDir\":\"/run/carpel\"}");
    assert_eq!(status.runtime_handlers[0].name, "");
    assert!(
        status
            .features
            .is_some_and(|features| features.supplemental_groups_policy)
    );
    let config = client
        .runtime_config(cri::RuntimeConfigRequest {})
        .await
        .expect("a config")
        .into_inner();
    assert_eq!(
        config.linux.map(|linux| linux.cgroup_driver()),
        Some(cri::CgroupDriver::Cgroupfs)
    );
    let update = |cidr: &str| cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig {
                pod_cidr: cidr.into(),
            }),
        }),
    };
    client
        .update_runtime_config(update("10.2.0.0/24"))
        .await
        .expect("a good range");
    client
        .update_runtime_config(update(""))
        .await
        .expect("nothing to do");
    assert_eq!(
        refused(client.update_runtime_config(update("x")).await).0,
        Code::InvalidArgument
    );
    assert_eq!(fake.calls(), ["pod cidr 10.2.0.0/24"]);
}

#[tokio::test]
async fn unknown_ids_are_not_found_only_where_they_matter() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let id = "f".repeat(64);
    let container = (Code::NotFound, format!("container {id} not found"));
    let sandbox = (Code::NotFound, format!("sandbox {id} not found"));
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id.clone(),
        verbose: false,
    };
    assert_eq!(refused(client.pod_sandbox_status(request).await), sandbox);
    let request = cri::ContainerStatusRequest {
        container_id: id.clone(),
        verbose: false,
    };
    assert_eq!(refused(client.container_status(request).await), container);
    let request = cri::StartContainerRequest {
        container_id: id.clone(),
    };
    assert_eq!(refused(client.start_container(request).await), container);
    let request = cri::ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    assert_eq!(
        refused(client.reopen_container_log(request).await),
        container
    );
    let request = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["ls".into()],
        timeout: 0,
    };
    assert_eq!(refused(client.exec_sync(request).await), container);
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: id.clone(),
        config: Some(fake::container_config("x")),
        sandbox_config: None,
    };
    assert_eq!(refused(client.create_container(request).await), sandbox);

    let request = cri::StopPodSandboxRequest {
        pod_sandbox_id: "no-such-pod".into(),
    };
    client
        .stop_pod_sandbox(request)
        .await
        .expect("it is stopped");
    let request = cri::RemovePodSandboxRequest {
        pod_sandbox_id: id.clone(),
    };
    client
        .remove_pod_sandbox(request)
        .await
        .expect("it is removed");
    let request = cri::StopContainerRequest {
        container_id: id.clone(),
        timeout: 3,
    };
    client.stop_container(request).await.expect("it is stopped");
    let request = cri::RemoveContainerRequest {
        container_id: "no-such".into(),
    };
    client
        .remove_container(request)
        .await
        .expect("it is removed");
    assert!(fake.calls().is_empty());

    let request = cri::RemoveContainerRequest {
        container_id: "../x".into(),
    };
    assert_eq!(
        refused(client.remove_container(request).await),
        (
            Code::InvalidArgument,
            "container_id: \"../x\" is no id".into()
        )
    );
    let request = cri::StopPodSandboxRequest {
        pod_sandbox_id: String::new(),
    };
    assert_eq!(
        refused(client.stop_pod_sandbox(request).await),
        (
            Code::InvalidArgument,
            "pod_sandbox_id: must not be empty".into()
        )
    );
}

#[tokio::test]
async fn the_domain_gets_what_was_asked() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let sandbox = fake::run(&mut client, fake::sandbox_config("pod")).await;
    let id = fake::create(&mut client, &sandbox, fake::container_config("web")).await;
    let request = cri::StartContainerRequest {
        container_id: id.clone(),
    };
    assert_eq!(
        refused(client.start_container(request).await),
        (
            Code::FailedPrecondition,
            format!("container {id} has exited")
        )
    );
    let request = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["a".into(), "b".into()],
        timeout: 1,
    };
    assert_eq!(
        refused(client.exec_sync(request).await),
        (Code::DeadlineExceeded, "command took longer than 1s".into())
    );
    let request = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["a".into()],
        timeout: 0,
    };
    let output = client
        .exec_sync(request)
        .await
        .expect("fits in a message")
        .into_inner();
    assert_eq!(
        (output.exit_code, output.stderr.as_slice()),
        (3, b"err".as_slice())
    );
    let request = cri::StopContainerRequest {
        container_id: id.clone(),
        timeout: 30,
    };
    client.stop_container(request).await.expect("stopped");
    let request = cri::RemoveContainerRequest {
        container_id: id.clone(),
    };
    client.remove_container(request).await.expect("removed");
    let request = cri::RemovePodSandboxRequest {
        pod_sandbox_id: sandbox.clone(),
    };
    client.remove_pod_sandbox(request).await.expect("removed");
    assert_eq!(
        fake.calls(),
        [
            format!("start {id}"),
            format!("exec {id} [\"a\", \"b\"] Some(1s)"),
            format!("exec {id} [\"a\"] None"),
            format!("stop {id} 30s"),
            format!("remove {id}"),
            format!("remove sandbox {sandbox}"),
        ]
    );
}

#[tokio::test]
async fn bad_requests_reach_nothing() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let sandbox = fake::run(&mut client, fake::sandbox_config("pod")).await;
    fake::run(&mut client, fake::sandbox_config("other")).await;
    let request = |config| cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config,
        sandbox_config: None,
    };
    assert_eq!(
        refused(client.create_container(request(None)).await),
        (Code::InvalidArgument, "config: must be set".into())
    );
    let escaping = cri::ContainerConfig {
        log_path: "../x".into(),
        ..fake::container_config("web")
    };
    assert_eq!(
        refused(client.create_container(request(Some(escaping))).await),
        (
            Code::InvalidArgument,
            "config.log_path: \"../x\" must not contain \"..\" (container \"web\")".into()
        )
    );
    let cdi = cri::ContainerConfig {
        cdi_devices: vec![cri::CdiDevice::default()],
        ..fake::container_config("web")
    };
    assert_eq!(
        refused(client.create_container(request(Some(cdi))).await),
        (
            Code::InvalidArgument,
            "config.CDI_devices[0].name: \"\" is not of the form \"vendor.com/class=name\" \
             (container \"web\")"
                .into()
        )
    );
    let privileged = cri::ContainerConfig {
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                privileged: true,
                ..Default::default()
            }),
            resources: None,
        }),
        ..fake::container_config("web")
    };
    assert_eq!(
        refused(client.create_container(request(Some(privileged))).await).0,
        Code::InvalidArgument
    );
    let prefix = cri::PodSandboxStatusRequest {
        pod_sandbox_id: "abab".into(),
        verbose: false,
    };
    assert_eq!(
        refused(client.pod_sandbox_status(prefix).await),
        (
            Code::InvalidArgument,
            "sandbox abab is ambiguous: more than one id begins so".into()
        )
    );
    assert!(
        fake.containers
            .lock()
            .expect("no test panics in here")
            .is_empty()
    );
}

#[tokio::test]
async fn a_panic_costs_one_call() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let config = cri::PodSandboxConfig {
        hostname: "panic".into(),
        ..fake::sandbox_config("pod")
    };
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    assert_eq!(
        refused(client.run_pod_sandbox(request).await),
        (Code::Internal, "bug in carpel: panic: boom".into())
    );
    fake::run(&mut client, fake::sandbox_config("pod")).await;
}

#[tokio::test]
async fn what_is_not_built_says_so_by_name() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let not_built = |name: &str| {
        let why = "carpel cannot checkpoint or restore processes";
        (
            Code::Unimplemented,
            format!("{name} is not supported: {why}"),
        )
    };
    let request = cri::CheckpointContainerRequest::default();
    assert_eq!(
        refused(client.checkpoint_container(request).await),
        not_built("CheckpointContainer")
    );
    let request = cri::CheckpointPodRequest::default();
    assert_eq!(
        refused(client.checkpoint_pod(request).await),
        not_built("CheckpointPod")
    );
    let request = cri::RestorePodRequest::default();
    assert_eq!(
        refused(client.restore_pod(request).await),
        not_built("RestorePod")
    );
}

#[tokio::test]
async fn a_record_decodes_to_what_was_checked() {
    use prost::Message;
    let request = fake::sandbox_config("pod").encode_to_vec();
    let config = crate::cri::decode_sandbox(&request, "").expect("it was accepted once");
    assert_eq!(config.name.name, "pod");
    let request = fake::container_config("web").encode_to_vec();
    let config = crate::cri::decode_container(&request).expect("it was accepted once");
    assert_eq!(config.mounts[0].container_path, "/data");
    for noise in [b"\xff\xff".as_slice(), b""] {
        assert!(crate::cri::decode_sandbox(noise, "").is_err());
        assert!(crate::cri::decode_container(noise).is_err());
    }
}
