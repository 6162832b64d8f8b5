//! portmap, as root, in namespaces of its own, beside Debian's.

mod common;

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use common::{
    Call, Netns, Node, Said,
    net::{Server, ask, world},
};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";
const V6: &str = "fd31::/64";

/// A bridge network whose pods get ports.
fn node() -> Node {
    let mut node = Node::new(&[V4, V6]);
    node.config["hairpinMode"] = json!(true);
    node.host.sh("ip link set lo up");
    node
}

/// portmap's configuration after a result.
fn config(result: &Value, mappings: &Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "portmap",
        "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": mappings },
        "prevResult": result,
    })
}

fn tcp(host: u16, container: u16) -> Value {
    json!({ "hostPort": host, "containerPort": container, "protocol": "tcp" })
}

fn udp(host: u16, container: u16) -> Value {
    json!({ "hostPort": host, "containerPort": container, "protocol": "udp" })
}

fn portmap(node: &Node, command: &str, id: &str, pod: &Netns, config: &Value) -> Said {
    Call::new(&node.host, "portmap", command, id, pod).run(config)
}

/// A pod with ports.
struct Pod {
    id: &'static str,
    netns: Netns,
    result: Value,
    config: Value,
}

impl Pod {
    fn new(node: &Node, id: &'static str, mappings: Value) -> Pod {
        let netns = Netns::new(id);
        let result = node.add(id, &netns);
        let config = config(&result, &mappings);
        let said = portmap(node, "ADD", id, &netns, &config).ok();
        assert_eq!(said, result);
        netns.sh("ip link set lo up");
        Pod {
            id,
            netns,
            result,
            config,
        }
    }

    fn run(&self, node: &Node, command: &str) -> Said {
        portmap(node, command, self.id, &self.netns, &self.config)
    }

    fn del(&self, node: &Node) {
        self.run(node, "DEL").ok();
        node.del(self.id, &self.netns, &self.result);
    }
}

/// Everybody who could use a mapping of port 8080: name, where it is, which address it uses.
const CLIENTS: [(&str, &str, &str); 10] = [
    ("world", "world", "192.0.2.1:8080"),
    ("world6", "world", "[2001:db8::1]:8080"),
    ("loopback", "host", "127.0.0.1:8080"),
    ("host", "host", "192.0.2.1:8080"),
    ("host6", "host", "[2001:db8::1]:8080"),
    ("other", "other", "192.0.2.1:8080"),
    ("other by gateway", "other", "10.231.0.1:8080"),
    ("other6", "other", "[2001:db8::1]:8080"),
    ("itself", "pod", "192.0.2.1:8080"),
    ("itself6", "pod", "[2001:db8::1]:8080"),
];

/// Maps a port by our plugin or Debian's, and checks who reaches the pod and whom it sees; nobody else may.
fn check_reached(debian: bool, mapping: &Value, options: &Value, seen: &[(&str, &str)]) {
    let mut node = node();
    // The one does not remove the other's masquerading.
    node.config["ipMasq"] = json!(false);
    let world = world(&node.host);
    let (pod, other) = (Netns::new("pod"), Netns::new("other"));
    let result = node.add("pod", &pod);
    node.add("other", &other);
    for (netns, addr) in [
        (&pod, "fd31::1"),
        (&other, "fd31::2"),
        (&world, "2001:db8::1"),
    ] {
        assert!((0..5).any(|_| netns.pings(addr)), "{addr}");
    }
    let mut config = config(&result, &json!([mapping]));
    for (key, value) in options.as_object().unwrap() {
        config[key] = value.clone();
    }
    let call = |command| {
        let call = Call::new(&node.host, "portmap", command, "pod", &pod);
        if debian { call.debian() } else { call }
    };
    assert_eq!(call("ADD").run(&config).ok()["ips"], result["ips"]);
    // Debian's mixes up the families.
    if !debian {
        call("CHECK").run(&config).ok();
    }
    let _server = Server::tcp(&pod, "pod", 80);
    for (who, place, to) in CLIENTS {
        let netns = match place {
            "world" => &world,
            "host" => &node.host,
            "other" => &other,
            _ => &pod,
        };
        let case = format!("{who}, debian {debian}: {mapping} {options}");
        match seen.iter().find(|(name, _)| *name == who) {
            Some((_, source)) => {
                let answer = netns
                    .tcp(to)
                    .unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(answer, format!("pod {source}"), "{case}");
            }
            None => assert!(netns.tcp_fails(to), "{case}"),
        }
    }
    call("DEL").run(&config).ok();
    call("DEL").run(&config).ok();
    assert!(world.tcp_fails("192.0.2.1:8080"));
    if !debian {
        assert_eq!(node.rules(), "");
    }
}

