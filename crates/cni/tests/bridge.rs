//! bridge, as root, in namespaces of its own.

mod common;

use std::{collections::BTreeSet, thread};

use common::{Netns, Node, sh};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";
const V6: &str = "fd31::/64";

#[test]
fn a_pod_comes_and_goes_in_every_version() {
    let mut node = Node::new(&[V4, V6]);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        node.config["cniVersion"] = json!(version);
        let pod = Netns::new("pod");
        let result = node.add("one", &pod);
        assert_eq!(result["cniVersion"], version);
        let old = version.starts_with("0.");
        assert_eq!(result["ips"][0].get("version"), old.then_some(&json!("4")));
        assert_eq!(result["ips"][1].get("version"), old.then_some(&json!("6")));
        assert_eq!(result["ips"][0]["gateway"], "10.231.0.1");
        assert_eq!(result["ips"][0]["interface"], 2);
        assert_eq!(result["interfaces"][0]["name"], "br0");
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert_eq!(result["interfaces"][2]["sandbox"], pod.path());
        let shown = pod.json("ip -j link show eth0");
        assert_eq!(shown[0]["address"], result["interfaces"][2]["mac"]);
        let host_end = result["interfaces"][1]["name"].as_str().unwrap();
        let shown = node.host.json(&format!("ip -j link show {host_end}"));
        assert_eq!(shown[0]["address"], result["interfaces"][1]["mac"]);
        assert_eq!(shown[0]["master"], "br0");
        if version != "0.3.0" && version != "0.3.1" {
            node.call("CHECK", "one", &pod)
                .run(&node.with_prev(&result))
                .ok();
        }
        node.del("one", &pod, &result);
        node.assert_clean();
        node.del("one", &pod, &result);
    }
}

#[test]
fn the_oldest_versions_and_none_give_one_address_of_each_family() {
    let mut node = Node::new(&[V4, V6]);
    for version in [None, Some("0.1.0"), Some("0.2.0")] {
        node.config["cniVersion"] = json!(version);
        let pod = Netns::new("pod");
        let result = node.add("one", &pod);
        assert_eq!(result["cniVersion"], version.unwrap_or("0.1.0"));
        assert_eq!(result["ip4"]["gateway"], "10.231.0.1");
        let own = |key: &str| result[key]["ip"].as_str().unwrap().to_owned();
        for (key, gateway) in [("ip4", "10.231.0.1"), ("ip6", "fd31::1")] {
            let shown = pod.sh("ip -o addr show eth0");
            assert!(shown.contains(&own(key)), "{key}: {shown}");
            assert!(pod.pings(gateway), "{gateway}");
        }
        node.call("CHECK", "one", &pod)
            .run(&node.with_prev(&result))
            .fails(1, "CHECK is not part of CNI");
        node.del("one", &pod, &result);
        node.assert_clean();
    }
}

#[test]
fn pods_reach_each_other_the_gateway_and_the_world() {
    let node = Node::new(&[V4, V6]);
    // The world knows no way back to pods: it answers only to the host's address.
    let world = Netns::new("world");
    node.host.sh(&format!(
        "ip link add world type veth peer name host netns {}",
        world.name
    ));
    node.host
        .sh("ip addr add 192.0.2.1/24 dev world; ip addr add 2001:db8::1/64 dev world nodad");
    node.host.sh("ip link set world up");
    world.sh("ip addr add 192.0.2.2/24 dev host; ip addr add 2001:db8::2/64 dev host nodad");
    world.sh("ip link set host up");

    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let result_a = node.add("a", &a);
    for addr in ["10.231.0.1", "fd31::1", "192.0.2.2", "2001:db8::2"] {
        assert!(a.pings(addr), "{addr}");
    }
    let result_b = node.add("b", &b);
    assert!(a.pings("10.231.0.3") && a.pings("fd31::3"));
    assert!(b.pings("10.231.0.2") && b.pings("fd31::2"));
    assert!(node.host.pings("10.231.0.3") && node.host.pings("fd31::2"));

    let rules = node.rules();
    assert!(
        rules.contains("table ip carpel-masq/net/10.231.0.0/24"),
        "{rules}"
    );
    assert!(
        rules.contains("table ip6 carpel-masq/net/fd31__/64"),
        "{rules}"
    );
    assert_eq!(rules.matches("masquerade").count(), 2, "{rules}");
    node.del("a", &a, &result_a);
    assert_eq!(node.rules(), rules);
    assert!(b.pings("192.0.2.2"));
    node.del("b", &b, &result_b);
    node.assert_clean();
    assert_eq!(
        node.host.sh("cat /proc/sys/net/ipv4/ip_forward").trim(),
        "1"
    );
}

