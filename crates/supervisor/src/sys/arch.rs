//! How a system call is made, per architecture.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("carpel-supervisor knows the system calls of x86_64 and aarch64");

/// Makes a system call and returns what the kernel left in the result register.
///
/// # Safety
/// As for the call itself: see [`super::call`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn syscall(number: usize, arguments: [usize; 6]) -> usize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the registers are those of the kernel's calling convention; memory is assumed changed.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a system call and returns what the kernel left in the result register.
///
/// # Safety
/// As for the call itself: see [`super::call`].
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub unsafe fn syscall(number: usize, arguments: [usize; 6]) -> usize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the registers are those of the kernel's calling convention; memory is assumed changed.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
    }
    result
}
