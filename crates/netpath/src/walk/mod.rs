//! Follows a packet, hop by hop, as the kernel would carry it, and says where it ends.
//!
//! ```text
//! output ─▶ route ─▶ rules ─▶ transmit ─▶ frame ─▶ arrive ─▶ input ─▶ route ─▶ rules ─▶ delivered
//!                                ▲          │ bridges,  │                        │
//!                                │          ▼ pairs     ▼                        │
//!                                └──────────────── forwarded ◀───────────────────┘
//! ```
//!
//! A walk is of one packet. That of the answer is another, in which the kernel undoes the translations of the first.

mod explain;
mod frame;
mod ip;
mod ports;
mod rules;
mod segment;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use carpel_netlink::link::{Link, Mac};

use crate::Kernel;
use crate::packet::{Packet, Protocol, Tuple};
use crate::place::{LinkId, Place, PlaceId, World};

/// A packet that has gone so far goes in circles.
const MOST_PLACES: usize = 100;

/// What a hop is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Route,
    Link,
    Neighbour,
    Bridge,
    Rules,
    Translation,
    Delivery,
}

impl About {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Link => "link",
            Self::Neighbour => "neighbour",
            Self::Bridge => "bridge",
            Self::Rules => "rules",
            Self::Translation => "nat",
            Self::Delivery => "delivery",
        }
    }
}

/// How sure a hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Sure,
    /// It goes on, and something is worth a look.
    Note,
    /// It may end here: that depends on what is not known.
    Maybe,
}

/// One thing that happens to the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    pub place: PlaceId,
    pub about: About,
    pub mood: Mood,
    pub text: String,
}

/// Why a packet goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NoRoute,
    /// A route that says so.
    Refused,
    NoAddress,
    LinkDown,
    NoNeighbour,
    WrongAddress,
    PortBlocked,
    PortIsolated,
    HairpinOff,
    OtherVlan,
    ForwardingOff,
    ReversePath,
    Martian,
    Dropped,
    Rejected,
    NobodyListens,
    NotForUs,
    Astray,
    Circles,
    Discarded,
}

impl Reason {
    /// The reason in a word, for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::Refused => "refused-by-route",
            Self::NoAddress => "no-address",
            Self::LinkDown => "link-down",
            Self::NoNeighbour => "no-neighbour",
            Self::WrongAddress => "wrong-hardware-address",
            Self::PortBlocked => "port-not-forwarding",
            Self::PortIsolated => "ports-isolated",
            Self::HairpinOff => "hairpin-off",
            Self::OtherVlan => "other-vlan",
            Self::ForwardingOff => "forwarding-off",
            Self::ReversePath => "rp-filter",
            Self::Martian => "martian",
            Self::Dropped => "dropped-by-rule",
            Self::Rejected => "rejected-by-rule",
            Self::NobodyListens => "nobody-listens",
            Self::NotForUs => "not-for-us",
            Self::Astray => "answer-astray",
            Self::Circles => "circles",
            Self::Discarded => "discarded",
        }
    }
}

/// How a walk ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It is there.
    Reached { place: PlaceId },
    /// It leaves the machine.
    Left { place: PlaceId, text: String },
    /// It cannot be followed further.
    Unknown { place: PlaceId, text: String },
    Stopped {
        place: PlaceId,
        reason: Reason,
        text: String,
        /// What may be done about it.
        advice: Option<String>,
    },
}

/// A packet's walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// As it began; the source is known then.
    pub packet: Packet,
    pub hops: Vec<Hop>,
    pub end: End,
}

/// There, and back if somebody there answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journey {
    pub there: Walk,
    pub back: Option<Walk>,
}

