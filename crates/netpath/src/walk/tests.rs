//! The walker on made-up machines, with a kernel that knows as much of routes as is needed.

use carpel_netlink::addr::Address;
use carpel_netlink::ipnet::IpNet;
use carpel_netlink::message::Attributes;
use carpel_netlink::neighbour::{FAILED, Neighbour, REACHABLE};
use carpel_netlink::route::{
    BLACKHOLE, Found, LOCAL, LOCAL_TABLE, MAIN_TABLE, PROHIBIT, Question, UNICAST, UNREACHABLE,
};
use rustix::io::Errno;

use super::*;
use crate::filter::parse_save;
use crate::place::{Listener, path_of_link};

/// Routes as the kernel has them, the longest prefix first.
struct Fake<'a>(&'a World);

impl Fake<'_> {
    fn find(place: &Place, dst: IpAddr) -> Result<Found, Errno> {
        for table in [LOCAL_TABLE, MAIN_TABLE] {
            let fits = |route: &&Found| route.table == table && route.dst.contains(dst);
            let best = place
                .routes
                .iter()
                .filter(fits)
                .max_by_key(|route| route.dst.prefix());
            match best.map(|found| found.kind) {
                None => {}
                Some(BLACKHOLE) => return Err(Errno::INVAL),
                Some(UNREACHABLE) => return Err(Errno::HOSTUNREACH),
                Some(PROHIBIT) => return Err(Errno::ACCESS),
                Some(_) => return Ok(best.cloned().expect("it was found")),
            }
        }
        Err(Errno::NETUNREACH)
    }
}

