//! ADD: the steps, and how they are undone.

use std::io::Write;

use super::{config::Config, gateway, spoofing, vlan};
use crate::{
    container,
    error::{Code, Doing, Error},
    ipam::Ipam,
    ipnet::IpNet,
    masquerade,
    netlink::{
        Batch, Socket,
        link::{Link, Mac, Port},
    },
    netns::Netns,
    pair,
    request::{Attachment, Request},
    result::AddResult,
    sysctl,
};

/// Index of the container's interface in the result.
const CONTAINER: usize = 2;

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
    checking: bool,
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
        let mut in_vlan = None;
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
                if let Some(own) = self.config.vlans.own {
                    let config = &self.config;
                    in_vlan = Some(vlan::ensure_gateway(
                        &mut self.socket,
                        &bridge,
                        config,
                        own,
                    )?);
                }
                let at = in_vlan.as_ref().unwrap_or(&bridge);
                gateway::serve(&mut self.socket, at, &self.config, &result)?;
            }
        }
        let (config, socket) = (&self.config, &mut self.socket);
        let [host, container] =
            pair::make(socket, self.request, &self.netns, config.mtu, config.mac)?;
        self.done.pair = Some(host.name.clone());
        let mac = Mac::parse(&container.mac).ok_or_else(|| {
            Error::internal(format!("{:?} is no hardware address", container.mac))
        })?;
        if self.config.check_macs {
            self.done.checking = true;
            spoofing::check(self.request, &host.name, mac)?;
        }
        self.join(&bridge, &host.name)?;
        let host_name = host.name.clone();
        let bridge_end = pair::interface(&bridge.name, bridge.mac, String::new());
        result.interfaces = vec![bridge_end, host, container];
        self.configure(&result, &host_name, mac)?;
        if let Some(link) = in_vlan {
            let gateway = pair::interface(&link.name, link.mac, String::new());
            result.interfaces.push(gateway);
        }
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

    fn join(&mut self, bridge: &Link, host_name: &str) -> Result<(), Error> {
        sysctl::set_if_there("ipv6", host_name, "accept_ra", "0");
        // A port speaks no IP: it needs no link-local address (1 stands for none).
        sysctl::set_if_there("ipv6", host_name, "addr_gen_mode", "1");
        let mut batch = Batch::default();
        batch.join_bridge(&Port {
            name: host_name,
            bridge: bridge.index,
            alias: &pair::alias(&self.request.network, self.attachment),
            hairpin: self.config.hairpin,
            isolated: self.config.isolated,
        });
        let joining = || format!("join {host_name} to bridge {}", bridge.name);
        self.socket.send(batch).doing(Code::Internal, joining)?;
        if self.config.vlans.are_given() {
            vlan::put(&mut self.socket, bridge, host_name, &self.config.vlans)?;
        }
        Ok(())
    }

    /// Sets the container's end up. The bridge's port forwards when this returns.
    fn configure(&mut self, result: &AddResult, host_name: &str, mac: Mac) -> Result<(), Error> {
        let name = self.attachment.interface.as_str();
        if self.config.leave_down {
            return Ok(());
        }
        let detect = self.config.detect_duplicates;
        let (mut inside, index) = pair::raise(&self.netns, &self.socket, host_name, name, || {
            if !result.ips.is_empty() {
                container::prepare(name, result, detect);
            }
        })?;
        if result.ips.is_empty() {
            return Ok(());
        }
        container::configure(&mut inside, index, result, detect)?;
        inside
            .set_mac(index, mac)
            .doing(Code::Internal, || format!("announce {name}"))
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
        if self.done.checking
            && let Err(error) = spoofing::end(&self.request.network, self.attachment)
        {
            failures.push(error.to_string());
        }
        if self.done.masquerading
            && let Err(error) = pair::end_masquerading(&self.request.network)
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
