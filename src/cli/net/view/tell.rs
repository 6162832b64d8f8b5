//! Links, routes, neighbours and settings in words and as JSON.

use carpel_netlink::bridge::FORWARDING;
use carpel_netlink::link::{Counters, Link};
use carpel_netlink::neighbour::Neighbour;
use carpel_netlink::route::{BLACKHOLE, Found, LOCAL_TABLE, MAIN_TABLE, PROHIBIT, UNREACHABLE};
use carpel_netpath::place::{LinkId, Peer, Place, PlaceId, World, state_of_neighbour};
use serde_json::{Value, json};

use crate::cli::net::diagram::{Card, Row, Tone};
use crate::cli::units;

/// Rows of which only the first has a label.
pub fn labelled(label: &str, texts: impl Iterator<Item = String>) -> Vec<Row> {
    let label = |n: usize| if n == 0 { label } else { "" };
    texts
        .enumerate()
        .map(|(n, text)| Row::new(label(n), text, Tone::Plain))
        .collect()
}

/// The pod's own side.
pub fn pod_card(world: &World, id: PlaceId, title: &str, detail: &str) -> Card {
    let place = world.place(id);
    let mut rows = Vec::new();
    for link in &place.links {
        if link.is_loopback {
            if !link.up {
                rows.push(Row::new(&link.name, "down", Tone::Stop));
            }
            continue;
        }
        rows.extend(link_rows(world, id, link));
    }
    let routes = shown_routes(place).into_iter();
    rows.extend(labelled("routes", routes.map(|one| route(place, one))));
    let known = place.neighbours.iter().filter(|one| is_shown(one));
    rows.extend(labelled(
        "neighbours",
        known.map(|one| neighbour(place, one)),
    ));
    let rules: usize = place
        .rules
        .chains
        .iter()
        .map(|chain| chain.rules.len())
        .sum();
    if rules > 0 {
        rows.push(Row::new(
            "rules",
            format!("{rules} of the pod's own"),
            Tone::Note,
        ));
    }
    let ports = place.listeners.iter().map(|one| {
        let word = if one.protocol == 6 { "tcp" } else { "udp" };
        (one.protocol, one.port, format!("{}/{word}", one.port))
    });
    let mut ports: Vec<_> = ports.collect();
    ports.sort();
    ports.dedup();
    if !ports.is_empty() {
        let list: Vec<_> = ports.into_iter().map(|(_, _, text)| text).collect();
        rows.push(Row::new("listens", list.join(", "), Tone::Plain));
    }
    Card {
        title: title.into(),
        detail: detail.into(),
        rows,
        wire: None,
    }
}

/// A link: what it is, its addresses, and what it has passed on.
pub fn link_rows(world: &World, place: PlaceId, link: &Link) -> Vec<Row> {
    let here = world.place(place);
    let kind = if link.kind.is_empty() {
        "hardware"
    } else {
        &link.kind
    };
    let state = match (link.up, link.carrier) {
        (true, true) => "up",
        (true, false) => "up, no carrier",
        (false, _) => "down",
    };
    let mut words = vec![
        kind.to_owned(),
        state.to_owned(),
        format!("mtu {}", link.mtu),
        link.mac.to_string(),
    ];
    let tone = if link.up && link.carrier {
        Tone::Plain
    } else {
        Tone::Stop
    };
    let id = LinkId {
        place,
        index: link.index,
    };
    match world.peer(id) {
        Peer::Link(peer) if peer.place != place => {
            let name = world.link(peer).map_or("?", |link| link.name.as_str());
            words.push(format!("to {name} in {}", world.place(peer.place).name));
        }
        Peer::Elsewhere(_) => words.push("to a namespace that was not looked at".into()),
        _ => {}
    }
    let mut rows = vec![Row::new(&link.name, words.join(", "), tone)];
    if let (Some(master), Some(port)) = (link.master, link.bridge_port()) {
        let forwards = if port.state == FORWARDING {
            "forwarding"
        } else {
            "not forwarding"
        };
        let on = |is_on: bool| if is_on { "on" } else { "off" };
        let text = format!(
            "port of {}: {forwards}, hairpin {}, isolated {}",
            here.name_of(master),
            on(port.hairpin),
            on(port.isolated)
        );
        let tone = if port.state == FORWARDING {
            Tone::Plain
        } else {
            Tone::Stop
        };
        rows.push(Row::new("", text, tone));
    }
    if link.kind == "bridge" {
        let ports = here.ports_of(link.index).count();
        let seen = here
            .forwarding
            .iter()
            .filter(|one| one.bridge == Some(link.index))
            .count();
        rows.push(Row::new(
            "",
            format!("{ports} ports, {seen} hardware addresses known"),
            Tone::Faint,
        ));
    }
    let addresses: Vec<_> = here
        .addresses_of(link.index)
        .map(|one| one.net.to_string())
        .collect();
    if !addresses.is_empty() {
        rows.push(Row::new("", addresses.join(", "), Tone::Plain));
    }
    if let Some(counters) = link.counters {
        rows.push(Row::new(
            "",
            counted(&counters),
            if troubled(&counters) {
                Tone::Note
            } else {
                Tone::Faint
            },
        ));
    }
    let disciplines = here.disciplines.iter().filter(|(index, name)| {
        *index == link.index
            && !["noqueue", "fq_codel", "pfifo_fast", "mq", "fq"].contains(&name.as_str())
    });
    for (_, name) in disciplines {
        rows.push(Row::new(
            "",
            format!("queueing discipline {name}"),
            Tone::Note,
        ));
    }
    rows
}

