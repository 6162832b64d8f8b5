//! What plugins are told, in which order, and what becomes of what they say.

use std::net::IpAddr;

use super::*;
use crate::spec::config::{Dns, PortMapping, Protocol};

#[tokio::test]
async fn add_goes_forward_and_del_back_with_the_result() {
    let node = Node::with(&network(&["first", "second"]));
    node.good("first", RESULT);
    let second = RESULT.replace("10.1.2.3", "10.1.2.4");
    node.good("second", &second);
    let network = node.open();
    let (pod, timeline) = (pod(), Timeline::default());
    let attachment = network.add(&pod, &timeline).await.unwrap();
    assert_eq!(attachment.ips, ["10.1.2.4".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        (attachment.network.as_str(), attachment.interface.as_str()),
        ("testnet", "eth0")
    );
    assert_eq!(node.order(), ["ADD first", "ADD second"]);
    let spans: Vec<_> = timeline.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(spans, ["cni first", "cni second"]);
    let said: Value = serde_json::from_str(RESULT).unwrap();
    assert_eq!(
        node.input("first", "ADD"),
        json!({"cniVersion": "1.0.0", "name": "testnet", "type": "first"})
    );
    assert_eq!(node.input("second", "ADD")["prevResult"], said);
    assert_eq!(network.cached(), [pod.sandbox]);

    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.order(), ["DEL second", "DEL first"]);
    let said: Value = serde_json::from_str(&second).unwrap();
    assert_eq!(node.input("second", "DEL")["prevResult"], said);
    assert_eq!(node.input("first", "DEL")["prevResult"], said);
    assert!(node.cache_files().is_empty());
    network.del(&pod.sandbox).await.unwrap();
    assert!(node.order().is_empty(), "what is not cached is not deleted");
}

#[tokio::test]
async fn the_environment_is_the_specified_one_and_no_more() {
    let node = Node::with(&network(&["a"]));
    node.good("a", RESULT);
    let network = node.open();
    let mut pod = pod();
    pod.netns = node.dir.path().join("pod");
    netns::pin(Path::new("/proc/self/ns/net"), &pod.netns).unwrap();
    add(&network, &pod).await.unwrap();
    let mut env = node.env("a", "ADD");
    for shell in ["PWD", "SHLVL", "_", "OLDPWD"] {
        env.remove(shell);
    }
    let id = pod.sandbox.to_string();
    let bin = |name: &str| node.dir.path().join(name).display().to_string();
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=0b2e"
    );
    let expected = [
        ("CNI_ARGS", args),
        ("CNI_COMMAND", "ADD".to_owned()),
        ("CNI_CONTAINERID", id),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_NETNS", bin("pod")),
        ("CNI_PATH", format!("{}:{}", bin("absent"), bin("bin"))),
        ("PATH", std::env::var("PATH").unwrap()),
    ];
    assert_eq!(
        env,
        expected.map(|(key, value)| (key.to_owned(), value)).into()
    );
    // DEL names the namespace while there is one.
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.env("a", "DEL")["CNI_NETNS"], bin("pod"));
    add(&network, &pod).await.unwrap();
    netns::unpin(&pod.netns).unwrap();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.env("a", "DEL")["CNI_NETNS"], "");
    assert_eq!(
        node.env("a", "DEL")["CNI_ARGS"],
        node.env("a", "ADD")["CNI_ARGS"]
    );
}

