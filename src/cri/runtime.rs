//! The runtime service: each call in its span, handed to the function that does it; or refused by name.

use std::sync::Arc;

use carpel_api::cri;
use carpel_api::cri::runtime_service_server::RuntimeService;
use tonic::{Request, Response, Status};
use tracing::field;
use tracing::info_span;

use super::domain::Domain;
use super::lists::Messages;
use super::status::{answer, answer_stream, not_built};
use super::validate::Platform;
use super::{containers, events, metrics, node_calls, sandboxes, stats, streams, update};

/// The CRI's runtime service.
pub struct Runtime<D> {
    pub domain: Arc<D>,
    pub platform: Platform,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<D: Domain> RuntimeService for Runtime<D> {
    type StreamPodSandboxesStream = Messages<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = Messages<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = Messages<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Messages<cri::StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = events::Events;
    type StreamPodSandboxMetricsStream = Messages<cri::StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        answer(info_span!("Version"), node_calls::version()).await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let span = info_span!("RunPodSandbox", sandbox.id = field::Empty);
        answer(span, sandboxes::run(&*self.domain, self.platform, request)).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let request = request.into_inner();
        let span = info_span!("StopPodSandbox", sandbox.id = request.pod_sandbox_id);
        answer(span, sandboxes::stop(&*self.domain, request)).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let request = request.into_inner();
        let span = info_span!("RemovePodSandbox", sandbox.id = request.pod_sandbox_id);
        answer(span, sandboxes::remove(&*self.domain, request)).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let span = info_span!("PodSandboxStatus", sandbox.id = request.pod_sandbox_id);
        answer(span, sandboxes::status(&*self.domain, request)).await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        answer(
            info_span!("ListPodSandbox"),
            sandboxes::list(&*self.domain, request.into_inner()),
        )
        .await
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let span = info_span!(
            "CreateContainer",
            sandbox.id = request.pod_sandbox_id,
            container.id = field::Empty
        );
        answer(
            span,
            containers::create(&*self.domain, self.platform, request),
        )
        .await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let request = request.into_inner();
        let span = info_span!("StartContainer", container.id = request.container_id);
        answer(span, containers::start(&*self.domain, request)).await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        let span = info_span!("StopContainer", container.id = request.container_id);
        answer(span, containers::stop(&*self.domain, request)).await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let request = request.into_inner();
        let span = info_span!("RemoveContainer", container.id = request.container_id);
        answer(span, containers::remove(&*self.domain, request)).await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        answer(
            info_span!("ListContainers"),
            containers::list(&*self.domain, request.into_inner()),
        )
        .await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let span = info_span!("ContainerStatus", container.id = request.container_id);
        answer(span, containers::status(&*self.domain, request)).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let request = request.into_inner();
        let span = info_span!("ReopenContainerLog", container.id = request.container_id);
        answer(span, containers::reopen_log(&*self.domain, request)).await
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Answer<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let span = info_span!("ExecSync", container.id = request.container_id);
        answer(span, containers::exec_sync(&*self.domain, request)).await
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        let request = request.into_inner();
        let span = info_span!("Exec", container.id = request.container_id);
        answer(span, streams::exec(&*self.domain, request)).await
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        let request = request.into_inner();
        let span = info_span!("Attach", container.id = request.container_id);
        answer(span, streams::attach(&*self.domain, request)).await
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Answer<cri::PortForwardResponse> {
        let request = request.into_inner();
        let span = info_span!("PortForward", sandbox.id = request.pod_sandbox_id);
        answer(span, streams::port_forward(&*self.domain, request)).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        answer(
            info_span!("UpdateRuntimeConfig"),
            node_calls::update_runtime_config(&*self.domain, request.into_inner()),
        )
        .await
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        answer(
            info_span!("Status"),
            node_calls::status(&*self.domain, self.platform, request.into_inner()),
        )
        .await
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        answer(info_span!("RuntimeConfig"), node_calls::runtime_config()).await
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let span = info_span!(
            "UpdateContainerResources",
            container.id = request.container_id
        );
        answer(
            span,
            update::container(&*self.domain, self.platform, request),
        )
        .await
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let request = request.into_inner();
        let span = info_span!("ContainerStats", container.id = request.container_id);
        answer(span, stats::container(&*self.domain, request)).await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let request = request.into_inner();
        let span = info_span!("ListContainerStats");
        answer(span, stats::containers(&*self.domain, request)).await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let request = request.into_inner();
        let span = info_span!("PodSandboxStats", sandbox.id = request.pod_sandbox_id);
        answer(span, stats::sandbox(&*self.domain, request)).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let request = request.into_inner();
        let span = info_span!("ListPodSandboxStats");
        answer(span, stats::sandboxes(&*self.domain, request)).await
    }

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        answer_stream(
            info_span!("GetContainerEvents"),
            events::stream(&*self.domain),
        )
        .await
    }

    // ── lists as streams ──

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let call = sandboxes::stream(&*self.domain, request.into_inner());
        answer_stream(info_span!("StreamPodSandboxes"), call).await
    }

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let call = containers::stream(&*self.domain, request.into_inner());
        answer_stream(info_span!("StreamContainers"), call).await
    }

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let call = stats::stream_containers(&*self.domain, request.into_inner());
        answer_stream(info_span!("StreamContainerStats"), call).await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let call = stats::stream_sandboxes(&*self.domain, request.into_inner());
        answer_stream(info_span!("StreamPodSandboxStats"), call).await
    }

    // ── metrics ──

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        answer(info_span!("ListMetricDescriptors"), metrics::descriptors()).await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        answer(
            info_span!("ListPodSandboxMetrics"),
            metrics::list(&*self.domain),
        )
        .await
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        answer_stream(
            info_span!("StreamPodSandboxMetrics"),
            metrics::stream(&*self.domain),
        )
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let span = info_span!(
            "UpdatePodSandboxResources",
            sandbox.id = request.pod_sandbox_id
        );
        answer(span, update::sandbox(&*self.domain, self.platform, request)).await
    }

    // ── not built ──

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        Err(not_built("CheckpointContainer"))
    }

    async fn checkpoint_pod(
        &self,
        _: Request<cri::CheckpointPodRequest>,
    ) -> Answer<cri::CheckpointPodResponse> {
        Err(not_built("CheckpointPod"))
    }

    async fn restore_pod(
        &self,
        _: Request<cri::RestorePodRequest>,
    ) -> Answer<cri::RestorePodResponse> {
        Err(not_built("RestorePod"))
    }
}
