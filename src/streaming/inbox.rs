//! What came from a client for one stream and was not read yet.
//!
//! The connection's reader puts in, the stream's owner takes out. The reader asks [`Intake::has_room`] before it reads on:
//! there is a bound for each stream, and one for all streams of a connection. A client whose protocol has no flow
//! control, or that does not heed it, is slowed down by its socket in this way.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

/// Most bytes that wait in one stream.
pub const STREAM: usize = 256 << 10;
/// Most bytes that wait in all streams of a connection.
pub const CONNECTION: usize = 4 << 20;
/// A smaller piece is copied, so that it does not hold the memory of all that was read with it.
const PIECE: usize = 16 << 10;

/// What a connection's inboxes share.
#[derive(Default)]
pub struct Intake {
    waiting: AtomicUsize,
    taken: Notify,
}

impl Intake {
    /// Whether the connection may be read on, after something was put into `inbox`.
    pub fn has_room(&self, inbox: &Inbox) -> bool {
        inbox.lock().waiting <= STREAM && self.waiting.load(Ordering::Acquire) <= CONNECTION
    }

    /// Waits until the connection may be read on.
    pub async fn room(&self, inbox: &Inbox) {
        while !self.has_room(inbox) {
            self.taken.notified().await;
        }
    }

    fn take(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::AcqRel);
        // Keeps a permit if nobody waits yet.
        self.taken.notify_one();
    }
}

pub struct Inbox {
    intake: Arc<Intake>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Small pieces, behind all others.
    tail: BytesMut,
    waiting: usize,
    end: Option<End>,
    /// Nobody reads any more: what comes is thrown away.
    closed: bool,
    reader: Option<Waker>,
}

#[derive(Clone, Copy)]
enum End {
    /// The client has closed its side.
    Finished,
    /// The stream broke off.
    Broken(ErrorKind),
}

