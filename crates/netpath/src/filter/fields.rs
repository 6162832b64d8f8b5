//! What a rule can ask about a packet: its headers, where it is, its connection, and what the routes say.

use std::net::IpAddr;

use carpel_netlink::link::{Link, Mac};
use carpel_netlink::route::{self, Question};

use super::bits::Bits;
use super::run::{Moment, State};
use super::{Hook, Layer, Source};
use crate::packet::{Packet, Protocol};

const IFNAMSIZ: usize = 16;

/// States of a connection as nf_tables numbers them.
const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;
/// Its status.
const STATUS_SNAT: u32 = 1 << 4;
const STATUS_DNAT: u32 = 1 << 5;

const FIB_OIF: u32 = 1;
const FIB_OIFNAME: u32 = 2;
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_IIF: u32 = 1 << 3;
const FIB_OIF_FLAG: u32 = 1 << 4;
const FIB_PRESENT: u32 = 1 << 5;

/// Asks. `None`: there is no such thing, and the rule ends.
pub(super) fn load(
    source: &Source,
    length: usize,
    moment: &Moment<'_>,
    packet: &Packet,
    state: &State,
) -> Option<Bits> {
    Some(match source {
        Source::Header(0, at) => link_header(moment, packet).part(*at, length),
        Source::Header(1, at) => network_header(packet, state).part(*at, length),
        Source::Header(2, at) => transport_header(packet, state).part(*at, length),
        Source::Meta(key) => meta(*key, length, moment, packet, state)?,
        Source::Connection(key) => connection(*key, length, moment, packet, state),
        Source::Fib { result, flags } => fib(*result, *flags, length, moment, state),
        Source::Header(..) | Source::Other(_) => Bits::unknown(length),
    })
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn link_header(moment: &Moment<'_>, packet: &Packet) -> Bits {
    let mut header = Bits::unknown(14);
    let mut mac = |at, mac: Option<Mac>| {
        if let Some(mac) = mac {
            header.set(at, &mac.0);
        }
    };
    mac(0, moment.destination_mac);
    mac(6, moment.source_mac);
    header.set(12, &ether_type(packet).to_be_bytes());
    header
}

fn ether_type(packet: &Packet) -> u16 {
    if packet.is_ipv4() { 0x0800 } else { 0x86dd }
}

fn network_header(packet: &Packet, state: &State) -> Bits {
    let number = packet.protocol.number(packet.is_ipv4());
    let (src, dst) = (octets(state.tuple.src), octets(state.tuple.dst));
    if packet.is_ipv4() {
        let mut header = Bits::unknown(20);
        header.set(0, &[0x45]);
        // No fragment.
        header.set_masked(6, &[0, 0], &[0x3f, 0xff]);
        header.set(9, &[number]);
        header.set(12, &src);
        header.set(16, &dst);
        header
    } else {
        let mut header = Bits::unknown(40);
        header.set_masked(0, &[0x60], &[0xf0]);
        header.set(6, &[number]);
        header.set(8, &src);
        header.set(24, &dst);
        header
    }
}

fn transport_header(packet: &Packet, state: &State) -> Bits {
    let mut header = Bits::unknown(20);
    if packet.protocol == Protocol::Icmp {
        let kind = match (packet.is_ipv4(), packet.is_answer) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        };
        header.set(0, &[kind, 0]);
        return header;
    }
    let ports = [
        (0, state.tuple.source_port),
        (2, state.tuple.destination_port),
    ];
    for (at, port) in ports {
        if let Some(port) = port {
            header.set(at, &port.to_be_bytes());
        }
    }
    if packet.protocol == Protocol::Tcp {
        // FIN, SYN, RST and ACK: a connection begins with SYN, and is answered with SYN and ACK.
        let flags = if packet.is_answer { 0x12 } else { 0x02 };
        header.set_masked(13, &[flags], &[0x17]);
    }
    header
}

fn name(text: &str) -> Bits {
    let mut bytes = [0; IFNAMSIZ];
    let length = text.len().min(IFNAMSIZ);
    bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
    Bits::known(&bytes)
}

