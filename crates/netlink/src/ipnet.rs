//! An address with the length of its network's prefix, as CNI writes it: `10.1.2.3/24`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An address and a prefix length that fits its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpNet {
    addr: IpAddr,
    prefix: u8,
}

/// Reads an address; one of IPv4 in IPv6 clothes counts as IPv4, as everywhere in CNI.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|addr| addr.to_canonical())
}

/// The address as a number, most significant byte first.
pub fn ip_number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of `like`'s family with this number, if there is one.
pub fn ip_from_number(number: u128, like: IpAddr) -> Option<IpAddr> {
    match like {
        IpAddr::V4(_) => u32::try_from(number)
            .ok()
            .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        IpAddr::V6(_) => Some(IpAddr::V6(Ipv6Addr::from_bits(number))),
    }
}

/// The address after this one, unless it was the last of its family.
pub fn next_ip(addr: IpAddr) -> Option<IpAddr> {
    ip_from_number(ip_number(addr).checked_add(1)?, addr)
}

impl IpNet {
    /// Nothing if the prefix is longer than the family's addresses.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<IpNet> {
        (prefix <= if addr.is_ipv4() { 32 } else { 128 }).then_some(IpNet { addr, prefix })
    }

    /// `0.0.0.0/0` or `::/0`, in the family of `like`.
    pub fn everything(like: IpAddr) -> IpNet {
        let addr = match like {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        IpNet { addr, prefix: 0 }
    }

    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Bits in an address of this family.
    pub fn width(&self) -> u8 {
        if self.addr.is_ipv4() { 32 } else { 128 }
    }

    /// The host bits, all ones.
    fn host_mask(&self) -> u128 {
        match self.width() - self.prefix {
            128 => u128::MAX,
            bits => (1 << bits) - 1,
        }
    }

    /// The same network named by its first address.
    pub fn network(&self) -> IpNet {
        let number = ip_number(self.addr) & !self.host_mask();
        let addr = ip_from_number(number, self.addr).expect("masking keeps the family");
        IpNet {
            addr,
            prefix: self.prefix,
        }
    }

    /// The last address, which is the broadcast address in IPv4.
    pub fn last(&self) -> IpAddr {
        let number = ip_number(self.addr) | self.host_mask();
        ip_from_number(number, self.addr).expect("host bits keep the family")
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4()
            && ip_number(addr) & !self.host_mask() == ip_number(self.network().addr)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<IpNet, String> {
        let wrong = || format!("{text:?} is not an address with a prefix length");
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let written: IpAddr = addr.parse().map_err(|_| wrong())?;
        let addr = written.to_canonical();
        let prefix = match (written, addr) {
            (IpAddr::V6(_), IpAddr::V4(_)) => prefix.checked_sub(96).ok_or_else(wrong)?,
            _ => prefix,
        };
        IpNet::new(addr, prefix).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for IpNet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<IpNet, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Serialize for IpNet {
    fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        into.collect_str(self)
    }
}

/// serde for an optional address; an empty text counts as none, as in Go's `net.IP`.
pub mod optional {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
        match Option::<String>::deserialize(from)?.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => parse_ip(text)
                .map(Some)
                .ok_or_else(|| de::Error::custom(format!("{text:?} is not an IP address"))),
        }
    }

    pub fn serialize<S: Serializer>(addr: &Option<IpAddr>, into: S) -> Result<S::Ok, S::Error> {
        match addr {
            Some(addr) => into.collect_str(addr),
            None => into.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_writes() {
        for text in [
            "10.1.2.3/24",
            "0.0.0.0/0",
            "fd00::1/64",
            "::/0",
            "1.2.3.4/32",
        ] {
            assert_eq!(text.parse::<IpNet>().unwrap().to_string(), text);
        }
        assert_eq!(
            "::ffff:1.2.3.4/120".parse::<IpNet>().unwrap().to_string(),
            "1.2.3.4/24"
        );
        for text in [
            "",
            "/",
            "1.2.3.4",
            "1.2.3.4/",
            "1.2.3.4/33",
            "::/129",
            "a/1",
            "1.2.3.4/+1",
        ] {
            assert!(text.parse::<IpNet>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_network_holds_its_ends(bits: u32, wide: u128, prefix in 0u8..=128) {
            for addr in [IpAddr::V4(bits.into()), IpAddr::V6(wide.into())] {
                let Some(net) = IpNet::new(addr, prefix) else { continue };
                prop_assert!(net.contains(addr));
                prop_assert!(net.contains(net.last()));
                prop_assert!(net.contains(net.network().addr()));
                prop_assert!(ip_number(net.network().addr()) <= ip_number(addr));
                if let Some(beyond) = next_ip(net.last()) {
                    prop_assert!(!net.contains(beyond));
                }
            }
        }
    }
}
