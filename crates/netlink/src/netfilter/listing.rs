//! Everything that the packet filter has, for somebody who wants to understand it.
//!
//! The lists are of moments that may differ: whoever changes rules meanwhile is seen half.

use rustix::io::{self, Errno};

use super::{
    Family, GETCHAIN, GETTABLE, HEADER, Table, kind, payload,
    rule::{GETRULE, nested},
    set::GETSETELEM,
    userdata::{COMMENT, find},
};
use crate::{Answer, Socket, as_text, attributes, message::Attributes};

const TABLE_DORMANT: u32 = 0x1;
const GETSET: u8 = 10;

const SET_ANONYMOUS: u32 = 0x1;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const ELEMENT_INTERVAL_END: u32 = 0x1;
const ELEMENT_CATCHALL: u32 = 0x2;

/// How a rule or chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedVerdict {
    /// As the kernel numbers them: 0 drop, 1 accept, -3 jump, …
    pub code: i32,
    /// Where a jump leads.
    pub chain: String,
}

/// A value that an element has, or that a step loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Value(Vec<u8>),
    Verdict(ListedVerdict),
}

impl Data {
    /// Reads the attributes of `struct nft_data`.
    pub fn parse(value: &[u8]) -> Option<Data> {
        let found = attributes(value, 0).next()?;
        match found.kind() {
            1 => Some(Data::Value(found.value().to_vec())),
            2 => {
                let mut verdict = ListedVerdict {
                    code: 0,
                    chain: String::new(),
                };
                for part in attributes(found.value(), 0) {
                    match part.kind() {
                        1 => verdict.code = number(part.value()).cast_signed(),
                        2 => verdict.chain = as_text(part.value()),
                        _ => {}
                    }
                }
                Some(Data::Verdict(verdict))
            }
            _ => None,
        }
    }
}

/// Where packets pass a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedHook {
    pub number: u32,
    pub priority: i32,
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// The links that a chain of the family netdev (or an ingress chain) is for.
    pub devices: Vec<String>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChain {
    pub table: Table,
    pub name: String,
    /// None for one that is only jumped to, or whose table is dormant.
    pub hook: Option<ListedHook>,
    /// What becomes of a packet at its end: 0 drop, 1 accept.
    pub policy: u32,
}

/// A step of a rule: its name, and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedStep {
    pub name: String,
    pub data: Vec<u8>,
}

/// A rule, in the order in which its chain has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    pub table: Table,
    pub chain: String,
    pub handle: u64,
    pub steps: Vec<ListedStep>,
    pub comment: Option<String>,
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedElement {
    pub key: Vec<u8>,
    /// The end of an interval of several parts, itself included.
    pub key_end: Option<Vec<u8>>,
    pub data: Option<Data>,
    /// An interval has ended just before it.
    pub ends_interval: bool,
    /// It stands for every key that there is no element of.
    pub is_catchall: bool,
    pub comment: Option<String>,
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSet {
    pub table: Table,
    pub name: String,
    /// The types of its key's parts, as the nft command numbers them: six bits each.
    pub key_type: u32,
    pub key_length: u32,
    /// The types of its values' parts.
    pub data_type: u32,
    pub is_anonymous: bool,
    pub is_map: bool,
    pub has_intervals: bool,
    pub elements: Vec<ListedElement>,
}

/// Tables, chains, rules and sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub chains: Vec<ListedChain>,
    pub rules: Vec<ListedRule>,
    pub sets: Vec<ListedSet>,
}

/// Lists everything; nothing if the kernel has no tables.
pub fn list(socket: &mut Socket) -> io::Result<Listing> {
    let all = payload(None, Attributes::default());
    let dormant: Vec<_> = match socket.dump_bytes(kind(GETTABLE), &all) {
        // The kernel has a packet filter but no tables.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Listing::default()),
        answers => answers?.iter().filter_map(dormant).collect(),
    };
    let chains = socket.dump_bytes(kind(GETCHAIN), &all)?;
    let mut chains: Vec<_> = chains.iter().filter_map(chain).collect();
    for chain in &mut chains {
        if dormant.contains(&chain.table) {
            chain.hook = None;
        }
    }
    let rules = socket.dump_bytes(kind(GETRULE), &all)?;
    let found = socket.dump_bytes(kind(GETSET), &all)?;
    let mut sets: Vec<_> = found.iter().filter_map(set).collect();
    for set in &mut sets {
        let of = Attributes::default()
            .text(1, &set.table.name)
            .text(2, &set.name);
        let asked = payload(Some(set.table.family), of);
        match socket.dump_bytes(kind(GETSETELEM), &asked) {
            // It is gone again.
            Err(Errno::NOENT) => {}
            answers => {
                set.elements = answers?
                    .iter()
                    .flat_map(|answer| elements(&answer.payload))
                    .collect();
            }
        }
    }
    Ok(Listing {
        chains,
        rules: rules.iter().filter_map(rule).collect(),
        sets,
    })
}

