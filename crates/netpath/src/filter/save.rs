//! The rules of the iptables of old, from what iptables-save prints: the kernel tells them in no better way.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::{Base, Chain, Hook, Kind, Owner, Rule, Ruleset, Step, TableName, Test, Verdict, xt};

/// Reads what `iptables-save` or `ip6tables-save` has printed.
#[must_use]
pub fn parse(text: &str, is_ipv4: bool) -> Ruleset {
    let family = if is_ipv4 { "ip" } else { "ip6" };
    let mut rules = Ruleset::default();
    let mut table = String::new();
    for line in text.lines() {
        let name = || TableName {
            owner: Owner::Legacy,
            family,
            name: table.clone(),
        };
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim().to_owned();
        } else if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let (Some(chain), policy) = (words.next(), words.next()) else {
                continue;
            };
            rules.chains.push(Chain {
                base: base(&table, chain, policy == Some("DROP")),
                table: name(),
                name: chain.to_owned(),
                rules: Vec::new(),
            });
        } else if let Some(appended) = line.strip_prefix("-A ") {
            let words = words(appended);
            let Some((chain, rest)) = words.split_first() else {
                continue;
            };
            let table = name();
            let found = rules.chains.iter_mut();
            let mut found = found.filter(|one| one.table == table && one.name == *chain);
            if let Some(found) = found.next() {
                found.rules.push(rule(rest, is_ipv4));
            }
        }
    }
    rules
}

fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let (kind, priority) = match (table, hook) {
        ("raw", _) => (Kind::Filter, -300),
        ("mangle", Hook::Output) => (Kind::Route, -150),
        ("mangle", _) => (Kind::Filter, -150),
        ("nat", Hook::Prerouting | Hook::Output) => (Kind::Nat, -100),
        ("nat", _) => (Kind::Nat, 100),
        ("security", _) => (Kind::Filter, 50),
        _ => (Kind::Filter, 0),
    };
    Some(Base {
        hook,
        priority,
        kind,
        drops,
        devices: Vec::new(),
    })
}

/// The words of a line; one in quotes may have blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn rule(words: &[String], is_ipv4: bool) -> Rule {
    let mut reading = Reading {
        words: words.iter().map(String::as_str).collect(),
        at: 0,
        steps: Vec::new(),
        comment: None,
        is_ipv4,
    };
    while reading.at < reading.words.len() {
        reading.option();
    }
    let comment = reading.comment.take();
    let steps = std::mem::take(&mut reading.steps);
    let text = words.join(" ");
    Rule {
        steps,
        text,
        comment,
    }
}

struct Reading<'a> {
    words: Vec<&'a str>,
    at: usize,
    steps: Vec<Step>,
    comment: Option<String>,
    is_ipv4: bool,
}