const ALL: &[(&str, &str)] = &[
    ("world", "192.0.2.2"),
    ("world6", "2001:db8::2"),
    ("loopback", "10.231.0.1"),
    ("host", "192.0.2.1"),
    ("host6", "2001:db8::1"),
    ("other", "10.231.0.1"),
    ("other by gateway", "10.231.0.1"),
    ("other6", "fd31::1"),
    ("itself", "10.231.0.1"),
    ("itself6", "fd31::1"),
];

fn only(names: &[&str]) -> Vec<(&'static str, &'static str)> {
    let all = ALL.iter().copied();
    all.filter(|(name, _)| names.contains(name)).collect()
}

#[test]
fn the_same_are_led_to_the_pod_as_by_debians() {
    let everywhere = tcp(8080, 80);
    let on = |addr: &str| {
        let mut mapping = everywhere.clone();
        mapping["hostIP"] = json!(addr);
        mapping
    };
    let unchanged: Vec<_> = ALL
        .iter()
        .filter(|(who, _)| *who != "loopback" && !who.starts_with("itself"))
        .map(|&(who, source)| match who {
            "other" | "other by gateway" => (who, "10.231.0.3"),
            "other6" => (who, "fd31::3"),
            _ => (who, source),
        })
        .collect();
    let cases = [
        (everywhere.clone(), json!({}), ALL.to_vec()),
        (
            everywhere.clone(),
            json!({ "snat": false, "backend": "iptables" }),
            unchanged,
        ),
        (
            on("192.0.2.1"),
            json!({ "markMasqBit": 5 }),
            only(&["world", "host", "other", "itself"]),
        ),
        (
            on("0.0.0.0"),
            json!({}),
            only(&[
                "world",
                "loopback",
                "host",
                "other",
                "other by gateway",
                "itself",
            ]),
        ),
        (on("127.0.0.1"), json!({}), only(&["loopback"])),
        (
            on("2001:db8::1"),
            json!({}),
            only(&["world6", "host6", "other6", "itself6"]),
        ),
        (
            everywhere.clone(),
            json!({ "conditionsV4": ["-s", "192.0.2.0/24"], "conditionsV6": ["!", "-s", "2001:db8::2"] }),
            only(&["world", "host", "host6", "other6", "itself6"]),
        ),
    ];
    thread::scope(|scope| {
        for (mapping, options, seen) in &cases {
            for debian in [false, true] {
                scope.spawn(move || check_reached(debian, mapping, options, seen));
            }
        }
    });
}

#[test]
fn every_connection_can_be_masqueraded() {
    let from = |(who, _): &(&'static str, &str)| {
        (
            *who,
            if who.ends_with('6') {
                "fd31::1"
            } else {
                "10.231.0.1"
            },
        )
    };
    let seen: Vec<_> = ALL.iter().map(from).collect();
    check_reached(false, &tcp(8080, 80), &json!({ "masqAll": true }), &seen);
}

#[test]
fn udp_clients_follow_the_port_to_the_next_pod() {
    let node = node();
    let world = world(&node.host);
    let mut clients = Vec::new();
    for to in ["192.0.2.1:5353", "[2001:db8::1]:5353"] {
        clients.push(world.udp(to));
    }
    for id in ["a", "b"] {
        let pod = Pod::new(&node, id, json!([udp(5353, 53), tcp(5353, 53)]));
        assert!((0..5).any(|_| pod.netns.pings("fd31::1")));
        let _server = Server::udp(&pod.netns, id, 53);
        for (client, source) in clients.iter().zip(["192.0.2.2", "2001:db8::2"]) {
            // The same socket both times: its connection must not stick to the first pod.
            assert_eq!(ask(client).unwrap(), format!("{id} {source}"));
        }
        pod.del(&node);
        node.assert_clean();
    }
}

