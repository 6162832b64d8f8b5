//! ListMetricDescriptors, ListPodSandboxMetrics and StreamPodSandboxMetrics.
//!
//! A kubelet that asks for these (feature gate PodAndContainerStatsFromCRI) passes them on as they are, as what it used
//! to learn from cAdvisor. Pods that are ready have metrics, and in them containers that run.

mod families;
mod values;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use carpel_api::cri;
use tonic::Status;

use super::domain::{ContainerView, Domain, SandboxView};
use super::lists::{self, Messages};
use super::{convert, verbose};
use crate::ids::ContainerId;
use crate::stats::{Devices, SandboxAccounts, Volume};
use values::{Labels, Sheet};

pub async fn descriptors() -> Result<cri::ListMetricDescriptorsResponse, Status> {
    let families = families::ALL.iter();
    Ok(cri::ListMetricDescriptorsResponse {
        descriptors: families.map(|family| family.descriptor()).collect(),
    })
}

pub async fn list<D: Domain>(domain: &D) -> Result<cri::ListPodSandboxMetricsResponse, Status> {
    let answer = cri::ListPodSandboxMetricsResponse {
        pod_metrics: all(domain).await?.collect(),
    };
    lists::one_message(answer, "StreamPodSandboxMetrics")
}

pub async fn stream<D: Domain>(
    domain: &D,
) -> Result<Messages<cri::StreamPodSandboxMetricsResponse>, Status> {
    let metrics = all(domain).await?;
    Ok(lists::messages(metrics, |pod_sandbox_metrics| {
        cri::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }
    }))
}

/// All figures are read at once.
async fn all<D: Domain>(
    domain: &D,
) -> Result<impl Iterator<Item = cri::PodSandboxMetrics> + Send + use<D>, Status> {
    let sandboxes = domain.sandboxes();
    let ids = sandboxes.iter().map(|view| view.id).collect();
    let accounts: HashMap<_, _> = domain.sandbox_accounts(ids).await?.into_iter().collect();
    let containers = domain.containers().into_iter();
    let mut node = NodeWide {
        containers: containers.map(|view| (view.id, view)).collect(),
        volume: domain.volume(),
        devices: Devices::default(),
        now: verbose::now(),
    };
    Ok(sandboxes.into_iter().filter_map(move |view| {
        let accounts = accounts.get(&view.id)?;
        Some(node.sandbox(&view, accounts))
    }))
}

/// What the metrics of all pods need.
struct NodeWide {
    containers: HashMap<ContainerId, ContainerView>,
    volume: Option<Volume>,
    devices: Devices,
    now: i64,
}

impl NodeWide {
    fn sandbox(
        &mut self,
        view: &SandboxView,
        accounts: &SandboxAccounts,
    ) -> cri::PodSandboxMetrics {
        let mut sheet = Sheet::new(sandbox_labels(view, accounts));
        for interface in &accounts.interfaces {
            sheet.network(interface);
        }
        let mut containers = Vec::with_capacity(accounts.containers.len());
        for (id, accounts) in &accounts.containers {
            // Made after the views were taken, or gone since.
            let Some(container) = self.containers.get(id) else {
                continue;
            };
            let mut sheet = Sheet::new(container_labels(view, container, &accounts.cgroup));
            let volume = self.volume.as_ref();
            sheet.container(accounts, volume, &mut self.devices, self.now);
            containers.push(cri::ContainerMetrics {
                container_id: id.to_string(),
                metrics: sheet.done(),
            });
        }
        cri::PodSandboxMetrics {
            pod_sandbox_id: view.id.to_string(),
            metrics: sheet.done(),
            container_metrics: containers,
        }
    }
}

/// In the order of [`families::COMMON`]. As with cAdvisor, what is the pod's is no container's.
fn sandbox_labels(view: &SandboxView, accounts: &SandboxAccounts) -> Labels {
    [
        String::new(),
        accounts.cgroup.clone(),
        String::new(),
        view.id.to_string(),
        view.config.name.namespace.clone(),
        view.config.name.name.clone(),
    ]
}

/// In the order of [`families::COMMON`].
fn container_labels(sandbox: &SandboxView, view: &ContainerView, cgroup: &str) -> Labels {
    [
        view.config.name.name.clone(),
        cgroup.to_owned(),
        convert::image_spec(view).image,
        view.id.to_string(),
        sandbox.config.name.namespace.clone(),
        sandbox.config.name.name.clone(),
    ]
}
