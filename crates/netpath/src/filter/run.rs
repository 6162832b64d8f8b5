//! Carries rules out on a packet.
//!
//! Where a rule depends on what is not known, the packet goes on twice: once as if the rule applied and once as if it
//! did not. Ways that come to the same are one again, so there are never many.

use carpel_netlink::link::{Link, Mac};

use super::bits::Bits;
use super::steps::Work;
use super::{Chain, Hook, Kind, Layer, Ruleset, TableName, Verdict};
use crate::Kernel;
use crate::packet::{Packet, Tuple};
use crate::place::{Place, PlaceId};

/// How many ways are followed at a time.
const MOST_WAYS: usize = 64;
/// How deep chains may call each other; the kernel allows as many.
const MOST_CALLS: usize = 16;

/// Where the packet is.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    pub kernel: &'a dyn Kernel,
    pub id: PlaceId,
    pub place: &'a Place,
    pub layer: Layer,
    pub hook: Hook,
    pub incoming: Option<&'a Link>,
    pub outgoing: Option<&'a Link>,
    pub source_mac: Option<Mac>,
    pub destination_mac: Option<Mac>,
}

/// A rule, or a chain's policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleName {
    pub table: TableName,
    pub chain: String,
    /// The rule as one would write it.
    pub text: String,
}

impl std::fmt::Display for RuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, chain {}: {}", self.table, self.chain, self.text)
    }
}

/// What is known of a packet on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub tuple: Tuple,
    pub mark: Bits,
    pub connection_mark: Bits,
    pub destination_changed: bool,
    pub source_changed: bool,
}

impl State {
    #[must_use]
    pub fn new(packet: &Packet) -> Self {
        Self {
            tuple: packet.tuple,
            mark: Bits::known(&packet.mark.to_ne_bytes()),
            // Nobody has marked a connection that begins.
            connection_mark: if packet.is_answer {
                Bits::unknown(4)
            } else {
                Bits::known(&[0; 4])
            },
            destination_changed: false,
            source_changed: false,
        }
    }
}

/// Something that was decided without being known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guess {
    pub rule: RuleName,
    /// That it applies.
    pub applies: bool,
    pub by_chance: bool,
}

/// What a rule has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It goes elsewhere.
    Destination(Tuple),
    /// It comes from elsewhere.
    Source(Tuple),
    /// It gets the address of the link that it leaves by.
    Masquerade,
}

/// One way that a packet may have gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub state: State,
    pub changes: Vec<(Change, RuleName)>,
    pub guesses: Vec<Guess>,
    /// Its addresses were translated at this hook: other chains for that do not see it.
    pub(super) translated: bool,
}

/// How a way ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It goes on.
    Accepted,
    Dropped(RuleName),
    Rejected(RuleName),
    /// A program decides.
    Queued(RuleName),
    /// It is not known what the rule does.
    Unclear(RuleName),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub ending: Ending,
    pub way: Way,
}

/// Has a packet pass all chains of a hook. `undone` is what the kernel takes back of a translation, by itself, just
/// before the chains of a priority. With `translated`, the chains that would translate have had their say.
///
/// What comes back is never empty; the ways with the fewest guesses come first.
#[must_use]
pub fn pass(
    rules: &Ruleset,
    moment: &Moment<'_>,
    packet: &Packet,
    state: State,
    mut undone: Option<(i32, Tuple)>,
    translated: bool,
) -> Vec<Outcome> {
    let run = Run {
        rules,
        moment,
        packet,
    };
    let mut live = vec![Way {
        state,
        changes: Vec::new(),
        guesses: Vec::new(),
        translated,
    }];
    let mut outcomes = Vec::new();
    let device = match moment.hook {
        Hook::Egress => moment.outgoing,
        _ => moment.incoming,
    };
    let device = device.map(|link| link.name.as_str());
    for chain in rules.entered(moment.layer, moment.hook, device) {
        let Some(base) = &chain.base else { continue };
        if let Some((_, tuple)) = undone.take_if(|(priority, _)| *priority <= base.priority) {
            live.iter_mut().for_each(|way| way.state.tuple = tuple);
        }
        if base.kind == Kind::Nat && packet.is_answer {
            continue;
        }
        let (done, entering): (Vec<_>, Vec<_>) = live
            .into_iter()
            .partition(|way| base.kind == Kind::Nat && way.translated);
        let (fallen, ended) = run.chain(chain, entering, 0);
        let mut next = done;
        for way in fallen {
            if base.drops {
                let ending = Ending::Dropped(name_of(chain, "policy drop"));
                outcomes.push(Outcome { ending, way });
            } else {
                next.push(way);
            }
        }
        for outcome in ended {
            match outcome.ending {
                Ending::Accepted => next.push(outcome.way),
                _ => outcomes.push(outcome),
            }
        }
        live = distinct(next);
    }
    if let Some((_, tuple)) = undone {
        live.iter_mut().for_each(|way| way.state.tuple = tuple);
    }
    outcomes.extend(live.into_iter().map(|way| Outcome {
        ending: Ending::Accepted,
        way,
    }));
    outcomes.sort_by_key(|outcome| outcome.way.guesses.len());
    outcomes
}

