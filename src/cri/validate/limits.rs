//! Resource limits: CPU, memory, cpusets and files of a cgroup.

use std::collections::BTreeMap;

use carpel_api::cri;

use super::{Field, Platform, Rejected, Shown, text};
use crate::spec::config::{Ceiling, Resources};

/// The kernel's bounds of a CPU period and of a quota, microseconds.
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const QUOTA: std::ops::RangeInclusive<i64> = 1_000..=(1 << 44) - 1;
/// The kernel's bounds of v1 shares; it clamps to them itself.
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const MAX_UNIFIED: usize = 256;
const MAX_UNIFIED_VALUE: usize = 4096;
/// Controllers of cgroup v2 whose files are limits. ("cgroup" itself is none: its files move processes.)
const CONTROLLERS: [&str; 9] = [
    "cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "pids", "rdma",
];

/// Checks limits that are to be a container's from now on.
///
/// # Errors
/// The first field that is wrong.
pub fn updated(
    raw: cri::LinuxContainerResources,
    platform: Platform,
) -> Result<Resources, Rejected> {
    resources(&Field::root("linux"), raw, platform)
}

/// Checks what a whole pod is to have, which nothing is set by here: so it may name what only another machine has.
pub(super) fn of_pod(
    field: &Field<'_>,
    raw: Option<&cri::LinuxContainerResources>,
    platform: Platform,
) -> Result<(), Rejected> {
    let anywhere = Platform {
        unified: true,
        ..platform
    };
    let checked = raw.map(|raw| resources(field, raw.clone(), anywhere));
    checked.transpose().map(drop)
}

/// Checks a container's limits.
pub(super) fn resources(
    field: &Field<'_>,
    raw: cri::LinuxContainerResources,
    platform: Platform,
) -> Result<Resources, Rejected> {
    let huge_pages = huge_pages(&field.member("hugepage_limits"), &raw.hugepage_limits)?;
    let memory_limit = positive(
        &field.member("memory_limit_in_bytes"),
        raw.memory_limit_in_bytes,
    )?;
    let unified_field = field.member("unified");
    let (unified, pids_limit) = unified(&unified_field, raw.unified)?;
    if let Some(file) = unified.keys().next()
        && !platform.unified
    {
        return Err(unified_field
            .key(file)
            .invalid("this node has cgroup v1, where the files of cgroup v2 do not exist"));
    }
    Ok(Resources {
        cpu_period: within(&field.member("cpu_period"), raw.cpu_period, PERIOD)?,
        cpu_quota: match raw.cpu_quota {
            -1 => Some(Ceiling::Unlimited),
            quota => within(&field.member("cpu_quota"), quota, QUOTA)?.map(Ceiling::At),
        },
        cpu_shares: positive(&field.member("cpu_shares"), raw.cpu_shares)?
            .map(|shares| shares.clamp(MIN_SHARES, MAX_SHARES)),
        memory_limit,
        memory_swap_limit: swap_limit(
            &field.member("memory_swap_limit_in_bytes"),
            raw.memory_swap_limit_in_bytes,
            memory_limit,
        )?,
        oom_score_adj: oom_score_adj(&field.member("oom_score_adj"), raw.oom_score_adj)?,
        cpuset_cpus: cpuset(&field.member("cpuset_cpus"), raw.cpuset_cpus)?,
        cpuset_mems: cpuset(&field.member("cpuset_mems"), raw.cpuset_mems)?,
        pids_limit,
        huge_pages,
        unified,
    })
}

/// 0 is none.
fn positive(field: &Field<'_>, value: i64) -> Result<Option<u64>, Rejected> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(field.invalid(format_args!("{value} must not be negative"))),
    }
}

fn within(
    field: &Field<'_>,
    value: i64,
    bounds: std::ops::RangeInclusive<i64>,
) -> Result<Option<u64>, Rejected> {
    let checked = positive(field, value)?;
    if checked.is_some() && !bounds.contains(&value) {
        return Err(field.invalid(format_args!(
            "{value} must be {} to {} microseconds",
            bounds.start(),
            bounds.end()
        )));
    }
    Ok(checked)
}

