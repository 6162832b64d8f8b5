//! Routes.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};
use rustix::io::{self, Errno};

use super::{
    Answer, Batch, Socket,
    addr::{family, ip},
    as_u32, attributes,
};
use crate::ipnet::IpNet;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// A route that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub dst: IpNet,
    pub gateway: Option<IpAddr>,
    /// Index of the link it leads out of.
    pub link: Option<u32>,
}

impl Found {
    fn parse(answer: &Answer) -> Option<Found> {
        let header = answer.payload.first_chunk::<HEADER>()?;
        let unspecified = match header[0] {
            2 => IpAddr::V4([0; 4].into()),
            10 => IpAddr::V6([0; 16].into()),
            _ => return None,
        };
        let (mut dst, mut gateway, mut link) = (unspecified, None, None);
        for attribute in attributes(&answer.payload, HEADER) {
            match attribute.kind() {
                RTA_DST => dst = ip(attribute.value())?,
                RTA_OIF => link = Some(as_u32(attribute.value())),
                RTA_GATEWAY => gateway = ip(attribute.value()),
                _ => {}
            }
        }
        Some(Found {
            dst: IpNet::new(dst, header[1])?,
            gateway,
            link,
        })
    }
}

/// A route to be made. Numbers that are 0 are the kernel's to choose.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub dst: IpNet,
    pub gateway: Option<IpAddr>,
    /// The address of what takes the route, unless it has chosen another.
    pub source: Option<IpAddr>,
    pub mtu: u32,
    pub advmss: u32,
    pub priority: u32,
    pub table: Option<u32>,
    pub scope: Option<u8>,
}

impl Wanted {
    pub fn to(dst: IpNet) -> Wanted {
        Wanted {
            dst,
            gateway: None,
            source: None,
            mtu: 0,
            advmss: 0,
            priority: 0,
            table: None,
            scope: None,
        }
    }
}

impl Batch {
    /// Adds a route out of the link `index`.
    pub fn add_route(&mut self, index: u32, route: &Wanted) {
        let dst = route.dst.network();
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(dst.addr()),
            destination_prefix_length: dst.prefix(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            kind: RouteType::Unicast,
            scope: match (route.scope, route.gateway) {
                (Some(scope), _) => scope.into(),
                // The kernel takes a route without a gateway only for what is on the link.
                (None, None) if dst.addr().is_ipv4() => RouteScope::Link,
                (None, _) => RouteScope::Universe,
            },
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(dst.addr().into()));
        attributes.push(RouteAttribute::Oif(index));
        let (gateway, source) = (route.gateway, route.source);
        attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
        if route.priority != 0 {
            attributes.push(RouteAttribute::Priority(route.priority));
        }
        attributes.extend(route.table.map(RouteAttribute::Table));
        let metrics: Vec<_> = [
            (route.mtu != 0).then_some(RouteMetric::Mtu(route.mtu)),
            (route.advmss != 0).then_some(RouteMetric::Advmss(route.advmss)),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        self.emit(RTM_NEWROUTE, NLM_F_CREATE, &message);
    }
}

impl Socket {
    /// Index of the link by which the machine would send to an address; nothing if it could not.
    pub fn link_to(&mut self, addr: IpAddr) -> io::Result<Option<u32>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(addr);
        message.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(addr.into()));
        let answers = match self.request(RTM_GETROUTE, 0, &message) {
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH) => return Ok(None),
            answers => answers?,
        };
        let mut found = answers
            .iter()
            .flat_map(|answer| attributes(&answer.payload, HEADER));
        Ok(found
            .find(|attribute| attribute.kind() == RTA_OIF)
            .map(|attribute| as_u32(attribute.value())))
    }

    /// All routes of a family, of every table.
    pub fn routes(&mut self, of: AddressFamily) -> io::Result<Vec<Found>> {
        let mut message = RouteMessage::default();
        message.header.address_family = of;
        Ok(self
            .dump(RTM_GETROUTE, &message)?
            .iter()
            .filter_map(Found::parse)
            .collect())
    }
}
