//! The streams of a connection: which are open, in which directions, and how much may be sent on them.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::frame::{self, Fault, status};
use crate::streaming::inbox::{self, Inbox, Intake};
use crate::streaming::outbound::Outbound;
use crate::streaming::pipe::{self, Pipe};

/// Most streams at a time: 512 connections that are forwarded.
pub const MAX_STREAMS: usize = 1024;
/// What the protocol gives each window at the beginning.
const INITIAL_WINDOW: i64 = 64 << 10;
/// Most bytes of one data frame.
const MAX_FRAME: usize = 64 << 10;

/// What the reader of a connection and the owners of its streams share.
pub struct Shared {
    pub outbound: Arc<Outbound>,
    pub intake: Arc<Intake>,
    table: Mutex<Table>,
    /// Bytes taken in that the peer has not been told of.
    untold: AtomicUsize,
}

struct Table {
    streams: HashMap<u32, Entry>,
    /// The peer has shown that it does flow control. Kubernetes' clients do not: they would never open a window again,
    /// so that nothing may wait for them to do so.
    heeds: bool,
    initial: i64,
    window: i64,
    ended: bool,
}

struct Entry {
    inbox: Arc<Inbox>,
    window: i64,
    /// Who waits for a window.
    writer: Option<Waker>,
    sent_fin: bool,
    got_fin: bool,
}

impl Entry {
    fn closed(&self) -> bool {
        self.sent_fin && self.got_fin
    }
}

