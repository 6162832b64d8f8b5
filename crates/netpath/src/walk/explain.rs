//! Why the kernel has no way for a packet. It says so in a number; what it looked at says the rest.

use std::net::IpAddr;

use carpel_netlink::route::{BLACKHOLE, Found, Question};
use rustix::io::Errno;

use super::{End, Reason, Walker};
use crate::place::{LinkId, Place, PlaceId};

/// Whether a place has a route to everywhere, in a family.
fn has_default_route(place: &Place, is_ipv4: bool) -> bool {
    let is_default = |route: &Found| {
        route.dst.prefix() == 0 && route.dst.addr().is_ipv4() == is_ipv4 && route.kind == 1
    };
    place.routes.iter().any(is_default)
}

fn stopped(place: PlaceId, reason: Reason, text: String, advice: Option<String>) -> End {
    End::Stopped {
        place,
        reason,
        text,
        advice,
    }
}

impl Walker<'_> {
    /// The place itself cannot send it.
    pub(super) fn no_way_out(&self, place: PlaceId, errno: Errno) -> End {
        let here = self.place(place);
        let dst = self.packet.tuple.dst;
        let (reason, text) = match errno {
            Errno::ACCESS => (Reason::Refused, format!("a route prohibits {dst}")),
            Errno::HOSTUNREACH => (
                Reason::Refused,
                format!("a route says that {dst} is unreachable"),
            ),
            Errno::INVAL => (
                Reason::Refused,
                format!("a route throws away what is for {dst}"),
            ),
            Errno::NETUNREACH => {
                let family = if dst.is_ipv4() { "IPv4" } else { "IPv6" };
                let own = here.addresses.iter().map(|one| one.net.addr());
                let mut own =
                    own.filter(|addr| addr.is_ipv4() == dst.is_ipv4() && !addr.is_loopback());
                let why = if own.all(crate::place::is_link_local) {
                    format!(": {} has no {family} address", here.name)
                } else if has_default_route(here, dst.is_ipv4()) {
                    String::new()
                } else {
                    ", not even a default one".to_owned()
                };
                (
                    Reason::NoRoute,
                    format!("no route to {dst} in {}{why}", here.name),
                )
            }
            other => (
                Reason::Refused,
                format!("the kernel has no route to {dst}: {other}"),
            ),
        };
        stopped(place, reason, text, None)
    }

    /// It came by a link, and the place does not take it or send it on.
    pub(super) fn no_way_on(&self, link: LinkId, name: &str, errno: Errno) -> End {
        let (here, place) = (self.place(link.place), link.place);
        let (src, dst) = (self.packet.tuple.src, self.packet.tuple.dst);
        if dst.is_ipv4()
            && let Some(end) = self.source_refused(link, name, errno)
        {
            return end;
        }
        let forwards = here.settings.of_link(dst.is_ipv4(), name, "forwarding") != 0;
        match errno {
            Errno::NETUNREACH | Errno::HOSTUNREACH if dst.is_ipv4() && !forwards => {
                let text =
                    format!("forwarding is off on {name} (net.ipv4.conf.{name}.forwarding is 0)");
                let advice = Some("sysctl -w net.ipv4.ip_forward=1".to_owned());
                stopped(place, Reason::ForwardingOff, text, advice)
            }
            Errno::NETUNREACH => {
                let why = if has_default_route(here, dst.is_ipv4()) {
                    ""
                } else {
                    ", not even a default one"
                };
                let text = format!("no route to {dst} in {}{why}", here.name);
                stopped(place, Reason::NoRoute, text, None)
            }
            Errno::HOSTUNREACH => {
                let text = format!("a route says that {dst} is unreachable");
                stopped(place, Reason::Refused, text, None)
            }
            Errno::ACCESS => stopped(
                place,
                Reason::Refused,
                format!("a route prohibits {dst}"),
                None,
            ),
            Errno::INVAL if dst.is_loopback() => {
                let text = format!(
                    "{dst} may not come from outside (net.ipv4.conf.{name}.route_localnet is 0)"
                );
                stopped(place, Reason::Martian, text, None)
            }
            Errno::INVAL if throws_away(here, dst) => {
                let text = format!("a route throws away what is for {dst}");
                stopped(place, Reason::Refused, text, None)
            }
            other => {
                let text = format!(
                    "the kernel refuses what comes from {src} for {dst} by {name}: {other}"
                );
                stopped(place, Reason::Refused, text, None)
            }
        }
    }

    /// Whether it is the source that the kernel does not like.
    fn source_refused(&self, link: LinkId, name: &str, errno: Errno) -> Option<End> {
        if !matches!(errno, Errno::XDEV | Errno::INVAL) {
            return None;
        }
        let (here, place) = (self.place(link.place), link.place);
        let src = self.packet.tuple.src;
        if here.is_local(src) && here.settings.effective(true, name, "accept_local") == 0 {
            let text = format!("its source {src} is an address of {} itself", here.name);
            return Some(stopped(place, Reason::Martian, text, None));
        }
        if src.is_loopback() || src.is_multicast() || is_broadcast(src) {
            let text = format!("{src} cannot be a source");
            return Some(stopped(place, Reason::Martian, text, None));
        }
        let mode = here.settings.effective(true, name, "rp_filter");
        if mode == 0 {
            return None;
        }
        let question = Question {
            src: Some(self.packet.tuple.dst).filter(|dst| here.is_local(*dst)),
            ..Question::to(src)
        };
        let back = self
            .kernel
            .route(place, &question)
            .ok()
            .and_then(|found| found.link);
        let text = match back {
            Some(back) if back == link.index => return None,
            Some(_) if mode != 1 => return None,
            Some(back) => format!(
                "rp_filter is {mode} on {name}: answers to {src} would leave by {}",
                here.name_of(back)
            ),
            None => format!("rp_filter is {mode} on {name}: there is no route back to {src}"),
        };
        let whose = if here.settings.of_link(true, "all", "rp_filter") >= mode {
            "all"
        } else {
            name
        };
        let advice = (mode == 1 && back.is_some()).then(|| {
            format!("sysctl -w net.ipv4.conf.{whose}.rp_filter=2, or a route back by {name}")
        });
        Some(stopped(place, Reason::ReversePath, text, advice))
    }
}

/// Whether some route is there to throw away what is for an address.
fn throws_away(place: &Place, dst: IpAddr) -> bool {
    let is_hole = |route: &Found| route.kind == BLACKHOLE && route.dst.contains(dst);
    place.routes.iter().any(is_hole)
}

fn is_broadcast(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V4(addr) if addr.is_broadcast() || addr.is_unspecified())
}