#[test]
fn masquerading_stands_beside_iptables_and_can_be_loaded_again() {
    let node = Node::new(&[V4, V6]);
    node.host
        .sh("iptables-nft -t nat -A POSTROUTING -s 10.9.0.0/24 -j MASQUERADE");
    let before = node.rules();
    let pod = Netns::new("pod");
    let result = node.add("one", &pod);
    node.host
        .sh("nft list ruleset > /tmp/$$.nft; nft -c -f /tmp/$$.nft; rm /tmp/$$.nft");
    node.host.sh("iptables-nft -t nat -S");
    node.del("one", &pod, &result);
    assert_eq!(node.rules(), before);
}

#[test]
fn a_reused_address_is_announced() {
    let mut node = Node::new(&[]);
    node.config["ipam"]["ranges"] =
        json!([[{ "subnet": V4, "rangeStart": "10.231.0.2", "rangeEnd": "10.231.0.3" }]]);
    let (peer, first, second) = (
        Netns::new("peer"),
        Netns::new("first"),
        Netns::new("second"),
    );
    node.add("peer", &peer);
    let result = node.add("first", &first);
    let neighbour = |netns: &Netns, link: &str| {
        netns.sh(&format!(
            "ip neigh replace 10.231.0.3 lladdr {} dev {link} nud reachable",
            result["interfaces"][2]["mac"].as_str().unwrap()
        ));
        move |netns: &Netns, link: &str| {
            netns.json(&format!("ip -j neigh show 10.231.0.3 dev {link}"))
        }
    };
    node.del("first", &first, &result);
    let on_peer = neighbour(&peer, "eth0");
    let on_host = neighbour(&node.host, "br0");
    let again = node.add("second", &second);
    assert_eq!(again["ips"][0]["address"], "10.231.0.3/24");
    let mac = &again["interfaces"][2]["mac"];
    assert_eq!(&on_peer(&peer, "eth0")[0]["lladdr"], mac);
    assert_eq!(&on_host(&node.host, "br0")[0]["lladdr"], mac);
}

#[test]
fn a_network_without_addresses() {
    let mut node = Node::new(&[]);
    node.config["ipam"] = json!({});
    node.config["isDefaultGateway"] = json!(false);
    let pod = Netns::new("pod");
    let result = node.add("one", &pod);
    assert_eq!(result.get("ips"), None);
    let shown = pod.json("ip -j link show eth0");
    assert_eq!(shown[0]["operstate"], "UP");
    node.call("CHECK", "one", &pod)
        .run(&node.with_prev(&result))
        .ok();
    node.del("one", &pod, &result);

    node.config.as_object_mut().unwrap().remove("ipam");
    node.config["disableContainerInterface"] = json!(true);
    let result = node.add("one", &pod);
    assert_eq!(pod.json("ip -j link show eth0")[0]["operstate"], "DOWN");
    node.del("one", &pod, &result);
    node.assert_clean();
}

