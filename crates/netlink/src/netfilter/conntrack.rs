//! Connections that the kernel remembers.
//!
//! Where a datagram goes is decided with the first one of its connection. Unless that is forgotten, a
//! client that keeps sending never notices that a port leads elsewhere now.

use rustix::io::{self, Errno};

use super::{Family, HEADER};
use crate::{Batch, Socket, attributes, message::Attributes};

const SUBSYSTEM: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_DESTINATION_PORT: u16 = 3;
const FILTER_ORIGINAL_FLAGS: u16 = 1;
/// Of a filter: protocol and destination port count.
const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

const UDP: u8 = 17;

fn kind(message: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, message])
}

fn payload(family: Family, attributes: Attributes) -> Vec<u8> {
    let mut bytes = vec![family.number(), 0, 0, 0];
    bytes.extend(attributes.into_bytes());
    bytes
}

/// Forgets the UDP connections that were opened to these ports.
pub fn forget_udp(socket: &mut Socket, family: Family, ports: &[u16]) -> io::Result<()> {
    for &port in ports {
        let mut batch = Batch::default();
        for found in list(socket, family, port)? {
            batch.push(kind(DELETE), 0, &payload(family, found));
        }
        if batch.is_empty() {
            continue;
        }
        match socket.send(batch) {
            Ok(_) => {}
            // It ended by itself. The others were tried nevertheless.
            Err(refused) if refused.errno == Errno::NOENT => {}
            Err(refused) => return Err(refused.errno),
        }
    }
    Ok(())
}

/// What names each UDP connection to the port. The kernel picks them out if it can (since 5.8).
fn list(socket: &mut Socket, family: Family, port: u16) -> io::Result<Vec<Attributes>> {
    let proto = Attributes::default()
        .bytes(PROTO_NUMBER, &[UDP])
        .bytes(PROTO_DESTINATION_PORT, &port.to_be_bytes());
    let flags =
        Attributes::default().bytes(FILTER_ORIGINAL_FLAGS, &BY_PROTOCOL_AND_PORT.to_ne_bytes());
    let asked = Attributes::default()
        .nest(
            TUPLE_ORIGINAL,
            Attributes::default().nest(TUPLE_PROTO, proto),
        )
        .nest(FILTER, flags);
    let answers = match socket.dump_bytes(kind(GET), &payload(family, asked)) {
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            socket.dump_bytes(kind(GET), &payload(family, Attributes::default()))?
        }
        answers => answers?,
    };
    let matching = answers
        .iter()
        .filter(|answer| answer.payload.first() == Some(&family.number()))
        .filter(|answer| is_to(&answer.payload, port));
    let named = matching.map(|answer| {
        attributes(&answer.payload, HEADER)
            .filter(|attribute| [TUPLE_ORIGINAL, ZONE].contains(&attribute.kind()))
            .fold(Attributes::default(), |all, attribute| all.raw(&attribute))
    });
    Ok(named.collect())
}

/// Whether a connection is one of UDP to the port.
fn is_to(answer: &[u8], port: u16) -> bool {
    let mut found = (false, false);
    for tuple in attributes(answer, HEADER).filter(|one| one.kind() == TUPLE_ORIGINAL) {
        for proto in attributes(tuple.value(), 0).filter(|one| one.kind() == TUPLE_PROTO) {
            for part in attributes(proto.value(), 0) {
                match part.kind() {
                    PROTO_NUMBER => found.0 = part.value() == [UDP],
                    PROTO_DESTINATION_PORT => found.1 = part.value() == port.to_be_bytes(),
                    _ => {}
                }
            }
        }
    }
    found == (true, true)
}
