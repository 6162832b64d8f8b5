//! host-device: gives a container a link of the machine, and takes it back.
//!
//! While the link is in the container its alias is its name on the machine, as the original notes it. A
//! container that ends without a DEL sends a link of hardware back by itself.
//!
//! Asked by carpel itself (`keepAddresses`), for network devices of a container that are no attachment to a network,
//! it takes the link's own addresses along, both ways, and raises it again on the machine if it was `up` there.

use std::{
    fs,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use netlink_packet_route::AddressFamily;
use serde::Deserialize;

use crate::{
    container,
    error::{Code, Doing, Error},
    ipam::{self, Ipam},
    ipnet::IpNet,
    netlink::{
        Socket,
        link::{Link, Mac},
    },
    netns::Netns,
    pair::interface,
    request::{Request, check_interface_name},
    result::{AddResult, Dns, Interface},
    verify,
};

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
const DEVICES: &str = "/sys/devices/";
/// Drivers that leave a device to a process: the kernel has no link for it.
const USERSPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConfig {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci: String,
    #[serde(rename = "keepAddresses")]
    keep_addresses: bool,
    up: bool,
    dns: Dns,
    #[serde(rename = "runtimeConfig")]
    runtime: RawRuntime,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRuntime {
    #[serde(rename = "deviceID")]
    device_id: String,
}

/// Which link is meant.
#[derive(Debug)]
enum Device {
    Name(String),
    Mac(Mac),
    /// The link of the device with one of these folders.
    Folder(Vec<PathBuf>),
    /// A device that has no link: there is nothing to move.
    Userspace,
}

struct Config {
    device: Device,
    dns: Dns,
    keep: Option<Keep>,
}

/// That a link keeps its addresses.
#[derive(Clone, Copy, Debug)]
struct Keep {
    /// Whether it was up on the machine.
    up: bool,
}

impl Config {
    fn parse(request: &Request) -> Result<Config, Error> {
        let mut raw: RawConfig = request.config_of("host-device")?;
        let mut auxiliary = None;
        if !raw.runtime.device_id.is_empty() {
            let id = bus_id("runtimeConfig.deviceID", &raw.runtime.device_id)?;
            if Path::new(PCI).join(id).exists() {
                raw.pci = id.into();
            } else if Path::new(AUXILIARY).join(id).exists() {
                raw.pci.clear();
                auxiliary = Some(Path::new(AUXILIARY).join(id).join("net"));
            } else {
                let msg = format!("runtimeConfig.deviceID {id} is no device");
                return Err(Error::config(msg));
            }
        }
        let device = if !raw.device.is_empty() {
            check_interface_name(&raw.device)
                .map_err(|says| Error::config(format!("device {says}")))?;
            Device::Name(raw.device)
        } else if !raw.hwaddr.is_empty() {
            let mac = Mac::parse(&raw.hwaddr);
            Device::Mac(mac.ok_or_else(|| {
                Error::config(format!("hwaddr {:?} is no hardware address", raw.hwaddr))
            })?)
        } else if !raw.kernelpath.is_empty() {
            if !raw.kernelpath.starts_with(DEVICES) || raw.kernelpath.contains("/../") {
                let msg = format!("kernelpath {:?} is not below {DEVICES}", raw.kernelpath);
                return Err(Error::config(msg));
            }
            Device::Folder(vec![Path::new(&raw.kernelpath).join("net")])
        } else if !raw.pci.is_empty() {
            pci_device(bus_id("pciBusID", &raw.pci)?)?
        } else if let Some(folder) = auxiliary {
            Device::Folder(vec![folder])
        } else {
            return Err(Error::config(
                "none of device, hwaddr, kernelpath and pciBusID is given",
            ));
        };
        Ok(Config {
            device,
            dns: raw.dns,
            keep: raw.keep_addresses.then_some(Keep { up: raw.up }),
        })
    }

    fn is_userspace(&self) -> bool {
        matches!(self.device, Device::Userspace)
    }
}

/// The name of a device on a bus, which is one folder's.
fn bus_id<'a>(key: &str, text: &'a str) -> Result<&'a str, Error> {
    if text.contains('/') || text.starts_with('.') {
        return Err(Error::config(format!(
            "{key} {text:?} is no name of a device"
        )));
    }
    Ok(text)
}

