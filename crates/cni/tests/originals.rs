//! The same tables of configurations through ours and through Debian's: results, what is on disk, addresses, routes,
//! links, settings, and who reaches whom. Bridge, host-local and loopback; the other plugins' files have theirs.

mod common;

use std::{collections::BTreeMap, fs, path::Path, thread};

use common::{
    Call, Netns, Node, Said,
    net::{Server, addresses_and_routes, world},
};
use serde_json::{Value, json};

const V4: &str = "10.231.0.0/24";
const V6: &str = "fd31::/64";
/// Cases of a table that run beside each other: they wait more than they work.
const AT_A_TIME: usize = 5;
const BOTH: &[&str] = &[V4, V6];

/// A result without what differs from run to run, or is not said by one of them when there is nothing to say.
fn shape(mut result: Value) -> Value {
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        interface["sandbox"].take();
        interface["mac"].take();
        if interface["name"].as_str().unwrap().starts_with("veth") {
            interface["name"].take();
        }
    }
    result
}

/// Runs `case` for ours and for Debian's, side by side.
fn pair<T: Send>(case: impl Fn(bool) -> T + Sync) -> (T, T) {
    thread::scope(|scope| {
        let ours = scope.spawn(|| case(false));
        let theirs = case(true);
        (ours.join().unwrap(), theirs)
    })
}

/// What can be seen of the bridge and of the port that a pod is behind.
fn links(node: &Node, pod: &Netns, result: &Value) -> Value {
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    let shown = |link: &str| node.host.json(&format!("ip -j -d link show {link}"))[0].clone();
    let (bridge, port, inside) = (
        shown("br0"),
        shown(port),
        pod.json("ip -j -d link show eth0")[0].clone(),
    );
    let behind = &port["linkinfo"]["info_slave_data"];
    let flags: Vec<_> = [
        "state",
        "priority",
        "cost",
        "hairpin",
        "guard",
        "root_block",
        "fastleave",
        "learning",
        "flood",
        "mcast_flood",
        "bcast_flood",
        "neigh_suppress",
        "isolated",
        "proxy_arp",
        "vlan_tunnel",
    ]
    .iter()
    .map(|flag| json!([flag, behind[flag]]))
    .collect();
    let settings = |netns: &Netns, names: &[&str]| -> Vec<String> {
        let read = |name: &&str| {
            netns
                .sh(&format!("cat /proc/sys/net/{name}"))
                .trim()
                .to_owned()
        };
        names.iter().map(read).collect()
    };
    json!({
        "bridge": [bridge["mtu"], bridge["promiscuity"],
            bridge["linkinfo"]["info_data"]["vlan_filtering"], bridge["linkinfo"]["info_data"]["stp_state"]],
        "port": [port["mtu"], port["operstate"], port["master"], flags],
        "inside": [inside["mtu"], inside["operstate"],
            inside["address"] == result["interfaces"][2]["mac"]],
        "host": settings(&node.host, &["ipv4/ip_forward", "ipv6/conf/all/forwarding"]),
        "pod": settings(pod, &["ipv4/ip_forward", "ipv6/conf/eth0/accept_dad", "ipv6/conf/eth0/disable_ipv6"]),
    })
}

/// Who is answered, and as whom they are seen.
fn reached(node: &Node, pods: [&Netns; 2], world: &Netns, results: [&Value; 2]) -> Vec<String> {
    let [a, b] = pods;
    let mut said = Vec::new();
    let ips = |result: &Value| -> Vec<String> {
        let ips = result["ips"].as_array().cloned().unwrap_or_default();
        let bare = |ip: &Value| {
            ip["address"]
                .as_str()
                .unwrap()
                .split('/')
                .next()
                .unwrap()
                .to_owned()
        };
        ips.iter().map(bare).collect()
    };
    let _servers = [Server::tcp(b, "b", 80), Server::tcp(world, "world", 80)];
    for ip in ips(results[1]) {
        let target = std::net::SocketAddr::new(ip.parse().unwrap(), 80).to_string();
        for (who, netns) in [("host", &node.host), ("a", a)] {
            said.push(format!("{who} to b: {:?}", netns.answer(&target)));
        }
        let beyond = if ip.contains(':') {
            "[2001:db8::2]:80"
        } else {
            "192.0.2.2:80"
        };
        said.push(format!("a to the world: {:?}", a.answer(beyond)));
    }
    // With another hardware address than its own.
    a.sh("ip link set eth0 address 02:00:5e:00:00:66");
    if let Some(ip) = ips(results[1]).first() {
        let target = std::net::SocketAddr::new(ip.parse().unwrap(), 80).to_string();
        said.push(format!("a, forged, to b: {:?}", a.answer(&target)));
    }
    said
}

