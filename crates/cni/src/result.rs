//! The result of an ADD: one model for all versions, written in the form of the version asked for.
//!
//! The oldest form, that of 0.1.0 and 0.2.0, says less: the first address of each family with the family's routes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    error::{Code, Doing, Error},
    ipnet::{self, IpNet},
    netlink::route::Wanted,
    version::Version,
};

/// An interface that a plugin made or used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace it is in; empty for the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    #[serde(
        default,
        rename = "socketPath",
        skip_serializing_if = "String::is_empty"
    )]
    pub socket_path: String,
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address given to an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    pub address: IpNet,
    #[serde(
        default,
        with = "ipnet::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateway: Option<IpAddr>,
}

/// A route that the container gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    #[serde(
        default,
        with = "ipnet::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    pub fn to(dst: IpNet) -> Route {
        Route {
            dst,
            gw: None,
            mtu: 0,
            advmss: 0,
            priority: 0,
            table: None,
            scope: None,
        }
    }

    /// The route as it is made: through this gateway.
    pub fn through(&self, gateway: Option<IpAddr>) -> Wanted {
        Wanted {
            dst: self.dst,
            gateway,
            source: None,
            mtu: self.mtu,
            advmss: self.advmss,
            priority: self.priority,
            table: self.table,
            scope: self.scope,
        }
    }
}

/// What the oldest form says of a family.
#[derive(Serialize, Deserialize)]
struct Flat {
    ip: IpNet,
    #[serde(
        default,
        with = "ipnet::optional",
        skip_serializing_if = "Option::is_none"
    )]
    gateway: Option<IpAddr>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    routes: Vec<Route>,
}

/// The keys of the oldest form; true for IPv4.
const FLAT: [(&str, bool); 2] = [("ip4", true), ("ip6", false)];

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Settings for the container's resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub search: Vec<String>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// Go writes an empty list as `null`.
pub fn null_is_empty<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

/// What an ADD gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AddResult {
    #[serde(deserialize_with = "null_is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(deserialize_with = "null_is_empty")]
    pub ips: Vec<IpConfig>,
    #[serde(deserialize_with = "null_is_empty")]
    pub routes: Vec<Route>,
    pub dns: Dns,
}

impl AddResult {
    /// Reads a result of any version spoken here.
    pub fn from_json(mut value: Value) -> Result<AddResult, Error> {
        let version = value.get("cniVersion").and_then(Value::as_str);
        let version = Version::parse(version)?;
        let flat = FLAT.map(|(key, _)| value.get_mut(key).map(Value::take));
        let read = |value| serde_json::from_value::<AddResult>(value);
        let mut result = read(value).doing(Code::Decode, || "result".into())?;
        for given in flat.into_iter().flatten().filter(|_| version.is_flat()) {
            let flat =
                Option::<Flat>::deserialize(given).doing(Code::Decode, || "result".into())?;
            let Some(flat) = flat else { continue };
            result.ips.push(IpConfig {
                interface: None,
                address: flat.ip,
                gateway: flat.gateway,
            });
            result.routes.extend(flat.routes);
        }
        Ok(result)
    }

    fn to_flat_json(&self, version: Version) -> Value {
        let mut out = json!({ "cniVersion": version.as_str(), "dns": self.dns });
        for (key, is_ipv4) in FLAT {
            let of_family = |net: &IpNet| net.addr().is_ipv4() == is_ipv4;
            let Some(ip) = self.ips.iter().find(|ip| of_family(&ip.address)) else {
                continue;
            };
            let routes = self.routes.iter().filter(|route| of_family(&route.dst));
            out[key] = json!(Flat {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes.cloned().collect(),
            });
        }
        out
    }

    /// Writes the result as `version` has it.
    pub fn to_json(&self, version: Version) -> Value {
        if version.is_flat() {
            return self.to_flat_json(version);
        }
        let mut ips = json!(self.ips);
        if version.names_families() {
            for (shown, ip) in ips.as_array_mut().into_iter().flatten().zip(&self.ips) {
                shown["version"] = json!(if ip.address.addr().is_ipv4() {
                    "4"
                } else {
                    "6"
                });
            }
        }
        let mut out = json!({ "cniVersion": version.as_str() });
        for (key, list, empty) in [
            (
                "interfaces",
                json!(self.interfaces),
                self.interfaces.is_empty(),
            ),
            ("ips", ips, self.ips.is_empty()),
            ("routes", json!(self.routes), self.routes.is_empty()),
            // Before 1.0 the key was always there.
            (
                "dns",
                json!(self.dns),
                self.dns.is_empty() && !version.names_families(),
            ),
        ] {
            if !empty {
                out[key] = list;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                ..Interface::default()
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.0.0.2/24".parse().unwrap(),
                    gateway: ipnet::parse_ip("10.0.0.1"),
                },
                IpConfig {
                    interface: None,
                    address: "fd00::2/64".parse().unwrap(),
                    gateway: None,
                },
            ],
            routes: vec![],
            dns: Dns::default(),
        }
    }

    #[test]
    fn every_version_reads_back() {
        for version in Version::ALL {
            let mut expected = sample();
            if version.is_flat() {
                expected.interfaces.clear();
                expected.ips[0].interface = None;
            }
            let value = sample().to_json(version);
            assert_eq!(value["cniVersion"], version.as_str());
            assert_eq!(AddResult::from_json(value).unwrap(), expected);
        }
    }

    #[test]
    fn the_oldest_form_has_an_address_and_the_routes_of_each_family() {
        let mut result = sample();
        result.ips.push(IpConfig {
            address: "10.0.0.3/24".parse().unwrap(),
            ..result.ips[0].clone()
        });
        for dst in ["::/0", "0.0.0.0/0"] {
            result.routes.push(Route::to(dst.parse().unwrap()));
        }
        let expected = json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]},
            "dns": {},
        });
        assert_eq!(result.to_json(Version::V0_2_0), expected);
        let bad = json!({"cniVersion": "0.2.0", "ip4": {"ip": "x"}});
        assert!(AddResult::from_json(bad).unwrap_err().is(Code::Decode));
        let null = json!({"ip4": null});
        assert_eq!(AddResult::from_json(null).unwrap(), AddResult::default());
    }

    #[test]
    fn families_are_named_before_1_0_only() {
        let old = sample().to_json(Version::V0_4_0);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["dns"], json!({}));
        let new = sample().to_json(Version::V1_0_0);
        assert_eq!(new["ips"][0].get("version"), None);
        assert_eq!(new.get("dns"), None);
        assert_eq!(new.get("routes"), None);
    }

    #[test]
    fn null_lists_are_empty() {
        let value =
            json!({"cniVersion": "1.0.0", "ips": null, "routes": null, "dns": {"search": null}});
        assert_eq!(AddResult::from_json(value).unwrap(), AddResult::default());
    }
}
