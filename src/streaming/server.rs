//! The HTTP server: takes connections, finds out what they are for, and hands them over.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::command::{self, Task};
use super::link::Link;
use super::tokens::Tokens;
use super::upgrade::{self, Protocol, Purpose, Refusal};
use super::{Request, TlsError, Urls, ports, tls, websocket};

/// Most connections that have not shown a token yet (one more, and the oldest is cut off: whoever floods the server
/// keeps nobody out), and most that have.
const STRANGERS: usize = 256;
const CLIENTS: usize = 1024;
/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// After so much silence the kernel asks a client's kernel whether it is there, and how often it may not answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_PROBES: u32 = 4;

/// How long clients may take, when the server ends, to hear of it.
const ENDING: Duration = Duration::from_secs(1);

/// How the server shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Port 0: one that the kernel chooses.
    pub address: SocketAddr,
    /// Certificate and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// How long a connection may take to say what it is for.
    pub head: Duration,
    /// How long a client may take to open its streams.
    pub creation: Duration,
    /// How long a connection may be silent.
    pub idle: Duration,
}

impl Settings {
    /// With the times that clients are used to.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            tls: None,
            head: Duration::from_secs(10),
            creation: Duration::from_secs(30),
            idle: Duration::from_secs(4 * 60 * 60),
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The socket, bound and not yet served.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    urls: Urls,
    times: Times,
    clients: Clients,
}

/// Those who have shown a token. A clone is the same clients.
#[derive(Debug, Clone)]
pub struct Clients {
    /// A permit for each that may still come.
    room: Arc<Semaphore>,
    ending: CancellationToken,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(CLIENTS)),
            ending: CancellationToken::new(),
        }
    }
}

impl Clients {
    /// Tells those whose command or attachment goes on that it does so without them, and gives them a second to hear
    /// it. Nobody comes after that.
    pub async fn end(&self) {
        self.ending.cancel();
        let all = u32::try_from(CLIENTS).expect("not that many");
        // Whoever has not gone by then is cut off.
        let _ = tokio::time::timeout(ENDING, self.room.acquire_many(all)).await;
        self.room.close();
    }
}

#[derive(Clone, Copy)]
struct Times {
    head: Duration,
    creation: Duration,
    idle: Duration,
}

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// It cannot be bound, or the certificate is not usable.
    pub async fn bind(settings: &Settings) -> Result<Self, BindError> {
        let tls = match &settings.tls {
            Some((certificate, key)) => Some(tls::acceptor(certificate, key)?),
            None => None,
        };
        let listen = |error| BindError::Listen(settings.address, error);
        let listener = TcpListener::bind(settings.address).await.map_err(listen)?;
        if settings.address.ip().is_loopback() {
            unpace(&listener);
        }
        let address = reachable(listener.local_addr().map_err(listen)?);
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self {
            listener,
            tls,
            urls: Urls {
                tokens: Arc::new(Tokens::default()),
                base: format!("{scheme}://{address}"),
            },
            times: Times {
                head: settings.head,
                creation: settings.creation,
                idle: settings.idle,
            },
            clients: Clients::default(),
        })
    }

    /// What makes URLs of this server.
    #[must_use]
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Its clients, to be told of its end.
    #[must_use]
    pub fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// "http://HOST:PORT", as in its URLs.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.urls.base
    }

    /// Serves for ever. What is dropped with it are not the connections that stand.
    pub async fn serve(self, backend: impl Backend) {
        let mut strangers = Strangers::default();
        let shared = Arc::new(Shared {
            backend,
            tokens: Arc::clone(&self.urls.tokens),
            clients: self.clients,
            times: self.times,
        });
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "streaming: accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let (tls, shared) = (self.tls.clone(), Arc::clone(&shared));
            let cut_off = strangers.admit();
            tokio::spawn(async move {
                // Whoever does not speak HTTP here, or not in time, is no event.
                let come = tokio::time::timeout(shared.times.head, come(stream, tls, &shared));
                let come = tokio::select! {
                    come = come => come.ok().flatten(),
                    _ = cut_off => None,
                };
                if let Some((socket, session)) = come {
                    session.run(socket, &shared).await;
                }
            });
        }
    }
}

