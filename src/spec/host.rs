//! What the daemon must know of the machine, and of its own rights on it, to compile a Plan.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// The controllers that a container always has a cgroup of, and so sees its own limits in.
const SHOWN: [&str; 8] = [
    "memory", "cpu", "cpuacct", "cpuset", "pids", "devices", "freezer", "hugetlb",
];

/// Facts that do not change while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The capabilities that the daemon may pass on (bit = capability).
    pub bounding_set: u64,
    pub cgroups: CgroupLayout,
    /// Soft and hard limit on open files that containers get; `None` is no limit.
    pub open_files: (Option<u64>, Option<u64>),
}

/// How cgroups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupLayout {
    V2,
    /// The mounted hierarchies; also on hybrid machines.
    V1(Vec<CgroupHierarchy>),
}

/// A v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupHierarchy {
    pub mounted_on: PathBuf,
    /// "cpu,cpuacct" or "name=systemd".
    pub controllers: String,
}

impl CgroupHierarchy {
    /// Whether a container has a cgroup here and is shown it.
    pub(crate) fn is_shown(&self) -> bool {
        self.controllers
            .split(',')
            .any(|controller| SHOWN.contains(&controller))
    }
}

impl HostFacts {
    /// Looks at this process and its mounts. To be called before the daemon raises its own limit on open
    /// files, which is not for containers.
    ///
    /// # Errors
    /// As `read(2)` of /proc/self; `InvalidData` if it does not say which capabilities there are.
    pub fn detect(cgroup_v2: bool) -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let missing = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/self/status: no capabilities",
            )
        };
        let bounding = capability_field(&status, "CapBnd:").ok_or_else(missing)?;
        let permitted = capability_field(&status, "CapPrm:").ok_or_else(missing)?;
        let cgroups = if cgroup_v2 {
            CgroupLayout::V2
        } else {
            let mounts = std::fs::read("/proc/self/mountinfo")?;
            CgroupLayout::V1(hierarchies(&String::from_utf8_lossy(&mounts)))
        };
        let files = getrlimit(Resource::Nofile);
        Ok(Self {
            bounding_set: bounding & permitted,
            cgroups,
            open_files: (files.current, files.maximum),
        })
    }
}

fn capability_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The v1 hierarchies of a mountinfo table; each once, however often it is mounted.
fn hierarchies(mountinfo: &str) -> Vec<CgroupHierarchy> {
    let mut found: Vec<CgroupHierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        let mut fields = file_system.splitn(3, ' ');
        let (Some("cgroup"), Some(_), Some(options)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some(point) = mount.split(' ').nth(4) else {
            continue;
        };
        let known = |option: &&str| {
            SHOWN.contains(option) || option.starts_with("name=") || is_other(option)
        };
        let controllers = options
            .split(',')
            .filter(known)
            .collect::<Vec<_>>()
            .join(",");
        if !found
            .iter()
            .any(|hierarchy| hierarchy.controllers == controllers)
        {
            found.push(CgroupHierarchy {
                mounted_on: Path::new(point).to_owned(),
                controllers,
            });
        }
    }
    found
}

/// The controllers that are not shown.
fn is_other(option: &str) -> bool {
    [
        "blkio",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
        "misc",
        "debug",
    ]
    .contains(&option)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_once() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
            34 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/a,name=systemd\n\
            35 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            36 31 0:32 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n";
        let found = hierarchies(table);
        let names: Vec<_> = found
            .iter()
            .map(|h| (h.controllers.as_str(), h.is_shown()))
            .collect();
        assert_eq!(
            names,
            [
                ("cpu,cpuacct", true),
                ("name=systemd", false),
                ("blkio", false)
            ]
        );
        assert_eq!(found[0].mounted_on, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = HostFacts::detect(false).unwrap();
        assert_ne!(facts.bounding_set, 0);
        assert!(facts.open_files.0.is_none_or(|soft| soft > 0));
    }
}
