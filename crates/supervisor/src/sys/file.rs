//! Files and directories, always by descriptor.

use core::ffi::CStr;

use linux_raw_sys::general as nr;

use super::{BorrowedFd, Errno, Fd, Result, call, errno};

/// How openat2(2) may resolve a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolve(u64);

impl Resolve {
    /// Links are followed, but "/" and ".." never lead out of the directory.
    pub const IN_ROOT: Resolve = Resolve((nr::RESOLVE_IN_ROOT | nr::RESOLVE_NO_MAGICLINKS) as u64);
    /// The same, and whatever lies on another mount is EXDEV.
    pub const IN_ROOT_MOUNT: Resolve = Resolve(Self::IN_ROOT.0 | nr::RESOLVE_NO_XDEV as u64);
    /// As [`Resolve::IN_ROOT`], and any symbolic link is ELOOP.
    pub const IN_ROOT_NO_LINKS: Resolve = Resolve(Self::IN_ROOT.0 | nr::RESOLVE_NO_SYMLINKS as u64);
    /// One component, or a path without links or "..", that stays on the file system of the directory.
    pub const BENEATH: Resolve =
        Resolve((nr::RESOLVE_BENEATH | nr::RESOLVE_NO_MAGICLINKS | nr::RESOLVE_NO_SYMLINKS) as u64);
    /// As [`Resolve::BENEATH`], with links such as a procfs's `self`, but onto no other mount.
    pub const PROCFS: Resolve =
        Resolve((nr::RESOLVE_BENEATH | nr::RESOLVE_NO_MAGICLINKS | nr::RESOLVE_NO_XDEV) as u64);
}

pub const O_PATH: u32 = nr::O_PATH;
pub const O_DIRECTORY: u32 = nr::O_DIRECTORY;
pub const O_NOFOLLOW: u32 = nr::O_NOFOLLOW;
pub const O_RDONLY: u32 = nr::O_RDONLY;
pub const O_WRONLY: u32 = nr::O_WRONLY;

/// Opens `path` below `root`, close-on-exec. A rename meanwhile (EAGAIN) is tried again.
pub fn open_in(root: BorrowedFd<'_>, path: &CStr, flags: u32, resolve: Resolve) -> Result<Fd> {
    let how = nr::open_how {
        flags: u64::from(flags | nr::O_CLOEXEC),
        mode: 0,
        resolve: resolve.0,
    };
    let mut tries = 0;
    loop {
        // SAFETY: the kernel reads a terminated path and one `open_how`.
        let opened = unsafe {
            call(
                nr::__NR_openat2,
                [
                    root.arg(),
                    path.as_ptr() as usize,
                    (&raw const how) as usize,
                    size_of::<nr::open_how>(),
                    0,
                    0,
                ],
            )
        };
        match opened {
            Err(Errno(errno::EAGAIN)) if tries < 64 => tries += 1,
            other => return other.map(Fd::from_kernel),
        }
    }
}

/// The root directory of the process, as it is now.
pub fn open_root() -> Result<Fd> {
    let flags = nr::O_PATH | nr::O_DIRECTORY | nr::O_CLOEXEC;
    // SAFETY: the kernel reads a terminated path.
    unsafe {
        call(
            nr::__NR_openat,
            [
                BorrowedFd::CWD.arg(),
                c"/".as_ptr() as usize,
                flags as usize,
                0,
                0,
                0,
            ],
        )
    }
    .map(Fd::from_kernel)
}

/// What statx(2) tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    mode: u32,
    pub size: u64,
    /// Device number, if it is a device.
    pub device: (u32, u32),
}

impl Status {
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind() == nr::S_IFDIR
    }

    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.kind() == nr::S_IFLNK
    }

    #[must_use]
    pub fn is_char_device(&self) -> bool {
        self.kind() == nr::S_IFCHR
    }

    /// The S_IFMT bits.
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.mode & nr::S_IFMT
    }
}

pub const S_IFMT: u32 = nr::S_IFMT;
pub const S_IFREG: u32 = nr::S_IFREG;

/// The status of an open file, O_PATH or not.
pub fn status(fd: BorrowedFd<'_>) -> Result<Status> {
    status_at(fd, c"")
}

/// The status of the file `name` in a directory; a link is not followed.
pub fn status_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Status> {
    status_with(directory, name, 0)
}

/// Whether an open file is a directory, by what the kernel knows already: no server is asked, which may not answer.
pub fn is_directory(fd: BorrowedFd<'_>) -> Result<bool> {
    status_with(fd, c"", nr::AT_STATX_DONT_SYNC).map(|status| status.is_directory())
}