/// Connections that have not shown a token yet, the oldest first. A sender that is dropped cuts its connection off; one
/// whose receiver is gone belongs to none any more.
#[derive(Default)]
struct Strangers(VecDeque<oneshot::Sender<Infallible>>);

impl Strangers {
    fn admit(&mut self) -> oneshot::Receiver<Infallible> {
        if self.0.len() >= STRANGERS {
            self.0.retain(|stranger| !stranger.is_closed());
        }
        if self.0.len() >= STRANGERS {
            self.0.pop_front();
        }
        let (sender, receiver) = oneshot::channel();
        self.0.push_back(sender);
        receiver
    }
}

/// The address that clients on this machine reach a listener by.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

struct Shared<B> {
    backend: B,
    tokens: Arc<Tokens>,
    clients: Clients,
    times: Times,
}

/// A client's request, agreed on.
struct Session {
    request: Request,
    protocol: Protocol,
    _permit: OwnedSemaphorePermit,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An upgraded connection: both directions, and the socket below.
struct Socket {
    reader: super::link::Incoming,
    writer: super::outbound::Writer,
    hangup: Option<OwnedFd>,
}

/// Speaks HTTP with a client until both agree on something else.
async fn come<B: Backend>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    shared: &Arc<Shared<B>>,
) -> Option<(Socket, Session)> {
    tune(&stream);
    let hangup = stream.as_fd().try_clone_to_owned().ok();
    let Some(tls) = tls else {
        let (upgraded, session) = converse(stream, shared).await?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
        let (reader, writer) = parts.io.into_inner().into_split();
        return Some((
            Socket {
                reader: before(parts.read_buf, reader),
                writer: Box::new(writer),
                hangup,
            },
            session,
        ));
    };
    let stream = tls.accept(stream).await.ok()?;
    let (upgraded, session) = converse(stream, shared).await?;
    let parts = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>().ok()?;
    let (reader, writer) = tokio::io::split(parts.io.into_inner());
    Some((
        Socket {
            reader: before(parts.read_buf, reader),
            writer: Box::new(writer),
            hangup,
        },
        session,
    ))
}

/// What was read together with the request's head comes first.
fn before(read: Bytes, rest: impl AsyncRead + Send + Unpin + 'static) -> super::link::Incoming {
    use tokio::io::AsyncReadExt;
    match read.is_empty() {
        true => Box::new(rest),
        false => Box::new(std::io::Cursor::new(read).chain(rest)),
    }
}

/// Has a socket of the loopback interface send as fast as its peer takes it. BBR, where it is the default, paces there
/// too, which costs a timer for each piece and half of the throughput. Reno is in every kernel and does not
/// (tcp(7)). To be called before the socket is connected: pacing that has begun stays.
pub fn unpace(socket: &impl AsFd) {
    let _ = sockopt::set_tcp_congestion(socket, "reno");
}

/// Small pieces go out at once, and a client whose machine is gone is found out. If an option is not there, it works
/// without.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEP_ALIVE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE);
    let _ = sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_PROBES);
}

/// Answers one request. If it is upgraded: the connection, and what for.
async fn converse<B: Backend>(
    stream: impl Stream + 'static,
    shared: &Arc<Shared<B>>,
) -> Option<(hyper::upgrade::Upgraded, Session)> {
    let agreed: Mutex<Option<(OnUpgrade, Session)>> = Mutex::new(None);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let response = match shared.agree(&request) {
            Ok((session, response)) => {
                let upgrade = hyper::upgrade::on(&mut request);
                *agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, session));
                response.map(|()| Full::default())
            }
            Err(refusal) => refused(refusal),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.times.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "streaming: connection");
    }
    let (upgrade, session) = agreed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)?;
    Some((upgrade.await.ok()?, session))
}

fn refused(refusal: Refusal) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(refusal.text + "\n"));
    *response.status_mut() = refusal.status;
    *response.headers_mut() = refusal.headers;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    // One request is all that a connection is for.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

