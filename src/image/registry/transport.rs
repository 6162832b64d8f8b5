//! HTTP itself: one request, one answer, within a time. No credentials, no redirects, no second attempt.

use std::error::Error as StdError;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::{Instrument, Span, debug_span, field};

use super::{Error, Registries};
use crate::telemetry::trace;
use crate::tls;

type Connections = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Bytes that one connection buffers.
const BUFFER: usize = 128 << 10;
/// What HTTP/2 lets a server send ahead, for one answer and for all on a connection.
const WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Connections that are kept for the next layer.
const IDLE: usize = 4;
const IDLE_TIME: Duration = Duration::from_secs(15);
/// A transfer that brings fewer bytes in a second is as good as none.
const SLOWEST: u64 = 1 << 10;

/// The connections of one pull: they are closed with it.
#[derive(Debug)]
pub(super) struct Transport {
    registries: Registries,
    plain: OnceLock<Connections>,
    tls: OnceLock<Connections>,
    timeout: Duration,
}

/// Whom the machine trusts. Read when it is first needed.
pub(super) type Trust = OnceCell<ClientConfig>;

impl Transport {
    pub(super) fn new(registries: Registries) -> Self {
        let timeout = registries.0.timeout;
        Self {
            registries,
            plain: OnceLock::new(),
            tls: OnceLock::new(),
            timeout,
        }
    }

    async fn client(&self, uri: &Uri) -> Result<&Connections, Error> {
        if uri.scheme() != Some(&Scheme::HTTPS) {
            let nobody = || tls::client_trusting(RootCertStore::empty());
            let plain = || connections(nobody(), self.timeout);
            return Ok(self.plain.get_or_init(plain));
        }
        let trust = self.registries.0.trust.get_or_try_init(trust).await?;
        let secure = || connections(trust.clone(), self.timeout);
        Ok(self.tls.get_or_init(secure))
    }

    /// Sends a request and returns the answer's head; the body is yet to be read.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Body>, Error> {
        // Paths and queries may hold what only the server should know.
        let span = debug_span!(
            "http",
            otel.name = request.method().as_str(),
            otel.kind = "client",
            http.request.method = request.method().as_str(),
            server.address = request.uri().host(),
            url.scheme = request.uri().scheme_str(),
            http.response.status_code = field::Empty,
            error = field::Empty,
        );
        let exchange = async {
            let answer = trace::note(self.exchange(request).await)?;
            let status = answer.status().as_u16();
            Span::current().record("http.response.status_code", status);
            Ok(answer)
        };
        exchange.instrument(span).await
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Body>, Error> {
        let client = self.client(request.uri()).await?;
        let answer = tokio::time::timeout(self.timeout, client.request(request)).await;
        let answer = answer.map_err(|_| Error::Timeout {
            what: "answer",
            within: self.timeout,
        })?;
        let answer = answer.map_err(|error| of_client(&error))?;
        Ok(answer.map(|body| Body {
            body,
            window: self.timeout,
            waited: Duration::ZERO,
            received: 0,
        }))
    }
}

/// The certificates that the machine trusts.
async fn trust() -> Result<ClientConfig, Error> {
    let config = tokio::task::spawn_blocking(tls::client).await;
    let config = config.map_err(|error| Error::Tls(error.to_string()))?;
    config.map_err(|error| Error::Tls(error.to_string()))
}

fn connections(tls: ClientConfig, timeout: Duration) -> Connections {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIME)
        .pool_max_idle_per_host(IDLE)
        .http1_max_buf_size(BUFFER)
        .http2_initial_stream_window_size(WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build(connector)
}

/// The body of an answer. Waits for the sender only, never counts the time that its reader takes.
#[derive(Debug)]
pub(super) struct Body {
    body: Incoming,
    /// How long nothing may come, and over how long the rate is measured.
    window: Duration,
    waited: Duration,
    received: u64,
}

impl Body {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let begin = Instant::now();
            let frame = tokio::time::timeout(self.window, self.body.frame()).await;
            let frame = frame.map_err(|_| self.stalled())?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| Error::Broken(innermost(&error)))?;
            // Trailers are of no use.
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            self.waited += begin.elapsed();
            self.received += bytes.len() as u64;
            if self.waited >= self.window {
                if self.received < SLOWEST * self.window.as_secs().max(1) {
                    return Err(self.stalled());
                }
                self.waited = Duration::ZERO;
                self.received = 0;
            }
            return Ok(Some(bytes));
        }
    }

    /// The whole body, if it has at most `most` bytes.
    pub(super) async fn read(mut self, most: u64, what: &str) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if (all.len() + bytes.len()) as u64 > most {
                return Err(Error::Content(format!("{what} of more than {most} bytes")));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    fn stalled(&self) -> Error {
        Error::Timeout {
            what: "progress",
            within: self.window,
        }
    }
}

fn of_client(error: &hyper_util::client::legacy::Error) -> Error {
    if let Some(error) = find_tls(error) {
        return Error::Tls(error.to_string());
    }
    let text = innermost(error);
    match error.is_connect() {
        true => Error::Connect(format!("connect: {text}")),
        false => Error::Broken(text),
    }
}

fn find_tls<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// What happened, without all that says through how many hands it went.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
