//! The supervisor itself: one thread that waits for the daemon, for its children and for their output.
//!
//! Nothing here blocks: reads and writes of sockets and pipes do not wait, a start is answered when its
//! pipe says so, and each turn of the loop does a bounded amount of work for each descriptor. A daemon
//! that goes away changes nothing; the newest connection is the daemon.

use carpel_wire::{Call, Event, Reply, VERSION};

use crate::attach::Sinks;
use crate::frame::StreamName;
use crate::outbox::{Item, Outbox};
use crate::pump::{Buffers, Pumped, READ};
use crate::setup::Pod;
use crate::sys::{
    self, BorrowedFd, Child, Epoll, Errno, Fd, READABLE, Ready, Result, WRITABLE, errno,
};
use crate::table::{Key, MAX_HELD, Phase, Process, Table};

/// What a supervisor keeps in static memory. All of it is zero at first, and pages that are never used
/// take no room.
#[repr(C)]
pub struct Memory {
    pub sinks: Sinks,
    pub table: Table,
    pub outbox: Outbox,
}

impl Memory {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            sinks: Sinks::new(),
            table: Table::new(),
            outbox: Outbox::new(),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

pub struct Supervisor {
    /// The daemon, the children, and `streams`.
    pub(crate) epoll: Epoll,
    /// Output, in a set of its own: a flood of it never stands before what is in the other.
    pub(crate) streams: Epoll,
    signals: Fd,
    listener: Fd,
    pub(crate) connection: Option<Fd>,
    pub(crate) pod: Option<Pod>,
    pub(crate) memory: &'static mut Memory,
    pub(crate) buffers: Buffers,
    /// Buffers have been used since they were last given back.
    used: bool,
}

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Connection,
    Signals,
    Streams,
    Report(Key),
    Stream(Key, StreamName),
    /// The pidfd of a process that is no child.
    Adopted(Key),
    /// A pipe that output is copied to; the key is its place among the [`Sinks`].
    Sink(Key),
}

impl Token {
    pub(crate) fn to_bits(self) -> u64 {
        let kind = |kind: u64, key: Option<Key>| kind << Key::BITS | key.map_or(0, Key::to_bits);
        match self {
            Token::Listener => kind(0, None),
            Token::Connection => kind(1, None),
            Token::Signals => kind(2, None),
            Token::Streams => kind(3, None),
            Token::Report(key) => kind(4, Some(key)),
            Token::Stream(key, StreamName::Stdout) => kind(5, Some(key)),
            Token::Stream(key, StreamName::Stderr) => kind(6, Some(key)),
            Token::Adopted(key) => kind(7, Some(key)),
            Token::Sink(key) => kind(8, Some(key)),
        }
    }

    fn from_bits(bits: u64) -> Self {
        let key = Key::from_bits(bits);
        match bits >> Key::BITS {
            0 => Token::Listener,
            1 => Token::Connection,
            2 => Token::Signals,
            3 => Token::Streams,
            4 => Token::Report(key),
            5 => Token::Stream(key, StreamName::Stdout),
            6 => Token::Stream(key, StreamName::Stderr),
            7 => Token::Adopted(key),
            _ => Token::Sink(key),
        }
    }
}

/// How long buffers stay in use after the last output, in milliseconds.
const IDLE: i32 = 500;

/// Requests that are read in one turn.
const REQUESTS_PER_TURN: usize = 8;

/// Streams that are read in one turn.
const STREAMS_PER_TURN: usize = 4;

impl Supervisor {
    /// # Errors
    /// If the kernel gives no epoll set or signalfd.
    pub fn new(listener: Fd, memory: &'static mut Memory) -> Result<Self> {
        let supervisor = Self {
            epoll: Epoll::new()?,
            streams: Epoll::new()?,
            signals: sys::child_signals()?,
            listener,
            connection: None,
            pod: None,
            memory,
            buffers: Buffers::new()?,
            used: false,
        };
        supervisor.watch()?;
        Ok(supervisor)
    }

    /// Makes its own what belongs to a process and was inherited from another.
    pub(crate) fn renew(&mut self) -> Result<()> {
        self.epoll = Epoll::new()?;
        self.streams = Epoll::new()?;
        self.signals = sys::child_signals()?;
        self.watch()
    }

