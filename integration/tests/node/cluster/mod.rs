//! Nodes of one cluster, each with a daemon, a root and a range of pods of its own, on one physical network.
//! The networks are the samples in `cni-conf/`, changed as docs/networking.md says.

mod dns;
mod services;
mod walk;

use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use carpel_integration::host::{self, HostNet};
use carpel_integration::lan::{Family, Lan};
use carpel_integration::{Pod, TestNode, sh, v1};
use serde_json::{Value, json};

/// The port that [`Peer`]s answer on.
const PORT: u16 = 8080;
/// How long something that will not come is waited for.
const IN_VAIN: Duration = Duration::from_millis(300);

/// How a cluster's nodes are set up.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// The sample, by its file's name.
    sample: &'static str,
    /// In the order that pods get addresses in.
    families: &'static [Family],
    /// Whether the plugin itself hides pods behind the node.
    masquerade: bool,
}

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const V4_V6: &[Family] = &[Family::V4, Family::V6];
const V6_V4: &[Family] = &[Family::V6, Family::V4];

const BRIDGE: &str = "30-carpel-dual-stack.conflist";
const ROUTED: &str = "50-carpel-routed.conflist";

impl Kind {
    /// Pods that every node sees by their own addresses.
    fn routed(sample: &'static str, families: &'static [Family]) -> Self {
        Self {
            sample,
            families,
            masquerade: false,
        }
    }

    /// The sample for a node's range of pods.
    fn conflist(self, node: &TestNode, number: u8) -> Value {
        let path = format!("{}/../cni-conf/{}", env!("CARGO_MANIFEST_DIR"), self.sample);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut list: Value = serde_json::from_str(&text).expect("JSON");
        let plugin = &mut list["plugins"][0];
        plugin["ipMasq"] = json!(self.masquerade);
        let families = self.families.iter();
        let ranges: Value = families
            .map(|family| json!([{ "subnet": family.pods_of(number) }]))
            .collect();
        plugin["ipam"]["ranges"] = ranges;
        if plugin["ipam"].get("routes").is_some() {
            let families = self.families.iter();
            plugin["ipam"]["routes"] = families
                .map(|family| json!({ "dst": family.any() }))
                .collect();
        }
        plugin["ipam"]["dataDir"] = json!(node.ipam_dir());
        list
    }
}

struct Cluster {
    kind: Kind,
    lan: Lan,
    /// Node n of the text is at n - 1.
    nodes: Vec<TestNode>,
}

/// A pod whose only container tells who asks.
struct Peer {
    pod: Pod,
    /// In the order in which the runtime says them.
    ips: Vec<IpAddr>,
    net: HostNet,
}

impl Cluster {
    /// Starts the nodes, which know no way to each other's pods yet.
    async fn start(kind: Kind, nodes: u8) -> Self {
        let lan = Lan::new();
        let start = async |number| {
            let builder = TestNode::builder().net(lan.machine(number)).no_network();
            let node = builder.start().await;
            node.write_conflist("10-pods.conflist", &kind.conflist(&node, number));
            let deadline = Instant::now() + host::soon();
            while !node.condition("NetworkReady").await.status {
                assert!(Instant::now() < deadline, "{}", node.daemon_log());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            node
        };
        let nodes = futures::future::join_all((1..=nodes).map(start)).await;
        Self { kind, lan, nodes }
    }

    /// Node `number`, from 1 on.
    fn node(&self, number: u8) -> &TestNode {
        &self.nodes[usize::from(number) - 1]
    }

    fn numbers(&self) -> impl Iterator<Item = u8> + use<> {
        1..=u8::try_from(self.nodes.len()).expect("a few nodes")
    }

    /// Has (`add`) or has no more (`del`) a route on node `from` to the pods of node `to`.
    fn route(&self, verb: &str, from: u8, to: u8) {
        for family in self.kind.families {
            let (range, via) = (family.pods_of(to), family.machine(to).to_string());
            self.node(from)
                .net
                .command(&["ip", "route", verb, &range, "via", &via, "dev", "eth0"]);
        }
    }

    /// Has every node know the way to the pods of every other, as a cluster's routing daemon or its cloud does.
    fn route_all(&self) {
        for from in self.numbers() {
            for to in self.numbers().filter(|to| *to != from) {
                self.route("add", from, to);
            }
        }
    }

    /// Hides pods behind the node's address from whoever is not of the cluster.
    fn masquerade_outbound(&self) {
        for number in self.numbers() {
            for family in self.kind.families {
                let (nft, own, all) = (family.nft(), family.pods_of(number), family.pods());
                let table = format!(
                    "table {nft} outbound {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
                     oifname eth0 {nft} saddr {own} {nft} daddr != {all} masquerade; }}; }}"
                );
                self.node(number).net.command(&["nft", &table]);
            }
        }
    }

    /// A pod on a node that answers on [`PORT`].
    async fn peer(&self, number: u8, name: &str) -> Peer {
        self.peer_of(number, &self.node(number).pod(name)).await
    }

    async fn peer_of(&self, number: u8, config: &v1::PodSandboxConfig) -> Peer {
        let node = self.node(number);
        let pod = node.run_pod(config).await;
        node.start_container(&pod, &answering("server")).await;
        let network = node.pod_status(&pod).await.network.expect("a network");
        let more = network.additional_ips.iter().map(|more| &more.ip);
        let ips = std::iter::once(&network.ip).chain(more);
        let ips = ips.map(|ip| ip.parse().expect("an address"));
        let peer = Peer {
            ips: ips.collect(),
            net: node.pod_net(&pod),
            pod,
        };
        let page = peer.net.run(|| host::http_get(peer.ips[0], PORT, "/name"));
        page.unwrap_or_else(|error| panic!("{:?}: {error}", peer.pod.config.hostname));
        peer
    }

    async fn finish(self) {
        for node in self.nodes {
            node.finish().await;
        }
    }
}

