//! bandwidth, as root, in namespaces of its own, beside Debian's.

mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use common::{Call, Netns, Node, Said};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";

fn config(result: &Value, limits: &Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bandwidth",
        "capabilities": { "bandwidth": true },
        "runtimeConfig": { "bandwidth": limits },
        "prevResult": result,
    })
}

fn bandwidth(node: &Node, command: &str, id: &str, pod: &Netns, config: &Value) -> Said {
    Call::new(&node.host, "bandwidth", command, id, pod).run(config)
}

/// What limits the links of the host, with `link` for the link that differs.
fn limits(node: &Node, link: &str) -> String {
    let mut shown = node
        .host
        .sh("tc qdisc show; ip -o link show type ifb | cut -d: -f2");
    for name in node.ports() {
        let filters = node
            .host
            .sh(&format!("tc filter show dev {name} parent ffff:"));
        // Debian's redirects twice, to no other effect.
        let of_one = |line: &&str| line.contains("match") || line.contains("order 1: mirred");
        shown.extend(filters.lines().filter(of_one));
    }
    shown.replace(link, "LINK")
}

#[test]
fn limits_are_those_of_debians() {
    let rates = json!({
        "ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 16_000_000, "egressBurst": 1_600_000,
    });
    let fast = json!({ "ingressRate": 80_000_000_000_u64, "ingressBurst": 2_147_483_647 });
    let out = json!({ "egressRate": 1_000_000, "egressBurst": 65_536 });
    for limited in [&rates, &fast, &out] {
        let run = |debian: bool| {
            let node = Node::new(&[V4]);
            let pod = Netns::new("pod");
            let result = node.add("pod", &pod);
            let config = config(&result, limited);
            let whose = |command, debian: bool| {
                let call = Call::new(&node.host, "bandwidth", command, "pod", &pod);
                if debian { call.debian() } else { call }
            };
            let mut said = whose("ADD", debian).run(&config).ok();
            let mut with_result = config.clone();
            with_result["prevResult"] = said.clone();
            whose("CHECK", true).run(&with_result).ok();
            whose("CHECK", false).run(&with_result).ok();
            let host_end = result["interfaces"][1]["name"].as_str().unwrap();
            let state = limits(&node, host_end);
            // Each takes down what the other put up, and is content with nothing.
            whose("DEL", !debian).run(&with_result).ok();
            whose("DEL", debian).run(&with_result).ok();
            assert_eq!(node.host.sh("ip -o link show type ifb"), "");
            for interface in said["interfaces"].as_array_mut().unwrap() {
                interface["mac"].take();
                interface["sandbox"].take();
            }
            said["interfaces"][1]["name"].take();
            if said["dns"] == json!({}) {
                said.as_object_mut().unwrap().remove("dns");
            }
            (said, state)
        };
        assert_eq!(run(false), run(true), "{limited}");
    }
}

/// How long `size` bytes take from one namespace to another.
fn transfer(from: &Netns, to: &Netns, addr: &str, size: usize) -> Duration {
    let listener = to.inside(|| TcpListener::bind((addr, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let sender = from.inside(|| TcpStream::connect(target).unwrap());
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut sender = sender;
            sender.write_all(&vec![0; size]).unwrap();
        });
        let mut received = Vec::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_end(&mut received)
            .unwrap();
        assert_eq!(received.len(), size);
    });
    start.elapsed()
}

#[test]
fn both_ways_are_slowed_down() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let result = node.add("pod", &pod);
    let into = || transfer(&node.host, &pod, "10.231.0.2", 1_000_000);
    let out = || transfer(&pod, &node.host, "10.231.0.1", 1_000_000);
    // A megabyte per second in, half of it out; a bucket of 100 kB each.
    let limited = json!({
        "ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 4_000_000, "egressBurst": 800_000,
    });
    let config = config(&result, &limited);
    bandwidth(&node, "ADD", "pod", &pod, &config).ok();
    assert!(into() > Duration::from_millis(700));
    assert!(out() > Duration::from_millis(1400));
    bandwidth(&node, "CHECK", "pod", &pod, &config).ok();
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    node.host.sh(&format!("tc qdisc del dev {host_end} root"));
    let check = bandwidth(&node, "CHECK", "pod", &pod, &config);
    check.fails(999, "is not as configured");
    assert!(into() < Duration::from_millis(700));
}

