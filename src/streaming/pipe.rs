//! Much that comes from a pod goes through the kernel alone: from the pod's socket into a pipe, and from that to the
//! client's socket, without a copy into the daemon's memory and out again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes that a pipe takes. Where the kernel does not give so many, less goes at a time.
pub const CAPACITY: usize = 512 << 10;
/// Most pipes of a connection at a time: with them as much waits as in all its inboxes. More would not make its one
/// socket faster.
const MOST: usize = 8;

const HOW: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// The pipes of a connection.
#[derive(Default)]
pub struct Pipes(Arc<AtomicUsize>);

impl Pipes {
    /// A pipe, unless there are enough of them or no descriptors.
    pub fn take(&self) -> Option<Pipe> {
        let place = Place::take(&self.0)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let _ = fcntl_setpipe_size(&write, CAPACITY);
        Some(Pipe {
            read,
            write,
            _place: place,
        })
    }
}

struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        // Dropping it gives the place back.
        (taken.fetch_add(1, Ordering::AcqRel) < MOST).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    _place: Place,
}

impl Pipe {
    /// Takes what a socket has, once it has something; 0 at its end. The pipe must be empty: that it is full could not
    /// be told from a socket that has nothing.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn fill(&self, from: &TcpStream) -> io::Result<usize> {
        loop {
            from.readable().await?;
            match from.try_io(Interest::READABLE, || {
                Self::splice(from, &self.write, CAPACITY)
            }) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                taken => return taken,
            }
        }
    }

    /// Gives a socket at most `count` bytes, of which the pipe has as many.
    ///
    /// # Errors
    /// The connection broke, or takes nothing now.
    pub fn give(&self, to: &TcpStream, count: usize) -> io::Result<usize> {
        Self::splice(&self.read, to, count)
    }

    fn splice(from: impl AsFd, to: impl AsFd, count: usize) -> io::Result<usize> {
        Ok(splice(from, None, to, None, count, HOW)?)
    }
}