impl Kernel for Fake<'_> {
    fn route(&self, place: PlaceId, question: &Question) -> Result<Found, Errno> {
        let place = self.0.place(place);
        let mut found = Self::find(place, question.dst);
        if let (Some(from), Some(src), true) =
            (question.from_link, question.src, question.dst.is_ipv4())
        {
            let name = place.name_of(from);
            if place.is_local(src) {
                return Err(Errno::INVAL);
            }
            let back = Self::find(place, src).ok().and_then(|found| found.link);
            let strict = place.settings.effective(true, &name, "rp_filter") == 1;
            if strict && back != Some(from) {
                // As kernels from 6.13 on say it.
                return Err(Errno::INVAL);
            }
            let forwards = place.settings.of_link(true, &name, "forwarding") != 0;
            if !forwards && !found.as_ref().is_ok_and(|found| found.kind == LOCAL) {
                return Err(Errno::HOSTUNREACH);
            }
        }
        if let Ok(found) = &mut found
            && found.source.is_none()
            && let Some(link) = found.link
        {
            found.source = place.address_for(link, found.gateway.unwrap_or(question.dst));
        }
        found
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A machine that is being made up.
struct Made(World);

const NODE: PlaceId = World::NODE;
const A: PlaceId = PlaceId(1);
const B: PlaceId = PlaceId(2);

impl Made {
    fn new(names: &[&str]) -> Self {
        let place = |name: &&str| Place {
            name: (*name).to_owned(),
            ..Place::default()
        };
        let mut made = Self(World(names.iter().map(place).collect()));
        for at in 0..names.len() {
            let lo = made.link(PlaceId(at), 1, "lo", "");
            lo.is_loopback = true;
            lo.no_arp = true;
            made.address(PlaceId(at), 1, "127.0.0.1/8");
        }
        made
    }

    fn place(&mut self, id: PlaceId) -> &mut Place {
        &mut self.0.0[id.0]
    }

    fn link(&mut self, place: PlaceId, index: u32, name: &str, kind: &str) -> &mut Link {
        let links = &mut self.place(place).links;
        links.push(Link {
            index,
            name: name.into(),
            kind: kind.into(),
            mac: Mac([2, 0, 0, 0, place.0 as u8, index as u8]),
            up: true,
            carrier: true,
            mtu: 1500,
            ..Link::default()
        });
        links.last_mut().unwrap()
    }

    fn get(&mut self, place: PlaceId, index: u32) -> &mut Link {
        self.place(place)
            .links
            .iter_mut()
            .find(|link| link.index == index)
            .unwrap()
    }

    /// A pair between the node and a place.
    fn pair(&mut self, index: u32, name: &str, place: PlaceId) {
        self.link(NODE, index, name, "veth").peer = Some(2);
        self.get(NODE, index).peer_netns = Some(place.0 as i32);
        let end = self.link(place, 2, "eth0", "veth");
        end.peer = Some(index);
        end.peer_netns = Some(0);
        self.place(NODE).others.insert(place.0 as i32, place);
        self.place(place).others.insert(0, NODE);
    }

    fn port(&mut self, index: u32, bridge: u32, hairpin: bool, isolated: bool) {
        let link = self.get(NODE, index);
        link.master = Some(bridge);
        link.port_kind = "bridge".into();
        link.port = Attributes::default()
            .bytes(1, &[3])
            .bytes(4, &[u8::from(hairpin)])
            .bytes(33, &[u8::from(isolated)])
            .into_bytes();
    }

    fn address(&mut self, place: PlaceId, index: u32, text: &str) {
        let net = net(text);
        let tentative = false;
        self.place(place).addresses.push(Address {
            index,
            net,
            tentative,
            lasting: true,
        });
        self.route(
            place,
            &crate::place::alone(net.addr()).to_string(),
            None,
            Some(index),
            LOCAL,
        );
        self.place(place).routes.last_mut().unwrap().table = LOCAL_TABLE;
        if !net.addr().is_loopback() {
            self.route(
                place,
                &net.network().to_string(),
                None,
                Some(index),
                UNICAST,
            );
        }
    }

    fn route(&mut self, place: PlaceId, dst: &str, via: Option<&str>, link: Option<u32>, kind: u8) {
        self.place(place).routes.push(Found {
            dst: net(dst),
            gateway: via.map(ip),
            link,
            table: MAIN_TABLE,
            kind,
            source: None,
            priority: 0,
            mtu: 0,
            hops: Vec::new(),
        });
    }

    fn set(&mut self, place: PlaceId, link: &str, key: &str, value: i64) {
        let path = path_of_link(true, link, key);
        self.place(place).settings.0.insert(path, value);
    }

    fn rules(&mut self, place: PlaceId, save: &str) {
        let rules = parse_save(save, true);
        self.place(place).rules.extend(rules);
    }

    fn listen(&mut self, place: PlaceId, port: u16) {
        let listener = Listener {
            protocol: 6,
            addr: None,
            port,
        };
        self.place(place).listeners.push(listener);
    }

    fn go(&self, from: PlaceId, to: &str, port: Option<u16>) -> Journey {
        let errand = Errand {
            from,
            to: ip(to),
            protocol: Protocol::Tcp,
            port,
        };
        journey(&self.0, &Fake(&self.0), errand)
    }
}

/// A node with a bridge and two pods on it, and a way out.
fn bridged() -> Made {
    let mut made = Made::new(&["node", "a", "b"]);
    made.link(NODE, 2, "cni0", "bridge");
    made.address(NODE, 2, "10.88.0.1/16");
    made.link(NODE, 3, "eth0", "");
    made.address(NODE, 3, "192.0.2.5/24");
    made.route(NODE, "0.0.0.0/0", Some("192.0.2.1"), Some(3), UNICAST);
    for (place, index, name, addr) in [
        (A, 10, "vetha", "10.88.0.2/16"),
        (B, 11, "vethb", "10.88.0.3/16"),
    ] {
        made.pair(index, name, place);
        made.port(index, 2, false, false);
        made.address(place, 2, addr);
        made.route(place, "0.0.0.0/0", Some("10.88.0.1"), Some(2), UNICAST);
    }
    for link in ["all", "cni0", "eth0", "vetha", "vethb"] {
        made.set(NODE, link, "forwarding", 1);
    }
    made
}

/// A node with two pods on pairs of their own.
fn pairs() -> Made {
    let mut made = Made::new(&["node", "a", "b"]);
    for (place, index, name, addr) in [(A, 10, "vetha", "10.88.0.2"), (B, 11, "vethb", "10.88.0.3")]
    {
        made.pair(index, name, place);
        made.address(NODE, index, "10.88.0.1/32");
        made.route(NODE, &format!("{addr}/32"), None, Some(index), UNICAST);
        made.address(place, 2, &format!("{addr}/32"));
        made.route(place, "10.88.0.1/32", None, Some(2), UNICAST);
        made.route(place, "0.0.0.0/0", Some("10.88.0.1"), Some(2), UNICAST);
        made.set(NODE, name, "forwarding", 1);
    }
    made
}

fn texts(walk: &Walk) -> String {
    let hops = walk.hops.iter();
    hops.map(|hop| format!("{} {}\n", hop.about.word(), hop.text))
        .collect()
}

/// Checks that a walk stops for a reason, and what it says.
#[track_caller]
fn stops(walk: &Walk, at: PlaceId, wanted: Reason, part: &str) {
    match &walk.end {
        End::Stopped {
            place,
            reason,
            text,
            ..
        } => {
            assert_eq!((*place, *reason), (at, wanted), "{text}\n{}", texts(walk));
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        other => panic!("{other:?}\n{}", texts(walk)),
    }
}

#[track_caller]
fn reaches(journey: &Journey, at: PlaceId) {
    assert_eq!(
        journey.there.end,
        End::Reached { place: at },
        "{}",
        texts(&journey.there)
    );
    let back = journey.back.as_ref().expect("an answer");
    assert!(
        matches!(back.end, End::Reached { .. }),
        "{:?}\n{}",
        back.end,
        texts(back)
    );
    assert!(journey.arrives());
}

#[test]
fn over_a_bridge() {
    let mut made = bridged();
    let journey = made.go(A, "10.88.0.3", None);
    reaches(&journey, B);
    let text = texts(&journey.there);
    assert!(
        text.contains("bridge bridge cni0: in by vetha, out by vethb"),
        "{text}"
    );
    assert!(
        text.contains("neighbour 10.88.0.3 on eth0 will be asked for; b has it"),
        "{text}"
    );
    assert_eq!(journey.there.packet.tuple.src, ip("10.88.0.2"));
    // A port that nobody listens on, and one that somebody does.
    stops(
        &made.go(A, "10.88.0.3", Some(80)).there,
        B,
        Reason::NobodyListens,
        "tcp port 80",
    );
    made.listen(B, 80);
    reaches(&made.go(A, "10.88.0.3", Some(80)), B);
    // The node itself, and a pod itself.
    reaches(&made.go(A, "10.88.0.1", None), NODE);
    reaches(&made.go(A, "10.88.0.2", None), A);
    reaches(&made.go(NODE, "10.88.0.2", None), A);
}

#[test]
fn over_pairs_by_the_nodes_routes() {
    let mut made = pairs();
    let journey = made.go(A, "10.88.0.3", None);
    reaches(&journey, B);
    let text = texts(&journey.there);
    assert!(text.contains("route 10.88.0.3 dev vethb"), "{text}");
    made.set(NODE, "vetha", "forwarding", 0);
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::ForwardingOff,
        "net.ipv4.conf.vetha.forwarding is 0",
    );
    let mut made = pairs();
    made.place(NODE)
        .routes
        .retain(|route| route.dst != net("10.88.0.3/32"));
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::NoRoute,
        "no route to 10.88.0.3 in node",
    );
    // The way back counts, too.
    let mut made = pairs();
    made.place(B).routes.retain(|route| route.dst.prefix() != 0);
    let journey = made.go(A, "10.88.0.3", None);
    assert_eq!(journey.there.end, End::Reached { place: B });
    stops(
        journey.back.as_ref().unwrap(),
        B,
        Reason::NoRoute,
        "not even a default one",
    );
    assert!(!journey.arrives());
}

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

