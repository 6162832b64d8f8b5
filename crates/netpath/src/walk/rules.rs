//! The rules of a hook, and what becomes of the packet there.

use std::net::IpAddr;

use super::{About, At, End, Mood, Outcome, Reason, Walker};
use crate::filter::run::{self, Change, Ending, Moment, RuleName, State};
use crate::filter::{Hook, Layer};
use crate::packet::endpoint;
use crate::place::{LinkId, PlaceId};

/// When the kernel undoes translations: with the chains that translate.
const UNDO_DESTINATION: i32 = -100;
const UNDO_SOURCE: i32 = 100;
/// The most rules that one hop lists.
const MOST_LISTED: usize = 4;

impl Walker<'_> {
    /// Has the packet pass the rules that see it as such.
    pub(super) fn hooks(
        &mut self,
        place: PlaceId,
        hook: Hook,
        incoming: Option<LinkId>,
        outgoing: Option<LinkId>,
    ) -> Outcome<()> {
        self.pass(place, self.layer(), hook, incoming, outgoing)
    }

    /// Has it pass the rules of a layer.
    pub(super) fn pass(
        &mut self,
        place: PlaceId,
        layer: Layer,
        hook: Hook,
        incoming: Option<LinkId>,
        outgoing: Option<LinkId>,
    ) -> Outcome<()> {
        let here = self.place(place);
        let is_ip = matches!(layer, Layer::V4 | Layer::V6);
        let undone = match hook {
            _ if !is_ip => None,
            Hook::Prerouting | Hook::Output => self
                .undone_destination()
                .map(|tuple| (UNDO_DESTINATION, tuple)),
            Hook::Postrouting | Hook::Input => {
                self.undone_source().map(|tuple| (UNDO_SOURCE, tuple))
            }
            _ => None,
        };
        let moment = Moment {
            kernel: self.kernel,
            id: place,
            place: here,
            layer,
            hook,
            incoming: incoming.and_then(|link| here.link(link.index)),
            outgoing: outgoing.and_then(|link| here.link(link.index)),
            source_mac: self.source_mac,
            destination_mac: None,
        };
        let mut state = State::new(&self.packet);
        state.destination_changed = self.destination_changed;
        state.source_changed = self.source_changed;
        let is_done = match hook {
            Hook::Prerouting | Hook::Output => self.destination_changed,
            _ => self.source_changed,
        };
        let outcomes = run::pass(&here.rules, &moment, &self.packet, state, undone, is_done);
        if let Some((_, tuple)) = undone {
            let text = match hook {
                Hook::Prerouting | Hook::Output => {
                    format!(
                        "the answer's destination is put back to {}",
                        tuple.destination()
                    )
                }
                _ => format!(
                    "its source is put back to {}",
                    endpoint(tuple.src, tuple.source_port)
                ),
            };
            self.hop(place, About::Translation, text);
            if matches!(hook, Hook::Postrouting | Hook::Input) {
                self.source_to_undo = None;
            }
        }
        self.settle(place, hook, outgoing, &outcomes)
    }

    /// Goes on with the likeliest outcome, and tells of the others.
    fn settle(
        &mut self,
        place: PlaceId,
        hook: Hook,
        outgoing: Option<LinkId>,
        outcomes: &[run::Outcome],
    ) -> Outcome<()> {
        let goes_on = |outcome: &&run::Outcome| outcome.ending == Ending::Accepted;
        let accepted: Vec<_> = outcomes.iter().filter(goes_on).collect();
        let others: Vec<_> = outcomes
            .iter()
            .filter(|outcome| !goes_on(outcome))
            .collect();
        let Some(chosen) = accepted.first() else {
            return match others.first() {
                Some(first) => Err(end(place, first)),
                None => Ok(()),
            };
        };
        self.tell_others(place, &others);
        self.tell_alternatives(place, &accepted);
        let mut tuple = chosen.way.state.tuple;
        for (change, rule) in &chosen.way.changes {
            let text = match change {
                Change::Destination(new) => format!("destination becomes {}", new.destination()),
                Change::Source(new) => {
                    format!("source becomes {}", endpoint(new.src, new.source_port))
                }
                Change::Masquerade => {
                    let address = outgoing.and_then(|link| self.masquerade_address(link));
                    let Some(address) = address else {
                        return Err(End::Stopped {
                            place,
                            reason: Reason::Dropped,
                            text: format!(
                                "{rule}: the link that it leaves by has no address to masquerade with"
                            ),
                            advice: None,
                        });
                    };
                    tuple.src = address;
                    tuple.source_port = None;
                    format!("source becomes {address}")
                }
            };
            self.hop(place, About::Translation, format!("{text} ({rule})"));
        }
        let state = &chosen.way.state;
        self.packet.tuple = tuple;
        self.destination_changed = state.destination_changed;
        self.source_changed = state.source_changed;
        match state.mark.all() {
            Some(bytes) => {
                self.packet.mark = bytes.try_into().map_or(0, u32::from_ne_bytes);
            }
            None => {
                self.packet.mark = 0;
                let text = format!("the rules of {} set a mark that is not known", hook.name());
                self.note(place, About::Rules, Mood::Note, text);
            }
        }
        Ok(())
    }

    fn masquerade_address(&self, out: LinkId) -> Option<IpAddr> {
        let next_hop = self
            .next_hop_for_masquerade
            .unwrap_or(self.packet.tuple.dst);
        self.place(out.place).address_for(out.index, next_hop)
    }

    /// What may become of the packet instead.
    fn tell_others(&mut self, place: PlaceId, others: &[&run::Outcome]) {
        let mut told: Vec<String> = Vec::new();
        for outcome in others {
            let text = match &outcome.ending {
                Ending::Accepted => continue,
                Ending::Dropped(rule) => format!("may be dropped by {rule}"),
                Ending::Rejected(rule) => format!("may be rejected by {rule}"),
                Ending::Queued(rule) => format!("may be handed to a program by {rule}"),
                Ending::Unclear(rule) => format!("may be affected by {rule}"),
            };
            let depends = condition(outcome);
            let text = format!("{text}{depends}");
            if !told.contains(&text) {
                told.push(text);
            }
        }
        let more = told.len().saturating_sub(MOST_LISTED);
        for text in told.into_iter().take(MOST_LISTED) {
            self.note(place, About::Rules, Mood::Maybe, text);
        }
        if more > 0 {
            self.note(
                place,
                About::Rules,
                Mood::Maybe,
                format!("and by {more} more rules"),
            );
        }
    }

    /// Where else the packet may be sent.
    fn tell_alternatives(&mut self, place: PlaceId, accepted: &[&run::Outcome]) {
        let mut ways: Vec<String> = Vec::new();
        for outcome in accepted {
            let to = outcome.way.state.tuple.destination();
            if !ways.contains(&to) {
                ways.push(to);
            }
        }
        if ways.len() < 2 {
            return;
        }
        let chance = accepted.iter().flat_map(|outcome| &outcome.way.guesses);
        let by_chance = chance.clone().any(|guess| guess.by_chance);
        let (mood, word) = match by_chance {
            true => (Mood::Note, "by chance"),
            false => (Mood::Maybe, "depending on what is not known"),
        };
        let more = ways.len().saturating_sub(MOST_LISTED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        ways.truncate(MOST_LISTED);
        let text = format!(
            "goes {word} to one of {}{more}; followed is the first",
            ways.join(", ")
        );
        self.note(place, About::Translation, mood, text);
    }

    /// The rules that look at whatever comes in by a link.
    pub(super) fn ingress(&mut self, link: LinkId) -> Outcome<()> {
        self.pass(link.place, Layer::Netdev, Hook::Ingress, Some(link), None)
    }

    pub(super) fn egress(&mut self, link: LinkId) -> Outcome<()> {
        self.pass(link.place, Layer::Netdev, Hook::Egress, None, Some(link))
    }

    /// The rules of IP that a bridge shows the packets in its frames to. `Some`: one has sent it elsewhere.
    pub(super) fn bridged(&mut self, bridge: LinkId) -> Outcome<Option<At>> {
        let place = bridge.place;
        self.enter(place);
        let before = self.packet.tuple;
        self.hooks(place, Hook::Prerouting, Some(bridge), None)?;
        if self.packet.tuple.dst != before.dst {
            let text = "the bridge gives it to the machine, as it is for somebody else now";
            self.note(place, About::Bridge, Mood::Note, text);
            return Ok(Some(At::Input(bridge)));
        }
        self.hooks(place, Hook::Forward, Some(bridge), Some(bridge))?;
        self.hooks(place, Hook::Postrouting, None, Some(bridge))?;
        Ok(None)
    }
}

