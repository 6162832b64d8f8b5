//! VLANs of bridges and their ports.

use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use rustix::io;

use super::{
    Batch, Socket, as_u16, as_u32, attributes,
    link::{Link, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK},
    message::Attributes,
};

const AF_BRIDGE: u8 = 7;
const IFLA_AF_SPEC: u16 = 26;
const FLAGS: u16 = 0;
const VLAN: u16 = 2;
/// The message is for the bridge, not for the link itself.
const MASTER: u16 = 1;

/// Size of `struct ifinfomsg`.
const INFO: usize = 16;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_BRVLAN: u32 = 2;

const PVID: u16 = 1 << 1;
const UNTAGGED: u16 = 1 << 2;
const PVID_UNTAGGED: u16 = PVID | UNTAGGED;
const RANGE_BEGIN: u16 = 1 << 3;
const RANGE_END: u16 = 1 << 4;

const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;

/// Whether a bridge keeps VLANs apart. It does not where the kernel cannot, whatever it is told.
pub fn is_filtering(bridge: &Link) -> bool {
    let mut details = attributes(&bridge.details, 0);
    details.any(|one| one.kind() == IFLA_BR_VLAN_FILTERING && one.value() == [1])
}

/// The VLAN that a bridge puts every new port in; 0 for none.
pub fn default_of(bridge: &Link) -> u16 {
    let mut details = attributes(&bridge.details, 0);
    details
        .find(|one| one.kind() == IFLA_BR_VLAN_DEFAULT_PVID)
        .and_then(|one| one.value().try_into().ok().map(u16::from_ne_bytes))
        .unwrap_or(0)
}

/// A VLAN that a port of a bridge is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    pub id: u16,
    /// What comes in without a tag is in it.
    pub is_own: bool,
    /// What goes out by the port has no tag.
    pub untagged: bool,
}

/// Consecutive numbers, as first and last.
fn ranges(sorted: &[u16]) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &id in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    ranges
}

fn entry(flags: u16, id: u16) -> [u8; 4] {
    let ([f0, f1], [i0, i1]) = (flags.to_ne_bytes(), id.to_ne_bytes());
    [f0, f1, i0, i1]
}

/// A message about a port's VLANs: struct ifinfomsg, then what the bridge reads.
fn message(port: u32, entries: Attributes) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[0] = AF_BRIDGE;
    bytes[4..8].copy_from_slice(&port.to_ne_bytes());
    bytes.extend(
        Attributes::default()
            .nest(IFLA_AF_SPEC, entries)
            .into_bytes(),
    );
    bytes
}

fn to_master() -> Attributes {
    Attributes::default().bytes(FLAGS, &MASTER.to_ne_bytes())
}

impl Batch {
    /// Takes a port out of a VLAN.
    pub fn leave_vlan(&mut self, port: u32, id: u16) {
        let entries = to_master().bytes(VLAN, &entry(0, id));
        self.push(RTM_DELLINK, 0, &message(port, entries));
    }

    /// Puts what comes in by a port without a tag in a VLAN, and takes the tag of it off on the way out.
    pub fn join_vlan(&mut self, port: u32, id: u16) {
        let entries = to_master().bytes(VLAN, &entry(PVID_UNTAGGED, id));
        self.push(RTM_SETLINK, 0, &message(port, entries));
    }

    /// Lets a port take part in VLANs, given in order, under their tags.
    pub fn join_tagged(&mut self, port: u32, sorted: &[u16]) {
        let mut entries = to_master();
        for (first, last) in ranges(sorted) {
            entries = if first == last {
                entries.bytes(VLAN, &entry(0, first))
            } else {
                entries
                    .bytes(VLAN, &entry(RANGE_BEGIN, first))
                    .bytes(VLAN, &entry(RANGE_END, last))
            };
        }
        self.push(RTM_SETLINK, 0, &message(port, entries));
    }
}

impl Socket {
    /// The VLANs of every bridge and port, by the index of the link.
    pub fn memberships(&mut self) -> io::Result<Vec<(u32, Membership)>> {
        let mut asked = vec![0; INFO];
        asked[0] = AF_BRIDGE;
        let mask = Attributes::default().bytes(IFLA_EXT_MASK, &RTEXT_FILTER_BRVLAN.to_ne_bytes());
        asked.extend(mask.into_bytes());
        let mut found = Vec::new();
        for answer in self.dump_bytes(RTM_GETLINK, &asked)? {
            let Some(index) = answer.payload.get(4..8).map(as_u32) else {
                continue;
            };
            for spec in attributes(&answer.payload, INFO).filter(|one| one.kind() == IFLA_AF_SPEC) {
                for one in attributes(spec.value(), 0).filter(|one| one.kind() == VLAN) {
                    let flags = as_u16(one.value());
                    let membership = Membership {
                        id: one.value().get(2..).map_or(0, as_u16),
                        is_own: flags & PVID != 0,
                        untagged: flags & UNTAGGED != 0,
                    };
                    found.push((index, membership));
                }
            }
        }
        Ok(found)
    }

    /// Makes a bridge keep VLANs apart, if the kernel can.
    pub fn filter_vlans(&mut self, bridge: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = bridge;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]));
        self.request(RTM_NEWLINK, 0, &message).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_numbers_are_one_range() {
        assert_eq!(ranges(&[]), []);
        assert_eq!(ranges(&[1, 2, 3, 5, 7, 8]), [(1, 3), (5, 5), (7, 8)]);
        assert_eq!(ranges(&[4094]), [(4094, 4094)]);
    }
}
