//! Port-forward: connections to the ports of a pod over a client's connection.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backend::Backend;
use super::inbox::InboxReader;
use super::link::{Link, Source};
use super::pipe::Pipe;
use super::spdy::{self, Headers, Stream, StreamReader, StreamWriter};
use super::websocket::{self, ChannelWriter, Coding};
use crate::ids::SandboxId;

/// Bytes read from a pod at a time.
const READ: usize = 64 << 10;
/// A pod that has so much at a time goes on through a pipe, and one that has less does not.
const MUCH: usize = 16 << 10;
/// How long a pod may say nothing and keep its pipe.
const SILENCE: Duration = Duration::from_secs(1);
/// Most ports of a WebSocket: each has two channels, whose numbers are a byte.
pub const MOST_PORTS: usize = 127;

/// What comes from a client for a port.
trait Pieces: Send + Sync + 'static {
    /// The next piece; empty at the end.
    fn piece(&self) -> impl Future<Output = io::Result<Bytes>> + Send;
}

impl Pieces for StreamReader {
    async fn piece(&self) -> io::Result<Bytes> {
        Self::piece(self).await
    }
}

impl Pieces for InboxReader {
    async fn piece(&self) -> io::Result<Bytes> {
        Self::piece(self).await
    }
}

/// What goes to a client from a port.
trait Sending: AsyncWrite + Send + Unpin {
    /// A pipe for [`Self::send_pipe`], if it can be sent from one.
    fn pipe(&self) -> Option<Arc<Pipe>> {
        None
    }

    /// Sends the `count` bytes that are in a pipe.
    fn send_pipe(
        &self,
        _pipe: &Arc<Pipe>,
        _count: usize,
    ) -> impl Future<Output = io::Result<()>> + Send {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl Sending for ChannelWriter {}

impl Sending for StreamWriter {
    fn pipe(&self) -> Option<Arc<Pipe>> {
        Self::pipe(self)
    }

    async fn send_pipe(&self, pipe: &Arc<Pipe>, count: usize) -> io::Result<()> {
        Self::send_pipe(self, pipe, count).await
    }
}

/// Connects with a port, and tells the client if that cannot be done. It is told nothing of how a connection that stood
/// ended: kubectl gives up all its connections when it reads anything.
async fn connect(
    backend: &impl Backend,
    sandbox: &SandboxId,
    port: u16,
    errors: &mut (impl AsyncWrite + Unpin),
) -> Option<TcpStream> {
    match backend.connect(sandbox, port).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            let text = format!("error forwarding port {port} to pod {sandbox}: {error}");
            let _ = errors.write_all(text.as_bytes()).await;
            None
        }
    }
}

/// Copies both ways until the pod has nothing more to say and, if `half_close`, the client neither; or until one of
/// them breaks off, which the other is to see.
async fn copy(
    mut pod: TcpStream,
    from: impl Pieces,
    to: impl Sending,
    half_close: bool,
) -> io::Result<()> {
    let (mut reading, mut writing) = pod.split();
    let up = async move {
        loop {
            let piece = from.piece().await?;
            if piece.is_empty() {
                // It may be closed already.
                let _ = writing.shutdown().await;
                return Ok(());
            }
            // A pod that takes nothing more may still have something to say.
            if writing.write_all(&piece).await.is_err() {
                return Ok(());
            }
        }
    };
    let down = async move {
        let (mut to, mut bytes) = (to, vec![0; READ]);
        loop {
            let count = reading.read(&mut bytes).await?;
            if count == 0 {
                return to.shutdown().await;
            }
            to.write_all(&bytes[..count]).await?;
            if count >= MUCH
                && let Some(pipe) = to.pipe()
                && !copy_much(reading.as_ref(), &to, &pipe).await?
            {
                return to.shutdown().await;
            }
        }
    };
    let outcome: io::Result<()> = if half_close {
        tokio::try_join!(up, down).map(|_| ())
    } else {
        tokio::select! {
            outcome = down => outcome,
            Err(error) = up => Err(error),
        }
    };
    if outcome.is_err() {
        // The pod shall not take for an end what is none. If it cannot be told, it does.
        let _ = set_socket_linger(&pod, Some(Duration::ZERO));
    }
    outcome
}

/// Copies through a pipe for as long as it is much. Whether there may be more: `false` at the pod's end.
async fn copy_much(pod: &TcpStream, to: &impl Sending, pipe: &Arc<Pipe>) -> io::Result<bool> {
    loop {
        let Ok(count) = tokio::time::timeout(SILENCE, pipe.fill(pod)).await else {
            return Ok(true);
        };
        let count = count?;
        to.send_pipe(pipe, count).await?;
        if count < MUCH {
            return Ok(count > 0);
        }
    }
}

