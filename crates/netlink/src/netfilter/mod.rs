//! The packet filter through nfnetlink: tables, chains, rules, and sets and maps of elements.
//!
//! Changes go in transactions: all messages between begin and end take effect at once or not at
//! all. One that is refused costs its sender ten milliseconds or more, until every processor has passed
//! a quiet point; so what may well be refused is asked about first. Numbers are big-endian here,
//! unlike in routing messages.

pub mod conntrack;
pub mod expression;
pub mod listing;
pub mod rule;
pub mod set;
mod userdata;

use std::{net::IpAddr, os::fd::OwnedFd};

use rustix::{
    fs::{self, CWD, FlockOperation, Mode, OFlags},
    io::{self, Errno},
};

use crate::{Answer, Batch, Socket, as_text, attributes, message::Attributes};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const SUBSYSTEM: u8 = 10;

const NEWTABLE: u8 = 0;
const GETTABLE: u8 = 1;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const GETCHAIN: u8 = 4;

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

/// Size of `struct nfgenmsg`, which comes before the attributes.
const HEADER: usize = 4;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// IPv4 and IPv6.
    Inet,
    Arp,
    /// Frames on bridges.
    Bridge,
    /// Everything that comes in or goes out by a link.
    Netdev,
}

impl Family {
    pub const IP: [Family; 2] = [Family::V4, Family::V6];
    const ALL: [Family; 6] = [
        Family::Inet,
        Family::V4,
        Family::Arp,
        Family::Netdev,
        Family::Bridge,
        Family::V6,
    ];

    pub fn of(addr: IpAddr) -> Family {
        if addr.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }

    fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::V4 => 2,
            Family::Arp => 3,
            Family::Netdev => 5,
            Family::Bridge => 7,
            Family::V6 => 10,
        }
    }

    fn from_number(number: u8) -> Option<Family> {
        Family::ALL
            .into_iter()
            .find(|family| family.number() == number)
    }

    /// The family's name, as the nft command has it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::V4 => "ip",
            Family::Arp => "arp",
            Family::Netdev => "netdev",
            Family::Bridge => "bridge",
            Family::V6 => "ip6",
        }
    }

    /// Bytes in an address.
    pub fn width(self) -> usize {
        if self == Family::V4 { 4 } else { 16 }
    }
}

/// Where packets pass a chain, and when among other chains.
#[derive(Clone, Copy)]
pub struct Hook {
    kind: &'static str,
    number: u32,
    priority: i32,
}

impl Hook {
    /// Where new connections from elsewhere may be sent to another destination.
    pub const DNAT_INCOMING: Hook = Hook::new("nat", 0, -100);
    /// The same for connections of this machine's own processes.
    pub const DNAT_OUTGOING: Hook = Hook::new("nat", 3, -100);
    /// Where source addresses are translated.
    pub const SNAT: Hook = Hook::new("nat", 4, 100);
    /// Where what is not for this machine is let through or not.
    pub const FORWARD: Hook = Hook::new("filter", 2, 0);
    /// Where a packet from elsewhere is looked at first, before any translation.
    pub const INCOMING: Hook = Hook::new("filter", 0, -300);
    /// Where a bridge looks at a frame first.
    pub const BRIDGE_INCOMING: Hook = Hook::new("filter", 0, -300);

    const fn new(kind: &'static str, number: u32, priority: i32) -> Hook {
        Hook {
            kind,
            number,
            priority,
        }
    }
}

/// A table and the family it filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: String,
}

/// Messages that take effect together.
pub struct Transaction(Batch);

fn kind(message: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, message])
}

fn payload(family: Option<Family>, attributes: Attributes) -> Vec<u8> {
    let mut bytes = vec![family.map_or(0, Family::number), 0, 0, 0];
    bytes.extend(attributes.into_bytes());
    bytes
}

impl Default for Transaction {
    fn default() -> Transaction {
        Transaction::new()
    }
}

