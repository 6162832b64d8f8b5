//! CHECK: what ADD made is still there.

use super::{KIND, config::Config, spoofing};
use crate::{
    error::{Code, Doing, Error},
    ipam::Ipam,
    netlink::{Socket, link::Link},
    netns::Netns,
    pair,
    request::Request,
    result::AddResult,
    verify::{self, find, same_mac},
};

/// Checks addresses, the bridge, both ends of the pair, and the container's routes against the
/// result of ADD.
pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    Ipam::find(request)?.check(request)?;
    let result = request.required_prev_result()?;

    let expected = verify::container(request, &result)?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let mut inside = netns.socket()?;
    let bridge = check_bridge(&mut host, &config, &result)?;
    let end = find(&mut inside, &expected.name, pair::KIND)?;
    same_mac(expected, &end)?;
    check_host_end(&mut host, &config, &result, &bridge, &end)?;
    if !config.leave_down {
        verify::addresses(&mut inside, &end, &result)?;
        verify::routes(&mut inside, &result)?;
    }
    Ok(())
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
            if config.check_macs && !spoofing::is_checked(&link.name, end.mac)? {
                let msg = format!("what comes from {} is not checked", link.name);
                return Err(Error::internal(msg));
            }
            return same_mac(expected, &link);
        }
    }
    Err(Error::internal(format!(
        "no port of bridge {} leads to {}",
        config.bridge, end.name
    )))
}
