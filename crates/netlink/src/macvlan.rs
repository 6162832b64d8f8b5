//! Links that share another link under a hardware address of their own.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo};
use rustix::io;

use super::{
    Socket, as_u32, attributes,
    link::{Link, Mac, RTM_NEWLINK, named},
};

pub const KIND: &str = "macvlan";
const IFLA_MACVLAN_MODE: u16 = 1;

/// A link of this kind to be made.
pub struct Macvlan<'a> {
    pub name: &'a str,
    /// Index of the link it shares.
    pub master: u32,
    pub mode: Mode,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    /// How many broadcasts may wait.
    pub broadcasts: Option<u32>,
    /// Where it is made, if not where its master is.
    pub netns: Option<BorrowedFd<'a>>,
}

/// Who of a master's links reaches whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Private = 1,
    Vepa = 2,
    Bridge = 4,
    Passthru = 8,
}

impl Mode {
    /// The mode of a link of this kind, as the kernel's number.
    pub fn number_of(link: &Link) -> Option<u32> {
        let mode = attributes(&link.details, 0).find(|one| one.kind() == IFLA_MACVLAN_MODE)?;
        Some(as_u32(mode.value()))
    }
}

impl Socket {
    pub fn add_macvlan(&mut self, wanted: &Macvlan<'_>) -> io::Result<()> {
        let mut message = named(wanted.name);
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::Link(wanted.master));
        attributes.extend(wanted.mtu.map(LinkAttribute::Mtu));
        attributes.extend(wanted.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        let netns = wanted.netns.map(|netns| netns.as_raw_fd());
        attributes.extend(netns.map(LinkAttribute::NetNsFd));
        let mut data = vec![InfoMacVlan::Mode((wanted.mode as u32).into())];
        data.extend(wanted.broadcasts.map(InfoMacVlan::BcQueueLen));
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            LinkInfo::Data(InfoData::MacVlan(data)),
        ]));
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message)
            .map(drop)
    }
}