#[test]
fn settings_of_links_are_made() {
    let mut node = Node::new(&[V4]);
    node.config["mtu"] = json!(1400);
    node.config["hairpinMode"] = json!(true);
    node.config["portIsolation"] = json!(true);
    node.config["runtimeConfig"] = json!({ "mac": "02:00:5e:00:00:07" });
    node.config["dns"] = json!({ "nameservers": ["10.0.0.53"] });
    node.config["ipam"]["routes"] = json!([
        { "dst": "0.0.0.0/0" },
        { "dst": "10.99.0.0/16", "gw": "10.231.0.9", "priority": 7, "mtu": 1300 },
    ]);
    let pod = Netns::new("pod");
    let mut call = node.call("ADD", "one", &pod);
    call.args = "IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.231.0.77";
    let result = call.run(&node.config).ok();
    assert_eq!(result["ips"][0]["address"], "10.231.0.77/24");
    assert_eq!(result["dns"]["nameservers"], json!(["10.0.0.53"]));
    let shown = pod.json("ip -j link show eth0");
    assert_eq!(
        (&shown[0]["mtu"], &shown[0]["address"]),
        (&json!(1400), &json!("02:00:5e:00:00:07"))
    );
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    let port = node.host.sh(&format!("bridge -d link show dev {host_end}"));
    assert!(
        port.contains("hairpin on") && port.contains("isolated on"),
        "{port}"
    );
    let routes = pod.sh("ip route");
    assert!(
        routes.contains("10.99.0.0/16 via 10.231.0.9 dev eth0 metric 7 mtu 1300"),
        "{routes}"
    );
    assert_eq!(
        routes.matches("default via 10.231.0.1").count(),
        1,
        "{routes}"
    );
    assert_eq!(node.host.json("ip -j link show br0")[0]["mtu"], 1400);
    let accept_ra = node
        .host
        .sh(&format!("cat /proc/sys/net/ipv6/conf/{host_end}/accept_ra"));
    assert_eq!(accept_ra.trim(), "0");
}

#[test]
fn links_too_small_for_ipv6_still_carry_ipv4() {
    let mut node = Node::new(&[V4]);
    node.config["mtu"] = json!(1000);
    let pod = Netns::new("pod");
    let result = node.add("one", &pod);
    assert!(pod.pings("10.231.0.1"));
    node.del("one", &pod, &result);
    node.assert_clean();
}

#[test]
fn promiscuous_mode_and_duplicate_detection() {
    let mut node = Node::new(&[V6]);
    node.config["promiscMode"] = json!(true);
    node.config["enabledad"] = json!(true);
    let pod = Netns::new("pod");
    let result = node.add("one", &pod);
    assert_eq!(
        node.host.json("ip -j -d link show br0")[0]["promiscuity"],
        1
    );
    assert!(
        !pod.sh("ip -6 addr show dev eth0 scope global")
            .contains("tentative")
    );
    node.call("CHECK", "one", &pod)
        .run(&node.with_prev(&result))
        .ok();
    node.config["promiscMode"] = json!(false);
    node.call("CHECK", "one", &pod)
        .run(&node.with_prev(&result))
        .fails(999, "promiscMode");
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    pod.sh("ip link add eth0 type bridge");
    node.call("ADD", "one", &pod)
        .run(&node.config)
        .fails(999, "has a link eth0 already");
    node.assert_clean();
    pod.sh("ip link del eth0");

    // After the pair is made: a route that cannot be.
    let mut config = node.config.clone();
    config["ipam"]["routes"] = json!([{ "dst": "10.99.0.0/16", "gw": "172.16.0.1" }]);
    node.call("ADD", "one", &pod)
        .run(&config)
        .fails(999, "route to 10.99.0.0/16 via 172.16.0.1");
    node.assert_clean();
    assert!(!pod.succeeds("ip link show eth0"));

    // The bridge has another address.
    let mut config = node.config.clone();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.232.0.0/24" }]]);
    node.call("ADD", "one", &pod)
        .run(&config)
        .fails(999, "has address 10.231.0.1/24");
    node.assert_clean();
    config["forceAddress"] = json!(true);
    let result = node.call("ADD", "one", &pod).run(&config).ok();
    assert!(pod.pings("10.232.0.1"));

    // A second ADD is refused, and takes nothing from the first.
    node.call("ADD", "one", &pod)
        .run(&config)
        .fails(999, "allocated to one already");
    assert!(pod.pings("10.232.0.1"));
    node.call("CHECK", "one", &pod)
        .run(&{
            let mut config = config.clone();
            config["prevResult"] = result;
            config
        })
        .ok();
}

