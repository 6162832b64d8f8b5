//! The system calls that have no safe wrapper elsewhere, and two small things that sit beside them.
//!
//! This is the only module of the crate with `unsafe` in it. Nothing here decides anything: each
//! function is one system call with typed arguments.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the kernel begin to write the file's data to its disk, and does not wait for that. Advice: an error has no
/// consequence.
pub fn start_writeback(file: BorrowedFd<'_>) {
    // SAFETY: no memory is passed, and the descriptor is open for as long as it is borrowed.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Has the allocator share two arenas among all threads, and give back what is free at the end of one from 128 KiB
/// on (`mallopt(3)`). By default each thread may keep an arena of its own, which costs a daemon of a few megabytes
/// half as much again. To be called before there are threads.
pub fn economize_memory() {
    // SAFETY: no memory is passed.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Gives the kernel back what the allocator keeps of freed memory (`malloc_trim(3)`).
pub fn give_memory_back() {
    // SAFETY: no memory is passed.
    unsafe { libc::malloc_trim(0) };
}

/// What [`mount_setattr`] changes; the default changes nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct MountAttr<'fd> {
    /// MOUNT_ATTR_* bits to set.
    pub set: u64,
    /// MOUNT_ATTR_* bits to clear.
    pub clear: u64,
    /// MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace whose id mapping the mount gets (MOUNT_ATTR_IDMAP).
    pub idmap: Option<BorrowedFd<'fd>>,
}

/// `struct mount_attr`, as `mount_setattr(2)` gives it.
#[repr(C)]
struct RawMountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the mount whose root `mount` is (as from `open_tree(2)`), with what is mounted below it if
/// `recursive`.
///
/// # Errors
/// As `mount_setattr(2)`: EINVAL if `mount` is no mount's root, or if its file system cannot be idmapped.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attr: &MountAttr<'_>,
) -> io::Result<()> {
    let idmap = if attr.idmap.is_some() {
        libc::MOUNT_ATTR_IDMAP
    } else {
        0
    };
    let raw = RawMountAttr {
        attr_set: attr.set | idmap,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: attr
            .idmap
            .map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let recursion = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `raw` is a `struct mount_attr` of the size that is
    // given beside it and outlives the call, and the descriptors are borrowed, so they are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursion,
            &raw const raw,
            size_of::<RawMountAttr>(),
        )
    };
    check(result).map(drop)
}

/// `struct sock_fprog` of `seccomp(2)`.
#[repr(C)]
struct RawFilter {
    length: u16,
    instructions: *const u8,
}

/// Has the kernel run a filter, an array of `struct sock_filter`, on every system call of this thread and of those
/// that it will start.
///
/// # Errors
/// As `seccomp(2)`: EACCES if neither PR_SET_NO_NEW_PRIVS is set nor CAP_SYS_ADMIN there, EINVAL for what is no program.
pub fn install_filter(program: &[u8]) -> io::Result<()> {
    let length = u16::try_from(program.len() / size_of::<libc::sock_filter>());
    let raw = RawFilter {
        length: length.map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr(),
    };
    // SAFETY: `raw` is a `struct sock_fprog` whose pointer is to as many instructions as it says; both outlive the call,
    // which copies them, and the kernel does not ask for an alignment.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const raw,
        )
    };
    check(result).map(drop)
}

/// _IO(0xb7, 1) of `ioctl_nsfs(2)`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// The user namespace that owns a namespace.
///
/// # Errors
/// As `ioctl_nsfs(2)`: ENOTTY if the file is no namespace, EPERM if its owner is not below our own.
pub fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the command takes no argument, and the descriptor is borrowed, so it is open.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _) };
    check(fd.into())?;
    // SAFETY: the kernel has just given this descriptor (close-on-exec), and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One instruction of eBPF, in the kernel's layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BpfInstruction {
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_ATTACH_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The head of `union bpf_attr` for BPF_PROG_LOAD. The kernel takes the fields that are left out as 0.
#[repr(C)]
struct RawProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The head of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct RawProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE.
///
/// # Errors
/// As `bpf(2)`: EINVAL or EACCES if the verifier refuses it, EPERM without CAP_BPF or CAP_SYS_ADMIN.
pub fn load_device_program(program: &[BpfInstruction]) -> io::Result<OwnedFd> {
    let license: &CStr = c"Apache-2.0";
    let mut prog_name = [0; 16];
    prog_name[..14].copy_from_slice(b"carpel_devices");
    let attr = RawProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    // SAFETY: `attr` is the head of `union bpf_attr` for this command, of the size that is given; its
    // pointers are to `program`, of `insn_cnt` instructions, and to a C string, which outlive the call.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attr,
            size_of::<RawProgLoad>(),
        )
    })?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just given this descriptor (close-on-exec), and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup v2 directory, beside those that are there (each must allow).
/// It stays for as long as the cgroup exists.
///
/// # Errors
/// As `bpf(2)`.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = RawProgAttach {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_bpf_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: BPF_ATTACH_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    // SAFETY: `attr` is the head of `union bpf_attr` for this command, of the size that is given, and
    // outlives the call; both descriptors are borrowed, so they are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attr,
            size_of::<RawProgAttach>(),
        )
    };
    check(result).map(drop)
}

/// `struct pidfd_info` of `ioctl_pidfd(2)` as it was at first.
#[repr(C)]
#[derive(Default)]
struct RawPidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// _IOWR(0xff, 11, struct pidfd_info).
const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;

/// How a process ended that has been reaped, by whomever, as `wait(2)` tells it. `None` before that, and on
/// kernels before 6.15, which do not keep it.
pub fn reaped_status(pidfd: &OwnedFd) -> Option<i32> {
    const { assert!(size_of::<RawPidfdInfo>() == 64) };
    let mut info = RawPidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..RawPidfdInfo::default()
    };
    // SAFETY: the kernel reads and writes one structure of the size that is in the command; `info` outlives
    // the call, and the descriptor is borrowed, so it is open.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// The result of a raw system call made through libc, or its errno.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Raises the soft limit on open files to the hard one, and returns what it was before (soft, hard;
/// `None` is no limit): containers get that one.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn raise_open_files() -> io::Result<(Option<u64>, Option<u64>)> {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: before.maximum,
                maximum: before.maximum,
            },
        )?;
    }
    Ok((before.current, before.maximum))
}

/// Registers a descriptor with the reactor.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub fn async_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    async_fd_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Registers a descriptor with the reactor for one direction.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub fn async_fd_for(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the AsyncFd, so it stays open and the same until that is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_kernel_says_what_is_wrong() {
        let file = File::open("/dev/null").unwrap();
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        let error = mount_setattr(file.as_fd(), false, &attr).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert!(load_device_program(&[]).is_err());
        assert!(attach_device_program(file.as_fd(), file.as_fd()).is_err());
    }
}
