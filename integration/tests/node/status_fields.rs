//! Every field of a status and of a list's item. They are compared as wholes, so that a field which is filled or left
//! empty against what is written here is seen.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use carpel_integration::image::{BUSYBOX, Image};
use carpel_integration::v1::{
    self, ContainerResources, ContainerState, ContainerStatus, ImageSpec, LinuxContainerResources,
    LinuxContainerUser, LinuxPodSandboxStatus, Mount, MountPropagation, Namespace, NamespaceOption,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus, Signal,
};
use carpel_integration::{ContainerConfigExt, Pod, PodConfigExt, TestNode, container, host, sh};
use nix::mount::MsFlags;

use crate::mounts::HostMount;

/// What no runtime may change: the interface says so, and the kubelet compares.
fn awkward() -> BTreeMap<String, String> {
    let pairs = [
        ("io.kubernetes.container.hash", "5f3a"),
        (
            "Ünïcode / \"quoted\"\n",
            "two\nlines\tand \u{0}no end \u{10ffff}",
        ),
        ("empty", ""),
        ("", "no key"),
    ];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    pairs.map(owned).into()
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_nanos()).unwrap()
}

/// A pod of which everything is said.
async fn full_pod(node: &TestNode) -> Pod {
    let mut config = node.pod("one");
    config.labels = awkward();
    config.annotations = awkward();
    config.metadata.as_mut().unwrap().attempt = 7;
    node.run_pod(&config).await
}

async fn listed_pod(node: &TestNode) -> v1::PodSandbox {
    let mut pods = node.pods().await;
    assert_eq!(pods.len(), 1);
    pods.remove(0)
}

#[tokio::test]
async fn pod_sandbox_status() {
    let node = TestNode::start().await;
    let before = now();
    let pod = full_pod(&node).await;
    let response = node.try_pod_status(&pod.id).await.unwrap();
    assert!((before..=now()).contains(&response.timestamp));
    assert_eq!(response.containers_statuses, []);
    assert_eq!(response.info.keys().collect::<Vec<_>>(), ["info"]);
    let status = response.status.expect("a status");
    assert!((before..=now()).contains(&status.created_at));
    let ip = status.network.clone().expect("a network").ip;
    assert!(ip.starts_with("10.118."), "{ip}");
    let options = NamespaceOption {
        pid: v1::NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    };
    let mut expected = PodSandboxStatus {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: PodSandboxState::SandboxReady.into(),
        created_at: status.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip,
            // One family.
            additional_ips: Vec::new(),
        }),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(options),
            }),
        }),
        labels: awkward(),
        annotations: awkward(),
        // The default.
        runtime_handler: String::new(),
    };
    assert_eq!(status, expected);
    let mut item = v1::PodSandbox {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: PodSandboxState::SandboxReady.into(),
        created_at: status.created_at,
        labels: awkward(),
        annotations: awkward(),
        runtime_handler: String::new(),
    };
    assert_eq!(listed_pod(&node).await, item);
    // A stopped pod has all of it still, with its address.
    node.try_stop_pod(&pod.id).await.unwrap();
    expected.set_state(PodSandboxState::SandboxNotready);
    item.set_state(PodSandboxState::SandboxNotready);
    assert_eq!(node.pod_status(&pod).await, expected);
    assert_eq!(listed_pod(&node).await, item);
    // What is not verbose has no more.
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let response = node.cri.runtime().pod_sandbox_status(request).await;
    assert!(response.unwrap().into_inner().info.is_empty());
    node.finish().await;
}

/// A container of which everything is said that can be said without another's help.
fn full_container(volume: &Path) -> v1::ContainerConfig {
    let mut config = sh(
        "a",
        "trap 'echo ended >&2; exit 3' USR1; while :; do sleep 0.1; done",
    );
    config.metadata.as_mut().unwrap().attempt = 5;
    config.labels = awkward();
    config.annotations = awkward();
    config.log_path = "a/5.log".into();
    config.image.as_mut().unwrap().user_specified_image = "busybox, as it was written".into();
    config.set_stop_signal(Signal::Sigusr1);
    config = config.mount(volume, "/private");
    for (path, propagation) in [
        ("/slave/", MountPropagation::PropagationHostToContainer),
        ("/read-only", MountPropagation::PropagationPrivate),
    ] {
        let mut mount = Mount {
            container_path: path.into(),
            host_path: volume.display().to_string(),
            readonly: path == "/read-only",
            ..Mount::default()
        };
        mount.set_propagation(propagation);
        config.mounts.push(mount);
    }
    *config.resources() = resources();
    config.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    config.security().supplemental_groups = vec![7, 8];
    config
}

