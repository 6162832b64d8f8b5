//! Going on with containers that another supervisor started, and that outlived it.
//!
//! They are no children of this one: they went to the daemon, or, if that was not the one that had started
//! the supervisor, to the machine's init. So their pidfds are watched, and how one ended is found out by
//! whoever gets there: before somebody reaps it from the zombie itself, afterwards (Linux 6.15) from its pidfd.

use carpel_wire::{Adopt, Call, FdIndex, Reply, UNKNOWN_STATUS};

use crate::frame::StreamName;
use crate::lifecycle::status_of_zombie;
use crate::log::Log;
use crate::serve::{Supervisor, Token};
use crate::sys::{self, BorrowedFd, Fd, FdList, READABLE, Result};
use crate::table::{Key, Phase, Process, Stream};

impl Supervisor {
    /// Takes a container into the table. It is watched from now on, or from the set-up on.
    pub(crate) fn adopt(&mut self, adopt: &Adopt, mut fds: FdList) -> Reply {
        if self.memory.table.find(&adopt.id).is_some() {
            return Reply::Exists;
        }
        let Some(key) = self.memory.table.next_key() else {
            return Reply::Full;
        };
        let Some(process) = process(adopt, &mut fds) else {
            return Reply::Malformed;
        };
        if self.pod.is_some()
            && let Err(error) = self.watch_adopted(key, &process)
        {
            self.forget_adopted(&process);
            return Reply::CallFailed {
                call: Call::Epoll,
                errno: error.number(),
            };
        }
        self.memory.table.insert(key, process);
        Reply::Done
    }

    pub(crate) fn watch_adopted(&self, key: Key, process: &Process) -> Result<()> {
        let names = [StreamName::Stdout, StreamName::Stderr];
        for (name, stream) in names.into_iter().zip(&process.streams) {
            if let Some(fd) = &stream.fd {
                let token = Token::Stream(key, name).to_bits();
                self.streams.add(fd.borrow(), READABLE, token)?;
            }
        }
        match &process.pidfd {
            Some(pidfd) => {
                let token = Token::Adopted(key).to_bits();
                self.epoll.add(pidfd.borrow(), READABLE, token)
            }
            None => Ok(()),
        }
    }

    fn forget_adopted(&self, process: &Process) {
        for fd in process
            .streams
            .iter()
            .filter_map(|stream| stream.fd.as_ref())
        {
            self.streams.remove(fd.borrow());
        }
    }

    /// The pidfd of an adopted process says that it has exited.
    pub(crate) fn adopted_ended(&mut self, key: Key) {
        let procfs = self.pod.as_ref().and_then(|pod| pod.procfs.as_ref());
        let Some(process) = self.memory.table.get(key) else {
            return;
        };
        let Some(pidfd) = &process.pidfd else {
            return;
        };
        let wait_status = wait_status(pidfd.borrow(), process.pid, procfs);
        self.epoll.remove(pidfd.borrow());
        self.exited(key, wait_status);
    }
}

/// The process in the table that is to be. `None` if a descriptor is missing.
fn process(adopt: &Adopt, fds: &mut FdList) -> Option<Process> {
    let held = &adopt.held;
    let pidfd = fds.take(held.pidfd?)?;
    let mut take = |index: Option<FdIndex>| match index {
        Some(index) => fds.take(index).map(Some),
        None => Some(None),
    };
    let [stdout, stderr] = held.streams;
    let streams = [take(stdout)?, take(stderr)?];
    let (log, stdin) = (take(held.log)?, take(held.stdin)?);
    for stream in streams.iter().flatten() {
        sys::set_nonblocking(stream.borrow()).ok()?;
    }
    Some(Process {
        id: adopt.id,
        init: true,
        adopted: true,
        pid: adopt.pid,
        pidfd: Some(pidfd),
        exited_pidfd: None,
        started_at: adopt.started_at,
        phase: Phase::Running,
        streams: streams.map(Stream::new),
        log: Log::new(log),
        stdin,
    })
}

/// How a process ended that is not a child, as far as it can be known.
fn wait_status(pidfd: BorrowedFd<'_>, pid: u32, procfs: Option<&Fd>) -> i32 {
    let of_zombie = || {
        let status = status_of_zombie(procfs?.borrow(), pid)?;
        // As long as it can be signalled the pid is still its own, so what was read was about it.
        sys::signal_process(pidfd, 0).ok().map(|()| status)
    };
    sys::reaped_status(pidfd)
        .or_else(of_zombie)
        // It was reaped between the two.
        .or_else(|| sys::reaped_status(pidfd))
        .unwrap_or(UNKNOWN_STATUS)
}