    fn watch(&self) -> Result<()> {
        self.epoll
            .add(self.listener.borrow(), READABLE, Token::Listener.to_bits())?;
        self.epoll
            .add(self.signals.borrow(), READABLE, Token::Signals.to_bits())?;
        self.epoll.add(
            self.streams.descriptor(),
            READABLE,
            Token::Streams.to_bits(),
        )?;
        if let Some(connection) = &self.connection {
            self.epoll
                .add(connection.borrow(), READABLE, Token::Connection.to_bits())?;
        }
        let mut processes = self.memory.table.iter();
        processes.try_for_each(|(key, process)| self.watch_adopted(key, process))
    }

    /// Serves until the daemon asks it to end.
    pub fn serve(&mut self) -> ! {
        loop {
            let draining = self.drain_some();
            let timeout = match (draining, self.used) {
                (true, _) => Some(0),
                (false, true) => Some(IDLE),
                (false, false) => None,
            };
            let mut ready = [Ready::NONE; 16];
            let count = self.epoll.wait(&mut ready, timeout).unwrap_or(0);
            if count == 0 && !draining {
                self.release_buffers();
            }
            for event in ready.iter().take(count) {
                self.dispatch(Token::from_bits(event.token), event.events);
            }
        }
    }

    fn dispatch_streams(&mut self) {
        let mut ready = [Ready::NONE; STREAMS_PER_TURN];
        let count = self.streams.wait(&mut ready, Some(0)).unwrap_or(0);
        for event in ready.iter().take(count) {
            if let Token::Stream(key, stream) = Token::from_bits(event.token) {
                self.pump(key, stream, READ);
            }
        }
    }

    // Not part of the loop's own frame, which stays on the stack while nothing happens.
    #[inline(never)]
    fn dispatch(&mut self, token: Token, events: u32) {
        match token {
            Token::Listener => self.accept(),
            Token::Connection if events & WRITABLE != 0 || !self.memory.outbox.is_empty() => {
                self.flush();
            }
            Token::Connection => self.read_requests(),
            Token::Signals => self.reap(),
            Token::Report(key) => self.read_report(key),
            Token::Adopted(key) => self.adopted_ended(key),
            Token::Sink(place) => self.memory.sinks.remove(place, &self.epoll),
            Token::Streams | Token::Stream(..) => self.dispatch_streams(),
        }
    }

    fn release_buffers(&mut self) {
        self.used = false;
        let buffers = &mut self.buffers;
        buffers.release_shared();
        self.memory
            .table
            .for_each_mut(|index, process| buffers.release_held(index, process));
        sys::release_stack();
    }

    // ── the daemon ──

    fn accept(&mut self) {
        while let Ok(connection) = sys::accept(self.listener.borrow()) {
            self.disconnect();
            let token = Token::Connection.to_bits();
            if self
                .epoll
                .add(connection.borrow(), READABLE, token)
                .is_err()
            {
                continue;
            }
            self.connection = Some(connection);
            self.record_exits();
            let hello = Event::Hello {
                version: VERSION,
                pid: sys::own_pid(),
                ready: self.pod.is_some(),
                reaper_pid: self.pod.as_ref().and_then(Pod::reaper_pid),
            };
            let pidfds = self.pod.as_ref().map(Pod::pidfds);
            let pidfds = pidfds
                .as_ref()
                .map_or(&[][..], |(fds, count)| &fds[..*count]);
            if self.send(&hello, pidfds).is_err() {
                self.disconnect();
            }
        }
    }

    /// Forgets the daemon and what only that daemon wanted to know.
    pub(crate) fn disconnect(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        self.epoll.remove(connection.borrow());
        while self.memory.outbox.pop().is_some() {}
        let mut next = 0;
        while let Some((key, process)) = self.memory.table.at_or_after(next) {
            next = key.index() + 1;
            if !process.init && process.exit().is_some() {
                self.remove(key);
            } else if let Some(process) = self.memory.table.get_mut(key) {
                if process.exit().is_some() {
                    process.exited_pidfd = None;
                }
                if let Phase::Starting { seq, .. } | Phase::Failing { seq, .. } = &mut process.phase
                {
                    *seq = None;
                }
            }
        }
    }

