//! Sandboxes and containers from their making to their end: states, times, lists, repetition.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use carpel_integration::request::sleeper;
use carpel_integration::v1::{
    self, ContainerFilter, ContainerState, ContainerStateValue, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, Signal,
};
use carpel_integration::{TestNode, container, host, image, sh};
use serde_json::json;
use tonic::Code;

use crate::refused;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect()
}

#[tokio::test]
async fn a_sandbox_tells_what_was_asked_of_it() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.labels = labels(&[("app", "web"), ("io.kubernetes.pod.name", "one")]);
    config.annotations = labels(&[("example.org/Key", "any: value\n"), ("empty", "")]);
    let before = now();
    let pod = node.run_pod(&config).await;

    assert_eq!(pod.id.len(), 64);
    let status = node.pod_status(&pod).await;
    assert_eq!(status.id, pod.id);
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert!(
        (before..=now()).contains(&status.created_at),
        "{}",
        status.created_at
    );
    let options = status
        .linux
        .and_then(|l| l.namespaces)
        .and_then(|n| n.options);
    assert_eq!(
        options.expect("namespace options").network(),
        v1::NamespaceMode::Pod
    );
    assert!(!status.network.expect("a network").ip.is_empty());

    let listed = &node.pods().await[0];
    assert_eq!(listed.id, pod.id);
    assert_eq!(listed.metadata, config.metadata);
    assert_eq!(listed.created_at, status.created_at);
    node.finish().await;
}

#[tokio::test]
async fn a_container_goes_from_created_to_running_to_exited() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("worker", "sleep 0.2; exit 3");
    config.labels = labels(&[("io.kubernetes.container.name", "worker")]);
    config.annotations = labels(&[("io.kubernetes.container.restartCount", "0")]);

    let id = node.try_create(&pod, &config).await.unwrap();
    assert_eq!(id.len(), 64);
    let created = node.status(&id).await;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert_eq!((created.started_at, created.finished_at), (0, 0));
    assert_eq!(created.metadata, config.metadata);
    assert_eq!(created.labels, config.labels);
    assert_eq!(created.annotations, config.annotations);
    assert_eq!(
        created.log_path,
        node.log_dir("one").join("worker.log").display().to_string()
    );
    assert_eq!(created.image.as_ref().unwrap().image, image::BUSYBOX);
    assert_eq!(created.image_id, image::Image::busybox().id());
    assert!(!created.image_ref.is_empty());

    node.try_start(&id).await.unwrap();
    let running = node.status(&id).await;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at);

    let exited = node.wait_exit(&id).await;
    assert_eq!(exited.exit_code, 3);
    assert_eq!(exited.reason, "Error");
    assert!(exited.finished_at > exited.started_at + 150_000_000);
    assert!(exited.finished_at <= now());
    assert_eq!(exited.started_at, running.started_at);
    node.finish().await;
}

#[tokio::test]
async fn an_exit_of_zero_is_completed_and_a_signal_is_128_and_more() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let (_, status) = node.run_to_end(&pod, &container("fine", &["true"])).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));

    let id = node
        .start_container(&pod, &container("killed", &["sleep", "1000"]))
        .await;
    host::kill_9(node.container_pid(&id));
    let status = node.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    node.finish().await;
}

