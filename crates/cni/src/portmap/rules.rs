//! The tables that lead connections to containers.
//!
//! One per family, made with the first mapping and removed after the last; another one for each other set
//! of options:
//!
//! ```text
//! table ip carpel-portmap {
//!     map ports     { protocol . port            : address . port }     one element per mapping
//!     map addresses { address . protocol . port  : address . port }     the same with a hostIP
//!     set subnets16 { subnet . subnet }                                 pods that answer directly
//!     chain prerouting, output { conditions, to this machine: jump mappings }
//!     chain mappings {
//!         set the mark's bit
//!         dnat to what addresses has, else to what ports has
//!         clear the mark's bit
//!     }
//!     chain strangers {
//!         not from this machine, but from or to 127.0.0.0/8: drop
//!     }
//!     chain postrouting {
//!         without the bit: nothing
//!         from 127.0.0.0/8: masquerade
//!         from a pod's subnet to the same subnet: masquerade
//!     }
//! }
//! ```
//!
//! A mapping is one element with its owner's label, so ADD and DEL are one transaction each, however many
//! there are, and the kernel refuses a port that is taken. Whether a table can go is looked at by the
//! holder of the lock.

use std::net::IpAddr;

use rustix::io;

use super::config::{Config, Mapping};
use crate::{
    hash::hash,
    ipnet::IpNet,
    netfilter::{
        Family, Hook, Table, Transaction,
        expression::{
            Expression, Verdict, for_this_machine, has_mark, in_network, interface_is,
            network_mask, octets, set_mark,
        },
        has_table,
        set::{self, Element, Part, has_set, joined},
        tables,
    },
    netlink::Socket,
};

const PREFIX: &str = "carpel-portmap";
const MAPPINGS: &str = "mappings";
const POSTROUTING: &str = "postrouting";
const PORTS: &str = "ports";
const ADDRESSES: &str = "addresses";

/// All tables of mappings.
pub fn all(socket: &mut Socket) -> io::Result<Vec<Table>> {
    let mut found = tables(socket, PREFIX)?;
    found.retain(|table| table.name == PREFIX || table.name[PREFIX.len()..].starts_with('/'));
    Ok(found)
}

/// The table for a configuration's options.
pub fn table(config: &Config, family: Family) -> Table {
    let conditions = config.conditions(family);
    let is_default = config.snat && !config.masquerade_all && config.mark == 1 << 13;
    let name = if is_default && conditions.is_empty() {
        PREFIX.into()
    } else {
        let options = format!(
            "{} {} {} {conditions:?}",
            config.snat, config.masquerade_all, config.mark
        );
        format!("{PREFIX}/{:016x}", hash(&[&options]))
    };
    Table { family, name }
}

/// The map that a mapping belongs in, and its element there.
pub fn element(mapping: &Mapping, container: IpAddr, label: &str) -> (&'static str, Element) {
    let protocol = [mapping.protocol];
    let port = mapping.host_port.to_be_bytes();
    let (map, key) = match mapping.host_ip {
        None => (PORTS, joined(&[&protocol, &port])),
        Some(addr) => (ADDRESSES, joined(&[&octets(addr), &protocol, &port])),
    };
    let value = joined(&[&octets(container), &mapping.container_port.to_be_bytes()]);
    let label = label.into();
    (map, Element { key, value, label })
}

/// Makes the table, unless it is there.
pub fn ensure_table(
    socket: &mut Socket,
    transaction: &mut Transaction,
    config: &Config,
    table: &Table,
) -> io::Result<()> {
    if has_table(socket, table)? {
        return Ok(());
    }
    let family = table.family;
    let address = Part::address(family);
    let target = [address, Part::Port];
    transaction.add_table(table);
    transaction.add_set(table, PORTS, &[Part::Protocol, Part::Port], &target, 1);
    let key = [address, Part::Protocol, Part::Port];
    transaction.add_set(table, ADDRESSES, &key, &target, 2);

    transaction.add_chain(table, MAPPINGS, None);
    transaction.add_rule(table, MAPPINGS, set_mark(config.mark, true).into());
    // Registers that an address takes.
    let wide = (family.width() / 4) as u32;
    transaction.add_rule(
        table,
        MAPPINGS,
        vec![
            Expression::load_address(family, false, 0),
            Expression::load_protocol(wide),
            Expression::load_destination_port(wide + 1),
            Expression::map(ADDRESSES, 0, 0),
            Expression::dnat(family, 0, wide),
        ],
    );
    transaction.add_rule(
        table,
        MAPPINGS,
        vec![
            Expression::load_protocol(0),
            Expression::load_destination_port(1),
            Expression::map(PORTS, 0, 0),
            Expression::dnat(family, 0, wide),
        ],
    );
    transaction.add_rule(table, MAPPINGS, set_mark(config.mark, false).into());
    for (chain, hook) in [
        ("prerouting", Hook::DNAT_INCOMING),
        ("output", Hook::DNAT_OUTGOING),
    ] {
        let conditions = config.conditions(family).iter();
        let mut rule: Vec<_> = conditions.flat_map(|one| one.expressions()).collect();
        rule.extend(for_this_machine());
        rule.push(Expression::verdict(Verdict::Jump(MAPPINGS)));
        transaction.add_chain(table, chain, Some(hook));
        transaction.add_rule(table, chain, rule);
    }
    if config.snat {
        masquerade(transaction, config, table);
    }
    if family == Family::V4 {
        refuse_loopback(transaction, table);
    }
    Ok(())
}