impl Journey {
    /// Whether nothing is known that would stop it.
    #[must_use]
    pub fn arrives(&self) -> bool {
        let stops = |walk: &Walk| matches!(walk.end, End::Stopped { .. });
        !stops(&self.there) && !self.back.as_ref().is_some_and(stops)
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Errand {
    pub from: PlaceId,
    pub to: IpAddr,
    pub protocol: Protocol,
    /// None: any.
    pub port: Option<u16>,
}

/// Follows the first packet of a connection, and the first answer.
pub fn journey(world: &World, kernel: &dyn Kernel, errand: Errand) -> Journey {
    let unspecified = match errand.to {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let packet = Packet {
        tuple: Tuple {
            src: unspecified,
            dst: errand.to,
            source_port: None,
            destination_port: errand.port,
        },
        protocol: errand.protocol,
        is_answer: false,
        mark: 0,
    };
    let mut walker = Walker::new(world, kernel, packet, Vec::new());
    let there = walker.walk(errand.from);
    let End::Reached { place } = there.end else {
        return Journey { there, back: None };
    };
    let answer = Packet {
        tuple: walker.packet.tuple.reversed(),
        is_answer: true,
        mark: 0,
        ..packet
    };
    let asked = there.packet.tuple;
    let translations = std::mem::take(&mut walker.translations);
    let mut walker = Walker::new(world, kernel, answer, translations);
    let mut back = walker.walk(place);
    if let End::Reached { place: at } = back.end
        && (at != errand.from
            || (walker.packet.tuple.dst, walker.packet.tuple.src) != (asked.src, asked.dst))
    {
        back.end = End::Stopped {
            place: at,
            reason: Reason::Astray,
            text: format!(
                "the answer comes to {} from {}, where nobody was asked",
                world.place(at).name,
                walker.packet.tuple.src
            ),
            advice: None,
        };
    }
    Journey {
        there,
        back: Some(back),
    }
}

/// A translation of a connection's addresses, and where it was done.
#[derive(Debug, Clone, Copy)]
struct Translation {
    place: PlaceId,
    before: Tuple,
    after: Tuple,
}

/// Where the packet is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// A process has made it.
    Output(PlaceId),
    /// It is to leave by a link, towards a next hop.
    Transmit(LinkId, IpAddr),
    /// It leaves by a link, to a hardware address if one matters.
    Frame(LinkId, Option<Mac>),
    /// It has come out of a link.
    Arrive(LinkId, Option<Mac>),
    /// The place itself gets it.
    Input(LinkId),
}

struct Walker<'a> {
    world: &'a World,
    kernel: &'a dyn Kernel,
    packet: Packet,
    hops: Vec<Hop>,
    translations: Vec<Translation>,
    /// What the packet was when the place got it.
    entered: Option<(PlaceId, Tuple)>,
    /// The source that the kernel puts back when the packet leaves the place.
    source_to_undo: Option<(IpAddr, Option<u16>)>,
    /// Which of its addresses the place has translated.
    destination_changed: bool,
    source_changed: bool,
    /// The port it came in by, of a bridge that shows its packets to the rules of IP, and its destination then.
    shown_at: Option<(LinkId, IpAddr)>,
    /// The link of which the packet's sender knows how long a packet may be.
    first_mtu: Option<u32>,
    next_hop_for_masquerade: Option<IpAddr>,
    source_mac: Option<Mac>,
}

type Outcome<T> = Result<T, End>;

impl<'a> Walker<'a> {
    fn new(
        world: &'a World,
        kernel: &'a dyn Kernel,
        packet: Packet,
        translations: Vec<Translation>,
    ) -> Self {
        Self {
            world,
            kernel,
            packet,
            hops: Vec::new(),
            translations,
            entered: None,
            source_to_undo: None,
            destination_changed: false,
            source_changed: false,
            shown_at: None,
            first_mtu: None,
            next_hop_for_masquerade: None,
            source_mac: None,
        }
    }

    fn walk(&mut self, from: PlaceId) -> Walk {
        let mut packet = self.packet;
        let mut at = At::Output(from);
        let mut began = false;
        let mut been = Vec::new();
        loop {
            if let At::Input(link) | At::Arrive(link, _) = at {
                let now = (at, self.packet);
                if been.contains(&now) || been.len() > MOST_PLACES {
                    let hops = std::mem::take(&mut self.hops);
                    return Walk {
                        packet,
                        hops,
                        end: self.in_circles(link),
                    };
                }
                been.push(now);
            }
            let next = match at {
                At::Output(place) => self.output(place),
                At::Transmit(link, next_hop) => self.transmit(link, next_hop),
                At::Frame(link, mac) => self.frame(link, mac),
                At::Arrive(link, mac) => self.arrive(link, mac),
                At::Input(link) => self.input(link),
            };
            if !began {
                // Only the route says which address it has.
                packet.tuple.src = self.packet.tuple.src;
                if let Some((_, tuple)) = self.entered {
                    packet.tuple = tuple;
                }
                began = true;
            }
            match next {
                Ok(next) => at = next,
                Err(end) => {
                    let hops = std::mem::take(&mut self.hops);
                    return Walk { packet, hops, end };
                }
            }
        }
    }

    fn in_circles(&self, link: LinkId) -> End {
        let here = self.place(link.place);
        End::Stopped {
            place: link.place,
            reason: Reason::Circles,
            text: format!(
                "it has come to {} by {} before: it goes in circles until its time to live is over",
                here.name,
                here.name_of(link.index)
            ),
            advice: None,
        }
    }

    fn place(&self, id: PlaceId) -> &'a Place {
        self.world.place(id)
    }

    fn link(&self, id: LinkId) -> Outcome<&'a Link> {
        self.world.link(id).ok_or_else(|| End::Unknown {
            place: id.place,
            text: format!("the link of number {} is gone meanwhile", id.index),
        })
    }

    fn hop(&mut self, place: PlaceId, about: About, text: impl Into<String>) {
        self.note(place, about, Mood::Sure, text);
    }

    fn note(&mut self, place: PlaceId, about: About, mood: Mood, text: impl Into<String>) {
        let text = text.into();
        self.hops.push(Hop {
            place,
            about,
            mood,
            text,
        });
    }
}

fn stop<T>(place: PlaceId, reason: Reason, text: impl Into<String>) -> Outcome<T> {
    stop_with(place, reason, text, None)
}

fn stop_with<T>(
    place: PlaceId,
    reason: Reason,
    text: impl Into<String>,
    advice: Option<String>,
) -> Outcome<T> {
    Err(End::Stopped {
        place,
        reason,
        text: text.into(),
        advice,
    })
}
