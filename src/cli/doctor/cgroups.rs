//! Cgroups: which are mounted, and whether we may make any.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, fail, ok, warn};
use crate::cgroup::{Cgroups, Version};
use crate::spec::host::{CgroupLayout, HostFacts};

/// The controllers that limits of containers need, with what each is for.
const CONTROLLERS: [(&str, &str); 4] = [
    ("memory", "limits of memory"),
    ("cpu", "limits and shares of processors"),
    ("pids", "limits of processes"),
    ("cpuset", "processors of a container's own"),
];

pub fn checks() -> Vec<Check> {
    let cgroups = match Cgroups::detect() {
        Ok(cgroups) => cgroups,
        Err(error) => {
            return vec![fail(
                "cgroups",
                error.to_string(),
                "mount the hierarchy: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            )];
        }
    };
    let unified = cgroups.version() == Version::V2;
    let mut checks = vec![match unified {
        true => ok("cgroups", "v2"),
        false => warn(
            "cgroups",
            "v1",
            "newer kubelets refuse it: boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }];
    let layout = HostFacts::detect(unified).map(|facts| facts.cgroups);
    let hierarchies = match layout {
        Ok(CgroupLayout::V1(hierarchies)) => hierarchies
            .into_iter()
            .map(|one| (one.mounted_on, one.controllers.replace(',', " ")))
            .collect(),
        _ => unified_root().into_iter().collect::<Vec<_>>(),
    };
    let known: Vec<&str> = hierarchies
        .iter()
        .flat_map(|(_, controllers)| controllers.split_whitespace())
        .collect();
    let missing = CONTROLLERS.iter().filter(|(name, _)| !known.contains(name));
    let missing: Vec<_> = missing
        .map(|(name, what)| format!("{name} ({what})"))
        .collect();
    checks.push(match missing.is_empty() {
        true => ok("controllers", known.join(", ")),
        false => warn(
            "controllers",
            format!("missing: {}", missing.join(", ")),
            "requests with such limits are refused: enable them on the kernel's command line, or for \
             the container around carpel",
        ),
    });
    if nix::unistd::geteuid().is_root() {
        checks.push(writable(&hierarchies));
    }
    checks.push(pressure());
    checks
}

/// The root of v2 and its controllers.
fn unified_root() -> Option<(PathBuf, String)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let root = PathBuf::from(line.split(' ').nth(4)?);
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).ok()?;
    Some((root, controllers))
}

/// Makes a cgroup in each hierarchy that counts, and removes it again.
fn writable(hierarchies: &[(PathBuf, String)]) -> Check {
    let name = format!("carpel-doctor-{}", std::process::id());
    let counts = |controllers: &str| {
        let mut names = CONTROLLERS.iter().map(|(name, _)| *name);
        names.any(|name| controllers.split_whitespace().any(|known| known == name))
    };
    for (root, _) in hierarchies
        .iter()
        .filter(|(_, controllers)| counts(controllers))
    {
        let dir = root.join(&name);
        if let Err(error) = fs::create_dir(&dir).and_then(|()| fs::remove_dir(&dir)) {
            return fail(
                "cgroups can be made",
                format!("not in {}: {error}", root.display()),
                "the hierarchy is read-only or not ours: mount it read-write for carpel",
            );
        }
    }
    ok("cgroups can be made", "yes")
}

fn pressure() -> Check {
    match fs::read_to_string("/proc/pressure/cpu") {
        Ok(_) => ok("pressure (PSI)", "measured"),
        Err(_) => {
            let advice = match Path::new("/proc/pressure").exists() {
                true => {
                    "boot with psi=1 to see how long pods wait for processors, memory and disks"
                }
                false => {
                    "a kernel with CONFIG_PSI shows how long pods wait for processors and memory"
                }
            };
            warn("pressure (PSI)", "not measured", advice)
        }
    }
}
