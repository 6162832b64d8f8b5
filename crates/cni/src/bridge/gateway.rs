//! The bridge itself, and its side of the network: gateway addresses and forwarding.

use rustix::io;

use super::{KIND, config::Config, vlan};
use crate::{
    container,
    error::{Code, Doing, Error},
    ipnet::{IpNet, next_ip},
    netlink::{
        Socket,
        addr::family,
        link::{Link, Mac},
    },
    result::{AddResult, Route},
    sysctl,
};

/// The bridge, made if need be, up.
pub fn ensure_bridge(socket: &mut Socket, config: &Config) -> Result<Link, Error> {
    let name = &config.bridge;
    let find = |socket: &mut Socket| {
        socket
            .link(name)
            .doing(Code::Internal, || format!("find bridge {name}"))
    };
    let found = match find(socket)? {
        Some(link) => link,
        None => {
            let make = |socket: &mut Socket| -> io::Result<()> {
                socket.add_bridge(name, Mac::random()?, config.mtu)
            };
            make(socket).doing(Code::Internal, || format!("make bridge {name}"))?;
            // The routes of this link are the machine's business, not that of a pod that sends
            // router advertisements.
            sysctl::set_if_there("ipv6", name, "accept_ra", "0");
            find(socket)?.ok_or_else(|| Error::internal(format!("bridge {name} is gone again")))?
        }
    };
    if found.kind != KIND {
        return Err(Error::internal(format!(
            "{name} is there already and is not a bridge"
        )));
    }
    let found = if config.vlans.are_given() {
        vlan::filter(socket, found)?
    } else {
        found
    };
    let promiscuous = config.promiscuous && found.promiscuity == 0;
    if !found.up || promiscuous {
        sysctl::set_if_there("ipv6", name, "accept_ra", "0");
        socket
            .raise(found.index, promiscuous)
            .doing(Code::Internal, || format!("raise bridge {name}"))?;
    }
    Ok(found)
}

/// Completes what address management left open: gateways, the default route, and that every address
/// belongs to the container's interface, whose index in the result is `interface`.
pub fn complete(result: &mut AddResult, config: &Config, interface: usize) {
    for ip in &mut result.ips {
        ip.interface = Some(interface);
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = next_ip(ip.address.network().addr());
        }
        let everything = IpNet::everything(ip.address.addr());
        let is_default = |route: &Route| route.gw.is_some() && route.dst == everything;
        if config.is_default_gateway && !result.routes.iter().any(is_default) {
            result.routes.push(Route {
                gw: ip.gateway,
                ..Route::to(everything)
            });
        }
    }
}

/// Gives the bridge, or its link in the VLAN, the gateway addresses and turns forwarding on.
pub fn serve(
    socket: &mut Socket,
    bridge: &Link,
    config: &Config,
    result: &AddResult,
) -> Result<(), Error> {
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let net = IpNet::new(gateway, ip.address.prefix()).ok_or_else(|| {
            Error::config(format!(
                "gateway {gateway} is of another family than {}",
                ip.address
            ))
        })?;
        ensure_address(socket, bridge, net, config.force_address)?;
    }
    let gateways = result.ips.iter().filter_map(|ip| ip.gateway);
    container::forward(gateways)
}

fn ensure_address(
    socket: &mut Socket,
    bridge: &Link,
    net: IpNet,
    force: bool,
) -> Result<(), Error> {
    let name = &bridge.name;
    let present = socket
        .addresses(bridge.index, family(net.addr()))
        .doing(Code::Internal, || format!("addresses of bridge {name}"))?;
    if present.iter().any(|address| address.net == net) {
        return Ok(());
    }
    for address in present {
        // IPv6 knows several addresses on a link, as long as their subnets are apart.
        let in_the_way = net.addr().is_ipv4()
            || address.net.contains(net.addr())
            || net.contains(address.net.addr());
        if in_the_way && !force {
            let msg = format!("bridge {name} has address {}, not {net}", address.net);
            return Err(Error::internal(msg));
        }
        if in_the_way {
            socket
                .delete_address(bridge.index, address.net)
                .doing(Code::Internal, || {
                    format!("take {} from bridge {name}", address.net)
                })?;
        }
    }
    if net.addr().is_ipv6() {
        sysctl::set_if_there("ipv6", name, "disable_ipv6", "0");
    }
    let add = |socket: &mut Socket| -> io::Result<()> {
        socket.add_address(bridge.index, net)?;
        // Fixes the hardware address: a bridge made by others takes the lowest of its ports', and
        // every neighbour would have to learn the gateway anew.
        socket.set_mac(bridge.index, bridge.mac)
    };
    add(socket).doing(Code::Internal, || format!("give {net} to bridge {name}"))
}
