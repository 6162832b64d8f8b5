//! The Plan by which a supervisor becomes a pod's.

use std::path::PathBuf;

use carpel_wire::{FdIndex, NulList, PidNamespace, Step, encode_nul_list};

use super::compose::{Composer, terminated};
use super::{
    CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUTS, Compiled, Error, FdSource, HostFacts,
};
use crate::spec::config::{IdMap, SandboxConfig, Scope, UserNamespace};

/// What the kernel kills after everything else but the kubelet and the runtime.
const OOM_SCORE_ADJ: i32 = -998;

const NOSUID_NODEV: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const NOSUID_NODEV_NOEXEC: u64 = NOSUID_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// What pods may do in a network of their own unless they say otherwise: listen on any port, and ping.
const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    (PING_GROUPS, "0 2147483647"),
];

/// The one sysctl whose numbers are group ids: those of whoever writes it.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// The namespaces (CLONE_NEW*) of a pod that its supervisor makes before it carries out the Plan.
#[must_use]
pub fn sandbox_namespaces(config: &SandboxConfig) -> u64 {
    let network = match config.network {
        Scope::Pod => CLONE_NEWNET | CLONE_NEWUTS,
        Scope::Node => 0,
    };
    let ipc = match config.ipc {
        Scope::Pod => CLONE_NEWIPC,
        Scope::Node => 0,
    };
    network | ipc
}

/// The Plan of a pod's supervisor, in the pod's namespaces: what is set in them, and a root of its own with no more in it than
/// containers need from there. `label` is the SELinux label of what containers of any level share.
///
/// # Errors
/// [`Error::Nul`] for a hostname or sysctl with a NUL byte.
pub fn compile_sandbox(
    config: &SandboxConfig,
    label: Option<&str>,
    host: &HostFacts,
) -> Result<Compiled, Error> {
    let mut composer = belonging(host);
    let user = config.user_namespace;
    // A pod in the host's network has the host's name too.
    if config.network == Scope::Pod {
        composer.step("bring the loopback interface up", &Step::LoopbackUp);
        if let Some(hostname) = &config.hostname {
            let name = hostname.as_bytes();
            composer.step(
                format!("set hostname {hostname:?}"),
                &Step::Hostname { name },
            );
        }
        for (key, value) in SYSCTLS {
            if !config.sysctls.contains_key(key) {
                sysctl(&mut composer, key, value, user)?;
            }
        }
    }
    for (key, value) in &config.sysctls {
        sysctl(&mut composer, key, value, user)?;
    }
    let own_ipc = config.ipc == Scope::Pod;
    root(&mut composer, own_ipc, label, user)?;
    composer.finish(CLONE_NEWNS, PidNamespace::Host)
}

/// The Plan of a supervisor that takes the place of one that died, in `namespaces`: where each can be opened.
///
/// # Errors
/// None that has to do with its arguments.
pub fn compile_succession(
    namespaces: &[(Namespace, PathBuf)],
    host: &HostFacts,
) -> Result<Compiled, Error> {
    let mut composer = belonging(host);
    for (kind, path) in namespaces {
        let namespace = composer.fd(FdSource::Namespace(path.clone()));
        let flags = kind.flag();
        composer.step(
            format!("enter the pod's {} namespace", kind.name()),
            &Step::SetNsFd { namespace, flags },
        );
    }
    composer.finish(0, PidNamespace::Host)
}

/// Where a supervisor belongs.
fn belonging(host: &HostFacts) -> Composer {
    let mut composer = Composer::new();
    composer.join_cgroup(host);
    let value = OOM_SCORE_ADJ;
    composer.step(
        format!("set oom_score_adj to {value}"),
        &Step::OomScoreAdj { value },
    );
    composer
}

/// A namespace of a supervisor's that its successor enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    Network,
    Ipc,
    Uts,
    Mount,
}

impl Namespace {
    pub const ALL: [Self; 4] = [Self::Network, Self::Ipc, Self::Uts, Self::Mount];

    /// As /proc/PID/ns has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Mount => "mnt",
        }
    }

    fn flag(self) -> u64 {
        match self {
            Self::Network => CLONE_NEWNET,
            Self::Ipc => CLONE_NEWIPC,
            Self::Uts => CLONE_NEWUTS,
            Self::Mount => CLONE_NEWNS,
        }
    }
}