/// With route_localnet the kernel takes what comes over a pod's link from or to 127.0.0.0/8 (CVE-2020-8558): a pod would
/// reach what this machine serves to itself. Answers to this machine's own connections are translated back later.
fn refuse_loopback(transaction: &mut Transaction, table: &Table) {
    const STRANGERS: &str = "strangers";
    transaction.add_chain(table, STRANGERS, Some(Hook::INCOMING));
    for source in [true, false] {
        let mut rule: Vec<_> = interface_is(true, "lo", false).into();
        rule.extend(in_network(source, &loopback(table.family), true));
        rule.push(Expression::verdict(Verdict::Drop));
        transaction.add_rule(table, STRANGERS, rule);
    }
}

fn loopback(family: Family) -> IpNet {
    let network = match family {
        Family::V4 => IpNet::new(IpAddr::V4([127, 0, 0, 0].into()), 8),
        _ => IpNet::new(IpAddr::V6(1.into()), 128),
    };
    network.expect("prefixes that fit")
}

/// The start of the chain that masquerades what the mappings have led elsewhere.
fn masquerade(transaction: &mut Transaction, config: &Config, table: &Table) {
    transaction.add_chain(table, POSTROUTING, Some(Hook::SNAT));
    let mut unmarked: Vec<_> = has_mark(config.mark, false).into();
    unmarked.push(Expression::verdict(Verdict::Return));
    transaction.add_rule(table, POSTROUTING, unmarked);
    let mut rule = Vec::new();
    if !config.masquerade_all {
        rule.extend(in_network(true, &loopback(table.family), true));
    }
    rule.push(Expression::masquerade());
    transaction.add_rule(table, POSTROUTING, rule);
}

/// Makes connections from the container's own subnet answerable: the container would answer directly, and
/// the other side would not know from whom the answer is.
pub fn ensure_subnet(
    socket: &mut Socket,
    transaction: &mut Transaction,
    table: &Table,
    container: IpNet,
    label: &str,
) -> io::Result<()> {
    let name = subnets(container.prefix());
    let address = octets(container.network().addr());
    let element = Element {
        key: joined(&[&address, &address]),
        value: Vec::new(),
        // A subnet is for everybody in it; a single address goes with the one who has it.
        label: if container.prefix() == container.width() {
            label.into()
        } else {
            String::new()
        },
    };
    match set::element(socket, table, &name, &element.key)? {
        Some(found) if found.label == element.label => return Ok(()),
        Some(found) => transaction.delete_elements(table, &name, &[found]),
        None if has_set(socket, table, &name)? => {}
        None => {
            let part = Part::address(table.family);
            transaction.add_set(table, &name, &[part, part], &[], 3);
            let wide = (table.family.width() / 4) as u32;
            let mask = network_mask(&container);
            let rule = vec![
                Expression::load_address(table.family, true, 0),
                Expression::mask(0, &mask),
                Expression::load_address(table.family, false, wide),
                Expression::mask(wide, &mask),
                Expression::in_set(&name, 0),
                Expression::masquerade(),
            ];
            transaction.add_rule(table, POSTROUTING, rule);
        }
    }
    transaction.add_elements(table, &name, &[element]);
    Ok(())
}

fn subnets(prefix: u8) -> String {
    format!("subnets{prefix}")
}

/// Removes from a table what `is_stale` says of its label, and the table if no mapping is left.
pub fn remove(
    socket: &mut Socket,
    table: &Table,
    is_stale: impl Fn(&str) -> bool,
) -> io::Result<()> {
    let single = subnets((table.family.width() * 8) as u8);
    set::sweep(socket, table, &[PORTS, ADDRESSES], &[&single], is_stale)
}

/// The port and, if only one counts, the address of a mapping: what a table's map has for it.
pub fn find(socket: &mut Socket, table: &Table, mapping: &Mapping) -> io::Result<Option<Element>> {
    let (map, wanted) = element(mapping, IpAddr::V4([0; 4].into()), "");
    set::element(socket, table, map, &wanted.key)
}
