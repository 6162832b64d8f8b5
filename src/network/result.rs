//! A plugin's result: read in every format there has been, handed on in the network's own.
//!
//! Formats: up to 0.2.0 one address per family ("ip4", "ip6"); 0.3.0 to 0.4.0 a list of addresses that name
//! their family ("version"); from 1.0.0 on a list without it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::conf::Version;

/// What a pod got from its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The interface's name in the pod.
    pub interface: String,
    /// The interface's hardware address, if a plugin told it.
    pub mac: Option<String>,
    /// The pod's addresses as the last plugin gave them, the primary one first. Never empty.
    pub ips: Vec<IpAddr>,
}

/// Why a result says nothing that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the result has no IP address")]
    NoAddress,
    #[error("the result has {0}, which is no IP address")]
    NotAnAddress(String),
    #[error("the result's {0:?} is no object: {1}")]
    NoFamily(&'static str, String),
    #[error("the result is of CNI version {0:?}, which is no version")]
    Version(String),
}

/// Reads the last result of a chain.
pub(super) fn attachment(
    result: &Map<String, Value>,
    network: &str,
    interface: &str,
) -> Result<Attachment, Unusable> {
    let interfaces = array(result, "interfaces");
    let inside = |index: u64| {
        let at = usize::try_from(index).ok()?;
        Some(!str_of(interfaces.get(at)?, "sandbox").is_empty())
    };
    let mut ips = Vec::new();
    let mut others = Vec::new();
    for ip in array(result, "ips") {
        let address = parse_address(ip.get("address"))?;
        // An address of an interface that stays on the host is not the pod's.
        match ip.get("interface").and_then(Value::as_u64).and_then(inside) {
            Some(false) => others.push(address),
            _ => ips.push(address),
        }
    }
    for family in ["ip4", "ip6"] {
        if let Some(address) = result.get(family).and_then(|family| family.get("ip")) {
            ips.push(parse_address(Some(address))?);
        }
    }
    if ips.is_empty() {
        // Plugins that leave "sandbox" out everywhere.
        ips = others;
    }
    if ips.is_empty() {
        return Err(Unusable::NoAddress);
    }
    let ours = |i: &&Value| str_of(i, "name") == interface && !str_of(i, "sandbox").is_empty();
    let mac = interfaces.iter().find(ours).map(|i| str_of(i, "mac"));
    Ok(Attachment {
        network: network.to_owned(),
        interface: interface.to_owned(),
        mac: mac.filter(|mac| !mac.is_empty()).map(str::to_owned),
        ips,
    })
}

/// Makes of a result one of `version`. A result that is of this version already stays as it is.
pub(super) fn convert(
    mut result: Map<String, Value>,
    version: Version,
) -> Result<Map<String, Value>, Unusable> {
    let said = match str_field(&result, "cniVersion") {
        "" => None,
        text => Some(
            Version::parse(text).map_err(|_| Unusable::Version(text.chars().take(64).collect()))?,
        ),
    };
    if said == Some(version) {
        return Ok(result);
    }
    // Without a version the format is told by what is there.
    let flat = result.contains_key("ip4") || result.contains_key("ip6");
    if flat && version >= Version::V0_3_0 {
        spread(&mut result)?;
    } else if !flat && version < Version::V0_3_0 {
        flatten(&mut result);
    }
    if let Some(Value::Array(ips)) = result.get_mut("ips") {
        for ip in ips {
            let six = str_of(ip, "address").contains(':');
            let Value::Object(ip) = ip else { continue };
            if version >= Version::V1_0_0 {
                ip.remove("version");
            } else {
                ip.insert("version".into(), json!(if six { "6" } else { "4" }));
            }
        }
    }
    result.insert("cniVersion".into(), json!(version.to_string()));
    Ok(result)
}

/// From one address per family to a list.
fn spread(result: &mut Map<String, Value>) -> Result<(), Unusable> {
    let mut ips = Vec::new();
    let mut routes = Vec::new();
    for family in ["ip4", "ip6"] {
        let mut old = match result.remove(family) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(old)) => old,
            Some(other) => {
                let text: String = other.to_string().chars().take(64).collect();
                return Err(Unusable::NoFamily(family, text));
            }
        };
        let mut ip = Map::new();
        let address = old.remove("ip").unwrap_or_default();
        ip.insert("address".into(), address);
        if let Some(gateway) = old.remove("gateway") {
            ip.insert("gateway".into(), gateway);
        }
        ips.push(Value::Object(ip));
        if let Some(Value::Array(old)) = old.get_mut("routes") {
            routes.append(old);
        }
    }
    result.insert("ips".into(), Value::Array(ips));
    if !routes.is_empty() {
        result.insert("routes".into(), Value::Array(routes));
    }
    Ok(())
}