#[test]
fn rules_drop_and_may_drop() {
    let filter = |rule: &str| format!("*filter\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n");
    let with = |rule: &str| {
        let mut made = pairs();
        made.rules(NODE, &filter(rule));
        made.listen(B, 80);
        made
    };
    let made = with("-A FORWARD -s 10.88.0.2/32 -p tcp -m tcp --dport 80 -j DROP");
    stops(
        &made.go(A, "10.88.0.3", Some(80)).there,
        NODE,
        Reason::Dropped,
        "table ip filter (legacy), chain FORWARD: -s 10.88.0.2/32",
    );
    // Of a port that is not known it may or may not be one.
    let journey = made.go(A, "10.88.0.3", None);
    reaches(&journey, B);
    let maybe = journey
        .there
        .hops
        .iter()
        .find(|hop| hop.mood == Mood::Maybe)
        .expect("told");
    assert!(
        maybe.text.starts_with("may be dropped by table ip filter"),
        "{}",
        maybe.text
    );
    // The other way round it does not matter, but the answer is no new connection.
    reaches(&made.go(B, "10.88.0.2", None), A);
    let made = with("-A FORWARD -i vethb -m conntrack --ctstate NEW -j REJECT");
    reaches(&made.go(A, "10.88.0.3", None), B);
    stops(
        &made.go(B, "10.88.0.2", None).there,
        NODE,
        Reason::Rejected,
        "chain FORWARD",
    );
    let mut made = pairs();
    made.rules(NODE, "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n");
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::Dropped,
        "policy drop",
    );
    // Rules of the pod's own.
    let mut made = pairs();
    made.rules(B, "*filter\n:INPUT DROP [0:0]\nCOMMIT\n");
    stops(
        &made.go(A, "10.88.0.3", None).there,
        B,
        Reason::Dropped,
        "chain INPUT: policy drop",
    );
}

#[test]
fn bridges_show_their_packets_to_the_filter_if_they_are_told_to() {
    let mut made = bridged();
    made.rules(NODE, "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    reaches(&made.go(A, "10.88.0.3", None), B);
    made.place(NODE)
        .settings
        .0
        .insert("bridge/bridge-nf-call-iptables".into(), 1);
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::Dropped,
        "policy drop",
    );
}