#[test]
fn a_port_has_one_pod() {
    let node = node();
    let first = Pod::new(&node, "first", json!([tcp(8080, 80), udp(8080, 80)]));
    let rules = node.rules();
    let second = Pod::new(&node, "second", json!([tcp(8081, 80)]));
    let taken = config(&second.result, &json!([tcp(9090, 90), tcp(8080, 80)]));
    let refused = portmap(&node, "ADD", "third", &second.netns, &taken);
    refused.fails(999, "host port 8080 tcp is taken");
    let refused = portmap(&node, "ADD", "third", &second.netns, &taken);
    refused.fails(999, "net first eth0");
    assert!(!node.rules().contains("9090"));
    portmap(&node, "DEL", "third", &second.netns, &taken).ok();
    first.run(&node, "CHECK").ok();

    // Again for the same pod, to another port.
    let _server = Server::tcp(&first.netns, "first", 82);
    let again = config(&first.result, &json!([tcp(8080, 82)]));
    portmap(&node, "ADD", "first", &first.netns, &again).ok();
    assert_eq!(node.host.tcp("127.0.0.1:8080").unwrap(), "first 10.231.0.1");
    first.run(&node, "CHECK").fails(999, "host port 8080 tcp");
    portmap(&node, "CHECK", "first", &first.netns, &again).ok();
    second.del(&node);
    // A port on one address stands beside the same port on all.
    let mut mapping = tcp(8080, 80);
    mapping["hostIP"] = json!("127.0.0.1");
    let third = Pod::new(&node, "third", json!([mapping]));
    let _other = Server::tcp(&third.netns, "third", 80);
    assert_eq!(node.host.tcp("127.0.0.1:8080").unwrap(), "third 10.231.0.1");
    third.del(&node);
    assert!(
        rules.contains("comment \"carpel-cni net first eth0\""),
        "{rules}"
    );
    first.del(&node);
    node.assert_clean();
}

#[test]
fn the_rules_can_be_listed_and_loaded_again() {
    let node = node();
    let sctp =
        json!({ "hostPort": 99, "containerPort": 98, "protocol": "SCTP", "hostIP": "192.0.2.1" });
    let pod = Pod::new(&node, "pod", json!([tcp(8080, 80), sctp]));
    let rules = node.rules();
    for expected in [
        "tcp . 8080 comment \"carpel-cni net pod eth0\" : 10.231.0.2 . 80",
        "192.0.2.1 . sctp . 99 comment \"carpel-cni net pod eth0\" : 10.231.0.2 . 98",
        "tcp . 8080 comment \"carpel-cni net pod eth0\" : fd31::2 . 80",
        "fib daddr type local",
        "10.231.0.0 . 10.231.0.0",
    ] {
        assert!(rules.contains(expected), "{expected}: {rules}");
    }
    let loopback = node
        .host
        .sh("cat /proc/sys/net/ipv4/conf/br0/route_localnet");
    assert_eq!(loopback.trim(), "1");
    // All rules lost: the pod still goes.
    node.host.sh("nft flush ruleset");
    pod.run(&node, "CHECK").fails(999, "host port 8080 tcp");
    pod.del(&node);
    node.assert_clean();
}

/// What the machine serves to itself is not the pods', though connections from 127.0.0.1 are led to them.
#[test]
fn a_pod_does_not_reach_the_machines_loopback() {
    let node = node();
    let pod = Pod::new(&node, "pod", json!([tcp(8080, 80)]));
    let _pods = Server::tcp(&pod.netns, "pod", 80);
    pod.netns.sh(
        "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local; \
         echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; \
         ip route add 127.0.0.0/8 via 10.231.0.1",
    );
    let server = node
        .host
        .inside(|| UdpSocket::bind("127.0.0.1:9090").unwrap());
    server
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let arrives = || {
        pod.netns.inside(|| {
            let client = UdpSocket::bind("10.231.0.2:0").unwrap();
            client.send_to(b"x", "127.0.0.1:9090").unwrap();
        });
        server.recv(&mut [0; 8]).is_ok()
    };
    assert!(!arrives());
    assert!(node.host.tcp("127.0.0.1:8080").is_ok());
    // The rule is what keeps it out.
    node.host.sh("nft flush chain ip carpel-portmap strangers");
    assert!(arrives());
    pod.del(&node);
    node.assert_clean();
}

