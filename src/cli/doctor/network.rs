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