impl Transaction {
    pub fn new() -> Transaction {
        let mut batch = Batch::default();
        batch.push_silent(NFNL_MSG_BATCH_BEGIN, &[0, 0, 0, SUBSYSTEM]);
        Transaction(batch)
    }

    fn push(&mut self, message: u8, flags: u16, family: Family, attributes: Attributes) {
        self.0
            .push(kind(message), flags, &payload(Some(family), attributes));
    }

    pub fn commit(mut self, socket: &mut Socket) -> io::Result<()> {
        self.0
            .push_silent(NFNL_MSG_BATCH_END, &[0, 0, 0, SUBSYSTEM]);
        socket
            .send(self.0)
            .map(drop)
            .map_err(|refused| refused.errno)
    }

    /// A table that must not be there yet.
    pub fn add_table(&mut self, table: &Table) {
        let attributes = Attributes::default().text(1, &table.name);
        self.push(
            NEWTABLE,
            NLM_F_CREATE | NLM_F_EXCL,
            table.family,
            attributes,
        );
    }

    pub fn delete_table(&mut self, table: &Table) {
        self.push(
            DELTABLE,
            0,
            table.family,
            Attributes::default().text(1, &table.name),
        );
    }

    /// A chain that must not be there yet; one without a hook is only jumped to.
    pub fn add_chain(&mut self, table: &Table, name: &str, hook: Option<Hook>) {
        let mut attributes = Attributes::default().text(1, &table.name).text(3, name);
        if let Some(hook) = hook {
            let place = Attributes::default()
                .number(1, hook.number)
                .number(2, hook.priority.cast_unsigned());
            attributes = attributes.nest(4, place).text(7, hook.kind);
        }
        self.push(
            NEWCHAIN,
            NLM_F_CREATE | NLM_F_EXCL,
            table.family,
            attributes,
        );
    }
}

/// All tables whose names start with `prefix`; none if the kernel has no tables.
pub fn tables(socket: &mut Socket, prefix: &str) -> io::Result<Vec<Table>> {
    let answers = match socket.dump_bytes(kind(GETTABLE), &payload(None, Attributes::default())) {
        // The kernel has a packet filter but no tables.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Vec::new()),
        answers => answers?,
    };
    let parse = |answer: &Answer| {
        let name = attributes(&answer.payload, HEADER).find(|attribute| attribute.kind() == 1)?;
        Some(Table {
            family: Family::from_number(*answer.payload.first()?)?,
            name: as_text(name.value()),
        })
    };
    let all = answers.iter().filter_map(parse);
    Ok(all.filter(|table| table.name.starts_with(prefix)).collect())
}

pub fn has_table(socket: &mut Socket, table: &Table) -> io::Result<bool> {
    let name = Attributes::default().text(1, &table.name);
    ask(socket, GETTABLE, table, name)
}

pub fn has_chain(socket: &mut Socket, table: &Table, name: &str) -> io::Result<bool> {
    let attributes = Attributes::default().text(1, &table.name).text(3, name);
    ask(socket, GETCHAIN, table, attributes)
}

/// Whether there is what is asked for.
fn ask(
    socket: &mut Socket,
    message: u8,
    table: &Table,
    attributes: Attributes,
) -> io::Result<bool> {
    let mut batch = Batch::default();
    batch.push(kind(message), 0, &payload(Some(table.family), attributes));
    match socket.send(batch) {
        Ok(_) => Ok(true),
        Err(refused) if refused.errno == Errno::NOENT => Ok(false),
        Err(refused) => Err(refused.errno),
    }
}

/// Keeps others of this host's network namespace out until it is dropped.
///
/// It must be dropped before the socket is closed: closing takes long if something was removed.
pub fn lock() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = fs::openat(CWD, "/proc/self/ns/net", flags, Mode::empty())?;
    while let Err(errno) = fs::flock(&namespace, FlockOperation::LockExclusive) {
        if errno != Errno::INTR {
            return Err(errno);
        }
    }
    Ok(namespace)
}
