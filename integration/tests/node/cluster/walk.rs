//! From container to container, step by step, as a packet goes: within a pod, on a node, between nodes, out.

use super::*;

#[tokio::test]
async fn over_bridges_with_ipv4() {
    walk(Kind::routed(BRIDGE, V4), 2).await;
}

#[tokio::test]
async fn over_bridges_with_ipv6_before_ipv4() {
    walk(Kind::routed(BRIDGE, V6_V4), 2).await;
}

#[tokio::test]
async fn point_to_point_with_ipv6() {
    walk(Kind::routed(ROUTED, V6), 2).await;
}

#[tokio::test]
async fn point_to_point_with_ipv4_before_ipv6_on_three_nodes() {
    walk(Kind::routed(ROUTED, V4_V6), 3).await;
}

async fn walk(kind: Kind, nodes: u8) {
    let cluster = Cluster::start(kind, nodes).await;
    let mut peers = vec![cluster.peer(1, "neighbour").await];
    for number in cluster.numbers() {
        peers.push(cluster.peer(number, &format!("on{number}")).await);
    }
    let [neighbour, first, second, ..] = &peers[..] else {
        unreachable!("two nodes or more");
    };
    have_addresses_in_order(&cluster, &peers);
    share_localhost(&cluster, first).await;
    for &family in kind.families {
        reach_each_other(&[neighbour, first], family);
        reach_the_node(&cluster, first, family);
        cut_off(&first.net, second.ip(family), PORT);
        cut_off(&second.net, first.ip(family), PORT);
    }

    cluster.route_all();
    let everyone: Vec<_> = peers.iter().collect();
    for &family in kind.families {
        reach_each_other(&everyone, family);
        reach_the_other_node(&cluster, first, second, family);
        cut_off(&first.net, family.outside(), PORT);
    }

    let outside = Bystander::start(&cluster.lan.outside);
    cluster.masquerade_outbound();
    for &family in kind.families {
        for (number, peer) in (1..).zip([first, second]) {
            let seen = seen_by(&peer.net, family.outside(), PORT);
            assert_eq!(seen, family.machine(number));
        }
        cut_off(&cluster.lan.outside, first.ip(family), PORT);
        // Which changes nothing between pods.
        reach_each_other(&everyone, family);
    }
    drop(outside);

    cluster.route("del", 1, 2);
    for &family in kind.families {
        cut_off(&first.net, second.ip(family), PORT);
        reach_each_other(&[neighbour, first], family);
    }
    cluster.finish().await;
}

/// Every pod has one address of each family, of its node's range, the first family's first.
fn have_addresses_in_order(cluster: &Cluster, peers: &[Peer]) {
    let mut all: Vec<IpAddr> = Vec::new();
    // Two on the first node, one on every other.
    for (peer, number) in peers.iter().zip([1].into_iter().chain(cluster.numbers())) {
        let families: Vec<_> = peer.ips.iter().map(|ip| Family::of(*ip)).collect();
        assert_eq!(families, cluster.kind.families, "{:?}", peer.ips);
        for &family in cluster.kind.families {
            let range = family.pods_of(number);
            let prefix = range.trim_end_matches("0/24").trim_end_matches(":/64");
            let ip = peer.ip(family);
            assert!(ip.to_string().starts_with(prefix), "{ip} of {range}");
            let inside = peer.net.output(&["ip", "-o", "addr", "show", "eth0"]);
            assert!(inside.contains(&format!(" {ip}/")), "{inside}");
        }
        all.extend(&peer.ips);
    }
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "an address was given twice: {all:?}");
}

/// Another container of the pod reaches the server by localhost, in both families whatever the network has.
async fn share_localhost(cluster: &Cluster, peer: &Peer) {
    let fetch = format!(
        "for host in 127.0.0.1 [::1]; do wget -qO- http://$host:{PORT}/name || exit 1; done"
    );
    let name = &peer.pod.config.hostname;
    let client = sh("client", &fetch);
    let printed = cluster.node(1).output_of(&peer.pod, &client).await;
    assert_eq!(printed, format!("{name}\n{name}\n"));
    // What listens there is the pod's own.
    let elsewhere = &cluster.node(1).net;
    for lo in ["127.0.0.1", "::1"] {
        cut_off(elsewhere, lo.parse().expect("an address"), PORT);
    }
}

/// Every pod is seen by every other by its own address.
#[track_caller]
fn reach_each_other(peers: &[&Peer], family: Family) {
    for from in peers {
        for to in peers {
            let seen = seen_by(&from.net, to.ip(family), PORT);
            assert_eq!(seen, from.ip(family), "by {}", to.pod.config.hostname);
        }
    }
}

/// Pod and node reach each other; the node sees the pod's own address.
fn reach_the_node(cluster: &Cluster, peer: &Peer, family: Family) {
    let node = &cluster.node(1).net;
    let server = Bystander::start(node);
    let seen = seen_by(&peer.net, family.machine(1), PORT);
    assert_eq!(seen, peer.ip(family));
    drop(server);
    let name = node.run(|| host::http_get(peer.ip(family), PORT, "/name"));
    assert_eq!(name.expect("the pod's page").trim(), "on1");
}

/// A pod of the first node and the second node, as the kubelet there that probes it, reach each other.
fn reach_the_other_node(cluster: &Cluster, first: &Peer, second: &Peer, family: Family) {
    let node = &cluster.node(2).net;
    let seen = seen_by(node, first.ip(family), PORT);
    assert_eq!(seen, family.machine(2));
    let server = Bystander::start(node);
    let seen = seen_by(&first.net, family.machine(2), PORT);
    assert_eq!(seen, first.ip(family));
    drop(server);
    assert_ne!(first.ip(family), second.ip(family));
}

#[tokio::test]
async fn a_network_that_masquerades_hides_pods_from_other_nodes() {
    let kind = Kind {
        sample: BRIDGE,
        families: V4_V6,
        masquerade: true,
    };
    let cluster = Cluster::start(kind, 2).await;
    let (first, second) = (
        cluster.peer(1, "first").await,
        cluster.peer(2, "second").await,
    );
    let neighbour = cluster.peer(1, "neighbour").await;
    cluster.route_all();
    let outside = Bystander::start(&cluster.lan.outside);
    for &family in kind.families {
        let machine = family.machine(1);
        assert_eq!(seen_by(&first.net, family.outside(), PORT), machine);
        assert_eq!(seen_by(&first.net, second.ip(family), PORT), machine);
        reach_each_other(&[&first, &neighbour], family);
    }
    drop(outside);
    cluster.finish().await;
}
