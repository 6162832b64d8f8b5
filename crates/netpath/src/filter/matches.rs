//! The matches of iptables.

use carpel_netlink::link::Link;

use super::run::{Run, State};
use super::{Test, matches_name};

impl Run<'_> {
    /// A match of iptables; `None`: that depends on what is not known.
    pub(super) fn test(&self, test: &Test, state: &State) -> Option<bool> {
        let tuple = &state.tuple;
        let name_is = |link: Option<&Link>, pattern: &str| {
            link.is_some_and(|link| matches_name(pattern, &link.name))
        };
        match test {
            Test::Always => Some(true),
            Test::Random | Test::Unsure => None,
            Test::Network { source, network } => {
                Some(network.contains(if *source { tuple.src } else { tuple.dst }))
            }
            Test::Interface {
                incoming: true,
                name,
            } => Some(name_is(self.moment.incoming, name)),
            Test::Interface { name, .. } => Some(name_is(self.moment.outgoing, name)),
            Test::Protocol(number) => {
                Some(*number == 0 || *number == self.packet.protocol.number(self.packet.is_ipv4()))
            }
            Test::Ports {
                source,
                destination,
                ranges,
            } => {
                let inside = |port: Option<u16>| {
                    let all = ranges.contains(&(0, u16::MAX));
                    let is_in = |port| {
                        ranges
                            .iter()
                            .any(|(low, high)| (*low..=*high).contains(&port))
                    };
                    port.map(is_in).or(all.then_some(true))
                };
                let answers = [
                    source.then(|| inside(tuple.source_port)),
                    destination.then(|| inside(tuple.destination_port)),
                ];
                let answers: Vec<_> = answers.into_iter().flatten().collect();
                if answers.contains(&Some(true)) {
                    return Some(true);
                }
                answers.iter().all(Option::is_some).then_some(false)
            }
            Test::State(mask) => {
                const SNAT: u32 = 1 << 6;
                const DNAT: u32 = 1 << 7;
                let own = if self.packet.is_answer {
                    1 << 1
                } else {
                    1 << 3
                };
                let snat = if state.source_changed { SNAT } else { 0 };
                let dnat = if state.destination_changed { DNAT } else { 0 };
                Some(mask & (own | snat | dnat) != 0)
            }
            Test::Mark { value, mask } => {
                let masked = state.mark.bitwise(&mask.to_ne_bytes(), &[0; 4]);
                masked.equals(&value.to_ne_bytes())
            }
            Test::AddressType { source, types } => {
                let addr = if *source { tuple.src } else { tuple.dst };
                let kind = self.moment.place.address_type(addr);
                Some(types & (1 << kind) != 0)
            }
        }
    }
}