fn resources() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 60_001,
        cpu_shares: 513,
        // Not a whole number of pages: what was asked for is told, not what the kernel made of it.
        memory_limit_in_bytes: (64 << 20) + 1,
        oom_score_adj: 100,
        ..LinuxContainerResources::default()
    }
}

async fn list_item(node: &TestNode) -> v1::Container {
    let mut containers = node.containers().await;
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

/// The status of a created [`full_container`].
fn expected_status(
    node: &TestNode,
    config: &v1::ContainerConfig,
    seen: &ContainerStatus,
) -> ContainerStatus {
    ContainerStatus {
        id: seen.id.clone(),
        metadata: config.metadata.clone(),
        state: ContainerState::ContainerCreated.into(),
        created_at: seen.created_at,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        image: Some(ImageSpec {
            image: BUSYBOX.into(),
            user_specified_image: "busybox, as it was written".into(),
            // A pull's.
            annotations: BTreeMap::new(),
            runtime_handler: String::new(),
            // The container's own has it.
            image_ref: String::new(),
        }),
        image_ref: seen.image_ref.clone(),
        reason: String::new(),
        message: String::new(),
        labels: awkward(),
        annotations: awkward(),
        mounts: config.mounts.clone(),
        log_path: node.log_dir("one").join("a/5.log").display().to_string(),
        resources: Some(ContainerResources {
            linux: Some(resources()),
            windows: None,
        }),
        image_id: Image::busybox().id(),
        user: Some(v1::ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: 1000,
                gid: 0,
                supplemental_groups: vec![0, 7, 8],
            }),
        }),
        stop_signal: Signal::Sigusr1.into(),
    }
}

#[tokio::test]
async fn container_status() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let volume = HostMount::new(&node.dir().join("volume"), MsFlags::MS_SHARED);
    let config = full_container(&volume.0);
    let before = now();
    let id = node.try_create(&pod, &config).await.unwrap();
    let created = node.status(&id).await;
    assert_eq!(created.id, id);
    assert!((before..=now()).contains(&created.created_at));
    let mut expected = expected_status(&node, &config, &created);
    // An image that no registry was asked for has no digest of its own.
    let mut images = node.cri.images();
    let listed = images.list_images(v1::ListImagesRequest::default());
    let listed = listed.await.unwrap().into_inner().images;
    let by_digest = listed[0].repo_digests.first();
    assert_eq!(&created.image_ref, by_digest.unwrap_or(&listed[0].id));
    assert_eq!(created.image_id, listed[0].id);
    assert_eq!(created, expected);
    let mut item = v1::Container {
        id: id.clone(),
        pod_sandbox_id: pod.id.clone(),
        metadata: config.metadata.clone(),
        image: expected.image.clone(),
        image_ref: expected.image_ref.clone(),
        state: ContainerState::ContainerCreated.into(),
        created_at: created.created_at,
        labels: awkward(),
        annotations: awkward(),
        image_id: expected.image_id.clone(),
    };
    assert_eq!(list_item(&node).await, item);
    node.try_start(&id).await.unwrap();
    let running = node.status(&id).await;
    assert!((created.created_at..=now()).contains(&running.started_at));
    expected.set_state(ContainerState::ContainerRunning);
    item.set_state(ContainerState::ContainerRunning);
    expected.started_at = running.started_at;
    assert_eq!(running, expected);
    assert_eq!(list_item(&node).await, item);
    // In the pod's status and after the daemon's death it is the same.
    let of_pod = node.try_pod_status(&pod.id).await.unwrap();
    assert_eq!(of_pod.containers_statuses, [expected.clone()]);
    node.crash().await;
    assert_eq!(node.status(&id).await, expected);
    node.try_stop(&id, 20).await.unwrap();
    let exited = node.status(&id).await;
    assert!((exited.started_at..=now()).contains(&exited.finished_at));
    expected.set_state(ContainerState::ContainerExited);
    item.set_state(ContainerState::ContainerExited);
    expected.finished_at = exited.finished_at;
    expected.exit_code = 3;
    expected.reason = "Error".into();
    assert_eq!(exited, expected);
    assert_eq!(list_item(&node).await, item);
    drop(volume);
    node.finish().await;
}

#[tokio::test]
async fn container_status_of_what_was_not_said() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.log_directory = String::new();
    config.linux = None;
    let pod = node.run_pod(&config).await;
    let options = node
        .pod_status(&pod)
        .await
        .linux
        .and_then(|linux| linux.namespaces);
    assert_eq!(options.unwrap().options, Some(NamespaceOption::default()));
    let mut config = container("a", &["true"]);
    config.log_path = String::new();
    config.linux = None;
    let id = node.start_container(&pod, &config).await;
    let status = node.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert_eq!(
        (status.message.as_str(), status.log_path.as_str()),
        ("", "")
    );
    let linux = status.resources.expect("limits").linux;
    assert_eq!(linux, Some(LinuxContainerResources::default()));
    assert_eq!(status.stop_signal, i32::from(Signal::Sigterm));
    assert!(status.mounts.is_empty() && status.labels.is_empty());
    assert!(status.annotations.is_empty());
    let user = status.user.and_then(|user| user.linux).expect("a user");
    assert_eq!((user.uid, user.gid), (0, 0));
    node.finish().await;
}

