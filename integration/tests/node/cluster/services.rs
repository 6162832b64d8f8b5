//! Services: a virtual address and a port of every node lead to pods of several nodes, by rules such as
//! kube-proxy's. Two ways to write them, one behaviour.

use std::collections::BTreeMap;

use super::*;

/// A virtual address that no machine has.
const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;

/// Who writes a node's rules.
#[derive(Debug, Clone, Copy)]
pub(super) enum Proxy {
    Nftables,
    Iptables,
}

/// A service of one family.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub name: &'static str,
    pub protocol: &'static str,
    pub ip: IpAddr,
    pub port: u16,
    pub node_port: Option<u16>,
    pub endpoints: Vec<(IpAddr, u16)>,
}

/// The `number`th virtual address of a family.
pub(super) fn virtual_ip(family: Family, number: u8) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.96.0.{number}"),
        Family::V6 => format!("fd00:96::{number}"),
    };
    text.parse().expect("an address")
}

impl Proxy {
    /// Has a node lead connections to services, which are of one family.
    pub(super) fn load(self, net: &HostNet, services: &[Service]) {
        let family = Family::of(services[0].ip);
        let rules = match self {
            Self::Nftables => nftables(family, services),
            Self::Iptables => iptables(family, services),
        };
        let command = match (self, family) {
            (Self::Nftables, _) => "nft -f -",
            (Self::Iptables, Family::V4) => "iptables-restore --noflush",
            (Self::Iptables, Family::V6) => "ip6tables-restore --noflush",
        };
        net.command(&["sh", "-c", &format!("{command} <<'END'\n{rules}END\n")]);
    }

    pub(super) fn unload(self, net: &HostNet, family: Family) {
        let command = match (self, family) {
            (Self::Nftables, family) => format!("nft delete table {} kube-proxy", family.nft()),
            (Self::Iptables, Family::V4) => "iptables -t nat -F; iptables -t nat -X".to_owned(),
            (Self::Iptables, Family::V6) => "ip6tables -t nat -F; ip6tables -t nat -X".to_owned(),
        };
        net.command(&["sh", "-ec", &command]);
    }
}

/// An address with a port, as the rules' languages write it.
fn target((ip, port): (IpAddr, u16)) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// Verdict maps, and a random number for each new connection.
fn nftables(family: Family, services: &[Service]) -> String {
    let (ip, pods) = (family.nft(), family.pods());
    let (address, lo) = match family {
        Family::V4 => ("ipv4_addr", "127.0.0.0/8"),
        Family::V6 => ("ipv6_addr", "::1"),
    };
    let (mut chains, mut ips, mut ports) = (String::new(), Vec::new(), Vec::new());
    for service in services {
        let (name, protocol, to) = (service.name, service.protocol, service.ip);
        let mut choices = Vec::new();
        for (at, endpoint) in service.endpoints.iter().enumerate() {
            chains += &format!(
                "chain endpoint-{name}-{at} {{ {ip} saddr {} jump mark-for-masquerade; \
                 meta l4proto {protocol} dnat to {}; }}\n",
                endpoint.0,
                target(*endpoint)
            );
            choices.push(format!("{at} : goto endpoint-{name}-{at}"));
        }
        chains += &format!(
            "chain service-{name} {{ {ip} daddr {to} {ip} saddr != {pods} jump mark-for-masquerade; \
             numgen random mod {} vmap {{ {} }}; }}\n\
             chain external-{name} {{ jump mark-for-masquerade; goto service-{name}; }}\n",
            choices.len(),
            choices.join(", ")
        );
        ips.push(format!(
            "{to} . {protocol} . {} : goto service-{name}",
            service.port
        ));
        if let Some(port) = service.node_port {
            ports.push(format!("{protocol} . {port} : goto external-{name}"));
        }
    }
    let elements = |list: &[String]| match list {
        [] => String::new(),
        list => format!("elements = {{ {} }};", list.join(", ")),
    };
    format!(
        "table {ip} kube-proxy {{
         chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
         {chains}
         map service-ips {{ type {address} . inet_proto . inet_service : verdict; {} }}
         map service-nodeports {{ type inet_proto . inet_service : verdict; {} }}
         chain services {{
           {ip} daddr . meta l4proto . th dport vmap @service-ips
           fib daddr type local {ip} daddr != {lo} meta l4proto . th dport vmap @service-nodeports
         }}
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
         chain nat-output {{ type nat hook output priority -100; jump services; }}
         chain nat-postrouting {{ type nat hook postrouting priority srcnat;
           meta mark & 0x4000 == 0 return
           meta mark set meta mark xor 0x4000
           masquerade fully-random
         }}
         }}\n",
        elements(&ips),
        elements(&ports)
    )
}

