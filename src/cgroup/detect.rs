//! Which hierarchies are mounted, and where.

use std::path::PathBuf;

/// A v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub mounted_on: PathBuf,
    /// Controllers, or the hierarchy's name ("name=systemd").
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether it has a name instead of controllers.
    pub fn is_named(&self) -> bool {
        self.controllers
            .iter()
            .all(|controller| controller.starts_with("name="))
    }
}

/// The mounted hierarchies. Of one that is mounted twice, the first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub v1: Vec<Hierarchy>,
    pub v2: Option<PathBuf>,
}

/// Super block options of a v1 hierarchy that are no controllers.
const OPTIONS: [&str; 8] = [
    "rw",
    "ro",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "favordynmods",
    "nofavordynmods",
];

/// Reads a mountinfo table.
pub(super) fn parse(table: &str) -> Found {
    let mut found = Found::default();
    for line in table.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = mount.split(' ').nth(4) else {
            continue;
        };
        let mut fields = file_system.splitn(3, ' ');
        let (kind, _source, options) = (fields.next(), fields.next(), fields.next());
        match kind {
            Some("cgroup2") if found.v2.is_none() => found.v2 = Some(point.into()),
            Some("cgroup") => {
                let controllers: Vec<String> = options
                    .unwrap_or_default()
                    .split(',')
                    .filter(|option| {
                        !OPTIONS.contains(option) && !option.starts_with("release_agent=")
                    })
                    .map(str::to_owned)
                    .collect();
                if !found
                    .v1
                    .iter()
                    .any(|hierarchy| hierarchy.controllers == controllers)
                {
                    found.v1.push(Hierarchy {
                        mounted_on: point.into(),
                        controllers,
                    });
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_any_layout() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 /docker/1 /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            34 31 0:31 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/a,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw master:3 shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
            42 31 0:38 / /other rw - cgroup2 cgroup2 rw\n";
        let found = parse(table);
        assert_eq!(found.v2, Some("/sys/fs/cgroup/unified".into()));
        let hierarchies: Vec<_> = found
            .v1
            .iter()
            .map(|h| {
                (
                    h.mounted_on.to_str().unwrap(),
                    h.controllers.join(","),
                    h.is_named(),
                )
            })
            .collect();
        assert_eq!(
            hierarchies,
            [
                (
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "cpu,cpuacct".to_owned(),
                    false
                ),
                ("/sys/fs/cgroup/systemd", "name=systemd".to_owned(), true),
            ]
        );
        assert_eq!(parse("nonsense\n\n1 2 3 - cgroup\n"), Found::default());
    }
}
