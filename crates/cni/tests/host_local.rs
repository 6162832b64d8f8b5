//! host-local, run by itself.

mod common;

use std::{collections::BTreeSet, fs, thread};

use common::{Call, Netns, Said, addresses};
use serde_json::{Value, json};

struct Store {
    netns: Netns,
    data: tempfile::TempDir,
}

impl Store {
    fn new() -> Store {
        Store {
            netns: Netns::new("host"),
            data: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self, ipam: Value) -> Value {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "net", "ipam": ipam });
        config["ipam"]["type"] = json!("host-local");
        config["ipam"]["dataDir"] = json!(self.data.path());
        config
    }

    fn run(&self, command: &str, id: &str, config: &Value) -> Said {
        let mut call = Call::new(&self.netns, "host-local", command, id, &self.netns);
        call.netns = "/run/netns/whatever".into();
        call.run(config)
    }

    fn addresses(&self) -> Vec<String> {
        addresses(&self.data.path().join("net"))
    }
}

#[test]
fn addresses_come_in_turn_and_go() {
    let store = Store::new();
    let config = store.config(json!({
        "ranges": [[{ "subnet": "10.1.0.0/29" }], [{ "subnet": "fd01::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    }));
    let result = store.run("ADD", "a", &config).ok();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(
        result["ips"][0],
        json!({ "address": "10.1.0.2/29", "gateway": "10.1.0.1" })
    );
    assert_eq!(
        result["ips"][1],
        json!({ "address": "fd01::2/64", "gateway": "fd01::1" })
    );
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0" }]));
    let folder = store.data.path().join("net");
    assert_eq!(fs::read(folder.join("10.1.0.2")).unwrap(), b"a\r\neth0");
    assert_eq!(
        fs::read(folder.join("last_reserved_ip.0")).unwrap(),
        b"10.1.0.2"
    );
    assert_eq!(
        fs::read(folder.join("last_reserved_ip.1")).unwrap(),
        b"fd01::2"
    );
    store.run("CHECK", "a", &config).ok();
    store
        .run("CHECK", "b", &config)
        .fails(999, "b has no address");
    store
        .run("ADD", "a", &config)
        .fails(999, "allocated to a already");

    store.run("DEL", "a", &config).ok();
    store.run("DEL", "a", &config).ok();
    assert_eq!(store.addresses(), [] as [String; 0]);
    let result = store.run("ADD", "a", &config).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.0.3/29");
    for id in ["b", "c", "d", "e"] {
        store.run("ADD", id, &config).ok();
    }
    let before = store.addresses();
    store
        .run("ADD", "f", &config)
        .fails(999, "no address is free in 10.1.0.1-10.1.0.6");
    assert_eq!(store.addresses(), before);
}

#[test]
fn nothing_stays_when_a_later_range_is_full() {
    let store = Store::new();
    let config = store.config(json!({
        "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.2.0.0/30" }]],
    }));
    store.run("ADD", "a", &config).ok();
    store
        .run("ADD", "b", &config)
        .fails(999, "range set 1: no address is free");
    assert_eq!(store.addresses(), ["10.1.0.2", "10.2.0.2"]);
}

#[test]
fn addresses_can_be_asked_for() {
    let store = Store::new();
    let mut config = store.config(json!({ "subnet": "10.1.0.0/24" }));
    let ask = |config: &mut Value, ips: Value| {
        config["runtimeConfig"] = json!({ "ips": ips });
    };
    ask(&mut config, json!(["10.1.0.77/24"]));
    let result = store.run("ADD", "a", &config).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.0.77/24");
    store
        .run("ADD", "b", &config)
        .fails(999, "10.1.0.77 is taken");
    ask(&mut config, json!(["10.1.0.1"]));
    store.run("ADD", "b", &config).fails(999, "is the gateway");
    ask(&mut config, json!(["10.9.0.1"]));
    store
        .run("ADD", "b", &config)
        .fails(999, "in no range: 10.9.0.1");
    ask(&mut config, json!(["nonsense"]));
    store.run("ADD", "b", &config).fails(7, "nonsense");
    assert_eq!(store.addresses(), ["10.1.0.77"]);

    config["runtimeConfig"] = json!({ "ipRanges": [[{ "subnet": "10.5.0.0/24" }]] });
    let result = store.run("ADD", "b", &config).ok();
    assert_eq!(result["ips"][0]["address"], "10.5.0.2/24");
    assert_eq!(result["ips"][1]["address"], "10.1.0.2/24");
}

#[test]
fn the_resolver_file_is_read() {
    let store = Store::new();
    let file = store.data.path().join("resolv.conf");
    fs::write(&file, "nameserver 10.0.0.53\nsearch a b\n").unwrap();
    let mut config = store.config(json!({ "subnet": "10.1.0.0/24", "resolvConf": file }));
    let result = store.run("ADD", "a", &config).ok();
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["10.0.0.53"], "search": ["a", "b"] })
    );
    config["ipam"]["resolvConf"] = json!("/nonexistent");
    store.run("ADD", "b", &config).fails(5, "/nonexistent");
    assert_eq!(store.addresses(), ["10.1.0.2"]);
}

#[test]
fn no_address_is_given_out_twice() {
    const CONTAINERS: usize = 64;
    let store = Store::new();
    let config = store.config(json!({ "subnet": "10.1.0.0/24" }));
    let given: BTreeSet<String> = thread::scope(|scope| {
        let (store, config) = (&store, &config);
        let adding = (0..CONTAINERS).map(|i| {
            scope.spawn(move || {
                let result = store.run("ADD", &format!("c{i}"), config).ok();
                result["ips"][0]["address"].as_str().unwrap().to_owned()
            })
        });
        let adding: Vec<_> = adding.collect();
        adding
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(given.len(), CONTAINERS);
    assert_eq!(store.addresses().len(), CONTAINERS);
}

#[test]
fn garbage_collection_and_status() {
    let store = Store::new();
    let mut config = store.config(json!({ "subnet": "10.1.0.0/24" }));
    store.run("STATUS", "", &config).ok();
    for id in ["a", "b"] {
        store.run("ADD", id, &config).ok();
    }
    // What a crash of the machine leaves.
    fs::write(store.data.path().join("net/10.1.0.9"), "").unwrap();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    store.run("GC", "", &config).ok();
    assert_eq!(store.addresses(), ["10.1.0.3"]);
    config["ipam"]["dataDir"] = json!("/proc/none");
    store.run("STATUS", "", &config).fails(50, "/proc/none");
    config["ipam"]["subnet"] = json!("10.1.0.1/24");
    store.run("STATUS", "", &config).fails(7, "host bits");
}

#[test]
fn no_del_is_held_up_by_what_is_wrong_with_the_ranges() {
    let store = Store::new();
    let good = json!({ "subnet": "10.1.0.0/29" });
    store.run("ADD", "a", &store.config(good.clone())).ok();
    assert_eq!(store.addresses(), ["10.1.0.2"]);
    let mut config = store.config(json!({ "subnet": "10.1.0.7/33", "ranges": 3 }));
    config["runtimeConfig"] = json!({ "ips": ["x"] });
    store.run("ADD", "b", &config).fails(6, "host-local");
    for id in ["b", "a", "a"] {
        store.run("DEL", id, &config).ok();
    }
    assert_eq!(store.addresses(), [] as [&str; 0]);
}
