//! `carpel net`: what is drawn of a pod's network, and where a packet is said to stop.

use std::process::Command;

use carpel_integration::cli::{Said, carpel};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{NamespaceMode, PortMapping, Protocol};
use carpel_integration::{Pod, TestNode};
use serde_json::{Value, json};

/// `carpel net` with these arguments, on the node.
fn net(node: &TestNode, args: &[&str]) -> Said {
    node.net
        .run(|| Said::by(carpel(&node.endpoint(), &[&["net"], args].concat())))
}

/// The pod network with a pair and a route for each pod.
fn ptp(node_dir: &std::path::Path) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "test", "plugins": [{
        "type": "ptp", "ipMasq": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.119.0.0/24" }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": node_dir,
        },
    }] })
}

async fn two_pods() -> (TestNode, Pod, Pod) {
    let node = TestNode::start().await;
    let a = node.run_pod(&node.pod("a")).await;
    let b = node.run_pod(&node.pod("b")).await;
    (node, a, b)
}

/// Runs a command in a pod's network namespace.
fn inside(node: &TestNode, pod: &Pod, args: &[&str]) {
    let pin = node.netns_dir().join(format!("carpel-{}", pod.id));
    let pin = pin.display().to_string();
    let net = format!("--net={pin}");
    let status = Command::new("nsenter").arg(net).args(args).status();
    assert!(status.expect("nsenter").success(), "{args:?}");
}

/// Why the packet stops, in a word.
fn reason(node: &TestNode, args: &[&str]) -> (String, Value) {
    let said = net(node, &[args, &["-o", "json"]].concat());
    assert_eq!(said.status, 1, "{said:?}");
    let json: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let ends = [&json["there"]["end"], &json["back"]["end"]];
    let stopped = ends
        .into_iter()
        .find(|end| end["result"] == "stopped")
        .expect("it stops");
    (
        stopped["reason"].as_str().expect("a word").to_owned(),
        stopped.clone(),
    )
}

#[tokio::test]
async fn a_pod_on_a_bridge_is_drawn() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    let ip = node.pod_ip(&pod).await.to_string();
    let text = net(&node, &["web"]).ok();
    for part in [
        "default/web",
        &ip,
        "port of carpel0: forwarding, hairpin off, isolated off",
        "10.118.0.1/16",
        "default via 10.118.0.1 dev eth0",
        "10.118.0.0/16 dev carpel0",
        "eth0 – veth",
        "the network's plugins find everything as they left it",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for line in text.lines().skip(1) {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for name in [&pod.id[..12], "default/web"] {
        assert!(
            net(&node, &[name]).ok().starts_with("default/web"),
            "{name}"
        );
    }
    let svg = net(&node, &["web", "-o", "svg"]).ok();
    assert!(svg.starts_with("<svg ") && svg.contains("carpel0"), "{svg}");
    let dot = net(&node, &["web", "-o", "dot"]).ok();
    assert!(
        dot.starts_with("digraph net {") && dot.contains("s0c0 -> s0c1"),
        "{dot}"
    );
    node.finish().await;
}

#[tokio::test]
async fn the_json_of_a_pod_has_its_fields() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    let json = net(&node, &["web", "-o", "json"]).json();
    let ip = node.pod_ip(&pod).await.to_string();
    assert_eq!(json["pod"]["id"], pod.id);
    assert_eq!(json["pod"]["ips"], json!([ip]));
    assert_eq!(json["pod"]["hostNetwork"], false);
    assert_eq!(json["check"], "");
    for (pointer, is) in [
        ("/pod/netns", Value::is_string as fn(&Value) -> bool),
        ("/inside/links", Value::is_array),
        ("/inside/links/1/name", Value::is_string),
        ("/inside/links/1/kind", Value::is_string),
        ("/inside/links/1/mac", Value::is_string),
        ("/inside/links/1/mtu", Value::is_u64),
        ("/inside/links/1/up", Value::is_boolean),
        ("/inside/links/1/addresses/0", Value::is_string),
        ("/inside/links/1/peer/place", Value::is_string),
        ("/inside/links/1/counters/receivedPackets", Value::is_u64),
        ("/inside/routes/0/destination", Value::is_string),
        ("/inside/neighbours", Value::is_array),
        ("/node/links/0/port/bridge", Value::is_string),
        ("/node/links/0/port/hairpin", Value::is_boolean),
        ("/node/links/1/kind", Value::is_string),
        ("/node/routes/0/link", Value::is_string),
        ("/node/settings/ipv4~1conf~1all~1forwarding", Value::is_i64),
        ("/hostPorts", Value::is_array),
        ("/leaving", Value::is_array),
        ("/rulesThatNameIt", Value::is_array),
        ("/cautions", Value::is_array),
    ] {
        let value = json.pointer(pointer);
        assert!(value.is_some_and(is), "{pointer} is {value:?}: {json:#}");
    }
    node.finish().await;
}

