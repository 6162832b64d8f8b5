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
mod spoofing;
mod vlan;

use crate::{
    error::Error,
    ipam::{self, Ipam},
    pair,
    request::Request,
};
use config::Config;

pub use add::add;
pub use check::check;

const KIND: &str = "bridge";

/// Removes the pair, frees the addresses, ends the masquerading.
pub fn del(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let ipam = Ipam::find(request)?;
    pair::remove(request, Some(&config.bridge))?;
    if config.check_macs {
        spoofing::end(&request.network, request.attachment()?)?;
    }
    ipam.del(request)?;
    if config.ip_masq && ipam != Ipam::None {
        pair::end_masquerading(&request.network)?;
    }
    Ok(())
}

/// Removes whatever belongs to attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    // Addresses go last: none is given out again while something of its old owner is there.
    if Config::parse(request)?.check_macs {
        spoofing::gc(request)?;
    }
    pair::gc(request)?;
    let config = ipam::gc(request, Config::parse)?;
    if config.ip_masq {
        pair::end_masquerading(&request.network)
    } else {
        Ok(())
    }
}

/// Checks that an ADD could be served.
pub fn status(request: &Request) -> Result<(), Error> {
    ipam::status(request, Config::parse).map(drop)
}
