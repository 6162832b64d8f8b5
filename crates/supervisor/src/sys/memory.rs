//! Memory: what outlives a function, what is mapped, what is given back.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as nr;

use super::{BorrowedFd, Errno, Result, call, errno};
use carpel_wire::NulList;

/// No page is smaller on our architectures. On larger ones less is given back.
const PAGE: usize = 4096;

/// A value in static memory that is handed out once, to its only user.
#[repr(C)]
pub struct Once<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through `take`, which succeeds once.
unsafe impl<T: Send> Sync for Once<T> {}

impl<T> Once<T> {
    pub const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    #[expect(clippy::mut_from_ref, reason = "it is handed out once")]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: this is the first and last time, so the reference is unique.
        Some(unsafe { &mut *self.value.get() })
    }
}

/// New memory for the life of the process: zeros, and only as many pages as are used.
pub fn map_zeroed(length: usize) -> Result<&'static mut [u8]> {
    let protection = (nr::PROT_READ | nr::PROT_WRITE) as usize;
    let flags = (nr::MAP_PRIVATE | nr::MAP_ANONYMOUS) as usize;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { call(nr::__NR_mmap, [0, length, protection, flags, usize::MAX, 0]) }?;
    // SAFETY: changes no contents. Without it one byte could cost a huge page.
    let _ = unsafe {
        call(
            nr::__NR_madvise,
            [address, length, nr::MADV_NOHUGEPAGE as usize, 0, 0, 0],
        )
    };
    // SAFETY: the mapping is readable, writable, of that length, and nobody else's.
    Ok(unsafe { core::slice::from_raw_parts_mut(address as *mut u8, length) })
}

/// Gives the part of the stack back to the kernel that deeper calls have used.
#[inline(never)]
pub fn release_stack() {
    const MOST: usize = 256 * 1024;
    let here = 0_u8;
    // A page below this frame, so that neither the frame nor what lies under it is touched.
    let end = (&raw const here as usize) / PAGE * PAGE - PAGE;
    // SAFETY: no frame lies there, and a new one expects no contents. Where the stack has never been
    // the call does nothing.
    let _ = unsafe {
        call(
            nr::__NR_madvise,
            [end - MOST, MOST, nr::MADV_DONTNEED as usize, 0, 0, 0],
        )
    };
}

/// Gives the whole pages within `buffer` back to the kernel. They read as zeros again.
pub fn release(buffer: &mut [u8]) {
    let start = buffer.as_ptr() as usize;
    let first = start.next_multiple_of(PAGE);
    let last = (start + buffer.len()) / PAGE * PAGE;
    if last > first {
        // SAFETY: the range lies within `buffer`, which is ours to change; any bytes are valid in it.
        let _ = unsafe {
            call(
                nr::__NR_madvise,
                [first, last - first, nr::MADV_DONTNEED as usize, 0, 0, 0],
            )
        };
    }
}

/// The bytes of a sealed memfd, mapped.
pub struct Mapping {
    address: usize,
    length: usize,
}

impl Mapping {
    /// Maps a sealed memfd of at most `limit` bytes.
    ///
    /// # Errors
    /// EPERM if the memfd could still be changed or cut, EFBIG if it is too long.
    pub fn new(fd: BorrowedFd<'_>, limit: usize) -> Result<Self> {
        let needed = nr::F_SEAL_WRITE | nr::F_SEAL_SHRINK;
        if super::seals(fd)? & needed != needed {
            return Err(Errno(errno::EPERM));
        }
        let length = super::status(fd)?.size;
        let length = usize::try_from(length).map_err(|_| Errno(errno::EFBIG))?;
        if length > limit {
            return Err(Errno(errno::EFBIG));
        }
        if length == 0 {
            return Ok(Self { address: 0, length });
        }
        let (protection, flags) = (nr::PROT_READ as usize, nr::MAP_PRIVATE as usize);
        // SAFETY: a new mapping at an address of the kernel's choice.
        unsafe { call(nr::__NR_mmap, [0, length, protection, flags, fd.arg(), 0]) }
            .map(|address| Self { address, length })
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the mapping is readable and as long as the file, whose seals forbid to change or cut
        // it; it is taken away only with `self`.
        unsafe { core::slice::from_raw_parts(self.address as *const u8, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: nothing borrowed from the mapping outlives it.
            let _ = unsafe { call(nr::__NR_munmap, [self.address, self.length, 0, 0, 0, 0]) };
        }
    }
}

/// What execve(2) takes its strings from: pointers to them, then a null.
pub struct PointerArray<'a> {
    address: usize,
    strings: core::marker::PhantomData<&'a [u8]>,
}

impl<'a> PointerArray<'a> {
    /// Points to each string of `list`, in memory that is mapped for it.
    ///
    /// # Errors
    /// EINVAL if the last string is not ended, ENOMEM.
    pub fn new(list: NulList<'a>) -> Result<Self> {
        if !list.is_terminated() {
            return Err(Errno(errno::EINVAL));
        }
        let count = list.count();
        let length = (count + 1) * size_of::<usize>();
        let protection = nr::PROT_READ | nr::PROT_WRITE;
        let flags = nr::MAP_PRIVATE | nr::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            call(
                nr::__NR_mmap,
                [
                    0,
                    length,
                    protection as usize,
                    flags as usize,
                    usize::MAX,
                    0,
                ],
            )?
        };
        // SAFETY: the mapping is page-aligned, zeroed, writable and holds `count + 1` pointers.
        let pointers = unsafe { core::slice::from_raw_parts_mut(address as *mut usize, count + 1) };
        for (pointer, string) in pointers.iter_mut().zip(list.iter()) {
            *pointer = string.as_ptr() as usize;
        }
        Ok(Self {
            address,
            strings: core::marker::PhantomData,
        })
    }

    pub(super) fn arg(&self) -> usize {
        self.address
    }
}
