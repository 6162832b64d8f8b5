//! Rules of nf_tables as one would write them.
//!
//! Not every word is the nft command's own; the point is that a person finds the rule again.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use carpel_netlink::link::Mac;
use carpel_netlink::netfilter::listing::{Data, ListedSet};

use super::{Comparison, Ruleset, Source, Step, TableName, Verdict, nft};

/// The most elements of a set that a rule's text lists.
const MOST_ELEMENTS: usize = 4;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Address,
    Port,
    Name,
    Protocol,
    State,
    AddressType,
    Mac,
    /// In the machine's byte order.
    Number,
    Hex,
}

/// What a register holds, for a reader.
#[derive(Debug, Clone)]
struct Held {
    what: String,
    style: Style,
    length: usize,
    mask: Option<Vec<u8>>,
}

struct Showing<'a> {
    rules: &'a Ruleset,
    table: &'a TableName,
    registers: BTreeMap<usize, Held>,
    /// The protocol that ports are of, if a step has said it.
    protocol: Option<&'static str>,
    words: Vec<String>,
}

/// The text of a rule. `notes` are texts of steps that say them by themselves.
pub(super) fn rule(
    rules: &Ruleset,
    table: &TableName,
    steps: &[Step],
    notes: &[Option<String>],
) -> String {
    let mut showing = Showing {
        rules,
        table,
        registers: BTreeMap::new(),
        protocol: None,
        words: Vec::new(),
    };
    for (step, note) in steps.iter().zip(notes) {
        match note {
            Some(note) => showing.words.push(note.clone()),
            None => showing.step(step),
        }
    }
    showing.words.retain(|word| !word.is_empty());
    let words = &mut showing.words;
    for at in (0..words.len().saturating_sub(1)).rev() {
        // The protocol of ports is said with them.
        if words[at + 1].contains(&format!("{} ", words[at])) {
            words.remove(at);
        }
    }
    if showing.words.is_empty() {
        return "(everything)".to_owned();
    }
    showing.words.join(" ")
}

