//! Processes: cloning, waiting, signals, namespaces, privileges, exec.

use core::ffi::CStr;

use linux_raw_sys::{general as nr, ioctl, prctl};

use super::{BorrowedFd, Errno, Fd, PointerArray, Result, call, errno};

pub const CLONE_PARENT: u64 = nr::CLONE_PARENT as u64;
pub const CLONE_NEWPID: u64 = nr::CLONE_NEWPID as u64;
pub const CLONE_NEWNS: u64 = nr::CLONE_NEWNS as u64;
pub const CLONE_NEWCGROUP: u64 = nr::CLONE_NEWCGROUP as u64;
pub const CLONE_NEWUTS: u64 = nr::CLONE_NEWUTS as u64;
pub const CLONE_NEWIPC: u64 = nr::CLONE_NEWIPC as u64;
pub const CLONE_NEWUSER: u64 = nr::CLONE_NEWUSER as u64;
pub const CLONE_NEWNET: u64 = nr::CLONE_NEWNET as u64;
/// The namespaces that a daemon may ask for.
pub const CLONE_NAMESPACES: u64 = (nr::CLONE_NEWNS
    | nr::CLONE_NEWCGROUP
    | nr::CLONE_NEWUTS
    | nr::CLONE_NEWIPC
    | nr::CLONE_NEWUSER
    | nr::CLONE_NEWNET
    | nr::CLONE_NEWTIME) as u64;

pub const SIGKILL: i32 = nr::SIGKILL as i32;

/// Which side of a clone this is.
pub enum Cloned {
    Parent { pid: u32, pidfd: Fd },
    Child,
}

/// clone3(2) with a copy of the memory and the descriptors, as fork(2) makes them.
pub fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd = 0_u32;
    let parent = flags & CLONE_PARENT != 0;
    let into = if cgroup.is_some() {
        nr::CLONE_INTO_CGROUP
    } else {
        0
    };
    let arguments = nr::clone_args {
        flags: flags | into | u64::from(nr::CLONE_PIDFD),
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        // With CLONE_PARENT the kernel takes the signal that the caller itself ends with.
        exit_signal: if parent { 0 } else { u64::from(nr::SIGCHLD) },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.number())),
    };
    // SAFETY: memory is copied, not shared, so both sides go on by themselves, and there is one thread.
    let pid = unsafe {
        call(
            nr::__NR_clone3,
            [
                (&raw const arguments) as usize,
                size_of::<nr::clone_args>(),
                0,
                0,
                0,
                0,
            ],
        )
    }?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    Ok(Cloned::Parent {
        pid: pid as u32,
        pidfd: Fd::from_kernel(pidfd as usize),
    })
}

/// fork(2), by the call that seccomp profiles know: they have no clone3(2), whose arguments they cannot see.
pub fn fork() -> Result<Cloned> {
    let mut pidfd = 0_u32;
    let flags = nr::CLONE_PIDFD | nr::SIGCHLD;
    // SAFETY: memory is copied, not shared, so both sides go on by themselves, and there is one thread. The kernel
    // writes one int into `pidfd`.
    let pid = unsafe {
        call(
            nr::__NR_clone,
            [flags as usize, 0, (&raw mut pidfd) as usize, 0, 0, 0],
        )
    }?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    Ok(Cloned::Parent {
        pid: pid as u32,
        pidfd: Fd::from_kernel(pidfd as usize),
    })
}

#[must_use]
pub fn own_pid() -> u32 {
    // SAFETY: reads no memory; it cannot fail.
    unsafe { call(nr::__NR_getpid, [0; 6]) }.map_or(0, |pid| pid as u32)
}

pub fn open_pidfd(pid: u32) -> Result<Fd> {
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_pidfd_open, [pid as usize, 0, 0, 0, 0, 0]) }.map(Fd::from_kernel)
}

pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        let _ = unsafe { call(nr::__NR_exit_group, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Which children [`wait`] asks about.
#[derive(Debug, Clone, Copy)]
pub enum Child {
    Any,
    Pid(u32),
}

/// A child that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: u32,
    /// As `wait(2)` gives it.
    pub wait_status: i32,
}

/// Finds a child that has ended, without waiting; `reap` takes it away.
pub fn wait(child: Child, reap: bool) -> Option<Ended> {
    // `siginfo_t` of a SIGCHLD: signal, errno, code, padding, pid, uid, status.
    let mut information = [0_i32; 32];
    let (kind, id) = match child {
        Child::Any => (nr::P_ALL, 0),
        Child::Pid(pid) => (nr::P_PID, pid as usize),
    };
    let keep = if reap { 0 } else { nr::WNOWAIT };
    let options = nr::WEXITED | nr::WNOHANG | nr::__WALL | keep;
    // SAFETY: the kernel writes one `siginfo_t` of 128 bytes.
    let found = unsafe {
        call(
            nr::__NR_waitid,
            [
                kind as usize,
                id,
                (&raw mut information) as usize,
                options as usize,
                0,
                0,
            ],
        )
    };
    let [_, _, code, _, pid, _, status, ..] = information;
    if found.is_err() || pid <= 0 {
        return None;
    }
    const EXITED: i32 = nr::CLD_EXITED as i32;
    const DUMPED: i32 = nr::CLD_DUMPED as i32;
    let wait_status = match code {
        EXITED => (status & 0xff) << 8,
        DUMPED => status & 0x7f | 0x80,
        _ => status & 0x7f,
    };
    Some(Ended {
        pid: pid.cast_unsigned(),
        wait_status,
    })
}

pub fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let number = signal as isize as usize;
    // SAFETY: no `siginfo_t` is given.
    unsafe {
        call(
            nr::__NR_pidfd_send_signal,
            [pidfd.arg(), number, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

/// How a process ended that someone else has reaped, as `wait(2)` would have told: `None` before that, and
/// on kernels before 6.15, which do not keep it.
pub fn reaped_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    /// `struct pidfd_info` as it was at first.
    #[repr(C)]
    struct Information {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        wait_status: i32,
    }
    const EXIT: u64 = 1 << 3;
    /// _IOWR(0xff, 11, struct pidfd_info).
    const GET_INFORMATION: usize = 0xc040_ff0b;
    const { assert!(size_of::<Information>() == 64) };
    let mut information = Information {
        mask: EXIT,
        cgroup: 0,
        ids: [0; 11],
        wait_status: 0,
    };
    // SAFETY: the kernel reads and writes one `Information`, whose size is in the command.
    unsafe {
        call(
            nr::__NR_ioctl,
            [
                pidfd.arg(),
                GET_INFORMATION,
                (&raw mut information) as usize,
                0,
                0,
                0,
            ],
        )
    }
    .ok()?;
    (information.mask & EXIT != 0).then_some(information.wait_status)
}

/// Signals the process group that `pid` leads.
pub fn signal_group(pid: u32, signal: i32) -> Result<()> {
    let group = -(i64::from(pid)) as isize as usize;
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_kill, [group, signal as isize as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Sets every signal to its default and blocks all (`block`), or none.
pub fn reset_signals(block: bool) {
    // The kernel's `struct sigaction`, which libc's is not: handler, flags, restorer, mask.
    let default = [0_usize; 4];
    for signal in 1..=64_usize {
        // SAFETY: the kernel reads one `struct sigaction`; the default action runs no code of ours.
        let _ = unsafe {
            call(
                nr::__NR_rt_sigaction,
                [signal, (&raw const default) as usize, 0, 8, 0, 0],
            )
        };
    }
    let mask = if block { u64::MAX } else { 0 };
    // SAFETY: the kernel reads one signal set of 8 bytes.
    let _ = unsafe {
        call(
            nr::__NR_rt_sigprocmask,
            [
                nr::SIG_SETMASK as usize,
                (&raw const mask) as usize,
                0,
                8,
                0,
                0,
            ],
        )
    };
}

/// Has the kernel reap this process's children.
pub fn ignore_children() {
    let ignore = [1_usize, 0, 0, 0];
    // SAFETY: the kernel reads one `struct sigaction`; SIG_IGN runs no code of ours.
    let _ = unsafe {
        call(
            nr::__NR_rt_sigaction,
            [
                nr::SIGCHLD as usize,
                (&raw const ignore) as usize,
                0,
                8,
                0,
                0,
            ],
        )
    };
}

/// A descriptor that is readable while a SIGCHLD waits. The signal must be blocked.
pub fn child_signals() -> Result<Fd> {
    let mask = 1_u64 << (nr::SIGCHLD - 1);
    let flags = nr::O_CLOEXEC | nr::O_NONBLOCK;
    // SAFETY: the kernel reads one signal set of 8 bytes.
    unsafe {
        call(
            nr::__NR_signalfd4,
            [
                usize::MAX,
                (&raw const mask) as usize,
                8,
                flags as usize,
                0,
                0,
            ],
        )
    }
    .map(Fd::from_kernel)
}

/// setns(2).
pub fn enter_namespace(fd: BorrowedFd<'_>, flags: u64) -> Result<()> {
    // SAFETY: reads no memory.
    unsafe {
        call(
            nr::__NR_setns,
            [fd.arg(), flags as u32 as usize, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

pub fn unshare(flags: u64) -> Result<()> {
    // SAFETY: reads no memory; memory and descriptors are never unshared by it.
    unsafe {
        call(
            nr::__NR_unshare,
            [(flags & CLONE_NAMESPACES) as usize, 0, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

pub fn set_hostname(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads within `name`.
    unsafe {
        call(
            nr::__NR_sethostname,
            [name.as_ptr() as usize, name.len(), 0, 0, 0, 0],
        )
    }
    .map(drop)
}

pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = nr::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the kernel reads one `rlimit64` and is given no place for the old one.
    unsafe {
        call(
            nr::__NR_prlimit64,
            [0, resource as usize, (&raw const limit) as usize, 0, 0, 0],
        )
    }
    .map(drop)
}

/// prctl(2) options that take integers.
fn control(option: u32, a: usize, b: usize) -> Result<usize> {
    // SAFETY: the options used here take integers, but for the name, which is a static string.
    unsafe { call(nr::__NR_prctl, [option as usize, a, b, 0, 0, 0]) }
}

pub fn set_name(name: &'static CStr) {
    let _ = control(prctl::PR_SET_NAME, name.as_ptr() as usize, 0);
}

/// Keeps other processes from looking into this one, until it execs.
pub fn set_not_dumpable() -> Result<()> {
    control(prctl::PR_SET_DUMPABLE, 0, 0).map(drop)
}

pub fn adopt_orphans() -> Result<()> {
    control(prctl::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

pub fn keep_capabilities() -> Result<()> {
    control(prctl::PR_SET_KEEPCAPS, 1, 0).map(drop)
}

pub fn set_no_new_privileges() -> Result<()> {
    control(prctl::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Drops from the bounding set what is not in `keep`.
pub fn limit_bounding_set(keep: u64) -> Result<()> {
    for capability in 0..64 {
        match control(prctl::PR_CAPBSET_READ, capability, 0) {
            Ok(0) => {}
            Ok(_) if keep >> capability & 1 == 1 => {}
            Ok(_) => control(prctl::PR_CAPBSET_DROP, capability, 0).map(drop)?,
            Err(_) => break,
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `raise`.
pub fn set_ambient(raise: u64) -> Result<()> {
    let ambient = prctl::PR_CAP_AMBIENT;
    control(ambient, prctl::PR_CAP_AMBIENT_CLEAR_ALL as usize, 0)?;
    for capability in (0..64).filter(|capability| raise >> capability & 1 == 1) {
        control(ambient, prctl::PR_CAP_AMBIENT_RAISE as usize, capability)?;
    }
    Ok(())
}

/// setgroups(2) with little-endian numbers, which is what our architectures have.
pub fn set_groups(gids: &[u8]) -> Result<()> {
    if !gids.len().is_multiple_of(4) {
        return Err(Errno(errno::EINVAL));
    }
    // SAFETY: the kernel reads `gids.len() / 4` numbers, aligned or not.
    unsafe {
        call(
            nr::__NR_setgroups,
            [gids.len() / 4, gids.as_ptr() as usize, 0, 0, 0, 0],
        )
    }
    .map(drop)
}

pub fn set_ids(uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (uid as usize, gid as usize);
    // SAFETY: reads no memory.
    unsafe {
        call(nr::__NR_setresgid, [gid, gid, gid, 0, 0, 0])?;
        call(nr::__NR_setresuid, [uid, uid, uid, 0, 0, 0])?;
    }
    Ok(())
}

/// Sets the effective user id alone: with another than 0 there are no effective capabilities meanwhile.
pub fn set_effective_user(uid: u32) -> Result<()> {
    const SAME: usize = u32::MAX as usize;
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_setresuid, [SAME, uid as usize, SAME, 0, 0, 0]) }.map(drop)
}

pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let sets = [
        low(effective),
        low(permitted),
        low(inheritable),
        high(effective),
        high(permitted),
        high(inheritable),
    ];
    // SAFETY: the kernel reads a header of two words and two structures of three.
    unsafe {
        call(
            nr::__NR_capset,
            [
                (&raw const header) as usize,
                (&raw const sets) as usize,
                0,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// Loads a seccomp filter: an array of `struct sock_filter`, 8 bytes each.
pub fn load_filter(program: &[u8], flags: u64) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: usize,
    }
    let length = u16::try_from(program.len() / 8).map_err(|_| Errno(errno::EINVAL))?;
    if !program.len().is_multiple_of(8) {
        return Err(Errno(errno::EINVAL));
    }
    let program = Program {
        length,
        filter: program.as_ptr() as usize,
    };
    const SET_MODE_FILTER: usize = 1;
    // SAFETY: the kernel reads `length` instructions, aligned or not.
    unsafe {
        call(
            nr::__NR_seccomp,
            [
                SET_MODE_FILTER,
                flags as usize,
                (&raw const program) as usize,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

pub fn lead_session() -> Result<()> {
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_setsid, [0; 6]) }.map(drop)
}

/// Makes the standard input the controlling terminal.
pub fn take_terminal() -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    unsafe { call(nr::__NR_ioctl, [0, ioctl::TIOCSCTTY as usize, 0, 0, 0, 0]) }.map(drop)
}

/// execve(2). Returns only if it fails.
pub fn execute(path: &CStr, arguments: &PointerArray<'_>, environment: &PointerArray<'_>) -> Errno {
    // SAFETY: the kernel reads a terminated path and two arrays of terminated strings.
    let result = unsafe {
        call(
            nr::__NR_execve,
            [
                path.as_ptr() as usize,
                arguments.arg(),
                environment.arg(),
                0,
                0,
                0,
            ],
        )
    };
    result.err().unwrap_or(Errno(errno::EIO))
}