#[test]
fn garbage_collection_removes_what_is_not_valid() {
    let node = node();
    let a = Pod::new(&node, "a", json!([tcp(8080, 80)]));
    let _b = Pod::new(&node, "b", json!([tcp(8081, 80)]));
    let mut other = a.config.clone();
    other["name"] = json!("other");
    other["runtimeConfig"]["portMappings"] = json!([tcp(8082, 80)]);
    portmap(&node, "ADD", "a", &a.netns, &other).ok();
    let mut gc = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap",
        "cni.dev/valid-attachments": [{ "containerID": "b", "ifname": "eth0" }],
    });
    portmap(&node, "GC", "", &a.netns, &gc).ok();
    let rules = node.rules();
    assert!(
        !rules.contains("tcp . 8080") && rules.contains("tcp . 8081"),
        "{rules}"
    );
    assert!(rules.contains("tcp . 8082"), "{rules}");
    gc["cni.dev/valid-attachments"] = json!([]);
    portmap(&node, "GC", "", &a.netns, &gc).ok();
    gc["name"] = json!("other");
    portmap(&node, "GC", "", &a.netns, &gc).ok();
    assert!(!node.rules().contains("carpel-portmap"));
    portmap(&node, "STATUS", "", &a.netns, &gc).ok();
}

#[test]
fn wrong_use_has_its_codes() {
    let node = node();
    let pod = Netns::new("pod");
    let result = node.add("one", &pod);
    let with = |key: &str, value: Value| {
        let mut config = config(&result, &json!([tcp(8080, 80)]));
        config[key] = value;
        portmap(&node, "ADD", "one", &pod, &config)
    };
    let mapping = |mapping: Value| with("runtimeConfig", json!({ "portMappings": [mapping] }));
    mapping(tcp(0, 80)).fails(7, "portMappings[0].hostPort: 0");
    mapping(json!({ "hostPort": 80, "protocol": "tcp" })).fails(7, "containerPort: 0");
    mapping(json!({ "hostPort": "x" })).fails(6, "runtimeConfig: ");
    mapping(json!({ "hostPort": 80, "containerPort": 80, "protocol": "icmp" })).fails(7, "icmp");
    with("prevResult", Value::Null).fails(7, "prevResult");
    with("backend", json!("pf")).fails(7, "unknown backend");
    with("markMasqBit", json!(32)).fails(7, "markMasqBit");
    with("snat", json!("yes")).fails(6, "snat: ");
    with("conditionsV4", json!(["-m", "physdev"])).fails(2, "conditionsV4");
    with("conditionsV6", json!(["-d", "10.0.0.0/8"])).fails(7, "conditionsV6");
    let mut both = config(&result, &json!([]));
    both["markMasqBit"] = json!(4);
    both["externalSetMarkChain"] = json!("KUBE-MARK-MASQ");
    portmap(&node, "ADD", "one", &pod, &both).fails(7, "externalSetMarkChain");
    // Nothing to do is fine.
    let nothing = config(&result, &json!([]));
    assert_eq!(portmap(&node, "ADD", "one", &pod, &nothing).ok(), result);
    portmap(&node, "DEL", "one", &pod, &nothing).ok();
    assert!(!node.rules().contains("carpel-portmap"));
}

#[test]
fn many_at_once_leave_nothing() {
    const PODS: u16 = 32;
    let node = node();
    thread::scope(|scope| {
        let node = &node;
        for worker in 0..16 {
            scope.spawn(move || {
                for round in 0..PODS / 16 {
                    let port = 9000 + worker * 10 + round;
                    let id = format!("w{worker}");
                    let netns = Netns::new("pod");
                    let result = node.add(&id, &netns);
                    let config = config(&result, &json!([tcp(port, 80), udp(port, 80)]));
                    portmap(node, "ADD", &id, &netns, &config).ok();
                    portmap(node, "CHECK", &id, &netns, &config).ok();
                    portmap(node, "DEL", &id, &netns, &config).ok();
                    node.del(&id, &netns, &result);
                }
            });
        }
    });
    node.assert_clean();
}
