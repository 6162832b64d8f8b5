//! ptp: joins a container to the machine by a pair of links and routes to it: no bridge.
//!
//! The host's end has every gateway address, the machine a route to each of the container's addresses. In
//! the container even the neighbours of its subnet are reached through the gateway, as nothing else is on
//! its link.

use std::io::Write;

use rustix::net::netdevice::name_to_index;
use serde::Deserialize;

use crate::{
    container,
    error::{Code, Doing, Error},
    ipam::{self, Ipam},
    ipnet::IpNet,
    masquerade,
    netlink::{Batch, Socket, route::Wanted},
    netns::Netns,
    pair,
    request::Request,
    result::{AddResult, Dns, Interface},
    sysctl, verify,
};

const MAX_MTU: u32 = 65535;
/// Index of the container's interface in the result.
const CONTAINER: usize = 1;
/// RT_SCOPE_HOST, which the original gives the route to a container.
const SCOPE_HOST: u8 = 254;

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: u32,
    dns: Dns,
}

impl Config {
    fn parse(request: &Request) -> Result<Config, Error> {
        let config: Config = request.config_of("ptp")?;
        if config.mtu > MAX_MTU {
            let msg = format!("mtu {} is above {MAX_MTU}", config.mtu);
            return Err(Error::config(msg));
        }
        masquerade::check_backend(&config.ip_masq_backend)?;
        if Ipam::find(request)? == Ipam::None {
            return Err(Error::config("ptp needs ipam.type"));
        }
        Ok(config)
    }
}

/// Joins the container. What was done is undone if a later step fails.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    let result = ipam
        .add(request)?
        .map(|allocated| build(request, &config, &netns, allocated))
        .unwrap_or_else(|| Err(Error::internal("the ipam plugin gave no address")));
    if result.is_err() {
        let masqueraded = if config.ip_masq {
            pair::end_masquerading(&request.network)
        } else {
            Ok(())
        };
        for undone in [masqueraded, ipam.del(request)] {
            if let Err(error) = undone {
                // The first error is the one to report; stderr may be closed.
                let _ = writeln!(std::io::stderr(), "undo ADD: {error}");
            }
        }
    }
    result
}

fn build(
    request: &Request,
    config: &Config,
    netns: &Netns,
    allocated: AddResult,
) -> Result<AddResult, Error> {
    let mut result = AddResult {
        interfaces: Vec::new(),
        ..allocated
    };
    if result.ips.is_empty() {
        return Err(Error::internal("the ipam plugin gave no address"));
    }
    for ip in &mut result.ips {
        ip.interface = Some(CONTAINER);
        let addr = ip.address.addr();
        if ip
            .gateway
            .is_none_or(|gateway| gateway.is_ipv4() != addr.is_ipv4())
        {
            return Err(Error::config(format!(
                "ipam gave {addr} no gateway, which ptp needs"
            )));
        }
    }
    container::forward(result.ips.iter().map(|ip| ip.address.addr()))?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let mtu = (config.mtu != 0).then_some(config.mtu);
    let ends = pair::make(&mut host, request, netns, mtu, None)?;
    let host_name = ends[0].name.clone();
    result.interfaces = ends.into();
    let joined = join(request, config, netns, &mut host, &result);
    if let Err(error) = joined {
        // The first error is the one to report; DEL comes next.
        let _ = host.delete_link(&host_name);
        return Err(error);
    }
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    Ok(result)
}

fn join(
    request: &Request,
    config: &Config,
    netns: &Netns,
    host: &mut Socket,
    result: &AddResult,
) -> Result<(), Error> {
    let [
        Interface {
            name: host_name, ..
        },
        Interface { name, .. },
    ] = result.interfaces.as_slice()
    else {
        return Err(Error::internal("the result has not two interfaces"));
    };
    serve(request, host, host_name, result)?;
    let (mut inside, index) = pair::raise(netns, host, host_name, name, || {
        container::prepare(name, result, false);
    })?;
    configure(&mut inside, index, result)?;
    if config.ip_masq {
        let subnets: Vec<IpNet> = result.ips.iter().map(|ip| ip.address.network()).collect();
        masquerade::ensure(&request.network, &subnets)
            .doing(Code::Internal, || "masquerade".into())?;
    }
    Ok(())
}

