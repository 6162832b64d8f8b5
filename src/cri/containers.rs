//! The calls about containers.

use carpel_api::cri;
use prost::Message;
use tonic::Status;
use tracing::Span;

use super::domain::Domain;
use super::lists::{self, Messages};
use super::status::{doomed_container, require_container, require_sandbox, vanished};
use super::validate::{self, Platform};
use super::{MAX_MESSAGE, convert, verbose};
use crate::ids::ContainerId;

pub async fn create<D: Domain>(
    domain: &D,
    platform: Platform,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Status> {
    let sent = request.config.as_ref().map(Message::encode_to_vec);
    let checked = validate::create_container(request, platform)?;
    let sandbox = require_sandbox(domain, &checked.sandbox)?;
    let detail = domain
        .sandbox(&sandbox)
        .ok_or_else(|| vanished("sandbox", &sandbox))?;
    validate::fits_sandbox(&checked, &detail.view.config)?;
    let id = domain
        .create_container(&sandbox, checked.config, sent.unwrap_or_default())
        .await?
        .to_string();
    Span::current().record("container.id", &id);
    Ok(cri::CreateContainerResponse { container_id: id })
}

pub async fn start<D: Domain>(
    domain: &D,
    request: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, Status> {
    let id = validate::container_id(&request.container_id)?;
    let id = require_container(domain, &id)?;
    domain.start_container(&id).await?;
    Ok(cri::StartContainerResponse {})
}

pub async fn stop<D: Domain>(
    domain: &D,
    request: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, Status> {
    let id = validate::container_id(&request.container_id)?;
    let grace = validate::stop_timeout(request.timeout)?;
    if let Some(id) = doomed_container(domain, &id)? {
        domain.stop_container(&id, grace).await?;
    }
    Ok(cri::StopContainerResponse {})
}

pub async fn remove<D: Domain>(
    domain: &D,
    request: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, Status> {
    let id = validate::container_id(&request.container_id)?;
    if let Some(id) = doomed_container(domain, &id)? {
        domain.remove_container(&id).await?;
    }
    Ok(cri::RemoveContainerResponse {})
}

pub async fn status<D: Domain>(
    domain: &D,
    request: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Status> {
    let id = validate::container_id(&request.container_id)?;
    let id = require_container(domain, &id)?;
    let detail = domain
        .container(&id)
        .ok_or_else(|| vanished("container", &id))?;
    Ok(cri::ContainerStatusResponse {
        status: Some(convert::container_status(&detail)),
        info: if request.verbose {
            info(domain, &id)?
        } else {
            verbose::none()
        },
    })
}

fn info<D: Domain>(domain: &D, id: &ContainerId) -> Result<verbose::Info, Status> {
    let info = domain.container_info(id);
    verbose::info("info", &info.ok_or_else(|| vanished("container", id))?)
}

pub async fn list<D: Domain>(
    domain: &D,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, Status> {
    let answer = cri::ListContainersResponse {
        containers: matching(domain, request.filter)?.collect(),
    };
    lists::one_message(answer, "StreamContainers")
}

pub async fn stream<D: Domain>(
    domain: &D,
    request: cri::StreamContainersRequest,
) -> Result<Messages<cri::StreamContainersResponse>, Status> {
    let containers = matching(domain, request.filter)?;
    Ok(lists::messages(containers, |containers| {
        cri::StreamContainersResponse { containers }
    }))
}

fn matching<D: Domain>(
    domain: &D,
    filter: Option<cri::ContainerFilter>,
) -> Result<impl Iterator<Item = cri::Container> + Send + use<D>, Status> {
    let query = validate::container_query(filter)?;
    let views = domain.containers().into_iter();
    let matching = views.filter(move |view| convert::container_matches(view, &query));
    Ok(matching.map(|view| convert::container_item(&view)))
}

pub async fn reopen_log<D: Domain>(
    domain: &D,
    request: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Status> {
    let id = validate::container_id(&request.container_id)?;
    let id = require_container(domain, &id)?;
    domain.reopen_log(&id).await?;
    Ok(cri::ReopenContainerLogResponse {})
}

pub async fn exec_sync<D: Domain>(
    domain: &D,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Status> {
    let checked = validate::exec_sync(request)?;
    let id = require_container(domain, &checked.container)?;
    let output = domain
        .exec_sync(&id, checked.arguments, checked.timeout)
        .await?;
    let mut response = cri::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    };
    fit(&mut response, MAX_MESSAGE);
    Ok(response)
}

/// Cuts the longer of the two outputs, and then both, until the answer fits in a message: clients accept
/// no longer one, and would lose the exit code too.
fn fit(response: &mut cri::ExecSyncResponse, limit: usize) {
    /// Tags, lengths and exit code.
    const FRAME: usize = 64;
    let limit = limit - FRAME;
    let (stdout, stderr) = (&mut response.stdout, &mut response.stderr);
    if stdout.len() + stderr.len() <= limit {
        return;
    }
    let (longer, shorter) = if stdout.len() >= stderr.len() {
        (stdout, stderr)
    } else {
        (stderr, stdout)
    };
    shorter.truncate(limit / 2);
    longer.truncate(limit - shorter.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_to_a_message() {
        for (stdout, stderr, kept) in [
            (10, 20, (10, 20)),
            (1000, 0, (936, 0)),
            (0, 1000, (0, 936)),
            (1000, 100, (836, 100)),
            (5000, 5000, (468, 468)),
            (600, 5000, (468, 468)),
        ] {
            let mut response = cri::ExecSyncResponse {
                stdout: vec![b'o'; stdout],
                stderr: vec![b'e'; stderr],
                exit_code: -1,
            };
            fit(&mut response, 1000);
            assert_eq!((response.stdout.len(), response.stderr.len()), kept);
            assert!(response.encoded_len() <= 1000);
        }
    }
}
