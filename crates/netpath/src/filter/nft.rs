//! Rules of nf_tables, from how the kernel lists them.

use carpel_netlink::attributes;
use carpel_netlink::netfilter::Table;
use carpel_netlink::netfilter::listing::{
    Data, ListedChain, ListedRule, ListedStep, ListedVerdict, Listing, number,
};

use super::{
    Base, Chain, Comparison, Hook, Kind, Owner, Rule, Ruleset, Source, Step, TableName, Verdict,
    show, xt,
};

/// The register of verdicts.
const VERDICT: u32 = 0;

/// Brings all rules of nf_tables into our form.
#[must_use]
pub fn ruleset(listing: Listing) -> Ruleset {
    let mut rules = Ruleset {
        chains: listing.chains.iter().map(chain).collect(),
        sets: listing
            .sets
            .into_iter()
            .map(|set| ((name(&set.table), set.name.clone()), set))
            .collect(),
    };
    for listed in listing.rules {
        let table = name(&listed.table);
        let made = rule(&rules, &table, &listed);
        let chain = rules
            .chains
            .iter_mut()
            .find(|chain| chain.table == table && chain.name == listed.chain);
        if let Some(chain) = chain {
            chain.rules.push(made);
        }
    }
    rules
}

fn name(table: &Table) -> TableName {
    TableName {
        owner: Owner::Nft,
        family: table.family.name(),
        name: table.name.clone(),
    }
}

fn chain(listed: &ListedChain) -> Chain {
    let base = listed.hook.as_ref().and_then(|hook| {
        Some(Base {
            hook: Hook::of(listed.table.family, hook.number)?,
            priority: hook.priority,
            kind: match hook.kind.as_str() {
                "nat" => Kind::Nat,
                "route" => Kind::Route,
                _ => Kind::Filter,
            },
            drops: listed.policy == 0,
            devices: hook.devices.clone(),
        })
    });
    Chain {
        table: name(&listed.table),
        name: listed.name.clone(),
        base,
        rules: Vec::new(),
    }
}

fn rule(rules: &Ruleset, table: &TableName, listed: &ListedRule) -> Rule {
    let mut comment = listed.comment.clone();
    let mut steps = Vec::with_capacity(listed.steps.len());
    let mut notes = Vec::with_capacity(listed.steps.len());
    for one in &listed.steps {
        let (step, note) = match one.name.as_str() {
            "match" | "target" => {
                let (step, text) = xt::step(one);
                if let Some(said) = xt::comment(one) {
                    comment.get_or_insert(said);
                }
                (step, Some(text))
            }
            _ => (step(one), note(one)),
        };
        steps.push(step);
        notes.push(note);
    }
    let text = show::rule(rules, table, &steps, &notes);
    Rule {
        steps,
        text,
        comment,
    }
}

/// A register as the byte that it begins at.
fn register(number: u32) -> usize {
    match number {
        // Of sixteen bytes each.
        1..=4 => (number as usize - 1) * 16,
        8.. => (number as usize - 8) * 4,
        _ => 0,
    }
}

/// The attributes of a step.
struct Given<'a>(&'a [u8]);

impl Given<'_> {
    fn bytes(&self, kind: u16) -> Option<Vec<u8>> {
        attributes(self.0, 0)
            .find(|one| one.kind() == kind)
            .map(|one| one.value().to_vec())
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.bytes(kind).map(|bytes| number(&bytes))
    }

    fn register(&self, kind: u16) -> Option<usize> {
        self.number(kind).map(register)
    }

    fn value(&self, kind: u16) -> Option<Vec<u8>> {
        match Data::parse(&self.bytes(kind)?)? {
            Data::Value(value) => Some(value),
            Data::Verdict(_) => None,
        }
    }

    fn text(&self, kind: u16) -> Option<String> {
        self.bytes(kind)
            .map(|bytes| carpel_netlink::as_text(&bytes))
    }
}

fn step(listed: &ListedStep) -> Step {
    parse(listed).unwrap_or_else(|| Step::Unknown(listed.name.clone()))
}

