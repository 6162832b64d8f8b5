//! static: the addresses that the configuration names. It keeps nothing, so there is nothing to free.

use serde::Deserialize;

use crate::{
    error::Error,
    ipnet::{self, IpNet},
    request::Request,
    result::{AddResult, Dns, IpConfig, Route, null_is_empty},
};

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    ipam: Option<RawIpam>,
    runtime_config: RawIps,
    args: RawArgs,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawIpam {
    #[serde(deserialize_with = "null_is_empty")]
    addresses: Vec<RawAddress>,
    #[serde(deserialize_with = "null_is_empty")]
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawAddress {
    address: String,
    #[serde(with = "ipnet::optional")]
    gateway: Option<std::net::IpAddr>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawIps {
    #[serde(deserialize_with = "null_is_empty")]
    ips: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawArgs {
    cni: Option<RawIps>,
}

struct Config {
    addresses: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Config {
    /// Addresses of the runtime take the place of those in `args`, these of the configuration's own with
    /// those of CNI_ARGS.
    fn parse(request: &Request) -> Result<Config, Error> {
        let raw: RawConfig = request.config_of("static")?;
        let ipam = raw
            .ipam
            .ok_or_else(|| Error::config("no \"ipam\" in the configuration"))?;
        let mut addresses = Vec::new();
        for (index, raw) in ipam.addresses.iter().enumerate() {
            let at = format!("ipam.addresses[{index}].address");
            addresses.push(address(&at, &raw.address, raw.gateway)?);
        }
        for text in &request.args.static_ips {
            addresses.push(address("CNI_ARGS: IP", text, None)?);
        }
        for &gateway in &request.args.gateways {
            for ip in &mut addresses {
                if ip.address.contains(gateway) {
                    ip.gateway = Some(gateway);
                }
            }
        }
        let in_args = raw.args.cni.unwrap_or_default().ips;
        for (key, list) in [
            ("args.cni.ips", in_args),
            ("runtimeConfig.ips", raw.runtime_config.ips),
        ] {
            if !list.is_empty() {
                let read = list.iter().map(|text| address(key, text, None));
                addresses = read.collect::<Result<_, _>>()?;
            }
        }
        Ok(Config {
            addresses,
            routes: ipam.routes,
            dns: ipam.dns,
        })
    }
}

fn address(key: &str, text: &str, gateway: Option<std::net::IpAddr>) -> Result<IpConfig, Error> {
    let address: IpNet = text
        .trim()
        .parse()
        .map_err(|says| Error::config(format!("{key}: {says}")))?;
    Ok(IpConfig {
        interface: None,
        address,
        gateway,
    })
}

pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    Ok(AddResult {
        ips: config.addresses,
        routes: config.routes,
        dns: config.dns,
        ..AddResult::default()
    })
}

pub fn del(_: &Request) -> Result<(), Error> {
    Ok(())
}

/// Checks that the addresses that the result has in common with the configuration have the same gateways.
pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let result = request.required_prev_result()?;
    for wanted in &config.addresses {
        let addr = wanted.address.addr();
        let mut same = result.ips.iter().filter(|ip| ip.address.addr() == addr);
        if wanted.gateway.is_some() && same.any(|ip| ip.gateway != wanted.gateway) {
            return Err(Error::internal(format!(
                "address {addr} has another gateway than configured"
            )));
        }
    }
    Ok(())
}

pub fn gc(_: &Request) -> Result<(), Error> {
    Ok(())
}

pub fn status(request: &Request) -> Result<(), Error> {
    Config::parse(request).map(drop)
}