fn pci_device(id: &str) -> Result<Device, Error> {
    let folder = Path::new(PCI).join(id);
    let driver = fs::read_link(folder.join("driver"))
        .doing(Code::InvalidConfig, || format!("pciBusID {id}"))?;
    let is_userspace = |name| USERSPACE_DRIVERS.iter().any(|driver| name == *driver);
    if driver.file_name().is_some_and(is_userspace) {
        return Ok(Device::Userspace);
    }
    let mut folders = vec![folder.join("net")];
    let inner = fs::read_dir(&folder).into_iter().flatten().flatten();
    let virtio = inner.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"virtio"));
    folders.extend(virtio.map(|entry| entry.path().join("net")));
    Ok(Device::Folder(folders))
}

/// The machine's link.
fn find(device: &Device, host: &mut Socket) -> Result<Link, Error> {
    let by_name = |host: &mut Socket, name: &str| {
        let found = host.link(name);
        found.doing(Code::Internal, || format!("find device {name}"))
    };
    let (found, wanted) = match device {
        Device::Name(name) => (by_name(host, name)?, name.clone()),
        Device::Mac(mac) => {
            let links = host.links().doing(Code::Internal, || "list links".into())?;
            let found = links.into_iter().find(|link| link.mac == *mac);
            (found, mac.to_string())
        }
        Device::Folder(folders) => {
            let mut entries = folders.iter().flat_map(fs::read_dir).flatten().flatten();
            let name = entries.next().map(|entry| entry.file_name());
            let found = match name.as_ref().and_then(|name| name.to_str()) {
                Some(name) => by_name(host, name)?,
                None => None,
            };
            (found, folders[0].display().to_string())
        }
        Device::Userspace => (None, "of a userspace driver".into()),
    };
    found.ok_or_else(|| Error::internal(format!("the machine has no device {wanted}")))
}

/// The addresses that somebody has given to a link.
fn lasting_addresses(socket: &mut Socket, index: u32) -> io::Result<Vec<IpNet>> {
    let found = socket.addresses(index, AddressFamily::Unspec)?;
    let lasting = found.into_iter().filter(|address| address.lasting);
    Ok(lasting.map(|address| address.net).collect())
}

/// On the machine again: as it was before.
fn settle_at_home(
    host: &mut Socket,
    name: &str,
    keep: Keep,
    addresses: &[IpNet],
) -> io::Result<()> {
    let Some(link) = host.link(name)? else {
        return Ok(());
    };
    if keep.up {
        host.raise(link.index, false)?;
    }
    for net in addresses {
        host.add_address(link.index, *net)?;
    }
    Ok(())
}

/// A move that was made already is not an error for whoever asks again after a crash.
fn taken_before(
    device: &Device,
    keep: Option<Keep>,
    inside: &mut Socket,
    name: &str,
) -> Result<Option<Link>, Error> {
    let (Device::Name(device), Some(_)) = (device, keep) else {
        return Ok(None);
    };
    let found = inside.link(name);
    let found = found.doing(Code::Internal, || format!("find {name} in the container"))?;
    Ok(found.filter(|link| link.alias == *device))
}

/// Moves the link into the container under the name that it has to have there. With it come the addresses that it is to
/// be given there again.
fn take_in(
    request: &Request,
    config: &Config,
    netns: &Netns,
) -> Result<(Interface, Vec<IpNet>), Error> {
    let name = request.attachment()?.interface.as_str();
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    let mut inside = netns.socket()?;
    if let Some(there) = taken_before(&config.device, config.keep, &mut inside, name)? {
        let sandbox = request.netns.display().to_string();
        return Ok((interface(name, there.mac, sandbox), Vec::new()));
    }
    let link = find(&config.device, &mut host)?;
    let moving = || format!("move {} into the container as {name}", link.name);
    if inside.link(name).doing(Code::Internal, moving)?.is_some() {
        return Err(Error::internal(format!(
            "the container has a link {name} already"
        )));
    }
    let kept = match config.keep {
        Some(_) => lasting_addresses(&mut host, link.index).doing(Code::Internal, moving)?,
        None => Vec::new(),
    };
    let moved = host
        .set_alias(link.index, &link.name)
        .and_then(|()| host.send_link(link.index, netns.as_fd(), name));
    if moved.is_err() {
        bring_home(&mut inside, netns, &link);
        // Still here if it never left.
        let _ = host.set_alias(link.index, "");
        if let Some(keep) = config.keep {
            let _ = settle_at_home(&mut host, &link.name, keep, &kept);
        }
    }
    moved.doing(Code::Internal, moving)?;
    let sandbox = request.netns.display().to_string();
    Ok((interface(name, link.mac, sandbox), kept))
}

