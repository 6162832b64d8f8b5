//! What goes to a client: whole frames from many writers over one socket.
//!
//! A frame is written straight from its writer's memory as long as the socket takes it. What the socket does not take
//! is copied and written by [`Outbound::pump`], and while that is much, writers wait: so memory is bounded, and under
//! load many small frames make one large write.
//!
//! A frame may have its payload in a pipe ([`Outbound::poll_pipe`]). It is begun when nothing else is left to be
//! written, and what others have to say meanwhile is written behind it.
//!
//! What must always hold: frames never mix. Who has to wait is woken. After the first failure every write fails.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use rustix::net::SendFlags;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use super::pipe::{Pipe, Pipes};

/// A client's socket, to write to.
pub type Writer = Box<dyn Outgoing>;

pub trait Outgoing: AsyncWrite + Send + Unpin {
    /// The socket, if what is written goes to it as it is.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl Outgoing for OwnedWriteHalf {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self.as_ref())
    }
}

/// Of a connection within TLS.
impl<T: AsyncWrite + Send + Unpin> Outgoing for tokio::io::WriteHalf<T> {}

#[cfg(test)]
impl Outgoing for tokio::io::DuplexStream {}

/// While more than this is left to be written, writers wait.
const ENOUGH: usize = 128 << 10;
/// Answers to the client (pings, resets, windows) do not wait, up to here.
const MOST: usize = ENOUGH + (64 << 10);

pub struct Outbound {
    state: Mutex<State>,
    pipes: Pipes,
}

struct State {
    socket: Writer,
    /// The frame whose payload is in a pipe: what goes before all that is left.
    piped: Option<Piped>,
    /// Who has a pipe waits until nothing is left. So that this comes, the others wait too.
    urgent: bool,
    /// What the socket did not take.
    left: BytesMut,
    /// The socket may hold bytes back itself (TLS).
    unflushed: bool,
    failed: Option<ErrorKind>,
    /// The task that pumps.
    pump: Option<Waker>,
    waiting: Vec<Waker>,
    /// Bytes taken so far.
    taken: u64,
}

/// What was not written yet of a frame whose payload is in a pipe.
struct Piped {
    head: BytesMut,
    pipe: Arc<Pipe>,
    count: usize,
}

