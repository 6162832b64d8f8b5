//! One stream of a connection, as its owner has it: two halves. When both are dropped before both sides have said
//! that they send nothing more, the stream is reset.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::headers::Headers;
use super::table::Shared;
use crate::streaming::inbox::{self, Inbox, InboxReader};
use crate::streaming::pipe::Pipe;

/// A stream that the client has opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

impl Stream {
    pub fn new(shared: &Arc<Shared>, id: u32, headers: Headers, inbox: Arc<Inbox>) -> Self {
        let handle = Arc::new(Handle {
            id,
            shared: Arc::clone(shared),
        });
        Self {
            id,
            headers,
            reader: StreamReader {
                inbox: InboxReader(inbox),
                untold: AtomicUsize::new(0),
                handle: Arc::clone(&handle),
            },
            writer: StreamWriter(handle),
        }
    }
}

struct Handle {
    id: u32,
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.reset(self.id);
    }
}

pub struct StreamReader {
    inbox: InboxReader,
    /// Bytes taken in that the peer has not been told of.
    untold: AtomicUsize,
    handle: Arc<Handle>,
}

impl StreamReader {
    /// The next piece as it came, without a copy; empty at the end.
    ///
    /// # Errors
    /// The stream, or the connection, broke off.
    pub async fn piece(&self) -> io::Result<Bytes> {
        poll_fn(|context| self.poll_piece(context, usize::MAX)).await
    }

    fn poll_piece(&self, context: &Context<'_>, most: usize) -> Poll<io::Result<Bytes>> {
        let piece = std::task::ready!(self.inbox.poll_piece(context, most))?;
        let shared = &self.handle.shared;
        shared.taken_in(piece.len());
        let untold = self.untold.fetch_add(piece.len(), Ordering::AcqRel) + piece.len();
        if untold >= inbox::STREAM / 2 {
            shared.tell(self.handle.id, &self.untold);
        }
        Poll::Ready(Ok(piece))
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.handle.shared.taken_in(self.inbox.close());
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = std::task::ready!(self.poll_piece(context, buffer.remaining()))?;
        buffer.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

/// Each write is a frame. A shutdown closes this side.
#[derive(Clone)]
pub struct StreamWriter(Arc<Handle>);

impl StreamWriter {
    /// Forgets the stream: what the client still sends on it is thrown away, and it is not reset, as the connection ends
    /// with it.
    pub fn release(&self) {
        self.0.shared.forget(self.0.id, ErrorKind::ConnectionReset);
    }

    /// A pipe for [`Self::send_pipe`], if it can be sent from one.
    pub fn pipe(&self) -> Option<Arc<Pipe>> {
        self.0.shared.outbound.pipe()
    }

    /// Sends the `count` bytes that are in a pipe, until the last is out of it.
    ///
    /// # Errors
    /// The stream, or the connection, broke off.
    pub async fn send_pipe(&self, pipe: &Arc<Pipe>, mut count: usize) -> io::Result<()> {
        let shared = &self.0.shared;
        while count > 0 {
            count -= poll_fn(|context| shared.poll_pipe(context, self.0.id, pipe, count)).await?;
            poll_fn(|context| shared.outbound.poll_piped(context, pipe)).await?;
        }
        Ok(())
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.shared.poll_send(context, self.0.id, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shared.poll_finish(context, self.0.id)
    }
}