fn status_with(directory: BorrowedFd<'_>, name: &CStr, flags: u32) -> Result<Status> {
    let flags = nr::AT_EMPTY_PATH | nr::AT_SYMLINK_NOFOLLOW | nr::AT_NO_AUTOMOUNT | flags;
    let mask = nr::STATX_TYPE | nr::STATX_MODE | nr::STATX_SIZE;
    let mut buffer = core::mem::MaybeUninit::<nr::statx>::zeroed();
    // SAFETY: the kernel reads a terminated path and writes one `statx`.
    unsafe {
        call(
            nr::__NR_statx,
            [
                directory.arg(),
                name.as_ptr() as usize,
                flags as usize,
                mask as usize,
                buffer.as_mut_ptr() as usize,
                0,
            ],
        )?;
    }
    // SAFETY: it was zeroed, which is a valid value, and the kernel filled it in.
    let status = unsafe { buffer.assume_init() };
    Ok(Status {
        mode: u32::from(status.stx_mode),
        size: status.stx_size,
        device: (status.stx_rdev_major, status.stx_rdev_minor),
    })
}

/// Which kind of file system an open file lies on: its magic number.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut buffer = core::mem::MaybeUninit::<nr::statfs64>::zeroed();
    // SAFETY: the kernel writes one `statfs`, which is the 64-bit one on our architectures.
    unsafe {
        call(
            nr::__NR_fstatfs,
            [fd.arg(), buffer.as_mut_ptr() as usize, 0, 0, 0, 0],
        )?;
    }
    // SAFETY: it was zeroed, which is a valid value, and the kernel filled it in.
    Ok(unsafe { buffer.assume_init() }.f_type as u32)
}

pub const PROCFS_MAGIC: u32 = nr::PROC_SUPER_MAGIC;
pub const DEVPTS_MAGIC: u32 = nr::DEVPTS_SUPER_MAGIC;

pub fn make_directory(parent: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the kernel reads a terminated path.
    unsafe {
        call(
            nr::__NR_mkdirat,
            [parent.arg(), name.as_ptr() as usize, mode as usize, 0, 0, 0],
        )
    }
    .map(drop)
}

/// mknodat(2), for regular files too: it never follows a link.
pub fn make_node(parent: BorrowedFd<'_>, name: &CStr, mode: u32, device: (u32, u32)) -> Result<()> {
    let (major, minor) = (u64::from(device.0), u64::from(device.1));
    let device = (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12;
    // SAFETY: the kernel reads a terminated path.
    unsafe {
        call(
            nr::__NR_mknodat,
            [
                parent.arg(),
                name.as_ptr() as usize,
                mode as usize,
                device as u32 as usize,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

pub fn make_symlink(target: &CStr, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads two terminated paths.
    unsafe {
        call(
            nr::__NR_symlinkat,
            [
                target.as_ptr() as usize,
                parent.arg(),
                name.as_ptr() as usize,
                0,
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// Changes the owner of `name` in a directory; a link is not followed.
pub fn change_owner(parent: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Result<()> {
    let flags = nr::AT_SYMLINK_NOFOLLOW as usize;
    // SAFETY: the kernel reads a terminated path.
    unsafe {
        call(
            nr::__NR_fchownat,
            [
                parent.arg(),
                name.as_ptr() as usize,
                uid as usize,
                gid as usize,
                flags,
                0,
            ],
        )
    }
    .map(drop)
}

/// Sets an extended attribute of an open file.
pub fn set_attribute(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads a terminated name, and within `value`.
    unsafe {
        call(
            nr::__NR_fsetxattr,
            [
                file.arg(),
                name.as_ptr() as usize,
                value.as_ptr() as usize,
                value.len(),
                0,
                0,
            ],
        )
    }
    .map(drop)
}

/// Where an open link leads, into `buffer`.
pub fn read_link<'b>(link: BorrowedFd<'_>, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    // SAFETY: the kernel reads an empty path and writes within `buffer`.
    let length = unsafe {
        call(
            nr::__NR_readlinkat,
            [
                link.arg(),
                c"".as_ptr() as usize,
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                0,
                0,
            ],
        )
    }?;
    Ok(&buffer[..length.min(buffer.len())])
}

pub fn change_directory(directory: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: reads no memory.
    unsafe { call(nr::__NR_fchdir, [directory.arg(), 0, 0, 0, 0, 0]) }.map(drop)
}

/// Whether the working directory lies below the root directory.
pub fn directory_is_inside() -> Result<bool> {
    let mut buffer = [0_u8; 4096];
    // SAFETY: the kernel writes within `buffer`.
    unsafe {
        call(
            nr::__NR_getcwd,
            [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0],
        )?;
    }
    Ok(buffer[0] == b'/')
}

/// Sets the mode mask for new files and returns the old one.
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: reads no memory; it cannot fail.
    unsafe { call(nr::__NR_umask, [mask as usize, 0, 0, 0, 0, 0]) }.map_or(0, |old| old as u32)
}
