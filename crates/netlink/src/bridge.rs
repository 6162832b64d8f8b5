//! What bridges are told about themselves and their ports.

use super::{attributes, link::Link};

const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;

/// States of a port (`BR_STATE_*`).
pub const FORWARDING: u8 = 3;

/// How a bridge treats one of its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// 0 disabled, 1 listening, 2 learning, 3 forwarding, 4 blocking.
    pub state: u8,
    /// A frame may leave by the port that it came in by.
    pub hairpin: bool,
    /// It does not speak to other isolated ports.
    pub isolated: bool,
    pub learning: bool,
    /// Frames to nobody known leave by it.
    pub flood: bool,
}

impl Link {
    /// How its bridge treats the link, if it is a port of one.
    pub fn bridge_port(&self) -> Option<Port> {
        if self.port_kind != "bridge" {
            return None;
        }
        let mut port = Port {
            flood: true,
            ..Port::default()
        };
        for attribute in attributes(&self.port, 0) {
            let value = attribute.value().first().copied().unwrap_or(0);
            match attribute.kind() {
                IFLA_BRPORT_STATE => port.state = value,
                IFLA_BRPORT_MODE => port.hairpin = value != 0,
                IFLA_BRPORT_LEARNING => port.learning = value != 0,
                IFLA_BRPORT_UNICAST_FLOOD => port.flood = value != 0,
                IFLA_BRPORT_ISOLATED => port.isolated = value != 0,
                _ => {}
            }
        }
        Some(port)
    }

    /// Whether this bridge shows the packets in its frames to the filters of IPv4, and of IPv6.
    pub fn shows_packets(&self) -> [bool; 2] {
        [IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES].map(|wanted| {
            attributes(&self.details, 0).any(|one| one.kind() == wanted && one.value() == [1])
        })
    }
}
