//! The packet filter through nfnetlink: just what masquerading needs.
//!
//! Changes go in transactions: all messages between begin and end take effect at once or not at
//! all. Numbers are big-endian here, unlike in routing messages.

pub mod masquerade;
mod message;

use std::collections::BTreeSet;

use message::{Attributes, Expression};
use rustix::io::{self, Errno};

use crate::{
    ipnet::IpNet,
    netlink::{Answer, Batch, Socket, as_text, attributes},
};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;
const SUBSYSTEM: u8 = 10;

const NEWTABLE: u8 = 0;
const GETTABLE: u8 = 1;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const NEWRULE: u8 = 6;
const NEWSET: u8 = 9;
const NEWSETELEM: u8 = 12;
const GETSETELEM: u8 = 13;
const DELSETELEM: u8 = 14;
const GETGEN: u8 = 16;

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Size of `struct nfgenmsg`, which comes before the attributes.
const HEADER: usize = 4;

const NF_INET_POST_ROUTING: u32 = 4;
/// Where source addresses are translated.
const PRIORITY_SRCNAT: i32 = 100;

/// The data type by which the nft command shows 16 bytes that have no other meaning.
const SHOWN_AS_IPV6: u32 = 8;

/// A table and the family it filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: u8,
    pub name: String,
}

/// The key of an element of a set.
pub type Key = [u8; 16];

/// State of the rule set at one moment: it changes with every transaction of anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generation(u32);

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
    /// With a generation, the transaction is refused with `RESTART` if the rule set has changed.
    fn new(only_in: Option<Generation>) -> Transaction {
        let mut attributes = Attributes::default();
        if let Some(Generation(number)) = only_in {
            attributes = attributes.number(NFNL_BATCH_GENID, number);
        }
        let mut begin = vec![0, 0, 0, SUBSYSTEM];
        begin.extend(attributes.into_bytes());
        let mut batch = Batch::default();
        batch.push_silent(NFNL_MSG_BATCH_BEGIN, &begin);
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

    /// A set of keys.
    fn add_set(&mut self, table: &Table, name: &str) {
        let attributes = Attributes::default()
            .text(1, &table.name)
            .text(2, name)
            .number(4, SHOWN_AS_IPV6)
            .number(5, size_of::<Key>() as u32)
            .number(10, 1);
        self.push(NEWSET, NLM_F_CREATE | NLM_F_EXCL, table.family, attributes);
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

    /// An element, with a comment for people; one that is there already is fine.
    fn add_element(&mut self, table: &Table, set: &str, key: &Key, comment: &str) {
        let element = Attributes::default()
            .data(1, key)
            .bytes(6, &message::comment(comment));
        self.push(
            NEWSETELEM,
            NLM_F_CREATE,
            table.family,
            elements(table, set, element),
        );
    }

    fn delete_element(&mut self, table: &Table, set: &str, key: &Key) {
        let element = Attributes::default().data(1, key);
        self.push(DELSETELEM, 0, table.family, elements(table, set, element));
    }
}

fn elements(table: &Table, set: &str, element: Attributes) -> Attributes {
    let list = Attributes::default().nest(1, element);
    Attributes::default()
        .text(1, &table.name)
        .text(2, set)
        .nest(3, list)
}

/// All tables whose names start with `prefix`.
fn tables(socket: &mut Socket, prefix: &str) -> io::Result<Vec<Table>> {
    let answers = socket.dump(kind(GETTABLE), &payload(0, Attributes::default()))?;
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

/// The keys in a set. With transactions going on beside it may miss some.
fn keys(socket: &mut Socket, table: &Table, set: &str) -> io::Result<BTreeSet<Key>> {
    let attributes_asked = Attributes::default().text(1, &table.name).text(2, set);
    let answers = socket.dump(kind(GETSETELEM), &payload(table.family, attributes_asked))?;
    let mut keys = BTreeSet::new();
    for answer in &answers {
        for list in attributes(&answer.payload, HEADER).filter(|list| list.kind() == 3) {
            for element in attributes(list.value(), 0) {
                let key = attributes(element.value(), 0).find(|inner| inner.kind() == 1);
                let value = key.and_then(|key| {
                    let data = attributes(key.value(), 0).find(|data| data.kind() == 1)?;
                    Key::try_from(data.value()).ok()
                });
                keys.extend(value);
            }
        }
    }
    Ok(keys)
}

fn generation(socket: &mut Socket) -> io::Result<Generation> {
    let mut batch = Batch::default();
    batch.push(kind(GETGEN), 0, &payload(0, Attributes::default()));
    let answers = socket.send(batch).map_err(|refused| refused.errno)?;
    answers
        .iter()
        .flat_map(|answer| attributes(&answer.payload, HEADER))
        .find(|attribute| attribute.kind() == 1)
        .and_then(|attribute| attribute.value().try_into().ok())
        .map(|bytes| Generation(u32::from_be_bytes(bytes)))
        .ok_or(Errno::PROTO)
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
