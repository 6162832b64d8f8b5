//! The processes of a pod, in a table of fixed size.
//!
//! ```text
//!            ┌─▶ Failing ──reaped──▶ (gone, answered)
//! Starting ──┤
//!            └─▶ Running ──reaped──▶ Draining ──output written──▶ Exited ──▶ (gone)
//! ```

use carpel_wire::{Entry, FdIndex, Held as HeldFds, ObjectId, Reply};

use crate::frame::Held;
use crate::log::Log;
use crate::slot::Slot;
use crate::sys::{BorrowedFd, Fd};

/// The most processes that a supervisor knows at a time: containers and execs, the exited ones too that
/// are not forgotten yet.
pub const MAX_PROCESSES: usize = 256;

/// Where a process is in its life.
#[derive(Debug)]
pub enum Phase {
    /// It carries out its Plan. The pipe ends when it execs, or brings the reply if it fails.
    Starting {
        seq: Option<u32>,
        report: Fd,
    },
    /// It has not exec'd and ends. What is answered once it is reaped.
    Failing {
        seq: Option<u32>,
        reply: Reply,
    },
    Running,
    /// It is reaped; what it wrote is read. At most so many bytes of each stream are still its own.
    Draining {
        exit: Exit,
        left: [usize; 2],
    },
    Exited {
        exit: Exit,
        /// Whether the exits file has it (an exec's is never written).
        recorded: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub wait_status: i32,
    pub finished_at: i64,
}

/// One of a process's output streams.
#[derive(Debug)]
pub struct Stream {
    pub fd: Option<Fd>,
    pub held: Held,
    /// Whether the buffer of what is held has been written to since it was given back.
    pub touched: bool,
}

impl Stream {
    #[must_use]
    pub const fn new(fd: Option<Fd>) -> Self {
        Self {
            fd,
            held: Held::new(),
            touched: false,
        }
    }
}

/// The most descriptors that are held for a process.
pub const MAX_HELD: usize = 5;

/// A container's or an exec's first process.
#[derive(Debug)]
pub struct Process {
    pub id: ObjectId,
    pub init: bool,
    /// It was started by an earlier supervisor: someone else reaps it.
    pub adopted: bool,
    pub pid: u32,
    /// Until it is reaped.
    pub pidfd: Option<Fd>,
    /// Its pidfd after that, if the daemon is still to be told that it started, or a container that it
    /// exited.
    pub exited_pidfd: Option<Fd>,
    pub started_at: i64,
    pub phase: Phase,
    /// Standard output and standard error; a terminal is the first.
    pub streams: [Stream; 2],
    pub log: Log<Fd>,
    /// The write end of its standard input, held open until it has exited.
    pub stdin: Option<Fd>,
}

impl Process {
    /// As [`carpel_wire::RequestBody::List`] tells of it, and how many of `fds` belong to that.
    #[must_use]
    pub fn entry<'a>(&'a self, fds: &mut [BorrowedFd<'a>; MAX_HELD]) -> (Entry, usize) {
        let mut count = 0;
        let mut place = |fd: Option<&'a Fd>| {
            let place = fds.get_mut(count)?;
            *place = fd?.borrow();
            count += 1;
            Some(FdIndex(count as u16 - 1))
        };
        let [stdout, stderr] = &self.streams;
        let held = HeldFds {
            pidfd: place(self.pidfd.as_ref().or(self.exited_pidfd.as_ref())),
            streams: [place(stdout.fd.as_ref()), place(stderr.fd.as_ref())],
            log: place(self.log.sink()),
            stdin: place(self.stdin.as_ref()),
        };
        let entry = Entry {
            id: self.id,
            init: self.init,
            pid: self.pid,
            started_at: self.started_at,
            exited: self.exit().map(|exit| (exit.wait_status, exit.finished_at)),
            dropped_lines: self.log.dropped_lines(),
            held,
        };
        (entry, count)
    }

    /// The exit, once all that belongs to it is done.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Exited { exit, .. } => Some(exit),
            _ => None,
        }
    }
}

/// Names a process for as long as it is in the table, and nothing afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    index: u16,
    generation: u32,
}

impl Key {
    /// Bits of [`Key::to_bits`].
    pub const BITS: u32 = 48;

    #[must_use]
    pub fn new(index: u16, generation: u32) -> Self {
        Self { index, generation }
    }

    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.index)
    }

    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 16 | u64::from(self.index)
    }

    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u16,
            generation: (bits >> 16) as u32,
        }
    }
}

struct Row {
    /// Counts the processes that have been here.
    generation: u32,
    process: Slot<Process>,
}

/// What is used lies at the beginning, within few pages.
#[repr(C)]
pub struct Table {
    /// All rows from here on are free.
    end: usize,
    rows: [Row; MAX_PROCESSES],
}