/// From a list to the first address of each family, which is all that the oldest format can say.
fn flatten(result: &mut Map<String, Value>) {
    let ips = result.remove("ips");
    let routes = result.remove("routes");
    result.remove("interfaces");
    let list = |value: Option<Value>| match value {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let (ips, routes) = (list(ips), list(routes));
    for (family, six) in [("ip4", false), ("ip6", true)] {
        let of = |value: &Value, key| str_of(value, key).contains(':') == six;
        let Some(ip) = ips.iter().find(|ip| of(ip, "address")) else {
            continue;
        };
        let mut old = Map::new();
        old.insert("ip".into(), ip["address"].clone());
        if let Some(gateway) = ip.get("gateway") {
            old.insert("gateway".into(), gateway.clone());
        }
        let routes: Vec<_> = routes
            .iter()
            .filter(|route| of(route, "dst"))
            .cloned()
            .collect();
        if !routes.is_empty() {
            old.insert("routes".into(), Value::Array(routes));
        }
        result.insert(family.into(), Value::Object(old));
    }
}

fn parse_address(value: Option<&Value>) -> Result<IpAddr, Unusable> {
    let text = value.and_then(Value::as_str).unwrap_or_default();
    let bare = text.split_once('/').map_or(text, |(address, _)| address);
    let excerpt = || format!("{:?}", text.chars().take(64).collect::<String>());
    bare.parse().map_err(|_| Unusable::NotAnAddress(excerpt()))
}

fn array<'a>(object: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    object
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn str_field<'a>(object: &'a Map<String, Value>, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn str_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            other => panic!("{other}"),
        }
    }

    fn ips(value: Value) -> Result<Vec<String>, Unusable> {
        let attachment = attachment(&object(value), "n", "eth0")?;
        Ok(attachment.ips.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_of_every_format_are_read_in_order() {
        let old = json!({"ip6": {"ip": "fd00::2/64"}, "ip4": {"ip": "10.0.0.2/24"}});
        assert_eq!(ips(old).unwrap(), ["10.0.0.2", "fd00::2"]);
        let listed =
            json!({"ips": [{"version": "6", "address": "fd00::2/64"}, {"address": "10.0.0.2/24"}]});
        assert_eq!(ips(listed).unwrap(), ["fd00::2", "10.0.0.2"]);
    }

    #[test]
    fn an_address_of_the_host_is_not_the_pods() {
        let interfaces =
            json!([{"name": "br0"}, {"name": "eth0", "sandbox": "/n", "mac": "02:00:00:00:00:01"}]);
        let result = json!({"interfaces": interfaces, "ips": [
            {"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1}]});
        let attachment = attachment(&object(result), "n", "eth0").unwrap();
        assert_eq!(attachment.ips, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(attachment.mac.as_deref(), Some("02:00:00:00:00:01"));
        let careless = json!({"interfaces": [{"name": "x"}], "ips": [{"address": "10.0.0.1/24", "interface": 0}]});
        assert_eq!(ips(careless).unwrap(), ["10.0.0.1"]);
    }

    #[test]
    fn a_result_without_an_address_is_unusable() {
        for none in [
            json!({}),
            json!({"ips": []}),
            json!({"ips": 3}),
            json!({"ip4": null}),
        ] {
            assert_eq!(ips(none.clone()), Err(Unusable::NoAddress), "{none}");
        }
        for bad in [
            json!({"ips": [{}]}),
            json!({"ips": ["x"]}),
            json!({"ips": [{"address": "10.0.0.256/24"}]}),
        ] {
            assert!(
                matches!(ips(bad.clone()), Err(Unusable::NotAnAddress(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_same_version_passes_verbatim() {
        let result = object(
            json!({"cniVersion": "1.0.0", "ips": [{"version": "4", "odd": 1}], "x": [null]}),
        );
        assert_eq!(convert(result.clone(), Version::V1_0_0).unwrap(), result);
    }

    #[test]
    fn results_convert_between_all_formats() {
        let new = json!({"cniVersion": "1.0.0", "ips": [
            {"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}],
            "routes": [{"dst": "0.0.0.0/0"}]});
        let middle = convert(object(new.clone()), Version::V0_4_0).unwrap();
        assert_eq!(middle["cniVersion"], "0.4.0");
        assert_eq!(middle["ips"][0]["version"], "4");
        assert_eq!(middle["ips"][1]["version"], "6");
        assert_eq!(
            Value::Object(convert(middle.clone(), Version::V1_0_0).unwrap()),
            new
        );
        let old = convert(middle, Version::parse("0.2.0").unwrap()).unwrap();
        let expected = json!({"cniVersion": "0.2.0",
            "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::2/64"}});
        assert_eq!(Value::Object(old.clone()), expected);
        assert_eq!(Value::Object(convert(old, Version::V1_0_0).unwrap()), new);
        assert!(convert(object(json!({"cniVersion": "x"})), Version::V1_0_0).is_err());
    }

    #[test]
    fn a_family_that_is_no_object_is_refused_not_taken_apart() {
        for bad in [
            json!(3),
            json!("10.1.1.2/24"),
            json!([{"ip": "10.1.1.2/24"}]),
        ] {
            let said = object(json!({"cniVersion": "0.2.0", "ip4": bad}));
            let converted = convert(said, Version::V1_0_0);
            assert_eq!(converted, Err(Unusable::NoFamily("ip4", bad.to_string())));
        }
        let null = object(json!({"ip4": null, "ip6": {"ip": "fd00::2/64"}}));
        let converted = convert(null, Version::V1_0_0).unwrap();
        assert_eq!(converted["ips"], json!([{"address": "fd00::2/64"}]));
    }
}
