//! What a container gets from the host: bind mounts and terminals, as detached mounts.
//!
//! A clone is made and given its flags and propagation here, in the host's mount namespace; the
//! container's process only moves it to its place. So it makes no difference to propagation what
//! mount namespace it ends in, and no half-configured mount is ever seen.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, makedev, openat, openat2, statx,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};

use crate::spec::config::Propagation;
use crate::sys::{MountAttr, mount_setattr};

/// A path of the host that a container sees: a folder with all that is mounted below it, or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// On the host; links in it are followed.
    pub source: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
    /// MOUNT_ATTR_* bits of the mount itself, not of what is mounted below it.
    pub attrs: u64,
    /// Those of what is mounted below it, too.
    pub recursive_attrs: u64,
    pub propagation: Propagation,
    /// Whether it is seen in the ids of the pod's user namespace, with all that is mounted below it.
    pub mapped: bool,
}

/// MOUNT_ATTR__ATIME: the bits that say one of several ways.
const ATIME_MASK: u64 = 0x70;

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("host path {}: {source}", .path.display())]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("host path {} is mounted on {}, which is not a shared mount", .path.display(), .mount.display())]
    NotShared { path: PathBuf, mount: PathBuf },
    #[error("host path {} is mounted on {}, which is not a shared or slave mount", .path.display(), .mount.display())]
    NotSharedOrSlave { path: PathBuf, mount: PathBuf },
    #[error("bind mount of {}: {call}: {source}", .path.display())]
    Mount {
        path: PathBuf,
        call: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "host path {}: its file system ({file_system}), or one mounted below it, cannot be idmapped, which the \
         pod's user namespace needs: {source}", .path.display()
    )]
    Map {
        path: PathBuf,
        /// The magic number of the type.
        file_system: String,
        #[source]
        source: io::Error,
    },
    #[error("terminal: {call}: {source}")]
    Terminal {
        call: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Sees to it that `path` can be mounted with this propagation. One that is missing is made, as a folder (0755).
///
/// # Errors
/// [`Error::Path`] if it is missing and cannot be made; [`Error::NotShared`] and
/// [`Error::NotSharedOrSlave`] if mounts could not travel the way that the propagation asks for.
pub fn prepare(path: &Path, propagation: Propagation) -> Result<(), Error> {
    let failed = |source| Error::Path {
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(failed)?,
        Err(error) => return Err(failed(error)),
        Ok(_) => {}
    }
    check_propagation(path, propagation)
}

/// Clones what `mount` names, with its flags and its propagation.
///
/// # Errors
/// [`Error::Mount`] if it is missing; [`Error::NotShared`] and [`Error::NotSharedOrSlave`] if mounts could
/// not travel the way that the propagation asks for.
pub fn clone_mount(mount: &BindMount) -> Result<OwnedFd, Error> {
    clone_mount_for(mount, None)
}

/// As [`clone_mount`], for a pod with this user namespace.
///
/// # Errors
/// As there, and [`Error::Map`] if its ids are to be mapped and cannot be: it is never shown without.
pub fn clone_mount_for(
    mount: &BindMount,
    user_namespace: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Error> {
    let path = &mount.source;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, mount.recursive);
    let failed = |call| {
        move |source: io::Error| Error::Mount {
            path: path.clone(),
            call,
            source,
        }
    };
    let clone = open_tree(CWD, path, flags).map_err(|error| failed("open_tree")(error.into()))?;
    check_propagation(path, mount.propagation)?;
    let propagation = MountAttr {
        propagation: match mount.propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::HostToContainer => libc::MS_SLAVE,
            Propagation::Bidirectional => libc::MS_SHARED,
        },
        ..MountAttr::default()
    };
    // Always for the whole tree, so not in one call with the flags, which may not be.
    mount_setattr(clone.as_fd(), true, &propagation).map_err(failed("set propagation"))?;
    if mount.mapped {
        map(&clone, path, user_namespace)?;
    }
    for (set, recursive) in [(mount.attrs, false), (mount.recursive_attrs, true)] {
        set_attrs(clone.as_fd(), set, recursive).map_err(failed("set options"))?;
    }
    Ok(clone)
}

/// Sets MOUNT_ATTR_* bits of a detached mount.
///
/// # Errors
/// As `mount_setattr(2)`.
pub fn set_attrs(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    if set == 0 {
        return Ok(());
    }
    let attr = MountAttr {
        set,
        // The kernel takes another way of noting access times only in place of the one before.
        clear: if set & ATIME_MASK != 0 { ATIME_MASK } else { 0 },
        ..MountAttr::default()
    };
    mount_setattr(mount, recursive, &attr)
}

/// Whether the kernel makes a mount read-only with all that is below it.
#[must_use]
pub fn can_protect_recursively() -> bool {
    let try_it = || -> io::Result<()> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
        set_attrs(mount.as_fd(), libc::MOUNT_ATTR_RDONLY, true)
    };
    try_it().is_ok()
}

