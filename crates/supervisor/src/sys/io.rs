//! Reading, writing, pipes, epoll, the clock.

use linux_raw_sys::general as nr;

use super::{BorrowedFd, Errno, Fd, Result, call, errno};

/// Reads what is there, at most `buffer`.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes within `buffer`.
    unsafe {
        call(
            nr::__NR_read,
            [
                fd.arg(),
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                0,
                0,
                0,
            ],
        )
    }
}

/// Writes what the file takes.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads within `bytes`.
    unsafe {
        call(
            nr::__NR_write,
            [fd.arg(), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0],
        )
    }
}

/// Writes `bytes` in one call; a short write is EIO.
pub fn write_whole(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    if write(fd, bytes)? == bytes.len() {
        Ok(())
    } else {
        Err(Errno(errno::EIO))
    }
}

/// To the beginning of a file.
pub fn rewind(fd: BorrowedFd<'_>) -> Result<()> {
    let whence = nr::SEEK_SET as usize;
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_lseek, [fd.arg(), 0, whence, 0, 0, 0]) }.map(drop)
}

/// A close-on-exec pipe: read end, write end.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0_u32; 2];
    // SAFETY: the kernel writes two ints into `ends`.
    unsafe {
        call(
            nr::__NR_pipe2,
            [(&raw mut ends) as usize, nr::O_CLOEXEC as usize, 0, 0, 0, 0],
        )?;
    }
    Ok((
        Fd::from_kernel(ends[0] as usize),
        Fd::from_kernel(ends[1] as usize),
    ))
}

/// A copy of a descriptor at 3 or above, close-on-exec.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<Fd> {
    fcntl(fd, nr::F_DUPFD_CLOEXEC, 3).map(Fd::from_kernel)
}

/// dup3(2) onto a standard stream, without close-on-exec.
pub fn duplicate_onto(fd: BorrowedFd<'_>, stream: BorrowedFd<'static>) -> Result<()> {
    // SAFETY: reads no memory; only the standard streams, which no `Fd` owns, can be replaced.
    unsafe { call(nr::__NR_dup3, [fd.arg(), stream.arg(), 0, 0, 0, 0]) }.map(drop)
}

pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = fcntl(fd, nr::F_GETFL, 0)?;
    fcntl(fd, nr::F_SETFL, flags | nr::O_NONBLOCK as usize).map(drop)
}

/// How many bytes a pipe holds at most.
pub fn pipe_capacity(fd: BorrowedFd<'_>) -> Result<usize> {
    fcntl(fd, nr::F_GETPIPE_SZ, 0)
}

/// The seals of a memfd.
pub fn seals(fd: BorrowedFd<'_>) -> Result<u32> {
    fcntl(fd, nr::F_GET_SEALS, 0).map(|seals| seals as u32)
}

fn fcntl(fd: BorrowedFd<'_>, command: u32, value: usize) -> Result<usize> {
    // SAFETY: the commands used here take an integer.
    unsafe { call(nr::__NR_fcntl, [fd.arg(), command as usize, value, 0, 0, 0]) }
}

