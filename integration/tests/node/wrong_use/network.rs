//! Plugins and network configurations that do not do what they should.

use super::*;

async fn node_with_plugin(kind: &str, script: Option<&str>) -> TestNode {
    let chain = json!({ "cniVersion": "1.0.0", "name": "wrong", "plugins": [{ "type": kind }] });
    let node = TestNode::builder()
        .no_image()
        .conflist(chain)
        .config("[network]\ntimeout_seconds = 1\n")
        .start()
        .await;
    if let Some(script) = script {
        node.write_plugin(kind, script);
    }
    node
}

/// A pod that cannot be made leaves nothing: not even a NOTREADY entry that somebody must remove.
async fn pod_fails(node: TestNode, parts: &[&str]) {
    for attempt in 0..2 {
        let mut config = node.pod("one");
        config.metadata.as_mut().unwrap().attempt = attempt;
        let status = node.try_run_pod(&config).await.expect_err("no pod");
        for part in parts {
            assert!(
                status.message().contains(part),
                "{:?} does not say {part:?}",
                status.message()
            );
        }
    }
    node.remove_pods().await;
    node.assert_no_leaks().await;
    node.finish().await;
}

#[tokio::test]
async fn a_missing_plugin() {
    let node = node_with_plugin("not-installed", None).await;
    let folder = node.plugin_dir().display().to_string();
    pod_fails(node, &["not-installed", "not found", &folder]).await;
}

#[tokio::test]
async fn a_plugin_whose_name_is_a_path() {
    let node = node_with_plugin("../../bin/sh", None).await;
    let status = node
        .cri
        .runtime()
        .status(v1::StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    let conditions = status.status.unwrap().conditions;
    let network = conditions
        .iter()
        .find(|c| c.r#type == "NetworkReady")
        .unwrap();
    assert!(
        !network.status && network.message.contains("../../bin/sh"),
        "{network:?}"
    );
    pod_fails(node, &["network"]).await;
}

#[tokio::test]
async fn a_plugin_that_fails() {
    let script = r#"cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0
        echo '{"cniVersion":"1.0.0","code":7,"msg":"the switch is on fire","details":"rack 4"}'; exit 1"#;
    let node = node_with_plugin("fails", Some(script)).await;
    pod_fails(node, &["fails", "the switch is on fire", "rack 4"]).await;
}

#[tokio::test]
async fn a_plugin_that_dies_without_a_word() {
    let node = node_with_plugin(
        "dies",
        Some("cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; echo oops >&2; kill -9 $$"),
    )
    .await;
    pod_fails(node, &["dies", "signal"]).await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let script =
        "cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; trap '' TERM; sleep 4321 & sleep 4321";
    let node = node_with_plugin("hangs", Some(script)).await;
    let begin = Instant::now();
    let status = node
        .try_run_pod(&node.pod("one"))
        .await
        .expect_err("no pod");
    assert!(
        status.message().contains("hangs") && status.message().contains("1 s"),
        "{status}"
    );
    assert!(
        begin.elapsed() < host::patience(Duration::from_secs(4)),
        "{:?}",
        begin.elapsed()
    );
    let left = host::all_pids().into_iter().filter(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x004321\0")
    });
    assert_eq!(left.count(), 0);
    node.remove_pods().await;
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_prints_garbage() {
    let node = node_with_plugin(
        "garbage",
        Some("cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; echo 'everything is fine'"),
    )
    .await;
    pod_fails(node, &["garbage", "everything is fine"]).await;
}

#[tokio::test]
async fn a_plugin_that_prints_without_end() {
    let node = node_with_plugin("floods", Some("[ $CNI_COMMAND = DEL ] && exit 0; exec yes")).await;
    pod_fails(node, &["floods", "output"]).await;
}

#[tokio::test]
async fn a_plugin_that_gives_no_address() {
    let script = r#"cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; echo '{"cniVersion":"1.0.0","ips":[]}'"#;
    let node = node_with_plugin("empty", Some(script)).await;
    pod_fails(node, &["no IP"]).await;
}

/// What the plugin before it gave is given back, though it refuses to be undone as well.
#[tokio::test]
async fn a_plugin_that_refuses_its_configuration_for_good() {
    let node = TestNode::builder().no_image().no_network().start().await;
    let script =
        r#"cat >/dev/null; echo '{"cniVersion":"1.0.0","code":7,"msg":"no burst"}'; exit 1"#;
    node.write_plugin("stubborn", script);
    let more = [json!({ "type": "stubborn" })];
    let chain = carpel_integration::node::bridge(&node.ipam_dir(), &more);
    node.write_conflist("10-stubborn.conflist", &chain);
    let deadline = Instant::now() + host::soon();
    while !node.condition("NetworkReady").await.status {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pod_fails(node, &["stubborn", "no burst (code 7)"]).await;
}

#[tokio::test]
async fn a_bandwidth_that_is_none() {
    let node = TestNode::builder().no_image().start().await;
    let mut config = node.pod("one");
    let key = "kubernetes.io/ingress-bandwidth";
    config.annotations.insert(key.into(), "fast".into());
    let status = node.try_run_pod(&config).await.expect_err("no pod");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains(key), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn no_network_configuration() {
    let node = TestNode::builder().no_image().no_network().start().await;
    let folder = node.conf_dir().display().to_string();
    pod_fails(node, &["network", &folder]).await;
}
