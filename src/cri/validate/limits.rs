//! Resource limits: CPU, memory, cpusets and files of a cgroup.

use std::collections::BTreeMap;

use carpel_api::cri;

use super::{Field, Rejected, Shown, text};
use crate::spec::config::Resources;

/// The kernel's bounds of a CPU period and of a quota, microseconds.
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const QUOTA: std::ops::RangeInclusive<i64> = 1_000..=(1 << 44) - 1;
/// The kernel's bounds of v1 shares; it clamps to them itself.
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const MAX_UNIFIED: usize = 256;
const MAX_UNIFIED_VALUE: usize = 4096;

/// Checks a container's limits.
pub fn resources(
    field: &Field<'_>,
    raw: cri::LinuxContainerResources,
) -> Result<Resources, Rejected> {
    huge_pages(&field.member("hugepage_limits"), &raw.hugepage_limits)?;
    let memory_limit = positive(
        &field.member("memory_limit_in_bytes"),
        raw.memory_limit_in_bytes,
    )?;
    let (unified, pids_limit) = unified(&field.member("unified"), raw.unified)?;
    Ok(Resources {
        cpu_period: within(&field.member("cpu_period"), raw.cpu_period, PERIOD)?,
        cpu_quota: match raw.cpu_quota {
            -1 => None,
            quota => within(&field.member("cpu_quota"), quota, QUOTA)?,
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

fn swap_limit(field: &Field<'_>, value: i64, memory: Option<u64>) -> Result<Option<u64>, Rejected> {
    if value == -1 {
        return Ok(None);
    }
    let swap = positive(field, value)?;
    match (swap, memory) {
        (Some(_), None) => Err(field.invalid("needs memory_limit_in_bytes")),
        (Some(swap), Some(memory)) if swap < memory => Err(field.invalid(format_args!(
            "{swap} includes memory, so it must not be less than memory_limit_in_bytes, {memory}"
        ))),
        _ => Ok(swap),
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

/// The kubelet names every page size of the node with limit 0, which asks for nothing.
fn huge_pages(field: &Field<'_>, limits: &[cri::HugepageLimit]) -> Result<(), Rejected> {
    text::no_more_than(field, limits.len(), MAX_UNIFIED)?;
    for (index, limit) in limits.iter().enumerate() {
        let entry = field.index(index);
        let digits = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| limit.page_size.strip_suffix(unit))
            .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
        if digits.is_none() {
            return Err(entry.member("page_size").invalid(format_args!(
                "{} must be like \"2MB\"",
                Shown(&limit.page_size)
            )));
        }
        if limit.limit != 0 {
            return Err(entry
                .member("limit")
                .unsupported("huge pages are not supported yet"));
        }
    }
    Ok(())
}

type Unified = (BTreeMap<String, String>, Option<u64>);

/// Files of a cgroup. "pids.max" is taken out, because it has a meaning on cgroup v1 too.
fn unified(field: &Field<'_>, mut files: BTreeMap<String, String>) -> Result<Unified, Rejected> {
    const PIDS_MAX: &str = "pids.max";
    text::no_more_than(field, files.len(), MAX_UNIFIED)?;
    for (file, value) in &files {
        let entry = field.key(file);
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.');
        let controller = file.split_once('.').filter(|(controller, rest)| {
            !controller.is_empty() && !rest.is_empty() && !file.contains("..")
        });
        if controller.is_none() || !file.bytes().all(allowed) || file.len() > 255 {
            return Err(entry.invalid("is no file of a controller, like \"memory.high\""));
        }
        if file.starts_with("cgroup.") {
            return Err(entry.invalid("belongs to the runtime, it is no limit"));
        }
        text::at_most(&entry, value.len(), MAX_UNIFIED_VALUE)?;
        text::no_nul(&entry, value.as_bytes())?;
    }
    let pids_limit = match files.remove(PIDS_MAX).as_deref() {
        None | Some("max") => None,
        Some(value) => Some(value.parse().map_err(|_| {
            field
                .key(PIDS_MAX)
                .invalid(format_args!("{} must be a number or \"max\"", Shown(value)))
        })?),
    };
    Ok((files, pids_limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: cri::LinuxContainerResources) -> Result<Resources, String> {
        resources(&Field::root("r"), raw).map_err(|error| error.to_string())
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
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            unified: [("memory.oom.group", "1"), ("pids.max", "100")]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            ..Default::default()
        });
        assert_eq!(
            checked,
            Ok(Resources {
                cpu_period: Some(100_000),
                cpu_quota: Some(50_000),
                cpu_shares: Some(2),
                memory_limit: Some(1 << 27),
                memory_swap_limit: Some(1 << 27),
                oom_score_adj: -997,
                cpuset_cpus: Some("0-3,8".into()),
                cpuset_mems: None,
                pids_limit: Some(100),
                unified: [("memory.oom.group".into(), "1".into())].into(),
            })
        );
        let unlimited = cri::LinuxContainerResources {
            cpu_quota: -1,
            memory_swap_limit_in_bytes: -1,
            ..Default::default()
        };
        assert_eq!(check(unlimited), Ok(Resources::default()));
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
                        limit: 1,
                    }]
                },
                "r.hugepage_limits[0].limit: huge pages are not supported yet",
            ),
        ];
        for (spoil, why) in cases {
            let mut raw = cri::LinuxContainerResources::default();
            spoil(&mut raw);
            assert_eq!(check(raw), Err((*why).to_owned()));
        }
    }
}
