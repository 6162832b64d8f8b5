//! macvlan and host-device, as root, in namespaces of their own, beside Debian's.

mod common;

use std::thread;

use common::{
    Call, Netns, Node,
    net::{Server, addresses_and_routes},
};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";
const V6: &str = "fd31::/64";

/// A host with a link `ext0` to a neighbour that has the gateways' addresses.
struct Lan {
    node: Node,
    neighbour: Netns,
}

impl Lan {
    fn new(kind: &str, subnets: &[&str], options: &Value) -> Lan {
        let mut node = Node::new(subnets);
        node.config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": kind, "ipam": node.config["ipam"],
        });
        node.config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
        if subnets.is_empty() {
            node.config.as_object_mut().unwrap().remove("ipam");
        }
        for (key, value) in options.as_object().unwrap() {
            node.config[key] = value.clone();
        }
        let neighbour = Netns::new("neighbour");
        let peer = &neighbour.name;
        node.host.sh(&format!(
            "ip link add ext0 address 02:00:5e:00:00:77 type veth peer name ext1 netns {peer}; \
             ip link set ext0 up; ip route add default dev ext0"
        ));
        neighbour.sh("ip addr add 10.231.0.1/24 dev ext1; ip addr add fd31::1/64 dev ext1 nodad");
        neighbour.sh("ip link set ext1 up");
        Lan { node, neighbour }
    }

    fn call<'a>(&'a self, debian: bool, command: &'a str, id: &'a str, pod: &Netns) -> Call<'a> {
        let name = self.node.config["type"].as_str().unwrap();
        let call = Call::new(&self.node.host, name, command, id, pod);
        if debian { call.debian() } else { call }
    }
}