/// Over WebSocket: each port has a channel for data and one for an error, and begins on both with its number.
pub async fn over_websocket<B: Backend>(
    backend: &B,
    link: &Link,
    source: Source,
    sandbox: SandboxId,
    ports: &[u16],
    coding: Coding,
) {
    let listening: Vec<bool> = ports.iter().flat_map(|_| [true, false]).collect();
    let (mut reader, mut inboxes) = websocket::begin(link, source, coding, &listening);
    let work = async {
        let mut forwards = JoinSet::new();
        for (index, &port) in ports.iter().enumerate() {
            let channel = index as u8 * 2;
            let mut data = ChannelWriter::new(link, coding, channel);
            let mut errors = ChannelWriter::new(link, coding, channel + 1);
            let from = inboxes[usize::from(channel)].take();
            let backend = backend.clone();
            forwards.spawn(async move {
                data.write_all(&port.to_le_bytes()).await?;
                errors.write_all(&port.to_le_bytes()).await?;
                match (connect(&backend, &sandbox, port, &mut errors).await, from) {
                    (Some(pod), Some(from)) => copy(pod, from, data, false).await,
                    _ => Ok(()),
                }
            });
        }
        tokio::select! {
            () = link.gone.cancelled() => {}
            // Each has told its client what there is to tell.
            _ = forwards.join_all() => {}
        }
    };
    link.drive(&mut reader, work).await;
}

/// Over SPDY: for each connection the client opens a stream for data and one for an error.
pub async fn over_spdy<B: Backend>(
    backend: &B,
    link: &Link,
    source: Source,
    sandbox: SandboxId,
    creation: Duration,
) {
    let (mut reader, mut incoming) = spdy::begin(link, source, is_of_port);
    let work = async {
        let mut forwards = JoinSet::new();
        let mut pairs = Pairs::default();
        loop {
            let expiry = pairs.oldest().map(|since| since + creation);
            tokio::select! {
                () = link.gone.cancelled() => break,
                stream = incoming.recv() => match stream.map(|stream| pairs.add(stream)) {
                    Some(Some((port, data, error))) => {
                        let backend = backend.clone();
                        forwards.spawn(forward(backend, sandbox, port, data, error));
                    }
                    Some(None) => {}
                    // The reader has ended: so will the link.
                    None => break link.gone.cancelled().await,
                },
                Some(_ended) = forwards.join_next() => {}
                () = until(expiry) => {
                    for error in pairs.expire(creation) {
                        forwards.spawn(timed_out(error));
                    }
                }
            }
        }
        // Dropping it ends the forwards, and waiting for that closes their connections before ours.
        forwards.shutdown().await;
    };
    link.drive(&mut reader, work).await;
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

async fn forward(
    backend: impl Backend,
    sandbox: SandboxId,
    port: u16,
    data: Stream,
    error: Stream,
) {
    let mut errors: StreamWriter = error.writer;
    if let Some(pod) = connect(&backend, &sandbox, port, &mut errors).await {
        // If it breaks off, dropping both halves has reset the stream.
        let _ = copy(pod, data.reader, data.writer, true).await;
    } else {
        drop(data);
    }
    // The client waits for this.
    let _ = errors.shutdown().await;
}

async fn timed_out(error: Stream) {
    let mut errors = error.writer;
    let text = b"timed out waiting for the connection's other stream";
    let _ = errors.write_all(text).await;
    let _ = errors.shutdown().await;
}

fn is_of_port(headers: &Headers) -> bool {
    port(headers).is_some() && matches!(headers.get("streamtype"), Some("data" | "error"))
}

fn port(headers: &Headers) -> Option<u16> {
    headers
        .get("port")?
        .parse()
        .ok()
        .filter(|&port: &u16| port > 0)
}

/// Streams whose partner has not come yet, by the number that both have.
#[derive(Default)]
struct Pairs(HashMap<String, (Instant, Half)>);

enum Half {
    Data(Stream),
    Error(Stream),
}

impl Pairs {
    /// Adds a stream. With its partner: the port, the stream for data, the one for an error. One that comes twice takes
    /// the place of the first, which is reset.
    fn add(&mut self, stream: Stream) -> Option<(u16, Stream, Stream)> {
        let (id, half) = match stream.headers.get("streamtype") {
            Some("data") => (request_id(&stream, 2), Half::Data(stream)),
            _ => (request_id(&stream, 0), Half::Error(stream)),
        };
        let (data, error) = match (self.0.remove(&id), half) {
            (Some((_, Half::Data(data))), Half::Error(error))
            | (Some((_, Half::Error(error))), Half::Data(data)) => (data, error),
            (_, half) => {
                self.0.insert(id, (Instant::now(), half));
                return None;
            }
        };
        Some((port(&data.headers)?, data, error))
    }

    fn oldest(&self) -> Option<Instant> {
        self.0.values().map(|(since, _)| *since).min()
    }

    /// Takes out those that have waited too long; of these, the ones for an error.
    fn expire(&mut self, most: Duration) -> Vec<Stream> {
        let now = Instant::now();
        let late = self.0.extract_if(|_, (since, _)| now - *since >= most);
        late.filter_map(|(_, (_, half))| match half {
            Half::Error(error) => Some(error),
            Half::Data(_) => None,
        })
        .collect()
    }
}

/// A client of old gives no number: it opens the stream for an error first, and the other one next.
fn request_id(stream: &Stream, after: u32) -> String {
    match stream.headers.get("requestid") {
        Some(id) => format!("request {id}"),
        None => format!("stream {}", stream.id.saturating_sub(after)),
    }
}