fn map(clone: &OwnedFd, path: &Path, user_namespace: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let ids = MountAttr {
        idmap: user_namespace,
        ..MountAttr::default()
    };
    let mapped = match user_namespace {
        Some(_) => mount_setattr(clone.as_fd(), true, &ids),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    mapped.map_err(|source| {
        let file_system = rustix::fs::fstatfs(clone);
        Error::Map {
            path: path.to_owned(),
            file_system: file_system.map_or_else(|e| e.to_string(), |f| format!("{:#x}", f.f_type)),
            source,
        }
    })
}

/// The kernel takes any propagation for any clone; of a private mount it would just do nothing.
///
/// # Errors
/// [`Error::NotShared`] and [`Error::NotSharedOrSlave`] if mounts could not travel the way that the propagation asks for.
pub fn check_propagation(path: &Path, propagation: Propagation) -> Result<(), Error> {
    if propagation == Propagation::Private {
        return Ok(());
    }
    let failed = |source: io::Error| Error::Path {
        path: path.to_owned(),
        source,
    };
    let stat =
        statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map_err(|e| failed(e.into()))?;
    // That of the calling thread: the paths are seen from there.
    let table = std::fs::read("/proc/thread-self/mountinfo").map_err(failed)?;
    let (point, peers) = find_mount(&String::from_utf8_lossy(&table), stat.stx_mnt_id)
        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let path = path.to_owned();
    match propagation {
        Propagation::Bidirectional if !peers.shared => Err(Error::NotShared { path, mount: point }),
        Propagation::HostToContainer if !peers.shared && !peers.slave => {
            Err(Error::NotSharedOrSlave { path, mount: point })
        }
        _ => Ok(()),
    }
}

/// How a mount is tied to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peers {
    shared: bool,
    slave: bool,
}

/// Finds the mount `id` in a mountinfo table: where it is mounted, and its peers.
fn find_mount(table: &str, id: u64) -> Option<(PathBuf, Peers)> {
    table.lines().find_map(|line| {
        let mut fields = line.split(' ');
        if fields.next()?.parse() != Ok(id) {
            return None;
        }
        let point = fields.nth(3)?;
        let optional = fields.skip(1).take_while(|field| *field != "-");
        let mut peers = Peers {
            shared: false,
            slave: false,
        };
        for field in optional {
            peers.shared |= field.starts_with("shared:");
            peers.slave |= field.starts_with("master:");
        }
        Some((Path::new(point).to_owned(), peers))
    })
}

/// A terminal for a container.
#[derive(Debug)]
pub struct Terminal {
    /// The devpts that it lies in, detached: for the container's /dev/pts.
    pub devpts: OwnedFd,
    pub master: OwnedFd,
    /// Owned by root, mode 0620, group 5 (tty).
    pub slave: OwnedFd,
    /// Its name is /dev/pts/`number` in the container.
    pub number: u32,
}

/// Makes a devpts of its own with one terminal in it. Terminals in it have the group `group`, and this SELinux label.
///
/// # Errors
/// [`Error::Terminal`] with the call that the kernel refused.
pub fn terminal(group: u32, label: Option<&str>) -> Result<Terminal, Error> {
    let failed = |call| {
        move |error: rustix::io::Errno| Error::Terminal {
            call,
            source: error.into(),
        }
    };
    let devpts = devpts(group, label).map_err(failed("mount devpts"))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(&devpts, "ptmx", flags, Mode::empty()).map_err(failed("open ptmx"))?;
    let slave = open_slave(&master).map_err(failed("open slave"))?;
    let name = ptsname(&master, Vec::new()).map_err(failed("read number"))?;
    let number = name
        .to_str()
        .ok()
        .and_then(|name| name.rsplit('/').next()?.parse().ok());
    let number = number.ok_or_else(|| failed("read number")(rustix::io::Errno::INVAL))?;
    Ok(Terminal {
        devpts,
        master,
        slave,
        number,
    })
}

/// Makes a terminal, master and slave, in the devpts that is mounted at /dev/pts below `root`, so that it
/// has a name there.
///
/// # Errors
/// [`Error::Terminal`], also if something else is there.
pub fn terminal_below(root: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd), Error> {
    let failed = |call| {
        move |error: io::Error| Error::Terminal {
            call,
            source: error,
        }
    };
    let master = open_ptmx(root).map_err(failed("open ptmx"))?;
    let slave = open_slave(&master).map_err(|error| failed("open slave")(error.into()))?;
    Ok((master, slave))
}

/// What is there is for whoever has the root to say, so it is looked at before it is opened.
fn open_ptmx(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const DEVPTS: rustix::fs::FsWord = 0x1cd1;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(root, "dev/pts/ptmx", path, Mode::empty(), resolve)?;
    let is_ptmx = rustix::fs::fstat(&found)?.st_rdev == makedev(5, 2);
    let is_devpts = rustix::fs::fstatfs(&found)?.f_type == DEVPTS;
    if !is_ptmx || !is_devpts {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

fn open_slave(master: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    unlockpt(master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    ioctl_tiocgptpeer(master, flags)
}

fn devpts(group: u32, label: Option<&str>) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(context.as_fd(), "newinstance")?;
    for (key, value) in [
        ("source", "devpts"),
        ("ptmxmode", "0666"),
        ("mode", "0620"),
        ("gid", &group.to_string()),
    ] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    if let Some(label) = label {
        fsconfig_set_string(context.as_fd(), "context", label)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(test)]
mod tests;
