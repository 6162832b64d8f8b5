//! The packet that is followed: what is known of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// Echo requests, and answers to them; of IPv6 where the addresses are.
    Icmp,
}

impl Protocol {
    /// Reads "tcp" and the like.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            "icmp" => Self::Icmp,
            _ => return None,
        })
    }

    /// As the field of an IP header has it.
    #[must_use]
    pub fn number(self, is_ipv4: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp if is_ipv4 => 1,
            Self::Icmp => 58,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

/// Who speaks with whom. A port that is not known is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
}

impl Tuple {
    /// The answer's.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// The destination, with its port if that is known.
    #[must_use]
    pub fn destination(&self) -> String {
        endpoint(self.dst, self.destination_port)
    }
}

/// An address, with its port if there is one.
#[must_use]
pub fn endpoint(addr: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(addr, port).to_string(),
        None => addr.to_string(),
    }
}

/// A packet: the first of a connection, or the first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub tuple: Tuple,
    pub protocol: Protocol,
    pub is_answer: bool,
    /// Of the kernel, not of the wire: it ends with the network namespace.
    pub mark: u32,
}

impl Packet {
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.tuple.dst.is_ipv4()
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple {
            src,
            dst,
            source_port,
            destination_port,
        } = self.tuple;
        let (from, to) = (endpoint(src, source_port), endpoint(dst, destination_port));
        write!(f, "{} {from} → {to}", self.protocol.name())
    }
}
