//! What plugins want, in the words of the interface, so that it is checked like a request and recorded like one.

use std::collections::BTreeMap;

use carpel_api::{cri, nri};
use prost::Message;

use super::update;
use super::validate::{self, Platform};
use crate::error::Error;
use crate::sandbox::PodLimits;
use crate::spec::config::{Resources, Scope};

/// Lays what plugins want over the limits that a container was asked to have: in `asked` for the last time, if that
/// was after it was `created`. With the limits comes the message, encoded, that asks for them.
///
/// # Errors
/// [`Error::InvalidArgument`] with the first limit that cannot be set, or that carpel does not set.
pub fn amend(
    asked: Option<&[u8]>,
    created: &[u8],
    wanted: &nri::LinuxResources,
    oom_score_adj: Option<i64>,
    unified: bool,
) -> Result<(Resources, Vec<u8>), Error> {
    let created = cri::ContainerConfig::decode(created)
        .map_err(Error::at("recorded request of a container"))?;
    let change = change(wanted).map_err(Error::InvalidArgument)?;
    let mut merged = update::merge(update::asked(asked, &created)?, change);
    if let Some(score) = oom_score_adj {
        merged.oom_score_adj = score;
    }
    let encoded = merged.encode_to_vec();
    let platform = Platform {
        unified,
        ..super::RECORDED
    };
    Ok((validate::updated_resources(merged, platform)?, encoded))
}

fn cannot<T>(field: &str) -> Result<T, String> {
    Err(format!("resources.{field}: carpel cannot do it"))
}

/// As an update has it: 0 is what is not said.
fn change(wanted: &nri::LinuxResources) -> Result<cri::LinuxContainerResources, String> {
    let mut unified = wanted.unified.clone();
    let memory = wanted.memory.unwrap_or_default();
    let cpu = wanted.cpu.clone().unwrap_or_default();
    for (field, said) in [
        ("memory.kernel", memory.kernel.is_some_and(|v| v.value != 0)),
        (
            "memory.kernel_tcp",
            memory.kernel_tcp.is_some_and(|v| v.value != 0),
        ),
        ("memory.swappiness", memory.swappiness.is_some()),
        (
            "memory.disable_oom_killer",
            memory.disable_oom_killer.is_some_and(|v| v.value),
        ),
        (
            "cpu.realtime_runtime",
            cpu.realtime_runtime.is_some_and(|v| v.value != 0),
        ),
        (
            "cpu.realtime_period",
            cpu.realtime_period.is_some_and(|v| v.value != 0),
        ),
    ] {
        if said {
            return cannot(field);
        }
    }
    for (field, class) in [
        ("blockio_class", &wanted.blockio_class),
        ("rdt_class", &wanted.rdt_class),
    ] {
        if class.as_ref().is_some_and(|class| !class.value.is_empty()) {
            return cannot(field);
        }
    }
    if let Some(reservation) = memory.reservation.filter(|v| v.value != 0) {
        // What other runtimes write there with cgroup v2; it has none with v1.
        unified.insert("memory.low".to_owned(), reservation.value.to_string());
    }
    if let Some(pids) = &wanted.pids {
        let limit = match pids.limit {
            limit if limit <= 0 => "max".to_owned(),
            limit => limit.to_string(),
        };
        unified.insert("pids.max".to_owned(), limit);
    }
    let positive = |field: &str, value: Option<u64>| {
        i64::try_from(value.unwrap_or(0)).map_err(|_| format!("resources.{field}: too large"))
    };
    Ok(cri::LinuxContainerResources {
        cpu_shares: positive("cpu.shares", cpu.shares.map(|v| v.value))?,
        cpu_quota: cpu.quota.map_or(0, |v| v.value),
        cpu_period: positive("cpu.period", cpu.period.map(|v| v.value))?,
        memory_limit_in_bytes: memory.limit.map_or(0, |v| v.value),
        memory_swap_limit_in_bytes: memory.swap.map_or(0, |v| v.value),
        oom_score_adj: 0,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: wanted
            .hugepage_limits
            .iter()
            .map(|limit| cri::HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit,
            })
            .collect(),
        unified,
    })
}

/// What a pod is to have, overhead and resources, as it was asked for last.
///
/// # Errors
/// What is on record of it is damaged, or of a version of carpel that accepted what this one does not.
pub fn pod_resources(
    request: &[u8],
    limits: &PodLimits,
) -> Result<(Option<Resources>, Option<Resources>), Error> {
    let (overhead, resources) = update::asked_of_pod(request, limits)?;
    let checked = |asked: Option<cri::LinuxContainerResources>| {
        asked
            .map(|asked| validate::updated_resources(asked, super::RECORDED))
            .transpose()
    };
    Ok((checked(overhead)?, checked(resources)?))
}

