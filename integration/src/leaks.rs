//! What a node may leave behind when its last pod is gone: nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::host::{self, HostNet};

/// Where to look.
#[derive(Debug)]
pub struct Place<'a> {
    /// Folder of everything that the node writes.
    pub dir: &'a Path,
    pub net: &'a HostNet,
    pub cgroup_parent: &'a str,
    /// `NAME=VALUE` that is in the environment of the daemon and what it spawns.
    pub marker: String,
    /// The daemon's pid while it runs.
    pub daemon: Option<i32>,
}

/// What was there before the first pod.
#[derive(Debug, Clone, Default)]
pub struct Baseline {
    files: BTreeSet<PathBuf>,
    fds: BTreeMap<String, usize>,
    /// Names of links that the node's machine has of its own.
    links: BTreeSet<String>,
}

impl Place<'_> {
    /// Takes the baseline of an idle node.
    #[must_use]
    pub fn baseline(&self) -> Baseline {
        Baseline {
            files: self.files(),
            fds: self.fds(),
            links: self.links().into_keys().collect(),
        }
    }

    /// The baseline `before` with the files of now: what was made since is meant to stay.
    #[must_use]
    pub fn keep_files(&self, before: Baseline) -> Baseline {
        Baseline {
            files: self.files(),
            ..before
        }
    }

    /// Everything that is there and should not be, a line each. Only a running daemon's fds and
    /// children are looked at.
    #[must_use]
    pub fn leaks(&self, baseline: &Baseline) -> Vec<String> {
        let mut leaks = Vec::new();
        leaks.extend(self.mounts());
        let links = self.links().into_iter();
        leaks.extend(
            links
                .filter(|(name, _)| !baseline.links.contains(name))
                .map(|(_, line)| format!("link {line}")),
        );
        leaks.extend(self.rules());
        leaks.extend(self.cgroups());
        leaks.extend(self.processes());
        leaks.extend(
            self.files()
                .difference(&baseline.files)
                .map(|file| format!("file {}", file.display())),
        );
        for (kind, count) in self.fds() {
            let before = baseline.fds.get(&kind).copied().unwrap_or(0);
            if count > before {
                leaks.push(format!("{} open fds of the daemon: {kind}", count - before));
            }
        }
        leaks
    }

    /// Mounts below the node's folder: the pods' netns pins are the only ones there ever are.
    fn mounts(&self) -> Vec<String> {
        host::mounts_below(self.dir)
            .iter()
            .map(|mount| format!("mount {}", mount.display()))
            .collect()
    }

    /// Links of the node's network namespace by name. A bridge stays for the next pod.
    fn links(&self) -> BTreeMap<String, String> {
        let listed = self.net.output(&["ip", "-o", "link"]);
        let pairs = listed.lines().filter_map(|line| {
            let name = line.split_once(": ")?.1.split_once('@')?.0;
            (!name.contains(": ")).then(|| (name.to_owned(), line.to_owned()))
        });
        pairs.collect()
    }

    /// Rules that name a pod's address, and the chains that CNI plugins make for one pod.
    fn rules(&self) -> Vec<String> {
        ["iptables-save", "ip6tables-save", "nft list ruleset"]
            .iter()
            .flat_map(|command| {
                let words: Vec<&str> = command.split(' ').collect();
                let output = self.net.run(|| {
                    std::process::Command::new(words[0])
                        .args(&words[1..])
                        .output()
                });
                let text = output.map_or_else(
                    |error| format!("{command}: {error}"),
                    |output| String::from_utf8_lossy(&output.stdout).into_owned(),
                );
                text.lines()
                    .filter(|line| rule_of_a_pod(line))
                    .map(|line| format!("{command}: {}", line.trim()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Cgroups below the node's parent.
    fn cgroups(&self) -> Vec<String> {
        host::cgroup_dirs(self.cgroup_parent)
            .iter()
            .flat_map(|parent| {
                let mut below = host::tree(parent);
                below.retain(|dir| dir != parent);
                below
            })
            .map(|dir| format!("cgroup {}", dir.display()))
            .collect()
    }

    /// Processes in the node's cgroups, with its mark in their environment, or children of its daemon.
    /// A supervisor that init has not reaped yet is init's.
    fn processes(&self) -> Vec<String> {
        let mut pids: BTreeSet<i32> = host::cgroup_pids(self.cgroup_parent).into_iter().collect();
        pids.extend(self.marked());
        if let Some(daemon) = self.daemon {
            pids.extend(host::children(daemon));
            pids.remove(&daemon);
        }
        pids.into_iter()
            .filter(|pid| {
                host::proc_status(*pid, "PPid").is_some_and(|parent| parent != "1")
                    || host::runs(*pid)
            })
            .map(host::describe)
            .collect()
    }

    /// Processes with the node's mark in their environment.
    #[must_use]
    pub fn marked(&self) -> Vec<i32> {
        host::all_pids()
            .into_iter()
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                    environ
                        .split(|b| *b == 0)
                        .any(|v| v == self.marker.as_bytes())
                })
            })
            .collect()
    }

    /// Files and folders that pods make: below the root, the state, the netns pins, host-local's.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        for dir in ["root", "state", "netns", "ipam"] {
            list(&self.dir.join(dir), &mut files);
        }
        // What UpdateRuntimeConfig said is kept. host-local keeps its lock and the address given last.
        files.remove(&self.dir.join("root/network/pod-cidr"));
        files.retain(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            !(file.starts_with(self.dir.join("ipam"))
                && (name == "lock" || name.starts_with("last_reserved_ip") || file.is_dir()))
        });
        files
    }

    /// The daemon's open files by kind.
    fn fds(&self) -> BTreeMap<String, usize> {
        let mut fds = BTreeMap::new();
        let Some(daemon) = self.daemon else {
            return fds;
        };
        let dir = format!("/proc/{daemon}/fd");
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if let Ok(target) = std::fs::read_link(entry.path()) {
                let target = target.display().to_string();
                // The rootfs builder keeps one for each file system it has built on, for good.
                if target.starts_with("/anchor-") {
                    continue;
                }
                let kind = target.split(":[").next().unwrap_or_default().to_owned();
                *fds.entry(kind).or_default() += 1;
            }
        }
        // Cgroup v2: the program of the usual device rules is loaded once, for every container.
        if let Some(programs) = fds.get_mut("anon_inode:bpf-prog") {
            *programs -= 1;
        }
        fds
    }
}

/// Whether a line of a rule set is about one pod: its address in one of the tests' ranges, or a chain whose
/// name is made from its id.
fn rule_of_a_pod(line: &str) -> bool {
    // A range may be named by rules that serve all pods.
    let address = line
        .split(|c: char| !(c.is_ascii_hexdigit() || ".:/".contains(c)))
        .filter(|word| word.starts_with("10.118.") || word.starts_with("fd00:118:"))
        .any(|word| !word.contains('/') || word.ends_with("/32") || word.ends_with("/128"));
    let chain = line
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .any(|word| {
            ["CNI-DN-", "CNI-SN-", "CNI-"].iter().any(|prefix| {
                word.strip_prefix(prefix).is_some_and(|rest| {
                    rest.len() >= 20 && rest.bytes().all(|b| b.is_ascii_hexdigit())
                })
            })
        });
    address || chain
}

fn list(dir: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&path, files);
        }
        files.insert(path);
    }
}
