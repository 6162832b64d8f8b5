//! The container's network namespace.
//!
//! The process has one thread, so entering a namespace moves all of it; [`Netns::inside`] always
//! comes back.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{self, CWD, Mode, OFlags},
    io::{self, Errno},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    error::{Code, Doing, Error},
    netlink::Socket,
};

const OWN: &str = "/proc/self/ns/net";
/// The file system on which namespaces are files.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// An open network namespace and the way back.
pub struct Netns {
    fd: OwnedFd,
    home: OwnedFd,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
}

fn same(a: &OwnedFd, b: &OwnedFd) -> io::Result<bool> {
    let (a, b) = (fs::fstat(a)?, fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

impl Netns {
    /// Opens the namespace at `path`; nothing if there is none any more: no file, or one from which
    /// the namespace was unmounted.
    ///
    /// Errors: if it is the namespace that the plugin runs in, unless `own_allowed`.
    pub fn find(path: &Path, own_allowed: bool) -> Result<Option<Netns>, Error> {
        let named = || format!("network namespace {}", path.display());
        let fd = match open(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => {
                return Err(Error::new(
                    Code::InvalidNetns,
                    format!("{}: {errno}", named()),
                ));
            }
        };
        let home = open(OWN).doing(Code::Internal, || OWN.into())?;
        let kind = fs::fstatfs(&fd).doing(Code::InvalidNetns, named)?;
        if kind.f_type as u64 != NSFS_MAGIC {
            return Ok(None);
        }
        if !own_allowed && same(&fd, &home).doing(Code::InvalidNetns, named)? {
            let msg = format!("{} is the one the plugin runs in", named());
            return Err(Error::new(Code::InvalidNetns, msg));
        }
        Ok(Some(Netns { fd, home }))
    }

    /// Opens the namespace at `path`, which must be there.
    pub fn open(path: &Path, own_allowed: bool) -> Result<Netns, Error> {
        Netns::find(path, own_allowed)?.ok_or_else(|| {
            let msg = format!("{} is no network namespace", path.display());
            Error::new(Code::InvalidNetns, msg)
        })
    }

    /// Does something inside the namespace.
    pub fn inside<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.enter(&self.fd)?;
        let done = work();
        self.enter(&self.home)?;
        done
    }

    /// A netlink socket inside the namespace, to be used from outside.
    pub fn socket(&self) -> Result<Socket, Error> {
        self.inside(|| Socket::route().doing(Code::Internal, || "open a netlink socket".into()))
    }

    /// The namespace that the plugin runs in.
    pub fn home(&self) -> BorrowedFd<'_> {
        self.home.as_fd()
    }

    fn enter(&self, fd: &OwnedFd) -> Result<(), Error> {
        move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))
            .doing(Code::InvalidNetns, || "enter the network namespace".into())
    }
}
