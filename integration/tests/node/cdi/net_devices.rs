//! `netDevices`: interfaces of the host, with a container's pod while the container runs.

use super::*;
use std::os::unix::process::ExitStatusExt;

use carpel_integration::v1::{ContainerState, NamespaceMode};
use carpel_integration::{PodConfigExt, host};

const ADDRESS: &str = "192.0.2.9/24";

/// A node whose host has an interface `ext0`, and a device `vendor.com/net=x` that gives it as `data0`.
async fn node_with_interface() -> (TestNode, TempDir) {
    let (node, folder) = node().await;
    node.net.command(&[
        "sh",
        "-ec",
        "ip link add ext0 type veth peer name far0; ip link set far0 up",
    ]);
    node.net
        .command(&["ip", "addr", "add", ADDRESS, "dev", "ext0"]);
    node.net.command(&["ip", "link", "set", "ext0", "up"]);
    name_it(&folder, "data0");
    (node, folder)
}

fn name_it(folder: &TempDir, name: &str) {
    let mut document = one_device(json!({
        "netDevices": [{"hostInterfaceName": "ext0", "name": name}],
    }));
    document["cdiVersion"] = "1.1.0".into();
    write(folder, "etc/a.json", &document);
}

/// What is asked of the host's interface.
fn on_host(node: &TestNode) -> String {
    let script = "ip -o link show ext0 2>/dev/null | grep -o 'UP,LOWER_UP'; \
                  ip -o addr show ext0 2>/dev/null | grep -o 'inet [0-9./]*'; true";
    node.net.output(&["sh", "-c", script])
}

const HOME: &str = "UP,LOWER_UP\ninet 192.0.2.9/24\n";

async fn finish(node: TestNode) {
    assert_eq!(on_host(&node), HOME);
    node.net.command(&["ip", "link", "del", "ext0"]);
    node.finish().await;
}

const SHOW: &str = "ip -o addr show data0 | grep -o 'inet [0-9./]*'";

#[tokio::test]
async fn a_device_brings_an_interface_for_as_long_as_the_container_runs() {
    let (mut node, _folder) = node_with_interface().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let wants = |config| wanting(config, &["vendor.com/net=x"]);
    let id = node.start_container(&pod, &wants(sleeper("a"))).await;
    assert_eq!(node.exec(&id, SHOW).await, "inet 192.0.2.9/24\n");
    assert_eq!(on_host(&node), "");
    // It is one's at a time.
    refused(
        node.try_create(&pod, &wants(sleeper("b"))).await,
        Code::InvalidArgument,
        "container \"b\": network device ext0: the host has no interface of that name",
    );
    node.try_stop(&id, 0).await.unwrap();
    assert_eq!(on_host(&node), HOME);
    // The next finds it there, while the first is still listed.
    let again = node.start_container(&pod, &wants(sleeper("b"))).await;
    node.try_remove(&id).await.unwrap();
    assert_eq!(node.exec(&again, SHOW).await, "inet 192.0.2.9/24\n");
    // An exit that no daemon sees.
    node.kill_daemon();
    host::kill_9(node.container_pid(&again));
    node.start_daemon(None).await;
    assert_eq!(node.wait_exit(&again).await.exit_code, 137);
    assert_eq!(on_host(&node), HOME);
    // A pod that is stopped with all that is in it.
    let mut config = wants(sleeper("c"));
    config.metadata.as_mut().unwrap().attempt = 2;
    node.start_container(&pod, &config).await;
    node.try_stop_pod(&pod.id).await.unwrap();
    finish(node).await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_the_interface_on_the_host() {
    let (mut node, folder) = node_with_interface().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let config = carpel_integration::container("a", &["/none"]);
    let config = wanting(config, &["vendor.com/net=x"]);
    let id = node.try_create(&pod, &config).await.unwrap();
    refused(node.try_start(&id).await, Code::InvalidArgument, "/none");
    assert_eq!(on_host(&node), HOME);
    name_it(&folder, "eth0");
    let config = wanting(sleeper("b"), &["vendor.com/net=x"]);
    let id = node.try_create(&pod, &config).await.unwrap();
    let status = node.try_start(&id).await.unwrap_err();
    assert!(
        status.message().contains("network device ext0") && status.message().contains("eth0"),
        "{status}"
    );
    assert_eq!(on_host(&node), HOME);
    name_it(&folder, "data0");
    for (attempt, armed) in ["start:net-devices:error", "start:net-devices"]
        .into_iter()
        .enumerate()
    {
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(armed)).await;
        let mut config = wanting(sleeper("c"), &["vendor.com/net=x"]);
        config.metadata.as_mut().unwrap().attempt = u32::try_from(attempt).unwrap();
        let id = node.try_create(&pod, &config).await.unwrap();
        node.try_start(&id).await.expect_err(armed);
        if attempt == 0 {
            assert_eq!(on_host(&node), HOME);
            continue;
        }
        // The daemon died with the interface in the pod: the container can be started all the same.
        assert_eq!(node.wait_daemon_end().await.signal(), Some(9));
        node.start_daemon(None).await;
        assert_eq!(on_host(&node), "");
        assert_eq!(
            node.status(&id).await.state(),
            ContainerState::ContainerCreated
        );
        node.try_start(&id).await.unwrap();
        assert_eq!(node.exec(&id, "ip -o link show data0 | wc -l").await, "1\n");
        node.try_stop(&id, 0).await.unwrap();
    }
    finish(node).await;
}

#[tokio::test]
async fn what_a_daemon_that_died_took_is_brought_back_by_the_next() {
    let (mut node, _folder) = node_with_interface().await;
    assert!(node.terminate_daemon().await.success());
    node.start_daemon(Some("start:net-devices")).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let config = wanting(sleeper("a"), &["vendor.com/net=x"]);
    let id = node.try_create(&pod, &config).await.unwrap();
    node.try_start(&id).await.unwrap_err();
    assert_eq!(node.wait_daemon_end().await.signal(), Some(9));
    node.start_daemon(None).await;
    // Never started, and the pod is stopped.
    node.try_stop_pod(&pod.id).await.unwrap();
    finish(node).await;
}

#[tokio::test]
async fn a_pod_in_the_hosts_network_is_given_none() {
    let (node, _folder) = node_with_interface().await;
    let mut config = node.pod("one");
    PodConfigExt::namespaces(&mut config).set_network(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    let mut config = wanting(sleeper("a"), &["vendor.com/net=x"]);
    ContainerConfigExt::namespaces(&mut config).set_network(NamespaceMode::Node);
    refused(
        node.try_create(&pod, &config).await,
        Code::InvalidArgument,
        "network device ext0: the pod has the host's network",
    );
    finish(node).await;
}
