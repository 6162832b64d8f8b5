//! ptp, as root, in namespaces of its own, beside Debian's.

mod common;

use std::thread;

use common::{
    Call, Netns, Node,
    net::{Server, addresses_and_routes, world},
};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";
const V6: &str = "fd31::/64";

fn node(subnets: &[&str]) -> Node {
    let mut node = Node::new(subnets);
    node.config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "ptp", "ipMasq": true,
        "ipam": node.config["ipam"],
    });
    node.config["ipam"]["routes"] = subnets
        .iter()
        .map(|subnet| json!({ "dst": if subnet.contains('.') { "0.0.0.0/0" } else { "::/0" } }))
        .collect();
    node.host.sh("ip link set lo up");
    node
}

fn call<'a>(node: &'a Node, command: &'a str, id: &'a str, pod: &Netns) -> Call<'a> {
    Call::new(&node.host, "ptp", command, id, pod)
}

fn del(node: &Node, id: &str, pod: &Netns, result: &Value) {
    call(node, "DEL", id, pod).run(&node.with_prev(result)).ok();
}

#[test]
fn results_and_routes_are_those_of_debians() {
    let v4: &[&str] = &[V4];
    for (version, subnets, options) in [
        ("0.3.1", v4, json!({})),
        ("0.4.0", &[V6], json!({ "mtu": 1400 })),
        (
            "1.0.0",
            &[V4, V6],
            json!({ "dns": { "nameservers": ["10.0.0.53"] } }),
        ),
        ("1.0.0", &[V4, V6], json!({ "ipMasq": false })),
    ] {
        let run = |debian: bool| {
            let mut node = node(subnets);
            node.config["cniVersion"] = json!(version);
            for (key, value) in options.as_object().unwrap() {
                node.config[key] = value.clone();
            }
            let pod = Netns::new("pod");
            let whose = |command| {
                let call = call(&node, command, "pod", &pod);
                if debian { call.debian() } else { call }
            };
            let mut result = whose("ADD").run(&node.config).ok();
            if version != "0.3.1" {
                let config = node.with_prev(&result);
                // Each checks what the other made.
                let mut other = call(&node, "CHECK", "pod", &pod);
                if !debian {
                    other = other.debian();
                }
                other.run(&config).ok();
                whose("CHECK").run(&config).ok();
            }
            let host_end = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
            let mtu = pod.json("ip -j link show eth0")[0]["mtu"].clone();
            let state = (
                addresses_and_routes(&node.host, &host_end),
                addresses_and_routes(&pod, "eth0"),
                mtu,
            );
            // Masquerading is of another kind; all else the other takes down.
            let mut config = node.with_prev(&result);
            config["ipMasq"] = json!(false);
            let mut other = call(&node, "DEL", "pod", &pod);
            if !debian {
                other = other.debian();
            }
            other.run(&config).ok();
            whose("DEL").run(&node.with_prev(&result)).ok();
            assert_eq!((node.addresses(), node.ports()), (vec![], vec![]));
            if result["dns"] == json!({}) {
                result.as_object_mut().unwrap().remove("dns");
            }
            for interface in result["interfaces"].as_array_mut().unwrap() {
                interface["mac"].take();
                interface["sandbox"].take();
            }
            result["interfaces"][0]["name"].take();
            (result, state)
        };
        assert_eq!(run(false), run(true), "{version} {options}");
    }
}

