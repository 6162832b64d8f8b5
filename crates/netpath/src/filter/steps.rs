//! A rule's steps, one after the other.

use std::net::IpAddr;

use carpel_netlink::netfilter::listing::Data;

use super::bits::Bits;
use super::elements::found;
use super::run::{Applied, Change, Ending, Guess, RuleName, Run, Way};
use super::{Chain, Comparison, Rule, Step, Test, Verdict, fields, nft};

/// The most values of a map that are tried where its key is not known.
const MOST_ELEMENTS: usize = 32;
const REGISTERS: usize = 64;

/// A rule at work: its registers, and the way that it changes.
#[derive(Clone)]
pub(super) struct Work {
    registers: Bits,
    way: Way,
}

impl Run<'_> {
    /// Carries a rule's steps out, from one on.
    pub(super) fn steps(
        &self,
        chain: &Chain,
        rule: &Rule,
        name: &RuleName,
        from: usize,
        mut work: Work,
        out: &mut Vec<(Applied, Way)>,
    ) {
        for (at, step) in rule.steps.iter().enumerate().skip(from) {
            let holds = match step {
                Step::Verdict(verdict) => {
                    return out.push((Applied::Verdict(verdict.clone()), work.way));
                }
                Step::Unknown(_) => return out.push((Applied::Ends(Ending::Unclear), work.way)),
                Step::Lookup { .. } => {
                    return self.lookup(chain, rule, name, at, work, out);
                }
                Step::Random {
                    into,
                    modulus,
                    offset,
                } => {
                    let count = (*modulus).min(MOST_ELEMENTS as u32);
                    for number in 0..count {
                        let mut chosen = work.clone();
                        if count > 1 {
                            chosen.guess(name, true, true);
                        }
                        let value = Bits::known(&(number + offset).to_ne_bytes());
                        chosen.registers.put(*into, &value);
                        self.steps(chain, rule, name, at + 1, chosen, out);
                    }
                    return;
                }
                Step::Nat { .. }
                | Step::Masquerade
                | Step::Redirect { .. }
                | Step::Translate { .. } => {
                    let applied = match self.translate(step, name, &mut work) {
                        true => Applied::Verdict(Verdict::Accept),
                        false => Applied::Ends(Ending::Unclear),
                    };
                    return out.push((applied, work.way));
                }
                Step::Test { test, equal } => {
                    let answer = self.test(test, &work.way.state);
                    answer.map(|answer| answer == *equal)
                }
                Step::Compare { from, how, value } => compare(&work.registers, *from, *how, value),
                Step::Range {
                    from,
                    inside,
                    low,
                    high,
                } => {
                    let part = work.registers.part(*from, low.len());
                    part.is_between(low, high).map(|answer| answer == *inside)
                }
                Step::Unsure => None,
                other => self.compute(other, &mut work),
            };
            match holds {
                Some(true) => {}
                Some(false) => return out.push((Applied::Verdict(Verdict::Continue), work.way)),
                None => {
                    let by_chance = matches!(
                        step,
                        Step::Test {
                            test: Test::Random,
                            ..
                        }
                    );
                    let mut not = work.clone();
                    not.guess(name, false, by_chance);
                    out.push((Applied::Verdict(Verdict::Continue), not.way));
                    work.guess(name, true, by_chance);
                }
            }
        }
        out.push((Applied::Verdict(Verdict::Continue), work.way));
    }

    /// A step that only computes; `Some(false)` ends the rule.
    fn compute(&self, step: &Step, work: &mut Work) -> Option<bool> {
        match step {
            Step::Load {
                into,
                length,
                source,
            } => {
                let state = &work.way.state;
                match fields::load(source, *length, self.moment, self.packet, state) {
                    Some(bits) => work.put(*into, &bits),
                    None => return Some(false),
                }
            }
            Step::Set { into, value } => work.put(*into, &Bits::known(value)),
            Step::Bitwise {
                from,
                into,
                mask,
                flip,
            } => {
                let part = work.registers.part(*from, mask.len());
                work.registers.put(*into, &part.bitwise(mask, flip));
            }
            Step::Swap {
                from,
                into,
                length,
                size,
            } => {
                let part = work.registers.part(*from, *length);
                work.registers.put(*into, &part.swapped(*size));
            }
            Step::Compute { into, length } => work.registers.put(*into, &Bits::unknown(*length)),
            Step::SetMark { from } => work.way.state.mark = work.registers.part(*from, 4),
            Step::Mark { value, mask } => {
                let flip = value.to_ne_bytes();
                let keep = (!mask).to_ne_bytes();
                work.way.state.mark = work.way.state.mark.bitwise(&keep, &flip);
            }
            _ => {}
        }
        Some(true)
    }

    /// Changes addresses; false if it is not known to what.
    fn translate(&self, step: &Step, name: &RuleName, work: &mut Work) -> bool {
        let width = if self.packet.is_ipv4() { 4 } else { 16 };
        let in_register = |at: usize| address(work.registers.part(at, width).all()?);
        let port_in = |at: usize| {
            let port = work.registers.part(at, 2);
            port.all()
                .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let tuple = work.way.state.tuple;
        let (source, addr, port) = match *step {
            Step::Nat {
                source,
                address,
                port,
            } => {
                let addr = address.map(in_register);
                let port = port.map(port_in);
                if addr == Some(None) || port == Some(None) {
                    return false;
                }
                (source, addr.flatten(), port.flatten())
            }
            Step::Translate {
                source,
                address,
                port,
            } => (source, address, port),
            Step::Redirect { port } => {
                let own = match self.moment.incoming {
                    None => None,
                    Some(link) => self.moment.place.address_for(link.index, tuple.src),
                };
                let loopback = if tuple.dst.is_ipv4() {
                    IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)
                } else {
                    IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
                };
                (false, Some(own.unwrap_or(loopback)), port.and_then(port_in))
            }
            _ => {
                work.way.state.source_changed = true;
                work.way.translated = true;
                work.way.changes.push((Change::Masquerade, name.clone()));
                return true;
            }
        };
        let way = &mut work.way;
        way.translated = true;
        let new = &mut way.state.tuple;
        let change = if source {
            new.src = addr.unwrap_or(tuple.src);
            // Which port it gets is the kernel's to choose.
            new.source_port = port.or(None);
            way.state.source_changed = true;
            Change::Source(*new)
        } else {
            new.dst = addr.unwrap_or(tuple.dst);
            new.destination_port = port.or(tuple.destination_port);
            way.state.destination_changed = true;
            Change::Destination(*new)
        };
        way.changes.push((change, name.clone()));
        true
    }

    /// A lookup in a set or map, and the rest of the rule.
    fn lookup(
        &self,
        chain: &Chain,
        rule: &Rule,
        name: &RuleName,
        at: usize,
        work: Work,
        out: &mut Vec<(Applied, Way)>,
    ) {
        let Step::Lookup {
            set,
            from,
            into,
            inverted,
        } = &rule.steps[at]
        else {
            return;
        };
        let Some(set) = self.rules.set(&chain.table, set) else {
            return out.push((Applied::Ends(Ending::Unclear), work.way));
        };
        let key = work.registers.part(*from, set.key_length as usize);
        let (certain, possible) = found(set, &key);
        let is_map = into.is_some();
        if !is_map {
            let holds = match (certain, possible.is_empty()) {
                (Some(_), _) => Some(!inverted),
                (None, true) => Some(*inverted),
                (None, false) => None,
            };
            if holds != Some(true) {
                let mut not = work.clone();
                if holds.is_none() {
                    not.guess(name, false, false);
                }
                out.push((Applied::Verdict(Verdict::Continue), not.way));
            }
            if holds != Some(false) {
                let mut goes_on = work;
                if holds.is_none() {
                    goes_on.guess(name, true, false);
                }
                self.steps(chain, rule, name, at + 1, goes_on, out);
            }
            return;
        }
        let candidates = certain.map_or(possible, |one| vec![one]);
        for element in candidates.iter().take(MOST_ELEMENTS) {
            let mut chosen = work.clone();
            if certain.is_none() {
                chosen.guess(name, true, false);
            }
            match (&element.data, into) {
                (Some(Data::Verdict(verdict)), _) => {
                    out.push((Applied::Verdict(nft::verdict(verdict)), chosen.way));
                }
                (Some(Data::Value(value)), Some(into)) => {
                    chosen.registers.put(*into, &Bits::known(value));
                    self.steps(chain, rule, name, at + 1, chosen, out);
                }
                _ => out.push((Applied::Ends(Ending::Unclear), chosen.way)),
            }
        }
        if certain.is_none() {
            let mut not = work;
            if !candidates.is_empty() {
                not.guess(name, false, false);
            }
            out.push((Applied::Verdict(Verdict::Continue), not.way));
        }
    }
}