impl<'a> Reading<'a> {
    fn next(&mut self) -> &'a str {
        let word = self.words.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        word
    }

    fn test(&mut self, test: Option<Test>, equal: bool) {
        let test = test.unwrap_or(Test::Unsure);
        self.steps.push(Step::Test { test, equal });
    }

    /// Reads one option with its arguments.
    fn option(&mut self) {
        let mut word = self.next();
        let equal = word != "!";
        if !equal {
            word = self.next();
        }
        match word {
            "-s" | "-d" => {
                let source = word == "-s";
                let network = xt::network(self.next(), self.is_ipv4);
                let test = network.map(|network| Test::Network { source, network });
                self.test(test, equal);
            }
            "-i" | "-o" => {
                let incoming = word == "-i";
                let name = self.next().to_owned();
                self.test(Some(Test::Interface { incoming, name }), equal);
            }
            "-p" => {
                let number = protocol(self.next());
                self.test(number.map(Test::Protocol), equal);
            }
            "-m" => self.matching(),
            "--dport" | "--sport" | "--dports" | "--sports" | "--ports" => {
                let ranges = ranges(self.next());
                let test = ranges.map(|ranges| Test::Ports {
                    source: !word.starts_with("--d"),
                    destination: !word.starts_with("--s"),
                    ranges,
                });
                self.test(test, equal);
            }
            "--ctstate" | "--state" => {
                let mask = states(self.next());
                self.test(mask.map(Test::State), equal);
            }
            "--mark" => {
                let test = masked(self.next()).map(|(value, mask)| Test::Mark { value, mask });
                self.test(test, equal);
            }
            "--dst-type" | "--src-type" => {
                let source = word == "--src-type";
                let types = address_types(self.next());
                self.test(
                    types.map(|types| Test::AddressType { source, types }),
                    equal,
                );
            }
            "--comment" => self.comment = Some(self.next().to_owned()),
            "-j" => self.target(),
            "-g" => {
                let chain = self.next().to_owned();
                self.steps.push(Step::Verdict(Verdict::Goto(chain)));
            }
            // Arguments of matches and targets that were judged by their names.
            _ => {}
        }
    }

    fn matching(&mut self) {
        match self.next() {
            // What they say comes as an option.
            "tcp" | "udp" | "sctp" | "multiport" | "conntrack" | "state" | "mark" | "addrtype"
            | "comment" => self.leave_rest(),
            "statistic" => {
                self.test(Some(Test::Random), true);
                self.skip_arguments();
            }
            _ => {
                self.test(None, true);
                self.skip_arguments();
            }
        }
    }

    /// Options of known matches that are not known themselves are not decided.
    fn leave_rest(&mut self) {
        const KNOWN: [&str; 11] = [
            "--dport",
            "--sport",
            "--dports",
            "--sports",
            "--ports",
            "--ctstate",
            "--state",
            "--mark",
            "--dst-type",
            "--src-type",
            "--comment",
        ];
        let rest = &self.words[self.at.min(self.words.len())..];
        let own = rest.iter().take_while(|word| !is_short(word));
        let unknown = own
            .filter(|word| word.starts_with("--"))
            .any(|word| !KNOWN.contains(word));
        if unknown {
            self.test(None, true);
        }
    }

    /// Passes over the arguments of a match that is not known.
    fn skip_arguments(&mut self) {
        while self.at < self.words.len() {
            let word = self.words[self.at];
            let negated = word == "!"
                && self
                    .words
                    .get(self.at + 1)
                    .is_some_and(|next| is_short(next));
            if is_short(word) || negated {
                break;
            }
            self.at += 1;
        }
    }

    fn target(&mut self) {
        let name = self.next();
        let step = match name {
            "ACCEPT" => Step::Verdict(Verdict::Accept),
            "DROP" => Step::Verdict(Verdict::Drop),
            "REJECT" => Step::Verdict(Verdict::Reject),
            "RETURN" => Step::Verdict(Verdict::Return),
            "QUEUE" | "NFQUEUE" => Step::Verdict(Verdict::Queue),
            "MASQUERADE" => Step::Masquerade,
            "REDIRECT" => self.redirection(),
            "DNAT" | "SNAT" => self.translation(name),
            "MARK" => self.mark(),
            "LOG" | "NFLOG" | "TRACE" | "NOTRACK" | "CT" | "TCPMSS" | "CHECKSUM" | "CONNMARK"
            | "CLASSIFY" | "DSCP" | "TOS" | "HL" | "TTL" | "SECMARK" | "CONNSECMARK" | "SET"
            | "ULOG" => Step::Quiet,
            chain => Step::Verdict(Verdict::Jump(chain.to_owned())),
        };
        self.steps.push(step);
        self.at = self.words.len();
    }

    fn argument(&self, name: &str) -> Option<&'a str> {
        let at = self.words.iter().position(|word| *word == name)?;
        self.words.get(at + 1).copied()
    }

    /// To an address of the machine, and perhaps to another port.
    fn redirection(&mut self) -> Step {
        let Some(port) = self.argument("--to-ports") else {
            return Step::Redirect { port: None };
        };
        match port.parse::<u16>() {
            Ok(port) => {
                let value = port.to_be_bytes().to_vec();
                self.steps.push(Step::Set { into: 0, value });
                Step::Redirect { port: Some(0) }
            }
            Err(_) => Step::Unknown("REDIRECT".into()),
        }
    }

    fn translation(&self, name: &str) -> Step {
        let source = name == "SNAT";
        let option = if source {
            "--to-source"
        } else {
            "--to-destination"
        };
        let Some((address, port)) = self.argument(option).and_then(target_address) else {
            return Step::Unknown(name.to_owned());
        };
        Step::Translate {
            source,
            address,
            port,
        }
    }

    fn mark(&self) -> Step {
        let set = self.argument("--set-xmark").and_then(masked);
        let or = self.argument("--or-mark").and_then(number);
        let and = self.argument("--and-mark").and_then(number);
        let all = self.argument("--set-mark").and_then(masked);
        match (set.or(all), or, and) {
            (Some((value, mask)), _, _) => Step::Mark { value, mask },
            (_, Some(bits), _) => Step::Mark {
                value: bits,
                mask: bits,
            },
            (_, _, Some(bits)) => Step::Mark {
                value: 0,
                mask: !bits,
            },
            _ => Step::Unknown("MARK".into()),
        }
    }
}

/// Whether a word begins an option of iptables itself.
fn is_short(word: &str) -> bool {
    word.len() == 2 && word.starts_with('-') && word != "--"
}

fn protocol(text: &str) -> Option<u8> {
    Some(match text {
        "all" => 0,
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "ipv6-icmp" | "icmpv6" => 58,
        "sctp" => 132,
        other => other.parse().ok()?,
    })
}

fn ranges(text: &str) -> Option<Vec<(u16, u16)>> {
    let range = |part: &str| {
        let (low, high) = part.split_once(':').unwrap_or((part, part));
        let number = |text: &str, unsaid| match text {
            "" => Some(unsaid),
            text => text.parse().ok(),
        };
        Some((number(low, 0)?, number(high, u16::MAX)?))
    };
    text.split(',').map(range).collect()
}

fn states(text: &str) -> Option<u32> {
    let bit = |name: &str| {
        Some(match name {
            "INVALID" => 1,
            "NEW" => 1 << 3,
            "RELATED" => 1 << 2,
            "ESTABLISHED" => 1 << 1,
            "UNTRACKED" => 1 << 8,
            "SNAT" => 1 << 6,
            "DNAT" => 1 << 7,
            _ => return None,
        })
    };
    text.split(',')
        .map(bit)
        .try_fold(0, |all, bit| Some(all | bit?))
}

fn address_types(text: &str) -> Option<u32> {
    let bit = |name: &str| {
        Some(match name {
            "UNICAST" => 1 << 1,
            "LOCAL" => 1 << 2,
            "BROADCAST" => 1 << 3,
            "MULTICAST" => 1 << 5,
            _ => return None,
        })
    };
    text.split(',')
        .map(bit)
        .try_fold(0, |all, bit| Some(all | bit?))
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn masked(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// The address, the port or both to which something is translated; the first of several.
fn target_address(text: &str) -> Option<(Option<IpAddr>, Option<u16>)> {
    let first = |text: &str| text.split('-').next().map(str::to_owned);
    if let Ok(socket) = SocketAddr::from_str(text) {
        return Some((Some(socket.ip()), Some(socket.port())));
    }
    if let Some(port) = text.strip_prefix(':') {
        return Some((None, Some(first(port)?.parse().ok()?)));
    }
    let text = first(text)?;
    text.parse().ok().map(|addr| (Some(addr), None))
}
