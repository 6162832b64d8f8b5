//! The container's interface, as address management says: its addresses and routes.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use netlink_packet_route::AddressFamily;
use rustix::{io, net::netdevice::name_to_index};

use crate::{
    error::{Code, Doing, Error},
    netlink::{Batch, Socket},
    netns::Netns,
    result::{AddResult, Route},
    sys, sysctl,
};

/// The longest that the search for duplicates of an address may take, and how often it is looked at.
const DAD_LIMIT: Duration = Duration::from_secs(5);
const DAD_PAUSE: Duration = Duration::from_millis(20);

/// Settings of the interface before it is raised, from inside its namespace. With `detect`, duplicates of
/// its IPv6 addresses are looked for.
pub fn prepare(name: &str, result: &AddResult, detect: bool) {
    sysctl::set_if_there("ipv4", name, "arp_notify", "1");
    if detect {
        sysctl::set_if_there("ipv6", name, "enhanced_dad", "1");
    }
    sysctl::set_if_there("ipv6", name, "accept_dad", if detect { "1" } else { "0" });
    if result.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
        for link in ["lo", name] {
            sysctl::set_if_there("ipv6", link, "disable_ipv6", "0");
        }
        sysctl::set_if_there("ipv6", name, "keep_addr_on_down", "1");
        sysctl::set_if_there("ipv6", name, "ndisc_notify", "1");
    }
}

/// Raises the interface `name` of the container and gives it what the result says.
pub fn set_up(netns: &Netns, name: &str, result: &AddResult) -> Result<(), Error> {
    let raising = || format!("set up {name}");
    let mut inside = netns.inside(|| {
        if !result.ips.is_empty() {
            prepare(name, result, false);
        }
        Socket::route().doing(Code::Internal, || "open a netlink socket".into())
    })?;
    let index = name_to_index(&inside, name).doing(Code::Internal, raising)?;
    inside.raise(index, false).doing(Code::Internal, raising)?;
    // The question settles what a new carrier has set off: it can send when this returns, if it has one.
    sys::carrier(&inside, name).doing(Code::Internal, raising)?;
    configure(&mut inside, index, result, false)
}

/// Gives the interface the result's addresses and routes.
pub fn configure(
    inside: &mut Socket,
    index: u32,
    result: &AddResult,
    detect: bool,
) -> Result<(), Error> {
    let mut batch = Batch::default();
    let mut steps = Vec::new();
    for ip in &result.ips {
        batch.add_address(index, ip.address, detect);
        steps.push(format!("give the container {}", ip.address));
    }
    if detect && result.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
        send(
            inside,
            std::mem::take(&mut batch),
            &std::mem::take(&mut steps),
        )?;
        settle(inside, index)?;
    }
    add_routes(&mut batch, &mut steps, index, result);
    send(inside, batch, &steps)
}

/// Appends the result's routes, and what is being done with each.
pub fn add_routes(batch: &mut Batch, steps: &mut Vec<String>, index: u32, result: &AddResult) {
    for (route, gateway) in distinct_routes(result) {
        batch.add_route(index, &route.through(gateway));
        let via = gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        steps.push(format!("give the container a route to {}{via}", route.dst));
    }
}

/// Makes the machine forward what is of the families of these addresses.
pub fn forward(addrs: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
    let mut done = [false; 2];
    for addr in addrs {
        if !std::mem::replace(&mut done[usize::from(addr.is_ipv6())], true) {
            let key = match addr {
                IpAddr::V4(_) => "ipv4/ip_forward",
                IpAddr::V6(_) => "ipv6/conf/all/forwarding",
            };
            sysctl::set(key, "1").doing(Code::Internal, || format!("turn {key} on"))?;
        }
    }
    Ok(())
}

/// Sends the batch; an error says which of the steps it was.
pub fn send(socket: &mut Socket, batch: Batch, steps: &[String]) -> Result<(), Error> {
    if batch.is_empty() {
        return Ok(());
    }
    socket.send(batch).map(drop).map_err(|refused| {
        let step = steps
            .get(refused.index)
            .map_or("set up the container's link", String::as_str);
        Error::internal(format!("{step}: {refused}"))
    })
}

/// The result's routes, each once, with the gateway that it goes through: its own, else that of the
/// first address of its family.
fn distinct_routes(result: &AddResult) -> Vec<(&Route, Option<IpAddr>)> {
    let mut routes: Vec<(&Route, Option<IpAddr>)> = Vec::new();
    for route in &result.routes {
        let is_ipv4 = route.dst.addr().is_ipv4();
        let of_family = |gateway: &IpAddr| gateway.is_ipv4() == is_ipv4;
        let gateway = route.gw.or_else(|| {
            result
                .ips
                .iter()
                .filter_map(|ip| ip.gateway)
                .find(of_family)
        });
        let same = |(other, other_gateway): &(&Route, Option<IpAddr>)| {
            (
                other.dst.network(),
                other.priority,
                other.table,
                *other_gateway,
            ) == (route.dst.network(), route.priority, route.table, gateway)
        };
        if !routes.iter().any(same) {
            routes.push((route, gateway));
        }
    }
    routes
}

/// Waits until no address of the link is tentative any more.
fn settle(inside: &mut Socket, index: u32) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        let found: io::Result<_> = inside.addresses(index, AddressFamily::Inet6);
        let found = found.doing(Code::Internal, || "addresses of the container".into())?;
        let Some(waiting) = found.iter().find(|address| address.tentative) else {
            return Ok(());
        };
        if start.elapsed() > DAD_LIMIT {
            let msg = format!("{} is still being checked for duplicates", waiting.net);
            return Err(Error::internal(msg));
        }
        thread::sleep(DAD_PAUSE);
    }
}