impl Showing<'_> {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Load {
                into,
                length,
                source,
            } => {
                let (what, style) = self.source(source, *length);
                self.hold(*into, what, style, *length);
            }
            Step::Random { into, modulus, .. } => {
                self.hold(*into, format!("random below {modulus}"), Style::Number, 4);
            }
            Step::Compute { into, length } => self.hold(*into, "…".into(), Style::Hex, *length),
            Step::Set { into, value } => {
                let text = match value.len() {
                    4 | 16 => written(value, Style::Address),
                    2 => written(value, Style::Port),
                    _ => written(value, Style::Hex),
                };
                self.hold(*into, text, Style::Hex, value.len());
            }
            Step::Swap { from, into, .. } => {
                if let Some(held) = self.registers.get(from).cloned() {
                    self.registers.insert(*into, held);
                }
            }
            Step::Bitwise {
                from,
                into,
                mask,
                flip,
            } => {
                if let Some(mut held) = self.registers.get(from).cloned() {
                    if flip.iter().any(|byte| *byte != 0) {
                        held.what = format!("{} with {}", held.what, number(flip));
                    } else {
                        held.mask = Some(mask.clone());
                    }
                    self.registers.insert(*into, held);
                }
            }
            Step::Compare { from, how, value } => self.compare(*from, *how, value),
            Step::Range {
                from,
                inside,
                low,
                high,
            } => {
                let held = self.held(*from);
                let not = if *inside { "" } else { "!= " };
                let (low, high) = (written(low, held.style), written(high, held.style));
                self.words.push(format!("{} {not}{low}-{high}", held.what));
            }
            Step::Lookup {
                set,
                from,
                into,
                inverted,
            } => self.lookup(set, *from, *into, *inverted),
            Step::SetMark { from } => {
                let held = self.held(*from);
                let masked = held.mask.map(|mask| format!(" & {}", number(&mask)));
                let masked = masked.unwrap_or_default();
                self.words.push(format!("mark set {}{masked}", held.what));
            }
            Step::Nat {
                source,
                address,
                port,
            } => {
                let address = address.map(|at| self.held(at).what).unwrap_or_default();
                let port = port.filter(|_| !address.contains('@'));
                let port = port.map(|at| format!(":{}", self.held(at).what));
                let word = if *source { "snat" } else { "dnat" };
                let port = port.unwrap_or_default();
                self.words.push(format!("{word} to {address}{port}"));
            }
            Step::Masquerade => self.words.push("masquerade".into()),
            Step::Redirect { port } => {
                let port = port.map(|at| format!(" to :{}", self.held(at).what));
                self.words
                    .push(format!("redirect{}", port.unwrap_or_default()));
            }
            Step::Verdict(verdict) => self.words.push(verdict_text(verdict)),
            Step::Unknown(name) => self.words.push(format!("({name})")),
            Step::Test { .. }
            | Step::Translate { .. }
            | Step::Mark { .. }
            | Step::Quiet
            | Step::Unsure => {}
        }
    }

    fn hold(&mut self, into: usize, what: String, style: Style, length: usize) {
        let held = Held {
            what,
            style,
            length,
            mask: None,
        };
        self.registers.insert(into, held);
    }

    fn held(&self, at: usize) -> Held {
        self.registers.get(&at).cloned().unwrap_or(Held {
            what: "…".into(),
            style: Style::Hex,
            length: 4,
            mask: None,
        })
    }

    fn source(&self, source: &Source, length: usize) -> (String, Style) {
        let ip = |what: &str, wide: usize| {
            let family = if wide == 16 { "ip6" } else { "ip" };
            (format!("{family} {what}"), Style::Address)
        };
        match source {
            Source::Header(0, 0) => ("ether daddr".into(), Style::Mac),
            Source::Header(0, 6) => ("ether saddr".into(), Style::Mac),
            // A prefix of whole bytes is loaded and compared by itself.
            Source::Header(1, 12) if length <= 4 && self.table.family != "ip6" => ip("saddr", 4),
            Source::Header(1, 16) if length <= 4 && self.table.family != "ip6" => ip("daddr", 4),
            Source::Header(1, 8) if length > 1 => ip("saddr", 16),
            Source::Header(1, 24) => ip("daddr", 16),
            Source::Header(1, 9) => ("ip protocol".into(), Style::Protocol),
            Source::Header(1, 6) if length == 1 => ("ip6 nexthdr".into(), Style::Protocol),
            Source::Header(2, 0) if length == 2 => (
                format!("{} sport", self.protocol.unwrap_or("th")),
                Style::Port,
            ),
            Source::Header(2, 2) if length == 2 => (
                format!("{} dport", self.protocol.unwrap_or("th")),
                Style::Port,
            ),
            Source::Header(2, 13) => ("tcp flags".into(), Style::Hex),
            Source::Header(base, at) => (format!("@{base},{at},{length}"), Style::Hex),
            Source::Meta(key) => match key {
                3 => ("mark".into(), Style::Number),
                4 => ("iif".into(), Style::Number),
                5 => ("oif".into(), Style::Number),
                6 => ("iifname".into(), Style::Name),
                7 => ("oifname".into(), Style::Name),
                15 => ("nfproto".into(), Style::Hex),
                16 => ("l4proto".into(), Style::Protocol),
                17 => ("ibrname".into(), Style::Name),
                18 => ("obrname".into(), Style::Name),
                key => (format!("meta {key}"), Style::Hex),
            },
            Source::Connection(key) => match key {
                0 => ("ct state".into(), Style::State),
                1 => ("ct direction".into(), Style::Hex),
                2 => ("ct status".into(), Style::Number),
                3 => ("ct mark".into(), Style::Number),
                key => (format!("ct {key}"), Style::Hex),
            },
            Source::Fib { result, flags } => {
                let mut what = vec![if flags & 1 != 0 { "saddr" } else { "daddr" }];
                what.extend((flags & 8 != 0).then_some("iif"));
                what.extend((flags & 16 != 0).then_some("oif"));
                let (word, style) = match result {
                    1 => ("oif", Style::Number),
                    2 => ("oifname", Style::Name),
                    _ => ("type", Style::AddressType),
                };
                (format!("fib {} {word}", what.join(" . ")), style)
            }
            Source::Other(what) => (format!("{what} …"), Style::Hex),
        }
    }

    fn compare(&mut self, from: usize, how: Comparison, value: &[u8]) {
        let held = self.held(from);
        if held.style == Style::Protocol && how == Comparison::Equal {
            self.protocol = match value {
                [6] => Some("tcp"),
                [17] => Some("udp"),
                [132] => Some("sctp"),
                _ => self.protocol,
            };
            // Said by what comes after, where that is a port.
            if self.protocol.is_some() && self.words.last().is_none_or(|word| word != "l4proto") {
                self.words.push(written(value, held.style));
                return;
            }
        }
        let not = match how {
            Comparison::Equal => "",
            Comparison::Differs => "!= ",
            Comparison::Less => "< ",
            Comparison::LessOrEqual => "<= ",
            Comparison::Greater => "> ",
            Comparison::GreaterOrEqual => ">= ",
        };
        let text = match (&held.mask, held.style) {
            (Some(mask), Style::Address) => network(value, mask),
            (Some(mask), Style::State) if value.iter().all(|byte| *byte == 0) => {
                // Compared with nothing: any of the masked bits.
                let states = written(mask, Style::State);
                let not = if how == Comparison::Differs {
                    ""
                } else {
                    "!= "
                };
                self.words.push(format!("{} {not}{states}", held.what));
                return;
            }
            (Some(mask), style) => {
                self.words.push(format!("{} & {}", held.what, number(mask)));
                let not = if not.is_empty() { "== " } else { not };
                self.words.push(format!("{not}{}", written(value, style)));
                return;
            }
            (None, Style::Address) if value.len() < 4 || held.length < 16 && value.len() > 4 => {
                prefix(value, held.length)
            }
            (None, Style::Address) if value.len() != 4 && value.len() != 16 => prefix(value, 16),
            (None, style) => written(value, style),
        };
        self.words.push(format!("{} {not}{text}", held.what));
    }

    fn lookup(&mut self, set: &str, from: usize, into: Option<usize>, inverted: bool) {
        let found = self.rules.set(self.table, set);
        // A key of several parts is in registers one after the other.
        let length = found.map_or(4, |set| set.key_length as usize);
        let parts = self.registers.range(from..from + length);
        let parts: Vec<_> = parts.map(|(_, held)| held.clone()).collect();
        let key: Vec<_> = parts.iter().map(|held| held.what.as_str()).collect();
        let key = key.join(" . ");
        let list = match found {
            Some(found) if found.is_anonymous => listed(found, &parts),
            _ => format!("@{set}"),
        };
        match into {
            None => {
                let not = if inverted { "!= " } else { "" };
                self.words.push(format!("{key} {not}{list}"));
            }
            Some(_) if found.is_some_and(has_verdicts) => {
                self.words.push(format!("{key} vmap {list}"));
            }
            Some(into) => self.hold(into, format!("{key} map {list}"), Style::Hex, 4),
        }
    }
}

