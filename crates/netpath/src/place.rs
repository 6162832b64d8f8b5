//! The places that packets pass: network namespaces with all that matters there, and how they hang together.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use carpel_netlink::addr::Address;
use carpel_netlink::bridge::Port;
use carpel_netlink::ipnet::IpNet;
use carpel_netlink::link::{Link, Mac};
use carpel_netlink::neighbour::{DELAY, NOARP, Neighbour, PERMANENT, PROBE, REACHABLE, STALE};
use carpel_netlink::route::{self, Found};
use carpel_netlink::vlan::Membership;

use crate::filter::Ruleset;

/// A place, by its number in the [`World`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(pub usize);

/// A link of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkId {
    pub place: PlaceId,
    pub index: u32,
}

/// Settings under /proc/sys/net, by their path from there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<String, i64>);

impl Settings {
    /// A setting; 0 if the kernel has none of that name.
    #[must_use]
    pub fn get(&self, path: &str) -> i64 {
        self.0.get(path).copied().unwrap_or(0)
    }

    /// A link's setting in a family, such as `rp_filter`.
    #[must_use]
    pub fn of_link(&self, is_ipv4: bool, link: &str, key: &str) -> i64 {
        self.get(&path_of_link(is_ipv4, link, key))
    }

    /// The stricter of a link's setting and that for all links.
    #[must_use]
    pub fn effective(&self, is_ipv4: bool, link: &str, key: &str) -> i64 {
        let all = self.of_link(is_ipv4, "all", key);
        all.max(self.of_link(is_ipv4, link, key))
    }
}

/// The path of a link's setting.
#[must_use]
pub fn path_of_link(is_ipv4: bool, link: &str, key: &str) -> String {
    let family = if is_ipv4 { "ipv4" } else { "ipv6" };
    format!("{family}/conf/{link}/{key}")
}

/// A process that waits for connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub protocol: u8,
    /// None: on all addresses, those of IPv4 included.
    pub addr: Option<IpAddr>,
    pub port: u16,
}

/// A network namespace.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// "node", or a pod's name.
    pub name: String,
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    /// Of both families and of every table.
    pub routes: Vec<Found>,
    pub neighbours: Vec<Neighbour>,
    /// What the bridges and tunnels know.
    pub forwarding: Vec<Neighbour>,
    pub memberships: Vec<(u32, Membership)>,
    /// How links queue packets, each by its name; one of `ingress` or `clsact` has programs look at them.
    pub disciplines: Vec<(u32, String)>,
    pub settings: Settings,
    pub rules: Ruleset,
    pub listeners: Vec<Listener>,
    /// The other places, as this one numbers them.
    pub others: HashMap<i32, PlaceId>,
    /// What cannot be taken into account, each in a sentence.
    pub cautions: Vec<String>,
}

