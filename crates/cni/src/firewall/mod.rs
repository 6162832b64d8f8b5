//! firewall: lets traffic of a container through a machine that forwards only what it is told to.
//!
//! What another table drops no table of ours can let through. So the rules stand where iptables (of the
//! nf_tables kind) keeps its own, in its words, under the original's names; see [`rules`].

mod rules;

use rustix::io::Errno;
use serde::Deserialize;

use crate::{
    error::{Code, Doing, Error},
    label,
    netfilter::{Family, has_table, lock, set::MAX_COMMENT},
    netlink::Socket,
    request::{Request, check_interface_name},
    result::AddResult,
};
use rules::{Chains, Policy};

/// The kernel keeps no longer name of a chain that iptables takes.
const MAX_CHAIN: usize = 28;
const ADMIN_CHAIN: &str = "CNI-ADMIN";

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    backend: String,
    iptables_admin_chain_name: String,
    ingress_policy: String,
}

struct Config {
    admin_chain: String,
    policy: Option<Policy>,
}

impl Config {
    fn parse(request: &Request) -> Result<Config, Error> {
        let raw: RawConfig = request.config_of("firewall")?;
        match raw.backend.as_str() {
            "" | "iptables" | "nftables" => {}
            "firewalld" => {
                let msg = "firewall: backend firewalld is not supported";
                return Err(Error::new(Code::UnsupportedField, msg));
            }
            other => return Err(Error::config(format!("unknown backend {other:?}"))),
        }
        let policy = match raw.ingress_policy.as_str() {
            "" | "open" => None,
            "same-bridge" => Some(Policy::SameBridge),
            "isolated" => Some(Policy::Isolated),
            other => return Err(Error::config(format!("unknown ingressPolicy {other:?}"))),
        };
        let admin_chain = match raw.iptables_admin_chain_name {
            empty if empty.is_empty() => ADMIN_CHAIN.into(),
            name if name.len() <= MAX_CHAIN && !name.contains(char::is_whitespace) => name,
            name => {
                let msg = format!("iptablesAdminChainName {name:?} is no name of a chain");
                return Err(Error::config(msg));
            }
        };
        Ok(Config {
            admin_chain,
            policy,
        })
    }
}

fn open() -> Result<Socket, Error> {
    Socket::netfilter().doing(Code::Internal, || {
        "open a socket of the packet filter".into()
    })
}

fn label(request: &Request) -> Result<String, Error> {
    Ok(label::label(
        &request.network,
        request.attachment()?,
        MAX_COMMENT,
    ))
}

/// The families of a result's addresses.
fn families(result: &AddResult) -> impl Iterator<Item = Family> {
    Family::IP.into_iter().filter(|family| {
        let mut ips = result.ips.iter();
        ips.any(|ip| Family::of(ip.address.addr()) == *family)
    })
}

/// Lets the container's traffic through; the result is that of the plugin before.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let config = Config::parse(request)?;
    let result = request.required_prev_result()?;
    let bridge = config.policy.map(|policy| Ok((policy, bridge(&result)?)));
    let bridge = bridge.transpose()?;
    let label = label(request)?;
    let mut socket = open()?;
    let _lock = lock().doing(Code::Internal, || "lock the packet filter".into())?;
    for family in families(&result) {
        let chains = Chains::new(family, &config.admin_chain);
        let addrs: Vec<_> = rules::of_family(&result, family).collect();
        chains
            .admit(&mut socket, &addrs, &label)
            .and_then(|()| match bridge {
                Some((policy, name)) => chains.isolate(&mut socket, name, policy),
                None => Ok(()),
            })
            .map_err(refused)?;
    }
    Ok(result)
}

fn refused(errno: Errno) -> Error {
    let says = "let the container's traffic through";
    if matches!(errno, Errno::OPNOTSUPP | Errno::INVAL) {
        let msg = format!("{says}: the kernel has no packet filter tables (nf_tables): {errno}");
        return Error::new(Code::NotAvailable, msg);
    }
    Error::internal(format!("{says}: {errno}"))
}

/// The bridge that the result names first.
fn bridge(result: &AddResult) -> Result<&str, Error> {
    let first = result.interfaces.first().map(|first| first.name.as_str());
    first
        .filter(|name| check_interface_name(name).is_ok())
        .ok_or_else(|| Error::config("ingressPolicy: prevResult names no bridge first"))
}

/// Removes what was added for the container, by whichever of the two plugins. What many share stays. Nothing of
/// the configuration is needed for it: one that ADD has refused holds up no DEL.
pub fn del(request: &Request) -> Result<(), Error> {
    let label = label(request)?;
    // A previous result that cannot be read must not hold up a DEL.
    let result = request.prev_result().ok().flatten().unwrap_or_default();
    remove(&result, |other| other == label)
}

fn remove(result: &AddResult, is_stale: impl Fn(&str) -> bool) -> Result<(), Error> {
    let doing = || "remove rules".into();
    let mut socket = match Socket::netfilter() {
        // A kernel without packet filter has no rules.
        Err(Errno::PROTONOSUPPORT) => return Ok(()),
        socket => socket.doing(Code::Internal, doing)?,
    };
    let _lock = lock().doing(Code::Internal, doing)?;
    for family in Family::IP {
        let addrs: Vec<_> = rules::of_family(result, family).collect();
        match Chains::new(family, ADMIN_CHAIN).expel(&mut socket, &addrs, &is_stale) {
            // Somebody has flushed all rules, or the kernel has no tables at all.
            Ok(()) | Err(Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL) => {}
            Err(errno) => return Err(errno).doing(Code::Internal, doing),
        }
    }
    Ok(())
}

/// Checks that the container's traffic is let through.
pub fn check(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let result = request.required_prev_result()?;
    let label = label(request)?;
    let mut socket = open()?;
    for family in families(&result) {
        let chains = Chains::new(family, &config.admin_chain);
        for addr in rules::of_family(&result, family) {
            let admitted = chains.admits(&mut socket, addr, &label);
            if !admitted.doing(Code::Internal, || "list rules".into())? {
                return Err(Error::internal(format!(
                    "the rules for {addr} are not there"
                )));
            }
        }
    }
    Ok(())
}

/// Removes the rules of attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    Config::parse(request)?;
    let network = &request.network;
    let valid = request.valid_labels(MAX_COMMENT)?;
    remove(&AddResult::default(), |label| {
        label::is_of(label, network) && !valid.contains(label)
    })
}

/// Checks that the kernel has tables for rules.
pub fn status(request: &Request) -> Result<(), Error> {
    let config = Config::parse(request)?;
    let chains = Chains::new(Family::V4, &config.admin_chain);
    let asked = Socket::netfilter().and_then(|mut socket| has_table(&mut socket, &chains.table));
    asked
        .map(drop)
        .map_err(|errno| Error::new(Code::NotAvailable, refused(errno).msg))
}
