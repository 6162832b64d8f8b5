//! What stops a packet on its way: routes, settings, neighbours, links and ports.

use super::*;

#[test]
fn routes_that_refuse_are_told_apart() {
    for (kind, part) in [
        (BLACKHOLE, "throws away"),
        (UNREACHABLE, "unreachable"),
        (PROHIBIT, "prohibits"),
    ] {
        let mut made = bridged();
        made.route(A, "10.88.0.3/32", None, None, kind);
        stops(
            &made.go(A, "10.88.0.3", None).there,
            A,
            Reason::Refused,
            part,
        );
        let mut made = pairs();
        made.place(NODE)
            .routes
            .retain(|route| route.dst != net("10.88.0.3/32"));
        made.route(NODE, "10.88.0.3/32", None, None, kind);
        let there = made.go(A, "10.88.0.3", None).there;
        assert!(
            matches!(there.end, End::Stopped { place: NODE, .. }),
            "{there:?}"
        );
    }
    let made = bridged();
    stops(
        &made.go(A, "2001:db8::1", None).there,
        A,
        Reason::NoRoute,
        "a has no IPv6 address",
    );
}

#[test]
fn rp_filter_says_which_way_answers_would_take() {
    let mut made = pairs();
    made.set(NODE, "vetha", "rp_filter", 1);
    reaches(&made.go(A, "10.88.0.3", None), B);
    // The pod's address is routed to another link.
    made.route(NODE, "10.88.0.2/32", None, Some(11), UNICAST);
    made.place(NODE)
        .routes
        .retain(|route| route.dst != net("10.88.0.2/32") || route.link != Some(10));
    let there = made.go(A, "10.88.0.3", None).there;
    stops(
        &there,
        NODE,
        Reason::ReversePath,
        "rp_filter is 1 on vetha: answers to 10.88.0.2 would leave by vethb",
    );
    let End::Stopped {
        advice: Some(advice),
        ..
    } = there.end
    else {
        panic!("there is advice");
    };
    assert!(
        advice.contains("net.ipv4.conf.vetha.rp_filter=2"),
        "{advice}"
    );
}

#[test]
fn a_source_that_is_the_nodes_own_is_a_martian() {
    let mut made = pairs();
    made.address(NODE, 1, "10.88.0.2/32");
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::Martian,
        "is an address of node itself",
    );
}

#[test]
fn neighbours_and_links() {
    let mut made = bridged();
    stops(
        &made.go(A, "10.88.9.9", None).there,
        A,
        Reason::NoNeighbour,
        "nobody on eth0 has 10.88.9.9",
    );
    // Beyond the machine nobody can tell, unless the kernel has tried.
    let journey = made.go(A, "198.51.100.7", None);
    let End::Left { text, .. } = &journey.there.end else {
        panic!("{journey:?}");
    };
    assert!(
        text.contains("leaves this machine by eth0, from 10.88.0.2"),
        "{text}"
    );
    let entry = |state, mac| Neighbour {
        index: 3,
        addr: Some(ip("192.0.2.1")),
        mac,
        state,
        bridge: None,
        vlan: None,
    };
    made.place(NODE).neighbours.push(entry(FAILED, None));
    stops(
        &made.go(A, "198.51.100.7", None).there,
        NODE,
        Reason::NoNeighbour,
        "nobody on eth0 answers for 192.0.2.1 (failed)",
    );
    made.place(NODE).neighbours[0] = entry(REACHABLE, Some(Mac([2, 9, 9, 9, 9, 9])));
    let text = texts(&made.go(A, "198.51.100.7", None).there);
    assert!(
        text.contains("192.0.2.1 on eth0 is 02:09:09:09:09:09 (reachable)"),
        "{text}"
    );
    // An old entry leads to nobody.
    let mut made = bridged();
    made.place(A).neighbours.push(Neighbour {
        index: 2,
        addr: Some(ip("10.88.0.3")),
        ..entry(REACHABLE, Some(Mac([2, 9, 9, 9, 9, 9])))
    });
    made.place(NODE).links.retain(|link| link.name != "eth0");
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::NoNeighbour,
        "nobody behind bridge cni0 has 02:09:09:09:09:09",
    );
    let mut made = bridged();
    made.get(B, 2).up = false;
    stops(
        &made.go(A, "10.88.0.3", None).there,
        B,
        Reason::LinkDown,
        "eth0 is down",
    );
    made.get(A, 2).up = false;
    stops(
        &made.go(A, "10.88.0.3", None).there,
        A,
        Reason::LinkDown,
        "eth0 is down",
    );
}

#[test]
fn ports_of_a_bridge_may_not_speak_to_each_other() {
    let mut made = bridged();
    made.port(10, 2, false, true);
    reaches(&made.go(A, "10.88.0.3", None), B);
    made.port(11, 2, false, true);
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::PortIsolated,
        "vetha and vethb are isolated",
    );
    let mut made = bridged();
    made.get(NODE, 11).port = Attributes::default().bytes(1, &[4]).into_bytes();
    let there = made.go(A, "10.88.0.3", None).there;
    // Whoever is behind it is not asked, either.
    assert!(matches!(there.end, End::Stopped { .. }), "{there:?}");
    made.get(NODE, 10).port = Attributes::default().bytes(1, &[0]).into_bytes();
    stops(
        &made.go(A, "10.88.0.1", None).there,
        NODE,
        Reason::PortBlocked,
        "as a port of cni0 it is disabled",
    );
}
