//! What a place does with a packet as such: routes and rules.

use carpel_netlink::route::{self, Found, Question};

use super::{About, At, End, Mood, Outcome, Reason, Translation, Walker, stop, stop_with};
use crate::filter::{Hook, Layer};
use crate::packet::Protocol;
use crate::place::{LinkId, PlaceId};

impl Walker<'_> {
    /// A process of the place sends it.
    pub(super) fn output(&mut self, place: PlaceId) -> Outcome<At> {
        let mut found = self.route_out(place)?;
        if self.packet.tuple.src.is_unspecified() {
            match found.source {
                Some(source) => self.packet.tuple.src = source,
                None => {
                    let name = &self.place(place).name;
                    return stop(
                        place,
                        Reason::NoAddress,
                        format!("{name} has no address to send from"),
                    );
                }
            }
        }
        let (src, dst) = (self.packet.tuple.src, self.packet.tuple.dst);
        let is_near =
            |addr: std::net::IpAddr| crate::place::is_link_local(addr) || addr.is_loopback();
        if src.is_ipv6() && is_near(src) && !is_near(dst) && !self.place(place).is_local(dst) {
            let name = &self.place(place).name;
            let text =
                format!("{name} has no IPv6 address but that of the link, which goes no further");
            return stop(place, Reason::NoAddress, text);
        }
        self.enter(place);
        let before = self.packet;
        let out = found.link.map(|index| LinkId { place, index });
        self.hooks(place, Hook::Output, None, out)?;
        if (before.tuple.dst, before.mark) != (self.packet.tuple.dst, self.packet.mark) {
            found = self.route_out(place)?;
        }
        self.leave(place, None, &found)
    }

    fn question(&self) -> Question {
        let tuple = self.packet.tuple;
        let has_ports = self.packet.protocol != Protocol::Icmp;
        Question {
            src: (!tuple.src.is_unspecified()).then_some(tuple.src),
            mark: self.packet.mark,
            protocol: Some(self.packet.protocol.number(self.packet.is_ipv4())),
            source_port: tuple.source_port.filter(|_| has_ports),
            destination_port: tuple.destination_port.filter(|_| has_ports),
            ..Question::to(tuple.dst)
        }
    }

    fn route_out(&mut self, place: PlaceId) -> Outcome<Found> {
        match self.kernel.route(place, &self.question()) {
            Ok(found) => {
                self.tell_route(place, &found);
                Ok(found)
            }
            Err(errno) => Err(self.no_way_out(place, errno)),
        }
    }

    fn tell_route(&mut self, place: PlaceId, found: &Found) {
        let dst = self.packet.tuple.dst;
        let link = found.link.map(|index| self.place(place).name_of(index));
        let text = if found.kind == route::LOCAL {
            format!("{dst} is an address of {} itself", self.place(place).name)
        } else {
            let via = found.gateway.map(|gateway| format!(" via {gateway}"));
            let dev = link.map(|name| format!(" dev {name}"));
            let src = found
                .source
                .filter(|_| self.packet.tuple.src.is_unspecified());
            let src = src.map(|source| format!(" src {source}"));
            let part = |text: Option<String>| text.unwrap_or_default();
            format!("{dst}{}{}{}", part(via), part(dev), part(src))
        };
        self.hop(place, About::Route, text);
    }

    /// A place gets a packet: what it does to its addresses begins anew.
    pub(super) fn enter(&mut self, place: PlaceId) {
        self.entered = Some((place, self.packet.tuple));
        self.destination_changed = false;
        self.source_changed = false;
        self.source_to_undo = None;
        if !self.packet.is_answer {
            return;
        }
        // The answer to what this place has translated.
        let tuple = self.packet.tuple;
        let port =
            |known: Option<u16>, own: Option<u16>| known.is_none() || own.is_none() || known == own;
        let answers = |one: &&Translation| {
            one.place == place
                && (one.after.src, one.after.dst) == (tuple.dst, tuple.src)
                && port(one.after.source_port, tuple.destination_port)
                && port(one.after.destination_port, tuple.source_port)
        };
        let Some(found) = self.translations.iter().find(answers).copied() else {
            return;
        };
        self.destination_changed = found.before.dst != found.after.dst
            || found.before.destination_port != found.after.destination_port;
        self.source_changed = found.before.src != found.after.src;
        self.source_to_undo = Some((found.before.dst, found.before.destination_port));
        self.entered = Some((place, {
            let mut undone = tuple;
            undone.dst = found.before.src;
            undone.destination_port = found.before.source_port;
            undone
        }));
    }

    /// The destination that the answer has once the kernel has undone what it did.
    pub(super) fn undone_destination(&self) -> Option<crate::packet::Tuple> {
        let (_, tuple) = self.entered?;
        (self.packet.is_answer && tuple != self.packet.tuple && self.source_to_undo.is_some())
            .then_some(tuple)
    }

    /// The same of its source.
    pub(super) fn undone_source(&self) -> Option<crate::packet::Tuple> {
        let (src, port) = self.source_to_undo?;
        let mut tuple = self.packet.tuple;
        tuple.src = src;
        tuple.source_port = port;
        (tuple != self.packet.tuple).then_some(tuple)
    }

    /// It has come by a link, for the place or for somebody behind it.
    pub(super) fn input(&mut self, link: LinkId) -> Outcome<At> {
        let place = link.place;
        let name = self.link(link)?.name.clone();
        let is_ipv4 = self.packet.is_ipv4();
        let settings = &self.place(place).settings;
        if !is_ipv4 && settings.of_link(false, &name, "disable_ipv6") != 0 {
            let text = format!("IPv6 is off on {name}");
            let advice = format!("sysctl -w net.ipv6.conf.{name}.disable_ipv6=0");
            return stop_with(place, Reason::Refused, text, Some(advice));
        }
        self.enter(place);
        self.hooks(place, Hook::Prerouting, Some(link), None)?;
        let question = Question {
            from_link: Some(link.index),
            ..self.question()
        };
        let found = match self.kernel.route(place, &question) {
            Ok(found) => found,
            Err(errno) => return Err(self.no_way_on(link, &name, errno)),
        };
        if [route::LOCAL, route::BROADCAST, route::MULTICAST].contains(&found.kind) {
            self.hooks(place, Hook::Input, Some(link), None)?;
            return self.delivered(place);
        }
        self.tell_route(place, &found);
        let forwards = is_ipv4
            || settings.of_link(false, "all", "forwarding") != 0
            || settings.of_link(false, &name, "force_forwarding") != 0;
        if !forwards {
            let text = "forwarding of IPv6 is off (net.ipv6.conf.all.forwarding is 0)";
            let advice = "sysctl -w net.ipv6.conf.all.forwarding=1".to_owned();
            return stop_with(place, Reason::ForwardingOff, text, Some(advice));
        }
        let out = found.link.map(|index| LinkId { place, index });
        self.hooks(place, Hook::Forward, Some(link), out)?;
        self.leave(place, Some(link), &found)
    }

    /// It leaves the place by the link that a route names, or comes back to the place itself.
    fn leave(&mut self, place: PlaceId, from: Option<LinkId>, found: &Found) -> Outcome<At> {
        let hop = found.hops.first();
        let index = found.link.or(hop.and_then(|hop| hop.link));
        let gateway = found.gateway.or(hop.and_then(|hop| hop.gateway));
        if found.hops.len() > 1 {
            let count = found.hops.len();
            self.note(
                place,
                About::Route,
                Mood::Note,
                format!("one of {count} ways; followed is the first"),
            );
        }
        if found.kind == route::LOCAL {
            return self.loop_back(place);
        }
        let Some(index) = index else {
            let text = format!("the route to {} names no link", self.packet.tuple.dst);
            return stop(place, Reason::Refused, text);
        };
        let out = LinkId { place, index };
        let next_hop = gateway.unwrap_or(self.packet.tuple.dst);
        self.next_hop_for_masquerade = Some(next_hop);
        self.hooks(place, Hook::Postrouting, from, Some(out))?;
        self.remember_translation(place);
        Ok(At::Transmit(out, next_hop))
    }

    /// By the loopback link, which comes out where it goes in.
    fn loop_back(&mut self, place: PlaceId) -> Outcome<At> {
        let lo = self.place(place).links.iter().find(|link| link.is_loopback);
        let lo = lo.map(|link| (link.index, link.up));
        let Some((index, up)) = lo else {
            return stop(place, Reason::LinkDown, "there is no loopback link");
        };
        if !up {
            let advice = Some("ip link set lo up".to_owned());
            return stop_with(place, Reason::LinkDown, "lo is down", advice);
        }
        let lo = Some(LinkId { place, index });
        self.hooks(place, Hook::Postrouting, None, lo)?;
        self.hooks(place, Hook::Prerouting, lo, None)?;
        self.hooks(place, Hook::Input, lo, None)?;
        self.delivered(place)
    }

    fn delivered(&mut self, place: PlaceId) -> Outcome<At> {
        self.remember_translation(place);
        let name = &self.place(place).name;
        let (tuple, protocol) = (self.packet.tuple, self.packet.protocol);
        self.hop(place, About::Delivery, format!("{name} has {}", tuple.dst));
        if !self.packet.is_answer
            && let Some(port) = tuple.destination_port
            && matches!(protocol, Protocol::Tcp | Protocol::Udp)
        {
            let number = protocol.number(true);
            let word = protocol.name();
            if !self.place(place).listens(number, tuple.dst, port) {
                let text = format!(
                    "nobody in {name} listens on {word} port {port}: the answer is a refusal"
                );
                return stop(place, Reason::NobodyListens, text);
            }
            self.hop(
                place,
                About::Delivery,
                format!("somebody listens on {word} port {port}"),
            );
        }
        Err(End::Reached { place })
    }

    fn remember_translation(&mut self, place: PlaceId) {
        if let Some((at, before)) = self.entered
            && at == place
            && !self.packet.is_answer
            && before != self.packet.tuple
        {
            self.translations.push(Translation {
                place,
                before,
                after: self.packet.tuple,
            });
        }
    }

    /// Which packets the rules of a hook see.
    pub(super) fn layer(&self) -> Layer {
        Layer::of_ip(self.packet.is_ipv4())
    }
}
