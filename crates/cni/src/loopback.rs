//! loopback: raises `lo` in the container.

use netlink_packet_route::AddressFamily;
use rustix::io;

use crate::{
    error::{Code, Doing, Error},
    netlink::{Socket, link::Link},
    netns::Netns,
    request::Request,
    result::{AddResult, Interface, IpConfig},
};

const NAME: &str = "lo";

/// Raises `lo`. The result is that of the plugin before, if there was one.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let previous = request.prev_result()?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    let mut socket = netns.socket()?;
    let link = find(&mut socket)?;
    socket
        .raise(link.index, false)
        .doing(Code::Internal, || format!("raise {NAME}"))?;
    if let Some(previous) = previous {
        return Ok(previous);
    }
    let found = socket.addresses(link.index, AddressFamily::Unspec);
    let mut ips = Vec::new();
    for address in found.doing(Code::Internal, || format!("addresses of {NAME}"))? {
        let addr = address.net.addr();
        if !addr.is_loopback() {
            return Err(Error::internal(format!(
                "{NAME} has address {addr}, which is no loopback"
            )));
        }
        ips.push(IpConfig {
            interface: Some(0),
            address: address.net,
            gateway: None,
        });
    }
    Ok(AddResult {
        interfaces: vec![Interface {
            name: NAME.into(),
            mac: link.mac.to_string(),
            sandbox: request.netns.display().to_string(),
            ..Interface::default()
        }],
        ips,
        ..AddResult::default()
    })
}

/// Checks that `lo` is up.
pub fn check(request: &Request) -> Result<(), Error> {
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    if find(&mut netns.socket()?)?.up {
        Ok(())
    } else {
        Err(Error::internal(format!("{NAME} is down")))
    }
}

/// Lowers `lo`; a namespace that is gone is fine.
pub fn del(request: &Request) -> Result<(), Error> {
    if request.netns.as_os_str().is_empty() {
        return Ok(());
    }
    let Some(netns) = Netns::find(&request.netns, request.own_netns_allowed)? else {
        return Ok(());
    };
    let mut socket = netns.socket()?;
    let link = find(&mut socket)?;
    socket
        .lower(link.index)
        .doing(Code::Internal, || format!("lower {NAME}"))
}

/// There is nothing that could be left: a namespace takes its `lo` with it.
pub fn gc(_: &Request) -> Result<(), Error> {
    Ok(())
}

/// Every kernel has `lo`.
pub fn status(_: &Request) -> Result<(), Error> {
    Ok(())
}

fn find(socket: &mut Socket) -> Result<Link, Error> {
    let found: io::Result<_> = socket.link(NAME);
    found
        .doing(Code::Internal, || format!("find {NAME}"))?
        .ok_or_else(|| Error::internal(format!("the network namespace has no {NAME}")))
}
