//! A pair of links between the machine and a container.
//!
//! The host's end carries the attachment's label as its alias. That is how it is found again, and how it
//! shows whether a network has any pods left.

use rustix::{
    io::{self, Errno},
    net::netdevice::name_to_index,
};

use crate::{
    error::{Code, Doing, Error},
    label, masquerade,
    netlink::{
        Batch, Socket,
        link::{Link, Mac, Pair},
    },
    netns::Netns,
    request::{Attachment, Request},
    result::Interface,
    sys,
};

pub const KIND: &str = "veth";

/// How many names are tried for the host's end.
const NAMES: u32 = 8;
/// The kernel keeps no longer alias, in bytes.
pub const MAX_ALIAS: usize = 255;

/// Marks the host's end of an attachment's pair.
pub fn alias(network: &str, attachment: &Attachment) -> String {
    label::label(network, attachment, MAX_ALIAS)
}

/// Makes the pair, both ends down, and describes the host's end and the container's.
pub fn make(
    socket: &mut Socket,
    request: &Request,
    netns: &Netns,
    mtu: Option<u32>,
    mac: Option<Mac>,
) -> Result<[Interface; 2], Error> {
    let attachment = request.attachment()?;
    let name = attachment.interface.as_str();
    let making = || format!("make the link {name} of the container");
    let host_mac = Mac::random().doing(Code::Internal, making)?;
    let mac = match mac {
        Some(mac) => mac,
        None => Mac::random().doing(Code::Internal, making)?,
    };
    for attempt in 0..NAMES {
        let host_name = label::host_name(&request.network, attachment, attempt);
        let mut batch = Batch::default();
        batch.add_pair(&Pair {
            host_name: &host_name,
            host_mac,
            name,
            mac,
            mtu,
            netns: rustix::fd::AsFd::as_fd(netns),
        });
        match socket.send(batch) {
            Ok(_) => {
                let sandbox = request.netns.display().to_string();
                return Ok([
                    interface(&host_name, host_mac, String::new()),
                    interface(name, mac, sandbox),
                ]);
            }
            Err(refused) if refused.errno == Errno::EXIST => {
                check_host_name(socket, request, attachment, &host_name)?;
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
fn check_host_name(
    socket: &mut Socket,
    request: &Request,
    attachment: &Attachment,
    host_name: &str,
) -> Result<(), Error> {
    let name = &attachment.interface;
    let taken = socket
        .link(host_name)
        .doing(Code::Internal, || format!("find {host_name}"))?;
    match taken {
        None => Err(Error::internal(format!(
            "the container has a link {name} already"
        ))),
        Some(link) if link.kind == KIND && link.alias == alias(&request.network, attachment) => {
            let msg = format!("link {host_name} of the container's {name} is there already");
            Err(Error::internal(msg))
        }
        Some(_) => Ok(()),
    }
}

/// Raises the container's end, whose name is `name`. When it returns packets pass between the ends, for which
/// the host's end must be up. `prepare` runs inside before.
pub fn raise(
    netns: &Netns,
    host: &Socket,
    host_name: &str,
    name: &str,
    prepare: impl FnOnce(),
) -> Result<(Socket, u32), Error> {
    let raising = || format!("set up {name}");
    let mut inside = netns.inside(|| {
        prepare();
        Socket::route().doing(Code::Internal, || "open a netlink socket".into())
    })?;
    let index = name_to_index(&inside, name).doing(Code::Internal, raising)?;
    inside.raise(index, false).doing(Code::Internal, raising)?;
    let carrier =
        sys::carrier(host, host_name).and_then(|there| Ok(there && sys::carrier(&inside, name)?));
    if !carrier.doing(Code::Internal, raising)? {
        return Err(Error::internal(format!("link {host_name} has no carrier")));
    }
    Ok((inside, index))
}

pub fn interface(name: &str, mac: Mac, sandbox: String) -> Interface {
    Interface {
        name: name.into(),
        mac: mac.to_string(),
        sandbox,
        ..Interface::default()
    }
}

/// The links of a network's pods.
fn links(network: &str) -> Result<Vec<Link>, Error> {
    let is_ours = |link: &Link| link.kind == KIND && label::is_of(&link.alias, network);
    let listed = Socket::route().and_then(|mut socket| socket.links());
    let mut links = listed.doing(Code::Internal, || "list links".into())?;
    links.retain(is_ours);
    Ok(links)
}

/// Ends the masquerading of a network that has no pods any more.
pub fn end_masquerading(network: &str) -> Result<(), Error> {
    masquerade::release(network, || Ok(!links(network)?.is_empty()))
}

/// Removes the host's ends of attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
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
    Ok(())
}

/// Removing one end of the pair removes the other. With the container's namespace gone the kernel
/// has done it, unless something else keeps the namespace alive: then the host's end is looked for.
///
/// `bridge` is a link that the result of ADD names beside the pair.
pub fn remove(request: &Request, bridge: Option<&str>) -> Result<(), Error> {
    let attachment = request.attachment()?;
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
    let found = find_host_end(&mut socket, request, bridge, attachment)
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
    bridge: Option<&str>,
    attachment: &Attachment,
) -> io::Result<Option<Link>> {
    for attempt in 0..NAMES {
        let link = socket.link(&label::host_name(&request.network, attachment, attempt))?;
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
            && bridge.is_none_or(|bridge| !is_of_bridge(&interface.name, bridge))
            && let Some(link) = socket.link(&interface.name)?
            && link.kind == KIND
            && link.mac.to_string() == interface.mac
        {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Whether a name is the bridge's or that of its link in a VLAN.
fn is_of_bridge(name: &str, bridge: &str) -> bool {
    name.strip_prefix(bridge)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
