//! tuning and static, as root, in namespaces of their own, beside Debian's.

mod common;

use common::{Call, Netns, Node, Said, sh};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";

fn config(node: &Node, result: &Value, settings: &Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "tuning",
        "dataDir": node.data.path().join("tuning"),
        "prevResult": result,
    });
    for (key, value) in settings.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn tuning(node: &Node, command: &str, pod: &Netns, config: &Value) -> Said {
    Call::new(&node.host, "tuning", command, "pod", pod).run(config)
}

/// What tuning can change.
fn state(pod: &Netns) -> Value {
    let link = &pod.json("ip -j -d link show eth0")[0];
    let flags = link["flags"].as_array().unwrap();
    json!([
        link["address"],
        link["mtu"],
        link["promiscuity"],
        link["txqlen"],
        flags.contains(&json!("ALLMULTI")),
        pod.sh("cat /proc/sys/net/ipv4/conf/eth0/arp_filter /proc/sys/net/core/somaxconn")
            .trim(),
    ])
}

fn files(node: &Node) -> usize {
    std::fs::read_dir(node.data.path().join("tuning")).map_or(0, Iterator::count)
}

#[test]
fn settings_are_made_and_unmade_as_by_debians() {
    let mac = json!({ "mac": "02:00:5e:00:00:09" });
    for settings in [
        json!({ "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1", "net/core/somaxconn": "500" } }),
        json!({ "mac": "02:00:5e:00:00:07", "mtu": 1300, "promisc": true, "allmulti": true }),
        json!({ "mac": "02:00:5e:00:00:07", "runtimeConfig": mac }),
        json!({ "mtu": 1300, "sysctl": {}, "args": { "cni": { "mtu": 1200, "allmulti": true } } }),
        json!({ "promisc": true, "allmulti": false, "args": { "cni": mac } }),
    ] {
        // First who adds, then who removes.
        let run = |debian: bool, removes: bool| {
            let mut node = Node::new(&[V4]);
            node.config["runtimeConfig"] = json!({ "mac": "02:00:5e:00:00:01" });
            let pod = Netns::new("pod");
            let result = node.add("pod", &pod);
            let mut config = config(&node, &result, &settings);
            let whose = |command, debian: bool| {
                let call = Call::new(&node.host, "tuning", command, "pod", &pod);
                if debian { call.debian() } else { call }
            };
            let before = state(&pod);
            let mut said = whose("ADD", debian).run(&config).ok();
            config["prevResult"] = said.clone();
            whose("CHECK", true).run(&config).ok();
            whose("CHECK", false).run(&config).ok();
            let tuned = state(&pod);
            whose("DEL", removes).run(&config).ok();
            assert_eq!(files(&node), 0);
            let mut after = state(&pod);
            // Sysctls go with the namespace.
            after[5] = before[5].clone();
            assert_eq!(after, before, "{settings}");
            whose("DEL", removes).run(&config).ok();
            for interface in said["interfaces"].as_array_mut().unwrap() {
                interface["sandbox"].take();
            }
            said["interfaces"][0]["mac"].take();
            said["interfaces"][1]["mac"].take();
            said["interfaces"][1]["name"].take();
            if said["dns"] == json!({}) {
                said.as_object_mut().unwrap().remove("dns");
            }
            (said, tuned)
        };
        let theirs = run(true, true);
        assert_eq!(run(false, false), theirs, "{settings}");
        assert_eq!(run(false, true), theirs, "{settings}");
        assert_eq!(run(true, false), theirs, "{settings}");
    }
}

#[test]
fn what_fails_is_undone_and_nothing_is_left() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let result = node.add("pod", &pod);
    let before = state(&pod);
    // The mtu is more than a pair of links takes, after the hardware address was set.
    let bad = config(
        &node,
        &result,
        &json!({ "mac": "02:00:5e:00:00:07", "mtu": 20 }),
    );
    tuning(&node, "ADD", &pod, &bad).fails(999, "set mtu of eth0");
    assert_eq!((state(&pod), files(&node)), (before.clone(), 0));

    let queue = config(&node, &result, &json!({ "txQLen": 77 }));
    tuning(&node, "ADD", &pod, &queue).ok();
    assert_eq!(state(&pod)[3], 77);
    pod.sh("ip link set eth0 txqueuelen 78");
    tuning(&node, "CHECK", &pod, &queue).fails(999, "txQLen of eth0 is 78, not 77");
    // A second ADD does not forget what was before the first.
    tuning(&node, "ADD", &pod, &queue).ok();
    tuning(&node, "DEL", &pod, &queue).ok();
    assert_eq!((state(&pod), files(&node)), (before, 0));

    // With the namespace gone, what was noted goes, too.
    tuning(&node, "ADD", &pod, &queue).ok();
    let mut call = Call::new(&node.host, "tuning", "DEL", "pod", &pod);
    call.netns = String::new();
    call.run(&queue).ok();
    assert_eq!(files(&node), 0);
    tuning(&node, "ADD", &pod, &queue).ok();
    let mut gc = queue.clone();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "pod", "ifname": "eth0" }]);
    tuning(&node, "GC", &pod, &gc).ok();
    assert_eq!(files(&node), 1);
    gc["cni.dev/valid-attachments"] = json!([]);
    gc["name"] = json!("other");
    tuning(&node, "GC", &pod, &gc).ok();
    assert_eq!(files(&node), 1);
    gc["name"] = json!("net");
    tuning(&node, "GC", &pod, &gc).ok();
    assert_eq!(files(&node), 0);
}