#[tokio::test]
async fn container_stats_and_pod_sandbox_stats() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.labels = awkward();
    config.annotations = awkward();
    config.namespaces().set_pid(v1::NamespaceMode::Container);
    // A cgroup of the pod's own, as a kubelet makes it.
    let parent = format!("{}/pod1", node.cgroup_parent());
    for mount in host::cgroup_mounts() {
        let _ = std::fs::create_dir_all(mount.join(parent.trim_start_matches('/')));
    }
    config.linux().cgroup_parent = parent;
    let pod = node.run_pod(&config).await;
    let mut config = sh("a", "while :; do sleep 0.1; done");
    config.labels = awkward();
    config.annotations = awkward();
    config.resources().memory_limit_in_bytes = 64 << 20;
    let id = node.start_container(&pod, &config).await;
    let before = now();
    let stats = async || {
        let request = v1::PodSandboxStatsRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let response = node.cri.runtime().pod_sandbox_stats(request).await;
        response.unwrap().into_inner().stats.expect("figures")
    };
    stats().await;
    // The rate is that between two looks.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = stats().await;
    let attributes = all.attributes.expect("whose");
    assert_eq!(
        (attributes.id, attributes.metadata),
        (pod.id.clone(), pod.config.metadata.clone())
    );
    assert_eq!(
        (attributes.labels, attributes.annotations),
        (awkward(), awkward())
    );
    assert_eq!(all.windows, None);
    let linux = all.linux.expect("figures");
    let [of_container] = &linux.containers[..] else {
        panic!("one container: {linux:?}");
    };
    let attributes = of_container.attributes.clone().expect("whose");
    assert_eq!(
        (attributes.id, attributes.metadata),
        (id, config.metadata.clone())
    );
    assert_eq!(
        (attributes.labels, attributes.annotations),
        (awkward(), awkward())
    );
    // Everything that this kernel knows, of the pod and of the container, each with its time.
    let unified = host::is_unified();
    let fresh = before..=now();
    for (cpu, memory, io) in [
        (linux.cpu, linux.memory, linux.io),
        (of_container.cpu, of_container.memory, of_container.io),
    ] {
        let (cpu, memory) = (cpu.expect("cpu"), memory.expect("memory"));
        assert!(fresh.contains(&cpu.timestamp) && fresh.contains(&memory.timestamp));
        assert!(cpu.usage_core_nano_seconds.is_some() && cpu.usage_nano_cores.is_some());
        let figures = [
            memory.working_set_bytes,
            memory.usage_bytes,
            memory.rss_bytes,
            memory.page_faults,
            memory.major_page_faults,
        ];
        assert!(figures.iter().all(Option::is_some), "{memory:?}");
        for psi in [cpu.psi, memory.psi, io.and_then(|io| io.psi)] {
            assert_eq!(psi.is_some(), unified, "only cgroup v2 has pressures");
            let whole = psi.is_none_or(|psi| psi.full.is_some() && psi.some.is_some());
            assert!(whole, "{psi:?}");
        }
        assert!(io.is_none_or(|io| fresh.contains(&io.timestamp)));
    }
    let available = |memory: Option<v1::MemoryUsage>| memory.unwrap().available_bytes;
    assert!(available(of_container.memory).is_some(), "it has a limit");
    assert_eq!(available(linux.memory), None, "it has none");
    let process = linux.process.expect("processes");
    assert!(process.process_count.unwrap().value >= 2);
    let network = linux.network.expect("a network");
    for timestamp in [process.timestamp, network.timestamp] {
        assert!(fresh.contains(&timestamp));
    }
    let main = network.default_interface.expect("eth0");
    let figures = [main.rx_bytes, main.rx_errors, main.tx_bytes, main.tx_errors];
    assert!(figures.iter().all(Option::is_some), "{main:?}");
    let layer = of_container.writable_layer.clone().expect("a layer");
    assert!(layer.timestamp > 0 && layer.used_bytes.is_some());
    assert!(layer.inodes_used.is_some() && layer.fs_id.is_some());
    node.remove_pods().await;
    for dir in host::cgroup_dirs(node.cgroup_parent()) {
        let tree = host::tree(&dir);
        tree.iter()
            .for_each(|dir| std::fs::remove_dir(dir).unwrap());
    }
    node.finish().await;
}