#[test]
fn del_takes_what_is_missing_for_done() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let gone = |path: &str, config: &Value| {
        let mut call = node.call("DEL", "one", &pod);
        call.netns = path.into();
        call.run(config).ok();
    };
    gone("", &node.config);
    gone("/run/netns/carpel-cni-none", &node.config);
    node.call("DEL", "one", &pod).run(&node.config).ok();

    // The namespace is not named any more but alive: the host's end must go.
    for with_prev in [false, true] {
        let result = node.add("one", &pod);
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = if with_prev {
            node.with_prev(&result)
        } else {
            node.config.clone()
        };
        let path = if with_prev {
            ""
        } else {
            file.path().to_str().unwrap()
        };
        gone(path, &config);
        node.assert_clean();
        assert!(!pod.succeeds("ip link show eth0"));
    }

    // Renamed by someone: found by what ADD said.
    let result = node.add("one", &pod);
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    node.host.sh(&format!("ip link set {host_end} alias other"));
    gone("", &node.with_prev(&result));
    node.assert_clean();

    // Dead.
    let dead = Netns::new("dead");
    let result = node.add("two", &dead);
    let path = dead.path();
    drop(dead);
    let mut call = node.call("DEL", "two", &pod);
    call.netns = path;
    call.run(&node.with_prev(&result)).ok();
    assert_eq!(node.addresses(), [] as [String; 0]);
}

#[test]
fn garbage_collection_keeps_what_is_valid() {
    let mut node = Node::new(&[V4]);
    node.config["cniVersion"] = json!("1.1.0");
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    node.add("a", &a);
    node.add("b", &b);
    let gc = |valid: Value| {
        let mut config = node.config.clone();
        config["cni.dev/valid-attachments"] = valid;
        node.call("GC", "", &a).run(&config)
    };
    node.call("GC", "", &a)
        .run(&node.config)
        .fails(7, "valid-attachments");
    assert_eq!(node.addresses().len(), 2);
    gc(json!([{ "containerID": "b", "ifname": "eth0" }])).ok();
    assert_eq!((node.addresses().len(), node.ports().len()), (1, 1));
    assert!(b.pings("10.231.0.1") && node.rules().contains("masquerade"));
    gc(json!([])).ok();
    node.assert_clean();
    node.call("STATUS", "", &a).run(&node.config).ok();
}

#[test]
fn check_sees_what_changed() {
    let node = Node::new(&[V4, V6]);
    for (change, says) in [
        (
            "ip addr del 10.231.0.2/24 dev eth0",
            "has not address 10.231.0",
        ),
        ("ip -6 route del default", "no route to ::/0"),
        (
            "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:09",
            "hardware address",
        ),
        ("ip link del eth0", "eth0 is not there"),
    ] {
        let fresh = Netns::new("pod");
        let result = node.add("one", &fresh);
        let address = result["ips"][0]["address"].as_str().unwrap();
        fresh.sh(&change.replace("10.231.0.2/24", address));
        node.call("CHECK", "one", &fresh)
            .run(&node.with_prev(&result))
            .fails(999, says);
        node.call("DEL", "one", &fresh)
            .run(&node.with_prev(&result))
            .ok();
        node.call("CHECK", "one", &fresh)
            .run(&node.with_prev(&result))
            .fails(999, "no address");
    }
    let pod = Netns::new("pod");
    node.add("one", &pod);
    node.call("CHECK", "one", &pod)
        .run(&node.config)
        .fails(7, "prevResult");
}

#[test]
fn wrong_use_has_its_codes() {
    let node = Node::new(&[V4]);
    let pod = Netns::new("pod");
    let with = |key: &str, value: Value| {
        let mut config = node.config.clone();
        config[key] = value;
        node.call("ADD", "one", &pod).run(&config)
    };
    with("vlan", json!(5000)).fails(7, "vlan 5000");
    with("vlanTrunk", json!([{ "minID": 1 }])).fails(7, "vlanTrunk[0].minID");
    with("uplinkInterface", json!("eth9")).fails(2, "uplinkInterface");
    with("mtu", json!(-1)).fails(6, "bridge");
    with("mtu", json!(70000)).fails(7, "mtu 70000");
    with("bridge", json!("a/b")).fails(7, "a/b");
    with("bridge", json!("lo")).fails(999, "not a bridge");
    with("ipam", json!({ "type": "../x" })).fails(7, "../x");
    with("ipam", json!({ "type": "no-such" })).fails(7, "not in CNI_PATH");
    with("ipMasqBackend", json!("x")).fails(7, "ipMasqBackend");
    with("cniVersion", json!("1.2.0")).fails(1, "incompatible");
    with("name", json!("a/b")).fails(7, "invalid characters");
    let mut both = node.config.clone();
    both["hairpinMode"] = json!(true);
    both["promiscMode"] = json!(true);
    node.call("ADD", "one", &pod)
        .run(&both)
        .fails(7, "exclude each other");
    node.call("ADD", "one", &pod)
        .run_text("{")
        .fails(6, "configuration");
    node.call("ADD", "a/b", &pod)
        .run(&node.config)
        .fails(4, "CNI_CONTAINERID");
    node.call("MOVE", "one", &pod)
        .run(&node.config)
        .fails(4, "MOVE");
    for (netns, says) in [
        ("/run/netns/carpel-cni-none", "no network namespace"),
        ("/etc/passwd", "no network namespace"),
        (node.host.path().as_str(), "is the one the plugin runs in"),
    ] {
        let mut call = node.call("ADD", "one", &pod);
        call.netns = netns.into();
        call.run(&node.config).fails(8, says);
    }
    node.assert_clean();
}