#[tokio::test]
async fn a_plugin_gets_the_capabilities_that_it_declares() {
    let all = json!({"portMappings": true, "bandwidth": true, "dns": true, "ips": true, "cgroupPath": true,
        "ipRanges": true, "aliases": true, "io.kubernetes.cri.pod-annotations": true});
    let some = json!({"dns": true, "bandwidth": false, "unknown": true});
    let node = Node::with(&json!({"cniVersion": "1.0.0", "name": "n", "plugins": [
        {"type": "all", "capabilities": all}, {"type": "some", "capabilities": some}, {"type": "none"}]}));
    for name in ["all", "some", "none"] {
        node.good(name, RESULT);
    }
    let network = node.open();
    let mut pod = pod();
    let mapping = |protocol, host_ip: Option<&str>| PortMapping {
        protocol,
        container_port: 80,
        host_port: 8080,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    };
    pod.port_mappings = vec![
        mapping(Protocol::Tcp, None),
        mapping(Protocol::Udp, Some("127.0.0.1")),
    ];
    pod.cgroup_parent = Some("/kubepods/pod1".into());
    pod.dns = Some(Dns {
        servers: vec!["10.0.0.10".into()],
        ..Dns::default()
    });
    let rate = ("kubernetes.io/egress-bandwidth".to_owned(), "1M".to_owned());
    pod.annotations = BTreeMap::from([rate]);
    pod.hostname = Some("web".into());
    network.set_pod_cidr("10.7.0.0/24,fd07::/64").unwrap();
    add(&network, &pod).await.unwrap();
    let dns = json!({"servers": ["10.0.0.10"], "searches": [], "options": []});
    let expected = json!({
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}],
        "bandwidth": {"egressRate": 1_000_000, "egressBurst": u32::MAX},
        "dns": dns,
        "ipRanges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]],
        "aliases": ["web-0", "web"],
        "cgroupPath": "/kubepods/pod1",
        "io.kubernetes.cri.pod-annotations": {"kubernetes.io/egress-bandwidth": "1M"}});
    assert_eq!(node.input("all", "ADD")["runtimeConfig"], expected);
    assert_eq!(
        node.input("some", "ADD")["runtimeConfig"],
        json!({"dns": dns})
    );
    assert_eq!(node.input("none", "ADD").get("runtimeConfig"), None);
    // DEL gets what ADD got.
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.input("all", "DEL")["runtimeConfig"], expected);
}

#[tokio::test]
async fn a_pod_that_cannot_be_told_to_plugins_is_refused_before_any_runs() {
    let node = Node::with(&network(&["a"]));
    node.good("a", RESULT);
    let network = node.open();
    let mut bad = pod();
    bad.name.name = "a;K8S_POD_NAMESPACE=kube-system".into();
    let text = add(&network, &bad).await.unwrap_err().to_string();
    assert!(text.starts_with("K8S_POD_NAME: "), "{text}");
    let mut bad = pod();
    bad.annotations
        .insert("kubernetes.io/ingress-bandwidth".into(), "fast".into());
    let text = add(&network, &bad).await.unwrap_err().to_string();
    assert_eq!(
        text,
        "annotation kubernetes.io/ingress-bandwidth: \"fast\" is no rate from 1k to 1P"
    );
    assert!(node.order().is_empty() && node.cache_files().is_empty());
}

#[tokio::test]
async fn results_are_handed_on_in_the_networks_version() {
    let mut conf = network(&["old", "new"]);
    conf["cniVersion"] = json!("0.3.1");
    conf["cniVersions"] = json!(["0.3.1", "0.4.0", "9.0.0"]);
    let node = Node::with(&conf);
    node.good("old", RESULT);
    let flat = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.9.9.9/8"},"ip6":{"ip":"fd00::9/64"}}"#;
    node.good("new", flat);
    let network = node.open();
    let pod = pod();
    let attachment = add(&network, &pod).await.unwrap();
    assert_eq!(attachment.ips.len(), 2);
    let given = node.input("new", "ADD");
    assert_eq!(
        (&given["cniVersion"], given.get("cniVersions")),
        (&json!("0.4.0"), None)
    );
    let ip = json!({"version": "4", "address": "10.1.2.3/24", "gateway": "10.1.2.1"});
    assert_eq!(
        given["prevResult"],
        json!({"cniVersion": "0.4.0", "ips": [ip]})
    );
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(
        node.input("old", "DEL")["prevResult"]["ips"][1]["version"],
        "6"
    );
}

#[tokio::test]
async fn del_has_no_result_before_version_0_4_0() {
    let mut conf = network(&["a"]);
    conf["cniVersion"] = json!("0.3.1");
    let node = Node::with(&conf);
    node.good("a", &RESULT.replace("1.0.0", "0.3.1"));
    let network = node.open();
    let pod = pod();
    add(&network, &pod).await.unwrap();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.input("a", "DEL").get("prevResult"), None);
}

