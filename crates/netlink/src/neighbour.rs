//! Neighbours: who has which hardware address, and behind which port of a bridge it is.

use std::net::IpAddr;

use rustix::io;

use super::{Answer, Socket, addr::ip, as_u16, as_u32, attributes, link::Mac};

const RTM_GETNEIGH: u16 = 30;

/// Size of `struct ndmsg`.
const HEADER: usize = 12;
const AF_BRIDGE: u8 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;
const NDA_MASTER: u16 = 9;

/// States of an entry (`NUD_*`).
pub const INCOMPLETE: u16 = 0x01;
pub const REACHABLE: u16 = 0x02;
pub const STALE: u16 = 0x04;
pub const DELAY: u16 = 0x08;
pub const PROBE: u16 = 0x10;
pub const FAILED: u16 = 0x20;
pub const NOARP: u16 = 0x40;
pub const PERMANENT: u16 = 0x80;

/// An entry of a table of neighbours, or of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The link that it is on or behind.
    pub index: u32,
    /// Of a neighbour its address; of an entry of a tunnel the machine behind which it is.
    pub addr: Option<IpAddr>,
    pub mac: Option<Mac>,
    /// One of the states above.
    pub state: u16,
    /// The bridge that the entry is of.
    pub bridge: Option<u32>,
    pub vlan: Option<u16>,
}

impl Neighbour {
    fn parse(answer: &Answer) -> Option<Neighbour> {
        let header = answer.payload.first_chunk::<HEADER>()?;
        let mut found = Neighbour {
            index: as_u32(&header[4..]),
            addr: None,
            mac: None,
            state: as_u16(&header[8..]),
            bridge: None,
            vlan: None,
        };
        for attribute in attributes(&answer.payload, HEADER) {
            let value = attribute.value();
            match attribute.kind() {
                NDA_DST => found.addr = ip(value),
                NDA_LLADDR => found.mac = value.try_into().ok().map(Mac),
                NDA_VLAN => found.vlan = Some(as_u16(value)),
                NDA_MASTER => found.bridge = Some(as_u32(value)),
                _ => {}
            }
        }
        Some(found)
    }
}

impl Socket {
    /// The neighbours of both families that are known, and those that were looked for in vain.
    pub fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        self.entries(0)
    }

    /// What bridges and tunnels know: which hardware address is where.
    pub fn forwarding(&mut self) -> io::Result<Vec<Neighbour>> {
        self.entries(AF_BRIDGE)
    }

    fn entries(&mut self, family: u8) -> io::Result<Vec<Neighbour>> {
        let mut asked = [0; HEADER];
        asked[0] = family;
        let answers = self.dump_bytes(RTM_GETNEIGH, &asked)?;
        Ok(answers.iter().filter_map(Neighbour::parse).collect())
    }
}
