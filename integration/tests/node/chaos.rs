//! A plugin behind the bridge that misbehaves in every way there is: what is told, that nothing leaks, and that no
//! address is lost or given twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use carpel_integration::node::bridge;
use carpel_integration::v1::PodSandboxState;
use carpel_integration::{Pod, TestNode, bin_dir, host};
use futures::future::join_all;
use serde_json::{Value, json};

/// What the plugin may do instead of its work, and what is told of it.
const WAYS: [(&str, &str); 9] = [
    ("error", "come again (code 11)"),
    ("silence", "exit status 3, without a CNI error"),
    ("nonsense", "stdout: nonsense"),
    (
        "signal",
        "killed by signal 9, without a CNI error; stderr: why",
    ),
    ("hang", "killed: not done after 4 s"),
    ("closed", "killed: not done after 4 s"),
    ("complaints", "killed: not done after 4 s"),
    ("flood", "killed: more than 1048576 bytes of output"),
    ("stderr-flood", "exit status 4, without a CNI error"),
];

/// The plugin: it does what `ways/VERB.POD` says (`ways/VERB` if the verb is of no pod), else what `tuning` without
/// settings does, which is nothing. It counts its calls in `calls`. What hangs does not outlive the tests by much.
fn script(dir: &Path) -> String {
    format!(
        r#"input=$(cat)
pod=$(echo "$CNI_ARGS" | sed -n 's/.*K8S_POD_NAME=\([^;]*\).*/.\1/p')
echo "$CNI_COMMAND$pod" >> {dir}/calls
echo "$CNI_NETNS" >> {dir}/"netns-$CNI_COMMAND$pod"
case $(cat {dir}/ways/"$CNI_COMMAND$pod" 2>/dev/null) in
error) echo '{{"cniVersion":"1.0.0","code":11,"msg":"come again"}}'; exit 1;;
silence) exit 3;;
nonsense) echo nonsense; exit 1;;
signal) echo why >&2; kill -9 $$;;
hang) trap '' TERM; sleep 30 & sleep 30; exit 0;;
closed) exec >&-; sleep 30; exit 0;;
complaints) exec timeout 30 yes >&2;;
flood) head -c 104857600 /dev/zero; sleep 30; exit 0;;
stderr-flood) head -c 104857600 /dev/zero >&2; exit 4;;
late) echo $$ > {dir}/self; while [ ! -e {dir}/go ]; do sleep 0.02; done
    printf %s "$CNI_CONTAINERID" > {dir}/late-address;;
thrice) [ $(grep -cx "$CNI_COMMAND$pod" {dir}/calls) -gt 3 ] || exit 3;;
esac
echo "$input" | CARPEL_CNI_PLUGIN=tuning {plugin}"#,
        dir = dir.display(),
        plugin = bin_dir().join("carpel-cni").display(),
    )
}