    fn read_requests(&mut self) {
        self.used = true;
        for _ in 0..REQUESTS_PER_TURN {
            let Some(connection) = &self.connection else {
                return;
            };
            let mut fds = sys::FdList::default();
            match sys::receive(connection.borrow(), self.buffers.message(), &mut fds) {
                Ok(sys::Received::Message(length)) => self.handle(length, fds),
                Ok(sys::Received::Truncated(length)) => self.refuse(length),
                Err(Errno(errno::EAGAIN | errno::EINTR)) => return,
                Ok(sys::Received::Closed) | Err(_) => return self.disconnect(),
            }
            if !self.memory.outbox.is_empty() {
                return;
            }
        }
    }

    fn send(&self, event: &Event, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let connection = self.connection.as_ref().ok_or(Errno(errno::ENOTCONN))?;
        let mut buffer = [0; 128];
        let bytes = carpel_wire::encode(event, &mut buffer).map_err(|_| Errno(errno::EMSGSIZE))?;
        sys::send(connection.borrow(), bytes, fds)
    }

    /// Tells the daemon, now or as soon as its socket takes it.
    pub(crate) fn tell(&mut self, item: Item) {
        if self.connection.is_none() {
            self.said(item);
            return;
        }
        let mut item = item;
        if self.memory.outbox.is_empty() {
            match self.say(&mut item) {
                Ok(()) => return self.said(item),
                Err(Errno(errno::EAGAIN)) => {}
                Err(_) => return self.disconnect(),
            }
        }
        if self.memory.outbox.push(item) {
            self.await_connection();
        } else {
            self.disconnect();
        }
    }

    pub(crate) fn reply(&mut self, seq: u32, reply: Reply) {
        self.tell(Item::Reply { seq, reply });
    }

    fn flush(&mut self) {
        while let Some(mut item) = self.memory.outbox.first() {
            match self.say(&mut item) {
                Ok(()) => {
                    self.memory.outbox.pop();
                    self.said(item);
                }
                Err(Errno(errno::EAGAIN)) => {
                    self.memory.outbox.replace_first(item);
                    break;
                }
                Err(_) => return self.disconnect(),
            }
        }
        self.await_connection();
    }

    /// Waits for requests, or, while there is something to say, until it can be said.
    fn await_connection(&self) {
        if let Some(connection) = &self.connection {
            let events = if self.memory.outbox.is_empty() {
                READABLE
            } else {
                WRITABLE
            };
            let _ = self
                .epoll
                .change(connection.borrow(), events, Token::Connection.to_bits());
        }
    }

    /// Says an item. Of a list, what could not be said is left in `item`.
    fn say(&self, item: &mut Item) -> Result<()> {
        match item {
            Item::Reply { seq, reply } => self.send_reply(*seq, *reply, &[]),
            Item::Ready { seq } => {
                let Some(pod) = &self.pod else {
                    return Ok(());
                };
                let reply = Reply::Ready {
                    pid: sys::own_pid(),
                    reaper_pid: pod.reaper_pid(),
                };
                let (pidfds, count) = pod.pidfds();
                self.send_reply(*seq, reply, &pidfds[..count])
            }
            Item::Started { seq, key } => {
                let Some(process) = self.memory.table.get(*key) else {
                    return Ok(());
                };
                let reply = Reply::Started {
                    pid: process.pid,
                    started_at: process.started_at,
                };
                let pidfd = process.pidfd.as_ref().or(process.exited_pidfd.as_ref());
                let pidfd = pidfd.map(Fd::borrow);
                self.send_reply(*seq, reply, pidfd.as_slice())
            }
            Item::Exited { key } => match self.memory.table.get(*key) {
                Some(process) => self.say_exited(process),
                None => Ok(()),
            },
            Item::List { seq, next } => {
                while let Some((key, process)) = self.memory.table.at_or_after(*next) {
                    let mut fds = [BorrowedFd::STDIN; MAX_HELD];
                    let (entry, count) = process.entry(&mut fds);
                    self.send(&Event::Entry(entry), &fds[..count])?;
                    *next = key.index() + 1;
                }
                self.send_reply(*seq, Reply::Done, &[])
            }
            Item::Socket { seq, family } => match sys::tcp_socket(*family) {
                Ok(socket) => self.send_reply(*seq, Reply::Done, &[socket.borrow()]),
                Err(error) => {
                    let reply = Reply::CallFailed {
                        call: Call::Socket,
                        errno: error.number(),
                    };
                    self.send_reply(*seq, reply, &[])
                }
            },
        }
    }