/// `None` for a step that lacks what it must have.
fn parse(listed: &ListedStep) -> Option<Step> {
    let given = Given(&listed.data);
    Some(match listed.name.as_str() {
        "immediate" => match Data::parse(&given.bytes(2)?)? {
            Data::Verdict(found) if given.number(1)? == VERDICT => Step::Verdict(verdict(&found)),
            Data::Value(value) => Step::Set {
                into: given.register(1)?,
                value,
            },
            Data::Verdict(_) => return None,
        },
        "payload" if given.number(1).is_none() => Step::Quiet, // Something is written into the packet.
        "payload" => Step::Load {
            into: given.register(1)?,
            length: given.number(4)? as usize,
            source: Source::Header(given.number(2)?, given.number(3)? as usize),
        },
        "meta" => match (given.register(1), given.register(3), given.number(2)?) {
            (_, Some(from), 3) => Step::SetMark { from },
            (_, Some(_), _) => Step::Quiet,
            (Some(into), None, key) => Step::Load {
                into,
                length: meta_length(key),
                source: Source::Meta(key),
            },
            _ => return None,
        },
        "ct" => match (given.register(1), given.number(2)?) {
            (Some(into), key) if given.bytes(3).is_none() => Step::Load {
                into,
                length: 4,
                source: Source::Connection(key),
            },
            // Of one direction: not looked at.
            (Some(into), _) => Step::Load {
                into,
                length: 16,
                source: Source::Other("ct".into()),
            },
            _ => Step::Quiet,
        },
        "fib" => Step::Load {
            into: given.register(1)?,
            length: 4,
            source: Source::Fib {
                result: given.number(2)?,
                flags: given.number(3)?,
            },
        },
        "cmp" => Step::Compare {
            from: given.register(1)?,
            how: comparison(given.number(2)?)?,
            value: given.value(3)?,
        },
        "range" => Step::Range {
            from: given.register(1)?,
            inside: given.number(2)? == 0,
            low: given.value(3)?,
            high: given.value(4)?,
        },
        "bitwise" => bitwise(&given)?,
        "byteorder" => Step::Swap {
            from: given.register(1)?,
            into: given.register(2)?,
            length: given.number(4)? as usize,
            size: given.number(5)? as usize,
        },
        "lookup" => Step::Lookup {
            set: given.text(1)?,
            from: given.register(2)?,
            into: given.register(3),
            inverted: given.number(5).unwrap_or(0) & 1 != 0,
        },
        "numgen" => Step::Random {
            into: given.register(1)?,
            modulus: given.number(2)?,
            offset: given.number(4).unwrap_or(0),
        },
        "hash" => Step::Random {
            into: given.register(2)?,
            modulus: given.number(4)?,
            offset: given.number(6).unwrap_or(0),
        },
        "nat" => Step::Nat {
            source: given.number(1)? == 0,
            address: given.register(3),
            port: given.register(5),
        },
        "masq" => Step::Masquerade,
        "redir" => Step::Redirect {
            port: given.register(1),
        },
        "reject" => Step::Verdict(Verdict::Reject),
        "queue" => Step::Verdict(Verdict::Queue),
        "counter" | "log" | "notrack" | "dynset" | "flow_offload" | "dup" | "last" | "objref" => {
            Step::Quiet
        }
        "limit" | "quota" | "connlimit" | "exthdr" | "osf" => unsure(&given, &listed.name),
        "rt" | "socket" | "tunnel" | "xfrm" => Step::Compute {
            into: given.register(2).or(given.register(1)).unwrap_or(0),
            length: 16,
        },
        _ => return None,
    })
}

/// Steps that may end a rule for what is not known, or load something of that kind.
fn unsure(given: &Given<'_>, name: &str) -> Step {
    match (name, given.register(1)) {
        ("exthdr" | "osf", Some(into)) => Step::Compute { into, length: 16 },
        _ => Step::Unsure,
    }
}

fn bitwise(given: &Given<'_>) -> Option<Step> {
    let (from, into) = (given.register(1)?, given.register(2)?);
    let length = given.number(3)? as usize;
    // Shifts, and operations on two registers, are newer than masks.
    if given.number(6).unwrap_or(0) != 0 {
        return Some(Step::Compute { into, length });
    }
    Some(Step::Bitwise {
        from,
        into,
        mask: given.value(4)?,
        flip: given.value(5)?,
    })
}

fn comparison(number: u32) -> Option<Comparison> {
    Some(match number {
        0 => Comparison::Equal,
        1 => Comparison::Differs,
        2 => Comparison::Less,
        3 => Comparison::LessOrEqual,
        4 => Comparison::Greater,
        5 => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

fn meta_length(key: u32) -> usize {
    match key {
        // Names.
        6 | 7 | 17 | 18 | 26 | 27 => 16,
        1 | 8 | 9 => 2,
        12 | 15 | 16 | 19 => 1,
        _ => 4,
    }
}

/// A verdict as the kernel numbers it.
pub(super) fn verdict(listed: &ListedVerdict) -> Verdict {
    let chain = || listed.chain.clone();
    match listed.code {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()),
        -4 => Verdict::Goto(chain()),
        -5 => Verdict::Return,
        // The low bits say what it is, the others are a program's number.
        code if code & 0xff == 3 => Verdict::Queue,
        _ => Verdict::Drop,
    }
}

/// What a text has for a step that says nothing by itself.
fn note(listed: &ListedStep) -> Option<String> {
    let given = Given(&listed.data);
    Some(match listed.name.as_str() {
        "counter" | "last" => return None,
        "limit" => "limit".to_owned(),
        "log" => match given.text(2) {
            Some(prefix) => format!("log prefix {prefix:?}"),
            None => "log".to_owned(),
        },
        "ct" if given.register(1).is_none() => "ct set".to_owned(),
        "meta" if given.register(1).is_none() => match given.number(2) {
            Some(3) => return None,
            _ => "meta set".to_owned(),
        },
        "reject" | "nat" | "masq" | "redir" | "immediate" | "cmp" | "range" | "lookup"
        | "bitwise" | "byteorder" | "payload" | "fib" | "numgen" | "hash" | "ct" | "meta" => {
            return None;
        }
        other => other.to_owned(),
    })
}