/// Chains, and for each endpoint but the last the probability that it is taken if those before were not.
fn iptables(family: Family, services: &[Service]) -> String {
    let pods = family.pods();
    let mut chains = String::new();
    let mut rules = String::from(
        "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n",
    );
    let mut node_ports = String::new();
    for service in services {
        let (name, protocol, ip) = (service.name, service.protocol, service.ip);
        let head = format!("-p {protocol} -m {protocol}");
        chains += &format!(":KUBE-SVC-{name} - [0:0]\n:KUBE-EXT-{name} - [0:0]\n");
        rules += &format!(
            "-A KUBE-SERVICES -d {ip} {head} --dport {} -j KUBE-SVC-{name}\n\
             -A KUBE-EXT-{name} -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}\n\
             -A KUBE-SVC-{name} ! -s {pods} -d {ip} {head} --dport {} -j KUBE-MARK-MASQ\n",
            service.port, service.port
        );
        let count = service.endpoints.len();
        for (at, endpoint) in service.endpoints.iter().enumerate() {
            #[allow(clippy::cast_precision_loss, reason = "a handful of endpoints")]
            let chance = 1.0 / (count - at) as f64;
            let chosen = match at + 1 == count {
                true => String::new(),
                false => format!("-m statistic --mode random --probability {chance:.11} "),
            };
            chains += &format!(":KUBE-SEP-{name}-{at} - [0:0]\n");
            rules += &format!(
                "-A KUBE-SVC-{name} {chosen}-j KUBE-SEP-{name}-{at}\n\
                 -A KUBE-SEP-{name}-{at} -s {} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{name}-{at} {head} -j DNAT --to-destination {}\n",
                endpoint.0,
                target(*endpoint)
            );
        }
        if let Some(port) = service.node_port {
            node_ports += &format!("-A KUBE-NODEPORTS {head} --dport {port} -j KUBE-EXT-{name}\n");
        }
    }
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         {chains}{rules}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n{node_ports}COMMIT\n"
    )
}

#[tokio::test]
async fn nftables_over_point_to_point_links() {
    connections_are_spread(Kind::routed(ROUTED, V4_V6), Proxy::Nftables).await;
}

#[tokio::test]
async fn iptables_over_point_to_point_links() {
    connections_are_spread(Kind::routed(ROUTED, V4), Proxy::Iptables).await;
}

#[tokio::test]
async fn nftables_over_bridges() {
    connections_are_spread(Kind::routed(BRIDGE, V4), Proxy::Nftables).await;
}

#[tokio::test]
async fn iptables_over_bridges() {
    connections_are_spread(Kind::routed(BRIDGE, V4_V6), Proxy::Iptables).await;
}

