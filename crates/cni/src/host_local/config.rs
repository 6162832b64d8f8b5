//! The configuration of host-local, checked.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::range::{RangeSet, RawRange};
use crate::{
    args::Args,
    error::{Code, Doing, Error},
    ipnet::parse_ip,
    result::{Route, null_is_empty},
};

const DATA_DIR: &str = "/var/lib/cni/networks";

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConfig {
    ipam: Option<RawIpam>,
    #[serde(rename = "runtimeConfig")]
    runtime: Option<RawRuntime>,
    args: Option<RawArgs>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawIpam {
    /// The old form: one range, written directly.
    #[serde(flatten)]
    range: RawRange,
    #[serde(deserialize_with = "null_is_empty")]
    ranges: Vec<Vec<RawRange>>,
    #[serde(deserialize_with = "null_is_empty")]
    routes: Vec<Route>,
    data_dir: String,
    resolv_conf: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRuntime {
    #[serde(rename = "ipRanges", deserialize_with = "null_is_empty")]
    ranges: Vec<Vec<RawRange>>,
    #[serde(deserialize_with = "null_is_empty")]
    ips: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawArgs {
    cni: Option<RawCniArgs>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawCniArgs {
    #[serde(deserialize_with = "null_is_empty")]
    ips: Vec<String>,
}

/// What an address is taken from.
#[derive(Debug)]
pub struct Config {
    /// Never empty; a container gets one address of each, in this order.
    pub sets: Vec<RangeSet>,
    /// Addresses that were asked for, each once.
    pub requested: Vec<IpAddr>,
    pub routes: Vec<Route>,
    /// The folder of this network's addresses.
    pub folder: PathBuf,
    pub resolv_conf: Option<PathBuf>,
}

impl Config {
    /// `network` is a checked network name, which cannot leave the data folder.
    pub fn parse(config: &Value, network: &str, args: &Args) -> Result<Config, Error> {
        let raw = RawConfig::deserialize(config).doing(Code::Decode, || "host-local".into())?;
        let ipam = raw
            .ipam
            .ok_or_else(|| Error::config("no \"ipam\" in the configuration"))?;
        let runtime = raw.runtime.unwrap_or_default();

        let mut requested: Vec<IpAddr> = args.ips.clone();
        let in_config = raw.args.and_then(|args| args.cni).unwrap_or_default().ips;
        for text in in_config.iter().chain(&runtime.ips) {
            // A prefix length may follow; the range knows it better.
            let addr = text.split_once('/').map_or(text.as_str(), |(addr, _)| addr);
            let addr = parse_ip(addr)
                .ok_or_else(|| Error::config(format!("requested address {text:?} is none")))?;
            if !requested.contains(&addr) {
                requested.push(addr);
            }
        }

        let mut raw_sets = runtime.ranges;
        if ipam.range.subnet.is_some() {
            raw_sets.push(vec![ipam.range]);
        }
        raw_sets.extend(ipam.ranges);
        Ok(Config {
            sets: check_sets(&raw_sets)?,
            requested,
            routes: ipam.routes,
            folder: folder(&ipam.data_dir, network),
            resolv_conf: (!ipam.resolv_conf.is_empty()).then(|| ipam.resolv_conf.into()),
        })
    }

    /// The folder of this network's addresses, whatever else is right or wrong in the configuration.
    pub fn folder(config: &Value, network: &str) -> PathBuf {
        let named = config.get("ipam").and_then(|ipam| ipam.get("dataDir"));
        folder(named.and_then(Value::as_str).unwrap_or_default(), network)
    }
}

fn folder(data_dir: &str, network: &str) -> PathBuf {
    let all = if data_dir.is_empty() {
        DATA_DIR
    } else {
        data_dir
    };
    PathBuf::from(all).join(network)
}

fn check_sets(raw: &[Vec<RawRange>]) -> Result<Vec<RangeSet>, Error> {
    if raw.is_empty() {
        return Err(Error::config("no ranges to allocate from"));
    }
    let mut sets: Vec<RangeSet> = Vec::with_capacity(raw.len());
    for (index, ranges) in raw.iter().enumerate() {
        let set = RangeSet::new(ranges)
            .map_err(|error| Error::config(format!("range set {index}: {error}")))?;
        if let Some(other) = sets.iter().position(|other| other.overlaps(&set)) {
            return Err(Error::config(format!(
                "range set {other} overlaps with {index}"
            )));
        }
        sets.push(set);
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: Value, args: &str) -> Result<Config, Error> {
        Config::parse(&config, "net", &Args::parse(args)?)
    }

    #[test]
    fn ranges_come_from_runtime_then_the_old_form_then_the_list() {
        let config = parse(
            json!({
                "ipam": {
                    "type": "host-local",
                    "subnet": "10.1.0.0/24",
                    "rangeStart": "10.1.0.9",
                    "ranges": [[{"subnet": "fd00::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
                "runtimeConfig": {"ipRanges": [[{"subnet": "10.2.0.0/24"}]]},
            }),
            "",
        )
        .unwrap();
        let sets: Vec<_> = config.sets.iter().map(ToString::to_string).collect();
        assert_eq!(sets[..2], ["10.2.0.1-10.2.0.254", "10.1.0.9-10.1.0.254"]);
        assert_eq!(sets[2], "fd00::1-fd00::ffff:ffff:ffff:ffff");
        assert_eq!(config.folder.to_str().unwrap(), "/var/lib/cni/networks/net");
    }

    #[test]
    fn addresses_are_asked_for_in_three_places() {
        let config = parse(
            json!({
                "ipam": {"subnet": "10.1.0.0/24"},
                "args": {"cni": {"ips": ["10.1.0.3", "10.1.0.4/24"]}},
                "runtimeConfig": {"ips": ["10.1.0.5", "10.1.0.3"]},
            }),
            "IP=10.1.0.2",
        )
        .unwrap();
        let asked: Vec<_> = config.requested.iter().map(ToString::to_string).collect();
        assert_eq!(asked, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"]);
    }

    #[test]
    fn a_bad_configuration_is_refused() {
        for (config, says) in [
            (json!({}), "no \"ipam\""),
            (json!({"ipam": {}}), "no ranges"),
            (json!({"ipam": {"subnet": "x"}}), "x"),
            (json!({"ipam": {"ranges": [[]]}}), "range set 0: empty"),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/8"}]]}}),
                "range set 0 overlaps with 1",
            ),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24"}, "runtimeConfig": {"ips": ["?"]}}),
                "\"?\"",
            ),
        ] {
            let error = parse(config, "").unwrap_err();
            assert!(error.msg.contains(says), "{error}");
        }
    }
}