/// Checks kernel settings that plugins want for a container of a pod with these namespaces.
///
/// # Errors
/// [`Error::InvalidArgument`] with the first that does not belong to the pod.
pub fn sysctls(
    wanted: BTreeMap<String, String>,
    network: Scope,
    ipc: Scope,
) -> Result<BTreeMap<String, String>, Error> {
    Ok(validate::plugins_sysctls(wanted, network, ipc)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::config::Ceiling;

    fn created() -> Vec<u8> {
        let resources = cri::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let config = cri::ContainerConfig {
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(resources),
                ..Default::default()
            }),
            ..Default::default()
        };
        config.encode_to_vec()
    }

    #[test]
    fn what_plugins_want_is_laid_over_what_was_asked_for() {
        let wanted = nri::LinuxResources {
            cpu: Some(nri::LinuxCpu {
                quota: Some(nri::OptionalInt64 { value: 50_000 }),
                shares: Some(nri::OptionalUInt64 { value: 0 }),
                cpus: "0".into(),
                ..Default::default()
            }),
            memory: Some(nri::LinuxMemory {
                limit: Some(nri::OptionalInt64 { value: 2 << 20 }),
                reservation: Some(nri::OptionalInt64 { value: 4096 }),
                ..Default::default()
            }),
            pids: Some(nri::LinuxPids { limit: 7 }),
            ..Default::default()
        };
        let (resources, encoded) = amend(None, &created(), &wanted, Some(-5), true).unwrap();
        assert_eq!(resources.cpu_shares, Some(512));
        assert_eq!(resources.cpu_quota, Some(Ceiling::At(50_000)));
        assert_eq!(resources.cpuset_cpus.as_deref(), Some("0"));
        assert_eq!(resources.memory_limit, Some(2 << 20));
        assert_eq!(resources.pids_limit, Some(Ceiling::At(7)));
        assert_eq!(resources.unified["memory.low"], "4096");
        assert_eq!(resources.oom_score_adj, -5);
        // Once more, over that: what is not said stays.
        let more = nri::LinuxResources::default();
        let (again, _) = amend(Some(&encoded), &created(), &more, None, true).unwrap();
        assert_eq!(again, resources);
        let error = amend(None, &created(), &wanted, None, false).unwrap_err();
        assert!(error.to_string().contains("memory.low"), "{error}");
    }

    #[test]
    fn what_is_damaged_is_not_taken_for_nothing() {
        // A field of length 9, of which two bytes are there.
        let damaged = &[0x0a, 9, 1, 2][..];
        let limits = PodLimits::default();
        assert_eq!(pod_resources(&[], &limits).unwrap(), (None, None));
        let error = pod_resources(damaged, &limits).unwrap_err().to_string();
        assert!(error.contains("recorded request of a sandbox"), "{error}");
        let limits = PodLimits {
            resources: Some(crate::container::Asked(damaged.to_vec())),
            ..limits
        };
        let error = pod_resources(&[], &limits).unwrap_err().to_string();
        assert!(error.contains("recorded limits of a sandbox"), "{error}");
        let wanted = nri::LinuxResources::default();
        let error = amend(Some(damaged), &created(), &wanted, None, true).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("recorded limits of a container"), "{error}");
    }

    #[test]
    fn what_carpel_does_not_set_is_named() {
        let of = |wanted: nri::LinuxResources| {
            amend(None, &created(), &wanted, None, true)
                .unwrap_err()
                .to_string()
        };
        let class = |value: &str| {
            Some(nri::OptionalString {
                value: value.into(),
            })
        };
        let wanted = nri::LinuxResources {
            blockio_class: class("fast"),
            ..Default::default()
        };
        assert!(of(wanted).contains("resources.blockio_class: carpel cannot do it"));
        let wanted = nri::LinuxResources {
            memory: Some(nri::LinuxMemory {
                swappiness: Some(nri::OptionalUInt64 { value: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(of(wanted).contains("resources.memory.swappiness"));
        // An empty class is none.
        let wanted = nri::LinuxResources {
            rdt_class: class(""),
            ..Default::default()
        };
        amend(None, &created(), &wanted, None, true).unwrap();
    }
}
