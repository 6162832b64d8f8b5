//! Ours beside Debian's containernetworking-plugins.

mod common;

use std::{path::Path, process::Command};

use common::{Call, DEBIAN, Netns, Node};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";
const V6: &str = "fd31::/64";

fn require_debian() {
    assert!(
        Path::new(DEBIAN).join("bridge").exists(),
        "these tests need Debian's containernetworking-plugins"
    );
}

/// Debian's plugins write an empty `dns` in every version, ours until 0.4.
fn without_dns(mut result: Value) -> Value {
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

#[test]
fn address_files_are_understood_both_ways() {
    require_debian();
    let node = Node::new(&[V4, V6]);
    let pod = Netns::new("pod");
    let ours = |command| Call::new(&node.host, "host-local", command, "one", &pod);
    let added = ours("ADD").run(&node.config).ok();
    let folder = node.data.path().join("net");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let written = (
        read("10.231.0.2"),
        read("last_reserved_ip.0"),
        read("last_reserved_ip.1"),
    );
    ours("CHECK").debian().run(&node.config).ok();
    assert!(!ours("ADD").debian().run(&node.config).ok);
    ours("DEL").debian().run(&node.config).ok();
    assert_eq!(node.addresses(), [] as [String; 0]);

    for file in ["last_reserved_ip.0", "last_reserved_ip.1"] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    let theirs = ours("ADD").debian().run(&node.config).ok();
    assert_eq!(without_dns(theirs), added);
    assert_eq!(
        (
            read("10.231.0.2"),
            read("last_reserved_ip.0"),
            read("last_reserved_ip.1")
        ),
        written
    );
    ours("CHECK").run(&node.config).ok();
    ours("ADD").run(&node.config).fails(999, "already");
    ours("DEL").run(&node.config).ok();
    assert_eq!(node.addresses(), [] as [String; 0]);
}

#[test]
fn results_of_both_bridges_have_the_same_shape_and_check_each_other() {
    require_debian();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let mut node = Node::new(&[V4, V6]);
        node.config["cniVersion"] = json!(version);
        // Theirs fails to end a masquerading that is not of its own kind.
        node.config["ipMasq"] = json!(false);
        // Without a gateway their CHECK would not find the route that their own ADD made.
        node.config["ipam"]["routes"] = json!([{ "dst": "10.7.0.0/16", "gw": "10.231.0.1" }]);
        let (a, b) = (Netns::new("a"), Netns::new("b"));
        let theirs = node.call("ADD", "a", &a).debian().run(&node.config).ok();
        let ours = node.add("b", &b);
        assert!(a.pings("10.231.0.3") && b.pings("fd31::2"));
        let shape = |result: &Value| {
            let mut result = without_dns(result.clone());
            for interface in result["interfaces"].as_array_mut().unwrap() {
                interface["mac"].take();
                interface["sandbox"].take();
            }
            result["interfaces"][1]["name"].take();
            for ip in result["ips"].as_array_mut().unwrap() {
                ip["address"].take();
            }
            result
        };
        assert_eq!(shape(&theirs), shape(&ours));
        if version != "0.3.1" {
            node.call("CHECK", "b", &b)
                .debian()
                .run(&node.with_prev(&ours))
                .ok();
            node.call("CHECK", "a", &a)
                .run(&node.with_prev(&theirs))
                .ok();
        }
        // Each takes down what the other put up.
        node.call("DEL", "b", &b)
            .debian()
            .run(&node.with_prev(&ours))
            .ok();
        node.del("a", &a, &theirs);
        assert_eq!(node.addresses(), [] as [String; 0]);
        assert_eq!(node.ports(), [] as [String; 0]);
    }
}

#[test]
fn debians_host_local_serves_our_bridge() {
    require_debian();
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let call = |command| {
        let mut call = node.call(command, "one", &pod);
        call.path = DEBIAN.into();
        call
    };
    let result = call("ADD").run(&node.config).ok();
    assert!(pod.pings("10.231.0.1"));
    call("CHECK").run(&node.with_prev(&result)).ok();
    call("DEL").run(&node.with_prev(&result)).ok();
    node.assert_clean();
}

#[test]
fn debians_portmap_goes_on_from_our_result() {
    require_debian();
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let result = node.add("one", &pod);
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "portmap",
        "runtimeConfig": { "portMappings": [{ "hostPort": 8081, "containerPort": 80, "protocol": "tcp" }] },
        "prevResult": result,
    });
    let portmap = |command| {
        Call::new(&node.host, "portmap", command, "one", &pod)
            .debian()
            .run(&config)
    };
    assert_eq!(portmap("ADD").ok()["ips"], result["ips"]);

    let world = Netns::new("world");
    node.host.sh(&format!(
        "ip link add world type veth peer name host netns {}",
        world.name
    ));
    node.host
        .sh("ip addr add 192.0.2.1/24 dev world; ip link set world up; ip link set lo up");
    world.sh("ip addr add 192.0.2.2/24 dev host; ip link set host up");
    let mut server = Command::new("ip")
        .args(["netns", "exec", &pod.name])
        .args([
            "busybox",
            "nc",
            "-ll",
            "-p",
            "80",
            "-e",
            "/bin/echo",
            "hello",
        ])
        .spawn()
        .unwrap();
    let reached = (0..50).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        world.succeeds("busybox nc -w 1 192.0.2.1 8081 < /dev/null | grep hello")
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(reached);
    portmap("DEL").ok();
    node.del("one", &pod, &result);
    assert_eq!(node.ports(), [] as [String; 0]);
    assert!(!node.rules().contains("carpel-masq") && !node.rules().contains("8081"));
}
