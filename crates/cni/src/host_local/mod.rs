//! host-local: addresses for this machine's containers, kept in files.

mod config;
mod dns;
mod range;
mod store;

use std::{net::IpAddr, path::Path};

use config::Config;
use range::RangeSet;
use store::{Owner, Store};

use crate::{
    error::{Code, Doing, Error},
    request::{Attachment, Request},
    result::{AddResult, IpConfig},
};

/// Allocates one address of each range set. Either all are allocated or none.
///
/// Errors: also if the container's interface has an address of these ranges already.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let attachment = request.attachment()?;
    let config = config(request)?;
    let dns = config
        .resolv_conf
        .as_deref()
        .map(dns::read)
        .transpose()?
        .unwrap_or_default();
    let store = Store::open(&config.folder).doing(Code::Io, || store_name(&config.folder))?;
    let mut taken = Vec::new();
    match allocate(&config, &store, owner(attachment), &mut taken) {
        Ok(ips) => Ok(AddResult {
            ips,
            routes: config.routes,
            dns,
            ..AddResult::default()
        }),
        Err(error) => {
            for addr in taken {
                // Nothing to add to the first error; garbage collection gets what stays.
                let _ = store.free(addr);
            }
            Err(error)
        }
    }
}

/// Checks that the container's interface has an address.
pub fn check(request: &Request) -> Result<(), Error> {
    let attachment = request.attachment()?;
    let config = config(request)?;
    let store =
        Store::open_existing(&config.folder).doing(Code::Io, || store_name(&config.folder))?;
    let found = store.map(|store| store.of(owner(attachment))).transpose();
    if found
        .doing(Code::Io, || store_name(&config.folder))?
        .is_none_or(|addrs| addrs.is_empty())
    {
        let id = &attachment.container;
        return Err(Error::internal(format!(
            "container {id} has no address in {}",
            store_name(&config.folder)
        )));
    }
    Ok(())
}

/// Frees all addresses of the container's interface; none is fine. A configuration that ADD has refused holds up
/// no DEL.
pub fn del(request: &Request) -> Result<(), Error> {
    let attachment = request.attachment()?;
    let folder = Config::folder(&request.config, &request.network);
    let free = || -> rustix::io::Result<()> {
        let Some(store) = Store::open_existing(&folder)? else {
            return Ok(());
        };
        store
            .of(owner(attachment))?
            .into_iter()
            .try_for_each(|addr| store.free(addr))
    };
    free().doing(Code::Io, || store_name(&folder))
}

/// Frees the addresses of everything that is not attached to the network any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    let config = config(request)?;
    let valid = request.valid_attachments()?;
    let collect = || -> rustix::io::Result<()> {
        let Some(store) = Store::open_existing(&config.folder)? else {
            return Ok(());
        };
        store.retain(|container, interface| {
            valid.iter().any(|attachment| {
                attachment.container == container
                    && interface.is_none_or(|name| attachment.interface == name)
            })
        })
    };
    collect().doing(Code::Io, || store_name(&config.folder))
}

/// Checks that the configuration could be served.
pub fn status(request: &Request) -> Result<(), Error> {
    let config = config(request)?;
    match Store::open(&config.folder) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::new(
            Code::NotAvailable,
            format!("{}: {errno}", store_name(&config.folder)),
        )),
    }
}

fn config(request: &Request) -> Result<Config, Error> {
    Config::parse(&request.config, &request.network, &request.args)
}

fn store_name(folder: &Path) -> String {
    format!("address store {}", folder.display())
}

fn owner(attachment: &Attachment) -> Owner<'_> {
    Owner {
        container: &attachment.container,
        interface: &attachment.interface,
    }
}

/// Takes one address of each set; those it took are in `taken` also when it fails.
fn allocate(
    config: &Config,
    store: &Store,
    owner: Owner<'_>,
    taken: &mut Vec<IpAddr>,
) -> Result<Vec<IpConfig>, Error> {
    let before = store
        .of(owner)
        .doing(Code::Io, || store_name(&config.folder))?;
    let mut requested = config.requested.clone();
    let mut ips = Vec::with_capacity(config.sets.len());
    for (index, set) in config.sets.iter().enumerate() {
        let wanted = requested
            .iter()
            .position(|&addr| set.range_of(addr).is_some());
        let wanted = wanted.map(|position| requested.remove(position));
        if let (None, Some(addr)) = (
            wanted,
            before.iter().find(|&&addr| set.range_of(addr).is_some()),
        ) {
            return Err(Error::internal(format!(
                "{addr} is allocated to {} already, a second allocation is not allowed",
                owner.container
            )));
        }
        let ip = take(store, index, set, owner, wanted).map_err(|error| Error {
            msg: format!("range set {index}: {}", error.msg),
            ..error
        })?;
        taken.push(ip.address.addr());
        ips.push(ip);
    }
    if !requested.is_empty() {
        let list: Vec<_> = requested.iter().map(ToString::to_string).collect();
        return Err(Error::internal(format!(
            "requested addresses in no range: {}",
            list.join(" ")
        )));
    }
    Ok(ips)
}

fn take(
    store: &Store,
    index: usize,
    set: &RangeSet,
    owner: Owner<'_>,
    wanted: Option<IpAddr>,
) -> Result<IpConfig, Error> {
    let named = || format!("address store {}", store.path().display());
    let (range, addr) = match wanted {
        Some(addr) => {
            let range = set
                .range_of(addr)
                .expect("it was chosen for being in the set");
            if range.gateway() == addr {
                return Err(Error::internal(format!(
                    "requested address {addr} is the gateway"
                )));
            }
            store
                .reserve(owner, std::iter::once((range, addr)))
                .doing(Code::Io, named)?
                .ok_or_else(|| Error::internal(format!("requested address {addr} is taken")))?
        }
        None => store
            .reserve(owner, set.candidates(store.last_reserved(index)))
            .doing(Code::Io, named)?
            .ok_or_else(|| Error::internal(format!("no address is free in {set}")))?,
    };
    if let Err(errno) = store.set_last_reserved(index, addr) {
        let _ = store.free(addr);
        return Err(Error::new(Code::Io, format!("{}: {errno}", named())));
    }
    Ok(IpConfig {
        interface: None,
        address: range.with_prefix(addr),
        gateway: Some(range.gateway()),
    })
}
