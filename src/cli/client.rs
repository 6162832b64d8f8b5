//! The commands' connection to a runtime: carpel's socket, or with `--endpoint` that of any other CRI
//! runtime.
//!
//! Every call has a deadline, and every error says what a person can do about it.

mod lists;

use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::time::Duration;

use carpel_api::carpel::images_client::ImagesClient;
use carpel_api::carpel::network_client::NetworkClient;
use carpel_api::cri::image_service_client::ImageServiceClient;
use carpel_api::cri::runtime_service_client::RuntimeServiceClient;
use carpel_api::cri::{self, ContainerStatus};
use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::config::{Config, Endpoint, Layer};

/// How long a question may take.
pub const QUERY: Duration = Duration::from_secs(30);
/// How long making or removing something may take: CNI plugins have their own time in it.
pub const CHANGE: Duration = Duration::from_secs(240);
/// The longest answer that is taken, in bytes: two ExecSync streams of 16 MiB and some room.
const MAX_ANSWER: usize = 64 << 20;

/// Which runtime a command talks to.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The runtime's socket, as unix:///PATH [default: what carpel's configuration says]
    #[arg(long, global = true, env = "CARPEL_ENDPOINT", value_name = "ENDPOINT")]
    endpoint: Option<Endpoint>,
}

impl Connection {
    /// The socket to talk to.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone().unwrap_or_else(|| {
            // A configuration that cannot be read has no say here: the daemon's start tells of it.
            Config::load(None, Layer::default())
                .map_or_else(|_| Endpoint::default(), |(config, _)| config.listen)
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there, or we may not talk to who does.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        let endpoint = self.endpoint();
        let path = endpoint.path().to_owned();
        let stream = UnixStream::connect(&path)
            .await
            .map_err(|error| unreachable(&endpoint, error))?;
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let mut first = Some(stream);
        let connector = tower::service_fn(move |_| {
            let (first, path) = (first.take(), path.clone());
            async move {
                match first {
                    Some(stream) => Ok(TokioIo::new(stream)),
                    None => UnixStream::connect(path).await.map(TokioIo::new),
                }
            }
        });
        let channel = tonic::transport::Endpoint::from_static("http://carpel")
            .connect_with_connector(connector)
            .await
            .map_err(|_| anyhow::anyhow!("{endpoint}: whoever listens there speaks no gRPC"))?;
        Ok(Client {
            channel,
            endpoint,
            peer,
        })
    }
}

/// Why a socket cannot be connected to, and what to do.
fn unreachable(endpoint: &Endpoint, error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::anyhow!(
            "no carpel daemon at {endpoint}; start one with `carpel serve` (or systemctl start carpel), \
             or name another socket with --endpoint"
        ),
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{endpoint}: permission denied; only root may talk to the daemon: use sudo"
        ),
        _ => anyhow::Error::from(error).context(endpoint.to_string()),
    }
}

/// A call that did not succeed.
#[derive(Debug)]
pub struct CallError {
    call: &'static str,
    endpoint: Endpoint,
    status: Status,
}

impl CallError {
    /// Whether the runtime does not have this call.
    pub fn is_unimplemented(&self) -> bool {
        self.status.code() == Code::Unimplemented
    }

    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.status.code() == Code::NotFound
    }
}

impl std::error::Error for CallError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (call, endpoint, text) = (self.call, &self.endpoint, self.status.message());
        match self.status.code() {
            Code::Unimplemented => {
                write!(f, "the runtime at {endpoint} does not have the call {call}")?;
                match text.is_empty() {
                    true => Ok(()),
                    false => write!(f, " ({text})"),
                }
            }
            // Not the runtime's words: those of the connection.
            _ if std::error::Error::source(&self.status).is_some() || is_broken(&self.status) => {
                write!(
                    f,
                    "{call}: the runtime at {endpoint} went away, or is none; its log says more (journalctl -u carpel)"
                )
            }
            _ if text.is_empty() => write!(f, "{call}: {}", self.status.code()),
            _ => f.write_str(text),
        }
    }
}

/// Whether a status is what tonic makes of a connection that broke.
fn is_broken(status: &Status) -> bool {
    let text = status.message();
    let codes = [Code::Unavailable, Code::Unknown, Code::Cancelled];
    let words = text.is_empty() || text.contains("transport error") || text.contains("h2 protocol");
    codes.contains(&status.code()) && words
}

/// A connected runtime.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    endpoint: Endpoint,
    peer: Option<i32>,
}

/// Methods of [`Client`], one for each call: `method(Request) -> Response, "Name", time`.
macro_rules! calls {
    ($($stub:ident: $method:ident($request:ident) -> $response:ident, $name:literal, $time:expr;)*) => {
        impl Client {$(
            /// The call of this name, within its time.
            ///
            /// # Errors
            /// The runtime's answer.
            pub async fn $method(
                &self,
                request: cri::$request,
            ) -> Result<cri::$response, CallError> {
                let mut stub = self.$stub();
                self.within($name, $time, stub.$method(request)).await
            }
        )*}
    };
}

