//! firewall, as root, in namespaces of its own, beside Debian's.

mod common;

use std::thread;

use common::{
    Call, Netns, Node, Said,
    net::{Server, world},
};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";
const V6: &str = "fd31::/64";

fn config(result: &Value, options: &Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "firewall", "prevResult": result,
    });
    for (key, value) in options.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn firewall(node: &Node, command: &str, id: &str, pod: &Netns, config: &Value) -> Said {
    Call::new(&node.host, "firewall", command, id, pod).run(config)
}

/// All rules as iptables lists them.
fn rules(node: &Node) -> Vec<String> {
    let all = node.host.sh("iptables-nft -S; ip6tables-nft -S");
    // Debian's is older than the second policy and writes another comment.
    let line = |line: &str| line.replace("same-bridge|isolated", "same-bridge");
    all.lines().map(line).collect()
}

/// A machine that forwards only what it is told to.
fn closed(node: &Node) {
    node.host
        .sh("iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP");
}

#[test]
fn rules_are_those_of_debians() {
    for options in [
        json!({}),
        json!({ "cniVersion": "0.4.0", "iptablesAdminChainName": "CUSTOM-ADMIN" }),
        json!({ "ingressPolicy": "same-bridge", "backend": "iptables" }),
    ] {
        // First who adds, then who removes.
        let run = |debian: bool, removes: bool| {
            let mut node = Node::new(&[V4, V6]);
            node.config["ipMasq"] = json!(false);
            closed(&node);
            let pods = [Netns::new("a"), Netns::new("b")];
            let mut states = Vec::new();
            let mut configs = Vec::new();
            for (id, pod) in ["a", "b"].into_iter().zip(&pods) {
                let mut result = node.add(id, pod);
                if options["cniVersion"] == "0.4.0" {
                    result["cniVersion"] = json!("0.4.0");
                }
                let config = config(&result, &options);
                let whose = |command, debian: bool| {
                    let call = Call::new(&node.host, "firewall", command, id, pod);
                    if debian { call.debian() } else { call }
                };
                let said = whose("ADD", debian).run(&config).ok();
                assert_eq!(said["ips"][0]["address"], result["ips"][0]["address"]);
                whose("CHECK", true).run(&config).ok();
                whose("CHECK", false).run(&config).ok();
                states.push(rules(&node));
                configs.push(config);
            }
            for ((id, pod), config) in ["a", "b"].into_iter().zip(&pods).zip(&configs) {
                for _ in 0..2 {
                    let call = Call::new(&node.host, "firewall", "DEL", id, pod);
                    let call = if removes { call.debian() } else { call };
                    call.run(config).ok();
                }
                states.push(rules(&node));
            }
            assert!(!states[3].iter().any(|rule| rule.contains("10.231.0")));
            states
        };
        let theirs = run(true, true);
        assert_eq!(run(false, false), theirs, "{options}");
        assert_eq!(run(false, true), theirs, "{options}");
        assert_eq!(run(true, false), theirs, "{options}");
    }
}

#[test]
fn a_closed_machine_is_opened_for_the_pod() {
    let node = Node::new(&[V4, V6]);
    let world = world(&node.host);
    world.sh("ip route add 10.231.0.0/24 via 192.0.2.1");
    closed(&node);
    let pod = Netns::new("pod");
    let result = node.add("pod", &pod);
    assert!((0..5).any(|_| pod.pings("fd31::1")));
    let _servers = (
        Server::tcp(&world, "world", 80),
        Server::tcp(&pod, "pod", 80),
    );
    assert!(pod.tcp_fails("192.0.2.2:80") && pod.tcp_fails("[2001:db8::2]:80"));
    let config = config(&result, &json!({}));
    firewall(&node, "ADD", "pod", &pod, &config).ok();
    // Twice is once.
    let before = node.rules();
    firewall(&node, "ADD", "pod", &pod, &config).ok();
    assert_eq!(
        node.rules().matches("10.231.0.2").count(),
        before.matches("10.231.0.2").count()
    );
    assert_eq!(pod.tcp("192.0.2.2:80").unwrap(), "world 192.0.2.1");
    assert_eq!(pod.tcp("[2001:db8::2]:80").unwrap(), "world 2001:db8::1");
    assert!(world.tcp_fails("10.231.0.2:80"));
    firewall(&node, "DEL", "pod", &pod, &config).ok();
    assert!(pod.tcp_fails("192.0.2.2:80"));
    firewall(&node, "CHECK", "pod", &pod, &config).fails(999, "the rules for 10.231.0.2");
}

