//! Who can be asked for a hardware address: everybody on the same segment.

use std::collections::HashSet;
use std::net::IpAddr;

use carpel_netlink::link::Mac;
use carpel_netlink::neighbour::{FAILED, INCOMPLETE};

use super::{About, Mood, Outcome, Reason, Walker, stop};
use crate::place::{LinkId, Peer, is_usable, state_of_neighbour};

/// What a link leads to.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// Links that have addresses, or could.
    pub links: Vec<LinkId>,
    /// There is more that cannot be seen.
    pub leads_on: bool,
}

impl Walker<'_> {
    /// The hardware address of the next hop. `None`: it is not known, and somebody out of sight may have it.
    pub(super) fn resolve(&mut self, out: LinkId, next_hop: IpAddr) -> Outcome<Option<Mac>> {
        let link = self.link(out)?;
        let name = link.name.clone();
        let entry = self.place(out.place).neighbour(out.index, next_hop);
        if let Some(entry) = entry
            && is_usable(entry.state)
            && let Some(mac) = entry.mac
        {
            let state = state_of_neighbour(entry.state);
            let text = format!("{next_hop} on {name} is {mac} ({state})");
            self.hop(out.place, About::Neighbour, text);
            return Ok(Some(mac));
        }
        let failed = entry.is_some_and(|entry| entry.state & (FAILED | INCOMPLETE) != 0);
        let ends = self.ends_beyond(out);
        let owner = ends
            .links
            .iter()
            .find(|end| self.answers_for(**end, next_hop));
        if let Some(owner) = owner {
            let mac = self.link(*owner)?.mac;
            let whose = &self.place(owner.place).name;
            let text =
                format!("{next_hop} on {name} will be asked for; {whose} has it, with {mac}");
            let mood = if failed { Mood::Note } else { Mood::Sure };
            self.note(out.place, About::Neighbour, mood, text);
            return Ok(Some(mac));
        }
        if !ends.leads_on {
            let text = format!("nobody on {name} has {next_hop}");
            return stop(out.place, Reason::NoNeighbour, text);
        }
        if failed {
            let state = entry.map_or("failed", |entry| state_of_neighbour(entry.state));
            let text = format!("nobody on {name} answers for {next_hop} ({state})");
            return stop(out.place, Reason::NoNeighbour, text);
        }
        let text =
            format!("{next_hop} on {name} will be asked for; who has it cannot be seen from here");
        self.note(out.place, About::Neighbour, Mood::Note, text);
        Ok(None)
    }

    /// Whether who has a link says "me" when it is asked for an address.
    fn answers_for(&self, end: LinkId, addr: IpAddr) -> bool {
        let (place, Some(link)) = (self.place(end.place), self.world.link(end)) else {
            return false;
        };
        let is_ipv4 = addr.is_ipv4();
        let own = place
            .addresses_of(end.index)
            .any(|one| one.net.addr() == addr);
        // IPv4 answers for every address that the machine has, unless it is told not to.
        let any = is_ipv4
            && place.is_local(addr)
            && place.settings.effective(true, &link.name, "arp_ignore") == 0;
        let proxy = if is_ipv4 { "proxy_arp" } else { "proxy_ndp" };
        own || any || place.settings.effective(is_ipv4, &link.name, proxy) != 0
    }

    /// Who is on the other side of a link.
    pub(super) fn ends_beyond(&self, out: LinkId) -> Ends {
        let mut ends = Ends::default();
        let mut seen = HashSet::from([out]);
        match self.world.link(out) {
            Some(link) if link.kind == "bridge" => {
                self.explore_bridge(out, None, &mut seen, &mut ends)
            }
            _ => self.explore(out, &mut seen, &mut ends),
        }
        ends.links.retain(|link| *link != out);
        ends
    }

    /// Who is behind a port of a bridge.
    pub(super) fn ends_behind(&self, port: LinkId) -> Ends {
        let mut ends = Ends::default();
        self.explore(port, &mut HashSet::from([port]), &mut ends);
        ends
    }

    fn explore(&self, from: LinkId, seen: &mut HashSet<LinkId>, ends: &mut Ends) {
        let Some(link) = self.world.link(from) else {
            return;
        };
        match link.kind.as_str() {
            "veth" => match self.world.peer(from) {
                Peer::Link(peer) => self.reach(peer, seen, ends),
                Peer::Elsewhere(_) => ends.leads_on = true,
                Peer::Nowhere => {}
            },
            "macvlan" | "macvtap" | "ipvlan" => match self.world.peer(from) {
                Peer::Link(lower) => {
                    let others = self.sharing(lower).into_iter().filter(|one| *one != from);
                    ends.links.extend(others);
                    if seen.insert(lower) {
                        self.explore(lower, seen, ends);
                    }
                }
                _ => ends.leads_on = true,
            },
            "dummy" => {}
            _ => ends.leads_on = true,
        }
    }

    /// A link is on the segment: itself, or the bridge that it is a port of.
    fn reach(&self, at: LinkId, seen: &mut HashSet<LinkId>, ends: &mut Ends) {
        if !seen.insert(at) {
            return;
        }
        ends.links.extend(self.sharing(at));
        let Some(link) = self.world.link(at) else {
            return;
        };
        match link.master.filter(|_| link.port_kind == "bridge") {
            None => ends.links.push(at),
            Some(bridge) => {
                let bridge = LinkId {
                    place: at.place,
                    index: bridge,
                };
                if seen.insert(bridge) {
                    ends.links.push(bridge);
                    self.explore_bridge(bridge, Some(at), seen, ends);
                }
            }
        }
    }

    fn explore_bridge(
        &self,
        bridge: LinkId,
        except: Option<LinkId>,
        seen: &mut HashSet<LinkId>,
        ends: &mut Ends,
    ) {
        let ports: Vec<_> = self
            .place(bridge.place)
            .ports_of(bridge.index)
            // Also one that does not forward: the packet will come to the same place as the question.
            .map(|(port, _)| LinkId {
                place: bridge.place,
                index: port.index,
            })
            .collect();
        for port in ports {
            if Some(port) != except && seen.insert(port) {
                self.explore(port, seen, ends);
            }
        }
    }

    /// The links that share a link.
    pub(super) fn sharing(&self, lower: LinkId) -> Vec<LinkId> {
        let mut found = Vec::new();
        for (at, place) in self.world.0.iter().enumerate() {
            for link in &place.links {
                let id = LinkId {
                    place: crate::place::PlaceId(at),
                    index: link.index,
                };
                let shares = ["macvlan", "macvtap", "ipvlan"].contains(&link.kind.as_str());
                if shares && self.world.peer(id) == Peer::Link(lower) {
                    found.push(id);
                }
            }
        }
        found
    }
}
