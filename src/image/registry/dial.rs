//! Connections: straight to a host, or by a proxy.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::Service;

use super::proxy::{Kind, Proxies, Proxy};
use crate::tls;

type AnyError = Box<dyn StdError + Send + Sync>;
type Io = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Makes connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    tcp: HttpConnector,
    /// To proxies, some of which speak TLS.
    proxy: HttpsConnector<HttpConnector>,
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

    /// Whether one of the proxies is spoken to over TLS.
    pub(super) fn has_tls(&self) -> bool {
        self.own.as_ref().is_some_and(Proxy::is_tls) || self.proxies.has_tls()
    }
}

impl Dial {
    /// `secure`: how TLS is spoken with proxies, if one of them speaks it.
    pub(super) fn new(route: Route, timeout: Duration, secure: Option<ClientConfig>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        let secure = secure.unwrap_or_else(|| tls::client_trusting(RootCertStore::empty()));
        let proxy = HttpsConnectorBuilder::new()
            .with_tls_config(secure)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp.clone());
        Self { tcp, proxy, route }
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
                let io = MaybeHttpsStream::Http(connecting.await?);
                Ok(Stream { io, shared: false })
            });
        };
        let (proxy, at) = (proxy.clone(), proxy.uri.clone());
        let mut plain = self.proxy.clone();
        Box::pin(async move {
            let shared = matches!(proxy.kind, Kind::Http(_)) && to.scheme_str() != Some("https");
            let io: Result<_, AnyError> = match proxy.kind {
                Kind::Http(_) if shared => plain.call(at).await,
                Kind::Http(authorization) => {
                    let mut tunnel = Tunnel::new(at, plain);
                    if let Some(authorization) = authorization {
                        tunnel = tunnel.with_auth(authorization);
                    }
                    tunnel.call(to).await.map_err(Into::into)
                }
                Kind::Socks(login) => match plain.call(at.clone()).await {
                    Ok(io) => socks(at, io, login, to).await,
                    Err(error) => Err(error),
                },
            };
            let io = io.map_err(|error| of_proxy(&proxy.uri, &*error))?;
            Ok(Stream { io, shared })
        })
    }
}

/// Names the port, for who does not know the scheme.
fn with_port(uri: Uri) -> Result<Uri, AnyError> {
    let (Some(authority), None) = (uri.authority(), uri.port()) else {
        return Ok(uri);
    };
    let port = match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    let with = format!("{authority}:{port}");
    let mut parts = uri.into_parts();
    parts.authority = Some(with.parse()?);
    Ok(Uri::from_parts(parts)?)
}

/// Asks a SOCKS proxy that `io` is connected with for a connection to a host.
async fn socks(at: Uri, io: Io, login: Option<(String, String)>, to: Uri) -> Result<Io, AnyError> {
    let mut io = Some(io);
    let connected = tower::service_fn(move |_: Uri| {
        let io = io.take().ok_or("connected twice");
        std::future::ready(io.map_err(AnyError::from))
    });
    let mut socks = SocksV5::new(at, connected);
    if let Some((name, password)) = login {
        socks = socks.with_auth(name, password);
    }
    Ok(socks.call(with_port(to)?).await?)
}

fn of_proxy(proxy: &Uri, error: &(dyn StdError + 'static)) -> AnyError {
    let at = proxy.authority().map(ToString::to_string);
    let at = at.unwrap_or_default();
    let text = super::transport::innermost(error);
    io::Error::other(format!("proxy {at}: {text}")).into()
}

/// A connection to a host, or to a proxy.
#[derive(Debug)]
pub(super) struct Stream {
    io: Io,
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
