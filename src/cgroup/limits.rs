//! Limits as files of the cgroup file system, and what to write to them.

use crate::spec::config::{Ceiling, Resources};

use super::Error;

/// One file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    pub controller: String,
    pub file: String,
    pub value: String,
    /// A kernel without the file does what is wanted anyway.
    pub optional: bool,
}

impl Limit {
    fn new(file: &str, value: impl ToString) -> Self {
        let controller = file.split('.').next().unwrap_or(file);
        Self {
            controller: controller.to_owned(),
            file: file.to_owned(),
            value: value.to_string(),
            optional: false,
        }
    }
}

/// Limits that cannot be together on any machine.
fn check(resources: &Resources) -> Result<(), Error> {
    match (resources.memory_swap_limit, resources.memory_limit) {
        (Some(Ceiling::At(both)), Some(memory)) if both >= memory => Ok(()),
        (Some(Ceiling::At(_)), _) => Err(Error::Swap),
        _ => Ok(()),
    }
}

/// The files of v1, in the order in which they are written.
pub(super) fn v1(resources: &Resources) -> Result<Vec<Limit>, Error> {
    check(resources)?;
    let mut limits = Vec::new();
    let mut push = |file: &str, value: Option<String>| {
        limits.extend(value.map(|value| Limit::new(file, value)));
    };
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let ceiling = |value: Option<Ceiling>, unlimited: &str| {
        value.map(|value| match value {
            Ceiling::Unlimited => unlimited.to_owned(),
            Ceiling::At(value) => value.to_string(),
        })
    };
    push("cpuset.cpus", resources.cpuset_cpus.clone());
    push("cpuset.mems", resources.cpuset_mems.clone());
    push("cpu.shares", number(resources.cpu_shares));
    push("cpu.cfs_period_us", number(resources.cpu_period));
    push("cpu.cfs_quota_us", ceiling(resources.cpu_quota, "-1"));
    push("memory.limit_in_bytes", number(resources.memory_limit));
    let both = resources
        .memory_swap_limit
        .or(resources.memory_limit.map(Ceiling::At));
    push("memory.memsw.limit_in_bytes", ceiling(both, "-1"));
    push("pids.max", ceiling(resources.pids_limit, "max"));
    for (key, value) in &resources.unified {
        check_unified(key)?;
        if key != "pids.max" {
            return Err(Error::Unified {
                key: key.clone(),
                reason: "needs cgroup v2, which this machine does not use",
            });
        }
        push("pids.max", Some(value.clone()));
    }
    // Without accounting of swap nothing can be allowed or forbidden.
    let no_swap = both == resources.memory_limit.map(Ceiling::At);
    for limit in &mut limits {
        limit.optional = no_swap && limit.file == "memory.memsw.limit_in_bytes";
    }
    huge_pages(resources, "limit_in_bytes", &mut limits);
    Ok(limits)
}

/// The files of v2, in the order in which they are written.
pub(super) fn v2(resources: &Resources) -> Result<Vec<Limit>, Error> {
    check(resources)?;
    let mut limits = Vec::new();
    let mut push = |file: &str, value: Option<String>| {
        limits.extend(value.map(|value| Limit::new(file, value)));
    };
    let text = |value: Ceiling| match value {
        Ceiling::Unlimited => "max".to_owned(),
        Ceiling::At(value) => value.to_string(),
    };
    push("cpuset.cpus", resources.cpuset_cpus.clone());
    push("cpuset.mems", resources.cpuset_mems.clone());
    let shares = resources.cpu_shares.map(weight);
    push("cpu.weight", shares.map(|weight| weight.to_string()));
    let quota = resources.cpu_quota.map(text);
    let bandwidth = match (quota, resources.cpu_period) {
        (quota, Some(period)) => Some(format!("{} {period}", quota.unwrap_or("max".to_owned()))),
        // The period stays as it is.
        (quota, None) => quota,
    };
    push("cpu.max", bandwidth);
    push(
        "memory.max",
        resources.memory_limit.map(|max| max.to_string()),
    );
    push("memory.swap.max", swap(resources).map(text));
    push("pids.max", resources.pids_limit.map(text));
    // Without accounting of swap nothing can be allowed or forbidden.
    for limit in &mut limits {
        limit.optional = limit.file == "memory.swap.max" && limit.value == "0";
    }
    huge_pages(resources, "max", &mut limits);
    for (key, value) in &resources.unified {
        check_unified(key)?;
        // Files such as io.max take one line in each write.
        limits.extend(value.lines().map(|line| Limit::new(key, line)));
    }
    Ok(limits)
}