async fn connections_are_spread(kind: Kind, proxy: Proxy) {
    let cluster = Cluster::start(kind, 2).await;
    cluster.route_all();
    for number in cluster.numbers() {
        bridge_netfilter(&cluster.node(number).net, true);
    }
    let endpoints = [
        cluster.peer(1, "web-0").await,
        cluster.peer(1, "web-1").await,
        cluster.peer(2, "web-2").await,
    ];
    let client = cluster.peer(1, "client").await;
    for &family in kind.families {
        let ip = virtual_ip(family, 80);
        cut_off(&client.net, ip, SERVICE_PORT);
        let service = Service {
            name: "web",
            protocol: "tcp",
            ip,
            port: SERVICE_PORT,
            node_port: Some(NODE_PORT),
            endpoints: endpoints.iter().map(|to| (to.ip(family), PORT)).collect(),
        };
        for number in cluster.numbers() {
            let net = &cluster.node(number).net;
            proxy.load(net, std::slice::from_ref(&service));
        }
        // Pods are seen as they are, also by pods of the other node.
        for _ in 0..9 {
            let seen = seen_by(&client.net, ip, SERVICE_PORT);
            assert_eq!(seen, client.ip(family));
        }
        spread(&client.net, ip, SERVICE_PORT, 600);
        // A pod is led to itself, too.
        for endpoint in &endpoints {
            spread(&endpoint.net, ip, SERVICE_PORT, 60);
        }
        for number in cluster.numbers() {
            let machine = family.machine(number);
            spread(&cluster.node(number).net, ip, SERVICE_PORT, 60);
            spread(&cluster.lan.outside, machine, NODE_PORT, 120);
            spread(&client.net, machine, NODE_PORT, 60);
        }
        for number in cluster.numbers() {
            proxy.unload(&cluster.node(number).net, family);
        }
        cut_off(&client.net, ip, SERVICE_PORT);
    }
    cluster.finish().await;
}

/// Connections from `net` come to each of the three endpoints about as often.
#[track_caller]
fn spread(net: &HostNet, ip: IpAddr, port: u16, connections: u32) {
    let names = net.run(|| -> Vec<String> {
        let patience = host::patience(Duration::from_secs(2));
        // Each must succeed at once.
        let names = (0..connections).map(|_| host::http_get_within(ip, port, "/name", patience));
        names
            .map(|name| name.unwrap_or_else(|error| panic!("{ip} port {port}: {error}")))
            .collect()
    });
    let mut counts = BTreeMap::<&str, u32>::new();
    for name in &names {
        *counts.entry(name.trim()).or_default() += 1;
    }
    let of: Vec<_> = counts.keys().copied().collect();
    assert_eq!(of, ["web-0", "web-1", "web-2"], "{ip} port {port}");
    // Of n fair choices a third, give or take 6.5 standard deviations: wrong once in ten thousand million runs.
    let n = f64::from(connections);
    let margin = 6.5 * (n * 2.0 / 9.0).sqrt();
    for count in counts.values() {
        let off = (f64::from(*count) - n / 3.0).abs();
        assert!(off <= margin, "{ip} port {port}: {counts:?}");
    }
}

/// Has the kernel show what bridges pass on to the rules for IP, or not.
fn bridge_netfilter(net: &HostNet, on: bool) {
    let on = u8::from(on);
    let write = format!(
        "[ -e /proc/sys/net/bridge ] || modprobe br_netfilter
         for what in iptables ip6tables; do echo {on} > /proc/sys/net/bridge/bridge-nf-call-$what; done"
    );
    net.command(&["sh", "-ec", &write]);
}

#[tokio::test]
async fn services_between_pods_of_a_bridge_need_bridge_netfilter() {
    let cluster = Cluster::start(Kind::routed(BRIDGE, V4), 1).await;
    let net = &cluster.node(1).net;
    let (web, client) = (
        cluster.peer(1, "web").await,
        cluster.peer(1, "client").await,
    );
    let ip = virtual_ip(Family::V4, 80);
    let service = Service {
        name: "web",
        protocol: "tcp",
        ip,
        port: SERVICE_PORT,
        node_port: None,
        endpoints: vec![(web.ip(Family::V4), PORT)],
    };
    Proxy::Nftables.load(net, &[service]);
    bridge_netfilter(net, false);
    // The answer goes straight from pod to pod, and the client does not know its sender.
    cut_off(&client.net, ip, SERVICE_PORT);
    bridge_netfilter(net, true);
    assert_eq!(
        seen_by(&client.net, ip, SERVICE_PORT),
        client.ip(Family::V4)
    );
    // To itself a pod comes as the node.
    let seen = seen_by(&web.net, ip, SERVICE_PORT);
    assert_eq!(seen.to_string(), "10.118.1.1");
    Proxy::Nftables.unload(net, Family::V4);
    cluster.finish().await;
}
