//! Links: finding, making, changing and removing them.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rustix::io::{self, Errno};

use super::{Answer, Batch, Socket, as_text, as_u32, attributes};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;

const HEADER: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_XDP_ATTACHED: u16 = 2;

const IFF_LOOPBACK: u32 = 0x8;
const IFF_NOARP: u32 = 0x80;
const IFF_LOWER_UP: u32 = 0x1_0000;

/// A hardware address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A unicast address of the locally administered kind.
    ///
    /// An address that is set by hand stays: neither the kernel nor udev replaces it.
    pub fn random() -> io::Result<Mac> {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        bytes[0] = bytes[0] & 0xfc | 2;
        Ok(Mac(bytes))
    }

    /// Reads `02:00:5e:10:00:01`, also with dashes.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && !part.starts_with('+'))?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a link has passed on, and what it has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub received_packets: u64,
    pub sent_packets: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub receive_errors: u64,
    pub send_errors: u64,
    pub receive_drops: u64,
    pub send_drops: u64,
}

impl Counters {
    /// Reads the head of `struct rtnl_link_stats64`.
    fn parse(value: &[u8]) -> Option<Counters> {
        let mut numbers = value.chunks_exact(8);
        let mut next = || Some(u64::from_ne_bytes(numbers.next()?.try_into().ok()?));
        Some(Counters {
            received_packets: next()?,
            sent_packets: next()?,
            received_bytes: next()?,
            sent_bytes: next()?,
            receive_errors: next()?,
            send_errors: next()?,
            receive_drops: next()?,
            send_drops: next()?,
        })
    }
}

/// What is known of a link.
#[derive(Clone, Debug, Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Mac,
    pub up: bool,
    /// The other end, or the cable, is up as well.
    pub carrier: bool,
    pub is_loopback: bool,
    /// It asks nobody for hardware addresses.
    pub no_arp: bool,
    pub all_multicast: bool,
    /// Packets that may wait to be sent.
    pub queue: u32,
    /// In bytes.
    pub mtu: u32,
    /// How often promiscuous mode was asked for.
    pub promiscuity: u32,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Index of the other end, in the other end's network namespace.
    pub peer: Option<u32>,
    /// Which network namespace the other end is in, as this one numbers others; none for this one.
    pub peer_netns: Option<i32>,
    /// `veth`, `bridge`, …; empty for hardware.
    pub kind: String,
    /// What is particular to links of the kind, as attributes.
    pub details: Vec<u8>,
    /// Of what kind its master is, and what it is as one's port, as attributes.
    pub port_kind: String,
    pub port: Vec<u8>,
    /// A program of the kernel's looks at packets before anything else does.
    pub xdp: bool,
    /// Known only of links that were listed in full.
    pub counters: Option<Counters>,
    pub alias: String,
}

impl Link {
    fn parse(answer: &Answer) -> Option<Link> {
        let header = answer.payload.first_chunk::<HEADER>()?;
        let flags = as_u32(&header[8..]);
        let mut link = Link {
            index: as_u32(&header[4..]),
            up: flags & LinkFlags::Up.bits() != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            is_loopback: flags & IFF_LOOPBACK != 0,
            no_arp: flags & IFF_NOARP != 0,
            all_multicast: flags & LinkFlags::Allmulti.bits() != 0,
            ..Link::default()
        };
        for attribute in attributes(&answer.payload, HEADER) {
            let value = attribute.value();
            match attribute.kind() {
                IFLA_ADDRESS => link.mac = Mac(value.try_into().unwrap_or_default()),
                IFLA_IFNAME => link.name = as_text(value),
                IFLA_MTU => link.mtu = as_u32(value),
                IFLA_TXQLEN => link.queue = as_u32(value),
                IFLA_LINK => link.peer = Some(as_u32(value)),
                IFLA_MASTER => link.master = Some(as_u32(value)),
                IFLA_IFALIAS => link.alias = as_text(value),
                IFLA_PROMISCUITY => link.promiscuity = as_u32(value),
                IFLA_LINK_NETNSID => link.peer_netns = Some(as_u32(value).cast_signed()),
                IFLA_STATS64 => link.counters = Counters::parse(value),
                IFLA_XDP => {
                    link.xdp = attributes(value, 0)
                        .any(|inner| inner.kind() == IFLA_XDP_ATTACHED && inner.value() != [0]);
                }
                IFLA_LINKINFO => link.read_info(value),
                _ => {}
            }
        }
        Some(link)
    }

    fn read_info(&mut self, info: &[u8]) {
        for inner in attributes(info, 0) {
            let value = inner.value();
            match inner.kind() {
                IFLA_INFO_KIND => self.kind = as_text(value),
                IFLA_INFO_DATA => self.details = value.to_vec(),
                IFLA_INFO_SLAVE_KIND => self.port_kind = as_text(value),
                IFLA_INFO_SLAVE_DATA => self.port = value.to_vec(),
                _ => {}
            }
        }
    }
}

pub(super) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message
}

/// Half of an answer would be numbers that nobody reads here.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn raised(message: &mut LinkMessage, flags: LinkFlags) {
    message.header.flags |= flags;
    message.header.change_mask |= flags;
}

/// What can be changed of any link.
#[derive(Clone, Copy, Debug)]
pub enum Setting {
    Up(bool),
    Promiscuous(bool),
    AllMulticast(bool),
    /// In bytes.
    Mtu(u32),
    /// Packets that may wait to be sent.
    Queue(u32),
}

/// How the host's end of a pair joins its bridge.
pub struct Port<'a> {
    pub name: &'a str,
    pub bridge: u32,
    pub alias: &'a str,
    pub hairpin: bool,
    pub isolated: bool,
}