impl Shared {
    pub fn new(outbound: Arc<Outbound>) -> Arc<Self> {
        Arc::new(Self {
            outbound,
            intake: Arc::default(),
            table: Mutex::new(Table {
                streams: HashMap::new(),
                heeds: false,
                initial: INITIAL_WINDOW,
                window: INITIAL_WINDOW,
                ended: false,
            }),
            untold: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stream. `None`: there are too many.
    pub fn open(&self, id: u32, got_fin: bool) -> Option<Arc<Inbox>> {
        let mut table = self.lock();
        if table.streams.len() >= MAX_STREAMS || table.ended {
            return None;
        }
        let inbox = Inbox::new(&self.intake);
        if got_fin {
            inbox.finish();
        }
        let entry = Entry {
            inbox: Arc::clone(&inbox),
            window: table.initial,
            writer: None,
            sent_fin: false,
            got_fin,
        };
        table.streams.insert(id, entry);
        Some(inbox)
    }

    /// Where the data of a stream goes, if it may still send.
    pub fn inbox(&self, id: u32) -> Option<Arc<Inbox>> {
        let table = self.lock();
        let entry = table.streams.get(&id)?;
        (!entry.got_fin).then(|| Arc::clone(&entry.inbox))
    }

    /// Whether the peer heeds windows, so that it must not send more than they say.
    pub fn peer_heeds(&self) -> bool {
        self.lock().heeds
    }

    /// The peer sends nothing more on the stream.
    pub fn got_fin(&self, id: u32) {
        let mut table = self.lock();
        if let Some(entry) = table.streams.get_mut(&id) {
            entry.got_fin = true;
            entry.inbox.finish();
            if entry.closed() {
                table.streams.remove(&id);
            }
        }
    }

    /// The stream is no more. Whether it was there.
    pub fn forget(&self, id: u32, why: ErrorKind) -> bool {
        let entry = self.lock().streams.remove(&id);
        let Some(entry) = entry else { return false };
        self.taken_in(entry.inbox.break_off(why));
        entry.writer.into_iter().for_each(Waker::wake);
        true
    }

    /// Ends a stream in both directions, if it is not ended.
    pub fn reset(&self, id: u32) {
        if self.forget(id, ErrorKind::ConnectionReset) {
            // If there is no room the client is not listening, and the connection ends soon.
            self.outbound.try_frame(&frame::reset(id, status::CANCEL));
        }
    }

    /// The connection is no more.
    pub fn end(&self) {
        let streams = {
            let mut table = self.lock();
            table.ended = true;
            std::mem::take(&mut table.streams)
        };
        for entry in streams.into_values() {
            entry.inbox.break_off(ErrorKind::ConnectionAborted);
            entry.writer.into_iter().for_each(Waker::wake);
        }
    }

    /// The peer sets the first window of every stream.
    pub fn set_initial_window(&self, size: u32) -> Result<(), Fault> {
        let size = i32::try_from(size).map_err(|_| Fault::Window)?;
        let mut table = self.lock();
        table.heeds = true;
        let delta = i64::from(size) - table.initial;
        table.initial = i64::from(size);
        for entry in table.streams.values_mut() {
            entry.window += delta;
        }
        table.wake_all();
        Ok(())
    }

    /// The peer opens a window. `Ok(false)`: further than windows go, which ends that stream.
    pub fn widen(&self, id: u32, delta: u32) -> Result<bool, Fault> {
        let most = i64::from(i32::MAX);
        let mut table = self.lock();
        table.heeds = true;
        if id == 0 {
            table.window += i64::from(delta);
            if table.window > most {
                return Err(Fault::Window);
            }
            table.wake_all();
        } else if let Some(entry) = table.streams.get_mut(&id) {
            entry.window += i64::from(delta);
            entry.writer.take().into_iter().for_each(Waker::wake);
            return Ok(entry.window <= most);
        }
        Ok(true)
    }

    /// Sends what fits in a frame and in the windows.
    pub fn poll_send(
        &self,
        context: &mut Context<'_>,
        id: u32,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut table = self.lock();
        let most = bytes.len().min(MAX_FRAME);
        let count = std::task::ready!(table.poll_room(context, id, most))?;
        let head = frame::data_head(id, 0, count);
        std::task::ready!(self.outbound.poll_frame(context, &head, &bytes[..count]))?;
        table.sent(id, count);
        Poll::Ready(Ok(count))
    }

    /// Sends of the `count` bytes in a pipe what fits in the windows.
    pub fn poll_pipe(
        &self,
        context: &mut Context<'_>,
        id: u32,
        pipe: &Arc<Pipe>,
        count: usize,
    ) -> Poll<io::Result<usize>> {
        let mut table = self.lock();
        let count = std::task::ready!(table.poll_room(context, id, count.min(pipe::CAPACITY)))?;
        let head = frame::data_head(id, 0, count);
        std::task::ready!(self.outbound.poll_pipe(context, &head, pipe, count))?;
        table.sent(id, count);
        Poll::Ready(Ok(count))
    }

    /// Says that nothing more is sent on a stream. Once is enough.
    pub fn poll_finish(&self, context: &mut Context<'_>, id: u32) -> Poll<io::Result<()>> {
        let mut table = self.lock();
        let Ok(entry) = table.writable(id) else {
            return Poll::Ready(Ok(()));
        };
        let head = frame::data_head(id, frame::FIN, 0);
        std::task::ready!(self.outbound.poll_frame(context, &head, &[]))?;
        entry.sent_fin = true;
        if entry.closed() {
            table.streams.remove(&id);
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes of the connection were taken in, by their stream or by nobody.
    pub fn taken_in(&self, count: usize) {
        let untold = self.untold.fetch_add(count, Ordering::AcqRel) + count;
        if untold >= inbox::CONNECTION / 2 {
            self.tell(0, &self.untold);
        }
    }

    /// Opens a window by what was counted. If there is no room for it, the next one says it.
    pub fn tell(&self, id: u32, untold: &AtomicUsize) {
        let count = untold.swap(0, Ordering::AcqRel);
        let update = frame::window_update(id, count as u32);
        if count > 0 && !self.outbound.try_frame(&update) {
            untold.fetch_add(count, Ordering::AcqRel);
        }
    }
}

impl Table {
    /// How many of `most` bytes the windows of a stream let through, once it is any.
    fn poll_room(
        &mut self,
        context: &Context<'_>,
        id: u32,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let (heeds, window) = (self.heeds, self.window);
        let entry = self.writable(id)?;
        let room = if heeds {
            usize::try_from(window.min(entry.window)).unwrap_or(0)
        } else {
            usize::MAX
        };
        if room == 0 && most > 0 {
            entry.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(most.min(room)))
    }

    fn sent(&mut self, id: u32, count: usize) {
        self.window -= count as i64;
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.window -= count as i64;
        }
    }

    fn writable(&mut self, id: u32) -> io::Result<&mut Entry> {
        let kind = match self.ended {
            true => ErrorKind::BrokenPipe,
            false => ErrorKind::ConnectionReset,
        };
        let entry = self.streams.get_mut(&id).ok_or(kind)?;
        match entry.sent_fin {
            true => Err(ErrorKind::BrokenPipe.into()),
            false => Ok(entry),
        }
    }

    fn wake_all(&mut self) {
        let writers = self.streams.values_mut();
        writers
            .filter_map(|entry| entry.writer.take())
            .for_each(Waker::wake);
    }
}