fn swap_limit(
    field: &Field<'_>,
    value: i64,
    memory: Option<u64>,
) -> Result<Option<Ceiling>, Rejected> {
    if value == -1 {
        return Ok(Some(Ceiling::Unlimited));
    }
    let swap = positive(field, value)?;
    match (swap, memory) {
        (Some(_), None) => Err(field.invalid("needs memory_limit_in_bytes")),
        (Some(swap), Some(memory)) if swap < memory => Err(field.invalid(format_args!(
            "{swap} includes memory, so it must not be less than memory_limit_in_bytes, {memory}"
        ))),
        _ => Ok(swap.map(Ceiling::At)),
    }
}

fn oom_score_adj(field: &Field<'_>, value: i64) -> Result<i32, Rejected> {
    i32::try_from(value)
        .ok()
        .filter(|value| (-1000..=1000).contains(value))
        .ok_or_else(|| field.invalid(format_args!("{value} must be -1000 to 1000")))
}

/// A list of numbers and ranges: "0-3,8".
fn cpuset(field: &Field<'_>, list: String) -> Result<Option<String>, Rejected> {
    if list.is_empty() {
        return Ok(None);
    }
    text::at_most(field, list.len(), text::MAX_TEXT)?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let well_formed = list.split(',').all(|range| match range.split_once('-') {
        None => number(range).is_some(),
        Some((first, last)) => {
            matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last)
        }
    });
    if !well_formed {
        return Err(field.invalid(format_args!(
            "{} must be numbers and ranges like \"0-3,8\"",
            Shown(&list)
        )));
    }
    Ok(Some(list))
}

/// The kubelet names every page size of the node: those that the pod did not ask for with limit 0, which
/// forbids them. Of a size that is named twice, the last counts.
fn huge_pages(
    field: &Field<'_>,
    limits: &[cri::HugepageLimit],
) -> Result<BTreeMap<String, u64>, Rejected> {
    text::no_more_than(field, limits.len(), MAX_UNIFIED)?;
    let mut checked = BTreeMap::new();
    for (index, limit) in limits.iter().enumerate() {
        let entry = field.index(index);
        let digits = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| limit.page_size.strip_suffix(unit))
            .filter(|digits| !digits.is_empty() && digits.len() <= 9)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        if digits.is_none() {
            return Err(entry.member("page_size").invalid(format_args!(
                "{} must be like \"2MB\"",
                Shown(&limit.page_size)
            )));
        }
        if i64::try_from(limit.limit).is_err() {
            return Err(entry
                .member("limit")
                .invalid(format_args!("{} is too large", limit.limit)));
        }
        checked.insert(limit.page_size.clone(), limit.limit);
    }
    Ok(checked)
}

type Unified = (BTreeMap<String, String>, Option<Ceiling>);