/// How much swap may be used: CRI and v1 limit memory and swap together, v2 swap alone.
fn swap(resources: &Resources) -> Option<Ceiling> {
    let memory = resources.memory_limit;
    match resources.memory_swap_limit {
        Some(Ceiling::At(both)) => Some(Ceiling::At(both.saturating_sub(memory.unwrap_or(both)))),
        Some(Ceiling::Unlimited) => Some(Ceiling::Unlimited),
        // A file that is named says more than a default.
        None if resources.unified.contains_key("memory.swap.max") => None,
        None => memory.map(|_| Ceiling::At(0)),
    }
}

/// Huge pages: those in use, and those reserved, of which older kernels know nothing. A size that the
/// kernel does not have needs not be forbidden.
fn huge_pages(resources: &Resources, file: &str, limits: &mut Vec<Limit>) {
    for (size, limit) in &resources.huge_pages {
        for (part, optional) in [("", *limit == 0), (".rsvd", true)] {
            limits.push(Limit {
                optional,
                ..Limit::new(&format!("hugetlb.{size}{part}.{file}"), limit)
            });
        }
    }
}

/// A key is a controller's file in the cgroup itself. The files of the cgroup core move processes, or
/// change what the daemon relies on.
fn check_unified(key: &str) -> Result<(), Error> {
    let refused = |reason| {
        Err(Error::Unified {
            key: key.to_owned(),
            reason,
        })
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    match key.split_once('.') {
        Some((controller, rest))
            if !controller.is_empty() && !rest.is_empty() && key.bytes().all(plain) =>
        {
            match controller {
                "cgroup" => refused("files of the cgroup core are not to be set"),
                _ => Ok(()),
            }
        }
        _ => refused("not the name of a controller's file"),
    }
}

/// The v2 weight (1 to 10000, default 100) of v1 shares (2 to 262144, default 1024).
///
/// Shares are scaled by the quadratic curve through the logarithms of both ranges' ends and defaults,
/// as runc (since 1.3.2) and crun (since 1.23) do.
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    // Below 2^18, so exact.
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Resources {
        Resources {
            cpu_period: Some(50_000),
            cpu_quota: Some(Ceiling::At(25_000)),
            cpu_shares: Some(512),
            memory_limit: Some(64 << 20),
            memory_swap_limit: Some(Ceiling::At(96 << 20)),
            oom_score_adj: 0,
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            pids_limit: Some(Ceiling::At(100)),
            huge_pages: [("2MB".to_owned(), 4 << 20), ("1GB".to_owned(), 0)].into(),
            unified: [("pids.max".to_owned(), "50".to_owned())].into(),
        }
    }

    fn text(limits: &[Limit]) -> Vec<String> {
        limits
            .iter()
            .map(|limit| format!("{}={}", limit.file, limit.value))
            .collect()
    }

    #[test]
    fn shares_become_the_weight_that_the_peers_give() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (1024, 100),
            (2000, 170),
            (22_000, 1204),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        let weights: Vec<_> = (2..=262_144).map(weight).collect();
        assert!(weights.is_sorted());
    }

    #[test]
    fn limits_become_files() {
        assert_eq!(
            text(&v2(&all()).unwrap()),
            [
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "cpu.weight=59",
                "cpu.max=25000 50000",
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "pids.max=100",
                "hugetlb.1GB.max=0",
                "hugetlb.1GB.rsvd.max=0",
                "hugetlb.2MB.max=4194304",
                "hugetlb.2MB.rsvd.max=4194304",
                "pids.max=50",
            ]
        );
        assert_eq!(
            text(&v1(&all()).unwrap()),
            [
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "cpu.shares=512",
                "cpu.cfs_period_us=50000",
                "cpu.cfs_quota_us=25000",
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=100663296",
                "pids.max=100",
                "pids.max=50",
                "hugetlb.1GB.limit_in_bytes=0",
                "hugetlb.1GB.rsvd.limit_in_bytes=0",
                "hugetlb.2MB.limit_in_bytes=4194304",
                "hugetlb.2MB.rsvd.limit_in_bytes=4194304",
            ]
        );
        let needed: Vec<_> = v1(&all())
            .unwrap()
            .into_iter()
            .filter(|limit| !limit.optional && limit.controller == "hugetlb")
            .collect();
        assert_eq!(text(&needed), ["hugetlb.2MB.limit_in_bytes=4194304"]);
        assert_eq!(v1(&Resources::default()).unwrap(), []);
        assert_eq!(v2(&Resources::default()).unwrap(), []);
    }

    #[test]
    fn swap_is_counted_with_memory() {
        let mut resources = Resources {
            memory_limit: Some(100),
            memory_swap_limit: Some(Ceiling::At(100)),
            ..Resources::default()
        };
        let limits = v2(&resources).unwrap();
        assert_eq!(text(&limits), ["memory.max=100", "memory.swap.max=0"]);
        assert!(limits[1].optional && !limits[0].optional);
        assert!(v1(&resources).unwrap()[1].optional);
        resources.memory_limit = Some(101);
        assert!(matches!(v2(&resources), Err(Error::Swap)));
        resources.memory_limit = None;
        assert!(matches!(v1(&resources), Err(Error::Swap)));
    }

    #[test]
    fn who_limits_memory_alone_gets_no_swap() {
        let mut resources = Resources {
            memory_limit: Some(100),
            ..Resources::default()
        };
        let limits = v2(&resources).unwrap();
        assert_eq!(text(&limits), ["memory.max=100", "memory.swap.max=0"]);
        assert!(limits[1].optional);
        assert_eq!(
            text(&v1(&resources).unwrap()),
            [
                "memory.limit_in_bytes=100",
                "memory.memsw.limit_in_bytes=100"
            ]
        );
        resources.unified = [("memory.swap.max".to_owned(), "7".to_owned())].into();
        assert_eq!(
            text(&v2(&resources).unwrap()),
            ["memory.max=100", "memory.swap.max=7"]
        );
        resources = Resources::default();
        resources.memory_swap_limit = Some(Ceiling::Unlimited);
        assert_eq!(text(&v2(&resources).unwrap()), ["memory.swap.max=max"]);
        assert_eq!(
            text(&v1(&resources).unwrap()),
            ["memory.memsw.limit_in_bytes=-1"]
        );
    }

    #[test]
    fn a_limit_can_be_lifted() {
        let resources = Resources {
            cpu_quota: Some(Ceiling::Unlimited),
            cpu_period: Some(50_000),
            pids_limit: Some(Ceiling::Unlimited),
            ..Resources::default()
        };
        assert_eq!(
            text(&v2(&resources).unwrap()),
            ["cpu.max=max 50000", "pids.max=max"]
        );
        assert_eq!(
            text(&v1(&resources).unwrap()),
            [
                "cpu.cfs_period_us=50000",
                "cpu.cfs_quota_us=-1",
                "pids.max=max"
            ]
        );
    }

    #[test]
    fn unified_keys_are_files_of_a_controller() {
        for bad in [
            "",
            ".",
            "memory",
            "memory.",
            ".max",
            "cgroup.procs",
            "a/b.c",
            "../x.y",
            "m.a\0",
            "m.a b",
        ] {
            let resources = Resources {
                unified: [(bad.to_owned(), "1".to_owned())].into(),
                ..Resources::default()
            };
            assert!(
                matches!(v2(&resources), Err(Error::Unified { key, .. }) if key == bad),
                "{bad}"
            );
            assert!(
                matches!(v1(&resources), Err(Error::Unified { key, .. }) if key == bad),
                "{bad}"
            );
        }
        let resources = Resources {
            unified: [("io.max".to_owned(), "8:0 rbps=1\n8:16 rbps=2\n".to_owned())].into(),
            ..Resources::default()
        };
        assert_eq!(
            text(&v2(&resources).unwrap()),
            ["io.max=8:0 rbps=1", "io.max=8:16 rbps=2"]
        );
        let error = v1(&resources).unwrap_err().to_string();
        assert!(
            error.contains("\"io.max\"") && error.contains("v2"),
            "{error}"
        );
    }
}