/// What an outcome depends on that is not known.
fn condition(outcome: &run::Outcome) -> String {
    let deciding: Option<&RuleName> = match &outcome.ending {
        Ending::Accepted => None,
        Ending::Dropped(rule)
        | Ending::Rejected(rule)
        | Ending::Queued(rule)
        | Ending::Unclear(rule) => Some(rule),
    };
    let other = outcome
        .way
        .guesses
        .iter()
        .find(|guess| Some(&guess.rule) != deciding);
    match other {
        None => String::new(),
        Some(guess) => {
            let word = if guess.applies { "if" } else { "unless" };
            format!(" ({word} it is what \"{}\" means)", guess.rule.text)
        }
    }
}

fn end(place: PlaceId, outcome: &run::Outcome) -> End {
    let (reason, text) = match &outcome.ending {
        Ending::Dropped(rule) => (Reason::Dropped, format!("dropped by {rule}")),
        Ending::Rejected(rule) => (Reason::Rejected, format!("rejected by {rule}")),
        Ending::Queued(rule) => {
            let text = format!("a program decides: {rule}");
            return End::Unknown { place, text };
        }
        Ending::Unclear(rule) => {
            let text = format!("what a rule does is not known: {rule}");
            return End::Unknown { place, text };
        }
        Ending::Accepted => (Reason::Dropped, String::new()),
    };
    End::Stopped {
        place,
        reason,
        text,
        advice: None,
    }
}
