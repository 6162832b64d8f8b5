//! The steps of a rule.
//!
//! Steps load values into registers, compare them, look them up, and end with a verdict. Registers are of
//! four bytes; a longer value takes as many as it needs, in order, and so does a key of several parts.

use std::net::IpAddr;

use super::Family;
use crate::{ipnet::IpNet, message::Attributes};

/// The first register; the kernel has sixteen.
const FIRST: u32 = 8;
const VERDICT: u32 = 0;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;

const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 1 << 1;
/// RTN_LOCAL: an address of the machine itself.
const LOCAL: u32 = 2;

const NAT_DESTINATION: u32 = 1;

const CT_STATE: u32 = 0;
/// Connections that were answered, and what belongs to one that was.
const ESTABLISHED_OR_RELATED: u32 = 1 << 1 | 1 << 2;

/// XT_CONNTRACK_STATE
const MATCH_STATE: u16 = 1;

const IFNAMSIZ: usize = 16;

/// Where in a packet a value is.
#[derive(Clone, Copy)]
pub enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// How a rule ends.
#[derive(Clone, Copy)]
pub enum Verdict<'a> {
    Drop,
    Accept,
    Return,
    Jump(&'a str),
}

/// One step of a rule.
pub struct Expression {
    name: &'static str,
    data: Attributes,
}

fn step(name: &'static str, data: Attributes) -> Expression {
    Expression { name, data }
}

fn register(number: u32) -> u32 {
    FIRST + number
}

impl Expression {
    pub fn load(header: Header, offset: u32, length: usize, into: u32) -> Expression {
        let data = Attributes::default()
            .number(1, register(into))
            .number(2, header as u32)
            .number(3, offset)
            .number(4, length as u32);
        step("payload", data)
    }

    /// The packet's source or destination address.
    pub fn load_address(family: Family, source: bool, into: u32) -> Expression {
        let offset = match (family, source) {
            (Family::V4, true) => 12,
            (Family::V4, false) => 16,
            (_, true) => 8,
            (_, false) => 24,
        };
        Expression::load(Header::Network, offset, family.width(), into)
    }

    pub fn load_destination_port(into: u32) -> Expression {
        Expression::load(Header::Transport, 2, 2, into)
    }

    pub fn load_protocol(into: u32) -> Expression {
        Expression::meta(META_L4PROTO, into)
    }

    /// Name of the interface by which the packet came in: four registers.
    pub fn load_incoming_interface(into: u32) -> Expression {
        Expression::meta(META_IIFNAME, into)
    }

    /// The sender's hardware address.
    pub fn load_source_mac(into: u32) -> Expression {
        Expression::load(Header::Link, 6, 6, into)
    }

    fn meta(key: u32, into: u32) -> Expression {
        let data = Attributes::default()
            .number(1, register(into))
            .number(2, key);
        step("meta", data)
    }

    /// What is in the register, masked and then flipped where `flip` has ones.
    pub fn bitwise(number: u32, mask: &[u8], flip: &[u8]) -> Expression {
        let data = Attributes::default()
            .number(1, register(number))
            .number(2, register(number))
            .number(3, mask.len() as u32)
            .data(4, mask)
            .data(5, flip);
        step("bitwise", data)
    }

    pub fn mask(number: u32, mask: &[u8]) -> Expression {
        Expression::bitwise(number, mask, &vec![0; mask.len()])
    }

    /// Ends the rule unless the register holds the value, or does not.
    pub fn compare(number: u32, value: &[u8], equal: bool) -> Expression {
        let data = Attributes::default()
            .number(1, register(number))
            .number(2, if equal { EQUAL } else { NOT_EQUAL })
            .data(3, value);
        step("cmp", data)
    }

    /// Ends the rule unless the set holds what the registers from `from` on hold.
    pub fn in_set(set: &str, from: u32) -> Expression {
        let data = Attributes::default().text(1, set).number(2, register(from));
        step("lookup", data)
    }

    /// Loads what the map has for the key in the registers from `from` on; ends the rule if it has nothing.
    pub fn map(map: &str, from: u32, into: u32) -> Expression {
        let data = Attributes::default()
            .text(1, map)
            .number(2, register(from))
            .number(3, register(into));
        step("lookup", data)
    }

    /// Sends the connection to the address and port in registers.
    pub fn dnat(family: Family, address: u32, port: u32) -> Expression {
        let (address, port) = (register(address), register(port));
        let data = Attributes::default()
            .number(1, NAT_DESTINATION)
            .number(2, u32::from(family.number()))
            .number(3, address)
            .number(4, address)
            .number(5, port)
            .number(6, port);
        step("nat", data)
    }

    pub fn masquerade() -> Expression {
        step("masq", Attributes::default())
    }

