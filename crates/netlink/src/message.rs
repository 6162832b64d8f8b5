//! Attributes of messages that are composed here, as bytes.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NlaBuffer};

/// Attributes, one after the other.
#[derive(Default)]
pub struct Attributes(Vec<DefaultNla>);

impl Attributes {
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        self.0.push(DefaultNla::new(kind, value.to_vec()));
        self
    }

    /// An attribute as it came from the kernel, which nests where it is nested.
    pub fn raw(self, attribute: &NlaBuffer<&[u8]>) -> Attributes {
        let nested = if attribute.nested_flag() {
            NLA_F_NESTED
        } else {
            0
        };
        self.bytes(attribute.kind() | nested, attribute.value())
    }

    /// A number as the packet filter has it, big-endian.
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

    /// A value to compare with, to look up or to store.
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
