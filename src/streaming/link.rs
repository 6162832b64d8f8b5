//! An upgraded connection: its two directions, its life and its end, whatever is spoken over it.
//!
//! ```text
//!              ┌─ Connection::run (reads) ─┐
//!  drive ──────┼─ Outbound::pump (writes) ─┼─▶ one of them ends: the client is gone, the work is told
//!              ├─ the watch on idleness ───┘
//!              └─ the work ──▶ ends: what it wrote is sent, farewell, the socket is read until the client closes it
//! ```
//!
//! Everything runs in the connection's own task, so that nothing is left when it ends.

use std::future::Future;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

use super::inbox::{Inbox, Intake};
use super::outbound::{Outbound, Writer};
use crate::sys;

/// A client's socket, to read from.
pub type Incoming = Box<dyn AsyncRead + Send + Unpin>;

/// Bytes read at a time, and how few of them must be left before memory for more is taken.
const READ: usize = 64 << 10;
const SCARCE: usize = 16 << 10;
/// How long a client may take to read the reason for which it is thrown out.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a client may take to close the connection after it was told that nothing more comes. Closing it before
/// would take back what the client has not read yet, if it is still sending.
const LINGER: Duration = Duration::from_secs(5);
/// In how many steps a connection's idleness is looked at.
const STEPS: u32 = 16;

/// Why a connection is not read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The client closed it, or it broke.
    Gone,
    /// The client closed it by the protocol's own means, and was answered.
    Closed,
    /// The client broke the protocol.
    Fault(String),
    /// Nothing was said for too long.
    Idle,
}

/// What the parts of a connection share.
pub struct Link {
    pub outbound: Arc<Outbound>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
    /// Cancelled when the server ends.
    pub ending: CancellationToken,
    /// Bytes read so far.
    read: Arc<AtomicU64>,
    idle: Duration,
}

/// The direction from the client.
pub struct Source {
    socket: Incoming,
    /// The socket once more, to see it hang up while it is not read.
    hangup: Option<OwnedFd>,
    read: Arc<AtomicU64>,
}

/// A protocol over an upgraded connection.
pub trait Connection: Send {
    /// Reads until the connection ends.
    fn run(&mut self) -> impl Future<Output = Ended> + Send;
    /// Says that nothing more is sent. `good`: the client did nothing wrong.
    fn farewell(&mut self, good: bool);
    /// What is left, when what the client says does not matter any more.
    fn source(&mut self) -> &mut Source;
}

impl Link {
    /// `idle`: how long a connection may be silent in both directions. `ending`: see [`Link::ending`].
    pub fn new(
        incoming: Incoming,
        outgoing: Writer,
        hangup: Option<OwnedFd>,
        idle: Duration,
        ending: CancellationToken,
    ) -> (Self, Source) {
        let read = Arc::new(AtomicU64::new(0));
        let source = Source {
            socket: incoming,
            hangup,
            read: Arc::clone(&read),
        };
        let link = Self {
            outbound: Arc::new(Outbound::new(outgoing)),
            gone: CancellationToken::new(),
            ending,
            read,
            idle,
        };
        (link, source)
    }

    /// Runs the work for as long as the client is there, and then ends the connection in order.
    pub async fn drive(&self, connection: &mut impl Connection, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        let ended = {
            let mut alive = pin!(async {
                tokio::select! {
                    ended = connection.run() => ended,
                    _broken = self.outbound.pump() => Ended::Gone,
                    () = self.silence() => Ended::Idle,
                }
            });
            tokio::select! {
                () = &mut work => tokio::select! {
                    _failed = self.outbound.drained() => None,
                    ended = &mut alive => Some(ended),
                },
                ended = &mut alive => {
                    self.gone.cancel();
                    Some(ended)
                }
            }
        };
        let Some(ended) = ended else {
            return self.close(connection).await;
        };
        match &ended {
            Ended::Fault(fault) => {
                tracing::debug!(%fault, "streaming: a client broke the protocol");
                connection.farewell(false);
                let _ = tokio::time::timeout(FAREWELL, self.flushed()).await;
            }
            Ended::Closed => {
                let _ = tokio::time::timeout(FAREWELL, self.flushed()).await;
            }
            Ended::Gone | Ended::Idle => {}
        }
        self.outbound.fail(ErrorKind::BrokenPipe);
        // If it is done already, this was the end of its last words.
        if self.gone.is_cancelled() {
            work.await;
        }
    }

    async fn close(&self, connection: &mut impl Connection) {
        connection.farewell(true);
        let parting = async {
            self.flushed().await;
            // What a client does after this changes nothing.
            let _ = self.outbound.shut_down().await;
            connection.source().discard().await;
        };
        let _ = tokio::time::timeout(LINGER, parting).await;
    }

    async fn flushed(&self) {
        tokio::select! {
            _ = self.outbound.pump() => {}
            _ = self.outbound.drained() => {}
        }
    }

    async fn silence(&self) {
        let said = || self.read.load(Ordering::Relaxed) + self.outbound.taken();
        let (mut before, mut steps) = (said(), 0);
        while steps < STEPS {
            tokio::time::sleep(self.idle / STEPS).await;
            let now = said();
            steps = if now == before { steps + 1 } else { 0 };
            before = now;
        }
    }
}

impl Source {
    /// Reads more behind what is in `buffer`.
    pub async fn fill(&mut self, buffer: &mut BytesMut) -> Result<(), Ended> {
        if buffer.capacity() - buffer.len() < SCARCE {
            buffer.reserve(READ);
        }
        match self.socket.read_buf(buffer).await {
            Ok(count @ 1..) => {
                self.read.fetch_add(count as u64, Ordering::Relaxed);
                Ok(())
            }
            Ok(0) | Err(_) => Err(Ended::Gone),
        }
    }

    /// Waits until the connection may be read on, after something was put into `inbox`.
    pub async fn room(&mut self, intake: &Intake, inbox: &Inbox) -> Result<(), Ended> {
        if intake.has_room(inbox) {
            return Ok(());
        }
        tokio::select! {
            () = intake.room(inbox) => Ok(()),
            () = self.hung_up() => Err(Ended::Gone),
        }
    }

    /// Ends when the client has closed the connection, whatever it sent before.
    async fn hung_up(&mut self) {
        let hangup = self.hangup.as_ref().map(OwnedFd::try_clone);
        let watch = hangup.and_then(|socket| sys::async_fd(socket.ok()?).ok());
        let Some(watch) = watch else {
            return std::future::pending().await;
        };
        while let Ok(mut guard) = watch.readable().await {
            if guard.ready().is_read_closed() {
                return;
            }
            // There is more to read, which waits for room: the next change is what counts.
            guard.clear_ready();
        }
    }

    /// Reads to the end for nothing.
    async fn discard(&mut self) {
        let mut rest = BytesMut::new();
        while self.fill(&mut rest).await.is_ok() {
            rest.clear();
        }
    }
}
