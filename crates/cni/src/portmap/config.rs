//! The configuration of portmap, checked.

use std::net::IpAddr;

use serde::Deserialize;

use super::condition::{self, Condition};
use crate::{
    error::Error,
    ipnet::{IpNet, parse_ip},
    netfilter::Family,
    request::Request,
    result::{AddResult, null_is_empty},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// The bit of a packet's mark that says "masquerade", unless the configuration names another.
const DEFAULT_MARK_BIT: i64 = 13;

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    backend: String,
    snat: Option<bool>,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    #[serde(rename = "conditionsV4", deserialize_with = "null_is_empty")]
    conditions_v4: Vec<String>,
    #[serde(rename = "conditionsV6", deserialize_with = "null_is_empty")]
    conditions_v6: Vec<String>,
    runtime_config: RawRuntime,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawRuntime {
    #[serde(deserialize_with = "null_is_empty")]
    port_mappings: Vec<RawMapping>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawMapping {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// One port of the machine and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub protocol: u8,
    /// Only connections to this address; none for all of the machine's.
    pub host_ip: Option<IpAddr>,
    /// Connections of this family only; none for both.
    pub family: Option<Family>,
    pub host_port: u16,
    pub container_port: u16,
}

impl Mapping {
    /// Whether it is one of UDP.
    pub fn is_udp(&self) -> bool {
        self.protocol == UDP
    }

    fn same_port(&self, other: &Mapping) -> bool {
        (self.protocol, self.host_ip, self.host_port)
            == (other.protocol, other.host_ip, other.host_port)
            && (self.family.is_none() || other.family.is_none() || self.family == other.family)
    }
}

impl std::fmt::Display for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(addr) = self.host_ip {
            write!(f, "{} ", std::net::SocketAddr::new(addr, self.host_port))?;
        } else {
            write!(f, "{} ", self.host_port)?;
        }
        f.write_str(match self.protocol {
            TCP => "tcp",
            UDP => "udp",
            _ => "sctp",
        })
    }
}

/// Which ports lead to the container, and how.
#[derive(Debug)]
pub struct Config {
    /// Each port once.
    pub mappings: Vec<Mapping>,
    /// Source addresses are translated where the answers would not find back otherwise.
    pub snat: bool,
    /// They always are.
    pub masquerade_all: bool,
    /// The bit that marks packets between the two translations.
    pub mark: u32,
    pub conditions_v4: Vec<Condition>,
    pub conditions_v6: Vec<Condition>,
}

impl Config {
    pub fn parse(request: &Request) -> Result<Config, Error> {
        let raw: RawConfig = request.config_of("portmap")?;
        // How connections are led is up to the plugin; both names stand for the same behaviour.
        if !["", "iptables", "nftables"].contains(&raw.backend.as_str()) {
            return Err(Error::config(format!("unknown backend {:?}", raw.backend)));
        }
        if raw.mark_masq_bit.is_some() && raw.external_set_mark_chain.is_some() {
            return Err(Error::config(
                "externalSetMarkChain and markMasqBit exclude each other",
            ));
        }
        let bit = raw.mark_masq_bit.unwrap_or(DEFAULT_MARK_BIT);
        let bit = u32::try_from(bit).ok().filter(|bit| *bit < u32::BITS);
        let bit = bit.ok_or_else(|| Error::config("markMasqBit is not between 0 and 31"))?;
        Ok(Config {
            mappings: mappings(&raw.runtime_config.port_mappings)?,
            snat: raw.snat.unwrap_or(true),
            masquerade_all: raw.masq_all,
            mark: 1 << bit,
            conditions_v4: condition::parse("conditionsV4", &raw.conditions_v4, Family::V4)?,
            conditions_v6: condition::parse("conditionsV6", &raw.conditions_v6, Family::V6)?,
        })
    }

    pub fn conditions(&self, family: Family) -> &[Condition] {
        match family {
            Family::V4 => &self.conditions_v4,
            _ => &self.conditions_v6,
        }
    }

