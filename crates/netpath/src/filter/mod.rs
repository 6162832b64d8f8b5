//! The packet filter as far as it decides where a packet goes: chains of rules, those of nf_tables, of iptables
//! in nf_tables, and of the iptables of old.
//!
//! Every rule is brought into one form ([`Step`]s) and is carried out ([`run`]) on a packet of which only a part is
//! known. What cannot be decided is followed both ways, and named.

pub mod bits;
mod elements;
mod fields;
mod matches;
pub mod nft;
pub mod run;
mod save;
mod show;
mod steps;
#[cfg(test)]
mod tests;
mod xt;

use std::collections::HashMap;

use carpel_netlink::ipnet::IpNet;
use carpel_netlink::netfilter::Family;
use carpel_netlink::netfilter::listing::ListedSet;

pub use save::parse as parse_save;

/// Where a packet is when chains see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// By a link, before anything else.
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// Out by a link, after everything else.
    Egress,
}

impl Hook {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }

    /// Which hook of a family has a number.
    fn of(family: Family, number: u32) -> Option<Self> {
        Some(match (family, number) {
            (Family::Netdev, 0) | (Family::Inet, 5) => Self::Ingress,
            (Family::Netdev, 1) => Self::Egress,
            (Family::Netdev | Family::Arp, _) => return None,
            (_, 0) => Self::Prerouting,
            (_, 1) => Self::Input,
            (_, 2) => Self::Forward,
            (_, 3) => Self::Output,
            (_, 4) => Self::Postrouting,
            _ => return None,
        })
    }
}

/// What a chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Filter,
    /// It sees the first packet of a connection only.
    Nat,
    /// A packet whose mark or address it changes is routed anew.
    Route,
}

/// Where packets enter a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub hook: Hook,
    pub priority: i32,
    pub kind: Kind,
    pub drops: bool,
    /// The links it is for; empty for all.
    pub devices: Vec<String>,
}

/// Whose a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    Nft,
    /// The iptables of old, which has tables of its own beside those of nf_tables.
    Legacy,
}

/// A table, by all that names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    pub owner: Owner,
    pub family: &'static str,
    pub name: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let legacy = match self.owner {
            Owner::Nft => "",
            Owner::Legacy => " (legacy)",
        };
        write!(f, "table {} {}{legacy}", self.family, self.name)
    }
}

/// How a rule or a chain ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Reject,
    Return,
    Continue,
    Jump(String),
    Goto(String),
    /// A program decides.
    Queue,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    Differs,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The header of a layer (0 link, 1 network, 2 transport), from a byte on.
    Header(u32, usize),
    Meta(u32),
    Connection(u32),
    /// What the routes say: the result that is asked for, and of what.
    Fib {
        result: u32,
        flags: u32,
    },
    /// Something that is not looked at.
    Other(String),
}

/// A match of iptables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    Network {
        source: bool,
        network: IpNet,
    },
    /// An interface's name; with a `+` at the end all that begin so.
    Interface {
        incoming: bool,
        name: String,
    },
    Protocol(u8),
    Ports {
        source: bool,
        destination: bool,
        ranges: Vec<(u16, u16)>,
    },
    /// A state of the connection, as iptables numbers them.
    State(u32),
    Mark {
        value: u32,
        mask: u32,
    },
    AddressType {
        source: bool,
        types: u32,
    },
    Always,
    /// One of several is chosen by chance, or in turn.
    Random,
    /// Whatever else there is.
    Unsure,
}

/// One step of a rule. Registers are named by the byte that they begin at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Load {
        into: usize,
        length: usize,
        source: Source,
    },
    Set {
        into: usize,
        value: Vec<u8>,
    },
    Bitwise {
        from: usize,
        into: usize,
        mask: Vec<u8>,
        flip: Vec<u8>,
    },
    Swap {
        from: usize,
        into: usize,
        length: usize,
        size: usize,
    },
    /// Something is computed that is not followed.
    Compute {
        into: usize,
        length: usize,
    },
    /// A number below `modulus` by chance, to which `offset` is added.
    Random {
        into: usize,
        modulus: u32,
        offset: u32,
    },
    Compare {
        from: usize,
        how: Comparison,
        value: Vec<u8>,
    },
    Range {
        from: usize,
        inside: bool,
        low: Vec<u8>,
        high: Vec<u8>,
    },
    Lookup {
        set: String,
        from: usize,
        /// Of a map: where its value goes; the verdict if it is one of verdicts.
        into: Option<usize>,
        inverted: bool,
    },
    SetMark {
        from: usize,
    },
    Nat {
        source: bool,
        address: Option<usize>,
        port: Option<usize>,
    },
    Masquerade,
    Redirect {
        port: Option<usize>,
    },
    Verdict(Verdict),
    Test {
        test: Test,
        equal: bool,
    },
    /// Targets of iptables.
    Translate {
        source: bool,
        address: Option<std::net::IpAddr>,
        port: Option<u16>,
    },
    /// Bits of the mark are replaced.
    Mark {
        value: u32,
        mask: u32,
    },
    /// It counts, logs or changes what does not matter here.
    Quiet,
    /// It may end the rule, or not.
    Unsure,
    /// What it does is not known.
    Unknown(String),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub steps: Vec<Step>,
    /// As a person would write it.
    pub text: String,
    pub comment: Option<String>,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub table: TableName,
    pub name: String,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Which packets a chain's table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    V4,
    V6,
    Bridge,
    /// A link, whatever passes it.
    Netdev,
}

impl Layer {
    #[must_use]
    pub fn of_ip(is_ipv4: bool) -> Self {
        if is_ipv4 { Self::V4 } else { Self::V6 }
    }

    fn sees(self, family: &str) -> bool {
        match self {
            Self::V4 => ["ip", "inet"].contains(&family),
            Self::V6 => ["ip6", "inet"].contains(&family),
            Self::Bridge => family == "bridge",
            Self::Netdev => ["netdev", "inet"].contains(&family),
        }
    }
}

/// All rules of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub chains: Vec<Chain>,
    pub sets: HashMap<(TableName, String), ListedSet>,
}

impl Ruleset {
    /// The chains that packets enter at a hook, in the order in which they do.
    #[must_use]
    pub fn entered(&self, layer: Layer, hook: Hook, device: Option<&str>) -> Vec<&Chain> {
        let enters = |chain: &&Chain| {
            let Some(base) = &chain.base else {
                return false;
            };
            let is_for = base.devices.is_empty()
                || device
                    .is_some_and(|name| base.devices.iter().any(|one| matches_name(one, name)));
            base.hook == hook && layer.sees(chain.table.family) && is_for
        };
        let mut found: Vec<_> = self.chains.iter().filter(enters).collect();
        found.sort_by_key(|chain| chain.base.as_ref().map(|base| base.priority));
        found
    }

    #[must_use]
    pub fn chain(&self, table: &TableName, name: &str) -> Option<&Chain> {
        let mut all = self.chains.iter();
        all.find(|chain| chain.table == *table && chain.name == name)
    }

    #[must_use]
    pub fn set(&self, table: &TableName, name: &str) -> Option<&ListedSet> {
        self.sets.get(&(table.clone(), name.to_owned()))
    }

    /// Adds all of another.
    pub fn extend(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
    }
}

/// Whether a name is the one that is meant; one that ends with `*` or `+` means all that begin so.
fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix(['*', '+']) {
        Some(begin) => name.starts_with(begin),
        None => pattern == name,
    }
}
