//! ADD: the steps, and how they are undone.

use std::{
    io::Write,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use netlink_packet_route::AddressFamily;
use rustix::{
    io::{self, Errno},
    net::netdevice::name_to_index,
};

use super::{PORT_KIND, alias, config::Config, end_masquerading, gateway};
use crate::{
    error::{Code, Doing, Error},
    ipam::Ipam,
    ipnet::IpNet,
    label::host_name,
    netfilter::masquerade,
    netlink::{
        Batch, Socket,
        link::{Link, Mac, Pair, Port},
    },
    netns::Netns,
    request::{Attachment, Request},
    result::{AddResult, Interface, Route},
    sys, sysctl,
};

/// How many names are tried for the host's end.
pub const NAMES: u32 = 8;
/// Index of the container's interface in the result.
const CONTAINER: usize = 2;

/// The longest that the search for duplicates of an address may take, and how often it is looked at.
const DAD_LIMIT: Duration = Duration::from_secs(5);
const DAD_PAUSE: Duration = Duration::from_millis(20);

/// What an ADD works with.
struct Add<'a> {
    request: &'a Request,
    attachment: &'a Attachment,
    config: Config,
    ipam: Ipam,
    netns: Netns,
    /// Of the host.
    socket: Socket,
    done: Done,
}

/// What has to be undone if a later step fails.
#[derive(Default)]
struct Done {
    addresses: bool,
    /// Name of the host's end of the pair.
    pair: Option<String>,
    masquerading: bool,
}

/// Joins the container to the bridge.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    if config.leave_down && ipam != Ipam::None {
        return Err(Error::config(
            "disableContainerInterface does not go with ipam",
        ));
    }
    let mut add = Add {
        request,
        attachment: request.attachment()?,
        config,
        ipam,
        netns: Netns::open(&request.netns, request.own_netns_allowed)?,
        socket: Socket::route().doing(Code::Internal, || "open a netlink socket".into())?,
        done: Done::default(),
    };
    let result = add.build();
    if result.is_err() {
        add.undo();
    }
    result
}