/// "net.ipv4.conf.eth0/1.forwarding" is net/ipv4/conf/eth0.1/forwarding.
pub(super) fn sysctl(
    composer: &mut Composer,
    key: &str,
    value: &str,
    user: Option<UserNamespace>,
) -> Result<(), Error> {
    let path: String = key
        .chars()
        .map(|letter| match letter {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    let path = terminated(path)?;
    let groups = user
        .filter(|_| key == PING_GROUPS)
        .and_then(|user| groups_on_host(value, user.gids));
    let value = groups.as_deref().unwrap_or(value).as_bytes();
    let path = &path;
    let step = match user {
        // Those of the other namespaces are for root of the user namespace alone.
        Some(user) if !key.starts_with("net.") => Step::SysctlAs {
            uid: user.uids.host,
            path,
            value,
        },
        _ => Step::Sysctl { path, value },
    };
    composer.step(sysctl_step(key), &step);
    Ok(())
}

/// What the step is called that sets a sysctl.
#[must_use]
pub fn sysctl_step(key: &str) -> String {
    format!("set sysctl {key}")
}

/// A range of groups of a user namespace as the host numbers them, as far as they are mapped and the sysctl
/// can hold them. What is no range of them is left to the kernel to refuse.
fn groups_on_host(range: &str, ids: IdMap) -> Option<String> {
    const MOST: u32 = i32::MAX as u32;
    let mut bounds = range.split_ascii_whitespace().map(str::parse::<u32>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    if bounds.next().is_some() {
        return None;
    }
    // The kernel's way to say: none.
    let none = || Some("1 0".to_owned());
    if first > last {
        return none();
    }
    let Some(first) = ids.to_host(first).filter(|first| *first <= MOST) else {
        return none();
    };
    let last = ids.to_host(last.min(ids.count - 1)).unwrap_or(first);
    Some(format!("{first} {}", last.min(MOST)))
}

/// A tmpfs with proc and sysfs, which user namespaces need to see before they may mount their own, and
/// the pod's /dev/shm. They are made while the host's are still in sight.
fn root(
    composer: &mut Composer,
    own_ipc: bool,
    label: Option<&str>,
    user: Option<UserNamespace>,
) -> Result<(), Error> {
    let slot = |number| FdIndex(FdIndex::FIRST_SLOT + number);
    composer.step("keep mounts from the host", &Step::MakeSlave);
    let new = |composer: &mut Composer, fstype: &str, options: &[&str], attrs, slot| {
        let options =
            encode_nul_list(options).map_err(|option| Error::Nul((*option).to_owned()))?;
        let options = NulList::new(&options).expect("an encoded list ends with a NUL");
        let name = terminated(fstype)?;
        let step = Step::NewFs {
            fstype: &name,
            options,
            attrs,
            slot,
        };
        composer.step(format!("make a {fstype} for the pod"), &step);
        Ok::<(), Error>(())
    };
    let small = ["mode", "0755", "size", "64k"];
    new(composer, "tmpfs", &small, NOSUID_NODEV_NOEXEC, slot(0))?;
    new(composer, "proc", &[], NOSUID_NODEV_NOEXEC, slot(1))?;
    new(composer, "sysfs", &[], NOSUID_NODEV_NOEXEC, slot(2))?;
    let mut attached = vec![("/proc", slot(1)), ("/sys", slot(2))];
    if own_ipc {
        let mut shm = vec!["mode", "1777", "size", "67108864"];
        let owner = user.map(|user| [user.uids.host, user.gids.host].map(|id| id.to_string()));
        if let Some([uid, gid]) = &owner {
            shm.extend(["uid", uid, "gid", gid]);
        }
        // What is made in it gets the level of whoever makes it.
        if let Some(label) = label {
            shm.extend(["rootcontext", label]);
        }
        new(composer, "tmpfs", &shm, NOSUID_NODEV_NOEXEC, slot(3))?;
        attached.push(("/dev/shm", slot(3)));
        if let Some(label) = label {
            // It is the namespace's, and the same wherever it is mounted.
            new(composer, "mqueue", &[], NOSUID_NODEV_NOEXEC, slot(4))?;
            let step = Step::RootLabel {
                mount: slot(4),
                label: label.as_bytes(),
            };
            composer.step("label the pod's message queues", &step);
        }
    }
    composer.step(
        "enter the supervisor's root",
        &Step::PivotRoot { root: slot(0) },
    );
    for (path, mount) in attached {
        let target = terminated(path)?;
        let step = Step::Attach {
            mount,
            target: &target,
            no_symlinks: true,
        };
        composer.step(format!("mount the pod's {path}"), &step);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_may_ping_are_the_hosts() {
        let ids = IdMap {
            host: 100_000,
            count: 65_536,
        };
        let host = |range| groups_on_host(range, ids);
        assert_eq!(host("0 2147483647").as_deref(), Some("100000 165535"));
        assert_eq!(host("5\t10").as_deref(), Some("100005 100010"));
        assert_eq!(host("1 0").as_deref(), Some("1 0"));
        assert_eq!(host("70000 80000").as_deref(), Some("1 0"));
        assert_eq!(host("x 1"), None);
        assert_eq!(host("1 2 3"), None);
        let high = IdMap {
            host: 2_147_483_000,
            count: 65_536,
        };
        assert_eq!(
            groups_on_host("0 2147483647", high).as_deref(),
            Some("2147483000 2147483647")
        );
        let higher = IdMap {
            host: 3_000_000_000,
            count: 65_536,
        };
        assert_eq!(groups_on_host("0 1", higher).as_deref(), Some("1 0"));
    }
}
