//! What the node's rules do to a pod's packets: host ports, masquerading, and rules that name its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use carpel_netlink::netfilter::listing::Data;
use carpel_netpath::filter::run::{Change, Ending, Moment, State, pass};
use carpel_netpath::filter::{Hook, Layer, Step};
use carpel_netpath::gather::Gathered;
use carpel_netpath::packet::{Packet, Protocol, Tuple, endpoint};
use carpel_netpath::place::{Place, World};
use serde_json::{Value, json};

use crate::cli::net::diagram::{Row, Tone};
use crate::cli::net::subject::{HostPort, Subject};

/// The most rules that are listed because they name the pod.
const MOST_NAMED: usize = 12;

/// An address that is nobody's: of those for documentation.
pub fn outside(is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1))
    } else {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))
    }
}

/// Where a host port leads.
pub struct Lead {
    port: HostPort,
    /// The destination that a connection from outside gets, and the rule that says so.
    to: Option<(String, String)>,
    leads_to_pod: bool,
}

impl Lead {
    fn name(&self) -> String {
        let own = format!("{}/{}", self.port.host_port, self.port.protocol);
        match self.port.host_ip {
            Some(ip) if !ip.is_unspecified() => format!("{ip} {own}"),
            _ => own,
        }
    }

    pub fn row(&self) -> Row {
        let label = "host port";
        match &self.to {
            Some((to, rule)) if self.leads_to_pod => Row::new(
                label,
                format!("{} → {to} ({rule})", self.name()),
                Tone::Good,
            ),
            Some((to, rule)) => {
                let text = format!("{} leads elsewhere, to {to} ({rule})", self.name());
                Row::new(label, text, Tone::Stop)
            }
            None => {
                let text = format!("{}: no rule leads it to the pod", self.name());
                Row::new(label, text, Tone::Stop)
            }
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "protocol": self.port.protocol,
            "hostIp": self.port.host_ip,
            "hostPort": self.port.host_port,
            "containerPort": self.port.container_port,
            "leadsTo": self.to.as_ref().map(|(to, _)| to),
            "rule": self.to.as_ref().map(|(_, rule)| rule),
            "leadsToPod": self.leads_to_pod,
        })
    }
}

/// What becomes of the source of what leaves for the outside.
pub struct Leaving {
    from: IpAddr,
    becomes: String,
    rule: String,
}

impl Leaving {
    pub fn text(&self) -> String {
        format!(
            "{} leaves this machine as {} ({})",
            self.from, self.becomes, self.rule
        )
    }

    pub fn json(&self) -> Value {
        json!({ "source": self.from, "becomes": self.becomes, "rule": self.rule })
    }
}

/// Follows a connection from outside to each host port through the node's rules.
pub fn host_ports(gathered: &Gathered, subject: &Subject, ips: &[IpAddr]) -> Vec<Lead> {
    let node = gathered.world.place(World::NODE);
    let leads = subject.host_ports.iter().map(|port| {
        let asked = port.host_ip.filter(|ip| !ip.is_unspecified());
        let own = node.addresses.iter().map(|one| one.net.addr());
        let mut own = own.filter(|addr| {
            !addr.is_loopback() && ips.iter().any(|ip| ip.is_ipv4() == addr.is_ipv4())
        });
        let dst = asked.or_else(|| own.next());
        let found = dst.and_then(|dst| {
            let packet = Packet {
                tuple: Tuple {
                    src: outside(dst.is_ipv4()),
                    dst,
                    source_port: None,
                    destination_port: Some(port.host_port),
                },
                protocol: Protocol::parse(&port.protocol)?,
                is_answer: false,
                mark: 0,
            };
            let incoming = node.links.iter().find(|link| {
                node.addresses_of(link.index)
                    .any(|one| one.net.addr() == dst)
            });
            let moment = moment(gathered, Hook::Prerouting, dst.is_ipv4(), incoming, None);
            changes(node, &moment, &packet)
                .into_iter()
                .find_map(|(change, rule)| match change {
                    Change::Destination(tuple) => Some((tuple, rule)),
                    _ => None,
                })
        });
        Lead {
            port: port.clone(),
            leads_to_pod: found.as_ref().is_some_and(|(tuple, _)| {
                ips.contains(&tuple.dst) && tuple.destination_port == Some(port.container_port)
            }),
            to: found.map(|(tuple, rule)| (tuple.destination(), rule)),
        }
    });
    leads.collect()
}