#[tokio::test]
async fn pods_on_a_bridge_reach_each_other() {
    let (node, _, b) = two_pods().await;
    let text = net(&node, &["a", "b"]).ok();
    for part in [
        "default/a → default/b",
        "bridge carpel0: in by veth",
        "✓ reaches default/b",
        "the answer: tcp",
        "✓ reaches default/a",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let ip = node.pod_ip(&b).await.to_string();
    let json = net(&node, &["a", &ip, "--icmp", "-o", "json"]).json();
    assert_eq!(json["arrives"], true);
    assert_eq!(json["to"], format!("{ip} (default/b)"));
    assert_eq!(json["there"]["packet"]["protocol"], "icmp");
    assert_eq!(
        json["there"]["end"],
        json!({ "result": "reached", "place": "default/b" })
    );
    assert!(
        json["back"]["hops"]
            .as_array()
            .is_some_and(|hops| hops.len() > 2),
        "{json:#}"
    );
    let (word, _) = reason(&node, &["a", "b", "--port", "8080"]);
    assert_eq!(word, "nobody-listens");
    node.finish().await;
}

#[tokio::test]
async fn a_packet_stops_where_the_bridge_or_a_rule_says_so() {
    let (node, a, _) = two_pods().await;
    let rules = "add table ip t; add chain ip t f { type filter hook input priority 0; }; add rule ip t f tcp dport 53 drop";
    node.net.command(&["nft", rules]);
    let (word, end) = reason(&node, &["a", "10.118.0.1", "-p", "53"]);
    assert_eq!(word, "dropped-by-rule");
    assert!(
        end["text"]
            .as_str()
            .expect("text")
            .contains("table ip t, chain f: tcp dport 53 drop"),
        "{end}"
    );
    let text = net(&node, &["a", "10.118.0.1"]).ok();
    assert!(
        text.contains("? may be dropped by table ip t, chain f"),
        "{text}"
    );
    node.net.command(&["nft", "delete table ip t"]);
    let (word, end) = reason(&node, &["a", "10.118.77.77"]);
    assert_eq!(
        (word.as_str(), &end["place"]),
        ("no-neighbour", &json!("default/a"))
    );
    inside(&node, &a, &["ip", "route", "del", "default"]);
    let (word, end) = reason(&node, &["a", "203.0.113.9"]);
    assert_eq!(word, "no-route");
    assert!(
        end["text"]
            .as_str()
            .expect("text")
            .contains("not even a default one"),
        "{end}"
    );
    let text = net(&node, &["a", "203.0.113.9"]);
    assert!(
        text.stdout
            .contains("✗ stops in default/a: no route to 203.0.113.9"),
        "{text:?}"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_packet_between_pairs_stops_where_the_node_says_so() {
    let ipam = tempfile::tempdir().unwrap();
    let node = TestNode::builder().conflist(ptp(ipam.path())).start().await;
    let a = node.run_pod(&node.pod("a")).await;
    let b = node.run_pod(&node.pod("b")).await;
    let (own, other) = (
        node.pod_ip(&a).await.to_string(),
        node.pod_ip(&b).await.to_string(),
    );
    let text = net(&node, &["a", "b"]).ok();
    assert!(text.contains(&format!("{other} dev veth")), "{text}");
    let drawn = net(&node, &["a"]).ok();
    assert!(drawn.contains("10.119.0.1/32"), "{drawn}");
    node.net
        .command(&["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
    let (word, end) = reason(&node, &["a", "b"]);
    assert_eq!(
        (word.as_str(), &end["place"]),
        ("forwarding-off", &json!("node"))
    );
    assert_eq!(end["advice"], "sysctl -w net.ipv4.ip_forward=1");
    node.net
        .command(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    // Answers would leave by another link.
    let route = node.net.output(&["ip", "route", "show", &own]);
    let dev = route
        .split_whitespace()
        .skip_while(|word| *word != "dev")
        .nth(1)
        .expect("a link")
        .to_owned();
    node.net.command(&[
        "ip", "link", "add", "other", "type", "veth", "peer", "name", "another",
    ]);
    node.net.command(&["ip", "link", "set", "other", "up"]);
    node.net
        .command(&["sysctl", "-qw", &format!("net.ipv4.conf.{dev}.rp_filter=1")]);
    node.net
        .command(&["ip", "route", "replace", &own, "dev", "other"]);
    let (word, end) = reason(&node, &["a", "b"]);
    assert_eq!(word, "rp-filter");
    assert!(
        end["text"]
            .as_str()
            .expect("text")
            .contains("would leave by other"),
        "{end}"
    );
    node.net
        .command(&["ip", "route", "replace", &own, "dev", &dev]);
    node.net.command(&["ip", "link", "del", "other"]);
    node.net.command(&["ip", "route", "del", &other]);
    let (word, end) = reason(&node, &["a", "b"]);
    assert_eq!((word.as_str(), &end["place"]), ("no-route", &json!("node")));
    node.finish().await;
}

#[tokio::test]
async fn host_ports_are_shown_with_where_they_lead() {
    let node = TestNode::builder()
        .no_network()
        .arg("--default-network")
        .start()
        .await;
    let mut config = node.pod("web");
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 18_080,
        host_ip: String::new(),
    }];
    let pod = node.run_pod(&config).await;
    let ip = node.pod_ip(&pod).await.to_string();
    let text = net(&node, &["web"]).ok();
    assert!(
        text.contains(&format!("18080/tcp → {ip}:8080 (table ip carpel-portmap")),
        "{text}"
    );
    let json = net(&node, &["web", "-o", "json"]).json();
    assert_eq!(json["hostPorts"][0]["leadsToPod"], true, "{json:#}");
    node.net.command(&["nft", "delete table ip carpel-portmap"]);
    let text = net(&node, &["web"]).ok();
    assert!(
        text.contains("✗ 18080/tcp: no rule leads it to the pod"),
        "{text}"
    );
    assert!(text.contains("✗ CHECK: network"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn plugins_that_were_installed_work_under_their_own_names() {
    let node = TestNode::start().await;
    let bin = tempfile::tempdir().unwrap();
    let dir = bin.path().display().to_string();
    let install = |args: &[&str]| {
        Said::by(carpel(
            &node.endpoint(),
            &[&["cni", "install", dir.as_str()], args].concat(),
        ))
    };
    let text = install(&["bridge", "host-local"]).ok();
    assert_eq!(text.matches("installed").count(), 2, "{text}");
    install(&["calico"]).failed(1, "no plugin calico; carpel has loopback, ");
    let plugin = bin.path().join("host-local");
    let output = Command::new(&plugin).env("CNI_COMMAND", "VERSION").output();
    let said: Value = serde_json::from_slice(&output.expect("it runs").stdout).expect("JSON");
    let versions = said["supportedVersions"].as_array().expect("versions");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert!(versions.contains(&json!(version)), "{said}");
    }
    let missing = bin.path().join("none").display().to_string();
    Said::by(carpel(&node.endpoint(), &["cni", "install", &missing])).failed(1, "no such folder");
    node.finish().await;
}

#[tokio::test]
async fn pods_without_a_network_of_their_own() {
    let node = TestNode::start().await;
    let mut config = node.pod("host");
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    let options = security.namespace_options.get_or_insert_default();
    options.network = NamespaceMode::Node.into();
    let host = node.run_pod(&config).await;
    node.start_container(&host, &sleeper("a")).await;
    let web = node.run_pod(&node.pod("web")).await;
    let text = net(&node, &["host"]).ok();
    assert!(text.contains("the network of the node"), "{text}");
    let text = net(&node, &["host", "web"]).ok();
    assert!(text.contains("bridge carpel0: out by veth"), "{text}");
    let json = net(&node, &["host", "-o", "json"]).json();
    assert_eq!(
        (&json["pod"]["hostNetwork"], &json["inside"]),
        (&json!(true), &Value::Null)
    );
    net(&node, &["nobody"]).failed(1, "no pod \"nobody\"");
    net(&node, &["web", "nobody"]).failed(1, "no pod \"nobody\"");
    net(&node, &["web", "-p", "80"]).failed(2, "<POD|IP>");
    net(&node, &["web", "10.0.0.1", "-p", "x"]).failed(2, "is no port");
    node.try_stop_pod(&web.id).await.unwrap();
    net(&node, &["web"]).failed(1, "pod default/web is stopped: it has no network any more");
    net(&node, &["host", "web"]).failed(1, "is stopped");
    node.finish().await;
}