#[tokio::test]
async fn lists_are_filtered_by_id_state_pod_and_labels() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.labels = labels(&[("app", "web"), ("tier", "front")]);
    let one = node.run_pod(&config).await;
    let two = node.run_pod(&node.pod("two")).await;
    node.try_stop_pod(&two.id).await.unwrap();
    let mut running = sleeper("running");
    running.labels = labels(&[("kind", "a"), ("more", "b")]);
    let running = node.start_container(&one, &running).await;
    let created = node.try_create(&one, &sleeper("created")).await.unwrap();

    let pods = async |filter: PodSandboxFilter| {
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter),
        };
        let response = node.cri.runtime().list_pod_sandbox(request).await.unwrap();
        response
            .into_inner()
            .items
            .into_iter()
            .map(|pod| pod.id)
            .collect::<Vec<_>>()
    };
    let by_state = |state: PodSandboxState| PodSandboxFilter {
        state: Some(PodSandboxStateValue {
            state: state.into(),
        }),
        ..PodSandboxFilter::default()
    };
    assert_eq!(node.pods().await.len(), 2);
    assert_eq!(
        pods(by_state(PodSandboxState::SandboxReady)).await,
        [one.id.clone()]
    );
    assert_eq!(
        pods(by_state(PodSandboxState::SandboxNotready)).await,
        [two.id.clone()]
    );
    let by_id = |id: &str| PodSandboxFilter {
        id: id.into(),
        ..PodSandboxFilter::default()
    };
    assert_eq!(pods(by_id(&one.id)).await, [one.id.clone()]);
    assert_eq!(pods(by_id(&"0".repeat(64))).await, [""; 0]);
    let by_labels = |pairs: &[(&str, &str)]| PodSandboxFilter {
        label_selector: labels(pairs),
        ..PodSandboxFilter::default()
    };
    assert_eq!(
        pods(by_labels(&[("app", "web"), ("tier", "front")])).await,
        [one.id.clone()]
    );
    assert_eq!(
        pods(by_labels(&[("app", "web"), ("tier", "back")])).await,
        [""; 0]
    );

    let containers = async |filter: ContainerFilter| {
        let request = v1::ListContainersRequest {
            filter: Some(filter),
        };
        let response = node.cri.runtime().list_containers(request).await.unwrap();
        let mut ids: Vec<_> = response
            .into_inner()
            .containers
            .into_iter()
            .map(|c| c.id)
            .collect();
        ids.sort();
        ids
    };
    let state = |state: ContainerState| ContainerFilter {
        state: Some(ContainerStateValue {
            state: state.into(),
        }),
        ..ContainerFilter::default()
    };
    assert_eq!(
        containers(state(ContainerState::ContainerRunning)).await,
        [running.clone()]
    );
    assert_eq!(
        containers(state(ContainerState::ContainerCreated)).await,
        [created.clone()]
    );
    assert_eq!(
        containers(state(ContainerState::ContainerExited)).await,
        [""; 0]
    );
    let of = |pod: &str| ContainerFilter {
        pod_sandbox_id: pod.into(),
        ..ContainerFilter::default()
    };
    let mut both = [running.clone(), created.clone()];
    both.sort();
    assert_eq!(containers(of(&one.id)).await, both);
    assert_eq!(containers(of(&two.id)).await, [""; 0]);
    let id = ContainerFilter {
        id: created.clone(),
        ..ContainerFilter::default()
    };
    assert_eq!(containers(id).await, [created]);
    let with = ContainerFilter {
        label_selector: labels(&[("kind", "a")]),
        ..ContainerFilter::default()
    };
    assert_eq!(containers(with).await, [running]);
    node.finish().await;
}

#[tokio::test]
async fn a_repeated_request_gives_what_the_first_one_made() {
    let node = TestNode::start().await;
    let config = node.pod("one");
    let (a, b, c) = tokio::join!(
        node.try_run_pod(&config),
        node.try_run_pod(&config),
        node.try_run_pod(&config)
    );
    let pod = a.unwrap();
    assert_eq!(b.unwrap().id, pod.id);
    assert_eq!(c.unwrap().id, pod.id);
    assert_eq!(node.run_pod(&config).await.id, pod.id);

    let config = sleeper("worker");
    let (a, b) = tokio::join!(
        node.try_create(&pod, &config),
        node.try_create(&pod, &config)
    );
    let id = a.unwrap();
    assert_eq!(b.unwrap(), id);
    assert_eq!(node.try_create(&pod, &config).await.unwrap(), id);
    assert_eq!(node.containers().await.len(), 1);

    let mut next = node.pod("one");
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(node.run_pod(&next).await.id, pod.id);
    let mut next = config;
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(node.try_create(&pod, &next).await.unwrap(), id);
    node.finish().await;
}

#[tokio::test]
async fn a_request_given_up_by_its_caller_is_joined_by_the_next() {
    let node = TestNode::start().await;
    let config = node.pod("one");
    for millis in [0, 1, 2, 4, 8] {
        let run = node.try_run_pod(&config);
        let _ = tokio::time::timeout(Duration::from_millis(millis), run).await;
    }
    let pod = node.run_pod(&config).await;
    assert_eq!(node.pods().await.len(), 1);
    assert_eq!(node.pods().await[0].id, pod.id);
    node.finish().await;
}