impl Table {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rows: [const {
                Row {
                    generation: 0,
                    process: Slot::Empty,
                }
            }; MAX_PROCESSES],
            end: 0,
        }
    }

    /// The key that [`Table::insert`] would give to the next process, if there is room.
    #[must_use]
    pub fn next_key(&self) -> Option<Key> {
        let used = self.rows.get(..self.end)?;
        let index = used
            .iter()
            .position(|row| row.process.get().is_none())
            .unwrap_or(self.end);
        let generation = self.rows.get(index)?.generation.wrapping_add(1);
        Some(Key {
            index: index as u16,
            generation,
        })
    }

    /// Puts a process where `key` says, which [`Table::next_key`] has just given.
    pub fn insert(&mut self, key: Key, process: Process) {
        if let Some(row) = self.rows.get_mut(key.index()) {
            row.generation = key.generation;
            row.process = Slot::Full(process);
            self.end = self.end.max(key.index() + 1);
        }
    }

    pub fn remove(&mut self, key: Key) -> Option<Process> {
        let row = self.rows.get_mut(key.index())?;
        if row.generation != key.generation {
            return None;
        }
        let removed = row.process.take();
        while self.end > 0 && self.rows[self.end - 1].process.get().is_none() {
            self.end -= 1;
        }
        removed
    }

    #[must_use]
    pub fn get(&self, key: Key) -> Option<&Process> {
        let row = self.rows.get(key.index())?;
        row.process
            .get()
            .filter(|_| row.generation == key.generation)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut Process> {
        let row = self.rows.get_mut(key.index())?;
        row.process
            .get_mut()
            .filter(|_| row.generation == key.generation)
    }

    /// The first process at `index` or behind it.
    #[must_use]
    pub fn at_or_after(&self, index: usize) -> Option<(Key, &Process)> {
        let rows = self.rows.get(index..self.end)?;
        (index..).zip(rows).find_map(|(index, row)| {
            let key = Key {
                index: index as u16,
                generation: row.generation,
            };
            Some((key, row.process.get()?))
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &Process)> {
        let mut next = 0;
        core::iter::from_fn(move || {
            let found = self.at_or_after(next)?;
            next = found.0.index() + 1;
            Some(found)
        })
    }

    pub fn for_each_mut(&mut self, mut visit: impl FnMut(usize, &mut Process)) {
        for (index, row) in self.rows.iter_mut().take(self.end).enumerate() {
            if let Some(process) = row.process.get_mut() {
                visit(index, process);
            }
        }
    }

    #[must_use]
    pub fn find(&self, id: &ObjectId) -> Option<Key> {
        self.iter()
            .find(|(_, process)| process.id == *id)
            .map(|(key, _)| key)
    }

    /// The child of this pid that is not reaped yet.
    #[must_use]
    pub fn find_pid(&self, pid: u32) -> Option<Key> {
        let mut all = self.iter();
        all.find(|(_, process)| process.pid == pid && process.pidfd.is_some() && !process.adopted)
            .map(|(key, _)| key)
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(id: u8) -> Process {
        Process {
            id: [id; 32],
            init: true,
            adopted: false,
            pid: u32::from(id),
            pidfd: None,
            exited_pidfd: None,
            started_at: 0,
            phase: Phase::Running,
            streams: [Stream::new(None), Stream::new(None)],
            log: Log::new(None),
            stdin: None,
        }
    }

    #[test]
    fn a_key_means_nothing_after_its_process() {
        let mut table = Box::new(Table::new());
        let first = table.next_key().unwrap();
        table.insert(first, process(1));
        assert_eq!(Key::from_bits(first.to_bits()), first);
        assert_eq!(table.remove(first).unwrap().id, [1; 32]);
        let second = table.next_key().unwrap();
        table.insert(second, process(2));
        assert_eq!(second.index(), first.index());
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.find(&[2; 32]), Some(second));
    }

    #[test]
    fn a_full_table_says_so() {
        let mut table = Box::new(Table::new());
        for id in 0..=255 {
            let key = table.next_key().unwrap();
            table.insert(key, process(id));
        }
        assert!(table.next_key().is_none());
        let key = table.find(&[100; 32]).unwrap();
        table.remove(key);
        assert_eq!(table.next_key().unwrap().index(), 100);
    }

    proptest! {
        #[test]
        fn the_table_holds_what_was_put_in(steps in prop::collection::vec((any::<bool>(), 0..20_u8), 0..200)) {
            let mut table = Box::new(Table::new());
            let mut model = std::collections::BTreeSet::new();
            for (insert, id) in steps {
                let found = table.find(&[id; 32]);
                prop_assert_eq!(found.is_some(), model.contains(&id));
                match found {
                    None if insert => {
                        let key = table.next_key().unwrap();
                        table.insert(key, process(id));
                        model.insert(id);
                    }
                    Some(key) if !insert => {
                        table.remove(key);
                        model.remove(&id);
                    }
                    _ => {}
                }
                let mut ids: Vec<u8> = table.iter().map(|(_, process)| process.id[0]).collect();
                ids.sort_unstable();
                prop_assert_eq!(ids, model.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
