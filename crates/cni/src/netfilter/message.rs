//! Attributes and rule expressions of nf_tables, as bytes.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};

use crate::ipnet::IpNet;

/// Attributes, one after the other.
#[derive(Default)]
pub struct Attributes(Vec<DefaultNla>);

impl Attributes {
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        self.0.push(DefaultNla::new(kind, value.to_vec()));
        self
    }

    pub fn number(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub fn nest(self, kind: u16, inner: Attributes) -> Attributes {
        self.bytes(kind | NLA_F_NESTED, &inner.into_bytes())
    }

    /// A value to compare with or to look up.
    pub fn data(self, kind: u16, value: &[u8]) -> Attributes {
        self.nest(kind, Attributes::default().bytes(1, value))
    }

    pub fn into_bytes(self) -> Vec<u8> {
        let attributes = self.0.as_slice();
        let mut bytes = vec![0; attributes.buffer_len()];
        attributes.emit(&mut bytes);
        bytes
    }
}

const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// One step of a rule.
pub struct Expression {
    name: &'static str,
    data: Attributes,
}

impl Expression {
    /// Loads bytes of the network header.
    fn load(offset: u32, length: usize) -> Expression {
        let data = Attributes::default()
            .number(1, REGISTER)
            .number(2, NETWORK_HEADER)
            .number(3, offset)
            .number(4, length as u32);
        Expression {
            name: "payload",
            data,
        }
    }

    fn mask(mask: &[u8]) -> Expression {
        let data = Attributes::default()
            .number(1, REGISTER)
            .number(2, REGISTER)
            .number(3, mask.len() as u32)
            .data(4, mask)
            .data(5, &vec![0; mask.len()]);
        Expression {
            name: "bitwise",
            data,
        }
    }

    /// Ends the rule unless what was loaded is, or is not, the value.
    fn compare(value: &[u8], equal: bool) -> Expression {
        let data = Attributes::default()
            .number(1, REGISTER)
            .number(2, if equal { EQUAL } else { NOT_EQUAL })
            .data(3, value);
        Expression { name: "cmp", data }
    }

    pub fn masquerade() -> Expression {
        Expression {
            name: "masq",
            data: Attributes::default(),
        }
    }
}

/// Goes on if the bytes at `offset` of the network header, masked, are `value`, or are not.
pub fn masked(offset: u32, mask: &[u8], value: &[u8], equal: bool) -> [Expression; 3] {
    [
        Expression::load(offset, mask.len()),
        Expression::mask(mask),
        Expression::compare(value, equal),
    ]
}

/// Goes on if the address at `offset` of the network header is in the network, or is not.
pub fn in_network(offset: u32, network: &IpNet, inside: bool) -> [Expression; 3] {
    let bits = u32::from(network.prefix());
    match network.network().addr() {
        std::net::IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            masked(offset, &mask.to_be_bytes(), &addr.octets(), inside)
        }
        std::net::IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            masked(offset, &mask.to_be_bytes(), &addr.octets(), inside)
        }
    }
}

/// The list of a rule's expressions.
pub fn expressions(list: Vec<Expression>) -> Attributes {
    list.into_iter()
        .fold(Attributes::default(), |all, expression| {
            let one = Attributes::default()
                .text(1, expression.name)
                .nest(2, expression.data);
            all.nest(1, one)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let bytes = Attributes::default()
            .nest(3, Attributes::default().text(1, "ab"))
            .into_bytes();
        let little = [12, 0, 3, 0x80, 7, 0, 1, 0, b'a', b'b', 0, 0];
        assert_eq!(bytes, little);
    }
}
