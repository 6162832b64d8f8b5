//! What a bridge lets its ports do.

use carpel_netlink::bridge::{FORWARDING, Port};
use carpel_netlink::link::Link;

use super::{Outcome, Reason, Walker, stop, stop_with};
use crate::place::{LinkId, PlaceId};

impl Walker<'_> {
    pub(super) fn check_forwards(
        &self,
        id: LinkId,
        bridge: &Link,
        port: &Link,
        settings: Port,
    ) -> Outcome<()> {
        if settings.state == FORWARDING {
            return Ok(());
        }
        let state = match settings.state {
            1 => "listening",
            2 => "learning",
            4 => "blocking",
            _ => "disabled",
        };
        let text = format!(
            "{} does not forward: as a port of {} it is {state}",
            port.name, bridge.name
        );
        stop(id.place, Reason::PortBlocked, text)
    }

    /// Whether a bridge shows its packets to the rules of IP.
    pub(super) fn shows(&self, place: PlaceId, bridge: &Link) -> bool {
        let [v4, v6] = bridge.shows_packets();
        let (key, own) = if self.packet.is_ipv4() {
            ("bridge/bridge-nf-call-iptables", v4)
        } else {
            ("bridge/bridge-nf-call-ip6tables", v6)
        };
        own || self.place(place).settings.get(key) != 0
    }

    /// Whether ports may speak to each other, or one to itself.
    pub(super) fn check_ports(
        &self,
        bridge: &Link,
        ((from, from_settings), (to, to_settings)): ((LinkId, Port), (LinkId, Port)),
    ) -> Outcome<()> {
        let goes = &self.link(to)?.name;
        if from == to && !to_settings.hairpin {
            let text = format!(
                "it would have to leave by {goes}, where it came in: hairpin is off on that port"
            );
            let advice = Some(format!("bridge link set dev {goes} hairpin on"));
            return stop_with(to.place, Reason::HairpinOff, text, advice);
        }
        if from_settings.isolated && to_settings.isolated {
            let came = &self.link(from)?.name;
            let text = format!("{came} and {goes} are isolated ports of {}", bridge.name);
            return stop(to.place, Reason::PortIsolated, text);
        }
        Ok(())
    }

    pub(super) fn check_vlan(&self, to: LinkId, port: &Link, vlan: Option<u16>) -> Outcome<()> {
        let Some(vlan) = vlan else {
            return Ok(());
        };
        match self.place(to.place).membership(to.index, vlan) {
            Some(_) => Ok(()),
            None => stop(
                to.place,
                Reason::OtherVlan,
                format!("{} is not in VLAN {vlan}", port.name),
            ),
        }
    }
}