fn meta(
    key: u32,
    length: usize,
    moment: &Moment<'_>,
    packet: &Packet,
    state: &State,
) -> Option<Bits> {
    let link_name = |link: Option<&Link>| name(link.map_or("", |link| link.name.as_str()));
    let index = |link: Option<&Link>| Bits::known(&link.map_or(0, |link| link.index).to_ne_bytes());
    let kind = |link: Option<&Link>| Some(name(&link?.kind));
    let bridge = |link: Option<&Link>| {
        let bridge = moment.place.link(link?.master?)?;
        (bridge.kind == "bridge").then(|| name(&bridge.name))
    };
    let has_socket = matches!(moment.hook, Hook::Output | Hook::Postrouting);
    Some(match key {
        1 => Bits::known(&ether_type(packet).to_be_bytes()),
        3 => state.mark.clone(),
        4 => index(moment.incoming),
        5 => index(moment.outgoing),
        6 => link_name(moment.incoming),
        7 => link_name(moment.outgoing),
        8 => hardware_type(moment.incoming?, length),
        9 => hardware_type(moment.outgoing?, length),
        // Nobody's process: what only passes has no socket.
        10 | 11 if !has_socket => return None,
        15 => Bits::known(&[if packet.is_ipv4() { 2 } else { 10 }]),
        16 => Bits::known(&[packet.protocol.number(packet.is_ipv4())]),
        17 => bridge(moment.incoming)?,
        18 => bridge(moment.outgoing)?,
        19 if !has_socket && moment.layer != Layer::Netdev => Bits::known(&[0]),
        26 => kind(moment.incoming)?,
        27 => kind(moment.outgoing)?,
        _ => Bits::unknown(length),
    })
}

fn hardware_type(link: &Link, length: usize) -> Bits {
    let number: u16 = match link {
        link if link.is_loopback => 772,
        link if link.mac != Mac::default() => 1,
        _ => return Bits::unknown(length),
    };
    Bits::known(&number.to_ne_bytes())
}

fn connection(
    key: u32,
    length: usize,
    moment: &Moment<'_>,
    packet: &Packet,
    state: &State,
) -> Bits {
    if matches!(moment.layer, Layer::Bridge | Layer::Netdev) {
        return Bits::unknown(length);
    }
    let connection_state = if packet.is_answer { ESTABLISHED } else { NEW };
    match key {
        0 => Bits::known(&connection_state.to_ne_bytes()),
        1 => Bits::known(&[u8::from(packet.is_answer)]),
        2 => {
            let mut status = Bits::unknown(4);
            let value = if state.destination_changed {
                STATUS_DNAT
            } else {
                0
            } | if state.source_changed { STATUS_SNAT } else { 0 };
            let mask = STATUS_DNAT | STATUS_SNAT;
            status.set_masked(0, &value.to_ne_bytes(), &mask.to_ne_bytes());
            status
        }
        3 => state.connection_mark.clone(),
        7 => Bits::known(&[if packet.is_ipv4() { 2 } else { 10 }]),
        10 => Bits::known(&[packet.protocol.number(packet.is_ipv4())]),
        _ => Bits::unknown(length),
    }
}

fn fib(result: u32, flags: u32, length: usize, moment: &Moment<'_>, state: &State) -> Bits {
    let (addr, other) = if flags & FIB_SADDR != 0 {
        (state.tuple.src, state.tuple.dst)
    } else {
        (state.tuple.dst, state.tuple.src)
    };
    let link = if flags & FIB_IIF != 0 {
        moment.incoming
    } else if flags & FIB_OIF_FLAG != 0 {
        moment.outgoing
    } else {
        None
    };
    if result == FIB_ADDRTYPE {
        let mut kind = moment.place.address_type(addr);
        let has = |link: &Link| {
            let mut own = moment.place.addresses_of(link.index);
            own.any(|one| one.net.addr() == addr)
        };
        if kind == route::LOCAL && link.is_some_and(|link| !has(link)) {
            kind = route::UNICAST;
        }
        return Bits::known(&u32::from(kind).to_ne_bytes());
    }
    let question = Question {
        src: (flags & FIB_SADDR == 0).then_some(other),
        ..Question::to(addr)
    };
    let found = moment.kernel.route(moment.id, &question);
    let index = found.ok().and_then(|found| found.link).unwrap_or(0);
    // With a link only a route by it counts.
    let index = if link.is_some_and(|link| link.index != index) {
        0
    } else {
        index
    };
    match result {
        _ if flags & FIB_PRESENT != 0 => Bits::known(&[u8::from(index != 0)]),
        FIB_OIF => Bits::known(&index.to_ne_bytes()),
        FIB_OIFNAME => {
            let link = moment.place.link(index);
            name(link.map_or("", |link| link.name.as_str()))
        }
        _ => Bits::unknown(length),
    }
}
