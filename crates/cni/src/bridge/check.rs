//! CHECK: what ADD made is still there.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;

use super::{KIND, PORT_KIND, config::Config};
use crate::{
    error::{Code, Doing, Error},
    ipam::Ipam,
    netlink::{Socket, link::Link},
    netns::Netns,
    request::Request,
    result::{AddResult, Interface},
};

/// Checks addresses, the bridge, both ends of the pair, and the container's routes against the
/// result of ADD.
pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let attachment = request.attachment()?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    Ipam::find(request)?.check(request)?;
    let result = request.required_prev_result()?;

    let sandbox = request.netns.to_string_lossy();
    let is_container =
        |found: &&Interface| found.name == attachment.interface && found.sandbox == sandbox;
    let expected = result.interfaces.iter().find(is_container).ok_or_else(|| {
        Error::internal(format!(
            "prevResult has no {} in {sandbox}",
            attachment.interface
        ))
    })?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let mut inside = netns.socket()?;
    let bridge = check_bridge(&mut host, &config, &result)?;
    let end = find(&mut inside, &expected.name, PORT_KIND)?;
    same_mac(expected, &end)?;
    check_host_end(&mut host, &config, &result, &bridge, &end)?;
    if !config.leave_down {
        check_addresses(&mut inside, &end, &result)?;
        check_routes(&mut inside, &result)?;
    }
    Ok(())
}

fn find(socket: &mut Socket, name: &str, kind: &str) -> Result<Link, Error> {
    let link = socket
        .link(name)
        .doing(Code::Internal, || format!("find {name}"))?
        .ok_or_else(|| Error::internal(format!("link {name} is not there")))?;
    if link.kind != kind {
        return Err(Error::internal(format!(
            "link {name} is not of kind {kind}"
        )));
    }
    Ok(link)
}

fn same_mac(expected: &Interface, found: &Link) -> Result<(), Error> {
    if expected.mac.is_empty() || found.mac.to_string().eq_ignore_ascii_case(&expected.mac) {
        return Ok(());
    }
    let Interface { name, mac, .. } = expected;
    Err(Error::internal(format!(
        "link {name} has hardware address {}, not {mac}",
        found.mac
    )))
}

fn check_bridge(host: &mut Socket, config: &Config, result: &AddResult) -> Result<Link, Error> {
    let bridge = find(host, &config.bridge, KIND)?;
    let expected = result
        .interfaces
        .iter()
        .find(|found| found.name == config.bridge && found.sandbox.is_empty())
        .ok_or_else(|| Error::internal(format!("prevResult has no bridge {}", config.bridge)))?;
    same_mac(expected, &bridge)?;
    if (bridge.promiscuity != 0) != config.promiscuous {
        let msg = format!(
            "promiscMode of bridge {} is not as configured",
            config.bridge
        );
        return Err(Error::internal(msg));
    }
    Ok(bridge)
}

/// Some interface of the result must be the other end of the container's link and a port of the
/// bridge.
fn check_host_end(
    host: &mut Socket,
    config: &Config,
    result: &AddResult,
    bridge: &Link,
    end: &Link,
) -> Result<(), Error> {
    for expected in &result.interfaces {
        if expected.name == config.bridge || !expected.sandbox.is_empty() {
            continue;
        }
        let Some(link) = host
            .link(&expected.name)
            .doing(Code::Internal, || format!("find {}", expected.name))?
        else {
            continue;
        };
        if link.peer == Some(end.index)
            && end.peer == Some(link.index)
            && link.master == Some(bridge.index)
        {
            return same_mac(expected, &link);
        }
    }
    Err(Error::internal(format!(
        "no port of bridge {} leads to {}",
        config.bridge, end.name
    )))
}

fn check_addresses(inside: &mut Socket, end: &Link, result: &AddResult) -> Result<(), Error> {
    let found = inside
        .addresses(end.index, AddressFamily::Unspec)
        .doing(Code::Internal, || format!("addresses of {}", end.name))?;
    for ip in &result.ips {
        if !found.iter().any(|address| address.net == ip.address) {
            return Err(Error::internal(format!(
                "{} has not address {}",
                end.name, ip.address
            )));
        }
    }
    Ok(())
}

fn check_routes(inside: &mut Socket, result: &AddResult) -> Result<(), Error> {
    for (of, is_family) in [
        (AddressFamily::Inet, IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
        (AddressFamily::Inet6, IpAddr::is_ipv6),
    ] {
        let expected: Vec<_> = result
            .routes
            .iter()
            .filter(|route| is_family(&route.dst.addr()))
            .collect();
        if expected.is_empty() {
            continue;
        }
        let found = inside
            .routes(of)
            .doing(Code::Internal, || "routes of the container".into())?;
        for route in expected {
            let matches = found.iter().any(|other| {
                other.dst == route.dst.network()
                    && route.gw.is_none_or(|gw| other.gateway == Some(gw))
            });
            if !matches {
                let msg = format!("the container has no route to {}", route.dst);
                return Err(Error::internal(msg));
            }
        }
    }
    Ok(())
}