/// An address as a network of its own.
fn alone(addr: std::net::IpAddr) -> IpNet {
    let width = if addr.is_ipv4() { 32 } else { 128 };
    IpNet::new(addr, width).expect("the whole width fits")
}

/// Raises the host's end and gives it the gateways' addresses and the routes to the container.
fn serve(
    request: &Request,
    host: &mut Socket,
    host_name: &str,
    result: &AddResult,
) -> Result<(), Error> {
    // The container must not tell the machine where to send.
    sysctl::set_if_there("ipv6", host_name, "accept_ra", "0");
    let index =
        name_to_index(&*host, host_name).doing(Code::Internal, || format!("find {host_name}"))?;
    let mut batch = Batch::default();
    let mut steps = vec![format!("raise {host_name}")];
    batch.label_and_raise(
        host_name,
        &pair::alias(&request.network, request.attachment()?),
    );
    let mut gateways: Vec<_> = result.ips.iter().filter_map(|ip| ip.gateway).collect();
    gateways.sort();
    gateways.dedup();
    for gateway in gateways {
        batch.add_address(index, alone(gateway), false);
        steps.push(format!("give {gateway} to {host_name}"));
    }
    for ip in &result.ips {
        let route = Wanted {
            scope: Some(SCOPE_HOST),
            ..Wanted::to(alone(ip.address.addr()))
        };
        batch.add_route(index, &route);
        steps.push(format!("route {} to {host_name}", route.dst));
    }
    container::send(host, batch, &steps)
}

/// Gives the container its addresses; all routes lead through the gateways.
fn configure(inside: &mut Socket, index: u32, result: &AddResult) -> Result<(), Error> {
    let mut batch = Batch::default();
    let mut steps = Vec::new();
    for ip in &result.ips {
        let source = ip.address.addr();
        batch.add_lone_address(index, ip.address);
        steps.push(format!("give the container {}", ip.address));
        let gateway = ip.gateway.expect("every address was checked to have one");
        let to_gateway = Wanted {
            source: Some(source),
            ..Wanted::to(alone(gateway))
        };
        batch.add_route(index, &to_gateway);
        steps.push(format!(
            "give the container a route to its gateway {gateway}"
        ));
        let subnet = ip.address.network();
        if subnet != alone(source) {
            let to_subnet = Wanted {
                dst: subnet,
                gateway: Some(gateway),
                ..to_gateway
            };
            batch.add_route(index, &to_subnet);
            steps.push(format!("give the container a route to {subnet}"));
        }
    }
    container::add_routes(&mut batch, &mut steps, index, result);
    container::send(inside, batch, &steps)
}

/// Removes the pair, frees the addresses, ends the masquerading.
pub fn del(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    pair::remove(request, None)?;
    ipam.del(request)?;
    if config.ip_masq {
        pair::end_masquerading(&request.network)?;
    }
    Ok(())
}

/// Checks addresses and routes of the container against the result of ADD, and that its link leads here.
pub fn check(request: &Request) -> Result<(), Error> {
    Config::parse(request)?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    Ipam::find(request)?.check(request)?;
    let result = request.required_prev_result()?;
    let expected = verify::container(request, &result)?;
    let mut inside = netns.socket()?;
    let end = verify::find(&mut inside, &expected.name, pair::KIND)?;
    verify::same_mac(expected, &end)?;
    verify::addresses(&mut inside, &end, &result)?;
    verify::routes(&mut inside, &result)?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let peer = end.peer.map(|index| host.link_at(index)).transpose();
    let peer = peer.doing(Code::Internal, || {
        format!("find the other end of {}", end.name)
    })?;
    if peer
        .flatten()
        .is_none_or(|peer| peer.peer != Some(end.index))
    {
        return Err(Error::internal(format!(
            "{} does not lead to this machine",
            end.name
        )));
    }
    Ok(())
}

/// Removes whatever belongs to attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    // As the bridge does it: addresses last.
    Config::parse(request)?;
    pair::gc(request)?;
    let config = ipam::gc(request, Config::parse)?;
    if config.ip_masq {
        pair::end_masquerading(&request.network)?;
    }
    Ok(())
}

/// Checks that an ADD could be served.
pub fn status(request: &Request) -> Result<(), Error> {
    ipam::status(request, Config::parse).map(drop)
}
