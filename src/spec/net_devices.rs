//! Interfaces of the host that a container is given: `linux.netDevices` of its OCI spec.

use oci_spec::runtime::{LinuxNetDevice, Spec};
use serde::{Deserialize, Serialize};

/// The longest name of an interface.
const MAX_NAME: usize = 15;

/// An interface that goes to the container's pod while the container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// What it is called on the host.
    pub host: String,
    /// What it is called in the pod.
    pub name: String,
    /// Whether it was up on the host when the container was created.
    pub up: bool,
}

/// Checks the name of an interface.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    if name.is_empty() || name.len() > MAX_NAME {
        Err("must have 1 to 15 bytes")
    } else if matches!(name, "." | "..") || name.contains(bad) {
        Err("is no name of an interface")
    } else {
        Ok(())
    }
}

/// Gives a spec the interface `host`, to be called `name`.
///
/// # Errors
/// It contradicts what the spec has already.
pub fn add(spec: &mut Spec, host: &str, name: &str) -> Result<(), String> {
    let mut devices = of(spec);
    if let Some((_, other)) = devices.iter().find(|(known, _)| known == host) {
        if other == name {
            return Ok(());
        }
        return Err(format!(
            "network device {host}: is to be {other} and {name}"
        ));
    }
    if let Some((other, _)) = devices.iter().find(|(_, known)| known == name) {
        return Err(format!(
            "network devices {other} and {host}: both are to be {name}"
        ));
    }
    devices.push((host.to_owned(), name.to_owned()));
    set(spec, devices);
    Ok(())
}

/// Takes an interface out of a spec.
pub fn remove(spec: &mut Spec, host: &str) {
    let mut devices = of(spec);
    devices.retain(|(known, _)| known != host);
    set(spec, devices);
}

/// The interfaces of a spec: their names on the host, and in the pod. Sorted.
#[must_use]
pub fn of(spec: &Spec) -> Vec<(String, String)> {
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.net_devices().as_ref());
    let mut devices: Vec<_> = devices
        .into_iter()
        .flatten()
        .map(|(host, device)| {
            let name = device.name().as_ref().unwrap_or(host);
            (host.clone(), name.clone())
        })
        .collect();
    devices.sort();
    devices
}

fn set(spec: &mut Spec, devices: Vec<(String, String)>) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let named = |(host, name): (String, String)| {
        let mut device = LinuxNetDevice::default();
        device.set_name(Some(name));
        (host, device)
    };
    let devices = devices.into_iter().map(named).collect();
    linux.set_net_devices(Some(devices));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["eth0", "x", "123456789012345", "a.b-c@d"] {
            check_name(good).unwrap();
        }
        for bad in [
            "",
            "1234567890123456",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\0",
        ] {
            check_name(bad).unwrap_err();
        }
    }
}
