//! Masquerading: traffic of pods that leaves their subnet carries the address of the machine.
//!
//! One table per network and subnet, made with the network's first pod and removed after its last:
//!
//! ```text
//! table ip carpel-masq/NETWORK/10.88.0.0/16 {
//!     chain postrouting {
//!         type nat hook postrouting priority srcnat
//!         ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16, not to multicast: masquerade
//!     }
//! }
//! ```
//!
//! One rule serves any number of pods, so an ADD only looks whether the table is there. Nothing is
//! noted per pod: the kernel makes whoever took something out of its tables wait for ten
//! milliseconds or more, which every DEL would pay. What tells the last pod is that no link of the
//! network is left; whoever looks at links and then at tables holds the lock, and an ADD has made its
//! link before, so a pod that is added while another leaves never loses its rule.

use rustix::io::{self, Errno};

use crate::{
    error::{Code, Doing, Error},
    hash::hash,
    ipnet::IpNet,
    netfilter::{
        Family, Hook, Table, Transaction,
        expression::{Expression, in_network, masked},
        has_table, lock, tables,
    },
    netlink::Socket,
};

const PREFIX: &str = "carpel-masq";
const CHAIN: &str = "postrouting";

/// A longer name of a network is replaced by its hash, so that the table's name fits.
const MAX_NETWORK: usize = 128;

/// Checks an `ipMasqBackend`. Both names stand for the same packets being masqueraded; how is up to the
/// plugin.
pub fn check_backend(name: &str) -> Result<(), Error> {
    match name {
        "" | "iptables" | "nftables" => Ok(()),
        other => Err(Error::config(format!("unknown ipMasqBackend {other:?}"))),
    }
}

/// Masquerades what leaves `subnets`, unless that is so already. The pod's link must be there.
pub fn ensure(network: &str, subnets: &[IpNet]) -> io::Result<()> {
    let mut socket = Socket::netfilter()?;
    let _lock = lock()?;
    for subnet in subnets {
        let table = table(network, subnet);
        if has_table(&mut socket, &table)? {
            continue;
        }
        let mut transaction = Transaction::new();
        transaction.add_table(&table);
        transaction.add_chain(&table, CHAIN, Some(Hook::SNAT));
        transaction.add_rule(&table, CHAIN, masquerade_expressions(subnet));
        transaction.commit(&mut socket)?;
    }
    Ok(())
}

/// Ends the masquerading of a network, unless `in_use` finds a pod of it.
pub fn release(network: &str, in_use: impl FnOnce() -> Result<bool, Error>) -> Result<(), Error> {
    let doing = || "end masquerading".into();
    let mut socket = match Socket::netfilter() {
        // A kernel without packet filter has nothing to end.
        Err(Errno::PROTONOSUPPORT) => return Ok(()),
        socket => socket.doing(Code::Internal, doing)?,
    };
    let lock = lock().doing(Code::Internal, doing)?;
    if !in_use()? {
        remove(&mut socket, network).doing(Code::Internal, doing)?;
    }
    // First the lock: closing the socket takes long if something was removed.
    drop(lock);
    Ok(())
}

fn remove(socket: &mut Socket, network: &str) -> io::Result<()> {
    let found = tables(socket, &table_prefix(network))?;
    if found.is_empty() {
        return Ok(());
    }
    let mut transaction = Transaction::new();
    for table in &found {
        transaction.delete_table(table);
    }
    transaction.commit(socket)
}

/// The match "from this network to outside of it, but not to a multicast group", then masquerade.
fn masquerade_expressions(subnet: &IpNet) -> Vec<Expression> {
    let (destination, multicast, multicast_mask) = if subnet.addr().is_ipv4() {
        (16, 0xe0, 0xf0)
    } else {
        (24, 0xff, 0xff)
    };
    let mut expressions = Vec::new();
    expressions.extend(in_network(true, subnet, true));
    expressions.extend(in_network(false, subnet, false));
    expressions.extend(masked(destination, &[multicast_mask], &[multicast], false));
    expressions.push(Expression::masquerade());
    expressions
}

/// What the names of a network's tables start with. No network's name holds a slash.
fn table_prefix(network: &str) -> String {
    if network.len() <= MAX_NETWORK {
        format!("{PREFIX}/{network}/")
    } else {
        format!("{PREFIX}/{:016x}/", hash(&[network]))
    }
}

/// The table of a subnet. Its name can be typed: the nft command knows no colon in a name.
fn table(network: &str, subnet: &IpNet) -> Table {
    let subnet = subnet.network();
    let addr = subnet.addr().to_string().replace(':', "_");
    Table {
        family: Family::of(subnet.addr()),
        name: format!("{}{addr}/{}", table_prefix(network), subnet.prefix()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_typed_and_fit() {
        let name = |network: &str, text: &str| table(network, &text.parse().unwrap()).name;
        assert_eq!(name("net", "10.88.3.4/16"), "carpel-masq/net/10.88.0.0/16");
        assert_eq!(name("a.b", "fd00:88::5/64"), "carpel-masq/a.b/fd00_88__/64");
        let long = name(&"n".repeat(250), "fd00:1:2:3:4:5:6:7/128");
        assert_eq!(long, "carpel-masq/5e20e5db3ee74e17/fd00_1_2_3_4_5_6_7/128");
    }
}
