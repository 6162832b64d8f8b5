//! portmap: leads connections to ports of the machine to a container.
//!
//! It comes after a plugin that gave the container addresses. ADD adds one element per mapping to the maps
//! that [`rules`] describes; DEL removes whatever carries the container's label, whatever became of the
//! configuration.

mod condition;
mod config;
mod rules;

use std::{io::Write, net::IpAddr};

use rustix::io::Errno;

use crate::{
    error::{Code, Doing, Error},
    ipnet::IpNet,
    label,
    netfilter::{
        Family, Table, Transaction, conntrack, has_table, lock,
        set::{self, Element, MAX_COMMENT},
    },
    netlink::Socket,
    request::Request,
    result::AddResult,
    sysctl,
};
use config::{Config, Mapping};

/// Maps the ports; the result is that of the plugin before.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let previous = request.required_prev_result()?;
    let attachment = request.attachment()?;
    let addresses = config::addresses(&previous, &attachment.interface);
    if config.mappings.is_empty() || addresses.is_empty() {
        return Ok(previous);
    }
    let label = label::label(&request.network, attachment, MAX_COMMENT);
    let mut socket = open()?;
    for address in addresses {
        let mapped = map(&mut socket, &config, address, &label);
        if mapped.is_err() {
            // Nobody hears of a failure here: DEL comes next.
            let _ = unmap(&mut socket, |other| other == label);
        }
        mapped?;
        forget(&mut socket, &config, Family::of(address.addr()));
    }
    Ok(previous)
}

fn open() -> Result<Socket, Error> {
    Socket::netfilter().doing(Code::Internal, || {
        "open a socket of the packet filter".into()
    })
}

/// Maps the ports of one family.
fn map(socket: &mut Socket, config: &Config, container: IpNet, label: &str) -> Result<(), Error> {
    let family = Family::of(container.addr());
    let mappings: Vec<_> = config.of_family(family).copied().collect();
    if mappings.is_empty() {
        return Ok(());
    }
    let table = rules::table(config, family);
    let mapping = || format!("map ports to {}", container.addr());
    let _lock = lock().doing(Code::Internal, mapping)?;
    let mut transaction = prepared(socket, config, &table, container, label).map_err(|errno| {
        no_tables(errno).unwrap_or_else(|| Error::internal(format!("{}: {errno}", mapping())))
    })?;
    add_mappings(&mut transaction, &table, &mappings, container.addr(), label);
    match transaction.commit(socket) {
        Err(Errno::EXIST) => {
            let mut transaction = prepared(socket, config, &table, container, label)
                .doing(Code::Internal, mapping)?;
            release_own(socket, &mut transaction, &table, &mappings, label)?;
            add_mappings(&mut transaction, &table, &mappings, container.addr(), label);
            transaction.commit(socket).doing(Code::Internal, mapping)?;
        }
        // All that the transaction refers to is in it, or was seen under the lock.
        Err(Errno::NOENT) => {
            let lacking =
                "the kernel lacks nat, masq or fib of nf_tables, or somebody has flushed it";
            return Err(Error::internal(format!("{}: {lacking}", mapping())));
        }
        done => done.doing(Code::Internal, mapping)?,
    }
    if config.snat && family == Family::V4 {
        allow_loopback(container.addr())?;
    }
    Ok(())
}

/// A kernel without nf_tables says so in several ways.
fn no_tables(errno: Errno) -> Option<Error> {
    matches!(
        errno,
        Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT
    )
    .then(|| {
        Error::new(
            Code::NotAvailable,
            format!("the kernel has no packet filter tables (nf_tables): {errno}"),
        )
    })
}

/// A transaction that makes what all mappings share, where it is not there yet.
fn prepared(
    socket: &mut Socket,
    config: &Config,
    table: &Table,
    container: IpNet,
    label: &str,
) -> rustix::io::Result<Transaction> {
    let mut transaction = Transaction::new();
    rules::ensure_table(socket, &mut transaction, config, table)?;
    if config.snat && !config.masquerade_all {
        rules::ensure_subnet(socket, &mut transaction, table, container, label)?;
    }
    Ok(transaction)
}

fn add_mappings(
    transaction: &mut Transaction,
    table: &Table,
    mappings: &[Mapping],
    container: IpAddr,
    label: &str,
) {
    for mapping in mappings {
        let (map, element) = rules::element(mapping, container, label);
        transaction.add_elements(table, map, &[element]);
    }
}

