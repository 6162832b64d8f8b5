//! The calls about pod sandboxes.

use carpel_api::cri;
use prost::Message;
use tonic::Status;
use tracing::Span;

use super::domain::Domain;
use super::status::{doomed_sandbox, require_sandbox, vanished};
use super::validate::{self, Platform};
use super::{convert, verbose};
use crate::ids::SandboxId;

pub async fn run<D: Domain>(
    domain: &D,
    platform: Platform,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Status> {
    let sent = request.config.as_ref().map(Message::encode_to_vec);
    let config = validate::run_pod_sandbox(request, platform)?;
    let id = domain
        .run_sandbox(config, sent.unwrap_or_default())
        .await?
        .to_string();
    Span::current().record("sandbox.id", &id);
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
}

pub async fn stop<D: Domain>(
    domain: &D,
    request: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, Status> {
    let id = validate::sandbox_id(&request.pod_sandbox_id)?;
    if let Some(id) = doomed_sandbox(domain, &id)? {
        domain.stop_sandbox(&id).await?;
    }
    Ok(cri::StopPodSandboxResponse {})
}

pub async fn remove<D: Domain>(
    domain: &D,
    request: cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, Status> {
    let id = validate::sandbox_id(&request.pod_sandbox_id)?;
    if let Some(id) = doomed_sandbox(domain, &id)? {
        domain.remove_sandbox(&id).await?;
    }
    Ok(cri::RemovePodSandboxResponse {})
}

pub async fn status<D: Domain>(
    domain: &D,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Status> {
    let id = validate::sandbox_id(&request.pod_sandbox_id)?;
    let id = require_sandbox(domain, &id)?;
    // Before the states are read: a kubelet compares it with the times of events, and must not take these
    // states for newer than they are.
    let timestamp = verbose::now();
    let detail = domain
        .sandbox(&id)
        .ok_or_else(|| vanished("sandbox", &id))?;
    Ok(cri::PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&detail)),
        info: if request.verbose {
            info(domain, &id)?
        } else {
            verbose::none()
        },
        containers_statuses: container_statuses(domain, &id),
        timestamp,
    })
}

fn info<D: Domain>(domain: &D, id: &SandboxId) -> Result<verbose::Info, Status> {
    let info = domain.sandbox_info(id);
    verbose::info("info", &info.ok_or_else(|| vanished("sandbox", id))?)
}

fn container_statuses<D: Domain>(domain: &D, sandbox: &SandboxId) -> Vec<cri::ContainerStatus> {
    let containers = domain.containers_of(sandbox);
    containers.iter().map(convert::container_status).collect()
}

pub async fn list<D: Domain>(
    domain: &D,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Status> {
    let query = validate::sandbox_query(request.filter)?;
    let views = domain.sandboxes();
    let matching = views
        .iter()
        .filter(|view| convert::sandbox_matches(view, &query));
    Ok(cri::ListPodSandboxResponse {
        items: matching.map(convert::sandbox_item).collect(),
    })
}
