//! The daemon dies at each named step. It starts again, the same request repeated succeeds, and the
//! removal leaves nothing.

use std::os::unix::process::ExitStatusExt;

use carpel::failpoint;
use carpel_integration::request::sleeper;
use carpel_integration::v1::LinuxContainerResources;
use carpel_integration::{Plugins, Pod, TestNode};
use tonic::Status;

/// A pod's life, step by step: a step that was cut off is repeated, as the kubelet does.
#[derive(Default)]
struct Life {
    pod: Option<Pod>,
    container: Option<String>,
    done: usize,
}

fn limits() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    }
}

impl Life {
    /// Goes on from the first step that has not succeeded.
    async fn go_on(&mut self, node: &TestNode) -> Result<(), Status> {
        while self.done < 8 {
            self.step(node).await?;
            self.done += 1;
        }
        Ok(())
    }

    async fn step(&mut self, node: &TestNode) -> Result<(), Status> {
        let id = self.container.clone().unwrap_or_default();
        let pod = self.pod.as_ref();
        let pod_id = pod.map(|pod| pod.id.clone()).unwrap_or_default();
        match self.done {
            0 => self.pod = Some(node.try_run_pod(&node.pod("one")).await?),
            1 => {
                let pod = pod.expect("made before");
                self.container = Some(node.try_create(pod, &sleeper("a")).await?);
            }
            2 => node.try_start(&id).await?,
            3 => {
                node.try_update(&id, &limits()).await?;
                node.try_update_pod(&pod_id, None, Some(limits())).await?;
            }
            4 => node.try_stop(&id, 5).await?,
            5 => node.try_remove(&id).await?,
            6 => node.try_stop_pod(&pod_id).await?,
            _ => node.try_remove_pod(&pod_id).await?,
        }
        Ok(())
    }

    /// Goes on to the end, which must work, and leaves nothing.
    async fn end(mut self, node: TestNode, name: &str) {
        let step = self.done;
        if let Err(status) = self.go_on(&node).await {
            panic!(
                "{name} broke step {step}; then step {} gives: {status}",
                self.done
            );
        }
        assert!(node.pods().await.is_empty(), "{name}");
        assert!(node.containers().await.is_empty(), "{name}");
        node.finish().await;
    }
}

async fn die_at(name: &'static str, plugins: Plugins) {
    let mut node = TestNode::builder().plugins(plugins).start().await;
    assert!(node.terminate_daemon().await.success());
    node.start_daemon(Some(name)).await;
    let mut life = Life::default();
    let status = life
        .go_on(&node)
        .await
        .expect_err("the daemon dies on the way");
    let exit = node.wait_daemon_end().await;
    assert_eq!(exit.signal(), Some(9), "{name}: {exit}, {status}");
    node.start_daemon(None).await;
    life.end(node, name).await;
}

/// An error in place of the crash: the request fails with it, undoes what it did, and works when repeated.
async fn fail_at(name: &'static str) {
    let mut node = TestNode::start().await;
    assert!(node.terminate_daemon().await.success());
    node.start_daemon(Some(&format!("{name}:error"))).await;
    let mut life = Life::default();
    let status = life.go_on(&node).await.expect_err("one request fails");
    assert!(status.message().contains(name), "{name}: {status}");
    if life.done == 2 {
        // A container whose start failed has exited: there is nothing to start again, or to limit.
        let id = life.container.as_deref().expect("made before");
        let status = node.status(id).await;
        assert_eq!(status.reason, "StartError", "{status:?}");
        assert_ne!(status.exit_code, 0);
        life.done = 4;
    }
    life.end(node, name).await;
}

macro_rules! at_each {
    ($($test:ident $name:literal,)*) => {
        mod dies {
            $(#[tokio::test]
            async fn $test() {
                super::die_at($name, carpel_integration::Plugins::Carpel).await;
            })*
        }

        mod fails {
            $(#[tokio::test]
            async fn $test() {
                super::fail_at($name).await;
            })*
        }

        #[test]
        fn every_failpoint_has_its_tests() {
            assert_eq!(failpoint::NAMES, [$($name),*]);
        }
    };
}

at_each! {
    run_recorded "run:recorded",
    run_supervisor_spawned "run:supervisor-spawned",
    run_supervisor_ready "run:supervisor-ready",
    run_netns_pinned "run:netns-pinned",
    run_network_added "run:network-added",
    run_ready "run:ready",
    create_prepared "create:prepared",
    create_recorded "create:recorded",
    start_rootfs "start:rootfs",
    start_sent "start:sent",
    start_started "start:started",
    update_set "update:set",
    update_sandbox_set "update-sandbox:set",
    stop_signalled "stop:signalled",
    stop_exited "stop:exited",
    stop_sandbox_containers_stopped "stop-sandbox:containers-stopped",
    stop_sandbox_network_deleted "stop-sandbox:network-deleted",
    stop_sandbox_supervisor_gone "stop-sandbox:supervisor-gone",
    stop_sandbox_recorded "stop-sandbox:recorded",
    remove_begun "remove:begun",
    remove_files_gone "remove:files-gone",
    remove_sandbox_begun "remove-sandbox:begun",
    remove_sandbox_files_gone "remove-sandbox:files-gone",
}

#[tokio::test]
async fn a_panic_while_a_pod_is_made_costs_that_request_and_leaves_nothing() {
    for name in ["run:recorded", "run:supervisor-ready", "run:network-added"] {
        let mut node = TestNode::start().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(&format!("{name}:panic"))).await;
        let status = node.try_run_pod(&node.pod("one")).await;
        let status = status.expect_err("one request fails");
        assert!(status.message().contains("panic"), "{name}: {status}");
        assert!(node.pods().await.is_empty(), "{name}");
        Life::default().end(node, name).await;
    }
}

#[tokio::test]
async fn a_crash_within_a_chain_of_debians_plugins_leaves_no_address() {
    for name in [
        "run:netns-pinned",
        "run:network-added",
        "stop-sandbox:network-deleted",
    ] {
        die_at(name, Plugins::Debian).await;
    }
}

#[tokio::test]
async fn a_crash_without_a_repeated_request_leaves_what_a_removal_takes() {
    for name in failpoint::NAMES
        .iter()
        .filter(|name| name.starts_with("run:") || name.starts_with("start:"))
    {
        let mut node = TestNode::start().await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(name)).await;
        let _ = Life::default().go_on(&node).await;
        node.wait_daemon_end().await;
        // finish starts the daemon, lists, stops and removes what it finds.
        node.finish().await;
    }
}
