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
    as_u16, as_u32, attributes,
    message::Attributes,
};
use crate::ipnet::IpNet;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
const RTAX_MTU: u16 = 2;

/// What a route does with a packet (`RTN_*`).
pub const UNICAST: u8 = 1;
pub const LOCAL: u8 = 2;
pub const BROADCAST: u8 = 3;
pub const MULTICAST: u8 = 5;
pub const BLACKHOLE: u8 = 6;
pub const UNREACHABLE: u8 = 7;
pub const PROHIBIT: u8 = 8;
pub const THROW: u8 = 9;

/// The tables that every machine has.
pub const MAIN_TABLE: u32 = 254;
pub const LOCAL_TABLE: u32 = 255;

/// Where a route leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    pub gateway: Option<IpAddr>,
    /// Index of the link it leads out of.
    pub link: Option<u32>,
}

/// A route that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub dst: IpNet,
    pub gateway: Option<IpAddr>,
    /// Index of the link it leads out of.
    pub link: Option<u32>,
    pub table: u32,
    /// [`UNICAST`], [`LOCAL`] and so on.
    pub kind: u8,
    /// The address of what takes the route and has not chosen one.
    pub source: Option<IpAddr>,
    pub priority: u32,
    /// In bytes; 0 for the link's.
    pub mtu: u32,
    /// Where a route with several ways leads.
    pub hops: Vec<Hop>,
}

/// What the kernel is asked to route.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub dst: IpAddr,
    pub src: Option<IpAddr>,
    /// The link by which the packet came; none if it is one of the machine's own.
    pub from_link: Option<u32>,
    /// Only routes out of this link.
    pub to_link: Option<u32>,
    pub mark: u32,
    pub protocol: Option<u8>,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
}

impl Question {
    pub fn to(dst: IpAddr) -> Question {
        Question {
            dst,
            src: None,
            from_link: None,
            to_link: None,
            mark: 0,
            protocol: None,
            source_port: None,
            destination_port: None,
        }
    }

    fn payload(&self) -> Vec<u8> {
        let (family, width) = if self.dst.is_ipv4() {
            (2, 32)
        } else {
            (10, 128)
        };
        let mut bytes = vec![0; HEADER];
        bytes[0] = family;
        bytes[1] = width;
        let mut asked = Attributes::default().bytes(RTA_DST, &octets(self.dst));
        if let Some(src) = self.src {
            bytes[2] = width;
            asked = asked.bytes(RTA_SRC, &octets(src));
        }
        for (kind, link) in [(RTA_IIF, self.from_link), (RTA_OIF, self.to_link)] {
            if let Some(link) = link {
                asked = asked.bytes(kind, &link.to_ne_bytes());
            }
        }
        if self.mark != 0 {
            asked = asked.bytes(RTA_MARK, &self.mark.to_ne_bytes());
        }
        if let Some(protocol) = self.protocol {
            asked = asked.bytes(RTA_IP_PROTO, &[protocol]);
        }
        let ports = [
            (RTA_SPORT, self.source_port),
            (RTA_DPORT, self.destination_port),
        ];
        for (kind, port) in ports {
            if let Some(port) = port {
                asked = asked.bytes(kind, &port.to_be_bytes());
            }
        }
        bytes.extend(asked.into_bytes());
        bytes
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The gateway in an attribute that names its family, too.
fn via(value: &[u8]) -> Option<IpAddr> {
    ip(value.get(2..)?)
}

/// The hops in `struct rtnexthop`s, one after the other.
fn hops(mut value: &[u8]) -> Vec<Hop> {
    const SIZE: usize = 8;
    let mut hops = Vec::new();
    while value.len() >= SIZE {
        let length = usize::from(as_u16(value));
        let Some(one) = value.get(..length).filter(|one| one.len() >= SIZE) else {
            break;
        };
        let mut hop = Hop {
            gateway: None,
            link: Some(as_u32(&one[4..])),
        };
        for attribute in attributes(one, SIZE) {
            match attribute.kind() {
                RTA_GATEWAY => hop.gateway = ip(attribute.value()),
                RTA_VIA => hop.gateway = via(attribute.value()),
                _ => {}
            }
        }
        hops.push(hop);
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

impl Found {
    fn parse(answer: &Answer) -> Option<Found> {
        let header = answer.payload.first_chunk::<HEADER>()?;
        let unspecified = match header[0] {
            2 => IpAddr::V4([0; 4].into()),
            10 => IpAddr::V6([0; 16].into()),
            _ => return None,
        };
        let mut found = Found {
            dst: IpNet::new(unspecified, header[1])?,
            gateway: None,
            link: None,
            table: u32::from(header[4]),
            kind: header[7],
            source: None,
            priority: 0,
            mtu: 0,
            hops: Vec::new(),
        };
        for attribute in attributes(&answer.payload, HEADER) {
            let value = attribute.value();
            match attribute.kind() {
                RTA_DST => found.dst = IpNet::new(ip(value)?, header[1])?,
                RTA_OIF => found.link = Some(as_u32(value)),
                RTA_GATEWAY => found.gateway = ip(value),
                RTA_VIA => found.gateway = via(value),
                RTA_TABLE => found.table = as_u32(value),
                RTA_PREFSRC => found.source = ip(value),
                RTA_PRIORITY => found.priority = as_u32(value),
                RTA_METRICS => {
                    found.mtu = attributes(value, 0)
                        .find(|metric| metric.kind() == RTAX_MTU)
                        .map_or(0, |metric| as_u32(metric.value()));
                }
                RTA_MULTIPATH => found.hops = hops(value),
                _ => {}
            }
        }
        Some(found)
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
    /// Which way the kernel would send a packet.
    ///
    /// Errors: why it would not, as a process would be told it.
    pub fn look_up(&mut self, question: &Question) -> io::Result<Found> {
        let mut batch = Batch::default();
        batch.push(RTM_GETROUTE, 0, &question.payload());
        let answers = self.send(batch).map_err(|refused| refused.errno)?;
        answers.iter().find_map(Found::parse).ok_or(Errno::PROTO)
    }

    /// Index of the link by which the machine would send to an address; nothing if it could not.
    pub fn link_to(&mut self, addr: IpAddr) -> io::Result<Option<u32>> {
        match self.look_up(&Question::to(addr)) {
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH) => Ok(None),
            found => Ok(found?.link),
        }
    }

    /// All routes of both families, of every table.
    pub fn all_routes(&mut self) -> io::Result<Vec<Found>> {
        let mut all = self.routes(AddressFamily::Inet)?;
        all.extend(self.routes(AddressFamily::Inet6)?);
        Ok(all)
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
