//! UpdateContainerResources: what a request says is laid over what was asked for before.
//! UpdatePodSandboxResources: it takes the place of what was asked for before.

use carpel_api::cri;
use prost::Message;
use tonic::Status;

use super::domain::{Domain, SandboxDetail};
use super::status::{require_container, require_sandbox};
use super::validate::{self, Platform};
use crate::container as recorded;
use crate::error::Error;
use crate::sandbox::PodLimits;
use crate::spec::config::Resources;

/// The limits that a container has, as they were asked for: the message, encoded.
pub type Asked = Vec<u8>;

pub async fn container<D: Domain>(
    domain: &D,
    platform: Platform,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, Status> {
    let (id, change) = validate::update_container(request)?;
    let id = require_container(domain, &id)?;
    let merge = move |asked: cri::LinuxContainerResources| {
        let merged = merge(asked, change);
        let encoded = merged.encode_to_vec();
        let resources = validate::updated_resources(merged, platform)?;
        Ok((resources, encoded))
    };
    domain
        .update_container(&id, Box::new(merge))
        .await
        .map_err(Status::from)?;
    Ok(cri::UpdateContainerResourcesResponse {})
}

pub async fn sandbox<D: Domain>(
    domain: &D,
    platform: Platform,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Status> {
    let id = validate::update_sandbox(&request, platform)?;
    let id = require_sandbox(domain, &id)?;
    let encoded = |limits: Option<cri::LinuxContainerResources>| {
        limits.map(|limits| recorded::Asked(limits.encode_to_vec()))
    };
    let change = PodLimits {
        overhead: encoded(request.overhead),
        resources: encoded(request.resources),
    };
    domain.update_sandbox(&id, change).await?;
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}

/// Makes the new limits of those asked for before.
pub type Merge =
    Box<dyn FnOnce(cri::LinuxContainerResources) -> Result<(Resources, Asked), Error> + Send>;

/// What is not set in `change` stays as it was asked for. A swap limit that only forbade swap goes on doing
/// so beside another memory limit.
pub(super) fn merge(
    asked: cri::LinuxContainerResources,
    change: cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    fn number(old: i64, new: i64) -> i64 {
        if new == 0 { old } else { new }
    }
    fn text(old: String, new: String) -> String {
        if new.is_empty() { old } else { new }
    }
    let memory = number(asked.memory_limit_in_bytes, change.memory_limit_in_bytes);
    let old_swap = if asked.memory_swap_limit_in_bytes == asked.memory_limit_in_bytes {
        asked.memory_swap_limit_in_bytes.min(1) * memory
    } else {
        asked.memory_swap_limit_in_bytes
    };
    let mut hugepage_limits = asked.hugepage_limits;
    for limit in change.hugepage_limits {
        hugepage_limits.retain(|old| old.page_size != limit.page_size);
        hugepage_limits.push(limit);
    }
    let mut unified = asked.unified;
    unified.extend(change.unified);
    cri::LinuxContainerResources {
        cpu_period: number(asked.cpu_period, change.cpu_period),
        cpu_quota: number(asked.cpu_quota, change.cpu_quota),
        cpu_shares: number(asked.cpu_shares, change.cpu_shares),
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: number(old_swap, change.memory_swap_limit_in_bytes),
        oom_score_adj: number(asked.oom_score_adj, change.oom_score_adj),
        cpuset_cpus: text(asked.cpuset_cpus, change.cpuset_cpus),
        cpuset_mems: text(asked.cpuset_mems, change.cpuset_mems),
        hugepage_limits,
        unified,
    }
}

/// The limits that were asked for last: in an update, else when the container was created.
///
/// # Errors
/// The update that is on record is damaged: what was asked for before it is no answer.
pub fn asked(
    updated: Option<&[u8]>,
    created: &cri::ContainerConfig,
) -> Result<cri::LinuxContainerResources, Error> {
    if let Some(updated) = updated {
        return cri::LinuxContainerResources::decode(updated)
            .map_err(Error::at("recorded limits of a container"));
    }
    let linux = created.linux.as_ref();
    let resources = linux.and_then(|linux| linux.resources.clone());
    Ok(resources.unwrap_or_default())
}

/// What a pod is to have: overhead and resources.
pub type PodResources = (
    Option<cri::LinuxContainerResources>,
    Option<cri::LinuxContainerResources>,
);

/// What a pod is to have, as it was asked for last.
///
/// # Errors
/// What is on record of it is damaged.
pub fn pod_limits(detail: &SandboxDetail) -> Result<PodResources, Error> {
    asked_of_pod(&detail.request, &detail.limits)
}

pub(super) fn asked_of_pod(request: &[u8], limits: &PodLimits) -> Result<PodResources, Error> {
    let sent = cri::PodSandboxConfig::decode(request)
        .map_err(Error::at("recorded request of a sandbox"))?;
    let sent = sent.linux.unwrap_or_default();
    let last = |changed: &Option<recorded::Asked>, sent| match changed {
        Some(asked) => cri::LinuxContainerResources::decode(&*asked.0)
            .map(Some)
            .map_err(Error::at("recorded limits of a sandbox")),
        None => Ok(sent),
    };
    Ok((
        last(&limits.overhead, sent.overhead)?,
        last(&limits.resources, sent.resources)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_stays() {
        let asked = cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 100,
            memory_swap_limit_in_bytes: 100,
            oom_score_adj: 5,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![huge("1GB", 0), huge("2MB", 4)],
            unified: [("memory.low".into(), "1".into())].into(),
            ..Default::default()
        };
        assert_eq!(merge(asked.clone(), Default::default()), asked);
        let change = cri::LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 200,
            cpuset_mems: "0".into(),
            hugepage_limits: vec![huge("2MB", 8)],
            unified: [("memory.high".into(), "2".into())].into(),
            ..Default::default()
        };
        let merged = merge(asked.clone(), change);
        assert_eq!(
            merged,
            cri::LinuxContainerResources {
                cpu_quota: -1,
                memory_limit_in_bytes: 200,
                memory_swap_limit_in_bytes: 200,
                cpuset_mems: "0".into(),
                hugepage_limits: vec![huge("1GB", 0), huge("2MB", 8)],
                unified: [
                    ("memory.high".into(), "2".into()),
                    ("memory.low".into(), "1".into())
                ]
                .into(),
                ..asked
            }
        );
    }

    #[test]
    fn swap_that_was_allowed_stays_allowed() {
        let asked = |memory, swap| cri::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        };
        for (old, new, expected) in [
            (asked(100, 150), asked(120, 0), asked(120, 150)),
            (asked(100, 0), asked(120, 0), asked(120, 0)),
            (asked(100, -1), asked(120, 0), asked(120, -1)),
            (asked(0, 0), asked(120, 0), asked(120, 0)),
            (asked(100, 100), asked(0, 150), asked(100, 150)),
        ] {
            assert_eq!(merge(old, new), expected);
        }
    }

    fn huge(size: &str, limit: u64) -> cri::HugepageLimit {
        cri::HugepageLimit {
            page_size: size.into(),
            limit,
        }
    }
}
