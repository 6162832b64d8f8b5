//! What the daemon keeps of a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carpel_wire::{FdIndex, Held};
use tokio_util::sync::CancellationToken;

/// The same pipes, terminal and log that a container's supervisor has: for the case that it dies, and to
/// write to the container's stdin. Output is never read here, as long as a supervisor lives, and all of it
/// is closed when the container exits.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Read ends of stdout and stderr, or the master of the terminal as the first.
    streams: [Option<OwnedFd>; 2],
    /// The write end of its stdin.
    stdin: Slot,
    stdin_closed: CancellationToken,
    /// Replaced when the log is rotated.
    log: Slot,
}

#[derive(Debug, Default)]
struct Slot(Mutex<Option<Arc<OwnedFd>>>);

impl Slot {
    fn new(fd: Option<OwnedFd>) -> Self {
        Self(Mutex::new(fd.map(Arc::new)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Takes what `held` names out of `fds`: the pidfd, and the rest.
    pub(crate) fn new(held: &Held, fds: Vec<OwnedFd>) -> (Option<OwnedFd>, Self) {
        let mut fds: Vec<_> = fds.into_iter().map(Some).collect();
        let mut take = |index: Option<FdIndex>| fds.get_mut(usize::from(index?.0))?.take();
        let pidfd = take(held.pidfd);
        let kept = Self {
            streams: held.streams.map(&mut take),
            stdin: Slot::new(take(held.stdin)),
            stdin_closed: CancellationToken::new(),
            log: Slot::new(take(held.log)),
        };
        (pidfd, kept)
    }

    pub(crate) fn set_log(&self, log: OwnedFd) {
        *self.log.lock() = Some(Arc::new(log));
    }

    pub(crate) fn log(&self) -> Option<Arc<OwnedFd>> {
        self.log.lock().clone()
    }

    /// The master of its terminal, if it has one.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.streams[0].as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn stdin(&self) -> Option<Arc<OwnedFd>> {
        self.stdin.lock().clone()
    }

    /// Closes the container's stdin as far as it is here. Whoever has a copy learns of it.
    pub(crate) fn close_stdin(&self) {
        *self.stdin.lock() = None;
        self.stdin_closed.cancel();
    }

    /// Ends when the stdin has been closed.
    pub(crate) async fn stdin_closed(&self) {
        self.stdin_closed.cancelled().await;
    }

    /// What goes to a new supervisor, beside the pidfd, the stdin and the log, with the indexes of all.
    pub(crate) fn hand_over<'a>(
        &'a self,
        pidfd: BorrowedFd<'a>,
        stdin: Option<BorrowedFd<'a>>,
        log: Option<BorrowedFd<'a>>,
    ) -> (Held, Vec<BorrowedFd<'a>>) {
        let mut fds = Vec::new();
        let mut place = |fd: Option<BorrowedFd<'a>>| {
            fds.push(fd?);
            Some(crate::node::index(fds.len() - 1))
        };
        let [stdout, stderr] = &self.streams;
        let held = Held {
            pidfd: place(Some(pidfd)),
            streams: [stdout, stderr].map(|fd| place(fd.as_ref().map(AsFd::as_fd))),
            log: place(log),
            stdin: place(stdin),
        };
        (held, fds)
    }
}
