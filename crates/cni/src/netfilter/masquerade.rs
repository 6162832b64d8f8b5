//! Masquerading: traffic of pods that leaves their subnet carries the address of the machine.
//!
//! One table per subnet, made with the subnet's first pod and removed with its last:
//!
//! ```text
//! table ip carpel-masq-10.88.0.0-16 {
//!     set pods { a key for each attachment, with a comment }
//!     chain postrouting { type nat hook postrouting priority srcnat
//!         ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 not to multicast, masquerade }
//! }
//! ```
//!
//! The set only counts: no packet looks at it. So one rule serves any number of pods, an ADD to a
//! subnet in use is a single small transaction, and a DEL needs no address, only the attachment's
//! name. A table is removed in a transaction that is void if anything changed since its set was seen
//! to be empty, so a pod that is added meanwhile never loses its rule.

use rustix::io::{self, Errno};

use super::{
    Generation, Key, Table, Transaction, generation, keys, masquerade_expressions, tables,
};
use crate::{ipnet::IpNet, netlink::Socket, request::Attachment};

const PREFIX: &str = "carpel-masq-";
const SET: &str = "pods";
const CHAIN: &str = "postrouting";

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// How often a transaction that others overtook is tried again. Each time somebody got ahead.
const TRIES: usize = 1000;

/// Masquerades an attachment's traffic that leaves one of `subnets`. Doing it twice is fine.
pub fn add(network: &str, attachment: &Attachment, subnets: &[IpNet]) -> io::Result<()> {
    let mut socket = Socket::netfilter()?;
    let key = key(network, attachment);
    let comment = format!(
        "{network} {} {}",
        attachment.container, attachment.interface
    );
    subnets
        .iter()
        .try_for_each(|subnet| add_to(&mut socket, subnet, &key, &comment))
}

fn add_to(socket: &mut Socket, subnet: &IpNet, key: &Key, comment: &str) -> io::Result<()> {
    let table = table(subnet);
    for _ in 0..TRIES {
        let mut join = Transaction::new(None);
        join.add_element(&table, SET, key, comment);
        match join.commit(socket) {
            Err(Errno::NOENT) => {}
            done => return done,
        }
        let mut create = Transaction::new(None);
        create.add_table(&table);
        create.add_set(&table, SET);
        create.add_postrouting_chain(&table, CHAIN);
        create.add_rule(&table, CHAIN, masquerade_expressions(subnet));
        create.add_element(&table, SET, key, comment);
        match create.commit(socket) {
            // Another pod was first.
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// Ends the masquerading of an attachment. None is fine.
pub fn remove(network: &str, attachment: &Attachment) -> io::Result<()> {
    let key = key(network, attachment);
    each_table(|socket, table| {
        let mut leave = Transaction::new(None);
        leave.delete_element(table, SET, &key);
        match leave.commit(socket) {
            Ok(()) => remove_if_empty(socket, table),
            // Of another subnet.
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    })
}

/// Ends the masquerading of everything of a network but the attachments that are kept.
pub fn retain<'a>(network: &str, kept: impl Iterator<Item = &'a Attachment>) -> io::Result<()> {
    let kept: Vec<Key> = kept.map(|attachment| key(network, attachment)).collect();
    let ours = hash(&[network]).to_be_bytes();
    each_table(|socket, table| {
        for stale in keys(socket, table, SET)? {
            if stale.starts_with(&ours) && !kept.contains(&stale) {
                let mut leave = Transaction::new(None);
                leave.delete_element(table, SET, &stale);
                match leave.commit(socket) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        remove_if_empty(socket, table)
    })
}

/// Does something with every table of ours. One that is gone meanwhile is fine, as is a kernel that
/// has no tables at all.
fn each_table(work: impl Fn(&mut Socket, &Table) -> io::Result<()>) -> io::Result<()> {
    let found =
        Socket::netfilter().and_then(|mut socket| Ok((tables(&mut socket, PREFIX)?, socket)));
    let (tables, mut socket) = match found {
        Ok(found) => found,
        Err(Errno::PROTONOSUPPORT | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    for table in tables {
        match work(&mut socket, &table) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn remove_if_empty(socket: &mut Socket, table: &Table) -> io::Result<()> {
    for _ in 0..TRIES {
        let now: Generation = generation(socket)?;
        if !keys(socket, table, SET)?.is_empty() {
            return Ok(());
        }
        let mut remove = Transaction::new(Some(now));
        remove.delete_table(table);
        match remove.commit(socket) {
            Err(Errno::RESTART) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// The table of a subnet. Its name can be typed: the nft command knows no colon in a name.
fn table(subnet: &IpNet) -> Table {
    let network = subnet.network();
    let addr = network.addr().to_string().replace(':', "_");
    Table {
        family: if network.addr().is_ipv4() {
            NFPROTO_IPV4
        } else {
            NFPROTO_IPV6
        },
        name: format!("{PREFIX}{addr}-{}", network.prefix()),
    }
}

/// Names an attachment: its network in the first half, container and interface in the second.
fn key(network: &str, attachment: &Attachment) -> Key {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&hash(&[network]).to_be_bytes());
    let rest = hash(&[&attachment.container, &attachment.interface]);
    key[8..].copy_from_slice(&rest.to_be_bytes());
    key
}

/// FNV-1a with a zero after each part. It must never change: a DEL may come from a later version.
pub fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_typed() {
        let name = |text: &str| table(&text.parse().unwrap()).name;
        assert_eq!(name("10.88.3.4/16"), "carpel-masq-10.88.0.0-16");
        assert_eq!(name("fd00:88::5/64"), "carpel-masq-fd00_88__-64");
    }

    #[test]
    fn keys_do_not_change_with_versions() {
        let attachment = Attachment {
            container: "abc".into(),
            interface: "eth0".into(),
        };
        assert_eq!(hash(&[]), 0xcbf2_9ce4_8422_2325);
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        let hex: String = key("net", &attachment)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, "e53f18baa0319ec8b8fe68676b661760");
    }
}
