//! Sets and maps, and their elements.
//!
//! A key or value of several parts is its parts one after the other, each padded to four bytes.

use rustix::io::{self, Errno};

use super::{
    Family, HEADER, NLM_F_CREATE, NLM_F_EXCL, Table, Transaction, ask, kind, payload,
    userdata::{COMMENT, append, find},
};
use crate::{Batch, Socket, attributes, message::Attributes};

const NEWSET: u8 = 9;
const GETSET: u8 = 10;
const NEWSETELEM: u8 = 12;
pub(super) const GETSETELEM: u8 = 13;
const DELSETELEM: u8 = 14;

const IS_MAP: u32 = 0x8;

/// The tag under which nft finds the byte order of a set's keys.
const KEY_BYTE_ORDER: u8 = 0;
const HOST_ORDER: u32 = 1;

/// nft shows no longer comment, in bytes.
pub const MAX_COMMENT: usize = 126;

/// What a part of a key or value is. The kernel only needs the length; the nft command shows parts by
/// these numbers of its own.
#[derive(Clone, Copy)]
pub enum Part {
    V4 = 7,
    V6 = 8,
    Protocol = 12,
    Mac = 9,
    Port = 13,
    Interface = 41,
}

impl Part {
    pub fn address(family: Family) -> Part {
        if family == Family::V4 {
            Part::V4
        } else {
            Part::V6
        }
    }

    fn length(self) -> u32 {
        match self {
            Part::V6 | Part::Interface => 16,
            Part::Mac => 8,
            _ => 4,
        }
    }
}

fn type_of(parts: &[Part]) -> u32 {
    parts.iter().fold(0, |all, part| all << 6 | *part as u32)
}

fn length_of(parts: &[Part]) -> u32 {
    parts.iter().map(|part| part.length()).sum()
}

/// A key or value of these parts.
pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend(*part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// One element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    /// Empty in a set.
    pub value: Vec<u8>,
    /// Whose it is; empty if that does not matter.
    pub label: String,
}

impl Transaction {
    /// A set that must not be there yet, or with `value` parts a map. `id` names it in this transaction.
    pub fn add_set(&mut self, table: &Table, name: &str, key: &[Part], value: &[Part], id: u32) {
        let mut attributes = Attributes::default()
            .text(1, &table.name)
            .text(2, name)
            .number(3, if value.is_empty() { 0 } else { IS_MAP })
            .number(4, type_of(key))
            .number(5, length_of(key));
        if let [Part::Interface] = key {
            // The nft command takes a name for a big-endian number if it is not told.
            let mut data = vec![KEY_BYTE_ORDER, 4];
            data.extend(HOST_ORDER.to_ne_bytes());
            attributes = attributes.bytes(13, &data);
        }
        if !value.is_empty() {
            attributes = attributes
                .number(6, type_of(value))
                .number(7, length_of(value));
        }
        self.push(
            NEWSET,
            NLM_F_CREATE | NLM_F_EXCL,
            table.family,
            attributes.number(10, id),
        );
    }

    /// Adds elements, none of which may be there yet.
    pub fn add_elements(&mut self, table: &Table, set: &str, elements: &[Element]) {
        if !elements.is_empty() {
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            self.push(
                NEWSETELEM,
                flags,
                table.family,
                listed(table, set, elements),
            );
        }
    }

    /// Removes elements, all of which must be there.
    pub fn delete_elements(&mut self, table: &Table, set: &str, elements: &[Element]) {
        if !elements.is_empty() {
            self.push(DELSETELEM, 0, table.family, listed(table, set, elements));
        }
    }
}

fn listed(table: &Table, set: &str, elements: &[Element]) -> Attributes {
    let list = elements.iter().fold(Attributes::default(), |all, element| {
        let mut one = Attributes::default().data(1, &element.key);
        if !element.value.is_empty() {
            one = one.data(2, &element.value);
        }
        if !element.label.is_empty() {
            one = one.bytes(6, &append(Vec::new(), COMMENT, &element.label));
        }
        all.nest(1, one)
    });
    Attributes::default()
        .text(1, &table.name)
        .text(2, set)
        .nest(3, list)
}

pub fn has_set(socket: &mut Socket, table: &Table, name: &str) -> io::Result<bool> {
    let attributes = Attributes::default().text(1, &table.name).text(2, name);
    ask(socket, GETSET, table, attributes)
}

/// All elements of a set; none if there is no such set.
pub fn elements(socket: &mut Socket, table: &Table, set: &str) -> io::Result<Vec<Element>> {
    let attributes = Attributes::default().text(1, &table.name).text(2, set);
    let asked = payload(Some(table.family), attributes);
    let answers = match socket.dump_bytes(kind(GETSETELEM), &asked) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        answers => answers?,
    };
    let all = answers.iter().map(|answer| parse(&answer.payload));
    Ok(all.flatten().collect())
}

/// The element with this key, if the set has it.
pub fn element(
    socket: &mut Socket,
    table: &Table,
    set: &str,
    key: &[u8],
) -> io::Result<Option<Element>> {
    let one = Element {
        key: key.into(),
        value: Vec::new(),
        label: String::new(),
    };
    let mut batch = Batch::default();
    let asked = payload(Some(table.family), listed(table, set, &[one]));
    batch.push(kind(GETSETELEM), 0, &asked);
    match socket.send(batch) {
        Ok(answers) => {
            let mut found = answers.iter().flat_map(|answer| parse(&answer.payload));
            Ok(found.next())
        }
        Err(refused) if refused.errno == Errno::NOENT => Ok(None),
        Err(refused) => Err(refused.errno),
    }
}

/// Removes from sets what `is_stale` says of its label. The table goes if nothing is left in `counted`.
pub fn sweep(
    socket: &mut Socket,
    table: &Table,
    counted: &[&str],
    others: &[&str],
    is_stale: impl Fn(&str) -> bool,
) -> io::Result<()> {
    let mut transaction = Transaction::new();
    let (mut stale, mut left) = (0, 0);
    for (index, set) in counted.iter().chain(others).enumerate() {
        let (gone, stay): (Vec<_>, Vec<_>) = elements(socket, table, set)?
            .into_iter()
            .partition(|element| is_stale(&element.label));
        transaction.delete_elements(table, set, &gone);
        stale += gone.len();
        left += if index < counted.len() { stay.len() } else { 0 };
    }
    if left == 0 {
        transaction = Transaction::new();
        transaction.delete_table(table);
    } else if stale == 0 {
        return Ok(());
    }
    transaction.commit(socket)
}

/// The elements in one answer.
fn parse(answer: &[u8]) -> Vec<Element> {
    let mut found = Vec::new();
    for list in attributes(answer, HEADER).filter(|attribute| attribute.kind() == 3) {
        for one in attributes(list.value(), 0) {
            let mut element = Element {
                key: Vec::new(),
                value: Vec::new(),
                label: String::new(),
            };
            for part in attributes(one.value(), 0) {
                let data = || {
                    attributes(part.value(), 0)
                        .find(|inner| inner.kind() == 1)
                        .map(|inner| inner.value().to_vec())
                        .unwrap_or_default()
                };
                match part.kind() {
                    1 => element.key = data(),
                    2 => element.value = data(),
                    6 => element.label = find(part.value(), COMMENT).unwrap_or_default(),
                    _ => {}
                }
            }
            found.push(element);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_padded() {
        assert_eq!(joined(&[&[6], &[0, 80]]), [6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(type_of(&[Part::Protocol, Part::Port]), 12 << 6 | 13);
    }
}
