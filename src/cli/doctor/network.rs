//! The pods' network: its configuration, its plugins, and what the kernel must let pass.

use std::fs;

use super::{Check, fail, ok, warn};
use crate::config::Config;
use crate::network::examine;

pub fn checks(config: &Config) -> Vec<Check> {
    let network = &config.network;
    let own = config.libexec.find_cni();
    let mut checks = vec![match &own {
        Ok(path) => ok("own plugins", path.display().to_string()),
        Err(error) => warn(
            "own plugins",
            error.to_string(),
            "pods depend on the plugins in the folders of plugins then",
        ),
    }];
    let dir = network.conf_dir.display();
    let has_own = own.is_ok();
    let found = examine(&network.conf_dir, &network.bin_dirs, own.ok());
    checks.extend(found.warnings.iter().map(|warning| {
        warn(
            "network file",
            warning.clone(),
            "put the file right or take it away: it is passed over",
        )
    }));
    let Some(name) = &found.network else {
        checks.push(match network.default_network {
            true if has_own => ok("network", "carpel's default bridge (default_network)"),
            true => fail(
                "network",
                "carpel's default bridge (default_network) lacks carpel's own plugins",
                "reinstall carpel, or set libexec.cni",
            ),
            false => fail(
                "network",
                format!("no configuration in {dir}"),
                "install a network (CNI) for the cluster; on a machine alone: carpel serve --default-network",
            ),
        });
        if network.default_network {
            // Its portmap is one of carpel's own plugins.
            checks.push(host_ports(has_own));
        }
        checks.push(forwarding());
        if network.default_network {
            checks.push(services_of_bridge());
        }
        return checks;
    };
    checks.push(ok("network", format!("{name:?} in {dir}")));
    for (kind, program) in &found.plugins {
        checks.push(match program {
            Ok(path) => ok("network plugin", format!("{kind}: {}", path.display())),
            Err(why) => fail(
                "network plugin",
                format!("{kind}: {why}"),
                "install it into a folder of plugins, or name its folder in network.bin_dirs",
            ),
        });
    }
    checks.push(host_ports(found.maps_ports));
    checks.push(forwarding());
    if found.plugins.iter().any(|(kind, _)| kind == "bridge") {
        checks.push(services_of_bridge());
    }
    checks
}

fn host_ports(mapped: bool) -> Check {
    match mapped {
        true => ok("host ports", "opened by a plugin"),
        false => warn(
            "host ports",
            "no plugin has the capability portMappings",
            "a pod's hostPort leads nowhere unless this network has means of its own: add the plugin portmap",
        ),
    }
}

fn forwarding() -> Check {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim() == "1";
    let (four, six) = (
        read("/proc/sys/net/ipv4/ip_forward"),
        read("/proc/sys/net/ipv6/conf/all/forwarding"),
    );
    match (four, six) {
        (true, true) => ok("forwarding", "IPv4 and IPv6"),
        (true, false) => ok("forwarding", "IPv4"),
        (false, true) => ok("forwarding", "IPv6"),
        (false, false) => warn(
            "forwarding",
            "off",
            "pods reach nothing beyond this machine unless their network switches it on: \
             sysctl -w net.ipv4.ip_forward=1",
        ),
    }
}

/// Whether the node's rules see what pods on one bridge send each other. A service leads from pod to pod by them: what
/// a pod answers to another on its bridge goes past them otherwise, and reaches nobody who knows of it.
fn services_of_bridge() -> Check {
    let read = |key: &str| fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{key}"));
    shows_packets(read("iptables").ok(), read("ip6tables").ok())
}

fn shows_packets(four: Option<String>, six: Option<String>) -> Check {
    let advice = "pods on one bridge do not reach each other by a service's address, if there are services: \
                  modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                  net.bridge.bridge-nf-call-ip6tables=1";
    let is_on = |text: Option<String>| text.map(|text| text.trim() == "1");
    match (is_on(four), is_on(six)) {
        (Some(true), Some(true)) => ok("bridged packets", "the node's rules see them"),
        // A kernel without IPv6 has no such setting.
        (Some(true), None) => ok("bridged packets", "the node's rules see those of IPv4"),
        (Some(true), Some(false)) => warn(
            "bridged packets",
            "net.bridge.bridge-nf-call-ip6tables is 0",
            advice,
        ),
        (Some(false), _) => warn(
            "bridged packets",
            "net.bridge.bridge-nf-call-iptables is 0",
            advice,
        ),
        (None, _) => warn("bridged packets", "br_netfilter is not loaded", advice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn rules_that_do_not_see_bridged_packets_are_told() {
        let text = |text: &str| Some(format!("{text}\n"));
        for (four, six, verdict, part) in [
            (text("1"), text("1"), Verdict::Ok, "see them"),
            (text("1"), None, Verdict::Ok, "IPv4"),
            (text("1"), text("0"), Verdict::Warn, "call-ip6tables is 0"),
            (text("0"), text("1"), Verdict::Warn, "call-iptables is 0"),
            (None, None, Verdict::Warn, "br_netfilter is not loaded"),
        ] {
            let check = shows_packets(four, six);
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.found.contains(part), "{check:?}");
            let told = check.advice.contains("bridge-nf-call-iptables=1");
            assert_eq!(told, verdict == Verdict::Warn, "{check:?}");
        }
    }
}