#[tokio::test]
async fn stop_and_remove_may_be_repeated_and_know_no_unknown_id() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("worker")).await;
    for _ in 0..2 {
        node.try_stop(&id, 5).await.unwrap();
        node.try_stop_pod(&pod.id).await.unwrap();
    }
    for _ in 0..2 {
        node.try_remove(&id).await.unwrap();
        node.try_remove_pod(&pod.id).await.unwrap();
    }
    refused(node.try_status(&id).await, Code::NotFound, &id);
    refused(node.try_pod_status(&pod.id).await, Code::NotFound, &pod.id);
    let unknown = "f".repeat(64);
    node.try_stop(&unknown, 0).await.unwrap();
    node.try_remove(&unknown).await.unwrap();
    node.try_stop_pod(&unknown).await.unwrap();
    node.try_remove_pod(&unknown).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_container_is_asked_to_stop_and_killed_after_its_grace() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let polite = sh(
        "polite",
        "trap 'echo asked; exit 7' TERM; echo up; sleep 1000 & wait",
    );
    let id = node.start_container(&pod, &polite).await;
    node.wait_log(&pod, "polite", |log| log.stdout() == "up\n")
        .await;
    let begin = Instant::now();
    node.try_stop(&id, 10).await.unwrap();
    assert!(begin.elapsed() < host::patience(Duration::from_secs(2)));
    let status = node.status(&id).await;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 7);
    assert_eq!(node.log(&pod, "polite").stdout(), "up\nasked\n");

    let deaf = sh(
        "deaf",
        "trap '' TERM; echo up; while true; do sleep 1; done",
    );
    let id = node.start_container(&pod, &deaf).await;
    node.wait_log(&pod, "deaf", |log| log.stdout() == "up\n")
        .await;
    let begin = Instant::now();
    node.try_stop(&id, 1).await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(took < host::patience(Duration::from_secs(3)), "{took:?}");
    assert_eq!(node.status(&id).await.exit_code, 137);

    let id = node
        .start_container(
            &pod,
            &sh("at-once", "trap '' TERM; while true; do sleep 1; done"),
        )
        .await;
    let begin = Instant::now();
    node.try_stop(&id, 0).await.unwrap();
    assert!(begin.elapsed() < host::patience(Duration::from_secs(1)));
    assert_eq!(node.status(&id).await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn the_stop_signal_is_the_requests_else_the_images() {
    let mut node = TestNode::start().await;
    let usr1 = image::Image::busybox()
        .tagged("localhost/usr1:1")
        .set("StopSignal", json!("SIGUSR1"));
    node.import(usr1.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script =
        "trap 'exit 31' USR1; trap 'exit 32' USR2; trap 'exit 33' TERM; echo up; sleep 1000 & wait";
    let cases = [
        ("images", "localhost/usr1:1", Signal::RuntimeDefault, 31),
        ("requests", "localhost/usr1:1", Signal::Sigusr2, 32),
        ("default", image::BUSYBOX, Signal::RuntimeDefault, 33),
    ];
    for (name, tag, signal, code) in cases {
        let mut config = sh(name, script);
        config.image.as_mut().unwrap().image = tag.into();
        config.set_stop_signal(signal);
        let id = node.start_container(&pod, &config).await;
        node.wait_log(&pod, name, |log| log.stdout() == "up\n")
            .await;
        node.try_stop(&id, 10).await.unwrap();
        assert_eq!(node.status(&id).await.exit_code, code, "{name}");
    }
    node.finish().await;
}

#[tokio::test]
async fn stopping_a_sandbox_stops_its_containers_and_frees_its_network() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let running = node
        .start_container(&pod, &container("running", &["sleep", "1000"]))
        .await;
    let created = node.try_create(&pod, &sleeper("created")).await.unwrap();
    let pid = node.container_pid(&running);
    node.try_stop_pod(&pod.id).await.unwrap();
    assert!(!host::runs(pid));
    assert_eq!(
        node.status(&running).await.state(),
        ContainerState::ContainerExited
    );
    let status = node.pod_status(&pod).await;
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    assert!(
        node.net
            .output(&["ip", "-o", "link"])
            .lines()
            .all(|link| !link.contains('@'))
    );
    refused(node.try_start(&created).await, Code::FailedPrecondition, "");
    refused(
        node.try_create(&pod, &sleeper("late")).await,
        Code::FailedPrecondition,
        "",
    );
    node.finish().await;
}

#[tokio::test]
async fn a_removal_ends_what_still_runs() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let one = node
        .start_container(&pod, &container("one", &["sleep", "1000"]))
        .await;
    let two = node
        .start_container(&pod, &container("two", &["sleep", "1000"]))
        .await;
    let pids = [node.container_pid(&one), node.container_pid(&two)];
    node.try_remove(&one).await.unwrap();
    refused(node.try_status(&one).await, Code::NotFound, "");
    assert!(!host::runs(pids[0]));
    node.try_remove_pod(&pod.id).await.unwrap();
    refused(node.try_status(&two).await, Code::NotFound, "");
    assert!(!host::runs(pids[1]));
    node.finish().await;
}

#[tokio::test]
async fn a_container_starts_once() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("worker")).await;
    let again = node.try_start(&id).await;
    again.expect("what is asked for holds already");
    node.try_stop(&id, 5).await.unwrap();
    refused(
        node.try_start(&id).await,
        Code::FailedPrecondition,
        "exited",
    );
    refused(node.try_start(&"e".repeat(64)).await, Code::NotFound, "");
    node.finish().await;
}

#[tokio::test]
async fn containers_of_a_pod_come_and_go_beside_each_other() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let names: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
    let shared = (&node, &pod);
    let runs = names.iter().map(|name| async move {
        let (node, pod) = shared;
        let (log, status) = node
            .run_to_end(pod, &sh(name, &format!("echo {name}; exit 5")))
            .await;
        assert_eq!(status.exit_code, 5);
        assert_eq!(log.stdout(), format!("{name}\n"));
        node.try_remove(&status.id).await.unwrap();
    });
    futures::future::join_all(runs).await;
    assert!(node.containers().await.is_empty());
    node.finish().await;
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}