#[test]
fn pods_reach_each_other_and_the_world_and_have_ports() {
    let node = node(&[V4, V6]);
    let world = world(&node.host);
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let result_a = call(&node, "ADD", "a", &a).run(&node.config).ok();
    let result_b = call(&node, "ADD", "b", &b).run(&node.config).ok();
    for (netns, addr) in [(&a, "fd31::3"), (&b, "fd31::2"), (&world, "2001:db8::1")] {
        assert!((0..5).any(|_| netns.pings(addr)), "{addr}");
    }
    let _servers = (Server::tcp(&a, "a", 80), Server::tcp(&world, "world", 80));
    assert_eq!(b.tcp("10.231.0.2:80").unwrap(), "a 10.231.0.3");
    assert_eq!(b.tcp("[fd31::2]:80").unwrap(), "a fd31::3");
    assert_eq!(b.tcp("192.0.2.2:80").unwrap(), "world 192.0.2.1");
    assert_eq!(b.tcp("[2001:db8::2]:80").unwrap(), "world 2001:db8::1");

    let ports = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "portmap", "prevResult": result_a,
        "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
    });
    let portmap = |command| Call::new(&node.host, "portmap", command, "a", &a).run(&ports);
    portmap("ADD").ok();
    assert_eq!(world.tcp("192.0.2.1:8080").unwrap(), "a 192.0.2.2");
    assert_eq!(node.host.tcp("127.0.0.1:8080").unwrap(), "a 10.231.0.1");
    assert_eq!(b.tcp("192.0.2.1:8080").unwrap(), "a 10.231.0.1");
    assert_eq!(a.tcp("[2001:db8::1]:8080").unwrap(), "a fd31::1");
    portmap("DEL").ok();

    del(&node, "a", &a, &result_a);
    assert!(b.tcp("192.0.2.2:80").is_ok());
    del(&node, "b", &b, &result_b);
    node.assert_clean();
}

#[test]
fn a_failed_add_leaves_nothing_and_del_needs_nothing() {
    let node = node(&[V4]);
    let pod = Netns::new("pod");
    pod.sh("ip link add eth0 type bridge");
    let add = |config: &Value| call(&node, "ADD", "one", &pod).run(config);
    add(&node.config).fails(999, "has a link eth0 already");
    node.assert_clean();
    pod.sh("ip link del eth0");
    let mut config = node.config.clone();
    config["ipam"]["routes"] = json!([{ "dst": "10.99.0.0/16", "gw": "172.16.0.1" }]);
    add(&config).fails(999, "route to 10.99.0.0/16 via 172.16.0.1");
    node.assert_clean();
    assert!(!pod.succeeds("ip link show eth0"));
    for netns in ["", "/run/netns/carpel-cni-none"] {
        let mut call = call(&node, "DEL", "one", &pod);
        call.netns = netns.into();
        call.run(&node.config).ok();
        // With the namespace not named any more, the host's end is found by its label.
        call.netns = pod.path();
        add(&node.config).ok();
        call.netns = netns.into();
        call.run(&node.config).ok();
        node.assert_clean();
    }
}

#[test]
fn wrong_use_has_its_codes() {
    let node = node(&[V4]);
    let pod = Netns::new("pod");
    let with = |key: &str, value: Value| {
        let mut config = node.config.clone();
        config[key] = value;
        call(&node, "ADD", "one", &pod).run(&config)
    };
    with("mtu", json!(-1)).fails(6, "mtu: ");
    with("mtu", json!(70000)).fails(7, "mtu 70000");
    with("ipam", json!({})).fails(7, "ipam.type");
    with("ipam", json!({ "type": "none-such" })).fails(7, "none-such");
    with("ipMasqBackend", json!("pf")).fails(7, "ipMasqBackend");
    node.assert_clean();
}

#[test]
fn many_at_once_and_garbage_collection() {
    let mut node = node(&[V4, V6]);
    node.config["cniVersion"] = json!("1.1.0");
    thread::scope(|scope| {
        let node = &node;
        for worker in 0..16 {
            scope.spawn(move || {
                let id = format!("w{worker}");
                for round in 0..2 {
                    let pod = Netns::new("pod");
                    let result = call(node, "ADD", &id, &pod).run(&node.config).ok();
                    call(node, "CHECK", &id, &pod)
                        .run(&node.with_prev(&result))
                        .ok();
                    if worker > 1 || round == 0 {
                        del(node, &id, &pod, &result);
                    }
                }
            });
        }
    });
    // Two are left without a DEL, one with its links gone.
    assert_eq!(node.addresses().len(), 4);
    let pod = Netns::new("pod");
    call(&node, "ADD", "stays", &pod).run(&node.config).ok();
    let gc = |valid: Value| {
        let mut config = node.config.clone();
        config["cni.dev/valid-attachments"] = valid;
        call(&node, "GC", "", &pod).run(&config).ok()
    };
    gc(json!([{ "containerID": "stays", "ifname": "eth0" }]));
    assert_eq!((node.addresses().len(), node.ports().len()), (2, 1));
    call(&node, "STATUS", "", &pod).run(&node.config).ok();
    gc(json!([]));
    node.assert_clean();
}