calls! {
    runtime: version(VersionRequest) -> VersionResponse, "Version", QUERY;
    runtime: status(StatusRequest) -> StatusResponse, "Status", QUERY;
    runtime: runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse, "RuntimeConfig", QUERY;
    runtime: pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse, "PodSandboxStatus", QUERY;
    runtime: run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse, "RunPodSandbox", CHANGE;
    runtime: stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse, "StopPodSandbox", CHANGE;
    runtime: remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse, "RemovePodSandbox", CHANGE;
    runtime: container_status(ContainerStatusRequest) -> ContainerStatusResponse, "ContainerStatus", QUERY;
    runtime: create_container(CreateContainerRequest) -> CreateContainerResponse, "CreateContainer", CHANGE;
    runtime: start_container(StartContainerRequest) -> StartContainerResponse, "StartContainer", CHANGE;
    runtime: remove_container(RemoveContainerRequest) -> RemoveContainerResponse, "RemoveContainer", CHANGE;
    runtime: exec(ExecRequest) -> ExecResponse, "Exec", QUERY;
    runtime: attach(AttachRequest) -> AttachResponse, "Attach", QUERY;
    runtime: port_forward(PortForwardRequest) -> PortForwardResponse, "PortForward", QUERY;
    images: image_status(ImageStatusRequest) -> ImageStatusResponse, "ImageStatus", QUERY;
    images: remove_image(RemoveImageRequest) -> RemoveImageResponse, "RemoveImage", CHANGE;
    images: image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse, "ImageFsInfo", QUERY;
}

impl Client {
    /// The CRI's calls about pods and containers.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// The CRI's calls about images.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// carpel's own calls: another runtime answers UNIMPLEMENTED.
    pub fn carpel(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    /// carpel's own calls about the pod network.
    pub fn network(&self) -> NetworkClient<Channel> {
        NetworkClient::new(self.channel.clone())
    }

    /// The process that listens, if it can be seen from here.
    pub fn peer(&self) -> Option<i32> {
        self.peer.filter(|pid| *pid > 0)
    }

    /// The socket that this client is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// StopContainer: what takes the container's grace takes that much longer.
    ///
    /// # Errors
    /// The runtime's answer.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<(), CallError> {
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace,
        };
        let time = CHANGE + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let mut stub = self.runtime();
        let call = stub.stop_container(request);
        self.within("StopContainer", time, call).await.map(drop)
    }

    /// ContainerStatus's status.
    ///
    /// # Errors
    /// The runtime's answer, also if there is no status in it.
    pub async fn require_status(&self, id: &str) -> Result<ContainerStatus, CallError> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let status = self.container_status(request).await?.status;
        status.ok_or_else(|| {
            let status = Status::not_found(format!("container {id}: an answer without a status"));
            self.error("ContainerStatus", status)
        })
    }

    /// A call that takes as long as it takes.
    ///
    /// # Errors
    /// The runtime's answer.
    pub async fn unbounded<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let answer = future.await.map_err(|status| self.error(call, status))?;
        Ok(answer.into_inner())
    }

    /// A call that must answer in time.
    ///
    /// # Errors
    /// The runtime's answer, or that there was none in time.
    pub async fn within<T>(
        &self,
        call: &'static str,
        time: Duration,
        future: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(time, self.unbounded(call, future)).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!(
                    "{call}: no answer from the runtime at {} within {} s",
                    self.endpoint,
                    time.as_secs()
                );
                Err(self.error(call, Status::deadline_exceeded(text)))
            }
        }
    }

    /// What a status that came in a stream means.
    pub fn error(&self, call: &'static str, status: Status) -> CallError {
        CallError {
            call,
            endpoint: self.endpoint.clone(),
            status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: Status) -> String {
        CallError {
            call: "Version",
            endpoint: "unix:///x.sock".parse().unwrap(),
            status,
        }
        .to_string()
    }

    #[test]
    fn an_error_reads_as_a_sentence() {
        for (status, text) in [
            (
                Status::not_found("container x not found"),
                "container x not found",
            ),
            (
                Status::unimplemented(""),
                "the runtime at unix:///x.sock does not have the call Version",
            ),
            (
                Status::unimplemented("not built"),
                "the runtime at unix:///x.sock does not have the call Version (not built)",
            ),
            (
                Status::unknown("transport error"),
                "Version: the runtime at unix:///x.sock went away, or is none; its log says more (journalctl -u carpel)",
            ),
            (
                Status::unavailable("registry: no route to host"),
                "registry: no route to host",
            ),
        ] {
            assert_eq!(told(status), text);
        }
    }

    #[test]
    fn a_socket_that_cannot_be_used_says_what_to_do() {
        let endpoint = "/x.sock".parse().unwrap();
        let told = |kind: ErrorKind| unreachable(&endpoint, kind.into()).to_string();
        assert!(told(ErrorKind::NotFound).contains("carpel serve"));
        assert!(told(ErrorKind::ConnectionRefused).contains("--endpoint"));
        assert!(told(ErrorKind::PermissionDenied).contains("root"));
        assert!(told(ErrorKind::TimedOut).contains("unix:///x.sock"));
    }
}
