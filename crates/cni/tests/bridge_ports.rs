//! What bridge does at its ports, as root, in namespaces of its own.

mod common;

use common::{Netns, Node};
use serde_json::json;

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