impl Peer {
    /// The pod's address in a family.
    fn ip(&self, family: Family) -> IpAddr {
        let mut ips = self.ips.iter().copied();
        ips.find(|ip| Family::of(*ip) == family)
            .unwrap_or_else(|| panic!("no address of {family:?} among {:?}", self.ips))
    }
}

/// A container that serves, on [`PORT`], `/name` with its pod's name and `/cgi-bin/peer` with the address that
/// it sees its client by.
fn answering(name: &str) -> v1::ContainerConfig {
    sh(name, &serving(Path::new("/tmp/www"), ""))
}

fn serving(www: &Path, busybox: &str) -> String {
    format!(
        r#"mkdir -p {www}/cgi-bin && cd {www} && hostname > name &&
           printf '#!/bin/sh\nprintf "Content-type: text/plain\\r\\n\\r\\n$REMOTE_ADDR"\n' > cgi-bin/peer &&
           chmod 755 cgi-bin/peer && exec {busybox}httpd -f -p {PORT} -h {www}"#,
        www = www.display()
    )
}

/// A server as [`answering`] in a network that is no pod's, until it is dropped.
struct Bystander {
    child: Child,
    _www: tempfile::TempDir,
}

impl Bystander {
    fn start(net: &HostNet) -> Self {
        let www = tempfile::tempdir().expect("a folder");
        let script = serving(www.path(), "busybox ");
        let mut command = Command::new("sh");
        let child = net.run(|| command.args(["-c", &script]).spawn());
        Self {
            child: child.expect("sh"),
            _www: www,
        }
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address that a server at `ip` sees whoever is in `from` by.
#[track_caller]
fn seen_by(from: &HostNet, ip: IpAddr, port: u16) -> IpAddr {
    let answer = from.run(|| host::http_get(ip, port, "/cgi-bin/peer"));
    let answer = answer.unwrap_or_else(|error| panic!("no answer of {ip} port {port}: {error}"));
    parse_peer(&answer)
}

/// What httpd's REMOTE_ADDR says, such as "[::ffff:10.0.0.1]".
fn parse_peer(text: &str) -> IpAddr {
    let bare = text.trim().trim_start_matches('[').trim_end_matches(']');
    let ip: IpAddr = bare
        .parse()
        .unwrap_or_else(|_| panic!("no address: {text:?}"));
    ip.to_canonical()
}

/// Nothing comes back from `ip` to whoever is in `from`.
#[track_caller]
fn cut_off(from: &HostNet, ip: IpAddr, port: u16) {
    let answer = from.run(|| host::http_get_within(ip, port, "/name", IN_VAIN));
    assert!(answer.is_err(), "{ip} port {port} answers: {answer:?}");
}
