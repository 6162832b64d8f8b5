//! From a process's output to its log: one bounded read at a time, so that no container starves another.

use carpel_wire::MAX_MESSAGE;

use crate::clock::Clock;
use crate::frame::{MAX_LINE, StreamName, prefix};
use crate::log::{BUFFER, Batch};
use crate::sys::{self, Errno, errno, release};
use crate::table::{MAX_PROCESSES, Process};

/// The most that is read at a time, in bytes.
pub const READ: usize = 64 * 1024;

/// Where messages and output pass through. Pages of it that are not used take no memory.
pub struct Buffers {
    read: &'static mut [u8; READ],
    batch: &'static mut [u8; BUFFER],
    /// Beginnings of lines, two streams for each process.
    held: &'static mut [[u8; MAX_LINE]],
    clock: Clock,
}

/// What one read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pumped {
    /// So many bytes.
    Some(usize),
    /// Nothing at present.
    Nothing,
    /// The end: nobody can write any more.
    End,
}

impl Buffers {
    /// # Errors
    /// ENOMEM.
    pub fn new() -> sys::Result<Self> {
        let none = Errno(errno::ENOMEM);
        let memory = sys::map_zeroed(READ + BUFFER + 2 * MAX_PROCESSES * MAX_LINE)?;
        let (read, memory) = memory.split_first_chunk_mut().ok_or(none)?;
        let (batch, memory) = memory.split_first_chunk_mut().ok_or(none)?;
        let held = memory.as_chunks_mut().0;
        Ok(Self {
            read,
            batch,
            held,
            clock: Clock::new(),
        })
    }

    /// Room for a message. It is used before the next output is read.
    pub fn message(&mut self) -> &mut [u8; MAX_MESSAGE] {
        const { assert!(MAX_MESSAGE <= READ) };
        self.read
            .first_chunk_mut()
            .expect("a read is longer than a message")
    }

    /// Reads once from a stream of `process`, at most `limit` bytes, and logs it.
    pub fn pump(
        &mut self,
        index: usize,
        process: &mut Process,
        stream: StreamName,
        limit: usize,
    ) -> Pumped {
        let (which, limit) = (stream as usize, limit.min(READ));
        let Some(fd) = &process.streams[which].fd else {
            return Pumped::End;
        };
        let count = match sys::read(fd.borrow(), &mut self.read[..limit]) {
            Ok(0) => return Pumped::End,
            Ok(count) => count,
            Err(Errno(errno::EAGAIN | errno::EINTR)) => return Pumped::Nothing,
            // EIO: nobody has the terminal open any more.
            Err(_) => return Pumped::End,
        };
        if process.log.is_open() {
            let prefix = prefix(self.clock.format(sys::now()), stream);
            let mut batch = Batch::new(&mut process.log, self.batch, prefix);
            let held = &mut self.held[2 * index + which];
            let stream = &mut process.streams[which];
            stream.held.feed(held, &self.read[..count], &mut batch);
            stream.touched |= !stream.held.is_empty();
        }
        Pumped::Some(count)
    }

    /// The `count` bytes that were read last.
    #[must_use]
    pub fn last_read(&self, count: usize) -> &[u8] {
        self.read.get(..count).unwrap_or_default()
    }

    /// Logs what a stream still holds: it has ended.
    pub fn finish(&mut self, index: usize, process: &mut Process, stream: StreamName) {
        let which = stream as usize;
        if process.streams[which].held.is_empty() {
            return;
        }
        let prefix = prefix(self.clock.format(sys::now()), stream);
        let mut batch = Batch::new(&mut process.log, self.batch, prefix);
        process.streams[which]
            .held
            .finish(&self.held[2 * index + which], &mut batch);
    }

    /// Gives back the memory that is not needed while nothing comes.
    pub fn release_shared(&mut self) {
        release(self.read);
        release(self.batch);
    }

    /// Gives back what a process's streams do not hold any more.
    pub fn release_held(&mut self, index: usize, process: &mut Process) {
        for (buffer, stream) in self.held[2 * index..].iter_mut().zip(&mut process.streams) {
            if stream.touched {
                release(&mut buffer[stream.held.len()..]);
                stream.touched = !stream.held.is_empty();
            }
        }
    }
}
