//! Whoever watches a container's output beside its log: pipes that get a copy of it.
//!
//! The supervisor stays the only reader of the output. It never waits for those who are attached: what a
//! pipe does not take is not written to it again. So neither the container nor its log knows of them.
//!
//! ```text
//! Attach ──▶ copied to ──┬── its reader closes it: the pipe says so ──▶ closed
//!                        └── the stream ends, or its container is forgotten ──▶ closed
//! ```

use carpel_wire::{Call, FdIndex, ObjectId, Reply};

use crate::frame::StreamName;
use crate::serve::{Supervisor, Token};
use crate::slot::Slot;
use crate::sys::{self, Epoll, Errno, Fd, FdList, errno};
use crate::table::Key;

/// The most pipes of a pod.
pub const MAX_SINKS: usize = 64;

/// The most pipes of one stream of a container.
pub const MAX_SINKS_OF_STREAM: usize = 16;

#[derive(Debug)]
struct Sink {
    process: Key,
    stream: StreamName,
    fd: Fd,
}

struct Place {
    /// Counts the pipes that have been here, so that an event for one is not taken for its successor's.
    generation: u32,
    sink: Slot<Sink>,
}

/// The pipes, in a table of fixed size.
#[repr(C)]
pub struct Sinks {
    /// All places from here on are free.
    end: usize,
    places: [Place; MAX_SINKS],
}

impl Sinks {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            end: 0,
            places: [const {
                Place {
                    generation: 0,
                    sink: Slot::Empty,
                }
            }; MAX_SINKS],
        }
    }

    fn of(&self, process: Key, stream: StreamName) -> impl Iterator<Item = (Key, &Sink)> {
        let places = (0..).zip(self.places.iter().take(self.end));
        places.filter_map(move |(index, place)| {
            let sink = place.sink.get()?;
            let key = Key::new(index, place.generation);
            (sink.process == process && sink.stream == stream).then_some((key, sink))
        })
    }

    fn add(&mut self, sink: Sink, epoll: &Epoll) -> Result<Key, Reply> {
        if self.of(sink.process, sink.stream).count() == MAX_SINKS_OF_STREAM {
            return Err(Reply::Full);
        }
        let mut places = self.places.iter_mut().enumerate();
        let free = places.find(|(_, place)| place.sink.get().is_none());
        let (index, place) = free.ok_or(Reply::Full)?;
        place.generation = place.generation.wrapping_add(1);
        let key = Key::new(index as u16, place.generation);
        // No event is asked for: that its reader has closed it is always told.
        let watched = sys::set_nonblocking(sink.fd.borrow())
            .and_then(|()| epoll.add(sink.fd.borrow(), 0, Token::Sink(key).to_bits()));
        watched.map_err(|error| Reply::CallFailed {
            call: Call::Epoll,
            errno: error.number(),
        })?;
        place.sink = Slot::Full(sink);
        self.end = self.end.max(index + 1);
        Ok(key)
    }

    /// Writes what was read of a stream to all who watch it, as far as they take it.
    pub fn copy(&mut self, process: Key, stream: StreamName, bytes: &[u8], epoll: &Epoll) {
        let mut broken = [None; MAX_SINKS_OF_STREAM];
        for (place, (key, sink)) in broken.iter_mut().zip(self.of(process, stream)) {
            match sys::write(sink.fd.borrow(), bytes) {
                Ok(_) | Err(Errno(errno::EAGAIN | errno::EINTR)) => {}
                Err(_) => *place = Some(key),
            }
        }
        for key in broken.into_iter().flatten() {
            self.remove(key, epoll);
        }
    }

    /// Closes all of a stream.
    pub fn close(&mut self, process: Key, stream: StreamName, epoll: &Epoll) {
        loop {
            let Some(key) = self.of(process, stream).map(|(key, _)| key).next() else {
                return;
            };
            self.remove(key, epoll);
        }
    }

    /// Closes the pipe that `key` names, if it is still there.
    pub fn remove(&mut self, key: Key, epoll: &Epoll) {
        let place = self.places.get_mut(key.index());
        let Some(place) =
            place.filter(|place| Key::new(key.index() as u16, place.generation) == key)
        else {
            return;
        };
        if let Some(sink) = place.sink.take() {
            epoll.remove(sink.fd.borrow());
        }
        while self.end > 0 && self.places[self.end - 1].sink.get().is_none() {
            self.end -= 1;
        }
    }
}

impl Default for Sinks {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// Copies a container's streams to the pipes at `indexes` too. All or none.
    pub(crate) fn attach(
        &mut self,
        id: &ObjectId,
        indexes: [Option<FdIndex>; 2],
        fds: &mut FdList,
    ) -> Reply {
        let table = &self.memory.table;
        let Some((key, process)) = table.find(id).and_then(|key| Some((key, table.get(key)?)))
        else {
            return Reply::NotFound;
        };
        let names = [StreamName::Stdout, StreamName::Stderr];
        let (mut added, mut refused) = ([None; 2], None);
        for ((stream, index), added) in names.into_iter().zip(indexes).zip(&mut added) {
            let Some(index) = index else {
                continue;
            };
            let outcome = match fds.take(index) {
                // A stream that has ended: its reader is told so.
                Some(_) if process.streams[stream as usize].fd.is_none() => continue,
                Some(fd) => {
                    let sink = Sink {
                        process: key,
                        stream,
                        fd,
                    };
                    self.memory.sinks.add(sink, &self.epoll)
                }
                None => Err(Reply::Malformed),
            };
            match outcome {
                Ok(place) => *added = Some(place),
                Err(reply) => {
                    refused = Some(reply);
                    break;
                }
            }
        }
        let Some(reply) = refused else {
            return Reply::Done;
        };
        for place in added.into_iter().flatten() {
            self.memory.sinks.remove(place, &self.epoll);
        }
        reply
    }
}