impl Place {
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    #[must_use]
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The name of a link, whatever it is.
    #[must_use]
    pub fn name_of(&self, index: u32) -> String {
        let found = self.link(index);
        found.map_or_else(|| format!("link {index}"), |link| link.name.clone())
    }

    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |one| one.index == index)
    }

    /// The ports of a bridge, with how it treats them.
    pub fn ports_of(&self, bridge: u32) -> impl Iterator<Item = (&Link, Port)> {
        let ports = self
            .links
            .iter()
            .filter(move |link| link.master == Some(bridge));
        ports.filter_map(|link| Some((link, link.bridge_port()?)))
    }

    /// What an address is to this place: [`route::LOCAL`], [`route::BROADCAST`], [`route::MULTICAST`] or
    /// [`route::UNICAST`].
    #[must_use]
    pub fn address_type(&self, addr: IpAddr) -> u8 {
        let local = self
            .routes
            .iter()
            .filter(|route| route.table == route::LOCAL_TABLE && route.dst.contains(addr));
        match local.max_by_key(|route| route.dst.prefix()) {
            _ if addr.is_multicast() => route::MULTICAST,
            Some(found) => found.kind,
            None => route::UNICAST,
        }
    }

    #[must_use]
    pub fn is_local(&self, addr: IpAddr) -> bool {
        self.address_type(addr) == route::LOCAL
    }

    /// The address that a link gives to what it masquerades: one of the next hop's subnet, else its first.
    #[must_use]
    pub fn address_for(&self, link: u32, next_hop: IpAddr) -> Option<IpAddr> {
        let of_family = |one: &&Address| {
            one.net.addr().is_ipv4() == next_hop.is_ipv4() && !is_link_local(one.net.addr())
        };
        let all: Vec<_> = self.addresses_of(link).filter(of_family).collect();
        let near = all.iter().find(|one| one.net.contains(next_hop));
        near.or(all.first()).map(|one| one.net.addr())
    }

    /// What is known of a neighbour on a link.
    #[must_use]
    pub fn neighbour(&self, link: u32, addr: IpAddr) -> Option<&Neighbour> {
        let mut all = self.neighbours.iter();
        all.find(|one| one.index == link && one.addr == Some(addr))
    }

    /// Where a bridge has seen a hardware address: a port, or the bridge itself.
    #[must_use]
    pub fn seen_at(&self, bridge: &Link, mac: Mac) -> Option<u32> {
        if bridge.mac == mac {
            return Some(bridge.index);
        }
        let of_bridge = |one: &&Neighbour| {
            one.mac == Some(mac) && (one.bridge == Some(bridge.index) || one.index == bridge.index)
        };
        let entry = self.forwarding.iter().find(of_bridge)?;
        // A port's own address is the machine's: what is sent to it goes up.
        let own = entry.state & PERMANENT != 0
            && self.link(entry.index).is_some_and(|port| port.mac == mac);
        Some(if own { bridge.index } else { entry.index })
    }

    /// The VLAN that what comes in by a port without a tag is in; and whether it leaves by a port, and without.
    #[must_use]
    pub fn own_vlan(&self, port: u32) -> Option<u16> {
        let mut all = self.memberships.iter();
        let own = all.find(|(index, one)| *index == port && one.is_own);
        own.map(|(_, one)| one.id)
    }

    #[must_use]
    pub fn membership(&self, port: u32, vlan: u16) -> Option<Membership> {
        let mut all = self.memberships.iter();
        let found = all.find(|(index, one)| *index == port && one.id == vlan);
        found.map(|(_, one)| *one)
    }

    /// Whether somebody waits for a connection.
    #[must_use]
    pub fn listens(&self, protocol: u8, addr: IpAddr, port: u16) -> bool {
        self.listeners.iter().any(|one| {
            one.protocol == protocol
                && one.port == port
                && one.addr.is_none_or(|bound| {
                    bound == addr || (bound.is_unspecified() && bound.is_ipv4() == addr.is_ipv4())
                })
        })
    }
}

/// Whether the kernel sends to a neighbour in this state without asking first.
#[must_use]
pub fn is_usable(state: u16) -> bool {
    state & (REACHABLE | STALE | DELAY | PROBE | NOARP | PERMANENT) != 0
}

/// A state of a neighbour in a word.
#[must_use]
pub fn state_of_neighbour(state: u16) -> &'static str {
    match state {
        0x01 => "incomplete",
        0x02 => "reachable",
        0x04 => "stale",
        0x08 => "delay",
        0x10 => "probe",
        0x20 => "failed",
        0x40 => "noarp",
        0x80.. => "permanent",
        _ => "none",
    }
}

#[must_use]
pub fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

/// Where the other end of a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Link(LinkId),
    /// In a network namespace that is none of the places.
    Elsewhere(Option<i32>),
    /// It has none.
    Nowhere,
}

/// All places. The first is the node.
#[derive(Debug, Clone, Default)]
pub struct World(pub Vec<Place>);

impl World {
    pub const NODE: PlaceId = PlaceId(0);

    #[must_use]
    pub fn place(&self, id: PlaceId) -> &Place {
        &self.0[id.0]
    }

    #[must_use]
    pub fn link(&self, id: LinkId) -> Option<&Link> {
        self.place(id.place).link(id.index)
    }

    /// The other end of a pair, or the link below a link.
    #[must_use]
    pub fn peer(&self, of: LinkId) -> Peer {
        let place = self.place(of.place);
        let Some(link) = place.link(of.index) else {
            return Peer::Nowhere;
        };
        let Some(index) = link.peer.filter(|index| *index != 0) else {
            return Peer::Nowhere;
        };
        let other = match link.peer_netns {
            None => Some(of.place),
            Some(number) => place.others.get(&number).copied(),
        };
        match other {
            Some(place) if self.place(place).link(index).is_some() => {
                Peer::Link(LinkId { place, index })
            }
            Some(_) => Peer::Nowhere,
            None => Peer::Elsewhere(link.peer_netns),
        }
    }

    /// The place that has an address, the node last: with the same network it is the pod that is meant.
    #[must_use]
    pub fn owner(&self, addr: IpAddr) -> Option<PlaceId> {
        let order = (1..self.0.len()).chain([0]);
        order.map(PlaceId).find(|id| {
            self.place(*id)
                .addresses
                .iter()
                .any(|one| one.net.addr() == addr)
        })
    }
}

/// An address as a network of its own.
#[must_use]
pub fn alone(addr: IpAddr) -> IpNet {
    let width = if addr.is_ipv4() { 32 } else { 128 };
    IpNet::new(addr, width).expect("the whole width fits")
}
