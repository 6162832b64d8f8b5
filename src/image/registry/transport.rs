//! HTTP itself: one request, one answer, within a time. No credentials, no redirects, no second attempt.

use std::error::Error as StdError;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::{Instrument, Span, debug_span, field};

use super::dial::{Dial, Route};
use super::{Error, Registries};
use crate::telemetry::trace;
use crate::tls::{self, Special};

type Connections = Client<HttpsConnector<Dial>, Full<Bytes>>;

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

/// The connections of one pull to one host, and to where it leads to: they are closed with it.
#[derive(Debug)]
pub(super) struct Transport {
    registries: Registries,
    link: Link,
    plain: OnceLock<Connections>,
    /// To the host itself, with all that is special about it.
    own: OnceLock<Connections>,
    /// To others.
    others: OnceLock<Connections>,
    timeout: Duration,
}

/// How a host is reached.
#[derive(Debug)]
pub(super) struct Link {
    /// What is special holds for this host alone; its authorities' certificates are trusted with others, too.
    pub host: String,
    pub special: Option<Special>,
    pub dial_timeout: Option<Duration>,
    pub route: Route,
}

/// Whom the machine trusts. Read when it is first needed.
pub(super) type Trust = OnceCell<Trusted>;

/// The certificates, and what is made of them.
#[derive(Debug)]
pub(super) struct Trusted {
    roots: Arc<RootCertStore>,
    config: ClientConfig,
}

impl Transport {
    pub(super) fn new(registries: Registries, link: Link) -> Self {
        let timeout = registries.0.timeout;
        Self {
            registries,
            link,
            plain: OnceLock::new(),
            own: OnceLock::new(),
            others: OnceLock::new(),
            timeout,
        }
    }

    async fn client(&self, uri: &Uri) -> Result<&Connections, Error> {
        let proxy = match self.link.route.has_tls() {
            true => Some(self.of_others().await?),
            false => None,
        };
        if uri.scheme() != Some(&Scheme::HTTPS) {
            let nobody = || tls::client_trusting(RootCertStore::empty());
            return Ok(self.plain.get_or_init(|| self.connections(nobody(), proxy)));
        }
        let Some(special) = &self.link.special else {
            let trusted = self.trusted().await?;
            let secure = || self.connections(trusted.config.clone(), proxy);
            return Ok(self.others.get_or_init(secure));
        };
        let is_own = uri.host().is_some_and(|host| host == self.link.host);
        let clients = if is_own { &self.own } else { &self.others };
        if let Some(client) = clients.get() {
            return Ok(client);
        }
        let config = match is_own {
            true => self.special(special).await?,
            false => self.of_others().await?,
        };
        Ok(clients.get_or_init(|| self.connections(config, proxy)))
    }

    /// How TLS is spoken with others than the host itself.
    async fn of_others(&self) -> Result<ClientConfig, Error> {
        match &self.link.special {
            None => Ok(self.trusted().await?.config.clone()),
            Some(special) => {
                let ca = special.ca.clone();
                let special = Special {
                    ca,
                    ..Special::default()
                };
                self.special(&special).await
            }
        }
    }

    async fn special(&self, special: &Special) -> Result<ClientConfig, Error> {
        let roots = match self.trusted().await {
            Ok(trusted) => RootCertStore::clone(&trusted.roots),
            // The machine need not trust anybody else.
            Err(_) if special.skip_verify || !special.ca.is_empty() => RootCertStore::empty(),
            Err(error) => return Err(error),
        };
        let config = tls::client_special(roots, special);
        config.map_err(|error| Error::Tls(error.to_string()))
    }

    async fn trusted(&self) -> Result<&Trusted, Error> {
        self.registries.0.trust.get_or_try_init(trust).await
    }

    /// `proxy`: how TLS is spoken with proxies, if one of them speaks it.
    fn connections(&self, tls: ClientConfig, proxy: Option<ClientConfig>) -> Connections {
        let timeout = self.link.dial_timeout.unwrap_or(self.timeout);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(Dial::new(self.link.route.clone(), timeout, proxy));
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE)
            .http1_max_buf_size(BUFFER)
            .http2_initial_stream_window_size(WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .build(connector)
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

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Body>, Error> {
        // By a tunnel it is the proxy's, which the connection says itself.
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(proxy) = self.link.route.find(request.uri())
            && let Some(authorization) = proxy.authorization()
        {
            let headers = request.headers_mut();
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
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
async fn trust() -> Result<Trusted, Error> {
    let roots = tokio::task::spawn_blocking(tls::roots).await;
    let roots = roots.map_err(|error| Error::Tls(error.to_string()))?;
    let roots = roots.map_err(|error| Error::Tls(error.to_string()))?;
    let roots = Arc::new(roots);
    let config = tls::client_trusting(Arc::clone(&roots));
    Ok(Trusted { roots, config })
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
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