/// Marks every descriptor from `first` to `last` close-on-exec.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: reads no memory and closes nothing yet.
    unsafe {
        call(
            nr::__NR_close_range,
            [
                first as usize,
                u32::MAX as usize,
                CLOSE_RANGE_CLOEXEC,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// Closes every descriptor from 3 on that is not in `keep`. For a new process: the [`Fd`]s of the
/// process that it was cloned from mean nothing to it, and it never drops them.
pub fn close_all_but(keep: &mut [BorrowedFd<'_>]) {
    keep.sort_unstable_by_key(|fd| fd.number());
    let mut next = 3;
    for fd in keep.iter() {
        if fd.number() > next {
            close_range(next, fd.number() - 1);
        }
        next = next.max(fd.number().saturating_add(1));
    }
    close_range(next, u32::MAX);
}

/// Closes every descriptor, for a process that has no use for any.
pub fn close_all() {
    close_range(0, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: reads no memory; the caller gives the numbers up.
    let _ = unsafe {
        call(
            nr::__NR_close_range,
            [first as usize, last as usize, 0, 0, 0, 0],
        )
    };
}

/// Cuts a file to `length` bytes.
pub fn truncate(fd: BorrowedFd<'_>, length: u64) -> Result<()> {
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_ftruncate, [fd.arg(), length as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn now() -> i64 {
    let mut time = nr::__kernel_timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec; it cannot fail for this clock.
    let _ = unsafe {
        call(
            nr::__NR_clock_gettime,
            [
                nr::CLOCK_REALTIME as usize,
                (&raw mut time) as usize,
                0,
                0,
                0,
                0,
            ],
        )
    };
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

/// What epoll reports of one descriptor.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[cfg_attr(target_arch = "x86_64", repr(packed))]
pub struct Ready {
    pub events: u32,
    pub token: u64,
}

impl Ready {
    pub const NONE: Ready = Ready {
        events: 0,
        token: 0,
    };
}

pub const READABLE: u32 = nr::EPOLLIN;
pub const WRITABLE: u32 = nr::EPOLLOUT;

/// An epoll set, level-triggered.
pub struct Epoll(Fd);

impl Epoll {
    pub fn new() -> Result<Self> {
        // SAFETY: reads no memory.
        unsafe {
            call(
                nr::__NR_epoll_create1,
                [nr::EPOLL_CLOEXEC as usize, 0, 0, 0, 0, 0],
            )
        }
        .map(|fd| Self(Fd::from_kernel(fd)))
    }

    /// The set itself, which is readable while something in it is ready.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.borrow()
    }

    pub fn add(&self, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
        self.control(nr::EPOLL_CTL_ADD, fd, events, token)
    }

    pub fn change(&self, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
        self.control(nr::EPOLL_CTL_MOD, fd, events, token)
    }

    /// Takes a descriptor out. Closing it is not enough: others may hold the same file open.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.control(nr::EPOLL_CTL_DEL, fd, 0, 0);
    }

    fn control(&self, operation: u32, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
        let event = Ready { events, token };
        // SAFETY: the kernel reads one event.
        unsafe {
            call(
                nr::__NR_epoll_ctl,
                [
                    self.0.borrow().arg(),
                    operation as usize,
                    fd.arg(),
                    (&raw const event) as usize,
                    0,
                    0,
                ],
            )
        }
        .map(drop)
    }

    /// Waits for events, at most `timeout` milliseconds if it is given, and returns how many came.
    pub fn wait(&self, ready: &mut [Ready], timeout: Option<i32>) -> Result<usize> {
        // SAFETY: the kernel writes at most `ready.len()` events; there is no signal mask.
        unsafe {
            call(
                nr::__NR_epoll_pwait,
                [
                    self.0.borrow().arg(),
                    ready.as_mut_ptr() as usize,
                    ready.len(),
                    timeout.unwrap_or(-1) as isize as usize,
                    0,
                    8,
                ],
            )
        }
    }
}

/// Waits until `fd` is readable, at most `timeout` milliseconds. Whether it is.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: u32) -> bool {
    let mut poll = nr::pollfd {
        fd: fd.0,
        events: nr::POLLIN as i16,
        revents: 0,
    };
    let time = nr::__kernel_timespec {
        tv_sec: i64::from(timeout / 1000),
        tv_nsec: i64::from(timeout % 1000) * 1_000_000,
    };
    // SAFETY: the kernel reads and writes one pollfd and one timespec; there is no signal mask.
    let found = unsafe {
        call(
            nr::__NR_ppoll,
            [
                (&raw mut poll) as usize,
                1,
                (&raw const time) as usize,
                0,
                8,
                0,
            ],
        )
    };
    found == Ok(1)
}

/// Sleeps for ever.
pub fn sleep_forever() -> ! {
    loop {
        // SAFETY: no descriptors, no timeout, no mask: the kernel reads nothing.
        let _ = unsafe { call(nr::__NR_ppoll, [0, 0, 0, 0, 8, 0]) };
    }
}
