//! Addresses of links.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
};
use rustix::io::{self, Errno};

use super::{Answer, Batch, Socket, as_u32, attributes};
use crate::ipnet::IpNet;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFA_F_PERMANENT: u32 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// An address that a link has.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub index: u32,
    pub net: IpNet,
    /// Duplicates are still being looked for; it cannot be used yet.
    pub tentative: bool,
    /// Somebody has given it to the link, for use with everybody: it is neither made by the kernel nor leased.
    pub lasting: bool,
}

impl Address {
    fn parse(answer: &Answer) -> Option<Address> {
        let header = answer.payload.first_chunk::<HEADER>()?;
        let (mut local, mut remote, mut flags) = (None, None, u32::from(header[2]));
        for attribute in attributes(&answer.payload, HEADER) {
            match attribute.kind() {
                IFA_LOCAL => local = ip(attribute.value()),
                IFA_ADDRESS => remote = ip(attribute.value()),
                IFA_FLAGS => flags = as_u32(attribute.value()),
                _ => {}
            }
        }
        Some(Address {
            index: as_u32(&header[4..]),
            net: IpNet::new(local.or(remote)?, header[1])?,
            tentative: flags & IFA_F_TENTATIVE != 0,
            lasting: flags & IFA_F_PERMANENT != 0 && header[3] == RT_SCOPE_UNIVERSE,
        })
    }
}

/// An address as netlink writes it.
pub fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

pub fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message
        .attributes
        .push(AddressAttribute::Address(net.addr()));
    message
}

impl Batch {
    /// Gives a link an address. Without `detect`, an IPv6 address is usable at once: nobody looks
    /// for duplicates of it.
    pub fn add_address(&mut self, index: u32, net: IpNet, detect: bool) {
        self.push_address(index, net, detect, AddressFlags::empty());
    }

    /// Gives a link an address without a route to its subnet.
    pub fn add_lone_address(&mut self, index: u32, net: IpNet) {
        self.push_address(index, net, false, AddressFlags::Noprefixroute);
    }

    fn push_address(&mut self, index: u32, net: IpNet, detect: bool, mut flags: AddressFlags) {
        let mut message = message(index, net);
        match net.last() {
            IpAddr::V4(last) if net.prefix() < 31 => {
                message.attributes.push(AddressAttribute::Broadcast(last));
            }
            IpAddr::V6(_) if !detect => flags |= AddressFlags::Nodad,
            _ => {}
        }
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        self.emit(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &message);
    }
}

impl Socket {
    /// All addresses of a link, of one family or of both.
    pub fn addresses(&mut self, index: u32, of: AddressFamily) -> io::Result<Vec<Address>> {
        let mut all = self.addresses_of(of)?;
        all.retain(|address| address.index == index);
        Ok(all)
    }

    /// The addresses of all links, of both families.
    pub fn all_addresses(&mut self) -> io::Result<Vec<Address>> {
        self.addresses_of(AddressFamily::Unspec)
    }

    fn addresses_of(&mut self, family: AddressFamily) -> io::Result<Vec<Address>> {
        let mut message = AddressMessage::default();
        message.header.family = family;
        let found = self.dump(RTM_GETADDR, &message)?;
        Ok(found.iter().filter_map(Address::parse).collect())
    }

    /// Gives a link an address, usable at once; one that it has already is fine.
    pub fn add_address(&mut self, index: u32, net: IpNet) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.add_address(index, net, false);
        match self.send(batch) {
            Ok(_) => Ok(()),
            Err(refused) if refused.errno == Errno::EXIST => Ok(()),
            Err(refused) => Err(refused.errno),
        }
    }

    /// Takes an address from a link; one that is gone already is fine.
    pub fn delete_address(&mut self, index: u32, net: IpNet) -> io::Result<()> {
        match self.request(RTM_DELADDR, 0, &message(index, net)) {
            Ok(_) | Err(Errno::ADDRNOTAVAIL) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