#[test]
fn wrong_use_has_its_codes() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let result = node.add("pod", &pod);
    let with = |limits: Value| bandwidth(&node, "ADD", "pod", &pod, &config(&result, &limits));
    with(json!({ "ingressRate": 8 })).fails(7, "ingressBurst is not");
    with(json!({ "egressBurst": 8 })).fails(7, "egressRate is not");
    with(json!({ "egressBurst": 8, "egressRate": 7 })).fails(7, "egressRate 7");
    with(json!({ "ingressRate": 8, "ingressBurst": 1_u64 << 36 }))
        .fails(7, "ingressBurst 68719476736");
    with(json!({ "ingressRate": "8" })).fails(6, "runtimeConfig: ");
    for key in ["shapedSubnets", "unshapedSubnets"] {
        let some = json!({ "ingressRate": 8, "ingressBurst": 8, key: ["10.0.0.0/8"] });
        with(some.clone()).fails(2, key);
        let mut fixed = config(&result, &json!({}));
        fixed[key] = some[key].clone();
        bandwidth(&node, "ADD", "pod", &pod, &fixed).fails(2, key);
    }
    with(json!({ "ingressRate": -8 })).fails(6, "runtimeConfig: ");
    // Nothing is no limit, and the configuration goes before the runtime.
    assert_eq!(with(json!({})).ok(), result);
    let mut fixed = config(&result, &json!({ "ingressRate": 8 }));
    fixed["egressRate"] = json!(8_000_000);
    fixed["egressBurst"] = json!(8_000_000);
    let added = bandwidth(&node, "ADD", "pod", &pod, &fixed).ok();
    assert_eq!(added["interfaces"].as_array().unwrap().len(), 4);
    bandwidth(&node, "ADD", "pod", &pod, &fixed).fails(999, "make bwp");
    fixed["prevResult"] = Value::Null;
    bandwidth(&node, "ADD", "pod", &pod, &fixed).fails(7, "prevResult");
    let stranger = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "other" }] });
    fixed["prevResult"] = stranger;
    bandwidth(&node, "ADD", "pod", &pod, &fixed).fails(999, "names no link of the host");
}

#[test]
fn garbage_collection_and_many_at_once() {
    let node = Node::new(&[V4]);
    let limits = json!({ "egressRate": 8_000_000, "egressBurst": 800_000 });
    thread::scope(|scope| {
        let (node, limits) = (&node, &limits);
        for worker in 0..16 {
            scope.spawn(move || {
                let (id, pod) = (format!("w{worker}"), Netns::new("pod"));
                let result = node.add(&id, &pod);
                let config = config(&result, limits);
                bandwidth(node, "ADD", &id, &pod, &config).ok();
                if worker > 1 {
                    bandwidth(node, "DEL", &id, &pod, &config).ok();
                }
                node.del(&id, &pod, &result);
            });
        }
    });
    let left = || node.host.sh("ip -o link show type ifb").lines().count();
    assert_eq!(left(), 2);
    let pod = Netns::new("pod");
    let gc = |valid: Value| {
        let config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "bandwidth",
            "cni.dev/valid-attachments": valid,
        });
        bandwidth(&node, "GC", "", &pod, &config).ok()
    };
    gc(json!([{ "containerID": "w1", "ifname": "eth0" }]));
    assert_eq!(left(), 1);
    gc(json!([]));
    assert_eq!(left(), 0);
    node.assert_clean();
}
