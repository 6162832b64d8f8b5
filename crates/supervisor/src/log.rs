//! A container's log file: whole lines, many in one write; what cannot be written is counted.
//!
//! The file ends with a newline after every write. A write that the disk cut short is cut back to its
//! last whole line; if not even that is possible, the next write begins with a newline.

use crate::frame::{LineSink, PREFIX, TAG_AT, Tag};
use crate::sys::{Errno, Fd, Result};

/// Room for a write: some hundred ordinary lines, or several of the longest.
pub const BUFFER: usize = 128 * 1024;

/// What a log writes to.
pub trait Sink {
    /// As `write(2)`.
    fn write(&self, bytes: &[u8]) -> Result<usize>;
    /// Takes the last `count` bytes away again.
    fn take_back(&self, count: usize) -> Result<()>;
}

impl Sink for Fd {
    fn write(&self, bytes: &[u8]) -> Result<usize> {
        crate::sys::write(self.borrow(), bytes)
    }

    fn take_back(&self, count: usize) -> Result<()> {
        let size = crate::sys::status(self.borrow())?.size;
        let length = size
            .checked_sub(count as u64)
            .ok_or(Errno(crate::sys::errno::EINVAL))?;
        crate::sys::truncate(self.borrow(), length)
    }
}

/// The log of one container.
#[derive(Debug)]
pub struct Log<S> {
    sink: Option<S>,
    /// The file ends within a line.
    torn: bool,
    dropped_lines: u64,
}

impl<S: Sink> Log<S> {
    /// A log into `sink`; without one everything is thrown away, and that is no loss to be counted.
    pub const fn new(sink: Option<S>) -> Self {
        Self {
            sink,
            torn: false,
            dropped_lines: 0,
        }
    }

    /// Writes to another file from now on.
    pub fn reopen(&mut self, sink: S) {
        self.sink = Some(sink);
        self.torn = false;
    }

    #[must_use]
    pub fn sink(&self) -> Option<&S> {
        self.sink.as_ref()
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        self.sink.is_some()
    }

    #[must_use]
    pub fn dropped_lines(&self) -> u64 {
        self.dropped_lines
    }

    /// Writes whole lines, or counts those that the file does not take.
    fn write_lines(&mut self, lines: &[u8]) {
        let Some(sink) = &self.sink else {
            return;
        };
        if lines.is_empty() {
            return;
        }
        if self.torn {
            self.torn = !matches!(sink.write(b"\n"), Ok(1));
        }
        let mut written = 0;
        while written < lines.len() && !self.torn {
            match sink.write(&lines[written..]) {
                Ok(count @ 1..) => written += count,
                Ok(0) | Err(_) => break,
            }
        }
        if written == lines.len() {
            return;
        }
        let whole = memchr::memrchr(b'\n', &lines[..written]).map_or(0, |newline| newline + 1);
        if written > whole {
            self.torn = sink.take_back(written - whole).is_err();
        }
        self.dropped_lines += memchr::memchr_iter(b'\n', &lines[whole..]).count() as u64;
    }
}

/// Collects the lines of one read and writes them in batches.
pub struct Batch<'a, S: Sink> {
    log: &'a mut Log<S>,
    buffer: &'a mut [u8; BUFFER],
    used: usize,
    prefix: [u8; PREFIX],
}

impl<'a, S: Sink> Batch<'a, S> {
    pub fn new(log: &'a mut Log<S>, buffer: &'a mut [u8; BUFFER], prefix: [u8; PREFIX]) -> Self {
        Self {
            log,
            buffer,
            used: 0,
            prefix,
        }
    }

    fn flush(&mut self) {
        self.log.write_lines(&self.buffer[..self.used]);
        self.used = 0;
    }
}

impl<S: Sink> LineSink for Batch<'_, S> {
    fn line(&mut self, tag: Tag, head: &[u8], tail: &[u8]) {
        let length = PREFIX + head.len() + tail.len() + 1;
        if BUFFER - self.used < length {
            self.flush();
        }
        let Some(place) = self.buffer.get_mut(self.used..self.used + length) else {
            return;
        };
        let (prefix, text) = place.split_at_mut(PREFIX);
        prefix.copy_from_slice(&self.prefix);
        if tag == Tag::Partial {
            prefix[TAG_AT] = b'P';
        }
        let (first, text) = text.split_at_mut(head.len());
        first.copy_from_slice(head);
        let (second, newline) = text.split_at_mut(tail.len());
        second.copy_from_slice(tail);
        newline.copy_from_slice(b"\n");
        self.used += length;
    }
}