/// Some port is taken: by an earlier ADD for the same container, whose mappings go, or by another.
fn release_own(
    socket: &mut Socket,
    transaction: &mut Transaction,
    table: &Table,
    mappings: &[Mapping],
    label: &str,
) -> Result<(), Error> {
    for mapping in mappings {
        let found = rules::find(socket, table, mapping)
            .doing(Code::Internal, || format!("look for host port {mapping}"))?;
        let Some(found) = found else { continue };
        if found.label != label {
            let msg = format!("host port {mapping} is taken");
            return Err(Error::internal(msg).details(format!("it is mapped for {:?}", found.label)));
        }
        let (map, _) = rules::element(mapping, IpAddr::V4([0; 4].into()), label);
        transaction.delete_elements(
            table,
            map,
            &[Element {
                value: Vec::new(),
                ..found
            }],
        );
    }
    Ok(())
}

/// Lets connections from the machine's own 127.0.0.1 out to the container.
fn allow_loopback(container: IpAddr) -> Result<(), Error> {
    let doing = || format!("turn route_localnet on towards {container}");
    let find = || -> rustix::io::Result<_> {
        let mut socket = Socket::route()?;
        match socket.link_to(container)? {
            Some(index) => socket.link_at(index),
            None => Ok(None),
        }
    };
    // Without a way to the container there is nothing to allow yet.
    if let Some(link) = find().doing(Code::Internal, doing)?
        && link.name != "lo"
    {
        sysctl::set(&format!("ipv4/conf/{}/route_localnet", link.name), "1")
            .doing(Code::Internal, doing)?;
    }
    Ok(())
}

/// Makes UDP clients go where the ports lead now. Without it they go on as before for a while, which is
/// no reason to fail.
fn forget(socket: &mut Socket, config: &Config, family: Family) {
    let udp = config.of_family(family).filter(|mapping| mapping.is_udp());
    let ports: Vec<u16> = udp.map(|mapping| mapping.host_port).collect();
    if let Err(errno) = conntrack::forget_udp(socket, family, &ports) {
        // stderr may be closed.
        let _ = writeln!(std::io::stderr(), "forget UDP connections: {errno}");
    }
}

/// Removes every mapping whose label is stale.
fn unmap(socket: &mut Socket, is_stale: impl Fn(&str) -> bool) -> Result<(), Error> {
    let doing = || "remove port mappings".into();
    let _lock = lock().doing(Code::Internal, doing)?;
    for table in rules::all(socket).doing(Code::Internal, doing)? {
        match rules::remove(socket, &table, &is_stale) {
            // Somebody has flushed all rules.
            Err(Errno::NOENT) => {}
            done => done.doing(Code::Internal, doing)?,
        }
    }
    Ok(())
}

/// Removes the container's mappings; none is fine. A configuration that ADD has refused holds up no DEL.
pub fn del(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request).ok();
    let attachment = request.attachment()?;
    if config
        .as_ref()
        .is_some_and(|config| config.mappings.is_empty())
    {
        return Ok(());
    }
    let label = label::label(&request.network, attachment, MAX_COMMENT);
    let mut socket = match Socket::netfilter() {
        // A kernel without packet filter maps nothing.
        Err(Errno::PROTONOSUPPORT) => return Ok(()),
        _ => open()?,
    };
    unmap(&mut socket, |other| other == label)?;
    for (config, family) in config
        .iter()
        .flat_map(|config| Family::IP.map(|family| (config, family)))
    {
        forget(&mut socket, config, family);
    }
    Ok(())
}

/// Checks that every port leads to the container.
pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let previous = request.required_prev_result()?;
    let attachment = request.attachment()?;
    let label = label::label(&request.network, attachment, MAX_COMMENT);
    let mut socket = open()?;
    for address in config::addresses(&previous, &attachment.interface) {
        let family = Family::of(address.addr());
        let table = rules::table(&config, family);
        for mapping in config.of_family(family) {
            let (map, wanted) = rules::element(mapping, address.addr(), &label);
            let found = set::element(&mut socket, &table, map, &wanted.key)
                .doing(Code::Internal, || format!("look for host port {mapping}"))?;
            if found.as_ref() != Some(&wanted) {
                return Err(Error::internal(format!(
                    "host port {mapping} does not lead to {}",
                    address.addr()
                )));
            }
        }
    }
    Ok(())
}

/// Removes the mappings of attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    Config::parse(request)?;
    let network = &request.network;
    let valid = request.valid_labels(MAX_COMMENT)?;
    unmap(&mut open()?, |label| {
        label::is_of(label, network) && !valid.contains(label)
    })
}

/// Checks that the kernel can map ports.
pub fn status(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let table = rules::table(&config, Family::V4);
    let asked = Socket::netfilter().and_then(|mut socket| has_table(&mut socket, &table));
    asked.map(drop).map_err(|errno| {
        no_tables(errno)
            .unwrap_or_else(|| Error::new(Code::NotAvailable, format!("packet filter: {errno}")))
    })
}