impl<B: Backend> Shared<B> {
    /// Finds out what a request is for, and how. Its token is used up by it, whatever comes of it.
    fn agree(
        &self,
        request: &hyper::Request<Incoming>,
    ) -> Result<(Session, Response<()>), Refusal> {
        let unknown = || Refusal::new(StatusCode::NOT_FOUND, "404 page not found");
        let mut path = request.uri().path().splitn(3, '/').skip(1);
        let (kind, token) = (path.next().unwrap_or_default(), path.next());
        let token = token.ok_or_else(unknown)?;
        if !["exec", "attach", "portforward"].contains(&kind) {
            return Err(unknown());
        }
        if !matches!(*request.method(), Method::GET | Method::POST) {
            let mut refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
            let both = HeaderValue::from_static("GET, POST");
            refusal.headers.insert(ALLOW, both);
            return Err(refusal);
        }
        let kept = self.tokens.take(token).ok_or_else(unknown)?;
        let purpose = match (&kept, kind) {
            (Request::Exec { .. }, "exec") | (Request::Attach { .. }, "attach") => Purpose::Command,
            (Request::PortForward { .. }, "portforward") => Purpose::PortForward,
            _ => return Err(unknown()),
        };
        let (protocol, response) = upgrade::agree(purpose, request.method(), request.headers())?;
        if let (Request::PortForward { ports, .. }, Protocol::Channels { .. }) = (&kept, protocol)
            && !(1..=ports::MOST_PORTS).contains(&ports.len())
        {
            let text = format!(
                "port: {} ports, not 1 to {}",
                ports.len(),
                ports::MOST_PORTS
            );
            return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
        }
        let permit = Arc::clone(&self.clients.room).try_acquire_owned();
        let permit = permit.map_err(|error| {
            let text = match error {
                TryAcquireError::NoPermits => format!("{CLIENTS} clients are connected already"),
                TryAcquireError::Closed => "carpel is being stopped".to_owned(),
            };
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text)
        })?;
        let session = Session {
            request: kept,
            protocol,
            _permit: permit,
        };
        Ok((session, response))
    }
}

impl Session {
    /// Serves the client until it, or what it came for, ends.
    async fn run<B: Backend>(self, socket: Socket, shared: &Shared<B>) {
        let Times { creation, idle, .. } = shared.times;
        let ending = &shared.clients.ending;
        let (link, source) = Link::new(
            socket.reader,
            socket.writer,
            socket.hangup,
            idle,
            ending.clone(),
        );
        let backend = &shared.backend;
        let (task, wanted) = match self.request {
            Request::Exec {
                container,
                command,
                wanted,
            } => (Task::Exec { container, command }, wanted),
            Request::Attach { container, wanted } => (Task::Attach { container }, wanted),
            Request::PortForward { sandbox, ports } => {
                let forwarded = async {
                    match self.protocol {
                        Protocol::Spdy { .. } => {
                            ports::over_spdy(backend, &link, source, sandbox, creation).await;
                        }
                        Protocol::Channels { coding, .. } => {
                            ports::over_websocket(backend, &link, source, sandbox, &ports, coding)
                                .await;
                        }
                        Protocol::Tunnel => {
                            let (mut reader, from, to) = websocket::tunnel(&link, source);
                            let work = async {
                                let (from, to) = (Box::new(from), Box::new(to));
                                let (link, source) =
                                    Link::new(from, to, None, idle, ending.clone());
                                ports::over_spdy(backend, &link, source, sandbox, creation).await;
                            };
                            link.drive(&mut reader, work).await;
                        }
                    }
                };
                return tokio::select! {
                    () = forwarded => {}
                    // Nobody takes the end of this connection for an end of the pod's.
                    () = ending.cancelled() => {}
                };
            }
        };
        match self.protocol {
            Protocol::Spdy { status, resize } => {
                let how = (status, resize);
                command::over_spdy(backend, &link, source, task, wanted, how, creation).await;
            }
            Protocol::Channels { status, coding } => {
                let how = (status, coding);
                command::over_websocket(backend, &link, source, task, wanted, how).await;
            }
            // Only ports have one.
            Protocol::Tunnel => {}
        }
    }
}
