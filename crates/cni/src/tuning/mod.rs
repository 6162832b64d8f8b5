//! tuning: sysctls of the container's network namespace, and settings of its interface.
//!
//! What a setting was before is noted in a file in the original's format, so that DEL can restore it: an
//! interface of hardware goes back to the machine.

mod backup;
mod config;

use std::{fs, io::Write};

use backup::{Backup, Store};
use config::Config;

use crate::{
    error::{Code, Doing, Error},
    netlink::{
        Socket,
        link::{Link, Mac, Setting},
    },
    netns::Netns,
    request::Request,
    result::AddResult,
};

/// Makes the settings; the result is that of the plugin before, with the new hardware address.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let mut result = request.required_prev_result()?;
    let attachment = request.attachment()?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    netns.inside(|| {
        for (key, path, value) in &config.sysctls {
            fs::write(path, value).doing(Code::Internal, || format!("sysctl: set {key}"))?;
        }
        Ok(())
    })?;
    if config.changes_link() {
        let mut inside = netns.socket()?;
        let link = find(&mut inside, &attachment.interface)?;
        let store = Store::of(request, &config.data_dir)?;
        store.save(&config.before(&link, &request.network))?;
        let changed = change(&mut inside, &link, config.mac, &config.settings());
        if let Err(error) = changed {
            if let Err(second) = restore(&mut inside, &link, &store) {
                // The first error is the one to report; stderr may be closed.
                let _ = writeln!(std::io::stderr(), "undo ADD: {second}");
            }
            return Err(error);
        }
    }
    if let Some(mac) = config.mac {
        for interface in &mut result.interfaces {
            if interface.name == attachment.interface {
                interface.mac = mac.to_string();
            }
        }
    }
    Ok(result)
}

fn find(inside: &mut Socket, name: &str) -> Result<Link, Error> {
    inside
        .link(name)
        .doing(Code::Internal, || format!("find {name}"))?
        .ok_or_else(|| Error::internal(format!("the container has no link {name}")))
}

fn change(
    inside: &mut Socket,
    link: &Link,
    mac: Option<Mac>,
    settings: &[(&str, Setting)],
) -> Result<(), Error> {
    let name = &link.name;
    if let Some(mac) = mac {
        inside
            .set_mac(link.index, mac)
            .doing(Code::Internal, || format!("set mac of {name} to {mac}"))?;
    }
    for (key, setting) in settings {
        inside
            .set(link.index, *setting)
            .doing(Code::Internal, || format!("set {key} of {name}"))?;
    }
    Ok(())
}

/// Sets the interface back, and forgets what it was.
fn restore(inside: &mut Socket, link: &Link, store: &Store) -> Result<(), Error> {
    if let Some(backup) = store.load()? {
        change(inside, link, backup.mac(), &backup.settings())?;
    }
    store.remove()
}

/// Sets the interface back as it was, if it is still there.
pub fn del(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let store = Store::of(request, &config.data_dir)?;
    let netns = if request.netns.as_os_str().is_empty() {
        None
    } else {
        Netns::find(&request.netns, request.own_netns_allowed)?
    };
    if let Some(netns) = netns {
        let name = &request.attachment()?.interface;
        let mut inside = netns.socket()?;
        let found = inside
            .link(name)
            .doing(Code::Internal, || format!("find {name}"))?;
        if let Some(link) = found {
            return restore(&mut inside, &link, &store);
        }
    }
    store.remove()
}

/// Checks that all is as configured.
pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    request.required_prev_result()?;
    let netns = Netns::open(&request.netns, request.own_netns_allowed)?;
    netns.inside(|| {
        for (key, path, value) in &config.sysctls {
            let now =
                fs::read_to_string(path).doing(Code::Internal, || format!("sysctl: read {key}"))?;
            if now.trim_end_matches('\n') != value {
                let msg = format!("sysctl {key} is {:?}, not {value:?}", now.trim_end());
                return Err(Error::internal(msg));
            }
        }
        Ok(())
    })?;
    let link = find(&mut netns.socket()?, &request.attachment()?.interface)?;
    config.check(&link)
}

/// Forgets what was noted of attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let valid = request.valid_attachments()?;
    backup::retain(&config.data_dir, &request.network, &valid)
}

pub fn status(request: &Request) -> Result<(), Error> {
    Config::parse(request).map(drop)
}

impl Config {
    /// What the settings that are changed were before.
    fn before(&self, link: &Link, network: &str) -> Backup {
        Backup {
            mac: self.mac.map(|_| link.mac.to_string()).unwrap_or_default(),
            promisc: self.promiscuous.then_some(link.promiscuity != 0),
            mtu: self.mtu.map_or(0, |_| link.mtu),
            allmulti: self.all_multicast.map(|_| link.all_multicast),
            queue: self.queue.map(|_| link.queue),
            network: network.into(),
        }
    }
}