#[test]
fn bridges_are_those_of_debians() {
    let table: Vec<(&[&str], Value)> = vec![
        (&[V4], json!({ "isDefaultGateway": false, "ipMasq": false })),
        (
            &[V4],
            json!({ "isDefaultGateway": false, "isGateway": true, "ipMasq": false }),
        ),
        (
            &[V6],
            json!({ "isDefaultGateway": false, "isGateway": true, "ipMasq": false, "cniVersion": "0.4.0" }),
        ),
        (BOTH, json!({})),
        (BOTH, json!({ "ipMasq": false, "cniVersion": "0.3.1" })),
        (BOTH, json!({ "hairpinMode": true, "mtu": 1400 })),
        (&[V4], json!({ "promiscMode": true })),
        (&[V4], json!({ "macspoofchk": true })),
        (&[V6], json!({ "enabledad": true })),
        (
            &[V4],
            json!({ "runtimeConfig": { "mac": "02:00:5e:00:00:07" } }),
        ),
        (
            &[V4],
            json!({ "args": { "cni": { "mac": "02:00:5e:00:00:08" } } }),
        ),
        (
            BOTH,
            json!({ "dns": { "nameservers": ["10.0.0.53"], "domain": "a.b", "search": ["a.b", "c"], "options": ["ndots:2"] } }),
        ),
        (&[V4], json!({ "forceAddress": true })),
        (&[], json!({ "isDefaultGateway": false, "ipMasq": false })),
    ];
    // With `isDefaultGateway` theirs would add the default route twice, and fail.
    let mut routed = json!({ "isDefaultGateway": false, "isGateway": true });
    routed["ipam"] = json!({ "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.99.0.0/16", "gw": "10.231.0.9" }] });
    let table = table.into_iter().chain([(&[V4] as &[&str], routed)]);
    let run = |subnets: &[&str], options: &Value, debian: bool| {
        let mut node = Node::new(subnets);
        for (key, value) in options.as_object().unwrap() {
            if key == "ipam" {
                node.config["ipam"]["routes"] = value["routes"].clone();
            } else {
                node.config[key] = value.clone();
            }
        }
        if subnets.is_empty() {
            node.config["ipam"] = json!({});
        }
        if options.get("forceAddress").is_some() {
            node.host
                .sh("ip link add br0 type bridge; ip addr add 10.231.0.200/16 dev br0");
        }
        let world = world(&node.host);
        let pods = [Netns::new("a"), Netns::new("b")];
        let call = |command, id, pod: &Netns, config: &Value| {
            let call = node.call(command, id, pod);
            if debian { call.debian() } else { call }.run(config)
        };
        let results = [0, 1].map(|at| call("ADD", ["a", "b"][at], &pods[at], &node.config).ok());
        // For theirs the kernel looks for another that has the gateway's address, which takes a second or two.
        let settled = "until [ -z \"$(ip -6 addr show tentative)\" ]; do sleep 0.05; done";
        node.host.sh(settled);
        let host_end = results[1]["interfaces"][1]["name"].as_str().unwrap();
        let state = (
            addresses_and_routes(&node.host, host_end),
            addresses_and_routes(&pods[1], "eth0"),
            links(&node, &pods[1], &results[1]),
        );
        let reached = reached(
            &node,
            [&pods[0], &pods[1]],
            &world,
            [&results[0], &results[1]],
        );
        for (at, id) in ["a", "b"].iter().enumerate() {
            call("DEL", id, &pods[at], &node.with_prev(&results[at])).ok();
            call("DEL", id, &pods[at], &node.with_prev(&results[at])).ok();
        }
        assert_eq!((node.addresses(), node.ports()), (vec![], vec![]));
        let [_, result] = results;
        (shape(result), state, reached)
    };
    let table: Vec<_> = table.collect();
    for some in table.chunks(AT_A_TIME) {
        thread::scope(|scope| {
            for (subnets, options) in some {
                let run = &run;
                scope.spawn(move || {
                    let (ours, theirs) = pair(|debian| run(subnets, options, debian));
                    assert_eq!(ours, theirs, "{subnets:?} {options}");
                });
            }
        });
    }
}

