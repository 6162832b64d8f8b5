//! Plugins that fail, hang, flood or lie, and damage on disk: what the caller hears, and that nothing stays.

use super::*;

/// The text of the error of an ADD whose only plugin does `body`.
async fn failing(body: &str) -> (Node, String) {
    let node = Node::with(&network(&["bad"]));
    node.plugin("bad", &format!("[ $verb = ADD ] || exit 0\n{body}"));
    let network = node.open();
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    assert_eq!(node.order(), ["ADD bad", "DEL bad"], "{text}");
    assert!(node.cache_files().is_empty(), "{text}");
    (node, text)
}

#[tokio::test]
async fn a_plugins_own_words_are_told() {
    let error = r#"{"cniVersion":"1.0.0","code":7,"msg":"no room","details":"all 254\ntaken"}"#;
    let (_, text) = failing(&format!("echo warn >&2; printf %s '{error}'; exit 1")).await;
    let expected =
        "network testnet: plugin bad: ADD: no room; all 254 taken (code 7); stderr: warn"
            .to_owned();
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_plugin_that_never_takes_its_configuration_holds_nothing_up() {
    let refusal = |code: u32, msg: &str| {
        format!(r#"printf %s '{{"cniVersion":"1.0.0","code":{code},"msg":"'{msg}'"}}'; exit 1"#)
    };
    for (body, order) in [
        // Refused at the door, both times.
        (
            refusal(7, "no burst"),
            &["ADD good", "ADD bad", "DEL bad", "DEL good"] as &[&str],
        ),
        // Something else is wrong with DEL, or it may be well another time: what is before it waits.
        (refusal(7, "$verb"), &["ADD good", "ADD bad", "DEL bad"]),
        (refusal(11, "later"), &["ADD good", "ADD bad", "DEL bad"]),
        ("exit 1".into(), &["ADD good", "ADD bad", "DEL bad"]),
    ] {
        let node = Node::with(&network(&["good", "bad"]));
        node.good("good", RESULT);
        node.plugin("bad", &body);
        let network = node.open();
        add(&network, &pod()).await.unwrap_err();
        let mut called = node.order();
        called.dedup();
        assert_eq!(called, order, "{body}");
        let is_done = order.contains(&"DEL good");
        assert_eq!(node.cache_files().is_empty(), is_done, "{body}");
    }
}

#[tokio::test]
async fn without_a_cni_error_the_output_is_told() {
    let (_, text) = failing("echo oops; seq 1 3000 >&2; exit 3").await;
    assert!(
        text.contains("bad: ADD: exit status 3, without a CNI error; stdout: oops; stderr: "),
        "{text}"
    );
    assert!(text.ends_with(" 2999 3000") && text.len() < 5000, "{text}");
    let (_, text) = failing("kill -9 $$").await;
    assert!(
        text.contains("killed by signal 9, without a CNI error"),
        "{text}"
    );
    // A result is none if the plugin did not succeed.
    let (_, text) = failing(&format!("echo '{RESULT}'; exit 1")).await;
    assert!(
        text.contains("exit status 1, without a CNI error"),
        "{text}"
    );
}

#[tokio::test]
async fn output_that_is_no_result_is_told() {
    for (body, expected) in [
        (
            "echo garbage",
            "the output is no CNI result: expected value at line 1 column 1; stdout: garbage",
        ),
        ("true", "the output is no CNI result: EOF while parsing"),
        (
            "echo '[1]'",
            "the output is no CNI result: invalid type: sequence",
        ),
        (
            "echo '{\"cniVersion\":\"x\"}'",
            "CNI version \"x\", which is no version",
        ),
        (
            "echo '{\"cniVersion\":\"1.0.0\"}'",
            "network testnet: the result has no IP address",
        ),
        (
            "echo '{\"ips\":[{\"address\":\"::g\"}]}'",
            "the result has \"::g\", which is no IP address",
        ),
        (
            "printf '{\"a\":'; head -c 200000 /dev/zero | tr '\\0' '['",
            "recursion limit exceeded",
        ),
    ] {
        let (_, text) = failing(body).await;
        assert!(text.contains(expected), "{text}");
        assert!(text.len() < 1000, "{text}");
    }
}

#[tokio::test]
async fn a_flood_of_output_ends_the_plugin() {
    let start = Instant::now();
    let (_, text) = failing("head -c 104857600 /dev/zero; sleep 100").await;
    assert!(
        text.ends_with("bad: ADD: killed: more than 1048576 bytes of output"),
        "{text}"
    );
    let (_, text) = failing("head -c 104857600 /dev/zero >&2; exit 4").await;
    assert!(
        text.contains("exit status 4") && text.len() < 5000,
        "{text}"
    );
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_plugin_that_hangs_dies_with_its_children() {
    let mut node = Node::with(&network(&["bad"]));
    node.settings.timeout = Duration::from_secs(1);
    let hang = "trap '' TERM INT HUP\n(trap '' TERM; echo $$ >/dev/null; sleep 1000) & echo $! >$dir/child\n\
                echo $$ >$dir/self; while :; do sleep 1000; done";
    node.plugin("bad", &format!("[ $verb = ADD ] || exit 0\n{hang}"));
    let network = node.open();
    let start = Instant::now();
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    assert_eq!(
        text,
        "network testnet: plugin bad: ADD: killed: not done after 1 s"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    eventually("dead", || {
        !is_alive(&node.call("self")) && !is_alive(&node.call("child"))
    })
    .await;
    assert_eq!(node.order(), ["ADD bad", "DEL bad"]);
}

#[tokio::test]
async fn a_dropped_add_leaves_nothing_running_and_del_undoes_it() {
    let node = Node::with(&network(&["good", "bad"]));
    node.good("good", RESULT);
    node.plugin(
        "bad",
        "[ $verb = ADD ] || exit 0\nsleep 1000 & echo $! >$dir/child; echo $$ >$dir/self; touch $dir/up; wait",
    );
    let network = node.open();
    let pod = pod();
    let up = node.call("up");
    let timeline = Timeline::default();
    tokio::select! {
        _ = network.add(&pod, &timeline) => panic!("it hangs"),
        () = eventually("bad runs", || up.exists()) => {}
    }
    eventually("dead", || {
        !is_alive(&node.call("self")) && !is_alive(&node.call("child"))
    })
    .await;
    assert_eq!(network.cached(), [pod.sandbox]);
    node.order();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.order(), ["DEL bad", "DEL good"]);
    assert!(network.cached().is_empty());
}

#[tokio::test]
async fn what_a_plugin_leaves_running_does_not_hold_the_answer() {
    let node = Node::with(&network(&["a"]));
    node.plugin(
        "a",
        &format!("[ $verb = ADD ] || exit 0\nsleep 3 & echo '{RESULT}'"),
    );
    let network = node.open();
    let start = Instant::now();
    add(&network, &pod()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_failing_second_plugin_undoes_what_was_started() {
    let node = Node::with(&network(&["a", "b", "c"]));
    for name in ["a", "c"] {
        node.good(name, RESULT);
    }
    node.plugin("b", "[ $verb != ADD ]");
    let network = node.open();
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    assert!(
        text.starts_with("network testnet: plugin b: ADD: exit status 1"),
        "{text}"
    );
    assert_eq!(node.order(), ["ADD a", "ADD b", "DEL b", "DEL a"]);
    assert_eq!(
        node.input("a", "DEL")["prevResult"]["ips"][0]["address"],
        "10.1.2.3/24"
    );
    assert!(node.cache_files().is_empty());
}

#[tokio::test]
async fn a_chain_with_a_missing_plugin_is_not_begun() {
    let node = Node::with(&network(&["a", "gone"]));
    node.good("a", RESULT);
    let network = node.open();
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    let dir = |name| node.dir.path().join(name).display().to_string();
    let expected = format!(
        "plugin gone: ADD: not found in {}, {}",
        dir("absent"),
        dir("bin")
    );
    assert_eq!(text, format!("network testnet: {expected}"));
    assert!(node.order().is_empty() && node.cache_files().is_empty());
    let not_ready = network.status().unwrap_err();
    assert_eq!(
        (not_ready.reason, not_ready.message),
        ("NetworkPluginNotReady", text)
    );
    // The question sets off the check that finds the plugin.
    node.good("gone", RESULT);
    eventually("ready", || network.status().is_ok()).await;
}

#[tokio::test]
async fn a_failed_del_keeps_what_is_known_for_the_next_one() {
    let node = Node::with(&network(&["a", "b"]));
    node.good("a", RESULT);
    node.plugin(
        "b",
        &format!("[ $verb = ADD ] && echo '{RESULT}' && exit\n[ -e $dir/works ]"),
    );
    let network = node.open();
    let pod = pod();
    add(&network, &pod).await.unwrap();
    node.order();
    for _ in 0..2 {
        let text = network.del(&pod.sandbox).await.unwrap_err().to_string();
        assert!(
            text.starts_with("network testnet: plugin b: DEL: exit status 1"),
            "{text}"
        );
        // The address is not given back while b's rules may still point to it.
        assert_eq!(node.order(), ["DEL b"]);
    }
    let collected = network.gc(HashSet::new()).await;
    assert_eq!(collected.failed[0].0, pod.sandbox);
    assert_eq!(network.cached(), [pod.sandbox]);
    node.order();
    fs::write(node.call("works"), "").unwrap();
    drop(network);
    let network = node.open();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.order(), ["DEL b", "DEL a"]);
    assert_eq!(
        node.input("b", "DEL")["prevResult"]["ips"][0]["address"],
        "10.1.2.3/24"
    );
    assert!(network.cached().is_empty());
}

#[tokio::test]
async fn a_failed_undo_is_done_by_the_next_add_or_del() {
    let node = Node::with(&network(&["a", "b"]));
    node.good("a", RESULT);
    node.plugin(
        "b",
        &format!("[ -e $dir/works ] || exit 1\n[ $verb != ADD ] || echo '{RESULT}'"),
    );
    let network = node.open();
    let pod = pod();
    add(&network, &pod).await.unwrap_err();
    assert_eq!(network.cached(), [pod.sandbox]);
    assert_eq!(node.order(), ["ADD a", "ADD b", "DEL b"]);
    fs::write(node.call("works"), "").unwrap();
    add(&network, &pod).await.unwrap();
    assert_eq!(node.order(), ["DEL b", "DEL a", "ADD a", "ADD b"]);
}

#[tokio::test]
async fn a_damaged_entry_is_put_aside_and_the_network_in_use_deletes() {
    let node = Node::with(&network(&["a"]));
    node.good("a", RESULT);
    let network = node.open();
    let pod = pod();
    add(&network, &pod).await.unwrap();
    node.order();
    let file = format!("{}.json", pod.sandbox);
    let path = node.settings.cache_dir.join(&file);
    fs::write(&path, "carpel-cni-1 0000").unwrap();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.order(), ["DEL a"]);
    assert_eq!(
        node.env("a", "DEL")["CNI_CONTAINERID"],
        pod.sandbox.to_string()
    );
    assert_eq!(node.env("a", "DEL")["CNI_NETNS"], "");
    assert_eq!(node.cache_files(), [format!("{file}.corrupt")]);
}

#[tokio::test]
async fn a_damaged_entry_waits_for_a_network_to_delete_it() {
    let node = Node::with(&network(&["a"]));
    node.good("a", RESULT);
    let network = node.open();
    let pod = pod();
    add(&network, &pod).await.unwrap();
    node.order();
    drop(network);
    let file = format!("{}.json", pod.sandbox);
    let damaged = node.settings.cache_dir.join(&file);
    fs::write(&damaged, "carpel-cni-1 0000").unwrap();
    let conf = node.settings.conf_dir.join("10-net.conflist");
    let away = node.dir.path().join("away");
    fs::rename(&conf, &away).unwrap();
    let network = node.open();
    for _ in 0..2 {
        let text = network.del(&pod.sandbox).await.unwrap_err().to_string();
        assert!(
            text.contains("is damaged") && text.contains("no network"),
            "{text}"
        );
        assert_eq!(network.cached(), [pod.sandbox]);
    }
    drop(network);
    fs::rename(&away, &conf).unwrap();
    let network = node.open();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.order(), ["DEL a"]);
    assert_eq!(node.cache_files(), [format!("{file}.corrupt")]);
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_stops_an_add_before_it_begins() {
    let node = Node::with(&network(&["a"]));
    node.good("a", RESULT);
    let network = node.open();
    fs::remove_dir(&node.settings.cache_dir).unwrap();
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    assert!(text.starts_with("network cache "), "{text}");
    assert!(node.order().is_empty());
}

#[tokio::test]
async fn a_binary_that_is_being_replaced_is_tried_again() {
    let node = Node::with(&network(&["a"]));
    node.good("a", RESULT);
    let network = node.open();
    let path = node.dir.path().join("bin/a");
    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let (pod, timeline) = (pod(), Timeline::default());
    let close = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(writer);
    };
    let (added, ()) = tokio::join!(network.add(&pod, &timeline), close);
    added.unwrap();
    assert_eq!(node.order(), ["ADD a"]);
}

#[tokio::test]
async fn a_binary_that_cannot_be_run_is_named() {
    let node = Node::with(&network(&["a"]));
    let path = node.plugin("a", "");
    fs::write(&path, "\x7fELF").unwrap();
    let network = node.open();
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    assert!(
        text.contains("plugin a: ADD: ") && text.contains("/bin/a: Exec format error"),
        "{text}"
    );
    // DEL cannot run either.
    assert_eq!(network.cached().len(), 1);
}
