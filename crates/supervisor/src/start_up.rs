//! What a program without libc must bring itself: the entry point and the functions on memory that the
//! compiler calls.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};

// The kernel enters here with the arguments on an aligned stack. A function is entered with a return
// address above that, so one is pushed: nothing returns to it.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "call {run}", "ud2", run = sym run);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x0, sp", "bl {run}", "brk 1", run = sym run);

/// # Safety
/// At `stack` lies what the kernel gives a new program: a count, that many pointers to terminated strings, a null.
unsafe extern "C" fn run(stack: *const usize) -> ! {
    // SAFETY: the caller's promise. With a count of 1 or 0 the next pointer would be another's.
    let argument = unsafe {
        let count = stack.read();
        (count > 1).then(|| CStr::from_ptr(stack.add(2).read() as *const c_char))
    };
    carpel_supervisor::run(argument)
}

/// Copies `count` bytes between ranges that do not overlap.
///
/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise, passed on. Every access below lies within both ranges: the last one of
    // each kind ends where they end, and may overlap the one before.
    unsafe {
        match count {
            0 => {}
            1..8 => copy_up(to, from, count),
            8..16 => {
                copy::<u64>(to, from);
                copy::<u64>(to.add(count - 8), from.add(count - 8));
            }
            16..=64 => {
                copy::<u128>(to, from);
                if count > 32 {
                    copy::<u128>(to.add(16), from.add(16));
                    copy::<u128>(to.add(count - 32), from.add(count - 32));
                }
                copy::<u128>(to.add(count - 16), from.add(count - 16));
            }
            65..=512 => copy_blocks(to, from, count),
            _ => copy_up(to, from, count),
        }
    }
    to
}

/// Copies one `T`, aligned or not.
///
/// # Safety
/// Both places are valid for a `T`.
#[inline(always)]
unsafe fn copy<T>(to: *mut u8, from: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        to.cast::<T>()
            .write_unaligned(from.cast::<T>().read_unaligned())
    }
}

/// Copies more than 64 bytes, 64 at a time: for lengths where starting a `rep movsb` costs more.
///
/// # Safety
/// As memcpy(3).
#[inline(always)]
unsafe fn copy_blocks(to: *mut u8, from: *const u8, count: usize) {
    let last = count - 64;
    let mut at = 0;
    loop {
        // SAFETY: `at` is at most `count - 64`.
        unsafe {
            let (to, from) = (to.add(at), from.add(at));
            copy::<u128>(to, from);
            copy::<u128>(to.add(16), from.add(16));
            copy::<u128>(to.add(32), from.add(32));
            copy::<u128>(to.add(48), from.add(48));
            // Keeps the compiler from seeing a copy here and calling this very function for it.
            asm!("", options(nostack, preserves_flags));
        }
        if at == last {
            return;
        }
        at = (at + 64).min(last);
    }
}

/// Copies `count` bytes between ranges that may overlap.
///
/// # Safety
/// As memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: `to` does not lie within what is still to be read.
        unsafe { copy_up(to, from, count) };
        return to;
    }
    let mut left = count;
    while left > 0 {
        left -= 1;
        // SAFETY: within both ranges. Volatile, so that this loop does not become a call of itself.
        unsafe { to.add(left).write_volatile(from.add(left).read_volatile()) };
    }
    to
}

/// Copies from the lowest address on.
///
/// # Safety
/// Both ranges are valid, and `to` does not lie within the source behind its beginning.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_up(to: *mut u8, from: *const u8, count: usize) {
    // SAFETY: the direction flag is clear by the calling convention.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") count => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies from the lowest address on.
///
/// # Safety
/// Both ranges are valid, and `to` does not lie within the source behind its beginning.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn copy_up(to: *mut u8, from: *const u8, count: usize) {
    let end = from.wrapping_add(count);
    // SAFETY: reads and writes `count` bytes.
    unsafe {
        asm!(
            "2: cmp {from}, {end}",
            "b.hs 3f",
            "ldrb {byte:w}, [{from}], #1",
            "strb {byte:w}, [{to}], #1",
            "b 2b",
            "3:",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            end = in(reg) end,
            byte = out(reg) _,
            options(nostack),
        );
    }
}

/// Fills `count` bytes.
///
/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the direction flag is clear by the calling convention.
    unsafe {
        asm!(
            "rep stosb",
            inout("rcx") count => _,
            inout("rdi") to => _,
            in("al") byte as u8,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// Fills `count` bytes.
///
/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
#[cfg(target_arch = "aarch64")]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    for at in 0..count {
        // SAFETY: within the range. Volatile, so that this loop does not become a call of itself.
        unsafe { to.add(at).write_volatile(byte as u8) };
    }
    to
}

/// Compares `count` bytes.
///
/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: within both ranges. Volatile, so that this loop does not become a call of itself.
        let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// As [`memcmp`], but tells only whether they differ.
///
/// # Safety
/// As bcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise, passed on.
    unsafe { memcmp(a, b, count) }
}

/// Counts the bytes before a NUL.
///
/// # Safety
/// As strlen(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut length = 0;
    // SAFETY: up to the NUL. Volatile, so that this loop does not become a call of itself.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// The standard library's compiled parts name this; without unwinding it is never called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
