//! A pod with a user namespace lives through deaths of daemons and supervisors, and leaves nothing.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use carpel::failpoint;
use carpel_integration::request::sleeper;
use carpel_integration::v1::{NamespaceMode, PodSandboxState};
use carpel_integration::{ContainerConfigExt, Pod, PodConfigExt, TestNode, host, sh};
use tonic::Status;

use super::{inside, namespace, node_with_container, own, pod};

/// What works in a pod with a user namespace at any time. `user` is that namespace.
async fn assert_works(node: &TestNode, pod: &Pod, id: &str, name: &str, user: &str) {
    assert_eq!(namespace(node.container_pid(id), "user"), user);
    assert_eq!(
        node.exec(id, "id -u; cat /proc/self/uid_map | sed 's/  */ /g'")
            .await,
        "0\n 0 200000 65536\n"
    );
    let dir = node.dir().join(format!("volume-{name}"));
    let script = "readlink /proc/self/ns/user; stat -c %u / /data; echo x > /data/x";
    let config = inside(sh(name, script)).mount(&dir, "/data");
    let expected = format!("{user}\n0\n0\n");
    assert_eq!(node.output_of(pod, &config).await, expected);
}

#[tokio::test]
async fn another_daemon_finds_the_user_namespace() {
    let (mut node, one, id) = node_with_container().await;
    let user = namespace(node.container_pid(&id), "user");
    let created = node.try_create(&one, &inside(sleeper("created"))).await;
    node.crash().await;
    assert_works(&node, &one, &id, "b", &user).await;
    // One that was made before and starts now.
    let created = created.unwrap();
    node.try_start(&created).await.unwrap();
    assert_eq!(namespace(node.container_pid(&created), "user"), user);
    assert_eq!(node.exec(&created, "stat -c %u /").await, "0\n");
    node.try_stop(&id, 5).await.unwrap();
    assert_eq!(node.wait_exit(&id).await.exit_code, 0);
    // As a restart: with the next attempt's name.
    let mut again = inside(sleeper("a"));
    again.metadata.as_mut().unwrap().attempt = 1;
    let again = node.start_container(&one, &again).await;
    assert_eq!(namespace(node.container_pid(&again), "user"), user);
    node.finish().await;
}

async fn kill_supervisor(node: &TestNode, pod: &Pod) {
    let before = node.supervisor_pid(pod).await;
    host::kill_9(before);
    let deadline = Instant::now() + host::soon();
    loop {
        let status = node.try_pod_status(&pod.id).await.unwrap();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
        let state = status.status.unwrap().state();
        assert_eq!(state, PodSandboxState::SandboxReady);
        if info["pid"]
            .as_i64()
            .is_some_and(|pid| pid != i64::from(before))
        {
            return;
        }
        assert!(Instant::now() < deadline, "nobody replaces {before}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn another_supervisor_goes_on_in_it() {
    let (mut node, one, id) = node_with_container().await;
    let user = namespace(node.container_pid(&id), "user");
    kill_supervisor(&node, &one).await;
    assert_works(&node, &one, &id, "b", &user).await;
    node.crash().await;
    assert_works(&node, &one, &id, "c", &user).await;
    kill_supervisor(&node, &one).await;
    assert_works(&node, &one, &id, "d", &user).await;
    node.finish().await;
}

#[tokio::test]
async fn a_shared_pid_namespace_outlives_its_supervisor() {
    let node = TestNode::start().await;
    let mut config = pod(&node, "one");
    config.namespaces().set_pid(NamespaceMode::Pod);
    let one = node.run_pod(&config).await;
    let shared = |name: &str| {
        let mut config = inside(sleeper(name));
        config.namespaces().set_pid(NamespaceMode::Pod);
        config
    };
    let a = node.start_container(&one, &shared("a")).await;
    kill_supervisor(&node, &one).await;
    let b = node.start_container(&one, &shared("b")).await;
    let pids = [&a, &b].map(|id| namespace(node.container_pid(id), "pid"));
    assert_eq!(pids[0], pids[1]);
    assert_eq!(node.exec(&b, "id -u").await, "0\n");
    node.finish().await;
}

#[tokio::test]
async fn a_pod_without_one_is_as_ever() {
    let (node, _one, id) = node_with_container().await;
    let plain = node.run_pod(&node.pod("plain")).await;
    let other = node.start_container(&plain, &sleeper("b")).await;
    assert_eq!(namespace(node.container_pid(&other), "user"), own("user"));
    assert_ne!(namespace(node.container_pid(&id), "user"), own("user"));
    node.finish().await;
}

/// Runs a pod with a container as far as it goes: what is done is not done again.
async fn go_on(node: &TestNode, done: &mut (Option<Pod>, Option<String>)) -> Result<(), Status> {
    if done.0.is_none() {
        done.0 = Some(node.try_run_pod(&pod(node, "one")).await?);
    }
    let one = done.0.as_ref().expect("just made");
    if done.1.is_none() {
        done.1 = Some(node.try_create(one, &inside(sleeper("a"))).await?);
    }
    node.try_start(done.1.as_ref().expect("just made")).await
}

async fn end(node: TestNode, mut done: (Option<Pod>, Option<String>), name: &str) {
    go_on(&node, &mut done)
        .await
        .unwrap_or_else(|status| panic!("{name}: {status}"));
    let id = done.1.expect("made");
    assert_eq!(node.exec(&id, "id -u").await, "0\n", "{name}");
    node.finish().await;
}

#[tokio::test]
async fn the_daemon_dies_at_each_step() {
    for name in failpoint::USER_NAMESPACE {
        let mut node = TestNode::start().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(name)).await;
        let mut done = (None, None);
        let died = go_on(&node, &mut done).await;
        let exit = node.wait_daemon_end().await;
        assert_eq!(exit.signal(), Some(9), "{name}: {died:?}");
        node.start_daemon(None).await;
        end(node, done, name).await;
    }
}

#[tokio::test]
async fn each_step_fails_and_is_undone() {
    for name in failpoint::USER_NAMESPACE {
        let mut node = TestNode::start().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(&format!("{name}:error"))).await;
        let mut done = (None, None);
        let status = go_on(&node, &mut done).await.expect_err("a request fails");
        assert!(status.message().contains(name), "{name}: {status}");
        if let Some(id) = done.1.take() {
            // It has exited: the next attempt takes its place.
            assert_eq!(node.status(&id).await.reason, "StartError");
            node.try_remove(&id).await.unwrap();
        }
        end(node, done, name).await;
    }
}
