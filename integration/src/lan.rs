//! The physical network between nodes: a bridge in a network namespace of its own, and an `eth0` for each
//! machine that is plugged in.
//!
//! ```text
//!   node 1           node 2          the other host
//!   eth0 .1          eth0 .2         phys0 .254       192.0.2.0/24, 2001:db8::/64
//!     └───────────────┴──── bridge phys0 ─┘
//! ```
//!
//! The other host stands for everything that is not of the cluster. Machines send it what they know no other
//! way for; it passes nothing on, and knows no way to pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::HostNet;

/// The number of the other host.
const OUTSIDE: u8 = 254;

/// IPv4 or IPv6, with the tests' addresses in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// A machine's address on the physical network.
    #[must_use]
    pub fn machine(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// The address of the host that is not of the cluster.
    #[must_use]
    pub fn outside(self) -> IpAddr {
        self.machine(OUTSIDE)
    }

    /// The range of a node's pods.
    #[must_use]
    pub fn pods_of(self, number: u8) -> String {
        match self {
            Self::V4 => format!("10.118.{number}.0/24"),
            Self::V6 => format!("fd00:118:0:{number}::/64"),
        }
    }

    /// The range of all pods.
    #[must_use]
    pub fn pods(self) -> &'static str {
        match self {
            Self::V4 => "10.118.0.0/16",
            Self::V6 => "fd00:118::/48",
        }
    }

    /// The range of everything.
    #[must_use]
    pub fn any(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }

    /// What nft calls it.
    #[must_use]
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// A physical network.
#[derive(Debug)]
pub struct Lan {
    /// The other host's network, which the bridge is in.
    pub outside: HostNet,
}

impl Lan {
    /// Makes the network, with nobody on it but the other host.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn new() -> Self {
        let outside = HostNet::new();
        outside.command(&["ip", "link", "add", "phys0", "type", "bridge"]);
        bring_up(&outside, "phys0", OUTSIDE);
        Self { outside }
    }

    /// A machine's network, with an `eth0` on this one. Numbers are from 1 on.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn machine(&self, number: u8) -> HostNet {
        let machine = HostNet::new();
        let port = format!("port{number}");
        self.outside.join(&port, &machine, "eth0");
        self.outside
            .command(&["ip", "link", "set", &port, "master", "phys0", "up"]);
        bring_up(&machine, "eth0", number);
        for family in [Family::V4, Family::V6] {
            let outside = family.outside().to_string();
            machine.command(&["ip", "route", "add", "default", "via", &outside]);
        }
        machine
    }
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

fn bring_up(net: &HostNet, link: &str, number: u8) {
    for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
        let address = format!("{}/{length}", family.machine(number));
        let mut command = vec!["ip", "addr", "add", &address, "dev", link];
        if family == Family::V6 {
            // Nobody else has it: no second of waiting to find that out.
            command.push("nodad");
        }
        net.command(&command);
    }
    net.command(&["ip", "link", "set", link, "up"]);
}
