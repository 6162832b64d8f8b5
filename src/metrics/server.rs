//! GET /metrics over plain HTTP, and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::node::Node;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Most connections at a time: a scraper needs one.
const CONNECTIONS: usize = 16;
/// How long a client may take for its request, and for all of its connection.
const REQUEST: Duration = Duration::from_secs(10);
const CONNECTION: Duration = Duration::from_secs(300);

/// The socket, bound and not yet served.
#[derive(Debug)]
pub struct Server(TcpListener);

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// As `bind(2)`.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self)
    }

    /// The address, with the port that the kernel chose if it was 0.
    ///
    /// # Errors
    /// As `getsockname(2)`.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Serves for as long as the node is there.
pub async fn serve(server: Server, node: Weak<Node>) {
    let registry = Arc::new(super::registry());
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        let stream = match server.0.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics: accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let connection = connection(stream, Arc::clone(&registry), Weak::clone(&node));
        tokio::spawn(async move {
            // A client that goes away or dawdles is no event.
            let _ = tokio::time::timeout(CONNECTION, connection).await;
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, registry: Arc<Registry>, node: Weak<Node>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &registry, &node);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "metrics: connection");
    }
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    node: &Weak<Node>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match (request.uri().path(), request.method(), node.upgrade()) {
        ("/metrics", &Method::GET, Some(node)) => {
            let text = super::write(registry, &node);
            *response.body_mut() = Full::from(text);
            let kind = hyper::header::HeaderValue::from_static(TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
        }
        ("/metrics", &Method::GET, None) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        ("/metrics", ..) => {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            let get = hyper::header::HeaderValue::from_static("GET");
            response.headers_mut().insert(ALLOW, get);
        }
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}
