//! A packet's way as a drawing and as JSON.

use carpel_netpath::place::{PlaceId, World};
use carpel_netpath::walk::{About, End, Hop, Journey, Mood, Walk};
use serde_json::{Value, json};

use super::diagram::{Card, Diagram, Row, Section, Tone};

/// Draws the way there and, if there is one, the way back.
pub fn diagram(world: &World, journey: &Journey, from: &str, to: &str) -> Diagram {
    let packet = journey.there.packet;
    let port = match packet.tuple.destination_port {
        Some(port) => format!("port {port}"),
        None => "any port".into(),
    };
    let what = match packet.protocol.name() {
        "icmp" => "a ping".to_owned(),
        protocol => format!("{protocol}, {port}, a new connection"),
    };
    let mut sections = vec![section(world, &journey.there, "there", to)];
    if let Some(back) = &journey.back {
        sections.push(section(world, back, "the answer", from));
    }
    Diagram {
        title: format!("{from} → {to}"),
        detail: what,
        sections,
        remarks: remarks(world, journey),
    }
}

/// What cannot be taken into account, of the places that the packet passes.
fn remarks(world: &World, journey: &Journey) -> Vec<String> {
    let walks = std::iter::once(&journey.there).chain(&journey.back);
    let mut places: Vec<PlaceId> = walks
        .flat_map(|walk| &walk.hops)
        .map(|hop| hop.place)
        .collect();
    places.sort_unstable();
    places.dedup();
    let cautions = places.iter().flat_map(|id| {
        let place = world.place(*id);
        place
            .cautions
            .iter()
            .map(|caution| format!("{}: {caution}", place.name))
    });
    cautions.collect()
}

fn section(world: &World, walk: &Walk, heading: &str, to: &str) -> Section {
    let mut cards: Vec<Card> = Vec::new();
    let mut at: Option<PlaceId> = None;
    for hop in &walk.hops {
        if at != Some(hop.place) {
            if let Some(last) = cards.last_mut() {
                last.wire = Some(String::new());
            }
            cards.push(Card {
                title: world.place(hop.place).name.clone(),
                ..Card::default()
            });
            at = Some(hop.place);
        }
        if let Some(card) = cards.last_mut() {
            card.rows.push(row(hop));
        }
    }
    Section {
        heading: format!("{heading}: {}", walk.packet),
        cards,
        end: end(world, walk, to),
    }
}

fn row(hop: &Hop) -> Row {
    let tone = match (hop.mood, hop.about) {
        (Mood::Note, _) => Tone::Note,
        (Mood::Maybe, _) => Tone::Maybe,
        (Mood::Sure, About::Delivery) => Tone::Good,
        (Mood::Sure, _) => Tone::Plain,
    };
    Row::new(hop.about.word(), &hop.text, tone)
}

fn end(world: &World, walk: &Walk, to: &str) -> Vec<Row> {
    match &walk.end {
        End::Reached { .. } => vec![Row::new("", format!("reaches {to}"), Tone::Good)],
        End::Left { text, .. } => {
            let text = format!("{text}; what happens to it there cannot be seen from here");
            vec![Row::new("", text, Tone::Note)]
        }
        End::Unknown { place, text } => {
            let text = format!(
                "cannot be followed further in {}: {text}",
                world.place(*place).name
            );
            vec![Row::new("", text, Tone::Maybe)]
        }
        End::Stopped {
            place,
            text,
            advice,
            ..
        } => {
            let text = format!("stops in {}: {text}", world.place(*place).name);
            let mut rows = vec![Row::new("", text, Tone::Stop)];
            let advice = advice.as_ref().map(|advice| format!("try: {advice}"));
            rows.extend(advice.map(|advice| Row::new("", advice, Tone::Plain)));
            rows
        }
    }
}

/// The same for programs.
pub fn json(world: &World, journey: &Journey, from: &str, to: &str) -> Value {
    json!({
        "from": from,
        "to": to,
        "arrives": journey.arrives(),
        "there": walk_json(world, &journey.there),
        "back": journey.back.as_ref().map(|back| walk_json(world, back)),
        "cautions": remarks(world, journey),
    })
}

fn walk_json(world: &World, walk: &Walk) -> Value {
    let name = |id: &PlaceId| world.place(*id).name.clone();
    let hop = |hop: &Hop| {
        json!({
            "place": name(&hop.place),
            "about": hop.about.word(),
            "certainty": match hop.mood {
                Mood::Sure => "sure",
                Mood::Note => "note",
                Mood::Maybe => "maybe",
            },
            "text": hop.text,
        })
    };
    let end = match &walk.end {
        End::Reached { place } => json!({ "result": "reached", "place": name(place) }),
        End::Left { place, text } => {
            json!({ "result": "left", "place": name(place), "text": text })
        }
        End::Unknown { place, text } => {
            json!({ "result": "unknown", "place": name(place), "text": text })
        }
        End::Stopped {
            place,
            reason,
            text,
            advice,
        } => json!({
            "result": "stopped", "place": name(place), "reason": reason.word(), "text": text, "advice": advice,
        }),
    };
    let packet = walk.packet;
    json!({
        "packet": {
            "protocol": packet.protocol.name(),
            "source": packet.tuple.src,
            "destination": packet.tuple.dst,
            "destinationPort": packet.tuple.destination_port,
        },
        "hops": walk.hops.iter().map(hop).collect::<Vec<_>>(),
        "end": end,
    })
}