/// What host-local keeps, by the files' names.
fn kept(data: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(data.join("net")).into_iter().flatten();
    let files = files.map(|file| file.unwrap().path());
    let mut kept = BTreeMap::new();
    for file in files.filter(|file| file.is_file() && !file.ends_with("lock")) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        kept.insert(name, String::from_utf8(fs::read(&file).unwrap()).unwrap());
    }
    kept
}

#[test]
fn addresses_are_those_of_debians_host_local() {
    let files = tempfile::tempdir().unwrap();
    let resolver = files.path().join("resolv.conf");
    fs::write(&resolver, "# comment\nnameserver 10.0.0.53\nnameserver fd00::53\ndomain a.b\nsearch a.b c\noptions ndots:5 timeout:1\nsortlist x\n").unwrap();
    let table = [
        (json!({ "subnet": V4 }), json!({}), ""),
        (json!({ "subnet": "10.231.0.0/30" }), json!({}), ""),
        (json!({ "subnet": V6 }), json!({}), ""),
        (
            json!({ "ranges": [[{ "subnet": V4 }], [{ "subnet": V6 }]] }),
            json!({}),
            "",
        ),
        (
            json!({ "ranges": [[{ "subnet": V6 }], [{ "subnet": V4 }]] }),
            json!({}),
            "",
        ),
        (
            json!({ "ranges": [[{ "subnet": "10.231.0.0/30" }, { "subnet": "10.232.0.0/30" }]] }),
            json!({}),
            "",
        ),
        (
            json!({ "subnet": V4, "rangeStart": "10.231.0.10", "rangeEnd": "10.231.0.11" }),
            json!({}),
            "",
        ),
        (
            json!({ "subnet": V4, "gateway": "10.231.0.2" }),
            json!({}),
            "",
        ),
        (json!({ "subnet": "10.231.0.77/24" }), json!({}), ""),
        (
            json!({ "subnet": V4, "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.231.0.9" }] }),
            json!({}),
            "",
        ),
        (
            json!({ "subnet": V4, "resolvConf": resolver }),
            json!({}),
            "",
        ),
        (json!({ "subnet": V4 }), json!({}), "IP=10.231.0.40"),
        (
            json!({ "ranges": [[{ "subnet": V4 }], [{ "subnet": V6 }]] }),
            json!({ "args": { "cni": { "ips": ["10.231.0.41", "fd31::41"] } } }),
            "",
        ),
        (
            json!({ "ranges": [[{ "subnet": V4 }], [{ "subnet": V6 }]] }),
            json!({ "runtimeConfig": { "ips": ["fd31::42/64"] } }),
            "",
        ),
        (
            json!({}),
            json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "10.233.0.0/24" }]] } }),
            "",
        ),
        (
            json!({ "ranges": [[{ "subnet": V6 }]] }),
            json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "10.233.0.0/24" }]] } }),
            "",
        ),
        // What both refuse.
        (json!({}), json!({}), ""),
        (json!({ "subnet": "10.231.0.0/31" }), json!({}), ""),
        (
            json!({ "subnet": "10.231.0.0/24", "rangeStart": "10.232.0.1" }),
            json!({}),
            "",
        ),
        (
            json!({ "subnet": V4, "rangeStart": "10.231.0.20", "rangeEnd": "10.231.0.10" }),
            json!({}),
            "",
        ),
        (
            json!({ "ranges": [[{ "subnet": V4 }], [{ "subnet": V4 }]] }),
            json!({}),
            "",
        ),
        (
            json!({ "ranges": [[{ "subnet": V4 }, { "subnet": V6 }]] }),
            json!({}),
            "",
        ),
        (json!({ "subnet": V4 }), json!({}), "IP=10.232.0.1"),
        (json!({ "subnet": V4 }), json!({}), "IP=10.231.0.1"),
        (
            json!({ "subnet": V4, "resolvConf": "/nonexistent" }),
            json!({}),
            "",
        ),
    ];
    // The one in the table with addresses of both.
    const BOTH_FAMILIES: usize = 3;
    let host = Netns::new("host");
    for (at, (ipam, more, args)) in table.iter().enumerate() {
        // How a version writes a result does not hang on what is in it.
        let versions = ["1.0.0", "0.4.0", "0.3.1"];
        for version in &versions[..if at == BOTH_FAMILIES { 3 } else { 1 }] {
            let (ours, theirs) = pair(|debian| {
                let data = tempfile::tempdir().unwrap();
                let mut config = json!({ "cniVersion": version, "name": "net", "ipam": ipam });
                config["ipam"]["type"] = json!("host-local");
                config["ipam"]["dataDir"] = json!(data.path());
                for (key, value) in more.as_object().unwrap() {
                    config[key] = value.clone();
                }
                let run = |command, id| -> Said {
                    let mut call = Call::new(&host, "host-local", command, id, &host);
                    call.args = args;
                    let call = if debian { call.debian() } else { call };
                    call.run(&config)
                };
                let (mut steps, mut refuses) = (Vec::new(), false);
                // Three pods, of which the second goes before the third comes, the first twice.
                for (command, id) in [
                    ("ADD", "a"),
                    ("ADD", "a"),
                    ("ADD", "b"),
                    ("DEL", "b"),
                    ("ADD", "c"),
                    ("DEL", "a"),
                    ("DEL", "c"),
                    ("DEL", "c"),
                ] {
                    let said = run(command, id);
                    // Where ADD refuses the configuration, ours has nothing to give back, and says so.
                    let is_refused = command == "DEL" && refuses;
                    refuses |= steps.is_empty() && !said.ok;
                    let result = (said.ok && !is_refused).then(|| shape(said.json));
                    steps.push((command, id, result, kept(data.path())));
                }
                steps
            });
            assert_eq!(ours, theirs, "{version} {ipam} {more} {args}");
        }
    }
}

