//! NRI: plugins that hear of pods and containers, and have a say in how containers are made.

mod adjust;
mod installed;
mod limits;
mod wrong;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use carpel_integration::api::nri::{
    self, ContainerState as Seen, CreateContainerRequest, CreateContainerResponse,
    StateChangeEvent, SynchronizeRequest,
};
use carpel_integration::nri::{Answer, Behaviour, Plugin};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{ContainerState, LinuxContainerResources};
use carpel_integration::{TestNode, host, sh};
use tonic::Code;

use crate::refused;

fn socket(node: &TestNode) -> PathBuf {
    node.dir().join("run/nri.sock")
}

async fn plugin(node: &TestNode, behaviour: Behaviour) -> Plugin {
    Plugin::start(&socket(node), behaviour)
        .await
        .expect("it is taken in")
}

/// What a plugin wants of each container that is created.
fn wanting(index: &str, name: &str, adjust: nri::ContainerAdjustment) -> Behaviour {
    let response = CreateContainerResponse {
        adjust: Some(adjust),
        ..CreateContainerResponse::default()
    };
    Behaviour::new(index, name).answers("CreateContainer", Answer::message(&response))
}

#[tokio::test]
async fn a_plugin_hears_of_a_pods_whole_life_in_order() {
    let node = TestNode::start().await;
    let plugin = plugin(&node, Behaviour::new("00", "all")).await;
    let configured: nri::ConfigureRequest = plugin.wait_for("Configure", 1).await.request();
    assert_eq!(configured.runtime_name, "carpel");
    assert_eq!(
        (configured.registration_timeout, configured.request_timeout),
        (5000, 2000)
    );
    let mut config = node.pod("one");
    config.labels = [("label".to_owned(), "l".to_owned())].into();
    config.annotations = [("annotation".to_owned(), "a".to_owned())].into();
    let pod = node.run_pod(&config).await;
    let mut config = sleeper("a");
    config.labels = [("app".to_owned(), "x".to_owned())].into();
    config.annotations = [("of".to_owned(), "request".to_owned())].into();
    let id = node.start_container(&pod, &config).await;
    let change = LinuxContainerResources {
        cpu_shares: 512,
        ..LinuxContainerResources::default()
    };
    node.try_update(&id, &change).await.unwrap();
    let pid = node.container_pid(&id);
    node.try_stop(&id, 0).await.unwrap();
    node.try_stop(&id, 0).await.unwrap();
    node.try_remove(&id).await.unwrap();
    node.try_update_pod(&pod.id, Some(LinuxContainerResources::default()), None)
        .await
        .unwrap();
    let address = node.pod_ip(&pod).await;
    for _ in 0..2 {
        node.try_stop_pod(&pod.id).await.unwrap();
        node.try_remove_pod(&pod.id).await.unwrap();
    }
    let life = [
        "RunPodSandbox",
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "UpdateContainer",
        "PostUpdateContainer",
        "StopContainer",
        "RemoveContainer",
        "UpdatePodSandbox",
        "PostUpdatePodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
    ];
    assert_eq!(plugin.events(), life);

    let run: nri::RunPodSandboxRequest = plugin.wait_for("RunPodSandbox", 1).await.request();
    let seen = run.pod.unwrap();
    assert_eq!((&*seen.id, &*seen.name), (&*pod.id, "one"));
    assert_eq!(seen.labels["label"], "l");
    assert_eq!(seen.annotations["annotation"], "a");
    assert_eq!(seen.ips, [address.to_string()]);
    assert!(seen.pid > 0);
    let linux = seen.linux.unwrap();
    let network = linux
        .namespaces
        .iter()
        .find(|n| n.r#type == "network")
        .unwrap();
    assert!(network.path.starts_with(node.netns_dir().to_str().unwrap()));

    let create: CreateContainerRequest = plugin.wait_for("CreateContainer", 1).await.request();
    let container = create.container.unwrap();
    assert_eq!((&*container.id, &*container.name), (&*id, "a"));
    assert_eq!(container.pod_sandbox_id, pod.id);
    assert_eq!(container.labels["app"], "x");
    assert_eq!(container.annotations["of"], "request");
    assert_eq!(
        container.annotations["io.kubernetes.cri.container-name"],
        "a"
    );
    assert!(container.env.iter().any(|entry| entry.starts_with("PATH=")));
    assert!(
        container
            .mounts
            .iter()
            .any(|mount| mount.destination == "/proc")
    );
    assert!(
        container
            .image
            .unwrap()
            .config_digest
            .starts_with("sha256:")
    );
    let started: nri::PostStartContainerRequest =
        plugin.wait_for("PostStartContainer", 1).await.request();
    let container = started.container.unwrap();
    assert_eq!(container.state(), Seen::ContainerRunning);
    assert_eq!(i32::try_from(container.pid).unwrap(), pid);
    let stopped: nri::StopContainerRequest = plugin.wait_for("StopContainer", 1).await.request();
    let container = stopped.container.unwrap();
    assert_eq!(
        (container.state(), container.exit_code),
        (Seen::ContainerStopped, 137)
    );
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn an_exit_is_told_once_whoever_removes_the_container() {
    let node = TestNode::start().await;
    let plugin = plugin(&node, Behaviour::new("00", "exits")).await;
    let pod = node.run_pod(&node.pod("one")).await;
    plugin.forget();
    let id = node.start_container(&pod, &sh("a", "exit 3")).await;
    node.wait_exit(&id).await;
    let stop: nri::StopContainerRequest = plugin.wait_for("StopContainer", 1).await.request();
    let container = stop.container.unwrap();
    assert_eq!(
        (container.exit_code, &*container.status_reason),
        (3, "Error")
    );
    node.try_remove(&id).await.unwrap();
    // One that was never started stops before it is removed, and so do those of a pod that goes as a whole.
    let never = node.try_create(&pod, &sleeper("b")).await.unwrap();
    node.try_remove(&never).await.unwrap();
    node.start_container(&pod, &sleeper("c")).await;
    node.try_remove_pod(&pod.id).await.unwrap();
    let events = plugin.events();
    let short: Vec<_> = events
        .iter()
        .filter(|event| !event.starts_with("Post"))
        .collect();
    let life = "CreateContainer StartContainer StopContainer RemoveContainer \
                CreateContainer StopContainer RemoveContainer \
                CreateContainer StartContainer StopContainer StopPodSandbox RemoveContainer RemovePodSandbox";
    assert_eq!(short, life.split_whitespace().collect::<Vec<_>>());
    // A start that fails is an end, too.
    let pod = node.run_pod(&node.pod("two")).await;
    plugin.forget();
    let config = carpel_integration::container("a", &["/none"]);
    let id = node.try_create(&pod, &config).await.unwrap();
    node.try_start(&id).await.unwrap_err();
    let wanted = [
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "StopContainer",
    ];
    assert_eq!(plugin.events(), wanted);
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_comes_late_is_told_what_is_there() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let running = node.start_container(&pod, &sleeper("a")).await;
    let created = node.try_create(&pod, &sleeper("b")).await.unwrap();
    let exited = node.start_container(&pod, &sh("c", "exit 0")).await;
    node.wait_exit(&exited).await;
    let told = async |plugin: &Plugin| {
        let state: SynchronizeRequest = plugin.wait_for("Synchronize", 1).await.request();
        assert!(!state.more);
        let pods: Vec<_> = state.pods.into_iter().map(|pod| pod.id).collect();
        let mut containers: Vec<_> = state
            .containers
            .into_iter()
            .map(|container| (container.id.clone(), container.state()))
            .collect();
        containers.sort_by_key(|(_, state)| *state as i32);
        (pods, containers)
    };
    let wanted = (
        vec![pod.id.clone()],
        vec![
            (created.clone(), Seen::ContainerCreated),
            (running.clone(), Seen::ContainerRunning),
        ],
    );
    let first = plugin(&node, Behaviour::new("00", "late")).await;
    assert_eq!(told(&first).await, wanted);
    // And again by the next daemon, to which it has to connect anew.
    node.crash().await;
    first.wait_closed().await;
    let second = plugin(&node, Behaviour::new("00", "late")).await;
    assert_eq!(told(&second).await, wanted);
    node.try_stop(&running, 0).await.unwrap();
    second.wait_for("StopContainer", 1).await;
    drop(first);
    drop(second);
    node.finish().await;
}

#[tokio::test]
async fn nothing_is_lost_while_a_plugin_is_synchronized() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut ids = vec![node.start_container(&pod, &sleeper("before")).await];
    let slow = Behaviour::new("10", "slow").slow("Synchronize", Duration::from_millis(800));
    let socket = socket(&node);
    let plugin = tokio::spawn(async move { Plugin::start(&socket, slow).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let configs: Vec<_> = (0..3).map(|n| sleeper(&format!("during-{n}"))).collect();
    let during = configs
        .iter()
        .map(|config| node.start_container(&pod, config));
    ids.extend(futures::future::join_all(during).await);
    let plugin = plugin.await.unwrap();
    ids.push(node.start_container(&pod, &sleeper("after")).await);
    let state: SynchronizeRequest = plugin.wait_for("Synchronize", 1).await.request();
    let mut seen: Vec<_> = state
        .containers
        .into_iter()
        .map(|container| container.id)
        .collect();
    for call in plugin.calls() {
        if call.method == "CreateContainer" {
            let request: CreateContainerRequest = call.request();
            seen.push(request.container.unwrap().id);
        }
    }
    seen.sort();
    ids.sort();
    assert_eq!(seen, ids, "each once");
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn much_state_comes_in_parts() {
    let node = TestNode::start().await;
    for n in 0..6 {
        let mut config = node.pod(&format!("p{n}"));
        let long = "x".repeat(100 << 10);
        config.annotations = (0..9).map(|n| (format!("a{n}"), long.clone())).collect();
        node.run_pod(&config).await;
    }
    // The answer says that it takes more.
    let more = Behaviour::new("00", "patient").on("Synchronize", |request| {
        let request = <SynchronizeRequest as prost::Message>::decode(request).unwrap();
        Answer::message(&nri::SynchronizeResponse {
            more: request.more,
            ..nri::SynchronizeResponse::default()
        })
    });
    let patient = plugin(&node, more).await;
    let first: SynchronizeRequest = patient.wait_for("Synchronize", 1).await.request();
    let second: SynchronizeRequest = patient.wait_for("Synchronize", 2).await.request();
    assert!(first.more && !second.more);
    assert!(first.pods.len() < 6 && first.pods.len() + second.pods.len() == 6);
    // One that does not is not taken in.
    let other = Plugin::start(&socket(&node), Behaviour::new("10", "impatient"))
        .await
        .unwrap();
    other.wait_closed().await;
    assert!(
        node.daemon_log()
            .contains("does not take the state in several parts")
    );
    drop(patient);
    drop(other);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_is_not_there_before_plugins_have_agreed() {
    let node = TestNode::start().await;
    let slow = Behaviour::new("00", "slow").slow("RunPodSandbox", Duration::from_millis(1000));
    let plugin = plugin(&node, slow).await;
    let config = node.pod("one");
    let run = node.run_pod(&config);
    let look = async {
        let call = plugin.wait_for("RunPodSandbox", 1).await;
        let request: nri::RunPodSandboxRequest = call.request();
        let id = request.pod.unwrap().id;
        assert!(node.pods().await.is_empty());
        let early = carpel_integration::Pod {
            id,
            config: config.clone(),
        };
        let outcome = node.try_create(&early, &sleeper("a")).await;
        refused(outcome, Code::NotFound, "not found");
    };
    let (pod, ()) = tokio::join!(run, look);
    node.start_container(&pod, &sleeper("a")).await;
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn a_container_is_not_there_before_plugins_have_agreed() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let slow = Behaviour::new("00", "slow").slow("CreateContainer", Duration::from_millis(800));
    let plugin = plugin(&node, slow).await;
    let config = sleeper("a");
    let create = node.try_create(&pod, &config);
    let look = async {
        plugin.wait_for("CreateContainer", 1).await;
        assert!(node.containers().await.is_empty());
    };
    let (id, ()) = tokio::join!(create, look);
    let status = node.status(&id.unwrap()).await;
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn plugins_are_asked_in_the_order_of_their_indexes() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut plugins = Vec::new();
    for index in ["50", "05", "99", "05"] {
        let order = std::sync::Arc::clone(&order);
        let number = plugins.len();
        let behaviour = Behaviour::new(index, "p").on("StartContainer", move |_| {
            order.lock().unwrap().push(number);
            Answer::Message(Vec::new())
        });
        plugins.push(plugin(&node, behaviour).await);
    }
    node.start_container(&pod, &sleeper("a")).await;
    assert_eq!(*order.lock().unwrap(), [1, 3, 0, 2]);
    // Those that go are not missed.
    plugins.remove(1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    order.lock().unwrap().clear();
    node.start_container(&pod, &sleeper("b")).await;
    assert_eq!(*order.lock().unwrap(), [3, 0, 2]);
    drop(plugins);
    node.finish().await;
}

#[tokio::test]
async fn plugins_of_old_hear_by_state_change() {
    let node = TestNode::start().await;
    let unknown = || Answer::Error(Code::Unimplemented as i32, "no such method".to_owned());
    let mut old = Behaviour::new("00", "old");
    for method in [
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "RemoveContainer",
    ] {
        old = old.answers(method, unknown());
    }
    let plugin = plugin(&node, old).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let other = node.start_container(&pod, &sleeper("b")).await;
    node.try_remove(&id).await.unwrap();
    let changes: Vec<_> = plugin
        .calls()
        .iter()
        .filter(|call| call.method == "StateChange")
        .map(|call| {
            let change: StateChangeEvent = call.request();
            (
                change.event().as_str_name(),
                change.container.map(|container| container.id),
            )
        })
        .collect();
    let of = |event, id: &String| (event, Some(id.clone()));
    let wanted = [
        ("RUN_POD_SANDBOX", None),
        of("POST_CREATE_CONTAINER", &id),
        of("START_CONTAINER", &id),
        of("POST_START_CONTAINER", &id),
        of("POST_CREATE_CONTAINER", &other),
        of("START_CONTAINER", &other),
        of("POST_START_CONTAINER", &other),
        of("REMOVE_CONTAINER", &id),
    ];
    assert_eq!(changes, wanted);
    // It is not asked twice for what it does not have.
    let asked = plugin
        .events()
        .iter()
        .filter(|event| *event == "StartContainer")
        .count();
    assert_eq!(asked, 1);
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn what_a_plugin_refuses_does_not_happen() {
    let node = TestNode::start().await;
    let no = |method: &'static str| {
        Behaviour::new("07", "no").answers(method, Answer::error("not today"))
    };
    let refuses = |what: &str| format!("plugin \"07-no\" refuses {what}: not today");
    let plugin_a = plugin(&node, no("RunPodSandbox")).await;
    refused(
        node.try_run_pod(&node.pod("one")).await,
        Code::FailedPrecondition,
        &refuses("RunPodSandbox"),
    );
    assert!(node.pods().await.is_empty());
    let undone = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"];
    assert_eq!(plugin_a.events(), undone);
    drop(plugin_a);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let pod = node.run_pod(&node.pod("one")).await;

    let plugin_b = plugin(&node, no("CreateContainer")).await;
    refused(
        node.try_create(&pod, &sleeper("a")).await,
        Code::FailedPrecondition,
        &refuses("CreateContainer"),
    );
    assert!(node.containers().await.is_empty());
    let made = std::fs::read_dir(node.dir().join("root/containers")).unwrap();
    assert_eq!(made.count(), 0);
    let undone = ["CreateContainer", "StopContainer", "RemoveContainer"];
    assert_eq!(plugin_b.events(), undone);
    drop(plugin_b);
    tokio::time::sleep(Duration::from_millis(100)).await;

    let plugin_c = plugin(&node, no("StartContainer")).await;
    let id = node.try_create(&pod, &sleeper("a")).await.unwrap();
    refused(
        node.try_start(&id).await,
        Code::FailedPrecondition,
        &refuses("StartContainer"),
    );
    assert_eq!(node.status(&id).await.reason, "StartError");
    drop(plugin_c);
    tokio::time::sleep(Duration::from_millis(100)).await;

    let id = node.start_container(&pod, &sleeper("b")).await;
    let plugin = plugin(&node, no("UpdateContainer")).await;
    let change = LinuxContainerResources {
        cpu_shares: 512,
        ..LinuxContainerResources::default()
    };
    let before = node.limits(&id).await;
    refused(
        node.try_update(&id, &change).await,
        Code::FailedPrecondition,
        &refuses("UpdateContainer"),
    );
    assert_eq!(node.limits(&id).await, before);
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn what_has_happened_cannot_be_refused() {
    let node = TestNode::start().await;
    let mut behaviour = Behaviour::new("00", "no");
    for method in [
        "PostCreateContainer",
        "PostStartContainer",
        "PostUpdateContainer",
        "StopContainer",
        "RemoveContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
    ] {
        behaviour = behaviour.answers(method, Answer::error("not today"));
    }
    let plugin = plugin(&node, behaviour).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    node.try_stop(&id, 0).await.unwrap();
    node.try_remove(&id).await.unwrap();
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_remove_pod(&pod.id).await.unwrap();
    assert!(!plugin.is_closed());
    let log = node.daemon_log();
    assert!(
        log.contains("plugin \"00-no\" refuses StopPodSandbox: not today")
            || log.contains("refuses StopPodSandbox"),
        "{log}"
    );
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_cut_off_and_costs_its_time_once() {
    let node = TestNode::builder()
        .config("[nri]\nrequest_timeout_seconds = 1\n")
        .start()
        .await;
    let pod = node.run_pod(&node.pod("one")).await;
    let hangs = Behaviour::new("00", "hangs").answers("CreateContainer", Answer::Silence);
    let hanging = plugin(&node, hangs).await;
    let other = plugin(&node, Behaviour::new("10", "well")).await;
    let start = Instant::now();
    node.start_container(&pod, &sleeper("a")).await;
    assert!(start.elapsed() >= Duration::from_secs(1));
    hanging.wait_closed().await;
    assert!(
        node.daemon_log()
            .contains("no answer to CreateContainer after 1 s")
    );
    // The other hears of all as ever.
    node.start_container(&pod, &sleeper("b")).await;
    assert_eq!(hanging.events().len(), 1);
    other.wait_for("CreateContainer", 2).await;
    drop(hanging);
    drop(other);
    node.finish().await;
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let node = TestNode::builder()
        .config("[nri]\nenabled = false\n")
        .start()
        .await;
    assert!(!socket(&node).exists());
    let pod = node.run_pod(&node.pod("one")).await;
    node.start_container(&pod, &sleeper("a")).await;
    node.finish().await;
}

#[tokio::test]
async fn the_socket_is_roots_and_one_runtimes() {
    use std::os::unix::fs::PermissionsExt;
    let node = TestNode::start().await;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(socket(&node)), 0o600);
    let other = TestNode::builder()
        .config(&format!("[nri]\nsocket = {:?}\n", socket(&node)))
        .start()
        .await;
    let log = other.daemon_log();
    assert!(log.contains("another runtime listens there"), "{log}");
    other.finish().await;
    let plugin = plugin(&node, Behaviour::new("00", "p")).await;
    let deadline = Instant::now() + host::soon();
    while plugin.calls().len() < 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(plugin);
    node.finish().await;
}