fn troubled(counters: &Counters) -> bool {
    counters.receive_errors + counters.send_errors + counters.receive_drops + counters.send_drops
        > 0
}

fn counted(counters: &Counters) -> String {
    let mut text = format!(
        "in {} packets ({}), out {} ({})",
        counters.received_packets,
        units::bytes(counters.received_bytes),
        counters.sent_packets,
        units::bytes(counters.sent_bytes)
    );
    if troubled(counters) {
        text += &format!(
            "; errors {} in, {} out; dropped {} in, {} out",
            counters.receive_errors,
            counters.send_errors,
            counters.receive_drops,
            counters.send_drops
        );
    }
    text
}

/// The routes that say something: not those of link-local addresses.
fn shown_routes(place: &Place) -> Vec<&Found> {
    let routes = place.routes.iter().filter(|route| {
        let addr = route.dst.addr();
        let of_link = carpel_netpath::place::is_link_local(addr) && route.dst.prefix() > 0;
        route.table != LOCAL_TABLE && !of_link && !addr.is_multicast()
    });
    routes.collect()
}

pub fn route(place: &Place, route: &Found) -> String {
    let dst = match route.dst.prefix() {
        0 => "default".to_owned(),
        prefix if prefix == route.dst.width() => route.dst.addr().to_string(),
        _ => route.dst.to_string(),
    };
    let kind = match route.kind {
        BLACKHOLE => "blackhole ",
        UNREACHABLE => "unreachable ",
        PROHIBIT => "prohibit ",
        _ => "",
    };
    let mut text = format!("{kind}{dst}");
    let mut hop = |gateway: Option<std::net::IpAddr>, link: Option<u32>| {
        text += &gateway
            .map(|addr| format!(" via {addr}"))
            .unwrap_or_default();
        text += &link
            .map(|index| format!(" dev {}", place.name_of(index)))
            .unwrap_or_default();
    };
    hop(route.gateway, route.link);
    for one in &route.hops {
        hop(one.gateway, one.link);
    }
    if route.mtu != 0 {
        text += &format!(" mtu {}", route.mtu);
    }
    if route.table != MAIN_TABLE {
        text += &format!(" table {}", route.table);
    }
    text
}

fn is_shown(one: &Neighbour) -> bool {
    one.addr
        .is_some_and(|addr| !addr.is_multicast() && !addr.is_loopback() && !addr.is_unspecified())
}

pub fn neighbour(place: &Place, one: &Neighbour) -> String {
    let addr = one.addr.map(|addr| addr.to_string()).unwrap_or_default();
    let mac = one
        .mac
        .map_or_else(|| "unknown".to_owned(), |mac| mac.to_string());
    let state = state_of_neighbour(one.state);
    format!("{addr} is {mac} on {} ({state})", place.name_of(one.index))
}

