//! A pod's network: its own side, and what of the node has to do with it.

mod rules;
mod tell;

use std::net::IpAddr;

use carpel_netlink::link::Link;
use carpel_netlink::route::{Found, LOCAL_TABLE, Question, UNICAST};
use carpel_netpath::Kernel;
use carpel_netpath::gather::Gathered;
use carpel_netpath::place::{LinkId, Peer, Place, PlaceId, World};
use serde_json::{Value, json};

use super::diagram::{Card, Diagram, Row, Section, Tone};
use super::subject::Subject;
use rules::{Lead, Leaving};

/// What there is to show of a pod.
pub struct View<'a> {
    gathered: &'a Gathered,
    subject: &'a Subject,
    pod: PlaceId,
    /// The links of the node that its packets pass, the nearest first.
    node_links: Vec<u32>,
    node_routes: Vec<Found>,
    /// Host ports, each with where it leads.
    host_ports: Vec<Lead>,
    /// What the node does to addresses of packets that leave.
    leaving: Vec<Leaving>,
    /// Other rules that name the pod's addresses.
    named: Vec<String>,
    /// Empty if the plugins find everything as they left it.
    check: Option<String>,
}

impl<'a> View<'a> {
    pub fn new(
        gathered: &'a Gathered,
        subject: &'a Subject,
        pod: PlaceId,
        check: Option<String>,
    ) -> Self {
        let world = &gathered.world;
        let ips = if subject.ips.is_empty() {
            own_addresses(world.place(pod))
        } else {
            subject.ips.clone()
        };
        let is_host = pod == World::NODE;
        let uplinks = uplinks(gathered, &ips);
        let mut node_links = if is_host {
            let links = world
                .place(pod)
                .links
                .iter()
                .filter(|link| !link.is_loopback && link.peer.is_none());
            links.map(|link| link.index).collect()
        } else {
            towards_the_node(world, pod)
        };
        for uplink in &uplinks {
            if !node_links.contains(uplink) {
                node_links.push(*uplink);
            }
        }
        let (host_ports, leaving, named) = if is_host {
            Default::default()
        } else {
            (
                rules::host_ports(gathered, subject, &ips),
                rules::leaving(gathered, &ips, &uplinks),
                rules::named(world.place(World::NODE), &ips),
            )
        };
        Self {
            gathered,
            subject,
            pod,
            node_routes: node_routes(world.place(World::NODE), &ips, &node_links),
            node_links,
            host_ports,
            leaving,
            named,
            check,
        }
    }

    fn world(&self) -> &World {
        &self.gathered.world
    }

    pub fn diagram(&self) -> Diagram {
        let ips: Vec<_> = self.subject.ips.iter().map(IpAddr::to_string).collect();
        let mut cards = Vec::new();
        if self.pod != World::NODE {
            let mut card =
                tell::pod_card(self.world(), self.pod, &self.subject.name, &ips.join(", "));
            card.wire = Some(self.wire());
            cards.push(card);
        }
        cards.push(self.node_card());
        let mut end = Vec::new();
        match self.check.as_deref() {
            None => {}
            Some("") => end.push(Row::new(
                "",
                "the network's plugins find everything as they left it (CHECK)",
                Tone::Good,
            )),
            Some(problem) => end.push(Row::new("", format!("CHECK: {problem}"), Tone::Stop)),
        }
        let netns = self
            .subject
            .netns
            .as_ref()
            .map(|path| path.display().to_string());
        let detail = netns.unwrap_or_else(|| "the network of the node".into());
        Diagram {
            title: self.subject.name.clone(),
            detail: format!("{}  {detail}", crate::cli::units::short(&self.subject.id)),
            sections: vec![Section {
                heading: String::new(),
                cards,
                end,
            }],
            remarks: self.cautions(),
        }
    }

    fn cautions(&self) -> Vec<String> {
        let mut places = vec![self.pod];
        if self.pod != World::NODE {
            places.push(World::NODE);
        }
        let told = places.into_iter().flat_map(|id| {
            let place = self.world().place(id);
            place
                .cautions
                .iter()
                .map(|caution| format!("{}: {caution}", place.name))
        });
        told.collect()
    }

    /// What joins pod and node.
    fn wire(&self) -> String {
        let place = self.world().place(self.pod);
        let links = place.links.iter().filter(|link| !link.is_loopback);
        let joined = links.filter_map(|link| {
            let id = LinkId {
                place: self.pod,
                index: link.index,
            };
            let Peer::Link(peer) = self.world().peer(id) else {
                return None;
            };
            let other = self.world().link(peer)?;
            let how = if link.kind == "veth" {
                "pair"
            } else {
                link.kind.as_str()
            };
            Some(format!("{} – {} ({how})", link.name, other.name))
        });
        joined.collect::<Vec<_>>().join(", ")
    }

