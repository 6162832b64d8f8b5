//! The calls about pod sandboxes.

use carpel_api::cri;
use prost::Message;
use serde::Serialize;
use serde_json::Value;
use tonic::Status;
use tracing::Span;

use super::domain::{Domain, SandboxDetail, SandboxInfo};
use super::lists::{self, Messages};
use super::status::{doomed_sandbox, require_sandbox, vanished};
use super::validate::{self, Platform};
use super::{MAX_MESSAGE, convert, update, verbose};
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
    let answer = cri::PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&detail)),
        info: if request.verbose {
            info(domain, &detail)?
        } else {
            verbose::none()
        },
        containers_statuses: container_statuses(domain, &id),
        timestamp,
    };
    Ok(shortened(answer))
}

/// What no client would take is no answer, and a pod that nobody can be told of is never stopped. Without a time a
/// kubelet passes over the containers, and asks for each.
fn shortened(answer: cri::PodSandboxStatusResponse) -> cri::PodSandboxStatusResponse {
    if answer.encoded_len() <= MAX_MESSAGE {
        return answer;
    }
    cri::PodSandboxStatusResponse {
        containers_statuses: Vec::new(),
        timestamp: 0,
        ..answer
    }
}

fn info<D: Domain>(domain: &D, detail: &SandboxDetail) -> Result<verbose::Info, Status> {
    let id = &detail.view.id;
    let info = domain.sandbox_info(id);
    let (overhead, resources) = update::pod_limits(detail)?;
    verbose::info(
        "info",
        &Verbose {
            info: info.ok_or_else(|| vanished("sandbox", id))?,
            overhead: overhead.as_ref().map(verbose::limits),
            resources: resources.as_ref().map(verbose::limits),
        },
    )
}

/// What a verbose status adds. The interface has no other place for what a pod is to have.
#[derive(Serialize)]
struct Verbose {
    #[serde(flatten)]
    info: SandboxInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Value>,
}

fn container_statuses<D: Domain>(domain: &D, sandbox: &SandboxId) -> Vec<cri::ContainerStatus> {
    let containers = domain.containers_of(sandbox);
    containers.iter().map(convert::container_status).collect()
}

pub async fn list<D: Domain>(
    domain: &D,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Status> {
    let answer = cri::ListPodSandboxResponse {
        items: matching(domain, request.filter)?.collect(),
    };
    lists::one_message(answer, "StreamPodSandboxes")
}

pub async fn stream<D: Domain>(
    domain: &D,
    request: cri::StreamPodSandboxesRequest,
) -> Result<Messages<cri::StreamPodSandboxesResponse>, Status> {
    let sandboxes = matching(domain, request.filter)?;
    Ok(lists::messages(sandboxes, |pod_sandboxes| {
        cri::StreamPodSandboxesResponse { pod_sandboxes }
    }))
}

fn matching<D: Domain>(
    domain: &D,
    filter: Option<cri::PodSandboxFilter>,
) -> Result<impl Iterator<Item = cri::PodSandbox> + Send + use<D>, Status> {
    let query = validate::sandbox_query(filter)?;
    let views = domain.sandboxes().into_iter();
    let matching = views.filter(move |view| convert::sandbox_matches(view, &query));
    Ok(matching.map(|view| convert::sandbox_item(&view)))
}