/// A pair of links: one end here, the other in the container.
pub struct Pair<'a> {
    pub host_name: &'a str,
    pub host_mac: Mac,
    pub name: &'a str,
    pub mac: Mac,
    /// Of both ends, in bytes.
    pub mtu: Option<u32>,
    pub netns: BorrowedFd<'a>,
}

impl Batch {
    /// Makes a pair of links, both down.
    pub fn add_pair(&mut self, pair: &Pair<'_>) {
        let mtu = pair.mtu.map(LinkAttribute::Mtu);
        let mut peer = named(pair.name);
        peer.attributes
            .push(LinkAttribute::Address(pair.mac.0.to_vec()));
        peer.attributes
            .push(LinkAttribute::NetNsFd(pair.netns.as_raw_fd()));
        peer.attributes.extend(mtu.clone());
        let mut host = named(pair.host_name);
        host.attributes
            .push(LinkAttribute::Address(pair.host_mac.0.to_vec()));
        host.attributes.extend(mtu);
        host.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.emit(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &host);
    }

    /// Labels a link and raises it.
    pub fn label_and_raise(&mut self, name: &str, alias: &str) {
        let mut message = named(name);
        message
            .attributes
            .push(LinkAttribute::IfAlias(alias.into()));
        raised(&mut message, LinkFlags::Up);
        self.emit(RTM_SETLINK, 0, &message);
    }

    /// Makes a link a port of a bridge and raises it.
    pub fn join_bridge(&mut self, port: &Port<'_>) {
        let mut message = named(port.name);
        message
            .attributes
            .push(LinkAttribute::IfAlias(port.alias.into()));
        message
            .attributes
            .push(LinkAttribute::Controller(port.bridge));
        raised(&mut message, LinkFlags::Up);
        self.emit(RTM_SETLINK, 0, &message);
        if port.hairpin || port.isolated {
            // Only a link that is a port already takes a port's settings.
            let mut message = named(port.name);
            message.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![
                    InfoBridgePort::HairpinMode(port.hairpin),
                    InfoBridgePort::Isolated(port.isolated),
                ])),
            ]));
            self.emit(RTM_NEWLINK, 0, &message);
        }
    }
}

impl Socket {
    /// Finds a link by its name.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        self.find_link(named(name))
    }

    /// Finds a link by its index.
    pub fn link_at(&mut self, index: u32) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(message)
    }

    fn find_link(&mut self, mut message: LinkMessage) -> io::Result<Option<Link>> {
        message.attributes.push(without_statistics());
        match self.request(RTM_GETLINK, 0, &message) {
            Ok(answers) => Ok(answers.iter().find_map(Link::parse)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(without_statistics());
        Ok(self
            .dump(RTM_GETLINK, &message)?
            .iter()
            .filter_map(Link::parse)
            .collect())
    }

    /// All links with what they have passed on.
    pub fn links_in_full(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.dump(RTM_GETLINK, &LinkMessage::default())?;
        Ok(answers.iter().filter_map(Link::parse).collect())
    }

    /// Makes a bridge; one that is there already is fine.
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: Option<u32>) -> io::Result<()> {
        let mut message = named(name);
        message
            .attributes
            .push(LinkAttribute::Address(mac.0.to_vec()));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Bridge,
            )]));
        match self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Makes a link of the kind that sends on what is sent to it, up.
    pub fn add_ifb(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        let mut message = named(name);
        raised(&mut message, LinkFlags::Up);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message)
            .map(drop)
    }

    /// Raises a link, and makes it promiscuous if asked to.
    pub fn raise(&mut self, index: u32, promiscuous: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        raised(&mut message, LinkFlags::Up);
        if promiscuous {
            raised(&mut message, LinkFlags::Promisc);
        }
        self.request(RTM_SETLINK, 0, &message).map(drop)
    }

    /// Sets a link's hardware address. Setting the one it has makes the kernel announce the link's
    /// IP addresses to the neighbours, where its sysctls allow.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::Address(mac.0.to_vec()));
        self.request(RTM_SETLINK, 0, &message).map(drop)
    }

    /// Changes a setting of a link.
    pub fn set(&mut self, index: u32, setting: Setting) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let mut flag = |flag, on| {
            message.header.change_mask = flag;
            message.header.flags = if on { flag } else { LinkFlags::empty() };
        };
        match setting {
            Setting::Up(on) => flag(LinkFlags::Up, on),
            Setting::Promiscuous(on) => flag(LinkFlags::Promisc, on),
            Setting::AllMulticast(on) => flag(LinkFlags::Allmulti, on),
            Setting::Mtu(mtu) => message.attributes.push(LinkAttribute::Mtu(mtu)),
            Setting::Queue(length) => message.attributes.push(LinkAttribute::TxQueueLen(length)),
        }
        self.request(RTM_SETLINK, 0, &message).map(drop)
    }

    /// Lowers a link.
    pub fn lower(&mut self, index: u32) -> io::Result<()> {
        self.set(index, Setting::Up(false))
    }

    /// Removes a link; false if there was none.
    pub fn delete_link(&mut self, name: &str) -> io::Result<bool> {
        match self.request(RTM_DELLINK, 0, &named(name)) {
            Ok(_) => Ok(true),
            Err(Errno::NODEV) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_read_and_write() {
        let mac = Mac::parse("02:0a:FF:10:00:01").unwrap();
        assert_eq!(mac.to_string(), "02:0a:ff:10:00:01");
        for text in [
            "",
            "02:0a",
            "02:0a:ff:10:00:01:02",
            "2:a:ff:10:0:1",
            "+2:00:00:00:00:00",
        ] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
        assert_eq!(Mac::random().unwrap().0[0] & 3, 2);
    }
}
