//! bandwidth: limits what goes to a container and what comes from it.
//!
//! It comes after a plugin that made a pair of links. What goes in is limited where it leaves by the host's
//! end. What comes out is sent through a link of the kind `ifb`, by which it leaves limited, too.

use std::io::Write;

use rustix::io::Errno;
use serde::Deserialize;
use sha2::{Digest, Sha512};

use crate::{
    error::{Code, Doing, Error},
    label,
    netlink::{Batch, Socket, link::Link, traffic::Bucket},
    netns::Netns,
    pair::{self, interface},
    request::Request,
    result::{AddResult, null_is_empty},
    verify,
};

const IFB: &str = "ifb";
/// The original's names of these links; a DEL by either finds what the other made.
const PREFIX: &str = "bwp";
const MAX_NAME: usize = 15;

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    #[serde(flatten)]
    fixed: RawLimits,
    runtime_config: RawRuntime,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRuntime {
    bandwidth: Option<RawLimits>,
}

/// In bits per second and bits.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawLimits {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
    #[serde(deserialize_with = "null_is_empty")]
    shaped_subnets: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    unshaped_subnets: Vec<String>,
}

impl RawLimits {
    /// Errors: `UnsupportedField`, as more would be limited than is meant.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        for (key, subnets) in [
            ("shapedSubnets", &self.shaped_subnets),
            ("unshapedSubnets", &self.unshaped_subnets),
        ] {
            if !subnets.is_empty() {
                let msg = format!("bandwidth: {key} is not supported");
                return Err(Error::new(Code::UnsupportedField, msg));
            }
        }
        Ok(())
    }

    fn is_given(&self) -> bool {
        [
            self.ingress_rate,
            self.ingress_burst,
            self.egress_rate,
            self.egress_burst,
        ]
        .iter()
        .any(Option::is_some)
    }
}

/// What is limited, seen from the container.
#[derive(Debug)]
struct Config {
    ingress: Option<Bucket>,
    egress: Option<Bucket>,
}

impl Config {
    /// Limits in the configuration go before those of the runtime.
    fn parse(request: &Request) -> Result<Config, Error> {
        let raw: RawConfig = request.config_of("bandwidth")?;
        for limits in [Some(&raw.fixed), raw.runtime_config.bandwidth.as_ref()] {
            limits.map_or(Ok(()), RawLimits::refuse_unsupported)?;
        }
        let limits = match raw.runtime_config.bandwidth {
            Some(limits) if !raw.fixed.is_given() => limits,
            _ => raw.fixed,
        };
        Ok(Config {
            ingress: bucket("ingress", limits.ingress_rate, limits.ingress_burst)?,
            egress: bucket("egress", limits.egress_rate, limits.egress_burst)?,
        })
    }
}

fn bucket(way: &str, rate: Option<u64>, burst: Option<u64>) -> Result<Option<Bucket>, Error> {
    let (rate, burst) = (rate.unwrap_or(0), burst.unwrap_or(0));
    match (rate / 8, u32::try_from(burst / 8)) {
        _ if rate == 0 && burst == 0 => Ok(None),
        _ if burst == 0 => Err(Error::config(format!(
            "{way}Rate is set, {way}Burst is not"
        ))),
        _ if rate == 0 => Err(Error::config(format!(
            "{way}Burst is set, {way}Rate is not"
        ))),
        (0, _) => Err(Error::config(format!(
            "{way}Rate {rate} is less than a byte per second"
        ))),
        (_, Err(_) | Ok(u32::MAX)) => Err(Error::config(format!(
            "{way}Burst {burst} is more than 4 GiB"
        ))),
        (rate, Ok(burst)) => Ok(Some(Bucket::new(rate, burst))),
    }
}

/// Name of the link through which what the container sends goes.
fn ifb_name(request: &Request) -> Result<String, Error> {
    let container = &request.attachment()?.container;
    let digest = Sha512::new()
        .chain_update(&request.network)
        .chain_update(container)
        .finalize();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{PREFIX}{}", &hex[..MAX_NAME - PREFIX.len()]))
}

/// The host's end of the container's pair, which the result must name.
fn host_end(request: &Request, host: &mut Socket, result: &AddResult) -> Result<Link, Error> {
    let name = &request.attachment()?.interface;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    let end = verify::find(&mut netns.socket()?, name, pair::KIND)?;
    let peer = end.peer.map(|index| host.link_at(index)).transpose();
    let peer = peer.doing(Code::Internal, || format!("find the other end of {name}"))?;
    peer.flatten()
        .filter(|link| {
            let is_it = |other: &crate::result::Interface| {
                other.sandbox.is_empty() && other.name == link.name
            };
            result.interfaces.iter().any(is_it)
        })
        .ok_or_else(|| {
            Error::internal(format!(
                "prevResult names no link of the host that leads to {name}"
            ))
        })
}

