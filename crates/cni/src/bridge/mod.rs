//! bridge: joins a container to a bridge by a pair of links, gives it addresses and routes, makes
//! the bridge its gateway and masquerades what leaves.
//!
//! ADD does its steps in an order in which each can be undone, and undoes them in reverse when one
//! fails: addresses taken → pair made → configured → masquerading. DEL goes the same way back and
//! takes whatever is missing for done. The bridge itself stays.

mod add;
mod check;
mod config;
mod gateway;

use rustix::io;

use crate::{
    error::{Code, Doing, Error},
    ipam::Ipam,
    label::{self, host_name},
    netfilter::masquerade,
    netlink::{Socket, link::Link},
    netns::Netns,
    request::{Attachment, Request},
};
use config::Config;

pub use add::add;
pub use check::check;

const KIND: &str = "bridge";
const PORT_KIND: &str = "veth";

/// The kernel keeps no longer alias, in bytes.
const MAX_ALIAS: usize = 255;

/// Marks the host's end of an attachment's pair.
fn alias(network: &str, attachment: &Attachment) -> String {
    label::label(network, attachment, MAX_ALIAS)
}

/// The links of a network's pods.
fn links(network: &str) -> Result<Vec<Link>, Error> {
    let is_ours = |link: &Link| link.kind == PORT_KIND && label::is_of(&link.alias, network);
    let listed = Socket::route().and_then(|mut socket| socket.links());
    let mut links = listed.doing(Code::Internal, || "list links".into())?;
    links.retain(is_ours);
    Ok(links)
}

/// Ends the masquerading of a network that has no pods any more.
fn end_masquerading(network: &str) -> Result<(), Error> {
    masquerade::release(network, || Ok(!links(network)?.is_empty()))
}

/// Removes the pair, frees the addresses, ends the masquerading.
pub fn del(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let attachment = request.attachment()?;
    let ipam = Ipam::find(request)?;
    remove_pair(request, &config, attachment)?;
    ipam.del(request)?;
    if config.ip_masq && ipam != Ipam::None {
        end_masquerading(&request.network)?;
    }
    Ok(())
}

/// Removes whatever belongs to attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let network = &request.network;
    let valid = request.valid_labels(MAX_ALIAS)?;
    let mut socket = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    for link in links(network)?
        .into_iter()
        .filter(|link| !valid.contains(&link.alias))
    {
        socket
            .delete_link(&link.name)
            .doing(Code::Internal, || format!("remove {}", link.name))?;
    }
    Ipam::find(request)?.gc(request)?;
    if config.ip_masq {
        end_masquerading(network)
    } else {
        Ok(())
    }
}

/// Checks that an ADD could be served.
pub fn status(request: &Request) -> Result<(), Error> {
    Config::parse(request)?;
    Ipam::find(request)?.status(request)
}

/// Removing one end of the pair removes the other. With the container's namespace gone the kernel
/// has done it, unless something else keeps the namespace alive: then the host's end is looked for.
fn remove_pair(request: &Request, config: &Config, attachment: &Attachment) -> Result<(), Error> {
    let name = &attachment.interface;
    if !request.netns.as_os_str().is_empty()
        && let Some(netns) = Netns::find(&request.netns, request.own_netns_allowed)?
        && netns
            .socket()?
            .delete_link(name)
            .doing(Code::Internal, || format!("remove {name}"))?
    {
        return Ok(());
    }
    let mut socket = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let found = find_host_end(&mut socket, request, config, attachment)
        .doing(Code::Internal, || format!("find the link of {name}"))?;
    if let Some(link) = found {
        socket
            .delete_link(&link.name)
            .doing(Code::Internal, || format!("remove {}", link.name))?;
    }
    Ok(())
}

/// The host's end of an attachment's pair: the link of its name and alias, or else what the result
/// of ADD says, if that is still a port with the hardware address noted there.
fn find_host_end(
    socket: &mut Socket,
    request: &Request,
    config: &Config,
    attachment: &Attachment,
) -> io::Result<Option<Link>> {
    for attempt in 0..add::NAMES {
        let link = socket.link(&host_name(&request.network, attachment, attempt))?;
        match link {
            Some(link) if link.alias == alias(&request.network, attachment) => {
                return Ok(Some(link));
            }
            Some(_) => {}
            None => break,
        }
    }
    // A previous result that cannot be read must not hold up a DEL.
    let previous = request.prev_result().ok().flatten().unwrap_or_default();
    for interface in previous.interfaces {
        if interface.sandbox.is_empty()
            && interface.name != config.bridge
            && let Some(link) = socket.link(&interface.name)?
            && link.kind == PORT_KIND
            && link.mac.to_string() == interface.mac
        {
            return Ok(Some(link));
        }
    }
    Ok(None)
}