/// A result without what differs from run to run.
fn shape(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().unwrap() {
        interface["sandbox"].take();
        interface["mac"].take();
    }
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

#[test]
fn links_are_those_of_debians() {
    let dns = json!({ "nameservers": ["10.0.0.53"] });
    let two: &[&str] = &[V4, V6];
    for (kind, subnets, options) in [
        ("macvlan", two, json!({ "master": "ext0" })),
        (
            "macvlan",
            &[V4],
            json!({ "mode": "vepa", "mtu": 1400, "dns": dns }),
        ),
        (
            "macvlan",
            &[V6],
            json!({ "cniVersion": "0.3.1", "mode": "private", "ipam_routes": null }),
        ),
        (
            "macvlan",
            &[],
            json!({ "master": "ext0", "mode": "passthru" }),
        ),
        (
            "macvlan",
            two,
            json!({ "master": "ext0", "runtimeConfig": { "mac": "02:00:5e:00:00:09" } }),
        ),
        ("host-device", two, json!({ "device": "ext0" })),
        (
            "host-device",
            &[V4],
            json!({ "hwaddr": "02:00:5e:00:00:77", "dns": dns }),
        ),
        (
            "host-device",
            &[],
            json!({ "device": "ext0", "cniVersion": "0.4.0" }),
        ),
    ] {
        let run = |debian: bool| {
            let mut lan = Lan::new(kind, subnets, &options);
            if subnets == [V6] {
                lan.node.config["ipam"]["routes"] = json!([{ "dst": "::/0" }]);
            }
            let config = &lan.node.config;
            let pod = Netns::new("pod");
            let result = lan.call(debian, "ADD", "pod", &pod).run(config).ok();
            let link = &pod.json("ip -j -d link show eth0")[0];
            assert_eq!(link["address"], result["interfaces"][0]["mac"], "{options}");
            let with_prev = lan.node.with_prev(&result);
            if config["cniVersion"] != "0.3.1" {
                lan.call(true, "CHECK", "pod", &pod).run(&with_prev).ok();
                lan.call(false, "CHECK", "pod", &pod).run(&with_prev).ok();
            }
            let state = (
                addresses_and_routes(&pod, "eth0"),
                link["mtu"].clone(),
                link["ifalias"].clone(),
                link["linkinfo"]["info_data"]["mode"].clone(),
                link["operstate"].clone(),
            );
            // Each takes down what the other put up.
            lan.call(!debian, "DEL", "pod", &pod).run(&with_prev).ok();
            assert!(!pod.succeeds("ip link show eth0"));
            let back = &lan.node.host.json("ip -j link show ext0")[0];
            assert_eq!(back["address"], "02:00:5e:00:00:77");
            // Debian's leaves its note there.
            assert!(!debian || back.get("ifalias").is_none());
            assert_eq!(lan.node.addresses(), [] as [String; 0]);
            lan.call(false, "DEL", "pod", &pod).run(&with_prev).ok();
            (shape(result), state)
        };
        assert_eq!(run(false), run(true), "{kind} {options}");
    }
}

#[test]
fn pods_reach_each_other_and_the_neighbour() {
    // The host's own link has the name that the pods' links get.
    let lan = Lan::new("macvlan", &[V4, V6], &json!({ "master": "ext0" }));
    lan.node.host.sh("ip link add eth0 type bridge");
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    lan.call(false, "ADD", "a", &a).run(&lan.node.config).ok();
    let result = lan.call(false, "ADD", "b", &b).run(&lan.node.config).ok();
    let _servers = (
        Server::tcp(&a, "a", 80),
        Server::tcp(&lan.neighbour, "neighbour", 80),
    );
    assert_eq!(b.tcp("10.231.0.2:80").unwrap(), "a 10.231.0.3");
    assert_eq!(b.tcp("[fd31::2]:80").unwrap(), "a fd31::3");
    assert_eq!(b.tcp("10.231.0.1:80").unwrap(), "neighbour 10.231.0.3");
    // A second one for a container that has its link, takes nothing away.
    let again = lan.call(false, "ADD", "b", &b).run(&lan.node.config);
    again.fails(999, "has a link eth0 already");
    lan.call(false, "CHECK", "b", &b)
        .run(&lan.node.with_prev(&result))
        .ok();
}

#[test]
fn a_link_in_the_container_can_be_shared_there() {
    let options = json!({ "master": "up0", "linkInContainer": true, "bcqueuelen": 200 });
    let lan = Lan::new("macvlan", &[V4], &options);
    let pod = Netns::new("pod");
    pod.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
    let result = lan
        .call(false, "ADD", "pod", &pod)
        .run(&lan.node.config)
        .ok();
    let link = &pod.json("ip -j -d link show eth0")[0];
    assert_eq!(link["link"], "up0");
    assert_eq!(link["linkinfo"]["info_data"]["bcqueuelen"], 200);
    lan.call(false, "CHECK", "pod", &pod)
        .run(&lan.node.with_prev(&result))
        .ok();
    lan.call(false, "DEL", "pod", &pod)
        .run(&lan.node.with_prev(&result))
        .ok();
    assert!(!pod.succeeds("ip link show eth0"));
}

#[test]
fn what_fails_is_undone() {
    for kind in ["macvlan", "host-device"] {
        let lan = Lan::new(kind, &[V4], &json!({ "master": "ext0", "device": "ext0" }));
        let pod = Netns::new("pod");
        let mut config = lan.node.config.clone();
        config["ipam"]["routes"] = json!([{ "dst": "10.99.0.0/16", "gw": "172.16.0.1" }]);
        let refused = lan.call(false, "ADD", "pod", &pod).run(&config);
        refused.fails(999, "route to 10.99.0.0/16");
        let home = || {
            assert!(!pod.succeeds("ip link show eth0"));
            assert_eq!(lan.node.addresses(), [] as [String; 0]);
            let shown = &lan.node.host.json("ip -j link show ext0")[0];
            assert_eq!(shown.get("ifalias"), None);
        };
        home();
        // The container has a link of the name already: nothing moves.
        pod.sh("ip link add eth0 type bridge");
        let refused = lan.call(false, "ADD", "pod", &pod).run(&lan.node.config);
        refused.fails(999, "has a link eth0 already");
        pod.sh("ip link del eth0");
        home();
        // One of the machine's name does not matter.
        pod.sh("ip link add ext0 type bridge");
        lan.call(false, "ADD", "pod", &pod)
            .run(&lan.node.config)
            .ok();
        lan.call(false, "DEL", "pod", &pod)
            .run(&lan.node.config)
            .ok();
        home();
        let mut gone = lan.call(false, "DEL", "pod", &pod);
        gone.netns = String::new();
        gone.run(&lan.node.config).ok();
    }
    // The old name is taken meanwhile: the link stays, and the error says so.
    let lan = Lan::new("host-device", &[], &json!({ "device": "ext0" }));
    let pod = Netns::new("pod");
    lan.call(false, "ADD", "pod", &pod)
        .run(&lan.node.config)
        .ok();
    lan.node.host.sh("ip link add ext0 type bridge");
    let refused = lan.call(false, "DEL", "pod", &pod).run(&lan.node.config);
    refused.fails(999, "ext0 is there already");
    lan.node.host.sh("ip link del ext0");
    lan.call(false, "DEL", "pod", &pod)
        .run(&lan.node.config)
        .ok();
    assert!(lan.node.host.succeeds("ip link show ext0"));
}

#[test]
fn wrong_use_has_its_codes() {
    let lan = Lan::new("macvlan", &[V4], &json!({}));
    let pod = Netns::new("pod");
    let with = |kind: &str, key: &str, value: Value| {
        let mut config = lan.node.config.clone();
        config[key] = value;
        Call::new(&lan.node.host, kind, "ADD", "pod", &pod).run(&config)
    };
    with("macvlan", "mode", json!("none")).fails(7, "unknown mode");
    with("macvlan", "master", json!("eth9")).fails(7, "master eth9");
    with("macvlan", "mtu", json!(9000)).fails(7, "mtu 9000 is above");
    with("macvlan", "mtu", json!(-1)).fails(6, "mtu: ");
    with("macvlan", "mac", json!("x")).fails(7, "mac");
    lan.node.host.sh("ip route del default");
    with("macvlan", "mtu", json!(0)).fails(7, "no master");
    with("host-device", "master", json!("x")).fails(7, "none of device, hwaddr");
    with("host-device", "device", json!("eth9")).fails(999, "no device eth9");
    with("host-device", "hwaddr", json!("x")).fails(7, "hwaddr");
    with("host-device", "kernelpath", json!("/sys/class/net")).fails(7, "kernelpath");
    with("host-device", "pciBusID", json!("../0000")).fails(7, "pciBusID");
    with("host-device", "pciBusID", json!("0000:99:00.0")).fails(7, "pciBusID 0000:99:00.0");
    with(
        "host-device",
        "runtimeConfig",
        json!({ "deviceID": "none" }),
    )
    .fails(7, "deviceID none");
    assert_eq!(lan.node.addresses(), [] as [String; 0]);
    let status = |master: &str| {
        let mut config = lan.node.config.clone();
        config["cniVersion"] = json!("1.1.0");
        config["master"] = json!(master);
        lan.call(false, "STATUS", "", &pod).run(&config)
    };
    status("ext0").ok();
    status("eth9").fails(50, "master eth9");
}

#[test]
fn many_at_once_leave_nothing() {
    let lan = Lan::new("macvlan", &[V4, V6], &json!({ "master": "ext0" }));
    thread::scope(|scope| {
        let lan = &lan;
        for worker in 0..16 {
            scope.spawn(move || {
                let id = format!("w{worker}");
                for _ in 0..2 {
                    let pod = Netns::new("pod");
                    let result = lan.call(false, "ADD", &id, &pod).run(&lan.node.config).ok();
                    let config = lan.node.with_prev(&result);
                    lan.call(false, "CHECK", &id, &pod).run(&config).ok();
                    lan.call(false, "DEL", &id, &pod).run(&config).ok();
                    assert!(!pod.succeeds("ip link show eth0"));
                }
            });
        }
    });
    assert_eq!(lan.node.addresses(), [] as [String; 0]);
}

/// As carpel moves network devices of containers.
#[test]
fn a_link_takes_its_addresses_along_and_brings_them_back() {
    let options = json!({ "device": "ext0", "keepAddresses": true, "up": true });
    let lan = Lan::new("host-device", &[], &options);
    lan.node
        .host
        .sh("ip addr add 10.231.0.9/24 dev ext0; ip addr add fd31::9/64 dev ext0 nodad");
    let config = &lan.node.config;
    let pod = Netns::new("pod");
    let addresses = |netns: &Netns, link: &str| {
        let lines = netns.sh(&format!("ip -o addr show dev {link} scope global"));
        let words = lines
            .lines()
            .map(|line| line.split_whitespace().nth(3).unwrap().to_owned());
        words.collect::<Vec<_>>()
    };
    let both = ["10.231.0.9/24", "fd31::9/64"];
    assert_eq!(addresses(&lan.node.host, "ext0"), both);
    let mut add = lan.call(false, "ADD", "one", &pod);
    add.interface = "data";
    add.run(config).ok();
    assert!(!lan.node.host.succeeds("ip link show ext0"));
    assert_eq!(addresses(&pod, "data"), both);
    assert!(pod.pings("10.231.0.1"));
    // Once more is no error, and changes nothing.
    let mut again = lan.call(false, "ADD", "one", &pod);
    again.interface = "data";
    again.run(config).ok();
    assert_eq!(addresses(&pod, "data"), both);
    for _ in 0..2 {
        let mut del = lan.call(false, "DEL", "one", &pod);
        del.interface = "data";
        del.run(config).ok();
        assert_eq!(addresses(&lan.node.host, "ext0"), both);
        let link = &lan.node.host.json("ip -j link show ext0")[0];
        assert!(
            link["flags"].as_array().unwrap().contains(&json!("UP")),
            "{link}"
        );
        assert_eq!(link.get("ifalias"), None);
    }
    // A move that cannot be ended is taken back whole: the name is taken.
    pod.sh("ip link add data type veth peer name other");
    let mut third = lan.call(false, "ADD", "three", &pod);
    third.interface = "data";
    third.run(config).fails(999, "has a link data already");
    assert_eq!(addresses(&lan.node.host, "ext0"), both);
}