    fn node_card(&self) -> Card {
        let node = self.world().place(World::NODE);
        let links: Vec<&Link> = self
            .node_links
            .iter()
            .filter_map(|index| node.link(*index))
            .collect();
        let mut rows = Vec::new();
        for link in &links {
            rows.extend(tell::link_rows(self.world(), World::NODE, link));
        }
        rows.extend(tell::labelled(
            "routes",
            self.node_routes
                .iter()
                .map(|route| tell::route(node, route)),
        ));
        let near = node.neighbours.iter().filter(|one| {
            one.addr.is_some_and(|addr| {
                self.subject.ips.contains(&addr)
                    || self
                        .node_routes
                        .iter()
                        .any(|route| route.gateway == Some(addr))
            })
        });
        rows.extend(tell::labelled(
            "neighbours",
            near.map(|one| tell::neighbour(node, one)),
        ));
        rows.extend(tell::labelled(
            "settings",
            tell::settings(node, &links).into_iter(),
        ));
        for lead in &self.host_ports {
            rows.push(lead.row());
        }
        rows.extend(tell::labelled(
            "nat",
            self.leaving
                .iter()
                .map(Leaving::text)
                .chain(self.named.iter().cloned()),
        ));
        Card {
            title: "node".into(),
            detail: String::new(),
            rows,
            wire: None,
        }
    }

    pub fn json(&self) -> Value {
        let node = self.world().place(World::NODE);
        let links = self.node_links.iter().filter_map(|index| node.link(*index));
        let node_json = json!({
            "links": links.map(|link| tell::link_json(self.world(), World::NODE, link)).collect::<Vec<_>>(),
            "routes": self.node_routes.iter().map(|route| tell::route_json(node, route)).collect::<Vec<_>>(),
            "settings": tell::settings_json(node, &self.node_links),
        });
        let pod = (self.pod != World::NODE).then(|| tell::place_json(self.world(), self.pod));
        json!({
            "pod": {
                "id": self.subject.id,
                "name": self.subject.name,
                "ips": self.subject.ips,
                "hostNetwork": self.pod == World::NODE,
                "netns": self.subject.netns,
            },
            "inside": pod,
            "node": node_json,
            "hostPorts": self.host_ports.iter().map(Lead::json).collect::<Vec<_>>(),
            "leaving": self.leaving.iter().map(Leaving::json).collect::<Vec<_>>(),
            "rulesThatNameIt": self.named,
            "check": self.check,
            "cautions": self.cautions(),
        })
    }
}

/// The addresses of a place that others may know.
fn own_addresses(place: &Place) -> Vec<IpAddr> {
    let all = place.addresses.iter().map(|one| one.net.addr());
    let known = |addr: &IpAddr| !addr.is_loopback() && !carpel_netpath::place::is_link_local(*addr);
    all.filter(known).collect()
}

/// The links of the node by which packets to the outside leave.
fn uplinks(gathered: &Gathered, ips: &[IpAddr]) -> Vec<u32> {
    let mut found = Vec::new();
    for is_ipv4 in [true, false] {
        if !ips.iter().any(|ip| ip.is_ipv4() == is_ipv4) {
            continue;
        }
        let route = gathered.route(World::NODE, &Question::to(rules::outside(is_ipv4)));
        if let Some(link) = route.ok().and_then(|route| route.link)
            && !found.contains(&link)
        {
            found.push(link);
        }
    }
    found
}

/// The other ends of the pod's links, the bridges that they are ports of, and the links that they share.
fn towards_the_node(world: &World, pod: PlaceId) -> Vec<u32> {
    let mut found = Vec::new();
    for link in &world.place(pod).links {
        let id = LinkId {
            place: pod,
            index: link.index,
        };
        let Peer::Link(peer) = world.peer(id) else {
            continue;
        };
        if peer.place != World::NODE {
            continue;
        }
        found.push(peer.index);
        found.extend(world.link(peer).and_then(|link| link.master));
    }
    found
}

/// The routes of the node to the pod, and to everywhere.
fn node_routes(node: &Place, ips: &[IpAddr], links: &[u32]) -> Vec<Found> {
    let routes = node.routes.iter().filter(|route| {
        let family = ips
            .iter()
            .any(|ip| ip.is_ipv4() == route.dst.addr().is_ipv4());
        let leads = ips.iter().any(|ip| route.dst.contains(*ip));
        let of_bridge =
            route.link.is_some_and(|link| links.contains(&link)) && route.kind == UNICAST;
        let own = carpel_netpath::place::is_link_local(route.dst.addr())
            || route.dst.addr().is_multicast();
        route.table != LOCAL_TABLE && family && (leads || of_bridge) && !own
    });
    routes.cloned().collect()
}