#[test]
fn wrong_use_has_its_codes() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let result = node.add("pod", &pod);
    let with = |settings: Value| tuning(&node, "ADD", &pod, &config(&node, &result, &settings));
    with(json!({ "sysctl": { "kernel.hostname": "x" } })).fails(7, "kernel.hostname");
    with(json!({ "sysctl": { "net.ipv4.none": "1" } })).fails(999, "net.ipv4.none");
    with(json!({ "sysctl": { "net.ipv4.none": 1 } })).fails(6, "sysctl: ");
    with(json!({ "mac": "x" })).fails(7, "mac");
    with(json!({ "mtu": 70000 })).fails(7, "mtu 70000");
    with(json!({ "mtu": "1" })).fails(6, "mtu: ");
    with(json!({ "prevResult": null })).fails(7, "prevResult");
    let twice = r#"{"cniVersion":"1.0.0","name":"net","sysctl":{"net.a":"1","net.a":"2"}}"#;
    let call = Call::new(&node.host, "tuning", "ADD", "pod", &pod);
    call.run_text(twice).fails(6, "net.a is there twice");
}

#[test]
fn the_allowlist_says_which_sysctls_may_be_set() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let result = node.add("pod", &pod);
    let add = |key: &str| {
        let config = config(&node, &result, &json!({ "sysctl": { key: "1" } }));
        // In a mount namespace with a list of its own.
        let file = node.data.path().join("config");
        std::fs::write(&file, config.to_string()).unwrap();
        sh(&format!(
            "unshare --mount sh -ec 'mount -t tmpfs none /etc; mkdir -p /etc/cni/tuning; \
             echo \"^net\\.ipv4\\.conf\\.IFNAME\\.\" > /etc/cni/tuning/allowlist.conf; \
             CNI_COMMAND=ADD CNI_CONTAINERID=pod CNI_NETNS={} CNI_IFNAME=eth0 CNI_PATH=/x \
             CARPEL_CNI_PLUGIN=tuning {} < {} || true'",
            pod.path(),
            common::BINARY,
            file.display()
        ))
    };
    let refused = add("net.core.somaxconn");
    assert!(
        refused.contains("net.core.somaxconn is not allowed"),
        "{refused}"
    );
    let allowed = add("net.ipv4.conf.IFNAME.arp_filter");
    assert!(allowed.contains("\"ips\""), "{allowed}");
}

#[test]
fn static_addresses_are_those_of_debians() {
    let pod = Netns::new("pod");
    let host = Netns::new("host");
    let both = json!([
        { "address": "10.10.0.1/24", "gateway": "10.10.0.254" },
        { "address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1" },
    ]);
    let dns = json!({ "nameservers": ["1.1.1.1"], "search": ["a.b"] });
    let routes = json!([{ "dst": "0.0.0.0/0" }, { "dst": "192.168.0.0/16", "gw": "10.10.5.1" }]);
    for (more, args) in [
        (
            json!({ "ipam": { "type": "static", "addresses": both, "dns": dns, "routes": routes } }),
            "",
        ),
        (
            json!({ "ipam": { "type": "static", "addresses": both }, "args": { "cni": { "ips": ["10.1.0.1/8"] } } }),
            "",
        ),
        (
            json!({ "ipam": { "type": "static", "addresses": both }, "runtimeConfig": { "ips": ["10.1.0.2/8", "fd00::1/64"] } }),
            "",
        ),
        (
            json!({ "ipam": { "type": "static" } }),
            "IP=10.10.0.1/24,11.11.0.1/24;GATEWAY=10.10.0.254",
        ),
    ] {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let mut config = json!({ "cniVersion": version, "name": "net" });
            for (key, value) in more.as_object().unwrap() {
                config[key] = value.clone();
            }
            let run = |debian: bool| {
                let mut call = Call::new(&host, "static", "ADD", "pod", &pod);
                call.args = args;
                let call = if debian { call.debian() } else { call };
                let mut said = call.run(&config).ok();
                if said["dns"] == json!({}) {
                    said.as_object_mut().unwrap().remove("dns");
                }
                said
            };
            let ours = run(false);
            assert_eq!(ours, run(true), "{config} {args}");
            config["prevResult"] = ours;
            if version != "0.3.1" {
                let mut check = Call::new(&host, "static", "CHECK", "pod", &pod);
                check.args = args;
                check.run(&config).ok();
            }
            Call::new(&host, "static", "DEL", "pod", &pod)
                .run(&config)
                .ok();
        }
    }
    let wrong = |config: Value| {
        let mut config = config;
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("net");
        Call::new(&host, "static", "ADD", "pod", &pod).run(&config)
    };
    wrong(json!({})).fails(7, "ipam");
    wrong(json!({ "ipam": { "addresses": [{ "address": "10.0.0.1" }] } }))
        .fails(7, "ipam.addresses[0].address");
    wrong(json!({ "ipam": {}, "runtimeConfig": { "ips": ["x"] } })).fails(7, "runtimeConfig.ips");
    wrong(json!({ "ipam": { "addresses": [{ "address": "10.0.0.1/8", "gateway": "x" }] } }))
        .fails(6, "ipam: ");
}

#[test]
fn static_addresses_are_given_to_a_pod() {
    let mut node = Node::new(&[]);
    node.config["ipam"] = json!({
        "type": "static", "addresses": [{ "address": "10.231.0.9/24", "gateway": "10.231.0.1" }],
    });
    let pod = Netns::new("pod");
    let result = node.add("one", &pod);
    assert!(pod.pings("10.231.0.1"));
    node.call("CHECK", "one", &pod)
        .run(&node.with_prev(&result))
        .ok();
    node.del("one", &pod, &result);
    node.assert_clean();
}
