//! Mounts, always by descriptor.

use core::ffi::CStr;

use linux_raw_sys::general as nr;

use super::{BorrowedFd, Fd, Result, call};

pub const ATTR_RDONLY: u64 = nr::MOUNT_ATTR_RDONLY as u64;
pub const ATTR_NOSUID: u64 = nr::MOUNT_ATTR_NOSUID as u64;
pub const ATTR_NODEV: u64 = nr::MOUNT_ATTR_NODEV as u64;
pub const ATTR_NOEXEC: u64 = nr::MOUNT_ATTR_NOEXEC as u64;

/// A file system that is being configured.
pub struct FsContext(Fd);

impl FsContext {
    pub fn open(fstype: &CStr) -> Result<Self> {
        // SAFETY: the kernel reads a terminated string.
        unsafe {
            call(
                nr::__NR_fsopen,
                [
                    fstype.as_ptr() as usize,
                    nr::FSOPEN_CLOEXEC as usize,
                    0,
                    0,
                    0,
                    0,
                ],
            )
        }
        .map(|fd| Self(Fd::from_kernel(fd)))
    }

    /// Sets an option; an empty value is a flag.
    pub fn set(&self, key: &CStr, value: &CStr) -> Result<()> {
        if value.is_empty() {
            self.configure(
                nr::fsconfig_command::FSCONFIG_SET_FLAG,
                key.as_ptr() as usize,
                0,
            )
        } else {
            let (key, value) = (key.as_ptr() as usize, value.as_ptr() as usize);
            self.configure(nr::fsconfig_command::FSCONFIG_SET_STRING, key, value)
        }
    }

    /// Makes the file system and a detached mount of it.
    pub fn mount(self, attrs: u64) -> Result<Fd> {
        self.configure(nr::fsconfig_command::FSCONFIG_CMD_CREATE, 0, 0)?;
        // SAFETY: reads no memory.
        unsafe {
            call(
                nr::__NR_fsmount,
                [
                    self.0.borrow().arg(),
                    nr::FSMOUNT_CLOEXEC as usize,
                    attrs as usize,
                    0,
                    0,
                    0,
                ],
            )
        }
        .map(Fd::from_kernel)
    }

    fn configure(&self, command: nr::fsconfig_command, key: usize, value: usize) -> Result<()> {
        // SAFETY: key and value are null or come from a `CStr` that the caller holds.
        unsafe {
            call(
                nr::__NR_fsconfig,
                [self.0.borrow().arg(), command as usize, key, value, 0, 0],
            )
        }
        .map(drop)
    }
}

/// A detached copy of the mount at an open file, or of the part of it below that file.
pub fn clone_tree(from: BorrowedFd<'_>, recursive: bool) -> Result<Fd> {
    let recursive = if recursive { nr::AT_RECURSIVE } else { 0 };
    let flags = nr::OPEN_TREE_CLONE | nr::OPEN_TREE_CLOEXEC | nr::AT_EMPTY_PATH | recursive;
    // SAFETY: the kernel reads an empty path.
    unsafe {
        call(
            nr::__NR_open_tree,
            [from.arg(), c"".as_ptr() as usize, flags as usize, 0, 0, 0],
        )
    }
    .map(Fd::from_kernel)
}

/// Attaches a detached mount to an open file or directory.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = nr::MOVE_MOUNT_F_EMPTY_PATH | nr::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the kernel reads empty paths.
    unsafe {
        call(
            nr::__NR_move_mount,
            [
                mount.arg(),
                c"".as_ptr() as usize,
                target.arg(),
                c"".as_ptr() as usize,
                flags as usize,
                0,
            ],
        )
    }
    .map(drop)
}

/// mount_setattr(2): `propagation` 0 leaves that as it is.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> Result<()> {
    let attributes = nr::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    let recursive = if recursive { nr::AT_RECURSIVE } else { 0 };
    // SAFETY: the kernel reads an empty path and one `mount_attr`.
    unsafe {
        call(
            nr::__NR_mount_setattr,
            [
                mount.arg(),
                c"".as_ptr() as usize,
                (nr::AT_EMPTY_PATH | recursive) as usize,
                (&raw const attributes) as usize,
                size_of::<nr::mount_attr>(),
                0,
            ],
        )
    }
    .map(drop)
}

pub const SLAVE: u64 = nr::MS_SLAVE as u64;

/// Makes the working directory the root and loses the old root.
pub fn pivot_to_working_directory() -> Result<()> {
    let here = c".".as_ptr() as usize;
    // SAFETY: the kernel reads terminated paths.
    unsafe {
        call(nr::__NR_pivot_root, [here, here, 0, 0, 0, 0])?;
        call(
            nr::__NR_umount2,
            [here, nr::MNT_DETACH as usize, 0, 0, 0, 0],
        )?;
        call(nr::__NR_chdir, [c"/".as_ptr() as usize, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}