/// Rules as kube-proxy writes them, with two endpoints.
const SERVICES: &str = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SEP-1 -s 10.88.0.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.88.0.2:8080
-A KUBE-SEP-2 -s 10.88.0.3/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.88.0.3:8080
COMMIT
";

#[test]
fn services_lead_to_one_of_their_pods_and_answers_come_back() {
    let mut made = bridged();
    made.rules(NODE, SERVICES);
    made.listen(A, 8080);
    made.listen(B, 8080);
    let journey = made.go(A, "10.96.0.10", Some(80));
    let text = texts(&journey.there);
    assert!(
        text.contains("goes by chance to one of 10.88.0.2:8080, 10.88.0.3:8080"),
        "{text}"
    );
    // The first is the pod itself: it is masqueraded, and leaves by the port that it came from.
    assert!(
        text.contains("destination becomes 10.88.0.2:8080"),
        "{text}"
    );
    assert!(text.contains("source becomes 10.88.0.1"), "{text}");
    reaches(&journey, A);
    let back = texts(journey.back.as_ref().unwrap());
    assert!(
        back.contains("the answer's destination is put back to 10.88.0.2"),
        "{back}"
    );
    assert!(
        back.contains("its source is put back to 10.96.0.10:80"),
        "{back}"
    );
    // Another port of the service leads nowhere.
    let there = made.go(A, "10.96.0.10", Some(81)).there;
    assert!(matches!(there.end, End::Left { .. }), "{there:?}");
    // From the node itself.
    reaches(&made.go(NODE, "10.96.0.10", Some(80)), A);
}

#[test]
fn masquerading_is_undone_for_the_answer() {
    let mut made = bridged();
    made.rules(NODE, "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.88.0.0/16 ! -d 10.88.0.0/16 -j MASQUERADE\nCOMMIT\n");
    let journey = made.go(A, "198.51.100.7", None);
    let End::Left { text, .. } = &journey.there.end else {
        panic!("{journey:?}");
    };
    assert!(text.contains("from 192.0.2.5"), "{text}");
    reaches(&made.go(A, "10.88.0.3", None), B);
}

#[test]
fn a_packet_that_comes_round_is_stopped() {
    let mut made = pairs();
    // Each pod takes the other for the way to everywhere, and both forward.
    for (place, other) in [(A, 11), (B, 10)] {
        made.set(place, "eth0", "forwarding", 1);
        let _ = other;
    }
    made.route(NODE, "203.0.113.0/24", Some("10.88.0.3"), Some(11), UNICAST);
    stops(
        &made.go(A, "203.0.113.1", None).there,
        B,
        Reason::Circles,
        "goes in circles",
    );
}

#[test]
fn what_was_not_looked_at_is_said_to_be_so() {
    let mut made = bridged();
    made.place(NODE).others.remove(&2);
    let there = made.go(A, "10.88.0.3", None).there;
    let End::Unknown { text, .. } = &there.end else {
        panic!("{there:?}");
    };
    assert!(
        text.contains("vethb leads to another network namespace (number 2 here)"),
        "{text}"
    );
}

#[test]
fn links_that_share_another_do_not_lead_to_its_owner() {
    let mut made = Made::new(&["node", "a", "b"]);
    made.link(NODE, 3, "eth0", "");
    made.address(NODE, 3, "192.0.2.5/24");
    for (place, addr) in [(A, "192.0.2.20/24"), (B, "192.0.2.21/24")] {
        let link = made.link(place, 2, "eth0", "macvlan");
        link.peer = Some(3);
        link.peer_netns = Some(0);
        made.place(place).others.insert(0, NODE);
        made.address(place, 2, addr);
    }
    reaches(&made.go(A, "192.0.2.21", None), B);
    let there = made.go(A, "192.0.2.5", None).there;
    assert!(
        matches!(there.end, End::Left { .. } | End::Stopped { .. }),
        "{there:?}"
    );
    let mac = made.get(NODE, 3).mac;
    made.place(A).neighbours.push(Neighbour {
        index: 2,
        addr: Some(ip("192.0.2.5")),
        mac: Some(mac),
        state: REACHABLE,
        bridge: None,
        vlan: None,
    });
    stops(
        &made.go(A, "192.0.2.5", None).there,
        A,
        Reason::NotForUs,
        "does not lead to that machine itself",
    );
    let journey = made.go(A, "192.0.2.99", None);
    assert!(
        matches!(journey.there.end, End::Left { place: NODE, .. }),
        "{journey:?}"
    );
}