#[tokio::test]
async fn del_uses_what_add_used_whatever_the_folder_says_by_then() {
    let node = Node::with(&network(&["a"]));
    node.good("a", RESULT);
    let network = node.open();
    let pod = pod();
    add(&network, &pod).await.unwrap();
    fs::remove_file(node.settings.conf_dir.join("10-net.conflist")).unwrap();
    drop(network);
    let network = node.open();
    assert_eq!(network.status().unwrap_err().reason, "NoNetworkConfig");
    node.order();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(node.order(), ["DEL a"]);
}

#[tokio::test]
async fn what_carpel_ships_runs_under_the_plugins_name_if_no_folder_has_it() {
    let mut node = Node::with(&network(&["bridge", "other"]));
    let own = node.dir.path().join("own");
    // Of a script, arg0 is the interpreter's affair; what the process was called is not.
    fs::copy("/bin/busybox", &own).unwrap();
    node.settings.own_plugins = Some(own);
    let network = node.open();
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    assert!(
        text.starts_with("network testnet: plugin other: ADD: not found in "),
        "{text}"
    );
    node.good("other", RESULT);
    let text = add(&network, &pod()).await.unwrap_err().to_string();
    assert!(
        text.contains("plugin bridge: ADD: exit status 127"),
        "{text}"
    );
    assert!(text.contains("bridge: applet not found"), "{text}");
    node.good("bridge", RESULT);
    add(&network, &pod()).await.unwrap();
}

#[tokio::test]
async fn sandboxes_do_not_wait_for_each_other_and_one_has_one_operation() {
    let node = Node::with(&network(&["a"]));
    let body =
        format!("[ $verb = DEL ] && exit\nsleep 0.3\necho done >>$dir/order\necho '{RESULT}'");
    node.plugin("a", &body);
    let network = node.open();
    let (one, other) = (pod(), pod());
    let timeline = Timeline::default();
    let pair = (network.add(&one, &timeline), network.add(&other, &timeline));
    let (first, second) = tokio::join!(pair.0, pair.1);
    first.and(second).unwrap();
    assert_eq!(node.order(), ["ADD a", "ADD a", "done", "done"]);
    let third = pod();
    let (added, deleted) =
        tokio::join!(network.add(&third, &timeline), network.del(&third.sandbox));
    added.unwrap();
    deleted.unwrap();
    assert_eq!(node.order(), ["ADD a", "done", "DEL a"]);
}

#[tokio::test]
async fn gc_deletes_what_is_not_valid_and_tells_plugins_of_1_1() {
    let mut conf = network(&["a", "b"]);
    conf["cniVersion"] = json!("1.1.0");
    let node = Node::with(&conf);
    let result = RESULT.replace("1.0.0", "1.1.0");
    node.good("a", &result);
    node.good("b", &result);
    let network = node.open();
    eventually("checked", || network.status().is_ok()).await;
    let (valid, stale, uncached) = (pod(), pod(), SandboxId::random());
    add(&network, &valid).await.unwrap();
    add(&network, &stale).await.unwrap();
    node.order();
    let collected = network.gc(HashSet::from([valid.sandbox, uncached])).await;
    assert_eq!(collected.deleted, [stale.sandbox]);
    assert!(collected.failed.is_empty() && collected.plugins.is_none());
    assert_eq!(node.order(), ["DEL b", "DEL a", "GC a", "GC b"]);
    let mut expected: Vec<_> = [valid.sandbox, uncached].map(|id| id.to_string()).into();
    expected.sort();
    let expected: Value = expected
        .iter()
        .map(|id| json!({"containerID": id, "ifname": "eth0"}))
        .collect();
    assert_eq!(node.input("b", "GC")["cni.dev/valid-attachments"], expected);
    assert!(!node.env("b", "GC").contains_key("CNI_CONTAINERID"));
    assert_eq!(network.cached(), [valid.sandbox]);
}

