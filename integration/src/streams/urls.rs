//! The requests that give a URL.

use tonic::Status;

use crate::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::{Pod, TestNode};

/// An Exec request for a shell script, with output and errors.
#[must_use]
pub fn exec(container: &str, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: container.to_owned(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    }
}

/// The same with input.
#[must_use]
pub fn exec_with_input(container: &str, script: &str) -> ExecRequest {
    ExecRequest {
        stdin: true,
        ..exec(container, script)
    }
}

/// An Exec request for a shell script on a terminal, as `kubectl exec -it`.
#[must_use]
pub fn exec_on_terminal(container: &str, script: &str) -> ExecRequest {
    ExecRequest {
        stdin: true,
        stderr: false,
        tty: true,
        ..exec(container, script)
    }
}

impl TestNode {
    /// A URL for a command.
    ///
    /// # Errors
    /// As Exec.
    pub async fn try_exec_url(&self, request: ExecRequest) -> Result<String, Status> {
        let response = self.cri.runtime().exec(request).await;
        response.map(|response| response.into_inner().url)
    }

    /// A URL for a command.
    ///
    /// # Panics
    /// If there is none.
    pub async fn exec_url(&self, request: ExecRequest) -> String {
        self.try_exec_url(request).await.expect("a URL")
    }

    /// A URL for a container's own streams.
    ///
    /// # Errors
    /// As Attach.
    pub async fn try_attach_url(&self, request: AttachRequest) -> Result<String, Status> {
        let response = self.cri.runtime().attach(request).await;
        response.map(|response| response.into_inner().url)
    }

    /// A URL for a pod's ports.
    ///
    /// # Errors
    /// As PortForward.
    pub async fn try_port_forward_url(&self, pod: &str, ports: &[i32]) -> Result<String, Status> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: ports.to_vec(),
        };
        let response = self.cri.runtime().port_forward(request).await;
        response.map(|response| response.into_inner().url)
    }

    /// A URL for a pod's ports.
    ///
    /// # Panics
    /// If there is none.
    pub async fn port_forward_url(&self, pod: &Pod, ports: &[i32]) -> String {
        let url = self.try_port_forward_url(&pod.id, ports).await;
        url.expect("a URL")
    }
}