/// A number as the packet filter has it; 0 if it is too short.
pub fn number(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn family(answer: &Answer) -> Option<Family> {
    Family::from_number(*answer.payload.first()?)
}

/// A table that no packet enters for now.
fn dormant(answer: &Answer) -> Option<Table> {
    let (mut name, mut flags) = (String::new(), 0);
    for attribute in attributes(&answer.payload, HEADER) {
        match attribute.kind() {
            1 => name = as_text(attribute.value()),
            2 => flags = number(attribute.value()),
            _ => {}
        }
    }
    let family = family(answer)?;
    (flags & TABLE_DORMANT != 0).then_some(Table { family, name })
}

fn chain(answer: &Answer) -> Option<ListedChain> {
    let mut chain = ListedChain {
        table: Table {
            family: family(answer)?,
            name: String::new(),
        },
        name: String::new(),
        hook: None,
        policy: 1,
    };
    let mut type_name = String::new();
    for attribute in attributes(&answer.payload, HEADER) {
        let value = attribute.value();
        match attribute.kind() {
            1 => chain.table.name = as_text(value),
            3 => chain.name = as_text(value),
            4 => chain.hook = Some(hook(value)),
            5 => chain.policy = number(value),
            7 => type_name = as_text(value),
            _ => {}
        }
    }
    if let Some(hook) = &mut chain.hook {
        hook.kind = type_name;
    }
    Some(chain)
}

fn hook(value: &[u8]) -> ListedHook {
    let mut hook = ListedHook {
        number: 0,
        priority: 0,
        kind: String::new(),
        devices: Vec::new(),
    };
    for attribute in attributes(value, 0) {
        let value = attribute.value();
        match attribute.kind() {
            1 => hook.number = number(value),
            2 => hook.priority = number(value).cast_signed(),
            3 => hook.devices.push(as_text(value)),
            4 => {
                let names = attributes(value, 0).map(|one| as_text(one.value()));
                hook.devices.extend(names);
            }
            _ => {}
        }
    }
    hook.devices.dedup();
    hook
}

fn rule(answer: &Answer) -> Option<ListedRule> {
    let mut rule = ListedRule {
        table: Table {
            family: family(answer)?,
            name: String::new(),
        },
        chain: String::new(),
        handle: 0,
        steps: Vec::new(),
        comment: None,
    };
    for attribute in attributes(&answer.payload, HEADER) {
        let value = attribute.value();
        match attribute.kind() {
            1 => rule.table.name = as_text(value),
            2 => rule.chain = as_text(value),
            3 => rule.handle = u64::from_be_bytes(value.try_into().ok()?),
            4 => {
                for step in attributes(value, 0) {
                    rule.steps.push(ListedStep {
                        name: as_text(&nested(step.value(), &[1])?),
                        data: nested(step.value(), &[2]).unwrap_or_default(),
                    });
                }
            }
            7 => rule.comment = find(value, COMMENT),
            _ => {}
        }
    }
    Some(rule)
}

fn set(answer: &Answer) -> Option<ListedSet> {
    let mut set = ListedSet {
        table: Table {
            family: family(answer)?,
            name: String::new(),
        },
        name: String::new(),
        key_type: 0,
        key_length: 0,
        data_type: 0,
        is_anonymous: false,
        is_map: false,
        has_intervals: false,
        elements: Vec::new(),
    };
    for attribute in attributes(&answer.payload, HEADER) {
        let value = attribute.value();
        match attribute.kind() {
            1 => set.table.name = as_text(value),
            2 => set.name = as_text(value),
            3 => {
                let flags = number(value);
                set.is_anonymous = flags & SET_ANONYMOUS != 0;
                set.has_intervals = flags & SET_INTERVAL != 0;
                set.is_map = flags & SET_MAP != 0;
            }
            4 => set.key_type = number(value),
            5 => set.key_length = number(value),
            6 => set.data_type = number(value),
            _ => {}
        }
    }
    Some(set)
}

fn elements(answer: &[u8]) -> Vec<ListedElement> {
    let mut found = Vec::new();
    for list in attributes(answer, HEADER).filter(|attribute| attribute.kind() == 3) {
        found.extend(attributes(list.value(), 0).map(|one| element(one.value())));
    }
    found
}

fn element(value: &[u8]) -> ListedElement {
    let bytes = |value: &[u8]| match Data::parse(value) {
        Some(Data::Value(bytes)) => bytes,
        _ => Vec::new(),
    };
    let mut element = ListedElement {
        key: Vec::new(),
        key_end: None,
        data: None,
        ends_interval: false,
        is_catchall: false,
        comment: None,
    };
    for part in attributes(value, 0) {
        let value = part.value();
        match part.kind() {
            1 => element.key = bytes(value),
            2 => element.data = Data::parse(value),
            3 => {
                element.ends_interval = number(value) & ELEMENT_INTERVAL_END != 0;
                element.is_catchall = number(value) & ELEMENT_CATCHALL != 0;
            }
            6 => element.comment = find(value, COMMENT),
            10 => element.key_end = Some(bytes(value)),
            _ => {}
        }
    }
    element
}
