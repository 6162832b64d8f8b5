//! What is known of an exit stays known, whatever happens to daemon and disk around it.

use carpel_integration::request::ContainerConfigExt;
use carpel_integration::v1::{ContainerState, LinuxContainerResources};
use carpel_integration::{TestNode, sh};

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