/// The settings that decide where packets go.
pub fn settings(node: &Place, links: &[&Link]) -> Vec<String> {
    let value = |is_ipv4, link: &str, key: &str| node.settings.of_link(is_ipv4, link, key);
    let mut texts = vec![format!(
        "forwarding {} (IPv6 {})",
        value(true, "all", "forwarding"),
        value(false, "all", "forwarding")
    )];
    for link in links {
        let filter = node.settings.effective(true, &link.name, "rp_filter");
        let local = node.settings.effective(true, &link.name, "route_localnet");
        let mut words = vec![format!("{}: rp_filter {filter}", link.name)];
        if local != 0 {
            words.push("route_localnet 1".into());
        }
        if value(true, &link.name, "forwarding") != value(true, "all", "forwarding") {
            words.push(format!(
                "forwarding {}",
                value(true, &link.name, "forwarding")
            ));
        }
        texts.push(words.join(", "));
    }
    if links.iter().any(|link| link.kind == "bridge") {
        let shows = node.settings.get("bridge/bridge-nf-call-iptables");
        texts.push(format!("bridge-nf-call-iptables {shows}"));
    }
    texts
}

pub fn settings_json(node: &Place, links: &[u32]) -> Value {
    let names: Vec<String> = links.iter().map(|index| node.name_of(*index)).collect();
    let is_shown = |path: &str| {
        let mut parts = path.split('/');
        match (parts.nth(1), parts.next()) {
            (Some("conf"), Some(link)) => link == "all" || names.iter().any(|name| name == link),
            _ => true,
        }
    };
    let shown = node.settings.0.iter().filter(|(path, _)| is_shown(path));
    shown
        .map(|(path, value)| (path.clone(), json!(value)))
        .collect()
}

pub fn link_json(world: &World, place: PlaceId, link: &Link) -> Value {
    let here = world.place(place);
    let id = LinkId {
        place,
        index: link.index,
    };
    let peer = match world.peer(id) {
        Peer::Link(peer) => world
            .link(peer)
            .map(|other| json!({ "place": world.place(peer.place).name, "link": other.name })),
        _ => None,
    };
    let port = link.bridge_port().map(|port| {
        json!({
            "bridge": link.master.map(|index| here.name_of(index)),
            "forwarding": port.state == FORWARDING,
            "hairpin": port.hairpin,
            "isolated": port.isolated,
        })
    });
    let counters = link.counters.map(|counters| {
        json!({
            "receivedPackets": counters.received_packets, "receivedBytes": counters.received_bytes,
            "sentPackets": counters.sent_packets, "sentBytes": counters.sent_bytes,
            "receiveErrors": counters.receive_errors, "sendErrors": counters.send_errors,
            "receiveDrops": counters.receive_drops, "sendDrops": counters.send_drops,
        })
    });
    json!({
        "name": link.name,
        "kind": link.kind,
        "mac": link.mac.to_string(),
        "mtu": link.mtu,
        "up": link.up,
        "carrier": link.carrier,
        "addresses": here.addresses_of(link.index).map(|one| one.net.to_string()).collect::<Vec<_>>(),
        "peer": peer,
        "port": port,
        "counters": counters,
    })
}

pub fn route_json(place: &Place, route: &Found) -> Value {
    json!({
        "destination": route.dst.to_string(),
        "gateway": route.gateway,
        "link": route.link.map(|index| place.name_of(index)),
        "table": route.table,
        "mtu": route.mtu,
    })
}

/// All of a pod's own side.
pub fn place_json(world: &World, id: PlaceId) -> Value {
    let place = world.place(id);
    let neighbours = place
        .neighbours
        .iter()
        .filter(|one| is_shown(one))
        .map(|one| {
            json!({
                "address": one.addr,
                "mac": one.mac.map(|mac| mac.to_string()),
                "link": place.name_of(one.index),
                "state": state_of_neighbour(one.state),
            })
        });
    json!({
        "links": place.links.iter().map(|link| link_json(world, id, link)).collect::<Vec<_>>(),
        "routes": shown_routes(place).into_iter().map(|one| route_json(place, one)).collect::<Vec<_>>(),
        "neighbours": neighbours.collect::<Vec<_>>(),
    })
}