    pub fn verdict(verdict: Verdict<'_>) -> Expression {
        let (code, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3_i32, Some(chain)),
            Verdict::Return => (-5, None),
        };
        let mut inner = Attributes::default().number(1, code.cast_unsigned());
        if let Some(chain) = chain {
            inner = inner.text(2, chain);
        }
        let data = Attributes::default()
            .number(1, VERDICT)
            .nest(2, Attributes::default().nest(2, inner));
        step("immediate", data)
    }
}

/// Goes on if the packet is for an address of the machine itself.
pub fn for_this_machine() -> [Expression; 2] {
    let data = Attributes::default()
        .number(1, register(0))
        .number(2, FIB_RESULT_ADDRTYPE)
        .number(3, FIB_DADDR);
    [
        step("fib", data),
        Expression::compare(0, &LOCAL.to_ne_bytes(), true),
    ]
}

/// Sets or clears one bit of the packet's mark.
pub fn set_mark(bit: u32, on: bool) -> [Expression; 3] {
    let flip = if on { bit } else { 0 };
    let store = Attributes::default()
        .number(2, META_MARK)
        .number(3, register(0));
    [
        Expression::meta(META_MARK, 0),
        Expression::bitwise(0, &(!bit).to_ne_bytes(), &flip.to_ne_bytes()),
        step("meta", store),
    ]
}

/// Goes on if the packet's mark has the bit, or has not.
pub fn has_mark(bit: u32, on: bool) -> [Expression; 3] {
    [
        Expression::meta(META_MARK, 0),
        Expression::mask(0, &bit.to_ne_bytes()),
        Expression::compare(0, &[0; 4], !on),
    ]
}

/// The name of an interface as a register has it. No interface's is longer than fits.
pub fn interface_name(name: &str) -> [u8; IFNAMSIZ] {
    let mut value = [0; IFNAMSIZ];
    value[..name.len()].copy_from_slice(name.as_bytes());
    value
}

/// Goes on if the packet came in by this interface (or goes out by it), or did not.
pub fn interface_is(incoming: bool, name: &str, equal: bool) -> [Expression; 2] {
    let key = if incoming { META_IIFNAME } else { META_OIFNAME };
    let value = interface_name(name);
    [
        Expression::meta(key, 0),
        Expression::compare(0, &value, equal),
    ]
}

/// Goes on if the packet belongs to a connection that stands, or is related to one.
pub fn established() -> Vec<Expression> {
    let data = Attributes::default()
        .number(1, register(0))
        .number(2, CT_STATE);
    vec![
        step("ct", data),
        Expression::mask(0, &ESTABLISHED_OR_RELATED.to_ne_bytes()),
        Expression::compare(0, &[0; 4], false),
    ]
}

/// The same as iptables says it. It does not understand the other, and refuses to list a table with it.
pub fn established_for_iptables() -> Vec<Expression> {
    // struct xt_conntrack_mtinfo3: addresses, times and ports that do not count, then flags.
    let mut info = vec![0; 164];
    info[146..148].copy_from_slice(&MATCH_STATE.to_ne_bytes());
    info[150..152].copy_from_slice(&(ESTABLISHED_OR_RELATED as u16).to_ne_bytes());
    let data = Attributes::default()
        .text(1, "conntrack")
        .number(2, 3)
        .bytes(3, &info);
    vec![step("match", data)]
}

/// Goes on if the bytes at `offset` of the network header, masked, are `value`, or are not.
pub fn masked(offset: u32, mask: &[u8], value: &[u8], equal: bool) -> [Expression; 3] {
    [
        Expression::load(Header::Network, offset, mask.len(), 0),
        Expression::mask(0, mask),
        Expression::compare(0, value, equal),
    ]
}

/// Goes on if the packet's source or destination is in the network, or is not.
pub fn in_network(source: bool, network: &IpNet, inside: bool) -> [Expression; 3] {
    let family = Family::of(network.addr());
    [
        Expression::load_address(family, source, 0),
        Expression::mask(0, &network_mask(network)),
        Expression::compare(0, &octets(network.network().addr()), inside),
    ]
}

/// An address as packets have it.
pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The bits of an address that a network fixes.
pub fn network_mask(network: &IpNet) -> Vec<u8> {
    let bits = u32::from(network.prefix());
    if network.addr().is_ipv4() {
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        mask.to_be_bytes().to_vec()
    } else {
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        mask.to_be_bytes().to_vec()
    }
}

/// The list of a rule's expressions.
pub fn expressions(list: Vec<Expression>) -> Attributes {
    list.into_iter()
        .fold(Attributes::default(), |all, expression| {
            let one = Attributes::default()
                .text(1, expression.name)
                .nest(2, expression.data);
            all.nest(1, one)
        })
}
