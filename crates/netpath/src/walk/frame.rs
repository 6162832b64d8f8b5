//! What links do with a packet: pairs, bridges, and links that share another.

use carpel_netlink::bridge::{FORWARDING, Port};
use carpel_netlink::link::{Link, Mac};
use carpel_netlink::vlan::is_filtering;

use super::{About, At, End, Mood, Outcome, Reason, Walker, stop, stop_with};
use crate::filter::{Hook, Layer};
use crate::place::{LinkId, Peer};

/// Links that put packets into others, for somebody far away.
const TUNNELS: [&str; 10] = [
    "vxlan",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ipip",
    "sit",
    "ip6tnl",
    "wireguard",
    "tun",
];

impl Walker<'_> {
    /// It is to leave by a link: whose hardware address must it have?
    pub(super) fn transmit(&mut self, out: LinkId, next_hop: std::net::IpAddr) -> Outcome<At> {
        let link = self.link(out)?;
        self.check_up(out, link)?;
        match self.first_mtu {
            None => self.first_mtu = Some(link.mtu),
            Some(first) if link.mtu < first => {
                let text = format!(
                    "{} takes packets of at most {} bytes, the sender makes them of up to {first}",
                    link.name, link.mtu
                );
                self.note(out.place, About::Link, Mood::Note, text);
                self.first_mtu = Some(link.mtu);
            }
            Some(_) => {}
        }
        self.tell_programs(out, link, &["clsact"]);
        self.egress(out)?;
        let mac = if link.no_arp || link.is_loopback || TUNNELS.contains(&link.kind.as_str()) {
            None
        } else {
            self.resolve(out, next_hop)?
        };
        self.source_mac = Some(link.mac);
        Ok(At::Frame(out, mac))
    }

    /// Filters of tc have a say where a link has such a discipline.
    fn tell_programs(&mut self, id: LinkId, link: &Link, kinds: &[&str]) {
        let place = self.place(id.place);
        let mut own = place
            .disciplines
            .iter()
            .filter(|(index, _)| *index == id.index);
        if let Some((_, kind)) = own.find(|(_, kind)| kinds.contains(&kind.as_str())) {
            let text = format!(
                "{}: filters of tc ({kind}) may look at it; what they do is not known",
                link.name
            );
            self.note(id.place, About::Link, Mood::Note, text);
        }
    }

    fn check_up(&self, id: LinkId, link: &Link) -> Outcome<()> {
        if !link.up {
            let advice = Some(format!("ip link set {} up", link.name));
            let text = format!("{} is down", link.name);
            return stop_with(id.place, Reason::LinkDown, text, advice);
        }
        if !link.carrier {
            let text = format!(
                "{} has no carrier: its other end is down or gone",
                link.name
            );
            return stop(id.place, Reason::LinkDown, text);
        }
        Ok(())
    }

    /// It leaves by a link.
    pub(super) fn frame(&mut self, out: LinkId, mac: Option<Mac>) -> Outcome<At> {
        let link = self.link(out)?;
        self.check_up(out, link)?;
        let name = &link.name;
        match link.kind.as_str() {
            "bridge" => self.bridge_out(out, link, mac),
            "veth" => match self.world.peer(out) {
                Peer::Link(peer) => {
                    let other = self.link(peer)?;
                    let text = format!(
                        "{name} leads to {} in {}",
                        other.name,
                        self.place(peer.place).name
                    );
                    self.hop(out.place, About::Link, text);
                    Ok(At::Arrive(peer, mac))
                }
                Peer::Elsewhere(number) => Err(End::Unknown {
                    place: out.place,
                    text: format!(
                        "{name} leads to another network namespace{}, which is none that this command has looked at",
                        number
                            .map(|n| format!(" (number {n} here)"))
                            .unwrap_or_default()
                    ),
                }),
                Peer::Nowhere => stop(
                    out.place,
                    Reason::LinkDown,
                    format!("{name} has no other end"),
                ),
            },
            "macvlan" | "macvtap" | "ipvlan" => self.shared(out, link, mac),
            "vlan" => match self.world.peer(out) {
                Peer::Link(lower) => {
                    let text = format!(
                        "{name} puts a tag on it and gives it to {}",
                        self.link(lower)?.name
                    );
                    self.hop(out.place, About::Link, text);
                    Ok(At::Frame(lower, mac))
                }
                _ => self.away(out, link),
            },
            "dummy" => stop(
                out.place,
                Reason::Discarded,
                format!("{name} is a dummy, which throws everything away"),
            ),
            kind if TUNNELS.contains(&kind) => self.tunnel(out, link, mac),
            _ => self.away(out, link),
        }
    }

    /// Out of the machine.
    fn away<T>(&self, out: LinkId, link: &Link) -> Outcome<T> {
        let kind = match link.kind.as_str() {
            "" => String::new(),
            kind => format!(" ({kind})"),
        };
        let from = self.packet.tuple.src;
        Err(End::Left {
            place: out.place,
            text: format!("it leaves this machine by {}{kind}, from {from}", link.name),
        })
    }

    fn tunnel<T>(&self, out: LinkId, link: &Link, mac: Option<Mac>) -> Outcome<T> {
        let place = self.place(out.place);
        let mut entries = place.forwarding.iter();
        let remote =
            entries.find(|one| one.index == out.index && one.mac.is_some() && one.mac == mac);
        let remote = remote.and_then(|one| one.addr);
        let to = remote.map(|addr| format!(" to {addr}")).unwrap_or_default();
        Err(End::Left {
            place: out.place,
            text: format!("it goes into the tunnel {} ({}){to}", link.name, link.kind),
        })
    }

    /// By a link that shares another: to the others that share it, or out by that one.
    fn shared(&mut self, out: LinkId, link: &Link, mac: Option<Mac>) -> Outcome<At> {
        let Peer::Link(lower_id) = self.world.peer(out) else {
            let text = format!(
                "{} shares a link that this command has not looked at",
                link.name
            );
            return Err(End::Unknown {
                place: out.place,
                text,
            });
        };
        let lower = self.link(lower_id)?;
        let sibling = self.sharing(lower_id).into_iter().find(|id| {
            *id != out
                && self
                    .world
                    .link(*id)
                    .is_some_and(|other| mac == Some(other.mac))
                && (link.kind != "ipvlan" || self.has_address(*id))
        });
        if let Some(sibling) = sibling {
            let text = format!(
                "{} and {} in {} share {}",
                link.name,
                self.link(sibling)?.name,
                self.place(sibling.place).name,
                lower.name
            );
            self.hop(out.place, About::Link, text);
            return Ok(At::Arrive(sibling, mac));
        }
        if mac == Some(lower.mac) {
            let text = format!(
                "{} shares {} of {}, and does not lead to that machine itself",
                link.name,
                lower.name,
                self.place(lower_id.place).name
            );
            return stop(out.place, Reason::NotForUs, text);
        }
        let text = format!("{} gives it to {}", link.name, lower.name);
        self.hop(out.place, About::Link, text);
        Ok(At::Frame(lower_id, mac))
    }

    fn has_address(&self, id: LinkId) -> bool {
        let dst = self.packet.tuple.dst;
        self.place(id.place)
            .addresses_of(id.index)
            .any(|one| one.net.addr() == dst)
    }

    /// It has come out of a link.
    pub(super) fn arrive(&mut self, id: LinkId, mac: Option<Mac>) -> Outcome<At> {
        self.shown_at = None;
        let link = self.link(id)?;
        if !link.up {
            let advice = Some(format!("ip link set {} up", link.name));
            let text = format!("{} is down", link.name);
            return stop_with(id.place, Reason::LinkDown, text, advice);
        }
        if link.xdp {
            let text = format!(
                "{}: an XDP program sees it first; what that does is not known",
                link.name
            );
            self.note(id.place, About::Link, Mood::Maybe, text);
        }
        self.tell_programs(id, link, &["ingress", "clsact"]);
        self.ingress(id)?;
        // Whoever shares the link and has the address gets it.
        let sharing = self.sharing(id).into_iter();
        let mut sharing = sharing.filter(|one| {
            self.world
                .link(*one)
                .is_some_and(|one| mac == Some(one.mac))
        });
        if let Some(own) = sharing.next()
            && mac != Some(link.mac)
        {
            let text = format!("{} gives it to {}", link.name, self.link(own)?.name);
            self.hop(id.place, About::Link, text);
            return Ok(At::Arrive(own, mac));
        }
        if let Some(bridge) = link.master.filter(|_| link.port_kind == "bridge") {
            let bridge = LinkId {
                place: id.place,
                index: bridge,
            };
            return self.bridge_in(bridge, id, mac);
        }
        if let Some(mac) = mac
            && mac != link.mac
        {
            let text = format!(
                "it is for the hardware address {mac}, and {} has {}: an old entry among the neighbours",
                link.name, link.mac
            );
            return stop(id.place, Reason::WrongAddress, text);
        }
        Ok(At::Input(id))
    }

    /// By a port into a bridge.
    fn bridge_in(&mut self, bridge: LinkId, from: LinkId, mac: Option<Mac>) -> Outcome<At> {
        let (link, port) = (self.link(bridge)?, self.link(from)?);
        let settings = port.bridge_port().unwrap_or_default();
        self.check_forwards(from, link, port, settings)?;
        if !link.up {
            let advice = Some(format!("ip link set {} up", link.name));
            let text = format!("bridge {} is down", link.name);
            return stop_with(bridge.place, Reason::LinkDown, text, advice);
        }
        let vlan = self.vlan_of(link, from)?;
        self.pass(
            from.place,
            Layer::Bridge,
            Hook::Prerouting,
            Some(from),
            None,
        )?;
        let place = self.place(bridge.place);
        self.shown_at = self
            .shows(bridge.place, link)
            .then_some((from, self.packet.tuple.dst));
        let up = mac.is_some_and(|mac| place.seen_at(link, mac) == Some(bridge.index));
        if up {
            let text = format!(
                "{} is a port of bridge {}, and it is for the machine",
                port.name, link.name
            );
            self.hop(bridge.place, About::Bridge, text);
            if vlan.is_some_and(|vlan| place.membership(bridge.index, vlan).is_none()) {
                let text = format!(
                    "bridge {} itself is not in VLAN {}",
                    link.name,
                    vlan.unwrap_or(0)
                );
                return stop(bridge.place, Reason::OtherVlan, text);
            }
            self.pass(from.place, Layer::Bridge, Hook::Input, Some(from), None)?;
            return Ok(At::Input(bridge));
        }
        let to = self.port_towards(bridge, link, Some(from), mac)?;
        self.between_ports(bridge, from, to, mac, vlan)
    }

    /// The VLAN that what comes in by a port is in, where the bridge keeps them apart.
    fn vlan_of(&self, bridge: &Link, from: LinkId) -> Outcome<Option<u16>> {
        if !is_filtering(bridge) {
            return Ok(None);
        }
        if let Some(vlan) = self.place(from.place).own_vlan(from.index) {
            return Ok(Some(vlan));
        }
        let port = &self.link(from)?.name;
        let text = format!(
            "{port} takes nothing without a tag: bridge {} keeps VLANs apart",
            bridge.name
        );
        stop(from.place, Reason::OtherVlan, text)
    }

    /// From one port of a bridge to another.
    fn between_ports(
        &mut self,
        bridge: LinkId,
        from: LinkId,
        to: LinkId,
        mac: Option<Mac>,
        vlan: Option<u16>,
    ) -> Outcome<At> {
        let (link, came, goes) = (self.link(bridge)?, self.link(from)?, self.link(to)?);
        let (from_settings, to_settings) = (
            came.bridge_port().unwrap_or_default(),
            goes.bridge_port().unwrap_or_default(),
        );
        self.check_forwards(to, link, goes, to_settings)?;
        let ports = ((from, from_settings), (to, to_settings));
        self.check_ports(link, ports)?;
        self.check_vlan(to, goes, vlan)?;
        let text = format!(
            "bridge {}: in by {}, out by {}",
            link.name, came.name, goes.name
        );
        self.hop(bridge.place, About::Bridge, text);
        if self.shows(bridge.place, link)
            && let Some(elsewhere) = self.bridged(bridge)?
        {
            return Ok(elsewhere);
        }
        self.pass(
            bridge.place,
            Layer::Bridge,
            Hook::Forward,
            Some(from),
            Some(to),
        )?;
        self.pass(
            bridge.place,
            Layer::Bridge,
            Hook::Postrouting,
            None,
            Some(to),
        )?;
        self.egress(to)?;
        Ok(At::Frame(to, mac))
    }

    /// The machine itself sends it by a bridge.
    fn bridge_out(&mut self, bridge: LinkId, link: &Link, mac: Option<Mac>) -> Outcome<At> {
        let to = self.port_towards(bridge, link, None, mac)?;
        let goes = self.link(to)?;
        let settings = goes.bridge_port().unwrap_or_default();
        self.check_forwards(to, link, goes, settings)?;
        // The kernel takes what gets another destination while the bridge shows it, and leaves by the same bridge, for
        // bridged.
        if let Some((from, dst)) = self.shown_at
            && self.packet.tuple.dst != dst
            && from.place == bridge.place
            && let came = self.link(from)?
            && came.master == Some(bridge.index)
        {
            let came = came.bridge_port().unwrap_or_default();
            self.check_ports(link, ((from, came), (to, settings)))?;
        }
        if is_filtering(link) {
            let vlan = self.place(bridge.place).own_vlan(bridge.index);
            self.check_vlan(to, goes, vlan)?;
        }
        self.hop(
            bridge.place,
            About::Bridge,
            format!("bridge {}: out by {}", link.name, goes.name),
        );
        self.pass(bridge.place, Layer::Bridge, Hook::Output, None, Some(to))?;
        self.pass(
            bridge.place,
            Layer::Bridge,
            Hook::Postrouting,
            None,
            Some(to),
        )?;
        self.egress(to)?;
        Ok(At::Frame(to, mac))
    }

    /// The port behind which a hardware address is.
    fn port_towards(
        &mut self,
        bridge: LinkId,
        link: &Link,
        from: Option<LinkId>,
        mac: Option<Mac>,
    ) -> Outcome<LinkId> {
        let place = self.place(bridge.place);
        let port = |index| LinkId {
            place: bridge.place,
            index,
        };
        if let Some(seen) = mac.and_then(|mac| place.seen_at(link, mac)) {
            return Ok(port(seen));
        }
        // Not seen yet: out by all ports, and who has the address takes it.
        let ports: Vec<_> = place
            .ports_of(bridge.index)
            .filter(|(one, settings)| {
                settings.hairpin || from.is_none_or(|from| from.index != one.index)
            })
            .map(|(one, settings)| (port(one.index), settings))
            .collect();
        if let Some(mac) = mac {
            let has = |id: LinkId| {
                let ends = self.ends_behind(id).links.into_iter();
                let mut ends = ends.filter_map(|end| self.world.link(end));
                ends.any(|end| end.mac == mac)
            };
            if let Some((found, _)) = ports.iter().find(|(id, _)| has(*id)) {
                return Ok(*found);
            }
        }
        let floods = |settings: &Port| settings.flood && settings.state == FORWARDING;
        let mut open = ports.iter().filter(|(_, settings)| floods(settings));
        if let Some((open, _)) = open.find(|(id, _)| self.ends_behind(*id).leads_on) {
            let text = format!(
                "bridge {} has not seen where it goes: by all ports, {} among them",
                link.name,
                self.link(*open)?.name
            );
            self.note(bridge.place, About::Bridge, Mood::Note, text);
            return Ok(*open);
        }
        let whom = mac
            .map(|mac| mac.to_string())
            .unwrap_or_else(|| "it".into());
        let text = format!("nobody behind bridge {} has {whom}", link.name);
        stop(bridge.place, Reason::NoNeighbour, text)
    }
}
