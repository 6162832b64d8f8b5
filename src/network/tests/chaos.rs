//! A plugin that misbehaves in every way there is, under each verb. ADD has a file of its own: `failure`.

use futures::future::join_all;

use super::*;

/// What the plugin does, and what is told of it.
const WAYS: [(&str, &str); 9] = [
    (
        r#"echo '{"cniVersion":"1.1.0","code":11,"msg":"come again"}'; exit 1"#,
        "come again (code 11)",
    ),
    ("exit 3", "exit status 3, without a CNI error"),
    (
        "echo nonsense; exit 1",
        "exit status 1, without a CNI error; stdout: nonsense",
    ),
    (
        "echo why >&2; kill -9 $$",
        "killed by signal 9, without a CNI error; stderr: why",
    ),
    (
        "trap '' TERM\nsleep 1000 & echo $! >$dir/child; wait",
        "killed: not done after 3 s",
    ),
    ("exec >&-; sleep 1000", "killed: not done after 3 s"),
    ("exec yes >&2", "killed: not done after 3 s"),
    (
        "head -c 104857600 /dev/zero; sleep 1000",
        "killed: more than 1048576 bytes of output",
    ),
    (
        "head -c 104857600 /dev/zero >&2; exit 4",
        "exit status 4, without a CNI error",
    ),
];

/// A node with the chain of "good" and "bad". The second misbehaves under `verb` until it is mended.
fn node(verb: &str, way: &str) -> Node {
    let mut conf = network(&["good", "bad"]);
    conf["cniVersion"] = json!("1.1.0");
    let mut node = Node::with(&conf);
    // Enough for all but what never ends.
    let endless = WAYS
        .iter()
        .any(|(of, says)| *of == way && says.contains("not done"));
    node.settings.timeout = Duration::from_secs(if endless { 3 } else { 20 });
    let result = RESULT.replace("1.0.0", "1.1.0");
    node.good("good", &result);
    let body = format!(
        "if [ $verb = {verb} ] && ! [ -e $dir/mended ]; then\n{way}\nfi\n[ $verb != ADD ] || echo '{result}'"
    );
    node.plugin("bad", &body);
    node
}

fn mend(node: &Node) {
    fs::write(node.call("mended"), "").unwrap();
}

/// Nothing that the plugin started lives on.
async fn nothing_runs(node: &Node) {
    let child = node.call("child");
    eventually("dead", || !child.exists() || !is_alive(&child)).await;
}

/// The calls of `verb` since the last time this was asked.
fn calls(node: &Node, verb: &str) -> Vec<String> {
    let mut calls = node.order();
    calls.retain(|call| call.starts_with(verb));
    calls
}

#[tokio::test]
async fn a_del_that_fails_in_any_way_is_told_and_gives_nothing_back() {
    join_all(WAYS.map(|(way, says)| async move {
        let node = node("DEL", way);
        let network = node.open();
        let pod = pod();
        add(&network, &pod).await.unwrap();
        let text = network.del(&pod.sandbox).await.unwrap_err().to_string();
        assert!(
            text.starts_with("network testnet: plugin bad: DEL: "),
            "{text}"
        );
        assert!(text.contains(says) && text.len() < 5000, "{way}: {text}");
        // The first plugin, which has the address, is not asked.
        assert_eq!(calls(&node, "DEL"), ["DEL bad"], "{way}");
        assert_eq!(network.cached(), [pod.sandbox]);
        nothing_runs(&node).await;
        mend(&node);
        let collected = network.gc(HashSet::new()).await;
        assert_eq!(collected.deleted, [pod.sandbox], "{way}");
        assert_eq!(calls(&node, "DEL"), ["DEL bad", "DEL good"]);
        assert!(node.cache_files().is_empty());
    }))
    .await;
}

#[tokio::test]
async fn words_of_a_del_that_succeeds_are_not_read() {
    let node = node("DEL", "echo nonsense; exit 0");
    let network = node.open();
    let pod = pod();
    add(&network, &pod).await.unwrap();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(calls(&node, "DEL"), ["DEL bad", "DEL good"]);
}

#[tokio::test]
async fn a_gc_that_fails_in_any_way_is_told_and_keeps_no_pod_from_its_network() {
    join_all(WAYS.map(|(way, says)| async move {
        let node = node("GC", way);
        let network = node.open();
        let (stale, valid) = (pod(), pod());
        add(&network, &stale).await.unwrap();
        add(&network, &valid).await.unwrap();
        let collected = network.gc(HashSet::from([valid.sandbox])).await;
        assert_eq!(collected.deleted, [stale.sandbox], "{way}");
        let text = collected.plugins.expect("an error").to_string();
        assert!(
            text.starts_with("network testnet: plugin bad: GC: "),
            "{text}"
        );
        assert!(text.contains(says) && text.len() < 5000, "{way}: {text}");
        assert_eq!(calls(&node, "GC"), ["GC good", "GC bad"], "{way}");
        nothing_runs(&node).await;
        add(&network, &pod()).await.unwrap();
        mend(&node);
        let collected = network.gc(HashSet::from([valid.sandbox])).await;
        assert!(collected.plugins.is_none(), "{way}: {collected:?}");
        assert_eq!(network.cached(), [valid.sandbox]);
    }))
    .await;
}

/// `carpel net` has CHECK run: what it says of the pod, and nothing else, depends on it.
#[tokio::test]
async fn a_check_that_fails_in_any_way_is_told_and_changes_nothing() {
    join_all(WAYS.map(|(way, says)| async move {
        let node = node("CHECK", way);
        let network = node.open();
        let pod = pod();
        add(&network, &pod).await.unwrap();
        let cached = node.cache_files();
        let checked = network.check(&pod.sandbox).await.unwrap();
        let Some(Checked::Wrong { problem, .. }) = checked else {
            panic!("{way}: {checked:?}");
        };
        assert!(
            problem.starts_with("network testnet: plugin bad: CHECK: "),
            "{problem}"
        );
        assert!(
            problem.contains(says) && problem.len() < 5000,
            "{way}: {problem}"
        );
        assert_eq!(calls(&node, "CHECK"), ["CHECK good", "CHECK bad"], "{way}");
        assert_eq!(node.cache_files(), cached, "{way}");
        nothing_runs(&node).await;
        mend(&node);
        let network_name = "testnet".to_owned();
        assert_eq!(
            network.check(&pod.sandbox).await.unwrap(),
            Some(Checked::Fine {
                network: network_name
            }),
            "{way}"
        );
        network.del(&pod.sandbox).await.unwrap();
        assert!(node.cache_files().is_empty(), "{way}");
    }))
    .await;
}

#[tokio::test]
async fn a_status_that_fails_in_any_way_is_told_until_it_does_not() {
    join_all(WAYS.map(|(way, says)| async move {
        let node = node("STATUS", way);
        let network = node.open();
        let told = || {
            let start = Instant::now();
            let status = network.status();
            assert!(
                start.elapsed() < Duration::from_millis(500),
                "a question waits"
            );
            status.is_err_and(|error| error.reason == "NetworkPluginNotReady")
        };
        eventually(way, told).await;
        let text = network.status().unwrap_err().message;
        assert!(
            text.starts_with("network testnet: plugin bad: STATUS: "),
            "{text}"
        );
        assert!(text.contains(says) && text.len() < 5000, "{way}: {text}");
        nothing_runs(&node).await;
        mend(&node);
        eventually("ready", || network.status().is_ok()).await;
    }))
    .await;
}