/// Takes back what went only half of the way. The first error is the one to report.
fn bring_home(inside: &mut Socket, netns: &Netns, link: &Link) {
    let links = inside.links().unwrap_or_default();
    if let Some(lost) = links.iter().find(|other| other.alias == link.name) {
        let _ = inside.set_alias(lost.index, "");
        let _ = inside.send_link(lost.index, netns.home(), &link.name);
    }
}

pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    let (taken, kept) = if config.is_userspace() {
        let interface = Interface {
            name: request.attachment()?.interface.clone(),
            sandbox: request.netns.display().to_string(),
            ..Interface::default()
        };
        (interface, Vec::new())
    } else {
        take_in(request, &config, &netns)?
    };
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
            result.dns = config.dns.clone();
        }
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        if !config.is_userspace() {
            container::set_up(&netns, &taken.name, &result)?;
            keep(&netns, &taken.name, &kept)?;
        }
        result.interfaces = vec![taken];
        Ok(result)
    })();
    if done.is_err() {
        let freed = if has_addresses {
            ipam.del(request)
        } else {
            Ok(())
        };
        for undone in [give_back(request, &config, &netns), freed] {
            if let Err(error) = undone {
                // The first error is the one to report; stderr may be closed.
                let _ = writeln!(io::stderr(), "undo ADD: {error}");
            }
        }
    }
    done
}

/// Gives the link in the container the addresses that it had before.
fn keep(netns: &Netns, name: &str, addresses: &[IpNet]) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let doing = || format!("give {name} its addresses");
    let mut inside = netns.socket()?;
    let link = inside.link(name).doing(Code::Internal, doing)?;
    let index = link.map(|link| link.index);
    let index = index.ok_or_else(|| Error::internal(format!("{}: it is gone", doing())))?;
    for net in addresses {
        let given = inside.add_address(index, *net);
        given.doing(Code::Internal, || format!("give {name} {net}"))?;
    }
    Ok(())
}

/// Moves the link back to the machine under its old name, down; none is fine.
fn give_back(request: &Request, config: &Config, netns: &Netns) -> Result<(), Error> {
    if config.is_userspace() {
        return Ok(());
    }
    let name = &request.attachment()?.interface;
    let mut inside = netns.socket()?;
    let moving = || format!("move {name} back to the machine");
    let Some(link) = inside.link(name).doing(Code::Internal, moving)? else {
        return Ok(());
    };
    let old = link.alias.as_str();
    check_interface_name(old)
        .map_err(|_| Error::internal(format!("{}: its alias {old:?} is no name", moving())))?;
    let mut host = Socket::route().doing(Code::Internal, || "open a netlink socket".into())?;
    if host.link(old).doing(Code::Internal, moving)?.is_some() {
        return Err(Error::internal(format!(
            "{}: {old} is there already",
            moving()
        )));
    }
    let kept = match config.keep {
        Some(_) => lasting_addresses(&mut inside, link.index).doing(Code::Internal, moving)?,
        None => Vec::new(),
    };
    inside
        .send_link(link.index, netns.home(), old)
        .doing(Code::Internal, moving)?;
    let back = host.link(old).doing(Code::Internal, moving)?;
    back.map_or(Ok(()), |link| host.set_alias(link.index, ""))
        .doing(Code::Internal, moving)?;
    match config.keep {
        Some(keep) => settle_at_home(&mut host, old, keep, &kept)
            .doing(Code::Internal, || format!("set {old} up as it was")),
        None => Ok(()),
    }
}

/// Moves the link back and frees the addresses.
pub fn del(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    if !request.netns.as_os_str().is_empty()
        && let Some(netns) = Netns::find(&request.netns, request.own_netns_allowed)?
    {
        give_back(request, &config, &netns)?;
    }
    ipam.del(request)
}

pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    Ipam::find(request)?.check(request)?;
    let result = request.required_prev_result()?;
    if config.is_userspace() {
        return Ok(());
    }
    let expected = verify::container(request, &result)?;
    let mut inside = netns.socket()?;
    let link = inside
        .link(&expected.name)
        .doing(Code::Internal, || format!("find {}", expected.name))?
        .ok_or_else(|| Error::internal(format!("link {} is not there", expected.name)))?;
    verify::same_mac(expected, &link)?;
    verify::addresses(&mut inside, &link, &result)?;
    verify::routes(&mut inside, &result)
}

/// A container that is gone has sent the link back.
pub fn gc(request: &Request) -> Result<(), Error> {
    ipam::gc(request, Config::parse).map(drop)
}

pub fn status(request: &Request) -> Result<(), Error> {
    ipam::status(request, Config::parse).map(drop)
}
