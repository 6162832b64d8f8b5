//! Clients of the services over the fake node, and what they ask for.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::{Context, Poll};

use carpel_api::carpel::images_client::ImagesClient;
use carpel_api::cri;
use carpel_api::cri::image_service_client::ImageServiceClient;
use carpel_api::cri::runtime_service_client::RuntimeServiceClient;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, Server};
use tower::Service;

use super::Fake;

/// The services, served over one connection; and a hold on it, to cut it.
pub async fn serve(fake: &Arc<Fake>) -> (Channel, UnixStream) {
    let (client, server) = UnixStream::pair().expect("a pair of sockets");
    let cut = client.try_clone().expect("a descriptor");
    let [client, server] = [client, server].map(|socket| {
        socket.set_nonblocking(true).expect("a socket");
        tokio::net::UnixStream::from_std(socket).expect("a runtime")
    });
    let routes = crate::cri::routes(Arc::clone(fake));
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
    tokio::spawn(
        Server::builder()
            .add_routes(routes)
            .serve_with_incoming(incoming),
    );
    let mut client = Some(TokioIo::new(client));
    let connector = tower::service_fn(move |_| {
        let client = client.take();
        async move { client.ok_or_else(|| std::io::Error::other("connected already")) }
    });
    let endpoint = Endpoint::from_static("http://carpel");
    let channel = endpoint.connect_with_connector(connector).await;
    (channel.expect("the server is there"), cut)
}

/// Serves at a socket, but for the calls that `lacks` names: those that an older runtime does not have.
pub fn listen(fake: &Arc<Fake>, socket: &std::path::Path, lacks: fn(&str) -> bool) {
    let listener = tokio::net::UnixListener::bind(socket).expect("a socket");
    let routes = crate::cri::routes(Arc::clone(fake));
    tokio::spawn(
        Server::builder()
            .layer(tower::layer::layer_fn(move |inner| Lacks { inner, lacks }))
            .add_routes(routes)
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
}

#[derive(Clone)]
struct Lacks<S> {
    inner: S,
    lacks: fn(&str) -> bool,
}

impl<S> Service<Request<Body>> for Lacks<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if (self.lacks)(request.uri().path()) {
            let answer = tonic::Status::unimplemented("unknown method").into_http();
            return Box::pin(async { Ok(answer) });
        }
        Box::pin(self.inner.call(request))
    }
}

pub async fn runtime(fake: &Arc<Fake>) -> RuntimeServiceClient<Channel> {
    RuntimeServiceClient::new(serve(fake).await.0).max_decoding_message_size(16 << 20)
}

pub async fn images(fake: &Arc<Fake>) -> ImageServiceClient<Channel> {
    ImageServiceClient::new(serve(fake).await.0)
}

pub async fn own(fake: &Arc<Fake>) -> ImagesClient<Channel> {
    ImagesClient::new(serve(fake).await.0)
}

pub fn sandbox_config(name: &str) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: "uid".into(),
            namespace: "ns".into(),
            attempt: 2,
        }),
        labels: [("app".into(), name.into())].into(),
        annotations: [("a/b".into(), "ü\n\0".into())].into(),
        ..Default::default()
    }
}

pub async fn run(
    client: &mut RuntimeServiceClient<Channel>,
    config: cri::PodSandboxConfig,
) -> String {
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    let response = client
        .run_pod_sandbox(request)
        .await
        .expect("a good request");
    response.into_inner().pod_sandbox_id
}

pub fn container_config(name: &str) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.into(),
            attempt: 1,
        }),
        image: Some(cri::ImageSpec {
            image: "sha256:1234".into(),
            user_specified_image: "busybox".into(),
            ..Default::default()
        }),
        mounts: vec![cri::Mount {
            container_path: "/data/".into(),
            host_path: "/srv".into(),
            ..Default::default()
        }],
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                cpu_shares: 1,
                ..Default::default()
            }),
            ..Default::default()
        }),
        labels: [("app".into(), name.into())].into(),
        ..Default::default()
    }
}

pub async fn create(
    client: &mut RuntimeServiceClient<Channel>,
    sandbox: &str,
    config: cri::ContainerConfig,
) -> String {
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(config),
        sandbox_config: None,
    };
    let response = client
        .create_container(request)
        .await
        .expect("a good request");
    response.into_inner().container_id
}