#[tokio::test]
async fn gc_is_not_run_where_it_is_unknown_or_unwanted() {
    let mut unwanted = network(&["a"]);
    unwanted["cniVersion"] = json!("1.1.0");
    unwanted["disableGC"] = json!(true);
    for conf in [network(&["a"]), unwanted] {
        let node = Node::with(&conf);
        node.good("a", RESULT);
        let collected = node.open().gc(HashSet::new()).await;
        assert!(collected.plugins.is_none());
        assert!(!node.order().contains(&"GC a".to_owned()));
    }
}

#[tokio::test]
async fn status_is_that_of_the_plugins_and_is_never_waited_for() {
    let mut conf = network(&["a"]);
    conf["cniVersion"] = json!("1.1.0");
    let node = Node::with(&conf);
    let no = r#"{"cniVersion":"1.1.0","code":50,"msg":"no agent"}"#;
    node.plugin(
        "a",
        &format!("sleep 0.2; [ -e $dir/ready ] || {{ echo '{no}'; exit 1; }}"),
    );
    let network = node.open();
    let start = Instant::now();
    assert_eq!(
        network.status().unwrap_err().reason,
        "NetworkPluginNotChecked"
    );
    assert!(start.elapsed() < Duration::from_millis(50));
    eventually("not ready", || {
        network
            .status()
            .is_err_and(|error| error.reason == "NetworkPluginNotReady")
    })
    .await;
    let text = network.status().unwrap_err().to_string();
    assert_eq!(
        text,
        "network testnet: plugin a: STATUS: no agent (code 50)"
    );
    fs::write(node.call("ready"), "").unwrap();
    eventually("ready", || network.status().is_ok()).await;
    assert!(
        node.order().len() <= 4,
        "questions do not run plugins one for one"
    );
}

#[tokio::test]
async fn check_asks_every_plugin_with_the_last_result() {
    let node = Node::with(&network(&["a", "b"]));
    node.good("a", RESULT);
    let no = r#"{"cniVersion":"1.0.0","code":99,"msg":"the link is gone"}"#;
    node.plugin(
        "b",
        &format!("[ $verb = ADD ] && echo '{RESULT}'\n[ $verb = CHECK -a -e $dir/gone ] && echo '{no}' && exit 1; exit 0"),
    );
    let network = node.open();
    let pod = pod();
    assert_eq!(network.check(&pod.sandbox).await.unwrap(), None);
    add(&network, &pod).await.unwrap();
    node.order();
    let fine = Checked::Fine {
        network: "testnet".into(),
    };
    assert_eq!(network.check(&pod.sandbox).await.unwrap(), Some(fine));
    assert_eq!(node.order(), ["CHECK a", "CHECK b"]);
    let said: Value = serde_json::from_str(RESULT).unwrap();
    for plugin in ["a", "b"] {
        assert_eq!(node.input(plugin, "CHECK")["prevResult"], said);
    }
    assert_eq!(
        node.env("b", "CHECK")["CNI_CONTAINERID"],
        pod.sandbox.to_string()
    );
    fs::write(node.call("gone"), "").unwrap();
    let Some(Checked::Wrong { problem, .. }) = network.check(&pod.sandbox).await.unwrap() else {
        panic!("the plugin complains");
    };
    let expected = "network testnet: plugin b: CHECK: the link is gone (code 99)";
    assert_eq!(problem, expected);
}

#[tokio::test]
async fn check_is_not_run_where_it_is_unknown_or_unwanted() {
    let (mut old, mut unwanted) = (network(&["a"]), network(&["a"]));
    old["cniVersion"] = json!("0.3.1");
    unwanted["disableCheck"] = json!(true);
    for (conf, part) in [(old, "0.4.0"), (unwanted, "disableCheck")] {
        let node = Node::with(&conf);
        node.good(
            "a",
            &RESULT.replace("1.0.0", conf["cniVersion"].as_str().unwrap()),
        );
        let network = node.open();
        let pod = pod();
        add(&network, &pod).await.unwrap();
        node.order();
        let Some(Checked::NotChecked { why, .. }) = network.check(&pod.sandbox).await.unwrap()
        else {
            panic!("nobody is asked");
        };
        assert!(why.contains(part) && node.order().is_empty(), "{why}");
    }
}

