//! `macspoofchk`: a container sends under its own hardware address only.
//!
//! One table for all, made with the first such container and removed after the last:
//!
//! ```text
//! table bridge carpel-macspoof {
//!     set ports { interface }                   the host's ends
//!     set senders { interface . address }       each with its container's address
//!     chain prerouting { of senders: return; from ports: drop }
//! }
//! ```

use rustix::io::{self, Errno};

use crate::{
    error::{Code, Doing, Error},
    label,
    netfilter::{
        Family, Hook, Table, Transaction,
        expression::{Expression, Verdict, interface_name},
        has_table, lock,
        set::{self, Element, MAX_COMMENT, Part, joined},
    },
    netlink::{Socket, link::Mac},
    request::{Attachment, Request},
};

const TABLE: &str = "carpel-macspoof";
const CHAIN: &str = "prerouting";
const PORTS: &str = "ports";
const SENDERS: &str = "senders";

fn table() -> Table {
    Table {
        family: Family::Bridge,
        name: TABLE.into(),
    }
}

/// The elements of a port.
fn elements(host_name: &str, mac: Mac, label: &str) -> [(&'static str, Element); 2] {
    let name = interface_name(host_name);
    [(PORTS, name.to_vec()), (SENDERS, joined(&[&name, &mac.0]))].map(|(set, key)| {
        let element = Element {
            key,
            value: Vec::new(),
            label: label.into(),
        };
        (set, element)
    })
}

/// Lets a port take frames from this address only.
pub fn check(request: &Request, host_name: &str, mac: Mac) -> Result<(), Error> {
    let label = label::label(&request.network, request.attachment()?, MAX_COMMENT);
    let add = || -> io::Result<()> {
        let mut socket = Socket::netfilter()?;
        let _lock = lock()?;
        let table = table();
        let mut transaction = Transaction::new();
        if has_table(&mut socket, &table)? {
            // Whoever had the name before is gone.
            for (set, element) in elements(host_name, mac, &label) {
                let stale = set::elements(&mut socket, &table, set)?;
                let stale = stale
                    .into_iter()
                    .filter(|one| one.key.starts_with(&element.key[..16]));
                transaction.delete_elements(&table, set, &stale.collect::<Vec<_>>());
            }
        } else {
            make(&mut transaction, &table);
        }
        for (set, element) in elements(host_name, mac, &label) {
            transaction.add_elements(&table, set, &[element]);
        }
        transaction.commit(&mut socket)
    };
    add().doing(Code::Internal, || {
        format!("macspoofchk: check what comes from {host_name}")
    })
}

fn make(transaction: &mut Transaction, table: &Table) {
    transaction.add_table(table);
    transaction.add_set(table, PORTS, &[Part::Interface], &[], 1);
    transaction.add_set(table, SENDERS, &[Part::Interface, Part::Mac], &[], 2);
    transaction.add_chain(table, CHAIN, Some(Hook::BRIDGE_INCOMING));
    let own = vec![
        Expression::load_incoming_interface(0),
        Expression::load_source_mac(4),
        Expression::in_set(SENDERS, 0),
        Expression::verdict(Verdict::Return),
    ];
    transaction.add_rule(table, CHAIN, own);
    let others = vec![
        Expression::load_incoming_interface(0),
        Expression::in_set(PORTS, 0),
        Expression::verdict(Verdict::Drop),
    ];
    transaction.add_rule(table, CHAIN, others);
}

/// Whether the port is checked for this address.
pub fn is_checked(host_name: &str, mac: Mac) -> Result<bool, Error> {
    let find = || -> io::Result<bool> {
        let mut socket = Socket::netfilter()?;
        for (set, element) in elements(host_name, mac, "") {
            if set::element(&mut socket, &table(), set, &element.key)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    };
    find().doing(Code::Internal, || {
        "macspoofchk: list what is checked".into()
    })
}

/// Ends the check for an attachment.
pub fn end(network: &str, attachment: &Attachment) -> Result<(), Error> {
    let label = label::label(network, attachment, MAX_COMMENT);
    sweep(|other| other == label)
}

/// Ends the check for attachments that are not valid any more.
pub fn gc(request: &Request) -> Result<(), Error> {
    let valid = request.valid_labels(MAX_COMMENT)?;
    sweep(|label| label::is_of(label, &request.network) && !valid.contains(label))
}

fn sweep(is_stale: impl Fn(&str) -> bool) -> Result<(), Error> {
    let sweep = || -> io::Result<()> {
        let mut socket = Socket::netfilter()?;
        let _lock = lock()?;
        set::sweep(&mut socket, &table(), &[PORTS], &[SENDERS], is_stale)
    };
    match sweep() {
        // There is no such table, or the kernel has none at all.
        Err(Errno::NOENT | Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT) => Ok(()),
        done => done.doing(Code::Internal, || "macspoofchk: end the check".into()),
    }
}
