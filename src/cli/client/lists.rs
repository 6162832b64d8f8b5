//! Lists: as streams, which have no longest message, where the runtime has these, and else in one message.

use std::future::Future;

use carpel_api::cri;
use tonic::{Code, Response, Status, Streaming};

use super::{CallError, Client, QUERY};

/// Methods of [`Client`]: `method(Request) -> Response { field }, "Name", stream(Request) -> { field }`.
macro_rules! lists {
    ($($stub:ident: $method:ident($request:ident) -> $response:ident { $field:ident }, $name:literal,
        $stream:ident($stream_request:ident) -> { $items:ident };)*) => {
        impl Client {$(
            /// The list of this name, within the time of a question.
            ///
            /// # Errors
            /// The runtime's answer.
            pub async fn $method(
                &self,
                request: cri::$request,
            ) -> Result<cri::$response, CallError> {
                let mut stub = self.$stub();
                let list = async {
                    let whole = cri::$stream_request { filter: request.filter.clone() };
                    match gather(stub.$stream(whole), |message| message.$items).await {
                        Ok($field) => Ok(Response::new(cri::$response { $field })),
                        Err(status) if status.code() == Code::Unimplemented => {
                            stub.$method(request).await
                        }
                        Err(status) => Err(status),
                    }
                };
                self.within($name, QUERY, list).await
            }
        )*}
    };
}

lists! {
    runtime: list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse { items }, "ListPodSandbox",
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> { pod_sandboxes };
    runtime: list_containers(ListContainersRequest) -> ListContainersResponse { containers }, "ListContainers",
        stream_containers(StreamContainersRequest) -> { containers };
    runtime: list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse { stats }, "ListContainerStats",
        stream_container_stats(StreamContainerStatsRequest) -> { container_stats };
    runtime: list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse { stats }, "ListPodSandboxStats",
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> { pod_sandbox_stats };
    images: list_images(ListImagesRequest) -> ListImagesResponse { images }, "ListImages",
        stream_images(StreamImagesRequest) -> { images };
}

/// The items of all messages of a stream.
async fn gather<M, T>(
    call: impl Future<Output = Result<Response<Streaming<M>>, Status>>,
    items: fn(M) -> Vec<T>,
) -> Result<Vec<T>, Status> {
    let mut stream = call.await?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        all.extend(items(message));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Connection;
    use super::*;
    use crate::cri::tests::fake::{self, Fake};

    /// What the commands ask for comes in streams, or in one message from a runtime that has no streams.
    #[tokio::test]
    async fn the_commands_lists_do_with_either() {
        let folder = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let mut client = fake::runtime(&fake).await;
        let sandbox = fake::run(&mut client, fake::sandbox_config("pod")).await;
        let container = fake::create(&mut client, &sandbox, fake::container_config("web")).await;
        let lacks: [fn(&str) -> bool; 2] = [
            |path| path.contains("/Stream"),
            |path| path.contains("/List"),
        ];
        for (number, lacks) in lacks.into_iter().enumerate() {
            let socket = folder.path().join(number.to_string());
            fake::listen(&fake, &socket, lacks);
            let endpoint = format!("unix://{}", socket.display()).parse().unwrap();
            let connection = Connection {
                endpoint: Some(endpoint),
            };
            let client = connection.connect().await.unwrap();
            let pods = client.list_pod_sandbox(Default::default()).await.unwrap();
            assert_eq!(pods.items.len(), 1);
            assert_eq!(pods.items[0].id, sandbox);
            let none = cri::ContainerFilter {
                id: "0".repeat(64),
                ..Default::default()
            };
            for (filter, count) in [(None, 1), (Some(none), 0)] {
                let request = cri::ListContainersRequest { filter };
                let found = client.list_containers(request).await.unwrap().containers;
                assert_eq!(found.len(), count);
                assert!(found.iter().all(|found| found.id == container));
            }
            client.list_images(Default::default()).await.unwrap();
            client
                .list_container_stats(Default::default())
                .await
                .unwrap();
            client
                .list_pod_sandbox_stats(Default::default())
                .await
                .unwrap();
        }
    }
}