impl Outbound {
    pub fn new(socket: Writer) -> Self {
        let state = State {
            socket,
            piped: None,
            urgent: false,
            left: BytesMut::new(),
            unflushed: false,
            failed: None,
            pump: None,
            waiting: Vec::new(),
            taken: 0,
        };
        Self {
            state: Mutex::new(state),
            pipes: Pipes::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame as a whole, or waits.
    pub fn poll_frame(
        &self,
        context: &mut Context<'_>,
        head: &[u8],
        payload: &[u8],
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if let Some(kind) = state.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if state.left.len() >= ENOUGH || state.urgent {
            state.wait(context);
            return Poll::Pending;
        }
        state.taken += (head.len() + payload.len()) as u64;
        Poll::Ready(state.write(context, head, payload))
    }

    /// A pipe for [`Self::poll_pipe`], if the socket takes what is in one.
    pub fn pipe(&self) -> Option<Arc<Pipe>> {
        self.lock().socket.plain()?;
        self.pipes.take().map(Arc::new)
    }

    /// Takes a frame whose payload is in a pipe as a whole, or waits. [`Self::poll_piped`] tells when it is written.
    pub fn poll_pipe(
        &self,
        context: &mut Context<'_>,
        head: &[u8],
        pipe: &Arc<Pipe>,
        count: usize,
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if let Some(kind) = state.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if !state.is_drained() {
            state.urgent = true;
            state.wait(context);
            return Poll::Pending;
        }
        state.taken += (head.len() + count) as u64;
        state.piped = Some(Piped {
            head: head.into(),
            pipe: Arc::clone(pipe),
            count,
        });
        Poll::Ready(match state.give(context) {
            Ok(true) => Ok(()),
            Ok(false) => {
                state.wake_pump();
                Ok(())
            }
            Err(error) => Err(state.fail(error.kind()).into()),
        })
    }

    /// Waits until what was taken from a pipe is written. Somebody must pump.
    pub fn poll_piped(&self, context: &Context<'_>, pipe: &Arc<Pipe>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        match (state.failed, &state.piped) {
            (Some(kind), _) => Poll::Ready(Err(kind.into())),
            (None, Some(piped)) if Arc::ptr_eq(&piped.pipe, pipe) => {
                state.wait(context);
                Poll::Pending
            }
            (None, _) => Poll::Ready(Ok(())),
        }
    }

    /// Takes a short frame without waiting. `false`: too much is waiting already.
    pub fn try_frame(&self, frame: &[u8]) -> bool {
        let mut state = self.lock();
        if state.failed.is_none() && state.left.len() >= MOST {
            return false;
        }
        state.left.extend_from_slice(frame);
        state.wake_pump();
        true
    }

    /// Takes an answer to the client. Who answers does not read meanwhile, so a client that asks and does not listen
    /// has to wait.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn answer(&self, frame: &[u8]) -> io::Result<()> {
        poll_fn(|context| {
            let mut state = self.lock();
            if let Some(kind) = state.failed {
                return Poll::Ready(Err(kind.into()));
            }
            if state.left.len() >= MOST {
                state.wait(context);
                return Poll::Pending;
            }
            state.left.extend_from_slice(frame);
            state.wake_pump();
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Writes what the writers leave, for as long as the connection lasts.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn pump(&self) -> io::Result<()> {
        poll_fn(|context| {
            let mut state = self.lock();
            let outcome = match state.failed {
                Some(kind) => Err(kind.into()),
                None => state.flush(context),
            };
            if let Err(error) = &outcome {
                state.fail(error.kind());
                return Poll::Ready(Err(error.kind().into()));
            }
            state.pump = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until the socket has everything. Somebody must pump.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn drained(&self) -> io::Result<()> {
        poll_fn(|context| {
            let mut state = self.lock();
            match state.failed {
                Some(kind) => Poll::Ready(Err(kind.into())),
                None if state.is_drained() => Poll::Ready(Ok(())),
                None => {
                    state.wait(context);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Tells the client that nothing more comes.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn shut_down(&self) -> io::Result<()> {
        poll_fn(|context| Pin::new(&mut self.lock().socket).poll_shutdown(context)).await
    }

    /// Every write from now on fails.
    pub fn fail(&self, kind: ErrorKind) {
        self.lock().fail(kind);
    }

    /// Bytes of frames that were taken so far.
    pub fn taken(&self) -> u64 {
        self.lock().taken
    }
}

impl State {
    /// Writes a frame, or copies what the socket does not take at once.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        mut head: &[u8],
        mut payload: &[u8],
    ) -> io::Result<()> {
        while self.piped.is_none()
            && self.left.is_empty()
            && !(head.is_empty() && payload.is_empty())
        {
            let slices = [IoSlice::new(head), IoSlice::new(payload)];
            let socket = Pin::new(&mut self.socket);
            // This waker may be the one that the socket keeps: the pump, woken below, puts its own there.
            match socket.poll_write_vectored(context, &slices) {
                Poll::Ready(Ok(0)) => return Err(self.fail(ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(count)) => {
                    let of_head = count.min(head.len());
                    head = &head[of_head..];
                    payload = &payload[count - of_head..];
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => {
                    self.fail(error.kind());
                    return Err(error);
                }
                Poll::Pending => break,
            }
        }
        self.left.extend_from_slice(head);
        self.left.extend_from_slice(payload);
        if self.piped.is_none()
            && self.left.is_empty()
            && let Poll::Ready(outcome) = Pin::new(&mut self.socket).poll_flush(context)
        {
            self.unflushed = false;
            outcome.inspect_err(|error| {
                self.fail(error.kind());
            })?;
        }
        if !self.is_drained() {
            self.wake_pump();
        }
        Ok(())
    }

    fn is_drained(&self) -> bool {
        self.piped.is_none() && self.left.is_empty() && !self.unflushed
    }

    /// Writes what is in a pipe, as far as the socket takes it; whether nothing is left of it.
    fn give(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let (Some(piped), Some(socket)) = (&mut self.piped, self.socket.plain()) else {
            return Ok(true);
        };
        while piped.count > 0 || !piped.head.is_empty() {
            let Poll::Ready(ready) = socket.poll_write_ready(context) else {
                return Ok(false);
            };
            ready?;
            let given = socket.try_io(Interest::WRITABLE, || match piped.head.is_empty() {
                // The payload follows at once, so that both go in one piece.
                false => Ok(rustix::net::send(
                    socket,
                    &piped.head,
                    SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                )?),
                true => piped.pipe.give(socket, piped.count),
            });
            match given {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) if piped.head.is_empty() => piped.count -= count,
                Ok(count) => piped.head.advance(count),
                // Readiness is asked for again.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.piped = None;
        Ok(true)
    }

    /// Writes what is left, as far as the socket takes it.
    fn flush(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.piped.is_some() {
            if !self.give(context)? {
                return Ok(());
            }
            // Its owner may fill the pipe again.
            self.waiting.drain(..).for_each(Waker::wake);
        }
        while !self.left.is_empty() {
            match Pin::new(&mut self.socket).poll_write(context, &self.left) {
                Poll::Ready(Ok(0)) => return Err(ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.left.advance(count);
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        if self.left.is_empty()
            && self.unflushed
            && let Poll::Ready(outcome) = Pin::new(&mut self.socket).poll_flush(context)
        {
            outcome?;
            self.unflushed = false;
        }
        // Not at the first byte of room: then each would find just room for little.
        let drained = self.is_drained();
        if drained || self.left.len() < ENOUGH / 2 {
            self.waiting.drain(..).for_each(Waker::wake);
        }
        if drained {
            self.urgent = false;
            // A burst does not hold its memory for ever.
            self.left = BytesMut::new();
        }
        Ok(())
    }

    fn wait(&mut self, context: &Context<'_>) {
        let waker = context.waker();
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    fn wake_pump(&mut self) {
        if let Some(waker) = self.pump.take() {
            waker.wake();
        }
    }

    fn fail(&mut self, kind: ErrorKind) -> ErrorKind {
        let kind = *self.failed.get_or_insert(kind);
        self.left.clear();
        self.piped = None;
        self.unflushed = false;
        self.wake_pump();
        self.waiting.drain(..).for_each(Waker::wake);
        kind
    }
}
