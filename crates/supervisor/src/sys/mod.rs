//! The system calls that a supervisor makes, and the only `unsafe` of this crate.
//!
//! There is no libc below: [`arch`] holds the one instruction, the other modules give it names and
//! types. Descriptors are [`Fd`]s, errors are [`Errno`]s, and every wrapper is safe to call with any
//! values: what the kernel reads or writes is always described by a reference.

mod arch;
mod file;
mod io;
mod memory;
mod mount;
mod process;
mod socket;

use core::marker::PhantomData;
use core::num::NonZeroU32;

pub use file::*;
pub use io::*;
pub use memory::*;
pub use mount::*;
pub use process::*;
pub use socket::*;

/// The numbers of errors that the code decides on.
pub mod errno {
    pub use linux_raw_sys::errno::*;
}

/// What a system call failed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u32);

impl Errno {
    /// As the wire protocol carries it.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0.cast_signed()
    }
}

pub type Result<T> = core::result::Result<T, Errno>;

/// An open file descriptor, closed when dropped. It holds its number plus one, so that a table of empty
/// slots is all zeros and takes no room in the binary.
#[derive(Debug, PartialEq, Eq)]
pub struct Fd(NonZeroU32);

impl Fd {
    /// Takes a number that the kernel has just handed out.
    fn from_kernel(number: usize) -> Self {
        let number = u32::try_from(number).unwrap_or(u32::MAX - 1);
        Self(NonZeroU32::MIN.saturating_add(number))
    }

    #[must_use]
    pub fn borrow(&self) -> BorrowedFd<'_> {
        BorrowedFd((self.0.get() - 1).cast_signed(), PhantomData)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: close reads no memory, and nothing else owns this number.
        let _ = unsafe { call(nr::__NR_close, [self.borrow().arg(), 0, 0, 0, 0, 0]) };
    }
}

/// A descriptor that someone else keeps open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BorrowedFd<'a>(i32, PhantomData<&'a Fd>);

impl BorrowedFd<'_> {
    /// The working directory, for calls that take a directory.
    pub const CWD: BorrowedFd<'static> = BorrowedFd(nr::AT_FDCWD, PhantomData);
    pub const STDIN: BorrowedFd<'static> = BorrowedFd(0, PhantomData);
    pub const STDOUT: BorrowedFd<'static> = BorrowedFd(1, PhantomData);
    pub const STDERR: BorrowedFd<'static> = BorrowedFd(2, PhantomData);

    fn arg(self) -> usize {
        self.0 as isize as usize
    }

    /// The number, to order descriptors by and to give them to the kernel inside a structure.
    fn number(self) -> u32 {
        self.0.cast_unsigned()
    }
}

use linux_raw_sys::general as nr;

/// Makes system call `number`.
///
/// # Safety
/// Pointers among the arguments must be valid for what the call does with them, and the call must not
/// take memory or descriptors away from code that still uses them.
#[inline]
unsafe fn call(number: u32, arguments: [usize; 6]) -> Result<usize> {
    // SAFETY: the caller's promise.
    let value = unsafe { arch::syscall(number as usize, arguments) }.cast_signed();
    if (-4095..0).contains(&value) {
        Err(Errno(value.unsigned_abs() as u32))
    } else {
        Ok(value.cast_unsigned())
    }
}