async fn node(config: &str, version: &str) -> TestNode {
    let builder = TestNode::builder().no_image().no_network();
    let node = builder.config(config).start().await;
    fs::create_dir(node.dir().join("ways")).unwrap();
    node.write_plugin("chaos", &script(node.dir()));
    let mut chain = bridge(&node.ipam_dir(), &[json!({ "type": "chaos" })]);
    chain["cniVersion"] = Value::from(version);
    node.write_conflist("10-test.conflist", &chain);
    let deadline = Instant::now() + host::soon();
    while !node.condition("NetworkReady").await.status {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node
}

const QUICK: &str = "[network]\ntimeout_seconds = 4\nretry_seconds = 1\n";

/// From now on the plugin misbehaves so under `verb` for a pod.
fn misbehave(node: &TestNode, verb: &str, pod: &str, way: &str) {
    fs::write(node.dir().join(format!("ways/{verb}.{pod}")), way).unwrap();
}

/// From now on the plugin does its work.
fn mend(node: &TestNode) {
    for way in fs::read_dir(node.dir().join("ways")).unwrap() {
        fs::remove_file(way.unwrap().path()).unwrap();
    }
}

fn calls(node: &TestNode, call: &str) -> usize {
    let calls = fs::read_to_string(node.dir().join("calls")).unwrap_or_default();
    calls.lines().filter(|line| *line == call).count()
}

/// The addresses that are taken.
fn taken(node: &TestNode) -> BTreeSet<String> {
    let files = fs::read_dir(node.ipam_dir().join("test")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("10.")).collect()
}

/// Waits until no address is taken: nobody asks for anything meanwhile.
async fn released(node: &TestNode) {
    let deadline = Instant::now() + host::soon();
    while !taken(node).is_empty() {
        assert!(
            Instant::now() < deadline,
            "{:?}\n{}",
            taken(node),
            node.daemon_log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn not_ready(node: &TestNode, pod: &Pod) {
    let state = node.pod_status(pod).await.state();
    assert_eq!(
        state,
        PodSandboxState::SandboxNotready,
        "{}",
        pod.config.hostname
    );
}

#[tokio::test]
async fn an_add_that_fails_in_any_way_leaves_nothing() {
    let node = node(QUICK, "1.0.0").await;
    let well = node.run_pod(&node.pod("well")).await;
    let before = taken(&node);
    let failures = WAYS.map(|(way, says)| {
        misbehave(&node, "ADD", way, way);
        let node = &node;
        async move {
            let status = node.try_run_pod(&node.pod(way)).await.expect_err(way);
            let text = status.message();
            assert!(text.contains("network test: plugin chaos: ADD: "), "{text}");
            assert!(text.contains(says) && text.len() < 6000, "{way}: {text}");
        }
    });
    join_all(failures).await;
    assert_eq!(taken(&node), before);
    assert_eq!(node.pods().await.len(), 1);
    // Repeated, as the kubelet does, they work.
    mend(&node);
    for (way, _) in WAYS {
        node.run_pod(&node.pod(way)).await;
    }
    node.try_stop_pod(&well.id).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_del_that_fails_in_any_way_is_told_and_goes_on_by_itself() {
    let mut node = node(QUICK, "1.0.0").await;
    let mut pods = Vec::new();
    for (way, says) in WAYS {
        let pod = node.run_pod(&node.pod(way)).await;
        misbehave(&node, "DEL", way, way);
        pods.push((pod, way, says));
    }
    let addresses = taken(&node);
    assert_eq!(addresses.len(), WAYS.len());
    let stops = pods.iter().map(async |(pod, way, says)| {
        let status = node.try_stop_pod(&pod.id).await.expect_err(way);
        let text = status.message();
        assert!(text.contains("network test: plugin chaos: DEL: "), "{text}");
        assert!(text.contains(says) && text.len() < 6000, "{way}: {text}");
        not_ready(&node, pod).await;
    });
    join_all(stops).await;
    assert_eq!(
        taken(&node),
        addresses,
        "nothing is given back that may be in use"
    );

    // The next daemon knows, and gives none of the addresses to anybody.
    node.crash().await;
    for (pod, ..) in &pods {
        not_ready(&node, pod).await;
    }
    let other = node.run_pod(&node.pod("other")).await;
    let own = node.pod_ip(&other).await.to_string();
    assert!(!addresses.contains(&own), "{own}");
    node.try_stop_pod(&other.id).await.unwrap();
    assert_eq!(taken(&node), addresses);

    // Without another request.
    mend(&node);
    released(&node).await;
    for (pod, way, _) in &pods {
        not_ready(&node, pod).await;
        node.try_stop_pod(&pod.id)
            .await
            .unwrap_or_else(|error| panic!("{way}: {error}"));
    }
    node.finish().await;
}

#[tokio::test]
async fn what_can_be_neither_added_nor_deleted_is_released_in_the_end() {
    let mut node = node(QUICK, "1.0.0").await;
    let ways = ["error", "signal", "flood"];
    let failures = ways.map(|way| {
        misbehave(&node, "ADD", way, "error");
        misbehave(&node, "DEL", way, way);
        let node = &node;
        async move {
            let status = node.try_run_pod(&node.pod(way)).await.expect_err(way);
            let text = status.message();
            // What went wrong first.
            assert!(text.contains("chaos: ADD: come again"), "{way}: {text}");
        }
    });
    join_all(failures).await;
    assert!(node.pods().await.is_empty());
    assert_eq!(taken(&node).len(), ways.len());
    node.crash().await;
    assert_eq!(taken(&node).len(), ways.len());
    mend(&node);
    released(&node).await;
    node.assert_no_leaks().await;
    node.finish().await;
}

#[tokio::test]
async fn a_del_that_fails_three_times_is_called_four_times() {
    let node = node(QUICK, "1.0.0").await;
    misbehave(&node, "DEL", "one", "thrice");
    let pod = node.run_pod(&node.pod("one")).await;
    node.try_stop_pod(&pod.id)
        .await
        .expect_err("the first call fails");
    assert_eq!(calls(&node, "DEL.one"), 1);
    released(&node).await;
    node.try_remove_pod(&pod.id).await.unwrap();
    node.assert_no_leaks().await;
    // Longer than it waits between two tries.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(calls(&node, "DEL.one"), 4);
    // Each could still enter the pod's namespace.
    let netns = fs::read_to_string(node.dir().join("netns-DEL.one")).unwrap();
    assert_eq!(netns.lines().filter(|path| !path.is_empty()).count(), 4);
    node.finish().await;
}

#[tokio::test]
async fn an_add_does_not_outlive_its_daemon_to_take_an_address_after_the_del() {
    let mut node = node("[network]\ntimeout_seconds = 20\n", "1.0.0").await;
    misbehave(&node, "ADD", "late", "late");
    let own = node.dir().join("self");
    let config = node.pod("late");
    let begun = async {
        let deadline = Instant::now() + host::soon();
        while fs::read_to_string(&own).unwrap_or_default().is_empty() {
            assert!(Instant::now() < deadline, "{}", node.daemon_log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        made = node.try_run_pod(&config) => panic!("{:?}", made.is_ok()),
        () = begun => {}
    }
    let plugin = fs::read_to_string(&own).unwrap();
    let plugin = plugin.trim().parse().unwrap();
    node.kill_daemon();
    assert!(host::runs(plugin), "a plugin is not tied to the daemon");
    assert_eq!(taken(&node).len(), 1);
    node.start_daemon(None).await;
    assert!(!host::runs(plugin), "{}", node.daemon_log());
    released(&node).await;
    fs::write(node.dir().join("go"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!node.dir().join("late-address").exists());
    assert!(node.pods().await.is_empty());
    mend(&node);
    node.run_pod(&config).await;
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_does_not_hold_up_the_start() {
    let mut node = node("[network]\ntimeout_seconds = 30\n", "1.1.0").await;
    misbehave(&node, "ADD", "gone", "error");
    misbehave(&node, "DEL", "gone", "error");
    let status = node.try_run_pod(&node.pod("gone")).await;
    status.expect_err("the plugin fails");
    misbehave(&node, "DEL", "gone", "hang");
    let begin = Instant::now();
    node.crash().await;
    assert!(begin.elapsed() < host::patience(Duration::from_secs(5)));
    let deadline = Instant::now() + host::soon();
    while calls(&node, "DEL.gone") < 2 {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It hangs now, and other pods come and go.
    let pod = node.run_pod(&node.pod("one")).await;
    node.try_stop_pod(&pod.id).await.unwrap();
    assert_eq!(taken(&node).len(), 1);
    // Asked to end, the daemon takes the plugin with it.
    assert!(node.terminate_daemon().await.success());
    mend(&node);
    fs::write(node.dir().join("ways/GC"), "error").unwrap();
    node.start_daemon(None).await;
    released(&node).await;
    let told = "plugins' own garbage collection";
    while !node.daemon_log().contains(told) {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let log = node.daemon_log();
    let line = log.lines().find(|line| line.contains(told)).unwrap();
    assert!(
        line.contains("plugin chaos: GC: come again (code 11)"),
        "{line}"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_del_of_a_half_made_pod_that_hangs_holds_up_nobody_but_that_pod() {
    let mut node = node("[network]\ntimeout_seconds = 30\n", "1.0.0").await;
    misbehave(&node, "ADD", "half", "hang");
    let config = node.pod("half");
    let begun = async {
        let deadline = Instant::now() + host::soon();
        while calls(&node, "ADD.half") == 0 {
            assert!(Instant::now() < deadline, "{}", node.daemon_log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        made = node.try_run_pod(&config) => panic!("{:?}", made.is_ok()),
        () = begun => {}
    }
    node.kill_daemon();
    mend(&node);
    misbehave(&node, "DEL", "half", "late");
    let begin = Instant::now();
    node.start_daemon(None).await;
    let took = begin.elapsed();
    assert!(took < host::patience(Duration::from_secs(5)), "{took:?}");
    let deadline = Instant::now() + host::soon();
    while calls(&node, "DEL.half") == 0 {
        assert!(Instant::now() < deadline, "{}", node.daemon_log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It hangs now: the pod is in no list, other pods come and go.
    assert!(node.pods().await.is_empty());
    let other = node.run_pod(&node.pod("other")).await;
    node.try_stop_pod(&other.id).await.unwrap();
    node.try_remove_pod(&other.id).await.unwrap();
    assert_eq!(taken(&node).len(), 1);
    // The same name waits for it, and no longer.
    let go = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(calls(&node, "ADD.half"), 1, "it did not wait");
        fs::write(node.dir().join("go"), "").unwrap();
    };
    let (pod, ()) = tokio::join!(node.run_pod(&config), go);
    assert_eq!((calls(&node, "ADD.half"), calls(&node, "DEL.half")), (2, 1));
    assert_eq!(taken(&node).len(), 1);
    node.try_stop_pod(&pod.id).await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_does_not_hold_up_the_start_beside_pods_whose_records_are_lost() {
    let mut node = node("[network]\ntimeout_seconds = 30\n", "1.1.0").await;
    let mut lost = Vec::new();
    for name in ["lost", "too"] {
        lost.push(node.run_pod(&node.pod(name)).await);
    }
    node.kill_daemon();
    for pod in &lost {
        let record = node
            .dir()
            .join("root/sandboxes")
            .join(&pod.id)
            .join("record");
        fs::write(record, "garbage").unwrap();
    }
    for name in ["lost", "too"] {
        misbehave(&node, "DEL", name, "hang");
    }
    let begin = Instant::now();
    node.start_daemon(None).await;
    let took = begin.elapsed();
    assert!(took < host::patience(Duration::from_secs(5)), "{took:?}");
    let pod = node.run_pod(&node.pod("one")).await;
    node.try_stop_pod(&pod.id).await.unwrap();
    mend(&node);
    // The plugins that hang are killed, and the next start goes on.
    node.kill_daemon();
    node.start_daemon(None).await;
    released(&node).await;
    fs::remove_dir_all(node.dir().join("root/quarantine")).unwrap();
    node.finish().await;
}