fn name_of(chain: &Chain, text: &str) -> RuleName {
    RuleName {
        table: chain.table.clone(),
        chain: chain.name.clone(),
        text: text.to_owned(),
    }
}

/// The ways that differ in what the packet is by now, each by the fewest guesses.
fn distinct(mut ways: Vec<Way>) -> Vec<Way> {
    ways.sort_by_key(|way| way.guesses.len());
    let mut kept: Vec<Way> = Vec::new();
    for way in ways {
        let same = |other: &Way| other.state == way.state && other.translated == way.translated;
        match kept.iter().position(same) {
            Some(known) => {
                forget_what_does_not_matter(&mut kept[known].guesses, &way.guesses);
            }
            None if kept.len() < MOST_WAYS => kept.push(way),
            None => {}
        }
    }
    kept
}

/// Two ways have come to the same. If they differ in one guess only, it does not matter.
fn forget_what_does_not_matter(guesses: &mut Vec<Guess>, others: &[Guess]) {
    let opposite =
        |guess: &Guess, other: &Guess| guess.rule == other.rule && guess.applies != other.applies;
    let without = |at: usize, list: &[Guess], rest: &[Guess]| {
        let mut list = list.iter().enumerate().filter(|(n, _)| *n != at);
        list.all(|(_, guess)| rest.contains(guess))
    };
    let found = guesses.iter().enumerate().find_map(|(at, guess)| {
        let other = others.iter().position(|other| opposite(guess, other))?;
        (guesses.len() == others.len()
            && without(at, guesses, others)
            && without(other, others, guesses))
        .then_some(at)
    });
    if let Some(at) = found {
        guesses.remove(at);
    }
}

/// What a rule does with one way.
pub(super) enum Applied {
    Verdict(Verdict),
    Ends(fn(RuleName) -> Ending),
}

pub(super) struct Run<'a> {
    pub rules: &'a Ruleset,
    pub moment: &'a Moment<'a>,
    pub packet: &'a Packet,
}

impl Run<'_> {
    /// The ways that come out at the chain's end, and those that have ended.
    fn chain(&self, chain: &Chain, mut live: Vec<Way>, depth: usize) -> (Vec<Way>, Vec<Outcome>) {
        let mut out = Out::default();
        for rule in &chain.rules {
            if live.is_empty() {
                break;
            }
            let name = name_of(chain, &rule.text);
            for way in std::mem::take(&mut live) {
                let mut applied = Vec::new();
                self.steps(chain, rule, &name, 0, Work::new(way), &mut applied);
                for (what, way) in applied {
                    self.apply(chain, what, way, &name, depth, &mut out);
                }
            }
            live = distinct(std::mem::take(&mut out.still));
        }
        out.returned.extend(live);
        (distinct(out.returned), distinct_outcomes(out.ended))
    }

    fn apply(
        &self,
        chain: &Chain,
        what: Applied,
        way: Way,
        name: &RuleName,
        depth: usize,
        out: &mut Out,
    ) {
        let ending = match what {
            Applied::Ends(ending) => ending(name.clone()),
            Applied::Verdict(verdict) => match verdict {
                Verdict::Continue => return out.still.push(way),
                Verdict::Return => return out.returned.push(way),
                Verdict::Accept => Ending::Accepted,
                Verdict::Drop => Ending::Dropped(name.clone()),
                Verdict::Reject => Ending::Rejected(name.clone()),
                Verdict::Queue => Ending::Queued(name.clone()),
                Verdict::Jump(ref to) | Verdict::Goto(ref to) => {
                    let called = self.rules.chain(&chain.table, to);
                    match called.filter(|_| depth < MOST_CALLS) {
                        None => Ending::Unclear(name.clone()),
                        Some(called) => {
                            let (back, ended) = self.chain(called, vec![way], depth + 1);
                            out.ended.extend(ended);
                            match verdict {
                                Verdict::Jump(_) => out.still.extend(back),
                                _ => out.returned.extend(back),
                            }
                            return;
                        }
                    }
                }
            },
        };
        out.ended.push(Outcome { ending, way });
    }
}

/// Where ways go at a rule.
#[derive(Default)]
struct Out {
    /// To the next rule.
    still: Vec<Way>,
    /// To the chain's end.
    returned: Vec<Way>,
    ended: Vec<Outcome>,
}

fn distinct_outcomes(mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
    outcomes.sort_by_key(|outcome| outcome.way.guesses.len());
    let mut kept: Vec<Outcome> = Vec::new();
    for outcome in outcomes {
        let same = |other: &Outcome| {
            other.ending == outcome.ending && other.way.state == outcome.way.state
        };
        if kept.len() < MOST_WAYS && !kept.iter().any(same) {
            kept.push(outcome);
        }
    }
    kept
}
