//! The sample configurations, run as a runtime runs them, as root, in namespaces of their own.

mod common;

use std::{fs, thread};

use common::{Call, Netns, Node, addresses, net::Server};
use serde_json::{Value, json};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../cni-conf");

/// A node with one of the samples.
struct Sample {
    name: String,
    node: Node,
    list: Value,
}

/// All samples, each on a node of its own with a data folder of its own.
fn samples() -> Vec<Sample> {
    let mut paths: Vec<_> = fs::read_dir(SAMPLES)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 4);
    let read = |path: &std::path::PathBuf| {
        let node = Node::new(&[]);
        node.host.sh("ip link set lo up");
        let mut list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        for plugin in list["plugins"].as_array_mut().unwrap() {
            if plugin.get("ipam").is_some() {
                plugin["ipam"]["dataDir"] = json!(node.data.path());
            }
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Sample { name, node, list }
    };
    paths.iter().map(read).collect()
}

impl Sample {
    /// What a plugin of the list gets on stdin.
    fn config(&self, plugin: &Value, result: &Value, port: u16) -> Value {
        let mut config = plugin.clone();
        config["cniVersion"] = self.list["cniVersion"].clone();
        config["name"] = self.list["name"].clone();
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        let given = json!({
            "portMappings": [
                { "hostPort": port, "containerPort": 80, "protocol": "tcp" },
                { "hostPort": port, "containerPort": 80, "protocol": "udp" },
            ],
            "bandwidth": {
                "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
                "egressRate": 80_000_000, "egressBurst": 8_000_000,
            },
        });
        for (capability, value) in given.as_object().unwrap() {
            if config["capabilities"][capability] == true {
                config["runtimeConfig"][capability] = value.clone();
            }
        }
        config
    }

    fn run(&self, command: &str, plugin: &Value, id: &str, pod: &Netns, config: &Value) -> Value {
        let name = plugin["type"].as_str().unwrap();
        let said = Call::new(&self.node.host, name, command, id, pod).run(config);
        assert!(said.ok, "{} {command} {name}: {said:?}", self.name);
        said.json
    }

    fn plugins(&self) -> &[Value] {
        self.list["plugins"].as_array().unwrap()
    }

    fn add(&self, id: &str, pod: &Netns, port: u16) -> Value {
        let add = |result: Value, plugin: &Value| {
            self.run("ADD", plugin, id, pod, &self.config(plugin, &result, port))
        };
        let result = self.plugins().iter().fold(Value::Null, add);
        for plugin in self.plugins() {
            self.run(
                "CHECK",
                plugin,
                id,
                pod,
                &self.config(plugin, &result, port),
            );
        }
        result
    }

    fn del(&self, id: &str, pod: &Netns, port: u16, result: &Value) {
        for plugin in self.plugins().iter().rev() {
            self.run("DEL", plugin, id, pod, &self.config(plugin, result, port));
        }
    }

    fn assert_clean(&self) {
        let name = &self.name;
        let network = self.list["name"].as_str().unwrap();
        let left = addresses(&self.node.data.path().join(network));
        assert!(left.is_empty(), "{name}: {left:?}");
        let links = self
            .node
            .host
            .sh("ip -o link show type veth; ip -o link show type ifb");
        assert_eq!(links, "", "{name}");
        let routes = self.node.host.sh("ip route show; ip -6 route show");
        let left: Vec<_> = routes
            .lines()
            .filter(|line| line.contains("veth"))
            .collect();
        assert!(left.is_empty(), "{name}: {left:?}");
        let rules = self.node.rules();
        assert!(!rules.contains("carpel"), "{name}: {rules}");
        assert!(!rules.contains("addr 10."), "{name}: {rules}");
    }
}

#[test]
fn every_sample_gives_pods_what_it_promises() {
    for sample in samples() {
        let (pod, other) = (Netns::new("pod"), Netns::new("other"));
        let result = sample.add("pod", &pod, 8080);
        let second = sample.add("other", &other, 8081);
        let _server = Server::tcp(&pod, "pod", 80);
        let has = |kind: &str| sample.plugins().iter().any(|plugin| plugin["type"] == kind);
        let addr = result["ips"][0]["address"].as_str().unwrap();
        let addr = addr.split_once('/').unwrap().0;
        assert!(
            other
                .tcp(&format!("{addr}:80"))
                .unwrap()
                .starts_with("pod "),
            "{}",
            sample.name
        );
        if has("portmap") {
            assert!(
                sample
                    .node
                    .host
                    .tcp("127.0.0.1:8080")
                    .unwrap()
                    .starts_with("pod ")
            );
        }
        let ifb = sample.node.host.sh("ip -o link show type ifb");
        assert_eq!(ifb.lines().count(), if has("bandwidth") { 2 } else { 0 });
        sample.del("pod", &pod, 8080, &result);
        sample.del("pod", &pod, 8080, &result);
        sample.del("other", &other, 8081, &second);
        sample.assert_clean();
    }
}

#[test]
fn sixteen_at_a_time_leave_nothing() {
    const ROUNDS: u16 = 3;
    for sample in samples() {
        thread::scope(|scope| {
            let sample = &sample;
            for worker in 0..16 {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let (id, port) = (format!("w{worker}"), 9000 + worker * 10 + round);
                        let pod = Netns::new("pod");
                        let result = sample.add(&id, &pod, port);
                        sample.del(&id, &pod, port, &result);
                        assert!(!pod.succeeds("ip link show eth0"));
                    }
                });
            }
        });
        sample.assert_clean();
    }
}

#[test]
fn what_add_refuses_holds_up_no_del() {
    let node = Node::new(&[]);
    let pod = Netns::new("pod");
    let wrong = [
        ("bandwidth", json!({ "ingressRate": 8000 }), "ingressBurst"),
        ("firewall", json!({ "backend": "x" }), "unknown backend"),
        (
            "portmap",
            json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 70000 }] } }),
            "portMappings",
        ),
    ];
    for (plugin, mut config, says) in wrong {
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("net");
        config["prevResult"] = json!({ "cniVersion": "1.0.0" });
        let run = |command| Call::new(&node.host, plugin, command, "one", &pod).run(&config);
        run("ADD").fails(7, says);
        run("DEL").ok();
    }
}