/// Sets the limits; the result is that of the plugin before and the link that was made.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let mut result = request.required_prev_result()?;
    if config.ingress.is_none() && config.egress.is_none() {
        return Ok(result);
    }
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let end = host_end(request, &mut host, &result)?;
    let ifb = ifb_name(request)?;
    match limit(request, &mut host, &config, &end, &ifb) {
        Ok(Some(link)) => {
            result
                .interfaces
                .push(interface(&link.name, link.mac, String::new()));
        }
        Ok(None) => {}
        Err(error) => {
            let undone = host
                .unlimit(end.index)
                .and_then(|()| host.delete_link(&ifb));
            if let Err(errno) = undone {
                // The first error is the one to report; stderr may be closed.
                let _ = writeln!(std::io::stderr(), "undo ADD: {errno}");
            }
            return Err(error);
        }
    }
    Ok(result)
}

/// What the kernel does not know is named, anything else is said as it is.
fn refused(doing: String, what: &str, unknown: Errno) -> impl FnOnce(Errno) -> Error {
    let what = what.to_owned();
    move |errno| {
        if errno == unknown {
            Error::new(
                Code::NotAvailable,
                format!("{doing}: the kernel has no {what}"),
            )
        } else {
            Error::internal(format!("{doing}: {errno}"))
        }
    }
}

fn limit(
    request: &Request,
    host: &mut Socket,
    config: &Config,
    end: &Link,
    ifb: &str,
) -> Result<Option<Link>, Error> {
    let tbf = "queueing discipline tbf (sch_tbf)";
    let limiting = |name: &str| format!("limit {name}");
    if let Some(bucket) = config.ingress {
        host.limit(end.index, bucket)
            .map_err(refused(limiting(&end.name), tbf, Errno::NOENT))?;
    }
    let Some(bucket) = config.egress else {
        return Ok(None);
    };
    let making = || format!("make {ifb}");
    host.add_ifb(ifb, end.mtu)
        .map_err(refused(making(), "links of kind ifb", Errno::OPNOTSUPP))?;
    let link = host.link(ifb).doing(Code::Internal, making)?;
    let link = link.ok_or_else(|| Error::internal(format!("{ifb} is gone again")))?;
    let mut batch = Batch::default();
    batch.label_and_raise(ifb, &pair::alias(&request.network, request.attachment()?));
    host.send(batch).doing(Code::Internal, making)?;
    host.limit(link.index, bucket)
        .map_err(refused(limiting(ifb), tbf, Errno::NOENT))?;
    let ingress = "queueing discipline ingress (sch_ingress)";
    host.filter_incoming(end.index)
        .map_err(refused(limiting(&end.name), ingress, Errno::NOENT))?;
    let redirect = "filter u32 (cls_u32) or action mirred (act_mirred)";
    host.redirect_incoming(end.index, link.index)
        .map_err(refused(
            format!("lead {} to {ifb}", end.name),
            redirect,
            Errno::NOENT,
        ))?;
    Ok(Some(link))
}

/// Removes the link. The limits themselves go with the links that they are for. Nothing of the configuration is
/// needed for it: one that ADD has refused holds up no DEL.
pub fn del(request: &Request) -> Result<(), Error> {
    let ifb = ifb_name(request)?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let found = host
        .link(&ifb)
        .doing(Code::Internal, || format!("find {ifb}"))?;
    if found.is_some_and(|link| link.kind == IFB) {
        host.delete_link(&ifb)
            .doing(Code::Internal, || format!("remove {ifb}"))?;
    }
    Ok(())
}

/// Checks that the limits are as configured.
pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let result = request.required_prev_result()?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let end = host_end(request, &mut host, &result)?;
    let mut limits = Vec::new();
    limits.extend(config.ingress.map(|bucket| (end, bucket)));
    if let Some(bucket) = config.egress {
        limits.push((verify::find(&mut host, &ifb_name(request)?, IFB)?, bucket));
    }
    for (link, bucket) in limits {
        let found = host
            .limit_of(link.index)
            .doing(Code::Internal, || format!("limit of {}", link.name))?;
        if found != Some(bucket) {
            return Err(Error::internal(format!(
                "the limit of {} is not as configured",
                link.name
            )));
        }
    }
    Ok(())
}

/// Removes the links of attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    Config::parse(request)?;
    let valid = request.valid_labels(pair::MAX_ALIAS)?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let links = host.links().doing(Code::Internal, || "list links".into())?;
    for link in links {
        let is_ours = link.kind == IFB && label::is_of(&link.alias, &request.network);
        if is_ours && !valid.contains(&link.alias) {
            host.delete_link(&link.name)
                .doing(Code::Internal, || format!("remove {}", link.name))?;
        }
    }
    Ok(())
}

/// Whether the kernel can limit shows only when it is asked to.
pub fn status(request: &Request) -> Result<(), Error> {
    Config::parse(request).map(drop)
}