#[test]
fn bridges_are_kept_apart() {
    let mut node = Node::new(&[V4]);
    node.config["ipMasq"] = json!(false);
    let world = world(&node.host);
    world.sh("ip route add 10.231.0.0/24 via 192.0.2.1");
    let mut other = node.config.clone();
    other["bridge"] = json!("br1");
    other["name"] = json!("other");
    other["ipam"]["ranges"] = json!([[{ "subnet": "10.232.0.0/24" }]]);
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let policy = json!({ "ingressPolicy": "same-bridge" });
    let result_a = node.add("a", &a);
    let result_b = node.call("ADD", "b", &b).run(&other).ok();
    let _server = Server::tcp(&a, "a", 80);
    assert_eq!(b.tcp("10.231.0.2:80").unwrap(), "a 10.232.0.2");
    firewall(&node, "ADD", "a", &a, &config(&result_a, &policy)).ok();
    firewall(&node, "ADD", "b", &b, &config(&result_b, &policy)).ok();
    assert!(b.tcp_fails("10.231.0.2:80"));
    let itself = "-A CNI-ISOLATION-STAGE-1 -i br1 -o br1";
    assert!(!rules(&node).iter().any(|rule| rule.starts_with(itself)));
    let isolated = json!({ "ingressPolicy": "isolated" });
    firewall(&node, "ADD", "b", &b, &config(&result_b, &isolated)).ok();
    let found: Vec<_> = rules(&node)
        .into_iter()
        .filter(|rule| rule.starts_with(itself))
        .collect();
    assert!(
        found.len() == 1 && found[0].ends_with("-j DROP"),
        "{found:?}"
    );
    assert_eq!(world.tcp("10.231.0.2:80").unwrap(), "a 192.0.2.2");
    assert_eq!(node.host.tcp("10.231.0.2:80").unwrap(), "a 10.231.0.1");
}

#[test]
fn wrong_use_has_its_codes() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let result = node.add("pod", &pod);
    let with = |options: Value| firewall(&node, "ADD", "pod", &pod, &config(&result, &options));
    with(json!({ "backend": "firewalld" })).fails(2, "backend firewalld");
    with(json!({ "backend": "pf" })).fails(7, "unknown backend");
    with(json!({ "ingressPolicy": "x" })).fails(7, "ingressPolicy");
    with(json!({ "ingressPolicy": 1 })).fails(6, "ingressPolicy: ");
    with(json!({ "iptablesAdminChainName": "a b" })).fails(7, "iptablesAdminChainName");
    with(json!({ "prevResult": null })).fails(7, "prevResult");
    assert!(!node.rules().contains("CNI-FORWARD"));
    let nothing = json!({ "cniVersion": "1.0.0", "name": "net" });
    firewall(&node, "DEL", "pod", &pod, &nothing).ok();
}

#[test]
fn many_at_once_and_garbage_collection() {
    let node = Node::new(&[V4, V6]);
    thread::scope(|scope| {
        let node = &node;
        for worker in 0..16 {
            scope.spawn(move || {
                let (id, pod) = (format!("w{worker}"), Netns::new("pod"));
                let result = node.add(&id, &pod);
                let config = config(&result, &json!({ "ingressPolicy": "same-bridge" }));
                firewall(node, "ADD", &id, &pod, &config).ok();
                firewall(node, "CHECK", &id, &pod, &config).ok();
                if worker > 1 {
                    firewall(node, "DEL", &id, &pod, &config).ok();
                }
                node.del(&id, &pod, &result);
            });
        }
    });
    let accepting = || {
        rules(&node)
            .iter()
            .filter(|rule| rule.ends_with("ACCEPT") && rule.contains("-A CNI-FORWARD"))
            .count()
    };
    assert_eq!(accepting(), 8);
    // Once each, however many came at the same time.
    for (what, times) in [
        ("-A FORWARD", 4),
        ("-A CNI-ISOLATION-STAGE-1 -i br0", 2),
        ("-j CNI-ADMIN", 2),
    ] {
        let found = rules(&node)
            .iter()
            .filter(|rule| rule.contains(what))
            .count();
        assert_eq!(found, times, "{what}");
    }
    let pod = Netns::new("pod");
    let gc = |valid: Value| {
        let config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "firewall",
            "cni.dev/valid-attachments": valid,
        });
        firewall(&node, "GC", "", &pod, &config).ok();
        firewall(&node, "STATUS", "", &pod, &config).ok();
    };
    gc(json!([{ "containerID": "w1", "ifname": "eth0" }]));
    assert_eq!(accepting(), 4);
    gc(json!([]));
    assert_eq!(accepting(), 0);
}
