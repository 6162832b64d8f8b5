//! What is known of an exit stays known, whatever happens to daemon and disk around it.

use std::path::Path;
use std::time::{Duration, Instant};

use carpel_integration::request::{ContainerConfigExt, sleeper};
use carpel_integration::v1::{ContainerState, LinuxContainerResources, PodSandboxState};
use carpel_integration::{TestNode, host, sh};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

#[tokio::test]
async fn why_a_container_ended_survives_the_daemon() {
    for name in carpel::failpoint::EXIT {
        let mut node = TestNode::start().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(name)).await;
        let pod = node.run_pod(&node.pod("one")).await;
        let mut config = sh("eater", "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
        config.resources().memory_limit_in_bytes = 32 << 20;
        let id = node.try_create(&pod, &config).await.unwrap();
        // The exit may come before the answer.
        let _ = node.try_start(&id).await;
        node.wait_daemon_end().await;
        for _ in 0..2 {
            node.start_daemon(None).await;
            let status = node.status(&id).await;
            assert_eq!(
                (status.exit_code, status.reason.as_str()),
                (137, "OOMKilled"),
                "{name}: {status:?}"
            );
            node.kill_daemon();
        }
        node.finish().await;
    }
}

#[tokio::test]
async fn limits_that_are_changed_at_the_exit_do_not_undo_it() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut ids = Vec::new();
    for n in 0..25 {
        let config = sh(&format!("c{n}"), "usleep 60000; exit 7");
        let id = node.start_container(&pod, &config).await;
        let mut limits = LinuxContainerResources::default();
        for more in 0.. {
            limits.memory_limit_in_bytes = (64 + more % 2) << 20;
            if node.try_update(&id, &limits).await.is_err() {
                break;
            }
        }
        ids.push(id);
    }
    for id in &ids {
        assert_eq!(node.wait_exit(id).await.exit_code, 7);
    }
    // From here on their records alone tell of it.
    node.try_stop_pod(&pod.id).await.unwrap();
    node.crash().await;
    for id in &ids {
        let status = node.status(id).await;
        assert_eq!(
            (status.state(), status.exit_code),
            (ContainerState::ContainerExited, 7),
            "{status:?}"
        );
    }
    node.finish().await;
}

/// Nothing can be written below `dir` until [`writable`].
fn read_only(dir: &Path) {
    let none = None::<&str>;
    mount(Some(dir), dir, none, MsFlags::MS_BIND, none).unwrap();
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, dir, none, flags, none).unwrap();
}

fn writable(dir: &Path) {
    umount2(dir, MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test]
async fn an_exit_that_could_not_be_written_is_written_when_it_can() {
    let mut node = TestNode::start().await;
    let root = node.dir().join("root");
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "trap 'exit 21' TERM; echo up; sleep 1000 & wait";
    let id = node.start_container(&pod, &sh("a", script)).await;
    node.wait_log(&pod, "a", |log| log.stdout() == "up\n").await;
    read_only(&root);
    node.try_stop(&id, 30).await.unwrap();
    assert_eq!(node.wait_exit(&id).await.exit_code, 21);
    assert!(node.daemon_log().contains("exit is not on disk yet"));
    writable(&root);
    node.try_stop_pod(&pod.id).await.unwrap();
    node.crash().await;
    assert_eq!(node.status(&id).await.exit_code, 21);
    node.finish().await;
}

#[tokio::test]
async fn what_could_not_be_written_is_tried_again_without_being_asked() {
    let mut node = TestNode::builder()
        .config("[network]\nretry_seconds = 1\n")
        .start()
        .await;
    let root = node.dir().join("root");
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let record = root.join("containers").join(&id).join("record");
    read_only(&root);
    node.try_stop(&id, 0).await.unwrap();
    writable(&root);
    let deadline = Instant::now() + host::soon();
    while !std::fs::read_to_string(&record)
        .unwrap()
        .contains("\"exit_code\":137")
    {
        assert!(Instant::now() < deadline, "the record stays as it was");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.crash().await;
    assert_eq!(node.status(&id).await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_stop_that_could_not_be_written_leaves_no_ready_pod() {
    let mut node = TestNode::start().await;
    assert!(node.terminate_daemon().await.success());
    node.start_daemon(Some("stop-sandbox:network-deleted"))
        .await;
    let root = node.dir().join("root/sandboxes");
    let pod = node.run_pod(&node.pod("one")).await;
    node.start_container(&pod, &sleeper("a")).await;
    read_only(&root);
    node.try_stop_pod(&pod.id).await.unwrap_err();
    node.wait_daemon_end().await;
    writable(&root);
    node.start_daemon(None).await;
    let state = node.pod_status(&pod).await.state();
    assert_eq!(state, PodSandboxState::SandboxNotready);
    node.finish().await;
}
