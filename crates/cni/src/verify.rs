//! CHECK: what ADD gave the container is still there.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;

use crate::{
    error::{Code, Doing, Error},
    netlink::{Socket, link::Link},
    request::Request,
    result::{AddResult, Interface},
};

/// The container's interface in the result of ADD.
pub fn container<'a>(request: &Request, result: &'a AddResult) -> Result<&'a Interface, Error> {
    let attachment = request.attachment()?;
    let sandbox = request.netns.to_string_lossy();
    let is_container =
        |found: &&Interface| found.name == attachment.interface && found.sandbox == sandbox;
    result.interfaces.iter().find(is_container).ok_or_else(|| {
        Error::internal(format!(
            "prevResult has no {} in {sandbox}",
            attachment.interface
        ))
    })
}

/// A link that must be there and of this kind.
pub fn find(socket: &mut Socket, name: &str, kind: &str) -> Result<Link, Error> {
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

/// A link must have the hardware address that the result says.
pub fn same_mac(expected: &Interface, found: &Link) -> Result<(), Error> {
    if expected.mac.is_empty() || found.mac.to_string().eq_ignore_ascii_case(&expected.mac) {
        return Ok(());
    }
    let Interface { name, mac, .. } = expected;
    Err(Error::internal(format!(
        "link {name} has hardware address {}, not {mac}",
        found.mac
    )))
}

/// The interface must have all addresses of the result.
pub fn addresses(inside: &mut Socket, end: &Link, result: &AddResult) -> Result<(), Error> {
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

/// All routes of the result must be there.
pub fn routes(inside: &mut Socket, result: &AddResult) -> Result<(), Error> {
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