#[test]
fn many_at_once() {
    const PODS: usize = 32;
    let node = Node::new(&[V4, V6]);
    let pods: Vec<Netns> = (0..PODS).map(|_| Netns::new("pod")).collect();
    let results: Vec<Value> = thread::scope(|scope| {
        let node = &node;
        let adding = pods.iter().enumerate();
        let adding = adding.map(|(i, pod)| scope.spawn(move || node.add(&format!("c{i}"), pod)));
        let adding: Vec<_> = adding.collect();
        adding
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for family in 0..2 {
        let addresses = results
            .iter()
            .map(|result| result["ips"][family]["address"].as_str());
        assert_eq!(addresses.collect::<BTreeSet<_>>().len(), PODS);
    }
    assert_eq!(node.rules().matches("masquerade").count(), 2);
    for pod in &pods {
        assert!(pod.pings("10.231.0.1"));
    }
    thread::scope(|scope| {
        for (i, (pod, result)) in pods.iter().zip(&results).enumerate() {
            let node = &node;
            scope.spawn(move || node.del(&format!("c{i}"), pod, result));
        }
    });
    node.assert_clean();
}

#[test]
fn masquerading_survives_pods_that_come_while_others_go() {
    let node = Node::new(&[V4]);
    let stays = Netns::new("stays");
    thread::scope(|scope| {
        let node = &node;
        for worker in 0..3 {
            scope.spawn(move || {
                let pod = Netns::new("pod");
                let id = format!("w{worker}");
                for _ in 0..8 {
                    let result = node.add(&id, &pod);
                    assert!(node.rules().contains("masquerade"));
                    node.del(&id, &pod, &result);
                }
            });
        }
    });
    node.assert_clean();
    node.add("stays", &stays);
    assert!(node.rules().contains("masquerade"));
}

#[test]
fn an_ipam_plugin_of_another_kind_is_run() {
    let mut node = Node::new(&[]);
    let bin = tempfile::tempdir().unwrap();
    let script = bin.path().join("my-ipam");
    let write = |text: &str| {
        std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        sh(&format!("chmod 755 {}", script.display()));
    };
    node.config["ipam"] = json!({ "type": "my-ipam" });
    let pod = Netns::new("pod");
    let log = bin.path().join("log");
    let add = || {
        let mut call = node.call("ADD", "one", &pod);
        call.path = format!("/nonexistent:{}", bin.path().display());
        call.run(&node.config)
    };
    let answer = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.231.0.9/24" }] });
    write(&format!(
        "echo $CNI_COMMAND $CNI_IFNAME >> {}; cat > /dev/null; echo '{answer}'",
        log.display()
    ));
    let result = add().ok();
    assert_eq!(result["ips"][0]["gateway"], "10.231.0.1");
    let mut call = node.call("DEL", "one", &pod);
    call.path = bin.path().display().to_string();
    call.run(&node.config).ok();
    assert_eq!(
        std::fs::read_to_string(&log).unwrap(),
        "ADD eth0\nDEL eth0\n"
    );

    write("echo '{\"code\": 111, \"msg\": \"no luck\"}'; exit 1");
    add().fails(111, "no luck");
    write("exit 3");
    add().fails(999, "my-ipam");
    write("echo garbage");
    add().fails(6, "my-ipam");
    write("head -c 3000000 /dev/zero");
    add().fails(5, "1 MiB");
    write("echo '{\"cniVersion\": \"1.0.0\"}'");
    add().fails(999, "no address");
    assert_eq!(node.ports(), [] as [String; 0]);
}
