//! macvlan: gives a container a link that shares one of the machine's under a hardware address of its own.

use std::{io::Write, os::fd::AsFd};

use netlink_packet_route::AddressFamily;
use serde::Deserialize;

use crate::{
    container,
    error::{Code, Doing, Error},
    hash::hash,
    ipam::{self, Ipam},
    netlink::{
        Socket,
        link::{Link, Mac},
        macvlan::{KIND, Macvlan, Mode},
    },
    netns::Netns,
    pair::interface,
    request::{Request, check_interface_name},
    result::{AddResult, Dns},
    verify,
};

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    master: String,
    mode: String,
    mtu: u32,
    mac: String,
    link_in_container: bool,
    bcqueuelen: u32,
    dns: Dns,
    runtime_config: RawMac,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawMac {
    mac: String,
}

struct Config {
    /// None for the link of the default route.
    master: Option<String>,
    mode: Mode,
    mtu: Option<u32>,
    mac: Option<Mac>,
    /// The master is in the container, too.
    master_inside: bool,
    broadcasts: Option<u32>,
    dns: Dns,
}

impl Config {
    fn parse(request: &Request) -> Result<Config, Error> {
        let raw: RawConfig = request.config_of("macvlan")?;
        let mode = match raw.mode.as_str() {
            "" | "bridge" => Mode::Bridge,
            "private" => Mode::Private,
            "vepa" => Mode::Vepa,
            "passthru" => Mode::Passthru,
            other => return Err(Error::config(format!("unknown mode {other:?}"))),
        };
        let master = Some(raw.master).filter(|name| !name.is_empty());
        if let Some(name) = &master {
            check_interface_name(name).map_err(|says| Error::config(format!("master {says}")))?;
        }
        let parse = |text: String| {
            let mac = Mac::parse(&text);
            mac.ok_or_else(|| Error::config(format!("mac {text:?} is no hardware address")))
        };
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let mac = match (
            given(raw.runtime_config.mac),
            request.args.mac,
            given(raw.mac),
        ) {
            (Some(text), _, _) | (None, None, Some(text)) => Some(parse(text)?),
            (None, mac, _) => mac,
        };
        Ok(Config {
            master,
            mode,
            mtu: (raw.mtu != 0).then_some(raw.mtu),
            mac,
            master_inside: raw.link_in_container,
            broadcasts: (raw.bcqueuelen != 0).then_some(raw.bcqueuelen),
            dns: raw.dns,
        })
    }
}

/// The link that is shared.
fn master(config: &Config, socket: &mut Socket) -> Result<Link, Error> {
    let Some(name) = &config.master else {
        return default_route_link(socket);
    };
    socket
        .link(name)
        .doing(Code::Internal, || format!("find master {name}"))?
        .ok_or_else(|| Error::config(format!("master {name} is not there")))
}

fn default_route_link(socket: &mut Socket) -> Result<Link, Error> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let routes = socket
            .routes(family)
            .doing(Code::Internal, || "find the default route".into())?;
        let mut links = routes
            .iter()
            .filter(|route| route.dst.prefix() == 0)
            .filter_map(|route| route.link);
        if let Some(index) = links.next()
            && let Some(link) = socket.link_at(index).doing(Code::Internal, || {
                "find the link of the default route".into()
            })?
            && link.name != "lo"
        {
            return Ok(link);
        }
    }
    Err(Error::config(
        "no master, and there is no default route whose link could be it",
    ))
}

pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    let link = make(request, &config, &netns)?;
    let mut has_addresses = false;
    let done = (|| {
        let mut result = AddResult::default();
        if let Some(allocated) = ipam.add(request)? {
            has_addresses = true;
            if allocated.ips.is_empty() {
                return Err(Error::internal("the ipam plugin gave no address"));
            }
            result.ips = allocated.ips;
            result.routes = allocated.routes;
        }
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        let sandbox = request.netns.display().to_string();
        result.interfaces = vec![interface(&link.name, link.mac, sandbox)];
        container::set_up(&netns, &link.name, &result)?;
        result.dns = config.dns;
        Ok(result)
    })();
    if done.is_err() {
        let freed = if has_addresses {
            ipam.del(request)
        } else {
            Ok(())
        };
        for undone in [remove(request, &netns), freed] {
            if let Err(error) = undone {
                // The first error is the one to report; stderr may be closed.
                let _ = writeln!(std::io::stderr(), "undo ADD: {error}");
            }
        }
    }
    done
}

