//! What this process may do: a daemon that is started from here can do no more.

use rustix::process::{Resource, getrlimit};

use super::{Check, fail, ok, warn};

/// Open files that a daemon with some hundred pods needs.
const FILES: u64 = 65_536;

/// Capabilities by their numbers, with what does not work without each.
const NEEDED: [(u32, &str, &str); 12] = [
    (0, "CAP_CHOWN", "images cannot be unpacked"),
    (
        1,
        "CAP_DAC_OVERRIDE",
        "files of other users cannot be reached",
    ),
    (3, "CAP_FOWNER", "images cannot be unpacked"),
    (5, "CAP_KILL", "containers cannot be stopped"),
    (6, "CAP_SETGID", "containers cannot run as other groups"),
    (7, "CAP_SETUID", "containers cannot run as other users"),
    (8, "CAP_SETPCAP", "containers cannot be confined"),
    (12, "CAP_NET_ADMIN", "pods get no network"),
    (18, "CAP_SYS_CHROOT", "containers get no root file system"),
    (
        19,
        "CAP_SYS_PTRACE",
        "processes of containers cannot be reached",
    ),
    (21, "CAP_SYS_ADMIN", "no namespaces and no mounts"),
    (27, "CAP_MKNOD", "images with devices cannot be unpacked"),
];
/// Last of all capabilities that carpel knows: CAP_CHECKPOINT_RESTORE.
const LAST: u32 = 40;

pub fn checks() -> Vec<Check> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim_start_matches(':').trim().to_owned())
    };
    let mask = |name| field(name).and_then(|text| u64::from_str_radix(&text, 16).ok());
    let root = nix::unistd::geteuid().is_root();
    let mut checks = vec![match root {
        true => ok("user", "root"),
        false => fail(
            "user",
            format!("uid {}", nix::unistd::geteuid()),
            "run this as root: the daemon is, and much of what follows cannot be tried otherwise",
        ),
    }];
    if root {
        checks.push(capabilities(
            mask("CapEff").unwrap_or(0),
            mask("CapBnd").unwrap_or(0),
        ));
    }
    if field("NoNewPrivs").as_deref() == Some("1") {
        checks.push(warn(
            "no new privileges",
            "set for this process",
            "setuid programs in containers will not work: start the daemon without NoNewPrivileges=",
        ));
    }
    if let Some(check) = user_namespace() {
        checks.push(check);
    }
    checks.push(open_files());
    checks
}

fn capabilities(effective: u64, bounding: u64) -> Check {
    let has = |mask: u64, number: u32| mask & (1 << number) != 0;
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(number, ..)| !has(effective & bounding, *number))
        .collect();
    if let Some((_, _, without)) = missing.first() {
        let names: Vec<_> = missing.iter().map(|(_, name, _)| *name).collect();
        let advice =
            format!("{without}: start carpel outside of this container, or with --privileged");
        return fail(
            "capabilities",
            format!("missing: {}", names.join(", ")),
            advice,
        );
    }
    let absent: Vec<_> = (0..=LAST)
        .filter(|number| !has(bounding, *number))
        .collect();
    match absent[..] {
        [] => ok("capabilities", "all"),
        [24] => warn(
            "capabilities",
            "all but CAP_SYS_RESOURCE",
            "OOM scores and limits cannot be lowered and raised for containers; they are clamped",
        ),
        _ => {
            let names: Vec<_> = absent.iter().map(|number| number.to_string()).collect();
            warn(
                "capabilities",
                format!("not in the bounding set: {}", names.join(", ")),
                "privileged containers get no more than there is here",
            )
        }
    }
}

/// Tells of a user namespace that we are in.
fn user_namespace() -> Option<Check> {
    let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
    let fields: Vec<u64> = map
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    if fields == [0, 0, u64::from(u32::MAX)] {
        return None;
    }
    Some(warn(
        "user namespace",
        "this is not the machine's own",
        "carpel needs the machine's root: sysctls, devices and cgroups may be out of reach here",
    ))
}

fn open_files() -> Check {
    match getrlimit(Resource::Nofile).maximum {
        None => ok("open files", "no limit"),
        Some(limit) if limit >= FILES => ok("open files", format!("at most {limit}")),
        Some(limit) => warn(
            "open files",
            format!("at most {limit}"),
            format!("raise the daemon's limit (LimitNOFILE=) to {FILES} or more for many pods"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_missing_capability_says_what_is_lost() {
        let all = (1 << (LAST + 1)) - 1;
        assert_eq!(capabilities(all, all).verdict, Verdict::Ok);
        let nested = all & !(1 << 24);
        assert_eq!(capabilities(nested, nested).verdict, Verdict::Warn);
        let check = capabilities(all & !(1 << 12), all);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("CAP_NET_ADMIN"));
        assert!(check.advice.contains("network"));
        assert_eq!(capabilities(all, all & !(1 << 30)).verdict, Verdict::Warn);
    }
}
