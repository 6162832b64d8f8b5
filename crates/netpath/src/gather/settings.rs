//! Settings under /proc/sys/net of the namespace that the thread is in.

use std::io::ErrorKind;

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

/// Not every kernel has each of them. What is there and is not read is told, in one sentence.
pub(super) fn read(links: &[Link], cautions: &mut Vec<String>) -> Settings {
    let names = links.iter().map(|link| link.name.as_str());
    let of_links = names
        .chain(["all", "default"])
        .flat_map(|name| OF_LINKS.map(|(is_ipv4, key)| path_of_link(is_ipv4, name, key)));
    let paths = of_links.chain(BRIDGES.map(str::to_owned));
    let mut unread = Vec::new();
    let settings = paths.filter_map(|path| {
        let text = match std::fs::read_to_string(format!("/proc/sys/net/{path}")) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    unread.push(format!("{path} ({error})"));
                }
                return None;
            }
        };
        Some((path, text.trim().parse().ok()?))
    });
    let settings = Settings(settings.collect());
    if let Some(first) = unread.first() {
        cautions.push(match unread.len() - 1 {
            0 => format!("the setting {first} cannot be read, and is taken for 0"),
            more => {
                format!("the setting {first} and {more} more cannot be read, and are taken for 0")
            }
        });
    }
    settings
}