#[test]
fn lo_is_that_of_debians_loopback() {
    let previous = json!({
        "interfaces": [{ "name": "eth0", "mac": "02:00:5e:00:00:01", "sandbox": "/x" }],
        "ips": [{ "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0 }],
        "routes": [{ "dst": "0.0.0.0/0" }], "dns": { "nameservers": ["10.0.0.53"] },
    });
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        for with_previous in [false, true] {
            let (ours, theirs) = pair(|debian| {
                let (host, pod) = (Netns::new("host"), Netns::new("pod"));
                let mut config = json!({ "cniVersion": version, "name": "lo", "type": "loopback" });
                if with_previous {
                    config["prevResult"] = previous.clone();
                    config["prevResult"]["cniVersion"] = json!(version);
                    if version != "1.0.0" {
                        config["prevResult"]["ips"][0]["version"] = json!("4");
                    }
                }
                let run = |command| {
                    let call = Call::new(&host, "loopback", command, "one", &pod);
                    if debian { call.debian() } else { call }.run(&config)
                };
                let state = || {
                    let link = &pod.json("ip -j link show lo")[0];
                    (
                        addresses_and_routes(&pod, "lo"),
                        link["flags"].clone(),
                        link["mtu"].clone(),
                    )
                };
                let added = run("ADD").ok();
                let mut states = vec![state()];
                if version != "0.3.1" {
                    config_check(&host, &pod, &config, &added);
                }
                for _ in 0..2 {
                    run("DEL").ok();
                    states.push(state());
                }
                let mut added = shape(added);
                for ip in added["ips"].as_array_mut().unwrap() {
                    // Which theirs leaves out where the version wants it.
                    ip.as_object_mut().unwrap().remove("version");
                }
                (added, states)
            });
            assert_eq!(ours, theirs, "{version} {with_previous}");
        }
    }
}

/// Both check what one of them did.
fn config_check(host: &Netns, pod: &Netns, config: &Value, result: &Value) {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    let check = || Call::new(host, "loopback", "CHECK", "one", pod);
    check().run(&config).ok();
    check().debian().run(&config).ok();
}