impl Inbox {
    pub fn new(intake: &Arc<Intake>) -> Arc<Self> {
        Arc::new(Self {
            intake: Arc::clone(intake),
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in what has come. `false`: nobody reads it any more.
    pub fn put(&self, bytes: Bytes) -> bool {
        let mut state = self.lock();
        if state.closed || state.end.is_some() {
            return false;
        }
        if bytes.is_empty() {
            return true;
        }
        state.waiting += bytes.len();
        self.intake.waiting.fetch_add(bytes.len(), Ordering::AcqRel);
        if bytes.len() < PIECE {
            state.tail.extend_from_slice(&bytes);
        } else {
            let tail = state.tail.split().freeze();
            if !tail.is_empty() {
                state.pieces.push_back(tail);
            }
            state.pieces.push_back(bytes);
        }
        state.wake();
        true
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// The client sends nothing more.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.end.get_or_insert(End::Finished);
        state.wake();
    }

    /// The stream breaks off; what waits is lost. How many bytes that was.
    pub fn break_off(&self, kind: ErrorKind) -> usize {
        let mut state = self.lock();
        let count = state.clear();
        state.end = Some(End::Broken(kind));
        state.wake();
        drop(state);
        self.intake.take(count);
        count
    }
}

impl State {
    fn clear(&mut self) -> usize {
        self.pieces.clear();
        self.tail = BytesMut::new();
        std::mem::take(&mut self.waiting)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// The next piece, of at most `most` bytes; empty at the end.
    fn poll_piece(&mut self, context: &Context<'_>, most: usize) -> Poll<io::Result<Bytes>> {
        if self.pieces.is_empty() && !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.pieces.push_back(tail);
        }
        if let Some(front) = self.pieces.front_mut() {
            let piece = front.split_to(most.min(front.len()));
            if !front.has_remaining() {
                self.pieces.pop_front();
            }
            self.waiting -= piece.len();
            return Poll::Ready(Ok(piece));
        }
        match self.end {
            Some(End::Finished) => Poll::Ready(Ok(Bytes::new())),
            Some(End::Broken(kind)) => Poll::Ready(Err(kind.into())),
            None => {
                self.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The owner's side. What comes after it is dropped is thrown away.
pub struct InboxReader(pub Arc<Inbox>);

impl InboxReader {
    pub fn poll_piece(&self, context: &Context<'_>, most: usize) -> Poll<io::Result<Bytes>> {
        let polled = self.0.lock().poll_piece(context, most);
        if let Poll::Ready(Ok(piece)) = &polled {
            self.0.intake.take(piece.len());
        }
        polled
    }

    /// The next piece as it came, without a copy; empty at the end.
    ///
    /// # Errors
    /// The stream broke off.
    pub async fn piece(&self) -> io::Result<Bytes> {
        poll_fn(|context| self.poll_piece(context, usize::MAX)).await
    }
}

impl AsyncRead for InboxReader {
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

impl InboxReader {
    /// What waits, and what comes from now on, is thrown away. How many bytes waited.
    pub fn close(&self) -> usize {
        let mut state = self.0.lock();
        state.closed = true;
        let count = state.clear();
        drop(state);
        self.0.intake.take(count);
        count
    }
}

impl Drop for InboxReader {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn inbox() -> (Arc<Intake>, Arc<Inbox>, InboxReader) {
        let intake = Arc::default();
        let inbox = Inbox::new(&intake);
        let reader = InboxReader(Arc::clone(&inbox));
        (intake, inbox, reader)
    }

    #[tokio::test]
    async fn pieces_come_out_in_order() {
        let (intake, inbox, mut reader) = inbox();
        let large = Bytes::from(vec![7; PIECE]);
        for bytes in [&b"a"[..], b"", b"b"] {
            inbox.put(Bytes::copy_from_slice(bytes));
        }
        inbox.put(large.clone());
        inbox.put(Bytes::from_static(b"c"));
        inbox.finish();
        assert!(!inbox.put(Bytes::from_static(b"after its end")));
        assert_eq!(reader.piece().await.unwrap(), "ab");
        // Not a copy.
        assert_eq!(reader.piece().await.unwrap().as_ptr(), large.as_ptr());
        let mut rest = String::new();
        reader.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "c");
        assert_eq!(intake.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_full_inbox_holds_up_its_connection() {
        let (intake, inbox, reader) = inbox();
        inbox.put(vec![0; STREAM + 1].into());
        {
            let mut room = std::pin::pin!(intake.room(&inbox));
            assert!(poll!(&mut room).is_pending());
            let mut byte = std::pin::pin!(poll_fn(|context| reader.poll_piece(context, 1)));
            assert!(poll!(&mut byte).is_ready());
            assert!(poll!(&mut room).is_ready());
        }
        inbox.put(vec![0; 2].into());
        let mut room = std::pin::pin!(intake.room(&inbox));
        assert!(poll!(&mut room).is_pending());
        // Nobody reads it: it holds up nobody.
        drop(reader);
        assert!(poll!(&mut room).is_ready());
        assert!(!inbox.put(vec![0; STREAM].into()));
        assert_eq!(intake.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn many_inboxes_share_a_bound() {
        let intake = Arc::default();
        let inboxes: Vec<_> = (0..=CONNECTION / STREAM)
            .map(|_| Inbox::new(&intake))
            .collect();
        inboxes.iter().for_each(|inbox| {
            inbox.put(vec![0; STREAM].into());
        });
        let last = &inboxes[inboxes.len() - 1];
        assert!(!intake.has_room(last));
        assert_eq!(inboxes[0].break_off(ErrorKind::ConnectionReset), STREAM);
        assert!(intake.has_room(last));
        let broken = InboxReader(Arc::clone(&inboxes[0])).piece().await;
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (_intake, inbox, reader) = inbox();
        let waiting = tokio::spawn(async move { reader.piece().await.unwrap() });
        tokio::task::yield_now().await;
        inbox.put(Bytes::from_static(b"x"));
        assert_eq!(waiting.await.unwrap(), "x");
    }
}
