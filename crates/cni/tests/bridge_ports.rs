//! What bridge does at its ports, as root, in namespaces of its own.

mod common;

use common::{Netns, Node};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";

#[test]
fn a_forged_hardware_address_comes_nowhere() {
    let mut node = Node::new(&[V4]);
    node.config["macspoofchk"] = json!(true);
    node.config["ipMasq"] = json!(false);
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let result_a = node.add("a", &a);
    let result_b = node.add("b", &b);
    assert!(a.pings("10.231.0.1") && a.pings("10.231.0.3"));
    let check = || node.call("CHECK", "a", &a).run(&node.with_prev(&result_a));
    check().ok();
    a.sh("ip link set eth0 address 02:00:5e:00:00:66");
    assert!(!a.pings("10.231.0.1") && !a.pings("10.231.0.3"));
    a.sh(&format!(
        "ip link set eth0 address {}",
        result_a["interfaces"][2]["mac"].as_str().unwrap()
    ));
    assert!(a.pings("10.231.0.1") && b.pings("10.231.0.2"));
    let rules = node.rules();
    assert!(rules.contains("table bridge carpel-macspoof"), "{rules}");
    let file = node.data.path().join("rules");
    std::fs::write(&file, &rules).unwrap();
    node.host.sh(&format!("nft -c -f {}", file.display()));
    node.host.sh("nft delete table bridge carpel-macspoof");
    check().fails(999, "is not checked");
    node.del("a", &a, &result_a);
    node.del("b", &b, &result_b);
    node.assert_clean();

    node.config["cniVersion"] = json!("1.1.0");
    node.add("a", &a);
    node.config["cni.dev/valid-attachments"] = json!([]);
    node.call("GC", "", &a).run(&node.config).ok();
    node.assert_clean();
}

/// Whether the kernel's bridges keep VLANs apart when told to.
fn kernel_filters_vlans(node: &Node) -> bool {
    node.host.sh("ip link add probe type bridge");
    // Some kernels refuse, others do as if they had.
    let told = node
        .host
        .succeeds("ip link set probe type bridge vlan_filtering 1");
    let shown = node.host.json("ip -j -d link show probe");
    node.host.sh("ip link del probe");
    told && shown[0]["linkinfo"]["info_data"]["vlan_filtering"] == 1
}

/// The VLANs of the host's end, as ranges with their flags.
fn vlans(node: &Node, result: &Value) -> String {
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    let all = node.host.json(&format!("bridge -j vlan show dev {port}"));
    all[0]["vlans"].to_string()
}

fn without_vlans(node: &mut Node) {
    let pod = Netns::new("pod");
    let mut refused = |key: &str, value: Value| {
        let before = node.config.clone();
        node.config[key] = value;
        let said = node.call("ADD", "one", &pod).run(&node.config);
        said.fails(50, "the kernel has no VLAN filtering of bridges");
        node.config = before;
        node.assert_clean();
    };
    refused("vlan", json!(100));
    refused("vlanTrunk", json!([{ "minID": 100, "maxID": 110 }]));
}

#[test]
fn pods_are_in_their_vlans() {
    let mut node = Node::new(&[V4]);
    node.config["ipMasq"] = json!(false);
    if !kernel_filters_vlans(&node) {
        return without_vlans(&mut node);
    }
    let alone = json!([{ "vlan": 100, "flags": ["PVID", "Egress Untagged"] }]).to_string();
    let (a, b, c) = (Netns::new("a"), Netns::new("b"), Netns::new("c"));
    node.config["vlan"] = json!(100);
    let result_a = node.add("a", &a);
    let result_b = node.add("b", &b);
    assert_eq!(vlans(&node, &result_a), alone);
    assert_eq!(result_a["interfaces"][3]["name"], "br0.100");
    let gateway = node.host.json("ip -j addr show br0.100");
    assert_eq!(gateway[0]["address"], result_a["interfaces"][3]["mac"]);
    assert!(a.pings("10.231.0.1") && a.pings("10.231.0.3") && node.host.pings("10.231.0.2"));
    node.call("CHECK", "a", &a)
        .run(&node.with_prev(&result_a))
        .ok();

    // The same subnet in another VLAN.
    let mut other = node.config.clone();
    other["name"] = json!("other");
    other["vlan"] = json!(200);
    other["isDefaultGateway"] = json!(false);
    other["ipam"]["ranges"] = json!([[{ "subnet": V4, "rangeStart": "10.231.0.50" }]]);
    node.call("ADD", "c", &c).run(&other).ok();
    assert!(!a.pings("10.231.0.50") && !c.pings("10.231.0.1"));
    other["vlan"] = json!(100);
    node.call("DEL", "c", &c).run(&other).ok();
    let result = node.call("ADD", "c", &c).run(&other).ok();
    let addr = result["ips"][0]["address"].as_str().unwrap();
    assert!(a.pings(addr.split_once('/').unwrap().0) && c.pings("10.231.0.1"));
    node.call("DEL", "c", &c).run(&other).ok();

    // A DEL without a link to find takes the gateway's link for nobody's.
    let mut gone = node.call("DEL", "b", &b);
    gone.netns = String::new();
    gone.run(&node.with_prev(&result_b)).ok();
    gone.run(&node.with_prev(&result_b)).ok();
    assert!(a.pings("10.231.0.1"));
    node.del("a", &a, &result_a);
    assert_eq!(node.addresses(), [] as [String; 0]);
    // The gateway's pair stays, as the bridge does.
    assert_eq!(node.ports().len(), 2);
}

#[test]
fn trunks_are_in_many_vlans() {
    let mut node = Node::new(&[]);
    node.config["ipMasq"] = json!(false);
    node.config["isDefaultGateway"] = json!(false);
    node.config.as_object_mut().unwrap().remove("ipam");
    if !kernel_filters_vlans(&node) {
        return without_vlans(&mut node);
    }
    let pod = Netns::new("pod");
    let native = |id: u16| json!({ "vlan": id, "flags": ["PVID", "Egress Untagged"] });
    let tagged = json!([{ "minID": 101, "maxID": 103 }, { "id": 7 }]);
    let list = |native: Value, place: usize| {
        let mut list: Vec<_> = [7, 101, 102, 103].map(|id| json!({ "vlan": id })).into();
        list.insert(place, native);
        json!(list)
    };
    for (options, expected) in [
        (json!({ "vlanTrunk": tagged }), list(native(1), 0)),
        (
            json!({ "vlanTrunk": tagged, "vlan": 50 }),
            list(native(50), 1),
        ),
        (
            json!({ "vlan": 50, "preserveDefaultVlan": true }),
            json!([{ "vlan": 1, "flags": ["Egress Untagged"] }, native(50)]),
        ),
        (
            json!({ "vlanTrunk": [{ "minID": 1, "maxID": 4094 }], "vlan": 9 }),
            Value::Null,
        ),
    ] {
        let mut config = node.config.clone();
        for (key, value) in options.as_object().unwrap() {
            config[key] = value.clone();
        }
        let result = node.call("ADD", "one", &pod).run(&config).ok();
        let shown: Value = serde_json::from_str(&vlans(&node, &result)).unwrap();
        if expected.is_null() {
            assert_eq!(shown.as_array().unwrap().len(), 4094);
            assert_eq!(shown[8], native(9));
        } else {
            assert_eq!(shown, expected, "{options}");
        }
        node.call("DEL", "one", &pod).run(&config).ok();
    }
    node.assert_clean();
}