impl Work {
    /// Loads a value; the rest of its last register is 0.
    fn put(&mut self, into: usize, value: &Bits) {
        let mut padded = Bits::known(&vec![0; value.len().next_multiple_of(4)]);
        padded.put(0, value);
        self.registers.put(into, &padded);
    }

    pub(super) fn new(way: Way) -> Self {
        let registers = Bits::unknown(REGISTERS);
        Self { registers, way }
    }

    fn guess(&mut self, rule: &RuleName, applies: bool, by_chance: bool) {
        let same = |guess: &Guess| guess.rule == *rule && guess.applies == applies;
        if !self.way.guesses.iter().any(same) {
            self.way.guesses.push(Guess {
                rule: rule.clone(),
                applies,
                by_chance,
            });
        }
    }
}

fn compare(registers: &Bits, from: usize, how: Comparison, value: &[u8]) -> Option<bool> {
    let part = registers.part(from, value.len());
    let (lowest, highest) = (vec![0; value.len()], vec![0xff; value.len()]);
    match how {
        Comparison::Equal => part.equals(value),
        Comparison::Differs => part.equals(value).map(|same| !same),
        Comparison::LessOrEqual => part.is_between(&lowest, value),
        Comparison::Greater => part.is_between(&lowest, value).map(|inside| !inside),
        Comparison::GreaterOrEqual => part.is_between(value, &highest),
        Comparison::Less => part.is_between(value, &highest).map(|inside| !inside),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}
