//! Connections: straight to a host, or by a proxy.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::proxy::{Proxies, Proxy};

type AnyError = Box<dyn StdError + Send + Sync>;

/// Makes connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    tcp: HttpConnector,
    route: Route,
}

/// By which proxy a host is reached.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// Of this host alone: it goes before the environment's.
    pub own: Option<Proxy>,
    pub proxies: Arc<Proxies>,
}

impl Route {
    /// The proxy for a request, if there is one.
    pub(super) fn find(&self, to: &Uri) -> Option<&Proxy> {
        self.own.as_ref().or_else(|| self.proxies.find(to))
    }
}

impl Dial {
    pub(super) fn new(route: Route, timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        Self { tcp, route }
    }
}

impl Service<Uri> for Dial {
    type Response = Stream;
    type Error = AnyError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, AnyError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.route.find(&to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move {
                let io = connecting.await?;
                Ok(Stream { io, shared: false })
            });
        };
        let at = proxy.uri.authority().map(ToString::to_string);
        let at = at.unwrap_or_default();
        if to.scheme_str() != Some("https") {
            let connecting = self.tcp.call(proxy.uri.clone());
            return Box::pin(async move {
                let io = connecting.await.map_err(|error| of_proxy(&at, &error))?;
                Ok(Stream { io, shared: true })
            });
        }
        let mut tunnel = Tunnel::new(proxy.uri.clone(), self.tcp.clone());
        if let Some(authorization) = &proxy.authorization {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async move {
            let io = connecting.await.map_err(|error| of_proxy(&at, &error))?;
            Ok(Stream { io, shared: false })
        })
    }
}

fn of_proxy(proxy: &str, error: &(dyn StdError + 'static)) -> AnyError {
    let text = super::transport::innermost(error);
    io::Error::other(format!("proxy {proxy}: {text}")).into()
}

/// A connection to a host, or to a proxy.
#[derive(Debug)]
pub(super) struct Stream {
    io: TokioIo<TcpStream>,
    /// The proxy itself reads the requests, and wants to know for whom they are.
    shared: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.shared)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }
}