impl<S: Sink> Drop for Batch<'_, S> {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Held, MAX_LINE};

    /// A disk of limited room, on which cutting a file may fail too.
    #[derive(Default)]
    struct Disk {
        bytes: RefCell<Vec<u8>>,
        room: Cell<usize>,
        cannot_cut: Cell<bool>,
    }

    impl Sink for &Disk {
        fn write(&self, bytes: &[u8]) -> Result<usize> {
            let count = bytes.len().min(self.room.get());
            if count == 0 {
                return Err(Errno(crate::sys::errno::ENOSPC));
            }
            self.room.set(self.room.get() - count);
            self.bytes.borrow_mut().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn take_back(&self, count: usize) -> Result<()> {
            if self.cannot_cut.get() {
                return Err(Errno(crate::sys::errno::EIO));
            }
            let mut bytes = self.bytes.borrow_mut();
            let length = bytes.len() - count;
            bytes.truncate(length);
            self.room.set(self.room.get() + count);
            Ok(())
        }
    }

    fn write(log: &mut Log<&Disk>, lines: &[&[u8]]) {
        let mut buffer = Box::new([0; BUFFER]);
        let mut batch = Batch::new(log, &mut buffer, [b'-'; PREFIX]);
        for line in lines {
            batch.line(Tag::Full, line, b"");
        }
    }

    #[test]
    fn a_full_disk_keeps_whole_lines_and_counts_the_others() {
        let disk = Disk::default();
        disk.room.set(2 * (PREFIX + 4) + 10);
        let mut log = Log::new(Some(&disk));
        write(&mut log, &[b"one", b"two", b"three", b"four"]);
        assert_eq!(log.dropped_lines(), 2);
        assert_eq!(disk.bytes.borrow().len(), 2 * (PREFIX + 4));
        disk.room.set(1000);
        write(&mut log, &[b"five"]);
        assert!(disk.bytes.borrow().ends_with(b"five\n"));
        assert_eq!(log.dropped_lines(), 2);
    }

    #[test]
    fn a_torn_line_that_stays_is_ended_before_the_next() {
        let disk = Disk::default();
        disk.cannot_cut.set(true);
        disk.room.set(10);
        let mut log = Log::new(Some(&disk));
        write(&mut log, &[b"one"]);
        write(&mut log, &[b"two"]);
        assert_eq!(log.dropped_lines(), 2);
        disk.room.set(1000);
        write(&mut log, &[b"three"]);
        let bytes = disk.bytes.borrow();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert!(bytes.ends_with(b"three\n"));
        assert_eq!(log.dropped_lines(), 2);
    }

    #[test]
    fn the_longest_lines_pass_through_the_buffer() {
        let disk = Disk::default();
        disk.room.set(usize::MAX);
        let mut log = Log::new(Some(&disk));
        let mut output = vec![b'x'; 20 * MAX_LINE];
        output.push(b'\n');
        let (mut held, mut line, mut buffer) =
            (Held::new(), Box::new([0; MAX_LINE]), Box::new([0; BUFFER]));
        held.feed(
            &mut line,
            &output,
            &mut Batch::new(&mut log, &mut buffer, [b'-'; PREFIX]),
        );
        assert_eq!(disk.bytes.borrow().len(), 20 * (PREFIX + MAX_LINE + 1));
        assert_eq!(log.dropped_lines(), 0);
    }

    proptest! {
        #[test]
        fn every_line_is_written_whole_or_counted(
            batches in prop::collection::vec(
                (0..3000_usize, prop::collection::vec(0..400_usize, 1..20)), 1..20),
        ) {
            let disk = Disk::default();
            let mut log = Log::new(Some(&disk));
            let mut lines = 0;
            for (room, lengths) in batches {
                disk.room.set(room);
                let texts: Vec<_> = lengths.iter().map(|length| vec![b'x'; *length]).collect();
                lines += texts.len() as u64;
                write(&mut log, &texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            }
            let bytes = disk.bytes.borrow();
            prop_assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
            let written = bytes.split_inclusive(|byte| *byte == b'\n').count() as u64;
            prop_assert_eq!(written + log.dropped_lines(), lines);
        }
    }
}
