//! What a cgroup uses: read from a handful of files, without a walk over processes or folders.
//!
//! A file that a kernel or a machine does not have leaves its figure out; it never makes a zero of it.

mod parse;
pub(super) mod v1;
pub(super) mod v2;

use std::io;

use rustix::fs::{Mode, OFlags, openat};

use super::dir::{Dir, is_gone};
pub(super) use parse::keyed as keyed_figures;

/// What a cgroup and those below it use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    pub cpu: Option<CpuUsage>,
    pub memory: Option<MemoryUsage>,
    /// Absent where swap is not accounted for.
    pub swap: Option<SwapUsage>,
    /// Only cgroup v2 knows pressures.
    pub io_pressure: Option<Pressure>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuUsage {
    /// Nanoseconds since the cgroup was made, over all CPUs.
    pub total: u64,
    pub pressure: Option<Pressure>,
}

/// Bytes, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryUsage {
    pub usage: u64,
    /// Usage without file pages that nobody has used for a while.
    pub working_set: u64,
    /// The cgroup's own limit.
    pub limit: Option<u64>,
    /// Anonymous memory.
    pub rss: u64,
    /// Counts.
    pub faults: u64,
    pub major_faults: u64,
    pub pressure: Option<Pressure>,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapUsage {
    pub usage: u64,
    pub limit: Option<u64>,
}

/// For how long work stood still for lack of something.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some of it did.
    pub some: Stall,
    /// All of it did.
    pub full: Stall,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total: u64,
}

/// Which figures are wanted beside the usage of CPU, memory and swap: each costs some files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The limits of memory and swap, where the caller has not set them itself.
    pub limits: bool,
    pub pids: bool,
}

/// The longest file that is read: memory.stat has some 2 kB. What is longer is cut.
const MAX_FILE: usize = 16 << 10;

/// Reads small files, always into the same memory.
pub struct FileReader(Vec<u8>);

impl Default for FileReader {
    fn default() -> Self {
        Self(vec![0; MAX_FILE])
    }
}

impl FileReader {
    /// The text of a file below `dir`. `None`: there is no such file.
    ///
    /// # Errors
    /// As `read(2)`.
    pub(super) fn read(&mut self, dir: &Dir, path: &str) -> io::Result<Option<&str>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let read = openat(dir, path, flags, Mode::empty()).and_then(|file| {
            // The kernel makes the text at the first read: one is enough, as the buffer is large.
            rustix::io::read(&file, &mut self.0[..])
        });
        match read.map_err(io::Error::from) {
            Ok(length) => Ok(std::str::from_utf8(&self.0[..length]).ok()),
            Err(error) if is_gone(&error) => Ok(None),
            // Pressures that were not switched on.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn number(&mut self, dir: &Dir, path: &str) -> io::Result<Option<u64>> {
        Ok(self.read(dir, path)?.and_then(parse::number))
    }

    fn number_if(&mut self, wanted: bool, dir: &Dir, path: &str) -> io::Result<Option<u64>> {
        if wanted {
            self.number(dir, path)
        } else {
            Ok(None)
        }
    }
}
