//! The calls that give a client a URL to come to. What they need is checked here and, as time passes until the client
//! comes, again there.

use carpel_api::cri;
use tonic::Status;

use super::domain::{ContainerState, Domain};
use super::status::{require_container, require_sandbox, vanished};
use super::validate::{self, IdText};
use crate::ids::ContainerId;
use crate::streaming::Request;

pub async fn exec<D: Domain>(
    domain: &D,
    request: cri::ExecRequest,
) -> Result<cri::ExecResponse, Status> {
    let checked = validate::exec(request)?;
    let url = domain.stream_url(Request::Exec {
        container: require_running(domain, &checked.container)?,
        command: checked.command,
        wanted: checked.wanted,
    })?;
    Ok(cri::ExecResponse { url })
}

pub async fn attach<D: Domain>(
    domain: &D,
    request: cri::AttachRequest,
) -> Result<cri::AttachResponse, Status> {
    let (container, wanted) = validate::attach(&request)?;
    let url = domain.stream_url(Request::Attach {
        container: require_running(domain, &container)?,
        wanted,
    })?;
    Ok(cri::AttachResponse { url })
}

pub async fn port_forward<D: Domain>(
    domain: &D,
    request: cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, Status> {
    let (sandbox, ports) = validate::port_forward(&request)?;
    let sandbox = require_sandbox(domain, &sandbox)?;
    let detail = domain
        .sandbox(&sandbox)
        .ok_or_else(|| vanished("sandbox", &sandbox))?;
    if !detail.view.ready {
        return Err(Status::failed_precondition(format!(
            "sandbox {sandbox} is not ready"
        )));
    }
    let url = domain.stream_url(Request::PortForward { sandbox, ports })?;
    Ok(cri::PortForwardResponse { url })
}

fn require_running<D: Domain>(domain: &D, id: &IdText) -> Result<ContainerId, Status> {
    let id = require_container(domain, id)?;
    let detail = domain
        .container(&id)
        .ok_or_else(|| vanished("container", &id))?;
    match detail.view.state {
        ContainerState::Running { .. } => Ok(id),
        ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => Err(
            Status::failed_precondition(format!("container {id} is not running")),
        ),
    }
}