impl Add<'_> {
    fn build(&mut self) -> Result<AddResult, Error> {
        let bridge = gateway::ensure_bridge(&mut self.socket, &self.config)?;
        let mut result = AddResult::default();
        if let Some(allocated) = self.ipam.add(self.request)? {
            self.done.addresses = true;
            result = AddResult {
                interfaces: Vec::new(),
                ..allocated
            };
            if result.ips.is_empty() {
                return Err(Error::internal("the ipam plugin gave no address"));
            }
            gateway::complete(&mut result, &self.config, CONTAINER);
            if self.config.is_gateway {
                gateway::serve(&mut self.socket, &bridge, &self.config, &result)?;
            }
        }
        result.interfaces = self.make_pair(&bridge)?;
        self.join(&bridge, &result.interfaces[1].name)?;
        self.configure(&result)?;
        if self.config.ip_masq && !result.ips.is_empty() {
            self.done.masquerading = true;
            let subnets: Vec<IpNet> = result.ips.iter().map(|ip| ip.address.network()).collect();
            masquerade::ensure(&self.request.network, &subnets)
                .doing(Code::Internal, || "masquerade".into())?;
        }
        if !self.config.dns.is_empty() {
            result.dns = self.config.dns.clone();
        }
        Ok(result)
    }

    /// Makes the pair and describes bridge, host's end and container's end.
    fn make_pair(&mut self, bridge: &Link) -> Result<Vec<Interface>, Error> {
        let name = self.attachment.interface.as_str();
        let making = || format!("make the link {name} of the container");
        let host_mac = Mac::random().doing(Code::Internal, making)?;
        let mac = match self.config.mac {
            Some(mac) => mac,
            None => Mac::random().doing(Code::Internal, making)?,
        };
        for attempt in 0..NAMES {
            let host_name = host_name(&self.request.network, self.attachment, attempt);
            let mut batch = Batch::default();
            batch.add_pair(&Pair {
                host_name: &host_name,
                host_mac,
                name,
                mac,
                mtu: self.config.mtu,
                netns: rustix::fd::AsFd::as_fd(&self.netns),
            });
            match self.socket.send(batch) {
                Ok(_) => {
                    self.done.pair = Some(host_name.clone());
                    let sandbox = self.request.netns.display().to_string();
                    return Ok(vec![
                        interface(&bridge.name, bridge.mac, String::new()),
                        interface(&host_name, host_mac, String::new()),
                        interface(name, mac, sandbox),
                    ]);
                }
                Err(refused) if refused.errno == Errno::EXIST => {
                    self.check_host_name(&host_name)?
                }
                Err(refused) => return Err(refused).doing(Code::Internal, making),
            }
        }
        Err(Error::internal(format!(
            "{}: every name is taken",
            making()
        )))
    }

    /// Told that one of the names is taken, finds out which; fine if it is another's host end.
    fn check_host_name(&mut self, host_name: &str) -> Result<(), Error> {
        let name = &self.attachment.interface;
        let taken = self
            .socket
            .link(host_name)
            .doing(Code::Internal, || format!("find {host_name}"))?;
        match taken {
            None => Err(Error::internal(format!(
                "the container has a link {name} already"
            ))),
            Some(link)
                if link.kind == PORT_KIND
                    && link.alias == alias(&self.request.network, self.attachment) =>
            {
                let msg = format!("link {host_name} of the container's {name} is there already");
                Err(Error::internal(msg))
            }
            Some(_) => Ok(()),
        }
    }

    fn join(&mut self, bridge: &Link, host_name: &str) -> Result<(), Error> {
        sysctl::set_if_there("ipv6", host_name, "accept_ra", "0");
        // A port speaks no IP: it needs no link-local address (1 stands for none).
        sysctl::set_if_there("ipv6", host_name, "addr_gen_mode", "1");
        let mut batch = Batch::default();
        batch.join_bridge(&Port {
            name: host_name,
            bridge: bridge.index,
            alias: &alias(&self.request.network, self.attachment),
            hairpin: self.config.hairpin,
            isolated: self.config.isolated,
        });
        let joining = || format!("join {host_name} to bridge {}", bridge.name);
        self.socket
            .send(batch)
            .map(drop)
            .doing(Code::Internal, joining)
    }

    /// Sets the container's end up. The bridge's port forwards when this returns.
    fn configure(&mut self, result: &AddResult) -> Result<(), Error> {
        let name = self.attachment.interface.as_str();
        let [_, host, container] = result.interfaces.as_slice() else {
            return Err(Error::internal("the result has not three interfaces"));
        };
        if self.config.leave_down {
            return Ok(());
        }
        let mut inside = self.netns.inside(|| {
            if !result.ips.is_empty() {
                prepare(name, result, self.config.detect_duplicates);
            }
            Socket::route().doing(Code::Internal, || "open a netlink socket".into())
        })?;
        let configuring = || format!("set up {name}");
        let index = name_to_index(&inside, name).doing(Code::Internal, configuring)?;
        inside
            .raise(index, false)
            .doing(Code::Internal, configuring)?;
        let carrier = sys::carrier(&self.socket, &host.name)
            .and_then(|there| Ok(there && sys::carrier(&inside, name)?));
        if !carrier.doing(Code::Internal, configuring)? {
            return Err(Error::internal(format!(
                "bridge port {} has no carrier",
                host.name
            )));
        }
        if result.ips.is_empty() {
            return Ok(());
        }
        self.give_addresses(&mut inside, index, result)?;
        let mac = Mac::parse(&container.mac).unwrap_or_default();
        inside
            .set_mac(index, mac)
            .doing(Code::Internal, || format!("announce {name}"))
    }

    fn give_addresses(
        &self,
        inside: &mut Socket,
        index: u32,
        result: &AddResult,
    ) -> Result<(), Error> {
        let detect = self.config.detect_duplicates;
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
        for (route, gateway) in distinct_routes(result) {
            batch.add_route(index, route, gateway);
            let via = gateway
                .map(|gateway| format!(" via {gateway}"))
                .unwrap_or_default();
            steps.push(format!("give the container a route to {}{via}", route.dst));
        }
        send(inside, batch, &steps)
    }

    /// Undoes what was done. Nobody hears of a failure here: the error that led here is the one to
    /// report, and the runtime's DEL comes next.
    fn undo(&mut self) {
        let mut failures = Vec::new();
        if let Some(name) = self.done.pair.take()
            && let Err(errno) = self.socket.delete_link(&name)
        {
            failures.push(format!("{name}: {errno}"));
        }
        if self.done.masquerading
            && let Err(error) = end_masquerading(&self.request.network)
        {
            failures.push(error.to_string());
        }
        if self.done.addresses
            && let Err(error) = self.ipam.del(self.request)
        {
            failures.push(error.to_string());
        }
        for failure in failures {
            // stderr may be closed.
            let _ = writeln!(std::io::stderr(), "undo ADD: {failure}");
        }
    }
}

fn interface(name: &str, mac: Mac, sandbox: String) -> Interface {
    Interface {
        name: name.into(),
        mac: mac.to_string(),
        sandbox,
        ..Interface::default()
    }
}

fn send(socket: &mut Socket, batch: Batch, steps: &[String]) -> Result<(), Error> {
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

/// Settings of the container's end, from inside its namespace.
fn prepare(name: &str, result: &AddResult, detect: bool) {
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
