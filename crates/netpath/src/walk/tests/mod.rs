//! The walker on made-up machines, with a kernel that knows as much of routes as is needed.

mod refusals;
mod rules;

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