/// Makes the link in the container, down.
fn make(request: &Request, config: &Config, netns: &Netns) -> Result<Link, Error> {
    let attachment = request.attachment()?;
    let name = attachment.interface.as_str();
    let making = || format!("make the link {name} of the container");
    let mut inside = netns.socket()?;
    if inside.link(name).doing(Code::Internal, making)?.is_some() {
        return Err(Error::internal(format!(
            "the container has a link {name} already"
        )));
    }
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let socket = if config.master_inside {
        &mut inside
    } else {
        &mut host
    };
    let master = master(config, socket)?;
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu > master.mtu) {
        let msg = format!(
            "mtu {mtu} is above that of master {}, {}",
            master.name, master.mtu
        );
        return Err(Error::config(msg));
    }
    // Older kernels refuse a name that a link has where the master is, though it is made elsewhere.
    let draft = format!("mac{:08x}", hash(&[&attachment.container, name]) as u32);
    let wanted = Macvlan {
        name: &draft,
        master: master.index,
        mode: config.mode,
        mtu: config.mtu,
        mac: config.mac,
        broadcasts: config.broadcasts,
        netns: (!config.master_inside).then(|| netns.as_fd()),
    };
    socket.add_macvlan(&wanted).doing(Code::Internal, || {
        format!("{} on master {}", making(), master.name)
    })?;
    let renamed = inside.link(&draft).and_then(|link| {
        let link = link.ok_or(rustix::io::Errno::NODEV)?;
        inside.rename(link.index, name)?;
        Ok(Link {
            name: name.into(),
            ..link
        })
    });
    if renamed.is_err() {
        // The first error is the one to report.
        let _ = inside.delete_link(&draft);
    }
    renamed.doing(Code::Internal, making)
}

/// Removes the container's link, if it is one of ours; none is fine.
fn remove(request: &Request, netns: &Netns) -> Result<(), Error> {
    let name = &request.attachment()?.interface;
    let mut inside = netns.socket()?;
    let found = inside
        .link(name)
        .doing(Code::Internal, || format!("find {name}"))?;
    if found.is_some_and(|link| link.kind == KIND) {
        inside
            .delete_link(name)
            .doing(Code::Internal, || format!("remove {name}"))?;
    }
    Ok(())
}

/// Removes the link and frees the addresses. A namespace that is gone has taken the link with it.
pub fn del(request: &Request) -> Result<(), Error> {
    Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    if !request.netns.as_os_str().is_empty()
        && let Some(netns) = Netns::find(&request.netns, request.own_netns_allowed)?
    {
        remove(request, &netns)?;
    }
    ipam.del(request)
}

pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    Ipam::find(request)?.check(request)?;
    let result = request.required_prev_result()?;
    let expected = verify::container(request, &result)?;
    let mut inside = netns.socket()?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    master(
        &config,
        if config.master_inside {
            &mut inside
        } else {
            &mut host
        },
    )?;
    let link = verify::find(&mut inside, &expected.name, KIND)?;
    verify::same_mac(expected, &link)?;
    if Mode::number_of(&link) != Some(config.mode as u32) {
        let msg = format!("mode of {} is not as configured", link.name);
        return Err(Error::internal(msg));
    }
    verify::addresses(&mut inside, &link, &result)?;
    verify::routes(&mut inside, &result)
}

/// Links are in the containers' namespaces and end with them.
pub fn gc(request: &Request) -> Result<(), Error> {
    ipam::gc(request, Config::parse).map(drop)
}

pub fn status(request: &Request) -> Result<(), Error> {
    let config = ipam::status(request, Config::parse)?;
    if !config.master_inside {
        let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
        master(&config, &mut host).map_err(|error| Error::new(Code::NotAvailable, error.msg))?;
    }
    Ok(())
}
