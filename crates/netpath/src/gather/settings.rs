//! Settings under /proc/sys/net of the namespace that the thread is in.

use carpel_netlink::link::Link;

use crate::place::{Settings, path_of_link};

/// What is read of every link, in each family.
const OF_LINKS: [(bool, &str); 9] = [
    (true, "forwarding"),
    (true, "rp_filter"),
    (true, "accept_local"),
    (true, "route_localnet"),
    (true, "proxy_arp"),
    (true, "arp_ignore"),
    (false, "forwarding"),
    (false, "disable_ipv6"),
    (false, "proxy_ndp"),
];

const BRIDGES: [&str; 2] = [
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
];

pub(super) fn read(links: &[Link]) -> Settings {
    let names = links.iter().map(|link| link.name.as_str());
    let of_links = names
        .chain(["all", "default"])
        .flat_map(|name| OF_LINKS.map(|(is_ipv4, key)| path_of_link(is_ipv4, name, key)));
    let paths = of_links.chain(BRIDGES.map(str::to_owned));
    let settings = paths.filter_map(|path| {
        // Not every kernel has each of them.
        let text = std::fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?;
        Some((path, text.trim().parse().ok()?))
    });
    Settings(settings.collect())
}