/// What a test's template becomes for a range.
fn filled(subnet: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"made","plugins":[{{"type":"a","subnet":"{subnet}"}}]}}"#
    )
}

#[tokio::test]
async fn a_configuration_is_made_of_the_template_where_there_is_none() {
    let mut node = Node::new();
    node.good("a", RESULT);
    let template = node.dir.path().join("template");
    node.settings.conf_template = Some(template.clone());
    let network = node.open();
    let set = |range: &str| {
        network
            .set_pod_cidr(range)
            .map_err(|error| error.to_string())
    };
    let made = node.settings.conf_dir.join("10-carpel.conflist");
    let missing = set("10.7.0.0/24").unwrap_err();
    assert!(
        missing.contains("No such file") && !made.exists(),
        "{missing}"
    );
    for (bad, why) in [
        ("{{.PodCIDR", "line 1: {{ without }}"),
        (
            "{\"name\":\"{{.PodCIDR}}\"}",
            "is no network configuration when filled in: network name",
        ),
    ] {
        fs::write(&template, bad).unwrap();
        let error = set("10.7.0.0/24").unwrap_err();
        assert!(error.contains(why) && !made.exists(), "{error}");
    }
    fs::write(&template, filled("{{.PodCIDR}}")).unwrap();
    assert_eq!(
        set("10.7.0.0/33").unwrap_err().split(':').next(),
        Some(
            "pod CIDR \"10.7.0.0/33\" is not a subnet, or one of IPv4 and one of IPv6, with room for pods"
        )
    );
    // Made, used, and made anew for another range while nobody has touched it.
    for range in ["10.7.0.0/24", "10.7.0.0/24", "10.8.0.0/24"] {
        set(range).unwrap();
        assert_eq!(fs::read_to_string(&made).unwrap(), filled(range));
    }
    eventually("in use", || {
        network.status().is_ok_and(|name| name == "made")
    })
    .await;
    assert_eq!(
        fs::metadata(&made).unwrap().permissions().mode() & 0o777,
        0o644
    );
    fs::write(&made, filled("mine")).unwrap();
    set("10.9.0.0/24").unwrap();
    assert_eq!(fs::read_to_string(&made).unwrap(), filled("mine"));
    // Somebody else's is enough; without one it is made anew.
    fs::remove_file(&made).unwrap();
    node.conf("20-other.conflist", &filled("other"));
    set("10.9.0.0/24").unwrap();
    assert!(!made.exists());
    fs::remove_dir_all(&node.settings.conf_dir).unwrap();
    set("fd09::/64,10.9.0.0/24").unwrap();
    assert_eq!(fs::read_to_string(&made).unwrap(), filled("fd09::/64"));
}

#[tokio::test]
async fn the_pod_cidr_is_that_of_the_default_network_only() {
    let mut node = Node::new();
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]});
    let default =
        json!({"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "a", "ipam": ipam}]});
    node.settings.default_network = Some(default.to_string());
    node.good("a", RESULT);
    let network = node.open();
    assert_eq!(network.status().unwrap(), "own");
    let pod = pod();
    add(&network, &pod).await.unwrap();
    assert_eq!(node.input("a", "ADD")["ipam"], ipam);
    assert!(network.set_pod_cidr("10.1.0.0/33").is_err());
    network.set_pod_cidr("10.7.0.0/24").unwrap();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(
        node.input("a", "DEL")["ipam"],
        ipam,
        "DEL is that of the ADD"
    );
    drop(network);
    let network = node.open();
    add(&network, &pod).await.unwrap();
    assert_eq!(
        node.input("a", "ADD")["ipam"]["ranges"],
        json!([[{"subnet": "10.7.0.0/24"}]])
    );
    node.conf(
        "10-other.conflist",
        &default.to_string().replace("own", "other"),
    );
    eventually("other network", || {
        network.status().is_ok_and(|name| name == "other")
    })
    .await;
    network.del(&pod.sandbox).await.unwrap();
    add(&network, &pod).await.unwrap();
    assert_eq!(node.input("a", "ADD")["ipam"], ipam);
}
