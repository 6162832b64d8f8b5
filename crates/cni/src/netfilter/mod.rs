//! The packet filter through nfnetlink: just what masquerading needs.
//!
//! Changes go in transactions: all messages between begin and end take effect at once or not at
//! all. One that is refused costs its sender ten milliseconds or more, until every processor has passed
//! a quiet point; so what may well be refused is asked about first. Numbers are big-endian here,
//! unlike in routing messages.

pub mod masquerade;
mod message;

use message::{Attributes, Expression};
use rustix::io::{self, Errno};

use crate::{
    ipnet::IpNet,
    netlink::{Answer, Batch, Socket, as_text, attributes},
};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const SUBSYSTEM: u8 = 10;

const NEWTABLE: u8 = 0;
const GETTABLE: u8 = 1;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const NEWRULE: u8 = 6;

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Size of `struct nfgenmsg`, which comes before the attributes.
const HEADER: usize = 4;

const NF_INET_POST_ROUTING: u32 = 4;
/// Where source addresses are translated.
const PRIORITY_SRCNAT: i32 = 100;

/// A table and the family it filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: u8,
    pub name: String,
}

/// Messages that take effect together.
struct Transaction(Batch);

fn kind(message: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, message])
}

fn payload(family: u8, attributes: Attributes) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    bytes.extend(attributes.into_bytes());
    bytes
}

impl Transaction {
    fn new() -> Transaction {
        let mut batch = Batch::default();
        batch.push_silent(NFNL_MSG_BATCH_BEGIN, &[0, 0, 0, SUBSYSTEM]);
        Transaction(batch)
    }

    fn push(&mut self, message: u8, flags: u16, family: u8, attributes: Attributes) {
        self.0
            .push(kind(message), flags, &payload(family, attributes));
    }

    fn commit(mut self, socket: &mut Socket) -> io::Result<()> {
        self.0
            .push_silent(NFNL_MSG_BATCH_END, &[0, 0, 0, SUBSYSTEM]);
        socket
            .send(self.0)
            .map(drop)
            .map_err(|refused| refused.errno)
    }

    /// A table that must not be there yet.
    fn add_table(&mut self, table: &Table) {
        let attributes = Attributes::default().text(1, &table.name);
        self.push(
            NEWTABLE,
            NLM_F_CREATE | NLM_F_EXCL,
            table.family,
            attributes,
        );
    }

    fn delete_table(&mut self, table: &Table) {
        self.push(
            DELTABLE,
            0,
            table.family,
            Attributes::default().text(1, &table.name),
        );
    }

    /// A chain through which new connections go when they leave the machine.
    fn add_postrouting_chain(&mut self, table: &Table, name: &str) {
        let hook = Attributes::default()
            .number(1, NF_INET_POST_ROUTING)
            .number(2, PRIORITY_SRCNAT.cast_unsigned());
        let attributes = Attributes::default()
            .text(1, &table.name)
            .text(3, name)
            .nest(4, hook)
            .text(7, "nat");
        self.push(
            NEWCHAIN,
            NLM_F_CREATE | NLM_F_EXCL,
            table.family,
            attributes,
        );
    }

    fn add_rule(&mut self, table: &Table, chain: &str, expressions: Vec<Expression>) {
        let attributes = Attributes::default()
            .text(1, &table.name)
            .text(2, chain)
            .nest(4, message::expressions(expressions));
        self.push(
            NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            table.family,
            attributes,
        );
    }
}

/// All tables whose names start with `prefix`.
fn tables(socket: &mut Socket, prefix: &str) -> io::Result<Vec<Table>> {
    let answers = socket.dump_bytes(kind(GETTABLE), &payload(0, Attributes::default()))?;
    let parse = |answer: &Answer| {
        let name = attributes(&answer.payload, HEADER).find(|attribute| attribute.kind() == 1)?;
        Some(Table {
            family: *answer.payload.first()?,
            name: as_text(name.value()),
        })
    };
    let all = answers.iter().filter_map(parse);
    Ok(all.filter(|table| table.name.starts_with(prefix)).collect())
}

fn has_table(socket: &mut Socket, table: &Table) -> io::Result<bool> {
    let mut batch = Batch::default();
    let name = Attributes::default().text(1, &table.name);
    batch.push(kind(GETTABLE), 0, &payload(table.family, name));
    match socket.send(batch) {
        Ok(_) => Ok(true),
        Err(refused) if refused.errno == Errno::NOENT => Ok(false),
        Err(refused) => Err(refused.errno),
    }
}

/// The match "from this network to outside of it, but not to a multicast group", then masquerade.
fn masquerade_expressions(subnet: &IpNet) -> Vec<Expression> {
    let (source, destination, multicast, multicast_mask) = if subnet.addr().is_ipv4() {
        (12, 16, 0xe0, 0xf0)
    } else {
        (8, 24, 0xff, 0xff)
    };
    let mut expressions = Vec::new();
    expressions.extend(message::in_network(source, subnet, true));
    expressions.extend(message::in_network(destination, subnet, false));
    expressions.extend(message::masked(
        destination,
        &[multicast_mask],
        &[multicast],
        false,
    ));
    expressions.push(Expression::masquerade());
    expressions
}