fn has_verdicts(set: &ListedSet) -> bool {
    // NFT_DATA_VERDICT
    set.data_type == 0xffff_ff00
}

/// The elements of a set, as far as a line has room for them.
fn listed(set: &ListedSet, parts: &[Held]) -> String {
    let texts: Vec<_> = set
        .elements
        .iter()
        .filter(|element| !element.ends_interval)
        .take(MOST_ELEMENTS)
        .map(|element| {
            let key = if element.is_catchall {
                "*".to_owned()
            } else {
                joined(&element.key, parts)
            };
            match &element.data {
                None => key,
                Some(Data::Verdict(verdict)) => {
                    format!("{key} : {}", verdict_text(&nft::verdict(verdict)))
                }
                Some(Data::Value(value)) => format!("{key} : {}", value_text(value)),
            }
        })
        .collect();
    let count = set.elements.iter().filter(|one| !one.ends_interval).count();
    let more = if count > texts.len() { ", …" } else { "" };
    format!("{{ {}{more} }}", texts.join(", "))
}

/// A key of several parts, each padded to four bytes.
fn joined(key: &[u8], parts: &[Held]) -> String {
    if parts.len() < 2 {
        let style = parts.first().map_or(Style::Hex, |held| held.style);
        return written(key, style);
    }
    let mut at = 0;
    let texts = parts.iter().map(|held| {
        let end = (at + held.length).min(key.len());
        let text = written(key.get(at..end).unwrap_or_default(), held.style);
        at += held.length.next_multiple_of(4);
        text
    });
    texts.collect::<Vec<_>>().join(" . ")
}