    /// The mappings that concern a family.
    pub fn of_family(&self, family: Family) -> impl Iterator<Item = &Mapping> {
        self.mappings
            .iter()
            .filter(move |mapping| mapping.family.is_none_or(|only| only == family))
    }
}

fn mappings(raw: &[RawMapping]) -> Result<Vec<Mapping>, Error> {
    let mut mappings: Vec<Mapping> = Vec::with_capacity(raw.len());
    for (index, raw) in raw.iter().enumerate() {
        let mapping = mapping(raw)
            .map_err(|says| Error::config(format!("runtimeConfig.portMappings[{index}].{says}")))?;
        match mappings.iter().find(|other| other.same_port(&mapping)) {
            None => mappings.push(mapping),
            Some(other) if other.container_port == mapping.container_port => {}
            Some(other) => {
                return Err(Error::config(format!(
                    "runtimeConfig.portMappings[{index}]: host port {mapping} leads to container port {} already",
                    other.container_port
                )));
            }
        }
    }
    Ok(mappings)
}

fn mapping(raw: &RawMapping) -> Result<Mapping, String> {
    let port = |key: &str, number: i64| {
        u16::try_from(number)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{key}: {number} is not between 1 and 65535"))
    };
    let protocol = match raw.protocol.to_ascii_lowercase().as_str() {
        "tcp" => TCP,
        "udp" => UDP,
        "sctp" => SCTP,
        other => return Err(format!("protocol: {other:?} is neither tcp, udp nor sctp")),
    };
    let host_ip = match raw.host_ip.as_str() {
        "" => None,
        text => Some(parse_ip(text).ok_or_else(|| format!("hostIP: {text:?} is no IP address"))?),
    };
    Ok(Mapping {
        protocol,
        host_ip: host_ip.filter(|addr| !addr.is_unspecified()),
        family: host_ip.map(Family::of),
        host_port: port("hostPort", raw.host_port)?,
        container_port: port("containerPort", raw.container_port)?,
    })
}

/// The container's first address of each family, with its subnet: one of its own interface `name`.
pub fn addresses(result: &AddResult, name: &str) -> Vec<IpNet> {
    let is_own = |interface: usize| {
        result
            .interfaces
            .get(interface)
            .is_none_or(|found| found.name == name && !found.sandbox.is_empty())
    };
    let mut found: Vec<IpNet> = Vec::new();
    for ip in &result.ips {
        let family = Family::of(ip.address.addr());
        if ip.interface.is_none_or(is_own)
            && !found.iter().any(|net| Family::of(net.addr()) == family)
        {
            found.push(ip.address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(host: i64, container: i64, protocol: &str, ip: &str) -> RawMapping {
        RawMapping {
            host_port: host,
            container_port: container,
            protocol: protocol.into(),
            host_ip: ip.into(),
        }
    }

    #[test]
    fn ports_are_checked_and_each_kept_once() {
        let list = [
            raw(80, 8080, "TCP", ""),
            raw(80, 8080, "tcp", ""),
            raw(80, 53, "udp", "0.0.0.0"),
            raw(80, 54, "udp", "::"),
            raw(80, 8081, "tcp", "10.0.0.1"),
        ];
        let found = mappings(&list).unwrap();
        let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["80 tcp", "80 udp", "80 udp", "10.0.0.1:80 tcp"]);
        assert_eq!(found[1].family, Some(Family::V4));
        for (bad, says) in [
            (raw(0, 1, "tcp", ""), "[0].hostPort: 0"),
            (raw(1, 65536, "tcp", ""), "[0].containerPort: 65536"),
            (raw(1, 1, "", ""), "[0].protocol"),
            (raw(1, 1, "tcp", "x"), "[0].hostIP: \"x\""),
        ] {
            let error = mappings(&[bad]).unwrap_err();
            assert!(error.msg.contains(says), "{error}");
        }
        let twice = [raw(80, 1, "tcp", ""), raw(80, 2, "tcp", "")];
        assert!(mappings(&twice).unwrap_err().msg.contains("already"));
    }
}