/// Has a packet of each of the pod's addresses leave by the node's way out.
pub fn leaving(gathered: &Gathered, ips: &[IpAddr], uplinks: &[u32]) -> Vec<Leaving> {
    let node = gathered.world.place(World::NODE);
    let mut found = Vec::new();
    for ip in ips {
        let packet = Packet {
            tuple: Tuple {
                src: *ip,
                dst: outside(ip.is_ipv4()),
                source_port: None,
                destination_port: None,
            },
            protocol: Protocol::Tcp,
            is_answer: false,
            mark: 0,
        };
        let out = uplinks.first().and_then(|index| node.link(*index));
        let moment = moment(gathered, Hook::Postrouting, ip.is_ipv4(), None, out);
        for (change, rule) in changes(node, &moment, &packet) {
            let becomes = match change {
                Change::Source(tuple) => endpoint(tuple.src, tuple.source_port),
                Change::Masquerade => {
                    let address =
                        out.and_then(|link| node.address_for(link.index, packet.tuple.dst));
                    address.map_or_else(
                        || "the address of the link".to_owned(),
                        |addr| addr.to_string(),
                    )
                }
                Change::Destination(_) => continue,
            };
            found.push(Leaving {
                from: *ip,
                becomes,
                rule,
            });
        }
    }
    found
}

fn moment<'a>(
    gathered: &'a Gathered,
    hook: Hook,
    is_ipv4: bool,
    incoming: Option<&'a carpel_netlink::link::Link>,
    outgoing: Option<&'a carpel_netlink::link::Link>,
) -> Moment<'a> {
    Moment {
        kernel: gathered,
        id: World::NODE,
        place: gathered.world.place(World::NODE),
        layer: Layer::of_ip(is_ipv4),
        hook,
        incoming,
        outgoing,
        source_mac: None,
        destination_mac: None,
    }
}

/// What the rules of a hook change of a packet, with the rules that do.
fn changes(node: &Place, moment: &Moment<'_>, packet: &Packet) -> Vec<(Change, String)> {
    let outcomes = pass(&node.rules, moment, packet, State::new(packet), None, false);
    let accepted = outcomes
        .into_iter()
        .find(|outcome| outcome.ending == Ending::Accepted);
    let changes = accepted.into_iter().flat_map(|outcome| outcome.way.changes);
    changes
        .map(|(change, rule)| (change, rule.to_string()))
        .collect()
}

/// The rules, and the elements of maps, that lead connections to the pod or name its addresses.
pub fn named(node: &Place, ips: &[IpAddr]) -> Vec<String> {
    let mut found = Vec::new();
    for chain in &node.rules.chains {
        for rule in &chain.rules {
            let names = rule.steps.iter().any(|step| names_one(step, ips));
            if names {
                let comment = rule.comment.as_ref().map(|text| format!(" – {text}"));
                let comment = comment.unwrap_or_default();
                found.push(format!(
                    "{}, chain {}: {}{comment}",
                    chain.table, chain.name, rule.text
                ));
            }
        }
    }
    let mut sets: Vec<_> = node
        .rules
        .sets
        .iter()
        .filter(|(_, set)| set.is_map)
        .collect();
    sets.sort_by_key(|((table, name), _)| (table.to_string(), (*name).clone()));
    for ((table, name), set) in sets {
        let leads = set.elements.iter().filter(|element| {
            matches!(&element.data, Some(Data::Value(value)) if ips.iter().any(|ip| value.starts_with(&octets(*ip))))
        });
        let count = leads.count();
        if count > 0 {
            let word = if count == 1 {
                "element leads"
            } else {
                "elements lead"
            };
            found.push(format!("{table}, map {name}: {count} {word} to the pod"));
        }
    }
    let more = found.len().saturating_sub(MOST_NAMED);
    found.truncate(MOST_NAMED);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    found
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn names_one(step: &Step, ips: &[IpAddr]) -> bool {
    let is = |value: &[u8]| ips.iter().any(|ip| octets(*ip) == value);
    match step {
        Step::Compare { value, .. } | Step::Set { value, .. } => is(value),
        Step::Translate { address, .. } => address.is_some_and(|addr| ips.contains(&addr)),
        Step::Test {
            test: carpel_netpath::filter::Test::Network { network, .. },
            ..
        } => network.prefix() == network.width() && ips.contains(&network.addr()),
        _ => false,
    }
}