/// A value of a map: an address with or without a port, or a number.
pub(super) fn value_text(value: &[u8]) -> String {
    match value.len() {
        8 => format!(
            "{} . {}",
            written(&value[..4], Style::Address),
            written(&value[4..6], Style::Port)
        ),
        20 => format!(
            "{} . {}",
            written(&value[..16], Style::Address),
            written(&value[16..18], Style::Port)
        ),
        4 | 16 => written(value, Style::Address),
        _ => written(value, Style::Hex),
    }
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Reject => "reject".into(),
        Verdict::Return => "return".into(),
        Verdict::Continue => "continue".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Queue => "queue".into(),
    }
}

/// A number of the machine's byte order, in hexadecimal.
fn number(bytes: &[u8]) -> String {
    let number = bytes
        .iter()
        .rev()
        .fold(0u128, |all, byte| all << 8 | u128::from(*byte));
    format!("{number:#x}")
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv4Addr::from(bytes).to_string()),
        16 => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|bytes| Ipv6Addr::from(bytes).to_string()),
        _ => None,
    }
}

/// The first bytes of an address.
fn prefix(value: &[u8], length: usize) -> String {
    let length = if value.len() <= 4 && length <= 4 {
        4
    } else {
        16
    };
    let mut whole = value.to_vec();
    whole.resize(length, 0);
    format!(
        "{}/{}",
        address(&whole).unwrap_or_default(),
        value.len() * 8
    )
}

fn network(value: &[u8], mask: &[u8]) -> String {
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    match address(value) {
        Some(address) if ones as usize == mask.len() * 8 => address,
        Some(address) => format!("{address}/{ones}"),
        None => written(value, Style::Hex),
    }
}

fn written(value: &[u8], style: Style) -> String {
    let hex = || {
        let digits: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("0x{digits}")
    };
    match style {
        Style::Address => address(value).unwrap_or_else(hex),
        Style::Port => match value {
            [high, low, ..] => u16::from_be_bytes([*high, *low]).to_string(),
            _ => hex(),
        },
        Style::Name => {
            let end = value.iter().position(|byte| *byte == 0);
            let text = String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]);
            // Compared without its end: all names that begin so.
            let star = if end.is_none() && value.len() < 16 {
                "*"
            } else {
                ""
            };
            format!("\"{text}{star}\"")
        }
        Style::Protocol => match value.first() {
            Some(1) => "icmp".into(),
            Some(6) => "tcp".into(),
            Some(17) => "udp".into(),
            Some(58) => "ipv6-icmp".into(),
            Some(132) => "sctp".into(),
            Some(other) => other.to_string(),
            None => String::new(),
        },
        Style::State => {
            let bits = value.first().copied().unwrap_or(0);
            let names = [
                (1, "invalid"),
                (2, "established"),
                (4, "related"),
                (8, "new"),
                (64, "untracked"),
            ];
            let set = names.iter().filter(|(bit, _)| bits & bit != 0);
            set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
        }
        Style::AddressType => match value.first() {
            Some(1) => "unicast".into(),
            Some(2) => "local".into(),
            Some(3) => "broadcast".into(),
            Some(5) => "multicast".into(),
            _ => hex(),
        },
        Style::Mac => match value.get(..6).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Mac(bytes).to_string(),
            None => hex(),
        },
        Style::Number => number(value),
        Style::Hex => hex(),
    }
}