/// Files of a cgroup. "pids.max" is taken out, because it has a meaning on cgroup v1 too.
fn unified(field: &Field<'_>, mut files: BTreeMap<String, String>) -> Result<Unified, Rejected> {
    const PIDS_MAX: &str = "pids.max";
    text::no_more_than(field, files.len(), MAX_UNIFIED)?;
    for (file, value) in &files {
        let entry = field.key(file);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
        let controller = file.split_once('.').filter(|(controller, rest)| {
            !controller.is_empty() && !rest.is_empty() && !file.contains("..")
        });
        if controller.is_none() || !file.bytes().all(allowed) || file.len() > 255 {
            return Err(entry.invalid("is no file of a controller, like \"memory.high\""));
        }
        if file.starts_with("cgroup.") {
            return Err(entry.invalid("belongs to the runtime, it is no limit"));
        }
        if !controller.is_some_and(|(controller, _)| CONTROLLERS.contains(&controller)) {
            return Err(entry.invalid(format_args!(
                "is of no controller that limits: these are {}",
                CONTROLLERS.join(", ")
            )));
        }
        text::at_most(&entry, value.len(), MAX_UNIFIED_VALUE)?;
        text::no_nul(&entry, value.as_bytes())?;
    }
    let pids_limit = match files.remove(PIDS_MAX).as_deref() {
        None => None,
        Some("max") => Some(Ceiling::Unlimited),
        Some(value) => Some(Ceiling::At(value.parse().map_err(|_| {
            field
                .key(PIDS_MAX)
                .invalid(format_args!("{} must be a number or \"max\"", Shown(value)))
        })?)),
    };
    Ok((files, pids_limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: cri::LinuxContainerResources) -> Result<Resources, String> {
        check_on(raw, true)
    }

    fn check_on(raw: cri::LinuxContainerResources, unified: bool) -> Result<Resources, String> {
        let platform = Platform {
            unified,
            ..Platform::default()
        };
        resources(&Field::root("r"), raw, platform).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_kubelet_sends_passes() {
        let checked = check(cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 1,
            memory_limit_in_bytes: 1 << 27,
            memory_swap_limit_in_bytes: 1 << 27,
            oom_score_adj: -997,
            cpuset_cpus: "0-3,8".into(),
            hugepage_limits: [("1GB", 0), ("2MB", 4 << 20)]
                .map(|(size, limit)| cri::HugepageLimit {
                    page_size: size.into(),
                    limit,
                })
                .into(),
            unified: [("memory.oom.group", "1"), ("pids.max", "100")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            ..Default::default()
        });
        assert_eq!(
            checked,
            Ok(Resources {
                cpu_period: Some(100_000),
                cpu_quota: Some(Ceiling::At(50_000)),
                cpu_shares: Some(2),
                memory_limit: Some(1 << 27),
                memory_swap_limit: Some(Ceiling::At(1 << 27)),
                oom_score_adj: -997,
                cpuset_cpus: Some("0-3,8".into()),
                cpuset_mems: None,
                pids_limit: Some(Ceiling::At(100)),
                huge_pages: [("1GB".into(), 0), ("2MB".into(), 4 << 20)].into(),
                unified: [("memory.oom.group".into(), "1".into())].into(),
            })
        );
        let unlimited = cri::LinuxContainerResources {
            cpu_quota: -1,
            memory_swap_limit_in_bytes: -1,
            unified: [("pids.max".into(), "max".into())].into(),
            ..Default::default()
        };
        assert_eq!(
            check_on(unlimited, false),
            Ok(Resources {
                cpu_quota: Some(Ceiling::Unlimited),
                memory_swap_limit: Some(Ceiling::Unlimited),
                pids_limit: Some(Ceiling::Unlimited),
                ..Resources::default()
            })
        );
        assert_eq!(check(Default::default()), Ok(Resources::default()));
    }

    #[test]
    fn files_of_version_2_need_version_2() {
        let raw = cri::LinuxContainerResources {
            unified: [("memory.high".into(), "1000".into())].into(),
            ..Default::default()
        };
        assert!(check_on(raw.clone(), true).is_ok());
        assert_eq!(
            check_on(raw, false),
            Err("r.unified[\"memory.high\"]: this node has cgroup v1, where the files of cgroup v2 do not exist".into())
        );
    }

    /// A change to a request that makes it wrong, and what is said about it.
    type Case = (fn(&mut cri::LinuxContainerResources), &'static str);

    #[test]
    fn bad_limits_are_named() {
        let cases: &[Case] = &[
            (
                |r| r.cpu_period = -1,
                "r.cpu_period: -1 must not be negative",
            ),
            (
                |r| r.cpu_period = 999,
                "r.cpu_period: 999 must be 1000 to 1000000 microseconds",
            ),
            (|r| r.cpu_quota = -2, "r.cpu_quota: -2 must not be negative"),
            (
                |r| r.cpu_quota = 10,
                "r.cpu_quota: 10 must be 1000 to 17592186044415 microseconds",
            ),
            (
                |r| r.cpu_shares = -5,
                "r.cpu_shares: -5 must not be negative",
            ),
            (
                |r| r.memory_limit_in_bytes = -1,
                "r.memory_limit_in_bytes: -1 must not be negative",
            ),
            (
                |r| r.memory_swap_limit_in_bytes = -2,
                "r.memory_swap_limit_in_bytes: -2 must not be negative",
            ),
            (
                |r| r.memory_swap_limit_in_bytes = 1,
                "r.memory_swap_limit_in_bytes: needs memory_limit_in_bytes",
            ),
            (
                |r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (2, 1),
                "r.memory_swap_limit_in_bytes: 1 includes memory, so it must not be less than memory_limit_in_bytes, 2",
            ),
            (
                |r| r.oom_score_adj = 1001,
                "r.oom_score_adj: 1001 must be -1000 to 1000",
            ),
            (
                |r| r.oom_score_adj = i64::MIN,
                "r.oom_score_adj: -9223372036854775808 must be -1000 to 1000",
            ),
            (
                |r| r.cpuset_cpus = "a".into(),
                "r.cpuset_cpus: \"a\" must be numbers and ranges like \"0-3,8\"",
            ),
            (
                |r| r.cpuset_cpus = "3-1".into(),
                "r.cpuset_cpus: \"3-1\" must be numbers and ranges like \"0-3,8\"",
            ),
            (
                |r| r.cpuset_cpus = "+1".into(),
                "r.cpuset_cpus: \"+1\" must be numbers and ranges like \"0-3,8\"",
            ),
            (
                |r| r.cpuset_mems = "0,".into(),
                "r.cpuset_mems: \"0,\" must be numbers and ranges like \"0-3,8\"",
            ),
            (
                |r| r.unified = [("../x".into(), "1".into())].into(),
                "r.unified[\"../x\"]: is no file of a controller, like \"memory.high\"",
            ),
            (
                |r| r.unified = [("memory".into(), "1".into())].into(),
                "r.unified[\"memory\"]: is no file of a controller, like \"memory.high\"",
            ),
            (
                |r| r.unified = [("cgroup.kill".into(), "1".into())].into(),
                "r.unified[\"cgroup.kill\"]: belongs to the runtime, it is no limit",
            ),
            (
                |r| r.unified = [("pids.max".into(), "-1".into())].into(),
                "r.unified[\"pids.max\"]: \"-1\" must be a number or \"max\"",
            ),
            (
                |r| r.unified = [("memory.high".into(), "1\0".into())].into(),
                "r.unified[\"memory.high\"]: must not contain NUL",
            ),
            (
                |r| {
                    r.hugepage_limits = vec![cri::HugepageLimit {
                        page_size: "../2MB".into(),
                        limit: 0,
                    }]
                },
                "r.hugepage_limits[0].page_size: \"../2MB\" must be like \"2MB\"",
            ),
            (
                |r| {
                    r.hugepage_limits = vec![cri::HugepageLimit {
                        page_size: "2MB".into(),
                        limit: u64::MAX,
                    }]
                },
                "r.hugepage_limits[0].limit: 18446744073709551615 is too large",
            ),
            (
                |r| r.unified = [("network.max".into(), "1".into())].into(),
                "r.unified[\"network.max\"]: is of no controller that limits: these are cpu, cpuset, dmem, hugetlb, io, memory, misc, pids, rdma",
            ),
            (
                |r| r.unified = [("memory.a/b".into(), "1".into())].into(),
                "r.unified[\"memory.a/b\"]: is no file of a controller, like \"memory.high\"",
            ),
        ];
        for (spoil, why) in cases {
            let mut raw = cri::LinuxContainerResources::default();
            spoil(&mut raw);
            assert_eq!(check(raw), Err((*why).to_owned()));
        }
    }
}