    fn send_reply(&self, seq: u32, reply: Reply, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send(&Event::Reply { seq, reply }, fds)
    }

    fn say_exited(&self, process: &Process) -> Result<()> {
        let Some(exit) = process.exit() else {
            return Ok(());
        };
        let event = Event::Exited {
            id: process.id,
            wait_status: exit.wait_status,
            started_at: process.started_at,
            finished_at: exit.finished_at,
            dropped_lines: process.log.dropped_lines(),
        };
        self.send(&event, &[])
    }

    /// What follows once an item has been said, or nobody is there to hear it.
    fn said(&mut self, item: Item) {
        match item {
            Item::Exited { key } => match self.memory.table.get_mut(key) {
                Some(process) if process.init => process.exited_pidfd = None,
                _ => self.remove(key),
            },
            Item::Started { key, .. } => {
                if let Some(process) = self.memory.table.get_mut(key) {
                    process.exited_pidfd = None;
                }
            }
            _ => {}
        }
    }

    // ── the processes ──

    /// Takes a process out of the table, with all that was kept for it.
    pub(crate) fn remove(&mut self, key: Key) {
        let Some(mut process) = self.memory.table.remove(key) else {
            return;
        };
        for stream in &mut process.streams {
            stream.held = crate::frame::Held::new();
            if let Some(fd) = stream.fd.take() {
                self.streams.remove(fd.borrow());
            }
        }
        if let Phase::Starting { report, .. } = &process.phase {
            self.epoll.remove(report.borrow());
        }
        for stream in [StreamName::Stdout, StreamName::Stderr] {
            self.memory.sinks.close(key, stream, &self.epoll);
        }
        self.buffers.release_held(key.index(), &mut process);
    }

    fn reap(&mut self) {
        let mut signals = [0; 128];
        let _ = sys::read(self.signals.borrow(), &mut signals);
        while let Some(ended) = sys::wait(Child::Any, false) {
            let key = self.memory.table.find_pid(ended.pid);
            // While it is a zombie one can still tell whether it has exec'd.
            if let Some(key) = key {
                self.read_report(key);
            }
            if sys::wait(Child::Pid(ended.pid), true).is_none() {
                return;
            }
            match key {
                Some(key) => self.exited(key, ended.wait_status),
                None => self.reaper_ended(ended.pid),
            }
        }
    }

    /// Reads from a stream, logs it and copies it to whoever is attached. A stream that ended is closed.
    fn pump(&mut self, key: Key, stream: StreamName, limit: usize) -> Pumped {
        self.used = true;
        let buffers = &mut self.buffers;
        let Some(process) = self.memory.table.get_mut(key) else {
            return Pumped::End;
        };
        let pumped = buffers.pump(key.index(), process, stream, limit);
        let sinks = &mut self.memory.sinks;
        match pumped {
            Pumped::Some(count) => {
                sinks.copy(key, stream, buffers.last_read(count), &self.epoll);
            }
            Pumped::Nothing => {}
            Pumped::End => {
                buffers.finish(key.index(), process, stream);
                if let Some(fd) = process.streams[stream as usize].fd.take() {
                    self.streams.remove(fd.borrow());
                }
                sinks.close(key, stream, &self.epoll);
            }
        }
        pumped
    }

    /// Reads on for processes that have exited, one read for each stream. Whether some are left.
    #[inline(never)]
    fn drain_some(&mut self) -> bool {
        let mut waiting = false;
        let mut next = 0;
        while let Some((key, process)) = self.memory.table.at_or_after(next) {
            next = key.index() + 1;
            let Phase::Draining { exit, mut left } = process.phase else {
                continue;
            };
            for (left, stream) in left
                .iter_mut()
                .zip([StreamName::Stdout, StreamName::Stderr])
            {
                if *left > 0 {
                    *left = match self.pump(key, stream, *left) {
                        Pumped::Some(count) => left.saturating_sub(count),
                        Pumped::Nothing | Pumped::End => 0,
                    };
                }
            }
            if left == [0, 0] {
                self.conclude(key, exit);
            } else if let Some(process) = self.memory.table.get_mut(key) {
                process.phase = Phase::Draining { exit, left };
                waiting = true;
            }
        }
        waiting
    }
}
